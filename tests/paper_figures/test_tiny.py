"""Scale tiny as its users run it: every figure from runs of its own, trained, summarised and drawn by one command."""

import subprocess
import sys

from paper_figures.gallery import FIGURES


def test_every_figure_comes_from_runs_of_its_own(tmp_path):
    folders = [f"--{name}={tmp_path / name}" for name in ("runs", "data", "out")]
    command = [sys.executable, "-m", "paper_figures", "--all", "--scale=tiny", "--recompute", *folders]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"index.html: {len(FIGURES)} figures" in done.stdout
    wanted = {f"{name}.{ending}" for name in FIGURES for ending in ("pdf", "svg", "png", "csv")}
    assert {path.name for path in (tmp_path / "out").iterdir()} == wanted | {"index.html"}
    assert {path.stem for path in (tmp_path / "data" / "tiny").glob("*.nc")} == set(FIGURES)
