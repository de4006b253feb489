"""Detect objects with Pascal VOC weights: a table on stdout and object_detection.png.

python infer/infer_single_image_voc.py --image images/demo.jpg
python infer/infer_single_image_voc.py --image "photos/*.jpg" --weights my.safetensors
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # run from any folder

from config import VocCFG
from infer.detection_script import detection_script
from utils.cli import run


def main(argv=None):
    detection_script(__doc__, VocCFG, "voc_detection_weights", argv)


if __name__ == "__main__":
    run(main)
