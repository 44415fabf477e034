"""What keys do in `hostler top`: a pure function from (screen, key) to (screen, action)."""

from enum import StrEnum

import msgspec

from hostler.cli.glimpse import Glimpse, InstanceGlimpse, ModelGlimpse
from hostler.core.model import WorkerType


class Mode(StrEnum):
    LIST = "list"
    LOGS = "logs"
    HELP = "help"
    CONFIRM = "confirm"


class Deed(StrEnum):
    """What the server is asked for, or `quit`."""

    QUIT = "quit"
    RESTART = "restart"  # every instance of a model, one after the other
    REPLACE = "replace"  # one instance, by another that starts first
    DRAIN = "drain"  # and stop a model
    DRAIN_HOST = "drain_host"  # what a machine has goes elsewhere


class Action(msgspec.Struct, frozen=True, kw_only=True):
    """What is to be done. name: of a model or a machine; instance_id: of one of its; told: for people."""

    deed: Deed
    name: str = ""
    instance_id: str = ""
    worker_type: WorkerType | None = None
    told: str = ""


class Screen(msgspec.Struct, frozen=True, kw_only=True):
    """What is shown. chosen: the key of a row. back: lines of a log above its end.

    question: what `y` or `n` answers, asked: for what. message: the last line.
    """

    mode: Mode = Mode.LIST
    chosen: str = ""
    back: int = 0
    question: str = ""
    asked: Action | None = None
    message: str = ""


Row = ModelGlimpse | InstanceGlimpse
Pressed = tuple[Screen, Action | None]


def row_key(row: Row) -> str:
    """What tells a row from the others, whatever moves."""
    return (
        f"model {row.worker_key}"
        if isinstance(row, ModelGlimpse)
        else f"instance {row.instance_id}"
    )


def rows_of(shown: Glimpse) -> list[Row]:
    """The rows that can be chosen, from above."""
    return [*shown.models, *shown.instances]


def chosen_row(screen: Screen, shown: Glimpse) -> Row | None:
    """The row that is chosen; the first one when it is gone."""
    rows = rows_of(shown)
    return next((row for row in rows if row_key(row) == screen.chosen), rows[0] if rows else None)


def press(screen: Screen, key: str, shown: Glimpse, page: int) -> Pressed:
    """Return the screen after a key, and what is to be done. page: lines that a page has."""
    change = msgspec.structs.replace
    match screen.mode:
        case Mode.CONFIRM if key == "y":
            return change(screen, mode=Mode.LIST, question="", asked=None), screen.asked
        case Mode.CONFIRM if key in ("n", "q", "esc"):
            return change(
                screen, mode=Mode.LIST, question="", asked=None, message="left as it is"
            ), None
        case Mode.CONFIRM:
            return screen, None
        case Mode.HELP:
            return change(screen, mode=Mode.LIST), None
        case Mode.LOGS if key in ("esc", "q", "l", "left"):
            return change(screen, mode=Mode.LIST, back=0), None
        case Mode.LOGS:
            return change(screen, back=max(0, screen.back + _scroll(key, page))), None
    if key == "q":
        return screen, Action(deed=Deed.QUIT)
    if key == "?":
        return change(screen, mode=Mode.HELP, message=""), None
    row = chosen_row(screen, shown)
    if row is None:
        return screen, None
    if key in ("l", "enter"):
        return change(screen, mode=Mode.LOGS, chosen=row_key(row), back=0, message=""), None
    if key in ("d", "r"):
        return _ask(screen, row, key, shown), None
    return change(screen, chosen=row_key(_step(rows_of(shown), row, key, page))), None


# Private

_ENDS = {"home": -1_000_000, "g": -1_000_000, "end": 1_000_000, "G": 1_000_000}


def _steps(key: str, page: int) -> int:
    """How far down a key goes."""
    if key in _ENDS:
        return _ENDS[key]
    near = {"down": 1, "j": 1, "up": -1, "k": -1, "pagedown": page, "pageup": -page}
    return near.get(key, 0)


def _step(rows: list[Row], row: Row, key: str, page: int) -> Row:
    at = rows.index(row) + _steps(key, page)
    return rows[max(0, min(at, len(rows) - 1))]


def _scroll(key: str, page: int) -> int:
    return -_steps(key, page)


def _ask(screen: Screen, row: Row, key: str, shown: Glimpse) -> Screen:
    """Ask before anything is touched; or say why it cannot be done."""
    change = msgspec.structs.replace
    if isinstance(row, InstanceGlimpse):
        is_far = key == "d" and row.host_id
        return _ask_for_host(screen, row, shown) if is_far else _ask_for_one(screen, row)
    model = next((one for one in shown.models if one.worker_key == row.worker_key), None)
    count = sum(one.worker_key == row.worker_key for one in shown.instances)
    if model is None or (not model.wanted and not count):
        name = row.worker_key
        return change(screen, chosen=row_key(row), message=f"{name}: nothing runs")
    if key == "d":
        question = f"drain and stop {model.worker_key} ({_counted(count)})?"
        action = Action(deed=Deed.DRAIN, name=model.name, worker_type=model.worker_type,
                        told=f"{model.worker_key}: drain")  # fmt: skip
    else:
        question = f"restart {model.worker_key} ({_counted(count)}, one after the other)?"
        action = Action(deed=Deed.RESTART, name=model.name, worker_type=model.worker_type,
                        told=f"{model.worker_key}: restart")  # fmt: skip
    return change(
        screen, mode=Mode.CONFIRM, chosen=row_key(row), question=question, asked=action, message=""
    )


def _ask_for_host(screen: Screen, row: InstanceGlimpse, shown: Glimpse) -> Screen:
    count = sum(one.host_id == row.host_id for one in shown.instances)
    return msgspec.structs.replace(
        screen,
        mode=Mode.CONFIRM,
        chosen=row_key(row),
        question=f"drain the machine {row.host} ({_counted(count)} move elsewhere)?",
        asked=Action(deed=Deed.DRAIN_HOST, name=row.host_id, told=f"{row.host}: drain"),
        message="",
    )


def _ask_for_one(screen: Screen, row: InstanceGlimpse) -> Screen:
    """It may not be possible: the server says so, and why."""
    return msgspec.structs.replace(
        screen,
        mode=Mode.CONFIRM,
        chosen=row_key(row),
        question=f"drain {row.instance_id} of {row.worker_key}, and start another in its place?",
        asked=Action(
            deed=Deed.REPLACE,
            name=row.model_name,
            instance_id=row.instance_id,
            worker_type=row.worker_type,
            told=f"{row.instance_id}: restart",
        ),
        message="",
    )


def _counted(count: int) -> str:
    return "1 instance" if count == 1 else f"{count} instances"
