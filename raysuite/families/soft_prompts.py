"""A distribution of soft prompts in front of a frozen pipeline: K rows of L token embeddings, which alone are trained.

A prompt is marked, its marker gives way to the L tokens of each soft prompt in turn, and the pipeline encodes the K texts as one batch
with its own `encode_prompt`. The tokens are added to the tokenizers; a hook on each encoder's table of embeddings puts the trained
numbers in their places. That is how plain diffusers runs textual inversion, so that a member's states are the same to the bit there.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from raysuite.config import SoftPrompts as Settings
from raysuite.errors import UserError
from raysuite.families.loading import ENCODER
from raysuite.families.parameters import Trained
from raysuite.families.text import Answer, tensors_of
from raysuite.kernel.soft_prompts import Distribution, orthogonality
from raysuite.rng import Stage, torch_generator

MARKER = "<soft-prompt>"
FILE = "prompt_distribution.safetensors"
FORMAT = "1"
ENCODERS = ("CLIPTextModel", "CLIPTextModelWithProjection", "T5EncoderModel")
"""Text encoders that read tokens from a table of embeddings and nothing else."""
REMEMBERED_BYTES = 2**31
"""Of texts' K encodings, which are kept while the weights stay as they are: 280 texts of SD 1.5 with K = 32."""

Values = Mapping[str, Tensor]
"""(K, L, width) by the encoder's name in `SoftPrompts.named`."""
Encode = Callable[..., Answer]


@dataclass(frozen=True)
class Encoded:
    """What the encoders made of one text with each soft prompt."""

    answer: Answer
    """Theirs, with a first axis of K."""
    varying: tuple[bool, ...]
    """Of its tensors, in order: whether the soft prompts made a difference. A negative prompt's are the same K times."""
    distribution: Distribution
    ends: tuple[Tensor, ...]
    """(K, d) of each encoder: the states at the end of the text."""

    @cached_property
    def bytes(self) -> int:
        """Of the encoders' answer."""
        return sum(tensor.nbytes for tensor in tensors_of(self.answer))


@dataclass(frozen=True)
class Share:
    """One distribution's part of a mixture."""

    values: Values
    weight: float
    spread: float


class SoftPrompts(Trained):
    """The trained embeddings of one pipeline's text encoders; the reference is the distribution as it began."""

    def __init__(self, pipeline: Any, network: Any, settings: Settings, *, seed: int, device: torch.device) -> None:
        """A new distribution.

        Args:
            pipeline: whose tokenizers learn the tokens.
            network: the denoising network, which stays as it is.
            settings: of the distribution.
            seed: of its first values.
            device: of its values.

        Raises:
            UserError: the pipeline reads prompts in another way.
        """
        self.network = network.requires_grad_(False)
        self.settings = settings
        self.tokens = [[f"<soft-{k:02d}-{place}>" for place in range(settings.tokens)] for k in range(settings.count)]
        self.parts = _parts(pipeline)
        self._parameters: dict[str, nn.Parameter] = {}
        self._active: Values | None = None
        self._ends: list[Tensor] = []
        for number, (encoder, tokenizer) in enumerate(self.parts.values()):
            values = _first_values(encoder, tokenizer, settings, seed=seed, number=number)
            name = "context" if number == 0 else f"context_{number + 1}"
            self._parameters[name] = nn.Parameter(values.to(device))
            self._hook(name, encoder, tokenizer)
        self._start = {name: parameter.detach().clone() for name, parameter in self._parameters.items()}
        self._reference: dict[str, Tensor] = {}
        self._role = "policy"
        self.mixture: tuple[Share, ...] = ()
        """What is drawn from in place of the trained distribution, where there is something."""
        self._kept: OrderedDict[tuple[str, str], Encoded] = OrderedDict()
        self._kept_of: dict[str, dict[str, Tensor]] = {}

    # as what is trained

    def named(self) -> dict[str, nn.Parameter]:
        """The embeddings: `context` (K, L, width) of the first encoder, `context_2` of the second, ..."""
        return self._parameters

    @contextmanager
    def reference(self) -> Iterator[Any]:
        """The distribution as it began, or the one that `set_reference` was given."""
        with self._as("reference" if self._reference else "base"):
            yield self.network

    @contextmanager
    def base(self) -> Iterator[Any]:
        """The distribution as it began."""
        with self._as("base"):
            yield self.network

    @contextmanager
    def _as(self, role: str) -> Iterator[None]:
        own, self._role = self._role, role
        try:
            yield
        finally:
            self._role = own

    def set_reference(self, values: Values) -> None:
        """A second set of embeddings."""
        self._reference = {n: values[n].detach().to(p.device, copy=True) for n, p in self._parameters.items()}

    def _values(self) -> Values:
        sets: dict[str, Values] = {"policy": self._parameters, "reference": self._reference, "base": self._start}
        return sets[self._role]

    # texts

    def marked(self, text: str) -> str:
        """A prompt with a marker where the soft prompts go."""
        return f"{MARKER} {text}" if self.settings.placement == "before" else f"{text} {MARKER}"

    @staticmethod
    def concerns(question: Mapping[str, Any]) -> bool:
        """Whether a question to the encoders is about a marked prompt."""
        return any(isinstance(v, list) and isinstance(v[0], str) and MARKER in v[0] for v in question.values())

    def _each(self, question: Mapping[str, Any]) -> dict[str, Any]:
        """The question with each soft prompt in turn in the marker's place."""
        written = [" ".join(tokens) for tokens in self.tokens]

        def value(name: str, given: Any) -> Any:
            if not (isinstance(given, list) and name.startswith(("prompt", "negative_prompt"))):
                return given
            return [text.replace(MARKER, own) for own in written for text in given]

        return {name: value(name, given) for name, given in question.items()}

    # encoding

    def answer(self, encode: Encode, question: Mapping[str, Any], labels: Sequence[int | None]) -> list[Answer]:
        """What the encoders are taken to say of a marked prompt, for each label: the states of its draw.

        Args:
            encode: the pipeline's `encode_prompt`.
            question: its arguments for one prompt.
            labels: of the draws; None for the mean.
        """
        encoded = self.encoded(encode, question)
        frame = self._plain(encode, question, encoded) if self.settings.start == "plain" else encoded
        return [self._rebuilt(frame, states) for states in self.states(encode, question, encoded, labels)]

    def states(
        self, encode: Encode, question: Mapping[str, Any], encoded: Encoded, labels: Sequence[int | None]
    ) -> list[tuple[Tensor, ...]]:
        """The states of each label's draw, of those that soft prompts change; `encoded` is the question's answer.

        Of a mixture it is the weighted sum of a draw from each: means are weighted so, and independent deviations.
        """
        shares = [(encoded, 1.0, self.settings.spread)]
        if self.mixture and self._role == "policy":
            shares = [
                (self._encode(encode, question, of.values, encoded.varying), of.weight, of.spread)
                for of in self.mixture
            ]
        plain: tuple[Tensor, ...] = ()
        if self.settings.start == "plain":
            plain = self._plain(encode, question, encoded).distribution.states_K
            began = self._began(encode, question)
        drawn = []
        for label in labels:
            total = plain
            for number, (each, weight, spread) in enumerate(shares):
                own = _derived(label, number)
                states = self._drawn(each, own, spread)
                if plain:
                    states = tuple(
                        now - then for now, then in zip(states, self._drawn(began, own, spread), strict=True)
                    )
                if weight != 1:
                    states = tuple(weight * state for state in states)
                total = tuple(a + b for a, b in zip(total, states, strict=True)) if total else states
            drawn.append(total)
        return drawn

    def moments(
        self, encode: Encode, question: Mapping[str, Any], encoded: Encoded
    ) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
        """The mean and the standard deviation of draws at spread 1, (1, ...) float32 of each state that soft prompts change.

        With `start: plain` what has moved is one draw less another of the same noise: independent ones vary by the difference of their
        deviations, others as the members have moved.
        """
        now = encoded.distribution
        if self.settings.start != "plain":
            return now.mean, now.deviation
        plain = self._plain(encode, question, encoded).distribution
        then = self._began(encode, question).distribution
        of_states = zip(plain.states_K, now.states_K, then.states_K, strict=True)
        drawn = Distribution(tuple(text.float() + a_K.float() - b_K.float() for text, a_K, b_K in of_states))
        if self.settings.draw != "independent":
            return drawn.mean, drawn.deviation
        return drawn.mean, tuple((a - b).abs() for a, b in zip(now.deviation, then.deviation, strict=True))

    def _began(self, encode: Encode, question: Mapping[str, Any]) -> Encoded:
        """A marked prompt with each soft prompt as it began."""
        with self._as("base"), torch.no_grad():
            return self.encoded(encode, question)

    def _drawn(self, encoded: Encoded, label: int | None, spread: float) -> tuple[Tensor, ...]:
        return encoded.distribution.draw(label, kind=self.settings.draw, spread=spread)

    def _plain(self, encode: Encode, question: Mapping[str, Any], encoded: Encoded) -> Encoded:
        """The prompt without any soft prompt, whatever the values: its states are those that soft prompts change."""
        key = ("plain", repr(sorted(question.items())))
        if key not in self._kept:
            bare = {
                name: [text.replace(MARKER, "").strip() for text in given] if isinstance(given, list) else given
                for name, given in question.items()
            }
            with torch.no_grad(), torch.autocast(_device_type(self._start), enabled=False):
                answer = encode(**bare)
            found = zip(tensors_of(answer), encoded.varying, strict=True)
            states = tuple(state for state, varies in found if varies)
            self._remember(key, Encoded(answer, encoded.varying, Distribution(states), ()))
        return self._kept[key]

    def _remember(self, key: tuple[str, str], encoded: Encoded) -> None:
        self._kept[key] = encoded
        while len(self._kept) > 1 and sum(each.bytes for each in self._kept.values()) > REMEMBERED_BYTES:
            self._kept.popitem(last=False)

    def encoded(self, encode: Encode, question: Mapping[str, Any]) -> Encoded:
        """A marked prompt with each soft prompt, under the values of the moment; kept while they stay, where no gradient flows."""
        values, role, key = self._values(), self._role, repr(sorted(question.items()))
        if torch.is_grad_enabled() and role == "policy":
            return self._encode(encode, question, values)
        known = self._kept_of.get(role)
        if known is None or not all(torch.equal(known[name], values[name]) for name in values):
            self._kept_of[role] = {name: value.detach().clone() for name, value in values.items()}
            for other in [each for each in self._kept if each[0] == role]:
                del self._kept[other]
        if (role, key) not in self._kept:
            with torch.no_grad():
                self._remember((role, key), self._encode(encode, question, values))
        self._kept.move_to_end((role, key))
        return self._kept[role, key]

    def _encode(
        self, encode: Encode, question: Mapping[str, Any], values: Values, varying: tuple[bool, ...] | None = None
    ) -> Encoded:
        """The K texts as one batch; which tensors soft prompts change is read off, or known where their values may be equal."""
        self._active, self._ends = values, []
        try:
            with torch.autocast(_device_type(self._start), enabled=False):
                answer = encode(**self._each(question))
        finally:
            self._active, ends = None, self._ends
            self._ends = []
        if len(ends) != len(self.parts):
            raise self._no_room()
        tensors, count = list(tensors_of(answer)), self.settings.count
        varying = varying or tuple(
            tensor.shape[:1] == (count,)
            and (tensor.is_floating_point() if count == 1 else bool((tensor != tensor[:1]).any()))
            for tensor in tensors
        )
        states = tuple(tensor for tensor, varies in zip(tensors, varying, strict=True) if varies)
        if self.settings.placement == "before" and any(state.ndim == 2 for state in states):
            self._check_pooled()
        return Encoded(answer, varying, Distribution(states), tuple(ends))

    def _check_pooled(self) -> None:
        """Refuses a CLIP encoder whose pooled vector would be read at a soft token, where it knows nothing of the text.

        For the old `eos_token_id: 2` transformers reads it at the token of the highest number, and added tokens have higher ones.
        """
        for name, (encoder, _) in self.parts.items():
            config: Any = encoder.config
            if type(encoder).__name__.startswith("CLIP") and config.eos_token_id == 2:
                raise UserError(
                    f"expected text encoders whose pooled vector is read at the end of the text, got eos_token_id 2 in the config of "
                    f"{name}, for which it is read at the last soft token and would know nothing of the text: set "
                    "parameters.prompts.placement=after"
                )

    def _rebuilt(self, encoded: Encoded, drawn: Sequence[Tensor]) -> Answer:
        """The encoders' answer for one prompt, with these states in place of the K."""
        states, varying, count = iter(drawn), iter(encoded.varying), self.settings.count

        def rebuilt(answer: Answer) -> Answer:
            if isinstance(answer, Tensor):
                if next(varying):
                    return next(states)
                return answer[:1] if answer.shape[:1] == (count,) else answer
            return type(answer)(map(rebuilt, answer)) if isinstance(answer, list | tuple) else answer

        return rebuilt(encoded.answer)

    def regulariser(self, encode: Encode, question: Mapping[str, Any]) -> tuple[Tensor, float]:
        """The orthogonality of a marked prompt's K encodings, and their spread as a share of what it was in the beginning."""
        encoded = self.encoded(encode, question)
        with torch.no_grad():
            share = float(encoded.distribution.spread() / self._began(encode, question).distribution.spread())
        return orthogonality(encoded.ends), share

    # the table of embeddings

    def _hook(self, name: str, encoder: nn.Module, tokenizer: Any) -> None:
        table: nn.Embedding = encoder.get_input_embeddings()  # type: ignore[operator]
        tokenizer.add_tokens([token for own in self.tokens for token in own])
        ids = tokenizer.convert_tokens_to_ids([token for own in self.tokens for token in own])
        first, count = ids[0], len(ids)
        if ids != list(range(first, first + count)):
            raise UserError(
                f"expected a tokenizer that takes new tokens, got {type(tokenizer).__name__}: it is not supported"
            )
        seen: list[Tensor] = []

        def before(module: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...] | None:
            seen.clear()
            soft = (args[0] >= first) & (args[0] < first + count)
            if self._active is None or not soft.any():
                return None
            if (soft.sum(1) != self.settings.tokens).any():
                raise self._no_room()
            seen.append(args[0])
            return (args[0].where(~soft, 0), *args[1:])

        def after(module: nn.Module, args: object, output: Tensor) -> Tensor | None:
            if not seen or self._active is None:
                return None
            ids = seen[0]
            rows = self._active[name].flatten(0, 1).to(output.dtype)
            soft = (ids >= first) & (ids < first + count)
            return torch.where(soft[..., None], rows[(ids - first).clamp(0, count - 1)], output)

        def done(module: nn.Module, args: object, output: Any) -> None:
            if seen and self._active is not None:
                at = (seen[0] == tokenizer.eos_token_id).int().argmax(1)
                states = output.last_hidden_state
                self._ends.append(states[torch.arange(len(at), device=states.device), at])
                seen.clear()

        for module in encoder.modules():  # a table may be there twice, with its weights tied
            if isinstance(module, nn.Embedding) and module.weight is table.weight:
                module.register_forward_pre_hook(before)
                module.register_forward_hook(after)
        encoder.register_forward_hook(done)

    def _no_room(self) -> UserError:
        return UserError(
            f"expected prompts that leave room for {self.settings.tokens} soft tokens, got one that a text encoder cuts before they "
            "end: shorten it, lower parameters.prompts.tokens, or set parameters.prompts.placement=before, which cuts the end of the "
            "text instead"
        )

    # files

    def write(self, directory: Path, values: Values, *, base: str) -> None:
        """The distribution, and each member as textual inversion that plain diffusers loads, where there is such a thing.

        With `start: plain` a member is no prompt by itself. Files of members have one key, the token's name, or, of a pipeline of two
        encoders, `clip_l` and `clip_g`, as is common for SDXL.
        """
        settings = self.settings
        tensors = {name: value.detach().float().cpu().contiguous() for name, value in values.items()}
        if settings.start == "plain":
            names = {name: name.replace("context", "start") for name in tensors}
            tensors |= {names[name]: value.cpu().contiguous() for name, value in self._start.items()}
        metadata = {"format": FORMAT, "model": base, **{n: str(v) for n, v in settings.model_dump().items()}}
        safetensors.torch.save_file(tensors, directory / FILE, metadata=metadata)
        if settings.start == "plain" or len(values) > 2:
            return
        (directory / "textual_inversion").mkdir()
        for member in range(settings.count):
            keys = ("clip_l", "clip_g") if len(values) == 2 else (f"<soft-{member:02d}>",)
            own = {
                key: values[n][member].detach().float().cpu().contiguous() for key, n in zip(keys, values, strict=True)
            }
            safetensors.torch.save_file(own, directory / "textual_inversion" / f"{member:02d}.safetensors")

    def load(self, directory: Path) -> None:
        """Read the distribution that `write` wrote.

        Raises:
            UserError: there is none, or one of another shape.
        """
        values = self.read(directory)
        with torch.no_grad():
            for name, parameter in self._parameters.items():
                parameter.copy_(values[name])

    def read(self, directory: Path) -> dict[str, Tensor]:
        """The values of a distribution that `write` wrote.

        Raises:
            UserError: there is none, or one of another shape.
        """
        try:
            found = safetensors.torch.load_file(directory / FILE)
        except (OSError, SafetensorError) as error:
            raise UserError(
                f"expected a distribution of prompts in {directory}, could not read it ({error})"
            ) from error
        wanted = {name: tuple(parameter.shape) for name, parameter in self._parameters.items()}
        shapes = {name: tuple(value.shape) for name, value in found.items() if name in wanted}
        if shapes != wanted:
            raise UserError(
                f"expected embeddings {wanted} in {directory / FILE}, got {shapes}: set parameters.prompts and model.path as they were"
            )
        device = next(iter(self._start.values())).device
        return {name: found[name].to(device) for name in wanted}


def _derived(label: int | None, number: int) -> int | None:
    """The label of a mixture's share: the first one's is the draw's own."""
    if label is None or not number:
        return label
    return torch_generator(seed=label, stage=Stage.PROMPT_DRAW, sample=number).initial_seed()


def _device_type(values: Values) -> str:
    return next(iter(values.values())).device.type


def _parts(pipeline: Any) -> dict[str, tuple[nn.Module, Any]]:
    """The text encoders by name, each with its tokenizer.

    Raises:
        UserError: one of them reads prompts in another way, or they are not there.
    """
    found = {}
    for name in sorted(name for name in pipeline.components if name.startswith(ENCODER)):
        encoder = getattr(pipeline, name)
        if encoder is None:
            continue
        if type(encoder).__name__ not in ENCODERS:
            raise UserError(
                f"expected text encoders of CLIP or T5 with parameters.kind=prompts, got {type(encoder).__name__} in "
                f"{type(pipeline).__name__}: set parameters.kind=lora"
            )
        found[name] = (encoder, getattr(pipeline, name.replace(ENCODER, "tokenizer")))
    if not found:
        raise UserError(
            f"expected text encoders with parameters.kind=prompts, {type(pipeline).__name__} has none here: set parameters.kind=lora"
        )
    return found


def _first_values(encoder: nn.Module, tokenizer: Any, settings: Settings, *, seed: int, number: int) -> Tensor:
    """(K, L, width): normal, as wide as the embeddings of the tokenizer's own tokens, around 0 or around the mean of words."""
    table = encoder.get_input_embeddings().weight.detach().float().cpu()  # type: ignore[operator]
    rows = table[: min(len(tokenizer), len(table))]
    shape = (settings.count, settings.tokens, table.shape[1])
    generator = torch_generator(seed=seed, stage=Stage.PARAMETERS, prompt=number)
    values = (settings.scale or float(rows.std())) * torch.randn(shape, generator=generator)
    if settings.words is None:
        return values
    ids = tokenizer(settings.words, add_special_tokens=False).input_ids
    return values + table[torch.tensor(ids)].mean(0)
