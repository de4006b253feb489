"""What a training went on without."""

import sys
from collections import Counter

from tqdm import tqdm

from train.state import TaskStream
from utils.world import ALONE, World

SHOWN = 3  # images that are named


def report_skipped(streams: dict[str, TaskStream], epoch: int, world: World = ALONE) -> None:
    """Says in one line per task which images could not be used, and forgets them.

    Args:
        epoch: the one that ends, from 1.
        world: all its processes have to call it; the first one speaks for all.
    """
    for task, stream in streams.items():
        reasons = Counter(line for lines in world.gather(stream.skipped) for line in lines)
        stream.skipped = []
        if not reasons or not world.is_main:
            continue
        shown = "; ".join(list(reasons)[:SHOWN]) + "; …" * (len(reasons) > SHOWN)
        tqdm.write(
            f"epoch {epoch}: {sum(reasons.values())} {task} samples of {len(reasons)} images could "
            f"not be used, others took their place: {shown}",
            sys.stderr,
        )
