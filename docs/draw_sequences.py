"""Draw how each task becomes a sequence: the pictures of docs/tasks.md.

python docs/draw_sequences.py                    # writes images/sequence_<task>.png
python docs/draw_sequences.py --out elsewhere

A picture of the synthetic demo set goes through the sources, the geometry and the tokenizers of
training; what the pictures show is what comes out, nothing is written in by hand.
"""

import argparse
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # run from any folder

import numpy as np

from dataset.demo.write import DemoSet, write_demo_set
from dataset.sample import Sample
from dataset.tasks import build_source, build_train_set
from docs.sequence_pictures import GREY, INK, Chip, Sheet
from tokenizer.base import TaskTokenizer, TokenSequence
from tokenizer.captioning import CaptionTokenizer
from tokenizer.detection import DetectionTokenizer
from tokenizer.keypoint import KeypointTokenizer
from tokenizer.segmentation import SegmentationTokenizer
from tokenizer.text import TextTokenizer
from tokenizer.vocabulary import Vocabulary
from utils.cli import run
from utils.visualize import PALETTE, class_colors

DEMO = DemoSet(train=16, val=0, size=(384, 480), seed=3)
IMAGE_ID = 8  # a mug with a handle, cats, a kite, and a person seen from the side
SIDE = 400  # of the model input, pixels
WIDTH = 1120  # of the pictures
NOISE = (110, 110, 110)
SEGMENTATION_TEXT = (
    "The model sees the whole picture;",
    "below the object, enlarged.",
    "",
    "Two parts are joined by a pair of",
    "separators, padding says: no more.",
    "In training an outline starts at a",
    "random one of its points.",
)
KEYPOINT_TEXT = (
    "Coordinates count within this square, its padding included.",
    "A point that is not labelled is said to be invisible, at a tenth of the weight.",
    "A random share of the answer is hidden from the decoder.",
)


class Example:
    """The demo picture as the tasks see it.

    Args:
        root: of the demo set.
    """

    def __init__(self, root: Path):
        self.root = root
        captions = build_source("captioning", "coco", root, "train")
        texts = [text for of_image in captions.references.values() for text in of_image]
        self.text = TextTokenizer.train(texts, 165)
        self.vocab = Vocabulary(num_text=self.text.size)
        self.names = build_source("detection", "coco", root, "train").categories.names

    def run(
        self, tokenizer: TaskTokenizer, *, seed: int, crop: float | None = None, **options
    ) -> tuple[Sample, Sample, TokenSequence]:
        """The annotated original, what the model is shown of it, and the training sequence."""
        source = build_source(tokenizer.task, "coco", self.root, "train", **options)
        index = next(i for i in range(len(source)) if source[i].image_id == IMAGE_ID)
        data = build_train_set(
            tokenizer.task, source, tokenizer, (SIDE, SIDE), seed=seed, augment=False, crop=crop
        )
        sample, rng = data.sample(0, index)
        return source[index], sample, data.make_sequence(sample, rng)

    def chips(self, sequence: TokenSequence, prompt: int) -> tuple[list[Chip], list[Chip]]:
        """Of one sequence the prompt, P tokens, and the answer with what the decoder reads."""
        asked = [self._chip(token, 0) for token in sequence.input[:prompt]]
        answer = []
        for t in range(prompt - 1, len(sequence.target)):
            token = int(sequence.target[t])
            read = int(sequence.input[t + 1]) if t + 1 < len(sequence.input) else token
            hidden = read if read != token else None
            answer.append(self._chip(token, sequence.weight[t], hidden))
        return asked, answer

    def _chip(self, token: int, weight: float, reads: int | None = None) -> Chip:
        meaning, kind = self.meaning(int(token))
        return Chip(int(token), meaning, kind, round(float(weight), 3), reads)

    def meaning(self, token: int) -> tuple[str, str]:
        """What an id says, in a word, and its kind."""
        v = self.vocab
        for task, prompt in v.prompts.items():
            if token == prompt:
                return task, "prompt"
        special = {v.pad: "pad", v.fake: "fake", v.separator: "sep", v.invisible: "invis."}
        if token in special:
            return special[token], "special"
        if token < v.coord0:
            return self.names.get(token - v.class0, f"class {token - v.class0}"), "class"
        if token < v.text0:
            return f"{(token - v.coord0) / (v.num_bins - 1):.3f}", "coordinate"
        return self.text.piece(token - v.text0), "text"


def draw_detection(example: Example) -> Sheet:
    """A row per object, real ones first, in the order of the sequence."""
    tokenizer = DetectionTokenizer(example.vocab, max_objects=8)
    _, sample, sequence = example.run(tokenizer, seed=3)
    (prompt,), answer = example.chips(sequence, 1)
    rows = [answer[i : i + 5] for i in range(0, len(answer), 5)]
    boxes, _, _ = tokenizer.decode(sequence.target, (SIDE, SIDE))
    sheet = Sheet((542, WIDTH))
    picture = sheet.picture(24, 64, _padded(sample), 430)
    colors = class_colors(example.names.values())
    x0, y0 = 608, 118
    sheet.title("Detection", "every object is five tokens; noise objects fill the budget")
    sheet.text(x0 - 30, 82, "prompt", color=GREY, anchor="rm")
    sheet.chip(x0, 62, 76, prompt)
    heads = ("ymin", "xmin", "ymax", "xmax", "class", "shown as")
    for column, head in enumerate(heads):
        middle = x0 + 80 * column + 38 + (14 if column == 5 else 0)
        sheet.text(middle, y0 - 4, head, color=GREY, anchor="mm", size=12)
    for n, row in enumerate(rows):
        y, noise = y0 + 8 + 46 * n, row[4].meaning == "fake"
        name = f"noise {n + 1}" if noise else f"{row[4].meaning} {n + 1}"
        color = NOISE if noise else colors[row[4].meaning]
        picture.box(boxes[n], color, name, dashed=noise)
        sheet.text(x0 - 30, y + 20, name, anchor="rm")
        sheet.dot(x0 - 18, y + 20, 6, color)
        for column, chip in enumerate(row):
            sheet.chip(x0 + 80 * column, y, 76, chip)
        reads = row[4].token if row[4].reads is None else row[4].reads
        if n < len(rows) - 1:  # the last token of a sequence is never read
            meaning, kind = example.meaning(reads)
            sheet.chip(x0 + 80 * 5 + 14, y, 76, Chip(reads, meaning, kind, 0))
    return sheet.legend(("prompt", "coordinate", "class", "special"))


def draw_segmentation(example: Example) -> Sheet:
    """The outline of the mug: two parts, joined by a separator."""
    tokenizer = SegmentationTokenizer(example.vocab, max_points=24, first_end_only=False)
    _, sample, sequence = example.run(tokenizer, seed=1, max_points=20)
    mug = next(k for k, name in example.names.items() if name == "mug")
    row = np.flatnonzero(sequence.input[:, 5] == example.vocab.class0 + mug)[0]
    one = TokenSequence(sequence.input[row], sequence.target[row], sequence.weight[row])
    asked, answer = example.chips(one, 6)
    sheet, x0 = Sheet((562, WIDTH)), 524
    sheet.title("Segmentation", "asked with box and class, answered with the outline")
    image, box = _padded(sample), sample.boxes[list(sample.labels).index(mug)]
    sheet.picture(24, 64, image, 176).box(box, PALETTE[2])
    for n, line in enumerate(SEGMENTATION_TEXT):
        sheet.text(216, 80 + 20 * n, line, color=GREY, size=12)
    left, top = (int(v) for v in box[:2] - [12, 14])
    close = sheet.picture(24, 256, image[top : top + 106, left : left + 190], 480)
    close.box(box - [left, top, left, top], PALETTE[2], "mug")
    _prompt(sheet, x0, asked)
    sheet.text(x0, 146, "answer: y x of every point", color=GREY)
    parts = [part - [left, top] for part in tokenizer.decode(one.target[5:], (SIDE, SIDE))]
    colors = [PALETTE[1], PALETTE[4]]
    for part, color in zip(parts, colors, strict=True):
        close.outline(part, color)
    number, part = 0, 0
    for n in range(len(answer) // 2):
        pair, x, y = answer[2 * n : 2 * n + 2], x0 + 114 * (n % 5), 154 + 64 * (n // 5)
        if pair[0].kind == "coordinate":
            number += 1
            point = np.concatenate(parts)[number - 1]
            close.point(point, colors[part], str(number))
            sheet.badge(x + 53, y + 8, str(number), colors[part])
        elif pair[0].meaning == "sep":
            part += 1
        for k, chip in enumerate(pair):
            sheet.chip(x + 53 * k, y + 18, 52, chip, height=36)
    return sheet.legend(("prompt", "coordinate", "class", "special"), flags=False)


def draw_keypoints(example: Example) -> Sheet:
    """The person: a crop of twice the box, 17 points, two of them out of sight."""
    tokenizer = KeypointTokenizer(example.vocab)
    original, sample, sequence = example.run(
        tokenizer, seed=5, crop=tokenizer.crop, per_object=True
    )
    asked, answer = example.chips(sequence, 6)
    sheet, x0 = Sheet((572, WIDTH)), 606
    sheet.title("Keypoints", "asked with box and class in a crop of twice the box")
    whole = sheet.picture(24, 64, original.image, 190)
    y, x, h, w = sample.geometry.crop
    whole.box(np.array([x, y, x + w, y + h]), INK, dashed=True)
    whole.box(original.boxes[0], PALETTE[2])
    for n, line in enumerate(("box of the person and,", "dashed, what is cut out")):
        sheet.text(24, 282 + 17 * n, line, color=GREY, size=12)
    crop = sheet.picture(230, 64, _padded(sample), 350)
    crop.box(sample.boxes[0], PALETTE[2], "person")
    for n, line in enumerate(KEYPOINT_TEXT):
        sheet.text(24, 440 + 20 * n, line, color=GREY, size=12)
    _prompt(sheet, x0, asked)
    sheet.text(x0, 146, "answer: y x of 17 points", color=GREY)
    for n, name in enumerate(tokenizer.skeleton.names):
        x, y = x0 + 254 * (n // 9), 158 + 41 * (n % 9)
        color, seen = PALETTE[n % len(PALETTE)], sample.keypoints[0][n, 2] > 0
        if seen:
            crop.point(sample.keypoints[0][n, :2], color, str(n + 1))
        sheet.badge(x + 9, y + 18, str(n + 1), color if seen else GREY)
        sheet.text(x + 22, y + 18, name.replace("_", " "), size=11.5)
        for k, chip in enumerate(answer[2 * n : 2 * n + 2]):
            sheet.chip(x + 124 + 62 * k, y, 60, chip, height=37)
    return sheet.legend(("prompt", "coordinate", "class", "special"))


def draw_captioning(example: Example) -> Sheet:
    """One of the five captions in full: what the decoder reads, what it should say."""
    tokenizer = CaptionTokenizer(example.vocab, example.text, max_tokens=20)
    original, sample, sequence = example.run(tokenizer, seed=2)
    texts = [tokenizer.decode(row) for row in sequence.target]
    whole = [i for i, text in enumerate(texts) if text in sample.captions]  # the others are cut
    chosen = max(whole, key=lambda i: len(texts[i]))
    one = TokenSequence(*(getattr(sequence, k)[chosen] for k in ("input", "target", "weight")))
    sheet, x0 = Sheet((442, WIDTH)), 384
    sheet.title("Captioning", "the five captions of a picture are five sequences on one encoding")
    sheet.picture(24, 64, _padded(sample), 300)
    sheet.text(x0, 72, texts[chosen], bold=True)
    for t, token in enumerate(one.target):
        x, y = x0 + 72 * (t % 10), 92 + 118 * (t // 10)
        meaning, kind = example.meaning(int(one.input[t]))
        sheet.chip(x, y, 69, Chip(int(one.input[t]), meaning, kind, 0), height=36)
        sheet.text(x + 34, y + 44, "\u2193", color=GREY, anchor="mm", size=11)
        meaning, kind = example.meaning(int(token))
        chip = Chip(int(token), meaning, kind, round(float(one.weight[t]), 3))
        sheet.chip(x, y + 52, 69, chip, height=36)
    for row, text in enumerate(("is read", "is said")):
        for line in range(2):
            sheet.text(x0 - 6, 110 + 52 * row + 118 * line, text, color=GREY, size=11, anchor="rm")
    others = [text for text in sample.captions if text != texts[chosen]]
    for n, text in enumerate(others):
        sheet.text(x0, 334 + 19 * n, text, color=GREY, size=12)
    return sheet.legend(("prompt", "text", "special"), flags=False)


def _padded(sample: Sample) -> np.ndarray:
    """(SIDE, SIDE, 3) the model input: the rest is padding."""
    image = np.full((SIDE, SIDE, 3), round(0.3 * 255), np.uint8)
    h, w = sample.image.shape[:2]
    image[:h, :w] = sample.image
    return image


def _prompt(sheet: Sheet, x0: float, asked: list[Chip]) -> None:
    sheet.text(x0, 72, "prompt: task, ymin, xmin, ymax, xmax, class", color=GREY)
    for n, chip in enumerate(asked):
        sheet.chip(x0 + 84 * n, 84, 80, chip)


DRAWINGS = {
    "detection": draw_detection,
    "segmentation": draw_segmentation,
    "keypoint": draw_keypoints,
    "captioning": draw_captioning,
}


def main(argv: list[str] | None = None) -> None:
    args = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    args.add_argument("--out", type=Path, default=ROOT / "images", help="default: images/")
    args.add_argument("--debug", action="store_true", help="show the traceback of an error")
    args = args.parse_args(argv)
    args.out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        write_demo_set(DEMO, Path(folder) / "set", workers=1, progress=False)
        example = Example(Path(folder) / "set")
        for task, draw in DRAWINGS.items():
            draw(example).save(args.out / f"sequence_{task}.png")
    print(f"drew {', '.join(DRAWINGS)} into {args.out}", file=sys.stderr)


if __name__ == "__main__":
    run(main)
