"""Describe images, find their objects, outline them, and find the keypoints of the persons.

python infer/infer_single_image_multi_task.py --image images/demo.jpg
python infer/infer_single_image_multi_task.py --image a.jpg --num-captions 3 --json all.json
python infer/infer_single_image_multi_task.py --image a.jpg --timing

The text goes to stdout; object_detection.png, instance_segmentation.png and
keypoint_detection.png to --out-dir. Each image is encoded once for all that the weights know,
and the crops of tasks that look closer once more; --timing says so, and how long each stage took.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # run from any folder

from config import CFG
from infer.multi_task_script import multi_task_script
from utils.cli import run


def main(argv=None):
    multi_task_script(__doc__, CFG, argv)


if __name__ == "__main__":
    run(main)
