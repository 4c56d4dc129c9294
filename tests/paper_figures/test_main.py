"""Figures from a report's files: every one is drawn, and what is missing is named."""

import pytest

from paper_figures.__main__ import main
from paper_figures.spike_no_more import FIGURES


def test_all_are_drawn(finished, tmp_path):
    assert main(["--all", "--report", str(finished), "--out", str(tmp_path)]) == 0
    assert {path.name for path in tmp_path.iterdir()} == {f"{name}.{end}" for name in FIGURES for end in ("png", "pdf")}


def test_the_list_says_what_the_original_shows(capsys):
    assert main(["--list"]) == 0
    printed = capsys.readouterr().out
    assert all(name in printed for name in FIGURES)


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["snm_99"], "error: name: unknown figure 'snm_99'; choose one of headline, snm_2"),
        (
            ["snm_2", "--report", "/no/such/folder"],
            "error: report: no 'data' in folder '/no/such/folder'; make it with",
        ),
    ],
)
def test_wrong_input(arguments, line, tmp_path, capsys):
    assert main([*arguments, "--out", str(tmp_path / "out")]) == 2
    assert capsys.readouterr().err.startswith(line)
    assert not (tmp_path / "out").exists()
