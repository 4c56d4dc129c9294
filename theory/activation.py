"""Activation functions as SymPy expressions in u; their derivatives follow by differentiation.

The exact and the tanh form of GELU are two functions (Hendrycks and Gimpel, arXiv 1606.08415): their
gradients differ by up to 9e-4, so a model and a prediction must name the same one.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import sympy as sp
from sympy.printing.numpy import SciPyPrinter

from theory.schemes import expression, lookup

u = sp.Symbol("u", real=True)


@dataclass(frozen=True)
class Activation:
    """A point-wise function F(u) of the feed-forward layer; `function` is its expression in `theory.activation.u`.

    gated: the layer is W_2 (F(W_g z) * W_1 z), a gated linear unit with a third matrix; otherwise W_2 F(W_1 z).
    """

    name: str
    function: sp.Expr
    source: str
    gated: bool = False

    def __post_init__(self) -> None:
        where = f"activation {self.name!r}, function"
        object.__setattr__(
            self, "function", expression(where, self.function, (u,), "theory.activation", positive=False)
        )

    @cached_property
    def derivative(self) -> sp.Expr:
        """F'(u); at a kink, the value from the right, whose measure is zero."""
        return sp.diff(self.function, u)

    @cached_property
    def at_zero(self) -> float:
        """F(0)."""
        return float(self.numeric[0](np.zeros(1))[0])

    @cached_property
    def numeric(self) -> tuple[Callable[[np.ndarray], np.ndarray], Callable[[np.ndarray], np.ndarray]]:
        """F and F' for NumPy arrays, made from the expressions."""
        return _vectorised(self.function), _vectorised(self.derivative)


def _erf(values: np.ndarray) -> np.ndarray:
    return np.fromiter(map(math.erf, values.ravel().tolist()), np.float64, values.size).reshape(values.shape)


_WITHOUT_SCIPY = {"erf": _erf, "pi": math.pi}
"""what the registered activations would import SciPy for, which takes longer than to use them"""
_PRINTED = {"fully_qualified_modules": False, "allow_unknown_functions": True}


def _vectorised(expression: sp.Expr) -> Callable[[np.ndarray], np.ndarray]:
    compiled = sp.lambdify(u, expression, modules=[_WITHOUT_SCIPY], printer=SciPyPrinter(_PRINTED))
    return lambda values: np.broadcast_to(compiled(values), np.shape(values)).astype(np.float64)


_HENDRYCKS = "Hendrycks and Gimpel, arXiv 1606.08415"

_GELU = u * (1 + sp.erf(u / sp.sqrt(2))) / 2
_SILU = u * (1 + sp.tanh(u / 2)) / 2
_SHAZEER = "Shazeer, arXiv 2002.05202"

ACTIVATIONS = {
    activation.name: activation
    for activation in (
        Activation("identity", u, "linear network, for checks"),
        Activation("relu", sp.Piecewise((0, u < 0), (u, True)), "Nair and Hinton 2010"),
        Activation("gelu", _GELU, _HENDRYCKS),
        Activation(
            "gelu_tanh",
            u * (1 + sp.tanh(sp.sqrt(2 / sp.pi) * (u + sp.Rational(44715, 1000000) * u**3))) / 2,
            _HENDRYCKS,
        ),
        Activation("silu", _SILU, "Elfwing et al., arXiv 1702.03118: u / (1 + exp(-u))"),
        Activation("swiglu", _SILU, _SHAZEER + ": silu(W_g z) * W_1 z", gated=True),
        Activation("geglu", _GELU, _SHAZEER + ": gelu(W_g z) * W_1 z", gated=True),
    )
}


def activation(scheme: str | Activation) -> Activation:
    """The registered activation of that name; an `Activation` is returned as it is."""
    return lookup("activation", scheme, ACTIVATIONS, Activation)
