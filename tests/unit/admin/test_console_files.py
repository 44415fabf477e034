"""The console's files, as they are served."""

import re
from pathlib import Path

import hostler.console

FOLDER = Path(hostler.console.__file__).parent


def test_the_page_names_every_module_so_that_none_waits_for_the_one_that_imports_it() -> None:
    page = (FOLDER / "index.html").read_text()
    named = re.findall(r'(?:modulepreload" href|module" src)="/console/([^"]+)"', page)
    there = [path.relative_to(FOLDER).as_posix() for path in FOLDER.rglob("*.js")]
    assert sorted(named) == sorted(there)


def test_every_import_is_of_a_module_that_is_there() -> None:
    for path in FOLDER.rglob("*.js"):
        for name in re.findall(r'from "/console/([^"]+)"', path.read_text()):
            assert (FOLDER / name).is_file(), (path.name, name)
