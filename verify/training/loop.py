"""Train: runs of equal shape advance together in one compiled, vmapped program, and everything is recorded.

A divergence is an outcome, not an exception: once a lane's loss or gradient is not finite its weights stay as they
are, its later values are NaN, and its neighbours never notice.
"""

import dataclasses
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import lru_cache, partial
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
import numpy as np
import xarray as xr
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int

import models
from models.parameters import Transformer
from theory import Architecture
from verify.training.corpus import Corpus, load_corpus
from verify.training.mesh import put_tokens, replicated, tree_shardings
from verify.training.optimizer import Optimizer
from verify.training.state import State
from verify.training.telemetry import VARIABLES, Telemetry, global_norm, record, tables

if TYPE_CHECKING:
    from verify.training.checkpoint import Checkpoint, Chunk

_CHUNK = 25
_HELD_OUT_BATCHES = 8


@dataclass(frozen=True)
class Run:
    """One training run, complete: what its file is named after.

    corpus: stdlib, zipf or text:PATH. batch_size: sequences a step. steps: of the optimizer. seed: of weights and of
    the order of the data. recompute: each block's activations once more in the backward pass, instead of keeping them.
    Raises ValueError that names the field and the value.
    """

    arch: Architecture
    optimizer: Optimizer = field(default_factory=Optimizer)
    corpus: str = "stdlib"
    batch_size: int = 8
    steps: int = 300
    seed: int = 0
    recompute: bool = False

    def __post_init__(self) -> None:
        for name, least in (("batch_size", 1), ("steps", 1), ("seed", 0)):
            if getattr(self, name) < least:
                raise ValueError(f"{name}: must be a whole number of at least {least}, got {getattr(self, name)!r}")

    def program(self) -> "Run":
        """What runs must share to advance together: all but the rate and the seed."""
        return dataclasses.replace(self, seed=0, optimizer=dataclasses.replace(self.optimizer, learning_rate=1.0))


def require_data(runs: Iterable[Run]) -> None:
    """Raise ValueError that names a corpus that is missing or too short for a sequence of one of these runs."""
    for corpus, vocab_size, seq_len in {(run.corpus, run.arch.vocab_size, run.arch.seq_len) for run in runs}:
        for split in ("train", "held_out"):
            load_corpus(corpus, vocab_size).batch(seq_len, 1, seed=0, step=0, split=split)


def train(run: Run) -> xr.Dataset:
    """Train one run; the dataset of `train_lanes`."""
    return train_lanes([run])[0]


def train_lanes(
    runs: Sequence[Run],
    advanced: Callable[[int], None] | None = None,
    checkpoint: "Checkpoint | None" = None,
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
    keys = jnp.stack([jax.random.key(run.seed) for run in runs])
    rates = jnp.asarray([run.optimizer.learning_rate for run in runs], jnp.float32)
    if mesh is None:
        programs = _ON_ONE_CORE if one_core else _ON_ONE_DEVICE
    else:
        programs = _programs_on(mesh, program, len(runs))
    states = programs.start(keys, program)
    done = 0
    recorded: list[Chunk] = []
    if checkpoint is not None:
        done, states, recorded = checkpoint.read(states)
        if done and advanced is not None:
            advanced(done * len(runs))
    for steps in _chunks(program.steps):
        if steps.start < done:
            continue
        tokens = np.stack([_tokens(corpus, run, steps) for run in runs])
        states, seen = programs.advance(states, rates, programs.put(tokens), program)
        taken = min(len(steps), program.steps - steps.start)
        recorded.append({name: values[:, :taken] for name, values in jax.device_get(seen).items()})
        if checkpoint is not None and steps.stop < program.steps:
            checkpoint.write(steps.stop, states, recorded[-1])
        if advanced is not None:
            advanced(taken * len(runs))
    telemetry = {name: np.concatenate([chunk[name] for chunk in recorded], axis=1) for name in recorded[0]}
    held_out = np.stack([_held_out(corpus, run) for run in runs])
    losses = np.asarray(programs.evaluate(states.params, programs.put(held_out), program.arch))
    names = tables(jax.eval_shape(lambda: models.init(jax.random.key(0), program.arch)))
    return [
        _dataset({name: values[lane] for name, values in telemetry.items()}, float(losses[lane]), program.arch, names)
        for lane in range(len(runs))
    ]


def _advance(
    states: State,
    rates: Float[Array, " lanes"],
    tokens: Int[Array, "lanes steps batch seq_plus_1"],
    program: Run,
    observed: bool = True,
) -> tuple[State, Telemetry]:
    """Take `steps` steps in every lane, none beyond the program's last one.

    observed=False records the loss alone, to time what the telemetry costs.
    """
    return jax.vmap(lambda state, rate, lane: _scan(state, rate, lane, program, observed))(states, rates, tokens)


def _scan(
    state: State,
    rate: Float[Array, ""],
    tokens: Int[Array, "steps batch seq_plus_1"],
    program: Run,
    observed: bool,
) -> tuple[State, Telemetry]:
    transformation, arch = program.optimizer.transformation(), program.arch

    def step(state: State, batch: Int[Array, "batch seq_plus_1"]) -> tuple[State, Telemetry]:
        readings = jnp.zeros(arch.num_sublayers + 1, jnp.float32)
        if observed:
            (loss, seen), (gradients, squares) = jax.value_and_grad(
                lambda params, readings: models.loss(params, batch, arch, readings, program.recompute),
                argnums=(0, 1),
                has_aux=True,
            )(state.params, readings)
        else:
            (loss, seen), gradients = jax.value_and_grad(
                lambda params: models.loss(params, batch, arch, recompute=program.recompute), has_aux=True
            )(state.params)
        with jax.numpy_dtype_promotion("standard"):  # Optax raises Python floats to integer powers
            directions, optimizer = transformation.update(gradients, state.optimizer, state.params)
        current = rate * program.optimizer.shape(program.steps, state.step)
        updates = jax.tree.map(lambda direction: -current * direction, directions)
        norm = global_norm(gradients)
        stopped = state.stopped | ~(jnp.isfinite(loss) & jnp.isfinite(norm))
        telemetry = {"loss": loss}
        if observed:
            telemetry = record(loss, seen, squares, state.params, gradients, updates)
            telemetry |= {"gradient_norm": norm, "learning_rate": current}
        telemetry = jax.tree.map(lambda x: jnp.where(state.stopped, jnp.nan, x), telemetry)
        moved = jax.tree.map(jnp.add, state.params, updates)
        new = State(moved, optimizer, state.step, stopped)
        frozen = stopped | (state.step >= program.steps)
        kept = jax.tree.map(lambda old, new: jnp.where(frozen, old, new), state, new)
        return dataclasses.replace(kept, step=state.step + 1, stopped=stopped), telemetry

    return jax.lax.scan(step, state, tokens)


def _begin(keys: Array, program: Run) -> State:
    def one(key: Array) -> State:
        params = models.init(key, program.arch)
        optimizer = program.optimizer.transformation().init(params)
        return State(params, optimizer, jnp.zeros((), jnp.int32), jnp.zeros((), bool))

    return jax.lax.map(one, keys)  # a vmapped generator takes XLA four times as long to compile


def _held_out_loss(
    params: Transformer, tokens: Int[Array, "lanes batch seq_plus_1"], arch: Architecture
) -> Float[Array, " lanes"]:
    return jax.vmap(lambda params, batch: models.loss(params, batch, arch)[0])(params, tokens)


_start = jax.jit(_begin, static_argnames="program")
_evaluate = jax.jit(_held_out_loss, static_argnames="arch")
_jit_advance = partial(jax.jit, _advance, static_argnames=("program", "observed"), donate_argnames="states")
advance = _jit_advance()


@dataclass(frozen=True)
class _Programs:
    """What is compiled of training, for certain devices; put: tokens onto them."""

    start: Callable[[Array, Run], State]
    advance: Callable[..., tuple[State, Telemetry]]
    evaluate: Callable[[Transformer, Array, Architecture], Array]
    put: Callable[[np.ndarray], Array]


_ON_ONE_DEVICE = _Programs(_start, advance, _evaluate, jnp.asarray)
_ON_ONE_CORE = dataclasses.replace(
    _ON_ONE_DEVICE, advance=_jit_advance(compiler_options={"xla_cpu_multi_thread_eigen": False})
)


@lru_cache(maxsize=8)
def _programs_on(mesh: Mesh, program: Run, lanes: int) -> _Programs:
    keys = jax.random.split(jax.random.key(0), lanes)
    states, rest = tree_shardings(mesh, jax.eval_shape(lambda: _start(keys, program))), replicated(mesh)
    return _Programs(
        jax.jit(_begin, static_argnames="program", out_shardings=states),
        _jit_advance(out_shardings=(states, rest)),
        jax.jit(_held_out_loss, static_argnames="arch", out_shardings=rest),
        partial(put_tokens, mesh),
    )


def _chunks(steps: int) -> Iterator[range]:
    """Ranges of one length, at most 25, that cover the steps: one shape compiles once. The last may reach beyond."""
    length = math.ceil(steps / math.ceil(steps / _CHUNK))
    for start in range(0, steps, length):
        yield range(start, start + length)


def _tokens(corpus: Corpus, run: Run, steps: range) -> np.ndarray:
    return np.stack([corpus.batch(run.arch.seq_len, run.batch_size, seed=run.seed, step=step) for step in steps])


def _held_out(corpus: Corpus, run: Run) -> np.ndarray:
    """The same held-out sequences for every run of that length, whatever its seed."""
    size = run.batch_size * _HELD_OUT_BATCHES
    return corpus.batch(run.arch.seq_len, size, seed=0, step=0, split="held_out")


def _dataset(
    telemetry: dict[str, np.ndarray], held_out_loss: float, arch: Architecture, table_names: tuple[str, ...]
) -> xr.Dataset:
    variables = {
        name: (("step", *dimensions), telemetry[name].astype(np.float32), {"units": unit, "long_name": meaning})
        for name, (dimensions, unit, meaning) in VARIABLES.items()
    }
    outcome, step = outcome_of(telemetry["loss"], telemetry["gradient_norm"])
    return xr.Dataset(
        variables,
        coords={
            "step": ("step", np.arange(len(telemetry["loss"])), {"long_name": "optimizer step, counted from 0"}),
            "matrix": ("matrix", list(arch.matrices), {"long_name": "kind of weight matrix in a block"}),
            "table": ("table", list(table_names), {"long_name": "matrix outside the blocks"}),
        },
        attrs={"outcome": outcome, "outcome_step": step, "held_out_loss": held_out_loss},
    )


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
