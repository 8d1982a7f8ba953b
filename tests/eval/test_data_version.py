"""One hash for many files."""

import hashlib

from eval import data_version


def test_names_and_contents_count_and_the_order_does_not(tmp_path):
    for name, text in (("b/1.txt", "one"), ("a.txt", "two")):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    paths = [tmp_path / "b/1.txt", tmp_path / "a.txt"]
    hashes = [hashlib.sha256(text).hexdigest() for text in (b"two", b"one")]
    expected = hashlib.sha256(f"a.txt {hashes[0]}\nb/1.txt {hashes[1]}\n".encode()).hexdigest()
    assert data_version.of_files(tmp_path, paths) == data_version.of_files(tmp_path, paths[::-1]) == expected
    assert data_version.of_files(tmp_path, paths[:1]) != expected
