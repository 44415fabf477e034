"""Where a model comes from, as one line of text, and the checked parts of that line.

`wheel:PACKAGE==VERSION#member` or `#folder/`, `hf:org/repo@revision#file`, `https://…#sha256=…`,
a path. Several, joined by ` + `, make one model folder. No disk and no network here.
"""

import hashlib
import re
from pathlib import Path, PurePosixPath
from urllib.parse import unquote, urlsplit

import msgspec

from hostler.core.errors import BadRequest

_LONGEST_SOURCE = 2000
_PACKAGE = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._-]{0,98}[A-Za-z0-9])?\Z")
_VERSION = re.compile(r"[A-Za-z0-9][A-Za-z0-9.!+_-]{0,63}\Z")
_REPOSITORY = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,95}/[A-Za-z0-9][A-Za-z0-9._-]{0,95}\Z")
_REVISION = re.compile(r"[A-Za-z0-9][A-Za-z0-9._/-]{0,127}\Z")
_SHA256 = re.compile(r"[0-9a-f]{64}\Z")
_LOOPBACK = frozenset({"127.0.0.1", "localhost", "::1"})


class WheelAddress(msgspec.Struct, frozen=True, kw_only=True):
    """Files inside a wheel of a Python package index. member ends in `/` for a whole folder."""

    package: str
    version: str
    member: str

    @property
    def requirement(self) -> str:
        return f"{self.package}=={self.version}"


class HubAddress(msgspec.Struct, frozen=True, kw_only=True):
    """One file of a Hugging Face repository. revision "": whatever the hub calls main today."""

    repository: str
    revision: str = ""
    file: str


class UrlAddress(msgspec.Struct, frozen=True, kw_only=True):
    """One file behind a URL, known by its SHA-256."""

    url: str
    sha256: str
    file: str


class PathAddress(msgspec.Struct, frozen=True, kw_only=True):
    """A file or folder that is already here and stays where it is."""

    path: str


Address = WheelAddress | HubAddress | UrlAddress | PathAddress


def parse_source(source: str) -> tuple[Address, ...]:
    """Return the parts of a source, each checked: none can name a place of its own choosing.

    Raises:
        BadRequest: what is wrong with which part, and what a right one looks like.
    """
    if not source or len(source) > _LONGEST_SOURCE or not source.isprintable():
        raise _bad(source, f"need 1 to {_LONGEST_SOURCE} printable characters")
    parts = tuple(_parse_part(part.strip()) for part in source.split(" + "))
    if len(parts) > 1 and any(isinstance(part, PathAddress) for part in parts):
        raise _bad(source, "a path cannot be joined with other sources")
    return parts


def is_url_allowed(url: str) -> bool:
    """Say whether a download may go there: https, or plain http to this machine alone."""
    try:
        parts = urlsplit(url)
        host = parts.hostname
    except ValueError:
        return False
    if not host or parts.username is not None or parts.password is not None:
        return False
    return parts.scheme == "https" or (parts.scheme == "http" and host in _LOOPBACK)


def check_member(name: str, source: str = "") -> PurePosixPath:
    """Return a file name inside an archive or repository as a safe relative path.

    Raises:
        BadRequest: empty, absolute, a `.` or `..` step, a backslash, a drive, a control character.
    """
    steps = name.split("/")
    for step in steps:
        if (
            step in ("", ".", "..")
            or not step.isprintable()
            or len(step.encode(errors="replace")) > 200
        ):
            raise _bad(source or name, f"{name!r} is not a plain relative file name")
        if "\\" in step or ":" in step:
            raise _bad(source or name, f"{name!r}: no backslash or colon in a file name")
    return PurePosixPath(*steps)


def folder_name(source: str) -> str:
    """Return the one folder name of a source: readable, and unique by the hash at its end.

    Made of a-z 0-9 and `-` alone, so that no source can choose a path.
    """
    first = parse_source(source)[0]
    match first:
        case WheelAddress():
            hint = f"{first.package}-{first.version}-{PurePosixPath(first.member).stem}"
        case HubAddress():
            hint = f"{first.repository}-{PurePosixPath(first.file).stem}"
        case UrlAddress():
            hint = PurePosixPath(first.file).stem
        case PathAddress():
            hint = Path(first.path).stem
    slug = re.sub(r"[^a-z0-9]+", "-", hint.lower()).strip("-")[:60].strip("-")
    digest = hashlib.sha256(source.encode()).hexdigest()[:16]
    return f"{slug or 'model'}-{digest}"


# Private


def _parse_part(part: str) -> Address:
    scheme, colon, rest = part.partition(":")
    if part.startswith(("/", "./", "../", "~/")):
        return PathAddress(path=part)
    if not colon:
        raise _bad(
            part, "say where it is: wheel:, hf:, https://, or a path that starts with / or ./"
        )
    match scheme.lower():
        case "wheel":
            return _parse_wheel(part, rest)
        case "hf":
            return _parse_hub(part, rest)
        case "http" | "https":
            return _parse_url(part)
        case "file":
            return _parse_file(part)
        case _:
            raise _bad(part, f"unknown scheme {scheme!r}; known: wheel, hf, https, file, a path")


def _parse_wheel(part: str, rest: str) -> WheelAddress:
    requirement, hash_mark, member = rest.partition("#")
    package, equals, version = requirement.partition("==")
    if not (hash_mark and equals and _PACKAGE.match(package) and _VERSION.match(version)):
        raise _bad(part, "need wheel:PACKAGE==VERSION#member or wheel:PACKAGE==VERSION#folder/")
    check_member(member.removesuffix("/"), part)
    return WheelAddress(package=package, version=version, member=member)


def _parse_hub(part: str, rest: str) -> HubAddress:
    place, hash_mark, file = rest.partition("#")
    repository, at, revision = place.partition("@")
    if (
        not hash_mark
        or not _REPOSITORY.match(repository)
        or ".." in place
        or (at and not _REVISION.match(revision))
    ):
        raise _bad(part, "need hf:ORG/REPO#FILE or hf:ORG/REPO@REVISION#FILE")
    check_member(file, part)
    return HubAddress(repository=repository, revision=revision, file=file)


def _parse_url(part: str) -> UrlAddress:
    url, _, fragment = part.partition("#")
    if not is_url_allowed(url):
        raise _bad(part, "need https:// (plain http only to this machine) and no user or password")
    key, _, sha256 = fragment.partition("=")
    if key != "sha256" or not _SHA256.match(sha256):
        raise _bad(part, "a URL needs its checksum: add #sha256= and 64 hex digits")
    file = PurePosixPath(unquote(urlsplit(url).path)).name
    if not file:
        raise _bad(part, "the URL names no file")
    check_member(file, part)
    return UrlAddress(url=url, sha256=sha256, file=file)


def _parse_file(part: str) -> PathAddress:
    parts = urlsplit(part)
    if parts.netloc not in ("", "localhost") or not parts.path.startswith("/"):
        raise _bad(part, "need file:/ABSOLUTE/PATH")
    return PathAddress(path=unquote(parts.path))


def _bad(source: str, why: str) -> BadRequest:
    shown = source if len(source) <= 120 else f"{source[:117]}..."
    return BadRequest(f"model source {_without_login(shown)!r}: {why}", param="source")


def _without_login(text: str) -> str:
    return re.sub(r"//[^/@\s]*@", "//***@", text)
