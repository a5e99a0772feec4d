"""The example of a language model as a writer: what is taken out of GGUF is the model that went in."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from transformers import LlamaForCausalLM

from raysuite.stages.rewrites import BUNDLED
from raysuite.writer.model import open_writer

EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "smol-writer"
TEMPLATE = "{{ messages[-1]['content'] }}<rewrite>"


def pack(model: LlamaForCausalLM, tokenizer: Any, file: Path) -> dict[str, torch.Tensor]:
    """Write a LLaMA as llama.cpp has it, matrices in blocks of four bits, and return what the blocks stand for."""
    kind, config = gguf.GGMLQuantizationType.Q4_1, model.config
    out = gguf.GGUFWriter(file, "llama")
    out.add_context_length(config.max_position_embeddings)
    out.add_embedding_length(config.hidden_size)
    out.add_block_count(config.num_hidden_layers)
    out.add_feed_forward_length(config.intermediate_size)
    out.add_head_count(config.num_attention_heads)
    out.add_head_count_kv(config.num_key_value_heads)
    out.add_layer_norm_rms_eps(config.rms_norm_eps)
    out.add_rope_freq_base(config.rope_parameters["rope_theta"])
    out.add_vocab_size(config.vocab_size)
    words = tokenizer.convert_ids_to_tokens(range(len(tokenizer)))
    out.add_tokenizer_model("gpt2")
    out.add_token_list(words)
    out.add_token_types([gguf.TokenType.CONTROL if word.startswith("<") else gguf.TokenType.NORMAL for word in words])
    merges = json.loads(tokenizer.backend_tokenizer.to_str())["model"]["merges"]
    out.add_token_merges([" ".join(parts) for parts in merges])
    out.add_eos_token_id(tokenizer.eos_token_id)
    out.add_chat_template(TEMPLATE)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, config.num_hidden_layers)
    meant = {}
    for name, weight in model.state_dict().items():
        if name == "lm_head.weight":  # tied
            continue
        value, place = weight.numpy(), names.get_name(name, try_suffixes=(".weight",))
        if value.ndim == 1:
            out.add_tensor(place, value)
            meant[name] = weight
            continue
        heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}.get(name.split(".")[-2], 0)
        if heads:  # llama.cpp turns neighbouring numbers where transformers turns halves
            value = value.reshape(heads, 2, -1, value.shape[1]).swapaxes(1, 2).reshape(value.shape)
        blocks = gguf.quants.quantize(value, kind)
        out.add_tensor(place, blocks, raw_dtype=kind)
        value = gguf.quants.dequantize(blocks, kind)
        if heads:
            value = value.reshape(heads, -1, 2, value.shape[1]).swapaxes(1, 2).reshape(value.shape)
        meant[name] = torch.from_numpy(np.ascontiguousarray(value))
    out.write_header_to_file()
    out.write_kv_data_to_file()
    out.write_tensors_to_file()
    out.close()
    return meant


def test_what_is_unpacked_is_a_writer_with_the_weights_of_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(EXAMPLE))
    bundled = open_writer(BUNDLED)
    meant = pack(bundled.model, bundled.tokenizer, tmp_path / "small.gguf")
    importlib.import_module("unpack").unpack(tmp_path / "small.gguf", tmp_path / "unpacked")
    found = open_writer(str(tmp_path / "unpacked"))
    assert found.tokenizer.eos_token_id == bundled.tokenizer.eos_token_id
    assert found.asked("a cat") == "a cat<rewrite>"
    weights = found.model.state_dict()
    for name, value in meant.items():
        assert torch.equal(weights[name], value), name
    ids = torch.tensor([[7, 8, 9, 10, 11, 12]])
    bundled.model.load_state_dict(meant, strict=False)
    with torch.no_grad():
        expected, said = bundled.model(ids).logits, found.model(ids).logits
    assert torch.allclose(said, expected, atol=1e-5)
