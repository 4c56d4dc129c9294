"""python -m verify sweep: shares that partition, and a plan that says what is left."""

import pytest
import xarray as xr
from hypothesis import given
from hypothesis import strategies as st

from verify.__main__ import main
from verify.sweeps import command, lanes, store
from verify.sweeps.command import share
from verify.sweeps.cost import cost
from verify.sweeps.manifest import read_sweep


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
        '[grid]\narch.embedding = ["vanilla", "scaled"]\noptimizer.learning_rate = [0.1, 1]\n'
    )
    return path


def test_a_plan_names_every_run_and_what_is_left(sweep, tmp_path, capsys):
    runs = read_sweep(sweep).runs
    (tmp_path / "runs").mkdir()
    store.save(runs[1], xr.Dataset(), tmp_path / "runs")
    assert main(["sweep", "plan", str(sweep), "--out", str(tmp_path / "runs")]) == 0
    said = capsys.readouterr().out
    for run in runs:
        (line,) = [line for line in said.splitlines() if line.startswith(store.digest(run))]
        assert line.split()[1:4] == [run.arch.embedding, f"{run.optimizer.learning_rate:g}", str(run.seed)]
        assert line.endswith("done" if run == runs[1] else "to do")
    assert "program 1: 4 runs, 3 left" in said and "program 2: 4 runs, 4 left" in said
    tokens = 7 * 7 * 8 * runs[0].arch.seq_len
    assert f"1 of 8 done in {tmp_path / 'runs'}/; left: {tokens:.3g} tokens" in said


def test_a_plan_of_a_share(sweep, tmp_path, capsys):
    assert main(["sweep", "plan", str(sweep), "--out", str(tmp_path), "--shard", "3/4"]) == 0
    said = capsys.readouterr().out
    assert "2 runs (share 3/4)" in said and "program 1: 2 runs, 2 left" in said


def test_a_plan_of_what_does_not_fit_says_so(sweep, tmp_path, capsys, monkeypatch):
    arguments = ["sweep", "plan", str(sweep), "--out", str(tmp_path)]
    assert main(arguments) == 0 and "MORE" not in capsys.readouterr().out
    monkeypatch.setattr(command, "free_bytes", lambda: 1000)
    assert main(arguments) == 0
    assert capsys.readouterr().out.count("1 at a time in") == 2
    assert main(arguments) == 0 and "MORE than the 0.00 GB that are free here" in capsys.readouterr().out


def test_a_run_trains_its_share_once(sweep, tmp_path, capsys, monkeypatch):
    """4 runs of the first program, then the other share, of two lanes each as memory has room for; then nothing."""
    trained = []

    def train_lanes(runs, advanced):
        trained.append(runs)
        ended = {"outcome": "finished", "outcome_step": 7, "held_out_loss": 3.0}
        return [xr.Dataset({"loss": ("step", [0.0])}, attrs=ended) for _ in runs]

    out, runs = tmp_path / "runs", list(read_sweep(sweep).runs)
    monkeypatch.setattr(lanes, "train_lanes", train_lanes)
    monkeypatch.setattr(command, "free_bytes", lambda: 2 * cost(runs[0]).lane_bytes)
    arguments = ["sweep", "run", str(sweep), "--out", str(out)]
    assert main([*arguments, "--shard", "0/2"]) == 0
    assert set(out.iterdir()) == {store.path_of(run, out) for run in runs[:4]}
    assert main(arguments) == 0 and main(arguments) == 0
    assert set(out.iterdir()) == {store.path_of(run, out) for run in runs}
    assert trained == [runs[start : start + 2] for start in (0, 2, 4, 6)]
    assert capsys.readouterr().out.count("finished at step 7, held-out loss 3.0000") == 4 + 8 + 8


def test_wrong_usage_is_one_line(sweep, tmp_path, capsys):
    for arguments, said in (
        ([str(tmp_path / "none.toml")], "No such file"),
        ([str(sweep), "--shard", "2"], "shard: must be I/N"),
        ([str(sweep), "--lanes", "0"], "lanes: must be at least 1, got 0"),
    ):
        assert main(["sweep", "plan", *arguments]) == 2
        error = capsys.readouterr().err
        assert said in error and error.count("\n") == 1
