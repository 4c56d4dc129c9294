"""Judges of SNM-1 to SNM-5, which are about the model before its first step."""

from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np
from scipy import stats

from theory import Architecture
from theory.conditions import embedding_std
from verify.claims.claim import Outcome, Verdict
from verify.statistics.intervals import bootstrap_interval

UNSTABLE = ("vanilla", "detach")
FIXES = ("scaled", "layer_norm")


def judge_embedding_std(archs: Mapping[str, Architecture], stds: Mapping[str, np.ndarray], scale: str) -> Verdict:
    """SNM-1 from the stream's std at place 0, float64[seeds] for every method."""
    errors = {
        method: std / arch.evaluate(embedding_std(arch.initialization, arch.embedding)) - 1
        for (method, std), arch in zip(stds.items(), archs.values(), strict=True)
    }
    worst = max(errors, key=lambda method: abs(errors[method].mean()))
    size = abs(errors[worst].mean())
    outcome: Outcome = "supported" if size <= 0.01 else "refuted" if size > 0.03 else "inconclusive"
    low, high = bootstrap_interval(errors[worst])
    return Verdict(
        "SNM-1", outcome, f"largest relative difference from the formula ({worst})", errors[worst].mean(), low, high,
        f"{len(stds)} methods x {len(errors[worst])} seeds", scale,
    )  # fmt: skip


def judge_norms(arch: Architecture, draws: int, scale: str) -> Verdict:
    """SNM-2 from `draws` random tokens and `draws` random matrices of each of the architecture's two shapes."""
    rng = np.random.default_rng(0)
    tokens = jnp.asarray(0.1 * rng.standard_normal((draws, arch.d_model)), jnp.float32)

    def norm(x: jax.Array) -> jax.Array:
        centred = x - jnp.mean(x)
        return centred / jnp.sqrt(jnp.mean(jnp.square(centred)) + jnp.float32(arch.norm_epsilon))

    with jax.default_matmul_precision("highest"):
        jacobians = np.asarray(jax.vmap(jax.jacfwd(norm))(tokens))
    sigma = np.sqrt(np.var(np.asarray(tokens, dtype=np.float64), axis=1) + arch.norm_epsilon)
    token_error = float(np.max(np.abs(np.linalg.norm(jacobians, 2, axis=(1, 2)) * sigma - 1)))
    shapes = [(arch.d_model, arch.d_model), (arch.d_model, arch.ff_width)]
    ratios = np.array(
        [np.linalg.norm(rng.standard_normal(s), 2) / (np.sqrt(s[0]) + np.sqrt(s[1])) for s in shapes * draws]
    )
    outcome: Outcome = "supported" if token_error <= 1e-3 and abs(ratios.mean() - 1) <= 0.1 else "refuted"
    return Verdict(
        "SNM-2", outcome, f"matrix norm over the formula (LayerNorm norm x sigma off by at most {token_error:.0e})",
        float(ratios.mean()), *bootstrap_interval(ratios), f"{draws} tokens, {len(ratios)} matrices", scale,
    )  # fmt: skip


def judge_bounds(norms: Mapping[str, np.ndarray], bounds: Mapping[str, np.ndarray], scale: str) -> Verdict:
    """SNM-3 from measured norms float64[seeds, S] and bounds float64[S] of every method."""
    above = np.concatenate([(norms[method] > bounds[method]).ravel() for method in norms])

    def order(excess: Mapping[str, np.ndarray]) -> list[float]:
        return [float(np.mean(np.log(np.maximum(excess[method] - 1, 1e-12)))) for method in norms]

    agreement = float(stats.spearmanr(order(norms), order(bounds)).statistic)
    slack = np.concatenate([np.log10((bounds[m] - 1) / (norms[m] - 1)).ravel() for m in norms])
    fine = not above.any() and agreement > 0.79  # of four methods, two are the same network and may swap
    outcome: Outcome = (
        "supported" if fine else "inconclusive" if above.mean() < 0.01 and agreement > 0.79 else "refuted"
    )
    return Verdict(
        "SNM-3", outcome,
        f"log10 of bound's over measured excess, median ({int(above.sum())} above the bound, rank correlation "
        f"{agreement:.2f})",
        float(np.median(slack)), *bootstrap_interval(slack, np.median), f"{above.size} Jacobians", scale,
    )  # fmt: skip


def judge_depth_and_width(
    norms: Mapping[str, np.ndarray], widths: np.ndarray, by_width: np.ndarray, scale: str
) -> Verdict:
    """SNM-4 from norms float64[seeds, S] of every method, and Vanilla's first block's [widths, seeds]."""
    ratios = {}
    for method, norm in norms.items():
        quarter = max(norm.shape[1] // 4, 1)
        ratios[method] = (norm[:, :quarter].mean(axis=1) - 1) / (norm[:, -quarter:].mean(axis=1) - 1)
    log_width = np.repeat(np.log(widths), by_width.shape[1])
    fit = stats.linregress(log_width, np.log(by_width - 1).ravel())
    reach = stats.t.ppf(0.975, len(log_width) - 2) * fit.stderr
    vanilla, fixes = ratios["vanilla"].mean(), max(ratios[method].mean() for method in FIXES if method in ratios)
    if vanilla > 2 and fixes < 2 and fit.slope > 0.25 and fit.slope - reach > 0:
        outcome: Outcome = "supported"
    elif bootstrap_interval(ratios["vanilla"])[1] < 2 or fit.slope + reach < 0.25:
        outcome = "refuted"
    else:
        outcome = "inconclusive"
    return Verdict(
        "SNM-4", outcome,
        f"log-log slope of Vanilla's first excess against width (excess shallow over deep: Vanilla {vanilla:.1f}, "
        f"fixes at most {fixes:.1f})",
        fit.slope, fit.slope - reach, fit.slope + reach, f"{len(widths)} widths x {by_width.shape[1]} seeds", scale,
    )  # fmt: skip


def judge_amplification(amplification: Mapping[str, np.ndarray], scale: str) -> Verdict:
    """SNM-5 from the amplification float64[seeds] of every method."""
    low_one = min((m for m in UNSTABLE if m in amplification), key=lambda m: amplification[m].mean())
    high_one = max((m for m in FIXES if m in amplification), key=lambda m: amplification[m].mean())
    ratio = amplification[low_one] / amplification[high_one]
    low, high = bootstrap_interval(ratio)
    outcome: Outcome = "supported" if low > 1.5 else "refuted" if high < 1 else "inconclusive"
    return Verdict(
        "SNM-5", outcome, f"amplification of {low_one} over that of {high_one}", float(ratio.mean()), low, high,
        f"{len(ratio)} seeds", scale,
    )  # fmt: skip
