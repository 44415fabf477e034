"""What `hostler up` refuses before anything is started."""

from pathlib import Path

import pytest

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
