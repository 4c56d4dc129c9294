"""Random Gram matrices: what the weights of one finite network make of a kernel over its tokens.

Rows u_t = W^T h_t of Gaussian weights with d columns have the Gram matrix of a Wishart draw with d degrees, whatever
else the network is; a residual stream's is a Markov chain of such draws (Li, Nica and Roy, arXiv 2206.02768, who
take its limit of shaped activations and proportional depth; here it is drawn at its true width).
"""

import numpy as np


def root(kernel: np.ndarray) -> np.ndarray:
    """Z with Z Z^T = kernel, [..., T, T].

    A kernel that rounding or averaging has left not quite positive gets its diagonal and the nearest correlations.
    """
    diagonal = np.eye(kernel.shape[-1], dtype=kernel.dtype) * np.trace(kernel, axis1=-2, axis2=-1)[..., None, None]
    smallest = np.finfo(kernel.dtype).eps
    for share in (smallest, 1e-2 / kernel.shape[-1]):
        try:
            factor = np.linalg.cholesky(kernel + np.asarray(share, kernel.dtype) * diagonal)
        except np.linalg.LinAlgError:
            continue
        return factor if share == smallest else factor * _ratio(kernel, factor)
    values, vectors = np.linalg.eigh(kernel)
    factor = vectors * np.sqrt(np.maximum(values, 0))[..., None, :]
    return factor * _ratio(kernel, factor)


def _ratio(kernel: np.ndarray, factor: np.ndarray) -> np.ndarray:
    """What each row of the factor must be multiplied by to have the kernel's diagonal."""
    own = np.maximum(np.einsum("...tt->...t", kernel), 0) / np.maximum((factor**2).sum(axis=-1), 1e-37)
    return np.sqrt(own)[..., None]


def wishart_root(rng: np.random.Generator, count: int, size: int, degrees: int) -> np.ndarray:
    """B float32[count, size, min(size, degrees)]: B B^T is Wishart of that many degrees, mean the identity."""
    scale = np.float32(1 / np.sqrt(degrees))
    if degrees <= size:
        return rng.standard_normal((count, size, degrees), dtype=np.float32) * scale
    factor = np.tril(rng.standard_normal((count, size, size), dtype=np.float32), -1)
    diagonal = np.arange(size)
    factor[..., diagonal, diagonal] = np.sqrt(rng.chisquare(degrees - diagonal, (count, size)))
    return factor * scale


def random_rows(
    rng: np.random.Generator, kernel: np.ndarray, features: int | None, d_model: int, span: int
) -> tuple[np.ndarray, np.ndarray]:
    """Rows u_t of d_model coordinates with E[u u^T] = kernel [n, T, T], seen from a frame of `span` <= d_model axes.

    Returns their coordinates along the frame [n, T, span] and a root of what their Gram matrix has beside it
    [n, T, T or 0], both so scaled that the two Gram matrices add up to the kernel on average. features: how many
    Gaussian features a row is made of, whose own Gram matrix varies about the kernel; None where the kernel is exact.

    The second half of the networks has the first half's draws with the other sign along the frame, so that all odd
    orders cancel.
    """
    n, tokens, _ = kernel.shape
    outside, factor = d_model - span, root(kernel)
    if features is not None:
        factor = factor @ _mirrored(wishart_root(rng, n // 2, tokens, features))
    inner = factor.shape[-1]
    rows = rng.standard_normal((n // 2, inner, span), dtype=np.float32) * np.float32(d_model**-0.5)
    along, beside = factor @ _mirrored(rows), kernel[..., :0]
    along[n // 2 :] *= -1
    if outside:
        shape = wishart_root(rng, n // 2, inner, outside) * np.float32((outside / d_model) ** 0.5)
        beside = factor @ _mirrored(shape)
    return along, beside


def _mirrored(draws: np.ndarray) -> np.ndarray:
    return np.concatenate([draws, draws])
