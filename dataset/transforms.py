"""Training transforms: small operations (sample, rng) -> sample, applied in order by `TrainSet`.

`train_transforms` and `evaluation` put them together.
"""

import os
import random
import warnings
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from dataset.geometry import Geometry, crop_to_box
from dataset.sample import Sample
from utils.errors import UserError, one_line


class ScaleJitterCropFlip:
    """Random size, a fixed-size window, a mirror: the official augmentation of detection."""

    def __init__(
        self,
        size: tuple[int, int],
        min_scale: float = 0.3,
        max_scale: float = 2.0,
        flip_prob: float = 0.5,
        crop: float | None = None,
        diagonal: bool = False,
        *,
        mode: str = "letterbox",
        flip_pairs: Sequence[tuple[int, int]] | None = None,
    ):
        """
        Args:
            size: (H, W) of the model input.
            min_scale, max_scale: range of the scale jitter; 1 is the largest picture that fits.
                Above 1 a part of the picture is cut away.
            crop: see `box_region`; the samples then hold one object each.
            diagonal: one draw places the window in both directions, as officially, so that it
                never shows the corners beside the main diagonal.
            mode: "letterbox", or "stretch" to fill the input at scale 1, aspect not kept.
            flip_pairs: keypoints that a mirror swaps; None = as the sample has them. Keypoints
                without any are not mirrored: left and right would be learned as one.
        """
        self.size, self.flip_prob, self.crop, self.diagonal = size, flip_prob, crop, diagonal
        self.min_scale, self.max_scale, self.mode = min_scale, max_scale, mode
        self.flip_pairs = flip_pairs

    def __call__(self, sample: Sample, rng: np.random.Generator) -> Sample:
        scale, offset_y, offset_x, coin = rng.random(4)
        if self.flip_pairs is not None:
            sample = replace(sample, flip_pairs=tuple(self.flip_pairs))
        may_flip = sample.keypoints is None or bool(sample.flip_pairs)
        geometry = Geometry.jitter(
            sample.orig_size,
            self.size,
            self.min_scale + (self.max_scale - self.min_scale) * scale,
            (offset_y, offset_y if self.diagonal else offset_x),
            flip=may_flip and coin < self.flip_prob,
            crop=box_region(sample, self.crop),
            mode=self.mode,
        )
        return sample.moved(geometry)


class Letterbox:
    """Resizes and pads as in evaluation, without randomness."""

    def __init__(self, size: tuple[int, int], mode: str = "letterbox", crop: float | None = None):
        self.size, self.mode, self.crop = size, mode, crop

    def __call__(self, sample: Sample, rng: np.random.Generator) -> Sample:
        region = box_region(sample, self.crop)
        geometry = Geometry.letterbox(sample.orig_size, self.size, self.mode, region)
        return sample.moved(geometry, antialias=True)


def box_region(sample: Sample, pad_scale: float | None) -> tuple[int, int, int, int] | None:
    """The region around the box of a one-object sample, as the `crop` of a `Geometry`.

    Args:
        pad_scale: what is added on each side, in sides of the box; None = the whole image.
    """
    if pad_scale is None or len(sample.boxes) == 0:
        return None
    if len(sample.boxes) > 1:
        raise ValueError(f"a crop to the box needs samples of one object, got {len(sample.boxes)}")
    return crop_to_box(sample.boxes[0], sample.orig_size, pad_scale)


class FilterObjects:
    """Removes objects that the crop left without area (the only filter of the official code).

    With outlines those of which it left no outline, too.
    """

    def __call__(self, sample: Sample, rng: np.random.Generator) -> Sample:
        keep = (sample.boxes[:, 2:] > sample.boxes[:, :2]).all(1)
        if sample.polygons is not None:
            keep &= np.array([len(parts) > 0 for parts in sample.polygons], dtype=bool)
        return sample.select(keep)


class PixelTransform:
    """An albumentations transform, or a composition of them, that changes pixels but moves none."""

    def __init__(self, transform):
        self.transform = transform
        for leaf in _leaves(transform):
            if not _only_pixels(leaf):
                raise UserError(
                    f"{type(leaf).__name__} may move pixels, and boxes would not follow; use "
                    "albumentations transforms of pixels alone (ImageOnlyTransform) and leave "
                    "geometry to the settings of the scale jitter"
                )

    def __call__(self, sample: Sample, rng: np.random.Generator) -> Sample:
        # one pair of generators for all: set_random_seed would give every child the same draws
        seed = int(rng.integers(2**32))
        self.transform.set_random_state(np.random.default_rng(seed), random.Random(seed))
        image = self.transform(image=sample.image)["image"]
        if image.shape != sample.image.shape or image.dtype != np.uint8:
            raise UserError(
                f"{type(self.transform).__name__} must keep a uint8 image of shape "
                f"{sample.image.shape}, got {image.dtype} {image.shape}; sizes and normalisation "
                "are not for pixel transforms"
            )
        return replace(sample, image=image)


def color_jitter(strength: float) -> PixelTransform:
    """Brightness, contrast, saturation and hue; strength 1 is the usual strong setting."""
    alb = _albumentations()
    return PixelTransform(
        alb.ColorJitter(
            brightness=_around_one(0.4 * strength),
            contrast=_around_one(0.4 * strength),
            saturation=_around_one(0.4 * strength),
            hue=(-min(0.1 * strength, 0.5), min(0.1 * strength, 0.5)),
            p=0.8,
        )
    )


def _around_one(spread: float) -> tuple[float, float]:
    return max(0.0, 1 - spread), 1 + spread


def _albumentations():
    """Imported on demand: it takes seconds, and asks the network for its newest version."""
    os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")
    import albumentations

    return albumentations


def _leaves(transform) -> list:
    """The single transforms of a composition, which may be nested."""
    if isinstance(transform, _albumentations().BaseCompose):
        return [leaf for child in transform.transforms for leaf in _leaves(child)]
    return [transform]


def _only_pixels(transform) -> bool:
    alb = _albumentations()
    return isinstance(transform, alb.ImageOnlyTransform) or type(transform) is alb.NoOp


def train_transforms(
    jitter: ScaleJitterCropFlip, *, color_strength: float = 0.0, pixel_transforms: Sequence = ()
) -> list:
    """The training augmentation of every task; the defaults are the official ones of detection.

    Args:
        color_strength: of the colour jitter; 0 is off, as officially.
        pixel_transforms: albumentations transforms that move no pixels, applied in order.
    """
    transforms = [jitter, FilterObjects()]
    if color_strength > 0:
        transforms.append(color_jitter(color_strength))
    return transforms + [PixelTransform(transform) for transform in pixel_transforms]


def evaluation(
    size: tuple[int, int], mode: str = "letterbox", *, crop: float | None = None
) -> list:
    """The transforms of evaluation: the whole picture; also for training without augmentation.

    Args:
        crop: see `box_region`; only the surroundings of the one object.
    """
    return [Letterbox(size, mode, crop), FilterObjects()]


def load_pixel_transforms(path: str) -> list:
    """Loads the user's albumentations pipeline, a file of `A.save`; an empty list for ""."""
    if not path:
        return []
    if not Path(path).is_file():
        raise UserError(f"no pixel_transform file at {path}; write one with albumentations.save")
    import albumentations as A  # takes seconds to import

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the error below names the reason, on one line
            return [
                A.load(path, data_format="yaml" if path.endswith((".yaml", ".yml")) else "json")
            ]
    except Exception as error:  # the content decides which class is built, and how that fails
        reason = f"it names {error}" if isinstance(error, KeyError) else one_line(error)
        raise UserError(
            f"{path} is not a saved albumentations pipeline ({reason}); write one with "
            "albumentations.save, without Lambda"
        ) from error
