"""Flags for an Architecture on a command line, and errors as one clear line.

`ArchitectureFlags` mirrors the fields and defaults of `theory.Architecture`; where that takes an object of the
user's own, a command line offers the registered names and numbers. Shared by every package's `__main__`.
"""

import dataclasses
import os
import sys
import typing
from collections.abc import Callable, Sequence
from typing import Annotated, Any

import tyro

from theory.activation import ACTIVATIONS
from theory.architecture import FIELD_NAMES, NORMS, POSITIONS, Architecture
from theory.attention_scheme import ATTENTIONS
from theory.block import BLOCKS
from theory.embedding import EMBEDDINGS
from theory.initialization import INITIALIZATIONS
from theory.presets import PRESETS, preset

_HELP = {
    "num_layers": "blocks N, each attention and feed-forward",
    "d_model": "width of the residual stream, in coordinates",
    "num_heads": "attention heads; must divide d_model",
    "num_kv_heads": "key and value heads (None: num_heads; 1: multi-query)",
    "d_ff": "feed-forward width, in coordinates (None: 4 d_model)",
    "vocab_size": "words in the vocabulary",
    "seq_len": "predicted tokens a sequence",
    "block": f"one of {', '.join(BLOCKS)}",
    "norm": f"one of {', '.join(NORMS)}",
    "norm_epsilon": "added to the variance in every norm, stream unit squared",
    "activation": f"one of {', '.join(ACTIVATIONS)}",
    "positions": f"one of {', '.join(POSITIONS)}",
    "attention": f"one of {', '.join(ATTENTIONS)}",
    "initialization": f"one of {', '.join(INITIALIZATIONS)}",
    "embedding": f"one of {', '.join(EMBEDDINGS)}, or a number (multiplier)",
    "bias": "biases in linear layers and LayerNorm, 0 at the start",
    "tied": "the head is the embedding table",
    "logit_scale": "factor on the output logits",
}


Preset = Annotated[
    str | None,
    tyro.conf.arg(help=f"recipe to start from, --arch flags change it ('llama': its first size): {', '.join(PRESETS)}"),
]


def _flags() -> type:
    hints = typing.get_type_hints(Architecture)
    made = []
    for field in dataclasses.fields(Architecture):
        kind = hints[field.name]
        if str in typing.get_args(kind):
            kind = str
        annotated: Any = Annotated[kind, tyro.conf.arg(help=_HELP.get(field.name, field.name.replace("_", " ")))]
        made.append((field.name, annotated, dataclasses.field(default=field.default)))
    return dataclasses.make_dataclass("ArchitectureFlags", made, frozen=True, namespace={"__module__": __name__})


ArchitectureFlags: Any = _flags()


def architecture(flags: object) -> Architecture:
    """The Architecture that the flags describe. Raises ValueError as `Architecture` does."""
    return Architecture(**{field.name: getattr(flags, field.name) for field in dataclasses.fields(Architecture)})


Fill = Callable[[Any], Any]


def preset_arch(options: Any) -> Any:
    """The options with the `arch` of their `preset`."""
    return dataclasses.replace(options, arch=flags(preset(options.preset).arch))


def parse(
    command: Any,
    arguments: list[str] | None,
    prog: str,
    description: str | None,
    fills: Sequence[Fill] = (preset_arch,),
) -> Any:
    """The options of a command line; where a `preset` is among them, what is not given has the preset's values.

    fills: each puts some of them in, given what is known so far; what is given on the command line stands above all.
    Raises ValueError for an unknown preset, and exits with status 2 for a wrong flag.
    """
    options = tyro.cli(command, args=arguments, prog=prog, description=description)
    if getattr(options, "preset", None) is not None:
        for fill in fills:
            options = tyro.cli(command, args=arguments, prog=prog, description=description, default=fill(options))
    return options


def flags(arch: Architecture) -> Any:
    """The flags that describe an Architecture of registered schemes, by their names."""
    values = {name: getattr(arch, name) for name in FIELD_NAMES}
    return ArchitectureFlags(**values | {"embedding": str(arch.embedding)})


def run(main: Callable[[], int]) -> int:
    """main()'s exit status; a ValueError or OSError becomes one line on standard error and status 2.

    A reader that has gone (`... | head`) and Ctrl-C end it quietly, with the status a shell gives for that.
    """
    try:
        status = main()
        sys.stdout.flush()
        return status
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    except (ValueError, OSError) as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
