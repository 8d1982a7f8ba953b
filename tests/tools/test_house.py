"""The measure of how the code is divided, on a tree made by hand."""

import importlib.util
from pathlib import Path

SPEC = importlib.util.spec_from_file_location("house", Path(__file__).parents[2] / "tools" / "house.py")
house = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(house)

MAIN = """
from inference.inner import work


def _once():
    import veason.deep
    return 1


def _twice():
    return _once()


def run():
    return _twice() + _twice() + work()
"""


def tree(root):
    for name, text in {
        "inference/__init__.py": "",
        "inference/predict.py": MAIN,
        "inference/inner.py": "import os\nimport veason\n\n\ndef work():\n    return 0\n",
        "inference/alone.py": "def _unused():\n    return 0\n",
        "veason/__init__.py": '"""Not empty."""\n',
        "veason/deep.py": "",
    }.items():
        (root / name).parent.mkdir(exist_ok=True)
        (root / name).write_text(text)
    return root


def test_helpers_with_one_caller_and_the_import_closure(tmp_path, capsys):
    root = tree(tmp_path)
    assert [(h.name, h.lines) for h in house.helpers(root / "inference/predict.py")] == [("_once", 3)]
    assert [h.name for h in house.helpers(root / "inference/alone.py")] == ["_unused"]
    assert house.closure(root, ["inference.predict"]) == {"inference.predict", "inference.inner", "veason"}
    assert house.main([str(root), "--list"]) == 0
    out = capsys.readouterr().out
    assert out.index("inference/predict.py  _once  3") > out.index("inference  ")
    row = next(line.split() for line in out.splitlines() if line.startswith("inference "))
    assert row == ["inference", "4", "23", "3", "2", "87.0"]
    assert "import closure of inference (inference.predict): 3 modules" in out
