"""Checks a dataset before training and gives advice on settings.

A set may have nothing to learn, more objects than a sequence holds, classes that nobody knows, or
the same pictures to train on and to judge by.
"""

import difflib
import filecmp
import os
from collections import defaultdict
from collections.abc import Iterable, Sequence
from itertools import zip_longest
from pathlib import Path

import numpy as np
from tqdm import tqdm

from dataset.sample import check_header
from utils.categories import Categories
from utils.errors import UserError
from utils.files import shown

NUM_NAMES = 5  # that a line shows
NUM_HEADERS = 500  # images of a set that are looked at before a run
NUM_CAPTIONS = 5000  # that are measured
NUM_MEASURED = 2000  # images whose boxes are measured
SMALL, SMALL_SHARE = 8, 0.1  # pixels of a side that a model can tell; share of smaller boxes
GRID, LARGEST_SIZE = 32, 1024  # img_size is advised in these steps, up to this size
RARE = 10  # objects of a class; of fewer little is learned
SIDE, WAVES = 64, 12  # of the small copy of a picture, pixels; frequencies each way
NEAR = 8  # of the bits of a fingerprint, in which copies may differ
BYTES = -(-(WAVES**2 - 1) // 8)  # of a fingerprint
ONES = np.unpackbits(np.arange(256, dtype=np.uint8)[:, None], axis=1).sum(1)  # bits of a byte


def check_learnable(source) -> None:
    """Refuses a set without an object to learn.

    Args:
        source: to train on; one without `objects_per_class` is not looked at.

    Raises:
        UserError: there is none.
    """
    if problem := missing_objects(source):
        raise UserError(f"no object to learn: {problem}")


def look_at_val(source) -> list[str]:
    """Warnings about an evaluation set; builds its ground truth, which checks it.

    Raises:
        UserError: the ground truth cannot be scored.
    """
    getattr(source, "coco", None)
    problem = missing_objects(source)
    return [f"no object to evaluate on: {problem}"] if problem else []


def compare_train_and_val(source, eval_source) -> list[str]:
    """Warnings about differences between a training and an evaluation set.

    Raises:
        UserError: they have no class in common, or other keypoints.
    """
    compare_skeletons(source, eval_source)
    lines = [compare_classes(source.categories, eval_source.categories)]
    lines.append(unlearned_classes(source, eval_source))
    return [line for line in lines if line]


def missing_objects(source) -> str:
    """The reason why a set has no object; empty if it has one."""
    if not hasattr(source, "objects_per_class") or any(source.objects_per_class().values()):
        return ""
    names = list(source.categories.names.values())
    crowds = source.num_crowds() if hasattr(source, "num_crowds") else 0
    others = f"; {crowds} annotations have iscrowd=1 and do not count" * (crowds > 0)
    what = getattr(source, "learned", "object")
    return (
        f"{source.annotation_errors.source} has no annotated {what} of {_listed(names)} on the "
        f"images in use{others}; check the file and the setting classes"
    )


def check_headers(source) -> None:
    """Checks the headers of images before the run: all in a small set, a part of a large one.

    Raises:
        UserError: one cannot be read, or its annotation says another size.
    """
    source = getattr(source, "source", source)  # of samples of one object: the images themselves
    numbers = np.linspace(0, len(source) - 1, min(len(source), NUM_HEADERS)).astype(int)
    for index in numbers.tolist():
        check_header(source.image_path(index), source.stated_size(index))


def unlearned_classes(source, eval_source) -> str:
    """A warning about evaluation classes without training objects (misspelt, or all of them).

    Empty if there are none.
    """
    if not all(hasattr(each, "objects_per_class") for each in (source, eval_source)):
        return ""
    counts = [
        {each.categories.names[i]: n for i, n in each.objects_per_class().items() if n}
        for each in (source, eval_source)
    ]
    known = source.categories.names.values()
    missing = [name for name in counts[1] if name in known and name not in counts[0]]
    near = {name: nearest(name, list(counts[0])) for name in missing}
    if not any(near.values()) and len(missing) < len(counts[1]) or not missing:
        return ""  # rare classes of a small set
    names = [repr(n) + f" (similar: {near[n]!r})" * bool(near[n]) for n in missing]
    text = f"{len(missing)} classes of the validation set have no object in the training set"
    return f"{text}: {_listed(names)}"


def compare_classes(known: Categories, evaluated: Categories) -> str:
    """A warning about evaluation classes that the training set lacks; empty if there are none.

    Args:
        known: of the training set.
        evaluated: of the validation set. Classes are matched by name.

    Raises:
        UserError: the two have no class in common.
    """
    names, wanted = list(known.names.values()), list(evaluated.names.values())
    strange = [name for name in wanted if name not in names]
    if not strange:
        return ""
    near = {name: nearest(name, names) for name in strange[:NUM_NAMES]}
    text = _listed([repr(n) + f" (similar: {near[n]!r})" * bool(near[n]) for n in near], strange)
    if len(strange) == len(wanted):
        raise UserError(
            f"the validation set has no class in common with the training set: it has {text}; "
            "classes are matched by name: correct one of the two"
        )
    return (
        f"the validation set has {len(strange)} classes that the training set does not have; the "
        f"model will never find them: {text}"
    )


def compare_skeletons(source, eval_source) -> None:
    """Refuses training and evaluation sets with different keypoints, or another order of them.

    Raises:
        UserError: they are.
    """
    ours, theirs = (getattr(each, "skeleton", None) for each in (source, eval_source))
    if ours is not None and theirs is not None and ours.names != theirs.names:
        pairs = enumerate(zip_longest(ours.names, theirs.names))
        number, names = next((i, pair) for i, pair in pairs if pair[0] != pair[1])
        raise UserError(
            f"the training set has {len(ours)} keypoints and the validation set {len(theirs)}: "
            f"number {number + 1} is {shown(names[0])} and {shown(names[1])}; they must be the "
            "same in the same order: correct one of the two"
        )


def nearest(name: str, names: Sequence[str]) -> str:
    """The most similar name, ignoring case; empty if none is similar."""
    folded = {other.casefold().strip(): other for other in names}
    near = difflib.get_close_matches(name.casefold().strip(), folded, n=1, cutoff=0.6)
    return folded[near[0]] if near else ""


# ---- budgets -----------------------------------------------------------------------------------


def object_budget(source, most: int, name: str) -> list[str]:
    """A warning if images have more objects than a sequence holds; empty if none has.

    Args:
        most: objects that it holds.
        name: of the setting.
    """
    counts = source.objects_per_image()
    over = counts > most
    if not over.any():
        return []
    return [
        f"{over.sum()} of {len(counts)} images have more than {name}={most} objects: "
        f"{(counts - most)[over].sum()} of {counts.sum()} objects are left out in every epoch; "
        f"{name}={counts.max()} holds them all"
    ]


def outline_budget(source, most: int) -> list[str]:
    """A warning if outlines have more points than a sequence holds."""
    counts = source.outline_points()
    over = counts > most
    if not over.any():
        return []
    high = int(np.percentile(counts, 99))
    remedy = f"max_points={high} holds 99 % of them whole"
    if high <= most:
        remedy = f"max_points={counts.max()} holds them all"
    return [
        f"{over.sum()} of {len(counts)} outlines have more than max_points={most} points and are "
        f"simplified; {remedy}"
    ]


def caption_budget(source, text, most: int) -> list[str]:
    """A warning if captions have more pieces than an answer holds.

    Args:
        text: the text tokenizer.
        most: tokens of an answer, </s> included.
    """
    lengths: list[int] = []
    for index in range(len(source)):
        lengths += [len(text.encode(caption)) + 1 for caption in source.captions(index)]
        if len(lengths) >= NUM_CAPTIONS:
            break
    over = np.array(lengths) > most
    if not over.any():
        return []
    return [
        f"{over.sum()} of {len(lengths)} captions have more than max_caption_tokens={most} tokens "
        f"and are cut; max_caption_tokens={max(lengths)} holds them all"
    ]


def small_objects(source, img_size: int) -> list[str]:
    """A warning if many boxes are too small to be seen after resizing.

    Args:
        img_size: longer side of the resized image, pixels.
    """
    sizes = []  # of boxes, as shares of the longer side of their image
    for index in np.linspace(0, len(source) - 1, min(len(source), NUM_MEASURED)).astype(int):
        boxes, longer = source.objects(index)[0], max(source.stated_size(index))
        if longer:
            sides = boxes[:, 2:] - boxes[:, :2]
            sizes.append(np.sqrt(np.maximum(sides, 0).prod(1)) / longer)
    shares = np.concatenate([[], *sizes])
    shares = shares[shares > 0]
    small = img_size * shares < SMALL
    if not len(shares) or small.mean() <= SMALL_SHARE:
        return []
    needed = SMALL / np.quantile(shares, SMALL_SHARE)
    size = int(-(-needed // GRID) * GRID)
    remedy = f"img_size={size} reduces this to {SMALL_SHARE:.0%} of the boxes"
    if size > LARGEST_SIZE:
        remedy += ", or cut the pictures into parts first"
    return [
        f"{small.mean():.0%} of the boxes are smaller than {SMALL}x{SMALL} pixels at "
        f"img_size={img_size}; {remedy}"
    ]


def rare_classes(source) -> list[str]:
    """A warning if classes have few training objects."""
    names, counts = source.categories.names, source.objects_per_class()
    rare = sorted((n, names[i]) for i, n in counts.items() if 0 < n < RARE)
    if not rare:
        return []
    text = _listed([f"{name!r} ({n})" for n, name in rare])
    return [
        f"{len(rare)} of {len(names)} classes have fewer than {RARE} objects to learn from: {text}"
    ]


# ---- pictures in two parts ---------------------------------------------------------------------


def image_paths(source) -> list[Path]:
    """The files of the images in use, each once."""
    source = getattr(source, "source", source)  # of samples of one object: the images themselves
    return [source.image_path(index) for index in range(len(source))]


def same_files(ours: Iterable[Path], theirs: Iterable[Path]) -> list[tuple[Path, Path]]:
    """Pairs of files with equal names and equal bytes."""
    by_name = {path.name: path for path in theirs}
    pairs = [(path, by_name[path.name]) for path in ours if path.name in by_name]
    return [pair for pair in pairs if _equal(*pair)]


def _equal(one: Path, other: Path) -> bool:
    try:
        return one == other or filecmp.cmp(one, other, shallow=False)
    except OSError:  # a missing picture is reported elsewhere
        return False


def same_pictures(
    ours: Sequence[Path], theirs: Sequence[Path], *, decode: bool
) -> list[tuple[Path, Path]]:
    """Pairs of files with equal bytes and any names.

    Args:
        decode: look at the pictures too; copies of another size or format are found.
    """
    by_size: dict[int, list[Path]] = defaultdict(list)
    for path in theirs:
        if os.path.isfile(path):  # Path.is_file raises where a name is too long
            by_size[path.stat().st_size].append(path)
    sizes = [(path, path.stat().st_size) for path in ours if os.path.isfile(path)]
    pairs = [(path, other) for path, size in sizes for other in by_size[size]]
    pairs = [pair for pair in pairs if _equal(*pair)]
    if not decode:
        return pairs
    known, (one, other) = set(pairs), (_fingerprints(paths) for paths in (ours, theirs))
    twins, twin_bits = list(other), np.array(list(other.values()), np.uint8).reshape(-1, BYTES)
    for path, bits in one.items():
        near = ONES[twin_bits ^ bits].sum(1) <= NEAR  # (twins,)
        found = [(path, twins[i]) for i in np.flatnonzero(near).tolist()]
        pairs += [pair for pair in found if pair not in known]
    return pairs


def _fingerprints(paths: Iterable[Path]) -> dict[Path, np.ndarray]:
    """(BYTES,) uint8 of each picture that copies of it share: signs of its lowest frequencies."""
    import cv2

    from utils.images import read_image

    found = {}
    for path in tqdm(paths, "copies", unit="image", disable=None):
        try:
            image, _ = read_image(path, at_least=(SIDE, SIDE))
        except UserError:
            continue
        grey = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY).astype(np.float32)
        waves = cv2.dct(cv2.resize(grey, (SIDE, SIDE), interpolation=cv2.INTER_AREA))
        waves = waves[:WAVES, :WAVES].ravel()[1:]  # the first is the brightness
        if np.abs(waves).max() < 1:  # one colour is like any other
            continue
        found[path] = np.packbits(waves > np.median(waves))
    return found


def overlap_text(pairs: Sequence[tuple[Path, Path]], num_val: int) -> str:
    """A warning about training pictures that are in the evaluation set, too; empty if none is."""
    if not pairs:
        return ""
    shared = {theirs for _, theirs in pairs}
    examples = "; ".join(f"{ours} and {theirs}" for ours, theirs in pairs[:2])
    return (
        f"{len(shared)} of {num_val} validation pictures are also training pictures, so the "
        f"results will look too good: {examples}{'; …' * (len(pairs) > 2)}"
    )


def _listed(texts: Sequence[str], of: Sequence[str] = ()) -> str:
    """The first few of some texts."""
    more = max(len(of), len(texts)) - NUM_NAMES
    return ", ".join(texts[:NUM_NAMES]) + (f" and {more} more" if more > 0 else "")
