"""Judges of claims about training, on runs made to support, refute and leave open; and the command that trains them."""

import dataclasses
import json
from functools import partial

import numpy as np
import pandas as pd
import pytest
import xarray as xr

from theory import predict
from verify.__main__ import main
from verify.claims import (
    CLAIMS,
    Verdict,
    command,
    embedding_scale,
    small_scale_proxies,
    small_scale_runs,
    training_stability,
)
from verify.claims.evidence import cells, contextless_loss, converged, summary
from verify.claims.regimes import MORE_LOSS_SPIKES, loss_spike_runs, regime_runs
from verify.claims.scale import SCALES, Scale
from verify.claims.verdicts import read, write
from verify.statistics.corrections import holm
from verify.statistics.intervals import permutation_p
from verify.training.optimizer import Optimizer
from verify.training.run import Run

AT = Scale("made", ((1, 16), (2, 32), (3, 64)), 8, 4, 100, 4, 4, (1e-3, 1e-2, 1e-1), 10)
NOISE = 0.01


class Made:
    """Evidence whose runs come out as a function of their labels says, with a little noise by seed."""

    window = 100

    def __init__(self, row, series=None):
        self.row, self.series = row, series

    def table(self, cells):
        rows = []
        for number, cell in enumerate(cells):
            noise = NOISE * np.random.default_rng(number).standard_normal()
            row = {"outcome": "finished", "initial_loss": 5.0, "final_loss": 2.0, "largest_attention_logit": 10.0}
            row |= {"gradient_spikes": 0, "loss_spikes": 0} | cell.labels | self.row(**cell.labels)
            counted = row["gradient_spikes"] + (row["gradient_spikes"] > 0) * (number % 2)
            rows.append(row | {
                "final_loss": row["final_loss"] + noise, "held_out_loss": row["final_loss"] + noise,
                "gradient_spikes": counted,
            })  # fmt: skip
        return pd.DataFrame(rows)

    def dataset(self, cell):
        return self.series(cell)


def judged(claim, row=lambda **labels: {}, series=None, at=AT):
    verdict = CLAIMS[claim].judge(Made(row, series), at)
    assert verdict.claim == claim and verdict.scale == at.name
    return verdict.outcome


def grows(better):
    """At the highest rate the largest size fails with standard attention, with QK norm not; or the other way round."""

    def row(attention, learning_rate, size, **_):
        fails = learning_rate == 1e-1 and size == "3 x 64" and attention != better
        return {"final_loss": 3.2} if fails else {}

    return row


def test_qk_norm():
    assert judged("SSP-1", grows("qk_norm")) == "supported"
    assert judged("SSP-1", grows("standard")) == "refuted"
    assert judged("SSP-1") == "inconclusive"


@pytest.mark.parametrize(("highest", "outcome"), [(2e-3, "supported"), (5e-3, "inconclusive")])
def test_a_failing_rate_that_falls_between_two_of_the_ladder(highest, outcome):
    """By the ladder every size fails at 1e-2, without QK norm; the smallest up to 5e-3 converges."""

    def row(attention, learning_rate, size, **_):
        fails = attention == "standard" and learning_rate > (highest if size == "3 x 64" else 5e-3)
        return {"final_loss": 3.2} if fails else {}

    assert judged("SSP-1", row) == outcome


def test_size():
    def row(size, learning_rate, losses, **_):
        return {"final_loss": losses[size] if learning_rate > 1e-2 else 2.0}

    rises = dict(zip(("1 x 16", "2 x 32", "3 x 64"), (2.0, 2.5, 3.0), strict=True))
    falls = dict(zip(rises, reversed(rises.values()), strict=True))
    same = dict.fromkeys(rises, 2.5)
    for losses, outcome in ((rises, "supported"), (falls, "refuted"), (same, "inconclusive")):
        assert judged("SSP-2", partial(row, losses=losses)) == outcome


@pytest.mark.parametrize(
    ("by_norms", "first", "outcome"),
    [(0.9, True, "supported"), (0.1, True, "refuted"), (0.9, False, "inconclusive")],
)
def test_logit_growth(by_norms, first, outcome):
    """Logits grow a hundredfold, in block 0 or the last, and that share of it in the lengths of q and k."""

    def series(cell):
        layers = cell.run.arch.num_layers
        growth = np.linspace(0, np.log(100), 50)[:, None] * np.ones(layers)
        growth[:, 1:] *= 1 if not first else 0.5
        growth[:, :-1] *= 1 if first else 0.5
        if layers == 1 and not first:
            growth[:] = 0
        logit, length = np.exp(growth)[:, :, None], np.exp(by_norms * growth / 2)
        return xr.Dataset({
            "largest_attention_logit": (("step", "layer", "head"), logit),
            "query_norm": (("step", "layer"), length), "key_norm": (("step", "layer"), length),
        })  # fmt: skip

    assert judged("SSP-3", series=series) == outcome


def test_diverging_logits():
    def row(learning_rate, attention, **_):
        above = learning_rate == 1e-1 and attention == "standard"
        return {"largest_attention_logit": 2e4, "final_loss": 3.2} if above else {}

    assert judged("SSP-4", row) == "supported"
    assert judged("SSP-4", lambda **labels: row(**labels) | {"final_loss": 2.0}) == "refuted"
    assert judged("SSP-4") == "inconclusive"


@pytest.mark.parametrize(
    ("ends", "outcome"), [((-20, -1), "supported"), ((-20, -19), "inconclusive"), ((0, 0), "refuted")]
)
def test_drift(ends, outcome):
    def series(cell):
        end = ends[cell.labels["variant"] == "z-loss"]
        mean = np.linspace(0, end, 100) + 0.01 * cell.labels["seed"]
        return xr.Dataset({"logit_mean": ("step", mean)})

    assert judged("SSP-5", series=series) == outcome


def at_high_rates(variant, learning_rate, losses, **_):
    return {"final_loss": losses.get(variant, 2.0) if learning_rate > 1e-2 else 2.0}


def test_warm_up():
    losses = {"warm-up 1/100": 4.0, "warm-up 1/20": 3.0, "warm-up 1/5": 2.0, "coupled decay": 4.0}
    reverse = dict(zip(losses, (2.0, 3.0, 4.0, 2.0), strict=True))
    for of, outcome in ((losses, "supported"), (reverse, "refuted"), (dict.fromkeys(losses, 2.5), "inconclusive")):
        assert judged("SSP-6", partial(at_high_rates, losses=of)) == outcome


def test_depth_against_width():
    for of, outcome in (({"deep": 4.0}, "supported"), ({"wide": 4.0}, "refuted"), ({}, "inconclusive")):
        assert judged("SSP-7", partial(at_high_rates, losses=of)) == outcome


def test_mup():
    """The best rate falls with size, and stays under muP; or the other way round."""
    best = {"1 x 16": 1e-1, "2 x 32": 1e-2, "3 x 64": 1e-3}

    def row(size, learning_rate, variant="standard", moves="standard", **_):
        at = best[size] if variant == moves else 1e-2
        return {"final_loss": 2 + 0.3 * abs(np.log10(learning_rate / at))}

    assert judged("SSP-8", lambda **labels: row(**labels)) in (
        "supported",
        "refuted",
    )  # S differs as the best rate does
    assert judged("SSP-8", lambda **labels: row(**labels, moves="mup_simple")) == "refuted"


@pytest.mark.parametrize(
    ("slope", "gain", "outcome"),
    [(-0.3, 0.5, "supported"), (0.3, 0.5, "refuted"), (-0.3, 0.0, "inconclusive")],
)
def test_epsilon(slope, gain, outcome):
    def series(cell):
        layers, width = cell.run.arch.num_layers, cell.run.arch.d_model
        noise = np.exp(0.05 * np.random.default_rng(cell.run.seed + width).standard_normal())
        rms = (layers * width**2) ** slope * cell.labels["learning_rate"] ** slope * noise
        return xr.Dataset(
            {"matrix_gradient_norm": (("step", "matrix"), np.full((30, 2), rms * 4))},
            coords={"matrix_entries": ("matrix", [16, 16])}, attrs={"outcome": "finished"},
        )  # fmt: skip

    assert judged("SSP-9", lambda epsilon, **_: {"final_loss": 2 + gain * (epsilon == 1e-6)}, series) == outcome


def test_forced_logits():
    assert judged("SSP-10", lambda forced_logit, **_: {"final_loss": 2 + (forced_logit >= 1e3)}) == "supported"
    assert judged("SSP-10", lambda forced_logit, **_: {"final_loss": 2 + (forced_logit >= 1e2)}) == "refuted"
    assert judged("SSP-10", lambda forced_logit, **_: {"final_loss": 2 + (forced_logit >= 1e5)}) == "inconclusive"


def ceiling(**of):
    """Every variant converges up to the rate of that number on the ladder; those not named up to the last but one."""
    ladder = training_stability.high_rates(AT)

    def row(variant, learning_rate, **_):
        good = learning_rate <= ladder[of.get(variant, -2)]
        return {"final_loss": (2.0 if learning_rate < ladder[0] else 2.5) if good else 2.8}

    return row


def test_ceilings():
    higher = {"qk_norm": -3, "qk_fc_norm": -3, "qkv_norm": -1, "qk_norm_cap": -2}
    assert judged("MIS-2", ceiling(**higher)) == judged("MIS-3", ceiling(**higher)) == "supported"
    assert judged("MIS-2", ceiling(**higher | {"qkv_norm": -3})) == "refuted"
    assert judged("MIS-3", ceiling(**higher | {"qk_fc_norm": -1})) == "refuted"
    assert judged("MIS-2", ceiling(qk_norm=-1)) == judged("MIS-3", ceiling(qk_norm=-1)) == "inconclusive"

    def at_no_high_rate(learning_rate, **_):
        return {"final_loss": 2.0 if learning_rate < min(training_stability.high_rates(AT)) else 3.2}

    assert judged("MIS-2", at_no_high_rate) == judged("MIS-3", at_no_high_rate) == "inconclusive"


def test_losses_of_the_variants():
    gain = dict.fromkeys(training_stability.NORMED, 0.2)
    assert judged("MIS-4", lambda variant, **_: {"final_loss": 2 - gain.get(variant, 0)}) == "supported"
    assert judged("MIS-4", lambda variant, **_: {"final_loss": 2 + gain.get(variant, 0)}) == "refuted"
    assert judged("MIS-4", lambda variant, **_: {"final_loss": 2 - 0.2 * (variant != "baseline")}) == "inconclusive"


def test_a_run_converges_that_is_nearer_to_the_best_than_to_a_model_without_context():
    """3.3 nats are the entropy of a byte of the corpus, so that the bar is 2.65 above a best of 2; a start of 5 is no
    part of it, nor another variant's best."""
    losses = {"a": (2.0, 2.6, 2.7, 3.9), "b": (2.6, 2.7, 2.9, 3.0)}
    table = pd.DataFrame(
        [{"variant": name, "final_loss": loss, "outcome": "finished"} for name, all in losses.items() for loss in all]
    )
    assert contextless_loss() == pytest.approx(3.3, abs=0.05)
    assert converged(table, "variant").tolist() == [True, True, False, False, True, True, True, False]
    assert not converged(table.assign(outcome="non_finite_loss"), "variant").any()


def test_a_verdict_in_single_precision_is_written(tmp_path):
    made = Verdict("MIS-1", "supported", "growth", np.float32(2.5), np.float32(np.nan), 3, "3 seeds", "small")
    write({"MIS-1": made}, tmp_path)
    assert read(tmp_path / "verdicts.json", "small")["MIS-1"].value == 2.5


def test_three_corrected_tests_can_reach_their_level():
    """At 3 seeds against 3 the least Holm-corrected p is 0.15, whatever the losses."""
    seeds = {cell.run.seed for cell in training_stability.at_a_low_rate(SCALES["small"])}
    lowest = [permutation_p(np.ones(len(seeds)), np.zeros(len(seeds)))] * len(training_stability.NORMED)
    assert holm(np.array(lowest)).max() < 0.05
    assert not seeds & {cell.run.seed for cell in training_stability.survey(SCALES["small"])}


@pytest.mark.parametrize(
    ("others", "up", "failing", "outcome"),
    [
        (5, 1.1, 3.5, "supported"), (0.5, 0.4, 3.5, "refuted"), (1.5, 1.1, 3.5, "inconclusive"),
        (5, 1.1, 2.0, "inconclusive"), (0.5, 0.4, 2.0, "inconclusive"),
    ],
)  # fmt: skip
def test_output_norms(others, up, failing, outcome):
    ladder = training_stability.rates(AT)

    def series(cell):
        kinds = cell.run.arch.matrices
        grown = [up if kind == "feed_forward.up" else others for kind in kinds]
        factor = np.array(grown) if cell.labels["learning_rate"] == ladder[-1] else np.ones(len(kinds))
        return xr.Dataset({"output_norm": (("step", "matrix", "layer"), np.ones((40, 1, 2)) * factor[None, :, None])})

    losses = {ladder[1]: 2.0, ladder[-1]: failing}
    assert judged("MIS-1", lambda learning_rate, **_: {"final_loss": losses[learning_rate]}, series) == outcome


STACK = dataclasses.replace(SCALES["tiny"], seeds=4, spike_seeds=12)


def spikes(of):
    """Gradient spikes a run by what the labels say."""
    return lambda **labels: {"gradient_spikes": of(labels)}


def unstable(labels):
    return labels["embedding"] in ("vanilla", "detach")


def one_missing(labels):
    return (labels["initialization"], labels["embedding"]) != ("megatron", "scaled")


@pytest.mark.parametrize(
    ("claim", "more", "fewer"),
    [
        ("SNM-15", lambda labels: 5 * unstable(labels), lambda labels: 5 * (not unstable(labels))),
        ("SNM-8", lambda labels: labels["length"], lambda labels: 20 - labels["length"]),
        ("SNM-9", lambda labels: 6 * one_missing(labels), lambda labels: 6 * (not one_missing(labels))),
        ("SNM-14", lambda labels: 5 * unstable(labels), lambda labels: 5 * (not unstable(labels))),
    ],
)
def test_spike_counts(claim, more, fewer):
    assert judged(claim, spikes(more), at=STACK) == "supported"
    assert judged(claim, spikes(fewer), at=STACK) == "refuted"
    assert judged(claim, spikes(lambda labels: 3), at=STACK) == "inconclusive"


def test_one_requirement_that_is_enough_refutes_nothing_but_supports_nothing():
    only_scaled = spikes(lambda labels: 6 * (labels["embedding"] != "scaled"))
    assert judged("SNM-9", only_scaled, at=STACK) == "inconclusive"


@pytest.mark.parametrize(
    ("claim", "method", "gains"), [("SNM-17", "scaled", (0.3, -0.3, 0.0)), ("SNM-10", "layer_norm", (0.3, -0.3, None))]
)
def test_losses_at_the_best_rate(claim, method, gains):
    """Each method has its best rate; there the method is better, worse, or the same. None is known at the edge."""
    at = dataclasses.replace(SCALES["small"], seeds=4)
    rates = sorted({cell.run.optimizer.learning_rate for cell in embedding_scale.rate_runs(at)})

    def row(embedding, learning_rate, gain, vanilla=rates[-3], **_):
        best = vanilla if embedding == "vanilla" else rates[-2]
        return {"final_loss": 2 - gain * (embedding == method) + abs(np.log(learning_rate / best))}

    for gain, outcome in zip(gains, ("supported", "refuted", "inconclusive"), strict=True):
        if gain is not None:
            assert judged(claim, partial(row, gain=gain), at=at) == outcome
            for edge in (1e-5, 1.0):
                assert judged(claim, partial(row, gain=gain, vanilla=edge), at=at) == "inconclusive"


@pytest.mark.parametrize(("best", "outcome"), [(1.0, "supported"), (0.01, "refuted"), (20.0, "refuted")])
def test_optimal_scale(best, outcome):
    table_std = float(embedding_scale.stand_in(STACK).arch.std("embedding")[0])

    def row(multiplier, **_):
        return {"final_loss": 2 + 0.5 * np.log10(multiplier * table_std / best) ** 2}

    assert judged("SNM-12", row, at=STACK) == outcome


@pytest.mark.parametrize(("sign", "outcome"), [(1, "supported"), (-1, "refuted"), (0, "inconclusive")])
def test_shortcut_in_training(sign, outcome):
    def series(cell):
        jump = 1 + sign * (cell.labels["embedding"] == "vanilla") + 0.1 * np.sin(cell.run.seed)
        places = cell.run.arch.num_sublayers + 1
        return xr.Dataset({"shortcut_std": (("step", "place"), np.outer(np.ones(40), [1, *[10**jump] * (places - 1)]))})

    assert judged("SNM-13", series=series, at=STACK) == outcome


@pytest.mark.parametrize(("lead", "outcome"), [(3, "supported"), (None, "refuted")])
def test_lead_of_the_gradient(lead, outcome):
    """Two loss spikes a run, the gradient norm up 3 steps before, or never; without a spike nothing is said."""

    def series(cell, spiking=True):
        rng = np.random.default_rng(cell.run.seed)
        loss, gradient = 2 + 0.1 * rng.standard_normal(400), 1 + 0.05 * rng.standard_normal(400)
        for at in (200, 300) if spiking else ():
            loss[at] = 9
            if lead is not None:
                gradient[at - lead : at + 1] = 5
        return xr.Dataset({"loss": ("step", loss), "gradient_norm": ("step", gradient)})

    assert judged("SNM-11", series=series, at=STACK) == outcome


def test_forms_of_the_fix():
    assert judged("SNM-16", lambda embedding, **_: {"final_loss": 2 + (embedding == "initial_std")}, at=STACK) == (
        "supported"
    )
    assert judged("SNM-16", at=STACK) == "inconclusive"


def test_the_stand_in_propagates_as_the_wide_model():
    """Prediction of the narrow Vanilla against that of the wide one; at d 32 the amplification is 18 % larger."""
    narrow = dataclasses.replace(embedding_scale.stand_in(SCALES["small"]).arch, embedding=embedding_scale.VANILLA)
    wide = dataclasses.replace(narrow, d_model=5120, num_heads=320, embedding="vanilla")
    ours, theirs = (predict(arch, batch_size=2) for arch in (narrow, wide))
    np.testing.assert_allclose(ours.shortcut_std, theirs.shortcut_std, rtol=0.1)
    np.testing.assert_allclose(ours.amplification, theirs.amplification, rtol=0.2)


def test_every_claim_is_whole_and_runs_are_shared():
    for claim in CLAIMS.values():
        assert claim.statement and claim.source and claim.protocol and claim.rule, claim.id
        assert (claim.judge is None) == (not claim.runs)
    assert [claim.id for claim in small_scale_proxies.CLAIMS] == [f"SSP-{number}" for number in range(1, 11)]
    for at in SCALES.values():
        for claim in CLAIMS.values():
            for runs in claim.runs:
                made = runs(at)
                assert len({cell.run for cell in made}) == len(made), (claim.id, at.name)


def recorded(loss):
    """A finished run with that loss, and ones for the rest."""
    ones = np.ones(len(loss))
    return xr.Dataset(
        {name: ("step", values) for name, values in (
            ("loss", loss), ("gradient_norm", ones), ("largest_attention_logit", ones),
            ("update_rms", ones), ("parameter_rms", 4 * ones),
        )},
        attrs={"outcome": "finished", "outcome_step": len(loss), "held_out_loss": 2.5},
    )  # fmt: skip


def test_a_summary_counts_a_diverged_run_as_one_that_never_learnt():
    run = Run(SSP_ARCH, Optimizer(warmup_steps=2), steps=20)
    loss = np.r_[5.0, np.linspace(5, 2, 19)]
    data = recorded(loss)
    found = summary(run, data, 10)
    assert found["initial_loss"] == 5 and found["final_loss"] == pytest.approx(loss[-2:].mean())
    assert found["held_out_loss"] == 2.5 and found["largest_update_ratio"] == 0.25
    failed = summary(run, data.assign_attrs(outcome="non_finite_loss"), 10)
    assert failed["final_loss"] == 5 and failed["held_out_loss"] == np.inf


def test_no_step_is_a_spike_because_there_are_only_two_before_it():
    """After one step of warm-up: the first half of the window waits. Two runs of the map of regimes counted one so."""
    run = Run(SSP_ARCH, Optimizer(warmup_steps=1), steps=200)
    loss = 5 + 0.01 * np.random.default_rng(0).standard_normal(200)
    loss[[2, 120]] += 1
    assert summary(run, recorded(loss), 100)["loss_spikes"] == 1


def test_fresh_seeds_are_none_of_the_maps():
    for at in SCALES.values():
        fresh = [cell.run for cell in loss_spike_runs(at)]
        assert len(set(fresh)) == len(fresh) and not {cell.run for cell in regime_runs(at)} & set(fresh)
        seen = {(cell.labels["setting"], cell.labels["embedding"]) for cell in loss_spike_runs(at)}
        assert {side for pair in MORE_LOSS_SPIKES for side in pair} <= seen


SSP_ARCH = small_scale_runs.base(AT, (1, 32)).arch


def test_cells_are_every_combination_with_their_labels():
    made = cells(Run(SSP_ARCH), {"optimizer.learning_rate": (1e-3, 1e-2), "seed": (0, 1)}, size="small")
    assert [cell.labels for cell in made] == [
        {"learning_rate": rate, "seed": seed, "size": "small"} for rate in (1e-3, 1e-2) for seed in (0, 1)
    ]
    assert made[3].run == Run(SSP_ARCH, made[3].run.optimizer, seed=1) and made[3].run.optimizer.learning_rate == 1e-2


def test_the_command_trains_once_and_judges(tmp_path, capsys):
    arguments = ["claims", "SSP-10", "--scale", "tiny", "--out", str(tmp_path)]
    assert main([*arguments, "--plan"]) == 0
    planned = capsys.readouterr().out
    assert not list(tmp_path.iterdir()) and "SSP-10" in planned and "about 0:" in planned
    assert main(arguments) == 0
    (verdict,) = json.loads((tmp_path / "verdicts.json").read_text())
    assert verdict["claim"] == "SSP-10" and verdict["outcome"] in ("supported", "refuted", "inconclusive")
    assert len(pd.read_csv(tmp_path / verdict["evidence"])) == 10
    files = {path: path.stat().st_mtime_ns for path in (tmp_path / "runs").glob("*.nc")}
    assert len(files) == 10
    capsys.readouterr()
    assert main(arguments) == 0
    assert "10 of 10 runs done" in capsys.readouterr().out
    assert files == {path: path.stat().st_mtime_ns for path in (tmp_path / "runs").glob("*.nc")}


def test_verdicts_of_other_claims_stay(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("verify.claims.evidence.train", lambda *_: 0)
    monkeypatch.setattr("verify.claims.evidence.print_time", lambda *_: None)
    monkeypatch.setattr(command, "Evidence", lambda *_: Made(lambda **labels: {}))
    file = tmp_path / "verdicts.json"

    def read():
        return {row["claim"]: row for row in json.loads(file.read_text())}

    for claim in ("SSP-2", "SNM-12"):
        assert main(["claims", claim, "--scale", "tiny", "--out", str(tmp_path)]) == 0
    assert list(read()) == ["SNM-12", "SSP-2"]
    rows = [row | {"value": None} if row["claim"] == "SNM-12" else row | {"scale": "gpu"} for row in read().values()]
    file.write_text(json.dumps(rows))
    assert main(["claims", "SNM-17", "--scale", "tiny", "--out", str(tmp_path)]) == 0
    assert list(read()) == ["SNM-12", "SNM-17"] and read()["SNM-12"]["value"] is None
    assert [line.split(" | ")[0] for line in (tmp_path / "verdicts.md").read_text().splitlines()[2:]] == [
        "| SNM-12", "| SNM-17",
    ]  # fmt: skip
    for damaged in ("[{}]", "{", "[3]"):
        file.write_text(damaged)
        assert main(["claims", "SNM-17", "--scale", "tiny", "--out", str(tmp_path)]) == 2
        assert f"claims: {file} holds no verdicts of ours; move it away" in capsys.readouterr().err
        assert file.read_text() == damaged


@pytest.mark.parametrize(
    ("claim", "said"),
    [("SSP-99", "claims: unknown value 'SSP-99'; choose one of SNM-1"), ("SNM-1", "claims: SNM-1 is judged by python")],
)
def test_wrong_claims(claim, said, tmp_path, capsys):
    assert main(["claims", claim, "--out", str(tmp_path)]) == 2
    assert said in capsys.readouterr().err
