"""The two requirements, small sub-layers and large shortcut, and which initialisation and embedding meet them.

arXiv 2312.16903, section 4 [secondary]: sigma_1 sigma_2 and sigma_O far below the shortcut, and a shortcut of
about 1. Here both are numbers: what the bound exceeds 1 by at a shortcut of 1, and the embedding's standard deviation.
"""

from dataclasses import dataclass

import sympy as sp

from theory import attention, feed_forward
from theory import notation as s
from theory.derivation import Step, at, equation, topic
from theory.embedding import EMBEDDINGS, Embedding, embedding
from theory.feed_forward import SNM
from theory.initialization import INITIALIZATIONS, Initialization, initialization

LARGEST_EXCESS = 1.0
SMALLEST_STD = 0.5
CRITERION = (
    f"small sub-layers: at a shortcut of 1 neither the feed-forward bound nor the value path of attention exceeds 1 "
    f"by more than {LARGEST_EXCESS:g}; large shortcut: the embedding that enters block 1 has a standard deviation of "
    f"at least {SMALLEST_STD:g}"
)
_SIZES = {"feed_forward.up": (s.d, s.d_ff), "feed_forward.down": (s.d_ff, s.d), "embedding": (s.V, s.d)}


def rule(scheme: str | Initialization, kind: str) -> sp.Expr:
    """The standard deviation of that kind of matrix in d, d_ff, V and N (attention: d to d), fan-in and -out put in."""
    fan_in, fan_out = _SIZES.get(kind, (s.d, s.d))
    return initialization(scheme).rule(kind).subs({s.fan_in: fan_in, s.fan_out: fan_out})


def embedding_std(scheme: str | Initialization, method: str | float | Embedding) -> sp.Expr:
    """Standard deviation of the embedding that enters block 1, exact in d, V and N (SNM-1).

    Positions are left out, and so is the epsilon of an embedding LayerNorm.
    """
    return sp.simplify(_entering(scheme, embedding(method)).doit())


def _entering(scheme: str | Initialization, method: Embedding) -> sp.Expr:
    """The multiplier times the table's standard deviation, or what a norm makes of that."""
    entering = s.embedding_multiplier * s.embedding_std
    if method.layer_norm:
        return at(entering / sp.sqrt(entering**2 + s.epsilon), {s.epsilon: 0})
    table = rule(scheme, "embedding") if method.table_std is None else method.table_std
    return at(entering, {s.embedding_multiplier: method.multiplier, s.embedding_std: table})


def feed_forward_excess(scheme: str | Initialization) -> sp.Expr:
    """What the paper's feed-forward bound exceeds 1 by, in sigma_x', d, N and n, at d_ff = 4 d."""
    return sp.simplify(_feed_forward_excess(scheme).doit())


def _feed_forward_excess(scheme: str | Initialization) -> sp.Expr:
    width = {s.d_ff: 4 * s.d}
    stds = {s.sigma_1: rule(scheme, "feed_forward.up"), s.sigma_2: rule(scheme, "feed_forward.down")}
    return at(feed_forward.PAPER_EXCESS, width | {std: value.subs(width) for std, value in stds.items()})


def value_path_excess(scheme: str | Initialization) -> sp.Expr:
    """The same for attention's value path under uniform attention (norm at most 2), multi-head, in sigma_x, d, N, n."""
    path = 2 * sp.sqrt(s.d) * s.sigma_O * attention.VALUE_PATH / s.sigma_x
    path = path.subs({s.norm_P: 2, s.num_heads: s.num_kv_heads}).subs(s.num_kv_heads, s.d / s.d_head)
    stds = {s.sigma_V: rule(scheme, "attention.value"), s.sigma_O: rule(scheme, "attention.output")}
    return sp.simplify(path.subs(stds))


@dataclass(frozen=True)
class Requirements:
    """One (initialisation, embedding) pair at a size: the symbolic rules, their numbers, and the two verdicts.

    embedding_std, feed_forward_excess, value_path_excess: expressions; `wide_std` and `deep_excess` are the limits
    d -> oo (N fixed) of the first and N -> oo (d fixed) of the larger excess at a shortcut of 1. The numbers
    `std`, `feed_forward_number`, `value_path_number` are at the size asked for; `criterion` says how they are judged.
    """

    initialization: str
    embedding: str
    embedding_std: sp.Expr
    feed_forward_excess: sp.Expr
    value_path_excess: sp.Expr
    wide_std: sp.Expr
    deep_excess: sp.Expr
    std: float
    feed_forward_number: float
    value_path_number: float
    criterion: str = CRITERION

    @property
    def small_sublayers(self) -> bool:
        return max(self.feed_forward_number, self.value_path_number) <= LARGEST_EXCESS

    @property
    def large_shortcut(self) -> bool:
        return self.std >= SMALLEST_STD


def requirements(
    scheme: str | Initialization,
    method: str | float | Embedding,
    num_layers: int = 24,
    d_model: int = 1024,
    vocab_size: int = 50257,
) -> Requirements:
    """The two requirements for one pair at one size; d_ff = 4 d_model. Raises ValueError for an unknown scheme."""
    std, ffn, value = embedding_std(scheme, method), feed_forward_excess(scheme), value_path_excess(scheme)
    size = {s.N: num_layers, s.d: d_model, s.V: vocab_size, s.layer: 1, s.sigma_x: 1, s.sigma_y: 1}
    deep = [sp.limit(r.subs({s.sigma_x: 1, s.sigma_y: 1}), s.N, sp.oo) for r in (ffn, value)]
    return Requirements(
        initialization(scheme).name,
        embedding(method).name,
        std,
        ffn,
        value,
        sp.limit(std, s.d, sp.oo),
        sp.Max(*deep),
        float(std.subs(size)),
        float(ffn.subs(size)),
        float(value.subs(size)),
    )


def requirements_table(num_layers: int = 24, d_model: int = 1024, vocab_size: int = 50257) -> tuple[Requirements, ...]:
    """`requirements` of every registered initialisation with every registered embedding."""
    return tuple(
        requirements(i, e, num_layers, d_model, vocab_size) for i in INITIALIZATIONS for e in EMBEDDINGS
    )  # fmt: skip


@topic("Standard deviation of the embedding that enters block 1")
def embedding_stds() -> tuple[Step, ...]:
    """SNM-1, from the registered rules, Megatron initialisation: what is multiplied is what is sampled."""
    small = sp.sqrt(2 / (5 * s.d))
    expected = {"vanilla": small, "detach": small, "scaled": sp.sqrt(sp.Rational(2, 5)), "layer_norm": 1, "unit": 1}
    return tuple(
        Step(
            equation(_entering("megatron", EMBEDDINGS[name]), sp.sympify(value)),
            f"{name}: " + ("behind a norm" if EMBEDDINGS[name].layer_norm else "multiplier times the table's entries"),
            EMBEDDINGS[name].source,
        )
        for name, value in expected.items()
    )


@topic("The two requirements: small sub-layers and a large shortcut")
def two_requirements() -> tuple[Step, ...]:
    """Either makes each sub-layer's bound approach 1. The product over N blocks needs more: its logarithm grows like
    sqrt N under the 1/sqrt(2N) of Megatron, and stays finite under the 1/N of Wang's rule."""
    ffn, attn = feed_forward.EXCESS.subs(s.epsilon, 0), attention.EXCESS.subs(s.epsilon, 0)
    megatron, wang = feed_forward_excess("megatron"), feed_forward_excess("wang")
    vanilla, scaled = (at(megatron, {s.sigma_y: embedding_std("megatron", name)}) for name in ("vanilla", "scaled"))
    depth = sp.Symbol("N", positive=True)
    return (
        Step(_limit(ffn, s.sigma_1, 0, 0), "small sub-layers: the feed-forward bound tends to 1"),
        Step(_limit(attn, s.sigma_O, 0, 0), "and so does attention's"),
        Step(_limit(ffn, s.sigma_y, sp.oo, 0), "large shortcut: the feed-forward bound tends to 1"),
        Step(_limit(attn, s.sigma_x, sp.oo, 0), "and so does attention's"),
        Step(_limit(ffn, s.sigma_y, 0, sp.oo), "a small shortcut: the bound grows without limit"),
        Step(
            equation(_feed_forward_excess("megatron"), sp.Rational(18, 5) / (sp.sqrt(2 * s.N) * s.sigma_y)),
            "Megatron's rules in the bound: the width cancels",
            SNM + ", section 4 [secondary]",
        ),
        Step(
            equation(vanilla, sp.Rational(18, 5) * sp.sqrt(5 * s.d / (4 * s.N))),
            "with the vanilla embedding block 1's excess grows as sqrt d",
        ),
        Step(
            equation(scaled, sp.Rational(18, 5) * sp.sqrt(5 / (4 * s.N))),
            "with Scaled Embed it has no d",
        ),
        Step(
            _limit(
                sp.sqrt(depth) * sp.log(1 + megatron.subs(s.N, depth)), depth, sp.oo, 9 * sp.sqrt(2) / (5 * s.sigma_y)
            ),
            "per block the logarithm falls only as 1/sqrt N, so the product's grows as sqrt N: vacuous end to end",
        ),
        Step(
            _limit(depth * sp.log(1 + wang.subs(s.N, depth)), depth, sp.oo, 18 * sp.sqrt(10) / (5 * s.sigma_y)),
            "under Wang's 2/(N sqrt d) the product stays finite at any depth",
        ),
    )


def _limit(expression: sp.Expr, symbol: sp.Symbol, to: sp.Expr, value: sp.Expr) -> sp.Eq:
    return equation(sp.Limit(expression, symbol, to), value)


@topic("The excess of the feed-forward bound over 1 for 350M, 1.7B and 13B")
def arithmetic() -> tuple[Step, ...]:
    """Megatron initialisation, shortcut at the embedding's standard deviation: 350M (N 24, d 1024), 1.7B (24, 2304),
    13B (40, 5120); vanilla, Scaled Embed, Embed LN. The decimals printed are these, rounded."""
    excess = feed_forward_excess("megatron")
    steps = []
    for model, layers, width in (("350M", 24, 1024), ("1.7B", 24, 2304), ("13B", 40, 5120)):
        for name in ("vanilla", "scaled", "layer_norm"):
            std = embedding_std("megatron", name)
            value = at(excess, {s.sigma_y: std.subs(s.d, width), s.N: layers})
            exact = sp.Rational(9) * width * sp.Rational(2, 5) / (width * sp.sqrt(2 * layers) * std.subs(s.d, width))
            steps.append(
                Step(
                    equation(value, sp.nsimplify(exact)),
                    f"{model}, {name}: {float(value.doit()):.3g}",
                    SNM + " [secondary]; THEORY, section 1",
                )
            )
    return tuple(steps)
