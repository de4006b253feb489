"""Makes batches of a caller's images, and of all images of a dataset for an evaluation."""

import itertools
import numbers
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from dataset.batch import EvalBatch
from dataset.loader import build_eval_loader
from infer.results import Report
from utils.cli import log
from utils.devices import ALONE, World
from utils.images import as_image

BATCHES_AHEAD = 2  # that the model predicts while earlier ones are not finished

ImageLike = str | Path | Image.Image | np.ndarray | Tensor  # see `utils.images.as_image`


def as_tensor(image: ImageLike) -> Tensor:
    """A path, a PIL image, an RGB array or a tensor as (3, H, W) uint8, see `as_image`."""
    pixels = np.require(as_image(image), requirements=["C", "W"])  # copied only if it must be
    return torch.from_numpy(pixels).permute(2, 0, 1)


def batches_of(
    images: ImageLike | list[ImageLike], *, batch_size: int, **values
) -> Iterator[tuple[list[Tensor], list[list | None]]]:
    """Reads one image, or a list of them, in batches.

    Args:
        images: one as `as_image` takes it, or a list of them.
        values: name -> what belongs to the images, such as boxes: for a list of images a list with
            an entry per image. None stays None, a name or a number counts for every image.

    Yields:
        uint8 tensors (3, h, w) of up to `batch_size` images, and the lists of their values.

    Raises:
        ValueError: a batch size below 1, or a list of another length than that of the images.
    """
    if not is_whole(batch_size) or batch_size < 1:
        raise ValueError(f"batch_size must be a whole number of at least 1, got {batch_size!r}")
    if isinstance(images, (list, tuple)):
        columns = [_per_image(name, v, len(images)) for name, v in values.items()]
    else:
        images, columns = [images], [None if v is None else [v] for v in values.values()]
    for start in range(0, len(images), int(batch_size)):
        part = slice(start, start + int(batch_size))
        tensors = [as_tensor(image) for image in images[part]]
        yield tensors, [None if v is None else v[part] for v in columns]


def _per_image(name: str, value, num_images: int) -> Sequence | None:
    """What belongs to each of several images."""
    if value is None:
        return None
    if is_single(value):
        return [value] * num_images
    if len(value) != num_images:
        raise ValueError(
            f"{name} must have an entry for each of the {num_images} images, got {len(value)}"
        )
    return value


def is_single(value: object) -> bool:
    """Whether the value is one name or number, not a list."""
    return isinstance(value, (str, numbers.Number)) or getattr(value, "ndim", None) == 0


def is_whole(value: object) -> bool:
    """Whether the value is an integer of Python or numpy; False for booleans."""
    return isinstance(value, numbers.Integral) and not isinstance(value, bool)


@dataclass(frozen=True)
class EvalLoop:
    """How an evaluation distributes images to batches and processes; results are equal."""

    batch_size: int = 16
    num_workers: int = 0  # processes that load images; 0 = this one
    progress: bool = False  # draw a bar
    world: World = ALONE  # the processes that share the images
    skip_bad: bool = False  # leave out images that cannot be read

    @classmethod
    def from_settings(cls, cfg, world: World = ALONE) -> "EvalLoop":
        """The loop that the settings describe."""
        skip_bad = cfg.bad_samples == "skip"
        return cls(cfg.eval_batch_size, cfg.num_workers, True, world, skip_bad)


def evaluate_all(
    source,
    predict: Callable[[EvalBatch], list],
    score: Callable[[dict], Report],
    loop: EvalLoop = EvalLoop(),
) -> Report:
    """Predicts all images on all processes and scores them on the first one.

    Args:
        predict, loop: see `predict_all`.
        score: called with the predictions.

    Returns:
        the report; that of the other processes is without the rows of the results.
    """
    found = predict_all(source, predict, loop)
    report = replace(score(found), image_ids=list(found)) if loop.world.is_main else None
    if loop.world.size == 1:
        return report
    numbers = loop.world.broadcast(replace(report, results=[]) if report else None)
    return report or numbers


def predict_all(
    source, predict: Callable[[EvalBatch], list], loop: EvalLoop = EvalLoop()
) -> dict[int | str, object]:
    """Predicts all images; the result does not depend on the number of processes.

    Every process takes whole batches, and draws belong to an image.

    Args:
        predict: a batch -> one prediction per image, or a `Future` of one.

    Returns:
        image id -> prediction, in the order of the source, on the first process; the others get
        nothing.
    """
    world = loop.world
    loader = build_eval_loader(
        source,
        batch_size=loop.batch_size,
        num_workers=loop.num_workers,
        world=world,
        skip_bad=loop.skip_bad,
    )
    # This process takes every `world.size`-th batch.
    numbered = zip(itertools.count(world.rank, world.size), loader, strict=False)
    mine: dict[int, list[tuple]] = {}  # number of the batch -> (image id, prediction) of each
    skipped: list[str] = []
    unfinished: deque[int] = deque()  # batches whose predictions may be `Future`s
    # None: no bar without a terminal
    disable = None if loop.progress and world.is_main else True
    with tqdm(total=len(source), desc="evaluate", unit="image", disable=disable) as bar:
        for number, batch in numbered:
            skipped += batch.skipped
            if not len(batch):
                continue
            mine[number] = list(zip(batch.image_ids, predict(batch), strict=True))
            unfinished.append(number)
            if len(unfinished) > BATCHES_AHEAD:
                first = unfinished.popleft()
                mine[first] = _finished(mine[first])
            bar.update(min(len(batch) * world.size, bar.total - bar.n))
    for number in unfinished:
        mine[number] = _finished(mine[number])
    if loop.skip_bad and (reasons := [text for part in world.gather(skipped) for text in part]):
        log(f"notice: {len(reasons)} images are left out of the evaluation: {reasons[0]}")
    # The batches of all processes, in order.
    batches = {number: rows for part in world.collect(mine) for number, rows in part.items()}
    return dict(row for number in sorted(batches) for row in batches[number])


def _finished(rows: list[tuple]) -> list[tuple]:
    """Waits for the predictions of a batch."""
    return [(i, one.result() if isinstance(one, Future) else one) for i, one in rows]
