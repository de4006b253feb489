"""Settings that a run takes from the weights it starts from, and a fine-tuning from its data.

They replace those of CFG and preset; what a person gives with `--config` and `--set` replaces them.
"""

from collections.abc import Callable, Sequence

import numpy as np
import torch

from dataset.tasks import open_source
from infer.tasks import place_of_data
from infer.trained_model import read_meta
from models import ModelConfig, build_model
from models.weights import read_header
from train.init_weights import find_init_weights, settings_of_weights
from train.settings import task_settings
from utils.cli import log

MOST_OBJECTS = 100  # as in the papers
SPARE_OBJECTS = 1.2  # budget of objects / the most of an image
IMAGES_SHOWN = 12_000  # in a run, as far as the next two allow it
EPOCHS = (8, 60)  # fewest and most
STEPS = 8  # of an epoch at least, where the images suffice
EVALUATIONS = 12  # in a run
WARMUP = 0.1  # share of the run
SMALL = 20e6  # parameters of a model that learns fast
RATES = (4e-4, 3e-5)  # of a small model, and of others (the official fine-tuning)
PATIENCE = 5  # evaluations without a better one


def start_settings(load: Callable, tasks: Sequence[str]):
    """The settings of a new run: what `init_weights` and a fine-tuning bring is below the others.

    Args:
        load: called as load(inherited=such settings, or None) -> settings.
    """
    cfg = load(inherited=None)
    if cfg.init_weights is None:
        return cfg
    inherited = settings_of_weights(cfg.init_weights)
    cfg = load(inherited=inherited)
    if cfg.finetune:
        cfg = load(inherited=inherited | pick_settings(cfg, tasks))
    return cfg


def pick_settings(cfg, tasks: Sequence[str]) -> dict[str, object]:
    """What fits these data and weights; says so in a line.

    Args:
        cfg: settings with `init_weights`; of what is given there only the data and the largest
            batch count.
    """
    file = find_init_weights(cfg.init_weights)
    config, meta = read_header(file)
    picked = _settings_of_tasks(read_meta(meta, config, str(file)).tasks, tasks)
    num_images = 0
    for task in tasks:
        source = _open(cfg, task)
        num_images = max(num_images, len(source.image_ids))
        if task == "detection":
            picked["max_objects"] = pick_budget(source.objects_per_image())
    picked |= pick_schedule(num_images, cfg.batch_size)
    picked["lr"] = RATES[0] if count_parameters(config) < SMALL else RATES[1]
    log(f"picked for these data and weights: {' '.join(f'{n}={v}' for n, v in picked.items())}")
    return picked


def pick_budget(objects_per_image: np.ndarray) -> int:
    """Objects that a sequence holds: those of the fullest image and a few more."""
    most = int(objects_per_image.max(initial=1))
    return min(max(most + 2, round(most * SPARE_OBJECTS)), MOST_OBJECTS)


def pick_schedule(num_images: int, batch_size: int) -> dict[str, object]:
    """Batch, epochs, warm-up and evaluations of a run.

    Args:
        batch_size: the largest that may be.
    """
    batch_size = max(min(batch_size, num_images // STEPS), 1)
    low, high = EPOCHS
    epochs = min(max(round(IMAGES_SHOWN / num_images), low), high)
    return {
        "batch_size": batch_size,
        "epochs": epochs,
        "warmup_epochs": round(epochs * WARMUP, 1),
        "eval_every": max(epochs // EVALUATIONS, 1),
        "early_stop_patience": PATIENCE,
    }


def count_parameters(config: ModelConfig) -> int:
    """Numbers that a model of this shape learns; none of them is allocated."""
    with torch.device("meta"):
        return sum(parameter.numel() for parameter in build_model(config).parameters())


def _settings_of_tasks(known: dict[str, dict], tasks: Sequence[str]) -> dict[str, object]:
    """How long answers are and what a crop shows, as the weights know it.

    Args:
        known: task -> settings of the tokenizer that the weights were trained with.
    """
    picked = {}
    if "segmentation" in tasks and "segmentation" in known:
        settings = known["segmentation"]
        picked |= {"max_points": settings["max_points"], "seg_crop": settings["crop"] is not None}
        if settings["crop"] is not None:
            picked["seg_crop_pad"] = settings["crop"]
    if "keypoint" in tasks and "keypoint" in known:
        picked["keypoint_crop"] = known["keypoint"]["crop"]
    if "captioning" in tasks and "captioning" in known:
        picked["max_caption_tokens"] = known["captioning"]["max_tokens"]
    return picked


def _open(cfg, task: str):
    """The images of a task to train on; what is wrong with them is said when the run opens them."""
    root, split = place_of_data(cfg, cfg.dataset, "train")
    options = {"classes": cfg.classes or None, "skip_bad": cfg.bad_samples == "skip"}
    options |= task_settings(cfg, task).train_source | {"per_object": False}
    return open_source(task, cfg.dataset, root, split, limit=cfg.train_limit or None, **options)
