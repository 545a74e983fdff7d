"""Twins of what is known of places: the queries' embeddings and codes, and the codes of a map's cells."""

from __future__ import annotations

import math

import torch

from detrkit.structures import Queries, Reference
from tests.twins.arithmetic import linear, mlp, sigmoid, sines
from tests.twins.bench import Case, made
from tests.twins.cross import HEADS, LEVELS, QUERIES, WIDTH, every_query, memory, numbers, share

HALF = WIDTH // 2


def scene():
    torch.manual_seed(0)
    return {
        "queries": Queries(
            content=numbers(2, QUERIES, WIDTH),
            reference=Reference(
                numbers(2, QUERIES, 2, low=0.2, high=0.8), sides=numbers(2, QUERIES, 4, low=0.05, high=0.35)
            ),
            embedding=numbers(2, QUERIES, WIDTH),
            read_from=numbers(2, QUERIES, WIDTH),
            boxes=(numbers(2, QUERIES, 4, low=0.1, high=0.9), numbers(2, QUERIES, 4, low=0.1, high=0.9)),
        ),
        "scale": numbers(2, QUERIES, WIDTH),
        "memory": memory(LEVELS),
    }


def run(module, queries, scale, memory):
    found = module(queries, scale, memory)
    assert tuple(found.embeddings) == module.embeddings
    assert set(module.codes) <= set(found.codes)
    relations = {name: relation(slice(None)) for name, relation in found.relations.items()}
    return {**found.embeddings, **{f"code {name}": code for name, code in found.codes.items()}, **relations}


def learned(module, queries, scale, memory):
    return {"learned": queries.embedding, "code read_from": queries.read_from}


def entering(module, queries, scale, memory):
    return {"code entering": queries.content}


def point(module, queries, scale, memory):
    def code(b, n):
        x, y = queries.reference.point[b, n]
        return sines((x, y) if module.order == "xy" else (y, x), HALF, module.temperature)

    def embedding(b, n):
        return mlp(module.embed, code(b, n)) if module.embedding == "mlp" else code(b, n).detach()

    def scaled(b, n):  # an embedding that is the code itself sends no gradient, and nor does the code then
        return (code(b, n).detach() if module.embedding == "code" else code(b, n)) * scale[b, n]

    found = {} if module.embedding == "none" else {"point": every_query(queries.content, embedding)}
    return {**found, "code point": every_query(queries.content, scaled)}


def side(module, queries, scale, memory):
    def code(b, n):
        x, y = queries.reference.point[b, n]
        left, top, right, bottom = queries.reference.sides[b, n]
        return sines((x - left, y - top, x + right, y + bottom), HALF, module.temperature)

    found = {"side": every_query(queries.content, lambda b, n: mlp(module.embed, code(b, n)))} if module.embed else {}
    twice = every_query(queries.content, lambda b, n: code(b, n) * torch.cat((scale[b, n], scale[b, n])))
    return {**found, "code side": twice}


def box(module, queries, scale, memory):
    def place(b, n):
        x, y = queries.reference.point[b, n]
        left, top, right, bottom = queries.reference.sides[b, n]
        across, down = share(memory, b, 0) if module.frame == "padded_map" else (1, 1)
        return x * across, y * down, (left + right) * across, (top + bottom) * down

    def embedding(b, n):
        x, y, w, h = place(b, n)
        code = mlp(module.embed, sines((y, x, w, h), HALF, module.temperature))
        return code * scale[b, n] if module.scaled == "embedding" else code

    def code(b, n):
        x, y, w, h = place(b, n)
        of_y, of_x = (sines((u,), HALF, module.temperature) for u in (y, x))
        if module.size is not None:
            wide, high = sigmoid(mlp(module.size, queries.content[b, n]))
            of_y, of_x = of_y * high / h, of_x * wide / w
        return torch.cat((of_y, of_x)) * (scale[b, n] if module.scaled == "code" else 1)

    return {"box": every_query(queries.content, embedding), "code point": every_query(queries.content, code)}


def relation(module, queries, scale, memory):
    before, now = queries.boxes
    out = torch.zeros(len(before), HEADS, QUERIES, QUERIES, dtype=before.dtype)
    for b in range(len(before)):
        for n in range(QUERIES):
            for m in range(QUERIES):
                x, y, w, h = before[b, n]
                u, v, a, c = now[b, m]
                w, h, a, c = w + 1e-5, h + 1e-5, a + 1e-5, c + 1e-5
                four = (
                    torch.log(abs(x - u) / w + 1),
                    torch.log(abs(y - v) / h + 1),
                    torch.log(w / a),
                    torch.log(h / c),
                )
                code = sines(
                    [module.scale * value / (2 * torch.pi) for value in four], module.channels, module.temperature
                )
                x = linear(module.project, code)
                out[b, :, n, m] = x * (x > 0)
    return {"relation": out}


def raw_box(module, queries, scale, memory):
    def embedding(b, n):
        x, y = queries.reference.point[b, n]
        left, top, right, bottom = queries.reference.sides[b, n]
        middle = (x + (right - left) / 2, y + (bottom - top) / 2, left + right, top + bottom)
        return mlp(module.embed, torch.stack(middle))

    return {"raw_box": every_query(queries.content, embedding)}


# --- of cells


def cells_scene():
    torch.manual_seed(0)
    mask = torch.zeros(2, 4, 5, dtype=torch.bool)
    mask[1, 3:], mask[1, :, 2:] = True, True
    return {"values": numbers(2, 3, 4, 5), "mask": mask}


def every_cell(values, code):
    batch, _, height, width = values.shape
    return torch.stack(
        [torch.stack([code(b, i, j) for i in range(height) for j in range(width)]) for b in range(batch)]
    )


def sine(module, values, mask):
    def code(b, i, j):
        above, all_rows = (float((~mask[b, :stop, j]).sum()) for stop in (i + 1, None))
        left, all_columns = (float((~mask[b, i, :stop]).sum()) for stop in (j + 1, None))
        y, x = (above + module.offset) / (all_rows + module.eps), (left + module.offset) / (all_columns + module.eps)
        return sines(torch.tensor([y, x], dtype=torch.float64), HALF, module.temperature)

    return every_cell(values, code)


def counted(module, values, mask):
    def code(b, i, j):
        waves = [module.temperature ** (-k / (WIDTH // 4)) for k in range(WIDTH // 4)]
        angles = [at * wave for at in (i, j) for wave in waves]
        halves = angles[: WIDTH // 4], angles[WIDTH // 4 :]
        found = [f(angle) for half in halves for f in (math.sin, math.cos) for angle in half]
        return torch.tensor(found, dtype=torch.float64)

    return every_cell(values, code)


def axes(module, values, mask):
    def code(b, i, j):
        along = []
        for free, at in ((~mask[b, :, 0], i), (~mask[b, 0], j)):
            place = (float(free[: at + 1].sum()) - 0.5) / float(free.sum())
            along.append(
                mlp(module.embed, sines(torch.tensor([place], dtype=torch.float64), WIDTH, module.temperature))
            )
        return along[0] + along[1]

    return every_cell(values, code)


def query_case(name, twin, **options):
    def make():
        return made("query_position", name, options, width=WIDTH, heads=HEADS)

    return Case("query_position", name, options, make, scene, run, twin)


def cell_case(name, twin, **options):
    def make():
        return made("position", name, options, width=WIDTH)

    def run(module, values, mask):
        return module(values, mask).expand(2, -1, -1)

    has_weights = name == "axes"
    return Case("position", name, options, make, cells_scene, run, twin, has_gradient=has_weights)


CASES = [
    query_case("learned", learned),
    query_case("entering", entering),
    query_case("point", point),
    query_case("point", point, order="yx", temperature=100.0, embedding="code"),
    query_case("point", point, embedding="none"),
    query_case("side", side),
    query_case("side", side, temperature=100.0, embedding="none"),
    query_case("box", box),
    query_case("box", box, temperature=20.0, modulated=False, frame="padded_map"),
    query_case("box", box, frame="padded_map"),
    query_case("box", box, scaled="embedding"),
    query_case("relation", relation, scale=1.0),
    query_case("relation", relation, channels=4, temperature=20.0, scale=2.0),
    query_case("raw_box", raw_box),
    query_case("raw_box", raw_box, form="deep", activation="silu"),
    cell_case("sine", sine),
    cell_case("sine", sine, temperature=20.0, offset=-0.5, eps=0.5),
    cell_case("counted", counted),
    cell_case("counted", counted, temperature=20.0),
    cell_case("axes", axes),
    cell_case("axes", axes, temperature=20.0),
]
