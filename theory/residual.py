"""The chain over N blocks, the growth of the stream, and why the gradient's growth telescopes into it.

The bound of arXiv 2312.16903 multiplies sub-layer bounds and is vacuous end to end; the closed form of the last
derivation predicts: where forward and backward gains agree, ‖g_0‖/‖g_N‖ = sigma_N/sigma_0 (THEORY, section 3).
"""

import sympy as sp

from theory import notation as s
from theory.derivation import Step, at, equation, topic
from theory.feed_forward import SNM

AMPLIFICATION = sp.sqrt(1 + s.N * s.delta / s.sigma_0**2)
SMALLEST_SHORTCUT = sp.sqrt(s.N * s.delta / (s.amplification**2 - 1))


@topic("The chain of sub-layer bounds over N blocks")
def chain() -> tuple[Step, ...]:
    """‖dL/dx_1‖ <= ‖dL/dy_N‖ times the product of all sub-layers' norms, each at most 1 + r; r may differ by block."""
    first, last, a, b = sp.symbols("g_0 g_N J_1 J_2", nonnegative=True)
    block = (1 + s.excess_attn) * (1 + s.excess_ffn)
    one = sp.Le(first, a * b * last)
    attention, feed_forward = sp.Le(a, 1 + s.excess_attn), sp.Le(b, 1 + s.excess_ffn)
    gain = sp.Symbol("G", positive=True)
    induction = equation(gain, block**s.N)
    r = s.excess_ffn
    return (
        Step(one, "one block: ‖A B g‖ <= ‖A‖ ‖B‖ ‖g‖", SNM + ", the chain [secondary]", kind="cited"),
        Step(attention, "the attention bound", "attention_bound", kind="given"),
        Step(feed_forward, "the feed-forward bound", "feed_forward_bound", kind="given"),
        Step(
            sp.Le(first, block * last),
            "one block's bound",
            using=(one, attention, feed_forward),
        ),
        Step(induction, "hypothesis of the induction: N equal blocks have this bound", kind="given"),
        Step(equation(at(block**s.N, {s.N: 1}), block), "it holds for one block"),
        Step(
            equation(gain * block, block ** (s.N + 1)),
            "and one more block multiplies once more, so it holds for every N",
            using=(induction,),
        ),
        Step(sp.Le(sp.log(1 + r), r), "each sub-layer adds at most its excess to the logarithm of the product"),
    )


@topic("The chain of any additions, no two alike")
def unequal_chain() -> tuple[Step, ...]:
    """S additions of any arrangement, the k-th with the bound c_k (1 + r_k), c_k its shortcut's: the factor a, over
    what a norm on the sum divides by. The topic `chain` is the case of equal blocks whose shortcuts count 1."""
    first, last, after, addition = sp.symbols("g_0 g_S g_next J_next", nonnegative=True)
    gain = sp.Symbol("G_S", nonnegative=True)
    count, k = (sp.Symbol(name, integer=True, positive=True) for name in ("S", "k"))
    shortcut, excess = (sp.Function(name, nonnegative=True) for name in ("c", "r"))
    bound = shortcut(k) * (1 + excess(k))
    product = sp.Product(bound, (k, 1, count))
    so_far = sp.Le(first, gain * last)
    one = sp.Le(last, addition * after)
    following = bound.subs(k, count + 1)
    hypothesis = sp.Le(addition, following)
    r = s.excess_ffn
    return (
        Step(so_far, "hypothesis of the induction: the bound over S additions", kind="given"),
        Step(one, "one more: ‖A g‖ <= ‖A‖ ‖g‖", SNM + ", the chain [secondary]", kind="cited"),
        Step(hypothesis, "its own bound", "residual_addition_bound", kind="given"),
        Step(sp.Le(first, gain * following * after), "over S + 1 additions", using=(so_far, one, hypothesis)),
        Step(
            equation(product * following, sp.Product(bound, (k, 1, count + 1))),
            "so if G_S is the product of S bounds, the next is that of S + 1",
            instances=lambda statement: ((statement.subs(count, n), f"S = {n}") for n in (1, 2, 3)),
        ),
        Step(
            equation(at(product, {count: 1}), at(bound, {k: 1})), "and one addition has its own: it holds for every S"
        ),
        Step(
            equation(product, sp.Product(shortcut(k), (k, 1, count)) * sp.Product(1 + excess(k), (k, 1, count))),
            "shortcuts and excesses apart",
            instances=lambda statement: ((statement.subs(count, n), f"S = {n}") for n in (1, 2, 3)),
        ),
        Step(equation(sp.Product(1 + r, (k, 1, count)), (1 + r) ** count), "equal additions: a power, as in the chain"),
        Step(
            sp.Le(sp.log(1 + r), r),
            "of each addition, so the product of the 1 + r_k is at most the exponential of the sum of the r_k",
            "chain",
            kind="lemma",
        ),
    )


@topic("Growth of the stream, and the telescoping product")
def telescoping() -> tuple[Step, ...]:
    """Each block adds delta to the variance. Where its backward gain per unit equals its forward gain (identity and
    ReLU sub-layers under a norm exactly, others nearly) the gradient's second moment grows by 1 + delta/v, v the
    variance at its input, and the product telescopes."""
    variance, gain = sp.Symbol("v_N", positive=True), sp.Symbol("G_N", positive=True)
    grown = equation(variance, s.sigma_0**2 + s.N * s.delta)
    squared = AMPLIFICATION**2
    product = equation(gain, squared)
    return (
        Step(grown, "the stream's variance after N blocks: it grows additively, it does not double", kind="given"),
        Step(
            equation(grown.rhs.subs(s.N, s.N + 1), variance + s.delta),
            "one more block adds delta",
            using=(grown,),
        ),
        Step(equation(at(squared, {s.N: 0}), 1), "no block, no growth of the gradient"),
        Step(product, "hypothesis of the induction: squared gradient growth over N blocks", kind="given"),
        Step(
            equation(gain * (1 + s.delta / variance), squared.subs(s.N, s.N + 1)),
            "one more block multiplies by 1 + delta/v_N, so it holds for every N",
            "THEORY, section 3",
            using=(product, grown),
        ),
        Step(equation(sp.sqrt(variance) / s.sigma_0, AMPLIFICATION), "it is the stream's own growth", using=(grown,)),
        Step(
            equation(at(AMPLIFICATION, {s.sigma_0: SMALLEST_SHORTCUT}), sp.Abs(s.amplification)),
            "the shortcut at which the amplification is exactly a; a > 1",
        ),
        Step(
            sp.Le(sp.Derivative(1 + s.N * s.delta / s.sigma_0**2, s.sigma_0), 0),
            "and a larger shortcut amplifies less, so this one is the smallest that keeps below a",
        ),
    )
