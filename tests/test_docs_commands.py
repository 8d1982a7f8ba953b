"""Every command that README.md, CONTRIBUTING.md and docs/ show is one that runs: its own parser takes the arguments."""

from __future__ import annotations

import importlib
import itertools
import re
import shlex
import subprocess
import sys
from argparse import ArgumentParser
from pathlib import Path

import pytest

from verl import config as configuration

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
SETTING = r"(data|algorithm|worker|trainer)\.[\w.]+=[^\s…]+$"
"""A key of the training's configuration with a value: arguments of verl.trainer.main."""
STAND_INS = {"FILE.yaml": "training_scripts/grpo_tiny.yaml"}
"""Placeholders of the pages, each with a file of that kind."""


class Parsed(BaseException):
    """The arguments were taken; no command catches this, so that nothing else is done."""


def commands(page: str) -> list[list[str]]:
    """The words of each command: all lines of shell blocks, and what stands in backticks and begins like a command."""
    blocks = re.findall(r"^```bash\n(.*?)^```", page, re.MULTILINE | re.DOTALL)
    prose = re.sub(r"^```.*?^```", "", page, flags=re.MULTILINE | re.DOTALL)
    spans = [re.sub(r"\s+", " ", span) for span in re.findall(r"`([^`]+)`", prose)]
    lines = [line for block in blocks for line in block.replace("\\\n", " ").splitlines()]
    lines += [span for span in spans if re.match(r"(python -m|python [\w/]+\.py|make|bash|pip) ", span)]
    overrides = [span for span in spans if all(re.match(SETTING, word) for word in span.split())]
    lines += [f"python -m verl.trainer.main config=FILE.yaml {span}" for span in overrides]
    found = []
    for line in lines:
        for part in line.split(" && "):
            words = [word for word in shlex.split(part, comments=True) if word != "…"]
            found += [list(each) for each in itertools.product(*map(alternatives, words))] if words else []
    return found


def alternatives(word: str) -> list[str]:
    """`eval.{revos,mevis}` is two words; `{train,valid}` in a path of data is left alone."""
    match = re.fullmatch(r"([\w.]+)\{([\w,]+)\}", word)
    return [match[1] + each for each in match[2].split(",")] if match else [word]


SHOWN = sorted({(page.name, *words) for page in PAGES for words in commands(page.read_text())})


def split(words: tuple[str, ...]) -> tuple[dict[str, str], list[str]]:
    """The variables that a command line sets, and the command."""
    count = next((i for i, word in enumerate(words) if not re.match(r"[A-Z][A-Z0-9_]*=", word)), len(words))
    return dict(word.split("=", 1) for word in words[:count]), list(words[count:])


def check(words: tuple[str, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    """AssertionError, or SystemExit by a parser, for a command that would not run."""
    variables, command = split(words)
    if command[:2] == ["python", "-m"]:
        parse(command[2], command[3:], monkeypatch)
    elif command[0] == "python":
        assert (ROOT / command[1]).is_file()
        parse(command[1].removesuffix(".py").replace("/", "."), command[2:], monkeypatch)
    elif command[0] == "bash":
        script = ROOT / command[1]
        assert not subprocess.run(["bash", "-n", script], check=False).returncode
        sourced = [script.parent / name for name in ("sft.sh", "paths.sh") if name in script.read_text()]
        text = "".join(path.read_text() for path in (script, *sourced))
        assert not {name for name in variables if name not in text}, "the script does not know these variables"
    elif command[0] == "make":
        makefile = (ROOT / "Makefile").read_text()
        targets, settings = re.findall(r"^([a-z-]+):", makefile, re.M), re.findall(r"^(\w+) \?=", makefile, re.M)
        assert all(word in targets or word.partition("=")[0] in settings for word in command[1:])
    elif command[0] == "pip":
        files = [command[i + 1] for i, word in enumerate(command) if word == "-r"]
        assert all((ROOT / file).is_file() for file in files)
        pins = (ROOT / "requirements-lock-cpu.txt").read_text().splitlines()
        assert all(word in pins for word in command if "==" in word)
    else:
        assert command[0] in ("export", "pre-commit"), "this test does not know how to check such a command"


def parse(module: str, arguments: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Run a command up to where its arguments have been read. A command that is only named has a ``--help``."""
    if module == "pytest":
        return
    arguments = [STAND_INS.get(word, word) for word in arguments]
    arguments = arguments or ["--help"]
    arguments = [f"config={STAND_INS[word[7:]]}" if word[7:] in STAND_INS else word for word in arguments]
    spec = importlib.util.find_spec(module)
    assert spec is not None, f"there is no module {module}"
    if spec.submodule_search_locations:
        module += ".__main__"
    monkeypatch.setattr(ArgumentParser, "parse_args", stopping(ArgumentParser.parse_args))
    monkeypatch.setattr(configuration, "load", stopping(configuration.load))
    monkeypatch.chdir(ROOT)
    if "--help" in arguments:
        with pytest.raises(SystemExit) as ended:
            sys.exit(importlib.import_module(module).main(arguments))
        assert not ended.value.code
        return
    with pytest.raises(Parsed):
        importlib.import_module(module).main(arguments)


@pytest.fixture(autouse=True)
def shown_modules(tmp_path, monkeypatch):
    """The modules that pages show whole, in a folder on the Python path."""
    for page in PAGES:
        for block in re.findall(r"^```python\n(.*?)^```", page.read_text(), re.MULTILINE | re.DOTALL):
            if name := re.match(r"# (\w+\.py)\n", block):
                (tmp_path / name[1]).write_text(block)
    monkeypatch.syspath_prepend(tmp_path)


def stopping(function):
    def stop(*args, **kwargs):
        function(*args, **kwargs)
        raise Parsed

    return stop


@pytest.mark.parametrize("shown", SHOWN, ids=" ".join)
def test_a_shown_command_is_one_that_runs(shown, monkeypatch, capsys):
    check(shown[1:], monkeypatch)


def test_the_pages_show_what_there_is_to_show():
    modules = {words[3] for words in SHOWN if words[1:3] == ("python", "-m")}
    assert {"verl.trainer.main", "inference.predict", "eval.revos", "veason.doctor"} <= modules
    assert len(SHOWN) > 40


@pytest.mark.parametrize(
    "wrong",
    [
        "python -m eval.revos --gt ROOT --pred RUN --out OUT --no-such-flag",
        "python -m no.such_module",
        "python -m verl.trainer.main config=training_scripts/grpo_tiny.yaml trainer.no_such_key=1",
        "make no-such-target",
        "make test NO_SUCH=1",
        "NO_SUCH_VARIABLE=1 bash training_scripts/run_sft_qwen2_5_3b.sh",
        "pip install -r no-such.txt",
        "unheard_of --of",
    ],
)
def test_a_command_that_would_not_run_is_found(wrong, monkeypatch, capsys):
    with pytest.raises((AssertionError, SystemExit, ModuleNotFoundError, configuration.ConfigError)):
        check(tuple(shlex.split(wrong)), monkeypatch)
