"""OnnxModel: a folder with an encoder in ONNX form, loaded: texts to tokens, tokens to vectors.

Everything comes from the folder: model.onnx, tokenizer.json, and what of config.json,
tokenizer_config.json and 1_Pooling/config.json is there. All methods may be called from any thread.
"""

from collections.abc import Mapping, Sequence
from mmap import ACCESS_READ, mmap
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt
import onnxruntime
from tokenizers import Tokenizer

from hostler.core.errors import BadRequest, EngineError, ModelFormatError
from hostler.engines.base import Text
from hostler.engines.onnx_pairs import PairForm
from hostler.engines.parameters import OnnxParameters
from hostler.engines.threads import thread_count

Vector = npt.NDArray[np.float32]

_MODEL_NAMES = (
    "model.onnx",
    "onnx/model.onnx",
    "model_quantized.onnx",
    "onnx/model_quantized.onnx",
    "model_optimized.onnx",
)
_INPUTS = ("input_ids", "attention_mask", "token_type_ids")
_DTYPES: Mapping[str, type[np.integer[Any]]] = {
    "tensor(int64)": np.int64,
    "tensor(int32)": np.int32,
}
_DEFAULT_LENGTH = 512
_LENGTH_LIMIT = 131_072  # tokenizers without a limit say 1e30
_CLS_FAMILIES = ("bge", "gte-", "snowflake", "arctic-embed", "mxbai")  # as their model cards say
_OFFSET_POSITIONS = ("roberta", "xlm-roberta", "camembert", "mpnet")  # two positions are reserved


class Encoded:
    """The tokens of one text, or of a query with a document. len() is their number."""

    __slots__ = ("ids", "types")

    def __init__(self, ids: Sequence[int], types: Sequence[int] | None) -> None:
        self.ids = ids
        self.types = types

    def __len__(self) -> int:
        return len(self.ids)


class OnnxModel:
    """A loaded encoder. reranks: its outputs are logits of (query, document) pairs."""

    def __init__(self, folder: Path, parameters: OnnxParameters, reranks: bool) -> None:
        """Load and try once.

        Raises:
            ModelFormatError: a file is missing, damaged, or not what an encoder needs.
        """
        model_file = find_model(folder)
        self._folder = model_file.parent if folder.is_file() else folder
        self.reranks = reranks
        self._normalize = parameters.normalize
        self._config = self._read_json("config.json")
        self._session = open_session(model_file, parameters.threads)
        self._together = parameters.batching == "on" or (
            parameters.batching == "auto" and not quantizes_batches(model_file)
        )
        self._inputs = self._check_inputs(model_file)
        self._output = self._choose_output()
        self.max_length = parameters.max_length or self._own_length()
        self._load_tokenizer(parameters.tokenizer)
        self.pooling = self._choose_pooling(parameters.pooling, model_file)
        self.dimensions = self._try()

    @property
    def description(self) -> str:
        if self.reranks:
            return f"cross-encoder, inputs to {self.max_length} tokens"
        return (
            f"{self.dimensions} dimensions, {self.pooling} pooling, "
            f"inputs to {self.max_length} tokens"
        )

    def encode(self, texts: Sequence[Text]) -> list[Encoded]:
        """Tokens with the special ones, cut to the longest input.

        Raises:
            BadRequest: a token id that the model does not have.
        """
        found = iter(self._tokens([text for text in texts if isinstance(text, str)]))
        return [self._wrap(next(found) if isinstance(text, str) else text) for text in texts]

    def encode_pairs(self, query: str, documents: Sequence[str]) -> list[Encoded]:
        """Query and document together, the longer one cut first."""
        asked, *answers = self._tokens([query, *documents])
        joined = (self._pairs.join(asked, answer, self.max_length) for answer in answers)
        return [Encoded(ids, types) for ids, types in joined]

    def count(self, text: str) -> int:
        """Tokens with the special ones, uncut."""
        (found,) = self._tokens([text])
        return len(self._before) + len(found) + len(self._after)

    def compute(self, batch: Sequence[Encoded]) -> Sequence[Vector]:
        """One float32 vector a text (length 1 if normalised), or a vector of one logit a pair."""
        if self._together:
            return list(self._run(batch))
        return [self._run([item])[0] for item in batch]

    # Private

    def _run(self, batch: Sequence[Encoded]) -> Vector:
        longest = max(len(item) for item in batch)
        ids = np.full((len(batch), longest), self._pad_id, dtype=np.int64)
        mask = np.zeros((len(batch), longest), dtype=np.int64)
        types = np.zeros((len(batch), longest), dtype=np.int64)
        for row, item in enumerate(batch):
            ids[row, : len(item)] = item.ids
            mask[row, : len(item)] = 1
            if item.types is not None:
                types[row, : len(item)] = item.types
        given = {"input_ids": ids, "attention_mask": mask, "token_type_ids": types}
        feed = {name: given[name].astype(dtype, copy=False) for name, dtype in self._inputs.items()}
        try:
            (output,) = self._session.run([self._output], feed)
        except Exception as error:  # boundary: ONNX Runtime raises classes without a common base
            raise EngineError(f"ONNX Runtime: {type(error).__name__}") from error
        return self._as_logits(output) if self.reranks else self._as_vectors(output, mask)

    def _as_vectors(self, output: Any, mask: npt.NDArray[np.int64]) -> Vector:
        vectors: Vector = np.asarray(output, dtype=np.float32)
        if vectors.ndim == 3:
            if self.pooling == "cls":
                vectors = vectors[:, 0]
            else:
                weights = mask[:, :, None].astype(np.float32)
                vectors = (vectors * weights).sum(axis=1) / np.maximum(weights.sum(axis=1), 1e-9)
        if self._normalize:
            lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
            vectors = vectors / np.maximum(lengths, 1e-12)
        return vectors

    def _as_logits(self, output: Any) -> Vector:
        logits: Vector = np.asarray(output, dtype=np.float32)
        if logits.ndim == 1:
            logits = logits[:, None]
        if logits.ndim != 2 or logits.shape[1] not in (1, 2):
            raise ModelFormatError(
                f"a reranker gives 1 or 2 logits a pair, this one {logits.shape}"
            )
        # two logits are "not relevant" and "relevant": their difference is the one logit
        return logits if logits.shape[1] == 1 else logits[:, 1:] - logits[:, :1]

    def _tokens(self, texts: Sequence[str]) -> list[list[int]]:
        """Bare token ids, uncut.

        `encode_batch_fast` lets other threads run meanwhile; `encode` holds them up for seconds when
        a text has megabytes.
        """
        found = self._tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)
        return [item.ids for item in found]

    def _wrap(self, ids: Sequence[int]) -> Encoded:
        if any(not 0 <= number < self._vocabulary for number in ids):
            raise BadRequest(
                f"input: token ids of this model are 0 to {self._vocabulary - 1}", param="input"
            )
        room = max(0, self.max_length - len(self._before) - len(self._after))
        return Encoded([*self._before, *ids[:room], *self._after], None)

    def _read_json(self, name: str) -> dict[str, Any]:
        path = self._folder / name
        if not path.is_file():
            return {}
        try:
            return msgspec.json.decode(path.read_bytes(), type=dict[str, Any])
        except (OSError, msgspec.MsgspecError) as error:
            raise ModelFormatError(f"{path}: not a JSON object ({error})") from error

    def _check_inputs(self, model_file: Path) -> dict[str, type[np.integer[Any]]]:
        found = {item.name: item.type for item in self._session.get_inputs()}
        unknown = [name for name in found if name not in _INPUTS]
        wrong = [kind for kind in found.values() if kind not in _DTYPES]
        if "input_ids" not in found or unknown or wrong:
            raise ModelFormatError(f"{model_file.name}: not a text encoder; its inputs are {found}")
        return {name: _DTYPES[kind] for name, kind in found.items()}

    def _choose_output(self) -> str:
        names: list[str] = [item.name for item in self._session.get_outputs()]
        wanted = ("logits",) if self.reranks else ("sentence_embedding", "last_hidden_state")
        return next((name for name in wanted if name in names), names[0])

    def _own_length(self) -> int:
        """What the model can take: the least of what its files say."""
        said = [self._read_json("tokenizer_config.json").get("model_max_length")]
        if isinstance(positions := self._config.get("max_position_embeddings"), int):
            offset = 2 if self._config.get("model_type") in _OFFSET_POSITIONS else 0
            said.append(positions - offset)
        known = [int(n) for n in said if isinstance(n, int | float) and 0 < n <= _LENGTH_LIMIT]
        return min(known, default=_DEFAULT_LENGTH)

    def _load_tokenizer(self, given: str) -> None:
        path = Path(given) if given else self._folder / "tokenizer.json"
        if not path.is_file():
            raise ModelFormatError(
                f"{path}: not found; give the parameter `tokenizer` the path of a tokenizer.json"
            )
        try:
            tokenizer = self._tokenizer = Tokenizer.from_file(str(path))
        except Exception as error:  # boundary: the library raises bare Exception for a bad file
            raise ModelFormatError(f"{path}: not a tokenizer ({error})") from error
        tokenizer.no_padding()
        tokenizer.no_truncation()
        self._vocabulary = int(self._config.get("vocab_size") or tokenizer.get_vocab_size())
        pad = self._config.get("pad_token_id")
        self._pad_id = pad if isinstance(pad, int) else tokenizer.token_to_id("[PAD]") or 0
        bare = tokenizer.encode("a", add_special_tokens=False).ids
        whole = tokenizer.encode("a").ids
        start = next((n for n in range(len(whole)) if whole[n : n + len(bare)] == bare), 0)
        self._before, self._after = whole[:start], whole[start + len(bare) :]
        self._pairs = PairForm(tokenizer)

    def _choose_pooling(self, wanted: str, model_file: Path) -> str:
        if wanted != "auto":
            return wanted
        said = self._read_json("1_Pooling/config.json")
        if said.get("pooling_mode_cls_token"):
            return "cls"
        if said.get("pooling_mode_mean_tokens"):
            return "mean"
        names = f"{self._config.get('_name_or_path', '')} {model_file.parent.name}".lower()
        return "cls" if any(family in names for family in _CLS_FAMILIES) else "mean"

    def _try(self) -> int:
        """Compute one text, so that what cannot work fails now; return the vector's length."""
        (item,) = self.encode_pairs("a", ["b"]) if self.reranks else self.encode(["a"])
        try:
            (vector,) = self.compute([item])
        except EngineError as error:
            raise ModelFormatError(f"the model cannot compute a text: {error.message}") from error
        if vector.ndim != 1 or not np.isfinite(vector).all():
            raise ModelFormatError(f"the model gives {vector.shape} for a text, not one vector")
        return len(vector)


def find_model(folder: Path) -> Path:
    """Return the ONNX file: the path itself, one of the usual names, or the only one there is.

    Raises:
        ModelFormatError: none, or several unusual ones.
    """
    if folder.is_file():
        return folder
    for name in _MODEL_NAMES:
        if (folder / name).is_file():
            return folder / name
    found = sorted(folder.rglob("*.onnx")) if folder.is_dir() else []
    if len(found) != 1:
        names = ", ".join(path.name for path in found[:5]) or "none"
        raise ModelFormatError(f"{folder}: need one .onnx file, found {names}")
    return found[0]


def quantizes_batches(model_file: Path) -> bool:
    """Say whether the model chooses its number range from all texts of a batch together.

    "Dynamic" quantization does: one scale for a whole tensor. Measured on an int8 bge-small: the
    same text alone and beside seven others has a cosine of 0.995 to 0.998, not 1. The names of a
    graph's operators stand in the file as they are, so they are looked for as bytes.
    """
    with model_file.open("rb") as file, mmap(file.fileno(), 0, access=ACCESS_READ) as content:
        return content.find(b"DynamicQuantize") >= 0


def open_session(model_file: Path, threads: int) -> onnxruntime.InferenceSession:
    """Open a model on the CPU with threads that sleep when idle.

    Raises:
        ModelFormatError: ONNX Runtime cannot read it.
    """
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = thread_count(threads)
    options.inter_op_num_threads = 1
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.log_severity_level = 3
    try:
        return onnxruntime.InferenceSession(
            str(model_file), sess_options=options, providers=["CPUExecutionProvider"]
        )
    except Exception as error:  # boundary: ONNX Runtime raises classes without a common base
        raise ModelFormatError(
            f"ONNX Runtime cannot load {model_file.name}: {str(error).splitlines()[0]:.300}"
        ) from error
