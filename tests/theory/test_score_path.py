"""What near-ties of growing logits are worth, and what picking one token keeps, against sampled tokens and heads."""

import numpy as np
import pytest

from theory import notation as s
from theory.activation import ACTIVATIONS
from theory.dual_activation import dual_activation
from theory.random_attention import causal_softmax, rotate
from theory.score_path import KEPT, KEY_GAIN, KEY_GAIN_UNDER_CAP, QUERY_GAIN, TURNED_KEY_GAIN

D, RHO, GAIN, SAMPLES = 32, 0.5, 0.4, 20_000
NUMBERS = {s.query_gain: GAIN, s.key_gain: GAIN, s.correlation: RHO}


@pytest.mark.parametrize("variance", [100.0, 400.0])
@pytest.mark.parametrize("angle", [0.0, 1.2])
def test_gains_do_not_depend_on_the_stream(variance: float, angle: float) -> None:
    """d = 32, one query, two keys, of which the first is turned by an angle in every plane, as RoPE turns it.

    Softmax's slope and the Jacobians of the gap are as they are; 4 standard errors of the mean and a tenth, the width.
    """
    rng = np.random.default_rng(0)
    common = rng.normal(size=(SAMPLES, 1, D))
    x = np.sqrt(variance) * (np.sqrt(RHO) * common + np.sqrt(1 - RHO) * rng.normal(size=(SAMPLES, 3, D)))
    query, key = (np.sqrt(GAIN / D) * rng.normal(size=(SAMPLES, D, D)) for _ in range(2))
    turn = np.kron([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]], np.eye(D // 2))
    to_first, to_second = (turn @ key).mT @ query / np.sqrt(D), key.mT @ query / np.sqrt(D)
    at_first, at_second = (np.einsum("nij,nj->ni", by, x[:, 0]) for by in (to_first, to_second))
    by_query = np.einsum("nij,ni->nj", to_first, x[:, 1]) - np.einsum("nij,ni->nj", to_second, x[:, 2])
    other = np.exp(-np.abs(np.einsum("ni,ni->n", x[:, 0], by_query)))
    values = np.sum((x[:, 1] - x[:, 2]) ** 2, axis=1) / variance / D
    worth = (other / (1 + other) ** 2) ** 2 * values
    turned = float(TURNED_KEY_GAIN.subs(NUMBERS | {s.turned: 1 - np.cos(angle)}))
    by_keys = np.sum(at_first**2 + at_second**2, axis=1)
    wanted = {"keys": (worth * by_keys, turned)}
    if angle == 0:
        assert turned == pytest.approx(float(KEY_GAIN.subs(NUMBERS)), rel=1e-12)
        wanted["query"] = worth * np.sum(by_query**2, axis=1), float(QUERY_GAIN.subs(NUMBERS))
    for name, (found, goal) in wanted.items():
        assert abs(found.mean() - goal) < 4 * found.std() / np.sqrt(SAMPLES) + 0.1 * goal, name


@pytest.mark.parametrize("rope", [False, True])
def test_picking_keeps_half_of_a_difference(rope: bool) -> None:
    """Of the first two tokens' mean square difference, and no later token attends to itself more; 5 standard errors."""
    rng, heads = np.random.default_rng(1), 20_000
    x = 30 * (rng.normal(size=(heads, 1, D)) + 0.3 * rng.normal(size=(heads, 4, D)))
    q, k = x @ rng.normal(size=(heads, D, D)), x @ rng.normal(size=(heads, D, D))
    q, k = (rotate(q), rotate(k)) if rope else (q, k)
    weights = causal_softmax(q @ k.mT / np.sqrt(D))
    out = weights @ x
    kept = np.sum((out[:, 0] - out[:, 1]) ** 2, axis=1) / np.sum((x[:, 0] - x[:, 1]) ** 2, axis=1)
    assert abs(kept.mean() - float(KEPT)) < 5 * kept.std() / np.sqrt(heads)
    own = np.mean(np.diagonal(weights, axis1=1, axis2=2), axis=0)
    assert np.all(own[2:] < own[1] - 0.02) and own[1] == pytest.approx(0.5, abs=0.02)


@pytest.mark.parametrize("cap", [1.0, 4.0])
def test_capped_gains_do_not_depend_on_the_stream(cap: float) -> None:
    """d = 32, one query, two keys, a stream of variance 1000; 4 standard errors and a tenth, the width, as above."""
    rng, variance, many = np.random.default_rng(2), 1000.0, 400_000
    common = rng.normal(size=(many, 1, D))
    x = np.sqrt(variance) * (np.sqrt(RHO) * common + np.sqrt(1 - RHO) * rng.normal(size=(many, 3, D)))
    # of a query's and a key's Gaussian matrices only the products with the tokens are drawn
    query = np.sqrt(GAIN / D) * np.linalg.norm(x[:, :1], axis=2) * rng.normal(size=(many, D))
    key = np.sqrt(GAIN) * np.sqrt(variance) * (
        np.sqrt(RHO) * rng.normal(size=(many, 1, D)) + np.sqrt(1 - RHO) * rng.normal(size=(many, 2, D))
    )  # fmt: skip
    bent = np.tanh(np.einsum("ni,nki->nk", query, key) / np.sqrt(D) / cap)
    share = 1 / (1 + np.exp(cap * (bent[:, 1] - bent[:, 0])))
    slopes = ((share * (1 - share))[:, None] * (1 - bent**2)) ** 2
    by_query = GAIN * np.mean(query**2, axis=1)  # |W_K^T q|^2 / d over the key's matrix
    values = np.sum((x[:, 1] - x[:, 2]) ** 2, axis=1) / variance / D
    found = slopes.sum(axis=1) * by_query * values
    wanted = float(KEY_GAIN_UNDER_CAP.subs({s.query_gain: GAIN, s.key_gain: GAIN, s.correlation: RHO, s.cap: cap}))
    assert abs(found.mean() - wanted) < 4 * found.std() / np.sqrt(many) + 0.1 * wanted


def test_like_tokens_under_a_cap_are_averaged_evenly() -> None:
    """Two tokens, a cap of 4, 200 heads a block, output norms: 1 - rho falls like n^(-3/8), a little steeper before.

    Where attention picks one token instead it is -1/4 (`benchmarks/near_ties.py`).
    """
    rng, kernel, apart = np.random.default_rng(3), 0.4 * np.eye(2), []
    for _ in range(2048):
        apart.append(1 - kernel[0, 1] / np.sqrt(kernel[0, 0] * kernel[1, 1]))
        q, k = (np.linalg.cholesky(kernel) @ rng.normal(size=(200, 2, D)) for _ in range(2))
        weights = causal_softmax(4 * np.tanh(0.4 * q @ k.mT / np.sqrt(D) / 4))
        out = np.mean(weights @ kernel @ weights.mT, axis=0)
        kernel = kernel + out / np.sqrt(np.outer(np.diag(out), np.diag(out)))
        kernel = kernel + 2 * dual_activation(ACTIVATIONS["relu"], kernel)[0] / kernel[1, 1]
    fall = np.log(apart[2047] / apart[511]) / np.log(4)
    assert fall == pytest.approx(-3 / 8, abs=0.025)
