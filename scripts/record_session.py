"""Record a real terminal session into docs/tutorial/session.txt: a first start, a few commands, the end.

    python scripts/record_session.py [--port 8100] [--output FILE]

Everything runs in pseudo-terminals, in a fresh state folder; models are really fetched. Paths of this
machine and keys are replaced, nothing else is changed. Exit code 1 when a command fails.
"""

import argparse
import os
import pty
import re
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parents[1]
HOSTLER = Path(sys.executable).with_name("hostler")
SHOWN_STATE = "~/.local/share/hostler"
UP_WITHIN_S = 300.0
COMMAND_WITHIN_S = 120.0

COMMANDS = (
    ("hostler", "ps"),
    (
        "hostler",
        "chat",
        "--system",
        "You are a helpful AI assistant.",
        "What is the capital of France?",
    ),
    ("hostler", "tokens", "How many tokens are these?"),
    ("hostler", "embed", "a horse", "a locomotive"),
    ("hostler", "rerank", "who shoes horses?", "Trains run on rails.", "A farrier shoes horses."),
    ("hostler", "model", "update", "bge-small-en-v1.5", "--replicas", "2"),
    ("hostler", "model", "stop", "ms-marco-minilm-l-12-v2"),
    ("hostler", "model", "start", "ms-marco-minilm-l-12-v2"),
    ("hostler", "key", "create", "laptop", "--scope", "inference", "--days", "90"),
    ("hostler", "model", "list"),
)


class Terminal:
    """One command in a pseudo-terminal, and what it printed."""

    def __init__(self, command: tuple[str, ...], environment: dict[str, str]) -> None:
        self._screen, side = pty.openpty()
        self.printed = b""
        self.process = subprocess.Popen(
            [str(HOSTLER), *command[1:]],
            stdin=side,
            stdout=side,
            stderr=side,
            env=environment,
            start_new_session=True,
        )
        os.close(side)

    def read(self, within_s: float, until: bytes | None = None) -> bool:
        """Read until the command ends or has printed that; say whether it did in time."""
        end_s = time.monotonic() + within_s
        while time.monotonic() < end_s:
            if until is not None and until in self.printed:
                return True
            if select.select([self._screen], [], [], 0.1)[0]:
                try:
                    data = os.read(self._screen, 65536)
                except OSError:  # the other side is closed: the command has ended
                    data = b""
                if not data:
                    self.process.wait(10)
                    return until is None
                self.printed += data
        return False


def plain(printed: bytes, state_dir: Path, url: str | None) -> str:
    """What stands on the screen at the end, without colours, keys and paths of this machine."""
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", printed.decode(errors="replace"))
    lines = [line.split("\r")[-1] for line in text.replace("\r\n", "\n").split("\n")]
    text = "\n".join(line.rstrip() for line in lines)
    text = text.replace(f" --state-dir {state_dir}", "").replace(str(state_dir), SHOWN_STATE)
    text = text.replace(str(Path.home()), "~").replace(str(ROOT), "hostler")
    if url:
        text = text.replace(url, "http://127.0.0.1:8100")
    text = re.sub(r"hst_[0-9A-Za-z]{10}_[0-9A-Za-z]+", "hst_…", text)
    return re.sub(r"\n{3,}", "\n\n", text).strip("\n")


def shown(command: tuple[str, ...]) -> str:
    return "$ " + " ".join(f'"{word}"' if " " in word else word for word in command)


def record(port: int) -> str:
    """Run the session; return its text."""
    state_dir = Path(tempfile.mkdtemp(prefix="hostler-session-", dir="/tmp")) / "state"
    names = ("HOSTLER_URL", "HOSTLER_API_KEY", "HOSTLER_PORT")
    environment = {name: value for name, value in os.environ.items() if name not in names}
    environment |= {
        "HOSTLER_STATE_DIR": str(state_dir),
        "TERM": "dumb",
        "NO_COLOR": "1",
    }
    up = Terminal(("hostler", "up", "--port", str(port)), environment)
    parts = []
    try:
        if not up.read(UP_WITHIN_S, b"Ctrl-C stops everything."):
            raise SystemExit(f"hostler up did not come up:\n{up.printed.decode(errors='replace')}")
        found = re.search(rb"(http://[0-9.:]+)/v1", up.printed)
        url = found[1].decode() if found else None
        parts = [shown(("hostler", "up")), plain(up.printed, state_dir, url), ""]
        parts.append("# in another terminal")
        for command in COMMANDS:
            terminal = Terminal(command, environment)
            if not terminal.read(COMMAND_WITHIN_S) or terminal.process.returncode != 0:
                raise SystemExit(
                    f"{shown(command)} failed:\n{terminal.printed.decode(errors='replace')}"
                )
            parts += [shown(command), plain(terminal.printed, state_dir, url), ""]
        before = len(up.printed)
        up.process.send_signal(signal.SIGINT)
        if not up.read(60.0):
            raise SystemExit("hostler up did not end after Ctrl-C")
        parts += ["# Ctrl-C in the first terminal", plain(up.printed[before:], state_dir, url)]
    finally:
        if up.process.poll() is None:
            up.process.kill()
        shutil.rmtree(state_dir.parent, ignore_errors=True)
    return "\n".join(parts).rstrip() + "\n"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--output", type=Path, default=ROOT / "docs" / "tutorial" / "session.txt")
    given = parser.parse_args()
    text = record(given.port)
    given.output.parent.mkdir(parents=True, exist_ok=True)
    given.output.write_text(text)
    print(f"{given.output}: {len(text.splitlines())} lines")
    return 0


if __name__ == "__main__":
    sys.exit(main())
