"""Detect objects with an exported model: onnxruntime, numpy and Pillow are all it needs.

    python run.py PHOTO.jpg [PHOTO.jpg ...] [--json FILE]

`infer/export_onnx.py` writes this file beside encoder.onnx, decoder.onnx and model.json. Decoding
is greedy. The caches are written in place: each is bound as an input and as an output.
"""

import argparse
import json
import sys
import time
from pathlib import Path

import numpy as np

BLOCK = 64  # places that are added to the caches when they are full


class Model:
    """The two graphs of a folder and the description of the model (model.json).

    Args:
        threads: of onnxruntime; 0 = one per core.
    """

    def __init__(self, folder: Path, threads: int = 0):
        import onnxruntime as ort

        self.ort, options = ort, ort.SessionOptions()
        options.intra_op_num_threads = threads
        self.about = json.loads((folder / "model.json").read_text(encoding="utf-8"))
        self.encoder, self.decoder = (
            ort.InferenceSession(folder / name, options, providers=["CPUExecutionProvider"])
            for name in ("encoder.onnx", "decoder.onnx")
        )

    def encode(self, images: np.ndarray) -> dict[str, np.ndarray]:
        """(B, 3, H, W) float32 in [0, 1] -> memory (B, S, D), and of every layer its projections"""
        names = [output.name for output in self.encoder.get_outputs()]
        return dict(zip(names, self.encoder.run(names, {"images": images}), strict=True))

    def detect(self, pictures: list[np.ndarray], max_objects: int | None = None) -> list[dict]:
        """Finds objects in RGB uint8 pictures (h, w, 3): boxes xyxy in their pixels, best first."""
        tasks, vocab = self.about["tasks"], self.about["vocabulary"]
        if "detection" not in tasks:
            raise ValueError(f"the model knows {', '.join(tasks)}, not detection")
        task, limit = tasks["detection"], tasks["detection"]["settings"]["max_objects"]
        max_objects = limit if max_objects is None else max_objects
        if not 1 <= max_objects <= limit:
            raise ValueError(f"max_objects must be 1 to {limit}, got {max_objects}")
        placed = [letterbox(picture, self.about["image"]) for picture in pictures]
        encoded = self.encode(np.stack([pixels for pixels, *_ in placed]))
        prompt = np.full((len(placed), 1, len(task["prompt"])), task["prompt"], np.int64)
        tokens, classes, scores = self.generate(
            encoded, prompt, 5 * max_objects, vocab, task["eos"]
        )
        return [
            self.to_objects(tokens[i], classes[i], scores[i], pictures[i].shape, *placed[i][1:])
            for i in range(len(placed))
        ]

    def generate(self, encoded: dict, prompt: np.ndarray, num_tokens: int, vocab: dict, eos):
        """Greedy tokens, and of each step the best class with its probability, all (B, T)."""
        decoding = Decoding(self, encoded)
        columns, ended = [], np.zeros(len(prompt), bool)
        logits = decoding.read(prompt)  # (B, V)
        for t in range(num_tokens):
            token = (logits + _grammar(vocab, t, eos, logits.shape[1])).argmax(1)
            lo, hi = vocab["class_range"]
            best = lo + logits[:, lo:hi].argmax(1)
            top = logits.max(1, keepdims=True)
            sums = np.exp(logits - top, dtype=np.float32).sum(1)
            score = np.exp(logits[np.arange(len(best)), best] - top[:, 0]) / sums
            if eos is not None:
                token = np.where(ended, eos, token)
                ended |= token == eos
            columns.append((token, best, score))
            if ended.all() or t + 1 == num_tokens:
                break
            logits = decoding.read(token[:, None, None])
        return [np.stack(column, 1) for column in zip(*columns, strict=True)]

    def to_objects(self, tokens, classes, scores, shape, scale, shift) -> dict:
        """Tokens (T,) of one picture as named boxes in its pixels."""
        vocab, image = self.about["vocabulary"], self.about["image"]
        ends = np.flatnonzero(tokens == vocab["eos"])
        n = (ends[0] if len(ends) else len(tokens)) // 5
        bins = tokens[: 5 * n].reshape(n, 5)[:, :4] - vocab["coord0"]
        half = np.float32(0.5 if vocab["layout"] == "simple" else 0)  # bins taken below
        corners = (bins.astype(np.float32) + half) / np.float32(vocab["num_bins"] - 1)
        if vocab["layout"] == "official":
            corners = corners[:, [1, 0, 3, 2]]  # they are y x y x
        boxes = np.clip(corners, 0, 1) * np.float32([*image["size"][::-1]] * 2)
        boxes = ((boxes - np.tile(shift, 2)) / np.tile(scale, 2)).astype(np.float32)
        boxes = np.clip(boxes, 0, np.float32([shape[1], shape[0]] * 2))
        labels = classes[4 : 5 * n : 5] - vocab["class_range"][0] + vocab["first_label"]
        names = {row["id"]: row["name"] for row in self.about["categories"]}
        shown = np.isin(labels, list(names)) & (boxes[:, 2:] > boxes[:, :2]).all(1)
        scores = scores[4 : 5 * n : 5]
        shown &= scores > 0
        order = np.flatnonzero(shown)[np.argsort(-scores[shown], kind="stable")]
        labels = labels[order]
        return {"names": [names[k] for k in labels], "scores": scores[order], "boxes": boxes[order]}


class Decoding:
    """The decoding state of a batch: one token sequence per image, and the caches."""

    def __init__(self, model: Model, encoded: dict):
        self.model, self.length, self.bound = model, 0, None
        self.binding = model.decoder.io_binding()
        for name, values in encoded.items():
            if name != "memory":
                self.binding.bind_ortvalue_input(name, self._value(values))
        batch, heads, _, head_dim = encoded["memory_k_0"].shape
        names = [each.name for each in model.decoder.get_inputs()]
        empty = np.zeros((batch, heads, 0, head_dim), np.float32)
        self.caches = dict.fromkeys((n for n in names if n.startswith(("k_", "v_"))), empty)

    def read(self, tokens: np.ndarray) -> np.ndarray:
        """(B, 1, T) ids that come next -> (B, V) logits after the last one."""
        end = self.length + tokens.shape[2]
        missing = end - self.caches["k_0"].shape[2]
        if missing > 0 or self.bound != tokens.shape:
            self._bind(tokens.shape, max(missing, 0))
        self.tokens[:], self.position[0], self.length = tokens, self.length, end
        self.model.decoder.run_with_iobinding(self.binding)
        return self.logits[:, 0, -1]

    def _bind(self, shape: tuple, missing: int) -> None:
        """Names the arrays that the graph reads and writes, with room for `missing` more places."""
        if missing:
            added = ((0, 0), (0, 0), (0, -(-missing // BLOCK) * BLOCK), (0, 0))
            self.caches = {name: np.pad(cache, added) for name, cache in self.caches.items()}
        for name, cache in self.caches.items():
            value = self._value(cache)
            self.binding.bind_ortvalue_input(name, value)
            self.binding.bind_ortvalue_output(f"new_{name}", value)  # the same memory
        self.tokens, self.position, self.bound = np.zeros(shape, np.int64), np.zeros(1, int), shape
        size = self.model.about["config"]["vocab_size"]
        self.logits = np.zeros((*shape, size), np.float32)
        self.binding.bind_ortvalue_input("tokens", self._value(self.tokens))
        self.binding.bind_ortvalue_input("position", self._value(self.position))
        self.binding.bind_ortvalue_output("logits", self._value(self.logits))

    def _value(self, array: np.ndarray):
        return self.model.ort.OrtValue.ortvalue_from_numpy(array)  # shares its memory


def letterbox(picture: np.ndarray, image: dict) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Resizes and pads as the model was trained.

    Returns:
        (3, H, W) float32 in [0, 1], and the map (x, y) -> (x, y) * scale + shift, twice (2,).
    """
    from PIL import Image

    size, sides = image["size"], np.float32(picture.shape[:2])
    h, w = size
    if image["resize_mode"] == "letterbox":
        h, w = np.maximum(np.round(sides * (np.float32(size) / sides).min()), 1).astype(int)
    y, x = ((size[0] - h) // 2, (size[1] - w) // 2) if image["centered"] else (0, 0)
    out = np.empty((3, *size), np.float32)
    out[:] = np.reshape(np.float32(image["pad_value"]), (-1, 1, 1))
    for channel in range(3):
        plane = Image.fromarray(np.float32(picture[..., channel]) / 255)
        if image["antialias"]:
            plane = plane.resize((w, h), Image.Resampling.BILINEAR)
        else:
            steps = picture.shape[1] / w, 0, 0, 0, picture.shape[0] / h, 0
            affine, bilinear = Image.Transform.AFFINE, Image.Resampling.BILINEAR
            plane = plane.transform((w, h), affine, steps, bilinear)
        out[channel, y : y + h, x : x + w] = plane
    return out, np.array([w, h]) / picture.shape[1::-1], np.array([x, y])


def _grammar(vocab: dict, t: int, eos: int | None, size: int) -> np.ndarray | float:
    """What is added to the logits of step `t`; without an end token nothing is ruled out."""
    if eos is None:
        return 0.0
    out = np.full(size, -np.inf, np.float32)
    lo, hi = vocab["class_range"] if t % 5 == 4 else vocab["coord_range"]
    out[lo:hi] = 0
    if t % 5 == 0:
        out[eos] = 0
    return out


def main(argv=None) -> None:
    args = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    args.add_argument("pictures", nargs="+", type=Path, metavar="PHOTO")
    args.add_argument("--folder", type=Path, default=Path(__file__).parent, help="of model.json")
    args.add_argument("--json", type=Path, metavar="FILE", help="write all objects there")
    args.add_argument("--score-threshold", type=float, default=0.3, help="of the printed objects")
    args.add_argument("--max-objects", type=int, help="ask for fewer objects: faster")
    args.add_argument("--threads", type=int, default=0, help="default: one per core")
    args = args.parse_args(argv)
    try:
        rows = _detect_all(args)
    except (ImportError, OSError, ValueError) as error:
        install = "; pip install onnxruntime numpy pillow" if isinstance(error, ImportError) else ""
        print(f"error: {' '.join(str(error).split())}{install}", file=sys.stderr)
        sys.exit(2)
    if args.json:
        args.json.write_text(json.dumps(rows, indent=2) + "\n")


def _detect_all(args: argparse.Namespace) -> list[dict]:
    """Detects in one picture after the other and prints what it finds and how long it takes."""
    from PIL import Image, ImageOps

    model, rows = Model(args.folder, args.threads), []
    for path in args.pictures:
        pixels = np.array(ImageOps.exif_transpose(Image.open(path)).convert("RGB"))
        start = time.perf_counter()
        (found,) = model.detect([pixels], args.max_objects)
        seconds = time.perf_counter() - start
        objects = [
            {"label": name, "score": float(score), "box": box.tolist()}
            for name, score, box in zip(*found.values(), strict=True)
        ]
        rows.append({"image": str(path), "seconds": seconds, "objects": objects})
        print(f"{path}: {len(objects)} objects, {1e3 * seconds:.0f} ms")
        for one in objects:
            if one["score"] >= args.score_threshold:
                box = " ".join(f"{v:7.1f}" for v in one["box"])
                print(f"  {one['label']:<20} {one['score']:.2f}  {box}")
    return rows


if __name__ == "__main__":
    main()
