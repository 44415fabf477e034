"""A reader that hangs keeps no writer waiting, and what it misses is counted."""

import asyncio
import logging
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

from hostler.app.outlet import HELD_BYTES, Outlet, dropped_lines, never_waiting
from hostler.app.telemetry import configure_logging, dropped_log_lines, logger

LINE = "x" * 99 + "\n"


@contextmanager
def pipe() -> Iterator[tuple[int, TextIO]]:
    """A pipe: what reads it, and the text stream that writes it."""
    reading, writing = os.pipe()
    os.set_blocking(reading, False)
    with open(writing, "w") as stream:
        yield reading, stream
        os.close(reading)


def read(reading: int) -> str:
    found = b""
    while True:
        try:
            piece = os.read(reading, 65536)
        except BlockingIOError:
            return found.decode()
        if not piece:
            return found.decode()
        found += piece


def test_F86_a_full_pipe_keeps_nobody_waiting_and_loses_whole_lines_only() -> None:
    with pipe() as (reading, stream):
        outlet = never_waiting(stream)
        began_s = time.monotonic()
        for _ in range(30_000):
            outlet.write(LINE)
        assert time.monotonic() - began_s < 10.0  # it returned at all; 0.1 s of work
        dropped = dropped_lines(outlet)
        assert 0 < dropped < 30_000
        text = ""
        assert isinstance(outlet, Outlet)
        while not outlet.drain():
            text += read(reading)
        text += read(reading)
        assert text == LINE * (30_000 - dropped)
        assert len(text) >= HELD_BYTES - len(LINE)


def test_F86_a_reader_that_is_only_slow_misses_nothing() -> None:
    with pipe() as (reading, stream):
        outlet = never_waiting(stream)

        async def main() -> str:
            for _ in range(2_000):  # three times what the pipe holds
                outlet.write(LINE)
            text = ""
            async with asyncio.timeout(30):
                while len(text) < 2_000 * len(LINE):
                    text += read(reading)
                    await asyncio.sleep(0.005)
            return text

        assert asyncio.run(main()) == LINE * 2_000
        assert dropped_lines(outlet) == 0


def test_F86_dropped_lines_are_told_when_there_is_room_again() -> None:
    kept, level = logging.root.handlers[:], logging.root.level
    try:
        with pipe() as (reading, stream):
            configure_logging(stream=stream)
            log = logger("test")
            for _ in range(20_000):
                log.info("some.event", why="x" * 80)
            assert dropped_log_lines() > 0
            seen = ""
            for _ in range(100):
                seen += read(reading)
                log.info("again")
                if "log.dropped" in seen:
                    break
            assert f"log.dropped lines={dropped_log_lines()}" in seen
    finally:
        logging.root.handlers[:] = kept
        logging.root.setLevel(level)
        logging.captureWarnings(False)


def test_a_reader_that_left_costs_nothing() -> None:
    with pipe() as (reading, stream):
        outlet = never_waiting(stream)
        other = os.dup(reading)
        os.close(other)
        outlet.write("one\n")
        assert read(reading) == "one\n"
    gone, writing = os.pipe()
    os.close(gone)
    with open(writing, "w") as stream:
        outlet = never_waiting(stream)
        for _ in range(1000):
            outlet.write(LINE)
        assert dropped_lines(outlet) == 0


def test_files_are_written_as_ever(tmp_path: Path) -> None:
    with (tmp_path / "log").open("w") as stream:
        assert never_waiting(stream) is stream
