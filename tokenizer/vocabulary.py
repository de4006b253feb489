"""The shared vocabulary, the only place where a token id is a number; coordinates as tokens.

A coordinate in [0, 1] becomes a bin (official `utils.py`: quantize, dequantize). Segmentation and
keypoints share the prompt of one object, and points as tokens.
"""

from dataclasses import asdict, dataclass, field

import numpy as np

TASK_NAMES = ("detection", "segmentation", "keypoint", "captioning")
LAYOUTS = ("official", "simple")
PORT_TASKS = ("detection", "segmentation", "captioning", "keypoint")  # order of the ports' prompts
PROMPT_LEN = 6  # of one object


@dataclass(frozen=True)
class Vocabulary:
    """Layout of the token ids that all tasks share (official layout: `vocab.py` and its configs).

    `pad 0 · prompts 10..13 · fake 30 · separator 40 · invisible 41 · classes 100 + class id ·
    coordinates 1000 + bin · text 3000 + piece`. There is no end token of its own: 0 ends what can
    end, and text ends with its own piece 1. Ranges are half-open and never overlap. Class ids
    above 899 move coordinates and text up; see `for_classes`.

    The layout also says how the boxes of detection are written: "official" is y before x and the
    nearest bin, "simple" is x before y and the bin below, which is decoded at its middle; see
    `simple`. All else that has coordinates is read and written in the official layout only.
    """

    num_bins: int = 1000
    num_text: int = 0  # text pieces; 0 without captions
    pad: int = 0
    prompts: dict[str, int] = field(
        default_factory=lambda: {task: 10 + i for i, task in enumerate(TASK_NAMES)}
    )
    fake: int | None = 30  # class of a noise object, and dropped text; None in the simple layout
    separator: int | None = 40  # between the polygons of one mask
    invisible: int | None = 41  # coordinate of a keypoint that is not labelled
    class0: int = 100  # first class token, that of class id `first_label`
    coord0: int = 1000
    text0: int = 3000
    layout: str = "official"  # one of `LAYOUTS`
    num_classes: int | None = None  # class tokens; None = all ids up to the coordinates
    first_label: int = 0  # class id of the first class token; id 0 is one that no object has
    bos: int | None = None  # starts and ends a sequence; the official layout has neither
    eos: int | None = None

    def __post_init__(self):
        if self.layout not in LAYOUTS:
            raise ValueError(f"layout must be one of {LAYOUTS}, got {self.layout!r}")
        numbers = (self.num_text, self.first_label, *self.prompts.values())
        ids = (self.pad, self.fake, self.separator, self.invisible, self.class0, self.coord0)
        if min(n for n in (*numbers, *ids, self.text0) if n is not None) < 0:
            raise ValueError("token ids and their numbers must not be negative")
        if self.layout == "simple":
            self._check_simple()
            return
        singles = [self.pad, self.fake, self.separator, self.invisible, *self.prompts.values()]
        if self.num_bins < 2:
            raise ValueError(f"num_bins must be at least 2, got {self.num_bins}")
        if len(set(singles)) < len(singles) or max(singles) >= self.class0:
            raise ValueError(f"special tokens must differ and stay below class0, got {singles}")
        if not self.class0 < self.coord0 < self.coord0 + self.num_bins <= self.text0:
            raise ValueError(
                f"token ranges overlap: classes from {self.class0}, {self.num_bins} coordinates "
                f"from {self.coord0}, text from {self.text0}; use fewer bins"
            )

    def _check_simple(self) -> None:
        singles = (self.bos, self.eos, self.pad, self.fake, self.separator, self.invisible)
        prompts = [prompt for prompt in self.prompts.values() if prompt != self.bos]
        ids = [single for single in (*singles, *prompts) if single is not None]
        if self.num_bins < 2 or not self.num_classes or self.num_classes < 1:
            raise ValueError(
                f"num_bins must be at least 2 and num_classes at least 1, got "
                f"num_bins={self.num_bins}, num_classes={self.num_classes}"
            )
        starts = [self.coord0, self.coord_range[1], self.class0, self.class_range[1], min(ids)]
        if sorted(starts) != starts or len(set(ids)) < len(ids) or max(ids) >= self.text0:
            raise ValueError(
                f"token ranges overlap: coordinates {self.coord_range}, classes "
                f"{self.class_range}, special tokens {sorted(ids)}, text from {self.text0}"
            )

    @classmethod
    def for_classes(cls, last: int, *, num_bins: int, num_text: int = 0) -> "Vocabulary":
        """The official layout, enlarged if the classes need more ids.

        Up to class id 899 it is the official one. Beyond, coordinates and text start at the next
        thousand that leaves room: with LVIS's 1,203 classes at 2000 and 4000.

        Args:
            last: the largest class id; 0 without classes.
        """
        needed = cls.class0 + last + 1  # ids up to the last class
        moved = -(-needed // cls.coord0) * cls.coord0 - cls.coord0
        return cls(
            num_bins=num_bins,
            num_text=num_text,
            coord0=cls.coord0 + moved,
            text0=cls.text0 + moved,
        )

    @classmethod
    def simple(
        cls,
        num_bins: int,
        num_classes: int,
        *,
        first_label: int = 1,
        size: int | None = None,
        multi_task: bool = False,
    ) -> "Vocabulary":
        """Layout of the small PyTorch ports (moein-shariatnia/Pix2Seq, JJJYmmm/Pix2SeqV2-Pytorch).

        `coordinates 0 + bin · classes · BOS · EOS · PAD`, and where `size` says that there are
        more ids `· prompts after PAD · invisible 500 · separator 501 · text 550 + piece`; what
        these fixed ids would share with coordinates or classes is left out.

        Args:
            first_label: class id of the first class token: 1 where a port counts classes from 0,
                0 where it has a token for COCO's missing id 0.
            size: number of ids; None = they end after PAD.
            multi_task: sequences start with their task's prompt; otherwise with BOS.
        """
        # BOS, EOS and PAD
        bos = num_bins + num_classes
        pad = bos + 2
        size = pad + 1 if size is None else size
        prompts, invisible, separator, text0 = {"detection": bos}, None, None, size
        # prompts, and fixed ids where they fit
        end = pad + 1
        if multi_task:
            prompts = {task: end + i for i, task in enumerate(PORT_TASKS)}
        if size > 501 and end + len(PORT_TASKS) <= 500:
            invisible, separator, text0 = 500, 501, min(550, size)
        return cls(
            num_bins=num_bins,
            num_text=size - text0,
            pad=pad,
            prompts=prompts,
            fake=None,
            separator=separator,
            invisible=invisible,
            class0=num_bins,
            coord0=0,
            text0=text0,
            layout="simple",
            num_classes=num_classes,
            first_label=first_label,
            bos=bos,
            eos=bos + 1,
        )

    @property
    def size(self) -> int:
        """Number of ids, the width of the model's output."""
        return self.text0 + self.num_text

    @property
    def class_range(self) -> tuple[int, int]:
        """[first, last + 1) token of the classes; that of class id 0 means "no class"."""
        end = self.coord0 if self.num_classes is None else self.class0 + self.num_classes
        return self.class0, end

    @property
    def labels(self) -> range:
        """The class ids that have a token; never 0."""
        first, end = self.class_range
        return range(max(self.first_label, 1), end - first + self.first_label)

    @property
    def unused(self) -> np.ndarray:
        """(size,) bool: the ids without a meaning."""
        singles = (self.pad, self.fake, self.separator, self.invisible, self.bos, self.eos)
        out = np.ones(self.size, bool)
        out[[i for i in (*singles, *self.prompts.values()) if i is not None]] = False
        for first, end in (self.class_range, self.coord_range, (self.text0, self.size)):
            out[first:end] = False
        return out

    @property
    def coord_range(self) -> tuple[int, int]:
        """[first, last + 1) token of the coordinates."""
        return self.coord0, self.coord0 + self.num_bins

    @property
    def noise_label(self) -> int:
        """Label of a noise object: `class0 + label` is the fake class, so it is no real class id.

        In the official layout: 30 - 100 = -70.
        """
        if self.fake is None:
            raise ValueError(
                "fake must be a token id for noise objects, the simple layout has none"
            )
        return self.fake - self.class0 + self.first_label

    @property
    def x_first(self) -> bool:
        """Whether points are written `x y`, not `y x`."""
        return self.layout == "simple"

    @property
    def floors(self) -> bool:
        """Whether quantisation rounds down instead of to the nearest bin."""
        return self.layout == "simple"

    def to_json(self) -> dict:
        return asdict(self)

    @classmethod
    def from_json(cls, values: dict) -> "Vocabulary":
        return cls(**values)


# ---- coordinates and points as tokens, and back ------------------------------------------------


def quantize(coords: np.ndarray, num_bins: int, *, floor: bool = False) -> np.ndarray:
    """Nearest bin, ties to the even one, clamped to [0, num_bins - 1].

    Args:
        coords: any shape, 0 and 1 are the two edges of the image; NaN counts as 0.
        floor: take the bin below instead (`Vocabulary.floors`).

    Returns:
        int64 bins of the same shape.
    """
    # Clamp first: the result is the same, and huge values cannot overflow. `fmax` drops NaN.
    scaled = np.fmin(np.fmax(np.asarray(coords, dtype=np.float32), 0), 1) * np.float32(num_bins - 1)
    return (np.floor(scaled) if floor else np.rint(scaled)).astype(np.int64)


def dequantize(bins: np.ndarray, num_bins: int, *, floor: bool = False) -> np.ndarray:
    """Inverse of `quantize` up to half a bin: float32 coordinates, bin 0 is 0 and the last is 1.

    Args:
        floor: the bins were taken below: each is decoded half a bin higher, so the last one lies
            beyond 1.
    """
    shift = np.float32(0.5 if floor else 0)
    return (np.asarray(bins).astype(np.float32) + shift) / np.float32(num_bins - 1)


def instance_prompt(
    vocab: Vocabulary, task: str, boxes: np.ndarray, labels: np.ndarray, size: tuple[int, int]
) -> np.ndarray:
    """`task ymin xmin ymax xmax class` per object (official `build_instance_prompt_seq`).

    Args:
        boxes, labels: (N, 4) xyxy pixels of the model input; (N,) class ids (>= 1), or 0 for a
            padding object, whose prompt is all padding.
        size: (H, W) of the model input.

    Returns:
        (N, 6) token ids.
    """
    labels = np.asarray(labels, dtype=np.int64)
    corners = np.asarray(boxes, np.float32).reshape(-1, 2, 2)  # (N, 2, 2) of (x, y)
    tokens = np.empty((len(labels), PROMPT_LEN), np.int64)
    tokens[:, 0] = vocab.prompts[task]
    tokens[:, 1:5] = points_to_tokens(vocab, corners, size).reshape(-1, 4)
    tokens[:, 5] = vocab.class0 + labels
    tokens[labels == 0] = vocab.pad
    return tokens


def points_to_tokens(
    vocab: Vocabulary,
    points: np.ndarray,
    size: tuple[int, int],
    invisible: np.ndarray | None = None,
) -> np.ndarray:
    """Points as `y x` coordinate tokens, official layout; those outside are moved to the edge.

    Args:
        points: (..., 2) of (x, y), pixels of the model input.
        size: (H, W) of the model input.
        invisible: (...) bool; both tokens of such a point are the invisible one.

    Returns:
        (..., 2) token ids, y first.
    """
    yx = np.asarray(points, np.float32)[..., ::-1] / np.array(size, np.float32)
    tokens = vocab.coord0 + quantize(yx, vocab.num_bins)
    if invisible is not None:
        tokens[np.asarray(invisible, bool)] = vocab.invisible
    return tokens


def tokens_to_points(vocab: Vocabulary, tokens: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Inverse of `points_to_tokens` for any tokens; half a point at the end is dropped.

    Args:
        tokens: (..., T) ids, `y x y x …`.
        size: (H, W) of the model input.

    Returns:
        (..., T // 2, 2) float32 (x, y) in pixels of the model input, NaN where the token is
        padding, separator or invisible. Not clipped: an id that is no coordinate gives a value
        far outside, as officially.
    """
    tokens = np.asarray(tokens, np.int64)
    pairs = tokens[..., : tokens.shape[-1] // 2 * 2].reshape(*tokens.shape[:-1], -1, 2)
    points = dequantize(pairs - vocab.coord0, vocab.num_bins) * np.array(size, np.float32)
    points[np.isin(pairs, (vocab.pad, vocab.separator, vocab.invisible))] = np.nan
    return points[..., ::-1]
