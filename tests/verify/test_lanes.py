"""A grid into a folder: interrupted anywhere it goes on with what is missing, and nothing else."""

import dataclasses
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import xarray as xr

from theory import Architecture
from verify.sweeps import lanes, store
from verify.sweeps.unit import Unit, lock
from verify.training.checkpoint import DamagedCheckpoint
from verify.training.optimizer import Optimizer
from verify.training.run import Run

ARCH = Architecture(num_layers=1, d_model=4, num_heads=1, vocab_size=8)
RUNS = [
    Run(ARCH, Optimizer(learning_rate=rate), "zipf", seed=seed, steps=7)
    for seed in range(2)
    for rate in (0.1, 0.2, 0.3)
]


@pytest.fixture
def trained(monkeypatch):
    """Groups in the order in which they were trained, in one thread; the training itself is replaced."""
    groups = []

    def train_lanes(runs, advanced, checkpoint, one_core):
        groups.append(list(runs))
        advanced(sum(run.steps for run in runs))
        return [xr.Dataset({"loss": ("step", np.full(7, run.optimizer.learning_rate))}) for run in runs]

    monkeypatch.setattr(lanes, "train_lanes", train_lanes)
    monkeypatch.setattr(lanes, "threads_that_fit", lambda runs: 1)
    return groups


def files(folder):
    return {path for path in folder.iterdir() if path.suffix == ".nc"}


def paths(runs, folder):
    return {store.path_of(run, folder) for run in runs}


def begin(unit):
    """As a process killed after its first chunk leaves it."""
    unit.checkpoint.write(3, {"weight": np.zeros(2)}, {"loss": np.zeros((len(unit.runs), 3))})
    (unit.checkpoint.folder / "runs.txt").write_text("\n".join(map(store.digest, unit.runs)))


def test_groups_are_no_larger_than_asked_and_hold_one_program(trained, tmp_path):
    wider = [dataclasses.replace(run, batch_size=9) for run in RUNS[:2]]
    done, finished = [], []
    made = lanes.train_missing([*RUNS, *wider], tmp_path, 4, done.append, lambda *run: finished.append(run))
    assert trained == [RUNS[:4], RUNS[4:], wider]
    assert made == [store.path_of(run, tmp_path) for run in [*RUNS, *wider]]
    assert finished == list(zip([*RUNS, *wider], made, strict=True))
    assert sum(done) == 7 * 8
    for run, path in zip(RUNS, made, strict=False):
        assert store.load(path)["loss"][0] == run.optimizer.learning_rate
    assert files(tmp_path) == set(made) and not list((tmp_path / ".unfinished").iterdir())


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError])
def test_interrupted_it_goes_on_with_what_is_missing(trained, tmp_path, monkeypatch, error):
    working = lanes.train_lanes

    def interrupted(*arguments):
        if len(trained) == 2:
            raise error
        return working(*arguments)

    monkeypatch.setattr(lanes, "train_lanes", interrupted)
    with pytest.raises(error):
        lanes.train_missing(RUNS, tmp_path, lanes=2)
    assert files(tmp_path) == paths(RUNS[:4], tmp_path)
    monkeypatch.setattr(lanes, "train_lanes", working)
    trained.clear()
    done = []
    lanes.train_missing(RUNS, tmp_path, lanes=2, advanced=done.append)
    assert trained == [RUNS[4:]]
    assert sum(done) == 7 * 6


def test_what_is_missing_keeps_its_place_in_the_sweep(trained, tmp_path):
    """Runs 0, 2 and 3 are there: 1 stands alone, as its neighbour is done, and 4 with 5, as they always do."""
    for run in (RUNS[0], RUNS[2], RUNS[3]):
        store.save(run, xr.Dataset(), tmp_path)
    lanes.train_missing(RUNS, tmp_path, lanes=2)
    assert trained == [[RUNS[1]], RUNS[4:]]


def test_what_was_begun_goes_on_first_and_as_it_was(trained, tmp_path):
    """Three lanes were begun, one of them done, and now there are two: the three go on, and the done one stays."""
    store.save(RUNS[2], xr.Dataset({"loss": ("step", [9.0])}), tmp_path)
    begin(Unit(tuple(RUNS[2:5]), tmp_path))
    lanes.train_missing(RUNS, tmp_path, lanes=2)
    assert trained == [RUNS[2:5], RUNS[:2], RUNS[5:]]
    assert store.load(store.path_of(RUNS[2], tmp_path))["loss"][0] == 9
    assert files(tmp_path) == paths(RUNS, tmp_path) and not list((tmp_path / ".unfinished").iterdir())


def test_killed_between_two_files_the_others_are_made_by_all_lanes_again(trained, tmp_path):
    """A run of one chunk has no states to go on from; the last bits are those of as many lanes as before."""
    unit = Unit(tuple(RUNS[:4]), tmp_path)
    unit.begin()
    store.save(RUNS[0], xr.Dataset({"loss": ("step", [9.0])}), tmp_path)
    lanes.train_missing(RUNS[:4], tmp_path, lanes=1)
    assert trained == [RUNS[:4]]
    assert store.load(store.path_of(RUNS[0], tmp_path))["loss"][0] == 9


def test_what_was_begun_with_nothing_done_is_grouped_anew(trained, tmp_path):
    """As where four lanes were too many for the memory, and the next try has one."""
    Unit(tuple(RUNS[:4]), tmp_path).begin()
    lanes.train_missing(RUNS, tmp_path, lanes=1)
    assert trained == [[run] for run in RUNS]


def test_what_is_wholly_there_is_tidied_up(trained, tmp_path):
    lanes.train_missing(RUNS, tmp_path)
    unit = Unit(tuple(RUNS[:2]), tmp_path)
    begin(unit)
    trained.clear()
    lanes.train_missing(RUNS, tmp_path)
    assert not trained and not unit.checkpoint.folder.exists()


def test_what_two_shares_began_together_is_named(trained, tmp_path, capsys):
    unit = Unit(tuple(RUNS[1:3]), tmp_path)
    begin(unit)
    lanes.train_missing(RUNS[:2], tmp_path, lanes=2)
    assert (
        f"{unit.checkpoint.folder}: 3 steps of 2 runs that began together stay unused here" in capsys.readouterr().err
    )
    assert trained == [RUNS[:2]]


def test_a_list_of_runs_that_cannot_be_read_is_none(trained, tmp_path):
    unit = Unit(tuple(RUNS[:2]), tmp_path)
    begin(unit)
    (unit.checkpoint.folder / "runs.txt").write_bytes(bytes(range(128, 256)))
    lanes.train_missing(RUNS, tmp_path, lanes=6)
    assert trained == [RUNS]


def test_a_process_takes_over_what_another_one_leaves(trained, tmp_path, monkeypatch):
    """It began while this one waited, with other lanes, and died: its units are gone on with, not those here."""
    monkeypatch.setattr(lanes, "POLL_SECONDS", 0.01)
    (tmp_path / ".unfinished").mkdir()
    first = lock(RUNS[1], tmp_path)
    first.acquire()
    with ThreadPoolExecutor(1) as pool:
        here = pool.submit(lanes.train_missing, RUNS[:4], tmp_path, 2)
        while not trained:
            time.sleep(0.01)
        begin(Unit((RUNS[0],), tmp_path))
        begin(Unit((RUNS[1],), tmp_path))
        first.release()
        here.result()
    assert trained[0] == RUNS[2:4]
    assert sorted(trained[1:], key=str) == sorted([[RUNS[0]], [RUNS[1]]], key=str)


def test_what_another_sweep_began_is_left_alone(trained, tmp_path):
    other = Unit((RUNS[0], dataclasses.replace(RUNS[0], steps=8)), tmp_path)
    begin(other)
    lanes.train_missing(RUNS, tmp_path, lanes=6)
    assert trained == [RUNS]
    assert other.checkpoint.steps_done() == 3


def test_a_damaged_file_is_named_set_aside_and_its_run_done_again(trained, tmp_path, capsys):
    lanes.train_missing(RUNS, tmp_path, lanes=2)
    path = store.path_of(RUNS[3], tmp_path)
    path.write_bytes(path.read_bytes()[:200])
    trained.clear()
    done = []
    lanes.train_missing(RUNS, tmp_path, lanes=2, advanced=done.append)
    assert trained == [[RUNS[3]]] and sum(done) == 7 * 6
    assert store.load(path)["loss"][0] == RUNS[3].optimizer.learning_rate
    assert (tmp_path / f"{path.name}.damaged").stat().st_size == 200
    said = capsys.readouterr().err
    assert f"{path} is damaged" in said and said.count("\n") == 1


def test_a_damaged_checkpoint_is_named_and_its_runs_start_again(trained, tmp_path, monkeypatch, capsys):
    working = lanes.train_lanes

    def train_lanes(runs, advanced, checkpoint, one_core):
        if checkpoint.steps_done():
            raise DamagedCheckpoint(f"checkpoint: {checkpoint.folder} is damaged")
        return working(runs, advanced, checkpoint, one_core)

    monkeypatch.setattr(lanes, "train_lanes", train_lanes)
    begin(Unit(tuple(RUNS[:2]), tmp_path))
    lanes.train_missing(RUNS[:2], tmp_path)
    assert trained == [RUNS[:2]] and files(tmp_path) == paths(RUNS[:2], tmp_path)
    assert "is damaged; these runs start again" in capsys.readouterr().err


def test_a_run_that_another_process_is_at_is_waited_for(trained, tmp_path, monkeypatch):
    """The other one finishes the first run and dies at the second: only the second is done here, and last."""
    monkeypatch.setattr(lanes, "POLL_SECONDS", 0.01)
    (tmp_path / ".unfinished").mkdir()
    first, second = (lock(run, tmp_path) for run in RUNS[:2])
    first.acquire()
    second.acquire()
    with ThreadPoolExecutor(1) as pool:
        here = pool.submit(lanes.train_missing, RUNS, tmp_path, 1)
        while len(trained) < 4:
            time.sleep(0.01)
        time.sleep(0.1)
        assert trained == [[run] for run in RUNS[2:]] and not here.done()
        store.save(RUNS[0], xr.Dataset(), tmp_path)
        first.release()
        second.release()
    assert here.result() == [store.path_of(run, tmp_path) for run in RUNS]
    assert trained[4:] == [[RUNS[1]]]


def test_no_run_is_trained_twice_by_many_at_once(tmp_path, monkeypatch):
    """Four that start together with four threads each, of different lanes."""
    runs = [dataclasses.replace(run, seed=seed) for run in RUNS[:3] for seed in range(4)]
    trained = Counter()

    def train_lanes(runs, advanced, checkpoint, one_core):
        assert one_core
        trained.update(runs)
        time.sleep(0.005)
        return [xr.Dataset({"loss": ("step", [0.0])}) for _ in runs]

    monkeypatch.setattr(lanes, "train_lanes", train_lanes)
    monkeypatch.setattr(lanes, "threads_that_fit", lambda runs: 4)
    monkeypatch.setattr(lanes, "POLL_SECONDS", 0.01)
    start = threading.Barrier(4)

    def process(width):
        start.wait()
        lanes.train_missing(runs, tmp_path, width)

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(process, (1, 2, 3, 2)))
    assert trained == Counter(runs)
    assert files(tmp_path) == paths(runs, tmp_path)


def test_a_failure_in_one_thread_stops_the_others_after_their_chunk(tmp_path, monkeypatch):
    """Both are at work when one finds the disk full; the other ends at its next chunk, and nothing new starts."""
    both, failed = threading.Barrier(2), threading.Event()
    begun = []

    def train_lanes(runs, advanced, checkpoint, one_core):
        begun.append(runs)
        both.wait()
        if len(begun) == 2 and runs == begun[0]:
            failed.set()
            raise OSError("no space left")
        failed.wait()
        for _ in range(1000):
            time.sleep(0.01)
            advanced(1)
        raise AssertionError("was not stopped")

    monkeypatch.setattr(lanes, "train_lanes", train_lanes)
    monkeypatch.setattr(lanes, "threads_that_fit", lambda runs: 2)
    with pytest.raises(OSError, match="no space left"):
        lanes.train_missing(RUNS, tmp_path, lanes=1)
    assert len(begun) == 2 and not files(tmp_path)


def test_no_lanes(tmp_path):
    with pytest.raises(ValueError, match="lanes: must be at least 1, got 0"):
        lanes.train_missing(RUNS, tmp_path, lanes=0)
