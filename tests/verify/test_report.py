"""The whole report at its smallest, twice: the second time nothing is computed again."""

import json
import re
import xml.etree.ElementTree as ET
from html.parser import HTMLParser

import pandas as pd
import pytest

from verify import report
from verify.claims import CLAIMS
from verify.report import stages
from verify.report.options import METHODS
from verify.sweeps import lanes, store


class Balanced(HTMLParser):
    """Fails where a tag is closed that is not open, or left open."""

    VOID = ("meta", "br", "hr", "img")

    def __init__(self):
        super().__init__()
        self.open = []

    def handle_starttag(self, tag, attrs):
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        pass

    def handle_endtag(self, tag):
        assert self.open.pop() == tag, tag


def test_page_is_well_formed_and_needs_nothing_from_outside(finished):
    html = (finished / "index.html").read_text(encoding="utf-8")
    parser = Balanced()
    parser.feed(html)
    assert parser.open == []
    assert not re.search(r'(?:src|href)="(?!#)', html.replace("xlink:", ""))
    assert "url(http" not in html and "@import" not in html
    for svg in re.findall(r"<svg.*?</svg>", html, flags=re.DOTALL):
        ET.fromstring(svg)
    identifiers = re.findall(r'\bid="([^"]+)"', html)
    assert len(identifiers) == len(set(identifiers))
    assert "prefers-color-scheme: dark" in html and "<math" in html


def test_every_claim_has_a_verdict(finished):
    html = (finished / "index.html").read_text(encoding="utf-8")
    verdicts = json.loads((finished / "verdicts.json").read_text())
    judged = [verdict["claim"] for verdict in verdicts]
    assert judged == [claim.id for claim in CLAIMS.values() if claim.judge is None]
    for name in judged:
        assert f'id="{name}"' in html
    assert "A STEP FAILED" not in html


def test_data_lie_beside_it(finished):
    table = pd.read_csv(finished / "training_runs.csv")
    assert len(table) == 4 * 2 * 2 and set(table["method"]) == set(METHODS)
    assert len(list((finished / "runs").glob("*.nc"))) == 16
    assert not list(finished.rglob("*.part"))


def test_going_on_computes_only_what_is_missing(finished, monkeypatch, tiny):
    """One run is deleted, as if the report had been killed before it: that run alone is trained again."""
    options = tiny(finished)
    lost = options.training_runs("scaled")[1]
    store.path_of(lost, finished / "runs").unlink()
    trained = []
    monkeypatch.setattr(lanes, "train_lanes", lambda runs, *rest: trained.extend(runs) or real(runs, *rest))
    monkeypatch.setattr(stages, "measure", lambda *_, **__: pytest.fail("measured again"))
    before = (finished / "index.html").read_text(encoding="utf-8")
    assert report.run(options) == 0
    assert trained == [lost]
    assert len((finished / "index.html").read_text(encoding="utf-8")) == pytest.approx(len(before), rel=0.01)


real = lanes.train_lanes


def test_interrupted_between_stages_it_says_how_to_go_on(tmp_path, monkeypatch, capsys, tiny):
    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(stages, "analyse", interrupt)
    assert report.run(tiny(tmp_path)) == 130
    assert "goes on from there" in capsys.readouterr().err
    assert not (tmp_path / "index.html").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rates": (1e-2,)}, "rates: must be at least 2 different learning rates"),
        ({"rates": (1e-2, -1.0)}, "learning_rate: must be a positive number, got -1.0"),
        ({"seeds": 1}, "seeds: must be a whole number of at least 2"),
    ],
)
def test_bad_options(tmp_path, changes, message, tiny):
    with pytest.raises(ValueError, match=message):
        tiny(tmp_path, **changes)


def test_narrow_vanilla_stands_in_for_the_wide_one(tmp_path, tiny):
    """The embedding of width 16 leaves the table at sqrt(2/80) and enters block 1 as width 2,304's would."""
    arch = tiny(tmp_path).stand_in("vanilla")
    multiplier = arch.evaluate(arch.embedding.multiplier)
    assert multiplier * arch.std("embedding")[0] == pytest.approx((2 / (5 * 2304)) ** 0.5)
