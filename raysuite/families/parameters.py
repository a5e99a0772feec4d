"""What is trained inside a network: a LoRA adapter, or all weights. The reference is the network without it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any, Self

import torch
from diffusers import ModelMixin
from peft import LoraConfig
from torch import nn

from raysuite.config import Parameters, one_of
from raysuite.errors import UserError
from raysuite.families.sharding import let_go, shard, share_of
from raysuite.rng import Stage, torch_generator

OF_A_FILE = ("rank_pattern", "alpha_pattern", "use_dora", "use_rslora", "lora_bias")
"""What decides what an adapter does, and is not of a fresh one."""


class Trained(ABC):
    """The trained parameters of one network."""

    network: ModelMixin
    shared = False
    """Whether other processes have the rest of the network."""

    @abstractmethod
    def named(self) -> dict[str, nn.Parameter]:
        """The trained parameters by name, in a fixed order."""

    @abstractmethod
    def reference(self) -> AbstractContextManager[ModelMixin]:
        """The network with the reference's parameters, for the length of a `with`."""

    @abstractmethod
    def base(self) -> AbstractContextManager[ModelMixin]:
        """The network as it was before training, for the length of a `with`."""

    @abstractmethod
    def set_reference(self, values: Mapping[str, torch.Tensor]) -> None:
        """Make these the reference's parameters. Until then it is the network as it was before training."""


class Lora(Trained):
    """Low-rank adapters through peft; the reference is the same network with the adapter off, or as it began."""

    def __init__(self, network: ModelMixin) -> None:
        """Train the adapter that a network has."""
        self.network = network
        for name, parameter in network.named_parameters():
            parameter.requires_grad_("lora_" in name)
        for parameter in self.named().values():  # adapters stay in float32 over a half-precision network
            parameter.data = parameter.data.float()
        self._start: dict[str, torch.Tensor] = {}
        self._reference: dict[str, torch.Tensor] = {}

    @classmethod
    def fresh(cls, network: ModelMixin, spec: Parameters, *, targets: Sequence[str], seed: int) -> Self:
        """A new adapter, which changes nothing yet.

        Args:
            network: to adapt.
            spec: rank and alpha.
            targets: names of layers as `linear_layers` takes them.
            seed: of its first values.

        Raises:
            UserError: a target names no layer.
        """
        network.requires_grad_(False)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(torch_generator(seed=seed, stage=Stage.PARAMETERS).initial_seed())
            layers = linear_layers(network, targets)
            network.add_adapter(
                LoraConfig(
                    r=spec.rank, lora_alpha=spec.alpha or spec.rank, target_modules=layers, init_lora_weights=True
                )
            )
        return cls(network)

    @classmethod
    def started(cls, network: ModelMixin) -> Self:
        """The adapter that a network was loaded with, whose values belong to the network as it came."""
        lora = cls(network)
        lora._start = lora._copied({name: parameter.detach() for name, parameter in lora.named().items()})
        return lora

    def metadata(self) -> dict[str, Any]:
        """What a reader of the adapter's file must know: alpha over rank is its strength, unless a file that it was begun from has
        more to say.
        """
        config = self.network.peft_config["default"]
        own = {name: getattr(config, name) for name in OF_A_FILE if getattr(config, name)}
        # sorted, since a set's order differs between processes
        return {
            "r": config.r,
            "lora_alpha": config.lora_alpha,
            "target_modules": sorted(config.target_modules),
            **own,
        }

    def named(self) -> dict[str, nn.Parameter]:
        """The adapters' matrices."""
        return {name: p for name, p in self.network.named_parameters() if p.requires_grad}

    @contextmanager
    def reference(self) -> Iterator[ModelMixin]:
        """The network as it came, or with the reference's values in its adapter."""
        with self._holding(self._reference) if self._reference else self.base() as network:
            yield network

    @contextmanager
    def base(self) -> Iterator[ModelMixin]:
        """The network with its adapter off, or with the values in it that it was loaded with."""
        if self._start:
            with self._holding(self._start) as network:
                yield network
            return
        self.network.disable_adapters()
        try:
            yield self.network
        finally:
            self.network.enable_adapters()

    @contextmanager
    def _holding(self, values: Mapping[str, torch.Tensor]) -> Iterator[ModelMixin]:
        """The network with other values in its adapter, exchanged by pointer: no copy, and what autograd holds of the trained ones
        stays as it is.
        """
        own = {name: parameter.data for name, parameter in self.named().items()}
        try:
            self._put(values)
            yield self.network
        finally:
            self._put(own)

    def _put(self, values: Mapping[str, torch.Tensor]) -> None:
        for name, parameter in self.named().items():
            parameter.data = values[name]

    def set_reference(self, values: Mapping[str, torch.Tensor]) -> None:
        """A second set of the adapters' matrices, on the network's device."""
        self._reference = self._copied(values)

    def _copied(self, values: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        return {name: values[name].to(p.device, p.dtype, copy=True) for name, p in self.named().items()}


class AllWeights(Trained):
    """Every weight; the reference is a frozen copy, loaded when it is first asked for."""

    def __init__(self, network: ModelMixin, reload: Callable[[], ModelMixin]) -> None:
        self.network = network.requires_grad_(True)
        self._reload = reload
        self._reference: ModelMixin | None = None
        self._base: ModelMixin | None = None
        """A second copy, once the first has moved and is asked for as it came."""
        self._moved = False

    def named(self) -> dict[str, nn.Parameter]:
        """All parameters."""
        return dict(self.network.named_parameters())

    @contextmanager
    def reference(self) -> Iterator[ModelMixin]:
        """The frozen copy."""
        yield self._copy()

    @contextmanager
    def base(self) -> Iterator[ModelMixin]:
        """The frozen copy until it has other values, and then another."""
        if not self._moved:
            yield self._copy()
            return
        if self._base is None:
            self._base = self._frozen()
        yield self._base

    def set_reference(self, values: Mapping[str, torch.Tensor]) -> None:
        """Other values for the frozen copy."""
        self._moved = True
        with torch.no_grad():
            for name, parameter in self._copy().named_parameters():
                parameter.copy_(share_of(values[name], parameter))

    def shard(self) -> None:
        """Spread the network over the learners, and its frozen copy when there is one."""
        shard(self.network)
        self.shared = True

    def let_go(self) -> None:
        """Leave nothing gathered after predictions without gradients."""
        if self.shared:
            let_go(self.network)

    def _copy(self) -> ModelMixin:
        if self._reference is None:
            self._reference = self._frozen()
        return self._reference

    def _frozen(self) -> ModelMixin:
        network = self._reload().requires_grad_(False)
        if self.shared:
            shard(network, frozen=True)
        return network


def linear_layers(network: nn.Module, targets: Sequence[str]) -> list[str]:
    """Full names of the linear layers and convolutions that targets mean.

    A target is a layer's name, or the end of one from a dot on: `to_q` means every layer called so. Modules of the name that hold
    layers, rather than being one, are passed over.

    Raises:
        UserError: a target means no layer.
    """
    layers = [name for name, module in network.named_modules() if isinstance(module, nn.Linear | nn.Conv2d)]
    meant: dict[str, None] = {}
    for target in targets:
        found = [name for name in layers if name == target or name.endswith(f".{target}")]
        if not found:
            ends = {".".join(name.split(".")[-length:]) for name in layers for length in (1, 2)}
            known = {end for end in ends if not end.rpartition(".")[2].isdecimal() or "." in end}
            raise UserError(
                f"expected parameters.targets to name layers of {type(network).__name__} ({one_of(target, known)}), got "
                f"{target!r}: no layer is called so"
            )
        meant |= dict.fromkeys(found)
    return [name for name in layers if name in meant]
