"""python -m verify sweep: shares that partition, and a plan that says what is left."""

import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import xarray as xr
from hypothesis import given
from hypothesis import strategies as st

from verify.__main__ import main
from verify.sweeps import command, lanes, store
from verify.sweeps import cost as cost_module
from verify.sweeps.command import share
from verify.sweeps.manifest import read_sweep
from verify.sweeps.unit import Unit, lock


@given(st.integers(0, 50), st.integers(1, 12))
def test_shares_are_a_partition_in_order_and_of_one_size(runs, count):
    shares = [share(range(runs), f"{i}/{count}") for i in range(count)]
    assert [run for part in shares for run in part] == list(range(runs))
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


@pytest.mark.parametrize("shard", ["4/4", "1", "a/3", "-1/3", "1/0", ""])
def test_a_wrong_share_is_named(shard):
    with pytest.raises(ValueError, match=r"shard: must be I/N with whole numbers 0 <= I < N"):
        share([1], shard)


@pytest.fixture
def sweep(tmp_path):
    path = tmp_path / "sweep.toml"
    path.write_text(
        'seeds = 2\n[run]\nsteps = 7\ncorpus = "zipf"\narch.d_model = 16\narch.num_heads = 2\n'
        '[grid]\narch.embedding = ["layer_norm", "scaled"]\noptimizer.learning_rate = [0.1, 1]\n'
    )
    return path


ENDED = xr.Dataset(attrs={"outcome": "finished", "outcome_step": 7, "held_out_loss": 3.0})


def rows(said, runs):
    """The cells of every run's line."""
    lines = {line.split()[0]: line.split() for line in said.splitlines() if line.strip()}
    return [lines[store.digest(run)] for run in runs]


def test_a_plan_names_every_run_and_what_is_left(sweep, tmp_path, capsys, monkeypatch):
    runs, out = read_sweep(sweep).runs, tmp_path / "runs"
    out.mkdir()
    store.save(runs[1], ENDED, out)
    monkeypatch.setattr(lanes, "threads_that_fit", lambda runs: 2)
    assert main(["sweep", "plan", str(sweep), "--out", str(out)]) == 0
    said = capsys.readouterr().out
    for run, cells in zip(runs, rows(said, runs), strict=True):
        assert cells[1:4] == [run.arch.embedding, f"{run.optimizer.learning_rate:g}", str(run.seed)]
        assert cells[4:] == (
            ["7/7", "done:", "finished", "at", "step", "7", "3.0000"] if run == runs[1] else ["0/7", "to", "do"]
        )
    assert "program 1: 4 runs, 3 left" in said and "program 2: 4 runs, 4 left" in said
    assert said.count("2 lanes in each of 2 threads take") == 2
    tokens = 7 * 7 * 8 * runs[0].arch.seq_len
    assert f"1 of 8 done in {out}/; left: {tokens:.3g} tokens" in said


def test_a_plan_of_a_share(sweep, tmp_path, capsys):
    assert main(["sweep", "plan", str(sweep), "--out", str(tmp_path), "--shard", "3/4"]) == 0
    said = capsys.readouterr().out
    assert "2 runs (share 3/4)" in said and "program 1: 2 runs, 2 left" in said


def test_a_plan_for_a_mesh_that_is_not_here(sweep, tmp_path, capsys):
    """16 devices; hours are all arithmetic over what they achieve together."""
    arguments = ["sweep", "plan", str(sweep), "--out", str(tmp_path), "--mesh.data", "4", "--mesh.fsdp", "4"]
    assert main([*arguments, "--device-flops", "1e6"]) == 0
    said = capsys.readouterr().out
    flops = sum(cost_module.cost(run).flops for run in read_sweep(sweep).runs)
    assert f"{flops / 16e6 / 3600:.3g} hours on 16 devices that achieve 1e+06 FLOP/s each" in said
    assert said.count("one at a time takes 0.00 GB of each of 16 devices") == 2
    assert main([*arguments, "--device-flops", "0"]) == 2
    assert capsys.readouterr().err == "error: device_flops: must be a positive number, got 0.0\n"


@pytest.mark.parametrize("what", ["plan", "run", "status"])
def test_a_share_of_nothing_says_so(sweep, tmp_path, capsys, what):
    assert main(["sweep", what, str(sweep), "--out", str(tmp_path), "--shard", "0/100"]) == 0
    assert capsys.readouterr().out == "share 0/100 of 8 runs is empty\n"


def test_a_plan_of_what_does_not_fit_says_so(sweep, tmp_path, capsys, monkeypatch):
    arguments = ["sweep", "plan", str(sweep), "--out", str(tmp_path)]
    assert main(arguments) == 0 and "MORE" not in capsys.readouterr().out
    for module in (command, cost_module):
        monkeypatch.setattr(module, "device_bytes", lambda: 1000)
    assert main(arguments) == 0
    said = capsys.readouterr().out
    assert said.count("1 lanes in each of 1 threads") == 2 and "MORE than the 0.00 GB of this machine" in said


def test_the_status_tells_every_state_apart(sweep, tmp_path, capsys):
    """Done, damaged, begun and locked, begun and left, and not begun."""
    runs, out = read_sweep(sweep).runs, tmp_path / "runs"
    out.mkdir()
    store.save(runs[0], ENDED, out)
    store.path_of(runs[1], out).write_bytes(b"half")
    for run in runs[2:4]:
        unit = Unit((run,), out)
        unit.checkpoint.write(4, {}, {"loss": np.array([[3.0, 2.5, 2.25, 2.0]])})
        (unit.checkpoint.folder / "runs.txt").write_text(store.digest(run))
    with lock(runs[2], out), lock(runs[4], out):
        assert main(["sweep", "status", str(sweep), "--out", str(out)]) == 0
    said = capsys.readouterr().out
    assert [cells[4:] for cells in rows(said, runs)] == [
        ["7/7", "done:", "finished", "at", "step", "7", "3.0000"], ["0/7", "damaged"], ["4/7", "running", "2.0000"],
        ["4/7", "interrupted", "2.0000"], ["0/7", "running"], *3 * [["0/7", "to", "do"]],
    ]  # fmt: skip
    assert f"1 of 8 runs done, 2 running, 1 damaged, 1 interrupted, 3 to do in {out}/" in said


def test_status_writes_nothing(sweep, tmp_path, capsys):
    assert main(["sweep", "status", str(sweep), "--out", str(tmp_path / "none")]) == 0
    assert "0 of 8 runs done, 8 to do" in capsys.readouterr().out
    assert not (tmp_path / "none").exists()


@pytest.fixture
def trained(monkeypatch):
    """Groups that were trained; the training itself is replaced, and there is one thread and memory for two lanes."""
    groups = []

    def train_lanes(runs, advanced, checkpoint, one_core):
        groups.append(list(runs))
        return [ENDED.assign(loss=("step", [0.0])) for _ in runs]

    monkeypatch.setattr(lanes, "train_lanes", train_lanes)
    monkeypatch.setattr(lanes, "threads_that_fit", lambda runs: 1)
    monkeypatch.setattr(lanes, "lanes_that_fit", lambda runs, threads, most: 2)
    return groups


def test_a_run_trains_its_share_once(sweep, tmp_path, capsys, trained):
    """The first share, then all, then nothing."""
    out, runs = tmp_path / "runs", list(read_sweep(sweep).runs)
    arguments = ["sweep", "run", str(sweep), "--out", str(out)]
    assert main([*arguments, "--shard", "0/2"]) == 0
    assert set(out.glob("*.nc")) == {store.path_of(run, out) for run in runs[:4]}
    assert main(arguments) == 0 and main(arguments) == 0
    assert set(out.iterdir()) == {store.path_of(run, out) for run in runs} | {out / ".unfinished"}
    assert trained == [runs[start : start + 2] for start in (0, 2, 4, 6)]
    said = capsys.readouterr().out
    assert said.count("finished at step 7, held-out loss 3.0000 nats per token") == 4 + 8 + 8
    assert f"4 of 8 runs done, 4 to do in {out}/; after an interruption the same command goes on" in said


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM])
def test_an_interruption_says_how_to_go_on(sweep, tmp_path, capsys, monkeypatch, trained, how):
    def interrupted(*_):
        if len(trained) == 1:
            os.kill(os.getpid(), how)
            time.sleep(0.2)
        return working(*_)

    working = lanes.train_lanes
    monkeypatch.setattr(lanes, "train_lanes", interrupted)
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    assert main(["sweep", "run", str(sweep), "--out", str(tmp_path / "runs")]) == 130
    error = capsys.readouterr().err
    assert "stopping after the steps in flight; once more to stop at once" in error
    assert f"of 8 runs done, 4 to do in {tmp_path / 'runs'}/; the same command goes on" in error
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before


def test_a_second_interruption_ends_it_at_once(sweep, tmp_path):
    """Though a chunk takes for ever."""
    script = (
        "import os, signal, sys, threading, time\nfrom verify.__main__ import main\nfrom verify.sweeps import lanes\n"
        "def train_lanes(*_):\n"
        "    os.kill(os.getpid(), signal.SIGINT)\n    time.sleep(0.5)\n    os.kill(os.getpid(), signal.SIGINT)\n"
        "    time.sleep(600)\n"
        "lanes.train_lanes = train_lanes\nlanes.threads_that_fit = lambda runs: 1\n"
        f"sys.exit(main(['sweep', 'run', {str(sweep)!r}, '--out', {str(tmp_path / 'runs')!r}]))\n"
    )
    ended = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60)
    assert ended.returncode == 130 and "stopped; the same command goes on" in ended.stderr
    assert "Traceback" not in ended.stderr


def test_wrong_usage_is_one_line(sweep, tmp_path, capsys):
    for arguments, said in (
        ([str(tmp_path / "none.toml")], "No such file"),
        ([str(sweep), "--shard", "2"], "shard: must be I/N"),
        ([str(sweep), "--lanes", "0"], "lanes: must be at least 1, got 0"),
    ):
        assert main(["sweep", "plan", *arguments]) == 2
        error = capsys.readouterr().err
        assert said in error and error.count("\n") == 1
