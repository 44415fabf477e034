"""What a model's process needs beside Hostler, in the words of Ray's runtime environments."""

import re
from collections.abc import Mapping
from typing import Any

import msgspec

from hostler.core.rules import need, read_fields

MOST, LONGEST = 64, 500  # requirements, variables; characters of one
VALUE_LONGEST = 4096
_GROUP = "runtime_env"
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,127}")
_URI = re.compile(r"(?:https|s3|gs|azure|abfss)://\S+\.(?:zip|tar|tar\.gz|tgz)(?:\?\S*)?")
# What the loader, the shell, Python, Ray, a placer or we read: none of a model's business.
_OURS = ("LD_", "DYLD_", "PYTHON", "HOSTLER_", "RAY_", "GCONV_", "GLIBC_", "MALLOC_", "BASH_")
_OURS_EXACTLY = frozenset(
    ("PATH", "HOME", "SHELL", "IFS", "ENV", "VIRTUAL_ENV", "LOCPATH", "TMPDIR", "PGPASSWORD",
     "CUDA_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES", "NVIDIA_VISIBLE_DEVICES",
     "OMP_WAIT_POLICY")
)  # fmt: skip


class RuntimeEnv(
    msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True
):
    """An environment of a model's own, which Ray makes on the node of its place.

    pip: requirements, as in a line of requirements.txt; no options of pip. env_vars: of the process; they
    are written down, so no secrets. working_dir: a folder on the controller's machine, or the URL of an
    archive; the process starts in it, and imports from it.
    """

    pip: tuple[str, ...] = ()
    env_vars: Mapping[str, str] = {}
    working_dir: str = ""

    def __post_init__(self) -> None:
        for one in self.pip:
            is_one = one == one.strip() and 0 < len(one) <= LONGEST and one.isprintable()
            need(is_one, _GROUP, "pip", f"{one[:60]!r} is no requirement, like 'name==1.0'")
            is_option = one.startswith(("-", "#")) or " -" in one
            told = f"{one[:60]!r}: options of pip belong into pip.conf of the nodes"
            need(not is_option, _GROUP, "pip", told)
        need(len(self.pip) <= MOST, _GROUP, "pip", f"need up to {MOST} requirements")
        problem = variables_problem(self.env_vars)
        need(not problem, _GROUP, "env_vars", problem)
        folder = self.working_dir
        is_place = folder.startswith("/") and folder.isprintable() and len(folder) < VALUE_LONGEST
        told = "need an absolute folder of the controller's machine, or the URL of an archive (.zip, .tar.gz)"
        need(not folder or is_place or bool(_URI.fullmatch(folder)), _GROUP, "working_dir", told)

    def __bool__(self) -> bool:
        return bool(self.pip or self.env_vars or self.working_dir)

    def __str__(self) -> str:
        parts = [*self.pip, *self.env_vars, *([self.working_dir] if self.working_dir else [])]
        return ", ".join(parts)


def variables_problem(given: Mapping[str, str]) -> str:
    """Why these cannot be variables of a model's process; "": they can."""
    if len(given) > MOST:
        return f"need up to {MOST} variables"
    for name, value in given.items():
        if not _NAME.fullmatch(name):
            return f"{name[:60]!r} is no name of a variable"
        if name in _OURS_EXACTLY or name.startswith(_OURS):
            return f"{name} is not for a model to set"
        if len(value) > VALUE_LONGEST or "\0" in value:
            return f"{name}: need up to {VALUE_LONGEST} characters"
    return ""


def read_runtime_env(given: Mapping[str, Any] | None, old: RuntimeEnv | None = None) -> RuntimeEnv:
    """As `core.rules.read_fields`."""
    return read_fields(given, old or RuntimeEnv(), _GROUP)
