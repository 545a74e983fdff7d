"""Slips of whoever writes a part of their own are named; most of them would train something else in silence."""

from dataclasses import replace

import pytest
import torch
from torch import nn

import detrkit
from detrkit.attention.base import CrossAttention, SelfAttention
from detrkit.attention.multihead import split_heads
from detrkit.attention.query_position import QueryPositionPart
from detrkit.attention.self_terms import SelfTerm
from detrkit.attention.terms import Term
from detrkit.backbones.base import Backbone
from detrkit.blocks.base import Block
from detrkit.encoders.transformer import TransformerEncoder
from detrkit.engine.rehearsal import rehearse, without_gradient
from detrkit.errors import UserError
from detrkit.geometry.box import BoxGeometry
from detrkit.heads import PredictionHead
from detrkit.matching.base import Matcher
from detrkit.matching.costs import Cost
from detrkit.queries.base import QueryGenerator
from detrkit.recipe import registry
from detrkit.structures import Extra, FeatureMap, Matches, Queries, QueryPosition
from tests.model.test_detector import small

BASE = "dab_detr_r50_50ep"


class Key(nn.Module):
    def __init__(self, width, heads):
        super().__init__()
        self.heads, self.projection = heads, nn.Linear(width, width)

    def forward(self, memory):
        return split_heads(self.projection(memory.tokens), self.heads)


class Mine(Term):
    key, head_widths = "mine", 1

    def __init__(self, *, width, heads, options: nn.Module | None = None):
        super().__init__()
        self.heads, self.projection = heads, nn.Linear(width, width)

    def make_key(self, *, width, heads):
        return Key(width, heads)

    def forward(self, content, position, reference, memory):
        return split_heads(self.projection(content), self.heads)


@pytest.fixture
def known(monkeypatch):
    """Makes a part known in this test alone."""

    def register(slot, name, build):
        registry.load_registered_parts()
        monkeypatch.setitem(registry._current.parts, slot, {**registry.parts(slot), name: build})

    return register


@pytest.mark.parametrize(
    ("slip", "message"),
    [
        ({"key": "a.b"}, 'the term "mine" has the key "a.b"; take another name'),
        ({"key": "keys"}, 'has the key "keys"'),
        ({"head_widths": -3}, "has head_widths = -3, should be an integer, at least 0"),
        ({"head_widths": "1"}, "has head_widths = '1'"),
        ({"forward": lambda *_: None}, r'the term "mine" gives a NoneType, should be \[B, H, N, F\]'),
    ],
)
def test_a_term_that_says_what_cannot_be_is_named(known, slip, message):
    known("term", "mine", type("Slip", (Mine,), slip))
    with pytest.raises(UserError, match=message):
        rehearse(*small(BASE, 'decoder.cross_attention.terms=["content","point","mine"]'), name="mine")


@pytest.mark.parametrize(
    ("slot", "base", "key"),
    [
        ("term", Mine, "decoder.cross_attention.terms"),
        ("self_term", SelfTerm, "decoder.self_attention.terms"),
        ("query_position", QueryPositionPart, "decoder.positions"),
    ],
)
def test_a_name_that_modules_have_for_something_else_is_refused(known, slot, base, key):
    part = base if slot == "term" else type("Slip", (base,), {"embeddings": ()})
    known(slot, "values", part)
    with pytest.raises(UserError, match='cannot be named "values"; register it by another name'):
        small(BASE, f'{key}=["values"]', "decoder.content_scale=false")


@pytest.mark.parametrize("name", ["keys", ""])
def test_a_block_is_named_so_neither(name):
    with pytest.raises(UserError, match=f'a block cannot be named "{name}"'):
        small(BASE, f'blocks."{name}".type="denoising"')


@pytest.mark.parametrize("name", ["total", "class_error", "norm", "loss_scale", "bad_costs", "box.0", "denoising/box"])
def test_a_loss_leaves_the_names_of_the_record_alone(name):
    with pytest.raises(UserError, match=f'a loss cannot be named "{name}"'):
        small(BASE, f'losses."{name}".type="giou"')


def test_a_text_in_the_place_of_a_tuple_is_named(known):
    """It was gone through letter by letter, and nothing was needed."""

    class Slip(Cost):
        needs, weight = ("objectness"), 1.0

        def __init__(self):
            pass

    known("cost", "slip", Slip)
    with pytest.raises(UserError, match=r'Slip\.needs is the text "objectness", .* tuple of texts, \("obj'):
        small(BASE, "matcher.costs.slip={}")


def test_annotations_that_no_recipe_can_fill_are_named(known):
    def odd(width, heads, first, power: "Flaot" = 1.0):  # noqa: F821
        """Never built."""

    known("term", "mine", Mine)
    with pytest.raises(UserError, match=r"terms\.1\.options: cannot be said in a recipe, as its annotation is Module"):
        small(BASE, 'decoder.cross_attention.terms=["content", { type = "mine", options = 3 }]')
    known("term", "odd", odd)
    with pytest.raises(UserError, match=r"annotations of .*odd cannot be read: NameError: name 'Flaot'"):
        detrkit.part("term", "odd")
    with pytest.raises(UserError, match='no such option of term "content"'):  # another part's mistakes stay named
        small(BASE, 'decoder.cross_attention.terms=[{ type = "content", power = 1 }]')


class Silent(QueryGenerator):
    def forward(self, memory, groups=1):
        """Without a return."""


class Start(QueryGenerator):
    """Queries of random boxes."""

    def __init__(self, *, width, geometry):
        super().__init__()
        self.geometry, self.content = geometry, nn.Parameter(torch.randn(6, width))
        self.register_buffer("boxes", torch.rand(6, 4) / 2 + 0.2)

    def forward(self, memory, groups=1):
        images = len(memory.tokens)
        boxes = self.boxes.expand(images, -1, -1)
        return Queries(self.content.expand(images, -1, -1), self.geometry.encode(boxes))


class Limited(Start):
    limit = 6


class BoxesAlone(Start):
    def forward(self, memory, groups=1):
        return replace(super().forward(memory), reference=self.boxes)


class Pair(PredictionHead):
    def forward(self, layer, content):
        return tuple(super().forward(layer, content))


class OneMore(PredictionHead):
    """A logit for "no object" after the classes', of which it does not tell: it was a class that no data has."""

    def forward(self, layer, content):
        raw = super().forward(layer, content)
        return raw._replace(logits=nn.functional.pad(raw.logits, (0, 1)))


class BareBoxes(BoxGeometry):
    def decode(self, offsets, reference):
        return super().decode(offsets, reference).boxes


class Corner(BoxGeometry):
    def decode(self, offsets, reference):
        decoded = super().decode(offsets, reference)
        return decoded._replace(boxes=decoded.boxes[..., :2])


class Stuck(BoxGeometry):
    def move(self, offsets, reference):
        super().move(offsets, reference)


class Answers(Block):
    def supervise(self, answer):
        return answer


class Hasty(Block):
    """Gives pairs where it is asked for what gives them."""

    def supervise(self, answer):
        return Extra(replace(answer, extras={}), assign=lambda output, targets: Matches(*torch.zeros(3, 1, 1).long()))


class Mean(SelfAttention):
    """One update for all queries, which was spread over them in silence."""

    def __init__(self):
        super().__init__()

    def forward(self, content, position, layout=None):
        return content.mean(1, keepdim=True)


class Nowhere(CrossAttention):
    def __init__(self):
        super().__init__()

    def forward(self, content, position, reference, memory):
        """Without a return."""


class Elsewhere(QueryPositionPart):
    embeddings = ("slip",)

    def __init__(self):
        super().__init__()

    def forward(self, queries, scale, memory):
        return QueryPosition({"slop": queries.content})


class Bare(TransformerEncoder):
    def forward(self, features):
        return super().forward(features).tokens


class OneMap(Backbone):
    channels = (3,)

    def __init__(self):
        super().__init__()

    def forward(self, images, mask):
        return FeatureMap(images[..., ::16, ::16], mask[:, ::16, ::16])


class Alone(Matcher):
    """Gives the matches of the first output alone, and not in a list."""

    def match(self, requests):
        return Matches(*torch.zeros(3, 1, 1).long())


@pytest.mark.parametrize(
    ("slot", "slip", "key", "message"),
    [
        ("backbone", OneMap, "backbone", "the backbone gives a FeatureMap, should be a list"),
        ("encoder", Bare, "encoder", "the encoder gives a Tensor, should be a .*Memory"),
        ("matcher", Alone, "matcher", "the matcher gives no list of 1, the matches of each output"),
        ("self_attention", Mean, "decoder.self_attention", r"self-attention gives \[2, 1, (\d+)\], .* \[2, 300, \1\]"),
        (
            "cross_attention",
            Nowhere,
            "decoder.cross_attention",
            "cross-attention gives nothing, should be a torch.Tensor",
        ),
        ("query_position", Elsewhere, "decoder.positions", r"gives the embeddings \['slop'\], .* declares \['slip'\]"),
        ("queries", Limited, "queries", "`limit` of the query generator gives an int, should be a .*QueryLimit"),
        ("queries", BoxesAlone, "queries", "geometry's encode, gives a Tensor, should be a .*Reference"),
        ("queries", Silent, "queries", "the query generator gives nothing, should be a .*Queries"),
        ("head", Pair, "head", "the head gives a tuple, should be a detrkit.heads.HeadOutput"),
        (
            "head",
            OneMore,
            "head",
            r"head gives logits \[2, 300, 8\], should be \[B, N, K\] = \[2, 300, 7\]; one more",
        ),
        ("geometry", BareBoxes, "geometry", "the geometry's decode gives a Tensor, should be a .*Decoded"),
        ("geometry", Corner, "geometry", r"the geometry predicts boxes \[2, 300, 2\], should be \[2, 300, 4\]"),
        ("geometry", Stuck, "geometry", "the geometry's move gives nothing, should be a .*Reference"),
        ("block", Answers, "blocks.slip", "supervise of blocks.slip gives an Output, should be a .*Extra"),
        ("block", Hasty, "blocks.slip", "extra 'slip' gives a Matches, should be .* lambda: matches"),
    ],
)
def test_what_parts_hand_on_is_of_the_class_that_is_asked(known, slot, slip, key, message):
    known(slot, "slip", slip)
    given = '["slip"]' if slot == "query_position" else '{type="slip"}'
    with pytest.raises(UserError, match=message):
        rehearse(*small(BASE, f"{key}={given}", "decoder.content_scale=false"), name="slip")


def test_weights_that_no_loss_depends_on_are_told(known):
    assert without_gradient(rehearse(*small(BASE), name="whole")) == []
    detached = {"forward": lambda self, *given: Mine.forward(self, *given).detach()}
    known("term", "mine", type("Slip", (Mine,), detached))
    detector, criterion = small(BASE, 'decoder.cross_attention.terms=["content","point","mine"]', "decoder.layers=2")
    [line] = without_gradient(rehearse(detector, criterion, name="mine"))
    layers = ", ".join(f"decoder.layers.{layer}.cross_attention.terms.mine" for layer in (0, 1))
    assert line == f"no loss depends on the weights of {layers}: they stay as they start"
    assert all(parameter.grad is None for parameter in detector.parameters())
