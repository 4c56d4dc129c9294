"""Second moments of a residual stack at initialisation, in absolute terms, at the model's true width.

Two kernels over the tokens go through the stack: K[t,t'] = x_t . x_t' / d forward and G[t,t'], the covariance of dL/dx
per coordinate, backward. Forward, a small ensemble of networks is followed, each by the Gram matrix that its own
weights make (`theory.gram`), so that what depends on one network's token lengths and correlations, which compound
with depth, is averaged where it acts. Attention is drawn from its own distribution (`theory.random_attention`), an
activation acts by its dual (`theory.dual_activation`) and by hidden units that are drawn, and the upstream gradient has
the true kernel of softmax minus one-hot.

A network of the ensemble sees two sequences of the batch, or the only one; what they have within and between them
stands for the batch's sequences and pairs. All kernels are float32[n, S, S]: n networks, S = its sequences' tokens.

Of the dependence between a layer's forward weights and the gradient that comes back through it, what the norms make is
kept: `_lacking`; and where no norm stands before the head, the gradient's mean along the tokens, dL/dx_t =
sum_u B_tu x_u and a random rest. The rest is dropped, and so are the gradient's own fluctuations.
"""

import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
from threadpoolctl import threadpool_limits

from theory.architecture import Architecture
from theory.attention_scheme import attention_scheme
from theory.block import PARTS, block
from theory.embedding import embedding
from theory.gram import Draws
from theory.long_sequence import FOLLOWED, extrapolate
from theory.stream import (
    Added,
    Norm,
    OwnRow,
    Stream,
    blocks,
    cosine,
    diagonal,
    embed,
    mean_share,
    outer,
    pair_sum,
    row_size,
)
from theory.sublayers import Arriving, Sublayer, block_product, forward, realized, sandwich
from theory.token_batch import TokenBatch, representative_pairs
from theory.upstream import upstream


@dataclass(frozen=True)
class Prediction:
    """Root of the expected square over initialisations, and over random tokens where no tokens were given.

    shortcut_std: float64[S + 1], standard deviation of the residual stream over batch, position and coordinate.
    gradient_norm: float64[S + 1], Frobenius norm of dL/dx at each place, L in nats per token. amplification:
    gradient_norm[0] / gradient_norm[-1]. parameter_gradient_norm: Frobenius norm of dL/dW by matrix kind,
    float64[num_layers], for embedding and head float64[1]. branch_rms: root mean square of the output of "attention"
    and "feed_forward", before any norm or factor on it, float64[num_layers].
    """

    shortcut_std: np.ndarray
    gradient_norm: np.ndarray
    amplification: float
    parameter_gradient_norm: dict[str, np.ndarray]
    branch_rms: dict[str, np.ndarray]


def predict(
    arch: Architecture, batch_size: int = 8, tokens: np.ndarray | None = None, networks: int | None = None
) -> Prediction:
    """Predict `arch` at initialisation for a batch; a pure function of its arguments.

    tokens: int[batch, seq_len + 1], which then also give the batch size; None: `batch_size` sequences of independent
    uniform tokens. networks: size of the ensemble, at least 2; the numbers' own sampling error falls as one over its
    root. None: enough for 1 to 2 % in the norms in seconds (gradients of query and key: 7 %, of the widest 20 %), or
    for what a minute gives where networks differ much. Sequences of more than 256 tokens are read off from shorter ones
    (`theory.long_sequence`), some per cent less near. Source: arXiv 2312.16903 made exact to second moments; the chain
    of Gram matrices of arXiv 2206.02768. Raises ValueError for tokens that do not fit, a batch size or a number of
    networks below 1, where float32 overflows, and where a norm of epsilon 0 meets nothing but zeros.
    """
    for name, value in (("batch_size", batch_size), ("networks", networks)):
        if value is not None and value < 1:
            raise ValueError(f"{name}: must be at least 1, got {value}")
    if tokens is not None:
        tokens = np.asarray(tokens)
        if tokens.ndim != 2 or tokens.shape[1] != arch.seq_len + 1 or not len(tokens):
            raise ValueError(f"tokens: expected shape (batch, {arch.seq_len + 1}), got {tokens.shape}")
        if not np.issubdtype(tokens.dtype, np.integer) or tokens.min() < 0 or tokens.max() >= arch.vocab_size:
            raise ValueError(f"tokens: expected whole numbers in 0..{arch.vocab_size - 1} (vocab_size - 1)")
        batch_size = len(tokens)
    if arch.seq_len > FOLLOWED:
        at_length = partial(_squares_at, arch, batch_size, tokens, networks)
        squares = extrapolate(at_length, logit_variance(arch), arch.seq_len)
    else:
        squares = _mean_squares(arch, batch_size, tokens, networks)
    roots = {name: np.sqrt(np.maximum(square, 0.0)) for name, square in squares.items()}
    shortcut_std, gradient_norm = roots.pop("shortcut_std"), roots.pop("gradient_norm")
    branch_rms = {part: roots.pop(f"branch/{part}") for part in PARTS}
    return Prediction(shortcut_std, gradient_norm, float(gradient_norm[0] / gradient_norm[-1]), roots, branch_rms)


def _squares_at(
    arch: Architecture, batch_size: int, tokens: np.ndarray | None, networks: int | None, length: int
) -> dict[str, np.ndarray]:
    """As `_mean_squares`, of the batch's tokens in sequences of that length instead."""
    count = max(1, round(batch_size * arch.seq_len / length))
    if tokens is not None:
        starts = np.arange(arch.seq_len // length) * length
        tokens = np.concatenate([tokens[:, start : start + length + 1] for start in starts])
        count = len(tokens)
    squares = _mean_squares(replace(arch, seq_len=length), count, tokens, networks)
    fewer = count * length / (batch_size * arch.seq_len)
    return {
        name: square if name == "shortcut_std" or name.startswith("branch/") else square * fewer
        for name, square in squares.items()
    }


def _mean_squares(
    arch: Architecture, batch_size: int, tokens: np.ndarray | None, networks: int | None
) -> dict[str, np.ndarray]:
    """`_squares` in the mean over the whole ensemble, which grows up to fourfold where networks differ much."""
    seeds = np.random.SeedSequence(0)
    rng = np.random.default_rng(seeds)
    count = ensemble_size(arch, tokens) if networks is None else networks
    drawn = _ensemble(arch, batch_size, tokens, count, seeds, rng)
    if networks is None:
        first = np.concatenate([pairs for _, pairs in drawn])
        error = np.std(first) / np.mean(first) / max(len(first) - 1, 1) ** 0.5
        times = min((error / (2 * _WELL)) ** 2, _MOST)
        if times > 1:
            drawn += _ensemble(arch, batch_size, tokens, int(np.ceil(count * (times - 1))), seeds, rng)
    sizes = [len(pairs) for _, pairs in drawn]
    return {name: np.average([part[name] for part, _ in drawn], axis=0, weights=sizes) for name in drawn[0][0]}


_WELL, _MOST = 0.02, 4
"""standard error of the gradient's norm at the first place, above which more networks are followed; times as many"""


def _ensemble(
    arch: Architecture,
    batch_size: int,
    tokens: np.ndarray | None,
    networks: int,
    seeds: np.random.SeedSequence,
    rng: np.random.Generator,
) -> list[tuple[dict[str, np.ndarray], np.ndarray]]:
    """`_squares` of that many networks more, by groups."""
    half = -(-networks // 2)
    chosen = rng.integers(arch.vocab_size, size=(half, min(2, batch_size), arch.seq_len + 1))
    if tokens is not None:
        chosen = representative_pairs(tokens, half, rng)
    largest = max(1, min(len(chosen), int(np.clip(2**16 // arch.seq_len**2, 4, 64))))
    groups = [np.concatenate([group, group]) for group in np.array_split(chosen, -(-len(chosen) // largest))]
    draws = [Draws.of(seed) for seed in seeds.spawn(len(groups))]

    def squares(group: np.ndarray, draws: Draws) -> tuple[dict[str, np.ndarray], np.ndarray]:
        with np.errstate(over="raise", invalid="raise"):
            try:
                return _squares(arch, TokenBatch.of(arch, batch_size, group, tokens is None), draws)
            except FloatingPointError as error:
                if "overflow" not in str(error):
                    raise ValueError(
                        f"norm_epsilon: at {arch.norm_epsilon} a norm of this architecture divides zeros by zero; "
                        "choose it positive"
                    ) from None
                raise ValueError(
                    f"num_layers: {arch.num_layers} blocks {block(arch.block).name!r} under {arch.initialization!r} "
                    "explode beyond float32, no norm bounds the stream; choose fewer, or smaller weights"
                ) from None

    with threadpool_limits(1, user_api="blas"), ThreadPoolExecutor(min(4, os.cpu_count() or 1)) as pool:
        return list(pool.map(squares, groups, draws))


_LEAST = np.sqrt(np.finfo(np.float32).tiny)
"""stands for a gradient of zero, of a token that is sure of its target, beside the largest of all tokens, 1"""


@dataclass(frozen=True)
class _Addition:
    """One residual addition on the way forward, with what the way back needs.

    outputs: by part, |y|^2 / d summed over the batch's tokens. parts: each with its norm on the input and on the
    output, if there are. before, after: |x|^2 / d of every token, the sum's before its own norm, which is `post`.
    cosine: of the angle between the two. shares: squared cosine of each part's output and the sum. responses: of each
    part, mean product of its outputs and of what those grow by if a token grows; None where a norm hides their length.
    Where the gradient has a mean, kernel: of the stream before; total: of the sum; level: mean over a token's
    coordinates in the sum that a norm on an output takes out; row: amplitude of each token's row in the stream before;
    met: of each part y_t . x'_u / d. kept: x_t . x'_u / d, where no last norm takes from the gradient what lies along
    the stream.
    """

    layer: int
    shortcut: float
    parts: tuple[tuple[Sublayer, Norm | None, Norm | None], ...]
    before: np.ndarray
    after: np.ndarray
    cosine: np.ndarray
    outputs: tuple[tuple[str, float], ...]
    shares: tuple[np.ndarray, ...]
    responses: tuple[np.ndarray | None, ...]
    post: Norm | None
    kernel: np.ndarray | None
    total: np.ndarray | None
    level: np.ndarray | None
    row: np.ndarray
    kept: np.ndarray | None
    met: tuple[np.ndarray, ...]


def _squares(arch: Architecture, batch: TokenBatch, draws: Draws) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Every square that a Prediction has the root of, in the mean over one group of networks.

    And the gradient's at the first place, up to a factor that all groups share, for each pair of mirror images.
    """
    stream, row = embed(arch, batch, draws)
    embedded, own_row = stream, row
    variances, additions = [stream.observed_variance(arch, batch)], list[_Addition]()
    for layer in range(arch.num_layers):
        for parts in block(arch.block).additions:
            stream, row, addition = _add(arch, layer, parts, stream, row, batch, draws)
            variances.append(stream.observed_variance(arch, batch))
            additions.append(addition)
    last = stream.norm(arch) if block(arch.block).final_norm else None
    above = upstream(arch, batch, stream if last is None else last.tokens, row)
    normed = block(arch.block).last_norm
    gradient, along = above.projected if normed else above.kernel, _Along.of(not normed, arch, row.size)
    along = along if normed else replace(along, radial=above.radial)
    divisor = 1 if last is None else last.divisor
    if last is not None:
        gradient = gradient * outer(1 / last.divisor)
        norms = [batch.trace(gradient)]
    else:
        norms = [batch.trace(above.kernel)]
    mean = None
    if arch.tied or not normed:
        tokens = (above.mean / divisor**2).reshape(len(above.mean), 1, -1, arch.seq_len, 1)
        mean = _Mean(np.eye(arch.seq_len, dtype=np.float32) * tokens, above.rows / divisor)
    squares = {kind: np.zeros(arch.num_layers) for kind in arch.matrices}
    for part in PARTS:
        outputs = [size for addition in additions for name, size in addition.outputs if name == part]
        squares[f"branch/{part}"] = np.array(outputs) / (batch.size * arch.seq_len)
    scale = 1.0
    while additions:
        addition = additions.pop()
        size = float(diagonal(gradient).max())  # float32 would not hold what explodes twice over
        gradient, scale = gradient / np.float32(size), scale * size
        mean = None if mean is None else mean.times(size**-0.5)
        gradient, along, mean, own = _back(arch, addition, batch, gradient, along, mean, draws)
        for kind, square in own.items():
            squares[kind][addition.layer] = square * scale
        norms.append(batch.trace(gradient) * scale)
    if attention_scheme(arch.attention).spectral:
        # dL/dW of W / ‖W‖; what it lacks along W's first singular pair, one direction of all, is dropped
        for kind in arch.matrices:
            squares[kind] *= (arch.effective_std(kind) / arch.std(kind)) ** 2
    if embedding(arch.embedding).layer_norm:
        gradient = _before_embedding_norm(arch, embedded, own_row, gradient, None if arch.tied else mean)
    table = _table_gradient(arch, batch, gradient) * scale + above.table
    tables = {"embedding": np.array([table])} | ({} if arch.tied else {"head": np.array([above.head])})
    places = {"shortcut_std": np.array(variances), "gradient_norm": arch.d_model * np.array(norms[::-1])}
    pairs = diagonal(gradient).mean(axis=-1, dtype=np.float64).reshape(2, -1).mean(axis=0) * scale
    return squares | tables | places, pairs


def _add(
    arch: Architecture,
    layer: int,
    parts: tuple[str, ...],
    stream: Stream,
    row: OwnRow,
    batch: TokenBatch,
    draws: Draws,
) -> tuple[Stream, OwnRow, _Addition]:
    shortcut, branch, factor = arch.factors(layer)
    norm = stream.norm(arch) if any(arch.normed("pre", part) for part in parts) else None
    total, done, responses, outputs, written = stream.times(shortcut), [], [], [], []
    for part in parts:
        pre = norm if arch.normed("pre", part) else None
        tokens = (stream if pre is None else pre.tokens).times(factor)
        sublayer, rows = forward(part, arch, layer, tokens, batch, draws)
        added, output = Added.draw(draws, rows, arch, stream.rows.shape[-1]), None
        outputs.append((part, batch.summed(added.size)))
        if arch.normed("output", part):
            added, output = added.normed(arch)
        written.append(added)
        total = total.plus(added.times(branch))
        blind = arch.hides_length(part)
        responses.append(None if blind else np.float32(branch**2) * sublayer.response(arch, layer, batch, added.size))
        done.append((sublayer, pre, output))
    before, after = diagonal(stream.kernel).copy(), diagonal(total.kernel).copy()  # not views, which keep the kernels
    along = stream.rows * np.float32(shortcut) + sum(added.along for added in written) * np.float32(branch)
    turned = cosine(np.sum(stream.rows * along, axis=-1), before, after)
    shares = []
    for added in written:
        product = np.sum(added.along * along, axis=-1) + np.sum(added.beside**2, axis=-1) * np.float32(branch)
        shares.append(cosine(product, added.size, after) ** 2)
    post = total.norm(arch) if block(arch.block).post_norm else None
    normed, output_norms = block(arch.block).last_norm, any(output is not None for _, _, output in done)
    kernel, summed, level, kept, met = None, None, None, None, list[np.ndarray]()
    if arch.tied or not normed:
        kernel = stream.without_mean(arch) if normed else stream.kernel
        if output_norms or not normed:
            met = [added.along @ along.mT + added.beside @ added.beside.mT * np.float32(branch) for added in written]
        if output_norms:
            summed = total.without_mean(arch) if normed else total.kernel
            level = total.rows[..., 0] * np.float32(not normed and arch.norm == "layer_norm")
        if not normed:
            kept = stream.rows @ along.mT
    addition = _Addition(
        layer, shortcut, tuple(done), before, after, turned, tuple(outputs), tuple(shares), tuple(responses), post,
        kernel, summed, level, np.sqrt(row.size), kept, tuple(met),
    )  # fmt: skip
    if arch.tied:
        row = row.times(shortcut)
        for added in written:
            row = row.plus(added.times(branch).kernel)
        row = row if post is None else row.over(post.divisor)
    return total if post is None else post.tokens, row, addition


@dataclass(frozen=True)
class _Along:
    """Shares [n, S] of the gradient's variance along the token itself and along the mean; 1 for a random direction."""

    radial: np.ndarray
    mean: np.ndarray

    @staticmethod
    def of(random: bool, arch: Architecture, like: np.ndarray) -> "_Along":
        """Of a gradient that comes from Gaussian weights, or else from a norm."""
        has_mean = random or arch.norm != "layer_norm"
        return _Along(np.full_like(like, random), np.full_like(like, has_mean))


@dataclass(frozen=True)
class _Mean:
    """Of dL/dx_t what runs along tokens and rows of the table, sum_u tokens_tu x_u + rows_t r_t, beside a random rest.

    tokens: [n, 1, sequences, T, T]. rows: [n, S], r_t the token's own row over its mean length; 0 of untied tables.
    """

    tokens: np.ndarray
    rows: np.ndarray

    def times(self, factor: float) -> "_Mean":
        return _Mean(self.tokens * np.float32(factor), self.rows * np.float32(factor))

    def before(self, norm: Norm, row: np.ndarray) -> "_Mean":
        """Before a norm; row: amplitude of each token's row after it, [n, S]."""
        radial = (self.rows * row / norm.divisor**2).reshape(len(row), 1, self.tokens.shape[2], -1, 1)
        along = norm.along_before(self.tokens) - np.eye(self.tokens.shape[-1], dtype=np.float32) * radial
        return _Mean(along, self.rows / norm.divisor)


def _back(
    arch: Architecture,
    addition: _Addition,
    batch: TokenBatch,
    gradient: np.ndarray,
    along: _Along,
    mean: _Mean | None,
    draws: Draws,
) -> tuple[np.ndarray, _Along, _Mean | None, dict[str, float]]:
    """Before the addition: the gradient's kernel, what of it lies along the token, its mean; and the matrices' squares.

    mean: None where a norm has taken it out and no tied table puts it back.
    """
    shortcut, branch, factor = arch.factors(addition.layer)
    if addition.post is not None:
        gradient = gradient * addition.post.jacobian(arch, radial=along.radial, mean=along.mean)
        along = _Along.of(False, arch, addition.before)
        if mean is not None:
            mean = mean.before(addition.post, addition.row * np.float32(shortcut) / addition.post.divisor)
    before, squares = gradient * np.float32(shortcut**2), dict[str, float]()
    level, random = diagonal(before) * along.mean, 1 - along.radial
    felt, deaf = np.zeros_like(level), np.zeros_like(level)
    returned = list[np.ndarray]()
    means = [None] * len(addition.parts) if mean is None else _at_outputs(arch, addition, mean.tokens)
    for number, ((sublayer, pre, output), share, response, out) in enumerate(
        zip(addition.parts, addition.shares, addition.responses, means, strict=True)
    ):
        reaching = gradient
        lost = random * share
        if output is not None:
            jacobian = output.jacobian(arch, radial=1 - lost, mean=along.mean)
            reaching, lost = reaching * jacobian, np.ones_like(lost)
            if mean is not None:
                reaching = reaching + _through_output_norm(addition, number, mean.tokens, jacobian)
        reaching = reaching * np.float32(branch**2)
        back = sublayer.backward(arch, addition.layer, batch, Arriving(reaching, lost, out), draws)
        increment = back.kernel * np.float32(factor**2)
        if pre is not None:
            increment = increment * pre.jacobian(arch)
        if back.mean is not None:
            into = back.mean if pre is None else pre.along_before(back.mean)
            returned.append(into * np.float32(factor**2))
        before = before + increment
        level = level + diagonal(increment) * _Along.of(pre is None, arch, level).mean
        if response is not None:
            felt = felt + diagonal(increment)
        elif pre is None:
            heard = back.heard * np.float32(factor**2)
            felt, deaf = felt + heard, deaf + diagonal(increment) - heard
        squares |= back.squares
    size, grown = diagonal(gradient), np.maximum(diagonal(before), _LEAST)
    alone, lacking = _lacking(addition, shortcut, gradient, random)
    missing = (lacking - alone + deaf) / arch.d_model / grown
    missing = np.clip(missing, -1, 0.5)  # where few coordinates leave no small share
    before = before * outer(np.sqrt(1 - missing))
    if mean is not None:
        crossed, mean = _with_means(mean, returned, addition, shortcut, batch)
        before = before + crossed
    grown = np.maximum(diagonal(before), _LEAST)
    radial = np.maximum(shortcut**2 * size + felt - lacking, 0) / grown
    return before, _Along(radial, np.clip(level / grown, 0, arch.d_model)), mean, squares


def _with_means(
    mean: _Mean, returned: list[np.ndarray], addition: _Addition, shortcut: float, batch: TokenBatch
) -> tuple[np.ndarray, _Mean]:
    """What the means that the parts return add to the gradient's kernel, and the mean before the addition."""
    alone, kernel = mean.tokens * np.float32(shortcut**2), addition.kernel
    assert kernel is not None
    if addition.kept is not None:
        alone = alone * realized(mean.tokens, addition.kept, kernel * np.float32(shortcut))
    parts, rows = np.sum(returned, axis=0), mean.rows * np.float32(shortcut)
    crossed = sandwich(alone + parts, kernel) - sandwich(alone, kernel)
    met = addition.row[:, :, None] * batch.same_input * rows[:, None, :]
    with_rows = block_product(parts, met[:, None])[:, 0]
    return crossed + with_rows + with_rows.mT, _Mean(alone + parts, rows)


def _at_outputs(arch: Architecture, addition: _Addition, mean: np.ndarray) -> list[np.ndarray]:
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


def _through_output_norm(addition: _Addition, number: int, mean: np.ndarray, jacobian: np.ndarray) -> np.ndarray:
    """What a norm on a part's outputs makes of the kernel of sum_u B_tu x'_u, but for what `jacobian` makes of it."""
    norm, total, level = addition.parts[number][2], addition.total, addition.level
    assert norm is not None and total is not None and level is not None
    whole, left = _projected(mean, total, level, addition.met[number], norm.tokens.kernel)
    return left * outer(1 / norm.divisor) - whole * jacobian


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


def _lacking(
    addition: _Addition, shortcut: float, gradient: np.ndarray, random: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """By how much d E(g . x)^2 / |x|^2 falls short of a random direction's, through the shortcut alone and in all.

    [n, S] each. g' of kernel `gradient` is what returns to the sum, x' = a x + f. random: which share of its variance
    g' lacks along x'; 1 below the last norm, which makes the loss blind to the length of x. Of a sub-layer that has a
    norm, g . x = a g' . x, and x has a part along x'. One without returns to token s also g'_t . (J_ts x_s) of all
    tokens t, and J_ts x_s . f_t is its response.
    """
    kept = np.float32(shortcut) * addition.cosine
    alone = diagonal(gradient) * random * kept**2
    heard = [response for response in addition.responses if response is not None]
    if not heard:
        return alone, alone
    response = np.sum(heard, axis=0)
    sequences, seq_len = response.shape[2:4]
    before, after, kept = (
        each.reshape(len(each), 1, sequences, seq_len) for each in (addition.before, addition.after, kept)
    )
    along = response / np.sqrt(after)[..., None] / np.sqrt(before)[..., None, :]
    along = along + np.eye(seq_len, dtype=np.float32) * kept[..., None]
    lost = blocks(gradient * (pair_sum(random) / 2), sequences)
    return alone, (along * (lost @ along)).sum(axis=-2).reshape(random.shape)


def logit_variance(arch: Architecture) -> float:
    """Largest over layers, for tokens of unit variance."""
    scheme = attention_scheme(arch.attention)
    if scheme.normed:
        return scheme.temperature**2
    return scheme.temperature**2 * float(
        np.max(arch.d_model**2 * arch.effective_std("attention.query") ** 2 * arch.effective_std("attention.key") ** 2)
    )


def ensemble_size(arch: Architecture, tokens: np.ndarray | None) -> int:
    """Networks to follow: more where given tokens, depth or sharp attention set them apart, fewer of wide ones."""
    sharpness = min(logit_variance(arch), 4.0)
    wanted = (64 if tokens is None else 256) * (1 + sharpness * arch.num_layers / 6)
    wanted *= min(1.0, 1024 / arch.d_model) ** 4
    size = 2 * arch.seq_len
    affordable = 5e10 / (arch.num_layers * size**2 * (size + min(size, arch.d_model)))
    least = 2 if tokens is None else min(2 * len(tokens), 16)
    return int(np.clip(min(max(wanted, affordable / 100), affordable), least, 1024))


def _before_embedding_norm(
    arch: Architecture, stream: Stream, row: OwnRow, gradient: np.ndarray, mean: _Mean | None
) -> np.ndarray:
    """What the embedding's norm leaves of the kernel at the first place, but for its divisor; see `_projected`."""
    left_of_random = np.float32(1 - 1 / arch.d_model - mean_share(arch, arch.d_model))
    if mean is None:
        return gradient * left_of_random
    rows = stream.without_mean(arch) - row.beside
    level = stream.rows[..., 0] * np.float32(arch.norm == "layer_norm")
    whole, left = _projected(mean.tokens, stream.kernel, level, rows, rows)
    return (gradient - whole) * left_of_random + left


def _table_gradient(arch: Architecture, batch: TokenBatch, gradient: np.ndarray) -> float:
    """Square of the norm of the table's gradient, its kernel within a norm: rows of equal tokens add up."""
    method = embedding(arch.embedding)
    factor = arch.evaluate(method.multiplier) ** 2 * arch.evaluate(method.gradient_share) ** 2
    if method.layer_norm:
        factor /= row_size(arch) * (1 - mean_share(arch, arch.d_model)) + arch.norm_epsilon
    return arch.d_model * factor * batch.total(gradient * batch.same_input)
