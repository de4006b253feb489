"""What an evaluation found, and the files it leaves."""

from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from utils.files import atomic_path, write_json_atomic


@dataclass(frozen=True)
class Report:
    """What an evaluation found."""

    metrics: dict[str, float]  # the first one is the one to compare models by
    per_class: pd.DataFrame
    table: str  # for people
    results: list[dict]  # rows of the COCO results format

    def save(self, folder: str | Path) -> None:
        """Writes results.json, metrics.json and per_class.csv."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        write_json_atomic(folder / "results.json", self.results, indent=None)
        write_json_atomic(folder / "metrics.json", self.metrics)
        with atomic_path(folder / "per_class.csv") as path:
            self.per_class.to_csv(path, index=False)
