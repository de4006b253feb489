"""Everything that defines a model's shape; stored with every weight file."""

from dataclasses import asdict, dataclass


@dataclass(frozen=True)
class ModelConfig:
    """Sizes and options of a `Pix2Seq` model. A weight file alone is enough to run: it holds this.

    Defaults are the papers' decoder (Pix2SeqV2 configs) on a timm encoder.
    """

    encoder: str = "deit3_small_patch16_384.fb_in22k_ft_in1k"  # a timm model name
    encoder_stride: int | None = None  # take the feature map of this stride; None = the last one
    image_size: tuple[int, int] = (384, 384)  # (H, W) of the model input, pixels
    image_mean: tuple[float, ...] = (0.485, 0.456, 0.406)  # subtracted from images in [0, 1]
    image_std: tuple[float, ...] = (0.229, 0.224, 0.225)
    projection: str = "mlp"  # encoder -> decoder: "linear" | "linear_p" (+ positions) | "mlp"
    projection_mlp_ratio: int = 4  # hidden width of the projection's MLP block / dim
    dim: int = 512
    num_layers: int = 6
    num_heads: int = 16
    mlp_dim: int = 2048
    vocab_size: int = 3000
    max_len: int = 512  # positions of the decoder, prompt included
    tie_embeddings: bool = True  # one matrix for input tokens and output logits
    output_bias: bool = True
    drop_path: float = 0.1  # same rate in every decoder block; timm's ramp in the encoder
    drop_units: float = 0.1  # dropout between the two layers of an MLP
    drop_attention: float = 0.0  # dropout on attention probabilities

    def __post_init__(self):
        if self.dim % self.num_heads:
            raise ValueError(
                f"dim must be a multiple of num_heads, got dim={self.dim}, "
                f"num_heads={self.num_heads}"
            )
        if self.projection not in ("linear", "linear_p", "mlp"):
            raise ValueError(
                f"projection must be 'linear', 'linear_p' or 'mlp', got {self.projection!r}"
            )

    def to_json(self) -> dict:
        return asdict(self)

    @classmethod
    def from_json(cls, values: dict) -> "ModelConfig":
        return cls(**{k: tuple(v) if isinstance(v, list) else v for k, v in values.items()})
