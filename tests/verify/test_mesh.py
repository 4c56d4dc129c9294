"""One model over many devices: the numbers of one device, and every array in parts on all of them."""

import dataclasses
import os
import socket
import subprocess
import sys
from functools import partial

import jax
import numpy as np
import pytest
import xarray as xr

from theory import Architecture
from verify.__main__ import main
from verify.sweeps import on_mesh, store
from verify.sweeps.on_mesh import train_missing_on
from verify.sweeps.standing import standings
from verify.sweeps.unit import Unit, lock
from verify.training import step
from verify.training.checkpoint import DamagedCheckpoint
from verify.training.loop import train, train_lanes
from verify.training.mesh import MeshShape, join, put_tokens, tree_shardings
from verify.training.run import Run, lanes_of
from verify.training.sharded_checkpoint import ShardedCheckpoint

RUN = Run(
    Architecture(
        num_layers=2, d_model=16, num_heads=4, num_kv_heads=2, seq_len=16, attention="qk_norm", activation="swiglu",
        positions="learned", bias=True,
    ),
    steps=40,
)  # fmt: skip
TIED = Run(Architecture(num_layers=1, d_model=8, num_heads=2, seq_len=8, vocab_size=257, tied=True), steps=20)


@pytest.mark.parametrize(("run", "shape"), [(RUN, (2, 2, 2)), (TIED, (4, 1, 2))])
def test_the_loss_is_that_of_one_device(run, shape):
    """All that is recorded to its rounding, at every step; 257 words are cut by nothing.

    But not what the offset of the keys moves: the softmax takes it away, its gradient is all rounding, and AdamW makes
    whole steps of that. Its effect is compared before the first update, and in `TIED`, which has no such offset.
    """
    alone, spread = train(run), train_lanes([run], mesh=MeshShape(*shape).mesh())[0]
    np.testing.assert_allclose(spread["loss"], alone["loss"], atol=1e-5)
    for name in alone:
        drifts = run.arch.bias and name in ("key_norm", "largest_attention_logit")
        compared = slice(1 if drifts else None)
        np.testing.assert_allclose(spread[name][compared], alone[name][compared], rtol=1e-5, atol=1e-7, err_msg=name)
    assert spread.attrs["held_out_loss"] == pytest.approx(alone.attrs["held_out_loss"], abs=1e-5)


def test_every_matrix_lies_in_parts():
    """Query, up and head: input over fsdp, output over tensor; output and down turned; norms and counters whole."""
    mesh = MeshShape(2, 2, 2).mesh()
    states = jax.eval_shape(partial(step.begin, run=RUN.untrained()), lanes_of([RUN]))
    layout = tree_shardings(mesh, states)
    parts = {
        jax.tree_util.keystr(path).removeprefix(".params"): sharding.shard_shape(leaf.shape)
        for (path, sharding), leaf in zip(
            jax.tree_util.tree_leaves_with_path(layout), jax.tree.leaves(states), strict=True
        )
    }
    assert parts[".embedding"] == (1, 128, 8) and parts[".head.weight"] == (1, 8, 128)
    assert parts[".blocks.attention.query.weight"] == (1, 2, 8, 8)
    assert parts[".blocks.attention.key.weight"] == (1, 2, 8, 4)
    assert parts[".blocks.feed_forward.up.weight"] == (1, 2, 8, 32)
    assert parts[".blocks.feed_forward.down.weight"] == parts[".optimizer[1].mu.blocks.feed_forward.down.weight"]
    assert parts[".blocks.feed_forward.down.weight"] == (1, 2, 32, 8)
    assert parts[".blocks.attention.output.weight"] == (1, 2, 8, 8)
    assert parts[".final_norm.scale"] == (1, 16) and parts[".step"] == (1,)
    assert put_tokens(mesh, np.zeros((1, 3, 8, 17), int)).sharding.shard_shape((1, 3, 8, 17)) == (1, 3, 2, 17)


@pytest.mark.parametrize(
    ("shape", "fields", "said"),
    [
        ((1, 1, 3), {}, "mesh: tensor = 3 must divide the 16 of attention.query.weight"),
        ((1, 3, 1), {}, "mesh: fsdp = 3 must divide the 16 of"),
        ((2, 2, 1), {"batch_size": 6}, "batch_size: must be a multiple of data x fsdp = 4 on this mesh, got 6"),
    ],
)
def test_what_a_mesh_does_not_divide_is_named(shape, fields, said):
    with pytest.raises(ValueError, match=said):
        train_lanes([dataclasses.replace(RUN, **fields)], mesh=MeshShape(*shape).mesh())


def test_a_mesh_of_no_or_too_many_devices():
    with pytest.raises(ValueError, match="must be at least 1"):
        MeshShape(0, 1, 1).mesh()
    with pytest.raises(ValueError, match="2 x 3 x 2 = 12 devices, but there are 8"):
        MeshShape(2, 3, 2).mesh()


@pytest.mark.parametrize(
    ("hosts", "said"),
    [
        ((None, 2, 0), "hosts.coordinator: is missing"),
        (("localhost:1", None, 0), "hosts.process: must be at least 0 and below hosts.processes, got 0 and None"),
        (("localhost:1", 2, 2), "got 2 and 2"),
        (("auto", None, None), "hosts.coordinator: 'auto' did not do"),
    ],
)
def test_hosts_that_will_not_do_are_named(hosts, said):
    with pytest.raises(ValueError, match=said):
        join(*hosts)


def test_a_checkpoint_of_one_mesh_goes_on_on_another(tmp_path):
    """40 steps on 4 devices, the rest on 2, within the rounding of one device's. What is damaged is named."""
    checkpoint, run, taken = ShardedCheckpoint(tmp_path / "unit"), dataclasses.replace(TIED, steps=60), []

    def stop(steps):
        taken.append(steps)
        if sum(taken) == 40:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train_lanes([run], stop, checkpoint, mesh=MeshShape(1, 2, 2).mesh())
    assert checkpoint.steps_done() == 40
    taken.clear()
    two = MeshShape(1, 1, 2).mesh()
    spread = train_lanes([run], lambda steps: taken.append(steps), checkpoint, mesh=two)[0]
    assert taken == [40, 20]
    np.testing.assert_allclose(spread["loss"], train(run)["loss"], atol=1e-5)
    for file in (tmp_path / "unit" / "40").rglob("*"):
        if file.is_file() and file.stat().st_size > 1000:
            file.write_bytes(file.read_bytes()[:500])
    with pytest.raises(DamagedCheckpoint, match="is damaged"):
        train_lanes([run], checkpoint=checkpoint, mesh=two)


def test_an_interrupted_run_says_so_goes_on_and_leaves_its_file_alone(tmp_path, monkeypatch, capsys):
    """And a damaged one is trained again."""
    runs = [dataclasses.replace(RUN, seed=seed) for seed in range(3)]
    trained = []

    def train_lanes(runs, checkpoint, mesh):
        if runs[0].seed == 2 and not any(run.seed == 2 for run in trained):
            trained.extend(runs)
            raise DamagedCheckpoint("checkpoint: is damaged")
        trained.extend(runs)
        if len(trained) == 2:
            checkpoint.write(20, {"weight": jax.numpy.zeros(2)}, {"loss": np.full((1, 20), 4.5)})
            raise KeyboardInterrupt
        assert len(trained) != 3 or checkpoint.steps_done() == 20
        return [xr.Dataset(attrs={"outcome": "finished", "outcome_step": 40, "held_out_loss": 3.0})]

    monkeypatch.setattr(on_mesh, "train_lanes", train_lanes)
    mesh, finished = MeshShape(2).mesh(), []
    with pytest.raises(KeyboardInterrupt):
        train_missing_on(mesh, runs, tmp_path, lambda *run: finished.append(run))
    states = [(standing.state, standing.steps, standing.loss) for standing in standings(runs, tmp_path).values()]
    assert states == [("done", 40, 3.0), ("interrupted", 20, 4.5), ("to do", 0, None)]
    store.path_of(runs[0], tmp_path).write_bytes(b"half")
    train_missing_on(mesh, runs[1:], tmp_path, lambda *run: finished.append(run))
    train_missing_on(mesh, runs, tmp_path, lambda *run: finished.append(run))
    assert trained == [runs[0], runs[1], runs[1], runs[2], runs[2], runs[0]]
    assert "is damaged; this run starts again" in capsys.readouterr().err
    assert not list((tmp_path / ".unfinished").iterdir())
    assert finished == [(run, store.path_of(run, tmp_path)) for run in (runs[0], runs[1], runs[2], runs[0])]
    assert {path.suffix for path in tmp_path.iterdir() if path.is_file()} == {".nc", ".damaged"}
    assert not lock(runs[0], tmp_path).is_locked and not Unit((runs[0],), tmp_path).checkpoint.folder.exists()


def test_two_processes_train_one_model(tmp_path):
    """Four devices each: the run's file is that of one process with all eight, to the rounding."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    arguments = (
        f"train --arch.num-layers 1 --arch.d-model 8 --arch.num-heads 2 --arch.seq-len 8 --steps 50 --corpus zipf "
        f"--mesh.data 2 --mesh.fsdp 2 --mesh.tensor 2 --hosts.coordinator localhost:{port} --hosts.processes 2"
    ).split()
    environment = os.environ | {"XLA_FLAGS": os.environ["XLA_FLAGS"].replace("device_count=8", "device_count=4")}
    processes = [
        subprocess.Popen(
            [sys.executable, "-m", "verify", *arguments, "--hosts.process", str(number), "--out", str(tmp_path)],
            env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )
        for number in range(2)
    ]  # fmt: skip
    said = [process.communicate(timeout=300)[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], said
    assert "1 of 1 runs done" in said[0] and "runs done" not in said[1]
    (file,) = tmp_path.glob("*.nc")
    together = store.load(file)
    alone = Run(Architecture(num_layers=1, d_model=8, num_heads=2, seq_len=8), corpus="zipf", steps=50)
    assert file == store.path_of(alone, tmp_path)
    np.testing.assert_allclose(together["loss"], train(alone)["loss"], atol=1e-5)


def test_a_mesh_on_the_command_line(tmp_path, capsys):
    sizes = "--arch.num-layers 1 --arch.d-model 8 --arch.num-heads 2 --arch.seq-len 8 --steps 4 --corpus zipf"
    arguments = ["train", *sizes.split(), "--out", str(tmp_path)]
    assert main([*arguments, "--mesh.data", "16"]) == 2
    assert capsys.readouterr().err == "error: mesh: data x fsdp x tensor = 16 x 1 x 1 = 16 devices, but there are 8\n"
    assert main([*arguments, "--mesh.data", "4", "--mesh.tensor", "2"]) == 0
    assert "finished at step 4" in capsys.readouterr().out
    assert [path.suffix for path in tmp_path.iterdir() if path.is_file()] == [".nc"]
