"""The rehearsal of the training script from end to end: its numbers and its files."""

import json
import re

import docx
from conftest import ROOT
from safetensors.torch import load_file

TINY = ROOT / "data" / "tiny-qwen2.5"


def metrics_of(run) -> dict:
    assert run.status == 0, run.stdout[-2000:] + run.stderr[-3000:]
    return json.loads((run.output / "metrics.json").read_text(encoding="utf-8"))


def test_gongwen_rehearsal_improves(rehearsal):
    run = rehearsal("sft_gongwen.py")
    metrics = metrics_of(run)
    before, after = metrics["before"], metrics["after"]
    assert before.keys() == after.keys() >= {"format_score", "term_score", "fact_score", "ended_by_itself"}
    assert after["format_score"] - before["format_score"] >= 0.30
    assert metrics["train"]["steps"] > 50 and metrics["train"]["trainable_parameters"] < 0.3 * 4e6
    assert metrics["train"].keys() >= {"seconds", "tokens_per_second", "peak_memory_gb", "total_parameters"}
    assert metrics["settings"]["SEED"] == 3407 and metrics["versions"]["unsloth"] == "2026.10.9"


def test_gongwen_rehearsal_leaves_what_it_says(rehearsal):
    run = rehearsal("sft_gongwen.py")
    names = {path.name for path in run.output.iterdir()}
    assert names == {"lora", "metrics.json", "report.md", "loss.png", "sample.docx"}
    assert load_file(run.output / "lora" / "adapter_model.safetensors")
    assert (run.output / "lora" / "tokenizer.json").exists() and (
        run.output / "loss.png"
    ).stat().st_size > 5000
    report = (run.output / "report.md").read_text(encoding="utf-8")
    assert "of no use to anyone" in report and "| format_score |" in report and report.count("### After") == 3
    text = "\n".join(line.text for line in docx.Document(run.output / "sample.docx").paragraphs)
    assert re.search(r"关于.*的", text)
    assert re.search(r"\d+ longer than \d+ tokens left out", run.stdout) and "Trained on:\n" in run.stdout
