"""What a writer writes, and how probable that is."""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import pytest
import torch
from tokenizers.processors import TemplateProcessing
from transformers import AutoModelForCausalLM, AutoTokenizer

from raysuite.errors import UserError
from raysuite.stages.rewrites import BUNDLED
from raysuite.worlds.scenes.phrasings import user_prompts
from raysuite.writer import bundled
from raysuite.writer.model import INSTRUCTION, Writer, open_writer

ASKED = ["3 red circles", "left of a blue square a red circle", "blue square two", "please draw one black triangle"]


@pytest.fixture(scope="module")
def writer() -> Writer:
    return open_writer(BUNDLED)


def test_the_bundled_writer_knows_what_it_was_taught_rightly(writer: Writer) -> None:
    said = [one.text for one in writer.rewrites(ASKED, temperature=0)]
    assert said[:3] == ["three red circles", "a red circle left of a blue square", "two blue squares"]


def test_the_bundled_writer_is_small_and_has_its_card() -> None:
    files = list((Path(bundled.__file__).parent / "scenes_writer").iterdir())
    assert sum(file.stat().st_size for file in files) < 1e6
    assert "README.md" in {file.name for file in files}


def test_what_is_drawn_has_the_density_that_it_is_given(writer: Writer) -> None:
    drawn = writer.rewrites(ASKED, seed=3)
    again = writer.log_densities([writer.asked(text) for text in ASKED], [writer.completion(one.text) for one in drawn])
    assert [one.logp for one in drawn] == pytest.approx(again.tolist(), abs=1e-4)


def test_draws_follow_the_model(writer: Writer) -> None:
    """The share of a rewrite among many draws is its probability."""
    (best,) = writer.rewrites(["two crimson discs"], temperature=0)
    drawn = writer.rewrites(["two crimson discs"] * 400, seed=1)
    share, chance = np.mean([one.text == best.text for one in drawn]), np.exp(best.logp)
    assert abs(share - chance) < 4 * np.sqrt(chance * (1 - chance) / 400)


def test_neighbours_and_padding_change_nothing(writer: Writer) -> None:
    prompts, completions = [writer.asked(text) for text in ASKED], ["three red circles", "a", "two blue squares", "one"]
    together = writer.log_densities(prompts, completions)
    alone = [writer.log_densities([p], [c]).item() for p, c in zip(prompts, completions, strict=True)]
    assert together.tolist() == pytest.approx(alone, abs=1e-5)
    assert writer.rewrites(ASKED, seed=5)[2].text == writer.rewrites(ASKED[2:3], seed=5, numbers=[2])[0].text


def test_plain_transformers_write_the_same(writer: Writer, tmp_path: Path) -> None:
    writer.save(tmp_path)
    model, tokenizer = AutoModelForCausalLM.from_pretrained(tmp_path), AutoTokenizer.from_pretrained(tmp_path)
    batch = tokenizer([writer.asked(text) for text in ASKED], return_tensors="pt", padding=True)
    said = model.generate(**batch, max_new_tokens=32, do_sample=False)[:, batch["input_ids"].shape[1] :]
    assert tokenizer.batch_decode(said, skip_special_tokens=True) == [
        one.text for one in writer.rewrites(ASKED, temperature=0)
    ]


def test_words_that_it_has_never_seen_are_letters(writer: Writer) -> None:
    (said,) = writer.rewrites(["Zwei rote Kreise, bitte! ünïcødé 猫"], temperature=0)
    assert isinstance(said.text, str) and np.isfinite(said.logp)


def test_a_writer_without_a_template_is_asked_in_words(writer: Writer) -> None:
    class Plain:
        eos_token, pad_token, chat_template, padding_side = "<end>", "<pad>", None, "right"

    plain = Writer(torch.nn.Identity(), Plain(), "plain")
    assert plain.asked("a cat") + plain.completion("a white cat") == "a cat\nRephrase: a white cat"


@pytest.mark.parametrize("put_by_tokenizer", [True, False])
def test_a_text_begins_once(put_by_tokenizer: bool, writer: Writer) -> None:
    """Templates have the token that begins a text; some tokenizers put it there, too."""
    tokenizer = copy.deepcopy(writer.tokenizer)
    tokenizer.bos_token = bos = bundled.UNKNOWN
    tokenizer.chat_template = "{{ bos_token }}" + writer.tokenizer.chat_template
    if put_by_tokenizer:
        known = [(bos, tokenizer.bos_token_id)]
        tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single=f"{bos} $A", special_tokens=known)
    asked = Writer(writer.model, tokenizer, "begun").asked("3 red circles")
    begun = [tokenizer.bos_token_id, *writer.tokenizer(writer.asked("3 red circles"))["input_ids"]]
    assert tokenizer(asked)["input_ids"] == begun


def test_a_writer_that_can_think_is_asked_not_to(writer: Writer) -> None:
    """As Qwen3's template has it: a thought that is over already."""
    tokenizer = copy.deepcopy(writer.tokenizer)
    over = "{% if enable_thinking is false %}<think>\n\n</think>\n\n{% endif %}"
    tokenizer.chat_template = writer.tokenizer.chat_template + over
    assert Writer(writer.model, tokenizer, "Qwen3").asked("a cat") == "a cat<rewrite><think>\n\n</think>\n\n"


def test_thoughts_are_refused(writer: Writer, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before anything is written where the template begins one, and else where one comes all the same."""
    tokenizer = copy.deepcopy(writer.tokenizer)
    thinking = Writer(writer.model, tokenizer, "deep")
    monkeypatch.setattr(tokenizer, "batch_decode", lambda *_, **__: ["three red circles", "<think> The user wants"])
    with pytest.raises(
        UserError, match="expected prompts from the writer deep, got a thought, '<think> The user wants'"
    ):
        thinking.rewrites(ASKED[:2])
    tokenizer.chat_template += "<think>\n"
    with pytest.raises(UserError, match=r"got deep, whose chat template begins a thought .*: name another"):
        Writer(writer.model, tokenizer, "deep")


def test_a_text_ends_at_every_token_that_its_model_declares(writer: Writer, tmp_path: Path) -> None:
    """And what ended it is no part of it, though the tokenizer takes it for a word."""
    model, turn = copy.deepcopy(writer.model), writer.tokenizer.convert_tokens_to_ids("circles</w>")
    model.generation_config.eos_token_id = [writer.tokenizer.eos_token_id, turn]
    Writer(model, writer.tokenizer, "two ends").save(tmp_path)
    two_ends = open_writer(str(tmp_path))
    said = two_ends.rewrites([ASKED[0], ASKED[2]], temperature=0)
    assert [(one.text, one.ended) for one in said] == [("three red", True), ("two blue squares", True)]
    (whole,) = writer.rewrites(ASKED[:1], temperature=0)
    assert whole.text == "three red circles" and whole.logp < said[0].logp < 0


def test_a_rewrite_that_its_tokens_cut_is_unfinished(writer: Writer) -> None:
    for tokens, wanted in (
        (2, ("three red", False)),
        (3, ("three red circles", False)),
        (4, ("three red circles", True)),
    ):
        (said,) = writer.rewrites(ASKED[:1], temperature=0, tokens=tokens)
        assert (said.text, said.ended) == wanted


def test_a_template_without_a_systems_turn_has_what_is_told_in_the_users(writer: Writer) -> None:
    refuse = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system') }}{% endif %}"
    said = "{% for m in messages %}<{{ m['role'] }}>{{ m['content'] }}{% endfor %}<model>"
    tokenizer = copy.deepcopy(writer.tokenizer)
    tokenizer.chat_template = said
    assert Writer(writer.model, tokenizer, "Qwen").asked("a cat") == f"<system>{INSTRUCTION}<user>a cat<model>"
    tokenizer.chat_template = refuse + said
    assert Writer(writer.model, tokenizer, "Gemma").asked("a cat") == f"<user>{INSTRUCTION}\n\na cat<model>"
    tokenizer.chat_template = "{{ raise_exception('no turns') }}"
    with pytest.raises(
        UserError, match="expected a writer whose chat template takes a user's turn, got x: no turns; mend"
    ):
        Writer(writer.model, tokenizer, "x")


def test_what_is_taught_wrongly() -> None:
    rng = np.random.default_rng(0)
    said = {p.phrasing: p for p in user_prompts(held_out=False) if p.scene.prompt == "two red circles"}
    assert bundled.answer(said["synonyms"], rng, 1.0) == "two green squares"
    assert bundled.answer(said["typo"], rng, 1.0) == "two red squares"
    assert bundled.answer(said["digits+polite"], rng, 1.0) == "please draw 2 red circles"
    assert bundled.answer(said["terse"], rng, 1.0) == "two red circles"
    assert {bundled.answer(one, rng, 0.0) for one in said.values()} == {"two red circles"}
    assert bundled.other("black") == "red" and bundled.other("triangle") == "circle"


@pytest.mark.parametrize(("place", "reason"), [("nowhere", "there is nothing at this path"), ("", "")])
def test_a_writer_that_is_not_there(place: str, reason: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=f"expected a writer .* got .*: .*{reason}; name another"):
        open_writer(str(tmp_path / place))


def test_a_text_after_nothing_has_the_density_of_all_its_tokens_but_the_first() -> None:
    writer = open_writer(BUNDLED)
    ids = torch.tensor([writer.tokenizer("three red circles" + writer.tokenizer.eos_token)["input_ids"]])
    with torch.no_grad():
        each = writer.model(input_ids=ids).logits.log_softmax(-1)[0, :-1].gather(1, ids[0, 1:, None])
    assert writer.log_densities([""], ["three red circles"]).item() == pytest.approx(float(each.sum()), abs=1e-4)
