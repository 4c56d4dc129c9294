"""A sweep's file: what it makes, in which order, and what it says of a mistake."""

import dataclasses
from pathlib import Path

import pytest

from theory import Architecture
from theory.presets import preset
from verify.sweeps.manifest import read_sweep
from verify.training.optimizer import Optimizer
from verify.training.run import Run

WHOLE = """
seeds = 2
[run]
steps = 7
corpus = "zipf"
arch.d_model = 16
arch.num_heads = 2
[run.optimizer]
clip = 0
[grid]
optimizer.learning_rate = [0.1, 1]
arch.embedding = ["scaled", "layer_norm", 5]
"""


def read(folder, text):
    path = folder / "sweep.toml"
    path.write_text(text)
    return read_sweep(path)


def test_every_combination_with_those_of_one_program_side_by_side(tmp_path):
    sweep = read(tmp_path, WHOLE)
    assert sweep.runs == tuple(
        Run(
            Architecture(d_model=16, num_heads=2, embedding=embedding),
            Optimizer(learning_rate=rate, clip=0.0),
            "zipf",
            8,
            7,
            seed,
        )
        for alike in (("scaled", 5), ("layer_norm",))
        for rate in (0.1, 1.0)
        for embedding in alike
        for seed in (0, 1)
    )
    assert sweep.varied == ("optimizer.learning_rate", "arch.embedding", "seed")
    assert sweep.values(sweep.runs[7]) == {"learning_rate": 1.0, "embedding": 5, "seed": 1}


def test_a_preset_is_what_the_fields_change(tmp_path):
    sweep = read(tmp_path, 'preset = "llama-7b"\n[run.arch]\nnum_layers = 2\n')
    assert sweep.runs == (Run(dataclasses.replace(preset("llama-7b").arch, num_layers=2)),)
    assert sweep.varied == ()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("x =", "is no TOML"),
        ("steps = 3", "steps: unknown field; choose one of preset, seeds, run, grid"),
        ("[run]\nstep = 3", "run.step: unknown field; choose one of arch, optimizer, corpus, batch_size, steps, seed"),
        ("[run.optimizer]\nrate = 3", "run.optimizer.rate: unknown field; choose one of method, learning_rate"),
        ("[grid]\narch.width = [1]", "grid.arch.width: unknown field; choose one of num_layers"),
        ("[run]\narch = 3", "run.arch: must be a table of fields, got 3"),
        ("run = 3", "run: must be a table of fields, got 3"),
        ("[grid]\nseed = 3", "grid.seed: must be a list of values, got 3"),
        ("[grid]\nseed = []", r"grid.seed: must be a list of values, got \[\]"),
        ("[grid]\nseed = [1, 1]", "grid: gives the same run more than once"),
        ("[run]\nsteps = 3\n[grid]\nsteps = [1]", "grid.steps: is fixed in run too"),
        ("seeds = 0", "seeds: must be a whole number of at least 1, got 0"),
        ("seeds = 2\n[run]\nseed = 3", "seeds: stands beside a seed"),
        ("[run]\nsteps = 1.5", "steps: must be int, got 1.5"),
        ("[run]\nsteps = true", "steps: must be int, got True"),
        ("[run.optimizer]\nclip = '1'", "optimizer.clip: must be float, got '1'"),
        ("[run.arch]\nembedding = 'nope'", "embedding: unknown value 'nope'; choose one of vanilla"),
        ("[grid]\narch.num_heads = [3]", "num_heads: d_model = 128 is not divisible by 3"),
        ("preset = 'llama-7'", "preset: unknown value 'llama-7'; choose one of"),
    ],
)
def test_a_mistake_is_named_with_the_file(tmp_path, text, said):
    with pytest.raises(ValueError, match=rf"sweep.toml: {said}"):
        read(tmp_path, text)


def test_the_example_of_the_docs(tmp_path):
    page = (Path(__file__).parents[2] / "docs" / "sweeps.md").read_text()
    example = page.split("```toml\n")[1].split("```")[0]
    assert len(read(tmp_path, example).runs) == 4 * 2 * 3
