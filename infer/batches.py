"""One batch of images after another, for the Python API."""

from collections.abc import Callable

from torch import Tensor

from infer.encode import as_tensor


def decode_images(
    images,
    decode: Callable[..., list],
    *given,
    batch_size: int,
):
    """Decodes one image, or a list of them in batches.

    Args:
        images: a path, a PIL image or an RGB uint8 array (H, W, 3), or a list of them.
        decode: called as decode(tensors, *given) with B uint8 (3, h, w) and what was given of these
            images -> B results.
        given: what comes with the images: of one image, or a list with an entry per image; None
            = nothing; a name or number is taken for all.

    Returns:
        a result, or a list of them for a list.
    """
    if not isinstance(images, list):
        given = [None if value is None else [value] for value in given]
        return decode_images([images], decode, *given, batch_size=batch_size)[0]
    given = [[v] * len(images) if isinstance(v, (int, str)) else v for v in given]
    parts = [slice(i, i + batch_size) for i in range(0, len(images), batch_size)]

    def decode_part(part: slice) -> list:
        tensors: list[Tensor] = [as_tensor(image) for image in images[part]]
        of_part = [None if values is None else values[part] for values in given]
        return decode(tensors, *of_part)

    return [result for part in parts for result in decode_part(part)]
