"""Plug-ins are found by name, and an unknown name is an error that helps."""

from __future__ import annotations

from importlib.metadata import EntryPoint

import pytest

from verl.utils import plugins


@pytest.fixture
def registered(monkeypatch):
    points = [EntryPoint(name, f"json:{name}", "verl.tests") for name in ("dumps", "loads")]
    monkeypatch.setattr(plugins, "entry_points", lambda group: [point for point in points if point.group == group])


def test_by_the_name_of_an_entry_point(registered):
    import json

    assert plugins.find("loads", group="verl.tests") is json.loads


def test_by_module_and_attribute():
    import json

    assert plugins.find("json:loads", group="verl.tests") is json.loads
    assert plugins.find("json.decoder:JSONDecoder.decode", group="verl.tests") is json.JSONDecoder.decode


def test_an_unknown_name_is_told_what_there_is(registered):
    expected = r"no plug-in of verl\.tests is called 'load' \(did you mean loads\?\); there are: dumps, loads\. "
    with pytest.raises(ValueError, match=expected):
        plugins.find("load", group="verl.tests")
    with pytest.raises(ValueError, match="there are: none"):
        plugins.find("load", group="verl.others")


def test_an_unknown_module_or_attribute_is_named():
    with pytest.raises(ValueError, match=r"'jsonn:loads': there is no module 'jsonn'"):
        plugins.find("jsonn:loads", group="verl.tests")
    with pytest.raises(ValueError, match=r"'json\.no\.deeper:loads': there is no module 'json\.no'"):
        plugins.find("json.no.deeper:loads", group="verl.tests")
    with pytest.raises(ValueError, match=r"json has no 'lods' \(did you mean loads\?\); it has .*loads"):
        plugins.find("json:lods", group="verl.tests")


def test_an_error_inside_the_plug_in_is_its_own(tmp_path, monkeypatch):
    (tmp_path / "needs_more.py").write_text("import a_module_that_is_not_installed\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ModuleNotFoundError, match="a_module_that_is_not_installed"):
        plugins.find("needs_more:reward", group="verl.tests")


def test_what_builds_nothing_is_refused():
    with pytest.raises(ValueError, match=r"'json:__version__' is str, expected a function or class"):
        plugins.find("json:__version__", group="verl.tests")
    with pytest.raises(ValueError, match=r"'\.json:loads': '\.json' is no module's name"):
        plugins.find(".json:loads", group="verl.tests")
