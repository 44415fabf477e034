"""A log file: its last lines, the new ones, and no secret in either."""

from pathlib import Path

from hostler.app.auth import new_key
from hostler.app.log_file import LogFile


def test_a_log_that_is_not_there_yet_has_no_lines(tmp_path: Path) -> None:
    tail = LogFile(tmp_path / "none")
    assert tail.last_lines(5) == tail.new_lines() == []


def test_new_lines_come_whole_and_a_cut_file_is_read_on(tmp_path: Path) -> None:
    path = tmp_path / "log"
    path.write_text("old\n")
    tail = LogFile(path)
    assert tail.last_lines(5) == ["old"]
    with path.open("a") as file:
        file.write("new\nhal")
        file.flush()
        assert tail.new_lines() == ["new"]
        file.write("f\n")
        file.flush()
        assert tail.new_lines() == ["half"]
    path.write_text("")
    assert tail.new_lines() == []
    path.write_text("again\n")
    assert tail.new_lines() == ["again"]


def test_a_long_log_is_read_from_its_end_only(tmp_path: Path) -> None:
    path = tmp_path / "log"
    with path.open("wb") as file:
        for n in range(40_000):
            file.write(b"%0100d\n" % n)
    lines = LogFile(path).last_lines(10_000)
    assert [int(line) for line in lines] == list(range(30_000, 40_000))


def test_a_line_without_an_end_does_not_fill_the_memory(tmp_path: Path) -> None:
    path = tmp_path / "log"
    path.write_bytes(b"")
    tail = LogFile(path)
    path.write_bytes(b"x" * 300_000)
    seen = sum(len(line) for _ in range(6) for line in tail.new_lines())
    assert seen >= 200_000


def test_a_key_that_an_engine_printed_is_not_shown(tmp_path: Path) -> None:
    key = new_key(["admin"]).plain
    path = tmp_path / "log"
    path.write_text(f"calling with {key}\nAuthorization: Bearer sk-other-secret\n")
    shown = "\n".join(LogFile(path).last_lines(5))
    assert key.split("_")[2] not in shown
    assert "sk-other-secret" not in shown


def test_another_reader_goes_on_where_one_stopped(tmp_path: Path) -> None:
    path = tmp_path / "log"
    path.write_text("old\n")
    first = LogFile(path)
    assert first.last_lines(5) == ["old"]
    with path.open("a") as file:
        file.write("new\nhal")
    second = LogFile(path, first.place)
    assert second.new_lines() == ["new"]
    with path.open("a") as file:
        file.write("f\n")
    assert LogFile(path, second.place).new_lines() == ["half"]


def test_a_line_without_an_end_does_not_hold_up_who_reads_in_steps(tmp_path: Path) -> None:
    path = tmp_path / "log"
    path.write_bytes(b"x" * 300_000 + b"\nend\n")
    place, seen = 0, []
    for _ in range(8):
        file = LogFile(path, place)
        seen += file.new_lines()
        place = file.place
    assert seen[-1] == "end"
    assert sum(map(len, seen)) == 300_003
