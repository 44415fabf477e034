"""A source is text from outside: it names files, never places."""

import os
import threading
import zipfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hostler.catalog.address import (
    HubAddress,
    PathAddress,
    UrlAddress,
    WheelAddress,
    check_member,
    folder_name,
    parse_source,
)
from hostler.catalog.progress import FetchLimits
from hostler.catalog.sources import is_present
from hostler.catalog.store import delete_model, present_path
from hostler.catalog.wheel import extract
from hostler.core.errors import BadRequest, HostlerError, ModelSourceError
from tests.amounts import many

SHA = "0" * 64


def test_each_scheme_is_read_into_its_parts() -> None:
    assert parse_source("wheel:a-b==1.0#m/x.gguf + wheel:c==2#d/") == (
        WheelAddress(package="a-b", version="1.0", member="m/x.gguf"),
        WheelAddress(package="c", version="2", member="d/"),
    )
    assert parse_source("hf:org/repo@v1#f.gguf") == (
        HubAddress(repository="org/repo", revision="v1", file="f.gguf"),
    )
    assert parse_source(f"https://host/a/m%20x.gguf?q=1#sha256={SHA}") == (
        UrlAddress(url="https://host/a/m%20x.gguf?q=1", sha256=SHA, file="m x.gguf"),
    )
    for path in ("/abs/m.gguf", "./m.gguf", "../m.gguf", "~/m.gguf"):
        assert parse_source(path) == (PathAddress(path=path),)
    assert parse_source("file:///abs/m%20x") == (PathAddress(path="/abs/m x"),)


@pytest.mark.parametrize(
    "source",
    [
        "",
        "m.gguf",
        "ftp://host/x",
        "wheel:a",
        "wheel:a==1",
        "wheel:a>=1#m",
        "wheel:-r==1#m",
        "wheel:a==--upgrade#m",
        "wheel:a b==1#m",
        "wheel:a[x]==1#m",
        "wheel:a==1;x#m",
        "wheel:a==1#../m",
        "wheel:a==1#/m",
        "wheel:a==1#m//n",
        "wheel:a==1#m\\n",
        "hf:org#f",
        "hf:org/repo",
        "hf:org/repo@#f",
        "hf:../repo#f",
        "hf:org/repo@../x#f",
        "hf:org/repo#../f",
        "hf:--token/repo#f",
        f"http://example.org/f#sha256={SHA}",
        f"https://user:hunter2@example.org/f#sha256={SHA}",
        f"https://example.org/#sha256={SHA}",
        f"https://example.org/..%2f..%2fetc#sha256={SHA}x",
        "https://example.org/f",
        "https://example.org/f#sha256=xyz",
        "/a + /b",
        "wheel:a==1#m + /b",
        "file://elsewhere/x",
        "wheel:a==1#m\nx",
        "wheel:a==1#" + "m" * 3000,
    ],
)
def test_what_is_not_a_source_is_refused_with_the_reason(source: str) -> None:
    with pytest.raises(BadRequest, match="model source") as caught:
        parse_source(source)
    assert caught.value.param == "source"
    assert "hunter2" not in caught.value.message


NASTY = st.sampled_from(
    [
        "..",
        ".",
        "",
        "/",
        "//",
        "\\",
        "..\\",
        "%2e%2e",
        "%2f",
        "C:",
        "~",
        "\x00",
        "\n",
        "\u202e",
        "..;",
        "etc",
        "passwd",
        "a",
        "m.gguf",
        "\u2024\u2024",
        "\uff0e\uff0e",
        "/etc",
        "canary",
        " ",
        "#",
        "+",
    ]
)
STEPS = st.lists(NASTY | st.text(max_size=6), min_size=1, max_size=7)
TEMPLATES = st.sampled_from(
    [
        "{}",
        "wheel:{}==1#x",
        "wheel:a=={}#x",
        "wheel:a==1#{}",
        "wheel:a==1#{}/",
        "hf:o/r#{}",
        "hf:{}#f",
        "hf:o/r@{}#f",
        "https://h/{}#sha256=" + SHA,
        "https://{}/f#sha256=" + SHA,
    ]
)


@given(template=TEMPLATES, steps=STEPS, glue=st.sampled_from(["/", "\\", "", "%2f"]))
@settings(
    max_examples=many(5000),
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
def test_F104_no_source_or_member_name_leaves_the_model_folder(
    tmp_path: Path, template: str, steps: list[str], glue: str
) -> None:
    root = tmp_path / "root" / "models"
    canary = tmp_path / "canary"
    if not root.exists():
        root.mkdir(parents=True)
        canary.write_text("alive")
        (tmp_path / "root" / "canary").write_text("alive")
        (root / "out").symlink_to(tmp_path)
    name = glue.join(steps)
    source = template.format(name)
    try:
        addresses = parse_source(source)
    except BadRequest:
        addresses = ()
    if addresses and not isinstance(addresses[0], PathAddress):
        folder = root / folder_name(source)
        assert folder.parent == root
        assert folder.resolve().parent == root.resolve()
        assert is_present(source, root) is None
        with pytest.raises(HostlerError):
            delete_model(source, root)
    try:
        member = check_member(name)
    except BadRequest:
        pass
    else:
        inside = Path(os.path.normpath(root / "m" / member))
        assert inside.is_relative_to(root / "m")
        assert inside != root / "m"
    assert canary.read_text() == "alive"
    assert (tmp_path / "root" / "canary").read_text() == "alive"


@given(name=STEPS.map("/".join))
@settings(
    max_examples=many(600),
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
def test_F104_no_archive_member_is_written_outside_the_target(tmp_path: Path, name: str) -> None:
    outside = tmp_path / "canary"
    outside.write_text("alive")
    before = {path for path in tmp_path.iterdir() if path.name != "work"}
    work = tmp_path / "work"
    for path in sorted(work.rglob("*"), reverse=True) if work.exists() else []:
        path.rmdir() if path.is_dir() else path.unlink()
    target = work / "target"
    target.mkdir(parents=True, exist_ok=True)
    archive_path = work / "a-1-py3-none-any.whl"
    try:
        with zipfile.ZipFile(archive_path, "w") as archive:
            archive.writestr(f"model/{name}", b"evil")
    except (ValueError, UnicodeError):
        return
    address = WheelAddress(package="a", version="1", member="model/")
    try:
        files = extract(
            archive_path,
            address,
            target,
            tmp_path,
            FetchLimits(reserve_bytes=0),
            lambda *report: None,
            threading.Event(),
        )
    except ModelSourceError:
        files = ()
    assert all((target / file.name).resolve().is_relative_to(target.resolve()) for file in files)
    assert outside.read_text() == "alive"
    assert {path for path in tmp_path.iterdir() if path.name != "work"} == before
    assert {path.name for path in work.iterdir()} == {"target", archive_path.name}


def test_F104_a_manifest_that_names_a_file_outside_is_not_believed(tmp_path: Path) -> None:
    (tmp_path / "canary").write_text("alive")
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "manifest.json").write_text(
        '{"source":"x","main":"","files":[{"name":"../canary","bytes":5,"sha256":"0"}]}'
    )
    assert present_path(folder) is None
    (folder / "manifest.json").write_text('{"source":"x","main":"../canary","files":[]}')
    assert present_path(folder) is None


def test_the_folder_name_is_plain_and_unique_to_its_source() -> None:
    one = folder_name("wheel:A_b==1.0#x/Model.gguf")
    assert one.startswith("a-b-1-0-model-")
    assert one != folder_name("wheel:A_b==1.0#y/Model.gguf")
    assert folder_name("wheel:a==1#" + "x" * 150).isascii()
