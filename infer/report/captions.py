"""What a report says about captions: lengths, words, scores, the best and the worst pictures."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pandas as pd

from infer.report.figures import draw_histograms, to_png
from infer.report.page import Card, Chart, Section
from infer.report.pictures import encode, readable, small_picture
from infer.results import Report
from utils.caption_metrics import ptb_tokenize

MOST_PICTURES = 6
MOST_REPEATED = 8  # captions in the table
SCORES = ("CIDEr", "BLEU-4", "ROUGE-L")


def caption_sections(source, report: Report) -> list[Section]:
    """The sections of a report about captions.

    Args:
        report: its `per_class` has a row per image.
    """
    references = source.references
    table = report.per_class.reset_index(drop=True)
    return [
        score_section(table),
        length_section(table, references),
        picture_section(source, table, references, best=False),
        picture_section(source, table, references, best=True),
    ]


def score_section(table: pd.DataFrame) -> Section:
    """How the scores of single pictures are spread."""
    text = [
        "Scores of each picture; dashed lines are means. BLEU-4 of a single sentence is often near "
        "0, since it needs a run of four words that a reference has; BLEU of the whole set pools "
        "the counts, so it is not the mean of these.",
    ]
    charts = []
    for name in SCORES:
        values = table[name].to_numpy(float)
        most = max(1.0, float(np.ceil(values.max()))) if len(values) else 1.0
        charts.append((name, "score of a picture", {name: values}, np.linspace(0, most, 26)))
    figure = draw_histograms(charts)
    rows = table[list(SCORES)].quantile([0.05, 0.25, 0.5, 0.75, 0.95])
    rows.insert(0, "share of pictures below", [f"{share:.0%}" for share in rows.index])
    chart = Chart("caption_scores", to_png(figure), "Histograms of the scores of each picture")
    return Section("Scores of the pictures", text, [chart], [("", rows)])


def length_section(table: pd.DataFrame, references: dict) -> Section:
    """Lengths and variety of the sentences."""
    words = [ptb_tokenize(text) for text in table["caption"]]
    true = [ptb_tokenize(text) for i in table["image_id"] for text in references[i]]
    lengths = {
        "references": np.array([len(one) for one in true]),
        "predictions": np.array([len(one) for one in words]),
    }
    longest = max(int(one.max()) for one in lengths.values())
    edges = np.arange(-0.5, max(longest, 1) + 1.5)
    one = ("Length of the sentences", "words", lengths, edges)
    used, known = ({word for text in part for word in text} for part in (words, true))
    counts = Counter(table["caption"])
    text = [
        f"Predicted sentences have {lengths['predictions'].mean():.1f} words on average, those of "
        f"the references {lengths['references'].mean():.1f}. The predictions use {len(used)} "
        f"different words, the references {len(known)}. {len(counts)} of {len(table)} predicted "
        "sentences are different from each other.",
    ]
    repeated = [(text, count) for text, count in counts.most_common(MOST_REPEATED) if count > 1]
    tables = []
    if repeated:
        columns = ["sentence", "pictures"]
        tables = [("The most repeated sentences", pd.DataFrame(repeated, columns=columns))]
    chart = Chart("caption_lengths", to_png(draw_histograms([one])), "Words of the sentences")
    return Section("Lengths and words", text, [chart], tables)


def picture_section(source, table: pd.DataFrame, references: dict, *, best: bool) -> Section:
    """The pictures with the highest or the lowest CIDEr, with their sentences."""
    ordered = table.sort_values("CIDEr", ascending=not best, kind="stable")
    row_of = ordered.set_index("image_id")
    cards: list[Card] = []
    for image_id, image, name in readable(source, ordered["image_id"].tolist(), MOST_PICTURES):
        row = row_of.loc[image_id]
        numbers = ", ".join(f"{score} {row[score]:.2f}" for score in SCORES)
        lines = [f"Prediction: {row['caption']}"]
        lines += [f"Reference: {text}" for text in references[image_id]]
        picture = encode(small_picture(image), "JPEG")
        cards.append(Card(f"{name}: {numbers}", picture, lines))
    text = [f"The pictures with the {'highest' if best else 'lowest'} CIDEr."]
    if len(cards) < min(len(table), MOST_PICTURES):
        text.append("Files of some pictures cannot be read any more; these are not shown.")
    title = "Best pictures" if best else "Worst pictures"
    return Section(title, text, cards=cards, side_by_side=True)
