"""The policy behind a real HTTP server: same prompt, same pixels, whatever the server does, and what stops it."""

import asyncio
import base64
import json
import os
import threading
import time
from concurrent.futures import CancelledError, ThreadPoolExecutor
from dataclasses import replace

import cv2
import numpy as np
import pytest
from chat_server import Act, ChatServer, completion
from policy_server import PolicyServer

from demo.server import ServerOptions, serving
from inference.pipeline import Sampling
from inference.policies.openai import OpenAIPolicy, data_url
from inference.policies.oracle import OraclePolicy
from veason import chat, frames, prompt
from veason.answer import parse_reply
from veason.datasets import open_dataset
from veason.errors import DataError
from veason.types import Clip, Question

REQUESTS = int(os.environ.get("VEASON_TEST_REQUESTS", "100"))
SAMPLING = Sampling(n=3, size=(56, 56))


@pytest.fixture(autouse=True)
def impatient(monkeypatch):
    monkeypatch.setattr(chat, "FIRST_WAIT", 0.05)
    monkeypatch.setattr(chat, "LONGEST_WAIT", 1.0)
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)


@pytest.fixture
def dataset(hand_made):
    return open_dataset("revos", hand_made.write(), split="valid")


def ask_about(sample):
    clip, opened = SAMPLING.clip(sample), frames.VideoFrames(sample)
    return Question(sample, clip, tuple(frames.resize(opened[t], clip.size) for t in clip.frame_ids))


def answering(dataset, **options):
    return serving(PolicyServer(OraclePolicy(dataset), dataset, SAMPLING.clip, ServerOptions(model="m", **options)))


def test_a_server_that_insists_on_prompt_and_pixels_is_content(dataset):
    questions = [ask_about(sample) for sample in dataset]
    with answering(dataset) as url:
        replies = OpenAIPolicy("m", base_url=url).answer(questions, seed=0)
    assert replies == OraclePolicy(dataset).answer(questions, seed=0)


def test_that_server_would_notice_one_grey_level_and_one_letter(dataset):
    question = ask_about(dataset[0])
    images = (question.images[0].copy(), *question.images[1:])
    images[0][5, 7, 2] ^= 1
    other = replace(question.sample, expression="the other square")
    with answering(dataset) as url:
        policy = OpenAIPolicy("m", base_url=url)
        with pytest.raises(DataError, match="not the frames of UVO/-a_b/0, to the pixel"):
            policy.answer([replace(question, images=images)], seed=0)
        with pytest.raises(DataError, match="no sample has the prompt"):
            OpenAIPolicy("m", base_url=url).answer([replace(question, sample=other)], seed=0)


def test_a_picture_survives_its_data_url():
    picture = np.random.default_rng(0).integers(0, 256, (28, 56, 3), dtype=np.uint8)
    data = base64.b64decode(data_url(picture).removeprefix("data:image/png;base64,"))
    assert np.array_equal(cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)[..., ::-1], picture)


def test_the_request_to_the_letter(dataset, monkeypatch):
    monkeypatch.setenv("MY_KEY", "sk-0123456789")
    server, question = ChatServer(), ask_about(dataset[0])
    with server.serve() as url:
        policy = OpenAIPolicy(
            "m", base_url=url, api_key_env="MY_KEY", max_new_tokens=7, temperature=0.5, forbidden=(11, 12)
        )
        policy.answer([question], seed=3)
        OpenAIPolicy("m", base_url=url).answer([question], seed=3)
    asked, plain = server.asked
    assert asked.headers["authorization"] == "Bearer sk-0123456789"
    body = asked.body
    assert (body["model"], body["max_tokens"], body["temperature"]) == ("m", 7, 0.5)
    assert body["logit_bias"] == {"11": -100, "12": -100}
    assert 0 <= body["seed"] < 1 << 31
    assert "logit_bias" not in plain.body
    system, user = body["messages"]
    assert system["content"][0]["text"] == prompt.SYSTEM
    kinds = [part["type"] for part in user["content"]]
    assert kinds == ["text", "image_url"] * 3 + ["text"]
    text = "".join(part.get("text", prompt.IMAGE) for part in user["content"])
    assert text == prompt.text("the square", Clip((0, 1, 3), (56, 56)))


def test_seeds_are_of_the_sample_and_repeat(dataset):
    server, questions = ChatServer(), [ask_about(sample) for sample in dataset]
    with server.serve() as url:
        policy = OpenAIPolicy("m", base_url=url, requests=1)
        for seed in (3, 3, 4):
            policy.answer(questions, seed=seed)
    seeds = [asked.body["seed"] for asked in server.asked]
    assert seeds[:3] == seeds[3:6]
    assert len(set(seeds)) == 6


@pytest.mark.parametrize(
    ("act", "text"),
    [
        (Act(completion("  half an ans", finish="length")), "  half an ans"),
        (Act(completion("")), ""),
        (Act(completion(None)), ""),
        (Act(completion("", finish="content_filter")), ""),
    ],
)
def test_empty_and_cut_off_replies_are_the_models_own(dataset, act, text):
    server = ChatServer(lambda asked: act)
    with server.serve() as url:
        assert OpenAIPolicy("m", base_url=url).answer([ask_about(dataset[0])], seed=0) == [text]
    assert len(server.asked) == 1


def thinking(content, reasoning, *, finish="stop") -> Act:
    message = {"role": "assistant", "content": content, "reasoning_content": reasoning}
    return Act(json.dumps({"choices": [{"message": message, "finish_reason": finish}]}).encode())


@pytest.mark.parametrize(
    "act",
    [
        thinking(None, "<think>Left.</think><answer>{}</answer>"),
        thinking("<answer>{}</answer>", "Left.\n"),
        thinking("<think>Left.</think><answer>{}</answer>", "what a service keeps to itself"),
    ],
)
def test_thinking_that_the_server_split_off_is_put_back(dataset, act):
    with ChatServer(lambda asked: act).serve() as url:
        (reply,) = OpenAIPolicy("m", base_url=url).answer([ask_about(dataset[0])], seed=0)
    assert parse_reply(reply).well_formed
    assert parse_reply(reply).thinking == "Left."


def test_where_the_text_was_is_said_once(dataset, caplog):
    server = ChatServer(lambda asked: thinking(None, "<think>Left.</think><answer>{}</answer>"))
    with server.serve() as url:
        OpenAIPolicy("m", base_url=url).answer([ask_about(dataset[0])] * 3, seed=0)
    told = caplog.text
    assert told.count("all of its text is in reasoning_content") == 1
    assert "without --reasoning-parser" in told


@pytest.mark.parametrize("status", [401, 403, 404])
def test_what_only_the_user_can_put_right_stops_at_once(dataset, status, monkeypatch):
    monkeypatch.setenv("MY_KEY", "sk-secret-0123456789")
    server = ChatServer(lambda asked: Act(b'{"error": {"message": "sk-secret-0123456789 is bad"}}', status=status))
    with server.serve() as url, pytest.raises(DataError, match=f"HTTP {status} for model 'm'") as error:
        OpenAIPolicy("m", base_url=url, api_key_env="MY_KEY").answer([ask_about(dataset[0])], seed=0)
    assert len(server.asked) == 1
    assert "sk-secret" not in str(error.value)
    assert ("MY_KEY" in str(error.value)) == (status != 404)


def test_after_all_retries_the_sample_is_named_and_the_first_failure_is_everybodys(dataset):
    """The second question waits in its back-off when the first gives up: it ends then, with the first one's reason."""
    good, bad = ask_about(dataset[0]), ask_about(dataset[1])
    down = Act(b'{"error": {"message": "the disk is full"}}', status=500)
    later = Act(b"{}", status=429, headers={"Retry-After": "300"})

    def script(asked):
        return later if "what is there?" not in asked.parts[-1]["text"] else down

    with ChatServer(script).serve() as url:
        policy, caught = OpenAIPolicy("m", base_url=url, max_retries=2), []

        def ask(question):
            with pytest.raises(DataError) as error:
                policy.answer([question], seed=0)
            caught.append(str(error.value))

        threads = [threading.Thread(target=ask, args=(q,)) for q in (good, bad)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
    assert len(set(caught)) == 1
    assert len(caught) == 2
    assert caught[0].startswith("UVO/-a_b/1: no answer from http://127.0.0.1:")
    assert "HTTP 500: " in caught[0]
    assert "the disk is full" in caught[0]
    assert "what is finished is kept" in caught[0]


def test_requests_in_flight_are_bounded(dataset):
    server = ChatServer(lambda asked: Act(delay=0.1))
    with server.serve() as url:
        OpenAIPolicy("m", base_url=url, requests=3).answer([ask_about(dataset[0])] * 9, seed=0)
    assert server.max_in_flight == 3


def test_a_server_elsewhere_wants_a_key():
    with pytest.raises(DataError, match="set OTHER_KEY in the environment"):
        OpenAIPolicy("m", base_url="https://models.example/v1", api_key_env="OTHER_KEY")


def test_of_a_very_faulty_server_no_answer_is_lost_or_doubled(dataset):
    """Half of the requests fail: 500s, 429 with Retry-After, hangs, truncated JSON and resets, a tenth of all each."""
    base = [ask_about(sample) for sample in dataset]
    questions = [replace(base[i % 3], sample=replace(base[i % 3].sample, exp_id=f"{i}")) for i in range(REQUESTS)]
    by_text = dict(zip((q.sample.expression for q in base), OraclePolicy(dataset).answer(base, seed=0), strict=True))
    assert len(set(by_text.values())) > 1
    server = PolicyServer(
        OraclePolicy(dataset),
        dataset,
        SAMPLING.clip,
        ServerOptions(model="m", fail_rate=0.5, fail_kinds=("500", "429", "hang", "truncated", "reset"), hang=60),
    )
    start = time.monotonic()
    with serving(server) as url:
        policy = OpenAIPolicy("m", base_url=url, requests=48, max_retries=30, timeout=5)
        replies = policy.answer(questions, seed=0)
    print(f"{REQUESTS} requests, {server.stats} in {time.monotonic() - start:.1f} s")
    assert replies == [by_text[q.sample.expression] for q in questions]
    stats = server.stats
    assert stats["answered"] >= REQUESTS  # more only where a good answer came after the client's patience
    assert stats["refused"] == 0
    assert {"500", "429", "truncated", "reset"} <= set(stats["failures"])
    assert policy._chat.problems["timeout"] > 0  # the hangs
    assert stats["max_in_flight"] > 8
    assert asyncio.run_coroutine_threadsafe(_waiting(policy), policy._loop).result() == 48


async def _waiting(policy) -> int:
    """Free places, after all is done."""
    return policy._places._value


def test_requests_on_their_way_can_be_cancelled(dataset):
    asked = threading.Event()

    def slow(request):
        asked.set()
        return Act(delay=20)

    with ChatServer(slow).serve() as url, ThreadPoolExecutor(1) as pool:
        policy = OpenAIPolicy("m", base_url=url)
        answer = pool.submit(policy.answer, [ask_about(dataset[0])], seed=0)
        assert asked.wait(10)
        policy.cancel()
        with pytest.raises(CancelledError):
            answer.result(10)
