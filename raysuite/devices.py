"""What a GPU asks of those who send it tensors, and of threads that use it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.pool import ThreadPool

import torch
from torch import Tensor

from raysuite.errors import UserError, in_a_line


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


@contextmanager
def told_if_full() -> Iterator[None]:
    """For the length of a `with`, or of what it decorates, a GPU without room is a sentence: to try again would end the same way.

    Raises:
        UserError: torch found no room.
    """
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise UserError(
            f"expected room on a GPU, found none ({in_a_line(error, 200)}): raysuite plan, with the same recipe and settings and with "
            "--memory, says what takes it and which settings take less, such as learn.microbatch, rollouts.prompts_per_block and "
            "parameters.checkpointing"
        ) from error
