"""Train: runs of equal shape advance together in one compiled, vmapped program, and everything is recorded.

A divergence is an outcome, not an exception: once a lane's loss or gradient is not finite its weights stay as they
are, its later values are NaN, and its neighbours never notice.
"""

import dataclasses
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import xarray as xr
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int, UInt32

import models
from models.parameters import Transformer
from theory import Architecture
from verify.measurement.certify import certify
from verify.training.checkpoint import Checkpoint, Recorded
from verify.training.corpus import Corpus, load_corpus
from verify.training.mesh import put_tokens, replicated, tree_shardings
from verify.training.run import Chunk, Run
from verify.training.state import State
from verify.training.telemetry import (
    CERTIFIED,
    VARIABLES,
    Telemetry,
    global_norm,
    merged,
    record,
    singular_vectors,
    spectral_norms,
    tables,
)

_HELD_OUT_BATCHES = 8
_DROPOUT = 1000  # folded into the seed's key; the kinds of matrix have lower numbers


def train(run: Run) -> xr.Dataset:
    """Train one run; the dataset of `train_lanes`."""
    return train_lanes([run])[0]


def train_lanes(
    runs: Sequence[Run],
    advanced: Callable[[int], None] | None = None,
    checkpoint: Checkpoint | None = None,
    one_core: bool = False,
    mesh: Mesh | None = None,
) -> list[xr.Dataset]:
    """Train runs that differ in rate and seed only, one dataset each: every name of `telemetry.VARIABLES` by step.

    Attributes: outcome and outcome_step (`outcome_of`), held_out_loss in nats per token.
    advanced: called after each chunk with the number of steps done, all lanes counted. checkpoint: written before that
    call, and where one is there already, of the same runs in the same order, it goes on. one_core: on a CPU, leave the
    other cores to threads that train other lanes. mesh: the devices to spread the lanes over, each cut as
    `verify.training.mesh` says; every process that has some of them makes the same call, and each gets the datasets.
    Raises ValueError where the runs' shapes differ, a mesh does not divide them or the checkpoint is damaged, OSError
    where it cannot be written.
    """
    program = runs[0].program()
    if any(run.program() != program for run in runs):
        raise ValueError("runs: lanes must agree in everything but seed and learning_rate")
    corpus = load_corpus(program.corpus, program.arch.vocab_size)
    seeds = jnp.asarray([run.seed for run in runs], jnp.uint32)
    rates = jnp.asarray([run.optimizer.learning_rate for run in runs], jnp.float32)
    if mesh is None:
        programs = _ON_ONE_CORE if one_core else _ON_ONE_DEVICE
    else:
        programs = _programs_on(mesh, program, len(runs))
    states = programs.start(seeds, program)
    done = 0
    recorded: list[Recorded] = []
    if checkpoint is not None:
        done, states, recorded = checkpoint.read(states)
        if done and advanced is not None:
            advanced(done * len(runs))
    held_out = np.stack([_held_out(corpus, run) for run in runs])
    for chunk in program.chunks():
        if chunk.start < done:
            continue
        tokens = np.stack([_tokens(corpus, run, chunk) for run in runs])
        states, seen = programs.advance(states, rates, seeds, programs.put(tokens), np.int32(chunk.stop), program)
        taken = chunk.stop - chunk.start
        recorded.append({name: values[:, :taken] for name, values in jax.device_get(seen).items()})
        if program.certify_every:
            due = chunk.stop % program.certify_every == 0
            recorded[-1] |= _certified(states, program.arch, held_out[:, :1], due)
        if checkpoint is not None and chunk.stop < program.steps:
            checkpoint.write(chunk.stop, states, recorded[-1])
        if advanced is not None:
            advanced(taken * len(runs))
    telemetry = {name: np.concatenate([chunk[name] for chunk in recorded], axis=1) for name in recorded[0]}
    losses = np.asarray(programs.evaluate(states.params, programs.put(held_out), program))
    names = _table_names(program.arch)
    return [
        _dataset({name: values[lane] for name, values in telemetry.items()}, float(losses[lane]), program, names)
        for lane in range(len(runs))
    ]


def begin(run: Run) -> State:
    """The run before its first step, as one lane."""
    return _start(jnp.asarray([run.seed], jnp.uint32), run.program())


def take(
    run: Run, state: State, tokens: Int[np.ndarray, "steps batch seq_plus_1"], stop: int
) -> tuple[State, dict[str, np.ndarray]]:
    """Go on to before the step `stop`; the state there, and the telemetry of the steps on the way, [steps, ...].

    state: one lane, which is used up. tokens: of that many steps from the state's own on, those from `stop` on not
    looked at. With as many as the run's chunk has, and its sizes, the program and the numbers are those of `train`.
    """
    begun = int(state.step[0])
    rates, seeds = jnp.asarray([run.optimizer.learning_rate], jnp.float32), jnp.asarray([run.seed], jnp.uint32)
    state, seen = advance(state, rates, seeds, jnp.asarray(tokens[None]), np.int32(stop), run.program())
    return state, {name: values[0, : stop - begun] for name, values in jax.device_get(seen).items()}


def dataset_of(run: Run, state: State, telemetry: dict[str, np.ndarray]) -> xr.Dataset:
    """The dataset of `train_lanes`, of the telemetry of a run's steps and the state after the last of them."""
    held_out = _held_out(load_corpus(run.corpus, run.arch.vocab_size), run)
    loss = _evaluate(state.params, jnp.asarray(held_out[None]), run.program())
    return _dataset(telemetry, float(loss[0]), run, _table_names(run.arch))


def _advance(
    states: State,
    rates: Float[Array, " lanes"],
    seeds: UInt32[Array, " lanes"],
    tokens: Int[Array, "lanes steps batch seq_plus_1"],
    stop: Int[Array, ""],
    program: Run,
    observed: bool = True,
) -> tuple[State, Telemetry]:
    """Take `steps` steps in every lane, but none from the step `stop` on.

    observed=False records the loss alone, to time what the telemetry costs.
    """
    lane = partial(_scan, program=program, observed=observed)
    return jax.vmap(lane, in_axes=(0, 0, 0, 0, None))(states, rates, seeds, tokens, stop)


def _scan(
    state: State,
    peak: Float[Array, ""],
    seed: UInt32[Array, ""],
    tokens: Int[Array, "steps batch seq_plus_1"],
    stop: Int[Array, ""],
    program: Run,
    observed: bool,
) -> tuple[State, Telemetry]:
    optimizer, transformation = program.optimizer, program.optimizer.transformation()
    dropout = jax.random.fold_in(jax.random.key(seed), _DROPOUT) if program.dropout else None

    def step(state: State, batch: Int[Array, "batch seq_plus_1"]) -> tuple[State, Telemetry]:
        key = None if dropout is None else jax.random.fold_in(dropout, state.step)
        total, seen, gradients, squares = _gradients(state.params, batch, key, program, observed)
        with jax.numpy_dtype_promotion("standard"):  # Optax raises Python floats to integer powers
            directions, moments = transformation.update(gradients, state.optimizer, state.params)
            current = optimizer.rate(peak, program.steps, state.step)
            updates = optimizer.updates(directions, state.params, current, peak)
        norm = global_norm(gradients)
        stopped = state.stopped | ~(jnp.isfinite(total) & jnp.isfinite(norm))
        loss = total - program.z_loss * seen.log_z_square
        telemetry = {"loss": loss}
        if observed:
            telemetry = record(loss, seen, squares, state.params, gradients, updates)
            telemetry |= {"gradient_norm": norm, "learning_rate": current}
        singular = state.singular
        if observed and singular is not None:
            singular, norms = spectral_norms(state.params, singular)
            telemetry |= norms
        telemetry = jax.tree.map(lambda x: jnp.where(state.stopped, jnp.nan, x), telemetry)
        moved = jax.tree.map(jnp.add, state.params, updates)
        new = State(moved, moments, state.step, stopped, singular)
        beyond = state.step >= stop
        kept = jax.tree.map(lambda old, new: jnp.where(stopped | beyond, old, new), state, new)
        return dataclasses.replace(
            kept, step=state.step + (~beyond).astype(jnp.int32), stopped=jnp.where(beyond, state.stopped, stopped)
        ), telemetry

    return jax.lax.scan(step, state, tokens)


def _gradients(
    params: Transformer, batch: Int[Array, "batch seq_plus_1"], key: Array | None, program: Run, observed: bool
) -> tuple[Float[Array, ""], models.Observations, Transformer, Float[Array, " places"]]:
    """Loss, what was seen, gradients, and the squared gradient norms at the places: of the batch as a whole."""
    arch, parts = program.arch, program.accumulate
    readings = jnp.zeros(arch.num_sublayers + 1, jnp.float32)

    def part(batch: Int[Array, "batch seq_plus_1"], key: Array | None) -> tuple[Array, Any, Transformer, Array]:
        differentiated = jax.value_and_grad(
            lambda params, readings: models.loss(
                params, batch, arch, readings if observed else None, program.switches, key
            ),
            argnums=(0, 1) if observed else (0,),
            has_aux=True,
        )
        (loss, seen), (gradients, *squares) = differentiated(params, readings)
        return loss, seen, gradients, squares[0] if observed else readings

    if parts == 1:
        return part(batch, key)

    def add(total: Transformer, one: tuple[Array, Array | None]) -> tuple[Transformer, tuple[Array, Any, Array]]:
        loss, seen, gradients, squares = part(*one)
        return jax.tree.map(lambda total, one: total + one / parts, total, gradients), (loss, seen, squares)

    split = batch.reshape(parts, -1, batch.shape[1])
    keys = None if key is None else jax.random.split(key, parts)
    zero = jax.tree.map(jnp.zeros_like, params)
    gradients, (losses, seen, squares) = jax.lax.scan(add, zero, (split, keys))
    return jnp.mean(losses), merged(seen), gradients, jnp.sum(squares, axis=0) / parts**2


def _begin(seeds: UInt32[Array, " lanes"], program: Run) -> State:
    def one(seed: UInt32[Array, ""]) -> State:
        params = models.init(jax.random.key(seed), program.arch)
        optimizer = program.optimizer.transformation().init(params)
        singular = singular_vectors(params) if program.spectral_norms else None
        return State(params, optimizer, jnp.zeros((), jnp.int32), jnp.zeros((), bool), singular)

    return jax.lax.map(one, seeds)  # a vmapped generator takes XLA four times as long to compile


def _held_out_loss(
    params: Transformer, tokens: Int[Array, "lanes batch seq_plus_1"], program: Run
) -> Float[Array, " lanes"]:
    switches = dataclasses.replace(program.switches, dropout=0.0, z_loss=0.0)
    return jax.vmap(lambda params, batch: models.loss(params, batch, program.arch, switches=switches)[0])(
        params, tokens
    )


_start = jax.jit(_begin, static_argnames="program")
_evaluate = jax.jit(_held_out_loss, static_argnames="program")
_jit_advance = partial(jax.jit, _advance, static_argnames=("program", "observed"), donate_argnames="states")
advance = _jit_advance()


@dataclass(frozen=True)
class _Programs:
    """What is compiled of training, for certain devices; put: tokens onto them."""

    start: Callable[[Array, Run], State]
    advance: Callable[..., tuple[State, Telemetry]]
    evaluate: Callable[[Transformer, Array, Run], Array]
    put: Callable[[np.ndarray], Array]


_ON_ONE_DEVICE = _Programs(_start, advance, _evaluate, jnp.asarray)
_ON_ONE_CORE = dataclasses.replace(
    _ON_ONE_DEVICE, advance=_jit_advance(compiler_options={"xla_cpu_multi_thread_eigen": False})
)


@lru_cache(maxsize=8)
def _programs_on(mesh: Mesh, program: Run, lanes: int) -> _Programs:
    seeds = jnp.zeros(lanes, jnp.uint32)
    states, rest = tree_shardings(mesh, jax.eval_shape(lambda: _start(seeds, program))), replicated(mesh)
    return _Programs(
        jax.jit(_begin, static_argnames="program", out_shardings=states),
        _jit_advance(out_shardings=(states, rest)),
        jax.jit(_held_out_loss, static_argnames="program", out_shardings=rest),
        partial(put_tokens, mesh),
    )


def _tokens(corpus: Corpus, run: Run, chunk: Chunk) -> np.ndarray:
    """[steps, batch, seq_len + 1], also for the steps that are skipped."""
    return np.stack([batch(corpus, run, chunk, step) for step in range(chunk.start, chunk.start + chunk.length)])


def batch(corpus: Corpus, run: Run, chunk: Chunk, number: int) -> np.ndarray:
    """int32[batch_size, seq_len + 1] of the chunk's sizes; `train` takes at each step the one with its number."""
    return corpus.batch(chunk.seq_len, chunk.batch_size, seed=run.seed, step=number, windows=run.windows or None)


def _held_out(corpus: Corpus, run: Run) -> np.ndarray:
    """The same held-out sequences for every run of that length, whatever its seed."""
    size = run.batch_size * _HELD_OUT_BATCHES
    return corpus.batch(run.arch.seq_len, size, seed=0, step=0, split="held_out")


def _certified(states: State, arch: Architecture, tokens: np.ndarray, due: bool) -> Recorded:
    """[lanes, 1, S] of every `CERTIFIED`, NaN where there is nothing to certify; [lanes, 0, S] when it is not due."""
    lanes = len(tokens)
    found = {name: np.full((lanes, int(due), arch.num_sublayers), np.nan, np.float32) for name in CERTIFIED}
    for lane in range(lanes if due else 0):
        params = jax.device_get(jax.tree.map(lambda leaf, lane=lane: leaf[lane], states.params))
        with suppress(ValueError):  # float64 overflows, or the lane has stopped
            certificate = certify((params, arch), tokens[lane, :, :-1])
            found["certified_bound"][lane, 0] = certificate.sublayer_bound
            found["certified_jacobian_norm"][lane, 0] = certificate.sublayer_jacobian_norm
    return found


def _table_names(arch: Architecture) -> tuple[str, ...]:
    return tables(jax.eval_shape(lambda: models.init(jax.random.key(0), arch)))


def _dataset(
    telemetry: dict[str, np.ndarray], held_out_loss: float, program: Run, table_names: tuple[str, ...]
) -> xr.Dataset:
    arch = program.arch
    variables = {
        name: ((over, *dimensions), telemetry[name].astype(np.float32), {"units": unit, "long_name": meaning})
        for over, described in (("step", VARIABLES), ("certified_step", CERTIFIED))
        for name, (dimensions, unit, meaning) in described.items()
        if name in telemetry
    }
    outcome, step = outcome_of(telemetry["loss"], telemetry["gradient_norm"])
    return xr.Dataset(
        variables,
        coords={
            "step": ("step", np.arange(len(telemetry["loss"])), {"long_name": "optimizer step, counted from 0"}),
            "matrix": ("matrix", list(arch.matrices), {"long_name": "kind of weight matrix in a block"}),
            "matrix_entries": ("matrix", [int(np.prod(arch.shape(kind))) for kind in arch.matrices]),
            "table": ("table", list(table_names), {"long_name": "matrix outside the blocks"}),
            "table_entries": ("table", [int(np.prod(arch.shape(kind))) for kind in table_names]),
        }
        | _certified_steps(program),
        attrs={"outcome": outcome, "outcome_step": step, "held_out_loss": held_out_loss},
    )


def _certified_steps(program: Run) -> dict[str, Any]:
    if not program.certify_every:
        return {}
    steps = np.arange(program.certify_every, program.steps + 1, program.certify_every)
    return {"certified_step": ("certified_step", steps, {"long_name": "steps taken before the certificate"})}


def outcome_of(loss: np.ndarray, gradient_norm: np.ndarray) -> tuple[str, int]:
    """How a run came out, and at which step; both series by step.

    "non_finite_loss" and "non_finite_gradient": the first step with one. "loss_above_initial": the whole last tenth of
    the run, at least 10 steps, lies above the first step's loss; the step from which on it does. "finished", with the
    number of steps: none of these.
    """
    bad = np.flatnonzero(~(np.isfinite(loss) & np.isfinite(gradient_norm)))
    if bad.size:
        step = int(bad[0])
        return "non_finite_gradient" if np.isfinite(loss[step]) else "non_finite_loss", step
    above_since = int(np.flatnonzero(loss <= loss[0])[-1]) + 1
    if len(loss) - above_since >= max(len(loss) // 10, 10):
        return "loss_above_initial", above_since
    return "finished", len(loss)
