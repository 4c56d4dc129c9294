"""Claims SNM-8 to SNM-17: "Spike No More" (Takase et al., arXiv 2312.16903) in training, on a stand-in for its 13B.

The paper's failures are those of wide models. A narrow one whose embedding's output is multiplied by sqrt(d / d_wide)
propagates as the wide Vanilla does (`theory.recommendation`), and its rate is the wide one's times d_wide / d, so that
a step changes a layer's output by as much. "Vanilla" and "Embed Detach" here are those of d 5120 at the rate of 3e-4,
at which the paper's Vanilla fails; the fixes are the paper's own. AdamW (0.9, 0.95), decay 0.1, clipped at 1, as there.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
import sympy as sp

from theory import Architecture
from theory.embedding import Embedding
from theory.notation import d
from verify.claims.claim import Claim, Outcome, Verdict
from verify.claims.evidence import Cell, Evidence, cells, last_tenth
from verify.claims.scale import Scale
from verify.statistics.intervals import bootstrap_interval, difference_of_means, permutation_p
from verify.statistics.lead_lag import gradient_lead
from verify.statistics.spikes import spike_steps
from verify.training.optimizer import Optimizer
from verify.training.run import Run, changed

_SNM = "arXiv 2312.16903"
RATE, SEED, EMBEDDING = "optimizer.learning_rate", "seed", "arch.embedding"
WIDE, WIDE_RATE = 5120, 3e-4
D_HEAD = 16

_NARROWED = sp.sqrt(d / WIDE)
VANILLA = Embedding("vanilla", multiplier=_NARROWED, source=f"{_SNM}, Vanilla as at d = {WIDE}")
DETACH = Embedding("detach", multiplier=_NARROWED, gradient_share=sp.Rational(1, 10), source=f"{_SNM}, as at {WIDE}")
INITIAL_STD = Embedding("initial_std", table_std=sp.sqrt(sp.Rational(2, 5)), source="a table of the scaled one's std")
METHODS = (VANILLA, DETACH, "scaled", "layer_norm")
FORMS = (VANILLA, "scaled", INITIAL_STD, "layer_norm")
FIXES = ("scaled", "layer_norm")

# by scale: num_layers, d_model, seq_len, batch_size, steps
_STACKS = {"tiny": (2, 16, 8, 4, 40), "small": (12, 32, 32, 16, 1000), "gpu": (24, 256, 256, 32, 4000)}


def stand_in(scale: Scale) -> Run:
    """Scaled Embed at that scale."""
    layers, width, seq_len, batch_size, steps = _STACKS[scale.name]
    arch = Architecture(
        num_layers=layers, d_model=width, num_heads=max(width // D_HEAD, 1), vocab_size=256, seq_len=seq_len
    )
    optimizer = Optimizer(learning_rate=WIDE_RATE * WIDE / width, schedule="constant", warmup_steps=max(steps // 20, 1))
    return Run(arch, optimizer, batch_size=batch_size, steps=steps)


def _seeds(scale: Scale) -> range:
    """A third of those of the main comparison."""
    return range(max(scale.spike_seeds // 3, 2))


def method_runs(scale: Scale) -> tuple[Cell, ...]:
    """The four methods, many seeds."""
    return cells(stand_in(scale), {EMBEDDING: METHODS, SEED: range(scale.spike_seeds)})


def judge_spikes(evidence: Evidence, scale: Scale) -> Verdict:
    """SNM-15."""
    table = evidence.table(method_runs(scale))
    counts = {str(name): _values(rows) for name, rows in table.groupby("embedding", sort=False)}
    pairs = [(unstable, fixed) for unstable in ("vanilla", "detach") for fixed in FIXES]
    more = max(permutation_p(counts[unstable], counts[fixed]) for unstable, fixed in pairs)
    less = max(permutation_p(counts[fixed], counts[unstable]) for unstable, fixed in pairs)
    outcome: Outcome = "supported" if more < 0.01 else "refuted" if less < 0.01 else "inconclusive"
    worst = min(pairs, key=lambda pair: counts[pair[0]].mean() - counts[pair[1]].mean())
    gap = difference_of_means(counts[worst[0]], counts[worst[1]])
    loss = table.groupby("embedding", sort=False)["loss_spikes"].sum()
    each = ", ".join(
        f"{name} {values.mean():.1f} and {loss[name] / len(values):.1f}" for name, values in counts.items()
    )
    return Verdict(
        "SNM-15", outcome, f"gradient spikes a run, {worst[0]} less {worst[1]}, the nearest pair (largest p "
        f"{more:.1g}; gradient and loss spikes a run: {each})",
        gap.value, gap.low, gap.high, f"{scale.spike_seeds} seeds each", scale.name,
    )  # fmt: skip


def length_runs(scale: Scale) -> tuple[Cell, ...]:
    """Vanilla at three lengths, with as many tokens a step."""
    run = changed(stand_in(scale), {EMBEDDING: VANILLA})
    return tuple(
        Cell({"length": run.arch.seq_len * factor // 2, "seed": seed}, changed(run, {
            "arch.seq_len": run.arch.seq_len * factor // 2, "batch_size": run.batch_size * 2 // factor, SEED: seed,
        }))
        for factor in (1, 2, 4) for seed in _seeds(scale)
    )  # fmt: skip


def judge_lengths(evidence: Evidence, scale: Scale) -> Verdict:
    """SNM-8."""
    table = evidence.table(length_runs(scale))
    counts = [rows["gradient_spikes"].to_numpy(float) for _, rows in table.groupby("length")]
    gap = difference_of_means(counts[-1], counts[0])
    each = ", ".join(f"{length}: {_values(rows).mean():.1f}" for length, rows in table.groupby("length"))
    return Verdict(
        "SNM-8", _decided(gap.low, gap.high), f"gradient spikes a run, longest less shortest sequences ({each})",
        gap.value, gap.low, gap.high, _sample(table), scale.name,
    )  # fmt: skip


def requirement_runs(scale: Scale) -> tuple[Cell, ...]:
    """Small sub-layers (the depth factor) or not, large shortcut (Scaled Embed) or not."""
    axes = {"arch.initialization": ("megatron", "small"), EMBEDDING: (VANILLA, "scaled"), SEED: _seeds(scale)}
    return cells(stand_in(scale), axes)


def judge_requirements(evidence: Evidence, scale: Scale) -> Verdict:
    """SNM-9."""
    table = evidence.table(requirement_runs(scale))
    grouped = dict(iter(table.groupby(["initialization", "embedding"], sort=False)))
    both = grouped["megatron", "scaled"]
    others = [key for key in grouped if key != ("megatron", "scaled")]
    p = {key: permutation_p(_values(grouped[key]), _values(both)) for key in others}
    nearest = max(p, key=lambda key: p[key])
    gap = difference_of_means(_values(grouped[nearest]), _values(both))
    outcome: Outcome = "supported" if p[nearest] <= 0.05 else _decided(gap.low, gap.high, positive="inconclusive")
    each = ", ".join(f"{' '.join(map(str, key))} {_values(rows).mean():.1f}" for key, rows in grouped.items())
    return Verdict(
        "SNM-9", outcome, f"gradient spikes a run, {' '.join(map(str, nearest))} less both requirements met ({each})",
        gap.value, gap.low, gap.high, _sample(table), scale.name,
    )  # fmt: skip


def rate_runs(scale: Scale) -> tuple[Cell, ...]:
    """The methods at rates down to a thirty-second, at scale tiny a quarter, for their best losses."""
    peak, factors = stand_in(scale).optimizer.learning_rate, (32, 16, 8, 4, 2, 1)[3 if scale.name == "tiny" else 0 :]
    axes = {EMBEDDING: METHODS, RATE: tuple(peak / factor for factor in factors), SEED: range(scale.seeds)}
    return cells(stand_in(scale), axes)


def _best(table: pd.DataFrame, method: str) -> tuple[float, np.ndarray]:
    """The rate of the lowest mean held-out loss, and the losses there."""
    rows = table[table["embedding"] == method]
    means = rows.groupby("learning_rate")["held_out_loss"].mean()
    rate = float(means.index[int(np.argmin(means.to_numpy()))])
    return rate, rows.loc[rows["learning_rate"] == rate, "held_out_loss"].to_numpy()


def _judge_best(claim: str, method: str, evidence: Evidence, scale: Scale, wanted: str) -> Verdict:
    table = evidence.table(rate_runs(scale))
    (rate, vanilla), (own_rate, own) = _best(table, "vanilla"), _best(table, method)
    gap = difference_of_means(own, vanilla)
    outcome = _decided(-gap.high, -gap.low)
    if wanted == "no harm":
        outcome = "refuted" if gap.low > 0 else "supported" if gap.high < 0.02 else "inconclusive"
    edge = {rate, own_rate} & {table["learning_rate"].min(), table["learning_rate"].max()}
    if edge:
        outcome = "inconclusive"
    said = " (at the edge of the rates tried: its best may lie beyond)" if edge else ""
    return Verdict(
        claim, outcome,
        f"held-out loss in nats, {method} at its best rate {own_rate:g} less Vanilla at {rate:g}{said}",
        gap.value, gap.low, gap.high, f"{len(own)} seeds each, {table['learning_rate'].nunique()} rates", scale.name,
    )  # fmt: skip


def judge_layer_norm(evidence: Evidence, scale: Scale) -> Verdict:
    """SNM-10."""
    return _judge_best("SNM-10", "layer_norm", evidence, scale, "no harm")


def judge_final_loss(evidence: Evidence, scale: Scale) -> Verdict:
    """SNM-17."""
    return _judge_best("SNM-17", "scaled", evidence, scale, "lower")


def judge_lead(evidence: Evidence, scale: Scale) -> Verdict:
    """SNM-11."""
    series = []
    for cell in method_runs(scale):
        data = evidence.dataset(cell)
        loss, gradient = (data[name].to_numpy().astype(np.float64) for name in ("loss", "gradient_norm"))
        flags = spike_steps(loss, evidence.window, deviations=4, warm_up=cell.run.optimizer.warmup_steps)
        series.append((flags, gradient))
    found = gradient_lead(series, window=10, history=min(100, evidence.window))
    if not len(found.leads) or not np.isfinite(found.p):
        return Verdict(
            "SNM-11", "inconclusive", "no loss spike to look before", np.nan, np.nan, np.nan, f"{len(series)} runs",
            scale.name,
        )  # fmt: skip
    outcome: Outcome = "supported" if found.p < 0.01 else "refuted" if found.high < 0.5 else "inconclusive"
    led = found.leads[found.leads > 0]
    steps = f"median lead {np.median(led):.0f} steps" if led.size else "none led"
    return Verdict(
        "SNM-11", outcome, f"share of loss spikes (4 standard deviations) before which the gradient norm doubles "
        f"within 10 steps ({steps}; at other steps {found.control_share:.2f}, p {found.p:.1g})",
        found.share, found.low, found.high, f"{len(found.leads)} events in {len(series)} runs", scale.name,
    )  # fmt: skip


def multiplier_runs(scale: Scale) -> tuple[Cell, ...]:
    """Eight multipliers from the wide Vanilla's to 16 sqrt d, at scale tiny four, at half the rate."""
    run = stand_in(scale)
    width = run.arch.d_model
    last = 3 if scale.name == "tiny" else 7
    multipliers = [float((width / WIDE) ** 0.5 * (16 * WIDE**0.5) ** (step / last)) for step in range(last + 1)]
    return tuple(
        Cell({"multiplier": value, "seed": seed},
             changed(run, {EMBEDDING: value, SEED: seed, RATE: run.optimizer.learning_rate / 2}))
        for value in multipliers for seed in range(scale.seeds)
    )  # fmt: skip


def judge_optimal_scale(evidence: Evidence, scale: Scale) -> Verdict:
    """SNM-12."""
    table = evidence.table(multiplier_runs(scale))
    arch = stand_in(scale).arch
    std = table["multiplier"] * float(arch.std("embedding")[0])
    table = table.assign(std=std)
    losses = table.groupby("std")["final_loss"].mean()
    best = float(losses.index[int(np.argmin(losses.to_numpy()))])
    near = losses.index[losses.to_numpy() <= losses.min() + 0.02]
    outcome: Outcome = "supported" if near.min() <= 1 <= near.max() or 0.3 < best < 3 else "refuted"
    curve = ", ".join(f"{key:.2g}: {loss:.2f}" for key, loss in losses.items())
    return Verdict(
        "SNM-12", outcome, f"embedding std of the lowest final loss; within 0.02 nats of it are {near.min():.2g} to "
        f"{near.max():.2g} ({curve})",
        best, float(near.min()), float(near.max()), _sample(table), scale.name,
    )  # fmt: skip


def judge_shortcut(evidence: Evidence, scale: Scale) -> Verdict:
    """SNM-13."""
    ends: dict[str, list[float]] = {}
    for cell in method_runs(scale):
        std = evidence.dataset(cell)["shortcut_std"].to_numpy().astype(np.float64)
        if np.all(np.isfinite(std)):
            last = last_tenth(std).mean(axis=0)
            ends.setdefault(str(cell.labels["embedding"]), []).append(float(np.log10(last[1] / last[0])))
    jump = {name: np.array(values) for name, values in ends.items()}
    gap = difference_of_means(jump["vanilla"], jump["scaled"])
    each = ", ".join(f"{name} {10 ** values.mean():.3g}" for name, values in jump.items())
    return Verdict(
        "SNM-13", _decided(gap.low, gap.high), "decades by which the first sub-layer raises the stream's std at the "
        f"end of training, Vanilla less Scaled Embed (factors: {each})",
        gap.value, gap.low, gap.high, f"{min(map(len, jump.values()))} seeds each", scale.name,
    )  # fmt: skip


def block_runs(scale: Scale) -> tuple[Cell, ...]:
    """A LLaMA-like and a parallel block."""
    llama = {"arch.norm": "rms_norm", "arch.activation": "swiglu"}
    return tuple(
        cell
        for name, fields in (("llama-like", llama), ("parallel", {"arch.block": "parallel"}))
        for cell in cells(
            changed(stand_in(scale), fields), {EMBEDDING: (VANILLA, "scaled"), SEED: _seeds(scale)}, variant=name
        )
    )


def judge_blocks(evidence: Evidence, scale: Scale) -> Verdict:
    """SNM-14."""
    table = evidence.table(block_runs(scale))
    gaps = {}
    for name, rows in table.groupby("variant", sort=False):
        by = {method: _values(found) for method, found in rows.groupby("embedding")}
        gaps[str(name)] = difference_of_means(by["vanilla"], by["scaled"])
    least = min(gaps, key=lambda name: gaps[name].value)
    outcome: Outcome = "inconclusive"
    if all(gap.low > 0 for gap in gaps.values()):
        outcome = "supported"
    elif any(gap.high < 0 for gap in gaps.values()):
        outcome = "refuted"
    return Verdict(
        "SNM-14", outcome, f"gradient spikes a run, Vanilla less Scaled Embed, {least} ("
        + ", ".join(f"{name} {gap.value:.1f}" for name, gap in gaps.items()) + ")",
        gaps[least].value, gaps[least].low, gaps[least].high, _sample(table), scale.name,
    )  # fmt: skip


def form_runs(scale: Scale) -> tuple[Cell, ...]:
    """The forms of the fix, tied or not, with decay on the embedding or without."""
    axes: dict[str, Sequence[Any]] = {
        EMBEDDING: FORMS, "arch.tied": (False, True), "optimizer.decay_embeddings": (True, False),
        SEED: range(scale.seeds),
    }  # fmt: skip
    return cells(stand_in(scale), axes)


def judge_forms(evidence: Evidence, scale: Scale) -> Verdict:
    """SNM-16."""
    table = evidence.table(form_runs(scale))
    plain = table[~table["tied"] & table["decay_embeddings"]]
    by = {method: rows["final_loss"].to_numpy() for method, rows in plain.groupby("embedding")}
    gap = difference_of_means(by["initial_std"], by["scaled"])
    effects = []
    for field in ("tied", "decay_embeddings"):
        first, second = (table.loc[table[field] == value, "final_loss"].to_numpy() for value in (True, False))
        low, high = bootstrap_interval(first - second)
        effects.append(f"{field} {np.mean(first - second):+.2f} ({low:.2f} to {high:.2f})")
    outcome: Outcome = "inconclusive" if gap.low <= 0 <= gap.high else "supported"
    return Verdict(
        "SNM-16", outcome, "final loss in nats, a table of the scaled one's std less the multiplier (over all forms: "
        + ", ".join(effects) + ")", gap.value, gap.low, gap.high, _sample(table), scale.name,
    )  # fmt: skip


def _values(rows: pd.DataFrame) -> np.ndarray:
    return rows["gradient_spikes"].to_numpy(float)


def _decided(low: float, high: float, positive: Outcome = "supported") -> Outcome:
    """By the side of 0 on which the whole interval lies."""
    return positive if low > 0 else "refuted" if high < 0 else "inconclusive"


def _sample(table: pd.DataFrame) -> str:
    return f"{len(table)} runs, {table['seed'].nunique()} seeds"


_SPIKES = "gradient-norm spikes (7 standard deviations off the mean of the previous steps, merged within 10)"


def _claim(number: int, statement: str, source: str, protocol: str, rule: str, judge: Any, *runs: Any) -> Claim:
    return Claim(f"SNM-{number}", statement, source, protocol, rule, runs, judge)


CLAIMS = (
    _claim(
        8, "Shorter sequences: fewer spikes for Vanilla.", f"{_SNM}, figure 6 [S]",
        f"The stand-in's Vanilla at half, once and twice the length, as many tokens a step; {_SPIKES}.",
        "By the side of 0 on which the whole Welch interval of longest less shortest lies.", judge_lengths, length_runs,
    ),
    _claim(
        9, "Either requirement alone is not enough.", f"{_SNM}, section 3 [S]",
        f"With and without the depth factor on output matrices, Vanilla and Scaled Embed; {_SPIKES}.",
        "Supported if each of the other three has more than both together (one-sided permutation tests, the largest "
        "p at most 0.05); refuted if the nearest has fewer, with its whole interval.",
        judge_requirements, requirement_runs,
    ),
    _claim(
        10, "Embed LN does not hurt the loss at a suitable rate.", f"{_SNM}, against Le Scao et al. 2022 [S]",
        "Held-out loss at each method's best of six rates.",
        "Supported if Embed LN's is at most 0.02 nats above Vanilla's, with the whole interval; refuted if it is "
        "higher with the whole interval; inconclusive where a best rate is the lowest or highest one.",
        judge_layer_norm, rate_runs,
    ),
    _claim(
        11, "The gradient norm grows before the loss spikes.", "asked by its reviewers; not in the paper",
        "All runs of SNM-15: loss spikes of 4 standard deviations, and whether the gradient norm passes twice its "
        "median within the 10 steps before; the same at steps without a spike nearby.",
        "Supported if it does so more often than there (Fisher, p < 0.01); refuted if in fewer than half of the "
        "events, with the whole interval.", judge_lead, method_runs,
    ),
    _claim(
        12, "An embedding std of about 1 is the best.", "asked by its reviewers; not in the paper",
        "Eight multipliers from the wide Vanilla's to sixteen times sqrt d, at half the rate; final loss.",
        "Supported if the best std, or one within 0.02 nats of it, lies between 0.3 and 3; refuted otherwise.",
        judge_optimal_scale, multiplier_runs,
    ),
    _claim(
        13, "The shortcut that is small at the start stays small in training.", "asked by its reviewers; not in the "
        "paper",
        "All runs of SNM-15: by how much the first sub-layer raises the stream's std, over the last tenth of the "
        "steps.",
        "By the side of 0 on which the whole Welch interval of Vanilla less Scaled Embed lies, in decades.",
        judge_shortcut, method_runs,
    ),
    _claim(
        14, "The same holds for LLaMA-like and parallel blocks.", "asked by its reviewers; not in the paper",
        f"RMSNorm and SwiGLU; a parallel block; Vanilla and Scaled Embed; {_SPIKES}.",
        "Supported if Vanilla has more in both, with the whole Welch intervals; refuted if it has fewer in one.",
        judge_blocks, block_runs,
    ),
    _claim(
        15, "At one rate Vanilla and Embed Detach spike more than Scaled Embed and Embed LN, over many seeds.",
        f"{_SNM}, figures 1 and 3 [P], which have one seed",
        f"The stand-in at the rate of 3e-4 of d 5120, four methods; {_SPIKES}; spikes of the loss are counted beside.",
        "One-sided permutation tests of each of the two against each of the fixes: supported if the largest p is below "
        "0.01, refuted if the fixes have more at p < 0.01.", judge_spikes, method_runs,
    ),
    _claim(
        16, "A multiplier of sqrt d and a table of that initial std are not the same in training.",
        "asked by its reviewers; not in the paper",
        "The wide Vanilla, the multiplier, the initial std and Embed LN, tied or not, with decay on the embedding or "
        "without; final loss.",
        "Supported if the two differ, untied and with decay, by a Welch interval that leaves out 0; else "
        "inconclusive. The "
        "mean effects of tying and of decay are printed beside.", judge_forms, form_runs,
    ),
    _claim(
        17, "At its best rate the fix ends lower than Vanilla at its own.", f"{_SNM}, perplexity tables [S]",
        "Held-out loss at each method's best of six rates.",
        "By the side of 0 on which the whole Welch interval of Vanilla less Scaled Embed lies; inconclusive where a "
        "best rate is the lowest or highest one.",
        judge_final_loss, rate_runs,
    ),
)  # fmt: skip
