"""The report as one HTML file that opens offline: MathML for equations, inline SVG for figures, light and dark."""

from collections.abc import Iterable, Mapping, Sequence
from html import escape

import numpy as np
import pandas as pd
import xarray as xr

from theory.conditions import CRITERION, requirements_table
from theory.derivation import Check, Derivation
from verify.claims import CLAIMS, Verdict
from verify.measurement.compare import root_mean_square_interval
from verify.report import figures
from verify.report.options import METHODS, STANDS_FOR, TITLES, ReportOptions
from verify.report.stages import SPIKE_WINDOW
from verify.report.style import to_svg
from verify.statistics.intervals import bootstrap_interval

MARKS = {"supported": "✓ supported", "refuted": "✗ refuted", "inconclusive": "– inconclusive"}

STYLE = """
:root { color-scheme: light dark; --ink: #1b1f24; --paper: #ffffff; --soft: #5b6570; --line: #d7dce1; --box: #f4f6f8;
  --good: #00704f; --bad: #b04a00; }
@media (prefers-color-scheme: dark) { :root { --ink: #e8eaed; --paper: #14171a; --soft: #a3adb8; --line: #353c44;
  --box: #1e2328; --good: #3fcf9d; --bad: #ff9a5c; } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 60rem; padding: 1rem; color: var(--ink); background: var(--paper);
  font: 16px/1.5 system-ui, sans-serif; }
h1 { font-size: 1.6rem; } h2 { font-size: 1.25rem; margin-top: 2.5rem; border-top: 1px solid var(--line);
  padding-top: 1rem; } h3 { font-size: 1.05rem; margin: 1rem 0 0; } .derivation h2 { display: none; }
nav a { margin-right: 1rem; } a { color: inherit; }
figure { margin: 1rem 0; } figure svg { width: 100%; height: auto; color: var(--ink); }
figcaption, small, .soft { color: var(--soft); font-size: .875rem; }
.scroll { overflow-x: auto; } table { border-collapse: collapse; font-size: .875rem; }
th, td { text-align: left; vertical-align: top; padding: .3rem .6rem; border-bottom: 1px solid var(--line); }
td:first-child { white-space: nowrap; }
.box { background: var(--box); border-radius: .5rem; padding: .5rem 1rem; margin: 1rem 0; }
.supported, .proven .how { color: var(--good); } .refuted { color: var(--bad); }
.outcome { font-weight: 600; white-space: nowrap; }
details { margin: .5rem 0; } summary { cursor: pointer; font-weight: 600; }
.derivation ol { padding-left: 2rem; } .derivation li { margin: .6rem 0; } .derivation li p { margin: 0; }
.derivation math { overflow-x: auto; overflow-y: hidden; max-width: 100%; display: block; text-align: left; }
.derivation li.proven::marker { color: var(--good); } small.how { display: block; }
@media (max-width: 40rem) { figure { overflow-x: auto; } figure svg { min-width: 34rem; }
  .scroll table { min-width: 44rem; } }
"""


def page(
    options: ReportOptions,
    derivations: Sequence[tuple[Derivation, Check]],
    analyses: Mapping[str, xr.Dataset],
    runs: figures.Runs,
    table: pd.DataFrame,
    verdicts: Sequence[Verdict],
) -> str:
    """The whole document."""
    sections = [
        ("summary", "Verdicts", _verdicts(verdicts)),
        ("derivation", "1. The theory, derived", _derivations(derivations)),
        ("initialization", "2. At initialisation: bound, prediction, measurement", _initialization(options, analyses)),
        ("training", "3. In training", _training(options, runs, table)),
        ("claims", "4. The claims and how they were judged", _claims(verdicts)),
    ]
    links = "".join(f'<a href="#{name}">{escape(title)}</a>' for name, title, _ in sections)
    body = "".join(f'<section id="{name}"><h2>{escape(title)}</h2>{text}</section>' for name, title, text in sections)
    lead = (
        f"{options.arch.num_layers} layers of width {options.arch.d_model} analysed at initialisation, "
        f"{len(table)} training runs on {options.corpus}: {options.scale}."
    )
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8"/>'
        '<meta name="viewport" content="width=device-width, initial-scale=1"/>'
        f"<title>spikeless: report</title><style>{STYLE}</style></head><body>"
        f"<h1>Does the embedding's scale decide whether the gradient explodes?</h1><p>{escape(lead)}</p>"
        f"<nav>{links}</nav>{body}</body></html>\n"
    )


def _verdicts(verdicts: Sequence[Verdict]) -> str:
    rows = [
        (
            verdict.claim,
            _raw(f'<span class="outcome {verdict.outcome}">{MARKS[verdict.outcome]}</span>'),
            CLAIMS[verdict.claim].statement,
            f"{verdict.effect}: {_interval(verdict.value, verdict.low, verdict.high)}",
            verdict.samples,
        )
        for verdict in verdicts
    ]
    return (
        '<div class="box">'
        + _table(("claim", "verdict", "what the paper says", "effect, 95 % interval", "sample"), rows)
        + "</div><p class='soft'>Claims of “Spike No More” (arXiv 2312.16903). Each verdict holds at the scale "
        "it was judged at, which section 4 names; an inconclusive one is a result too.</p>"
    )  # fmt: skip


def _derivations(derivations: Sequence[tuple[Derivation, Check]]) -> str:
    proven = [outcome for _, check in derivations for outcome in check.outcomes if outcome.step.kind == "proven"]
    cited = sum(outcome.step.kind == "cited" for _, check in derivations for outcome in check.outcomes)
    held = sum(outcome.holds for outcome in proven)
    parts = [
        f"<p>Every step was proven again while this page was made: {held} of {len(proven)} derived steps hold, "
        f"{cited} more are theorems cited from the literature, and each step says which it is. Steps marked "
        "“given” are definitions and assumptions.</p>"
    ]
    for derivation, check in derivations:
        mark = "all steps hold" if check else "A STEP FAILED"
        parts.append(
            f"<details><summary>{escape(derivation.title)} <small>{mark}</small></summary>"
            f'<div class="scroll">{derivation.to_mathml(check)}</div></details>'
        )
    rows = []
    for row in requirements_table():
        met = (row.small_sublayers, row.large_shortcut)
        rows.append((row.initialization, row.embedding, *("yes" if good else "no" for good in met)))
    parts.append(
        "<details><summary>Which initialisation and embedding meet the two requirements (350M)</summary><p>"
        + escape(CRITERION) + "</p>"
        + _table(("initialisation", "embedding", "small sub-layers", "large shortcut"), rows) + "</details>"
    )  # fmt: skip
    return "".join(parts)


def _initialization(options: ReportOptions, analyses: Mapping[str, xr.Dataset]) -> str:
    rows = []
    for method in METHODS:
        analysis = analyses[method]
        gradients = analysis["measured_gradient_norm"].to_numpy()
        amplification = gradients[:, 0] / gradients[:, -1]
        predicted = analysis["predicted_gradient_norm"].to_numpy()
        rows.append(
            (
                TITLES[method],
                f"{predicted[0] / predicted[-1]:.2f}",
                _interval(float(amplification.mean()), *bootstrap_interval(amplification)),
                f"10^{np.log10(analysis['bound'].to_numpy()).sum():.0f}",
                *(
                    f"{100 * _worst_error(analysis, name, suffix):.1f} %"
                    for suffix in ("", "_text")
                    for name in ("gradient_norm", "shortcut_std")
                ),
            )
        )
    return (
        "<p>The bound limits the gradient's growth from the last place of the residual stream back to the embedding; "
        "the prediction gives its value. Dots are autodiff.</p>"
        + _figure(
            figures.headline(analyses), "headline",
            f"Gradient norm at every place of the residual stream, {options.init_scale}, {options.init_seeds} seeds "
            "(band: 95 % interval of the root mean square). Dashed: the paper's chain of bounds, anchored at the last "
            "place: it ranks the methods, but is many decades above what happens. Line: predicted, not fitted.",
        )
        + _figure(
            figures.near(analyses), "near",
            "The methods in one picture; lines: predicted. Vanilla and Embed Detach are the same network "
            "at initialisation: detaching changes the table's gradient only.",
        )
        + _table(
            ("method", "predicted amplification", "measured, 95 % interval", "bound", "worst error of a gradient norm",
             "of a std", "gradient norm, text", "std, text"),
            rows,
        )
        + f"<p class='soft'>Amplification: gradient norm at the embedding over the one at the last block. Worst error: "
        f"over all places, prediction against the root mean square of {options.init_seeds} seeds; text: on sequences "
        f"of {escape(options.corpus)} instead of random tokens.</p>"
        + _figure(
            figures.jacobians(analyses), "jacobians",
            f"What each sub-layer's Jacobian adds to the shortcut: bound and measured spectral norm, "
            f"{options.jacobian_seeds} seeds, the map of all {options.arch.seq_len} tokens, by power iteration.",
        )
    )  # fmt: skip


def _training(options: ReportOptions, runs: figures.Runs, table: pd.DataFrame) -> str:
    run = options.training_runs("vanilla")[0]
    o = run.optimizer
    protocol = (
        f"Fixed before the runs: {options.scale}, corpus {options.corpus}, AdamW (beta {o.beta1:g}, {o.beta2:g}), "
        f"weight decay {o.weight_decay:g}, no clipping, {o.warmup_steps} steps of warm-up, cosine to "
        f"{o.final_share:g} of the peak, rates {', '.join(f'{rate:g}' for rate in options.rates)}, {options.seeds} "
        f"seeds each. Vanilla and Embed Detach stand in for width {STANDS_FOR}: their embedding's output is multiplied "
        f"by sqrt(d_model / {STANDS_FOR}), which gives the narrow stack the signal propagation of the wide one at "
        "initialisation. Spikes: values 7 standard deviations off the mean of the previous "
        f"{SPIKE_WINDOW} steps, after warm-up; events closer than 10 steps are one."
    )
    grouped = table.groupby(["method", "rate"], sort=False)
    rows = []
    for key, group in grouped:
        assert isinstance(key, tuple)
        method, rate = key
        rows.append(
            (
                TITLES[str(method)],
                f"{rate:g}",
                *(
                    _interval(float(group[column].mean()), *bootstrap_interval(group[column].to_numpy()))
                    for column in ("held_out_loss", "largest_gradient_norm", "gradient_norm_ratio")
                ),
                f"{group['loss_spikes'].sum()}",
                f"{group['gradient_spikes'].sum()}",
                _interval(
                    float(group["largest_loss_excess"].mean()),
                    *bootstrap_interval(group["largest_loss_excess"].to_numpy()),
                ),
                f"{group['relative_loss_excess'].mean():.1f}",
                f"{group['largest_update_ratio'].mean():.2g}",
                f"{(group['outcome'] != 'finished').sum()} of {len(group)}",
            )
        )
    found = int(table["loss_spikes"].sum())
    summary = (
        f"{found} loss spike{'s' if found != 1 else ''} and {int(table['gradient_spikes'].sum())} gradient-norm "
        f"spikes in {len(table)} runs; {int((table['outcome'] != 'finished').sum())} runs diverged."
    )
    if not found:
        summary += " Nothing spikes in the loss at this size; what separates the methods here is below."
    return (
        f"<div class='box'><p><strong>Protocol.</strong> {escape(protocol)}</p></div><p>{escape(summary)}</p>"
        + _figure(
            figures.by_rate(table), "by-rate",
            f"Held-out loss and largest gradient norm of every run; lines: means over {options.seeds} seeds.",
        )
        + _figure(
            figures.training(runs, "loss", "training loss (nats per token)", options.rates), "loss",
            f"Training loss, mean over 5 steps; line: mean, band: range of {options.seeds} seeds.",
        )
        + _figure(
            figures.training(runs, "gradient_norm", "gradient norm before clipping", options.rates), "gradient",
            f"Global gradient norm (nats per token), mean over 5 steps; band: range of {options.seeds} seeds.",
        )
        + _table(
            ("method", "rate", "held-out loss (nats)", "largest gradient norm", "largest over median gradient norm",
             "loss spikes", "gradient spikes", "largest loss excess (nats)", "in units of noise",
             "largest update over weight (RMS)", "diverged"),
            rows,
        )
        + "<p class='soft'>Means over seeds with 95 % bootstrap intervals; counts are sums over seeds. The excess over "
        "the running minimum punishes the scheme that learns more: read it beside the loss.</p>"
    )  # fmt: skip


def _claims(verdicts: Sequence[Verdict]) -> str:
    parts = []
    for verdict in verdicts:
        claim = CLAIMS[verdict.claim]
        parts.append(
            f'<h3 id="{claim.id}">{claim.id} <span class="outcome {verdict.outcome}">{MARKS[verdict.outcome]}</span>'
            "</h3>"
            f"<p>{escape(claim.statement)} <small>({escape(claim.source)})</small></p><ul>"
            f"<li>Protocol: {escape(claim.protocol)}</li><li>Rule: {escape(claim.rule)}</li>"
            f"<li>Found: {escape(verdict.effect)} = {_interval(verdict.value, verdict.low, verdict.high)} "
            f"({escape(verdict.samples)})</li><li>Scale: {escape(verdict.scale)}</li></ul>"
        )
    return "".join(parts)


def _worst_error(analysis: xr.Dataset, name: str, suffix: str) -> float:
    _, measured, _ = root_mean_square_interval(analysis[f"measured_{name}{suffix}"].to_numpy())
    return float(np.max(np.abs(analysis[f"predicted_{name}{suffix}"].to_numpy() / measured - 1)))


def _interval(value: float, low: float, high: float) -> str:
    if not np.isfinite(value):
        return "diverged"
    if not (np.isfinite(low) and np.isfinite(high)):
        return f"{value:.3g}"
    return f"{value:.3g} [{low:.3g}, {high:.3g}]"


class _raw(str):
    """Text that is HTML already."""


def _table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    head = "".join(f"<th>{escape(name)}</th>" for name in header)
    body = "".join(
        "<tr>" + "".join(f"<td>{cell if isinstance(cell, _raw) else escape(cell)}</td>" for cell in row) + "</tr>"
        for row in rows
    )
    return f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def _figure(figure: figures.Figure, name: str, caption: str) -> str:
    svg = to_svg(figure, name, escape(caption, quote=True))
    return f"<figure>{svg}<figcaption>{escape(caption)}</figcaption></figure>"
