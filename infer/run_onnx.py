"""Detect objects with an exported model; onnxruntime, numpy and Pillow are all it needs.

`infer/export_onnx.py` writes this file as run.py beside encoder.onnx, decoder.onnx and model.json.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path

MISSING = ""
try:
    import numpy as np
    import onnxruntime as ort
    from PIL import Image, ImageOps
except ImportError as error:
    MISSING = f"{error}; pip install onnxruntime numpy pillow"


class Model:
    """The two graphs of a folder, and `about`: what their tokens mean (model.json)."""

    def __init__(self, folder: Path, threads: int = 0):
        if MISSING:
            raise ImportError(MISSING)
        options = ort.SessionOptions()
        options.intra_op_num_threads = threads  # 0 = one per core
        if not (folder / "model.json").is_file():
            raise FileNotFoundError("no model.json here; run the run.py of an exported folder")
        self.about = json.loads((folder / "model.json").read_text(encoding="utf-8"))
        self.encoder, self.decoder = (
            ort.InferenceSession(folder / name, options, providers=["CPUExecutionProvider"])
            for name in ("encoder.onnx", "decoder.onnx")
        )

    def encode(self, images: np.ndarray) -> dict[str, np.ndarray]:
        """(B, 3, H, W) float32 in [0, 1] -> memory (B, S, D), keys and values of every layer"""
        names = [output.name for output in self.encoder.get_outputs()]
        return dict(zip(names, self.encoder.run(names, {"images": images}), strict=True))

    def detect(self, picture: np.ndarray, max_objects: int | None = None) -> list[dict]:
        """Finds objects in RGB uint8 (h, w, 3): boxes xyxy in its pixels, best first."""
        if "detection" not in self.about:
            raise ValueError(f"the model knows {', '.join(self.about['tasks'])}, not detection")
        rules, found = self.about["detection"], []
        pixels, scale, shift = letterbox(picture, self.about["image"])
        for tokens, class_token, score in self.generate(pixels, max_objects):
            # Bins -> the unit square -> pixels of the model's input -> pixels of the picture
            bins = (np.array(tokens) - rules["coord0"])[rules["xyxy_order"]]
            corners = np.clip((bins + rules["bin_shift"]) / (rules["num_bins"] - 1), 0, 1)
            corners = (corners.reshape(2, 2) * pixels.shape[:0:-1] - shift) / scale  # (x, y) twice
            box = np.clip(corners, 0, picture.shape[1::-1]).reshape(4)
            name = rules["names"].get(str(class_token))
            if name and score > 0 and (box[2:] > box[:2]).all():
                found.append({"label": name, "score": score, "box": box.tolist()})
        return sorted(found, key=lambda one: -one["score"])

    def generate(self, pixels: np.ndarray, max_objects: int | None):
        """Greedy decoding; yields for each object four coordinate tokens, its class and a score."""
        rules = self.about["detection"]
        num_tokens = 5 * min(max_objects or rules["max_objects"], rules["max_objects"])
        decoding = Decoding(self, self.encode(pixels[None]), len(rules["prompt"]) + num_tokens)
        tokens, answer = rules["prompt"], []
        for step in range(num_tokens):
            logits = decoding.read(np.array([tokens]))[0, -1]  # (V,)
            first, end = rules["allowed"][step % 5]
            tokens = [first + int(logits[first:end].argmax())]
            if step % 5 == 0 and rules["eos"] and logits[rules["eos"]] > logits[tokens[0]]:
                return  # no more objects
            answer += tokens
            if step % 5 == 4:  # the best class, and its probability among all tokens
                first, end = rules["class_range"]
                best = first + int(logits[first:end].argmax())
                yield answer[-5:-1], best, float(1 / np.exp(logits - logits[best]).sum())


class Decoding:
    """Reads one sequence of tokens per image, up to `places`; keeps its keys and values."""

    def __init__(self, model: Model, encoded: dict[str, np.ndarray], places: int):
        self.model, self.length, self.binding = model, 0, model.decoder.io_binding()
        for name, values in encoded.items():
            if name != "memory":  # memory_k_0 (B, heads, S, head_dim), memory_v_0, …
                self.binding.bind_cpu_input(name, values)
                empty = np.zeros((*values.shape[:2], places, values.shape[3]), np.float32)
                cache, name = ort.OrtValue.ortvalue_from_numpy(empty), name[len("memory_") :]
                self.binding.bind_ortvalue_input(name, cache)
                self.binding.bind_ortvalue_output(f"new_{name}", cache)  # written in place

    def read(self, tokens: np.ndarray) -> np.ndarray:
        """(B, T) tokens that come next -> (B, T, V) logits of what follows each of them"""
        self.binding.bind_cpu_input("tokens", tokens[:, None])
        self.binding.bind_cpu_input("position", np.array([self.length]))
        self.binding.bind_output("logits")
        self.model.decoder.run_with_iobinding(self.binding)
        self.length += tokens.shape[1]
        return self.binding.get_outputs()[-1].numpy()[:, 0]


def letterbox(picture: np.ndarray, image: dict) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Resizes to (3, H, W) as in training, and says how: (x, y) -> (x, y) * scale + shift."""
    (height, width), sides, (h, w) = image["size"], picture.shape[:2], image["size"]
    if image["resize_mode"] == "letterbox":
        ratio = (np.float32(image["size"]) / np.float32(sides)).min()
        h, w = np.maximum(np.round(np.float32(sides) * ratio), 1).astype(int).tolist()
    x, y = ((width - w) // 2, (height - h) // 2) if image["centered"] else (0, 0)
    planes = [Image.new("F", (width, height), value) for value in image["pad_value"]]
    for channel, plane in enumerate(planes):
        inner = Image.fromarray(np.float32(picture[..., channel]) / 255)
        if image["antialias"]:
            inner = inner.resize((w, h), Image.BILINEAR)
        else:
            steps = (sides[1] / w, 0, 0, 0, sides[0] / h, 0)
            inner = inner.transform((w, h), Image.AFFINE, steps, Image.BILINEAR)
        plane.paste(inner, (x, y))
    return np.stack(planes), np.array([w, h]) / sides[::-1], np.array([x, y])


def read_picture(path: Path) -> np.ndarray:
    """A picture as it is seen: (H, W, 3) uint8 RGB."""
    picture = ImageOps.exif_transpose(Image.open(path))
    if picture.mode.startswith("I"):  # 16 bits, which PIL would clip
        picture = Image.fromarray((np.asarray(picture) / 257).round().astype(np.uint8))
    if picture.has_transparency_data:
        picture = picture.convert("RGBA")
        picture = Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture)
    return np.array(picture.convert("RGB"))


def main() -> None:
    """Prints and writes what the model of this folder finds."""
    args = argparse.ArgumentParser(description="Detect objects in pictures")
    args.add_argument("pictures", nargs="+", type=Path, metavar="PHOTO")
    args.add_argument("--json", type=Path, metavar="FILE", help="write all objects there")
    args.add_argument("--score-threshold", type=float, default=0.3, help="of the printed objects")
    args.add_argument("--max-objects", type=int, help="ask for fewer objects: faster")
    args, model, rows, unread = args.parse_args(), Model(Path(__file__).parent), [], False
    for path in args.pictures:
        try:
            picture = read_picture(path)
        except OSError as error:
            print(f"error: {path}: {' '.join(str(error).split())}", file=sys.stderr)
            unread = True
            continue
        start = time.perf_counter()
        objects = model.detect(picture, args.max_objects)
        milliseconds = 1e3 * (time.perf_counter() - start)
        rows.append({"image": str(path), "milliseconds": milliseconds, "objects": objects})
        print(f"{path}: {len(objects)} objects, {milliseconds:.0f} ms")
        for one in objects:
            if one["score"] >= args.score_threshold:
                print(f"  {one['label']:<20} {one['score']:.2f}", np.round(one["box"], 1))
    if args.json:
        args.json.write_text(json.dumps(rows, indent=2) + "\n", encoding="utf-8")
    sys.exit(2 if unread else 0)


if __name__ == "__main__":
    try:
        main()
    except Exception as error:  # those of onnxruntime have no common class
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        sys.exit(2)
