"""Verdicts as a table in the terminal."""

import shutil
import sys
from collections.abc import Sequence

from rich.console import Console
from rich.table import Table

from verify.claims.claim import Verdict


def print_verdicts(title: str, verdicts: Sequence[Verdict]) -> None:
    """One row a claim; into a file at least 140 columns wide."""
    table = Table("claim", "verdict", "effect", "value", "95 % interval", "sample", title=title)
    for verdict in verdicts:
        interval = f"{verdict.low:.3g} .. {verdict.high:.3g}"
        table.add_row(verdict.claim, verdict.outcome, verdict.effect, f"{verdict.value:.3g}", interval, verdict.samples)
    width = None if sys.stdout.isatty() else max(shutil.get_terminal_size().columns, 140)
    Console(width=width).print(table)
