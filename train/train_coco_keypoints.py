"""Train keypoints on COCO, or on your own data with keypoints (--set data=FOLDER).

python train/train_coco_keypoints.py --set coco_root=/data/coco batch_size=32
python train/train_coco_keypoints.py --resume auto

One sample is one person with a labelled point.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # run from any folder

from config import CFG
from train.script import train_script
from utils.cli import run


def main(argv=None):
    return train_script(__doc__, CFG, tasks=["keypoint"], dataset="coco", argv=argv)


if __name__ == "__main__":
    run(main)
