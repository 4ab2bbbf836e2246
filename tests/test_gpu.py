"""For whoever has a card: `uv run pytest -m gpu -n 0` runs every script under a cap of 12 GB and compares with plain TRL.

No hub is needed: models of the true shapes with random weights are made on the spot (15 GB on disk for 7B and for 8B), which gives
real memory and speed and says nothing about quality. MODEL_TEXT and MODEL_VISION take real ones, by folder or name.
Each part runs alone with -k; all write their rows to outputs/gpu.md, ready for README. Not part of the usual tests.
"""

import json
import os
import shutil
import subprocess
import sys
from importlib.metadata import version

import pytest
import torch
from conftest import ROOT

pytestmark = pytest.mark.gpu
CAP = 11.2  # GiB for PyTorch: a 12 GB card less what CUDA itself takes
CAPPED = [str(ROOT / "tests" / "capped.py"), str(CAP)]
FEW = {"MAX_STEPS": 8, "EVAL_ROWS": 8, "NEW_TOKENS": 64, "GENERAL_ROWS": 8}
SCRIPTS = {
    "sft_alpaca.py": FEW,
    "sft_gongwen.py": FEW,
    "sft_medical.py": {
        "RUNS": [("qlora", 64)],
        "EQUAL_STEPS": 8,
        "VAL_ROWS": 8,
        "EVAL_ROWS": 8,
        "ASKED_ROWS": 8,
        "NEW_TOKENS": 64,
        "GENERAL_ROWS": 8,
    },
    "grpo_r1.py": {"MAX_STEPS": 2, "EVAL_ROWS": 8, "NEW_TOKENS": 128, "FAST_INFERENCE": False},
    "vl_car_insurance.py": {"MAX_STEPS": 8, "EVAL_ROWS": 8, "NEW_TOKENS": 32},
}
HEADER = "| what | model | card | peak reserved, GiB | tokens/s | s a step | first step, s |\n|" + "---|" * 7
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
PLAIN = """
import json, os, sys, time
import torch
from datasets import load_dataset
from peft import LoraConfig
from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig, TrainerCallback
from trl import SFTConfig, SFTTrainer

folder, data, batch, passes = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
whole = torch.cuda.get_device_properties(0).total_memory
torch.cuda.set_per_process_memory_fraction(min(1.0, 11.2 * 2**30 / whole))
four_bit = BitsAndBytesConfig(
    load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True, bnb_4bit_compute_dtype=torch.bfloat16
)
tokenizer = AutoTokenizer.from_pretrained(folder)
model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16, device_map={"": 0}, quantization_config=four_bit)

def chat(row):
    question = f"{row['instruction']}\\n{row['input'] or ''}".strip()
    return {"prompt": [{"role": "user", "content": question}], "completion": [{"role": "assistant", "content": row["output"]}]}

rows = load_dataset("json", data_files=data, split="train").select(range(128))
rows = rows.map(chat, remove_columns=rows.column_names)
modules = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
trainer = SFTTrainer(
    model=model, processing_class=tokenizer, train_dataset=rows,
    peft_config=LoraConfig(r=16, lora_alpha=16, task_type="CAUSAL_LM", target_modules=modules),
    args=SFTConfig(
        output_dir="outputs/plain", max_steps=12, per_device_train_batch_size=batch, gradient_accumulation_steps=passes,
        learning_rate=2e-4, max_length=2048, save_strategy="no", logging_steps=1, report_to="none", bf16=True,
        gradient_checkpointing=True, optim="adamw_8bit",
    ),
)
"""
WATCH = """
class Ends(TrainerCallback):
    times, tokens = [time.time()], [0]
    def on_step_end(self, args, state, control, **kwargs):
        torch.cuda.synchronize()
        Ends.times.append(time.time())
    def on_log(self, args, state, control, logs=None, **kwargs):
        if "num_tokens" in (logs or {}):
            Ends.tokens.append(logs["num_tokens"])

trainer.add_callback(Ends())
Ends.times[0] = time.time()
trainer.train()
seconds, tokens = Ends.times[-1] - Ends.times[4], Ends.tokens[len(Ends.times) - 1] - Ends.tokens[4]
print("SPEED", json.dumps({
    "tokens_per_second": tokens / seconds, "step": seconds / (len(Ends.times) - 5),
    "first": Ends.times[1] - Ends.times[0], "peak": torch.cuda.max_memory_reserved() / 2**30,
}))
"""


def add_row(what: str, model: str, peak: float, tokens: float, step: float, first: float) -> None:
    """Put a row into outputs/gpu.md in the place of an earlier one of the same run."""
    table = ROOT / "outputs" / "gpu.md"
    table.parent.mkdir(exist_ok=True)
    rows = table.read_text(encoding="utf-8").splitlines() if table.exists() else HEADER.splitlines()
    rows = [row for row in rows if row and not row.startswith(f"| {what} ") and not row.startswith("torch ")]
    cells = [
        what,
        model,
        torch.cuda.get_device_name(),
        f"{peak:.2f}",
        f"{tokens:.0f}",
        f"{step:.2f}",
        f"{first:.1f}",
    ]
    rows.append("| " + " | ".join(cells) + " |")
    packages = ", ".join(f"{name} {version(name)}" for name in ("torch", "unsloth", "trl", "transformers"))
    table.write_text("\n".join([*rows, "", packages]) + "\n", encoding="utf-8")
    print(table.read_text(encoding="utf-8"))


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


@pytest.mark.parametrize("script", SCRIPTS)
def test_script_under_12_gb(run_script, model_of, script):
    """A few steps with the default settings: it ends, within the cap, and says so in metrics.json."""
    model = model_of("qwen2.5-vl-3b" if script.startswith("vl") else "qwen2.5-7b")
    run = run_script(script, runner=CAPPED, environment={"MODEL": model}, **SCRIPTS[script])
    assert run.status == 0, run.stdout[-2000:] + run.stderr[-3000:]
    metrics = json.loads((run.output / "metrics.json").read_text(encoding="utf-8"))
    train = metrics["train"]
    assert metrics["device"] == torch.cuda.get_device_name() and train["steps"] == SCRIPTS[script].get(
        "MAX_STEPS", 8
    )
    assert 1 < train["peak_memory_gb"] <= CAP and (run.output / "lora" / "adapter_model.safetensors").exists()
    step = train["seconds"] / train["steps"]
    add_row(f"`{script}`", model, train["peak_memory_gb"], train["tokens_per_second"], step, float("nan"))


def test_qwen3_8b_under_12_gb(run_script, model_of):
    """One constant is another base."""
    model = model_of("qwen3-8b")
    run = run_script("sft_alpaca.py", runner=CAPPED, environment={"MODEL": model}, **FEW)
    assert run.status == 0, run.stdout[-2000:] + run.stderr[-3000:]
    train = json.loads((run.output / "metrics.json").read_text(encoding="utf-8"))["train"]
    assert 1 < train["peak_memory_gb"] <= CAP
    step = train["seconds"] / train["steps"]
    add_row("Qwen3-8B", model, train["peak_memory_gb"], train["tokens_per_second"], step, float("nan"))


def speed_of(printed: str) -> dict:
    return json.loads(printed.rpartition("SPEED ")[2].splitlines()[0])


def test_longest_rows_fit(run_script, model_of, tmp_path):
    """A micro-batch of the longest rows that MAX_LENGTH lets through stays under the cap."""
    rows = [{"instruction": str(i), "output": " a" * 1950} for i in range(40)]  # a token a word
    path = tmp_path / "long.json"
    path.write_text(json.dumps(rows), encoding="utf-8")
    run = run_script(
        "sft_alpaca.py",
        runner=CAPPED,
        environment={"MODEL": model_of("qwen2.5-7b"), "DATA": str(path)},
        **FEW,
    )
    assert run.status == 0, run.stderr[-3000:]
    train = json.loads((run.output / "metrics.json").read_text(encoding="utf-8"))["train"]
    assert train["peak_memory_gb"] <= CAP
    step = train["seconds"] / train["steps"]
    add_row(
        "longest rows, 8 x 1",
        model_of("qwen2.5-7b"),
        train["peak_memory_gb"],
        train["tokens_per_second"],
        step,
        float("nan"),
    )


def test_twice_as_fast_as_plain_trl(run_script, model_of, tmp_path):
    """The same documents, eight rows a step: the script's 8 x 1 against transformers + PEFT + TRL at 2 x 4."""
    plain = tmp_path / "plain.py"
    plain.write_text(PLAIN + WATCH, encoding="utf-8")
    data = "data/gongwen/train.json"
    command = [sys.executable, str(plain), model_of("qwen2.5-7b"), data, "2", "4"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, encoding="utf-8")
    assert done.returncode == 0, done.stderr[-3000:]
    theirs = speed_of(done.stdout)
    source = (ROOT / "sft_alpaca.py").read_text(encoding="utf-8").partition("trained = trainer.train")[0]
    ours_file = tmp_path / "ours.py"
    ours_file.write_text(
        source + "import time\nfrom transformers import TrainerCallback\n" + WATCH, encoding="utf-8"
    )
    environment = {
        **os.environ,
        "MODEL": model_of("qwen2.5-7b"),
        "DATA": data,
        "OUTPUT": str(tmp_path / "ours"),
    }
    command = [sys.executable, *CAPPED, str(ours_file)]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, encoding="utf-8")
    assert done.returncode == 0, done.stderr[-3000:]
    ours = speed_of(done.stdout)
    for what, found in (
        ("sft_alpaca.py's training, 8 x 1", ours),
        ("plain TRL + bitsandbytes, 2 x 4", theirs),
    ):
        add_row(
            what,
            model_of("qwen2.5-7b"),
            found["peak"],
            found["tokens_per_second"],
            found["step"],
            found["first"],
        )
    assert ours["peak"] <= CAP and ours["tokens_per_second"] >= 2.0 * theirs["tokens_per_second"]
