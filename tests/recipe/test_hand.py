"""Parts by hand: whatever stands for a part, in every constructor alike."""

import pickle
from enum import Enum
from functools import partial

import pytest
import torch
from torch import nn

import detrkit
from detrkit.attention.conditional import ConditionalSelfAttention
from detrkit.attention.query_position import PointPosition
from detrkit.attention.term_sum import TermAttention
from detrkit.attention.terms import ContentTerm, PointTerm
from detrkit.data.shapes import ShapesSource
from detrkit.data.transforms import NoAugment
from detrkit.decoder import Decoder
from detrkit.engine.optimiser import build_optimiser
from detrkit.engine.options import TrainOptions
from detrkit.engine.parameter_rules import ParameterRule
from detrkit.errors import UserError
from detrkit.geometry.base import Geometry
from detrkit.geometry.point import PointGeometry
from detrkit.heads import PredictionHead
from detrkit.losses.criterion import Criterion
from detrkit.losses.terms import FocalLoss, GIoULoss, L1Loss
from detrkit.matching.costs import Cost, FocalCost, L1Cost
from detrkit.matching.hungarian import HungarianMatcher
from detrkit.recipe import Factory, as_factory, registry
from detrkit.recipe.registry import empty_registry
from detrkit.structures import Memory, Output, Queries, QueryLayout, QueryPosition, Reference

OFFERED = {"width": 32, "heads": 4, "positions": (), "dropout": 0.0, "first": False}


def test_a_part_by_its_name_has_its_options_checked():
    term = detrkit.part("term", "side_directed_gaussian", scaled=False)
    assert isinstance(term, Factory)
    assert term(width=32, heads=4, first=False).scaled is False
    with pytest.raises(UserError, match=r"no slot 'terms'.*did you mean"):
        detrkit.part("terms", "content")
    with pytest.raises(UserError, match=r"no term 'contend'.*did you mean \"content\""):
        detrkit.part("term", "contend")
    with pytest.raises(UserError, match=r'term "content" has no option \'scaled\''):
        detrkit.part("term", "content", scaled=True)
    with pytest.raises(UserError, match=r"cost\.focal\.weight"):
        detrkit.part("cost", "focal", weight=-1)


TERMS = {
    "names": ["content", "point"],
    "classes": [ContentTerm, PointTerm],
    "partials": [partial(ContentTerm), partial(PointTerm)],
    "factories": [detrkit.part("term", "content"), as_factory("term", PointTerm)],
    "built": [ContentTerm(width=32, heads=4), PointTerm(width=32, heads=4)],
    "mixed": [ContentTerm, "point"],
}


@pytest.mark.parametrize("form", TERMS)
def test_terms_in_every_form_are_the_same_module(form):
    torch.manual_seed(0)
    attention = TermAttention(terms=TERMS[form], **OFFERED)
    assert list(attention.terms) == ["content", "point"]
    torch.manual_seed(0)
    names = set(TermAttention(terms=["content", "point"], **OFFERED).state_dict())
    assert set(attention.state_dict()) == names


def test_costs_and_losses_in_every_form():
    forms = [FocalCost(weight=3.0), partial(FocalCost, weight=3.0), detrkit.part("cost", "focal", weight=3.0)]
    for form in forms:
        matcher = HungarianMatcher(costs={"class": form, "box": L1Cost})
        assert (matcher.costs["class"].weight, matcher.costs["box"].weight) == (3.0, 5.0)
    criterion = Criterion(matcher=matcher, losses={"class": FocalLoss, "box": L1Loss(weight=2.0), "giou": "giou"})
    assert [loss.weight for loss in criterion.losses.values()] == [1.0, 2.0, 2.0]
    named = {"class": detrkit.part("cost", "focal"), "box": "l1"}
    lone = Criterion(matcher=partial(HungarianMatcher, costs=named), losses={"giou": GIoULoss})
    assert isinstance(lone.matcher.costs["box"], L1Cost)


def decoder(**changed):
    parts = {
        "geometry": PointGeometry(),
        "head": PredictionHead,
        "self_attention": ConditionalSelfAttention,
        "cross_attention": partial(TermAttention, terms=[ContentTerm, PointTerm]),
        "positions": [PointPosition],
    }
    return Decoder(width=32, heads=4, levels=1, classes=3, layers=2, feedforward=32, **parts | changed)


def test_a_decoder_by_hand():
    names = set(decoder().state_dict())
    terms = ["content", detrkit.part("term", "point")]
    named = {"head": detrkit.part("head", "mlp"), "positions": ["point"], "self_attention": "conditional"}
    named |= {"cross_attention": detrkit.part("cross_attention", "terms", terms=terms)}
    assert set(decoder(**named).state_dict()) == names
    assert len({id(layer.cross_attention) for layer in decoder().layers}) == 2
    with pytest.raises(UserError, match=r"built ConditionalSelfAttention fills one place"):
        decoder(self_attention=ConditionalSelfAttention(width=32, heads=4, positions=("point",), dropout=0.0))


@pytest.mark.parametrize("wrong", [3, nn.Linear(2, 2), L1Loss, partial(L1Loss, 3)])
def test_what_is_no_part_is_refused_with_what_is_accepted(wrong):
    with pytest.raises(UserError, match=r"is no cost; accepted are a built Cost, its class.*detrkit\.part\(\"cost\""):
        HungarianMatcher(costs={"box": wrong})
    with pytest.raises(UserError, match=r'a cost is wanted here, and loss "l1" is none'):
        HungarianMatcher(costs={"box": detrkit.part("loss", "l1")})


@pytest.mark.parametrize(
    ("slot", "name", "options", "words"),
    [
        ("matcher", "hungarian", {"costs": ["l1"]}, 'costs: is a list, should be a dict by name of parts: "focal"'),
        ("cross_attention", "terms", {"terms": 5}, 'terms: is an int, should be a list of parts: "content"'),
        ("cross_attention", "terms", {"terms": {"mine": "content"}}, "terms: is a dict, should be a list of parts"),
    ],
)
def test_parts_in_another_form_are_named_with_that_which_is_accepted(slot, name, options, words):
    with pytest.raises(UserError, match=words):
        detrkit.part(slot, name, **options)


def test_a_class_of_one_s_own_needs_no_registration():
    class Area(L1Cost):
        pass

    assert isinstance(HungarianMatcher(costs={"area": Area}).costs["area"], Area)
    assert as_factory("cost", Area).name == "Area"


def test_data_takes_its_augmentation_likewise():
    assert isinstance(ShapesSource(augment=NoAugment).augment, NoAugment)
    assert type(ShapesSource().augment) is type(ShapesSource(augment="flip").augment)


def test_memory_of_a_map():
    values, codes = torch.randn(2, 8, 3, 4), torch.randn(1, 8, 3, 4)
    mask = torch.zeros(2, 3, 4, dtype=torch.bool)
    mask[1, :, 3] = True
    memory = Memory.from_map(values, codes, mask)
    assert torch.equal(memory.as_map(), values)
    assert torch.equal(memory.position[1], codes[0].flatten(1).T)
    assert memory.whole_cells().tolist() == [[4, 3], [3, 3]]
    assert Memory.from_map(values, codes).mask is None
    position = detrkit.part("position", "sine")(width=8)
    assert torch.equal(Memory.from_map(values, position(values, mask), mask).position, position(values, mask))
    with pytest.raises(UserError, match=r"of torch\.int64; a mask is bool, True where padded.*pixel_mask == 0"):
        Memory.from_map(values, codes, mask.long())


def test_a_memory_whose_fields_do_not_fit_says_what_they_are():
    rows = torch.zeros(2, 12, 8)
    mask = torch.zeros(2, 3, 4, dtype=torch.bool)
    wrong = [
        (rows, rows, ((3, 5),)),
        (rows, rows, (3, 4)),
        (rows, rows[..., :4], ((3, 4),)),
        (rows, rows, ((3, 4),), mask),
        (rows.mT.unflatten(2, (3, 4)), rows, ((3, 4),)),
    ]
    for given in wrong:
        with pytest.raises(UserError, match=r"they are \[B, L, D\], \[B, L, D\], \[B, L\] or None, and \(h, w\)"):
            Memory(*given)
    Memory(rows, rows, ((2, 4), (2, 2)), mask.flatten(1))


def test_a_term_whose_features_do_not_meet_its_key_is_named():
    class Narrow(ContentTerm):
        def forward(self, *given):
            return super().forward(*given)[..., :4]

    look = TermAttention(**OFFERED, terms=[Narrow])
    rows, places = torch.zeros(2, 12, 32), torch.zeros(2, 5, 2)
    memory = Memory(rows, rows, ((3, 4),))
    with pytest.raises(
        UserError, match=r"query features \[2, 4, 5, 4\], its key \"content\" \[2, 4, 12, 8\]; .* \[2, 4, 5, F\]"
    ):
        look(rows[:, :5], QueryPosition(), Reference(places), memory)


def test_queries_have_as_many_references_as_contents():
    content, points = torch.zeros(2, 5, 8), torch.zeros(2, 5, 2)
    Queries(content, Reference(points))
    for wrong in (content[:, :4], content[0]):
        with pytest.raises(UserError, match=r"points \[2, 5, 2\]; they are \[B, N, D\] and \[B, N, 2\]"):
            Queries(wrong, Reference(points))


def test_a_part_that_lacks_what_it_is_asked_is_named_with_the_base_class():
    class Half(Geometry):
        pass

    with pytest.raises(UserError, match=r"Half has to define decode: .* detrkit\.geometry\.base\.Geometry\.decode"):
        Half().decode({}, Reference(torch.zeros(1, 1, 2)))


LACKING = {
    "term": "key and head_widths",
    "query_position": "embeddings",
    "backbone": "channels",
    "geometry": "offset_widths",
    "cost": "weight",
    "loss": "weight",
}


@pytest.mark.parametrize("slot", LACKING)
def test_a_part_that_lacks_what_its_base_class_declares_is_named(slot, tmp_path):
    """Without it the first that asks fails somewhere else, in words of Python's own."""
    registry.load_registered_parts()
    half = type("Half", (registry.slots()[slot].base,), {})
    with pytest.raises(UserError, match=rf'^{slot} "Half": .*Half has to set {LACKING[slot]}, in the class or'):
        as_factory(slot, half)()


class Kind(Enum):
    NEAR = "near"
    FAR = "far"


def test_options_of_every_kind_come_back_from_a_run_s_recipe(tmp_path, monkeypatch):
    """An enumeration or a set was refused by the run's recipe.toml, after the data was read, with a traceback."""
    registry.load_registered_parts()
    monkeypatch.setitem(registry._current.parts, "cost", dict(registry.parts("cost")))

    @detrkit.register("cost", "picky")
    class Picky(Cost):
        def __init__(self, *, kind: Kind = Kind.NEAR, layers: frozenset[int] = frozenset({2, 1}), weight: float = 1.0):
            self.kind, self.layers, self.weight = kind, layers, weight

    for given, (kind, layers) in (
        ("{}", (Kind.NEAR, {1, 2})),
        ('{kind="far", layers=[7, 3]}', (Kind.FAR, {3, 7})),
    ):
        recipe = detrkit.load_recipe("quickstart", [f"matcher.costs.picky={given}"])
        (tmp_path / "kept.toml").write_text(recipe.to_toml(defaults=True))
        cost = detrkit.load_recipe(tmp_path / "kept.toml").section("matcher")().costs["picky"]
        assert (cost.kind, cost.layers) == (kind, layers)
    with pytest.raises(UserError, match=r'kind: is "fra", should be "near" or "far"'):
        detrkit.load_recipe("quickstart", ['matcher.costs.picky={kind="fra"}'])


def test_what_lacks_is_placed_in_the_recipe(tmp_path, monkeypatch):
    registry.load_registered_parts()
    monkeypatch.setitem(registry._current.parts, "loss", dict(registry.parts("loss")))
    (tmp_path / "half_loss.py").write_text(
        "from detrkit import register\nfrom detrkit.losses.base import Loss\n\n"
        '@register("loss", "half")\nclass Half(Loss):\n    pass\n'
    )
    (tmp_path / "half.toml").write_text('extends = "quickstart"\nimports = ["half_loss.py"]\nlosses.half = {}\n')
    with pytest.raises(UserError, match=r'half\.toml:3: losses\.half: loss "half": .* has to set weight'):
        detrkit.build_criterion(detrkit.load_recipe(tmp_path / "half.toml"))


def test_a_rule_of_ones_own_need_not_call_its_base_class():
    class Few(ParameterRule):
        def __init__(self):
            self.rate_factor = 0.5

        def names(self, detector):
            return iter(["0.weight"])

    options = TrainOptions(epochs=1, learning_rate=1e-3, parameters={"few": Few})
    groups = build_optimiser(nn.Sequential(nn.Linear(2, 2)), options).param_groups
    assert {tuple(group["names"]): group["lr"] for group in groups} == {("0.weight",): 5e-4, ("0.bias",): 1e-3}


def test_references_give_their_boxes():
    reference = Reference(torch.tensor([[[0.5, 0.5]]]), torch.tensor([[[0.1, 0.2, 0.3, 0.2]]]))
    assert torch.allclose(reference.boxes(), torch.tensor([[[0.6, 0.5, 0.4, 0.4]]]))


LAYOUTS = [
    QueryLayout(3),
    QueryLayout(2, groups=2),
    QueryLayout(2, groups=2, slots=torch.tensor([0, 1, 1, -1]), second=3),
]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_layout_s_mask_is_torch_s(layout):
    """torch's own attention with it gives what ours gives without."""
    from detrkit.attention.multihead import MultiHeadAttention

    ours = MultiHeadAttention(width=8, heads=2)
    theirs = nn.MultiheadAttention(8, 2, batch_first=True)
    theirs.load_state_dict(ours.state_dict())
    count = layout.answer.stop + (layout.groups - 1) * layout.queries + layout.second
    x = torch.randn(2, count, 8)
    mask = layout.attention_mask()
    assert mask.dtype == torch.bool
    expected, _ = theirs(x, x, x, attn_mask=mask)
    assert torch.allclose(ours(x, x, x, layout=layout), expected, atol=1e-6)


def test_terms_of_a_criterion_have_their_graph_and_sum_to_its_total():
    torch.manual_seed(0)
    logits = torch.randn(2, 1, 5, 3, requires_grad=True)
    output = Output(logits, torch.rand(2, 1, 5, 4))
    truth = [{"labels": torch.tensor([1, 2]), "boxes": torch.tensor([[0.5, 0.5, 0.2, 0.2], [0.3, 0.3, 0.2, 0.2]])}]
    matcher = HungarianMatcher(costs={"class": "focal", "box": "l1"})
    criterion = Criterion(matcher=matcher, losses={"class": "focal", "box": "l1"})
    terms = criterion.terms(output, truth)
    assert {name: tuple(term.shape) for name, term in terms.items()} == {"class": (2,), "box": (2,)}
    total = sum(criterion.losses[name].weight * term.sum() for name, term in terms.items())
    assert torch.allclose(total, criterion(output, truth)["total"])
    terms["class"].sum().backward()
    assert logits.grad.abs().sum() > 0


def test_a_backbone_of_another_name_has_its_own_rate():
    module = nn.ModuleDict({"model": nn.ModuleDict({"body": nn.Linear(2, 2), "rest": nn.Linear(2, 2)})})
    options = TrainOptions(backbone=("model.body",), backbone_learning_rate=1e-5, learning_rate=1e-4)
    rates = {name: g["lr"] for g in build_optimiser(module, options).param_groups for name in g["names"]}
    assert rates["model.body.weight"] == 1e-5
    assert rates["model.rest.weight"] == 1e-4
    with pytest.raises(UserError, match=r'train\.backbone: this detector has no "model\.bodi"'):
        build_optimiser(module, TrainOptions(backbone=("model.bodi",)))
    frozen = build_optimiser(module, TrainOptions(backbone=("model.body",), backbone_learning_rate=0))
    assert not module["model"]["body"].weight.requires_grad
    assert len(frozen.param_groups[0]["names"]) == 2


def test_a_mask_that_is_not_bool_is_refused_by_a_detector():
    recipe = detrkit.load_recipe("quickstart", ["detector.classes=2"])
    detector = detrkit.build_detector(recipe)
    with pytest.raises(UserError, match=r"the mask of images is of torch\.int64"):
        detector(torch.rand(1, 3, 64, 64), torch.ones(1, 64, 64, dtype=torch.int64))


def test_a_pickled_recipe_is_the_same_and_wants_its_parts():
    recipe = detrkit.load_recipe("quickstart")
    sent = pickle.dumps(recipe)
    assert pickle.loads(sent) == recipe
    with empty_registry(), pytest.raises(UserError, match=r"is not known here: import what registers it first"):
        pickle.loads(sent)
    unregistered = as_factory("term", NamedTerm)
    assert pickle.loads(pickle.dumps(unregistered)) == unregistered


class NamedTerm(ContentTerm):
    """A part that is not registered."""
