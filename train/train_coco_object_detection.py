"""Train object detection on COCO, or on your own data in any format of docs/formats.md.

python train/train_coco_object_detection.py --set coco_root=/data/coco batch_size=32
python train/train_coco_object_detection.py --preset finetune \\
    --set data=FOLDER init_weights=weights/demo.safetensors
python train/train_coco_object_detection.py --resume auto

The results are in runs/detection/<time>/. docs/own_data.md shows all steps with your own data.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # run from any folder

from config import CFG
from train.script import train_script
from utils.cli import run


def main(argv=None):
    return train_script(__doc__, CFG, tasks=["detection"], dataset="coco", argv=argv)


if __name__ == "__main__":
    run(main)
