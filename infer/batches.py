"""One batch of images after another: what the Python API and the evaluations of all tasks share."""

from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

import torch
from torch import Tensor

from infer.encode import as_tensor

Item = TypeVar("Item")


def decode_batches(
    batches: Iterable[tuple[int, Item]],
    decode: Callable[[Item, torch.Generator], list],
    *,
    seed: int,
    device: torch.device,
) -> Iterator[tuple[int, Item, list]]:
    """Decodes numbered batches; the draws of a batch depend on `seed` and its number alone.

    Args:
        decode: a batch and the generator of its draws -> one result per image.

    Returns:
        number, batch and results, as they come.
    """
    generator = torch.Generator(device)
    for number, batch in batches:
        generator.manual_seed(seed + number)
        yield number, batch, decode(batch, generator)


def decode_images(
    images,
    decode: Callable[..., list],
    *given,
    seed: int,
    device: torch.device,
    batch_size: int,
):
    """Decodes one image, or a list of them in batches.

    Args:
        images: a path, a PIL image or an RGB uint8 array (H, W, 3), or a list of them.
        decode: called as decode(tensors, *given, generator=...) with B uint8 (3, h, w) and what was
            given of these images -> B results.
        given: what comes with the images: of one image, or a list with an entry per image; None
            = nothing; a name or number is taken for all.

    Returns:
        a result, or a list of them for a list.
    """
    how = {"seed": seed, "device": device, "batch_size": batch_size}
    if not isinstance(images, list):
        given = [None if value is None else [value] for value in given]
        return decode_images([images], decode, *given, **how)[0]
    given = [[v] * len(images) if isinstance(v, (int, str)) else v for v in given]
    parts = [slice(i, i + batch_size) for i in range(0, len(images), batch_size)]

    def decode_part(part: slice, generator: torch.Generator) -> list:
        tensors: list[Tensor] = [as_tensor(image) for image in images[part]]
        of_part = [None if values is None else values[part] for values in given]
        return decode(tensors, *of_part, generator=generator)

    batches = decode_batches(enumerate(parts), decode_part, seed=seed, device=device)
    return [result for _, _, found in batches for result in found]
