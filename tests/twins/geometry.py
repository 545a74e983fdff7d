"""Twins of geometries: how references begin, become boxes, and move."""

from __future__ import annotations

import math

import torch

from detrkit.geometry.base import Decoded
from detrkit.sap.geometry import SalientReference
from detrkit.structures import Reference
from tests.twins.arithmetic import clipped_logit, corners, sigmoid
from tests.twins.bench import Case, made
from tests.twins.cross import numbers

QUERIES, ROWS, COLUMNS = 4, 4, 5


def scene(*, sides=True, salient=False):
    """References in the image, of which the first has a coordinate near 0, one beyond the image, and hardly a side."""
    torch.manual_seed(0)
    point = numbers(2, QUERIES, 2, low=0.1, high=0.9)
    around = numbers(2, QUERIES, 4, low=0.02, high=0.4)
    around[0, 0, 0] = 1e-6
    offsets = {"box": numbers(2, QUERIES, 4), "point": numbers(2, QUERIES, 2)}
    if not salient:
        point[0, 0] = torch.tensor([1e-6, 1.2])
        return {"offsets": offsets, "reference": Reference(point, around if sides else None)}
    cell = torch.tensor([1 / COLUMNS, 1 / ROWS], dtype=torch.float64).expand(2, QUERIES, 2).clone()
    origin = torch.floor(point / cell) * cell
    previous = origin + cell * numbers(2, QUERIES, 2, low=0.0, high=1.0)
    point[0, 0] = origin[0, 0] + 1e-7  # near where a grid's points begin: the distance is clipped
    reference = SalientReference(point=point, sides=around, origin=origin, cell=cell, previous=previous)
    return {"offsets": offsets, "reference": reference}


def every(values, update):
    """The tensors that `update(b, n)` gives, each [B, N, F]."""
    rows = [[update(b, n) for n in range(values.shape[1])] for b in range(len(values))]
    return [torch.stack([torch.stack([q[i] for q in row]) for row in rows]) for i in range(len(rows[0][0]))]


def centered(center_and_size):
    """A reference whose point is the box's middle."""
    return Reference(center_and_size[..., :2], torch.cat((center_and_size[..., 2:] / 2,) * 2, dim=-1))


# --- decode and move


def box_decoded(geometry, offsets, reference):
    return box_shifted(offsets, reference, geometry.predicted_eps)


def box_moved(geometry, offsets, reference):
    return centered(box_shifted(offsets, reference, geometry.eps).boxes)


def box_shifted(offsets, reference, eps):
    def update(b, n):
        (x, y), (left, top, right, bottom) = reference.point[b, n], reference.sides[b, n]
        before = (x, y, left + right, top + bottom)
        pairs = zip(offsets["box"][b, n], before, strict=True)
        return [torch.stack([sigmoid(offset + clipped_logit(v, eps)) for offset, v in pairs])]

    return Decoded(*every(reference.point, update), None)


def none_decoded(geometry, offsets, reference):
    return Decoded(*every(reference.point, lambda b, n: [sigmoid(offsets["box"][b, n])]), None)


def point_decoded(geometry, offsets, reference):
    if reference.sides is not None:
        return box_shifted(offsets, reference, geometry.eps)

    def update(b, n):
        x, y, w, h = offsets["box"][b, n]
        u, v = (clipped_logit(value, geometry.eps) for value in reference.point[b, n])
        return [sigmoid(torch.stack((x + u, y + v, w, h)))]

    return Decoded(*every(reference.point, update), None)


def moved_as(decoded):
    return lambda geometry, offsets, reference: centered(decoded(geometry, offsets, reference).boxes)


def travelled(geometry, offset, start, reference, b, n, cell):
    """Where a salient point is after an offset."""
    found = []
    for axis in (0, 1):
        at, raw = start[b, n, axis], offset[b, n, axis]
        origin, size = reference.origin[b, n, axis], cell[axis]
        if geometry.movement == "fixed":
            found.append(at)
        elif geometry.movement == "free":
            found.append(sigmoid(clipped_logit(at, geometry.eps) + raw))
        else:
            distance = at - origin if geometry.offset_unit == "image" else (at - origin) / size
            found.append(origin + size * sigmoid(clipped_logit(distance, geometry.eps) + raw))
    return torch.stack(found)


def refined_sides(geometry, offsets, reference, b, n):
    pairs = zip(offsets["box"][b, n], reference.sides[b, n], strict=True)
    return torch.stack([sigmoid(clipped_logit(side, geometry.eps) + raw) for raw, side in pairs])


def salient_decoded(own_cell, previous):
    def twin(geometry, offsets, reference):
        def update(b, n):
            cell = reference.cell[b, n] if own_cell else (1 / 20, 1 / 20)
            start = reference.previous if previous else reference.point
            x, y = point = travelled(geometry, offsets["point"], start, reference, b, n, cell)
            left, top, right, bottom = refined_sides(geometry, offsets, reference, b, n)
            # from the corners (x - left, y - top) and (x + right, y + bottom)
            box = ((2 * x - left + right) / 2, (2 * y - top + bottom) / 2, left + right, top + bottom)
            return [torch.stack(box), point]

        return Decoded(*every(reference.point, update))

    return twin


def salient_moved(geometry, offsets, reference):
    def update(b, n):
        cell = reference.cell[b, n]
        point = travelled(geometry, offsets["point"], reference.point, reference, b, n, cell)
        return [point, refined_sides(geometry, offsets, reference, b, n)]

    point, sides = every(reference.point, update)
    return SalientReference(
        point=point, sides=sides, origin=reference.origin, cell=reference.cell, previous=reference.point
    )


# --- beginnings: from boxes, from a grid, and from noised boxes


def boxes_scene():
    torch.manual_seed(0)
    boxes = numbers(2, QUERIES, 4, low=0.1, high=0.6)
    boxes[0, 0] = torch.tensor([1.0, 0.999, 0.3, 0.2])  # its middle on the image's edge
    return {"boxes": boxes}


def grid_scene():
    torch.manual_seed(0)
    return {
        "points": numbers(2, QUERIES, 2, low=0.1, high=0.9),
        "sides": numbers(2, QUERIES, 4, low=0.05, high=0.4),
        "corners": numbers(2, QUERIES, 2, low=0.1, high=0.9),
    }


def noised_scene():
    """Noised boxes that overlap their objects, hold them, lie in them; an object that is the image."""
    torch.manual_seed(0)
    truth = numbers(2, QUERIES, 4, low=0.3, high=0.5)
    boxes = truth + numbers(2, QUERIES, 4, low=-0.1, high=0.1)
    boxes[0, 0] = truth[0, 0] * torch.tensor([1, 1, 0.5, 0.5])
    boxes[0, 1] = truth[0, 1] * torch.tensor([1, 1, 1.5, 1.5])
    truth[0, 2] = torch.tensor([0.5, 0.5, 1.0, 1.0])
    positive = torch.zeros(2, QUERIES, dtype=torch.bool)
    positive[1, ::2] = True
    return {"boxes": boxes, "truth": truth, "positive": positive, "place": numbers(2, QUERIES, 2, low=0.0, high=1.0)}


def grid_cell(point, grid):
    """The corner (x, y) of the grid's cell around a point, and the cell's (width, height)."""
    rows, columns = grid
    at = [min(max(math.floor(x.item() * n), 0), n - 1) for x, n in zip(point, (columns, rows), strict=True)]
    corner, size = (at[0] / columns, at[1] / rows), (1 / columns, 1 / rows)
    return torch.tensor(corner, dtype=torch.float64), torch.tensor(size, dtype=torch.float64)


def salient_around(point, box, grid):
    """A point, its distances to a box's sides, where positive, its cell's corner and size, and where it came from."""
    x0, y0, x1, y1 = corners(box)
    distances = (point[0] - x0, point[1] - y0, x1 - point[0], y1 - point[1])
    sides = torch.stack([d if d > 0 else torch.zeros_like(d) for d in distances])
    return [point, sides, *grid_cell(point, grid), point]


def as_salient(fields):
    return SalientReference(**dict(zip(("point", "sides", "origin", "cell", "previous"), fields, strict=True)))


def salient_encoded(geometry, boxes):
    return as_salient(every(boxes, lambda b, n: salient_around(boxes[b, n, :2], boxes[b, n], geometry.grid)))


def salient_noised(geometry, boxes, truth, positive, place):
    def update(b, n):
        noised = [min(max(float(x), 0), 1) for x in corners(boxes[b, n])]
        true = [float(x) for x in corners(truth[b, n])]
        if positive[b, n]:
            room = [max(noised[0], true[0]), max(noised[1], true[1]), min(noised[2], true[2]), min(noised[3], true[3])]
        else:
            room = largest(strips(noised, true)) or largest(strips([0, 0, 1, 1], true)) or noised
        u, v = (0.05 + 0.9 * float(x) for x in place[b, n])
        point = [room[0] + u * (room[2] - room[0]), room[1] + v * (room[3] - room[1])]
        return salient_around(torch.tensor(point, dtype=torch.float64), boxes[b, n], geometry.grid)

    return as_salient(every(boxes, update))


def strips(box, hidden):
    """What of a box is left of, above, right of and below another."""
    x0, y0, x1, y1 = box
    left, top, right, bottom = hidden
    return [
        (x0, y0, min(x1, left), y1),
        (x0, y0, x1, min(y1, top)),
        (max(x0, right), y0, x1, y1),
        (x0, max(y0, bottom), x1, y1),
    ]


def largest(found):
    """The strip of the largest area, or None if all are thinner than 1e-4."""
    areas = [(x1 - x0) * (y1 - y0) for x0, y0, x1, y1 in found if x1 - x0 > 1e-4 and y1 - y0 > 1e-4]
    whole = [strip for strip in found if strip[2] - strip[0] > 1e-4 and strip[3] - strip[1] > 1e-4]
    return whole[areas.index(max(areas))] if areas else None


def case(name, kind, twin, options=(), *, grid=None, gradient=True, **setting):
    options = dict(options)
    scenes = {
        "decode": lambda: scene(**setting),
        "move": lambda: scene(**setting),
        "encode": boxes_scene,
        "start": grid_scene,
        "encode_noised": noised_scene,
    }

    def run(geometry, **given):
        if kind == "start":
            return geometry.start(**given, cell=(0.2, 0.25))
        return getattr(geometry, kind)(**given)

    def make():
        return made("geometry", name, options)

    return Case("geometry", name, options, make, scenes[kind], run, twin, has_gradient=gradient, label=kind)


def middle(geometry, **given):
    """Whatever it was: the middle of the image."""
    return Reference(torch.full((2, QUERIES, 2), 0.5, dtype=torch.float64))


def only_point(geometry, boxes):
    return Reference(boxes[..., :2])


def box_started(geometry, points, sides, corners):
    def update(b, n):
        (x, y), (left, top, right, bottom) = points[b, n], sides[b, n]
        half = ((left + right) / 2, (top + bottom) / 2)
        return [torch.stack((x + right - half[0], y + bottom - half[1])), torch.stack(half * 2)]

    return Reference(*every(points, update))


def salient_started(geometry, points, sides, corners):
    cell = torch.tensor([0.2, 0.25], dtype=torch.float64).expand(2, QUERIES, 2)
    return SalientReference(point=points, sides=sides, origin=corners, cell=cell, previous=points)


GRID = {"grid": [ROWS, COLUMNS]}
SMALL_HEADS = salient_decoded(own_cell=False, previous=True)
OWN_HEADS = salient_decoded(own_cell=True, previous=True)
CURRENT_HEADS = salient_decoded(own_cell=True, previous=False)
CORRECTED = {**GRID, "head_cell": "own", "head_start": "current", "offset_unit": "cell"}

CASES = [
    case("none", "decode", none_decoded, sides=False),
    case("none", "encode", middle, gradient=False),
    case("none", "start", middle, gradient=False),
    case("box", "decode", box_decoded),
    case("box", "decode", box_decoded, {"eps": 1e-2, "predicted_eps": 1e-5}),
    case("box", "move", box_moved, {"eps": 1e-5}),
    case("box", "move", box_moved, {"eps": 1e-5, "predicted_eps": 1e-2}),
    case("box", "encode", lambda geometry, boxes: centered(boxes)),
    case("box", "start", box_started),
    case("point", "decode", point_decoded, sides=False),
    case("point", "decode", point_decoded, {"refined": True, "eps": 1e-3}),
    case("point", "move", moved_as(point_decoded), {"refined": True}, sides=False),
    case("point", "encode", only_point),
    case("point", "start", lambda geometry, points, sides, corners: Reference(points)),
    case("salient_point", "decode", SMALL_HEADS, GRID, salient=True),
    case("salient_point", "decode", OWN_HEADS, salient=True),
    case("salient_point", "decode", OWN_HEADS, {**GRID, "head_cell": "own", "eps": 1e-5}, salient=True),
    case("salient_point", "decode", CURRENT_HEADS, CORRECTED, salient=True),
    case("salient_point", "decode", SMALL_HEADS, {**GRID, "movement": "free"}, salient=True),
    case("salient_point", "decode", OWN_HEADS, {"movement": "fixed"}, salient=True),
    case("salient_point", "move", salient_moved, GRID, salient=True),
    case("salient_point", "move", salient_moved, CORRECTED, salient=True),
    case("salient_point", "move", salient_moved, {"movement": "free"}, salient=True),
    case("salient_point", "move", salient_moved, {"movement": "fixed"}, salient=True),
    case("salient_point", "encode", salient_encoded, GRID),
    case("salient_point", "encode", salient_encoded),
    case("salient_point", "start", salient_started),
    case("salient_point", "encode_noised", salient_noised, gradient=False),
]
