"""Usage: the tokens of one answer, found by a scan for the few bytes that tell them.

An answer is never decoded for it. A quote inside a JSON string is escaped, so the patterns below cannot
occur in generated text.
"""

import re
from collections.abc import Sequence
from typing import Any, Final

import msgspec

from hostler.core.request import Route
from hostler.wire.scan import holds

TAIL_BYTES = 4096  # of an answer: where most engines tell their usage
HEAD_BYTES = 1024  # some tell it before their vectors


class Used:
    """Tokens of one request.

    cached: of the prompt's tokens, those the engine had read before. is_estimated: nobody told; what
    was delivered has been counted.
    """

    __slots__ = ("cached", "completion", "is_estimated", "prompt")

    def __init__(
        self, prompt: int, completion: int, cached: int = 0, *, is_estimated: bool = False
    ) -> None:
        self.prompt = prompt
        self.completion = completion
        self.cached = cached
        self.is_estimated = is_estimated


def find_usage(body: bytes) -> Used | None:
    """Return what the `usage` object of a whole JSON answer says; None when there is none."""
    _, mark, rest = body[-TAIL_BYTES:].rpartition(_MARK)
    if not mark:
        _, mark, rest = body.rpartition(_MARK)
    if not mark:
        return None
    found, end, after = rest.partition(b"}")
    if not end:
        return None
    if holds(found[2:], b"{"):  # objects in it
        whole = _OBJECT.match(rest)
        if whole is None:
            return None
        found, after = whole[0][:-1], rest[whole.end() :]
    told = _decoded(found + b"}")
    used = read_usage(told) if told else None
    if used is not None and not used.cached and holds(after, _TIMINGS):
        had = _CACHE_N.search(after)
        if had is not None:
            used.cached = min(int(had[1]), used.prompt)  # llama.cpp says it in `timings`
    return used


def untold(route: Route) -> Used | None:
    """The usage of an answer whose engine should have told it."""
    return Used(0, 0, is_estimated=True) if route is not Route.TOKENIZE else None


def read_usage(told: dict[str, Any]) -> Used | None:
    """Return what an engine's `usage` object says; None when it says nothing."""
    completion = _count(told, "completion_tokens", "output_tokens")
    prompt = _count(told, "prompt_tokens", "input_tokens")
    if prompt < 0:
        total = _count(told, "total_tokens")
        if total < 0 and completion < 0:
            return None
        prompt = max(0, max(0, total) - max(0, completion))
    cached = -1  # mostly there are three members and none of these
    if len(told) != 3 or completion < 0 or prompt < 0 or "total_tokens" not in told:
        details = told.get("prompt_tokens_details")
        if isinstance(details, dict):
            cached = _count(details, "cached_tokens")
        if cached < 0:
            cached = _count(told, "cache_read_input_tokens", "prompt_cache_hit_tokens")
    return Used(prompt, max(0, completion), min(max(0, cached), prompt))


def together(parts: Sequence[Used], copies: int) -> Used:
    """Several choices as one: their answers together, a prompt that `copies` of them share once."""
    if len(parts) == 1:
        return parts[0]
    return Used(
        sum(one.prompt for one in parts) // copies,
        sum(one.completion for one in parts),
        sum(one.cached for one in parts) // copies,
    )


def read_timings(told: dict[str, Any]) -> Used | None:
    """Return what llama.cpp's `timings` of one choice say."""
    new, completion = _count(told, "prompt_n"), _count(told, "predicted_n")
    if new < 0 or completion < 0:
        return None
    cached = max(0, _count(told, "cache_n"))
    return Used(new + cached, completion, cached)


# Private

_decode: Final = msgspec.json.Decoder().decode
_MARK: Final = b'"usage":'
_OBJECT = re.compile(
    rb"\s*(\{[^{}]*(?:\{[^{}]*(?:\{[^{}]*\}[^{}]*)*\}[^{}]*)*\})"  # objects in it, two deep
)
_TIMINGS: Final = b'"timings":'
_CACHE_N = re.compile(rb'"timings":\s*\{[^{}]*"cache_n":\s*(\d{1,12})\b')
_MOST: Final = 2**40  # tokens; what is more is nonsense


def _decoded(data: bytes) -> dict[str, Any] | None:
    try:
        found = _decode(data)
    except (msgspec.MsgspecError, UnicodeDecodeError):
        return None
    return found if isinstance(found, dict) else None


def _count(told: dict[str, Any], name: str, other: str = "") -> int:
    """The number of this name, else of the other one; -1: there is none."""
    value = told.get(name)
    if type(value) is int:
        number: int = value
        if 0 <= number < _MOST:
            return number
    return _count(told, other) if other else -1
