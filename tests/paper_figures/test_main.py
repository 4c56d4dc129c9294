"""Figures from a report's files: every one is drawn, and what is missing is named."""

import pytest

from paper_figures.__main__ import main
from paper_figures.spike_no_more import FIGURES
from theory import Architecture
from verify import report


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("report")
    arch = Architecture(num_layers=1, d_model=8, num_heads=2, seq_len=4)
    options = report.ReportOptions(
        arch=arch, trained=arch, out=folder, rates=(1e-3, 1e-2), seeds=2, steps=4, init_seeds=2, widths=(8, 16)
    )
    report.run(options)
    return folder


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
