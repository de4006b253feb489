"""Training and evaluation datasets, the sampler, and the data loaders."""

import gc
import multiprocessing
import os
import signal
import threading
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from multiprocessing.queues import Queue

import cv2
import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler
from torch.utils.data.dataloader import _MultiProcessingDataLoaderIter

from dataset.batch import Batch, TrainItem, collate, collate_originals
from dataset.sample import Sample
from tokenizer.base import TokenSequence
from utils.devices import ALONE, World, num_cores, worker_error
from utils.errors import UserError, one_line

REMAINDERS = ("keep", "drop")


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
        remainder: str = "keep",
        group: int = 1,
    ):
        """
        Args:
            length: number of samples over all ranks.
            remainder: what happens if length is no multiple of world_size: "keep" gives some
                ranks one sample more, "drop" leaves the last samples of the epoch's order out.
            group: samples of a rank that belong together (those of an optimiser step); "drop"
                leaves out what fills no group on every rank.
        """
        if remainder not in REMAINDERS:
            raise ValueError(f"remainder must be one of {list(REMAINDERS)}, got {remainder!r}")
        if not 0 <= rank < world_size:
            raise ValueError(f"rank must be in 0..{world_size - 1}, got {rank}")
        self.length, self.seed = length, seed
        self.rank, self.world_size, self.remainder = rank, world_size, remainder
        self.group_size = world_size * group  # samples of all ranks that belong together
        self.set_epoch(0)

    def set_epoch(self, epoch: int, start: int = 0) -> None:
        """Call before each epoch; `start` samples of this rank are skipped (resume)."""
        self.epoch, self.start = epoch, start

    def __len__(self) -> int:
        return len(self._indices()) - self.start

    def __iter__(self) -> Iterator[tuple[int, int]]:
        return iter([(self.epoch, index) for index in self._indices()[self.start :].tolist()])

    def _indices(self) -> np.ndarray:
        order = np.random.default_rng([self.seed, self.epoch]).permutation(self.length)
        if self.remainder == "drop":
            order = order[: self.length // self.group_size * self.group_size]
        return order[self.rank :: self.world_size]


class TrainSet(Dataset):
    """Source, transforms and task tokenizer; item (epoch, index) is always the same."""

    def __init__(
        self,
        source,
        transforms: Sequence[Callable[[Sample, np.random.Generator], Sample]],
        make_sequence: Callable[[Sample, np.random.Generator], TokenSequence],
        seed: int,
        at_least: tuple[int, int] | None = None,
    ):
        """
        Args:
            source: sequence of `Sample`s in original pixels.
            transforms: applied in order; one of them must set `geometry`.
            make_sequence: writes the tokens of a sample, see `dataset.tasks.Task`.
            seed: with epoch and index the only source of randomness.
            at_least: (H, W) of the largest picture that the transforms make; larger JPEG files may
                be decoded smaller (`read_image`). None = they are decoded whole.
        """
        self.source, self.transforms, self.make_sequence = source, transforms, make_sequence
        self.seed, self.at_least = seed, at_least

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, key: tuple[int, int]) -> TrainItem:
        sample, rng = self.sample(*key)
        tokens = self.make_sequence(sample, rng)
        size = sample.geometry.size
        return TrainItem(sample.image, size, tokens, sample.image_id, sample.skipped)

    def sample(self, epoch: int, index: int) -> tuple[Sample, np.random.Generator]:
        """The transformed sample, and the generator that draws for `make_sequence` next.

        Its image is (h, w, 3) with (h, w) = `geometry.unpadded`.
        """
        rng = np.random.default_rng([self.seed, epoch, index])
        sample = self.source.read(index, self.at_least)
        for transform in self.transforms:
            sample = transform(sample, rng)
        if sample.geometry is None:
            raise ValueError("transforms must contain one that sets sample.geometry, as Letterbox")
        return sample, rng


class EvalSet(Dataset):
    """The uint8 originals of a source, without its annotation."""

    def __init__(self, source):
        self.source = source

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> tuple[Tensor, int | str]:
        sample = self.source[index]
        image = np.ascontiguousarray(sample.image.transpose(2, 0, 1))
        return torch.from_numpy(image), sample.image_id


def patch_torch() -> None:
    """Sets an attribute that torch needs to end the workers of a loader that could not start all.

    `_MultiProcessingDataLoaderIter._shutdown_workers` reads `_workers_status`. Its `__init__` sets
    that only after all workers have started. Without it torch prints a traceback and leaves the
    started ones running.
    """
    _MultiProcessingDataLoaderIter._workers_status = defaultdict(lambda: True)


class Loader(DataLoader):
    """A DataLoader that passes on a `UserError` of a worker process as one line.

    A worker that cannot start, ends or cannot deliver is one line too.
    """

    def __init__(
        self, dataset: Dataset, collate_fn: Callable, *, skip_bad: bool = False, **arguments
    ):
        """
        Args:
            skip_bad: leave out items that cannot be read; `collate_fn` then is called with the
                others, perhaps none, and with the reasons.
            arguments: of `DataLoader`.
        """
        patch_torch()
        collate_fn = _GuardedCollate(collate_fn, skip_bad)
        super().__init__(_Guarded(dataset), collate_fn=collate_fn, **arguments)

    def __iter__(self):
        batches = None
        try:
            with torch.device("cpu"):  # it draws a seed on the default device of the caller
                batches = super().__iter__()
            for batch in batches:
                if isinstance(batch, UserError):
                    try:
                        raise batch
                    finally:
                        del batch  # error -> traceback -> this frame -> error: workers would linger
                yield batch
        except (RuntimeError, OSError, EOFError) as error:
            if self.num_workers and (reason := worker_error(error)):
                if batches is not None:  # torch would report the dead one again at every signal
                    batches._shutdown_workers()
                raise reason from error
            raise


@dataclass
class _Guarded(Dataset):
    """Returns errors as values: torch would bury the line in a worker's traceback."""

    dataset: Dataset

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, key):
        try:
            return self.dataset[key]
        except UserError as error:
            return error


@dataclass
class _GuardedCollate:
    collate_fn: Callable
    skip_bad: bool

    def __call__(self, rows: list):
        errors = [row for row in rows if isinstance(row, UserError)]
        try:
            if self.skip_bad:
                found = [row for row in rows if not isinstance(row, UserError)]
                return self.collate_fn(found, tuple(map(str, errors)))
            return errors[0] if errors else self.collate_fn(rows)
        except UserError as error:
            return error


def build_train_loader(
    dataset: TrainSet,
    *,
    batch_size: int,
    num_workers: int,
    world: World = ALONE,
    drop_last: bool = False,
    accumulate_steps: int = 1,
    num_lengths: int = 0,
    prefetch: int = 2,
) -> Loader:
    """Loader whose `sampler` is an `EpochSampler`: call `loader.sampler.set_epoch` every epoch.

    Args:
        batch_size: of one process.
        world: the processes that share the images.
        drop_last: every rank the same number of full batches; otherwise nothing is left out.
        accumulate_steps: with `drop_last` the number of batches is a multiple of it, so that an
            epoch holds the samples of one with the accumulate_steps-fold batch.
        num_lengths: of sequences, see `trim`.
        prefetch: batches that each worker keeps ready.
    """
    sampler = EpochSampler(
        len(dataset),
        dataset.seed,
        rank=world.rank,
        world_size=world.size,
        remainder="drop" if drop_last else "keep",
        group=batch_size * accumulate_steps,
    )
    return Loader(
        dataset,
        partial(collate, num_lengths=num_lengths),
        batch_size=batch_size,
        sampler=sampler,
        drop_last=drop_last,
        **_worker_arguments(num_workers, prefetch),
    )


def build_eval_loader(
    source,
    *,
    batch_size: int,
    num_workers: int,
    world: World = ALONE,
    skip_bad: bool = False,
) -> Loader:
    """Originals in the order of the source; the processes take batches in turns.

    Batches hold the same images whatever the number of processes.

    Args:
        skip_bad: leave out images that cannot be read; `EvalBatch.skipped` says why.
    """
    batches = _in_turns(range(len(source)), batch_size, world)
    return Loader(
        EvalSet(source),
        collate_originals,
        skip_bad=skip_bad,
        batch_sampler=batches,
        **_worker_arguments(num_workers),
    )


def build_sequence_loader(
    dataset: TrainSet,
    numbers: Sequence[int],
    *,
    batch_size: int,
    num_workers: int,
    world: World = ALONE,
    skip_bad: bool = False,
) -> Loader:
    """Batches of training sequences of these samples, drawn as in the first epoch.

    Args:
        skip_bad: leave out samples that cannot be read; a batch of nothing else is None.
    """
    batches = _in_turns([(0, number) for number in numbers], batch_size, world)
    return Loader(
        dataset,
        _collate_some,
        skip_bad=skip_bad,
        batch_sampler=batches,
        **_worker_arguments(num_workers),
    )


def _collate_some(items: list[TrainItem], _skipped: Sequence[str] = ()) -> Batch | None:
    return collate(items) if items else None


def _in_turns(keys: Sequence, batch_size: int, world: World) -> list[Sequence]:
    """The batches of this process."""
    batches = [keys[i : i + batch_size] for i in range(0, len(keys), batch_size)]
    return batches[world.rank :: world.size]


def _worker_arguments(num_workers: int, prefetch: int = 2) -> dict:
    num_workers = min(num_workers, num_cores())  # what is loaded does not depend on their number
    arguments = {
        "num_workers": num_workers,
        "pin_memory": torch.cuda.is_initialized(),  # not for a model on the CPU beside a GPU
        # the loader draws a seed for its workers: not from the global generator, which resumes
        "generator": torch.Generator().manual_seed(0),
    }
    if num_workers:
        arguments |= {
            "persistent_workers": True,
            "prefetch_factor": prefetch,
            "worker_init_fn": init_worker,
        }
    return arguments


def init_worker(_worker_id: int) -> None:
    """One thread per worker: OpenCV and torch would each take all cores in every one.

    What the training process had made is frozen: a collection that looked at it would copy its
    pages into every worker.

    A session of its own keeps Ctrl-C and a signal to the process group away from the worker, so
    that the training process alone decides when to save and stop. Schedulers and service managers
    send SIGTERM to every process: a worker obeys that of its training process alone.
    """
    if hasattr(os, "setsid"):
        os.setsid()
    signal.signal(signal.SIGTERM, signal.SIG_DFL)  # not the handler of the training: it must end
    training = multiprocessing.parent_process()
    if training and _is_single_thread() and hasattr(signal, "sigwaitinfo"):  # it names the sender
        signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])
        threading.Thread(target=_obey_the_training, args=[training.pid], daemon=True).start()
    gc.freeze()
    cv2.setNumThreads(0)
    torch.set_num_threads(1)
    # the thread of `multiprocessing.queues.Queue._feed` calls it for what it cannot send
    Queue._on_queue_feeder_error = _send_error


def _is_single_thread() -> bool:
    """Whether no thread of a library was there before, which could get a signal in our place."""
    try:
        return len(os.listdir("/proc/self/task")) == 1
    except OSError:  # not Linux
        return False


def _obey_the_training(pid: int) -> None:
    """Ends a worker when its training process sends SIGTERM.

    Without that process the worker ends by itself: torch looks for it every five seconds.
    """
    while signal.sigwaitinfo([signal.SIGTERM]).si_pid != pid:
        pass
    os._exit(0)  # as torch's own handler ends it


def _send_error(queue: Queue, error: BaseException, message: object) -> None:
    """Sends why a batch could not be sent, in its place.

    A batch leaves the worker in a thread of the queue. There it needs shared memory, a file
    descriptor and a socket in the folder for temporary files. Python would print the error and drop
    the batch, for which the training would wait for ever.

    Args:
        message: (number, batch), as the worker put it.
    """
    if not isinstance(message, tuple):  # the pipe itself is broken
        os._exit(1)
    reason = worker_error(error) or UserError(f"a worker cannot send its batch: {one_line(error)}")
    queue.put((message[0], reason))
