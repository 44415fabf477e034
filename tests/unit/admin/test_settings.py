"""The settings in use, as the API tells them: every one, its origin, no secret."""

import asyncio
from pathlib import Path
from typing import Any

import msgspec
import pytest

from hostler.admin.messages import Setting, SettingList
from hostler.admin.settings import Running, origin_text, setting_text, settings_in_use
from hostler.app.config import Config, GatewayConfig
from hostler.app.loading import Loaded, read_settings
from hostler.app.origins import Origin, OriginKind, Origins
from tests.unit.admin.plane import Plane

FILE = """
[store]
url = "postgresql+psycopg://hostler:sesame-1@db/hostler"

[telemetry]
otlp_endpoint = "http://otel:sesame-2@127.0.0.1:4318"
service_name = "${env:SESAME}"

[[models]]
name = "given"
engine = "openai_server"
urls = ["http://user:sesame-3@127.0.0.1:9/v1"]
api_key_env = "PROVIDER_KEY"

[[models]]
name = "own"
engine = "nobody_knows_it"
params = { password = "sesame-4" }

[[models]]
name = "chat"
engine = "llama.cpp"
source = "/m.gguf"
params = { context_length = 512 }
aliases = ["${env:SESAME}"]
runtime_env = { env_vars = { TOKEN = "sesame-6" }, pip = ["numpy"] }
"""


def in_use(told: Loaded) -> dict[str, Setting]:
    found = settings_in_use(Running(loaded=told, own=told.config))
    return {one.name: one for one in found.settings}


def test_every_setting_is_there_once_with_its_meaning() -> None:
    names = [
        one.name
        for one in settings_in_use(Running(loaded=Loaded(config=Config()), own=Config())).settings
    ]
    assert len(names) == len(set(names))
    found = in_use(Loaded(config=Config()))
    port = found["server.port"]
    assert (port.value, port.default, port.section) == (8100, 8100, "server")
    assert port.about == "0: the kernel picks a free one"
    assert setting_text(found["life.drain_timeout_s"]) == "30.0 s"
    assert found["life.load_bytes_per_s"].unit == "bytes/s"
    assert found["gateway.request_timeout_s"].about.startswith("queue, retries and answer")
    assert found["state_dir"].value.startswith("/")
    assert "Off without this section" in found["control"].about
    assert {one.origin.kind for one in found.values()} == {OriginKind.DEFAULT}


def test_no_secret_is_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SESAME", "sesame-5")
    path = tmp_path / "hostler.toml"
    path.write_text(FILE)
    loaded = read_settings(path)
    found = in_use(loaded)
    assert b"sesame" not in msgspec.json.encode(tuple(found.values()))
    assert (found["store.url"].value, found["store.url"].secret) == ("set", True)
    assert in_use(Loaded(config=Config()))["store.url"].value == "not set"
    assert found["telemetry.otlp_endpoint"].value == "http://***@127.0.0.1:4318"
    assert found["telemetry.service_name"].origin.variables == ("SESAME",)
    assert found["models.given.urls"].value == ["http://***@127.0.0.1:9/v1"]
    assert found["models.given.api_key_env"].value == "PROVIDER_KEY"
    assert found["models.own.params.password"].value == "set"
    assert found["models.chat.params.context_length"].value == 512
    assert found["models.chat.params.context_length"].origin.name == str(path)
    assert found["models.chat.aliases"].value == "set"
    assert found["models.chat.runtime_env.pip"].value == ["numpy"]
    assert found["models"].value == ["given", "own", "chat"]


def test_the_api_tells_what_has_changed_and_is_not_used(tmp_path: Path) -> None:
    path = tmp_path / "hostler.toml"
    path.write_text("[gateway]\nattempts = 5\n")
    loaded = read_settings(path)
    told = Loaded(
        config=loaded.config,
        origins=msgspec.structs.replace(loaded.origins, not_taken=("life: takes effect later",)),
    )
    running = Running(loaded=told, own=Config(gateway=GatewayConfig(attempts=4)))
    path.write_text("")

    async def main() -> Any:
        return (await Plane(tmp_path, running=lambda: running).ask("GET", "/api/v1/settings")).json

    answer = msgspec.convert(asyncio.run(main()), SettingList)
    assert answer.file == str(path)
    assert [note.split(":")[0] for note in answer.notes] == [
        "life",
        f"config file {path} has changed since it was read",
        "gateway.attempts",
    ]
    assert answer.notes[2].endswith("the controller goes on with 4")


@pytest.mark.parametrize(
    ("origin", "words"),
    [
        (Origin(), "default"),
        (Origin(kind=OriginKind.FILE, name="/a.toml"), "config file"),
        (
            Origin(kind=OriginKind.FILE, name="/a.toml", variables=("A", "B")),
            "config file (environment A, B)",
        ),
        (Origin(kind=OriginKind.ENVIRONMENT, name="HOSTLER_PORT"), "environment HOSTLER_PORT"),
        (Origin(kind=OriginKind.OPTION, name="--port"), "option --port"),
        (Origin(kind=OriginKind.SETTING, name="server.tls"), "from server.tls"),
        (Origin(kind=OriginKind.PROGRAM), "the program"),
    ],
)
def test_an_origin_in_words(origin: Origin, words: str) -> None:
    assert origin_text(origin) == words


def test_a_server_without_a_file_has_nothing_to_tell() -> None:
    known = settings_in_use(
        Running(loaded=Loaded(config=Config(), origins=Origins()), own=Config())
    )
    assert (known.file, known.notes) == ("", ())
