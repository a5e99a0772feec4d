"""What only a GPU would find out, held against what its library asks for."""

from __future__ import annotations

import threading

import pytest
import torch

from raysuite.devices import sent, thread_pool


def test_what_is_sent_to_a_gpu_can_be_pinned(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch pins memory of the tensor's own strides, and refuses to write into what overlaps, as an expanded tensor's does."""

    def pin(tensor: torch.Tensor) -> torch.Tensor:
        return torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype).copy_(tensor)

    monkeypatch.setattr(torch.Tensor, "pin_memory", pin)
    monkeypatch.setattr(torch.Tensor, "to", lambda tensor, *_, **__: tensor)
    times = torch.tensor(999).expand(4)
    with pytest.raises(RuntimeError, match="single memory location"):
        times.pin_memory()
    assert sent(times, torch.device("cuda")).tolist() == [999] * 4


def test_threads_use_the_gpu_of_who_asks_for_them(monkeypatch: pytest.MonkeyPatch) -> None:
    of_threads = {threading.get_ident(): 3}
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: of_threads.get(threading.get_ident(), 0))
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: of_threads.update({threading.get_ident(): device}))
    with thread_pool(1) as pool:
        assert pool.apply(lambda: torch.cuda.current_device()) == 3
