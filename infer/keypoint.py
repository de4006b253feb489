"""Keypoints: images and boxes -> encoded crops -> tokens -> points in original pixels.

Keypoints are also scored and drawn here.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from dataset.batch import EvalBatch
from dataset.geometry import Geometry
from infer.batches import EvalLoop, evaluate_all
from infer.boxes import BoxSource
from infer.detection import WHOLE_BUDGET, DetectionOptions
from infer.results import Detections, Keypoints, Report, columns, score_coco
from infer.trained_model import Encoded, TrainedModel, shared_categories
from models.generate import REMOVED, SamplingOptions, sample, uniforms_of_images
from models.generate import draw as draw_tokens
from models.pix2seq import Pix2Seq
from tokenizer.keypoint import KeypointTokenizer, weighted_scores
from utils.categories import Skeleton, check_sigmas
from utils.errors import UserError

MAX_OBJECTS = 20  # per image: COCO's keypoint AP looks at no more
SUPPRESSION = 1e9  # taken off the logit of the invisible token
NOTEBOOK_WEIGHT = 0.1  # of the points' probability beside a detected box's score (official colab)


@dataclass(frozen=True)
class KeypointOptions:
    """How points are sampled and scored; see `Pix2Seq.generate`. Defaults: those of the papers."""

    top_k: int = 0
    top_p: float = 0.1
    temperature: float = 1.0
    suppress_invisible: bool = True  # every point gets a place; False = the model may pass
    official_resampling: bool = False  # suppress it as the official code does, afterwards
    points_score_weight: float | None = None  # None = 1, but 0.1 where boxes come with scores
    max_crops: int = 32  # that are encoded and decoded together: a limit of memory
    sigmas: tuple[float, ...] = ()  # of an evaluation, see `check_sigmas`
    seed: int = 0  # of the draws: an object gives the same result in every batch

    def __post_init__(self):
        SamplingOptions(self.temperature, self.top_k, self.top_p)  # raises what is wrong with them
        if self.max_crops < 1:
            raise ValueError(f"max_crops must be at least 1, got {self.max_crops}")
        if self.official_resampling and (self.top_k > 1 or not self.suppress_invisible):
            raise ValueError(
                "official_resampling needs suppress_invisible and top_k 0 or 1, got "
                f"suppress_invisible={self.suppress_invisible}, top_k={self.top_k}"
            )
        if not 0 <= (self.points_score_weight or 0) <= 1:
            raise ValueError(
                f"points_score_weight must be in [0, 1], got {self.points_score_weight}"
            )

    @classmethod
    def from_settings(cls, cfg) -> KeypointOptions:
        """The options of the settings."""
        return cls(
            top_k=cfg.top_k,
            top_p=cfg.keypoint_top_p,
            temperature=cfg.temperature,
            suppress_invisible=cfg.keypoint_suppress_invisible,
            official_resampling=cfg.keypoint_official_resampling,
            points_score_weight=cfg.keypoint_score_weight,
            sigmas=cfg.keypoint_sigmas,
            seed=cfg.seed,
        )


def find_keypoints(
    trained: TrainedModel,
    images: Sequence[Tensor],
    boxes: Sequence[np.ndarray],
    labels: Sequence[np.ndarray] | None = None,
    scores: Sequence[np.ndarray] | None = None,
    options: KeypointOptions = KeypointOptions(),
    *,
    image_ids: Sequence[int | str] | None = None,
) -> list[Keypoints]:
    """Predicts keypoints of the objects in given boxes, each in a crop around its box.

    Only coordinates and the invisible token are sampled; an invisible point gets the
    centre of its box and visibility 0. Points are clipped to the image. The score is the mean
    probability of the tokens, mixed with that of the box (`weighted_scores`), and 0 for objects
    that have other labels than those the weights know keypoints of.

    Args:
        images: B uint8 (3, h, w) originals of any sizes.
        boxes: B of (N, 4) xyxy original pixels; N may differ and be 0.
        labels: B of (N,) class ids; the first one of the tokenizer for all when None.
        scores: B of (N,) of the boxes; 1 for all when None.
        image_ids: B, to which the draws belong with `options.seed`; None = the same for each image.

    Returns:
        B `Keypoints`, in the order of the boxes.
    """
    tokenizer = trained.tokenizer("keypoint")
    # What a caller may leave out
    weight = options.points_score_weight
    if weight is None:
        weight = 1.0 if scores is None else NOTEBOOK_WEIGHT
    if image_ids is None:
        image_ids = [0] * len(images)
    boxes, labels, scores = _complete(tokenizer, images, boxes, labels, scores)
    # Points of the R objects of all images, in one row
    flat = [np.concatenate(rows) for rows in (boxes, labels, scores)]
    points = np.zeros((len(flat[0]), len(tokenizer.skeleton), 3), np.float32)  # (R, K, 3)
    point_scores = np.zeros(points.shape[:2], np.float32)
    mixed_scores = np.zeros(len(points), np.float32)
    crops = trained.crop_batches(images, boxes, tokenizer.crop, options.max_crops)
    for part, owners, encoded in crops:
        ids = [image_ids[i] for i in owners]
        points[part], point_scores[part], mixed_scores[part] = _decode(
            trained, encoded, *(rows[part] for rows in flat), options, weight, ids
        )
    # Back to a result per image
    ends = np.cumsum([len(b) for b in boxes])[:-1]
    split = [np.split(rows, ends) for rows in (mixed_scores, points, point_scores)]
    names = trained.categories.names
    return [
        Keypoints(b, k, s, [names.get(int(i), "") for i in k], p, q, tokenizer.skeleton)
        for b, k, s, p, q in zip(boxes, labels, *split, strict=True)
    ]


def with_keypoints(trained: TrainedModel, found: Sequence[Detections]) -> list[Detections]:
    """The detections of classes for which the weights know keypoints."""
    labels = trained.tokenizer("keypoint").labels
    return [one.select(np.flatnonzero(np.isin(one.labels, labels))) for one in found]


def to_original(
    tokenizer: KeypointTokenizer, tokens: np.ndarray, box: np.ndarray, geometry: Geometry
) -> np.ndarray:
    """(T,) tokens and a box in original pixels -> (K, 3) original pixels, visibility 2 or 0."""
    points, has_place = tokenizer.decode(tokens, geometry.boxes(box), geometry.size)
    h, w = geometry.orig_size
    points = np.clip(geometry.inverse_points(points), 0, np.float32([w, h]))
    return np.column_stack([points, np.where(has_place, 2, 0)]).astype(np.float32)


def _decode(
    trained: TrainedModel,
    encoded: Encoded,
    boxes: np.ndarray,
    labels: np.ndarray,
    scores: np.ndarray,
    options: KeypointOptions,
    weight: float,
    image_ids: Sequence[int | str],
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Of R crops: points (R, K, 3) original pixels, point_scores (R, K), scores (R,)."""
    model, tokenizer = trained.model, trained.tokenizer("keypoint")
    vocab, geometries = trained.vocab, encoded.geometries
    # The prompt of a crop: its box, as the crop shows it, and the class
    seen = np.stack([g.boxes(box) for g, box in zip(geometries, boxes, strict=True)])
    prompts = torch.from_numpy(tokenizer.prompts(seen, labels, geometries[0].size))
    uniforms = uniforms_of_images(  # the second half is for what is drawn anew
        prompts, image_ids, seed=options.seed, num_steps=2 * tokenizer.max_new_tokens
    ).to(model.device)
    prompts = prompts.to(model.device)
    # Tokens and log-probs: (R, T)
    allowed = None if options.official_resampling else tokenizer.allowed
    if options.suppress_invisible:
        tokens, log_probs = generate_resampled(
            model,
            encoded.memory,
            prompts,
            vocab.invisible,
            uniforms,
            SamplingOptions(options.temperature, options.top_k, options.top_p),
            allowed=allowed,
            official=options.official_resampling,
        )
    else:
        tokens, log_probs = model.generate(
            encoded.memory,
            prompts,
            max_new_tokens=tokenizer.max_new_tokens,
            temperature=options.temperature,
            top_k=options.top_k,
            top_p=options.top_p,
            allowed=allowed,
            uniforms=uniforms,
        )
    # Points in original pixels, and their scores
    tokens, log_probs = tokens.cpu().numpy(), log_probs.cpu().numpy()
    rows = zip(tokens, boxes, geometries, strict=True)
    points = np.stack([to_original(tokenizer, *row) for row in rows])
    scores = weighted_scores(tokens, log_probs, scores, weight, vocab.pad)
    scores = np.where(np.isin(labels, tokenizer.labels), scores, 0)
    return points, np.exp(log_probs).reshape(len(tokens), -1, 2).mean(2), scores


def _complete(
    tokenizer: KeypointTokenizer,
    images: Sequence[Tensor],
    boxes: Sequence[np.ndarray],
    labels: Sequence[np.ndarray] | None,
    scores: Sequence[np.ndarray] | None,
) -> tuple[list[np.ndarray], list[np.ndarray], list[np.ndarray]]:
    """Boxes cut to their images, labels and scores, as arrays per image."""
    inside = []
    for image, of_image in zip(images, boxes, strict=True):
        h, w = image.shape[1:]
        of_image = np.nan_to_num(np.asarray(of_image, np.float32).reshape(-1, 4))
        inside.append(np.clip(of_image, 0, np.float32([w, h, w, h])))
    if labels is None:
        labels = [np.full(len(b), tokenizer.labels[0]) for b in inside]
    if scores is None:
        scores = [np.ones(len(b)) for b in inside]
    labels = [np.asarray(k, np.int64).reshape(-1) for k in labels]
    return inside, labels, [np.asarray(s, np.float32).reshape(-1) for s in scores]


def evaluate(
    trained: TrainedModel,
    source,
    options: KeypointOptions = KeypointOptions(),
    loop: EvalLoop = EvalLoop(),
    *,
    boxes: str | Path = "gt",
    detection: DetectionOptions = WHOLE_BUDGET,
) -> Report:
    """Predicts keypoints for every image of the source, including empty ones, and scores them.

    Args:
        source: `CocoKeypoints` of whole images.
        boxes: where points are asked for: "gt" = the boxes of the ground truth, those without a
            labelled point and crowds left out; "detected" = what the same weights detect; or a
            COCO results file of boxes. Of the latter two the best `MAX_OBJECTS` of an image.
        detection: how "detected" boxes are found.
    """
    # What the weights and the data must agree on
    sigmas = check_sigmas(options.sigmas, source.skeleton)
    check_skeletons(trained.tokenizer("keypoint").skeleton, source.skeleton, trained.name)
    categories = shared_categories(trained.categories, source.categories)
    # Predict and score
    box_source = BoxSource(trained, source, categories, boxes, detection, most=MAX_OBJECTS)

    def predict(batch: EvalBatch) -> list[Keypoints]:
        of_boxes, labels, scores = columns(box_source.find(batch))
        if box_source.is_truth:
            scores = None  # the points alone are judged
        return find_keypoints(
            trained, batch.images, of_boxes, labels, scores, options, image_ids=batch.image_ids
        )

    def score(found: dict[int | str, Keypoints]) -> Report:
        return score_coco(source, found, categories, "keypoints", sigmas)

    return evaluate_all(source, predict, score, loop)


def check_skeletons(model: Skeleton, data: Skeleton, name: str) -> None:
    """Checks that the weights know the points that the data has.

    Raises:
        UserError: they know others.
    """
    if model.names != data.names:
        raise UserError(
            f"{name} knows the {len(model)} keypoints {_few(model)}, the data has the {len(data)} "
            f"keypoints {_few(data)}; evaluate on the data it was trained for"
        )


def _few(skeleton: Skeleton) -> str:
    return ", ".join(skeleton.names[:3]) + (", …" if len(skeleton) > 3 else "")


def draw(image: np.ndarray, found: Keypoints) -> np.ndarray:
    """A copy of the image with skeletons and their boxes.

    Points that the model passed on are left out.
    """
    return found.plot(image)


def table(path: Path, image: np.ndarray, found: Keypoints) -> str:
    """A block of lines per object, pixels of the original image."""
    head = f"{path} ({image.shape[1]} x {image.shape[0]})"
    if not len(found):
        return f"{head}\nno object found"
    lines, width = [head], max(map(len, found.skeleton.names))
    objects = zip(found.names, found.scores, found.boxes, strict=True)
    for n, (name, score, box) in enumerate(objects):
        corners = " ".join(f"{value:.1f}" for value in box)
        lines.append(f"{name} {n + 1}: score {score:.2f}, box {corners}")
        joints = zip(found.skeleton.names, found.points[n], found.point_scores[n], strict=True)
        for joint, (x, y, visibility), probability in joints:
            place = "       -       -"
            if visibility > 0:
                place = f"{x:8.1f}{y:8.1f}  {probability:5.2f}"
            lines.append(f"  {joint:<{width}}{place}")
    return "\n".join(lines)


# ---- what the model calls invisible is drawn anew -----------------------------------------------

# The model says what it wants, `invisible` too, sees what it has said and goes on from there. Only
# then are these tokens replaced by ones from the same logits without `invisible`. Suppressing the
# token while sampling makes the model continue from places that it did not mean: it has seen no
# such sequence in training, and the points after the first invisible one are lost.
# The official code does the same with a slip in the truncation of what is drawn anew; published
# keypoint scores were made with it, so it can be asked for.


def generate_resampled(
    model: Pix2Seq,
    memory: Tensor,
    prompt: Tensor,
    invisible: int,
    uniforms: Tensor,
    options: SamplingOptions,
    *,
    allowed: Callable[[Tensor], Tensor] | None = None,
    official: bool = False,
) -> tuple[Tensor, Tensor]:
    """Generates keypoints and replaces every `invisible` token, so that all get a position.

    Args:
        memory: (R, S, D) encoded images, one for each prompt.
        prompt: (R, P)
        uniforms: (R, 2 * T) numbers in [0, 1): the first half chooses the T tokens of an answer,
            the second half those that are drawn anew.
        allowed: the grammar, see `Pix2Seq.generate`; it must be the same at every step.
        official: truncate with `official_truncation`; top_k at most 1.

    Returns:
        tokens, log_probs: (R, T), log-probs without the invisible token.
    """
    # What the model wants, `invisible` included
    uniforms, again = uniforms.tensor_split(2, dim=1)  # each (R, T)
    tokens, _ = model.generate(
        memory,
        prompt,
        max_new_tokens=uniforms.shape[1],
        temperature=options.temperature,
        top_k=options.top_k,
        top_p=options.top_p,
        allowed=allowed,
        uniforms=uniforms,
    )
    # The logits of every step, after all that was said before it
    with torch.no_grad():
        hidden = model.decoder(torch.cat([prompt, tokens[:, :-1]], 1), memory)
        logits = model.decoder.logits(hidden[:, prompt.shape[1] - 1 :]).float()  # (R, T, V)
    logits[..., invisible] -= SUPPRESSION
    # Other tokens in the places of `invisible`.
    places = tokens == invisible  # (R, T)
    if official:
        cut = official_truncation(logits / options.temperature, options.top_k, options.top_p)
        kept = cut.softmax(-1)
        drawn = draw_tokens(kept.flatten(0, 1), again.flatten()).view(tokens.shape)
        tokens = torch.where(places, drawn, tokens)
    elif places.any():
        choices = logits[places]  # (M, V)
        if allowed is not None:
            choices = choices.masked_fill(~allowed(tokens[:, :0]), -torch.inf)
        tokens[places] = sample(choices, options, again[places])
    return tokens, logits.log_softmax(-1).gather(2, tokens[..., None])[..., 0]


def official_truncation(logits: Tensor, top_k: int, top_p: float) -> Tensor:
    """`top_logits` as in the official code for three-dimensional logits.

    What is meant to be the threshold of a row is taken along the wrong axis: top-k compares all
    positions with the best of the last one, top-p entry v with the v-th best of the first one at
    most, which lets most of the vocabulary through.

    Args:
        logits: (R, T, V)
        top_k: 0 or 1; officially more than one cannot run.

    Returns:
        (R, T, V), `REMOVED` where a token is out.
    """
    if top_k > 0:
        logits = logits.masked_fill(logits < logits[:, -1:].amax(2, keepdim=True), REMOVED)
    if top_p < 1:
        ordered = logits.sort(dim=2, descending=True).values
        inside = ordered.softmax(2).cumsum(2) <= top_p
        worst = ordered.masked_fill(~inside, -REMOVED).amin(2, keepdim=True)  # (R, T, 1)
        logits = logits.masked_fill(logits < torch.minimum(worst, ordered[:, :1]), REMOVED)
    return logits
