"""docs/extending.md is true: its examples run as they stand; losses and metrics of one's own."""

import json
import re
import sys

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import dataset.formats
from config import CFG
from dataset import check_dataset
from dataset.find_dataset import find_dataset
from infer import evaluate
from infer.results import Report
from infer.tasks import Request, add_own_figures, check_request
from models import load_model
from tests.conftest import ROOT, TINY
from tests.test_loss_in_parts import a_batch, a_model, loss_and_gradients
from tests.training import metrics, state_of
from tokenizer.vocabulary import Vocabulary
from train.engine import train
from train.loss import LossType, batch_loss, gaussian_bins, token_losses
from train.settings import check_settings
from utils.cli import snapshot
from utils.devices import ALONE
from utils.errors import UserError

PAGE = (ROOT / "docs" / "extending.md").read_text()
EXAMPLES = dict(re.findall(r"```python\n# (\S+)\.py\n(.*?)```", PAGE, re.DOTALL))
VOCAB = Vocabulary(num_bins=50)
SMALL = Vocabulary(num_bins=100, class0=50, coord0=100, text0=211)  # of `a_model`


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The folder that a person works in; modules that are imported from it are forgotten."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    known = set(sys.modules)
    yield tmp_path
    for name in set(sys.modules) - known:
        if name.startswith("my_"):
            del sys.modules[name]


def write(folder, name, old="", new=""):
    """An example of the page as a module, perhaps with a fault in it."""
    assert old in EXAMPLES[name]
    (folder / f"{name}.py").write_text(EXAMPLES[name].replace(old, new) if old else EXAMPLES[name])


def parse(text, vocab=VOCAB):
    return LossType.parse(text, vocab)


# ---- HL-Gauss ------------------------------------------------------------------------------------


def draws(num=40):
    torch.manual_seed(1)
    targets = torch.randint(0, VOCAB.size, (num,))
    low, high = VOCAB.coord_range
    targets[: num // 2] = torch.randint(low, high, (num // 2,))
    targets[:4] = torch.tensor([low, high - 1, low - 1, high])
    logits = torch.randn(num, VOCAB.size, dtype=torch.double) * 3
    return logits.requires_grad_(), targets


@pytest.mark.parametrize("sigma", [0.3, 0.75, 4.0, 200.0])
@pytest.mark.parametrize("bin_", [0, 1, 25, 49])
def test_the_probability_of_a_bin_is_the_integral_over_its_width(bin_, sigma):
    rows = gaussian_bins(torch.tensor([bin_]), 50, sigma)[0].double().numpy()
    x = np.linspace(-0.5, 49.5, 50 * 400 + 1)
    middle = (x[1:] + x[:-1]) / 2
    mass = np.exp(-0.5 * ((middle - bin_) / sigma) ** 2).reshape(50, 400).sum(1)
    np.testing.assert_allclose(rows, mass / mass.sum(), atol=2e-6)
    assert rows.argmax() == bin_


def test_a_narrow_gaussian_is_cross_entropy_with_its_gradient():
    logits, targets = draws()
    narrow, plain = (token_losses(logits, targets, parse(t)) for t in ("hl_gauss@0.05", "xent"))
    torch.testing.assert_close(narrow, plain, rtol=1e-6, atol=1e-6)
    grads = [torch.autograd.grad(loss.sum(), logits)[0] for loss in (narrow, plain)]
    torch.testing.assert_close(*grads, rtol=1e-6, atol=1e-6)


def test_only_coordinates_are_softened():
    logits, targets = draws()
    soft, plain = (token_losses(logits, targets, parse(t)) for t in ("hl_gauss@2", "xent"))
    low, high = VOCAB.coord_range
    coordinate = (targets >= low) & (targets < high)
    assert torch.equal(soft[~coordinate], plain[~coordinate])
    probs = gaussian_bins(targets[coordinate] - low, VOCAB.num_bins, 2)
    wanted = -(probs * logits[coordinate].log_softmax(1)[:, low:high]).sum(1)
    torch.testing.assert_close(soft[coordinate], wanted)


def test_its_gradient_is_the_difference_of_the_distributions():
    logits, targets = draws()
    few = Vocabulary(num_bins=5, class0=42, coord0=44, text0=50)
    assert torch.autograd.gradcheck(
        lambda x: token_losses(x, torch.tensor([44, 46, 43]), parse("hl_gauss@1.5", few)),
        torch.randn(3, few.size, dtype=torch.double, requires_grad=True),
    )
    (grad,) = torch.autograd.grad(
        token_losses(logits, targets, parse("hl_gauss@0.75")).sum(), logits
    )
    low, high = VOCAB.coord_range
    wanted = logits.detach().softmax(1)
    wanted[0, low:high] -= gaussian_bins(targets[:1] - low, VOCAB.num_bins, 0.75)[0]
    torch.testing.assert_close(grad[0], wanted[0])


@pytest.mark.parametrize("loss", ["hl_gauss@0.75", "my_loss:expected_distance"])
def test_losses_that_see_the_vocabulary_are_the_same_in_parts(folder, monkeypatch, loss):
    write(folder, "my_loss")
    model, batch, kind = a_model().double(), a_batch(), LossType.parse(loss, SMALL)
    assert ((batch.target_tokens >= 100) & (batch.target_tokens < 200)).any()
    monkeypatch.setattr(LossType, "parse", lambda _: kind)
    whole, parts = (
        loss_and_gradients(monkeypatch, model, batch, loss, size) for size in (10**6, 7)
    )
    for one, other in zip(parts, whole, strict=True):
        assert (one - other).abs().max() <= 1e-6 * other.abs().max()
    model = a_model()
    value = batch_loss(model, batch, kind)
    with torch.autocast("cpu", torch.bfloat16):
        half = batch_loss(model, batch, kind)
    assert half.dtype == torch.float32
    torch.testing.assert_close(half, value, rtol=0.02, atol=0)


@pytest.mark.parametrize("loss", ["hl_gauss@0.75", "my_loss:expected_distance"])
def test_losses_that_see_the_vocabulary_compile(folder, loss):
    """Without a break of the graph, as a training with compile=true does it."""
    write(folder, "my_loss")
    torch._dynamo.reset()
    logits, targets = draws()
    compiled = torch.compile(token_losses, backend="eager", fullgraph=True)
    ours = [f(logits, targets, parse(loss)) for f in (compiled, token_losses)]
    torch.testing.assert_close(*ours)
    torch._dynamo.reset()


# ---- a loss of one's own -------------------------------------------------------------------------


@pytest.fixture
def settings(demo_set, folder):
    common = [f"coco_root={demo_set}", f"runs_dir={folder / 'runs'}", "eval_limit=2"]
    return [*TINY, *common, "max_steps=2", "eval_every=2", "likelihood_limit=0"]


def test_the_loss_of_the_page_is_cross_entropy_and_a_distance(folder):
    write(folder, "my_loss")
    logits, targets = draws()
    ours = token_losses(logits, targets, parse("my_loss:expected_distance"))
    low, high = VOCAB.coord_range
    for loss, row, target in zip(ours, logits.detach(), targets.tolist(), strict=True):
        wanted = F.cross_entropy(row[None], torch.tensor([target]))
        if low <= target < high:
            probs = row[low:high].softmax(0)
            wanted += sum(p * abs(low + b - target) / 50 for b, p in enumerate(probs))
        torch.testing.assert_close(loss.double(), wanted)
    outside = token_losses(
        logits[:2], torch.tensor([-1, VOCAB.size]), parse("my_loss:expected_distance")
    )
    assert outside.tolist() == [0, 0]


def test_a_run_trains_with_the_loss_of_the_page_and_the_vocabulary_of_its_data(folder, settings):
    write(folder, "my_loss", "    low, high", "    SEEN.append(vocab)\n    low, high")
    with (folder / "my_loss.py").open("a") as file:
        file.write("\nSEEN = []\n")
    state = state_of([*settings, "loss=my_loss:expected_distance", "num_bins=77"], ["detection"])
    batch = state.streams["detection"].next()
    loss = batch_loss(state.model, batch, state.loss_type)
    loss.backward()
    assert loss > batch_loss(state.model, batch) and state.model.decoder.output_bias.grad.any()
    vocab = sys.modules["my_loss"].SEEN[-1]
    assert vocab == Vocabulary.from_json(state.model.meta["vocabulary"]) and vocab.num_bins == 77


FAULTS = {
    ("def expected_distance(", "def other("): "no function 'expected_distance'",
    ("(logits, targets, vocab)", "(logits, targets)"): "cannot be called with",
    ("return losses + ", "return losses.mean() + 0 * "): None,  # still one per token
    (
        "    return losses + expected.where(",
        "    return losses.mean() #",
    ): r"returns \(\) .* not one",
    ("    return losses", "    return None and losses"): "NoneType",
    ("/ vocab.num_bins", "/ vocab.no_such"): "AttributeError",
    ("import torch\n", "import my_missing\n"): "needs the module 'my_missing'",
    (", reduction=", ", reduction=no_such + "): "NameError",
    ("losses + expected", "losses.log() * 0 / 0 + expected"): "no finite number",
}


@pytest.mark.parametrize("number", range(len(FAULTS)))
def test_a_function_that_is_no_loss_is_one_line_before_the_data_is_opened(folder, settings, number):
    (old, new), message = list(FAULTS.items())[number]
    write(folder, "my_loss", old, new)
    (folder / "my_loss.py").rename(folder / f"my_fault{number}.py")
    cfg = snapshot(CFG, [*settings, f"loss=my_fault{number}:expected_distance", "coco_root=none"])
    if message is None:
        check_settings(cfg, ["detection"], ALONE)
        return
    with pytest.raises(UserError, match=message) as error:
        check_settings(cfg, ["detection"], ALONE)
    assert "\n" not in str(error.value)


# ---- a metric of one's own -----------------------------------------------------------------------


def test_the_metric_of_the_page_is_in_the_curves_and_in_the_evaluation(folder, settings, capsys):
    """Training and evaluation say the same, and it is what counting the rows says."""
    write(folder, "my_metric", "> 0.3", "> -1")
    settings = [*settings, "metrics=my_metric:right_counts", "max_objects=4"]
    run = train(snapshot(CFG, settings), ["detection"])
    assert "right_counts" in capsys.readouterr().err
    row = [row for row in metrics(run) if "val/detection/right_counts" in row][-1]
    # the settings of the run bring the metric along
    evaluate.main(["--weights", str(run / "last.safetensors"), "--out-dir", str(folder / "out")])
    assert "\nright_counts = " in capsys.readouterr().out
    figures = json.loads((folder / "out" / "metrics.json").read_text())
    assert figures["right_counts"] == row["val/detection/right_counts"]
    assert next(iter(figures)) == "AP"  # what the best weights are chosen by


class Source:
    image_ids = (1, 2, 3)

    def objects(self, n):
        return np.zeros((n, 4)), np.ones(n)


def report(**figures):
    rows = [{"image_id": i, "score": score} for i, score in ((1, 0.2), (2, 0.9), (3, 0.5))]
    return Report({"AP": 0.5, **figures}, None, "table", rows)


def figures_of(folder, text, name="my_metrics", **known):
    (folder / f"{name}.py").write_text(text)
    paths = [f"metrics={name}:{f}" for f in re.findall(r"^def (\w+)", text, re.MULTILINE)]
    cfg = snapshot(CFG, [",".join([paths[0], *(p.removeprefix("metrics=") for p in paths[1:])])])
    return add_own_figures(cfg, "detection", report(**known), Source())


def test_right_counts_counts(folder):
    """1 of 0 objects found, but below the threshold; 1 of 1; 1 of 2."""
    out = figures_of(folder, EXAMPLES["my_metric"])
    assert out.metrics == {"AP": 0.5, "right_counts": pytest.approx(2 / 3)}
    assert list(out.own) == ["right_counts"] and out.table == "table\nright_counts = 0.6667"


def test_a_metric_that_fails_costs_its_own_figures(folder, capsys):
    text = "".join(
        f"def {name}(results, source, task):\n    return {value}\n\n"
        for name, value in {
            "a": '{"mine": 1, "AP": 0.9, "bad": float("nan")}',
            "b": "1 / 0",
            "c": '{"mine": 2, "below": -3.5}',
            "d": '{"text": "none"}',
            "e": "[1]",
        }.items()
    )
    out = figures_of(folder, text, "my_several")
    assert out.metrics == {"AP": 0.5, "mine": 1, "below": -3.5}
    lines = capsys.readouterr().err
    for word in ("AP=0.9", "bad=nan", "ZeroDivisionError", "mine=2", "no figures of my_several:d"):
        assert word in lines
    assert "no figures of my_several:e" in lines and "no figures of my_several:a" not in lines


def test_a_metric_that_cannot_be_called_is_one_line_before_the_data(folder, settings):
    (folder / "my_wrong.py").write_text("def f(results):\n    return {}\n")
    settings = [*settings, "metrics=my_wrong:f", "coco_root=none"]
    with pytest.raises(UserError, match="cannot be called with .results, source, task."):
        check_settings(snapshot(CFG, settings), ["detection"], ALONE)
    with pytest.raises(UserError, match="no function 'g'"):  # of evaluate.py
        check_request(snapshot(CFG, ["metrics=my_wrong:g"]), None, [], Request())
    with pytest.raises(UserError, match="metrics must be package.module:function, got"):
        snapshot(CFG, ["metrics=my_wrong.f"])


# ---- an encoder, a format ------------------------------------------------------------------------


def test_the_encoder_of_the_page_trains(folder, settings):
    write(folder, "my_encoder")
    run = train(snapshot(CFG, [*settings, "encoder=my_encoder:Patches"]), ["detection"])
    assert load_model(run / "last.safetensors").encoder.grid == (4, 4)


def test_the_format_of_the_page_is_found_read_and_checked(folder, monkeypatch, demo_set, capsys):
    package = folder / "formats"
    package.mkdir()
    (package / "boxes_csv.py").write_text(EXAMPLES["dataset/formats/boxes_csv"])
    monkeypatch.setattr(dataset.formats, "__path__", [*dataset.formats.__path__, str(package)])
    data = folder / "mine"
    data.mkdir()
    pictures = sorted((demo_set / "train2017").iterdir())[:8]
    lines = ["file,label,x,y,width,height"]
    for n, picture in enumerate(pictures):
        (data / picture.name).symlink_to(picture)
        lines += [f"{picture.name},cat,{n},2,30,40", f"{picture.name},dog,5,6,20,10.5"]
    (data / "boxes.csv").write_text("\n".join(lines))
    check_dataset.main([str(data), "--task", "detection", "--out-dir", str(folder / "out")])
    assert "nothing that training would refuse" in capsys.readouterr().out
    found = find_dataset(data)
    assert found.title == "boxes.csv"
    (data / "boxes.csv").write_text("\n".join([*lines, f"{pictures[0].name},cat,1,2,x,4"]))
    with pytest.raises(SystemExit):
        check_dataset.main([str(data), "--task", "detection", "--out-dir", str(folder / "out")])
    assert "boxes.csv, line 18" in capsys.readouterr().out
    del sys.modules["dataset.formats.boxes_csv"]
    monkeypatch.delattr(dataset.formats, "boxes_csv")


def test_every_example_of_the_page_is_run_here():
    source = (ROOT / "tests" / "test_extending.py").read_text()
    for name, code in EXAMPLES.items():
        assert f'"{name}"' in source
        assert max(map(len, code.splitlines())) <= 100
    body = EXAMPLES["my_loss"].partition("def ")[2].splitlines()
    assert len(body) <= 10
