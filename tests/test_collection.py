"""What holds for every script and program of the collection."""

import ast
import re
import shutil
import subprocess

import jupytext
import pytest
from conftest import ROOT, constants_of, is_constant, with_constants

TRAINING = sorted(path.name for path in ROOT.glob("*.py"))
DEMOS = ["image_svd/image_svd.py", "image_svd/lora_spectra.py"]
DEMOS += ["movielens_als/movielens_als.py", "movielens_als/implicit_als.py"]
PROGRAMS = sorted(
    str(path.relative_to(ROOT)) for name in ("data/*/*.py", "tools/*.py") for path in ROOT.glob(name)
)
EVERYTHING = TRAINING + DEMOS + PROGRAMS
TITLES = "[markdown]|Imports|Settings|Data|Model|Before|Train|After|Score|Save|Try it".split("|")
FIELDS = ("Run:", "Needs:", "Data:", "Writes:")
LIMITS = {"sft_alpaca.py": 280, "movielens_als/movielens_als.py": 220}  # lines; other training scripts 420
DIFFER = set(  # names that programs of different rooms use for something of their own
    "read_rows load_model score_rows read_photo score read_answers table_of conclusion faults answers_of score_run".split()
)
OWN = {path.stem for path in ROOT.rglob("*.py") if ".venv" not in path.parts}


def source_of(script: str) -> str:
    return (ROOT / script).read_text(encoding="utf-8")


@pytest.mark.parametrize("script", TRAINING)
def test_cells_and_header(script):
    source = source_of(script)
    titles = re.findall(r"(?m)^# %% (.+)$", source)
    assert [title for title in titles if title != "Rewards"] == TITLES
    assert ("Rewards" in titles) == (script == "grpo_r1.py")
    header = ast.get_docstring(ast.parse(source))
    assert header.startswith("# ") and all(field in header for field in FIELDS)


@pytest.mark.parametrize("script", TRAINING + list(LIMITS)[1:])
def test_a_script_stays_short_without_squeezed_lines(script):
    source = source_of(script)
    lines = source.splitlines()
    assert len(lines) <= LIMITS.get(script, 420)
    assert max(map(len, lines)) <= 110 and "fmt: skip" not in source and "noqa: E501" not in source
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.stmt) and not isinstance(node, ast.If):
            here = [other for other in ast.walk(node) if isinstance(other, ast.stmt)]
            assert not [n for n in here if n is not node and n.lineno == node.lineno], f"line {node.lineno}"


@pytest.mark.parametrize("script", TRAINING)
def test_the_first_training_idea_stands_within_90_lines(script):
    tree = ast.parse(source_of(script))
    first = min(node.lineno for node in tree.body if isinstance(node, ast.FunctionDef))
    assert first <= 90


@pytest.mark.parametrize("script", TRAINING)
def test_settings_are_one_a_line_and_plain(script):
    """A setting is a literal; MODEL, DATA and OUTPUT may come from the environment, MODEL depends on the card."""
    cell = source_of(script).partition("# %% Settings")[2].partition("# %% Data")[0]
    from_machine = {"GPU", "MODEL", "DATA", "OUTPUT"}
    for node in ast.parse(cell).body:
        assert isinstance(node, ast.If) or is_constant(node), ast.unparse(node)
        assert isinstance(node, ast.If) or len(node.targets) == 1
    for name, value in constants_of(ast.parse(cell)).items():
        if name not in from_machine:
            ast.literal_eval(value)
    assert set(re.findall(r'getenv\("(\w+)"', source_of(script))) <= {"MODEL", "DATA", "OUTPUT", "RANK"}


@pytest.mark.parametrize("script", TRAINING)
def test_one_rehearsal_block_and_no_other_branch(script):
    tree = ast.parse(source_of(script))
    blocks = [node for node in tree.body if isinstance(node, ast.If) and "MODEL" in ast.unparse(node.test)]
    assert [ast.unparse(block.test) for block in blocks] == ["MODEL.startswith('data/tiny')"]
    assert all(is_constant(node) for node in blocks[0].body)
    names = [node for node in ast.walk(tree) if isinstance(node, ast.Name) and node.id == "GPU"]
    later = [node.lineno for node in names if node.lineno > blocks[0].end_lineno]
    assert not later or script == "vl_car_insurance.py", "Unsloth has no vision models on a CPU"


@pytest.mark.parametrize("script", EVERYTHING)
def test_nothing_imports_from_here(script):
    for node in ast.walk(ast.parse(source_of(script))):
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else [node.module]
            assert not OWN & {name.split(".")[0] for name in names}


@pytest.mark.parametrize("script", EVERYTHING)
def test_functions_say_what_they_do_and_nothing_is_hidden(script):
    tree = ast.parse(source_of(script))
    for node in ast.walk(tree):
        if isinstance(node, ast.If):
            assert not isinstance(node.test, ast.Constant) and "__name__" not in ast.unparse(node.test)
        assert not (isinstance(node, ast.FunctionDef) and node.name == "main")
    for node in tree.body:
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            assert ast.get_docstring(node), f"{node.name} has no docstring"
    assert not re.search(r"\bglobals\(\)|argparse|matplotlib\.use\(", source_of(script))


@pytest.mark.parametrize("script", TRAINING)
def test_a_script_is_a_notebook(script):
    source = source_of(script)
    notebook = jupytext.reads(source, fmt="py:percent")
    body = jupytext.writes(notebook, fmt="py:percent").split("# %%", 1)[1]
    assert body.rstrip() == source.split("# %%", 1)[1].rstrip()
    assert "__file__" not in source


@pytest.mark.parametrize("script", EVERYTHING)
def test_nothing_unsafe(script):
    source = source_of(script)
    assert not re.search(r"\bpickle\b|torch\.load\(|share=True|0\.0\.0\.0|trust_remote_code=True", source)


@pytest.mark.parametrize("script", TRAINING)
def test_remote_code_is_refused_and_nothing_is_reported(script):
    tree = ast.parse(source_of(script))
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call)]
    loading = [call for call in calls if ast.unparse(call.func).endswith(".from_pretrained")]
    for call in loading:
        assert "trust_remote_code=False" in ast.unparse(call), ast.unparse(call)
    assert len(loading) >= 2
    source = source_of(script)
    assert source.index('"UNSLOTH_DISABLE_STATISTICS"] = "1"') < source.index("from unsloth import")


@pytest.mark.parametrize("script", ["sft_medical.py", "vl_car_insurance.py"])
def test_pages_stay_on_this_machine_and_tell_nobody(script):
    """The page listens on the loopback address, asks for no tunnel, and gradio's reports are off."""
    demo = source_of(script).rpartition("if DEMO:")[2]
    assert demo.index('"GRADIO_ANALYTICS_ENABLED"] = "False"') < demo.index("import gradio")
    launch = next(
        node
        for node in ast.walk(ast.parse(source_of(script)))
        if isinstance(node, ast.Call) and ast.unparse(node.func).endswith(".launch")
    )
    options = {option.arg: ast.unparse(option.value) for option in launch.keywords}
    assert options["server_name"] == "'127.0.0.1'" and options["share"] == "False"
    assert "only_here" in options["app_kwargs"] and 'allowed_hosts=["127.0.0.1", "localhost"]' in demo


def functions_in(script: str) -> dict[str, str]:
    """Return name -> text of a file's functions."""
    source = source_of(script)
    nodes = [node for node in ast.parse(source).body if isinstance(node, (ast.FunctionDef, ast.ClassDef))]
    return {node.name: ast.get_source_segment(source, node) for node in nodes}


def test_equal_names_are_equal_functions():
    texts = {}
    for script in TRAINING + [program for program in PROGRAMS if not program.endswith("build.py")]:
        for name, text in functions_in(script).items():
            texts.setdefault(name, {})[script] = text
    different = {name: list(found) for name, found in texts.items() if len(set(found.values())) > 1}
    assert {name: found for name, found in different.items() if name not in DIFFER} == {}
    assert DIFFER == set(different), "a name that no longer differs"
    between_scripts = [functions_in(script) for script in TRAINING]
    for name in DIFFER:
        assert len({found[name] for found in between_scripts if name in found}) <= 1


def test_scripts_score_as_their_judges_do():
    judge, script = functions_in("data/car_insurance/judge.py"), functions_in("vl_car_insurance.py")
    for name in "parse_json letters_of normal error_rate score_rows field_accuracy sentence".split():
        assert script[name] == judge[name]
    judge, script = functions_in("data/r1/judge.py"), functions_in("grpo_r1.py")
    for name in "number_of extract_xml_answer correctness_reward_func strict_format_reward_func".split():
        assert script[name] == judge[name]


@pytest.mark.parametrize("readme", ["README.md", "README.zh-CN.md"])
def test_readme_is_short_and_lists_every_script(readme):
    text = source_of(readme)
    assert len(text.splitlines()) <= 150
    assert [script for script in TRAINING + DEMOS if script not in text] == []
    assert "pip install uv && uv run sft_gongwen.py" in text and "pip install uv && uv run pytest" in text


def test_data_readme_names_every_file():
    text = source_of("data/README.md")
    folders = sorted(path for path in (ROOT / "data").iterdir() if path.is_dir())
    assert [path.name for path in folders if f"{path.name}/" not in text] == []


def test_requirements_are_exported_from_the_lock():
    uv = shutil.which("uv") or shutil.which("uv", path=str(ROOT / ".venv" / "bin"))
    if not uv:
        pytest.skip("uv is not on the path")
    command = f"{uv} export -q --frozen --no-dev --extra vllm --no-hashes --no-annotate --no-header".split()
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
    assert changed.index("if MODEL.startswith") < changed.index("MAX_STEPS = 2") < changed.index("# %% Data")
