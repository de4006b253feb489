from dataclasses import fields
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from dataset.batch import pad_batch
from dataset.loader import EpochSampler, TrainSet, build_eval_loader, build_train_loader
from dataset.sample import Sample
from dataset.transforms import ScaleJitterCropFlip, evaluation, train_transforms
from utils.devices import World
from utils.errors import UserError

SIZE = (48, 64)


class Pictures:
    """A source in memory: image i has side lengths that depend on i."""

    def __init__(self, length: int, broken: int | None = None):
        self.length, self.broken = length, broken

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> Sample:
        return self.read(index)

    def read(self, index: int, at_least=None) -> Sample:
        if index == self.broken:
            raise UserError(f"image {index} is damaged; remove it")
        rng = np.random.default_rng(index)
        size = (30 + index, 50)
        image = rng.integers(0, 256, (*size, 3)).astype(np.uint8)
        box = np.float32([[5, 5, 25, 20]])
        return Sample(image, 100 + index, size, boxes=box, labels=np.array([1 + index]))


def encode(sample: Sample, rng: np.random.Generator) -> SimpleNamespace:
    """Stands in for a task tokenizer; it draws, as noise objects do."""
    row = np.append(rng.integers(0, 99, 4), len(sample.labels))
    return SimpleNamespace(input=row, target=row + 1, weight=row.astype(np.float32))


def train_set(length: int = 7, seed: int = 0, **source) -> TrainSet:
    transforms = train_transforms(ScaleJitterCropFlip(SIZE), color_strength=0.5)
    return TrainSet(Pictures(length, **source), transforms, encode, seed)


def assert_same(a, b):
    for field in fields(a):
        x, y = getattr(a, field.name), getattr(b, field.name)
        if field.name == "images":  # what is around the pictures does not count
            x, y = pad_batch(x, a.unpadded), pad_batch(y, b.unpadded)
        assert torch.equal(x, y) if isinstance(x, torch.Tensor) else x == y, field.name


def epoch_of(loader, epoch: int, start: int = 0) -> list:
    loader.sampler.set_epoch(epoch, start)
    return list(loader)


def test_batches_have_their_shapes():
    loader = build_train_loader(train_set(), batch_size=3, num_workers=0)
    batches = epoch_of(loader, 0)
    assert [len(batch) for batch in batches] == [3, 3, 1] and len(loader) == 3
    batch = batches[0]
    assert batch.images.shape == (3, 3, *SIZE) and batch.images.dtype == torch.uint8
    assert batch.unpadded.shape == (3, 2) and batch.unpadded.dtype == torch.int64
    assert batch.input_tokens.shape == (3, 5) and batch.token_weights.dtype == torch.float32
    ids = [i for batch in batches for i in batch.image_ids]
    assert sorted(ids) == list(range(100, 107)) and ids != sorted(ids)
    assert_same(batch.to("cpu"), batch)


def test_the_picture_lies_at_the_top_left():
    dataset = TrainSet(Pictures(2), evaluation(SIZE), encode, 0)
    batch = next(iter(build_train_loader(dataset, batch_size=2, num_workers=0)))
    for index, image_id in enumerate(batch.image_ids):
        sample, _ = dataset.sample(0, image_id - 100)
        h, w = batch.unpadded[index].tolist()
        assert (h, w) == sample.geometry.unpadded
        picture = batch.images[index, :, :h, :w].permute(1, 2, 0).numpy()
        np.testing.assert_array_equal(picture, sample.image)
        padded = pad_batch(batch.images, batch.unpadded)[index]
        assert (padded[:, h:] == 0.3).all() and (padded[:, :, w:] == 0.3).all()


def test_workers_change_nothing_over_two_epochs():
    alone = build_train_loader(train_set(), batch_size=3, num_workers=0)
    helped = build_train_loader(train_set(), batch_size=3, num_workers=2)
    for epoch in (0, 1):
        for a, b in zip(epoch_of(alone, epoch), epoch_of(helped, epoch), strict=True):
            assert_same(a, b)


def test_samples_depend_on_seed_epoch_and_index_alone():
    dataset = train_set()
    item = dataset[3, 2]
    np.random.default_rng(0).random()
    np.random.seed(1)  # noqa: NPY002, the global generators must not matter
    torch.manual_seed(1)
    same = train_set()[3, 2]
    assert np.array_equal(item.image, same.image)
    assert np.array_equal(item.tokens.input, same.tokens.input)
    for other in (dataset[4, 2], train_set(seed=1)[3, 2]):
        assert not np.array_equal(item.image, other.image)
        assert not np.array_equal(item.tokens.input, other.tokens.input)


def test_iterating_leaves_the_global_generator_alone():
    loader = build_train_loader(train_set(), batch_size=3, num_workers=2)
    before = torch.get_rng_state()
    epoch_of(loader, 0)
    assert torch.equal(before, torch.get_rng_state())


def test_an_epoch_resumes_where_it_stopped():
    loader = build_train_loader(train_set(), batch_size=2, num_workers=0)
    whole, rest = epoch_of(loader, 1), epoch_of(loader, 1, start=4)
    assert len(rest) == 2
    for a, b in zip(whole[2:], rest, strict=True):
        assert_same(a, b)
    assert len(epoch_of(loader, 2)) == 4  # the next epoch is a whole one


@pytest.mark.parametrize("length", [1, 5, 12, 13])
@pytest.mark.parametrize("world", [1, 2, 3])
def test_every_sample_once_over_all_ranks(length, world):
    def epoch(remainder):
        samplers = [
            EpochSampler(length, 5, rank=r, world_size=world, remainder=remainder)
            for r in range(world)
        ]
        for sampler in samplers:
            sampler.set_epoch(2)
            assert len(list(sampler)) == len(sampler)
        assert all(e == 2 for sampler in samplers for e, _ in sampler)
        return [[index for _, index in sampler] for sampler in samplers]

    kept = epoch("keep")
    assert sorted(sum(kept, [])) == list(range(length))
    dropped = epoch("drop")
    assert {len(rows) for rows in dropped} == {length // world}
    assert len(set(sum(dropped, []))) == length // world * world


def test_batches_of_all_ranks_are_the_batches_of_one():
    one = list(EpochSampler(12, 0))
    two = [list(EpochSampler(12, 0, rank=r, world_size=2)) for r in (0, 1)]
    for k in range(3):  # batch 4 of one process, batch 2 of each of two
        joined = two[0][2 * k : 2 * k + 2] + two[1][2 * k : 2 * k + 2]
        assert sorted(joined) == sorted(one[4 * k : 4 * k + 4])


def test_order_differs_between_epochs():
    sampler = EpochSampler(20, 0)
    first = [index for _, index in sampler]
    sampler.set_epoch(1)
    assert first != [index for _, index in sampler]
    with pytest.raises(ValueError, match="remainder must be one of"):
        EpochSampler(3, 0, remainder="some")
    with pytest.raises(ValueError, match="rank must be in"):
        EpochSampler(3, 0, rank=2, world_size=2)


@pytest.mark.parametrize("workers", [0, 2])
def test_evaluation_yields_every_original_once(workers):
    ids = []
    for rank in (0, 1):
        loader = build_eval_loader(
            Pictures(5), batch_size=2, num_workers=workers, world=World(rank, 2)
        )
        for batch in loader:
            ids += batch.image_ids
            for image, image_id in zip(batch.images, batch.image_ids, strict=True):
                original = Pictures(5)[image_id - 100].image
                np.testing.assert_array_equal(image.permute(1, 2, 0).numpy(), original)
    assert sorted(ids) == [100, 101, 102, 103, 104]


@pytest.mark.parametrize("workers", [0, 2])
def test_a_broken_image_is_named_in_one_line(workers):
    loader = build_train_loader(train_set(broken=4), batch_size=2, num_workers=workers)
    with pytest.raises(UserError, match=r"^image 4 is damaged; remove it$"):
        epoch_of(loader, 0)
    loader = build_eval_loader(Pictures(3, broken=1), batch_size=1, num_workers=workers)
    with pytest.raises(UserError, match=r"^image 1 is damaged; remove it$"):
        list(loader)


def test_drop_last_gives_every_rank_the_same_number_of_full_batches():
    for rank in (0, 1):
        loader = build_train_loader(
            train_set(11), batch_size=2, num_workers=0, world=World(rank, 2), drop_last=True
        )
        assert [len(batch) for batch in epoch_of(loader, 0)] == [2, 2]


def test_transforms_without_geometry_are_refused():
    with pytest.raises(ValueError, match="Letterbox"):
        TrainSet(Pictures(2), [], encode, 0)[(0, 0)]
