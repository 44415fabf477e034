"""Puts the compiled modules into a wheel that is built with HOSTLER_COMPILE=1. Without it: pure Python."""

import os
import sys
import tempfile
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

sys.path.insert(0, str(Path(__file__).parent / "scripts"))
from compiled import compile_into


class CustomBuildHook(BuildHookInterface):  # type: ignore[type-arg]
    """See the module."""

    _folder: tempfile.TemporaryDirectory[str] | None = None

    def dependencies(self) -> list[str]:
        """What a build in an environment of its own needs: mypy reads the types of all that we import."""
        if not _is_wanted():
            return []
        return ["mypy>=1.14", "setuptools>=70", *self.metadata.core.dependencies]

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        if not _is_wanted() or version == "editable":
            return
        self._folder = tempfile.TemporaryDirectory(prefix="hst-wheel")
        root = Path(self._folder.name)
        for file in compile_into(root):
            build_data["force_include"][str(file)] = str(file.relative_to(root))
        build_data["pure_python"] = False
        build_data["infer_tag"] = True

    def finalize(self, version: str, build_data: dict[str, Any], artifact_path: str) -> None:
        if self._folder is not None:
            self._folder.cleanup()


def _is_wanted() -> bool:
    return os.environ.get("HOSTLER_COMPILE", "") not in ("", "0")
