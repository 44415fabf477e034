"""Pools: one for each model a router knows, kept up with snapshots at the cost of what they change."""

from collections.abc import Callable, Iterable, Mapping, Sequence

from hostler.core.change import Change, Picture
from hostler.core.errors import ModelNotFound
from hostler.core.snapshot import InstanceView, ModelView, Snapshot
from hostler.routing.afar import Afar
from hostler.routing.health import Health
from hostler.routing.policies import Loads, Policy
from hostler.routing.pool import ModelPool


class Pools:
    """The pools of one router.

    by_model: each once. named: with aliases. shared_by: how many routers of this machine lend the
    same slots. afar: what those of other machines have.
    """

    __slots__ = (
        "_answered_s",
        "_health",
        "_homeless",
        "_homes",
        "_loads",
        "_make_policy",
        "afar",
        "by_model",
        "named",
        "picture",
        "shared_by",
    )

    def __init__(
        self,
        make_policy: Callable[[ModelView], Policy],
        loads: Loads,
        health: Health,
        answered_s: dict[str, float],
    ) -> None:
        """health, answered_s: what is known of instances, to be forgotten with them."""
        self.picture = Picture()
        self.by_model: dict[str, ModelPool] = {}
        self.named: dict[str, ModelPool] = {}
        self.shared_by = 1
        self.afar = Afar()
        self._make_policy = make_policy
        self._loads = loads
        self._health = health
        self._answered_s = answered_s
        self._homes: dict[str, ModelPool] = {}  # by instance
        self._homeless: dict[str, InstanceView] = {}  # of models that are not known

    def become(self, snapshot: Snapshot) -> Sequence[ModelPool]:
        """Turn to a whole snapshot; return the pools of which something is other."""
        return self._apply(self.picture.become(snapshot))

    def take(self, change: Change) -> Sequence[ModelPool]:
        """Take a step; return the pools of which something is other."""
        self.picture.apply(change)
        return self._apply(change)

    def instance(self, instance_id: str) -> InstanceView | None:
        """The instance of this id, in whatever state."""
        return self.picture.instances.get(instance_id)

    def hear(
        self,
        machines: int,
        theirs: Mapping[str, int],
        ours: Mapping[str, int],
        changed: Iterable[str],
    ) -> bool:
        """Go by what gateways of other machines have now; True: there is more for this one than before.

        ours: what they were told of this machine. changed: instances of which either is other than before.
        """
        afar = self.afar
        is_other, afar.machines = afar.machines != machines, machines
        afar.theirs, afar.ours = theirs, ours
        is_more = False
        ids = set(self._homes) if is_other else set(changed)
        for pool in self.by_model.values():
            if pool.is_wanted is not afar.is_wanted(pool.model.name):
                pool.is_wanted = not pool.is_wanted
                ids.update(pool.limits)
        for instance_id in ids:
            home = self._homes.get(instance_id)
            if home is not None and home.share_out(self.picture.instances[instance_id]):
                is_more = True
        return is_more

    def count_usable(self, name: str) -> int:
        """How many ready instances probes have not found dead, without a walk over them."""
        pool = self.named.get(name)
        if pool is None:
            return 0
        down = {one for one in self._health.held() if self._health.is_down(one)}
        return pool.places.count - len(down & pool.limits.keys())

    # Private

    def _apply(self, change: Change) -> Sequence[ModelPool]:
        touched: dict[str, ModelPool] = {}
        removed = self._apply_models(change, touched)
        for instance_id in change.gone:
            self._health.forget(instance_id)
            self._answered_s.pop(instance_id, None)
            self._homeless.pop(instance_id, None)
            home = self._homes.pop(instance_id, None)
            if home is not None:
                home.drop(instance_id)
                touched[home.model.name] = home
        for instance in change.instances:
            home = self.by_model.get(instance.model_name)
            if home is None:
                self._homeless[instance.instance_id] = instance
                continue
            home.put(instance, self._loads)
            self._homes[instance.instance_id] = touched[instance.model_name] = home
        for pool in touched.values():
            pool.settle()
        for pool in removed:  # only now: who is told may ask for another model
            gone = ModelNotFound(f"model {pool.model.name!r} was removed")
            for waiter in pool.queue:
                if pool.queue.remove(waiter):
                    waiter.done(gone)
        return list(touched.values())

    def _apply_models(self, change: Change, touched: dict[str, ModelPool]) -> list[ModelPool]:
        """Return the pools of models that are no more."""
        told = {model.name for model in change.models}  # one that is gone and told has moved
        removed = [
            self.by_model.pop(name)
            for name in change.models_gone
            if name not in told and name in self.by_model
        ]
        for pool in removed:
            self._close(pool)
        are_named_anew = bool(change.models_gone)
        for model in change.models:
            known = self.by_model.get(model.name)
            if known is None:
                known = self.by_model[model.name] = self._open(model)
                are_named_anew = True
            elif known.model.aliases != model.aliases:
                are_named_anew = True
            known.describe(model)
            touched[model.name] = known
        if are_named_anew:
            self.named = {}
            for model in self.picture.models.values():
                for name in (model.name, *model.aliases):
                    self.named.setdefault(name, self.by_model[model.name])
        return removed

    def _open(self, model: ModelView) -> ModelPool:
        pool = ModelPool(model, self._make_policy, self.afar)
        pool.shared_by = self.shared_by
        for one in [one for one in self._homeless.values() if one.model_name == model.name]:
            pool.put(self._homeless.pop(one.instance_id), self._loads)
            self._homes[one.instance_id] = pool
        return pool

    def _close(self, pool: ModelPool) -> None:
        """A model is no more. What is out comes back."""
        for one in pool.places.everyone():
            pool.drop(one.instance_id)
            del self._homes[one.instance_id]
            self._homeless[one.instance_id] = one
