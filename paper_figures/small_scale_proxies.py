"""Figures of "Small-scale proxies for large-scale Transformer training instabilities", from our own ladder of sizes."""

from typing import Any

import numpy as np
import pandas as pd
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from paper_figures import style
from paper_figures.data import of, series, summaries, values
from paper_figures.figure import PaperFigure
from paper_figures.style import ORDERED
from verify.claims.evidence import Evidence, contextless_loss
from verify.claims.scale import Scale
from verify.claims.small_scale_proxies import DIVERGING_LOGIT, gradient_rms, sensitivity
from verify.claims.small_scale_runs import (
    drift_runs,
    epsilon_runs,
    forced_runs,
    ladder,
    mup_runs,
    qk_norm_runs,
    shape_runs,
    warmup_runs,
)
from verify.report.style import legend

FINAL, RATE = "final loss (nats per token)", "learning rate"
_ATTENTION = {"standard": ("#D55E00", "o", "standard"), "qk_norm": ("#0072B2", "s", "QK norm")}
_LOSSES = ("final_loss", "initial_loss")


def _with_sensitivity(found: xr.Dataset, by: tuple[str, ...]) -> xr.Dataset:
    """And S of every group of runs, in nats, along `group`."""
    table = found.to_dataframe().reset_index()
    groups, scores = zip(*((key, sensitivity(rows)) for key, rows in table.groupby(list(by), sort=False)), strict=True)
    labels = {f"group_{name}": ("group", [key[place] for key in groups]) for place, name in enumerate(by)}
    numbers = {
        f"S_{name}": ("group", np.array([getattr(score, name) for score in scores]))
        for name in ("value", "low", "high")
    }
    return found.assign(numbers | {"contextless": contextless_loss()}).assign_coords(labels)


def _rates(evidence: Evidence, scale: Scale) -> xr.Dataset:
    return _with_sensitivity(summaries(evidence, ladder(scale), _LOSSES), ("size", "attention"))


def _curves(axes: Axes, data: xr.Dataset, by: str, x: str = "learning_rate", y: str = "final_loss") -> None:
    """Points of seeds and lines of their means, against a logarithmic axis."""
    for name, colour in zip(values(data, by), ORDERED, strict=False):
        runs = of(data, **{by: name})
        axes.plot(runs[x], runs[y], "o", ms=2.5, color=colour, alpha=0.5, mew=0)
        style.means(axes, runs, x, y, color=colour, label=str(name))
    axes.set_xscale("log")


def _scores(data: xr.Dataset, chosen: np.ndarray) -> tuple[np.ndarray, list[np.ndarray]]:
    """S of those groups, and how far its interval reaches below and above."""
    value, low, high = (data[f"S_{name}"].to_numpy()[chosen] for name in ("value", "low", "high"))
    return value, [value - low, high - value]


def _draw_rates(data: xr.Dataset) -> Figure:
    with style.page(style.PAGE, 2.4) as figure:
        *panels, last = figure.subplots(1, 3, width_ratios=(1, 1, 0.8))
        panels[1].sharey(panels[0])
        for axes, (attention, (_, _, title)) in zip(panels, _ATTENTION.items(), strict=True):
            _curves(axes, of(data, attention=attention), "size")
            axes.axhline(float(data["contextless"]), **style.GUIDE)
            axes.set(xlabel=RATE, ylabel=FINAL if axes is panels[0] else "")
            axes.set_title(title, fontsize=8)
        sizes = values(data, "size")
        for attention, (colour, marker, title) in _ATTENTION.items():
            found, reach = _scores(data, data["group_attention"].to_numpy() == attention)
            last.errorbar(range(len(sizes)), found, reach, color=colour, marker=marker, ms=4, capsize=2, label=title)
        last.set_xticks(range(len(sizes)), sizes)
        last.set(xlabel="layers x width", ylabel="LR sensitivity S (nats)", ylim=(0, None))
        last.set_xlim(-0.4, len(sizes) - 0.6)
        last.legend(loc="lower right")
        legend(figure, panels[0])
    return figure


def _logits(evidence: Evidence, scale: Scale) -> xr.Dataset:
    found = summaries(evidence, ladder(scale), ("final_loss", "largest_attention_logit"))
    return found.assign(contextless=contextless_loss())


def _draw_logits(data: xr.Dataset) -> Figure:
    with style.page(style.PAGE, 2.5) as figure:
        left, right = figure.subplots(1, 2)
        plain = of(data, attention="standard")
        _curves(left, plain, "size", y="largest_attention_logit")
        left.axhline(DIVERGING_LOGIT, **style.GUIDE)
        left.set(xlabel=RATE, ylabel="largest attention logit\nof a run (1)", yscale="log")
        for attention, (colour, marker, title) in _ATTENTION.items():
            runs = of(data, attention=attention)
            right.plot(
                runs["largest_attention_logit"], runs["final_loss"], marker, ms=3, color=colour, mew=0, alpha=0.7,
                label=title, ls="none",
            )  # fmt: skip
        right.axvline(DIVERGING_LOGIT, **style.GUIDE)
        right.axhline(float(data["contextless"]), **style.GUIDE)
        right.set(xscale="log", xlabel="largest attention logit of a run (1)", ylabel=FINAL)
        for axes in (left, right):
            axes.legend(loc="best")
    return figure


def _drift(evidence: Evidence, scale: Scale) -> xr.Dataset:
    return series(evidence, drift_runs(scale), ("logit_mean", "log_z"), every=max(3 * scale.steps // 150, 1))


def _draw_drift(data: xr.Dataset) -> Figure:
    with style.page(style.PAGE, 2.3) as figure:
        panels = figure.subplots(1, 2)
        for axes, variable, label in zip(
            panels, ("logit_mean", "log_z"), ("mean output logit (1)", "log Z of the output (nats)"), strict=True
        ):
            for name, colour in zip(values(data, "variant"), ("#D55E00", "#0072B2", "#009E73", "#777777"), strict=True):
                style.band(axes, of(data, variant=name), variable, colour, smoothed=3, label=name)
            axes.axhline(0, **style.GUIDE)
            axes.set(xlabel="step", ylabel=label)
        legend(figure, panels[0])
    return figure


def _sensitivities(evidence: Evidence, scale: Scale) -> xr.Dataset:
    """S of every intervention, by what it belongs to."""
    parts = []
    for family, cells in (("warm-up and decay", warmup_runs(scale)), ("shape", shape_runs(scale))):
        found = _with_sensitivity(summaries(evidence, cells, _LOSSES), ("variant",))
        parts.append(_groups(found, family, found["group_variant"].to_numpy()))
    for name, sizes in (("standard", qk_norm_runs(scale)), ("muP", mup_runs(scale))):
        found = _with_sensitivity(summaries(evidence, sizes, _LOSSES), ("size",))
        parts.append(_groups(found, "parametrisation", [f"{name}, {size}" for size in found["group_size"].to_numpy()]))
    return xr.Dataset.from_dataframe(pd.concat(parts, ignore_index=True).rename_axis("group"))


def _groups(found: xr.Dataset, family: str, names: Any) -> pd.DataFrame:
    numbers = {f"S_{name}": found[f"S_{name}"].to_numpy() for name in ("value", "low", "high")}
    return pd.DataFrame({"family": family, "name": names, **numbers})


def _draw_sensitivities(data: xr.Dataset) -> Figure:
    families = list(dict.fromkeys(data["family"].to_numpy().tolist()))
    with style.page(style.PAGE, 2.2) as figure:
        panels = figure.subplots(1, len(families))
        for axes, family in zip(panels, families, strict=True):
            chosen = np.flatnonzero(data["family"].to_numpy() == family)
            found, reach = _scores(data, chosen)
            rows = np.arange(len(chosen))
            axes.errorbar(found, rows, xerr=reach, fmt="o", ms=4, capsize=2, color="#0072B2")
            axes.set_yticks(rows, data["name"].to_numpy()[chosen].tolist())
            axes.set(ylim=(len(chosen) - 0.5, -0.5), xlim=(0, None), xlabel="LR sensitivity S (nats)")
            axes.set_title(family, fontsize=8)
    return figure


def _epsilon(evidence: Evidence, scale: Scale) -> xr.Dataset:
    cells = qk_norm_runs(scale)
    levels = np.array([gradient_rms(evidence.dataset(cell)) for cell in cells])
    found = summaries(evidence, cells, ("final_loss",)).assign(gradient_rms=("run", levels))
    losses = summaries(evidence, epsilon_runs(scale), ("final_loss",)).rename(
        run="epsilon_run", final_loss="epsilon_loss", seed="epsilon_seed"
    )
    return found.merge(losses, compat="equals")


def _draw_epsilon(data: xr.Dataset) -> Figure:
    with style.page(style.PAGE, 2.3) as figure:
        left, right = figure.subplots(1, 2)
        _curves(left, data, "size", y="gradient_rms")
        left.set(xlabel=RATE, yscale="log", ylabel="gradient's root mean square\n(nats per token)")
        left.legend(loc="best")
        epsilons = sorted(set(data["epsilon"].to_numpy().tolist()))
        for place, epsilon in enumerate(epsilons):
            losses = data["epsilon_loss"].to_numpy()[data["epsilon"].to_numpy() == epsilon]
            style.strip(right, place, losses, "#0072B2")
        right.set_xticks(range(len(epsilons)), [f"{epsilon:g}" for epsilon in epsilons])
        right.set(xlabel="Adam's epsilon (nats per token)", ylabel=FINAL)
    return figure


def _forced(evidence: Evidence, scale: Scale) -> xr.Dataset:
    return summaries(evidence, forced_runs(scale), ("final_loss",))


def _draw_forced(data: xr.Dataset) -> Figure:
    with style.page(style.COLUMN, 2.2) as figure:
        axes = figure.subplots()
        axes.plot(data["forced_logit"], data["final_loss"], "o", ms=3, color="#0072B2", alpha=0.6, mew=0)
        style.means(axes, data, "forced_logit", "final_loss", color="#0072B2")
        axes.set(xscale="log", xlabel="logit that is forced (1)", ylabel=FINAL)
    return figure


FIGURES = (
    PaperFigure(
        "ssp_rates", "figure 1 [P]: loss against rate and LR sensitivity by size, without and with QK norm",
        "The same at three sizes; points are seeds, lines their means. Dotted: the entropy of a token, the loss of a "
        "model without context. S with its interval.",
        _rates, _draw_rates, ("SSP-1", "SSP-2"), (ladder,),
    ),
    PaperFigure(
        "ssp_logits", "figures 2 and 9 [P]: attention logits by rate and size, and the loss against them",
        "Largest attention logit of a run against the rate, without QK norm, and the final loss against it; dotted at "
        "1e4, above which all of the paper's runs diverge, and at the entropy of a token.",
        _logits, _draw_logits, ("SSP-3", "SSP-4"), (ladder,),
    ),
    PaperFigure(
        "ssp_drift", "figures 3 and 4 [P]: output logits drift without weight decay or z-loss",
        "Mean output logit and log Z at the second highest rate, with neither, with z-loss alone and with decay alone, "
        "in 64 tokens that are all in use; and with neither in the 256 bytes, most of which never come. Median over "
        "seeds, and 80 % of them.",
        _drift, _draw_drift, ("SSP-5",), (drift_runs,),
    ),
    PaperFigure(
        "ssp_sensitivities", "figures 5 to 8 [P]: warm-up, independent decay, width against depth, muP",
        "LR sensitivity S with its interval of each intervention, all with QK norm.",
        _sensitivities, _draw_sensitivities, ("SSP-6", "SSP-7", "SSP-8"), (warmup_runs, shape_runs, ladder, mup_runs),
    ),
    PaperFigure(
        "ssp_epsilon", "figures 11 to 13 [P]: gradients shrink towards Adam's epsilon",
        "Root mean square of all matrices' gradients over the last 20 steps, and the final loss with three epsilons at "
        "the largest size and second highest rate.",
        _epsilon, _draw_epsilon, ("SSP-9",), (ladder, epsilon_runs),
    ),
    PaperFigure(
        "ssp_forced", "figure 10 [P]: attention logits forced to a size",
        "Final loss where every head's largest logit is forced to that size throughout; points are seeds.",
        _forced, _draw_forced, ("SSP-10",), (forced_runs,),
    ),
)  # fmt: skip
