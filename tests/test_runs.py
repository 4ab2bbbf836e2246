"""Runs of the training scripts from end to end: the rehearsal, interruptions, torchrun, a script without its repo."""

import json
import re
import shutil

import docx
import pandas as pd
import pytest
from conftest import ROOT, kill_in_training, start
from safetensors.torch import load_file

TINY = ROOT / "data" / "tiny-qwen2.5"
SHORT = {"MAX_STEPS": 6, "EVAL_ROWS": 4, "NEW_TOKENS": 20, "GENERAL_ROWS": 4}


def metrics_of(run) -> dict:
    assert run.status == 0, run.stdout[-2000:] + run.stderr[-3000:]
    return json.loads((run.output / "metrics.json").read_text(encoding="utf-8"))


def sums_of(folder) -> dict[str, float]:
    """Return the sum of each weight of a run's adapter."""
    weights = load_file(folder / "lora" / "adapter_model.safetensors")
    return {name: weight.sum().item() for name, weight in weights.items()}


def without_workers(source: str) -> str:
    """Return a script in which tokenizing in other processes fails: Windows would run the whole script in each."""
    settings = "# %% Settings\nimport datasets.arrow_dataset\n\ndatasets.arrow_dataset.Pool = None\n"
    return source.replace("# %% Settings\n", settings, 1)


@pytest.fixture(scope="session")
def short_run(run_script):
    """Return a short run of sft_alpaca.py from beginning to end."""
    run = run_script("sft_alpaca.py", edit=without_workers, **SHORT)
    metrics_of(run)
    return run


def test_gongwen_rehearsal_improves(rehearsal):
    metrics = metrics_of(rehearsal("sft_gongwen.py"))
    before, after = metrics["before"], metrics["after"]
    assert before.keys() == after.keys() >= {"clean_rate", "format_score", "term_score", "fact_score", "loss"}
    assert after["format_score"] >= 0.70 and after["format_score"] - before["format_score"] >= 0.30
    assert after["term_score"] - before["term_score"] >= 0.30 and after["loss"] < before["loss"]
    assert (
        metrics["difference"]["format_score"]["low"] > 0.2
        and metrics["difference"]["format_score"]["p"] < 0.05
    )
    assert metrics["skeleton"]["clean_rate"] == 0 and metrics["reference"]["clean_rate"] >= 0.99
    train = metrics["train"]
    assert train["steps"] > 50 and 0 < train["trainable_parameters"] < 0.3 * train["total_parameters"]
    assert train.keys() >= {"seconds", "tokens_per_second", "peak_memory_gb", "total_parameters"}
    assert metrics["settings"]["SEED"] == 3407 and metrics["versions"]["unsloth"] == "2026.10.9"
    assert metrics["scenario"] == "gongwen" and metrics["model"] == "data/tiny-qwen2.5"


def test_gongwen_rehearsal_leaves_what_it_says(rehearsal):
    run = rehearsal("sft_gongwen.py")
    names = {"lora", "answers.jsonl", "metrics.json", "report.md", "loss.png", "sample.docx"}
    assert {path.name for path in run.output.iterdir()} == names
    assert load_file(run.output / "lora" / "adapter_model.safetensors")
    assert (run.output / "lora" / "tokenizer.json").exists()
    assert (run.output / "loss.png").stat().st_size > 5000
    report = (run.output / "report.md").read_text(encoding="utf-8")
    assert "no use to anyone" in report and "| clean_rate " in report and "| loss " in report
    assert [line.text for line in docx.Document(run.output / "sample.docx").paragraphs if line.text]
    assert "Trained on:" in run.stdout and "| clean_rate " in run.stdout
    lines = (run.output / "answers.jsonl").read_text(encoding="utf-8").splitlines()
    assert {"prompt", "reference", "before", "after", "before_ended", "after_ended", "input"} <= json.loads(
        lines[0]
    ).keys()


def test_alpaca_rehearsal_improves(rehearsal):
    run = rehearsal("sft_alpaca.py")
    metrics = metrics_of(run)
    before, after = metrics["before"], metrics["after"]
    assert before.keys() == after.keys() == {"loss", "general_loss", "chrf", "ended_by_itself"}
    assert after["loss"] <= 0.9 * before["loss"] and after["general_loss"] > before["general_loss"], (
        "it forgets"
    )
    assert metrics["difference"]["loss"]["high"] < 0 and metrics["difference"]["loss"]["p"] < 0.05
    names = {"lora", "answers.jsonl", "metrics.json", "report.md", "loss.png"}
    assert {path.name for path in run.output.iterdir()} == names


def test_replay_forgets_less(rehearsal, run_script):
    forgotten = metrics_of(rehearsal("sft_alpaca.py"))["after"]["general_loss"]
    replayed = metrics_of(run_script("sft_alpaca.py", REPLAY_SHARE=0.5, MAX_STEPS=90))
    assert replayed["after"]["general_loss"] < forgotten - 0.1
    assert replayed["after"]["loss"] <= 0.92 * replayed["before"]["loss"], "and it still learns"
    assert replayed["settings"]["REPLAY_SHARE"] == 0.5


MOMENTS = {  # what is there when SIGKILL comes
    "before the first step": "",  # its folder is made when training starts
    "after a checkpoint": "/checkpoint-*/trainer_state.json",
    "after the last checkpoint": "/checkpoint-6/trainer_state.json",
}


@pytest.mark.parametrize("moment", MOMENTS)
def test_killed_run_ends_as_if_undisturbed(run_script, short_run, tmp_path, moment):
    output = tmp_path / "run"
    kill_in_training("sft_alpaca.py", output, f"checkpoints-*{MOMENTS[moment]}", **SHORT)
    assert not (output / "metrics.json").exists()
    again = run_script("sft_alpaca.py", output=output, **SHORT)
    resumed, whole = metrics_of(again), metrics_of(short_run)
    assert ("Continuing from" in again.stdout) == bool(MOMENTS[moment])
    # From its last checkpoint a Trainer makes one more step, at a learning rate of 0.
    assert resumed["train"]["steps"] - (moment == "after the last checkpoint") == whole["train"]["steps"] == 6
    assert resumed["before"] == whole["before"] and resumed["after"] == pytest.approx(
        whole["after"], abs=1e-6
    )
    assert sums_of(output) == sums_of(short_run.output)
    assert {path.name for path in output.iterdir()} == {path.name for path in short_run.output.iterdir()}


def test_unfinished_checkpoint_and_other_settings_are_passed_over(run_script, short_run, tmp_path):
    """Without its last file, or with an empty one, a checkpoint is not taken, nor is any of another run."""
    output = tmp_path / "run"
    kill_in_training("sft_alpaca.py", output, "checkpoints-*/checkpoint-4/trainer_state.json", **SHORT)
    folder = next(output.glob("checkpoints-*"))
    for path in folder.glob("checkpoint-[4-6]/trainer_state.json"):
        path.write_text("")  # killed between opening and writing it
    (folder / "checkpoint-5").mkdir()
    shutil.copytree(folder / "checkpoint-2", folder / "checkpoint-3 (copy)")
    run = run_script("sft_alpaca.py", output=output, **SHORT)
    assert "checkpoint-2" in run.stdout or "checkpoint-3 (copy)" in run.stdout
    assert metrics_of(run)["after"] == pytest.approx(metrics_of(short_run)["after"], abs=1e-6)
    kill_in_training("sft_alpaca.py", output, "checkpoints-*/checkpoint-2/trainer_state.json", **SHORT)
    other = run_script("sft_alpaca.py", output=output, **{**SHORT, "MAX_STEPS": 2, "LORA_R": 4})
    assert "Starting from the base model" in other.stdout and metrics_of(other)["train"]["steps"] == 2


def test_two_processes_train_as_one(run_script):
    """torchrun with two processes and half the batch each: one report, one adapter, the loss of one process."""
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    few = {"MAX_STEPS": 8, "EVAL_ROWS": 8, "NEW_TOKENS": 8, "GENERAL_ROWS": 4}
    one = run_script("sft_alpaca.py", BATCH_SIZE=4, **few)
    two = run_script("sft_alpaca.py", runner=torchrun, BATCH_SIZE=2, **few)
    alone, together = metrics_of(one), metrics_of(two)
    assert two.stdout.count("Scored by") == 1 and together["train"]["steps"] == alone["train"]["steps"] == 8
    assert together["before"]["loss"] == pytest.approx(alone["before"]["loss"], abs=1e-3)
    assert together["after"]["loss"] == pytest.approx(alone["after"]["loss"], abs=0.05)
    assert alone["after"]["loss"] < alone["before"]["loss"] - 0.1
    assert {path.name for path in two.output.iterdir()} == {path.name for path in one.output.iterdir()}


def test_variants_of_lora(run_script):
    few = SHORT | {"MAX_STEPS": 2}
    run = run_script("sft_gongwen.py", USE_DORA=True, USE_RSLORA=True, LORA_PLUS=4, **few)
    metrics_of(run)
    config = json.loads((run.output / "lora" / "adapter_config.json").read_text(encoding="utf-8"))
    assert config["use_dora"] and config["use_rslora"]
    assert any("magnitude" in name for name in load_file(run.output / "lora" / "adapter_model.safetensors"))


def test_a_loss_that_is_no_number_stops_the_run(run_script):
    run = run_script("sft_alpaca.py", **{**SHORT, "LEARNING_RATE": 1e30})
    assert run.status == 1 and "halve LEARNING_RATE" in run.stderr and not (run.output / "lora").exists()


@pytest.mark.parametrize(
    "text, words",
    [
        ('{"prompt": "a", "response": "b"}\n' * 3, "too few usable rows"),
        ('{"instruction": "a", "output": ["b", "c"]}\n' * 3, "too few usable rows"),
        ('{"instruction": "a", "output": "b"}\n', "too few usable rows"),
    ],
)
def test_other_forms_of_rows_are_sent_to_the_preparer(run_script, tmp_path, text, words):
    path = tmp_path / "rows.jsonl"
    path.write_text(text, encoding="utf-8")
    run = run_script("sft_alpaca.py", environment={"DATA": str(path)})
    last = run.stderr.strip().splitlines()[-1]
    assert run.status == 1 and words in last and "data/alpaca/prepare.py" in last and "rows.jsonl" in last


def test_pasted_without_the_repo(tmp_path):
    """A script alone, with a model and rows of one's own, trains, answers, saves and names the missing judge."""
    shutil.copytree(TINY, tmp_path / "model", ignore=shutil.ignore_patterns("*.py"))
    shutil.copy(ROOT / "data/alpaca/instructions.json", tmp_path / "mine.json")
    environment = {"MODEL": "model", "DATA": "mine.json"}
    small = {"LOAD_IN_4BIT": False, "GRADIENT_CHECKPOINTING": False, "MAX_LENGTH": 256, "BATCH_SIZE": 4}
    process = start(
        "sft_alpaca.py", tmp_path / "output", environment=environment, cwd=tmp_path, **small, **SHORT
    )
    stdout, stderr = process.communicate(timeout=600)
    assert process.returncode == 0, stderr[-2000:]
    names = {"lora", "answers.jsonl", "metrics.json", "loss.png"}
    assert {path.name for path in (tmp_path / "output").iterdir()} == names
    assert re.search(r"Scored by: python data/alpaca/judge.py \S*output", stdout)
    assert "No such file" in stdout, "Python names the missing judge"


def test_a_notebooks_secrets_stay_out_of_the_files(run_script, tmp_path):
    """What stands in the environment, or is an upper-case name of the notebook, is not swept into metrics.json."""
    environment = {"HF_TOKEN": "hf_secret", "WANDB_API_KEY": "secret-key"}
    then = "\nHF_TOKEN = 'hf_secret'\nassert 'hf_secret' not in Path(OUTPUT, 'metrics.json').read_text()"
    run = run_script("sft_alpaca.py", environment=environment, then=then, **{**SHORT, "MAX_STEPS": 1})
    assert run.status == 0, run.stderr[-2000:]
    for path in run.output.glob("*.*"):
        assert b"hf_secret" not in path.read_bytes() and b"secret-key" not in path.read_bytes()


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    """Return a hub cache that holds the tiny model as someone/tiny and nothing else."""
    folder = tmp_path_factory.mktemp("hub")
    repo = folder / "models--someone--tiny"
    shutil.copytree(TINY, repo / "snapshots" / "0123456789")
    (repo / "refs").mkdir()
    (repo / "refs" / "main").write_text("0123456789")
    return folder


def test_without_network_but_with_cache(run_script, cache):
    environment = {"MODEL": "someone/tiny", "HF_HUB_CACHE": str(cache), "HF_HUB_OFFLINE": "1"}
    settings = SHORT | {
        "MAX_LENGTH": 256,
        "LOAD_IN_4BIT": False,
        "GRADIENT_CHECKPOINTING": False,
        "MAX_STEPS": 2,
    }
    run = run_script(
        "sft_alpaca.py", environment=environment | {"HF_ENDPOINT": "http://127.0.0.1:9"}, **settings
    )
    assert run.status == 0, run.stderr[-2000:]
    assert json.loads((run.output / "metrics.json").read_text())["model"] == "someone/tiny"


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
    settings = {"MAX_STEPS": 2, "EVAL_ROWS": 2, "NEW_TOKENS": 2, "GENERAL_ROWS": 2}
    run = run_script("sft_alpaca.py", environment=environment, then=then, **settings)
    assert run.status == 0, run.stderr[-3000:]
    graphs, limit, compiled, layers = map(int, run.stdout.rpartition("GRAPHS ")[2].split())
    assert compiled == layers > 0 and 1 <= graphs < limit


def test_medical_rehearsal_improves(rehearsal):
    run = rehearsal("sft_medical.py")
    metrics = metrics_of(run)
    before, after = metrics["before"], metrics["after"]
    assert after["loss"] <= 0.9 * before["loss"] and metrics["difference"]["loss"]["high"] < 0
    assert before["think_coverage"] == 0 and after["think_coverage"] >= 0.6
    assert after.keys() >= {
        "exam_accuracy",
        "red_team_pass_rate",
        "urgent_coverage",
        "over_triage",
        "general_loss",
    }
    assert metrics["reference"]["over_triage"] < 0.15 and metrics["always_120"]["over_triage"] == 1
    results = pd.read_csv(run.output / "results.csv")
    assert results["rows"].tolist() == [60, 440] and results["loss"].is_monotonic_decreasing


def test_medical_rehearsal_leaves_what_it_says(rehearsal):
    run = rehearsal("sft_medical.py")
    names = {
        "lora",
        "answers.jsonl",
        "metrics.json",
        "report.md",
        "loss.png",
        "scaling.png",
        "results.csv",
        "lora-60",
    }
    assert {path.name for path in run.output.iterdir()} == names
    report = (run.output / "report.md").read_text(encoding="utf-8")
    assert "always 120" in report and "no use to anyone" in report and "scaling.png" in report
    lines = [
        json.loads(line) for line in (run.output / "answers.jsonl").read_text(encoding="utf-8").splitlines()
    ]
    assert {line["kind"] for line in lines} == {"qa", "think", "red_team", "exam"}
    train = {json.loads(line)["input"] for line in (ROOT / "data/medical/train.jsonl").open(encoding="utf-8")}
    assert not [line for line in lines if line["kind"] in ("qa", "think") and line["input"] in train]


def test_vision_rehearsal_improves(rehearsal):
    run = rehearsal("vl_car_insurance.py")
    metrics = metrics_of(run)
    before, after = metrics["before"], metrics["after"]
    assert after["field_accuracy"] - before["field_accuracy"] >= 0.20 and after["json_rate"] >= 0.9
    assert metrics["difference"]["field_accuracy"]["low"] > 0.1
    names = {
        "lora",
        "answers.jsonl",
        "metrics.json",
        "report.md",
        "loss.png",
        "contact_sheet.png",
        "predictions.xlsx",
    }
    assert {path.name for path in run.output.iterdir()} == names
