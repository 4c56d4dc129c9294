"""What propagates through a stack before any training: bound, prediction, autodiff, of schemes, depths and widths."""

import dataclasses
import itertools
from collections.abc import Iterable

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, NullLocator

from paper_figures import style
from paper_figures.data import values
from paper_figures.figure import PaperFigure
from paper_figures.style import COLOUR, MARKER, ORDERED, TITLES
from theory import Architecture, Prediction, bound, predict
from theory.block import BLOCKS
from theory.closed_form import closed_form
from theory.growth import growth
from theory.initialization import INITIALIZATIONS
from theory.presets import preset
from theory.recommendation import proxy
from verify import Measurement, measure
from verify.claims.evidence import Evidence
from verify.claims.scale import Scale
from verify.report.style import legend
from verify.training.compiled import release_when_many

_STACK = Architecture(num_layers=12, d_model=64, num_heads=2, seq_len=32)
_SEEDS, _NETWORKS = 8, 32
_METHODS = ("vanilla", "scaled")


def _layers(scale: Scale, arch: Architecture) -> Architecture:
    """As it is; at scale tiny of two blocks."""
    return dataclasses.replace(arch, num_layers=2) if scale.name == "tiny" else arch


def _some(scale: Scale, names: Iterable[str]) -> list[str]:
    """All of them; at scale tiny the first alone."""
    return list(names)[: 1 if scale.name == "tiny" else None]


def _chain(arch: Architecture, shortcut_std: np.ndarray) -> np.ndarray:
    """The published bound on the gradient norm at each place over the last one's."""
    return np.append(np.cumprod(bound(arch, shortcut_std=shortcut_std).sublayer[::-1])[::-1], 1.0)


def _over_last(norms: np.ndarray) -> np.ndarray:
    return norms / norms[..., -1:]


def _schemes(evidence: Evidence, scale: Scale) -> xr.Dataset:
    """Of a pre-LN stack, over the last place's."""
    names, stack = _some(scale, INITIALIZATIONS), _layers(scale, _STACK)
    found: dict[str, list] = {"bound": [], "predicted": [], "measured": []}
    for name in names:
        stacks = [dataclasses.replace(stack, initialization=name, embedding=method) for method in _METHODS]
        predictions = [predict(one, networks=_NETWORKS) for one in stacks]
        found["bound"].append([_chain(one, p.shortcut_std) for one, p in zip(stacks, predictions, strict=True)])
        found["predicted"].append([_over_last(p.gradient_norm) for p in predictions])
        found["measured"].append([_over_last(measure(one, seeds=_SEEDS, quick=True).gradient_norm) for one in stacks])
        release_when_many()
    along = ("initialization", "embedding")
    return xr.Dataset(
        {
            "bound": ((*along, "place"), np.array(found["bound"])),
            "predicted": ((*along, "place"), np.array(found["predicted"])),
            "measured": ((*along, "seed", "place"), np.array(found["measured"])),
        },
        {"initialization": names, "embedding": list(_METHODS)},
    ).assign_coords(place=np.arange(stack.num_sublayers + 1))


def _draw_schemes(data: xr.Dataset) -> Figure:
    names = values(data, "initialization")
    with style.page(style.PAGE, 6.4) as figure:
        panels = _grid(figure, len(names), 5)
        for axes, name in zip(panels, names, strict=False):
            for method in values(data, "embedding"):
                found = data.sel(initialization=name, embedding=method)
                colour = COLOUR[method]
                axes.plot(found["place"], found["bound"], ls=":", lw=1, color=colour, label=f"{TITLES[method]}: bound")
                axes.plot(found["place"], found["predicted"], lw=1, color=colour, label=f"{TITLES[method]}: predicted")
                middle = _geometric_mean(found["measured"])[::3]
                axes.plot(
                    middle["place"], middle, MARKER[method], ms=3, mew=0, color=colour,
                    label=f"{TITLES[method]}: measured",
                )  # fmt: skip
            axes.set(yscale="log", ylim=(0.3, 3e3), title=name)
            axes.yaxis.set_major_locator(FixedLocator([1, 10, 100, 1000]))
            axes.yaxis.set_minor_locator(NullLocator())
            axes.set_xticks([0, data.sizes["place"] // 2, data.sizes["place"] - 1])
        figure.supylabel("gradient norm over that at the last place", fontsize=9)
        figure.supxlabel("place in the residual stream (0: embedding)", fontsize=9)
        legend(figure, panels[0], len(_METHODS))
    return figure


def _geometric_mean(measured: xr.DataArray) -> xr.DataArray:
    """Over seeds."""
    return xr.apply_ufunc(np.exp, xr.apply_ufunc(np.log, measured).mean("seed"))


def _grid(figure: Figure, count: int, columns: int) -> list[Axes]:
    """Panels that share both axes, as many as asked for."""
    columns = min(columns, count)
    panels = figure.subplots(-(-count // columns), columns, sharex=True, sharey=True, squeeze=False).ravel()
    for spare in panels[count:]:
        spare.remove()
    for above in panels[count - columns : count]:
        above.tick_params(labelbottom=True)
    return list(panels[:count])


_DEPTHS = (4, 16, 64, 256)
_SCHEMES = ("megatron", "small")


def _growths(evidence: Evidence, scale: Scale) -> xr.Dataset:
    """Of width 64, GELU, 16 tokens, Scaled Embed."""
    measured, derived, formulas = [], [], []
    names, depths = _some(scale, BLOCKS), _DEPTHS[: 2 if scale.name == "tiny" else None]
    lines = np.unique(np.geomspace(depths[0], depths[-1], 13).round().astype(int))
    for name, scheme in itertools.product(names, _SCHEMES):
        arch = Architecture(
            d_model=64, num_heads=2, seq_len=16, activation="gelu", block=name, initialization=scheme,
            embedding="scaled",
        )  # fmt: skip
        deep = [dataclasses.replace(arch, num_layers=int(depth)) for depth in lines]
        derived.append([closed_form(stack).amplification for stack in deep])
        formulas.append(growth(arch).formula)
        shown = [dataclasses.replace(arch, num_layers=depth) for depth in depths]
        measured.append([measure(stack, batch_size=2, seeds=3, quick=True).amplification for stack in shown])
        release_when_many()
    shape = len(names), len(_SCHEMES)
    return xr.Dataset(
        {
            "measured": (
                ("block", "initialization", "layers", "seed"),
                np.reshape(measured, (*shape, len(depths), -1)),
            ),
            "closed_form": (("block", "initialization", "line"), np.reshape(derived, (*shape, -1))),
            "derived": (("block", "initialization"), np.reshape(formulas, shape)),
        },
        {"block": names, "initialization": list(_SCHEMES), "layers": list(depths), "line": lines},
    )


def _draw_growths(data: xr.Dataset) -> Figure:
    names, depths = values(data, "block"), values(data, "layers")
    colours = dict(zip(values(data, "initialization"), ("#0072B2", "#D55E00"), strict=True))
    with style.page(style.PAGE, 5.4) as figure:
        panels = _grid(figure, len(names), 5)
        for axes, name in zip(panels, names, strict=True):
            for place, (scheme, colour) in enumerate(colours.items()):
                found = data.sel(block=name, initialization=scheme)
                axes.plot(found["line"], found["closed_form"], color=colour, lw=1, label=f"{scheme}: closed form")
                axes.plot(
                    found["layers"], _geometric_mean(found["measured"]), "os"[place], color=colour, ms=3.5,
                    mew=0, label="measured",
                )  # fmt: skip
                text = str(found["derived"].item()).replace("not derived: score path", "not derived")
                axes.annotate(
                    text, (0.05, 0.95 - 0.13 * place), xycoords="axes fraction", va="top", fontsize=7, color=colour,
                    bbox={"facecolor": "white", "edgecolor": "none", "pad": 0.5},
                )  # fmt: skip
            axes.set(xscale="log", yscale="log", ylim=(0.5, 1e5), title=name)
            axes.set_xticks(depths, [str(depth) for depth in depths])
            axes.yaxis.set_major_locator(FixedLocator([1, 100, 10_000]))
            for axis in (axes.xaxis, axes.yaxis):
                axis.set_minor_locator(NullLocator())
        figure.supylabel("amplification of the gradient norm, first place over last", fontsize=9)
        figure.supxlabel("layers", fontsize=9)
        legend(figure, panels[0])
    return figure


_WIDE = {"llama-7b": "LLaMA 7B", "gpt3-6.7b": "GPT-3 6.7B", "palm-8b": "PaLM 8B"}
_WIDTHS = (64, 128, 256)


def _proxies(evidence: Evidence, scale: Scale) -> xr.Dataset:
    """Predicted at the published width, measured at small ones, before each block."""
    names, widths = _some(scale, _WIDE), _WIDTHS[: 1 if scale.name == "tiny" else None]
    wide = [dataclasses.replace(_layers(scale, preset(name).arch), seq_len=32, vocab_size=1000) for name in names]
    measured = [
        [
            _before_blocks(arch, measure(arch, seeds=_SEEDS, quick=True))
            for arch in (proxy(one, width) for width in widths)
        ]
        for one in wide
    ]
    predicted = [_before_blocks(arch, predict(arch, networks=4 if scale.name == "tiny" else None)) for arch in wide]
    both = ("gradient", "std")
    return xr.Dataset(
        {f"wide_{name}": (("recipe", "block"), [one[place] for one in predicted]) for place, name in enumerate(both)}
        | {
            name: (
                ("recipe", "d_model", "seed", "block"),
                np.array([[narrow[place] for narrow in one] for one in measured]),
            )
            for place, name in enumerate(both)
        },
        {"recipe": names, "d_model": list(widths)},
    )


def _before_blocks(arch: Architecture, found: Prediction | Measurement) -> tuple[np.ndarray, np.ndarray]:
    """Gradient norm over the last one, and standard deviation of the stream, before each block and after the last."""
    every = slice(None, None, arch.num_sublayers // arch.num_layers)
    return _over_last(found.gradient_norm)[..., every], found.shortcut_std[..., every]


def _draw_proxies(data: xr.Dataset) -> Figure:
    with style.page(style.PAGE, 3.6) as figure:
        panels = figure.subplots(2, data.sizes["recipe"], sharex=True, squeeze=False)
        blocks = np.arange(data.sizes["block"])
        for (above, below), name in zip(panels.T, values(data, "recipe"), strict=True):
            for axes, shown in ((above, "std"), (below, "gradient")):
                found = data.sel(recipe=name)
                axes.plot(blocks, found[f"wide_{shown}"], color="black", lw=1.2, label="d_model 4096, predicted")
                for place, width in enumerate(values(data, "d_model")):
                    middle = np.sqrt((found[shown].sel(d_model=width) ** 2).mean("seed"))[::4]
                    axes.plot(
                        blocks[::4], middle, "o^s"[place], color=ORDERED[place], ms=6.5 - 1.5 * place, mew=0.8,
                        mfc="none", label=f"d_model {width}, measured",
                    )  # fmt: skip
                style.log_y(axes)
            above.set_title(_WIDE[name])
            below.set_xlabel("layer")
        panels[0, 0].set_ylabel("std of the stream")
        panels[1, 0].set_ylabel("gradient norm\nover the last one's")
        legend(figure, panels[0, 0], 2)
    return figure


FIGURES = (
    PaperFigure(
        "propagation", "not in the paper: its bound beside what it bounds, for every initialisation",
        "Gradient norm at every place over that at the last, 12 pre-LN blocks of width 64, 32 random tokens: the "
        "published bound as a chain, `predict`, and autodiff (geometric mean of 8 seeds).",
        _schemes, _draw_schemes, ("SNM-1", "SNM-2"),
    ),
    PaperFigure(
        "growth", "not in the papers: how amplification grows with depth in every block",
        "Two initialisations with Scaled Embed, width 64, GELU, 16 tokens: autodiff at 4 to 256 layers (geometric mean "
        "of 3 seeds), the two-number closed form, and the class that `theory.growth` derives for endless depth. The "
        "closed form has flat logits: where they grow with the stream (output_norm, no_norm) attention's score path "
        "carries more than it says. Of no_norm with `small` the point at 64 layers, 1e8, is above the frame, and at "
        "256 float32 overflows.",
        _growths, _draw_growths,
    ),
    PaperFigure(
        "proxy", "not in the papers: a narrow stand-in beside the wide model that it stands for",
        "`theory.proxy` of three recipes at widths 64, 128 and 256, measured before each block (8 seeds), beside what "
        "`predict` says of the published width; 32 random tokens of 1,000 words, so that tables are small.",
        _proxies, _draw_proxies,
    ),
)  # fmt: skip
