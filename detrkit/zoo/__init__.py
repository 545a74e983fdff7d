"""Checkpoints of other codes in our names, and the published results."""

from detrkit.zoo.convert import Conversion, convert, match
from detrkit.zoo.fitting import Fitted, fit

__all__ = ["Conversion", "Fitted", "convert", "fit", "match"]
