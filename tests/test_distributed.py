"""Several processes, on the CPU (gloo): together they are one process with the larger batch."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from models import load_model
from tests.processes import evaluate_case, train_case
from utils.devices import ALONE

SCRIPT = Path(__file__).parent / "processes.py"
ALL = ["detection", "segmentation", "keypoint", "captioning"]
EXACT = [
    *("drop_path=0", "drop_units=0", "epochs=10", "max_steps=10", "eval_every=10"),
    *("eval_limit=2", "eval_batch_size=1", "save_minutes=10"),
]


def start(cases: list[dict], tmp_path: Path, devices: str = "") -> list[subprocess.Popen]:
    """The processes, as torchrun starts them."""
    (tmp_path / "cases.json").write_text(json.dumps(cases))
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = str(free.getsockname()[1])
    variables = {"MASTER_ADDR": "localhost", "MASTER_PORT": port, "WORLD_SIZE": "2"}
    variables |= {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": devices}
    return [
        subprocess.Popen(
            [sys.executable, SCRIPT, tmp_path / "cases.json"],
            env=os.environ | variables | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]


def finish(processes: list[subprocess.Popen]) -> list[str]:
    try:
        return [process.communicate(timeout=600)[1] for process in processes]
    finally:
        for process in processes:
            process.kill()
            process.wait()


@pytest.fixture(scope="module")
def settings(multi_settings, tmp_path_factory):
    return [*multi_settings, *EXACT, f"runs_dir={tmp_path_factory.mktemp('runs')}"]


@pytest.fixture(scope="module")
def together(settings, multi_weights, demo_set, tmp_path_factory):
    """Name of the case -> what two processes made of it."""
    folder = tmp_path_factory.mktemp("two")
    trainings = {
        "one_task": (["detection"], []),
        "all_tasks": (ALL, []),
        "frozen": (["detection"], FROZEN),
        "fsdp": (["detection"], ["fsdp=true", "encoder=official_vit", *SMALL]),
        "ddp": (["detection"], ["encoder=official_vit", *SMALL]),
    }
    cases = {
        name: {"overrides": [*settings, "batch_size=4", *more], "tasks": tasks}
        for name, (tasks, more) in trainings.items()
    }
    drops = ["drop_units=0.2", "ema_decay=0.9", "max_steps=8"]
    for name, stop in (("in_one_go", 0), ("resumed", 5)):
        overrides = [*settings, "batch_size=4", *drops]
        cases[name] = {"overrides": overrides, "tasks": ["detection"], "stop": stop}
    for task in ALL:
        cases[f"evaluate_{task}"] = {
            "weights": str(multi_weights), "root": str(demo_set), "task": task,
        }  # fmt: skip
    cases["statistics"] = {"statistics": True}
    for name, case in cases.items():
        case["out"] = str(folder / f"{name}.json")
    processes = start(list(cases.values()), folder)
    errors = finish(processes)
    assert [process.returncode for process in processes] == [0, 0], errors
    assert errors[1].strip() == "", "rank 0 speaks for all"
    return {name: json.loads(Path(case["out"]).read_text()) for name, case in cases.items()}


FROZEN = ["freeze_encoder_steps=6"]  # of 10
SMALL = ["encoder_dim=32", "encoder_layers=2", "encoder_heads=4", "encoder_mlp_dim=64"]


def difference(one: dict, other: dict) -> float:
    assert len(one["losses"]) == len(other["losses"]) == 10
    return max(abs(a - b) for a, b in zip(one["losses"], other["losses"], strict=True))


def weights_difference(one: dict, other: dict) -> float:
    a, b = (load_model(Path(run["run_dir"]) / "last.safetensors") for run in (one, other))
    b = b.state_dict()
    return max(float((value - b[name]).abs().max()) for name, value in a.state_dict().items())


@pytest.mark.parametrize(("name", "tasks"), [("one_task", ["detection"]), ("all_tasks", ALL)])
def test_processes_and_accumulation_equal_the_larger_batch(together, settings, name, tasks):
    """2 x 4 = 1 x 8 = 4 accumulated twice, step by step, each epoch dropping 6 of 14 images."""
    large = train_case([*settings, "batch_size=8"], tasks)
    accumulated = train_case([*settings, "batch_size=4", "accumulate_steps=2"], tasks)
    print("processes", difference(together[name], large), weights_difference(together[name], large))
    print("accumulated", difference(accumulated, large), weights_difference(accumulated, large))
    assert difference(together[name], large) < 1e-5
    assert difference(accumulated, large) < 1e-5


def test_processes_thaw_the_encoder_together(together, settings):
    alone = train_case([*settings, "batch_size=8", *FROZEN], ["detection"])
    assert difference(together["frozen"], alone) < 1e-5
    assert difference(together["frozen"], together["one_task"]) > 1e-4, "it was not frozen"


def test_sharded_weights_train_as_copies_do(together):
    assert together["fsdp"]["sharded"] and not together["ddp"]["sharded"]
    print("fsdp", difference(together["fsdp"], together["ddp"]))
    assert difference(together["fsdp"], together["ddp"]) < 1e-5
    assert weights_difference(together["fsdp"], together["ddp"]) < 1e-4


def test_all_processes_evaluate_with_the_statistics_of_the_first(together):
    assert together["statistics"] == [[1, 2], [1, 1]]


def test_two_processes_resume_bit_for_bit(together):
    """With dropout and a moving average; stopped in the middle of an epoch."""
    whole, parts = together["in_one_go"], together["resumed"]
    assert len(whole["losses"]) == 8 and parts["losses"] == whole["losses"]
    for name in ("last", "last_ema"):
        paths = (Path(run["run_dir"]) / f"{name}.safetensors" for run in (whole, parts))
        one, other = (load_model(path).state_dict() for path in paths)
        assert all(torch.equal(value, other[key]) for key, value in one.items())


@pytest.fixture
def one_thread():
    """As the processes have it: sums of other threads differ in the last digit."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("task", ALL)
def test_a_shared_evaluation_is_the_whole_one(together, multi_weights, demo_set, task):
    """Row by row, draws included; 14 images in batches of 3."""
    alone = evaluate_case(str(multi_weights), str(demo_set), task, ALONE)
    assert alone["results"] and together[f"evaluate_{task}"] == json.loads(json.dumps(alone))


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("user", "the disk is full"),
        pytest.param("defect", "RuntimeError: a defect", marks=pytest.mark.slow),
    ],
)
def test_an_error_on_one_rank_ends_all(tmp_path, kind, message):
    processes = start([{"fail": kind}], tmp_path)
    first, second = finish(processes)
    assert f"error on rank 1: {message}" in first and "Traceback" not in first
    assert processes[0].returncode == 2
    assert message in second
    if kind == "user":
        assert second.strip() == f"error: {message}" and processes[1].returncode == 2


@pytest.mark.slow
def test_a_setting_that_fits_no_process_is_told_once_under_torchrun(settings, tmp_path):
    script = SCRIPT.parents[1] / "train" / "train_coco_object_detection.py"
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += ["--nproc-per-node", "2", script, "--set", *settings, "batch_size=9"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, timeout=240)
    assert done.returncode and done.stderr.count("error: batch_size=9 times 2 (processes") == 1


@pytest.mark.cuda
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices")
def test_batch_norm_goes_by_the_images_of_all_processes(settings, tmp_path):
    """The two processes see CUDA here; the convolutional encoder then equals the larger batch."""
    more = ["encoder=resnet18", "device=cuda", "amp=off"]
    case = {"overrides": [*settings, *more, "batch_size=2"], "tasks": ["detection"],
            "out": str(tmp_path / "out.json")}  # fmt: skip
    processes = start([case], tmp_path, devices="0,1")
    errors = finish(processes)
    assert [process.returncode for process in processes] == [0, 0], errors
    large = train_case([*settings, *more, "batch_size=4"], ["detection"])
    assert difference(json.loads((tmp_path / "out.json").read_text()), large) < 1e-3
