"""A property of a scheme, the search for an architecture that violates it, and what is known after the search."""

import time
from collections.abc import Callable, Collection
from concurrent.futures import CancelledError
from contextlib import nullcontext
from dataclasses import dataclass, fields, replace
from typing import Any, Literal

from hypothesis import HealthCheck, Phase, given, reject, seed, settings
from hypothesis import strategies as st
from hypothesis.errors import Unsatisfiable

from theory import Architecture, Initialization
from verify.properties.scheme import Scheme, as_scheme, blamed, described, own_fields

Outcome = Literal["proven", "tested", "failed", "not applicable"]


@dataclass(frozen=True)
class Limits:
    """What a scheme is held to, and what a run may cost.

    false_alarms: probability that a correct scheme fails any of the statistical tests of one run. examples:
    architectures that each property of the weights is tested on; networks: that each property is where an example is a
    whole network. amplification: most that gradients may grow from the last place to the first. std_ratio: largest over
    smallest standard deviation of the stream over the places. growth_exponent: of the amplification in the number of
    layers. dtypes: in which loss and gradients are to be finite. layouts: "stacked", "fused": what else an initializer
    is to give the right standard deviation for, beside one matrix at a time. seconds: after which a search for a
    smaller counterexample ends.
    """

    false_alarms: float = 5e-4
    examples: int = 8
    networks: int = 2
    amplification: float = 10.0
    std_ratio: float = 10.0
    growth_exponent: float = 0.6
    dtypes: tuple[str, ...] = ("float32", "bfloat16", "float16")
    layouts: tuple[str, ...] = ()
    seconds: float = 20.0

    def __post_init__(self) -> None:
        for name in ("examples", "networks"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: must be at least 1, got {getattr(self, name)}")
        for name in ("false_alarms", "amplification", "std_ratio", "growth_exponent"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name}: must be a positive number, got {getattr(self, name)}")
        for layout in self.layouts:
            if layout not in ("stacked", "fused"):
                raise ValueError(f"layouts: unknown value {layout!r}; choose one of stacked, fused")


THOROUGH = Limits(examples=60, networks=20, seconds=300.0)


@dataclass(frozen=True)
class Finding:
    """A test that failed: what was tested where, its measured value and the interval it had to lie in.

    hint: what would explain it. topic: the derivation that says why it matters (`python -m theory derive TOPIC`), if
    there is one.
    """

    what: str
    measured: float
    low: float
    high: float
    topic: str = ""
    hint: str = ""

    def __str__(self) -> str:
        allowed = f"{self.low:.4g} to {self.high:.4g}" if self.low > float("-inf") else f"at most {self.high:.4g}"
        return f"{self.what}: measured {self.measured:.4g}, allowed {allowed}" + (f"; {self.hint}" if self.hint else "")


class NotApplicable(Exception):
    """A test has nothing to say about this scheme, and why."""


class _Broken(Exception):
    """A test raised its argument; Hypothesis adds notes to what it meets."""


class Violation(AssertionError):
    """A property does not hold: the smallest architecture found, and what fails there."""

    def __init__(
        self, name: str, scheme: Scheme, arch: Architecture, key: int, finding: Finding, limits: Limits
    ) -> None:
        self.property, self.scheme, self.arch, self.seed, self.finding = name, scheme, arch, key, finding
        self.limits = limits
        super().__init__(self.text())

    def text(self) -> str:
        """What a person reads: property, measured against allowed, architecture, derivation, a line that repeats it."""
        lines = [f"{self.scheme.name}: {self.property} fails", str(self.finding)]
        lines.append(f"at {self.described()}, seed {self.seed}")
        if self.finding.topic:
            lines.append(f"why it matters: python -m theory derive {self.finding.topic}")
        own = self.undefined()
        lines.append(f"to repeat{f', with your own {own}' * bool(own)}: {self.line()}")
        return "\n  ".join(lines)

    def undefined(self) -> str:
        """What its author must define before `line` can run: objects that no module has under a name."""
        held = own_fields(self.arch, self._decided())
        given = ["scheme"] * (self.scheme.reference == "scheme") + ["rule"] * (self.scheme.declared_as == "rule")
        return ", ".join([*given, *held])

    def line(self) -> str:
        """Python that fails in the same way, once what is `undefined` is defined."""
        shown, law = self.scheme.reference, self.scheme.distribution
        if not self.scheme.symbolic:
            shown += f", declared={self.scheme.declared_as}" if self.scheme.declared_as else ""
            shown += f", distribution={law!r}" if law else ""
        changed = [
            f"{field.name}={getattr(self.limits, field.name)!r}"
            for field in fields(self.limits)
            if getattr(self.limits, field.name) != field.default
        ]
        limits = f", limits=Limits({', '.join(changed)})" if changed else ""
        return (
            f"from theory import Architecture; from verify.properties import Limits, {self.property}; "
            f"{self.property}({shown}, arch={self.described()}, seed={self.seed}{limits})"
        )

    def described(self) -> str:
        """The architecture as Python, without what is at its default and what the scheme decides."""
        return described(self.arch, self._decided())

    def _decided(self) -> Collection[str]:
        return self.scheme.fields if self.scheme.symbolic else ("initialization",)


@dataclass(frozen=True)
class Result:
    """What is known of one property. reason: why it is not applicable, or what is proven. examples: tested on."""

    property: str
    outcome: Outcome
    examples: int = 0
    reason: str = ""
    violation: Violation | None = None


Test = Callable[[Scheme, Architecture, int, float, Limits], Finding | None]


@dataclass(frozen=True)
class Property:
    """One property, called with a scheme like a function: it raises `Violation` where it does not hold.

    test(scheme, arch, seed, alpha, limits): what fails there, the probability of a false alarm being at most alpha.
    architectures(scheme, fields): what it is drawn from. applies(scheme, limits): why not, or "". prove(scheme,
    fields, limits): for a symbolic scheme, what holds for all sizes (a sentence), an architecture where the test fails,
    or None where nothing is known. costly: tested on `Limits.networks` architectures, the others on `Limits.examples`.
    anchors(scheme, fields): from small to large; the largest is always tested, in place of the simplest that is drawn.
    """

    name: str
    statement: str
    test: Test
    architectures: Callable[[Scheme, dict[str, Any]], st.SearchStrategy[Architecture]]
    applies: Callable[[Scheme, Limits], str] = lambda scheme, limits: ""
    prove: Callable[[Scheme, dict[str, Any], Limits], str | Architecture | None] = lambda scheme, fields, limits: None
    costly: bool = False
    anchors: Callable[[Scheme, dict[str, Any]], list[Architecture]] = lambda scheme, fields: []

    def __call__(
        self,
        scheme: object,
        arch: Architecture | None = None,
        seed: int | None = None,
        limits: Limits = Limits(),
        declared: str | Initialization | None = None,
        distribution: str | None = None,
        **fields: Any,
    ) -> Result:
        """Search, or test at one architecture and seed, with what the scheme decides put in.

        fields: of Architecture, held or drawn from.

        Raises Violation, ValueError for a scheme of no known form, SchemeError for what its code raises.
        """
        made = as_scheme(scheme, declared, distribution)
        result = (
            self.search(made, limits, seed or 0, **fields) if arch is None else self.at(made, arch, seed or 0, limits)
        )
        if result.violation is not None:
            raise result.violation
        return result

    def at(self, scheme: Scheme, arch: Architecture, seed: int, limits: Limits) -> Result:
        """Test at one architecture and seed, with what the scheme decides put in."""
        if reason := self.applies(scheme, limits):
            return Result(self.name, "not applicable", reason=reason)
        arch = scheme.arch(arch)
        found = self._found(scheme, arch, seed, limits)
        if isinstance(found, NotApplicable):
            return Result(self.name, "not applicable", reason=str(found))
        if found is None:
            return Result(self.name, "tested", 1)
        return Result(self.name, "failed", 1, violation=Violation(self.name, scheme, arch, seed, found, limits))

    def _found(self, scheme: Scheme, arch: Architecture, seed: int, limits: Limits) -> "Finding | NotApplicable | None":
        with nullcontext() if scheme.symbolic else blamed(scheme.name, arch):
            try:
                return self.test(scheme, arch, seed, self.alpha(limits), limits)
            except NotApplicable as reason:
                return reason

    def alpha(self, limits: Limits) -> float:
        """An example's share of the probability of a false alarm."""
        return limits.false_alarms / self.examples(limits)

    def examples(self, limits: Limits) -> int:
        """Architectures to test on."""
        return limits.networks if self.costly else limits.examples

    def search(
        self,
        scheme: Scheme,
        limits: Limits,
        first_seed: int = 0,
        given_up: Callable[[], bool] = lambda: False,
        **held: Any,
    ) -> Result:
        """Draw architectures until one violates the property; then look for a smaller one, as long as limits say.

        given_up: asked before each; raises CancelledError once it is so.
        """

        def go_on() -> None:
            if given_up():
                raise CancelledError

        for name in held:
            if name in scheme.fields:
                raise ValueError(f"{name}: decided by the scheme {scheme.name}; hold other fields")
        if reason := self.applies(scheme, limits):
            return Result(self.name, "not applicable", reason=reason)
        go_on()
        proof = self.prove(scheme, held, limits) if scheme.symbolic else None
        if isinstance(proof, Architecture):
            return self.at(scheme, proof, first_seed, limits)
        anchored = 0
        if anchors := self.anchors(scheme, held):
            first = self._anchored(scheme, anchors, first_seed, limits, go_on)
            if first.violation is not None:
                return first
            anchored = 1
        known: dict[tuple[Architecture, int], Finding | Exception | None] = {}
        deadline = time.monotonic() + limits.seconds
        failed, passed_over = False, anchored == 0

        @seed(first_seed)
        @settings(
            max_examples=self.examples(limits),
            deadline=None,
            database=None,
            phases=(Phase.generate, Phase.shrink),
            suppress_health_check=list(HealthCheck),
            report_multiple_bugs=False,
            print_blob=False,
        )
        @given(self.architectures(scheme, held), st.integers(0, 2**16))
        def explore(drawn: Architecture, key: int) -> None:
            nonlocal failed, deadline, passed_over
            if not passed_over:
                passed_over = True
                return
            go_on()
            arch = scheme.arch(drawn)
            if (arch, key) not in known:
                if failed and time.monotonic() > deadline:
                    reject()
                try:
                    known[arch, key] = self._found(scheme, arch, key, limits)
                except Exception as error:
                    known[arch, key] = error
                    failed, deadline = True, 0.0  # nothing smaller is looked for
            found = known[arch, key]
            if isinstance(found, Finding):
                if not failed:
                    failed, deadline = True, time.monotonic() + limits.seconds
                raise Violation(self.name, scheme, arch, key, found, limits)
            if found is not None and not isinstance(found, NotApplicable):
                raise _Broken(found)

        try:
            if self.examples(limits) > anchored:
                explore()
        except Violation as violation:
            return Result(self.name, "failed", len(known), violation=violation)
        except _Broken as broken:
            (error,) = broken.args
            raise error from error.__cause__
        except Unsatisfiable as error:
            Architecture(**{name: value for name, value in held.items() if not isinstance(value, list)})
            raise ValueError(f"{self.name}: no architecture fits {held}; hold fewer fields") from error
        reasons = [str(found) for found in known.values() if isinstance(found, NotApplicable)]
        if not (tested := anchored + len(known) - len(reasons)):
            return Result(self.name, "not applicable", reason=reasons[0])
        return Result(self.name, "tested" if proof is None else "proven", tested, proof or "")

    def _anchored(
        self, scheme: Scheme, anchors: list[Architecture], seed: int, limits: Limits, go_on: Callable[[], None]
    ) -> Result:
        """At the largest; where that fails, at the smallest that fails too and is reached in time."""
        *smaller, largest = anchors
        go_on()
        found = self.at(scheme, largest, seed, limits)
        deadline = time.monotonic() + limits.seconds
        for tried, arch in enumerate(smaller, 2):
            if found.violation is None or time.monotonic() > deadline:
                break
            go_on()
            again = self.at(scheme, arch, seed, limits)
            if again.violation is not None:
                return replace(again, examples=tried)
        return found
