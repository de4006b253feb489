"""In which order samples come, on one process or shared out among several."""

from collections.abc import Iterator

import numpy as np
from torch.utils.data import Sampler

REMAINDERS = ("keep", "drop", "pad")


class EpochSampler(Sampler):
    """(epoch, index) pairs of one rank: over all ranks every sample at most once per epoch, and
    exactly once where `remainder` is "keep".

    Rank r takes every world_size-th sample from r, so batch k of all ranks together holds the same
    samples as batch k of one process with the world_size-fold batch.
    """

    def __init__(
        self,
        length: int,
        seed: int,
        *,
        rank: int = 0,
        world_size: int = 1,
        shuffle: bool = True,
        remainder: str = "keep",
        group: int = 1,
    ):
        """
        Args:
            length: number of samples over all ranks.
            remainder: what happens if length is no multiple of world_size: "keep" gives some
                ranks one sample more, "drop" leaves the last samples of the epoch's order out,
                "pad" repeats the first ones.
            group: samples of a rank that belong together (those of an optimiser step); "drop"
                leaves out what fills no group on every rank.
        """
        if remainder not in REMAINDERS:
            raise ValueError(f"remainder must be one of {list(REMAINDERS)}, got {remainder!r}")
        if not 0 <= rank < world_size:
            raise ValueError(f"rank must be in 0..{world_size - 1}, got {rank}")
        self.length, self.seed, self.shuffle = length, seed, shuffle
        self.rank, self.world_size, self.remainder = rank, world_size, remainder
        self.whole = world_size * group
        self.set_epoch(0)

    def set_epoch(self, epoch: int, start: int = 0) -> None:
        """Call before each epoch; `start` samples of this rank are skipped (resume)."""
        self.epoch, self.start = epoch, start

    def __len__(self) -> int:
        return len(self._indices()) - self.start

    def __iter__(self) -> Iterator[tuple[int, int]]:
        return iter([(self.epoch, index) for index in self._indices()[self.start :].tolist()])

    def _indices(self) -> np.ndarray:
        order = np.arange(self.length)
        if self.shuffle:
            order = np.random.default_rng([self.seed, self.epoch]).permutation(self.length)
        if self.remainder == "drop":
            order = order[: self.length // self.whole * self.whole]
        elif self.remainder == "pad":
            order = np.resize(order, -(-self.length // self.world_size) * self.world_size)
        return order[self.rank :: self.world_size]
