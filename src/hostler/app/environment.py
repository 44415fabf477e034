"""The environment of this process, and of those it starts. Settings are read in config.py."""

import os
import sys
from collections.abc import Mapping

from hostler.core.placing import GROUP_VARIABLE


def environment(name: str, default: str | None = None) -> str | None:
    """One environment variable: what the operator named in the config, or ours."""
    return os.environ.get(name, default)


def own_python(*words: str, python: str = "") -> list[str]:
    """Return a command line of this interpreter, or of another, for a process of our own.

    What lies in the folder that somebody is in (a json.py) is no module of it: -P. PYTHONPATH counts.
    """
    return [python or sys.executable, "-P", *words]


def child_environment(extra: Mapping[str, str] | None = None) -> dict[str, str]:
    """This process's environment for a child of our own, with `extra` on top."""
    return {**os.environ, **(extra or {})}


def worker_environment(extra: Mapping[str, str] | None = None, python: str = "") -> dict[str, str]:
    """The same for a worker, in which anybody's class may run: without the store's password.

    python: the interpreter of an environment of its own, whose programs come first.
    """
    kept = {name: value for name, value in os.environ.items() if name not in _STORE_SECRETS}
    if python:
        programs = os.path.dirname(python)
        kept["VIRTUAL_ENV"] = os.path.dirname(programs)
        kept["PATH"] = f"{programs}{os.pathsep}{kept.get('PATH', os.defpath)}"
    return {**kept, **(extra or {})}


def quiet_openmp() -> None:
    """Let idle OpenMP threads sleep instead of spin. Before any engine library is imported.

    An operator's own OMP_WAIT_POLICY stays.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")


def engine_environment(extra: Mapping[str, str] | None = None) -> dict[str, str]:
    """The environment of an engine process: only names from an allow-list, and `extra`."""
    kept = {
        name: value
        for name, value in os.environ.items()
        if name in _ENGINE_NAMES or name.startswith(_ENGINE_PREFIXES)
    }
    if GROUP_VARIABLE in os.environ:  # it lays itself out over Ray's nodes
        kept |= {name: os.environ[name] for name in _RAY_NAMES if name in os.environ}
    return {**kept, **(extra or {})}


# Private

_RAY_NAMES = (
    GROUP_VARIABLE, "RAY_ADDRESS", "RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH", "RAY_TMPDIR",
)  # fmt: skip
# What engines need to find their libraries, devices and caches. No key of ours is among them.
_ENGINE_NAMES = frozenset(
    (
        "PATH",
        "HOME",
        "LANG",
        "LC_ALL",
        "LC_CTYPE",
        "TZ",
        "TMPDIR",
        "LD_LIBRARY_PATH",
        "VIRTUAL_ENV",
        "PYTHONPATH",
        "PYTHONUNBUFFERED",
        "PYTHONDONTWRITEBYTECODE",
        "SSL_CERT_FILE",
        "SSL_CERT_DIR",
        "XDG_CACHE_HOME",
    )
)
_ENGINE_PREFIXES = (
    "CUDA_",
    "NVIDIA_",
    "ROCR_",
    "HIP_",
    "OMP_",
    "OPENBLAS_",
    "MKL_",
    "GGML_",
    "VLLM_",
)
_STORE_SECRETS = frozenset(("HOSTLER_STORE_URL", "PGPASSWORD"))
