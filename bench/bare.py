"""An engine alone: the library, file and settings of a worker, and nothing of Hostler. For bench/memory.py.

`python -m bench.bare onnx '{"model": ...}'`: loads, works once, prints `ready`, ends with its standard input.
"""

import json
import sys
from typing import Any

# Only what an engine needs is imported, and only for the one engine that is asked for.


def run_onnx(given: dict[str, Any]) -> object:
    import numpy
    import onnxruntime
    import tokenizers

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = given["threads"]
    options.inter_op_num_threads = 1
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    session = onnxruntime.InferenceSession(
        given["model"], sess_options=options, providers=["CPUExecutionProvider"]
    )
    tokenizer = tokenizers.Tokenizer.from_file(given["tokenizer"])
    encoded = tokenizer.encode(given["text"])
    columns = {"input_ids": encoded.ids, "attention_mask": encoded.attention_mask}
    feed = {
        one.name: numpy.array([columns.get(one.name, encoded.type_ids)], dtype=numpy.int64)
        for one in session.get_inputs()
    }
    session.run(None, feed)
    return session, tokenizer


def run_llama(given: dict[str, Any]) -> object:
    import xllamacpp

    options = xllamacpp.CommonParams()
    options.model.path = given["model"]
    options.hostnames = [given["socket"]]
    options.n_parallel = given["slots"]
    options.n_ctx = given["context_length"] * given["slots"]
    options.n_batch = given["batch_size"]
    options.n_ubatch = min(given["ubatch_size"], given["batch_size"])
    options.cache_ram_mib = given["prompt_cache_bytes"] // 2**20
    options.cpuparams.n_threads = options.cpuparams_batch.n_threads = given["threads"]
    options.cpuparams.poll = options.cpuparams_batch.poll = 0
    options.n_threads_http = given["slots"] + 4
    options.fit_params = False
    options.ui = False
    options.verbosity = 0
    return xllamacpp.Server(options)


if __name__ == "__main__":
    engine = {"onnx": run_onnx, "llama.cpp": run_llama}[sys.argv[1]](json.loads(sys.argv[2]))
    print("ready", flush=True)
    sys.stdin.read()
