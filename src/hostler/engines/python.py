"""PythonClass: finds a person's own ModelWorker class by its name, `package.module:Class`."""

import importlib
import os
import resource
import sys
import traceback
from contextlib import suppress
from pathlib import Path

from hostler.core.errors import BadRequest
from hostler.core.fleet import WorkerSpec
from hostler.engines.base import ModelWorker, check_parameters, find_engine
from hostler.engines.parameters import PythonParameters

_FIRST_TO_GO = (
    500  # for Linux: when memory ends, a person's class goes before gateway and controller
)


class PythonClass:
    """Made without arguments, as every engine; the class is known with the spec only."""

    def make(self, spec: WorkerSpec) -> ModelWorker:
        """Import the class of `spec.params` and make one, without arguments. Loads nothing yet.

        Raises:
            BadRequest: the parameters are wrong, or the class cannot be imported or made, or is
                none of ModelWorker. Another try would end the same.
        """
        parameters = check_parameters(find_engine("python"), spec.params)
        assert isinstance(parameters, PythonParameters)
        _bound_memory(parameters.memory_limit_bytes)
        named = [folder for folder in parameters.python_path.split(os.pathsep) if folder]
        sys.path[:0] = folders = named or [os.getcwd()]
        module, _, name = parameters.worker_class.partition(":")
        try:
            found = getattr(importlib.import_module(module), name)
            worker = found()
        except (Exception, SystemExit) as error:  # boundary: an import runs a person's own code
            raise BadRequest(
                f"worker class {parameters.worker_class}: {_told(error)}; imported from "
                f"{os.pathsep.join(folders)}",
                param="worker_class",
            ) from error
        if not isinstance(worker, ModelWorker):
            raise BadRequest(
                f"worker class {parameters.worker_class} is not a hostler.ModelWorker",
                param="worker_class",
            )
        return worker


# Private


def _told(error: BaseException) -> str:
    """What was raised, and where in the person's own code, if it was there."""
    told = f"{type(error).__name__}: {error}"
    frames = [
        frame
        for frame in traceback.extract_tb(error.__traceback__)
        if frame.filename not in (__file__, importlib.__file__) and "<frozen" not in frame.filename
    ]
    return f"{told} ({frames[-1].filename}, line {frames[-1].lineno})" if frames else told


def _bound_memory(limit_bytes: int) -> None:
    """Limit this process's own memory, and name it to the kernel as the one to end first."""
    if limit_bytes:
        hard = resource.getrlimit(resource.RLIMIT_DATA)[1]
        most = limit_bytes if hard == resource.RLIM_INFINITY else min(limit_bytes, hard)
        resource.setrlimit(resource.RLIMIT_DATA, (most, hard))
    with suppress(OSError):  # not Linux, or not allowed here: the kernel then judges by size
        Path("/proc/self/oom_score_adj").write_text(str(_FIRST_TO_GO))
