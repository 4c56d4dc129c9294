"""Measure, train and judge: python -m verify init | train | recover | sweep | coordinates | check | claims | report.

Exit status 0: done; 1: a check failed; 2: wrong usage, with one line that names the field, the value and the choices.
"""

import dataclasses
import json
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from theory.architecture import Architecture
from theory.command_line import architecture, flags, parse, preset_arch, run
from verify.flags import (
    Check,
    Claims,
    Command,
    Coordinates,
    HostFlags,
    Init,
    MeshFlags,
    OptimizerFlags,
    Recover,
    Report,
    Sweep,
    SweepPlan,
    SweepStatus,
    Train,
    Training,
)
from verify.training.detection import Recovery
from verify.training.optimizer import Optimizer

if TYPE_CHECKING:
    from jax.sharding import Mesh

    from verify.training.run import Run


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    commands: dict[type, Callable[[Any], int]] = {
        Init: _init,
        Train: _train,
        Recover: _recover,
        Sweep: _sweep,
        Coordinates: _coordinates,
        Check: _check,
        Claims: _claims,
        Report: _report,
    }

    def chosen() -> int:
        options = parse(Command, arguments, "python -m verify", __doc__, (_preset_arch, _preset_training))
        return commands[type(options)](options)

    return run(chosen)


def _init(options: Init) -> int:
    from theory import predict
    from verify.measurement import compare, measure

    arch = architecture(options.arch)
    if not options.tolerance > 0:
        raise ValueError(f"tolerance: must be a positive number, got {options.tolerance}")
    measured = measure(arch, batch_size=options.batch_size, seeds=options.seeds)
    table = compare(predict(arch, batch_size=options.batch_size), measured)
    print(table.to_string(index=False, float_format=lambda x: f"{x:.4g}"))
    errors = table.loc[table["quantity"].isin(["shortcut_std", "gradient_norm"]), "relative_error"].abs()
    good = bool(errors.max() <= options.tolerance)
    print(
        f"\nstd and gradient norm, {options.seeds} seeds: median error {errors.median():.2%}, "
        f"worst {errors.max():.2%}; {'within' if good else 'ABOVE'} the tolerance of {options.tolerance:.0%}"
    )
    return 0 if good else 1


def _preset_arch(options: Any) -> Any:
    from verify.training.recipes import small

    small_one = isinstance(options, Coordinates) or (isinstance(options, Training) and options.small)
    if small_one and options.preset:
        return dataclasses.replace(options, arch=flags(small(options.preset)))
    return preset_arch(options)


def _preset_training(options: Any) -> Any:
    """Optimizer, ramp, dropout and z-loss of a preset, at the size and length that are known by now."""
    if not isinstance(options, Training) or options.preset is None:
        return options
    from verify.training.recipes import trained_as

    run = trained_as(options.preset, _run(options))
    fields = {field.name: getattr(run, field.name) for field in dataclasses.fields(run) if field.name in _SHARED}
    return dataclasses.replace(options, optimizer=OptimizerFlags(**vars(run.optimizer)), **fields)


def _train(options: Train) -> int:
    from verify.sweeps.command import here, train

    if options.preset:
        print(f"{options.preset} trains with {_described(options)}", flush=True)
    return train(
        _runs(options), options.out, lambda run: {"learning_rate": run.optimizer.learning_rate, "seed": run.seed},
        here(options.lanes, _mesh(options.mesh, options.hosts)),
    )  # fmt: skip


def _described(options: Training) -> str:
    """The optimizer's fields, and those of the run that are not the usual ones."""
    usual = {field.name: field.default for field in dataclasses.fields(Training)}
    others = {name: getattr(options, name) for name in sorted(_SHARED) if getattr(options, name) != usual[name]}
    return ", ".join(f"{name} {value}" for name, value in (vars(options.optimizer) | others).items())


def _recover(options: Recover) -> int:
    from verify.sweeps import store
    from verify.training.recovery import digest, train_recovering
    from verify.training.run import require_data

    run = dataclasses.replace(_run(options), seed=options.seed)
    recovery = Recovery(**vars(options.recovery))
    require_data([run])
    store.require_writable(options.out)
    plain = store.path_of(run, options.out)
    path = plain.with_name(f"{plain.stem}_recovery_{digest(run, recovery)}.nc")
    if path.exists():
        dataset = store.load(path)
    else:
        states = path.with_suffix(".states")
        print(f"{run.steps} steps, states in {states}; after an interruption the same command goes on", flush=True)
        try:
            dataset = train_recovering(run, recovery, states, told=lambda line: print(line, flush=True))
        except KeyboardInterrupt:
            print("\ninterrupted; the same command goes on", file=sys.stderr)
            return 130
        configuration = json.dumps(store.configuration(run) | {"recovery": store.plain(recovery)}, sort_keys=True)
        store.write_dataset(path, dataset.assign_attrs(configuration=configuration))
    print(
        f"{dataset.attrs['outcome']} at step {dataset.attrs['outcome_step']}, "
        f"{len(json.loads(dataset.attrs['recoveries']))} recoveries, "
        f"held-out loss {dataset.attrs['held_out_loss']:.4f} nats per token: {path}"
    )
    return 0


def _sweep(options: Sweep) -> int:
    from verify.sweeps.command import here, on_ray, plan, read_share, status, train

    chosen = options.command
    sweep, runs = read_share(chosen.file, chosen.shard, getattr(chosen, "lanes", None))
    if not runs:
        print(f"share {chosen.shard} of {len(sweep.runs)} runs is empty")
        return 0
    if isinstance(chosen, SweepStatus):
        return status(runs, chosen.out, sweep.values)
    if isinstance(chosen, SweepPlan):
        from verify.training.mesh import MeshShape

        shape = MeshShape(**vars(chosen.mesh))
        title = f"{chosen.file}: {len(runs)} runs" + (f" (share {chosen.shard})" if chosen.shard != "0/1" else "")
        return plan(title, runs, chosen.out, sweep.values, chosen.lanes, shape, chosen.device_flops, chosen.measure)
    if chosen.on == "ray":
        if (chosen.mesh, chosen.hosts) != (MeshFlags(), HostFlags()):
            raise ValueError("on: ray gives each run one device; leave mesh and hosts out, or take here")
        work = on_ray(chosen.lanes, chosen.address)
    else:
        work = here(chosen.lanes, _mesh(chosen.mesh, chosen.hosts))
    return train(runs, chosen.out, sweep.values, work)


def _mesh(flags: MeshFlags, hosts: HostFlags) -> "Mesh | None":
    """Joins the other processes, if there are any, before JAX looks for devices."""
    from verify.training.mesh import MeshShape, join

    if hosts != HostFlags():
        join(hosts.coordinator, hosts.processes, hosts.process)
    return None if flags == MeshFlags() and hosts == HostFlags() else MeshShape(**vars(flags)).mesh()


def _run(options: Training) -> "Run":
    from verify.training.run import Run

    fields = {field.name: getattr(options, field.name) for field in dataclasses.fields(Run) if field.name in _SHARED}
    return Run(architecture(options.arch), Optimizer(**vars(options.optimizer)), **fields)


def _runs(options: Train) -> "list[Run]":
    rates = options.rates or (options.optimizer.learning_rate,)
    if len(set(rates)) < len(rates):
        raise ValueError(f"rates: must be different from one another, got {rates}")
    if options.seeds < 1:
        raise ValueError(f"seeds: must be at least 1, got {options.seeds}")
    run = _run(options)
    return [
        dataclasses.replace(run, optimizer=dataclasses.replace(run.optimizer, learning_rate=rate), seed=seed)
        for seed in range(options.seeds)
        for rate in rates
    ]


_SHARED = frozenset(field.name for field in dataclasses.fields(Training)) - {"arch", "optimizer"}
"""fields of a training's flags, as far as Run has them too"""


def _coordinates(options: Coordinates) -> int:
    from verify.report.coordinates import Check, check
    from verify.training.run import Run

    optimizer = Optimizer(**vars(options.optimizer))
    run = Run(
        architecture(options.arch), optimizer, corpus=options.corpus, batch_size=options.batch_size, steps=options.steps
    )
    return check(Check(run, options.widths, options.depths, options.seeds, options.tolerance, options.out))


def _check(options: Check) -> int:
    from rich.console import Console

    from theory.atomic_file import write_atomically
    from verify.properties import THOROUGH, Limits, check
    from verify.properties.check import held

    limits = dataclasses.replace(
        THOROUGH if options.thorough else Limits(),
        layouts=options.layouts,
        amplification=options.amplification,
        std_ratio=options.std_ratio,
        growth_exponent=options.growth_exponent,
    )
    console = Console()
    with console.status("") as status:
        found = check(
            options.scheme, options.declared, options.distribution, limits, options.only, options.skip, options.seed,
            lambda result: status.update(f"{result.property}: {result.outcome}"), **held(options.hold),
        )  # fmt: skip
    found.print(console)
    if options.out is not None:
        page = found.markdown()
        options.out.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(options.out, lambda path: path.write_text(page))
        print(f"report: {options.out}")
    return 0 if found.passed else 1


def _claims(options: Claims) -> int:
    from verify.claims.command import judge

    return judge(options.ids, options.scale, options.out, options.lanes, options.plan)


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
