# %% [markdown]
"""
# Continued pretraining on plain text, before the instruction training

Lets a model read statutes (or any plain text) before sft_alpaca.py teaches it to answer about them. The embeddings are
trained whole, more slowly than the update of the other layers.

Run:    `uv run data/legal/prepare.py`, then `uv run data/legal/pretrain.py`, then
        `uv run tools/export.py outputs/legal merged` and `MODEL=outputs/legal/merged uv run sft_alpaca.py`
Data:   {"text": "第一条　……"}, one text a line
Writes: OUTPUT/lora, metrics.json
"""

# %% Imports
import os

os.environ["UNSLOTH_DISABLE_STATISTICS"] = "1"  # nothing about this machine is sent
os.environ["GOMP_SPINCOUNT"] = "1000"  # threads that wait leave their core to other programs
from unsloth import FastLanguageModel, UnslothTrainer, UnslothTrainingArguments  # before trl and transformers

import json
from math import exp
from pathlib import Path

import torch
from datasets import load_dataset

# %% Settings
MODEL = "unsloth/Qwen2.5-7B-Instruct-bnb-4bit" if torch.cuda.is_available() else "data/tiny-qwen2.5"
MODEL = os.getenv("MODEL", MODEL)
DATA = os.getenv("DATA", "data/legal/text.jsonl")
OUTPUT = os.getenv("OUTPUT", "outputs/legal")
MAX_LENGTH = 2048  # tokens of a packed row. Out of memory: 1024
LOAD_IN_4BIT = True  # 7B needs 24 GB all the same: its embeddings are trained in 16 bit
LORA_R = 16  # rank of the update of the layers
LORA_ALPHA = 16  # the update is scaled by alpha / r
BATCH_SIZE = 2  # packed rows in a forward pass. Out of memory: 1
ACCUMULATION = 4  # forward passes in an optimizer step
EPOCHS = 3
LEARNING_RATE = 2e-4  # of the update
EMBEDDING_LEARNING_RATE = 2e-5  # of embed_tokens and lm_head
SEED = 3407

if MODEL.startswith("data/tiny"):  # rehearsal: the same lines below on a tiny model
    MAX_LENGTH = 256
    LOAD_IN_4BIT = False
    BATCH_SIZE = 4
    ACCUMULATION = 1
    LEARNING_RATE = 1e-3
    EMBEDDING_LEARNING_RATE = 1e-4

# %% Data
if not Path(DATA).exists():
    raise SystemExit(f"{DATA} is missing: data/legal/prepare.py writes it")
parts = load_dataset("json", data_files=DATA, split="train").train_test_split(0.1, seed=SEED)
print(f"{len(parts['train'])} texts to read, {len(parts['test'])} held out")

# %% Model
model, tokenizer = FastLanguageModel.from_pretrained(
    MODEL,
    max_seq_length=MAX_LENGTH,
    load_in_4bit=LOAD_IN_4BIT,
    trust_remote_code=False,
)
embeddings = ["embed_tokens"] if model.config.tie_word_embeddings else ["embed_tokens", "lm_head"]
model = FastLanguageModel.get_peft_model(
    model,
    r=LORA_R,
    lora_alpha=LORA_ALPHA,
    modules_to_save=embeddings,
    ensure_weight_tying=True,
    random_state=SEED,
)

# %% Train
trainer = UnslothTrainer(
    model=model,
    processing_class=tokenizer,
    train_dataset=parts["train"],
    eval_dataset=parts["test"],
    args=UnslothTrainingArguments(
        output_dir=f"{OUTPUT}/checkpoints",
        max_length=MAX_LENGTH,
        packing=True,  # texts follow each other without padding
        dataset_num_proc=0,
        per_device_train_batch_size=BATCH_SIZE,
        gradient_accumulation_steps=ACCUMULATION,
        num_train_epochs=EPOCHS,
        learning_rate=LEARNING_RATE,
        embedding_learning_rate=EMBEDDING_LEARNING_RATE,
        warmup_steps=0.05,
        optim="adamw_8bit",
        bf16=model.dtype == torch.bfloat16,
        fp16=model.dtype == torch.float16,
        loss_type="nll",
        per_device_eval_batch_size=1,
        save_strategy="no",
        logging_steps=0.05,
        seed=SEED,
        report_to="none",
    ),
)
before = trainer.evaluate()["eval_loss"]
trainer.train()
after = trainer.evaluate()["eval_loss"]

# %% Save
trainer.save_model(f"{OUTPUT}/lora")  # adapter, embeddings and tokenizer
metrics = {"scenario": "pretrain", "model": MODEL, "before": {"loss": before}, "after": {"loss": after}}
Path(OUTPUT, "metrics.json").write_text(json.dumps(metrics, ensure_ascii=False, indent=2), encoding="utf-8")
print(f"Held-out loss {before:.3f} -> {after:.3f}, perplexity {exp(before):.1f} -> {exp(after):.1f}")
