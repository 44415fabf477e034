"""What `hostler up` refuses before anything is started, and what it says when all is up."""

from pathlib import Path

import pytest

from hostler.app.paths import StatePaths
from hostler.cli.announce import ForPeople
from hostler.cli.arrival import Arrival
from hostler.cli.main import main


@pytest.mark.parametrize(
    ("table", "said"),
    [
        ('name = "nosuch"', "[[models]] nosuch: model 'nosuch' is not in the catalogue"),
        (
            'name = "smollm2-135m-instruct"\nconcurrency = 0',
            "[[models]] smollm2-135m-instruct: concurrency: need 1 or more, got 0",
        ),
        (
            'name = "m"\ntype = "llm"\nengine = "llama.cpp"',
            "[[models]] m: model 'm': engine 'llama.cpp' needs a source",
        ),
        (
            'name = "m"\nurls = ["http://127.0.0.1:9/v1"]\napi_key_env = "NOBODY_SET_THIS"',
            "environment has no variable 'NOBODY_SET_THIS'",
        ),
        (
            'name = "m"\ntype = "llm"\nengine = "fake"\nparams = {tokenz = 3}',
            "engine 'fake' has no parameter 'tokenz'; did you mean 'tokens'?",
        ),
    ],
)
def test_a_model_that_can_never_run_is_a_refused_configuration(
    table: str, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tmp_path / "hostler.toml"
    config.write_text(f"[[models]]\n{table}\n")
    state = tmp_path / "state"
    assert main(["up", "--config", str(config), "--state-dir", str(state), "--port", "0"]) == 78
    assert said in capsys.readouterr().err
    assert not state.exists()


@pytest.mark.parametrize("is_terminal", [True, False])
def test_F110_the_new_key_is_shown_to_a_person_and_to_no_journal(
    is_terminal: bool,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    paths = StatePaths(tmp_path)
    voice = ForPeople()
    arrival = Arrival(paths, voice, lambda role: None)  # before there is a key: the first start
    paths.admin_key.write_text("hst_abc_secret\n")
    monkeypatch.setattr("sys.stdout.isatty", lambda: is_terminal)
    voice.ready("http://127.0.0.1:8100", paths, arrival, 1.0)
    out = capsys.readouterr().out
    assert ("Key: hst_abc_secret" in out) is is_terminal
    assert (f"Key: in {paths.admin_key}" in out) is not is_terminal
    assert ("hst_abc_secret" in out) is is_terminal
