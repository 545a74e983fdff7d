"""The small decoder of Deformable DETR that reference cases of later codes were made with."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

import detrkit
from detrkit.decoder import QueryDecoder
from detrkit.geometry.box import BoxGeometry
from detrkit.structures import Memory, Queries


def official_decoder(*, eps: float, **options: Any) -> QueryDecoder:
    """Of three layers on two levels, width 16, with these options; eps: the least that a side's logit sees."""
    return detrkit.part(
        "decoder",
        "transformer",
        layers=3,
        feedforward=24,
        positions=["learned"],
        self_attention="plain",
        cross_attention="deformable",
        content_scale=False,
        moved_by="normed",
        final_norm=False,
        **options,
    )(
        width=16,
        heads=2,
        levels=2,
        classes=3,
        geometry=BoxGeometry(eps=eps),
        head=detrkit.part("head", "mlp", class_sharing="none", offset_sharing="none"),
    )


def stored_inputs(stored: Mapping[str, Tensor], decoder: QueryDecoder, **options: Any) -> tuple[Queries, Memory]:
    """What a case's decoder was given."""
    masks = torch.cat([stored[f"mask{level}"].flatten(1) for level in range(2)], dim=1)
    memory = Memory(stored["memory"], torch.zeros_like(stored["memory"]), ((4, 5), (2, 3)), masks)
    reference = decoder.geometry.encode(stored["reference"])
    return Queries(stored["content"], reference, stored["position"], **options), memory
