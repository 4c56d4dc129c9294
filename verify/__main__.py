"""Measure, train and judge: python -m verify init | train | report.

Exit status 0: done; 1: a check failed; 2: wrong usage, with one line that names the field, the value and the choices.
"""

import dataclasses
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import tyro

from theory.architecture import Architecture
from theory.command_line import ArchitectureFlags, architecture, run
from verify.training.optimizer import Optimizer


@dataclasses.dataclass(frozen=True)
class Init:
    """Set prediction and autodiff side by side at initialisation."""

    arch: ArchitectureFlags = dataclasses.field(default_factory=ArchitectureFlags)
    """the model"""
    batch_size: int = 8
    """sequences in the batch"""
    seeds: int = 8
    """independent draws of weights and tokens"""
    tolerance: float = 0.1
    """largest relative error of a std or gradient norm that counts as agreement"""


@dataclasses.dataclass(frozen=True)
class Train:
    """Train every rate with every seed and keep one netCDF file a run; finished runs are not repeated."""

    arch: ArchitectureFlags = dataclasses.field(default_factory=lambda: ArchitectureFlags(num_layers=4, d_model=64))
    """the model"""
    optimizer: Optimizer = dataclasses.field(default_factory=Optimizer)
    """AdamW; --rates takes the place of its learning rate"""
    rates: tuple[float, ...] = (3e-3,)
    """peak learning rates"""
    seeds: int = 1
    """seeds of weights and data order, from 0"""
    corpus: str = "stdlib"
    """stdlib, zipf, or text:PATH"""
    batch_size: int = 8
    """sequences a step"""
    steps: int = 300
    """optimizer steps"""
    out: Path = Path("runs")
    """folder of the runs' files"""


@dataclasses.dataclass(frozen=True)
class Report:
    """Derive, predict, measure, train and judge; writes OUT/index.html and its data."""

    arch: ArchitectureFlags = dataclasses.field(default_factory=ArchitectureFlags)
    """the model at initialisation; what you change here changes in --trained too, unless you set it there"""
    trained: ArchitectureFlags = dataclasses.field(
        default_factory=lambda: ArchitectureFlags(num_layers=8, d_model=64, num_heads=2)
    )
    """the model that is trained, small so that 48 runs fit into minutes"""
    corpus: str = "stdlib"
    """stdlib, zipf, or text:PATH"""
    rates: tuple[float, ...] = (3e-3, 6e-3, 1.2e-2, 2.4e-2)
    """peak learning rates"""
    seeds: int = 3
    """training seeds at every rate"""
    steps: int = 200
    """optimizer steps a run"""
    init_seeds: int = 8
    """seeds of the measurement at initialisation"""
    jacobian_seeds: int = 2
    """seeds of the measured Jacobian norms"""
    widths: tuple[int, ...] = (64, 128, 256, 512)
    """widths at which Vanilla's first block is measured"""
    out: Path = Path("report")
    """folder of the report"""


Command = (
    Annotated[Init, tyro.conf.subcommand("init")]
    | Annotated[Train, tyro.conf.subcommand("train")]
    | Annotated[Report, tyro.conf.subcommand("report")]
)


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    options: Any = tyro.cli(Command, args=arguments, prog="python -m verify", description=__doc__)
    commands: dict[type, Callable[[Any], int]] = {Init: _init, Train: _train, Report: _report}
    return run(lambda: commands[type(options)](options))


def _init(options: Init) -> int:
    from theory import predict
    from verify.measurement import compare, measure

    arch = architecture(options.arch)
    table = compare(
        predict(arch, batch_size=options.batch_size),
        measure(arch, batch_size=options.batch_size, seeds=options.seeds),
    )
    print(table.to_string(index=False, float_format=lambda x: f"{x:.4g}"))
    errors = table.loc[table["quantity"].isin(["shortcut_std", "gradient_norm"]), "relative_error"].abs()
    good = bool(errors.max() <= options.tolerance)
    print(
        f"\nstd and gradient norm, {options.seeds} seeds: median error {errors.median():.2%}, "
        f"worst {errors.max():.2%}; {'within' if good else 'ABOVE'} the tolerance of {options.tolerance:.0%}"
    )
    return 0 if good else 1


def _train(options: Train) -> int:
    from verify.sweeps import store
    from verify.training.loop import Run, train_lanes
    from verify.training.progress import progress

    arch = architecture(options.arch)
    runs = [
        Run(arch, dataclasses.replace(options.optimizer, learning_rate=rate), options.corpus, options.batch_size,
            options.steps, seed)
        for seed in range(options.seeds)
        for rate in options.rates
    ]  # fmt: skip
    if not runs:
        raise ValueError(f"seeds: must be at least 1, got {options.seeds}")
    store.require_writable(options.out)
    missing = [run for run in runs if not store.path_of(run, options.out).exists()]
    if missing:
        with progress() as stage, stage("train (steps)", options.steps * len(missing)) as advance:
            for run, dataset in zip(missing, train_lanes(missing, advance), strict=True):
                store.save(run, dataset, options.out)
    for run in runs:
        path = store.path_of(run, options.out)
        ended = store.load(path).attrs
        print(
            f"rate {run.optimizer.learning_rate:<8g} seed {run.seed:<3d} {ended['outcome']} at step "
            f"{ended['outcome_step']}, held-out loss {ended['held_out_loss']:.4f} nats per token: {path}"
        )
    return 0


def _report(options: Report) -> int:
    from verify import report

    arch, trained = architecture(options.arch), architecture(options.trained)
    plain, plain_trained = Architecture(), architecture(Report().trained)
    changed = {
        field.name: getattr(arch, field.name)
        for field in dataclasses.fields(Architecture)
        if getattr(arch, field.name) != getattr(plain, field.name)
        and getattr(trained, field.name) == getattr(plain_trained, field.name)
    }
    return report.run(
        report.ReportOptions(
            arch=arch,
            trained=dataclasses.replace(trained, **changed),
            **{
                field.name: getattr(options, field.name)
                for field in dataclasses.fields(Report)
                if field.name not in ("arch", "trained")
            },
        )
    )


if __name__ == "__main__":
    sys.exit(main())
