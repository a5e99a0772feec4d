"""Off-line preferences on disk: rankings as latents, ready to learn from. Made by `raysuite encode` and `raysuite pairs`.

A set is a directory of numbered blocks; each is written whole or not at all, so that making one goes on where it was
stopped. docs/architecture.md lists the files.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import safetensors
import safetensors.torch
import torch
from safetensors import SafetensorError

from raysuite.config import Model, RunConfig
from raysuite.errors import UserError, in_a_line
from raysuite.families import encoder_arguments, encoder_digests
from raysuite.families.text import TextStates, pack, unpack
from raysuite.places import remove_unfinished, replacing
from raysuite.stages.files import is_held, provenance, read_json, refuse_occupied, write_json
from raysuite.types import Preferences

FORMAT = 3
MAKE_ONE = "make one with `raysuite encode` or `raysuite pairs`"
MANIFEST, KIND = "manifest.json", "preference set"


def check_place(directory: Path) -> None:
    """Before the model is opened, of which a set holds the digests.

    Raises:
        UserError: the directory holds something else than a set.
    """
    refuse_occupied(directory, MANIFEST, KIND)


def claim(directory: Path, identity: Mapping[str, Any], command: Sequence[str]) -> None:
    """Make `directory` the set of this identity, or find that it already is.

    Args:
        directory: where to.
        identity: all that decides what the blocks hold; `encoders` is `families.encoder_digests` of the model, `steps` the number of
            steps of whole trajectories, or null where only clean latents are kept.
        command: for the provenance.

    Raises:
        UserError: the directory holds something else.
    """
    wanted = {"format": FORMAT, **json.loads(json.dumps(identity))}
    if is_held(directory, MANIFEST, wanted, KIND, _identity, begun=["blocks/[0-9]*"]):
        remove_unfinished(directory)
        return
    write_json(directory / MANIFEST, {**wanted, "provenance": provenance(command)})


def _identity(manifest: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in manifest.items() if name != "provenance"}


def finished_blocks(directory: Path) -> set[int]:
    """Numbers of the blocks of which both files are there."""
    tables, tensors = ((directory / "blocks").glob(f"[0-9]*.{kind}") for kind in ("parquet", "safetensors"))
    return {int(path.stem) for path in tables} & {int(path.stem) for path in tensors}


@dataclass(frozen=True, kw_only=True)
class Reject:
    """A row of the source that is no preference, or a picture of one that cannot be used, and why."""

    row: int
    reason: str
    image: int | None = None
    """Place of the picture in its row; None where it is the row."""


def write_block(
    directory: Path,
    number: int,
    rankings: Preferences,
    *,
    rows_R: Sequence[int],
    texts: Mapping[str, TextStates],
    read: int,
    ties: int = 0,
    rejects: Sequence[Reject] = (),
    content: str = "",
) -> None:
    """Write one block; its table comes last, and says that the block is finished.

    Args:
        directory: of the set.
        number: of the block.
        rankings: what it holds, possibly nothing.
        rows_R: number of each ranking in the source.
        texts: `Policy.text_states` of every prompt; empty where the family has none.
        read: rows of the source that the block comes from.
        ties: pairs between which there is no preference.
        rejects: rows that were set aside, and pictures.
        content: a digest of what the source said, where it may say something else the next time.
    """
    tensors, answers = pack({question: answer for states in texts.values() for question, answer in states.items()})
    said = {"answers": answers, "questions": {prompt: list(states) for prompt, states in texts.items()}}
    arrays = {"latents": rankings.latents_RMK.contiguous(), **tensors}
    with replacing(directory / "blocks" / f"{number:06d}.safetensors") as temporary:
        safetensors.torch.save_file(arrays, temporary, metadata={"text": json.dumps(said)})
    with replacing(directory / "rejects" / f"{number:06d}.jsonl") as temporary:
        temporary.write_text("".join(json.dumps(vars(reject)) + "\n" for reject in rejects))
    columns = {
        "row": pa.array(rows_R, pa.int64()),
        "prompt": pa.array(rankings.prompts_R, pa.string()),
    }
    learned = hashlib.sha256(arrays["latents"].reshape(-1).view(torch.uint8).numpy().data).hexdigest()
    counts = {"read": str(read), "ties": str(ties), "content": content, "latents": learned}
    with replacing(directory / "blocks" / f"{number:06d}.parquet") as temporary:
        pq.write_table(pa.table(columns).replace_schema_metadata(counts), temporary)


@contextmanager
def _reading(directory: Path, number: int, kind: str = "parquet") -> Iterator[Path]:
    """A file of a block.

    Raises:
        UserError: it is not there, or damaged.
    """
    file = directory / "blocks" / f"{number:06d}.{kind}"
    try:
        yield file
    except (OSError, pa.ArrowInvalid, SafetensorError) as error:
        raise UserError(
            f"expected {file} of a preference set, it is not there or damaged ({in_a_line(error)}): copy the set from where it is "
            "whole, or remove that file and repeat the command that made the set"
        ) from error


def _facts(directory: Path, number: int) -> dict[str, str]:
    """What is said of a block beside its rows."""
    with _reading(directory, number) as file:
        metadata = pq.read_schema(file).metadata or {}
    return {name.decode(): value.decode() for name, value in metadata.items()}


def content_of(directory: Path, number: int) -> str | None:
    """The digest that a block was written with; None where it cannot be read."""
    try:
        return _facts(directory, number)["content"]
    except UserError:
        return None


def forget(directory: Path, numbers: Iterable[int]) -> None:
    """Take blocks out whose source has changed; the set is then unfinished."""
    for number in numbers:
        (directory / "summary.json").unlink(missing_ok=True)
        for file in (f"blocks/{number:06d}.parquet", f"blocks/{number:06d}.safetensors", f"rejects/{number:06d}.jsonl"):
            (directory / file).unlink(missing_ok=True)


def summarise(directory: Path) -> dict[str, Any]:
    """Count what all blocks hold and write summary.json, which says that the set is finished.

    Raises:
        UserError: not one row was a preference.
    """
    totals, rejected, contents = Counter[str](), Counter[str](), hashlib.sha256()
    for number in sorted(finished_blocks(directory)):
        facts = _facts(directory, number)
        totals += Counter({name: int(facts[name]) for name in ("read", "ties")})
        for digest in ("content", "latents"):
            contents.update(facts[digest].encode())
        with _reading(directory, number) as file:
            totals["rankings"] += pq.read_metadata(file).num_rows
        lines = (directory / "rejects" / f"{number:06d}.jsonl").read_text().splitlines()
        rejected.update(json.loads(line)["reason"] for line in lines)
        totals["blocks"] += 1
    summary = {
        "blocks": totals["blocks"],
        "read": totals["read"],
        "rankings": totals["rankings"],
        "ties": totals["ties"],
        "rejects": dict(sorted(rejected.items())),
        "content": contents.hexdigest(),
    }
    if not totals["rankings"]:
        raise UserError(
            f"expected at least one usable preference, found none in {totals['read']} rows ({totals['ties']} ties, set aside: "
            f"{summary['rejects'] or 'none'}): see {directory / 'rejects'}"
        )
    write_json(directory / "summary.json", summary)
    return summary


def open_set(config: RunConfig) -> PreferenceSet:
    """The set that a run learns from, looked at before the run begins: what is wrong with it costs no start-up.

    Raises:
        UserError: there is none, it is not finished, or it is not what the run's objective and model take.
    """
    assert config.preferences.source is not None
    found = PreferenceSet(Path(config.preferences.source))
    found.check(config)
    found.check_encoders(encoder_digests(config.model))
    return found


def sets_of(
    config: RunConfig, latent_shape: Sequence[int] | None = None
) -> tuple[PreferenceSet | None, PreferenceSet | None]:
    """The set that a run learns from, and the one that is held out; None for what it does not name.

    Raises:
        UserError: one is not there, is not finished, or does not fit the run's objective, or the model's latents where their shape is
            given.
    """
    named = (config.preferences.source, config.preferences.held_out)
    source, held_out = (None if place is None else PreferenceSet(Path(place)) for place in named)
    for found in (source, held_out):
        if found is not None:
            found.check(config, latent_shape)
    return source, held_out


class PreferenceSet:
    """A finished set, read a few rankings at a time."""

    def __init__(self, directory: Path) -> None:
        """Open a set.

        Raises:
            UserError: there is none, or it is not finished, not whole, or not readable by this version.
        """
        self.directory = directory
        if not (directory / MANIFEST).is_file():
            found = f"a file: encode it (`raysuite encode {directory} --model MODEL --out DIR`), and name DIR"
            if not directory.is_file():
                there = directory.exists()
                found = f"{'something else' if there else 'none'}: {MAKE_ONE} --out {'DIR' if there else directory}"
            raise UserError(f"expected a preference set at {directory}, found {found}")
        if not (directory / "summary.json").is_file():
            raise UserError(
                f"expected a finished preference set at {directory}, its summary.json is missing: repeat the command that "
                "began it, it goes on where it was stopped"
            )
        self.manifest: dict[str, Any] = read_json(directory / MANIFEST, KIND)
        if self.manifest["format"] != FORMAT:
            raise UserError(f"expected format {FORMAT} in {directory}, got {self.manifest['format']}: make it again")
        self._tables: dict[int, pa.Table] = {}
        for number in sorted(finished_blocks(directory)):
            with _reading(directory, number) as file:
                self._tables[number] = pq.read_table(file, columns=["prompt"])
        self._ends = np.cumsum([len(table) for table in self._tables.values()])
        told, rankings = read_json(directory / "summary.json", KIND), sum(map(len, self._tables.values()))
        if (len(self._tables), rankings) != (told["blocks"], told["rankings"]):
            raise UserError(
                f"expected {told['rankings']} rankings in {told['blocks']} blocks in {directory}, as its summary.json says, found "
                f"{rankings} in {len(self._tables)}: copy it from where it is whole, or repeat the command that made it"
            )

    def __len__(self) -> int:
        return int(self._ends[-1])

    def check(self, config: RunConfig, latent_shape: Sequence[int] | None = None) -> None:
        """Refuse a run that cannot learn from this set.

        Raises:
            UserError: its rankings, latents, trajectories or text states are not what the run's objective and model take.
        """
        of, name = self.manifest, config.objective["name"]
        if of["members"] != config.preferences.members:
            raise UserError(
                f"expected rankings of preferences.members={config.preferences.members} in {self.directory}, got "
                f"{of['members']}: set preferences.members={of['members']}"
            )
        if latent_shape is not None and list(latent_shape) != of["latent_shape"]:
            raise UserError(
                f"expected latents of shape {list(latent_shape)} in {self.directory}, got {of['latent_shape']}: encode it for "
                f"this model and size ({of['model']} encoded it)"
            )
        if config.cluster.encode_once:  # who learns has no text encoders, and takes the states as they are
            self._check_arguments(config.model)
        if config.built_objective.process == "reverse":
            if of["steps"] is None:
                raise UserError(
                    f"expected trajectories in {self.directory} for {name}, which scores steps, got clean latents: make a set "
                    "with `raysuite pairs --trajectories`, or train diffusion_dpo, dspo, cal_dpo or sft"
                )
            if of["sampler"] != config.sampler.model_dump(mode="json"):
                raise UserError(
                    f"expected trajectories of this run's sampler in {self.directory}, they were drawn with {of['sampler']}: "
                    "set the same sampler"
                )

    def _check_arguments(self, model: Model) -> None:
        of = self.manifest["source"]["model"]["arguments"]
        own, theirs = encoder_arguments(model), encoder_arguments(model.model_copy(update={"arguments": of}))
        for name in {**theirs, **own}:
            if own.get(name) != theirs.get(name):
                raise UserError(
                    f"expected prompts that were read with {name}={own.get(name)} in {self.directory}, as model.arguments has it, got "
                    f"{theirs.get(name)}: make the set with the run's model.arguments, or set cluster.encode_once=false"
                )

    def check_encoders(self, digests: Mapping[str, str]) -> None:
        """Refuse a model that sees other pictures in the same latents, or reads other words in the same states.

        Args:
            digests: `families.encoder_digests` of the run's model.

        Raises:
            UserError: the set was encoded by another VAE, text encoder or tokenizer.
        """
        own: dict[str, str] = self.manifest["encoders"]
        others = [name for name in sorted({*own, *digests}) if own.get(name) != digests.get(name)]
        if others:
            raise UserError(
                f"expected latents and text states of the run's own model in {self.directory}, {self.manifest['model']} encoded "
                f"them, with another {', '.join(others)}: encode the set again with the run's model.path as --model, or set "
                f"model.path={self.manifest['model']}"
            )

    def rows(self, numbers: Sequence[int]) -> Preferences:
        """The rankings of these numbers, in this order."""
        latents, prompts = [], []
        for block, row in map(self._place, numbers):
            with self._open(block) as stored:
                latents.append(stored.get_slice("latents")[row : row + 1])
            prompts.append(self._tables[block]["prompt"][row].as_py())
        return Preferences(latents_RMK=torch.cat(latents), prompts_R=tuple(prompts))

    @cached_property
    def units(self) -> list[list[int]]:
        """Numbers of the rankings of one prompt, together: they may share pictures, and no two units do.

        Pictures of `raysuite pairs` are of one block, where a prompt that comes again has others. In other sets they may come
        again wherever their prompt does.
        """
        drawn, found = self.manifest["source"].get("kind") == "rollouts", defaultdict(list)
        prompts = ((block, prompt) for block, table in self._tables.items() for prompt in table["prompt"].to_pylist())
        for number, (block, prompt) in enumerate(prompts):
            found[block if drawn else None, prompt].append(number)
        return list(found.values())

    def texts(self, numbers: Sequence[int]) -> TextStates:
        """What the text encoders made of the prompts of these rankings; empty without them."""
        found: dict[str, Any] = {}
        for block, row in map(self._place, numbers):
            with self._open(block) as stored:
                said = json.loads((stored.metadata() or {}).get("text", "{}"))
                questions = said.get("questions", {}).get(self._tables[block]["prompt"][row].as_py(), [])
                missing = {question: said["answers"][question] for question in questions if question not in found}
                found |= unpack(missing, stored.get_tensor)
        return found

    def _place(self, number: int) -> tuple[int, int]:
        which = int(np.searchsorted(self._ends, number, side="right"))
        before = int(self._ends[which - 1]) if which else 0
        return list(self._tables)[which], number - before

    @contextmanager
    def _open(self, block: int) -> Iterator[Any]:
        with (
            _reading(self.directory, block, "safetensors") as file,
            safetensors.safe_open(file, framework="pt") as stored,
        ):
            yield stored
