"""What a caller of the predictor may give, and what is refused in one sentence."""

from pathlib import Path

import numpy as np
import pytest
import torch

from infer.predictor import Predictor
from tests.conftest import ROOT
from utils.errors import UserError
from utils.images import load_image

BOXES = np.float32([[75, 246, 166, 354], [356, 9, 392, 72]])


@pytest.fixture(scope="module")
def predictor():
    return Predictor(ROOT / "weights" / "demo.safetensors")


@pytest.fixture(scope="module")
def image():
    return load_image(ROOT / "images" / "demo.jpg")


def test_numbers_of_numpy_and_torch_are_numbers(predictor, image):
    class_id = next(iter(predictor.categories.names))
    name = predictor.categories.names[class_id]
    expected = predictor.segment(image, BOXES, class_id, scores=[0.5, 0.5]).to_json()
    labels = (
        name,
        np.str_(name),
        np.int64(class_id),
        np.uint8(class_id),
        np.int64([class_id, class_id]),
        np.array(class_id),
        np.array([class_id] * 2),
        torch.tensor(class_id),
    )
    scores = (0.5, np.float16(0.5), np.array(0.5), torch.tensor([0.5, 0.5]))
    calls = [(label, 0.5, BOXES) for label in labels]
    calls += [(name, score, BOXES) for score in scores]
    calls += [(name, 0.5, boxes) for boxes in (BOXES.tolist(), torch.from_numpy(BOXES))]
    calls.append((labels[-1], scores[-1], torch.from_numpy(BOXES)))
    for label, score, boxes in calls:
        (found,) = predictor.segment([image], [boxes], [label], scores=[score])
        assert found.to_json() == expected
    (found,) = predictor.segment([image], [BOXES], np.int64(class_id), scores=np.float64(0.5))
    assert found.to_json() == expected
    for size in (np.int64(1), np.uint8(2)):
        assert len(predictor.detect((image, image), max_objects=np.int64(2), batch_size=size)) == 2


CALLS = [  # argument, value, what is said
    ("batch_size", 0, "batch_size must be a whole number of at least 1, got 0"),
    ("batch_size", -1, "batch_size .* got -1"),
    ("batch_size", 1.5, "batch_size .* got 1.5"),
    ("batch_size", True, "batch_size .* got True"),
    ("batch_size", "2", "batch_size .* got '2'"),
    ("scores", [[0.5]], r"scores must be one for each of the 2 boxes, got \(1,\)"),
    ("scores", [[[0.5], [0.5]]], r"scores must be one .* got \(2, 1\)"),
    ("scores", [["a", "b"]], "scores must be numbers"),
    ("scores", [np.nan], "scores must be finite"),
    ("labels", [True], "labels must be class ids or names, got True"),
    ("labels", [1.5], "labels must be class ids or names, got 1.5"),
    ("labels", [None], "labels must be class ids or names"),
    ("labels", [[1, 1, 1]], "one label for all boxes or one each: 3 for 2"),
    ("labels", [1, 1], "labels must have an entry for each of the 1 images, got 2"),
    ("boxes", [BOXES, BOXES], "boxes must have an entry for each of the 1"),
    ("boxes", [np.ones((4, 5))], r"boxes must be xmin .* got \(4, 5\)"),
    ("boxes", [["a", "b", "c", "d"]], "boxes must be numbers"),
    ("boxes", None, "labels and scores belong to boxes"),
    ("score_threshold", np.nan, "score_threshold must be a number from 0 to 1"),
    ("score_threshold", 50, "score_threshold .* got 50"),
    ("score_threshold", "0.5", "score_threshold .* got '0.5'"),
]


@pytest.mark.parametrize("task", ["segment", "keypoints"])
@pytest.mark.parametrize("name, value, message", CALLS)
def test_what_cannot_be_meant_is_refused_in_a_sentence(
    predictor, image, task, name, value, message
):
    label = predictor.tokenizer("keypoint").labels[0]
    call = {"boxes": [BOXES], "labels": [label], name: value}
    with pytest.raises((ValueError, UserError), match=message) as caught:
        getattr(predictor, task)([image], **call)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("most", [0, -1, 2.5, "3", True])
def test_strange_numbers_of_objects_are_refused(predictor, image, most):
    with pytest.raises(ValueError, match="max_objects must be a whole number of at least 1"):
        predictor.detect(image, max_objects=most)


@pytest.mark.parametrize("batch_size", [0, -1, None])
@pytest.mark.parametrize("task", ["detect", "segment", "keypoints", "caption", "all_tasks"])
def test_nothing_is_never_the_answer_to_a_wrong_batch_size(predictor, image, task, batch_size):
    for images in (image, [image], []):
        with pytest.raises(ValueError, match="batch_size must be"):
            getattr(predictor, task)(images, batch_size=batch_size)


def test_no_images_and_no_boxes_give_no_results(predictor, image):
    for task in ("detect", "segment", "keypoints", "caption", "all_tasks"):
        assert getattr(predictor, task)([]) == []
    for boxes in (np.zeros((0, 4)), []):
        assert len(predictor.segment(image, boxes)) == len(predictor.keypoints(image, boxes)) == 0


@pytest.mark.parametrize(
    "strange",
    [
        lambda image: image.astype(np.float32) / 255,
        lambda image: image[..., 0],
        lambda image: np.dstack([image, image[..., :1]]),
        lambda image: torch.from_numpy(image),
        lambda image: torch.from_numpy(image).permute(2, 0, 1)[None],
        lambda image: image[None],
        lambda image: None,
    ],
    ids=["float", "gray", "RGBA", "torch HWC", "torch batch", "batch", "None"],
)
def test_other_images_are_refused_in_a_sentence(predictor, image, strange):
    with pytest.raises(ValueError, match=r"image must be .*RGB uint8 array \(H, W, 3\).*, got"):
        predictor.detect(strange(image))


@pytest.mark.parametrize("address", ["https://a.org/b.jpg", "http://a/b.png", "s3://a/b.jpg"])
def test_addresses_are_refused_in_a_sentence(predictor, address):
    for image in (address, Path(address)):
        with pytest.raises(UserError, match="is an address, .*; download it first$"):
            predictor.detect(image)


def test_a_threshold_of_detection_leaves_out_what_scores_lower(predictor, image):
    every = predictor.detect(image)
    threshold = float(every.scores[2])
    assert 3 <= len(predictor.detect(image, score_threshold=threshold)) < len(every)
    assert predictor.detect(image, score_threshold=threshold)[:3].to_json() == every[:3].to_json()
    for strange in (50, np.nan, "0.5"):
        with pytest.raises(ValueError, match="score_threshold must be a number from 0 to 1"):
            predictor.detect(image, score_threshold=strange)


def test_results_know_their_image(predictor, image):
    path = ROOT / "images" / "demo.jpg"
    from_file, from_pixels = predictor.detect([str(path), image], max_objects=4)
    assert from_file.origin.path == path and from_pixels.origin.path is None
    assert from_file.origin.size == from_pixels.origin.size == image.shape[:2]
    np.testing.assert_array_equal(from_file.plot(), from_pixels.plot(image))
    with pytest.raises(ValueError, match="does not come from a file; give the image"):
        from_pixels.plot()
    everything = predictor.all_tasks(path)
    for part in everything.known():
        assert part.origin.path == path and part.plot().shape[1:] == image.shape[1:]
    assert len(everything.plot()) > len(image), "the caption is below the picture"


def test_a_class_that_was_asked_for_comes_with_its_probability(predictor, image):
    found = predictor.segment(image, BOXES)
    assert (found.scores < 1).all() and (found.scores > 0).all()
    likely = predictor.detect(image).best(1)
    again = predictor.segment(image, likely.boxes)
    assert again.labels.tolist() == likely.labels.tolist() and again.scores[0] > 0.5
    named = predictor.segment(image, BOXES, found.labels)
    assert named.scores.tolist() == [1, 1] and named.rles == found.rles
    given = predictor.segment(image, BOXES, scores=[0.25, 0.75])
    assert given.scores.tolist() == [0.25, 0.75]
