"""What all charts share: their colours on light and dark ground, and their frame."""

from __future__ import annotations

import io
import warnings
from typing import TYPE_CHECKING, Literal

from detrkit.drawing.labels import font_of
from detrkit.wording import in_a_line

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.font_manager import FontProperties

SIZE = 20  # any: fonts are told apart by their files
Theme = Literal["light", "dark"]
THEMES: tuple[Theme, ...] = ("light", "dark")
# Okabe and Ito's colours, which colour-blind readers tell apart; line styles go on where they end.
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#8C6BB1", "#7F7F7F")
_STYLES = ("-", "--", ":", "-.")
_INK = {"light": ("#ffffff", "#1f2328", "#d0d7de"), "dark": ("#1d2127", "#e6e8eb", "#3a414b")}


def line_look(index: int) -> dict:
    """Colour and style of the line at `index`, as keywords of matplotlib's plot."""
    return {"color": _COLOURS[index % len(_COLOURS)], "linestyle": _STYLES[index // len(_COLOURS) % len(_STYLES)]}


def literal(name: str) -> str:
    """A name as matplotlib shows it: in one line, not too long, and with its dollars, which would begin a formula."""
    return in_a_line(name, 60).replace("$", r"\$")


def font_properties(text: str) -> FontProperties | None:
    """A font of the system for letters that matplotlib's own has not; None where none is needed, or there."""
    from matplotlib.font_manager import FontProperties

    usual, path = font_of(SIZE).path, font_of(SIZE, text).path
    return FontProperties(fname=path) if isinstance(path, str) and path != usual else None


def ink(theme: Theme) -> str:
    """The colour of words."""
    return _INK[theme][1]


def new_figure(width: float, height: float, theme: Theme) -> Figure:
    """A figure of so many inches, without a window."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained", facecolor=_INK[theme][0])
    FigureCanvasAgg(figure)
    return figure


def frame(axis: Axes, theme: Theme, *, x: str, y: str = "") -> None:
    """Name the axes, begin both at zero, and draw a light grid without a box."""
    paper, words, grid = _INK[theme]
    axis.set_xlabel(x, color=words)
    axis.set_ylabel(y, color=words)
    axis.set_xlim(left=0)
    axis.set_ylim(bottom=0)
    axis.set_facecolor(paper)
    axis.grid(color=grid, linewidth=0.6)
    axis.tick_params(colors=words)
    for side, spine in axis.spines.items():
        spine.set_visible(side in ("left", "bottom"))
        spine.set_color(grid)


def to_png(figure: Figure, dots: int = 120) -> bytes:
    """The figure as a PNG at so many dots an inch; letters that no font has become boxes, without a warning."""
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from")
        figure.savefig(buffer, format="png", dpi=dots, facecolor=figure.get_facecolor())
    return buffer.getvalue()
