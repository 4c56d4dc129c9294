"""How figures look in print: column widths, type, colours that the colour-blind can tell apart."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from paper_figures.data import of
from verify.report import options
from verify.report.style import COLOURS, DASHES, MARKERS, RC, new_figure

COLUMN, PAGE = 3.25, 6.75
"""widths of a column and of a page at the usual conferences, in inches"""
TITLES = options.TITLES | {"initial_std": "initial std"}
ORDERED = ("#440154", "#31688E", "#1F9E89", "#8FBC24")
"""for values in an order, from viridis, dark to light"""
PRINT = RC | {"svg.fonttype": "none", "pdf.fonttype": 42, "figure.facecolor": "white", "savefig.facecolor": "white"}
COLOUR = COLOURS | {"initial_std": "#E69F00"}
DASH, MARKER = DASHES | {"initial_std": (0, (3, 1, 1, 1))}, MARKERS | {"initial_std": "v"}


GUIDE: dict[str, Any] = {"color": "#888888", "lw": 0.8, "ls": ":"}
"""a line at a value that means something"""


@contextmanager
def page(width: float, height: float) -> Iterator[Figure]:
    """An empty figure in this style, in inches."""
    with rc_context(PRINT):
        figure = new_figure(width, height)
        figure.set_layout_engine("constrained", hspace=0.06)
        yield figure


def lines(axes: Axes, data: xr.Dataset, variable: str, colour: str, smoothed: int = 20, label: str = "") -> None:
    """Every run as a thin line as recorded, and the median over runs of their running means as a thick one."""
    runs = data[variable].transpose("step", "run")
    axes.plot(data["step"], runs, color=colour, lw=0.4, alpha=0.45)
    axes.plot(data["step"], _running_mean(runs, smoothed).median("run"), color=colour, lw=1.4, label=label)


def band(axes: Axes, data: xr.Dataset, variable: str, colour: str, smoothed: int = 20, **line: Any) -> None:
    """Median over runs of their running means, and what 80 % of the runs lie within."""
    spread(axes, _running_mean(data[variable].transpose("step", "run"), smoothed), "step", colour, **line)


def spread(axes: Axes, found: xr.DataArray, along: str, colour: str, **line: Any) -> None:
    """Median over runs along a dimension, and what 80 % of the runs lie within."""
    low, middle, high = found.quantile([0.1, 0.5, 0.9], dim="run").transpose("quantile", along)
    axes.fill_between(found[along], low, high, color=colour, alpha=0.2, lw=0)
    axes.plot(found[along], middle, color=colour, **line)


def _running_mean(runs: xr.DataArray, steps: int) -> xr.DataArray:
    smooth = pd.DataFrame(runs.to_numpy()).rolling(steps, min_periods=1, center=True).mean()
    return runs.copy(data=smooth.to_numpy())


def means(axes: Axes, data: xr.Dataset, along: str, variable: str, **line: Any) -> None:
    """The mean over runs at every value of what they are drawn along."""
    found = data[variable].groupby(data[along]).mean()
    axes.plot(found[along], found, **line)


def strip(axes: Axes, place: float, found: np.ndarray, colour: str) -> None:
    """Values as points side by side where they are many, their mean as a bar across."""
    beside = np.random.default_rng(0).uniform(-0.16, 0.16, len(found)) if len(found) > 1 else np.zeros(1)
    axes.plot(place + beside, found, "o", ms=3, color=colour, alpha=0.55, mew=0)
    axes.plot([place - 0.28, place + 0.28], [np.mean(found)] * 2, color=colour, lw=1.8, solid_capstyle="butt")


def strips(axes: Axes, data: xr.Dataset, variable: str, label: str, names: list, colours: dict) -> None:
    """A strip for each value of a label."""
    for place, name in enumerate(names):
        strip(axes, place, of(data, **{label: name})[variable].to_numpy(), colours[name])


def log_y(axes: Axes) -> None:
    """A logarithmic axis of what is drawn by now, with a few ticks however many decades it spans."""
    axes.set_yscale("log")
    low, high = axes.get_ylim()
    few = np.log10(high / low) < 2
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if few else (1,), numticks=7))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.yaxis.set_minor_formatter(NullFormatter())
