"""`inference.predict --policy openai` against a real server on loopback: the files of the policy behind it."""

from __future__ import annotations

import json

import cv2
import numpy as np
import pytest
from chat_server import Act, ChatServer, completion
from commands import run, tree
from policy_server import PolicyServer

from demo.server import ServerOptions, serving
from inference.pipeline import Sampling
from inference.policies.oracle import OraclePolicy
from veason.datasets import open_dataset

SAMPLING = Sampling(n=4, size=(84, 84))
COMMON = ["--tracker", "grabcut", "--frames", 4, "--model-size", 84, "--limit", 12]


def served(policy, dataset, **options):
    return serving(PolicyServer(policy, dataset, SAMPLING.clip, ServerOptions(model="m", **options)))


def ask(url, root, path, *more, code=0):
    words = ["--data-root", root, *COMMON, "--policy", "openai", "--base-url", url, "--model", "m", "--output", path]
    return run("inference.predict", *words, *more, code=code)


@pytest.mark.slow
@pytest.mark.parametrize("more", [[], ["--workers", 1]], ids=["here", "on workers"])
def test_with_failing_requests_the_files_are_those_of_the_policy_itself(world, tmp_path, more):
    run("inference.predict", "--data-root", world, *COMMON, "--policy", "oracle", "--output", tmp_path / "oracle")
    dataset = open_dataset("revos", world, split="valid")
    kinds = ("500", "429", "truncated", "reset", "cut")
    with served(OraclePolicy(dataset), dataset, fail_rate=0.3, fail_kinds=kinds) as url:
        ask(url, world, tmp_path / "served", "--requests", 4, "--max-retries", 20, *more)
    assert tree(tmp_path / "served") == tree(tmp_path / "oracle")


@pytest.mark.slow
def test_a_served_checkpoint_gives_the_files_of_hf(world, tmp_path):
    from inference.policies.engine import EnginePolicy

    hf = ["--policy", "hf", "--model", world / "tiny_policy", "--max-new-tokens", 24, "--device", "cpu"]
    run("inference.predict", "--data-root", world, *COMMON, *hf, "--output", tmp_path / "hf")
    policy = EnginePolicy("hf", world / "tiny_policy", device="cpu", max_new_tokens=24)
    with served(policy, open_dataset("revos", world, split="valid")) as url:
        ask(url, world, tmp_path / "served")
    assert tree(tmp_path / "served") == tree(tmp_path / "hf")


def test_a_served_model_segments_a_video(tmp_path):
    """168 px pictures shown at 84: the box comes back twice as large."""
    for t in range(4):
        picture = np.full((168, 168, 3), 40, dtype=np.uint8)
        picture[40:100, 40:100] = 220
        (tmp_path / "clip").mkdir(exist_ok=True)
        assert cv2.imwrite(str(tmp_path / "clip" / f"{t:05d}.png"), picture)
    said = '<think>Look.</think><answer>{"keyframe_timestamp": 2, "bbox_2d_list": [[20, 20, 50, 50]]}</answer>'
    with ChatServer(lambda asked: Act(completion(said))).serve() as url:
        words = [tmp_path / "clip", "the bright square", "--policy", "openai", "--base-url", url, "--model", "m"]
        run("inference.segment", *words, "--frames", 4, "--model-size", 84, "--output", tmp_path / "out")
    record = json.loads((tmp_path / "out" / "prediction.json").read_text())
    assert (record["keyframe"], record["thinking"]) == (2, "Look.")
    assert record["boxes"] == [[40.0, 40.0, 100.0, 100.0]]
    mask = cv2.imread(str(tmp_path / "out" / "masks" / "00002.png"), cv2.IMREAD_UNCHANGED) > 0
    assert mask[45:95, 45:95].all()
    assert not mask[:, :30].any()


def test_nothing_of_the_key_or_the_address_is_kept(hand_made, tmp_path, monkeypatch):
    monkeypatch.setenv("MY_KEY", "sk-secret-0123456789")
    with ChatServer().serve() as url:
        address = url.replace("http://", "http://user:pass-word@")
        said = ask(address, hand_made.write(), tmp_path / "out", "--api-key-env", "MY_KEY")
    kept = "".join(path.read_text() for path in (tmp_path / "out").glob("*.json*"))
    assert "no_answer" in said  # the server talks of a lamp: the model's mistake, and data
    for secret in ("sk-secret", "pass-word", "127.0.0.1"):
        assert secret not in kept


def test_a_server_that_is_down_stops_the_run_and_what_came_before_is_kept(hand_made, tmp_path):
    """The second expression never gets its answer; the first and the third do."""

    def script(asked):
        return Act(b"{}", status=503) if "what is there?" in asked.parts[-1]["text"] else Act()

    with ChatServer(script).serve() as url:
        said = ask(url, hand_made.write(), tmp_path, "--max-retries", 1, code=2)
    assert "UVO/-a_b/1: no answer from http://127.0.0.1:" in said
    assert "HTTP 503" in said
    assert "Traceback" not in said
    lines = (tmp_path / "predictions.jsonl").read_text().splitlines()
    assert {json.loads(line)["exp_id"] for line in lines} == {"0", "2"}
    with ChatServer().serve() as url:
        ask(url, hand_made.path, tmp_path)  # another address, and only what is missing
    lines = (tmp_path / "predictions.jsonl").read_text().splitlines()
    assert [json.loads(line)["exp_id"] for line in lines] == ["0", "1", "2"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--base-url", "127.0.0.1:8000"], "is no http(s) address"),
        (["--base-url", "https://models.example/v1"], "set OPENAI_API_KEY in the environment"),
        ([], "--policy openai needs --base-url"),
        (["--base-url", "http://127.0.0.1:1/v1", "--requests", "0"], "--requests must be at least 1"),
        (["--base-url", "http://127.0.0.1:1/v1", "--forbid-tokens", "a"], "expected token ids"),
    ],
)
def test_a_wrong_option_is_one_clear_line(hand_made, tmp_path, monkeypatch, words, message):
    for name in ("OPENAI_API_KEY", "OPENAI_BASE_URL"):
        monkeypatch.delenv(name, raising=False)
    line = ["--data-root", hand_made.write(), "--policy", "openai", "--model", "m", "--output", tmp_path / "out"]
    assert message in run("inference.predict", *line, *words, code=2)
