"""The record beside a checkpoint's weights of how it wants to be asked."""

import json

import pytest

from veason import prompt_settings
from veason.errors import DataError
from veason.prompt_settings import PromptSettings

RECORD = PromptSettings(frames=4, size=(84, 112), family="Qwen2.5-VL", prompt_template=None, max_new_tokens=256)


def test_written_and_read_again(tmp_path):
    prompt_settings.write(tmp_path, RECORD)
    assert prompt_settings.read(tmp_path) == RECORD
    assert json.loads((tmp_path / "veason.json").read_text())["size"] == [84, 112]


def test_a_published_model_has_none(tmp_path):
    assert prompt_settings.read(tmp_path) is None
    assert prompt_settings.read("Qwen/Qwen2.5-VL-3B-Instruct") is None


def test_only_what_differs_is_told():
    assert prompt_settings.differences(RECORD, frames=4, size=(84, 112), prompt_template=None) == []
    assert prompt_settings.differences(RECORD, size=(560, 560), max_new_tokens=1024, prompt_template="Find it.") == [
        "size is 560x560, the checkpoint was trained with 84x112",
        "max_new_tokens is 1024, the checkpoint was trained with 256",
        'prompt_template is "Find it.", the checkpoint was trained with the built-in one',
    ]


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"frames": 0}, "frames must be a positive whole number, found 0"),
        ({"frames": True}, "frames must be a positive whole number, found True"),
        ({"size": [84]}, r"size must be \[height, width\] in pixels, found \(84,\)"),
        ({"size": "84"}, "found '84'"),
        ({"family": "Qwen9"}, "family must be one of Qwen2.5-VL, Qwen3-VL, found 'Qwen9'"),
        ({"prompt_template": 3}, "prompt_template must be text or null, found 3"),
        ({"colour": 3}, "expected an object of frames, size"),
    ],
)
def test_a_wrong_entry_is_named_with_the_file(tmp_path, change, told):
    prompt_settings.write(tmp_path, RECORD)
    path = tmp_path / "veason.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(DataError, match=told) as caught:
        prompt_settings.read(tmp_path)
    assert str(path) in str(caught.value)


def test_no_json_is_named(tmp_path):
    (tmp_path / "veason.json").write_text("[1, 2]")
    with pytest.raises(DataError, match="found list"):
        prompt_settings.read(tmp_path)
