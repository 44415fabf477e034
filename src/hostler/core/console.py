"""What the console's page, the gateway, the controller and the commands agree on about signing in."""

TICKET_S = 600.0  # how long a link can sign somebody in
MARK = (
    b"x-hostler-console"  # a header that only a script of our own page can send: no form, no link
)


def link_of(url: str, ticket: str) -> str:
    """The address that signs a browser in. What is behind the # is sent to no server, and is in no log."""
    return f"{url.rstrip('/')}/#ticket={ticket}"


def cookie_name(host: str) -> str:
    """The session's cookie at this `Host`. Cookies know no ports, so the name does."""
    port = host.rpartition(":")[2] if not host.endswith("]") else ""
    return f"hostler_session_{port}" if port.isdigit() else "hostler_session"
