"""The SFT data set: its rows, its pictures, and that it asks the policy what GRPO and inference ask."""

import errno
import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import sft_cases as cases
import torch
from PIL import Image

from grpo_reward.task import KeyframeTask
from inference.policies.engine import EnginePolicy
from training_data_construction import build_sft
from veason import atomic, frames, prompt, prompt_settings
from veason.datasets import open_dataset
from veason.types import Question
from verl.engines import inputs, pretrained

ROOT = Path(__file__).parents[2]


def build(root, folder, records, *options, split="valid", thinking=None):
    """(exit code, data folder) of the command, in one process unless an option says otherwise.

    thinking: words to put into the file's last record.
    """
    cot = cases.write_records(records, folder / "cot.json")
    if thinking is not None:
        stored = json.loads(cot.read_text())
        stored[-1]["CoT"] = thinking
        cot.write_text(json.dumps(stored))
    output = folder / "data"
    arguments = ["--cot", cot, "--data-root", root, "--split", split, "--output", output, "--workers", 1, *options]
    arguments += ["--allow-scored-split"] if split == "valid" else []
    return build_sft.main([str(argument) for argument in arguments]), output


@pytest.fixture
def root(hand_made):
    return hand_made.write()


@pytest.fixture
def records(root):
    return cases.make_records(root, n=2, side=56, split="valid")


class TestRows:
    def test_a_row_by_hand(self, root, records, tmp_path):
        """48 x 64 native, 56 x 56 shown. The square is 10 px wide at x 4 in frame 0, at x 28 in frame 3, y 20 to 29."""
        code, output = build(root, tmp_path, records)
        rows = json.loads((output / "train.json").read_text())
        assert code == 0
        assert len(rows) == 2  # the third expression has no target
        system, user, assistant = rows[0]["messages"]
        assert system == {"role": "system", "content": "You are a helpful assistant."}
        assert user == {"role": "user", "content": prompt.text("the square", records[0].clip)}
        assert user["content"].count("<image>") == 2
        assert assistant == {
            "role": "assistant",
            "content": '<think>Frame 0 shows the target best.</think><answer>{"keyframe_timestamp": 0, '
            '"bbox_2d_list": [[3.5, 23.33, 11.38, 33.83]]}</answer>',
        }
        assert rows[0]["images"] == ["images/UVO/-a_b/00000.png", "images/UVO/-a_b/00015.png"]

    def test_the_entry_that_llama_factory_looks_up(self, root, records, tmp_path):
        _, output = build(root, tmp_path, records, "--name", "mine")
        info = json.loads((output / "dataset_info.json").read_text())
        assert info["mine"]["file_name"] == "train.json"
        assert info["mine"]["formatting"] == "sharegpt"

    def test_without_thinking(self, root, records, tmp_path):
        _, output = build(root, tmp_path, records, "--no-thinking")
        replies = [row["messages"][2]["content"] for row in json.loads((output / "train.json").read_text())]
        assert all(reply.startswith("<think></think><answer>{") for reply in replies)

    def test_another_wording(self, root, records, tmp_path):
        template = tmp_path / "template.txt"
        template.write_text("$frames Where is $expression?")
        _, output = build(root, tmp_path, records, "--prompt-template", template)
        row = json.loads((output / "train.json").read_text())[0]
        assert row["messages"][1]["content"] == "(0s)<image>, (3s)<image> Where is the square?"

    @pytest.mark.parametrize(
        "thinking",
        ["an <image>", "a <VIDEO> of", "<audio>", "x<|im_end|>", "<|object 1|>", "so </think> it is", "< Answer >"],
    )
    def test_words_that_would_be_control_marks(self, root, records, tmp_path, thinking, capsys):
        code, output = build(root, tmp_path, records, thinking=thinking)
        assert code == 2
        assert "error: UVO/-a_b/1: " in capsys.readouterr().err
        assert not output.exists()

    def test_how_the_trained_model_wants_to_be_asked(self, root, records, tmp_path):
        template = tmp_path / "template.txt"
        template.write_text("$frames Where is $expression?")
        _, output = build(root, tmp_path, records)
        assert prompt_settings.read(output) == prompt_settings.PromptSettings(2, (56, 56), "Qwen2.5-VL", None, 1024)
        build(root, tmp_path, records, "--prompt-template", template, "--max-new-tokens", 120)
        assert prompt_settings.read(output) == prompt_settings.PromptSettings(
            2, (56, 56), "Qwen2.5-VL", "$frames Where is $expression?", 120
        )

    @pytest.mark.parametrize(
        ("sizes", "words"),
        [
            ([(56, 56), (84, 84)], r"different model sizes: 56x56 (UVO/-a_b/0), 84x84 (UVO/-a_b/1)"),
            ([(50, 56), (50, 56)], "use 56x56"),
        ],
    )
    def test_sizes_that_do_not_go(self, root, records, tmp_path, sizes, words, capsys):
        changed = [replace(r, clip=replace(r.clip, size=s)) for r, s in zip(records, sizes, strict=True)]
        assert build(root, tmp_path, changed)[0] == 2
        assert words in capsys.readouterr().err

    def test_a_record_of_a_video_outside(self, root, records, tmp_path, capsys):
        sample = replace(records[0].sample, video="../../UVO/-a_b")
        assert build(root, tmp_path, [replace(records[0], sample=sample)])[0] == 2
        assert "'../../UVO/-a_b/0' is not in" in capsys.readouterr().err

    @pytest.mark.parametrize("option", [("--workers", 0), ("--name", "../x"), ("--max-new-tokens", 0)])
    def test_options_that_make_no_sense(self, root, records, tmp_path, option, capsys):
        assert build(root, tmp_path, records, *option)[0] == 2
        assert option[0] in capsys.readouterr().err

    def test_no_records(self, root, tmp_path, capsys):
        assert build(root, tmp_path, [])[0] == 2
        assert "no records" in capsys.readouterr().err


class TestPictures:
    @pytest.mark.parametrize("workers", [1, 2])
    def test_they_are_the_resized_frames(self, world, tmp_path, workers):
        records = cases.make_records(world)
        code, output = build(world, tmp_path, records, "--workers", workers, split="train")
        assert code == 0
        shown = {(r.sample.video, t): r.sample for r in records for t in r.clip.frame_ids}
        assert len(list(output.glob("images/**/*.png"))) == len(shown)
        for (_, t), sample in shown.items():
            stored = np.asarray(Image.open(output / build_sft.picture_name(sample, t)))
            assert np.array_equal(stored, frames.resize(frames.load(sample.frame_path(t)), (84, 84)))

    def test_finished_ones_are_kept_and_the_rest_is_made(self, root, records, tmp_path, monkeypatch, hand_made):
        _, output = build(root, tmp_path, records)
        first, last = (output / f"images/UVO/-a_b/{name}.png" for name in ("00000", "00015"))
        before = last.read_bytes()
        loaded = []
        load = frames.load
        monkeypatch.setattr(frames, "load", lambda path, **how: loaded.append(path.stem) or load(path, **how))
        build(root, tmp_path, records)
        assert loaded == []
        last.unlink()
        left = last.with_name(f".{last.name}.abcdef_1")
        left.write_bytes(before[:100])  # what a killed run leaves
        build(root, tmp_path, records)
        assert loaded == ["00015"]
        assert last.read_bytes() == before
        assert not left.exists()
        for seconds in (2e9, 1e9):  # a newer frame, then an older one
            os.utime(hand_made.frame("00000"), (seconds, seconds))
            build(root, tmp_path, records)
        assert loaded == ["00015", "00000", "00000"]
        assert first.exists()

    @pytest.mark.parametrize(
        "damage", [lambda data: data[:200], lambda data: b"", lambda data: data[:-9] + b"x" + data[-8:]]
    )
    def test_a_damaged_picture_is_made_again(self, root, records, tmp_path, damage, capsys):
        _, output = build(root, tmp_path, records)
        picture = output / "images/UVO/-a_b/00000.png"
        whole = picture.read_bytes()
        picture.write_bytes(damage(whole))
        capsys.readouterr()
        assert build(root, tmp_path, records)[0] == 0
        assert picture.read_bytes() == whole
        assert "1 pictures were damaged or their frames have changed" in capsys.readouterr().err

    def test_another_frame_of_the_same_name_is_another_picture(self, root, records, tmp_path, hand_made):
        """The new frame is older than the picture, as one from an archive is."""
        _, output = build(root, tmp_path, records)
        frame, picture = hand_made.frame("00000"), output / "images/UVO/-a_b/00000.png"
        Image.new("RGB", (64, 48), (9, 99, 9)).save(frame)
        os.utime(frame, (1e9, 1e9))
        build(root, tmp_path, records)
        assert np.asarray(Image.open(picture)).reshape(-1, 3).mean(axis=0).round().tolist() == [9, 99, 9]

    def test_pictures_that_nobody_knows_the_source_of_are_made_again(self, root, records, tmp_path):
        _, output = build(root, tmp_path, records)
        picture = output / "images/UVO/-a_b/00000.png"
        whole = picture.read_bytes()
        head = b'{"picture": "images/UVO/-a_b/00000.png", "sou'
        for content in (None, head, head + b'rce": null}\n', head + b'rce": 1}\n', b'{"picture": [1], "source": 1}\n'):
            (output / "pictures.jsonl").unlink()
            if content:
                (output / "pictures.jsonl").write_bytes(content)
            Image.new("RGB", (56, 56)).save(picture)
            assert build(root, tmp_path, records)[0] == 0
            assert picture.read_bytes() == whole

    def test_a_note_that_cannot_be_read_is_named(self, root, records, tmp_path, capsys):
        _, output = build(root, tmp_path, records)
        (output / "pictures.jsonl").write_text("[1]\n")
        assert build(root, tmp_path, records)[0] == 2
        said = capsys.readouterr().err
        assert "remove the file, and the pictures are made again" in said
        assert said.count("pictures.jsonl") == 1

    def test_rows_of_other_inputs_do_not_outlive_a_stopped_build(self, root, records, tmp_path, hand_made, capsys):
        _, output = build(root, tmp_path, records)
        (output / "images/UVO/-a_b/00015.png").unlink()
        hand_made.frame("00015").write_bytes(b"no picture")
        assert build(root, tmp_path, records)[0] == 2
        assert (output / "train.json").exists()  # the rows are those of these inputs
        assert build(root, tmp_path, records, thinking="Other words.")[0] == 2
        assert not (output / "train.json").exists()
        assert not (output / "dataset_info.json").exists()

    def test_two_builds_into_one_folder(self, root, records, tmp_path, capsys):
        _, output = build(root, tmp_path, records)
        with atomic.Lock(output / ".lock"):
            assert build(root, tmp_path, records)[0] == 2
        assert "another process is writing here" in capsys.readouterr().err
        assert build(root, tmp_path, records)[0] == 0

    def test_a_full_disk_is_one_line(self, root, records, tmp_path, monkeypatch, capsys):
        def full(path, data):
            raise OSError(errno.ENOSPC, "No space left on device", str(path))

        monkeypatch.setattr(atomic, "write_bytes", full)
        assert build(root, tmp_path, records)[0] == 2
        assert "build.json: no space left; free some and run the same command again" in capsys.readouterr().err

    @pytest.mark.parametrize("option", ["--cot", "--prompt-template", "--meta"])
    def test_a_pipe_as_an_input_does_not_hang(self, root, records, tmp_path, option, capsys):
        os.mkfifo(tmp_path / "pipe")
        assert build(root, tmp_path, records, option, tmp_path / "pipe")[0] == 2
        assert "no regular file (a pipe" in capsys.readouterr().err

    def test_pictures_of_elsewhere_are_not_mixed_in(self, root, records, tmp_path, capsys):
        build(root, tmp_path, records)
        larger = [replace(record, clip=replace(record.clip, size=(84, 84))) for record in records]
        assert build(root, tmp_path, larger)[0] == 2
        assert "name another --output" in capsys.readouterr().err

    def test_a_broken_frame_is_named_and_the_rest_stays(self, root, records, tmp_path, hand_made, capsys):
        hand_made.frame("00015").write_bytes(b"no picture")
        code, output = build(root, tmp_path, records)
        assert code == 2
        assert "00015.jpg: the picture cannot be decoded" in capsys.readouterr().err
        assert [path.name for path in output.glob("images/**/*.png")] == ["00000.png"]
        assert not (output / "train.json").exists()


@pytest.fixture(scope="module")
def chosen(world):
    """Records of several videos of the world."""
    return cases.make_records(world)[::12]


@pytest.fixture(scope="module")
def batches(world, chosen, tmp_path_factory):
    """Each record as LLaMA-Factory trains on it."""
    folder = tmp_path_factory.mktemp("prompt")
    _, data = build(world, folder, chosen, split="train")
    settings = {
        "model_name_or_path": world / "tiny_policy", "dataset_dir": data, "output_dir": folder / "out",
    }  # fmt: skip
    command = [sys.executable, Path(__file__).with_name("llamafactory_batch.py"), "training_scripts/sft_tiny.yaml"]
    command += [f"{key}={value}" for key, value in settings.items()] + [folder / "batches.pt"]
    done = subprocess.run(
        list(map(str, command)), cwd=ROOT, capture_output=True, text=True, env=cases.environment(folder)
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return torch.load(folder / "batches.pt")


@pytest.fixture(scope="module")
def processor(world):
    return pretrained.load_processor(world / "tiny_policy")


@pytest.fixture(scope="module")
def grpo(world, chosen, processor):
    """Each record's prompt as GRPO's workers process it."""
    task = KeyframeTask(open_dataset("revos", world, split="train"), policy="linspace", n=4, side=cases.SIDE)
    prompts = {prompt.uid: prompt for prompt in (task.get(i, epoch=0) for i in range(len(task)))}
    return [inputs.process(prompts[r.sample.key], processor, max_length=2048) for r in chosen]


@pytest.mark.slow
class TestOnePrompt:
    """SFT, GRPO and inference: the same tokens, pixels and positions for the same sample and clip."""

    def test_frames_keep_their_size(self, batches):
        """84 px are 6 x 6 patches of 14 px, merged to 3 x 3 tokens."""
        for batch in batches:
            assert batch["image_grid_thw"].tolist() == [[1, 6, 6]] * 4

    def test_as_grpo_asks(self, batches, grpo, processor):
        pad = processor.tokenizer.convert_tokens_to_ids("<|image_pad|>")
        for batch, ours in zip(batches, grpo, strict=True):
            ids = batch["input_ids"][0]
            assert torch.equal(ids[: len(ours)], ours.input_ids)
            assert torch.equal(batch["pixel_values"], ours.pixel_values)
            assert int((ids == pad).sum()) == 4 * 3 * 3

    def test_as_inference_asks(self, world, batches, chosen):
        policy = EnginePolicy("hf", world / "tiny_policy")
        for batch, record in zip(batches, chosen, strict=True):
            video = frames.VideoFrames(record.sample)
            images = tuple(frames.resize(video[t], record.clip.size) for t in record.clip.frame_ids)
            [asked] = policy.prompts([Question(record.sample, record.clip, images)])
            assert torch.equal(batch["input_ids"][0, : len(asked)], asked.input_ids)
            assert torch.equal(batch["pixel_values"], asked.pixel_values)

    def test_only_the_reply_is_learnt(self, batches, grpo, chosen, processor):
        for batch, ours, record in zip(batches, grpo, chosen, strict=True):
            labels = batch["labels"][0]
            assert (labels[: len(ours)] == -100).all()
            assert (labels[len(ours) :] == batch["input_ids"][0, len(ours) :]).all()
            assert processor.decode(labels[len(ours) :]) == f"{record.reply}<|im_end|>\n"

    def test_positions_agree(self, world, batches, grpo):
        """The untrained adapter changes nothing, so equal logits mean equal rotary positions."""
        model = pretrained.load_base(world / "tiny_policy").eval()
        for batch, ours in zip(batches, grpo, strict=True):
            with torch.inference_mode():
                logits = model(
                    input_ids=ours.input_ids[None],
                    mm_token_type_ids=ours.mm_token_type_ids[None],
                    pixel_values=ours.pixel_values,
                    image_grid_thw=ours.image_grid_thw,
                ).logits
            assert torch.allclose(logits, batch["logits"][:, : len(ours)], atol=1e-4)
