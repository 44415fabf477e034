"""Plots of a load test."""

import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest

from hostler.cli.exits import CommandFailed, Exit
from hostler.cli.measured import Level, Spread
from hostler.cli.plot import bars, check_plot, number, svg, write_plot
from hostler.core.model import WorkerType

LEVELS = (
    Level(
        concurrency=1, seconds=1, requests=4, requests_per_s=4, tokens_per_s=50.0,
        ttft=Spread(p50_s=0.1, p99_s=0.2), inter_token=Spread(p50_s=0.02, p99_s=0.02),
    ),
    Level(
        concurrency=16, seconds=1, requests=8, requests_per_s=8, tokens_per_s=100.0,
        ttft=Spread(p50_s=0.2, p99_s=0.4), inter_token=Spread(p50_s=0.03, p99_s=0.04),
    ),
)  # fmt: skip
EMPTY = Level(concurrency=2, seconds=1, requests=3, errors={"overloaded": 3})


@pytest.mark.parametrize(
    ("value", "unit", "text"),
    [
        (None, "", "-"),
        (0.0, "", "0.00"),
        (4.2149, "", "4.21"),
        (87.34, "", "87.3"),
        (99.96, "", "100"),
        (1239.6, "", "1,240"),
        (0.01234, "s", "12.3 ms"),
        (0.9999, "s", "1.00 s"),
        (75.0, "s", "75.0 s"),
    ],
)
def test_a_number_has_three_digits(value: float | None, unit: str, text: str) -> None:
    assert number(value, unit) == text


def test_bars_are_as_long_as_their_values_and_fit_the_width() -> None:
    lines = list(bars(LEVELS, WorkerType.LLM, 60))
    at = lines.index("output tokens/s")
    low, high = lines[at + 1], lines[at + 2]
    assert high.count("█") == 2 * low.count("█")
    assert low.strip().startswith("1 █")
    assert low.endswith("50.0")
    at = lines.index("time to first token (█ p50, ░ p99)")
    assert lines[at + 2].count("█") == lines[at + 2].count("░")
    assert lines[at + 2].endswith("200 ms     400 ms")
    assert max(map(len, lines)) <= 60


def test_levels_without_an_answer_leave_a_gap_and_no_fault() -> None:
    assert list(bars([EMPTY], WorkerType.LLM, 80)) == []
    ElementTree.fromstring(svg([EMPTY], WorkerType.LLM, "m", ""))
    shown = svg([LEVELS[0], EMPTY, LEVELS[1]], WorkerType.LLM, "m", "")
    assert shown.count("<circle") == 2 + 3 + 4 + 4  # requests/s are 0 there, the others nothing


def test_an_svg_is_one_document_with_every_curve_and_escaped_words() -> None:
    shown = svg(LEVELS, WorkerType.LLM, "a<b under load", "1 & 2")
    root = ElementTree.fromstring(shown)
    texts = ["".join(one.itertext()) for one in root.iter("{http://www.w3.org/2000/svg}text")]
    assert {"a<b under load", "1 & 2", "output tokens/s", "time to first token", "p99"} <= {*texts}
    assert shown.count("<polyline") == 6
    assert "200 ms" in texts
    assert "http" not in shown.replace("http://www.w3.org/2000/svg", "")


def test_a_plot_is_written_as_its_name_says(tmp_path: Path) -> None:
    drawing = svg(LEVELS, WorkerType.LLM, "m", "")
    check_plot(tmp_path / "load.svg")
    write_plot(tmp_path / "load.svg", drawing)
    assert (tmp_path / "load.svg").read_text() == drawing
    pytest.importorskip("resvg_py")
    check_plot(tmp_path / "load.png")
    write_plot(tmp_path / "load.png", drawing)
    assert (tmp_path / "load.png").read_bytes().startswith(b"\x89PNG\r\n")


@pytest.mark.parametrize("name", ["load.gif", "nowhere/load.svg"])
def test_a_plot_that_cannot_be_is_refused_before_anything_is_measured(
    name: str, tmp_path: Path
) -> None:
    with pytest.raises(CommandFailed) as refused:
        check_plot(tmp_path / name)
    assert refused.value.exit_code is Exit.USAGE


def test_a_png_without_its_package_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "resvg_py", None)
    with pytest.raises(CommandFailed, match=r"hostler\[plot\]"):
        check_plot(tmp_path / "load.png")
