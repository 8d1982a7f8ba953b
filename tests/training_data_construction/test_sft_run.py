"""The inputs of an SFT run are checked before it starts, recorded, and compared when it resumes."""

from __future__ import annotations

import json
import shutil

import pytest
from safetensors.torch import load_file, save_file

from demo.policy import PolicySize, write_tiny_policy
from training_data_construction import sft_run
from verl.config import LoraConfig
from verl.engines import pretrained
from verl.models import loading

SETTINGS = "learning_rate: 1.0e-4\nnum_train_epochs: 1.0\nlora_rank: 8\npreprocessing_num_workers: null\n"


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sft_run") / "base"
    write_tiny_policy(folder, seed=0, size=PolicySize(hidden=64, mlp=64))
    return folder


@pytest.fixture
def place(base, tmp_path):
    """Settings, a copy of the base model, a data set of one picture."""
    shutil.copytree(base, tmp_path / "base")
    (tmp_path / "settings.yaml").write_text(SETTINGS)
    (tmp_path / "data/images/v").mkdir(parents=True)
    for name in ("dataset_info.json", "train.json", "build.json"):
        (tmp_path / "data" / name).write_text("{}")
    (tmp_path / "data/images/v/0.png").write_bytes(b"picture")
    return tmp_path


def start(place, *arguments):
    paths = [f"model_name_or_path={place / 'base'}", f"dataset_dir={place / 'data'}", f"output_dir={place / 'out'}"]
    return sft_run.main(["start", str(place / "settings.yaml"), str(place / "out"), *paths, *arguments])


def begin(place, *arguments):
    """A run that has a checkpoint."""
    assert start(place, *arguments) == 0
    (place / "out/adapter/checkpoint-2").mkdir(parents=True)


def test_the_same_run_goes_on(place, capsys):
    begin(place, "learning_rate=1e-4")
    assert start(place, "learning_rate=0.0001") == 0
    assert capsys.readouterr().err == ""
    assert [path.name for path in (place / "out").glob("*.json")] == ["sft_run.json"]


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["learning_rate=2e-4"], "learning_rate was 0.0001, is 0.0002"),
        (["lora_rank=16", "seed=3"], "lora_rank was 8, is 16; seed was absent, is 3"),
    ],
)
def test_other_settings_are_refused_and_named(place, capsys, arguments, told):
    begin(place)
    before = (place / "out/sft_run.json").read_bytes()
    assert start(place, *arguments) == 2
    error = capsys.readouterr().err
    assert f"error: {place / 'out'} was trained with other settings ({told}); restore its settings" in error
    assert (place / "out/sft_run.json").read_bytes() == before


def harm_weights(place):
    weights = load_file(place / "base/model.safetensors")
    save_file(
        {name: tensor + 1 for name, tensor in weights.items()}, place / "base/model.safetensors", {"format": "pt"}
    )


OTHER_INPUTS = {
    "rows": (lambda place: (place / "data/train.json").write_text("[]"), "data train.json was 2 bytes"),
    "a picture": (lambda place: (place / "data/images/v/0.png").write_bytes(b"other picture"), "data images was 1 pic"),
    "one more picture": (lambda place: (place / "data/images/v/1.png").write_bytes(b""), "is 2 pictures, "),
    "weights": (harm_weights, "model model.safetensors was "),
    "template": (
        lambda place: (place / "base/chat_template.jinja").write_text("{{ messages }}"),
        "model chat_template.jinja was ",
    ),
}


@pytest.mark.parametrize("kind", OTHER_INPUTS)
def test_other_inputs_are_refused_and_named(place, capsys, kind):
    change, told = OTHER_INPUTS[kind]
    begin(place)
    change(place)
    assert start(place) == 2
    assert told in capsys.readouterr().err


def test_a_copy_of_the_inputs_is_the_same_run(place):
    begin(place)
    for name in ("base", "data"):
        shutil.copytree(place / name, place / "elsewhere" / name, copy_function=shutil.copyfile)
        shutil.rmtree(place / name)
        shutil.move(place / "elsewhere" / name, place / name)
    (place / "data/build.json").write_text('{"image_root": "elsewhere"}')
    assert start(place) == 0


def test_what_may_change_does_and_the_note_of_before_stays(place, capsys):
    begin(place)
    assert start(place, "num_train_epochs=2", "save_steps=5") == 0
    assert capsys.readouterr().err.splitlines() == [
        "going on with a change: num_train_epochs was 1.0, is 2",
        "going on with a change: save_steps was absent, is 5",
    ]
    before, now = (json.loads((place / "out" / name).read_text()) for name in ("sft_run_000.json", "sft_run.json"))
    assert (before["settings"]["num_train_epochs"], now["settings"]["num_train_epochs"]) == (1, 2)
    (place / "out/adapter/train_results.json").write_text("{}")
    assert start(place, "num_train_epochs=3", "save_steps=5") == 0
    assert "is trained, so a change has no effect: num_train_epochs was 2, is 3" in capsys.readouterr().err
    assert json.loads((place / "out/sft_run.json").read_text()) == now


def test_what_failed_before_its_first_checkpoint_may_be_tried_otherwise(place):
    assert start(place) == 0
    assert start(place, "learning_rate=3e-4") == 0
    assert json.loads((place / "out/sft_run.json").read_text())["settings"]["learning_rate"] == 3e-4
    assert (place / "out/sft_run_000.json").exists()


def test_an_older_run_without_a_note(place, capsys):
    (place / "out/adapter/checkpoint-2").mkdir(parents=True)
    assert start(place) == 0
    assert "does not say what it was made from" in capsys.readouterr().err
    assert start(place, "lora_rank=4") == 2


def test_another_machine_of_the_run_writes_nothing(place, monkeypatch):
    monkeypatch.setenv("NODE_RANK", "1")
    assert start(place) == 0
    assert not (place / "out").exists()


def test_a_base_that_is_not_whole_is_refused_before_anything(place, capsys):
    weights = load_file(place / "base/model.safetensors")
    kept = {name: tensor for name, tensor in weights.items() if "visual" not in name}
    save_file(kept, place / "base/model.safetensors", {"format": "pt"})
    assert start(place) == 2
    told = capsys.readouterr().err
    assert "missing (model.visual." in told
    assert told.count("\n") == 1
    assert not (place / "out").exists()


def test_a_data_folder_that_is_none(place, capsys):
    (place / "data/dataset_info.json").unlink()
    assert start(place) == 2
    assert "dataset_info.json: no such file; the data folder is what build_sft wrote" in capsys.readouterr().err


@pytest.fixture
def adapter(base, tmp_path):
    """As LLaMA-Factory leaves one."""
    policy = loading.add_lora(pretrained.load_base(base), LoraConfig(rank=4))
    policy.save_pretrained(tmp_path / "adapter")
    return tmp_path / "adapter"


def test_an_adapter_that_fits(base, adapter):
    assert sft_run.main(["adapter", str(base), str(adapter)]) == 0


def cut(path):
    path.write_bytes(path.read_bytes()[:-100])


def change(adapter, how):
    path = adapter / "adapter_model.safetensors"
    save_file(how(load_file(path)), path, {"format": "pt"})


LAST = "base_model.model.model.language_model.layers.1.self_attn.v_proj.lora_B.weight"
WRONG_ADAPTERS = {
    "no weights": (lambda a: (a / "adapter_model.safetensors").unlink(), "adapter_model.safetensors: no such file"),
    "no settings": (lambda a: (a / "adapter_config.json").unlink(), "adapter_config.json: no such file"),
    "cut off": (lambda a: cut(a / "adapter_model.safetensors"), "is damaged or cut off"),
    "one missing": (
        lambda a: change(a, lambda w: {name: tensor for name, tensor in w.items() if name != LAST}),
        f"its 27 weights do not fit {{base}}: 1 missing ({LAST})",
    ),
    "another shape": (
        lambda a: change(a, lambda w: {**w, LAST: w[LAST][:-1].clone()}),
        f"1 of another shape ({LAST} is (31, 4), not (32, 4))",
    ),
    "prefixed": (lambda a: change(a, lambda w: {f"x.{name}": t for name, t in w.items()}), "28 missing (base_model."),
}


@pytest.mark.parametrize("kind", WRONG_ADAPTERS)
def test_an_adapter_that_does_not(base, adapter, capsys, kind):
    harm, told = WRONG_ADAPTERS[kind]
    harm(adapter)
    assert sft_run.main(["adapter", str(base), str(adapter)]) == 2
    error = capsys.readouterr().err
    assert told.format(base=base) in error
    assert error.count("\n") == 1
