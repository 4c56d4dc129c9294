"""A grid into a folder: interrupted anywhere it goes on with what is missing, and nothing else."""

import dataclasses

import numpy as np
import pytest
import xarray as xr

from theory import Architecture
from verify.sweeps import lanes, store
from verify.training.loop import Run
from verify.training.optimizer import Optimizer

ARCH = Architecture(num_layers=1, d_model=4, num_heads=1, vocab_size=8)
RUNS = [
    Run(ARCH, Optimizer(learning_rate=rate), "zipf", seed=seed, steps=7)
    for seed in range(2)
    for rate in (0.1, 0.2, 0.3)
]


@pytest.fixture
def trained(monkeypatch):
    """Groups in the order in which they were trained; the training itself is replaced."""
    groups = []

    def train_lanes(runs, advanced):
        groups.append(list(runs))
        if advanced is not None:
            advanced(sum(run.steps for run in runs))
        return [xr.Dataset({"loss": ("step", np.full(7, run.optimizer.learning_rate))}) for run in runs]

    monkeypatch.setattr(lanes, "train_lanes", train_lanes)
    return groups


def test_groups_are_no_larger_than_asked_and_hold_one_program(trained, tmp_path):
    wider = [dataclasses.replace(run, batch_size=9) for run in RUNS[:2]]
    done = []
    paths = lanes.train_missing([*RUNS, *wider], tmp_path, lanes=4, advanced=done.append)
    assert trained == [RUNS[:4], RUNS[4:], wider]
    assert paths == [store.path_of(run, tmp_path) for run in [*RUNS, *wider]]
    assert sum(done) == 7 * 8
    for run, path in zip(RUNS, paths, strict=False):
        assert store.load(path)["loss"][0] == run.optimizer.learning_rate


def test_interrupted_it_goes_on_with_what_is_missing(trained, tmp_path, monkeypatch):
    working = lanes.train_lanes

    def interrupted(runs, advanced):
        if len(trained) == 2:
            raise KeyboardInterrupt
        return working(runs, advanced)

    monkeypatch.setattr(lanes, "train_lanes", interrupted)
    with pytest.raises(KeyboardInterrupt):
        lanes.train_missing(RUNS, tmp_path, lanes=2)
    assert len(list(tmp_path.iterdir())) == 4
    monkeypatch.setattr(lanes, "train_lanes", working)
    trained.clear()
    done = []
    lanes.train_missing(RUNS, tmp_path, lanes=2, advanced=done.append)
    assert trained == [RUNS[4:]]
    assert sum(done) == 7 * 6


def test_a_damaged_run_is_named_before_any_work(trained, tmp_path):
    store.path_of(RUNS[3], tmp_path).write_bytes(b"half")
    with pytest.raises(ValueError, match="is damaged"):
        lanes.train_missing(RUNS, tmp_path)
    assert not trained


def test_no_lanes(tmp_path):
    with pytest.raises(ValueError, match="lanes: must be at least 1, got 0"):
        lanes.train_missing(RUNS, tmp_path, lanes=0)
