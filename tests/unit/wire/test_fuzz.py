"""The short form of the fuzzers; `make soak ARGS=--fuzz` runs the long one."""

import asyncio

import pytest

from hostler.app.version import is_compiled
from tests.fuzz.edge import Chunks, Edge
from tests.fuzz.engines import Engines
from tests.fuzz.run import run
from tests.fuzz.texts import Texts

CASES = 3000


@pytest.mark.parametrize("step", range(2))
def test_F88_spoiled_requests_are_read_as_a_plain_reader_reads_them(step: int) -> None:
    run("edge", Edge().check, step * CASES, CASES)


def test_F88_a_chunked_body_is_the_same_however_it_is_cut() -> None:
    run("chunks", Chunks().check, 0, CASES)


@pytest.mark.skipif(is_compiled(), reason="compiled code refuses what only stands for a Relay")
def test_F59_F60_F61_F62_no_answer_of_an_engine_ends_well_unless_it_is_whole() -> None:
    async def main() -> None:
        run("engines", Engines().check, 0, CASES)

    asyncio.run(main())


def test_F92_what_is_taken_as_json_reads_the_same_everywhere() -> None:
    run("texts", Texts().check, 0, 2 * CASES)
