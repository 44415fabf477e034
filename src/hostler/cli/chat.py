"""`hostler chat`: one question, or a conversation in the terminal. Answers stream as they come."""

import sys
from collections.abc import Generator
from contextlib import closing
from functools import partial
from typing import Annotated, Any

import msgspec
from cyclopts import Parameter

from hostler.cli.client import Client, error_message
from hostler.cli.exits import CommandFailed, Exit
from hostler.cli.render import clean, print_json
from hostler.cli.serving import pick_model, served_models
from hostler.cli.talking import converse
from hostler.cli.target import NO_OPTIONS, Common, find_target
from hostler.core.model import WorkerType

_PATH = "/v1/chat/completions"
_STDIN_CHARACTERS = 4_000_000  # more than any prompt; a pipe may be endless


class Delta(msgspec.Struct, frozen=True):
    content: str | None = None
    reasoning_content: str | None = None


class Choice(msgspec.Struct, frozen=True):
    delta: Delta = Delta()
    finish_reason: str | None = None


class Chunk(msgspec.Struct, frozen=True):
    """One event of a chat stream: the fields that a terminal shows."""

    choices: tuple[Choice, ...] = ()


def chat(
    model: str | None = None,
    prompt: str | None = None,
    /,
    *,
    use: Annotated[str | None, Parameter(name=("--model", "-m"))] = None,
    system: str | None = None,
    temperature: float = 0.2,
    max_tokens: int = 512,
    common: Common = NO_OPTIONS,
) -> int:
    """Talk with a model.

    Without a prompt: a conversation on a terminal; elsewhere the prompt is read from stdin. With --json: the
    whole answer as the API gives it, at its end.

    Example: `hostler chat smollm2-135m-instruct "What does a hostler do?"`

    Parameters
    ----------
    model: str
        The model. Left out: the only chat model. A text with spaces here is the prompt.
    prompt: str
        What to say.
    use: str
        The model, when the first word shall be the prompt.
    system: str
        The system prompt. Left out: the one of the model's own chat template.
    temperature: float
        0 is the most probable answer. Small models need it low.
    max_tokens: int
        The longest answer, in tokens.
    """
    with Client(find_target(common)) as client:
        model, prompt = split_names(model, prompt, use)
        name = _pick(client, model, is_prompt_given=prompt is not None)
        talk = _Talk(client, name, system, {"temperature": temperature, "max_tokens": max_tokens})
        if prompt is None and sys.stdin.isatty() and not common.json:
            return converse(talk, partial(_print_answer, talk))
        if prompt is None:
            prompt = sys.stdin.read(_STDIN_CHARACTERS)
        if not prompt.strip():
            raise CommandFailed("the prompt is empty", Exit.USAGE)
        if common.json:
            print_json(client.post(_PATH, talk.request(prompt, stream=False), msgspec.Raw))
            return Exit.OK
        return _print_answer(talk, prompt)


def split_names(
    model: str | None, prompt: str | None, use: str | None
) -> tuple[str | None, str | None]:
    """Tell model and prompt apart: a first word with spaces in it is a prompt."""
    if use is None and (prompt is not None or model is None or not any(map(str.isspace, model))):
        return model, prompt
    words = " ".join(part for part in (model, prompt) if part is not None)
    return use, words or None


# Private


def _pick(client: Client, model: str | None, *, is_prompt_given: bool) -> str:
    try:
        return pick_model(served_models(client), model, WorkerType.LLM)
    except CommandFailed as failure:
        if model is None or is_prompt_given or failure.exit_code is not Exit.NOT_FOUND:
            raise
        hint = f'to say it to a model: hostler chat -m MODEL "{model}"'
        raise CommandFailed(f"{failure.message}; {hint}", failure.exit_code) from failure


class _Talk:
    """A conversation with one model, and its settings."""

    def __init__(
        self, client: Client, model: str, system: str | None, settings: dict[str, Any]
    ) -> None:
        self._client = client
        self._settings = {"model": model, **settings}
        self.instruct(system)
        self.model = model
        self.history: list[dict[str, str]] = []

    def use(self, model: str) -> None:
        """Talk with another model from now on; it is told what was said."""
        self.model = pick_model(served_models(self._client), model, WorkerType.LLM)
        self._settings["model"] = self.model

    def instruct(self, system: str | None) -> None:
        """Give it another system prompt; None: the model's own."""
        self._first = [{"role": "system", "content": system}] if system is not None else []

    def forget(self) -> None:
        self.history.clear()

    def models(self) -> tuple[str, ...]:
        """The chat models that run."""
        served = served_models(self._client)
        return tuple(one.id for one in served if one.worker_type is WorkerType.LLM and one.wanted)

    def request(self, prompt: str, *, stream: bool) -> dict[str, Any]:
        messages = [*self._first, *self.history, {"role": "user", "content": prompt}]
        return {**self._settings, "messages": messages, "stream": stream}

    def ask(self, prompt: str) -> Generator[str, None, None]:
        """Yield the answer's pieces; it is remembered as far as it came."""
        pieces: list[str] = []
        try:
            with self._client.events(
                "POST", _PATH, body=self.request(prompt, stream=True)
            ) as events:
                for event in events:
                    if event.data == b"[DONE]":
                        break
                    for choice in _chunk(event.data).choices:
                        if choice.delta.content:
                            pieces.append(choice.delta.content)
                            yield choice.delta.content
                else:
                    raise CommandFailed("the answer ended before it was complete")
        finally:
            if pieces:
                self.history += [
                    {"role": "user", "content": prompt},
                    {"role": "assistant", "content": "".join(pieces)},
                ]


def _chunk(data: bytes) -> Chunk:
    if (message := error_message(data)) is not None:
        raise CommandFailed(message)
    try:
        return msgspec.json.decode(data, type=Chunk)
    except msgspec.DecodeError as error:
        raise CommandFailed(f"the stream holds something else than an answer ({error})") from error


def _print_answer(talk: _Talk, prompt: str) -> int:
    """Write the answer as it comes; Ctrl-C ends it and the connection with it."""
    with closing(talk.ask(prompt)) as pieces:
        try:
            for piece in pieces:
                sys.stdout.write(clean(piece))
                sys.stdout.flush()
        except KeyboardInterrupt:
            sys.stdout.write("\n")
            return Exit.INTERRUPTED
        except CommandFailed:
            sys.stdout.write("\n")
            raise
    sys.stdout.write("\n")
    return Exit.OK
