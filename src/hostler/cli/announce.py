"""What `hostler up` says: bars and a banner for people, JSON lines for programs (`--json`)."""

import sys
from shlex import quote
from types import TracebackType
from typing import Self

from hostler.app.paths import StatePaths
from hostler.app.record import read_up_record
from hostler.app.telemetry import logger
from hostler.catalog.catalog import Catalog
from hostler.cli.arrival import Arrival
from hostler.cli.meter import Meter
from hostler.core.console import link_of
from hostler.core.worker import OperatorEvent

log = logger("hostler.up")


class ForPeople(Meter):
    """Bars on a terminal, plain lines elsewhere, then a banner with what to try."""

    def __init__(self) -> None:
        super().__init__(quiet=False)

    def ready(self, url: str, paths: StatePaths, arrival: Arrival, took_s: float) -> None:
        _banner(url, paths, arrival, took_s)

    def standing_by(self, url: str, why: str) -> None:
        print(f"\nHostler at {url}: {why}.")
        print("It takes over when nobody leads. Ctrl-C stops it.", flush=True)

    def stopping(self) -> None:
        sys.stderr.write("stopping: requests may finish; Ctrl-C again ends at once\n")


class ForPrograms:
    """One JSON line a fact. The key's file is named, never the key: such lines end in journals."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        return

    def show(self, event: OperatorEvent) -> None:
        log.info(event.kind, model=event.model, instance_id=event.instance_id, why=event.message)

    def ready(self, url: str, paths: StatePaths, arrival: Arrival, took_s: float) -> None:
        log.info(
            "up.ready",
            url=url,
            ready=arrival.ready,
            wanted=arrival.wanted,
            failed=dict(arrival.failed),
            admin_key_file=str(paths.admin_key),
            **_control_of(paths),
            took_s=round(took_s, 3),
        )

    def standing_by(self, url: str, why: str) -> None:
        log.info("up.stands_by", url=url, why=why)

    def stopping(self) -> None:
        log.info("up.stopping")


def announcer(*, json_lines: bool) -> ForPeople | ForPrograms:
    """Return the voice for this output."""
    return ForPrograms() if json_lines else ForPeople()


# Private


def _control_of(paths: StatePaths) -> dict[str, str]:
    """Where other machines join, if they can."""
    record = read_up_record(paths)
    return {"control_url": record.control_url} if record and record.control_url else {}


def _banner(url: str, paths: StatePaths, arrival: Arrival, took_s: float) -> None:
    key = paths.admin_key.read_text().strip()
    # shown once, and to a person alone: a pipe may end in a journal
    is_shown = arrival.is_first_start and sys.stdout.isatty()
    shown = key if is_shown else f"in {paths.admin_key}"
    print(
        f"\nHostler serves {arrival.ready} of {arrival.wanted} models at {url}/v1 ({took_s:.1f} s)"
    )
    for name, reason in arrival.failed.items():
        print(f"  {name} failed: {reason}")
    print(f"Key: {shown}")
    record = read_up_record(paths)
    ca = record.ca if record is not None else ""
    if ca:
        print(f"Clients trust it with: SSL_CERT_FILE={quote(ca)}")
    if record is not None and record.control_url:
        print(f"Other machines join at {record.control_url}: hostler token create --role host")
    where = f" --state-dir {quote(str(paths.state_dir))}" if not arrival.is_default_state else ""
    hint = f"{url}/ (`hostler console{where}` prints a link that signs you in)"
    print(f"Console: {link_of(url, arrival.ticket) if arrival.ticket else hint}")
    print("\nTry, in another terminal:")
    chat = arrival.name_of("llm")
    model = chat or Catalog().default_models()[0].name  # the one that chats comes first
    if chat is None:
        print(f"  hostler model list{where} --all")
        print(f"  hostler model start{where} {model}")
    else:
        print(f'  hostler chat{where} {chat} "What is a hostler?"')
    print(f"  hostler ps{where}")
    trust = f"--cacert {quote(ca)} " if ca else ""
    bearer = f"Authorization: Bearer $(cat {quote(str(paths.admin_key))})"
    print(
        f'  curl {trust}{url}/v1/chat/completions -H "{bearer}" \\\n'
        f'    -H \'Content-Type: application/json\' -d \'{{"model": "{model}", "temperature": 0.2, '
        '"messages": [{"role": "user", "content": "Say hello."}]}\''
    )
    print("\nCtrl-C stops everything.", flush=True)
