"""The two ways to reach a script: run it with other constants, or take its functions without running it."""

import ast
import os
import subprocess
import sys
import time
import types
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest
from hypothesis import settings

settings.register_profile("busy", deadline=None, derandomize=True)  # two tests share two cores; no luck
settings.load_profile("busy")
ROOT = Path(__file__).resolve().parent.parent

RUNNER = """
import sys
script, source = sys.argv[1:3]
sys.argv = [script]
code = compile(open(source, encoding="utf-8").read(), script, "exec")
exec(code, {"__name__": "__main__", "__file__": script})
"""


LONGEST = ["test_runs.py", "test_gpu_path.py", "test_grpo.py", "test_architectures.py", "test_export.py"]


def pytest_collection_modifyitems(items) -> None:
    """Begin with the files that take longest, so that both workers end at the same time."""
    places = {name: place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: places.get(item.path.name, len(places)))


@dataclass
class Run:
    """What a finished run left: its exit status, what it printed, its folder and its duration in seconds."""

    status: int
    stdout: str
    stderr: str
    output: Path
    seconds: float


def is_constant(node: ast.stmt) -> bool:
    """Return whether a statement assigns upper-case names only."""
    targets = node.targets if isinstance(node, ast.Assign) else []
    return bool(targets) and all(isinstance(name, ast.Name) and name.id.isupper() for name in targets)


def constants_of(tree: ast.Module) -> dict[str, ast.expr]:
    """Return name -> value node of the top-level constants, the first one where a name is set twice."""
    nodes = [node for node in tree.body if is_constant(node)]
    return {node.targets[0].id: node.value for node in reversed(nodes)}


def same_kind(old: object, new: object) -> bool:
    """Return whether a constant may be replaced: by its own type; "unsloth" by False, None by anything."""
    kinds = {type(old), type(new)}
    return len(kinds) == 1 or kinds <= {int, float} or kinds == {bool, str} or None in (old, new)


def with_constants(source: str, **constants) -> str:
    """Return a script with constants set after its rehearsal's; unknown names and changed types are refused."""
    tree = ast.parse(source)
    known = constants_of(tree)
    for name, value in constants.items():
        if name not in known:
            raise KeyError(f"{name} is not a constant of the script")
        try:
            old = ast.literal_eval(known[name])
        except ValueError:
            continue  # read from the environment or derived from the machine
        if not same_kind(old, value):
            raise TypeError(f"{name} is {type(old).__name__} in the script, not {type(value).__name__}")
    tests = [ast.unparse(node.test) if isinstance(node, ast.If) else "" for node in tree.body]
    rehearsal = tree.body[tests.index("MODEL.startswith('data/tiny')")]
    lines = source.splitlines(keepends=True)
    new = "".join(f"{name} = {value!r}\n" for name, value in constants.items())
    return "".join(lines[: rehearsal.end_lineno]) + new + "".join(lines[rehearsal.end_lineno :])


def start(
    script, output, runner=(), environment=None, cwd=ROOT, then="", edit=str, **constants
) -> subprocess.Popen:
    """Start a script with other constants in a process of its own; `then` is code to run after its last line.

    `edit` is called with the script's text and returns what is run in its place.
    """
    output.parent.mkdir(parents=True, exist_ok=True)
    source = output.parent / f"{output.name}-source.py"
    text = with_constants((ROOT / script).read_text(encoding="utf-8"), **constants)
    source.write_text(edit(text) + then, encoding="utf-8")
    start_file = output.parent / f"{output.name}-runner.py"
    start_file.write_text(RUNNER, encoding="utf-8")
    command = [sys.executable, *runner, str(start_file), str(ROOT / script), str(source)]
    variables = {**os.environ, "OUTPUT": str(output), "PYTHONUNBUFFERED": "1", **(environment or {})}
    if "PYTEST_XDIST_WORKER" in os.environ:  # two workers on two cores
        variables["OMP_NUM_THREADS"] = "1"
    return subprocess.Popen(
        command,
        cwd=cwd,
        env=variables,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        encoding="utf-8",
    )


def kill_in_training(script, output, file, runner=(), environment=None, **constants) -> None:
    """Start a script and end it with SIGKILL as soon as a filled file of that pattern is there."""
    process = start(script, output, runner, environment, **constants)
    limit = time.time() + 600
    while not any(path.stat().st_size for path in output.glob(file)):
        assert process.poll() is None, process.communicate()
        assert time.time() < limit
        time.sleep(0.02)
    process.kill()
    process.communicate()


@pytest.fixture(scope="session")
def run_script(tmp_path_factory):
    """Return run(script, output=None, **what start() takes) -> Run."""

    def run(script, output=None, **options) -> Run:
        output = output or tmp_path_factory.mktemp(Path(script).stem) / "output"
        begin = time.time()
        process = start(script, output, **options)
        stdout, stderr = process.communicate(timeout=1200)
        return Run(process.returncode, stdout, stderr, output, time.time() - begin)

    return run


@pytest.fixture(scope="session")
def rehearsal(run_script):
    """Return the rehearsal of a script as a user runs it; each script is run once in a test session."""
    runs = {}

    def get(script) -> Run:
        if script not in runs:
            runs[script] = run_script(script)
            assert runs[script].status == 0, runs[script].stdout[-3000:] + runs[script].stderr[-3000:]
        return runs[script]

    return get


@cache
def functions_of(script: str) -> types.ModuleType:
    """Return a module of a script's imports, constants, functions and classes; nothing else of it is run."""
    tree = ast.parse((ROOT / script).read_text(encoding="utf-8"))
    kept = (ast.Import, ast.ImportFrom, ast.FunctionDef, ast.ClassDef)
    body = [node for node in tree.body if isinstance(node, kept) or is_constant(node)]
    # Unsloth patches its libraries for the whole process, which pure functions do not need.
    body = [node for node in body if not (isinstance(node, ast.ImportFrom) and node.module == "unsloth")]
    module = types.ModuleType(script.removesuffix(".py").replace("/", "_").replace("-", "_"))
    module.__file__ = str(ROOT / script)
    sys.modules[module.__name__] = module
    os.chdir(ROOT)
    exec(compile(ast.Module(body, type_ignores=[]), str(ROOT / script), "exec"), module.__dict__)
    return module


@pytest.fixture(scope="session")
def functions():
    """Return functions(script), the same for all tests."""
    return functions_of
