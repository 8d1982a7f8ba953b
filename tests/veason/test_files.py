"""Files that a user names by mistake, and files that changed."""

import os

import pytest

from veason import files
from veason.errors import DataError


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "not JSON but a Git LFS pointer"),
        (b"\n<!DOCTYPE html><html>", "not JSON but a web page"),
        (b"<?xml version='1.0'?><Error/>", "not JSON but an XML document"),
        (b"\x1f\x8b\x08\x00", "not JSON but a gzip archive; unpack it"),
        (b"", "not JSON but empty"),
        (b"{nope", "not valid JSON"),
        (b"[" * 100_000, "nested too deeply"),
    ],
)
def test_a_file_that_is_no_json_is_named_for_what_it_is(tmp_path, content, message):
    path = tmp_path / "given.json"
    path.write_bytes(content)
    with pytest.raises(DataError, match=f"given.json: {message}"):
        files.load_json(path)


def test_pipes_and_folders_are_refused_without_opening_them(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(DataError, match="pipe: no regular file"):
        files.load_json(tmp_path / "pipe")
    with pytest.raises(DataError, match="a folder, expected a file"):
        files.load_json(tmp_path)
    with pytest.raises(DataError, match="none: no such file; is the path right"):
        files.load_json(tmp_path / "none")


def test_a_fingerprint_changes_with_content_size_and_time_in_either_direction(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"abc")
    os.utime(path, ns=(10**18, 10**18))
    before = files.fingerprint(path)
    assert files.fingerprint(path) == before
    os.utime(path, ns=(10**17, 10**17))  # an older file in its place
    assert files.fingerprint(path) != before
    path.write_bytes(b"abd")
    os.utime(path, ns=(10**18, 10**18))
    assert files.fingerprint(path) != before
    together = files.folder_fingerprint([path])
    (tmp_path / "other").write_bytes(b"")
    assert files.folder_fingerprint([path, tmp_path / "other"]) != together
