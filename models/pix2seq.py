"""The whole model: image encoder, projection, autoregressive decoder.

`Pix2Seq` comes first; the projection, which follows the official `ar_model.py`, and the functions
that build a model from a `ModelConfig` come after it.
"""

import math
from collections.abc import Callable, Sequence
from importlib import import_module
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.config import ModelConfig
from models.decoder import Decoder
from models.encoder import build_encoder
from models.generate import Generated, GenerationRequest, SamplingOptions, generate
from models.layers import (
    DropPath,
    Mlp,
    init_linear,
    layer_norm,
    sin_cos_1d,
    sin_cos_2d,
    trunc_normal,
)


class Pix2Seq(nn.Module):
    """Images and tokens to the logits of the next tokens (Pix2Seq section 3, Pix2SeqV2 section 3).

    Attributes:
        config: the `ModelConfig` it was built from.
        meta: JSON values that a weight file also records: vocabulary, categories, tasks.
        decode_mode: how `generate` computes its steps, one of `models.decode_step.MODES`.
    """

    def __init__(
        self, config: ModelConfig, encoder: nn.Module, projection: nn.Module, decoder: Decoder
    ):
        super().__init__()
        self.config, self.meta, self.decode_mode = config, {}, "plain"
        self.encoder, self.projection, self.decoder = encoder, projection, decoder
        for name, values in (("mean", config.image_mean), ("std", config.image_std)):
            statistics = torch.tensor(values, dtype=torch.float32)[:, None, None]  # (3, 1, 1)
            self.register_buffer(name, statistics, persistent=False)
        # what `prepare` made of the encoder, or nothing; in a tuple it is no submodule: not saved
        self.fast_encoder: tuple[nn.Module, ...] = ()

    @property
    def device(self) -> torch.device:
        return self.mean.device

    @property
    def dtype(self) -> torch.dtype:
        """Type of the weights; images are always normalised in float32."""
        return self.decoder.token_embedding.dtype

    def encode(self, images: Tensor) -> Tensor:
        """Encodes images; the result can be decoded any number of times.

        Call it under `torch.no_grad()` outside of training, and `eval()` before.

        Args:
            images: (B, 3, H, W) uint8, or float in [0, 1]; floats are neither clamped nor checked.

        Returns:
            (B, S, D) memory: projected, with positions.
        """
        if images.dtype == torch.uint8:
            images = images.float() / 255
        images = (images - self.mean) / self.std
        fast = self.fast_encoder and not torch.is_grad_enabled()
        encoder = self.fast_encoder[0] if fast else self.encoder
        return self.projection(encoder(images.to(self.dtype)))

    def forward(
        self,
        images: Tensor,
        tokens: Tensor,
        supervised: Tensor | None = None,
        targets: Tensor | None = None,
        loss_fn: Callable[[Tensor, Tensor], Tensor] | None = None,
    ) -> Tensor:
        """Teacher-forced logits, or losses computed from them.

        Args:
            images: (B, 3, H, W), see `encode`.
            tokens: (B, T) or (B, N, T), N sequences per image.
            supervised: compute logits only for these tokens, whose target has a loss weight: (M,)
                indices into the flattened `tokens` (`Batch.supervised`).
            targets, loss_fn: return `loss_fn` of the M logits and targets, not the logits, which
                may not fit into memory all together; see `Decoder.losses`.

        Returns:
            (B * N, T, V), or (M, V), or with `loss_fn` (M, ...).
        """
        hidden = self.decoder(tokens.flatten(0, -2), self.encode(images))  # (B * N, T, D)
        if supervised is not None:
            hidden = hidden.flatten(0, 1).index_select(0, supervised)  # (M, D)
        if loss_fn is not None:
            return self.decoder.losses(hidden, targets, loss_fn)
        return self.decoder.logits(hidden)

    def generate(
        self,
        memory: Tensor,
        prompt: Tensor,
        *,
        max_new_tokens: int,
        eos_id: int | None = None,
        stop: Callable[[Generated], Tensor] | None = None,
        temperature: float = 1.0,
        top_k: int = 1,
        top_p: float = 1.0,
        num_samples: int = 1,
        allowed: Callable[[Tensor], Tensor] | None = None,
        suppress: Sequence[int] = (),
        score_range: tuple[int, int] | None = None,
        unscored_range: tuple[int, int] | None = None,
        uniforms: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> tuple[Tensor, ...]:
        """Continues prompts by cached decoding; see `models.generate.GenerationRequest`.

        Args:
            memory: (B, S, D) encoded images.
            prompt: (B, P) or (B, N, P) ids, N prompts per image.
            temperature, top_k, top_p: see `models.generate.SamplingOptions`.

        Returns:
            tokens, log_probs: (B * N * num_samples, max_new_tokens), samples fastest; with
            `score_range` also best, best_log_probs; see `models.generate.Generated`.
        """
        request = GenerationRequest(
            prompt,
            max_new_tokens,
            eos_id=eos_id,
            stop=stop,
            options=SamplingOptions(temperature, top_k, top_p),
            num_samples=num_samples,
            allowed=allowed,
            suppress=suppress,
            score_range=score_range,
            unscored_range=unscored_range,
            uniforms=uniforms,
            generator=generator,
            mode=self.decode_mode,
        )
        return generate(self.decoder, memory, request).as_tuple()

    # ---- for inference only: number type, decoding mode, a faster encoder ------------------------

    def prepare(
        self,
        *,
        dtype: torch.dtype = torch.float32,
        mode: str = "plain",
        fold: bool = False,
        encoder_int8: bool = False,
    ) -> None:
        """Sets the number type of the model and its decoding mode.

        A model as it is loaded computes in float32 and decodes "plain"; `infer.predictor.Predictor`
        prepares it with "auto". The work is done in `models/prepare.py`.

        Args:
            dtype: `torch.bfloat16` halves the bytes of weights and cache that a step reads. Logits
                are then rounded to bfloat16 before the float32 softmax, except in mode "native".
                `torch.int8` rounds the matrices that a step reads, keeps keys and values of images
                as bfloat16 and leaves all else in float32.
            mode: one of `models.decode_step.CHOICES`; "compiled" also compiles the encoder.
            fold: in float32, encode with batch norms folded into convolutions, for a model in eval
                mode whose weights do not change afterwards. Weight files are not affected.
            encoder_int8: with int8, encode with linear layers in 8 bits, too, weights and
                activations, by the package torchao. As `fold`, it is for weights that do not
                change afterwards, on this device.

        Raises:
            ValueError: there is no such mode.
            UserError: "native" or int8 without a C++ compiler, or not on a CPU; `encoder_int8`
                without int8, linear layers or torchao.
        """
        import_module("models.prepare").prepare(
            self, dtype, mode, fold=fold, encoder_int8=encoder_int8
        )

    # The fast encoder is a copy: whatever may change the weights or their type drops it.

    def train(self, mode: bool = True) -> "Pix2Seq":
        """Switches training mode; in training, batch norms are unfolded again."""
        if mode:
            self.fast_encoder = ()
        return super().train(mode)

    def _apply(self, *args, **options) -> "Pix2Seq":  # another device or type
        self.fast_encoder = ()
        return super()._apply(*args, **options)

    def load_state_dict(self, *args, **options):
        self.fast_encoder = ()
        return super().load_state_dict(*args, **options)

    # ---- for training only -----------------------------------------------------------------------

    def compile(self, *args, **options) -> None:
        """As `nn.Module.compile`, but `losses_in_chunks` stays uncompiled: its loops vary."""
        self.decoder.losses_in_chunks = torch.compiler.disable(self.decoder.losses_in_chunks)
        super().compile(*args, **options)

    @property
    def blocks(self) -> list[nn.Module]:
        """The transformer blocks of the encoder and the layers of the decoder, in order."""
        return [*getattr(self.encoder, "blocks", ()), *self.decoder.layers]


class ChannelAverage(nn.Module):
    """Averages neighbouring channels, without parameters (layout of the simple ports)."""

    def __init__(self, dim: int):
        super().__init__()
        self.pool = nn.AdaptiveAvgPool1d(dim)

    def forward(self, features: Tensor) -> Tensor:
        """(B, S, C) -> (B, S, D)"""
        return self.pool(features)


class Projection(nn.Module):
    """Linear, LayerNorm, + 2-D positions, one residual pre-norm MLP block.

    Args:
        dim_in, dim: widths of encoder and decoder.
        grid: (h, w) of the encoder's tokens.
        mode: "linear" stops after the LayerNorm, "linear_p" after the positions, "mlp" does all.
        mlp_ratio: hidden width of the MLP block divided by `dim`.
        positions: "sin_cos" (computed) or "learned".
        num_prefix_tokens: tokens in front of the grid's, which get no position.
        drop: dropout inside the MLP block.
        drop_path: rate at which the MLP block is skipped, per image.
    """

    def __init__(
        self,
        dim_in: int,
        dim: int,
        grid: tuple[int, int],
        *,
        mode: str = "mlp",
        mlp_ratio: int = 4,
        positions: str = "sin_cos",
        num_prefix_tokens: int = 0,
        drop: float = 0.0,
        drop_path: float = 0.0,
    ):
        super().__init__()
        self.mode, self.num_prefix_tokens = mode, num_prefix_tokens
        self.proj = nn.Linear(dim_in, dim)
        self.proj_ln = layer_norm(dim)
        if mode != "linear" and positions == "learned":
            self.positions = nn.Parameter(trunc_normal(grid[0] * grid[1], dim))
        elif mode != "linear":
            self.register_buffer("positions", sin_cos_2d(grid, dim), persistent=False)  # (S, D)
        if mode == "mlp":
            self.mlp_ln = layer_norm(dim)
            self.mlp = Mlp(dim, dim * mlp_ratio, drop)
            self.drop_path = DropPath(drop_path)
        self.apply(init_linear)

    def forward(self, features: Tensor) -> Tensor:
        """(B, S, C) -> (B, S, D)"""
        x = self.proj_ln(self.proj(features))
        if self.mode != "linear":
            x = x + F.pad(self.positions, (0, 0, self.num_prefix_tokens, 0))
        if self.mode == "mlp":
            x = x + self.drop_path(self.mlp(self.mlp_ln(x)))
        return x


def build_model(
    config: ModelConfig, *, pretrained: bool = False, encoder_weights: Path | None = None
) -> Pix2Seq:
    """A model with new weights, in float32 for any default dtype.

    Args:
        pretrained: fetch pretrained weights of the encoder.
        encoder_weights: a file of them, in place of `pretrained`.
    """
    encoder = build_encoder(config, pretrained=pretrained, weights=encoder_weights)
    projection = _build_projection(config, encoder)
    decoder = _build_decoder(config, math.prod(encoder.grid))
    return Pix2Seq(config, encoder, projection, decoder).float()


def _build_projection(config: ModelConfig, encoder: nn.Module) -> nn.Module:
    if config.projection == "average":
        return ChannelAverage(config.dim)
    return Projection(
        encoder.dim,
        config.dim,
        encoder.grid,
        mode=config.projection,
        mlp_ratio=config.projection_mlp_ratio,
        positions=config.projection_positions,
        num_prefix_tokens=encoder.num_prefix_tokens,
        drop=config.drop_units,
        drop_path=config.drop_path,
    )


def _build_decoder(config: ModelConfig, memory_len: int) -> Decoder:
    post_norm = config.decoder_norm == "post"
    return Decoder(
        vocab_size=config.vocab_size,
        max_len=config.max_len,
        dim=config.dim,
        num_layers=config.num_layers,
        num_heads=config.num_heads,
        mlp_dim=config.mlp_dim,
        tie_embeddings=config.tie_embeddings,
        output_bias=config.output_bias,
        positions=config.decoder_positions,
        post_norm=post_norm,
        memory_len=memory_len if post_norm else None,
        drop_path=config.drop_path,
        drop_units=config.drop_units,
        drop_attention=config.drop_attention,
    )


@torch.no_grad()
def smooth_coordinates(model: Pix2Seq, coord_range: tuple[int, int]) -> None:
    """Initialises coordinate tokens and learned image positions with sin-cos position codes.

    Neighbouring bins then start with similar embeddings, and tokens and image use one code for
    places. Only for training from scratch; not in the papers.

    Args:
        coord_range: [first, last + 1) token id of the coordinates.
    """
    lo, hi = coord_range
    dim, std = model.config.dim, 0.02
    codes = sin_cos_1d(torch.arange(hi - lo), dim)  # (bins, D)
    model.decoder.token_embedding[lo:hi] = codes * std * 2**0.5
    if isinstance(getattr(model.projection, "positions", None), nn.Parameter):
        centers = [
            (torch.arange(n, dtype=torch.float32) + 0.5) / n * (hi - lo) for n in model.encoder.grid
        ]
        y, x = torch.meshgrid(*centers, indexing="ij")
        halves = [sin_cos_1d(c.flatten(), dim // 2) for c in (y, x)]
        model.projection.positions.copy_(torch.cat(halves, dim=1))
