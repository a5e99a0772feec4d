"""CoBSAT as published: its files, its records, its variants, and judges that read pictures."""

from __future__ import annotations

import json
import re
import shutil
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, cast

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from raysuite import cli
from raysuite.errors import UserError
from raysuite.in_context import chat, command, evaluation, policies
from raysuite.in_context.chat import HttpChat, TransformersChat, Unanswered
from raysuite.in_context.evaluation import Plan
from raysuite.in_context.judges import Clip, MultipleChoice, option_of
from raysuite.in_context.official import PUBLISHED, THEMES, OfficialWorld, records
from raysuite.in_context.policies import Reader, Row, interleaved_rows, published_rows
from raysuite.in_context.tasks import Cell, Task, Variant
from raysuite.results.in_context.numbers import corrected, factors
from raysuite.results.in_context.read import read_in_context
from raysuite.results.in_context.report import in_context_summary, write_in_context_report
from raysuite.rewards import endpoints
from raysuite.rewards.clip import ClipScore
from raysuite.rewards.endpoints import Part, Refused
from tests.in_context.doubles import Knowing, fabricate
from tests.in_context.test_evaluation import silent
from tests.results.pages import check_self_contained
from tests.rewards.networks import save_clip


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return fabricate(tmp_path_factory.mktemp("cobsat"))


@pytest.fixture(scope="module")
def world(data: Path) -> OfficialWorld:
    return OfficialWorld(data)


def test_the_records_are_the_published_ones() -> None:
    """Their digest is checked as they are made; these are the first and the last of the released file."""
    found = records()
    assert len(found) == 1000
    assert found[0] == ((8, 7, 5, 9, 2, 3, 6, 1, 4, 0), (7, 6, 3, 4, 1, 0, 2, 5, 9, 8))
    assert found[1] == ((7, 4, 3, 6, 2, 1, 0, 8, 5, 9), (3, 4, 8, 1, 9, 2, 7, 6, 5, 0))


def test_a_file_of_records_is_held_against_them(data: Path, tmp_path: Path) -> None:
    shutil.copytree(data, tmp_path / "datasets")
    rows = [{"x_list": list(texts), "theta_list": list(latents)} for texts, latents in records()]
    (tmp_path / PUBLISHED).write_text(json.dumps(rows))
    OfficialWorld(tmp_path)
    rows[3]["x_list"].reverse()
    (tmp_path / PUBLISHED).write_text(json.dumps(rows))
    with pytest.raises(UserError, match="expected the 1,000 published index records"):
        OfficialWorld(tmp_path)


@pytest.mark.parametrize("shots", [2, 4, 6, 8])
@pytest.mark.parametrize("number", range(10))
def test_an_episode_is_read_off_its_record(world: OfficialWorld, number: int, shots: int) -> None:
    task = world.tasks[number]
    texts, latents = records()[17]
    episode = world.episode(task, shots, 17)
    assert task.latent(episode.cell) == task.latents[latents[shots + 1]]
    asked = [task.requests[texts[place]] for place in range(shots + 1)]
    assert [task.request(demo.cell) for demo in episode.demos] + [episode.request] == asked
    assert {task.latent(demo.cell) for demo in episode.demos} == {task.latent(episode.cell)}
    for demo in episode.demos:
        assert np.array_equal(demo.picture, world.picture(task.theme, demo.cell, np.random.default_rng(0)))
        assert world.meaning(task.theme, demo.caption) == demo.cell


def test_the_ten_tasks() -> None:
    assert list(THEMES) == ["Color", "Background", "Style", "Action", "Texture"]
    for _, details, _, objects in THEMES.values():
        assert len({*details}) == len({*objects}) == 10


def test_texts_say_wireframe_and_latents_that_are_written_keep_the_files_word(world: OfficialWorld) -> None:
    """Style-I names details in texts; Style-II writes them as latents."""
    style, styles = world.tasks[4], world.tasks[5]
    index = next(n for n, (texts, _) in enumerate(records()) if style.requests[texts[0]] == "3d")
    assert world.episode(style, 2, index).demos[0].text == "wireframe"
    index = next(n for n, (_, latents) in enumerate(records()) if styles.latents[latents[3]] == "3d")
    assert world.episode(styles, 2, index, "exact").query.endswith(" 3d")


def test_misleading_latents_are_those_before_the_true_one(world: OfficialWorld) -> None:
    task = world.tasks[1]
    _, latents = records()[5]
    episode = world.episode(task, 4, 5, "misleading")
    said = [text.split()[-1] for text in [*(demo.text for demo in episode.demos), episode.query]]
    assert said == [task.latents[number] for number in latents[:5]]
    assert task.latent(episode.cell) == task.latents[latents[5]] not in said


def test_paired_episodes_ask_the_same_at_all_shots(data: Path, world: OfficialWorld) -> None:
    paired, task = OfficialWorld(data, paired=True), world.tasks[0]
    cells = {paired.episode(task, shots, 3).cell for shots in (2, 4, 6, 8)}
    assert cells == {world.episode(task, 8, 3).cell}
    assert len({world.episode(task, shots, 3).cell for shots in (2, 4, 6, 8)}) == 4


@pytest.mark.parametrize(
    ("spoil", "sentence"),
    [
        (
            lambda d: (d / "color_hat" / "red_hat.jpg").unlink(),
            "expected all 500 pictures of CoBSAT, found no .*red_hat.jpg",
        ),
        (lambda d: (d / "style_object.csv").unlink(), "a table of images and captions in .*style_object.csv"),
        (
            lambda d: (d / "action_animal.csv").write_text("image,caption\nfly_cow.jpg,\n"),
            "a caption of swim_zebra.jpg",
        ),
        (lambda d: (d / "action_animal.csv").write_text("a,b\n1,2\n"), "could not read it"),
    ],
)
def test_what_is_missing_is_named(data: Path, tmp_path: Path, spoil: Callable[[Path], Any], sentence: str) -> None:
    shutil.copytree(data, tmp_path / "data")
    spoil(tmp_path / "data")
    with pytest.raises(UserError, match=sentence):
        OfficialWorld(tmp_path / "data")


def test_other_descriptions_mean_the_options_that_they_name(world: OfficialWorld) -> None:
    theme = world.tasks[4].theme
    assert world.meaning(theme, "A wireframe drawing of a Hat.") == ("3d", "hat")
    assert world.meaning(theme, "an old sketch of a cup") == (None, "cup")
    assert world.meaning(theme, "a that") == (None, None)


# judges


@pytest.mark.parametrize(
    ("reply", "option"),
    [
        ("10", "apple"),
        ("option 3.", "cup"),
        ("(3) cup", "cup"),
        ("A CUP!", "cup"),
        ("1 or 2", None),
        ("12", None),
        ("0", None),
        ("", None),
        ("3: hat", None),
        ("a hat and a cup", None),
        ("that", None),
        ("-", None),
    ],
)
def test_a_reply_names_exactly_one_option_or_none(reply: str, option: str | None) -> None:
    assert option_of(THEMES["Color"][3], reply) == option


def test_options_come_in_drawn_orders_which_do_not_matter_to_a_reader(world: OfficialWorld) -> None:
    knowing, theme = Knowing(), world.tasks[0].theme
    judge = MultipleChoice(knowing, seed=0)
    cell = theme.cells[37]
    picture = world.picture(theme, cell, np.random.default_rng(0))
    readings = judge([theme] * 8, [picture] * 8, range(8))
    assert {reading.judgement for reading in readings} == {cell}
    texts = [asked[1] for asked in knowing.asked]
    assert len({*texts}) == len(texts) == 16
    assert MultipleChoice(Knowing(), seed=0)([theme], [picture], [3]) == [readings[3]]


def test_clip_takes_the_nearest_word(world: OfficialWorld, tmp_path: Path) -> None:
    model = str(save_clip(tmp_path / "clip"))
    theme = world.tasks[0].theme
    picture = np.random.default_rng(0).integers(0, 256, (40, 40, 3)).astype(np.uint8)
    ((judgement, _, _),) = Clip(model)([theme], [picture], [0])
    score = ClipScore(model)
    for options, found in ((theme.details, judgement.detail), (theme.objects, judgement.object)):
        scores = score(np.stack([picture] * 10), options, [{}] * 10)
        assert options[int(scores.argmax())] == found


def test_clip_encodes_the_words_of_a_side_once(
    world: OfficialWorld, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []
    features = ClipScore.text_features

    def counted(self: ClipScore, texts: Sequence[str]) -> Any:
        asked.append(list(texts))
        return features(self, texts)

    monkeypatch.setattr(ClipScore, "text_features", counted)
    theme = world.tasks[0].theme
    pictures = [np.full((8, 8, 3), grey, np.uint8) for grey in (0, 100, 200)]
    assert len(Clip(str(save_clip(tmp_path / "clip")))([theme] * 3, pictures, range(3))) == 3
    assert asked == [[*theme.details], [*theme.objects]]


class Server:
    """Chat completions with answers that were laid out, and what was asked."""

    def __init__(self, answers: Sequence[tuple[int, bytes]]) -> None:
        self.answers, self.asked, self.keys = list(answers), [], []
        owner = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                owner.asked.append((self.path, json.loads(self.rfile.read(int(self.headers["Content-Length"])))))
                owner.keys.append(self.headers.get("Authorization"))
                status, body = owner.answers.pop(0)
                self.send_response(status)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, format: str, *arguments: Any) -> None:
                """Nothing."""

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}/v1"

    @contextmanager
    def running(self) -> Iterator[None]:
        thread = threading.Thread(target=self.server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield
        finally:
            self.server.shutdown()
            thread.join()
            self.server.server_close()


def said(text: str | None) -> tuple[int, bytes]:
    return 200, json.dumps({"choices": [{"message": {"content": text}}]}).encode()


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(endpoints, "FIRST_WAIT", 0.0)


def test_a_server_is_asked_in_order_and_again_where_that_may_help(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(chat.KEY, "secret")
    server = Server([(503, b""), (429, b""), said("4"), said(None)])
    parts: list[Part] = ["one", np.zeros((2, 2, 3), np.uint8), "two"]
    with server.running():
        http = HttpChat(server.url, "model")
        assert [http(parts), http(parts)] == ["4", ""]
    path, asked = server.asked[2]
    assert path == "/v1/chat/completions" and asked["model"] == "model" and asked["temperature"] == 0
    content = asked["messages"][0]["content"]
    assert [part["type"] for part in content] == ["text", "image_url", "text"]
    assert content[0]["text"] == "one" and content[1]["image_url"]["url"].startswith("data:image/png;base64,iVBOR")
    assert {*server.keys} == {"Bearer secret"} and "secret" not in json.dumps(http.settings())


@pytest.mark.parametrize(
    ("answers", "sentence"),
    [
        ([(401, b"")], "got status 401: mend what is asked, its key"),
        ([(200, b"hello")], "is it an endpoint for chats"),
        ([(500, b"")] * 2, "got status 500, 2 times in a row"),
    ],
)
def test_a_server_that_cannot_be_asked_is_a_sentence_and_no_answer(
    answers: list[tuple[int, bytes]], sentence: str
) -> None:
    server = Server(answers)
    with server.running(), pytest.raises(UserError, match=sentence):
        HttpChat(server.url, "model", retries=1)(["?"])


def test_nobody_there_and_a_key_that_could_be_read_are_sentences(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match="could not ask for it"):
        HttpChat("http://127.0.0.1:9/v1", "model", retries=0)(["?"])
    with pytest.raises(UserError, match="expected a url such as"):
        HttpChat("localhost", "model")
    monkeypatch.setenv(chat.KEY, "secret")
    with pytest.raises(UserError, match="expected https:// in the url of the model that reads pictures") as raised:
        HttpChat("http://example.invalid/v1", "model")(["?"])
    assert "secret" not in str(raised.value)


def save_llava(directory: Path) -> Path:
    """A random LLaVA whose tokens are words."""
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import (
        CLIPImageProcessor,
        CLIPVisionConfig,
        LlamaConfig,
        LlavaConfig,
        LlavaForConditionalGeneration,
        LlavaProcessor,
        PreTrainedTokenizerFast,
    )

    words = ["<unk>", "<pad>", "<s>", "</s>", "<image>", *"0123456789", "first", "second"]
    known = Tokenizer(models.WordLevel({word: n for n, word in enumerate(words)}, unk_token="<unk>"))
    known.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=known,
        unk_token="<unk>",
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        additional_special_tokens=["<image>"],
    )
    each = "{% if c['type'] == 'image' %}<image> {% else %}{{ c['text'] }} {% endif %}"
    processor = LlavaProcessor(
        image_processor=CLIPImageProcessor(size={"shortest_edge": 16}, crop_size={"height": 16, "width": 16}),
        tokenizer=tokenizer,
        patch_size=8,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=f"{{% for m in messages %}}{{% for c in m['content'] %}}{each}{{% endfor %}}{{% endfor %}}",
    )
    shape = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        LlavaForConditionalGeneration(
            LlavaConfig(
                vision_config=CLIPVisionConfig(**shape, image_size=16, patch_size=8),
                text_config=LlamaConfig(**shape, vocab_size=len(words), pad_token_id=1, bos_token_id=2, eos_token_id=3),
                image_token_index=4,
            )
        ).save_pretrained(directory)
    processor.save_pretrained(directory)
    return directory


def test_a_model_of_transformers_is_given_texts_and_pictures_in_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Four tokens stand where a picture is, between the texts around it; the reply is what follows."""
    known = TransformersChat(str(save_llava(tmp_path)), precision="float32")
    seen = {}

    def generate(**asked: Any) -> Any:
        seen.update(asked)
        import torch

        return torch.cat([asked["input_ids"], torch.tensor([[5 + 7]])], dim=1)

    monkeypatch.setattr(known._network, "generate", generate)
    dark, light = np.zeros((20, 30, 3), np.uint8), np.full((30, 20, 3), 255, np.uint8)
    assert known(["first", dark, "second", light, "3"]) == "7"
    assert seen["input_ids"].tolist() == [[15, 4, 4, 4, 4, 16, 4, 4, 4, 4, 8]]
    assert seen["pixel_values"][0].max() < seen["pixel_values"][1].min()
    assert seen["do_sample"] is False
    monkeypatch.undo()
    assert known([dark, "1"]) == known([dark, "1"])


def test_a_package_that_qwen_wants_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("transformers.utils.is_torchvision_available", lambda: False)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "qwen2_5_vl"}))
    with pytest.raises(UserError, match=r"expected torchvision for .*, whose processor uses it, found none"):
        TransformersChat(str(tmp_path))


def test_a_picture_that_a_cell_has_alone_is_judged_once(data: Path, tmp_path: Path) -> None:
    world = OfficialWorld(data)
    plan = Plan(world, MultipleChoice(Knowing(), seed=0), (), 1, (2,))
    evaluation._calibrate(plan, tmp_path / "0.parquet", lambda pictures: pictures)
    assert pq.read_table(tmp_path / "0.parquet").num_rows == sum(len(theme.cells) for theme in world.themes)


def test_a_model_that_judges_and_reads_is_opened_once_and_when_it_is_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is wrong otherwise is told before; a CLIP without weights is no model."""
    from transformers import AutoModelForImageTextToText

    opened = []
    made = AutoModelForImageTextToText.from_pretrained

    def counted(*asked: Any, **options: Any) -> Any:
        opened.append(asked)
        return made(*asked, **options)

    monkeypatch.setattr(AutoModelForImageTextToText, "from_pretrained", counted)
    model = str(save_llava(tmp_path))
    judge, reader = command.judge_of("vlm", model=model, url=None, seed=0), command.chat_of(model, None, None)
    assert isinstance(judge, MultipleChoice) and judge._chat is reader
    assert judge.settings()["model"] == reader.settings()["model"] == model and not opened
    reader(["1"])
    reader(["2"])
    assert len(opened) == 1
    (Path(model) / "model.safetensors").unlink()
    with pytest.raises(UserError, match=r"found no model\.safetensors"):
        Clip(model)


def test_a_question_that_is_not_answered_is_invalid_and_no_option(world: OfficialWorld) -> None:
    """A server that refuses every question (status 400) and one that answers nothing: neither side has an option."""
    theme = world.tasks[0].theme
    picture = world.picture(theme, theme.cells[0], np.random.default_rng(0))
    server = Server([(400, b"refused"), said(None)])
    with server.running():
        (reading,) = MultipleChoice(HttpChat(server.url, "model"), seed=0)([theme], [picture], [0])
    assert reading.judgement == (None, None) and reading.reply == " | " and not server.answers
    assert "got status 400 ('refused')" in reading.refused


def test_a_server_that_refuses_what_questions_have_in_common_ends_the_evaluation(world: OfficialWorld) -> None:
    """With what it said: six refusals among the first fifty questions, or eight in a row among many that were answered."""
    body = json.dumps({"error": {"message": "Use 'max_completion_tokens' instead."}}).encode()
    server = Server([(400, body)] * 6)
    episodes = [world.episode(world.tasks[0], 2, index) for index in range(20)]
    with (
        server.running(),
        pytest.raises(UserError, match=r"status 400 \(Use 'max_completion_tokens' .* refused 6 of 6 questions"),
    ):
        Reader(HttpChat(server.url, "model")).answers(world, episodes)


def test_refusals_that_are_few_are_of_one_question(monkeypatch: pytest.MonkeyPatch) -> None:
    http = HttpChat("http://127.0.0.1:9/v1", "model")

    def ask(parts: Sequence[Part]) -> str:
        if parts[0] == "no":
            raise Refused("refused", 422)
        return str(parts[0])

    monkeypatch.setattr(http._chat, "ask", ask)
    for _ in range(5):
        for _ in range(30):
            assert http(["yes"]) == "yes"
        with pytest.raises(Unanswered):
            http(["no"])
    for _ in range(6):
        with pytest.raises(Unanswered):
            http(["no"])
    with pytest.raises(UserError, match="It refused 12 of 162 questions") as ended:
        http(["no"])
    assert not isinstance(ended.value, Unanswered)


def test_requests_have_fields_besides() -> None:
    server = Server([said("4")])
    fields = {"max_tokens": None, "max_completion_tokens": 9}
    with server.running():
        http = HttpChat(server.url, "model", fields=fields)
        assert http(["?"]) == "4" and http.settings()["fields"] == fields
    assert "max_tokens" not in server.asked[0][1] and server.asked[0][1]["max_completion_tokens"] == 9


# the whole


class GroundTruth:
    """Draws each published caption as its own picture."""

    label = "ground truth"

    def __init__(self, world: OfficialWorld) -> None:
        self.world = world

    def draw(self, texts: Sequence[str], tasks: Sequence[Task], indices: Sequence[int]) -> np.ndarray:
        cells = [self.world.meaning(task.theme, text) for text, task in zip(texts, tasks, strict=True)]
        files = [self.world.file(task.theme, cast(Cell, cell)) for task, cell in zip(tasks, cells, strict=True)]
        return np.stack([np.asarray(Image.open(file)) for file in files])

    def round_trip(self, pictures: np.ndarray) -> np.ndarray:
        return pictures


def test_reference_policies_have_their_known_values_on_the_published_data(data: Path, tmp_path: Path) -> None:
    """With ground-truth pictures and a judge that takes red for blue: right but for questions of red. Of a copy one side is wrong."""
    world = OfficialWorld(data)
    rows = tuple(row for row in published_rows(0) if row.name in ("oracle", "chain", "copy"))
    plan = Plan(world, MultipleChoice(Knowing(), seed=0), rows, 12, (2,))
    evaluation.claim(plan, [{"label": "ground truth", "method": None}], tmp_path, ["raysuite"])
    evaluation.evaluate(plan, tmp_path, [("ground truth", lambda texts: GroundTruth(world))], silent)
    found = read_in_context(tmp_path)
    cells = [world.episode(task, 2, index).cell for task in world.tasks for index in range(12)]
    red = float(np.mean([cell.detail == "red" for cell in cells]))
    assert red > 0
    for row in (("oracle", "default"), ("chain", "caption")):
        line = factors(found, row, 0)
        assert line.described.estimate == 1 and line.right.estimate == pytest.approx(1 - red)
    copy = factors(found, ("copy", "default"), -1)
    assert copy.textual.estimate == copy.right.estimate == 0 and copy.visual.estimate > 0.95


def test_a_judges_errors_are_shown_and_corrected(data: Path, tmp_path: Path) -> None:
    """The judge takes the ten red things among 500 pictures for blue: 490 right, 10 another of 100 cells."""
    world, judge = OfficialWorld(data), MultipleChoice(Knowing(), seed=0)
    plan = Plan(world, judge, published_rows(0), 20, (2,))
    evaluation.claim(plan, [], tmp_path, ["raysuite"])
    evaluation.evaluate(plan, tmp_path, [], silent)
    found = read_in_context(tmp_path)
    (source,) = found.sources
    assert (source.pictures, source.right, source.invalid, source.wrong_cell) == (500, 490, 0, 10)
    assert source.confusions == (("Color", "red", "blue", 10, 10),)
    copy = factors(found, ("copy", "default"), -1)
    assert copy.right.estimate == 0 and copy.textual.estimate == 0
    assert copy.visual.estimate < 1
    random = factors(found, ("random", "default"), -1)
    b = 1 - 0.02 / 99
    assert corrected(random.right, source).estimate == pytest.approx(
        max(0, (random.right.estimate - (1 - b)) / (0.98 + b - 1))
    )
    assert "calls 490 of 500 ground-truth pictures right" in in_context_summary(tmp_path)
    html = write_in_context_report(tmp_path).read_text()
    check_self_contained(html)
    assert "Confusions, ground truth" in html and "Corrected for the judge" in html


@pytest.mark.slow
def test_the_command_reads_the_data_and_draws_with_a_model(data: Path, tmp_path: Path) -> None:
    model = save_clip(tmp_path / "clip")
    out = tmp_path / "out"
    asked = ["--data", str(data), "--judge-model", str(model), "--episodes", "1", "--shots", "2", "--out", str(out)]
    cli.app(["in-context", "scenes", *asked], standalone_mode=False)
    found = read_in_context(out)
    assert found.settings["judge"] == {"name": "CLIP", "model": str(model)}
    assert factors(found, ("oracle", "default"), 0).described.estimate == 1
    assert [source.name for source in found.sources] == ["ground truth"]


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"kind": "person", "model": None, "url": None}, "expected --judge of clip or vlm, got 'person'"),
        ({"kind": "vlm", "model": None, "url": None}, "expected --judge-model with --judge vlm"),
        ({"kind": "clip", "model": "m", "url": "http://a"}, "expected --judge vlm with --judge-url"),
        (
            {"kind": "vlm", "model": "m", "url": None, "fields": "{a: 1}"},
            "expected a url with the fields of requests to m, got none",
        ),
        (
            {"kind": "vlm", "model": "m", "url": "http://a", "fields": "many"},
            "expected fields of requests such as .*, got 'many'",
        ),
        ({"kind": "vlm", "model": "/nowhere", "url": None}, "expected a configuration at /nowhere"),
    ],
)
def test_judges_that_lack_something_are_refused(options: dict[str, Any], sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        command.judge_of(**options, seed=0)


def test_more_episodes_than_are_published_are_refused(data: Path) -> None:
    with pytest.raises(UserError, match="at most the 1000 that are published"):
        command.published(
            [],
            data=data,
            judge=MultipleChoice(Knowing(), 0),
            reader=None,
            interleaved=None,
            episodes=1001,
            shots=(2,),
            paired=False,
            seed=0,
        )


def test_tasks_are_those_of_the_published_numbers(world: OfficialWorld) -> None:
    names = [task.name for task in world.tasks]
    assert names[:4] == ["Color-I", "Color-II", "Background-I", "Background-II"]
    assert all(isinstance(task, Task) and task.chance == 0.01 for task in world.tasks)


# readers


class Scripted:
    """A chat that says the same sentence whatever it is asked, and remembers what that was."""

    def __init__(self, sentence: str, fails_after: int | None = None) -> None:
        self.sentence, self.fails_after = sentence, fails_after
        self.asked: list[list[Part]] = []

    def settings(self) -> dict[str, Any]:
        return {"kind": "test double"}

    def __call__(self, parts: Sequence[Part]) -> str:
        if len(self.asked) == self.fails_after:
            raise UserError("the server is gone")
        self.asked.append(list(parts))
        return self.sentence


class Blank:
    """Draws nothing."""

    label = "a model"

    def draw(self, texts: Sequence[str], tasks: Sequence[Task], indices: Sequence[int]) -> np.ndarray:
        return np.zeros((len(texts), 8, 8, 3), np.uint8)

    def round_trip(self, pictures: np.ndarray) -> np.ndarray:
        return pictures


class Drawing:
    """A pipeline that answers with the first picture that it is shown."""

    path, name, steps, size = "somewhere", "OmniGenPipeline", 3, 8

    def __init__(self) -> None:
        self.asked: list[tuple[list[Part], int]] = []

    def __call__(self, parts: Sequence[Part], generator: Any) -> np.ndarray:
        self.asked.append((list(parts), generator.initial_seed()))
        return next(part for part in parts if isinstance(part, np.ndarray))


class Refusing(Scripted):
    """Refuses every tenth question."""

    def __call__(self, parts: Sequence[Part]) -> str:
        if len(self.asked) % 10 == 9:
            self.asked.append(list(parts))
            raise Unanswered("no such question")
        return super().__call__(parts)


def test_refused_questions_are_kept_and_counted(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two of the reader's twenty, and one of the judge's ten: of its two a picture every fifth picture has one."""
    monkeypatch.setattr(evaluation, "PICTURES", 1)
    rows = (Row("reader", "default", Reader(Refusing("a red hat"))), published_rows(0)[4])
    plan = Plan(OfficialWorld(data), MultipleChoice(Refusing("1"), seed=0), rows, 2, (2,))
    for _ in range(2):  # what was kept is read again
        evaluation.claim(plan, [{"label": Blank.label, "method": None}], tmp_path, ["raysuite"])
        evaluation.evaluate(plan, tmp_path, [(Blank.label, lambda texts: Blank())], silent)
        found = read_in_context(tmp_path)
    answers = pq.read_table(tmp_path / "answers.parquet")["refused"].to_pylist()
    assert answers[:20].count("no such question") == 2 and {*answers[20:]} == {""}
    assert found.sources[0].refused == 100
    said = in_context_summary(tmp_path)
    assert "refused a question on 100 of 500 ground-truth pictures" in said
    assert f"refused a question on {found.refused} of 40 rows" in said and found.refused >= 2


@pytest.mark.parametrize("variant", ["default", "caption", "cot", "exact", "misleading"])
def test_a_reader_is_shown_the_episode_in_its_order(world: OfficialWorld, variant: Variant) -> None:
    scripted = Scripted("a red hat")
    episode = world.episode(world.tasks[0], 4, 9, variant)
    answer = Reader(scripted).answer(world, episode)
    assert answer.description == "a red hat"
    middle: list[Part] = [f"{episode.query}: "]
    for demo in reversed(episode.demos):
        middle = [f"{demo.text}: ", demo.caption if variant == "caption" else demo.picture, *middle]
    for parts in scripted.asked:
        assert parts[0] == policies.LEARN
        for part, wanted in zip(parts[1:10], middle, strict=True):
            assert np.array_equal(part, wanted) if isinstance(wanted, np.ndarray) else part == wanted
    rest = [parts[10:] for parts in scripted.asked]
    if variant == "cot":
        assert rest == [[policies.ANALYSE], ["a red hat", policies.DESCRIBE]] and answer.transcript == "a red hat"
    else:
        assert rest == [[policies.DESCRIBE]]


def test_a_reader_that_was_cut_off_is_asked_nothing_twice(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two episodes of ten tasks are 20 questions in 4 blocks; of 12 that were answered the 10 of finished blocks stay."""
    monkeypatch.setattr(evaluation, "BLOCK", 5)
    monkeypatch.setattr(evaluation, "PICTURES", 1)
    judge = MultipleChoice(Knowing(), seed=0)

    def run(chat: Scripted, directory: Path) -> bytes:
        plan = Plan(OfficialWorld(data), judge, (Row("reader", "default", Reader(chat)),), 2, (2,))
        directory.mkdir(exist_ok=True)
        evaluation.claim(plan, [], directory, ["raysuite"])
        evaluation.evaluate(plan, directory, [], silent)
        return (directory / "answers.parquet").read_bytes()

    whole, second, third = (Scripted("a red hat") for _ in range(3))
    wanted = run(whole, tmp_path / "whole")
    assert len(whole.asked) == 20
    with pytest.raises(UserError, match="gone"):
        run(Scripted("a red hat", fails_after=12), tmp_path / "cut")
    assert run(second, tmp_path / "cut") == wanted and len(second.asked) == 10
    assert run(third, tmp_path / "cut") == wanted and not third.asked


def test_published_rows_stand_beside_those_who_read_here(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A reader that always says a red hat, and a pipeline that draws itself: both are on the page, with what they made of episodes."""
    monkeypatch.setattr(evaluation, "PICTURES", 1)

    rows = (
        published_rows(0)[0],
        Row("reader", "default", Reader(Scripted("a red hat"))),
        interleaved_rows(cast(Any, Drawing()), 0)[0],
    )
    plan = Plan(OfficialWorld(data), MultipleChoice(Knowing(), seed=0), rows, 1, (2, 8))
    evaluation.claim(plan, [{"label": Blank.label, "method": None}], tmp_path, ["raysuite"])
    evaluation.evaluate(plan, tmp_path, [(Blank.label, lambda texts: Blank())], silent)
    page = write_in_context_report(tmp_path).read_text()
    assert "Published, beside ours" in page and "SEED-LLaMA, published" in page
    for line in ("Pictures, default", "Descriptions, default", "Pictures, misleading"):
        assert f"<h3>{line}</h3>" in page
    cells = re.findall(r"<tr>(.*?)</tr>", page, re.DOTALL)
    found = [re.findall(r"<td[^>]*>(.*?)</td>", row) for row in cells]
    assert ["Color-I", "SEED-LLaMA, published", "0.681", "0.608", "0.553", "0.541"] in found
    assert ["all ten", "Gemini, published", "0.577", "0.730", "0.830", "0.827"] in found
    (reading,) = (row for row in found if row[:2] == ["all ten", "reader"])
    assert reading[3:5] == ["–", "–"] and reading[2].startswith("0.0")
    assert {"interleaved, –", "reader, a model"} < {row[1] for row in found if row and row[0] == "all ten"}
    assert "</b> interleaved, itself" in page and "</b> reader, a model" in page


def test_a_pipeline_that_draws_itself_has_no_part_in_what_reading_and_drawing_add(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(evaluation, "PICTURES", 1)

    reader = Row("reader", "default", Reader(Scripted("a red hat")))
    rows = (*published_rows(0), reader, interleaved_rows(cast(Any, Drawing()), 0)[0])
    plan = Plan(OfficialWorld(data), MultipleChoice(Knowing(), seed=0), rows, 1, (2,))
    labels = ("a model", "another")
    evaluation.claim(plan, [{"label": label, "method": None} for label in labels], tmp_path, ["raysuite"])
    evaluation.evaluate(plan, tmp_path, [(label, lambda texts: Blank()) for label in labels], silent)
    page = write_in_context_report(tmp_path).read_text()
    together = page[page.index("<h2>Reading and drawing together</h2>") :].split("</section>")[0]
    who = re.findall(r"<tr>\s*<td[^>]*>(.*?)</td>", together)
    assert any(name.startswith("reader") for name in who) and not any("interleaved" in name for name in who)


@pytest.mark.parametrize(
    ("description", "meaning"),
    [
        ("A dog is running.", ("run", "dog")),
        ("Two cats, asleep", ("sleep", "cat")),
        ("a bird flies and sings", (None, "bird")),
    ],
)
def test_forms_of_words_are_known(world: OfficialWorld, description: str, meaning: tuple[str | None, str]) -> None:
    assert world.meaning(world.tasks[6].theme, description) == meaning


def test_a_pipeline_that_draws_itself_is_shown_the_episode_and_keeps_its_noise(world: OfficialWorld) -> None:
    pipeline = Drawing()
    (plain, exact, _) = interleaved_rows(cast(Any, pipeline), seed=0)
    assert plain.generator.settings()["class"] == "OmniGenPipeline" and plain.generator.kept
    for row in (plain, exact):
        episode = world.episode(world.tasks[2], 2, 4, row.variant)
        assert row.generator.answer(world, episode).picture is not None
        parts = pipeline.asked[-1][0]
        assert [part for part in parts if isinstance(part, str)][1:] == [
            *(f"{demo.text}: " for demo in episode.demos),
            f"{episode.query}: ",
        ]
        for place, demo in enumerate(episode.demos):
            assert np.array_equal(parts[2 + 2 * place], demo.picture)
    plain.generator.answer(world, world.episode(world.tasks[2], 4, 4))
    plain.generator.answer(world, world.episode(world.tasks[2], 2, 5))
    seeds = [seed for _, seed in pipeline.asked]
    assert seeds[0] == seeds[1] == seeds[2] != seeds[3]
