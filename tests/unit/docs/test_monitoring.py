"""The dashboard and the alerts ask only for what the gateway tells, in expressions that Prometheus reads."""

import json
import re
from collections.abc import Iterator
from pathlib import Path

import promql_parser
import pytest
import yaml

from hostler.cli.main import main

DOCS = Path(__file__).parents[3] / "docs"
FOLDER = DOCS / "monitoring"
ROW = re.compile(r"^\| `(hostler_\w+)` \| (\w+) \| (.*?) \|", re.MULTILINE)
USE = re.compile(r"(hostler_\w+?)(_bucket|_sum|_count)?(?:\{([^}]*)\})?(?=\W|$)")


def told() -> dict[str, tuple[str, set[str]]]:
    """The type and labels of each metric, from the page that is made from the code."""
    page = (DOCS / "reference" / "metrics.md").read_text()
    return {
        name: (kind, set(re.findall(r"`(\w+)`", labels)))
        for name, kind, labels in ROW.findall(page)
    }


def expressions() -> Iterator[tuple[str, str]]:
    board = json.loads((FOLDER / "grafana-dashboard.json").read_text())
    for panel in board["panels"]:
        for target in panel["targets"]:
            yield panel["title"], target["expr"]
    for group in yaml.safe_load((FOLDER / "alerts.yml").read_text())["groups"]:
        for rule in group["rules"]:
            yield rule["alert"], rule["expr"]


EVERY = list(expressions())


@pytest.mark.parametrize(("title", "text"), EVERY, ids=[title for title, _ in EVERY])
def test_an_expression_is_one_and_its_metrics_exist(title: str, text: str) -> None:
    plain = text.replace("$__rate_interval", "5m").replace("$model", ".*")
    promql_parser.parse(plain)
    known = told()
    used = [
        match
        for match in USE.finditer(plain)
        if match[1] in known or match[1].startswith("hostler_")
    ]
    assert used or "up{" in plain
    for name, part, matchers in (match.groups() for match in used):
        kind, labels = known[name]
        assert (kind == "histogram") == bool(part), name
        assert set(re.findall(r"(\w+)=", matchers or "")) <= labels, name
        assert ("rate(" in plain) or kind == "gauge", f"{title}: a counter without a rate"


def test_every_panel_has_a_place_of_its_own() -> None:
    board = json.loads((FOLDER / "grafana-dashboard.json").read_text())
    taken: set[tuple[int, int]] = set()
    for panel in board["panels"]:
        at = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(at["x"], at["x"] + at["w"])
            for y in range(at["y"], at["y"] + at["h"])
        }
        assert at["x"] + at["w"] <= 24
        assert not cells & taken, panel["title"]
        taken |= cells
    assert len({panel["id"] for panel in board["panels"]}) == len(board["panels"])


def test_the_commands_that_alerts_name_exist(capsys: pytest.CaptureFixture[str]) -> None:
    text = (FOLDER / "alerts.yml").read_text()
    for words in set(re.findall(r"hostler ((?:model |requests )?[a-z]+)", text)):
        assert main([*words.split(), "--help"]) == 0, words
    capsys.readouterr()
