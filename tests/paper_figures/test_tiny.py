"""Scale tiny as its users and CI run it: every figure from runs of its own, trained, summarised and drawn."""

import subprocess
import sys

import pytest

from paper_figures.gallery import FIGURES


@pytest.fixture(scope="module")
def runs(tmp_path_factory, worker_id):
    """One folder for both of pytest's processes, as two commands may share it."""
    base = tmp_path_factory.getbasetemp()
    return (base if worker_id == "master" else base.parent) / "tiny-runs"


@pytest.mark.parametrize("names", [list(FIGURES)[::2], list(FIGURES)[1::2]], ids=["one half", "the other"])
def test_every_figure_comes_from_runs_of_its_own(names, runs, tmp_path):
    folders = [f"--{name}={folder}" for name, folder in
               {"runs": runs, "data": tmp_path / "data", "out": tmp_path / "out"}.items()]  # fmt: skip
    command = [sys.executable, "-m", "paper_figures", *names, "--scale=tiny", "--recompute", *folders]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"index.html: {len(names)} figures" in done.stdout
    wanted = {f"{name}.{ending}" for name in names for ending in ("pdf", "svg", "png", "csv")}
    assert {path.name for path in (tmp_path / "out").iterdir()} == wanted | {"index.html"}
    assert {path.stem for path in (tmp_path / "data" / "tiny").glob("*.nc")} == set(names)
