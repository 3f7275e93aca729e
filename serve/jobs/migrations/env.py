"""Run by alembic inside the transaction of `serve.jobs.tables.migrate`."""

from alembic import context

from serve.jobs.tables import metadata

context.configure(connection=context.config.attributes["connection"], target_metadata=metadata, render_as_batch=True)
context.run_migrations()
