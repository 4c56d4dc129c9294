"""Judges of SNM-6 and SNM-7, which are about training: tables of runs by method, rate and seed."""

import numpy as np
import pandas as pd

from verify.claims.claim import Outcome, Verdict
from verify.claims.initialization import FIXES, UNSTABLE
from verify.statistics.corrections import holm
from verify.statistics.intervals import difference_of_means, permutation_p

LEVEL = 0.05 + 1e-9  # 3 seeds against 3 reach 1 / 20 at best


def judge_spikes(runs: pd.DataFrame, scale: str) -> Verdict:
    """SNM-6 from columns method, rate, seed, loss_spikes."""
    rates = sorted(runs["rate"].unique())
    worse, better, differences = [], [], []
    for rate in rates:
        here = runs[runs["rate"] == rate]
        unstable = here.loc[here["method"].isin(UNSTABLE), "loss_spikes"].to_numpy(float)
        fixed = here.loc[here["method"].isin(FIXES), "loss_spikes"].to_numpy(float)
        worse.append(permutation_p(unstable, fixed))
        better.append(permutation_p(fixed, unstable))
        differences.append((unstable, fixed))
    worse_p, better_p = holm(np.array(worse)), holm(np.array(better))
    clean = np.array([fixed.sum() == 0 for _, fixed in differences])
    at = int(np.argmin(worse_p))
    unstable, fixed = differences[at]
    outcome: Outcome = "inconclusive"
    if np.any((worse_p <= LEVEL) & clean):
        outcome = "supported"
    elif np.any(better_p <= LEVEL) and not np.any(worse_p <= LEVEL):
        outcome = "refuted"
    difference = difference_of_means(unstable, fixed)
    return Verdict(
        "SNM-6", outcome,
        f"loss spikes a run, Vanilla and Detach less the fixes, at rate {rates[at]:g} (p = {worse_p[at]:.2g}, Holm)",
        difference.value, difference.low, difference.high, f"{len(unstable)} against {len(fixed)} runs a rate", scale,
    )  # fmt: skip


def judge_rates(runs: pd.DataFrame, scale: str) -> Verdict:
    """SNM-7 from columns method, rate, seed, held_out_loss; a diverged run's loss is not finite."""
    best = {}
    for method in ("vanilla", "scaled"):
        means = runs[runs["method"] == method].groupby("rate")["held_out_loss"].mean()
        finite = means[np.isfinite(means)]
        rate = float(finite.index[np.argmin(finite)])
        chosen = runs[(runs["method"] == method) & (runs["rate"] == rate)]
        best[method] = (rate, chosen.sort_values("seed")["held_out_loss"].to_numpy())
    (rate, vanilla), (fixed_rate, scaled) = best["vanilla"], best["scaled"]
    lower, higher = permutation_p(vanilla, scaled), permutation_p(scaled, vanilla)
    outcome: Outcome = "inconclusive"
    if lower <= LEVEL and fixed_rate >= rate:
        outcome = "supported"
    elif higher <= LEVEL:
        outcome = "refuted"
    difference = difference_of_means(vanilla, scaled)
    return Verdict(
        "SNM-7", outcome,
        f"held-out loss in nats, Vanilla at its best rate {rate:g} less Scaled Embed at its best rate {fixed_rate:g} "
        f"(p = {lower:.2g})",
        difference.value, difference.low, difference.high, f"{len(vanilla)} seeds each", scale,
    )  # fmt: skip
