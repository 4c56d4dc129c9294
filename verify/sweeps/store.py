"""One self-describing netCDF-4 file per run, named after its configuration. A run exists when its file exists.

Files are written under a temporary name in the same folder and renamed, so a kill at any moment leaves either no file
or a whole one.
"""

import dataclasses
import hashlib
import json
import platform
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jax
import sympy as sp
import xarray as xr

from theory.atomic_file import named, write_atomically
from verify.sweeps import netcdf
from verify.training.corpus import load_corpus
from verify.training.run import Run


def configuration(run: Run) -> dict[str, object]:
    """Everything that decides a run's numbers, as JSON values, the corpus by its digest."""
    values = plain(run)
    assert isinstance(values, dict)
    return values | {"corpus_digest": load_corpus(run.corpus, run.arch.vocab_size).digest}


@cache
def digest(run: Run) -> str:
    """12 hexadecimal digits of the hash of the run's configuration."""
    return hashlib.sha256(json.dumps(configuration(run), sort_keys=True).encode()).hexdigest()[:12]


def path_of(run: Run, folder: Path) -> Path:
    """The file of that run: its names to read, and its digest."""
    embedding = getattr(run.arch.embedding, "name", run.arch.embedding)
    readable = "".join(c if c.isalnum() else "-" for c in str(embedding))
    return folder / f"{readable}_rate{run.optimizer.learning_rate:g}_seed{run.seed}_{digest(run)}.nc"


def save(run: Run, dataset: xr.Dataset, folder: Path) -> Path:
    """Write the run's file and return its path. Raises as `write_dataset` does."""
    described = dataset.assign_attrs(
        configuration=json.dumps(configuration(run), sort_keys=True),
        device=jax.devices()[0].device_kind,
        python=platform.python_version(),
        **{f"{package}_version": version(package) for package in ("spikeless", "jax", "optax", "numpy")},
    )
    path = path_of(run, folder)
    write_dataset(path, described, level=4)
    return path


def write_dataset(path: Path, dataset: xr.Dataset, level: int = 0) -> None:
    """As netCDF-4, atomically. It is made in memory first: HDF5 kills the process where the disk has no room.

    level: of compression. Raises OSError that names the file and says what to do.
    """
    content = netcdf.to_bytes(dataset, level)
    with named(f"cannot write {path}"):
        write_atomically(path, lambda temporary: temporary.write_bytes(content))


def load(path: Path) -> xr.Dataset:
    """The run's dataset, in memory. Raises ValueError that names a damaged or foreign file and says what to do."""
    with _reading(path):
        dataset = netcdf.read(path)
    _require_ours(path, dataset.attrs)
    return dataset


def attributes(path: Path) -> dict[str, Any]:
    """The dataset's attributes alone. Raises as `load` does, of a damaged value too."""
    with _reading(path):
        values = netcdf.attributes(path)
    _require_ours(path, values)
    return values


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    try:
        yield
    except (PermissionError, FileNotFoundError):
        raise
    except (OSError, KeyError, ValueError, RuntimeError, AttributeError, TypeError) as error:  # h5py raises all of them
        raise ValueError(f"run file: {path} is damaged ({error})") from error


def _require_ours(path: Path, values: Mapping[str, Any]) -> None:
    if "configuration" not in values:
        raise ValueError(f"run file: {path} has no attribute 'configuration', so it is none of ours; move it away")


def require_writable(folder: Path, field: str = "out") -> None:
    """Make the folder and prove that a file can be written there. Raises ValueError that names the field."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(bytes(8192))
    except OSError as error:
        raise ValueError(f"{field}: cannot write to folder {str(folder)!r}: {error.strerror}") from error


def plain(value: object) -> object:
    """A value as JSON can hold it: dataclasses by field with their type, expressions by `srepr`."""
    if dataclasses.is_dataclass(value):
        return {field.name: plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, sp.Basic):
        return sp.srepr(value)
    if hasattr(value, "items"):
        return {str(key): plain(item) for key, item in value.items()}
    return value
