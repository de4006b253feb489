"""BLEU, ROUGE-L and CIDEr against pycocoevalcap's numbers, known answers and invariances."""

import json

import numpy as np
import pytest

from infer.captioning import score_results
from utils.caption_metrics import bleu, cider, common_length, ptb_tokenize, rouge_l, score_captions

CANDIDATES = [
    "A red kite flies over a green hill.",
    "Two dogs sleep on a mat",
    "a a a a",
    "A man's hat",
    "There is nothing here.",
]
REFERENCES = [
    [
        "A red kite flying above a green hill.",
        "The kite is red; the hill, green!",
        "A kite over a hill",
    ],
    ["Two dogs are sleeping on the mat.", "A pair of dogs on a mat (asleep)."],
    ["A boat and a lake and a bridge.", "A wooden bridge over a lake, with a boat."],
    ["That's a man's hat.", "A man's black hat on a shelf, isn't it?", "Somebody's hat."],
    ["Clouds."],
]
# pycocoevalcap 1.2 on these sentences: its Java tokenizer, Bleu(4), Rouge and Cider.
BLEU = [0.703196368, 0.595351138, 0.474130166, 0.310741395]
BLEU_EACH = [
    [0.875, 0.705401437, 0.275909581, 1, 2.5e-16],
    [0.790569415, 0.598552968, 5.81668469e-09, 1, 2.88675135e-16],
    [0.592815551, 0.423240862, 1.8393972e-11, 1, 3.46680637e-16],
    [8.03428419e-05, 6.80087474e-05, 1.23007905e-12, 0.999999999, 4.51801002e-16],
]
ROUGE_EACH = [0.879807692, 0.606965174, 0.471649485, 0.772151899, 0]
CIDER_EACH = [2.51075567, 1.88430083, 0.234111874, 3.71753203, 0]


def words(candidates=CANDIDATES, references=REFERENCES):
    return [ptb_tokenize(text) for text in candidates], [
        [ptb_tokenize(text) for text in texts] for texts in references
    ]


def test_numbers_equal_those_of_pycocoevalcap():
    metrics, each = score_captions(*words())
    assert next(iter(metrics)) == "CIDEr"
    for n in range(1, 5):
        assert metrics[f"BLEU-{n}"] == pytest.approx(BLEU[n - 1], abs=1e-8)
        np.testing.assert_allclose(each[f"BLEU-{n}"], BLEU_EACH[n - 1], atol=1e-8)
    np.testing.assert_allclose(each["ROUGE-L"], ROUGE_EACH, atol=1e-8)
    np.testing.assert_allclose(each["CIDEr"], CIDER_EACH, atol=1e-7)
    assert metrics["ROUGE-L"] == pytest.approx(np.mean(ROUGE_EACH))
    assert metrics["CIDEr"] == pytest.approx(np.mean(CIDER_EACH))


def test_a_perfect_caption_scores_highest():
    _, references = words()
    candidates = [captions[0] for captions in references]
    metrics, each = score_captions(candidates, [[caption] for caption in candidates])
    assert metrics["BLEU-1"] == pytest.approx(1) and metrics["ROUGE-L"] == pytest.approx(1)
    assert each["CIDEr"][0] == pytest.approx(10), "all of its n-grams are found in one image only"
    assert each["BLEU-4"][0] == pytest.approx(1)


def test_the_order_of_images_and_references_does_not_matter():
    candidates, references = words()
    metrics, each = score_captions(candidates, references)
    order = [3, 1, 4, 0, 2]
    turned, each_turned = score_captions(
        [candidates[i] for i in order], [references[i][::-1] for i in order]
    )
    assert turned == pytest.approx(metrics)
    for name, values in each.items():
        np.testing.assert_allclose(each_turned[name], values[order])


def test_cider_depends_on_what_is_rare_in_the_set():
    candidates, references = words()
    assert cider(candidates[:1], references[:1])[0] == 0, "in a set of one image nothing is rare"
    alone = cider(candidates[:2], references[:2])
    assert alone[0] > 0 and alone[0] != pytest.approx(cider(candidates, references)[0])


def test_bleu_takes_the_nearest_reference_length_and_the_shorter_of_two():
    total, _ = bleu([["a", "b", "c"]], [[["a", "b", "c", "d"], ["a", "b"]]])
    assert total[0] == pytest.approx(1), "no penalty: the reference of 2 words counts"
    total, _ = bleu([["a", "b", "c"]], [[["a", "b", "c", "d"]]])
    assert total[0] == pytest.approx(np.exp(1 - 4 / 3))


def test_repeated_words_count_as_often_as_a_reference_has_them():
    total, _ = bleu([["the"] * 7], [[["the", "cat", "on", "the", "mat"]]])
    assert total[0] == pytest.approx(2 / 7)


def test_longest_common_subsequence():
    assert common_length("ABCBDAB", "BDCABA") == 4
    assert common_length("", "AB") == common_length("AB", "") == 0
    assert rouge_l([[]], [[["a"]]])[0] == 0


def test_empty_captions_score_zero():
    _, references = words()
    metrics, each = score_captions([[] for _ in references], references)
    assert all(value == pytest.approx(0, abs=1e-6) for value in metrics.values())
    assert all(np.isfinite(values).all() for values in each.values())


def test_what_cannot_be_scored_is_refused():
    with pytest.raises(ValueError, match="needs a caption and references, got 1 captions and 2"):
        score_captions([["a"]], [[["a"]], [["b"]]])
    with pytest.raises(ValueError, match="at least one reference"):
        score_captions([["a"]], [[]])


@pytest.mark.parametrize(
    ("caption", "expected"),
    [
        ("A man's dog can't see children's toys", "a man 's dog ca n't see children 's toys"),
        ("They're gonna get it, cannot they?", "they 're gon na get it can not they"),
        ('A "red" sign - parked... 24/7; yes!', "a red sign parked 24/7 yes"),
        ("A black-and-white T-shirt (new)", "a black-and-white t-shirt -lrb- new -rrb-"),
        ("10x12 room, 3.5 inches, 2:30 pm, 10,000", "10x12 room 3.5 inches 2:30 pm 10,000"),
        ("Mr. Smith on 5th St. at 6 p.m.", "mr. smith on 5th st. at 6 p.m."),
        ("in the U.S.A. and L.A.", "in the u.s.a. and l.a."),
        ("$10.50 or 50% of it & more", "$ 10.50 or 50 % of it & more"),
        ("It stands still.A bird sits.", "it stands still.a bird sits"),
        ("‘quoted’ “text”…", "quoted text"),
        ("She'll've gone.", "she 'll 've gone"),
        ("", ""),
    ],
)  # fmt: skip
def test_words_are_those_of_the_penn_treebank(caption, expected):
    assert " ".join(ptb_tokenize(caption)) == expected


@pytest.mark.data
def test_real_results_score_as_pycocoevalcap_scores_them(real_data):
    """The numbers are those of its Java tokenizer and its classes on the same two files."""
    root = real_data / "coco_annotations_only"
    rows = json.loads((root / "annotations" / "captions_val2017.json").read_text())["annotations"]
    results = json.loads((root / "results" / "captions_val2017_fakecap_results.json").read_text())
    references = {}
    for row in rows:
        references.setdefault(row["image_id"], []).append(row["caption"])
    report = score_results(references, results)
    assert len(report.per_class) == 4795 and report.results == results
    expected = {
        "CIDEr": 0.0002794396309314132,
        "BLEU-1": 0.1495432861053959,
        "BLEU-2": 0.004050402364417447,
        "BLEU-3": 8.153862215198796e-09,
        "BLEU-4": 1.745606801960167e-11,
        "ROUGE-L": 0.3328235197860443,
    }
    assert report.metrics == pytest.approx(expected, abs=1e-6)
    human = {i: references[i] for i in sorted(references)[:1000]}  # the first against the others
    rows = [{"image_id": i, "caption": captions[0]} for i, captions in human.items()]
    metrics = score_results({i: texts[1:] for i, texts in human.items()}, rows).metrics
    expected = {
        "CIDEr": 0.9077267107929562,
        "BLEU-1": 0.6381420449069444,
        "BLEU-2": 0.44194443561629065,
        "BLEU-3": 0.2979110598180894,
        "BLEU-4": 0.19614739148481408,
        "ROUGE-L": 0.4739041704162129,
    }
    assert metrics == pytest.approx(expected, abs=1e-6)
