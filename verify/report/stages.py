"""The report's computations, each a file: finished ones are read, so an interrupted report goes on where it was."""

import dataclasses
import hashlib
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import xarray as xr

from theory import Architecture, bound, predict
from verify.claims import Verdict
from verify.claims import initialization as at_initialization
from verify.claims import training as in_training
from verify.claims.evidence import Cell
from verify.measurement import measure
from verify.measurement.jacobian import sublayer_jacobian_norms
from verify.report.options import METHODS, ReportOptions
from verify.sweeps import store
from verify.sweeps.lanes import train_missing
from verify.training.corpus import load_corpus

Advance = Callable[[int], None]
SPIKE_WINDOW = 100
NETWORKS = 128  # of the predictions: gradient norms of 24 layers to 0.6 % on text, less on random tokens


def analyse(options: ReportOptions, method: str) -> xr.Dataset:
    """Bound, prediction and measurement of one method at initialisation, on random tokens and on the corpus.

    Dimensions place [S + 1], sublayer [S], seed and jacobian_seed. Variables: bound, jacobian_norm,
    predicted_/measured_ gradient_norm and shortcut_std, and the same two with _text on sequences of the corpus.
    """
    arch = options.analysed(method)
    key = {"stage": 3, "arch": store.plain(arch), "seeds": [options.init_seeds, options.jacobian_seeds]}
    key["corpus"] = load_corpus(options.corpus, arch.vocab_size).digest

    def compute() -> xr.Dataset:
        text = load_corpus(options.corpus, arch.vocab_size).batch(arch.seq_len, 8, seed=0, step=0)
        data: dict[str, tuple[tuple[str, ...], np.ndarray]] = {}
        for suffix, tokens in (("", None), ("_text", text)):
            predicted = predict(arch, tokens=tokens, networks=NETWORKS)
            measured = measure(arch, seeds=options.init_seeds, tokens=tokens)
            for name in ("shortcut_std", "gradient_norm"):
                data[f"predicted_{name}{suffix}"] = (("place",), getattr(predicted, name))
                data[f"measured_{name}{suffix}"] = (("seed", "place"), getattr(measured, name))
        norms, change = sublayer_jacobian_norms(arch, options.jacobian_seeds)
        data["jacobian_norm"] = (("jacobian_seed", "sublayer"), norms)
        data["jacobian_norm_change"] = (("jacobian_seed", "sublayer"), change)
        data["bound"] = (("sublayer",), bound(arch, shortcut_std=data["predicted_shortcut_std"][1]).sublayer)
        return xr.Dataset(data)

    return _cached(options.out / "data", f"initialization_{method}", key, compute)


def first_excess_by_width(options: ReportOptions) -> xr.DataArray:
    """Largest Jacobian norm of Vanilla's first block, float64[width, jacobian_seed], d_ff = 4 d_model."""
    base = dataclasses.replace(options.arch, embedding="vanilla", d_ff=None)
    key = {"stage": 1, "arch": store.plain(base), "widths": options.widths, "seeds": options.jacobian_seeds}

    def compute() -> xr.Dataset:
        norms = [_first_block(base, width, options.jacobian_seeds) for width in options.widths]
        return xr.Dataset(
            {"norm": (("width", "jacobian_seed"), np.array(norms))}, coords={"width": list(options.widths)}
        )

    return _cached(options.out / "data", "first_block_by_width", key, compute)["norm"]


def _first_block(base: Architecture, width: int, seeds: int) -> np.ndarray:
    arch = dataclasses.replace(base, d_model=width, num_heads=max(width // 32, 1), num_kv_heads=None)
    norms, _ = sublayer_jacobian_norms(arch, seeds, blocks=1)
    return norms.max(axis=1)


def train_method(options: ReportOptions, method: str, advance: Advance) -> None:
    """Run what is missing of one method; finished runs are files already."""
    folder = options.out / "runs"
    folder.mkdir(parents=True, exist_ok=True)
    train_missing(options.training_runs(method), folder, advanced=advance)


def run_cells(options: ReportOptions) -> tuple[Cell, ...]:
    """Every training run of the report, labelled method, rate and seed."""
    return tuple(
        Cell({"method": method, "rate": run.optimizer.learning_rate, "seed": run.seed}, run)
        for method in METHODS
        for run in options.training_runs(method)
    )


def judge(
    options: ReportOptions, analyses: dict[str, xr.Dataset], by_width: xr.DataArray, table: pd.DataFrame
) -> list[Verdict]:
    """The verdicts on SNM-1 to SNM-7."""
    archs = {method: options.analysed(method) for method in METHODS}
    stds = {m: a["measured_shortcut_std"].to_numpy()[:, 0] for m, a in analyses.items()}
    gradients = {m: a["measured_gradient_norm"].to_numpy() for m, a in analyses.items()}
    norms = {m: a["jacobian_norm"].to_numpy() for m, a in analyses.items()}
    bounds = {m: a["bound"].to_numpy() for m, a in analyses.items()}
    amplification = {m: g[:, 0] / g[:, -1] for m, g in gradients.items()}
    at, scale = at_initialization, options.init_scale
    return [
        at.judge_embedding_std(archs, stds, scale),
        at.judge_norms(options.arch, 20, scale),
        at.judge_bounds(norms, bounds, scale),
        at.judge_depth_and_width(norms, np.array(options.widths), by_width.to_numpy(), scale),
        at.judge_amplification(amplification, scale),
        in_training.judge_spikes(table, options.scale),
        in_training.judge_rates(table, options.scale),
    ]


def _cached(folder: Path, name: str, key: dict[str, object], compute: Callable[[], xr.Dataset]) -> xr.Dataset:
    digest = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:12]
    path = folder / f"{name}_{digest}.nc"
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        dataset = compute().assign_attrs(configuration=json.dumps(key, sort_keys=True))
        store.write_dataset(path, dataset)
    return store.load(path)
