"""Are near-ties of growing logits as frequent, and worth as much, as `theory.score_path` derives?

Follows the kernel of a sequence's first two tokens through a stack without a norm before attention by drawing the heads
of every block: attention, then ReLU, with a norm on both outputs or without any. Prints how alike the two become,
how 1 - rho falls (d log / d log n with output norms, derived -1/4 in the limit; d log / d n without), in how many heads
both tokens have a share above 1 %, and what a block adds to the squared gradient through the keys: derived at the same
nu and rho, and drawn over derived, in the mean over blocks and heads with twice its standard error.

Then one network after the other, float64 and without norms, d_model 64, 2 heads, 16 tokens, ReLU, SmallInit: how fast
log gradient norm grows a block in stretches of the depth, against the value path's rate, which a typical network keeps.

    python benchmarks/near_ties.py [--heads 4000] [--networks 12] [--out FILE.md]
"""

import argparse
from dataclasses import replace
from itertools import pairwise, product
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from theory import Architecture, function_of
from theory import notation as s
from theory.activation import ACTIVATIONS
from theory.dual_activation import dual_activation
from theory.growth import growth
from theory.positions import rope_angles
from theory.random_attention import causal_softmax, rotate
from theory.score_path import KEY_GAIN, TURNED_KEY_GAIN

D_HEAD, GAIN = 32, 0.4
SPANS = {"on outputs": (1, 4, 16, 64, 256, 1024), "none": (1, 8, 16, 24, 32, 40)}
HEADER = (
    "| norm | positions | blocks | 1 - rho at the end | its fall | near-ties | gain, derived | drawn over derived |"
)
WRITTEN = {"on outputs": (1.0, 1.0), "none": (0.2, 0.3)}
"""variance that attention and ReLU write: of equal tokens, over the stream's without norms"""


def block(
    rng: np.random.Generator, kernel: np.ndarray, heads: int, rope: bool, norm: str
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The kernel after one block; by head, squared gradient at both keys for one of 1 a coordinate after attention, and
    the product of the two tokens' shares."""
    q, k, v = (np.linalg.cholesky(kernel) @ rng.normal(size=(heads, 2, D_HEAD)) for _ in range(3))
    q, k = np.sqrt(GAIN) * q, np.sqrt(GAIN) * k
    if rope:
        q, k = rotate(q), rotate(k)
    weights = causal_softmax(q @ k.mT / np.sqrt(D_HEAD))
    out, (of_attention, of_relu) = np.mean(weights @ kernel @ weights.mT, axis=0), WRITTEN[norm]
    scale = of_attention / (out[1, 1] if norm == "on outputs" else 1.0)
    above = np.sqrt(scale) * rng.normal(size=(heads, D_HEAD))
    slope = weights[:, 1, 0] * weights[:, 1, 1]
    at_logit = slope * np.sum(above * (v[:, 0] - v[:, 1]), axis=1) / np.sqrt(D_HEAD)
    gained = GAIN * at_logit**2 * 2 * np.mean(q[:, 1] ** 2, axis=1)
    sizes = np.sqrt(np.outer(np.diag(out), np.diag(out))) if norm == "on outputs" else 1.0
    kernel = kernel + of_attention * out / sizes
    relu = 2 * dual_activation(ACTIVATIONS["relu"], kernel)[0]  # which keeps a token's variance
    return kernel + of_relu * relu / (kernel[1, 1] if norm == "on outputs" else 1.0), gained, slope


def rows(norm: str, positions: str, heads: int) -> list[str]:
    """The table's lines of one arrangement, a line a span of blocks."""
    turned = np.mean(1 - np.cos(rope_angles(2, D_HEAD)[1]))
    gain = KEY_GAIN if positions == "none" else TURNED_KEY_GAIN
    derived = function_of(gain.subs({s.query_gain: GAIN, s.key_gain: GAIN, s.turned: turned}), s.correlation)
    rng, kernel, spans = np.random.default_rng(0), 0.4 * np.eye(2), SPANS[norm]
    apart, ratios, goals, tied = [], [], [], []
    for _ in range(spans[-1]):
        rho = kernel[0, 1] / np.sqrt(kernel[0, 0] * kernel[1, 1])
        apart.append(1 - rho)
        goals.append(derived(rho) * (1.0 if norm == "on outputs" else WRITTEN[norm][0] * kernel[1, 1]))
        kernel, gained, slope = block(rng, kernel, heads, positions == "rope", norm)
        ratios.append(gained / goals[-1])
        tied.append(np.mean(slope > 0.01 * 0.99))
    found = []
    for first, last in pairwise(spans):
        between, ratio = slice(first - 1, last - 1), np.array(ratios[first - 1 : last - 1])
        fall = np.log(apart[last - 1] / apart[first - 1])
        fall /= np.log(last / first) if norm == "on outputs" else last - first
        cells = (
            norm, positions, f"{first} to {last}", f"{apart[last - 1]:.3g}", f"{fall:.3f}",
            f"{np.mean(tied[between]):.2g}", f"{np.mean(goals[between]):.3g}",
            f"{ratio.mean():.3f} ± {2 * ratio.std() / np.sqrt(ratio.size):.3f}",
        )  # fmt: skip
        found.append(f"| {' | '.join(cells)} |")
    return found


def one_block(x: jax.Array, key: jax.Array) -> jax.Array:
    """x + attention, + ReLU feed-forward, for tokens [16, 64], with weights drawn from the key."""
    tokens, d = x.shape
    *square, up, down = jax.random.split(key, 6)
    std = np.sqrt(2 / (5 * d))
    q, k, v = (
        jnp.swapaxes((x @ (std * jax.random.normal(each, (d, d)))).reshape(tokens, -1, D_HEAD), 0, 1)
        for each in square[:3]
    )
    logits = jnp.where(np.tril(np.ones((tokens, tokens), bool)), q @ k.mT / np.sqrt(D_HEAD), -jnp.inf)
    below = jnp.maximum(logits - jax.lax.stop_gradient(logits.max(axis=-1, keepdims=True)), -700.0)
    weights = jnp.exp(below) / jnp.exp(below).sum(axis=-1, keepdims=True)
    x = x + jnp.swapaxes(weights @ v, 0, 1).reshape(tokens, d) @ (std * jax.random.normal(square[3], (d, d)))
    hidden = jax.nn.relu(x @ (std * jax.random.normal(up, (d, 4 * d))))
    return x + hidden @ (std * jax.random.normal(down, (4 * d, d)))


def network(seed: int, blocks: int) -> np.ndarray:
    """log gradient norm before every block, float64[blocks + 1], for a white gradient of norm 1 after the last."""
    forward = jax.jit(one_block)
    backward = jax.jit(lambda x, key, above: jax.vjp(lambda x: one_block(x, key), x)[1](above)[0])
    first, last, *keys = jax.random.split(jax.random.key(seed), blocks + 2)
    stream = [0.632 * jax.random.normal(first, (16, 64))]
    for key in keys:
        stream.append(forward(stream[-1], key))
    gradient, logs = jax.random.normal(last, (16, 64)), [0.0]
    for x, key in zip(stream[-2::-1], reversed(keys), strict=True):
        gradient = gradient / jnp.linalg.norm(gradient)
        gradient = backward(x, key, gradient)
        logs.append(logs[-1] + float(jnp.log(jnp.linalg.norm(gradient))))
    return np.array(logs[::-1])


def typical(networks: int) -> list[str]:
    """The second table's lines."""
    logs = np.array([network(seed, 96) for seed in range(networks)])
    arch = Architecture(d_model=64, num_heads=2, seq_len=16, block="no_norm", initialization="small", activation="relu")
    value = growth(replace(arch, attention="qk_norm")).rate
    lines = [
        "| blocks | log gradient norm a block, mean of networks | lowest, highest | value path |",
        "|---" * 4 + "|",
    ]
    for first, last in pairwise((0, 8, 16, 24, 32, 64, 96)):
        rates = (logs[:, first] - logs[:, last]) / (last - first)
        error = 2 * rates.std(ddof=1) / np.sqrt(networks)
        cells = f"{rates.mean():.3f} ± {error:.3f} | {rates.min():.3f}, {rates.max():.3f} | {value:.3f}"
        lines.append(f"| {first} to {last} | {cells} |")
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--heads", type=int, default=4_000, help="drawn a block")
    parser.add_argument("--networks", type=int, default=12, help="followed one by one, at least 2")
    parser.add_argument("--out", type=Path, help="file for the table, in Markdown")
    options = parser.parse_args()
    lines = [HEADER, "|---" * 8 + "|"]
    print("\n".join(lines))
    for norm, positions in product(SPANS, ("none", "rope")):
        found = rows(norm, positions, options.heads)
        print("\n".join(found), flush=True)
        lines += found
    jax.config.update("jax_enable_x64", True)
    found = ["", *typical(options.networks)]
    print("\n".join(found))
    lines += found
    if options.out:
        options.out.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
