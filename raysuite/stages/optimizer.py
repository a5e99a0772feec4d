"""AdamW, with moments of 32 bits or of 8, and what it remembers as plain tensors.

Source of the 8 bits: Dettmers et al., "8-bit Optimizers via Block-wise Quantization", 2022, as torchao has them: blocks of 256 numbers
share a scale; parameters of fewer than 4096 numbers keep 32 bits.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from raysuite.config import Learn
from raysuite.errors import UserError
from raysuite.families.compiled import check_compiler

SIGNED = {"exp_avg": True, "exp_avg_sq": False}
"""Whether a moment has a sign."""


def check_optimizer(learn: Learn, device: torch.device) -> None:
    """Refuse what this process could not learn with.

    Raises:
        UserError: torchao or a compiler is missing, for moments of 8 bits.
    """
    if learn.moment_bits == 32:
        return
    if importlib.util.find_spec("torchao") is None:
        raise UserError(
            "expected the package torchao for learn.moment_bits=8, found none: pip install 'raysuite[torchao]', or leave it at 32"
        )
    check_compiler(device, "learn.moment_bits=8", "leave it at 32")


def optimizer_of(learn: Learn, parameters: Iterable[torch.nn.Parameter]) -> torch.optim.Optimizer:
    """AdamW as a run's settings have it.

    Raises:
        UserError: torchao or a compiler is missing, for moments of 8 bits.
    """
    parameters = list(parameters)
    options: dict[str, Any] = {
        "lr": learn.learning_rate,
        "betas": learn.betas,
        "eps": learn.epsilon,
        "weight_decay": learn.weight_decay,
    }
    if learn.moment_bits == 32:
        return torch.optim.AdamW(parameters, fused=learn.fused or None, **options)
    check_optimizer(learn, parameters[0].device)
    from torchao.optim import AdamW8bit

    made: torch.optim.Optimizer = AdamW8bit(parameters, **options)
    return made


def set_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Let the next steps have this learning rate."""
    for group in optimizer.param_groups:
        if isinstance(group["lr"], Tensor):  # a compiled step reads it from there
            group["lr"].fill_(rate)
        else:
            group["lr"] = rate


def in_parts(entry: Mapping[str, Any]) -> dict[str, Any]:
    """What is remembered of one parameter, with moments of 8 bits as the plain tensors that they consist of."""
    parts: dict[str, Any] = {}
    for key, value in entry.items():
        if hasattr(value, "codes"):
            names, _ = value.__tensor_flatten__()
            parts |= {f"{key}.{name}": getattr(value, name) for name in names}
        else:
            parts[key] = value
    return parts


def put_together(parts: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The inverse of `in_parts`."""
    entry = {key: value for key, value in parts.items() if "." not in key}
    for key in sorted({key.split(".")[0] for key in parts} - entry.keys()):
        from torchao.optim.subclass_8bit import OptimState8bit

        own = {name.split(".")[1]: value for name, value in parts.items() if name.split(".")[0] == key}
        entry[key] = OptimState8bit.__tensor_unflatten__(own, [SIGNED[key], torch.float32])
    return entry


def in_float32(moment: Any) -> Tensor:
    """A moment's values, of however many bits it is."""
    return moment.dequantize() if hasattr(moment, "codes") else moment
