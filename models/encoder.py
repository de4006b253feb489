"""Image encoders: any timm model, and the official ones.

Every encoder has `forward(images (B, 3, H, W)) -> (B, P + S, C)` and three attributes: `dim` = C,
`grid` = (h, w) with S = h * w, and `num_prefix_tokens` = P, tokens in front of those of the grid.
To add an encoder, write such a class and add a builder to `ENCODERS`.
"""

import difflib
import math
from collections.abc import Callable

import timm
import torch
from torch import Tensor, nn

from models.config import ModelConfig
from models.official_encoders import OfficialResNet, OfficialViT, TransformerOptions
from utils.errors import UserError, one_line


class TimmEncoder(nn.Module):
    """Any timm model, CNN or transformer; class and register tokens are dropped.

    Args:
        name: timm model name, e.g. "resnet50" or "deit3_small_patch16_384.fb_in22k_ft_in1k".
        image_size: (H, W); transformers resample their positions from the pretraining size.
        stride: use the feature map of this stride (an earlier stage of a CNN); None = the last.
        drop_path: final rate of timm's linear ramp; must be 0 for models without stochastic depth.
        pooled: keep timm's default head. False: keep the final LayerNorm on the patch tokens (timm
            drops it for models that pool first).
    """

    def __init__(
        self,
        name: str,
        image_size: tuple[int, int],
        *,
        stride: int | None = None,
        pretrained: bool = False,
        drop_path: float = 0.0,
        pooled: bool = True,
    ):
        super().__init__()
        self.num_prefix_tokens = 0

        # Not every model takes every argument: pass only what is needed.
        kwargs = {"drop_path_rate": drop_path} if drop_path else {}
        if timm.get_pretrained_cfg(name, allow_unregistered=False).fixed_input_size:
            kwargs["img_size"] = image_size
        self.is_pyramid = stride is not None
        if self.is_pyramid:
            stage = _stage_of_stride(name, stride, kwargs)
            kwargs |= {"features_only": True, "out_indices": (stage,)}
        else:
            kwargs |= {"num_classes": 0} if pooled else {"num_classes": 0, "global_pool": ""}
        self.backbone = timm.create_model(name, pretrained=pretrained, **kwargs)

        # Width and grid of the tokens, as timm describes them.
        if self.is_pyramid:
            self.dim = self.backbone.feature_info.channels()[-1]
        else:
            self.dim = self.backbone.num_features
            stride = self.backbone.feature_info[-1]["reduction"]
        self.unused = _drop_unused_stages(self.backbone)
        self.grid = tuple(math.ceil(side / stride) for side in image_size)

    @property
    def blocks(self) -> list[nn.Module]:
        """The transformer blocks; empty for models without them, such as CNNs."""
        return list(getattr(self.backbone, "blocks", ()))

    def forward(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) normalised -> (B, S, C) with S = grid[0] * grid[1], row by row."""
        backbone = self.backbone
        features = backbone(images)[0] if self.is_pyramid else backbone.forward_features(images)
        if features.ndim == 3:  # (B, prefix + S, C)
            tokens = features[:, getattr(backbone, "num_prefix_tokens", 0) :]
        elif getattr(backbone, "output_fmt", "NCHW") == "NHWC":  # (B, h, w, C)
            tokens = features.flatten(1, 2)
        else:  # (B, C, h, w)
            tokens = features.flatten(2).transpose(1, 2)
        assert tokens.shape[1] == math.prod(self.grid), f"{tokens.shape[1]} tokens, {self.grid=}"
        return tokens


def _drop_unused_stages(backbone: nn.Module) -> tuple[str, ...]:
    """Removes the stages behind the feature map that is used, where timm keeps and runs them.

    timm prunes all families itself but EfficientNet's and MobileNet's, whose stages are `blocks`.

    Returns:
        prefixes of the names, in `backbone`, of the tensors that are gone.
    """
    last = max(getattr(backbone, "_stage_out_idx", {}), default=None)  # counts from the stem, 0
    if last is None or getattr(backbone, "feature_hooks", None) is not None:
        return ()
    count = len(backbone.blocks)
    del backbone.blocks[last:]
    return tuple(f"blocks.{stage}." for stage in range(last, count))


def _stage_of_stride(name: str, stride: int, kwargs: dict) -> int:
    """Index of the last feature map with that stride."""
    info = timm.create_model(name, features_only=True, **kwargs).feature_info
    strides = info.reduction()
    if stride not in strides:
        raise UserError(
            f"encoder {name!r} has feature maps of strides {sorted(set(strides))}, not {stride}; "
            "use --set encoder_stride=... with one of them"
        )
    return len(strides) - 1 - strides[::-1].index(stride)


def _check_timm_name(name: str) -> None:
    if not timm.is_model(name):
        near = difflib.get_close_matches(name.split(".")[0], timm.list_models(), n=3)
        hint = f"near it: {', '.join(near)}" if near else "timm.list_models() names all"
        raise UserError(f"no encoder {name!r} in timm; {hint}")


def _timm_encoder(config: ModelConfig, pretrained: bool) -> nn.Module:
    _check_timm_name(config.encoder)
    try:
        return TimmEncoder(
            config.encoder,
            config.image_size,
            stride=config.encoder_stride,
            pretrained=pretrained,
            drop_path=config.drop_path,
            pooled=config.projection != "average",
        )
    except (OSError, RuntimeError) as error:
        if not pretrained:
            raise
        raise UserError(
            f"cannot fetch pretrained weights of {config.encoder!r} ({type(error).__name__}); "
            "check the network, or train from scratch with --set pretrained=false"
        ) from error


def _transformer_options(config: ModelConfig) -> TransformerOptions:
    return TransformerOptions(
        dim=config.encoder_dim,
        num_layers=config.encoder_layers,
        num_heads=config.encoder_heads,
        mlp_dim=config.encoder_mlp_dim,
        positions=config.encoder_positions,
        cls_token=config.encoder_cls_token,
        drop_path=config.drop_path,
        drop_units=config.drop_units,
        drop_attention=config.drop_attention,
    )


def _official_vit(config: ModelConfig, pretrained: bool) -> nn.Module:
    _refuse_pretrained(config, pretrained)
    return OfficialViT(config.image_size, config.encoder_patch, _transformer_options(config))


def _official_resnet(config: ModelConfig, pretrained: bool) -> nn.Module:
    _refuse_pretrained(config, pretrained)
    return OfficialResNet(
        config.image_size,
        _transformer_options(config),
        depth=config.resnet_depth,
        width=config.resnet_width,
        num_groups=3 if config.encoder == "official_resnet_c" else 4,
    )


def _refuse_pretrained(config: ModelConfig, pretrained: bool) -> None:
    if pretrained:
        raise UserError(
            f"encoder {config.encoder!r} has no pretrained weights of its own; use --set "
            "pretrained=false, and init_weights=... to start from a converted checkpoint"
        )


# name -> builder(config, pretrained); every other name is a timm model
ENCODERS: dict[str, Callable[[ModelConfig, bool], nn.Module]] = {
    "official_vit": _official_vit,  # patches and a transformer
    "official_resnet": _official_resnet,  # ResNet to stride 32 and a transformer
    "official_resnet_c": _official_resnet,  # ResNet to stride 16 ("c4") and a transformer
}


def build_encoder(config: ModelConfig, *, pretrained: bool = False) -> nn.Module:
    """The encoder that `config.encoder` names.

    Raises:
        UserError: unknown name, or pretrained weights that cannot be fetched.
    """
    return ENCODERS.get(config.encoder, _timm_encoder)(config, pretrained)


def check_encoder(config: ModelConfig) -> None:
    """Checks that the encoder takes images of this size with these options.

    It runs once on the meta device, which costs neither memory nor noticeable time.

    Raises:
        UserError: it does not.
    """
    encoder = None
    try:
        with torch.device("meta"):
            encoder = build_encoder(config).eval()
        encoder(torch.zeros(1, 3, *config.image_size, device="meta"))
    except UserError:
        raise
    except Exception as error:  # every library class has its own
        remedy = "choose another size or encoder"
        patch = getattr(getattr(encoder, "backbone", None), "patch_embed", None)
        patch, size = getattr(patch, "patch_size", (0,))[0], config.image_size[0]
        if "drop_path_rate" in str(error):
            remedy = "it has no stochastic depth: use drop_path=0"
        elif patch and size % patch:
            near = {max(size // patch, 1) * patch, -(-size // patch) * patch}
            remedy = f"use a multiple of its patch, img_size={' or '.join(map(str, sorted(near)))}"
        raise UserError(
            f"encoder {config.encoder!r} does not work with img_size={size}, encoder_stride="
            f"{config.encoder_stride}, drop_path={config.drop_path} ({one_line(error)}); {remedy}"
        ) from error


def image_statistics(encoder: str) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of images in [0, 1] that an encoder was pretrained with.

    Raises:
        UserError: no encoder of that name.
    """
    if encoder in ENCODERS:
        return (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)  # the official encoders take [0, 1] as it is
    _check_timm_name(encoder)
    cfg = timm.get_pretrained_cfg(encoder, allow_unregistered=False)
    return (cfg.mean, cfg.std) if cfg else ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
