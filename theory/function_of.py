"""Symbolic results as functions of numbers and of NumPy arrays."""

from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
import sympy as sp


def function_of(expression: sp.Expr, *symbols: sp.Symbol) -> Callable[..., Any]:
    """`expression` as a function of numbers and arrays, which broadcast; float64, whatever they are.

    Its arguments stand for `symbols` in this order, or are given by name as in `theory.notation`; without `symbols`
    they are those of the expression, ordered by name: function_of(AMPLIFICATION)(N=[16, 64], delta=0.5, sigma_0=1.0).
    It compiles at the first call. Raises ValueError for symbols of the expression that are not among `symbols`; the
    function raises TypeError for an argument that is missing, given twice, or unknown.
    """
    arguments = symbols or tuple(sorted(expression.free_symbols, key=str))
    if missing := expression.free_symbols - set(arguments):
        raise ValueError(f"symbols: the expression also has {', '.join(sorted(map(str, missing)))}")
    names = tuple(map(str, arguments))
    constant = expression.free_symbols != set(arguments)

    @cache
    def compiled() -> Callable[..., Any]:
        return sp.lambdify(arguments, expression.replace(sp.harmonic, _digamma), modules=["scipy", "numpy"])

    def evaluate(*values: Any, **named: Any) -> Any:
        absent = names[len(values) :]
        if len(values) > len(names) or named.keys() != set(absent):
            raise TypeError(f"arguments: must be {', '.join(names)}, got {len(values)} and by name {', '.join(named)}")
        floats = [np.float64(value) for value in (*values, *(named[name] for name in absent))]
        found = compiled()(*floats)
        return found + np.zeros(np.broadcast_shapes(*map(np.shape, floats))) if constant else found

    return evaluate


def _digamma(number: sp.Expr) -> sp.Expr:
    """The harmonic number; `lambdify` itself prints this sum without the brackets that a factor of it needs."""
    return sp.digamma(number + 1) + sp.EulerGamma
