"""The command line of the theory: python -m theory list | derive TOPIC | predict | bound | growth.

Exit status 0: done; 1: a check failed; 2: wrong usage, with one line that names the field, the value and the choices.
"""

import dataclasses
import json
import sys
from collections.abc import Callable
from typing import Annotated, Any, Literal

import numpy as np
import tyro

from theory.command_line import ArchitectureFlags, architecture, run


@dataclasses.dataclass(frozen=True)
class List:
    """Show the topics of derivations and all registered schemes."""


@dataclasses.dataclass(frozen=True)
class Derive:
    """Print a derivation; `list` shows the topics."""

    topic: tyro.conf.Positional[str]
    """name of the derivation"""
    format: Literal["text", "markdown", "latex", "mathml"] = "text"
    """what to print it as"""
    check: bool = False
    """re-prove every step and say how each is known"""


@dataclasses.dataclass(frozen=True)
class Predict:
    """Predict stream and gradient at initialisation, place by place."""

    arch: ArchitectureFlags = dataclasses.field(default_factory=ArchitectureFlags)
    """the model"""
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
    method: str = "paper"
    """which bound: paper"""
    json: bool = False
    """print JSON instead of columns"""


@dataclasses.dataclass(frozen=True)
class GrowthOptions:
    """How the gradient amplification grows with depth, for every block with this model's other settings."""

    arch: ArchitectureFlags = dataclasses.field(default_factory=ArchitectureFlags)
    """the model; its block and num_layers play no role"""


Command = (
    Annotated[List, tyro.conf.subcommand("list")]
    | Annotated[Derive, tyro.conf.subcommand("derive")]
    | Annotated[Predict, tyro.conf.subcommand("predict")]
    | Annotated[BoundOptions, tyro.conf.subcommand("bound")]
    | Annotated[GrowthOptions, tyro.conf.subcommand("growth")]
)


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    options: Any = tyro.cli(Command, args=arguments, prog="python -m theory", description=__doc__)
    commands: dict[type, Callable[[Any], int]] = {
        List: _list, Derive: _derive, Predict: _predict, BoundOptions: _bound, GrowthOptions: _growth
    }  # fmt: skip
    return run(lambda: commands[type(options)](options))


def _list(_: List) -> int:
    from theory.activation import ACTIVATIONS
    from theory.architecture import POSITIONS
    from theory.attention_scheme import ATTENTIONS
    from theory.block import BLOCKS
    from theory.derivation import topics
    from theory.embedding import EMBEDDINGS
    from theory.initialization import INITIALIZATIONS

    _section("topics (derive TOPIC)", topics().items())
    rows = []
    for scheme in INITIALIZATIONS.values():
        rows.append((scheme.name, f"std {scheme.default}; {scheme.source}"))
        rows += [("", f"{kind}: {rule}") for kind, rule in scheme.std.items()]
    _section("initializations", rows)
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


def _predict(options: Predict) -> int:
    from theory.propagation import predict

    prediction = predict(architecture(options.arch), options.batch_size, networks=options.networks)
    if options.json:
        return _json(prediction)
    columns = ("place", "enters", "predicted_shortcut_std", "predicted_gradient_norm")
    print("".join(f"{name:<25}" for name in columns).rstrip())
    for place, (std, norm) in enumerate(zip(prediction.shortcut_std, prediction.gradient_norm, strict=True)):
        entered = _sublayer(place) if place < len(prediction.shortcut_std) - 1 else "final norm"
        print(f"{place:<25}{entered:<25}{std:<25.6g}{norm:.6g}")
    print(f"\npredicted_amplification  {prediction.amplification:.6g}")
    return 0


def _bound(options: BoundOptions) -> int:
    from theory.bounds import bound

    result = bound(architecture(options.arch), method=options.method)
    if options.json:
        return _json(result)
    print(f"{'place':<8}{'sub-layer':<22}{'shortcut_std':<16}bound_sublayer")
    for place, value in enumerate(result.sublayer):
        print(f"{place:<8}{_sublayer(place):<22}{result.shortcut_std[place]:<16.6g}{value:.6g}")
    print(f"\nbound_product  10^{result.log10_product:.4g}")
    return 0


def _growth(options: GrowthOptions) -> int:
    from theory.block import BLOCKS
    from theory.growth import growth

    arch = architecture(options.arch)
    print(f"{'block':<16}{'growth':<24}{'exponent':<12}{'rate':<12}derived from")
    for name in BLOCKS:
        found = growth(dataclasses.replace(arch, block=name))
        note = "" if found.flat_logits else "; the score path, here not small, is left out"
        print(f"{name:<16}{found.kind:<24}{found.exponent:<12.4g}{found.rate:<12.4g}{found.topic}{note}")
    return 0


def _sublayer(place: int) -> str:
    return f"{'feed_forward' if place % 2 else 'attention'} {place // 2 + 1}"


def _json(result: Any) -> int:
    def plain(value: Any) -> Any:
        if isinstance(value, np.ndarray):
            return value.tolist()
        if isinstance(value, dict):
            return {key: plain(item) for key, item in value.items()}
        return None if isinstance(value, float) and not np.isfinite(value) else value

    fields = {field.name: plain(getattr(result, field.name)) for field in dataclasses.fields(result)}
    print(json.dumps(fields, indent=1, allow_nan=False))
    return 0


if __name__ == "__main__":
    sys.exit(main())
