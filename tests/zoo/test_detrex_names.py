"""State dicts by detrex's names, those of codes built on it, of H-DETR and MS-DETR: every tensor finds its place."""

import pytest
import torch

import detrkit
from detrkit.zoo.conversion import match
from tests.zoo.test_deformable_names import (
    CLASSES,
    HEADS,
    HIDDEN,
    LAYERS,
    QUERIES,
    SMALL,
    WIDTH,
    box_head,
    deformable_detr,
    linear,
    norm,
)

LEVELS = 4
NOT_BACKBONE = "encoder.", "decoder.", "queries.", "blocks."


def attention(name: str) -> dict[str, torch.Tensor]:
    points = HEADS * LEVELS * 4
    return {
        **linear(f"{name}.sampling_offsets", 2 * points, WIDTH),
        **linear(f"{name}.attention_weights", points, WIDTH),
        **linear(f"{name}.value_proj", WIDTH, WIDTH),
        **linear(f"{name}.output_proj", WIDTH, WIDTH),
    }


def frozen_norm(name: str, width: int) -> dict[str, torch.Tensor]:
    return norm(name, width) | {f"{name}.running_mean": torch.randn(width), f"{name}.running_var": torch.rand(width)}


def backbone() -> dict[str, torch.Tensor]:
    """detectron2's names of a ResNet-18's first convolution and of a block with a shortcut."""
    state = {"backbone.stem.conv1.weight": torch.randn(64, 3, 7, 7)} | frozen_norm("backbone.stem.conv1.norm", 64)
    state["backbone.res3.0.conv1.weight"] = torch.randn(128, 64, 3, 3)
    state["backbone.res3.0.shortcut.weight"] = torch.randn(128, 64, 1, 1)
    return state | frozen_norm("backbone.res3.0.conv1.norm", 128) | frozen_norm("backbone.res3.0.shortcut.norm", 128)


def detrex(*, fused: bool = False) -> dict[str, torch.Tensor]:
    state = backbone()
    for level, channels in enumerate((128, 256, 512)):
        state[f"neck.convs.{level}.conv.weight"] = torch.randn(WIDTH, channels, 1, 1)
        state |= norm(f"neck.convs.{level}.norm") | {f"neck.convs.{level}.conv.bias": torch.randn(WIDTH)}
    state["neck.extra_convs.0.conv.weight"] = torch.randn(WIDTH, 512, 3, 3)
    state |= norm("neck.extra_convs.0.norm") | {"neck.extra_convs.0.conv.bias": torch.randn(WIDTH)}
    state["transformer.level_embeds"] = torch.randn(LEVELS, WIDTH)
    for kind, count, norms in (("encoder", 2, 2), ("decoder", LAYERS, 3)):
        for index in range(count):
            name = f"transformer.{kind}.layers.{index}"
            state |= linear(f"{name}.ffns.0.layers.0.0", HIDDEN, WIDTH)
            state |= linear(f"{name}.ffns.0.layers.1", WIDTH, HIDDEN)
            for number in range(norms):
                state |= norm(f"{name}.norms.{number}")
            state |= attention(f"{name}.attentions.{norms - 2}")
            if kind == "decoder":
                state |= linear(f"{name}.attentions.0.attn.out_proj", WIDTH, WIDTH)
                state[f"{name}.attentions.0.attn.in_proj_weight"] = torch.randn(3 * WIDTH, WIDTH)
                state[f"{name}.attentions.0.attn.in_proj_bias"] = torch.randn(3 * WIDTH)
    if fused:
        state |= linear("transformer.encoder.fusion_layer.0", WIDTH, 3 * WIDTH)
        state |= norm("transformer.encoder.fusion_layer.1")
    state |= linear("transformer.enc_output", WIDTH, WIDTH) | norm("transformer.enc_output_norm")
    heads = {}
    for index in range(LAYERS + 1):
        heads |= linear(f"class_embed.{index}", CLASSES, WIDTH) | box_head(f"bbox_embed.{index}")
    return state | heads | {f"transformer.decoder.{name}": tensor for name, tensor in heads.items()}


def dino(*, fused: bool) -> dict[str, torch.Tensor]:
    state = detrex(fused=fused) | norm("transformer.decoder.norm")
    state |= linear("transformer.decoder.ref_point_head.layers.0", WIDTH, 2 * WIDTH)
    state |= linear("transformer.decoder.ref_point_head.layers.1", WIDTH, WIDTH)
    state["transformer.tgt_embed.weight"] = torch.randn(QUERIES, WIDTH)
    state["label_enc.weight"] = torch.randn(CLASSES, WIDTH)
    return state


def places(width: int = WIDTH) -> dict[str, torch.Tensor]:
    return linear("transformer.pos_trans", 2 * width, 2 * width) | norm("transformer.pos_trans_norm", 2 * width)


def rank_detr() -> dict[str, torch.Tensor]:
    state = detrex() | places()
    state["query_embedding.weight"] = torch.randn(6 * QUERIES, WIDTH)
    for layer in range(LAYERS - 1):
        state[f"transformer.decoder.rank_aware_content_query.{layer}.weight"] = torch.randn(6 * QUERIES, WIDTH)
        state |= linear(f"transformer.decoder.pre_racq_trans.{layer}", WIDTH, WIDTH)
        state |= linear(f"transformer.decoder.post_racq_trans.{layer}", WIDTH, 2 * WIDTH)
    for layer in range(LAYERS):
        state[f"rank_adaptive_classhead_emb.{layer}.weight"] = torch.randn(6 * QUERIES, CLASSES)
    return state


def h_detr() -> dict[str, torch.Tensor]:
    state = deformable_detr(levels=LEVELS, refined=True, two_stage=True)
    return state | {"query_embed.weight": torch.randn(6 * QUERIES, WIDTH)}


def ms_detr() -> dict[str, torch.Tensor]:
    state = deformable_detr(levels=LEVELS, refined=True, two_stage=True)
    state["query_embed.weight"] = torch.randn(QUERIES, WIDTH)
    for layer in range(LAYERS):
        name = f"transformer.decoder.layers.{layer}"
        state |= linear(f"{name}.linear3", HIDDEN, WIDTH) | linear(f"{name}.linear4", WIDTH, HIDDEN)
        state |= norm(f"{name}.norm4")
    return state


FORMS = {
    "stable_dino_4scale_r50_12ep": (lambda: dino(fused=True), []),
    "align_detr_4scale_r50_12ep": (lambda: dino(fused=False), []),
    "rank_detr_4scale_r50_12ep": (rank_detr, [f"decoder.ranked={6 * QUERIES}"]),
    "h_deformable_detr_4scale_r50_12ep": (h_detr, []),
    "ms_deformable_detr_pp_4scale_r50_12ep": (ms_detr, []),
}


@pytest.mark.parametrize("name", FORMS)
def test_every_tensor_finds_its_place(name):
    make, overrides = FORMS[name]
    recipe = detrkit.load_recipe(name, [*SMALL, *overrides])
    torch.manual_seed(0)
    official = make()
    found = match(official, recipe)
    assert not found.unexpected
    assert not found.mismatched
    assert [n for n in found.missing if n.startswith(NOT_BACKBONE)] == []
    assert set(found.names) | set(found.repeated) == set(official)


def test_places_are_the_right_ones():
    recipe = detrkit.load_recipe("stable_dino_4scale_r50_12ep", SMALL)
    torch.manual_seed(0)
    official = dino(fused=True)
    state = match(official, recipe).state
    for ours, theirs in {
        "backbone.body.conv1.weight": "backbone.stem.conv1.weight",
        "backbone.body.layer2.0.bn1.running_var": "backbone.res3.0.conv1.norm.running_var",
        "backbone.body.layer2.0.downsample.0.weight": "backbone.res3.0.shortcut.weight",
        "decoder.head.classes.1.layers.0.bias": "class_embed.1.bias",
        "queries.proposals.head.offset_heads.box.0.layers.2.bias": f"bbox_embed.{LAYERS}.layers.2.bias",
        "decoder.layers.2.norm2.weight": "transformer.decoder.layers.2.norms.1.weight",
        "encoder.fusion.norm.bias": "transformer.encoder.fusion_layer.1.bias",
    }.items():
        assert torch.equal(state[ours], official[theirs]), ours
    labels = state["blocks.denoising.labels"]
    assert torch.equal(labels[:CLASSES], official["label_enc.weight"])
    assert not labels[CLASSES:].any()
