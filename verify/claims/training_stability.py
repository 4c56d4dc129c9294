"""Claims MIS-1 to MIS-4 of "Methods of improving LLM training stability".

Rybakov et al., arXiv 2410.16682, from a digest [S]: variants of attention and of the residual branch at rising rates,
until they no longer converge. Here at our sizes: pre-LN, GELU, GPT-2's initialisation, RoPE, no biases, untied, AdamW
clipped at 1, cosine to a tenth, rates a factor of 1.5 apart.
"""

from typing import Any

import numpy as np
import pandas as pd

from theory import Architecture
from verify.claims.claim import Claim, Outcome, Verdict
from verify.claims.evidence import Cell, Evidence, by_rate_and_seed, cells
from verify.claims.scale import Scale
from verify.statistics.corrections import holm
from verify.statistics.intervals import difference_of_means, permutation_p
from verify.statistics.sensitivity import highest_stable_rate
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
    return (top / 100, *(top / 1.5**power for power in reversed(range(7 if len(scale.rates) > 2 else 1))))


def runs(scale: Scale) -> tuple[Cell, ...]:
    """Every variant at every rate and seed."""
    layers, width = scale.middle
    arch = Architecture(
        num_layers=layers, d_model=width, num_heads=max(width // D_HEAD, 1), vocab_size=256, seq_len=scale.seq_len,
        initialization="gpt2", embedding="vanilla",
    )  # fmt: skip
    run = Run(arch, Optimizer(warmup_steps=max(scale.steps // 20, 1)), batch_size=scale.batch_size, steps=scale.steps)
    return tuple(
        cell
        for name, fields in VARIANTS.items()
        for cell in cells(changed(run, fields), {RATE: rates(scale), SEED: range(scale.seeds)}, variant=name)
    )


def ceilings(table: pd.DataFrame) -> dict[str, float]:
    """The highest rate at which most seeds of a variant converge: end nearer to its own best loss than to the start."""
    found = {}
    for name, rows in table.groupby("variant", sort=False):
        best, start = rows["final_loss"].min(), rows["initial_loss"].mean()
        good = rows.assign(good=(rows["outcome"] == "finished") & (rows["final_loss"] < (best + start) / 2))
        grid = by_rate_and_seed(good, "good")
        found[str(name)] = highest_stable_rate(grid.index.to_numpy(), grid.to_numpy()).value
    return found


def judge_output_norms(evidence: Evidence, scale: Scale) -> Verdict:
    """MIS-1."""
    chosen = [cell for cell in runs(scale) if cell.labels["variant"] == "baseline"]
    ends: dict[bool, list[np.ndarray]] = {True: [], False: []}
    low, high = rates(scale)[1], rates(scale)[-1]
    for cell in chosen:
        if cell.labels["learning_rate"] in (low, high):
            norms = evidence.dataset(cell)["output_norm"].mean("layer").to_numpy()
            last = np.flatnonzero(np.all(np.isfinite(norms), axis=1))[-1]
            ends[cell.labels["learning_rate"] == high].append(norms[max(last - 10, 0) : last + 1].mean(axis=0))
    kinds = list(chosen[0].run.arch.matrices)
    ratio = np.mean(np.log(ends[True]), axis=0) - np.mean(np.log(ends[False]), axis=0)
    growth = dict(zip(kinds, np.exp(ratio), strict=True))
    strong = [growth[kind] for kind in kinds if kind != "feed_forward.up"]
    outcome: Outcome = "inconclusive"
    if min(strong) > 2 and growth["feed_forward.up"] == min(growth.values()):
        outcome = "supported"
    elif min(strong) < 1:
        outcome = "refuted"
    each = ", ".join(f"{kind.rpartition('.')[2]} {value:.2f}" for kind, value in growth.items())
    return Verdict(
        "MIS-1", outcome, f"least growth of an output's RMS, rate {high:.2g} over {low:.2g}, FC1 apart ({each})",
        min(strong), np.nan, np.nan, f"{scale.seeds} seeds each", scale.name,
    )  # fmt: skip


def judge_ceilings(evidence: Evidence, scale: Scale) -> Verdict:
    """MIS-2."""
    found = ceilings(evidence.table(runs(scale)))
    ratio = min(found["qkv_norm"], found["qk_norm_cap"]) / found["qk_norm"] if found["qk_norm"] else np.nan
    top = max(rates(scale))
    outcome: Outcome = "inconclusive"
    if found["qk_norm"] < top and ratio >= 1.4:
        outcome = "supported"
    elif found["qk_norm"] < top and ratio < 1.1:
        outcome = "refuted"
    each = ", ".join(f"{name} {rate:.2g}" for name, rate in found.items())
    return Verdict(
        "MIS-2", outcome, f"highest converging rate of QKV norm and capped QK norm over QK norm's ({each})",
        ratio, np.nan, np.nan, f"{scale.seeds} seeds each", scale.name,
    )  # fmt: skip


def judge_output_norm_ceiling(evidence: Evidence, scale: Scale) -> Verdict:
    """MIS-3."""
    found = ceilings(evidence.table(runs(scale)))
    ratio = found["qk_fc_norm"] / found["qk_norm"] if found["qk_norm"] else np.nan
    outcome: Outcome = "inconclusive"
    if found["qk_norm"] < max(rates(scale)):
        outcome = "supported" if 0.9 < ratio < 1.1 else "refuted" if ratio >= 1.4 else "inconclusive"
    return Verdict(
        "MIS-3", outcome, "highest converging rate with norms after Proj and FC2 over that of QK norm alone",
        ratio, np.nan, np.nan, f"{scale.seeds} seeds each", scale.name,
    )  # fmt: skip


def judge_losses(evidence: Evidence, scale: Scale) -> Verdict:
    """MIS-4."""
    table = evidence.table(runs(scale))
    rows = table[table["learning_rate"] == rates(scale)[0]]
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
        weakest.value, weakest.low, weakest.high, f"{scale.seeds} seeds each", scale.name,
    )  # fmt: skip


_GRID = (
    "Ten variants at rates a factor of 1.5 apart; a run converges that ends nearer to its variant's best loss than "
    "to the start."
)


def _claim(number: int, statement: str, protocol: str, rule: str, judge: Any) -> Claim:
    return Claim(f"MIS-{number}", statement, _MIS, protocol, rule, (runs,), judge)


CLAIMS = (
    _claim(
        1, "In a diverging run the L2 norms of all linear outputs grow; QKV, Proj and FC2 most (over twice the "
        "converging run's), FC1 least.",
        "The baseline's runs at the highest rate and at the lowest of the ladder: root mean square of every linear "
        "layer's output over the last ten finite steps.",
        "Supported if each but FC1's is more than twice as large at the highest rate, and FC1 grows least; refuted if "
        "one of the others shrinks.", judge_output_norms,
    ),
    _claim(
        2, "QKV norm and capped QK norm stand 1.5 times the rate of QK norm.", _GRID,
        "Supported if both converge at a rate at least one step above QK norm's highest; refuted if one does not; "
        "inconclusive where QK norm converges at every rate.", judge_ceilings,
    ),
    _claim(
        3, "Normalising Proj and FC2 adds nothing to QK norm's ceiling.", _GRID,
        "Supported if the highest converging rate is the same, refuted if it is at least one step higher; inconclusive "
        "where QK norm converges at every rate.", judge_output_norm_ceiling,
    ),
    _claim(
        4, "The three normalising methods lower the loss against the baseline; soft-capping alone does not.",
        "Final loss of the same runs at the lowest rate.",
        "One-sided permutation tests of each method, Holm-corrected at 0.1 (3 seeds against 3 reach 0.05 at best). "
        "Supported if all three are lower and soft-capping's gain is not resolved; refuted if one is higher.",
        judge_losses,
    ),
)  # fmt: skip
