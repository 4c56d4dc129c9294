"""One group's way through the stack: forward addition by addition, and back with the gradient's kernel.

Of the dependence between a layer's forward weights and the gradient that comes back through it, what the norms make is
kept: `_lacking`; and where no norm stands before the head, the gradient's mean along the tokens
(`theory.mean_gradient`). The rest is dropped, and so are the gradient's own fluctuations.
"""

from dataclasses import dataclass, replace

import numpy as np

from theory.addition import Addition, add
from theory.architecture import Architecture
from theory.attention_scheme import attention_scheme
from theory.block import PARTS, block
from theory.embedding import embedding
from theory.gram import Draws
from theory.mean_gradient import Mean, at_outputs, before_embedding_norm, through_output_norm, with_means
from theory.stream import blocks, diagonal, embed, mean_share, outer, pair_sum, row_size
from theory.sublayers import Arriving
from theory.token_batch import TokenBatch
from theory.upstream import upstream

_LEAST = np.sqrt(np.finfo(np.float32).tiny)
"""stands for a gradient of zero, of a token that is sure of its target, beside the largest of all tokens, 1"""


def group_squares(arch: Architecture, batch: TokenBatch, draws: Draws) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Every square that a Prediction has the root of, in the mean over one group of networks.

    And the gradient's at the first place, up to a factor that all groups share, for each pair of mirror images.
    """
    stream, row = embed(arch, batch, draws)
    embedded, own_row = stream, row
    variances, additions = [stream.observed_variance(arch, batch)], list[Addition]()
    for layer in range(arch.num_layers):
        for parts in block(arch.block).additions:
            stream, row, addition = add(arch, layer, parts, stream, row, batch, draws)
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
        mean = Mean(np.eye(arch.seq_len, dtype=np.float32) * tokens, above.rows / divisor)
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
        gradient = before_embedding_norm(arch, embedded, own_row, gradient, None if arch.tied else mean)
    table = _table_gradient(arch, batch, gradient) * scale + above.table
    tables = {"embedding": np.array([table])} | ({} if arch.tied else {"head": np.array([above.head])})
    places = {"shortcut_std": np.array(variances), "gradient_norm": arch.d_model * np.array(norms[::-1])}
    pairs = diagonal(gradient).mean(axis=-1, dtype=np.float64).reshape(2, -1).mean(axis=0) * scale
    return squares | tables | places, pairs


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


def _back(
    arch: Architecture,
    addition: Addition,
    batch: TokenBatch,
    gradient: np.ndarray,
    along: _Along,
    mean: Mean | None,
    draws: Draws,
) -> tuple[np.ndarray, _Along, Mean | None, dict[str, float]]:
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
    means = [None] * len(addition.parts) if mean is None else at_outputs(arch, addition, mean.tokens)
    for number, ((sublayer, pre, output), share, response, out) in enumerate(
        zip(addition.parts, addition.shares, addition.responses, means, strict=True)
    ):
        reaching = gradient
        lost = random * share
        if output is not None:
            jacobian = output.jacobian(arch, radial=1 - lost, mean=along.mean)
            reaching, lost = reaching * jacobian, np.ones_like(lost)
            if mean is not None:
                reaching = reaching + through_output_norm(addition, number, mean.tokens, jacobian)
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
        crossed, mean = with_means(mean, returned, addition, shortcut, batch)
        before = before + crossed
        # where few coordinates leave less than nothing of a token's square
        before = before * outer((diagonal(before) > 0).astype(np.float32))
    grown = np.maximum(diagonal(before), _LEAST)
    radial = (shortcut**2 * size + felt - lacking) / grown
    along = _Along(np.clip(radial, 0, arch.d_model), np.clip(level / grown, 0, arch.d_model))
    return before, along, mean, squares


def _lacking(
    addition: Addition, shortcut: float, gradient: np.ndarray, random: np.ndarray
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


def _table_gradient(arch: Architecture, batch: TokenBatch, gradient: np.ndarray) -> float:
    """Square of the norm of the table's gradient, its kernel within a norm: rows of equal tokens add up."""
    method = embedding(arch.embedding)
    factor = arch.evaluate(method.multiplier) ** 2 * arch.evaluate(method.gradient_share) ** 2
    if method.layer_norm:
        factor /= row_size(arch) * (1 - mean_share(arch, arch.d_model)) + arch.norm_epsilon
    return arch.d_model * factor * batch.total(gradient * batch.same_input)
