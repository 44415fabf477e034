"""The file of gateways that were removed, as the relay beside it reads it."""

from pathlib import Path

from hostler.wire.refused import REFUSED_FILE, RefusedFile, save_refused


def test_what_is_written_is_news_once(tmp_path: Path) -> None:
    file = RefusedFile(tmp_path)
    assert file.news() is None
    save_refused(tmp_path, ("gate2", "gate1"))
    assert file.news() == frozenset({"gate1", "gate2"})
    assert file.news() is None
    save_refused(tmp_path, ())
    assert file.news() == frozenset()


def test_a_file_that_cannot_be_read_lets_nobody_in_again(tmp_path: Path) -> None:
    file = RefusedFile(tmp_path)
    (tmp_path / REFUSED_FILE).write_text("not json")
    assert file.news() is None
    save_refused(tmp_path, ("gate1",))
    assert file.news() == frozenset({"gate1"})
    (tmp_path / REFUSED_FILE).unlink()
    assert file.news() is None
