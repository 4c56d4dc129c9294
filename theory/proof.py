"""How a statement is re-proven: symbolic simplification first, high-precision evaluation where SymPy cannot.

An equation holds when left minus right simplifies to zero; an inequality when its difference, after every bounded
quantity has been put at its worst value, is manifestly non-negative. Evaluation at random points (50 digits, a
fixed seed) can refute any scalar statement and only supports one; the answer says which of the two was done.
"""

import random
from collections.abc import Sequence

import mpmath  # type: ignore[import-untyped]
import sympy as sp
from sympy.core.function import AppliedUndef

from theory.matrix_algebra import Norm, rule, trace, words

POINTS = 24
DIGITS = 50
_TOLERANCE = mpmath.mpf(10) ** -35


def prove(statement: sp.Basic, using: Sequence[sp.Basic] = ()) -> str | None:
    """Either "symbolic" or "numeric, n points, digits" where the statement holds, None where it does not.

    statement: an equation or inequality of scalars, or an equation of matrices. using: statements that may be
    used: an equation whose left side is a symbol, a norm or a product of matrices is substituted from left to
    right; an inequality bounds the quantity on its smaller side.
    """
    if statement is sp.true or statement is True:
        return "symbolic"
    if not isinstance(statement, sp.Eq | sp.Le | sp.Ge | sp.Lt | sp.Gt):
        return None
    if getattr(statement.lhs, "is_Matrix", False):
        return "symbolic" if _matrices_agree(statement, using) else None
    statement = _plain(_substituted(statement, using))
    hypotheses = [_plain(_substituted(h, using)) for h in using if not isinstance(h, sp.Eq)]
    low, high = (statement.lts, statement.gts) if not isinstance(statement, sp.Eq) else (statement.lhs, statement.rhs)
    high, low = high.doit(), low.doit()
    if isinstance(statement, sp.Eq) and high == low:  # infinite limits too
        return "symbolic"
    difference = high - low
    if isinstance(statement, sp.Eq):
        if vanishes(difference):
            return "symbolic"
    elif _non_negative(difference, hypotheses, isinstance(statement, sp.Lt | sp.Gt)):
        return "symbolic"
    # Random points inside the hypotheses never reach their worst case, so there evaluation supports nothing.
    return None if hypotheses else _evaluate(statement, low, difference)


def vanishes(expression: sp.Expr) -> bool:
    """Whether the expression simplifies to zero, by steps from cheap to dear; a rational function's normal form."""
    functions = {f: sp.Dummy() for f in expression.atoms(AppliedUndef)}
    if (rational := expression.xreplace(functions)).is_rational_function():
        return bool(sp.cancel(rational) == 0)
    for attempt in (lambda e: e, sp.expand, lambda e: sp.expand(sp.together(e)), sp.simplify):
        expression = attempt(expression)
        if expression == 0:
            return True
    return False


def _matrices_agree(statement: sp.Eq, using: Sequence[sp.Basic]) -> bool:
    matrix = [h for h in using if isinstance(h, sp.Eq) and getattr(h.lhs, "is_Matrix", False)]
    scalar = [(h.lhs, h.rhs) for h in using if isinstance(h, sp.Eq) and h not in matrix]
    if isinstance(statement.lhs, sp.MatrixBase):
        difference = (statement.lhs - statement.rhs).applyfunc(lambda e: e.doit().subs(scalar))
        return all(vanishes(entry) for entry in difference)
    rules = [r for h in matrix for r in rule(h)]
    left = words(statement.lhs - statement.rhs, rules)
    return all(vanishes(coefficient.subs(scalar)) for coefficient in left.values())


def _substituted(statement: sp.Basic, using: Sequence[sp.Basic]) -> sp.Basic:
    equations = [h for h in using if isinstance(h, sp.Eq)]
    rules = [r for h in equations if getattr(h.lhs, "is_Matrix", False) for r in rule(h)]
    traces = {t: trace(t.arg, rules) for t in statement.atoms(sp.Trace)}
    sides = [side.xreplace(traces) for side in statement.args]
    for equation in equations:
        if not getattr(equation.lhs, "is_Matrix", False):
            sides = [side.subs(equation.lhs, equation.rhs) for side in sides]
    return statement.func(*sides, evaluate=False)


def _plain(statement: sp.Basic) -> sp.Basic:
    """Norms become non-negative symbols of the same name, so that they can be differentiated and evaluated."""
    norms = {n: sp.Symbol(str(n), nonnegative=True) for n in statement.atoms(Norm)}
    return statement.func(*(a.xreplace(norms) for a in statement.args), evaluate=False)


def _non_negative(difference: sp.Expr, hypotheses: Sequence[sp.Basic], strict: bool) -> bool:
    """Whether the difference is manifestly non-negative after each bounded quantity is put at its worst value."""
    for h in hypotheses:
        for quantity, bound, sign in ((h.lts, h.gts, -1), (h.gts, h.lts, 1)):
            if quantity in difference.free_symbols:
                slope = sp.factor(sp.diff(difference, quantity)) * sign
                if slope.is_nonnegative or sp.expand(slope).is_nonnegative:
                    difference = difference.subs(quantity, bound)
                    break
    forms: tuple = (lambda e: e, sp.expand, sp.factor, sp.simplify)
    if difference.has(sp.tanh, sp.erf):  # SymPy finds no sign here and takes long to say so
        forms = forms[:1]
    for form in forms:
        tidy = form(difference)
        if tidy.is_positive or (not strict and tidy.is_nonnegative):
            return True
    return False


def _evaluate(statement: sp.Basic, low: sp.Expr, difference: sp.Expr) -> str | None:
    symbols = sorted(difference.free_symbols | low.free_symbols, key=str)
    draw = random.Random(20231216)
    done = 0
    with mpmath.workdps(DIGITS):
        for _ in range(POINTS):
            point = {s: _sample(s, draw) for s in symbols}
            value = difference.subs(point).evalf(DIGITS)
            if not value.is_number or not value.is_real:
                return None
            scale = max(abs(low.subs(point).evalf(DIGITS)), 1)
            if abs(value) > _TOLERANCE * scale if isinstance(statement, sp.Eq) else value < -_TOLERANCE * scale:
                return None
            if isinstance(statement, sp.Lt | sp.Gt) and value <= 0:
                return None
            done += 1
            if not symbols:
                break
    return f"numeric, {done} point{'s' if done > 1 else ''}, {DIGITS} digits"


def _sample(symbol: sp.Symbol, draw: random.Random) -> sp.Expr:
    if symbol.is_integer:
        return sp.Integer(draw.randint(3, 40))
    value = sp.Rational(draw.randint(10**5, 10**7), 10**6) ** draw.choice((1, 2))
    return value if symbol.is_nonnegative or draw.random() < 0.5 else -value
