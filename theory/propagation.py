"""Exact second-moment propagation: what the norms of a pre-LN stack are at initialisation, in absolute terms.

Two kernels go through the stack, K[t,t'] = E[x_t . x_t'] / d forward and G[t,t'], the covariance of dL/dx per
coordinate, backward. Attention is drawn from its own distribution (`theory.random_attention`), an activation acts by
its dual (`theory.dual_activation`), and the upstream gradient has the true kernel of softmax minus one-hot. Terms of
relative order 1 / d_model are kept where they accumulate with depth: the norm's projector, each token's own length,
and how far the correlations of one network's tokens stray from their mean.

What is dropped: the dependence between a layer's forward weights and the gradient that comes back through it, the
gradient's own fluctuations, and, between two sequences, the part of attention that they fluctuate in together.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from scipy import special

from theory.activation import activation
from theory.architecture import BLOCK_MATRICES, Architecture
from theory.dual_activation import dual_activation
from theory.embedding import embedding
from theory.positions import rope_angles, sinusoids
from theory.random_attention import AttentionDraws, draw_attention, score_between


@dataclass(frozen=True)
class Prediction:
    """Root of the expected square over initialisations, and over random tokens where no tokens were given.

    shortcut_std: float64[S + 1], standard deviation of the residual stream over batch, position and coordinate.
    gradient_norm: float64[S + 1], Frobenius norm of dL/dx at each place, L in nats per token. amplification:
    gradient_norm[0] / gradient_norm[-1]. parameter_gradient_norm: Frobenius norm of dL/dW by matrix kind,
    float64[num_layers], for embedding and head float64[1].
    """

    shortcut_std: np.ndarray
    gradient_norm: np.ndarray
    amplification: float
    parameter_gradient_norm: dict[str, np.ndarray]


def predict(arch: Architecture, batch_size: int = 8, tokens: np.ndarray | None = None) -> Prediction:
    """Predict `arch` at initialisation for a batch; a pure function of its arguments.

    tokens: int[batch, seq_len + 1], which then also give the batch size; None: `batch_size` sequences of independent
    uniform tokens. Source: THEORY of arXiv 2312.16903 made exact to second moments. Raises ValueError for a
    tied head, for tokens that do not fit, and for a batch size below 1.
    """
    if arch.tied:
        raise ValueError("tied: predict covers an untied head; got tied=True (bound and measure take both)")
    batch = _Batch.of(arch, batch_size, tokens)
    rng = np.random.default_rng(0)
    stream = _embed(arch, batch, rng)
    places, passed = [stream], []
    for layer in range(arch.num_layers):
        for sublayer in (_Attention, _FeedForward):
            passed.append(sublayer.forward(arch, layer, batch, stream, rng))
            stream = stream.add(passed[-1].increment, rng)
            places.append(stream)
    gradient, head = _upstream(arch, batch, stream)
    gradients = [gradient]
    parameters = {kind: np.zeros(arch.num_layers) for kind in BLOCK_MATRICES}
    for index in reversed(range(len(passed))):
        increment, squares = passed[index].backward(arch, index // 2, batch, gradients[-1])
        for kind, square in squares.items():
            parameters[kind][index // 2] = np.sqrt(max(square, 0.0))
        gradients.append(gradients[-1] + increment * places[index].norm_jacobian(arch))
    norms = np.array([np.sqrt(arch.d_model * batch.trace(g)) for g in reversed(gradients)])
    parameters["embedding"] = np.array([_table_gradient(arch, batch, gradients[-1])])
    parameters["head"] = np.array([head])
    return Prediction(
        shortcut_std=np.array([place.observed_std(arch, batch) for place in places]),
        gradient_norm=norms,
        amplification=float(norms[0] / norms[-1]),
        parameter_gradient_norm=parameters,
    )


@dataclass(frozen=True)
class _Kernel:
    """A kernel over tokens: `within` each of R sequences [R, T, T], and `across` every two of them [R, R, T, T].

    Without tokens R is 1 and `across` stands for any two sequences of the batch; a gradient's `within` then has one
    entry for each path of the tokens' lengths.
    """

    within: np.ndarray
    across: np.ndarray

    def map(self, function: Callable[..., np.ndarray], *others: "_Kernel") -> "_Kernel":
        return _Kernel(
            function(self.within, *(other.within for other in others)),
            function(self.across, *(other.across for other in others)),
        )

    def __add__(self, other: "_Kernel") -> "_Kernel":
        return self.map(np.add, other)

    def __mul__(self, other: "_Kernel | float") -> "_Kernel":
        return self.map(np.multiply, other) if isinstance(other, _Kernel) else self.map(lambda k: k * other)

    def diagonal(self) -> np.ndarray:
        return np.einsum("rtt->rt", self.within)

    @staticmethod
    def outer(values: np.ndarray, combine: Callable[..., np.ndarray] = np.multiply) -> "_Kernel":
        """combine(values_t, values_t') over pairs of tokens, from float64[R, T]."""
        within = combine(values[:, :, None], values[:, None, :])
        return _Kernel(within, combine(values[:, None, :, None], values[None, :, None, :]))


@dataclass(frozen=True)
class _Batch:
    """Which tokens agree, and how often each pair of sequences stands in the batch."""

    size: int
    same_input: _Kernel
    same_target: _Kernel
    across_weight: np.ndarray
    repeats: float  # probability that two inputs agree where the tokens are random, else 0

    @staticmethod
    def of(arch: Architecture, batch_size: int, tokens: np.ndarray | None) -> "_Batch":
        if tokens is None:
            if batch_size < 1:
                raise ValueError(f"batch_size: must be at least 1, got {batch_size}")
            chance, seq_len = 1 / arch.vocab_size, arch.seq_len
            within = np.where(np.eye(seq_len, dtype=bool), 1.0, chance)[None]
            same = _Kernel(within, np.full((1, 1, seq_len, seq_len), chance))
            pairs = np.array([[batch_size * (batch_size - 1.0)]])
            return _Batch(batch_size, same, same, pairs, chance)
        tokens = np.asarray(tokens)
        if tokens.ndim != 2 or tokens.shape[1] != arch.seq_len + 1 or not len(tokens):
            raise ValueError(f"tokens: expected shape (batch, {arch.seq_len + 1}), got {tokens.shape}")
        if not np.issubdtype(tokens.dtype, np.integer) or tokens.min() < 0 or tokens.max() >= arch.vocab_size:
            raise ValueError(f"tokens: expected whole numbers in 0..{arch.vocab_size - 1} (vocab_size - 1)")
        inputs, targets = (
            _Kernel.outer(part, np.equal).map(lambda k: k.astype(float)) for part in (tokens[:, :-1], tokens[:, 1:])
        )
        return _Batch(len(tokens), inputs, targets, 1.0 - np.eye(len(tokens)), 0.0)

    def total(self, kernel: _Kernel) -> float:
        """Sum over all pairs of the batch's tokens, the mean over paths where the kernel has them."""
        across = np.einsum("rs,rsab->", self.across_weight, kernel.across)
        return float(self.size * kernel.within.mean(axis=0).sum() + across)

    def trace(self, kernel: _Kernel) -> float:
        """Sum over the batch's tokens of a kernel's diagonal."""
        return float(self.size * kernel.diagonal().mean(axis=0).sum())

    def paths(self, arch: Architecture) -> int:
        """How many paths of the tokens' lengths are followed: enough for their mean, one for each given sequence."""
        if not self.repeats:
            return len(self.same_input.within)
        return int(np.clip(2048 // arch.d_model, 1, max(1, min(16, 1024 // arch.seq_len))))


@dataclass(frozen=True)
class _Stream:
    """The residual stream at one place.

    kernel: K. repeated: what K has more where two tokens of a sequence agree than where they do not, float64[R, T, T],
    for random tokens. length: Gaussian score of each token's own |x|^2 among chi-square with d_model degrees, along
    each of the paths that are followed, [paths, T]; the gradient compounds along a path, so its mean takes several.
    spread: d_model times the variance of the correlations over initialisations, float64[R, T, T]: that of a Wishart
    matrix at first, more with depth, as each layer hands on what the last one's weights happened to do. offset: mean
    over the coordinates that every network has, [R, T]; sinusoidal positions have one, and LayerNorm takes it out.
    """

    kernel: _Kernel
    repeated: np.ndarray
    length: np.ndarray
    spread: np.ndarray
    offset: np.ndarray

    def add(self, increment: "_Increment", rng: np.random.Generator) -> "_Stream":
        kernel = self.kernel + increment.kernel
        share = self.kernel.diagonal() / kernel.diagonal()
        fresh = np.sqrt(np.maximum(1 - share**2, 0)) * _scores(rng, *self.length.shape)
        size, correlation = _outer_root(kernel), _correlation(kernel)
        kept = (_outer_root(self.kernel) + increment.sensitivity) / size
        own = increment.noise(correlation) - _wishart_noise(self.kernel, correlation)
        spread = self.spread * kept**2 + _wishart_noise(kernel, correlation) / size**2 + own / size**2
        return _Stream(kernel, self.repeated + increment.repeated, share * self.length + fresh, spread, self.offset)

    def degrees(self, arch: Architecture) -> float:
        """Degrees of the Wishart matrix whose correlations between tokens vary as much as the stream's."""
        apart = ~np.eye(arch.seq_len, dtype=bool)
        least = ((1 - self.correlation(arch).within ** 2) ** 2)[:, apart].sum()
        spread = self.spread[:, apart].sum()
        return arch.d_model * least / spread if spread > 0 else arch.d_model

    def variance(self, arch: Architecture) -> np.ndarray:
        """Variance over the coordinates, as the norm sees it; LayerNorm takes the mean out."""
        return self.seen(arch).diagonal() * (1 - _mean_share(arch))

    def seen(self, arch: Architecture) -> _Kernel:
        """The kernel without what LayerNorm takes out of every network alike."""
        return self.kernel + _Kernel.outer(self.offset) * -1.0 if arch.norm == "layer_norm" else self.kernel

    def retained(self, arch: Architecture) -> np.ndarray:
        """z's mean square: 1 but for the norm's epsilon."""
        variance = self.variance(arch)
        return variance / (variance + arch.norm_epsilon)

    def correlation(self, arch: Architecture) -> _Kernel:
        seen = self.seen(arch)
        return seen * _Kernel.outer(1 / np.sqrt(seen.diagonal()))

    def normalized(self, arch: Architecture) -> _Kernel:
        """Kernel of z, the stream after a norm."""
        return self.correlation(arch) * _Kernel.outer(np.sqrt(self.retained(arch)))

    def norm_jacobian(self, arch: Architecture) -> _Kernel:
        """tr(J_t J_t'^T) / d of the norm's Jacobian: 1 / (std std') times what the two projectors share."""
        d, retained = arch.d_model, self.retained(arch)
        chi_square = 2 * special.gammaincinv(d / 2, special.ndtr(self.length))
        square = chi_square / d * self.variance(arch) + arch.norm_epsilon
        lost = _Kernel.outer(retained, np.add)
        both = _Kernel.outer(retained) * self.correlation(arch) * self.correlation(arch)
        shared = lost.map(lambda lost, both: 1 - _mean_share(arch) - (lost - both) / d, both)
        inverse = 1 / np.sqrt(square)
        lengths = _Kernel.outer(inverse)
        if len(inverse) > len(retained):
            lengths = _Kernel(lengths.within, _Kernel.outer(inverse.mean(axis=0, keepdims=True)).across)
        return shared * lengths

    def observed_std(self, arch: Architecture, batch: _Batch) -> float:
        """Standard deviation about the mean over the whole batch, which is what one measures."""
        tokens = batch.size * arch.seq_len
        free = self.kernel + _Kernel.outer(self.offset) * -1.0
        mean_square = self.offset.mean() ** 2 + batch.total(free) / tokens**2 / arch.d_model
        return float(np.sqrt(batch.trace(self.kernel) / tokens - mean_square))


@dataclass(frozen=True)
class _Increment:
    """What a sub-layer adds to the stream's kernel."""

    kernel: _Kernel
    repeated: np.ndarray
    sensitivity: np.ndarray | float  # to the correlations it acts on, entry by entry
    noise: Callable[[np.ndarray], np.ndarray]  # d_model times its own variance, as `_wishart_noise` of a correlation


def _outer_root(kernel: _Kernel) -> np.ndarray:
    root = np.sqrt(kernel.diagonal())
    return root[:, :, None] * root[:, None, :]


def _correlation(kernel: _Kernel) -> np.ndarray:
    return kernel.within / _outer_root(kernel)


def _wishart_noise(kernel: _Kernel, about: np.ndarray) -> np.ndarray:
    """d times the variance of M_tt' - about (M_tt + M_t't') / 2, M a Wishart matrix of d degrees with that kernel.

    Divided by the squared diagonal it is the variance of a correlation, (1 - c^2)^2, where `about` is c itself.
    """
    correlation = _correlation(kernel)
    return _outer_root(kernel) ** 2 * ((1 + correlation**2) * (1 + about**2) - 4 * correlation * about)


def _mean_share(arch: Architecture) -> float:
    return 1 / arch.d_model if arch.norm == "layer_norm" else 0.0


def _scores(rng: np.random.Generator, paths: int, seq_len: int) -> np.ndarray:
    """Standard Gaussian scores float64[paths, seq_len], stratified over a token's paths, or a lone path's tokens."""
    count, axis = (paths, 0) if paths > 1 else (seq_len, 1)
    strata = special.ndtri((np.arange(count) + 0.5) / count)
    if count > 1:
        strata /= np.sqrt(np.mean(strata**2))
    return rng.permuted(np.broadcast_to(np.expand_dims(strata, 1 - axis), (paths, seq_len)), axis=axis)


def _embed(arch: Architecture, batch: _Batch, rng: np.random.Generator) -> _Stream:
    method = embedding(arch.embedding)
    size = (arch.std("embedding")[0] * arch.evaluate(method.multiplier)) ** 2
    of_fixed_length = 0.0
    if method.layer_norm:
        variance = size * (1 - _mean_share(arch))
        size = of_fixed_length = variance / (variance + arch.norm_epsilon)
    kernel = batch.same_input * size
    shape = kernel.within.shape
    offset = np.zeros(shape[:2])
    if arch.positions == "learned":
        kernel = kernel.map(lambda k: k + arch.std("position")[0] ** 2 * np.eye(arch.seq_len))
    elif arch.positions == "sinusoidal":
        places = sinusoids(arch.seq_len, arch.d_model)
        kernel = kernel.map(lambda k: k + places @ places.T / arch.d_model)
        of_fixed_length += 0.5
        offset = offset + places.mean(axis=1)
    free = np.sqrt(np.maximum(1 - (of_fixed_length / kernel.diagonal()) ** 2, 0))
    repeated = np.full(shape, size if batch.repeats else 0.0)
    return _Stream(
        kernel,
        repeated,
        free * _scores(rng, batch.paths(arch), arch.seq_len),
        (1 - _correlation(kernel) ** 2) ** 2,
        offset,
    )


@dataclass(frozen=True)
class _FeedForward:
    """K += d_ff s_2^2 E[F F'];  G += (d s_1^2)(d_ff s_2^2) E[F' F''] o G through the norm."""

    normalized: _Kernel
    hidden: _Kernel
    slope: _Kernel
    increment: _Increment

    @staticmethod
    def forward(
        arch: Architecture, layer: int, batch: _Batch, stream: _Stream, rng: np.random.Generator
    ) -> "_FeedForward":
        d, function, correlation = arch.d_model, activation(arch.activation), stream.correlation(arch)
        std = np.sqrt(d * arch.std("feed_forward.up")[layer] ** 2 * stream.retained(arch))
        hidden, slope = (
            _Kernel(
                dual_activation(function, std, std, correlation.within, derivative),
                dual_activation(function, std[:, None], std[None], correlation.across, derivative),
            )
            for derivative in (False, True)
        )
        gain = arch.ff_width * arch.std("feed_forward.down")[layer] ** 2
        repeated = np.zeros_like(stream.repeated)
        diagonal = np.sqrt(stream.seen(arch).diagonal())
        if batch.repeats:
            shift = stream.repeated / (diagonal[:, :, None] * diagonal[:, None, :])
            if_same = np.minimum(correlation.within + (1 - batch.repeats) * shift, 1)
            if_not = np.minimum(correlation.within - batch.repeats * shift, 1)
            repeated = gain * (
                dual_activation(function, std, std, if_same) - dual_activation(function, std, std, if_not)
            )
        sensitivity = gain * slope.within * std[:, :, None] * std[:, None, :]
        width = gain**2 * d / arch.ff_width
        increment = _Increment(hidden * gain, repeated, sensitivity, lambda c: width * _wishart_noise(hidden, c))
        return _FeedForward(stream.normalized(arch), hidden, slope, increment)

    def backward(
        self, arch: Architecture, layer: int, batch: _Batch, gradient: _Kernel
    ) -> tuple[_Kernel, dict[str, float]]:
        d, width = arch.d_model, arch.ff_width
        inner = gradient * self.slope * (d * arch.std("feed_forward.down")[layer] ** 2)
        squares = {
            "feed_forward.up": d * width * batch.total(inner * self.normalized),
            "feed_forward.down": d * width * batch.total(gradient * self.hidden),
        }
        return inner * (width * arch.std("feed_forward.up")[layer] ** 2), squares


@dataclass(frozen=True)
class _Attention:
    """K += (d s_V^2)(d s_O^2) E[A C A^T];  G += value path A^T G A, and score path through queries and keys."""

    normalized: _Kernel
    mixed: _Kernel
    draws: AttentionDraws
    mean: np.ndarray
    increment: _Increment

    @staticmethod
    def forward(
        arch: Architecture, layer: int, batch: _Batch, stream: _Stream, rng: np.random.Generator
    ) -> "_Attention":
        d, z = arch.d_model, stream.normalized(arch)
        query, key = (d * arch.std(f"attention.{name}")[layer] ** 2 for name in ("query", "key"))
        degrees = stream.degrees(arch)
        paths = len(stream.length)
        pairs = _pairs(degrees, query * key, arch.seq_len, paths)
        drawn = np.broadcast_to(z.within, (pairs, paths, *z.within.shape[1:]))
        if batch.repeats:
            tokens = rng.integers(arch.vocab_size, size=(pairs, paths, arch.seq_len))
            same = tokens[..., :, None] == tokens[..., None, :]
            deviation = np.where(np.eye(arch.seq_len, dtype=bool), 0.0, same - batch.repeats)
            diagonal = np.sqrt(stream.retained(arch) / stream.seen(arch).diagonal())
            drawn = drawn + deviation * stream.repeated * diagonal[:, :, None] * diagonal[:, None, :]
        draws = draw_attention(rng, drawn, degrees, arch.d_head, query, key, arch.positions == "rope")
        mean, forward = draws.mean(), draws.forward(z.within)
        if batch.repeats:
            mean, forward = (x.mean(axis=0, keepdims=True) for x in (mean, forward))
        mixed = _Kernel(forward, _sandwich(mean, z.across))
        gain = d * arch.std("attention.value")[layer] ** 2 * d * arch.std("attention.output")[layer] ** 2
        own = np.einsum("rtt->rt", mean) * np.sqrt(stream.retained(arch) / stream.seen(arch).diagonal())
        repeated = gain * own[:, :, None] * own[:, None, :] * stream.repeated

        def noise(correlation: np.ndarray) -> np.ndarray:
            heads = d / arch.num_heads * draws.forward_variance(correlation)
            return gain**2 * (_wishart_noise(mixed, correlation) + heads)

        return _Attention(z, mixed, draws, mean, _Increment(mixed * gain, repeated, 0.0, noise))

    def backward(
        self, arch: Architecture, layer: int, batch: _Batch, gradient: _Kernel
    ) -> tuple[_Kernel, dict[str, float]]:
        d = arch.d_model
        query, key, value, output = (
            arch.std(f"attention.{name}")[layer] ** 2 for name in ("query", "key", "value", "output")
        )
        heads, z = gradient * (d * output), self.normalized
        mean, turn = self.mean, _rope_overlap(arch.positions == "rope", arch.seq_len, arch.d_head)
        scores = d * value * arch.d_head * turn
        at_values = self.draws.value_backward(heads.within, z.within)
        at_queries = [heads.within * scores * moment for moment in self.draws.query_score()]
        at_keys = [scores * moment for moment in self.draws.key_score(heads.within)]
        across_values = _sandwich(np.swapaxes(mean, -1, -2), heads.across)
        across_queries, across_keys = (
            scores * score
            for score in score_between(
                mean[:, None], mean[None], z.across, heads.across, d * query * turn, d * key * turn
            )
        )

        def square(at: Sequence[np.ndarray], across: np.ndarray) -> float:
            return d * batch.total(_Kernel(at[1], across * z.across))

        squares = {
            "attention.query": arch.num_heads * square(at_queries, across_queries),
            "attention.key": arch.num_heads * square(at_keys, across_keys),
            "attention.value": d * square(at_values, across_values),
            "attention.output": d * d * d * value * batch.total(gradient * self.mixed),
        }
        through_scores = _Kernel(
            arch.num_heads * (query * at_queries[0] + key * at_keys[0]),
            arch.num_heads * (query * across_queries + key * across_keys),
        )
        return _Kernel(at_values[0], across_values) * (d * value) + through_scores, squares


def _pairs(degrees: float, logit_variance: float, seq_len: int, paths: int) -> int:
    """Pairs of attention draws a path: as many in all as a layer's logits and few degrees of freedom make it vary."""
    wanted = np.clip((64 / seq_len) ** 1.5 * max(4096 / degrees, 16 * logit_variance), 2, 32)
    return int(np.ceil(wanted / paths))


def _sandwich(mean: np.ndarray, across: np.ndarray) -> np.ndarray:
    """M_r X_rs M_s^T for matrices M [R, T, T] and a kernel X [R, R, T, T] between sequences."""
    return mean[:, None] @ across @ np.swapaxes(mean, -1, -2)[None]


@lru_cache(maxsize=64)
def _rope_overlap(rope: bool, seq_len: int, d_head: int) -> np.ndarray:
    """Mean cosine float64[T, T] between RoPE's turns at two positions; 1 without RoPE."""
    if not rope:
        return np.ones((seq_len, seq_len))
    angles = rope_angles(seq_len, d_head)
    return np.cos(angles[:, None] - angles[None]).mean(axis=-1)


def _upstream(arch: Architecture, batch: _Batch, stream: _Stream) -> tuple[_Kernel, float]:
    """(gradient kernel at the last place, norm of the head's gradient), from the kernel of softmax minus one-hot.

    Gaussian logits of variance v have E[p_t . p_t'] = exp(v C[t,t']) / V.
    """
    d, size, tokens = arch.d_model, arch.vocab_size, batch.size * arch.seq_len
    gain = arch.logit_scale**2 * arch.std("head")[0] ** 2
    z = stream.normalized(arch)
    overlap = z.map(lambda c: np.exp(gain * d * c) / size)
    error = overlap.map(lambda p, same: (p - 2 / size + same) / tokens**2, batch.same_target)
    # z's sample correlations fluctuate by 1 / sqrt(d) around their mean, and so does what depends on them
    bend = overlap.map(lambda p, c: gain * d * p * (1 - c**2) ** 2 / d / tokens**2, stream.correlation(arch))
    head = arch.logit_scale * np.sqrt(d * batch.total(error * z + bend))
    return error * gain * stream.norm_jacobian(arch), head


def _table_gradient(arch: Architecture, batch: _Batch, gradient: _Kernel) -> float:
    """Norm of the embedding table's gradient: rows of equal tokens add up, then the embedding method's own Jacobian."""
    method = embedding(arch.embedding)
    factor = arch.evaluate(method.multiplier) ** 2 * arch.evaluate(method.gradient_share) ** 2
    if method.layer_norm:
        size = (arch.std("embedding")[0] * arch.evaluate(method.multiplier)) ** 2
        variance = size * (1 - _mean_share(arch))
        lost = 1 / arch.d_model + _mean_share(arch)
        factor *= (1 - lost) / (variance + arch.norm_epsilon)
    return float(np.sqrt(arch.d_model * factor * batch.total(gradient * batch.same_input)))
