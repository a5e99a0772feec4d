"""One step of any diffusers text-to-image pipeline, by the pipeline's own call.

Four parts of the pipeline are exchanged on a shallow copy, and its own code does the rest: ids, packing, masks, micro-conditioning,
the form of time, guidance and its renormalisation, the sign of the output, decoding.

    __call__          without `torch.no_grad`, so that gradients flow
    encode_prompt     answers from a memory: encoders run once a prompt, and need not be there after that
    prepare_latents   hands over our latents, in the form that the loop works on (packed or not), in float32
    scheduler         names one time (or one for each row), keeps the guided output that its `step` is given, and is done
"""

from __future__ import annotations

import copy
import inspect
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any
from weakref import WeakMethod, WeakSet

import numpy as np
import torch
from torch import Tensor

from raysuite.config import one_of
from raysuite.devices import sent
from raysuite.errors import UserError, in_a_line
from raysuite.families.facts import BY_STEP, Facts
from raysuite.families.text import Answer, TextMemory, TextStates, form, joined, moved

if TYPE_CHECKING:
    from raysuite.families.soft_prompts import SoftPrompts

PARTS = ("unet", "transformer")
"""What the denoising network is called."""
OURS = {
    *("prompt", "negative_prompt", "height", "width", "num_inference_steps", "timesteps", "sigmas", "mu", "generator"),
    *("num_images_per_prompt", "num_videos_per_prompt", "latents", "output_type", "return_dict", "eta", "image"),
    *("callback", "callback_steps", "callback_on_step_end", "callback_on_step_end_tensor_inputs", "kwargs", "self"),
}
"""Arguments of the call that other settings decide, or that nobody does."""
NETWORKS_OF_THEIR_OWN = ("transformer_2", "unconditional_transformer", "unet_2", "prior", "image_encoder")
"""Second networks: of other steps, of the other branch of guidance, or of a picture to begin from."""
FROM_A_PICTURE = ("mask_image", "strength", "control_image", "controlnet_conditioning_scale")
"""Arguments of pipelines that begin from a picture rather than from a prompt alone."""
JOINED_CALLS = 2
"""Encodings of whole batches that stay on the device: the rows of a step and those of its negative prompt."""


class _Done(Exception):
    """Thrown by an exchanged part when what was wanted of the call is there."""


def missing_seam(cls: type) -> str | None:
    """What a pipeline class lacks of what `Driver` exchanges; None where all is there."""
    call = inspect.unwrap(cls.__call__)
    arguments = inspect.signature(call).parameters
    if call is cls.__call__:
        return "its __call__ is not decorated with torch.no_grad, so that there is no plain one beneath"
    for name in ("encode_prompt", "prepare_latents"):
        if not hasattr(cls, name):
            return f"it has no method {name}"
    for name in ("prompt", "num_inference_steps", "output_type", "return_dict"):
        if name not in arguments:
            return f"its call has no argument {name}"
    pictures = [name for name in FROM_A_PICTURE if name in arguments]
    if pictures:
        return f"its call has {pictures[0]}, which pipelines have that begin from a picture"
    needed = [n for n, a in arguments.items() if a.default is a.empty and n not in ("self", "prompt", "kwargs")]
    if needed:
        return f"its call cannot do without {', '.join(needed)}"
    return None


class _OneStep:
    """A scheduler that knows one time."""

    order, init_noise_sigma, step_index, begin_index = 1, 1.0, 0, 0

    def __init__(self, config: Any, timesteps: Tensor) -> None:
        self.config, self.timesteps = config, timesteps
        self.sigmas = torch.zeros(len(timesteps) + 1)
        self.output: Tensor | None = None

    def set_timesteps(
        self,
        num_inference_steps: int | None = None,
        device: object = None,
        sigmas: object = None,
        mu: object = None,
        timesteps: object = None,
        **_: object,
    ) -> None:
        self.num_inference_steps = len(self.timesteps)

    def set_begin_index(self, *_: object) -> None:
        """There is one."""

    def scale_model_input(self, sample: Tensor, *_: object, **__: object) -> Tensor:
        return sample

    def step(self, model_output: Tensor, timestep: object, sample: Tensor, *_: object, **__: object) -> tuple[Tensor]:
        self.output = model_output
        return (sample,)


class Drawn(tuple[str, ...]):
    """The prompts of some rows, marked for soft prompts, with the labels of their draws (None for the mean)."""

    labels: tuple[int | None, ...]

    @classmethod
    def of(cls, prompts_N: Sequence[str], draws_N: Tensor | None, soft: SoftPrompts | None) -> Sequence[str]:
        """The same prompts where there are no soft prompts."""
        if soft is None:
            return prompts_N
        marked = cls(soft.marked(prompt) for prompt in prompts_N)
        marked.labels = (None,) * len(marked) if draws_N is None else tuple(draws_N.tolist())
        return marked

    def rows(self, numbers: Sequence[int]) -> Drawn:
        """Those of some rows."""
        part = Drawn(self[number] for number in numbers)
        part.labels = tuple(self.labels[number] for number in numbers)
        return part


class Driver:
    """A pipeline, driven. The pipeline that it is given stays as it is."""

    def __init__(
        self,
        pipeline: Any,
        facts: Facts,
        *,
        arguments: Mapping[str, Any],
        size: tuple[int, int] | None,
        negative: str | None,
        embedded: float | None,
        memory: TextMemory,
        encoders: bool,
        device: torch.device,
        soft: SoftPrompts | None = None,
    ) -> None:
        """Exchange the parts, and learn the shape of latents.

        Args:
            pipeline: with modules on `device`.
            facts: of its class.
            arguments: of its call, besides those that are ours.
            size: height and width in pixels; None for the pipeline's own.
            negative: the negative prompt; None for the class's own.
            embedded: the guidance that the network is told; None for the class's own.
            memory: of text states.
            encoders: whether the pipeline has its text encoders.
            device: of the call.
            soft: a distribution of soft prompts that marked prompts are drawn from.

        Raises:
            UserError: an argument is unknown or ours to set, or the pipeline does not do with these settings what they say.
        """
        self.facts, self.memory, self.encoders, self.device, self.soft = facts, memory, encoders, device, soft
        self._labels: tuple[int | None, ...] = ()
        self.name = type(pipeline).__name__
        self.pipeline = copy.copy(pipeline)
        self.pipeline.set_progress_bar_config(disable=True)
        self.part = next(part for part in PARTS if getattr(pipeline, part, None) is not None)
        # Wan 2.2 5B gives every token the time of its call
        self.one_time = facts.one_time or bool(pipeline.config.get("expand_timesteps"))
        self._run = inspect.unwrap(type(pipeline).__call__)
        self._known = inspect.signature(self._run).parameters
        self._encode, self._prepare, self.scheduler = (
            pipeline.encode_prompt,
            pipeline.prepare_latents,
            pipeline.scheduler,
        )
        self._asking = inspect.signature(pipeline.encode_prompt)
        self.arguments = self._checked(arguments)
        if embedded is not None:
            self.arguments[self._embedded()] = embedded
        if size is not None:
            self.arguments["height"], self.arguments["width"] = size
        self.guidance = facts.guidance if facts.guidance in self._known else None
        self.negative = self._negative(negative)
        # the copy must not keep who has it, or its networks would stay on a GPU until a collection
        self._put(encode_prompt=_weakly(self._remembered), prepare_latents=_weakly(self._given))
        self.one_call: str | None = None
        """The setting for which rows may not go through the network in groups, where one forbids it."""
        self._answering: WeakSet[Any] = WeakSet()
        self._x: Tensor | None = None
        self._beside: dict[int, tuple[Any, ...]] = {}
        self._asked: list[str] | None = None
        self._prompts: dict[tuple[str, bool], tuple[tuple[str, ...], Any]] = {}
        self._rows: dict[str, dict[str, Any]] = {}
        self._joined: OrderedDict[tuple[str, ...], Answer] = OrderedDict()
        self.template = self._first_latents()

    # what may be said

    def _checked(self, arguments: Mapping[str, Any]) -> dict[str, Any]:
        told = {self.facts.guidance, self.facts.embedded}
        free = {name for name in self._known if name not in OURS | BY_STEP | told and not name.endswith("_embeds")}
        for name in arguments:
            if name in BY_STEP:
                raise UserError(
                    f"expected arguments of {self.name} that mean the same at every step in model.arguments, got {name}, which "
                    "depends on the step's number: leave it out"
                )
            if name not in free:
                raise UserError(
                    f"expected an argument of {self.name} that no other setting decides in model.arguments "
                    f"({one_of(name, free)}), got {name}"
                )
        return {**self.facts.call, **arguments}

    def _embedded(self) -> str:
        network = getattr(self.pipeline, self.part)
        if self.facts.embedded is None or not network.config.get("guidance_embeds", False):
            raise UserError(
                f"expected no sampler.embedded_guidance with {self.name} as it is here: its network is told none; leave it out, "
                "and set sampler.guidance"
            )
        return self.facts.embedded

    def _negative(self, negative: str | None) -> str | None:
        if "negative_prompt" in self._known:
            return self.facts.negative if negative is None else negative
        if negative is not None:
            raise UserError(f"expected no sampler.negative_prompt with {self.name}, whose call has none: leave it out")
        return None

    # the call

    def _put(self, **parts: Any) -> None:
        """Exchange parts of the copy alone; by attribute it would register them in its configuration, at some cost."""
        self.pipeline.__dict__.update(parts)

    def _go(self, prompts: Sequence[str], *, guidance: float = 1.0, steps: int = 1, output_type: str = "latent") -> Any:
        arguments = {**self.arguments, "num_inference_steps": steps, "output_type": output_type, "return_dict": False}
        if self.guidance is not None:
            arguments[self.guidance] = guidance + self.facts.offset
        if guidance > 1 and self.negative is not None:
            arguments["negative_prompt"] = [self.negative] * len(prompts)
        # a list of its own: some pipelines write into it
        return self._run(self.pipeline, **{"prompt": list(prompts), **arguments})

    def _first_latents(self) -> Tensor:
        """One latent in the form of the loop."""
        # the pipeline's own keeps the table of training, which a call that asks for steps writes over
        self._put(scheduler=copy.deepcopy(self.scheduler))
        try:
            with self._up_to_the_network(), torch.no_grad():
                self._go([""], steps=2)  # one would leave some schedulers without a table
        except (AttributeError, ValueError) as error:  # the first where diffusers is behind transformers
            raise UserError(
                f"expected settings that {self.name} accepts, got {self.arguments}: {in_a_line(error)}"
            ) from error
        assert self._x is not None
        latents, self._x = self._x, None
        return latents

    def asked_for(self, steps: int) -> Any:
        """A copy of the pipeline's scheduler after the pipeline has asked it for so many steps at this size."""
        self._put(scheduler=copy.deepcopy(self.scheduler))
        try:
            with self._up_to_the_network(), torch.no_grad():
                self._go([""], steps=steps)
        except ValueError as error:
            raise UserError(
                f"expected a number of sampler.steps that {self.name} accepts, got {steps}: {in_a_line(error)}"
            ) from error
        return self.pipeline.scheduler

    @contextmanager
    def _up_to_the_network(self) -> Iterator[None]:
        """Leave the call within as soon as it would evaluate the network."""

        def leave(*_: object) -> None:
            raise _Done

        self._x = None
        hook = getattr(self.pipeline, self.part).register_forward_pre_hook(leave)
        try:
            yield
        except _Done:
            pass
        finally:
            hook.remove()

    def step(self, network: Any, x_N: Tensor, t_N: Tensor, prompts_N: Sequence[str], guidance: float) -> Tensor:
        """The guided output that the pipeline would hand to its scheduler, (N, ...) float32.

        Rows go through the network together where their encodings have the same shapes, and otherwise by groups that do.

        Args:
            network: to run in the pipeline.
            x_N: latents in the form of the loop, float32.
            t_N: what the scheduler says, for each row; on a GPU, looking at it waits for what is under way.
            prompts_N: of each row.
            guidance: 1 for none.
        """
        groups: dict[object, list[int]] = {}
        forms = {prompt: self._questions(prompt, guidance > 1)[1] for prompt in dict.fromkeys(prompts_N)}
        if len(set(forms.values())) == 1 and not self.one_time:
            return self._together(network, x_N, t_N, prompts_N, guidance)
        for row, (prompt, t) in enumerate(zip(prompts_N, t_N.tolist(), strict=True)):
            groups.setdefault((forms[prompt], t if self.one_time else None), []).append(row)
        if len(groups) == 1:
            return self._together(network, x_N, t_N, prompts_N, guidance)
        if self.one_call:
            raise UserError(
                f"expected rows that go through {self.name} in one call with {self.one_call}, whose learners call the network equally "
                f"often, got {len(groups)} groups by length of text or time: set learn.microbatch=1, or where only lengths differ "
                "rollouts.prompts_per_block=1"
            )
        outputs = [
            self._together(
                network, x_N[sent(torch.tensor(rows), x_N.device)], t_N[rows], _of_rows(prompts_N, rows), guidance
            )
            for rows in groups.values()
        ]
        order = torch.tensor([row for rows in groups.values() for row in rows]).argsort()
        return torch.cat(outputs)[sent(order, x_N.device)]

    def _together(self, network: Any, x_N: Tensor, t_N: Tensor, prompts_N: Sequence[str], guidance: float) -> Tensor:
        if t_N.stride(0) == 0 or len(set(t_N.tolist())) == 1:  # one number, expanded, is not looked at
            times = t_N[:1]  # as the pipeline's own loop has it
        else:
            times = torch.cat([t_N, t_N])[None] if guidance > 1 and self.facts.joint else t_N[None]
        scheduler = _OneStep(self.scheduler.config, sent(times, x_N.device))
        self._x = x_N
        self._put(scheduler=scheduler, **{self.part: network})
        if network not in self._answering:  # once: a compiled network would not notice that a hook comes and goes
            network.register_forward_hook(_in_float32)
            self._answering.add(network)
        self._labels = prompts_N.labels if isinstance(prompts_N, Drawn) else ()
        self._go(prompts_N, guidance=guidance)
        assert scheduler.output is not None
        return scheduler.output.float()

    @torch.no_grad()
    def finish(self, x_N: Tensor) -> np.ndarray:
        """The pictures of clean latents, float in [0, 1], (N, H, W, 3)."""
        self._x = x_N
        self._put(scheduler=_OneStep(self.scheduler.config, torch.zeros(0, device=x_N.device)))
        images = np.asarray(self._go([""] * len(x_N), output_type="np")[0])
        return images[:, 0] if images.ndim == 5 else images  # the one frame of a film

    # latents

    def _given(self, *args: Any, **options: Any) -> Any:
        """In place of `prepare_latents`: ours, and what the pipeline's own gives beside them for a batch of this size."""
        if self._asked is not None:
            raise _Done
        number = 0 if self._x is None else len(self._x)
        if number not in self._beside:
            with torch.random.fork_rng(devices=[]):  # it draws latents that nobody will use
                made = self._prepare(*args, **options)
            first, *beside = made if isinstance(made, tuple) else (made,)
            if self._x is None:
                self._x = first
                return made
            self._beside[number] = tuple(beside)
        return (self._x, *self._beside[number]) if self._beside[number] else self._x

    # text

    def states(self, prompt: str, *, guided: bool) -> TextStates:
        """What the encoders make of a prompt (and of the negative one), by question."""
        return {question: self._answer(question) for question in self._questions(prompt, guided)[0]}

    def _questions(self, prompt: str, guided: bool) -> tuple[tuple[str, ...], Any]:
        """What a call with this prompt asks the encoders, and the form of the answers: rows of one form may share a call."""
        if (prompt, guided) not in self._prompts:
            asked = self.asked_by(lambda: self._go([prompt], guidance=2.0 if guided else 1.0))
            if not asked:
                raise UserError(
                    f"expected a pipeline that encodes its prompt before it prepares latents, got {self.name}: it is not supported"
                )
            self._prompts[prompt, guided] = (asked, form(tuple(self._answer(question) for question in asked)))
        return self._prompts[prompt, guided]

    def asked_by(self, call: Callable[[], Any]) -> tuple[str, ...]:
        """What a call asks the encoders before it prepares latents, where it is left."""
        self._asked = []
        try:
            with torch.no_grad():
                call()
        except _Done:
            pass
        finally:
            asked, self._asked = tuple(dict.fromkeys(self._asked)), None
        return asked

    def encoded(self, prompts_N: Sequence[str]) -> Answer:
        """What `encode_prompt` says of prompts without guidance, as one batch."""
        self._labels = prompts_N.labels if isinstance(prompts_N, Drawn) else ()
        return self.pipeline.encode_prompt(
            list(prompts_N), device=self.device, num_images_per_prompt=1, do_classifier_free_guidance=False
        )

    def _remembered(self, *args: Any, **options: Any) -> Answer:
        """In place of `encode_prompt`: one prompt at a time, so that no answer depends on its neighbours."""
        given = self._asking.bind(*args, **options).arguments
        given.pop("device", None)
        count = len(given["prompt"]) if isinstance(given["prompt"], list) else 1
        order = []
        for row in range(count):
            own = {
                name: [value[row]]
                if isinstance(value, list) and name.startswith(("prompt", "negative_prompt"))
                else value
                for name, value in given.items()
            }
            order.append(repr(sorted(own.items())))
            self._rows.setdefault(order[-1], own)
        if self._asked is not None:
            self._asked += order
        if self.soft is not None and self.soft.concerns(self._rows[order[0]]):
            return self._drawn(order, self.soft)
        key = tuple(order)
        if key not in self._joined:
            answers = {question: self._answer(question) for question in dict.fromkeys(order)}
            self._joined[key] = moved(joined([answers[question] for question in order]), self.device)
            while len(self._joined) > JOINED_CALLS:
                self._joined.popitem(last=False)
        return moved(self._joined[key], self.device)  # lists anew: pipelines may write into them

    def _drawn(self, order: Sequence[str], soft: SoftPrompts) -> Answer:
        """For each row the states of its own draw; gradients flow through them."""
        labels = self._labels if len(self._labels) == len(order) else (None,) * len(order)
        rows: dict[str, list[int]] = {}
        for row, question in enumerate(order):
            rows.setdefault(question, []).append(row)
        answers: dict[int, Answer] = {}
        for question, numbers in rows.items():
            found = soft.answer(self._encode, self._own(question), [labels[number] for number in numbers])
            answers |= dict(zip(numbers, found, strict=True))
        return moved(joined([answers[row] for row in range(len(order))]), self.device)

    def question(self, prompt: str) -> tuple[Callable[..., Answer], dict[str, Any]]:
        """What soft prompts take: the pipeline's `encode_prompt`, and the arguments with which it is asked about a marked prompt."""
        assert self.soft is not None
        asked = self._questions(prompt, False)[0]
        (question,) = [each for each in asked if self.soft.concerns(self._rows[each])]
        return self._encode, self._own(question)

    def _own(self, question: str) -> dict[str, Any]:
        """The arguments of a question."""
        own = copy.deepcopy(self._rows[question])
        if "device" in self._asking.parameters:
            own["device"] = self.device
        return own

    def _answer(self, question: str) -> Answer:
        """From memory, or from the encoders."""
        if self.soft is not None and self.soft.concerns(self._rows[question]):
            with torch.no_grad():
                return self.soft.answer(self._encode, self._own(question), [None])[0]
        try:
            return self.memory.get(question)
        except KeyError:
            own = self._own(question)
        if not self.encoders:
            raise UserError(
                f"expected the text states of {own['prompt']} among those that were encoded beforehand, found none: begin the run "
                "anew, or set cluster.encode_once=false"
            )
        with torch.no_grad(), torch.autocast(self.device.type, enabled=False):
            self.memory.put(question, self._encode(**own))
        return self.memory.get(question)


def _weakly(method: Callable[..., Any]) -> Callable[..., Any]:
    """A method that does not keep its object alive."""
    held = WeakMethod(method)

    def called(*args: Any, **options: Any) -> Any:
        found = held()
        assert found is not None
        return found(*args, **options)

    return called


def _of_rows(prompts_N: Sequence[str], rows: Sequence[int]) -> Sequence[str]:
    return prompts_N.rows(rows) if isinstance(prompts_N, Drawn) else [prompts_N[row] for row in rows]


def _in_float32(module: object, args: object, output: Any) -> Any:
    """A network's answer in float32, so that guidance is not worked out in bfloat16."""
    if isinstance(output, Tensor):
        return output.float() if output.is_floating_point() else output
    if isinstance(output, list | tuple):
        return type(output)(_in_float32(module, args, part) for part in output)
    return output
