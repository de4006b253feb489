"""The training recipe: losses, schedules, optimiser and steps equal the official ones."""

import json
import shutil
from dataclasses import dataclass
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from config import CFG, PRESETS
from dataset.batch import Batch
from download.official_model import (
    ROOT,
    SUFFIX,
    coco_categories,
    model_config,
    sources,
    to_state_dict,
)
from download.tf_checkpoint import read_checkpoint
from models import ModelConfig, build_model
from models.official_encoders import BatchNorm
from tests.conftest import TINY
from tokenizer.vocabulary import Vocabulary
from train.build import build_source_of, count_run_steps
from train.engine import train
from train.init_weights import start_from
from train.loss import LossType, amp_dtype, batch_loss, token_losses, weighted_mean
from train.optim import NO_KERNELS, base_lr, build_optimizer, count_steps, lr_factor
from train.settings import (
    build_model_config,
    build_tokenizers,
    build_vocabulary,
    check_settings,
    task_settings,
)
from utils.categories import Categories
from utils.cli import snapshot
from utils.devices import ALONE
from utils.errors import UserError


@pytest.fixture(scope="module")
def numbers(reference):
    """name of a file in training/ -> its arrays; "config" -> the settings behind them"""
    folder = reference / "training"
    loaded = {path.stem: np.load(path) for path in folder.glob("*.npz")}
    return loaded | {"config": json.loads((folder / "config.json").read_text())}


# ---- losses ----------------------------------------------------------------------------------


def tensors(arrays, *names):
    return [torch.from_numpy(arrays[name]) for name in names]


@pytest.mark.data
def test_losses_of_tokens_and_batches_equal_the_official_ones(numbers):
    arrays, expected = numbers["losses"], numbers["config"]["compute_loss"]
    logits, targets, weights = tensors(arrays, "logits", "targets", "token_weights")
    hit, clipped = tensors(arrays, "logits_hit", "targets_clipped")
    kinds = numbers["config"]["loss_types"]
    assert len(kinds) == 9
    for text in kinds:
        kind = LossType.parse(text)
        ours = token_losses(logits.flatten(0, 1), targets.flatten(), kind, length=7)
        theirs = torch.from_numpy(arrays[f"loss_{text}"]).flatten()
        torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-6)
        losses = token_losses(hit.flatten(0, 1), clipped.flatten(), kind, length=7)
        mean = weighted_mean(losses, weights.flatten()).item()
        assert mean == pytest.approx(expected[text]["loss"], rel=1e-6)
        not_pad = weighted_mean(losses, (weights * (clipped != 0)).flatten()).item()
        assert not_pad == pytest.approx(expected[text]["loss_notpad"], rel=1e-6)


@pytest.mark.data
def test_the_loss_of_several_instances_and_its_gradient_equal_the_official_ones(numbers):
    arrays = numbers["losses"]
    logits, targets, weights = tensors(
        arrays, "multi_logits", "multi_targets", "multi_token_weights"
    )
    losses = token_losses(logits.flatten(0, 1), targets.flatten())
    expected = numbers["config"]["compute_loss"]["xent_multi_instance"]["loss"]
    assert weighted_mean(losses, weights.flatten()).item() == pytest.approx(expected, rel=1e-6)
    assert weighted_mean(losses, torch.zeros(len(losses))).item() == 0

    hit, clipped, weights = tensors(arrays, "logits_hit", "targets_clipped", "token_weights")
    hit.requires_grad_()
    losses = token_losses(hit.flatten(0, 1), clipped.flatten())
    weighted_mean(losses, weights.flatten()).backward()
    theirs = torch.from_numpy(arrays["grad_xent_wrt_logits_hit"])
    torch.testing.assert_close(hit.grad, theirs, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("text", ["xent", "xent@0.2", "focal", "focal@0.5", "logistic@0.1"])
def test_losses_are_what_their_one_hot_formulas_say(text):
    """Also for an id outside the vocabulary, whose one-hot is all zero."""
    torch.manual_seed(0)
    logits, targets = torch.randn(5, 11, dtype=torch.double), torch.tensor([3, 0, 10, 11, -1])
    hot = torch.zeros(5, 11, dtype=torch.double)
    hot[torch.arange(3), targets[:3]] = 1
    kind, a = LossType.parse(text), LossType.parse(text).parameter
    if kind.name == "xent":
        expected = -((hot * (1 - a) + a / 11) * logits.log_softmax(1)).sum(1)
    elif kind.name == "focal":
        p = logits.softmax(1)
        expected = -(hot * (1 - p) ** a * (p + 1e-8).log()).sum(1)
    else:
        hot = a + hot * (1 - 2 * a)
        expected = nn.functional.binary_cross_entropy_with_logits(
            logits - np.log(4), hot, reduction="none"
        ).sum(1)
    ours = token_losses(logits, targets, kind, length=4)
    torch.testing.assert_close(ours.double(), expected, rtol=1e-5, atol=1e-5)


def test_a_sure_answer_has_a_gradient_under_focal_loss():
    logits = torch.tensor([[100.0, 0.0]], requires_grad=True)
    token_losses(logits, torch.tensor([0]), LossType("focal", 0.5)).sum().backward()
    assert logits.grad.isfinite().all()


@pytest.mark.parametrize("text", ["mse", "xent@x", "xent@1.5", "focal@-1", "logistic@0.6", ""])
def test_an_unknown_loss_is_refused(text):
    with pytest.raises(ValueError, match="loss must be xent, focal or logistic"):
        LossType.parse(text)


@pytest.mark.parametrize("native", [True, False])
def test_mixed_precision_is_what_the_device_computes_in(monkeypatch, native):
    """Emulated bfloat16, as before compute capability 8, is slower than none."""
    gpu, cpu = torch.device("cuda"), torch.device("cpu")
    monkeypatch.setattr(
        torch.cuda,
        "is_bf16_supported",
        lambda including_emulation=True: including_emulation or native,
    )
    assert amp_dtype("auto", gpu) == (torch.bfloat16 if native else torch.float16)
    assert amp_dtype("auto", cpu) is amp_dtype("off", gpu) is None
    assert amp_dtype("bf16", gpu) == torch.bfloat16 and amp_dtype("fp16", gpu) == torch.float16
    # what goes by the type goes by the one that "auto" stands for
    monkeypatch.setattr("train.settings.local_device", lambda *_: gpu)
    cfg = snapshot(CFG, ["fsdp=true", "pretrained=false"])
    if native:
        check_settings(cfg, ["detection"], ALONE)
    else:
        with pytest.raises(UserError, match="amp=auto is fp16 here"):
            check_settings(cfg, ["detection"], ALONE)


def test_the_precision_of_products_is_that_of_the_settings(demo_set, tmp_path, monkeypatch):
    overrides = [*TINY, f"coco_root={demo_set}", f"runs_dir={tmp_path / 'runs'}", "max_steps=1"]
    told = []
    monkeypatch.setattr(torch, "set_float32_matmul_precision", told.append)
    for name in ("highest", "high"):
        train(snapshot(CFG, [*overrides, f"matmul_precision={name}"]), ["detection"])
    assert told == ["highest", "high"]
    with pytest.raises(UserError, match="matmul_precision must be one of highest, high, medium"):
        train(snapshot(CFG, [*overrides, "matmul_precision=low"]), ["detection"])


# ---- schedule --------------------------------------------------------------------------------


@pytest.mark.data
def test_learning_rates_equal_the_official_ones(numbers):
    arrays, shapes = numbers["lr_schedules"], set()
    for s in numbers["config"]["lr_schedules"]:
        lr = base_lr(s["base_learning_rate"], s["batch_size"], s["learning_rate_scaling"])
        shape = s["learning_rate_schedule"].replace("none", "constant")
        shapes.add(shape)
        ours = [
            lr
            * lr_factor(
                int(step),
                total_steps=s["total_steps"],
                warmup_steps=s["warmup_steps"],
                end_factor=s["end_lr_factor"],
                schedule=shape,
                tail_steps=s["tail_steps"],
            )
            for step in arrays[f"steps_{s['index']}"]
        ]
        for name in ("lr", "lr_int64_step"):  # near 0 their float32 is right to its last digit only
            theirs = arrays[f"{name}_{s['index']}"]
            np.testing.assert_allclose(ours, theirs, rtol=1e-6, atol=2e-7 * lr)
    assert shapes == {"linear", "cosine", "constant", "cosine@0.8", "exp@0.1"}


@pytest.mark.data
def test_steps_are_counted_as_in_the_official_code(numbers):
    cases = numbers["config"]["step_counts"]
    for s in cases:
        total, warmup = count_steps(
            s["num_train_examples"],
            s["batch_size"],
            epochs=s["epochs"],
            warmup_epochs=s["warmup_epochs"],
        )
        assert (s["steps"] or total) == s["result_train_steps"]
        assert (s["warmup_steps"] or warmup) == s["result_warmup_steps"]


@dataclass
class Stream:
    """As far as steps are counted."""

    num_samples: int
    images_per_step: int

    def __len__(self):
        return self.num_samples // self.images_per_step


def test_the_steps_of_the_official_presets_are_those_of_the_official_run():
    """Their code counts the 118,287 images of train2017 for every task.

    Samples are fewer (1,021 images have no object) or more (149,813 persons with keypoints).
    """
    samples = {
        "detection": 117266,
        "segmentation": 117266,
        "keypoint": 149813,
        "captioning": 118287,
    }
    source = SimpleNamespace(num_images=118287, image_ids=np.arange(117266))
    streams = {task: Stream(count, 128) for task, count in samples.items()}
    steps = count_run_steps(
        snapshot(PRESETS["multi_task"], []), streams, dict.fromkeys(samples, source)
    )
    assert (steps.total, steps.warmup) == (92412, 9241)
    alone = {"detection": Stream(117266, 32)}, {"detection": source}
    steps = count_run_steps(snapshot(PRESETS["det_finetune"], []), *alone)
    assert (steps.total, steps.warmup) == (118287 * 40 // 32 + 1, 2 * 118287 // 32)
    limited = snapshot(PRESETS["det_finetune"], ["train_limit=320"])
    assert count_run_steps(limited, *alone).total == 401


@pytest.mark.parametrize("keep", [True, False])
def test_images_without_an_object_are_trained_on_or_not(demo_set, tmp_path, keep):
    root = tmp_path / "set"
    shutil.copytree(demo_set, root)
    path = root / "annotations" / "instances_train2017.json"
    content = json.loads(path.read_text())
    empty = {row["id"] for row in content["images"][:3]}
    content["annotations"] = [r for r in content["annotations"] if r["image_id"] not in empty]
    path.write_text(json.dumps(content))
    overrides = [*TINY, f"coco_root={root}", f"keep_empty={keep}", "whole_epochs=false"]
    cfg = snapshot(CFG, overrides)
    source = build_source_of(cfg, "detection", train=True)
    assert len(source) == 14 - 3 * (not keep) and source.num_images == 14
    assert len(build_source_of(cfg, "detection", train=False)) == 6


@pytest.mark.parametrize("preset", ["det_finetune", "multi_task", "from_scratch"])
def test_official_presets_leave_out_images_without_an_object(preset):
    assert PRESETS["default"].keep_empty and not PRESETS[preset].keep_empty
    for dataset, expected in (("coco", {"keep_empty": False}), ("voc", {})):
        cfg = snapshot(PRESETS[preset], [f"dataset={dataset}"])
        assert task_settings(cfg, "detection").train_source == expected


def test_settings_of_the_rate_reach_the_optimiser(demo_set, tmp_path):
    """14 images in batches of 4: officially 2 * 14 // 4 + 1 = 8 steps, three of them warm-up."""
    run = train(
        snapshot(CFG, [*TINY, f"coco_root={demo_set}", f"runs_dir={tmp_path}", "lr=0.064",
                       "whole_epochs=false", "warmup_epochs=1", "lr_scaling=linear",
                       "lr_schedule=exp@0.5", "loss=focal@2"]), ["detection"],
    )  # fmt: skip
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    rates = [line["train/lr"] for line in lines if "train/lr" in line]
    base = 0.064 * 4 / 256
    expected = [base / 3, base * 2 / 3] + [base * 0.5 ** (i / 5) for i in range(6)]
    assert rates == pytest.approx(expected, rel=2e-3)  # each after its step, so that of the next


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("loss=mse", "loss must be xent"),
        ("lr_scaling=cubic", "lr_scaling must be one of none, linear, sqrt"),
        ("lr_schedule=exp", "lr_schedule must be linear, cosine, constant"),
        ("lr_schedule=linear@2", "lr_schedule must be linear, cosine, constant"),
        ("lr_schedule=cosine@1.2.3", "lr_schedule must be linear, cosine, constant"),
        ("decay_exclude=(", "decay_exclude must be regular expressions"),
        ("max_len=12", "max_len=12 is less than the 40 that the tasks need"),
        ("resnet_depth=18", "resnet_depth must be"),
    ],
)
def test_a_wrong_setting_of_the_recipe_is_one_line(demo_set, tmp_path, override, message):
    overrides = [*TINY, f"coco_root={demo_set}", f"runs_dir={tmp_path / 'runs'}", override]
    with pytest.raises(UserError, match=message):
        train(snapshot(CFG, overrides), ["detection"])
    assert not (tmp_path / "runs").exists()


# ---- optimiser -------------------------------------------------------------------------------


class Variables(nn.Module):
    """The variables of optimizers.npz under names that ours have."""

    NAMES = {
        "vit/stem_conv/kernel": "stem_conv.weight",
        "vit/stem_conv/bias": "stem_conv.bias",
        "vit/stem_ln/gamma": "stem_ln.weight",
        "vit/stem_ln/beta": "stem_ln.bias",
        "ar_decoder/token_embedding": "token_embedding",
        "ar_decoder/seq_pos_embedding": "positions",
        "ar_decoder/outp_bias": "output_bias",
        "proj/linear/kernel": "proj.weight",
        "proj/linear/bias": "proj.bias",
    }

    def __init__(self, arrays):
        super().__init__()
        self.official = {}
        for theirs, ours in self.NAMES.items():
            *path, leaf = ours.split(".")
            owner = self
            for part in path:
                if not hasattr(owner, part):
                    owner.add_module(part, nn.Module())
                owner = getattr(owner, part)
            values = torch.from_numpy(arrays[f"init:{theirs}"].copy())
            owner.register_parameter(leaf, nn.Parameter(values))
            self.official[theirs] = getattr(owner, leaf)


OPTIMIZERS = {  # case -> settings of ours
    "adamw": {},
    "adamw_lr3e-5": {},
    "adamw_schedule": {},
    "adamw_clip": {},
    "adamw_excluded": {"decay_exclude": ("bias", "_ln", "embedding", "positions")},
    "adamw_legacy": {"decay_all": False, "decay_exclude": NO_KERNELS},
    "adamw_legacy_clip": {"decay_all": False, "decay_exclude": NO_KERNELS},
    "adam": {"weight_decay": 0.0},
    "lamb": {"name": "lamb", "decay_all": False, "decay_exclude": NO_KERNELS},
}


@pytest.mark.data
@pytest.mark.parametrize("case", OPTIMIZERS)
def test_optimiser_steps_equal_the_official_ones(numbers, case):
    arrays, settings = numbers["optimizers"], numbers["config"]["optimizers"][case]
    model, rate = Variables(arrays), settings["learning_rate"]
    options = {"lr": rate["lr"], "weight_decay": settings["weight_decay"]} | OPTIMIZERS[case]
    betas = (settings["beta1"], settings["beta2"])
    optimizer = build_optimizer(model, betas=betas, **options)
    decayed = optimizer.param_groups[0]["params"] if options["weight_decay"] else []
    names = {theirs for theirs, p in model.official.items() if any(p is q for q in decayed)}
    assert names == set(settings["decayed"])
    for step in range(5):
        for theirs, parameter in model.official.items():
            parameter.grad = torch.from_numpy(arrays[f"grad{step}:{theirs}"].copy())
        if settings["global_clipnorm"] > 0:
            nn.utils.clip_grad_norm_(model.parameters(), settings["global_clipnorm"])
        if "warmup_steps" in rate:
            factor = lr_factor(
                step, total_steps=rate["total_steps"], warmup_steps=rate["warmup_steps"],
                end_factor=0.01, schedule="linear",
            )  # fmt: skip
            optimizer.param_groups[0]["lr"] = rate["lr"] * factor
        optimizer.step()
        for theirs, parameter in model.official.items():
            expected = torch.from_numpy(arrays[f"{case}/after{step + 1}:{theirs}"])
            torch.testing.assert_close(parameter.detach(), expected, rtol=0, atol=5e-6)


# ---- gradients and steps ---------------------------------------------------------------------


class Case:
    """A trained variant: the model with its first weights, batches and what came of them."""

    def __init__(self, folder):
        self.info = json.loads((folder / "config.json").read_text())
        self.config = model_config(self.info["model"])
        self.model = build_model(self.config).train()
        variables = read_checkpoint(folder / self.info["checkpoint"])
        self.model.load_state_dict(to_state_dict(variables, self.config))
        self.arrays, self.sources = np.load(folder / "train.npz"), sources(self.model)
        self.weights = self.info["train"]["task_weights"]
        self.noise = set(self.info["train"]["params_with_max_abs_grad_below_1e_6"])

    def losses(self):
        out = []
        for task in range(2):
            values = {
                name: torch.from_numpy(self.arrays[f"task{task}_{name}"])
                for name in ("image", "input_seq", "target_seq", "token_weights")
            }
            images = values["image"].permute(0, 3, 1, 2).contiguous() * 255
            size = torch.tensor([images.shape[-2:]] * len(images))
            batch = Batch(images, size, *list(values.values())[1:], [0, 1])
            out.append(batch_loss(self.model, batch))
        return out

    def backward(self):
        losses = self.losses()
        sum(w * loss for w, loss in zip(self.weights, losses, strict=True)).backward()
        return [loss.item() for loss in losses]

    def pairs(self, ours, theirs):
        """Yields (official name, our part, official values in our layout)."""
        for name, source in self.sources.items():
            if name not in ours:
                continue
            parts = ours[name].chunk(len(source.variables))
            for variable, part in zip(source.variables, parts, strict=True):
                values = theirs(ROOT + variable)
                if values is not None:
                    yield ROOT + variable, part, torch.tensor(source.convert(values))


@pytest.fixture(params=["vit_a", "resnet_a"])
def case(request, reference):
    return Case(reference / "models" / request.param), reference / "models" / request.param


@pytest.mark.data
def test_losses_and_gradients_equal_the_official_ones(case):
    case, folder = case
    losses = case.backward()
    np.testing.assert_allclose(losses, case.arrays["loss_per_task_step0"], rtol=1e-5)
    expected = case.info["train"]["metrics_per_step"][0]
    total = sum(w * loss for w, loss in zip(case.weights, losses, strict=True))
    assert total == pytest.approx(expected["loss"], rel=1e-5)
    norm = nn.utils.get_total_norm([p.grad for p in case.model.parameters()]).item()
    assert norm == pytest.approx(expected["grad_global_norm"], rel=1e-4)
    grads = {name: p.grad for name, p in case.model.named_parameters()}
    share, seen = (1e-5 if folder.name == "vit_a" else 5e-4), 0
    for name, ours, theirs in case.pairs(grads, lambda v: case.arrays[f"grad:{v}"]):
        seen += 1
        if name in case.noise:
            assert ours.abs().max() < 1e-5, name
        else:
            largest = theirs.abs().max().item()
            assert (ours - theirs).abs().max().item() <= share * largest, name
    assert seen == sum(name.startswith("grad:") for name in case.arrays.files)


@pytest.mark.data
def test_three_training_steps_equal_the_official_ones(case):
    case, folder = case
    o, model = case.info["optimization"], case.model
    optimizer = build_optimizer(
        model, lr=o["learning_rate"], weight_decay=o["weight_decay"], betas=(o["beta1"], o["beta2"])
    )
    schedule = {
        "total_steps": case.info["train"]["train_steps_total"],
        "warmup_steps": o["warmup_steps"],
        "end_factor": o["end_lr_factor"],
        "schedule": o["learning_rate_schedule"],
    }
    for step, expected in enumerate(case.info["train"]["metrics_per_step"]):
        optimizer.param_groups[0]["lr"] = o["learning_rate"] * lr_factor(step, **schedule)
        assert optimizer.param_groups[0]["lr"] == pytest.approx(expected["lr"], rel=1e-6)
        optimizer.zero_grad()
        losses = case.backward()
        tasks = [expected[f"loss_{name}"] for name in case.info["train"]["task_names"]]
        np.testing.assert_allclose(losses, tasks, rtol=1e-5 if step == 0 else 1e-4)
        optimizer.step()
    after = case.info["train"]["values_after"]
    if after.endswith(".npz"):
        arrays = np.load(folder / after)
        values = {name: arrays[name] for name in arrays.files}
    else:
        values = {k.removesuffix(SUFFIX): v for k, v in read_checkpoint(folder / after).items()}
    seen, statistics = 0, 0
    for name, ours, theirs in case.pairs(model.state_dict(), values.get):
        moving = "/moving_" in name
        seen, statistics = seen + 1, statistics + moving
        if name not in case.noise:
            scale = max(1.0, theirs.abs().max().item()) if moving else 1.0
            limit = 1e-4 * scale if moving else 3e-5
            assert (ours - theirs).abs().max().item() <= limit, name
    assert seen == sum(name.startswith("model/") for name in values)
    batch_norms = [m for m in model.modules() if isinstance(m, BatchNorm)]
    assert statistics == 2 * len(batch_norms)


# ---- presets ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("preset", "millions"), [("det_finetune", 115.170), ("from_scratch", 36.588)]
)
def test_presets_build_the_published_models(preset, millions):
    cfg = snapshot(PRESETS[preset], [])
    vocab = build_vocabulary(cfg)
    config = build_model_config(cfg, vocab, build_tokenizers(cfg, ["detection"], vocab))
    with torch.device("meta"):
        model = build_model(config)
    assert sum(p.numel() for p in model.parameters()) / 1e6 == pytest.approx(millions, abs=1e-3)
    assert config.image_mean == (0.0, 0.0, 0.0) and config.image_std == (1.0, 1.0, 1.0)


def test_multi_task_training_starts_from_weights_of_detection_with_fewer_ids():
    """Objects365 weights: 365 numbered classes, ids below the text; rows keep their places."""
    sizes = {"image_size": (32, 32), "dim": 8, "num_layers": 1, "num_heads": 2, "mlp_dim": 16}
    encoder = {"encoder_dim": 8, "encoder_layers": 1, "encoder_heads": 2, "encoder_mlp_dim": 16}
    pieces, models = 50, []
    classes = [coco_categories(), Categories.from_names([f"class {i}" for i in range(1, 366)])]
    for num_text, categories in zip((pieces, 0), classes, strict=True):
        vocab = Vocabulary(num_text=num_text)
        config = ModelConfig(encoder="official_vit", **sizes, **encoder, vocab_size=vocab.size)
        models.append(build_model(config))
        models[-1].meta = {
            "vocabulary": vocab.to_json(),
            "categories": categories.to_json(),
            "tasks": {},
        }
    new, old = models
    before = {name: value.clone() for name, value in new.state_dict().items()}
    report = start_from(new, old)
    size = old.config.vocab_size
    assert set(report.adapted) == {"decoder.token_embedding", "decoder.output_bias"}
    for name, value in new.state_dict().items():
        table = name in report.adapted
        known = value[:size] if table else value
        assert torch.equal(known, old.state_dict()[name]), name
        assert not table or torch.equal(value[size:], before[name][size:])


@pytest.mark.parametrize("encoder", ["official_vit", "official_resnet_c"])
def test_an_official_encoder_trains(demo_set, tmp_path, encoder):
    sizes = "encoder_dim=32 encoder_layers=1 encoder_heads=4 encoder_mlp_dim=64 resnet_width=0.125"
    overrides = [*TINY, f"encoder={encoder}", *sizes.split(), "max_steps=2", "max_len=64"]
    overrides += [f"coco_root={demo_set}", f"runs_dir={tmp_path}", "img_size=48"]
    run = train(snapshot(CFG, overrides), ["detection"])
    assert (run / "best.safetensors").is_file()
