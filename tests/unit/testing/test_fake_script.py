"""Orders to the fake engine."""

from pathlib import Path

import msgspec
import pytest

from hostler.testing.fake_script import PROCESS_FIELDS, Script, merge, parse_script, script_for


def test_a_healthy_engine_is_the_default() -> None:
    assert parse_script("") == parse_script("{}") == Script()


def test_an_unknown_order_is_refused() -> None:
    with pytest.raises(msgspec.ValidationError, match="explode"):
        parse_script('{"explode": true}')
    with pytest.raises(msgspec.ValidationError):
        merge(Script(), {"explode": True})


def test_a_merge_keeps_the_rest_and_null_means_the_default() -> None:
    script = merge(Script(status=500), {"tokens": 3})
    assert (script.status, script.tokens) == (500, 3)
    assert merge(script, {"status": None}) == Script(tokens=3)


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        ("[[die]]", Script(crash_at=0)),
        ("[[segv]]", Script(crash_at=0, crash_with="SIGSEGV")),
        ("[[crash_at=3]] [[crash_with=7]]", Script(crash_at=3, crash_with="7")),
        ("[[hang]]", Script(hang_at=0)),
        ("[[half_alive]]", Script(half_alive=True)),
        ("[[status=429]] [[retry_after_s=2]]", Script(status=429, retry_after_s=2)),
        ("[[delay_ms=1.5]]", Script(delay_ms=1.5)),
        ("[[nonsense]] plain", Script()),
    ],
)
def test_magic_words_change_the_script_of_one_request(prompt: str, expected: Script) -> None:
    assert script_for(Script(), ["first", prompt]) == expected


@pytest.mark.parametrize("name", sorted(PROCESS_FIELDS))
def test_a_prompt_cannot_change_the_process(name: str) -> None:
    assert script_for(Script(), [f"[[{name}=1]]"]) == Script()


@pytest.mark.parametrize("name", Script.__struct_fields__)
def test_every_order_is_in_the_reference(name: str) -> None:
    page = Path(__file__).parents[3] / "docs" / "reference" / "fake-engine.md"
    assert f"`{name}`" in page.read_text()
