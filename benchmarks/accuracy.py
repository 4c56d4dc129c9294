"""How near is `predict` to autodiff? The table of the README.

Draws architectures from the whole range that the theory claims, each scheme and embedding in turn, on fresh random
tokens or on the text of the Python standard library, and prints the error of every place and of every matrix's
gradient: of `predict` as it is, and with a large ensemble (256 networks, or as many as 20 s allow, up to 4096). Each is
measured over at least 8 seeds, and over more until the standard error of every place's gradient norm is below 1 % and
of every matrix's below 2 %, or the time for it is up: sharp attention varies so much from seed to seed that 8 would
measure chance. `--full` is the table of the README (about an hour on 2 cores); without it, a sample of it.

`--grid N` draws N architectures from all registered values instead: every block, attention, activation, position code,
initialisation and embedding equally often, in independent orders, at d_model 64 to 256, with fewer seeds for each
(`--seconds`), and names the worst. `--cases` takes only some of them, by number. benchmarks/grid_measured.csv.gz is
what was measured of 300 (2 hours on 2 cores, the noisy ones for 75 s each), so that `--measured` with it predicts only.

    python benchmarks/accuracy.py [--full] [--out FILE.csv] [--measured FILE.csv]
    python benchmarks/accuracy.py --grid 300 [--cases M [M ...]] [--seconds 10] [--out FILE.csv]
"""

import argparse
import hashlib
import itertools
import time
from pathlib import Path

import jax
import numpy as np
import pandas as pd

from theory import Architecture, Prediction, predict
from theory.activation import ACTIVATIONS
from theory.architecture import NORMS, POSITIONS
from theory.attention_scheme import ATTENTIONS
from theory.block import BLOCKS
from theory.embedding import EMBEDDINGS
from theory.initialization import INITIALIZATIONS
from verify import Measurement, measure
from verify.measurement.compare import relative_standard_error
from verify.training.corpus import load_corpus

PAPER_INITIALIZATIONS = ("megatron", "gpt2", "xavier", "he", "lecun", "palm", "small", "wang")
PAPER_EMBEDDINGS = ("vanilla", "scaled", "layer_norm", "detach", "unit")
PAPER_ACTIVATIONS = ("relu", "gelu", "gelu_tanh", "silu", "identity")
SIZES = [  # num_layers, d_model, seq_len: the corners and the middle of 2..48 x 64..512 x 16..256
    (2, 64, 16), (2, 128, 256), (2, 512, 64), (6, 128, 64), (6, 256, 16), (12, 128, 16), (12, 128, 64), (12, 64, 64),
    (12, 256, 128), (24, 128, 64), (24, 256, 64), (24, 64, 128), (48, 128, 64), (48, 256, 32), (48, 64, 16),
    (6, 512, 256), (48, 512, 16),
]  # fmt: skip
NAMED = ("block", "norm", "activation", "positions", "attention", "initialization", "embedding")
MEASURED = ["quantity", "place", "measured", "noise", "seeds", "arch"]
SEEDS, MOST_SEEDS = 8, 1024
PLACES_ERROR, MATRICES_ERROR = 0.01, 0.02
NETWORKS, MOST_NETWORKS, ENSEMBLE_SECONDS = 256, 4096, 20


def cases(full: bool) -> list[tuple[Architecture, bool]]:
    """(architecture, on text) for every initialisation x embedding, sizes and switches taken in turn."""
    pairs = list(itertools.product(PAPER_INITIALIZATIONS, PAPER_EMBEDDINGS))
    order = np.random.default_rng(0).permutation(len(pairs))
    chosen = []
    for number, index in enumerate(order if full else order[:10]):
        initialization, embedding = pairs[index]
        num_layers, d_model, seq_len = SIZES[number % len(SIZES)]
        arch = Architecture(
            num_layers=num_layers,
            d_model=d_model,
            num_heads=d_model // 32,
            num_kv_heads=(None, None, 1, 2)[number % 4],
            seq_len=seq_len,
            activation=PAPER_ACTIVATIONS[number % len(PAPER_ACTIVATIONS)],
            positions=("rope", "none", "learned", "rope", "sinusoidal")[number // 2 % 5],
            norm=("layer_norm", "layer_norm", "rms_norm")[number % 3],
            initialization=initialization,
            embedding=embedding,
        )
        chosen.append((arch, number % 3 == 2))
    return chosen


def grid(count: int) -> list[tuple[Architecture, bool]]:
    """(architecture, on text), each field's values in an order of its own, every value once before any twice."""
    values = {
        "block": list(BLOCKS),
        "norm": NORMS,
        "norm_epsilon": (1e-5, 1e-6, 1e-5),
        "activation": list(ACTIVATIONS),
        "positions": POSITIONS,
        "attention": [name for name in ATTENTIONS if name != "mup_attention"],  # younger than what was measured
        "initialization": list(INITIALIZATIONS),
        "embedding": [*EMBEDDINGS, 0.2, 5.0],
        "num_kv_heads": (None, None, 1, 2),
        "d_ff": (None, None, 3, 2.5),
        "size": [(2, 64), (2, 128), (4, 256), (6, 192), (8, 128), (12, 128), (16, 64), (24, 128), (32, 128), (3, 256)],
        "seq_len": (16, 32, 64, 96),
        "vocab_size": (256, 1000, 300),
        "bias": (False, False, True),
        "logit_scale": (1.0, 1.0, 0.5),
        "text": (False, True),
        "tied": (False, False, True, False),
    }
    orders = {}
    for index, (field, choices) in enumerate(values.items()):
        rng, rounds = np.random.default_rng([2026, index]), -(-count // len(choices))
        orders[field] = [choices[i] for _ in range(rounds) for i in rng.permutation(len(choices))]
    chosen = []
    for number in range(count):
        fields = {field: order[number] for field, order in orders.items()}
        (num_layers, d_model), on_text, wide = fields.pop("size"), fields.pop("text"), fields.pop("d_ff")
        fields["d_ff"] = wide and int(wide * d_model)
        if (fields["attention"], fields["initialization"]) == ("sigma_reparam", "zero_output"):  # refused: 0 / 0
            fields["attention"] = "standard"
        chosen.append(
            (Architecture(num_layers=num_layers, d_model=d_model, num_heads=d_model // 32, **fields), on_text)
        )
    return chosen


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--full", action="store_true", help="40 architectures instead of 10")
    parser.add_argument("--out", type=Path, help="CSV file for every place's row")
    parser.add_argument("--measured", type=Path, help="CSV file of an earlier run whose measurements are taken again")
    parser.add_argument("--grid", type=int, default=0, help="architectures drawn from all registered values")
    parser.add_argument("--cases", type=int, nargs="+", help="numbers of those to take; default: all")
    parser.add_argument("--seconds", type=float, default=300, help="most seconds of measuring an architecture")
    options = parser.parse_args()
    corpus = load_corpus("stdlib", 256)
    earlier = None if options.measured is None else pd.read_csv(options.measured)
    if earlier is not None and (missing := {"case", *MEASURED} - set(earlier)):
        raise SystemExit(f"{options.measured}: lacks {', '.join(sorted(missing))}; take a file made by --out")
    tables = []
    for number, (arch, on_text) in enumerate(grid(options.grid) if options.grid else cases(options.full)):
        if options.cases is not None and number not in options.cases:
            continue
        jax.clear_caches()  # a process can hold the programs of about 120 architectures
        start = time.perf_counter()
        tokens = corpus.batch(arch.seq_len, 8, seed=0, step=number) if on_text else None
        if earlier is None:
            measured = measure_well(arch, tokens, options.seconds)
        else:
            measured = earlier.loc[earlier["case"] == number, MEASURED]
            if set(measured["arch"]) - {digest(arch)}:
                raise SystemExit(
                    f"{options.measured}: case {number} is of another architecture than {arch}; measure it"
                )
        try:
            predicted = predictions(arch, tokens, large=not options.grid)
        except ValueError as error:
            largest = measured.loc[measured["quantity"] == "gradient_norm", "measured"].max()
            print(f"{number:3d} not predicted: {error}. Measured: gradient norms up to {largest:.1g}", flush=True)
            continue
        if measured.empty:
            print(f"{number:3d} not measured", flush=True)
            continue
        table = pd.concat(
            with_prediction(measured.drop_duplicates(), prediction).assign(ensemble=name)
            for name, prediction in predicted
        )
        table = table.assign(
            case=number, **{field: str(getattr(arch, field)) for field in NAMED},
            num_layers=arch.num_layers, d_model=arch.d_model, seq_len=arch.seq_len, tied=arch.tied,
            tokens="text" if on_text else "random", kind=table["quantity"].str.partition("/")[0],
        )  # fmt: skip
        tables.append(table)
        worst = table[table["ensemble"] == "default"].groupby("kind")["error"].agg(["median", "max"]).mul(100).round(1)
        print(
            f"{number:3d} {arch.block:14s}{arch.attention:12s}{arch.initialization:9s}{arch.embedding!s:11s}"
            f"{arch.activation:10s}{arch.positions:11s}{arch.norm:11s}"
            f"L{arch.num_layers:<3d}d{arch.d_model:<4d}T{arch.seq_len:<4d}{'text' if on_text else 'random':7s}"
            f"{table['seeds'].iloc[0]:4d} seeds  "
            + "  ".join(f"{kind}: {row['median']}/{row['max']} %" for kind, row in worst.iterrows())
            + f"  ({time.perf_counter() - start:.0f} s)",
            flush=True,
        )
        if options.out:
            pd.concat(tables).to_csv(options.out, index=False)
    if not tables:
        raise SystemExit("no case has both a prediction and a measurement")
    report(pd.concat(tables, ignore_index=True))


def digest(arch: Architecture) -> str:
    """Tells architectures apart in a table of measurements."""
    return hashlib.sha256(repr(arch).encode()).hexdigest()[:12]


def predictions(arch: Architecture, tokens: np.ndarray | None, large: bool) -> list[tuple[str, Prediction]]:
    """`predict` as it is and, where asked for, with a large ensemble."""
    made = [("default", predict(arch, tokens=tokens))]
    return [*made, ("large", predict_well(arch, tokens))] if large else made


def measure_well(arch: Architecture, tokens: np.ndarray | None, seconds: float) -> pd.DataFrame:
    """Every place of `arch`, measured over as many seeds as it takes, or as the time allows."""
    start, parts = time.perf_counter(), list[Measurement]()
    while True:
        parts.append(measure(arch, seeds=SEEDS, tokens=tokens, first_seed=SEEDS * len(parts)))
        measured = Measurement(**jax.tree.map(lambda *x: np.concatenate(x), *(part.__dict__ for part in parts)))
        seeds = len(measured.loss)
        places = {"shortcut_std": measured.shortcut_std, "gradient_norm": measured.gradient_norm}
        matrices = {f"parameter_gradient_norm/{k}": draws for k, draws in measured.parameter_gradient_norm.items()}
        noise = {name: relative_standard_error(draws) for name, draws in (places | matrices).items()}
        good = noise["gradient_norm"].max() <= PLACES_ERROR and max(noise[k].max() for k in matrices) <= MATRICES_ERROR
        if good or seeds >= MOST_SEEDS or time.perf_counter() - start > seconds:
            return pd.concat(
                pd.DataFrame(
                    {
                        "quantity": name,
                        "place": np.arange(draws.shape[1]),
                        "measured": np.sqrt(np.square(draws).mean(axis=0)),
                        "noise": noise[name],
                        "seeds": seeds,
                        "arch": digest(arch),
                    }
                )
                for name, draws in (places | matrices).items()
            )


def predict_well(arch: Architecture, tokens: np.ndarray | None) -> Prediction:
    """Predicted with 256 networks, or as many more as the time allows."""
    start = time.perf_counter()
    prediction = predict(arch, tokens=tokens, networks=NETWORKS)
    networks = min(MOST_NETWORKS, int(NETWORKS * ENSEMBLE_SECONDS / (time.perf_counter() - start)))
    return predict(arch, tokens=tokens, networks=networks) if networks > 2 * NETWORKS else prediction


def with_prediction(measured: pd.DataFrame, prediction: Prediction) -> pd.DataFrame:
    """The measured rows, what was predicted for each, and the relative error."""
    values = {"shortcut_std": prediction.shortcut_std, "gradient_norm": prediction.gradient_norm}
    values |= {f"parameter_gradient_norm/{kind}": norm for kind, norm in prediction.parameter_gradient_norm.items()}
    predicted = [
        values[quantity][place] for quantity, place in zip(measured["quantity"], measured["place"], strict=True)
    ]
    measured = measured.assign(predicted=predicted)
    ratio = measured["predicted"] / measured["measured"]
    return measured.assign(error=np.where(measured["predicted"] == measured["measured"], 0, np.abs(ratio - 1)))


def report(table: pd.DataFrame) -> None:
    """Print the README's table: error of all places, by kind and by width."""
    of_scores = table["quantity"].str.contains("query|key")
    of_stream = table["kind"].isin(["shortcut_std", "gradient_norm"])
    matrices = np.where(of_scores, "gradient of query and key", "gradient of every other matrix")
    table = table.assign(
        width=np.where(table["d_model"] >= 128, "d_model >= 128", "d_model 64"),
        row=np.where(of_stream, table["kind"], matrices),
    )
    for key in (["ensemble", "row", "width"], ["kind", "initialization"], ["kind", "block"], ["kind", "attention"]):
        grouped = table.groupby(key)["error"]
        summary = pd.DataFrame(
            {
                "places": grouped.size(),
                "median %": 100 * grouped.median(),
                "95th %": 100 * grouped.quantile(0.95),
                "99th %": 100 * grouped.quantile(0.99),
                "worst %": 100 * grouped.max(),
                "standard error of the measurement, median %": 100 * table.groupby(key)["noise"].median(),
            }
        )
        print("\n" + summary.round(2).to_string())
    wide = table[(table["d_model"] >= 128) & table["kind"].isin(["shortcut_std", "gradient_norm"])]
    worst = wide.sort_values("error").groupby("case").tail(1).sort_values("error", ascending=False)
    print("\nworst architectures by their worst place, std and gradient norm, d_model >= 128")
    columns = ["case", "block", "attention", "initialization", "embedding", "activation", "positions", "tied",
               "num_layers", "d_model", "seq_len", "tokens", "kind", "place", "error", "noise", "seeds"]  # fmt: skip
    print(worst[columns].head(max(3, len(worst) // 50)).round(3).to_string(index=False))


if __name__ == "__main__":
    main()
