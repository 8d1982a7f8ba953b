"""A small run with hostile texts, written by hand and read back out of its report with an HTML parser."""

import base64
import hashlib
import json
import math
import re
from html.parser import HTMLParser
from pathlib import Path

import cv2
import numpy as np
import pytest

from eval import revos
from inference.output import RunFolder, Shard
from inference.pipeline import Finished
from inference.report import __main__ as report
from inference.report import pictures, render
from inference.report.run import open_run
from veason import datasets, masks
from veason.answer import parse_reply, place
from veason.errors import DataError
from veason.frames import sample_clip
from veason.types import MaskTrack, Prediction

H, W, T = 36, 64, 7
HOSTILE = (
    '</h3></article></script><script>alert("1")</script><img src=x onerror=alert(2)>',
    '" onmouseover="alert(3)" x=\'y\' `z` &amp; &lt;b&gt; {{cards}} {{title}} </style>',
    "which one\u2028is\u2029it\u202e? ]]> <!-- --!> <svg/onload=alert(4)>\x00\x0b",
    "the shape that is not there",
)
THINKING = 'First <b>look</b>: </details></pre></script><iframe src="javascript:alert(5)"></iframe>\u2028 done'
TAGS = """
    html head meta title style body header main div p h1 h2 h3 h4 a section table thead tbody tr th td details summary
    dl dt dd form label input select option span i output ul li svg path rect article bdi figure figcaption pre button
    script
"""


def square(x, y, side=12):
    mask = np.zeros((H, W), dtype=bool)
    mask[y : y + side, x : x + side] = True
    return mask


@pytest.fixture
def world(tmp_path):
    """Two videos: a square that moves right (three expressions), and a single frame without a target."""
    root = tmp_path / "world"
    rng = np.random.default_rng(0)
    videos = {}
    for video, length in (("MOSE/-a", T), ("LV-VIS/b", 1)):
        frames = [f"{5 * t:05d}" for t in range(length)]
        (root / "JPEGImages" / video).mkdir(parents=True)
        for frame in frames:
            picture = cv2.resize(rng.integers(0, 255, (4, 6, 3), dtype=np.uint8), (W, H))
            cv2.imwrite(str(root / "JPEGImages" / video / f"{frame}.jpg"), picture)
        videos[video] = {"frames": frames, "height": H, "width": W, "expressions": {}}
    for i, text in enumerate(HOSTILE):
        absent = i == 3
        entry = {
            "exp": text,
            "obj_id": [] if absent else [0],
            "anno_id": [] if absent else [7],
            "type_id": (0, 1, 1, 2)[i],
        }
        videos["LV-VIS/b" if absent else "MOSE/-a"]["expressions"][str(i)] = entry
    (root / "meta_expressions_valid_.json").write_text(json.dumps({"videos": videos}))
    track = [masks.encode(square(4 * t, 10)) for t in range(T)]
    (root / "mask_dict.json").write_text(json.dumps({"7": track}))
    return root


def predict(sample):
    """0: 3 px off, two boxes; 1: right; 2: cut off; 3: rightly no target."""
    clip = sample_clip(len(sample), policy="linspace", n=4, size=(560, 560))
    answers = (
        '{"keyframe_timestamp": 4, "bbox_2d_list": [[140, 160, 240, 340], [-900, 5, 9e5, 8e5]]}</answer>',
        '{"keyframe_timestamp": 2, "bbox_2d_list": [[70, 160, 170, 340]]}</answer>',
        '{"keyframe_timestamp": 2, "bbox_2d',
        '{"keyframe_timestamp": 0, "bbox_2d_list": []}</answer>',
    )
    i = int(sample.exp_id)
    reply = place(parse_reply(f"<think>{THINKING}</think><answer>{answers[i]}"), clip)
    track, keyframe, boxes = MaskTrack.empty(sample.size, len(sample)), None, ()
    if reply.usable:
        keyframe, boxes = reply.answer.keyframe, reply.answer.boxes
        rles = tuple(masks.encode(square(4 * t + (3 if i == 0 else 0), 10)) for t in range(T))
        track = MaskTrack(sample.size, (rles,), T)
    return Prediction(sample, clip, "qwen2.5-vl", reply, keyframe, boxes, track)


@pytest.fixture
def run(world, tmp_path):
    """The folder of a finished run on `world`."""
    samples = list(datasets.open_dataset("revos", world, split="valid"))
    settings = {"dataset": "revos", "data_root": str(world), "split": "valid", "model": "<i>tiny</i>", "samples": 4}
    record = {"settings": settings, "versions": {"python": "3"}}
    path = tmp_path / "run <b>&"
    with RunFolder(path, shard=Shard(), samples=samples, record=record) as folder:
        for i, sample in enumerate(samples):
            folder.write(Finished(predict(sample), {"policy": 1.0 + i, "track": 0.5}))
    return path


class Page(HTMLParser):
    """A parsed report: its tags, its cards, its tables as rows of texts."""

    VOID = frozenset({"meta", "input"})

    def __init__(self, path):
        super().__init__(convert_charrefs=True)
        self.source = path.read_text(encoding="utf-8")
        self.tags, self.cards, self.rows, self.stack = [], [], [], []
        self.feed(self.source)
        self.close()

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        self.tags.append((tag, attrs))
        if tag == "article":
            self.cards.append({**attrs, "text": "", "h3": "", "pre": [], "classes": []})
        if self.cards and "article" in self.stack:
            self.cards[-1]["classes"].append(attrs.get("class"))
            if tag == "pre":
                self.cards[-1]["pre"].append("")
        if tag == "tr":
            self.rows.append([])
        if tag in ("th", "td"):
            self.rows[-1].append("")
        if tag not in self.VOID:
            self.stack.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)
        self.handle_endtag(tag)

    def handle_endtag(self, tag):
        assert self.stack.pop() == tag, f"</{tag}> closes another element: {self.stack[-5:]}"

    def handle_data(self, data):
        if {"th", "td"} & set(self.stack):
            self.rows[-1][-1] += data
        if "article" in self.stack:
            self.cards[-1]["text"] += data
            if "h3" in self.stack:
                self.cards[-1]["h3"] += data
            if "pre" in self.stack:
                self.cards[-1]["pre"][-1] += data

    def count(self, card, css_class):
        return self.cards[card]["classes"].count(css_class)


def make(*args):
    report.main([*map(str, args), "--workers", "1"])


def read(run, *args):
    make(run, *args)
    return Page(run / "report.html")


def test_hostile_texts_stay_texts(run, world):
    page = read(run, "--gt", world)
    assert page.stack == []
    assert [card["h3"] for card in page.cards] == list(HOSTILE)
    assert page.cards[1]["pre"] == [f"\n{THINKING}", page.cards[1]["pre"][1]]
    assert THINKING in page.cards[1]["pre"][1]
    allowed = set(re.findall(r"\w+", TAGS))
    assert {tag for tag, _ in page.tags} <= allowed
    assert sum(tag == "script" for tag, _ in page.tags) == 1
    names = {name for _, attrs in page.tags for name in attrs}
    assert not {name for name in names if name.startswith("on")} | names & {"src", "srcdoc", "action"}
    assert all(attrs["href"].startswith("#e") for tag, attrs in page.tags if tag == "a")


def test_hostile_problems_stay_in_their_attributes(run, world):
    problem = '"><script>alert(6)</script> \' onfocus=alert(7) x="'
    edit(run, problem=problem, detail="</p><b>")
    page = read(run, "--gt", world)
    assert page.cards[1]["data-problem"] == problem
    assert ("option", {"value": problem}) in page.tags
    assert sum(tag == "script" for tag, _ in page.tags) == 1
    assert not any(name.startswith("onfocus") for _, attrs in page.tags for name in attrs)
    assert "</p><b>" in page.cards[1]["text"]


def test_hostile_settings_and_texts_that_are_no_unicode_stay_texts(run, world):
    record = json.loads((run / "run.json").read_text())
    record["settings"] |= {"model": HOSTILE[0], HOSTILE[1]: ["{{ 7 * 7 }}", "{% raw %}"], "tracker": "\ud800<u>"}
    (run / "run.json").write_text(json.dumps(record))
    edit(run, detail="half a character: \ud800", problem="<u>", repairs=["<script>alert(8)</script>"])
    page = read(run, "--gt", world)
    assert page.stack == []
    assert sum(tag == "script" for tag, _ in page.tags) == 1
    assert {"u", "img", "b"}.isdisjoint(tag for tag, _ in page.tags)
    assert "{{ 7 * 7 }} × {% raw %}" in page.source
    assert "half a character: ?" in page.cards[1]["text"]
    assert ["<script>alert(8)</script>", "1"] in page.rows


def test_the_template_escapes_everything():
    template = (Path(pictures.__file__).parent / "page.html.j2").read_text()
    assert re.findall(r"\|\s*safe\b|autoescape|Markup", template) == []


def test_a_page_is_written_while_its_cards_are_made(run, world):
    """No card is made before those in front of it are written."""
    runs = [open_run(run)]
    dataset = runs[0].open_data(world, split=None, image_root=None)
    made = []

    def cards():
        for card in report.make_cards(runs[0], dataset, None, total=4, frames_per_card=2):
            made.append(card.number)
            yield card

    seen = []
    for part in render("run", cards=cards(), **report.summarise(runs, [None], cards=None)):
        seen += [(int(number), list(made)) for number in re.findall(rb'<article class="card" id="e(\d)"', part)]
    assert seen == [(0, [0]), (1, [0, 1]), (2, [0, 1, 2]), (3, [0, 1, 2, 3])]


def test_the_policy_of_the_page_allows_its_own_script_only_and_nothing_is_fetched(run, world):
    page = read(run, "--gt", world)
    script = re.search(r"<script>(.*)</script>", page.source, re.DOTALL)[1]
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    policy = next(attrs["content"] for tag, attrs in page.tags if attrs.get("http-equiv"))
    assert f"script-src 'sha256-{digest}'" in policy
    assert policy.startswith("default-src 'none'; img-src data:;")
    outside = re.findall(r"url\((?!data:image/webp;base64,)|https?://|@import", page.source)
    assert outside == []


def test_scores_are_those_of_the_evaluator(run, world):
    page = read(run, "--gt", world)
    results = revos.evaluate(world, run)
    assert len(results.rows) == 4
    for card, row in zip(page.cards, results.rows, strict=True):
        assert [float(card[f"data-{name}"]) for name in ("jf", "j", "f")] == [row.jf, row.j, row.f]
        assert f"{row.jf:.2f}" in card["text"]
    assert results.rows[1].j == 100
    assert 0 < results.rows[0].j < 100
    counts = {"referring": 1, "reasoning": 2, "overall": 3, "absent": 1}
    for name, n in counts.items():
        shown = [f"{value:.2f}" for value in (results.mean(name, column) for column in ("JF", "J", "F", "A", "R"))]
        assert [name, str(n), *shown] in page.rows
        assert not any(math.isnan(results.mean(name, column)) for column in ("J", "F"))


def test_problems_times_and_settings_are_listed(run, world):
    page = read(run, "--gt", world)
    assert ["none", "2", "50.0 %"] in page.rows
    assert ["answer_not_closed", "1", "25.0 %"] in page.rows
    assert ["policy", "2.50"] in page.rows
    assert ["track", "0.50"] in page.rows
    assert "&lt;i&gt;tiny&lt;/i&gt;" in page.source
    assert "the reply was probably cut off" in page.cards[2]["text"]
    assert [card["data-problem"] for card in page.cards] == ["-", "-", "answer_not_closed", "no_boxes"]
    assert [card["data-type"] for card in page.cards] == ["referring", "reasoning", "reasoning", "absent"]


def test_masks_and_boxes_are_drawn_for_prediction_and_truth(run, world):
    page = read(run, "--gt", world)
    drawn = [tuple(page.count(i, name) for name in ("p", "t", "pb", "tb")) for i in range(4)]
    # six of seven frames; two boxes predicted in the first; nothing to draw in the last, nothing predicted in the third
    assert drawn == [(6, 6, 2, 1), (6, 6, 1, 1), (0, 6, 0, 0), (0, 0, 0, 0)]
    labels = [attrs["aria-label"] for tag, attrs in page.tags if tag == "svg" and "role" in attrs]
    assert len(labels) == 7 + 7 + 6 + 1
    share = f"{100 * 144 / (H * W):.1f} % of the picture"
    assert f"frame 4, predicted mask {share}, true mask {share}" in labels
    assert "frame 0, predicted mask empty, true mask empty" in labels
    assert "keyframe 4, boxes: 2 predicted, 1 true" in labels
    box = next(attrs for tag, attrs in page.tags if attrs.get("class") == "tb" and attrs["x"] != "4")
    assert [box[side] for side in ("x", "y", "width", "height")] == ["15.5", "9.5", "12.0", "12.0"]
    for entry in ("predicted mask", "true mask", "predicted box", "true box"):
        assert f"</svg>{entry}</li>" in page.source


def test_each_frame_is_in_the_page_once(run, world):
    page = read(run, "--gt", world)
    rules = re.findall(r"^\.(v\d+f\d+)\{background-image:url\(data:image/webp;base64,([^)]+)\)\}", _styles(page), re.M)
    used = {attrs["class"] for tag, attrs in page.tags if tag == "svg" and "role" in attrs}
    assert sorted(name for name, _ in rules) == sorted(used)
    data = np.frombuffer(base64.b64decode(rules[0][1]), np.uint8)
    assert cv2.imdecode(data, cv2.IMREAD_COLOR).shape == (H, W, 3)


def _styles(page):
    return "\n".join(re.findall(r"<style>(\.v.*?)</style>", page.source, re.DOTALL))


def test_a_thumbnail_is_small_and_keeps_its_colours():
    frame = np.zeros((640, 1280, 3), dtype=np.uint8)
    frame[:, :, 0] = 200  # red
    data = base64.b64decode(pictures.data_uri(frame).removeprefix("data:image/webp;base64,"))
    small = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)[..., ::-1]
    assert small.shape == (160, 320, 3)
    assert np.abs(small[80, 160].astype(int) - (200, 0, 0)).max() <= 6


def test_fewer_cards_and_frames_but_the_same_scores(run, world):
    page = read(run, "--gt", world, "--limit", 2, "--frames-per-card", 3)
    assert len(page.cards) == 2
    assert page.count(0, "p") == 3
    assert ["absent", "1", "100.00", "100.00", "100.00", "100.00", "100.00"] in page.rows
    assert "the first 2 shown" in page.source


def test_a_run_without_truth_has_cards_without_scores(run, world):
    (world / "mask_dict.json").unlink()
    page = read(run)
    assert len(page.cards) == 4
    assert not any(name.startswith("data-j") for card in page.cards for name in card)
    assert page.count(0, "p") == 6
    assert page.count(0, "t") == page.count(0, "tb") == 0
    assert "true mask" not in page.source
    assert '<option value="jf' not in page.source
    assert not any(row[0] == "referring" for row in page.rows)


def test_runs_are_compared_in_a_table(run, world, tmp_path):
    page = read(run, run, "--gt", world)
    means = revos.evaluate(world, run)
    row = ["run <b>&", "4", "2", "3.00"]
    row += [f"{means.mean(name, 'JF'):.2f}" for name in ("referring", "reasoning", "overall")]
    assert page.rows.count([*row, f"{means.mean('overall', 'R'):.2f}"]) == 2
    assert len(page.cards) == 4


def test_a_missing_mask_is_said_on_the_card_and_above(run, world):
    (run / "Annotations/MOSE/-a/1/00010.png").unlink()
    page = read(run, "--gt", world, "--frames-per-card", 7)
    assert "Expressions that could not be scored and are in no mean: 1" in page.source
    assert "1 of 7 frames are missing in MOSE/-a/1, first 00010.png" in page.cards[1]["text"]
    assert "data-jf" not in page.cards[1]
    assert page.count(1, "p") == 6
    assert page.count(1, "t") == 7
    page = read(run, "--gt", world, "--missing", "skip")
    assert "data-jf" not in page.cards[1]


def test_another_file_in_the_place_of_the_predictions_is_named(run, world):
    (run / "predictions.jsonl").write_text("version https://git-lfs.github.com/spec/v1\n")
    with pytest.raises(DataError, match=r"predictions\.jsonl: not lines of a run but a Git LFS pointer"):
        make(run, "--gt", world)
    (run / "run.json").write_text("<!DOCTYPE html>\n")
    with pytest.raises(DataError, match=r"run\.json: not JSON but a web page"):
        make(run, "--gt", world)


def test_lenient_readings_are_counted(run, world):
    assert "Read leniently" not in read(run, "--gt", world).source
    edit(run, repairs=["fence", "<b>"])
    page = read(run, "--gt", world)
    assert ["a code fence or other text stands around the object", "1"] in page.rows
    assert ["<b>", "1"] in page.rows


def test_an_unfinished_run_says_so(run, world):
    lines = (run / "predictions.jsonl").read_bytes().splitlines(keepends=True)
    (run / "predictions.jsonl").write_bytes(b"".join(lines[:2]) + lines[2][:30])
    page = read(run, "--gt", world)
    assert len(page.cards) == 2
    assert "The run is not finished: 2 of 4 expressions are predicted." in page.source


def edit(run, **changes):
    path = run / "predictions.jsonl"
    records = [json.loads(line) for line in path.read_bytes().splitlines()]
    records[1] |= changes
    path.write_text("".join(json.dumps(record) + "\n" for record in records))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"keyframe": "2"}, r"predictions.jsonl:2: keyframe must be a frame id or null, found '2'"),
        ({"keyframe": True}, "keyframe must be a frame id"),
        ({"keyframe": 7}, "MOSE/-a/1 has frame id 7 in 7 frames"),
        ({"boxes": [[1, 2, 3]]}, r"predictions.jsonl:2: boxes must be"),
        ({"boxes": [[1, 2, 3, math.inf]]}, "boxes must be"),
        ({"frame_ids": None}, "frame_ids must be a list of ints"),
        ({"reply": None}, "reply must be a text"),
        ({"thinking": 3}, "thinking must be a text"),
        ({"repairs": "fence"}, "repairs must be a list of texts"),
        ({"video": "../MOSE/-a"}, "would leave its folder"),
        ({"exp_id": "99"}, "MOSE/-a/99 is not in the revos split 'valid'"),
        ({"expression": "another one"}, "was asked 'another one'"),
    ],
)
def test_a_malformed_prediction_is_named(run, world, changes, message):
    edit(run, **changes)
    with pytest.raises(DataError, match=message):
        make(run, "--gt", world)
    assert not list(run.glob("*.html")) + list(run.glob(".report*"))


def test_a_folder_that_is_no_run_is_refused(run, world, tmp_path):
    with pytest.raises(DataError, match="no such folder"):
        make(tmp_path / "nowhere")
    with pytest.raises(DataError, match=r"holds no predictions\.jsonl"):
        make(world)
    text = (run / "run.json").read_text()
    for content, message in (
        ("{", "not valid JSON"),
        ("[]", "settings and versions"),
        (None, "run.json: no such file; expected a run"),
    ):
        (run / "run.json").unlink()
        if content is not None:
            (run / "run.json").write_text(content)
        else:
            (run / "run.json").unlink(missing_ok=True)
        with pytest.raises(DataError, match=message):
            make(run, "--gt", world)
        (run / "run.json").write_text(text)
    (run / "timings.jsonl").write_text('{"seconds": {"policy": "long"}}\n')
    with pytest.raises(DataError, match=r"timings\.jsonl:1: seconds must map"):
        make(run, "--gt", world)


def test_options_are_checked(run, world):
    with pytest.raises(DataError, match="must be at least 1"):
        make(run, "--gt", world, "--frames-per-card", 0)


def test_sampled_frames_are_even_and_hold_the_keyframe():
    assert pictures.sample_frames(100, 5, keyframe=None) == (0, 24, 49, 74, 99)
    assert pictures.sample_frames(100, 5, keyframe=60) == (0, 24, 60, 74, 99)
    assert pictures.sample_frames(3, 6, keyframe=1) == (0, 1, 2)
    assert pictures.sample_frames(100, 1, keyframe=60) == (60,)


def fill(path, size):
    """The picture that an outline draws, by OpenCV: (H, W) bool."""
    picture = np.zeros(size, np.uint8)
    polygons = []
    for sub in re.findall(r"M([^z]+)z", path):
        numbers = [int(value) for value in re.findall(r"-?\d+", sub)]
        polygons.append(np.cumsum(np.array(numbers).reshape(-1, 2), axis=0, dtype=np.int32))
    cv2.fillPoly(picture, polygons, 1)  # even-odd over all, border included
    return picture.astype(bool)


def test_an_outline_draws_its_mask_again():
    mask = square(5, 4, 20)
    mask[10:16, 10:20] = False  # a hole
    mask[30, 50] = True  # a single pixel
    path = pictures.outline(mask)
    assert path.count("M") == 3
    drawn = fill(path, (H, W))
    assert (drawn & mask).sum() == mask.sum()
    assert not drawn[12, 14]
    assert (drawn & ~mask).sum() <= 32  # at most the rim of the hole


def test_an_outline_of_a_large_or_ragged_mask_stays_short():
    assert pictures.outline(np.zeros((1080, 1920), dtype=bool)) == ""
    speck = np.zeros((1080, 1920), dtype=bool)
    speck[500, 700] = True
    assert pictures.outline(speck).startswith("M233 166")  # in the 640 x 360 drawing: not lost
    noise = np.random.default_rng(0).random((1080, 1920)) < 0.5
    assert 0 < len(pictures.outline(noise)) <= pictures.LONGEST_OUTLINE
