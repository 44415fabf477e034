"""Wishes: the deployments operators asked for, in the store and at hand. Starts nothing: the plan does."""

from collections.abc import Callable, Sequence

import msgspec

from hostler.app.config import ModelConfig
from hostler.catalog.catalog import Catalog
from hostler.core.deployment import Deployment, Wish
from hostler.core.errors import ModelNotFound, NameTaken
from hostler.core.model import WorkerType
from hostler.core.snapshot import ModelView
from hostler.core.worker import WorkerApplyRequest, WorkerApplyType, WorkerStartupRequest
from hostler.engines.base import check_parameters, find_engine
from hostler.manager.resolve import changed, request_of, resolve, settle
from hostler.storage.store import DeploymentStore


class Wishes:
    """What should be. Every change is on the disk before it is answered."""

    def __init__(self, store: DeploymentStore, catalog: Catalog, moved: Callable[[], None]) -> None:
        """moved: called after each change."""
        self._store = store
        self._catalog = catalog
        self._moved = moved
        self._deployments = {d.name: d for d in store.deployments()}

    def all(self) -> tuple[Deployment, ...]:
        return tuple(self._deployments.values())

    def find(self, name: str, worker_type: WorkerType | None = None) -> Deployment:
        """Return the deployment of this name or alias.

        Raises:
            ModelNotFound: none; the message names the known ones.
        """
        found = self._deployments.get(name) or next(
            (d for d in self._deployments.values() if name in d.aliases), None
        )
        if found is None or worker_type not in (None, found.worker_type):
            known = ", ".join(sorted(self._deployments)) or "none"
            raise ModelNotFound(
                f"model {name!r} was never started here; known: {known}", param="model"
            )
        return found

    def start(
        self, request: WorkerStartupRequest, *, origin: str = "api"
    ) -> tuple[Deployment, bool]:
        """Write down that this model should run; say whether that changes anything.

        Raises:
            AlreadyRunning: it runs with another specification. NameTaken, BadRequest, ModelNotFound.
        """
        old = self._deployments.get(request.model)
        if old is not None and _is_bare(request):
            new, is_news = self._again(old)
        else:
            new, is_news = settle(old, resolve(request, self._catalog, origin=origin))
        self._check_names(new)
        if is_news:
            self._save(new)
        return new, is_news

    def stop(self, name: str, worker_type: WorkerType | None = None) -> Deployment:
        """Write down that this model should not run."""
        old = self.find(name, worker_type)
        if old.wish is Wish.STOPPED:
            return old
        new = msgspec.structs.replace(old, wish=Wish.STOPPED, generation=old.generation + 1)
        self._save(new)
        return new

    def forget(self, deployment: Deployment) -> None:
        """Drop a deployment for good."""
        self._store.delete_deployment(deployment.name, deployment.worker_type)
        self._deployments.pop(deployment.name, None)
        self._moved()

    def apply(self, request: WorkerApplyRequest) -> tuple[Deployment, Deployment]:
        """Write down a RESTART or UPDATE_PARAMS; return the deployment before and after.

        Raises:
            ModelNotFound, BadRequest.
        """
        old = self.find(request.model)
        changes: dict[str, object] = {"wish": Wish.RUNNING}
        if request.params is not None:
            params = {**old.params, **request.params}
            check_parameters(find_engine(old.engine), params)
            changes["params"] = params
        if request.replicas is not None:
            changes["replicas"] = request.replicas
        if request.concurrency is not None:
            changes["concurrency"] = request.concurrency
        new = changed(old, msgspec.structs.replace(old, **changes))
        if request.apply_type is WorkerApplyType.RESTART:
            new = msgspec.structs.replace(new, process_generation=new.generation)
        self._save(new)
        return old, new

    def take_back(self, old: Deployment) -> Deployment:
        """Return to an earlier specification: the processes started from it are right again."""
        now = self.find(old.name)
        back = msgspec.structs.replace(old, generation=now.generation + 1)
        self._save(back)
        return back

    def declare(self, models: Sequence[ModelConfig]) -> None:
        """Make the config's models, or the default ones when it names none, wishes of this start.

        A model that an earlier config or the defaults wished and this one does not is stopped. Models
        started through the API keep the wish they had; a default one that was stopped stays stopped.
        """
        origin = "config" if models else "default"
        requests = [request_of(model) for model in models] or [
            WorkerStartupRequest(model=entry.name) for entry in self._catalog.default_models()
        ]
        named = {request.model for request in requests}
        for old in self.all():
            if old.origin != "api" and old.name not in named:
                self.stop(old.name)
        for request in requests:
            self._declare(request, origin)

    def views(self) -> list[ModelView]:
        """What the data plane should know of the wishes."""
        return [
            ModelView(
                name=d.name,
                worker_type=d.worker_type,
                engine=d.engine,
                wanted=d.wanted_instances,
                aliases=d.aliases,
                open_fields=d.open_fields,
            )
            for d in self._deployments.values()
        ]

    # Private

    def _declare(self, request: WorkerStartupRequest, origin: str) -> None:
        new = resolve(request, self._catalog, origin=origin)
        old = self._deployments.get(new.name)
        if old is not None:
            if origin == "default" and old.wish is Wish.STOPPED:
                return
            new = changed(old, new)
        self._check_names(new)
        self._save(new)

    def _again(self, old: Deployment) -> tuple[Deployment, bool]:
        """`start NAME` of a known model: as it was."""
        if old.wish is Wish.RUNNING:
            return old, False
        return (
            msgspec.structs.replace(old, wish=Wish.RUNNING, generation=old.generation + 1),
            True,
        )

    def _check_names(self, new: Deployment) -> None:
        for other in self._deployments.values():
            if other.name == new.name:
                if other.worker_type is not new.worker_type and other.wish is Wish.RUNNING:
                    raise NameTaken(f"model {new.name!r} already runs as {other.worker_type.value}")
                continue
            for name in {new.name, *new.aliases} & {other.name, *other.aliases}:
                raise NameTaken(
                    f"the name {name!r} already means model {other.name!r}", param="aliases"
                )

    def _save(self, deployment: Deployment) -> None:
        old = self._deployments.get(deployment.name)
        if old is not None and old.worker_type is not deployment.worker_type:
            self._store.delete_deployment(old.name, old.worker_type)
        self._store.save_deployment(deployment)
        self._deployments[deployment.name] = deployment
        self._moved()


def _is_bare(request: WorkerStartupRequest) -> bool:
    """Whether a request names a model and nothing else."""
    return all(
        getattr(request, name) is None for name in request.__struct_fields__ if name != "model"
    )
