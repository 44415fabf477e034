"""Routing: what prefix-aware routing is worth on real engines, and what choosing costs.

Conversations: two llama.cpp replicas, eight conversations with a long prompt each, four turns; the order
of the conversations is drawn anew each turn, the same for both policies. Policies take turns, with prompts
that no round before had.
"""

import random
import time
from itertools import chain
from statistics import mean

from bench import machine
from bench.engines import Door, chat_body, gateway_door, is_token
from bench.figures import Part, median, spread
from hostler.catalog.catalog import Catalog
from hostler.core.lifecycle import State
from hostler.core.model import WorkerType
from hostler.core.request import Route
from hostler.core.serving import POLICIES, RoutingRules
from hostler.core.snapshot import Endpoint, InstanceView, ModelView, Snapshot
from hostler.gateway.prompts import prompt_head
from hostler.routing.ask import Ask
from hostler.routing.claim import Outcome
from hostler.routing.prefix import HEAD_BYTES, hash_blocks
from hostler.routing.router import Router
from hostler.testing.cluster import Cluster

MODEL, ENTRY = "chat", "smollm2-135m-instruct"
CONVERSATIONS, TURNS = 8, 4
PROMPT_WORDS, TOKENS = 450, 4
MUST, AIM = 0.5, 0.3
COUNTS = (1, 10, 100, 1000, 10_000)
MODELS = (10, 1000)  # of ten instances each
FLAT_US = 20.0  # what a claim and its release may cost, however many instances there are
_WORDS = "horse inn stable hay road oats cart wheel bridle saddle gate lamp rain yard boy coach"


def measure(part: Part, *, rounds: int = 3) -> None:
    """Add the figures of this part."""
    measure_costs(part)
    measure_conversations(part, rounds=rounds)


# Conversations


def measure_conversations(part: Part, *, rounds: int) -> None:
    entry = Catalog().require(ENTRY)
    config = f'[[models]]\nname = "{MODEL}"\ntype = "llm"\nengine = "{entry.engine}"\n'
    config += f'source = "{entry.source}"\nreplicas = 2\n'
    config += "[models.routing]\nsingle_flight = false\nlend_prefix = false\n"
    runs: dict[str, list[list[list[float]]]] = {"prefix": [], "round-robin": []}
    with Cluster(config) as cluster:
        cluster.wait_for(lambda: len(cluster.ready(MODEL)) == 2, 180.0, "both replicas")
        door = gateway_door(cluster)
        with machine.watch_noise(cluster.everything()) as noise:
            for number in range(rounds):
                pair = ["prefix", "round-robin"]
                for policy in pair if number % 2 else pair[::-1]:
                    cluster.json("POST", "/api/v1/apply", apply_body(policy))
                    runs[policy].append(converse(door, f"{policy} {number}", seed=number))
    others = noise.others_cores
    later = {name: [mean(chain(*one[1:])) for one in found] for name, found in runs.items()}
    whole = {name: [mean(chain(*one)) for one in found] for name, found in runs.items()}
    middle = {name: [median([*chain(*one)]) for one in found] for name, found in runs.items()}
    for name, found in runs.items():
        first_ms = 1000 * median([mean(one[0]) for one in found])
        part.add(
            f"first token, {CONVERSATIONS} conversations, turns after the first, {name}",
            1000 * median(later[name]),
            "ms",
            noise=others,
            note=f"first turn {first_ms:.0f}; median of all {1000 * median(middle[name]):.0f}",
        )
    for what, found_s, must in (
        ("first token, prefix ÷ round robin", later, MUST),
        ("first token, mean with the first turns, prefix ÷ round robin", whole, None),
        ("first token, median of all turns, prefix ÷ round robin", middle, None),
    ):
        ratios = [a / b for a, b in zip(found_s["prefix"], found_s["round-robin"], strict=True)]
        note = f"{spread(ratios)}; aim {AIM}" if must else spread(ratios)
        part.add(what, median(ratios), "x", at_most=must, noise=others, note=note)


def apply_body(policy: str) -> dict[str, object]:
    return {
        "model": MODEL,
        "worker_type": "llm",
        "apply_type": "update_params",
        "routing": {"policy": policy},
    }


def converse(door: Door, label: str, *, seed: int) -> list[list[float]]:
    """Hold the conversations; return the seconds to the first token, turn by turn."""
    order, words = random.Random(seed), random.Random(f"{label} {seed}")
    texts = [
        f"Conversation {n} of {label}: " + " ".join(words.choices(_WORDS.split(), k=PROMPT_WORDS))
        for n in range(CONVERSATIONS)
    ]
    times = []
    for turn in range(TURNS):
        found = []
        for n in order.sample(range(CONVERSATIONS), CONVERSATIONS):
            texts[n] += f" Question {turn}: what does the hostler do next?"
            seconds, answer = first_token_s(door, texts[n])
            texts[n] += answer
            found.append(seconds)
        times.append(found)
    return times


def first_token_s(door: Door, prompt: str) -> tuple[float, str]:
    """Ask, read the whole stream; return seconds to the first token, and what stands for the answer.

    Raises:
        RuntimeError: no token came.
    """
    began_s = time.perf_counter()
    answer = door.post("/v1/chat/completions", chat_body(prompt, TOKENS) | {"model": MODEL})
    first_s, count = 0.0, 0
    for line in answer:
        if is_token(line):
            first_s = first_s or time.perf_counter() - began_s
            count += 1
    if not count:
        raise RuntimeError(f"status {answer.status}, and no token came")
    return first_s, f" ({count} words later.)"


# What choosing costs


class _Request(Ask):
    """With a prompt of so many blocks, known beforehand."""

    __slots__ = ("_blocks", "_session")

    def __init__(self, number: int) -> None:
        self._session = b"session %d" % number
        self._blocks = hash_blocks((b"%8d" % (number % 50)) * 512)  # 4 KiB

    @property
    def session(self) -> bytes:
        return self._session

    @property
    def prompt_tokens(self) -> int:
        return 1000

    @property
    def blocks(self) -> tuple[int, ...]:
        return self._blocks


def measure_costs(part: Part) -> None:
    """Claim and release, by policy and number of instances, while half of the slots are taken."""
    for policy in POLICIES[1:]:
        costs = [min(claim_cost_us(policy, count) for _ in range(3)) for count in COUNTS]
        many = [claim_cost_us(policy, 10, models=count) for count in MODELS]
        told = ", ".join(f"{n}: {us:.1f}" for n, us in zip(COUNTS, costs, strict=True))
        told += "; models of ten: " + ", ".join(
            f"{n}: {us:.1f}" for n, us in zip(MODELS, many, strict=True)
        )
        what = f"claim and release, {COUNTS[-1]} instances, {policy}"
        part.add(what, costs[-1], "µs", at_most=FLAT_US, note=told)
    head = {"messages": [{"role": "user", "content": "x" * 32768}]}
    began_s = time.perf_counter()
    for _ in range(500):
        hash_blocks(prompt_head(Route.CHAT, head, HEAD_BYTES))
    took_us = (time.perf_counter() - began_s) * 1e6 / 500
    part.add("hashing the beginning of a prompt, 32 KiB", took_us, "µs", note="once a request")


def claim_cost_us(policy: str, count: int, *, models: int = 1) -> float:
    """Microseconds of a claim and its release. count: instances of each model."""
    router = Router()
    names = [f"{MODEL}{n}" for n in range(models)]
    router.update(
        Snapshot(
            models=tuple(
                ModelView(
                    name=name,
                    worker_type=WorkerType.LLM,
                    engine="fake",
                    routing=RoutingRules(policy=policy),
                )
                for name in names
            ),
            instances=tuple(_instance(name, n) for name in names for n in range(count)),
        )
    )
    for name in names:
        for n in range(2 * count):
            router.claim(name, _Request(n))
    asks = [(names[n % models], _Request(2 * count + n)) for n in range(1000)]
    began_s = time.perf_counter()
    for name, ask in asks:
        router.claim(name, ask).release(Outcome.OK)
    return (time.perf_counter() - began_s) * 1e6 / len(asks)


def _instance(model: str, number: int) -> InstanceView:
    return InstanceView(
        instance_id=f"{model}-{number}",
        epoch=1,
        model_name=model,
        worker_type=WorkerType.LLM,
        engine="fake",
        state=State.READY,
        endpoint=Endpoint(socket=f"/nowhere/{number}"),
        concurrency=4,
        replica=number,
    )
