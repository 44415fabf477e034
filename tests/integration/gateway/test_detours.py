"""Other models answer by an operator's rules: splits and fallbacks, through a gateway to real engines."""

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import pytest

from hostler.app.config import GatewayConfig
from hostler.core.snapshot import InstanceView, ModelView
from hostler.testing import fake_text
from hostler.wire.client import Response, UpstreamLost
from tests.integration.gateway.rig import LIMITED, METRICS, Rig, error_of, rig, text_of, until
from tests.unit.routing.fleet import instance, model

FALL = {"unavailable": ("n",), "overloaded": ("n",), "context_too_long": ("n",)}


def publish(ours: Rig, views: Mapping[str, ModelView], *, concurrency: int = 8) -> None:
    """Make each engine an instance of the model that its id begins with."""
    instances: list[InstanceView] = [
        instance(i, i[0], concurrency=concurrency, endpoint=engine.endpoint)
        for i, engine in ours.engines.items()
        if engine.process.poll() is None
    ]
    ours.source.publish(tuple(views.values()), instances)


def views(**rules: Any) -> dict[str, ModelView]:
    """Model `m` with these rules, and two others without any."""
    return {"m": model("m", **rules), "n": model("n"), "o": model("o")}


def answered_by(answer: Response) -> str:
    """The model whose tokens these are; the header must say the same."""
    assert answer.status == 200, answer.body
    name = text_of(answer).split(fake_text.BAR)[0].split()[0]
    assert answer.header(b"x-hostler-model") == name.encode()
    return name


def run(main: Callable[[Rig], Awaitable[None]], settings: GatewayConfig | None = None) -> None:
    async def body() -> None:
        async with rig(settings) as ours:
            await main(ours)

    asyncio.run(body())


async def metric(ours: Rig, line: str) -> float:
    text = ours.gateway.metrics.text().decode()
    return sum(float(one.split()[-1]) for one in text.splitlines() if one.startswith(line))


def test_a_split_sends_its_share_evenly_and_a_session_to_one_side() -> None:
    async def main(ours: Rig) -> None:
        await ours.start_engine("m1", "m")
        await ours.start_engine("n1", "n")
        publish(ours, views(split={"n": 20.0}))
        counted = Counter([answered_by(await ours.chat(f"p {k}")) for k in range(100)])
        assert 18 <= counted["n"] <= 22
        sides = {}
        for k in range(40):
            asked = {"user": f"user {k}"}
            sides[k] = answered_by(await ours.chat("a", **asked))
            assert answered_by(await ours.chat("b", **asked)) == sides[k]
        assert 2 <= Counter(sides.values())["n"] <= 16
        publish(ours, views(split={"n": 60.0}))
        for k, side in sides.items():
            after = answered_by(await ours.chat("c", user=f"user {k}"))
            assert after == "n" or side == "m"  # a larger share moves none back
        tries = [one.tries[0].why for one in ours.gateway.relays.ring if one.model == "n"]
        assert tries[0] == "split 20 % to n: the only one ready"

    run(main)


def test_a_split_leaves_who_may_not_go_there_or_asks_what_it_does_not_take() -> None:
    async def main(ours: Rig) -> None:
        await ours.start_engine("m1", "m")
        await ours.start_engine("n1", "n")
        split = {"split": {"n": 100.0}}
        publish(ours, views(**split))
        assert answered_by(await ours.chat("x")) == "n"
        assert answered_by(await ours.chat("x", key=LIMITED.plain)) == "m"  # a key for m alone
        assert answered_by(await ours.chat("x", top_k=5)) == "n"
        publish(ours, views(**split) | {"n": model("n", engine="python")})
        assert answered_by(await ours.chat("x", mirostat=1)) == "m"
        assert answered_by(await ours.chat("x", top_k=5)) == "n"
        ours.engines["n1"].kill()
        publish(ours, views(**split))
        assert answered_by(await ours.chat("x")) == "m"  # nobody there
        publish(ours, {"m": model("m", split={"unknown": 100.0})})
        assert answered_by(await ours.chat("x")) == "m"

    run(main)


def test_a_canary_that_fails_costs_no_request() -> None:
    async def main(ours: Rig) -> None:
        await ours.start_engine("m1", "m")
        canary = await ours.start_engine("n1", "n")
        publish(ours, views(split={"n": 100.0}))
        canary.kill()  # and no snapshot says so
        assert answered_by(await ours.chat("x")) == "m"
        assert await metric(ours, 'hostler_fallbacks_total{cause="unavailable",model="m"}') == 1

    run(main)


@pytest.mark.parametrize("fault", ["nobody", "killed", "503", "garbage"])
def test_a_model_that_cannot_serve_is_replaced_by_its_fallback(fault: str) -> None:
    async def main(ours: Rig) -> None:
        first = await ours.start_engine("m1", "m")
        await ours.start_engine("n1", "n")
        publish(ours, views(fallbacks=FALL))
        match fault:
            case "nobody":
                first.kill()
                publish(ours, views(fallbacks=FALL))
            case "killed":
                first.kill()
            case "503":
                await first.script(status=503)
            case "garbage":
                await first.script(status=502, status_body="garbage")
        answer = await ours.chat("x")
        assert answered_by(answer) == "n"
        assert answer.header(b"x-attempts") == (None if fault == "nobody" else b"2")
        streamed = await ours.chat("x", stream=True)
        assert streamed.status == 200
        assert b"[DONE]" in streamed.body
        (told, _) = ours.gateway.relays.ring
        assert (told.asked, told.model) == ("m", "n")
        assert told.tries[-1].why == "unavailable, so n: the only one ready"
        assert await metric(ours, 'hostler_fallbacks_total{cause="unavailable",model="m"}') == 2

    run(main)


def test_a_full_model_is_replaced_by_its_fallback_at_once_and_when_the_wait_is_over() -> None:
    async def main(ours: Rig) -> None:
        await ours.start_engine("m1", "m", first_delay_ms=900)
        await ours.start_engine("n1", "n")
        publish(ours, views(fallbacks=FALL, queue_length=1, queue_wait_s=0.2), concurrency=1)
        answers = await asyncio.gather(*(ours.chat(f"p {k}") for k in range(3)))
        assert Counter(map(answered_by, answers)) == {"m": 1, "n": 2}
        assert await metric(ours, 'hostler_fallbacks_total{cause="overloaded",model="m"}') == 2

    run(main)


def test_a_prompt_that_does_not_fit_goes_to_the_model_with_more_room() -> None:
    async def main(ours: Rig) -> None:
        await ours.start_engine("m1", "m", status=400, status_body="too_long")
        await ours.start_engine("n1", "n")
        publish(ours, views(fallbacks={"context_too_long": ("n",)}))
        assert answered_by(await ours.chat("x")) == "n"
        publish(ours, views(fallbacks={"unavailable": ("n",)}))
        answer = await ours.chat("x")
        assert (answer.status, error_of(answer)["code"]) == (400, "context_length_exceeded")
        await ours.engines["m1"].script(status=422, status_body="openai")
        publish(ours, views(fallbacks=FALL))
        assert (await ours.chat("x")).status == 422  # what an engine refuses is refused

    run(main)


def test_fallbacks_are_tried_in_order_one_level_deep_and_the_original_error_is_told() -> None:
    async def main(ours: Rig) -> None:
        await ours.start_engine("m1", "m", status=400, status_body="too_long")
        await ours.start_engine("n1", "n", status=500)
        await ours.start_engine("o1", "o", status=503, retry_after_s=77)
        rules = views(fallbacks={"context_too_long": ("unknown", "n", "o")})
        rules["o"] = model("o", fallbacks={"unavailable": ("p",)})
        rules["p"] = model("p")
        await ours.start_engine("p1", "p")
        publish(ours, rules)
        answer = await ours.chat("x")
        assert (answer.status, error_of(answer)["code"]) == (400, "context_length_exceeded")
        assert answer.header(b"x-hostler-model") == b"m"
        assert answer.header(b"x-attempts") == b"3"
        (told,) = ours.gateway.relays.ring
        assert [one.instance_id for one in told.tries] == ["m1", "n1", "o1"]
        await ours.engines["o1"].script(status=0)
        assert answered_by(await ours.chat("x")) == "o"

    run(main)


def test_a_fallback_must_be_allowed_to_the_key_and_take_the_body() -> None:
    async def main(ours: Rig) -> None:
        await ours.start_engine("n1", "n")
        publish(ours, views(fallbacks=FALL) | {"n": model("n", engine="python")})
        assert answered_by(await ours.chat("x")) == "n"
        assert answered_by(await ours.chat("x", top_k=3)) == "n"
        for answer in (await ours.chat("x", key=LIMITED.plain), await ours.chat("x", mirostat=1)):
            assert (answer.status, error_of(answer)["code"]) == (503, "no_healthy_worker")
            assert "'m'" in error_of(answer)["message"]
        assert (await ours.chat("x", key=METRICS.plain)).status == 403

    run(main)


def test_F50_fallbacks_do_not_multiply_the_load_when_every_model_says_not_now() -> None:
    async def main(ours: Rig) -> None:
        for name in ("m1", "n1", "o1"):
            await ours.start_engine(name, name[0], status=503, retry_after_s=20, first_delay_ms=5)
        rules = views(fallbacks={"unavailable": ("n", "o")})
        publish(ours, rules, concurrency=100)
        counted: Counter[int] = Counter()

        async def client(number: int) -> None:
            for turn in range(10):
                counted[(await ours.chat(f"{number} {turn}")).status] += 1

        await asyncio.gather(*map(client, range(40)))
        assert counted == {503: 400}
        attempts = [len((await e.ledger())["executions"]) for e in ours.engines.values()]
        # Unbounded it is 1200. All three of the 40 that came first, before anybody knew; then a
        # fifth more, about.
        assert 400 <= sum(attempts) <= 720, attempts
        assert ours.gateway.relays.retrying == 0
        await ours.engines["o1"].script(status=0)
        assert answered_by(await ours.chat("x")) == "o"  # one may always be tried

    run(main)


def test_F07_a_query_of_death_walks_through_no_fallbacks() -> None:
    async def main(ours: Rig) -> None:
        for name in ("m1", "n1", "n2", "o1"):
            await ours.start_engine(name, name[0])
        publish(ours, views(fallbacks={"unavailable": ("n", "o")}))
        answer = await ours.chat("[[die]]")
        assert (answer.status, error_of(answer)["code"]) == (502, "worker_lost")

        def dead() -> int:
            return sum(engine.process.poll() is not None for engine in ours.engines.values())

        await until(lambda: dead() >= 2, 5.0)
        again = await ours.chat("[[die]]")
        assert (again.status, error_of(again)["code"]) == (400, "request_quarantined")
        assert dead() == 2
        assert answered_by(await ours.chat("good")) in ("n", "o")

    run(main)


def test_an_answer_that_has_begun_is_never_continued_by_another_model() -> None:
    async def main(ours: Rig) -> None:
        await ours.start_engine("m1", "m")
        await ours.start_engine("n1", "n")
        publish(ours, views(fallbacks=FALL))
        with pytest.raises(UpstreamLost):  # an unclean end
            await ours.chat("[[crash_at=3]]", stream=True)
        (told,) = ours.gateway.relays.ring
        assert ([one.instance_id for one in told.tries], told.code) == (["m1"], "worker_lost")

    run(main)


def test_a_client_that_leaves_the_queue_of_a_fallback_frees_it() -> None:
    async def main(ours: Rig) -> None:
        await ours.start_engine("n1", "n", first_delay_ms=400)
        publish(ours, views(fallbacks=FALL), concurrency=1)
        held = asyncio.ensure_future(ours.chat("x"))
        await asyncio.sleep(0.1)
        waits = asyncio.ensure_future(ours.chat("y"))
        await asyncio.sleep(0.1)
        assert ours.gateway.router.waiting("n") == 1
        waits.cancel()
        assert answered_by(await held) == "n"
        assert ours.gateway.router.waiting("n") == 0

    run(main)
