"""Settings to the model, new or started from a weight file."""

import torch

from infer.weight_meta import read_meta
from models import ModelConfig, Pix2Seq, build_model, load_model
from models.encoder import image_statistics
from models.pix2seq import smooth_coordinates
from tokenizer import TaskTokenizer, Vocabulary
from train.start import start_from
from utils.categories import Categories
from utils.cli import log
from utils.errors import UserError


def model_config(cfg, vocab: Vocabulary, task_tokenizers: dict[str, TaskTokenizer]) -> ModelConfig:
    mean, std = image_statistics(cfg.encoder)
    try:
        return ModelConfig(
            encoder=cfg.encoder,
            encoder_stride=cfg.encoder_stride,
            image_size=(cfg.img_size, cfg.img_size),
            image_mean=mean,
            image_std=std,
            encoder_dim=cfg.encoder_dim,
            encoder_layers=cfg.encoder_layers,
            encoder_heads=cfg.encoder_heads,
            encoder_mlp_dim=cfg.encoder_mlp_dim,
            encoder_patch=cfg.encoder_patch,
            encoder_positions=cfg.encoder_positions,
            encoder_cls_token=cfg.encoder_cls_token,
            resnet_depth=cfg.resnet_depth,
            resnet_width=cfg.resnet_width,
            projection=cfg.projection,
            projection_mlp_ratio=cfg.projection_mlp_ratio,
            projection_positions=cfg.projection_positions,
            dim=cfg.dim,
            num_layers=cfg.num_layers,
            num_heads=cfg.num_heads,
            mlp_dim=cfg.mlp_dim,
            vocab_size=vocab.size,
            max_len=_max_len(cfg, task_tokenizers),
            decoder_positions=cfg.decoder_positions,
            tie_embeddings=cfg.tie_embeddings,
            output_bias=cfg.output_bias,
            drop_path=cfg.drop_path,
            drop_units=cfg.drop_units,
            drop_attention=cfg.drop_attention,
        )
    except ValueError as error:
        raise UserError(f"settings of the model: {error}") from error


def _max_len(cfg, task_tokenizers: dict[str, TaskTokenizer]) -> int:
    needed = max(tokenizer.max_len for tokenizer in task_tokenizers.values())
    if 0 < cfg.max_len < needed:
        raise UserError(f"max_len={cfg.max_len} is less than the {needed} that the tasks need")
    return cfg.max_len or needed


def model(
    cfg,
    vocab: Vocabulary,
    task_tokenizers: dict[str, TaskTokenizer],
    categories: Categories,
    device: torch.device,
) -> Pix2Seq:
    """A new model, or the one of `init_weights`, with the record that its weight files carry."""
    config = model_config(cfg, vocab, task_tokenizers)
    out = build_model(config, pretrained=cfg.pretrained and cfg.init_weights is None)
    if cfg.smooth_init:
        smooth_coordinates(out, vocab.coord_range)
    out.meta = {
        "vocabulary": vocab.to_json(),
        "categories": categories.to_json(),
        "resize_mode": cfg.resize_mode,
        "tasks": {task: tokenizer.settings() for task, tokenizer in task_tokenizers.items()},
    }
    if cfg.init_weights is not None:
        start = load_model(cfg.init_weights)
        read_meta(start.meta, start.config, str(cfg.init_weights))  # checked, like the weights
        log(start_from(out, start).text(cfg.init_weights))
    if cfg.compile:  # calls of the model alone, which are training: not `encode`, not `generate`
        out.compile()
    return out.to(device)
