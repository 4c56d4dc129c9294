"""All figures: which there are, their files, and a page that shows them with captions and verdicts."""

import shutil
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from html import escape
from pathlib import Path

from matplotlib import rc_context

from paper_figures import (
    at_initialization,
    embedding_scale,
    propagation,
    recovery,
    small_scale_proxies,
    spike_no_more,
    training_stability,
)
from paper_figures.data import load, path_of, save
from paper_figures.figure import PaperFigure
from paper_figures.style import PRINT
from theory.atomic_file import named, write_atomically
from verify.claims import CLAIMS
from verify.claims.evidence import Cell, Evidence, train_cells
from verify.claims.scale import Scale
from verify.claims.verdicts import read
from verify.sweeps import store
from verify.training.run import Run

_PAPERS = (
    spike_no_more,
    embedding_scale,
    at_initialization,
    propagation,
    small_scale_proxies,
    training_stability,
    recovery,
)
FIGURES = {figure.name: figure for paper in _PAPERS for figure in paper.FIGURES}


def listed(scale: Scale, data: Path, runs: Path) -> str:
    """A line a figure: name, runs and arithmetic that are left to train, whether its data are here, the original."""
    lines = []
    for figure in FIGURES.values():
        needed = list(_cells([figure], scale))
        left = [run for run in needed if not store.path_of(run, runs).exists()]
        cost_left = f"{len(left)} of {len(needed)} runs, {sum(run.flops for run in left):.2g} FLOP to train"
        state = "data here" if path_of(figure.name, scale.name, data).exists() else "no data"
        lines.append(f"{figure.name:<16} {state:<10} {cost_left if needed else figure.trains:<44} {figure.original}")
    return "\n".join(lines)


def recomputed(names: Sequence[str], scale: Scale, data: Path, runs: Path, lanes: int | None) -> int:
    """Train what is missing of these figures' runs (none: of all) and write their data; the exit status.

    Verdicts that lie beside the runs come along.
    """
    figures = _chosen(names)
    if status := train_cells(_cells(figures, scale).values(), runs, lanes):
        return status
    evidence = Evidence(runs, scale.window)
    for figure in figures:
        save(figure.data(evidence, scale), path_of(figure.name, scale.name, data))
    verdicts = runs.parent / "verdicts.json"
    if verdicts.exists() and read(verdicts, scale.name):
        write_atomically(data / scale.name / "verdicts.json", partial(shutil.copyfile, verdicts))
    return 0


def draw(names: Sequence[str], scale: Scale, data: Path, out: Path) -> Iterator[str]:
    """Draw these figures, the files of each as a line, and the page of all that lie in `out`.

    names: none for all that have data; of the others a line says which command makes them.
    Raises ValueError for an unknown name, missing data, or a folder that cannot be written.
    """
    found = {}
    for figure in _chosen(names):
        try:
            found[figure.name] = load(figure.name, scale.name, data)
        except ValueError as error:
            if names:
                raise
            yield str(error)
    store.require_writable(out)
    for figure in map(FIGURES.__getitem__, found):
        drawn = figure.draw(found[figure.name])
        writers: dict[str, Callable[[Path], object]] = {
            ending: partial(drawn.savefig, format=ending, dpi=200, metadata=_METADATA[ending])
            for ending in ("pdf", "svg", "png")
        }
        writers["csv"] = partial(found[figure.name].to_dataframe().to_csv)
        with rc_context(PRINT):
            for ending, write in writers.items():
                path = out / f"{figure.name}.{ending}"
                with named(f"cannot write {path}"):
                    write_atomically(path, write)
        yield f"{out / figure.name}" + ".{" + ",".join(writers) + "}"
    verdicts = read(data / scale.name / "verdicts.json", scale.name)
    shown = [figure for figure in FIGURES.values() if (out / f"{figure.name}.svg").exists()]
    text = _page(shown, scale, {name: f"{found.outcome}: {found.effect}" for name, found in verdicts.items()})
    write_atomically(out / "index.html", lambda path: path.write_text(text, encoding="utf-8"))
    yield f"{out / 'index.html'}: {len(shown)} figures"


_METADATA: dict[str, dict[str, None]] = {"pdf": {"CreationDate": None}, "svg": {"Date": None}, "png": {}}
"""without the time, so that the same data give the same bytes"""


def _chosen(names: Sequence[str]) -> list[PaperFigure]:
    for name in names:
        if name not in FIGURES:
            raise ValueError(f"name: unknown figure {name!r}; choose one of {', '.join(FIGURES)}")
    return [figure for figure in FIGURES.values() if not names or figure.name in names]


def _cells(figures: Sequence[PaperFigure], scale: Scale) -> dict[Run, Cell]:
    """By run, each once however many figures show it."""
    return {cell.run: cell for figure in figures for runs in figure.runs for cell in runs(scale)}


_STYLE = """
:root { color-scheme: light dark; } body { margin: 0 auto; max-width: 60rem; padding: 1rem;
  font: 16px/1.5 system-ui, sans-serif; }
figure { margin: 2rem 0; } img { max-width: 100%; height: auto; background: white; padding: .5rem; }
figcaption { font-size: .9rem; } figcaption p { margin: .3rem 0; } code { font-size: .85rem; }
"""


def _page(figures: Sequence[PaperFigure], scale: Scale, verdicts: dict[str, str]) -> str:
    parts = []
    for figure in figures:
        files = ", ".join(f'<a href="{figure.name}.{ending}">{ending.upper()}</a>' for ending in (*_METADATA, "csv"))
        judged = "".join(
            f"<li><b>{claim}</b>, {escape(CLAIMS[claim].statement)} "
            f"{escape(verdicts.get(claim, 'not judged at this scale'))}</li>"
            for claim in figure.claims
        )
        parts.append(
            f'<figure id="{figure.name}"><img src="{figure.name}.svg" alt="{escape(figure.ours)}"/><figcaption>'
            f"<p><b>{figure.name}</b> ({files}). {escape(figure.ours)}</p><p>Original: {escape(figure.original)}.</p>"
            f"<ul>{judged}</ul></figcaption></figure>"
        )
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8"/>'
        '<meta name="viewport" content="width=device-width, initial-scale=1"/>'
        f"<title>spikeless: figures</title><style>{_STYLE}</style></head><body>"
        f"<h1>The papers' figures, from our own runs</h1><p>Scale {scale.name}.</p>{''.join(parts)}</body></html>\n"
    )
