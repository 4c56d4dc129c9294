"""What the theory says before any training: scales, depths, requirements, and where published recipes stand."""

import dataclasses
import itertools
import textwrap

import numpy as np
import xarray as xr
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure

from paper_figures import style
from paper_figures.data import values
from paper_figures.figure import PaperFigure
from paper_figures.style import COLOUR, MARKER, TITLES
from theory import Architecture
from theory.closed_form import closed_form, initial
from theory.conditions import LARGEST_EXCESS, SMALLEST_STD, requirements_table
from theory.presets import preset
from verify.claims.evidence import Evidence
from verify.claims.scale import Scale
from verify.report.style import legend

# name of a preset: what it is called, and where its name stands from its point, in points
_PLACES = {
    "gpt3-175b": ("GPT-3 175B, Galactica 120B", (6, 4)),
    "palm-540b": ("PaLM 540B", (-6, 2)),
    "llama-65b": ("LLaMA 65B", (6, -2)),
    "chinchilla-70b": ("Chinchilla 70B", (0, -9)),
    "opt-175b": ("OPT-175B", (-6, 4)),
    "bloom-176b": ("BLOOM-176B", (-6, 0)),
    "glm-130b": ("GLM-130B", (-6, -4)),
    "gpt-neox-20b": ("GPT-NeoX-20B", (-6, 4)),
    "gpt2-xl": ("GPT-2 XL", (6, 4)),
    "olmo2-13b": ("OLMo 2 13B", (6, -4)),
    "snm-13b": ("Vanilla 13B", (-6, -6)),
    "snm-13b-scaled": ("Scaled Embed 13B", (-6, -2)),
}
_STDS, _DEPTHS = np.logspace(-2.8, 0.4, 13), (4, 8, 16, 32, 64, 128, 160)


def _amplifications(evidence: Evidence, scale: Scale) -> xr.Dataset:
    """Of pre-LN stacks with Megatron's initialisation, by the two-number closed form."""
    base = Architecture(d_model=4096, num_heads=32, initialization="megatron")
    unit = float(base.std("embedding")[0])
    grid = [
        [closed_form(dataclasses.replace(base, num_layers=depth, embedding=std / unit)).amplification for std in _STDS]
        for depth in _DEPTHS
    ]
    recipes = {name: preset(name).arch for name in _PLACES}
    return xr.Dataset(
        {
            "amplification": (("depth", "std"), np.array(grid), {"units": "1"}),
            "recipe_std": ("recipe", [initial(arch)[0] ** 0.5 for arch in recipes.values()]),
            "recipe_depth": ("recipe", [arch.num_layers for arch in recipes.values()]),
        },
        {"depth": list(_DEPTHS), "std": _STDS, "recipe": list(recipes)},
    )


def _draw_amplifications(data: xr.Dataset) -> Figure:
    with style.page(style.PAGE, 3.6) as figure:
        axes = figure.subplots()
        field = data["amplification"].transpose("depth", "std")
        levels = [1.2, 1.5, 2, 3, 5, 10, 20, 50, 100, 200]
        filled = axes.contourf(
            data["std"], data["depth"], field, levels=[1, *levels], norm=LogNorm(1, 200), cmap="Blues", extend="both"
        )
        bar = figure.colorbar(filled, ax=axes, ticks=[1, 2, 5, 10, 20, 50, 100, 200])
        bar.ax.set_yticklabels([f"{value:g}" for value in bar.get_ticks()])
        bar.ax.minorticks_off()
        bar.set_label("gradient norm, first place over last")
        for name in values(data, "recipe"):
            label, offset = _PLACES[name]
            point = data.sel(recipe=name)
            at = float(point["recipe_std"]), int(point["recipe_depth"])
            axes.plot(*at, "o", ms=5, color="white", mec="black", mew=1)
            axes.annotate(
                label, at, xytext=offset, textcoords="offset points", fontsize=7.5, va="center",
                ha=("right", "center", "left")[int(np.sign(offset[0])) + 1],
                bbox={"boxstyle": "round,pad=0.1", "fc": "white", "ec": "none", "alpha": 0.75},
            )  # fmt: skip
        axes.set(
            xscale="log", yscale="log", xlabel="std of the embedding that enters block 1", ylabel="layers",
            xlim=(_STDS[0], _STDS[-1]), ylim=(min(_DEPTHS), max(_DEPTHS)),
        )  # fmt: skip
        axes.set_xticks([0.003, 0.01, 0.03, 0.1, 0.3, 1, 2], ["0.003", "0.01", "0.03", "0.1", "0.3", "1", "2"])
        axes.set_yticks(_DEPTHS[:-1], [str(depth) for depth in _DEPTHS[:-1]])
        axes.minorticks_off()
    return figure


_EDGE = 0.01


def _requirements(evidence: Evidence, scale: Scale) -> xr.Dataset:
    found = requirements_table()
    return xr.Dataset(
        {
            "std": ("pair", [one.std for one in found]),
            "excess": ("pair", [max(one.feed_forward_number, one.value_path_number) for one in found]),
        },
        {
            "initialization": ("pair", [one.initialization for one in found]),
            "embedding": ("pair", [one.embedding for one in found]),
        },
    )


def _draw_requirements(data: xr.Dataset) -> Figure:
    """An excess of 0 stands at the lower edge."""
    data = data.assign(excess=np.maximum(data["excess"], _EDGE))
    with style.page(style.PAGE, 3.6) as figure:
        axes = figure.subplots()
        right, top = float(data["std"].max()) * 2.5, float(data["excess"].max()) * 2
        axes.fill_between([SMALLEST_STD, right], _EDGE / 2, LARGEST_EXCESS, color="#009E73", alpha=0.12, lw=0)
        for name in values(data, "embedding"):
            chosen = data.isel(pair=np.flatnonzero(data["embedding"] == name))
            axes.plot(
                chosen["std"], chosen["excess"], MARKER.get(name, "P"), ms=4, mew=0, alpha=0.7,
                color=COLOUR.get(name, "#666666"), label=TITLES.get(name, name), ls="none",
            )  # fmt: skip
        axes.set(
            xscale="log", yscale="log", xlim=(float(data["std"].min()) / 2, right), ylim=(_EDGE / 1.3, top),
            xlabel="large shortcut: std of the embedding that enters block 1",
            ylabel="small sub-layers: what the bound exceeds 1 by",
        )  # fmt: skip
        axes.annotate("both requirements met", (SMALLEST_STD * 1.05, _EDGE * 1.3), fontsize=8, color="#00614A")
        heights, rows = zip(*_rows(data), strict=True)
        beside = axes.twinx()
        beside.set(yscale="log", ylim=axes.get_ylim())
        beside.set_yticks(heights, [textwrap.fill(", ".join(names), 26) for names in rows], fontsize=7)
        beside.minorticks_off()
        legend(figure, axes)
    return figure


def _rows(data: xr.Dataset) -> list[tuple[float, list[str]]]:
    """Initialisations whose excesses lie within a factor of 1.5 of their neighbour's, with their middle."""
    excess = dict(zip(data["initialization"].to_numpy().tolist(), data["excess"].to_numpy().tolist(), strict=True))
    ordered = sorted(excess, key=lambda name: excess[name])
    rows = [ordered[:1]]
    for before, name in itertools.pairwise(ordered):
        if excess[name] < 1.5 * excess[before]:
            rows[-1].append(name)
        else:
            rows.append([name])
    return [(float(np.sqrt(excess[row[0]] * excess[row[-1]])), row) for row in rows]


FIGURES = (
    PaperFigure(
        "amplification_map", "not in the papers: embedding scale and depth together",
        "Shades: amplification of pre-LN stacks with Megatron's initialisation, by `theory.closed_form`, sequences of "
        "64. Points: where published recipes stand; those with other blocks or initialisations amplify otherwise.",
        _amplifications, _draw_amplifications, ("SNM-4", "SNM-5"),
    ),
    PaperFigure(
        "requirements_plane", "not in the paper: its two requirements as a plane",
        "Every registered initialisation with every embedding method, 24 layers of width 1024: what the larger of the "
        "two bounds exceeds 1 by at a shortcut of 1 (initialisations beside), and the embedding's std, by "
        "`theory.conditions`; 0 stands at the lower edge.",
        _requirements, _draw_requirements, ("SNM-9",),
    ),
)  # fmt: skip
