"""`hostler token create`: what is refused before any server is asked; durations as people write them."""

import pytest

from hostler.cli.exits import CommandFailed, Exit
from hostler.cli.join_tokens import create
from hostler.cli.moments import seconds_of
from hostler.core.hosts import Role


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"expires": "soon"}, "--expires 'soon'"),
        ({"expires": "9999d"}, "--expires '9999d'"),
        ({"expires": "0s"}, "--expires '0s'"),
        ({"uses": -1}, "--uses -1"),
        ({"uses": 1_000_000}, "--uses 1000000"),
    ],
)
def test_an_option_that_is_wrong_is_named(options: dict[str, object], named: str) -> None:
    with pytest.raises(CommandFailed) as told:
        create(role=Role.HOST, **options)  # type: ignore[arg-type]
    assert named in str(told.value)
    assert told.value.exit_code == Exit.USAGE


def test_durations_are_read_in_each_unit() -> None:
    assert [seconds_of(text, "-x") for text in ("90s", "30m", "24h", "7d")] == [
        90,
        1800,
        86_400,
        604_800,
    ]
