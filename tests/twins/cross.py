"""Twins of what queries read of the memory: every form of cross-attention, and every term of its logits."""

from __future__ import annotations

import math
from itertools import product

import torch

from detrkit.structures import AxisCodes, Memory, QueryPosition, Reference
from tests.twins.arithmetic import head_of, layer_norm, linear, mlp, sigmoid, sines, softmax
from tests.twins.bench import Case, made

WIDTH, HEADS, QUERIES, SHAPE = 8, 2, 3, (4, 5)
LEVELS = ((4, 5), (2, 3))
OFFERED = {"width": WIDTH, "heads": HEADS, "positions": ("near", "far"), "dropout": 0.0}


def numbers(*shape, low=None, high=None):
    if low is None:
        return torch.randn(shape, dtype=torch.float64)
    return low + (high - low) * torch.rand(shape, dtype=torch.float64)


def axis_code(u):
    """Some code [..., D] of coordinates."""
    return torch.sin(u[..., None] * torch.arange(1, WIDTH + 1, dtype=u.dtype))


def memory(shapes=(SHAPE,), padded=True, extent=False) -> Memory:
    """Two images; with padding the second fills a part of each level."""
    masks = []
    for h, w in shapes:
        mask = torch.zeros(2, h, w, dtype=torch.bool)
        mask[1, math.ceil(0.6 * h) :], mask[1, :, math.ceil(0.5 * w) :] = True, True
        masks.append(mask.flatten(1))
    cells = sum(h * w for h, w in shapes)
    return Memory(
        tokens=numbers(2, cells, WIDTH),
        position=numbers(2, cells, WIDTH),
        shapes=shapes,
        mask=torch.cat(masks, 1) if padded else None,
        extent=torch.tensor([[4.7, 3.9], [2.6, 2.3]], dtype=torch.float64) if extent else None,
        axes=AxisCodes(x=numbers(2, SHAPE[1], WIDTH), y=numbers(2, SHAPE[0], WIDTH), of=axis_code),
    )


def scene(shapes=(SHAPE,), padded=True, extent=False, sides=True):
    torch.manual_seed(0)
    codes = {"point": WIDTH, "side": 2 * WIDTH, "entering": WIDTH, "read_from": WIDTH}
    return {
        "content": numbers(2, QUERIES, WIDTH),
        "position": QueryPosition(
            {name: numbers(2, QUERIES, WIDTH) for name in ("near", "far")},
            {name: numbers(2, QUERIES, size) for name, size in codes.items()},
        ),
        "reference": Reference(
            numbers(2, QUERIES, 2, low=0.2, high=0.8), numbers(2, QUERIES, 4, low=0.05, high=0.35) if sides else None
        ),
        "memory": memory(shapes, padded, extent),
    }


def cells_of(memory):
    """(place, row, column) of each cell of a one-level map."""
    height, width = memory.shapes[0]
    return [(i * width + j, i, j) for i, j in product(range(height), range(width))]


def whole_cells(memory, b):
    """How many (columns, rows) of the map are the image's."""
    height, width = memory.shapes[0]
    if memory.mask is None:
        return width, height
    free = ~memory.mask[b].view(height, width)
    return int(free[0].sum()), int(free[:, 0].sum())


def placed(content, position, b, n):
    return content[b, n] + sum(embedding[b, n] for embedding in position.embeddings.values())


def read(memory, logit, value, heads, b, n):
    """softmax over the cells that are no padding of logit(head, place, row, column), times values, heads in a row."""
    mixed = []
    for head in range(heads):
        free = [cell for cell in cells_of(memory) if memory.mask is None or not memory.mask[b, cell[0]]]
        weights = softmax([logit(head, *cell) for cell in free])
        mixed.append(sum(w * head_of(value(cell[0]), head, heads) for w, cell in zip(weights, free, strict=True)))
    return torch.cat(mixed)


def every_query(content, update):
    """[B, N, D] of what `update(b, n)` gives."""
    return torch.stack([torch.stack([update(b, n) for n in range(content.shape[1])]) for b in range(len(content))])


# --- terms. Each gives its logit, and whether it is a dot product of learned projections, which the scale counts.


def content_term(term, whole, scene, b, n, head, place, row, column):
    query = linear(term.projection, scene["content"][b, n])
    key = linear(whole.keys["content"].projection, scene["memory"].tokens[b, place])
    if getattr(whole, "first", False):  # the first layer's content also sees the places
        embeddings = scene["position"].embeddings
        query = query + sum(linear(layer, embeddings[name][b, n]) for name, layer in whole.first.items())
        key = key + linear(whole.keys["position"].projection, scene["memory"].position[b, place])
    return head_of(query, head, HEADS) @ head_of(key, head, HEADS), True


def code_term(code):
    def logit(term, whole, scene, b, n, head, place, row, column):
        query = linear(term.projection, scene["position"].codes[code][b, n])
        key = linear(whole.keys["position"].projection, scene["memory"].position[b, place])
        return head_of(query, head, HEADS) @ head_of(key, head, HEADS), True

    return logit


def side_directed_gaussian(term, whole, scene, b, n, head, place, row, column):
    predicted = mlp(term.predict, scene["content"][b, n])
    memory, reference = scene["memory"], scene["reference"]
    sizes = whole_cells(memory, b) if term.extent == "image" else (memory.shapes[0][1], memory.shapes[0][0])
    total = 0.0
    for axis, (size, middle) in enumerate(zip(sizes, (column + 0.5, row + 0.5), strict=True)):
        offset = torch.tanh(predicted[2 * head + axis])
        width = predicted[2 * HEADS + 2 * head + axis]
        point = reference.point[b, n, axis]
        if term.scaled:
            side = reference.sides[b, n, 2 + axis] if offset > 0 else reference.sides[b, n, axis]
            center = (point + offset * side) * size
        else:
            center = point * size + offset
        total = total - width**2 * (middle - center) ** 2 / 8
    return total, False


def head_gaussian(term, whole, scene, b, n, head, place, row, column):
    position, memory = scene["position"], scene["memory"]
    if term.norm is None:
        source = position.codes["read_from"][b, n]
    else:
        source = layer_norm(term.norm, placed(position.codes["entering"], position, b, n))
    sizes = whole_cells(memory, b) if memory.extent is None else memory.extent[b]
    total = 0.0
    for axis, (size, middle) in enumerate(zip(sizes, (column + 0.5, row + 0.5), strict=True)):
        center = scene["reference"].point[b, n, axis] * size + linear(term.offset, source)[2 * head + axis] + term.shift
        total = total - linear(term.scale, source)[2 * head + axis] ** 2 * (middle - center) ** 2 / 8
    return total, False


TERMS = {
    "content": content_term,
    "point": code_term("point"),
    "side": code_term("side"),
    "side_directed_gaussian": side_directed_gaussian,
    "head_gaussian": head_gaussian,
}
"""By the name of the part in the slot "term": from (the term, the attention that holds it, the scene, image, query,
head, cell, row, column) to the logit, and whether the scale counts it."""


def summed(whole, scene, own, b, n, head, cell):
    """The terms' logits and some of the attention's own: products over the root of all their widths, the rest as is."""
    found = [*own, *(TERMS[name](term, whole, scene, b, n, head, *cell) for name, term in whole.terms.items())]
    products = [value for value, is_product in found if is_product]
    return sum(products) / (len(products) * WIDTH / HEADS) ** 0.5 + sum(
        value for value, is_product in found if not is_product
    )


# --- forms


def terms_twin(module, **scene):
    memory = scene["memory"]

    def update(b, n):
        def logit(head, *cell):
            return summed(module, scene, [], b, n, head, cell)

        return linear(module.out, read(memory, logit, lambda p: linear(module.value, memory.tokens[b, p]), HEADS, b, n))

    return every_query(scene["content"], update)


def packed(attention, part, parts, x):
    """One of several projections that are packed in one matrix."""
    rows = slice(part * WIDTH, (part + 1) * WIDTH)
    assert len(attention.in_proj_weight) == parts * WIDTH
    return attention.in_proj_weight[rows] @ x + attention.in_proj_bias[rows]


def plain_twin(module, **scene):
    memory, attention = scene["memory"], module.attention

    def update(b, n):
        query = packed(attention, 0, 3, placed(scene["content"], scene["position"], b, n))

        def logit(head, *cell):
            key = packed(attention, 1, 3, memory.tokens[b, cell[0]] + memory.position[b, cell[0]])
            own = head_of(query, head, HEADS) @ head_of(key, head, HEADS)
            return summed(module, scene, [(own, True)], b, n, head, cell)

        def value(place):
            return packed(attention, 2, 3, memory.tokens[b, place])

        return linear(attention.out_proj, read(memory, logit, value, HEADS, b, n))

    return every_query(scene["content"], update)


def row_column_twin(module, *, content, position, reference, memory):
    """One softmax over columns, one over rows; keys are means over the cells of a column or row."""
    attention, (height, width) = module.attention, memory.shapes[0]

    def update(b, n):
        tokens = memory.tokens[b].view(height, width, WIDTH)
        columns, rows = whole_cells(memory, b)
        high, wide = (rows, columns) if attention.extent == "image" else (height, width)
        x, y = (axis_code(reference.point[b, n, axis]) for axis in (0, 1))
        to_x, to_y = packed(attention, 0, 5, content[b, n] + x), packed(attention, 1, 5, content[b, n] + y)
        mixed = []
        for head in range(HEADS):

            def weights(query, keys, head=head):
                return softmax(
                    [head_of(query, head, HEADS) @ head_of(k, head, HEADS) / (WIDTH / HEADS) ** 0.5 for k in keys]
                )

            of_columns = weights(
                to_x,
                [
                    packed(attention, 2, 5, sum(tokens[i, j] for i in range(high)) / high + memory.axes.x[b, j])
                    for j in range(columns)
                ],
            )
            of_rows = weights(
                to_y,
                [
                    packed(attention, 3, 5, sum(tokens[i, j] for j in range(wide)) / wide + memory.axes.y[b, i])
                    for i in range(rows)
                ],
            )
            mixed.append(
                sum(
                    of_rows[i] * of_columns[j] * head_of(packed(attention, 4, 5, tokens[i, j]), head, HEADS)
                    for i in range(rows)
                    for j in range(columns)
                )
            )
        return linear(attention.out_proj, torch.cat(mixed))

    return every_query(content, update)


def bilinear(values, row, column, *, edge=False):
    """A map [h, w, F] at a place in cells, the first cell's middle at (0, 0); outside zeros, or the edge's cells."""
    height, width = values.shape[:2]
    if edge:
        row, column = (min(max(x, 0 * x), 0 * x + size - 1) for x, size in ((row, height), (column, width)))
    top, left = (math.floor(x.item() if torch.is_tensor(x) else x) for x in (row, column))
    total = torch.zeros_like(values[0, 0])
    for i in (top, top + 1):
        for j in (left, left + 1):
            if 0 <= i < height and 0 <= j < width:
                total = total + (1 - abs(row - i)) * (1 - abs(column - j)) * values[i, j]
    return total


def region(values, box, cells):
    """A box (x0, y0, x1, y1) of a map [h, w, F], in cells, as cells x cells means of places in them (Mask R-CNN)."""
    height, width = values.shape[:2]
    x0, y0, x1, y1 = (float(x) for x in box)
    found = []
    for i, j in product(range(cells), range(cells)):
        high, wide = (y1 - y0) / cells, (x1 - x0) / cells
        down, across = math.ceil(high), math.ceil(wide)
        places = [
            (y0 + (i + (s + 0.5) / down) * high - 0.5, x0 + (j + (t + 0.5) / across) * wide - 0.5)
            for s, t in product(range(down), range(across))
        ]
        inside = [(y, x) for y, x in places if -1 <= y <= height and -1 <= x <= width]  # beyond a cell it is zero
        read = [bilinear(values, y, x, edge=True) for y, x in inside]
        found.append(sum(read, torch.zeros_like(values[0, 0])) / len(places))
    return torch.stack(found).view(cells, cells, -1)


def aligned_twin(module, *, content, position, reference, memory):
    """The box's 7 x 7 cells, a place in them for each head, what is there as the head's query of full width."""
    heads, (height, width) = module.heads, memory.shapes[0]

    def update(b, n):
        columns, rows = whole_cells(memory, b)
        sizes = torch.tensor([columns, rows], dtype=content.dtype)
        point, sides = reference.point[b, n], reference.sides[b, n]
        low, high = point - sides[:2], point + sides[2:]
        values = memory.tokens[b].view(height, width, WIDTH)
        if module.extent == "image":  # neither the box nor what is read goes beyond it
            low, high, values = low.clamp(0, 1), high.clamp(0, 1), values[:rows, :columns]
        box = torch.cat((low * sizes, high * sizes)).detach()  # no gradient, as published
        cells = region(values, box, 7)
        squeeze, *rest = (layer for layer in module.places if hasattr(layer, "weight"))
        x = torch.stack([squeeze.weight[:, :, 0, 0] @ cells[i, j] + squeeze.bias for i in range(7) for j in range(7)])
        x = torch.relu(x).T.flatten()
        for layer in rest[:-1]:
            x = torch.relu(linear(layer, x))
        named = linear(rest[-1], x)
        queries, spots = [], []
        for head in range(heads):
            place = torch.tanh(named[2 * head : 2 * head + 2])  # -1 to 1 over the box
            found = bilinear(cells, (place[1] + 1) / 2 * 7 - 0.5, (place[0] + 1) / 2 * 7 - 0.5)
            spot = low + (high - low) * (place + 1) / 2
            code = sines([spot[1].detach(), spot[0].detach()], WIDTH // 2, module.temperature)
            gates = [
                head_of(sigmoid(linear(gate, content[b, n])), head, heads)
                for gate in (module.content_gate, module.position_gate)
            ]
            queries.append(linear(module.query, found * gates[0]) + mlp(module.query_position, code * gates[1]))
            spots.append(spot * sizes)

        def logit(head, place, row, column):
            key = linear(module.key, memory.tokens[b, place]) + mlp(module.key_position, memory.position[b, place])
            value = queries[head] @ key / WIDTH**0.5
            if module.gaussian:
                spread = named[2 * heads + 2 * head : 2 * heads + 2 * head + 2]
                away = torch.stack((column + 0.5 - spots[head][0], row + 0.5 - spots[head][1]))
                value = value - (spread**2 * away**2).sum() / 8
            return value

        return linear(module.out, read(memory, logit, lambda p: linear(module.value, memory.tokens[b, p]), heads, b, n))

    return every_query(content, update)


def share(memory: Memory, b: int, level: int):
    """The share of a level's (width, height) that is image."""
    height, width = memory.shapes[level]
    if memory.mask is None:
        return torch.ones(2, dtype=torch.float64)
    first = sum(h * w for h, w in memory.shapes[:level])
    free = ~memory.mask[b, first : first + height * width].view(height, width)
    return torch.tensor([int(free[0].sum()) / width, int(free[:, 0].sum()) / height], dtype=torch.float64)


def sampled(attention, memory, b, query, place):
    """Deformable attention of one query as the paper has it; `place(level, offset)` gives (x, y) in the padded map."""
    levels, points, heads = len(memory.shapes), attention.points, attention.heads
    offsets = linear(attention.sampling_offsets, query).view(heads, levels, points, 2)
    logits = linear(attention.attention_weights, query).view(heads, levels * points)
    values = torch.stack([linear(attention.value, token) for token in memory.tokens[b]])
    if memory.mask is not None:
        values = torch.stack([v * (not hidden) for v, hidden in zip(values, memory.mask[b], strict=True)])
    mixed = []
    for head in range(heads):
        weights, total, first = softmax(list(logits[head])), 0.0, 0
        for level, (height, width) in enumerate(memory.shapes):
            own = torch.stack([head_of(v, head, heads) for v in values[first : first + height * width]])
            first += height * width
            for point in range(points):
                x, y = place(level, offsets[head, level, point])
                found = bilinear(own.view(height, width, -1), y * height - 0.5, x * width - 0.5)
                total = total + weights[level * points + point] * found
        mixed.append(total)
    return linear(attention.out, torch.cat(mixed))


def deformable_twin(module, *, content, position, reference, memory):
    attention = module.attention

    def update(b, n):
        point = reference.point[b, n]

        def place(level, offset):
            height, width = memory.shapes[level]
            ratio = share(memory, b, level)
            if reference.sides is None:
                return point * ratio + offset / torch.tensor([width, height])
            left, top, right, bottom = reference.sides[b, n]
            reach = torch.stack((right if offset[0] > 0 else left, bottom if offset[1] > 0 else top))
            return (point + offset / attention.points * reach) * ratio

        return sampled(attention, memory, b, placed(content, position, b, n), place)

    return every_query(content, update)


def case(name, twin, options=(), label="", slot="cross_attention", of=None, first=False, heads=HEADS, **setting):
    options = dict(options)
    return Case(
        slot=slot,
        name=of or name,
        options=options,
        make=lambda: made(
            "cross_attention",
            name,
            options if slot == "cross_attention" else {"terms": [*setting.get("beside", ()), _term(of, options)]},
            **{**OFFERED, "heads": heads},
            levels=len(setting.get("shapes", (SHAPE,))),
            first=first,
        ),
        scene=lambda: scene(**{key: value for key, value in setting.items() if key != "beside"}),
        part=lambda module, **given: module(**given),
        twin=twin,
        label=label,
    )


def _term(name, options):
    import detrkit

    return detrkit.part("term", name, **options)


def _term_case(name, options=(), label="", form="terms", **setting):
    twin = {"terms": terms_twin, "plain": plain_twin}[form]
    setting.setdefault("beside", ("content",) if form == "terms" and name != "content" else ())
    return case(form, twin, options, label or form, slot="term", of=name, **setting)


CASES = [
    case("terms", terms_twin, {"terms": ["content"]}),
    case("terms", terms_twin, {"terms": ["content", "point", "side", "side_directed_gaussian"]}, "first", first=True),
    case("terms", terms_twin, {"terms": ["content", "point", "side", "side_directed_gaussian"]}, padded=False),
    case("plain", plain_twin),
    case("plain", plain_twin, {"terms": ["point", "head_gaussian"]}, padded=False),
    case("row_column", row_column_twin),
    case("row_column", row_column_twin, {"extent": "image"}),
    case("semantics_aligned", aligned_twin, {"temperature": 20.0}),
    case("semantics_aligned", aligned_twin, {"gaussian": True}, "four heads", heads=4),
    case("semantics_aligned", aligned_twin, {"gaussian": True, "extent": "image"}),
    case("semantics_aligned", aligned_twin, label="whole", padded=False),
    case("deformable", deformable_twin, {"points": 2}, "boxes", shapes=LEVELS),
    case("deformable", deformable_twin, {"points": 3}, "points", shapes=LEVELS, sides=False),
    case("deformable", deformable_twin, label="one whole level", padded=False),
    _term_case("content"),
    _term_case("point"),
    _term_case("point", form="plain"),
    _term_case("side", first=True),
    _term_case("side_directed_gaussian"),
    _term_case("side_directed_gaussian", {"extent": "image"}),
    _term_case("side_directed_gaussian", {"scaled": False}, sides=False),
    _term_case("side_directed_gaussian", form="plain", padded=False),
    _term_case("head_gaussian", extent=True),
    _term_case("head_gaussian", {"shift": 0.5}, form="plain"),
    _term_case("head_gaussian", {"first_norm": "queries"}, form="plain", first=True),
]
