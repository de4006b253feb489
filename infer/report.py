"""What an evaluation found, and the files it leaves."""

from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from utils.files import atomic_path, write_json_atomic

LEADING = ("AP", "AP50", "AP75", "mAP50", "mAP50_11point", "CIDEr", "BLEU-4", "ROUGE-L")


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


def compact_table(reports: dict[str, Report], num_images: dict[str, int]) -> str:
    """A line per task: how many images, and the numbers that tasks are judged by.

    Args:
        reports: task -> report.
        num_images: task -> images it was scored on.
    """
    lines = [f"{'task':<14}{'images':>6}  metrics"]
    for task, report in reports.items():
        leading = {k: v for k, v in report.metrics.items() if k in LEADING} or report.metrics
        numbers = "  ".join(f"{name} {value:.3f}" for name, value in leading.items())
        lines.append(f"{task:<14}{num_images[task]:>6}  {numbers}")
    return "\n".join(lines)
