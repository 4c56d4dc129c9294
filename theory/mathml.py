"""MathML of statements: SymPy's presentation printer, with what it prints as a function's name or without brackets."""

from typing import Any

import sympy as sp
from sympy.printing.mathml import MathMLPresentationPrinter
from sympy.printing.precedence import PRECEDENCE


class MathMLPrinter(MathMLPresentationPrinter):
    """Brackets around the sum that a derivative or a limit is of; products; values that are put in."""

    def _print_Derivative(self, e: sp.Derivative) -> Any:
        return self._of(super()._print_Derivative(e), e.expr)

    def _print_Limit(self, e: sp.Limit) -> Any:
        return self._of(super()._print_Limit(e), e.args[0])

    def _print_Product(self, e: sp.Product) -> Any:
        row = self._print_Sum(e)
        row.firstChild.firstChild.firstChild.data = "∏"
        return self._of(row, e.function)

    def _print_Subs(self, e: sp.Subs) -> Any:
        values = (
            self._element("mtd", self._print(symbol), self._element("mo", "="), self._print(value))
            for symbol, value in zip(e.variables, e.point, strict=True)
        )
        table = self._element("mtable", *(self._element("mtr", cell) for cell in values))
        bar = self._element("msub", self._element("mo", "|"), table)
        return self._element("mrow", self.parenthesize(e.expr, PRECEDENCE["Mul"]), bar)

    def _of(self, row: Any, expression: sp.Expr) -> Any:
        """The row with its last child, that expression, in brackets where it is a sum."""
        row.replaceChild(self.parenthesize(expression, PRECEDENCE["Mul"], strict=True), row.lastChild)
        return row

    def _element(self, name: str, *children: Any) -> Any:
        """children: other elements, or text."""
        element = self.dom.createElement(name)
        for child in children:
            element.appendChild(self.dom.createTextNode(child) if isinstance(child, str) else child)
        return element
