"""What a training went on without."""

import sys
from collections import Counter

from tqdm import tqdm

from train.state import TaskStream

SHOWN = 3  # images that are named


def report_skipped(streams: dict[str, TaskStream], epoch: int) -> None:
    """Says in one line per task which images could not be used, and forgets them.

    Args:
        epoch: the one that ends, from 1.
    """
    for task, stream in streams.items():
        reasons = Counter(stream.skipped)
        if not reasons:
            continue
        shown = "; ".join(list(reasons)[:SHOWN]) + "; …" * (len(reasons) > SHOWN)
        tqdm.write(
            f"epoch {epoch}: {sum(reasons.values())} {task} samples of {len(reasons)} images could "
            f"not be used, others took their place: {shown}",
            sys.stderr,
        )
        stream.skipped.clear()
