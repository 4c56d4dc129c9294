"""What a claim about training is judged on: labelled runs, trained once however many claims ask for them."""

import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr
from scipy.stats import entropy

from verify.statistics import spikes
from verify.statistics.sensitivity import highest_stable_rate
from verify.sweeps import store
from verify.sweeps.command import here, print_time, train
from verify.training.corpus import load_corpus
from verify.training.run import Run, changed
from verify.training.sources import BYTES

CORPUS = "stdlib"
"""what the runs are trained on of which is judged whether they converge"""


@dataclass(frozen=True)
class Cell:
    """A run, and what a table calls it by: the fields in which it differs from its neighbours, by their last name."""

    labels: Mapping[str, Any]
    run: Run


def cells(base: Run, axes: Mapping[str, Sequence[Any]], **labels: Any) -> tuple[Cell, ...]:
    """Every combination of the axes' values; axes: names of fields as `verify.training.run.changed` takes them.

    labels: further ones, the same for all.
    """
    made = []
    for values in itertools.product(*axes.values()):
        fields = dict(zip(axes, values, strict=True))
        short = {name.rpartition(".")[2]: getattr(value, "name", value) for name, value in fields.items()}
        made.append(Cell(short | labels, changed(base, fields)))
    return tuple(made)


@dataclass(frozen=True)
class Evidence:
    """Finished runs in a folder. window: steps that spike metrics look back (`verify.statistics.spikes`)."""

    folder: Path
    window: int
    _known: dict[Run, dict[str, float | int | str]] = field(default_factory=dict, compare=False, repr=False)

    def path(self, cell: Cell) -> Path:
        """The file of that run."""
        return store.path_of(cell.run, self.folder)

    def dataset(self, cell: Cell) -> xr.Dataset:
        """All that was recorded of it."""
        return store.load(self.path(cell))

    def table(self, cells: Iterable[Cell]) -> pd.DataFrame:
        """One row a run: its labels, `summary`, and its file's name."""
        return pd.DataFrame([{**cell.labels, **self._summary(cell), "file": self.path(cell).name} for cell in cells])

    def _summary(self, cell: Cell) -> dict[str, float | int | str]:
        """Made once, however many claims look at the run."""
        if cell.run not in self._known:
            self._known[cell.run] = summary(cell.run, self.dataset(cell), self.window)
        return self._known[cell.run]


def train_cells(cells: Iterable[Cell], folder: Path, lanes: int | None, plan_only: bool = False) -> int:
    """Say how long what is missing takes and train it, each run once; the exit status, 130 after an interruption."""
    by_run = {cell.run: cell for cell in cells}
    if left := [run for run in by_run if not store.path_of(run, folder).exists()]:
        print_time(left, lanes)
    if plan_only or not by_run:
        return 0
    return train(list(by_run), folder, lambda run: dict(by_run[run].labels), here(lanes, None))


def converged(table: pd.DataFrame, by: str | list[str]) -> pd.Series:
    """Whether each run ends nearer to the best loss of its group than to `contextless_loss`.

    With clipping no run of ours ends above its start, at any rate: what fails sinks to the loss of a model that knows
    no context. by: columns that tell the groups, each of which has a rate at which it surely converges. The runs'
    corpus is CORPUS.
    """
    best = table.groupby(by, sort=False)["final_loss"].transform("min")
    return (table["outcome"] == "finished") & (table["final_loss"] < (best + contextless_loss()) / 2)


def converging_rates(table: pd.DataFrame, by: str | list[str]) -> dict[Any, float]:
    """The highest rate at which most seeds of each group converge, 0 where there is none. by: as for `converged`."""
    found = {}
    for key, rows in table.assign(good=converged(table, by)).groupby(by, sort=False):
        grid = by_rate_and_seed(rows, "good")
        found[key] = highest_stable_rate(grid.index.to_numpy(), grid.to_numpy()).value
    return found


@cache
def contextless_loss() -> float:
    """Entropy in nats of a single token of CORPUS: the least loss of a model that knows no context."""
    train = load_corpus(CORPUS, BYTES).train
    return float(entropy(np.bincount(train)))


def by_rate_and_seed(table: pd.DataFrame, column: str) -> pd.DataFrame:
    """A column of runs that differ in rate and seed alone, as [rates, seeds]."""
    return table.pivot(index="learning_rate", columns="seed", values=column)


def last_tenth(series: np.ndarray) -> np.ndarray:
    """Of the steps, which are the first axis; at least one."""
    return series[-max(len(series) // 10, 1) :]


def summary(run: Run, dataset: xr.Dataset, window: int) -> dict[str, float | int | str]:
    """A run in numbers; losses in nats per token, spikes counted after warm-up and the first half `window`.

    outcome, outcome_step: as recorded. initial_loss: of the first step; final_loss: mean of the last tenth, the initial
    one where the run has not finished or ends above it, as SSP counts it; held_out_loss: inf where it has not finished.
    loss_spikes, gradient_spikes: events of values 7 standard deviations off the mean of `window` steps before, merged
    within 10; loss_spike_score, gradient_spike_score: the share of steps. largest_loss_excess: of the 10-step mean over
    its running minimum; relative_loss_excess: in units of that mean's noise. gradient_norm_ratio: largest over median.
    """
    loss, gradient = (dataset[name].to_numpy().astype(np.float64) for name in ("loss", "gradient_norm"))
    after, finished = run.optimizer.warmup_steps, dataset.attrs["outcome"] == "finished"
    flags = {
        name: spikes.spike_steps(series, window, warm_up=max(after, window // 2))
        for name, series in (("loss", loss), ("gradient", gradient))
    }
    last = float(np.mean(last_tenth(loss)))
    return {
        "outcome": dataset.attrs["outcome"],
        "outcome_step": int(dataset.attrs["outcome_step"]),
        "initial_loss": float(loss[0]),
        "final_loss": min(last, float(loss[0])) if finished else float(loss[0]),
        "held_out_loss": dataset.attrs["held_out_loss"] if finished else np.inf,
        **{f"{name}_spikes": spikes.spike_count(flags[name]) for name in flags},
        **{f"{name}_spike_score": float(flags[name].mean()) for name in flags},
        "largest_loss_excess": spikes.largest_excess(loss, after=after),
        "relative_loss_excess": spikes.relative_excess(loss, after=after),
        "gradient_norm_ratio": spikes.gradient_norm_ratio(gradient, after=after),
        "largest_gradient_norm": float(np.max(gradient[after:])),
        "largest_attention_logit": float(np.nanmax(dataset["largest_attention_logit"])),
        "largest_update_ratio": float(np.nanmax(dataset["update_rms"] / dataset["parameter_rms"])),
    }
