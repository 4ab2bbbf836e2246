# %% [markdown]
"""
# Preference tuning by ORPO, on pairs of a better and a worse answer

Trains on the better answer, as SFT does, and pushes the odds of the worse one down in the same step (Odds Ratio Preference
Optimization, 2403.07691): one stage, one model in memory, no reference model. It is a program of its own since rows, loss and
measure differ from sft_alpaca.py's; that script goes first where the base does not follow instructions yet.

Run:    `uv run data/alpaca/orpo.py`; after sft_alpaca.py: `uv run tools/export.py outputs/alpaca merged`, then
        `MODEL=outputs/alpaca/merged uv run data/alpaca/orpo.py`
Data:   {"instruction": "…", "input": "", "chosen": "the better answer", "rejected": "the worse one"}
Writes: OUTPUT/lora, metrics.json
"""

# %% Imports
import os

os.environ["UNSLOTH_DISABLE_STATISTICS"] = "1"  # nothing about this machine is sent
os.environ["GOMP_SPINCOUNT"] = "1000"  # threads that wait leave their core to other programs
from unsloth import FastLanguageModel  # before trl, transformers and peft: importing it patches them

import json
import random
from pathlib import Path

import torch
from datasets import Dataset, load_dataset
from transformers import AutoTokenizer
from trl.experimental.orpo import ORPOConfig, ORPOTrainer

# %% Settings
MODEL = "unsloth/Qwen2.5-7B-Instruct-bnb-4bit" if torch.cuda.is_available() else "data/tiny-qwen2.5"
MODEL = os.getenv("MODEL", MODEL)
DATA = os.getenv("DATA", "data/alpaca/preferences.jsonl")
OUTPUT = os.getenv("OUTPUT", "outputs/orpo")
SYSTEM = "You are a helpful assistant."
MAX_LENGTH = 1024  # tokens of prompt and answer; longer pairs are dropped. Out of memory: 512
LOAD_IN_4BIT = True
LORA_R = 16  # rank of the update
LORA_ALPHA = 16  # the update is scaled by alpha / r
BETA = 0.1  # weight of the odds ratio beside the loss of the better answer; the paper's lambda
BATCH_SIZE = 4  # pairs in a forward pass, so twice as many rows. Out of memory: 1, with ACCUMULATION = 8
ACCUMULATION = 2  # forward passes in an optimizer step
EPOCHS = 3
LEARNING_RATE = 5e-5  # lower than SFT's: pushing answers down breaks a model faster than pulling them up
EVAL_SHARE = 0.2  # of the instructions
SEED = 3407

if MODEL.startswith("data/tiny"):  # rehearsal: the same lines below on a tiny model
    MAX_LENGTH = 320
    LOAD_IN_4BIT = False
    ACCUMULATION = 1
    EPOCHS = 6
    LEARNING_RATE = 1e-3


# %% Data
def to_pair(row: dict) -> dict:
    """Return a row in TRL's chat form of a preference: a prompt and two answers to it."""
    question = f"{row['instruction']}\n{row.get('input') or ''}".strip()
    prompt = [{"role": "system", "content": SYSTEM}, {"role": "user", "content": question}]
    answers = {name: [{"role": "assistant", "content": row[name]}] for name in ("chosen", "rejected")}
    return {"prompt": prompt, **answers}


def complete_pair(row: dict) -> bool:
    """Return whether a pair is complete, of two different answers, and short enough."""
    texts = [row.get(key) for key in ("instruction", "chosen", "rejected")]
    if not all(isinstance(text, str) and text.strip() for text in texts) or texts[1] == texts[2]:
        return False
    pair = to_pair(row)
    chats = [pair["prompt"] + pair["chosen"], pair["prompt"] + pair["rejected"]]
    return all(len(tokenizer.apply_chat_template(chat, return_dict=False)) <= MAX_LENGTH for chat in chats)


def for_evaluation(row: dict) -> bool:
    """Return whether a pair is for evaluation; pairs of an instruction stay on one side."""
    return random.Random(f"{SEED} {row['instruction']}").random() < EVAL_SHARE


tokenizer = AutoTokenizer.from_pretrained(MODEL, trust_remote_code=False)
# The answers hold no thoughts: Qwen3 and its like, which think by default, do not either.
template = "{% set enable_thinking = False %}" + tokenizer.get_chat_template()
tokenizer.chat_template = template
dataset = load_dataset("json", data_files=DATA, split="train").shuffle(seed=SEED)
rows = [row for row in dataset if complete_pair(row)]
parts = {
    "train": [to_pair(row) for row in rows if not for_evaluation(row)],
    "held_out": [to_pair(row) for row in rows if for_evaluation(row)],
}
print(f"{DATA}: {len(rows)} of {len(dataset)} pairs are complete and short enough")
if min(map(len, parts.values())) < 2:
    raise SystemExit(f"{DATA}: too few pairs; rows need instruction, chosen and rejected, all texts")
print(f"{len(parts['train'])} pairs to train on, {len(parts['held_out'])} held out")

# %% Model
model, tokenizer = FastLanguageModel.from_pretrained(
    MODEL,
    max_seq_length=MAX_LENGTH,
    load_in_4bit=LOAD_IN_4BIT,
    trust_remote_code=False,
)
tokenizer = getattr(tokenizer, "tokenizer", tokenizer)  # a model that sees brings a processor
tokenizer.chat_template = template
model = FastLanguageModel.get_peft_model(
    model,
    r=LORA_R,
    lora_alpha=LORA_ALPHA,
    target_modules=["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"],
    random_state=SEED,
)

# %% Train
trainer = ORPOTrainer(
    model=model,
    processing_class=tokenizer,
    train_dataset=Dataset.from_list(parts["train"]),
    eval_dataset=Dataset.from_list(parts["held_out"]),
    args=ORPOConfig(
        output_dir=f"{OUTPUT}/checkpoints",
        max_length=MAX_LENGTH,
        beta=BETA,
        per_device_train_batch_size=BATCH_SIZE,
        per_device_eval_batch_size=BATCH_SIZE,
        gradient_accumulation_steps=ACCUMULATION,
        num_train_epochs=EPOCHS,
        learning_rate=LEARNING_RATE,
        warmup_steps=0.1,
        optim="adamw_8bit",
        bf16=model.dtype == torch.bfloat16,
        fp16=model.dtype == torch.float16,
        save_strategy="no",
        logging_steps=0.05,
        logging_nan_inf_filter=False,  # show a NaN instead of leaving it out of the mean
        seed=SEED,
        report_to="none",
    ),
)


def evaluate() -> dict[str, float]:
    """Return, of both parts, the loss and the share of pairs whose better answer is the likelier one."""
    results = {}
    for part, pairs in (("train", trainer.train_dataset), ("held_out", trainer.eval_dataset)):
        metrics = trainer.evaluate(pairs)
        for name in ("loss", "rewards/accuracies", "rewards/margins"):
            results[f"{part}_{name}"] = metrics[f"eval_{name}"]
    return results


before = evaluate()
trained = trainer.train().metrics
if trained["train_loss"] != trained["train_loss"]:
    raise SystemExit("The loss is no number: halve LEARNING_RATE")
after = evaluate()

# %% Save
trainer.save_model(f"{OUTPUT}/lora")  # adapter and tokenizer
metrics = {"scenario": "orpo", "model": MODEL, "before": before, "after": after}
Path(OUTPUT, "metrics.json").write_text(json.dumps(metrics, ensure_ascii=False, indent=2), encoding="utf-8")
for name, value in before.items():
    print(f"{name:28} {value:8.3f} -> {after[name]:8.3f}")
print("accuracies: the share of pairs whose better answer is the likelier one; a coin gives 0.5")
