"""How the gradient amplification grows with the number of blocks N: constant, logarithm, power, or an exponential.

Read off the two-number recursion (`theory.closed_form`) at its limit. As depth grows the tokens' correlation tends to a
fixed point, 1 for all the usual sub-layers; there attention writes and returns the same variance, whatever its softmax
does, since its rows sum to 1 (`theory.token_mixing`). What is left is the ratio kappa of backward to forward gain, and
how the written variance depends on N and on the block's number n. The score path's gain vanishes as tokens become
alike, unless logits grow with the stream: then it decides (`theory.score_path`).
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import product

import numpy as np
import sympy as sp
from scipy.optimize import brentq

from theory import notation as s
from theory.activation import activation
from theory.architecture import Architecture
from theory.attention_scheme import attention_scheme
from theory.block import BLOCKS, PARTS, Block, block
from theory.closed_form import Addition, Pair, additions, closed_form, gain
from theory.dual_expression import dual_tables, kinked_line, line_at_infinity, tangent_at_zero
from theory.embedding import EMBEDDINGS, Embedding
from theory.initialization import INITIALIZATIONS, Initialization, initialization
from theory.score_path import KEPT, KEPT_UNDER_CAP
from theory.solved_recursion import CONSTANT_GROWTH
from theory.token_mixing import token_mixing

KINDS = (
    "constant", "logarithm", "power", "stretched exponential", "exponential", "compressed exponential",
    "double exponential", "not derived",
)  # fmt: skip
_DEEP = 1e6


@dataclass(frozen=True)
class Growth:
    """The amplification's leading behaviour as N -> oo.

    kind: one of KINDS. exponent: of N (power), of log N (logarithm), or p in exp(rate N^p), below 1 "stretched", above
    "compressed"; 0 for a constant. rate: per block^p, of an exponential, nan where it has no closed form (c in
    `formula`); 0 otherwise. expression: the behaviour in N and sigma_0 up to a constant factor; of a constant, what the
    gains at the fixed point give, from which tokens not yet alike differ (`closed_form` has the number).
    token_correlation: the fixed point. topic: the derivation. All are of the root of the mean square over
    initialisations; where near-ties of logits decide, a typical network's falls behind at great depth, and explanation
    says so. "not derived": logits grow under a cap that RoPE, ALiBi, a clip or gated layers make uneven, or with gains
    that depend on the depth; exponent and rate are nan, and expression is what the value path alone gives.
    """

    kind: str
    exponent: float
    rate: float
    expression: sp.Expr
    explanation: str
    topic: str
    token_correlation: float

    @property
    def formula(self) -> str:
        """The class in a few characters: "constant", "N^0.52", "exp(0.0068 N)"."""
        formulas = {
            "constant": "constant",
            "logarithm": f"(log N)^{self.exponent:.2f}",
            "power": f"N^{self.exponent:.2f}",
            "double exponential": "exp(2^N)",
            "not derived": "not derived: score path",
        }
        rate = "c" if math.isnan(self.rate) else f"{self.rate:.2g}"
        power = "" if self.exponent == 1 else f"^{self.exponent:.3g}"
        return formulas.get(self.kind, f"exp({rate} N{power})")


def growth(arch: Architecture) -> Growth:
    """Growth class of `arch`, whose num_layers plays no role; everything else is held fixed.

    norm_epsilon counts as 0: an output that shrinks with depth, under a norm on the output, has its class only while
    its variance exceeds it. Source: the recursion of `theory.closed_form` in its deep limit. Raises ValueError as
    `Architecture` does.
    """
    found = _value_path(arch)
    normed = arch.normed("pre", "attention") or arch.normed("post", "attention")
    bounded = normed or attention_scheme(arch.attention).normed or found.kind in ("constant", "double exponential")
    if bounded or arch.seq_len == 1 or not _writes(arch, "attention"):
        return found
    return _near_ties(_plain(arch), found)


def _plain(arch: Architecture) -> Architecture:
    """With the fields of which deep layers know nothing as they are by default, so that they share what is derived."""
    return replace(arch, num_layers=1, embedding="vanilla")


def _value_path(arch: Architecture) -> Growth:
    scheme = block(arch.block)
    if scheme.branch.is_zero:
        return Growth(
            "constant", 0.0, 0.0, sp.S.One, "branches start at 0: the stack is the identity", "no_norm_growth", 0.0
        )
    if not any(_writes(arch, part) for part in PARTS):
        factor = sp.S.One if arch.normed("post", "attention") else scheme.shortcut**2
        why = "output matrices start at 0: only shortcuts and their norms are left"
        return _exponential([factor] * len(scheme.additions), 0.0, "no_norm_growth", why)
    if arch.normed("post", "attention") or all(arch.hides_length(part) for part in PARTS):
        return _with_norms(_plain(arch))
    _, rho, gains = _deep_gains(_plain(arch))
    return _without_norms(arch, [scheme.shortcut**2 + back for _, back in gains], float(rho))


@lru_cache(maxsize=256)
def _with_norms(arch: Architecture) -> Growth:
    """Growth where norms hide the stream's length, so that it is the same for every embedding."""
    deep, rho, gains = _deep_gains(arch)
    fixed, shortcut = float(rho), block(arch.block).shortcut ** 2
    if deep.normed("post", "attention"):
        ratios = [(shortcut + back) / (shortcut + forth) for forth, back in gains]
        return _exponential(
            ratios, fixed, "post_norm_growth", "each sum is normed: gains multiply, backward over forward"
        )
    limit = sp.limit(shortcut, s.N, sp.oo)
    forth, back = (sp.simplify(sum(pair[i] for pair in gains)) for i in (0, 1))
    kappa = sp.simplify(sp.limit((back / forth).subs(s.layer, s.N), s.N, sp.oo))
    decay = sp.limit(s.N * len(gains) * (1 - shortcut), s.N, sp.oo)
    if limit == 1 and decay.is_finite:
        return _additive(forth, kappa, decay, fixed)
    ratios, power = [shortcut] * len(gains), sp.S.Zero
    if decay > 0:
        kept = _stationary(shortcut, [f for f, _ in gains])
        ratios = [shortcut + b / variance for (_, b), variance in zip(gains, kept, strict=True)]
        power = -_order(kept[0].subs(s.layer, s.N), s.N)
    found = _exponential(ratios, fixed, "post_norm_growth", "the shortcut's factor is further from 1 than by 1 / N")
    return _power(power, kappa, fixed) if found.kind == "constant" and power > 0 else found


def growth_table(
    arch: Architecture,
    blocks: tuple[str | Block, ...] = tuple(BLOCKS),
    initializations: tuple[str | Initialization, ...] = tuple(INITIALIZATIONS),
    embeddings: tuple[str | float | Embedding, ...] = tuple(EMBEDDINGS),
) -> Iterator[tuple[Architecture, Growth]]:
    """`growth` of every combination of these with the other fields of `arch`; initialisations it cannot have excepted.

    Those are: an output matrix of 0 where every matrix is divided by its norm.
    """
    for b, i, e in product(blocks, initializations, embeddings):
        if attention_scheme(arch.attention).spectral and initialization(i).rule("attention.output").is_zero:
            continue
        model = replace(arch, block=b, initialization=i, embedding=e)
        yield model, growth(model)


def _writes(arch: Architecture, part: str) -> bool:
    """Whether that part's output matrix is not 0 at the start."""
    return not arch.rule("attention.output" if part == "attention" else "feed_forward.down").is_zero


@lru_cache(maxsize=256)
def _deep_gains(arch: Architecture) -> tuple[Architecture, sp.Expr, tuple[Pair, ...]]:
    """`arch` as its deepest layers see it, the tokens' correlation there, and each addition's two gains."""
    deep = _deep(arch)
    steps = additions(deep)
    rho, gamma = _fixed_point(deep, steps)
    return deep, rho, tuple(_gains(step, rho, gamma) for step in steps)


def _deep(arch: Architecture) -> Architecture:
    """`arch` with the activation that its deepest layers see: a line where their input is small or large."""
    scheme = activation(arch.activation)
    if kinked_line(scheme) is not None:
        return arch
    size = block(arch.block).input ** 2 * gain(arch, "feed_forward.gate" if scheme.gated else "feed_forward.up")
    input_size = sp.limit(size.subs(s.layer, s.N), s.N, sp.oo)
    if input_size == 0:
        return replace(arch, activation=tangent_at_zero(scheme))
    if not arch.normed("pre", "feed_forward") and not arch.normed("post", "feed_forward"):
        return replace(arch, activation=line_at_infinity(scheme))
    return arch


def _fixed_point(arch: Architecture, steps: tuple[Addition, ...]) -> tuple[sp.Expr, sp.Expr]:
    """Where the correlations of stream and gradient stay, from small ones upwards; exactly 1 where it is that."""
    terms = [step.compiled(*(term for part in step.parts for term in step.written[part])) for step in steps]

    def moved(rho: float, gamma: float) -> tuple[float, float]:
        found = [np.sum(np.reshape(f(1.0, rho, gamma, _DEEP, _DEEP, 0.0), (-1, 4)), axis=0) for f in terms]
        size, pair, own, across = np.sum(found, axis=0)
        return pair / size, across / own

    mixing = token_mixing(arch)
    grid = np.append(np.linspace(0.005, 0.995, 199), 0.9999)
    above = np.array([moved(rho, 0.0)[0] < rho for rho in grid])
    if not above.any() and mixing.row_square == 1:
        return sp.S.One, mixing.kept
    low, high = (grid[-1], 1.0) if not above.any() else (max(grid[above.argmax()] - 0.005, 0.0), grid[above.argmax()])
    for _ in range(50):
        middle = (low + high) / 2
        low, high = (middle, high) if moved(middle, 0.0)[0] >= middle else (low, middle)
    rho, gamma = (low + high) / 2, 0.5
    for _ in range(2000):
        gamma = moved(rho, gamma)[1]
    return sp.Float(rho), sp.Float(gamma)


def _gains(step: Addition, rho: sp.Expr, gamma: sp.Expr, parts: tuple[str, ...] = PARTS) -> tuple[sp.Expr, sp.Expr]:
    """Variance these parts of an addition write into a stream of variance 1 and add to the squared gradient."""
    tables = dual_tables(step.activation)
    found = []
    for i in (0, 2):
        term = sum((step.written[part][i] for part in step.parts if part in parts), sp.S.Zero)
        term = term.subs({s.epsilon: 0, s.variance: 1, s.correlation: rho, s.gradient_correlation: gamma})
        for name, table in tables.items():
            term = term.replace(sp.Function(name), lambda *args, table=table: sp.Float(float(table(*map(float, args)))))
        found.append(sp.simplify(term))
    return found[0], found[1]


def _stationary(shortcut: sp.Expr, written: list[sp.Expr]) -> list[sp.Expr]:
    """The variance before each of a block's additions nu -> shortcut nu + written, if every block has the same."""
    count = len(written)
    once = sum(shortcut ** (count - 1 - i) * added for i, added in enumerate(written))
    found = [once / (1 - shortcut**count)]
    for added in written[:-1]:
        found.append(shortcut * found[-1] + added)
    return found


def _order(expression: sp.Expr, symbol: sp.Symbol) -> sp.Expr:
    """p where the expression falls like symbol^-p."""
    order = -sp.limit(sp.simplify(symbol * sp.diff(sp.log(expression), symbol)), symbol, sp.oo)
    return sp.Rational(round(float(order), 9)).limit_denominator(1000)


def _additive(forth: sp.Expr, kappa: sp.Expr, decay: sp.Expr, fixed: float) -> Growth:
    """The stream gains `forth` a block and loses the share decay / N of itself; the gradient gains kappa forth / nu."""
    p, r = _order(forth, s.N), _order(forth, s.layer)
    power = 1 - p - r
    if power > 0 and r < 1:
        return _power(power, kappa, fixed)
    if r == 1 and p == 0:
        why = "block n writes a variance of order 1 / n, so the stream's grows like log N"
        return Growth("logarithm", float(kappa / 2), 0.0, sp.log(s.N) ** (kappa / 2), why, "harmonic_growth", fixed)
    written, why = sp.S.Zero, "what all blocks write vanishes"
    if power == 0 and r < 1:
        y = sp.Symbol("y", positive=True)  # (n / N)^(1 - r)
        received = sp.Integral(sp.exp(decay * y ** (1 / (1 - r))), (y, 0, 1))
        written = sp.limit(forth.subs(s.layer, s.N) * s.N, s.N, sp.oo) / (1 - r)
        written *= received.doit() if r * decay == 0 else received.evalf()
        why = "all blocks together write a variance that depth does not change"
    elif p == 0:
        written = sp.Sum(forth, (s.layer, 1, sp.oo)).evalf()
        why = "the first blocks write most of a variance that depth does not change"
        why += "" if kappa == 1 else "; gains that differ are worth a little less than the value"
    numbers = {s.forward_gain: 1, s.backward_gain: kappa, s.written_in_all: written, s.shortcut_loss: decay}
    value = sp.sqrt(CONSTANT_GROWTH).subs(numbers)
    topic = "affine_growth" if decay else "additive_growth"
    if kappa.is_Rational:  # SymPy takes hours over powers of long irrational numbers
        value = sp.simplify(value)
    return Growth("constant", 0.0, 0.0, value, why, topic, fixed)


def _power(power: sp.Expr, kappa: sp.Expr, fixed: float) -> Growth:
    exponent = power * kappa / 2
    why = "the stream's variance grows like N^p, and the squared gradient like its power kappa, backward over forward"
    return Growth("power", float(exponent), 0.0, s.N**exponent, why, "additive_growth", fixed)


def _exponential(ratios: list[sp.Expr], fixed: float, topic: str, why: str) -> Growth:
    """Growth whose squared gradient is multiplied by each of these ratios a block, functions of N alone."""
    excess = [sp.simplify(sp.together(ratio.subs(s.layer, s.N) - 1)) for ratio in ratios]
    if all(term == 0 for term in excess):
        return Growth("constant", 0.0, 0.0, sp.S.One, why + "; here the two agree", topic, fixed)
    limits = [sp.limit(term, s.N, sp.oo) for term in excess]
    if any(limits):
        rate = sp.log(sp.Mul(*(1 + term for term in limits))) / 2
        return Growth("exponential", 1.0, float(rate), sp.exp(rate * s.N), why, topic, fixed)
    total = sp.simplify(sum(excess))  # log(1 + x) is x in the limit
    p = _order(total, s.N) if total != 0 else sp.oo
    if p <= 1:
        rate = sp.limit(sp.simplify(total * s.N**p), s.N, sp.oo) / 2
        value = sp.exp(rate * s.N ** (1 - p))
        if p == 1:
            return Growth("constant", 0.0, 0.0, value, why, topic, fixed)
        return Growth("stretched exponential", float(1 - p), float(rate), value, why, topic, fixed)
    return Growth("constant", 0.0, 0.0, sp.S.One, why + "; what a block adds vanishes faster than 1 / N", topic, fixed)


def _without_norms(arch: Architecture, ratios: list[sp.Expr], fixed: float) -> Growth:
    """A branch scales with the stream: so do the gradients; a gated feed-forward squares it."""
    why = "no norm hides the stream's length: each block multiplies"
    found = _exponential(ratios, fixed, "no_norm_growth", why)
    deepest = closed_form(replace(arch, num_layers=1024))
    if activation(arch.activation).gated and not np.isfinite(deepest.amplification * deepest.shortcut_std[-1]):
        why = "no norm, and a gated layer squares its input: the stream's logarithm doubles from block to block"
        return Growth("double exponential", 1.0, float("inf"), sp.exp(2**s.N), why, "no_norm_growth", fixed)
    if found.kind != "constant" and not activation(arch.activation).gated:
        return found
    value = sp.Float(2 * deepest.amplification - closed_form(replace(arch, num_layers=512)).amplification)
    why = "no norm, but branches so small that the stream stays bounded; value by extrapolation from N = 512 and 1024"
    return Growth("constant", 0.0, 0.0, value, why, "no_norm_growth", fixed)


@lru_cache(maxsize=256)
def _near_ties(arch: Architecture, value: Growth) -> Growth:
    """Growth where logits grow, so that attention picks one token and near-ties of two carry the gradient.

    written: variance that an addition writes. kept: what it writes of the mean square difference of two tokens, of
    which attention keeps `share` and the feed-forward its backward gain, as of any small difference.
    """
    shortcut, scheme = block(arch.block).shortcut ** 2, attention_scheme(arch.attention)
    capped, uneven = scheme.cap is not None, scheme.clip is not None or arch.positions in ("rope", "alibi")
    scheme = replace(scheme, clip=None)  # a clip leaves 0 and 1 as they are
    deep = _deep(replace(arch, attention=scheme))
    steps, alike = additions(deep), (sp.S.One, token_mixing(deep).kept)
    share = KEPT_UNDER_CAP if capped else KEPT
    written = [_gains(step, *alike)[0] for step in steps]
    kept = [
        share * _gains(step, *alike, ("attention",))[0] + _gains(step, *alike, ("feed_forward",))[1] for step in steps
    ]
    logits = [gain(arch, f"attention.{kind}") for kind in ("query", "key")]
    normed = all(deep.hides_length(part) for part in PARTS)
    on_depth = sp.Tuple(shortcut, *written, *logits).free_symbols or (normed and shortcut != 1)
    if on_depth or (capped and (uneven or (normed and sum(kept) >= sum(written)))):
        how = "with gains that depend on the depth" if on_depth else "up to a cap"
        why = f"score path: attention logits grow with the stream {how}; the value path alone: {value.formula}"
        return replace(
            value, kind="not derived", exponent=math.nan, rate=math.nan, explanation=why, topic="growing_logits"
        )
    square = capped or arch.positions == "rope"  # the gain is of order 1 - rho, not of its root
    if normed:
        falls = max(1 - sum(kept) / sum(written), sp.S.Zero)
        power, fixed = 1 - falls if square else 1 - falls / 2, 1.0 if falls else _picked(steps)
        return _tied(power, sp.nan, fixed, value, capped)
    by_block = [shortcut + term for terms in (kept, kept if square else written) for term in terms]
    rate = sp.log(sp.Mul(*by_block)) / 8
    return _tied(sp.Integer(2), rate, 1.0, value, capped) if rate > 0 else value


def _tied(power: sp.Expr, rate: sp.Expr, fixed: float, value: Growth, capped: bool) -> Growth:
    """exp(rate N^power), with `value` as what a network without near-ties has."""
    kind = {-1: "stretched exponential", 0: "exponential", 1: "compressed exponential"}[int(sp.sign(power - 1))]
    ties = "logits below the cap" if capped else "near-ties of two"
    why = (
        f"score path: attention logits grow with the stream; {ties} become rarer and worth more, and carry the "
        "gradient's mean square. A typical network falls behind once its own have run out. The value path alone: "
        + value.formula
    )
    topic = "capped_growth" if capped else "near_tie_growth"
    expression = sp.exp((s.near_tie_rate if rate is sp.nan else rate) * s.N**power)
    return Growth(kind, float(power), float(rate), expression, why, topic, fixed)


def _picked(steps: tuple[Addition, ...]) -> float:
    """The tokens' correlation that lasts where attention picks one token and they do not become alike."""

    terms = [(part, step.compiled(*step.written[part][:2])) for step in steps for part in step.parts]

    def gained(rho: float) -> float:
        found = 0.0
        for part, written in terms:
            size, pair = written(1.0, rho, 0.0, _DEEP, _DEEP, 0.0)
            found += float(size * (1 - KEPT * (1 - rho)) if part == "attention" else pair) - rho * float(size)
        return found

    return float(brentq(gained, 0.0, 1 - 1e-9))
