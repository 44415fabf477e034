"""What the fake engine keeps of prompts: what one request has read, all share after it."""

from collections.abc import Sequence

BLOCK_TOKENS = 16
KEPT = 100_000  # blocks; then it forgets everything


def blocks_of(prompt: str) -> tuple[int, ...]:
    """Return one number for each whole block of a prompt; it stands for all before it, too."""
    words, found, total = prompt.split(), [], 0
    for end in range(BLOCK_TOKENS, len(words) + 1, BLOCK_TOKENS):
        total = hash((total, *words[end - BLOCK_TOKENS : end]))
        found.append(total)
    return tuple(found)


class Memory:
    """The blocks that were read, of one engine."""

    def __init__(self) -> None:
        self._read: set[int] = set()

    def missing(self, blocks: Sequence[int], tokens: int) -> int:
        """Return how many of a prompt's tokens are to be read."""
        has = 0
        for block in blocks:
            if block not in self._read:
                break
            has += BLOCK_TOKENS
        return tokens - has

    def keep(self, blocks: Sequence[int]) -> None:
        """These were read."""
        if len(self._read) > KEPT:
            self._read.clear()
        self._read.update(blocks)
