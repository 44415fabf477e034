"""What operators are shown of a request: when it came, where it went, how it ended. Never what it said."""

from enum import StrEnum
from typing import Annotated

import msgspec
from msgspec import Meta

Moment = Annotated[float, Meta(ge=0, le=1e11)]


class RequestOutcome(StrEnum):
    """How a request ended, from the side of who asked."""

    OK = "ok"
    CLIENT_ERROR = "client_error"  # it was wrong: the engine or we said so
    REFUSED = "refused"  # nobody could take it: no instance, a full queue, a wait too long
    UPSTREAM_ERROR = "upstream_error"  # before the first byte
    STREAM_ERROR = "stream_error"  # after it
    CLIENT_GONE = "client_gone"
    TIMEOUT = "timeout"


class FlightEnd(StrEnum):
    """Why a request waits no longer for another one to read the prompt they begin with."""

    LANDED = "landed"  # it was read
    LENT = "lent"  # it was read, and lent to the slot of this one
    UNLENT = "unlent"  # it could not be lent, so this one reads for itself
    LED = "led"  # who read it has left, so this one reads it
    LATE = "late"  # it took too long, so this one goes by itself
    FAILED = "failed"  # who read it failed, so this one looks for an instance again
    GONE = "gone"  # its client has left


class FlightView(msgspec.Struct, frozen=True, kw_only=True):
    """A request's part where several that begin alike have the beginning read once.

    led_by: who reads it: a request's id; its own, if so many `followers` wait for it. at_s, waited_s:
    since when and for how long it waited itself. end: None while it waits, and of one that only leads.
    """

    led_by: str
    followers: int = 0
    at_s: float | None = None
    waited_s: float | None = None
    end: FlightEnd | None = None


class TryView(msgspec.Struct, frozen=True, kw_only=True):
    """One attempt. Times are seconds since the request came.

    why: what spoke for this instance. ended_s: None while it goes on. failure: "" unless it failed.
    """

    instance_id: str
    why: str
    at_s: float
    ended_s: float | None = None
    failure: str = ""


class RequestView(msgspec.Struct, frozen=True, kw_only=True):
    """One request, under way or ended. Times are seconds since it came; at_s is that moment, Unix time.

    model: that serves it; asked: that was named. outcome: None while it is under way. queued_s: when
    it began to wait for a slot, waited_s: for how long in all; None: it did not. first_byte_s: of a
    stream, or of a long answer. took_s: until now, or to its last byte. events: pieces of a stream, so far.
    The tokens are None as long as nobody has told them; estimated: what was delivered is counted.
    flight: None when it shared the reading of its prompt with nobody.
    """

    request_id: str
    at_s: float
    model: str
    asked: str
    key_id: str
    route: str
    stream: bool
    outcome: RequestOutcome | None = None
    status: int = 0
    code: str = ""
    queued_s: float | None = None
    waited_s: float | None = None
    tries: tuple[TryView, ...] = ()
    first_byte_s: float | None = None
    took_s: float = 0.0
    events: int = 0
    prompt_tokens: int | None = None
    cached_tokens: int | None = None
    completion_tokens: int | None = None
    estimated: bool = False
    flight: FlightView | None = None


class RequestList(msgspec.Struct, frozen=True, kw_only=True):
    """Those under way first, then the newest. silent: gateways that did not say what they know.

    at_s: when this was told, Unix time, by the clock that the requests' times are of.
    """

    requests: tuple[RequestView, ...]
    silent: int = 0
    at_s: float = 0.0


class RequestQuery(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """key: a key's id. here: only of the gateway that answers. Times are Unix time.

    since: those that came then or later. ended_after: those that ended later, and those under way: what is
    new since an earlier answer. ended_before: those that ended earlier: the next page of a long list.
    """

    model: str | None = None
    key: str | None = None
    outcome: RequestOutcome | None = None
    since: Moment | None = None
    ended_after: Moment | None = None
    ended_before: Moment | None = None
    limit: Annotated[int, Meta(ge=1, le=10_000)] = 100
    here: bool = False


class RequestShown(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """here: only of the gateway that answers."""

    here: bool = False
