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
    diagonal: bool = False,
) -> list:
    """The official augmentation of detection; colours and further pixel transforms by choice.

    Args:
        size: (H, W) of the model input.
        color_strength: 0 is off, as officially.
        pixel_transforms: albumentations transforms that move no pixels, applied in order.
        diagonal: see `ScaleJitterCropFlip`.
    """
    transforms = [
        ScaleJitterCropFlip(size, min_scale, max_scale, flip_prob, diagonal=diagonal),
        FilterObjects(),
    ]
    if color_strength > 0:
        transforms.append(color_jitter(color_strength))
    return transforms + [PixelTransform(transform) for transform in pixel_transforms]


def segmentation_train(
    size: tuple[int, int],
    *,
    min_scale: float = 0.3,
    max_scale: float = 1.0,
    flip_prob: float = 0.5,
    color_strength: float = 0.0,
    pixel_transforms: Sequence = (),
    diagonal: bool = False,
    crop: float | None = None,
) -> list:
    """The official augmentation of segmentation: the picture is never cut, only made smaller.

    Args:
        crop: see `box_region`; the samples then hold one object each.
    """
    transforms = [
        ScaleJitterCropFlip(size, min_scale, max_scale, flip_prob, crop, diagonal),
        FilterObjects(),
    ]
    if color_strength > 0:
        transforms.append(color_jitter(color_strength))
    return transforms + [PixelTransform(transform) for transform in pixel_transforms]


def keypoint_train(
    size: tuple[int, int],
    *,
    min_scale: float = 0.3,
    max_scale: float = 1.0,
    flip_prob: float = 0.5,
    color_strength: float = 0.0,
    pixel_transforms: Sequence = (),
    diagonal: bool = False,
    crop: float | None = 0.5,
) -> list:
    """The official augmentation of keypoints, and a mirror, which the official one has not.

    The samples hold one object each, of which `crop` shows the surroundings (`box_region`): at 0.5
    twice the box. A mirror swaps left and right keypoints.
    """
    return segmentation_train(
        size,
        min_scale=min_scale,
        max_scale=max_scale,
        flip_prob=flip_prob,
        color_strength=color_strength,
        pixel_transforms=pixel_transforms,
        diagonal=diagonal,
        crop=crop,
    )


def captioning_train(
    size: tuple[int, int],
    *,
    min_scale: float = 0.3,
    max_scale: float = 2.0,
    color_strength: float = 0.0,
    pixel_transforms: Sequence = (),
    diagonal: bool = False,
) -> list:
    """The official augmentation of captioning: never a mirror, since captions say left and right.

    Scales above 1 cut away parts that captions may name; 1 as `max_scale` keeps the whole picture.
    """
    return detection_train(
        size,
        min_scale=min_scale,
        max_scale=max_scale,
        flip_prob=0.0,
        color_strength=color_strength,
        pixel_transforms=pixel_transforms,
        diagonal=diagonal,
    )


def evaluation(
    size: tuple[int, int], mode: str = "letterbox", *, crop: float | None = None
) -> list:
    """The whole picture, nothing random: also what training without augmentation uses.

    Args:
        crop: see `box_region`; only the surroundings of the one object.
    """
    return [Letterbox(size, mode, crop), FilterObjects()]
