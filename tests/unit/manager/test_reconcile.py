"""What the loop remembers of crashes, and that it leaves others their turn."""

import asyncio

import msgspec

from hostler.app.config import LifeConfig
from hostler.core.deployment import Deployment
from hostler.core.lifecycle import Instance, State
from hostler.core.model import WorkerType
from hostler.manager.plan import Drain, Launch
from hostler.manager.reconcile import GATEWAYS_BACK_S, Reconciler

NOW_S = 100.0
WISHED = Deployment(
    name="m", worker_type=WorkerType.LLM, engine="fake", generation=7, process_generation=4
)


class Hands:
    """Takes every order and does nothing."""

    def launch(self, deployment: Deployment, replica: int) -> None: ...
    def drain(self, instance_id: str, reason: str) -> None: ...
    def forget(self, instance_id: str) -> None: ...


def instance(name: str, generation: int, state: State) -> Instance:
    return Instance(
        instance_id=name,
        epoch=generation,
        generation=generation,
        replica=0,
        model_name="m",
        worker_key="m@llm",
        state=state,
    )


def reconciler(seen: list[Instance]) -> Reconciler:
    return Reconciler(
        wishes=lambda: [WISHED],
        instances=lambda: seen,
        hands=Hands(),
        life=LifeConfig(),
        clock=lambda: NOW_S,
    )


def test_who_is_followed_stays_until_gateways_are_back_from_a_restart() -> None:
    async def main() -> None:
        now_s, drained = NOW_S, []
        hands = Hands()
        hands.drain = lambda instance_id, reason: drained.append(instance_id)  # type: ignore[method-assign]
        seen = [instance("old", 3, State.READY), instance("new", 4, State.READY)]
        ours = Reconciler(
            wishes=lambda: [WISHED],
            instances=lambda: seen,
            hands=hands,
            life=LifeConfig(),
            clock=lambda: now_s,
        )
        async with ours.running():
            ours.look()
            assert drained == []
            now_s += GATEWAYS_BACK_S
            ours.look()
            assert drained == ["old"]

    asyncio.run(main())


def test_a_look_that_wakes_itself_takes_nobody_s_turn() -> None:
    async def main() -> None:
        looks, thrice = 0, asyncio.Event()

        def again() -> None:
            nonlocal looks
            looks += 1
            ours.wake()
            if looks == 3:
                asyncio.get_running_loop().call_soon(thrice.set)

        ours = Reconciler(
            wishes=tuple,
            instances=tuple,
            hands=Hands(),
            life=LifeConfig(),
            clock=lambda: NOW_S,
            look_first=again,
        )
        async with ours.running():
            async with asyncio.timeout(5):
                await thrice.wait()

    asyncio.run(main())


def test_one_instance_is_replaced_by_a_successor_first_if_there_is_room() -> None:
    """Without, it makes room: as when its model is restarted."""
    wish = msgspec.structs.replace(WISHED, replicas=2)
    for has_room in (True, False):
        seen = [
            instance("old", 4, State.READY),
            msgspec.structs.replace(instance("other", 4, State.READY), replica=1),
        ]
        ours = Reconciler(
            wishes=lambda wish=wish: [wish],  # type: ignore[misc]
            instances=lambda seen=seen: seen,  # type: ignore[misc]
            hands=Hands(),
            life=LifeConfig(),
            clock=lambda: NOW_S,
            has_room=lambda deployment, has_room=has_room: has_room,  # type: ignore[misc]
            replacing=lambda: {"old"},
        )
        [action] = ours.look()
        if has_room:
            assert action == Launch(worker_key="m@llm", replica=0)
            new = msgspec.structs.replace(instance("new", 5, State.STARTING), generation=4)
            seen.append(new)
            assert ours.look() == []
            seen[2] = msgspec.structs.replace(new, state=State.READY)
            ours._gateways_back_at_s = 0.0
            [action] = ours.look()
        assert isinstance(action, Drain)
        assert action.instance_id == "old"


def test_the_crashes_of_one_place_are_pardoned_and_no_others() -> None:
    ours = reconciler([])
    for replica in (0, 1):
        ours.crashed(
            msgspec.structs.replace(instance("a", 4, State.FAILED), replica=replica), final=False
        )
    ours.pardon("m@llm", 1)
    assert ours.crashes("m@llm", 0).at_s == (NOW_S,)
    assert ours.crashes("m@llm", 1).at_s == ()


def test_a_late_death_of_a_change_that_was_taken_back_holds_up_nobody() -> None:
    serving = instance("b", 5, State.READY)  # of a change between; the wish is the one before
    late = instance("c", 6, State.FAILED)
    ours = reconciler([serving, late])
    assert not ours.crashed(late, final=True).verdict
    assert not ours.has_verdict("m@llm")
    assert Launch(worker_key="m@llm", replica=0, replaces="c") in ours.look()


def test_a_hopeless_process_of_what_is_wished_is_not_tried_again() -> None:
    failed = instance("c", 4, State.FAILED)
    ours = reconciler([failed])
    assert ours.crashed(failed, final=True).verdict
    assert ours.look() == []


class Scene:
    """A reconciler over two models, whose wishes, instances and clock a test changes."""

    def __init__(self) -> None:
        self.now_s = NOW_S
        self.wished = [WISHED, msgspec.structs.replace(WISHED, name="other")]
        self.seen: list[Instance] = []
        self.looked_at: list[str] = []
        self.ours = Reconciler(
            wishes=lambda: tuple(self.wished),
            instances=lambda: self.seen,
            of_model=self._of_model,
            hands=Hands(),
            life=LifeConfig(),
            clock=lambda: self.now_s,
        )
        self.ours.look()

    def _of_model(self, name: str) -> list[Instance]:
        self.looked_at.append(name)
        return [one for one in self.seen if one.model_name == name]

    def planned(self) -> list[str]:
        """The models that the next pass begins a process of."""
        actions = self.ours.look_on()
        return [one.worker_key for one in actions if isinstance(one, Launch)]


def test_only_what_has_stirred_is_planned() -> None:
    scene = Scene()
    assert scene.planned() == [], "as before"
    scene.ours.stir("m")
    assert scene.planned() == ["m@llm"]
    assert scene.looked_at == ["m"]
    assert scene.planned() == []


def test_a_changed_wish_is_found_by_itself() -> None:
    scene = Scene()
    scene.wished[1] = msgspec.structs.replace(scene.wished[1], generation=8)
    assert scene.planned() == ["other@llm"]


def test_what_is_wished_no_more_is_drained() -> None:
    scene = Scene()
    scene.seen = [instance("one", 4, State.READY)]
    del scene.wished[0]
    (action,) = scene.ours.look_on()
    assert action == Drain(instance_id="one", reason="it is not wished any more")


def test_after_a_crash_the_next_try_comes_by_time() -> None:
    scene = Scene()
    scene.seen = [instance("one", 4, State.FAILED)]
    scene.ours.crashed(scene.seen[0], final=False)
    next_try_s = scene.ours.crashes("m@llm", 0).next_try_s
    scene.ours.stir("m")
    assert scene.planned() == []
    scene.now_s = next_try_s - 0.01
    assert "m@llm" not in scene.planned()
    scene.now_s = next_try_s
    assert "m@llm" in scene.planned(), "when it is due, not at the next look"


def test_a_model_that_waits_for_memory_is_looked_at_each_second() -> None:
    scene = Scene()
    scene.seen = [instance("old", 3, State.READY)]
    scene.ours.stir("m")
    assert scene.planned() == ["m@llm"], "the new one first"
    scene.now_s += 1.0
    assert "m@llm" in scene.planned()


def test_whatever_nobody_told_is_found_within_ten_seconds() -> None:
    scene, found = Scene(), []
    for _ in range(10):
        scene.now_s += 1.0
        found += scene.planned()
    assert set(found) == {"m@llm", "other@llm"}


def test_adopted_ones_that_nobody_waits_for_any_more_are_replaced() -> None:
    scene = Scene()
    unheard = ["one"]
    scene.ours._unheard = lambda: tuple(unheard)
    scene.now_s += 1.0
    assert len(scene.planned()) == 2
    unheard.clear()
    scene.now_s += 1.0
    assert len(scene.planned()) == 2
    scene.now_s += 1.0
    assert len(scene.planned()) <= 1
