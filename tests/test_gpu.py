"""For whoever has a card: `uv run pytest -m gpu` runs every script for two steps on the smallest real model.

It writes a table to outputs/gpu.md, ready for README. Not part of the usual tests. MODEL_TEXT and MODEL_VISION take
other models, or local folders.
"""

import json
import os
import re

import pytest
import torch
from conftest import ROOT

pytestmark = pytest.mark.gpu
TEXT = os.getenv("MODEL_TEXT", "unsloth/Qwen2.5-0.5B-Instruct-bnb-4bit")
VISION = os.getenv("MODEL_VISION", "unsloth/Qwen2.5-VL-3B-Instruct-unsloth-bnb-4bit")
FEW = {"MAX_STEPS": 2, "EVALUATIONS": 2, "EVAL_ROWS": 8, "NEW_TOKENS": 64}
SCRIPTS = {
    "sft_gongwen.py": FEW,
    "sft_alpaca.py": FEW,
    "sft_medical.py": {
        "RUNS": [("qlora", 16)], "EQUAL_STEPS": 2, "EVALUATIONS": 2, "VAL_ROWS": 8, "EVAL_ROWS": 8, "RED_ROWS": 8,
        "NEW_TOKENS": 64,
    },
    "grpo_r1.py": {"MAX_STEPS": 2, "EVAL_ROWS": 8, "FAST_INFERENCE": False},
    "vl_car_insurance.py": FEW,
}  # fmt: skip
HEADER = (
    "| script | model | card | peak memory, GB | tokens/s in training | loss of the second step |\n|"
    + "---|" * 6
)


def row_of(script: str, metrics: dict, printed: str) -> str:
    """Return a row of the table from a run's metrics.json and what it printed."""
    train, losses = metrics["train"], re.findall(r"'loss': '?(-?[\d.]+)", printed)
    cells = [f"`{script}`", metrics["model"], metrics["device"], f"{train['peak_memory_gb']:.1f}"]
    return "| " + " | ".join([*cells, f"{train['tokens_per_second']:.0f}", losses[-1]]) + " |"


@pytest.mark.parametrize("script", SCRIPTS)
def test_two_steps_on_a_card(run_script, script):
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    model = VISION if script == "vl_car_insurance.py" else TEXT
    run = run_script(script, environment={"MODEL": model}, **SCRIPTS[script])
    assert run.status == 0, run.stdout[-2000:] + run.stderr[-3000:]
    metrics = json.loads((run.output / "metrics.json").read_text(encoding="utf-8"))
    assert metrics["device"] == torch.cuda.get_device_name() and metrics["train"]["steps"] == 2
    assert (run.output / "lora" / "adapter_model.safetensors").exists()
    table = ROOT / "outputs" / "gpu.md"
    table.parent.mkdir(exist_ok=True)
    rows = table.read_text(encoding="utf-8").splitlines() if table.exists() else HEADER.splitlines()
    rows = [row for row in rows if not row.startswith(f"| `{script}`")]
    table.write_text("\n".join([*rows, row_of(script, metrics, run.stdout)]) + "\n", encoding="utf-8")
    print(table.read_text(encoding="utf-8"))
