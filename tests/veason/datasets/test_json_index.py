"""The lazy index gives what `json.loads` gives, entry by entry, and refuses what is not an object of lists."""

import errno
import json
import os
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from veason import files
from veason.datasets import json_index
from veason.datasets.json_index import JsonIndex
from veason.datasets.mask_dict import MaskDict
from veason.errors import DataError
from veason.worker_pool import map_in_order

RLE = st.fixed_dictionaries({"size": st.just([480, 854]), "counts": st.text(st.characters(codec="ascii"), max_size=20)})
LEAF = st.none() | st.integers(-(2**53), 2**53) | st.text(max_size=8) | RLE
VALUE = st.lists(st.recursive(LEAF, lambda inner: st.lists(inner, max_size=3), max_leaves=6), max_size=4)
OBJECT = st.dictionaries(
    st.text(max_size=6), VALUE | st.dictionaries(st.text(max_size=4), VALUE, max_size=2), max_size=5
)


@given(value=OBJECT, indent=st.sampled_from([None, 1]), ascii_only=st.booleans())
def test_every_entry_is_what_json_reads(tmp_path_factory, value, indent, ascii_only):
    path = tmp_path_factory.mktemp("index") / "object.json"
    path.write_text(json.dumps(value, indent=indent, ensure_ascii=ascii_only), encoding="utf-8", errors="surrogatepass")
    index = JsonIndex(path)
    assert index.keys() == list(value)
    assert {key: index[key] for key in index.keys()} == value  # noqa: SIM118 - an index does not iterate


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "empty"),
        ('{"1": [1, 2', "cut off"),
        ('{"1": [1], "1": [2]}', "appears twice"),
        ('{"1": "x", "2": [3]}', "is neither a list nor an object"),
        ('{"1": null, "2": [3]}', "is neither a list nor an object"),
        ("[[1]]", "without a key"),
        ('{"1": [1]', "cut off"),
        ('{"1": [1]} {"2": [1]}', "more follows the end"),
        ("version https://git-lfs.github.com/spec/v1\noid sha256:1\nsize 1\n", "not JSON but a Git LFS pointer"),
        ("<!DOCTYPE html><html><body>Sign in</body></html>", "not JSON but a web page"),
        ("hello", "not a JSON object, it begins with 'hello'"),
        ('"1"', "not a JSON object"),
    ],
)
def test_what_is_no_object_of_lists_is_refused(tmp_path, text, message):
    path = tmp_path / "bad.json"
    path.write_text(text)
    with pytest.raises(DataError, match=message) as error:
        JsonIndex(path)
    assert str(path) in str(error.value)


def test_a_broken_entry_is_named_when_it_is_read(tmp_path):
    path = tmp_path / "bad.json"
    path.write_text('{"1": [1], "2": [1,,2]}')
    index = JsonIndex(path)
    assert index["1"] == [1]
    with pytest.raises(DataError, match="entry '2' is not valid JSON"):
        index["2"]


def test_large_files_are_scanned_once(tmp_path, monkeypatch):
    monkeypatch.setenv("VEASON_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(json_index, "CACHE_ABOVE", 10)
    path = tmp_path / "large.json"
    path.write_text(json.dumps({"1": [1, 2], "2": [None]}))
    assert JsonIndex(path)["2"] == [None]
    with monkeypatch.context() as patch:
        patch.setattr(json_index, "scan", lambda path: pytest.fail("scanned again"))
        assert JsonIndex(path)["1"] == [1, 2]
    path.write_text(json.dumps({"1": [3, 2, 1]}))  # another size: the cache is stale
    assert JsonIndex(path).keys() == ["1"]


@pytest.fixture
def large(tmp_path, monkeypatch):
    """A file above the size from which spans are cached: two entries of the same length."""
    monkeypatch.setenv("VEASON_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(json_index, "CACHE_ABOVE", 10)
    json_index._warn_once.cache_clear()
    path = tmp_path / "large.json"
    path.write_text('{"1": [11], "2": [22]}')
    return path


@pytest.mark.parametrize("home", ["read-only", "full", "a file", "nowhere"])
def test_without_a_cache_it_goes_on_and_says_so_once(large, tmp_path, monkeypatch, caplog, home):
    def refuse(path, data):
        raise OSError(errno.EROFS if home == "read-only" else errno.ENOSPC, "refused", str(path))

    def no_home():
        raise RuntimeError("no home")

    if home == "a file":
        (tmp_path / "cache").write_text("in the way")
    elif home == "nowhere":
        monkeypatch.delenv("VEASON_CACHE")
        monkeypatch.setattr(json_index.Path, "home", no_home)
    else:
        monkeypatch.setattr(json_index.atomic, "write_bytes", refuse)
    for _ in range(2):
        assert JsonIndex(large)["2"] == [22]
    (record,) = caplog.records
    assert record.levelname == "WARNING"
    assert "VEASON_CACHE" in record.getMessage()


def read(path, key):
    """For a pool of processes."""
    json_index.CACHE_ABOVE = 10
    return JsonIndex(path)[key]


def test_of_a_pool_the_parent_says_that_there_is_no_cache(large, tmp_path, caplog, capfd):
    (tmp_path / "cache").write_text("in the way")
    MaskDict(large)
    found = map_in_order(read, large, ["1", "2"] * 4, workers=2, label="reading", unit="key")
    assert list(found) == [[11], [22]] * 4
    assert [record.getMessage().count("VEASON_CACHE") for record in caplog.records] == [1]
    assert capfd.readouterr().err == ""  # of the workers
    (tmp_path / "cache").unlink()
    json_index._warn_once.cache_clear()
    MaskDict(large)
    assert len(caplog.records) == 1
    assert list((tmp_path / "cache").iterdir()) == []


@pytest.mark.parametrize("stored", [b"", b"[]", b"{", b'{"source": null}'])
def test_a_damaged_cache_is_made_anew(large, tmp_path, stored):
    JsonIndex(large)
    (cache,) = (tmp_path / "cache").iterdir()
    cache.write_bytes(stored)
    assert JsonIndex(large)["2"] == [22]
    assert b'"2"' in cache.read_bytes()


def rewrite(path, text):
    """Other content under the same size and time, as some tools that unpack or restore leave it."""
    status = path.stat()
    assert len(text) == status.st_size
    path.write_text(text)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


def test_the_head_of_a_file_belongs_to_its_identity(large):
    JsonIndex(large)
    rewrite(large, '{"2": [22], "1": [11]}')
    assert JsonIndex(large)["2"] == [22]


@pytest.mark.parametrize("cached", [True, False])
def test_a_file_changed_in_place_never_gives_another_entry(large, monkeypatch, cached):
    """Beyond the head that is hashed, too: with the stale spans "2" would give the value of "1"."""
    monkeypatch.setattr(files, "HEAD", 1)
    index = JsonIndex(large)
    rewrite(large, '{"2": [22], "1": [11]}')
    index = JsonIndex(large) if cached else index
    with pytest.raises(DataError, match=r"large\.json: the file has changed since .*'2'.*start the command again"):
        index["2"]
    assert JsonIndex(large)["2"] == [22]  # the stale spans are gone


def test_a_file_that_grew_while_open_is_noticed(large):
    index = JsonIndex(large)
    large.write_text('{"1": [11], "2": [22], "3": [33]}')
    with pytest.raises(DataError, match="has changed since"):
        index["1"]


def test_a_file_that_changes_while_it_is_scanned_is_not_cached(large, monkeypatch):
    scan = json_index.scan

    def slow(path):
        found = scan(path)
        path.write_text('{"1": [1, 2, 3, 4], "2": [22]}')
        return found

    monkeypatch.setattr(json_index, "scan", slow)
    with pytest.raises(DataError, match="changed while it was read"):
        JsonIndex(large)


def test_a_pipe_is_no_file(tmp_path):
    os.mkfifo(tmp_path / "mask_dict.json")
    with pytest.raises(DataError, match=r"mask_dict\.json: no regular file"):
        JsonIndex(tmp_path / "mask_dict.json")


@pytest.mark.slow
def test_a_worker_over_a_large_file_stays_small(tmp_path, monkeypatch):
    """100 MB of masks: opened from the cache and read here and there, the process stays near an empty one's size."""
    monkeypatch.setenv("VEASON_CACHE", str(tmp_path / "cache"))
    path = tmp_path / "mask_dict.json"
    track = json.dumps([{"size": [480, 854], "counts": "a" * 490}] * 40)
    with open(path, "w") as file:
        file.write("{" + ", ".join(f'"{i}": {track}' for i in range(5000)) + "}")
    code = (
        "import sys, resource; from pathlib import Path; from veason.datasets.json_index import JsonIndex\n"
        "rss = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024\n"
        "before = rss(); index = JsonIndex(Path(sys.argv[1])); assert len(index) == 5000\n"
        "assert all(len(index[str(i)]) == 40 for i in range(0, 5000, 50)); print(rss() - before)"
    )
    grown = [
        float(subprocess.run([sys.executable, "-c", code, path], capture_output=True, text=True, check=True).stdout)
        for _ in range(2)
    ]
    assert grown[1] < 30  # MB; the file is 100
