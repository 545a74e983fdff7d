"""An exported file as a detector: what `detrkit.load` and `detrkit predict` open."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from detrkit.detections import select
from detrkit.errors import CheckpointError, DataError, UserError
from detrkit.export.card import KEY, Card
from detrkit.export.form import RAW
from detrkit.export.writing import SUFFIXES, require
from detrkit.structures import Output, Sizes

Run = Callable[[dict[str, np.ndarray]], list[np.ndarray]]
"""inputs by name to outputs by order"""
SMALL = 64  # pixels of a side, the coarsest stride that there is: larger images leave every layer something
_OPENVINO_PRECISIONS = {"fp32": "f32", "bf16": "bf16"}


@dataclass(frozen=True)
class ExportedDetector:
    """A file that runs, with the `detect` that a detector has."""

    card: Card
    run: Run

    def detect(self, images: Tensor, mask: Tensor | None, sizes: Sizes) -> list[dict[str, Tensor]]:
        """Detections of a batch, on the CPU; see `detrkit.detector.Detector.detect`.

        Where the file takes no mask, images that fill less than the batch are cut out and run one by one.
        """
        sizes = torch.as_tensor(sizes).cpu()
        images, mask = images.cpu(), None if mask is None else mask.cpu()
        if mask is None or self.card.form.mask:
            return self._detect(images, mask, sizes)
        results = []
        for image, padded, size in zip(images, mask, sizes, strict=True):
            height, width = int((~padded[:, 0]).sum()), int((~padded[0]).sum())
            results += self._detect(image[None, :, :height, :width], None, size[None])
        return results

    def _detect(self, images: Tensor, mask: Tensor | None, sizes: Tensor) -> list[dict[str, Tensor]]:
        columns = self.outputs(images, mask, sizes)
        if self.card.form.detections:
            return [dict(zip(columns, one, strict=True)) for one in zip(*columns.values(), strict=True)]
        layer = {name: column[None] for name, column in columns.items()}
        known: dict[str, Any] = {name: layer.pop(name) for name in RAW if name in layer}
        output = Output(**known, named=layer, background=self.card.detect.scores == "softmax")
        return select(output, sizes, self.card.detect)

    def outputs(self, images: Tensor, mask: Tensor | None, sizes: Tensor) -> dict[str, Tensor]:
        """What the file gives, by name, for normalised images [B, 3, H, W]."""
        if self.card.form.pixels == "uint8":
            mean, std = (torch.tensor(values)[:, None, None] for values in (self.card.mean, self.card.std))
            images = ((images * std + mean) * 255).round().to(torch.uint8)
        given = {"images": images, "sizes": sizes.to(torch.int64)}
        given["mask"] = torch.zeros_like(images[:, 0], dtype=torch.bool) if mask is None else mask
        values = self.run({name: given[name].numpy() for name in self.card.form.inputs})
        return {name: torch.from_numpy(np.array(v)) for name, v in zip(self.card.outputs, values, strict=True)}


def is_exported(target: str | Path) -> bool:
    """Whether a name is that of an exported file, by its ending."""
    return Path(target).suffix.lower() in SUFFIXES.values()


def open_exported(path: Path, device: torch.device, precision: str = "fp32") -> ExportedDetector:
    """Open an .onnx file in onnxruntime, or an .xml in OpenVINO.

    Args:
        precision: "fp32"; "bf16" in OpenVINO, which computes in it whatever the processor has (slowly, or in fp32,
            where it has no bfloat16).

    Raises:
        UserError: a package is missing, or it cannot run on the device or in the precision.
        CheckpointError: no such file, a broken one, or one that `detrkit export` did not write.
    """
    ending = path.suffix.lower()
    if ending == ".pt2":
        raise UserError(
            f"{path}: loading a program of torch.export can run code that the file carries, so detrkit does not; "
            "torch.export.load does, and `detrkit export --format onnx` writes what detrkit opens"
        )
    if not path.is_file():
        raise CheckpointError(f"{path}: there is no such file")
    accepted = ("fp32",) if ending == ".onnx" else tuple(_OPENVINO_PRECISIONS)
    if precision not in accepted:
        raise UserError(f"precision is {precision!r}, which {path} cannot run in; accepted: {', '.join(accepted)}")
    return _open_onnx(path, device) if ending == ".onnx" else _open_openvino(path, device, precision)


def open_written(path: Path, card: Card) -> ExportedDetector:
    """A file that was just written here, on the CPU; a program of torch.export too.

    Raises UserError as `open_exported` does, and when it runs if a program takes no images of that size.
    """
    if path.suffix.lower() != ".pt2":
        return open_exported(path, torch.device("cpu"))
    program = torch.export.load(path).module()

    def run(inputs: dict[str, np.ndarray]) -> list[np.ndarray]:
        given = [torch.from_numpy(array) for array in inputs.values()]
        try:
            with torch.no_grad():
                return [value.numpy() for value in program(*given)]
        except AssertionError as error:  # a guard of the program
            height, width = given[0].shape[-2:]
            raise UserError(
                f"{path} takes no images of {height} x {width} pixels ({error}): a program of torch.export wants at "
                "least two cells a side in the coarsest map. The file is written; check it on larger images"
            ) from None

    return ExportedDetector(card, run)


def _open_onnx(path: Path, device: torch.device) -> ExportedDetector:
    runtime = require("onnxruntime", "onnx")
    providers = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}
    provider = providers.get(device.type)
    if provider not in runtime.get_available_providers():
        there = [name for name, one in providers.items() if one in runtime.get_available_providers()]
        raise UserError(
            f"device is {str(device)!r}, which this onnxruntime cannot run on; accepted: {', '.join(there)}"
        )
    options = runtime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 3
    try:
        place = {"device_id": device.index or 0} if device.type == "cuda" else {}
        session = runtime.InferenceSession(path, options, providers=[(provider, place)])
    except Exception as error:  # its own kinds, none of them public
        raise CheckpointError(f"{path} cannot be opened by onnxruntime: {error}") from None
    if provider not in session.get_providers():  # it goes on without one whose libraries it does not find
        taken = ", ".join(session.get_providers())
        raise UserError(
            f"device is {str(device)!r}, and onnxruntime has gone on with {taken}: the CUDA and cuDNN that it asks for "
            "are not there; accepted: cpu"
        )
    card = Card.from_json(session.get_modelmeta().custom_metadata_map.get(KEY), path)
    return ExportedDetector(card, lambda inputs: session.run(list(card.outputs), inputs))


def _open_openvino(path: Path, device: torch.device, precision: str) -> ExportedDetector:
    core = _openvino_core()
    if device.type != "cpu":
        raise UserError(f"device is {str(device)!r}, and an OpenVINO file runs on the CPU; accepted: auto, cpu")
    try:
        # OpenVINO looks for .bin alone, and not beside a path that has none.
        weights = next((file for end in (".bin", ".BIN") if (file := path.with_suffix(end)).is_file()), None)
        model = core.read_model(path) if weights is None else core.read_model(path, weights)
        said = model.get_rt_info([KEY]).astype(str) if model.has_rt_info([KEY]) else None
        card = Card.from_json(said, path)
        hints: dict[str, Any] = {
            "INFERENCE_PRECISION_HINT": _OPENVINO_PRECISIONS[precision],
            "INFERENCE_NUM_THREADS": torch.get_num_threads(),
        }
        compiled = core.compile_model(model, "CPU", hints)
    except RuntimeError as error:
        raise CheckpointError(f"{path} cannot be opened by OpenVINO: {error}") from None

    @cache
    def require_shapes(**shapes: tuple[int, ...]) -> None:
        try:
            model.clone().reshape({name: list(shape) for name, shape in shapes.items()})
        except RuntimeError as error:
            height, width = shapes["images"][-2:]
            told = f"{path} takes no images of {height} x {width} pixels in OpenVINO; an .onnx file does"
            raise DataError(f"{told} ({str(error).strip().splitlines()[-1]})") from None

    def run(inputs: dict[str, np.ndarray]) -> list[np.ndarray]:
        # Where a layer cannot take a size, OpenVINO gives what it found on the image before, or nothing, or crashes.
        if min(inputs["images"].shape[-2:]) <= SMALL:
            require_shapes(**{name: array.shape for name, array in inputs.items()})
        values = compiled(inputs)
        return [values[name] for name in card.outputs]

    return ExportedDetector(card, run)


@cache
def _openvino_core() -> Any:
    """The one core of this process, which stays.

    Each core gives the thread a stack for its signals and puts the one before back at its end. Of two that end in the
    order in which they began, the second puts back one that is gone, and the next signal ends the process silently.
    """
    return require("openvino", "openvino").Core()
