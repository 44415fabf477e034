"""`hostler host join` and `hostler worker --controller` before a real control port."""

import asyncio
import json
import socket
import subprocess
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path

from hostler.app.config import child_environment
from hostler.core.errors import Conflict, NotFound
from hostler.core.hosts import OrderWish, Role
from hostler.core.snapshot import Endpoint
from hostler.testing.host_run import HostRun
from hostler.testing.sim_controller import SimControlPort, echo_order
from hostler.wire.client import UpstreamLost, fetch
from hostler.wire.csr import make_request
from hostler.wire.identity import ClientContexts, Identity, Peer

Body = Callable[[HostRun, SimControlPort], Awaitable[None]]


def play(body: Body) -> None:
    async def main() -> None:
        with HostRun() as host:
            sim = SimControlPort(host.root / "ca")
            async with sim.running():
                await body(host, sim)

    asyncio.run(main())


def joining(sim: SimControlPort, token: str, *more: str, port: int = 0) -> tuple[str, ...]:
    words = ("host", "join", f"--controller={sim.url}", f"--token={token}")
    return (*words, "--address=127.0.0.1", f"--port={port}", *more)


async def ends(host: HostRun, *words: str) -> tuple[int, str]:
    """Run a command that ends by itself; return its exit code and what it said last."""
    began = host.output.stat().st_size if host.output.exists() else 0
    host.start(*words)
    code = await asyncio.to_thread(host.ended)
    return code, host.output.read_text()[began:]


async def asked(context: ClientContexts, endpoint: Endpoint, path: str, body: bytes = b"") -> int:
    method = "POST" if body else "GET"
    fields = ((b"content-type", b"application/json"),)
    answer = await fetch(
        endpoint, method, path, headers=fields, body=body, timeout_s=5.0, tls=context
    )
    return answer.status


def gateway_of(sim: SimControlPort, folder: Path) -> ClientContexts:
    """A gateway that this controller's authority vouches for."""
    return ClientContexts(certify(sim, folder, Identity(Peer.GATEWAY, "gate0001")))


def certify(sim: SimControlPort, folder: Path, whom: Identity) -> Path:
    """The files of somebody that this controller's authority vouches for, in a folder."""
    key, csr = make_request()
    signed = sim.authority.sign(csr, whom)
    folder.mkdir()
    (folder / "key.pem").write_text(key)
    (folder / "cert.pem").write_text(signed.certificate)
    (folder / "ca.pem").write_text(sim.authority.certificate)
    return folder


def test_a_given_certificate_says_who_the_host_is() -> None:
    async def body(host: HostRun, sim: SimControlPort) -> None:
        mine = certify(sim, host.root / "mine", Identity(Peer.HOST, "mine0001"))
        files = (f"--tls-ca={mine / 'ca.pem'}", f"--tls-cert={mine / 'cert.pem'}")
        code, told = await ends(host, *joining(sim, sim.token(), *files))
        assert code == 2
        assert "belong together" in told
        host.start(*joining(sim, sim.token(), *files, f"--tls-key={mine / 'key.pem'}"))
        await sim.until(lambda: bool(sim.beats), "it has joined")
        assert sim.last.host_id == "mine0001"
        assert (host.state_dir / "tls" / "cert.pem").is_symlink()
        assert await asyncio.to_thread(host.stop) == 0

    play(body)


def test_a_machine_joins_serves_through_its_relay_and_goes_on_without_a_token() -> None:
    async def body(host: HostRun, sim: SimControlPort) -> None:
        with socket.create_server(("127.0.0.1", 0)) as closed:
            away = f"https://127.0.0.1:{closed.getsockname()[1]}"
        name = ("--name=b", "--labels=zone=a,gpu=no", "--memory=16GiB", "--engines=fake")
        words = joining(sim, sim.token(), *name)
        host.start(*words[:2], f"--controller={away}", *words[2:])  # a standby that is down, first
        await sim.until(lambda: bool(sim.beats), "a beat")
        facts = sim.beats[0].facts
        assert facts is not None
        assert (facts.name, facts.labels) == ("b", {"zone": "a", "gpu": "no"})
        assert facts.engines == ("fake",)
        sim.order(echo_order("aaaa01"))
        await sim.until(lambda: sim.state("aaaa01") == "ready", "it serves")
        beat = sim.last
        assert beat.address == "127.0.0.1"
        endpoint = Endpoint(
            host=beat.address, port=beat.port, tls=True, host_id=beat.host_id, prefix="/i/aaaa01"
        )
        gateway = gateway_of(sim, host.root / "gate")
        chat = b'{"model":"echo","messages":[{"role":"user","content":"hi"}]}'
        assert await asked(gateway, endpoint, "/v1/chat/completions", chat) == 200
        other = Endpoint(
            host=beat.address, port=beat.port, tls=True, host_id=beat.host_id, prefix="/i/bbbb01"
        )
        assert await asked(gateway, other, "/v1/models") == 421
        seen = len(sim.beats)
        itself = ClientContexts(sim.tls_dir)
        relay = Endpoint(host=beat.address, port=beat.port, tls=True, host_id=beat.host_id)
        answer = await fetch(relay, "POST", "/host/beat", timeout_s=5.0, tls=itself)
        assert json.loads(answer.body)["seq"] >= sim.beats[seen - 1].seq
        # who was not meant does not get there
        wrong = Endpoint(host=beat.address, port=beat.port, tls=True, host_id="othr0001")
        with_error = 0
        try:
            await asked(gateway, wrong, "/v1/models")
        except UpstreamLost:
            with_error = 1
        assert with_error
        port, pids = beat.port, host.workers()
        host.kill()
        host.start()  # `host run`: no token
        run_id = beat.run_id
        await sim.until(lambda: sim.last.run_id != run_id, "it goes on")
        assert (sim.last.port, host.workers()) == (port, pids)
        assert sim.last.host_id == beat.host_id
        shown = await asyncio.to_thread(run_command, host, "host", "status")
        assert "heard" in shown
        assert "aaaa01" in shown
        assert await asyncio.to_thread(host.stop) == 0
        # the same command again, with a token that is used up: it has joined
        host.start(*joining(sim, "hstj_used", *name))
        await sim.until(lambda: sim.last.run_id not in (run_id, ""), "it goes on")

    play(body)


def run_command(host: HostRun, *words: str) -> str:
    argv = [sys.executable, "-m", "hostler", *words, f"--state-dir={host.state_dir}"]
    done = subprocess.run(
        argv, capture_output=True, text=True, timeout=30, env=child_environment(), check=False
    )
    return done.stdout + done.stderr


def test_a_machine_that_was_removed_joins_again_with_a_new_token_alone() -> None:
    async def body(host: HostRun, sim: SimControlPort) -> None:
        host.start(*joining(sim, sim.token()))
        await sim.until(lambda: bool(sim.beats), "it has joined")
        sim.refusal = NotFound(f"host {sim.last.host_id!r} is not known here")
        assert await asyncio.to_thread(host.ended) != 0
        assert "refuses this host" in host.output.read_text()
        sim.refusal = None
        code, said = await ends(host, *joining(sim, "hstj_used_up_token"))
        assert code != 0, said
        heard = len(sim.beats)
        host.start(*joining(sim, sim.token()))
        await sim.until(lambda: len(sim.beats) > heard, "it is back")
        assert host.output.read_text().count("joined https://") == 2
        assert await asyncio.to_thread(host.stop) == 0

    play(body)


def test_what_is_wrong_with_joining_is_said_so_that_one_knows_what_to_do() -> None:
    async def body(host: HostRun, sim: SimControlPort) -> None:
        code, told = await ends(host, *joining(sim, "nonsense"))
        assert code != 0
        assert "token" in told
        worker_token = sim.token(Role.WORKER)
        code, told = await ends(host, *joining(sim, worker_token))
        assert code == 4
        assert "does not take this token" in told
        other = SimControlPort(host.root / "ca2")
        async with other.running():
            code, told = await ends(host, *joining(other, sim.token()))
            assert code == 1
            assert "another server than the one meant answers there" in told
        with socket.create_server(("127.0.0.1", 0)) as taken:
            port = taken.getsockname()[1]
            code, told = await ends(host, *joining(sim, sim.token(), port=port))
            assert code == 1
            assert f"port {port} on 127.0.0.1 is in use" in told
        code, told = await ends(host, *joining(sim, sim.token(), "--engines=llama"))
        assert code == 2
        assert "did you mean 'llama.cpp'" in told
        code, told = await ends(host, *joining(sim, sim.token(), "--memory=lots"))
        assert code == 2
        code, told = await ends(host, "host", "run")
        assert code == 78
        assert "has joined no controller" in told
        (host.state_dir / "hostler.db").touch()
        code, told = await ends(host, *joining(sim, sim.token()))
        assert code == 6
        assert "a host needs its own" in told

    play(body)


def worker_words(sim: SimControlPort, token: str, *more: str) -> tuple[str, ...]:
    return (
        "worker",
        f"--controller={sim.url}",
        f"--token={token}",
        "--name=hand",
        "--engine=fake",
        "--address=127.0.0.1",
        "--concurrency=3",
        *more,
    )


def test_a_worker_brought_by_hand_is_loaded_offered_adopted_offered_anew_and_drained() -> None:
    async def body(host: HostRun, sim: SimControlPort) -> None:
        host.start(*worker_words(sim, sim.token(Role.WORKER), "--param=tokens=5"))
        await sim.until(lambda: sim.state("offered1") == "ready", "it was taken in")
        offer = sim.offers[0]
        assert (offer.model_name, offer.concurrency, offer.params) == ("hand", 3, {"tokens": 5})
        report = sim.report("offered1")
        assert report is not None
        assert report.epoch == 11
        assert all(r.instance_id == "offered1" for b in sim.beats for r in b.instances)
        pids, run_id = host.workers(), sim.last.run_id
        host.kill()
        host.start()
        await sim.until(lambda: sim.last.run_id != run_id, "the next process beats")
        await sim.until(lambda: sim.state("offered1") == "ready", "under the same name")
        assert host.workers() == pids
        assert len(sim.offers) == 1
        sim.order()  # it was given up while it was away
        await sim.until(lambda: sim.state("offered2") == "ready", "it is offered anew")
        assert host.workers() == pids
        beat = sim.last
        relay = Endpoint(
            host=beat.address, port=beat.port, tls=True, host_id=beat.host_id, prefix="/i/offered2"
        )
        gateway = gateway_of(sim, host.root / "gate")
        assert await asked(gateway, relay, "/v1/models") == 200
        sim.order(echo_order("offered2", wish=OrderWish.DRAIN, reason="it was stopped"))
        assert await asyncio.to_thread(host.ended) == 0
        assert sim.goodbyes == 1
        assert host.left_behind() == []

    play(body)


def test_a_worker_that_cannot_be_brought_says_why_and_leaves_nothing() -> None:
    async def body(host: HostRun, sim: SimControlPort) -> None:
        token = sim.token(Role.WORKER)
        script = '--param=script={"exit_at_start": 3}'
        code, told = await ends(host, *worker_words(sim, token, script))
        assert code == 1
        assert "model 'hand': engine" in told
        assert host.left_behind() == []
        sim.offer_refusal = Conflict("model 'hand' runs with another source")
        code, told = await ends(host, *worker_words(sim, token))
        assert code == 6
        assert "runs with another source" in told
        assert host.left_behind() == []

    play(body)


def test_another_token_joins_anew_a_controller_that_has_forgotten_this_machine() -> None:
    """Also at another address: the authority says whose it is. The machine's old orders are nobody's."""

    async def body(host: HostRun, sim: SimControlPort) -> None:
        host.start(*joining(sim, sim.token(), "--engines=fake"))
        await sim.until(lambda: bool(sim.beats), "it has joined")
        sim.order(echo_order("aaaa01"))
        await sim.until(lambda: sim.state("aaaa01") == "ready", "it serves")
        before = sim.last.host_id
        assert await asyncio.to_thread(host.stop) == 0
        later = SimControlPort(host.root / "ca")
        async with later.running():
            assert later.url != sim.url
            host.start(*joining(later, later.token(), "--engines=fake"))
            await later.until(lambda: bool(later.beats), "it has joined anew")
            assert later.last.host_id != before
            later.order(echo_order("bbbb01"))
            await later.until(lambda: later.state("bbbb01") == "ready", "it obeys the new one")
            assert set(host.workers()) == {"bbbb01"}
            assert await asyncio.to_thread(host.stop) == 0
        other = SimControlPort(host.root / "ca3")
        async with other.running():
            code, told = await ends(host, *joining(other, other.token()))
            assert code == 6
            assert "to join another controller choose another folder" in told

    play(body)
