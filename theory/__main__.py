"""The command line of the theory: list | derive TOPIC | atlas | predict | bound | recommend | requirements | growth.

Exit status 0: done; 1: a check failed; 2: wrong usage, with one line that names the field, the value and the choices.
"""

import dataclasses
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import tyro

from theory.architecture import Architecture
from theory.atomic_file import write_atomically
from theory.block import block
from theory.command_line import ArchitectureFlags, Preset, architecture, parse, run
from theory.embedding import embedding

_PROXY_WIDTH = 256


@dataclasses.dataclass(frozen=True)
class List:
    """Show the topics of derivations and all registered schemes."""


@dataclasses.dataclass(frozen=True)
class Derive:
    """Print a derivation; `python -m theory list` names all topics."""

    topic: tyro.conf.Positional[str]
    """name of the derivation"""
    format: Literal["text", "markdown", "latex", "mathml"] = "text"
    """what to print it as"""
    check: bool = False
    """re-prove every step and say how each is known"""


@dataclasses.dataclass(frozen=True)
class Atlas:
    """Write every derivation, symbol and scheme as one LaTeX document, every step proven again."""

    out: Path = Path("atlas.tex")
    """file to write; its folder must exist"""


@dataclasses.dataclass(frozen=True)
class Predict:
    """Predict stream and gradient at initialisation, place by place."""

    arch: ArchitectureFlags = dataclasses.field(default_factory=ArchitectureFlags)
    """the model"""
    preset: Preset = None
    batch_size: int = 8
    """sequences in the batch"""
    networks: int | None = None
    """random networks followed; more take longer and sample less error; None: enough for 1 to 2 %"""
    json: bool = False
    """print JSON instead of columns"""


@dataclasses.dataclass(frozen=True)
class BoundOptions:
    """Bound every sub-layer's Jacobian norm at initialisation."""

    arch: ArchitectureFlags = dataclasses.field(default_factory=ArchitectureFlags)
    """the model"""
    preset: Preset = None
    method: str = "paper"
    """which bound: paper (in expectation), high_probability"""
    probability: float = 0.99
    """with which high_probability holds, for all sub-layers at once"""
    json: bool = False
    """print JSON instead of columns"""


@dataclasses.dataclass(frozen=True)
class RecommendOptions:
    """Say what to change so that the gradient is not amplified by more than a budget."""

    arch: ArchitectureFlags = dataclasses.field(default_factory=ArchitectureFlags)
    """the model"""
    preset: Preset = None
    max_amplification: float = 2.0
    """budget: gradient norm of any place over that after the last block"""
    proxy_width: int | None = None
    """d_model of the small model to describe that has the same propagation; None: 256, of a wider model"""


@dataclasses.dataclass(frozen=True)
class RequirementsOptions:
    """Judge the two requirements, small sub-layers and a large shortcut, and say what meets them in every block."""

    arch: ArchitectureFlags = dataclasses.field(default_factory=ArchitectureFlags)
    """the model"""
    preset: Preset = None


@dataclasses.dataclass(frozen=True)
class GrowthOptions:
    """How the gradient amplification grows with depth, for every block with this model's other settings."""

    arch: ArchitectureFlags = dataclasses.field(default_factory=ArchitectureFlags)
    """the model; its block and num_layers play no role"""
    preset: Preset = None
    all: bool = False
    """every initialisation, not that of the model alone (takes half a minute)"""
    table: bool = False
    """every block, initialisation and embedding in one Markdown table, equal ones side by side (takes a minute)"""


Command = (
    Annotated[List, tyro.conf.subcommand("list")]
    | Annotated[Derive, tyro.conf.subcommand("derive")]
    | Annotated[Atlas, tyro.conf.subcommand("atlas")]
    | Annotated[Predict, tyro.conf.subcommand("predict")]
    | Annotated[BoundOptions, tyro.conf.subcommand("bound")]
    | Annotated[RecommendOptions, tyro.conf.subcommand("recommend")]
    | Annotated[RequirementsOptions, tyro.conf.subcommand("requirements")]
    | Annotated[GrowthOptions, tyro.conf.subcommand("growth")]
)


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    commands: dict[type, Callable[[Any], int]] = {
        List: _list,
        Derive: _derive,
        Atlas: _atlas,
        Predict: _predict,
        BoundOptions: _bound,
        RecommendOptions: _recommend,
        RequirementsOptions: _requirements,
        GrowthOptions: _growth,
    }

    def chosen() -> int:
        options = parse(Command, arguments, "python -m theory", __doc__)
        return commands[type(options)](options)

    return run(chosen)


def _list(_: List) -> int:
    from theory.activation import ACTIVATIONS
    from theory.architecture import POSITIONS
    from theory.attention_scheme import ATTENTIONS
    from theory.block import BLOCKS
    from theory.derivation import topics
    from theory.embedding import EMBEDDINGS
    from theory.initialization import INITIALIZATIONS
    from theory.parameter_count import num_parameters
    from theory.presets import PRESETS

    _section("topics (derive TOPIC)", topics().items())
    rows = []
    for scheme in INITIALIZATIONS.values():
        rows.append((scheme.name, f"std {scheme.default}; {scheme.source}"))
        rows += [("", f"{kind}: {rule}") for kind, rule in scheme.std.items()]
    _section("initializations", rows)
    _section(
        "presets", ((r.name, f"{num_parameters(r.arch) / 1e9:.4g}e9 parameters; {r.source}") for r in PRESETS.values())
    )
    _section("embeddings", ((e.name, e.source) for e in EMBEDDINGS.values()))
    _section("activations", ((a.name, a.source) for a in ACTIVATIONS.values()))
    _section("blocks", ((b.name, b.source) for b in BLOCKS.values()))
    _section("attentions", ((a.name, a.source) for a in ATTENTIONS.values()))
    _section("positions", ((name, "") for name in POSITIONS))
    return 0


def _section(title: str, rows: Any) -> None:
    print(title)
    for name, text in rows:
        print(f"  {name:<22} {text}".rstrip())
    print()


def _derive(options: Derive) -> int:
    from theory.derivation import derive

    derivation = derive(options.topic)
    check = derivation.check() if options.check else None
    print(getattr(derivation, f"to_{options.format}")(check))
    return 0 if check is None or check.holds else 1


def _atlas(options: Atlas) -> int:
    from theory.atlas import atlas
    from theory.derivation import derive, topics

    if not options.out.parent.is_dir():
        raise ValueError(f"out: there is no folder {str(options.out.parent)!r}")
    checks = {name: derive(name).check() for name in topics()}
    try:
        write_atomically(options.out, lambda path: path.write_text(atlas(checks), encoding="utf-8"))
    except OSError as error:
        raise ValueError(f"out: cannot write {str(options.out)!r}: {error.strerror}") from error
    print(f"{options.out}: {len(checks)} derivations; pdflatex, twice, makes the PDF")
    failed = [name for name, check in checks.items() if not check]
    for name in failed:
        print(f"a step of {name} failed", file=sys.stderr)
    return 1 if failed else 0


def _predict(options: Predict) -> int:
    from theory.propagation import predict

    arch = architecture(options.arch)
    prediction = predict(arch, options.batch_size, networks=options.networks)
    if options.json:
        return _json(prediction)
    columns = ("place", "enters", "predicted_shortcut_std", "predicted_gradient_norm")
    print("".join(f"{name:<27}" for name in columns).rstrip())
    for place, (std, norm) in enumerate(zip(prediction.shortcut_std, prediction.gradient_norm, strict=True)):
        entered = _sublayer(arch, place)
        print(f"{place:<27}{entered:<27}{std:<27.6g}{norm:.6g}")
    print(f"\npredicted_amplification  {prediction.amplification:.6g}")
    return 0


def _bound(options: BoundOptions) -> int:
    from theory.bounds import bound
    from theory.logit_bound import logit_bounds

    arch = architecture(options.arch)
    result = bound(arch, method=options.method, probability=options.probability)
    logits = logit_bounds(arch, result.shortcut_std) if options.method == "paper" else None
    if options.json:
        return _json(result, logits)
    std, logit = ("least_std", "") if logits is None else ("shortcut_std", "bound_attention_logit")
    print(f"{'place':<8}{'sub-layer':<30}{std:<16}{'bound_sublayer':<18}{logit}".rstrip())
    per_layer = len(block(arch.block).additions)
    for place, value in enumerate(result.sublayer):
        logit = f"{logits.attention_logit[place // per_layer]:.6g}" if logits and place % per_layer == 0 else ""
        entered, std = _sublayer(arch, place), f"{result.shortcut_std[place]:.6g}"
        print(f"{place:<8}{entered:<30}{std:<16}{value:<18.6g}{logit}".rstrip())
    print(f"\nbound_product       10^{result.log10_product:.4g}")
    if logits is not None:
        print(f"bound_output_logit  {logits.output_logit:.6g}")
        print(f"attention logits grow with {logits.attention_grows_with}; output with {logits.output_grows_with}")
    return 0


def _recommend(options: RecommendOptions) -> int:
    from theory.propagation import Prediction
    from theory.recommendation import proxy, recommend

    arch = architecture(options.arch)
    width = _PROXY_WIDTH if options.proxy_width is None else options.proxy_width
    small = proxy(arch, width) if options.proxy_width is not None or width < arch.d_model else None

    def followed(changed: Architecture, found: Prediction) -> None:
        size = f"{changed.num_layers} blocks, {changed.seq_len} tokens"
        print(f"predicted {size}: gradients grow by {found.amplification:.4g}", file=sys.stderr)

    print(recommend(arch, options.max_amplification, followed=followed).explanation)
    if small is not None:
        factor = small.evaluate(embedding(small.embedding).multiplier)
        print(
            f"\nSame propagation at d_model {small.d_model}: num_heads {small.num_heads}, "
            f"num_kv_heads {small.kv_heads}, d_ff {small.ff_width}, embedding multiplier {factor:.4g}, "
            f"logit_scale {small.logit_scale:.4g}; standard deviations:"
        )
        for kind in ("embedding", *small.matrices, *(() if small.tied else ("head",))):
            print(f"  {kind:<22}{small.std(kind)[0]:.4g}")
    return 0


def _requirements(options: RequirementsOptions) -> int:
    from theory.block import BLOCKS
    from theory.block_requirements import LEVERS, effects, large_shortcut, small_sublayers

    arch = architecture(options.arch)
    small, large = small_sublayers(arch), large_shortcut(arch)
    print(*small.explained("small sub-layers", "<="), *large.explained("large shortcut", ">="), sep="\n")
    print("\nWhat a sub-layer's excess does in every block, this model's other settings given:\n")
    columns = ("smaller outputs", "smaller W_V, W_1", "larger embedding, first addition", "larger embedding, later")
    print(f"| {' | '.join(('block', *columns))} |\n{'|---' * 5}|")
    for scheme in BLOCKS:
        other = dataclasses.replace(arch, block=scheme)
        print(f"| {' | '.join((scheme, *(effects(other, lever) for lever in LEVERS)))} |")
    return 0


def _growth(options: GrowthOptions) -> int:
    from theory.block import BLOCKS
    from theory.growth import growth_table
    from theory.growth_classes import markdown
    from theory.initialization import INITIALIZATIONS

    arch = architecture(options.arch)
    if options.table:
        print(markdown(growth_table(arch)))
        return 0
    chosen = tuple(INITIALIZATIONS) if options.all else (arch.initialization,)
    print(
        f"How a(N) grows with the number of blocks N: the gradient norm at block 1 over that after block N.\n"
        f"Activation {arch.activation}, attention {arch.attention}, embedding {arch.embedding}; "
        f"exponents hold for N to infinity.\n"
    )
    print(f"{'block':<16}{'initialisation':<16}{'class':<23}{'order of a(N)':<19}proof: python -m theory derive ...")
    for model, found in growth_table(arch, tuple(BLOCKS), chosen, (arch.embedding,)):
        like = {"constant": "1", "not derived": "(score path)"}.get(found.kind, found.formula)
        print(f"{model.block:<16}{model.initialization:<16}{found.kind:<23}{like:<19}{found.topic}", flush=True)
    return 0


def _sublayer(arch: Architecture, place: int) -> str:
    """What the stream enters at that place."""
    arrangement = block(arch.block)
    if place == arch.num_sublayers:
        return "final norm" if arrangement.final_norm else "head"
    layer, number = divmod(place, len(arrangement.additions))
    return f"{' + '.join(arrangement.additions[number])} {layer + 1}"


def _json(*results: Any) -> int:
    """Print all fields of the dataclasses as one object; None among them is skipped."""

    def plain(value: Any) -> Any:
        if isinstance(value, np.ndarray):
            return plain(value.tolist())
        if isinstance(value, dict):
            return {key: plain(item) for key, item in value.items()}
        if isinstance(value, list):
            return [plain(item) for item in value]
        return None if isinstance(value, float) and not np.isfinite(value) else value

    given = [result for result in results if result is not None]
    fields = {field.name: plain(getattr(each, field.name)) for each in given for field in dataclasses.fields(each)}
    print(json.dumps(fields, indent=1, allow_nan=False))
    return 0


if __name__ == "__main__":
    sys.exit(main())
