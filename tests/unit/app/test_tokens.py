"""Join tokens: one form, one reading, and a secret that only its hash is kept of."""

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hostler.app.tokens import LONGEST_S, JoinToken, is_proven, new_token, parse_token
from hostler.core.errors import BadRequest
from hostler.core.hosts import Role

FINGERPRINT = "0123456789abcdef" * 4
BASE62 = "[0-9A-Za-z]"


@given(
    token_id=st.from_regex(f"{BASE62}{{10}}", fullmatch=True),
    secret=st.from_regex(f"{BASE62}{{43}}", fullmatch=True),
    fingerprint=st.from_regex("[0-9a-f]{64}", fullmatch=True),
    around=st.sampled_from(["", " ", "\n", "\r\n"]),
)
def test_a_token_is_read_as_it_was_written(
    token_id: str, secret: str, fingerprint: str, around: str
) -> None:
    token = JoinToken(token_id=token_id, secret=secret, fingerprint=fingerprint)
    assert parse_token(around + str(token) + around) == token
    assert len(str(token)) == 124


@given(st.text(max_size=200) | st.binary(max_size=200).map(lambda data: data.decode("latin-1")))
def test_any_other_text_is_told_to_be_no_token(text: str) -> None:
    with pytest.raises(BadRequest, match="not a join token"):
        parse_token(text)


@given(st.data())
def test_a_token_cut_off_or_with_a_character_changed_is_not_the_same(data: st.DataObject) -> None:
    made = new_token(Role.HOST, FINGERPRINT)
    at = data.draw(st.integers(0, len(made.plain) - 1))
    with pytest.raises(BadRequest):
        parse_token(made.plain[:at])
    changed = made.plain[:at] + data.draw(st.characters()) + made.plain[at + 1 :]
    if changed != made.plain:
        try:
            read = parse_token(changed)
        except BadRequest:
            return
        same_secret = is_proven(made.stored, read.secret)
        assert not same_secret or (read.token_id, read.fingerprint) != (
            made.stored.token_id,
            FINGERPRINT,
        )


def test_a_new_token_is_shown_once_and_only_its_hash_is_kept() -> None:
    made = new_token(Role.GATEWAY, FINGERPRINT, lasts_s=60.0, uses=4, name="n", clock=lambda: 5.0)
    read = parse_token(made.plain)
    assert read.fingerprint == FINGERPRINT
    assert read.secret not in msgspec.json.encode(made.stored).decode()
    assert (made.stored.role, made.stored.uses_left) == (Role.GATEWAY, 4)
    assert (made.stored.created_at_s, made.stored.expires_at_s) == (5.0, 65.0)
    assert is_proven(made.stored, read.secret)
    assert not is_proven(made.stored, read.secret[::-1])
    assert not is_proven(None, read.secret)


def test_no_token_is_good_for_ever() -> None:
    made = new_token(Role.HOST, FINGERPRINT, lasts_s=1e12, clock=lambda: 0.0)
    assert made.stored.expires_at_s == LONGEST_S


def test_no_two_tokens_are_alike() -> None:
    assert len({new_token(Role.HOST, FINGERPRINT).plain for _ in range(50)}) == 50
