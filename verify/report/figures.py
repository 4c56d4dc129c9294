"""The report's figures: functions of data and Axes, and the figures that they make up."""

from collections.abc import Mapping

import numpy as np
import pandas as pd
import xarray as xr
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator

from verify.measurement.compare import root_mean_square_interval
from verify.report.options import METHODS, TITLES
from verify.report.style import COLOURS, DASHES, INK, MARKERS, RC, legend, new_figure

Runs = Mapping[tuple[str, float, int], xr.Dataset]


def gradient_panel(axes: Axes, analysis: xr.Dataset, method: str, bounded: bool) -> Axes:
    """Gradient norm at every place: the paper's chain of bounds, the prediction, the measurement with its interval."""
    measured = analysis["measured_gradient_norm"].to_numpy()
    low, middle, high = root_mean_square_interval(measured)
    places = np.arange(len(middle))
    chain = np.concatenate([np.cumsum(np.log10(analysis["bound"].to_numpy())[::-1])[::-1], [0.0]])
    if bounded:
        axes.plot(places, 10 ** (chain + np.log10(middle[-1])), color="#888888", ls="--", lw=1.0, label="bound (chain)")
        axes.set_title(TITLES[method])
    axes.fill_between(places, low, high, color=COLOURS[method], alpha=0.3, lw=0)
    shown = slice(None, None, max(len(places) // 16, 1))
    axes.plot(places[shown], middle[shown], MARKERS[method], ms=3.5, color=COLOURS[method],
              label=f"measured, {len(measured)} seeds")  # fmt: skip
    axes.plot(places, analysis["predicted_gradient_norm"], color=INK, lw=1.0, label="predicted")
    axes.set(yscale="log")
    axes.yaxis.set_major_locator(LogLocator(numticks=6))
    axes.xaxis.set_major_locator(MaxNLocator(4, integer=True))
    return axes


def jacobian_panel(axes: Axes, analysis: xr.Dataset, method: str) -> Axes:
    """Excess over 1 of every sub-layer's Jacobian norm: bound and measurement."""
    excess = analysis["jacobian_norm"].to_numpy() - 1
    sublayers = np.arange(excess.shape[1])
    bound = analysis["bound"].to_numpy() - 1
    for start, marker, name in ((0, "o", "attention"), (1, "^", "feed-forward")):
        axes.plot(sublayers[start::2], bound[start::2], color="#888888", ls="--" if start == 0 else ":", lw=1.0,
                  label=f"bound, {name}")  # fmt: skip
        axes.plot(sublayers[start::2], excess.mean(axis=0)[start::2], marker, ms=3, color=COLOURS[method],
                  label=f"measured, {name}")  # fmt: skip
    axes.set(yscale="log", title=TITLES[method])
    axes.xaxis.set_major_locator(MaxNLocator(4, integer=True))
    return axes


def series_panel(axes: Axes, runs: Runs, rate: float, variable: str) -> Axes:
    """Mean over seeds of a training series for every method at one rate, with the seeds' range as a band."""
    for method in METHODS:
        series = np.array([run[variable].to_numpy() for (m, r, _), run in runs.items() if (m, r) == (method, rate)])
        smooth = pd.DataFrame(series.T).rolling(5, min_periods=1).mean()
        steps = np.arange(len(smooth))
        axes.fill_between(steps, smooth.min(axis=1), smooth.max(axis=1), color=COLOURS[method], alpha=0.15, lw=0)
        axes.plot(steps, smooth.mean(axis=1), color=COLOURS[method], ls=DASHES[method], label=TITLES[method])
    axes.set_title(f"rate {rate:g}")
    axes.xaxis.set_major_locator(MaxNLocator(4, integer=True))
    return axes


def rate_panel(axes: Axes, table: pd.DataFrame, column: str) -> Axes:
    """A number of every run against its rate: the seeds as points, their mean as a line; methods side by side."""
    for place, method in enumerate(METHODS):
        rows = table[table["method"] == method].sort_values("rate")
        shift = 1 + 0.035 * (place - 1.5)
        axes.plot(rows["rate"] * shift, rows[column], MARKERS[method], ms=3, alpha=0.6, color=COLOURS[method])
        mean = rows.groupby("rate")[column].mean()
        axes.plot(mean.index * shift, mean, color=COLOURS[method], ls=DASHES[method], label=TITLES[method])
    rates = sorted(table["rate"].unique())
    axes.set(xscale="log", xlabel="peak learning rate")
    axes.set_xticks(rates, [f"{rate:g}" for rate in rates])
    axes.minorticks_off()
    return axes


def headline(analyses: Mapping[str, xr.Dataset]) -> Figure:
    """How far the bound, how near the prediction: gradient norm by place, a panel a method."""
    with rc_context(RC):
        figure = new_figure(7.2, 4.2)
        panels = figure.subplots(2, len(METHODS), sharey="row", sharex=True)
        for far, close, method in zip(*panels, METHODS, strict=True):
            gradient_panel(far, analyses[method], method, bounded=True)
            gradient_panel(close, analyses[method], method, bounded=False)
        panels[0, 0].set_ylabel("with the bound")
        panels[1, 0].set_ylabel("without")
        figure.supylabel("gradient norm (nats per token)", fontsize=9)
        figure.supxlabel("place in the residual stream (0: embedding)", fontsize=9)
        legend(figure, panels[0, 0])
        return figure


def near(analyses: Mapping[str, xr.Dataset]) -> Figure:
    """The same without the bound: prediction and measurement at their own scale."""
    with rc_context(RC):
        figure = new_figure(7.2, 2.9)
        panels = figure.subplots(1, 2)
        for axes, name, label in zip(
            panels, ("gradient_norm", "shortcut_std"), ("gradient norm (nats per token)", "shortcut std"), strict=True
        ):
            for method in METHODS:
                low, middle, high = root_mean_square_interval(analyses[method][f"measured_{name}"].to_numpy())
                places = np.arange(len(middle))
                axes.fill_between(places, low, high, color=COLOURS[method], alpha=0.25, lw=0)
                axes.plot(places[::3], middle[::3], MARKERS[method], ms=3, color=COLOURS[method], label=TITLES[method])
                axes.plot(places, analyses[method][f"predicted_{name}"], color=INK, lw=0.8)
            axes.set(yscale="log", ylabel=label, xlabel="place in the residual stream")
            axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
        legend(figure, panels[0])
        return figure


def jacobians(analyses: Mapping[str, xr.Dataset]) -> Figure:
    """Bound and measured norm of every sub-layer's Jacobian, a panel a method."""
    with rc_context(RC):
        figure = new_figure(7.2, 2.9)
        panels = figure.subplots(1, len(METHODS), sharey=True)
        for axes, method in zip(panels, METHODS, strict=True):
            jacobian_panel(axes, analyses[method], method)
        panels[0].set_ylabel("Jacobian norm - 1")
        figure.supxlabel("sub-layer (0: first attention)", fontsize=9)
        legend(figure, panels[0])
        return figure


def training(runs: Runs, variable: str, label: str, rates: tuple[float, ...]) -> Figure:
    """A series of training for every method, a panel a rate."""
    with rc_context(RC):
        figure = new_figure(7.2, 2.7)
        panels = np.atleast_1d(figure.subplots(1, len(rates), sharey=True))
        for axes, rate in zip(panels, rates, strict=True):
            series_panel(axes, runs, rate, variable)
        if variable == "gradient_norm":
            panels[0].set_yscale("log")
        panels[0].set_ylabel(label)
        figure.supxlabel("step", fontsize=9)
        legend(figure, panels[0])
        return figure


def by_rate(table: pd.DataFrame) -> Figure:
    """Held-out loss and largest gradient norm against the rate."""
    with rc_context(RC):
        figure = new_figure(7.2, 2.8)
        first, second = figure.subplots(1, 2)
        rate_panel(first, table, "held_out_loss").set_ylabel("held-out loss (nats per token)")
        rate_panel(second, table, "largest_gradient_norm").set(
            ylabel="largest gradient norm\n(nats per token)", yscale="log"
        )
        legend(figure, first)
        return figure
