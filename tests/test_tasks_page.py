"""docs/tasks.md is true: its table, its pictures, and its example of a fifth task."""

import json
import re
import sys
from types import ModuleType

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

import dataset.tasks
import infer.tasks
import tokenizer.tasks
import tokenizer.vocabulary
from dataset import check_dataset
from docs import draw_sequences
from infer import evaluate
from models import load_model
from tests.conftest import ROOT
from tokenizer.vocabulary import Vocabulary
from train import train_multi_task
from utils.errors import UserError

PAGE = (ROOT / "docs" / "tasks.md").read_text()
PICTURES = re.findall(r"!\[.*?\]\(\.\./(images/\S+)\)", PAGE)
BLOCKS = re.findall(r"```python\n# (\S+)\.py\n(.*?)```", PAGE, re.DOTALL)


def test_ids_of_the_page_are_those_of_the_vocabulary():
    v = Vocabulary(num_text=10)
    rows = dict(re.findall(r"^\| (\S.*?) \| (.*?) \|$", PAGE, re.MULTILINE))
    assert [rows[str(i)][:5] for i in (v.pad, v.fake)] == ["paddi", "the f"]
    prompts = {task: v.prompts[task] for task in draw_sequences.DRAWINGS}
    assert f"| {', '.join(map(str, prompts.values()))} | prompts: {', '.join(prompts)} |" in PAGE
    starts = {int(key.split()[0]) for key in rows if " + " in key}
    assert starts == {v.class0, v.coord0, v.text0}
    assert {str(v.separator), str(v.invisible)} <= set(rows)


def test_pictures_are_there_and_small():
    assert [f"images/sequence_{task}.png" for task in draw_sequences.DRAWINGS] == PICTURES
    for name in PICTURES:
        assert (ROOT / name).stat().st_size < 150_000


def test_the_script_draws_them(tmp_path):
    draw_sequences.main(["--out", str(tmp_path)])
    for name in PICTURES:
        again, shown = (Image.open(p) for p in (tmp_path / name.split("/")[1], ROOT / name))
        assert again.size == shown.size
        difference = np.asarray(again.convert("L"), int) - np.asarray(shown.convert("L"), int)
        assert np.abs(difference).mean() < 6, "run docs/draw_sequences.py again"


@pytest.fixture
def fifth_task(monkeypatch):
    """The project with the example of the page in it, and without it afterwards."""
    names = (*tokenizer.vocabulary.TASK_NAMES, "pointing")
    known = tokenizer.vocabulary.TASK_NAMES
    for module in list(sys.modules.values()):
        if getattr(module, "__dict__", {}).get("TASK_NAMES") is known:  # and who imports it
            monkeypatch.setattr(module, "TASK_NAMES", names)
    for registry in (
        tokenizer.tasks.TOKENIZERS,
        dataset.tasks.TASKS,
        infer.tasks.EVALUATIONS,
    ):
        monkeypatch.setitem(registry, "pointing", None)
    for path, code in BLOCKS:
        module = sys.modules.get(path.replace("/", "."))
        if module is None:
            module = ModuleType(path.replace("/", "."))
            module.__file__ = str(ROOT / f"{path}.py")
            monkeypatch.setitem(sys.modules, module.__name__, module)
            space = module.__dict__
        else:
            space = dict(module.__dict__)  # what an entry defines goes away again
        exec(compile(code, f"docs/tasks.md: {path}.py", "exec"), space)
    return {path: sys.modules[path.replace("/", ".")] for path, _ in BLOCKS}


def test_the_fifth_task_is_whole(fifth_task):
    assert list(fifth_task) == [
        "tokenizer/pointing",
        "tokenizer/tasks",
        "dataset/coco_pointing",
        "dataset/tasks",
        "infer/pointing",
        "infer/tasks",
        "train/train_coco_pointing",
        "infer/infer_single_image_pointing",
    ]
    for code in (code for _, code in BLOCKS):
        assert max(map(len, code.splitlines())) <= 100


def test_the_tokenizer_of_the_fifth_task_keeps_the_rules(fifth_task):
    vocab, size, rng = Vocabulary(), (100, 200), np.random.default_rng(0)
    tok = fifth_task["tokenizer/pointing"].PointingTokenizer(vocab, max_points=4)
    assert tok.prompt.tolist() == [vocab.prompts["pointing"]] == [max(vocab.prompts.values())]
    points, labels = rng.uniform(0, 100, (3, 2)), np.array([7, 1, 90])
    answer = tok.encode(points, labels, size)
    found, classes, scores = tok.decode(answer, np.log(np.arange(1, 10) / 10), size)
    np.testing.assert_allclose(found, points, atol=0.5 * 200 / 999 + 1e-4)
    assert classes.tolist() == [7, 1, 90] and scores == pytest.approx([0.3, 0.6, 0.9])
    ended = torch.from_numpy(np.append(answer, vocab.pad))
    assert all(tok.allowed(ended[None, :t])[token] for t, token in enumerate(ended))
    sequence = tok.sequence(points, labels, size, rng)
    assert sorted(sequence.target[:9].tolist()) == sorted(answer.tolist())
    assert sequence.target[9:].tolist() == [0, 0, 0, 0] and sequence.weight[9:].max() < 0.11
    assert len(tok.sequence(np.zeros((9, 2)), np.ones(9, int), size, rng).target) == 13
    for _ in range(1000):  # any tokens, and those of the grammar
        tokens = rng.integers(0, vocab.size, rng.integers(0, 14))
        found, classes, scores = tok.decode(tokens, np.zeros(len(tokens)), size)
        assert ((classes > 0) & (classes < 900)).all() and len(found) == len(scores)
        assert (found >= 0).all() and (found <= [200, 100]).all()


def test_the_average_precision_of_the_fifth_task_is_that_of_ranks(fifth_task):
    def row(image_id, category_id, x, score):
        return {"image_id": image_id, "category_id": category_id, "point": [x, 0], "score": score}

    ap = fifth_task["infer/pointing"].average_precision
    truth = {1: [(5, (0, 0), 2), (5, (10, 0), 2)], 2: [(6, (0, 0), 2)], 3: []}
    rows = [row(1, 5, 1, 0.9), row(1, 5, 1, 0.8), row(1, 5, 11, 0.7), row(2, 6, 3, 0.6)]
    rows += [row(3, 5, 0, 0.5), row(2, 5, 0, 0.4), row(2, 6, 2, 0.3)]
    # hits at the ranks 1, 3 and 7; the second row is a duplicate, the fourth too far away
    assert ap(rows, truth) == pytest.approx((1 / 1 + 2 / 3 + 3 / 7) / 3)
    assert ap(rows[::-1], truth) == ap(rows, truth) and ap([], truth) == 0


def class_names(demo_set):
    data = json.loads((demo_set / "annotations" / "instances_train2017.json").read_text())
    return [row["name"] for row in data["categories"]]


def test_the_fifth_task_trains_evaluates_and_infers(
    fifth_task, multi_settings, demo_set, tmp_path, capsys
):
    settings = [*multi_settings, f"runs_dir={tmp_path}", "num_workers=0", "augment=false"]
    settings += ["epochs=120", "eval_every=120", "lr=5e-3", "train_limit=2", "batch_size=2"]
    settings += ["drop_path=0", "drop_units=0", "lr_schedule=constant"]
    run = fifth_task["train/train_coco_pointing"].main(["--set", *settings])
    weights = run / "last.safetensors"
    assert load_model(weights).meta["tasks"] == {"pointing": {"max_points": 10}}
    argv = ["--task", "pointing", "--split", "train", "--weights", str(weights)]
    evaluate.main([*argv, "--out-dir", str(tmp_path / "out"), "--set", *settings])
    ap = json.loads((tmp_path / "out" / "metrics.json").read_text())["AP"]
    assert ap > 0.3 and f"AP = {ap:.3f}" in capsys.readouterr().out
    table = pd.read_csv(tmp_path / "out" / "per_class.csv")
    assert table["class"].is_unique and set(table["class"]) == set(class_names(demo_set))
    assert table["AP"].max() > 0.3 and table["AP"].between(0, 1).all()
    image = sorted((demo_set / "train2017").iterdir())[0]
    script = fifth_task["infer/infer_single_image_pointing"]
    script.main(["--image", str(image), "--weights", str(weights), "--json"])
    (row,) = json.loads(capsys.readouterr().out)
    assert set(row) == {"image", "size", "points"} and row["points"]
    for point in row["points"]:
        assert set(point) == {"label", "score", "point"} and 0 < point["score"] <= 1
        assert 0 <= point["point"][0] <= row["size"][0] and 0 <= point["point"][1] <= row["size"][1]


def test_the_data_of_the_fifth_task_is_checked(fifth_task, demo_set, tmp_path, capsys):
    arguments = ["--task", "pointing", "--out-dir", str(tmp_path), "--set", f"coco_root={demo_set}"]
    check_dataset.main(arguments)
    assert "nothing that training would refuse" in capsys.readouterr().out
    fifth_task["dataset/coco_pointing"].CocoPointing.objects_per_image = lambda self: np.array([12])
    check_dataset.main(arguments)  # what the task advises is said
    assert (
        "pointing: 1 of 1 images have more than pointing's max_points=10" in capsys.readouterr().out
    )


def test_annotations_of_a_kind_without_a_check_are_named(fifth_task, demo_set, tmp_path, capsys):
    """A dataset class may read files of its own; then the images of the others are checked."""
    fifth_task["dataset/coco_pointing"].CocoPointing.kind = "names"
    common = ["--out-dir", str(tmp_path), "--set", f"coco_root={demo_set}"]
    with pytest.raises(UserError, match="no check for the files of pointing"):
        check_dataset.main(["--task", "pointing", *common])
    check_dataset.main(["--task", "pointing,detection", *common])
    assert "notice: no check for the files of pointing" in capsys.readouterr().err


def test_the_fifth_task_joins_the_others(fifth_task, multi_settings, tmp_path, capsys):
    settings = [*multi_settings, f"runs_dir={tmp_path}", "max_steps=1", "eval_limit=2"]
    run = train_multi_task.main(["--task", "detection,pointing", "--set", *settings])
    evaluate.main(
        ["--task", "all", "--weights", str(run / "last.safetensors")]
        + ["--out-dir", str(tmp_path / "out"), "--set", *settings]
    )
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[1:]] == ["detection", "pointing"]
