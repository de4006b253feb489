"""Optimisers by name: our groups, exact checkpoints, no step where the gradient is not finite."""

import io

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from config import CFG
from tests.conftest import TINY
from tests.training import StopAt, losses, resume, state_of
from train import engine
from train.distributed import load_whole_optimizer, whole
from train.engine import train
from train.optim import EPS, build_optimizer, guarded_step, optimizer_names
from utils.cli import snapshot
from utils.errors import UserError

NAMES = optimizer_names()


def rare(names, common):
    """The optimisers as parameters; those that are not common are tested by `make test-slow`."""
    return [n if n in common else pytest.param(n, marks=pytest.mark.slow) for n in names]


class Small(nn.Module):
    """A kernel, a bias, a norm and an embedding."""

    def __init__(self):
        super().__init__()
        draws = torch.Generator().manual_seed(0)
        self.kernel = nn.Parameter(torch.randn(6, 4, generator=draws))
        self.conv = nn.Parameter(torch.randn(3, 2, 3, 3, generator=draws))
        self.bias = nn.Parameter(torch.randn(6, generator=draws))
        self.token_embedding = nn.Parameter(torch.randn(9, 4, generator=draws))


def optimizer_of(model, name, **changes):
    options = {"lr": 1e-2, "weight_decay": 0.05, "betas": (0.9, 0.95), "decay_all": False}
    return build_optimizer(model, name, **options | {"factors": {"conv": 0.5}} | changes)


COMMON = ("adamw", "lamb", "sgd", "adafactor", "lion", "muon")  # the others take minutes
TRAINED = ("adafactor", "muon")  # states of other shapes than AdamW, which test_train.py resumes
STEPPED = [name for name in NAMES if not name.startswith("kron")]  # whose first step takes a minute


def step(model, optimizer, number):
    draws = torch.Generator().manual_seed(number)
    for parameter in model.parameters():
        parameter.grad = torch.randn(parameter.shape, generator=draws)
    optimizer.step()


def values(model):
    return {name: p.detach().clone() for name, p in model.named_parameters()}


@pytest.mark.parametrize("name", rare(NAMES, COMMON))
def test_a_run_that_was_saved_goes_on_as_if_it_had_not_been(name):
    """Weights and state of each optimiser pass through a file, as a checkpoint holds them."""
    torch.manual_seed(0)
    model = Small()
    optimizer = optimizer_of(model, name)
    for number in range(3):
        step(model, optimizer, number)
    file = io.BytesIO()
    torch.save([values(model), whole(optimizer.state_dict(), to_host=True)], file)
    file.seek(0)
    weights, state = torch.load(file, weights_only=True)
    again = Small()
    again.load_state_dict(weights)
    other = optimizer_of(again, name)
    load_whole_optimizer(other, state)
    draws = torch.get_rng_state()  # some draw; a checkpoint holds the generators too
    for one, its in ((model, optimizer), (again, other)):
        torch.set_rng_state(draws)
        for number in range(3, 7):
            step(one, its, number)
    for key, value in values(model).items():
        assert value.isfinite().all() and not torch.equal(value, weights[key]), key
        assert torch.equal(value, values(again)[key]), key


@pytest.mark.parametrize("name", NAMES)
def test_every_optimiser_keeps_our_groups(name):
    model = Small()
    optimizer = optimizer_of(model, name, decay_exclude=("embedding",))
    found = {}
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            (path,) = [path for path, p in model.named_parameters() if p is parameter]
            found[path] = group["lr"], group["weight_decay"]
    assert found == {
        "kernel": (1e-2, 0.05),
        "conv": (5e-3, 0.05),
        "bias": (1e-2, 0),
        "token_embedding": (1e-2, 0),
    }


def test_adamw_is_that_of_torch_with_the_official_epsilon():
    """Bit for bit what it was before there were others."""
    models = Small(), Small()
    ours = build_optimizer(models[0], lr=1e-2, weight_decay=0.05, betas=(0.9, 0.95))
    torchs = torch.optim.AdamW(
        models[1].parameters(), lr=1e-2, weight_decay=0.05, betas=(0.9, 0.95), fused=True
    )
    for number in range(5):
        torchs.param_groups[0]["eps"] = EPS / (1 - 0.95 ** (number + 1)) ** 0.5
        step(models[0], ours, number), step(models[1], torchs, number)
    assert all(map(torch.equal, values(models[0]).values(), values(models[1]).values()))


def test_an_optimiser_of_matrices_moves_embeddings_as_adam_does():
    model = Small()
    optimizer = optimizer_of(model, "muon", factors=None)
    step(model, optimizer, 0)
    of_matrices = {n for n, p in model.named_parameters() if optimizer.state[p]["use_muon"]}
    assert "kernel" in of_matrices and "token_embedding" not in of_matrices


@pytest.mark.parametrize("name", rare(NAMES, STEPPED))
@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_there_is_no_step_where_the_gradient_is_not_finite(name, bad):
    model = Small()
    optimizer = optimizer_of(model, name)
    step(model, optimizer, 0)
    before, scaler = values(model), torch.amp.GradScaler("cpu", enabled=False)
    state = io.BytesIO()
    torch.save(optimizer.state_dict()["state"], state)
    model.kernel.grad[0, 0] = bad
    guarded_step(optimizer, scaler, torch.tensor(bad))
    assert all(torch.equal(value, before[key]) for key, value in values(model).items())
    after = io.BytesIO()
    torch.save(optimizer.state_dict()["state"], after)
    assert name == "adamw" or after.getvalue() == state.getvalue()


@pytest.fixture
def settings(demo_set, tmp_path):
    return [*TINY, f"coco_root={demo_set}", f"runs_dir={tmp_path / 'runs'}", "eval_limit=1"]


@pytest.mark.parametrize("name", rare(COMMON, TRAINED))
def test_training_learns_and_resumes_bit_for_bit(settings, name, monkeypatch):
    common = [*settings, f"optimizer={name}", "lr=3e-3", "freeze_encoder_steps=2", "max_steps=6"]
    straight = train(snapshot(CFG, common), ["detection"])
    with monkeypatch.context() as patched:
        patched.setattr(engine, "StopSignal", lambda *_: StopAt(3))
        parted = train(snapshot(CFG, common), ["detection"])
    resume([], ["detection"], parted)
    assert losses(straight)[-1] < losses(straight)[0]
    one, other = (load_file(run / "last.safetensors") for run in (straight, parted))
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_a_checkpoint_of_another_optimiser_is_refused(settings):
    run = train(snapshot(CFG, [*settings, "max_steps=2"]), ["detection"])
    with pytest.raises(UserError, match="its optimizer is adamw, not lamb; resume with"):
        resume(["optimizer=lamb", "max_steps=4"], ["detection"], run)


@pytest.mark.parametrize(
    ("name", "near"),
    [
        ("adamx", "adamax"),
        ("Lamb", "lamb"),
        ("adahessian", "ada"),
        ("fusedadam", ""),
    ],
)
def test_an_unknown_optimiser_is_refused_before_data_is_opened(settings, name, near):
    with pytest.raises(
        UserError, match=f"optimizer must be one of timm's .*{near}.*, got '{name}'"
    ):
        state_of([*settings, "coco_root=/nowhere", f"optimizer={name}"], ["detection"])


def test_sharded_training_takes_adamw_alone(settings):
    with pytest.raises(UserError, match="fsdp=true goes with optimizer=adamw alone; got .*lamb"):
        state_of([*settings, "fsdp=true", "optimizer=lamb"], ["detection"])
