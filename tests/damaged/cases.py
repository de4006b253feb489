"""All cases, in the order of the page."""

from tests.damaged.coco_cases import COCO, IMAGES
from tests.damaged.other_cases import OTHERS
from tests.damaged.voc_cases import VOC
from tests.damaged.weight_cases import WEIGHTS

CASES = [*IMAGES, *COCO, *VOC, *WEIGHTS, *OTHERS]
