"""PrefixAware: a prompt goes where its beginning was read before, unless that instance is too busy.

Engines keep what they computed of a prompt and start from there when the next one begins alike. What
each of them still holds is not known here; this table remembers what was sent where, and forgets
what was asked longest ago. The rule of balance is that of SGLang's router, with slots in the place
of fixed counts.
"""

from collections import OrderedDict
from collections.abc import Iterator, Sequence, Set
from zlib import crc32

from hostler.core.snapshot import InstanceView
from hostler.routing.ask import Ask
from hostler.routing.policies import LeastInFlight, Loads, Policy, share

BLOCK_BYTES = 512  # about 128 tokens: shorter beginnings are not worth a detour
HEAD_BYTES = 32 * 1024  # of a prompt that is looked at
ENTRIES_MAX = (
    32_768  # blocks that are remembered of a model: 16 MiB of prompts, some 8 MB of memory
)
MATCH_SHARE = 0.25  # of the prompt's blocks must be known, else the load alone decides
BUSY_SHARE = 0.5  # of its slots that an instance may be busier than the least busy one
BUSY_MAX = 32  # requests that it may be busier, however many slots it has


def hash_blocks(head: bytes) -> tuple[int, ...]:
    """Return one number for each whole block of a prompt's beginning; it stands for all before it, too.

    A checksum is enough: prompts that meet by chance or by intent share an instance, nothing else.
    """
    found, total = [], 0
    for end in range(BLOCK_BYTES, min(len(head), HEAD_BYTES) + 1, BLOCK_BYTES):
        total = crc32(head[end - BLOCK_BYTES : end], total)
        found.append(end << 32 | total)
    return tuple(found)


class PrefixTable:
    """Which instances were asked to read which beginnings lately. Bounded by its entries.

    One entry a block holds the instances as bits of a number, so a look costs the same for 2 and for
    1000 of them. A beginning is never forgotten before what follows it.
    """

    def __init__(self, entries_max: int = ENTRIES_MAX) -> None:
        self._entries_max = entries_max
        self._holders: OrderedDict[int, int] = OrderedDict()
        self._bits: dict[str, int] = {}
        self._named: dict[int, str] = {}

    def __len__(self) -> int:
        return len(self._holders)

    def bits(self, instance_ids: Sequence[str]) -> int:
        """Return the instances as one number, for `match`. One that was never seen gets a bit."""
        total = 0
        for instance_id in instance_ids:
            bit = self._bits.get(instance_id)
            if bit is None:
                bit = 1 << next(n for n in range(len(self._bits) + 1) if 1 << n not in self._named)
                self._bits[instance_id], self._named[bit] = bit, instance_id
            total |= bit
        return total

    def match(self, blocks: Sequence[int], among: int) -> tuple[int, int]:
        """Return how many blocks somebody of `among` has read without a gap, and who, as bits."""
        depth, found, holders = 0, among, self._holders
        for block in blocks:
            held = holders.get(block, 0) & found
            if not held:
                break
            depth, found = depth + 1, held
        return depth, found if depth else 0

    def names(self, bits: int) -> Iterator[str]:
        """Yield the ids of the instances in a number."""
        while bits:
            bit = bits & -bits
            yield self._named[bit]
            bits ^= bit

    def add(self, blocks: Sequence[int], instance_id: str) -> None:
        """This instance reads these blocks now."""
        bit, holders = self.bits((instance_id,)), self._holders
        for block in reversed(blocks):  # so that the first one is the last to be forgotten
            holders[block] = holders.get(block, 0) | bit
            holders.move_to_end(block)
        while len(holders) > self._entries_max:
            holders.popitem(last=False)

    def forget(self, gone: Set[str]) -> None:
        """These instances are no more."""
        bits = sum(self._bits[i] for i in gone if i in self._bits)
        if not bits:
            return
        for bit in [bit for bit in self._named if bit & bits]:
            del self._bits[self._named.pop(bit)]
        for block, held in list(self._holders.items()):
            if held & bits:
                if left := held & ~bits:
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
        self.table = PrefixTable(entries_max)
        self._least = LeastInFlight()
        self._ready: dict[str, InstanceView] = {}
        self._all = 0

    def update(self, ready: Sequence[InstanceView]) -> None:
        self._least.update(ready)
        self._ready = {i.instance_id: i for i in ready}
        self._all = self.table.bits(tuple(self._ready))
        self.learns = len(ready) > 1

    def forget(self, gone: Set[str]) -> None:
        self.table.forget(gone)

    def choose(self, ready: Sequence[InstanceView], loads: Loads, ask: Ask) -> InstanceView:
        if not self.learns:
            self.why = "the only one ready"
            return ready[0]
        blocks = ask.blocks
        if not blocks:
            self.why = "least in flight"
            return self._least.choose(ready, loads, ask)
        is_all = len(ready) == len(self._ready)
        among = self._all if is_all else self.table.bits([i.instance_id for i in ready])
        count, bits = self.table.match(blocks, among)
        if not count or count < MATCH_SHARE * len(blocks):
            self.why = "new prefix, least in flight"
            return self._least.choose(ready, loads, ask)
        best = self._least.choose([self._ready[i] for i in self.table.names(bits)], loads, ask)
        self.why = f"prefix {count} of {len(blocks)} blocks"
        slots = best.concurrency
        used, slack = loads.in_flight.get(best.instance_id, 0), min(BUSY_SHARE * slots, BUSY_MAX)
        if used > slack:  # else nobody can be so much less busy
            least = min(ready, key=lambda i: share(i, loads, True))
            if used - slots * share(least, loads, True) > slack:
                self.why += ", but its instance is busy"
                return least
        return best

    def taken(self, chosen: InstanceView, ask: Ask) -> None:
        if blocks := ask.blocks:
            self.table.add(blocks, chosen.instance_id)
