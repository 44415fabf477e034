"""PythonClass: finds a person's own ModelWorker class by its name, `package.module:Class`."""

import importlib

from hostler.core.errors import EngineError
from hostler.core.fleet import WorkerSpec
from hostler.engines.base import ModelWorker, check_parameters, find_engine
from hostler.engines.parameters import PythonParameters


class PythonClass:
    """Made without arguments, as every engine; the class is known with the spec only."""

    def make(self, spec: WorkerSpec) -> ModelWorker:
        """Import the class of `spec.params` and make one, without arguments. Loads nothing yet.

        Raises:
            BadRequest: the parameters are wrong.
            EngineError: it cannot be imported or made, or it is no ModelWorker.
        """
        parameters = check_parameters(find_engine("python"), spec.params)
        assert isinstance(parameters, PythonParameters)
        module, _, name = parameters.worker.partition(":")
        try:
            found = getattr(importlib.import_module(module), name)
            worker = found()
        except Exception as error:  # boundary: an import runs a person's own code
            raise EngineError(
                f"worker class {parameters.worker}: {type(error).__name__}: {error}"
            ) from error
        if not isinstance(worker, ModelWorker):
            raise EngineError(
                f"worker class {parameters.worker} is not a hostler.engines.base.ModelWorker"
            )
        return worker
