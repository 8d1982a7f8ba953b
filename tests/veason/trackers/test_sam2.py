"""SAM2 shared between prompts, held against the stock calls on the same tiny random weights."""

from __future__ import annotations

import contextlib
import gc
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from veason import masks
from veason.errors import DataError
from veason.trackers import open_tracker, sam2_tiny
from veason.trackers.feature_store import FeatureStore
from veason.trackers.sam2 import Sam2Tracker
from veason.trackers.sam2_tiny import TinySam2, tiny_sam2

pytestmark = pytest.mark.filterwarnings("ignore:cannot import name '_C'")

SIZE = (60, 90)
BOXES = [(10.0, 8.0, 40.0, 30.0), (50.0, 20.0, 80.0, 55.0), (0.0, 0.0, 89.0, 59.0)]


def write_video(folder: Path, length: int, size: tuple[int, int] = SIZE) -> list[np.ndarray]:
    """A drifting blotchy picture as JPEGs in `folder`; the decoded frames."""
    folder.mkdir(parents=True, exist_ok=True)
    blotches = np.random.default_rng(7).integers(0, 255, (6, 9, 3), dtype=np.uint8)
    picture = np.asarray(Image.fromarray(blotches).resize(size[::-1]))
    for t in range(length):
        Image.fromarray(np.roll(picture, 3 * t, axis=1)).save(folder / f"{t:05d}.jpg")
    return [np.asarray(Image.open(folder / f"{t:05d}.jpg")) for t in range(length)]


def stock_masks(predictor, folder: Path, keyframe: int, boxes) -> list[list[dict]]:
    """Returns the masks of the official calls: RLEs, objects x frames."""
    state = predictor.init_state(str(folder))
    for k, box in enumerate(boxes):
        predictor.add_new_points_or_box(state, frame_idx=keyframe, obj_id=k, box=np.array(box, dtype=np.float32))
    found = [[None] * state["num_frames"] for _ in boxes]
    for reverse in (False, True):
        for t, _, logits in predictor.propagate_in_video(state, start_frame_idx=keyframe, reverse=reverse):
            for k in range(len(boxes)):
                found[k][t] = masks.encode((logits[k, 0] > 0.0).numpy())
    return found


@contextlib.contextmanager
def counted(module: torch.nn.Module):
    """A list that grows by one entry with each forward call of `module`."""
    calls: list[int] = []
    handle = module.register_forward_hook(lambda *_: calls.append(1))
    yield calls
    handle.remove()


def as_lists(track) -> list[list[dict]]:
    return [list(rles) for rles in track.objects]


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """A tiny model is slower on several, far slower on a busy machine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory) -> TinySam2:
    return tiny_sam2(tmp_path_factory.mktemp("tiny"), 0)


@pytest.fixture(scope="module")
def tracker(tiny) -> Sam2Tracker:
    return Sam2Tracker(config=tiny.config, checkpoint=tiny.checkpoint, device="cpu")


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("video")


@pytest.fixture(scope="module")
def frames(folder) -> list[np.ndarray]:
    return write_video(folder, 7)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_masks_are_those_of_the_stock_calls_bit_for_bit(tmp_path, folder, frames, seed):
    files = tiny_sam2(tmp_path, seed)
    tracker = open_tracker("sam2", config=files.config, checkpoint=files.checkpoint, device="cpu")
    encoded = tracker.encode(frames)
    for keyframe in (0, 3, 6):
        track = tracker.track(encoded, keyframe=keyframe, boxes=BOXES)
        assert as_lists(track) == stock_masks(tracker.predictor, folder, keyframe, BOXES)
        assert track.size == SIZE
        assert len({rle["counts"] for rles in track.objects for rle in rles}) > len(frames)  # the masks say something


def test_masks_are_the_stock_ones_when_memory_entries_are_dropped(tmp_path):
    """40 frames: more than twice the 16 that the model looks back, before which nothing could be dropped."""
    files = tiny_sam2(tmp_path, 3)
    tracker = Sam2Tracker(config=files.config, checkpoint=files.checkpoint, device="cpu")
    frames = write_video(tmp_path / "video", 40)
    encoded = tracker.encode(frames)
    for keyframe in (0, 20):
        track = tracker.track(encoded, keyframe=keyframe, boxes=BOXES[:1])
        assert as_lists(track) == stock_masks(tracker.predictor, tmp_path / "video", keyframe, BOXES[:1])


@pytest.mark.parametrize("settings", [{"num_maskmem": 3, "max_obj_ptrs_in_encoder": 4}, {"num_maskmem": 4}])
@pytest.mark.parametrize("stride", [1, 3])
def test_masks_are_the_stock_ones_for_other_windows(tmp_path, settings, stride):
    files = tiny_sam2(tmp_path, 4, memory_temporal_stride_for_eval=stride, **settings)
    tracker = Sam2Tracker(config=files.config, checkpoint=files.checkpoint, device="cpu")
    frames = write_video(tmp_path / "video", 24)
    track = tracker.track(tracker.encode(frames), keyframe=12, boxes=BOXES[:1])
    assert as_lists(track) == stock_masks(tracker.predictor, tmp_path / "video", 12, BOXES[:1])


def test_memory_bank_holds_a_window_not_the_video(tmp_path):
    files = tiny_sam2(tmp_path, 4, num_maskmem=3, max_obj_ptrs_in_encoder=4)
    tracker = Sam2Tracker(config=files.config, checkpoint=files.checkpoint, device="cpu")
    encoded = tracker.encode(write_video(tmp_path / "video", 30))
    held = []
    forget = tracker._forget

    def spy(state, *args):
        forget(state, *args)
        held.append(len(state["output_dict_per_obj"][0]["non_cond_frame_outputs"]))

    tracker._forget = spy
    tracker.track(encoded, keyframe=15, boxes=BOXES[:1])
    assert max(held) == 9  # window 4: four frames after the keyframe for the reverse pass, and t - 4 … t
    assert held[-1] == 5  # frames 0 … 4, for a frame that does not come


def test_each_frame_is_encoded_once_however_many_prompts(tracker, frames):
    with counted(tracker.predictor.image_encoder) as calls:
        encoded = tracker.encode(frames)
        for keyframe in (0, 3, 6):
            tracker.track(encoded, keyframe=keyframe, boxes=BOXES)
    assert len(calls) == len(frames)


def test_prompts_do_not_disturb_each_other(tracker, frames):
    encoded = tracker.encode(frames)
    first = tracker.track(encoded, keyframe=2, boxes=BOXES[:2])
    tracker.track(encoded, keyframe=5, boxes=BOXES[2:])
    assert tracker.track(encoded, keyframe=2, boxes=BOXES[:2]) == first


@pytest.mark.parametrize("per_pass", [1, 2])
def test_grouping_objects_changes_no_bit(tiny, tracker, frames, per_pass):
    grouped = Sam2Tracker(config=tiny.config, checkpoint=tiny.checkpoint, device="cpu", max_objects_per_pass=per_pass)
    expected = tracker.track(tracker.encode(frames), keyframe=3, boxes=BOXES)
    assert grouped.track(grouped.encode(frames), keyframe=3, boxes=BOXES) == expected


def test_masks_that_must_not_overlap_stay_in_one_group(tmp_path, frames, folder):
    files = tiny_sam2(tmp_path, 0, non_overlap_masks=True)
    tracker = Sam2Tracker(config=files.config, checkpoint=files.checkpoint, device="cpu", max_objects_per_pass=1)
    track = tracker.track(tracker.encode(frames), keyframe=3, boxes=BOXES)
    assert as_lists(track) == stock_masks(tracker.predictor, folder, 3, BOXES)
    for t in range(track.length):
        assert np.count_nonzero(masks.track_union(track, t)) == sum(masks.area(rles[t]) for rles in track.objects)


def test_features_from_the_file_give_the_same_masks(tiny, tracker, frames, tmp_path):
    expected = tracker.track(tracker.encode(frames), keyframe=3, boxes=BOXES)
    whole = tracker.encode(frames[:1]).features
    per_frame = sum(tensor.untyped_storage().nbytes() for tensor in whole._frames[0])
    spilling = Sam2Tracker(
        config=tiny.config,
        checkpoint=tiny.checkpoint,
        device="cpu",
        feature_budget_bytes=2 * per_frame,
        spill_dir=tmp_path,
    )
    encoded = spilling.encode(frames)
    assert encoded.features.spilled == len(frames) - 2
    assert spilling.track(encoded, keyframe=3, boxes=BOXES) == expected
    assert not list(tmp_path.iterdir())  # the file has no name to leave behind


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("budget", [0, 1 << 20])
def test_store_gives_back_bits_and_strides(dtype, budget):
    cpu = torch.device("cpu")
    store = FeatureStore(device=cpu, storage=cpu, budget_bytes=budget)
    plain = torch.randn(1, 4, 6, 6).to(dtype)
    last = torch.randn(1, 8, 3, 3).to(dtype).to(memory_format=torch.channels_last)
    position = torch.randn(1, 4, 6, 6)
    store.append([plain, last], [position, position])
    store.append([plain + 1, last + 1], [position, position])
    assert store.spilled == (2 if budget == 0 else 0)
    for frame in (1, 0):
        _, output = store.get(frame)
        for found, kept in zip(output["backbone_fpn"], [plain + frame, last + frame], strict=True):
            assert torch.equal(found, kept)
            assert found.stride() == kept.stride()
        assert output["vision_pos_enc"][0] is position
    with pytest.raises(IndexError):
        store.get(2)


def test_store_closes_its_file_with_it():
    cpu = torch.device("cpu")
    store = FeatureStore(device=cpu, storage=cpu, budget_bytes=0)
    store.append([torch.zeros(1, 1, 2, 2)], [torch.zeros(1, 1, 2, 2)])
    file = store._file
    del store
    gc.collect()
    assert sys.getrefcount(file) == 2  # nobody but this test keeps it open


def test_box_outside_degenerate_or_none(tracker, frames):
    encoded = tracker.encode(frames)
    boxes = [(-50.0, -50.0, -10.0, -10.0), BOXES[0], (40.0, 30.0, 39.0, 40.0), (95.0, 5.0, 99.0, 9.0)]
    track = tracker.track(encoded, keyframe=3, boxes=boxes)
    assert [sum(map(masks.area, rles)) > 0 for rles in track.objects] == [False, True, False, False]
    assert track.objects[1] == tracker.track(encoded, keyframe=3, boxes=BOXES[:1]).objects[0]
    assert all(rle["size"] == list(SIZE) for rles in track.objects for rle in rles)
    assert tracker.track(encoded, keyframe=3, boxes=[]).objects == ()


def test_box_is_clipped_to_the_frame(tracker, frames):
    encoded = tracker.encode(frames)
    inside = tracker.track(encoded, keyframe=0, boxes=[(0.0, 10.0, 89.0, 59.0)])
    assert tracker.track(encoded, keyframe=0, boxes=[(-20.0, 10.0, 200.0, 75.0)]) == inside


def test_hundreds_of_boxes(tracker, frames):
    encoded = tracker.encode(frames[:2])
    boxes = [(float(k % 60), float(k % 30), float(k % 60 + 20), float(k % 30 + 20)) for k in range(200)]
    track = tracker.track(encoded, keyframe=1, boxes=boxes)
    assert len(track.objects) == 200
    for k in (0, 16, 199):
        assert track.objects[k] == tracker.track(encoded, keyframe=1, boxes=[boxes[k]]).objects[0]


def test_one_frame(tracker, frames):
    track = tracker.track(tracker.encode(frames[:1]), keyframe=0, boxes=BOXES)
    assert track.length == 1
    assert len(track.objects) == 3


def test_callers_mistakes_are_named(tracker, frames):
    encoded = tracker.encode(frames[:2])
    with pytest.raises(ValueError, match=r"box 1 is \(0\.0, nan, 5\.0, 5\.0\)"):
        tracker.track(encoded, keyframe=0, boxes=[BOXES[0], (0.0, float("nan"), 5.0, 5.0)])
    for keyframe in (-1, 2):
        with pytest.raises(ValueError, match=f"keyframe {keyframe} of a video of 2 frames"):
            tracker.track(encoded, keyframe=keyframe, boxes=BOXES)
    with pytest.raises(ValueError, match="no frames"):
        tracker.encode([])
    with pytest.raises(ValueError, match=r"frame 1 is \(50, 90\), the frames before it are \(60, 90\)"):
        tracker.encode([frames[0], frames[1][:50]])
    with pytest.raises(ValueError, match=r"frame 0 is float64 \(60, 90, 3\)"):
        tracker.encode([frames[0] / 255.0])


def test_checkpoint_that_does_not_fit_is_counted_and_named(tiny, tmp_path):
    weights = torch.load(tiny.checkpoint, weights_only=True)["model"]
    weights.pop("no_mem_embed")
    weights["extra.weight"] = torch.zeros(1)
    weights["no_obj_ptr"] = torch.zeros(1, 3)
    torch.save({"model": weights}, tmp_path / "bad.pt")
    expected = (
        r"1 missing \(first 'no_mem_embed'\), 1 unexpected \(first 'extra.weight'\), "
        r"1 of another shape \(first 'no_obj_ptr'\)"
    )
    with pytest.raises(ValueError, match=expected):
        Sam2Tracker(config=tiny.config, checkpoint=tmp_path / "bad.pt", device="cpu")


def test_safetensors_checkpoint(tiny, tracker, frames, tmp_path):
    save_file(torch.load(tiny.checkpoint, weights_only=True)["model"], tmp_path / "tiny.safetensors")
    other = Sam2Tracker(config=tiny.config, checkpoint=tmp_path / "tiny.safetensors", device="cpu")
    for name, tensor in tracker.predictor.state_dict().items():
        assert torch.equal(tensor, other.predictor.state_dict()[name])


def test_config_may_be_a_name_in_the_package(tiny):
    """A released config is found, and the tiny weights do not fit it."""
    with pytest.raises(ValueError, match=r"does not fit configs/sam2\.1/sam2\.1_hiera_t\.yaml"):
        Sam2Tracker(config="configs/sam2.1/sam2.1_hiera_t.yaml", checkpoint=tiny.checkpoint, device="cpu")
    with pytest.raises(DataError, match=r"'configs/nothing\.yaml' is neither a file nor a name"):
        Sam2Tracker(config="configs/nothing.yaml", checkpoint=tiny.checkpoint, device="cpu")


class Hostile:
    """Unpickled carelessly, it would write a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (open, (str(self.path), "w"))


def test_a_checkpoint_cannot_run_code_and_must_be_one(tiny, tmp_path):
    torch.save({"model": {"x": Hostile(tmp_path / "written")}}, tmp_path / "hostile.pt")
    (tmp_path / "noise.pt").write_bytes(b"not a checkpoint at all")
    (tmp_path / "noise.safetensors").write_bytes(b"\xff" * 40)
    for name in ("hostile.pt", "noise.pt", "noise.safetensors"):
        with pytest.raises(DataError, match=f"{name}: cannot be read as a file of weights alone"):
            Sam2Tracker(config=tiny.config, checkpoint=tmp_path / name, device="cpu")
    (tmp_path / "pointer.pt").write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n")
    (tmp_path / "page.safetensors").write_bytes(b"<!DOCTYPE html><html></html>")
    for name, said in (("pointer.pt", "a Git LFS pointer"), ("page.safetensors", "a web page")):
        with pytest.raises(DataError, match=f"{name}: not a file of weights but {said}"):
            Sam2Tracker(config=tiny.config, checkpoint=tmp_path / name, device="cpu")
    assert not (tmp_path / "written").exists()
    with pytest.raises(DataError, match=r"none\.pt: no such checkpoint"):
        Sam2Tracker(config=tiny.config, checkpoint=tmp_path / "none.pt", device="cpu")


def test_wrong_options_are_named(tiny):
    with pytest.raises(ValueError, match="dtype is 'int8', expected one of float32"):
        Sam2Tracker(config=tiny.config, checkpoint=tiny.checkpoint, dtype="int8")
    with pytest.raises(ValueError, match="max_objects_per_pass is 0"):
        Sam2Tracker(config=tiny.config, checkpoint=tiny.checkpoint, max_objects_per_pass=0)
    with pytest.raises(ValueError, match="no tracker is called 'sam3'"):
        open_tracker("sam3")


def test_bfloat16_is_the_stock_result_under_autocast(tiny, folder, frames):
    tracker = Sam2Tracker(config=tiny.config, checkpoint=tiny.checkpoint, device="cpu", dtype="bfloat16")
    track = tracker.track(tracker.encode(frames), keyframe=3, boxes=BOXES)
    assert not torch.is_autocast_enabled("cpu")
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert as_lists(track) == stock_masks(tracker.predictor, folder, 3, BOXES)


def test_missing_package_says_how_to_install(monkeypatch):
    monkeypatch.delitem(sys.modules, "veason.trackers.sam2")
    monkeypatch.setitem(sys.modules, "sam2", None)
    with pytest.raises(DataError, match="the sam2 tracker cannot import 'sam2': `make setup`"):
        open_tracker("sam2", config="x", checkpoint="y")


def test_no_progress_bar_and_stock_keeps_its_own(tracker, frames, folder, capfd):
    tracker.track(tracker.encode(frames), keyframe=3, boxes=BOXES[:1])
    assert "propagate" not in capfd.readouterr().err
    stock_masks(tracker.predictor, folder, 3, BOXES[:1])
    assert "propagate" in capfd.readouterr().err


def test_tiny_sam2_is_reproducible_and_leaves_the_random_state_alone(tmp_path, tiny):
    torch.manual_seed(5)
    before = torch.random.get_rng_state()
    again, other = tiny_sam2(tmp_path / "again", 0), tiny_sam2(tmp_path / "other", 1)
    assert torch.equal(torch.random.get_rng_state(), before)
    assert again.checkpoint.read_bytes() == tiny.checkpoint.read_bytes()
    assert again.config.read_bytes() == tiny.config.read_bytes()
    assert other.checkpoint.read_bytes() != tiny.checkpoint.read_bytes()
    with pytest.raises(ValueError, match="image_size is 100, expected a multiple of 32"):
        sam2_tiny.tiny_sam2(tmp_path, 0, image_size=100)
