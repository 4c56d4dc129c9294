"""A derivation is a sequence of steps, each a SymPy statement with its reason and its source; `check` re-proves them.

A step is proven from earlier steps only, and says how: symbolically, numerically at random points, by instances at
concrete sizes; or it is given (a definition or an assumption), or cited (a theorem of others, used without proof).
"""

import importlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Literal

import sympy as sp

from theory import proof, rendering

Instances = Callable[[sp.Basic], Iterable[tuple[sp.Basic, str]]]
Trial = Callable[[], tuple[bool, str]]


def equation(lhs: sp.Basic, rhs: sp.Basic | int) -> sp.Eq:
    """lhs = rhs as it is written: SymPy decides no equation on its own, so that none turns into True."""
    return sp.Eq(lhs, rhs, evaluate=False)


def at(expression: sp.Expr, values: Mapping[sp.Expr, sp.Expr | int]) -> sp.Expr:
    """The expression at these values as it is written: they are put in when the statement is proven.

    Raises ValueError for a symbol that it lacks.
    """
    if lacking := [symbol for symbol in values if not expression.has(symbol)]:
        raise ValueError(f"values: {expression} has no {', '.join(map(str, lacking))}; give values of what it has")
    return sp.Subs(expression, tuple(values), tuple(values.values()))


def where(expression: sp.Expr, values: Mapping[sp.Expr, sp.Expr | int]) -> sp.Expr:
    """The expression `at` the values of those symbols that it has."""
    here = {symbol: value for symbol, value in values.items() if expression.has(symbol)}
    return at(expression, here) if here else expression


@dataclass(frozen=True)
class Step:
    """One step of a derivation.

    statement: an equation or inequality, of scalars or matrices. reason: why, in words. source: paper and equation,
    with [secondary] and the like where a printed fact was not verified. kind: "proven"; "given" for a definition or
    an assumption; "cited" for a theorem used without proof; "lemma" for a statement of the derivation that `source`
    names. using: the earlier statements it rests on. instances:
    turns the statement into explicit ones at concrete sizes (statement, "d = 3"), which are then proven instead.
    trial: a finite numerical check of a cited theorem; returns whether it holds and what was tried.
    """

    statement: sp.Basic
    reason: str
    source: str = "this derivation"
    kind: Literal["proven", "given", "cited", "lemma"] = "proven"
    using: tuple[sp.Basic, ...] = ()
    instances: Instances | None = None
    trial: Trial | None = None

    def __post_init__(self) -> None:
        if self.statement in (sp.true, sp.false):
            raise ValueError(f"statement: SymPy evaluated it to {self.statement}; build it with evaluate=False")
        if isinstance(self.statement, sp.Eq) and self.statement.lhs == self.statement.rhs:
            raise ValueError(
                f"statement: both sides are {self.statement.lhs}, which says nothing; keep one as it is written "
                "(theory.derivation.at, sp.Derivative, evaluate=False)"
            )


@dataclass(frozen=True)
class Outcome:
    """What `check` found for one step: whether it holds, and how that is known."""

    step: Step
    holds: bool
    how: str


@dataclass(frozen=True)
class Check:
    """The outcomes of all steps; true when every step holds."""

    outcomes: tuple[Outcome, ...]

    @property
    def holds(self) -> bool:
        return all(outcome.holds for outcome in self.outcomes)

    def __bool__(self) -> bool:
        return self.holds


@dataclass(frozen=True)
class Derivation:
    """A named sequence of steps; the last is the conclusion. `remarks` are what the statements do not say."""

    name: str
    title: str
    steps: tuple[Step, ...]
    remarks: tuple[str, ...] = ()

    def check(self) -> Check:
        """Re-prove every step, once: a derivation does not change.

        A step that uses a statement no earlier step makes does not hold.
        """
        return self._proven

    @cached_property
    def _proven(self) -> Check:
        outcomes: list[Outcome] = []
        for i, step in enumerate(self.steps):
            earlier = [s.statement for s in self.steps[:i]]
            if missing := [u for u in step.using if u not in earlier]:
                outcomes.append(Outcome(step, False, f"FAILED: uses {missing[0]}, which no earlier step states"))
            else:
                outcomes.append(_outcome(step))
        return Check(tuple(outcomes))

    def to_text(self, check: Check | None = None) -> str:
        """Plain text, one numbered step after the other; with a `check`, how each is known."""
        return rendering.text(self, check)

    def to_markdown(self, check: Check | None = None) -> str:
        """Markdown with LaTeX between dollar signs."""
        return rendering.markdown(self, check)

    def to_latex(self, check: Check | None = None) -> str:
        """A LaTeX section with an enumerated list of displayed statements (needs amsmath, amssymb)."""
        return rendering.latex(self, check)

    def to_mathml(self, check: Check | None = None) -> str:
        """A well-formed XHTML <section> whose statements are MathML presentation markup."""
        return rendering.mathml(self, check)


def _outcome(step: Step) -> Outcome:
    if step.kind == "given":
        return Outcome(step, True, "given")
    if step.kind == "lemma":
        found = step.statement in [other.statement for other in derive(step.source).steps]
        return Outcome(step, found, f"proven in {step.source}" if found else f"FAILED: not in {step.source}")
    if step.kind == "cited":
        if step.trial is None:
            return Outcome(step, True, "cited, not proven here")
        holds, tried = step.trial()
        return Outcome(step, holds, f"cited, not proven here; {'agrees with' if holds else 'FAILED at'} {tried}")
    if step.instances is not None:
        proofs = [(proof.prove(statement, step.using), where) for statement, where in step.instances(step.statement)]
        failed = [where for how, where in proofs if how is None]
        if failed or not proofs:
            return Outcome(step, False, f"FAILED at {', '.join(failed) or 'no instance at all'}")
        hows = sorted({how for how, _ in proofs if how is not None})
        return Outcome(step, True, f"{' and '.join(hows)}, at {', '.join(where for _, where in proofs)}")
    how = proof.prove(step.statement, step.using)
    return Outcome(step, how is not None, how or "FAILED: not zero, or not proven")


_TOPIC_MODULES = (
    "normalization",
    "feed_forward",
    "attention",
    "addition_bound",
    "block_excess",
    "tail_bounds",
    "logit_bound",
    "residual",
    "conditions",
    "block_requirements",
    "norm_scale",
    "token_mixing",
    "dual_expression",
    "two_number_map",
    "solved_recursion",
    "score_path",
)
TOPICS: dict[str, tuple[str, Callable[[], Derivation]]] = {}


def topic(title: str) -> Callable[[Callable[[], tuple[Step, ...]]], Callable[[], Derivation]]:
    """Register the decorated function, which returns the steps, as the derivation of its own name."""

    def register(function: Callable[[], tuple[Step, ...]]) -> Callable[[], Derivation]:
        name = function.__name__
        remarks = (" ".join((function.__doc__ or "").split()),)

        @lru_cache(maxsize=1)
        def derivation() -> Derivation:
            return Derivation(name, title, tuple(function()), remarks)

        derivation.__module__ = function.__module__

        TOPICS[name] = (title, derivation)
        return derivation

    return register


def topics() -> dict[str, str]:
    """Name and title of every registered derivation, in the order in which they build on one another."""
    for module in _TOPIC_MODULES:
        importlib.import_module(f"theory.{module}")
    order = {f"theory.{module}": i for i, module in enumerate(_TOPIC_MODULES)}
    listed = sorted(TOPICS.items(), key=lambda item: order.get(item[1][1].__module__, len(order)))
    return {name: title for name, (title, _) in listed}


def derive(name: str) -> Derivation:
    """The registered derivation of that name. Raises ValueError that names the choices."""
    choices = topics()
    if name not in choices:
        raise ValueError(f"topic: unknown value {name!r}; choose one of {', '.join(choices)}")
    return TOPICS[name][1]()
