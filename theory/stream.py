"""The residual stream of some networks, what is added to it, and the norms, as rows and Gram matrices over tokens."""

from dataclasses import dataclass

import numpy as np

from theory.architecture import Architecture
from theory.embedding import embedding
from theory.gram import Draws, random_rows, root
from theory.positions import sinusoids
from theory.token_batch import TokenBatch


def outer(values: np.ndarray) -> np.ndarray:
    """v_t v_t' of values [n, S]."""
    return values[:, :, None] * values[:, None, :]


def pair_sum(values: np.ndarray) -> np.ndarray:
    """v_t + v_t' of values [n, S]."""
    return values[:, :, None] + values[:, None, :]


def diagonal(kernel: np.ndarray) -> np.ndarray:
    """[n, S] of a kernel [n, S, S]."""
    return np.einsum("nss->ns", kernel)


def with_diagonal(kernel: np.ndarray, values: np.ndarray) -> np.ndarray:
    """A kernel [n, S, S] with values [n, S] on its diagonal."""
    kernel = kernel.copy()
    diagonal(kernel)[...] = values
    return kernel


def blocks(kernel: np.ndarray, sequences: int) -> np.ndarray:
    """[n, 1, sequences, T, T], a kernel's entries within each sequence."""
    n, seq_len = len(kernel), kernel.shape[-1] // sequences
    return np.einsum("nstsu->nstu", kernel.reshape(n, sequences, seq_len, sequences, seq_len))[:, None]


def cosine(products: np.ndarray, first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Between vectors of these products and squared lengths; 0 where one is nothing."""
    tiny = np.finfo(np.float32).tiny
    return np.clip(products / np.sqrt(np.maximum(first, tiny)) / np.sqrt(np.maximum(second, tiny)), -1, 1)


def taken(lost: np.ndarray) -> np.ndarray:
    """Which part of what lies along a direction to take away, so that this share of its variance is lost."""
    return 1 - np.sqrt(1 - np.minimum(lost, 1))


@dataclass(frozen=True)
class Stream:
    """Tokens as they enter a sub-layer or lie in the residual stream.

    rows: of each token over sqrt(d_model), along a frame of at most d_model axes that spans them, [n, S, axes]. The
    first axis is that of equal coordinates, so that its entry is the mean over the coordinates, which LayerNorm takes
    out; the others are as random as the weights. kernel: K [n, S, S], their Gram matrix.
    """

    rows: np.ndarray
    kernel: np.ndarray

    def norm(self, arch: Architecture) -> "Norm":
        """The tokens after the norm, with what its Jacobian needs."""
        rows, kernel = self.rows, self.without_mean(arch)
        if arch.norm == "layer_norm":
            rows = np.concatenate([np.zeros_like(rows[..., :1]), rows[..., 1:]], axis=-1)
        divisor = np.sqrt(diagonal(kernel) + np.float32(arch.norm_epsilon))
        return Norm(Stream(rows / divisor[..., None], kernel * outer(1 / divisor)), divisor)

    def without_mean(self, arch: Architecture) -> np.ndarray:
        """The kernel of what the norm leaves of the tokens before it divides."""
        return self.kernel - outer(self.rows[..., 0]) if arch.norm == "layer_norm" else self.kernel

    def times(self, factor: float) -> "Stream":
        return self if factor == 1 else Stream(self.rows * np.float32(factor), self.kernel * np.float32(factor**2))

    def plus(self, added: "Added") -> "Stream":
        """The stream after an addition."""
        rows = self.rows + added.along
        if not added.beside.shape[-1]:
            return Stream(rows, rows @ rows.mT)
        first, others = rows[..., :1], rows[..., 1:]
        kernel = others @ others.mT + added.beside @ added.beside.mT
        return Stream(np.concatenate([first, root(kernel)], axis=-1), kernel + first @ first.mT)

    def observed_variance(self, arch: Architecture, batch: TokenBatch) -> float:
        """Variance about the mean over the whole batch, which is what one measures."""
        tokens = batch.size * arch.seq_len
        return batch.trace(self.kernel) / tokens - batch.total(outer(self.rows[..., 0])) / tokens**2


@dataclass(frozen=True)
class Added:
    """What is added to a stream: its rows along the stream's frame, and a root of what their Gram matrix has beside."""

    along: np.ndarray
    beside: np.ndarray

    @staticmethod
    def draw(draws: Draws, rows: np.ndarray, arch: Architecture, frame: int) -> "Added":
        """h_t W for rows h [n, S, k] and Gaussian weights W with d_model columns."""
        return Added(*random_rows(draws, rows, arch.d_model, frame))

    @property
    def size(self) -> np.ndarray:
        """Mean square of each token's coordinates, [n, S]."""
        return np.sum(self.along**2, axis=-1) + np.sum(self.beside**2, axis=-1)

    @property
    def kernel(self) -> np.ndarray:
        return self.along @ self.along.mT + self.beside @ self.beside.mT

    def times(self, factor: float) -> "Added":
        return self if factor == 1 else Added(self.along * np.float32(factor), self.beside * np.float32(factor))

    def normed(self, arch: Architecture) -> tuple["Added", "Norm"]:
        """The same after the norm, and the norm."""
        along, beside = self.along, self.beside
        if arch.norm == "layer_norm":
            along = np.concatenate([np.zeros_like(along[..., :1]), along[..., 1:]], axis=-1)
        divisor = np.sqrt(Added(along, beside).size + np.float32(arch.norm_epsilon))
        along, beside = along / divisor[..., None], beside / divisor[..., None]
        return Added(along, beside), Norm(Stream(along, Added(along, beside).kernel), divisor)


@dataclass(frozen=True)
class Norm:
    """tokens: after the norm. divisor: what it divides each token by, [n, S]."""

    tokens: Stream
    divisor: np.ndarray

    def jacobian(
        self,
        arch: Architecture,
        width: int | None = None,
        radial: np.ndarray | float = 1.0,
        mean: np.ndarray | float = 1.0,
    ) -> np.ndarray:
        """What the norm makes of the kernel of a gradient that returns through it: a factor [n, S, S].

        1 / (divisor divisor') times what is left of the gradient's variance without its parts along the token and along
        the mean. radial, mean: the variance there is along these two, [n, S] or a number, 1 for a random direction.
        width: coordinates of a token; None: d_model.
        """
        width = arch.d_model if width is None else width
        return free(self.tokens.kernel, arch, width, radial, mean) * outer(1 / self.divisor)

    def along_before(self, mean: np.ndarray) -> np.ndarray:
        """A mean gradient along the normed tokens, brought back before the norm; see `norm_mean`."""
        sequences = mean.shape[2]
        divisor = self.divisor.reshape(len(self.divisor), 1, sequences, -1, 1)
        return norm_mean(mean, blocks(self.tokens.kernel, sequences), divisor)


def norm_mean(mean: np.ndarray, kernel: np.ndarray, divisor: np.ndarray) -> np.ndarray:
    """B' of the gradient before a norm, sum_u B'_tu x_u, from B of that after it, sum_u B_tu x_u / divisor_u.

    kernel: of the normed tokens within each sequence. All [n, 1 or heads, sequences, T, T], divisor [..., T, 1].
    """
    radial = np.sum(mean * kernel, axis=-1, keepdims=True)
    return mean / (divisor * divisor.mT) - np.eye(mean.shape[-1], dtype=mean.dtype) * radial / divisor**2


def free(
    kernel: np.ndarray,
    arch: Architecture,
    width: int,
    radial: np.ndarray | float = 1.0,
    mean: np.ndarray | float = 1.0,
) -> np.ndarray:
    """What a norm's projectors leave of a gradient's variance; kernel: of the normed tokens. See `Norm.jacobian`."""
    retained = diagonal(kernel)  # 1 but for the norm's epsilon
    radial, mean = (np.broadcast_to(np.float32(share), retained.shape) for share in (radial, mean))
    along = radial * retained
    lost = pair_sum(along) - outer(np.sqrt(radial)) * kernel**2
    return 1 - lost / width - outer(np.sqrt(mean)) * np.float32(mean_share(arch, width))


def mean_share(arch: Architecture, width: int) -> float:
    """Which share of a random direction the norm takes out with the mean."""
    return 1 / width if arch.norm == "layer_norm" else 0.0


@dataclass(frozen=True)
class OwnRow:
    """What of the tokens is their own rows of the embedding table.

    size: [n, S], mean square of a coordinate of the row's part in the stream. beside: [n, S, S], kernel of all that is
    in the stream beside the rows, without the products of different parts of it, whose mean is 0. apart: [n, S, S], d
    times these products' variance, float64 for what explodes. length: [n, S], of the row in the table over what it is
    on average.
    """

    size: np.ndarray
    beside: np.ndarray
    apart: np.ndarray
    length: np.ndarray

    def times(self, factor: float) -> "OwnRow":
        square = np.float32(factor**2)
        return OwnRow(self.size * square, self.beside * square, self.apart * factor**4, self.length)

    def over(self, divisor: np.ndarray) -> "OwnRow":
        """After a norm that divides by that, [n, S]."""
        apart = self.apart * outer(1 / divisor.astype(np.float64) ** 2)
        return OwnRow(self.size / divisor**2, self.beside * outer(1 / divisor), apart, self.length)

    def plus(self, kernel: np.ndarray) -> "OwnRow":
        """After an addition of something of that kernel."""
        size, added = (diagonal(each).astype(np.float64) for each in (self.beside, kernel))
        apart = self.apart + size[:, :, None] * added[:, None, :] + added[:, :, None] * size[:, None, :]
        return OwnRow(self.size, self.beside + kernel, apart, self.length)


def embed(arch: Architecture, batch: TokenBatch, draws: Draws) -> tuple[Stream, OwnRow]:
    """The stream at the first place, and what of it is the tokens' rows."""
    d, (networks, tokens, _) = arch.d_model, batch.same_input.shape
    rows = np.zeros((networks, tokens, d if d <= 2 * tokens else 1 + tokens), np.float32)
    if arch.positions == "sinusoidal":
        code = sinusoids(arch.seq_len, d) / np.sqrt(d)
        frame = np.linalg.qr(np.column_stack([np.ones(d), code.T])).Q
        rows[..., : frame.shape[1]] = np.tile(code @ frame, (len(batch.weight), 1))
    stream = Stream(rows, rows @ rows.mT)
    size = np.float32(row_size(arch))
    added = Added.draw(draws, root(batch.same_input * size), arch, rows.shape[-1])
    length = np.sqrt(added.size / size)
    if embedding(arch.embedding).layer_norm:
        added, _ = added.normed(arch)
    others = stream.kernel  # a position code, whose mean LayerNorm takes out
    if arch.norm == "layer_norm":
        others = others - outer(rows[..., 0])
    row = OwnRow(added.size, others, np.zeros_like(others, np.float64), length)
    stream = stream.plus(added)
    if arch.positions == "learned":
        own = np.tile(np.eye(arch.seq_len, dtype=np.float32), (networks, len(batch.weight), len(batch.weight)))
        own *= np.float32(arch.std("position")[0] ** 2)
        added = Added.draw(draws, root(own), arch, rows.shape[-1])
        stream, row = stream.plus(added), row.plus(added.kernel)
    return stream, row


def row_size(arch: Architecture) -> float:
    """Mean square of a coordinate of the embedding's output, before its norm where it has one."""
    return float(arch.std("embedding")[0] * arch.evaluate(embedding(arch.embedding).multiplier)) ** 2


def row_share(arch: Architecture) -> float:
    """Root mean square of the table row's part in a coordinate of the stream that enters block 1."""
    size = row_size(arch)
    return float(np.sqrt(size / (size + arch.norm_epsilon) if embedding(arch.embedding).layer_norm else size))
