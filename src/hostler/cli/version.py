"""`hostler version`."""

import platform
from importlib.metadata import PackageNotFoundError
from importlib.metadata import version as package_version

import msgspec

from hostler.cli.target import NO_OPTIONS, Common


def version(*, common: Common = NO_OPTIONS) -> int:
    """Print the version of Hostler and of what it stands on.

    Example: `hostler version --json`
    """
    facts = {
        "hostler": installed_version(),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "engines": {name: _package(name) for name in ("xllamacpp", "onnxruntime")},
    }
    if common.json:
        print(msgspec.json.format(msgspec.json.encode(facts)).decode())
    else:
        print(f"hostler {facts['hostler']} (Python {facts['python']})")
    return 0


def installed_version() -> str:
    """The version of the installed package."""
    return _package("hostler") or "unknown"


# Private


def _package(name: str) -> str | None:
    try:
        return package_version(name)
    except PackageNotFoundError:
        return None
