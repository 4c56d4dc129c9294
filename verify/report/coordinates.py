"""The coordinate check as a command: its ladders of runs, its files and its answer."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pandas as pd
from matplotlib import rc_context
from rich.console import Console
from rich.table import Table

from theory.atomic_file import write_atomically
from verify.measurement.coordinates import ladder, measure_coordinates
from verify.measurement.exponents import TOLERANCE, Axis, exponents, scheme_verdict
from verify.report.coordinate_figure import draw, signed
from verify.report.style import INK, RC
from verify.sweeps import store
from verify.training.progress import progress
from verify.training.run import Run, require_data

_ADVICE = {
    "stable": " at the steepest",
    "drifts": ": what is tuned at one size is not right for another (docs/coordinates.md)",
    "undecided": ": intervals hold a border of the tolerance; take more seeds, or more and larger sizes",
}


@dataclass(frozen=True)
class Check:
    """One coordinate check.

    run: at the depth that widths have, and at the width that depths have; its seed is the first one. widths, depths:
    none, or at least 2. tolerance: largest exponent that counts as constant. Raises ValueError that names the field
    and the value.
    """

    run: Run
    widths: tuple[int, ...] = (64, 128, 256, 512)
    depths: tuple[int, ...] = (2, 4, 8, 16, 32)
    seeds: int = 4
    tolerance: float = TOLERANCE
    out: Path = Path("coordinates")

    def __post_init__(self) -> None:
        for name in ("widths", "depths"):
            sizes = getattr(self, name)
            if len(set(sizes)) < len(sizes) or len(sizes) == 1 or any(size < 1 for size in sizes):
                raise ValueError(f"{name}: must be none, or at least 2 different sizes of at least 1, got {sizes}")
        if not (self.widths or self.depths):
            raise ValueError("widths: must not be none where depths are none")
        if self.seeds < 2:
            raise ValueError(f"seeds: must be at least 2, as intervals are over seeds, got {self.seeds}")
        if not self.tolerance > 0:
            raise ValueError(f"tolerance: must be a positive number, got {self.tolerance}")


def check(options: Check) -> int:
    """Measure, fit, draw and judge; 0 where the scheme is stable along every axis, else 1.

    Leaves coordinates.csv, exponents.csv and, for each axis, a picture as PNG and PDF in `options.out`. Raises
    ValueError for sizes, a corpus or a folder that will not do, before any work.
    """
    runs = ladder(options.run, options.widths, options.depths)
    require_data(runs)
    store.require_writable(options.out)
    try:
        table = _measured(runs, options.seeds)
    except KeyboardInterrupt:
        print("\ninterrupted; nothing is kept", file=sys.stderr)
        return 130
    arch = options.run.arch
    own: dict[Axis, pd.DataFrame] = {
        "width": table[(table["depth"] == arch.num_layers) & table["width"].isin(options.widths)],
        "depth": table[(table["width"] == arch.d_model) & table["depth"].isin(options.depths)],
    }
    found = {axis: exponents(part, axis, options.tolerance) for axis, part in own.items() if len(part) > 0}
    write_atomically(options.out / "coordinates.csv", partial(table.to_csv, index=False))
    write_atomically(options.out / "exponents.csv", partial(pd.concat(found.values()).to_csv, index=False))
    for axis, fits in found.items():
        figure = draw(own[axis], fits, _note(options, fits))
        with rc_context(RC):
            for suffix in ("png", "pdf"):
                save = partial(figure.savefig, format=suffix, dpi=200, facecolor="white", edgecolor=INK)
                write_atomically(options.out / f"{axis}.{suffix}", save)
    _print(pd.concat(found.values(), ignore_index=True).sort_values(["axis", "judged"], ascending=False, kind="stable"))
    verdicts = {axis: scheme_verdict(fits) for axis, fits in found.items()}
    for axis, verdict in verdicts.items():
        judged = found[axis][found[axis]["judged"]]
        worst = _steepest(judged if verdict == "stable" else judged[judged["verdict"] != "constant"])
        said = verdict if verdict == "stable" else verdict.upper()
        print(
            f"{axis}: {said}, {worst['statistic']} of {worst['line']} ~ {axis}^{worst['slope']:.2f}{_ADVICE[verdict]}"
        )
    print(f"slopes: {options.out / 'exponents.csv'}; pictures: {', '.join(f'{axis}.png' for axis in found)}")
    return 0 if set(verdicts.values()) == {"stable"} else 1


def _measured(runs: Sequence[Run], seeds: int) -> pd.DataFrame:
    tables = []
    with progress() as stage:
        for run in runs:
            with stage(f"width {run.arch.d_model}, depth {run.arch.num_layers} (steps)", run.steps) as advance:
                tables.append(measure_coordinates(run, seeds, advance))
    return pd.concat(tables, ignore_index=True)


def _steepest(found: pd.DataFrame) -> pd.Series:
    """Of these rows of `exponents`; one that has diverged before all others."""
    return found.iloc[int(found["slope"].abs().fillna(float("inf")).argmax())]


def _note(options: Check, found: pd.DataFrame) -> str:
    axis = found["axis"].iloc[0]
    judged = found[found["judged"]]
    counts = judged["verdict"].value_counts()
    return "\n".join(
        [
            f"{axis}: {scheme_verdict(found)}",
            f"{len(judged)} lines are judged: stream, change, decay"
            + (",\noutputs of linear layers" if axis == "width" else ""),
            *(f"  {counts[verdict]} {verdict}" for verdict in counts.index),
            f"tolerance {options.tolerance:g}, step {options.run.steps}, {options.seeds} seeds",
            "slopes with 95 % intervals over seeds",
        ]
    )


def _print(found: pd.DataFrame) -> None:
    """One row an axis and statistic: how many lines have which verdict, and the steepest one; judged lines apart."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in ("axis", "judged", "statistic", "lines", "steepest", "slope", "95 % interval", "at the end"):
        table.add_column(name, justify="right" if name in ("slope", "95 % interval", "at the end") else "left")
    for row in found[["axis", "judged", "statistic"]].drop_duplicates().itertuples(index=False):
        part = found[(found["axis"] == row[0]) & (found["judged"] == row[1]) & (found["statistic"] == row[2])]
        steepest = _steepest(part)
        counts = ", ".join(f"{count} {verdict}" for verdict, count in part["verdict"].value_counts().items())
        table.add_row(
            str(row[0]), "yes" if row[1] else "no", str(row[2]), counts, steepest["line"], signed(steepest["slope"]),
            f"{signed(steepest['low'])} to {signed(steepest['high'])}", signed(steepest["end"]),
        )  # fmt: skip
    Console(width=200).print(table)
