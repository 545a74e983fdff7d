"""Less memory for more time: what layers have computed is not kept for the backward pass, but computed again in it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm as BatchNorm
from torch.utils._pytree import tree_flatten, tree_unflatten
from torch.utils.checkpoint import checkpoint

from detrkit.errors import UserError
from detrkit.recipe.problems import nearest, one_of


def recompute(detector: nn.Module, parts: Sequence[str]) -> None:
    """Have the layers of these parts compute their insides again in the backward pass, in place.

    A layer is a member of one of the part's outermost lists (`nn.ModuleList`, `nn.Sequential`): a backbone's block, a
    transformer's layer; a part without such lists is one layer. What a layer takes and gives is kept. Losses and
    gradients are those of other trainings, dropout's draws included, and batch norms count a batch once. Detection is
    as before.

    Args:
        parts: names of the detector's own modules, such as "backbone", "encoder", "decoder".

    Raises:
        UserError: the detector has no such module.
    """
    children = dict(detector.named_children())
    for name in parts:
        if name not in children:
            hint = nearest(name, children)
            raise UserError(f'train.recompute: this detector has no "{name}"; its parts are {one_of(children)}{hint}')
        for layer in list(_members(children[name])) or [children[name]]:
            vars(layer)["forward"] = _Recomputed(layer)


def keep_again(detector: nn.Module) -> None:
    """Undo `recompute`, in place."""
    for module in detector.modules():
        if isinstance(vars(module).get("forward"), _Recomputed):
            del vars(module)["forward"]


def layered(detector: nn.Module) -> list[str]:
    """The names of a detector's own modules that are made of layers."""
    return [name for name, part in detector.named_children() if next(_members(part), None) is not None]


def _members(module: nn.Module) -> Iterator[nn.Module]:
    """Members of the outermost lists that are more than a single operation."""
    for child in module.children():
        is_list = isinstance(child, (nn.ModuleList, nn.ModuleDict))
        if isinstance(module, (nn.ModuleList, nn.Sequential)) and not is_list and any(True for _ in child.children()):
            yield child
        else:
            yield from _members(child)


class _Recomputed:
    """The `forward` of a layer that keeps what goes in and what comes out."""

    def __init__(self, layer: nn.Module) -> None:
        self.layer = layer

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        forward = partial(type(self.layer).forward, self.layer)  # of the class that it has by now
        if not (self.layer.training and torch.is_grad_enabled()):
            return forward(*args, **kwargs)
        # A layer may put others into the list that it was given, and the second pass is to get what the first one got.
        given, layout = tree_flatten((args, kwargs))
        versions = _versions(given)
        is_second = False

        def compute(*args: Any, **kwargs: Any) -> Any:
            nonlocal is_second
            if is_second:
                args, kwargs = tree_unflatten(given, layout)
                if _versions(given) != versions:
                    raise UserError(
                        f"train.recompute: what a {type(self.layer).__name__} was given has been changed in place "
                        "since, so that it cannot be computed again; leave its part out"
                    )
            is_second = True
            return forward(*args, **kwargs)

        return checkpoint(compute, *args, use_reentrant=False, context_fn=self._contexts, **kwargs)

    def _contexts(self) -> tuple[AbstractContextManager, AbstractContextManager]:
        """Of the first pass, and of the second."""
        return nullcontext(), _uncounted(self.layer)


def _versions(values: Sequence[Any]) -> list[int]:
    """How often each tensor of these has been changed in place."""
    return [value._version for value in values if isinstance(value, Tensor)]


@contextmanager
def _uncounted(layer: nn.Module) -> Iterator[None]:
    """Within it batch norms see a batch that their statistics know already."""
    with ExitStack() as after, torch.no_grad():
        for norm in layer.modules():
            for buffer in norm.buffers() if isinstance(norm, BatchNorm) else ():
                after.callback(buffer.copy_, buffer.clone())
        with torch.enable_grad():
            yield
