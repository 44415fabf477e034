"""What a person reads of a download client that failed."""

import pytest

from hostler.catalog.runner import last_useful_line

RETRY = (
    "WARNING: Retrying (Retry(total=0)) after connection broken by 'NewConnectionError('<x>: Failed to "
    "establish a new connection: [Errno 111] Connection refused')': /simple/a/"
)


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        ([], ""),
        (["Collecting a", "ERROR: first", "ERROR: last", "[notice] a new pip"], "last"),
        (
            [
                "ERROR: Could not find a version that satisfies a (from versions: 1)",
                "ERROR: No match",
            ],
            "Could not find a version that satisfies a (from versions: 1)",
        ),
        ([RETRY, "ERROR: No match"], "the server cannot be reached (Connection refused)"),
        (
            ["connection broken by 'ReadTimeoutError(x)'"],
            "the server cannot be reached (ReadTimeoutError)",
        ),
        (
            ["\x1b[90mError: Repository not found.\x1b[0m", "Hint: set HF_DEBUG=1"],
            "Repository not found.",
        ),
        (["Looking in https://me:hunter2@host/simple"], "Looking in https://***@host/simple"),
        (["ERROR: bad token hf_abcdefghijkl given"], "bad token *** given"),
    ],
)
def test_the_useful_line_is_found_and_holds_no_secret(lines: list[str], said: str) -> None:
    assert last_useful_line(lines) == said
