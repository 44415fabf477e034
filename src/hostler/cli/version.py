"""`hostler version`."""

import platform

import msgspec

from hostler.app.version import installed_version, is_compiled, package_version
from hostler.cli.target import NO_OPTIONS, Common


def version(*, common: Common = NO_OPTIONS) -> int:
    """Print the version of Hostler and of what it stands on.

    Example: `hostler version --json`
    """
    facts = {
        "hostler": installed_version(),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "data_plane": "compiled" if is_compiled() else "python",
        "engines": {name: package_version(name) for name in ("xllamacpp", "onnxruntime")},
    }
    if common.json:
        print(msgspec.json.format(msgspec.json.encode(facts)).decode())
    else:
        told = "compiled" if is_compiled() else "not compiled"
        print(f"hostler {facts['hostler']} (Python {facts['python']}, data plane {told})")
    return 0
