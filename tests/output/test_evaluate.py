from dataclasses import dataclass, replace

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from pycocotools.coco import COCO
from torch import nn

from detrkit.errors import UserError
from detrkit.evaluation.evaluate import coco_detections, evaluate

IMAGES = (11, 5, 8)  # not in order
BOXES = {11: [10.0, 10, 30, 40], 5: [1.0, 2, 61, 72], 8: [5.0, 5, 9, 9]}  # (x1, y1, x2, y2)


@dataclass(frozen=True)
class Category:
    id: int
    name: str


@dataclass(frozen=True)
class Batch:
    images: torch.Tensor
    mask: None
    image_ids: list
    sizes: torch.Tensor

    def to(self, device):
        return replace(self, images=self.images.to(device))


class Split:
    def ground_truth(self):
        coco = COCO()
        coco.dataset = {
            "images": [{"id": i, "width": 100, "height": 80} for i in IMAGES],
            "categories": [{"id": 3, "name": "cat"}, {"id": 7, "name": "dog"}],
            "annotations": [
                {"id": i, "image_id": i, "category_id": 7, "bbox": [a, b, c - a, d - b], "iscrowd": 0}
                for i, (a, b, c, d) in BOXES.items()
            ],
        }
        coco.createIndex()
        return coco


class Source:
    """Label 0 is a category that the data does not have, 1 is 3 (cat), 2 is 7 (dog)."""

    categories = (Category(1, "unused"), Category(3, "cat"), Category(7, "dog"))
    val = Split()

    def __init__(self, pad=False):
        self.pad = pad

    def loader(self, *, split, batch_size, epoch, seed, workers, rank, world):
        mine = list(IMAGES[rank::world])
        if self.pad:
            mine += [IMAGES[0]] * (-(-len(IMAGES) // world) - len(mine))  # even shares, as DistributedSampler
        return [
            Batch(
                torch.tensor([[i] for i in mine[at : at + batch_size]]),
                None,
                mine[at : at + batch_size],
                torch.tensor([[80, 100]] * len(mine[at : at + batch_size])),
            )
            for at in range(0, len(mine), batch_size)
        ]


class Oracle(nn.Module):
    """Finds every truth, and adds a detection of the unused category and one beyond the categories."""

    def detect(self, images, mask, sizes):
        assert not self.training
        assert not torch.is_grad_enabled()
        return [
            {
                "scores": torch.tensor([0.99, 0.98, 0.9, float("nan")]),
                "labels": torch.tensor([0, 5, 2, 2]),
                "boxes": torch.tensor([BOXES[int(image)]] * 4),
            }
            for image in images
        ]


def test_oracle_is_perfect_and_mode_is_kept():
    oracle, steps = Oracle().train(), []
    result = evaluate(oracle, Source(), batch_size=2, device="cpu", workers=0, progress=lambda *at: steps.append(at))
    assert result.stats["AP"] == pytest.approx(1)
    assert [(row.category_id, row.truths) for row in result.per_class] == [(3, 0), (7, 3)]
    assert [d["image_id"] for d in result.detections] == sorted(IMAGES)
    assert {d["category_id"] for d in result.detections} == {7}
    assert result.detections[-1]["bbox"] == [10.0, 10.0, 20.0, 30.0]
    assert steps == [(1, 2), (2, 2)]
    assert oracle.training
    assert result.summary()["images"] == 3


def test_bfloat16_is_refused_where_it_is_not(monkeypatch):
    monkeypatch.setattr("detrkit.evaluation.precision.has_bf16", lambda device: False)
    with pytest.raises(UserError, match="needs a CUDA GPU that has it or a processor"):
        evaluate(Oracle(), Source(), batch_size=1, device="cpu", precision="bf16")


def test_bfloat16_scores_and_rounding():
    result = {
        "scores": torch.tensor([0.12345678]).bfloat16(),
        "labels": torch.tensor([0]),
        "boxes": torch.tensor([[0.12345, 0.0, 1.0, 2.0]]),
    }
    (found,) = coco_detections(4, result, [9])
    assert found == {
        "image_id": 4,
        "category_id": 9,
        "bbox": [0.123, 0.0, 0.877, 2.0],
        "score": pytest.approx(0.1235, abs=2e-4),
    }


def _worker(rank, world, meeting, queue):
    dist.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=world)
    result = evaluate(Oracle(), Source(pad=True), batch_size=1, device="cpu", workers=0)
    queue.put((rank, result.stats, len(result.detections)))
    dist.barrier()
    dist.destroy_process_group()


@pytest.mark.slow
def test_two_processes_give_the_numbers_of_one(tmp_path):
    context = mp.get_context("spawn")
    queue = context.SimpleQueue()
    running = [context.Process(target=_worker, args=(rank, 2, tmp_path / "meeting", queue)) for rank in range(2)]
    for process in running:
        process.start()
    for process in running:
        process.join(120)
    assert [process.exitcode for process in running] == [0, 0]
    outcomes = sorted(queue.get() for _ in running)
    alone = evaluate(Oracle(), Source(), batch_size=1, device="cpu", workers=0)
    # Image 11 came twice (both shares have two images), and is there once.
    assert outcomes == [(0, alone.stats, 3), (1, alone.stats, 0)]


def test_a_batch_without_memory_names_what_needs_less():
    class Large(nn.Module):
        def detect(self, images, mask, sizes):
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 1.46 GiB.")

    detector = Large()
    with pytest.raises(UserError, match=r"2 images at once.*smaller batch_size .*evaluate\.batch_size(.*\n)+.*1\.46"):
        evaluate(detector, Source(), batch_size=2, device="cpu", workers=0)
    assert detector.training
