"""Random Gram matrices: what the weights of one finite network make of a kernel over its tokens.

Rows u_t = W^T h_t of Gaussian weights with d columns have the Gram matrix of a Wishart draw with d degrees, whatever
else the network is; a residual stream's is a Markov chain of such draws (Li, Nica and Roy, arXiv 2206.02768, who
take its limit of shaped activations and proportional depth; here it is drawn at its true width).
"""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Draws:
    """The random numbers of an even number of networks, float32.

    Those of the second half are mirror images of the first half's: they have the negatives of `odd` draws and the same
    `even` ones, so that in the mean of both all odd orders cancel. `own` draws are each network's own. All shapes begin
    with the number of networks.
    """

    shared: np.random.Generator
    alone: np.random.Generator

    @staticmethod
    def of(seed: np.random.SeedSequence) -> "Draws":
        shared, alone = (np.random.Generator(np.random.SFC64(own)) for own in seed.spawn(2))
        return Draws(shared, alone)

    def odd(self, *shape: int) -> np.ndarray:
        drawn = self._half(shape)
        return np.concatenate([drawn, -drawn])

    def even(self, *shape: int) -> np.ndarray:
        drawn = self._half(shape)
        return np.concatenate([drawn, drawn])

    def own(self, *shape: int) -> np.ndarray:
        return self.alone.standard_normal(shape, dtype=np.float32)

    def chi(self, degrees: np.ndarray, networks: int) -> np.ndarray:
        """Roots of chi-squares of these degrees [k], even, [networks, k]."""
        drawn = np.sqrt(self.shared.chisquare(degrees, (networks // 2, len(degrees)))).astype(np.float32)
        return np.concatenate([drawn, drawn])

    def _half(self, shape: tuple[int, ...]) -> np.ndarray:
        return self.shared.standard_normal((shape[0] // 2, *shape[1:]), dtype=np.float32)


def root(kernel: np.ndarray) -> np.ndarray:
    """Z with Z Z^T = kernel, [..., T, T]; of what rounding or averaging has left not quite positive, the nearest.

    Each token gets some roundings of its own size, which matters where tokens differ by no more than that.
    """
    raised = kernel.astype(np.float64)  # in which LAPACK's factorisation is the faster one, too
    diagonal = np.einsum("...tt->...t", raised)
    diagonal += 8 * np.finfo(kernel.dtype).eps * diagonal.mean(axis=-1, keepdims=True)
    try:
        return np.linalg.cholesky(raised).astype(kernel.dtype)
    except np.linalg.LinAlgError:
        if kernel.ndim > 2:
            return np.stack([root(each) for each in kernel])
    values, vectors = np.linalg.eigh(kernel)
    factor = vectors * np.sqrt(np.maximum(values, 0))
    own = np.maximum(np.diag(kernel), 0) / np.maximum((factor**2).sum(axis=-1), np.finfo(kernel.dtype).tiny)
    return factor * np.sqrt(own)[:, None]


def wishart_root(draws: Draws, count: int, size: int, degrees: int) -> np.ndarray:
    """B float32[count, size, min(size, degrees)]: B B^T is Wishart of that many degrees, mean the identity."""
    scale = np.float32(1 / np.sqrt(degrees))
    if degrees <= size:
        return draws.even(count, size, degrees) * scale
    factor = np.tril(draws.even(count, size, size), -1)
    diagonal = np.arange(size)
    factor[..., diagonal, diagonal] = draws.chi(degrees - diagonal, count)
    return factor * scale


def enlarged(units: np.ndarray, mean: np.ndarray, width: int) -> np.ndarray:
    """Gram matrix over `width` independent units, of mean [n, T, T], from k <= width of them [n, T, k].

    What those differ by from the mean is made less, so that all covariances are those of the whole.
    """
    share = np.float32(np.sqrt(units.shape[-1] / width))
    return units @ units.mT * (share / units.shape[-1]) + mean * (1 - share)


def random_rows(draws: Draws, rows: np.ndarray, d_model: int, span: int) -> tuple[np.ndarray, np.ndarray]:
    """h_t W for rows h [n, T, k] and a Gaussian W of d_model columns, seen from a frame of `span` <= d_model axes.

    Returns their coordinates along the frame [n, T, span] and a root of what their Gram matrix has beside it
    [n, T, k or 0], both so scaled that the two Gram matrices add up to h h^T on average.

    A mirror image's coordinates are the negatives.
    """
    n, _, inner = rows.shape
    outside = d_model - span
    weights = draws.odd(n, inner, span) * np.float32(d_model**-0.5)
    beside = rows[..., :0]
    if outside:
        beside = rows @ wishart_root(draws, n, inner, outside) * np.float32((outside / d_model) ** 0.5)
    return rows @ weights, beside
