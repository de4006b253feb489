"""Train instance segmentation on COCO, or on your own data with outlines (--set data=FOLDER).

python train/train_coco_segmentation.py --set coco_root=/data/coco batch_size=32
python train/train_coco_segmentation.py --resume auto
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # run from any folder

from config import CFG
from train.script import train_script
from utils.cli import run


def main(argv=None):
    return train_script(__doc__, CFG, tasks=["segmentation"], dataset="coco", argv=argv)


if __name__ == "__main__":
    run(main)
