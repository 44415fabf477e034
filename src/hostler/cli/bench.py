"""`hostler bench`: a load test of a running model, as its users would make it."""

import asyncio
import random
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import uvloop

from hostler.cli.bench_report import Report, about, print_report
from hostler.cli.client import Client
from hostler.cli.exits import CommandFailed, Exit, exit_of_status
from hostler.cli.load import Limits, Load, connected
from hostler.cli.measured import Level, Sample, measure
from hostler.cli.plot import check_plot, number, svg, write_plot
from hostler.cli.render import clean, err, print_json
from hostler.cli.serving import Served, pick_model, served_models
from hostler.cli.target import NO_OPTIONS, Common, Target, find_target
from hostler.core.model import WorkerType


class Texts:
    """What is asked. Each prompt begins with a number of its own, so that no engine has read it before."""

    def __init__(
        self,
        model: str,
        kind: WorkerType,
        *,
        prompt: str | None,
        words: int,
        max_tokens: int,
        batch: int,
    ) -> None:
        self.model = model
        self.kind = kind
        self.items = 1 if kind is WorkerType.LLM else batch
        self.words = words
        self._prompt = prompt
        self.max_tokens = max_tokens
        self._words = _SENTENCE.split()
        self._salt = random.randrange(1_000_000)

    def body(self, number: int) -> dict[str, Any]:
        if self.kind is WorkerType.LLM:
            return {
                "model": self.model,
                "messages": [{"role": "user", "content": self._text(number)}],
                "max_tokens": self.max_tokens,
                "temperature": 0.2,
                "stream": True,
                "stream_options": {"include_usage": True},
            }
        texts = [self._text(number * self.items + at) for at in range(self.items)]
        if self.kind is WorkerType.TEXT2VEC:
            return {"model": self.model, "input": texts}
        return {"model": self.model, "query": "Which of these is about horses?", "documents": texts}

    def fit(self, wanted: int, told: int | None) -> None:
        """Make prompts as long as wanted, by how many tokens one was; a template's own count, too."""
        if told is not None and self._prompt is None:
            self.words = max(1, self.words + wanted - told)

    # Private

    def _text(self, number: int) -> str:
        if self._prompt is not None:
            return self._prompt
        first = self._salt + number
        words = (self._words[(first + at) % len(self._words)] for at in range(self.words - 1))
        return f"{first} {' '.join(words)}"


def bench(
    model: str,
    /,
    *,
    concurrency: str = "1,2,4,8,16",
    seconds: float | None = None,
    requests: int | None = None,
    prompt: str | None = None,
    prompt_tokens: int = 128,
    max_tokens: int = 64,
    batch: int = 8,
    timeout: float = 120.0,
    plot: Path | None = None,
    common: Common = NO_OPTIONS,
) -> int:
    """How much a running model can do: a load test over the public API.

    So many clients at once ask again and again, each time with another prompt; after a first request
    that is not counted. Tokens are those that the server tells. Ctrl-C shows what was measured until then.
    With --json: all of it as one document, at the end.

    Example: `hostler bench smollm2-135m-instruct --concurrency 1,4,16 --seconds 10 --plot load.svg`

    Parameters
    ----------
    model: str
        The model: chat, embeddings or rerank.
    concurrency: str
        How many requests at once, one level after the other.
    seconds: float
        How long a level begins new requests. Left out: 10, or as long as --requests takes.
    requests: int
        How many requests a level makes, unless its seconds are over before.
    prompt: str
        This text each time; engines may then remember it.
    prompt_tokens: int
        How long each prompt, text or document is, about.
    max_tokens: int
        The longest answer of a chat, in tokens.
    batch: int
        Texts or documents in one request, of embeddings and rerank.
    timeout: float
        Seconds that one request may take.
    plot: Path
        Write the curves to this file, .svg or .png.
    """
    levels = read_levels(concurrency)
    if min(prompt_tokens, max_tokens, batch, timeout, seconds or 1, requests or 1) <= 0:
        raise CommandFailed("tokens, seconds, requests, timeout, batch: more than 0", Exit.USAGE)
    if plot is not None:
        check_plot(plot)
    target = find_target(common)
    with Client(target) as client:
        served = served_models(client)
    kind = _kind_of(served, pick_model(served, model, WorkerType.LLM))
    words = max(1, prompt_tokens - 8)
    work = Texts(model, kind, prompt=prompt, words=words, max_tokens=max_tokens, batch=batch)
    usual_s = None if requests else _SECONDS
    limits = Limits(seconds=seconds or usual_s, requests=requests, timeout_s=timeout)
    test = _Test(target, work, limits, prompt_tokens, quiet=common.json)
    return _show(uvloop.run(test.run(levels)), plot, as_json=common.json)


def read_levels(text: str) -> list[int]:
    """Return `1,4,16` as numbers.

    Raises:
        CommandFailed: one of them is no number of requests.
    """
    try:
        levels = [int(part) for part in text.split(",")]
    except ValueError:
        levels = []
    if not levels or not all(1 <= one <= _MOST_AT_ONCE for one in levels):
        raise CommandFailed(
            f"--concurrency {text!r}: give numbers from 1 to {_MOST_AT_ONCE} like 1,4,16",
            Exit.USAGE,
        )
    return levels


# Private

_SECONDS = 10.0
_MOST_AT_ONCE = 4096
_SENTENCE = """
horse rider stable water road bridge river stone house garden table window paper letter music
morning winter summer island market city farmer doctor teacher engine wheel iron silver field
forest mountain cloud storm light shadow
"""


class _Test:
    """One load test while it runs."""

    def __init__(
        self, target: Target, work: Texts, limits: Limits, prompt_tokens: int, *, quiet: bool
    ) -> None:
        self._target = target
        self._work = work
        self._limits = limits
        self._prompt_tokens = prompt_tokens
        self._quiet = quiet

    async def run(self, levels: Sequence[int]) -> Report:
        """Measure one level after the other, until the last or Ctrl-C."""
        stop = asyncio.Event()
        loop = asyncio.get_running_loop()
        measured: list[Level] = []
        at_s = time.time()
        async with connected(self._target, self._work, self._limits.timeout_s) as load:
            warm_up_s = await self._warm_up(load)
            began, cpu_began = time.perf_counter(), time.process_time()
            loop.add_signal_handler(signal.SIGINT, stop.set)
            try:
                for concurrency in levels:
                    if not stop.is_set():
                        measured.append(await self._level(load, concurrency, stop))
            finally:
                loop.remove_signal_handler(signal.SIGINT)
            took_s = max(time.perf_counter() - began, 1e-9)
            own_cpu = (time.process_time() - cpu_began) / took_s
        return Report(
            model=self._work.model,
            worker_type=self._work.kind,
            url=self._target.url,
            at_s=at_s,
            max_tokens=self._work.max_tokens if self._work.kind is WorkerType.LLM else None,
            items_per_request=self._work.items,
            warm_up_s=warm_up_s,
            levels=tuple(measured),
            own_cpu=own_cpu,
            interrupted=stop.is_set(),
        )

    # Private

    async def _warm_up(self, load: Load) -> float:
        """Make a first request that no level counts; by it, prompts become as long as wanted."""
        first = await load.ask()
        if first.error:
            raise CommandFailed(f"the first request failed: {first.error}: {clean(first.message)}",
                                _exit_of(first))  # fmt: skip
        read = first.usage.prompt_tokens
        self._work.fit(self._prompt_tokens, None if read is None else read // self._work.items)
        took_s = first.ended_s - first.began_s
        self._tell(f"{self._work.model}: warmed up: a first request took {number(took_s, 's')}")
        return took_s

    async def _level(self, load: Load, concurrency: int, stop: asyncio.Event) -> Level:
        samples: list[Sample] = []
        with _progress(concurrency, self._limits, quiet=self._quiet) as show:

            def note(sample: Sample) -> None:
                samples.append(sample)
                show(samples)

            began_s, ended_s = await load.level(concurrency, self._limits, stop, note)
        level = measure(samples, concurrency, began_s, ended_s, self._work.kind)
        if not sys.stderr.isatty():
            failed = f", {level.failed} failed" if level.failed else ""
            self._tell(
                f"{concurrency} at once: {level.requests} requests in {level.seconds:.1f} s{failed}"
            )
        return level

    def _tell(self, line: str) -> None:
        if not self._quiet:
            sys.stderr.write(f"{clean(line)}\n")


@contextmanager
def _progress(
    concurrency: int, limits: Limits, *, quiet: bool
) -> Iterator[Callable[[list[Sample]], None]]:
    """A bar for one level on a terminal; nothing elsewhere."""
    if quiet or not sys.stderr.isatty():
        yield lambda samples: None
        return
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.fields[told]}"),
    )
    with Progress(*columns, console=err(), transient=True) as bar:
        total = limits.requests if limits.requests is not None else limits.seconds
        task = bar.add_task(f"{concurrency} at once", total=total, told="")
        began_s = time.perf_counter()

        def show(samples: list[Sample]) -> None:
            passed_s = time.perf_counter() - began_s
            failed = sum(1 for one in samples if one.error)
            done = len(samples) if limits.requests is not None else passed_s
            told = f"{len(samples)} requests" + (f", {failed} failed" if failed else "")
            bar.update(task, completed=min(done, total or done), told=told)

        yield show


def _show(report: Report, plot: Path | None, *, as_json: bool) -> int:
    """Print and plot it; return the exit code."""
    if plot is not None and report.levels:
        title = f"{report.model} under load"
        write_plot(plot, svg(report.levels, report.worker_type, title, about(report)))
    if as_json:
        print_json(report)
    else:
        print_report(report, plot)
    if any(one.requests for one in report.levels) and all(
        one.failed == one.requests for one in report.levels
    ):
        raise CommandFailed("every request failed")
    return Exit.INTERRUPTED if report.interrupted else Exit.OK


def _kind_of(served: Sequence[Served], name: str) -> WorkerType:
    """The type of the model of this name or alias; an upstream that does not tell is a chat model."""
    found = next(one for one in served if name == one.id or name in one.aliases)
    return found.worker_type or WorkerType.LLM


def _exit_of(sample: Sample) -> Exit:
    """The exit code for a first request that failed."""
    if sample.error == "no_connection":
        return Exit.UNREACHABLE
    if sample.error == "timeout":
        return Exit.TRY_AGAIN
    return exit_of_status(sample.status) if sample.status else Exit.FAILED
