"""A run's model without its weights: what its parts weigh, and what calls of them take at their peak. Nothing is computed."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from functools import cached_property, partial, wraps
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    FakeTensor,
    FakeTensorMode,
)
from torch.utils._pytree import tree_leaves, tree_map

from raysuite.config import Model, Parameters, Sampler
from raysuite.errors import UserError
from raysuite.families import located
from raysuite.families.allocated import Allocated
from raysuite.families.driver import PARTS, Driver
from raysuite.families.facts import facts_of
from raysuite.families.loading import ENCODER, modules_of, outlined
from raysuite.families.parameters import Lora
from raysuite.families.pipeline import PIXELS_AT_ONCE
from raysuite.families.text import TextMemory, tensors_of

CPU = torch.device("cpu")


class Outline:
    """A pipeline of whose networks only the shapes are there, driven as `PipelinePolicy` drives it.

    The pipeline's own code runs, on a few real tensors of the right shapes; its networks are called with tensors that know
    their shape, type and device and have no memory, and every allocation is counted.
    """

    def __init__(self, *, model: Model, sampler: Sampler, parameters: Parameters, prompt: str, gpu: bool) -> None:
        """Read a model's configurations.

        Args:
            model: which.
            sampler: its guidance.
            parameters: what is trained.
            prompt: one as long as the run's are: some classes' text states are as long as their prompt.
            gpu: whether it will run on one, whose autocast keeps more in float32.

        Raises:
            UserError: there is no such pipeline, or it does not accept the settings.
        """
        self.guidance, self.prompt = sampler.guidance, prompt
        self.precision = getattr(torch, model.precision)
        self.lora = parameters.kind == "lora"
        self._mode = FakeTensorMode(allow_non_fake_inputs=True)
        pipeline = outlined(located(model), network=self.precision if self.lora else torch.float32)
        self.name = type(pipeline).__name__
        facts = facts_of(self.name)
        self.part = next(part for part in PARTS if getattr(pipeline, part, None) is not None)
        self.network, self.vae = getattr(pipeline, self.part), pipeline.vae
        if parameters.checkpointing and facts.no_checkpointing is None:
            self.network.enable_gradient_checkpointing()
        if self.lora:
            if not hasattr(self.network, "add_adapter"):
                raise UserError(
                    f"expected parameters.kind=all with {self.name}, for which diffusers reads no LoRA: set it"
                )
            Lora.fresh(self.network, parameters, targets=parameters.targets or facts.targets, seed=0)
        else:
            self.network.requires_grad_(True)
        self.weights = {name: _bytes(module) for name, module in modules_of(pipeline).items()}
        self.trained = sum(p.numel() for p in self.network.parameters() if p.requires_grad)
        for name, module in modules_of(pipeline).items():
            self._without_memory(module)
            _instead(module, "decode" if name == "vae" else "forward", self._run)
        self._learning: dict[tuple[int, bool, bool], int] = {}
        self._count: Allocated | None = None
        self._outputs: list[Tensor] = []
        if gpu:
            for module in self.network.modules():
                if isinstance(module, nn.GroupNorm | nn.LayerNorm):
                    module.register_forward_pre_hook(_widened)
                elif isinstance(module, nn.RMSNorm):
                    _instead(module, "forward", partial(_wide_rms_norm, module))
        self.driver = Driver(
            pipeline,
            facts,
            arguments=located(model).arguments,
            size=model.height_and_width,
            negative=sampler.negative_prompt,
            embedded=sampler.embedded_guidance,
            memory=TextMemory(),
            encoders=True,
            device=CPU,
        )
        self.latent_shape = tuple(self.driver.template.shape[1:])

    # what lies there

    @property
    def encoders(self) -> int:
        """Bytes of all text encoders."""
        return sum(size for name, size in self.weights.items() if name.startswith(ENCODER))

    @property
    def rest(self) -> int:
        """Bytes of the VAE, and of whatever else is no text encoder and not the denoising network."""
        return sum(size for name, size in self.weights.items() if not name.startswith(ENCODER) and name != self.part)

    @cached_property
    def copy(self) -> int:
        """Bytes of a frozen copy of the network, as the reference of a run that trains all weights has it."""
        products = [m for m in self.network.modules() if isinstance(m, nn.Linear | nn.Conv2d)]
        numbers = sum(value.numel() for module in products for value in module.parameters(recurse=False))
        return _bytes(self.network) - numbers * (4 - self.precision.itemsize)

    @cached_property
    def text(self) -> int:
        """Bytes of the text states of one prompt."""
        states = self.driver.states(self.prompt, guided=self.guidance > 1)
        unique = {id(tensor): tensor.nbytes for answer in states.values() for tensor in tensors_of(answer)}
        return sum(unique.values())

    @property
    def latent(self) -> int:
        """Bytes of one latent."""
        return 4 * math.prod(self.latent_shape)

    # what calls take

    def learning(self, rows: int, *, guided: bool, reference: bool = False) -> int:
        """Peak bytes of predictions for so many rows, the reference's besides, and the way back, beside weights and gradients."""
        if (rows, guided, reference) in self._learning:
            return self._learning[rows, guided, reference]
        for parameter in self.network.parameters():
            if parameter.requires_grad and parameter.grad is None:
                with self._mode:
                    parameter.grad = torch.zeros_like(parameter)
        with self._counted() as counted:
            self._predict(rows, guided)
            if reference:
                with torch.no_grad():
                    self._predict(rows, guided)
            with self._hollow():
                torch.autograd.backward(self._outputs, [torch.ones_like(output) for output in self._outputs])
        self._learning[rows, guided, reference] = counted.peak
        return counted.peak

    def drawing(self, rows: int) -> int:
        """Peak bytes of predictions for so many rows without a way back."""
        with torch.no_grad(), self._counted() as counted:
            self._predict(rows, guided=True)
        return counted.peak

    def decoding(self, pictures: int) -> int:
        """Peak bytes of decoding so many latents, as many at once as a policy decodes."""
        height, width = self.image_size
        at_once = min(pictures, max(1, PIXELS_AT_ONCE // (height * width)))
        with torch.no_grad(), self._counted() as counted:
            self.driver.finish(torch.zeros(at_once, *self.latent_shape))
        return counted.peak

    @cached_property
    def image_size(self) -> tuple[int, int]:
        """Height and width of a picture in pixels."""
        with torch.no_grad(), self._counted():
            height, width = self.driver.finish(torch.zeros(1, *self.latent_shape)).shape[1:3]
        return height, width

    def _predict(self, rows: int, guided: bool) -> None:
        x_N, t_N = torch.zeros(rows, *self.latent_shape), torch.full((rows,), 500.0)
        with torch.autocast("cpu", torch.bfloat16, enabled=self.precision == torch.bfloat16):
            self.driver.step(self.network, x_N, t_N, [self.prompt] * rows, self.guidance if guided else 1.0)

    # tensors without memory

    @contextmanager
    def _counted(self) -> Iterator[Allocated]:
        """What calls of networks allocate within; their outputs are kept until the end."""
        self._count, self._outputs = Allocated(), []
        try:
            yield self._count
        finally:
            self._count, self._outputs = None, []

    @contextmanager
    def _hollow(self) -> Iterator[None]:
        """Operations within are those of tensors without memory, and counted where anybody counts."""
        with self._mode, self._count or nullcontext():
            yield

    def _run(self, own: Callable, *args: Any, **options: Any) -> Any:
        """A network's call on tensors without memory; the pipeline gets zeros of the same shapes.

        A mask of padding, which encoders look into, changes no shape of theirs and is left out.
        """
        args, options = tree_map(self._emptied, (args, {n: v for n, v in options.items() if n != "attention_mask"}))
        try:
            with self._hollow():
                made = own(*args, **options)
        except (DataDependentOutputException, DynamicOutputShapeException) as error:
            raise UserError(
                f"expected a model whose shapes follow from its configuration, got {self.name}, where they depend on what is in its "
                "tensors: it cannot be planned"
            ) from error
        self._outputs += [leaf for leaf in tree_leaves(made) if isinstance(leaf, Tensor) and leaf.requires_grad]
        return tree_map(
            lambda leaf: torch.zeros(leaf.shape, dtype=leaf.dtype) if isinstance(leaf, Tensor) else leaf, made
        )

    def _emptied(self, value: Any) -> Any:
        """A tensor's shape and type without its content."""
        if not isinstance(value, Tensor) or isinstance(value, FakeTensor):
            return value
        return FakeTensor(self._mode, value.detach().to("meta"), CPU)

    def _without_memory(self, module: nn.Module) -> None:
        for part in module.modules():
            for name, weight in part.named_parameters(recurse=False):
                setattr(part, name, nn.Parameter(self._emptied(weight), requires_grad=weight.requires_grad))
            for name, value in (*part.named_buffers(recurse=False), *vars(part).items()):
                setattr(part, name, self._emptied(value))  # some tables are no buffers


def _bytes(module: nn.Module) -> int:
    return sum(value.nbytes for value in (*module.parameters(), *module.buffers()))


def _widened(module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
    """What autocast gives a norm on GPUs, which decides what is kept for the way back: float32."""
    if not torch.is_autocast_enabled("cpu"):
        return args
    return tuple(value.float() if isinstance(value, Tensor) else value for value in args)


def _wide_rms_norm(module: nn.RMSNorm, own: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """The same of a norm that wants its weight in the type of what it is given."""
    if not torch.is_autocast_enabled("cpu"):
        return own(x)
    weight = module.weight.float() if module.elementwise_affine else None
    return nn.functional.rms_norm(x.float(), module.normalized_shape, weight, module.eps)


def _instead(module: nn.Module, name: str, run: Callable[..., Any]) -> None:
    """Let `run` answer calls of a module's method; it is given the method."""
    own = getattr(module, name)
    setattr(module, name, wraps(own)(partial(run, own)))
