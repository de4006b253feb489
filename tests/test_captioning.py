"""Captioning end to end: source, augmentation, training, decoding, scores, scripts."""

import json
import shutil

import numpy as np
import pytest
import torch

from config import CFG
from dataset import build_captioning_vocab
from dataset.batch import trim
from dataset.coco_captioning import CocoCaptions
from dataset.loader import build_train_loader
from dataset.tasks import build_source, build_train_set
from infer import captioning, evaluate, infer_single_image_caption, infer_single_image_multi_task
from infer.batches import EvalLoop
from infer.captioning import CaptionOptions
from infer.predictor import Predictor
from models import load_model
from tests.conftest import TINY
from tokenizer.captioning import CaptionTokenizer
from tokenizer.text import TextTokenizer
from tokenizer.vocabulary import Vocabulary
from train import train_coco_img_captioning
from train.engine import train
from utils.cli import snapshot
from utils.errors import UserError


@pytest.fixture(scope="module")
def vocab_file(tmp_path_factory, demo_set):
    out = tmp_path_factory.mktemp("vocab") / "captions.json"
    build_captioning_vocab.main(["--set", f"coco_root={demo_set}", "--out", str(out)])
    return out


@pytest.fixture(scope="module")
def settings(demo_set, vocab_file, tmp_path_factory):
    runs = tmp_path_factory.mktemp("runs")
    paths = [f"coco_root={demo_set}", f"caption_vocab={vocab_file}", f"runs_dir={runs}"]
    return [*TINY, *paths, "max_caption_tokens=24"]


@pytest.fixture(scope="module")
def weights(settings):
    run_dir = train_coco_img_captioning.main(["--set", *settings, "max_steps=2"])
    return run_dir / "last.safetensors"


@pytest.fixture(scope="module")
def predictor(weights):
    return Predictor(weights)


def tokenizer(vocab_file, **options):
    text = TextTokenizer.load(vocab_file)
    return CaptionTokenizer(Vocabulary(num_text=text.size), text, 24, **options)


# ---- data ------------------------------------------------------------------------------------


def test_every_image_comes_with_its_captions(demo_set):
    source = CocoCaptions(demo_set, "train")
    content = json.loads((demo_set / "annotations" / "captions_train2017.json").read_text())
    assert len(source) == 14 and source.image_ids.tolist() == sorted(source.image_ids)
    for i in (0, 5):
        sample = source[i]
        rows = [r for r in content["annotations"] if r["image_id"] == sample.image_id]
        assert sample.captions == [row["caption"] for row in rows] == source.captions(i)
        assert sample.image.shape[:2] == sample.orig_size and len(sample.captions) == 5
        assert source.references[sample.image_id] == sample.captions
    assert CocoCaptions(demo_set, limit=2).image_ids.tolist() == source.image_ids[:2].tolist()


@pytest.fixture
def damaged(demo_set, tmp_path):
    """Writes a captions file with these annotations beside the training images."""
    path = demo_set / "annotations" / "captions_train2017.json"
    content = json.loads(path.read_text())

    def write(rows):
        path = tmp_path / "set" / "annotations" / "captions_train2017.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps({**content, "annotations": rows}))
        images = tmp_path / "set" / "train2017"
        if not images.exists():
            images.symlink_to(demo_set / "train2017")
        return {"root": tmp_path / "set"}

    return content, write


def test_images_without_captions_and_captions_without_text_are_left_out(damaged):
    content, write = damaged
    ids = [row["id"] for row in content["images"]][:3]
    texts = [(ids[0], " one \n"), (ids[0], "   "), (ids[1], ""), (ids[2], "two"), (10**6, "three")]
    rows = [{"id": n, "image_id": i, "caption": text} for n, (i, text) in enumerate(texts)]
    source = CocoCaptions(**write(rows))
    assert source.references == {ids[0]: ["one"], ids[2]: ["two"]}
    with pytest.raises(UserError, match="no caption"):
        CocoCaptions(**write([]))


@pytest.mark.parametrize(
    "row", [{"id": 7, "image_id": 1, "caption": 3}, {"id": 7, "image_id": "a", "caption": "text"}]
)
def test_annotations_of_another_kind_are_refused(damaged, row):
    with pytest.raises(UserError, match="annotation 7 of image .*must be"):
        CocoCaptions(**damaged[1]([row]))
    with pytest.raises(UserError, match="need a COCO captions file"):
        CocoCaptions(**damaged[1]([{"id": 7, "image_id": 1}]))


def test_captions_have_coco_alone(demo_set):
    with pytest.raises(UserError, match="dataset of captioning must be one of"):
        build_source("captioning", "voc", demo_set, "2012:train")
    assert len(build_source("captioning", "coco", demo_set, "train", classes=["ball"])) == 14


def test_training_never_mirrors(demo_set, vocab_file):
    """Earlier code did, under captions that say left and right."""
    source, tok = CocoCaptions(demo_set, "train"), tokenizer(vocab_file)
    train_set = build_train_set("captioning", source, tok, (64, 64), seed=0)
    geometries = [train_set.sample(epoch, 0)[0].geometry for epoch in range(40)]
    assert not any(geometry.flip for geometry in geometries)
    assert len({geometry.resized for geometry in geometries}) > 20, "the scale does jitter"


def test_a_batch_holds_five_sequences_per_image(demo_set, vocab_file):
    source = CocoCaptions(demo_set, "train")
    for pad_weight, wanted in ((1.0, 24), (0.0, None)):
        tok = tokenizer(vocab_file, drop=0.0, pad_weight=pad_weight)
        train_set = build_train_set("captioning", source, tok, (64, 64), seed=0, augment=False)
        batch = next(iter(build_train_loader(train_set, batch_size=4, num_workers=0)))
        assert batch.images.shape[0] == 4 and batch.input_tokens.shape[:2] == (4, 5)
        longest = int((batch.target_tokens == tok.eos_id).int().argmax(-1).max()) + 1
        assert batch.target_tokens.shape[2] == (wanted or longest) and longest < 24
        by_id = source.references
        for i, image_id in enumerate(batch.image_ids):
            said = {tok.decode(row) for row in batch.target_tokens[i].numpy()}
            assert said == set(by_id[image_id])


def test_a_tail_without_weight_is_cut_and_changes_no_loss(weights):
    model, rng = load_model(weights), np.random.default_rng(0)
    batch = {
        "input_tokens": rng.integers(0, 3000, (2, 5, 20)),
        "target_tokens": rng.integers(0, 3000, (2, 5, 20)),
        "token_weights": np.zeros((2, 5, 20), np.float32),
    }
    assert trim(batch) is batch
    batch["token_weights"][1, 3, 6] = 1
    short = trim(batch)
    assert {array.shape for array in short.values()} == {(2, 5, 7)}
    images = torch.rand(2, 3, 64, 64)
    with torch.no_grad():
        whole, part = (
            model(images, torch.from_numpy(rows["input_tokens"])).reshape(
                *rows["token_weights"].shape, -1
            )[rows["token_weights"] > 0]
            for rows in (batch, short)
        )
    torch.testing.assert_close(part, whole)


# ---- training --------------------------------------------------------------------------------


def test_the_encoder_runs_once_for_all_captions(weights, demo_set, vocab_file):
    from train.loss import batch_loss

    model = load_model(weights)
    source = CocoCaptions(demo_set, "train")
    train_set = build_train_set("captioning", source, tokenizer(vocab_file), (64, 64), seed=0)
    batch = next(iter(build_train_loader(train_set, batch_size=4, num_workers=0)))
    shapes = []
    hook = model.encoder.register_forward_hook(lambda _, args, __: shapes.append(args[0].shape))
    batch_loss(model, batch)
    hook.remove()
    assert shapes == [(4, 3, 64, 64)]


def test_it_learns_to_say_what_it_was_shown(settings, demo_set):
    more = "augment=false caption_drop=0 train_limit=2 batch_size=2 dim=64 mlp_dim=128 lr=3e-3 "
    more += "max_steps=150 epochs=150 eval_every=150 eval_split=train caption_pad_weight=0 "
    more += "drop_path=0 drop_units=0 caption_end_weight=1 log_every=50"
    run_dir = train(snapshot(CFG, [*settings, *more.split()]), ["captioning"])
    metrics = json.loads((run_dir / "best" / "metrics.json").read_text())
    assert next(iter(metrics)) == "CIDEr" and metrics["BLEU-4"] > 0.99, metrics
    rows = json.loads((run_dir / "best" / "results.json").read_text())
    references = CocoCaptions(demo_set, "train", limit=2).references
    assert [row["image_id"] for row in rows] == list(references)
    assert all(row["caption"] in references[row["image_id"]] for row in rows)


def test_weights_alone_are_enough(weights, demo_set, tmp_path):
    """No vocabulary file is needed, and nothing is unpickled (earlier code: `vocab.pkl`)."""
    copy = tmp_path / "w.safetensors"
    shutil.copy(weights, copy)
    predictor = Predictor(copy)
    assert predictor.vocab.num_text == predictor.tokenizer("captioning").text.size
    assert predictor.model.config.vocab_size == predictor.vocab.size < 3600
    found = predictor.caption(CocoCaptions(demo_set, "val")[0].image)
    assert len(found) == 1 and found.texts[0] and 0 < found.scores[0] <= 1


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("caption_vocab=/nowhere.json", "make one with dataset/build_captioning_vocab.py"),
        ("max_caption_tokens=1", "max_caption_tokens must be at least 2"),
        ("caption_drop=1", "caption_drop must be at least 0 and below 1"),
        ("caption_beams=0", "caption_beams must be at least 1"),
    ],
)
def test_what_cannot_work_is_one_line(settings, override, message):
    with pytest.raises(UserError, match=message) as error:
        train(snapshot(CFG, [*settings, "max_steps=1", override]), ["captioning"])
    assert "\n" not in str(error.value)


# ---- inference -------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def images(demo_set):
    source = CocoCaptions(demo_set, "val")
    return [source[i].image for i in range(3)]


def test_greedy_is_what_generate_says(predictor, images):
    tok, model = predictor.tokenizer("captioning"), predictor.model
    found = predictor.caption(images)
    for image, captions in zip(images, found, strict=True):
        memory = predictor.encode([torch.from_numpy(image).permute(2, 0, 1)]).memory
        tokens, log_probs = model.generate(
            memory,
            torch.from_numpy(tok.prompt)[None],
            max_new_tokens=tok.max_new_tokens,
            eos_id=tok.eos_id,
            allowed=tok.allowed,
        )
        row = tokens[0].tolist()
        length = row.index(tok.eos_id) + 1 if tok.eos_id in row else len(row)
        assert captions.texts == [tok.decode(tokens[0].numpy())]
        score = log_probs[0, :length].mean().exp().item()
        assert captions.scores[0] == pytest.approx(score, rel=1e-4)


def test_several_captions_differ_and_come_best_first(predictor, images):
    for found in predictor.caption(images, CaptionOptions(num_captions=3)):
        assert len(found) == 3 and (np.diff(found.scores) <= 0).all()
        assert len(set(found.texts)) == 3
    wide = predictor.caption(images, CaptionOptions(num_beams=5))
    assert all(len(found) == 1 for found in wide)


def test_sampling_repeats_with_its_seed(predictor, images):
    def draw(seed):
        options = CaptionOptions(num_captions=4, top_k=0, temperature=2.0, seed=seed)
        return [found.texts for found in predictor.caption(images, options)]

    assert draw(0) == draw(0) != draw(1)
    assert all(len(set(texts)) == 4 for texts in draw(0))


def test_one_encoder_pass_serves_all_captions(predictor, images):
    calls = []
    hook = predictor.model.encoder.register_forward_hook(lambda *_: calls.append(1))
    predictor.caption(images, CaptionOptions(num_captions=4))
    predictor.caption(images, CaptionOptions(num_captions=4, top_k=0))
    hook.remove()
    assert len(calls) == 2


def test_an_image_alone_and_in_a_batch_says_the_same(predictor, images):
    together = predictor.caption(images)
    for image, found in zip(images, together, strict=True):
        assert predictor.caption(image).texts == found.texts


def test_evaluation_scores_every_image_without_randomness(predictor, demo_set):
    """Earlier code cut random regions out of the images it evaluated."""
    source = CocoCaptions(demo_set, "val")
    reports = [captioning.evaluate(predictor, source, loop=EvalLoop(batch_size=n)) for n in (4, 1)]
    assert reports[0].results == reports[1].results
    assert [row["image_id"] for row in reports[0].results] == source.image_ids.tolist()
    assert list(reports[0].metrics) == [
        "CIDEr", "BLEU-1", "BLEU-2", "BLEU-3", "BLEU-4", "ROUGE-L",
    ]  # fmt: skip
    assert list(reports[0].per_class)[:3] == ["image_id", "caption", "CIDEr"]


def test_weights_of_another_task_say_so(tiny_weights, images):
    with pytest.raises(UserError, match="was trained for detection, not for captioning"):
        Predictor(tiny_weights).caption(images[0])


def test_the_script_prints_captions(weights, demo_set, tmp_path, capsys):
    paths = sorted((demo_set / "val2017").iterdir())
    common = ["--weights", str(weights), "--device", "cpu"]
    script = infer_single_image_caption.main
    script(["--image", str(paths[0]), *common])
    (line,) = capsys.readouterr().out.splitlines()
    script(["--image", str(paths[0]), "--num-captions", "3", *common])
    assert len(capsys.readouterr().out.splitlines()) == 3
    script(["--image", str(paths[0].parent), "--json", str(tmp_path / "all.json"), *common])
    out = capsys.readouterr().out
    rows = json.loads((tmp_path / "all.json").read_text())
    assert len(rows) == 6 and all(row["image"] in out for row in rows)
    assert rows[0]["captions"][0]["caption"] == line
    with pytest.raises(UserError, match="num-captions"):
        script(["--image", str(paths[0]), "--num-captions", "0", *common])


def test_captions_alone_have_a_table_and_neither_labels_nor_cut_outs(weights, demo_set, tmp_path):
    """The script of all tasks, with weights that find no objects."""
    argv = ["--image", str(sorted((demo_set / "val2017").iterdir())[0]), "--weights", str(weights)]
    table = tmp_path / "all.csv"
    infer_single_image_multi_task.main([*argv, "--csv", str(table)])
    assert table.read_text().startswith("image,") and table.read_text().count("\n") == 2
    for option in ("--yolo", "--crops"):
        with pytest.raises(UserError, match=f"{option} needs objects; .* does not know detection"):
            infer_single_image_multi_task.main([*argv, option, str(tmp_path / "out")])
        assert not (tmp_path / "out").exists()


def test_the_evaluation_script(weights, demo_set, tmp_path, capsys):
    evaluate.main(
        ["--task", "captioning", "--weights", str(weights), "--out-dir", str(tmp_path), "--set",
         f"coco_root={demo_set}", "num_workers=0", "device=cpu", "caption_beams=2"]
    )  # fmt: skip
    assert "CIDEr" in capsys.readouterr().out
    assert len(json.loads((tmp_path / "results.json").read_text())) == 6
    assert len((tmp_path / "per_class.csv").read_text().splitlines()) == 7
