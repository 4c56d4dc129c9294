"""What every command line of this project does about what stops it."""

import os

import pytest

from theory import command_line
from theory.atomic_file import named


def _raises(error: BaseException) -> int:
    raise error


@pytest.mark.parametrize(
    ("error", "status", "said"),
    [
        (KeyboardInterrupt(), 130, "interrupted\n"),
        (ValueError("d_model: must be\n  even"), 2, "error: d_model: must be even\n"),
        (OSError("no room"), 2, "error: no room\n"),
    ],
)
def test_the_status_and_one_line(error, status, said, capsys: pytest.CaptureFixture[str]) -> None:
    assert command_line.run(lambda: _raises(error)) == status
    assert capsys.readouterr().err == said


def test_a_reader_that_has_gone_is_no_error(capfd: pytest.CaptureFixture[str], monkeypatch) -> None:
    """What is still in the buffer goes nowhere, so that Python does not complain of it when it ends."""
    turned = []
    monkeypatch.setattr(
        os, "dup2", lambda source, target: turned.append((os.path.realpath(f"/dev/fd/{source}"), target))
    )
    with open(os.devnull, "w") as pipe:
        monkeypatch.setattr("sys.stdout", pipe)
        assert command_line.run(lambda: _raises(BrokenPipeError())) == 141
        assert turned == [(os.devnull, pipe.fileno())]
    assert capfd.readouterr().err == ""


def test_a_failed_write_says_what_of_and_what_to_do(tmp_path) -> None:
    said = r"cannot write table: No such file.*make room and start the same command again"
    with pytest.raises(OSError, match=said), named("cannot write table"):
        (tmp_path / "missing" / "table").write_text("")
