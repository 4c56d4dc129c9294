"""The one description of a Transformer language model.

Theory predicts from it, models builds and samples from it, verify measures what was built.
"""

import math
from dataclasses import dataclass, fields
from functools import lru_cache

import numpy as np
import sympy as sp

from theory import notation as s
from theory.activation import Activation, activation
from theory.attention_scheme import AttentionScheme, attention_scheme
from theory.block import Block, block
from theory.embedding import Embedding, embedding
from theory.gaussian_norm import gaussian_norm
from theory.initialization import MATRIX_KINDS, Initialization, initialization

NORMS = ("layer_norm", "rms_norm")
POSITIONS = ("none", "learned", "sinusoidal", "rope", "alibi")
_FACTORS = ("shortcut", "branch", "input")


@dataclass(frozen=True)
class Architecture:
    """A decoder-only Transformer and its initialisation.

    Strings name registered schemes; a `Block`, `AttentionScheme`, `Initialization`, `Embedding` or `Activation` of
    your own goes in the same place, and a number as `embedding` is a multiplier. Raises ValueError that names the
    field, the value and the choices.

    num_layers: blocks N, each attention and feed-forward. d_model: width of the residual stream. num_heads:
    attention heads. num_kv_heads: key and value heads (None: num_heads; 1: multi-query). d_ff: feed-forward width
    (None: 4 d_model). vocab_size: words, at least 2. seq_len: predicted tokens a sequence. norm_epsilon: added to
    the variance in every norm. bias: biases in linear layers and LayerNorm, all 0 at the start. tied: the head is
    the embedding table. logit_scale: factor on the output logits.
    """

    num_layers: int = 24
    d_model: int = 128
    num_heads: int = 4
    num_kv_heads: int | None = None
    d_ff: int | None = None
    vocab_size: int = 256
    seq_len: int = 64
    block: str | Block = "pre_ln"
    norm: str = "layer_norm"
    norm_epsilon: float = 1e-5
    activation: str | Activation = "gelu"
    positions: str = "rope"
    attention: str | AttentionScheme = "standard"
    initialization: str | Initialization = "megatron"
    embedding: str | float | Embedding = "scaled"
    bias: bool = False
    tied: bool = False
    logit_scale: float = 1.0

    def __post_init__(self) -> None:
        for name, least in (
            ("num_layers", 1), ("d_model", 1), ("num_heads", 1), ("num_kv_heads", 1), ("d_ff", 1), ("vocab_size", 2),
            ("seq_len", 1),
        ):  # fmt: skip
            value = getattr(self, name)
            if value is None and name in ("num_kv_heads", "d_ff"):
                continue
            if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < least:
                raise ValueError(f"{name}: must be a whole number of at least {least}, got {value!r}")
        for name, choices in (("norm", NORMS), ("positions", POSITIONS)):
            if getattr(self, name) not in choices:
                raise ValueError(f"{name}: unknown value {getattr(self, name)!r}; choose one of {', '.join(choices)}")
        for name, zero in (("norm_epsilon", True), ("logit_scale", False)):
            value = getattr(self, name)
            number = isinstance(value, int | float) and not isinstance(value, bool)
            if not (number and math.isfinite(value) and (value > 0 or (zero and value == 0))):
                raise ValueError(f"{name}: must be a {'non-negative' if zero else 'positive'} number, got {value!r}")
        for name in ("bias", "tied"):
            if not isinstance(getattr(self, name), bool):
                raise ValueError(f"{name}: must be True or False, got {getattr(self, name)!r}")
        if self.d_model % self.num_heads:
            raise ValueError(
                f"num_heads: d_model = {self.d_model} is not divisible by {self.num_heads}; choose one of "
                f"{', '.join(str(h) for h in range(1, min(self.d_model, 64) + 1) if self.d_model % h == 0)}"
            )
        if self.num_heads % self.kv_heads:
            raise ValueError(
                f"num_kv_heads: num_heads = {self.num_heads} is not divisible by {self.kv_heads}; choose one of "
                f"{', '.join(str(h) for h in range(1, self.num_heads + 1) if self.num_heads % h == 0)}"
            )
        for positions, name, width in (("rope", "d_head", self.d_head), ("sinusoidal", "d_model", self.d_model)):
            if self.positions == positions and width % 2:
                raise ValueError(
                    f"positions: {positions!r} needs an even {name}, got {width}; without: none, learned, alibi"
                )
        if self.norm == "layer_norm" and self.d_model < 3:
            raise ValueError(f"d_model: LayerNorm leaves d_model - 2 directions, so at least 3; got {self.d_model}")
        activation(self.activation), embedding(self.embedding), initialization(self.initialization)
        block(self.block), attention_scheme(self.attention)
        for field in _FACTORS:
            self.factor(field)
        if attention_scheme(self.attention).spectral:
            for kind in self.matrices:
                if self.rule(kind).is_zero:
                    raise ValueError(
                        f"attention: {self.attention!r} divides {kind} by its norm, which initialization "
                        f"{self.initialization!r} makes 0; choose another of the two"
                    )
        if attention_scheme(self.attention).normed and self.norm == "layer_norm" and self.d_head < 3:
            raise ValueError(f"num_heads: LayerNorm in every head needs a d_head of at least 3, got {self.d_head}")

    @property
    def kv_heads(self) -> int:
        """Key and value heads, with the default resolved."""
        return self.num_heads if self.num_kv_heads is None else self.num_kv_heads

    @property
    def ff_width(self) -> int:
        """Feed-forward width, with the default of 4 d_model resolved."""
        return 4 * self.d_model if self.d_ff is None else self.d_ff

    @property
    def d_head(self) -> int:
        """Width of one attention head."""
        return self.d_model // self.num_heads

    @property
    def num_sublayers(self) -> int:
        """S, the number of residual additions."""
        return self.num_layers * len(block(self.block).additions)

    @property
    def matrices(self) -> tuple[str, ...]:
        """The kinds of matrix in a block."""
        gated = activation(self.activation).gated
        return tuple(kind for kind in MATRIX_KINDS if "." in kind and (gated or kind != "feed_forward.gate"))

    def normed(self, where: str, part: str) -> bool:
        """Whether that part of a block has a norm there: "pre", "inner", "output" or "post" (see `theory.block`)."""
        arrangement, scheme = block(self.block), attention_scheme(self.attention)
        if where == "pre":
            return arrangement.pre_norm and not (part == "attention" and scheme.qkv_norm)
        if where == "output":
            return arrangement.output_norm or scheme.output_norm
        return {"inner": arrangement.inner_norm, "post": arrangement.post_norm}[where]

    def hides_length(self, part: str) -> bool:
        """Whether a norm makes what that part of a block writes independent of the length of the stream's tokens."""
        hidden = part == "attention" and attention_scheme(self.attention).qkv_norm
        return hidden or any(self.normed(where, part) for where in ("pre", "inner", "output"))

    def factors(self, layer: int) -> tuple[float, float, float]:
        """The shortcut's, the branches' and the input's factor in that layer, counted from 0."""
        shortcut, branch, factor = (float(self.factor(name)[layer]) for name in _FACTORS)
        return shortcut, branch, factor

    def factor(self, name: str) -> np.ndarray:
        """The block's "shortcut", "branch" or "input" factor, float64[num_layers]."""
        return _factor(self, name)

    def shape(self, kind: str) -> tuple[int, int]:
        """(fan_in, fan_out) of that kind of matrix; tables are (rows, d_model), the head (d_model, vocab_size)."""
        d, kv = self.d_model, self.kv_heads * self.d_head
        shapes = {
            "embedding": (self.vocab_size, d),
            "position": (self.seq_len, d),
            "attention.query": (d, d),
            "attention.key": (d, kv),
            "attention.value": (d, kv),
            "attention.output": (d, d),
            "feed_forward.up": (d, self.ff_width),
            "feed_forward.gate": (d, self.ff_width),
            "feed_forward.down": (self.ff_width, d),
            "head": (d, self.vocab_size),
        }
        if kind not in shapes:
            raise ValueError(f"kind: unknown matrix kind {kind!r}; choose one of {', '.join(shapes)}")
        return shapes[kind]

    def rule(self, kind: str) -> sp.Expr:
        """The symbolic standard deviation of that kind of matrix under this scheme, embedding method included."""
        table_std = embedding(self.embedding).table_std
        if kind == "embedding" and table_std is not None:
            return table_std
        return initialization(self.initialization).rule(kind)

    def truncation(self, kind: str) -> float | None:
        """Where that kind's Gaussian is cut off, in nominal standard deviations; None: nowhere."""
        if kind == "embedding" and embedding(self.embedding).table_std is not None:
            return None
        return initialization(self.initialization).truncation.get(kind)

    def std(self, kind: str) -> np.ndarray:
        """Standard deviation of the entries: float64[num_layers] for a block's matrix, float64[1] otherwise."""
        return _std(self, kind)

    def effective_std(self, kind: str) -> np.ndarray:
        """As `std`, of what the matrix acts as: where the scheme divides a block's matrices by their norms, of that."""
        std = self.std(kind)
        if "." not in kind or not attention_scheme(self.attention).spectral:
            return std
        return np.full_like(std, 1 / gaussian_norm(*self.shape(kind)))

    def evaluate(self, rule: sp.Expr) -> float:
        """The value of an expression in d, V and N (an embedding multiplier, say) at this size.

        Raises ValueError where that is not a positive number.
        """
        value = _number(rule.subs({s.d: self.d_model, s.V: self.vocab_size, s.N: self.num_layers}))
        if not (math.isfinite(value) and value > 0):
            raise ValueError(f"embedding: the rule {rule} gives {value} at this size, not a positive number")
        return value


@lru_cache(maxsize=4096)
def _std(arch: Architecture, kind: str) -> np.ndarray:
    fan_in, fan_out = arch.shape(kind)
    sizes = {
        s.d: arch.d_model,
        s.V: arch.vocab_size,
        s.N: arch.num_layers,
        s.fan_in: fan_in,
        s.fan_out: fan_out,
    }
    std = _by_layer(arch.rule(kind).subs(sizes), arch.num_layers if "." in kind else 1)
    zero = arch.rule(kind).is_zero is True  # an output matrix whose scheme says so
    if not np.all(np.isfinite(std) & ((std > 0) | zero)):
        raise ValueError(f"initialization: the rule {arch.rule(kind)} for {kind} gives {std}, not a positive number")
    std.flags.writeable = False
    return std


@lru_cache(maxsize=1024)
def _factor(arch: Architecture, name: str) -> np.ndarray:
    rule = getattr(block(arch.block), name)
    factor = _by_layer(rule.subs(s.N, arch.num_layers), arch.num_layers)
    if not np.all(np.isfinite(factor) & (factor >= 0)):
        raise ValueError(f"block: the rule {rule} for {name} gives {factor}, not numbers of at least 0")
    factor.flags.writeable = False
    return factor


def _by_layer(rule: sp.Expr, num_layers: int) -> np.ndarray:
    """A rule in the layer n, for n from 1 to num_layers."""
    if s.layer in rule.free_symbols:
        return np.array([_number(rule.subs(s.layer, n)) for n in range(1, num_layers + 1)])
    return np.full(num_layers, _number(rule))


def _number(value: sp.Expr) -> float:
    """The value of a constant expression in float64; nan where it is not a finite real number."""
    value = value.evalf(17)
    return float(value) if value.is_Number and value.is_finite else math.nan


FIELD_NAMES = tuple(field.name for field in fields(Architecture))
