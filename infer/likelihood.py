"""Likelihood of the annotation: teacher-forced loss and accuracy of training sequences.

The sequences are made as in training, but without augmentation of the images and with draws that
belong to the sample: a model always meets the same ones. The loss is plain cross entropy in nats,
whatever `loss` a training goes by. Tokens count by their weights.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from dataset.batch import Batch, pad_batch
from dataset.loader import build_sequence_loader
from dataset.sample import ChangedSource, PerObject, Sample
from dataset.tasks import build_train_set, sequence_options
from infer.batches import EvalLoop
from infer.trained_model import TrainedModel, shared_categories
from tokenizer.base import TOKEN_KINDS, TaskTokenizer, kinds_of
from utils.errors import UserError


def measure_likelihood(
    cfg, task: str, trained: TrainedModel, source, loop: EvalLoop, limit: int = 0
) -> dict[str, float]:
    """Loss and accuracy of the sequences of a source, of all tokens and of each kind that occurs.

    Args:
        source: of the task, as its evaluation uses it, which names what it cannot read.
        loop: its processes share the samples; all of them get the whole result.
        limit: so many samples, spread evenly over the source; 0 = all.

    Returns:
        "loss", "accuracy", "coordinates/loss", …; empty where no token carries weight.

    Raises:
        UserError: the weights do not know the task, or their sequences are not trained here.
    """
    tokenizer = build_sequence_tokenizer(cfg, task, trained)
    if is_per_object(tokenizer) and not len(source.learnable_objects()):
        return {}
    loader = build_loader(cfg, task, trained, source, tokenizer, loop, limit)
    sums = torch.zeros(
        len(TOKEN_KINDS), 3, dtype=torch.float64
    )  # weight, weighted loss, weighted hits
    model, was_training = trained.model, trained.model.training
    model.eval()
    with torch.no_grad():
        for batch in filter(None, loader):
            kinds, weights, measured = measure_tokens(trained, batch.to(model.device), tokenizer)
            rows = torch.cat([weights[:, None], weights[:, None] * measured], 1)  # (M, 3)
            sums.index_add_(0, kinds.cpu(), rows.double().cpu())
    model.train(was_training)
    return summarise(loop.world.sum(sums))


def build_sequence_tokenizer(cfg, task: str, trained: TrainedModel) -> TaskTokenizer:
    """The tokenizer of the weights with the sequence options of the settings."""
    trained.require(task)
    if trained.vocab.layout != "official":
        raise UserError(
            f"{trained.name} has tokens in the {trained.vocab.layout} layout, of which no training "
            "sequences are made; leave --likelihood out"
        )
    options = sequence_options(cfg, task)
    if task == "segmentation":
        crop = trained.require(task).get("crop") is not None
        options["max_objects"] = 1 if crop else cfg.seg_max_objects
    return trained.tokenizer(task, **options)


def build_loader(
    cfg,
    task: str,
    trained: TrainedModel,
    source,
    tokenizer: TaskTokenizer,
    loop: EvalLoop,
    limit: int,
):
    """Loader of the samples' sequences; each process gets its share."""
    if source.categories.names:  # captions have none
        source = WithClassesOf(trained, source)
    if is_per_object(tokenizer):
        source = PerObject(source)
    train_set = build_train_set(
        task,
        source,
        tokenizer,
        trained.model.config.image_size,
        seed=cfg.seed,
        augment=False,
        resize_mode=trained.resize_mode,
        crop=getattr(tokenizer, "crop", None),
    )
    chosen = np.arange(len(train_set))
    if 0 < limit < len(chosen):
        chosen = np.linspace(0, len(chosen) - 1, limit).astype(np.int64)
    return build_sequence_loader(
        train_set,
        chosen.tolist(),
        batch_size=loop.batch_size,
        num_workers=loop.num_workers,
        world=loop.world,
        skip_bad=loop.skip_bad,
    )


def is_per_object(tokenizer: TaskTokenizer) -> bool:
    """Whether a sample is one object in a crop."""
    return getattr(tokenizer, "crop", None) is not None


class WithClassesOf(ChangedSource):
    """A source with the class ids of the weights; objects of unknown classes are removed."""

    def __init__(self, trained: TrainedModel, source):
        super().__init__(source)
        shared = shared_categories(trained.categories, source.categories)
        of_model = {source_id: i for i, source_id in shared.source_ids.items()}
        self.new_ids = {
            i: of_model[source_id]
            for i, source_id in source.categories.source_ids.items()
            if source_id in of_model
        }

    def read(self, index: int, at_least: tuple[int, int] | None = None, only=None) -> Sample:
        options = {} if only is None else {"only": only}
        sample = self.source.read(index, at_least, **options)
        sample.labels = np.array([self.new_ids.get(i, 0) for i in sample.labels.tolist()], np.int64)
        return sample.select(sample.labels > 0)


def measure_tokens(
    trained: TrainedModel, batch: Batch, tokenizer: TaskTokenizer
) -> tuple[Tensor, Tensor, Tensor]:
    """The tokens of a batch that carry weight.

    Returns:
        (M,) their kinds, (M,) their weights, (M, 2) loss and whether the likeliest token is right.
    """
    supervised = batch.supervised  # (M,)
    targets = batch.target_tokens.flatten()[supervised]
    weights = batch.token_weights.flatten()[supervised]
    images = pad_batch(batch.images, batch.unpadded)
    # `forward`, not a call: a model that is compiled is compiled for training
    measured = trained.model.forward(images, batch.input_tokens, supervised, targets, loss_and_hit)
    return kinds_of(targets, trained.vocab, tokenizer.eos_id), weights, measured


def loss_and_hit(logits: Tensor, targets: Tensor) -> Tensor:
    """(M, V) and (M,) -> (M, 2) cross entropy, and 1 where the likeliest token is the target."""
    logits = logits.float()
    losses = F.cross_entropy(logits, targets, reduction="none")
    return torch.stack([losses, (logits.argmax(1) == targets).float()], 1)


def summarise(sums: Tensor) -> dict[str, float]:
    """(kinds, 3) sums of weight, weighted loss and weighted hits -> figures by name."""
    rows = {
        "": sums.sum(0),
        **{f"{kind}/": row for kind, row in zip(TOKEN_KINDS, sums, strict=True)},
    }
    figures = {}
    for prefix, row in rows.items():
        weight, loss, hits = row.tolist()
        if weight > 0:
            figures |= {f"{prefix}loss": loss / weight, f"{prefix}accuracy": hits / weight}
    return figures


def likelihood_table(metrics: dict[str, float]) -> str:
    """A table for printing: one line for all tokens and one for each kind.

    Args:
        metrics: of a report, with "likelihood/loss" and so on among them.
    """
    lines = [f"{'likelihood':<14}loss  accuracy"]
    for kind in ("", *TOKEN_KINDS):
        prefix = f"likelihood/{kind}/" if kind else "likelihood/"
        if f"{prefix}loss" in metrics:
            loss, hits = metrics[f"{prefix}loss"], metrics[f"{prefix}accuracy"]
            lines.append(f"{kind or 'all tokens':<12}{loss:6.3f}  {hits:8.3f}")
    return "\n".join(lines)
