"""Four numbers of an attention matrix against the matrix itself."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from theory import Architecture
from theory.positions import alibi_slopes
from theory.token_mixing import token_mixing


def _mean(kernel: np.ndarray) -> tuple[float, float]:
    """Mean over the diagonal, and over what is beside it, of one of equally many tokens' kernel."""
    length = len(kernel)
    return np.trace(kernel) / length, (kernel.sum() - np.trace(kernel)) / max(length * (length - 1), 1)


@given(st.integers(2, 40), st.floats(0, 1), st.sampled_from(["none", "alibi"]))
def test_the_map_is_the_matrix_s(length: int, rho: float, positions: str) -> None:
    arch = Architecture(seq_len=length, positions=positions, num_heads=4)
    mixing = token_mixing(arch)
    distance = np.arange(length)[:, None] - np.arange(length)
    slopes = alibi_slopes(4) if positions == "alibi" else np.zeros(1)
    weights = np.where(distance >= 0, np.exp(-slopes[:, None, None] * distance), 0)
    weights /= weights.sum(axis=2, keepdims=True)
    kernel = (1 - rho) * np.eye(length) + rho
    forward = np.mean([a @ kernel @ a.T for a in weights], axis=0)
    backward = np.mean([a.T @ kernel @ a for a in weights], axis=0)
    for found, wanted in ((mixing.forward(rho), forward), (mixing.backward(rho), backward)):
        np.testing.assert_allclose(np.array(found, float), _mean(wanted), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("length", [2, 7, 64])
def test_what_is_kept_has_the_eigenvalue_one(length: int) -> None:
    mixing = token_mixing(Architecture(seq_len=length))
    assert mixing.forward(1) == (1, 1)
    own, across = mixing.backward(mixing.kept)
    assert own == 1 and across == mixing.kept


def test_one_token_has_no_other_to_be_like() -> None:
    mixing = token_mixing(Architecture(seq_len=1))
    assert mixing.kept == 0 and mixing.backward(mixing.kept) == (1, 0)
