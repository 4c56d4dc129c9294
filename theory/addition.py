"""One residual addition on the way forward, and what of it the way back needs."""

from dataclasses import dataclass

import numpy as np

from theory.architecture import Architecture
from theory.block import block
from theory.gram import Draws
from theory.stream import Added, Norm, OwnRow, Stream, cosine, diagonal
from theory.sublayers import Sublayer, forward
from theory.token_batch import TokenBatch


@dataclass(frozen=True)
class Addition:
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


def add(
    arch: Architecture,
    layer: int,
    parts: tuple[str, ...],
    stream: Stream,
    row: OwnRow,
    batch: TokenBatch,
    draws: Draws,
) -> tuple[Stream, OwnRow, Addition]:
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
    addition = Addition(
        layer, shortcut, tuple(done), before, after, turned, tuple(outputs), tuple(shares), tuple(responses), post,
        kernel, summed, level, np.sqrt(row.size), kept, tuple(met),
    )  # fmt: skip
    if arch.tied:
        row = row.times(shortcut)
        for added in written:
            row = row.plus(added.times(branch).kernel)
        row = row if post is None else row.over(post.divisor)
    return total if post is None else post.tokens, row, addition
