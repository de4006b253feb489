"""`ModelConfig`: the architecture of a model; every weight file contains it."""

import typing
from dataclasses import asdict, dataclass

from utils.files import check_fields

NAMES = {"image_size": "img_size"}  # fields that have another name as a setting
RATES = ("drop_path", "drop_units", "drop_attention")
CHOICES = {
    "projection": ("linear", "linear_p", "mlp", "average"),
    "decoder_norm": ("pre", "post"),
    "encoder_positions": ("sin_cos", "learned"),
    "projection_positions": ("sin_cos", "learned"),
    "decoder_positions": ("sin_cos", "learned"),
}


@dataclass(frozen=True)
class ModelConfig:
    """Sizes and options of a `Pix2Seq` model; every weight file contains them.

    Defaults are the papers' decoder (Pix2SeqV2 configs) on a timm encoder.
    """

    # ---- encoder ----
    # a timm model name, or "official_vit" | "official_resnet" | "official_resnet_c" (stride 16)
    encoder: str = "deit3_small_patch16_384.fb_in22k_ft_in1k"
    encoder_stride: int | None = None  # timm: use the feature map of this stride; None = the last

    # ---- official encoders only ----
    encoder_dim: int = 768
    encoder_layers: int = 12
    encoder_heads: int = 12
    encoder_mlp_dim: int = 3072
    encoder_patch: int = 16  # official_vit: side of a patch, pixels
    encoder_positions: str = "sin_cos"  # | "learned"
    encoder_cls_token: bool = False  # put a class token in front of the image tokens
    resnet_depth: int = 50  # official_resnet*: 50 | 101 | 152 | 200
    resnet_width: float = 1.0  # official_resnet*: multiplies the channels

    # ---- images ----
    image_size: tuple[int, int] = (384, 384)  # (H, W) of the model input, pixels
    image_mean: tuple[float, ...] = (0.485, 0.456, 0.406)  # subtracted from images in [0, 1]
    image_std: tuple[float, ...] = (0.229, 0.224, 0.225)

    # ---- projection from encoder to decoder ----
    projection: str = "mlp"  # | "linear" | "linear_p" (+ positions) | "average"
    projection_mlp_ratio: int = 4  # hidden width of the projection's MLP block / dim
    projection_positions: str = "sin_cos"  # | "learned"

    # ---- decoder ----
    dim: int = 512
    num_layers: int = 6
    num_heads: int = 16
    mlp_dim: int = 2048
    vocab_size: int = 3000
    max_len: int = 512  # positions of the decoder, prompt included
    decoder_positions: str = "learned"  # | "sin_cos"
    tie_embeddings: bool = True  # one matrix for input tokens and output logits
    output_bias: bool = True
    decoder_norm: str = "pre"  # | "post": the simple ports (ReLU, positions on the memory)

    # ---- dropout in training ----
    drop_path: float = 0.1  # same rate in every block; in timm encoders the last of a ramp
    drop_units: float = 0.1  # dropout between the two layers of an MLP
    drop_attention: float = 0.0  # dropout on attention probabilities

    def __post_init__(self):
        self._check_numbers()
        self._check_choices()
        if self.dim % self.num_heads:
            raise ValueError(
                f"dim must be a multiple of num_heads, got dim={self.dim}, "
                f"num_heads={self.num_heads}"
            )
        if self.encoder_dim % self.encoder_heads:
            raise ValueError(
                f"encoder_dim must be a multiple of encoder_heads, got "
                f"encoder_dim={self.encoder_dim}, encoder_heads={self.encoder_heads}"
            )
        if self.resnet_depth not in (50, 101, 152, 200) or 64 * self.resnet_width % 1:
            raise ValueError(
                "resnet_depth must be 50, 101, 152 or 200 and 64 * resnet_width a whole number, "
                f"got resnet_depth={self.resnet_depth}, resnet_width={self.resnet_width}"
            )

    def _check_numbers(self) -> None:
        """Counts and sizes are at least 1, rates in [0, 1), means and deviations three each."""
        for name, value in vars(self).items():
            sizes = value if name == "image_size" else (value,)
            counts = [n for n in sizes if isinstance(n, int) and not isinstance(n, bool)]
            if any(n < 1 for n in counts) and name not in RATES:
                raise ValueError(f"{name} must be at least 1, got {value}")
        for name in RATES:
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name} must be in [0, 1), got {getattr(self, name)}")
        if len(self.image_mean) != 3 or len(self.image_std) != 3 or min(self.image_std) <= 0:
            raise ValueError(
                "image_mean and image_std must be three numbers, the latter above 0, got "
                f"{self.image_mean} and {self.image_std}"
            )

    def _check_choices(self) -> None:
        for name, choices in CHOICES.items():
            if getattr(self, name) not in choices:
                names = " or ".join(map(repr, choices))
                raise ValueError(f"{name} must be {names}, got {getattr(self, name)!r}")

    def to_json(self) -> dict:
        return asdict(self)

    @classmethod
    def from_json(cls, values: dict) -> "ModelConfig":
        """Inverse of `to_json`.

        Raises:
            ValueError: the values describe no model.
        """
        check_fields(values, typing.get_type_hints(cls))
        return cls(**{k: tuple(v) if isinstance(v, list) else v for k, v in values.items()})


def different_settings(theirs: ModelConfig, ours: ModelConfig) -> list[str]:
    """Describes the differences of two architectures; dropout is ignored."""
    pairs = ((name, value, getattr(ours, name)) for name, value in vars(theirs).items())
    return [
        f"{NAMES.get(name, name)} is {_shown(value)} there and {_shown(own)} here"
        for name, value, own in pairs
        if value != own and name not in RATES
    ]


def _shown(value: object) -> object:
    """A square image is one number, as the setting has it."""
    if isinstance(value, tuple) and len(set(value)) == 1:
        return value[0]
    return value
