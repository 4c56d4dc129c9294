"""Train: runs of equal shape advance together in one compiled, vmapped program, and everything is recorded.

A divergence is an outcome, not an exception: once a lane's loss or gradient is not finite its weights stay as they
are, its later values are NaN, and its neighbours never notice.
"""

from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import cache, lru_cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import xarray as xr
from jax.sharding import Mesh
from jaxtyping import Int

import models
from theory import Architecture
from verify.measurement.certify import certify
from verify.training.checkpoint import Checkpoint, Recorded
from verify.training.compiled import programs, programs_on
from verify.training.corpus import Corpus, load_corpus
from verify.training.run import Chunk, Lane, Run, lanes_of
from verify.training.state import State
from verify.training.telemetry import CERTIFIED, VARIABLES, tables

_HELD_OUT_BATCHES = 8


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
    """Train runs of one program (`Run.program`), one dataset each: every name of `telemetry.VARIABLES` by step.

    Attributes: outcome and outcome_step (`outcome_of`), held_out_loss in nats per token.
    advanced: called after each chunk with the number of steps done, all lanes counted. checkpoint: written before that
    call, and where one is there already, of the same runs in the same order, it goes on. one_core: on a CPU, leave the
    other cores to threads that train other lanes. mesh: the devices to spread the lanes over, each cut as
    `verify.training.mesh` says; every process that has some of them makes the same call, and each gets the datasets.
    Raises ValueError where the runs' programs differ, a mesh does not divide them or the checkpoint is damaged, OSError
    where it cannot be written.
    """
    program = runs[0].program()
    if any(run.program() != program for run in runs):
        raise ValueError("runs: must share one program (Run.program), which these do not")
    corpus = load_corpus(program.corpus, program.arch.vocab_size)
    lanes = lanes_of(runs)
    of = programs(program, one_core) if mesh is None else programs_on(mesh, program, len(runs))
    states = of.begin(lanes, program.untrained())
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
        states, seen = of.advance(states, lanes, of.put(tokens), np.int32(chunk.stop), program)
        taken = chunk.stop - chunk.start
        recorded.append({name: values[:, :taken] for name, values in jax.device_get(seen).items()})
        if program.certify_every:
            due = chunk.stop % program.certify_every == 0
            recorded[-1] |= _certified(states, runs, held_out[:, :1], due)
        if checkpoint is not None and chunk.stop < program.steps:
            checkpoint.write(chunk.stop, states, recorded[-1])
        if advanced is not None:
            advanced(taken * len(runs))
    telemetry = {name: np.concatenate([chunk[name] for chunk in recorded], axis=1) for name in recorded[0]}
    losses = np.asarray(of.held_out_loss(states.params, lanes, of.put(held_out), program.forward()))
    names = _table_names(program.arch)
    return [
        _dataset({name: values[lane] for name, values in telemetry.items()}, float(losses[lane]), program, names)
        for lane in range(len(runs))
    ]


def begin(run: Run) -> State:
    """The run before its first step, as one lane."""
    return programs(run).begin(_alone(run), run.untrained())


def take(
    run: Run, state: State, tokens: Int[np.ndarray, "steps batch seq_plus_1"], stop: int
) -> tuple[State, dict[str, np.ndarray]]:
    """Go on to before the step `stop`; the state there, and the telemetry of the steps on the way, [steps, ...].

    state: one lane, which is used up. tokens: of that many steps from the state's own on, those from `stop` on not
    looked at. With as many as the run's chunk has, and its sizes, the program and the numbers are those of `train`.
    """
    begun = int(state.step[0])
    of = programs(run)
    state, seen = of.advance(state, _alone(run), jnp.asarray(tokens[None]), np.int32(stop), run.program())
    return state, {name: values[0, : stop - begun] for name, values in jax.device_get(seen).items()}


def dataset_of(run: Run, state: State, telemetry: dict[str, np.ndarray]) -> xr.Dataset:
    """The dataset of `train_lanes`, of the telemetry of a run's steps and the state after the last of them."""
    held_out = _held_out(load_corpus(run.corpus, run.arch.vocab_size), run)
    loss = programs(run).held_out_loss(state.params, _alone(run), jnp.asarray(held_out[None]), run.forward())
    return _dataset(telemetry, float(loss[0]), run, _table_names(run.arch))


@lru_cache(maxsize=8)
def _alone(run: Run) -> Lane:
    """The run as the one lane of its program; to make takes as long as some steps of a small model."""
    return lanes_of([run])


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


def _certified(states: State, runs: Sequence[Run], tokens: np.ndarray, due: bool) -> Recorded:
    """[lanes, 1, S] of every `CERTIFIED`, NaN where there is nothing to certify; [lanes, 0, S] when it is not due."""
    shape = (len(runs), int(due), runs[0].arch.num_sublayers)
    found = {name: np.full(shape, np.nan, np.float32) for name in CERTIFIED}
    for lane, run in enumerate(runs if due else ()):
        params = jax.device_get(jax.tree.map(lambda leaf, lane=lane: leaf[lane], states.params))
        with suppress(ValueError):  # float64 overflows, or the lane has stopped
            certificate = certify((params, run.arch), tokens[lane, :, :-1])
            found["certified_bound"][lane, 0] = certificate.sublayer_bound
            found["certified_jacobian_norm"][lane, 0] = certificate.sublayer_jacobian_norm
    return found


@cache
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
