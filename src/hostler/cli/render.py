"""What people see: tables, sizes and times. Colour only on a terminal, and never with NO_COLOR."""

import sys
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import msgspec

if TYPE_CHECKING:
    from rich.console import Console
    from rich.text import Text

_WIDE = 10_000  # columns, where nobody looks: nothing is cut or wrapped in a pipe
STYLES = {
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


def out() -> "Console":
    """Where answers go."""
    from rich.console import Console

    return Console(
        file=sys.stdout,
        highlight=False,
        soft_wrap=True,
        width=None if sys.stdout.isatty() else _WIDE,
    )


def err() -> "Console":
    """Where progress and errors go, so that a pipe gets the answer alone."""
    from rich.console import Console

    return Console(
        file=sys.stderr,
        highlight=False,
        soft_wrap=True,
        width=None if sys.stderr.isatty() else _WIDE,
    )


def print_notes(notes: Iterable[str]) -> None:
    """Tell on stderr what is no error and is probably not what was meant."""
    for note in notes:
        err().print(f"hostler: {clean(note)}", markup=False)


def print_json(value: Any) -> None:
    """Print one value as JSON; types of ours become their JSON form."""
    data = msgspec.json.format(msgspec.json.encode(value), indent=2)
    sys.stdout.write(data.decode() + "\n")


def print_table(columns: Sequence[str], rows: Iterable[Sequence[object]], empty: str) -> None:
    """Print rows under their columns, or the sentence `empty` when there are none.

    Two spaces stand between columns, and nothing is cut: a narrow terminal wraps the lines.
    """
    made = [[_text(value) for value in row] for row in rows]
    console = out()
    if not made:
        console.print(empty, markup=False)
        return
    widths = [max(map(len, cells)) for cells in zip(columns, *made, strict=True)]
    console.print(_line(columns, widths, "bold"))
    for row in made:
        console.print(_line(row, widths))


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


def _line(cells: Sequence[str], widths: Sequence[int], style: str = "") -> "Text":
    from rich.text import Text

    line = Text(style=style)
    for cell, width in zip(cells, widths, strict=True):
        line.append(cell, style=STYLES.get(cell, ""))
        line.append(" " * (width - len(cell) + 2))
    line.rstrip()
    return line
