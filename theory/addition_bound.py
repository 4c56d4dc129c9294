"""The Jacobian bound of one residual addition x' = post(a x + b out(f(in pre(x)))), whatever the arrangement.

The picture: every norm is a factor 1/(what it divides by), every matrix its norm, and the sub-layer between them is
attention with its variants or a feed-forward layer, gated or not. arXiv 2312.16903 has pre-LN; these are its siblings.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import sympy as sp
from numpy.typing import ArrayLike

from theory import attention, feed_forward
from theory import notation as s
from theory.derivation import Step, equation, topic
from theory.feed_forward import SNM
from theory.function_of import function_of

_GROUP = sp.sqrt(s.num_heads / s.num_kv_heads)
_SCORE = s.temperature * s.steepness / sp.sqrt(s.d_head)
VALUES = s.steepness * s.norm_P * _GROUP * s.norm_V * s.slope_v
QUERIES = _SCORE * s.length_v * s.length_k * s.norm_Q * s.slope_q
KEYS = _SCORE * s.length_v * s.length_q * _GROUP * sp.sqrt(s.column_sum) * s.norm_K * s.slope_k
HEADS = VALUES + QUERIES + KEYS
ATTENTION = s.norm_O * s.slope_inner * HEADS
FEED_FORWARD = s.norm_2 * s.slope_inner * s.lipschitz * s.norm_1
GATED = s.norm_2 * s.slope_inner * (s.lipschitz * s.largest_up * s.norm_g + s.largest_active * s.norm_1)
BRANCH = s.slope_post * s.branch_factor * s.slope_out * s.slope_in * s.part_norm

_NARROW = sp.sqrt(s.d) + sp.sqrt(s.num_kv_heads * s.d_head)
_WIDE = sp.sqrt(s.d) + sp.sqrt(s.d_ff)
GAUSSIAN = {
    s.norm_Q: (s.sigma_Q, 2 * sp.sqrt(s.d)),
    s.norm_K: (s.sigma_K, _NARROW),
    s.norm_V: (s.sigma_V, _NARROW),
    s.norm_O: (s.sigma_O, 2 * sp.sqrt(s.d)),
    s.norm_1: (s.sigma_1, _WIDE),
    s.norm_g: (s.sigma_g, _WIDE),
    s.norm_2: (s.sigma_2, _WIDE),
}
"""of each matrix's norm: its entries' standard deviation, and what that is multiplied by in expectation"""

heads_bound = function_of(HEADS)
"""The bound on ‖J^Z‖ as a function of arrays, by name: those of the symbols in `theory.notation`."""
_LAYER = (s.norm_1, s.norm_2, s.norm_g, s.lipschitz, s.largest_up, s.largest_active, s.slope_inner)
_plain, _gated = (function_of(layer, *_LAYER) for layer in (FEED_FORWARD, GATED))
_column_sum = function_of(attention.COLUMN_SUM, s.T, s.sigma_S)
_averaging = function_of(attention.AVERAGING, s.T, s.sigma_S, s.column_sum)


def feed_forward_bound_of(gated: bool) -> Callable[..., Any]:
    """The bound on the feed-forward layer's own Jacobian as a function of arrays, by name as `heads_bound`."""
    return _gated if gated else _plain


def attention_matrix_bounds(length: ArrayLike, logit_std: ArrayLike) -> tuple[Any, Any]:
    """(pi_P, c_P) of `theory.attention.attention_matrix` for Gaussian logits over that many tokens, of arrays."""
    logit_std = np.minimum(logit_std, 10.0)  # where both minima have long reached their other branch
    column = _column_sum(length, logit_std)
    return _averaging(length, logit_std, column), column


@topic("The bound of one residual addition in every arrangement")
def residual_addition_bound() -> tuple[Step, ...]:
    """x' = post(a x + b out(f(in pre(x)))), each norm there or not. A parallel block adds two branches, a sequential
    one has one. Pre-LN is a = b = 1, no norm but the first."""
    whole = sp.Symbol("J_add", positive=True)
    inside = s.shortcut_factor + s.branch_factor * s.slope_out * s.slope_in * s.part_norm
    split = sp.Le(whole, s.slope_post * inside)
    pre = equation(s.slope_in, 1 / feed_forward.ROOT)
    plain = [equation(x, 1) for x in (s.slope_out, s.slope_post, s.shortcut_factor, s.branch_factor)]
    part = equation(s.part_norm, s.lipschitz * s.sigma_1 * s.sigma_2 * feed_forward.CONSTANT)
    return (
        Step(
            split,
            "chain rule, triangle inequality and ‖A B‖ <= ‖A‖ ‖B‖; a factor of a branch counts by its largest entry",
            "Horn and Johnson, Matrix Analysis, section 5.6",
            kind="cited",
        ),
        Step(equation(s.slope_post * inside, s.slope_post * s.shortcut_factor + BRANCH), "the shortcut and one branch"),
        Step(pre, "pre-LN: the norm's Jacobian is 1/sigma (layer_norm_jacobian), its factor 1", kind="given"),
        *(Step(one, "pre-LN: no such norm or factor", kind="given") for one in plain),
        Step(part, "the feed-forward layer's matrices at their Gaussian norms", "feed_forward_bound", kind="given"),
        Step(
            equation(s.slope_post * inside, 1 + feed_forward.EXCESS),
            "so pre-LN gives the paper's bound back",
            SNM + ", equation 15 [secondary]",
            using=(part, pre, *plain),
        ),
    )


@topic("Attention's Jacobian bound under norms, caps, temperatures and clips")
def attention_variants_bound() -> tuple[Step, ...]:
    """Queries, keys and values may pass a norm per head, logits a temperature and a soft cap, probabilities a clip.
    ALiBi adds constants to the logits and RoPE turns queries and keys: neither has a slope but 1."""
    whole, value, query, key = sp.symbols("J_Z J_v J_q J_k", nonnegative=True)
    p, low, logit = (sp.Symbol(n, real=True) for n in ("p", "low", "l"))
    size = sp.Symbol("c", positive=True)
    paths = sp.Le(whole, value + query + key)
    bounds = [sp.Le(a, b) for a, b in ((value, VALUES), (query, QUERIES), (key, KEYS))]
    plain = [equation(x, 1) for x in (s.slope_q, s.slope_k, s.slope_v, s.temperature, s.steepness)]
    lengths = [
        equation(m, std * sp.sqrt(s.d * s.d_head))
        for m, std in ((s.length_q, s.sigma_Q), (s.length_k, s.sigma_K), (s.length_v, s.sigma_V))
    ]
    norms = [equation(norm, sp.Mul(*GAUSSIAN[norm])) for norm in (s.norm_Q, s.norm_K, s.norm_V)]
    return (
        Step(
            equation(sp.Derivative(size * sp.tanh(logit / size), logit), 1 - sp.tanh(logit / size) ** 2),
            "the soft cap's slope, so at most 1",
            "Gemma 2, arXiv 2408.00118",
        ),
        Step(
            equation(sp.Derivative(s.steepness * p + low, p), s.steepness),
            "where the clip does not cut its slope is high - low, else 0; as low <= 0 it is at most that times p",
            "Rybakov et al., arXiv 2410.16682",
        ),
        Step(paths, "values, queries and keys; triangle inequality", "product rule", kind="cited"),
        Step(bounds[0], "clipped probabilities are at most kappa P entry by entry", "attention_bound", kind="cited"),
        *(
            Step(b, "kappa on values, tau on logits, a norm's Jacobian on the way", "attention_bound", kind="cited")
            for b in bounds[1:]
        ),
        Step(
            sp.Le(whole, HEADS),
            "every path at its largest",
            using=(paths, *bounds),
        ),
        *(Step(one, "plain attention has none of these", kind="given") for one in plain),
        *(Step(one, "typical length of a row, input of length sqrt d", kind="given") for one in lengths),
        *(Step(one, "norm of a Gaussian matrix in expectation", "attention_bound", kind="given") for one in norms),
        Step(
            equation(HEADS, attention.HEADS),
            "so plain attention gives its own bound back",
            "attention_bound",
            using=(*plain, *lengths, *norms),
        ),
    )


@topic("The gated feed-forward layer's Jacobian bound")
def gated_feed_forward_bound() -> tuple[Step, ...]:
    """W_2 (F(W_g z) * W_1 z) has no Lipschitz constant: its slope grows with both branches, so their largest entries
    stand in the bound. The typical largest of n Gaussians of standard deviation sigma is sigma sqrt(2 log(2 n))."""
    r = sp.Symbol("r", real=True)
    g, h = sp.Function("g"), sp.Function("h")
    whole, by_gate, by_up = sp.symbols("J_ff J_gate J_up", nonnegative=True)
    n, t = sp.symbols("n_entries t", positive=True)
    split = sp.Le(whole, s.norm_2 * s.slope_inner * (by_gate + by_up))
    gate = sp.Le(by_gate, s.lipschitz * s.largest_up * s.norm_g)
    up = sp.Le(by_up, s.largest_active * s.norm_1)
    largest = equation(t, sp.sqrt(2 * sp.log(2 * n)))
    return (
        Step(
            equation(sp.Derivative(g(r) * h(r), r), g(r) * sp.Derivative(h(r), r) + h(r) * sp.Derivative(g(r), r)),
            "product rule along any line r of inputs: g the activated gate, h the other branch",
        ),
        Step(split, "W_2, the norm before it, and the two products' diagonals", "triangle inequality", kind="cited"),
        Step(gate, "the diagonal of F' times the other branch, and W_g", kind="given"),
        Step(up, "the diagonal of the activated gate, and W_1", kind="given"),
        Step(largest, "definition", kind="given"),
        Step(
            equation(2 * n * sp.exp(-(t**2) / 2), 1),
            "n Gaussians, two tails of at most exp(-t^2/2) each: one entry in expectation beyond t",
            using=(largest,),
        ),
        Step(sp.Le(whole, GATED), "both at their largest", using=(split, gate, up)),
    )
