"""The score path's gain where logits grow, against sampled tokens, queries and keys."""

import numpy as np
import pytest

from theory import notation as s
from theory.score_path import QUERY_GAIN


@pytest.mark.parametrize("variance", [100.0, 400.0])
def test_query_gain_does_not_depend_on_the_stream(variance: float) -> None:
    """d = 32, one query, two keys: softmax's slope and the two Jacobians as they are; 4 standard errors of the mean."""
    rng, d, rho, gain, samples = np.random.default_rng(0), 32, 0.5, 0.4, 20_000
    common = rng.normal(size=(samples, 1, d))
    x = np.sqrt(variance) * (np.sqrt(rho) * common + np.sqrt(1 - rho) * rng.normal(size=(samples, 3, d)))
    query = np.sqrt(gain / d) * rng.normal(size=(samples, d, d))
    key = np.sqrt(gain / d) * rng.normal(size=(samples, d, d))
    by_token = np.einsum("nij,nj->ni", key, x[:, 1] - x[:, 2])
    by_token = np.einsum("nij,ni->nj", query, by_token) / np.sqrt(d)
    gap = np.einsum("ni,ni->n", x[:, 0], by_token)
    other = np.exp(-np.abs(gap))
    slope = other / (1 + other) ** 2
    values = np.sum((x[:, 1] - x[:, 2]) ** 2, axis=1) / variance / d
    found = slope**2 * np.sum(by_token**2, axis=1) * values
    wanted = float(QUERY_GAIN.subs({s.query_gain: gain, s.key_gain: gain, s.correlation: rho}))
    error = found.std() / np.sqrt(samples)
    assert abs(found.mean() - wanted) < 4 * error + 0.1 * wanted  # a tenth: the width
