"""A coordinate check: how large what a network computes is after a few steps, and how that goes with width and depth.

Beyond the one of Microsoft's mup (Yang et al., arXiv 2203.03466, appendix D.1 [M]; package [C]: sizes of activations
against width, one line a module, judged by eye) it goes over depths too, takes the change since step 0 on a fixed
batch, which is what the theory fixes, and answers with exponents, intervals over seeds and a verdict.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
from jaxtyping import Array, Float, Int

import models
from models import Switches
from models.factors import BlockFactors, Factors
from models.parameters import Block, Transformer
from models.transformer import add, embed
from theory import Architecture
from theory.block import block as block_scheme
from verify.measurement.measure import matrix_norms
from verify.training.compiled import programs
from verify.training.corpus import load_corpus
from verify.training.loop import batch, begin
from verify.training.run import Lane, Run, lanes_of
from verify.training.state import State

# name: (unit, meaning)
STATISTICS: dict[str, tuple[str, str]] = {
    "activation": ("1", "std of the stream at a place; RMS of a linear layer's output; mean largest attention logit"),
    "change": ("1", "RMS of the difference since step 0: of the stream at a place, of the logits"),
    "decay": ("1 per step", "share of a matrix that weight decay takes in the step"),
    "gradient": ("nats per token", "RMS of dL/dx of the stream at a place; of dL/dW before clipping"),
    "update": ("1", "RMS of the step's change of W, decay included"),
    "parameter": ("1", "RMS of W before the step"),
    "effective_rate": ("1", "update over parameter"),
}


def resized(arch: Architecture, d_model: int, num_layers: int) -> Architecture:
    """The architecture at that size: heads as wide as they were, the feed-forward and key-value shares as they were.

    Raises ValueError for a width that has no whole number of such heads or hidden units.
    """
    group = arch.num_heads // arch.kv_heads
    if d_model % (arch.d_head * group):
        raise ValueError(
            f"widths: must be multiples of d_head times the queries that share a key, {arch.d_head} x {group} = "
            f"{arch.d_head * group}, got {d_model}"
        )
    d_ff, rest = divmod(arch.ff_width * d_model, arch.d_model)
    if rest:
        raise ValueError(
            f"widths: must keep d_ff a whole number, which is {arch.ff_width} at {arch.d_model}, got {d_model}"
        )
    heads = d_model // arch.d_head
    return dataclasses.replace(
        arch,
        num_layers=num_layers,
        d_model=d_model,
        num_heads=heads,
        num_kv_heads=None if arch.num_kv_heads is None else heads // group,
        d_ff=None if arch.d_ff is None else d_ff,
    )


def ladder(run: Run, widths: Sequence[int], depths: Sequence[int]) -> list[Run]:
    """The run at each of these widths with its own depth, and at each of these depths with its own width; each once.

    Raises ValueError as `resized` and `Architecture` do.
    """
    width, depth = run.arch.d_model, run.arch.num_layers
    sizes = dict.fromkeys([*((each, depth) for each in widths), *((width, each) for each in depths)])
    return [dataclasses.replace(run, arch=resized(run.arch, *size)) for size in sizes]


def measure_coordinates(run: Run, seeds: int, advanced: Callable[[int], None] | None = None) -> pd.DataFrame:
    """Take the run's steps with several seeds, from its own on, as lanes of one program; every statistic of every step.

    Columns: width, depth, step, seed, where, statistic (a name of `STATISTICS`, in its unit), value. where: number of
    a place of the stream from 0 to S; kind of matrix, by root mean square over its layers; attention.logit. step:
    updates taken before. Activations and changes are of steps 0 to `run.steps`, on one fixed held-out batch, in
    float32 and without dropout; all else is of the `run.steps` training steps. Values are NaN from a divergence on.

    advanced: called after each step with the number of steps done, 1. Raises ValueError for no seed, and as
    `load_corpus` does.
    """
    if seeds < 1:
        raise ValueError(f"seeds: must be at least 1, got {seeds}")
    program, arch, of = run.program(), run.arch, programs(run)
    corpus = load_corpus(run.corpus, arch.vocab_size)
    runs = [dataclasses.replace(run, seed=run.seed + number) for number in range(seeds)]
    lanes = lanes_of(runs)
    fixed = jnp.asarray(corpus.batch(arch.seq_len, run.batch_size, seed=0, step=0, split="held_out")[:, :-1])
    states = jax.tree.map(lambda *leaves: jnp.concatenate(leaves), *map(begin, runs))
    start = _start(states, lanes, fixed, program)
    seen = [jax.device_get(_observe(states, lanes, start, fixed, program))]
    taken = []
    for chunk in run.chunks():
        coordinates = chunk.batch_size * chunk.seq_len * arch.d_model
        for step in range(chunk.start, chunk.stop):
            tokens = np.stack([batch(corpus, each, chunk, step)[None] for each in runs])
            states, one = of.advance(states, lanes, of.put(tokens), np.int32(run.steps), program)
            telemetry = {name: values[:, 0] for name, values in jax.device_get(one).items()}
            telemetry["place_gradient_norm"] = telemetry["place_gradient_norm"] / np.sqrt(coordinates)
            taken.append(telemetry)
            seen.append(jax.device_get(_observe(states, lanes, start, fixed, program)))
            if advanced is not None:
                advanced(1)
    return _table(run, _by_step(seen), _by_step(taken))


def streams(
    params: Transformer,
    tokens: Int[Array, "batch seq"],
    arch: Architecture,
    switches: Switches,
    factors: Factors,
) -> Float[Array, "places batch seq d"]:
    """The residual stream at every place."""
    additions = block_scheme(arch.block).additions

    def run_block(
        x: Float[Array, "batch seq d"], layer: tuple[Block, BlockFactors]
    ) -> tuple[Float[Array, "batch seq d"], Float[Array, "additions batch seq d"]]:
        block, own = layer
        entered = []
        for parts in additions:
            entered.append(x)
            x = add(block, x, arch, own, parts, switches)[0]
        return x, jnp.stack(entered)

    x = embed(params, tokens, arch, factors)
    last, entered = jax.lax.scan(run_block, x, (params.blocks, factors.blocks))
    return jnp.concatenate([entered.reshape(-1, *x.shape), last[None]])


def _forward(
    params: Transformer, lane: Lane, tokens: Int[Array, "batch seq"], program: Run
) -> tuple[Float[Array, "places batch seq d"], Float[Array, "batch seq vocab"], models.Observations]:
    switches = Switches(forced_logit=lane.forced_logit)
    logits, seen = models.apply(params, tokens, program.arch, switches=switches, factors=lane.factors)
    return streams(params, tokens, program.arch, switches, lane.factors), logits, seen


@partial(jax.jit, static_argnames="program")
def _start(
    states: State, lanes: Lane, tokens: Int[Array, "batch seq"], program: Run
) -> tuple[Float[Array, "lanes places batch seq d"], Float[Array, "lanes batch seq vocab"]]:
    return jax.vmap(lambda params, lane: _forward(params, lane, tokens, program)[:2])(states.params, lanes)


@partial(jax.jit, static_argnames="program")
def _observe(
    states: State,
    lanes: Lane,
    start: tuple[Float[Array, "lanes places batch seq d"], Float[Array, "lanes batch seq vocab"]],
    tokens: Int[Array, "batch seq"],
    program: Run,
) -> dict[str, Array]:
    """Of the weights as they are: activations, their change, and the decay that the next step would apply."""

    def one(
        state: State,
        lane: Lane,
        start: tuple[Float[Array, "places batch seq d"], Float[Array, "batch seq vocab"]],
    ) -> dict[str, Array]:
        params = state.params
        stream, logits, seen = _forward(params, lane, tokens, program)
        rate = program.optimizer.rate(lane.optimizer, state.step)
        decayed = program.optimizer.updates(jax.tree.map(jnp.zeros_like, params), params, rate, lane.optimizer)
        whole, taken = matrix_norms(params), matrix_norms(decayed)
        values = {
            "stream": seen.shortcut_std,
            "stream_change": _rms(stream - start[0], (1, 2, 3)),
            "logit_change": _rms(logits - start[1]),
            "attention.logit": jnp.mean(seen.attention.largest_logit),
            "output": {kind: _rms(layers) for kind, layers in seen.output_norm.items()},
            "decay": {kind: _rms(taken[kind]) / _rms(whole[kind]) for kind in whole},
        }
        return jax.tree.map(lambda value: jnp.where(state.stopped, jnp.nan, value), values)

    return jax.vmap(one)(states, lanes, start)


def _rms(x: Float[Array, "..."], axes: tuple[int, ...] | None = None) -> Float[Array, "..."]:
    return jnp.sqrt(jnp.mean(jnp.square(x), axis=axes))


def _by_step(steps: Sequence[Mapping[str, object]]) -> dict[str, object]:
    """Values [lanes, ...] of each step as [lanes, steps, ...]."""
    return jax.tree.map(lambda *values: np.stack(values, axis=1), *steps)


def _table(run: Run, seen: dict, taken: dict) -> pd.DataFrame:
    arch = run.arch
    places = [str(place) for place in range(arch.num_sublayers + 1)]
    kinds = [*arch.matrices, *(("embedding",) if arch.tied else ("embedding", "head"))]
    entries = np.array([np.prod(arch.shape(kind)) for kind in kinds])

    def by_kind(matrix: str, table: str) -> np.ndarray:
        """[lanes, steps, kinds]"""
        layers = np.sqrt(np.mean(np.square(taken[matrix]), axis=-1))
        return np.concatenate([layers, taken[table]], axis=-1)

    def stacked(values: Mapping[str, np.ndarray]) -> np.ndarray:
        return np.stack(list(values.values()), axis=-1)

    gradient = by_kind("matrix_gradient_norm", "table_gradient_norm") / np.sqrt(entries)
    update, parameter = by_kind("update_rms", "table_update_rms"), by_kind("parameter_rms", "table_rms")
    outputs = seen["output"] | {"attention.logit": seen["attention.logit"]}
    with np.errstate(divide="ignore", invalid="ignore"):  # an output matrix may start at 0
        effective = update / parameter
    decay = {kind: share[:, :-1] for kind, share in seen["decay"].items()}
    parts = [
        ("activation", places, seen["stream"]),
        ("activation", list(outputs), stacked(outputs)),
        ("change", places, seen["stream_change"]),
        ("change", ["head"], seen["logit_change"][..., None]),
        ("decay", list(decay), stacked(decay)),
        ("gradient", places, taken["place_gradient_norm"]),
        ("gradient", kinds, gradient),
        ("update", kinds, update),
        ("parameter", kinds, parameter),
        ("effective_rate", kinds, effective),
    ]
    return pd.concat([_rows(run, *part) for part in parts], ignore_index=True)


def _rows(run: Run, statistic: str, where: list[str], values: np.ndarray) -> pd.DataFrame:
    """A row for each of the values [lanes, steps, where]."""
    lane, step, place = (index.ravel() for index in np.indices(values.shape))
    return pd.DataFrame(
        {
            "width": run.arch.d_model,
            "depth": run.arch.num_layers,
            "step": step,
            "seed": run.seed + lane,
            "where": np.array(where)[place],
            "statistic": statistic,
            "value": values.ravel().astype(np.float64),
        }
    )
