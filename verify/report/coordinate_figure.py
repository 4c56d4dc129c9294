"""The picture of a coordinate check: every statistic against width or depth, with the fitted power laws."""

import numpy as np
import pandas as pd
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter, NullLocator

from verify.measurement.exponents import PLACES, Axis, lines
from verify.report.style import INK, RC, new_figure

# line: (name, colour, marker); colours of Okabe and Ito 2008, a grey instead of their yellow, and one of Tol's
_LOOKS = {
    "first place": ("first place", INK, "o"),
    "middle place": ("middle place", "#009E73", "s"),
    "last place": ("last place", "#0072B2", "^"),
    "attention.query": ("query", "#0072B2", "s"),
    "attention.key": ("key", "#56B4E9", "^"),
    "attention.value": ("value", "#009E73", "v"),
    "attention.output": ("attn. output", "#CC79A7", "P"),
    "attention.logit": ("attn. logit", INK, "*"),
    "feed_forward.up": ("up", "#E69F00", "<"),
    "feed_forward.gate": ("gate", "#888888", "X"),
    "feed_forward.down": ("down", "#882255", ">"),
    "embedding": ("embedding", INK, "o"),
    "head": ("head", "#D55E00", "D"),
}
_MATRICES = tuple(line for line in _LOOKS if line not in PLACES)

# statistic, lines, title
_PANELS = (
    ("activation", (*PLACES, "head"), "stream: std; head: RMS of logits"),
    ("change", _LOOKS, "change since step 0, RMS"),
    ("activation", tuple(line for line in _MATRICES if line != "head"), "output of linear layers, RMS"),
    ("decay", _LOOKS, "share of W that decay takes (1 per step)"),
    ("gradient", PLACES, "gradient of the stream, RMS (nats per token)"),
    ("gradient", _MATRICES, "gradient of W, RMS (nats per token)"),
    ("parameter", _LOOKS, "W, RMS"),
    ("update", _LOOKS, "update of W in a step, RMS"),
    ("effective_rate", _LOOKS, "effective rate: update over W"),
)
_UNITS = {"width": "width (coordinates)", "depth": "depth (blocks)"}


def draw(table: pd.DataFrame, found: pd.DataFrame, note: str) -> Figure:
    """Panels of a table of `measure_coordinates` and its `exponents`; lines are the fits, legends say their slopes.

    Points: geometric means over seeds at the last step, with the seeds' range. note: text beside the panels.
    """
    axis: Axis = found["axis"].iloc[0]
    values, panels = lines(table), []
    for statistic, wanted, title in _PANELS:
        fits = found[(found["statistic"] == statistic) & found["line"].isin(list(wanted))]
        if len(fits):
            panels.append((title, values[values["statistic"] == statistic], fits))
    rows = len(panels) // 2 + 1
    with rc_context(RC):
        figure = new_figure(7.2, 0.4 + 1.65 * rows)
        places = figure.subplots(rows, 2).ravel()
        for place, (title, own, fits) in zip(places, panels, strict=False):
            power_law_panel(place, own, fits, axis).set_title(title, loc="left")
        for place in places[len(panels) :]:
            place.axis("off")
        places[len(panels)].text(0, 0.95, note, va="top", fontsize=8)
        figure.supxlabel(_UNITS[axis], fontsize=9)
        return figure


def power_law_panel(axes: Axes, values: pd.DataFrame, fits: pd.DataFrame, axis: Axis) -> Axes:
    """One statistic against the size, both logarithmic; the values reach over a decade at least, so that flat is flat.

    values: rows of `lines` of one statistic. fits: rows of `exponents` of that statistic, the lines to draw.
    """
    sizes, everything = sorted(set(values[axis])), list[float]()
    order = {line: rank for rank, line in enumerate(_LOOKS)}
    for _, fit in fits.sort_values("line", key=lambda names: names.map(order)).iterrows():
        name, colour, marker = _LOOKS[fit["line"]]
        drawn = values[(values["line"] == fit["line"]) & (values["value"] > 0) & np.isfinite(values["value"])]
        by_size = drawn.assign(log=np.log(drawn["value"])).groupby(axis)["log"]
        low, middle, high = np.exp(by_size.min()), np.exp(by_size.mean()), np.exp(by_size.max())
        slope = f"{signed(fit['slope'])} ± {fit['high'] - fit['slope']:.2f}"
        label = f"{name}  {'diverged' if fit['verdict'] == 'diverged' else slope}"
        axes.errorbar(middle.index, middle, [middle - low, high - middle], fmt=marker, ms=3, lw=0.6, color=colour,
                      label=label)  # fmt: skip
        if np.isfinite(fit["slope"]):
            centre = np.log(drawn[axis]).mean(), np.log(drawn["value"]).mean()
            axes.plot(sizes, np.exp(centre[1] + fit["slope"] * (np.log(sizes) - centre[0])), lw=0.8, color=colour)
        everything.extend((low.min(), high.max()))
    axes.set(xscale="log", yscale="log")
    if everything:
        bottom, top = np.log10(np.nanmin(everything)), np.log10(np.nanmax(everything))
        reach = max(0.55 * (top - bottom), 0.5)
        axes.set_ylim(10 ** ((bottom + top) / 2 - reach), 10 ** ((bottom + top) / 2 + reach))
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 3) if reach < 0.75 else (1,), numticks=6))
    axes.yaxis.set_minor_formatter(NullFormatter())
    axes.set_xticks(sizes, [str(size) for size in sizes])
    axes.xaxis.set_minor_locator(NullLocator())
    axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), fontsize=6.5, handletextpad=0.1, labelspacing=0.25,
                borderaxespad=0.2)  # fmt: skip
    return axes


def signed(value: float) -> str:
    """With two decimals and a sign, which 0 has not; nan as a dash."""
    if np.isnan(value):
        return "-"
    return f"{value:+.2f}" if abs(value) >= 0.005 else "0.00"
