"""A conversation on a terminal: what is typed, over several lines too, its history, and words for itself."""

import readline
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

import platformdirs

from hostler.cli.exits import CommandFailed, Exit

HISTORY_LINES = 1000
HELP = (
    "Type a line and Enter. A line that ends in \\ goes on in the next; so does all between two lines of "
    '""". Ctrl-C stops an answer, Ctrl-D ends.\n'
    "/model [NAME]   talk with another model, or say with which; what was said stays\n"
    "/system [TEXT]  another system prompt; without a text: the model's own\n"
    "/reset          forget what was said     /exit  end     /help  this"
)
_WORDS = ("/model", "/system", "/reset", "/exit", "/quit", "/help")
_BLOCK = '"""'


class Talk(Protocol):
    """A conversation with a model."""

    model: str

    def use(self, model: str) -> None: ...
    def instruct(self, system: str | None) -> None: ...
    def forget(self) -> None: ...
    def models(self) -> tuple[str, ...]: ...


def read_message(read: Callable[[str], str]) -> str:
    """Return what somebody types, of one line or several. read: asks for a line with this in front of it.

    Raises:
        EOFError, KeyboardInterrupt: they want no more.
    """
    line = read("> ")
    if line.strip() == _BLOCK:
        lines: list[str] = []
        while (line := read(". ")).strip() != _BLOCK:
            lines.append(line)
        return "\n".join(lines)
    lines = []
    while line.endswith("\\"):
        lines.append(line[:-1])
        line = read(". ")
    return "\n".join([*lines, line])


def obey(talk: Talk, line: str) -> str | None:
    """Do what a line that begins with / says, and return what to say of it; None: they want to end."""
    word, _, rest = line.strip().partition(" ")
    rest = rest.strip()
    match word:
        case "/exit" | "/quit":
            return None
        case "/help":
            return HELP
        case "/reset":
            talk.forget()
            return "forgotten"
        case "/system":
            talk.instruct(rest or None)
            return "the system prompt is yours" if rest else "the system prompt is the model's own"
        case "/model" if not rest:
            return f"this is {talk.model}; there are: {', '.join(talk.models())}"
        case "/model":
            talk.use(rest)
            return f"now {talk.model}"
    return f"there is no {word[:40]}; /help says what there is"


def converse(talk: Talk, answer: Callable[[str], object]) -> int:
    """Talk until somebody wants to end. answer: asks the model and writes what it says."""
    sys.stderr.write(f"{talk.model}. /help says how, Ctrl-D ends.\n")
    with _remembering(_history_file(), lambda: talk.models()):
        while True:
            try:
                text = read_message(input)
            except EOFError:
                sys.stderr.write("\n")
                return Exit.OK
            except KeyboardInterrupt:  # what was typed is dropped, as in a shell
                sys.stderr.write("\n")
                continue
            if not text.strip():
                continue
            try:
                if text.startswith("/") and "\n" not in text:
                    told = obey(talk, text)
                    if told is None:
                        return Exit.OK
                    sys.stderr.write(told + "\n")
                else:
                    answer(text)
            except CommandFailed as failure:
                sys.stderr.write(f"hostler: {failure.message}\n")


# Private


def _history_file() -> Path:
    return Path(platformdirs.user_state_dir("hostler", appauthor=False), "chat_history")


@contextmanager
def _remembering(file: Path, models: Callable[[], tuple[str, ...]]) -> Iterator[None]:
    """Lines typed before are there by arrow-up; the file is this person's alone. Tab completes words of /."""

    def complete(text: str, number: int) -> str | None:
        begun = readline.get_line_buffer().lstrip()
        words = models() if begun.startswith("/model ") else _WORDS if begun.startswith("/") else ()
        return [*(word for word in words if word.startswith(text)), None][number]

    try:
        file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        file.touch(mode=0o600)
        readline.read_history_file(file)
    except OSError as error:
        sys.stderr.write(f"what you type is not remembered: {file}: {error.strerror}\n")
    readline.set_history_length(HISTORY_LINES)
    readline.set_completer_delims(" ")
    readline.set_completer(complete)
    readline.parse_and_bind("tab: complete")
    try:
        yield
    finally:
        try:
            readline.write_history_file(file)
        except OSError as error:
            sys.stderr.write(f"what you typed is not remembered: {file}: {error.strerror}\n")
