"""The compiled data plane passes the tests of its sources."""

import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

from hostler.app.version import is_compiled
from tests.apart import ROOT, own_environment, run_apart

HAS_COMPILER = shutil.which(os.environ.get("CC", "cc")) is not None and (
    Path(sysconfig.get_path("include"), "Python.h").exists()
)
TESTED = (
    "unit/wire",
    "unit/routing",
    "unit/gateway",
    "integration/gateway/test_assembly.py",
    "integration/gateway/test_framing.py",
    "integration/gateway/test_relay.py",
    "integration/gateway/test_streams.py",
    "integration/gateway/test_direct.py",
)


@pytest.mark.slow(150, busy=True)
@pytest.mark.timeout(600)
@pytest.mark.skipif(not HAS_COMPILER, reason="no C compiler, or no Python.h")
@pytest.mark.skipif(is_compiled(), reason="what is tested is compiled already")
def test_compiled_modules_do_what_their_sources_do(tmp_path: Path) -> None:
    script = [sys.executable, str(ROOT / "scripts" / "compiled.py"), str(tmp_path), "0"]
    made = subprocess.run(script, capture_output=True, text=True, timeout=400, check=False)
    assert made.returncode == 0, made.stderr
    env = {"PYTHONPATH": str(tmp_path)}
    where = [str(ROOT / "tests" / name) for name in TESTED]
    quick = {"HOSTLER_HYPOTHESIS": "ci", "HOSTLER_LONG": ""}  # every test tries what the sources do
    words = ("-x", "-o", f"pythonpath={tmp_path} {ROOT}")
    done = run_apart(*words, *where, env=env | quick, timeout_s=300)
    assert done.returncode == 0, done.stdout[-4000:]
    again = [sys.executable, "-m", "hostler", "version"]
    told = subprocess.run(
        again, env=own_environment(env), cwd=tmp_path, capture_output=True, text=True,
        timeout=30, check=True,
    )  # fmt: skip
    assert "data plane compiled" in told.stdout


def test_make_fast_finds_its_tools_from_any_folder() -> None:
    """The compiler runs in a folder of its own: a relative path to its packages leads nowhere there."""
    told = subprocess.run(
        ["make", "-n", "-B", "fast"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=30,
        check=True,
    )
    assert f"PYTHONPATH={ROOT}" in told.stdout
