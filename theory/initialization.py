"""Initialisations as symbolic rules: for each kind of weight matrix, the standard deviation of its entries.

A rule is an expression in fan_in, fan_out, d, V, N and n (see `theory.notation`). The theory reasons with the
expression and `models` samples Gaussian weights from the same expression, so what is proven is what is trained.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

import sympy as sp

from theory.notation import N, V, d, fan_in, fan_out, layer
from theory.schemes import expression, lookup

MATRIX_KINDS = (
    "embedding",
    "position",
    "attention.query",
    "attention.key",
    "attention.value",
    "attention.output",
    "feed_forward.up",
    "feed_forward.down",
    "head",
    "feed_forward.gate",
)
SYMBOLS = frozenset({fan_in, fan_out, d, V, N, layer})
_HOME = "theory.notation"


@dataclass(frozen=True)
class Initialization:
    """One initialisation scheme.

    `default` is the standard deviation of every matrix kind that `std` does not name. Biases start at 0 and norm
    scales at 1 under every scheme. Raises ValueError for an unknown matrix kind, a foreign symbol, or a number that
    is not positive.
    """

    name: str
    default: sp.Expr
    std: Mapping[str, sp.Expr]
    source: str

    def __post_init__(self) -> None:
        for kind in self.std:
            if kind not in MATRIX_KINDS:
                raise ValueError(
                    f"initialization {self.name!r}: unknown matrix kind {kind!r}; "
                    f"choose one of {', '.join(MATRIX_KINDS)}"
                )
        where = f"initialization {self.name!r}, "
        std = {kind: expression(where + kind, rule, SYMBOLS, _HOME) for kind, rule in self.std.items()}
        object.__setattr__(self, "default", expression(where + "default", self.default, SYMBOLS, _HOME))
        object.__setattr__(self, "std", MappingProxyType(std))

    def __hash__(self) -> int:
        return hash((self.name, self.default, frozenset(self.std.items())))

    def __reduce__(self) -> tuple[type, tuple[str, sp.Expr, dict[str, sp.Expr], str]]:
        return Initialization, (self.name, self.default, dict(self.std), self.source)

    def rule(self, kind: str) -> sp.Expr:
        """The standard deviation of that kind of matrix, as an expression. Raises ValueError for an unknown kind."""
        if kind not in MATRIX_KINDS:
            raise ValueError(f"kind: unknown matrix kind {kind!r}; choose one of {', '.join(MATRIX_KINDS)}")
        return self.std.get(kind, self.default)


def _residual_outputs(rule: sp.Expr) -> dict[str, sp.Expr]:
    return {"attention.output": rule, "feed_forward.down": rule}


_SMALL = sp.sqrt(2 / (5 * d))
_GPT2 = sp.Rational(2, 100)
# A table is looked up, not multiplied: as an output matrix it has d inputs. He, LeCun and PaLM count it so.
_TABLES = ("embedding", "position", "head")

INITIALIZATIONS = {
    scheme.name: scheme
    for scheme in (
        Initialization(
            "megatron",
            _SMALL,
            _residual_outputs(_SMALL / sp.sqrt(2 * N)),
            "Shoeybi et al., arXiv 1909.08053, with the std of Nguyen and Salazar; arXiv 2312.16903, section 2",
        ),
        Initialization(
            "gpt2",
            _GPT2,
            _residual_outputs(_GPT2 / sp.sqrt(2 * N)) | {"position": sp.Rational(1, 100)},
            "Radford et al. 2019",
        ),
        Initialization("xavier", sp.sqrt(2 / (fan_in + fan_out)), {}, "Glorot and Bengio 2010; no depth factor"),
        Initialization(
            "he", sp.sqrt(2 / fan_in), dict.fromkeys(_TABLES, sp.sqrt(2 / d)), "He et al., arXiv 1502.01852"
        ),
        Initialization("lecun", 1 / sp.sqrt(fan_in), dict.fromkeys(_TABLES, 1 / sp.sqrt(d)), "LeCun et al. 1998"),
        Initialization(
            "palm",
            1 / sp.sqrt(fan_in),
            {"embedding": sp.Integer(1), "position": sp.Integer(1), "head": 1 / sp.sqrt(d)},
            "Chowdhery et al., arXiv 2204.02311, section 5",
        ),
        Initialization("small", _SMALL, {}, "Nguyen and Salazar, arXiv 1910.05895: SmallInit, no depth factor"),
        Initialization(
            "wang",
            _SMALL,
            _residual_outputs(2 / (N * sp.sqrt(d))),
            "GPT-NeoX's wang_init, arXiv 2204.06745: outputs 2 / (N sqrt d), all else SmallInit",
        ),
    )
}


def initialization(scheme: str | Initialization) -> Initialization:
    """The registered initialisation of that name; an `Initialization` is returned as it is."""
    return lookup("initialization", scheme, INITIALIZATIONS, Initialization)
