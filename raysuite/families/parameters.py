"""What is trained inside a network: a LoRA adapter, or all weights. The reference is the network without it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager

import torch
from diffusers import UNet2DConditionModel
from peft import LoraConfig
from torch import nn

from raysuite.config import Parameters
from raysuite.errors import UserError
from raysuite.families.sharding import shard, share_of
from raysuite.rng import Stage, torch_generator


class Trained(ABC):
    """The trained parameters of one network."""

    network: UNet2DConditionModel

    @abstractmethod
    def named(self) -> dict[str, nn.Parameter]:
        """The trained parameters by name, in a fixed order."""

    @abstractmethod
    def reference(self) -> AbstractContextManager[UNet2DConditionModel]:
        """The network with the reference's parameters, for the length of a `with`."""

    @abstractmethod
    def base(self) -> AbstractContextManager[UNet2DConditionModel]:
        """The network as it was before training, for the length of a `with`."""

    @abstractmethod
    def set_reference(self, values: Mapping[str, torch.Tensor]) -> None:
        """Make these the reference's parameters. Until then it is the network as it was before training."""


class Lora(Trained):
    """Low-rank adapters through peft; the reference is the same network with the adapter off."""

    def __init__(self, network: UNet2DConditionModel, spec: Parameters, *, seed: int) -> None:
        network.requires_grad_(False)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(torch_generator(seed=seed, stage=Stage.PARAMETERS).initial_seed())
            try:
                network.add_adapter(
                    LoraConfig(
                        r=spec.rank,
                        lora_alpha=spec.alpha or spec.rank,
                        target_modules=list(spec.targets),
                        init_lora_weights=True,
                    )
                )
            except ValueError as error:
                raise UserError(
                    f"expected parameters.targets to name layers of the network, got {list(spec.targets)}: {error}"
                ) from error
        self.network = network
        self._reference: dict[str, torch.Tensor] = {}
        for parameter in self.named().values():  # adapters stay in float32 over a half-precision network
            parameter.data = parameter.data.float()

    def named(self) -> dict[str, nn.Parameter]:
        """The adapters' matrices."""
        return {name: p for name, p in self.network.named_parameters() if p.requires_grad}

    @contextmanager
    def reference(self) -> Iterator[UNet2DConditionModel]:
        """The network with its adapter off, or with the reference's values in it."""
        if not self._reference:
            with self.base() as network:
                yield network
            return
        # exchanged by pointer: no copy, and what autograd holds of the trained values stays as it is
        own = {name: parameter.data for name, parameter in self.named().items()}
        try:
            self._put(self._reference)
            yield self.network
        finally:
            self._put(own)

    @contextmanager
    def base(self) -> Iterator[UNet2DConditionModel]:
        """The network with its adapter off."""
        self.network.disable_adapters()
        try:
            yield self.network
        finally:
            self.network.enable_adapters()

    def _put(self, values: Mapping[str, torch.Tensor]) -> None:
        for name, parameter in self.named().items():
            parameter.data = values[name]

    def set_reference(self, values: Mapping[str, torch.Tensor]) -> None:
        """A second set of the adapters' matrices, on the network's device."""
        self._reference = {name: values[name].to(p.device, p.dtype, copy=True) for name, p in self.named().items()}


class AllWeights(Trained):
    """Every weight; the reference is a frozen copy, loaded when it is first asked for."""

    def __init__(self, network: UNet2DConditionModel, reload: Callable[[], UNet2DConditionModel]) -> None:
        self.network = network.requires_grad_(True)
        self._reload = reload
        self._reference: UNet2DConditionModel | None = None
        self._base: UNet2DConditionModel | None = None
        """A second copy, once the first has moved and is asked for as it came."""
        self._moved = False
        self._sharded = False

    def named(self) -> dict[str, nn.Parameter]:
        """All parameters."""
        return dict(self.network.named_parameters())

    @contextmanager
    def reference(self) -> Iterator[UNet2DConditionModel]:
        """The frozen copy."""
        yield self._copy()

    @contextmanager
    def base(self) -> Iterator[UNet2DConditionModel]:
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
        self._sharded = True

    def _copy(self) -> UNet2DConditionModel:
        if self._reference is None:
            self._reference = self._frozen()
        return self._reference

    def _frozen(self) -> UNet2DConditionModel:
        network = self._reload().requires_grad_(False)
        if self._sharded:
            shard(network)
        return network
