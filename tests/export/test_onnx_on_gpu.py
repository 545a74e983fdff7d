"""Which device onnxruntime is told, and what it went on with."""

from types import SimpleNamespace

import pytest
import torch

from detrkit.errors import UserError
from detrkit.export import loading


@pytest.fixture
def open_on(monkeypatch, tmp_path):
    """Opens a file on a device in a runtime that has CUDA; returns the providers that it was asked for."""

    def run(device, found):
        asked = []

        def session(path, options, providers):
            asked.extend(providers)
            meta = SimpleNamespace(custom_metadata_map={loading.KEY: "{}"})
            return SimpleNamespace(get_providers=lambda: found, get_modelmeta=lambda: meta)

        runtime = SimpleNamespace(
            get_available_providers=lambda: ["CUDAExecutionProvider", "CPUExecutionProvider"],
            SessionOptions=SimpleNamespace,
            InferenceSession=session,
        )
        monkeypatch.setattr(loading, "require", lambda *_: runtime)
        monkeypatch.setattr(loading.Card, "from_json", lambda *_: SimpleNamespace(outputs=()))
        file = tmp_path / "x.onnx"
        file.touch()
        loading.open_exported(file, torch.device(device))
        return asked

    return run


@pytest.mark.parametrize(
    ("device", "provider"),
    [
        ("cpu", ("CPUExecutionProvider", {})),
        ("cuda", ("CUDAExecutionProvider", {"device_id": 0})),
        ("cuda:1", ("CUDAExecutionProvider", {"device_id": 1})),
    ],
)
def test_the_device_that_is_named_is_taken(open_on, device, provider):
    assert open_on(device, [provider[0]]) == [provider]


def test_a_gpu_that_the_runtime_could_not_take_is_no_gpu(open_on):
    with pytest.raises(UserError, match=r"device is 'cuda', .* gone on with CPUExecutionProvider: .*cuDNN"):
        open_on("cuda", ["CPUExecutionProvider"])
