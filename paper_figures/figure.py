"""A figure: which runs it needs, what of them it shows, and how that is drawn."""

from collections.abc import Callable
from dataclasses import dataclass

import xarray as xr
from matplotlib.figure import Figure

from verify.claims.claim import Runs
from verify.claims.evidence import Evidence
from verify.claims.scale import Scale


@dataclass(frozen=True)
class PaperFigure:
    """original: what the paper's own shows, with how that is known; ours: what this one shows.

    claims: that it bears on. runs: to be trained for it, as claims name them; none where theory and measurements at
    initialisation are enough, or `data` trains by itself, as `trains` says. data: small, everything that is drawn.
    draw: of data alone.
    """

    name: str
    original: str
    ours: str
    data: Callable[[Evidence, Scale], xr.Dataset]
    draw: Callable[[xr.Dataset], Figure]
    claims: tuple[str, ...] = ()
    runs: tuple[Runs, ...] = ()
    trains: str = "no training"
