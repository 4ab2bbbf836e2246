"""The scripts as notebooks in a real kernel, which has a running event loop, and from another folder."""

import json
import os

import jupytext
import pytest
from conftest import ROOT, with_constants
from nbclient import NotebookClient

FEW = {"MAX_STEPS": 2, "EVAL_ROWS": 2, "NEW_TOKENS": 8}
SCRIPTS = {"sft_alpaca.py": FEW | {"EVALUATIONS": 1}, "grpo_r1.py": FEW}


@pytest.mark.parametrize("script", SCRIPTS)
def test_notebook_runs_in_a_kernel(tmp_path, script):
    source = with_constants((ROOT / script).read_text(encoding="utf-8"), **SCRIPTS[script])
    notebook = jupytext.reads(source, fmt="py:percent")
    assert [cell.cell_type for cell in notebook.cells][:2] == ["markdown", "code"] and len(notebook.cells) > 9
    environment = {**os.environ, "OUTPUT": str(tmp_path / "output")}
    client = NotebookClient(
        notebook, timeout=600, kernel_name="python3", resources={"metadata": {"path": str(ROOT)}}
    )
    client.execute(env=environment)
    metrics = json.loads((tmp_path / "output" / "metrics.json").read_text(encoding="utf-8"))
    assert metrics["train"]["steps"] == 2 and (tmp_path / "output" / "lora").is_dir()
    printed = "".join(
        output.get("text", "") for cell in notebook.cells[1:] for output in cell.get("outputs", [])
    )
    assert "Saved in" in printed


def test_from_another_folder(run_script, tmp_path):
    """The script finds what it ships; a relative DATA and OUTPUT are meant from where the user stands."""
    (tmp_path / "rows.jsonl").write_text(
        (ROOT / "data" / "alpaca.json").read_text(encoding="utf-8"), encoding="utf-8"
    )
    given = {"DATA": "rows.jsonl", "OUTPUT": "here"}
    run = run_script("sft_alpaca.py", environment=given, cwd=tmp_path, **SCRIPTS["sft_alpaca.py"])
    assert run.status == 0, run.stderr[-2000:]
    assert f"Relative paths start in {ROOT}" in run.stdout and (tmp_path / "here" / "report.md").exists()
