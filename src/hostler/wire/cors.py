"""Cors: which web pages' scripts may use this server (the Fetch standard, 3.2). Without it: none.

Never with credentials: a script shows a key of its own. Addresses of the control plane are left out.
"""

from collections.abc import Callable, Iterable

from hostler.core.errors import HostlerError
from hostler.wire.exchange import Exchange
from hostler.wire.http1 import Head

ANY = "*"
CONTROL_PREFIX = "/api/"
FORGET_S = 600  # how long a browser may go by one preflight
METHODS = b"GET, HEAD, POST"
# What the official SDKs send from a browser, and what is ours.
ASKED = (
    b"authorization, content-type, x-api-key, x-request-id, x-request-timeout, "
    b"x-hostler-session, x-hostler-priority, traceparent, tracestate, "
    b"openai-organization, openai-project, anthropic-version, anthropic-beta, "
    b"anthropic-dangerous-direct-browser-access, idempotency-key, "
    b"x-stainless-lang, x-stainless-package-version, x-stainless-os, x-stainless-arch, "
    b"x-stainless-runtime, x-stainless-runtime-version, x-stainless-retry-count, "
    b"x-stainless-timeout, x-stainless-helper-method, x-stainless-poll-helper"
)
SHOWN = (
    b"x-request-id, x-hostler-instance, x-hostler-model, x-hostler-policy, "
    b"x-attempts, x-should-retry, retry-after"
)


class Cors:
    """The rules. origins: as browsers write them, `https://app.example`; `*` for every page."""

    def __init__(self, origins: Iterable[str]) -> None:
        listed = frozenset(origins)
        self._any = ANY in listed
        self._origins = frozenset(origin.encode() for origin in listed)

    def lines(self, head: Head) -> bytes:
        """The header lines of an answer to this request."""
        if head.path.startswith(CONTROL_PREFIX):
            return b""
        if self._any:
            return b"access-control-allow-origin: *\r\n" + _SHOWN_LINE
        origin = head.fields.get(b"origin", b"")
        if origin not in self._origins:
            return b"vary: origin\r\n"
        return b"vary: origin\r\naccess-control-allow-origin: %b\r\n%b" % (origin, _SHOWN_LINE)

    def around(self, handler: Callable[[Exchange], None]) -> Callable[[Exchange], None]:
        """Return a handler that answers browsers' preflights itself."""

        def handle(exchange: Exchange) -> None:
            if self._is_preflight(exchange.request):
                exchange.send(204, b"", _PREFLIGHT_FIELDS)
            else:
                handler(exchange)

        return handle

    def before(
        self, judge: Callable[[Head], HostlerError | None] | None
    ) -> Callable[[Head], HostlerError | None]:
        """Return a judge of heads that lets preflights through: they carry no key."""

        def judge_head(head: Head) -> HostlerError | None:
            return None if judge is None or self._is_preflight(head) else judge(head)

        return judge_head

    # Private

    def _is_preflight(self, head: Head) -> bool:
        """Does a browser ask for a page whose scripts may come in?"""
        return (
            head.method == "OPTIONS"
            and b"access-control-request-method" in head.fields
            and (self._any or head.fields.get(b"origin") in self._origins)
            and b"origin" in head.fields
            and not head.path.startswith(CONTROL_PREFIX)
        )


# Private

_SHOWN_LINE = b"access-control-expose-headers: %b\r\n" % SHOWN
_PREFLIGHT_FIELDS = [
    (b"access-control-allow-methods", METHODS),
    (b"access-control-allow-headers", ASKED),
    (b"access-control-max-age", b"%d" % FORGET_S),
]
