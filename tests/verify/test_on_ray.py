"""A sweep on Ray: a worker that is killed costs time, and the files are those of this machine's threads."""

import os
import signal
import subprocess
import sys
import time

import psutil
import pytest
import ray

from verify.__main__ import main
from verify.sweeps import store
from verify.sweeps.lanes import train_missing
from verify.sweeps.manifest import read_sweep


@pytest.fixture
def sweep(tmp_path):
    path = tmp_path / "sweep.toml"
    path.write_text(
        'seeds = 2\n[run]\nsteps = 2000\ncorpus = "zipf"\narch.num_layers = 1\narch.d_model = 4\narch.num_heads = 1\n'
        "arch.vocab_size = 8\narch.seq_len = 4\n[grid]\noptimizer.learning_rate = [0.001, 0.1]\n"
    )
    return path


def test_a_killed_worker_costs_nothing_but_time(sweep, tmp_path):
    out = tmp_path / "ray"
    command = [
        sys.executable,
        "-m",
        "verify",
        "sweep",
        "run",
        str(sweep),
        "--out",
        str(out),
        "--on",
        "ray",
        "--lanes=1",
    ]
    driver = subprocess.Popen(
        command,
        env=os.environ | {"RAY_worker_niceness": "0"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    while not list(out.glob(".unfinished/*/states.npz")):
        assert driver.poll() is None, driver.communicate()[0]
        time.sleep(0.02)
    workers = [child for child in psutil.Process(driver.pid).children(recursive=True) if "::_train" in child.name()]
    assert workers
    workers[0].send_signal(signal.SIGKILL)
    said = driver.communicate(timeout=300)[0]
    assert driver.returncode == 0 and "4 of 4 runs done" in said, said
    runs = read_sweep(sweep).runs
    here = train_missing(runs, tmp_path / "here", 1)
    assert [store.path_of(run, out).read_bytes() for run in runs] == [path.read_bytes() for path in here]
    assert not list((out / ".unfinished").iterdir())


def test_what_does_not_go_together_is_named(sweep, tmp_path, capsys, monkeypatch):
    def init(address, **_):
        raise ConnectionError(f"ray.init() failed: {address}")

    monkeypatch.setattr(ray, "init", init)
    arguments = ["sweep", "run", str(sweep), "--out", str(tmp_path / "ray"), "--on", "ray"]
    assert main([*arguments, "--mesh.data", "2"]) == 2
    assert capsys.readouterr().err.startswith("error: on: ray gives each run one device; leave mesh and hosts out")
    assert main([*arguments, "--address", "nowhere:1"]) == 2
    assert "error: address: no Ray cluster at 'nowhere:1'" in capsys.readouterr().err
