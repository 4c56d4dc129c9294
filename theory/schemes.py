"""What all registered schemes share: a name finds its object, an object of the user's own passes through."""

from collections.abc import Collection, Mapping
from typing import TypeVar

import sympy as sp

S = TypeVar("S")


def lookup(field: str, scheme: object, registry: Mapping[str, S], kind: type[S]) -> S:
    """The object registered under the name `scheme`, or `scheme` itself where it is a `kind`.

    Raises ValueError that names the field, the value and the choices.
    """
    if isinstance(scheme, kind):
        return scheme
    if isinstance(scheme, str) and scheme in registry:
        return registry[scheme]
    raise ValueError(f"{field}: unknown value {scheme!r}; choose one of {', '.join(registry)}")


def expression(where: str, value: object, symbols: Collection[sp.Symbol], home: str, positive: bool = True) -> sp.Expr:
    """`value`, a number or a SymPy expression in the `symbols` of module `home`; text is refused, never parsed.

    Raises ValueError that names the place, the value and the symbols that are allowed.
    """
    try:
        rule = sp.sympify(value, strict=True)
    except sp.SympifyError:
        rule = None
    if not isinstance(rule, sp.Expr) or rule.is_Matrix:
        raise ValueError(f"{where}: must be a number or a SymPy expression, got {value!r}")
    if foreign := rule.free_symbols - set(symbols):
        raise ValueError(
            f"{where}: the rule uses {sorted(map(str, foreign))}; it may use only {sorted(map(str, symbols))} of {home}"
        )
    if positive and rule.is_number and not rule.is_positive:
        raise ValueError(f"{where}: must be a positive number, got {value!r}")
    return rule
