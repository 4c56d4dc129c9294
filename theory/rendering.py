"""A derivation as plain text, Markdown, LaTeX and MathML: the same steps, marked with how each is known.

Relations are set as left, sign, right in every format. SymPy's MathML uses entities that only HTML knows; they
become the characters themselves, so that the output is well-formed XML anywhere.
"""

import html
import re
from typing import TYPE_CHECKING
from xml.sax.saxutils import escape

import sympy as sp
from sympy.printing.str import StrPrinter

from theory.latex import display, formula, words
from theory.mathml import MathMLPrinter

if TYPE_CHECKING:
    from theory.derivation import Check, Derivation

_SIGNS = {sp.Eq: "=", sp.Le: "<=", sp.Ge: ">=", sp.Lt: "<", sp.Gt: ">", sp.Ne: "!="}
_MATHML = "http://www.w3.org/1998/Math/MathML"
_XHTML = "http://www.w3.org/1999/xhtml"


def text(derivation: "Derivation", check: "Check | None" = None) -> str:
    """Plain text."""
    lines = [derivation.title, "=" * len(derivation.title), *derivation.remarks, ""]
    for number, (step, how) in enumerate(_steps(derivation, check), 1):
        lines += [f"{number:>2}. {plain(step.statement)}", f"    {step.reason}", f"    [{how}] {step.source}", ""]
    return "\n".join(lines)


def markdown(derivation: "Derivation", check: "Check | None" = None) -> str:
    """Markdown, statements between dollar signs."""
    lines = [f"## {derivation.title}", "", *derivation.remarks, ""]
    for number, (step, how) in enumerate(_steps(derivation, check), 1):
        lines += [f"{number}. $${formula(step.statement)}$$", f"   {step.reason} *({how}; {step.source})*", ""]
    return "\n".join(lines)


def latex(derivation: "Derivation", check: "Check | None" = None) -> str:
    """A LaTeX section; texts are escaped, statements wider than a line are split."""
    lines = [rf"\section*{{{words(derivation.title)}}}", *map(words, derivation.remarks), r"\begin{enumerate}"]
    for step, how in _steps(derivation, check):
        known = f"{words(how)}; {words(step.source)}"
        lines += [rf"\item {words(step.reason)} \[{display(step.statement)}\]", rf"\emph{{({known})}}"]
    return "\n".join([*lines, r"\end{enumerate}", ""])


def mathml(derivation: "Derivation", check: "Check | None" = None) -> str:
    """A well-formed XHTML section, one list item a step; its class is how the step is known (proven, cited ...)."""
    lines = [
        f'<section xmlns="{_XHTML}" class="derivation" id="{derivation.name}">',
        f"<h2>{escape(derivation.title)}</h2>",
        *(f"<p>{escape(remark)}</p>" for remark in derivation.remarks),
        "<ol>",
    ]
    for step, how in _steps(derivation, check):
        state = "failed" if "FAILED" in how else step.kind
        lines += [
            f'<li class="{state}">{statement_mathml(step.statement)}',
            f'<p>{escape(step.reason)} <small class="how">{escape(how)}; {escape(step.source)}</small></p></li>',
        ]
    return "\n".join([*lines, "</ol>", "</section>", ""])


def statement_mathml(statement: sp.Basic) -> str:
    """One statement as a <math> element, well-formed on its own."""
    body = MathMLPrinter().doprint(statement)
    body = body.replace("<mo><</mo>", "<mo>&lt;</mo>").replace("<mo>></mo>", "<mo>&gt;</mo>")
    body = re.sub(r"&#(x[0-9A-Fa-f]+|\d+)(?![0-9A-Fa-f;])", r"&#\1;", body)
    body = re.sub(r"&(?!lt;|gt;|amp;|quot;|apos;|#)(\w+);", lambda m: html.unescape(m.group(0)), body)
    return f'<math xmlns="{_MATHML}" display="block">{body}</math>'


class _Printer(StrPrinter):
    """SymPy's printer, but that values put in are said in words, and a limit as it is written by hand."""

    def _print_Limit(self, expr: sp.Limit) -> str:
        term, symbol, end, side = expr.args
        return f"Limit({self._print(term)}, {symbol} -> {self._print(end)}{side if end.is_finite else ''})"

    def _print_Subs(self, expr: sp.Subs) -> str:
        values = ", ".join(
            f"{self._print(a)} = {self._print(b)}" for a, b in zip(expr.variables, expr.point, strict=True)
        )
        return f"({self._print(expr.expr)} at {values})"


def plain(statement: sp.Basic) -> str:
    """One statement on one line: left, sign, right."""
    sign, written = _SIGNS.get(type(statement)), _Printer().doprint
    return written(statement) if sign is None else f"{written(statement.args[0])} {sign} {written(statement.args[1])}"


def _steps(derivation: "Derivation", check: "Check | None") -> list[tuple]:
    if check is None:
        return [(step, step.kind) for step in derivation.steps]
    return [(outcome.step, outcome.how) for outcome in check.outcomes]
