"""Cross-attention for decoders of another make."""

from functools import partial

import pytest
import torch

from detrkit import part
from detrkit.attention.deformable import DeformableCrossAttention
from detrkit.attention.placed import PlacedAttention
from detrkit.errors import UserError
from detrkit.position import coded_boxes, sine_code
from detrkit.structures import Memory, Reference

WIDTH, HEADS, SHAPE = 32, 4, (4, 6)


def inputs():
    torch.manual_seed(0)
    tokens, codes = torch.randn(2, 24, WIDTH), torch.randn(2, 24, WIDTH)
    mask = torch.zeros(2, *SHAPE, dtype=torch.bool)
    mask[1, :, 4:] = True
    memory = Memory(tokens, codes, (SHAPE,), mask.flatten(1))
    return torch.randn(2, 7, WIDTH), 0.1 + 0.8 * torch.rand(2, 7, 4), memory


def test_content_and_point_are_what_a_dab_detr_layer_of_transformers_computes():
    modeling = pytest.importorskip("transformers.models.dab_detr.modeling_dab_detr")
    config = pytest.importorskip("transformers", minversion="5").DabDetrConfig(
        hidden_size=WIDTH, decoder_attention_heads=HEADS, dropout=0.0
    )
    content, boxes, memory = inputs()
    theirs = modeling.DabDetrDecoderLayerCrossAttention(config)
    ours = PlacedAttention(
        width=WIDTH, heads=HEADS, cross_attention=part("cross_attention", "terms", terms=["content", "point"])
    )
    pairs = {
        "terms.content.projection": "cross_attn_query_content_proj",
        "terms.point.projection": "cross_attn_query_pos_sine_proj",
        "keys.content.projection": "cross_attn_key_content_proj",
        "keys.position.projection": "cross_attn_key_pos_proj",
        "value": "cross_attn_value_proj",
        "out": "cross_attn.output_proj",
    }
    for mine, other in pairs.items():
        ours.attention.get_submodule(mine).load_state_dict(theirs.get_submodule(other).state_dict())
    code = torch.randn(2, 7, WIDTH)
    hidden = torch.zeros(2, 1, 7, 24).masked_fill(memory.mask[:, None, None], -1e9)
    expected, _ = theirs(
        content, memory.tokens, object_queries=memory.position, encoder_attention_mask=hidden, query_sine_embed=code
    )
    found = theirs.cross_attn_layer_norm(content + ours(content, boxes, memory, {"point": code}))
    assert (found - expected).abs().max() < 1e-5


def test_positions_of_its_own_are_made_of_the_boxes():
    content, boxes, memory = inputs()
    side = part("query_position", "side", embedding="none")
    look = PlacedAttention(
        width=WIDTH,
        heads=HEADS,
        cross_attention=part("cross_attention", "terms", terms=["content", "side", "side_directed_gaussian"]),
        positions=[side],
    )
    boxes.requires_grad_()
    look(content, boxes, memory).sum().backward()
    assert boxes.grad.abs().sum() > 0
    assert all(p.grad is not None for p in look.parameters())  # no embedding that nobody reads
    point, sides = boxes[..., :2], boxes[..., 2:] / 2
    corners = sine_code(torch.cat((point - sides, point + sides), dim=-1), WIDTH // 2, 20.0)
    same = look(content, boxes.roll(1, 0), memory, {"side": corners})
    assert not torch.allclose(same, look(content, boxes, memory))  # the Gaussians still follow the boxes


def test_a_salient_point_may_lie_anywhere_in_its_box():
    content, boxes, memory = inputs()
    terms = part("cross_attention", "terms", terms=["content", "point", "side", "side_directed_gaussian"])
    codes = [part("query_position", name, embedding="none") for name in ("point", "side")]
    look = PlacedAttention(width=WIDTH, heads=HEADS, cross_attention=terms, positions=codes)
    half = boxes[..., 2:] / 2
    middle = Reference(boxes[..., :2], torch.cat((half, half), dim=-1))
    assert torch.equal(look(content, middle, memory), look(content, boxes, memory))
    moved = Reference(middle.point + half / 2, torch.cat((1.5 * half, half / 2), dim=-1))  # the same boxes
    assert torch.allclose(moved.boxes(), boxes)
    assert (look(content, moved, memory) - look(content, boxes, memory)).abs().max() > 1e-3


def test_the_first_layer_reads_embeddings():
    content, boxes, memory = inputs()
    terms = part("cross_attention", "terms", terms=["content", "point"])
    look = PlacedAttention(width=WIDTH, heads=HEADS, cross_attention=terms, positions=["point"], first=True)
    look(content, boxes, memory).sum().backward()
    assert all(p.grad is not None for p in look.parameters())


def test_what_does_not_fit_is_named():
    content, boxes, memory = inputs()
    terms = part("cross_attention", "terms", terms=["content", "point"])
    with pytest.raises(UserError, match="width = 32 is no multiple of heads = 5"):
        PlacedAttention(width=WIDTH, heads=5, cross_attention=terms)
    with pytest.raises(UserError, match="width = 32 and heads = 0 should be 1 at least"):
        PlacedAttention(width=WIDTH, heads=0, cross_attention=terms)
    look = PlacedAttention(width=WIDTH, heads=HEADS, cross_attention=terms, positions=["point"])
    for wrong in (boxes[..., :2], boxes[:, :5], boxes[0]):
        with pytest.raises(UserError, match=r"no boxes of content \[2, 7, 32\]; they are \[B, N, 4\] of \[B, N, D\]"):
            look(content, wrong, memory)


def test_a_mask_of_other_cells_than_the_map_s_is_named():
    values, mask = torch.randn(2, WIDTH, *SHAPE), torch.zeros(2, *SHAPE, dtype=torch.bool)
    for name in ("sine", "axes"):
        position = part("position", name)(width=WIDTH)
        with pytest.raises(UserError, match=r"the mask of a map is of torch\.int64; a mask is bool"):
            position(values, mask.long())
        for wrong in (mask.transpose(1, 2), mask[0], torch.zeros(2, 64, 96, dtype=torch.bool)):
            with pytest.raises(UserError, match=r"and the map is \[2, 32, 4, 6\]; they are \[B, h, w\]"):
                position(values, wrong)
    codes = part("position", "sine")(width=WIDTH)(values, mask)
    with pytest.raises(UserError, match=r"the mask of a map is \[2, 6, 4\]"):
        Memory.from_map(values, codes, mask.transpose(1, 2))
    with pytest.raises(UserError, match=r"a map is \[2, 32, 4, 6\], and the codes of its cells are \[2, 32, 6, 4\]"):
        Memory.from_map(values, values.transpose(2, 3), mask)


def test_any_cross_attention_and_geometry_will_do():
    content, boxes, memory = inputs()
    look = PlacedAttention(
        width=WIDTH, heads=HEADS, cross_attention=partial(DeformableCrossAttention, points=2), geometry="point"
    )
    wide = torch.cat((boxes[..., :2], 2 * boxes[..., 2:]), dim=-1)
    assert torch.equal(look(content, boxes, memory), look(content, wide, memory))  # points have no size
    with pytest.raises(UserError, match='"side" stands twice'):
        PlacedAttention(width=WIDTH, heads=HEADS, cross_attention="plain", positions=["side", "side"])


def test_boxes_come_back_from_their_code():
    torch.manual_seed(0)
    boxes = torch.rand(3, 50, 4)
    boxes[0, 0] = torch.tensor([0.0, 0.5, 0.999, 1e-4])
    boxes.requires_grad_()
    found = coded_boxes(sine_code(boxes[..., [1, 0, 2, 3]], 16, 10000.0))
    assert (found - boxes).abs().max() < 1e-6
    found.sum().backward()
    assert (boxes.grad - 1).abs().max() < 1e-4
