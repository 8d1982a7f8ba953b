"""requirements.txt says what our code imports: nothing missing, nothing that only seems to be used."""

import ast
import importlib.metadata
import re
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
PACKAGES = ("veason", "verl", "grpo_reward", "training_data_construction", "inference", "eval", "demo")
APART = {"sam2"}  # installed by a line of its own, see the head of requirements.txt


def declared():
    """(packages under "imported by our code", packages under "used without an import of ours")."""
    text = (ROOT / "requirements.txt").read_text()
    imported, used = text.split("# ---- used without an import of ours ----")
    return tuple(
        {normalized(name) for name in re.findall(r"^([\w-]+)==", part, re.MULTILINE)} for part in (imported, used)
    )


def normalized(name):
    return re.sub(r"[-_.]+", "-", name).lower()


def imported_modules():
    found = set()
    for package in PACKAGES:
        for path in (ROOT / package).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.Import):
                    found |= {alias.name.split(".")[0] for alias in node.names}
                elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
                    found.add(node.module.split(".")[0])
    return found - set(sys.stdlib_module_names) - set(PACKAGES)


def test_every_import_is_declared_and_every_declared_import_is_made():
    packages = importlib.metadata.packages_distributions()
    imported = {normalized(packages.get(module, [module])[0]) for module in imported_modules()}
    assert imported - APART == declared()[0]


def test_what_is_used_without_an_import_is_not_imported():
    assert not declared()[0] & declared()[1]
