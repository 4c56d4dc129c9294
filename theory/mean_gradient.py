"""The mean of the gradient along the tokens, where no last norm takes it out or a tied table puts it back.

dL/dx_t = sum_u B_tu x_u, a part along the rows of a tied table, and a random rest.
"""

from dataclasses import dataclass

import numpy as np

from theory.addition import Addition
from theory.architecture import Architecture
from theory.stream import Norm, OwnRow, Stream, diagonal, mean_share, outer, with_diagonal
from theory.sublayers import block_product, realized, sandwich
from theory.token_batch import TokenBatch


@dataclass(frozen=True)
class Mean:
    """Of dL/dx_t what runs along tokens and rows of the table, sum_u tokens_tu x_u + rows_t r_t, beside a random rest.

    tokens: [n, 1, sequences, T, T]. rows: [n, S], r_t the token's own row over its mean length; 0 of untied tables.
    """

    tokens: np.ndarray
    rows: np.ndarray

    def times(self, factor: float) -> "Mean":
        return Mean(self.tokens * np.float32(factor), self.rows * np.float32(factor))

    def before(self, norm: Norm, row: np.ndarray) -> "Mean":
        """Before a norm; row: amplitude of each token's row after it, [n, S]."""
        radial = (self.rows * row / norm.divisor**2).reshape(len(row), 1, self.tokens.shape[2], -1, 1)
        along = norm.along_before(self.tokens) - np.eye(self.tokens.shape[-1], dtype=np.float32) * radial
        return Mean(along, self.rows / norm.divisor)


def with_means(
    mean: Mean, returned: list[np.ndarray], addition: Addition, shortcut: float, batch: TokenBatch
) -> tuple[np.ndarray, Mean]:
    """What the means that the parts return add to the gradient's kernel, and the mean before the addition."""
    alone, kernel = mean.tokens * np.float32(shortcut**2), addition.kernel
    assert kernel is not None
    if addition.kept is not None:
        alone = alone * realized(mean.tokens, addition.kept, kernel * np.float32(shortcut))
    parts, rows = np.sum(returned, axis=0), mean.rows * np.float32(shortcut)
    crossed = sandwich(alone + parts, kernel) - sandwich(alone, kernel)
    met = addition.row[:, :, None] * batch.same_input * rows[:, None, :]
    with_rows = block_product(parts, met[:, None])[:, 0]
    return crossed + with_rows + with_rows.mT, Mean(alone + parts, rows)


def at_outputs(arch: Architecture, addition: Addition, mean: np.ndarray) -> list[np.ndarray]:
    """The mean gradient along each part's outputs, before a norm on them."""
    _, branch, _ = arch.factors(addition.layer)
    arriving, found = mean * np.float32(branch**2), []
    for number, (sublayer, _, output) in enumerate(addition.parts):
        if output is not None:
            found.append(output.along_before(arriving))
        elif addition.kept is not None:
            expected = sublayer.expected(arch, addition.layer) * np.float32(branch)
            found.append(arriving * realized(mean, addition.met[number], expected))
        else:
            found.append(arriving)
    return found


def through_output_norm(addition: Addition, number: int, mean: np.ndarray, jacobian: np.ndarray) -> np.ndarray:
    """What a norm on a part's outputs makes of the kernel of sum_u B_tu x'_u, but for what `jacobian` makes of it."""
    norm, total, level = addition.parts[number][2], addition.total, addition.level
    assert norm is not None and total is not None and level is not None
    whole, left = _projected(mean, total, level, addition.met[number], norm.tokens.kernel)
    return left * outer(1 / norm.divisor) - whole * jacobian


def before_embedding_norm(
    arch: Architecture, stream: Stream, row: OwnRow, gradient: np.ndarray, mean: Mean | None
) -> np.ndarray:
    """What the embedding's norm leaves of the kernel at the first place, but for its divisor; see `_projected`."""
    left_of_random = np.float32(1 - 1 / arch.d_model - mean_share(arch, arch.d_model))
    if mean is None:
        return gradient * left_of_random
    rows = with_diagonal(stream.without_mean(arch) - row.beside, row.size)
    level = stream.rows[..., 0] * np.float32(arch.norm == "layer_norm")
    whole, left = _projected(mean.tokens, stream.kernel, level, rows, rows)
    return (gradient - whole) * left_of_random + left


def _projected(
    mean: np.ndarray, total: np.ndarray, level: np.ndarray, met: np.ndarray, outputs: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """The kernel of m_t = sum_u B_tu x_u, and of what is left of it without its part along y_t, all of which goes.

    total, outputs: kernels of the x_u and of the y_t. met: y_t . x_u / d. level: mean over the coordinates of x_u,
    which goes too. Of a random direction 1 / d goes.
    """
    whole = sandwich(mean, total)
    level = (mean @ level.reshape(*mean.shape[:-1], 1)).reshape(level.shape)
    crossed = block_product(mean, met.mT[:, None])[:, 0]
    along = diagonal(crossed) / np.maximum(diagonal(outputs), np.finfo(np.float32).tiny)
    lost = crossed * along[:, None, :]
    return whole, whole - outer(level) - lost - lost.mT + outputs * outer(along)
