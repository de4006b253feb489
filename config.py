"""Settings. Edit this class, or override single values with `--set name=value` on any script.

Precedence, lowest first: CFG, the preset (a subclass below), the settings of the run or weight file
that is loaded, `--config FILE`, `--set`. Scripts import this file and pass a read-only copy of the
settings on; of library code, only `train/script.py` imports it. The comment of a setting explains
it, and docs/write_settings.py makes docs/settings.md of the comments. Ranges:
`utils/setting_rules.py`.
"""

from pathlib import Path

ROOT = Path(__file__).resolve().parent


class CFG:
    # ---- paths -------------------------------------------------------------------------------
    # folder of a COCO dataset; it contains train2017/, val2017/ and annotations/
    coco_root: Path = ROOT / "data" / "coco"
    # folder of a Pascal VOC dataset; it contains VOCdevkit/, or it is that folder
    voc_root: Path = ROOT / "data" / "VOC"
    runs_dir: Path = ROOT / "runs"  # folder in which every training creates its run folder
    # default weights of infer_single_image_object_detection.py; used without --weights
    coco_detection_weights: Path = ROOT / "weights" / "coco_detection.safetensors"
    # default weights of infer_single_image_voc.py; used without --weights
    voc_detection_weights: Path = ROOT / "weights" / "voc_detection.safetensors"
    # default weights of infer_single_image_segmentation.py; used without --weights
    coco_segmentation_weights: Path = ROOT / "weights" / "coco_segmentation.safetensors"
    # default weights of infer_single_image_caption.py; used without --weights
    coco_captioning_weights: Path = ROOT / "weights" / "coco_captioning.safetensors"
    # default weights of infer_single_image_keypoint.py; used without --weights
    coco_keypoint_weights: Path = ROOT / "weights" / "coco_keypoints.safetensors"
    # default weights of infer_single_image_multi_task.py; used without --weights
    coco_multi_task_weights: Path = ROOT / "weights" / "coco_multi_task.safetensors"
    # weights that the inference scripts use if their default weight file does not exist
    demo_weights: Path = ROOT / "weights" / "demo.safetensors"

    # ---- data --------------------------------------------------------------------------------
    # your dataset: a folder, a COCO file or a data.yaml, in any format of docs/formats.md; it
    # replaces coco_root and voc_root
    data: Path | None = None
    train_json: Path | None = None  # COCO annotation file for training; an alternative to data
    # image folder of train_json; None = search near the annotation file
    train_images: Path | None = None
    # COCO annotation file for validation; None = split off val_share of the training images
    val_json: Path | None = None
    # image folder of val_json; None = search near the annotation file
    val_images: Path | None = None
    test_json: Path | None = None  # COCO annotation file for infer/evaluate.py --split test
    # image folder of test_json; None = search near the annotation file
    test_images: Path | None = None
    # share of the training images used for validation if data or train_json has no validation
    # part; file names and seed determine the choice
    val_share: float = 0.2
    dataset: str = "coco"  # dataset layout: "coco" = coco_root | "voc" = voc_root
    # VOC image sets for training, as YEAR:SPLIT, separated by commas
    voc_sets: str = "2007:trainval,2012:trainval"
    voc_eval_sets: str = "2007:test"  # VOC image sets for evaluation, as YEAR:SPLIT
    classes: tuple[str, ...] = ()  # use only these class names; empty = all classes of the data
    # True = train detection on images without objects, too; False = skip them (official; VOC keeps
    # them)
    keep_empty: bool = True
    train_limit: int = 0  # train on the first N images only, ordered by id; 0 = all
    eval_limit: int = 0  # evaluate the first N images only; 0 = all
    eval_split: str = "val"  # COCO split for validation during training: "val" | "train"
    # show images with rare classes more often (repeat-factor sampling): a class is rare if it
    # occurs in less than this share of the images; 0 = off; LVIS uses 0.001
    repeat_threshold: float = 0.0
    # invalid annotations and images: "refuse" = stop and list them | "skip" = leave them out and
    # print their number
    bad_samples: str = "refuse"
    num_workers: int = 4  # data loader processes per GPU; 0 = load in the main process
    prefetch_batches: int = 2  # batches that each data loader process prepares in advance

    # ---- augmentation (training) ---------------------------------------------------------------
    # True = random scale, crop, horizontal flip and colour; False = resize and pad only
    augment: bool = True
    # smallest random scale of the image: its longer side divided by img_size (detection)
    min_scale: float = 0.3
    # largest random scale of the image (detection); above 1, the image is cropped to img_size
    max_scale: float = 2.0
    flip_prob: float = 0.5  # probability of a horizontal flip
    # True = one random number for the x and y offset of the crop (official); False = two
    diagonal_crops: bool = False
    # strength of random changes of brightness, contrast, saturation and hue; 0 = off
    color_jitter: float = 0.5
    # file of your own albumentations pipeline, saved with A.save (JSON or YAML); empty = none
    pixel_transform: str = ""

    # ---- model -------------------------------------------------------------------------------
    # image encoder: a timm model name, "hf-hub:owner/name", "local-dir:FOLDER", your own class as
    # "package.module:Class", or "official_vit" | "official_resnet" | "official_resnet_c"
    encoder: str = "deit3_small_patch16_384.fb_in22k_ft_in1k"
    # stride of the encoder feature map that the decoder reads, in pixels; None = last feature map
    encoder_stride: int | None = None
    pretrained: bool = True  # initialise the encoder with the pretrained weights of timm
    # file (safetensors or torch) that initialises the encoder; None = pretrained decides
    encoder_weights: Path | None = None
    # expected SHA-256 of encoder_weights; None = no check; the run always records the checksum
    encoder_weights_sha256: str | None = None
    # RGB mean, subtracted from images in [0, 1]; None = the value of the encoder's pretraining
    image_mean: tuple[float, ...] | None = None
    # RGB standard deviation; images are divided by it after the mean is subtracted; None = as in
    # pretraining
    image_std: tuple[float, ...] | None = None
    # weight file or hf://owner/… that initialises the whole model; None = train from scratch
    init_weights: Path | None = None
    # expected SHA-256 of init_weights; None = no check; the run always records the checksum
    init_weights_sha256: str | None = None
    # choose object budget, training length and learning rates from weights and data, unless they
    # are given with --set; the preset finetune turns it on
    finetune: bool = False
    img_size: int = 384  # side of the square model input, pixels
    # "letterbox" = keep the aspect ratio and pad | "stretch" = resize both sides to img_size
    resize_mode: str = "letterbox"
    encoder_dim: int = 768  # width of an official_* encoder's transformer layers
    encoder_layers: int = 12  # number of transformer layers of an official_* encoder
    encoder_heads: int = 12  # attention heads per layer of an official_* encoder
    encoder_mlp_dim: int = 3072  # hidden width of the MLPs of an official_* encoder
    encoder_patch: int = 16  # side of a patch of official_vit, pixels
    # position embedding of the image tokens in an official_* encoder: "sin_cos" = fixed sine and
    # cosine | "learned"
    encoder_positions: str = "sin_cos"
    # put a learned class token before the image tokens of an official_* encoder
    encoder_cls_token: bool = False
    resnet_depth: int = 50  # layers of official_resnet and official_resnet_c: 50 | 101 | 152 | 200
    # channel multiplier of official_resnet and official_resnet_c
    resnet_width: float = 1.0
    # layers between encoder and decoder: "linear" = linear and LayerNorm | "linear_p" = these and a
    # position embedding | "mlp" = these and an MLP block
    projection: str = "mlp"
    projection_mlp_ratio: int = 4  # hidden width of the projection's MLP block, divided by dim
    # position embedding in the projection: "sin_cos" = fixed sine and cosine | "learned"
    projection_positions: str = "sin_cos"
    # initialise the embeddings of coordinate tokens with sine and cosine codes, so that
    # neighbouring bins begin similar (not in the papers)
    smooth_init: bool = False
    dim: int = 512  # width of the decoder
    num_layers: int = 6  # number of decoder layers
    num_heads: int = 16  # attention heads per decoder layer
    mlp_dim: int = 2048  # hidden width of the decoder's MLPs
    max_len: int = 0  # longest sequence of the decoder, tokens; 0 = what the tasks need
    # position embedding of the decoder: "learned" | "sin_cos" = fixed sine and cosine
    decoder_positions: str = "learned"
    tie_embeddings: bool = True  # use one matrix for token embeddings and output logits
    output_bias: bool = True  # add a bias to the output logits
    # stochastic depth: probability that a residual block is skipped for a sample in training; in
    # timm encoders it grows from 0 in the first block to this value in the last
    drop_path: float = 0.1
    drop_units: float = 0.1  # dropout probability inside MLPs
    drop_attention: float = 0.0  # dropout probability of attention weights

    # number of coordinate tokens; the image side is divided into this many bins
    num_bins: int = 1000

    # ---- detection ---------------------------------------------------------------------------
    max_objects: int = 100  # object budget: most objects per image, 5 tokens each
    # fill the unused part of the object budget with noise objects in training
    noise_objects: bool = True
    # class tokens that the decoder reads in training: "none" = true class | "rand_cls" = any class
    # token | "rand_n_fake_cls" = half random, half fake class | "real_n_fake_cls" = half true, half
    # fake | "real_n_rand_n_fake_cls" = half true, a quarter random, a quarter fake
    class_corruption: str = "rand_n_fake_cls"
    noise_weight: float = 1.0  # loss weight of the class token of a noise object
    eos_weight: float = 0.1  # loss weight of padding in detection (noise_objects=false)
    detection_weight: float = 1.0  # loss weight of detection in multi-task training
    detection_batch_size: int = 0  # detection images per multi-task step; 0 = batch_size
    # top-k sampling of boxes, outlines and keypoints: number of likeliest tokens to draw from; 1 =
    # greedy, 0 = no limit
    top_k: int = 0
    # nucleus sampling in detection: draw from the likeliest tokens whose total probability is this;
    # 0.4 in the papers
    top_p: float = 0.4
    # sampling of boxes, outlines and keypoints: the logits are divided by this
    temperature: float = 1.0

    # ---- segmentation ------------------------------------------------------------------------
    max_points: int = 128  # most points per outline, 2 tokens each; longer outlines are simplified
    # most objects per image and training step; a larger number is reduced by random choice
    seg_max_objects: int = 10
    # outlines of more than max_points points: True = cut off (official); False = simplified
    seg_cut_outlines: bool = False
    # True = each training outline begins at a random point; False = at the annotated one (official)
    seg_random_start: bool = True
    seg_eos_weight: float = 1.0  # loss weight of padding tokens after an outline
    # loss weight after an outline: True = on the first padding token only; False = on all
    # (official)
    seg_first_end_only: bool = False
    # images with fewer than seg_max_objects objects: give loss weight to the padding of the unused
    # sequences, too (official: True)
    seg_weigh_absent: bool = False
    # smallest random scale in segmentation training: longer side of the image / img_size
    seg_min_scale: float = 0.3
    # largest random scale in segmentation training: longer side of the image / img_size
    seg_max_scale: float = 1.0
    # model input of segmentation: True = a crop around the box; False = the whole image
    seg_crop: bool = False
    # margin on each side of that crop, as a multiple of the box side (only with seg_crop)
    seg_crop_pad: float = 0.5
    segmentation_weight: float = 1.0  # loss weight of segmentation in multi-task training
    segmentation_batch_size: int = 0  # segmentation images per multi-task step; 0 = batch_size
    seg_samples: int = 8  # outlines sampled per object; the mask is their average
    # for display, two outlines are sampled first; the rest of seg_samples is sampled only if the
    # masks of these two have a lower IoU than this; 0 = always sample all
    seg_agree: float = 0.85
    # the same IoU limit (see seg_agree) in evaluations; 0 = always draw all (official)
    eval_seg_agree: float = 0.0
    # nucleus sampling of outlines: total probability of the likeliest tokens
    seg_top_p: float = 0.8
    # a pixel belongs to the mask if at least this share of the sampled outlines contains it
    seg_threshold: float = 0.5
    # True = decode only well-formed outlines; False = any token (official)
    seg_grammar: bool = True

    # ---- keypoints ---------------------------------------------------------------------------
    # margin on each side of the crop around a person, as a multiple of the box side
    keypoint_crop: float = 0.5
    # smallest random scale in keypoint training: longer side of the crop / img_size
    keypoint_min_scale: float = 0.3
    # largest random scale in keypoint training: longer side of the crop / img_size
    keypoint_max_scale: float = 1.0
    # keypoint names LEFT:RIGHT,... that a horizontal flip swaps; NAME:NAME = a point without a
    # side; empty = pairs are found by name; without pairs, images are not flipped
    keypoint_flip_pairs: tuple[str, ...] = ()
    # hide a random share of the previous points from the decoder in training
    keypoint_mask_inputs: bool = True
    keypoint_invisible_weight: float = 0.1  # loss weight of keypoints without a label
    keypoint_weight: float = 1.0  # loss weight of the keypoint task in multi-task training
    keypoint_batch_size: int = 0  # keypoint images per multi-task step; 0 = batch_size
    # nucleus sampling of keypoints: total probability of the likeliest tokens
    keypoint_top_p: float = 0.1
    # True = every keypoint gets a position; False = the model may answer "invisible"
    keypoint_suppress_invisible: bool = True
    # True = replace "invisible" tokens by the official rule, after decoding
    keypoint_official_resampling: bool = False
    # weight w in the score of a person: w * keypoint probability + (1 - w) * box score;
    # None = 1 for given boxes, 0.1 for detected boxes (as in the authors' notebook)
    keypoint_score_weight: float | None = None
    # sigmas of the OKS metric: one per keypoint, or one for all; empty = those of COCO
    keypoint_sigmas: tuple[float, ...] = ()

    # ---- captioning --------------------------------------------------------------------------
    # vocabulary of captions: a file of dataset/build_captioning_vocab.py, a SentencePiece .model
    # file, or a weight file of this project that was trained on captions
    caption_vocab: Path = ROOT / "data" / "caption_vocab.json"
    # most tokens per caption, including </s>; the longest captions of COCO need about 60
    max_caption_tokens: int = 128
    # captions per image and training step; they share one encoder pass
    captions_per_image: int = 5
    # share of the decoder's input tokens that is hidden in training, including prompt and padding
    caption_drop: float = 0.5
    caption_end_weight: float = 0.1  # loss weight of </s>
    # loss weight of the padding after </s>; 1 = official, 0 = no loss on padding
    caption_pad_weight: float = 1.0
    # smallest random scale in caption training: longer side of the image / img_size; captioning
    # never flips images
    caption_min_scale: float = 0.3
    # largest random scale in caption training: longer side of the image / img_size
    caption_max_scale: float = 2.0
    captioning_weight: float = 1.0  # loss weight of captioning in multi-task training
    captioning_batch_size: int = 0  # captioning images per multi-task step; 0 = batch_size
    # beams of beam search for captions; 1 = no beam search, but greedy decoding or sampling, as
    # caption_top_k, caption_top_p and caption_temperature define
    caption_beams: int = 1
    # top-k sampling of captions: number of likeliest tokens to draw from; 1 = greedy, 0 = no limit
    caption_top_k: int = 1
    # nucleus sampling of captions: total probability of the likeliest tokens; 1 = off
    caption_top_p: float = 1.0
    caption_temperature: float = 1.0  # sampling of captions: the logits are divided by this
    # beam search ranks captions by log-probability / length ** this
    caption_length_penalty: float = 1.0

    # ---- training ----------------------------------------------------------------------------
    # "auto" = the GPU if there is one, else the CPU; or a device: "cpu", "cuda", "cuda:1"
    device: str = "auto"
    # precision of float32 matrix products in training, evaluation and inference: "highest" =
    # float32 | "high" = TF32 on a GPU, faster, 3 decimal digits | "medium" = bfloat16
    matmul_precision: str = "highest"
    # seed of all random numbers: initial weights, data order, augmentation, dropout, sampling
    seed: int = 0
    epochs: int = 40  # passes over the training images
    # stop after this many optimiser steps, if `epochs` does not end the run earlier; 0 = no limit
    max_steps: int = 0
    # stop and save after this many minutes; 0 = no limit
    max_minutes: float = 0.0
    batch_size: int = 32  # images per task and process (GPU) in one batch
    accumulate_steps: int = 1  # batches whose gradients are summed for one optimiser step
    # steps of a training: True = epochs of whole steps; False = epochs * images // batch_size + 1
    # (official)
    whole_epochs: bool = True
    # "xent" = cross entropy | "xent@SMOOTHING" = with label smoothing | "focal@GAMMA" |
    # "logistic@SMOOTHING" | "hl_gauss@SIGMA" = soft coordinate targets, SIGMA in bins | your own
    # function, "package.module:function"
    loss: str = "xent"
    # "adamw" | "lamb", both as in the official code | any other optimiser of timm.optim, such as
    # "sgd", "adafactor", "muon"
    optimizer: str = "adamw"
    lr: float = 3e-5  # learning rate after the warm-up
    # learning rate for n = batch_size * accumulate_steps * processes images per step: "none" = lr |
    # "linear" = lr * n / 256 | "sqrt" = lr * sqrt(n)
    lr_scaling: str = "none"
    # decay of the learning rate after the warm-up: "linear" | "cosine" | "cosine@SHARE" = only the
    # first SHARE of the cosine | "exp@FACTOR" = exponential, down to lr * FACTOR | "constant"
    lr_schedule: str = "linear"
    warmup_epochs: float = 2.0  # epochs in which the learning rate grows from 0 to lr
    warmup_steps: int = 0  # length of the warm-up in steps; 0 = warmup_epochs
    # last steps of the training, in which the learning rate is constant; that of exp@R goes on to
    # fall (as officially)
    tail_steps: int = 0
    end_lr_factor: float = 0.01  # final learning rate / lr
    # decoupled weight decay; every step multiplies it by the learning rate
    weight_decay: float = 0.05
    # weight decay applies to: True = all parameters (official); False = weight matrices only
    decay_all: bool = True
    # regular expressions; parameters with a matching name have no weight decay
    decay_exclude: tuple[str, ...] = ()
    # decay of the moving averages of the gradient and of its square, for optimisers with both
    betas: tuple[float, float] = (0.9, 0.95)
    encoder_lr_factor: float = 1.0  # learning rate of the encoder / lr; 1 = official
    # learning rate of an encoder layer / that of the following layer; 1 = off (official)
    layer_decay: float = 1.0
    # regular expressions; parameters with a matching name are not trained
    freeze: tuple[str, ...] = ()
    freeze_encoder_steps: int = 0  # number of first steps in which the encoder is not trained
    # keep the running statistics of the encoder's batch norms fixed; for pretrained encoders
    freeze_batch_norm: bool = False
    # largest norm of the gradient, larger ones are scaled down; 0 or less = off (official: -1)
    clip_grad: float = 0.0
    # mixed precision in training: "auto" = "bf16" on a GPU ("fp16" if it has no bf16), "off" on a
    # CPU | "bf16" | "fp16" | "off" = float32
    amp: str = "auto"
    # recompute activations of transformer blocks in the backward pass: less memory, more time
    recompute_activations: bool = False
    # shard weights and optimiser state over the processes (FSDP)
    fsdp: bool = False
    # stop after this many steps in a row whose loss or gradient is not finite
    max_nonfinite: int = 10
    # compile the training step with torch.compile: minutes once, then faster steps
    compile: bool = False
    # number of different sequence lengths on a GPU and with compile; each batch is cut to the
    # shortest of them that holds it
    num_lengths: int = 8
    # samples per task for the likelihood in validation (val/TASK/likelihood); 0 = not measured
    likelihood_limit: int = 256
    # epochs between evaluations; the last epoch is always evaluated
    eval_every: int = 1
    eval_first: bool = False  # evaluate before the first step, too; useful with init_weights
    # minutes between checkpoints; 0 = a checkpoint at the end of each epoch
    save_minutes: float = 5.0
    save_steps: int = 0  # save at each multiple of this many steps, too; 0 = off
    # number of newest checkpoints that are kept: last.ckpt, last-1.ckpt, ...
    keep_checkpoints: int = 2
    # stop after this many evaluations in a row without a new best result; 0 = never
    early_stop_patience: int = 0
    # decay of an exponential moving average of the weights, such as 0.9999; the average is
    # evaluated and saved as the best weights; 0 = off
    ema_decay: float = 0.0
    # steps between two points of the training curves; a point is the mean over these steps
    log_every: int = 20
    # trackers of curves, pictures and settings, separated by commas: "tensorboard" | "wandb" |
    # "trackio" | "none" = only the files of the run folder
    logger: str = "tensorboard"

    # ---- evaluation and inference --------------------------------------------------------------
    # your own metric functions, "package.module:function"; their results are added to those of
    # an evaluation
    metrics: tuple[str, ...] = ()
    eval_batch_size: int = 16  # images per batch in evaluation
    # number type of the inference scripts: "float32" | "bfloat16" | "int8" = 8-bit weights in the
    # decoder
    infer_dtype: str = "float32"
    # with infer_dtype=int8: linear layers of the encoder in 8 bits, too (package torchao); for
    # vision transformers
    encoder_int8: bool = False
    # decoding engine: "auto" = "native" on a CPU with a C++ compiler, else "plain" | "plain" =
    # PyTorch | "native" = C++, compiled once | "static" = fixed shapes, on a GPU one CUDA graph per
    # token | "compiled" = static with torch.compile, which also compiles the encoder (not for
    # validation during training)
    decode_mode: str = "auto"
    # allow bfloat16 (amp, infer_dtype) on a CPU without bfloat16 units: many times slower
    emulate_bfloat16: bool = False
    # objects with a lower score are not shown; evaluation keeps all objects
    score_threshold: float = 0.3
    # for display, detection stops after this many objects in a row below stop_score; 0 = it
    # always decodes max_objects
    stop_objects: int = 2
    # score limit of stop_objects; score_threshold is used instead if it is lower
    stop_score: float = 0.05
    # stop_objects for evaluations, in which objects with low scores count, too; 0 = never stop
    eval_stop_objects: int = 0


class VocCFG(CFG):
    """Pascal VOC, or any other dataset in VOC layout."""

    dataset = "voc"


class DemoCFG(CFG):
    """The synthetic demo set, with the small model of `weights/demo.safetensors`.

    The model can be trained from scratch on a CPU: few image tokens, short answers, few bins.
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
    """All four tasks of the demo set in one model, initialised with detection weights."""

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
    """The synthetic demo set in VOC layout: detection."""

    dataset = "voc"


class FinetuneCFG(CFG):
    """Fine-tuning on your own data: `--set data=FOLDER init_weights=FILE`.

    The weight file defines the model. `train/init_weights.py` chooses object budget, training
    length and learning rates from data and weights, and prints them. Values of `--set` are kept.
    """

    finetune = True
    drop_path = drop_units = 0.0
    color_jitter = 0.3
    seg_min_scale = keypoint_min_scale = 0.7
    batch_size = 16
    lr_schedule, end_lr_factor = "cosine", 0.02
    freeze_batch_norm = True  # a small batch has poor statistics
    clip_grad = 1.0
    ema_decay = 0.999
    num_workers = 2


# Sources of the values below:
# [D] configs/config_det_finetune.py of google-research/pix2seq; [M] config_multi_task.py and [B]
# config_base.py in the same folder; [I] an answer of the authors in issue 3 of that repository.
# These quote the paper Pix2Seq (arXiv 2109.10852): [Q] README of Sharpiless/Pix2seq-mmdetection;
# [S] issue 4 of gaopengcuhk/Stable-Pix2Seq; [N] paper_notes/pix2seq.md of
# patrick-llgc/Learning-Deep-Learning.


class DetFinetuneCFG(CFG):
    """The authors' COCO detection from Objects365 weights: ViT-B, 640 px; they report 44.2 AP.

    Run `download/download_official_weights.sh obj365_vit_b_640` first. The recipe is complete: it
    repeats values that are equal to those of `CFG`.
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
    keep_empty = False  # the official training skips images without objects
    lr, lr_schedule, lr_scaling = 3e-5, "linear", "none"  # [D]
    end_lr_factor, warmup_epochs = 0.01, 2.0  # [D]
    weight_decay, decay_all, betas = 0.05, True, (0.9, 0.95)  # [D]; decay_all: official optimiser
    clip_grad = 0.0  # [D] global_clipnorm -1
    batch_size, epochs, whole_epochs = 32, 40, False  # [D]; number of steps as in run.py
    top_k, top_p, temperature = 0, 0.4, 1.0  # [D]


class MultiTaskCFG(DetFinetuneCFG):
    """The authors' training of all four tasks in one model: ViT-B, 640 px.

    [M] and [D] differ in the values below. For captions, [M] also samples (`caption_top_k=0`) and
    augments differently; see docs/fidelity.md.
    """

    lr, warmup_epochs = 1e-4, 10.0  # [M]
    batch_size, epochs = 128, 100  # [M]; 128 images of each task per step
    detection_weight = segmentation_weight = keypoint_weight = captioning_weight = 1.0  # [M]
    seg_random_start, seg_weigh_absent = False, True  # [M]


class MultiTaskWeightedCFG(MultiTaskCFG):
    """`multi_task` with other loss weights, reportedly from the Pix2SeqV2 paper (not verified).

    The paper is arXiv 2206.07669. The official code has the weight 1 for each task.
    """

    detection_weight, segmentation_weight = 0.1782, 0.7128
    captioning_weight, keypoint_weight = 0.099, 0.01


class FromScratchCFG(DetFinetuneCFG):
    """COCO detection without pretraining on other data: ResNet-50, 1333 px, 300 epochs.

    The paper reports 43.0 AP [Q]; the authors expect about 42 from the published code [I]. There is
    no published config: values without a mark are those of `det_finetune`. The learning rate is the
    paper's, as [S] quotes it. In [S] the author of another port writes that 1e-3 is the largest
    rate at which that port trains stably: if the loss jumps, try `--set lr=1e-3`.
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
    warmup_epochs = 10.0  # as in [M]


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
