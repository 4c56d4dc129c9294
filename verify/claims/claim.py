"""A paper's claim as data: statement, protocol and decision rule, fixed beforehand.

A claim comes out supported, refuted or inconclusive at the scale it was judged at; all three are results. A claim's
source carries how it is known: [P] read in the paper, [S] from a digest of it.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from verify.claims.evidence import Cell, Evidence
    from verify.claims.scale import Scale

Outcome = Literal["supported", "refuted", "inconclusive"]


@dataclass(frozen=True)
class Claim:
    """What a paper says, what we measure, and how that decides.

    runs: what it is judged on, as functions of the scale; claims that name the same one share its runs. judge: what
    those runs say. Neither where the report measures and judges it.
    """

    id: str
    statement: str
    source: str
    protocol: str
    rule: str
    runs: tuple["Runs", ...] = ()
    judge: "Judge | None" = None


@dataclass(frozen=True)
class Verdict:
    """How a claim came out: effect with a 95 % interval (nan where there is none), sample size, and the scale."""

    claim: str
    outcome: Outcome
    effect: str
    value: float
    low: float
    high: float
    samples: str
    scale: str

    def __post_init__(self) -> None:
        for name in ("value", "low", "high"):
            object.__setattr__(self, name, float(getattr(self, name)))


Runs = Callable[["Scale"], tuple["Cell", ...]]
Judge = Callable[["Evidence", "Scale"], Verdict]
