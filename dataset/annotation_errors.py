"""Kinds of annotation errors, and whether each is refused, left out or only noted."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from enum import Enum

from utils.errors import UserError

MAX_EXAMPLES = 5  # of a kind that are kept
LARGEST = 1e6  # no picture has such a coordinate
IN_NOTICE = 2  # of these, in a notice
SKIP = "correct or remove it, or skip all such errors with --set bad_samples=skip"


class Level(Enum):
    """What training does about an error."""

    FATAL = "refused"  # always: the meaning is unclear, or the file is hostile
    REFUSED = "refused unless bad_samples=skip"
    LEFT_OUT = "left out"  # and reported in one line
    NOTED = "accepted"  # worth a look


@dataclass(frozen=True)
class Kind:
    """A kind of annotation error: its level and its text."""

    text: str  # in the plural
    level: Level


KINDS = {
    # of files and images
    "image_id_twice": Kind("images with the id of another", Level.FATAL),
    "file_name": Kind("invalid file names, or paths outside the image folder", Level.FATAL),
    "image_entry": Kind("images without a usable entry", Level.FATAL),
    "categories": Kind("malformed category lists", Level.FATAL),
    "same_name": Kind("categories with the name of another", Level.FATAL),
    "normalised": Kind("files whose coordinates look normalised to 0..1", Level.FATAL),
    "corners": Kind("files whose boxes look like x1, y1, x2, y2", Level.REFUSED),
    "image_missing": Kind("missing images", Level.REFUSED),
    "image_unreadable": Kind("images that cannot be read", Level.REFUSED),
    "image_size": Kind("images of another size than their annotation says", Level.REFUSED),
    "xml_missing": Kind("missing XML annotations", Level.REFUSED),
    "xml": Kind("XML files that are not VOC annotations", Level.REFUSED),
    "label_file": Kind("annotation files that cannot be read", Level.REFUSED),
    "picture_twice": Kind("annotation files of a picture that has another", Level.REFUSED),
    "unusable": Kind("tasks that this dataset cannot be used for", Level.FATAL),
    # of annotations
    "entry": Kind("annotations that lack a field", Level.REFUSED),
    "not_numbers": Kind("fields that should be numbers but are not", Level.REFUSED),
    "not_finite": Kind("numbers that are not finite or too large", Level.REFUSED),
    "unknown_category": Kind("annotations of an unknown category", Level.REFUSED),
    "small_outline": Kind("files whose outlines look normalised to 0..1", Level.FATAL),
    "outline": Kind("outlines that are neither polygons nor run lengths", Level.REFUSED),
    "caption": Kind("captions that are not text", Level.REFUSED),
    "no_area": Kind("boxes without an area", Level.LEFT_OUT),
    "outside": Kind("boxes outside their image", Level.LEFT_OUT),
    "unlisted": Kind("annotations of images that the file does not list", Level.LEFT_OUT),
    "few_points": Kind("polygons of fewer than three points or without an area", Level.LEFT_OUT),
    "shape": Kind("shapes that no task learns (lines, tags, cuboids, …)", Level.LEFT_OUT),
    "no_outline": Kind("objects without an outline", Level.LEFT_OUT),
    "only_crowds": Kind("categories that have only crowd annotations", Level.LEFT_OUT),
    "name_unused": Kind("unused categories with the name of another", Level.LEFT_OUT),
    "label_alone": Kind("label files without a picture", Level.LEFT_OUT),
    "unlabelled": Kind("pictures without an annotation file", Level.LEFT_OUT),
    "empty_caption": Kind("empty captions", Level.LEFT_OUT),
    "id_twice": Kind("annotations with the id of another", Level.NOTED),
    "id_strange": Kind("annotations whose id is not a whole number", Level.NOTED),
    "listed_twice": Kind("images that a split list names twice", Level.NOTED),
    "class_of_none": Kind("class names not in Pascal VOC (typo?)", Level.NOTED),
    "same_box": Kind("boxes that repeat another of the same class", Level.NOTED),
    "reaches_out": Kind("boxes that reach out of their image", Level.NOTED),
    "point_outside": Kind("labelled keypoints outside their image", Level.NOTED),
    "size_unstated": Kind("images whose annotation states no size", Level.NOTED),
    "confidence": Kind("boxes with a confidence (results of a model?)", Level.NOTED),
    "empty": Kind("images without an object", Level.NOTED),
}


OUTLINE_KINDS = ("outline", "small_outline", "few_points", "no_outline")  # of segmentation alone


class AnnotationErrors:
    """The errors of a file or dataset by kind: their number, and a few examples.

    Attributes:
        counts: kind -> number.
        examples: kind -> the first few, in words.
    """

    def __init__(self, source: object, *, skip: bool = False, report: bool = False):
        """
        Args:
            source: the file or dataset, for messages.
            skip: count errors that are refused otherwise, but for fatal ones.
            report: count all errors and refuse none.
        """
        self.source, self.skip, self.report = source, skip, report
        self.counts: Counter[str] = Counter()
        self.examples: dict[str, list[str]] = {}

    def add(self, kind: str, where: str, detail: str = "") -> None:
        """Counts an error, or raises it if its kind is refused.

        Args:
            kind: one of `KINDS`.
            where: e.g. "annotation 12 of image 5".
            detail: what is wrong there.
        """
        text = f"{where}: {detail}" if detail else where
        if not self.report and self._refuses(kind):
            raise self._refusal(kind, text)
        self.counts[kind] += 1
        examples = self.examples.setdefault(kind, [])
        if len(examples) < MAX_EXAMPLES:
            examples.append(text)

    def enforce(self) -> None:
        """Raises the first error of a kind that is refused, for errors that were only counted."""
        refused = [kind for kind in self.counts if self._refuses(kind)]
        if refused:
            more = self.counts.total() - 1
            raise self._refusal(refused[0], self.examples[refused[0]][0], more)

    def _refuses(self, kind: str) -> bool:
        level = KINDS[kind].level
        return level is Level.FATAL or (level is Level.REFUSED and not self.skip)

    def _refusal(self, kind: str, text: str, more: int = 0) -> UserError:
        advice = "correct or remove it" if KINDS[kind].level is Level.FATAL else SKIP
        others = f"; {more} more, see dataset/check_dataset.py" if more else ""
        return UserError(f"{self.source}: {text}; {advice}{others}")

    def merge(self, others: "AnnotationErrors") -> None:
        """Adds errors that were counted elsewhere."""
        self.counts.update(others.counts)
        for kind, texts in others.examples.items():
            examples = self.examples.setdefault(kind, [])
            examples += texts[: MAX_EXAMPLES - len(examples)]

    def to_json(self) -> dict:
        return {"counts": self.counts, "examples": self.examples}

    @classmethod
    def from_json(cls, source: object, values: dict) -> "AnnotationErrors":
        """Inverse of `to_json`; nothing is refused until `enforce` is called."""
        errors = cls(source, report=True)
        errors.counts.update(values["counts"])
        errors.examples.update(values["examples"])
        return errors

    def forget(self, kinds: Iterable[str]) -> None:
        """Removes errors that do not matter for the given tasks."""
        for kind in kinds:
            self.counts.pop(kind, None)
            self.examples.pop(kind, None)

    def notice(self) -> str:
        """One line on what was left out; empty if nothing was."""
        parts = []
        for kind, count in self.counts.items():
            if KINDS[kind].level is Level.NOTED:
                continue
            shown = "; ".join(self.examples[kind][:IN_NOTICE]) + "; …" * (count > IN_NOTICE)
            parts.append(f"{KINDS[kind].text}, {count} ({shown})")
        return f"{self.source}: left out: {'; '.join(parts)}" if parts else ""
