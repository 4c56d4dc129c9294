"""Draw the papers' figures from this project's own runs: python -m paper_figures [NAME ...] [--list] [--all].

Their data come with the package, at scale small; --recompute makes them anew, training what is missing. Exit status 0:
done; 2: wrong usage, or data that are not there, with the command that makes them; 130: interrupted.
"""

import dataclasses
import sys
from pathlib import Path
from typing import Literal

import tyro

from paper_figures.data import COMMITTED
from theory.command_line import run


@dataclasses.dataclass(frozen=True)
class Options:
    """Draw figures, and a page of all that were drawn."""

    names: tyro.conf.Positional[tuple[str, ...]] = ()
    """figures to draw; --list shows them"""
    list: bool = False
    """show every figure: what the original shows, what it takes to train, whether its data are here"""
    all: bool = False
    """draw every figure"""
    scale: Literal["tiny", "small", "gpu"] = "small"
    """of the runs: tiny: whether it works; small: hours on 2 cores; gpu: one accelerator"""
    recompute: bool = False
    """make the data anew from runs in --runs, training what is missing there"""
    runs: Path = Path("claims/runs")
    """folder of the runs, as python -m verify claims has it"""
    lanes: int | None = None
    """most runs that advance together in one compiled program (None: as many as pay and fit into memory)"""
    data: Path = COMMITTED
    """folder of the figures' data"""
    out: Path = Path("figures")
    """folder of the figures: PDF, SVG, PNG, CSV, and index.html"""


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    options = tyro.cli(Options, args=arguments, prog="python -m paper_figures", description=__doc__)
    return run(lambda: _main(options))


def _main(options: Options) -> int:
    from paper_figures.gallery import draw, listed, recomputed
    from verify.claims.scale import scale

    at = scale(options.scale)
    if options.list or not (options.names or options.all):
        print(listed(at, options.data, options.runs))
        return 0
    if options.recompute:
        status = recomputed(options.names, at, options.data, options.runs, options.lanes)
        if status:
            return status
    for line in draw(options.names, at, options.data, options.out):
        print(line)
    return 0


if __name__ == "__main__":
    sys.exit(main())
