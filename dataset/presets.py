"""Named policies: lists of transforms for `TrainSet`."""

from collections.abc import Sequence

from dataset.transforms import (
    FilterObjects,
    Letterbox,
    PixelTransform,
    ScaleJitterCropFlip,
    color_jitter,
)


def detection_train(
    size: tuple[int, int],
    *,
    min_scale: float = 0.3,
    max_scale: float = 2.0,
    flip_prob: float = 0.5,
    color_strength: float = 0.0,
    pixel_transforms: Sequence = (),
) -> list:
    """The official augmentation of detection; colours and further pixel transforms by choice.

    Args:
        size: (H, W) of the model input.
        color_strength: 0 is off, as officially.
        pixel_transforms: albumentations transforms that move no pixels, applied in order.
    """
    transforms = [ScaleJitterCropFlip(size, min_scale, max_scale, flip_prob), FilterObjects()]
    if color_strength > 0:
        transforms.append(color_jitter(color_strength))
    return transforms + [PixelTransform(transform) for transform in pixel_transforms]


def evaluation(size: tuple[int, int], mode: str = "letterbox") -> list:
    """The whole picture, nothing random: also what training without augmentation uses."""
    return [Letterbox(size, mode), FilterObjects()]
