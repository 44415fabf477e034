"""A slow and strict reading of HTTP/1.1 requests, line by line: the oracle of the smuggling tests."""

import string
from enum import StrEnum

TOKEN = set((string.ascii_letters + string.digits + "!#$%&'*+-.^_`|~").encode())
SINGLE = {b"host", b"content-length", b"transfer-encoding", b"authorization", b"content-type"}
SINGLE |= {b"content-encoding", b"expect"}
HEX = set(b"0123456789abcdefABCDEF")


class Outcome(StrEnum):
    SERVED = "served"
    REFUSED = "refused"
    DECLINED = "declined"  # refused, but where the next request begins is beyond doubt
    UNFINISHED = "unfinished"


class _Refused(Exception):
    pass


class _Unfinished(Exception):
    pass


def outcomes(data: bytes) -> list[Outcome]:
    """What must happen to each request in these bytes; nothing follows a refusal or a last one."""
    found: list[Outcome] = []
    while data:
        try:
            data, is_last, outcome = _one(data)
        except _Refused:
            return [*found, Outcome.REFUSED]
        except _Unfinished:
            return [*found, Outcome.UNFINISHED]
        found.append(outcome)
        if is_last:
            break
    return found


def _need(condition: bool) -> None:
    if not condition:
        raise _Refused


def _one(data: bytes) -> tuple[bytes, bool, Outcome]:
    head, end, rest = data.partition(b"\r\n\r\n")
    if not end:
        raise _Unfinished
    lines = head.split(b"\r\n")
    _need(len(lines[0]) <= 8 * 1024 + 32 and len(head) + 4 <= 32 * 1024)
    parts = lines[0].split(b" ")
    _need(len(parts) == 3 and parts[2] in (b"HTTP/1.1", b"HTTP/1.0"))
    method, target, version = parts
    _need(0 < len(method) <= 16 and method.isalpha() and method.isupper() and method.isascii())
    _need(method not in (b"CONNECT", b"TRACE", b"TRACK"))
    _check_target(target)
    fields: dict[bytes, list[bytes]] = {}
    for line in lines[1:]:
        name, colon, value = line.partition(b":")
        _need(bool(colon) and bool(name) and set(name) <= TOKEN)
        _need(all(byte == 9 or (byte >= 32 and byte != 127) for byte in value))
        fields.setdefault(name.lower(), []).append(value.strip(b" \t"))
    _need(len(lines) - 1 <= 100)
    _need(all(len(fields.get(name, ())) <= 1 for name in SINGLE))
    one = {name: b", ".join(values) for name, values in fields.items()}
    _need(b"host" in one and _is_host(one[b"host"]))
    options = [option.strip() for option in one.get(b"connection", b"").lower().split(b",")]
    is_last = b"close" in options or (version == b"HTTP/1.0" and b"keep-alive" not in options)
    _need(one.get(b"expect", b"100-continue").lower() == b"100-continue")
    is_plain = one.get(b"content-encoding", b"identity").lower() == b"identity"
    if b"transfer-encoding" in one:
        _need(b"content-length" not in one and version == b"HTTP/1.1")
        _need(one[b"transfer-encoding"].lower() == b"chunked")
        _need(is_plain)
        return _skip_chunks(rest), is_last, Outcome.SERVED
    length = one.get(b"content-length", b"0")
    _need(0 < len(length) <= 18 and length.isdigit() and int(length) <= 8 * 1024 * 1024)
    if int(length) and not is_plain:
        _need(not is_last and b"expect" not in one and len(rest) >= int(length))
        return rest[int(length) :], is_last, Outcome.DECLINED
    if len(rest) < int(length):
        raise _Unfinished
    return rest[int(length) :], is_last, Outcome.SERVED


def _check_target(target: bytes) -> None:
    _need(target.startswith(b"/") and all(33 <= byte <= 126 for byte in target))
    _need(b"#" not in target and b"\\" not in target)
    for at, byte in enumerate(target):
        if byte == ord("%"):
            digits = target[at + 1 : at + 3]
            _need(len(digits) == 2 and set(digits) <= HEX)
    path = target.partition(b"?")[0]
    segments = path.split(b"/")[1:]
    _need(not any(segment in (b".", b"..") for segment in segments))
    _need(b"" not in segments[:-1])
    for piece in path.split(b"%")[1:]:
        code = int(piece[:2], 16)
        _need(code >= 32 and code not in (0x2E, 0x2F, 0x5C, 0x7F))


def _is_host(host: bytes) -> bool:
    if host.startswith(b"["):
        name, bracket, port = host[1:].partition(b"]")
        letters = set(b"0123456789abcdefABCDEF:.")
        if not bracket or not 2 <= len(name) <= 45 or not set(name) <= letters:
            return False
        if not port:
            return True
        if not port.startswith(b":"):
            return False
        port = port[1:]
    else:
        name, colon, port = host.partition(b":")
        letters = set((string.ascii_letters + string.digits + "._-").encode())
        if not name or len(name) > 253 or not set(name) <= letters or name[:1] in b".-":
            return False
        if not colon:
            return True
    return 1 <= len(port) <= 5 and port.isdigit()


def _skip_chunks(rest: bytes) -> bytes:
    while True:
        size, end, after = rest.partition(b"\r\n")
        if not end:
            plain = size.removesuffix(b"\r")
            _need(len(plain) <= 8 and set(plain) <= HEX and (bool(plain) or not size))
            raise _Unfinished
        _need(1 <= len(size) <= 8 and set(size) <= HEX)
        count = int(size, 16)
        _need(count <= 8 * 1024 * 1024)
        if len(after) < count + 2:
            _need(b"\r\n".startswith(after[count:]))
            raise _Unfinished
        _need(after[count : count + 2] == b"\r\n")
        rest = after[count + 2 :]
        if count == 0:
            return rest
