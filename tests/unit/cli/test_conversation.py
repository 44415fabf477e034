"""What somebody types in a conversation, and the words for the conversation itself."""

from collections.abc import Callable

import pytest

from hostler.cli.exits import CommandFailed
from hostler.cli.talking import HELP, obey, read_message


class PaperTalk:
    def __init__(self) -> None:
        self.model = "small"
        self.system: str | None = "be brief"
        self.forgot = 0

    def use(self, model: str) -> None:
        if model not in self.models():
            raise CommandFailed(f"no model {model!r}")
        self.model = model

    def instruct(self, system: str | None) -> None:
        self.system = system

    def forget(self) -> None:
        self.forgot += 1

    def models(self) -> tuple[str, ...]:
        return ("small", "large")


def typed(*lines: str) -> Callable[[str], str]:
    left = list(lines)

    def read(before: str) -> str:
        if not left:
            raise EOFError
        return left.pop(0)

    return read


@pytest.mark.parametrize(
    ("lines", "text"),
    [
        (["hello"], "hello"),
        (["one\\", "two\\", "three"], "one\ntwo\nthree"),
        (['"""', "def f():", "    return 1", '"""'], "def f():\n    return 1"),
        (['"""', "/exit", '"""'], "/exit"),
        ([""], ""),
    ],
)
def test_a_message_has_one_line_or_several(lines: list[str], text: str) -> None:
    assert read_message(typed(*lines)) == text


def test_the_end_of_input_ends_a_block_as_well() -> None:
    with pytest.raises(EOFError):
        read_message(typed('"""', "half"))


def test_words_for_the_conversation_itself() -> None:
    talk = PaperTalk()
    assert obey(talk, "/model") == "this is small; there are: small, large"
    assert obey(talk, "/model large") == "now large"
    assert talk.model == "large"
    assert obey(talk, "/system  talk like a pirate ") == "the system prompt is yours"
    assert talk.system == "talk like a pirate"
    assert obey(talk, "/system") == "the system prompt is the model's own"
    assert talk.system is None
    assert obey(talk, "/reset") == "forgotten"
    assert talk.forgot == 1
    assert obey(talk, "/help") == HELP
    assert obey(talk, "/moddel x") == "there is no /moddel; /help says what there is"
    assert obey(talk, "/exit") is obey(talk, "/quit") is None
    with pytest.raises(CommandFailed):
        obey(talk, "/model nosuch")
    assert talk.model == "large"
