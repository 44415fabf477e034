"""What the loop remembers of crashes, and that it leaves others their turn."""

import asyncio

from hostler.app.config import LifeConfig
from hostler.core.deployment import Deployment
from hostler.core.lifecycle import Instance, State
from hostler.core.model import WorkerType
from hostler.manager.plan import Launch
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
