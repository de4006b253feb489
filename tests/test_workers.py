"""Loader processes: however they are started, and whatever keeps them from delivering a batch."""

import gc
import multiprocessing
import os
import pickle
import resource
import signal
import subprocess
import sys
import threading
import time
from dataclasses import fields
from multiprocessing.reduction import ForkingPickler
from pathlib import Path

import numpy as np
import pytest
import torch

from config import CFG
from dataset import loader as loaders
from dataset.batch import EvalBatch, collate, collate_originals
from dataset.loader import Loader, build_eval_loader, build_train_loader
from dataset.tasks import TASKS
from infer.batches import EvalLoop, predict_all
from tests.test_loader import Pictures, assert_same
from train.build import build_source_of, build_streams
from train.settings import build_tokenizers, build_vocabulary
from utils.cli import snapshot
from utils.errors import UserError


def train_sets(settings: list[str]) -> dict:
    """The training set of every task."""
    cfg = snapshot(CFG, [*settings, "keypoint_mask_inputs=true", "color_jitter=0.5"])
    sources = {task: build_source_of(cfg, task, train=True) for task in TASKS}
    tokenizers = build_tokenizers(cfg, list(TASKS), build_vocabulary(cfg, list(TASKS)), sources)
    streams = build_streams(cfg, sources, tokenizers)
    return {task: stream.loader.dataset.dataset for task, stream in streams.items()}


def test_what_a_worker_needs_can_be_pickled(multi_settings):
    """A worker that is not forked gets its data set that way; the copy gives the same items."""
    for task, data in train_sets([*multi_settings, "seg_crop=true"]).items():
        copy = pickle.loads(pickle.dumps(data))
        for key in ((0, 0), (1, 2)):
            one, other = data[key], copy[key]
            assert np.array_equal(one.image, other.image), task
            for name in ("input", "target", "weight"):
                assert np.array_equal(getattr(one.tokens, name), getattr(other.tokens, name)), task


@pytest.mark.slow
@pytest.mark.parametrize("method", ["spawn", "forkserver"])
def test_workers_may_be_started_in_every_way(multi_settings, method):
    for data in train_sets(multi_settings).values():
        keys = [(0, 0), (0, 1)]
        options = {"batch_sampler": [keys], "num_workers": 1, "multiprocessing_context": method}
        (batch,) = Loader(data, collate, worker_init_fn=loaders.init_worker, **options)
        assert_same(batch, collate([data[key] for key in keys]))


# ---- what a batch costs ------------------------------------------------------------------------


def test_the_originals_of_a_batch_are_one_tensor():
    """Every tensor that a worker sends is an open file."""
    rows = [(torch.full((3, 2 + i, 4), i, dtype=torch.uint8), i) for i in range(3)]
    batch = collate_originals(rows)
    assert sum(isinstance(getattr(batch, f.name), torch.Tensor) for f in fields(EvalBatch)) == 1
    assert len(batch) == 3 and batch.image_ids == [0, 1, 2]
    assert all(torch.equal(a, b) for a, (b, _) in zip(batch.images, rows, strict=True))


def open_files() -> int:
    return len(os.listdir("/proc/self/fd"))


@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="needs Linux")
def test_open_files_do_not_grow_with_the_images_of_a_batch(monkeypatch):
    monkeypatch.setattr(loaders, "num_cores", lambda: 32)
    most = {}
    for size in (1, 16):
        counts = []
        loader = build_eval_loader(Pictures(12 * size), batch_size=size, num_workers=3)
        for batch in loader:
            counts.append(open_files())
            assert len(batch.images) == size
        most[size] = max(counts)
    assert most[16] <= most[1] + 4, most


# ---- what cannot be delivered ------------------------------------------------------------------


class Killed(Pictures):
    """The worker that reads an image is killed, as the system does it when memory is short."""

    def read(self, index, at_least=None):
        os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(60)  # until the system has done it


def fail_to_send(*_):
    raise OSError("AF_UNIX path too long")


@pytest.mark.parametrize("train", [True, False])
def test_a_worker_that_is_killed_is_one_line(train):
    if train:
        data = loaders.TrainSet(Killed(8), [], lambda *_: None, 0)
        loader = build_train_loader(data, batch_size=2, num_workers=1)
    else:
        loader = build_eval_loader(Killed(8), batch_size=2, num_workers=1)
    with pytest.raises(UserError, match="worker .*killed|exited.*num_workers") as error:
        list(loader)
    assert "\n" not in str(error.value)
    torch._C._error_if_any_worker_fails()  # nothing is left that a later signal would report


def work(ready) -> None:
    loaders.init_worker(0)
    ready.set()
    time.sleep(60)


@pytest.mark.skipif(not hasattr(signal, "sigwaitinfo"), reason="needs sigwaitinfo")
def test_a_worker_obeys_the_sigterm_of_its_training_alone():
    context = multiprocessing.get_context("fork")
    ready = context.Event()
    worker = context.Process(target=work, args=(ready,), daemon=True)
    worker.start()
    assert ready.wait(20)
    command = f"import os; os.kill({worker.pid}, {signal.SIGTERM:d})"
    subprocess.run([sys.executable, "-c", command], check=True)
    worker.join(timeout=1)
    assert worker.is_alive()
    worker.terminate()
    worker.join(timeout=20)
    assert worker.exitcode == 0


def test_a_batch_that_cannot_be_sent_is_one_line(monkeypatch):
    """As with little shared memory, few open files or a long TMPDIR: it fails in a thread."""
    monkeypatch.setitem(ForkingPickler._extra_reducers, torch.Tensor, fail_to_send)
    began = time.monotonic()
    with pytest.raises(UserError, match="AF_UNIX path too long.*set TMPDIR"):
        predict_all(Pictures(4), lambda batch: batch.image_ids, EvalLoop(2, 1))
    assert time.monotonic() - began < 30


def test_a_fault_of_a_data_set_stays_a_fault():
    """Only what concerns the processes is translated."""

    class Broken(Pictures):
        def read(self, index, at_least=None):
            raise OSError("a defect")

    with pytest.raises(OSError, match="a defect"):
        list(build_eval_loader(Broken(2), batch_size=1, num_workers=1))
    with pytest.raises(OSError, match="a defect"):
        list(build_eval_loader(Broken(2), batch_size=1, num_workers=0))


def test_workers_that_cannot_start_are_one_line(monkeypatch):
    monkeypatch.setattr(loaders, "num_cores", lambda: 64)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (open_files() + 30, hard))
    try:
        with pytest.raises(UserError, match="Too many open files.*ulimit -n"):
            list(build_eval_loader(Pictures(40), batch_size=1, num_workers=40))
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        # threads of the queues close files late, which then may be those of the next test
        gc.collect()
        for thread in threading.enumerate():
            if thread.name == "QueueFeederThread":
                thread.join(timeout=20)
