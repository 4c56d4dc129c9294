"""How the report's figures look: a palette that the colour-blind can tell apart, ink that follows the page's colour.

Text, axes and ticks are drawn in a colour that `to_svg` turns into `currentColor`, so one SVG reads in light and dark.
"""

import io
import re
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

# Okabe and Ito 2008
COLOURS = {"vanilla": "#D55E00", "detach": "#CC79A7", "layer_norm": "#009E73", "scaled": "#0072B2"}
DASHES = {"vanilla": "-", "detach": (0, (5, 2)), "layer_norm": (0, (1, 1)), "scaled": "-."}
MARKERS = {"vanilla": "o", "detach": "s", "layer_norm": "^", "scaled": "D"}
INK = "#010203"
RC: dict[Any, Any] = {
    "font.family": "sans-serif", "font.size": 9, "axes.titlesize": 9, "axes.labelsize": 9, "legend.fontsize": 8,
    "xtick.labelsize": 8, "ytick.labelsize": 8, "text.color": INK, "axes.edgecolor": INK, "axes.labelcolor": INK,
    "xtick.color": INK, "ytick.color": INK, "axes.spines.top": False, "axes.spines.right": False,
    "axes.linewidth": 0.6, "lines.linewidth": 1.4, "legend.frameon": False, "svg.fonttype": "path",
    "svg.hashsalt": "spikeless", "figure.facecolor": "none", "axes.facecolor": "none", "savefig.facecolor": "none",
}  # fmt: skip


def new_figure(width: float, height: float) -> Figure:
    """An empty figure, sizes in inches."""
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasSVG(figure)
    return figure


def legend(figure: Figure, axes: Axes, rows: int = 1) -> None:
    """That of one panel, above all of them, in so many rows of equal length."""
    handles, labels = axes.get_legend_handles_labels()
    order = np.arange(len(labels)).reshape(rows, -1).T.ravel()
    figure.legend(
        [handles[i] for i in order], [labels[i] for i in order], loc="outside upper center", ncols=len(labels) // rows
    )


def to_svg(figure: Figure, name: str, description: str) -> str:
    """The figure as an inline SVG element whose ids start with `name` and whose ink follows the page."""
    buffer = io.StringIO()
    with rc_context(RC):
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r'\bid="', f'id="{name}-', svg)
    svg = re.sub(r'((?:xlink:)?href="#|url\(#)', rf"\g<1>{name}-", svg)
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = svg.replace(INK, "currentColor")
    return svg.replace("<svg", f'<svg role="img" aria-label="{description}"', 1)
