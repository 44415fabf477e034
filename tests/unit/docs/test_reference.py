"""What is written about the code is what the code says."""

import importlib.util
import re
import tomllib
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[3]
NAMES = ("settings.md", "commands.md", "errors.md", "metrics.md", "admin-api.md", "parameters.md")


@pytest.fixture(scope="module")
def reference() -> ModuleType:
    spec = importlib.util.spec_from_file_location("reference", ROOT / "scripts" / "reference.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("name", NAMES)
def test_each_reference_page_is_current(reference: ModuleType, name: str) -> None:
    written = (ROOT / "docs" / "reference" / name).read_text()
    assert written == reference.pages()[name], "run: .venv/bin/python scripts/reference.py"


def test_every_page_that_is_generated_is_checked(reference: ModuleType) -> None:
    assert set(reference.pages()) == set(NAMES)


def test_every_link_between_our_pages_leads_somewhere() -> None:
    pages = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
    broken = []
    for page in pages:
        for target in re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", page.read_text()):
            if "://" not in target and not (page.parent / target).exists():
                broken.append(f"{page.relative_to(ROOT)}: {target}")
    assert not broken, "\n".join(broken)


def test_every_dependency_is_locked_with_hashes() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    wanted = {
        "core.txt": project["dependencies"],
        "cpu.txt": [*project["dependencies"], *extras["cpu"]],
        "dev.txt": [*project["dependencies"], *extras["cpu"], *extras["dev"]],
    }
    for lock, requirements in wanted.items():
        text = (ROOT / "requirements" / lock).read_text()
        locked = set(re.findall(r"^([a-z0-9.-]+)==", text, re.MULTILINE))
        names = {re.split(r"[<>=~! \[]", one)[0].lower().replace("_", "-") for one in requirements}
        assert names <= locked, f"{lock} lacks {names - locked}: run scripts/lock"
        assert text.count("==") <= text.count("--hash=sha256:")
        assert "://" not in text, f"{lock} names a server"


def test_the_runtime_and_the_development_lock_agree() -> None:
    def versions(lock: str) -> dict[str, set[str]]:
        text = (ROOT / "requirements" / lock).read_text()
        found: dict[str, set[str]] = {}
        for name, version in re.findall(r"^([a-z0-9.-]+)==(\S+)", text, re.MULTILINE):
            found.setdefault(name, set()).add(version)
        return found

    development = versions("dev.txt")
    assert {name: development[name] for name in versions("cpu.txt")} == versions("cpu.txt")


def test_the_core_stays_small() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert len(project["dependencies"]) <= 15
    lines = (ROOT / "requirements" / "cpu.txt").read_text().splitlines()
    on_linux = [
        line
        for line in lines
        if "==" in line.split(" ")[0]
        and "win32" not in line
        and "== 'emscripten'" not in line
        and "python_full_version >= '3.12'" not in line
    ]
    assert 20 < len(on_linux) <= 44
