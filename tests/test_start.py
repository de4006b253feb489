"""Starting from the weights of another model: what fits is taken by meaning, the rest is told."""

from dataclasses import replace

import pytest
import torch

from config import CFG
from models import load_model, save_model
from tests.conftest import TINY
from tokenizer.vocabulary import Vocabulary
from train.build import build_model_of_run
from train.engine import train
from train.init_weights import settings_of_weights, start_from
from train.settings import build_tokenizers, build_vocabulary
from utils.categories import Categories
from utils.cli import snapshot
from utils.errors import UserError

COLOURS = {1: "red", 2: "green", 3: "blue"}


def make(*overrides, names=COLOURS, tasks=("detection",), seed=0):
    """A new model, as the train scripts make it."""
    cfg = snapshot(CFG, [*TINY, *overrides])
    torch.manual_seed(seed)
    categories = Categories(names, {i: i for i in names})
    vocab = build_vocabulary(cfg, tasks, categories)
    tokenizers = build_tokenizers(cfg, list(tasks), vocab)
    return build_model_of_run(cfg, vocab, tokenizers, categories, torch.device("cpu"))[0]


def table(model):
    return model.decoder.token_embedding.detach()


def class_row(model, name):
    """The embedding of a class."""
    ids = {n: i for i, n in Categories.from_json(model.meta["categories"]).names.items()}
    vocab = Vocabulary.from_json(model.meta["vocabulary"])
    return table(model)[vocab.class_range[0] + ids[name] - vocab.first_label]


def coordinates(model):
    vocab = Vocabulary.from_json(model.meta["vocabulary"])
    return table(model)[slice(*vocab.coord_range)]


def test_the_same_model_is_taken_whole():
    given, model = make(seed=1), make(seed=2)
    report = start_from(model, given)
    expected = given.state_dict()
    assert all(torch.equal(value, expected[key]) for key, value in model.state_dict().items())
    assert report.share == 1 and set(report.taken) == set(expected) and not report.adapted
    assert not report.missing + report.unexpected + report.mismatched
    assert report.text("w") == f"start from w: {len(expected)} tensors taken, 100% of all"


def test_a_class_takes_the_row_of_its_name_else_of_its_id():
    given = make(seed=1)
    model = make(names={1: "blue", 2: "cat", 3: "red", 4: "dog"}, seed=2)
    report = start_from(model, given)
    assert torch.equal(class_row(model, "blue"), class_row(given, "blue"))
    assert torch.equal(class_row(model, "red"), class_row(given, "red"))
    assert torch.equal(class_row(model, "cat"), class_row(given, "green")), "by id, as officially"
    vocab = Vocabulary.from_json(given.meta["vocabulary"])
    assert torch.equal(
        class_row(model, "dog"), table(given)[vocab.class_range[0] + 4 - vocab.first_label]
    )
    assert "2 of" in report.adapted["decoder.token_embedding"]
    assert torch.equal(coordinates(model), coordinates(given))


@pytest.mark.parametrize("num_bins", [100, 499, 2000])
def test_a_bin_takes_the_row_of_the_nearest(num_bins):
    given, model = make(seed=1), make(f"num_bins={num_bins}", seed=2)
    start_from(model, given)
    new, old = coordinates(model), coordinates(given)
    assert torch.equal(new[0], old[0]) and torch.equal(new[-1], old[-1]), "the borders stay"
    for i in range(0, num_bins, 37):
        place = i / (num_bins - 1)
        nearest = min(range(len(old)), key=lambda j, place=place: abs(j / (len(old) - 1) - place))
        assert torch.equal(new[i], old[nearest])
    assert torch.equal(class_row(model, "red"), class_row(given, "red"))


@pytest.mark.parametrize("stride", ["none", "16"])
def test_positions_of_a_timm_transformer_are_interpolated(stride):
    """timm keeps them one level deeper where one feature map is asked for."""
    given = make(f"encoder_stride={stride}", seed=1)
    model = make(f"encoder_stride={stride}", "img_size=96", seed=2)
    assert given.config.image_size != model.config.image_size
    report = start_from(model, given)
    assert any(name.endswith("pos_embed") for name in report.adapted) and not report.mismatched


def test_sine_and_cosine_positions_keep_their_codes(tmp_path):
    """They are stretched over the length, which otherwise follows the budget of objects."""
    given = make("decoder_positions=sin_cos", "max_objects=20", seed=1)
    save_model(given, tmp_path / "w.safetensors")
    assert settings_of_weights(tmp_path / "w.safetensors")["max_len"] == given.config.max_len
    learned = make(seed=1)
    save_model(learned, tmp_path / "w.safetensors")
    assert "max_len" not in settings_of_weights(tmp_path / "w.safetensors")
    kept = ("decoder_positions=sin_cos", f"max_len={given.config.max_len}", "max_objects=7")
    model = make(*kept, seed=2)
    start_from(model, given)
    assert torch.equal(model.decoder.positions, given.decoder.positions)
    with pytest.raises(UserError, match="that the tasks need .*; set max_len="):
        make(*kept[:2], "max_objects=40")


@pytest.mark.parametrize("added", [True, False])
def test_text_is_added_or_left_out(caption_vocab, added):
    both = (f"caption_vocab={caption_vocab}", "max_caption_tokens=12")
    plain, texts = make(seed=1), make(*both, tasks=("detection", "captioning"), seed=2)
    given, model = (plain, texts) if added else (texts, plain)
    before = table(model).clone()
    report = start_from(model, given)
    shared = min(len(table(given)), len(table(model)))
    vocab = Vocabulary.from_json(model.meta["vocabulary"])
    assert torch.equal(table(model)[: vocab.text0], table(given)[: vocab.text0])
    assert torch.equal(table(model)[shared:], before[shared:]), "new pieces start anew"
    if added:
        assert f"{len(before) - vocab.text0} of" in report.adapted["decoder.token_embedding"]


def test_the_same_text_keeps_its_rows_another_starts_anew(caption_vocab, tmp_path):
    options = (f"caption_vocab={caption_vocab}", "max_caption_tokens=12")
    given = make(*options, tasks=("captioning",), seed=1)
    model = make(*options, tasks=("captioning",), seed=2)
    assert start_from(model, given).share == 1
    text0 = Vocabulary.from_json(given.meta["vocabulary"]).text0
    assert torch.equal(table(model)[text0:], table(given)[text0:])
    given.meta["tasks"]["captioning"]["text"] = {"pieces": ["another"]}
    model = make(*options, tasks=("captioning",), seed=3)
    before = table(model)[text0:].clone()
    start_from(model, given)
    assert torch.equal(table(model)[text0:], before)


def test_positions_of_another_image_size_are_interpolated():
    given, model = (
        make("projection_positions=learned", seed=1),
        make("projection_positions=learned", "img_size=128", seed=2),
    )
    positions = given.encoder.backbone.pos_embed.data
    positions[:] = torch.arange(positions.shape[1])[None, :, None].float()
    given.projection.positions.data[:] = 7.0
    report = start_from(model, given)
    grown = model.encoder.backbone.pos_embed.data
    prefix = grown.shape[1] - model.encoder.grid[0] * model.encoder.grid[1]
    assert torch.equal(grown[:, :prefix], positions[:, :prefix]), "prefix tokens have no place"
    rows = grown[0, prefix:, 0].reshape(model.encoder.grid)
    assert (rows.diff(dim=0) > -1e-4).all() and (rows.diff(dim=1) > -1e-4).all()
    assert rows.max() <= positions.max() + 1 and rows.min() >= positions[:, prefix:].min() - 1
    torch.testing.assert_close(
        model.projection.positions.data, torch.full_like(model.projection.positions, 7.0)
    )
    assert "interpolated from (4, 4) to (8, 8)" in report.adapted["projection.positions"]
    assert report.share == 1


@pytest.mark.parametrize(("old", "new"), [(8, 16), (16, 8)])
def test_positions_of_a_sequence_are_shared_as_far_as_both_go(old, new):
    """Behind them every object is as the last one that the weights know, token by token."""
    given, model = make(f"max_objects={old}", seed=1), make(f"max_objects={new}", seed=2)
    report = start_from(model, given)
    after, source = model.decoder.positions.detach(), given.decoder.positions.detach()
    shared = 5 * min(old, new)
    assert torch.equal(after[:shared], source[:shared])
    for further in after[shared:].split(5):
        assert torch.equal(further, source[shared - 5 : shared][: len(further)])
    text = f"the first {min(len(after), len(source))} of {len(after)}"
    assert report.adapted["decoder.positions"].startswith(text)


def test_positions_behind_those_of_another_task_start_anew(multi_settings):
    """Only where detection is known is it known what comes next."""
    given, model = make("max_objects=8", seed=1), make("max_objects=16", seed=2)
    given.meta["tasks"] = {"captioning": {}}
    before = model.decoder.positions.detach().clone()
    start_from(model, given)
    after, shared = model.decoder.positions.detach(), len(given.decoder.positions)
    assert torch.equal(after[shared:], before[shared:])


def test_the_report_names_what_did_not_fit():
    given = make(seed=1)
    model = make("num_layers=1", "mlp_dim=96", "encoder=test_vit", seed=2)
    report = start_from(model, given)
    text = report.text("w.safetensors")
    assert text.startswith(f"start from w.safetensors: {len(report.taken)} tensors taken, ")
    assert report.mismatched and all("mlp" in name or "fc" in name for name in report.mismatched)
    assert report.unexpected and all(".1." in name for name in report.unexpected)
    assert f"  mismatched: {report.mismatched[0]}" in text and "  unexpected: " in text
    assert f"and {len(report.unexpected) - 5} more" in text and "missing" not in text
    assert set(start_from(make(seed=3), model).missing) == set(report.unexpected)


def test_another_model_is_refused_in_one_line():
    with pytest.raises(UserError, match="init_weights is a different model: only") as error:
        start_from(make("dim=64"), make())
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("field", ["decoder_norm", "num_heads"])
def test_weights_that_fit_but_mean_something_else_are_refused(field):
    given, model = make(seed=1), make(seed=2)
    other = {"decoder_norm": "post", "num_heads": 2 * model.config.num_heads}[field]
    given.config = replace(given.config, **{field: other})
    with pytest.raises(UserError, match=f"its {field} is {other}, here it is"):
        start_from(model, given)


def test_what_was_taken_survives_the_file(tmp_path):
    given, model = make(seed=1), make("num_bins=200", names={1: "blue"}, seed=2)
    save_model(given, tmp_path / "w.safetensors")
    other = make("num_bins=200", names={1: "blue"}, seed=2)
    start_from(model, given)
    start_from(other, load_model(tmp_path / "w.safetensors"))
    assert torch.equal(table(model), table(other))


def test_fine_tuning_on_other_classes_is_one_command(demo_set, tmp_path, tiny_weights, capsys):
    more = [f"coco_root={demo_set}", f"runs_dir={tmp_path}", f"init_weights={tiny_weights}"]
    names = Categories.from_json(load_model(tiny_weights).meta["categories"]).names
    wanted = ",".join(sorted(names.values())[-2:])
    more += [f"classes={wanted}", "img_size=96", "max_objects=4", "num_bins=200", "lr=0"]
    more += ["max_steps=1", "eval_limit=1", "batch_size=2"]
    run_dir = train(snapshot(CFG, [*TINY, *more]), ["detection"])
    assert "start from" in capsys.readouterr().err
    after = load_model(run_dir / "last.safetensors")
    for name in wanted.split(","):
        assert torch.equal(class_row(after, name), class_row(load_model(tiny_weights), name))
