"""Do the bounds hold, and how far above the truth are they? The table of docs/bounds.md.

Draws architectures from all registered blocks, attentions, activations, norms, position codes, initialisations and
embeddings, tied or not, with biases or not, at sizes that make a draw cheap; and for each of them networks: as drawn,
trained for a few steps of sign descent at a high rate, or with noise on every array, biases and norms' scales too, and
each multiplied by its own factor from 0.01 to 100. Every residual addition's exact Jacobian norm (singular values, in
float64) is held against

- `certify`, which must never be below it, for all of them;
- `bound(arch, "high_probability", 0.999)`, for those as drawn: at most 1 network in 1,000;
- `bound(arch)`, the paper's, for those as drawn: it holds in expectation only, so how often it fails is reported.

The exit status is 1 if `certify` failed at all or the second more often than it may.

    python benchmarks/certificates.py [--architectures 56] [--draws 180] [--measured FILE.csv]
"""

import argparse
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
from threadpoolctl import threadpool_limits

import models
from models.factors import factors_of
from models.linear import as_matrices
from models.transformer import add, embed
from theory import Architecture, bound
from theory.activation import ACTIVATIONS
from theory.architecture import NORMS, POSITIONS
from theory.attention_scheme import ATTENTIONS
from theory.block import BLOCKS
from theory.block import block as block_scheme
from theory.embedding import EMBEDDINGS
from theory.initialization import INITIALIZATIONS
from verify import certify

PROBABILITY = 0.999
WEIGHTS = ("drawn", "trained", "scaled")
FIELDS: dict[str, tuple] = {
    "block": tuple(BLOCKS),
    "attention": tuple(name for name in ATTENTIONS if name != "mup_attention"),  # younger than docs' table
    "activation": tuple(ACTIVATIONS),
    "norm": NORMS,
    "positions": POSITIONS,
    "initialization": tuple(INITIALIZATIONS),
    "embedding": (*EMBEDDINGS, 0.1, 10.0),
    "size": ((8, 8), (16, 8), (32, 4), (16, 4)),  # d_model, seq_len
    "num_heads": (2, 1, 4),
    "num_kv_heads": (None, 1, None),
    "d_ff": (None, 24, None, 5),
    "num_layers": (2, 1, 3),
    "bias": (False, True),
    "tied": (False, True, False),
    "norm_epsilon": (1e-5, 1e-6, 1e-2),
}


def architectures(count: int) -> list[Architecture]:
    """Each field's values in an order of its own, every value once before any twice; impossible ones left out."""
    rng = np.random.default_rng(0)
    made: list[Architecture] = []
    while len(made) < count:
        orders = {field: rng.permutation(len(values)) for field, values in FIELDS.items()}
        for number in range(max(map(len, FIELDS.values()))):
            fields: dict[str, Any] = {f: v[orders[f][number % len(v)]] for f, v in FIELDS.items()}
            d_model, seq_len = fields.pop("size")
            try:
                made.append(Architecture(d_model=d_model, seq_len=seq_len, vocab_size=11, **fields))
            except ValueError:
                continue
    return made[:count]


@partial(jax.jit, static_argnames=("arch", "steps"))
def train(params: Any, tokens: jax.Array, arch: Architecture, steps: int = 5, rate: float = 0.05) -> Any:
    """Sign descent on one batch int[batch, seq + 1]."""

    def step(_: int, params: Any) -> Any:
        slope = jax.grad(lambda p: models.loss(p, tokens, arch)[0])(params)
        return jax.tree.map(lambda p, g: p - rate * jnp.sign(g), params, slope)

    return jax.lax.fori_loop(0, steps, step, params)


@partial(jax.jit, static_argnames="arch")
def jacobian_norms(params: Any, tokens: jax.Array, arch: Architecture) -> jax.Array:
    """Exact ‖dx'/dx‖ of every residual addition at tokens int[1, seq], float[S]."""
    additions = block_scheme(arch.block).additions

    def block(x: jax.Array, layer: Any) -> tuple[jax.Array, jax.Array]:
        weights, factors = layer
        found = []
        for parts in additions:

            def addition(x: jax.Array, parts: tuple[str, ...] = parts) -> jax.Array:
                return add(weights, x, arch, factors, parts)[0]

            found.append(jnp.linalg.norm(jax.jacfwd(addition)(x).reshape(x.size, x.size), 2))
            x = addition(x)
        return x, jnp.stack(found)

    stack = (params.blocks, factors_of(arch, params.embedding.dtype).blocks)
    return jax.lax.scan(block, embed(params, tokens, arch), stack)[1].reshape(-1)


@jax.jit
def in_float64(params: Any) -> Any:
    """The same function's matrices, written out, under jax.enable_x64."""
    return as_matrices(jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float64), params))


def network(kind: str, arch: Architecture, key: jax.Array, rng: np.random.Generator) -> Any:
    """One network's parameters."""
    params = models.init(key, arch)
    if kind == "trained":
        return train(params, rng.integers(11, size=(2, arch.seq_len + 1)), arch)
    if kind == "scaled":
        return jax.tree.map(
            lambda leaf: np.float32((leaf + 0.1 * rng.normal(size=leaf.shape)) * 10 ** rng.uniform(-2, 2)), params
        )
    return params


def measured(number: int, arch: Architecture, draws: int) -> list[dict]:
    """One row for every network and residual addition: its Jacobian's norm, and what `certify` says."""
    rng, found = np.random.default_rng(number), []
    for draw in range(draws):
        kind = WEIGHTS[draw % len(WEIGHTS)]
        params = network(kind, arch, jax.random.key(1000 * number + draw, impl="rbg"), rng)
        tokens = rng.integers(11 if draw % 5 else 1, size=(1, arch.seq_len))
        row = {"architecture": number, "weights": kind, "network": draw}
        try:
            certificate = certify((params, arch), tokens)
        except ValueError:  # float64 overflows
            found.append(row | {"place": -1})
            continue
        with jax.enable_x64(True), jax.default_matmul_precision("highest"):
            exact = in_float64(params)
            norms = np.asarray(jacobian_norms(exact, jnp.asarray(tokens), arch))
        norms = np.maximum(norms, certificate.sublayer_jacobian_norm)
        found += [
            row | {"place": place, "norm": norm, "certify": certificate.sublayer_bound[place]}
            for place, norm in enumerate(norms)
        ]
    return found


def judged(data: pd.DataFrame, archs: list[Architecture]) -> pd.DataFrame:
    """With each architecture's block and attention, and its bounds at initialisation for the networks as drawn."""
    parts = []
    for number, arch in enumerate(archs):
        own = data[data["architecture"] == number]
        drawn = (own["weights"] == "drawn") & (own["place"] >= 0)
        own = own.assign(block=str(arch.block), attention=str(arch.attention))
        for method in ("high_probability", "paper"):
            limits = bound(arch, method, PROBABILITY).sublayer
            own[method] = np.where(drawn, limits[own["place"].clip(lower=0)], np.nan)
        parts.append(own)
    return pd.concat(parts)


def table(data: pd.DataFrame) -> pd.DataFrame:
    """By block: networks, what failed, and bound / norm as "median (95th percentile)"."""
    lines = {}
    for name, own in [*data.groupby("block"), ("all", data)]:
        line: dict[str, Any] = {"networks": _networks(own), "certify fails": int(_fails(own, "certify").sum())}
        for kind in WEIGHTS:
            line[f"certify, {kind}"] = _slack(own[own["weights"] == kind], "certify")
        drawn = own[(own["weights"] == "drawn") & (own["place"] >= 0)]
        failed = _networks(drawn[_fails(drawn, "high_probability")])
        line["high_probability fails"] = f"{failed} of {_networks(drawn)}"
        line["high_probability"] = _slack(drawn, "high_probability")
        line["paper fails, %"] = f"{100 * _fails(drawn, 'paper').mean():.2g}"
        line["paper"] = _slack(drawn, "paper")
        lines[name] = line
    return pd.DataFrame.from_dict(lines, orient="index")


def _networks(data: pd.DataFrame) -> int:
    return data.groupby(["architecture", "network"]).ngroups


def _fails(data: pd.DataFrame, method: str) -> pd.Series:
    """Where the norm is above, by more than float64's rounding of it."""
    return data["norm"] > data[method] * (1 + 1e-9)


def _slack(data: pd.DataFrame, method: str) -> str:
    ratio = (data[method] / data["norm"]).replace(np.inf, np.nan).dropna()
    return f"{ratio.median():.2g} ({ratio.quantile(0.95):.2g})" if len(ratio) else "-"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--architectures", type=int, default=56)
    parser.add_argument("--draws", type=int, default=180, help="networks of each")
    parser.add_argument("--measured", type=Path, help="CSV of the norms, to go on from and to judge anew")
    options = parser.parse_args()
    archs = architectures(options.architectures)
    data = pd.DataFrame()
    if options.measured is not None and options.measured.exists():
        data = pd.read_csv(options.measured)
    start, first = time.perf_counter(), 0 if data.empty else data["architecture"].max() + 1
    for number, arch in list(enumerate(archs))[first:]:
        jax.clear_caches()  # a process can hold the programs of about 120 architectures
        with threadpool_limits(1):  # for matrices this small more threads only wait for one another
            data = pd.concat([data, pd.DataFrame(measured(number, arch, options.draws))])
        print(f"{number + 1} architectures, {time.perf_counter() - start:.0f} s", file=sys.stderr, flush=True)
        if options.measured is not None:
            data.to_csv(options.measured, index=False)
    data = judged(data, archs)
    print(table(data).to_string())
    drawn = data[(data["weights"] == "drawn") & (data["place"] >= 0)]
    print(f"\n{(data['place'] < 0).sum()} networks overflow float64; the paper's bound fails by attention, %:")
    print((100 * _fails(drawn, "paper").groupby(drawn["attention"]).mean()).round(2).to_string())
    failed, tried = _networks(drawn[_fails(drawn, "high_probability")]), _networks(drawn)
    return int(_fails(data, "certify").any() or failed > (1 - PROBABILITY) * tried)


if __name__ == "__main__":
    sys.exit(main())
