"""The import hook of tools/cpu_shims, each case in a fresh interpreter."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

TOOLS = Path(__file__).resolve().parents[2] / "tools"


def python(*arguments, shims=""):
    """Run a fresh interpreter that finds the hook of this tree, whether or not one is installed."""
    environment = {**os.environ, "PYTHONPATH": str(TOOLS / "cpu_shims"), "VEASON_CPU_SHIMS": shims}
    return subprocess.run([sys.executable, *arguments], capture_output=True, text=True, env=environment, timeout=600)


def run(code, shims=""):
    found = python("-c", "import _veason_cpu_shims\n" + code, shims=shims)
    assert found.returncode == 0, found.stderr
    return found


@pytest.fixture(scope="module")
def report():
    """({package: (acted, what)}, stderr); skips where the libraries load, since the hook then has nothing to do."""
    found = run("import json; print(json.dumps(_veason_cpu_shims.report()))", shims="verbose")
    outcomes = {package: (acted, what) for package, acted, what in json.loads(found.stdout)}
    if not any(acted for acted, _ in outcomes.values()):
        pytest.skip(f"nothing to stand in for on this machine: {outcomes}")
    return outcomes, found.stderr


@pytest.fixture(scope="module")
def outcomes(report):
    return report[0]


def acted_on(outcomes, package):
    if not outcomes[package][0]:
        pytest.skip(f"{package}: {outcomes[package][1]}")


def test_interpreter_start_imports_nothing_heavy():
    found = run("import sys; print(sorted({'torch', 'torchvision', 'ctypes', 'json'} & set(sys.modules)))")
    assert found.stdout.strip() == "[]"


def test_find_spec_answers_without_importing():
    found = run(
        "import importlib.util, sys\n"
        "print(importlib.util.find_spec('torchvision').origin.endswith('__init__.py'))\n"
        "print(importlib.util.find_spec('no_such_package'), 'torch' in sys.modules)"
    )
    assert found.stdout.split() == ["True", "None", "False"]


def test_torchvision_is_the_real_package(outcomes):
    acted_on(outcomes, "torchvision")
    found = run(
        "import importlib.metadata, torch, torchvision\n"
        "import torchvision.transforms.v2.functional as F\n"
        "print(tuple(F.resize(torch.rand(3, 20, 30), [10, 15], antialias=True).shape))\n"
        "print(torch.ops.torchvision.nms.default._schema)\n"
        "print(type(torchvision.__spec__.loader).__name__)\n"
        "print(torchvision.__version__.startswith(importlib.metadata.version('torchvision')))\n"
        "try:\n"
        "    torchvision.ops.nms(torch.zeros(1, 4), torch.zeros(1), 0.5)\n"
        "except RuntimeError as error:\n"
        "    print('refused:', str(error)[:29])\n"
    ).stdout.splitlines()
    assert found == [
        "(3, 10, 15)",
        "torchvision::nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
        "SourceFileLoader",
        "True",
        "refused: Couldn't load custom C++ ops.",
    ]


def test_torchaudio_imports_and_its_use_says_why_not(outcomes):
    acted_on(outcomes, "torchaudio")
    found = run(
        "import torchaudio, torchaudio.compliance.kaldi\n"
        "from torchaudio import functional\n"
        "print(hasattr(torchaudio, 'load'))\n"
        "for use in (lambda: torchaudio.load, lambda: functional.resample):\n"
        "    try:\n"
        "        use()\n"
        "    except AttributeError as error:\n"
        "        print(str(error)[:60])\n"
        "try:\n"
        "    import torchaudio.no_such_module\n"
        "except ModuleNotFoundError as error:\n"
        "    print(error)\n"
    ).stdout.splitlines()
    assert found[0] == "False"
    assert found[1].startswith("torchaudio.load: audio is not available here")
    assert found[2].startswith("torchaudio.functional.resample: audio is not available here")
    assert found[3] == "No module named 'torchaudio.no_such_module'"


@pytest.mark.parametrize(
    ("error", "expected"), [("OSError('libcudart')", "ModuleNotFoundError"), ("KeyError(1)", "KeyError")]
)
def test_only_a_library_that_does_not_load_makes_torchcodec_missing(tmp_path, error, expected):
    (tmp_path / "torchcodec").mkdir()
    (tmp_path / "torchcodec" / "__init__.py").write_text(f"import torchcodec.part\nraise {error}\n")
    (tmp_path / "torchcodec" / "part.py").write_text("")
    found = run(
        f"import sys; sys.path.insert(0, {str(tmp_path)!r})\n"
        "_veason_cpu_shims._torch_is_cpu_build = lambda: True\n"
        "try:\n"
        "    import torchcodec\n"
        "except Exception as error:\n"
        "    print(type(error).__name__)\n"
        "print('torchcodec' in sys.modules)\n"
    )
    assert found.stdout.split() == [expected, "False"]


def test_off_leaves_every_import_alone():
    found = run("import sys; print([type(f).__name__ for f in sys.meta_path].count('ShimFinder'))", shims="off")
    assert found.stdout.strip() == "0"


def test_verbose_says_what_was_done(report):
    outcomes, stderr = report
    named = [line.split(":")[1].strip() for line in stderr.splitlines() if line.startswith("veason cpu shims: ")]
    assert named == [package for package, (acted, _) in outcomes.items() if acted]
