"""Describe images: captions on stdout.

python infer/infer_single_image_caption.py --image images/demo.jpg
python infer/infer_single_image_caption.py --image photos/ --num-captions 3 --json all.json
python infer/infer_single_image_caption.py --image a.jpg --num-captions 3 --set caption_top_k=0

Several captions are the best of a beam search. With caption_top_k other than 1 they are sampled.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # run from any folder

from config import CFG
from infer.image_files import Output, find_images, read_images
from infer.script import infer_parser, load_predictor
from utils.cli import load_settings, run


def main(argv=None):
    # The command line and the settings
    args = infer_parser(__doc__, pictures=False)
    args.add_argument("--num-captions", type=int, default=1, help="captions per image, best first")
    args = args.parse_args(argv)
    cfg = load_settings(args, CFG)
    paths = find_images(args.image, args.recursive)

    # What takes long to import comes after the command line is understood.
    from infer.captioning import CaptionOptions, table

    # The weights
    options = CaptionOptions.from_settings(cfg, args.num_captions)
    predictor = load_predictor(args, cfg, cfg.coco_captioning_weights)

    # Describe and print; of several images the path comes first
    with Output(args, paths, predictor) as output:  # prints the results when it is left
        for path, image in read_images(paths):
            found = predictor.caption(image, options)
            head = f"{path}\n" if len(paths) > 1 else ""
            row = {"captions": found.to_json()}
            output.add(path, image, head + table(found), row, found=found)


if __name__ == "__main__":
    run(main)
