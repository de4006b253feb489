"""Captioning scored: CIDEr, BLEU and ROUGE-L of COCO's caption evaluation."""

import pandas as pd
import torch

from dataset.coco_captions import CocoCaptions
from dataset.loader import EvalBatch
from infer.captioning import GREEDY, CaptionOptions, caption
from infer.predict_all import predict_all
from infer.predictor import Predictor
from infer.report import Report
from infer.results import Captions
from utils.caption_metrics import score_captions
from utils.ptb import ptb_tokenize
from utils.world import ALONE, World


def evaluate_captioning(
    predictor: Predictor,
    source: CocoCaptions,
    options: CaptionOptions = GREEDY,
    *,
    batch_size: int = 16,
    num_workers: int = 0,
    progress: bool = False,
    world: World = ALONE,
) -> Report:
    """Describes every image of the source and scores the best caption of each.

    Args:
        world: the processes to share the images out among; all of them get the whole report.
    """
    tokenizer = predictor.caption_tokenizer()

    def predict(batch: EvalBatch, generator: torch.Generator) -> list[Captions]:
        return caption(
            predictor.model,
            tokenizer,
            batch.images,
            options,
            resize_mode=predictor.resize_mode,
            resizing=predictor.resizing,
            generator=generator,
        )

    found = predict_all(
        source,
        predict,
        seed=options.seed,
        device=predictor.model.device,
        batch_size=batch_size,
        num_workers=num_workers,
        progress=progress,
        world=world,
    )
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
