"""The atlas: complete, well-formed LaTeX, compiled where there is a TeX system; statements in lines that fit."""

import re
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest
import sympy as sp

from theory import derivation
from theory import notation as s
from theory.__main__ import main
from theory.activation import ACTIVATIONS
from theory.atlas import atlas
from theory.attention_scheme import ATTENTIONS
from theory.block import BLOCKS
from theory.derivation import Step, derive, topics
from theory.embedding import EMBEDDINGS
from theory.initialization import INITIALIZATIONS
from theory.latex import COLUMNS, _width, display, words
from theory.matrix_algebra import Norm
from theory.presets import PRESETS


@pytest.fixture(scope="module")
def document() -> str:
    return atlas({name: derive(name).check() for name in topics()})


def ill_formed(document: str) -> list[str]:
    """What is wrong: braces, mathematics or environments that do not balance, specials in text, signs beyond ASCII."""
    found = [f"not ASCII: {c!r}" for c in sorted(set(document)) if ord(c) > 127]
    bare = re.sub(r"\\[\\{}$&%#_]", "", document)
    depth = 0
    for number, line in enumerate(bare.split("\n"), 1):
        for character in line:
            depth += {"{": 1, "}": -1}.get(character, 0)
            if depth < 0:
                return [*found, f"closing brace without an opening one in line {number}"]
    found += ["an opening brace is not closed"] * (depth != 0)
    opened: list[str] = []
    for kind, name in re.findall(r"\\(begin|end)\{(\w+\*?)\}", document):
        if kind == "begin":
            opened.append(name)
        elif not opened or opened.pop() != name:
            return [*found, f"environment {name} ends, but another one is open"]
    found += [f"environment {name} does not end" for name in opened]
    body = bare[bare.index(r"\maketitle") :]
    found += ["a dollar sign without its partner"] * (body.count("$") % 2)
    text = re.sub(r"\\\[.*?\\\]|\$[^$]*\$|\\(label|hyperref|ref)(\[[^]]*\]|\{[^}]*\})", "", body, flags=re.DOTALL)
    return found + [f"{c!r} in text, unescaped" for c in "_^#%~" if c in text]


def test_well_formed_and_complete(document: str) -> None:
    assert ill_formed(document) == []
    for name, title in topics().items():
        assert rf"\label{{topic:{name}}}" in document and words(title) in document
    assert document.count(r"\[\fit{") == sum(len(derive(name).steps) for name in topics())
    for registry in (BLOCKS, INITIALIZATIONS, EMBEDDINGS, ATTENTIONS, ACTIVATIONS, PRESETS):
        for name in registry:
            assert words(name) in document
    for entry in s.TABLE.values():
        assert words(entry.meaning) in document
    assert r"\href{https://arxiv.org/abs/2312.16903}" in document


@pytest.mark.parametrize(
    ("broken", "what"),
    [
        ("a_b", "'_' in text"),
        (r"\emph{", "brace is not closed"),
        (r"\begin{itemize}", "another one is open"),
        ("x $ y", "dollar sign"),
        ("σ", "not ASCII"),
    ],
)
def test_the_check_finds_what_is_broken(document: str, broken: str, what: str) -> None:
    assert any(what in fault for fault in ill_formed(document.replace(r"\end{document}", broken + r"\end{document}")))


def test_words_are_escaped() -> None:
    assert words("50 % of d_ff & #1 {x^2}") == r"50 \% of d\_ff \& \#1 \{x\textasciicircum{}2\}"
    assert words("‖A‖ <= σ Λ, 2²") == r"$\Vert$A$\Vert$ $\le$ $\sigma$ $\Lambda$, 2$^2$"
    assert ill_formed(r"\maketitle " + words("\\ ~ ^ # $ % & _ { } é ∑ 字")) == ["not ASCII: 'é'"]


def test_a_short_statement_is_one_line_and_a_wide_one_is_split_where_it_may_be() -> None:
    assert display(sp.Eq(s.C_ffn, 9 * s.d, evaluate=False)) == r"C_{\mathrm{ffn}} = 9 d"
    assert display(sp.Eq(s.sigma**2 - s.epsilon, s.sigma_x**2)) == r"\sigma^{2} - \epsilon = \sigma_{x}^{2}"
    terms = sp.symbols("alpha_1:9")
    total = sum((t * s.sigma_Q * s.sigma_K * s.sigma_V for t in terms), sp.S.Zero)
    wide = sp.Le(s.delta, s.sigma_O * total / s.sigma_x, evaluate=False)
    assert _width(wide) > COLUMNS
    lines = display(wide).split("\n")[1:-1]
    assert len(lines) > 1 and r"\delta \leq" in lines[0] and r"\Bigl(" in lines[0] and r"\Bigr)" in lines[-1]
    for i in range(1, 9):
        assert sum(rf"\alpha_{{{i}}}" in line for line in lines) == 1
    one_sum = display(sp.Eq(s.delta, total, evaluate=False)).split("\n")[1:-1]
    assert len(one_sum) > 1 and all(line.lstrip("& ").startswith(r"\quad\quad + ") for line in one_sum[1:])


def test_what_is_no_relation_is_split_too() -> None:
    assert display(s.sigma**2) == r"\sigma^{2}"
    terms = sp.symbols("alpha_1:25")
    lines = display(sp.Add(*terms)).split("\n")[1:-1]
    assert len(lines) == 2 and lines[1].startswith("& + ") and not any("=" in line for line in lines)
    for i in range(1, 25):
        assert sum(rf"\alpha_{{{i}}}" in line for line in lines) == 1


def test_what_has_a_matrix_within_is_left_whole() -> None:
    wide = Norm(sp.MatAdd(*(sp.MatrixSymbol(f"M_{i}", s.d, s.d) for i in range(1, 25))))
    assert _width(wide) > COLUMNS
    left, right = display(sp.Le(wide, s.delta, evaluate=False)).split("\n")[1:-1]
    assert left.startswith(r"& \lVert M_{1}+ M_{2}") and left.endswith(r"M_{24} \rVert \\")
    assert right == r"& \quad \leq \delta"


def test_a_wide_vector_is_split_between_its_entries() -> None:
    total, product = sp.Add(*sp.symbols("alpha_1:9")), sp.Mul(*sp.symbols("beta_1:15"))
    assert display(sp.ImmutableMatrix([s.d, s.T])).count("\n") == 0
    first, second = display(sp.ImmutableMatrix([total, product]), 46).split("\n")[1:-1]
    assert first.startswith(r"& \bigl[\; \alpha_{1} +") and first.endswith(r"\alpha_{8} \,; \\")
    assert second.endswith(r"\beta_{9} \;\bigr]") and ";" not in second.removesuffix(r"\;\bigr]")
    lines = display(sp.ImmutableMatrix([total]), 12).split("\n")[1:-1]
    assert len(lines) == 8 and lines[-1] == r"& \quad + \alpha_{8} \;\bigr]"


def test_command_line_says_which_topic_has_a_step_that_fails(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    title, found = topics()["uniform_mixing"], derive("uniform_mixing")
    wrong = replace(found, steps=(*found.steps, Step(sp.Eq(s.d, s.d + 1, evaluate=False), "wrong")))
    monkeypatch.setitem(derivation.TOPICS, "uniform_mixing", (title, lambda: wrong))
    monkeypatch.setattr(derivation, "topics", lambda: {"uniform_mixing": title})
    assert main(["atlas", "--out", str(tmp_path / "atlas.tex")]) == 1
    captured = capsys.readouterr()
    assert captured.err == "a step of uniform_mixing failed\n" and ": 1 derivations; " in captured.out
    assert "FAILED" in (tmp_path / "atlas.tex").read_text(encoding="utf-8")


def test_command_line_writes_it_whole_or_says_why_not(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["atlas", "--out", str(tmp_path / "atlas.tex")]) == 0
    assert (tmp_path / "atlas.tex").read_text(encoding="utf-8").endswith("\\end{document}\n")
    assert [path.name for path in tmp_path.iterdir()] == ["atlas.tex"]
    capsys.readouterr()
    (tmp_path / "file").write_text("")
    for out in (tmp_path / "none" / "atlas.tex", tmp_path / "file" / "atlas.tex", tmp_path):
        assert main(["atlas", "--out", str(out)]) == 2
        captured = capsys.readouterr()
        assert captured.err.startswith("error: out: ") and captured.err.count("\n") == 1 and not captured.out


@pytest.mark.skipif(shutil.which("pdflatex") is None, reason="no TeX system: there is no pdflatex on the PATH")
def test_it_compiles_without_an_overfull_line(document: str, tmp_path: Path) -> None:
    (tmp_path / "atlas.tex").write_text(document, encoding="utf-8")
    for _ in range(2):
        run = subprocess.run(
            ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "atlas.tex"], cwd=tmp_path, capture_output=True
        )
        assert run.returncode == 0, run.stdout[-2000:].decode(errors="replace")
    log = (tmp_path / "atlas.log").read_text(encoding="utf-8", errors="replace")
    assert re.findall(r"Overfull \\[hv]box \((?:[1-9]\d*)\..*|LaTeX Warning: .*undefined.*", log) == []
    assert log.count("Atlas: scaled") <= document.count(r"\fit{") / 20
    assert (tmp_path / "atlas.pdf").stat().st_size > 100_000
