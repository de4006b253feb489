"""Settings. Edit this class, or override single values with `--set name=value` on any script.

Precedence: CFG < the script's preset (a subclass below) < `--set`. Scripts work on a read-only
snapshot; nothing in the library reads this file.
"""

from pathlib import Path

ROOT = Path(__file__).resolve().parent


class CFG:
    # ---- paths -------------------------------------------------------------------------------
    coco_root: Path = ROOT / "data" / "coco"  # holds train2017/ val2017/ annotations/
    voc_root: Path = ROOT / "data" / "VOC"  # holds VOCdevkit/ (or is it)
    runs_dir: Path = ROOT / "runs"  # every run gets a new folder in here
    coco_detection_weights: Path = ROOT / "weights" / "coco_detection.safetensors"
    voc_detection_weights: Path = ROOT / "weights" / "voc_detection.safetensors"
    demo_weights: Path = ROOT / "weights" / "demo.safetensors"  # used when the above are missing

    # ---- data --------------------------------------------------------------------------------
    dataset: str = "coco"  # "coco" | "voc"
    voc_sets: str = "2007:trainval,2012:trainval"  # year:split[,year:split…] to train on
    voc_eval_sets: str = "2007:test"  # to evaluate on
    classes: tuple[str, ...] = ()  # only these categories; empty = all that the data has
    train_limit: int = 0  # only the first N training images (by id); 0 = all
    eval_limit: int = 0  # only the first N evaluation images; 0 = all
    eval_split: str = "val"  # COCO split that validation during training uses: "val" | "train"
    num_workers: int = 4  # loader processes per GPU; 0 = load in the main process

    # ---- augmentation (training) ---------------------------------------------------------------
    augment: bool = True  # False = letterbox only
    min_scale: float = 0.3  # scale jitter: longer side / img_size, uniform between the two
    max_scale: float = 2.0
    flip_prob: float = 0.5  # horizontal flip
    color_jitter: float = 0.5  # strength of brightness, contrast, saturation, hue; 0 = off
    pixel_transform: str = ""  # your own albumentations pipeline, saved with A.save (JSON / YAML)

    # ---- model -------------------------------------------------------------------------------
    encoder: str = "deit3_small_patch16_384.fb_in22k_ft_in1k"  # any timm model
    encoder_stride: int | None = None  # stride of the feature map to use; None = the last one
    pretrained: bool = True  # start the encoder from timm's weights
    init_weights: Path | None = None  # start the whole model from this weight file
    img_size: int = 384  # side of the square model input, pixels
    resize_mode: str = "letterbox"  # "letterbox" keeps the aspect ratio, "stretch" does not
    dim: int = 512  # decoder width
    num_layers: int = 6
    num_heads: int = 16
    mlp_dim: int = 2048
    drop_path: float = 0.1
    drop_units: float = 0.1  # dropout inside MLPs
    drop_attention: float = 0.0

    # ---- tokens ------------------------------------------------------------------------------
    num_bins: int = 1000  # coordinate bins per axis
    max_objects: int = 100  # objects per image, 5 tokens each
    noise_objects: bool = True  # fill the object budget with noise objects in training
    class_corruption: str = "rand_n_fake_cls"  # what the decoder is shown instead of a class
    noise_weight: float = 1.0  # loss weight of a noise object's class
    eos_weight: float = 0.1  # loss weight of padding

    # ---- training ----------------------------------------------------------------------------
    device: str = "auto"  # "auto" = CUDA where there is one, else "cpu"; or "cuda:1", "cpu"
    seed: int = 0
    epochs: int = 40
    max_steps: int = 0  # stop after this many optimiser steps; 0 = epochs decide
    max_minutes: float = 0.0  # stop (and save) after this time, for a quick look; 0 = no limit
    batch_size: int = 32
    lr: float = 3e-5
    lr_schedule: str = "linear"  # "linear" | "cosine" | "constant", after the warm-up
    warmup_epochs: float = 2.0
    end_lr_factor: float = 0.01  # lr at the end / lr
    weight_decay: float = 0.05
    decay_all: bool = True  # True = official: biases and norms decay too; False = matrices only
    betas: tuple[float, float] = (0.9, 0.95)
    clip_grad: float = 0.0  # largest gradient norm; 0 = off (official)
    amp: str = "auto"  # "auto" = bf16 on CUDA, off on CPU; "off" | "bf16" | "fp16"
    eval_every: int = 1  # epochs between evaluations (the last epoch always is one)
    save_minutes: float = 5.0  # time between checkpoints (at the end of an epoch); 0 = every epoch
    log_every: int = 20  # steps between points of the curves

    # ---- decoding ----------------------------------------------------------------------------
    eval_batch_size: int = 16
    top_k: int = 0  # 1 = greedy, 0 = no limit
    top_p: float = 0.4  # nucleus; the papers' value for detection
    temperature: float = 1.0
    score_threshold: float = 0.3  # of results shown to people; evaluation keeps all


class VocCFG(CFG):
    """Pascal VOC, and any other dataset in its layout."""

    dataset = "voc"


class DemoCFG(CFG):
    """The synthetic demo set and the small model that `weights/demo.safetensors` holds."""

    coco_root = ROOT / "data" / "demo"
    voc_root = ROOT / "data" / "demo"
    voc_sets = "2012:train"
    voc_eval_sets = "2012:val"
    num_workers = 2
    encoder = "resnet18"
    encoder_stride = 16
    pretrained = False
    img_size = 192
    dim = 256
    num_layers = 3
    num_heads = 8
    mlp_dim = 1024
    drop_path = 0.0
    drop_units = 0.0
    num_bins = 250
    max_objects = 10
    min_scale = 0.7
    max_scale = 1.4
    color_jitter = 0.0
    batch_size = 16
    epochs = 18
    warmup_epochs = 0.5
    lr = 5e-4
    lr_schedule = "cosine"
    clip_grad = 1.0
    eval_every = 3


class DemoVocCFG(DemoCFG):
    """The demo set in its VOC layout."""

    dataset = "voc"


PRESETS: dict[str, type[CFG]] = {
    "default": CFG,
    "voc": VocCFG,
    "demo": DemoCFG,
    "demo_voc": DemoVocCFG,
}
