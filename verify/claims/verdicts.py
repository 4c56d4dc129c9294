"""Verdicts as a table, in the terminal and in Markdown, and as a file."""

import dataclasses
import json
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from theory.atomic_file import write_atomically
from verify.claims import CLAIMS, Verdict


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


def read(file: Path, scale_name: str) -> dict[str, Verdict]:
    """Verdicts of that scale by claim, none without a file. Raises ValueError for a file that holds something else."""
    if not file.exists():
        return {}
    names = {field.name for field in dataclasses.fields(Verdict)}
    try:
        rows = json.loads(file.read_text(encoding="utf-8"))
        found = [Verdict(**{name: _number(row[name]) for name in names}) for row in rows]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"claims: {file} holds no verdicts of ours; move it away ({error!r})") from error
    return {verdict.claim: verdict for verdict in found if verdict.scale == scale_name}


def _number(value: Any) -> Any:
    """JSON has no NaN."""
    return np.nan if value is None else value


def write(verdicts: dict[str, Verdict], out: Path) -> None:
    """Into out/verdicts.json, each with what its claim says and how it is judged, and out/verdicts.md."""
    ordered = [(claim, verdicts[name]) for name, claim in CLAIMS.items() if name in verdicts]
    rows = [
        {name: None if value != value else value for name, value in dataclasses.asdict(verdict).items()}
        | {"statement": claim.statement, "source": claim.source, "protocol": claim.protocol, "rule": claim.rule}
        | {"evidence": f"evidence/{claim.id}.csv"}
        for claim, verdict in ordered
    ]
    text = json.dumps(rows, indent=1) + "\n"
    write_atomically(out / "verdicts.json", lambda path: path.write_text(text, encoding="utf-8"))
    table = markdown([verdict for _, verdict in ordered])
    write_atomically(out / "verdicts.md", lambda path: path.write_text(table, encoding="utf-8"))
