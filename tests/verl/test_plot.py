"""Curves: what is read, chosen, smoothed and drawn."""

import math

import pytest
from PIL import Image

from verl import plot
from verl.plot import read_curves, select, smooth

LINES = """\
{"step": 0, "val/reward/total": 0.5}
{"step": 1, "actor/kl": 0.1, "reward/total": 1.0}
{"step": 2, "actor/kl": null, "reward/total": 2.0, "val/reward/total": 1.5}
{"step": 3, "actor
"""


@pytest.fixture
def run(tmp_path):
    (tmp_path / "metrics.jsonl").write_text(LINES.rstrip("\n"))
    return tmp_path


def test_curves_hold_gaps_and_leave_out_a_half_line(run):
    curves = read_curves(run / "metrics.jsonl")
    assert curves["reward/total"] == [(1, 1.0), (2, 2.0)]
    assert curves["val/reward/total"] == [(0, 0.5), (2, 1.5)]
    assert curves["actor/kl"][0] == (1, 0.1)
    assert math.isnan(curves["actor/kl"][1][1])


def test_a_step_without_a_problem_had_none_of_it(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text(
        '{"step": 0, "val/reward/total": 0.5}\n'
        '{"step": 1, "reward/total": 1.0, "problem/not_json": 0.25}\n'
        '{"step": 2, "reward/total": 2.0}\n'
    )
    assert read_curves(path)["problem/not_json"] == [(1, 0.25), (2, 0.0)]


def test_select_keeps_the_order_of_the_patterns():
    names = ["reward/b", "reward/a", "reward/total", "actor/kl"]
    assert select(names, ["reward/total", "reward/*", "missing"]) == ["reward/total", "reward/a", "reward/b"]


def test_smooth_by_hand():
    assert smooth([1.0, 3.0, 5.0, math.nan, 7.0], 2) == [1, 2, 4, 5, 7]
    assert smooth([1.0, 3.0], 1) == [1, 3]
    assert math.isnan(smooth([math.nan], 3)[0])


def test_picture_is_drawn_where_asked(run, capsys):
    assert plot.main([str(run), "--output", str(run / "one.png"), "--smooth", "2", "--keys", "reward/*"]) == 0
    assert capsys.readouterr().out == f"{run / 'one.png'}\n"
    with Image.open(run / "one.png") as picture:
        assert picture.width > 300
        assert len(set(picture.convert("L").tobytes())) > 10  # something is drawn


def test_default_picture_lies_in_the_run(run):
    assert plot.main([str(run)]) == 0
    assert (run / "curves.png").stat().st_size > 1000


def test_nothing_to_draw_is_said(run, capsys):
    assert plot.main([str(run), "--keys", "loss*"]) == 2
    assert "nothing named loss*; it has actor/kl reward/total" in capsys.readouterr().err
    assert plot.main([str(run / "gone")]) == 2
    assert "gone" in capsys.readouterr().err
