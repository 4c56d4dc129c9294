"""Command lines as a person meets them: exit status 2 and one line for wrong input, and nothing written."""

import dataclasses
import os
import subprocess
import sys

import pytest

from theory.command_line import parse
from verify.__main__ import _preset_arch, _preset_training, _runs, main
from verify.flags import Command
from verify.sweeps import lanes, store
from verify.training.recipes import small, trained_as
from verify.training.run import Run


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (
            ["train", "--arch.initialization", "kaiming"],
            "error: initialization: unknown value 'kaiming'; choose one of",
        ),
        (
            ["train", "--arch.d-model", "30"],
            "error: num_heads: d_model = 30 is not divisible by 4; choose one of 1, 2, 3",
        ),
        (["train", "--rates", "-0.1"], "error: learning_rate: must be a positive number, got -0.1"),
        (["train", "--seeds", "0"], "error: seeds: must be at least 1, got 0"),
        (["train", "--lanes", "0"], "error: lanes: must be at least 1, got 0"),
        (["train", "--rates", "0.1", "0.1"], "error: rates: must be different from one another, got (0.1, 0.1)"),
        (["train", "--optimizer.learning-rate", "-1"], "error: learning_rate: must be a positive number, got -1.0"),
        (["init", "--tolerance", "-1"], "error: tolerance: must be a positive number, got -1.0"),
        (["train", "--corpus", "text:/no/such/file"], "error: corpus: no file or folder '/no/such/file'"),
        (
            ["report", "--corpus", "books"],
            "error: corpus: unknown value 'books'; choose one of stdlib, words, letters, zipf, or text:PATH",
        ),
        (["report", "--arch.vocab-size", "100"], "error: vocab_size: 'stdlib' is read as bytes and needs 256 words"),
        (["train", "--preset", "gpt5"], "error: preset: unknown value 'gpt5'; choose one of gpt2-small, gpt2-medium"),
        (["init", "--preset", "gpt2-xl", "--arch.num-heads", "7"], "error: num_heads: d_model = 1600 is not divisible"),
        (["init", "--seeds", "0"], "error: seeds: must be at least 1"),
    ],
)
def test_wrong_input(arguments, line, tmp_path, capsys):
    out = tmp_path / "out"
    assert main([*arguments, *(["--out", str(out)] if arguments[0] != "init" else [])]) == 2
    printed = capsys.readouterr().err
    assert printed.startswith(line) and printed.count("\n") == 1
    assert not out.exists() or not list(out.iterdir())


def test_a_short_corpus_and_an_unwritable_folder(tmp_path, capsys):
    text = tmp_path / "short.txt"
    text.write_text("too short")
    assert main(["report", "--corpus", f"text:{text}", "--out", str(tmp_path / "r")]) == 2
    assert "too few for one sequence of seq_len + 1 = 65" in capsys.readouterr().err
    assert main(["train", "--corpus", "zipf", "--out", str(text / "folder")]) == 2
    assert capsys.readouterr().err.startswith("error: out: cannot write to folder")


def test_train_keeps_its_runs(tmp_path, capsys):
    sizes = "--arch.num-layers 1 --arch.d-model 8 --arch.num-heads 2 --arch.seq-len 8 --steps 4 --rates 1e-3 1e-2"
    arguments = ["train", *sizes.split(), "--corpus", "zipf", "--out", str(tmp_path)]
    assert main(arguments) == 0
    files = {path: path.stat().st_mtime_ns for path in tmp_path.glob("*.nc")}
    assert len(files) == 2
    assert main(arguments) == 0
    assert files == {path: path.stat().st_mtime_ns for path in tmp_path.glob("*.nc")}
    assert "finished at step 4" in capsys.readouterr().out


def test_train_starts_from_a_preset(tmp_path):
    sizes = "--arch.num-layers 1 --arch.d-model 8 --arch.num-heads 2 --arch.d-ff 16 --arch.seq-len 8 --steps 1"
    words = ["--arch.vocab-size", "256", "--corpus", "zipf", "--out", str(tmp_path)]
    assert main(["train", "--preset", "olmo2-7b", *sizes.split(), *words]) == 0
    (kept,) = tmp_path.glob("*.nc")
    config = str(store.load(kept).attrs)
    for value in ("olmo2", "output_norm", "swiglu", "rms_norm", "qk_norm"):
        assert value in config


def test_init_agrees_and_disagrees_by_its_tolerance(capsys):
    small = ["init", "--arch.num-layers", "2", "--arch.d-model", "128", "--arch.seq-len", "16"]
    assert main(small) == 0
    assert main([*small, "--tolerance", "1e-6"]) == 1
    assert "ABOVE the tolerance" in capsys.readouterr().out


def test_train_interrupted_says_how_to_go_on(tmp_path, monkeypatch, capsys):
    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(lanes, "train_lanes", interrupt)
    assert main(["train", "--corpus", "zipf", "--out", str(tmp_path)]) == 130
    assert "the same command goes on" in capsys.readouterr().err


def test_a_corpus_too_short_leaves_no_folder(tmp_path, capsys):
    text = tmp_path / "short.txt"
    text.write_text("too short")
    assert main(["train", "--corpus", f"text:{text}", "--out", str(tmp_path / "runs")]) == 2
    assert capsys.readouterr().err.startswith("error: corpus:")
    assert not (tmp_path / "runs").exists()


def test_help_from_the_shell_shows_defaults():
    shown = subprocess.run(
        [sys.executable, "-m", "verify", "report", "--help"],
        capture_output=True,
        text=True,
        check=True,
        env=os.environ | {"COLUMNS": "200"},
    ).stdout
    assert "--arch.num-layers" in shown and "(default: 24)" in shown and "stdlib" in shown


def test_a_preset_brings_its_training_and_flags_stand_above_it():
    arguments = ["train", "--preset", "palm-8b", "--small", "--steps", "510", "--batch-size", "16"]
    expected = trained_as("palm-8b", Run(small("palm-8b"), batch_size=16, steps=510))

    def runs(*more):
        return _runs(parse(Command, [*arguments, *more], "", None, (_preset_arch, _preset_training)))

    assert runs() == [expected]
    changed = dataclasses.replace(expected, z_loss=0.0, optimizer=dataclasses.replace(expected.optimizer, clip=0.5))
    assert runs("--z-loss", "0", "--optimizer.clip", "0.5") == [changed]
    deeper = runs("--arch.num-layers", "7", "--batch-ramp", "5", "3")[0]
    assert deeper.arch == dataclasses.replace(expected.arch, num_layers=7) and deeper.batch_ramp == ((5, 3),)


def test_train_says_what_a_preset_brought(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("verify.sweeps.command.train", lambda *_: 0)
    assert main(["train", "--preset", "palm-8b", "--small", "--dropout", "0.2", "--out", str(tmp_path)]) == 0
    said = capsys.readouterr().out
    for part in ("palm-8b trains with method adafactor", "decay rate_squared", "z_loss 0.0001", "dropout 0.2"):
        assert part in said
    assert "seeds" not in said and "precision" not in said
    assert main(["train", "--dropout", "0.2", "--out", str(tmp_path)]) == 0
    assert capsys.readouterr().out == ""
