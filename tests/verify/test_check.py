"""A scheme checked from the shell and from a user's own pytest."""

import subprocess
import sys
import threading
from concurrent.futures import CancelledError
from dataclasses import replace

from verify.__main__ import main
from verify.properties import PROPERTIES, Limits, as_scheme
from verify.properties.check import searches


def test_the_command_prints_and_writes_what_it_found(tmp_path, capsys):
    page = tmp_path / "made" / "check.md"
    asked = ["check", "jax.nn.initializers:he_normal", "--declared", "lecun", "--only", "declared_std", "zero_mean"]
    sizes = ["num_layers=1", "d_model=4", "num_heads=1", "vocab_size=5", "seq_len=3", "d_ff=16"]
    assert main([*asked, "--hold", *sizes, "--out", str(page)]) == 1
    said = capsys.readouterr().out
    assert "declared_std fails" in said and "to repeat: from theory import Architecture" in said
    assert "not applicable" not in said
    assert "| zero_mean | tested | " in page.read_text() and "## declared_std" in page.read_text()
    assert main(["check", "lecun", "--only", "zero_mean", "--hold", *sizes]) == 0
    undeclared = ["jax.nn.initializers:he_normal", "--only", "declared_std", "distribution", "zero_mean"]
    assert main(["check", *undeclared, "--hold", *sizes, "--out", str(page)]) == 0
    gaps = (
        "2 of 3 not applicable: the standard deviation was not checked; give --declared, "
        "the law of the entries was not checked; give --distribution\n"
    )
    assert capsys.readouterr().out.split(f"report: {page}")[0].endswith(gaps) and page.read_text().endswith(gaps)
    assert main(["check", "lecun", "--hold", "d_model"]) == 2
    assert "hold: expected FIELD=VALUE" in capsys.readouterr().err
    assert main(["check", "jax.nn.initializers:constant"]) == 2
    assert capsys.readouterr().err.startswith("error: scheme jax.nn.initializers:constant raised TypeError: ")


def test_searches_that_nobody_waits_for_are_given_up(monkeypatch):
    """The one under way ends before its next architecture, and the one behind it does not begin."""
    tested, begun, go_on = [], threading.Event(), threading.Event()

    def waits(scheme, arch, seed, alpha, limits):
        tested.append(arch)
        begun.set()
        assert go_on.wait(60)

    group = tuple(replace(PROPERTIES[name], test=waits) for name in ("declared_std", "zero_mean"))
    monkeypatch.setattr(sys.modules["verify.properties.check"], "_GROUPS", (group,))  # the name is the function's too
    with searches(as_scheme("he"), ["declared_std", "zero_mean"], Limits()) as found:
        assert begun.wait(60)
        threading.Timer(0.2, go_on.set).start()
    assert len(tested) == 1 and found["zero_mean"].cancelled()
    assert isinstance(found["declared_std"].exception(), CancelledError)


_TESTS = """
import jax
import numpy
import pytest
from threadpoolctl import threadpool_info

def threads():
    return {pool["num_threads"] for pool in threadpool_info() if pool["user_api"] == "blas"}

BEFORE = threads()

def broken(key, shape, dtype):
    if shape == (4, 4):
        raise RuntimeError("my own bug")
    return jax.random.normal(key, shape, dtype)

@pytest.mark.initialization_scheme(scheme=broken, d_model=4, num_heads=1)
def test_broken(scheme_property):
    scheme_property()

@pytest.mark.initialization_scheme(scheme=jax.nn.initializers.he_normal(), declared="lecun", d_model=4, num_heads=1,
                                   num_layers=1, d_ff=16, vocab_size=5, seq_len=3)
def test_mine(scheme_property):
    scheme_property()

def test_threads_of_linear_algebra_are_as_before():
    assert threads() == BEFORE
"""


def test_pytest_runs_a_marked_scheme_and_one_from_its_command_line(tmp_path):
    (tmp_path / "test_mine.py").write_text(_TESTS)
    (tmp_path / "inits.py").write_text("import jax\nmine = jax.nn.initializers.normal(0.02)\n")

    def run(*arguments):
        command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *arguments]
        return subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)

    kinds = "init-declared_std or init-layouts or init-zero_mean or init-finite"
    marked = run("-k", f"broken-zero_mean or {kinds} or threads")
    deselected = 2 * len(PROPERTIES) - 5
    assert marked.returncode == 1
    assert f"2 failed, 3 passed, 1 skipped, {deselected} deselected" in marked.stdout, marked.stdout
    assert "scheme init: 1 of 4 not applicable\n" in marked.stdout
    assert "scheme broken raised RuntimeError: my own bug; at Architecture(" in marked.stdout
    assert "Traceback" not in marked.stdout and "hypothesis" not in marked.stdout
    assert "he_normal" in marked.stdout or "init: declared_std fails" in marked.stdout, marked.stdout
    asked = run(
        "--init-scheme",
        "inits:mine",
        "--init-declared",
        "he",
        "--init-hold",
        "num_layers=1",
        "--init-hold",
        "d_ff=16",
        "--init-hold",
        "d_model=4",
        "--init-hold",
        "num_heads=1",
        "--init-hold",
        "vocab_size=5",
        "--init-hold",
        "seq_len=3",
        "--init-only",
        "zero_mean",
        "--init-only",
        "declared_std",
        "--init-only",
        "layouts",
        "--init-skip",
        "zero_mean",
        "--init-layouts",
        "stacked",
        "--init-seed",
        "3",
    )
    assert asked.returncode == 1 and "1 failed, 1 passed" in asked.stdout, asked.stdout
    assert "layouts=('stacked',)" in asked.stdout
    assert "inits:mine: declared_std fails" in asked.stdout and "Traceback" not in asked.stdout
