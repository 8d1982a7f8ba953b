"""The summary of a run's replies, and the prompt settings where no option is given."""

import argparse
import json
import logging
from pathlib import Path

import pytest
from chat_server import Act, ChatServer, completion

import demo
from inference import options, predict, replies
from veason import prompt_settings
from veason.atomic import read_journal
from veason.datasets import open_dataset
from veason.errors import DataError


def record(problem=None, boxes=((1, 2, 3, 4),), repairs=(), reply="I cannot say."):
    reading = "lenient" if repairs else "strict"
    return {"problem": problem, "boxes": list(boxes), "reading": reading, "repairs": list(repairs), "reply": reply}


NOTHING = record("no_answer", boxes=(), reply="I\x1b[2J cannot say.")


def test_a_run_of_which_no_reply_is_usable_stops_after_the_first_few_and_says_why():
    watch = replies.Watch()
    for _ in range(replies.FIRST - 1):
        watch.add(NOTHING)
    with pytest.raises(DataError) as error:
        watch.add(NOTHING)
    said = str(error.value)
    assert "none of the first 32 replies was usable, all for one reason: no_answer" in said
    assert "'I\\\\x1b[2J cannot say.'" in said
    assert "--max-new-tokens" in said
    assert "--keep-going" in said


@pytest.mark.parametrize("other", [record(), record("no_boxes", boxes=()), record("not_json", boxes=())])
def test_one_usable_reply_or_another_reason_lets_the_run_go_on(other):
    watch = replies.Watch()
    watch.add(other)
    for _ in range(5 * replies.FIRST):
        watch.add(NOTHING)


def test_the_summary_counts_problems_and_readings_and_says_when_hardly_any_was_usable():
    loose = record("bad_boxes", repairs=["box_objects", "number_texts"])
    assert list(replies.summary([record(), record(), loose, NOTHING], "run")) == [
        "run: 4 expressions, 2 answered without a problem",
        "       1  bad_boxes",
        "       1  no_answer",
        "replies read: 3 strictly, 1 leniently (--reading), where",
        "       1  boxes are objects with bbox_2d, or with x1, y1, x2 and y2",
        "       1  coordinates are texts",
    ]
    cut = record("answer_not_closed", boxes=())
    *_, last = replies.summary([cut] * 12 + [NOTHING] * 2 + [record()], "run")
    assert last.startswith(
        "hardly any reply was usable: 1 of 15, so most masks are empty; most often answer_not_closed"
    )
    assert last.endswith("(12), no_answer (2). replies are cut off: raise --max-new-tokens")


def test_a_run_of_before_had_no_readings():
    assert list(replies.summary([{"problem": None, "boxes": [[1, 2, 3, 4]]}], "run")) == [
        "run: 1 expressions, 1 answered without a problem"
    ]


def test_a_server_that_never_answers_to_the_point_is_not_asked_for_ever(world, tmp_path):
    count = []

    def script(request):
        count.append(1)
        return Act(completion("What a lovely lamp."))

    words = ["--data-root", str(world), "--split", "train", "--policy", "openai", "--model", "m", "--requests", "2"]
    words += ["--frames", "2", "--model-size", "28", "--masks", "rle", "--output", str(tmp_path / "run")]
    with ChatServer(script).serve() as url:
        with pytest.raises(DataError, match="none of the first 32 replies was usable"):
            predict.main([*words, "--base-url", url])
        assert 32 <= len(count) <= 48
        kept = (tmp_path / "run" / "predictions.jsonl").read_text().splitlines()
        assert len(kept) >= 32
        predict.main([*words, "--base-url", url, "--keep-going"])
    keys = [(r["video"], r["exp_id"]) for r in read_journal(tmp_path / "run" / "predictions.jsonl")]
    assert keys == [(s.video, s.exp_id) for s in open_dataset("revos", world, split="train")]


def settled(*words):
    parser = argparse.ArgumentParser()
    options.add_policy_options(parser)
    args = parser.parse_args(["--policy", "hf", *map(str, words)])
    options.settle(args)
    return args


@pytest.fixture
def checkpoint(tmp_path):
    template = "Frames: $frames. Find $expression!"
    prompt_settings.write(tmp_path, prompt_settings.PromptSettings(4, (84, 112), "Qwen2.5-VL", template, 120))
    return tmp_path


def test_a_checkpoint_is_asked_as_it_was_trained(checkpoint, caplog):
    caplog.set_level(logging.INFO)
    args = settled("--model", checkpoint)
    assert (args.frames, args.model_size, args.max_new_tokens) == (4, (84, 112), 120)
    assert args.template_text == "Frames: $frames. Find $expression!"
    assert "prompts are built as in its training" in caplog.text


def test_what_the_user_says_wins_and_the_difference_is_told(checkpoint, caplog):
    caplog.set_level(logging.INFO)
    args = settled("--model", checkpoint, "--frames", 8, "--max-new-tokens", 120)
    assert (args.frames, args.model_size) == (8, (84, 112))
    assert "note: frames is 8, the checkpoint was trained with 4" in caplog.text
    assert "max_new_tokens is" not in caplog.text


def test_without_a_record_the_defaults_are_those_of_the_paper(tmp_path, caplog):
    caplog.set_level(logging.INFO)
    args = settled("--model", tmp_path)
    assert (args.frames, args.model_size, args.max_new_tokens) == (8, (560, 560), 1024)
    assert caplog.text == ""
    assert settled("--model", "some/hub-name").frames == 8


@pytest.mark.parametrize(
    ("text", "message"), [("{", "not valid JSON"), ('{"frames": 4}', "expected an object of frames, size")]
)
def test_a_broken_record_is_named(tmp_path, text, message):
    (tmp_path / prompt_settings.NAME).write_text(text)
    with pytest.raises(DataError, match=message):
        settled("--model", tmp_path)


def test_a_recorded_template_that_is_none_is_named(tmp_path):
    prompt_settings.write(tmp_path, prompt_settings.PromptSettings(4, (84, 112), "Qwen2.5-VL", "no places", 120))
    with pytest.raises(DataError, match=r"veason\.json: prompt_template: a template needs \$frames"):
        settled("--model", tmp_path)


@pytest.mark.slow
def test_run_json_says_how_the_model_decodes_and_a_run_goes_on_only_so(world, tmp_path):
    words = ["--data-root", str(world), "--policy", "hf", "--model", str(world / "tiny_policy"), "--device", "cpu"]
    words += ["--frames", "2", "--model-size", "28", "--max-new-tokens", "4", "--output", str(tmp_path / "run")]
    predict.main([*words, "--limit", "2", "--keep-going"])
    found = json.loads((tmp_path / "run" / "run.json").read_text())
    assert found["policy"]["max_new_tokens"] == 4
    assert found["policy"]["repetition_penalty"] == 1.0
    assert "model config.json" in found["inputs"]
    with pytest.raises(DataError, match="generation_defaults: plain there, checkpoint now"):
        predict.main([*words, "--limit", "2", "--generation-defaults", "checkpoint"])
    predict.main([*words, "--limit", "3", "--keep-going"])
    assert len((tmp_path / "run" / "predictions.jsonl").read_text().splitlines()) == 3


@pytest.mark.slow
def test_the_demos_own_model_answers_under_the_defaults(world, tmp_path):
    """It learned on 6 frames of 84 pixels; shown 8 of 560 it says nothing usable."""
    model = Path(demo.__file__).with_name("base_policy")
    words = ["--data-root", str(world), "--policy", "hf", "--model", str(model), "--device", "cpu"]
    predict.main([*words, "--limit", "8", "--batch-size", "8", "--output", str(tmp_path / "run")])
    lines = list(read_journal(tmp_path / "run" / "predictions.jsonl"))
    assert {tuple(line["model_size"]) for line in lines} == {(84, 84)}
    assert max(len(line["frame_ids"]) for line in lines) <= 6
    assert any(replies.answered(line) for line in lines)
