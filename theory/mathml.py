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
        bar, values = self._element("mo", "|"), self.dom.createElement("mtable")
        for symbol, value in zip(e.variables, e.point, strict=True):
            cell = self._nested("mtr", "mtd", "mrow")
            for part in (self._print(symbol), self._element("mo", "="), self._print(value)):
                cell.firstChild.firstChild.appendChild(part)
            values.appendChild(cell)
        at, row = self.dom.createElement("msub"), self.dom.createElement("mrow")
        at.appendChild(bar)
        at.appendChild(values)
        row.appendChild(self.parenthesize(e.expr, PRECEDENCE["Mul"]))
        row.appendChild(at)
        return row

    def _of(self, row: Any, expression: sp.Expr) -> Any:
        """The row with its last child, that expression, in brackets where it is a sum."""
        row.replaceChild(self.parenthesize(expression, PRECEDENCE["Mul"], strict=True), row.lastChild)
        return row

    def _element(self, name: str, text: str) -> Any:
        element = self.dom.createElement(name)
        element.appendChild(self.dom.createTextNode(text))
        return element

    def _nested(self, *names: str) -> Any:
        first, *rest = names
        element = self.dom.createElement(first)
        if rest:
            element.appendChild(self._nested(*rest))
        return element
