"""Other images in the place of those that cannot be read."""

import numpy as np

from dataset.sample import Sample
from utils.errors import UserError

MAX_TRIES = 20  # images in a row; then something else is wrong


class ReplaceUnreadable:
    """A source that never fails on one image: a sample that cannot be read becomes another.

    Which one depends on the index alone, so batches keep their size and a run that resumes sees
    the same. The sample says in `skipped` why; everything else is that of the source.
    """

    def __init__(self, source):
        self.source = source

    def __len__(self) -> int:
        return len(self.source)

    def __getattr__(self, name: str):
        if name == "source":  # not there yet, while a worker process unpickles this
            raise AttributeError(name)
        return getattr(self.source, name)

    def __getitem__(self, index: int) -> Sample:
        skipped: list[str] = []
        draws = np.random.default_rng([len(self), index])
        for _ in range(MAX_TRIES):
            try:
                sample = self.source[index]
                _ = sample.image  # decoded now: a damaged one may show it only then
            except UserError as error:
                skipped.append(str(error))
                index = int(draws.integers(len(self)))
                continue
            return sample.changed(skipped=tuple(skipped)) if skipped else sample
        raise UserError(
            f"{MAX_TRIES} images in a row cannot be used, the last one: {skipped[-1]}; look at "
            "them with dataset/check_dataset.py"
        )
