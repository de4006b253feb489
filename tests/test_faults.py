"""Losses that are no numbers, and too little memory."""

import json
from dataclasses import replace

import pytest
import torch
from safetensors import safe_open
from torch import nn

from config import CFG
from dataset.batch import Batch
from models.encoder import TimmEncoder
from tests.conftest import TINY
from tests.training import state_of
from train.distributed import recompute_activations, report_no_blocks
from train.engine import train_step
from train.guards import MAX_OVERFLOWS, NonFiniteWatch, Statistics
from train.optim import guarded_step
from utils.cli import snapshot
from utils.devices import memory_errors
from utils.errors import UserError

NAN, INF = float("nan"), float("inf")


def batch():
    zeros = torch.zeros(2, 3, dtype=torch.long)
    images = torch.ones(2, 3, 4, 4, dtype=torch.uint8)
    return Batch(images, torch.tensor([[4, 4], [2, 3]]), zeros, zeros, torch.ones(2, 3), [7, "b"])


def outcome(*values):
    return torch.tensor(values)


def test_a_skipped_step_is_told_and_its_batch_kept(tmp_path):
    watch = NonFiniteWatch(tmp_path, 3)
    assert watch.add(1, outcome(1.0, 2.0), [{"detection": batch()}]) == []
    bad = replace(batch(), supervised=torch.arange(6))
    (line,) = watch.add(2, outcome(NAN, NAN), [{"detection": bad}])
    assert "step 2: the detection loss is nan" in line and "step_0000002_rank_0" in line
    with safe_open(tmp_path / "step_0000002_rank_0.safetensors", "pt") as file:
        images = file.get_tensor("0.detection.images")
        assert torch.equal(images[0], batch().images[0])
        assert images[1, :, :2, :3].all() and images[1].sum() == 18, "nothing around the picture"
        assert file.get_tensor("0.detection.positions").tolist() == list(range(6))
        assert json.loads(file.metadata()["image_ids"]) == {"0.detection": [7, "b"]}


def test_only_steps_in_a_row_stop_the_run(tmp_path):
    watch = NonFiniteWatch(tmp_path, 3)
    micro = [{"detection": batch()}]
    for step, norm in enumerate([INF, INF, 1.0, INF, INF]):
        watch.add(step, outcome(1.0, norm), micro)
    with pytest.raises(UserError, match="gradient is inf, and 3 steps in a row") as error:
        watch.add(5, outcome(1.0, INF), micro)
    assert "\n" not in str(error.value)


def test_a_scaled_gradient_that_overflows_is_no_fault(tmp_path):
    watch = NonFiniteWatch(tmp_path, 1, scaled=True)
    assert watch.add(1, outcome(1.0, INF), [{"detection": batch()}]) == []
    with pytest.raises(UserError, match="loss is nan"):
        watch.add(2, outcome(NAN, INF), [{"detection": batch()}])


def test_a_gradient_that_overflows_at_every_scale_stops_the_run(tmp_path):
    watch, micro = NonFiniteWatch(tmp_path, 1, scaled=True), [{"detection": batch()}]
    for step in range(MAX_OVERFLOWS - 1):
        watch.add(step, outcome(1.0, INF), micro)
    watch.add(0, outcome(1.0, 1.0), micro)  # one good step: the count begins anew
    with pytest.raises(UserError, match="overflows fp16 whatever the scale, and 100 steps"):
        for step in range(MAX_OVERFLOWS):
            watch.add(step, outcome(1.0, INF), micro)


@pytest.mark.parametrize("finite", [True, False])
def test_a_skipped_step_leaves_the_statistics_of_batch_norm(finite):
    norm = nn.BatchNorm2d(3).train()
    statistics = Statistics(norm)
    norm(torch.full((2, 3, 4, 4), 5.0 if finite else INF))
    statistics.keep_if(torch.tensor(finite))
    expected = (0.5, 0.9) if finite else (0.0, 1.0)
    for buffer, value in zip((norm.running_mean, norm.running_var), expected, strict=True):
        torch.testing.assert_close(buffer, torch.full((3,), value))


def test_the_engine_keeps_statistics_of_finite_steps_alone(demo_set, monkeypatch):
    more = ["encoder=resnet18", "encoder_stride=none", "drop_path=0", f"coco_root={demo_set}"]
    state = state_of([*TINY, *more], ["detection"])
    mean = state.model.train().encoder.backbone.bn1.running_mean
    for norm, changes in ((INF, False), (1.0, True)):
        before = mean.clone()
        monkeypatch.setattr(nn.utils, "clip_grad_norm_", lambda *_, norm=norm: torch.tensor(norm))
        train_step(state, [{"detection": state.streams["detection"].next()}], None, 0)
        assert torch.equal(mean, before) != changes


@pytest.mark.parametrize("fused", [False, True])  # fused decides on the device
@pytest.mark.parametrize("norm", [1.0, INF, NAN])
def test_the_optimiser_steps_on_finite_gradients_alone(fused, norm):
    layer = nn.Linear(3, 3)
    optimizer = torch.optim.AdamW(layer.parameters(), lr=0.1, fused=fused)
    scaler = torch.amp.GradScaler("cpu", enabled=False)
    before = layer.weight.detach().clone()
    layer(torch.ones(1, 3)).sum().backward()
    layer.weight.grad.mul_(norm)
    guarded_step(optimizer, scaler, torch.tensor(norm))
    assert torch.equal(layer.weight, before) == (norm != 1.0)


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate"),
        RuntimeError("[enforce fail at alloc_cpu.cpp:121] DefaultCPUAllocator: can't allocate"),
        MemoryError(),
    ],
)
def test_too_little_memory_names_remedies(error):
    device = torch.device("cpu")
    remedies = pytest.raises(UserError, match="accumulate_steps.*recompute_activations")
    with remedies, memory_errors(device):
        raise error
    with pytest.raises(RuntimeError, match="other"), memory_errors(device):
        raise RuntimeError("other")


def test_a_worker_that_was_killed_is_one_line():
    error = RuntimeError("DataLoader worker (pid 7) is killed by signal: Bus error. It is")
    told = pytest.raises(UserError, match="worker .*shm-size.*num_workers")
    with told, memory_errors(torch.device("cpu")):
        raise error


def test_recomputed_activations_change_no_gradient():
    torch.manual_seed(0)
    model = nn.Sequential(*(nn.Sequential(nn.Linear(4, 4), nn.GELU()) for _ in range(3)))
    images, gradients, kept = torch.randn(2, 4), [], []

    def count(tensor):
        kept[-1] += 1
        return tensor

    for recompute in (False, True):
        if recompute:
            recompute_activations(model)
        model.zero_grad()
        kept.append(0)
        with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
            loss = model(images).square().sum()
        loss.backward()
        gradients.append([p.grad.clone() for p in model.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))
    assert kept[1] < kept[0]


@pytest.mark.parametrize(
    ("name", "recompute", "sharded"),
    [("test_vit", "", ""), ("resnet18", "x", "x"), ("test_efficientnet", "x", "")],
)
def test_settings_that_save_no_memory_in_the_encoder_say_so(name, recompute, sharded, capsys):
    encoder = TimmEncoder(name, (64, 64))
    for setting, expected in (("recompute_activations", recompute), ("fsdp", sharded)):
        report_no_blocks(encoder, snapshot(CFG, [f"encoder={name}", f"{setting}=true"]))
        notice = capsys.readouterr().err
        assert bool(notice) == bool(expected)
        assert not notice or f"{setting} saves memory in the decoder alone: {name}" in notice


def test_modules_with_batch_norm_are_not_recomputed():
    module = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4))
    recompute_activations([module])
    module(torch.randn(3, 4)).square().sum().backward()
    assert module[1].num_batches_tracked == 1
