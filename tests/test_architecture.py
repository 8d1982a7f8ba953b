"""Packages import only the packages that they may import, according to the source."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
OURS = {"veason", "verl", "grpo_reward", "training_data_construction", "inference", "eval"}
ALLOWED = {
    "veason": set(),
    "verl": set(),
    "grpo_reward": {"veason", "verl"},
    "training_data_construction": {"veason", "verl.engines"},  # is a checkpoint whole?
    "inference": {"veason", "eval", "verl.engines", "verl.ray"},  # eval: the report shows scores
    "eval": {"veason"},
}


def imports(path: Path) -> set[str]:
    """Modules that a file imports anywhere in it, by full name."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module)
    return found


def is_in(module: str, packages: set[str]) -> bool:
    return any(module == package or module.startswith(f"{package}.") for package in packages)


def is_ours(module: str) -> bool:
    return is_in(module, OURS | {"demo", "benchmarks", "training_scripts", "tests"})  # which nothing of OURS may import


@pytest.mark.parametrize("package", sorted(OURS))
def test_arrows_point_down(package):
    wrong = {
        str(path.relative_to(ROOT)): sorted(bad)
        for path in (ROOT / package).rglob("*.py")
        if (bad := {name for name in imports(path) if is_ours(name) and not is_in(name, ALLOWED[package] | {package})})
    }
    assert not wrong


def test_only_one_file_imports_sam2():
    users = [
        str(path.relative_to(ROOT))
        for package in OURS
        for path in (ROOT / package).rglob("*.py")
        if any(name.split(".")[0] == "sam2" for name in imports(path))
    ]
    assert users == ["veason/trackers/sam2.py"]


def test_only_trackers_of_veason_import_torch():
    heavy = {"torch", "torchvision", "transformers", "ray", "vllm"}
    users = {
        str(path.relative_to(ROOT / "veason"))
        for path in (ROOT / "veason").rglob("*.py")
        if {name.split(".")[0] for name in imports(path)} & heavy
    }
    assert {name.split("/")[0] for name in users} == {"trackers"}


TASK_WORDS = re.compile(
    r"(?<![a-z])(videos?|frames?|keyframes?|sam ?2|trackers?|segment(?:s|ed|ation)?|bbox(?:es)?|revos"
    r"|spatial|consistency)(?![a-z])",
    re.IGNORECASE,
)
"""Words of the task, its data, its tools and its reward terms; a mask may be one of attention, clipping that of PPO."""

ALLOWED_WORDS = {
    "verl/engines/generation.py": ["video"],  # Qwen's token, which no reply may hold
    "verl/engines/vllm.py": ["video"],  # a setting of vLLM
    "verl/models/loading.py": ["spatial"],  # transformers' names in a vision tower
    "verl/models/shared_prompts.py": ["spatial"],
    "verl/ray/group.py": ["frame", "frames"],  # of a traceback
}


def test_verl_is_ignorant_of_the_task():
    found = {
        str(path.relative_to(ROOT)): sorted({word.lower() for word in TASK_WORDS.findall(path.read_text())})
        for path in (ROOT / "verl").rglob("*")
        if path.suffix in {".py", ".yaml", ".txt", ".j2"}
    }
    assert {path: words for path, words in found.items() if not set(words) <= set(ALLOWED_WORDS.get(path, []))} == {}
    unused = {path: set(words) - set(found.get(path, [])) for path, words in ALLOWED_WORDS.items()}
    assert not any(unused.values()), unused


def test_workers_on_ray_know_neither_configuration_nor_what_they_do():
    """So that training and inference share them; without Ray one can still name what goes wrong with them."""
    found = {path.stem: imports(path) for path in (ROOT / "verl" / "ray").glob("*.py")}
    assert not [name for names in found.values() for name in names if is_ours(name) and not is_in(name, {"verl.ray"})]
    assert not [name for name in found["__init__"] if is_in(name, {"ray", "verl"})]


ENGINES = sorted(path.stem for path in (ROOT / "verl" / "engines").glob("*.py") if path.stem != "__init__")


def test_engines_need_neither_ray_nor_what_only_training_needs():
    code = f"import sys, {', '.join(f'verl.engines.{name}' for name in ENGINES)}; print(sorted(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    loaded = set(ast.literal_eval(done.stdout))
    assert "verl.engines.hf" in loaded
    assert not {"ray", "peft", "vllm", "verl.trainer", "verl.workers", "verl.models"} & loaded


LIGHT = [
    "demo.teacher",
    "demo.world",
    "eval.convert",
    "eval.mevis",
    "eval.reasonvos",
    "eval.refdavis",
    "eval.refytvos",
    "eval.revos",
    "eval.submit",
    "eval.table",
    "eval.vicas",
    "inference.compare",
    "inference.predict",
    "inference.report.__main__",
    "veason.doctor.__main__",
    "veason.trackers.grabcut",
]


@pytest.mark.parametrize("module", LIGHT)
def test_light_modules_stay_light(module):
    """torch loads for seconds: only what runs a model may import it."""
    code = f"import sys, {module}; print(sorted({{'torch', 'transformers', 'ray'}} & sys.modules.keys()))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.strip() == "[]"
