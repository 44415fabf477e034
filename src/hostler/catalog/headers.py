"""check_files: nothing that is broken, or that could run code when loaded, reaches an engine."""

import zipfile
from collections.abc import Iterator
from pathlib import Path

import msgspec

from hostler.catalog.gguf import read_gguf
from hostler.catalog.onnx_file import read_onnx
from hostler.catalog.safetensors import read_safetensors
from hostler.core.errors import ModelFormatError

_MOST_FILES = 10_000
_LONGEST_CONFIG = 4 << 20
# Formats whose loading runs what is written in them.
_CODE_SUFFIXES = frozenset(
    (".pt", ".pth", ".pkl", ".pickle", ".joblib", ".dill", ".ckpt", ".mar", ".ptc", ".sav", ".h5")
)
_PICKLE_PROTOCOLS = tuple(bytes((0x80, version)) for version in range(2, 6))
_ENGINE_SUFFIX = {"llama.cpp": ".gguf", "onnx": ".onnx"}


def check_files(path: Path, engine: str) -> None:
    """Check every model file at a path by its header, in bounded time and memory.

    engine: the engine that will open it; "" when that is not known.

    Raises:
        ModelFormatError: a broken file; one that can run code when it is loaded (pickle and
            the like, `auto_map`); nothing that the engine could open.
    """
    try:
        if not path.exists():
            raise ModelFormatError(f"{path.name}: the files are not there; fetch the model again")
        files = list(_files(path))
        for file in files:
            _check_file(file)
    except OSError as error:
        raise ModelFormatError(f"{path.name}: cannot be read: {error.strerror}") from error
    wanted = _ENGINE_SUFFIX.get(engine)
    if wanted and not any(file.suffix.lower() == wanted for file in files):
        raise ModelFormatError(f"{path.name}: engine {engine} needs a {wanted} file; there is none")


# Private


def _files(path: Path) -> Iterator[Path]:
    if not path.is_dir():
        yield path
        return
    root = path.resolve()
    for count, file in enumerate(sorted(path.rglob("*"))):
        if count >= _MOST_FILES:
            raise ModelFormatError(f"{path.name}: more than {_MOST_FILES} files")
        if file.is_symlink() and not file.resolve().is_relative_to(root):
            raise ModelFormatError(
                f"{path.name}: {file.name} is a link that leaves the model folder"
            )
        if file.is_file():
            yield file


def _check_file(file: Path) -> None:
    suffix = file.suffix.lower()
    if suffix in _CODE_SUFFIXES:
        raise _runs_code(file)
    with file.open("rb") as stream:
        head = stream.read(8)
    if head.startswith(_PICKLE_PROTOCOLS) and suffix not in (".onnx", ".gguf", ".safetensors"):
        raise _runs_code(file)
    if head.startswith(b"PK\x03\x04") and _holds_pickle(file):
        raise _runs_code(file)
    if suffix == ".gguf" or head.startswith(b"GGUF"):
        read_gguf(file)
    elif suffix == ".safetensors":
        read_safetensors(file)
    elif suffix == ".onnx":
        _check_onnx(file)
    elif file.name in ("config.json", "tokenizer_config.json"):
        _check_config(file)


def _check_onnx(file: Path) -> None:
    for name in read_onnx(file).external_files:
        beside = file.parent / name
        if not beside.is_file() or not beside.resolve().is_relative_to(file.parent.resolve()):
            raise ModelFormatError(f"{file.name}: its weights file {name} is not beside it")


def _check_config(file: Path) -> None:
    """Refuse `auto_map`: it names Python code in the repository to run when the model is loaded."""
    with file.open("rb") as stream:
        raw = stream.read(_LONGEST_CONFIG + 1)
    try:
        fields = msgspec.json.decode(raw[:_LONGEST_CONFIG], type=dict[str, msgspec.Raw])
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ModelFormatError(f"{file.name}: not a JSON object: {error}") from error
    if "auto_map" in fields:
        raise ModelFormatError(
            f"{file.name}: asks for code of its own (auto_map) to be run; choose a model without it"
        )


def _holds_pickle(file: Path) -> bool:
    try:
        with zipfile.ZipFile(file) as archive:
            names = [name.lower() for name in archive.namelist()]
    except (zipfile.BadZipFile, NotImplementedError, UnicodeError, EOFError, OSError):
        return True  # an archive that cannot be listed is not trusted either
    return any(name.endswith((".pkl", ".pickle")) for name in names)


def _runs_code(file: Path) -> ModelFormatError:
    return ModelFormatError(
        f"{file.name}: files of this kind can run code when they are loaded (pickle), so none is "
        "ever loaded; use the model's safetensors, GGUF or ONNX files"
    )
