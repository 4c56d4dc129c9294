"""Matrix identities at a symbolic size: products of vectors and matrices as words, rewritten by known products.

SymPy does not simplify e e^T e e^T at an unknown dimension d. Here every matrix expression becomes a sum of words
(products of atomic factors) with scalar coefficients, and rules such as e^T e = d shorten the words; two
expressions are equal when their difference is the empty sum. `Norm` is the spectral norm as a scalar.
"""

from collections.abc import Iterable

import sympy as sp
from sympy.printing.printer import Printer

Word = tuple[sp.MatrixExpr, ...]
Words = dict[Word, sp.Expr]
_LONGEST = 10_000


class Norm(sp.Function):
    """The spectral (operator 2-) norm of a matrix: a non-negative scalar, printed as ‖W‖."""

    nargs = 1
    is_extended_real = True
    is_nonnegative = True
    is_finite = True

    def _sympystr(self, printer: Printer) -> str:
        return f"‖{printer._print(self.args[0])}‖"

    def _latex(self, printer: Printer, exp: str | None = None) -> str:
        text = rf"\lVert {printer._print(self.args[0])} \rVert"
        return text if exp is None else f"{text}^{{{exp}}}"

    def _mathml_presentation(self, printer: Printer) -> object:
        row = printer.dom.createElement("mrow")
        for part in ("‖", self.args[0], "‖"):
            if isinstance(part, str):
                node = printer.dom.createElement("mo")
                node.appendChild(printer.dom.createTextNode(part))
            else:
                node = printer._print(part)
            row.appendChild(node)
        return row


def words(expression: sp.MatrixExpr, rules: Iterable[tuple[Word, Words]] = ()) -> Words:
    """The expression as a sum of words, each shortened by `rules` (a word, and what it equals) until none applies.

    Knows sums, products, whole powers, transposes and scalar factors of matrix symbols and the identity. Raises
    TypeError for any other matrix expression, ValueError for rules that never end.
    """
    rules = tuple(rules)
    total: Words = {}
    pending = list(_expand(expression).items())
    for _ in range(_LONGEST):
        if not pending:
            break
        word, coefficient = pending.pop()
        for left, right in rules:
            n = len(left)
            at = next((i for i in range(len(word) - n + 1) if word[i : i + n] == left), None)
            if at is not None:
                for middle, factor in right.items():
                    pending.append((word[:at] + middle + word[at + n :], coefficient * factor))
                break
        else:
            total[word] = total.get(word, sp.S.Zero) + coefficient
    if pending:
        raise ValueError(f"these rules rewrite {expression} for ever")
    simple = {word: sp.simplify(coefficient) for word, coefficient in total.items()}
    return {word: coefficient for word, coefficient in simple.items() if coefficient != 0}


def rule(equation: sp.Eq) -> list[tuple[Word, Words]]:
    """A matrix equation word = sum of words, and its transpose, as rewriting rules."""
    found: dict[Word, Words] = {}
    for lhs, rhs in ((equation.lhs, equation.rhs), (sp.Transpose(equation.lhs), sp.Transpose(equation.rhs))):
        ((word, coefficient),) = _expand(lhs).items()
        if any(set(right) == {word} for right in found.values()):
            continue  # of C^T = C only one direction is a rule, or rewriting would not end
        found.setdefault(word, {w: c / coefficient for w, c in _expand(rhs).items()})
    return list(found.items())


def trace(expression: sp.MatrixExpr, rules: Iterable[tuple[Word, Words]] = ()) -> sp.Expr:
    """The trace, where every word is the identity or begins with a column vector: tr(u v^T) = v^T u."""
    total = sp.S.Zero
    for word, coefficient in words(expression, rules).items():
        if not word:
            total += coefficient * expression.rows
        elif word[0].cols == 1:
            inner = words(sp.MatMul(*word[1:], word[0]), rules)
            if set(inner) - {()}:
                raise TypeError(f"the trace of {sp.MatMul(*word)} needs a rule for {inner}")
            total += coefficient * inner.get((), sp.S.Zero)
        else:
            raise TypeError(f"no rule gives the trace of {sp.MatMul(*word)}")
    return sp.simplify(total)


def at_size(expression: sp.MatrixExpr, values: dict[sp.Basic, sp.Basic], size: int) -> sp.ImmutableMatrix:
    """The expression with explicit matrices for its matrix symbols and numbers or expressions for its scalars."""
    total = sp.zeros(size, size)
    for word, coefficient in _expand(expression).items():
        product = sp.eye(size)
        for factor in word:
            transposed = isinstance(factor, sp.Transpose)
            matrix = sp.Matrix(values[factor.arg if transposed else factor])
            product = product * (matrix.T if transposed else matrix)
        total += coefficient.subs([(k, v) for k, v in values.items() if isinstance(k, sp.Symbol)]) * product
    return sp.ImmutableMatrix(total)


def _expand(expression: sp.MatrixExpr) -> Words:
    if isinstance(expression, sp.MatrixSymbol):
        return {(expression,): sp.S.One}
    if isinstance(expression, sp.Identity):
        return {(): sp.S.One}
    if isinstance(expression, sp.ZeroMatrix):
        return {}
    if isinstance(expression, sp.MatAdd):
        total: Words = {}
        for term in expression.args:
            for word, coefficient in _expand(term).items():
                total[word] = total.get(word, sp.S.Zero) + coefficient
        return total
    if isinstance(expression, sp.MatMul):
        product: Words = {(): sp.S.One}
        for factor in expression.args:
            right = _expand(factor) if getattr(factor, "is_Matrix", False) else {(): factor}
            multiplied: Words = {}
            for w, c in product.items():
                for v, e in right.items():
                    multiplied[w + v] = multiplied.get(w + v, sp.S.Zero) + c * e
            product = multiplied
        return product
    if isinstance(expression, sp.MatPow) and expression.exp.is_Integer and expression.exp > 0:
        return _expand(sp.MatMul(*[expression.base] * int(expression.exp), evaluate=False))
    if isinstance(expression, sp.Transpose):
        return {
            tuple(f.arg if isinstance(f, sp.Transpose) else sp.Transpose(f) for f in reversed(word)): coefficient
            for word, coefficient in _expand(expression.arg).items()
        }
    raise TypeError(f"not a sum of products of matrix symbols: {expression}")
