"""Every derivation re-proves; a mutated step does not; every rendering is well-formed."""

import dataclasses
import re
import xml.etree.ElementTree as ET

import pytest
import sympy as sp

from theory import notation as s
from theory.derivation import Derivation, Step, at, derive, equation, topics
from theory.rendering import plain, statement_mathml

TOPICS = tuple(topics())
X, Y = sp.symbols("x y")


@pytest.mark.parametrize("name", TOPICS)
def test_every_step_is_proven_again(name: str) -> None:
    check = derive(name).check()
    assert check.holds, [(str(o.step.statement), o.how) for o in check.outcomes if not o.holds]
    assert bool(check) is True
    for outcome in check.outcomes:
        assert outcome.step.reason and outcome.step.source and outcome.how
        if outcome.step.kind in ("given", "cited"):
            assert outcome.how.startswith(outcome.step.kind)


def _mutated(statement: sp.Basic) -> sp.Basic:
    """A false neighbour: an equation's right side 1 % off, an inequality turned strictly around."""
    if isinstance(statement, sp.Eq):
        right = statement.rhs
        if getattr(right, "is_Matrix", False):
            if isinstance(right, sp.ZeroMatrix):
                other = {(1, 1): sp.Identity(1), (1, s.d): s.e.T, (s.d, s.d): sp.Identity(s.d)}[statement.lhs.shape]
                return sp.Eq(statement.lhs, other, evaluate=False)
            return sp.Eq(statement.lhs, sp.Rational(101, 100) * right, evaluate=False)
        return sp.Eq(statement.lhs, sp.Rational(101, 100) * right + sp.Rational(1, 97), evaluate=False)
    if isinstance(statement, sp.Le | sp.Lt):
        return type(statement)(statement.lhs, statement.rhs / 2 - 1, evaluate=False)
    return type(statement)(statement.lhs, 2 * statement.rhs + 1, evaluate=False)


@pytest.mark.parametrize("name", TOPICS)
def test_a_mutated_step_fails(name: str) -> None:
    derivation = derive(name)
    survivors = []
    for i, step in enumerate(derivation.steps):
        infinite = isinstance(step.statement, sp.Eq) and step.statement.rhs in (sp.oo,)
        if step.kind != "proven" or infinite:
            continue
        earlier = [dataclasses.replace(e, kind="given", instances=None) for e in derivation.steps[:i]]
        wrong = dataclasses.replace(step, statement=_mutated(step.statement))
        if dataclasses.replace(derivation, steps=(*earlier, wrong)).check().outcomes[i].holds:
            survivors.append(str(wrong.statement))
    assert not survivors


def test_a_step_may_use_only_what_is_stated_before() -> None:
    later = sp.Eq(s.C_ffn, 9 * s.d)
    step = Step(sp.Eq(s.C_ffn / s.d, 9), "follows", using=(later,))
    assert not Derivation("t", "t", (step, Step(later, "given", kind="given"))).check()
    assert Derivation("t", "t", (Step(later, "given", kind="given"), step)).check()


@pytest.mark.parametrize(("statement", "value"), [(sp.Eq(s.d, s.d), "True"), (sp.Lt(s.d, s.d), "False")])
def test_a_statement_that_sympy_has_decided_is_none(statement: sp.Basic, value: str) -> None:
    with pytest.raises(ValueError) as caught:
        Step(statement, "decided")
    assert str(caught.value) == f"statement: SymPy evaluated it to {value}; build it with evaluate=False"


def test_a_statement_of_one_thing_twice_is_refused() -> None:
    """Where SymPy has put in what was to be shown: the step would say nothing, and hold whatever the formula."""
    with pytest.raises(ValueError, match="statement: both sides are 9\\*d, which says nothing; keep one as it is"):
        Step(equation(s.C_ffn.subs(s.C_ffn, 9 * s.d), 9 * s.d), "at d_ff = 4 d")
    for value, holds in ((9 * s.d, True), (8 * s.d, False)):
        step = Step(equation(at(s.C_ffn, {s.C_ffn: 9 * s.d}), value), "as it is written")
        assert Derivation("t", "t", (step,)).check().holds == holds


def test_values_put_in_are_read_as_such() -> None:
    x = s.sigma_x
    assert plain(equation(at(x * s.d, {x: 2}), 2 * s.d)) == "(d*sigma_x at sigma_x = 2) = 2*d"
    with pytest.raises(ValueError, match=r"^values: d\*sigma_x has no N; give values of what it has"):
        at(x * s.d, {x: 2, s.N: 7})
    assert plain(equation(sp.Limit(1 / x, x, sp.oo), 0)) == "Limit(1/sigma_x, sigma_x -> oo) = 0"
    assert plain(equation(sp.Limit(1 / x, x, 0), sp.oo)) == "Limit(1/sigma_x, sigma_x -> 0+) = oo"


def test_a_lemma_must_be_stated_in_its_derivation() -> None:
    wrong = Step(sp.Eq(s.C_ffn, s.d), "no such statement", "layer_norm_jacobian", kind="lemma")
    assert not Derivation("t", "t", (wrong,)).check()


def test_numeric_proof_says_so_and_refutes() -> None:
    r = s.excess_ffn
    true, false = sp.Le(sp.log(1 + r), r), sp.Le(sp.log(1 + r), r / 2)
    check = Derivation("t", "t", (Step(true, "concave"), Step(false, "wrong"))).check()
    assert check.outcomes[0].how == "numeric, 24 points, 50 digits"
    assert [o.holds for o in check.outcomes] == [True, False]


@pytest.mark.parametrize("name", TOPICS)
def test_renderings(name: str) -> None:
    derivation = derive(name)
    check = derivation.check()
    root = ET.fromstring(derivation.to_mathml(check))
    math = root.findall(".//{http://www.w3.org/1998/Math/MathML}math")
    assert len(math) == len(derivation.steps)
    for text in (derivation.to_text(check), derivation.to_markdown(check), derivation.to_latex(check)):
        assert derivation.title in text
    assert derivation.to_markdown().count("$$") == 2 * len(derivation.steps)


def test_mathml_shows_greek_and_subscripts() -> None:
    markup = derive("feed_forward_bound").to_mathml()
    assert "<mi>ffn</mi>" in markup and "‖" in markup
    assert "&#963;" in markup or "σ" in markup


@pytest.mark.parametrize(
    ("statement", "said"),
    [
        (equation(at(X + 1, {X: 2}), 3), "(x+1)|x=2=3"),
        (equation(at(X * Y, {X: 2, Y: 3}), 6), "(xy)|x=2y=3=6"),
        (equation(sp.Derivative(X**2 + 1, X), 2 * X), "ⅆⅆx(x2+1)=2x"),
        (equation(sp.Derivative(X**2, X), 2 * X), "ⅆⅆxx2=2x"),
        (equation(sp.Limit(1 / X + 1, X, sp.oo), 1), "limx→∞(1+1x)=1"),
        (equation(sp.Product(X + Y, (Y, 1, 2)), 3), "∏y=12(x+y)=3"),
        (equation(sp.Product(Y * X, (Y, 1, 2)), 3), "∏y=12xy=3"),
    ],
)
def test_mathml_brackets_what_a_sign_is_of(statement: sp.Basic, said: str) -> None:
    """SymPy alone writes d/dx x^2 + 1 for the derivative of a sum, and subs and product as functions."""
    text = "".join(ET.fromstring(statement_mathml(statement)).itertext())
    assert re.sub(r"[\s\u2062\u2061]", "", text) == said


def test_unknown_topic_names_the_choices() -> None:
    with pytest.raises(ValueError, match=r"topic: unknown value 'nope'; choose one of layer_norm_jacobian"):
        derive("nope")
