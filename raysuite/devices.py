"""What a GPU asks of those who send it tensors, and of threads that use it."""

from __future__ import annotations

from multiprocessing.pool import ThreadPool

import torch
from torch import Tensor


def sent(tensor: Tensor, device: torch.device) -> Tensor:
    """The tensor on a device; to a GPU on its way there, so that who sends it need not wait for what is under way."""
    if device.type != "cuda" or tensor.device.type != "cpu":
        return tensor.to(device)
    return tensor.contiguous().pin_memory().to(device, non_blocking=True)  # what is expanded cannot be pinned


def thread_pool(number: int) -> ThreadPool:
    """Threads that use the same GPU as the thread that asks for them: torch keeps for each thread which one that is."""
    if torch.cuda.is_initialized():
        return ThreadPool(number, torch.cuda.set_device, (torch.cuda.current_device(),))
    return ThreadPool(number)
