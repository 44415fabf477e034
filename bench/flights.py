"""Flights: what it is worth to read a long new prompt once for all that begin with it, on a real llama.cpp.

One instance of SmolLM2-135M. So many chats that come at once and begin with the same new words, with loans
and without, turns about; CPU of the worker's process, seconds to the first token. And what the table of
flights costs a request that finds nobody to follow.
"""

import random
import time
from concurrent.futures import ThreadPoolExecutor
from statistics import mean

from bench import machine
from bench.engines import Door, gateway_door
from bench.figures import Part, median, spread
from bench.routing import ENTRY, MODEL, first_token_s
from hostler.catalog.catalog import Catalog
from hostler.core.lifecycle import State
from hostler.core.model import PrefixReach, WorkerType
from hostler.core.snapshot import Endpoint, InstanceView
from hostler.routing.flights import FlightTable
from hostler.routing.prefix import BLOCK_BYTES, HEAD_BYTES, hash_blocks
from hostler.testing.cluster import Cluster

SLOTS = 8
WORDS = 700  # some 800 tokens
COMPANIES = (1, 4, 8)  # requests that come at once
CPU_AIM, FIRST_AIM = 0.5, 0.5
_WORDS = "horse inn stable hay road oats cart wheel bridle saddle gate lamp rain yard boy coach"


def measure(part: Part, *, rounds: int = 3) -> None:
    """Add the figures of this part."""
    measure_table(part)
    entry = Catalog().require(ENTRY)
    config = f'[[models]]\nname = "{MODEL}"\ntype = "llm"\nengine = "{entry.engine}"\n'
    config += f'source = "{entry.source}"\nconcurrency = {SLOTS}\n'
    config += "params = { context_length = 2048 }\n"
    with Cluster(config) as cluster:
        cluster.wait_for(lambda: len(cluster.ready(MODEL)) == 1, 180.0, "the model")
        for count in COMPANIES:
            measure_company(part, cluster, count, rounds=rounds)


def measure_company(part: Part, cluster: Cluster, count: int, *, rounds: int) -> None:
    """So many requests at once."""
    door = gateway_door(cluster)
    pid = int(str(cluster.ready(MODEL)[0]["pid"]))
    cpu_s: dict[bool, list[float]] = {True: [], False: []}
    first_s: dict[bool, list[float]] = {True: [], False: []}
    with machine.watch_noise(cluster.everything()) as noise:
        for number in range(rounds):
            for is_lent in (True, False) if number % 2 else (False, True):
                order = {"model": MODEL, "worker_type": "llm", "apply_type": "update_params"}
                cluster.json("POST", "/api/v1/apply", order | {"routing": {"lend_prefix": is_lent}})
                before_s = machine.cpu_s([pid])
                found = ask_together(door, count, f"{count} {number} {is_lent}")
                cpu_s[is_lent].append(machine.cpu_s([pid]) - before_s)
                first_s[is_lent].append(mean(found))
    others = noise.others_cores
    who = f"{count} requests with one new prompt" if count > 1 else "1 request alone"
    aims = {} if count == 1 else {"cpu": CPU_AIM, "first": FIRST_AIM}
    for what, told, found_s in (
        ("cpu", "CPU of the engine", cpu_s),
        ("first", "first token, mean", first_s),
    ):
        ratios = [a / b for a, b in zip(found_s[True], found_s[False], strict=True)]
        note = f"{median(found_s[True]):.2f} and {median(found_s[False]):.2f} s, {spread(ratios)}"
        part.add(
            f"{who}, {told}, with loans ÷ without",
            median(ratios),
            "x",
            at_most=aims.get(what),
            noise=others,
            note=note,
        )


def ask_together(door: Door, count: int, label: str) -> list[float]:
    """Ask all at once; return the seconds to each first token."""
    words = " ".join(random.Random(label).choices(_WORDS.split(), k=WORDS))
    texts = [f"{label}: {words} Question {n}: what comes next?" for n in range(count)]
    with ThreadPoolExecutor(count) as pool:
        return [seconds for seconds, _ in pool.map(lambda text: first_token_s(door, text), texts)]


def measure_table(part: Part) -> None:
    """Microseconds of a request that is new and finds nobody, and of one that is known."""
    where = InstanceView(
        instance_id="i",
        epoch=1,
        model_name=MODEL,
        worker_type=WorkerType.LLM,
        engine="fake",
        state=State.READY,
        endpoint=Endpoint(),
        prefix_reach=PrefixReach.SHARED,
    )
    for size in (4 * 1024, HEAD_BYTES):
        table: FlightTable[int] = FlightTable()
        prompts = [hash_blocks((b"%8d" % n) * (size // 8)) for n in range(60)]
        costs = []
        for _ in ("new", "known"):
            began_s = time.perf_counter()
            for number, blocks in enumerate(prompts):
                passage = table.board(number, where, blocks, size // BLOCK_BYTES)
                table.landed(passage)
                table.ended(passage)
            costs.append((time.perf_counter() - began_s) * 1e6 / len(prompts))
        part.add(
            f"a place in the table of flights, {size // 1024} KiB of prompt, new",
            costs[0],
            "µs",
            note=f"known: {costs[1]:.1f}; hashing not counted",
        )
