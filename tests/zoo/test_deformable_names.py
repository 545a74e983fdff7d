"""Official state dicts of Deformable DETR and DINO, by the names that their code gives, in every form."""

import pytest
import torch

import detrkit
from detrkit.zoo.conversion import match

LAYERS, WIDTH, HEADS, CLASSES, QUERIES, HIDDEN = 3, 32, 4, 7, 10, 48
SMALL = [
    "backbone.name=resnet18",
    "backbone.pretrained=false",
    f"detector.classes={CLASSES}",
    f"detector.width={WIDTH}",
    f"detector.heads={HEADS}",
    "encoder.layers=2",
    f"encoder.feedforward={HIDDEN}",
    f"decoder.layers={LAYERS}",
    f"decoder.feedforward={HIDDEN}",
    f"queries.count={QUERIES}",
]


def linear(name: str, outputs: int, inputs: int) -> dict[str, torch.Tensor]:
    return {f"{name}.weight": torch.randn(outputs, inputs), f"{name}.bias": torch.randn(outputs)}


def norm(name: str, width: int = WIDTH) -> dict[str, torch.Tensor]:
    return {f"{name}.weight": torch.randn(width), f"{name}.bias": torch.randn(width)}


def deformable(name: str, levels: int) -> dict[str, torch.Tensor]:
    points = HEADS * levels * 4
    return {
        **linear(f"{name}.sampling_offsets", 2 * points, WIDTH),
        **linear(f"{name}.attention_weights", points, WIDTH),
        **linear(f"{name}.value_proj", WIDTH, WIDTH),
        **linear(f"{name}.output_proj", WIDTH, WIDTH),
    }


def box_head(name: str) -> dict[str, torch.Tensor]:
    return {
        **linear(f"{name}.layers.0", WIDTH, WIDTH),
        **linear(f"{name}.layers.1", WIDTH, WIDTH),
        **linear(f"{name}.layers.2", 4, WIDTH),
    }


def transformer(levels: int) -> dict[str, torch.Tensor]:
    """What both code bases have."""
    inputs = (128, 256, 512, 512)[-levels:] if levels > 1 else (512,)
    state = {}
    for level, channels in enumerate(inputs):
        kernel = 3 if level == 3 else 1
        state[f"input_proj.{level}.0.weight"] = torch.randn(WIDTH, channels, kernel, kernel)
        state[f"input_proj.{level}.0.bias"] = torch.randn(WIDTH)
        state |= norm(f"input_proj.{level}.1")
    for kind, count in (("encoder", 2), ("decoder", LAYERS)):
        for index in range(count):
            name = f"transformer.{kind}.layers.{index}"
            state |= linear(f"{name}.linear1", HIDDEN, WIDTH) | linear(f"{name}.linear2", WIDTH, HIDDEN)
            state |= norm(f"{name}.norm1") | norm(f"{name}.norm2")
            if kind == "encoder":
                state |= deformable(f"{name}.self_attn", levels)
            else:
                state |= norm(f"{name}.norm3") | deformable(f"{name}.cross_attn", levels)
                state |= linear(f"{name}.self_attn.out_proj", WIDTH, WIDTH)
                state[f"{name}.self_attn.in_proj_weight"] = torch.randn(3 * WIDTH, WIDTH)
                state[f"{name}.self_attn.in_proj_bias"] = torch.randn(3 * WIDTH)
    return state


def heads(count: int, shared: bool, repeated: tuple[str, ...]) -> dict[str, torch.Tensor]:
    """One class and box head a layer, or one under `count` names; in the decoder again those that `repeated` has."""
    state = {}
    for index in range(count):
        if shared and index:
            own = {name.replace("_embed.0.", f"_embed.{index}."): t for name, t in state.items() if "_embed.0." in name}
        else:
            own = linear(f"class_embed.{index}", CLASSES, WIDTH) | box_head(f"bbox_embed.{index}")
        state |= own
    return state | {f"transformer.decoder.{n}": t for n, t in state.items() if n.startswith(repeated)}


def deformable_detr(*, levels: int, refined: bool, two_stage: bool) -> dict[str, torch.Tensor]:
    repeated = (("bbox_embed",) if refined else ()) + (("class_embed",) if two_stage else ())
    state = transformer(levels) | heads(LAYERS + two_stage, not refined, repeated)
    state["transformer.level_embed"] = torch.randn(levels, WIDTH)
    if not two_stage:
        state["query_embed.weight"] = torch.randn(QUERIES, 2 * WIDTH)
        return state | linear("transformer.reference_points", 2, WIDTH)
    state |= linear("transformer.enc_output", WIDTH, WIDTH) | norm("transformer.enc_output_norm")
    return state | linear("transformer.pos_trans", 2 * WIDTH, 2 * WIDTH) | norm("transformer.pos_trans_norm", 2 * WIDTH)


def dino(*, levels: int, two_stage: bool) -> dict[str, torch.Tensor]:
    state = transformer(levels) | heads(LAYERS, True, ("class_embed", "bbox_embed"))
    state["transformer.tgt_embed.weight"] = torch.randn(QUERIES, WIDTH)
    state |= norm("transformer.decoder.norm")
    state |= linear("transformer.decoder.ref_point_head.layers.0", WIDTH, 2 * WIDTH)
    state |= linear("transformer.decoder.ref_point_head.layers.1", WIDTH, WIDTH)
    if levels > 1:
        state["transformer.level_embed"] = torch.randn(levels, WIDTH)
    if not two_stage:
        state["transformer.refpoint_embed.weight"] = torch.randn(QUERIES, 4)
        return state
    state |= linear("transformer.enc_output", WIDTH, WIDTH) | norm("transformer.enc_output_norm")
    state |= linear("transformer.enc_out_class_embed", CLASSES, WIDTH) | box_head("transformer.enc_out_bbox_embed")
    return state


FORMS = {
    "deformable_detr_r50_50ep": lambda: deformable_detr(levels=1, refined=False, two_stage=False),
    "deformable_detr_4scale_r50_50ep": lambda: deformable_detr(levels=4, refined=False, two_stage=False),
    "deformable_detr_4scale_refined_r50_50ep": lambda: deformable_detr(levels=4, refined=True, two_stage=False),
    "deformable_detr_4scale_two_stage_r50_50ep": lambda: deformable_detr(levels=4, refined=True, two_stage=True),
    "dino_ss_r50_12ep": lambda: dino(levels=1, two_stage=True),
    "dino_4scale_r50_12ep": lambda: dino(levels=4, two_stage=True),
    "dino_ss_r50_12ep, one stage": lambda: dino(levels=1, two_stage=False),
}


@pytest.mark.parametrize("form", FORMS)
def test_every_tensor_finds_its_place(form):
    name, *one_stage = form.split(", ")
    overrides = ["queries.type=anchor_boxes", "queries.content=learned"] if one_stage else []
    recipe = detrkit.load_recipe(name, [*SMALL, *overrides])
    torch.manual_seed(0)
    official = FORMS[form]()
    if recipe.get("blocks.denoising", None):
        official["label_enc.weight"] = torch.randn(CLASSES + 1, WIDTH)
    found = match(official, recipe)
    assert not found.unexpected
    assert not found.mismatched
    assert [n for n in found.missing if not n.startswith("backbone.")] == []
    assert set(found.names) | set(found.repeated) == set(official)


def test_the_head_after_the_decoders_is_the_encoders():
    recipe = detrkit.load_recipe("deformable_detr_4scale_two_stage_r50_50ep", SMALL)
    official = FORMS["deformable_detr_4scale_two_stage_r50_50ep"]()
    state = match(official, recipe).state
    for layer in range(LAYERS):
        ours = state[f"decoder.head.classes.{layer}.layers.0.weight"]
        assert torch.equal(ours, official[f"class_embed.{layer}.weight"])
    ours = state["queries.proposals.head.offset_heads.box.0.layers.2.bias"]
    assert torch.equal(ours, official[f"bbox_embed.{LAYERS}.layers.2.bias"])


def test_a_shared_head_that_differs_between_layers_is_named():
    recipe = detrkit.load_recipe("deformable_detr_r50_50ep", SMALL)
    official = FORMS["deformable_detr_r50_50ep"]()
    official["class_embed.2.bias"] = official["class_embed.2.bias"] + 1
    found = match(official, recipe)
    assert found.mismatched == [
        "class_embed.2.bias differs from class_embed.0.bias, which the recipe shares between layers"
    ]
