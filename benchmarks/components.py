"""How near is the theory on single components? Beside what Kedia et al. 2024, arXiv 2403.09635, print for theirs.

Draws settings of a norm, a feed-forward layer and an attention layer, and compares the mean square of the output and of
the gradient at the input: by the maps that `predict` is made of (`theory.stream`, `theory.sublayers`), and by autodiff
of the components of `models`. Inputs are Gaussian tokens of a given variance and pairwise correlation, incoming
gradients Gaussian ones with a correlation of their own, independent of the weights. The layers stand alone, as theirs
do, and once more behind a norm, as a pre-norm block has them. Prints percentiles of the relative error, in per cent,
and the standard errors of both sides.

Both sides are means over random draws. They are taken with control variates, quantities whose expectation is known
exactly (the input's own mean square, the size of a linear layer's output given its input, ...), which leave
expectations as they are and let fewer draws do.

    python benchmarks/components.py [--settings 18] [--seconds 1] [--out FILE.csv]
"""

import argparse
import dataclasses
import time
from collections.abc import Callable, Hashable, Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd

import models
from models.attention import attend
from models.feed_forward import activate, feed_forward
from models.linear import linear
from models.normalization import normalize
from models.parameters import Linear, Norm
from theory import Architecture, Initialization
from theory.activation import ACTIVATIONS, activation
from theory.architecture import NORMS
from theory.gram import Draws, root
from theory.random_attention import flat, uniform_attention
from theory.stream import Added, Stream, diagonal
from theory.sublayers import Arriving, forward
from theory.token_batch import TokenBatch

WIDTHS, LENGTHS = (64, 96, 128, 192, 256, 384, 512), (16, 24, 32, 48, 64, 96, 128, 192, 256)
ENOUGH = {"norm": 0.0003, "feed_forward": 0.0005, "attention": 0.002}
CHAIN = {"feed_forward": ("up", "down"), "attention": ("value", "output")}
LEAST_DRAWS, LEAST_NETWORKS, TOKENS = 32, 16, 256
SAME_SHAPE = 3  # settings in a row that differ in their numbers only, as compiling takes longer than measuring
NUMBERS = ("variance", "correlations", "std")
UNIT = Initialization("unit", 1.0, {}, "this benchmark")
KINDS = (
    ("norm", False), ("feed_forward", False), ("attention", False), ("feed_forward", True), ("attention", True)
)  # fmt: skip
KEDIA: dict[tuple[Hashable, Hashable], tuple[float, float, float]] = {
    ("feed_forward", "output"): (0.4, 1.4, 2.8),
    ("feed_forward", "gradient"): (0.2, 1.0, 2.2),
    ("norm", "gradient"): (0.4, 1.5, 3.2),
    ("attention", "output"): (1.4, 4.1, 7.8),
    ("attention", "gradient"): (2.2, 13.3, 44.5),
}
"""50th, 90th and 99th percentile of the relative error, in per cent, as the paper prints them"""


@dataclasses.dataclass(frozen=True)
class Setting:
    """One component and what enters it.

    variance, correlation: of the tokens' coordinates, and between two tokens. gradient_correlation: between the
    gradients, of variance 1, that enter two tokens of the output. logit_std: of an attention logit, of the weights'.
    normed: behind a norm.
    """

    component: str
    normed: bool
    arch: Architecture
    variance: float
    correlation: float
    gradient_correlation: float
    logit_std: float
    seed: int


def settings(count: int, seed: int = 0) -> Iterator[Setting]:
    """At least `count` settings of each component: scales uniform in their logarithm, the rest uniform."""
    draw = np.random.default_rng(seed)
    for component, normed in KINDS * -(-count // SAME_SHAPE):
        d, length = int(draw.choice(WIDTHS)), int(draw.choice(LENGTHS))
        heads = int(draw.choice([h for h in (1, 2, 4, 8, 16) if d % h == 0 and d // h >= 16 and d // h % 2 == 0]))
        d_ff = int(draw.choice([d, 2 * d, 8 * d // 3, 4 * d]))
        arch = Architecture(
            num_layers=1, d_model=d, num_heads=heads, num_kv_heads=int(draw.choice([1, heads, heads])), d_ff=d_ff,
            vocab_size=2, seq_len=length, block="no_norm", norm=str(draw.choice(NORMS)),
            activation=str(draw.choice(list(ACTIVATIONS))), positions=str(draw.choice(["none", "rope"])),
        )  # fmt: skip
        for _ in range(SAME_SHAPE):
            variance = 10 ** draw.uniform(-6, 2) if component == "norm" else 10 ** draw.uniform(-1, 1)
            logit_std = float(np.exp(draw.uniform(np.log(0.05), np.log(2))))
            score, tilt = logit_std / ((1 if normed else variance) * d), 10 ** draw.uniform(-0.5, 0.5)
            up, gate, down = 10 ** draw.uniform(-1, 0.6, 3)  # what the matrices multiply a mean square by
            std = {
                "attention.query": np.sqrt(score) * tilt, "attention.key": np.sqrt(score) / tilt,
                "attention.value": np.sqrt(up / d), "attention.output": np.sqrt(down / d),
                "feed_forward.up": np.sqrt(up / d), "feed_forward.gate": np.sqrt(gate / d),
                "feed_forward.down": np.sqrt(down / d_ff),
            }  # fmt: skip
            drawn = Initialization("drawn", 1.0, {kind: float(value) for kind, value in std.items()}, "this benchmark")
            yield Setting(
                component, normed, dataclasses.replace(arch, initialization=drawn), float(variance),
                draw.uniform(0, 0.9), draw.uniform(0, 0.9), logit_std, int(draw.integers(2**31)),
            )  # fmt: skip


def mean_of(draws: np.ndarray, controls: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Means of draws [n, k] and their relative standard errors, by regression on controls [n, c] of expectation 0."""
    spread = controls.std(axis=0)
    used = np.column_stack([np.ones(len(draws)), controls[:, spread > 0] / spread[spread > 0]])
    fitted, *_ = np.linalg.lstsq(used, draws, rcond=None)
    residual = draws - used @ fitted
    error = residual.std(axis=0) * np.sqrt(
        np.linalg.pinv(used.T @ used)[0, 0] * len(draws) / (len(draws) - used.shape[1])
    )
    return fitted[0], error / fitted[0]


def until(
    enough: float, seconds: float, least: int, draw: Callable[[int], np.ndarray]
) -> tuple[np.ndarray, np.ndarray, int]:
    """Means of output and gradient from calls of `draw`, their standard errors, and the number of draws.

    draw: of the number of the call, gives [n, 2 + controls]. It stops when both errors are below `enough`, or when the
    time is up, but not before it has `least`.
    """
    parts, start = [draw(0)], time.perf_counter()
    while True:
        drawn = np.concatenate(parts).astype(np.float64)
        if len(drawn) >= least:
            means, errors = mean_of(drawn[:, :2], drawn[:, 2:])
            if errors.max() <= enough or time.perf_counter() - start > seconds:
                return means, errors, len(drawn)
        parts.append(draw(len(parts)))


def predicted(setting: Setting, seconds: float) -> tuple[np.ndarray, np.ndarray, int]:
    """Mean square of output and input gradient by the theory's maps; their sampling errors; the pairs of networks."""
    arch, length = setting.arch, setting.arch.seq_len
    kernel = _kernel(length, setting.correlation) * setting.variance
    gradient = _kernel(length, setting.gradient_correlation)
    n = 2 * int(np.clip(2**18 // length**2, LEAST_NETWORKS // 2, 128))
    batch = TokenBatch.of(arch, 1, np.zeros((n, 1, length + 1), int), random=False)
    seeds, mean = np.random.SeedSequence(setting.seed), uniform_attention(length).astype(np.float32)

    def networks(_: int) -> np.ndarray:
        draws = Draws.of(seeds.spawn(1)[0])
        d = arch.d_model
        empty = np.zeros((n, length, d if d <= 2 * length else 1 + length), np.float32)
        rows = np.broadcast_to(root(kernel.astype(np.float32)), (n, length, length))
        tokens = Stream(empty, empty @ empty.mT).plus(Added.draw(draws, rows, arch, empty.shape[-1]))
        upstream = np.broadcast_to(gradient.astype(np.float32), (n, length, length))
        own, averaged = (_size(rows) for rows in (tokens.rows, mean @ tokens.rows))
        controls = [own / setting.variance - 1, averaged / np.trace(mean @ kernel @ mean.T) * length - 1]
        norm = tokens.norm(arch) if setting.normed or setting.component == "norm" else None
        z, returned = tokens if norm is None else norm.tokens, upstream
        size = _size(z.rows)
        if setting.component != "norm":
            own, averaged = (_size(rows) for rows in (z.rows, mean @ z.rows))
            sublayer, output = forward(setting.component, arch, 0, z, batch, draws)
            size = _size(output)
            arriving = Arriving(upstream, np.zeros((n, length), np.float32), None)
            returned = sublayer.backward(arch, 0, batch, arriving, draws).kernel
            made: Any = sublayer
            if setting.component == "feed_forward":
                hidden = diagonal(made.hidden).mean(axis=1)
                controls.append(size / (_gain(arch, "feed_forward.down") * hidden) - 1)
            else:
                values = flat(made.heads.values) * np.float32(arch.num_heads**-0.5)
                controls += [_size(values) / own - 1, _size(mean @ values) / averaged - 1]
        returned = returned if norm is None else returned * norm.jacobian(arch)
        drawn = np.column_stack([size, diagonal(returned).mean(axis=1), *controls])
        return drawn.reshape(2, n // 2, -1).mean(axis=0)  # a network and its mirror image

    return until(ENOUGH[setting.component] / 2, seconds, LEAST_NETWORKS, networks)


def measured(setting: Setting, seconds: float) -> tuple[np.ndarray, np.ndarray, int]:
    """The same by autodiff of the model's component; standard errors; draws of the weights.

    Each draw of the weights is seen by about TOKENS tokens' worth of independent sequences.
    """
    arch = setting.arch
    size = int(np.clip(2**18 // (arch.d_model * max(arch.seq_len, TOKENS)) * 4, 8, LEAST_DRAWS))
    many = compiled(setting.component, setting.normed, dataclasses.replace(arch, initialization=UNIT))
    numbers = {
        "variance": setting.variance,
        "correlations": (setting.correlation, setting.gradient_correlation),
        "std": {kind.partition(".")[2]: arch.std(kind)[0] for kind in arch.matrices if setting.component in kind},
    }
    numbers = jax.tree.map(np.float32, numbers)

    def weights(call: int) -> np.ndarray:
        return np.asarray(many(jax.random.split(jax.random.fold_in(jax.random.key(setting.seed), call), size), numbers))

    return until(ENOUGH[setting.component], seconds, LEAST_DRAWS, weights)


@lru_cache(maxsize=1)
def compiled(component: str, normed: bool, arch: Architecture) -> Callable[[jax.Array, dict], jax.Array]:
    """A function of keys [n] and a setting's numbers: mean squares of output and input gradient, and the controls, [n].

    arch: with weights of unit variance, which the setting's standard deviations multiply. Among the controls is a
    linear component of the same weights: the identity for the activation, the causal mean for attention.
    """
    shape = (max(1, TOKENS // arch.seq_len), arch.seq_len, arch.d_model)
    mean = uniform_attention(arch.seq_len) if component == "attention" else np.eye(arch.seq_len)

    def tokens(key: jax.Array, correlation: jax.Array) -> jax.Array:
        own, common = jax.random.split(key)
        shared = jax.random.normal(common, (shape[0], 1, arch.d_model))
        return jnp.sqrt(1 - correlation) * jax.random.normal(own, shape) + jnp.sqrt(correlation) * shared

    def mean_square(x: jax.Array) -> jax.Array:
        return jnp.mean(jnp.square(x))

    def average(x: jax.Array, a: np.ndarray) -> jax.Array:
        return jnp.einsum("ts,bsi->bti", jnp.asarray(a, jnp.float32), x)

    def averaged(correlation: jax.Array, a: np.ndarray) -> jax.Array:
        """What averaging leaves of the mean square of tokens of that correlation."""
        own, common = np.square(a).sum() / len(a), np.square(a.sum(axis=1)).mean()
        return (1 - correlation) * own + correlation * common

    def once(key: jax.Array, numbers: dict) -> jax.Array:
        keys, variance, (forth, back), std = jax.random.split(key, 3), *(numbers[name] for name in NUMBERS)
        x, g = tokens(keys[0], forth) * jnp.sqrt(variance), tokens(keys[1], back)
        controls = [mean_square(x) / variance - 1, mean_square(g) - 1]
        controls.append(mean_square(average(x, mean)) / (variance * averaged(forth, mean)) - 1)
        controls.append(mean_square(average(g, mean.T)) / averaged(back, mean.T) - 1)
        if component == "feed_forward":  # mirror images: F(u) and F(-u) share what is odd
            x, g = jnp.concatenate([x, -x]), jnp.concatenate([g, g])
        has_norm, unit = normed or component == "norm", Norm(jnp.ones(arch.d_model), None)
        z, through_norm = jax.vjp(lambda x: normalize(unit, x, arch) if has_norm else x, x)
        if component == "norm":
            return jnp.stack([mean_square(z), mean_square(through_norm(g)[0]), *controls])
        layer, (first, last) = feed_forward if component == "feed_forward" else attend, CHAIN[component]
        weights = jax.tree.map(lambda leaf: leaf[0], getattr(models.init(keys[2], arch).blocks, component))
        scaled = {name: Linear(getattr(weights, name).weight * value, None) for name, value in std.items()}
        weights = dataclasses.replace(weights, **scaled)
        gains = {name: std[name] ** 2 * len(matrix.weight) for name, matrix in scaled.items()}
        y, reach, outputs = jax.vjp(lambda z: layer(weights, z, arch)[:2], z, has_aux=True)

        def linearised(z: jax.Array) -> jax.Array:
            hidden = linear(scaled[first], average(z, mean))
            if component == "attention":
                group = arch.num_heads // arch.kv_heads
                hidden = jnp.repeat(hidden.reshape(*z.shape[:2], arch.kv_heads, -1), group, axis=2).reshape(z.shape)
            return linear(scaled[last], hidden)

        flat_y, flat_reach = jax.vjp(linearised, z)
        through = gains[first] * gains[last]
        controls.append(mean_square(flat_y) / (through * mean_square(average(z, mean))) - 1)
        controls.append(mean_square(flat_reach(g)[0]) / (through * mean_square(average(g, mean.T))) - 1)
        if component == "attention":
            before = attend(dataclasses.replace(weights, output=Linear(jnp.eye(arch.d_model), None)), z, arch)[0]
        elif weights.gate is None:
            before = activate(activation(arch.activation), outputs["up"])
        else:
            before = activate(activation(arch.activation), outputs["gate"]) * outputs["up"]
        controls.append(mean_square(y) / (gains[last] * mean_square(before)) - 1)
        for name in sorted(set(outputs) - {last}):
            controls.append(mean_square(outputs[name]) / (gains[name] * mean_square(z)) - 1)
        return jnp.stack([mean_square(y), mean_square(through_norm(reach(g)[0])[0]), *controls])

    return jax.jit(lambda keys, numbers: jax.lax.map(lambda key: once(key, numbers), keys))


def _size(rows: np.ndarray) -> np.ndarray:
    """Mean over the tokens of |row|^2, rows [n, T, k], tokens over sqrt(d_model)."""
    return np.sum(rows**2, axis=-1).mean(axis=1)


def _kernel(length: int, correlation: float) -> np.ndarray:
    return (1 - correlation) * np.eye(length) + correlation


def _gain(arch: Architecture, kind: str) -> float:
    """What a matrix multiplies the mean square of an independent input by."""
    return float(arch.std(kind)[0]) ** 2 * arch.shape(kind)[0]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--settings", type=int, default=6, help="settings of each component")
    parser.add_argument("--seconds", type=float, default=1, help="most seconds of measuring a setting")
    parser.add_argument("--out", type=Path, help="CSV file for every setting's rows")
    options = parser.parse_args()
    rows, start = [], time.perf_counter()
    for number, setting in enumerate(settings(options.settings)):
        theory, theory_error, networks = predicted(setting, options.seconds / 3)
        truth, truth_error, draws = measured(setting, options.seconds)
        arch = setting.arch
        for index, quantity in enumerate(("output", "gradient")):
            rows.append(
                {
                    "setting": number, "component": setting.component, "normed": setting.normed, "quantity": quantity,
                    "error": abs(theory[index] / truth[index] - 1), "signed": theory[index] / truth[index] - 1,
                    "measured_error": truth_error[index], "predicted_error": theory_error[index],
                    "draws": draws, "networks": networks, "d_model": arch.d_model, "seq_len": arch.seq_len,
                    "heads": arch.num_heads, "kv_heads": arch.kv_heads, "d_ff": arch.ff_width,
                    "activation": arch.activation, "norm": arch.norm, "positions": arch.positions,
                    "variance": setting.variance, "correlation": setting.correlation,
                    "gradient_correlation": setting.gradient_correlation, "logit_std": setting.logit_std,
                }
            )  # fmt: skip
        if options.out:
            pd.DataFrame(rows).to_csv(options.out, index=False)
    report(pd.DataFrame(rows))
    print(f"\n{options.settings} settings of each component, {time.perf_counter() - start:.0f} s")


def report(table: pd.DataFrame) -> None:
    """Print the percentiles of the error in per cent, ours and theirs, and the standard errors behind ours."""
    columns = (
        "component",
        "",
        "quantity",
        "ours 50 / 90 / 99",
        "theirs",
        "standard error: measured, predicted (median)",
    )
    widths = (14, 14, 10, 22, 20, 0)
    print("".join(f"{name:{width}}" for name, width in zip(columns, widths, strict=True)))
    for (component, normed, quantity), mine in table.groupby(["component", "normed", "quantity"], sort=False):
        ours, theirs = mine["error"].quantile([0.5, 0.9, 0.99]), KEDIA.get((component, quantity))
        cells = (
            component, "behind a norm" if normed else "", quantity, " / ".join(f"{100 * e:.2f}" for e in ours),
            "" if normed or theirs is None else " / ".join(map(str, theirs)),
            ", ".join(f"{100 * mine[f'{side}_error'].median():.3f}" for side in ("measured", "predicted")),
        )  # fmt: skip
        print("".join(f"{cell:{width}}" for cell, width in zip(cells, widths, strict=True)))


if __name__ == "__main__":
    main()
