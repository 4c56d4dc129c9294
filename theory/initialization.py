"""Initialisations as symbolic rules: for each kind of weight matrix, the standard deviation of its entries.

A rule is an expression in fan_in, fan_out, d, V, N and n (see `theory.notation`). The theory reasons with the
expression and `models` samples weights from the same expression, so what is proven is what is trained: Gaussian ones,
or Gaussian ones cut off, whose rule is the standard deviation that is left, not the nominal one.

Sources: [P] read in the paper, [C] in the authors' code or configuration, [S] in a digest, [M] from memory.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
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
OUTPUTS = ("attention.output", "feed_forward.down")
_HOME = "theory.notation"


def truncated_std(cutoff: float | sp.Expr) -> sp.Expr:
    """Standard deviation of a standard Gaussian cut off at +-cutoff, exact: sqrt(1 - 2 c phi(c) / erf(c / sqrt 2))."""
    c = sp.nsimplify(cutoff)
    return sp.sqrt(1 - sp.sqrt(2 / sp.pi) * c * sp.exp(-(c**2) / 2) / sp.erf(c / sp.sqrt(2)))


@dataclass(frozen=True)
class Initialization:
    """One initialisation scheme.

    `default` is the standard deviation of every matrix kind that `std` does not name. It may be 0 for the two output
    matrices of a block alone. `truncation`: by kind, where the Gaussian is cut off, in units of its nominal standard
    deviation; the rules are what is left of that, std = nominal std x `truncated_std(cutoff)`. Biases start at 0 and
    norm scales at 1 under every scheme. Raises ValueError for an unknown matrix kind, a foreign symbol, or a number
    that is not positive.
    """

    name: str
    default: sp.Expr
    std: Mapping[str, sp.Expr]
    source: str
    truncation: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for kind in (*self.std, *self.truncation):
            if kind not in MATRIX_KINDS:
                raise ValueError(
                    f"initialization {self.name!r}: unknown matrix kind {kind!r}; "
                    f"choose one of {', '.join(MATRIX_KINDS)}"
                )
        where = f"initialization {self.name!r}, "
        std = {
            kind: expression(where + kind, rule, SYMBOLS, _HOME, positive=kind not in OUTPUTS or rule != 0)
            for kind, rule in self.std.items()
        }
        for kind, cutoff in self.truncation.items():
            if not (math.isfinite(cutoff) and cutoff > 0):
                raise ValueError(f"{where}truncation of {kind}: must be a positive number, got {cutoff!r}")
        object.__setattr__(self, "default", expression(where + "default", self.default, SYMBOLS, _HOME))
        object.__setattr__(self, "std", MappingProxyType(std))
        object.__setattr__(self, "truncation", MappingProxyType(dict(self.truncation)))

    def __hash__(self) -> int:
        return hash((self.name, self.default, frozenset(self.std.items()), frozenset(self.truncation.items())))

    def __reduce__(self) -> tuple[type, tuple[str, sp.Expr, dict[str, sp.Expr], str, dict[str, float]]]:
        return Initialization, (self.name, self.default, dict(self.std), self.source, dict(self.truncation))

    def rule(self, kind: str) -> sp.Expr:
        """The standard deviation of that kind of matrix, as an expression. Raises ValueError for an unknown kind."""
        if kind not in MATRIX_KINDS:
            raise ValueError(f"kind: unknown matrix kind {kind!r}; choose one of {', '.join(MATRIX_KINDS)}")
        return self.std.get(kind, self.default)


def _residual_outputs(rule: sp.Expr) -> dict[str, sp.Expr]:
    return dict.fromkeys(OUTPUTS, rule)


_SMALL = sp.sqrt(2 / (5 * d))
_GPT2 = sp.Rational(2, 100)
# A table is looked up, not multiplied: as an output matrix it has d inputs. He, LeCun and PaLM count it so.
_TABLES = ("embedding", "position", "head")
_XAVIER = sp.sqrt(2 / (fan_in + fan_out))
_THIRD = sp.sqrt(1 / (3 * d))
_ROOT = 1 / sp.sqrt(fan_in)
_WIDTH = dict.fromkeys(_TABLES, 1 / sp.sqrt(d))
# DeepNorm's and T-Fixup's gains are on what a branch's size is linear in: queries and keys have none.
_BRANCH = ("attention.value", *OUTPUTS, "feed_forward.up", "feed_forward.gate")
_FLAX = {kind: 2.0 for kind in MATRIX_KINDS if kind != "embedding"}
_SSP = "Wortsman et al., arXiv 2309.14322 [P]; cut off at 2 nominal stds, corrected, as Flax does [M]"

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
        Initialization("xavier", _XAVIER, {}, "Glorot and Bengio 2010; no depth factor"),
        Initialization(
            "he", sp.sqrt(2 / fan_in), dict.fromkeys(_TABLES, sp.sqrt(2 / d)), "He et al., arXiv 1502.01852"
        ),
        Initialization("lecun", _ROOT, _WIDTH, "LeCun et al. 1998"),
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
        Initialization(
            "opt",
            sp.Rational(6, 1000),
            _residual_outputs(sp.Rational(6, 1000) / sp.sqrt(2 * N)),
            "Zhang et al., arXiv 2205.01068 [P]: 0.006, outputs / sqrt(2N)",
        ),
        Initialization(
            "bloom",
            _THIRD,
            _residual_outputs(_THIRD / sp.sqrt(2 * N)),
            "BLOOM, arXiv 2211.05100 [C]: 0.0048 at d 14,336, which is sqrt(1 / (3 d)); outputs / sqrt(2N)",
        ),
        Initialization("llama", _GPT2, {}, "Touvron et al., arXiv 2302.13971 [M]: 0.02 everywhere, no depth factor"),
        Initialization(
            "olmo2",
            _GPT2 * truncated_std(3),
            {},
            "OLMo 2, arXiv 2501.00656 [C]: init_fn normal, init_std 0.02, init_cutoff_factor 3, on every matrix",
            dict.fromkeys(MATRIX_KINDS, 3.0),
        ),
        Initialization(
            "deepnorm",
            _XAVIER,
            dict.fromkeys(_BRANCH, _XAVIER * (8 * N) ** sp.Rational(-1, 4)) | _WIDTH,
            "Wang et al., arXiv 2203.00555 [P], decoder only: Xavier times (8N)^(-1/4); tables 1 / sqrt d [M]",
        ),
        Initialization(
            "glm",
            _XAVIER,
            dict.fromkeys(_BRANCH, _XAVIER / sp.sqrt(2 * N)) | dict.fromkeys(_TABLES, _THIRD),
            "GLM-130B, arXiv 2210.02414 [P]: Xavier times (2N)^(-1/2); tables 0.0052 at d 12,288 = sqrt(1 / (3 d)) [M]",
        ),
        Initialization(
            "t_fixup",
            _XAVIER,
            dict.fromkeys(_BRANCH, _XAVIER * (9 * N) ** sp.Rational(-1, 4))
            | {"embedding": (9 * N) ** sp.Rational(-1, 4) / sp.sqrt(d), "position": 1 / sp.sqrt(d)},
            "Huang et al. 2020 [C]: a decoder's (9N)^(-1/4) on Xavier, on the table too, which has 1 / sqrt d [M]. "
            "Its decoder has cross-attention; the paper has no rule for one without, so the 9 is kept. For no_norm",
        ),
        Initialization(
            "ssp", _ROOT, {"embedding": 1 / sp.sqrt(d), "position": 1 / sp.sqrt(d), "head": 1 / sp.sqrt(d)}, _SSP, _FLAX
        ),
        Initialization(
            "mup_simple",
            _ROOT,
            _WIDTH,
            _SSP + "; its muP (simple) changes the rates alone, not what is drawn [S]",
            _FLAX,
        ),
        Initialization(
            "mup",
            _ROOT,
            {"embedding": sp.Integer(1), "position": sp.Integer(1), "head": 1 / d},
            "Yang et al., arXiv 2203.03466, table 3 [M]: tables 1, hidden 1 / sqrt(fan_in), head 1 / d. Its other "
            "form, a head of 1 / sqrt d, is this with logit_scale 1 / sqrt d. Logits over d_head, not its root: "
            "attention mup_attention",
        ),
        Initialization(
            "zero_output",
            _ROOT,
            _WIDTH | _residual_outputs(sp.S.Zero),
            "Zhang et al., arXiv 1901.09321 (Fixup) [M]: every branch's last matrix 0, a block begins as the identity",
        ),
    )
}


def initialization(scheme: str | Initialization) -> Initialization:
    """The registered initialisation of that name; an `Initialization` is returned as it is."""
    return lookup("initialization", scheme, INITIALIZATIONS, Initialization)
