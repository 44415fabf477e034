"""Which version of a package is installed."""

from importlib.metadata import PackageNotFoundError, version


def package_version(name: str) -> str | None:
    """Its version; None: it is not installed."""
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def installed_version() -> str:
    """The version of Hostler."""
    return package_version("hostler") or "unknown"
