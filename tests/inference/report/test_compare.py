"""Three runs over a world small enough to compare by hand: the truth itself, recorded answers, and hostile texts.

One video of four frames, 48 x 64. A 10 x 10 square moves 8 px a frame; a 6 x 6 dot is there from frame 1 on. Asked are
the square (referring), both (reasoning; areas 100, 136, 136, 136) and a dog that is absent.
"""

import json
import os
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser

import cv2
import numpy as np
import pytest

from eval import revos
from eval.answers import Quality
from eval.results import Row
from inference import predict
from inference.overlay import PALETTE
from inference.report import compare, pictures, tables
from inference.report.tables import Entry
from veason import masks
from veason.errors import DataError
from veason.types import VideoSample

SIZE, FRAMES, VIDEO = (48, 64), ("00000", "00005", "00010", "00015"), "UVO/-a_b"
HOSTILE = "</pre></article><script>alert(1)</script><img src=x onerror=alert(2)> {{cards}} & \"'\x00\u202e"
NAMES = ("base", "<b>SFT</b>", "GRPO")


def square(t):
    return filled(4 + 8 * t, 20, 10)


def dot(t):
    return filled(50, 2, 6)


def filled(x, y, side):
    mask = np.zeros(SIZE, bool)
    mask[y : y + side, x : x + side] = True
    return mask


def write_world(root):
    folder = root / "JPEGImages" / VIDEO
    folder.mkdir(parents=True)
    for t, frame in enumerate(FRAMES):
        picture = np.full((*SIZE, 3), 90, np.uint8)
        picture[square(t)], picture[dot(t)] = (40, 40, 220), (220, 40, 40)
        cv2.imwrite(str(folder / f"{frame}.jpg"), picture)
    squares, dots = ([masks.encode(shape(t)) for t in range(4)] for shape in (square, dot))
    (root / "mask_dict.json").write_text(json.dumps({"1": squares, "2": [None, *dots[1:]]}))
    asked = (("the square", [1], 0), ("<i>both</i> of them?", [1, 2], 1), ("the dog", [], 2))
    expressions = {
        str(i): {"exp": text, "obj_id": list(range(len(ids))), "anno_id": ids, "type_id": type_id}
        for i, (text, ids, type_id) in enumerate(asked)
    }
    video = {"frames": list(FRAMES), "height": SIZE[0], "width": SIZE[1], "expressions": expressions}
    (root / "meta_expressions_valid_.json").write_text(json.dumps({"videos": {VIDEO: video}}))


def predict_and_score(root, run, *options):
    arguments = ["--data-root", root, "--split", "valid", "--output", run, *options]
    predict.main([str(argument) for argument in arguments])
    score(root, run)


def score(root, run, *options):
    arguments = ["--gt", root, "--pred", run, "--out", run / "scores", "--workers", 1, *options]
    assert revos.main([str(argument) for argument in arguments]) == 0


def replay(path, *records):
    lines = [json.dumps({"video": VIDEO, "exp_id": str(i), **record}) + "\n" for i, record in enumerate(records)]
    path.write_text("".join(lines))
    return ["--policy", "replay", "--replay", path]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A world and three scored runs over it: `hostile`, `replay`, `oracle`. Not to be changed."""
    base = tmp_path_factory.mktemp("compare")
    root = base / "world"
    write_world(root)
    predict_and_score(root, base / "oracle", "--policy", "oracle")
    answers = (
        {"keyframe": 1, "boxes": [[17, 20, 26, 29]]},  # five columns off: IoU 50 / 150, ratio 1
        {"keyframe": 0, "boxes": [[4, 20, 13, 29], [50, 2, 55, 7]]},  # the dot is not yet there: 1 / 2, ratio 100 / 136
        {"keyframe": 0, "boxes": []},
    )
    predict_and_score(root, base / "replay", *replay(base / "answers.jsonl", *answers))
    said = [{"reply": text, "frame_ids": [0, 1, 2, 3]} for text in (HOSTILE, "no " + HOSTILE, "x" * 9000)]
    predict_and_score(root, base / "hostile", *replay(base / "hostile.jsonl", *said))
    return base


@pytest.fixture
def base(made, tmp_path):
    """A copy of `made` that a test may break."""
    return shutil.copytree(made, tmp_path / "made")


def make(base, *options, runs=("hostile", "replay", "oracle"), names=NAMES, page="comparison"):
    arguments = [*(base / run for run in runs), "--gt", base / "world", "--out", base / "out", *options]
    compare.main([*map(str, arguments), *(["--names", *names] if names else [])])
    return Page((base / "out" / f"{page}.html").read_bytes().decode())


class Page(HTMLParser):
    """A parsed page: tags with their attributes, texts of pre and h3, tables as rows of texts."""

    def __init__(self, source):
        super().__init__(convert_charrefs=True)
        self.source, self.tags, self.stack, self.rows, self.texts = source, [], [], [], {"pre": [], "h3": [], "h4": []}
        self.feed(source)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag in self.texts:
            self.texts[tag].append("")
        if tag == "tr":
            self.rows.append([])
        if tag in ("th", "td"):
            self.rows[-1].append("")
        if tag not in ("meta", "img"):
            self.stack.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.stack.pop() == tag

    def handle_data(self, data):
        for tag, found in self.texts.items():
            if tag in self.stack:
                found[-1] += data
        if {"th", "td"} & {*self.stack}:
            self.rows[-1][-1] += " " * ("small" in self.stack) + data

    def count(self, css_class):
        return sum(attrs.get("class") == css_class for _, attrs in self.tags)


@pytest.fixture(scope="module")
def page(made):
    return make(made)


@pytest.fixture(scope="module")
def document(made, page):
    return json.loads((made / "out" / "comparison.json").read_text())


def test_answers_are_measured_in_per_cent(document):
    hostile, replayed, oracle = document["runs"]
    assert [hostile[name] for name in ("usable", "well_formed", "keyframe_ratio", "box_iou")] == [0, 0, 0, 0]
    assert [oracle[name] for name in ("usable", "well_formed", "keyframe_ratio")] == [100, 100, 100]
    assert oracle["box_iou"] == pytest.approx(100, abs=0.1)  # coordinates of two decimals
    assert (replayed["usable"], replayed["well_formed"]) == (100, 100)
    assert replayed["keyframe_ratio"] == pytest.approx(100 * (1 + 100 / 136) / 2)
    assert replayed["box_iou"] == pytest.approx(100 * (1 / 3 + 1 / 2) / 2, abs=0.1)


def test_scores_are_those_of_the_evaluator(made, document):
    for name, run in zip(("hostile", "replay", "oracle"), document["runs"], strict=True):
        scores = json.loads((made / name / "scores" / "results.json").read_text())
        assert run["jf"] == pytest.approx(scores["overall"]["JF"])
        assert run["jf_referring"] == pytest.approx(scores["referring"]["JF"])
        assert [run[c] for c in ("j", "f", "r")] == [pytest.approx(scores["overall"][c]) for c in ("J", "F", "R")]
    assert document["runs"][0]["jf"] < document["runs"][1]["jf"] < document["runs"][2]["jf"]
    assert (document["expressions"], document["with_target"]) == (3, 2)


def test_differences_are_to_the_first_run(document):
    first, _, last = document["runs"]
    assert set(first["differences"].values()) == {0}
    assert last["differences"]["jf"] == pytest.approx(last["jf"] - first["jf"], abs=1e-5)
    assert last["differences"]["usable"] == 100
    assert last["jf_against_first"] == {"higher": 2, "lower": 0, "equal": 1}


def test_an_empty_list_is_right_where_there_is_no_target(document):
    assert [run["problems"] for run in document["runs"]] == [
        {"no_answer": 3},
        {"none": 2, "no_boxes, rightly": 1},
        {"none": 2, "no_boxes, rightly": 1},
    ]


def test_groups_are_by_type_and_number_of_targets(document):
    named = [(group["type"], group["targets"], group["expressions"]) for group in document["groups"]]
    assert named == [("referring", "one target", 1), ("reasoning", "several targets", 1), ("absent", "no target", 1)]
    assert document["groups"][1]["box_iou"][1] == pytest.approx(50, abs=0.1)
    assert document["groups"][2]["box_iou"] == [None, None, None]
    assert document["groups"][2]["jf"] == [100, 100, 100]


def test_the_table_is_printed_and_on_the_page(made, page, document, capsys):
    make(made)
    lines = capsys.readouterr().out.splitlines()
    printed = next(line for line in lines if line.startswith("GRPO "))
    difference = next(line for line in lines if line.startswith("GRPO - base"))
    jf, gain = (document["runs"][2][key] for key in ("jf", "differences"))
    assert printed.split()[:3] == ["GRPO", "3", f"{jf:.2f}"]
    assert f"+{gain['jf']:.2f}" in difference.split()
    row = next(row for row in page.rows if row[0] == "GRPO")
    assert row[1:3] == ["3", f"{jf:.2f} +{gain['jf']:.2f}"]
    assert re.search(rf"<td class=main>{jf:.2f}<small>", page.source)


def test_hostile_texts_stay_texts(page):
    assert page.stack == []
    assert {tag for tag, _ in page.tags}.isdisjoint({"script", "img", "i", "iframe", "link"})
    assert not any(name.startswith("on") for _, attrs in page.tags for name in attrs)
    assert "<i>both</i> of them?" in page.texts["h3"]
    assert "<b>SFT</b>" in page.texts["h4"]
    shown = HOSTILE.replace("\x00", "\ufffd")  # as the parser reads a NUL
    assert any(text.strip() in (HOSTILE, shown) for text in page.texts["pre"])
    policy = next(attrs["content"] for _, attrs in page.tags if attrs.get("http-equiv"))
    assert policy == "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
    assert re.findall(r"url\((?!data:image/webp;base64,)|https?://|@import", page.source) == []
    assert f"rgb{PALETTE[0]}" in page.source


def test_hostile_settings_stay_texts(base):
    edit(base / "oracle" / "run.json", lambda run: run["settings"].update({"model": HOSTILE, "<u>": "{{ 7 * 7 }}"}))
    page = make(base)
    assert page.stack == []
    assert {tag for tag, _ in page.tags}.isdisjoint({"script", "img", "u"})
    assert next(row for row in page.rows if row[0] == "<u>") == ["<u>", "–", "–", "{{ 7 * 7 }}"]


def test_the_command_is_a_module_of_inference(made):
    line = [sys.executable, "-m", "inference.compare", made / "oracle", "--gt", made / "world", "--out", made / "out"]
    done = subprocess.run(list(map(str, line)), capture_output=True, text=True, check=False)
    assert (done.returncode, "two runs or more, found 1" in done.stderr) == (2, True)


def test_a_long_reply_is_cut(page):
    assert max(map(len, page.texts["pre"])) <= compare.LONGEST_REPLY + 1
    assert "… and 1000 more characters." in page.source


def test_every_run_has_a_row_with_keyframe_and_the_same_further_frames(page):
    assert page.texts["h3"] == ["the square", "<i>both</i> of them?", "the dog"]
    assert page.texts["h4"] == [*NAMES] * 3
    assert page.count("answer") == 9
    assert page.count("empty key") == 3 + 2  # nothing usable of the first run, and of none for the dog
    assert page.source.count(">says there is no target</div>") == 2
    assert page.count("key") == 4
    assert page.count("pb") == 1 + 2 + 1 + 2 + 1  # the legend's one, replay's, the oracle's
    captions = re.findall(r"<figcaption>frame (\d)</figcaption>", page.source)
    assert captions == ["0", "2", "3"] * 9


def test_each_frame_is_in_the_page_once(page):
    rules = re.findall(r"^\.(v\d+f\d+)\{background-image", re.sub("<style>", "\n", page.source), re.M)
    assert sorted(rules) == sorted(set(rules))
    used = {attrs["class"] for tag, attrs in page.tags if tag == "svg" and "role" in attrs}
    assert used == set(rules)


def test_boxes_are_drawn_at_the_scale_of_the_masks():
    """A frame of 40 x 20 in a drawing of half the size: pixels 4 to 13 become pixels 2 to 6."""
    assert pictures.in_drawing([(4, 8, 13, 11)], (40, 20), (20, 10)) == [(2, 4, 6, 5)]


def test_two_runs_without_names_or_examples(base):
    page = make(base, "--examples", 0, runs=("replay", "oracle"), names=())
    assert page.texts["h3"] == []
    assert next(row for row in page.rows if row[0] == "oracle")
    assert page.count("empty key") == 0


def test_curves_are_embedded_and_large_ones_shrunk(base, tmp_path):
    small, large = tmp_path / "small.png", tmp_path / "large.png"
    cv2.imwrite(str(small), np.zeros((20, 30, 3), np.uint8))
    noise = np.random.default_rng(0).integers(0, 255, (600, 2000, 3), dtype=np.uint8)
    cv2.imwrite(str(large), cv2.GaussianBlur(noise, (5, 5), 0))
    page = make(base, "--curves", small, large)
    kinds = [attrs["src"].partition(";")[0] for tag, attrs in page.tags if tag == "img"]
    assert kinds == ["data:image/png", "data:image/webp"]
    with pytest.raises(DataError, match=r"run\.json: not a PNG file"):
        make(base, "--curves", base / "oracle" / "run.json")


def test_a_page_that_would_be_too_large_ends_early(base, monkeypatch):
    whole = len(make(base).source.encode())
    monkeypatch.setattr(compare, "LARGEST", whole - 1000)
    page = make(base)
    assert page.texts["h3"][-1] != "the dog"
    assert "Further examples are left out" in page.source
    assert len(page.source.encode()) < whole


def test_a_missing_mask_is_said_in_the_row(base):
    path = base / "oracle" / "Annotations" / VIDEO / "0" / "00010.png"
    path.write_bytes(path.read_bytes()[:40])
    assert "00010.png: the PNG is cut off" in make(base).source


def test_a_run_without_scores_is_told_the_command(base):
    shutil.rmtree(base / "oracle" / "scores")
    with pytest.raises(
        DataError, match=r"not scored yet; run: python -m eval\.revos --gt .*world --pred .*oracle --out"
    ):
        make(base)
    (base / "oracle" / "scores").mkdir()
    (base / "oracle" / "scores" / "results.json").write_text("[]")
    (base / "oracle" / "scores" / "results.csv").write_text("a\n")
    with pytest.raises(DataError, match=r"not the results\.json of an evaluator here"):
        make(base)


@pytest.mark.parametrize("name", ["results.json", "results.csv", "curves"])
def test_a_pipe_is_refused_and_not_waited_for(base, name):
    path = base / "pipe" if name == "curves" else base / "oracle" / "scores" / name
    path.unlink(missing_ok=True)
    os.mkfifo(path)
    with pytest.raises(DataError, match="pipe"):
        make(base, *(["--curves", path] if name == "curves" else []))


def edit(path, change):
    document = json.loads(path.read_text())
    change(document)
    path.write_text(json.dumps(document))


def test_runs_of_other_data_are_refused(base):
    edit(base / "oracle" / "run.json", lambda run: run["settings"].update(meta_sha256="0" * 64))
    with pytest.raises(
        DataError, match=r"oracle: predicted from another expression file .* 000000000000… in run\.json"
    ):
        make(base)
    shutil.copytree(base / "replay", base / "oracle", dirs_exist_ok=True)
    edit(base / "world" / "mask_dict.json", lambda tracks: tracks.update({"3": [None] * 4}))
    with pytest.raises(DataError, match=r"scored on another data set: the hash of mask_dict\.json"):
        make(base)


def test_a_run_of_another_benchmark_is_refused(base):
    edit(base / "oracle" / "run.json", lambda run: run["settings"].update(dataset="mevis"))
    with pytest.raises(DataError, match=r"oracle: the run is of the dataset 'mevis', not 'revos'; compare runs of one"):
        make(base)
    edit(base / "oracle" / "run.json", lambda run: run["settings"].update(dataset="sav"))
    with pytest.raises(DataError, match=r"oracle: runs of 'sav' cannot be scored here, .*python -m eval\.table"):
        make(base, runs=("oracle", "oracle"), names=("a", "b"))


def test_runs_of_another_split_are_refused(base):
    with pytest.raises(DataError, match="hostile: the run is of the split 'valid', not 'train'"):
        make(base, "--split", "train")


def test_runs_scored_otherwise_are_refused(base):
    score(base / "world", base / "oracle", "--robustness", "binary")
    with pytest.raises(DataError, match=r"hostile and .*oracle are not comparable, .*; score them alike") as error:
        make(base)
    assert "protocol: robustness: visa (base), binary (GRPO)" in error.value.__notes__


def test_runs_over_other_samples_are_refused(base):
    predict_and_score(base / "world", base / "part", "--policy", "oracle", "--limit", "2")
    with pytest.raises(
        DataError, match=r"its scores are not of its predictions: 1 more \(UVO/-a_b/2\); finish the run"
    ):
        make(base, runs=("part", "oracle"), names=())
    score(base / "world", base / "part", "--missing", "skip")
    score(base / "world", base / "oracle", "--missing", "skip")
    with pytest.raises(DataError, match=r"part: not over the same samples as .*oracle: 1 missing \(UVO/-a_b/2\)"):
        make(base, runs=("oracle", "part"), names=())
    page = make(base, runs=("part", "part"), names=("a", "b"))
    assert "2 expressions, 2 of them with a target" in page.source


def test_scores_that_do_not_belong_together_are_refused(base):
    path = base / "oracle" / "scores" / "results.csv"
    lines = path.read_text().splitlines()
    path.write_text("\n".join([lines[0], re.sub(r",(100|9\d)\.\d+,", ",12.0,", lines[1]), *lines[2:]]) + "\n")
    with pytest.raises(DataError, match=r"results\.csv and results\.json are of different evaluations"):
        make(base)


def test_predictions_that_could_not_be_scored_are_refused(base):
    (base / "oracle" / "Annotations" / VIDEO / "0" / "00010.png").write_bytes(b"no")
    arguments = ["--gt", base / "world", "--pred", base / "oracle", "--out", base / "oracle" / "scores"]
    assert revos.main([str(argument) for argument in [*arguments, "--workers", 1]]) == 2
    with pytest.raises(DataError, match=r"1 predictions could not be scored, first UVO/-a_b/0: .*not a PNG"):
        make(base)


def test_scores_of_lost_masks_are_refused(base):
    shutil.rmtree(base / "oracle" / "Annotations" / VIDEO / "1")
    arguments = ["--gt", base / "world", "--pred", base / "oracle", "--out", base / "oracle" / "scores"]
    assert revos.main([str(argument) for argument in [*arguments, "--workers", 1]]) == 2
    with pytest.raises(DataError, match=r"1 predictions could not be scored, first UVO/-a_b/1: .*says that it is done"):
        make(base)


@pytest.mark.parametrize(
    ("options", "runs", "names", "message"),
    [
        ((), ("oracle",), (), "two runs or more, found 1"),
        ((), ("oracle", "replay"), ("a",), "1 names for 2 runs"),
        ((), ("oracle", "oracle"), (), "the same name among oracle, oracle"),
        (("--examples", -1), ("oracle", "replay"), (), "0 or more"),
    ],
)
def test_options_are_checked(made, options, runs, names, message):
    with pytest.raises(DataError, match=message):
        make(made, *options, runs=runs, names=names)


METRICS = (
    {"step": 2, "reward/total": 0.75},
    {
        "step": 1,
        "reward/total": 0.25,
        "reward/format": 0.5,
        "val/reward/total": 0.5,
        "length/response": 40,
        "actor/kl": None,
    },
    {"step": 2, "reward/total": 1.25, "reward/<b>mine": 0.5, "note": "text"},  # of a run that was resumed
)


def write_metrics(folder, *records):
    folder.mkdir()
    (folder / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    return folder


@pytest.fixture
def stepped(base):
    """`base` with run.json files that name checkpoints after 100, 0 and 50 steps."""
    for name, step in (("oracle", 100), ("hostile", 0), ("replay", 50)):
        edit(base / name / "run.json", lambda run, s=step: run["settings"].update(model=f"models/step_{s:06d}"))
    return base


def test_steps_stand_in_their_order_whatever_the_order_of_the_runs(stepped, capsys):
    page = make(stepped, "--steps", runs=("oracle", "hostile", "replay"), names=(), page="steps")
    document = json.loads((stepped / "out" / "steps.json").read_text())
    assert [run["step"] for run in document["runs"]] == [0, 50, 100]
    assert [run["path"].rpartition("/")[2] for run in document["runs"]] == ["hostile", "replay", "oracle"]
    assert page.texts["h4"] == [f"step {run['step']}{jf}" for jfs in changes(document) for run, jf in jfs]
    lines = capsys.readouterr().out.splitlines()
    assert any(line.startswith("step 100 - step 0") for line in lines)


def changes(document):
    """Yields the runs of each example with the J&F on its card: the number and, after the first run, the change."""
    for example in document["examples"]:
        first = example["jf"][0]
        told = [
            f"{jf:.2f}" + (f" {jf - first:+.2f}".replace("-", "−") if i else "") for i, jf in enumerate(example["jf"])
        ]
        yield zip(document["runs"], told, strict=True)


def test_steps_are_drawn_as_curves_beside_the_metrics_of_the_training(stepped, tmp_path):
    training = write_metrics(tmp_path / "grpo <i>", *METRICS)
    page = make(stepped, "--steps", "--training", training, names=(), page="steps")
    assert page.stack == []
    assert {tag for tag, _ in page.tags}.isdisjoint({"script", "img", "i"})
    headings = [
        attrs["aria-label"] for tag, attrs in page.tags if attrs.get("aria-label", "").endswith("training step")
    ]
    assert headings == [
        "J&F, in per cent by training step",
        "Replies, in per cent by training step",
        "Training: reward by training step",
        "Training: terms of the reward by training step",
        "Training: tokens of a reply by training step",
    ]
    assert "reward/total, step 2: 1.25" in page.source  # the later line of a step counts
    assert "step 2: 0.75" not in page.source
    assert "<b>mine" not in page.source
    assert "reward/&lt;b&gt;mine" in page.source
    assert "<title>grpo &lt;i&gt;: step 0 to step 100</title>" in page.source


def test_a_chart_puts_points_where_they_belong():
    chart = pictures.Chart.of("it", {"a": [(0, 10.0), (10, 20.0)], "empty": [(5, float("nan"))]})
    (height, width), (top, right, bottom, left) = chart.SIZE, chart.MARGINS
    ((name, points),) = chart.lines
    assert (name, points[0][2]) == ("a", "step 0: 10.00")
    assert points[0][:2] == pytest.approx((left, height - bottom))
    assert points[1][:2] == pytest.approx((width - right, top))
    assert [text for _, text in chart.y_ticks] == ["10", "12", "14", "16", "18", "20"]
    assert pictures.Chart.of("it", {"a": [(5, float("nan")), (6, float("inf")), (7, -1e308)]}) is None


@pytest.mark.parametrize(
    ("values", "whole", "wanted"),
    [
        ([3.0], False, [2, 3, 4]),
        ([0.0, 1.0], False, [0, 0.2, 0.4, 0.6, 0.8, 1]),
        ([-0.3, 0.9], False, [-0.5, 0, 0.5, 1]),
        ([7], True, [6, 8]),
        ([0, 1], True, [0, 1]),
        ([0, 625], True, [0, 200, 400, 600, 800]),
        ([1e-13, 2e-13], False, [1e-13, 1.2e-13, 1.4e-13, 1.6e-13, 1.8e-13, 2e-13]),
        ([50.0, 50.00000000000001], False, [40, 60]),  # equal up to rounding
        ([0.0, 5e-324], False, [0, 0.2]),
    ],
)
def test_ticks_are_round_and_enclose_the_values(values, whole, wanted):
    assert pictures.ticks(values, whole=whole) == pytest.approx(wanted, abs=0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--steps",), r"hostile: neither the model .* nor the folder names a step, such as step_000120; give --steps"),
        (("--steps", 1, 2), "--steps has 2 steps for 3 runs"),
        (("--steps", 1, 2, -3), "--steps must be from 0 to 1000000000, found 1, 2, -3"),
        (("--steps", 1, 2, 1), "the same step among 1, 2, 1; give different --steps"),
        (("--training", "x"), "--training goes with --steps"),
        (("--steps", 1, 2, 3, "--training", "x"), r"x/metrics\.jsonl: no such file; --training takes the run folder"),
    ],
)
def test_options_about_steps_are_checked(made, options, message):
    with pytest.raises(DataError, match=message):
        make(made, *options, names=())


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ({"step": "1"}, "expected a step, a whole number, found '1'"),
        ({}, "expected a step"),
        ({"step": 10**400}, "expected a step, a whole number, found '1000"),
        ("no", "copy it again"),
    ],
)
def test_metrics_that_are_none_are_refused(made, tmp_path, record, message):
    training = write_metrics(tmp_path / "grpo", {"step": 1}, record)
    with pytest.raises(DataError, match=message):
        make(made, "--steps", 1, 2, 3, "--training", training, names=())


def test_a_keyframe_without_ground_truth_is_in_no_mean_about_keyframes():
    known, unknown = Quality(1, True, True, 0.5, 0.25), Quality(1, True, True, float("nan"), float("nan"))
    found = tables.answer_means([known, unknown, Quality(1, False, False, 0.0, 0.0)])
    assert (found.usable, found.well_formed) == (2 / 3, 2 / 3)
    assert (found.keyframe_ratio, found.box_iou) == (0.25, 0.125)


def entry(number, change, *, video=None, targets=1):
    sample = VideoSample("revos", video or f"v{number}", "0", "it", ("0",), "folder", (4, 4), type_id=0)
    rows = tuple(Row(sample.video, "0", "it", jf, jf, jf, "referring") for jf in (40.0, 40.0 + change))
    return Entry(sample, rows, (Quality(targets, True, True, 1.0, 1.0),) * 2, (None, None))


def chosen(entries, n):
    return [(example.kind, example.entry.change) for example in tables.choose(entries, n)]


def test_examples_are_gains_typical_ones_and_losses():
    entries = [entry(i, change) for i, change in enumerate((-30, -20, -10, 0, 1, 2, 3, 10, 20, 30))]
    assert chosen(entries, 4) == [("gain", 30), ("gain", 20), ("typical", 1), ("loss", -30)]
    kinds = [kind for kind, _ in chosen(entries, 100)]
    assert [kinds.count(kind) for kind in ("gain", "typical", "loss")] == [6, 1, 3]  # one did not change
    assert chosen(entries, 0) == []


def test_an_absent_target_takes_one_place_of_many():
    entries = [*(entry(i, i) for i in range(1, 9)), entry(9, -60, targets=0), entry(10, 50, targets=0)]
    assert [change for kind, change in chosen(entries, 8) if kind == "absent"] == [-60]
    assert "absent" not in dict(chosen(entries, 4))
    assert chosen(entries[8:], 2) == [("absent", -60), ("absent", 50)]


def test_one_of_each_video_comes_first():
    entries = [entry(1, 30, video="a"), entry(2, 29, video="a"), entry(3, 5, video="b"), entry(4, 28, video="a")]
    assert chosen(entries, 2) == [("gain", 30), ("gain", 5)]
    assert chosen(entries, 3) == [("gain", 30), ("gain", 5), ("gain", 29)]


def test_the_best_is_the_best_as_printed():
    assert tables.best([1.001, 1.004, 0.5]) == {0, 1}
    assert tables.best([2.0, 2.0]) == set()
    assert tables.best([float("nan"), 2.0, 1.0]) == {1}


def test_further_frames_are_spread_evenly():
    assert compare.further_frames(12, 3) == (2, 6, 10)
    assert compare.further_frames(2, 3) == (0, 1)
