"""A policy of an operator's own: found by its name, and never the reason why a request fails."""

from collections.abc import Sequence, Set
from importlib import import_module, invalidate_caches

from hostler.app.telemetry import logger
from hostler.core.errors import BadRequest
from hostler.core.snapshot import InstanceView
from hostler.routing.ask import Ask
from hostler.routing.policies import LeastInFlight, Loads, Policy
from hostler.routing.policy import RoutingPolicy

log = logger(__name__)


def find_policy(named: str) -> type[RoutingPolicy] | type[Policy]:
    """Import the class called `package.module:Class`.

    Raises:
        BadRequest: it cannot be imported, or is no RoutingPolicy.
    """
    module, _, name = named.partition(":")
    invalidate_caches()  # its file may be newer than our last look
    try:
        found = getattr(import_module(module), name)
    except (Exception, SystemExit) as error:  # boundary: an import runs a person's own code
        raise BadRequest(
            f"routing.policy {named}: {type(error).__name__}: {error}; the module must be found by the "
            "Python that runs Hostler: install it there, or name its folder in PYTHONPATH",
            param="routing",
        ) from error
    if not (isinstance(found, type) and issubclass(found, RoutingPolicy | Policy)):
        raise BadRequest(
            f"routing.policy {named}: not a class that derives from hostler.RoutingPolicy",
            param="routing",
        )
    return found


class Guarded(Policy):
    """An operator's policy. Where it fails, least in flight takes its place, for that choice alone.

    The first failure is logged; `problem` keeps it for as long as the policy is in use.
    """

    wants_list = True

    def __init__(self, named: str, model: str) -> None:
        super().__init__()
        self._named = named
        self._model = model
        self._least = LeastInFlight()
        self._own: RoutingPolicy | Policy | None = None
        try:
            self._own = find_policy(named)()
        except BadRequest as error:
            self._failed(error.message)
        except Exception as error:  # boundary: a person's own code
            self._failed(_told("its constructor", error))
        if self._own is not None:
            self.wants_tokens = bool(self._own.wants_tokens)
            self.learns = bool(self._own.learns)

    def update(self, ready: Sequence[InstanceView]) -> None:
        self._least.update(ready)
        if self._own is not None:
            try:
                self._own.update(ready)
            except Exception as error:  # boundary: a person's own code
                self._failed(_told("update", error))

    def forget(self, gone: Set[str]) -> None:
        if self._own is not None:
            try:
                self._own.forget(gone)
            except Exception as error:  # boundary: a person's own code
                self._failed(_told("forget", error))

    def taken(self, chosen: InstanceView, ask: Ask) -> None:
        if self._own is not None:
            try:
                self._own.taken(chosen, ask)
            except Exception as error:  # boundary: a person's own code
                self._failed(_told("taken", error))

    def choose(self, ready: Sequence[InstanceView], loads: Loads, ask: Ask) -> InstanceView:
        own = self._own
        if own is not None:
            try:
                chosen = own.choose(ready, loads, ask)
                if any(chosen is one for one in ready):
                    self.name, self.why = "own", str(own.why)[:WHY_CHARS]
                    return chosen
                self._failed(f"choose returned {chosen!r:.64}, which is none of `ready`")
            except Exception as error:  # boundary: a person's own code
                self._failed(_told("choose", error))
        self.name, self.why = self._least.name, "the model's own policy failed, least in flight"
        return self._least.choose(ready, loads, ask)

    # Private

    def _failed(self, what: str) -> None:
        if not self.problem:
            log.error("routing.policy_failed", model=self._model, policy=self._named, reason=what)
            self.problem = what


WHY_CHARS = 96


def _told(where: str, error: Exception) -> str:
    return f"{where} raised {type(error).__name__}: {error}"[:256]
