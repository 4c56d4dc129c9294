"""Claims SSP-1 to SSP-10 of "Small-scale proxies for large-scale Transformer training instabilities".

Wortsman et al., arXiv 2309.14322, read [P]; the runs are `verify.claims.small_scale_runs`.
"""

from typing import Any

import numpy as np
import pandas as pd
import xarray as xr
from scipy import stats

from verify.claims.claim import Claim, Outcome, Verdict
from verify.claims.evidence import Evidence, by_rate_and_seed, converged, converging_rates, last_tenth
from verify.claims.scale import Scale
from verify.claims.small_scale_runs import (
    drift_runs,
    epsilon_runs,
    finer,
    forced_runs,
    ladder,
    mup_runs,
    qk_norm_runs,
    shape_runs,
    size_name,
    warmup_runs,
)
from verify.statistics.intervals import bootstrap_interval, difference_of_means, proportion_interval
from verify.statistics.sensitivity import Sensitivity, lr_sensitivity

_SSP = "arXiv 2309.14322"
DIVERGING_LOGIT = 1e4
RESOLVED = 0.05
"""nats of S: smaller differences count as none"""


def sensitivity(table: pd.DataFrame) -> Sensitivity:
    """S of runs that differ in rate and seed."""
    final, initial = (by_rate_and_seed(table, name) for name in ("final_loss", "initial_loss"))
    return lr_sensitivity(final.index.to_numpy(), final.to_numpy(), initial.to_numpy())


def _sensitivities(table: pd.DataFrame, by: str | list[str]) -> dict[Any, Sensitivity]:
    return {key: sensitivity(rows) for key, rows in table.groupby(by, sort=False)}


def _difference(first: Sensitivity, second: Sensitivity) -> tuple[float, float, float]:
    """Of two independent S, with an interval that adds their half-widths in squares."""
    value = first.value - second.value
    below = np.hypot(first.value - first.low, second.high - second.value)
    above = np.hypot(first.high - first.value, second.value - second.low)
    return value, value - float(below), value + float(above)


def _sign(difference: tuple[float, float, float]) -> int:
    """1 or -1 where the whole interval and at least RESOLVED nats lie on that side, else 0."""
    value, low, high = difference
    return int(low > 0 and value >= RESOLVED) - int(high < 0 and value <= -RESOLVED)


def judge_qk_norm(evidence: Evidence, scale: Scale) -> Verdict:
    """SSP-1."""
    table = evidence.table(ladder(scale))
    found = _sensitivities(table, ["size", "attention"])
    largest, smallest = size_name(scale.sizes[-1]), size_name(scale.sizes[0])
    gap = _difference(found[largest, "standard"], found[largest, "qk_norm"])
    between = evidence.table(finer(scale))
    stable = converging_rates(pd.concat([table, between]), ["size", "attention"])
    falls = stable[largest, "standard"] < stable[smallest, "standard"]
    more = stable[largest, "qk_norm"] > stable[largest, "standard"]
    outcome: Outcome = "inconclusive"
    if _sign(gap) > 0 and falls and more:
        outcome = "supported"
    elif _sign(gap) < 0 or (stable[largest, "standard"] > stable[smallest, "standard"] and _sign(gap) <= 0):
        outcome = "refuted"
    rates = ", ".join(f"{size} {attention} {rate:g}" for (size, attention), rate in stable.items())
    return Verdict(
        "SSP-1", outcome, f"S in nats without less S with QK norm at {largest} (highest stable rates: {rates})",
        *gap, f"{_sizes(table)}; {len(between)} runs between", scale.name,
    )  # fmt: skip


def judge_size(evidence: Evidence, scale: Scale) -> Verdict:
    """SSP-2."""
    table = evidence.table(ladder(scale))
    found = _sensitivities(table, ["size", "attention"])
    largest, smallest = size_name(scale.sizes[-1]), size_name(scale.sizes[0])
    rises = {a: _difference(found[largest, a], found[smallest, a]) for a in ("standard", "qk_norm")}
    gaps = []
    for _, rows in table[table["learning_rate"] == min(scale.rates)].groupby("size", sort=False):
        means = rows.groupby("attention")["final_loss"].mean()
        gaps.append(abs(means["standard"] - means["qk_norm"]))
    weakest = min(rises, key=lambda a: rises[a][0])
    outcome: Outcome = "inconclusive"
    if _sign(rises[weakest]) > 0 and max(gaps) < 0.1:
        outcome = "supported"
    elif _sign(rises[weakest]) < 0:
        outcome = "refuted"
    return Verdict(
        "SSP-2", outcome,
        f"S in nats at {largest} less at {smallest}, {weakest} attention, where it rises least (at the lowest rate the "
        f"two curves are at most {max(gaps):.2f} nats apart)",
        *rises[weakest], _sizes(table), scale.name,
    )  # fmt: skip


def judge_logit_growth(evidence: Evidence, scale: Scale) -> Verdict:
    """SSP-3."""
    chosen = [cell for cell in ladder(scale) if cell.labels["attention"] == "standard"]
    shares, first = [], []
    for cell in chosen:
        data = evidence.dataset(cell)
        logit = data["largest_attention_logit"].max("head").to_numpy().astype(np.float64)
        lengths = (data["query_norm"] * data["key_norm"]).to_numpy().astype(np.float64)
        layer = int(np.nanargmax(np.nanmax(logit, axis=0)))
        top = int(np.nanargmax(logit[:, layer]))
        growth = np.log(logit[top, layer] / logit[0, layer])
        if np.isfinite(growth) and growth > np.log(4):
            shares.append(float(np.log(lengths[top, layer] / lengths[0, layer]) / growth))
            first.append(layer == 0)
    if len(shares) < 3:
        return _nothing("SSP-3", f"{len(shares)} of {len(chosen)} runs in which a largest logit grew fourfold", scale)
    values = np.array(shares)
    low, high = bootstrap_interval(values)
    most, *interval = float(np.mean(first)), *proportion_interval(sum(first), len(first))
    outcome: Outcome = "inconclusive"
    if low > 0.5 and interval[0] > 1 / len(scale.sizes):
        outcome = "supported"
    elif high < 0.5:
        outcome = "refuted"
    return Verdict(
        "SSP-3", outcome,
        f"share of the largest logit's log growth that is growth of |q| |k| (block 0 has the largest logit in "
        f"{most:.0%} of the runs, {interval[0]:.0%} to {interval[1]:.0%})",
        float(values.mean()), low, high, f"{len(values)} runs", scale.name,
    )  # fmt: skip


def judge_diverging_logit(evidence: Evidence, scale: Scale) -> Verdict:
    """SSP-4."""
    table = evidence.table(ladder(scale))
    table = table[table["attention"] == "standard"].assign(good=converged(table, ["size", "attention"]))
    above = table[table["largest_attention_logit"] > DIVERGING_LOGIT]
    if above.empty:
        largest = table["largest_attention_logit"].max()
        return _nothing("SSP-4", f"no run's largest logit passes 1e4; the largest is {largest:.3g}", scale)
    failed = int((~above["good"]).sum())
    low, high = proportion_interval(failed, len(above))
    outcome: Outcome = "supported" if failed == len(above) and low > 0.5 else "inconclusive"
    if high < 0.9:
        outcome = "refuted"
    return Verdict(
        "SSP-4", outcome,
        f"share of the runs with a logit above 1e4 that fail to converge ({_extrapolation(table, scale)})",
        failed / len(above), low, high, f"{len(above)} runs above 1e4", scale.name,
    )  # fmt: skip


def _extrapolation(table: pd.DataFrame, scale: Scale) -> str:
    """What a line through the smaller sizes' log logits against log size says of the largest size."""
    rate = sorted(scale.rates)[len(scale.rates) // 2]
    rows = table[table["learning_rate"] == rate].groupby("size", sort=False)["largest_attention_logit"].median()
    size = np.log([layers * width**2 for layers, width in scale.sizes])
    degree = min(2, len(size) - 2)
    if degree < 1:
        return "too few sizes to extrapolate"
    fit = np.polyfit(size[:-1], np.log(rows.to_numpy()[:-1]), degree)
    predicted = float(np.exp(np.polyval(fit, size[-1])))
    return f"at rate {rate:g} the smaller sizes predict {predicted:.3g} for the largest, measured {rows.iloc[-1]:.3g}"


def judge_drift(evidence: Evidence, scale: Scale) -> Verdict:
    """SSP-5."""
    ends: dict[str, list[float]] = {}
    for cell in drift_runs(scale):
        mean = evidence.dataset(cell)["logit_mean"].to_numpy()
        ends.setdefault(cell.labels["variant"], []).append(float(np.mean(last_tenth(mean))))
    values = {name: np.array(found) for name, found in ends.items()}
    if not all(np.all(np.isfinite(found)) for found in values.values()):
        return _nothing("SSP-5", "some runs diverged, so that there is no late mean to compare", scale)
    drift = bootstrap_interval(values["neither"])
    stopped = difference_of_means(values["z-loss"], values["neither"])
    outcome: Outcome = "inconclusive"
    if drift[1] < -1 and stopped.low > 0 and abs(values["z-loss"].mean()) < 0.5 * abs(values["neither"].mean()):
        outcome = "supported"
    elif drift[0] > -1:
        outcome = "refuted"
    means = ", ".join(f"{name} {found.mean():.2f}" for name, found in values.items())
    return Verdict(
        "SSP-5", outcome, f"mean output logit over the last tenth, with z-loss less without ({means})",
        stopped.value, stopped.low, stopped.high, f"{len(values['neither'])} seeds each", scale.name,
    )  # fmt: skip


def judge_warmup(evidence: Evidence, scale: Scale) -> Verdict:
    """SSP-6."""
    table = evidence.table(warmup_runs(scale))
    found = _sensitivities(table, "variant")
    short = _difference(found["warm-up 1/100"], found["warm-up 1/5"])
    coupled = _difference(found["coupled decay"], found["warm-up 1/20"])
    signs = _sign(short), _sign(coupled)
    outcome: Outcome = "supported" if min(signs) > 0 else "refuted" if min(signs) < 0 else "inconclusive"
    return Verdict(
        "SSP-6", outcome,
        f"S in nats with the shortest less with the longest warm-up (coupled less independent decay: {coupled[0]:.2f}, "
        f"{coupled[1]:.2f} to {coupled[2]:.2f})",
        *short, _sizes(table), scale.name,
    )  # fmt: skip


def judge_shape(evidence: Evidence, scale: Scale) -> Verdict:
    """SSP-7."""
    table = evidence.table(shape_runs(scale))
    found = _sensitivities(table, "variant")
    gap = _difference(found["deep"], found["wide"])
    outcome: Outcome = ("inconclusive", "supported", "refuted")[_sign(gap)]
    return Verdict(
        "SSP-7", outcome, "S in nats four times as deep less twice as wide (the small one: "
        f"{found['small'].value:.2f})", *gap, _sizes(table), scale.name,
    )  # fmt: skip


def judge_mup(evidence: Evidence, scale: Scale) -> Verdict:
    """SSP-8."""
    standard = evidence.table(ladder(scale))
    standard = standard[standard["attention"] == "qk_norm"]
    mup = evidence.table(mup_runs(scale))
    plain, scaled = _sensitivities(standard, "size"), _sensitivities(mup, "size")
    spread = {
        name: np.ptp(np.log10([found.best_rate for found in which.values()]))
        for name, which in (("standard", plain), ("mup", scaled))
    }
    largest = size_name(scale.sizes[-1])
    gap = _difference(scaled[largest], plain[largest])
    outcome: Outcome = "inconclusive"
    if spread["mup"] < spread["standard"] and _sign(gap) >= 0:
        outcome = "supported"
    elif spread["mup"] > spread["standard"] or _sign(gap) < 0:
        outcome = "refuted"
    return Verdict(
        "SSP-8", outcome,
        f"S in nats with muP less without at {largest} (best rates spread over {spread['mup']:.1f} decades with, "
        f"{spread['standard']:.1f} without)",
        *gap, _sizes(mup), scale.name,
    )  # fmt: skip


def gradient_rms(data: xr.Dataset) -> float:
    """Root mean square of all matrices' gradients over a run's last 20 steps, in nats per token; nan if it diverged."""
    squares = (data["matrix_gradient_norm"] ** 2 / data["matrix_entries"]).isel(step=slice(-20, None))
    return float(np.sqrt(squares.mean())) if data.attrs["outcome"] == "finished" else np.nan


def judge_epsilon(evidence: Evidence, scale: Scale) -> Verdict:
    """SSP-9."""
    size, rate, level = [], [], []
    for cell in qk_norm_runs(scale):
        rms = gradient_rms(evidence.dataset(cell))
        if np.isfinite(rms):
            layers, width = cell.run.arch.num_layers, cell.run.arch.d_model
            size.append(np.log(layers * width**2))
            rate.append(np.log(cell.labels["learning_rate"]))
            level.append(np.log(rms))
    table = evidence.table(epsilon_runs(scale))
    final = {eps: rows["final_loss"].to_numpy() for eps, rows in table.groupby("epsilon")}
    helps = difference_of_means(final[1e-6], final[1e-15])
    slopes = [stats.linregress(x, level) for x in (size, rate)]
    reach = [float(stats.t.ppf(0.975, max(len(level) - 2, 1)) * fit.stderr) for fit in slopes]
    falls = [fit.slope + r < 0 for fit, r in zip(slopes, reach, strict=True)]
    outcome: Outcome = "inconclusive"
    if all(falls) and helps.low > 0:
        outcome = "supported"
    elif any(fit.slope - r > 0 for fit, r in zip(slopes, reach, strict=True)):
        outcome = "refuted"
    return Verdict(
        "SSP-9", outcome,
        f"slope of log gradient RMS against log size (against log rate {slopes[1].slope:.2f} ± {reach[1]:.2f}; loss at "
        f"epsilon 1e-6 less at 1e-15: {helps.value:.3f}, {helps.low:.3f} to {helps.high:.3f} nats)",
        float(slopes[0].slope), float(slopes[0].slope - reach[0]), float(slopes[0].slope + reach[0]),
        f"{len(level)} runs", scale.name,
    )  # fmt: skip


def judge_forced(evidence: Evidence, scale: Scale) -> Verdict:
    """SSP-10."""
    table = evidence.table(forced_runs(scale))
    losses = table.groupby("forced_logit")["final_loss"]
    best = float(losses.mean().min())
    harm = losses.mean() - best
    where = float(next((kappa for kappa in harm.index if kappa >= 1e2 and harm[kappa] > 0.1), np.inf))
    high = difference_of_means(
        table.loc[table["forced_logit"] == 1e4, "final_loss"].to_numpy(),
        table.loc[table["forced_logit"] == 1e2, "final_loss"].to_numpy(),
    )  # fmt: skip
    outcome: Outcome = "inconclusive"
    if high.low > 0 and where in (1e3, 1e4):
        outcome = "supported"
    elif high.high < 0 or where == 1e2:
        outcome = "refuted"
    curve = ", ".join(f"{kappa:.0e}: {loss:.2f}" for kappa, loss in losses.mean().items())
    return Verdict(
        "SSP-10", outcome, f"loss in nats at 1e4 less at 1e2 (more than 0.1 above the best from {where:.0e}; {curve})",
        high.value, high.low, high.high, f"{scale.seeds} seeds each", scale.name,
    )  # fmt: skip


def _nothing(claim: str, effect: str, scale: Scale) -> Verdict:
    return Verdict(claim, "inconclusive", effect, np.nan, np.nan, np.nan, "", scale.name)


def _sizes(table: pd.DataFrame) -> str:
    return f"{len(table)} runs, {table['seed'].nunique()} seeds, {table['learning_rate'].nunique()} rates"


_LADDER = (
    "The paper's set-up at the scale's sizes, with and without QK norm, at every rate and seed; S over the rates, "
    "where differences below 0.05 nats count as none."
)


def _claim(number: int, statement: str, protocol: str, rule: str, judge: Any, *runs: Any) -> Claim:
    return Claim(f"SSP-{number}", statement, f"{_SSP} [P]", protocol, rule, runs, judge)


CLAIMS = (
    _claim(
        1, "Without QK norm the diverging rate falls as the model grows; with it LR sensitivity S is lower and larger "
        "rates train.",
        f"{_LADDER} Without QK norm three more rates, between the third and the second highest.",
        "Supported if at the largest size S is lower with QK norm, with its whole interval, the highest rate at which "
        "most seeds converge is lower there than at the smallest size without it, and higher with it than without. A "
        "run converges that ends nearer to the best loss of its size and attention than to the entropy of a token. "
        "Refuted if S is higher with QK norm with its whole interval, or the rate rises without a lower S.",
        judge_qk_norm, ladder, finer,
    ),
    _claim(
        2, "S rises with size with and without QK norm; below a critical rate the curves coincide.", _LADDER,
        "Supported if S rises from the smallest to the largest size, both ways, with the whole interval, and the "
        "losses at the lowest rate differ by less than 0.1 nats. Refuted if it falls with the whole interval.",
        judge_size, ladder,
    ),
    _claim(
        3, "Attention logits grow through the norms of q and k, not their alignment; block 0 has the largest.",
        "Of the same runs without QK norm, those in which the largest logit of some block grows fourfold: how much of "
        "that growth, in logarithms, is growth of the product of query and key length there.",
        "Supported if the mean share is above a half and block 0 has the largest logit more often than one block in as "
        "many as there are sizes would, both with the whole interval. Refuted if the share is below a half.",
        judge_logit_growth, ladder,
    ),
    _claim(
        4, "Every run whose largest logit passes 1e4 diverges; a quadratic fit over sizes predicts the next size's.",
        "The same runs without QK norm.",
        "Supported if all such runs fail to converge, as in SSP-1, with an exact interval above a half. Refuted if the "
        "interval lies below 0.9. The fit over the smaller sizes is printed beside what the largest one measured.",
        judge_diverging_logit, ladder,
    ),
    _claim(
        5, "Output logits drift very negative late without weight decay; z-loss 1e-4 stops it, decay mitigates it.",
        "Neither, z-loss alone, decay alone, at the second highest rate, three times as long, on the 64 most frequent "
        "bytes, as the logits of tokens that never come only fall; mean output logit over the last tenth. Beside them "
        "neither on all 256 bytes.",
        "Supported if it is below -1 without either, with the whole interval, and z-loss at least halves it. Refuted "
        "if it stays above -1.",
        judge_drift, drift_runs,
    ),
    _claim(
        6, "Longer warm-up and independent weight decay lower S.",
        "Warm-up over 1/100, 1/20 and 1/5 of the steps, and coupled decay of 0.1 at 1/20; every rate and seed.",
        "Supported if both differences of S have their whole interval on that side; refuted if one has it on the "
        "other.",
        judge_warmup, warmup_runs,
    ),
    _claim(
        7, "Depth raises S faster than width.",
        "The smallest size, four times as deep, and twice as wide, which is as many weights in the blocks.",
        "Supported or refuted by the sign of the difference of S, with its whole interval.", judge_shape, shape_runs,
    ),
    _claim(
        8, "muP (simple) stabilises the best rate, and lowers neither loss nor S.",
        "The sizes with QK norm, standard and muP (simple) with the smallest width as base.",
        "Supported if the best rates spread over less and S at the largest size is not lower; refuted if they spread "
        "over more, or S is lower with muP.",
        judge_mup, ladder, mup_runs,
    ),
    _claim(
        9, "Gradient RMS falls with size and rate towards Adam's epsilon; a smaller epsilon then helps.",
        "Finished runs with QK norm: root mean square of the matrices' gradients over the last 20 steps; epsilon 1e-6, "
        "1e-8 and 1e-15 at the largest size and second highest rate.",
        "Supported if both slopes are negative and epsilon 1e-15 ends lower than 1e-6, with the whole intervals; "
        "refuted if a slope is positive with its whole interval.",
        judge_epsilon, ladder, epsilon_runs,
    ),
    _claim(
        10, "Forcing logits to size kappa hurts from about 1e3.",
        "Every head's largest logit forced to 1e1 ... 1e5 throughout training, at the middle rate.",
        "Supported if 1e4 ends higher than 1e2, with the whole interval, and the first kappa of at least 1e2 that "
        "costs more than 0.1 nats is 1e3 or 1e4; refuted if 1e4 ends lower, or 1e2 costs as much.",
        judge_forced, forced_runs,
    ),
)  # fmt: skip
