"""Compile what every request passes. `python scripts/compiled.py FOLDER` makes a copy of the package there.

mypyc turns typed modules into C; the same sources run as they are where nobody compiled them. For a
wheel: `hatch_build.py`. Needs mypy, setuptools, a C compiler and Python's headers.
"""

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

SOURCES = Path(__file__).resolve().parents[1] / "src"

# What runs for each request or each piece of a stream. Not among them: interfaces that users and
# tests derive from (compiled classes have no interpreted children), and coroutines' homes.
MODULES = {
    "app": "auth telemetry",
    "core": "request",
    "gateway": "accounts admission answers attempt detours flights front job lanes metrics place prompts "
    "relay relays routes streams timeline trace usage",
    "routing": "claim flights health own places policies pool pools prefix quarantine queue router "
    "session turns verdict",
    "wire": "connection crowd direct exchange heads hosts http1 json phase pool reply scan server sse "
    "turn upstream",
}
GROUP = "hostler"  # all of them are in hostler__mypyc; calls between them are C calls

# Nothing that is compiled uses their types, and reading Ray's sources alone takes half a minute. Whoever
# compiles need not have those of the extras.
_UNREAD = "alembic numpy opentelemetry pip psycopg pydantic pytest _pytest ray rich sqlalchemy"
_CONFIG = f"""
[mypy]
check_untyped_defs = True
follow_untyped_imports = True
[mypy-{",".join(f"{name}.*" for name in _UNREAD.split())}]
follow_imports = skip
ignore_missing_imports = True
"""
_SETUP = """
import os, sys
from mypyc.build import mypycify
from setuptools import Extension, setup
extensions = mypycify(sys.argv[1:], opt_level={level!r}, debug_level="0", group_name={group!r})
by_hand = "hostler/wire/_direct"
options = ["-O" + {level!r}]
extensions.append(Extension(by_hand.replace("/", "."), [by_hand + ".c"], extra_compile_args=options))
sys.argv[1:] = ["-q", "build_ext", "--inplace"]
setup(name="hostler", ext_modules=extensions)
sys.stdout.flush()
sys.stderr.flush()
os._exit(0)  # giving back what mypy has read, piece by piece, takes as long as compiling it
"""


def module_files() -> list[str]:
    """The sources that are compiled, from `src` on."""
    return [
        f"hostler/{room}/{name}.py" for room, names in MODULES.items() for name in names.split()
    ]


def compile_into(folder: Path, level: str = "3") -> list[Path]:
    """Copy the package into `folder/hostler` and compile it there; return what was built.

    level: of the C compiler's optimisation. "0" takes half the time; for tests.

    Raises:
        RuntimeError: no compiler, no headers, or the sources do not compile.
    """
    folder.mkdir(parents=True, exist_ok=True)
    shutil.copytree(
        SOURCES / "hostler", folder / "hostler", ignore=shutil.ignore_patterns("__pycache__")
    )
    with tempfile.TemporaryDirectory(prefix="hst-compile") as scratch:
        config = Path(scratch, "mypy.ini")
        config.write_text(_CONFIG)
        setup = Path(scratch, "setup.py")
        setup.write_text(_SETUP.format(group=GROUP, level=level))
        command = [sys.executable, str(setup), *module_files(), "--config-file", str(config)]
        command += ["--cache-dir", str(Path(scratch, "cache"))]
        done = subprocess.run(
            command, cwd=folder, stdin=subprocess.DEVNULL, capture_output=True, text=True,
            env=os.environ | {"PYTHONWARNINGS": "ignore", "CFLAGS": _flags()}, check=False,
        )  # fmt: skip
    shutil.rmtree(folder / "build", ignore_errors=True)
    built = sorted(folder.rglob("*.so"))
    if done.returncode or len(built) != len(module_files()) + 2:
        told = [line for line in (done.stdout + done.stderr).splitlines() if "warning:" not in line]
        raise RuntimeError("\n".join(["the sources do not compile:", *told[-20:]]))
    return built


# Private


def _flags() -> str:
    """For the C compiler.

    Calls inside the one library need no table of names that others could replace (some 5 % of a request).
    Warnings about generated code are for nobody, and take longer than the code.
    """
    direct = "-fvisibility=hidden -fno-semantic-interposition -fno-plt"
    return f"{os.environ.get('CFLAGS', '')} {direct} -Wno-all".strip()


if __name__ == "__main__":
    if len(sys.argv) not in (2, 3) or sys.argv[1].startswith("-"):
        sys.exit("usage: python scripts/compiled.py FOLDER [LEVEL]   (LEVEL: 0 to 3, else 3)")
    if Path(sys.argv[1], "hostler").exists():
        sys.exit(f"compiled: {sys.argv[1]} holds a `hostler` already; name an empty folder")
    try:
        files = compile_into(Path(sys.argv[1]), *sys.argv[2:])
    except RuntimeError as error:
        sys.exit(f"compiled: {error}")
    size = sum(file.stat().st_size for file in files)
    print(
        f"{len(files)} files, {size / 1e6:.1f} MB in {sys.argv[1]}; use it: PYTHONPATH={sys.argv[1]}"
    )
