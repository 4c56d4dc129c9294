"""A sweep as data: a TOML file with the fields that all its runs share and those that vary, made into runs.

Tables `run` and `grid`, `preset` and `seeds`: docs/sweeps.md has an example.
"""

import dataclasses
import itertools
import tomllib
import typing
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from beartype.door import is_bearable

from theory.architecture import Architecture
from theory.presets import preset
from verify.training.optimizer import Optimizer
from verify.training.run import Run, by_program, changed

_NESTED = {"arch": Architecture, "optimizer": Optimizer}


@dataclass(frozen=True)
class Sweep:
    """runs: those of one program side by side, else in the file's order. varied: names of the fields that differ."""

    runs: tuple[Run, ...]
    varied: tuple[str, ...]

    def values(self, run: Run) -> dict[str, object]:
        """That run's value of each field that varies, by its last name."""
        return {name.split(".")[-1]: _read(run, name) for name in self.varied}


def read_sweep(path: Path) -> Sweep:
    """The sweep that the file describes.

    Raises ValueError that names the file, the field, the value and the choices; OSError where it cannot be read.
    """
    try:
        with path.open("rb") as file:
            described = tomllib.load(file)
        return _sweep(described)
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: is no TOML: {error}") from error
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def _sweep(described: dict[str, Any]) -> Sweep:
    _require_known("", described, ("preset", "seeds", "run", "grid"))
    shared, grid = (_flat(name, described.get(name, {})) for name in ("run", "grid"))
    if "seeds" in described:
        seeds = described["seeds"]
        if isinstance(seeds, bool) or not isinstance(seeds, int) or seeds < 1:
            raise ValueError(f"seeds: must be a whole number of at least 1, got {seeds!r}")
        if "seed" in shared | grid:
            raise ValueError("seeds: stands beside a seed in run or grid; give one of the two")
        grid["seed"] = list(range(seeds))
    for name, values in grid.items():
        if not isinstance(values, list) or not values:
            raise ValueError(f"grid.{name}: must be a list of values, got {values!r}")
        if name in shared:
            raise ValueError(f"grid.{name}: is fixed in run too; give it in one of the two")
    base = preset(described["preset"]).arch if "preset" in described else Architecture()
    made = [_run(base, shared | dict(zip(grid, values, strict=True))) for values in itertools.product(*grid.values())]
    runs = tuple(itertools.chain.from_iterable(by_program(made)))
    if len(set(runs)) < len(runs):
        raise ValueError("grid: gives the same run more than once; every value of a list must differ")
    return Sweep(runs, tuple(name for name, values in grid.items() if len(values) > 1))


def _flat(table: str, fields: object, prefix: str = "") -> dict[str, Any]:
    """Fields of Run by name, those of its parts as arch.NAME and optimizer.NAME."""
    if not isinstance(fields, dict):
        raise ValueError(f"{(table + '.' + prefix).rstrip('.')}: must be a table of fields, got {fields!r}")
    part = _NESTED.get(prefix.removesuffix("."), Run)
    _require_known(f"{table}.{prefix}", fields, [field.name for field in dataclasses.fields(part)])
    found: dict[str, Any] = {}
    for name, value in fields.items():
        if part is Run and name in _NESTED:
            found |= _flat(table, value, f"{name}.")
        else:
            found[prefix + name] = value
    return found


def _require_known(where: str, names: Iterable[str], choices: Sequence[str]) -> None:
    for name in names:
        if name not in choices:
            raise ValueError(f"{where}{name}: unknown field; choose one of {', '.join(choices)}")


def _run(base: Architecture, values: dict[str, Any]) -> Run:
    fields = {}
    for name, value in values.items():
        part, _, field = name.rpartition(".")
        kind = typing.get_type_hints(_NESTED.get(part, Run))[field]
        if isinstance(value, list):
            value = tuple(tuple(item) if isinstance(item, list) else item for item in value)
        if type(value) is int and not is_bearable(value, kind) and is_bearable(float(value), kind):
            value = float(value)
        if not is_bearable(value, kind) or (isinstance(value, bool) and kind is not bool):
            raise ValueError(f"{name}: must be {getattr(kind, '__name__', kind)}, got {value!r}")
        fields[name] = value
    return changed(Run(base), fields)


def _read(run: Run, name: str) -> object:
    value: object = run
    for part in name.split("."):
        value = getattr(value, part)
    return getattr(value, "name", value)
