"""All properties of a scheme, and the report of them."""

import json
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from threading import Event
from typing import Any

from rich.console import Console
from rich.table import Table
from threadpoolctl import threadpool_limits

from theory import Initialization
from theory.architecture import FIELD_NAMES
from verify.properties.matrices import OF_MATRICES
from verify.properties.property import Limits, Property, Result
from verify.properties.scheme import Scheme, as_scheme
from verify.properties.signals import OF_LOSS, OF_STREAM

_GROUPS = (OF_MATRICES, OF_LOSS, OF_STREAM)
"""what is compiled for one is of no use to another"""
PROPERTIES: dict[str, Property] = {each.name: each for group in _GROUPS for each in group}
_UNCHECKED = {
    "declared_std": ("the standard deviation", "--declared"),
    "distribution": ("the law of the entries", "--distribution"),
}


@dataclass(frozen=True)
class Report:
    """What is known of every property of a scheme."""

    scheme: str
    results: tuple[Result, ...]

    @property
    def passed(self) -> bool:
        """Whether no property fails."""
        return all(result.outcome != "failed" for result in self.results)

    def gaps(self) -> str:
        """One line on how many properties are not applicable, and what was not checked for that; "" where none is.

        The flags are those of the shell; in Python they are arguments.
        """
        left_out = [result.property for result in self.results if result.outcome == "not applicable"]
        if not left_out:
            return ""
        unchecked = [
            f"{what} was not checked; give {flag}" for name, (what, flag) in _UNCHECKED.items() if name in left_out
        ]
        return ": ".join(
            [f"{len(left_out)} of {len(self.results)} not applicable", *[", ".join(unchecked)] * bool(unchecked)]
        )

    def print(self, console: Console | None = None) -> None:
        """A table, and below it every violation in full, and what was not checked."""
        console = console or Console()
        table = Table("property", "outcome", "examples", "what holds, or why not", title=f"scheme {self.scheme}")
        styles = {"failed": "red", "proven": "green", "tested": "green", "not applicable": "dim"}
        for result in self.results:
            what = PROPERTIES[result.property].statement
            if result.violation is not None:
                what = str(result.violation.finding)
            elif result.reason:
                what = f"{what}: {result.reason}" if result.outcome == "proven" else result.reason
            table.add_row(
                result.property, f"[{styles[result.outcome]}]{result.outcome}[/]", str(result.examples or ""), what
            )
        console.print(table)
        for result in self.results:
            if result.violation is not None:
                console.print(result.violation.text(), markup=False, highlight=False, soft_wrap=True)
        if gaps := self.gaps():
            console.print(gaps, markup=False, highlight=False, soft_wrap=True)

    def markdown(self) -> str:
        """The same as a page."""
        lines = [f"# Scheme {self.scheme}", "", "| property | outcome | examples | statement |", "|---|---|---|---|"]
        for result in self.results:
            what = PROPERTIES[result.property].statement + (f" ({result.reason})" if result.reason else "")
            lines.append(f"| {result.property} | {result.outcome} | {result.examples or ''} | {what} |")
        for result in self.results:
            if result.violation is not None:
                lines += ["", f"## {result.property}", "", "```", result.violation.text(), "```"]
        if gaps := self.gaps():
            lines += ["", gaps]
        return "\n".join(lines) + "\n"


def held(pairs: Iterable[str]) -> dict[str, Any]:
    """Fields of Architecture from FIELD=VALUE, as a shell gives them; numbers, true, false and null as in JSON.

    Raises ValueError for what has no `=` and for a name that is no field.
    """
    fields = {}
    for pair in pairs:
        name, equals, value = pair.partition("=")
        if not equals or name not in FIELD_NAMES:
            raise ValueError(f"hold: expected FIELD=VALUE with one of {', '.join(FIELD_NAMES)}, got {pair!r}")
        try:
            fields[name] = json.loads(value)
        except ValueError:
            fields[name] = value
    return fields


def chosen(only: Iterable[str] = (), skip: Iterable[str] = ()) -> list[str]:
    """Names of properties, in their order: those of `only` (none: all) without those of `skip`. ValueError: unknown."""
    only, skip = tuple(only), tuple(skip)
    for name in (*only, *skip):
        if name not in PROPERTIES:
            raise ValueError(f"property: unknown name {name!r}; choose from {', '.join(PROPERTIES)}")
    return [name for name in PROPERTIES if name not in skip and (not only or name in only)]


def share_of(limits: Limits) -> Limits:
    """The limits of one property, where all share the probability of a false alarm."""
    return replace(limits, false_alarms=limits.false_alarms / len(PROPERTIES))


def check(
    scheme: object,
    declared: str | Initialization | None = None,
    distribution: str | None = None,
    limits: Limits = Limits(),  # noqa: B008 - frozen
    only: Iterable[str] = (),
    skip: Iterable[str] = (),
    seed: int = 0,
    advanced: Callable[[Result], None] = lambda result: None,
    **fields: Any,
) -> Report:
    """Every property of a scheme, searched for a violation.

    scheme, declared, distribution: as `as_scheme` takes them. only, skip: names of properties. seed: of the search; the
    same one draws the same. advanced: called with each result as it comes. fields: of Architecture, held at a value or
    drawn from a list or strategy. Raises ValueError for unknown names and what `as_scheme` refuses.
    """
    made = as_scheme(scheme, declared, distribution)
    with searches(made, chosen(only, skip), limits, seed, **fields) as found:
        for each in as_completed(found.values()):
            advanced(each.result())
        return Report(made.name, tuple(each.result() for each in found.values()))


@contextmanager
def searches(
    made: Scheme, names: Iterable[str], limits: Limits, seed: int = 0, **fields: Any
) -> Iterator[dict[str, Future[Result]]]:
    """Searches of those properties under way, a thread for each group; on leaving, what is not done is given up."""
    names, share, left = set(names), share_of(limits), Event()
    # one thread of linear algebra: matrices are small, and more would only wait for one another
    with threadpool_limits(1, user_api="blas"), ExitStack() as pools:
        found = dict[str, Future[Result]]()
        for group in _GROUPS:
            pool = pools.enter_context(ThreadPoolExecutor(1))
            found |= {
                p.name: pool.submit(p.search, made, share, seed, left.is_set, **fields)
                for p in group
                if p.name in names
            }
        try:
            yield found
        finally:
            left.set()
            for each in found.values():
                each.cancel()
