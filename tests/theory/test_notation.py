"""The table of symbols: each defined once, described, and with assumptions that SymPy can use."""

import pytest
import sympy as sp

from theory import notation
from theory.notation import TABLE


def test_every_symbol_of_the_module_is_in_the_table_once():
    defined = [value for value in vars(notation).values() if isinstance(value, sp.Symbol | sp.MatrixSymbol)]
    assert len(defined) == len(TABLE) == len({entry.symbol for entry in TABLE.values()})
    assert {entry.symbol for entry in TABLE.values()} == set(defined)


@pytest.mark.parametrize("name", TABLE)
def test_every_symbol_has_name_meaning_and_unit(name):
    entry = TABLE[name]
    assert entry.symbol.name == name and entry.unit
    assert len(entry.meaning) > 10 and "\n" not in entry.meaning and not entry.meaning.endswith(".")


def test_meanings_are_distinct():
    assert len({entry.meaning for entry in TABLE.values()}) == len(TABLE)


@pytest.mark.parametrize("name", [name for name, entry in TABLE.items() if isinstance(entry.symbol, sp.Symbol)])
def test_scalars_are_never_negative_and_sizes_are_whole(name):
    symbol = TABLE[name].symbol
    assert symbol.is_nonnegative and symbol.is_finite
    if symbol in (notation.d, notation.d_ff, notation.N, notation.V, notation.T, notation.layer, notation.fan_in):
        assert symbol.is_integer and symbol.is_positive
    assert sp.sqrt(symbol**2) == symbol  # what the assumptions are for


def test_a_second_definition_is_refused():
    with pytest.raises(ValueError, match="symbol 'd' is already defined as: width of the residual stream, d_model"):
        notation._symbol("d", "another", positive=True)
    with pytest.raises(ValueError, match="symbol 'W_1' is already defined as"):
        notation._matrix("W_1", notation.d, notation.d, "another")
