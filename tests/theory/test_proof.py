"""What is proven, what is only supported by numbers, and what is not proven though it is true or nearly so."""

import pytest
import sympy as sp

from theory.derivation import equation
from theory.proof import prove

x, y = sp.symbols("x y", real=True)
p = sp.Symbol("p", nonnegative=True)
MACHIN = 4 * sp.atan(sp.Rational(1, 5)) - sp.atan(sp.Rational(1, 239))  # pi / 4


def test_what_sympy_has_decided() -> None:
    assert prove(sp.Eq(x, x)) == "symbolic"
    assert prove(sp.Lt(x, x)) is None


@pytest.mark.parametrize("statement", [x, sp.And(x > 0, y > 0), sp.Ne(x, x + 1, evaluate=False)])
def test_what_is_no_equation_or_inequality_is_not_proven(statement: sp.Basic) -> None:
    assert prove(statement) is None


@pytest.mark.parametrize(
    ("statement", "hypothesis", "proven"),
    [
        (sp.Le(x, 1), sp.Le(x, 1), True),
        (sp.Ge(x, 1), sp.Le(x, 1), False),  # it bounds the side that is of no help
        (sp.Le(x, 1), sp.Ge(x, 1), False),
        (sp.Le(x, 1), sp.Le(y, 1), False),
        (sp.Le(x, 1), sp.Le(x * y, 1), False),
        (sp.Ge(x, 0), sp.Le(p, x), True),  # the larger side is what it bounds here
    ],
)
def test_a_hypothesis_helps_only_where_it_bounds(statement: sp.Basic, hypothesis: sp.Basic, proven: bool) -> None:
    assert prove(statement, (hypothesis,)) == ("symbolic" if proven else None)


def test_a_strict_inequality_fails_where_the_sides_are_equal() -> None:
    assert prove(sp.Ge(sp.Max(x, 0), 0, evaluate=False)) == "symbolic"
    assert prove(sp.Gt(sp.Max(x, 0), 0, evaluate=False)) is None
    one = sp.sin(x) ** 2 + sp.cos(x) ** 2
    assert prove(sp.Le(one, 1, evaluate=False)) == "symbolic"
    assert prove(sp.Lt(one, 1, evaluate=False)) is None
    assert prove(sp.Gt(one, 1, evaluate=False)) is None


def test_numbers_without_symbols_are_evaluated_once() -> None:
    assert prove(equation(MACHIN, sp.pi / 4)) == "numeric, 1 point, 50 digits"
    assert prove(equation(MACHIN, sp.pi / 4 + sp.Rational(1, 10**30))) is None
