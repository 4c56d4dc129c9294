"""What is done so far: read as it was written, whole or not at all; runs that go on end as if never interrupted."""

import dataclasses
import resource
import signal
import subprocess
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from theory import Architecture
from verify.sweeps import store
from verify.sweeps.lanes import train_missing
from verify.sweeps.standing import standings
from verify.training.checkpoint import Checkpoint, DamagedCheckpoint
from verify.training.loop import train_lanes
from verify.training.optimizer import Optimizer
from verify.training.run import Run

STATES = {"weight": jnp.arange(3.0), "step": jnp.asarray([7, 7])}
CHUNK = {"loss": np.ones((2, 4), np.float32)}
RUNS = [
    Run(Architecture(num_layers=1, d_model=4, num_heads=1, vocab_size=8, seq_len=4), corpus="zipf", steps=60, seed=seed)
    for seed in range(2)
]


@settings(max_examples=30)
@given(
    hnp.arrays(
        st.sampled_from([np.dtype("float32"), np.dtype("int32"), np.dtype("bool"), np.dtype("float16")]),
        hnp.array_shapes(min_dims=0, min_side=0),
    )
)
def test_states_are_read_bit_for_bit(tmp_path_factory, leaf):
    checkpoint = Checkpoint(tmp_path_factory.mktemp("checkpoint") / "unit")
    states = {"some": {"where": jnp.asarray(leaf)}, "step": jnp.zeros(2, jnp.int32)}
    checkpoint.write(4, states, CHUNK)
    done, read, chunks = checkpoint.read(jax.tree.map(jnp.zeros_like, states))
    assert done == checkpoint.steps_done() == 4
    assert jax.tree.map(lambda x: np.asarray(x).tobytes(), read) == jax.tree.map(
        lambda x: np.asarray(x).tobytes(), states
    )
    np.testing.assert_array_equal(chunks[0]["loss"], CHUNK["loss"])
    checkpoint.remove()
    assert checkpoint.read(states) == (0, states, []) and checkpoint.last_losses() is None


def test_chunks_come_in_order_and_one_beyond_the_states_is_left_out(tmp_path):
    """Killed between a chunk's telemetry and its states, that chunk counts for nothing."""
    checkpoint = Checkpoint(tmp_path)
    for done in range(4, 16, 4):
        checkpoint.write(done, STATES, {"loss": np.full((2, 4), done)})
    (tmp_path / "16.npz").write_bytes((tmp_path / "12.npz").read_bytes())
    done, _, chunks = checkpoint.read(STATES)
    assert done == 12 and [chunk["loss"][0, 0] for chunk in chunks] == [4, 8, 12]
    np.testing.assert_array_equal(checkpoint.last_losses(), [12, 12])


@pytest.mark.parametrize("file", ["states.npz", "4.npz"])
@pytest.mark.parametrize("size", [0, 100])
def test_a_damaged_checkpoint_is_named(tmp_path, file, size):
    checkpoint = Checkpoint(tmp_path)
    checkpoint.write(4, STATES, CHUNK)
    (tmp_path / file).write_bytes((tmp_path / file).read_bytes()[:size])
    with pytest.raises(DamagedCheckpoint, match=f"checkpoint: {tmp_path} is damaged"):
        checkpoint.read(STATES)


def test_telemetry_that_is_missing_is_named(tmp_path):
    checkpoint = Checkpoint(tmp_path)
    checkpoint.write(4, STATES, CHUNK)
    checkpoint.write(8, STATES, CHUNK)
    (tmp_path / "4.npz").unlink()
    with pytest.raises(DamagedCheckpoint, match="lacks the telemetry of some of its 8 steps"):
        checkpoint.read(STATES)


@pytest.mark.parametrize("other", [{"more": jnp.zeros(1)}, {"weight": jnp.zeros(4)}, {"weight": jnp.zeros(3, int)}])
def test_states_of_another_program_are_named(tmp_path, other):
    checkpoint = Checkpoint(tmp_path)
    checkpoint.write(4, STATES, CHUNK)
    with pytest.raises(DamagedCheckpoint, match="is damaged"):
        checkpoint.read(STATES | other)


def test_a_full_disk_is_named_and_leaves_the_checkpoint_before(tmp_path):
    checkpoint = Checkpoint(tmp_path)
    checkpoint.write(4, STATES, CHUNK)
    with files_at_most(10_000), pytest.raises(OSError, match=f"cannot write {tmp_path}: .*make room") as raised:
        checkpoint.write(8, STATES | {"weight": jnp.zeros(10_000)}, CHUNK)
    assert "too large" in str(raised.value)
    assert checkpoint.read(STATES)[0] == 4
    assert {path.name for path in tmp_path.iterdir()} == {"states.npz", "4.npz", "8.npz"}


def test_a_full_disk_at_the_end_of_a_run_leaves_no_file(tmp_path):
    data = xr.Dataset({"loss": ("step", np.random.default_rng(0).standard_normal(10_000))})
    with files_at_most(4096), pytest.raises(OSError, match=r"cannot write .*make room"):
        store.save(RUNS[0], data, tmp_path)
    assert not list(tmp_path.iterdir())


class files_at_most:
    """No file can grow beyond that many bytes, as where a disk is full."""

    def __init__(self, size):
        self.size = size

    def __enter__(self):
        self.before = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (self.size, self.before[1]))

    def __exit__(self, *_):
        resource.setrlimit(resource.RLIMIT_FSIZE, self.before)


def test_interrupted_between_chunks_a_run_ends_as_if_never_interrupted(tmp_path):
    """Three chunks of 20 steps, stopped after each; one run diverges."""
    runs = [RUNS[0], dataclasses.replace(RUNS[1], optimizer=Optimizer(learning_rate=1e30))]
    whole = train_lanes(runs, one_core=True)
    checkpoint, taken = Checkpoint(tmp_path), []

    def stop(steps):
        taken.append(steps)
        if len(taken) in (1, 3):
            raise KeyboardInterrupt

    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            train_lanes(runs, stop, checkpoint, one_core=True)
    again = train_lanes(runs, stop, checkpoint, one_core=True)
    assert taken == [40, 40, 40, 80, 40]
    for one, other in zip(whole, again, strict=True):
        assert one.identical(other)
    assert whole[1].attrs["outcome"] != "finished"


def test_killed_in_the_middle_a_sweep_ends_with_the_same_bytes(tmp_path):
    """SIGKILL as soon as a checkpoint is there; another process goes on, and the files are those of a third."""
    runs = [dataclasses.replace(run, steps=1000) for run in RUNS]
    program = (
        "from pathlib import Path; from theory import Architecture; from verify.sweeps.lanes import train_missing\n"
        f"from verify.training.run import Optimizer, Run\ntrain_missing({runs!r}, Path({str(tmp_path)!r}), 2)"
    )
    killed = subprocess.Popen([sys.executable, "-c", program])
    states = tmp_path / ".unfinished"
    while not all(standing.steps for standing in standings(runs, tmp_path).values()) and killed.poll() is None:
        time.sleep(0.01)
    assert {standing.state for standing in standings(runs, tmp_path).values()} == {"running"}
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    found = standings(runs, tmp_path)
    assert {standing.state for standing in found.values()} == {"interrupted"}
    assert all(0 < standing.steps < 1000 and standing.loss > 0 for standing in found.values())
    done = []
    paths = train_missing(runs, tmp_path, 2, done.append)
    assert sum(done) == 2000 and max(done) >= min(standing.steps for standing in found.values())
    whole = train_missing(runs, tmp_path / "whole", 2)
    assert [path.read_bytes() for path in paths] == [path.read_bytes() for path in whole]
    assert {standing.state for standing in standings(runs, tmp_path).values()} == {"done"}
    assert not list(states.iterdir())


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # h5netcdf's, of a file it did not open
@settings(max_examples=200)
@given(st.data())
def test_any_bit_that_turns_is_named_or_harmless(tmp_path_factory, data):
    """Of states, of telemetry and of a run's file: no other error than the one that names it, and no wrong states."""
    folder = tmp_path_factory.mktemp("flipped")
    checkpoint = Checkpoint(folder)
    checkpoint.write(4, STATES, CHUNK)
    run = store.save(RUNS[0], xr.Dataset({"loss": ("step", np.arange(9.0))}, attrs={"outcome": "finished"}), folder)
    path = data.draw(st.sampled_from([folder / "states.npz", folder / "4.npz", run]))
    content = bytearray(path.read_bytes())
    content[data.draw(st.integers(0, len(content) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    path.write_bytes(content)
    checkpoint.steps_done(), checkpoint.last_losses()
    try:
        done, states, _ = checkpoint.read(STATES)
    except DamagedCheckpoint:
        assert path != run
    else:
        assert done in (0, 4)
        jax.tree.map(np.testing.assert_array_equal, states, STATES)
    for read in (store.load, store.attributes):
        try:
            read(run)
        except ValueError as error:
            assert path == run and ("damaged" in str(error) or "is none of ours" in str(error))
