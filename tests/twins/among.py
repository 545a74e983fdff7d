"""Twins of what queries read of one another: every form of self-attention, and every term of its logits."""

from __future__ import annotations

import torch

from detrkit.structures import QueryLayout, QueryPosition
from tests.twins.arithmetic import head_of, linear, softmax
from tests.twins.bench import Case, made
from tests.twins.cross import HEADS, OFFERED, WIDTH, every_query, numbers, packed, placed

LAYOUTS = {
    "all": None,
    "groups": QueryLayout(queries=2, groups=3),
    "slots": QueryLayout(queries=2, groups=2, slots=torch.tensor([0, 0, 1, -1])),
    "second": QueryLayout(queries=2, slots=torch.tensor([1, 0]), second=3),
}


def owners(layout: QueryLayout) -> list[tuple[str, int]]:
    """Whose each query is: a denoising group's, the answer's (the first group's), another group's, the second set's."""
    slots = [] if layout.slots is None else [("slot", group) for group in layout.slots.tolist()]
    others = [("beyond", g) for g in range(1, layout.groups) for _ in range(layout.queries)]
    return [*slots, *[("answer", 0)] * layout.queries, *others, *[("second", 0)] * layout.second]


def scene(layout):
    torch.manual_seed(0)
    count = 4 if layout is None else len(owners(layout))
    return {
        "content": numbers(2, count, WIDTH),
        "position": QueryPosition({name: numbers(2, count, WIDTH) for name in ("near", "far")}),
        "relation": numbers(2, HEADS, count, count),
    }


def attended(query, key, value, layout, bias, b, n, count):
    """softmax over the queries that query n may see of q k / sqrt(F) and the bias, times values, heads in a row."""
    owner = [None] * count if layout is None else owners(layout)
    seen = [m for m in range(count) if owner[m] == owner[n] or (owner[n][0] == "slot" and owner[m][0] == "answer")]
    biased = layout is None or owner[n][0] != "second"  # these answer for an object together
    mixed = []
    for head in range(HEADS):
        logits = [head_of(query(n), head, HEADS) @ head_of(key(m), head, HEADS) / (WIDTH / HEADS) ** 0.5 for m in seen]
        if bias is not None and biased:
            logits = [x + bias[b, head, n, m] for x, m in zip(logits, seen, strict=True)]
        mixed.append(sum(w * head_of(value(m), head, HEADS) for w, m in zip(softmax(logits), seen, strict=True)))
    return torch.cat(mixed)


def bias_of(module, relation):
    """The sum of the terms: of "relation" the numbers as they are."""
    return sum(TERMS[name](relation) for name in module.terms) if len(module.terms) else None


TERMS = {"relation": lambda relation: relation}
"""By the name of the part in the slot "self_term": from the scene's numbers [B, H, N, N] to the summand."""


def plain_twin(module, layout, content, position, relation):
    attention, count = module.attention, content.shape[1]

    def update(b, n):
        def projected(part, with_place):
            return lambda m: packed(
                attention, part, 3, placed(content, position, b, m) if with_place else content[b, m]
            )

        query, key, value = projected(0, True), projected(1, True), projected(2, False)
        return linear(attention.out_proj, attended(query, key, value, layout, bias_of(module, relation), b, n, count))

    return every_query(content, update)


def conditional_twin(module, layout, content, position, relation):
    def update(b, n):
        def projected(own, others):
            return lambda m: (
                linear(own, content[b, m])
                + sum(linear(layer, position.embeddings[name][b, m]) for name, layer in others.items())
            )

        query, key = projected(module.query, module.query_position), projected(module.key, module.key_position)
        bias, count = bias_of(module, relation), content.shape[1]
        mixed = attended(query, key, lambda m: linear(module.value, content[b, m]), layout, bias, b, n, count)
        return linear(module.out, mixed)

    return every_query(content, update)


def case(name, twin, layout, *, slot="self_attention", of=None, **options):
    held = LAYOUTS[layout]

    def run(module, content, position, relation):
        given = {"relation": lambda places: relation[:, :, places, places]}
        return module(content, QueryPosition(position.embeddings, {}, given), held)

    return Case(
        slot=slot,
        name=of or name,
        options=options if slot == "self_attention" else {},
        make=lambda: made("self_attention", name, options, **OFFERED),
        scene=lambda: scene(held),
        part=run,
        twin=lambda module, **given: twin(module, held, **given),
        label=f"{name} {layout}",
    )


CASES = [
    *(
        case(name, twin, layout, **options)
        for name, twin in (("plain", plain_twin), ("conditional", conditional_twin))
        for layout, options in (
            ("all", {}),
            ("groups", {}),
            ("slots", {}),
            ("second", {"terms": ["relation"]}),
        )
    ),
    case("plain", plain_twin, "all", slot="self_term", of="relation", terms=["relation"]),
    case("plain", plain_twin, "slots", slot="self_term", of="relation", terms=["relation"]),
    case("conditional", conditional_twin, "groups", slot="self_term", of="relation", terms=["relation"]),
]
