"""Draw figures of "Spike No More" from a finished report: python -m paper_figures [NAME ...] [--list] [--all].

Exit status 0: done; 2: wrong usage, or data that are not there, with the command that makes them.
"""

import dataclasses
import sys
from collections.abc import Callable
from pathlib import Path

import tyro
from matplotlib import rc_context
from matplotlib.figure import Figure

from paper_figures import spike_no_more
from paper_figures.spike_no_more import FIGURES, Data
from theory.command_line import run
from verify.report.style import INK, RC


@dataclasses.dataclass(frozen=True)
class Options:
    """Draw figures from the data of a finished report."""

    names: tyro.conf.Positional[tuple[str, ...]] = ()
    """figures to draw; --list shows them"""
    list: bool = False
    """show every figure with what the original shows"""
    all: bool = False
    """draw every figure"""
    report: Path = Path("report")
    """folder of the report whose data are drawn"""
    out: Path = Path("figures")
    """folder of the figures, PNG and PDF"""


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    options = tyro.cli(Options, args=arguments, prog="python -m paper_figures", description=__doc__)
    return run(lambda: _main(options))


def _main(options: Options) -> int:
    if options.list or not (options.names or options.all):
        for name, figure in FIGURES.items():
            print(f"{name:<14} {figure.original}")
        return 0
    for name in options.names:
        if name not in FIGURES:
            raise ValueError(f"name: unknown figure {name!r}; choose one of {', '.join(FIGURES)}")
    data = spike_no_more.load(options.report)
    options.out.mkdir(parents=True, exist_ok=True)
    for name in FIGURES if options.all else options.names:
        print(", ".join(str(path) for path in _save(FIGURES[name].draw, data, options.out / name)))
    return 0


def _save(draw: Callable[[Data], Figure], data: Data, stem: Path) -> tuple[Path, Path]:
    figure = draw(data)
    paths = stem.with_suffix(".png"), stem.with_suffix(".pdf")
    with rc_context(RC):
        for path in paths:
            figure.savefig(path, dpi=200, facecolor="white", edgecolor=INK)
    return paths


if __name__ == "__main__":
    sys.exit(main())
