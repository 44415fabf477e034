"""Which version of a package is installed; whether the data plane is compiled."""

from importlib.machinery import EXTENSION_SUFFIXES
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec


def package_version(name: str) -> str | None:
    """Its version; None: it is not installed."""
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def installed_version() -> str:
    """The version of Hostler."""
    return package_version("hostler") or "unknown"


def is_compiled() -> bool:
    """Are the modules that each request passes compiled to C (`make fast`, or a wheel for this platform)?"""
    found = find_spec("hostler.wire.http1")
    return found is not None and str(found.origin).endswith(tuple(EXTENSION_SUFFIXES))
