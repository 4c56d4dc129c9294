"""The table of growth classes says what `growth` says of every combination, whatever it puts side by side."""

from dataclasses import replace

from theory import Architecture
from theory.growth import growth_table
from theory.growth_classes import markdown


def _rows(text: str) -> dict[str, dict[str, str]]:
    """Cell by initialisation and block, groups taken apart again."""
    head, _, *rows = [line.strip("| ").split(" | ") for line in text.split("\n\n")[0].splitlines()]
    return {
        scheme: {name: cell for names, cell in zip(head[1:], row[1:], strict=True) for name in names.split(", ")}
        for row in rows
        for scheme in row[0].split(", ")
    }


def test_every_combination_is_in_its_cell() -> None:
    blocks, schemes = ("pre_ln", "parallel", "post_ln", "rezero"), ("small", "he", "megatron", "wang")
    table = tuple(growth_table(Architecture(), blocks, schemes, ("vanilla", "scaled")))
    cells = _rows(text := markdown(table))
    assert {(str(m.initialization), str(m.block)): g.formula for m, g in table} == {
        (scheme, name): cell for scheme, row in cells.items() for name, cell in row.items()
    }
    head, last = text.splitlines()[0], text.splitlines()[-1]
    assert "pre_ln, parallel" in head and "| megatron, wang |" in text and "| small, he |" not in text
    assert last == "32 combinations: 20 constant, 8 power, 4 exponential."


def test_an_embedding_with_another_class_is_named_and_a_hole_is_a_dash() -> None:
    (at, power), (other, exponential) = growth_table(Architecture(), ("pre_ln", "post_ln"), ("small",), ("vanilla",))
    text = markdown([(at, power), (replace(at, embedding="scaled"), exponential), (other, exponential)])
    assert _rows(text)["small"]["pre_ln"] == f"{power.formula} (vanilla); {exponential.formula} (scaled)"
    text = markdown([(at, power), (replace(other, initialization="he"), exponential)])
    assert _rows(text) == {
        "small": {"pre_ln": power.formula, "post_ln": "-"},
        "he": {"pre_ln": "-", "post_ln": exponential.formula},
    }
