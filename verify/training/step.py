"""What is compiled of training: the start, steps in a scan, and the held-out loss, of lanes side by side."""

import dataclasses
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

import models
from models.parameters import Transformer
from verify.training.run import Lane, Run
from verify.training.state import State
from verify.training.telemetry import Telemetry, global_norm, merged, record, singular_vectors, spectral_norms

_DROPOUT = 1000  # folded into the seed's key; the kinds of matrix have lower numbers


def advance(
    states: State,
    lanes: Lane,
    tokens: Int[Array, "lanes steps batch seq_plus_1"],
    stop: Int[Array, ""],
    program: Run,
    observed: bool = True,
) -> tuple[State, Telemetry]:
    """Take `steps` steps in every lane, but none from the step `stop` on.

    lanes: `run.lanes_of` runs whose `Run.program` this is. observed=False records the loss alone, to time what the
    telemetry costs.
    """
    scanned = partial(_scan, program=program, observed=observed)
    return jax.vmap(scanned, in_axes=(0, 0, 0, None))(states, lanes, tokens, stop)


def _scan(
    state: State,
    lane: Lane,
    tokens: Int[Array, "steps batch seq_plus_1"],
    stop: Int[Array, ""],
    program: Run,
    observed: bool,
) -> tuple[State, Telemetry]:
    optimizer, transformation = program.optimizer, program.optimizer.transformation(lane.optimizer)
    dropout = jax.random.fold_in(jax.random.key(lane.seed), _DROPOUT) if program.dropout else None

    def step(state: State, batch: Int[Array, "batch seq_plus_1"]) -> tuple[State, Telemetry]:
        key = None if dropout is None else jax.random.fold_in(dropout, state.step)
        total, seen, gradients, squares = _gradients(state.params, batch, key, program, lane, observed)
        with jax.numpy_dtype_promotion("standard"):  # Optax raises Python floats to integer powers
            directions, moments = transformation.update(gradients, state.optimizer, state.params)
            current = optimizer.rate(lane.optimizer, state.step)
            updates = optimizer.updates(directions, state.params, current, lane.optimizer)
        norm = global_norm(gradients)
        stopped = state.stopped | ~(jnp.isfinite(total) & jnp.isfinite(norm))
        loss = total - lane.z_loss * seen.log_z_square
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
    params: Transformer,
    batch: Int[Array, "batch seq_plus_1"],
    key: Array | None,
    program: Run,
    lane: Lane,
    observed: bool,
) -> tuple[Float[Array, ""], models.Observations, Transformer, Float[Array, " places"]]:
    """Loss, what was seen, gradients, and the squared gradient norms at the places: of the batch as a whole."""
    arch, parts, switches = program.arch, program.accumulate, _switches(program, lane)
    readings = jnp.zeros(arch.num_sublayers + 1, jnp.float32)

    def part(batch: Int[Array, "batch seq_plus_1"], key: Array | None) -> tuple[Array, Any, Transformer, Array]:
        differentiated = jax.value_and_grad(
            lambda params, readings: models.loss(
                params, batch, arch, readings if observed else None, switches, key, lane.factors
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


def begin(lanes: Lane, run: Run) -> State:
    """Every lane before its first step, as `Run.untrained` has it."""

    def one(lane: Lane) -> State:
        params = models.init(jax.random.key(lane.seed), run.arch, stds=lane.stds)
        moments = run.optimizer.transformation(lane.optimizer).init(params)
        singular = singular_vectors(params) if run.spectral_norms else None
        return State(params, moments, jnp.zeros((), jnp.int32), jnp.zeros((), bool), singular)

    return jax.lax.map(one, lanes)  # a vmapped generator takes XLA four times as long to compile


def held_out_loss(
    params: Transformer, lanes: Lane, tokens: Int[Array, "lanes batch seq_plus_1"], run: Run
) -> Float[Array, " lanes"]:
    """Of every lane, the mean cross-entropy, as `Run.forward` has it."""

    def one(params: Transformer, lane: Lane, tokens: Int[Array, "batch seq_plus_1"]) -> Float[Array, ""]:
        switches = _switches(run, dataclasses.replace(lane, z_loss=jnp.zeros(())))
        return models.loss(params, tokens, run.arch, switches=switches, factors=lane.factors)[0]

    return jax.vmap(one)(params, lanes, tokens)


def _switches(program: Run, lane: Lane) -> models.Switches:
    return dataclasses.replace(program.switches, z_loss=lane.z_loss, forced_logit=lane.forced_logit)
