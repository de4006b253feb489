"""One batch of images after another: what the Python API and the evaluations of all tasks share.

A whole source of images is predicted on one process or shared out among several.
"""

from collections.abc import Callable

from torch import Tensor
from tqdm import tqdm

from dataset.batch import EvalBatch
from dataset.loader import build_eval_loader
from infer.encode import as_tensor
from utils.devices import ALONE, World


def decode_images(
    images,
    decode: Callable[..., list],
    *given,
    batch_size: int,
):
    """Decodes one image, or a list of them in batches.

    Args:
        images: a path, a PIL image or an RGB uint8 array (H, W, 3), or a list of them.
        decode: called as decode(tensors, *given) with B uint8 (3, h, w) and what was given of these
            images -> B results.
        given: what comes with the images: of one image, or a list with an entry per image; None
            = nothing; a name or number is taken for all.

    Returns:
        a result, or a list of them for a list.
    """
    if not isinstance(images, list):
        given = [None if value is None else [value] for value in given]
        return decode_images([images], decode, *given, batch_size=batch_size)[0]
    given = [[v] * len(images) if isinstance(v, (int, str)) else v for v in given]
    parts = [slice(i, i + batch_size) for i in range(0, len(images), batch_size)]

    def decode_part(part: slice) -> list:
        tensors: list[Tensor] = [as_tensor(image) for image in images[part]]
        of_part = [None if values is None else values[part] for values in given]
        return decode(tensors, *of_part)

    return [result for part in parts for result in decode_part(part)]


def predict_all(
    source,
    predict: Callable[[EvalBatch], list],
    *,
    batch_size: int = 16,
    num_workers: int = 0,
    progress: bool = False,
    world: World = ALONE,
) -> dict:
    """Predictions of all images: the same whatever the number of processes.

    Every process takes whole batches, and draws belong to an image.

    Args:
        predict: a batch -> one prediction per image.
        num_workers: processes that load images; 0 = this one.
        progress: whether to draw a bar.
        world: the processes to share the images out among; all of them get the whole result.

    Returns:
        image id -> prediction, in the order of the source, on every process.
    """
    loader = build_eval_loader(
        source,
        batch_size=batch_size,
        num_workers=num_workers,
        rank=world.rank,
        world_size=world.size,
    )
    numbered = zip(range(world.rank, len(source), world.size), loader, strict=False)
    mine: dict[int, list[tuple]] = {}  # number of the batch -> (image id, prediction) of each
    disable = None if progress and world.is_main else True  # None: no bar without a terminal
    with tqdm(total=len(source), desc="evaluate", unit="image", disable=disable) as bar:
        for number, batch in numbered:
            mine[number] = list(zip(batch.image_ids, predict(batch), strict=True))
            bar.update(min(len(batch) * world.size, bar.total - bar.n))
    batches = {number: rows for part in world.gather(mine) for number, rows in part.items()}
    return dict(row for number in sorted(batches) for row in batches[number])
