"""How the statistics of a coordinate check go with width or depth: exponents, intervals and a verdict on the scheme."""

from typing import Literal

import numpy as np
import pandas as pd

from verify.statistics.intervals import Estimate
from verify.statistics.power_law import PowerLaw, judge, power_law

Axis = Literal["width", "depth"]
PLACES = ("first place", "middle place", "last place")
TOLERANCE = 0.2


def lines(table: pd.DataFrame) -> pd.DataFrame:
    """Each statistic at its last step, with a column `line`: what is compared between sizes.

    table: of `measure_coordinates`. Of the places the first, the middle and the last one, so that depths can be
    compared; everything else as it is.
    """
    table = table[table["step"] == table.groupby("statistic")["step"].transform("max")].reset_index(drop=True)
    place = pd.to_numeric(table["where"], errors="coerce")
    last = place.groupby([table["width"], table["depth"]]).transform("max")
    chosen = [table[place == at].assign(line=name) for name, at in zip(PLACES, (0, last // 2, last), strict=True)]
    return pd.concat([*chosen, table[place.isna()].assign(line=table["where"])], ignore_index=True)


def must_be_constant(statistic: str, line: str, axis: Axis) -> bool:
    """Whether the scheme is judged by it: the stream, its change and the logits', the decay, and outputs in width.

    A deep network may divide what its branches add by its depth, so in depth a branch's outputs are not judged. Logits
    themselves shrink with the width at the start under muP; weights, updates and gradients follow the rules.
    """
    if statistic == "activation":
        return line in PLACES or (axis == "width" and line != "head")
    return statistic in ("change", "decay")


def exponents(table: pd.DataFrame, axis: Axis, tolerance: float = TOLERANCE, level: float = 0.95) -> pd.DataFrame:
    """d log value / d log size at the last step, one row a statistic and line, with intervals over seeds.

    table: of `measure_coordinates`, of one depth for the axis "width" and one width for "depth". Columns: axis,
    statistic, line, judged (`must_be_constant`), slope, low, high; end, end_low, end_high, the slope at the largest
    size; verdict: constant, grows, shrinks, undecided (`verify.statistics.power_law.judge`), or diverged where a value
    is not finite. What is 0 at every size has no row. Raises ValueError for a table of several other sizes, for fewer
    than 2 sizes, and for a tolerance that is not positive.
    """
    other = "depth" if axis == "width" else "width"
    others, sizes = sorted(set(table[other])), sorted(set(table[axis]))
    if len(others) != 1 or len(sizes) < 2:
        raise ValueError(f"table: must have one {other} and at least 2 of {axis}, got {others} and {sizes}")
    if not tolerance > 0:
        raise ValueError(f"tolerance: must be a positive number, got {tolerance}")
    rows = []
    for (statistic, line), part in lines(table).groupby(["statistic", "line"], sort=False):
        values = part.pivot(index="seed", columns=axis, values="value").reindex(columns=sizes).to_numpy()
        if np.all(values == 0):
            continue
        law = _law(np.array(sizes), values, level)
        verdict = judge(law, tolerance) if np.all(np.isfinite(values)) else "diverged"
        judged = must_be_constant(str(statistic), str(line), axis)
        estimates = (law.slope.value, law.slope.low, law.slope.high, law.end.value, law.end.low, law.end.high)
        rows.append((axis, statistic, line, judged, *estimates, verdict))
    names = ["axis", "statistic", "line", "judged", "slope", "low", "high", "end", "end_low", "end_high", "verdict"]
    return pd.DataFrame(rows, columns=names)


def _law(sizes: np.ndarray, values: np.ndarray, level: float) -> PowerLaw:
    if np.all(np.isfinite(values) & (values > 0)):
        return power_law(sizes, values, level)
    nowhere = Estimate(np.nan, np.nan, np.nan)
    return PowerLaw(nowhere, nowhere)


def scheme_verdict(found: pd.DataFrame) -> Literal["stable", "drifts", "undecided"]:
    """From the judged rows of `exponents`: "stable": all are constant; "drifts": one grows, shrinks or has diverged.

    Intervals are each line's own. Where they are much wider than the tolerance, one line in 20 drifts by chance.
    """
    verdicts = set(found.loc[found["judged"], "verdict"])
    if verdicts & {"grows", "shrinks", "diverged"}:
        return "drifts"
    return "stable" if verdicts == {"constant"} else "undecided"
