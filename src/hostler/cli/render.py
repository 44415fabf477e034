"""What people see: tables, sizes and times. Colour only on a terminal, and never with NO_COLOR."""

import sys
from collections.abc import Iterable, Sequence
from typing import Any

import msgspec
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

_WIDE = 10_000  # columns, where nobody looks: nothing is cut or wrapped in a pipe
_STYLES = {
    "ready": "green",
    "ok": "green",
    "failed": "red",
    "fail": "red",
    "suspect": "yellow",
    "warn": "yellow",
    "starting": "cyan",
    "fetching": "cyan",
    "pending": "cyan",
    "draining": "magenta",
    "stopped": "dim",
}


def out() -> Console:
    """Where answers go."""
    return Console(
        file=sys.stdout,
        highlight=False,
        soft_wrap=True,
        width=None if sys.stdout.isatty() else _WIDE,
    )


def err() -> Console:
    """Where progress and errors go, so that a pipe gets the answer alone."""
    return Console(
        file=sys.stderr,
        highlight=False,
        soft_wrap=True,
        width=None if sys.stderr.isatty() else _WIDE,
    )


def print_json(value: Any) -> None:
    """Print one value as JSON; types of ours become their JSON form."""
    data = msgspec.json.format(msgspec.json.encode(value), indent=2)
    sys.stdout.write(data.decode() + "\n")


def print_table(columns: Sequence[str], rows: Iterable[Sequence[object]], empty: str) -> None:
    """Print rows under their columns, or the sentence `empty` when there are none.

    On a terminal a table that fits; elsewhere plain lines, whole, with two spaces between columns.
    """
    made = [[_text(value) for value in row] for row in rows]
    if not made:
        out().print(empty, markup=False)
    elif sys.stdout.isatty():
        _print_rich(columns, made)
    else:
        lines = [list(columns), *made]
        widths = [max(map(len, cells)) for cells in zip(*lines, strict=True)]
        for line in lines:
            cells = (cell.ljust(width) for cell, width in zip(line, widths, strict=True))
            print("  ".join(cells).rstrip())


def size(count: float | None) -> str:
    """Bytes for people: `93 MB`."""
    if count is None:
        return "-"
    for unit in ("B", "kB", "MB"):
        if count < 1000:
            return f"{count:.0f} {unit}"
        count /= 1000
    return f"{count:.1f} GB"


def duration(seconds: float | None) -> str:
    """Seconds for people: `41 s`, `3 m 20 s`, `2 h 5 m`, `4 d 3 h`."""
    if seconds is None:
        return "-"
    if seconds < 10:
        return f"{seconds:.1f} s"
    whole = int(seconds)
    if whole < 60:
        return f"{whole} s"
    for big, big_s, small, small_s in (
        ("m", 60, "s", 1),
        ("h", 3600, "m", 60),
        ("d", 86400, "h", 3600),
    ):
        if whole < big_s * 60 or big == "d":
            return f"{whole // big_s} {big} {whole % big_s // small_s} {small}"
    return "-"


def clean(text: str) -> str:
    """Text from a model or a log without control characters: a terminal obeys those."""
    return "".join(c if c in "\n\t" or c.isprintable() or _is_joiner(c) else "�" for c in text)


# Private


def _is_joiner(character: str) -> bool:
    """Zero-width joiners belong to words and emoji; a space of another kind is still a space."""
    return character in "\u200c\u200d" or (
        character.isspace() and character not in "\r\v\f\x1c\x1d\x1e\x1f\x85"
    )


def _text(value: object) -> str:
    """One line for one value."""
    return "-" if value is None or value == "" else " ".join(clean(str(value)).splitlines())


def _print_rich(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    table = Table(box=SIMPLE_HEAD, pad_edge=False, header_style="bold", show_edge=False)
    for column in columns:
        table.add_column(column, overflow="fold")
    for row in rows:
        table.add_row(*(Text(cell, style=_STYLES.get(cell, "")) for cell in row))
    out().print(table, soft_wrap=False)
