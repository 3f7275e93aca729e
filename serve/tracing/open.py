"""Jobs as traces, where the settings name a collector; otherwise nothing of OpenTelemetry is even imported."""

from __future__ import annotations

from importlib.util import find_spec

from serve.errors import ConfigError
from serve.settings import Settings
from serve.tracing.trace import JobTrace, Traces

EXPORTER = "opentelemetry.exporter.otlp.proto.http"


class NoTraces:
    def tell(self, trace: JobTrace) -> None:
        pass

    def close(self) -> None:
        pass


def check_tracing(settings: Settings) -> None:
    """Raises ConfigError where traces are wanted and cannot be sent."""
    if settings.tracing.endpoint is not None and not _installed():
        raise ConfigError(
            f"tracing.endpoint is {settings.tracing.endpoint}, but OpenTelemetry's exporter is not installed",
            param="tracing.endpoint",
            hint="pip install 'zimage-serve[tracing]', or leave tracing out",
        )


def open_traces(settings: Settings) -> Traces:
    """Raises ConfigError."""
    if settings.tracing.endpoint is None:
        return NoTraces()
    check_tracing(settings)
    from serve.tracing.otel import collector  # noqa: PLC0415 - an extra

    return collector(settings.tracing.endpoint, settings.tracing.service_name)


def _installed() -> bool:
    try:
        return find_spec(EXPORTER) is not None
    except ModuleNotFoundError:  # of one of its parents
        return False
