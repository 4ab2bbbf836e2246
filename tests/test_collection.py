"""What holds for every script of the collection."""

import ast
import re
import shutil
import subprocess
import sys

import jupytext
import pytest
from conftest import ROOT, constants_of, is_constant, with_constants

TRAINING = sorted(path.name for path in ROOT.glob("*.py"))
DEMOS = ["image_svd/image_svd.py", "image_svd/lora_spectra.py", "movielens_als/movielens_als.py"]
TITLES = [
    "[markdown]",
    "Imports",
    "Settings",
    "Data",
    "Score",
    "Model",
    "Before",
    "Train",
    "After",
    "Save",
    "Try it",
]
FIELDS = ("Run:", "Needs:", "Data:", "Writes:")
DIFFER = set()  # functions of one name that differ between scripts on purpose


def source_of(script: str) -> str:
    return (ROOT / script).read_text(encoding="utf-8")


@pytest.mark.parametrize("script", TRAINING)
def test_cells_and_header(script):
    source = source_of(script)
    titles = re.findall(r"(?m)^# %% (.+)$", source)
    assert [title.replace("Rewards", "Score") for title in titles] == TITLES
    header = ast.get_docstring(ast.parse(source))
    assert header.startswith("# ") and all(field in header for field in FIELDS)


@pytest.mark.parametrize("script", TRAINING)
def test_settings_are_literals(script):
    """Everything between Settings and the rehearsal block is a literal, or one of the three paths."""
    source = source_of(script)
    cell = source[source.index("# %% Settings") : source.index("# %% Data")]
    for name, value in constants_of(ast.parse(cell)).items():
        text = ast.unparse(value)
        if name in ("GPU", "DEVICE"):
            continue
        if name in ("MODEL", "DATA", "OUTPUT"):
            assert text.startswith(f"os.getenv('{name}', ")
        else:
            ast.literal_eval(value)


@pytest.mark.parametrize("script", TRAINING)
def test_one_rehearsal_block_and_no_other_branch(script):
    tree = ast.parse(source_of(script))
    blocks = [
        node
        for node in tree.body
        if isinstance(node, ast.If) and "MODEL.startswith" in ast.unparse(node.test)
    ]
    assert ast.unparse(blocks[0].test) == "MODEL.startswith('data/tiny')"
    assert all(is_constant(node) for node in blocks[0].body)
    settings_end = blocks[0].end_lineno
    names = [node for node in ast.walk(tree) if isinstance(node, ast.Name) and node.id == "GPU"]
    later = [node.lineno for node in names if node.lineno > settings_end]
    assert len(later) <= (script == "vl_car_insurance.py"), "Unsloth has no vision models on a CPU"


@pytest.mark.parametrize("script", TRAINING + DEMOS)
def test_a_script_is_a_notebook(script):
    source = source_of(script)
    tree = ast.parse(source)
    for node in ast.walk(tree):
        if isinstance(node, ast.If):
            assert not isinstance(node.test, ast.Constant) and "__name__" not in ast.unparse(node.test)
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            names = [alias.name for alias in node.names] + [getattr(node, "module", None) or ""]
            own = {path.stem for folder in ("", "data", "tests") for path in (ROOT / folder).glob("*.py")}
            assert not own & {name.split(".")[0] for name in names} and "argparse" not in names
        if isinstance(node, ast.FunctionDef):
            assert node.name != "main"
            if node in tree.body:
                assert ast.get_docstring(node), f"{node.name} has no docstring"
    notebook = jupytext.reads(source, fmt="py:percent")
    assert jupytext.writes(notebook, fmt="py:percent").rstrip().endswith(source.rstrip().rpartition("\n")[2])
    body = jupytext.writes(notebook, fmt="py:percent").split("# %%", 1)[1]
    assert body.rstrip() == source.split("# %%", 1)[1].rstrip()


@pytest.mark.parametrize("script", TRAINING + DEMOS)
def test_nothing_unsafe(script):
    source = source_of(script)
    assert not re.search(
        r"trust_remote_code|\bpickle\b|allow_pickle=True|torch\.load\(|share=True|0\.0\.0\.0", source
    )


@pytest.mark.parametrize("script", ["sft_medical.py", "vl_car_insurance.py"])
def test_pages_stay_on_this_machine_and_tell_nobody(script):
    """The page listens on the loopback address, and gradio's reports are off before gradio is imported."""
    demo = source_of(script).rpartition("if DEMO:")[2]
    assert demo.index('"GRADIO_ANALYTICS_ENABLED"] = "False"') < demo.index("import gradio")
    assert re.search(r"\.launch\(server_name=\"127\.0\.0\.1\"", demo)


def test_equal_names_are_equal_functions():
    bodies = {}
    for script in TRAINING:
        source = source_of(script)
        for node in ast.parse(source).body:
            if isinstance(node, (ast.FunctionDef, ast.ClassDef)) and node.name not in DIFFER:
                bodies.setdefault(node.name, {})[script] = ast.get_source_segment(source, node)
    assert {name: list(texts) for name, texts in bodies.items() if len(set(texts.values())) > 1} == {}


@pytest.mark.parametrize("readme", ["README.md", "README.zh-CN.md"])
def test_readme_lists_every_script(readme):
    text = source_of(readme)
    assert [script for script in TRAINING + DEMOS if script not in text] == []
    assert "pip install uv && uv run sft_gongwen.py" in text and "pip install uv && uv run pytest" in text


def test_requirements_are_exported_from_the_lock():
    uv = shutil.which("uv") or shutil.which("uv", path=str(ROOT / ".venv" / "bin"))
    if not uv:
        pytest.skip("uv is not on the path")
    command = [
        uv,
        "export",
        "-q",
        "--frozen",
        "--no-dev",
        "--extra",
        "vllm",
        "--no-hashes",
        "--no-annotate",
        "--no-header",
    ]
    lock = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    lock = re.sub(r"(?m)^certifi==.*$", "certifi>=2026.7.22", lock)
    text = "".join(line for line in source_of("requirements.txt").splitlines(keepends=True) if line[0] != "#")
    assert text == lock, "stale: see the first line of requirements.txt"


def test_constants_are_guarded():
    script = source_of("sft_gongwen.py")
    with pytest.raises(KeyError):
        with_constants(script, MAX_STEP=2)
    with pytest.raises(TypeError):
        with_constants(script, MAX_STEPS="2")
    changed = with_constants(script, MAX_STEPS=2)  # in the Settings, before anything reads them
    assert (
        changed.index("if MODEL.startswith") < changed.index("MAX_STEPS = 2") < changed.index("settings = {")
    )
    assert sys.version_info >= (3, 11)
