"""The rules of the house, counted on the sources themselves."""

from __future__ import annotations

import ast
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

PACKAGE = Path(__file__).resolve().parents[1] / "medquant"
SOURCES = sorted(PACKAGE.rglob("*.py"))
MOST_LINES = 450

# Reading a pickle runs what it holds; a run needs no network.
FORBIDDEN_MODULES = {"pickle", "cPickle", "dill", "shelve", "marshal", "joblib", "cloudpickle", "yaml", "SimpleITK", "click"}
FORBIDDEN_MODULES |= {"socket", "urllib.request", "http", "requests", "httpx", "ftplib", "smtplib", "xmlrpc"}
FORBIDDEN_CALLS = {"eval", "exec", "compile", "__import__", "torch.load", "torch.save", "os.system", "os.popen", "np.load", "numpy.load"}

# The one place where files of torch are read, those of other tools: by the reader that takes tensors and plain values alone.
TENSOR_READER = "train/bring/weights.py"

# The one place that opens a connection: to the cluster a user names, to say in seconds that nothing answers there.
CLUSTER_CLIENT = "search/executors/ray_cluster.py"


def trees() -> Iterator[tuple[str, ast.Module]]:
    for path in SOURCES:
        yield str(path.relative_to(PACKAGE)), ast.parse(path.read_text(encoding="utf-8"))


def imported(tree: ast.Module) -> set[str]:
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def calls(tree: ast.Module) -> Iterator[tuple[str, ast.Call]]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name | ast.Attribute):
            yield ast.unparse(node.func), node


def reads_tensors_only(function: str, call: ast.Call) -> bool:
    limits = [word.value for word in call.keywords if word.arg == "weights_only"]
    return function == "torch.load" and len(limits) == 1 and isinstance(limits[0], ast.Constant) and limits[0].value is True


def test_imports_go_one_way(repository: Path) -> None:
    pytest.importorskip("importlinter", reason="needs import-linter")
    command = "import sys; from importlinter.cli import lint_imports; sys.exit(lint_imports(no_cache=True))"
    result = subprocess.run([sys.executable, "-c", command], cwd=repository, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr
    assert "0 broken" in result.stdout


@pytest.mark.parametrize("module", ["medquant", "medquant.config", "medquant.cli.main"])
def test_plain_commands_start_without_torch(repository: Path, module: str) -> None:
    heavy = ["torch", "monai", "scipy", "skimage", "matplotlib", "tensorboard"]
    command = f"import sys, {module}; print([name for name in {heavy} if name in sys.modules])"
    result = subprocess.run([sys.executable, "-c", command], cwd=repository, capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


def test_only_the_command_line_prints_and_nothing_asserts() -> None:
    found = []
    for name, tree in trees():
        found += [f"{name}:{node.lineno} assert" for node in ast.walk(tree) if isinstance(node, ast.Assert)]
        if not name.startswith("cli/"):
            found += [f"{name}:{call.lineno} print" for function, call in calls(tree) if function == "print"]
    assert not found


def test_nothing_reads_pickles_runs_text_or_uses_the_network() -> None:
    found = []
    for name, tree in trees():
        allowed = {"socket"} if name == CLUSTER_CLIENT else set()
        found += [f"{name} imports {module}" for module in sorted(imported(tree) & FORBIDDEN_MODULES - allowed)]
        packages = FORBIDDEN_MODULES - allowed
        found += [f"{name} imports {module}" for module in sorted(imported(tree)) if module.split(".")[0] in packages]
        for function, call in calls(tree):
            if function in FORBIDDEN_CALLS and not (name == TENSOR_READER and reads_tensors_only(function, call)):
                found.append(f"{name}:{call.lineno} {function}")
            if any(word.arg == "shell" for word in call.keywords):
                found.append(f"{name}:{call.lineno} shell")
    assert not found


def test_public_names_and_modules_have_docstrings() -> None:
    found = []
    for name, tree in trees():
        if not ast.get_docstring(tree):
            found.append(name)
        for node in tree.body:
            is_named = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef)
            if is_named and not node.name.startswith("_") and not ast.get_docstring(node):
                found.append(f"{name}: {node.name}")
    assert not found


def test_files_stay_short_and_say_what_they_hold() -> None:
    long = [str(path) for path in SOURCES if len(path.read_text(encoding="utf-8").splitlines()) >= MOST_LINES]
    vague = [str(path) for path in SOURCES if path.stem in {"utils", "util", "helpers", "misc", "common"}]
    assert not long
    assert not vague


def pinned(repository: Path) -> dict[str, Version]:
    lines = (repository / "constraints.txt").read_text(encoding="utf-8").splitlines()
    requirements = [Requirement(line) for line in lines if line and not line.startswith("#")]
    return {canonicalize_name(item.name): Version(str(item.specifier).removeprefix("==")) for item in requirements}


def test_pinned_versions_satisfy_the_floors(repository: Path) -> None:
    project = tomllib.loads((repository / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    pins = pinned(repository)
    groups = [project["dependencies"], *project["optional-dependencies"].values()]
    wanted = [Requirement(text) for group in groups for text in group]
    assert len(wanted) > 16
    for requirement in wanted:
        if requirement.name == project["name"]:
            continue  # an extra that takes in others
        assert requirement.specifier.contains(pins[canonicalize_name(requirement.name)]), requirement


def test_floors_are_those_that_trust_asks_for(repository: Path) -> None:
    project = tomllib.loads((repository / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    floors = {item.name: item.specifier for item in map(Requirement, project["dependencies"])}
    assert not floors["torch"].contains("2.9.1")
    assert floors["torch"].contains("2.10.0")
    assert not floors["monai"].contains("1.5.1")
    assert floors["monai"].contains("1.5.2")


def test_make_installs_the_pinned_torch_first(repository: Path) -> None:
    makefile = (repository / "Makefile").read_text(encoding="utf-8")
    assert f"TORCH := torch=={pinned(repository)['torch']}\n" in makefile
    assert makefile.index("install $(TORCH)") < makefile.index("install -c constraints.txt")


def test_one_version_number(repository: Path) -> None:
    import medquant

    project = tomllib.loads((repository / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert medquant.__version__ == project["version"]
    assert f"\nversion: {medquant.__version__}\n" in (repository / "CITATION.cff").read_text(encoding="utf-8")
