"""The table and figure of "Methods of improving LLM training stability": who stands which rate, and what grows."""

import xarray as xr
from matplotlib.figure import Figure

from paper_figures import style
from paper_figures.data import of, series, summaries, values
from paper_figures.figure import PaperFigure
from verify.claims.evidence import Evidence, contextless_loss, converged
from verify.claims.scale import Scale
from verify.claims.training_stability import at_high_rates, failing_and_converging, survey
from verify.report.style import legend

NAMES = {
    "baseline": "baseline", "soft_temp": "soft temperature", "soft_clip": "soft clip", "layer_scale": "LayerScale",
    "soft_cap": "soft cap", "sigma_reparam": "sigma reparam.", "qk_norm": "QK norm", "qk_norm_cap": "QK norm, cap",
    "qkv_norm": "QKV norm", "qk_fc_norm": "QK and FC norm",
}  # fmt: skip
OUTPUTS = {
    "attention.query": "Q", "attention.key": "K", "attention.value": "V", "attention.output": "Proj",
    "feed_forward.up": "FC1", "feed_forward.down": "FC2",
}  # fmt: skip
_AGAINST_RATE = ("learning_rate", "final_loss")
_FAILS, _CONVERGES, _BASELINE = "#D55E00", "#0072B2", "#888888"


def _rates(evidence: Evidence, scale: Scale) -> xr.Dataset:
    cells = (*survey(scale), *at_high_rates(scale))
    found = summaries(evidence, cells, ("final_loss",))
    return found.assign(
        converged=("run", converged(evidence.table(cells), "variant").to_numpy()), contextless=contextless_loss()
    )


def _draw_rates(data: xr.Dataset) -> Figure:
    with style.page(style.PAGE, 3.2) as figure:
        panels = figure.subplots(2, 5, sharex=True, sharey=True)
        for axes, name in zip(panels.flat, NAMES, strict=True):
            if name != "baseline":
                style.means(axes, of(data, variant="baseline"), *_AGAINST_RATE, color=_BASELINE, lw=1.0)
            runs = of(data, variant=name)
            for good, colour in ((True, _CONVERGES), (False, _FAILS)):
                chosen = of(runs, converged=good)
                axes.plot(
                    chosen["learning_rate"], chosen["final_loss"], "o" if good else "x", ms=3, color=colour,
                    alpha=0.8, mew=0 if good else 0.9, label="converges" if good else "does not",
                )  # fmt: skip
            style.means(axes, runs, *_AGAINST_RATE, color=style.PRINT["text.color"], lw=1.2)
            axes.axhline(float(data["contextless"]), **style.GUIDE)
            axes.set_title(NAMES[name], fontsize=8)
            axes.set_xscale("log")
        figure.supxlabel("learning rate", fontsize=9)
        figure.supylabel("final loss (nats per token)", fontsize=9)
        legend(figure, panels.flat[0])
    return figure


def _outputs(evidence: Evidence, scale: Scale) -> xr.Dataset:
    cells = failing_and_converging(scale)
    kinds = list(cells[0].run.arch.matrices)
    found = series(evidence, cells, ("output_norm",), every=max(scale.steps // 100, 1))
    good = converged(evidence.table(cells), "variant").to_numpy()
    return found.mean("layer").assign(converged=("run", good)).assign_coords(matrix=kinds)


def _draw_outputs(data: xr.Dataset) -> Figure:
    low, high = values(data, "learning_rate")
    with style.page(style.PAGE, 3.2) as figure:
        panels = figure.subplots(2, 3, sharex=True)
        for axes, (kind, name) in zip(panels.flat, OUTPUTS.items(), strict=True):
            for rate, colour in ((low, _CONVERGES), (high, _FAILS)):
                runs = of(data, learning_rate=rate).sel(matrix=kind)
                good = runs["converged"].to_numpy()
                said = f"rate {rate:.2g}: {good.sum():.0f} of {len(good)} converge"
                style.band(axes, runs, "output_norm", colour, smoothed=5, label=said)
            axes.set_title(name, fontsize=8)
            style.log_y(axes)
        figure.supxlabel("step", fontsize=9)
        figure.supylabel("root mean square of the outputs (a coordinate)", fontsize=9)
        legend(figure, panels.flat[0])
    return figure


FIGURES = (
    PaperFigure(
        "mis_rates", "the table of highest converging rates [S]: ten variants, rates 6e-3 to 80e-3",
        "Final loss of ten variants against the rate; points are seeds, lines their means, grey the baseline's. A run "
        "converges that ends nearer to its variant's best loss than to the entropy of a token (dotted), the loss of a "
        "model without context. The seeds of the judged runs and of a survey.",
        _rates, _draw_rates, ("MIS-2", "MIS-3"), (survey, at_high_rates),
    ),
    PaperFigure(
        "mis_outputs", "the figure of linear-output norms over training [S], a diverging against a converging run",
        "Root mean square of what each linear layer of the baseline returns, mean over blocks, at two rates; median "
        "over seeds, and 80 % of them.",
        _outputs, _draw_outputs, ("MIS-1",), (failing_and_converging,),
    ),
)  # fmt: skip
