"""Are the mistakes of `verify.properties.faults` caught in a run at the default limits? A table for docs/properties.md.

Every fault goes through the property that it names, with its share of a whole run's probability of a false
alarm, and the default number of architectures; what the other properties say of it is left out.

    python benchmarks/planted_faults.py [--only PROPERTY ...] [--out FILE.md]
"""

import argparse
from pathlib import Path

from verify.properties import PROPERTIES, Limits, check
from verify.properties.faults import FAULTS
from verify.training.compiled import release_when_many

HEADER = "| mistake | in | caught by | measured | allowed |\n|---|---|---|---|---|"


def row(name: str) -> str:
    """One line of the table."""
    fault = FAULTS[name]
    limits = Limits(seconds=0.0, layouts=fault.layouts)  # the first counterexample is enough
    report = check(fault.planted(), limits=limits, only=[fault.caught_by], **fault.held)
    (violation,) = [result.violation for result in report.results]
    if violation is None:
        return f"| {name} | {fault.scheme} | **not caught** | | |"
    finding = violation.finding
    allowed = f"{finding.low:.3g} to {finding.high:.3g}" if finding.low > float("-inf") else f"<= {finding.high:.3g}"
    what = f"{violation.property}: {finding.what}"
    return f"| {name} | {fault.scheme} | {what} | {finding.measured:.3g} | {allowed} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=PROPERTIES, default=PROPERTIES, help="those that these must catch")
    parser.add_argument("--out", type=Path, help="file for the table, in Markdown")
    options = parser.parse_args()
    lines = [HEADER]
    print(HEADER, flush=True)
    for name in (name for name, fault in FAULTS.items() if fault.caught_by in options.only):
        lines.append(row(name))
        print(lines[-1], flush=True)
        release_when_many(0.3)
    caught = sum("not caught" not in line for line in lines[1:])
    print(f"\n{caught} of {len(lines) - 1} caught")
    if options.out:
        options.out.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
