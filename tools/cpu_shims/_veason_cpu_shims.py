"""Makes torchvision, torchaudio and torchcodec wheels built for CUDA importable beside a CPU build of torch.

Their compiled libraries link CUDA, so beside a CPU torch they do not load, and `import torchvision` fails with
"operator torchvision::nms does not exist". `make setup` copies this module and a one-line .pth into the environment
of a CPU-only machine; every interpreter started there (Ray and vLLM workers included) then puts one finder at the front
of sys.meta_path. The finder handles three names only, and acts only if the real library does not load:

    torchvision   two operator schemas are declared, then the real package is imported; nms itself still fails.
    torchaudio    a stand-in that imports; the first use of it says that audio is not available here.
    torchcodec    ModuleNotFoundError, which its users treat as "not installed".

VEASON_CPU_SHIMS=off      change no import
VEASON_CPU_SHIMS=verbose  print a line on stderr for each package that is changed
python -m _veason_cpu_shims   print what is done here
"""

import os
import sys

# Runs at every interpreter start: nothing heavier than os and sys may be imported above the functions that need it.

SCHEMAS = (
    "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
)
_kept: list = []  # torch.library.Library objects: their operators vanish with them
_problems: dict[str, str] = {}  # package → why its library does not load


class ShimFinder:
    """Wraps the loader of the three packages; it finds nothing by itself."""

    def find_spec(self, name, path=None, target=None):
        package, _, submodule = name.partition(".")
        if package not in _ACTIONS:
            return None
        if submodule and not isinstance(sys.modules.get(package), _stand_in_type()):
            return None
        spec = None
        for finder in sys.meta_path:
            if finder is not self and not isinstance(finder, ShimFinder) and hasattr(finder, "find_spec"):
                spec = finder.find_spec(name, path, target)
                if spec is not None:
                    break
        if spec is None or spec.loader is None:
            return spec
        spec.loader = StandInLoader(spec.loader) if submodule else PackageLoader(spec.loader)  # type: ignore[assignment]  # importlib.abc is too heavy for every start
        return spec


class PackageLoader:
    """Loads the real package, with a correction where its library cannot load."""

    def __init__(self, real):
        self.real = real

    def __getattr__(self, name):  # get_code, is_package, …: for tools that inspect without importing
        return getattr(self.__dict__["real"], name)

    def create_module(self, spec):
        return self.real.create_module(spec)

    def exec_module(self, module):
        module.__loader__ = module.__spec__.loader = self.real
        if _torch_is_cpu_build():
            _ACTIONS[module.__name__](module, self.real)
        else:
            self.real.exec_module(module)


class StandInLoader(PackageLoader):
    """Loads an empty module in place of a submodule of a stand-in."""

    def exec_module(self, module):
        module.__loader__ = module.__spec__.loader = self.real
        module.__class__ = _stand_in_type()


def _torchvision(module, real):
    problem = _library_problem(module.__spec__, "_C.so")
    if problem:
        import torch

        _say(f"torchvision: its library does not load ({problem}); declaring the schemas of nms and qnms")
        library = torch.library.Library("torchvision", "FRAGMENT")
        for schema in SCHEMAS:
            if not hasattr(torch.ops.torchvision, schema.partition("(")[0]):
                library.define(schema)
        _kept.append(library)
    real.exec_module(module)


def _torchaudio(module, real):
    problem = _library_problem(module.__spec__, "lib/libtorchaudio.abi3.so", "lib/libtorchaudio.so")
    if not problem:
        real.exec_module(module)
        return
    _problems["torchaudio"] = problem
    _say(f"torchaudio: its library does not load ({problem}); a stand-in takes its place")
    module.__class__ = _stand_in_type()
    module.__version__ = _version("torchaudio")


def _torchcodec(module, real):
    try:
        real.exec_module(module)
    except (OSError, RuntimeError) as error:
        problem = _first_line(error)
    else:
        return
    for name in [name for name in sys.modules if name.startswith("torchcodec.")]:
        del sys.modules[name]
    _say(f"torchcodec: its libraries do not load ({problem}); reported as not installed")
    raise ModuleNotFoundError(f"No usable module named 'torchcodec': {problem}", name="torchcodec")


_ACTIONS = {"torchvision": _torchvision, "torchaudio": _torchaudio, "torchcodec": _torchcodec}


def _stand_in_type():
    global _StandIn
    if _StandIn is None:
        import types

        class StandIn(types.ModuleType):
            """A module that imports and holds nothing."""

            def __getattr__(self, name):
                # AttributeError, so that hasattr() and `from torchaudio import functional` keep their meaning.
                raise AttributeError(
                    f"{self.__name__}.{name}: audio is not available here: beside this CPU build of torch the "
                    f"installed torchaudio does not load ({_problems['torchaudio']}), so a stand-in took its place "
                    "(VEASON_CPU_SHIMS=off removes it)"
                )

        _StandIn = StandIn
    return _StandIn


_StandIn: type | None = None


def _torch_is_cpu_build():
    """Checks for a CPU build; a GPU build whose library does not load is a real fault and stays visible."""
    try:
        import torch
    except ImportError:
        return False
    return torch.version.cuda is None and getattr(torch.version, "hip", None) is None


def _library_problem(spec, *candidates):
    """Returns why the first existing candidate does not load; None if it loads or none exists."""
    import ctypes

    folder = os.path.dirname(spec.origin)
    for path in (os.path.join(folder, candidate) for candidate in candidates):
        if os.path.exists(path):
            try:
                ctypes.CDLL(path)
            except OSError as error:
                return _first_line(error)
            return None
    return None  # no such file: a build without a library, or one of another name; its own import decides


def _first_line(error):
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


def _version(name):
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version(name)
    except PackageNotFoundError:
        return "unknown"


def _say(line):
    if _mode() == "verbose":
        print(f"veason cpu shims: {line}", file=sys.stderr)


def _mode():
    return os.environ.get("VEASON_CPU_SHIMS", "").strip().lower()


def report():
    """Returns [(package, acted, description)] for this interpreter, found by importing each package."""
    import importlib.util

    if _mode() == "off":
        return [(name, False, "left alone (VEASON_CPU_SHIMS=off)") for name in _ACTIONS]
    if not _torch_is_cpu_build():
        return [(name, False, "left alone (torch is missing or built for a GPU)") for name in _ACTIONS]
    return [_outcome(name) if importlib.util.find_spec(name) else (name, False, "not installed") for name in _ACTIONS]


def _outcome(name):
    import importlib

    try:
        module = importlib.import_module(name)
    except ModuleNotFoundError as error:
        return name, True, f"reported as not installed ({error})"
    if isinstance(module, _stand_in_type()):
        return name, True, "a stand-in: audio is not available"
    if name == "torchvision" and _kept:
        return name, True, "the real package, with the schemas of nms and qnms declared for it"
    return name, False, "the real package, untouched"


def install():
    """Puts the finder first, once."""
    if _mode() != "off" and not any(isinstance(finder, ShimFinder) for finder in sys.meta_path):
        sys.meta_path.insert(0, ShimFinder())


if __name__ == "__main__":
    import _veason_cpu_shims  # the copy whose finder is installed, not this one

    for package, _, what in _veason_cpu_shims.report():
        print(f"{package:<12} {what}")
else:
    install()
