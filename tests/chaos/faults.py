"""The faults of the chaos suite: what is done to one engine of each model, and what clients may see of it."""

import signal
import time
from collections.abc import Callable

import msgspec

from tests.chaos.arena import Arena

Deed = Callable[[Arena], None]

FAST_S, HUNG_S = 3.0, 6.0  # 0.5 s and 4 s (F01, F03) with what a shared machine adds


class Fault(msgspec.Struct, frozen=True, kw_only=True):
    """One fault.

    breaks_streams: a stream that has begun may end with an error; no request without a byte ever may.
    within_s: no request lasts longer. is_long: played in the long form alone.
    """

    name: str
    deed: Deed
    breaks_streams: bool = False
    within_s: float = FAST_S
    is_long: bool = False


def scripted(seconds: float, **changes: object) -> Deed:
    """Let one engine of each model do something else for a while."""

    def deed(arena: Arena) -> None:
        victims = arena.victims()
        for one in victims:
            one.script(**changes)
        time.sleep(seconds)
        for one in victims:
            one.script(**dict.fromkeys(changes))

    return deed


def half_alive(arena: Arena) -> None:
    """Heads of answers and nothing else. The given one recovers, and the server's own is replaced.

    Or not: one that was so found (after a SIGSTOP, too) is the last of its model for a minute.
    """
    own, given = arena.victims()
    for one in (own, given):
        one.script(half_alive=True)
    end_s = time.monotonic() + 6.0
    while time.monotonic() < end_s and not own.is_gone():
        time.sleep(0.1)
    for one in (own, given):
        one.script(half_alive=None)


def kill(arena: Arena) -> None:
    for one in arena.victims():
        one.hit(signal.SIGKILL)
    arena.settled()


def kill_worker(arena: Arena) -> None:
    for one in arena.victims():
        one.kill_worker()
    arena.settled()


def stopped(arena: Arena) -> None:
    """SIGSTOP, until everybody has noticed, and SIGCONT."""
    victims = arena.victims()
    for one in victims:
        one.hit(signal.SIGSTOP)
    time.sleep(3.5)
    for one in victims:
        one.hit(signal.SIGCONT)


def restart_storm(arena: Arena) -> None:
    """Whoever is back dies again, in turn."""
    for turn in range(12 if arena.is_long else 4):
        own, given = arena.victims(turn % 2)
        given.hit(signal.SIGKILL)
        if arena.is_long or turn % 3 == 0:
            own.hit(signal.SIGKILL)
        time.sleep(arena.random.uniform(0, 0.1))
        arena.settled()


def restart_models(arena: Arena) -> None:
    """As an operator asks for it: one replica after the other."""
    told = {"model": "alpha", "apply_type": "restart", "timeout_s": 30}
    arena.cluster.json("POST", "/api/v1/apply", told, timeout_s=40)


def restart_gateway(arena: Arena) -> None:
    arena.cluster.json("POST", "/api/v1/gateways/restart", timeout_s=60)


def kill_controller(arena: Arena) -> None:
    arena.cluster.kill("controller")
    arena.settled()


FAULTS = (
    Fault(name="none", deed=lambda _: time.sleep(0.5)),
    Fault(name="kill -9", deed=kill, breaks_streams=True),
    Fault(name="kill -9 of the worker", deed=kill_worker, breaks_streams=True, is_long=True),
    Fault(name="SIGSTOP", deed=stopped, breaks_streams=True, within_s=HUNG_S),
    Fault(name="half-alive", deed=half_alive, within_s=HUNG_S),
    Fault(name="slow", deed=scripted(1.0, first_delay_ms=300)),
    Fault(name="refuse", deed=scripted(1.5, refuse_s=1.0)),
    Fault(name="reset mid-headers", deed=scripted(1.0, spoil="head")),
    Fault(
        name="reset mid-chunk",
        deed=scripted(1.0, spoil="chunk"),
        breaks_streams=True,
    ),
    Fault(name="garbage answers", deed=scripted(1.0, spoil="garbage")),
    Fault(name="500s at 30 %", deed=scripted(1.5, status=500, status_rate=0.3)),
    Fault(
        name="500s at 30 % that are no JSON",
        deed=scripted(1.5, status=500, status_rate=0.3, status_body="garbage"),
    ),
    Fault(name="503s", deed=scripted(1.0, status=503)),
    Fault(name="engine restart storm", deed=restart_storm, breaks_streams=True),
    Fault(name="rolling restart", deed=restart_models, is_long=True),
    Fault(name="gateway restart", deed=restart_gateway),
    Fault(name="kill -9 of the controller", deed=kill_controller),
)
