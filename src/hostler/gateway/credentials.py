"""Credentials: by which a request says who asks. The console's session is one, if our own page asks.

Against requests that other pages make a browser send (CSRF): the cookie is SameSite=Strict, a header that
no form can send must be there, and what the browser says of the page's origin must be this host.
"""

from typing import TYPE_CHECKING

from hostler.core.console import MARK, cookie_name

if TYPE_CHECKING:
    from hostler.wire.http1 import Fields, Head

_NAMES = frozenset({b"authorization", b"x-api-key"})


def credentials_of(head: "Head") -> "Fields":
    """Return them as they may be passed on: as they were given, or a session as the key it stands for."""
    given = [field for field in head.headers if field[0] in _NAMES]
    session = session_of(head) if not given else None
    return given if session is None else [(b"authorization", session)]


def session_of(head: "Head") -> bytes | None:
    """Return the value of an `Authorization` header that the session stands for; None: there is none."""
    fields = head.fields
    cookies = fields.get(b"cookie")
    if cookies is None or MARK not in fields:
        return None
    host = fields.get(b"host", b"")
    if fields.get(b"sec-fetch-site", b"same-origin") != b"same-origin":
        return None
    origin = fields.get(b"origin")
    if origin is not None and origin.partition(b"://")[2] != host:
        return None
    name = cookie_name(host.decode("latin-1")).encode()
    for cookie in cookies.split(b";"):
        key, _, value = cookie.strip().partition(b"=")
        if key == name:
            return b"Bearer " + value
    return None
