"""The input of a training or evaluation step: from samples to a batch, from a batch to floats.

On the host images are uint8. On the device they become floats in [0, 1] with padding. Training
batches lose the tail of the sequences that no loss looks at.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace

import numpy as np
import torch
from torch import Tensor

from dataset.geometry import Geometry
from tokenizer.base import TokenSequence

PAD_VALUE = 0.3  # of [0, 1], as in the official implementation


@dataclass(frozen=True)
class Resizing:
    """Options of resizing and padding; converted weights can differ from the default."""

    antialias: bool = True  # when it is made smaller
    pad_value: float | Sequence[float] = PAD_VALUE  # of [0, 1], for all channels or one for each
    centered: bool = False  # padding on all sides, not just at the bottom and right


OFFICIAL_RESIZING = Resizing()


def pad_batch(images: Tensor, unpadded: Tensor) -> Tensor:
    """Converts to [0, 1] and writes the padding, on the device of `images`.

    Args:
        images: (B, 3, H, W) uint8, which stay as they are; what lies outside `unpadded` is ignored.
        unpadded: (B, 2) int (h, w) of each picture, at the top left.

    Returns:
        (B, 3, H, W) float32.
    """
    outside = padding_of(images, unpadded)
    images = images.to(torch.float32, memory_format=torch.contiguous_format, copy=True)
    return images.div_(255).masked_fill_(outside, PAD_VALUE)


def padding_of(images: Tensor, unpadded: Tensor) -> Tensor:
    """(B, 1, H, W) bool mask of the padding; same arguments as `pad_batch`."""
    height, width = images.shape[-2:]
    unpadded = unpadded.to(images.device)
    rows = torch.arange(height, device=images.device) >= unpadded[:, :1]  # (B, H)
    columns = torch.arange(width, device=images.device) >= unpadded[:, 1:]  # (B, W)
    return rows[:, None, :, None] | columns[:, None, None, :]


def letterbox_batch(
    images: Sequence[Tensor],
    geometries: Sequence[Geometry],
    device: torch.device | str = "cpu",
    *,
    pad_value: float | Sequence[float] = PAD_VALUE,
    antialias: bool = True,
) -> Tensor:
    """Sends the uint8 originals to the device and resizes and pads them there.

    Args:
        images: B uint8 (3, h, w) tensors of any sizes.
        geometries: one per image (`Geometry.letterbox`), all with the same model input (H, W).
        pad_value, antialias: see `Resizing`.

    Returns:
        (B, 3, H, W) float32 in [0, 1] on `device`.
    """
    sizes = {geometry.size for geometry in geometries}
    if len(sizes) != 1:
        raise ValueError(f"all geometries must have one model input size, got {sorted(sizes)}")
    out = torch.empty(len(images), 3, *sizes.pop(), dtype=torch.float32, device=device)
    out[:] = torch.tensor(pad_value, dtype=out.dtype, device=device).reshape(-1, 1, 1)
    for row, image, geometry in zip(out, images, geometries, strict=True):
        (y, x), (h, w) = geometry.pad, geometry.unpadded
        row[:, y : y + h, x : x + w] = geometry.resize_tensor(
            image.to(device, non_blocking=True), antialias=antialias
        )
    return out


NO_PIXELS = torch.zeros(0, dtype=torch.uint8, device="cpu")
TOKENS = ("input_tokens", "target_tokens", "token_weights")


@dataclass(frozen=True)
class TrainItem:
    """One image of a training batch."""

    image: np.ndarray  # (h, w, 3) uint8 RGB, without padding
    size: tuple[int, int]  # (H, W) of the model input
    tokens: TokenSequence
    image_id: int | str
    skipped: tuple[str, ...] = ()  # see `Sample`


@dataclass
class Batch:
    """One training step's input; images are padded and scaled on the device (`pad_batch`)."""

    images: Tensor  # (B, 3, H, W) uint8, the picture at the top left, anything around it
    unpadded: Tensor  # (B, 2) int64, (h, w) of the picture
    input_tokens: Tensor  # (B, T) int64, or (B, N, T) of N sequences per image
    target_tokens: Tensor  # as input_tokens
    token_weights: Tensor  # as input_tokens, float32
    image_ids: list[int | str]
    # (M,) int64 indices of the flattened targets that have a loss weight; found on the host, so
    # that nobody waits
    supervised: Tensor | None = None
    full_length: int = 0  # tokens of a sequence before `trim`; 0 = not recorded
    skipped: tuple[str, ...] = ()  # see `Sample`

    def __len__(self) -> int:
        return len(self.images)

    def to(self, device: torch.device | str, non_blocking: bool = False) -> "Batch":
        return self._each(lambda tensor: tensor.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> "Batch":
        return self._each(lambda tensor: tensor.pin_memory())

    def _each(self, change: Callable[[Tensor], Tensor]) -> "Batch":
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return replace(self, **{k: change(v) for k, v in values.items() if isinstance(v, Tensor)})


@dataclass
class EvalBatch:
    """A batch of original images for evaluation; `letterbox_batch` resizes them on the device.

    All lie in one tensor: each tensor that a loader process sends costs a file descriptor.
    """

    pixels: Tensor  # (n,) uint8, the images one after the other
    sizes: list[tuple[int, int]]  # B of (h, w)
    image_ids: list[int | str]
    skipped: tuple[str, ...] = ()  # why other images are not among them

    def __len__(self) -> int:
        return len(self.sizes)

    @property
    def images(self) -> list[Tensor]:
        """B of uint8 (3, h, w)."""
        parts = self.pixels.split([3 * h * w for h, w in self.sizes])
        return [part.view(3, *size) for part, size in zip(parts, self.sizes, strict=True)]

    def pin_memory(self) -> "EvalBatch":
        return replace(self, pixels=self.pixels.pin_memory())


def collate(items: Sequence[TrainItem], num_lengths: int = 0) -> Batch:
    """Stacks images and token sequences.

    Args:
        num_lengths: see `trim`.
    """
    tokens = {
        "input_tokens": np.stack([item.tokens.input for item in items]),
        "target_tokens": np.stack([item.tokens.target for item in items]),
        "token_weights": np.stack([item.tokens.weight for item in items]),
    }
    full_length = tokens["token_weights"].shape[-1]
    tokens = trim(tokens, num_lengths)
    return Batch(
        images=_stack_images(items),
        unpadded=torch.tensor([item.image.shape[:2] for item in items], device="cpu"),
        **{name: torch.from_numpy(rows) for name, rows in tokens.items()},
        image_ids=[item.image_id for item in items],
        supervised=torch.from_numpy(np.flatnonzero(tokens["token_weights"])),
        full_length=full_length,
        skipped=tuple(reason for item in items for reason in item.skipped),
    )


def _stack_images(items: Sequence[TrainItem]) -> Tensor:
    """(B, 3, H, W) uint8, each image at the top left; the rest is not written (see `pad_batch`).

    The channels stay last in memory: to bring them to the front takes the device (`pad_batch`) a
    tenth of the time.
    """
    out = torch.empty((len(items), *items[0].size, 3), dtype=torch.uint8, device="cpu")
    for row, item in zip(out.numpy(), items, strict=True):
        h, w = item.image.shape[:2]
        row[:h, :w] = item.image
    return out.permute(0, 3, 1, 2)


def collate_originals(
    rows: list[tuple[Tensor, int | str]], skipped: tuple[str, ...] = ()
) -> EvalBatch:
    """A batch of (3, h, w) uint8 images with their ids.

    Args:
        rows: perhaps none.
        skipped: why other images are not among them.
    """
    sizes = [tuple(image.shape[1:]) for image, _ in rows]
    pixels = torch.cat([NO_PIXELS, *(image.reshape(-1) for image, _ in rows)])
    return EvalBatch(pixels, sizes, [image_id for _, image_id in rows], skipped)


def trim(batch: dict[str, np.ndarray], num_lengths: int = 0) -> dict[str, np.ndarray]:
    """Cuts the sequences after the last target with a loss weight in the batch.

    Attention is causal, so nothing that is learned sees what comes later. By their official
    weights most tasks weigh padding, and nothing is cut.

    Args:
        batch: its `TOKENS` are (B, T) or (B, N, T).
        num_lengths: the cut is rounded up to one of so many lengths, so that shapes come again
            (a compiled model is specialised on them, as is attention on a GPU); 0 = it is exact.
    """
    full = batch["token_weights"].shape[-1]
    weighted = np.flatnonzero(batch["token_weights"].reshape(-1, full).any(0))
    step = -(-full // num_lengths) if num_lengths else 1
    end = -(-(int(weighted[-1]) + 1) // step) * step if len(weighted) else full
    if end >= full:
        return batch
    return batch | {name: np.ascontiguousarray(batch[name][..., :end]) for name in TOKENS}
