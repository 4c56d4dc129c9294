"""The two requirements, small sub-layers and a large shortcut, in every residual arrangement.

arXiv 2312.16903, section 4 [secondary], has them for pre-LN: small output matrices or a large embedding make each
sub-layer's bound tend to its shortcut's. Elsewhere a norm may hide either; here limits of `theory.block_excess` say
which of the two still does it, and the numbers say how far an `Architecture` is from it.
"""

import math
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
import sympy as sp

from theory import notation as s
from theory.architecture import Architecture
from theory.block import BLOCKS, block
from theory.block_excess import (
    EXCESS,
    OUTPUT,
    PIECES,
    STREAM,
    at_gaussian_norms,
    evaluate,
    excess,
    part_of,
    size_after,
    sizes,
    stream_after,
)
from theory.conditions import LARGEST_EXCESS, SMALLEST_STD
from theory.derivation import Step, equation, topic

LEVERS = ("outputs", "inner", "first embedding", "embedding")
_INNER = {"attention": s.sigma_V, "feed_forward": s.sigma_1}
_KINDS = {
    "attention": ("attention.output", "attention.value"),
    "feed_forward": ("feed_forward.down", "feed_forward.up"),
}
_EVEN = {
    s.shortcut_factor: sp.S.One, s.branch_factor: sp.S.One, s.input_factor: sp.S.One, s.temperature: sp.S.One,
    s.steepness: sp.S.One, s.row_length: 1 / sp.sqrt(s.T), s.num_kv_heads: s.num_heads, s.d_head: s.d / s.num_heads,
}  # fmt: skip
_SAYS = {"-> 0": "tends to 0", "grows": "grows without limit", "nothing": "stays: the scale is not in it"}
_PULL = {
    "outputs": "outputs towards 0",
    "inner": "the first matrix towards 0",
    "embedding": "a larger embedding, later additions",
}
_PLACES = ("pre", "inner", "output", "post")
_WORDS = {"values": "attention's values", "scores": "attention's scores", "feed_forward": "the feed-forward layer"}


@dataclass(frozen=True)
class Requirement:
    """One of the two requirements of arXiv 2312.16903: whether it holds, its number and the limit to that.

    met_by: what brings it nearer in this arrangement and what does not, in words.
    """

    holds: bool
    number: float
    limit: float
    meaning: str
    met_by: str = ""

    def explained(self, name: str, sign: str) -> tuple[str, str]:
        """Two lines under that name, the verdict and what meets it; sign: of the number to the limit where it holds."""
        holds = "holds" if self.holds else "FAILS"
        verdict = f"{name:17} {holds}: {self.meaning} is {self.number:.3g} ({sign} {self.limit:g})"
        return verdict, f"{'':17} met by {self.met_by}"


def small_sublayers(arch: Architecture) -> Requirement:
    """Whether, at a shortcut of standard deviation 1, no sub-layer's branch adds more to the bound than its shortcut.

    number: the largest excess of a feed-forward layer, and of attention's values under even attention. Source: arXiv
    2312.16903, section 4 [secondary], for pre-LN. Raises ValueError for an activation without a Lipschitz constant.
    """
    largest = max(float(np.max(_excess(arch, part, 1.0))) for part in _KINDS)
    meaning = "largest excess of a sub-layer's bound over its shortcut's, at a shortcut of 1"
    return Requirement(largest <= LARGEST_EXCESS, largest, LARGEST_EXCESS, meaning, _output_advice(arch))


def large_shortcut(arch: Architecture, std: float | None = None) -> Requirement:
    """Whether no sub-layer's excess is more than twice what it is at a shortcut of standard deviation 1.

    number: the smallest ratio of the excess at a shortcut of 1 to that at the shortcut as it is, epsilon left out. In
    pre-LN that is the standard deviation of the embedding, as in the paper; it is 1 where nothing divides by the
    stream, or where a norm on the sum makes it 1; and inf where no branch adds anything. std: of the stream that
    enters block 1; None: from embedding and positions. Source: arXiv 2312.16903, section 4 [secondary], for pre-LN.
    Raises ValueError as `small_sublayers`.
    """
    if std is None:
        from theory.closed_form import initial

        std = math.sqrt(initial(arch)[0])
    met = dict[str, list[float]]()
    for layer in range(arch.num_layers):
        for parts in block(arch.block).additions:
            for part in parts:
                met.setdefault(part, []).append(std)
            std = float(evaluate(stream_after(arch, parts), sizes(arch, layer, std, even=True)))
    exact = replace(arch, norm_epsilon=0.0)
    smallest = math.inf
    for part, stds in met.items():
        at_one, now = _excess(exact, part, 1.0), _excess(exact, part, np.array(stds))
        ratios = np.divide(at_one, now, out=np.full(arch.num_layers, math.inf), where=at_one > 0)
        smallest = min(smallest, float(ratios.min()))
    meaning = "size of the shortcut as the sub-layers' excesses have it"
    return Requirement(smallest >= SMALLEST_STD, smallest, SMALLEST_STD, meaning, _shortcut_advice(arch))


def _excess(arch: Architecture, part: str, std: float | np.ndarray) -> np.ndarray:
    """Of that sub-layer in every layer, attention by its values under even attention."""
    return evaluate(excess(arch, "values" if part == "attention" else part), sizes(arch, slice(None), std, even=True))


def effect(arch: Architecture, piece: str, lever: str) -> str:
    """What a lever does to that piece's excess, Gaussian norms, epsilon = 0: "-> 0", "nothing", "grows"; "0" if it is.

    lever: "outputs", the standard deviation of the matrices that write into the stream, towards 0; "inner", that of the
    values' or the first feed-forward matrix; "embedding", towards infinity, beyond the first addition, and "first
    embedding" there. In the feed-forward layer the activation counts as homogeneous. Raises ValueError for an unknown
    lever or piece.
    """
    if lever not in LEVERS:
        raise ValueError(f"lever: unknown value {lever!r}; choose one of {', '.join(LEVERS)}")
    expression, symbol, towards = _pulled(arch, piece, lever)
    if not expression.has(symbol):
        return "nothing" if expression else "0"
    return {sp.S.Zero: "-> 0", sp.oo: "grows"}[_limit(expression, symbol, towards)]


def _pulled(arch: Architecture, piece: str, lever: str) -> tuple[sp.Expr, sp.Symbol, sp.Expr]:
    """The excess at factors of 1 (of 0, where the block's branches start there), the lever, and where it goes."""
    part = part_of(piece)
    expression = sp.S.Zero if block(arch.block).branch.is_zero else _at_even_factors(arch, piece)
    if lever == "embedding" and arch.normed("post", part):
        expression = expression.xreplace({STREAM[part]: sp.S.One})
    symbol = {"outputs": OUTPUT, "inner": _INNER}.get(lever, STREAM)[part]
    return expression, symbol, sp.oo if "embedding" in lever else sp.S.Zero


def _at_even_factors(arch: Architecture, piece: str) -> sp.Expr:
    return at_gaussian_norms(arch, piece).xreplace(_EVEN)


@lru_cache(maxsize=256)
def _limit(expression: sp.Expr, symbol: sp.Symbol, towards: sp.Expr) -> sp.Expr:
    return sp.limit(expression, symbol, towards)


def effects(arch: Architecture, lever: str) -> str:
    """`effect` on all pieces of a block in words; the first addition's pieces alone for "first embedding"."""
    first = block(arch.block).additions[0]
    pieces = [piece for piece in PIECES if lever != "first embedding" or part_of(piece) in first]
    found = {piece: effect(arch, piece, lever) for piece in pieces}
    if len(set(found.values())) == 1:
        return found[pieces[0]]
    return "; ".join(
        f"{', '.join(p.replace('_', '-') for p in pieces if found[p] == what)}: {what}"
        for what in dict.fromkeys(found.values())
    )


def _output_advice(arch: Architecture) -> str:
    if block(arch.block).branch.is_zero:
        return "branches that start at 0"
    kinds = dict[str, list[str]]()
    for part, (output, inner) in _KINDS.items():
        piece = "values" if part == "attention" else part
        for kind, lever in ((output, "outputs"), (inner, "inner")):
            kinds.setdefault(effect(arch, piece, lever), []).append(kind)
    smaller = [f"smaller {', '.join(kinds['-> 0'])}"] if "-> 0" in kinds else []
    hidden = f"; not {', '.join(kinds['nothing'])}: divided by a norm" if "nothing" in kinds else ""
    return " or ".join([*smaller, "a smaller branch factor"]) + hidden


def _shortcut_advice(arch: Architecture) -> str:
    if block(arch.block).branch.is_zero:
        return "branches that start at 0"
    found = {piece: effect(arch, piece, "embedding") for piece in PIECES}
    named = {what: " and ".join(_WORDS[p] for p in PIECES if found[p] == what) for what in set(found.values())}
    if "-> 0" in named:
        text = "a larger embedding" + ("" if len(named) == 1 else f" (for {named['-> 0']})")
    elif arch.normed("post", "feed_forward"):
        text = "a larger shortcut factor; beyond the first addition no embedding, a norm on the sum makes the stream 1"
    else:
        text = "a larger shortcut factor; no embedding, no norm divides by the stream"
    return text + (f"; with the embedding {named['grows']} grow" if "grows" in named else "")


def _arrangements() -> dict[str, Architecture]:
    """Of each placing of norms one block, under the names of all registered ones that have it and a branch from the
    start; ReLU, so that F(0) = 0."""
    found = dict[tuple[bool, ...], list[str]]()
    for scheme in BLOCKS.values():
        if not scheme.branch.is_zero:
            arch = Architecture(block=scheme)
            found.setdefault(tuple(arch.normed(where, "attention") for where in _PLACES), []).append(scheme.name)
    return {", ".join(names): Architecture(block=names[0], activation="relu") for names in found.values()}


@topic("The two requirements in every residual arrangement")
def requirements_of_blocks() -> tuple[Step, ...]:
    """Which of small outputs, a small first matrix and a large embedding makes an addition's bound tend to its
    shortcut's, by where the block has its norms. Gaussian norms, epsilon = 0, factors of 1, even attention over T
    tokens, d = h d_head; pi_P and c_P count as constants, as they are at most sqrt T and T. b/a multiplies all."""
    post = Architecture(block="post_ln", activation="relu")
    total = size_after(post, ("attention",))
    summed = equation(s.slope_post, 1 / total)
    depth = sp.Symbol("N", positive=True)
    starts = ", ".join(scheme.name for scheme in BLOCKS.values() if scheme.branch.is_zero)
    steps = [
        Step(equation(sp.Limit(EXCESS, s.shortcut_factor, sp.oo), 0), "a larger shortcut factor: in every block"),
        Step(equation(sp.Limit(EXCESS, s.branch_factor, 0), 0), f"a smaller branch factor: likewise ({starts})"),
    ]  # fmt: skip
    for scheme in BLOCKS.values():
        ratio = scheme.branch / scheme.shortcut
        if ratio.has(s.N):
            told = f"{scheme.name}: b/a makes the sub-layers of deep stacks small"
            steps.append(Step(equation(sp.Limit(ratio.subs(s.N, depth), depth, sp.oo), 0), told, scheme.source))
    for names, arch in _arrangements().items():
        for lever, pull in _PULL.items():
            for piece in ("attention", "feed_forward"):
                apart = piece == "attention" and len({effect(arch, p, lever) for p in PIECES[:2]}) > 1
                for each in PIECES[:2] if apart else (piece,):
                    steps.append(_limit_step(arch, each, lever, f"{names}: {pull}"))
    read = _at_even_factors(post, "scores")
    later = equation(read.xreplace({s.sigma_x: s.slope_post * total}), read.xreplace({s.sigma_x: sp.S.One}))
    cooled = Architecture(block="output_norm", attention="qk_norm")
    return (
        *steps,
        Step(summed, "a norm on the sum", "block_excess", kind="lemma"),
        Step(later, "so the next addition's stream is 1, and no embedding is in its scores either", using=(summed,)),
        _limit_step(post, "values", "first embedding", "post-norm, the first addition: a larger embedding"),
        _limit_step(post, "scores", "first embedding", "post-norm, the first addition: a larger embedding"),
        _limit_step(cooled, "scores", "embedding", "output_norm with norms on queries and keys: a larger embedding"),
    )


def _limit_step(arch: Architecture, piece: str, lever: str, where: str) -> Step:
    expression, symbol, towards = _pulled(arch, piece, lever)
    found = effect(arch, piece, lever)
    value = {"-> 0": sp.S.Zero, "grows": sp.oo, "nothing": expression}[found]
    what = "attention" if piece == "attention" else _WORDS[piece]
    return Step(equation(sp.Limit(expression, symbol, towards), value), f"{where}: excess of {what} {_SAYS[found]}")
