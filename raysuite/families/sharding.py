"""A network whose parameters, gradients and moments are spread over the learners (FSDP2), each holding a share.

Outside of this file a share shows only in that a tensor may be a `DTensor`: `whole` and `share_of` go from one to the other.
What they need of torch.distributed takes most of a second to import, and nearly no process needs it.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn


def shard(network: nn.Module, *, frozen: bool = False) -> None:
    """Leave each process of the default group its share of every parameter; layers are gathered as they are used, by blocks.

    Gradients are summed over processes, not averaged: a term is divided by the units of the whole minibatch beforehand.

    Args:
        network: a diffusers model, whole and equal in every process; its `_no_split_modules` say what a block is.
        frozen: whether nothing is sent back through it, which is what lets go of the outermost layers otherwise.
    """
    from torch.distributed import get_world_size
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh(next(network.parameters()).device.type, (get_world_size(),))
    blocks = set(getattr(network, "_no_split_modules", None) or ())
    for module in reversed(list(network.modules())):  # children before their parents
        if module is network or type(module).__name__ in blocks:
            sharded: Any = fully_shard(module, mesh=mesh, reshard_after_forward=True if frozen else None)
            sharded.set_gradient_divide_factor(1.0)
            sharded.set_force_sum_reduction_for_comms(True)  # gloo knows no other


def let_go(network: nn.Module) -> None:
    """Drop the outermost layers, which a pass has gathered and kept for its way back, where there is none."""
    for module in network.modules():
        drop: Any = getattr(module, "reshard", None)
        if drop is not None:
            drop()


def is_share(tensor: Tensor) -> bool:
    """Whether other processes have the rest of it."""
    return hasattr(tensor, "full_tensor")


def whole(tensor: Any) -> Tensor:
    """A tensor with all its shares: every process has to ask. One that is not spread is returned as it is."""
    return tensor.full_tensor() if is_share(tensor) else tensor


def share_of(value: Tensor, like: Any) -> Tensor:
    """This process's share of a value that every process has, spread as `like` is; asks no other process."""
    if not is_share(like):
        return value
    from torch.distributed.tensor import distribute_tensor

    return distribute_tensor(value.to(like.device), like.device_mesh, like.placements, src_data_rank=None)
