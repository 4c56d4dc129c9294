"""Predictions for sequences too long to follow token by token: from short ones, by how evenly attention spreads.

Cut into shorter sequences, a batch of the same tokens differs in one thing: how many tokens attention averages over.
What that does to a second moment is smooth in the participation p, the mean over positions of E sum_s A_ts^2 (1 for a
token that sees itself alone, H_T / T for even attention): every square is fitted as c_0 + c_1 p + c_2 p^2 at short
lengths and read off at the long one's p, which is nearer to 0.
"""

from collections.abc import Callable
from functools import lru_cache

import numpy as np

from theory.softmax_overlap import softmax_overlap

FOLLOWED = 256
"""the longest sequence that is followed token by token"""
_LENGTHS = (32, 64, 128, FOLLOWED)


@lru_cache(maxsize=256)
def participation(variance: float, seq_len: int) -> float:
    """Mean over positions t of E sum_s A_ts^2, A_t the softmax of t independent Gaussian logits of that variance."""
    positions = np.unique(np.geomspace(1, seq_len, 40).round())
    logits = np.full((1, 1), max(variance, 1e-9))
    at = [float(softmax_overlap(logits, int(t))[0, 0]) for t in positions]
    every = np.arange(1, seq_len + 1)
    return float(np.exp(np.interp(np.log(every), np.log(positions), np.log(at))).mean())


def extrapolate(
    squares: Callable[[int], dict[str, np.ndarray]], variance: float, seq_len: int
) -> dict[str, np.ndarray]:
    """Squares at `seq_len` from those of a batch of as many tokens at shorter lengths.

    squares: of the length. variance: of the attention logits. All non-negative; where the fit is not, a tenth of what
    the longest one followed gives.
    """
    followed = [squares(length) for length in _LENGTHS]
    p = np.array([participation(variance, length) for length in (*_LENGTHS, seq_len)])
    powers = p[:, None] ** np.arange(3)
    found = {}
    for name in followed[0]:
        y = np.array([each[name] for each in followed])
        scale = np.maximum(y[-1], np.finfo(float).tiny)
        fit = powers[-1] @ np.linalg.lstsq(powers[:-1], y / scale)[0]
        found[name] = np.maximum(fit, 0.1) * scale * (y[-1] > 0)
    return found
