"""Official checkpoints in our names, and the published results."""

from detrkit.zoo.convert import Conversion, convert, match

__all__ = ["Conversion", "convert", "match"]
