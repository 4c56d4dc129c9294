"""Verdicts as a table, in the terminal and in Markdown."""

import shutil
import sys
from collections.abc import Sequence

from rich.console import Console
from rich.table import Table

from verify.claims.claim import Verdict


def print_verdicts(title: str, verdicts: Sequence[Verdict]) -> None:
    """One row a claim; into a file at least 140 columns wide."""
    table = Table(*_COLUMNS, title=title)
    for verdict in verdicts:
        table.add_row(*_cells(verdict))
    width = None if sys.stdout.isatty() else max(shutil.get_terminal_size().columns, 140)
    Console(width=width).print(table)


def markdown(verdicts: Sequence[Verdict]) -> str:
    """The same rows."""
    rows = [_COLUMNS, ("---",) * len(_COLUMNS), *map(_cells, verdicts)]
    return "".join(f"| {' | '.join(cell.replace('|', '/') for cell in row)} |\n" for row in rows)


_COLUMNS = ("claim", "verdict", "effect", "value", "95 % interval", "sample")


def _cells(verdict: Verdict) -> tuple[str, ...]:
    interval = f"{verdict.low:.3g} .. {verdict.high:.3g}"
    return verdict.claim, verdict.outcome, verdict.effect, f"{verdict.value:.3g}", interval, verdict.samples
