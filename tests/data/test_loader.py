"""Batches: padding, order, resuming, sharing between processes, and workers that change nothing."""

import io
import pickle
import subprocess
import sys
from itertools import chain, pairwise

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils import data

from detrkit.data.batch import Example, collate, normalise
from detrkit.data.loader import SampleKey, WorkerPool, plan_batches
from detrkit.data.square import SquareAugment
from detrkit.data.transforms import FlipAugment, NoAugment
from detrkit.errors import DataError, UserError
from detrkit.evaluation.evaluate import evaluate

from .conftest import CocoSource, ShapesSource, box_entry, coco, image_entry, part, shapes, small_detr


def same(a, b):
    masks = (a.mask is None and b.mask is None) or torch.equal(a.mask, b.mask)
    targets = all(
        torch.equal(x["boxes"], y["boxes"]) and torch.equal(x["labels"], y["labels"])
        for x, y in zip(a.targets, b.targets, strict=True)
    )
    return a.image_ids == b.image_ids and torch.equal(a.images, b.images) and masks and targets


def all_same(a, b):
    return len(a) == len(b) and all(same(x, y) for x, y in zip(a, b, strict=True))


@pytest.fixture(scope="module")
def source():
    return shapes(train_images=14, val_images=7, image_size=(40, 64))


def test_an_image_without_its_epoch_and_a_split_that_is_none_are_named(source):
    with pytest.raises(UserError, match=r"image 3 is asked for by its index alone.* ask for \(index, epoch\)"):
        source.train[3]
    with pytest.raises(UserError, match="split is 'test'; accepted are 'train' and 'val'"):
        source.loader(split="test", batch_size=2)
    with pytest.raises(UserError, match="split is 'test'; accepted are 'train' and 'val'"):
        evaluate(torch.nn.Identity(), source, batch_size=2, device="cpu", split="test")


def test_padding_is_zero_and_masked():
    def example(height, width):
        pixels = torch.full((3, height, width), 200, dtype=torch.uint8)
        return Example(pixels, torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64), 1, (height, width))

    batch = collate([example(5, 9), example(7, 4)])
    assert batch.images.shape == (2, 3, 7, 9)
    for index, (height, width) in enumerate([(5, 9), (7, 4)]):
        inside = torch.zeros(7, 9, dtype=torch.bool)
        inside[:height, :width] = True
        assert torch.equal(batch.mask[index], ~inside)
        assert (batch.images[index][:, ~inside] == 0).all()
        expected = (200 / 255 - torch.tensor([0.485, 0.456, 0.406])) / torch.tensor([0.229, 0.224, 0.225])
        assert torch.allclose(batch.images[index][:, inside], expected[:, None], atol=1e-6)
    assert collate([example(5, 9), example(5, 9)]).mask is None


@pytest.mark.parametrize("split", ["train", "val"])
def test_workers_change_nothing(source, split):
    batches = [list(source.loader(split=split, batch_size=4, epoch=2, seed=9, workers=n)) for n in (0, 1, 2)]
    assert all_same(batches[0], batches[1])
    assert all_same(batches[0], batches[2])


def test_epochs_and_seeds_differ_and_repeat(source):
    def run(epoch, seed):
        return list(source.loader(batch_size=4, epoch=epoch, seed=seed))

    assert all_same(run(1, 0), run(1, 0))
    assert not all_same(run(1, 0), run(2, 0))
    assert not all_same(run(1, 0), run(1, 1))


@pytest.mark.parametrize("workers", [0, 2])
def test_skipping_gives_the_rest_of_the_epoch(source, workers):
    whole = list(source.loader(batch_size=3, epoch=1, seed=4))
    rest = source.loader(batch_size=3, epoch=1, seed=4, skip=2, workers=workers)
    assert len(rest) == len(whole) - 2
    assert all_same(list(rest), whole[2:])


def test_an_abandoned_epoch_does_not_leak_into_the_next(source):
    for _ in source.loader(batch_size=2, epoch=0, workers=2):
        break
    assert all_same(list(source.loader(batch_size=4, epoch=5, workers=2)), list(source.loader(batch_size=4, epoch=5)))


def test_two_epochs_can_be_read_at_once(source):
    pairs = zip(source.loader(batch_size=4, workers=1), source.loader(batch_size=4, epoch=1, workers=1), strict=True)
    first, second = map(list, zip(*pairs, strict=True))
    assert all_same(first, list(source.loader(batch_size=4)))
    assert all_same(second, list(source.loader(batch_size=4, epoch=1)))


@given(st.integers(1, 60), st.integers(1, 5), st.integers(1, 4), st.integers(0, 3))
def test_processes_share_an_epoch(length, batch_size, world, epoch):
    plans = [
        plan_batches(length, batch_size, train=True, epoch=epoch, seed=1, rank=rank, world=world)
        for rank in range(world)
    ]
    joined = [list(chain(*parts)) for parts in zip(*plans, strict=True)]  # strict: the same number of batches
    assert all(batch for plan in plans for batch in plan)
    if length >= world:
        assert joined == plan_batches(length, batch_size * world, train=True, epoch=epoch, seed=1)
        used = list(chain(*joined))
        assert len(set(used)) == len(used)
        assert len(used) >= min(length, length - batch_size * world + 1)


@given(st.integers(0, 60), st.integers(1, 5), st.integers(1, 4))
def test_evaluation_sees_every_image_once(length, batch_size, world):
    plans = [
        plan_batches(length, batch_size, train=False, epoch=0, seed=0, rank=rank, world=world) for rank in range(world)
    ]
    assert sorted(index for plan in plans for batch in plan for index in batch) == list(range(length))


def test_batch_moves_whole(source):
    batch = next(iter(source.loader(batch_size=3)))
    moved = batch.to(torch.device("meta"))
    assert {moved.images.device, moved.mask.device, moved.sizes.device, moved.targets[0]["boxes"].device} == {
        torch.device("meta")
    }
    assert len(batch) == 3


@pytest.mark.parametrize("size", [1, 6])
def test_few_tensors_go_from_a_worker_to_the_trainer_however_many_images(source, size):
    class Counting(pickle.Pickler):
        def persistent_id(self, thing):
            return counted.append(thing) or len(counted) - 1 if isinstance(thing, torch.Tensor) else None

    class Restoring(pickle.Unpickler):
        def persistent_load(self, number):
            return counted[number]

    batch, counted, file = next(iter(source.loader(split="val", batch_size=size))), [], io.BytesIO()
    Counting(file).dump(batch)
    assert len(counted) == 4 + (batch.mask is not None)  # images, mask, labels, boxes, sizes
    restored = Restoring(io.BytesIO(file.getvalue())).load()
    assert same(restored, batch)
    assert torch.equal(restored.sizes, batch.sizes)
    assert restored.skipped == batch.skipped


@pytest.mark.parametrize("workers", [0, 1])
def test_a_broken_image_stops_the_epoch_by_name(write_set, workers):
    folder = write_set([image_entry(1), image_entry(2)], [box_entry(1, 1, [1, 1, 5, 5])])
    (folder / "train" / "2.png").write_bytes(b"broken")
    with pytest.raises(DataError, match=r"2\.png: cannot be read as an image.*data\.unreadable = ") as error:
        list(coco(folder).loader(batch_size=2, workers=workers))
    assert "Traceback" not in str(error.value)


def test_targets_are_relative_and_sizes_original(write_set):
    folder = write_set([image_entry(1)], [box_entry(1, 1, [15, 10, 30, 20])])
    source = CocoSource(root=str(folder), augment=small_detr())
    batch = next(iter(source.loader(split="val", batch_size=1)))
    assert batch.images.shape == (1, 3, 48, 72)
    assert torch.allclose(batch.targets[0]["boxes"], torch.tensor([[0.5, 0.5, 0.5, 0.5]]))
    assert batch.sizes.tolist() == [[40, 60]]


def test_normalise_is_imagenet():
    pixels = torch.tensor([124, 116, 104], dtype=torch.uint8)[:, None, None]
    assert normalise(pixels).abs().max() < 0.02


def test_a_plain_pair_is_a_key(source):
    a, b = source.train[(3, 1)], source.train[SampleKey(index=3, epoch=1)]
    assert torch.equal(a.image, b.image)


def test_a_process_that_leaves_its_loader_open_still_ends():
    """Workers that outlive the last batch must not keep the interpreter from exiting."""
    code = (
        "from detrkit.recipe import load_recipe\n"
        "source = load_recipe('quickstart', ['data.train_images=8', 'data.val_images=2']).section('data')()\n"
        "print(len(next(iter(source.loader(split='train', batch_size=2, workers=1))).images))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout) == (0, "2\n"), done.stderr


@pytest.fixture
def with_broken(write_set):
    """Six images, of which the second and third cannot be read."""
    folder = write_set([image_entry(n) for n in range(1, 7)], [box_entry(n, n, [n, 1, 5, 5]) for n in range(1, 7)])
    for split in ("train", "val"):
        for n in (2, 3):
            (folder / split / f"{n}.png").write_bytes(b"no image")
    return folder


def test_an_unreadable_image_stops_or_has_the_next_one_in_its_place(with_broken):
    with pytest.raises(DataError, match=r"2\.png: cannot be read"):
        _ = coco(with_broken).train[1, 0]
    dataset = coco(with_broken, unreadable="skip").train
    second, third, fourth = (dataset[index, 0] for index in (1, 2, 3))
    assert torch.equal(second.image, fourth.image)
    assert (second.image_id, third.image_id) == (4, 4)
    assert "2.png: cannot be read" in second.skipped
    assert "3.png" in third.skipped
    assert fourth.skipped == ""
    for workers in (0, 1):
        source = coco(with_broken, unreadable="skip")
        batches = list(source.loader(batch_size=3, workers=workers, seed=1))
        assert sorted(message.split("/")[-1][:5] for batch in batches for message in batch.skipped) == [
            "2.png",
            "3.png",
        ]
    for n in (1, 4, 5, 6):
        (with_broken / "train" / f"{n}.png").write_bytes(b"")
    with pytest.raises(DataError, match=r"not one of the 6 training images can be read; the first: .*1\.png"):
        _ = coco(with_broken, unreadable="skip").train[0, 0]


def test_an_unreadable_image_is_black_to_an_evaluation(with_broken):
    example = coco(with_broken, unreadable="skip").val[1, 0]
    assert (example.image_id, example.size, example.image.max().item()) == (2, (40, 60), 0)
    assert "2.png" in example.skipped


def test_images_with_rare_classes_are_seen_more_often(write_set):
    """Class 7 in one image of sixteen, class 3 in twelve: with a threshold of 1 / 4 the one counts twice."""
    boxes = [box_entry(n, n, [1, 1, 5, 5], category=3) for n in range(1, 13)]
    boxes += [box_entry(20, 1, [1, 1, 5, 5], category=7), box_entry(21, 2, [1, 1, 5, 5], category=7, iscrowd=1)]
    folder = write_set([image_entry(n) for n in range(1, 17)], boxes)
    source = coco(folder, repeat_threshold=0.25)
    assert source.train.records.repeat_factors(0.25).tolist() == [2.0, *[1.0] * 15]
    seen = np.zeros(16)
    for epoch in range(200):
        batches = plan_batches(
            16, 4, train=True, epoch=epoch, seed=3, weights=source.train.records.repeat_factors(0.25)
        )
        drawn = np.concatenate(batches)
        assert len(set(drawn.tolist())) == 16  # each time under a name of its own
        index, count = np.unique(drawn % 16, return_counts=True)
        assert count.sum() == 16
        assert count[index == 0].sum() in (1, 2)
        seen[index] += count
    assert abs(seen[0] / 200 - 2 * 16 / 17) < 0.1
    assert np.abs(seen[1:] / 200 - 16 / 17).max() < 0.1
    ids = [number for batch in source.loader(batch_size=4) for number in batch.image_ids]
    assert len(ids) == 16
    assert coco(folder).train.records.repeat_factors(0.01).max() == 1.0


def test_a_repeated_image_is_augmented_anew(write_set):
    weights = np.array([1.0] * 9 + [5.0])
    drawn = np.concatenate(plan_batches(10, 2, train=True, epoch=0, seed=0, weights=weights))
    often = np.sort(drawn[drawn % 10 == 9])
    assert often.tolist() == [9, 19, 29, 39][: len(often)]
    assert len(often) > 2
    boxes = [box_entry(n, n, [8, 8, 20, 20], category=3) for n in range(1, 11)] + [
        box_entry(20, 1, [1, 1, 5, 5], category=7)
    ]
    folder = write_set([image_entry(n) for n in range(1, 11)], boxes)
    augment = part(SquareAugment, scales=(24,), distort=1.0, zoom_out=0.0, crop=0.0, flip=0.0)
    source = CocoSource(root=str(folder), augment=augment, repeat_threshold=0.9)
    for epoch in range(20):
        seen: dict[int, list] = {}
        for batch in source.loader(batch_size=2, epoch=epoch):
            for image_id, image in zip(batch.image_ids, batch.images, strict=True):
                seen.setdefault(image_id, []).append(image)
        if twice := [images for images in seen.values() if len(images) > 1]:
            assert not torch.equal(*twice[0][:2])
            return
    raise AssertionError("no image came twice")


def test_weights_keep_processes_apart_as_without():
    weights = np.array([1.0, 3.0, 1.0, 2.0, 1.0, 1.0, 1.0, 2.0])
    whole = plan_batches(8, 4, train=True, epoch=1, seed=2, weights=weights)
    halves = [plan_batches(8, 2, train=True, epoch=1, seed=2, rank=r, world=2, weights=weights) for r in (0, 1)]
    assert [a + b for a, b in zip(*halves, strict=True)] == whole


def padding(batches, sizes):
    """The share of all batches' pixels that are none of an image's."""
    real = sum(int(h) * int(w) for batch in batches for h, w in sizes[batch])
    whole = sum(len(batch) * max(h for h, _ in sizes[batch]) * max(w for _, w in sizes[batch]) for batch in batches)
    return 1 - real / whole


@given(
    length=st.integers(1, 120),
    batch=st.integers(1, 5),
    world=st.integers(1, 3),
    pool=st.integers(1, 9),
    epoch=st.integers(0, 3),
)
def test_batches_by_size_hold_the_same_images_for_any_number_of_processes(length, batch, world, pool, epoch):
    sizes = np.random.default_rng(epoch).integers(20, 90, (length, 2))

    def plan(batch_size, **more):
        return plan_batches(length, batch_size, train=True, epoch=epoch, seed=3, **more)

    drawn = plan(batch * world)
    divided = plan(batch * world, sizes=sizes, pool=pool)
    assert sorted(chain(*divided)) == sorted(chain(*drawn))
    assert divided == plan(batch * world, sizes=sizes, pool=pool)
    shares = [plan(batch, sizes=sizes, pool=pool, rank=rank, world=world) for rank in range(world)]
    assert len({len(share) for share in shares}) == 1
    if length >= batch * world:
        assert all(len(one) == batch for share in shares for one in share)
        joined = [sorted(chain(*step)) for step in zip(*shares, strict=True)]
        assert joined == [sorted(one) for one in divided]


def test_batches_by_size_leave_a_third_of_the_padding():
    sizes = np.random.default_rng(0).integers(300, 1334, (3200, 2))

    def share(pool):
        return padding(plan_batches(3200, 16, train=True, epoch=0, seed=0, sizes=sizes, pool=pool), sizes)

    assert share(0) > 0.4
    assert share(32) < share(0) / 3
    orders = [plan_batches(3200, 16, train=True, epoch=epoch, seed=0, sizes=sizes, pool=32) for epoch in (0, 1)]
    together = [{frozenset(pair) for batch in order for pair in pairwise(batch)} for order in orders]
    assert len(together[0] & together[1]) < 0.05 * len(together[0])  # in another epoch with other images


@pytest.mark.parametrize("augment", [small_detr(), part(FlipAugment, max_size=70), part(NoAugment, max_size=60)])
def test_sizes_are_known_before_an_image_is_read(augment):
    dataset = ShapesSource(train_images=12, image_size=(40, 90), augment=augment).train
    for epoch in range(3):
        sizes = dataset.training_sizes(epoch, 7)
        assert [tuple(dataset[(i, epoch, 7)].image.shape[1:]) for i in range(12)] == [tuple(s) for s in sizes.tolist()]


def test_a_loader_by_size_resumes_and_pads_less():
    source = shapes(train_images=64, image_size=(40, 120), size_pool=8)
    naive = shapes(train_images=64, image_size=(40, 120))
    whole = list(source.loader(batch_size=8, epoch=1, seed=4))
    assert all_same(list(source.loader(batch_size=8, epoch=1, seed=4, skip=3)), whole[3:])
    pixels = [sum(batch.images.numel() for batch in s.loader(batch_size=8, epoch=1, seed=4)) for s in (source, naive)]
    assert pixels[0] < 0.85 * pixels[1]


@pytest.mark.parametrize("is_used", [False, True])
def test_memory_is_pinned_where_a_gpu_is_in_use_and_not_where_there_only_is_one(source, monkeypatch, is_used):
    asked = []

    class Loader(data.DataLoader):
        def __init__(self, *arguments, pin_memory, **options):
            asked.append(pin_memory)
            super().__init__(*arguments, **options)

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: is_used)
    monkeypatch.setattr(data, "DataLoader", Loader)
    assert len(list(WorkerPool(source.train, 0).run([[SampleKey(0)], [SampleKey(1)]]))) == 2
    assert asked == [is_used]
