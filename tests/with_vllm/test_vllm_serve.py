"""A real vLLM server on loopback, asked by `--policy openai`: the prediction files of `--policy hf`."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest
from commands import tree

from inference import predict
from verl.engines.generation import banned_ids
from verl.engines.pretrained import load_config

ROOT = Path(__file__).parents[2]
MODEL = ROOT / "demo" / "base_policy"
SETTINGS = {
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "VLLM_NO_USAGE_STATS": "1",
    "TORCHDYNAMO_DISABLE": "1",
    "HF_HUB_OFFLINE": "1",
}
OPTIONS = (
    *("--served-model-name", "tiny", "--host", "127.0.0.1", "--dtype", "float32", "--max-model-len", "2048"),
    *("--generation-config", "vllm", "--limit-mm-per-prompt", '{"video": 0}'),
    *("--enforce-eager", "--skip-mm-profiling", "--no-enable-chunked-prefill"),
)
PATIENCE_S = 1200


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """The base URL of a server of the base policy, which ends with the module."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", str(MODEL), "--port", str(port)]
    log = tmp_path_factory.mktemp("server") / "log"
    with open(log, "wb") as out:
        process = subprocess.Popen([*command, *OPTIONS], stdout=out, stderr=out, env={**os.environ, **SETTINGS})
    try:
        wait(process, f"http://127.0.0.1:{port}/health", log)
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        process.terminate()
        process.wait(timeout=600)


def wait(process: subprocess.Popen, url: str, log: Path) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while time.monotonic() < deadline:
        assert process.poll() is None, log.read_text()[-3000:]
        try:
            with urllib.request.urlopen(url, timeout=5):
                return
        except OSError:
            time.sleep(1)
    raise AssertionError(f"the server was not ready after {PATIENCE_S} s: {log.read_text()[-3000:]}")


def test_prediction_files_are_those_of_hf_byte_for_byte(server, world, tmp_path):
    forbidden = ",".join(map(str, banned_ids(load_config(MODEL))))
    shown = ["--frames", "6", "--model-size", "84", "--max-new-tokens", "120"]
    policies = {
        "hf": ["--model", str(MODEL), "--device", "cpu", "--batch-size", "8"],
        "openai": ["--model", "tiny", "--base-url", server, "--requests", "8", "--forbid-tokens", forbidden],
    }
    for name, words in policies.items():
        data = ["--data-root", str(world), "--split", "valid", "--output", str(tmp_path / name)]
        predict.main([*data, "--policy", name, *shown, *words])
    ours, theirs = (tree(tmp_path / name) for name in ("openai", "hf"))
    assert ours == theirs
    assert len(ours) > 8
