"""Datasets as files: what xarray reads of ours and we of xarray's is what was written."""

import os
import subprocess
import sys

import hypothesis.extra.numpy as arrays
import numpy as np
import pytest
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st

from verify.sweeps import netcdf

DTYPES = (np.float32, np.float64, np.int8, np.int32, np.int64, np.uint16, bool)
DIMENSIONS = ("step", "layer", "place")
WORDS = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=5)
DESCRIBED = st.dictionaries(
    st.sampled_from(("units", "long_name", "source", *(f"more{n}" for n in range(12)))),
    WORDS | st.integers(-(2**60), 2**60) | st.floats(allow_nan=False),
)


@st.composite
def datasets(draw):
    """Up to three dimensions, with and without values of their own; coordinates that index nothing; no dimension."""
    sizes = {name: draw(st.integers(0 if name == "step" else 1, 5)) for name in DIMENSIONS}

    def variable(of):
        shape = tuple(sizes[name] for name in of)
        values = draw(
            arrays.arrays(draw(st.sampled_from(DTYPES)), shape) | arrays.arrays(object, shape, elements=WORDS)
        )
        return xr.Variable(of, values, draw(DESCRIBED))

    over = st.lists(st.sampled_from(DIMENSIONS), unique=True, max_size=3)
    data = {f"data{number}": variable(draw(over)) for number in range(draw(st.integers(0, 3)))}
    coordinates = {name: variable([name]) for name in draw(over)} | {
        f"{name}_entries": variable([name]) for name in draw(over)
    }
    return xr.Dataset(data, coordinates, draw(DESCRIBED))


@settings(max_examples=60)
@given(dataset=datasets(), level=st.sampled_from((0, 4)))
def test_what_is_written_is_read_here_and_by_xarray(tmp_path_factory, dataset, level):
    path = tmp_path_factory.mktemp("netcdf") / "a.nc"
    path.write_bytes(netcdf.to_bytes(dataset, level))
    found = netcdf.read(path)
    xr.testing.assert_identical(found, dataset)
    assert {name: found[name].dtype for name in found.variables} == {
        name: of.dtype for name, of in dataset.variables.items()
    }
    with xr.open_dataset(path, engine="h5netcdf", decode_times=False) as opened:
        xr.testing.assert_identical(opened.load(), dataset)
    assert netcdf.attributes(path) == dataset.attrs
    assert netcdf.to_bytes(dataset, level) == path.read_bytes()


@settings(max_examples=20)
@given(dataset=datasets())
def test_what_xarray_writes_is_read(tmp_path_factory, dataset):
    path = tmp_path_factory.mktemp("netcdf") / "a.nc"
    dataset.to_netcdf(path, engine="h5netcdf")
    xr.testing.assert_identical(netcdf.read(path), dataset)


def test_every_process_writes_the_same_bytes():
    """Where the order of a set decides, it differs with the seed of Python's hashes."""
    script = """
import hashlib, numpy as np, xarray as xr
from verify.sweeps import netcdf
names = [f"name{number}" for number in range(9)]
data = {name: (names, np.zeros((1,) * 9), {"units": "1", "more": 2}) for name in ("loss", "norm")}
coordinates = {f"of_{name}": (name, [1]) for name in names}
print(hashlib.sha256(netcdf.to_bytes(xr.Dataset(data, coordinates, {"one": 1, "two": "2"}), 4)).hexdigest())
"""
    command = [sys.executable, "-c", script]
    digests = [subprocess.check_output(command, env=os.environ | {"PYTHONHASHSEED": seed}) for seed in "012"]
    assert len(set(digests)) == 1


def test_compressed_is_smaller():
    dataset = xr.Dataset({"loss": ("step", np.zeros(100_000, np.float32))})
    assert len(netcdf.to_bytes(dataset, 4)) < len(netcdf.to_bytes(dataset)) / 20


def test_what_no_file_holds_is_refused():
    with pytest.raises(TypeError):
        netcdf.to_bytes(xr.Dataset(attrs={"run": object()}))
