"""Train object detection on Pascal VOC, or any dataset in its layout.

python train/train_voc_object_detection.py --set voc_root=/data/VOC voc_sets=2012:train
python train/train_voc_object_detection.py --resume auto
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # run from any folder

from config import VocCFG
from train.script import train_script
from utils.cli import run


def main(argv=None):
    return train_script(__doc__, VocCFG, tasks=["detection"], dataset="voc", argv=argv)


if __name__ == "__main__":
    run(main)
