"""Predictions for a whole source of images, on one process or shared out among several."""

from collections.abc import Callable

from tqdm import tqdm

from dataset.batch import EvalBatch
from dataset.loader import build_eval_loader
from utils.world import ALONE, World


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
    disable = not (progress and world.is_main)
    with tqdm(total=len(source), desc="evaluate", unit="image", disable=disable) as bar:
        for number, batch in numbered:
            mine[number] = list(zip(batch.image_ids, predict(batch), strict=True))
            bar.update(min(len(batch) * world.size, bar.total - bar.n))
    batches = {number: rows for part in world.gather(mine) for number, rows in part.items()}
    return dict(row for number in sorted(batches) for row in batches[number])
