"""`make soak ARGS=--fuzz`: the fuzzers of the edges, a million cases and more (B25, B27, B28)."""

import asyncio
from collections.abc import Callable

from tests.fuzz.api import hammer, labels
from tests.fuzz.edge import Chunks, Edge
from tests.fuzz.engines import Engines
from tests.fuzz.run import Broken, Check, run
from tests.fuzz.texts import Texts

from bench.figures import Part
from hostler.testing.cluster import Cluster, fake_model

# what is fed, and its share of the cases
SHARES = (("edge", 4), ("chunks", 2), ("engines", 3), ("texts", 2))
BLOCK = 20_000
EXAMPLES = 1000  # good ones and bad ones, an operation of the API


def run_fuzz(part: Part, cases: int, seed: int, tell: Callable[[str], None]) -> None:
    """Add one figure a fuzzer: how many cases failed. tell: takes the bytes of those that did.

    The operations of the API get a thousand good and a thousand bad requests each, fewer with fewer cases.
    """
    total = sum(share for _, share in SHARES)
    for name, share in SHARES:
        asyncio.run(_run(part, name, cases * share // total, seed, tell))
    _hammer_api(part, min(EXAMPLES, max(1, cases // 4000)), seed, tell)


# Private


def _hammer_api(part: Part, examples: int, seed: int, tell: Callable[[str], None]) -> None:
    with Cluster(fake_model("echo")) as cluster:
        document = cluster.json("GET", "/api/v1/openapi.json")
        failed, sent = 0, 0
        for label in labels(document):
            _bring_back(cluster)
            try:
                told = hammer(
                    cluster.url, cluster.admin_key, "echo", document, examples, seed, [label]
                )
                sent += sum(told.values())
            except (Exception, BaseExceptionGroup) as error:  # one operation's; the others go on
                failed += 1
                tell(f"{label}: {type(error).__name__}: {str(error)[:4000]}")
    note = f"{sent} requests, {examples} good and {examples} bad an operation at most, seed {seed}"
    part.add("B26 operations with a wrong answer", failed, "", at_most=0, note=note)


def _bring_back(cluster: Cluster) -> None:
    """An operation may have stopped the model that the others ask for, as it should."""
    if not cluster.ready("echo"):
        cluster.json("POST", "/api/v1/models", {"model": "echo", "engine": "fake"})
        cluster.wait_for(lambda: bool(cluster.ready("echo")), 20.0, "echo is ready")


def _check(name: str) -> Check:
    match name:
        case "edge":
            return Edge().check
        case "chunks":
            return Chunks().check
        case "engines":
            return Engines().check
        case _:
            return Texts().check


async def _run(part: Part, name: str, cases: int, seed: int, tell: Callable[[str], None]) -> None:
    check = _check(name)
    took_s, failed, first, end = 0.0, 0, seed * 100_000_000, seed * 100_000_000 + cases
    while first < end:
        count = min(BLOCK, end - first)
        try:
            took_s += run(name, check, first, count)
            first += count
        except Broken as broken:
            failed += 1
            tell(str(broken))
            first = broken.number + 1
            check = _check(name)  # what failed may have left something behind
        if failed > 20:
            break
    note = f"{cases} cases, {took_s:.0f} s, seed {seed}"
    part.add(f"fuzz {name}: failed", failed, "cases", at_most=0, note=note)
