"""Run files: whole or not there, named after everything that decides the numbers."""

import dataclasses
import signal
import subprocess
import sys

import numpy as np
import pytest
import sympy as sp
import xarray as xr

from theory import Architecture, Embedding
from theory.notation import d
from verify.sweeps import store
from verify.training.loop import train
from verify.training.optimizer import Optimizer
from verify.training.run import Run
from verify.training.telemetry import VARIABLES

RUN = Run(Architecture(num_layers=1, d_model=4, num_heads=1), corpus="zipf")
DATA = xr.Dataset(
    {"loss": ("step", np.arange(3, dtype=np.float32), {"units": "nats per token"})}, attrs={"outcome": "finished"}
)


def test_what_is_saved_is_loaded_and_describes_itself(tmp_path):
    path = store.save(RUN, DATA, tmp_path)
    loaded = store.load(path)
    np.testing.assert_array_equal(loaded["loss"], DATA["loss"])
    assert loaded["loss"].attrs["units"] == "nats per token"
    assert '"num_layers": 1' in loaded.attrs["configuration"] and '"corpus_digest"' in loaded.attrs["configuration"]
    assert loaded.attrs["jax_version"] and loaded.attrs["device"] and loaded.attrs["python"]
    assert store.attributes(path).items() >= loaded.attrs.items()
    assert [file.name for file in tmp_path.iterdir()] == [path.name]


def test_what_is_loaded_is_what_xarray_reads(tmp_path):
    """Of a real run: names of matrices, dimensions without values, coordinates that index nothing, truth values."""
    run = dataclasses.replace(RUN, steps=4, certify_every=2, spectral_norms=True)
    path = store.save(run, train(run).assign(kept=("step", np.array([True, False, True, True]))), tmp_path)
    with xr.open_dataset(path, engine="h5netcdf") as opened:
        xr.testing.assert_identical(store.load(path), opened.load())


def test_every_field_decides_the_name(tmp_path):
    variants = [
        RUN,
        dataclasses.replace(RUN, seed=1),
        dataclasses.replace(RUN, steps=301),
        dataclasses.replace(RUN, corpus="stdlib"),
        dataclasses.replace(RUN, optimizer=Optimizer(epsilon=1e-9)),
        dataclasses.replace(RUN, arch=dataclasses.replace(RUN.arch, norm_epsilon=1e-6)),
        dataclasses.replace(
            RUN, arch=dataclasses.replace(RUN.arch, embedding=Embedding("mine", multiplier=sp.sqrt(d)))
        ),
        dataclasses.replace(RUN, arch=dataclasses.replace(RUN.arch, embedding=Embedding("mine", multiplier=d))),
    ]
    names = {store.path_of(run, tmp_path).name for run in variants}
    assert len(names) == len(variants)
    assert store.path_of(RUN, tmp_path) == store.path_of(dataclasses.replace(RUN), tmp_path)


def test_a_long_deep_run_stays_small(tmp_path):
    """300 steps of 24 layers, noise that no compression can shrink: below 1 MB."""
    arch = Architecture(num_layers=24, d_model=4, num_heads=1)
    lengths = {"place": arch.num_sublayers + 1, "layer": 24, "head": 1, "matrix": 6, "table": 2}
    rng = np.random.default_rng(0)
    noise = xr.Dataset({
        name: (("step", *dimensions), rng.standard_normal((300, *(lengths[d] for d in dimensions)), np.float32))
        for name, (dimensions, _, _) in VARIABLES.items()
        if "spectral" not in name  # recorded only where a run asks for it
    })  # fmt: skip
    assert store.save(dataclasses.replace(RUN, arch=arch), noise, tmp_path).stat().st_size < 1_000_000


def test_killed_between_writing_and_renaming_leaves_no_run(tmp_path):
    """SIGKILL, so that no `finally` runs: what is left is not under the run's name."""
    script = """
import os, pathlib, signal, sys
from verify.sweeps import store
store.write_atomically(pathlib.Path(sys.argv[1]), lambda temporary: (
    temporary.write_bytes(b"whole"), os.kill(os.getpid(), signal.SIGKILL)))
"""
    died = subprocess.run([sys.executable, "-c", script, str(tmp_path / "run.nc")], check=False)
    assert died.returncode == -signal.SIGKILL
    assert [path.suffix for path in tmp_path.iterdir()] == [".part"]


def test_a_foreign_file_is_named(tmp_path):
    DATA.to_netcdf(tmp_path / "other.nc", engine="h5netcdf")
    for read in (store.load, store.attributes):
        with pytest.raises(ValueError, match=r"other.nc has no attribute 'configuration'"):
            read(tmp_path / "other.nc")


def test_an_interrupted_write_leaves_nothing(tmp_path):
    def die(path):
        path.write_bytes(b"half of it")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        store.write_atomically(tmp_path / "run.nc", die)
    assert not list(tmp_path.iterdir())


def test_a_failed_write_leaves_the_old_file(tmp_path):
    path = tmp_path / "table.csv"
    path.write_text("old")
    with pytest.raises(OSError):
        store.write_atomically(path, lambda temporary: (temporary.write_text("new"), (_ for _ in ()).throw(OSError)))
    assert path.read_text() == "old"


def test_a_damaged_file_is_named(tmp_path):
    path = store.save(RUN, DATA, tmp_path)
    path.write_bytes(path.read_bytes()[:200])
    for read in (store.load, store.attributes):
        with pytest.raises(ValueError, match=f"run file: {path} is damaged"):
            read(path)


def test_an_unwritable_folder_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="out: cannot write to folder"):
        store.require_writable(tmp_path / "file" / "folder")
