"""Figures of "Spike No More" (arXiv 2312.16903) from a report's files: the data, and what to draw of them."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import xarray as xr
from matplotlib.figure import Figure

from verify.report import figures
from verify.report.options import METHODS
from verify.sweeps import store


@dataclass(frozen=True)
class Data:
    """analyses: at initialisation, by method. runs: by method, rate and seed. table: one row a run."""

    analyses: dict[str, xr.Dataset]
    runs: dict[tuple[str, float, int], xr.Dataset]
    table: pd.DataFrame


@dataclass(frozen=True)
class PaperFigure:
    """What the original shows, and how ours is drawn."""

    original: str
    draw: Callable[[Data], Figure]


FIGURES = {
    "headline": PaperFigure(
        "not in the paper: bound, prediction and autodiff of the gradient norm by place",
        lambda data: figures.headline(data.analyses),
    ),
    "snm_2": PaperFigure(
        "figure 2 [S]: the bound of every layer at initialisation, by method; ours adds the measured norms",
        lambda data: figures.jacobians(data.analyses),
    ),
    "snm_3": PaperFigure(
        "figure 3 [S]: training loss of the four methods; ours at every rate of the report",
        lambda data: figures.training(data.runs, "loss", "training loss (nats per token)", _rates(data)),
    ),
    "snm_4": PaperFigure(
        "figure 4 [M]: gradient norms during training; ours is the global norm",
        lambda data: figures.training(data.runs, "gradient_norm", "gradient norm (nats per token)", _rates(data)),
    ),
    "snm_5": PaperFigure("figure 5 [S]: varying the learning rate", lambda data: figures.by_rate(data.table)),
}


def load(report: Path) -> Data:
    """The data of a finished report. Raises ValueError that names what is missing and the command that makes it."""
    for part in ("data", "runs", "training_runs.csv"):
        if not (report / part).exists():
            raise ValueError(f"report: no {part!r} in folder {str(report)!r}; make it with: python -m verify report")
    newest = {}
    for method in METHODS:
        files = sorted((report / "data").glob(f"initialization_{method}_*.nc"), key=lambda path: path.stat().st_mtime)
        if not files:
            raise ValueError(f"report: no analysis of {method!r} in {str(report)!r}; run: python -m verify report")
        newest[method] = store.load(files[-1])
    table = pd.read_csv(report / "training_runs.csv")
    return Data(newest, {key: store.load(report / "runs" / name) for key, name in _files(table)}, table)


def _files(table: pd.DataFrame) -> list[tuple[tuple[str, float, int], str]]:
    columns = (table[name].tolist() for name in ("method", "rate", "seed", "file"))
    return [((method, rate, seed), file) for method, rate, seed, file in zip(*columns, strict=True)]


def _rates(data: Data) -> tuple[float, ...]:
    return tuple(sorted(data.table["rate"].unique()))
