"""Captioning scored: CIDEr, BLEU and ROUGE-L of COCO's caption evaluation."""

import pandas as pd

from dataset.batch import EvalBatch
from dataset.coco_captioning import CocoCaptions
from infer.batches import predict_all
from infer.captioning import GREEDY, CaptionOptions
from infer.predictor import Predictor
from infer.results import Captions, Report
from utils.caption_metrics import ptb_tokenize, score_captions


def evaluate_captioning(
    predictor: Predictor, source: CocoCaptions, options: CaptionOptions = GREEDY, **loop
) -> Report:
    """Describes every image of the source and scores the best caption of each.

    Args:
        loop: batch_size, num_workers, progress and world of `predict_all`.
    """
    captioner = predictor.captioner(options)

    def predict(batch: EvalBatch) -> list[Captions]:
        return captioner(batch.images, image_ids=batch.image_ids)

    found = predict_all(source, predict, **loop)
    results = [row for image_id, captions in found.items() for row in captions.to_coco(image_id)]
    return score_caption_results(source.references, results)


def score_caption_results(references: dict[int, list[str]], results: list[dict]) -> Report:
    """The report of a COCO caption results file; one row per image in place of the classes.

    Args:
        references: image id -> captions.
        results: rows of image_id and caption, one per image, all with references. Images without
            a row do not count, as in the official evaluation.
    """
    words = [ptb_tokenize(row["caption"]) for row in results]
    truth = [[ptb_tokenize(text) for text in references[row["image_id"]]] for row in results]
    metrics, each = score_captions(words, truth)
    per_image = pd.DataFrame(results)[["image_id", "caption"]].assign(**each)
    lines = [f"{name:<8} = {value:.3f}" for name, value in metrics.items()]
    return Report(metrics, per_image, "\n".join([f"{len(results)} images", *lines]), results)
