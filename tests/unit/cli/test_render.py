"""Sizes, times and text for people."""

import pytest

from hostler.cli.render import clean, duration, print_table, size


@pytest.mark.parametrize(
    ("count", "text"),
    [(None, "-"), (0, "0 B"), (999, "999 B"), (93_000_000, "93 MB"), (1_500_000_000, "1.5 GB")],
)
def test_a_size_is_short(count: float | None, text: str) -> None:
    assert size(count) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (None, "-"),
        (0.04, "0.0 s"),
        (41.3, "41 s"),
        (200, "3 m 20 s"),
        (3599, "59 m 59 s"),
        (7500, "2 h 5 m"),
        (360_000, "4 d 4 h"),
    ],
)
def test_a_duration_is_short(seconds: float | None, text: str) -> None:
    assert duration(seconds) == text


def test_what_a_terminal_would_obey_is_taken_out() -> None:
    assert clean("a\x1b[2Jb\x07c\rd") == "a\ufffd[2Jb\ufffdc\ufffdd"
    assert clean("line\n\tñ 漢字 👩\u200d🔬") == "line\n\tñ 漢字 👩\u200d🔬"


def test_a_table_in_a_pipe_is_neither_cut_nor_coloured(capsys: pytest.CaptureFixture[str]) -> None:
    long = "word " * 60
    print_table(("NAME", "TEXT"), [("ready", long), (None, "[bold]x[/bold]")], empty="none")
    printed = capsys.readouterr().out
    assert long.strip() in printed
    assert "[bold]x[/bold]" in printed
    assert "\x1b" not in printed


def test_an_empty_table_is_a_sentence(capsys: pytest.CaptureFixture[str]) -> None:
    print_table(("NAME",), [], empty="nothing is there")
    assert capsys.readouterr().out == "nothing is there\n"
