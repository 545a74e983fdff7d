"""Pieces and processes must give what one process with the whole batch gives."""

import socket

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from safetensors.torch import load_file, save_file

from detrkit.data import Batch
from detrkit.engine.distributed import Processes
from detrkit.engine.microbatch import cut
from detrkit.runs.history import read_metrics
from tests.engine.toys import ToyDetector, ToySource, toy_trainer

OPTIONS = {"epochs": 2, "batch_size": 8, "warmup_steps": 0, "drop_epochs": ()}


def close(first, second):
    assert first.keys() == second.keys()
    for name in first:
        torch.testing.assert_close(first[name], second[name], rtol=1e-4, atol=1e-6, msg=lambda m, n=name: f"{n}: {m}")


def trained(folder, **options):
    trainer = toy_trainer(folder, detector=ToyDetector(), **{**OPTIONS, **options})
    trainer.fit()
    return trainer.detector.state_dict()


@pytest.mark.parametrize("micro_batch", [1, 3, 4])
def test_pieces_equal_the_whole_batch(tmp_path, micro_batch):
    whole = trained(tmp_path / "whole")
    pieces = trained(tmp_path / "pieces", micro_batch=micro_batch)
    close(whole, pieces)
    assert (tmp_path / "pieces" / "last").is_dir()


def require_same_lines(*folders):
    lines = [[line for line in read_metrics(folder) if line["kind"] == "train"] for folder in folders]
    for one, other in zip(*lines, strict=True):
        assert one["losses"] == pytest.approx(other["losses"], rel=1e-4, abs=1e-6)
        assert one["norm"] == pytest.approx(other["norm"], rel=1e-4)
        assert one["bad_costs"] == other["bad_costs"]


def test_the_number_of_pieces_changes_no_logged_number(tmp_path):
    trained(tmp_path / "whole")
    trained(tmp_path / "pieces", micro_batch=2)
    require_same_lines(tmp_path / "whole", tmp_path / "pieces")


def test_a_piece_is_what_the_loader_would_have_made():
    source = ToySource()
    pieces = list(cut(source.batch([0, 1, 2, 3, 4, 5, 6]), 3, torch.device("cpu")))
    for piece, indices in zip(pieces, ([0, 1, 2], [3, 4, 5], [6]), strict=True):
        expected = source.batch(indices)
        assert torch.equal(piece.images, expected.images)
        assert (piece.mask is None) == (expected.mask is None)
        assert piece.mask is None or torch.equal(piece.mask, expected.mask)
        assert piece.image_ids == indices
        assert piece.sizes.tolist() == expected.sizes.tolist()
        assert [t["boxes"].tolist() for t in piece.targets] == [t["boxes"].tolist() for t in expected.targets]


def test_a_piece_goes_to_the_device_out_of_the_memory_that_the_loader_pinned(monkeypatch):
    """What is cut off on the host is copied into other memory first, from which a GPU is waited for."""
    batch, sent = ToySource().batch([0, 1, 2, 3, 4]), []
    move = Batch.to

    def to(piece, device):
        sent.append((piece.images.untyped_storage().data_ptr(), piece.images.is_contiguous()))
        return move(piece, device)

    monkeypatch.setattr(Batch, "to", to)
    pieces = list(cut(batch, 2, torch.device("meta")))
    assert sent == [(batch.images.untyped_storage().data_ptr(), True)] * 3
    assert {piece.images.device.type for piece in pieces} == {"meta"}
    assert [tuple(piece.images.shape[2:]) for piece in pieces] == [(4, 5), (5, 5), (4, 4)]


def _work(rank, port, folder):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    try:
        here = Processes(rank=rank, world=2, local_rank=rank)
        for name, empty in EMPTY.items():
            for micro_batch in (None, 2):
                trainer = toy_trainer(
                    folder / f"{name}-{micro_batch}-{rank}",
                    source=ToySource(empty=empty),
                    # Different starts: the first process's weights count.
                    detector=ToyDetector(seed=rank),
                    here=here,
                    micro_batch=micro_batch,
                    **OPTIONS,
                )
                trainer.fit()
                save_file(trainer.detector.state_dict(), folder / f"{name}-{micro_batch}-{rank}.safetensors")
    finally:
        dist.destroy_process_group()


def _all_empty(index):
    return True


def _one_in_twelve(index):
    return index % 12 != 7


def _some(index):
    return index % 5 == 0


# With one image in twelve that has objects, one of the two processes gets empty images only in most steps.
EMPTY = {"some": _some, "one_in_twelve": _one_in_twelve, "all": _all_empty}


@pytest.mark.slow
def test_two_processes_equal_one(tmp_path):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    mp.spawn(_work, args=(port, tmp_path), nprocs=2)
    for name, empty in EMPTY.items():
        expected = trained(tmp_path / name, source=ToySource(empty=empty))
        for micro_batch in (None, 2):
            for rank in (0, 1):
                close(expected, load_file(tmp_path / f"{name}-{micro_batch}-{rank}.safetensors"))
            require_same_lines(tmp_path / name, tmp_path / f"{name}-{micro_batch}-0")
