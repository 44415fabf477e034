"""The words by which gateways of several machines tell one another, through their controller, what they have.

Both sides decode with these types. Counts are states, not steps: to be told one twice does no harm.
"""

from collections.abc import Mapping

import msgspec

from hostler.core.snapshot import REPORTED

ENTRIES_MOST = 2_000  # instances in one message; what is more is in the next
WAITING = "waiting for "  # begins the name of a model's waiters; no instance's id does
EXPIRE_S = 5.0  # what a silent gateway told counts no more, nor what a silent controller did


class LoadReport(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What one gateway process has in instances, as far as it is other than it told before. POST /loads.

    seq: +1 a report. is_first: what was told before counts no more. seen: the `version` it heard last.
    counts: requests in flight by instance id, and waiting by `waiting_for(model)`; 0: none any more.
    is_last: it ends.
    heard: hosts it was asked for (`LoadAnswer.silent`) of which an instance answers it.
    """

    protocol: int = REPORTED
    source: str  # one gateway process, random
    seq: int
    is_first: bool = False
    is_last: bool = False
    seen: int = 0
    counts: Mapping[str, int] = {}
    heard: tuple[str, ...] = ()


class LoadAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """What the gateways of all other machines have, as far as it is other than at version `seen`.

    machines: that have gateways, this one included. is_whole: what is not in here is 0.
    is_lost: the report was not understood; say all of it anew. silent: hosts the controller hears
        nothing of: does one of their instances answer this gateway?
    """

    machines: int = 1
    version: int = 0
    is_whole: bool = False
    is_lost: bool = False
    counts: Mapping[str, int] = {}
    silent: tuple[str, ...] = ()


def waiting_for(model: str) -> str:
    """What those who wait for a slot of this model are counted by."""
    return WAITING + model
