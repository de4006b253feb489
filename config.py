"""Settings. Edit this class, or override single values with `--set name=value` on any script.

Precedence: CFG < the preset (a subclass below) < the run or weight file that one starts from <
`--config FILE` < `--set`. Scripts work on a read-only snapshot; nothing in the library reads this
file. The comment of a setting says what it is; its range stands in `utils/setting_rules.py`.
"""

from pathlib import Path

ROOT = Path(__file__).resolve().parent


class CFG:
    # ---- paths -------------------------------------------------------------------------------
    coco_root: Path = ROOT / "data" / "coco"  # holds train2017/ val2017/ annotations/
    voc_root: Path = ROOT / "data" / "VOC"  # holds VOCdevkit/ (or is it)
    runs_dir: Path = ROOT / "runs"  # every run gets a new folder in here
    # what the scripts in infer/ use without --weights: weights of detection
    coco_detection_weights: Path = ROOT / "weights" / "coco_detection.safetensors"
    voc_detection_weights: Path = ROOT / "weights" / "voc_detection.safetensors"  # detection, VOC
    # weights of segmentation
    coco_segmentation_weights: Path = ROOT / "weights" / "coco_segmentation.safetensors"
    coco_captioning_weights: Path = ROOT / "weights" / "coco_captioning.safetensors"  # captioning
    coco_keypoint_weights: Path = ROOT / "weights" / "coco_keypoints.safetensors"  # of keypoints
    coco_multi_task_weights: Path = ROOT / "weights" / "coco_multi_task.safetensors"  # of all tasks
    demo_weights: Path = ROOT / "weights" / "demo.safetensors"  # used when the above are missing

    # ---- data --------------------------------------------------------------------------------
    # your dataset: a folder (or a COCO / data.yaml file) in any of the formats of docs/formats.md;
    # it takes the place of coco_root and voc_root
    data: Path | None = None
    train_json: Path | None = None  # or your COCO files by path: the one to train on
    train_images: Path | None = None  # its folder of pictures; None = look for them near it
    val_json: Path | None = None  # to validate on; None = a share of the training images
    val_images: Path | None = None  # its folder of pictures, see train_images
    test_json: Path | None = None  # for infer/evaluate.py --split test
    test_images: Path | None = None  # its folder of pictures, see train_images
    # share of the images of data and train_json that is kept for validation if they have no such
    # part; which ones depends on their names and the seed
    val_share: float = 0.2
    dataset: str = "coco"  # which dataset: "coco" | "voc"
    voc_sets: str = "2007:trainval,2012:trainval"  # VOC sets to train on: year:split[,year:split…]
    voc_eval_sets: str = "2007:test"  # VOC sets to evaluate on
    classes: tuple[str, ...] = ()  # only these categories; empty = all that the data has
    keep_empty: bool = True  # train detection on images without objects too (official: off)
    train_limit: int = 0  # only the first N training images (by id); 0 = all
    eval_limit: int = 0  # only the first N evaluation images; 0 = all
    eval_split: str = "val"  # COCO split that validation during training uses: "val" | "train"
    # show images with rare classes more often: those on a smaller share of the images; 0 = off,
    repeat_threshold: float = 0.0  # LVIS uses 0.001
    # samples that cannot be used: "refuse" = stop and name them | "skip" = leave out and count
    bad_samples: str = "refuse"
    num_workers: int = 4  # loader processes per GPU; 0 = load in the main process
    prefetch_batches: int = 2  # batches that each loader process keeps ready

    # ---- augmentation (training) ---------------------------------------------------------------
    augment: bool = True  # random scale, crop, mirror and colour; False = letterbox only
    min_scale: float = 0.3  # scale jitter: longer side / img_size, uniform between the two
    max_scale: float = 2.0  # above 1 a part of the image is cut away
    flip_prob: float = 0.5  # share of the images that are mirrored left to right
    diagonal_crops: bool = False  # one draw for both offsets of the window (official: on)
    color_jitter: float = 0.5  # strength of brightness, contrast, saturation, hue; 0 = off
    pixel_transform: str = ""  # your own albumentations pipeline, saved with A.save (JSON / YAML)

    # ---- model -------------------------------------------------------------------------------
    # any timm model, also "hf-hub:owner/name" | "local-dir:FOLDER"; a class of your own,
    # "package.module:Class"; or "official_vit" | "official_resnet" | "official_resnet_c"
    encoder: str = "deit3_small_patch16_384.fb_in22k_ft_in1k"
    encoder_stride: int | None = None  # stride of the feature map to use; None = the last one
    pretrained: bool = True  # start the encoder from timm's weights
    encoder_weights: Path | None = None  # start it from this file instead (safetensors or torch)
    # SHA-256 that this file must have; none = any, and the run records the one that it has
    encoder_weights_sha256: str | None = None
    # subtracted from images in [0, 1]; none = what the encoder was pretrained with
    image_mean: tuple[float, ...] | None = None
    image_std: tuple[float, ...] | None = None  # they are divided by this then
    init_weights: Path | None = None  # start the whole model from a weight file, or hf://owner/…
    init_weights_sha256: str | None = None  # that it must have; none = any; the run records it
    # choose budgets, steps and rates by weights and data, where they are not given; see the preset
    finetune: bool = False  # of this name
    img_size: int = 384  # side of the square model input, pixels
    resize_mode: str = "letterbox"  # "letterbox" keeps the aspect ratio, "stretch" does not
    encoder_dim: int = 768  # width; this and the next eight: the official_* encoders only
    encoder_layers: int = 12  # transformer layers of an official_* encoder
    encoder_heads: int = 12  # attention heads of each of them
    encoder_mlp_dim: int = 3072  # hidden width of their MLPs
    encoder_patch: int = 16  # official_vit: side of a patch, pixels
    encoder_positions: str = "sin_cos"  # of image tokens: "sin_cos" | "learned"
    encoder_cls_token: bool = False  # a class token in front of the image tokens
    resnet_depth: int = 50  # official_resnet*: 50 | 101 | 152 | 200
    resnet_width: float = 1.0  # multiplies the channels of the ResNet
    projection: str = "mlp"  # encoder -> decoder: "linear" | "linear_p" (+ positions) | "mlp"
    projection_mlp_ratio: int = 4  # hidden width of the projection's MLP block / dim
    projection_positions: str = "sin_cos"  # of image tokens: "sin_cos" | "learned"
    smooth_init: bool = False  # start coordinate tokens as sin-cos codes (not in the papers)
    dim: int = 512  # decoder width
    num_layers: int = 6  # layers of the decoder
    num_heads: int = 16  # attention heads of each layer
    mlp_dim: int = 2048  # hidden width of their MLPs
    max_len: int = 0  # positions of the decoder; 0 = as many as the tasks need
    decoder_positions: str = "learned"  # of the tokens: "learned" | "sin_cos"
    tie_embeddings: bool = True  # one matrix for input tokens and output logits
    output_bias: bool = True  # a bias on the output logits
    drop_path: float = 0.1  # stochastic depth: share of the blocks that a sample skips in training
    drop_units: float = 0.1  # dropout inside MLPs
    drop_attention: float = 0.0  # dropout of attention weights

    num_bins: int = 1000  # coordinate bins per axis: a coordinate is one of so many tokens

    # ---- detection ---------------------------------------------------------------------------
    max_objects: int = 100  # objects per image, 5 tokens each
    noise_objects: bool = True  # fill the object budget with noise objects in training
    class_corruption: str = "rand_n_fake_cls"  # what the decoder is shown instead of a class
    noise_weight: float = 1.0  # loss weight of a noise object's class
    eos_weight: float = 0.1  # loss weight of padding
    detection_weight: float = 1.0  # factor of its loss, if several tasks are trained
    detection_batch_size: int = 0  # its images in a step; 0 = batch_size
    top_k: int = 0  # decoding: 1 = greedy, 0 = no limit
    top_p: float = 0.4  # of the nucleus that tokens are drawn from; the papers' value
    temperature: float = 1.0  # the logits are divided by it before a draw

    # ---- segmentation ------------------------------------------------------------------------
    max_points: int = 128  # of one object's outline, 2 tokens each; longer ones are simplified
    seg_max_objects: int = 10  # objects per image and step; of more a random choice
    seg_cut_outlines: bool = False  # cut long outlines at max_points instead (official: on)
    seg_random_start: bool = True  # outlines start at a random point (official: off)
    seg_eos_weight: float = 1.0  # loss weight of padding after an outline
    seg_first_end_only: bool = False  # weigh the first padding token alone (official: off)
    seg_weigh_absent: bool = False  # weigh the padding of absent objects too (official: on)
    seg_min_scale: float = 0.3  # as min_scale and max_scale, for this task
    seg_max_scale: float = 1.0  # see seg_min_scale
    seg_crop: bool = False  # show the model the box's surroundings, not the whole image
    seg_crop_pad: float = 0.5  # what a crop adds on each side, in sides of the box
    segmentation_weight: float = 1.0  # factor of its loss, if several tasks are trained
    segmentation_batch_size: int = 0  # its images in a step; 0 = batch_size
    seg_samples: int = 8  # outlines per object, averaged
    # where masks are shown, two outlines are drawn first, and the others only where the masks of
    # these two have a lower IoU than this; 0 = always draw all
    seg_agree: float = 0.85
    eval_seg_agree: float = 0.0  # as seg_agree, in evaluations; official: 0
    seg_top_p: float = 0.8  # as top_p, for outlines
    seg_threshold: float = 0.5  # share of the samples that makes a pixel part of the mask
    seg_grammar: bool = True  # only well-formed outlines (official: off)

    # ---- keypoints ---------------------------------------------------------------------------
    keypoint_crop: float = 0.5  # what a crop adds on each side, in sides of the box
    keypoint_min_scale: float = 0.3  # as min_scale and max_scale, for this task
    keypoint_max_scale: float = 1.0  # see keypoint_min_scale
    # LEFT:RIGHT,... of the points that a mirror swaps; empty = told by their names. Without a pair
    # nothing is mirrored. NAME:NAME says that a point has no side
    keypoint_flip_pairs: tuple[str, ...] = ()
    keypoint_mask_inputs: bool = True  # hide a random share of the earlier points
    keypoint_invisible_weight: float = 0.1  # loss weight of points that are not labelled
    keypoint_weight: float = 1.0  # factor of its loss, if several tasks are trained
    keypoint_batch_size: int = 0  # its images in a step; 0 = batch_size
    keypoint_top_p: float = 0.1  # as top_p, for keypoints
    keypoint_suppress_invisible: bool = True  # every point gets a place
    keypoint_official_resampling: bool = False  # suppress "invisible" by the official rule
    # share of the points' probability in the score, the rest is the box's; none = 1, but 0.1 for
    # detected boxes (the authors' notebook)
    keypoint_score_weight: float | None = None
    keypoint_sigmas: tuple[float, ...] = ()  # of OKS: one a point, or one for all; empty = COCO's

    # ---- captioning --------------------------------------------------------------------------
    # text pieces, made by dataset/build_captioning_vocab.py; or a SentencePiece .model file, or a
    # weight file of ours that knows captions
    caption_vocab: Path = ROOT / "data" / "caption_vocab.json"
    max_caption_tokens: int = 128  # tokens of a caption with its </s>; COCO's longest need about 60
    captions_per_image: int = 5  # captions learned in one step, on one encoder pass
    caption_drop: float = 0.5  # share of the input tokens (prompt and padding too) hidden
    caption_end_weight: float = 0.1  # loss weight of </s>
    caption_pad_weight: float = 1.0  # loss weight of padding (official); 0 = </s> alone ends
    caption_min_scale: float = 0.3  # as min_scale and max_scale, for this task; never a mirror
    caption_max_scale: float = 2.0  # see caption_min_scale
    captioning_weight: float = 1.0  # factor of its loss, if several tasks are trained
    captioning_batch_size: int = 0  # its images in a step; 0 = batch_size
    caption_beams: int = 1  # more than 1 = beam search; 1 = greedy, or sampling by the next three
    caption_top_k: int = 1  # as top_k, for captions: 1 = greedy, 0 = no limit
    caption_top_p: float = 1.0  # as top_p, for captions
    caption_temperature: float = 1.0  # as temperature, for captions
    caption_length_penalty: float = 1.0  # beams rank by log-prob / length ** this

    # ---- training ----------------------------------------------------------------------------
    device: str = "auto"  # "auto" = CUDA where there is one, else "cpu"; or "cuda:1", "cpu"
    # of products of float32, also in evaluation and inference: "highest" | "high" = TF32 units of a
    # GPU, faster, three decimal digits | "medium" = bf16
    matmul_precision: str = "highest"
    seed: int = 0  # of all random numbers: weights, order, augmentation, dropout, draws of tokens
    epochs: int = 40  # passes over the training images
    max_steps: int = 0  # stop after this many optimiser steps; 0 = epochs decide
    max_minutes: float = 0.0  # stop (and save) after this time, for a quick look; 0 = no limit
    batch_size: int = 32  # images of a task on one process (GPU) at a time
    accumulate_steps: int = 1  # batches whose gradients one optimiser step adds up
    whole_epochs: bool = True  # False = official: epochs * images // batch_size + 1 steps in all
    # "xent" | "xent@SMOOTHING" | "focal@GAMMA" | "logistic@SMOOTHING" | "hl_gauss@SIGMA" (soft
    # coordinates, SIGMA in bins) | a function of your own, "package.module:function"
    loss: str = "xent"
    # "adamw" and "lamb" step as officially; or another of timm.optim's: "sgd", "adafactor", "muon"
    optimizer: str = "adamw"
    lr: float = 3e-5  # learning rate after the warm-up
    # rate by n = images of a step = batch_size * accumulate_steps * processes: "none" = lr |
    lr_scaling: str = "none"  # "linear" = lr * n / 256 | "sqrt" = lr * sqrt(n)
    # decay after the warm-up: "linear" | "cosine" | "constant" | "cosine@SHARE" | "exp@FACTOR"
    lr_schedule: str = "linear"
    warmup_epochs: float = 2.0  # epochs in which the rate grows from 0 to lr
    warmup_steps: int = 0  # replaces warmup_epochs; 0 = warmup_epochs decides
    tail_steps: int = 0  # steps at the end for which the rate stays as it is
    end_lr_factor: float = 0.01  # lr at the end / lr
    weight_decay: float = 0.05  # of AdamW, times the rate at every step
    decay_all: bool = True  # True = official: biases and norms decay too; False = matrices only
    decay_exclude: tuple[str, ...] = ()  # regular expressions: parameters that do not decay
    betas: tuple[float, float] = (0.9, 0.95)  # of optimisers that have two: gradient, its square
    encoder_lr_factor: float = 1.0  # learning rate of the encoder / lr (official: 1)
    layer_decay: float = 1.0  # rate of an encoder layer / that of the next; 1 = off (official)
    freeze: tuple[str, ...] = ()  # regular expressions: parameters that do not learn
    freeze_encoder_steps: int = 0  # first steps in which the encoder stays as it is
    freeze_batch_norm: bool = False  # the encoder's statistics stay; for trained encoders
    clip_grad: float = 0.0  # largest gradient norm; 0 or less = off (official: -1)
    # mixed precision: "auto" = on CUDA bf16, or fp16 on devices without it, on a CPU off; "off" |
    amp: str = "auto"  # "bf16" | "fp16"
    recompute_activations: bool = False  # in transformer blocks: less memory, more time
    fsdp: bool = False  # several processes share one copy of weights and optimiser state
    max_nonfinite: int = 10  # the run stops after so many steps in a row without a finite loss
    compile: bool = False  # torch.compile of the training step: minutes once, then faster steps
    num_lengths: int = 8  # on CUDA and with compile, sequences are cut to one of so many lengths
    # samples of a task of which validation measures the likelihood (val/TASK/likelihood); 0 = none
    likelihood_limit: int = 256
    eval_every: int = 1  # epochs between evaluations (the last epoch always is one)
    eval_first: bool = False  # evaluate before the first step too, as trained weights are
    save_minutes: float = 5.0  # minutes between checkpoints, within epochs too; 0 = at their ends
    save_steps: int = 0  # save at multiples of this many steps as well; 0 = time alone
    keep_checkpoints: int = 2  # newest checkpoints that are kept: last.ckpt, last-1.ckpt, ...
    early_stop_patience: int = 0  # end after so many evaluations without a better one; 0 = never
    ema_decay: float = 0.0  # moving average of the weights, evaluated and kept; 0 = off, or 0.9999
    log_every: int = 20  # steps between points of the curves, which are means over so many steps
    # where curves and pictures go beside the run folder, with commas: "tensorboard" | "wandb" |
    logger: str = "tensorboard"  # "trackio" | "none"

    # ---- evaluation and inference --------------------------------------------------------------
    # functions of your own, "package.module:function", whose figures an evaluation adds
    metrics: tuple[str, ...] = ()
    eval_batch_size: int = 16  # images that are evaluated at a time
    # what scripts in infer/ compute in: "float32" | "bfloat16" | "int8" = weights of the decoder
    infer_dtype: str = "float32"
    # how tokens are decoded: "auto" = native on a CPU with a C++ compiler, else plain | "plain" |
    # "native" = C++, compiled once | "static" = fixed shapes, on a GPU one CUDA graph per token |
    # "compiled" = that and torch.compile, also of the encoder (not for validation during training)
    decode_mode: str = "auto"
    # compute in bfloat16 (amp, infer_dtype) on a CPU without units for it: 15 to 30 times slower
    emulate_bfloat16: bool = False
    score_threshold: float = 0.3  # least score of objects shown to people; evaluation keeps all
    # where objects are shown, detection ends after so many in a row that score below stop_score (or
    # below score_threshold, if that is lower); 0 = it decodes max_objects in any case
    stop_objects: int = 2
    stop_score: float = 0.05  # see stop_objects
    eval_stop_objects: int = 0  # as stop_objects, in evaluations, where low scores count, too


class VocCFG(CFG):
    """Pascal VOC, and any other dataset in its layout."""

    dataset = "voc"


class DemoCFG(CFG):
    """The synthetic demo set and the small model that `weights/demo.safetensors` holds.

    Small enough to learn from scratch on a CPU: few tokens of image and answer, few bins.
    """

    coco_root = ROOT / "data" / "demo"
    voc_root = ROOT / "data" / "demo"
    voc_sets = "2012:train"
    voc_eval_sets = "2012:val"
    num_workers = 2
    encoder = "resnet18"
    encoder_stride = 16
    pretrained = False
    img_size = 128
    projection_positions = "learned"
    smooth_init = True
    dim = 256
    num_layers = 3
    num_heads = 8
    mlp_dim = 1024
    drop_path = 0.0
    drop_units = 0.0
    num_bins = 160
    max_objects = 8
    caption_vocab = ROOT / "data" / "demo_caption_vocab.json"
    max_caption_tokens = 24
    caption_min_scale = 0.7
    caption_max_scale = 1.0
    min_scale = 0.7
    max_scale = 1.4
    color_jitter = 0.0
    batch_size = 16
    epochs = 26
    warmup_epochs = 0.5
    lr = 1e-3
    lr_schedule = "cosine"
    clip_grad = 1.0
    eval_every = 4


class DemoMultiTaskCFG(DemoCFG):
    """All four tasks of the demo set in one model, started from weights that know detection."""

    max_points = 16
    seg_max_objects = 4
    seg_random_start = False
    seg_first_end_only = True
    seg_crop = True
    seg_crop_pad = 0.25
    seg_min_scale = keypoint_min_scale = 0.8
    caption_drop = 0.1
    caption_pad_weight = 0.0
    detection_batch_size = 6
    segmentation_batch_size = keypoint_batch_size = captioning_batch_size = 10
    segmentation_weight = keypoint_weight = 2.0
    captioning_weight = 3.0
    freeze_batch_norm = True
    epochs = 8
    warmup_epochs = 0.2
    lr = 6e-4
    eval_every = 1


class DemoVocCFG(DemoCFG):
    """The demo set in its VOC layout."""

    dataset = "voc"


class FinetuneCFG(CFG):
    """Your own data, from trained weights: `--set data=FOLDER init_weights=FILE`.

    The weights say what the model is. Budgets, steps and rates are chosen by data and weights
    (`train/init_weights.py`) and named; what you give with `--set` stays.
    """

    finetune = True
    drop_path = drop_units = 0.0
    min_scale, max_scale, color_jitter = 0.6, 1.5, 0.3
    seg_min_scale = keypoint_min_scale = 0.7
    batch_size = 16
    lr_schedule, end_lr_factor = "cosine", 0.02
    encoder_lr_factor = 0.3
    freeze_batch_norm = True  # a small batch has poor statistics
    clip_grad = 1.0
    ema_decay = 0.999
    num_workers = 2


# Sources: [D] google-research/pix2seq configs/config_det_finetune.py, [M] config_multi_task.py,
# [B] config_base.py, [I] the authors in issue 3 of that repository; of Pix2Seq (arXiv 2109.10852)
# as quoted by others: [Q] README of Sharpiless/Pix2seq-mmdetection, [S] gaopengcuhk/Stable-Pix2Seq,
# issue 4, [N] paper_notes/pix2seq.md of patrick-llgc/Learning-Deep-Learning.


class DetFinetuneCFG(CFG):
    """COCO detection from Objects365 weights, as the authors do it: ViT-B, 640 px, 44.2 AP.

    Needs `download/download_official_weights.sh obj365_vit_b_640`. Values that are those of `CFG`
    stand here too, so that the recipe is whole.
    """

    init_weights = ROOT / "weights" / "obj365_vit_b_640.safetensors"  # [D] pretrained_ckpt
    encoder = "official_vit"  # [D] encoder_variant vit-b
    pretrained = False
    img_size = 640  # [D]
    max_len = 512  # [D] max_seq_len
    encoder_layers, encoder_dim, encoder_mlp_dim, encoder_heads = 12, 768, 3072, 12  # [B]
    num_layers, dim, mlp_dim, num_heads = 6, 512, 2048, 16  # [B]
    drop_path, drop_units, drop_attention = 0.1, 0.1, 0.0  # [D]
    num_bins, max_objects = 1000, 100  # [D]
    noise_weight, eos_weight = 1.0, 0.1  # [D]
    class_corruption = "rand_n_fake_cls"  # [D]
    min_scale, max_scale, color_jitter = 0.3, 2.0, 0.0  # [D]
    loss, optimizer = "xent", "adamw"  # [D]
    keep_empty = False  # their training drops images without an object
    lr, lr_schedule, lr_scaling = 3e-5, "linear", "none"  # [D]
    end_lr_factor, warmup_epochs = 0.01, 2.0  # [D]
    weight_decay, decay_all, betas = 0.05, True, (0.9, 0.95)  # [D]; all decay: their optimiser
    clip_grad = 0.0  # [D] global_clipnorm -1
    batch_size, epochs, whole_epochs = 32, 40, False  # [D]; steps as run.py counts them
    top_k, top_p, temperature = 0, 0.4, 1.0  # [D]


class MultiTaskCFG(DetFinetuneCFG):
    """All four tasks at once, as the authors do it: ViT-B, 640 px; [M] is [D] but for these."""

    lr, warmup_epochs = 1e-4, 10.0  # [M]
    batch_size, epochs = 128, 100  # [M]; images of each task in a step
    detection_weight = segmentation_weight = keypoint_weight = captioning_weight = 1.0  # [M]
    seg_random_start, seg_weigh_absent = False, True  # [M]


class MultiTaskWeightedCFG(MultiTaskCFG):
    """Loss weights ascribed to Pix2SeqV2 (arXiv 2206.07669): unverified, the code has 1 for all."""

    detection_weight, segmentation_weight = 0.1782, 0.7128
    captioning_weight, keypoint_weight = 0.099, 0.01


class FromScratchCFG(DetFinetuneCFG):
    """COCO detection without other data: ResNet-50, 1333 px, 300 epochs.

    43.0 AP in the paper [Q]; with the published code the authors expect about 42 [I]. Not published
    as a config: what has no mark is that of fine-tuning. [S] found no lr above 1e-3 to be stable.
    """

    init_weights = None
    encoder = "official_resnet"  # [Q]
    resnet_depth = 50
    encoder_layers, encoder_dim, encoder_mlp_dim, encoder_heads = 6, 256, 1024, 8  # [B] resnet
    num_layers, dim, mlp_dim, num_heads = 6, 256, 1024, 8  # [B] resnet
    img_size = 1333  # [I]
    num_bins = 2000  # [N]
    batch_size, epochs = 128, 300  # [Q]
    lr, drop_path = 3e-3, 0.1  # [S]
    warmup_epochs = 10.0  # as [M]


PRESETS: dict[str, type[CFG]] = {
    "default": CFG,
    "voc": VocCFG,
    "demo": DemoCFG,
    "demo_multi_task": DemoMultiTaskCFG,
    "demo_voc": DemoVocCFG,
    "finetune": FinetuneCFG,
    "det_finetune": DetFinetuneCFG,
    "multi_task": MultiTaskCFG,
    "multi_task_weighted": MultiTaskWeightedCFG,
    "from_scratch": FromScratchCFG,
}
