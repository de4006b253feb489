"""Hours computed from FLOPs: the count without data is that of a real step."""

import numpy as np
import pytest
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import training_hours
from benchmarks.training_hours import NUM_OBJECTS, Job, build_batches, count_all_steps, count_job
from config import CFG, PRESETS
from tests.conftest import TINY
from tests.training import state_of
from tokenizer.detection import DetectionTokenizer
from tokenizer.vocabulary import Vocabulary
from train.loss import batch_loss
from utils.cli import snapshot
from utils.errors import UserError


@pytest.mark.parametrize(
    ("task", "more"), [("keypoint", []), ("detection", ["noise_objects=false"])]
)
def test_the_count_is_that_of_a_real_batch(demo_set, task, more):
    """From shapes alone, and with values on a CPU, from the pictures to the gradient."""
    overrides = [*TINY, f"coco_root={demo_set}", *more]
    state = state_of(overrides, [task])
    batch = state.streams[task].next()
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        batch_loss(state.model.train(), batch).backward()
    job = count_job(snapshot(CFG, overrides), "tiny", [task], 100)
    assert job.flops == pytest.approx(counter.get_total_flops(), rel=0.01)
    assert job.images == len(batch.image_ids)


def test_of_noise_only_the_class_is_learned():
    """As many positions carry weight as in a sequence of the mean number of objects."""
    cfg, vocab, rng = snapshot(CFG, ["batch_size=2"]), Vocabulary(), np.random.default_rng(0)
    boxes = np.tile(np.float32([[8, 8, 90, 90]]), (NUM_OBJECTS, 1))
    labels = np.ones(NUM_OBJECTS, np.int64)
    sequence = DetectionTokenizer(vocab).sequence(boxes, labels, (384, 384), rng)
    batch = build_batches(cfg, ["detection"], vocab)["detection"]
    assert batch.input_tokens.shape == (2, *sequence.input.shape)
    assert len(batch.supervised) == 2 * np.count_nonzero(sequence.weight)


def test_steps_are_those_of_the_recipes():
    """As the official code counts: 92,412 of multi-task; and by whole epochs."""
    steps = {name: count_all_steps(PRESETS[name](), 118_287) for name in training_hours.JOBS}
    assert steps == {"det_finetune": 147_859, "from_scratch": 277_236, "multi_task": 92_412}
    assert count_all_steps(snapshot(CFG, ["batch_size=8", "epochs=3"]), 100) == 36


def test_hours_are_work_over_rate(capsys):
    job = Job("tiny", ["detection"], images=4, steps=3600, flops=10**12)
    assert job.hours(1e12, 1, 1.0) == 1 and job.hours(1e12, 8, 0.5) == 1 / 4
    training_hours.main(["--preset", "demo", "--num-images", "800", "--set", "epochs=1"])
    head, line, row, *_ = capsys.readouterr().out.splitlines()
    assert head.count("|") == line.count("|") == row.count("|")
    assert row.startswith("| `demo` | detection | 50 | 16 | ")
    with pytest.raises(UserError, match="--utilisation must be above 0 and at most 1"):
        training_hours.main(["--utilisation", "0"])
