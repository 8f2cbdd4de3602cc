"""How long does it take to put all neurons of a SmolLM2-135M into words, to write the record, and to read it again?

A Llama of its shape with random weights and a tokenizer of made-up tokens, on which the time doesn't depend.

python benchmarks/neuron_words.py [--layers 30]
"""

from __future__ import annotations

import argparse
import resource
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from decoding import SHAPE
from record import write_result
from tokenizers import Tokenizer, decoders, models
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedTokenizerFast

from regtune.analyses.neurons.record import read_neurons, write_neurons
from regtune.analyses.neurons.weights import map_neurons
from regtune.models.precision import best_device
from regtune.session import around


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=SHAPE["num_hidden_layers"])
    asked = parser.parse_args()
    torch.manual_seed(0)
    model: Any = AutoModelForCausalLM.from_config(LlamaConfig(**SHAPE | {"num_hidden_layers": asked.layers}))
    tokenizer = Tokenizer(models.BPE({f"Ġw{number}": number for number in range(SHAPE["vocab_size"])}, []))
    tokenizer.decoder = decoders.ByteLevel()
    session = around(model.to(best_device()).eval(), PreTrainedTokenizerFast(tokenizer_object=tokenizer))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    began = time.perf_counter()
    record = map_neurons(session)
    mapped = time.perf_counter()
    memory = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024
    with tempfile.TemporaryDirectory() as folder:
        path = write_neurons(Path(folder) / "neurons.json.gz", record)
        written, size = time.perf_counter(), path.stat().st_size
        assert read_neurons(path) == record
        read = time.perf_counter()
    found = {
        "neurons": record.count,
        "seconds": round(mapped - began, 2),
        "write_seconds": round(written - mapped, 2),
        "read_seconds": round(read - written, 2),
        "record_bytes": size,
        "more_memory_bytes": memory,
    }
    print(found, write_result("neuron_words", found))


if __name__ == "__main__":
    main()
