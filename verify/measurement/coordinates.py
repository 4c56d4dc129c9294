"""A coordinate check: how large activations, updates and weights are after a few steps, over widths and depths."""

import dataclasses
from collections.abc import Callable, Iterable, Sequence
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
from jaxtyping import Array, Float, Int, UInt32

import models
from models.parameters import Block, Transformer
from models.transformer import Factors, add, embed, factors_of
from theory import Architecture
from theory.block import block as block_scheme
from verify.measurement.measure import matrix_norms
from verify.training.corpus import Corpus, load_corpus
from verify.training.loop import advance
from verify.training.run import Run
from verify.training.state import State
from verify.training.telemetry import tables

COLUMNS = ("width", "depth", "step", "seed", "where", "statistic", "value")


def resized(arch: Architecture, d_model: int, num_layers: int) -> Architecture:
    group = arch.num_heads // arch.kv_heads
    if d_model % (arch.d_head * group):
        raise ValueError(
            f"widths: must be multiples of {arch.d_head * group} (heads of d_head = {arch.d_head}, {group} to a key and "
            f"value head), got {d_model}"
        )
    heads = d_model // arch.d_head
    d_ff, rest = divmod(arch.ff_width * d_model, arch.d_model)
    if rest:
        raise ValueError(f"widths: d_ff = {arch.ff_width} of d_model = {arch.d_model} is no whole number at {d_model}")
    return dataclasses.replace(
        arch,
        num_layers=num_layers,
        d_model=d_model,
        num_heads=heads,
        num_kv_heads=None if arch.num_kv_heads is None else heads // group,
        d_ff=None if arch.d_ff is None else d_ff,
    )


def ladder(run: Run, widths: Sequence[int], depths: Sequence[int]) -> list[Run]:
    own = run.arch.d_model, run.arch.num_layers
    sizes = dict.fromkeys([*((width, own[1]) for width in widths), *((own[0], depth) for depth in depths)])
    return [dataclasses.replace(run, arch=resized(run.arch, *size)) for size in sizes]


def measure_coordinates(run: Run, seeds: int, advanced: Callable[[int], None] | None = None) -> pd.DataFrame:
    program, arch = run.program(), run.arch
    corpus = load_corpus(run.corpus, arch.vocab_size)
    numbers = jnp.arange(run.seed, run.seed + seeds, dtype=jnp.uint32)
    rates = jnp.full(seeds, run.optimizer.learning_rate, jnp.float32)
    batch = jnp.asarray(_tokens(corpus, run, run.seed, 0, "held_out")[:, :-1])
    states, start = _begin(numbers, batch, program)
    seen, telemetry = [], []
    for step in range(run.steps + 1):
        seen.append(jax.device_get(_observe(states, start, rates, batch, program)))
        if step == run.steps:
            break
        tokens = np.stack([_tokens(corpus, run, run.seed + seed, step)[None] for seed in range(seeds)])
        states, one = advance(states, rates, numbers, jnp.asarray(tokens), np.int32(run.steps), program)
        telemetry.append({name: values[:, 0] for name, values in jax.device_get(one).items()})
        if advanced is not None:
            advanced(1)
    return _table(run, _stacked(seen), _stacked(telemetry))


def _tokens(corpus: Corpus, run: Run, seed: int, step: int, split="train"):
    return corpus.batch(run.arch.seq_len, run.batch_size, seed=seed, step=step, split=split, windows=run.windows or None)


def _stacked(steps):
    return {name: np.stack([step[name] for step in steps], axis=1) for name in steps[0]}


def streams(params, tokens, arch):
    additions = block_scheme(arch.block).additions

    def run_block(x, layer):
        entered = []
        for parts in additions:
            entered.append(x)
            x = add(layer[0], x, arch, layer[1], parts)[0]
        return x, jnp.stack(entered)

    x = embed(params, tokens, arch)
    last, entered = jax.lax.scan(run_block, x, (params.blocks, factors_of(arch, x.dtype)))
    return jnp.concatenate([entered.reshape(-1, *x.shape), last[None]])


@partial(jax.jit, static_argnames="program")
def _begin(seeds, batch, program):
    def one(seed):
        params = models.init(jax.random.key(seed), program.arch)
        optimizer = program.optimizer.transformation().init(params)
        return State(params, optimizer, jnp.zeros((), jnp.int32), jnp.zeros((), bool))

    states = jax.lax.map(one, seeds)
    return states, jax.vmap(lambda p: (streams(p, batch, program.arch), models.apply(p, batch, program.arch)[0]))(states.params)


@partial(jax.jit, static_argnames="program")
def _observe(states, start, rates, batch, program):
    def one(state, start, peak):
        params = state.params
        stream = streams(params, batch, program.arch)
        logits, seen = models.apply(params, batch, program.arch)
        rate = program.optimizer.rate(peak, program.steps, state.step)
        decayed = program.optimizer.updates(jax.tree.map(jnp.zeros_like, params), params, rate, peak)
        norms, decays = matrix_norms(params), matrix_norms(decayed)
        rms = lambda x, axis=None: jnp.sqrt(jnp.mean(jnp.square(x), axis=axis))
        return {
            "stream": seen.shortcut_std,
            "stream_change": rms(stream - start[0], (1, 2, 3)),
            "logit_change": rms(logits - start[1]),
            "attention_logit": jnp.mean(seen.attention.largest_logit),
            **{f"output/{kind}": rms(values) for kind, values in seen.output_norm.items()},
            **{f"decay/{kind}": rms(decays[kind]) / rms(norms[kind]) for kind in norms},
        }
    return jax.vmap(one)(states, start, rates)


def _table(run, seen, telemetry):
    arch = run.arch
    shape = {kind: np.prod(arch.shape(kind)) for kind in (*arch.matrices, "embedding", "head")}
    names = list(arch.matrices) + (["embedding"] if arch.tied else ["embedding", "head"])
    size = np.sqrt([shape[k] for k in names])
    places = [str(p) for p in range(arch.num_sublayers + 1)]
    outputs = [n for n in seen if n.startswith("output/")]
    decays = [n for n in seen if n.startswith("decay/")]

    def by_kind(matrix, table):
        return np.concatenate([np.sqrt(np.mean(np.square(telemetry[matrix]), axis=-1)), telemetry[table]], axis=-1)

    grad, update, par = by_kind("matrix_gradient_norm", "table_gradient_norm") / size, by_kind("update_rms", "table_update_rms"), by_kind("parameter_rms", "table_rms")
    coords = run.batch_size * arch.seq_len * arch.d_model
    parts = [
        ("activation", places, seen["stream"]),
        ("activation", [n.partition("/")[2] for n in outputs], np.stack([seen[n] for n in outputs], -1)),
        ("activation", ["attention.logit"], seen["attention_logit"][..., None]),
        ("change", places, seen["stream_change"]),
        ("change", ["head"], seen["logit_change"][..., None]),
        ("gradient", places, telemetry["place_gradient_norm"] / np.sqrt(coords)),
        ("gradient", names, grad), ("update", names, update), ("parameter", names, par), ("effective_rate", names, update / par),
        ("decay", [n.partition("/")[2] for n in decays], np.stack([seen[n] for n in decays], -1)[:, :-1]),
    ]
    frames = []
    for statistic, where, values in parts:
        seed, step, place = np.indices(values.shape)
        frames.append(pd.DataFrame({"width": arch.d_model, "depth": arch.num_layers, "step": step.ravel(), "seed": seed.ravel(), "where": np.array(where)[place.ravel()], "statistic": statistic, "value": values.ravel()}))
    return pd.concat(frames, ignore_index=True)
