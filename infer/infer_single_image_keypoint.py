"""Find the keypoints of persons: a table on stdout and keypoint_detection.png.

python infer/infer_single_image_keypoint.py --image a.jpg --box 40 60 120 300
python infer/infer_single_image_keypoint.py --image a.jpg --box 40,60,120,300 --json points.json

Without --box the same weights detect the persons first, if they were trained for that.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # run from any folder

from config import CFG
from infer.keypoint_script import keypoint_script
from utils.cli import run


def main(argv=None):
    keypoint_script(__doc__, CFG, argv)


if __name__ == "__main__":
    run(main)
