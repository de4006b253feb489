"""Writes the report of an evaluation: report.html, and its figures in the folder report beside it.

The page needs the results of the evaluation and the source of its images, and no model. A task
without an entry in `SECTIONS` has no report.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path

import pandas as pd

from infer.report.captions import caption_sections
from infer.report.figures import report_style
from infer.report.matching import judged_of
from infer.report.objects import object_sections
from infer.report.page import Section, write_charts, write_page
from infer.results import LEADING, Report
from utils.categories import check_sigmas

PAGE, FOLDER = "report.html", "report"
FIGURES = re.compile(  # files that a report writes into the folder
    "(precision_recall|confusion|errors|calibration|size_and_shape|overlap|joints"
    r"|caption_scores|caption_lengths)\.png|(worst|best)_pictures_\d+\.jpg"
)
TITLES = {
    "detection": "Detection",
    "segmentation": "Segmentation",
    "keypoint": "Keypoints",
    "captioning": "Captions",
}
MEANINGS = {
    "AP": "mean over IoU (OKS of poses) 0.5, 0.55, …, 0.95",
    "AP50": "at 0.5",
    "AP75": "at 0.75",
    "APs": "objects below 32 x 32 pixels",
    "APm": "objects of 32 x 32 to 96 x 96 pixels",
    "APl": "objects above 96 x 96 pixels",
    "mAP50": "Pascal VOC's AP50, area under the curve",
    "mAP50_11point": "Pascal VOC's AP50 of 2007, 11 points",
    "voc/AP50": "Pascal VOC's AP50, area under the curve",
    "voc/AP50_11point": "Pascal VOC's AP50 of 2007, 11 points",
    "AR1": "recall, mean over IoU, with 1 result per picture",
    "AR10": "recall, mean over IoU, with 10 results per picture",
    "AR100": "recall, mean over IoU, with 100 results per picture",
    "CIDEr": "agreement with the references, rare words count more",
    "ROUGE-L": "longest common subsequence with a reference",
}


def write_report(
    task: str, cfg, source, report: Report, folder: Path, facts: Sequence[str]
) -> Path | None:
    """Writes the report of one task.

    Args:
        source: of the images and their ground truth, see `dataset.tasks.Task`.
        folder: report.html and the folder report go there; an earlier report is replaced. Other
            files in these folders stay.
        facts: what was evaluated, a few words each.

    Returns:
        the page; None for a task that has no report.
    """
    if task not in SECTIONS:
        return None
    names = list(getattr(getattr(source, "categories", None), "names", {}).values())
    skeleton = getattr(source, "skeleton", None)
    with report_style([*names, *(skeleton.names if skeleton else ())]):
        sections = SECTIONS[task](cfg, source, report)
    sections.append(number_section(report))
    leading = {name: value for name, value in report.metrics.items() if name in LEADING}
    figures = folder / FOLDER
    for old in figures.glob("*"):  # of an earlier report: it may have had more of them
        if FIGURES.fullmatch(old.name) and old.is_file():
            old.unlink()
    write_charts(figures, sections)
    facts = [*facts, f"{len(report.image_ids)} pictures"]
    write_page(folder / PAGE, f"{TITLES[task]}: evaluation", facts, leading, sections)
    return folder / PAGE


def number_section(report: Report) -> Section:
    """All numbers of metrics.json."""
    rows = [
        (name, float(value) if value != -1 else float("nan"), meaning(name))
        for name, value in report.metrics.items()
    ]
    table = pd.DataFrame(rows, columns=["name", "value", "meaning"])
    text = ["The numbers of metrics.json. A dash: there are no objects of that size."]
    return Section("All numbers", text, tables=[("", table)])


def meaning(name: str) -> str:
    """What a metric is, in a few words."""
    if name in MEANINGS:
        return MEANINGS[name]
    if name.startswith("coco/"):
        say = MEANINGS.get(name.removeprefix("coco/"), "")
        return f"COCO's metric: {say}" if say else "COCO's metric"
    return "of the annotation, teacher-forced" if name.startswith("likelihood/") else ""


def _detection(cfg, source, report: Report) -> list[Section]:
    return object_sections(source, judged_of(source, report, "bbox"))


def _segmentation(cfg, source, report: Report) -> list[Section]:
    return object_sections(source, judged_of(source, report, "segm"))


def _keypoints(cfg, source, report: Report) -> list[Section]:
    sigmas = check_sigmas(cfg.keypoint_sigmas, source.skeleton)
    judged = judged_of(source, report, "keypoints", sigmas)
    return object_sections(source, judged, source.skeleton)


def _captions(cfg, source, report: Report) -> list[Section]:
    return caption_sections(source, report)


SECTIONS: dict[str, Callable[..., list[Section]]] = {
    "detection": _detection,
    "segmentation": _segmentation,
    "keypoint": _keypoints,
    "captioning": _captions,
}
