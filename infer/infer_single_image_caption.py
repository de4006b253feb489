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
from infer.caption_script import caption_script
from utils.cli import run


def main(argv=None):
    caption_script(__doc__, CFG, argv)


if __name__ == "__main__":
    run(main)
