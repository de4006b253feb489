"""The shared vocabulary: the only place where a token id is a number."""

from dataclasses import asdict, dataclass, field

TASKS = ("detection", "segmentation", "keypoint", "captioning")


@dataclass(frozen=True)
class Vocabulary:
    """Layout of the token ids that all tasks share (official layout: `vocab.py` and its configs).

    `pad 0 · prompts 10..13 · fake 30 · separator 40 · invisible 41 · classes 100 + class id ·
    coordinates 1000 + bin · text 3000 + piece`. There is no end token of its own: 0 ends what can
    end, and text ends with its own piece 1. Ranges are half-open and never overlap.
    """

    num_bins: int = 1000
    num_text: int = 0  # text pieces; 0 without captions
    pad: int = 0
    prompts: dict[str, int] = field(
        default_factory=lambda: {task: 10 + i for i, task in enumerate(TASKS)}
    )
    fake: int = 30  # class of a noise object, and dropped text
    separator: int = 40  # between the polygons of one mask
    invisible: int = 41  # coordinate of a keypoint that is not labelled
    class0: int = 100  # token of class id 0, which no object has
    coord0: int = 1000
    text0: int = 3000

    def __post_init__(self):
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

    @property
    def size(self) -> int:
        """Number of ids, the width of the model's output."""
        return self.text0 + self.num_text

    @property
    def class_range(self) -> tuple[int, int]:
        """[first, last + 1) token of the classes; the first one means "no class"."""
        return self.class0, self.coord0

    @property
    def coord_range(self) -> tuple[int, int]:
        """[first, last + 1) token of the coordinates."""
        return self.coord0, self.coord0 + self.num_bins

    @property
    def noise_label(self) -> int:
        """Label of a noise object: the one that `class0 + label` turns into the fake class."""
        return self.fake - self.class0

    def to_json(self) -> dict:
        return asdict(self)

    @classmethod
    def from_json(cls, values: dict) -> "Vocabulary":
        return cls(**values)
