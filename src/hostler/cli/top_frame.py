"""Frames of `hostler top`: lines for a terminal of a size, from what is known and what is chosen. Pure."""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from rich.cells import cell_len, set_cell_size
from rich.text import Text

from hostler.cli.glimpse import Glimpse, InstanceGlimpse, ModelGlimpse
from hostler.cli.plot import number
from hostler.cli.render import STYLES, clean, duration, size
from hostler.cli.top_keys import Mode, Row, Screen, chosen_row

KEYS = "q quit  ? help  ↑↓ choose  l logs  r restart  d drain"
LOG_KEYS = "Esc back  ↑↓ PgUp PgDn scroll"
HELP = """\
↑ ↓ j k        choose a row; PgUp, PgDn, Home, End
l, Enter       the last lines of its log; Esc leads back
r              on a model: restart it, a new process for each instance, in turn
               on an instance: a new process in its place; it finishes what it has
d              on a model: drain and stop it; `hostler model start` starts it
               on an instance of another machine: drain that machine
               on an instance of this one: the same as r
q              quit
r and d ask first: y does it, n does not.

REQ/S, TOKENS/S, TTFT: of the last 10 s. A stream under way counts its pieces
as tokens. TTFT: from a request to the first piece of its stream.
QUEUE: requests that wait for a slot. BUSY of an instance: its requests and
its slots, as it last reported. BEAT: since it last did."""


@dataclass(frozen=True)
class Logs:
    """What is shown of a log."""

    title: str
    lines: Sequence[str]


def frame(
    shown: Glimpse, screen: Screen, width: int, height: int, logs: Logs | None = None
) -> list[Text]:
    """Return at most `height` lines of at most `width` cells."""
    if screen.mode is Mode.HELP:
        body = [Text(line) for line in HELP.splitlines()]
        foot = Text("any key leads back", style="dim")
    elif screen.mode is Mode.LOGS:
        body = _log_lines(logs, screen, max(0, height - 3))
        foot = Text(LOG_KEYS, style="dim")
    else:
        body, at = _body(shown, chosen_row(screen, shown), width)
        body = _part(body, at, height - 3)
        foot = Text(KEYS, style="dim")
    if screen.mode is Mode.CONFIRM:
        foot = Text(f"{clean(screen.question)} y/n", style="bold yellow")
    elif screen.message:
        foot = Text(clean(screen.message).replace("\n", " "), style="bold")
    lines = [_head(shown, width), Text(), *body]
    lines = [*lines[: max(0, height - 1)], *[Text()] * (height - 1 - len(lines)), foot][:height]
    return [_cut(line, width) for line in lines]


def whole(shown: Glimpse, width: int) -> list[Text]:
    """Return all there is, however many lines: for `--once`."""
    body, _ = _body(shown, None, width)
    return [_head(shown, width), Text(), *body]


# Private

_MODEL_COLUMNS = (
    "MODEL",
    "READY",
    "STATE",
    "BUSY",
    "QUEUE",
    "REQ/S",
    "TOKENS/S",
    "TTFT P50",
    "P99",
)
_MODEL_SPARE = (
    "P99",
    "STATE",
    "BUSY",
    "TTFT P50",
    "QUEUE",
    "TOKENS/S",
    "REQ/S",
)  # the first goes first
_INSTANCE_COLUMNS = ("INSTANCE", "MODEL", "HOST", "STATE", "BUSY", "MEMORY", "BEAT", "REASON")
_INSTANCE_SPARE = ("REASON", "HOST", "BEAT", "MEMORY", "MODEL", "BUSY")
_LEFT = {"MODEL", "INSTANCE", "HOST", "STATE", "REASON"}
_SHORT, _NARROWEST = 17, 6  # the first column: before others go, and after
Cells = Mapping[str, str]


def _head(shown: Glimpse, width: int) -> Text:
    busy = sum(one.pace.in_flight for one in shown.models)
    waiting = sum(one.pace.waiting for one in shown.models)
    at, count = time.strftime("%H:%M:%S", time.localtime(shown.at_s)), len(shown.models)
    full = (
        f"{at}  {count} {'model' if count == 1 else 'models'}  {busy} under way  {waiting} waiting"
    )
    line = Text(f"hostler {shown.url}", style="bold")
    room = width - line.cell_len - cell_len(full)
    return line.append(f"  {full}" if room >= 2 else "", style="not bold")


def _body(shown: Glimpse, chosen: Row | None, width: int) -> tuple[list[Text], int]:
    """The two tables and the notes, and which line is chosen."""
    lines: list[Text] = [Text(clean(note), style="yellow") for note in shown.notes]
    at = 0
    tables: list[tuple[Sequence[Row], Sequence[str], Sequence[str], Callable[[Row], Cells]]] = [
        (shown.models, _MODEL_COLUMNS, _MODEL_SPARE, _cells),
        (shown.instances, _INSTANCE_COLUMNS, _INSTANCE_SPARE, _cells),
    ]
    for rows, columns, spare, cells in tables:
        if lines and rows:
            lines.append(Text())
        made = [cells(row) for row in rows]
        for number_, line in enumerate(_table(columns, spare, made, width) if rows else ()):
            if number_ and rows[number_ - 1] is chosen:
                at = len(lines)
                line.pad_right(max(0, width - line.cell_len))
                line.stylize("reverse")
            lines.append(line)
    if not shown.models and not shown.instances:
        lines.append(Text("no models were asked for; `hostler model start NAME` asks for one"))
    return lines, at


def _cells(row: Row) -> Cells:
    if isinstance(row, InstanceGlimpse):
        return _instance_cells(row)
    return _model_cells(row)


def _model_cells(one: ModelGlimpse) -> Cells:
    ttft = one.pace.ttft
    return {
        "MODEL": one.name,
        "READY": f"{one.ready}/{one.wanted}",
        "STATE": one.state,
        "BUSY": str(one.pace.in_flight),
        "QUEUE": str(one.pace.waiting),
        "REQ/S": number(one.pace.requests_per_s),
        "TOKENS/S": number(one.pace.tokens_per_s),
        "TTFT P50": number(ttft.p50_s, "s") if ttft is not None else "-",
        "P99": number(ttft.p99_s, "s") if ttft is not None else "-",
    }


def _instance_cells(one: InstanceGlimpse) -> Cells:
    return {
        "INSTANCE": one.instance_id,
        "MODEL": one.model_name,
        "HOST": one.host or "-",
        "STATE": one.state.value,
        "BUSY": f"{one.in_flight}/{one.slots}",
        "MEMORY": size(one.memory_bytes),
        "BEAT": duration(one.beat_s),
        "REASON": one.reason,
    }


def _table(
    columns: Sequence[str], spare: Sequence[str], rows: Sequence[Cells], width: int
) -> Iterator[Text]:
    """Its lines. What does not fit: the first column is cut a little, the spare ones go, it is cut more."""
    made = [{name: " ".join(clean(text).split()) for name, text in row.items()} for row in rows]
    columns = [name for name in columns if name != "REASON" or any(row[name] for row in made)]
    widths = {name: max(cell_len(name), *(cell_len(row[name]) for row in made)) for name in columns}
    _shrink(widths, columns[0], width, _SHORT)
    for name in spare:
        if sum(widths.values()) + 2 * (len(widths) - 1) <= width:
            break
        widths.pop(name, None)
    _shrink(widths, columns[0], width, _NARROWEST)
    yield _line({name: name for name in widths}, widths, "bold")
    for row in made:
        yield _line(row, widths)


def _shrink(widths: dict[str, int], first: str, width: int, least: int) -> None:
    """Make the first column narrower until the table fits, but not below `least`."""
    over = sum(widths.values()) + 2 * (len(widths) - 1) - width
    widths[first] = max(min(least, widths[first]), widths[first] - max(0, over))


def _line(row: Cells, widths: Mapping[str, int], style: str = "") -> Text:
    line = Text(style=style)
    for at, (name, width) in enumerate(widths.items()):
        text = row[name]
        if cell_len(text) > width:
            text = set_cell_size(text, width - 1) + "…"
        space = " " * (width - cell_len(text))
        line.append("  " if at else "")
        line.append("" if name in _LEFT else space)
        line.append(text, style=STYLES.get(text, ""))
        line.append(space if name in _LEFT else "")
    return line


def _part(lines: list[Text], at: int, room: int) -> list[Text]:
    """So many lines that the chosen one is among them."""
    first = max(0, min(at - room // 2, len(lines) - room))
    return lines[first : first + max(0, room)]


def _log_lines(logs: Logs | None, screen: Screen, room: int) -> list[Text]:
    if logs is None:
        return [Text("…")]
    lines = [Text(clean(line).expandtabs(4)) for line in logs.lines] or [Text("no lines yet")]
    back = min(screen.back, max(0, len(lines) - room + 1))
    last = len(lines) - back
    title = Text(
        clean(logs.title) + (f" ({back} lines above its end)" if back else ""), style="bold"
    )
    return [title, *lines[max(0, last - room + 1) : last]]


def _cut(line: Text, width: int) -> Text:
    """The line in one row of the terminal."""
    line = line.copy()
    line.truncate(width)
    return line
