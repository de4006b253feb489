"""Share a weight file on the Hugging Face hub, with a model card of what the file records.

    python weights/push.py runs/detection/…/best.safetensors owner/name
    python weights/push.py W.safetensors owner/name --metrics results/all_coco_val/metrics.json
    python weights/push.py W.safetensors owner/name --dry-run preview

The card (README.md) holds library, tags, pipeline tag and metrics for the hub, and tasks, classes,
sizes and the checksum for people. A README.md that the repository has already stays as it is. Log
in once with `hf auth login`, or set HF_TOKEN. Others then load the file by its name:

    --weights hf://owner/name/best.safetensors
"""

import argparse
import shutil
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from utils.cli import run
from utils.errors import UserError, one_line
from utils.files import (
    atomic_path,
    check_place,
    file_sha256,
    find_weight_file,
    fits,
    read_json,
    write_text_atomic,
)

PIPELINES = {  # task -> what the hub calls it; the first one that the weights know
    "detection": "object-detection",
    "segmentation": "image-segmentation",
    "keypoint": "keypoint-detection",
    "captioning": "image-to-text",
}
LIBRARY = "pix2seq-pytorch"
CLASSES_SHOWN = 100
MEGABYTE = 1e6


def main(argv=None):
    args = _parser().parse_args(argv)
    weights = find_weight_file(args.weights)
    metrics = dict(_read_metrics(path, weights) for path in args.metrics)
    card = make_card(weights, args, metrics)
    if args.dry_run is not None:
        write_locally(args.dry_run, weights, card)
    else:
        upload(args, weights, card)


def _parser() -> argparse.ArgumentParser:
    args = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    args.add_argument("weights", type=Path, metavar="WEIGHTS", help="a file or a run folder")
    args.add_argument("repo", metavar="owner/name", help="made if it is not there")
    args.add_argument(
        "--metrics",
        type=Path,
        nargs="+",
        default=[],
        metavar="FILE",
        help="metrics.json of evaluations, for the card",
    )
    args.add_argument("--license", metavar="NAME", help="as the hub calls it, such as apache-2.0")
    args.add_argument("--private", action="store_true", help="if the repository is made")
    args.add_argument(
        "--dry-run", type=Path, metavar="DIR", help="write card and file into DIR, upload nothing"
    )
    args.add_argument("--debug", action="store_true", help="show the traceback of an error")
    return args


def _read_metrics(path: Path, weights: Path) -> tuple[str, dict[str, float]]:
    """Name of an evaluation (its folder) and its numbers, without what could not be measured.

    Raises:
        UserError: it is no evaluation, or one of other weights.
    """
    values = read_json(path, "name the metrics.json of an evaluation with --metrics")
    record = values.pop("weights", None) if isinstance(values, dict) else None
    if isinstance(record, dict) and record.get("sha256") not in (None, file_sha256(weights)):
        raise UserError(
            f"{path} is about other weights ({record.get('name')}, SHA-256 "
            f"{record['sha256']}); evaluate {weights} and name its metrics.json"
        )
    if not fits(values, dict[str, float | None]) or not values:
        raise UserError(f"{path} holds no metrics; name the metrics.json of infer/evaluate.py")
    numbers = {name: value for name, value in values.items() if value is not None}
    return path.resolve().parent.name, numbers


def make_card(weights: Path, args: argparse.Namespace, metrics: dict[str, dict[str, float]]) -> str:
    """README.md of the repository: YAML for the hub, then Markdown for people.

    Raises:
        UserError: it is no weight file of ours, or no repository can have that name.
    """
    from huggingface_hub import EvalResult, ModelCardData
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    from infer.trained_model import read_meta
    from models.weights import read_header

    try:
        validate_repo_id(args.repo)
        if "/" not in args.repo:
            raise ValueError("it has no owner")
    except (HFValidationError, ValueError) as error:
        raise UserError(
            f"{args.repo!r} is not a valid owner/name of the hub: {one_line(error)}"
        ) from error
    config, meta = read_header(weights)
    record = read_meta(meta, config, str(weights))
    pipeline = next(name for task, name in PIPELINES.items() if task in record.tasks)
    results = [
        EvalResult(
            task_type=_pipeline_of(evaluation, pipeline),
            dataset_type=evaluation,
            dataset_name=evaluation,
            metric_type=name.lower(),
            metric_name=name,
            metric_value=round(value, 4),
        )
        for evaluation, numbers in metrics.items()
        for name, value in numbers.items()
    ]
    values = ModelCardData(
        library_name=LIBRARY,
        license=args.license,
        pipeline_tag=pipeline,
        tags=["pix2seq", "pytorch", *(PIPELINES[task] for task in record.tasks)],
        model_name=args.repo.split("/")[1],
        eval_results=results or None,
        metrics=sorted({result.metric_type for result in results}) or None,
    )
    return (
        f"---\n{values.to_yaml()}\n---\n\n{_describe(weights, args.repo, record, config, meta)}"
        + (_metrics_table(metrics))
    )


def _pipeline_of(evaluation: str, default: str) -> str:
    """What an evaluation measured, as its folder says it: detection_coco_val, or captioning."""
    return next((name for task, name in PIPELINES.items() if evaluation.startswith(task)), default)


def _describe(weights: Path, repo: str, record, config, meta: dict) -> str:
    """The Markdown of a card."""
    names = list(record.categories.names.values())
    classes = ", ".join(names[:CLASSES_SHOWN]) + (", …" if len(names) > CLASSES_SHOWN else "")
    height, width = config.image_size
    rows = {
        "tasks": ", ".join(record.tasks),
        "encoder": f"`{config.encoder}`, stride {config.encoder_stride or 'of its last stage'}",
        "decoder": f"{config.num_layers} layers, width {config.dim}, {config.num_heads} heads",
        "input": f"{height} x {width} pixels, {record.resize_mode}",
        "coordinates": f"{record.vocab.num_bins} bins",
        f"classes ({len(names)})": classes,
        "file": f"`{weights.name}`, {weights.stat().st_size / MEGABYTE:.1f} MB",
        "SHA-256": f"`{file_sha256(weights)}`",
    }
    for key, text in (("init_weights", "trained from"), ("encoder_weights", "encoder from")):
        origin = meta.get(key)
        if isinstance(origin, dict):
            rows[text] = f"`{origin.get('file')}`, SHA-256 `{origin.get('sha256')}`"
    table = "\n".join(f"| {name} | {_cell(value)} |" for name, value in rows.items())
    script = "infer/infer_single_image_multi_task.py"
    if list(record.tasks) == ["detection"]:
        script = "infer/infer_single_image_object_detection.py"
    name = f"hf://{repo}/{weights.name}"
    return f"""# {repo.split("/")[1]}

Weights of Pix2Seq in PyTorch: the model writes its answer as a sequence of tokens.

| | |
| --- | --- |
{table}

With a checkout of the code:

    python {script} --weights {name} --image photo.jpg

or in Python:

    from infer.predictor import Predictor
    predictor = Predictor("{name}")
"""


def _metrics_table(metrics: dict[str, dict[str, float]]) -> str:
    text = ""
    for evaluation, numbers in metrics.items():
        rows = "\n".join(f"| {_cell(name)} | {value:.4g} |" for name, value in numbers.items())
        text += f"\n## Evaluation: {evaluation}\n\n| metric | value |\n| --- | ---: |\n{rows}\n"
    return text


def _cell(text: str) -> str:
    """Text in a table: class names are a user's, and may hold anything."""
    return " ".join(text.replace("|", r"\|").replace("<", "&lt;").split())


def write_locally(folder: Path, weights: Path, card: str) -> None:
    """Writes card and weights; what is there already stays.

    Raises:
        UserError: one of the files is there, or cannot be written.
    """
    targets = folder / "README.md", folder / weights.name
    for target in targets:
        if target.exists():
            raise UserError(f"{target} is there already; name another folder with --dry-run")
    check_place(folder)
    write_text_atomic(targets[0], card)
    with atomic_path(targets[1]) as temporary:
        shutil.copyfile(weights, temporary)
    print(f"wrote {targets[0]} and {targets[1]}; nothing was uploaded")


def upload(args: argparse.Namespace, weights: Path, card: str) -> None:
    """Makes the repository if need be, and adds card and weights in one commit.

    Raises:
        UserError: not logged in, no answer, or the hub refuses.
    """
    from huggingface_hub import CommitOperationAdd, HfApi, constants
    from huggingface_hub.utils import get_token

    from utils.hub import server_problem

    if get_token() is None:
        raise UserError("you are not logged in to the hub; run: hf auth login, or set HF_TOKEN")
    problem = "HF_HUB_OFFLINE is set" if constants.HF_HUB_OFFLINE else ""
    if problem := problem or server_problem(constants.ENDPOINT):
        raise UserError(
            f"cannot upload ({problem}); --dry-run DIR writes the card without a network"
        )
    api = HfApi()
    try:
        api.create_repo(args.repo, private=args.private or None, exist_ok=True)
        files = [CommitOperationAdd(weights.name, weights)]
        if api.file_exists(args.repo, "README.md"):
            print(f"{args.repo} has a README.md: it stays as it is", file=sys.stderr)
        else:
            files.append(CommitOperationAdd("README.md", card.encode()))
        done = api.create_commit(args.repo, files, commit_message=f"Add {weights.name}")
    except Exception as error:  # of the hub, of its client
        raise UserError(
            f"the hub did not take {weights.name} for {args.repo} ({one_line(error)}); see whether "
            "your token may write there"
        ) from error
    print(f"hf://{args.repo}/{weights.name}@{done.oid}")


if __name__ == "__main__":
    run(main)
