"""Run the whole report, stage by stage, with progress, and print the verdicts."""

import dataclasses
import json
import sys
from functools import partial
from pathlib import Path

from theory import derive
from theory.derivation import topics
from verify.claims import Verdict
from verify.claims.evidence import Evidence
from verify.claims.verdicts import print_verdicts
from verify.report import stages
from verify.report.options import METHODS, TITLES, ReportOptions
from verify.report.page import page
from verify.sweeps import store
from verify.training.corpus import load_corpus
from verify.training.progress import progress


def run(options: ReportOptions) -> int:
    """Write options.out/index.html and its data. Returns 0, or 1 where a step of a derivation does not hold.

    What is finished stays: started again after an interruption, it goes on where it was. Raises ValueError for an
    unwritable folder and for a corpus that is missing or too short, before any work.
    """
    corpus = load_corpus(options.corpus, options.arch.vocab_size)
    for arch in (options.arch, options.trained):
        for split in ("train", "held_out"):
            corpus.batch(arch.seq_len, 1, seed=0, step=0, split=split)
    store.require_writable(options.out)
    try:
        return _run(options)
    except KeyboardInterrupt:
        print(
            f"\ninterrupted; what is finished stays in {options.out}/ and the same command goes on from there",
            file=sys.stderr,
        )
        return 130


def _run(options: ReportOptions) -> int:
    with progress() as stage:
        with stage("derive and check", len(topics())) as advance:
            derivations = []
            for name in topics():
                derivation = derive(name)
                derivations.append((derivation, derivation.check()))
                advance(1)
        with stage("predict and measure", len(METHODS) + 1) as advance:
            analyses = {}
            for method in METHODS:
                analyses[method] = stages.analyse(options, method)
                advance(1)
            by_width = stages.first_excess_by_width(options)
            advance(1)
        for method in METHODS:
            total = len(options.rates) * options.seeds * options.steps
            with stage(f"train {TITLES[method]} (steps)", total) as advance:
                stages.train_method(options, method, advance)
        with stage("judge and draw", 2) as advance:
            cells = stages.run_cells(options)
            evidence = Evidence(options.out / "runs", stages.SPIKE_WINDOW)
            runs = {tuple(cell.labels.values()): evidence.dataset(cell) for cell in cells}
            table = evidence.table(cells)
            verdicts = stages.judge(options, analyses, by_width, table)
            advance(1)
            html = page(options, derivations, analyses, runs, table, verdicts)
            _write(options, html, table.to_csv(index=False), verdicts)
            advance(1)
    print_verdicts("Spike No More, judged", verdicts)
    print(f"report: {options.out / 'index.html'}")
    return 0 if all(check for _, check in derivations) else 1


def _write(options: ReportOptions, html: str, csv: str, verdicts: list[Verdict]) -> None:
    texts = {
        "training_runs.csv": csv,
        "verdicts.json": json.dumps([dataclasses.asdict(verdict) for verdict in verdicts], indent=1),
        "index.html": html,
    }
    for name, text in texts.items():
        store.write_atomically(options.out / name, partial(Path.write_text, data=text, encoding="utf-8"))
