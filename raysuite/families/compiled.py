"""How a denoising network lies in memory and runs: `model.channels_last` and `model.compile`."""

from __future__ import annotations

import os
import shutil
import sysconfig
import warnings
from collections import Counter
from pathlib import Path
from typing import Any

import torch

from raysuite.config import Model
from raysuite.errors import UserError

BACKEND = "inductor"
"""Of torch.compile. What only asks whether a network's operations can be collected sets another, which generates no code."""
GRAPHS = 64
"""Of one function, at most: with gradients and without, with the adapter on and off, for each shape. torch.compile stops at 8 and says
nothing of it."""


def check_compiler(device: torch.device, what: str = "model.compile", instead: str = "set model.compile=false") -> None:
    """Refuse to compile for a device where nothing can be compiled.

    Args:
        device: for which.
        what: the setting that wants it.
        instead: what else the user may do.

    Raises:
        UserError: there is no compiler for it, or none of Python's headers.
    """
    if BACKEND != "inductor":
        return
    if device.type == "cpu":
        from torch._inductor.cpp_builder import get_cpp_compiler
        from torch._inductor.exc import InvalidCxxCompiler

        try:
            get_cpp_compiler()
        except InvalidCxxCompiler as error:
            raise UserError(
                f"expected a C++ compiler for {what} on CPUs, found none on this machine: install g++, name another in the "
                f"environment's CXX, or {instead}"
            ) from error
    else:
        from torch.utils._triton import has_triton

        if not has_triton():
            raise UserError(
                f"expected Triton for {what} on {device.type}, found none on this machine: install triton, or {instead}"
            )
        names = ("CC", "gcc", "clang")
        if not any(shutil.which(os.environ.get(name, name)) for name in names):
            raise UserError(
                f"expected a C compiler for {what}, with which Triton makes its launchers, found none on this machine: install "
                f"gcc, name another in the environment's CC, or {instead}"
            )
    header = Path(sysconfig.get_path("include")) / "Python.h"
    if not header.exists():
        raise UserError(
            f"expected Python's headers for {what}, found no {header}: install them (python3-dev, say), or {instead}"
        )


def prepared(network: Any, part: str, model: Model) -> Any:
    """The network, laid out and to be compiled as a model's settings say; nothing is compiled before it is called.

    A U-Net is compiled as a whole, once for every shape. Of a transformer the blocks are that it repeats: one compilation serves all
    blocks of a class, and of shapes that vary (a text's length) the second is compiled for any.

    Args:
        network: with what is trained in it, where it will run.
        part: what its pipeline calls it, `unet` or `transformer`.
        model: the settings.

    Raises:
        UserError: they are not for this network.
    """
    if model.channels_last:
        if part != "unet":
            raise UserError(
                f"expected model.channels_last=false with {type(network).__name__}, which is no U-Net: it has hardly a convolution; "
                "leave it out"
            )
        network.to(memory_format=torch.channels_last)
    if model.compile:
        warnings.filterwarnings("ignore", message="Dynamo detected a call to a `functools.lru_cache`")  # of diffusers
        # not torch._dynamo.config, which is each thread's own: rollout actors draw in another
        options: dict[str, Any] = {"backend": BACKEND, "recompile_limit": GRAPHS}
        if BACKEND == "inductor":
            # what bfloat16 rounds, fused operations round too: with gradients other ones are fused than without
            options["options"] = {"emulate_precision_casts": True}
        if part == "unet":
            network.compile(dynamic=False, **options)
        else:
            network._repeated_blocks = repeated_blocks(network)
            network.compile_repeated_blocks(**options)
    return network


def repeated_blocks(network: Any) -> list[str]:
    """Names of the classes of blocks that a transformer repeats: those that diffusers says, or that it would not split.

    Raises:
        UserError: there are none.
    """
    count = Counter(type(module).__name__ for module in network.modules())
    own = getattr(network, "_repeated_blocks", None)
    known = own or getattr(network, "_no_split_modules", None) or ()
    if found := [name for name in dict.fromkeys(known) if count[name] > (0 if own else 1)]:
        return found
    raise UserError(
        f"expected model.compile=false with {type(network).__name__}, of which diffusers does not say what blocks it repeats: leave "
        "it out"
    )
