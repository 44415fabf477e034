"""Replacing: orders to put a fresh process in the place of one instance. The plan carries them out, as it
does when a machine is emptied: the successor first where there is room, then the old one drains.

They are kept in memory. A controller that is started anew finishes what has begun (of two processes in one
place the newer one stays) and knows nothing of an order whose successor was never started.
"""

import asyncio
from collections.abc import Callable, Collection

from hostler.core.deployment import Deployment, Wish
from hostler.core.errors import Conflict, EngineError, HostlerError, NotFound
from hostler.core.lifecycle import Instance, State
from hostler.core.worker import OperatorEvent
from hostler.manager.files import Tell
from hostler.manager.plan import GONE, SERVING
from hostler.manager.reconcile import Reconciler
from hostler.manager.wishes import Wishes
from hostler.registry.registry import Registry

_NO_PROCESS = "its server was given by URL, and Hostler did not start it: restart it where it runs"
_BROUGHT = "it was brought by hand (`hostler worker`): end that command, and give it again"
_STATES = {
    State.DRAINING: "it finishes what it has and ends already",
    State.FAILED: "it has ended; the model starts another one by itself",
    State.STOPPED: "it has ended",
}


class Replacement:
    """One order. outcome: None when it is done, else why it is not."""

    def __init__(self, old: Instance, deployment: Deployment) -> None:
        self.old = old  # as it was last heard of
        self.deployment = deployment
        self.outcome: asyncio.Future[HostlerError | None] = (
            asyncio.get_running_loop().create_future()
        )

    def is_of(self, one: Instance) -> bool:
        return (one.worker_key, one.replica) == (self.old.worker_key, self.old.replica)


class Replacements:
    """The orders under way. It starts and ends no process."""

    def __init__(
        self,
        wishes: Wishes,
        registry: Registry,
        reconciler: Reconciler,
        tell: Tell,
        pinned: Callable[[], Collection[str]] = lambda: (),
    ) -> None:
        """pinned: the ids of instances that were brought by hand. tell: takes an order and its end."""
        self._wishes = wishes
        self._registry = registry
        self._reconciler = reconciler
        self._tell = tell
        self._pinned = pinned
        self._orders: dict[str, Replacement] = {}

    @property
    def ids(self) -> frozenset[str]:
        """The instances that are to be replaced."""
        return frozenset(self._orders)

    def order(self, instance_id: str, model: str = "") -> Replacement:
        """Let the plan replace an instance; an order that is under way is returned as it is.

        model: whose it must be; "": any.

        Raises:
            NotFound: no such instance. Conflict: it cannot be replaced; the text says why.
        """
        if (known := self._orders.get(instance_id)) is not None and model in (
            "",
            known.deployment.name,
        ):
            return known
        old = self._instance(instance_id, model)
        deployment = self._deployment(old)
        order = self._orders[instance_id] = Replacement(old, deployment)
        self._say("instance.restart", old, "a new process will take its place")
        self._reconciler.pardon(old.worker_key, old.replica)
        return order

    def moved(self, after: Instance) -> None:
        """A state has changed: some order may be done by that, or have failed."""
        for order in [one for one in self._orders.values() if one.is_of(after)]:
            if after.instance_id == order.old.instance_id:
                order.old = after
            elif after.state is State.FAILED and after.epoch > order.old.epoch:
                self._failed(order, after)
                continue
            successor = self._successor(order)
            if successor is not None and order.old.state in GONE:
                self._say("instance.replaced", order.old, f"{successor.instance_id} has its place")
                self._end(order, None)

    def wished(self) -> None:
        """A wish has changed: an order for a place that is not wished any more, or anew, is over."""
        if not self._orders:
            return
        now = {one.worker_key: one for one in self._wishes.all()}
        for order in list(self._orders.values()):
            found = now.get(order.old.worker_key)
            if (
                found is None
                or found.process_generation != order.deployment.process_generation
                or order.old.replica >= found.wanted_instances
            ):
                name = order.old.instance_id
                self._end(
                    order, Conflict(f"instance {name}: another order for its model came meanwhile")
                )

    def stop(self, why: HostlerError) -> None:
        """Tell who waits that nobody sees the orders through any more."""
        for order in list(self._orders.values()):
            self._end(order, why)

    # Private

    def _instance(self, instance_id: str, model: str) -> Instance:
        record = self._registry.record(instance_id)
        if record is None or (model and record.instance.model_name != model):
            of = f"model {model!r} has no" if model else "there is no"
            known = self._registry.of_model(model) if model else ()
            some = ", ".join(one.instance.instance_id for one in known)
            hint = f"it has {some}" if some else "`hostler ps` lists them"
            raise NotFound(f"{of} instance {instance_id[:80]!r}; {hint}")
        return record.instance

    def _deployment(self, old: Instance) -> Deployment:
        """The wish for an instance that may be replaced now. Raises Conflict."""
        found = next((one for one in self._wishes.all() if one.worker_key == old.worker_key), None)
        what = f"instance {old.instance_id} of {old.worker_key}"
        if found is None or found.wish is Wish.STOPPED or old.replica >= found.wanted_instances:
            if old.instance_id in self._pinned():
                raise Conflict(f"{what}: {_BROUGHT}")
            raise Conflict(f"{what} is not wished any more: it ends, and nothing takes its place")
        if found.urls:
            raise Conflict(f"{what}: {_NO_PROCESS}")
        if old.instance_id in self._pinned():
            raise Conflict(f"{what}: {_BROUGHT}")
        if old.state not in SERVING:
            why = _STATES.get(old.state, "it does not serve yet; wait until it is ready")
            raise Conflict(f"{what} is {old.state.value}: {why}")
        if found.fallback is not None or old.generation != found.process_generation:
            raise Conflict(
                f"{what}: a change of its model is under way, which replaces every instance; "
                f"`hostler model show {found.name}` says how far it is"
            )
        return found

    def _successor(self, order: Replacement) -> Instance | None:
        """The process that serves in its place."""
        places = (record.instance for record in self._registry.of_model(order.old.model_name))
        return next(
            (
                one
                for one in places
                if order.is_of(one)
                and one.instance_id != order.old.instance_id
                and one.state is State.READY
            ),
            None,
        )

    def _failed(self, order: Replacement, successor: Instance) -> None:
        """One failed try is enough as long as the old one serves: that goes on. Else it is tried again."""
        old = order.old
        why = (
            f"its successor failed: {successor.reason.splitlines()[0] if successor.reason else ''}"
        )
        if old.state in SERVING:
            self._say("instance.kept", old, why)
            told = EngineError(
                f"instance {old.instance_id} of {old.worker_key} goes on as it was; {why}",
                model=old.model_name,
            )
            self._end(order, told)
            self._reconciler.pardon(old.worker_key, old.replica)
        elif self._reconciler.crashes(old.worker_key, old.replica).verdict:
            self._end(order, EngineError(f"{old.worker_key}: {why}", model=old.model_name))

    def _end(self, order: Replacement, outcome: HostlerError | None) -> None:
        del self._orders[order.old.instance_id]
        if not order.outcome.done():
            order.outcome.set_result(outcome)
        self._reconciler.stir(order.old.model_name)

    def _say(self, kind: str, one: Instance, message: str) -> None:
        self._tell(
            OperatorEvent(
                kind=kind, model=one.model_name, instance_id=one.instance_id, message=message
            )
        )
