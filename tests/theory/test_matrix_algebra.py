"""Words of matrices: what rewriting refuses, and traces by hand."""

import pytest
import sympy as sp

from theory import notation as s
from theory.derivation import equation
from theory.matrix_algebra import Words, rule, trace, words

P, Q = (sp.MatrixSymbol(name, s.d, s.d) for name in "PQ")
ORTHOGONAL = rule(equation(s.e.T * s.x, sp.ZeroMatrix(1, 1)))


@pytest.mark.parametrize(
    "rules",
    [
        [((P,), {(Q,): sp.S.One}), ((Q,), {(P,): sp.S.One})],
        [((P,), {(P, P): sp.S.One})],
        [((P,), {(P,): sp.S.One, (Q,): sp.S.One})],
    ],
)
def test_rules_that_never_end_are_refused(rules: list[tuple[tuple[sp.MatrixExpr, ...], Words]]) -> None:
    with pytest.raises(ValueError, match=r"^these rules rewrite P for ever$"):
        words(P, rules)


@pytest.mark.parametrize("expression", [P.I, P + 2 * sp.HadamardProduct(P, Q), P**s.N])
def test_only_sums_of_products_are_words(expression: sp.MatrixExpr) -> None:
    with pytest.raises(TypeError, match="not a sum of products of matrix symbols: "):
        words(expression)


def test_traces_by_hand() -> None:
    """tr 1 = d, tr e e^T = e^T e = d, tr e x^T = x^T e = 0 of a centred x."""
    ones = rule(equation(s.e.T * s.e, s.d * sp.Identity(1)))
    assert trace(3 * sp.Identity(s.d) - 2 * s.e * s.e.T + 5 * s.e * s.x.T, [*ones, *ORTHOGONAL]) == s.d


@pytest.mark.parametrize(
    ("expression", "message"),
    [(s.e * s.x.T, "the trace of e*x.T needs a rule for {(x.T, e): 1}"), (P * Q, "no rule gives the trace of P*Q")],
)
def test_a_trace_that_no_rule_gives_is_refused(expression: sp.MatrixExpr, message: str) -> None:
    with pytest.raises(TypeError) as caught:
        trace(expression)
    assert str(caught.value) == message
