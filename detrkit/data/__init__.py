"""Data sets, from files (or from nothing: the shapes) to padded batches."""

from detrkit.data.batch import Batch, normalise
from detrkit.data.coco_source import CocoSource
from detrkit.data.dataset import Dataset, DataSource
from detrkit.data.decode import decode
from detrkit.data.loader import Loader, SampleKey
from detrkit.data.records import Category, Fault, Records
from detrkit.data.shapes import ShapesSource

__all__ = [
    "Batch",
    "Category",
    "CocoSource",
    "DataSource",
    "Dataset",
    "Fault",
    "Loader",
    "Records",
    "SampleKey",
    "ShapesSource",
    "decode",
    "normalise",
]
