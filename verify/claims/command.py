"""`python -m verify claims`: train what the claims ask for, each run once, and judge them."""

import itertools
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from rich.console import Console
from rich.table import Table

from verify.claims import CLAIMS, Claim
from verify.claims.evidence import Cell, Evidence, train_cells
from verify.claims.scale import Scale, scale
from verify.claims.verdicts import print_verdicts, read, write
from verify.sweeps import store
from verify.training.run import Run


def judge(ids: Sequence[str], scale_name: str, out: Path, lanes: int | None, plan_only: bool) -> int:
    """Train what is missing of the claims' runs into out/runs, judge, and print the verdicts.

    They are written to out/verdicts.json and out/verdicts.md, beside those of claims that were judged there before at
    the same scale, and the table that each rests on, a row a run, to out/evidence. ids: none for all that are judged on
    trained runs. Returns the exit status, 130 after an interruption. Raises ValueError for an unknown claim or scale,
    for one that the report judges, and for a file of verdicts that is none.
    """
    chosen, at = _chosen(ids), scale(scale_name)
    before = read(out / "verdicts.json", at.name)
    asked = {claim.id: _cells(claim, at) for claim in chosen}
    folder = out / "runs"
    _print_plan(asked, folder, at)
    status = train_cells(itertools.chain.from_iterable(asked.values()), folder, lanes, plan_only)
    if status or plan_only:
        return status
    evidence = Evidence(folder, at.window)
    verdicts = []
    for claim in chosen:
        assert claim.judge is not None
        verdicts.append(claim.judge(evidence, at))
        table = evidence.table(asked[claim.id])
        store.require_writable(out / "evidence")
        store.write_atomically(out / "evidence" / f"{claim.id}.csv", partial(table.to_csv, index=False))
    write(before | {verdict.claim: verdict for verdict in verdicts}, out)
    print_verdicts("claims, judged", verdicts)
    print(f"verdicts: {out}/verdicts.json and .md, a row a run: {out}/evidence/, runs: {folder}/")
    return 0


def _chosen(ids: Sequence[str]) -> list[Claim]:
    for name in ids:
        if name not in CLAIMS:
            raise ValueError(f"claims: unknown value {name!r}; choose one of {', '.join(CLAIMS)}")
        if CLAIMS[name].judge is None:
            raise ValueError(f"claims: {name} is judged by python -m verify report")
    return [claim for claim in CLAIMS.values() if claim.judge is not None and (not ids or claim.id in ids)]


def _cells(claim: Claim, at: Scale) -> list[Cell]:
    return [cell for runs in claim.runs for cell in runs(at)]


def _print_plan(asked: dict[str, list[Cell]], folder: Path, at: Scale) -> None:
    table = Table("claim", "runs", "of them new", "done", "steps to do", "FLOP to do", title=f"plan, scale {at.name}")
    seen: set[Run] = set()
    total_steps, total_flops = 0, 0.0
    for name, cells in asked.items():
        runs = list(dict.fromkeys(cell.run for cell in cells))
        new = [run for run in runs if run not in seen]
        left = [run for run in new if not store.path_of(run, folder).exists()]
        steps, flops = sum(run.steps for run in left), sum(run.flops for run in left)
        table.add_row(name, str(len(runs)), str(len(new)), str(len(new) - len(left)), str(steps), f"{flops:.3g}")
        seen |= set(new)
        total_steps, total_flops = total_steps + steps, total_flops + flops
    table.add_section()
    table.add_row("all", "", str(len(seen)), "", str(total_steps), f"{total_flops:.3g}")
    Console(width=100).print(table)
