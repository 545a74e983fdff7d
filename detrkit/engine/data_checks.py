"""What a training asks of its data before it begins."""

from __future__ import annotations

from collections import Counter

from detrkit.data.dataset import DataSource
from detrkit.errors import DataError
from detrkit.recipe import Recipe
from detrkit.structures import QueryLimit
from detrkit.wording import counted, first_of

COCO_DETECTIONS = 100  # of an image, the most that COCO's AP looks at


def with_classes(recipe: Recipe, source: DataSource) -> Recipe:
    """The recipe with the data set's class count, if it does not say one itself.

    Raises DataError if it says fewer than there are.
    """
    classes, found = recipe.get("detector.classes"), len(source.categories)
    if classes is None:
        return recipe.with_values({"detector.classes": found}, source="data set")
    if classes < found:
        raise DataError(
            f"detector.classes is {classes} ({recipe.source('detector.classes')}), but the data set has {found} "
            'classes; give it that many, or "none" to take the count from the data'
        )
    return recipe


def left_out(source: DataSource) -> list[str]:
    """What of each split's images and annotations is lost to faults, and what is odd about a whole split."""
    found = []
    for split, dataset in (("train", source.train), ("val", source.val)):
        found += [f"{split}: {fault.detail}" for fault in dataset.faults if fault.image_id is None and not fault.loses]
        lost = Counter(fault.kind for fault in dataset.faults if fault.loses)
        if lost:
            kinds = ", ".join(f"{kind}: {count}" for kind, count in lost.most_common())
            found.append(f"{lost.total()} images or annotations of {split} are left out ({kinds}); see check-data")
    return found


def unreached(source: DataSource, epochs: int) -> list[str]:
    """Which stages of the augmentation begin after the training has ended."""
    late = [epoch for epoch in source.augment.changes if epoch >= epochs]
    if not late:
        return []
    told = f"data.augment.changes has {late}, but training ends after epoch {epochs}"
    return [f"{told}: it never sees images of the last stage, by which evaluation resizes"]


def require_files(source: DataSource) -> None:
    """Raise DataError if images' files are not there, which a training would meet hours later."""
    for split, dataset in (("train", source.train), ("val", source.val)):
        if missing := dataset.missing_files:
            named = first_of([f"{path} (image {dataset.records.given_id(image_id)})" for image_id, path in missing])
            raise DataError(
                f"{len(missing)} of the {len(dataset)} images of {split} have no file: {named}. "
                "Bring them there, take them out of the annotations, or name the right folder in "
                f"data.{split}.images; `detrkit check-data` names all"
            )


def require_objects(source: DataSource) -> None:
    """Raise DataError if a split has nothing to learn from or to be measured on, with what became of all it had."""
    for split, dataset in (("train", source.train), ("val", source.val)):
        if dataset.records.objects().any():
            continue
        crowd = dataset.records.crowd
        lost = Counter(fault.kind for fault in dataset.faults if fault.loses)
        causes = [f"{kind}: {count}" for kind, count in lost.most_common()]
        if len(crowd):
            causes.insert(0, f"crowd regions (iscrowd = 1), which are neither learned nor found: {len(crowd)}")
        advice = ". An exporter that marks every object as a crowd is mended by iscrowd = 0" if len(crowd) else ""
        raise DataError(
            f"no image of {split} keeps an object ({counted(len(dataset), 'image')}; "
            f"{'; '.join(causes) or 'no annotations at all'}); `detrkit check-data` names each{advice}"
        )


def crowded(source: DataSource, limit: QueryLimit | None) -> list[str]:
    """Where images hold more objects than the detector has queries, or than COCO's evaluation counts detections."""
    found = []
    for split, dataset in (("train", source.train), ("val", source.val)):
        objects = dataset.records.objects()
        lost = "learned" if split == "train" else "found"
        if limit is not None and (over := int((objects > limit.count).sum())):
            found.append(
                f"{counted(over, 'image')} of {split} with up to {objects.max()} objects, and the detector has "
                f"{limit.count} queries, one for each: the rest cannot be {lost}; raise {limit.key}"
            )
        if split == "val" and (over := int((objects > COCO_DETECTIONS).sum())):
            found.append(
                f"{counted(over, 'image')} of {split} with up to {objects.max()} objects: COCO's evaluation counts the "
                f"best {COCO_DETECTIONS} detections of an image, so AP cannot reach 100 there"
            )
    return found
