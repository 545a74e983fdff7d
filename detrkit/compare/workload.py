"""Parameters and multiply-adds of a detector, part by part, counted from shapes without computing anything."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from detrkit.attention.summed import SummedAttention


@dataclass(frozen=True)
class PartWorkload:
    """What one module costs, everything below it included.

    name: its dotted name in the detector, "" for the whole; parameters: how many numbers are in it, each once;
    trainable: how many of them are trained; multiply_adds: in one forward pass of one image.
    """

    name: str
    parameters: int
    trainable: int
    multiply_adds: int


@dataclass(frozen=True)
class ModelWorkload:
    """The cost of a detector for one image of `height` x `width` pixels.

    parts: by module name, the whole first; a module stands before those inside it.
    uncounted: operations without a formula, by name, with how many numbers they put out. By convention element-wise
    operations, norms and softmax are left out of such counts; a matrix product in this list would be a gap.
    saved: multiply-adds that the model would need on top, were terms that share keys not added up before they meet
    them; zeros: multiply-adds of the count that only fill a fused kernel's channels with zeros.
    """

    height: int
    width: int
    parts: Mapping[str, PartWorkload]
    uncounted: Mapping[str, int]
    saved: int = 0
    zeros: int = 0

    @property
    def plain_form(self) -> int:
        """Multiply-adds with a key of its own for every term and no zeros: as the official codes compute it."""
        return self.total.multiply_adds + self.saved - self.zeros

    @property
    def total(self) -> PartWorkload:
        """The whole detector."""
        return self.parts[""]

    def outline(self, depth: int = 2) -> list[PartWorkload]:
        """The parts down to a depth of names that have parameters or work to do."""
        rows = [part for name, part in self.parts.items() if name and name.count(".") < depth]
        return [part for part in rows if part.parameters or part.multiply_adds]


def measure_workload(detector: nn.Module, *, height: int = 800, width: int = 1066) -> ModelWorkload:
    """Counts parameters and multiply-adds of a forward pass over one image [1, 3, height, width] without padding.

    Runs a copy on the meta device, where only shapes are worked out; a model that needs real values on the way is
    run as it is. A multiply-add counts once (publications' "GFLOPs"; torch's own formulas count it twice).
    The detector is left as it was.
    """
    try:
        counter = _run(copy.deepcopy(detector).to("meta"), torch.device("meta"), height, width)
    except (RuntimeError, NotImplementedError):
        device = next((p.device for p in detector.parameters()), torch.device("cpu"))
        counter = _run(copy.deepcopy(detector), device, height, width)
    rows = {}
    for name, module in detector.named_modules():
        below = [flops for inner, flops in counter.flops.items() if _is_below(inner, name)]
        parameters = list(module.parameters())
        rows[name] = PartWorkload(
            name=name,
            parameters=sum(p.numel() for p in parameters),
            trainable=sum(p.numel() for p in parameters if p.requires_grad),
            multiply_adds=sum(below) // 2,
        )
    forms = [module.product_forms(*inputs) for module, inputs in counter.formed]
    return ModelWorkload(
        height,
        width,
        rows,
        dict(counter.uncounted.most_common()),
        saved=sum(form.saved for form in forms),
        zeros=sum(form.zeros for form in forms),
    )


_ATEN = torch.ops.aten
# torch has no formula for the CPU's fused attention, which does the work of the GPU's.
_FORMULAS = {
    _ATEN._scaled_dot_product_flash_attention_for_cpu: flop_registry[_ATEN._scaled_dot_product_flash_attention],
    **flop_registry,
}


class _Counter(TorchDispatchMode):
    """Adds up torch's formula of each operation for the module that is running.

    torch's FlopCounterMode counts an operation only for modules whose `forward` is under way; a head whose layers
    are called by another of its methods would get nothing. Here the innermost name decides, and names are summed.
    """

    def __init__(self) -> None:
        super().__init__()
        self.flops: Counter[str] = Counter()
        self.uncounted: Counter[str] = Counter()
        self.running = [""]
        self.formed: list[tuple[SummedAttention, tuple]] = []
        """modules that know other forms of their products (`product_forms`), with what they were called with"""

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        kwargs = kwargs or {}
        formula = _FORMULAS.get(func.overloadpacket)
        if formula is None:
            with self:  # an operation that is made of others is counted by them
                out = func.decompose(*args, **kwargs)
            if out is not NotImplemented:
                return out
        out = func(*args, **kwargs)
        if formula is not None:
            self.flops[self.running[-1]] += formula(*args, **kwargs, out_val=out)
        elif _computes(func):
            name = func.overloadpacket.__name__
            self.uncounted[name] += sum(leaf.numel() for leaf in tree_leaves(out) if isinstance(leaf, Tensor))
        return out


def _run(model: nn.Module, device: torch.device, height: int, width: int) -> _Counter:
    counter = _Counter()
    images = torch.zeros(1, 3, height, width, device=device)
    model.eval()
    with torch.no_grad(), _readable_attention(), _watched(model, counter), counter:
        model(images)
    return counter


@contextmanager
def _watched(model: nn.Module, counter: _Counter) -> Iterator[None]:
    """Keeps the names of the modules whose `forward` is under way on the counter's stack."""
    handles = []
    for name, module in model.named_modules():
        handles.append(module.register_forward_pre_hook(lambda *_, name=name: counter.running.append(name)))
        handles.append(module.register_forward_hook(lambda *_: _drop(counter.running), always_call=True))
        if isinstance(module, SummedAttention):
            handles.append(module.register_forward_pre_hook(lambda *called: counter.formed.append(called)))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _drop(running: list[str]) -> None:
    running.pop()  # returns nothing: what a forward hook returns would replace the module's output


@contextmanager
def _readable_attention() -> Iterator[None]:
    """nn.MultiheadAttention's single operation for inference has no formula; its long form is counted."""
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before)


def _is_below(name: str, parent: str) -> bool:
    return not parent or name == parent or name.startswith(f"{parent}.")


def _computes(func: Any) -> bool:
    """Whether an operation puts out new numbers worked out from tensors: not a view, a copy or a constant."""
    returns, arguments = func._schema.returns, func._schema.arguments
    is_view = any(r.alias_info is not None and not r.alias_info.is_write for r in returns)
    takes_tensors = any("Tensor" in str(argument.type) for argument in arguments)
    return bool(returns) and takes_tensors and not is_view and func.overloadpacket.__name__ not in _MOVES


_MOVES = {
    "_to_copy",
    "_unsafe_view",
    "cat",
    "clone",
    "copy_",
    "detach",
    "empty_like",
    "fill_",
    "full_like",
    "gather",
    "index",
    "index_select",
    "new_empty",
    "new_full",
    "new_ones",
    "new_zeros",
    "ones_like",
    "repeat",
    "stack",
    "where",
    "zeros_like",
}
