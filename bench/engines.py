"""Real engines through the gateway: tokens a second beside the engine's own socket; batched embeddings."""

import http.client
import json
import socket
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from urllib.parse import urlsplit

from bench import machine
from bench.figures import Part, median, spread
from hostler.catalog.catalog import Catalog
from hostler.testing.cluster import Cluster

CHAT_MODEL = "smollm2-135m-instruct"
EMBED_MODEL = "bge-small-en-v1.5"
TOKENS = {1: 96, 8: 48}  # of one stream, by how many run at once
TEXT = "A hostler took care of travellers' horses at an inn: it fetched them, fed them and put them away"


@dataclass
class FirstToken:
    token_s: float = 0.0
    ready_s: float = 0.0


class UnixConnection(http.client.HTTPConnection):
    """HTTP over a Unix socket."""

    def __init__(self, path: str, timeout_s: float) -> None:
        super().__init__("localhost", timeout=timeout_s)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self._path)


@dataclass(frozen=True)
class Door:
    """Where to ask: the gateway, or an engine's socket. seed: keeps prompts of one run apart."""

    connect: Callable[[], http.client.HTTPConnection]
    headers: dict[str, str]

    def post(self, path: str, body: dict[str, object]) -> http.client.HTTPResponse:
        connection = self.connect()
        fields = {"content-type": "application/json", "connection": "close", **self.headers}
        connection.request("POST", path, json.dumps(body), fields)
        return connection.getresponse()


def gateway_door(cluster: Cluster) -> Door:
    address = urlsplit(cluster.url)

    def connect() -> http.client.HTTPConnection:
        return http.client.HTTPConnection(address.hostname or "", address.port, timeout=120)

    return Door(connect, {"authorization": f"Bearer {cluster.admin_key}"})


def engine_door(cluster: Cluster, model: str) -> Door:
    address = str(cluster.ready(model)[0]["address"])
    path = address.removeprefix("unix:").removeprefix("//")
    return Door(lambda: UnixConnection(path, 120), {})


def chat_body(prompt: str, tokens: int) -> dict[str, object]:
    """A request whose length does not depend on what the model would say."""
    return {
        "model": CHAT_MODEL,
        "messages": [{"role": "user", "content": prompt}],
        "max_tokens": tokens,
        "stream": True,
        "temperature": 0,
        "ignore_eos": True,
    }


def first_token(cluster: Cluster, model: str) -> bool:
    """Ask for a stream; say whether a token came. False while the model is not there yet."""
    try:
        answer = gateway_door(cluster).post("/v1/chat/completions", chat_body("Hello.", 8))
        if answer.status != 200:
            answer.read()
            return False
        return any(is_token(line) for line in answer)
    except (OSError, http.client.HTTPException, ValueError):
        return False


def is_token(line: bytes) -> bool:
    return line.startswith(b"data: {") and b'"content":"' in line and b'"content":""' not in line


def stream_tokens(door: Door, prompt: str, tokens: int) -> int:
    """Ask, read the stream to its end, return how many tokens came.

    Raises:
        RuntimeError: it failed, or its end is missing.
    """
    answer = door.post("/v1/chat/completions", chat_body(prompt, tokens))
    if answer.status != 200:
        raise RuntimeError(f"status {answer.status}: {answer.read()[:300]!r}")
    lines = list(answer)
    if not any(line.startswith(b"data: [DONE]") for line in lines):
        raise RuntimeError(f"a stream without its end: {lines[-3:]!r}")
    return sum(line.startswith(b"data: {") for line in lines)


def token_rate(door: Door, streams: int, label: str) -> float:
    """Chunks a second of so many streams at once; each has a prompt of its own."""
    prompts = [f"{label} {number}: tell a long story of a horse." for number in range(streams)]
    with ThreadPoolExecutor(streams) as pool:
        began_s = time.perf_counter()
        counts = list(
            pool.map(lambda prompt: stream_tokens(door, prompt, TOKENS[streams]), prompts)
        )
        return sum(counts) / (time.perf_counter() - began_s)


def measure_tokens(part: Part, cluster: Cluster, *, rounds: int = 6) -> None:
    """Add tokens a second through the gateway and from the engine's own socket, turn about."""
    through, direct = gateway_door(cluster), engine_door(cluster, CHAT_MODEL)
    slots = int(cluster.ready(CHAT_MODEL)[0]["limit_model_concurrency"])
    for streams in (1, 8):
        rates: dict[str, list[float]] = {"through": [], "direct": []}
        with machine.watch_noise() as noise:
            token_rate(through, streams, "warm")
            for number in range(rounds if streams > 1 else 3 * rounds):
                pair = [("through", through), ("direct", direct)]
                for name, door in pair if number % 2 else pair[::-1]:
                    rates[name].append(token_rate(door, streams, f"{name} {number}"))
        pairs = [a / b for a, b in zip(rates["through"], rates["direct"], strict=True)]
        what, others = f"{streams} streams" if streams > 1 else "1 stream", noise.others_cores
        part.add(
            f"tokens/s, {what}, gateway",
            median(rates["through"]),
            "/s",
            noise=others,
            note=f"{slots} slots",
        )
        part.add(f"tokens/s, {what}, engine's socket", median(rates["direct"]), "/s", noise=others)
        part.add(
            f"tokens/s, {what}: gateway ÷ socket",
            median(pairs),
            "x",
            at_least=0.98,
            noise=others,
            note=spread(pairs),
        )


def text_rate(door: Door, clients: int, seconds: float, model: str) -> float:
    """Texts a second: so many clients, each asks for one text's vector, again and again."""
    counts = [0] * clients
    ends_at_s = time.perf_counter() + seconds

    def client(number: int) -> None:
        connection = door.connect()
        fields = {"content-type": "application/json", **door.headers}
        while time.perf_counter() < ends_at_s:
            body = json.dumps({"model": model, "input": f"{TEXT} ({number}.{counts[number]})."})
            connection.request("POST", "/v1/embeddings", body, fields)
            answer = connection.getresponse()
            data = answer.read()
            if answer.status != 200:
                raise RuntimeError(f"status {answer.status}: {data[:300]!r}")
            counts[number] += 1
        connection.close()

    began_s = time.perf_counter()
    run_all([partial(client, number) for number in range(clients)])
    return sum(counts) / (time.perf_counter() - began_s)


def measure_embeddings(
    part: Part, cluster: Cluster, *, rounds: int = 3, seconds: float = 2.0
) -> None:
    """Add texts a second of 32 clients as shipped, of one client, and of 32 with batching off."""
    unbatched = f"{EMBED_MODEL}-unbatched"
    order = {
        "model": unbatched,
        "worker_type": "text2vec",
        "engine": "onnx",
        "params": {"batching": "off"},
    }
    entry = Catalog().require(EMBED_MODEL)
    cluster.json("POST", "/api/v1/models", {**order, "source": entry.source})
    cluster.wait_for(lambda: bool(cluster.ready(unbatched)), 60.0, "the unbatched model")
    door = gateway_door(cluster)
    rates: dict[str, list[float]] = {"32": [], "1": [], "off": []}
    with machine.watch_noise() as noise:
        for name in (EMBED_MODEL, unbatched):
            text_rate(door, 8, 0.5, name)
        for _ in range(rounds):
            rates["32"].append(text_rate(door, 32, seconds, EMBED_MODEL))
            rates["1"].append(text_rate(door, 1, seconds, EMBED_MODEL))
            rates["off"].append(text_rate(door, 32, seconds, unbatched))
    cluster.json("DELETE", f"/api/v1/models/{unbatched}?delete=true")
    others = noise.others_cores
    part.add(
        "texts/s, 32 clients", median(rates["32"]), "/s", noise=others, note=spread(rates["32"], 0)
    )
    part.add(
        "texts/s, 1 client", median(rates["1"]), "/s", noise=others, note=spread(rates["1"], 0)
    )
    part.add(
        "texts/s, 32 clients, batching off",
        median(rates["off"]),
        "/s",
        noise=others,
        note=spread(rates["off"], 0),
    )
    for name, base in (("1 client", "1"), ("batching off", "off")):
        gains = [a / b for a, b in zip(rates["32"], rates[base], strict=True)]
        part.add(f"batching gain over {name}", median(gains), "x", noise=others, note=spread(gains))


def run_all(jobs: Sequence[Callable[[], None]]) -> None:
    """Run each in a thread of its own; raise the first error."""
    with ThreadPoolExecutor(len(jobs)) as pool:
        for job in [pool.submit(job) for job in jobs]:
            job.result()
