"""Runs of the training scripts from end to end: the rehearsal, an interruption, a saved adapter, bad data."""

import json
import re
import shutil

import docx
import pytest
import torch
from conftest import ROOT, kill_in_training
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

TINY = ROOT / "data" / "tiny-qwen2.5"
SHORT = {"MAX_STEPS": 6, "EVALUATIONS": 3, "EVAL_ROWS": 4, "NEW_TOKENS": 40, "MAX_LENGTH": 300}


def metrics_of(run) -> dict:
    assert run.status == 0, run.stdout[-2000:] + run.stderr[-3000:]
    return json.loads((run.output / "metrics.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="session")
def short_run(run_script):
    """Return a short run of sft_gongwen.py from beginning to end."""
    run = run_script("sft_gongwen.py", **SHORT)
    metrics_of(run)
    return run


def test_gongwen_rehearsal_improves(rehearsal):
    run = rehearsal("sft_gongwen.py")
    metrics = metrics_of(run)
    before, after = metrics["before"], metrics["after"]
    assert before.keys() == after.keys() >= {"format_score", "term_score", "kind_as_asked", "fact_score"}
    assert after["format_score"] >= 0.70 and after["format_score"] - before["format_score"] >= 0.30
    assert after["term_score"] - before["term_score"] >= 0.30
    assert (
        metrics["train"]["steps"] > 50
        and metrics["train"]["trainable_parameters"] < 0.3 * metrics["train"]["total_parameters"]
    )
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


def test_alpaca_rehearsal_improves(rehearsal):
    run = rehearsal("sft_alpaca.py")
    metrics = metrics_of(run)
    before, after = metrics["before"], metrics["after"]
    assert before.keys() == after.keys() >= {"loss", "perplexity", "chrf", "ended_by_itself"}
    assert after["loss"] <= 0.9 * before["loss"] and after["perplexity"] < before["perplexity"]
    assert {path.name for path in run.output.iterdir()} == {"lora", "metrics.json", "report.md", "loss.png"}


def test_killed_run_goes_on_and_ends_the_same(run_script, short_run, tmp_path):
    output = tmp_path / "killed"
    kill_in_training("sft_gongwen.py", output, 2, **SHORT)
    assert not (output / "metrics.json").exists()
    again = run_script("sft_gongwen.py", output=output, **SHORT)
    resumed, whole = metrics_of(again), metrics_of(short_run)
    assert "Going on from" in again.stdout and resumed["train"]["steps"] == whole["train"]["steps"] == 6
    assert resumed["before"] == whole["before"] and resumed["after"] == whole["after"]
    assert not list(output.glob("checkpoints-*"))


def test_saved_adapter_is_scored_and_merged(run_script, short_run):
    """TRAIN = False gives the scores of the run that saved the adapter; the merged model answers as the adapter."""
    first = metrics_of(short_run)
    second = run_script("sft_gongwen.py", short_run.output, TRAIN=False, EXPORT="merged_16bit", **SHORT)
    assert metrics_of(second)["after"] == first["after"] and metrics_of(second)["train"]["steps"] == 0
    merged_folder = short_run.output / "merged_16bit"
    tokenizer = AutoTokenizer.from_pretrained(merged_folder)
    base = AutoModelForCausalLM.from_pretrained(TINY, dtype=torch.float32)
    adapted = PeftModel.from_pretrained(base, short_run.output / "lora").eval()
    merged = AutoModelForCausalLM.from_pretrained(merged_folder, dtype=torch.float32).eval()
    turns = [{"role": "user", "content": "写一则关于停诊的通告。"}]
    text = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
    inputs = tokenizer(text, return_tensors="pt")
    with torch.no_grad():
        difference = (adapted(**inputs).logits - merged(**inputs).logits).abs().max()
    assert difference < 0.15  # the merged weights are rounded to bfloat16
    texts = [
        model.generate(**inputs, max_new_tokens=8, do_sample=False).tolist() for model in (adapted, merged)
    ]
    assert texts[0] == texts[1]


def test_two_processes_train_as_one(run_script):
    """torchrun with two processes and half the batch each: one report, one adapter, the loss of one process."""
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    few = {"MAX_STEPS": 8, "EVALUATIONS": 2, "EVAL_ROWS": 8, "NEW_TOKENS": 8}
    one = run_script("sft_alpaca.py", BATCH_SIZE=4, **few)
    two = run_script("sft_alpaca.py", runner=torchrun, BATCH_SIZE=2, **few)
    alone, together = metrics_of(one), metrics_of(two)
    assert two.stdout.count("Saved in") == 1 and together["train"]["steps"] == alone["train"]["steps"] == 8
    assert together["before"]["loss"] == pytest.approx(alone["before"]["loss"], abs=1e-3)
    assert together["after"]["loss"] == pytest.approx(alone["after"]["loss"], abs=0.02)
    assert alone["after"]["loss"] < alone["before"]["loss"] - 0.1
    assert {path.name for path in two.output.iterdir()} == {path.name for path in one.output.iterdir()}


def test_variants_of_lora(run_script):
    run = run_script(
        "sft_gongwen.py", USE_DORA=True, USE_RSLORA=True, LORA_PLUS=4, **{**SHORT, "MAX_STEPS": 2}
    )
    metrics_of(run)
    config = json.loads((run.output / "lora" / "adapter_config.json").read_text(encoding="utf-8"))
    assert config["use_dora"] and config["use_rslora"]
    assert any("magnitude" in name for name in load_file(run.output / "lora" / "adapter_model.safetensors"))


def test_bad_data_ends_in_one_line(run_script, tmp_path):
    path = tmp_path / "rows.json"
    path.write_text('[{"a": ]')
    run = run_script("sft_gongwen.py", environment={"DATA": str(path)})
    last = run.stderr.strip().splitlines()[-1]
    assert run.status == 1 and last.startswith(f"Data: {path}, line 1: not JSON")
    assert "Traceback" not in run.stderr


@pytest.mark.skipif(not shutil.which("g++"), reason="torch.compile needs a C++ compiler")
def test_compiled_layers_stay_compiled(run_script, tmp_path):
    """With a KV cache every layer is compiled for itself, and after eight PyTorch gives up without a word."""
    then = """
import torch._dynamo
layers = model.base_model.model.model.layers
graphs = torch._dynamo.utils.counters["stats"]["unique_graphs"]
compiled = sum(layer._compiled_call_impl is not None for layer in layers)
print("GRAPHS", graphs, torch._dynamo.config.recompile_limit, compiled, len(layers))
"""
    environment = {"UNSLOTH_CPU_COMPILE": "1", "TORCHINDUCTOR_CACHE_DIR": str(tmp_path / "compiled")}
    settings = {"MAX_STEPS": 2, "EVAL_ROWS": 2, "NEW_TOKENS": 2}
    run = run_script("sft_alpaca.py", environment=environment, then=then, **settings)
    assert run.status == 0, run.stderr[-3000:]
    graphs, limit, compiled, layers = map(int, run.stdout.rpartition("GRAPHS ")[2].split())
    assert compiled == layers > 0 and 1 <= graphs < limit
