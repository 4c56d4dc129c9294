"""What readers of "Spike No More" asked for and did not get: seeds, scales, leads, the stream through training."""

from typing import Any

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, MaxNLocator, NullLocator, StrMethodFormatter

from paper_figures import style
from paper_figures.data import of, series, summaries, values
from paper_figures.figure import PaperFigure
from paper_figures.spike_no_more import NAMES
from paper_figures.style import COLOUR, MARKER, ORDERED, TITLES
from theory import predict
from verify.claims.embedding_scale import (
    EMBEDDING,
    block_runs,
    form_runs,
    method_runs,
    multiplier_runs,
    requirement_runs,
    stand_in,
)
from verify.claims.evidence import Cell, Evidence
from verify.claims.regimes import (
    FURTHER,
    KNOWN_BY_HEART,
    MORE_LOSS_SPIKES,
    SAME_WITHIN,
    loss_spike_runs,
    regime_runs,
)
from verify.claims.scale import Scale
from verify.report.style import legend
from verify.statistics.corrections import holm
from verify.statistics.intervals import Estimate, permutation_p, ratio_of_rates
from verify.statistics.spikes import event_bounds, spike_steps
from verify.training.run import changed

COUNTS = ("gradient_spikes", "loss_spikes")
BESIDE = (("gradient_spikes", "gradient spikes a run"), ("final_loss", "final loss (nats per token)"))


def _counts(evidence: Evidence, scale: Scale) -> xr.Dataset:
    return summaries(evidence, method_runs(scale), COUNTS)


def _draw_counts(data: xr.Dataset) -> Figure:
    with style.page(style.PAGE, 2.2) as figure:
        panels = figure.subplots(1, 2)
        for axes, variable, label in zip(panels, COUNTS, ("gradient norm", "loss"), strict=True):
            style.strips(axes, data, variable, "embedding", list(NAMES), COLOUR)
            axes.set_xticks(range(len(NAMES)), [TITLES[name].replace(" ", "\n") for name in NAMES])
            _counted(axes, data[variable], label)
    return figure


def _counted(axes: Axes, counts: xr.DataArray, of_what: str) -> None:
    """The y axis of numbers of spikes."""
    axes.set(ylabel=f"spikes of the\n{of_what} a run", ylim=(-0.4, max(float(counts.max()), 1) + 0.5))
    axes.yaxis.set_major_locator(MaxNLocator(5, integer=True))


def _multipliers(evidence: Evidence, scale: Scale) -> xr.Dataset:
    """The embedding's std, and what `predict` says of each multiplier before training."""
    found = summaries(evidence, multiplier_runs(scale), ("final_loss", "gradient_spikes"))
    run = stand_in(scale)
    multipliers = values(found, "multiplier")
    predicted = [predict(changed(run, {EMBEDDING: value}).arch).amplification for value in multipliers]
    unit = float(run.arch.std("embedding")[0])
    return found.assign(
        std=("run", unit * found["multiplier"].to_numpy()), amplification=("scale", np.array(predicted)),
        predicted_std=("scale", unit * np.array(multipliers)),
    )  # fmt: skip


def _draw_multipliers(data: xr.Dataset) -> Figure:
    with style.page(style.COLUMN, 4.2) as figure:
        panels = figure.subplots(3, 1, sharex=True)
        for axes, variable in zip(panels, ("final_loss", "gradient_spikes"), strict=False):
            axes.plot(data["std"], data[variable], "o", ms=3, color=COLOUR["scaled"], alpha=0.6, mew=0)
            style.means(axes, data, "std", variable, color=COLOUR["scaled"])
        panels[2].plot(data["predicted_std"], data["amplification"], color=style.PRINT["text.color"], marker=".")
        for axes, label in zip(
            panels,
            ("final loss\n(nats per token)", "gradient spikes\na run", "predicted\namplification"), strict=True,
        ):  # fmt: skip
            axes.set(xscale="log", ylabel=label)
            axes.axvline(1, **style.GUIDE)
        style.log_y(panels[2])
        panels[2].set_xlabel("std of the embedding's output")
    return figure


def _around(evidence: Evidence, scale: Scale) -> xr.Dataset:
    """Loss and gradient norm around every loss spike of 4 standard deviations, against the steps before."""
    steps = stand_in(scale).steps
    reach, before = min(20, steps // 10), min(50, steps // 4)
    losses, norms, methods = [], [], []
    for cell in method_runs(scale):
        data = evidence.dataset(cell)
        loss, gradient = (data[name].to_numpy().astype(np.float64) for name in ("loss", "gradient_norm"))
        flags = spike_steps(loss, evidence.window, deviations=4, warm_up=cell.run.optimizer.warmup_steps)
        for start, _ in event_bounds(flags):
            if before + reach <= start < len(loss) - reach and loss[start] > loss[start - before : start].mean():
                past = slice(start - reach - before, start - reach)
                around = slice(start - reach, start + reach + 1)
                losses.append(loss[around] - np.median(loss[past]))
                norms.append(gradient[around] / np.median(gradient[past]))
                methods.append(str(cell.labels["embedding"]))
    shape = (len(methods), 2 * reach + 1)
    return xr.Dataset(
        {
            "loss_excess": (("run", "offset"), np.reshape(losses, shape), {"units": "nats per token"}),
            "gradient_ratio": (("run", "offset"), np.reshape(norms, shape), {"units": "1"}),
        },
        {"offset": np.arange(-reach, reach + 1), "embedding": ("run", np.array(methods, dtype=str))},
    )


def _draw_around(data: xr.Dataset) -> Figure:
    with style.page(style.PAGE, 2.3) as figure:
        panels = figure.subplots(1, 2)
        for axes, variable, label in zip(
            panels, ("loss_excess", "gradient_ratio"),
            ("loss above its median before\n(nats per token)", "gradient norm over\nits median before"), strict=True,
        ):  # fmt: skip
            if data.sizes["run"]:
                style.spread(axes, data[variable], "offset", COLOUR["vanilla"])
            axes.axvline(0, **style.GUIDE)
            axes.set(xlabel="step after the loss spike", ylabel=label)
        figure.suptitle(f"{data.sizes['run']} loss spikes of 4 standard deviations", fontsize=9)
    return figure


def _stream(evidence: Evidence, scale: Scale) -> xr.Dataset:
    cells = [cell for cell in method_runs(scale) if cell.labels["embedding"] in ("vanilla", "scaled")]
    found = series(evidence, cells, ("shortcut_std",), every=max(stand_in(scale).steps // 100, 1))
    last = found.sizes["place"] - 1
    places = sorted({0, 1, 2, last // 2, last})
    return found.isel(place=places).assign_coords(place=places)


def _draw_stream(data: xr.Dataset) -> Figure:
    with style.page(style.PAGE, 2.6) as figure:
        panels = figure.subplots(1, 2, sharey=True)
        for axes, method in zip(panels, ("vanilla", "scaled"), strict=True):
            runs = of(data, embedding=method)
            for place, colour in zip(data["place"].to_numpy(), ["#888888", *ORDERED], strict=False):
                name = "embedding" if place == 0 else f"after {place}"
                style.band(axes, runs.sel(place=place), "shortcut_std", colour, smoothed=1, label=name)
            axes.set(title=TITLES[method], xlabel="step")
            style.log_y(axes)
        panels[0].set_ylabel("std of the stream")
        legend(figure, panels[0])
    return figure


def _requirements(evidence: Evidence, scale: Scale) -> xr.Dataset:
    return summaries(evidence, requirement_runs(scale), (*COUNTS, "final_loss"))


def _draw_requirements(data: xr.Dataset) -> Figure:
    with style.page(style.PAGE, 2.3) as figure:
        shown = {
            "neither": ("small", "vanilla"), "small\nsub-layers": ("megatron", "vanilla"),
            "large\nshortcut": ("small", "scaled"), "both": ("megatron", "scaled"),
        }  # fmt: skip
        _strips_beside(figure, {
            said: (of(data, initialization=initialization, embedding=method), COLOUR[method])
            for said, (initialization, method) in shown.items()
        })  # fmt: skip
        figure.supxlabel("requirement met", fontsize=9)
    return figure


def _blocks(evidence: Evidence, scale: Scale) -> xr.Dataset:
    return summaries(evidence, block_runs(scale), (*COUNTS, "final_loss"))


def _draw_blocks(data: xr.Dataset) -> Figure:
    with style.page(style.PAGE, 2.3) as figure:
        _strips_beside(figure, {
            f"{variant}\n{TITLES[method]}": (of(data, variant=variant, embedding=method), COLOUR[method])
            for variant in values(data, "variant") for method in ("vanilla", "scaled")
        }, fontsize=7)  # fmt: skip
    return figure


def _strips_beside(figure: Figure, shown: dict[str, tuple[xr.Dataset, str]], **ticks: Any) -> None:
    """Spikes and final loss in a panel each, a strip for each of these runs under their name."""
    for axes, (variable, label) in zip(figure.subplots(1, 2), BESIDE, strict=True):
        for place, (runs, colour) in enumerate(shown.values()):
            style.strip(axes, place, runs[variable].to_numpy(), colour)
        axes.set_xticks(range(len(shown)), list(shown), **ticks)
        axes.set_ylabel(label)


def _forms(evidence: Evidence, scale: Scale) -> xr.Dataset:
    return summaries(evidence, form_runs(scale), (*COUNTS, "final_loss"))


def _draw_forms(data: xr.Dataset) -> Figure:
    with style.page(style.PAGE, 2.6) as figure:
        panels = figure.subplots(1, 4, sharey=True)
        cross = [(tied, decay) for tied in (False, True) for decay in (True, False)]
        names = values(data, "embedding")
        for axes, (tied, decay) in zip(panels, cross, strict=True):
            style.strips(axes, of(data, tied=tied, decay_embeddings=decay), "final_loss", "embedding", names, COLOUR)
            axes.set_xticks(range(len(names)), [TITLES[name] for name in names], rotation=45, ha="right")
            axes.set_title(f"{'tied' if tied else 'untied'},\n{'decay' if decay else 'no decay'} on the table")
        panels[0].set_ylabel("final loss (nats per token)")
    return figure


def _regimes(evidence: Evidence, scale: Scale) -> xr.Dataset:
    return summaries(evidence, regime_runs(scale), (*COUNTS, "final_loss", "largest_gradient_norm"))


def _draw_regimes(data: xr.Dataset) -> Figure:
    """A row a setting: every run as a point, means as bars; p of a one-sided permutation test beside."""
    names = values(data, "setting")
    with style.page(style.PAGE, 0.9 + 0.2 * len(names)) as figure:
        panels = figure.subplots(1, 2, sharey=True)
        for place, name in enumerate(names):
            first, second = (of(data, setting=name, embedding=method) for method in ("vanilla", "scaled"))
            for axes, (variable, _) in zip(panels, BESIDE, strict=True):
                for runs, method, shift in ((first, "vanilla", -0.15), (second, "scaled", 0.15)):
                    found = runs[variable].to_numpy()
                    axes.plot(found, np.full(len(found), place + shift), MARKER[method], ms=2.5, color=COLOUR[method],
                              alpha=0.5, mew=0)  # fmt: skip
                    axes.plot([found.mean()] * 2, [place + shift - 0.17, place + shift + 0.17], color=COLOUR[method],
                              lw=1.8, label="_" * (place > 0) + TITLES[method])  # fmt: skip
            p = permutation_p(first["gradient_spikes"].to_numpy(), second["gradient_spikes"].to_numpy())
            panels[0].annotate(
                f"p {p:.2g}", (1, place), xycoords=("axes fraction", "data"), xytext=(-2, 0),
                textcoords="offset points", ha="right", va="center", fontsize=7,
                fontweight="bold" if p < 0.01 else "normal",
            )  # fmt: skip
        for axes, (_, label) in zip(panels, BESIDE, strict=True):
            axes.set(xlabel=label, ylim=(len(names) - 0.5, -0.5))
            axes.grid(axis="y", color="#DDDDDD", lw=0.5)
        panels[0].set_yticks(range(len(names)), names)
        panels[0].set_xlim(right=1.3 * float(data["gradient_spikes"].max()) + 1)
        legend(figure, panels[0])
    return figure


def _loss_spikes(evidence: Evidence, scale: Scale) -> xr.Dataset:
    """And the loss of the ten steps before a run's first spike, nan where there is none; and the steps by heart."""
    cells = loss_spike_runs(scale)
    losses = [evidence.dataset(cell)["loss"].to_numpy() for cell in cells]
    before = [_before_first_spike(loss, cell, scale) for loss, cell in zip(losses, cells, strict=True)]
    known = [np.sum(loss < KNOWN_BY_HEART) for loss in losses]
    found = summaries(evidence, cells, (*COUNTS, "final_loss"))
    return found.assign(loss_before=("run", before), known_steps=("run", known))


def _before_first_spike(loss: np.ndarray, cell: Cell, scale: Scale) -> float:
    warm_up = max(cell.run.optimizer.warmup_steps, scale.window // 2)
    steps = np.flatnonzero(spike_steps(loss, scale.window, warm_up))
    return float(loss[max(steps[0] - 10, 0) : steps[0]].mean()) if steps.size else np.nan


def _draw_loss_spikes(data: xr.Dataset) -> Figure:
    def runs(setting: str, method: str) -> np.ndarray:
        return of(data, setting=setting, embedding=method)["loss_spikes"].to_numpy()

    centres = {name: 2.5 * group for group, name in enumerate(values(data, "setting"))}
    shown = [(centre + side, name, method) for name, centre in centres.items()
             for side, method in ((-0.5, "vanilla"), (0.5, "scaled"))]  # fmt: skip
    p = holm(np.array([permutation_p(runs(*more), runs(*fewer)) for more, fewer in MORE_LOSS_SPIKES]))
    said = [
        f"{TITLES[more[1]]}, {more[0]}, more than {TITLES[fewer[1]]}, {fewer[0]}: p {value:.2g}"
        for (more, fewer), value in zip(MORE_LOSS_SPIKES, p, strict=True)
    ]
    with style.page(style.PAGE, 4.4) as figure:
        counts, ratios = figure.subplots(2, 1, sharex=True, height_ratios=(3, 2))
        for place, name, method in shown:
            style.strip(counts, place, runs(name, method), COLOUR[method])
        for name, centre in centres.items():
            counts.annotate(name.replace(", ", ",\n"), (centre, 1), xycoords=("data", "axes fraction"), xytext=(0, 3),
                            textcoords="offset points", ha="center")  # fmt: skip
            found = _scaled_over_vanilla(of(data, setting=name))
            reach = [[found.value - found.low], [found.high - found.value]]
            ratios.errorbar(centre, found.value, reach, fmt="o", ms=4, capsize=2, color=style.PRINT["text.color"])
            if name == FURTHER:
                span = f"{found.value:.2f}, {found.low:.2f} to {found.high:.2f}"
                said.append(f"Spikes per step by heart, further seeds, Scaled Embed over Vanilla: {span}")
        _counted(counts, data["loss_spikes"], "loss")
        ratios.axhspan(1 / SAME_WITHIN, SAME_WITHIN, color=style.GUIDE["color"], alpha=0.2, lw=0)
        ratios.set(yscale="log", ylim=(0.4, 2.5), ylabel="spikes per step\nby heart, ratio")
        ratios.yaxis.set_major_locator(FixedLocator([0.5, 1, 2]))
        ratios.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
        ratios.yaxis.set_minor_locator(NullLocator())
        ratios.set_xticks([place for place, _, _ in shown], [TITLES[method] for _, _, method in shown])
        figure.supxlabel("\n".join(said), fontsize=8)
    return figure


def _scaled_over_vanilla(data: xr.Dataset) -> Estimate:
    """Spikes of the loss for each step by heart, 90 % interval; nan where a method has no such step."""
    methods = [of(data, embedding=method) for method in ("scaled", "vanilla")]
    if not all(runs["known_steps"].sum() for runs in methods):
        return Estimate(np.nan, np.nan, np.nan)
    scaled, vanilla = [(runs["loss_spikes"].to_numpy(), runs["known_steps"].to_numpy()) for runs in methods]
    return ratio_of_rates(*scaled, *vanilla, level=0.9)


FIGURES = (
    PaperFigure(
        "regimes", "not in the paper: where does the difference end?",
        "The stand-in as it is and with one thing changed at a time: spikes of the gradient norm and final loss, a "
        "point a run, means as bars. p: that Vanilla has no more spikes than Scaled Embed, by permutation.",
        _regimes, _draw_regimes, ("SNM-15",), (regime_runs,),
    ),
    PaperFigure(
        "loss_spikes", "not in the paper: a regime where the loss of the fix spikes too",
        "Spikes of the loss a run where the map of regimes saw any, on fresh seeds, a point a run, means as bars; and "
        "with an epsilon below which Adam's steps shrink with the gradient, and for three times the steps. "
        "p: one-sided, by permutation, Holm's. Below: spikes for each step with a loss below 0.05 nats, Scaled Embed's "
        "over Vanilla's, with 90 % intervals by bootstrap over runs; within the grey band they count as the same.",
        _loss_spikes, _draw_loss_spikes, ("SNM-15",), (loss_spike_runs,),
    ),
    PaperFigure(
        "spike_counts", "not in the paper, which has one seed",
        "Spikes a run, every seed a point, the mean a bar: 7 standard deviations off the mean of the steps before, "
        "merged within 10 steps.", _counts, _draw_counts, ("SNM-15",), (method_runs,),
    ),
    PaperFigure(
        "embedding_std", "not in the paper: why a std of 1?",
        "Final loss, spikes of the gradient norm, and the amplification that `predict` gives before training, against "
        "the std of the embedding's output; the dotted line is 1.", _multipliers, _draw_multipliers, ("SNM-12",),
        (multiplier_runs,),
    ),
    PaperFigure(
        "lead", "not in the paper: does the gradient norm grow before the loss spikes?",
        "Loss and gradient norm around every loss spike of the four methods: median, and 80 % of the spikes. Both are "
        "of the batch and weights of their step, so a lead is a step below 0.", _around, _draw_around, ("SNM-11",),
        (method_runs,),
    ),
    PaperFigure(
        "stream", "not in the paper: sigma_x through training",
        "Standard deviation of the stream where it leaves the embedding and after some of the additions; median over "
        "seeds, and 80 % of them.", _stream, _draw_stream, ("SNM-13",), (method_runs,),
    ),
    PaperFigure(
        "requirements", "section 3 [S] argues for both requirements; no figure crosses them",
        "With the depth factor on output matrices (small sub-layers) or without, Scaled Embed (large shortcut) or "
        "Vanilla.", _requirements, _draw_requirements, ("SNM-9",), (requirement_runs,),
    ),
    PaperFigure(
        "blocks", "not in the paper: LLaMA-like and parallel blocks",
        "Vanilla and Scaled Embed with RMSNorm and SwiGLU, and with attention and feed-forward side by side.",
        _blocks, _draw_blocks, ("SNM-14",), (block_runs,),
    ),
    PaperFigure(
        "forms", "not in the paper: multiplier, initial std and LayerNorm, with tied tables and decay on them",
        "Final loss of the three forms of the fix and of Vanilla; points are seeds, the bar is their mean.",
        _forms, _draw_forms, ("SNM-16",), (form_runs,),
    ),
)  # fmt: skip
