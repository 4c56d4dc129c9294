"""What figures are drawn from: a few numbers of many runs, one small netCDF file a figure and scale."""

from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import xarray as xr

from verify.claims.evidence import Cell, Evidence
from verify.sweeps import netcdf, store

COMMITTED = Path(__file__).parent / "data"
_BITS = 12  # of a float32's 23 that are kept: a relative error of 1e-4


def path_of(name: str, scale: str, folder: Path) -> Path:
    """The file of a figure's data."""
    return folder / scale / f"{name}.nc"


def save(dataset: xr.Dataset, path: Path) -> None:
    """Numbers of many runs are rounded to 4 digits, which makes the file small. Raises OSError that names the file."""
    with_bits = dataset.map(_rounded, keep_attrs=True)
    store.require_writable(path.parent, "data")
    store.write_dataset(path, with_bits, level=9)


def load(name: str, scale: str, folder: Path) -> xr.Dataset:
    """Raises ValueError that names the command which makes what is missing."""
    path = path_of(name, scale, folder)
    if not path.exists():
        command = f"python -m paper_figures {name} --scale {scale} --recompute"
        raise ValueError(f"data: none of figure {name} at scale {scale} in {folder}/; make them with: {command}")
    return netcdf.read(path)


def series(
    evidence: Evidence, cells: Iterable[Cell], names: Sequence[str], every: int = 1, seeds: int | None = None
) -> xr.Dataset:
    """What runs recorded, side by side along `run`, their labels as coordinates there; every so many steps.

    seeds: only those below.
    """
    chosen = [cell for cell in cells if seeds is None or cell.labels["seed"] < seeds]
    parts = [evidence.dataset(cell)[list(names)].isel(step=slice(None, None, every)) for cell in chosen]
    together = xr.concat(
        [part.drop_attrs(deep=False) for part in parts], "run", coords="minimal", compat="override", join="exact"
    )
    return _labelled(together, chosen)


def summaries(evidence: Evidence, cells: Iterable[Cell], names: Sequence[str]) -> xr.Dataset:
    """Numbers of whole runs (`verify.claims.evidence.summary`) along `run`."""
    chosen = list(cells)
    table = evidence.table(chosen)
    return _labelled(xr.Dataset({name: ("run", table[name].to_numpy()) for name in names}), chosen)


def of(data: xr.Dataset, **labels: object) -> xr.Dataset:
    """The runs with these labels."""
    chosen = np.all([data[name].to_numpy() == value for name, value in labels.items()], axis=0)
    return data.isel(run=np.flatnonzero(chosen))


def values(data: xr.Dataset, name: str) -> list:
    """A label's values, in the order in which runs first have them."""
    return list(dict.fromkeys(data[name].to_numpy().tolist()))


def _labelled(data: xr.Dataset, cells: Sequence[Cell]) -> xr.Dataset:
    return data.assign_coords(
        {name: ("run", np.array([cell.labels[name] for cell in cells])) for name in cells[0].labels}
    )


def _rounded(values: xr.DataArray) -> xr.DataArray:
    if values.dtype.kind != "f" or "run" not in values.dims:
        return values
    unit = np.uint32(1 << (23 - _BITS))
    bits = values.to_numpy().astype(np.float32).view(np.uint32)
    finite = np.isfinite(values.to_numpy())
    near = ((bits + unit // 2) & ~np.uint32(unit - 1)).view(np.float32)
    return values.copy(data=np.where(finite, near, values.to_numpy()).astype(np.float32))
