"""What to change so that the gradient is not amplified by more than a budget, and which small model behaves the same.

Where the gains of a block forward and backward agree, the smallest shortcut within a budget has a closed form (topic
`telescoping`). It gives the first guess for an embedding multiplier and for a gain on the residual outputs; `predict`
then says what they really do, and the guess is corrected until it fits.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from typing import TYPE_CHECKING

import sympy as sp

from theory import notation as s
from theory.architecture import Architecture
from theory.block import block
from theory.block_requirements import Requirement, large_shortcut, small_sublayers
from theory.embedding import Embedding, embedding
from theory.initialization import MATRIX_KINDS, OUTPUTS, Initialization, initialization
from theory.propagation import Prediction, ensemble_size, predict
from theory.residual import SMALLEST_SHORTCUT

if TYPE_CHECKING:
    from theory.growth import Growth

_CLOSE = 0.005  # relative, of what is solved for
_SEARCHED = 64  # tokens


@dataclass(frozen=True)
class Recommendation:
    """What `recommend` found. None stands for: no value of that would do.

    amplification: predicted for the architecture as it is, largest gradient norm of any place over the last one's.
    small_sublayers: the same of the stack behind an embedding of standard deviation 1, against the budget.
    large_shortcut: as `theory.large_shortcut` has it, of the stream that `predict` has enter block 1.
    embedding_multiplier: smallest factor on the table's row that meets the budget, and `with_multiplier` the
    architecture that has it. output_gain: largest factor, up to 1, on the standard deviations of the matrices that
    write into the stream, and `with_gain`. shared_multiplier: smallest factor on the table's row where those standard
    deviations are also divided by sqrt(2 N), and `with_both`; None too where the budget is met or a rule has N in it
    already. largest_depth: most blocks within the budget, up to four times those there are; `deeper` says whether that
    is only where the search ended. growth: class of the amplification in the number of blocks, as it is.
    """

    arch: Architecture
    max_amplification: float
    amplification: float
    small_sublayers: Requirement
    large_shortcut: Requirement
    embedding_multiplier: float | None
    with_multiplier: Architecture | None
    output_gain: float | None
    with_gain: Architecture | None
    shared_multiplier: float | None
    with_both: Architecture | None
    largest_depth: int | None
    deeper: bool
    growth: "Growth"

    @property
    def explanation(self) -> str:
        """A page in plain words."""
        return "\n".join(_explain(self))


def recommend(
    arch: Architecture,
    max_amplification: float = 2.0,
    networks: int | None = None,
    followed: Callable[[Architecture, Prediction], None] = lambda arch, prediction: None,
) -> Recommendation:
    """Judge `arch` and prescribe. networks: as for `predict`, which is called some 20 times; followed: after each.

    None: 16, which leave 1 to 2 %, or as few as `predict` needs of a wide model. Of longer sequences than 64 tokens the
    architecture as it is is predicted; what is changed, at 64 tokens, with amplification^2 - 1 in the same proportion.
    Raises ValueError for a budget that is not above 1.
    """
    from theory.growth import growth  # needs SciPy's integrals, as slow to import as all of SymPy

    if not (math.isfinite(max_amplification) and max_amplification > 1):
        raise ValueError(f"max_amplification: must be a number above 1, got {max_amplification!r}")

    if networks is None:
        networks = min(16, ensemble_size(arch, None))

    @cache
    def predicted(changed: Architecture) -> Prediction:
        found = predict(changed, networks=networks)
        followed(changed, found)
        return found

    now = predicted(arch)
    worst, length = _worst(now), min(arch.seq_len, _SEARCHED)

    def at_length(changed: Architecture) -> float:
        return _worst(predicted(replace(changed, seq_len=length)))

    def longer(changed: Architecture, full: float) -> float:
        return (full**2 - 1) / max(at_length(changed) ** 2 - 1, 1e-9) if length < arch.seq_len else 1.0

    as_it_is = longer(arch, worst)

    def amplification(changed: Architecture) -> float:
        return math.sqrt(1 + as_it_is * (at_length(changed) ** 2 - 1))

    def smallest(change: Callable[[float], Architecture], guess: float) -> float | None:
        """Where the changed architecture meets the budget; a second time with the proportion found there."""
        found = _smallest(lambda m: amplification(change(m)), guess, max_amplification)
        if found is None or length == arch.seq_len:
            return found
        there = longer(change(found), _worst(predicted(change(found))))
        return _smallest(lambda m: math.sqrt(1 + there * (at_length(change(m)) ** 2 - 1)), found, max_amplification)

    added = max(now.shortcut_std[-1] ** 2 - now.shortcut_std[0] ** 2, 0.0)
    at_one = amplification(_multiplied(arch, 1 / _table_std(arch)))
    guess = _shortcut(added, max_amplification) / _table_std(arch)
    multiplier = smallest(lambda m: _multiplied(arch, m), guess)
    gain: float | None = 1.0
    shared, scaled = None, _over_depth(arch)
    if worst > max_amplification:
        found = smallest(
            lambda m: _with_gain(arch, 1 / m), _shortcut(added, max_amplification) / _shortcut(added, worst)
        )
        gain = None if found is None else 1 / found
        if scaled != arch:
            shared = smallest(lambda m: _multiplied(scaled, m), (multiplier or guess) / math.sqrt(2 * arch.num_layers))
    depth, deeper = _depth(arch, amplification, max_amplification)
    return Recommendation(
        arch,
        max_amplification,
        worst,
        replace(
            small_sublayers(arch), holds=at_one <= max_amplification, number=at_one, limit=max_amplification,
            meaning="amplification behind an embedding of std 1",
        ),
        large_shortcut(arch, float(now.shortcut_std[0])),
        multiplier,
        None if multiplier is None else _multiplied(arch, multiplier),
        gain,
        None if gain is None else _with_gain(arch, gain),
        shared,
        None if shared is None else _multiplied(scaled, shared),
        depth,
        deeper,
        growth(arch),
    )  # fmt: skip


def proxy(arch: Architecture, d_model: int) -> Architecture:
    """The architecture of that width with the propagation of `arch`: equal gains of every matrix, equal stream.

    Each matrix keeps fan_in times its variance, the heads their width where it divides d_model, and the embedding's
    output its standard deviation, by its multiplier: a smaller table instead would make Adam's relative step on it
    large. Source: THEORY of the narrow stand-in, after arXiv 2312.16903. Raises ValueError as `Architecture` does.
    """
    heads = max(1, d_model // arch.d_head)
    group = arch.num_heads // arch.kv_heads
    small = replace(
        arch,
        d_model=d_model,
        num_heads=heads,
        num_kv_heads=max(1, heads // group) if heads % group == 0 else 1,
        d_ff=max(1, round(arch.ff_width * d_model / arch.d_model)),
    )
    rules = {}
    for kind in MATRIX_KINDS:
        (wide_in, wide_out), (narrow_in, _) = arch.shape(kind), small.shape(kind)
        inputs = {"embedding": (arch.d_model, d_model), "position": (1, 1)}.get(kind, (wide_in, narrow_in))
        sizes = {s.d: arch.d_model, s.V: arch.vocab_size, s.fan_in: wide_in, s.fan_out: wide_out}
        rules[kind] = arch.rule(kind).subs(sizes) * sp.sqrt(sp.Rational(*inputs))
    name, truncation = initialization(arch.initialization).name, dict(initialization(arch.initialization).truncation)
    scheme = Initialization(f"{name}, as at width {arch.d_model}", rules["head"], rules, "proxy", truncation)
    method = embedding(arch.embedding)
    factor = arch.evaluate(method.multiplier) * math.sqrt(d_model / arch.d_model)
    changed = replace(
        method, name=f"{method.name}, as at width {arch.d_model}", multiplier=sp.Float(factor), table_std=None
    )
    scale = arch.logit_scale * (math.sqrt(arch.d_model / d_model) if arch.tied else 1.0)
    return replace(small, initialization=scheme, embedding=changed, logit_scale=scale)


def _worst(prediction: Prediction) -> float:
    """Of any place, not of the first alone: behind a norm after the sum a large embedding hides at its own place."""
    return float(prediction.gradient_norm.max() / prediction.gradient_norm[-1])


def _table_std(arch: Architecture) -> float:
    return float(arch.std("embedding")[0])


def _multiplied(arch: Architecture, multiplier: float) -> Architecture:
    """`arch` with that factor on the table's row, in place of its own multiplier or embedding norm."""
    method = embedding(arch.embedding)
    return replace(
        arch,
        embedding=Embedding(
            f"times {multiplier:.4g}",
            multiplier=sp.Float(multiplier),
            gradient_share=method.gradient_share,
            table_std=method.table_std,
            source="recommended",
        ),
    )


def _with_gain(arch: Architecture, gain: float) -> Architecture:
    """`arch` with that factor on the standard deviation of the matrices that write into the stream."""
    return _with_outputs(arch, sp.Float(gain), f"times {gain:.4g}")


def _over_depth(arch: Architecture) -> Architecture:
    """`arch` with those divided by sqrt(2 N), as GPT-2 and Megatron have them; itself where it has such a factor."""
    on_depth = any(arch.rule(kind).has(s.N, s.layer) for kind in OUTPUTS)
    return arch if on_depth else _with_outputs(arch, 1 / sp.sqrt(2 * s.N), "over sqrt(2 N)")


def _with_outputs(arch: Architecture, factor: sp.Expr, how: str) -> Architecture:
    scheme = initialization(arch.initialization)
    rules = dict(scheme.std) | {kind: scheme.rule(kind) * factor for kind in OUTPUTS}
    name, truncation = f"{scheme.name}, outputs {how}", dict(scheme.truncation)
    return replace(arch, initialization=Initialization(name, scheme.default, rules, "recommended", truncation))


def _shortcut(added: float, amplification: float) -> float:
    """The closed form: standard deviation of the stream at which a stack that adds that variance amplifies so much."""
    values = {s.N: 1, s.delta: max(added, 1e-12), s.amplification: amplification}
    return float(SMALLEST_SHORTCUT.subs(values))


def _smallest(amplification: Callable[[float], float], guess: float, budget: float) -> float | None:
    """Where an amplification that falls comes down to the budget, near the guess; None where it never does.

    amplification^2 - 1 falls about as the square of the argument: a secant in logarithms, inside a bracket, that aims a
    little beyond the root, so that both ends of the bracket come near it.
    """
    low, high, at, slope = -math.inf, math.inf, 0.0, -2.0  # logarithms over the guess
    before: tuple[float, float] | None = None
    for _ in range(12):
        excess = max(amplification(guess * math.exp(at)) ** 2 - 1, 1e-9)
        height = math.log(excess / (budget**2 - 1))
        low, high = (at, high) if height > 0 else (low, at)
        if high - low < _CLOSE:
            break
        if before is not None:
            slope = min(max((height - before[1]) / (at - before[0]), -8.0), -0.5)
        before = at, height
        target = at + min(max(-height / slope, -math.log(10)), math.log(1e3)) + math.copysign(0.4 * _CLOSE, height)
        if not low < target < high:
            target = (low + high) / 2 if high - low < math.inf else at + math.copysign(math.log(4), height)
        if abs(target) > math.log(1e6):
            break
        at = target
    return guess * math.exp(high) if high < math.inf else None


def _depth(
    arch: Architecture, amplification: Callable[[Architecture], float], budget: float
) -> tuple[int | None, bool]:
    """The most blocks within the budget, by bisection, after doublings from one where there are too many."""
    most = 4 * arch.num_layers

    def fits(layers: int) -> bool:
        return amplification(replace(arch, num_layers=layers)) <= budget

    if fits(arch.num_layers):
        if fits(most):
            return most, True
        low, high = arch.num_layers, most
    else:
        if not fits(1):
            return None, False
        low, high = 1, arch.num_layers
        while 2 * low < high and fits(2 * low):
            low = 2 * low
        high = min(high, 2 * low)
    while high - low > max(1, high // 32):
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low, False


def _explain(r: Recommendation) -> list[str]:
    verdict = "within" if r.amplification <= r.max_amplification else "ABOVE"
    arch = r.arch
    lines = [
        f"{arch.num_layers} {block(arch.block).name} blocks, d_model {arch.d_model}, {arch.seq_len} tokens, "
        f"initialisation {initialization(arch.initialization).name}, "
        f"embedding {getattr(arch.embedding, 'name', arch.embedding)}.",
        "",
        f"Largest gradient norm of any place over the last one's: {r.amplification:.3g}, {verdict} the budget of "
        f"{r.max_amplification:g}.",
        "",
    ]
    for requirement, name, sign in (
        (r.small_sublayers, "small sub-layers", "<="),
        (r.large_shortcut, "large shortcut", ">="),
    ):
        verdict, met_by = requirement.explained(name, sign)
        lines += [verdict] if requirement.holds else [verdict, met_by]
    lines.append("")
    if r.with_multiplier is None:
        lines.append("No embedding multiplier meets the budget: the sub-layers are too large, or a norm hides it.")
    else:
        lines.append(_embedding_line("Embedding multiplier", r.embedding_multiplier, arch))
    if r.with_gain is None:
        lines.append("No gain on the residual outputs meets the budget.")
    elif r.output_gain != 1:
        lines.append(f"Or: {_outputs_line(r.with_gain)} at most (times {r.output_gain:.3g}).")
    if r.with_both is not None:
        lines.append(f"Or both: {_outputs_line(r.with_both)} (over sqrt(2 N), as in GPT-2)")
        lines.append(_embedding_line("    and embedding multiplier", r.shared_multiplier, arch))
    if r.largest_depth is None:
        lines.append("Depth: even one block is above the budget.")
    else:
        more = " or more" if r.deeper else ""
        lines.append(f"Depth: the scheme as it is stands {r.largest_depth} blocks{more} (it has {arch.num_layers}).")
    lines.append(f"With more blocks the amplification goes like: {r.growth.formula} (derive {r.growth.topic}).")
    lines += ["", "All of this is of the initialisation; what training makes of it, `python -m verify train` measures."]
    return lines


def _embedding_line(what: str, multiplier: float | None, arch: Architecture) -> str:
    assert multiplier is not None
    return f"{what}: at least {multiplier:.4g} (standard deviation {multiplier * _table_std(arch):.3g} after it)."


def _outputs_line(changed: Architecture) -> str:
    """Of the first block, if they differ."""
    return "initial std of " + " and of ".join(f"{kind} {changed.std(kind)[0]:.3g}" for kind in OUTPUTS)
