"""BLEU, ROUGE-L and CIDEr as the COCO caption evaluation defines them, without Java.

Captions are lists of words (`ptb_tokenize`), candidates and references aligned by their index.
Numbers equal those of pycocoevalcap's Bleu, Rouge and Cider on the same words, its rounding guards
included. The words are an approximation of the Penn Treebank tokenizer.
"""

import math
import re
from collections import Counter
from collections.abc import Sequence

import numpy as np

Words = Sequence[str]

MAX_N = 4  # longest n-gram
BLEU_GUARDS = 1e-15, 1e-9  # added to matches and to counts
ROUGE_BETA = 1.2  # weight of recall over precision
CIDER_SIGMA = 6.0  # width of the length penalty, in words
CIDER_SCALE = 10.0
# What COCO's caption evaluation removes after tokenizing. It lists brackets in upper case, where
# the tokenizer has just made them lower case: they stay and count as words, here as well.
PUNCTUATION = {"''", "'", "``", "`", '"', ".", "?", "!", ",", ":", "-", "--", "...", ";"}
BRACKETS = {"(": "-lrb-", ")": "-rrb-", "[": "-lsb-", "]": "-rsb-", "{": "-lcb-", "}": "-rcb-"}
PLAIN = str.maketrans(
    {"‘": "'", "’": "'", "“": '"', "”": '"', "…": "...", "–": "--", "—": "--", "£": "#", "€": "$"}
)
ABBREVIATIONS = (
    "mr|mrs|ms|dr|st|jr|sr|vs|etc|prof|gen|col|lt|sgt|capt|rev|hon|inc|ltd|corp|co|bros|ave|blvd|"
    "rd|mt|ft|dept|est|approx|jan|feb|apr|jul|aug|sept|sep|oct|nov|dec"
)
ENDINGS = "s|m|d|ll|re|ve"
SPLIT_WORDS = {
    words.replace(" ", ""): words.split()
    for words in ("can not", "gon na", "got ta", "wan na", "lem me", "gim me", "'t is", "'t was")
}
TOKEN = re.compile(
    rf"""
      (?:https?://|www\.)\S+
    | [a-z](?:\.[a-z])+\b\.?                        # u.s.a  p.m.
    | (?:{ABBREVIATIONS})\. | [a-z]\.(?=\s+\S)      # dr.  and an initial
    | no\.(?=\s?\d)
    | \d+(?:[.,:]\d+)+ | \.\d+ | \d+(?=')           # 4:30  1,000  .5  and the 6 of 6'
    | '\d0s?\b | 'n' | '(?:{ENDINGS}|em|tis|twas)\b
    | [#@][^\W\d_]\w*
    | [^\W_](?:[^\W_]|[-/@_.'](?=[^\W_])|(?<=\b\w)&(?=\w\b)|(?<=\bat)&(?=t\b))*  # t-shirt  and/or
    | \.\.\.+ | --+ | [!?]+ | '' | `` | \S
    """,
    re.VERBOSE,
)
ENDING = re.compile(rf"(?<=[^\W_])(n't|'(?:{ENDINGS}))$")


def score_captions(
    candidates: Sequence[Words], references: Sequence[Sequence[Words]]
) -> tuple[dict[str, float], dict[str, np.ndarray]]:
    """All numbers of the COCO caption evaluation that need no further model.

    Args:
        candidates: one caption per image.
        references: of each image at least one caption.

    Returns:
        of the whole set, CIDEr first: "CIDEr", "BLEU-1" … "BLEU-4", "ROUGE-L"; and of each image,
        (images,) per name. BLEU of the set is no mean: it pools the counts of all images.
    """
    if len(candidates) != len(references) or not len(candidates):
        raise ValueError(
            f"every image needs a caption and references, got {len(candidates)} captions and "
            f"{len(references)} lists of references"
        )
    if not all(len(captions) for captions in references):
        raise ValueError("every image needs at least one reference caption")
    each = {"CIDEr": cider(candidates, references)}
    total, per_image = bleu(candidates, references)
    each |= {f"BLEU-{n}": per_image[:, n - 1] for n in range(1, MAX_N + 1)}
    each["ROUGE-L"] = rouge_l(candidates, references)
    metrics = {name: float(values.mean()) for name, values in each.items()}
    metrics |= {f"BLEU-{n}": float(total[n - 1]) for n in range(1, MAX_N + 1)}
    return metrics, each


def ngrams(words: Words) -> Counter:
    """How often each n-gram of 1 to `MAX_N` words occurs."""
    return Counter(
        tuple(words[i : i + n]) for n in range(1, MAX_N + 1) for i in range(len(words) - n + 1)
    )


def bleu(
    candidates: Sequence[Words], references: Sequence[Sequence[Words]]
) -> tuple[np.ndarray, np.ndarray]:
    """BLEU-1 to BLEU-4 with the reference length closest to the candidate's.

    Returns:
        (4,) of the whole set, (images, 4) of each image.
    """
    matches = np.zeros((len(candidates), MAX_N))  # n-grams that a reference has as often
    counts = np.zeros((len(candidates), MAX_N))  # n-grams of the candidate
    lengths = np.zeros((len(candidates), 2))  # words of the candidate and of that reference
    for i, (words, captions) in enumerate(zip(candidates, references, strict=True)):
        most = Counter()
        for caption in captions:
            most |= ngrams(caption)
        for gram, count in (ngrams(words) & most).items():
            matches[i, len(gram) - 1] += count
        counts[i] = np.maximum(len(words) - np.arange(MAX_N), 0)
        lengths[i] = len(words), _closest(len(words), map(len, captions))
    return _bleu(matches.sum(0), counts.sum(0), lengths.sum(0)), _bleu(matches, counts, lengths)


def _closest(length: int, others) -> int:
    """The nearest of the other lengths, of two equally near ones the shorter."""
    return min(others, key=lambda other: (abs(other - length), other))


def _bleu(matches: np.ndarray, counts: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """(..., 4) counts and (..., 2) lengths -> (..., 4) geometric means with brevity penalty."""
    tiny, small = BLEU_GUARDS
    precisions = (matches + tiny) / (counts + small)
    means = np.exp(np.log(precisions).cumsum(-1) / np.arange(1, MAX_N + 1))
    ratio = (lengths[..., :1] + tiny) / (lengths[..., 1:] + small)
    return means * np.exp(np.minimum(0, 1 - 1 / ratio))


def rouge_l(candidates: Sequence[Words], references: Sequence[Sequence[Words]]) -> np.ndarray:
    """(images,) F score of the longest common subsequence, best precision and best recall."""
    scores = np.zeros(len(candidates))
    for i, (words, captions) in enumerate(zip(candidates, references, strict=True)):
        common = [(common_length(words, caption), len(caption)) for caption in captions]
        precision = max(length for length, _ in common) / max(len(words), 1)
        recall = max(length / max(total, 1) for length, total in common)
        if precision and recall:
            weight = ROUGE_BETA**2
            scores[i] = (1 + weight) * precision * recall / (recall + weight * precision)
    return scores


def common_length(a: Words, b: Words) -> int:
    """Length of the longest common subsequence."""
    row = [0] * (len(b) + 1)
    for word in a:
        before = row
        row = [0]
        for j, other in enumerate(b):
            row.append(before[j] + 1 if word == other else max(row[j], before[j + 1]))
    return row[-1]


def cider(candidates: Sequence[Words], references: Sequence[Sequence[Words]]) -> np.ndarray:
    """(images,) CIDEr-D: likeness of n-grams weighted by how rare they are in the references.

    Rareness is counted in `references`, so the score of an image depends on the whole set (and is
    0 for a set of one image).
    """
    grams = [[ngrams(caption) for caption in captions] for captions in references]
    seen_in = Counter()  # n-gram -> images whose references have it
    for counters in grams:
        seen_in.update(set().union(*counters))
    log_images = math.log(len(references))
    rareness = {gram: log_images - math.log(count) for gram, count in seen_in.items()}
    scores = np.zeros(len(candidates))
    for i, words in enumerate(candidates):
        counter = ngrams(words)
        mine = {gram: count * rareness.get(gram, log_images) for gram, count in counter.items()}
        norms = _norms(mine)
        total = 0.0
        for counter, caption in zip(grams[i], references[i], strict=True):
            other = {gram: count * rareness[gram] for gram, count in counter.items()}
            penalty = (_bigrams(words) - _bigrams(caption)) ** 2 / (2 * CIDER_SIGMA**2)
            total += math.exp(-penalty) * _likeness(mine, norms, other)
        scores[i] = CIDER_SCALE * total / len(references[i])
    return scores


def _bigrams(words: Words) -> int:
    """What the official code takes for the length of a caption."""
    return max(len(words) - 1, 0)


def _norms(weights: dict[tuple, float]) -> list[float]:
    """Length of the vector of each n, 4 of them."""
    squares = [0.0] * MAX_N
    for gram, weight in weights.items():
        squares[len(gram) - 1] += weight**2
    return [math.sqrt(square) for square in squares]


def _likeness(mine: dict[tuple, float], norms: list[float], other: dict[tuple, float]) -> float:
    """Mean over n of the cosine between two weighted vectors, the candidate's clipped."""
    products = [0.0] * MAX_N
    for gram, weight in mine.items():
        if gram in other:
            products[len(gram) - 1] += min(weight, other[gram]) * other[gram]
    scales = [a * b for a, b in zip(norms, _norms(other), strict=True)]
    return sum(p / scale for p, scale in zip(products, scales, strict=True) if scale) / MAX_N


def ptb_tokenize(caption: str) -> list[str]:
    """Lower-cased words without punctuation, as COCO's caption evaluation compares them.

    The official evaluation runs Stanford's PTBTokenizer, a Java program; this describes it in a
    few expressions. Possessives and contractions are split off (`don't` -> `do n't`), hyphenated
    words and abbreviations stay whole, brackets become `-lrb-` and the like, other punctuation
    is dropped. Of 24,024 captions of COCO val2017 five come out differently.
    """
    words = []
    for token in TOKEN.findall(caption.translate(PLAIN).lower()):
        words += _split(token)
    return [BRACKETS.get(word, word) for word in words if word not in PUNCTUATION]


def _split(token: str) -> list[str]:
    """`she'll've` -> `she 'll 've`"""
    if token in SPLIT_WORDS:
        return SPLIT_WORDS[token]
    found = ENDING.search(token)
    return [token] if found is None else [*_split(token[: found.start()]), found.group()]
