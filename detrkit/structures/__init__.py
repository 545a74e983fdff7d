"""What crosses the border between two parts of a detector.

Shape legend, used in every docstring of the package:

    B images    N queries    L memory tokens    D channels    H heads    K classes    T objects
    Y decoder layers         h, w the height and width of a feature map
"""

# In the order of the loop, in which the site shows them.
# isort: off
from detrkit.structures.memory import AxisCodes, Extent, FeatureMap, Memory, require_bool, require_map_mask
from detrkit.structures.reference import Reference
from detrkit.structures.queries import Queries, QueryLayout, QueryLimit, QueryPosition, Relation
from detrkit.structures.output import SILENT, Extra, Output
from detrkit.structures.targets import Sizes, Target, Targets
from detrkit.structures.matches import Matches

__all__ = [
    "SILENT",
    "AxisCodes",
    "Extent",
    "Extra",
    "FeatureMap",
    "Matches",
    "Memory",
    "Output",
    "Queries",
    "QueryLayout",
    "QueryLimit",
    "QueryPosition",
    "Reference",
    "Relation",
    "Sizes",
    "Target",
    "Targets",
    "require_bool",
    "require_map_mask",
]
