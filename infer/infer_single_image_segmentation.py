"""Segment objects: a table on stdout and instance_segmentation.png.

python infer/infer_single_image_segmentation.py --image a.jpg --box 40 60 200 120 --label dog
python infer/infer_single_image_segmentation.py --image a.jpg --box 40,60,200,120 --json masks.json

Without --box the same weights detect the objects first, if they were trained for that. The JSON
holds the masks as COCO run lengths.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # run from any folder

from config import CFG
from infer.segmentation_script import segmentation_script
from utils.cli import run


def main(argv=None):
    segmentation_script(__doc__, CFG, argv)


if __name__ == "__main__":
    run(main)
