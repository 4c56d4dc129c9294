"""PaLM's loss spikes (arXiv 2204.02311, section 5.1): going back, leaving batches out, and the control."""

import dataclasses
import json

import numpy as np
import xarray as xr
from matplotlib.figure import Figure

from paper_figures import style
from paper_figures.data import values
from paper_figures.figure import PaperFigure
from paper_figures.style import COLOUR
from verify.claims.embedding_scale import EMBEDDING, RATE, stand_in
from verify.claims.evidence import Evidence
from verify.claims.scale import Scale
from verify.training.corpus import load_corpus
from verify.training.detection import Recovery
from verify.training.recovery import Batches, control, digest, train_recovering
from verify.training.run import Run, changed

PLANTED, BY_ITSELF = "random bytes planted", "by itself, 17 windows"
WITHOUT, THROWN_AWAY, KEPT = "without recovery", "thrown away", "with recovery"
SEEN, AGAIN = "as they were seen", "from the state gone back to"
_LINES = {
    WITHOUT: {"color": "#888888", "lw": 0.8}, THROWN_AWAY: {"color": COLOUR["vanilla"], "lw": 1.2},
    KEPT: {"color": COLOUR["scaled"], "lw": 1.2}, SEEN: {"color": COLOUR["vanilla"], "lw": 1.4},
    AGAIN: {"color": COLOUR["layer_norm"], "lw": 1.4, "ls": "--"},
}  # fmt: skip
_SHORT = Recovery(window=10, patience=2, back=4, skip=12, every=4, ring=3)
"""for runs of tens of steps"""


def planted(run: Run) -> Batches:
    """The run's batches, but a fiftieth of them, from three tenths of the run on, of uniformly random tokens."""
    corpus, first = load_corpus(run.corpus, run.arch.vocab_size), 3 * run.steps // 10
    bad = range(first, first + max(run.steps // 50, 4))

    def batch(number: int) -> np.ndarray:
        if number not in bad:
            return corpus.batch(run.arch.seq_len, run.batch_size, seed=run.seed, step=number)
        shape = (run.batch_size, run.arch.seq_len + 1)
        return np.random.default_rng(number).integers(run.arch.vocab_size, size=shape)

    return batch


def _cases(scale: Scale) -> dict[str, tuple[Run, Batches | None]]:
    """The second knows its windows by heart, and each batch leaves out one of them."""
    run = changed(stand_in(scale), {EMBEDDING: "scaled"})
    calm = changed(run, {RATE: run.optimizer.learning_rate / 16})
    return {PLANTED: (calm, planted(calm)), BY_ITSELF: (changed(run, {"windows": run.batch_size + 1}), None)}


def _recovered(evidence: Evidence, scale: Scale) -> xr.Dataset:
    """Along `line` a path of a case: by step, or of the control by batch, counted from the spike's first step on.

    What was trained lies beside the claims' runs, so that an interrupted one goes on.
    """
    recovery = _SHORT if scale.window <= _SHORT.window else Recovery(skip=200)
    lines = dict[tuple[str, str], tuple[np.ndarray, np.ndarray]]()
    for case, (run, batches) in _cases(scale).items():
        states = {
            chosen: evidence.folder.parent / "recovery" / digest(run, chosen)
            for chosen in (dataclasses.replace(recovery, most=0), recovery)
        }
        ridden_out, made = (train_recovering(run, chosen, folder, batches, print) for chosen, folder in states.items())
        paths = {WITHOUT: ridden_out, KEPT: made.isel(step=made["kept"]), THROWN_AWAY: made.isel(step=~made["kept"])}
        lines |= {(case, path): (data["step"].to_numpy(), data["loss"].to_numpy()) for path, data in paths.items()}
        if log := json.loads(made.attrs["recoveries"]):
            first, reach = log[0]["first"], log[0]["first"] - log[0]["restored"] - 1
            again = control(run, recovery, states[recovery], made, 0, min(20, reach), batches)
            beside = np.arange(again.sizes["batch"]) + int(again["step"][0]) - first
            for path, name in ((SEEN, "loss"), (AGAIN, "control_loss")):
                lines[case, path] = beside, again[name].to_numpy()
    at, loss = (_side_by_side([line[which] for line in lines.values()]) for which in (0, 1))
    return xr.Dataset(
        {
            "at": (("line", "point"), at, {"units": "steps"}),
            "loss": (("line", "point"), loss, {"units": "nats per token"}),
        },
        {name: ("line", [key[which] for key in lines]) for which, name in enumerate(("case", "path"))},
    )


def _side_by_side(rows: list[np.ndarray]) -> np.ndarray:
    """float32[rows, points], the shorter ones filled up with nan."""
    together = np.full((len(rows), max(map(len, rows))), np.nan, np.float32)
    for filled, row in zip(together, rows, strict=True):
        filled[: len(row)] = row
    return together


def _draw_recovered(data: xr.Dataset) -> Figure:
    with style.page(style.PAGE, 4.2) as figure:
        panels = figure.subplots(2, 2)
        for (above, below), case in zip(panels.T, values(data, "case"), strict=True):
            for axes, paths in ((above, (WITHOUT, KEPT, THROWN_AWAY)), (below, (SEEN, AGAIN))):
                for path in paths:
                    chosen = (data["case"] == case) & (data["path"] == path)
                    for at, loss in zip(data["at"][chosen], data["loss"][chosen], strict=True):
                        pieces = np.flatnonzero(np.diff(at) != 1) + 1
                        axes.plot(
                            np.insert(at, pieces, np.nan), np.insert(loss, pieces, np.nan), **_LINES[path], label=path
                        )
            above.set(title=case, xlabel="step")
            below.set(xlabel="batch, from the spike's first step")
        panels[0, 0].set_ylabel("loss\n(nats per token)")
        panels[1, 0].set_ylabel("loss of these batches\n(nats per token)")
        panels[0, 0].legend()
        for axes in [axes for axes in panels[1] if axes.get_lines()][-1:]:
            axes.legend(loc="upper left")
    return figure


FIGURES = (
    PaperFigure(
        "palm_recovery",
        "section 5.1 [P]: about 20 spikes; a restart 100 steps before each, without 200 to 500 batches; the same "
        "batches from an earlier state do not spike",
        "Above, loss by step: without recovery, and with it the steps that were thrown away and those that lasted. "
        "Below, the control: the spike's batches as they were seen, and from the state that it went back to. Left, "
        "bad batches; right, a spike that nobody planted, in a run that knows its 17 windows by heart.",
        _recovered, _draw_recovered, trains="four runs, trained with its data",
    ),
)  # fmt: skip
