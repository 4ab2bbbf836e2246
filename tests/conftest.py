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

ROOT = Path(__file__).resolve().parent.parent

RUNNER = """
import sys
script, source = sys.argv[1:3]
sys.argv = [script]
code = compile(open(source, encoding="utf-8").read(), script, "exec")
exec(code, {"__name__": "__main__", "__file__": script})
"""


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
    names = [
        name for target in targets for name in (target.elts if isinstance(target, ast.Tuple) else [target])
    ]
    return bool(names) and all(isinstance(name, ast.Name) and name.id.isupper() for name in names)


def constants_of(tree: ast.Module) -> dict[str, ast.expr]:
    """Return name -> value node of the top-level constants."""
    return {
        node.targets[0].id: node.value
        for node in tree.body
        if is_constant(node) and hasattr(node.targets[0], "id")
    }


def with_constants(source: str, **constants) -> str:
    """Return a script with constants replaced after its Settings; unknown names and changed types are refused."""
    tree = ast.parse(source)
    known = constants_of(tree)
    for name, value in constants.items():
        if name not in known:
            raise KeyError(f"{name} is not a constant of the script")
        try:
            old = ast.literal_eval(known[name])
        except ValueError:
            continue  # read from the environment or derived from the machine
        same = type(old) is type(value) or {type(old), type(value)} <= {int, float} or None in (old, value)
        if not same and {type(old), type(value)} != {
            bool,
            str,
        }:  # GRADIENT_CHECKPOINTING is "unsloth" or False
            raise TypeError(f"{name} is {type(old).__name__} in the script, not {type(value).__name__}")
    rehearsal = [
        node
        for node in tree.body
        if isinstance(node, ast.If) and "MODEL.startswith" in ast.unparse(node.test)
    ]
    last = rehearsal[0] if rehearsal else [node for node in tree.body if is_constant(node)][-1]
    lines = source.splitlines(keepends=True)
    new = "".join(f"{name} = {value!r}\n" for name, value in constants.items())
    return "".join(lines[: last.end_lineno]) + new + "".join(lines[last.end_lineno :])


def start(
    script, output, runner=(), environment=None, cwd=ROOT, then="", changes=(), **constants
) -> subprocess.Popen:
    """Start a script with other constants in a process of its own.

    `then` is code to run after its last line; of `changes`, (old, new), each replaces a text that is there once.
    """
    output.parent.mkdir(parents=True, exist_ok=True)
    source = output.parent / f"{output.name}-source.py"
    text = with_constants((ROOT / script).read_text(encoding="utf-8"), **constants)
    for old, new in changes:
        assert text.count(old) == 1, old
        text = text.replace(old, new)
    source.write_text(text + then, encoding="utf-8")
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


def kill_in_training(script, output, step, runner=(), environment=None, **constants) -> None:
    """Start a script and end it with SIGKILL as soon as the checkpoint of a step is complete."""
    process = start(script, output, runner, environment, **constants)
    limit = time.time() + 600
    while not list(output.glob(f"checkpoints-*/checkpoint-{step}/trainer_state.json")):
        assert process.poll() is None, process.communicate()
        assert time.time() < limit
        time.sleep(0.05)
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
    module = types.ModuleType(Path(script).stem)
    module.__file__ = str(ROOT / script)
    sys.modules[module.__name__] = module
    os.chdir(ROOT)
    exec(compile(ast.Module(body, type_ignores=[]), str(ROOT / script), "exec"), module.__dict__)
    return module


@pytest.fixture(scope="session")
def functions():
    """Return functions(script), the same for all tests."""
    return functions_of
