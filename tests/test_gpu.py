"""For whoever has a card: `uv run pytest -m gpu -n 0` runs every script under a cap of 12 GB and compares with plain TRL.

No hub is needed: models of the true shapes with random weights are made on the spot (15 GB on disk for 7B and for 8B), which gives
real memory and speed and says nothing about quality. MODEL_TEXT and MODEL_VISION take real ones, by folder or name.
Each part runs alone with -k; all write their rows to outputs/gpu.md, ready for README. Not part of the usual tests. A
part takes 1 to 3 minutes, most of it importing, loading and answering; on a card of 96 GB or more `-n 8 --dist load
-k "under_12_gb or do_not_see"` runs most of them side by side in 4 minutes, whose times then say little.
"""

import json
import os
import re
import shutil
import subprocess
import sys
import time
from importlib.metadata import version
from pathlib import Path

import pytest
import torch
from conftest import ROOT, functions_of
from test_gpu_path import ALONE_AND_TOGETHER
from transformers import AutoConfig

pytestmark = pytest.mark.gpu
CAP = 11.2  # GiB for PyTorch: a 12 GB card less what CUDA itself takes
CAPPED = [str(ROOT / "tests" / "capped.py"), str(CAP)]
FEW = {"MAX_STEPS": 8, "EVAL_ROWS": 8, "NEW_TOKENS": 64, "GENERAL_ROWS": 8}
MEDICAL = {"RUNS": [("qlora", 64)], "EQUAL_STEPS": 8, "VAL_ROWS": 8, "EVAL_ROWS": 8, "ASKED_ROWS": 8}
SCRIPTS = {
    "sft_alpaca.py": FEW,
    "sft_gongwen.py": FEW,
    "sft_medical.py": MEDICAL | {"NEW_TOKENS": 64, "GENERAL_ROWS": 8},
    "grpo_r1.py": {"MAX_STEPS": 2, "EVAL_ROWS": 8, "NEW_TOKENS": 128, "FAST_INFERENCE": False},
    "vl_car_insurance.py": {"MAX_STEPS": 8, "EVAL_ROWS": 8, "NEW_TOKENS": 32},
}
SPEED = "## Training\n\n| what | model | card | peak reserved, GiB | tokens/s | s a step |\n|---|---|---|---|---|---|"
STARTS = (
    "## Seconds from the start to the first step\n\n"
    "| what | imports | data | model | answers before | rest of the first step | in all |\n|---|---|---|---|---|---|---|"
)
BUILD = """
import json, sys
from pathlib import Path
import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForImageTextToText
config = AutoConfig.from_pretrained(sys.argv[1])
torch.manual_seed(0)
torch.set_default_dtype(torch.bfloat16)
auto = AutoModelForImageTextToText if hasattr(config, "vision_config") else AutoModelForCausalLM
with torch.device("cuda"):
    model = auto.from_config(config)
model.save_pretrained(sys.argv[1], max_shard_size="4GB")
"""
CLOCK = """
import time
from transformers.trainer_callback import DefaultFlowCallback

step_end = DefaultFlowCallback.on_step_end


def on_step_end(self, args, state, *rest, **named):
    if state.global_step == 1:
        print("CLOCK step", time.time(), flush=True)
    return step_end(self, args, state, *rest, **named)


DefaultFlowCallback.on_step_end = on_step_end
"""
PLAIN = """
import os, sys
import torch
from datasets import load_dataset
from peft import LoraConfig
from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig
from trl import SFTConfig, SFTTrainer

folder, data, batch, passes = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
four_bit = BitsAndBytesConfig(
    load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True, bnb_4bit_compute_dtype=torch.bfloat16
)
tokenizer = AutoTokenizer.from_pretrained(folder)
model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16, device_map={"": 0}, quantization_config=four_bit)

def chat(row):
    question = f"{row['instruction']}\\n{row['input'] or ''}".strip()
    prompt = [{"role": "system", "content": "You are a helpful assistant."}, {"role": "user", "content": question}]
    return {"prompt": prompt, "completion": [{"role": "assistant", "content": row["output"]}]}

rows = load_dataset("json", data_files=data, split="train").filter(lambda row: row["meta"]["split"] == "train")
rows = rows.map(chat, remove_columns=rows.column_names)
modules = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
trainer = SFTTrainer(
    model=model, processing_class=tokenizer, train_dataset=rows,
    peft_config=LoraConfig(r=16, lora_alpha=16, task_type="CAUSAL_LM", target_modules=modules),
    args=SFTConfig(
        output_dir=os.environ["OUTPUT"], num_train_epochs=1, per_device_train_batch_size=batch,
        gradient_accumulation_steps=passes, learning_rate=2e-4, max_length=2048, save_strategy="no", logging_steps=1,
        report_to="none", bf16=True, gradient_checkpointing=True, optim="adamw_8bit", seed=3407,
    ),
)
"""
WATCH = """
import json, time
from transformers import EarlyStoppingCallback, TrainerCallback

ends, counts, collate = [], [], trainer.data_collator  # the time of each step's end, the tokens of each micro-batch

class Ends(TrainerCallback):
    def on_step_end(self, args, state, control, **kwargs):
        torch.cuda.synchronize()
        ends.append(time.time())

def counted(rows):
    counts.append(sum(len(row["input_ids"]) for row in rows))
    return collate(rows)

trainer.data_collator = counted
trainer.add_callback(Ends())
trainer.remove_callback(EarlyStoppingCallback)
trainer.eval_dataset, trainer.args.eval_on_start = None, False
trainer.args.eval_strategy = trainer.args.save_strategy = "no"
torch.cuda.reset_peak_memory_stats()
trainer.train()
later = ends[-1] - ends[3]  # without four steps that compile and warm up
print("SPEED", json.dumps({
    "tokens_per_second": sum(counts[4 * trainer.args.gradient_accumulation_steps :]) / later, "step": later / (len(ends) - 4),
    "steps": len(ends), "tokens": sum(counts), "peak": torch.cuda.max_memory_reserved() / 2**30,
}), flush=True)
"""


def add_row(header: str, what: str, *cells) -> None:
    """Put a row under its header into outputs/gpu.md, in the place of an earlier one of the same run."""
    path = ROOT / "outputs" / "gpu.md"
    path.parent.mkdir(exist_ok=True)
    text = path.read_text(encoding="utf-8") if path.exists() else ""
    tables = {}
    for known in (SPEED, STARTS):
        below = text.partition(known + "\n")[2].partition("##")[0].splitlines()
        others = [row for row in below if row.startswith("| ")]
        tables[known] = [row for row in others if known != header or not row.startswith(f"| {what} |")]
    written = [f"{cell:.2f}" if isinstance(cell, float) else str(cell) for cell in cells]
    tables[header].append("| " + " | ".join([what, *written]) + " |")
    packages = ", ".join(f"{name} {version(name)}" for name in ("torch", "unsloth", "trl", "transformers"))
    parts = ["\n".join([known, *rows]) for known, rows in tables.items()]
    path.write_text("\n\n".join([*parts, packages]) + "\n", encoding="utf-8")
    print(path.read_text(encoding="utf-8"))


def with_clock(source: str) -> str:
    """Return a script that prints when each of its cells begins and when its first step ends."""
    first, *cells = re.split(r"(?m)^# %% (.+)\n", source)
    titles, bodies = cells[2::2], cells[3::2]  # without the text at the top
    timed = [f'import time\nprint("CLOCK {t}", time.time(), flush=True)\n{b}' for t, b in zip(titles, bodies)]
    timed[1] = CLOCK + timed[1]  # after the imports, of which Unsloth's is the first
    return first + "\n".join(timed)


def add_start(what: str, printed: str, begin: float) -> None:
    """Put the seconds from the start of a script, at `begin`, to its first step into outputs/gpu.md."""
    at = dict(re.findall(r"CLOCK (\w+) ([\d.]+)", printed))
    marks = [begin, *(float(at[name]) for name in ("Settings", "Model", "Before", "Train", "step"))]
    add_row(STARTS, what, *(b - a for a, b in zip(marks, marks[1:])), marks[-1] - begin)


def shaped(folder, tiny: str, text: dict, vision: dict) -> str:
    """Return a folder with a model of these shapes and random weights, beside the tiny model's tokenizer."""
    if not (folder / "config.json").exists() or not list(folder.glob("*.safetensors")):
        shutil.copytree(
            ROOT / tiny, folder, dirs_exist_ok=True, ignore=shutil.ignore_patterns("*.py", "*.safetensors")
        )
        config = json.loads((folder / "config.json").read_text())
        inner = config.get("text_config", config)
        inner |= text | {"layer_types": ["full_attention"] * text["num_hidden_layers"]}
        if vision:
            config["vision_config"] = {**config["vision_config"], **vision}
            processor = json.loads((folder / "processor_config.json").read_text())
            processor["image_processor"]["patch_size"] = vision["patch_size"]
            (folder / "processor_config.json").write_text(json.dumps(processor))
        (folder / "config.json").write_text(json.dumps(config))
        subprocess.run([sys.executable, "-c", BUILD, str(folder)], check=True)
    return str(folder)


SHAPES = {  # name -> what the tiny model's config is changed to
    "qwen2.5-7b": {
        "hidden_size": 3584,
        "intermediate_size": 18944,
        "num_hidden_layers": 28,
        "num_attention_heads": 28,
        "num_key_value_heads": 4,
        "vocab_size": 152064,
        "tie_word_embeddings": False,
    },
    "qwen3-8b": {
        "model_type": "qwen3",
        "architectures": ["Qwen3ForCausalLM"],
        "hidden_size": 4096,
        "intermediate_size": 12288,
        "num_hidden_layers": 36,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "vocab_size": 151936,
        "tie_word_embeddings": False,
    },
    "qwen2.5-vl-3b": {
        "hidden_size": 2048,
        "intermediate_size": 11008,
        "num_hidden_layers": 36,
        "num_attention_heads": 16,
        "num_key_value_heads": 2,
        "vocab_size": 151936,
        "tie_word_embeddings": True,
        "rope_parameters": {"mrope_section": [16, 24, 24], "rope_theta": 1e6, "rope_type": "default"},
    },
}
EYE = {  # of Qwen2.5-VL-3B
    "depth": 32,
    "hidden_size": 1280,
    "intermediate_size": 3420,
    "num_heads": 16,
    "out_hidden_size": 2048,
    "patch_size": 14,
    "window_size": 112,
    "fullatt_block_indexes": [7, 15, 23, 31],
}


@pytest.fixture(scope="session")
def model_of():
    """Return model_of(name): a real model from the environment, or one of that shape with random weights."""
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    real = {"qwen2.5-7b": os.getenv("MODEL_TEXT"), "qwen2.5-vl-3b": os.getenv("MODEL_VISION")}

    def get(name: str) -> str:
        place = ROOT / "outputs" / "shapes" / name
        place.parent.mkdir(parents=True, exist_ok=True)
        sees = "-vl-" in name
        tiny = "data/tiny-qwen2.5-vl" if sees else "data/tiny-qwen2.5"
        return real.get(name) or shaped(place, tiny, SHAPES[name], EYE if sees else {})

    return get


def run_capped(run_script, what: str, script: str, model: str, environment=None, **constants) -> dict:
    """Run a script for a few steps under the cap, put what it took into outputs/gpu.md and return its metrics."""
    begin = time.time()
    environment = {"MODEL": model, **(environment or {})}
    run = run_script(script, runner=CAPPED, environment=environment, edit=with_clock, **constants)
    assert run.status == 0, run.stdout[-2000:] + run.stderr[-3000:]
    metrics = json.loads((run.output / "metrics.json").read_text(encoding="utf-8"))
    assert metrics["device"] == torch.cuda.get_device_name()
    train = metrics["train"]
    assert 1 < train["peak_memory_gb"] <= CAP and (run.output / "lora" / "adapter_model.safetensors").exists()
    step, card = train["seconds"] / train["steps"], torch.cuda.get_device_name()
    add_row(
        SPEED, what, Path(model).name, card, train["peak_memory_gb"], round(train["tokens_per_second"]), step
    )
    add_start(what, run.stdout, begin)
    return metrics


@pytest.mark.parametrize("script", SCRIPTS)
def test_script_under_12_gb(run_script, model_of, script):
    """A few steps with the default settings: it ends, within the cap, and says so in metrics.json."""
    model = model_of("qwen2.5-vl-3b" if script.startswith("vl") else "qwen2.5-7b")
    metrics = run_capped(run_script, f"`{script}`", script, model, **SCRIPTS[script])
    assert 2 <= metrics["train"]["steps"] <= 8  # fewer where random weights only get worse


def test_qwen3_8b_under_12_gb(run_script, model_of):
    """One constant is another base."""
    run_capped(run_script, "Qwen3-8B", "sft_alpaca.py", model_of("qwen3-8b"), **FEW)


def measure(folder, model: str, data: list[dict]) -> dict[str, dict]:
    """Return what the training alone takes, nothing before or after it, by who trains: eight rows a step, one epoch."""
    for place, row in enumerate(data):
        row["meta"] = {"split": "train" if place < len(data) - 4 else "test"}
    rows, plain, ours = folder / "data.json", folder / "plain.py", folder / "ours.py"
    rows.write_text(json.dumps(data), encoding="utf-8")
    plain.write_text(PLAIN + WATCH, encoding="utf-8")
    source = (ROOT / "sft_alpaca.py").read_text(encoding="utf-8").partition("losses = {")[0]
    source = source.replace("MAX_STEPS = 60", "MAX_STEPS = -1").replace("EPOCHS = 3", "EPOCHS = 1")
    ours.write_text(source.replace("NEW_TOKENS = 512", "NEW_TOKENS = 1") + WATCH, encoding="utf-8")
    environment = {**os.environ, "MODEL": model, "DATA": str(rows), "OUTPUT": str(folder / "output")}
    commands = {
        "plain TRL + bitsandbytes, 2 x 4": [plain, model, rows, 2, 4],
        "`sft_alpaca.py`'s training, 8 x 1": [ours],
        "plain TRL + bitsandbytes, 8 x 1": [plain, model, rows, 8, 1],
    }
    found = {}
    for what, command in commands.items():
        command = [sys.executable, *CAPPED, *map(str, command)]
        done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, encoding="utf-8")
        if "OutOfMemoryError" in done.stderr:
            found[what] = {"peak": "out of memory", "tokens_per_second": 0, "step": 0.0}
        else:
            assert done.returncode == 0, done.stderr[-3000:]
            found[what] = json.loads(done.stdout.rpartition("SPEED ")[2].splitlines()[0])
    return found


def test_longest_rows_fit_and_were_predicted(model_of, tmp_path):
    """A micro-batch of the longest rows that MAX_LENGTH lets through stays under the cap, and within 10% or 0.5 GB."""
    rows = [{"instruction": str(i), "input": "", "output": " a" * 1950} for i in range(52)]  # a token a word
    model, card = model_of("qwen2.5-7b"), torch.cuda.get_device_name()
    for what, found in measure(tmp_path, model, rows).items():
        speed = round(found["tokens_per_second"])
        add_row(
            SPEED,
            f"rows of 1,980 tokens, {what}",
            Path(model).name,
            card,
            found["peak"],
            speed,
            found["step"],
        )
        if what.startswith("`"):
            assert found["peak"] <= CAP
            measured = found["peak"] * 2**30 / 1e9
    if AutoConfig.from_pretrained(model).vocab_size != 152064:
        pytest.skip("a real model's own size is not this test's")
    tool = functions_of("tools/will_it_fit.py")
    parts = tool.memory_needed(tool.load_shapes("Qwen2.5-7B"), True, 16, 8 * 1980, "unsloth")
    assert sum(parts.values()) - parts["CUDA itself"] == pytest.approx(measured, rel=0.1, abs=0.5)


def test_rows_in_one_pass_do_not_see_each_other(run_script):
    """As in test_gpu_path.py, by the attention that is installed on this card; Unsloth would take bfloat16 otherwise."""
    in_float32 = "model._unsloth_forced_float32 = True\ntrainer = SFTTrainer("
    few = {
        "DTYPE": torch.float32,
        "MAX_LENGTH": 512,
        "MAX_STEPS": 2,
        "EVAL_ROWS": 2,
        "NEW_TOKENS": 2,
        "GENERAL": "none",
    }
    run = run_script(
        "sft_alpaca.py",
        environment={"MODEL": "data/tiny-qwen2.5"},
        then=ALONE_AND_TOGETHER,
        edit=lambda source: source.replace("trainer = SFTTrainer(", in_float32),
        **few,
    )
    assert run.status == 0, run.stderr[-3000:]
    losses = json.loads((run.output / "losses.json").read_text())
    print(losses)
    few, many = losses["tokens"]
    weighted = (few * losses["short"] + many * losses["long"]) / (few + many)
    assert losses["sequences"] == losses["packed_rows"] == 1, "both rows in one sequence"
    assert few < many and abs(losses["short"] - losses["long"]) > 1e-2
    assert [losses[way] for way in ("both", "turned", "packed")] == pytest.approx([weighted] * 3, abs=1e-4)


def test_twice_as_fast_as_plain_trl(model_of, tmp_path):
    """The same 128 documents, eight a step, in turn: the script's 8 x 1 against transformers + PEFT + TRL at 2 x 4."""
    documents = json.loads((ROOT / "data" / "gongwen" / "train.json").read_text(encoding="utf-8"))[:132]
    model, card = model_of("qwen2.5-7b"), torch.cuda.get_device_name()
    found = measure(tmp_path, model, documents)
    for what, speed in found.items():
        add_row(
            SPEED,
            what,
            Path(model).name,
            card,
            speed["peak"],
            round(speed["tokens_per_second"]),
            speed["step"],
        )
    theirs, ours, _ = found.values()
    assert (
        theirs["tokens"] == pytest.approx(ours["tokens"], rel=0.02) and theirs["steps"] == ours["steps"] == 16
    )
    assert ours["peak"] <= CAP and ours["tokens_per_second"] >= 2.0 * theirs["tokens_per_second"]
