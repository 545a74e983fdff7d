"""Queries in the order of their scores against Rank-DETR's decoder, and what keeps its place.

`query_ranking.safetensors` holds a decoder of three layers on two levels with its weights, a set of 5 queries and one
of 10, what it predicts in training and gradients of logits^2 + 10 boxes^2. Its metadata names the code.
"""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from detrkit.ranking import QueryRanking
from detrkit.structures import QueryLayout
from detrkit.zoo.families import FAMILIES
from tests.model.official_decoder import official_decoder, stored_inputs
from tests.model.test_detector import batch, small

STORED = load_file(Path(__file__).parent / "query_ranking.safetensors")
NAMES = FAMILIES["detrex_deformable_detr"]


def ours(name: str) -> str:
    """Our name for a weight or a gradient of the official decoder."""
    name = name[2:]
    if name.startswith("ranks."):
        return NAMES.ours(f"rank_adaptive_classhead_emb.{name[6:]}.weight").removeprefix("decoder.")
    whole = name if "_embed." in name else f"transformer.decoder.{name}"
    return NAMES.ours(whole).removeprefix("decoder.")


def test_the_decoder_is_rank_detr_s():
    decoder = official_decoder(eps=1e-3, ranked=15).train()
    decoder.load_state_dict({ours(name): value for name, value in STORED.items() if name.startswith("w.")})
    layout = QueryLayout(queries=5, second=10)
    output = decoder(*stored_inputs(STORED, decoder, layout=layout))
    assert (output.logits - STORED["logits"]).abs().max() < 1e-4
    assert (output.boxes - STORED["boxes"]).abs().max() < 1e-5
    (output.logits.square().sum() + 10 * output.boxes.square().sum()).backward()
    for name, official in STORED.items():
        if name.startswith("g."):
            found = decoder.get_parameter(ours(name)).grad
            assert (found - official).abs().max() < 1e-3 * official.abs().max(), name


def test_sets_are_ranked_by_themselves_and_slots_stay():
    ranking = QueryRanking(width=4, logits=3, layers=2, count=6)
    layout = QueryLayout(queries=3, groups=2, slots=torch.tensor([0, 0]))
    certainty = torch.tensor([[9.0, -9, 1, 3, 2, 5, 7, 6]])
    assert ranking.order(certainty, layout).tolist() == [[0, 1, 3, 4, 2, 6, 7, 5]]
    with torch.no_grad():
        ranking.logits[0].copy_(torch.arange(6.0)[:, None].expand(-1, 3))
    added = ranking.added(0, torch.zeros(1, 8, 3), layout)
    assert added[0, :, 0].tolist() == [0, 0, 0, 1, 2, 3, 4, 5]


def test_a_smaller_set_begins_where_it_does_on_a_larger_map():
    ranking = QueryRanking(width=4, logits=1, layers=2, count=6)
    with torch.no_grad():
        ranking.logits[0].copy_(torch.arange(6.0)[:, None])
    for layout, rows in (
        (QueryLayout(queries=2, groups=2), [0, 1, 3, 4]),
        (QueryLayout(queries=1, second=2), [0, 2, 3]),
        (QueryLayout(queries=2), [0, 1]),
    ):
        zeros = torch.zeros(1, sum(layout.matching), 1)
        assert ranking.added(0, zeros, layout)[0, :, 0].tolist() == rows


@pytest.mark.parametrize(
    ("name", "overrides"),
    [
        ("sap_dn_r50_12ep", ["decoder.ranked=306"]),
        ("group_detr_r50_12ep", ["blocks.groups.count=2", "decoder.ranked=600"]),
        ("dino_4scale_relation_r50_12ep", ["decoder.ranked=900"]),
    ],
)
def test_other_systems_rank_their_queries(name, overrides):
    detector, criterion = small(name, "encoder.layers=1", "decoder.layers=3", *overrides)
    images, mask, targets = batch()
    losses = criterion(detector.train()(images, mask, targets), targets)
    losses["total"].backward()
    assert all(value.isfinite() for value in losses.values())
    ranks = [*detector.decoder.between.content, *detector.decoder.between.logits]
    assert all(table.grad is not None and table.grad.any() for table in ranks)
    assert len(detector.eval().detect(images, mask, torch.tensor([[48, 64]] * 2))[0]["scores"]) == 300
