"""pytest's plugin: `pytest --init-scheme mypackage.inits:my_scheme` tests a scheme, one test for each property.

In a test file of one's own, the same for a test that takes `scheme_property`:

    @pytest.mark.initialization_scheme(scheme=my_scheme, declared="he")
    def test_my_scheme(scheme_property):
        scheme_property()

Nothing here imports JAX before a scheme is asked for, since pytest loads it at every start.
"""

import sys
from collections.abc import Iterable
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest

_SUITE = Path(__file__).parent / "properties" / "suite.py"
_MARK = "initialization_scheme"
_ITEMS = pytest.StashKey[Iterable[pytest.Item]]()


def pytest_addoption(parser: pytest.Parser) -> None:
    """The flags of `python -m verify check`, under pytest's names."""
    group = parser.getgroup("initialization schemes (spikeless)")
    group.addoption(
        "--init-scheme",
        action="append",
        default=[],
        metavar="MODULE:NAME",
        help="test this initialisation: a registered name or an object of an importable module",
    )
    group.addoption("--init-declared", metavar="NAME", help="rule that the scheme is held to, as he or pkg.module:RULE")
    group.addoption(
        "--init-distribution", metavar="LAW", help="law of the entries: normal, truncated_normal, uniform or orthogonal"
    )
    group.addoption(
        "--init-hold",
        action="append",
        default=[],
        metavar="FIELD=VALUE",
        help="field of Architecture held at a value, as embedding=vanilla",
    )
    group.addoption("--init-only", action="append", default=[], metavar="PROPERTY", help="property to test (none: all)")
    group.addoption("--init-skip", action="append", default=[], metavar="PROPERTY", help="property to leave out")
    group.addoption(
        "--init-layouts",
        action="append",
        default=[],
        metavar="LAYOUT",
        help="shape that an initializer is to be right for, beside one matrix at a time: stacked or fused",
    )
    group.addoption("--init-seed", type=int, default=0, metavar="SEED", help="of the search")
    group.addoption("--init-thorough", action="store_true", help="minutes instead of one")  # fmt: skip


def pytest_configure(config: pytest.Config) -> None:
    """Put the suite among what is collected; alone, where no paths were given."""
    config.addinivalue_line(
        "markers", f"{_MARK}(scheme=..., declared=None, distribution=None, limits=..., **fields): run the test, which "
        "takes scheme_property, once for every property of the scheme",
    )  # fmt: skip
    if config.getoption("--init-scheme"):
        sys.path.insert(0, str(config.invocation_params.dir))
        if config.args_source is not pytest.Config.ArgsSource.ARGS:
            config.args[:] = []
        config.args.append(str(_SUITE))


@dataclass(eq=False)
class _Searches:
    """What one test function's cases search for in this process: results to come, by property."""

    config: pytest.Config
    found: dict[str, Any] = field(default_factory=dict)
    under_way: ExitStack = field(default_factory=ExitStack)

    def result(self, case: "SchemeProperty") -> Any:
        """Of that property, once it is there; all others that this process is to test are searched for beside it."""
        if case.name not in self.found:
            from verify.properties.check import searches

            others = [] if hasattr(self.config, "workerinput") else map(_case, self.config.stash[_ITEMS])
            names = {case.name} | {other.name for other in others if other is not None and other.searches is self}
            begun = searches(case.scheme, names, case.limits, case.seed, **case.fields)
            self.found |= self.under_way.enter_context(begun)
        try:
            return self.found[case.name].result()
        finally:
            if all(each.done() for each in self.found.values()):
                self.under_way.close()


@dataclass(frozen=True)
class SchemeProperty:
    """One property of one scheme: call it, and the test passes, fails with the counterexample, or is skipped."""

    name: str
    scheme: Any
    limits: Any
    seed: int
    fields: dict[str, Any]
    searches: _Searches

    def __call__(self) -> None:
        __tracebackhide__ = True
        from verify.properties import SchemeError

        try:
            result = self.searches.result(self)
        except SchemeError as error:
            pytest.fail(str(error), pytrace=False)
        if result.violation is not None:
            pytest.fail(result.violation.text(), pytrace=False)
        if result.outcome == "not applicable":
            pytest.skip(result.reason)


def pytest_collection_finish(session: pytest.Session) -> None:
    """Remember what is left to be tested."""
    session.config.stash[_ITEMS] = session.items


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """Leave in its report, which may come from another process, what a test is of."""
    if (case := _case(item)) is not None:
        item.user_properties.append((_MARK, (case.scheme.name, case.name)))


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Give up the searches that nothing waits for any more."""
    for case in map(_case, session.config.stash.get(_ITEMS, [])):
        if case is not None:
            case.searches.under_way.close()


def _case(item: pytest.Item) -> SchemeProperty | None:
    case = getattr(getattr(item, "callspec", None), "params", {}).get("scheme_property")
    return case if isinstance(case, SchemeProperty) else None


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """What was not checked of every scheme, as `python -m verify check` ends with it."""
    outcomes = {"passed": "tested", "skipped": "not applicable", "failed": "failed"}
    found: dict[str, list[tuple[str, str]]] = {}
    for status, outcome in outcomes.items():
        for report in terminalreporter.stats.get(status, []):
            for key, value in getattr(report, "user_properties", ()):
                if key == _MARK:
                    found.setdefault(value[0], []).append((value[1], outcome))
    if not found:
        return
    from verify.properties import Report, Result

    for scheme, results in found.items():
        if gaps := Report(scheme, tuple(Result(*each) for each in results)).gaps():  # type: ignore[arg-type]
            terminalreporter.write_line(f"scheme {scheme}: {gaps}")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """One test for every property of the marked scheme, or of those on the command line."""
    if "scheme_property" not in metafunc.fixturenames:
        return
    from verify.properties import THOROUGH, Limits, as_scheme
    from verify.properties.check import chosen, held

    option = metafunc.config.getoption
    marks = [dict(mark.kwargs) for mark in metafunc.definition.iter_markers(_MARK)]
    cases = []
    try:
        names = chosen(option("--init-only"), option("--init-skip"))
        limits = replace(THOROUGH if option("--init-thorough") else Limits(), layouts=tuple(option("--init-layouts")))
        given: dict[str, Any] = {"declared": option("--init-declared"), "distribution": option("--init-distribution")}
        given |= held(option("--init-hold"))
        for asked in marks or [{"scheme": scheme} | given for scheme in option("--init-scheme")]:
            if "scheme" not in asked:
                raise ValueError(f"{_MARK}: {metafunc.definition.nodeid} is marked without scheme=")
            fields: dict[str, Any] = {"declared": None, "distribution": None, "limits": limits} | asked
            scheme = as_scheme(fields.pop("scheme"), fields.pop("declared"), fields.pop("distribution"))
            held_to = fields.pop("limits")
            searches = _Searches(metafunc.config)
            cases += [
                pytest.param(
                    SchemeProperty(name, scheme, held_to, option("--init-seed"), fields, searches),
                    id=f"{scheme.name}-{name}",
                )
                for name in names
            ]
    except ValueError as error:
        raise pytest.UsageError(str(error)) from error
    metafunc.parametrize("scheme_property", cases)
