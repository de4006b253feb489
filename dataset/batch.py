"""The input of a training or evaluation step, and how it is put together from samples.

Training batches lose the tail that no loss looks at.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace

import numpy as np
import torch
from torch import Tensor

from tokenizer.base import TokenSequence

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
    # (M,) int64, where the flattened targets carry weight: found on the host, the device need not
    positions: Tensor | None = None
    full_length: int = 0  # tokens of a sequence before its tail was cut; 0 = none was
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
    """Originals, resized on the device (`letterbox_batch`)."""

    images: list[Tensor]  # B of uint8 (3, h, w)
    image_ids: list[int | str]

    def __len__(self) -> int:
        return len(self.images)

    def pin_memory(self) -> "EvalBatch":
        return replace(self, images=[image.pin_memory() for image in self.images])


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
        unpadded=torch.tensor([item.image.shape[:2] for item in items]),
        **{name: torch.from_numpy(rows) for name, rows in tokens.items()},
        image_ids=[item.image_id for item in items],
        positions=torch.from_numpy(np.flatnonzero(tokens["token_weights"])),
        full_length=full_length,
        skipped=tuple(reason for item in items for reason in item.skipped),
    )


def _stack_images(items: Sequence[TrainItem]) -> Tensor:
    """(B, 3, H, W) uint8, each image at the top left; the rest is not written (see `pad_batch`).

    The channels stay last in memory: to bring them to the front takes the device (`pad_batch`) a
    tenth of the time.
    """
    out = torch.empty((len(items), *items[0].size, 3), dtype=torch.uint8)
    for row, item in zip(out.numpy(), items, strict=True):
        h, w = item.image.shape[:2]
        row[:h, :w] = item.image
    return out.permute(0, 3, 1, 2)


def collate_originals(rows: list[tuple[Tensor, int | str]]) -> EvalBatch:
    images, image_ids = zip(*rows, strict=True)
    return EvalBatch(list(images), list(image_ids))


def trim(batch: dict[str, np.ndarray], num_lengths: int = 0) -> dict[str, np.ndarray]:
    """Cuts the sequences behind the last target that carries weight in any of them.

    Attention is causal, so nothing that is learned sees what comes later. By their official
    weights most tasks weigh padding, and nothing is cut.

    Args:
        batch: its `TOKENS` are (B, T) or (B, N, T).
        num_lengths: the cut is rounded up to one of so many lengths, so that shapes come again
            (a compiled model is specialised on them, as is attention on a GPU); 0 = it is exact.
    """
    full = batch["token_weights"].shape[-1]
    weighted = np.flatnonzero(batch["token_weights"].reshape(-1, full).any(0))  # positions
    step = -(-full // num_lengths) if num_lengths else 1
    end = -(-(int(weighted[-1]) + 1) // step) * step if len(weighted) else full
    if end >= full:
        return batch
    return batch | {name: np.ascontiguousarray(batch[name][..., :end]) for name in TOKENS}
