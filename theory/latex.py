"""LaTeX of words and of statements, in lines that fit a page: what `theory.rendering` and `theory.atlas` are set with.

A statement that is wider than a line is split at its relation, then between the terms of a sum, then around the sum
that makes it wide. Widths are those of SymPy's character pictures: a fraction is as wide as its wider half.
"""

import re
import unicodedata

import sympy as sp
from sympy.printing.latex import LatexPrinter

COLUMNS = 74
"""characters of a character picture that fit a line of 150 mm in 10 point"""
_SPECIAL = {
    "\\": r"\textbackslash{}", "^": r"\textasciicircum{}", "~": r"\textasciitilde{}", "‖": r"$\Vert$", "−": "$-$",
    "×": r"$\times$", "≤": r"$\le$", "≥": r"$\ge$", "→": r"$\to$", "∞": r"$\infty$", "∘": r"$\circ$", "·": r"$\cdot$",
    "√": r"$\surd$", "²": "$^2$", "ᵀ": "$^T$", "–": "--", "—": "---", "…": r"\dots{}", "∂": r"$\partial$",
    "∑": r"$\sum$", "∏": r"$\prod$", "≈": r"$\approx$", "∈": r"$\in$", "|": r"$|$", "<": "$<$", ">": "$>$",
}  # fmt: skip
_PAIRS = {"<=": r"$\le$", ">=": r"$\ge$", "->": r"$\to$", "+-": r"$\pm$"}
_SIGNS = {sp.Eq: "=", sp.Le: r"\leq", sp.Ge: r"\geq", sp.Lt: "<", sp.Gt: ">", sp.Ne: r"\neq"}
_PLACE = sp.Dummy("place", positive=True)
_PLACED = r"\mathord{?}"


class _Printer(LatexPrinter):
    """SymPy's printer; a sum begins with a term that has no minus sign, and a subscript that is a word is upright."""

    def _as_ordered_terms(self, expr: sp.Add, order: str | None = None) -> list[sp.Expr]:
        return sorted(super()._as_ordered_terms(expr, order), key=_negative)

    def _print_MatAdd(self, expr: sp.MatAdd) -> str:
        total = ""
        for term in sorted(expr.args, key=lambda term: (_negative(term), not isinstance(term, sp.MatrixSymbol))):
            printed = self._print(term)
            total += printed if printed.startswith("-") or not total else f"+ {printed}"
        return total

    def _print_Dummy(self, expr: sp.Dummy) -> str:
        return _PLACED if expr == _PLACE else self._print_Symbol(expr)

    def _deal_with_super_sub(self, string: str, style: str = "plain") -> str:
        return re.sub(r"_\{([a-z]{2,})\}", r"_{\\mathrm{\1}}", super()._deal_with_super_sub(string, style))


def words(text: str) -> str:
    """Plain text as LaTeX text: what is special is escaped, signs and Greek letters become mathematics.

    A character that TeX's fonts would lack becomes its nearest ASCII letters.
    """
    escaped = "".join(
        _PAIRS[part] if part in _PAIRS else "".join(map(_character, part)) for part in re.split(r"(<=|>=|->|\+-)", text)
    )
    return re.sub(r"(?<=[^\s\d])/(?=[^\s\d])", r"/\\allowbreak{}", escaped)


def formula(expression: sp.Basic) -> str:
    """An expression or relation as LaTeX mathematics on one line."""
    return _Printer({"mul_symbol": None}).doprint(expression)


def display(statement: sp.Basic, columns: int = COLUMNS) -> str:
    """A statement as LaTeX mathematics for a display, in several aligned lines where it is wider than `columns`."""
    lines = _lines(statement, columns)
    if len(lines) == 1:
        return lines[0]
    return "\\begin{aligned}\n" + " \\\\\n".join(f"& {line}" for line in lines) + "\n\\end{aligned}"


def _lines(statement: sp.Basic, columns: int) -> list[str]:
    sign = _SIGNS.get(type(statement))
    if sign is None:
        return _broken(statement, columns)
    if _width(statement) <= columns:
        return [formula(statement)]
    left = _broken(statement.args[0], columns)
    beside = _width(statement.args[0]) if _width(statement.args[0]) <= columns // 4 else 0
    right = _broken(statement.args[1], columns - 4 - beside)
    if beside:
        return [f"{left[0]} {sign} {right[0]}", *(rf"\quad\quad {line}" for line in right[1:])]
    return [*left, rf"\quad {sign} {right[0]}", *(rf"\quad\quad {line}" for line in right[1:])]


def _broken(expression: sp.Basic, columns: int) -> list[str]:
    """The expression in lines of at most that many columns, as far as there is a place to break it at."""
    if _width(expression) <= columns or not expression.args:
        return [formula(expression)]
    if isinstance(expression, sp.Add):
        return _broken_sum(expression, columns)
    if isinstance(expression, sp.MatrixBase):
        return _broken_vector(expression, columns) if expression.cols == 1 else [formula(expression)]
    widest = max(expression.args, key=_width)
    around = formula(_replaced(expression, widest))
    before, _, after = around.partition(_PLACED)
    if around.count(_PLACED) != 1 or not (_closed(before) and _closed(after)) or _width(widest) < columns / 2:
        return [formula(expression)]
    lines = _broken(widest, columns - 4)
    if len(lines) == 1:
        return [formula(expression)]
    return [
        rf"{before} \Bigl( {lines[0]}",
        *(rf"\quad {line}" for line in lines[1:-1]),
        rf"\quad {lines[-1]} \Bigr) {after}",
    ]


def _broken_vector(vector: sp.MatrixBase, columns: int) -> list[str]:
    """Its entries below each other, each in as many lines as it takes."""
    lines = list[str]()
    for entry in vector:
        first, *others = _broken(entry, columns - 4)
        lines += [first, *(rf"\quad {line}" for line in others)]
        lines[-1] += r" \,;"
    lines[0] = rf"\bigl[\; {lines[0]}"
    lines[-1] = lines[-1].removesuffix(r" \,;") + r" \;\bigr]"
    return lines


def _broken_sum(expression: sp.Add, columns: int) -> list[str]:
    lines, used = list[str](), columns + 1
    for term in _Printer()._as_ordered_terms(expression):
        sign, size = ("-", -term) if _negative(term) else ("+", term)
        parts, width = _broken(size, columns), _width(size) + 3
        parts[0] = f"{sign} {parts[0]}" if lines or sign == "-" else parts[0]
        if len(parts) == 1 and used + width <= columns:
            lines[-1], used = f"{lines[-1]} {parts[0]}", used + width
        else:
            lines, used = [*lines, *parts], width if len(parts) == 1 else columns + 1
    return lines


def _replaced(expression: sp.Basic, part: sp.Basic) -> sp.Basic:
    """The expression with a place for that argument; a product's goes last, out of any fraction."""
    if isinstance(expression, sp.Mul):
        rest = sp.Mul(*(factor for factor in expression.args if factor != part), evaluate=False)
        return sp.Mul(rest, sp.Symbol(_PLACED, commutative=False), evaluate=False)
    if any(getattr(argument, "is_Matrix", False) for argument in expression.args):
        return expression
    return expression.func(*(_PLACE if argument == part else argument for argument in expression.args))


def _closed(latex: str) -> bool:
    return latex.count("{") == latex.count("}") and latex.count(r"\left") == latex.count(r"\right")


def _width(expression: sp.Basic) -> int:
    return max(map(len, sp.pretty(expression, use_unicode=True, wrap_line=False).split("\n")))


def _negative(term: sp.Basic) -> bool:
    return bool(term.as_coeff_mmul()[0].is_negative if term.is_Matrix else term.could_extract_minus_sign())


def _character(character: str) -> str:
    if character in _SPECIAL:
        return _SPECIAL[character]
    if character in "&%$#_{}":
        return "\\" + character
    if ord(character) < 0x180:  # ASCII and the accented letters of the T1 fonts
        return character
    name = unicodedata.name(character, "").split()
    if name[:1] == ["GREEK"] and len(name) == 4:
        letter = name[3].replace("LAMDA", "LAMBDA")  # as Unicode spells it
        return f"$\\{letter.lower() if name[1] == 'SMALL' else letter.capitalize()}$"
    return unicodedata.normalize("NFKD", character).encode("ascii", "ignore").decode() or "?"
