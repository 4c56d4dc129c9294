"""The two requirements in every arrangement: limits against numbers, the paper's own pre-LN, the table of the docs."""

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from theory import Architecture, Block, Initialization, bound, large_shortcut, small_sublayers
from theory.__main__ import main
from theory.block import BLOCKS, block
from theory.block_requirements import LEVERS, effect, effects
from theory.conditions import requirements
from theory.initialization import INITIALIZATIONS

SMALL = Architecture(
    num_layers=2, d_model=32, num_heads=2, seq_len=8, activation="relu", norm="rms_norm", norm_epsilon=0.0,
)  # fmt: skip
LEVER_KINDS = {
    "outputs": {"attention": "attention.output", "feed_forward": "feed_forward.down"},
    "inner": {"attention": "attention.value", "feed_forward": "feed_forward.up"},
}


def _excess(arch: Architecture, part: str, std: float) -> float:
    """By `theory.bound`, without the norm on the sum: a sub-layer's bound over its shortcut's, less 1."""
    bare = replace(block(arch.block), post_norm=False, parallel=False)
    found = bound(replace(arch, block=bare), shortcut_std=np.full(5, std)).sublayer[2 + (part == "feed_forward")]
    return found / arch.factors(1)[0] - 1


def _scaled(arch: Architecture, kind: str, factor: float) -> Architecture:
    stds = {name: float(arch.std(name)[0]) * (factor if name == kind else 1) for name in arch.matrices}
    return replace(arch, initialization=Initialization("scaled", 0.1, stds, "a test"))


@pytest.mark.parametrize("part", ["attention", "feed_forward"])
@pytest.mark.parametrize("name", BLOCKS)
def test_limits_are_where_the_numbers_go(name: str, part: str) -> None:
    """Every lever pulled by 2^24 on the bound as numbers; a norm on the sum leaves the next addition a stream of 1."""
    arch, far = replace(SMALL, block=name), 2.0**24
    assert name == "rezero" or _excess(arch, part, 1.0) > 0
    for lever in LEVERS:
        if "embedding" in lever:
            hidden = lever == "embedding" and block(name).post_norm
            pulled = _excess(arch, part, 1.0 if hidden else far)
        else:
            pulled = _excess(_scaled(arch, LEVER_KINDS[lever][part], 1 / far), part, 1.0)
        start = _excess(_scaled(arch, "none", 1.0), part, 1.0)
        if name == "rezero":
            assert effect(arch, part, lever) == "0" and start == pulled == 0
            continue
        expected = {"-> 0": pulled < 1e-6 * start, "grows": pulled > 1e6 * start, "nothing": 0.2 < pulled / start < 5}
        assert [what for what, seen in expected.items() if seen] == [effect(arch, part, lever)], lever


@pytest.mark.parametrize("initialization", INITIALIZATIONS)
@pytest.mark.parametrize("embedding", ["vanilla", "scaled"])
def test_pre_ln_has_the_papers_numbers(initialization: str, embedding: str) -> None:
    arch = Architecture(
        num_layers=6, d_model=64, activation="relu", norm_epsilon=0.0, initialization=initialization,
        embedding=embedding,
    )  # fmt: skip
    paper = requirements(initialization, embedding, 6, 64, arch.vocab_size)
    excess = max(paper.feed_forward_number, paper.value_path_number)
    assert small_sublayers(arch).number == pytest.approx(excess, rel=1e-9)
    assert small_sublayers(arch).holds == paper.small_sublayers
    if initialization != "zero_output":
        assert large_shortcut(arch).number == pytest.approx(paper.std, rel=1e-9)
        assert large_shortcut(arch).holds == paper.large_shortcut
    else:
        assert large_shortcut(arch).number == math.inf


@pytest.mark.parametrize("std", [0.02, 3.0])
def test_the_shortcut_that_counts(std: float) -> None:
    """The stream's own where the excess falls with it; 1 where a norm on the sum hides it or nothing divides by it."""
    numbers = {name: large_shortcut(replace(SMALL, block=name), std).number for name in BLOCKS}
    hidden = {name: numbers.pop(name) for name in ("post_ln", "deepnorm", "deepnorm_glm", "no_norm")}
    assert all(value == pytest.approx(1.0, rel=1e-6) for value in hidden.values())
    assert numbers.pop("rezero") == math.inf
    deep_scale = numbers.pop("deep_scale_lm")  # its stream shrinks by sqrt(1 - 1/(2N)) a sub-layer
    assert (3 / 4) ** 1.5 * std <= deep_scale <= std * (1 + 1e-9)
    gated = replace(SMALL, block="post_ln", activation="geglu")  # whose excess grows with the stream, 1 here too
    assert large_shortcut(gated, std).number == pytest.approx(1.0, rel=1e-6)
    assert numbers and all(value == pytest.approx(std, rel=1e-9) for value in numbers.values())


def test_a_larger_shortcut_factor_is_what_deepnorm_has() -> None:
    """At 2 blocks a = sqrt 2 against GLM's 2."""
    plain, deep, glm = (
        small_sublayers(replace(SMALL, block=name)).number for name in ("post_ln", "deepnorm", "deepnorm_glm")
    )
    assert deep == pytest.approx(plain / math.sqrt(2), rel=1e-9) and glm == pytest.approx(plain / 2, rel=1e-9)


def test_advice_follows_the_arrangement() -> None:
    def advice(**fields: object) -> tuple[str, str]:
        arch = replace(SMALL, **fields)  # type: ignore[arg-type]
        return small_sublayers(arch).met_by, large_shortcut(arch).met_by

    assert advice(block="pre_ln")[1] == "a larger embedding"
    assert "norm on the sum" in advice(block="post_ln")[1]
    assert "no norm divides by the stream" in advice(block="no_norm")[1]
    assert advice(block="sub_ln")[0].endswith("; not attention.value, feed_forward.up: divided by a norm")
    assert advice(block="output_norm")[0].startswith("a smaller branch factor; not attention.output, ")
    assert advice(block="output_norm")[1].endswith("; with the embedding attention's scores grow")
    assert advice(block="output_norm", attention="qk_norm")[1] == "a larger embedding"
    assert advice(block="rezero") == ("branches that start at 0",) * 2


def test_a_block_of_ones_own() -> None:
    """A norm before and one after the sum: the first addition divides by the embedding, the second by 1."""
    arch = replace(SMALL, block=Block("mine", post_norm=True))
    assert [effects(arch, lever) for lever in LEVERS] == ["-> 0", "-> 0", "-> 0", "nothing"]
    assert large_shortcut(arch, 0.02).number == pytest.approx(0.02, rel=1e-9)


def test_an_unknown_lever_is_refused() -> None:
    with pytest.raises(ValueError, match="lever: unknown value 'depth'; choose one of outputs, inner, first embedding"):
        effect(SMALL, "values", "depth")


def test_the_table_of_the_docs_is_what_the_command_prints(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["requirements"]) == 0
    verdicts, table = capsys.readouterr().out.split("\n\n", 1)
    assert (
        "large shortcut    holds: " in verdicts and "0.632 (>= 0.5)" in verdicts and "met by a larger emb" in verdicts
    )
    rows = [line for line in table.splitlines() if line.startswith("|")]
    assert len(rows) == len(BLOCKS) + 2
    text = (Path(__file__).parents[2] / "docs" / "bounds.md").read_text(encoding="utf-8")
    assert "\n".join(rows) in text
