"""Train several tasks in one model: one batch of each task per step, their losses added.

python train/train_multi_task.py --set coco_root=/data/coco
python train/train_multi_task.py --task detection,keypoint --set keypoint_weight=0.5
python train/train_multi_task.py --resume auto

Captioning needs a vocabulary: dataset/build_captioning_vocab.py makes it.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # run from any folder

from config import CFG
from train.script import train_script
from utils.cli import run


def main(argv=None):
    return train_script(__doc__, CFG, tasks=None, dataset="coco", argv=argv)


if __name__ == "__main__":
    run(main)
