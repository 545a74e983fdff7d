"""What is printed of trainings while `detrkit compare --run` waits for them."""

import io
import json

import pytest
from rich.console import Console

from detrkit.compare.matrix import Job
from detrkit.compare.matrix_progress import MatrixProgress
from detrkit.recipe import load_recipe


@pytest.fixture
def job(tmp_path):
    recipe = load_recipe("quickstart", ["train.epochs=8"])
    return Job(recipe, "quickstart", (), seed=0, folder=tmp_path, state="running")


def write(job, *lines):
    (job.folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def trained(step, loss="x"):
    return {"kind": "train", "step": step, "epoch": 1 + step // 100, "loss": 1.0, "losses": loss}


def evaluated(epoch, ap):
    return {"kind": "evaluate", "step": 100 * epoch, "epoch": epoch, "AP": ap}


def test_a_training_that_goes_on_from_a_checkpoint_is_read_from_there(job):
    """Between two looks its metrics are cut back and grow beyond the size they had, with lines of other lengths."""
    said = io.StringIO()
    with MatrixProgress(Console(file=said, width=200)) as progress:
        write(job, trained(50), evaluated(1, 0.25), trained(150))
        progress([job])
        write(job, trained(50), evaluated(1, 0.25), trained(150, "longer than it was"), evaluated(2, 0.375))
        progress([job])
    assert "epoch 2/8  loss 1  AP 37.5" in said.getvalue().splitlines()[-1]


def test_the_last_evaluation_is_told_when_a_training_ends_between_two_looks(job):
    said = io.StringIO()
    with MatrixProgress(Console(file=said, width=200)) as progress:
        write(job, trained(50))
        progress([job])
        write(job, trained(50), evaluated(8, 0.5))
        job.state = "done"
        progress([job])
    assert said.getvalue().splitlines()[-1].endswith("done, AP 50.0  (1 of 1)")
