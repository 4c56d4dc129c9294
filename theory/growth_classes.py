"""The growth classes of many models as one table: initialisations down, blocks across, equal ones side by side."""

from collections import Counter
from collections.abc import Iterable

from theory.architecture import Architecture
from theory.block import block
from theory.embedding import embedding
from theory.growth import Growth
from theory.initialization import initialization


def markdown(table: Iterable[tuple[Architecture, Growth]]) -> str:
    """`growth_table` as Markdown: what differs between embeddings is said in the cell, then how many of each kind.

    A dash: the combination is not in `table`.
    """
    classes: dict[tuple[str, str], dict[str, list[str]]] = {}
    kinds: Counter[str] = Counter()
    for arch, found in table:
        names = block(arch.block).name, initialization(arch.initialization).name
        classes.setdefault(names, {}).setdefault(found.formula, []).append(embedding(arch.embedding).name)
        kinds[found.kind] += 1
    cells = {names: _cell(formulas) for names, formulas in classes.items()}
    blocks, schemes = (list(dict.fromkeys(names[i] for names in cells)) for i in (0, 1))
    columns, rows = _alike(blocks, schemes, cells), _alike(schemes, blocks, {(i, b): cells[b, i] for b, i in cells})
    lines = ["| initialisation | " + " | ".join(", ".join(names) for names in columns) + " |"]
    lines.append("|---" * (len(columns) + 1) + "|")
    for row in rows:
        lines.append(
            f"| {', '.join(row)} | " + " | ".join(cells.get((blocks[0], row[0]), "-") for blocks in columns) + " |"
        )
    counted = ", ".join(f"{count} {kind}" for kind, count in kinds.most_common())
    return "\n".join(lines) + f"\n\n{kinds.total()} combinations: {counted}."


def _cell(formulas: dict[str, list[str]]) -> str:
    """The class alone, if every embedding has it."""
    if len(formulas) == 1:
        return next(iter(formulas))
    return "; ".join(f"{formula} ({', '.join(names)})" for formula, names in formulas.items())


def _alike(names: list[str], others: list[str], cells: dict[tuple[str, str], str]) -> list[list[str]]:
    """Those of the names that have the same cells, together."""
    groups: dict[tuple[str | None, ...], list[str]] = {}
    for name in names:
        groups.setdefault(tuple(cells.get((name, other)) for other in others), []).append(name)
    return list(groups.values())
