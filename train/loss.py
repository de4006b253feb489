"""The loss of all tasks: a token-weighted mean of cross entropies (official `compute_loss`)."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dataset.batch import Batch, pad_batch
from tokenizer.base import TOKEN_KINDS, kinds_of
from tokenizer.vocabulary import Vocabulary
from utils.errors import UserError, import_function, is_import_path, one_line
from utils.setting_rules import RULES

# Kinds of tokens whose loss the curves show apart; "noise" is the class of a noise object,
# "invisible" the place of a keypoint that is not labelled.
LOSS_KINDS = (*TOKEN_KINDS, "noise", "invisible")
IGNORED = -100  # a target that costs nothing


@dataclass(frozen=True)
class LossType:
    """The loss of a token (official `get_loss`; "hl_gauss" and user functions are additions).

    - "xent": cross entropy; `parameter` is the label smoothing a: y (1 - a) + a / V
    - "focal": cross entropy times (1 - p) ** `parameter`
    - "logistic": a yes or no per token id; `parameter` is the label smoothing a: a + y (1 - 2 a)
    - "hl_gauss": cross entropy; the target of a coordinate is a Gaussian over the bins, with
      `parameter` bins as its standard deviation (HL-Gauss, arXiv 1806.04613; see `gaussian_bins`)
    - "package.module:function": called as function(logits (M, V) float32, targets (M,), `vocab`),
      returns (M,); see docs/extending.md
    """

    name: str = "xent"
    parameter: float = 0.0
    vocab: Vocabulary | None = None  # what the ids mean; "xent", "focal", "logistic" need it not
    function: Callable[[Tensor, Tensor, Vocabulary], Tensor] | None = None  # one's own

    @classmethod
    def parse(cls, text: str, vocab: Vocabulary | None = None) -> "LossType":
        """From "name", "name@parameter" or "package.module:function".

        Raises:
            ValueError: there is no such loss.
            UserError: the function cannot be imported, or takes other arguments.
        """
        if is_import_path(text):
            function = import_function("loss", text, "logits, targets, vocab")
            return cls(text, vocab=vocab, function=function)
        if wanted := RULES["loss"].problem(text):
            raise ValueError(f"loss must be {wanted}, got {text!r}")
        name, _, parameter = text.partition("@")
        return cls(name, float(parameter or 0), vocab)


XENT = LossType()


def token_losses(
    logits: Tensor, targets: Tensor, loss_type: LossType = XENT, *, length: int = 1
) -> Tensor:
    """Loss of every token.

    Args:
        logits: (M, V) any float type; computed in float32 at least.
        targets: (M,); an id outside the vocabulary is the wrong answer to everything, as the
            all-zero one-hot of the official code is.
        length: tokens of a sequence. "logistic" subtracts its logarithm from the logits (the
            official code does, where the size of the vocabulary may have been meant).

    Returns:
        (M,)
    """
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    parameter = loss_type.parameter
    inside = (targets >= 0) & (targets < logits.shape[1])
    if loss_type.function is not None:
        losses = loss_type.function(
            logits, targets.where(inside, loss_type.vocab.pad), loss_type.vocab
        )
        return losses * inside
    if loss_type.name == "logistic":
        logits = logits - math.log(length)
        of_target = _pick(logits, targets, inside)
        negative = F.softplus(logits).sum(1) - parameter * logits.sum(1)  # every answer is no
        return negative - (1 - 2 * parameter) * of_target
    if loss_type.name == "focal":
        probs = _pick(logits.softmax(1), targets, inside)
        # No gradient of a root at 1: it is infinite there.
        focus = (1 - probs).clamp_min(1e-12) ** parameter
        return -focus * (probs + 1e-8).log() * inside
    loss = F.cross_entropy(
        logits, targets.where(inside, IGNORED), reduction="none", ignore_index=IGNORED
    )
    if loss_type.name == "hl_gauss":
        low, high = loss_type.vocab.coord_range
        bins = gaussian_bins(targets - low, high - low, parameter)  # (M, bins)
        soft = logits.logsumexp(1) - (bins * logits[:, low:high]).sum(1)
        loss = soft.where((targets >= low) & (targets < high), loss)
    elif parameter:
        spread = logits.logsumexp(1) - logits.mean(1)  # cross entropy with a uniform guess
        loss = (1 - parameter) * loss + parameter * spread
    return loss


def gaussian_bins(bins: Tensor, num_bins: int, sigma: float) -> Tensor:
    """A normal distribution around a bin, cut off at the first and the last (HL-Gauss).

    The probability of a bin is the integral over its width, as in the histogram loss of Imani and
    White (arXiv 1806.04613). Farebrother et al. (arXiv 2403.03950) use `sigma` = 0.75.

    Args:
        bins: (M,) the true ones; one outside counts as the nearest.
        sigma: standard deviation, in bins; towards 0 it becomes the one-hot.

    Returns:
        (M, num_bins) float32, sums to 1.
    """
    edges = torch.arange(num_bins + 1, device=bins.device) - 0.5
    distances = edges - bins.clamp(0, num_bins - 1)[:, None]  # (M, num_bins + 1)
    below = torch.special.ndtr(distances.float() / sigma)
    return below.diff(dim=1) / (below[:, -1:] - below[:, :1])


def _pick(values: Tensor, targets: Tensor, inside: Tensor) -> Tensor:
    """(M, V) at targets (M,); 0 where a target is outside."""
    return values.gather(1, targets.where(inside, 0)[:, None])[:, 0] * inside


def check_loss(text: str, vocab: Vocabulary) -> None:
    """Tests a user's loss function on a few tokens of all kinds.

    Raises:
        UserError: it cannot be imported, fails, or does not return a loss per token.
    """
    loss_type = LossType.parse(text, vocab)
    if loss_type.function is None:
        return
    ids = [vocab.pad, vocab.class0 + 1, vocab.coord0, vocab.coord_range[1] - 1, vocab.size - 1]
    logits = torch.zeros(len(ids), vocab.size, requires_grad=True)
    try:
        losses = loss_type.function(logits, torch.tensor(ids), vocab)
        shape = tuple(getattr(losses, "shape", (type(losses).__name__,)))
        if shape != (len(ids),):
            raise ValueError(
                f"it returns {shape} for logits {tuple(logits.shape)}, not one loss "
                f"per token, ({len(ids)},)"
            )
        losses.sum().backward()
        if not (losses.isfinite().all() and logits.grad.isfinite().all()):
            raise ValueError("a loss or its gradient is no finite number where all logits are 0")
    except Exception as error:  # the function is not ours
        raise UserError(
            f"loss {text!r} does not work ({type(error).__name__}: {one_line(error)}); correct it, "
            "see docs/extending.md"
        ) from error


def weighted_mean(losses: Tensor, weights: Tensor, total: float | None = None) -> Tensor:
    """Sum of weight * loss over sum of weights; there is no other masking.

    Args:
        losses, weights: (M,) of tokens.
        total: the sum of the weights of all tokens that the mean is over, if these are a part of
            them. The results of all parts add up to the mean. None = the sum of `weights`.
    """
    return (losses * weights).sum() / ((weights.sum() if total is None else total) + 1e-9)


def batch_loss(model: nn.Module, batch: Batch, loss_type: LossType = XENT) -> Tensor:
    """Loss of one batch of one task, on the device of the batch."""
    losses, weights, _ = supervised_losses(model, batch, loss_type)
    return weighted_mean(losses, weights)


def supervised_losses(
    model: nn.Module, batch: Batch, loss_type: LossType = XENT
) -> tuple[Tensor, Tensor, Tensor]:
    """Losses of the M tokens of a batch with loss weight, on the device of the batch.

    Only these tokens are projected onto the vocabulary, and of many not all at a time
    (`Decoder.losses`).

    Returns:
        (M,) losses, (M,) weights, (M,) targets.
    """
    images = pad_batch(batch.images, batch.unpadded)
    weights, supervised = batch.token_weights.flatten(), batch.supervised
    if supervised is None:
        supervised = weights.nonzero()[:, 0]  # (M,)
    targets, weights = batch.target_tokens.flatten()[supervised], weights[supervised]  # (M,) each
    length = batch.full_length or batch.target_tokens.shape[-1]
    loss_fn = partial(token_losses, loss_type=loss_type, length=length)
    losses = model(images, batch.input_tokens, supervised, targets, loss_fn)  # (M,)
    return losses, weights, targets


@dataclass(frozen=True)
class TokenKinds:
    """The kinds of the tokens of one task, in the order of `LOSS_KINDS`."""

    vocab: Vocabulary
    eos_id: int | None = None  # of the task's tokenizer

    def sums(self, losses: Tensor, weights: Tensor, targets: Tensor) -> Tensor:
        """Sums over the tokens of each kind, on their device, without synchronisation.

        Args:
            losses, weights, targets: (M,) of `supervised_losses`.

        Returns:
            (kinds, 2) float32: weight * loss, weight.
        """
        kinds = kinds_of(targets, self.vocab, self.eos_id)
        for kind, token in (("noise", self.vocab.fake), ("invisible", self.vocab.invisible)):
            if token is not None:
                kinds = kinds.masked_fill(targets == token, LOSS_KINDS.index(kind))
        numbers = torch.arange(len(LOSS_KINDS), device=targets.device)[:, None]
        of_kind = (kinds == numbers)[..., None]  # (kinds, M, 1)
        rows = torch.stack([losses.detach() * weights, weights], 1).float()  # (M, 2)
        return torch.where(of_kind, rows, 0).sum(1)


def token_weights(micro: Sequence[dict[str, Batch]]) -> list[float]:
    """The sum of the token weights of each task, over the batches of a step."""
    return [
        sum(float(batches[task].token_weights.double().sum()) for batches in micro)
        for task in micro[0]
    ]


def autocast(device: torch.device, dtype: torch.dtype | None) -> torch.autocast:
    """The autocast context of `dtype`; None = no mixed precision."""
    return torch.autocast(device.type, dtype=dtype or torch.bfloat16, enabled=dtype is not None)


def amp_dtype(amp: str, device: torch.device) -> torch.dtype | None:
    """The number type of mixed precision; None = float32.

    Args:
        amp: "off", "bf16", "fp16", or "auto" (on CUDA bf16, or fp16 where the device only emulates
            bf16, which is slow; elsewhere off).

    Raises:
        ValueError: `amp` is none of these.
    """
    types = {"off": None, "bf16": torch.bfloat16, "fp16": torch.float16}
    if amp not in (*types, "auto"):
        raise ValueError(f"amp must be one of {', '.join(types)}, auto, got {amp!r}")
    if amp == "auto" and device.type == "cuda":
        has_bf16 = torch.cuda.is_bf16_supported(including_emulation=False)
        return torch.bfloat16 if has_bf16 else torch.float16
    return types.get(amp)
