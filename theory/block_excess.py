"""What one addition's Jacobian bound exceeds its shortcut's by, in every arrangement, with the slopes written out.

The bound is s_post a (1 + r), r = (b/a) s_out s_in J of each branch (`theory.addition_bound`), and each slope is 1 over
what its norm sees. arXiv 2312.16903, equations 15 and 20 [secondary], are the case of pre-LN. Sizes are those of
typical rows: Gaussian norms in expectation, one standard deviation of the stream, and the shortest row that a norm
sees, which in attention is the last token's, an even mean of T independent values. `paper_bound` is their number.
"""

import math
import operator
from functools import cache, lru_cache
from typing import Any

import numpy as np
import sympy as sp
from numpy.polynomial.legendre import leggauss
from numpy.typing import ArrayLike

from theory import attention, feed_forward
from theory import notation as s
from theory.activation import activation
from theory.addition_bound import (
    ATTENTION,
    BRANCH,
    FEED_FORWARD,
    GATED,
    GAUSSIAN,
    HEADS,
    VALUES,
    attention_matrix_bounds,
)
from theory.architecture import Architecture
from theory.attention_scheme import attention_scheme
from theory.block import block
from theory.derivation import Step, at, equation, topic
from theory.feed_forward import SNM
from theory.function_of import function_of

EXCESS = BRANCH / (s.slope_post * s.shortcut_factor)
PIECES = ("values", "scores", "feed_forward")
STREAM = {"attention": s.sigma_x, "feed_forward": s.sigma_y}
OUTPUT = {"attention": s.sigma_O, "feed_forward": s.sigma_2}
_NORMS = {
    "attention.query": s.norm_Q,
    "attention.key": s.norm_K,
    "attention.value": s.norm_V,
    "attention.output": s.norm_O,
    "feed_forward.up": s.norm_1,
    "feed_forward.gate": s.norm_g,
    "feed_forward.down": s.norm_2,
}
_PROJECTIONS = {
    "query": (s.sigma_Q, s.length_q, s.slope_q),
    "key": (s.sigma_K, s.length_k, s.slope_k),
    "value": (s.sigma_V, s.length_v, s.slope_v),
}


def part_of(piece: str) -> str:
    """The sub-layer that a piece of an excess belongs to: attention has two, its values and its scores."""
    return piece if piece == "feed_forward" else "attention"


@lru_cache(maxsize=1024)
def excess(arch: Architecture, piece: str) -> sp.Expr:
    """r of "attention", of its "values" or "scores" alone, or of "feed_forward", as an expression in `theory.notation`.

    Of `arch` only where it has norms counts, and whether its unit is gated. The stream is sigma_x before attention and
    sigma_x' before the feed-forward layer, factors are a_s, b_s and c_in. Raises ValueError for an unknown piece.
    Source: the topic `residual_addition_bound`; arXiv 2312.16903, equations 15 and 20 [secondary], for pre-LN.
    """
    own = {
        "attention": ATTENTION,
        "values": ATTENTION * VALUES / HEADS,
        "scores": ATTENTION * (HEADS - VALUES) / HEADS,
        "feed_forward": GATED if activation(arch.activation).gated else FEED_FORWARD,
    }
    if piece not in own:
        raise ValueError(f"piece: unknown value {piece!r}; choose one of {', '.join(own)}")
    return EXCESS.subs(s.part_norm, own[piece]).xreplace(_slopes(arch, part_of(piece)))


def paper_bound(arch: Architecture, shortcut_std: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(sublayer float64[S], heads float64[num_layers]) as in `theory.bound`, at streams float64[S + 1] of that std."""
    additions = block(arch.block).additions
    sublayer, heads = np.empty(arch.num_sublayers), np.empty(arch.num_layers)
    for number, parts in enumerate(additions):
        now = sizes(arch, slice(None), shortcut_std[number : -1 : len(additions)])
        sublayer[number :: len(additions)] = evaluate(addition_bound(arch, parts), now)
        if "attention" in parts:
            heads[:] = evaluate(_heads(arch), now)
    return sublayer, heads


def size_after(arch: Architecture, parts: tuple[str, ...]) -> sp.Expr:
    """Standard deviation of the stream after the addition of those parts to one of sigma_x, before any norm on it."""
    added = sum((s.branch_factor * _added(arch, part)) ** 2 for part in parts)
    return sp.sqrt((s.shortcut_factor * s.sigma_x) ** 2 + added.xreplace({s.sigma_y: s.sigma_x}))


def stream_after(arch: Architecture, parts: tuple[str, ...]) -> sp.Expr:
    """The same after the norm on the sum, where there is one."""
    total = size_after(arch, parts)
    return total * _slope(total) if arch.normed("post", parts[0]) else total


@lru_cache(maxsize=1024)
def addition_bound(arch: Architecture, parts: tuple[str, ...]) -> sp.Expr:
    """The bound of the whole addition of those parts to a stream of sigma_x: s_post a (1 + r), r summed over them."""
    total = sum(excess(arch, part) for part in parts).xreplace({s.sigma_y: s.sigma_x})
    post = _slope(size_after(arch, parts)) if arch.normed("post", parts[0]) else sp.S.One
    return post * s.shortcut_factor * (1 + total)


def at_gaussian_norms(arch: Architecture, piece: str) -> sp.Expr:
    """`excess` in the standard deviations of the matrices' entries alone, where no norm needs its epsilon.

    A matrix that is divided by its norm has norm 1 and no standard deviation of its own.
    """
    spectral = attention_scheme(arch.attention).spectral
    values = {norm: sp.S.One if spectral else std * factor for norm, (std, factor) in GAUSSIAN.items()}
    if spectral:
        values |= {std: 1 / factor for std, factor in GAUSSIAN.values()}
    return sp.factor_terms(excess(arch, piece).subs(s.epsilon, 0).xreplace(values))


def evaluate(expression: sp.Expr, sizes: dict[sp.Symbol, Any]) -> Any:
    """Its value at those sizes, of numbers or arrays; nan or inf where it divides by a size of 0."""
    with np.errstate(all="ignore"):
        return _function(expression)(**{str(symbol): sizes[symbol] for symbol in _symbols(expression)})


_function = lru_cache(maxsize=1024)(function_of)
_symbols = lru_cache(maxsize=1024)(operator.attrgetter("free_symbols"))


def sizes(arch: Architecture, layer: int | slice, std: ArrayLike, even: bool = False) -> dict[sp.Symbol, Any]:
    """The value of every symbol of these expressions, in that layer, counted from 0, or in those, at streams of std.

    even: attention that averages evenly, whatever its logits.
    """
    scheme, unit = attention_scheme(arch.attention), activation(arch.activation)
    low, high = scheme.clip or (0.0, 1.0)
    found: dict[sp.Symbol, Any] = {
        s.d: arch.d_model, s.d_ff: arch.ff_width, s.d_head: arch.d_head, s.num_heads: arch.num_heads,
        s.num_kv_heads: arch.kv_heads, s.epsilon: arch.norm_epsilon, s.sigma_x: std, s.sigma_y: std,
        s.temperature: scheme.temperature_at(arch.d_head), s.steepness: high - low,
        s.lipschitz: feed_forward.lipschitz(unit), s.at_zero: abs(unit.at_zero),
        s.extreme: np.sqrt(2 * np.log(2 * arch.ff_width * arch.seq_len)),
        s.row_length: max((high - low) / arch.seq_len + low, 0.0) * np.sqrt(arch.seq_len),
        s.shortcut_factor: arch.factor("shortcut")[layer], s.branch_factor: arch.factor("branch")[layer],
        s.input_factor: arch.factor("input")[layer],
    }  # fmt: skip
    for kind in arch.matrices:
        norm = _NORMS[kind]
        found[norm], found[GAUSSIAN[norm][0]] = _typical_norm(arch, kind)[layer], arch.effective_std(kind)[layer]
    query, key = (0.0 if even else evaluate(_entry(arch, name), found) for name in ("query", "key"))
    found[s.norm_P], found[s.column_sum] = attention_matrix_bounds(arch.seq_len, found[s.temperature] * query * key)
    width = np.sqrt(arch.d_model) * evaluate(_input(arch, "feed_forward"), found)
    up, gate = found[s.sigma_1] * width, found[s.sigma_g] * width if unit.gated else 1.0
    return found | {s.activation_gain: _hidden_size(arch, up, gate) / (up * gate)}


def _typical_norm(arch: Architecture, kind: str) -> np.ndarray:
    """The norm that matrix acts with in each layer, in expectation: 1 where the scheme divides it by its own."""
    rows, columns = arch.shape(kind)
    norm = arch.std(kind) * (math.sqrt(rows) + math.sqrt(columns))
    return np.ones_like(norm) if attention_scheme(arch.attention).spectral else norm


def _hidden_size(arch: Architecture, up: ArrayLike, gate: ArrayLike) -> np.ndarray:
    """Root mean square of F(u), or of F(g) u, u and g Gaussian of these standard deviations; with a norm on it, of what
    that divides by, without its epsilon."""
    scheme = activation(arch.activation)
    nodes, weights = _half_lines()
    values = scheme.numeric[0](np.multiply.outer(gate if scheme.gated else up, nodes))
    square = values**2 @ weights
    if scheme.gated:
        return np.sqrt(square) * up
    centred = arch.normed("inner", "feed_forward") and arch.norm != "rms_norm"
    return np.sqrt(np.maximum(square - (values @ weights) ** 2, 0.0) if centred else square)


@cache
def _half_lines() -> tuple[np.ndarray, np.ndarray]:
    """Nodes and weights of a standard Gaussian, Gauss and Legendre's on either side of 0, where activations bend."""
    nodes, weights = leggauss(200)
    half = 6 * (nodes + 1)
    weights = 6 * weights * np.exp(-(half**2) / 2) / math.sqrt(2 * math.pi)
    return np.concatenate([-half, half]), np.concatenate([weights, weights])


@lru_cache(maxsize=1024)
def _heads(arch: Architecture) -> sp.Expr:
    """The bound on ‖J^Z‖."""
    return HEADS.xreplace(_slopes(arch, "attention"))


def _entry(arch: Architecture, name: str) -> sp.Expr:
    """Size of a coordinate of a head's "query", "key" or "value"."""
    normed = name in attention_scheme(arch.attention).normed
    return sp.S.One if normed else _PROJECTIONS[name][0] * sp.sqrt(s.d) * _input(arch, "attention")


def _slope(size: sp.Expr) -> sp.Expr:
    return 1 / feed_forward.ROOT.xreplace({s.sigma_y: size})


def _input(arch: Architecture, part: str) -> sp.Expr:
    """Size of a coordinate of what the sub-layer reads."""
    return s.input_factor * (1 if arch.normed("pre", part) else STREAM[part])


def _read(arch: Architecture, part: str) -> sp.Expr:
    """The same of what its last matrix reads, before the norm on that."""
    if part == "attention":
        return s.row_length * _entry(arch, "value")
    width = sp.sqrt(s.d) * _input(arch, part)
    gate = s.sigma_g * width if activation(arch.activation).gated else 1
    return s.activation_gain * gate * s.sigma_1 * width


def _written(arch: Architecture, part: str) -> sp.Expr:
    """The same of what its last matrix returns, before the norm on that."""
    read, fan_in = _read(arch, part), s.d if part == "attention" else s.d_ff
    if arch.normed("inner", part):
        read *= _slope(read)
    return OUTPUT[part] * sp.sqrt(fan_in) * read


def _added(arch: Architecture, part: str) -> sp.Expr:
    written = _written(arch, part)
    return written * _slope(written) if arch.normed("output", part) else written


def _slopes(arch: Architecture, part: str) -> dict[sp.Symbol, sp.Expr]:
    """Of every slope and size in the bound on that part's branch: what it is in this arrangement."""
    scheme, one = attention_scheme(arch.attention), sp.S.One
    found = {
        s.slope_in: s.input_factor * (_slope(STREAM[part]) if arch.normed("pre", part) else one),
        s.slope_inner: _slope(_read(arch, part)) if arch.normed("inner", part) else one,
        s.slope_out: _slope(_written(arch, part)) if arch.normed("output", part) else one,
    }
    if part == "feed_forward":
        width = sp.sqrt(s.d) * _input(arch, part)
        found[s.largest_up] = s.sigma_1 * width * s.extreme
        found[s.largest_active] = s.at_zero + s.lipschitz * s.sigma_g * width * s.extreme
        return found
    for name, (std, length, slope) in _PROJECTIONS.items():
        found[length] = sp.sqrt(s.d_head) * _entry(arch, name)
        normed = name in scheme.normed
        found[slope] = _slope(std * sp.sqrt(s.d) * _input(arch, part)) if normed else one
    return found


@topic("What an addition's bound exceeds its shortcut's by, in every arrangement")
def block_excess() -> tuple[Step, ...]:
    """r = (b/a) s_out s_in J, of each branch that the addition has. A norm's slope is 1 over what it sees: on the input
    the stream, on the output what the sub-layer writes, inside what its last matrix reads, after the sum the sum. phi_F
    is 1/sqrt 2 for ReLU, a constant of any activation that is homogeneous; others approach one as their input grows."""
    pre, post, output, sandwich, inner, none = (
        Architecture(block=name, activation="relu")
        for name in ("pre_ln", "post_ln", "output_norm", "sandwich", "sub_ln", "no_norm")
    )
    whole = s.slope_post * s.shortcut_factor + BRANCH
    gaussian = {norm: std * factor for norm, (std, factor) in GAUSSIAN.items()}
    layer = equation(s.part_norm, FEED_FORWARD.xreplace(gaussian))
    values = equation(s.part_norm, (ATTENTION * VALUES / HEADS).xreplace(gaussian))
    unnormed, normed, averaged = (equation(s.slope_in, s.input_factor / size) for size in (1, s.sigma_y, s.sigma_x))
    no_output, no_inner, no_value = (equation(x, 1) for x in (s.slope_out, s.slope_inner, s.slope_v))
    read = s.activation_gain * s.sigma_1 * sp.sqrt(s.d) * s.input_factor
    written = s.sigma_2 * sp.sqrt(s.d_ff) * read
    mixed = s.sigma_O * sp.sqrt(s.d) * s.row_length * s.sigma_V * sp.sqrt(s.d) * s.input_factor * s.sigma_x
    inside, behind, alone, of_values = (
        equation(slope, 1 / size)
        for slope, size in (
            (s.slope_inner, read),
            (s.slope_out, written),
            (s.slope_out, written * s.sigma_y),
            (s.slope_out, mixed),
        )
    )
    total = size_after(post, ("attention",))
    summed = equation(s.slope_post, 1 / total)
    plain = dict.fromkeys((s.shortcut_factor, s.branch_factor, s.input_factor), 1)
    paths = sum(excess(pre, piece).subs(gaussian) for piece in PIECES[:2])
    given = (
        (layer, "the feed-forward layer between its norms, at Gaussian norms; epsilon = 0 from here on"),
        (unnormed, "no norm on the input: its factor alone"),
        (normed, "a norm on the input"),
        (no_output, "no norm on the output"),
        (behind, "a norm on the output of a layer whose input is normed: its coordinates have this size"),
        (alone, "a norm on the output of a layer that reads the stream itself: they grow with it"),
        (no_inner, "no norm before the last matrix"),
        (inside, "a norm before the last matrix, of an input that is normed"),
    )
    return (
        Step(
            equation(whole / (s.slope_post * s.shortcut_factor) - 1, EXCESS),
            "over the shortcut's bound s_post a: the norm on the sum drops out, whatever it divides by",
            "residual_addition_bound",
        ),
        Step(
            equation(at(excess(pre, "feed_forward").subs(gaussian), plain), feed_forward.EXCESS),
            "pre-LN, feed-forward: the paper's",
            SNM + ", equation 15 [secondary]",
        ),
        Step(
            equation(at(paths, plain | {s.temperature: 1, s.steepness: 1}), attention.EXCESS),
            "pre-LN, attention, values and scores: the paper's",
            SNM + ", equation 20 [secondary]",
        ),
        *(Step(statement, reason, "typical rows, Gaussian matrices", kind="given") for statement, reason in given),
        *(
            Step(
                equation(EXCESS, at_gaussian_norms(arch, "feed_forward")), f"feed-forward, {reason}",
                using=(layer, *slopes),
            )
            for arch, slopes, reason in (
                (none, (no_inner, unnormed, no_output), "no norm: the stream is nowhere in it"),
                (post, (no_inner, unnormed, no_output), "a norm on the sum alone: the same"),
                (output, (no_inner, unnormed, alone), "a norm on the output alone: the stream, no matrix's scale"),
                (sandwich, (no_inner, normed, behind), "norms on input and output: the same"),
                (inner, (inside, normed, no_output), "norms on input and before the last matrix: not the first's"),
            )
        ),
        Step(values, "attention's values between its norms, the same way", kind="given"),
        Step(averaged, "a norm on attention's input", kind="given"),
        Step(no_value, "no norm on the values themselves", kind="given"),
        Step(of_values, "a norm on the output of attention that reads the stream itself", kind="given"),
        Step(
            equation(EXCESS, at_gaussian_norms(pre, "values")), "attention's values, a norm on the input",
            using=(values, no_inner, no_value, averaged, no_output),
        ),
        Step(
            equation(EXCESS, at_gaussian_norms(output, "values")),
            "a norm on the output alone: neither matrix's scale, but the stream's",
            using=(values, no_inner, no_value, unnormed, of_values),
        ),
        Step(summed, "a norm on the sum of shortcut and branch, whose squares add up", kind="given"),
        Step(equation(s.slope_post * total, 1), "it makes the stream 1, whatever that was before", using=(summed,)),
    )  # fmt: skip
