"""Claims MIS-1 to MIS-4 of "Methods of improving LLM training stability".

Rybakov et al., arXiv 2410.16682, from a digest [S]: variants of attention and of the residual branch at rising rates,
until they no longer converge. Here at our sizes: pre-LN, GELU, GPT-2's initialisation, RoPE, no biases, untied, AdamW
clipped at 1, cosine to a tenth, rates a factor of 1.5 apart. `survey`, which showed what failing looks like at this
size (`verify.claims.evidence.converged`), is no evidence for MIS-2 to MIS-4, which have seeds of their own.
"""

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from theory import Architecture
from verify.claims.claim import Claim, Outcome, Verdict
from verify.claims.evidence import CORPUS, Cell, Evidence, by_rate_and_seed, cells, converged, converging_rates
from verify.claims.scale import Scale
from verify.statistics.corrections import holm
from verify.statistics.intervals import difference_of_means, permutation_p
from verify.training.optimizer import Optimizer
from verify.training.run import Run, changed

_MIS = "arXiv 2410.16682 [S]"
D_HEAD = 32
RATE, SEED = "optimizer.learning_rate", "seed"
NORMED = ("qk_norm", "qkv_norm", "qk_norm_cap")
VARIANTS: dict[str, dict[str, str]] = {
    "baseline": {},
    **{name: {"arch.attention": name} for name in ("soft_temp", "soft_clip", "sigma_reparam", "soft_cap", "qk_norm")},
    "layer_scale": {"arch.block": "layer_scale"},
    **{name: {"arch.attention": name} for name in ("qk_fc_norm", "qkv_norm", "qk_norm_cap")},
}


def rates(scale: Scale) -> tuple[float, ...]:
    """A factor of 1.5 apart, up to the scale's highest; one at the low end for the loss."""
    top = max(scale.rates)
    return (top / 100, *(top / 1.5**power for power in reversed(range(7 if len(scale.rates) > 2 else 2))))


def high_rates(scale: Scale) -> tuple[float, ...]:
    """The upper end of `rates` and two steps more, where variants with normed queries and keys fail too."""
    return tuple(max(scale.rates) / 1.5**power for power in reversed(range(-2, 4 if len(scale.rates) > 2 else 1)))


def survey(scale: Scale) -> tuple[Cell, ...]:
    """Every variant at every rate and seed."""
    return _grid(scale, VARIANTS, rates(scale), range(scale.seeds))


def failing_and_converging(scale: Scale) -> tuple[Cell, ...]:
    """The survey's baseline at its highest rate and at the first of the ladder."""
    return _grid(scale, ("baseline",), (rates(scale)[1], rates(scale)[-1]), range(scale.seeds))


def at_high_rates(scale: Scale) -> tuple[Cell, ...]:
    """The variants with normed queries and keys, and at the low rate, whose loss is what they can reach."""
    ladder = (rates(scale)[0], *high_rates(scale))
    return _grid(scale, (*NORMED, "qk_fc_norm"), ladder, range(scale.seeds, 2 * scale.seeds))


def at_a_low_rate(scale: Scale) -> tuple[Cell, ...]:
    """Those whose loss is compared; 6 seeds against 6, of which three Holm-corrected tests reach 0.01."""
    seeds = range(scale.seeds, max(3 * scale.seeds, scale.seeds + 6))
    return _grid(scale, ("baseline", *NORMED, "soft_cap"), rates(scale)[:1], seeds)


def _grid(scale: Scale, variants: Iterable[str], rates: Sequence[float], seeds: Sequence[int]) -> tuple[Cell, ...]:
    layers, width = scale.middle
    arch = Architecture(
        num_layers=layers, d_model=width, num_heads=max(width // D_HEAD, 1), vocab_size=256, seq_len=scale.seq_len,
        initialization="gpt2", embedding="vanilla",
    )  # fmt: skip
    run = Run(arch, Optimizer(warmup_steps=max(scale.steps // 20, 1)), batch_size=scale.batch_size, steps=scale.steps,
              corpus=CORPUS)  # fmt: skip
    return tuple(
        cell
        for name in variants
        for cell in cells(changed(run, VARIANTS[name]), {RATE: rates, SEED: seeds}, variant=name)
    )


def judge_output_norms(evidence: Evidence, scale: Scale) -> Verdict:
    """MIS-1."""
    chosen = failing_and_converging(scale)
    low, high = rates(scale)[1], rates(scale)[-1]
    ends: dict[float, list[np.ndarray]] = {low: [], high: []}
    for cell in chosen:
        norms = evidence.dataset(cell)["output_norm"].mean("layer").to_numpy()
        last = np.flatnonzero(np.all(np.isfinite(norms), axis=1))[-1]
        ends[cell.labels["learning_rate"]].append(norms[max(last - 10, 0) : last + 1].mean(axis=0))
    table = evidence.table(chosen)
    good = by_rate_and_seed(table.assign(good=converged(table, "variant")), "good")
    told_apart = bool(good.loc[low].all() and not good.loc[high].any())
    kinds = list(chosen[0].run.arch.matrices)
    ratio = np.mean(np.log(ends[high]), axis=0) - np.mean(np.log(ends[low]), axis=0)
    growth = dict(zip(kinds, np.exp(ratio), strict=True))
    strong = [growth[kind] for kind in kinds if kind != "feed_forward.up"]
    outcome: Outcome = "inconclusive"
    if told_apart and min(strong) > 2 and growth["feed_forward.up"] == min(growth.values()):
        outcome = "supported"
    elif told_apart and min(strong) < 1:
        outcome = "refuted"
    each = ", ".join(f"{kind.rpartition('.')[2]} {value:.2f}" for kind, value in growth.items())
    return Verdict(
        "MIS-1", outcome, f"least growth of an output's RMS, rate {high:.2g} over {low:.2g}, FC1 apart ({each})",
        min(strong), np.nan, np.nan, f"{scale.seeds} seeds each", scale.name,
    )  # fmt: skip


def judge_ceilings(evidence: Evidence, scale: Scale) -> Verdict:
    """MIS-2."""
    found = converging_rates(evidence.table(at_high_rates(scale)), "variant")
    ratio = min(found["qkv_norm"], found["qk_norm_cap"]) / found["qk_norm"] if found["qk_norm"] else np.nan
    outcome: Outcome = "inconclusive"
    if _within(found["qk_norm"], scale):
        outcome = "supported" if ratio >= 1.4 else "refuted" if ratio < 1.1 else "inconclusive"
    each = ", ".join(f"{name} {rate:.2g}" for name, rate in found.items())
    return Verdict(
        "MIS-2", outcome, f"highest converging rate of QKV norm and capped QK norm over QK norm's ({each})",
        ratio, np.nan, np.nan, f"{scale.seeds} seeds each", scale.name,
    )  # fmt: skip


def _within(ceiling: float, scale: Scale) -> bool:
    """Whether it lies on the ladder of high rates and not at its top, so that another's can be told from it."""
    lowest, *_, top = high_rates(scale)
    return lowest <= ceiling < top


def judge_output_norm_ceiling(evidence: Evidence, scale: Scale) -> Verdict:
    """MIS-3."""
    found = converging_rates(evidence.table(at_high_rates(scale)), "variant")
    ratio = found["qk_fc_norm"] / found["qk_norm"] if found["qk_norm"] else np.nan
    outcome: Outcome = "inconclusive"
    if _within(found["qk_norm"], scale):
        outcome = "supported" if 0.9 < ratio < 1.1 else "refuted" if ratio >= 1.4 else "inconclusive"
    return Verdict(
        "MIS-3", outcome, "highest converging rate with norms after Proj and FC2 over that of QK norm alone",
        ratio, np.nan, np.nan, f"{scale.seeds} seeds each", scale.name,
    )  # fmt: skip


def judge_losses(evidence: Evidence, scale: Scale) -> Verdict:
    """MIS-4."""
    rows = evidence.table(at_a_low_rate(scale))
    losses = {str(name): group["final_loss"].to_numpy() for name, group in rows.groupby("variant")}
    lower = holm(np.array([permutation_p(losses["baseline"], losses[name]) for name in NORMED]))
    higher = holm(np.array([permutation_p(losses[name], losses["baseline"]) for name in NORMED]))
    capped = difference_of_means(losses["baseline"], losses["soft_cap"])
    gains = {name: difference_of_means(losses["baseline"], losses[name]) for name in NORMED}
    weakest = min(gains.values(), key=lambda gain: gain.value)
    outcome: Outcome = "inconclusive"
    if np.all(lower <= 0.1) and capped.low <= 0:
        outcome = "supported"
    elif np.any(higher <= 0.1):
        outcome = "refuted"
    return Verdict(
        "MIS-4", outcome, f"loss in nats, baseline less the least gain of QK, QKV and capped QK norm (soft-capping's "
        f"gain: {capped.value:.3f}, {capped.low:.3f} to {capped.high:.3f})",
        weakest.value, weakest.low, weakest.high, f"{len(losses['baseline'])} seeds each", scale.name,
    )  # fmt: skip


_CEILINGS = (
    "Variants with normed queries and keys at rates a factor of 1.5 apart; a run converges that ends nearer to its "
    "variant's best loss than to that of a model without context, the entropy of a token."
)


def _claim(number: int, statement: str, protocol: str, rule: str, runs: Any, judge: Any) -> Claim:
    return Claim(f"MIS-{number}", statement, _MIS, protocol, rule, (runs,), judge)


CLAIMS = (
    _claim(
        1, "In a diverging run the L2 norms of all linear outputs grow; QKV, Proj and FC2 most (over twice the "
        "converging run's), FC1 least.",
        "The baseline at a rate where it fails to converge, as in MIS-2, and at one where it does: root mean square of "
        "every linear layer's output over the last ten finite steps.",
        "Supported if each but FC1's is more than twice as large at the failing rate, and FC1 grows least; refuted if "
        "one of the others shrinks; inconclusive unless all seeds fail at the one and converge at the other.",
        failing_and_converging, judge_output_norms,
    ),
    _claim(
        2, "QKV norm and capped QK norm stand 1.5 times the rate of QK norm.", _CEILINGS,
        "Supported if both converge at a rate at least one step above QK norm's highest; refuted if one does not; "
        "inconclusive where QK norm converges at every rate or at the lowest alone.", at_high_rates, judge_ceilings,
    ),
    _claim(
        3, "Normalising Proj and FC2 adds nothing to QK norm's ceiling.", _CEILINGS,
        "Supported if the highest converging rate is the same, refuted if it is at least one step higher; inconclusive "
        "if it is lower, and where QK norm converges at every rate or at the lowest alone.", at_high_rates,
        judge_output_norm_ceiling,
    ),
    _claim(
        4, "The three normalising methods lower the loss against the baseline; soft-capping alone does not.",
        "Final loss at a hundredth of the scale's highest rate, 6 seeds or more.",
        "One-sided permutation tests of each method, Holm-corrected at 0.1. "
        "Supported if all three are lower and soft-capping's gain is not resolved; refuted if one is higher.",
        at_a_low_rate, judge_losses,
    ),
)  # fmt: skip
