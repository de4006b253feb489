"""Describe images: captions on stdout.

python infer/infer_single_image_caption.py --image images/demo.jpg
python infer/infer_single_image_caption.py --image photos/ --num-captions 3 --json all.json
python infer/infer_single_image_caption.py --image a.jpg --num-captions 3 --set caption_top_k=0

Several captions are the best of a beam search; with caption_top_k other than 1 they are sampled.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # run from any folder

from config import CFG
from infer.script import (
    caption_options,
    infer_parser,
    load_predictor,
    print_results,
    read_images,
)
from utils.cli import run, snapshot


def main(argv=None):
    args = infer_parser(__doc__, pictures=False)
    args.add_argument("--num-captions", type=int, default=1, help="per image, best first")
    args = args.parse_args(argv)
    cfg = snapshot(CFG, args.set)
    options = caption_options(cfg, args.num_captions)
    predictor = load_predictor(args, cfg, cfg.coco_captioning_weights)
    rows, texts = [], []
    try:
        for path, image in read_images(args.image):
            found = predictor.caption(image, options)
            size = [image.shape[1], image.shape[0]]
            rows.append({"image": str(path), "size": size, "captions": found.to_json()})
            texts.append((path, "\n".join(found.texts)))
    finally:
        if rows:
            several = len(rows) > 1
            print_results(args, rows, [f"{p}\n{text}" if several else text for p, text in texts])


if __name__ == "__main__":
    run(main)
