"""Image encoders: any timm model, the official ones, and classes of your own.

Every encoder has `forward(images (B, 3, H, W)) -> (B, P + S, C)` and three attributes: `dim` = C,
`grid` = (h, w) with S = h * w, and `num_prefix_tokens` = P, tokens in front of those of the grid.
To add an encoder, write such a class and name it as "package.module:Class", see
docs/own_encoder.md. `build_encoder` chooses among the three kinds.

Optional attributes, and who reads them:

    blocks         transformer blocks: `Pix2Seq.blocks` and train/distributed.py, which recompute
                   and shard them one by one
    features       method (images) -> tensor, through all convolutions: models/prepare.py, which
                   folds batch norms
    group_matcher  method as timm's, of the encoder or of its `backbone`: train/optim.py, for
                   `layer_decay`, which is refused without it
    image_mean     and image_std, of a class of your own: `image_statistics`
    unused         prefixes of tensors that `TimmEncoder` removed: models/weights.py, which ignores
                   them in older files
"""

import difflib
import logging
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor, nn

from models.config import ModelConfig
from models.official_encoders import OfficialResNet, OfficialViT, TransformerOptions
from utils.encoder_weights import (
    IMAGENET,
    check_taken,
    load_state,
    misfit,
    pretrained_file,
    timm_tensors_of,
)
from utils.errors import UserError, import_named, is_import_path, one_line

TIMM_LOGGER = "timm.models._builder"


def build_encoder(
    config: ModelConfig, *, pretrained: bool = False, weights: Path | None = None
) -> nn.Module:
    """The encoder that `config.encoder` names.

    Args:
        pretrained: with the weights that timm has for it, or a class of one's own.
        weights: a file of weights, in place of `pretrained`.

    Raises:
        UserError: unknown name, weights that cannot be fetched, or that do not fit.
    """
    pretrained = pretrained and weights is None
    if config.encoder in ENCODERS:
        encoder = ENCODERS[config.encoder](config, pretrained)
    elif is_class(config.encoder):
        encoder = _own_encoder(config, pretrained)
    else:
        return _timm_encoder(config, pretrained, weights)
    if weights is not None:
        load_state(encoder, weights, config.encoder)
    return encoder


# ---- timm ------------------------------------------------------------------------------------


class TimmEncoder(nn.Module):
    """Any timm model, CNN or transformer; class and register tokens are dropped.

    Args:
        name: timm model name, e.g. "resnet50" or "deit3_small_patch16_384.fb_in22k_ft_in1k".
        image_size: (H, W); transformers resample their positions from the pretraining size.
        stride: use the feature map of this stride (an earlier stage of a CNN); None = the last.
        weights: where the weights are, as entries that timm takes in place of its own
            (`pretrained_cfg_overlay`); None = new ones.
        drop_path: final rate of timm's linear ramp; must be 0 for models without stochastic depth.
        pooled: True = timm's default; models that pool first then have no final LayerNorm. False =
            no pooling, and the LayerNorm of the patch tokens stays.
    """

    def __init__(
        self,
        name: str,
        image_size: tuple[int, int],
        *,
        stride: int | None = None,
        weights: dict | None = None,
        drop_path: float = 0.0,
        pooled: bool = True,
    ):
        import timm  # takes seconds, and other encoders do without

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
        if weights is not None:
            kwargs |= {"pretrained": True, "pretrained_cfg_overlay": weights}
        self.backbone = timm.create_model(name, **kwargs)
        if weights is not None and "state_dict" in weights:  # timm would keep a copy
            self.backbone.pretrained_cfg.pop("state_dict", None)

        # Width and grid of the tokens, as timm describes them.
        if self.is_pyramid:
            self.dim = self.backbone.feature_info.channels()[-1]
        else:
            self.dim = self.backbone.num_features
            stride = self.backbone.feature_info[-1]["reduction"]
        self.unused = _drop_unused_stages(self.backbone)
        self.grid = tuple(math.ceil(side / stride) for side in image_size)
        # A transformer has one, of its patches.
        self.is_convolutional = sum(isinstance(m, nn.Conv2d) for m in self.modules()) > 1

    @property
    def blocks(self) -> list[nn.Module]:
        """The blocks, of all stages; empty for models that have none, such as ResNet."""
        return list(_blocks_of(self.backbone))

    def forward(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) normalised -> (B, S, C) with S = grid[0] * grid[1], row by row."""
        backbone, features = self.backbone, self.features(images)
        if features.ndim == 3:  # (B, prefix + S, C)
            tokens = features[:, getattr(backbone, "num_prefix_tokens", 0) :]
        elif getattr(backbone, "output_fmt", "NCHW") == "NHWC":  # (B, h, w, C)
            tokens = features.flatten(1, 2)
        else:  # (B, C, h, w)
            tokens = features.flatten(2).transpose(1, 2)
        assert tokens.shape[1] == math.prod(self.grid), f"{tokens.shape[1]} tokens, {self.grid=}"
        return tokens

    def features(self, images: Tensor) -> Tensor:
        """(B, 3, H', W') -> timm's output: (B, P + S, C), (B, h, w, C) or (B, C, h, w)."""
        if self.is_convolutional:
            images = images.contiguous(memory_format=torch.channels_last)  # faster on CPU and GPU
        backbone = self.backbone
        return backbone(images)[0] if self.is_pyramid else backbone.forward_features(images)


def _blocks_of(module: nn.Module) -> Iterator[nn.Module]:
    """What timm calls `blocks`, wherever the model has them: in itself, in stages, in a wrapper."""
    if isinstance(getattr(module, "blocks", None), nn.Module):
        yield from module.blocks
        return
    for child in module.children():
        yield from _blocks_of(child)


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
    """Index of the last feature map with that stride, as timm counts all maps of the model.

    It offers some of them: of a ViT with 12 blocks the last three, of which the last is block 11.
    """
    import timm

    with torch.device("meta"):  # no memory, no initial values
        offered = timm.create_model(name, features_only=True, **kwargs).feature_info
    strides = offered.reduction()
    if stride not in strides:
        raise UserError(
            f"encoder {name!r} has feature maps of strides {sorted(set(strides))}, not {stride}; "
            "use --set encoder_stride=... with one of them"
        )
    return offered.out_indices[len(strides) - 1 - strides[::-1].index(stride)]


def _timm_encoder(config: ModelConfig, pretrained: bool, file: Path | None) -> nn.Module:
    _check_timm_name(config.encoder)
    weights = None
    if file is not None:
        weights = {"state_dict": timm_tensors_of(file, config.encoder)}
    elif pretrained:
        weights = {"file": str(pretrained_file(config.encoder))}
    try:
        with timm_messages() as texts:
            encoder = TimmEncoder(
                config.encoder,
                config.image_size,
                stride=config.encoder_stride,
                weights=weights,
                drop_path=config.drop_path,
                pooled=config.projection != "average",
            )
    except UserError:
        raise
    except Exception as error:  # every library that reads a file raises its own
        if weights is None:
            raise
        if file is not None:
            raise misfit(file, config.encoder, error) from error
        raise UserError(
            f"cannot load the pretrained weights of {config.encoder!r} from {weights['file']} "
            f"({one_line(error)}); delete that file to download it again, or use --set "
            "pretrained=false"
        ) from error
    if file is not None:
        check_taken(file, config.encoder, encoder.backbone, texts)
    return encoder


# ---- official --------------------------------------------------------------------------------


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


# name -> builder(config, pretrained); other names are classes or timm models
ENCODERS: dict[str, Callable[[ModelConfig, bool], nn.Module]] = {
    "official_vit": _official_vit,  # patches and a transformer
    "official_resnet": _official_resnet,  # ResNet to stride 32 and a transformer
    "official_resnet_c": _official_resnet,  # ResNet to stride 16 ("c4") and a transformer
}


# ---- classes of your own ---------------------------------------------------------------------


def is_class(encoder: str) -> bool:
    """Whether an encoder name has the form "package.module:Class"."""
    return is_import_path(encoder)


def load_class(encoder: str) -> type[nn.Module]:
    """The class that "package.module:Class" names; modules of the current directory count.

    Raises:
        UserError: there is none, or it is no `nn.Module`.
    """
    found = import_named("encoder", encoder)
    if not isinstance(found, type):
        module_name, _, name = encoder.partition(":")
        raise UserError(f"module {module_name!r} has no class {name!r}; correct encoder=...")
    if not issubclass(found, nn.Module):
        raise UserError(f"encoder {encoder!r} is not a torch.nn.Module; make it a subclass")
    return found


def _own_encoder(config: ModelConfig, pretrained: bool) -> nn.Module:
    """An instance of a class of the user, with the attributes that it must have.

    Raises:
        UserError: it cannot be built, or lacks them.
    """
    encoder_class = load_class(config.encoder)
    try:
        encoder = encoder_class(image_size=config.image_size, pretrained=pretrained)
    except Exception as error:  # the class is not ours
        raise UserError(
            f"encoder {config.encoder!r} cannot be built with image_size={config.image_size}, "
            f"pretrained={pretrained} ({type(error).__name__}: {one_line(error)}); correct the "
            "class; it must also be built on the meta device, see docs/own_encoder.md"
        ) from error
    dim, grid = getattr(encoder, "dim", None), getattr(encoder, "grid", None)
    prefix = getattr(encoder, "num_prefix_tokens", None)
    sizes = [dim, *grid] if isinstance(grid, (tuple, list)) and len(grid) == 2 else []
    known = sizes and all(isinstance(n, int) and n > 0 for n in sizes)
    if not known or not isinstance(prefix, int) or prefix < 0:
        raise UserError(
            f"encoder {config.encoder!r} needs the attributes dim (width of a token), grid (its "
            "height and width in tokens) and num_prefix_tokens (0 without any), whole numbers; see "
            "docs/own_encoder.md"
        )
    encoder.grid = tuple(grid)
    return encoder


# ---- what a pretrained encoder expects, and checks -------------------------------------------


def image_statistics(encoder: str) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of images in [0, 1] that an encoder was pretrained with.

    Raises:
        UserError: no encoder of that name.
    """
    if encoder in ENCODERS:
        return (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)  # the official encoders take [0, 1] as it is
    if is_class(encoder):
        pair = zip(("image_mean", "image_std"), IMAGENET, strict=True)
        return tuple(tuple(getattr(load_class(encoder), name, value)) for name, value in pair)
    import timm

    _check_timm_name(encoder)
    cfg = timm.get_pretrained_cfg(encoder, allow_unregistered=False)
    return (cfg.mean, cfg.std) if cfg else IMAGENET


def check_encoder(config: ModelConfig) -> None:
    """Checks that the encoder takes images of this size with these options.

    It runs once on the meta device, which costs neither memory nor noticeable time. A class of
    one's own is built there, as weight files do it, and runs on the CPU.

    Raises:
        UserError: it does not.
    """
    encoder, device = None, "meta"
    try:
        with torch.device("meta"):
            encoder = build_encoder(config).eval()
        if is_class(config.encoder):
            encoder, device = build_encoder(config).eval(), "cpu"
        with torch.no_grad():
            tokens = encoder(torch.zeros(1, 3, *config.image_size, device=device))
        wanted = (1, encoder.num_prefix_tokens + math.prod(encoder.grid), encoder.dim)
        if getattr(tokens, "shape", None) != wanted:
            raise UserError(
                f"encoder {config.encoder!r} gives {_described(tokens)} for one image, but should "
                f"give {wanted} by its num_prefix_tokens, grid and dim; correct the class"
            )
    except UserError:
        raise
    except Exception as error:  # every class of a library raises its own
        raise UserError(
            f"encoder {config.encoder!r} does not work with img_size={config.image_size[0]}, "
            f"encoder_stride={config.encoder_stride}, drop_path={config.drop_path} "
            f"({one_line(error)}); {_remedy(config, encoder, error)}"
        ) from error


def _remedy(config: ModelConfig, encoder: nn.Module | None, error: Exception) -> str:
    """What to do about an encoder that cannot be built (None) or does not run."""
    if is_class(config.encoder):
        return "correct its forward, or choose another size"
    if "drop_path_rate" in str(error):
        return "it has no stochastic depth: use drop_path=0"
    patch_embed = getattr(getattr(encoder, "backbone", None), "patch_embed", None)
    patch, size = getattr(patch_embed, "patch_size", (0,))[0], config.image_size[0]
    if patch and size % patch:
        near = {max(size // patch, 1) * patch, -(-size // patch) * patch}
        return f"use a multiple of its patch, img_size={' or '.join(map(str, sorted(near)))}"
    return "choose another size or encoder"


def _described(output: object) -> str:
    shape = getattr(output, "shape", None)
    return str(tuple(shape)) if shape is not None else f"a {type(output).__name__}"


def _check_timm_name(name: str) -> None:
    import timm

    if not timm.is_model(name):
        near = difflib.get_close_matches(name.split(".")[0], timm.list_models(), n=3)
        hint = f"similar names: {', '.join(near)}" if near else "timm.list_models() lists all"
        raise UserError(f"no encoder {name!r} in timm; {hint}")


@contextmanager
def timm_messages() -> Iterator[list[str]]:
    """Collects the log messages of timm while it loads weights, without printing them."""
    texts: list[str] = []

    def keep(record: logging.LogRecord) -> bool:
        texts.append(record.getMessage())
        return False  # no handler gets it

    logger = logging.getLogger(TIMM_LOGGER)
    level = logger.level
    logger.addFilter(keep)
    logger.setLevel(logging.INFO)
    try:
        yield texts
    finally:
        logger.removeFilter(keep)
        logger.setLevel(level)
