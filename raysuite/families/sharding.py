"""A network whose parameters, gradients and moments are spread over the learners (FSDP2), each holding a share.

Outside of this file a share shows only in that a tensor may be a `DTensor`: `whole` and `share_of` go from one to the other.
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor


def shard(network: nn.Module, mesh: DeviceMesh) -> None:
    """Leave each process of the mesh its share of every parameter; layers are gathered as they are used, block by block.

    Gradients are summed over processes, not averaged: a term is divided by the units of the whole minibatch beforehand.

    Args:
        network: a diffusers model, whole and equal in every process; its `_no_split_modules` say what a block is.
        mesh: of one dimension.
    """
    blocks = set(getattr(network, "_no_split_modules", None) or ())
    for module in reversed(list(network.modules())):  # children before their parents
        if module is network or type(module).__name__ in blocks:
            sharded: FSDPModule = fully_shard(module, mesh=mesh)
            sharded.set_gradient_divide_factor(1.0)
            sharded.set_force_sum_reduction_for_comms(True)  # gloo knows no other


def whole(tensor: Tensor) -> Tensor:
    """A tensor with all its shares: every process of the mesh has to ask. One that is not spread is returned as it is."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def share_of(value: Tensor, like: Tensor) -> Tensor:
    """This process's share of a value that every process has, spread as `like` is; asks no other process."""
    if not isinstance(like, DTensor):
        return value
    return distribute_tensor(value.to(like.device), like.device_mesh, like.placements, src_data_rank=None)
