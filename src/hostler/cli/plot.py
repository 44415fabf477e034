"""Plots of a load test: bars for a terminal, curves as SVG; PNG is that SVG, drawn by an extra package."""

import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from xml.sax.saxutils import escape

import msgspec

from hostler.cli.exits import CommandFailed, Exit
from hostler.cli.measured import Level, Spread
from hostler.core.model import WorkerType

PNG_MISSING = "a PNG needs another package: pip install 'hostler[plot]'; an .svg needs none"


class Curve(msgspec.Struct, frozen=True, kw_only=True):
    """One value by concurrency; None where nothing was measured."""

    name: str
    values: tuple[float | None, ...]


class Panel(msgspec.Struct, frozen=True, kw_only=True):
    """Curves that share an axis. unit: "" or "s"; seconds are told in a fitting unit."""

    title: str
    unit: str = ""
    curves: tuple[Curve, ...]

    @property
    def top(self) -> float:
        return max((v for curve in self.curves for v in curve.values if v is not None), default=0.0)


def panels(levels: Sequence[Level], kind: WorkerType) -> list[Panel]:
    """What is plotted of a model of this type; a panel without any value is left out."""
    if kind is WorkerType.LLM:
        made = [
            _single("output tokens/s", [one.tokens_per_s for one in levels]),
            _single("requests/s", [one.requests_per_s for one in levels]),
            _spreads("time to first token", [one.ttft for one in levels]),
            _spreads("between two tokens", [one.inter_token for one in levels]),
        ]
    else:
        items = "texts/s" if kind is WorkerType.TEXT2VEC else "documents/s"
        made = [
            _single(items, [one.items_per_s for one in levels]),
            _single("requests/s", [one.requests_per_s for one in levels]),
            _spreads("time of a request", [one.took for one in levels]),
        ]
    return [one for one in made if one.top > 0]


def number(value: float | None, unit: str = "") -> str:
    """Three digits that matter: `1,240`, `87.3`, `4.21`; seconds: `12.3 ms`, `1.42 s`."""
    if value is None:
        return "-"
    if unit == "s":
        return f"{number(value * 1000)} ms" if value < 0.9995 else f"{number(value)} s"
    if value >= 99.95:
        return f"{value:,.0f}"
    return f"{value:.1f}" if value >= 9.995 else f"{value:.2f}"


def bars(levels: Sequence[Level], kind: WorkerType, width: int) -> Iterator[str]:
    """The lines of a plot in text: a bar for each concurrency; a lighter one from p50 to p99."""
    head = max((len(f"{one.concurrency}") for one in levels), default=1)
    for panel in panels(levels, kind):
        is_spread = len(panel.curves) > 1
        yield ""
        yield panel.title + (" (█ p50, ░ p99)" if is_spread else "")
        room = max(8, min(60, width - head - (26 if is_spread else 14)))
        for at, level in enumerate(levels):
            values = [curve.values[at] for curve in panel.curves]
            told = "  ".join(f"{number(value, panel.unit):>9}" for value in values)
            yield f"  {level.concurrency:>{head}} {_bar(values, panel.top, room)} {told}".rstrip()


def svg(levels: Sequence[Level], kind: WorkerType, title: str, about: str) -> str:
    """The whole plot as one SVG document that needs nothing else."""
    drawn = panels(levels, kind)
    rows = math.ceil(len(drawn) / 2) or 1
    height = _HEAD + rows * _HIGH + 8
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{2 * _WIDE}" height="{height}" '
        f'viewBox="0 0 {2 * _WIDE} {height}" role="img" font-size="12" '
        'font-family="DejaVu Sans, Verdana, Helvetica, Arial, sans-serif">',
        f"<title>{escape(title)}</title>",
        f'<rect width="{2 * _WIDE}" height="{height}" fill="#ffffff"/>',
        _text(20, 28, title, size=17, weight="bold"),
        _text(20, 48, about, fill=_GREY),
    ]
    marks = [str(one.concurrency) for one in levels]
    for at, panel in enumerate(drawn):
        parts.append(
            f'<g transform="translate({at % 2 * _WIDE} {_HEAD + at // 2 * _HIGH})">'
            + "".join(_draw(panel, marks))
            + "</g>"
        )
    return "\n".join([*parts, "</svg>", ""])


def check_plot(path: Path) -> None:
    """See before anything is measured that a plot can be written there.

    Raises:
        CommandFailed: another ending than .svg or .png, no such folder, or no package for a PNG.
    """
    if path.suffix.lower() not in (".svg", ".png"):
        raise CommandFailed(f"--plot {path}: its name must end in .svg or .png", Exit.USAGE)
    if not path.absolute().parent.is_dir():
        raise CommandFailed(f"--plot {path}: there is no folder {path.parent}", Exit.USAGE)
    if path.suffix.lower() == ".png":
        _png('<svg xmlns="http://www.w3.org/2000/svg" width="1" height="1"/>')


def write_plot(path: Path, drawing: str) -> None:
    """Write an SVG document as what the file's name says."""
    data = _png(drawing) if path.suffix.lower() == ".png" else drawing.encode()
    try:
        path.write_bytes(data)
    except OSError as error:
        raise CommandFailed(f"--plot {path}: cannot be written ({error.strerror})") from error


# Private

_WIDE, _HIGH, _HEAD = 440, 250, 64  # of a panel; of what stands above them
_LEFT, _RIGHT, _TOP, _BOTTOM = 66, 22, 36, 44
_GREY, _LINE = "#5f6b76", "#dde2e7"
_COLOURS = ("#1f6fb2", "#d9822b")


def _single(title: str, values: Sequence[float | None]) -> Panel:
    return Panel(title=title, curves=(Curve(name="", values=tuple(values)),))


def _spreads(title: str, spreads: Sequence[Spread | None]) -> Panel:
    half = tuple(one.p50_s if one is not None else None for one in spreads)
    most = tuple(one.p99_s if one is not None else None for one in spreads)
    return Panel(
        title=title,
        unit="s",
        curves=(Curve(name="p50", values=half), Curve(name="p99", values=most)),
    )


def _bar(values: Sequence[float | None], top: float, room: int) -> str:
    """As many blocks as the values are of the top: full ones to the first, light ones to the second."""
    if values[0] is None or top <= 0:
        return " " * room
    eighths = round(values[0] / top * room * 8)
    solid = "█" * (eighths // 8) + (_EIGHTHS[eighths % 8] if len(values) == 1 else "")
    solid = solid or ("▏" if values[0] > 0 else "")
    if len(values) > 1 and values[1] is not None:
        solid += "░" * (round(values[1] / top * room) - len(solid))
    return solid.ljust(room)


_EIGHTHS = ("", "▏", "▎", "▍", "▌", "▋", "▊", "▉")


def _draw(panel: Panel, marks: Sequence[str]) -> Iterator[str]:
    """One panel: title, axes, curves, and the name of each when there are several."""
    top = _round_up(panel.top)
    wide, high = _WIDE - _LEFT - _RIGHT, _HIGH - _TOP - _BOTTOM
    xs = [_LEFT + wide * (at + 0.5) / len(marks) for at in range(len(marks))]
    yield _text(_LEFT, 20, panel.title, weight="bold", size=13)
    for step in range(5):
        y = _TOP + high - high * step / 4
        yield f'<path d="M{_LEFT} {y:.1f}H{_LEFT + wide}" stroke="{_LINE}"/>'
        shown = _mark(top * step / 4, panel.unit)
        yield _text(_LEFT - 7, y + 4, shown, anchor="end", fill=_GREY)
    for x, mark in zip(xs, marks, strict=True):
        yield _text(x, _TOP + high + 17, mark, anchor="middle", fill=_GREY)
    yield _text(_LEFT + wide / 2, _TOP + high + 34, "requests at once", anchor="middle", fill=_GREY)
    for curve, colour, at in zip(panel.curves, _COLOURS, range(2), strict=False):
        points = [
            (x, _TOP + high - high * value / top)
            for x, value in zip(xs, curve.values, strict=True)
            if value is not None
        ]
        line = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
        yield f'<polyline points="{line}" fill="none" stroke="{colour}" stroke-width="2"/>'
        for x, y in points:
            yield f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3.2" fill="{colour}"/>'
        if curve.name:
            x = _LEFT + wide - 90 + at * 50
            yield f'<path d="M{x} 16h14" stroke="{colour}" stroke-width="3"/>'
            yield _text(x + 18, 20, curve.name, fill=_GREY)


def _mark(value: float, unit: str) -> str:
    """A number at an axis."""
    told, _, of = number(value, unit).partition(" ")
    if not value:
        return "0"
    if "." in told:
        told = told.rstrip("0").rstrip(".")
    return f"{told} {of}".strip()


def _text(
    x: float,
    y: float,
    text: str,
    *,
    anchor: str = "start",
    fill: str = "#1c2430",
    size: int = 12,
    weight: str = "normal",
) -> str:
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" fill="{fill}" font-size="{size}" '
        f'font-weight="{weight}">{escape(text)}</text>'
    )


def _round_up(value: float) -> float:
    """The next number that four steps divide well."""
    unit = 10.0 ** math.floor(math.log10(value))
    return next(
        unit * step for step in (1, 1.2, 1.6, 2, 2.4, 3.2, 4, 6, 8, 10) if unit * step >= value
    )


def _png(drawing: str) -> bytes:
    try:
        from resvg_py import svg_to_bytes
    except ImportError as error:
        raise CommandFailed(PNG_MISSING, Exit.USAGE) from error
    return bytes(svg_to_bytes(svg_string=drawing, zoom=2))
