"""What is in the job store and in the asset folder, read beside the service, and whether the two agree."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import sqlalchemy

from serve.settings import Settings
from tests.cluster.load import Accepted, fingerprint

Row = dict[str, Any]


class Books:
    def __init__(self, data: Path, database: str | None) -> None:
        self.data = data
        self.settings = Settings(data=data, database=database)
        self._engine = sqlalchemy.create_engine(database or f"sqlite:///{data}/jobs.db")

    def close(self) -> None:
        self._engine.dispose()

    def jobs(self) -> dict[str, Row]:
        columns = "id, status, attempt, losses, crashes, images"
        with self._engine.connect() as connection:
            rows = connection.execute(sqlalchemy.text(f"SELECT {columns} FROM jobs")).mappings()
            return {row["id"]: dict(row) for row in rows}

    def audit(self, accepted: dict[str, Accepted], undisturbed: dict[int, list[str]]) -> None:
        """Every accepted job has ended once, as it should, with its own pictures; there is nothing else."""
        jobs = self.jobs()
        assert set(jobs) == set(accepted)
        wanted: dict[str, str] = {}
        for job_id, row in jobs.items():
            mine = accepted[job_id]
            assert row["status"] == ("canceled" if mine.canceled else "succeeded"), (row, mine)
            if row["status"] == "succeeded":
                images = [image["asset_id"] for image in json.loads(row["images"])]
                assert images == [f"{job_id}-{i}" for i in range(len(undisturbed[mine.number]))]
                wanted |= dict(zip(images, undisturbed[mine.number], strict=True))
        assert self._pictures() == wanted
        previews = {folder.name for folder in (self.data / "assets" / "previews").iterdir()}
        assert previews <= set(jobs)

    def _pictures(self) -> dict[str, str]:
        """Fingerprints of all files; a picture without its metadata, or the reverse, is a mistake."""
        files = [path for path in (self.data / "assets" / "images").rglob("*") if path.is_file()]
        pictures = {path.stem: path for path in files if path.suffix == ".png"}
        metadata = {path.stem: path for path in files if path.suffix == ".json"}
        assert len(files) == 2 * len(pictures), sorted(set(files) - {*pictures.values(), *metadata.values()})
        assert pictures.keys() == metadata.keys()
        return {name: fingerprint(path.read_bytes()) for name, path in pictures.items()}
