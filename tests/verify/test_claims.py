"""Each judge on data made to be supported, refuted and inconclusive."""

import numpy as np
import pandas as pd
import pytest

from theory import Architecture
from verify.claims import initialization as at_initialization
from verify.claims import training as in_training

METHODS = ("vanilla", "detach", "layer_norm", "scaled")
ARCHS = {method: Architecture(d_model=1000, num_heads=1, positions="none", embedding=method) for method in METHODS}


@pytest.mark.parametrize(("factor", "outcome"), [(1.002, "supported"), (1.02, "inconclusive"), (1.2, "refuted")])
def test_embedding_std(factor, outcome):
    true = {"vanilla": 0.02, "detach": 0.02, "layer_norm": 1.0, "scaled": 0.4**0.5}  # sqrt(2 / 5000) = 0.02
    stds = {method: np.full(4, std) for method, std in true.items()}
    stds["scaled"] = stds["scaled"] * factor
    assert at_initialization.judge_embedding_std(ARCHS, stds, "").outcome == outcome


def test_norms_hold():
    verdict = at_initialization.judge_norms(Architecture(d_model=64, num_heads=2), 5, "")
    assert verdict.outcome == "supported" and 0.9 < verdict.low < verdict.high < 1


@pytest.mark.parametrize(
    ("above", "swapped", "outcome"),
    [(0, False, "supported"), (1, False, "inconclusive"), (20, False, "refuted"), (0, True, "refuted")],
)
def test_bounds(above, swapped, outcome):
    excess = {"vanilla": 9.0, "detach": 8.9, "layer_norm": 0.1, "scaled": 0.2}
    norms = {method: 1 + np.full((5, 48), value) for method, value in excess.items()}
    bounds = {method: 1 + np.full(48, 3 * value) for method, value in excess.items()}
    norms["vanilla"].flat[:above] = 100
    if swapped:
        bounds["layer_norm"], bounds["vanilla"] = bounds["vanilla"] * 100, bounds["layer_norm"] + 9
    assert at_initialization.judge_bounds(norms, bounds, "").outcome == outcome


@pytest.mark.parametrize(
    ("shallow", "slope", "outcome"), [(4.0, 0.5, "supported"), (1.0, 0.5, "refuted"), (4.0, 0.0, "refuted")]
)
def test_depth_and_width(shallow, slope, outcome):
    rng = np.random.default_rng(0)
    norms = {method: 1.1 + 0.001 * rng.random((3, 16)) for method in METHODS}
    norms["vanilla"][:, :4] = 1 + 0.1 * shallow + 0.01 * rng.random((3, 4))
    widths = np.array([64, 128, 256])
    by_width = 1 + widths[:, None] ** slope * (1 + 0.01 * rng.standard_normal((3, 4)))
    assert at_initialization.judge_depth_and_width(norms, widths, by_width, "").outcome == outcome


@pytest.mark.parametrize(("ratio", "outcome"), [(6.0, "supported"), (1.2, "inconclusive"), (0.5, "refuted")])
def test_amplification(ratio, outcome):
    noise = 1 + 0.02 * np.random.default_rng(0).standard_normal(8)
    amplification = {m: noise * (ratio if m in ("vanilla", "detach") else 1.0) for m in METHODS}
    assert at_initialization.judge_amplification(amplification, "").outcome == outcome


def runs(**columns):
    """Four methods, two rates, four seeds; a column is a function of (method, rate, seed)."""
    keys = [(m, r, s) for m in METHODS for r in (0.01, 0.03) for s in range(4)]
    frame = pd.DataFrame(keys, columns=["method", "rate", "seed"])
    return frame.assign(**{name: [make(*key) for key in keys] for name, make in columns.items()})


@pytest.mark.parametrize(
    ("events", "outcome"),
    [
        (lambda m, r, s: 2 if m in ("vanilla", "detach") and r > 0.02 else 0, "supported"),
        (lambda m, r, s: 0 if m in ("vanilla", "detach") else 3, "refuted"),
        (lambda m, r, s: 0, "inconclusive"),
        (lambda m, r, s: 2 + (m == "vanilla") * (s == 0), "inconclusive"),
        (lambda m, r, s: 5 if m in ("vanilla", "detach") else int(s == 0), "inconclusive"),
    ],
)
def test_spikes(events, outcome):
    assert in_training.judge_spikes(runs(loss_spikes=events), "").outcome == outcome


@pytest.mark.parametrize(
    ("loss", "outcome"),
    [
        (lambda m, r, s: 2.0 + 0.01 * s - 0.3 * (m == "scaled") * (r > 0.02), "supported"),
        (lambda m, r, s: 2.0 + 0.01 * s - 0.3 * (m == "vanilla"), "refuted"),
        (lambda m, r, s: 2.0 + 0.01 * s, "inconclusive"),
        (
            lambda m, r, s: np.inf if m == "vanilla" and r > 0.02 else 2.0 + 0.01 * s - 0.3 * (m == "scaled"),
            "supported",
        ),
    ],
)
def test_rates(loss, outcome):
    assert in_training.judge_rates(runs(held_out_loss=loss), "").outcome == outcome
