"""PairForm: how a tokenizer joins two texts into one input, learned from one example.

Joining and cutting happen here and not in the tokenizers library: that keeps what it cuts off, and for
a pair every left part with every right one (measured: two texts of 3 MB took more than 20 GB).
"""

from collections.abc import Sequence

from tokenizers import Tokenizer


class PairForm:
    """The special tokens before, between and after two texts, with their types."""

    __slots__ = ("_after", "_before", "_middle", "_types")

    def __init__(self, tokenizer: Tokenizer) -> None:
        """tokenizer: without padding and truncation."""
        bare: list[int] = tokenizer.encode("a", add_special_tokens=False).ids
        whole = tokenizer.encode("a", "a")
        ids: list[int] = whole.ids
        left = _find(ids, bare, 0)
        left_end = left + len(bare)
        right = _find(ids, bare, left_end)
        right_end = right + len(bare)
        self._before, self._middle, self._after = ids[:left], ids[left_end:right], ids[right_end:]
        types: list[int] = whole.type_ids
        self._types = (types[:left_end], types[left_end:right_end], types[right_end:])

    def join(
        self, left: Sequence[int], right: Sequence[int], most: int
    ) -> tuple[list[int], list[int]]:
        """Return ids and types of both, at most so many tokens in all; the longer text is cut first."""
        room = most - len(self._before) - len(self._middle) - len(self._after)
        keep, keep_right = cut_longest(len(left), len(right), max(0, room))
        ids = [*self._before, *left[:keep], *self._middle, *right[:keep_right], *self._after]
        head, body, tail = self._types
        types = head[: len(self._before)] + head[-1:] * keep
        types += body[: len(self._middle)] + body[-1:] * keep_right
        return ids, types + tail


def cut_longest(left: int, right: int, room: int) -> tuple[int, int]:
    """Return how many tokens of each to keep: the longer gives way, then both alike."""
    if left + right <= room:
        return left, right
    short = min(left, right, room // 2)
    return (short, room - short) if left <= right else (room - short, short)


# Private


def _find(ids: Sequence[int], part: Sequence[int], start: int) -> int:
    return next(n for n in range(start, len(ids) + 1) if list(ids[n : n + len(part)]) == list(part))
