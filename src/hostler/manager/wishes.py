"""Wishes: the deployments operators asked for, in the store and at hand. Starts nothing: the plan does.

An order is checked, stored and made known in one piece, in the store's writing thread: so orders that
arrive together are carried out one after the other, and the event loop waits for none of them.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence

import msgspec

from hostler.app.config import ModelConfig
from hostler.app.faults import CrashPoint, crash_point
from hostler.app.telemetry import logger
from hostler.catalog.catalog import Catalog
from hostler.core.deployment import Deployment, Wish, detour_notes
from hostler.core.errors import ModelNotFound, NameTaken
from hostler.core.hosts import Offer
from hostler.core.model import WorkerType
from hostler.core.placing import read_needs
from hostler.core.runtime_env import read_runtime_env
from hostler.core.scaling import read_scaling
from hostler.core.serving import read_rules
from hostler.core.snapshot import ModelView
from hostler.core.worker import WorkerApplyRequest, WorkerApplyType, WorkerStartupRequest
from hostler.engines.base import check_parameters, find_engine
from hostler.manager.resolve import (
    changed,
    check_labels,
    check_rules,
    check_same,
    check_source,
    host_of,
    joined,
    request_of,
    resolve,
    settle,
)
from hostler.storage.store import DeploymentStore
from hostler.storage.writer import Writer

log = logger(__name__)


class Wishes:
    """What should be. Every change is on the disk before it is answered."""

    def __init__(
        self,
        store: DeploymentStore,
        writer: Writer,
        catalog: Catalog,
        moved: Callable[[], None],
        check_host: Callable[[str], None] = lambda host: None,
    ) -> None:
        """moved: called in the event loop after each change, before it is answered.

        check_host: raises when no machine of this name is known; config files may name one that comes.
        """
        self._store = store
        self._writer = writer
        self._catalog = catalog
        self._moved = moved
        self._check_host = check_host
        # Replaced, never changed: the event loop reads it while the thread writes.
        self._deployments: Mapping[str, Deployment] = {d.name: d for d in store.deployments()}

    def all(self) -> tuple[Deployment, ...]:
        return tuple(self._deployments.values())

    def find(self, name: str, worker_type: WorkerType | None = None) -> Deployment:
        """Return the deployment of this name or alias.

        Raises:
            ModelNotFound: none; the message names the known ones.
        """
        deployments = self._deployments
        found = deployments.get(name) or next(
            (d for d in deployments.values() if name in d.aliases), None
        )
        if found is None or worker_type not in (None, found.worker_type):
            known = ", ".join(sorted(deployments)) or "none"
            raise ModelNotFound(
                f"model {name!r} was never started here; known: {known}", param="model"
            )
        return found

    def notes(self, name: str) -> tuple[str, ...]:
        """What of this model's routing has no effect as things are, a line each."""
        found = self._deployments.get(name)
        return detour_notes(found, self.all()) if found is not None else ()

    async def start(
        self, request: WorkerStartupRequest, *, has_failed: bool = False
    ) -> tuple[Deployment, bool]:
        """Write down that this model should run; say whether that changes anything.

        has_failed: it was given up, so that another specification takes the place of the one it has.

        Raises:
            AlreadyRunning: it runs with another specification. NameTaken, BadRequest, ModelNotFound.
            StorageBusy, InsufficientStorage: it could not be written down, and is as it was.
        """
        return await self._writer.do(self._start, request, has_failed)

    async def stop(
        self, name: str, worker_type: WorkerType | None = None, *, forget: bool = False
    ) -> Deployment:
        """Write down that this model should not run. forget: and drop it for good.

        Raises:
            ModelNotFound.
        """
        return await self._writer.do(self._stop, name, worker_type, forget)

    async def apply(self, request: WorkerApplyRequest) -> Deployment:
        """Write down a RESTART or UPDATE_PARAMS, and what to go back to when it does not work.

        Raises:
            ModelNotFound, BadRequest.
        """
        return await self._writer.do(self._apply, request)

    async def join(self, offer: Offer) -> Deployment:
        """Write a model down that somebody brings a worker for; return it as that worker is.

        Raises:
            Conflict: it is there as another one, or was stopped. NameTaken, BadRequest.
        """
        return await self._writer.do(self._join, offer)

    async def change(
        self, name: str, how: Callable[[Deployment], Deployment | None]
    ) -> Deployment | None:
        """Put what `how` makes of a wish in its place, and return that; None: it makes nothing of it, or
        nobody wishes that model. how: quick, and without a look at anything else: it runs in the
        writing thread.
        """
        return await self._writer.do(self._change, name, how)

    async def declare(self, models: Sequence[ModelConfig] | None) -> None:
        """Make the config's models wishes of this start. None: the default ones.

        A model that an earlier config or the defaults wished and this one does not is stopped. Models
        started through the API keep the wish they had; a default one that was stopped stays stopped.
        """
        await self._writer.do(self._declare_all, models)

    def views(self) -> list[ModelView]:
        """What the data plane should know of the wishes."""
        return [
            ModelView(
                name=d.name,
                worker_type=d.worker_type,
                engine=d.engine,
                wanted=d.shown_instances,
                aliases=d.aliases,
                open_fields=d.open_fields,
                routing=d.routing,
                scales=d.scaling.is_on,
                renewing=d.fallback is not None and d.fallback.wanted_instances > 0,
            )
            for d in self.all()
        ]

    # Private: in the writing thread

    def _start(self, request: WorkerStartupRequest, has_failed: bool) -> tuple[Deployment, bool]:
        old = self._deployments.get(request.model)
        if old is not None and _is_bare(request):
            new, is_news = _again(old)
        else:
            asked = self._numbered(resolve(request, self._catalog, origin="api"))
            self._check_host(asked.host)
            new, is_news = settle(old, asked, has_failed=has_failed)
        _check_names(new, self.all())
        if is_news:
            self._save(new)
            _log_notes(self, [new.name])
        return new, is_news

    def _stop(self, name: str, worker_type: WorkerType | None, forget: bool) -> Deployment:
        new = old = self.find(name, worker_type)
        if old.wish is not Wish.STOPPED:
            new = msgspec.structs.replace(
                old, wish=Wish.STOPPED, generation=old.generation + 1, fallback=None
            )
        if forget:
            self._store.delete_deployment(old.name, old.worker_type)
            crash_point(CrashPoint.WISH_FORGOTTEN)
            self._publish({d.name: d for d in self.all() if d.name != old.name})
        elif new is not old:
            self._save(new)
        return new

    def _apply(self, request: WorkerApplyRequest) -> Deployment:
        old = self.find(request.model, request.worker_type)
        # what is not proven yet is nothing to go back to
        fallback = old.fallback or old
        changes: dict[str, object] = {"wish": Wish.RUNNING, "fallback": fallback}
        if request.params is not None:
            asked = {**old.params, **request.params}
            params = {name: value for name, value in asked.items() if value is not None}
            check_parameters(find_engine(old.engine), params)
            changes["params"] = params
        if request.source is not None:
            check_source(find_engine(old.engine), request.source)
            changes["source"] = request.source
        if request.host is not None:
            changes["host"] = host_of(request.host)
        if request.resources is not None:
            changes["resources"] = read_needs(request.resources, old.resources)
        if request.runtime_env is not None:
            changes["runtime_env"] = read_runtime_env(request.runtime_env, old.runtime_env)
        if request.labels is not None:
            changes["labels"] = check_labels(request.labels)
        if request.replicas is not None:
            changes |= {"replicas": request.replicas, "scaled": None}
        if request.scaling is not None:
            changes["scaling"] = read_scaling(request.scaling, old.scaling)
        if request.concurrency is not None:
            changes["concurrency"] = request.concurrency
        if request.routing is not None:
            changes["routing"] = check_rules(read_rules(request.routing, old.routing))
        new = changed(old, msgspec.structs.replace(old, **changes))
        self._check_host(new.host)
        if request.apply_type is WorkerApplyType.RESTART:
            new = msgspec.structs.replace(new, process_generation=new.generation)
        self._save(new)
        if request.routing is not None:
            _log_notes(self, [new.name])
        return new

    def _join(self, offer: Offer) -> Deployment:
        old = self._deployments.get(offer.model_name)
        new = joined(offer)
        if old is None:
            _check_names(new, self.all())
            self._save(self._numbered(new))
            return self._deployments[new.name]
        check_same(old, new)
        # what it is started with is its own affair: the instance is not the plan's
        return msgspec.structs.replace(
            new,
            generation=old.generation,
            process_generation=old.process_generation,
            replicas=old.replicas,
        )

    def _change(
        self, name: str, how: Callable[[Deployment], Deployment | None]
    ) -> Deployment | None:
        now = self._deployments.get(name)
        new = how(now) if now is not None else None
        if new is not None:
            self._save(new)
        return new

    def _declare_all(self, models: Sequence[ModelConfig] | None) -> None:
        origin = "default" if models is None else "config"
        if models is None:
            defaults = self._catalog.default_models()
            requests = [WorkerStartupRequest(model=entry.name) for entry in defaults]
        else:
            requests = [request_of(model) for model in models]
        named = {request.model for request in requests}
        for old in self.all():
            if old.origin in ("config", "default") and old.name not in named:
                self._stop(old.name, None, forget=False)
        for request in requests:
            self._declare(request, origin)
        _log_notes(self, sorted(named))

    def _declare(self, request: WorkerStartupRequest, origin: str) -> None:
        new = self._numbered(resolve(request, self._catalog, origin=origin))
        old = self._deployments.get(new.name)
        if old is not None:
            if origin == "default" and old.wish is Wish.STOPPED:
                return
            renewed = changed(old, new)
            now = msgspec.structs.replace(
                old,
                generation=new.generation,
                process_generation=new.process_generation,
                fallback=None,
                scaled=None,  # what the load asked for stays as well
            )
            if new == now:
                return  # as it was: a restart of ours changes nothing, and stops no change under way
            new = renewed
        _check_names(new, self.all())
        self._save(new)

    def _numbered(self, new: Deployment) -> Deployment:
        """Return it with a generation that no process of an earlier life of this name has."""
        first = self._store.last_generation(new.name, new.worker_type) + 1
        return msgspec.structs.replace(new, generation=first, process_generation=first)

    def _save(self, deployment: Deployment) -> None:
        old = self._deployments.get(deployment.name)
        if old is not None and old.worker_type is not deployment.worker_type:
            self._store.delete_deployment(old.name, old.worker_type)
        crash_point(CrashPoint.WISH_ASKED)
        self._store.save_deployment(deployment)
        crash_point(CrashPoint.WISH_SAVED)
        self._publish({**self._deployments, deployment.name: deployment})
        crash_point(CrashPoint.WISH_KNOWN)

    def _publish(self, deployments: Mapping[str, Deployment]) -> None:
        self._deployments = deployments
        self._writer.tell(self._moved)


def _again(old: Deployment) -> tuple[Deployment, bool]:
    """`start NAME` of a known model: as it was."""
    if old.wish is Wish.RUNNING:
        return old, False
    return (
        msgspec.structs.replace(old, wish=Wish.RUNNING, generation=old.generation + 1),
        True,
    )


def _check_names(new: Deployment, known: Iterable[Deployment]) -> None:
    for other in known:
        if other.name == new.name:
            if other.worker_type is not new.worker_type and other.wish is Wish.RUNNING:
                raise NameTaken(f"model {new.name!r} already runs as {other.worker_type.value}")
            continue
        for name in {new.name, *new.aliases} & {other.name, *other.aliases}:
            raise NameTaken(
                f"the name {name!r} already means model {other.name!r}", param="aliases"
            )


def _is_bare(request: WorkerStartupRequest) -> bool:
    """Whether a request names a model and nothing else."""
    return all(
        getattr(request, name) is None for name in request.__struct_fields__ if name != "model"
    )


def _log_notes(wishes: Wishes, names: Iterable[str]) -> None:
    """For whoever asks by a config file or in a program; the API's answers tell it by themselves."""
    for name in names:
        for note in wishes.notes(name):
            log.warning("model.note", model=name, note=note)
