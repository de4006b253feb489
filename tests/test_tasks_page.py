"""docs/tasks.md is true: its table, its pictures, and its example of a fifth task."""

import json
import re
import sys
from types import ModuleType

import numpy as np
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
    names = (*tokenizer.vocabulary.TASKS, "naming")
    known = tokenizer.vocabulary.TASKS
    for module in list(sys.modules.values()):
        if (
            getattr(module, "__dict__", {}).get("TASKS") is known
        ):  # the vocabulary, and scripts that import it
            monkeypatch.setattr(module, "TASKS", names)
    for registry in (
        tokenizer.tasks.TOKENIZERS,
        dataset.tasks.TASKS,
        infer.tasks.EVALUATIONS,
    ):
        monkeypatch.setitem(registry, "naming", None)
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
        "tokenizer/naming",
        "tokenizer/tasks",
        "dataset/coco_naming",
        "dataset/tasks",
        "infer/naming",
        "infer/tasks",
        "train/train_coco_naming",
        "infer/infer_single_image_naming",
    ]
    for code in (code for _, code in BLOCKS):
        assert max(map(len, code.splitlines())) <= 100


def test_the_tokenizer_of_the_fifth_task_keeps_the_rules(fifth_task):
    vocab = Vocabulary()
    tok = fifth_task["tokenizer/naming"].NamingTokenizer(vocab, max_classes=4)
    assert tok.prompt.tolist() == [vocab.prompts["naming"]] == [max(vocab.prompts.values())]
    labels = np.array([7, 1, 7, 90])
    np.testing.assert_array_equal(tok.decode(tok.encode(labels)), [1, 7, 90])
    answer = torch.from_numpy(np.append(tok.encode(labels), vocab.pad))
    assert all(tok.allowed(answer[None, :t])[token] for t, token in enumerate(answer))
    sequence = tok.sequence(labels)
    assert sequence.target.tolist() == [101, 107, 190, 0, 0]
    assert sequence.weight.tolist() == pytest.approx([1, 1, 1, 0.1, 0.1])
    rng = np.random.default_rng(0)
    for _ in range(1000):
        found = tok.decode(rng.integers(0, vocab.size, rng.integers(0, 9)))
        assert ((found > 0) & (found < 900)).all()


def test_the_fifth_task_trains_evaluates_and_infers(
    fifth_task, multi_settings, demo_set, tmp_path, capsys
):
    settings = [*multi_settings, f"runs_dir={tmp_path}", "num_workers=0", "augment=false"]
    settings += ["epochs=80", "eval_every=80", "lr=1e-2", "train_limit=4"]
    settings += ["drop_path=0", "drop_units=0", "lr_schedule=constant"]
    run = fifth_task["train/train_coco_naming"].main(["--set", *settings])
    weights = run / "last.safetensors"
    assert load_model(weights).meta["tasks"] == {"naming": {"max_classes": 10}}
    argv = ["--task", "naming", "--split", "train", "--weights", str(weights)]
    evaluate.main([*argv, "--out-dir", str(tmp_path / "out"), "--set", *settings])
    f1 = json.loads((tmp_path / "out" / "metrics.json").read_text())["F1"]
    assert f1 > 0.8 and f"F1 = {f1:.3f}" in capsys.readouterr().out
    image = sorted((demo_set / "train2017").iterdir())[0]
    script = fifth_task["infer/infer_single_image_naming"]
    script.main(["--image", str(image), "--weights", str(weights), "--json"])
    (row,) = json.loads(capsys.readouterr().out)
    assert set(row) == {"image", "size", "classes"} and row["classes"]


def test_the_data_of_the_fifth_task_is_checked(fifth_task, demo_set, tmp_path, capsys):
    arguments = ["--task", "naming", "--out-dir", str(tmp_path), "--set", f"coco_root={demo_set}"]
    check_dataset.main(arguments)
    assert "nothing that training would refuse" in capsys.readouterr().out


def test_annotations_of_a_kind_without_a_check_are_named(fifth_task, demo_set, tmp_path, capsys):
    """A dataset class may read files of its own; then the images of the others are checked."""
    fifth_task["dataset/coco_naming"].CocoNaming.kind = "names"
    common = ["--out-dir", str(tmp_path), "--set", f"coco_root={demo_set}"]
    with pytest.raises(UserError, match="no check for the files of naming"):
        check_dataset.main(["--task", "naming", *common])
    check_dataset.main(["--task", "naming,detection", *common])
    assert "notice: no check for the files of naming" in capsys.readouterr().err


def test_the_fifth_task_joins_the_others(fifth_task, multi_settings, tmp_path, capsys):
    settings = [*multi_settings, f"runs_dir={tmp_path}", "max_steps=1", "eval_limit=2"]
    run = train_multi_task.main(["--task", "detection,naming", "--set", *settings])
    evaluate.main(
        ["--task", "all", "--weights", str(run / "last.safetensors")]
        + ["--out-dir", str(tmp_path / "out"), "--set", *settings]
    )
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[1:]] == ["detection", "naming"]
