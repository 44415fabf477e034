"""Moves: what a sequence may do next, drawn without a look at the server.

One deck for all, so that orders, faults and late messages come well mixed; its first card, a short wait,
is what Hypothesis falls back to.
"""

from dataclasses import dataclass
from typing import Any

from hypothesis import strategies as st

from tests.stateful.belief import BAD_SCRIPTS
from tests.stateful.rig import BYSTANDER

NAMES = ("anna", "bert")


@dataclass(frozen=True)
class Wait:
    """resume: what hangs goes on, first."""

    seconds: float
    resume: bool


@dataclass(frozen=True)
class Ask:
    """Requests that nobody waits for; they go on while other things happen."""

    name: str
    count: int
    stream: bool


@dataclass(frozen=True)
class Order:
    """what: start, stop, forget, cross (a start and a stop at once), interrupt (a start, and its
    controller is killed meanwhile). times: the same order so often, at the same time.
    """

    what: str
    name: str
    replicas: int
    tokens: int
    times: int


@dataclass(frozen=True)
class Change:
    """what: the fields of an apply order. patience_s: 0 when nobody waits for its end."""

    name: str
    what: dict[str, Any]
    patience_s: float


@dataclass(frozen=True)
class Harm:
    """SIGKILL, or SIGSTOP when it hangs. victim: worker, engine, warden, all. number: which instance."""

    name: str
    number: int
    victim: str
    hangs: bool


@dataclass(frozen=True)
class Lose:
    """SIGKILL to the controller, the gateway or both."""

    role: str


@dataclass(frozen=True)
class Late:
    """A worker's message comes late. whose: of the gone, of an old epoch, or one that lives says it again."""

    number: int
    route: str
    whose: str


Move = Wait | Ask | Order | Change | Harm | Lose | Late

NAME = st.sampled_from(NAMES)
NUMBER = st.integers(0, 3)
COPIES = st.integers(1, 2)
LENGTH = st.integers(3, 6)
WHAT = st.one_of(
    st.builds(lambda count: {"apply_type": "update_params", "replicas": count}, COPIES),
    st.just({"apply_type": "restart"}),
    st.builds(
        lambda tokens, script: {
            "apply_type": "update_params",
            "params": {"tokens": tokens, "script": script},
        },
        LENGTH,
        st.sampled_from(["", "", *BAD_SCRIPTS]),
    ),
)


def order(what: str) -> st.SearchStrategy[Move]:
    times = st.sampled_from([1, 2, 4])
    return st.builds(
        Order, what=st.just(what), name=NAME, replicas=COPIES, tokens=LENGTH, times=times
    )


CHANGE = st.builds(Change, name=NAME, what=WHAT, patience_s=st.sampled_from([0.0, 0.05, 0.6, 4.0]))
HARM = st.builds(
    Harm,
    name=NAME,
    number=NUMBER,
    victim=st.sampled_from(["worker", "engine", "warden", "all"]),
    hangs=st.booleans(),
)
LOSE = st.builds(Lose, role=st.sampled_from(["gateway", "controller", "both"]))
LATE = st.builds(
    Late,
    number=NUMBER,
    route=st.sampled_from(["/register", "/beat", "/deregister"]),
    whose=st.sampled_from(["gone", "old epoch", "again"]),
)
# Some are there more than once: they are drawn more often.
DECK: list[st.SearchStrategy[Move]] = [
    st.builds(Wait, seconds=st.sampled_from([0.1, 0.4, 1.0]), resume=st.booleans()),
    st.builds(
        Ask,
        name=st.sampled_from([*NAMES, BYSTANDER]),
        count=st.integers(1, 4),
        stream=st.booleans(),
    ),
    order("start"),
    CHANGE,
    HARM,
    LOSE,
    LATE,
    order("stop"),
    order("forget"),
    order("cross"),
    order("interrupt"),
    CHANGE,
    HARM,
    CHANGE,
    HARM,
    LATE,
    LOSE,
]
# A shuffled deck, not `one_of`: Hypothesis likes to draw again what it has drawn, and few sequences
# would then hold few kinds of moves.
MOVES: st.SearchStrategy[Move] = st.permutations(DECK).flatmap(lambda deck: deck[0])
