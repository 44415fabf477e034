"""What the doctor sees and says."""

import os
import socket
from pathlib import Path

import pytest

from hostler.app.paths import StatePaths
from hostler.cli import checks
from hostler.cli.checks import GB, Verdict

AVX2 = "processor : 0\nflags\t\t: fpu sse4_2 avx avx2 fma\n"
OLD = "processor : 0\nflags\t\t: fpu sse4_2 avx\n"


@pytest.mark.parametrize(
    ("cpuinfo", "machine", "verdict"),
    [
        (AVX2, "x86_64", Verdict.OK),
        (OLD, "x86_64", Verdict.WARN),
        ("", "x86_64", Verdict.WARN),
        ("", "aarch64", Verdict.OK),
    ],
)
def test_a_processor_without_avx2_is_warned_of(
    cpuinfo: str, machine: str, verdict: Verdict
) -> None:
    found = checks.cpu_flags(cpuinfo, machine)
    assert found.verdict is verdict
    assert bool(found.advice) is (verdict is not Verdict.OK)


@pytest.mark.parametrize(
    ("free_gb", "verdict"), [(4.0, Verdict.OK), (1.0, Verdict.WARN), (0.2, Verdict.FAIL)]
)
def test_little_memory_is_a_warning_and_too_little_a_failure(
    free_gb: float, verdict: Verdict
) -> None:
    assert checks.memory(int(free_gb * GB), int(8 * GB)).verdict is verdict


@pytest.mark.parametrize("port", [-1, 65536, 99999])
def test_a_number_that_is_no_port_is_a_failure(port: int) -> None:
    found = checks.port_free("127.0.0.1", port, ours=False)
    assert (found.verdict, found.seen) == (Verdict.FAIL, f"{port} is not a port")


def test_a_taken_port_is_a_failure_unless_our_own_server_has_it() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert checks.port_free("127.0.0.1", port, ours=False).verdict is Verdict.FAIL
        assert checks.port_free("127.0.0.1", port, ours=True).verdict is Verdict.OK
    assert checks.port_free("127.0.0.1", port, ours=False).verdict is Verdict.OK


def test_a_state_folder_that_is_not_there_yet_is_judged_by_its_parent(tmp_path: Path) -> None:
    found = checks.state_folder(StatePaths(tmp_path / "new" / "state"))
    assert found.verdict is Verdict.OK
    assert "will be made" in found.seen
    assert not (tmp_path / "new").exists()


def test_a_state_folder_that_others_can_enter_is_a_warning(tmp_path: Path) -> None:
    folder = tmp_path / "state"
    folder.mkdir(mode=0o700)
    assert checks.state_folder(StatePaths(folder)).verdict is Verdict.OK
    folder.chmod(0o755)
    found = checks.state_folder(StatePaths(folder))
    assert (found.verdict, found.advice) == (Verdict.WARN, f"chmod 700 {folder}")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_state_folder_that_cannot_be_written_is_a_failure(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    assert checks.state_folder(StatePaths(tmp_path / "state")).verdict is Verdict.FAIL
    tmp_path.chmod(0o700)


def test_a_path_too_long_for_a_socket_is_a_failure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert checks.run_folder(StatePaths("/srv/hostler")).verdict is Verdict.OK
    long = tmp_path / ("x" * 100)
    monkeypatch.setattr("tempfile.tempdir", str(long))
    assert checks.run_folder(StatePaths(long)).verdict is Verdict.FAIL


def test_a_library_that_cannot_be_imported_says_what_then_is_missing() -> None:
    found = checks.engine_wheel("no_such_engine_library", "chat models")
    assert found.verdict is Verdict.WARN
    assert "No module named" in found.seen
    assert "no chat models" in found.advice
