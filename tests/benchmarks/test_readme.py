"""benchmarks/README.md: a block for each benchmark, in their order, the others' kept, whatever fails."""

import subprocess

import pytest

from benchmarks import __main__ as bench


@pytest.fixture
def readme(tmp_path, monkeypatch):
    path = tmp_path / "README.md"
    monkeypatch.setattr(bench, "README", path)
    monkeypatch.setattr(bench, "BENCHMARKS", {"a": "First, against nothing", "b --small": "Second", "c": "Third"})
    monkeypatch.setattr(bench, "_run", lambda name: f"{name} printed\n\nthis\n")
    return path


def test_a_block_for_each_and_one_alone_leaves_the_others(readme, monkeypatch):
    bench.main(["c", "a"])
    text = readme.read_text()
    assert text.startswith(bench.HEAD)
    assert text.endswith("## Third\n\n`c`\n\n```\nc printed\n\nthis\n```\n")
    assert list(bench.read_blocks(readme)) == ["a", "c"]
    monkeypatch.setattr(bench, "_run", lambda name: "new\n")
    bench.main(["b --small"])
    assert readme.read_text() == text.replace("## Third", "## Second\n\n`b --small`\n\n```\nnew\n```\n\n## Third")


def test_what_was_measured_before_a_failure_stays(readme, monkeypatch):
    def run(name):
        if name == "c":
            raise subprocess.CalledProcessError(1, name)
        return "measured"

    monkeypatch.setattr(bench, "_run", run)
    with pytest.raises(subprocess.CalledProcessError):
        bench.main([])
    assert list(bench.read_blocks(readme)) == ["a", "b --small"]


def test_an_unknown_name_is_refused(readme, capsys):
    with pytest.raises(SystemExit):
        bench.main(["d"])
    assert "no benchmark 'd'; there are a, b --small, c" in capsys.readouterr().err
    assert not readme.exists()
