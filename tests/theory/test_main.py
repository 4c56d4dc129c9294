"""The command line: every command, the exit statuses, one line per error."""

import json
import math
import os
import re
import subprocess
import sys
from functools import partial

import pytest

from theory import Architecture, growth, predict
from theory.__main__ import main

SMALL = ["--arch.num-layers", "2", "--arch.d-model", "32", "--arch.seq-len", "8", "--arch.vocab-size", "16"]


def test_list(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["list"]) == 0
    out = capsys.readouterr().out
    for word in ("feed_forward_bound", "megatron", "scaled", "gelu_tanh", "rope", "llama-65b"):
        assert word in out


def test_a_preset_is_the_default_that_flags_override(capsys: pytest.CaptureFixture[str]) -> None:
    """GPT-2's table is 0.02 and its positions 0.01; the sizes given win, also where they are the plain defaults."""
    small = ["--arch.num-layers", "2", "--arch.d-model", "32", "--arch.num-heads", "4", "--arch.seq-len", "64"]
    std = {}
    for more in ((), ("--arch.embedding", "scaled"), ("--arch.positions", "rope", "--arch.initialization", "megatron")):
        for order in (
            ["bound", "--preset", "gpt2-small", *small, *more],
            ["bound", *small, *more, "--preset=gpt2-small"],
        ):
            assert main([*order, "--json"]) == 0
            std[more] = json.loads(capsys.readouterr().out)["shortcut_std"]
            assert len(std[more]) == 5
    plain, scaled, megatron = std.values()
    # at this width the stream's own spread is 1 / sqrt(32 x 50257 ...): the ensemble's error, some per cent
    assert plain[0] == pytest.approx((0.02**2 + 0.01**2) ** 0.5, rel=0.1)
    assert scaled[0] == pytest.approx((0.02**2 * 32 + 0.01**2) ** 0.5, rel=0.1)
    assert megatron[0] == pytest.approx((2 / 160) ** 0.5, rel=0.1)


def test_an_override_may_make_a_preset_impossible(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bound", "--preset", "gpt2-xl", "--arch.num-heads", "7"]) == 2
    assert capsys.readouterr().err.startswith("error: num_heads: d_model = 1600 is not divisible by 7")


@pytest.mark.parametrize("format", ["text", "markdown", "latex", "mathml"])
def test_derive(capsys: pytest.CaptureFixture[str], format: str) -> None:
    assert main(["derive", "embedding_stds", "--format", format, "--check"]) == 0
    assert "symbolic" in capsys.readouterr().out


@pytest.mark.parametrize("command", ["predict", "bound"])
def test_tables_and_json(capsys: pytest.CaptureFixture[str], command: str) -> None:
    assert main([command, *SMALL, "--arch.embedding", "0.5"]) == 0
    assert "feed_forward 2" in capsys.readouterr().out
    assert main([command, *SMALL, "--json"]) == 0
    assert len(json.loads(capsys.readouterr().out)["shortcut_std"]) == 5


def test_a_bound_without_logits(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bound", *SMALL, "--method", "high_probability"]) == 0
    header, *rows, product = capsys.readouterr().out.splitlines()
    assert header.split() == ["place", "sub-layer", "least_std", "bound_sublayer"]
    exponent = sum(math.log10(float(row.split()[-1])) for row in rows[:4])
    assert product == f"bound_product       10^{exponent:.4g}"


@pytest.mark.parametrize(("tied", "scale"), [(False, "1"), (True, "1.414")])
def test_recommend(capsys: pytest.CaptureFixture[str], tied: bool, scale: str) -> None:
    """Half the width, so sqrt 2 times Megatron's sqrt(2 / (5 d)), and on outputs 1 / sqrt(2 N) of that."""
    switch = ["--arch.embedding", "3", *(["--arch.tied"] if tied else [])]
    assert main(["recommend", *SMALL, *switch, "--max-amplification", "3", "--proxy-width", "16"]) == 0
    explanation, narrow = capsys.readouterr().out.split("\n\nSame propagation at d_model 16: ")
    arch = Architecture(num_layers=2, d_model=32, seq_len=8, vocab_size=16, embedding=3.0, tied=tied)
    norms = predict(arch).gradient_norm
    named, explanation = explanation.split("\n\n", 1)
    assert named == "2 pre_ln blocks, d_model 32, 8 tokens, initialisation megatron, embedding 3."
    told = re.match(
        r"Largest gradient norm of any place over the last one's: (.*), within the budget of 3\.", explanation
    )
    assert told is not None and float(told[1]) == pytest.approx(norms.max() / norms[-1], rel=0.05)
    first, *rows = narrow.splitlines()
    assert first == (
        f"num_heads 2, num_kv_heads 2, d_ff 64, embedding multiplier 2.121, logit_scale {scale}; standard deviations:"
    )
    std = dict(row.split() for row in rows)
    assert std.pop("attention.output") == std.pop("feed_forward.down") == "0.07906"
    names = ["embedding", "attention.query", "attention.key", "attention.value", "feed_forward.up"]
    assert list(std) == names + ["head"] * (not tied) and set(std.values()) == {"0.1581"}


def test_requirements(capsys: pytest.CaptureFixture[str]) -> None:
    """Post-LN's table of std 0.02 is hidden; He's feed-forward layer is too large: 9 d times 2 / sqrt(d 4 d)."""
    flags = ["--arch.block", "post_ln", "--arch.initialization", "he", "--arch.embedding", "0.01"]
    assert main(["requirements", *SMALL, *flags, "--arch.activation", "relu"]) == 0
    small, outputs, large, shortcut, *_ = capsys.readouterr().out.splitlines()
    assert small.startswith("small sub-layers  FAILS: ") and small.endswith(", at a shortcut of 1 is 13.2 (<= 1)")
    assert outputs.strip().startswith("met by smaller attention.output, attention.value, feed_forward.down, feed_f")
    assert large.startswith("large shortcut    holds: ") and large.endswith(" is 1 (>= 0.5)")
    assert shortcut.strip().startswith("met by a larger shortcut factor; ")


def test_the_growth_table(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Of every block, initialisation and embedding that there is, here one of each."""
    few = partial(growth.growth_table, blocks=("post_ln",), initializations=("small",), embeddings=("scaled",))
    monkeypatch.setattr(growth, "growth_table", few)
    assert main(["growth", "--table", "--arch.activation", "relu"]) == 0
    header, _, *rows = [line for line in capsys.readouterr().out.splitlines() if line.startswith("|")]
    assert header == "| initialisation | post_ln |" and len(rows) == 1 and rows[0].startswith("| small")


def test_what_is_as_narrow_as_a_stand_in_has_none(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["recommend", *SMALL]) == 0
    assert "Same propagation" not in capsys.readouterr().out
    assert main(["recommend", *SMALL, "--proxy-width", "16"]) == 0
    assert "Same propagation at d_model 16" in capsys.readouterr().out


def test_growth(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["growth", "--arch.initialization", "small", "--arch.activation", "relu"]) == 0
    rows = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["pre_ln", "small", "power", "N^0.50", "additive_growth"] in rows
    assert ["output_norm", "small", "stretched", "exponential", "exp(c", "N^0.75)", "near_tie_growth"] in rows


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["derive", "nope"], "error: topic: unknown value 'nope'; choose one of"),
        (["predict", "--preset", "gpt5"], "error: preset: unknown value 'gpt5'; choose one of gpt2-small, gpt2-medium"),
        (["bound", "--arch.num-heads", "5"], "error: num_heads: d_model = 128 is not divisible by 5"),
        (["bound", "--arch.initialization", "best"], "error: initialization: unknown value 'best'; choose one of"),
        (
            ["recommend", *SMALL, "--max-amplification", "1"],
            "error: max_amplification: must be a number above 1, got 1",
        ),
        (["recommend", *SMALL, "--proxy-width", "0"], "error: d_model: must be a whole number of at least 1, got 0"),
        (["bound", *SMALL, "--method", "guess"], "error: method: unknown value 'guess'; choose one of paper"),
    ],
)
def test_wrong_usage_is_one_line(capsys: pytest.CaptureFixture[str], arguments: list[str], line: str) -> None:
    assert main(arguments) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith(line) and captured.err.count("\n") == 1 and not captured.out


@pytest.mark.parametrize("networks", ["0", "-3", "two"])
def test_a_wrong_number_of_networks_is_refused(networks: str) -> None:
    run = subprocess.run(
        [sys.executable, "-m", "theory", "predict", *SMALL, "--networks", networks], capture_output=True
    )
    assert run.returncode == 2 and b"networks" in run.stderr and b"Traceback" not in run.stderr


def test_a_reader_that_has_gone_is_not_an_error() -> None:
    reading, writing = os.pipe()
    os.close(reading)
    run = subprocess.run([sys.executable, "-m", "theory", "list"], stdout=writing, stderr=subprocess.PIPE)
    os.close(writing)
    assert run.returncode == 141 and run.stderr == b""


def test_unknown_flag_exits_with_2() -> None:
    with pytest.raises(SystemExit) as exit_:
        main(["bound", "--arch.depth", "3"])
    assert exit_.value.code == 2
