"""Figures of "Spike No More" (arXiv 2312.16903), on the stand-in of its 13B that the claims are judged on."""

import dataclasses

import numpy as np
import xarray as xr
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from paper_figures import style
from paper_figures.data import of, series, summaries, values
from paper_figures.figure import PaperFigure
from paper_figures.style import COLOUR, DASH, MARKER, ORDERED, TITLES
from theory import bound
from theory.presets import preset
from verify.claims.embedding_scale import length_runs, method_runs, rate_runs
from verify.claims.evidence import Evidence
from verify.claims.scale import Scale
from verify.report.style import legend

NAMES = ("vanilla", "detach", "scaled", "layer_norm")
LOSS, GRADIENT = "loss\n(nats per token)", "gradient norm\n(nats per token)"
SHOWN_SEEDS = 3


def _bounds(evidence: Evidence, scale: Scale) -> xr.Dataset:
    """Of the paper's 1.7B on short sequences, as the bound looks at the stream's std alone; at every scale the same."""
    arch = dataclasses.replace(preset("snm-1.7b").arch, seq_len=64)
    found = {method: bound(dataclasses.replace(arch, embedding=method)).sublayer for method in NAMES}
    return xr.Dataset(
        {"bound": (("embedding", "sublayer"), np.array(list(found.values())), {"units": "1"})},
        {"embedding": list(found), "sublayer": np.arange(len(found["scaled"]))},
    )


def _draw_bounds(data: xr.Dataset) -> Figure:
    with style.page(style.PAGE, 2.4) as figure:
        attention, feed_forward = panels = figure.subplots(1, 2, sharey=True)
        for method in NAMES:
            found = data["bound"].sel(embedding=method).to_numpy()
            for axes, part in ((attention, found[::2]), (feed_forward, found[1::2])):
                axes.plot(
                    np.arange(1, len(part) + 1), part - 1, color=COLOUR[method], ls=DASH[method], label=TITLES[method]
                )
        for axes, title in zip(panels, ("attention", "feed-forward"), strict=True):
            axes.set(title=title, xlabel="layer")
            style.log_y(axes)
            axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
        attention.set_ylabel("bound on the\nJacobian norm, less 1")
        legend(figure, attention)
    return figure


def _curves(evidence: Evidence, scale: Scale) -> xr.Dataset:
    return series(evidence, method_runs(scale), ("loss", "gradient_norm"), seeds=SHOWN_SEEDS)


def _draw_vanilla_and_scaled(data: xr.Dataset) -> Figure:
    with style.page(style.COLUMN, 3.4) as figure:
        first, second = figure.subplots(2, 1, sharex=True)
        for axes, variable, label in ((first, "loss", LOSS), (second, "gradient_norm", GRADIENT)):
            for method in ("vanilla", "scaled"):
                style.lines(axes, of(data, embedding=method), variable, COLOUR[method], label=TITLES[method])
            axes.set_ylabel(label)
        second.set_xlabel("step")
        style.log_y(second)
        legend(figure, first)
    return figure


def _draw_methods(data: xr.Dataset) -> Figure:
    with style.page(style.PAGE, 3.2) as figure:
        panels = figure.subplots(2, len(NAMES), sharex=True, sharey="row")
        for (upper, lower), method in zip(panels.T, NAMES, strict=True):
            runs = of(data, embedding=method)
            style.lines(upper, runs, "loss", COLOUR[method])
            style.lines(lower, runs, "gradient_norm", COLOUR[method])
            upper.set_title(TITLES[method])
            style.log_y(lower)
        panels[0, 0].set_ylabel(LOSS)
        panels[1, 0].set_ylabel(GRADIENT)
        figure.supxlabel("step", fontsize=9)
    return figure


def _places(evidence: Evidence, scale: Scale) -> xr.Dataset:
    """Mean over a twentieth of the run, from five steps on."""
    cells = [cell for cell in method_runs(scale) if cell.labels["embedding"] in ("vanilla", "scaled")]
    found = series(evidence, cells, ("place_gradient_norm",))
    steps = len(found["step"])
    starts = [0, steps // 20, steps // 4, steps // 2, steps - steps // 20]
    parts = [found.isel(step=slice(start, start + max(steps // 20, 1))).mean("step") for start in starts]
    return xr.concat(parts, "start", coords="minimal", compat="override").assign_coords(start=starts)


def _draw_places(data: xr.Dataset) -> Figure:
    with style.page(style.PAGE, 2.6) as figure:
        panels = figure.subplots(1, 2, sharey=True)
        starts = data["start"].to_numpy()
        colours = ["#888888", *ORDERED]
        for axes, method in zip(panels, ("vanilla", "scaled"), strict=True):
            runs = of(data, embedding=method)["place_gradient_norm"]
            for start, colour in zip(starts, colours, strict=True):
                style.spread(axes, runs.sel(start=start), "place", colour, label=f"from step {start}")
            axes.set(title=TITLES[method], xlabel="place in the residual stream (0: embedding)")
            style.log_y(axes)
            axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
        panels[0].set_ylabel(GRADIENT)
        legend(figure, panels[0])
    return figure


def _rates(evidence: Evidence, scale: Scale) -> xr.Dataset:
    return summaries(evidence, rate_runs(scale), ("held_out_loss", "gradient_spikes", "loss_spikes"))


def _draw_rates(data: xr.Dataset) -> Figure:
    with style.page(style.PAGE, 2.5) as figure:
        panels = figure.subplots(1, 2)
        rates = sorted(set(data["learning_rate"].to_numpy()))
        for place, method in enumerate(NAMES):
            runs = of(data, embedding=method)
            shift = 1 + 0.04 * (place - 1.5)
            for axes, variable in zip(panels, ("held_out_loss", "gradient_spikes"), strict=True):
                axes.plot(
                    runs["learning_rate"] * shift, runs[variable], MARKER[method], ms=3, alpha=0.6, mew=0,
                    color=COLOUR[method],
                )  # fmt: skip
                mean = [float(of(runs, learning_rate=rate)[variable].mean()) for rate in rates]
                axes.plot(np.array(rates) * shift, mean, color=COLOUR[method], ls=DASH[method], label=TITLES[method])
        for axes, label in zip(panels, ("held-out loss (nats per token)", "gradient spikes a run"), strict=True):
            axes.set(xscale="log", xlabel="learning rate", ylabel=label)
            axes.set_xticks(rates, [f"{rate:g}" for rate in rates])
            axes.minorticks_off()
        legend(figure, panels[0])
    return figure


def _lengths(evidence: Evidence, scale: Scale) -> xr.Dataset:
    cells = length_runs(scale)
    curves = series(evidence, cells, ("loss", "gradient_norm"), every=2)
    return curves.merge(summaries(evidence, cells, ("gradient_spikes",)), compat="equals")


def _draw_lengths(data: xr.Dataset) -> Figure:
    with style.page(style.PAGE, 2.4) as figure:
        *curves, counts = figure.subplots(1, 3, width_ratios=(1, 1, 0.7))
        lengths = values(data, "length")
        colours = dict(zip(lengths, ORDERED, strict=False))
        for axes, variable, label in zip(curves, ("loss", "gradient_norm"), (LOSS, GRADIENT), strict=True):
            for length in lengths:
                style.band(
                    axes, of(data, length=length), variable, colours[length], smoothed=10, label=f"{length} tokens"
                )
            axes.set(xlabel="step", ylabel=label)
        style.log_y(curves[1])
        style.strips(counts, data, "gradient_spikes", "length", lengths, colours)
        counts.set_xticks(range(len(lengths)), [str(length) for length in lengths])
        counts.set(xlabel="length (tokens)", ylabel="gradient spikes a run")
        legend(figure, curves[0])
    return figure


def _perplexities(evidence: Evidence, scale: Scale) -> xr.Dataset:
    found = summaries(evidence, rate_runs(scale), ("held_out_loss",))
    return found.assign(perplexity=np.exp(found["held_out_loss"]))


def _draw_perplexities(data: xr.Dataset) -> Figure:
    with style.page(style.COLUMN, 2.0) as figure:
        axes = figure.subplots()
        best = {}
        for method in NAMES:
            runs = of(data, embedding=method)
            means = {
                rate: float(of(runs, learning_rate=rate)["perplexity"].mean()) for rate in values(runs, "learning_rate")
            }
            best[method] = min(means, key=lambda rate: means[rate])
        for place, method in enumerate(NAMES):
            found = of(data, embedding=method, learning_rate=best[method])["perplexity"].to_numpy()
            axes.plot(found, np.full(len(found), place), MARKER[method], ms=4, color=COLOUR[method], mew=0, alpha=0.7)
            axes.annotate(
                f"{found.mean():.2f}",
                (found.max(), place),
                xytext=(6, 0),
                textcoords="offset points",
                va="center",
                fontsize=8,
            )
        axes.set_yticks(range(len(NAMES)), [f"{TITLES[name]}, {best[name]:g}" for name in NAMES])
        axes.set(xlabel="held-out perplexity (a byte)", ylim=(len(NAMES) - 0.5, -0.5))
        axes.margins(x=0.25)
    return figure


FIGURES = (
    PaperFigure(
        "snm_1", "figure 1 [P]: training loss of Vanilla and Scaled Embed; Vanilla's spikes early and explodes",
        "Loss and gradient norm of three seeds each (thin, as recorded) and their running median, at the rate that "
        "stands for 3e-4 at d 5120. The loss of few tokens is too noisy to show spikes; the gradient norm's are there.",
        _curves, _draw_vanilla_and_scaled, ("SNM-6", "SNM-15"), (method_runs,),
    ),
    PaperFigure(
        "snm_2", "figure 2 [S]: the bound of every layer at initialisation, by method",
        "The paper's bound for its 1.7B, less 1, by `theory.bound`; no training.",
        _bounds, _draw_bounds, ("SNM-3", "SNM-4"),
    ),
    PaperFigure(
        "snm_3", "figure 3 [S]: training loss of the four methods",
        "Loss and gradient norm of the four methods, three seeds each.",
        _curves, _draw_methods, ("SNM-6", "SNM-15"), (method_runs,),
    ),
    PaperFigure(
        "snm_4", "figure 4 [M]: gradient norms of the layers during training",
        "Gradient norm at every place of the stream, mean over a twentieth of the run from five steps on; median over "
        "seeds, and 80 % of them.",
        _places, _draw_places, ("SNM-5", "SNM-13"), (method_runs,),
    ),
    PaperFigure(
        "snm_5", "figure 5 [S]: varying the learning rate",
        "Held-out loss and spikes of the gradient norm at six rates; points are seeds, lines their means.",
        _rates, _draw_rates, ("SNM-7", "SNM-17"), (rate_runs,),
    ),
    PaperFigure(
        "snm_6", "figure 6 [S]: varying the sequence length",
        "Vanilla at three lengths with as many tokens a step: running medians over seeds with 80 % of them, and spikes "
        "of the gradient norm.",
        _lengths, _draw_lengths, ("SNM-8",), (length_runs,),
    ),
    PaperFigure(
        "snm_perplexity", "the perplexity tables [S]: 1.7B and 13B at two rates on WikiText and LAMBADA",
        "Held-out perplexity of the four methods, each at its best of six rates (beside its name); points are seeds, "
        "the number is their mean.",
        _perplexities, _draw_perplexities, ("SNM-10", "SNM-17"), (rate_runs,),
    ),
)  # fmt: skip
