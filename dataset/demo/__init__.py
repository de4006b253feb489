"""The synthetic demo set: pictures drawn from a seed, with COCO and VOC annotations."""
