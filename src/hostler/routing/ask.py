"""Ask: what a request says about itself that decides who serves it, and when."""

from typing import Protocol

from hostler.core.serving import Priority

__all__ = ["ANYBODY", "Ask", "Priority"]


class Ask(Protocol):
    """One request, as routing sees it. Derive from it, and say what there is to say.

    The gateway's Job is one by its shape; it computes what it is asked for and no more.

    key_id: whose it is, for fairness. weight: the share of that key in a queue.
    session: requests with the same one like the same instance; b"": none.
    prompt_tokens: about how many tokens there are to read.
    blocks: hashes of the prompt's beginning, block by block: equal prompts have equal ones as far
        as they are equal (see prefix.py).
    """

    __slots__ = ()

    @property
    def key_id(self) -> str:
        return ""

    @property
    def weight(self) -> float:
        return 1.0

    @property
    def priority(self) -> Priority:
        return Priority.NORMAL

    @property
    def session(self) -> bytes:
        return b""

    @property
    def prompt_tokens(self) -> int:
        return 0

    @property
    def blocks(self) -> tuple[int, ...]:
        return ()


class _Anybody(Ask):
    """It says nothing."""

    __slots__ = ()


ANYBODY: Ask = _Anybody()
