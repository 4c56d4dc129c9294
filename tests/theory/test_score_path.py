"""What near-ties of growing logits are worth, and what picking one token keeps, against sampled tokens and heads."""

import numpy as np
import pytest

from theory import notation as s
from theory.random_attention import causal_softmax, rotate
from theory.score_path import KEPT, KEY_GAIN, QUERY_GAIN, TURNED_KEY_GAIN

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
