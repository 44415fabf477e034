"""plan(): what to do so that what is becomes what was wished. Pure: no I/O, no clock, no state.

Running it twice orders nothing twice: an order shows in the next `seen`.
"""

from collections.abc import Collection, Iterator, Mapping, Sequence

import msgspec

from hostler.app.config import LifeConfig
from hostler.core.deployment import Deployment, Wish
from hostler.core.lifecycle import Instance, State

GONE = frozenset({State.FAILED, State.STOPPED})
SERVING = frozenset({State.READY, State.SUSPECT})


class Launch(msgspec.Struct, frozen=True, kw_only=True):
    """Start a process for this replica. replaces: the failed record it takes the place of."""

    worker_key: str
    replica: int
    replaces: str | None = None


class Drain(msgspec.Struct, frozen=True, kw_only=True):
    """Let this instance finish, then end its process. is_followed: another one serves in its place."""

    instance_id: str
    reason: str
    is_followed: bool = False


class Forget(msgspec.Struct, frozen=True, kw_only=True):
    """Drop the record of an instance that is gone."""

    instance_id: str


Action = Launch | Drain | Forget


class Crashes(msgspec.Struct, frozen=True, kw_only=True):
    """The recent crashes of one replica. Monotonic seconds."""

    at_s: tuple[float, ...] = ()
    next_try_s: float = 0.0
    verdict: bool = False  # given up until somebody resets it


Place = tuple[str, int]  # worker_key, replica


def plan(
    wanted: Sequence[Deployment],
    seen: Sequence[Instance],
    now_s: float,
    crashes: Mapping[Place, Crashes],
    cramped: Collection[str] = (),
    unheard: Collection[str] = (),
    leaving: Collection[str] = (),
    pinned: Collection[str] = (),
) -> list[Action]:
    """Return the actions that lead from `seen` to `wanted`.

    cramped: the worker keys of models that have no memory for one process more.
    unheard: ids of adopted instances that have not spoken yet: most probably they serve.
    leaving: ids of instances whose machine is to be emptied: they are replaced as after a change.
    pinned: ids of instances that were brought by hand: they serve as long as their model is wished.
    One replacement at a time in a model whose processes are to be renewed: the new one is ready before
    the old one drains, so a model with a free slot of memory serves all through. A cramped one first
    lets the old process go.
    """
    by_place: dict[Place, list[Instance]] = {}
    for instance in seen:
        if instance.instance_id in pinned:
            continue
        by_place.setdefault((instance.worker_key, instance.replica), []).append(instance)
    serving = {i.instance_id for i in seen if i.state in SERVING or i.instance_id in unheard}
    actions: list[Action] = []
    for deployment in wanted:
        machine = _Machine(
            is_cramped=deployment.worker_key in cramped, serving=serving, leaving=leaving
        )
        actions.extend(_plan_deployment(deployment, by_place, now_s, crashes, machine))
    for instances in by_place.values():  # what is left belongs to nobody
        for instance in instances:
            actions.extend(_away(instance, "it is not wished any more"))
    kept = {deployment.worker_key for deployment in wanted if deployment.wish is Wish.RUNNING}
    for instance in seen:
        is_kept = instance.worker_key in kept and instance.state not in GONE
        if instance.instance_id in pinned and not is_kept:
            actions.extend(_away(instance, "it is not wished any more"))
    return actions


def after_crash(crashes: Crashes, now_s: float, life: LifeConfig, jitter: float) -> Crashes:
    """Return the crashes with one more: the next try doubles from backoff_first_s to backoff_last_s.

    jitter: 0..1, spreads the tries of many replicas over the last tenth of the wait.
    """
    recent = tuple(at for at in crashes.at_s if now_s - at < life.crash_window_s)
    wait_s = min(life.backoff_first_s * 2 ** len(recent), life.backoff_last_s)
    recent = (*recent, now_s)
    return Crashes(
        at_s=recent,
        next_try_s=now_s + wait_s * (0.9 + 0.1 * jitter),
        verdict=len(recent) >= life.crash_limit,
    )


# Private

_NEWER = "a newer process has its place"


class _Machine(msgspec.Struct, frozen=True, kw_only=True):
    """How it is with the processes of one model, beyond their states."""

    is_cramped: bool
    serving: Collection[str]
    leaving: Collection[str]

    def is_right(self, instance: Instance, deployment: Deployment) -> bool:
        """Whether a process is what is wished, where it may stay."""
        is_new = instance.generation == deployment.process_generation
        return is_new and instance.instance_id not in self.leaving


def _plan_deployment(
    deployment: Deployment,
    by_place: dict[Place, list[Instance]],
    now_s: float,
    crashes: Mapping[Place, Crashes],
    machine: _Machine,
) -> Iterator[Action]:
    key, is_cramped, serving = deployment.worker_key, machine.is_cramped, machine.serving
    places = [(key, replica) for replica in range(deployment.wanted_instances)]
    mine = {place: by_place.pop(place, []) for place in places}
    renewing = any(_is_renewing(deployment, instances, machine) for instances in mine.values())
    if is_cramped:
        renewing = renewing or not all(map(_serves, mine.values()))
    for place, instances in mine.items():
        living = [i for i in instances if i.state not in GONE and i.state is not State.DRAINING]
        gone = [i for i in instances if i.state in GONE]
        right = [i for i in living if machine.is_right(i, deployment)]
        other = [i for i in living if i not in right]
        old = [i for i in other if i.instance_id in serving]
        early = [i for i in other if i not in old]
        changed = [i for i in early if i.generation != deployment.process_generation]
        yield from _drains(changed, "changed before it served")
        yield from _drains([i for i in early if i not in changed], "its host is to be emptied")
        best = max((i for i in old if i.state is State.READY), key=_age, default=None)
        if best is not None:
            passed = [i for i in old if i is not best and i.epoch <= best.epoch]
            yield from _drains(passed, _NEWER, is_followed=True)
            old = [i for i in old if i not in passed]
        failed = max(
            (i for i in gone if i.state is State.FAILED), key=lambda i: i.epoch, default=None
        )
        yield from (Forget(instance_id=i.instance_id) for i in gone if i is not failed)
        if right:
            keep = max(right, key=_age)
            yield from _drains(_passed(right, keep, serving), _NEWER, is_followed=True)
            if _serves(right):
                yield from _drains(old, "replaced by a newer process", is_followed=True)
            if failed is not None:
                yield Forget(instance_id=failed.instance_id)
            continue
        crash = crashes.get(place, Crashes())
        if crash.verdict or now_s < crash.next_try_s or (old and renewing):
            continue
        if len(old) > 1:
            continue  # a third would be one too many; soon it is known which of them serves
        if is_cramped and old:
            renewing = True
            yield from _drains(old, "no memory for two: its successor starts when it is gone")
            continue
        if is_cramped and any(i.state is State.DRAINING for i in instances):
            continue
        renewing = renewing or bool(old)
        replaces = failed.instance_id if failed else None
        yield Launch(worker_key=key, replica=place[1], replaces=replaces)


def _age(instance: Instance) -> tuple[int, str]:
    """What orders the processes of a place: their epochs, which are never equal in truth."""
    return instance.epoch, instance.instance_id


def _passed(right: Sequence[Instance], keep: Instance, serving: Collection[str]) -> list[Instance]:
    """Two for one place: the older epoch loses, but one that serves not before `keep` does."""
    others = [i for i in right if i is not keep]
    if keep.state is State.READY:
        return others
    known = [i for i in others if i.instance_id in serving]
    best = max(known, key=lambda i: (i.state is State.READY, *_age(i)), default=None)
    return [i for i in others if i is not best]


def _is_renewing(deployment: Deployment, instances: Sequence[Instance], machine: _Machine) -> bool:
    """Whether a new process of this place is on its way while the old one still serves."""
    living = [i for i in instances if i.state not in GONE and i.state is not State.DRAINING]
    right = [i for i in living if machine.is_right(i, deployment)]
    return bool(right) and any(i.instance_id in machine.serving for i in living if i not in right)


def _serves(instances: Sequence[Instance]) -> bool:
    return any(i.state is State.READY for i in instances)


def _drains(
    instances: Sequence[Instance], reason: str, *, is_followed: bool = False
) -> Iterator[Action]:
    return (
        Drain(instance_id=i.instance_id, reason=reason, is_followed=is_followed) for i in instances
    )


def _away(instance: Instance, reason: str) -> Iterator[Action]:
    if instance.state in GONE:
        yield Forget(instance_id=instance.instance_id)
    elif instance.state is not State.DRAINING:
        yield Drain(instance_id=instance.instance_id, reason=reason)
