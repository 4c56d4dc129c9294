"""Figures: from made runs to data to files, and from the data that come with the package."""

import json
import re
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import xarray as xr
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.text import Text

from paper_figures import at_initialization, gallery, recovery, spike_no_more
from paper_figures.__main__ import main
from paper_figures.data import COMMITTED, load, of, path_of, save, series, summaries
from paper_figures.gallery import FIGURES
from theory import Architecture
from theory.conditions import requirements
from verify.claims.evidence import Evidence, summary
from verify.claims.scale import SCALES
from verify.sweeps import store

TINY = SCALES["tiny"]
CODES = sorted(FIGURES)


class Made(Evidence):
    """Runs that nobody trained: noise that depends on the run, with the names and axes of true ones."""

    def dataset(self, cell):
        run = cell.run
        rng = np.random.default_rng(int(store.digest(run), 16))
        places = run.arch.num_sublayers + 1
        loss = 5 + 0.01 * rng.standard_normal(run.steps)
        loss[30::9] += 2
        gradient = np.exp(rng.standard_normal(run.steps))
        recorded = {
            "loss": ("step", loss), "gradient_norm": ("step", gradient),
            "place_gradient_norm": (("step", "place"), np.exp(rng.standard_normal((run.steps, places)))),
            "shortcut_std": (("step", "place"), np.exp(rng.standard_normal((run.steps, places)))),
            "logit_mean": ("step", rng.standard_normal(run.steps)),
            "log_z": ("step", rng.standard_normal(run.steps)),
        }  # fmt: skip
        kinds, layers = len(run.arch.matrices), run.arch.num_layers
        for name in ("output_norm", "matrix_gradient_norm"):
            recorded[name] = (("step", "matrix", "layer"), np.exp(rng.standard_normal((run.steps, kinds, layers))))
        coords = {"step": np.arange(run.steps), "matrix_entries": ("matrix", np.full(kinds, 256))}
        return xr.Dataset(recorded, coords, {"outcome": "finished"}).astype(np.float32)

    def table(self, cells):
        rows = []
        for cell in cells:
            rng = np.random.default_rng(int(store.digest(cell.run), 16))
            rows.append(cell.labels | {
                "final_loss": rng.uniform(1, 3), "held_out_loss": rng.uniform(1, 3), "initial_loss": 5.5,
                "outcome": "finished", "largest_attention_logit": 10 ** rng.uniform(0, 6),
                "largest_gradient_norm": rng.uniform(1, 9),
                "gradient_spikes": rng.integers(9), "loss_spikes": rng.integers(9),
            })  # fmt: skip
        return pd.DataFrame(rows)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Data of every figure at scale tiny; of those without runs the committed ones, where there are any."""
    folder = tmp_path_factory.mktemp("data")
    evidence = Made(folder, TINY.window)
    for figure in FIGURES.values():
        committed = not figure.runs and path_of(figure.name, "small", COMMITTED).exists()
        data = load(figure.name, "small", COMMITTED) if committed else figure.data(evidence, TINY)
        save(data, path_of(figure.name, "tiny", folder))
    return folder


@pytest.mark.parametrize("name", CODES)
def test_a_figure_is_drawn_from_its_data_alone(name, made, tmp_path, capsys, monkeypatch):
    """From the committed data, or where there are none from made ones."""
    drawn = []
    noting = replace(FIGURES[name], draw=lambda data: drawn.append(figure.draw(data)) or drawn[0])
    figure, committed = FIGURES[name], path_of(name, "small", COMMITTED)
    monkeypatch.setitem(FIGURES, name, noting)
    chosen = ["small", COMMITTED] if committed.exists() else ["tiny", made]
    assert main([name, "--scale", chosen[0], "--data", str(chosen[1]), "--out", str(tmp_path)]) == 0
    assert_readable(*drawn)
    assert not committed.exists() or committed.stat().st_size < 500_000
    assert {path.name for path in tmp_path.iterdir()} == {
        "index.html", *(f"{name}.{ending}" for ending in ("pdf", "svg", "png", "csv")),
    }  # fmt: skip
    assert "1 figures" in capsys.readouterr().out
    svg = (tmp_path / f"{name}.svg").read_text()
    assert "<text" in svg and len(pd.read_csv(tmp_path / f"{name}.csv")) > 0
    page = (tmp_path / "index.html").read_text()
    assert f'src="{name}.svg"' in page and all(claim in page for claim in FIGURES[name].claims)


@pytest.mark.parametrize("name", CODES)
def test_few_values_are_readable_too(name, made):
    figure = FIGURES[name].draw(load(name, "tiny", made))
    assert_readable(figure)


UNITS = r"\(|step|layer|place|rate|a run|std|amplification|less 1|over|requirement"
"""in brackets, or what has none: counts, ratios, numbers of things, standard deviations of the stream"""


def assert_readable(figure: Figure):
    """Every panel's axes are said, with a unit where there is one; no two words of the figure lie on each other."""
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    renderer = canvas.get_renderer()
    outside = set()
    for which in ("x", "y"):
        shared = getattr(figure, f"_sup{which}label")
        for axis in (getattr(axes, f"{which}axis") for axes in figure.axes):
            low, high = sorted(axis.get_view_interval())
            ticks = [*axis.get_major_ticks(), *axis.get_minor_ticks()]
            outside |= {
                label for tick in ticks if not low <= tick.get_loc() <= high for label in (tick.label1, tick.label2)
            }
            words = [text.get_text() for text in axis.get_ticklabels() if re.search("[a-z]{4}", text.get_text())]
            label = axis.get_label_text()
            assert not label or re.search(UNITS, label), label
            repeated = not any(text.get_text() and text.get_visible() for text in axis.get_ticklabels())
            same = any(getattr(axes, f"get_{which}label")() for axes in figure.axes)
            assert label or shared or words or repeated or same
    texts = [
        text for text in figure.findobj(Text)
        if text.get_text().strip() and text.get_visible() and text not in outside and text.get_rotation() in (0, 90)
    ]  # fmt: skip
    assert all(text.get_fontsize() >= 7 for text in texts)
    page = figure.bbox.padded(1)
    for text in texts:
        box = text.get_window_extent(renderer)
        inside = page.contains(box.x0, box.y0) and page.contains(box.x1, box.y1)
        assert inside, f"{text.get_text()!r} leaves the page"
    boxes = [text.get_window_extent(renderer).shrunk(0.9, 0.8) for text in texts]
    for number, (text, box) in enumerate(zip(texts, boxes, strict=True)):
        for other, second in zip(texts[number + 1 :], boxes[number + 1 :], strict=True):
            assert not box.overlaps(second), f"{text.get_text()!r} lies on {other.get_text()!r}"


def test_what_the_theory_says_is_drawn_of_few_values_too(monkeypatch, tmp_path):
    """Data of the figures without runs: a larger embedding amplifies less, and the fix's bounds lie below Vanilla's."""
    evidence = Made(tmp_path, TINY.window)
    monkeypatch.setattr(at_initialization, "_STDS", np.array([0.01, 0.1, 1.0]))
    monkeypatch.setattr(at_initialization, "_DEPTHS", (4, 8))
    monkeypatch.setattr(at_initialization, "_PLACES", {"palm-540b": ("PaLM", (-6, 0)), "gpt2-xl": ("GPT-2", (6, 0))})
    found = FIGURES["amplification_map"].data(evidence, TINY)
    assert np.all(np.diff(found["amplification"], axis=1) < 0) and list(found["recipe_depth"]) == [118, 48]
    assert found["recipe_std"].to_numpy() == pytest.approx([1, np.hypot(0.02, 0.01)])
    pairs = [requirements(*pair) for pair in (("megatron", "scaled"), ("he", "vanilla"))]
    monkeypatch.setattr(at_initialization, "requirements_table", lambda: pairs)
    found = FIGURES["requirements_plane"].data(evidence, TINY)
    assert found["std"].to_numpy() == pytest.approx([0.4**0.5, (2 / 1024) ** 0.5])
    assert (found["excess"].to_numpy() > 1).tolist() == [False, True]
    assert_readable(FIGURES["requirements_plane"].draw(found))
    monkeypatch.setattr(spike_no_more, "preset", lambda name: SimpleNamespace(arch=Architecture(num_layers=2)))
    bounds = FIGURES["snm_2"].data(evidence, TINY)["bound"]
    assert np.all(bounds.sel(embedding="scaled") < bounds.sel(embedding="vanilla")) and bounds.sizes["sublayer"] == 4


def test_what_is_measured_before_training_is_near_what_is_derived(tmp_path):
    """Data of the figures that compare: each measured number beside its own prediction, the bound above both."""
    found = {name: FIGURES[name].data(Made(tmp_path, TINY.window), TINY) for name in ("propagation", "growth", "proxy")}
    for data in found.values():
        save(data, tmp_path / "data.nc")
    schemes, growths, proxies = found.values()
    measured = np.exp(np.log(schemes["measured"]).mean("seed"))
    np.testing.assert_allclose(measured, schemes["predicted"], rtol=0.1)
    assert np.all(schemes["bound"] >= 0.99 * measured) and schemes["predicted"].max() > 1.5
    ends = growths["closed_form"].sel(line=growths["layers"].to_numpy()).to_numpy()
    np.testing.assert_allclose(np.exp(np.log(growths["measured"]).mean("seed")), ends, rtol=0.2)
    assert growths["derived"].sel(block="pre_ln").to_numpy().tolist() == ["constant", "N^0.52"]
    for name in ("gradient", "std"):
        narrow, wide = proxies[name].sel(d_model=64), proxies[f"wide_{name}"]
        np.testing.assert_allclose(np.sqrt((narrow**2).mean("seed")), wide, rtol=0.25)  # 1 / d of it is left out
        assert narrow.sizes["block"] == 3 and wide.max() > 1.5 * wide.min()


def test_what_is_drawn_is_what_the_file_holds(made):
    data = load("spike_counts", "tiny", made)
    first, _ = FIGURES["spike_counts"].draw(data).axes
    points = [line.get_ydata() for line in first.lines if line.get_marker() == "o"]
    bars = [line.get_ydata() for line in first.lines if line.get_marker() != "o"]
    for method, drawn, bar in zip(("vanilla", "detach", "scaled", "layer_norm"), points, bars, strict=True):
        counts = of(data, embedding=method)["gradient_spikes"].to_numpy()
        assert list(drawn) == list(counts) and list(bar) == [counts.mean()] * 2


def test_data_are_those_of_the_runs_to_four_digits(tmp_path):
    evidence = Made(tmp_path, TINY.window)
    cells = FIGURES["snm_6"].runs[0](TINY)
    found = series(evidence, cells, ("loss", "gradient_norm"), every=3, seeds=1)
    counts = summaries(evidence, [cell for cell in cells if cell.labels["seed"] < 1], ("gradient_spikes",))
    save(found.merge(counts, compat="equals"), tmp_path / "data.nc")
    read = xr.load_dataset(tmp_path / "data.nc", engine="h5netcdf")
    for number, cell in enumerate(cell for cell in cells if cell.labels["seed"] == 0):
        np.testing.assert_allclose(
            read["gradient_norm"].isel(run=number), evidence.dataset(cell)["gradient_norm"][::3], rtol=1.3e-4
        )
        assert read["length"][number] == cell.labels["length"]
        assert read["gradient_spikes"][number] == evidence.table([cell])["gradient_spikes"][0]
    assert read.sizes["run"] == 3 and list(read["step"].to_numpy()) == list(range(0, 40, 3))


def test_values_that_are_not_finite_stay(tmp_path):
    values = np.array([[np.inf, -np.inf, np.nan, 1e-40, -3.0, 3.4e38]], np.float32)
    save(xr.Dataset({"loss": (("run", "step"), values)}), tmp_path / "data.nc")
    read = xr.load_dataset(tmp_path / "data.nc", engine="h5netcdf")["loss"].to_numpy()
    np.testing.assert_allclose(read, values, rtol=1.3e-4, atol=1e-39)


def test_recompute_trains_what_is_missing_and_takes_the_verdicts_along(tmp_path, monkeypatch, capsys):
    trained = []
    monkeypatch.setattr("verify.claims.evidence.train", lambda runs, *_: trained.extend(runs) or 0)
    monkeypatch.setattr("verify.claims.evidence.print_time", lambda *_: None)
    monkeypatch.setattr(gallery, "Evidence", Made)
    verdict = {
        "claim": "SNM-8", "outcome": "refuted", "effect": "spikes", "value": 1.0, "low": None, "high": 2.0,
        "samples": "3", "scale": "tiny",
    }  # fmt: skip
    (tmp_path / "verdicts.json").write_text(json.dumps([verdict]))
    folders = ["--runs", str(tmp_path / "runs"), "--data", str(tmp_path / "data"), "--out", str(tmp_path / "figures")]
    assert main(["snm_6", "--scale", "tiny", "--recompute", *folders]) == 0
    assert trained == [cell.run for cell in FIGURES["snm_6"].runs[0](TINY)]
    assert "refuted: spikes" in (tmp_path / "figures" / "index.html").read_text()
    assert main(["snm_5", "snm_6", "--scale", "tiny", *folders]) == 2
    assert capsys.readouterr().err.startswith(
        f"error: data: none of figure snm_5 at scale tiny in {tmp_path}/data/; make them with: "
        "python -m paper_figures snm_5 --scale tiny --recompute"
    )


def test_the_list_says_what_the_original_shows_and_what_is_here(made, tmp_path, capsys, monkeypatch):
    some = {name: FIGURES[name] for name in ("snm_2", "snm_6", "requirements")}
    monkeypatch.setattr(gallery, "FIGURES", some)
    assert main(["--list", "--scale", "tiny", "--data", str(made), "--runs", str(tmp_path)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == len(some)
    for line, figure in zip(lines, some.values(), strict=True):
        assert line.startswith(figure.name) and figure.original in line and "data here" in line
    assert "6 of 6 runs" in next(line for line in lines if line.startswith("snm_6"))


def test_all_are_those_that_have_data(made, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(gallery, "FIGURES", {name: FIGURES[name] for name in ("snm_2", "requirements")})
    save(load("requirements", "tiny", made), path_of("requirements", "tiny", tmp_path))
    assert main(["--all", "--scale", "tiny", "--data", str(tmp_path), "--out", str(tmp_path / "out")]) == 0
    first, second, page = capsys.readouterr().out.splitlines()
    assert first.startswith("data: none of figure snm_2") and "requirements.{pdf" in second and "1 figures" in page


def test_wrong_input(tmp_path, capsys):
    assert main(["snm_99", "--out", str(tmp_path / "out")]) == 2
    assert capsys.readouterr().err.startswith("error: name: unknown figure 'snm_99'; choose one of snm_1, snm_2")
    assert not (tmp_path / "out").exists()


def test_summaries_are_those_of_the_evidence(tmp_path):
    """The made table has only the columns that figures ask for; they are names of the true one."""
    cell = FIGURES["snm_6"].runs[0](TINY)[0]
    data = Made(tmp_path, 10).dataset(cell).assign_attrs(outcome="finished", outcome_step=40, held_out_loss=2.0)
    data = data.assign(dict.fromkeys(("largest_attention_logit", "update_rms", "parameter_rms"), data["loss"]))
    assert {"final_loss", "held_out_loss", "gradient_spikes", "loss_spikes"} <= set(summary(cell.run, data, 10))


def test_a_planted_spike_is_thrown_away_and_its_batches_are_bad_from_an_earlier_state_too(tmp_path):
    """Random tokens in batches 12 to 15 of 40, in a run that knows by then which bytes there are."""
    data = FIGURES["palm_recovery"].data(Evidence(tmp_path / "runs", TINY.window), TINY)
    chosen = data.isel(line=data["case"].to_numpy() == recovery.PLANTED)
    planted = {str(path): chosen.isel(line=at).dropna("point") for at, path in enumerate(chosen["path"].to_numpy())}
    assert planted["with recovery"]["at"].to_numpy().tolist() == list(range(40))
    without, lasted = (planted[name]["loss"].to_numpy() for name in ("without recovery", "with recovery"))
    assert np.array_equal(without[:4], lasted[:4]) and without[12:16].min() > lasted[12:16].max()
    assert set(planted["thrown away"]["at"].to_numpy()) >= {12, 13}
    for name in ("as they were seen", "from the state gone back to"):
        loss = planted[name]["loss"].to_numpy()
        assert loss[planted[name]["at"] >= 0][:2].min() > loss[planted[name]["at"] < 0].max()
