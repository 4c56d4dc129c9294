"""How long runs take, on a clock of our own."""

import dataclasses

import pytest

from theory import Architecture
from verify.__main__ import main
from verify.sweeps import lanes, speed
from verify.sweeps.cost import cost
from verify.training.run import Run

SMALL = Run(Architecture(num_layers=1, d_model=16, num_heads=2, seq_len=8), batch_size=2, corpus="zipf", steps=200)
LARGE = dataclasses.replace(SMALL, arch=dataclasses.replace(SMALL.arch, num_layers=3))


@pytest.mark.parametrize("steps", [200, 7])
def test_a_measurement_tells_compiling_from_training(steps, monkeypatch):
    """A first chunk of 11 s, 2 s each for the others; of the program with the most arithmetic, in one thread."""
    now = 0.0
    trained = []

    def train_lanes(runs, advanced, one_core):
        nonlocal now
        trained.extend(runs)
        for number, chunk in enumerate(runs[0].chunks()):
            now += 2 if number else 11
            advanced((chunk.stop - chunk.start) * len(runs))

    monkeypatch.setattr(speed, "train_lanes", train_lanes)
    monkeypatch.setattr(speed.time, "perf_counter", lambda: now)
    monkeypatch.setattr(lanes, "threads_that_fit", lambda runs: 1)
    runs = [dataclasses.replace(run, steps=steps, seed=seed) for run in (SMALL, LARGE) for seed in (0, 1, 2)]
    found = speed.measured(runs, lanes=2)
    assert trained == runs[3:5]
    per_step = 2 * cost(runs[3]).flops / steps
    if steps == 7:  # one chunk, whose compiling cannot be told apart
        assert found == speed.Speed(0.0, pytest.approx(7 * per_step / 11))
    else:
        assert found == speed.Speed(11.0, pytest.approx(25 * per_step / 2)) and now == 15
    assert found.seconds(runs) == pytest.approx(
        2 * found.compile_seconds + 3 * (cost(runs[0]).flops + cost(runs[3]).flops) / found.flops
    )


def test_a_plan_measures_one_device_only(tmp_path, monkeypatch, capsys):
    sweep = tmp_path / "sweep.toml"
    sweep.write_text('seeds = 2\n[run]\nsteps = 7\ncorpus = "zipf"\narch.d_model = 16\narch.num_heads = 2\n')
    asked = ["sweep", "plan", str(sweep), "--out", str(tmp_path / "runs"), "--measure"]
    assert main([*asked, "--mesh.data", "2"]) == 2
    assert "measure: runs on one device each are measured; for a mesh give --device-flops" in capsys.readouterr().err
    monkeypatch.setattr("verify.sweeps.command.measured", lambda runs, lanes: speed.Speed(1800, 1e30))
    assert main(asked) == 0
    said = capsys.readouterr().out
    assert "about 0:30:00 on this machine, which achieves 1e+30 FLOP/s" in said and "1800 s to compile" in said
