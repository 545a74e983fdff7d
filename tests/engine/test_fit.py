"""Training without a recipe."""

import copy
import json
from contextlib import contextmanager

import pytest
import torch
from torch import nn

from detrkit.data.shapes import ShapesSource
from detrkit.detections import DetectOptions
from detrkit.engine.distributed import Processes
from detrkit.engine.fit import fit
from detrkit.engine.options import EvaluateOptions, TrainOptions
from detrkit.errors import CheckpointError, DataError, UserError
from detrkit.runs.checkpoint import read_weights
from detrkit.runs.history import read_metrics
from tests.engine.toys import ToyCriterion, ToyDetector, same

SETTINGS = {"batch_size": 4, "warmup_steps": 0, "drop_epochs": (), "device": "cpu", "workers": 0, "log_every": 2}


class Detector(ToyDetector):
    """The toy, which finds its one box in every image."""

    def detect(self, images, mask, sizes):
        output = self(images, mask)
        scores, labels = output.logits.sigmoid().max(-1)
        center, size = output.boxes.chunk(2, dim=-1)
        boxes = torch.cat((center - size / 2, center + size / 2), dim=-1) * sizes.flip(-1).repeat(1, 2)
        return [
            {"scores": s[None], "labels": k[None], "boxes": b[None]}
            for s, k, b in zip(scores, labels, boxes, strict=True)
        ]


@pytest.fixture
def source():
    return ShapesSource(image_size=32, train_images=10, val_images=3, classes=("circle", "square", "bar"))


def run(folder, source, detector=None, resume=False, **options):
    options = TrainOptions(**{**SETTINGS, "epochs": 2, "loggers": (), **options})
    detector = detector or Detector(dropout=0.3)
    outcome = fit(
        detector, ToyCriterion(), source, folder, options, evaluation=EvaluateOptions(pictures=1), resume=resume
    )
    return detector, outcome


def test_a_module_computes_again_in_training_alone(tmp_path, source):
    weights = []
    for name, parts in (("keeping", ()), ("again", ("backbone", "norm"))):
        detector, _ = run(tmp_path / name, source, recompute=parts)
        assert not any("forward" in vars(module) for module in detector.modules())
        weights.append(detector.state_dict())
    assert same(*weights)


def test_a_module_is_trained_recorded_and_evaluated(tmp_path, source):
    detector, outcome = run(tmp_path / "run", source)
    assert (outcome.finished, outcome.step) == (True, 4)
    weights, metadata = read_weights(tmp_path / "run" / "last" / "weights.safetensors")
    assert torch.equal(weights["box.weight"], detector.box.weight)
    assert [category["name"] for category in json.loads(metadata["categories"])] == ["circle", "square", "bar"]
    kinds = [json.loads(line)["kind"] for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert kinds.count("evaluate") == kinds.count("train") == 2
    assert len(list((tmp_path / "run" / "pictures").rglob("*.png"))) == 2
    with pytest.raises(UserError, match="already holds a run"):
        run(tmp_path / "run", source)


def test_an_interrupted_training_goes_on_as_if_it_had_not_been(tmp_path, source):
    whole, _ = run(tmp_path / "whole", source, ema_decay=0.5)
    _, outcome = run(tmp_path / "cut", source, ema_decay=0.5, max_minutes=1e-9)
    assert not outcome.finished
    resumed, outcome = run(tmp_path / "cut", source, detector=Detector(dropout=0.3, seed=5), resume=True, ema_decay=0.5)
    assert outcome.finished
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), resumed.parameters(), strict=True))
    with pytest.raises(CheckpointError, match="nothing to resume"):
        run(tmp_path / "none", source, resume=True)


def test_a_training_starts_from_another_s_weights(tmp_path, source):
    before, _ = run(tmp_path / "before", source)
    after, _ = run(
        tmp_path / "after",
        source,
        detector=Detector(seed=3),
        init_from=str(tmp_path / "before" / "last"),
        learning_rate=1e-12,
        backbone_learning_rate=1e-12,
    )
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(before.parameters(), after.parameters(), strict=True))


def test_other_classes_on_resume(tmp_path, source):
    run(tmp_path / "run", source, epochs=1)
    other = ShapesSource(image_size=32, train_images=10, val_images=3, classes=("bar", "circle", "square"))
    with pytest.raises(CheckpointError, match=r"3 classes.*circle.*the data set now has 3 .*bar"):
        run(tmp_path / "run", other, resume=True)
    assert run(tmp_path / "run", source, resume=True)[1].finished


class Normed(Detector):
    def __init__(self):
        super().__init__()
        self.backbone = nn.Sequential(nn.Conv2d(3, 8, 1), nn.BatchNorm2d(8))


@pytest.mark.parametrize("frozen", [{"freeze": ("backbone",)}, {"backbone_learning_rate": 0.0}])
def test_a_frozen_part_stays_as_it_was_until_another_training(tmp_path, source, frozen):
    detector = Normed()
    before = copy.deepcopy(detector.backbone)
    run(tmp_path / "first", source, detector=detector, **frozen)
    assert same(detector.backbone.state_dict(), before.state_dict())
    run(tmp_path / "second", source, detector=detector, backbone_learning_rate=0.1)
    for own, old in zip(detector.backbone.state_dict().values(), before.state_dict().values(), strict=True):
        assert not torch.equal(own, old)


def test_a_process_computes_in_the_precision_of_the_first(tmp_path, source, monkeypatch):
    class Second(Processes):
        def from_first(self, thing):
            return "bf16" if thing == "fp32" else thing

    @contextmanager
    def joined(_):
        yield Second()

    monkeypatch.setattr("detrkit.engine.setting_up.processes", joined)
    seen = []
    detector = Detector()
    detector.register_forward_pre_hook(lambda *_: seen.append(torch.is_autocast_enabled("cpu")))
    run(tmp_path / "run", source, detector=detector, precision="fp32", epochs=1)
    assert seen
    assert all(seen)


def test_options_by_hand_are_checked_as_a_recipe_s():
    with pytest.raises(UserError) as raised:
        TrainOptions(schedule="cosinee", epochs="5")
    told = str(raised.value)
    assert 'TrainOptions.schedule: is "cosinee", should be' in told
    assert 'did you mean "cosine"' in told
    assert 'TrainOptions.epochs: is "5", should be an integer' in told
    with pytest.raises(UserError, match=r'DetectOptions\.scores: is "sigmod", should be "sigmoid" or "softmax"'):
        DetectOptions(scores="sigmod")
    made = TrainOptions(drop_epochs=[3, 5], init_from=None, learning_rate=1)
    assert (made.drop_epochs, made.init_from, made.learning_rate) == ((3, 5), None, 1.0)


def test_a_training_that_ended_before_its_first_checkpoint_begins_again(tmp_path, source):
    whole, _ = run(tmp_path / "whole", source)
    folder = tmp_path / "cut"
    folder.mkdir()
    (folder / "metrics.jsonl").write_text('{"kind": "train", "step": 2, "epoch": 1}\n')
    with pytest.raises(UserError, match="already holds a run"):
        run(folder, source)
    again, outcome = run(folder, source, resume=True)
    assert outcome.finished
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), again.parameters(), strict=True))
    steps = [one["step"] for one in read_metrics(folder) if one["kind"] == "train"]
    assert steps == [2, 4]


def test_a_training_that_ended_before_its_first_line_begins_again(tmp_path, source, monkeypatch):
    def unreadable(*_, **__):
        raise DataError("7.jpg: cannot be read")

    monkeypatch.setattr("detrkit.engine.trainer.seed_step", unreadable)
    with pytest.raises(DataError, match=r"go on: fit\(\.\.\., resume=True\)"):
        run(tmp_path / "run", source)
    monkeypatch.undo()
    assert run(tmp_path / "run", source, resume=True)[1].finished


def test_a_run_without_a_recipe_is_logged_to_mlflow(tmp_path, source, monkeypatch):
    monkeypatch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"file://{tmp_path}/mlruns")
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "toys")
    pytest.importorskip("mlflow")
    from mlflow.tracking import MlflowClient

    run(tmp_path / "run", source, loggers=("mlflow",))
    client = MlflowClient()
    (found,) = client.search_runs([client.get_experiment_by_name("toys").experiment_id])
    assert found.info.status == "FINISHED"
    assert found.data.params["train.batch_size"] == "4"
    assert {metric.step for metric in client.get_metric_history(found.info.run_id, "train/loss")} == {2, 4}


def test_a_logger_that_cannot_begin_leaves_nothing_to_resume(tmp_path, source, monkeypatch):
    def begin(self, start):
        raise ConnectionError("the server is away")

    monkeypatch.setattr("detrkit.runs.loggers.TensorBoard.begin", begin)
    with pytest.raises(UserError, match=r"\(the server is away\); mend that first, or leave it out of train\.loggers"):
        run(tmp_path / "run", source, loggers=("tensorboard",))
    assert run(tmp_path / "run", source)[1].finished


def test_a_criterion_leaves_the_names_of_the_record_alone(tmp_path, source):
    class Taken(ToyCriterion):
        def forward(self, *given):
            return super().forward(*given) | {"norm": torch.zeros(())}

    with pytest.raises(UserError, match='gives "norm", which is what a training tells of its steps itself'):
        fit(Detector(), Taken(), source, tmp_path / "run", TrainOptions(**{**SETTINGS, "epochs": 1, "loggers": ()}))
