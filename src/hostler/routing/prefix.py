"""PrefixAware: a prompt goes where its beginning was read before, unless that instance is too busy.

Engines keep what they computed of a prompt and start from there when the next one begins alike. What
each of them still holds is not known here; this table remembers what was sent where, and forgets
what was asked longest ago. The rule of balance is that of SGLang's router, with slots in the place
of fixed counts.
"""

from collections import OrderedDict
from collections.abc import Sequence
from typing import Final
from zlib import crc32

from hostler.core.snapshot import InstanceView
from hostler.routing.ask import Ask
from hostler.routing.policies import Policy

BLOCK_BYTES: Final = 512  # about 128 tokens: shorter beginnings are not worth a detour
HEAD_BYTES: Final = 32 * 1024  # of a prompt that is looked at
ENTRIES_MAX = (
    32_768  # blocks that are remembered of a model: 16 MiB of prompts, some 8 MB of memory
)
MATCH_SHARE = 0.25  # of the prompt's blocks must be known, else the load alone decides
BUSY_SHARE = 0.5  # of its slots that an instance may be busier than the least busy one
BUSY_MAX = 32  # requests that it may be busier, however many slots it has
FORGET_EACH = 64  # blocks that may be looked through for each instance that is gone


def hash_blocks(head: bytes) -> tuple[int, ...]:
    """Return one number for each whole block of a prompt's beginning; it stands for all before it, too.

    A checksum is enough: prompts that meet by chance or by intent share an instance, nothing else.
    """
    length = min(len(head), HEAD_BYTES)
    if length < BLOCK_BYTES:
        return ()
    found: list[int] = []
    total, end = 0, BLOCK_BYTES
    while end <= length:
        total = crc32(head[end - BLOCK_BYTES : end], total)
        found.append(end << 32 | total)
        end += BLOCK_BYTES
    return tuple(found)


class PrefixTable:
    """Which instances were asked to read which beginnings lately. Bounded by its entries.

    One entry a block holds the instances as bits of a number (places.py), so a look costs the same for 2
    and for 1000 of them. A beginning is never forgotten before what follows it.
    """

    def __init__(self, entries_max: int = ENTRIES_MAX) -> None:
        self._entries_max = entries_max
        self._holders: OrderedDict[int, int] = OrderedDict()

    def __len__(self) -> int:
        return len(self._holders)

    def match(self, blocks: Sequence[int], among: int) -> tuple[int, int]:
        """Return how many blocks somebody of `among` has read without a gap, and who."""
        depth, found, holders = 0, among, self._holders
        for block in blocks:
            held = holders.get(block, 0) & found
            if not held:
                break
            depth, found = depth + 1, held
        return depth, found if depth else 0

    def add(self, blocks: Sequence[int], place: int) -> None:
        """The instance at this place reads these blocks now."""
        bit, holders = 1 << place, self._holders
        for block in reversed(blocks):  # so that the first one is the last to be forgotten
            held = holders.get(block, 0)
            if held & bit:
                holders.move_to_end(block)
            elif held:
                holders[block] = held | bit
                holders.move_to_end(block)
            else:
                holders[block] = bit  # a new one is the last
        while len(holders) > self._entries_max:
            holders.popitem(last=False)

    def forget(self, mask: int) -> None:
        """The instances at these places are no more."""
        for block, held in list(self._holders.items()):
            if held & mask:
                if left := held & ~mask:
                    self._holders[block] = left
                else:
                    del self._holders[block]


class PrefixAware(Policy):
    """The instance that read most of this prompt before; the least loaded one when none did, or when
    that one is busier than the least busy by more than half of its slots, or by 32 requests.

    With one ready instance there is nothing to look up or to remember.
    """

    name = "prefix"

    def __init__(self, entries_max: int = ENTRIES_MAX) -> None:
        super().__init__()
        self.table = PrefixTable(entries_max)
        self._gone = 0  # what they read is not forgotten yet
        self._whys: dict[int, str] = {}  # each made once

    def changed(self, place: int) -> None:
        self.learns = self.places.count > 1

    def gone(self, mask: int) -> int:
        """Looking through the table waits until it is worth it; until then nobody gets these places."""
        self._gone |= mask
        if FORGET_EACH * self._gone.bit_count() < len(self.table):
            return 0
        forgotten, self._gone = self._gone, 0
        self.table.forget(forgotten)
        return forgotten

    def pick(self, among: int, ask: Ask) -> int:
        places = self.places
        if not self.learns:
            self.why = "the only one ready"
            return places.least(among)
        blocks = ask.blocks
        if not blocks:
            self.why = "least in flight"
            return places.least(among)
        count, holders = self.table.match(blocks, among)
        if not count or count < MATCH_SHARE * len(blocks):
            self.why = "new prefix, least in flight"
            return places.least(among)
        place = places.least(holders)
        self.why = self._why(count, len(blocks))
        slots, used = places.at(place).concurrency, places.load(place)
        slack = min(BUSY_SHARE * slots, BUSY_MAX)
        # Below that nobody can be so much less busy.
        if used > slack and used - slots * places.least_share(among) > slack:
            self.why += ", but its instance is busy"
            return places.least(among)
        return place

    def _why(self, count: int, of: int) -> str:
        why = self._whys.get(count << 8 | of)  # there are 64 blocks at most
        if why is None:
            why = self._whys[count << 8 | of] = f"prefix {count} of {of} blocks"
        return why

    def taken(self, chosen: InstanceView, ask: Ask) -> None:
        if blocks := ask.blocks:
            self.table.add(blocks, self.places.place(chosen.instance_id))
