"""What a refusal says: the error object of an answer, read by programs of ours. errors.envelope writes it."""

import msgspec


def refusal_in(
    body: bytes, otherwise: str = "the controller's answer cannot be read"
) -> tuple[str, str]:
    """Return its code and its message; "" and `otherwise` where it is none."""
    try:
        error = msgspec.json.decode(body, type=dict[str, dict[str, object]])["error"]
    except (msgspec.MsgspecError, KeyError):
        return "", otherwise
    return str(error.get("code", "")), str(error.get("message", ""))
