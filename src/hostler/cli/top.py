"""`hostler top`: models and instances as they are, each second; and a few keys to steer them."""

import queue
import signal
import sys
import time
from threading import Event, Thread
from typing import Annotated

import msgspec
from cyclopts import Parameter

from hostler.cli.api import Api, HostsApi
from hostler.cli.client import Client
from hostler.cli.exits import CommandFailed, Exit
from hostler.cli.glimpse import Glimpse, InstanceGlimpse, glimpse
from hostler.cli.render import out
from hostler.cli.target import NO_OPTIONS, Common, Target, find_target
from hostler.cli.terminal import Ended, Terminal, is_terminal
from hostler.cli.top_frame import Logs, frame, whole
from hostler.cli.top_keys import Action, Deed, Mode, Row, Screen, chosen_row, press
from hostler.cli.watch import Watch
from hostler.core.worker import WorkerApplyRequest, WorkerApplyType


def top(
    *,
    once: Annotated[bool, Parameter(negative=())] = False,
    common: Common = NO_OPTIONS,
) -> int:
    """Models and instances, live: who is busy, who waits, how quick they are.

    Keys choose a row, show its log, restart a model or an instance, drain a model or a machine; `?` lists
    them.
    Without a terminal it is as with --once. With --json: one object a second.

    Example: `hostler top`

    Parameters
    ----------
    once: bool
        Show everything once, with rates of two seconds, and end.
    """
    target = find_target(common)
    is_live = is_terminal() and not common.json and not once
    with Client(target, _ANSWER_S) as client:
        looker = Looker(client)
        if not is_live:
            return _print(looker, is_endless=common.json and not once, as_json=common.json)
        shown = looker.look()
        try:
            with Terminal() as terminal:
                _Live(target, looker, terminal).run(shown)
        except Ended as ended:
            signal.signal(ended.number, signal.SIG_DFL)
            signal.raise_signal(ended.number)  # the terminal is as it was; now end as we were told
    return Exit.OK


class Looker:
    """Asks one server how it is, again and again."""

    def __init__(self, client: Client) -> None:
        self._api = Api(client)
        self._url = client.target.url
        self._watch = Watch()

    def look(self) -> Glimpse:
        """Ask once.

        Raises:
            CommandFailed: it does not answer, or not this key.
        """
        models, instances = self._api.models(), self._api.instances()
        requests = self._api.requests(_REQUESTS, self._watch.since)
        self._watch.look(requests, time.monotonic())
        return glimpse(self._url, time.time(), models, instances, self._watch, requests.silent)

    def logs(self, row: Row) -> Logs:
        """The last lines of a row's log, or why there are none."""
        if isinstance(row, InstanceGlimpse):
            title = f"log of {row.instance_id}, {row.worker_key}"
        else:
            title = f"log of {row.worker_key}"
        try:
            if isinstance(row, InstanceGlimpse):
                found = self._api.instance_logs(row.instance_id, _LOG_LINES)
            else:
                found = self._api.logs(row.name, row.worker_type, _LOG_LINES)
        except CommandFailed as failure:
            return Logs(title, [f"no log: {failure.message}"])
        lines: list[str] = []
        for log in found.logs:
            if len(found.logs) > 1:
                lines.append(f"==> {log.instance_id} <==")
            lines += [*log.lines, *([f"no log: {log.error}"] if log.error else [])]
        return Logs(title, lines)


def carry_out(client: Client, action: Action) -> str:
    """Do what was confirmed; return what came of it.

    Raises:
        CommandFailed: the server refused, or does not answer.
    """
    if action.deed is Deed.DRAIN_HOST:
        HostsApi(client).drain_host(action.name, is_draining=True)
        return f"{action.told} has begun; `hostler host undrain` ends it"
    if action.deed is Deed.DRAIN:
        Api(client).stop_model(action.name, action.worker_type, delete=False)
        return f"{action.told} has begun; `hostler model start {action.name}` brings it back"
    order = WorkerApplyRequest(
        model=action.name,
        apply_type=WorkerApplyType.RESTART,
        worker_type=action.worker_type,
        instance_id=action.instance_id or None,
        timeout_s=_ORDER_S,
    )
    done = Api(client).apply(order)
    if not done.success:
        return f"{action.told} failed: {done.message or 'not every instance changed'}"
    return f"{action.told} done in {done.took_s:.1f} s"


# Private

_EVERY_S = 1.0
_ONCE_S = 2.0  # that the rates of a single frame are of
_ANSWER_S = 10.0
_REQUESTS = 5000  # told in one look at most: what a few gateways remember
_LOG_LINES = 500
_ORDER_S = 600.0


class _Live:
    """The screen of one server, until `q`. One thread looks, one carries out each order; this one paints."""

    def __init__(self, target: Target, looker: Looker, terminal: Terminal) -> None:
        self._target = target
        self._looker = looker
        self._terminal = terminal
        self._news: queue.Queue[Glimpse | Logs | BaseException | str] = queue.Queue()
        self._soon = Event()
        self._log_row: Row | None = None  # whose log is shown; the looking thread reads it
        self._logs: Logs | None = None
        self._screen = Screen()
        self._trouble = ""

    def run(self, shown: Glimpse) -> None:
        """Paint and obey keys until `q` or the end of the terminal's input."""
        Thread(target=self._look_on, name="look", daemon=True).start()
        while True:
            shown = self._take_news(shown)
            width, height = self._terminal.size
            self._terminal.paint(frame(shown, self._told(), width, height, self._logs), width)
            try:
                keys = self._terminal.keys(_EVERY_S)
            except EOFError:
                return
            for key in keys:
                before = self._screen.mode
                message = msgspec.structs.replace(self._screen, message="")
                self._screen, action = press(message, key, shown, max(1, height - 4))
                if action is not None and action.deed is Deed.QUIT:
                    return
                if action is not None:
                    self._order(action)
                self._follow_mode(before, shown)

    # Private

    def _told(self) -> Screen:
        """The screen, with what is wrong now in its last line unless there is something newer to say."""
        if self._screen.message or not self._trouble:
            return self._screen
        return msgspec.structs.replace(self._screen, message=self._trouble)

    def _follow_mode(self, before: Mode, shown: Glimpse) -> None:
        """Begin or end to read a log, as the screen says."""
        mode = self._screen.mode
        if mode is Mode.LOGS and before is not Mode.LOGS:
            self._logs, self._log_row = None, chosen_row(self._screen, shown)
            self._soon.set()
        elif mode is not Mode.LOGS:
            self._logs = self._log_row = None
        if self._logs is not None and self._screen.back > len(self._logs.lines):
            self._screen = msgspec.structs.replace(self._screen, back=len(self._logs.lines))

    def _take_news(self, shown: Glimpse) -> Glimpse:
        while True:
            try:
                news = self._news.get_nowait()
            except queue.Empty:
                return shown
            match news:
                case Glimpse():
                    shown, self._trouble = news, ""
                case Logs():
                    self._logs = news if self._screen.mode is Mode.LOGS else None
                case str():
                    self._screen = msgspec.structs.replace(self._screen, message=news)
                case CommandFailed():
                    at = time.strftime("%H:%M:%S", time.localtime(shown.at_s))
                    self._trouble = f"as of {at}: {news.message}"
                case _:
                    raise news

    def _tell(self, news: Glimpse | Logs | BaseException | str) -> None:
        self._news.put(news)
        self._terminal.wake()

    def _look_on(self) -> None:
        """Look each second, at once after a key that needs it. Ends with the process."""
        took_s = 0.0
        while True:
            self._soon.wait(max(0.0, _EVERY_S - took_s))
            self._soon.clear()
            began_s = time.monotonic()
            try:
                if (row := self._log_row) is not None:
                    self._tell(self._looker.logs(row))
                self._tell(self._looker.look())
            except Exception as error:  # boundary: of this thread; the other one shows or raises it
                self._tell(error)
                if not isinstance(error, CommandFailed):
                    return
            took_s = min(time.monotonic() - began_s, _EVERY_S / 2)

    def _order(self, action: Action) -> None:
        """Give an order to the server; tell how it ended."""
        self._screen = msgspec.structs.replace(self._screen, message=f"{action.told} ordered")
        carry_out = Thread(target=self._carry_out, args=(action,), name="order", daemon=True)
        carry_out.start()

    def _carry_out(self, action: Action) -> None:
        try:
            with Client(self._target) as client:
                self._tell(carry_out(client, action))
        except CommandFailed as failure:
            self._tell(f"{action.told} failed: {failure.message}")
        except Exception as error:  # boundary: as above
            self._tell(error)
        self._soon.set()


def _print(looker: Looker, *, is_endless: bool, as_json: bool) -> int:
    """Print frames for a pipe or a program."""
    looker.look()  # what was before is not counted
    time.sleep(_EVERY_S if is_endless else _ONCE_S)
    while True:
        began_s = time.monotonic()
        shown = looker.look()
        if as_json:
            sys.stdout.write(msgspec.json.encode(shown).decode() + "\n")
        else:
            console = out()
            for line in whole(shown, console.width):
                console.print(line)
        sys.stdout.flush()
        if not is_endless:
            return Exit.OK
        time.sleep(max(0.0, _EVERY_S - (time.monotonic() - began_s)))
