"""What is read from logs, and how they are kept small."""

import os
from pathlib import Path

import pytest

from hostler.manager import logs


def test_the_worker_s_own_words_are_the_reason() -> None:
    lines = ["noise", 'hostler-error: {"code":"model_corrupt","message":"x.gguf: cut"}', "tail"]
    assert logs.exit_reason(3, lines) == "x.gguf: cut"
    assert logs.error_told(lines) == ("model_corrupt", "x.gguf: cut")


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        (-9, "its process was killed by signal 9"),
        (7, "its process exited with 7"),
        (None, "its process is gone"),
    ],
)
def test_without_words_the_exit_is_the_reason(code: int | None, reason: str) -> None:
    assert logs.exit_reason(code, ["hostler-error: not JSON"]) == reason


def test_the_last_lines_of_a_missing_log_are_none(tmp_path: Path) -> None:
    assert logs.last_lines(tmp_path / "none.log") == []


def test_F18_a_living_instance_s_log_is_cut_and_old_ones_are_deleted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logs, "KEPT_BYTES", 1000)
    monkeypatch.setattr(logs, "KEPT_LOGS", 3)
    loud = tmp_path / "worker-a.log"
    loud.write_text("line\n" * 5000)
    for number in range(6):
        old = tmp_path / f"engine-gone{number}.log"
        old.write_text("x")
        os.utime(old, (number, number))
    (tmp_path / "controller.log").write_text("stays")
    logs.LogKeeper(tmp_path).look(frozenset({"a"}))
    assert loud.stat().st_size < 2000
    left = sorted(path.name for path in tmp_path.glob("engine-*.log"))
    assert left == ["engine-gone3.log", "engine-gone4.log", "engine-gone5.log"]
    assert (tmp_path / "controller.log").exists()
