"""Exported files: traced, written whole, with their card."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any

import torch

from detrkit.errors import UserError
from detrkit.export.card import KEY, Card
from detrkit.export.form import ExportedForm
from detrkit.writing import patient_file, replaced_file

OPSET = 20
SUFFIXES = {"onnx": ".onnx", "torch-export": ".pt2", "openvino": ".xml"}
"""what a file of each format ends in"""


def write(form: ExportedForm, card: Card, path: Path, kind: str) -> None:
    """Write a detector to a file of the kind "onnx", "torch-export" or "openvino" (weights beside it, as .bin).

    Raises:
        UserError: a package is missing, or the detector's graph cannot be written.
    """
    require_packages(kind)
    with torch.no_grad(), _quiet(), _told():
        _WRITERS[kind](form.eval(), card, path)


def require_packages(kind: str, *, to_run: bool = False) -> None:
    """Raise UserError if a package is missing that writes files of a kind, or, with `to_run`, runs them."""
    for module in (*_WANTED[kind], *(("onnxruntime",) if to_run and kind == "onnx" else ())):
        require(module, "openvino" if kind == "openvino" else "onnx")


def require(module: str, extra: str) -> Any:
    """A package that only exports need, imported. Raises UserError if it is not installed."""
    try:
        return import_module(module)
    except ImportError as error:
        raise UserError(f"the package {module} is not installed: pip install 'detrkit[{extra}]'") from error


def _write_onnx(form: ExportedForm, card: Card, path: Path) -> None:
    program = torch.onnx.export(
        form,
        form.form.example(),
        dynamo=True,
        opset_version=OPSET,
        verbose=False,
        input_names=list(form.form.inputs),
        output_names=list(card.outputs),
        dynamic_shapes=[tuple(form.form.free.values())],
    )
    assert program is not None  # it is only without `dynamo`
    program.model.metadata_props[KEY] = card.to_json()
    with replaced_file(path) as temporary:
        program.save(str(temporary), external_data=False)


def _write_program(form: ExportedForm, card: Card, path: Path) -> None:
    free = tuple(dict.fromkeys(places, torch.export.Dim.DYNAMIC) for places in form.form.free.values())
    program = torch.export.export(form, form.form.example(), dynamic_shapes=[free])
    with replaced_file(path) as temporary, patient_file(temporary) as file:
        torch.export.save(program, file, extra_files={f"{KEY}.json": card.to_json()})


def _write_openvino(form: ExportedForm, card: Card, path: Path) -> None:
    openvino = import_module("openvino")
    weights = path.with_suffix(".bin")
    with replaced_file(weights) as bin_file, replaced_file(path) as xml_file:
        onnx = xml_file.with_name(f"{xml_file.name}.onnx")
        drawn = xml_file.with_name(f"{xml_file.name}.xml")
        try:
            _write_onnx(form, card, onnx)
            model = openvino.convert_model(onnx)
            model.set_rt_info(card.to_json(), [KEY])
            openvino.save_model(model, drawn, compress_to_fp16=False)
            drawn.with_suffix(".bin").replace(bin_file)
            drawn.replace(xml_file)
        finally:
            for left in (onnx, drawn, drawn.with_suffix(".bin")):
                left.unlink(missing_ok=True)


_WRITERS: dict[str, Callable[[ExportedForm, Card, Path], None]] = {
    "onnx": _write_onnx,
    "torch-export": _write_program,
    "openvino": _write_openvino,
}
_WANTED = {"onnx": ("onnx", "onnxscript"), "torch-export": (), "openvino": ("onnx", "onnxscript", "openvino")}


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the exporters' notes on what they fold and deprecate: nothing that one can act on."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


@contextmanager
def _told() -> Iterator[None]:
    """A graph that cannot be traced is some part's doing: a message, and the tracer's own as its cause."""
    try:
        yield
    except (UserError, OSError):
        raise
    except Exception as error:
        first = " ".join(str(error).strip().splitlines()[:3])
        raise UserError(
            f"the detector's graph cannot be written for any batch and size: {first or type(error).__name__}\n"
            "A part that asks a tensor for its numbers or `len` (take `shape[0]`), or compares sizes, stands in the way"
        ) from error
