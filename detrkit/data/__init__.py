"""Data sets, from files (or from nothing: the shapes) to padded batches."""

from detrkit.data.batch import Batch, normalise
from detrkit.data.dataset import Dataset, DataSource
from detrkit.data.decode import decode
from detrkit.data.loader import Loader, SampleKey
from detrkit.data.records import Category, Fault, Records

__all__ = [
    "Batch",
    "Category",
    "DataSource",
    "Dataset",
    "Fault",
    "Loader",
    "Records",
    "SampleKey",
    "decode",
    "normalise",
]
