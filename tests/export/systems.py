"""Small detectors of each system, with weights that say something, and images to compare them on."""

import torch

import detrkit
from detrkit.data import Category
from detrkit.data.batch import normalise
from detrkit.export.card import Card
from detrkit.export.form import ExportedForm, Form
from detrkit.trained import Trained
from tests.small import SMALL

COUNT, GRID = "queries.count=30", "queries.grid=[5, 6]"
POINTS = ["queries.points=10", "queries.patterns=3"]
SYSTEMS = {
    "detr_r50_500ep": [COUNT],
    "conditional_detr_r50_50ep": [COUNT],
    "smca_detr_r50_50ep": [COUNT],
    "anchor_detr_r50_50ep": POINTS,
    "sam_detr_r50_50ep": [COUNT],
    "sam_detr_smca_r50_50ep": [COUNT],
    "dab_detr_r50_50ep": [COUNT],
    "dn_detr_r50_12ep": [COUNT],
    "dino_ss_r50_12ep": [COUNT],
    "dino_4scale_r50_12ep": [COUNT],
    "deformable_detr_r50_50ep": [COUNT],
    "deformable_detr_4scale_r50_50ep": [COUNT],
    "deformable_detr_4scale_refined_r50_50ep": [COUNT],
    "deformable_detr_4scale_two_stage_r50_50ep": [COUNT],
    "sap_detr_r50_50ep": [GRID],
    "sap_detr_plus_r50_50ep": [GRID],
    "sap_dn_r50_12ep": [GRID],
    "sap_dino_r50_12ep": [GRID],
    "sap_group_r50_12ep": [GRID],
    "group_detr_r50_12ep": [COUNT],
}
"""A recipe of each, and what keeps it small."""
CLASSES = 5


def trained(name: str) -> Trained:
    """A small detector of five classes.

    Weights are moved off their start, which is zero for many a head, and the last class head's further, so that scores
    tell detections apart; its logits lie around 0 and within 4, as errors are held to absolute limits.
    """
    recipe = detrkit.load_recipe(name, [*SMALL, *SYSTEMS[name], f"detector.classes={CLASSES}", "detect.keep=20"])
    torch.manual_seed(0)
    detector = detrkit.build_detector(recipe).eval()
    with torch.no_grad():
        for key, parameter in detector.named_parameters():
            if not key.startswith("backbone"):
                parameter += 0.02 * torch.randn_like(parameter)
        for head in {id(head): head for head in detector.decoder.head.classes}.values():  # layers may share one
            head.last.weight += 2 * torch.randn_like(head.last.weight)
        batch, mask, _ = images([(190, 240)])
        head.last.bias -= detector(batch, mask).logits[-1].mean((0, 1))
        widest = detector(batch, mask).logits[-1].abs().max()
        for parameter in (head.last.weight, head.last.bias):
            parameter *= min(1.0, 4 / float(widest))
    categories = tuple(Category(label + 1, f"thing {label}") for label in range(CLASSES))
    return Trained(recipe, detector, None, categories, None, None, None)


def form_and_card(one: Trained, form: Form) -> tuple[ExportedForm, Card]:
    """What `detrkit.export.writing.write` takes."""
    module = ExportedForm(one.detector, form)
    return module, Card.of(one, form, module.output_names())


def images(shapes: list[tuple[int, int]], seed: int = 0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """A batch of noise: images of (height, width) each, padded at the right and bottom; mask; sizes of originals."""
    generator = torch.Generator().manual_seed(seed)
    height, width = (max(shape[side] for shape in shapes) for side in (0, 1))
    batch, mask = torch.zeros(len(shapes), 3, height, width), torch.ones(len(shapes), height, width, dtype=torch.bool)
    for index, (h, w) in enumerate(shapes):
        coarse = torch.rand(1, 3, 5, 5, generator=generator) * 255
        batch[index, :, :h, :w] = normalise(torch.nn.functional.interpolate(coarse, (h, w), mode="bicubic")[0].byte())
        mask[index, :h, :w] = False
    return batch, mask, torch.tensor(shapes) * 2
