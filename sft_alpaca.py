# %% [markdown]
"""
# Instruction following: QLoRA SFT on Alpaca-style rows

Teaches Qwen2.5-7B-Instruct to answer the way your own rows answer. The plainest script: read it first.

Run:    `uv run sft_alpaca.py`, or paste the cells into Colab or Kaggle and run them in order
Needs:  a GPU with 12 GB; without one a tiny model rehearses every line in half a minute
Data:   {"instruction": "Sort these numbers.", "input": "3, 1, 2", "output": "1, 2, 3"}
Writes: OUTPUT/lora, answers.jsonl, metrics.json, report.md, loss.png
"""

# %% Imports
import os

os.environ["UNSLOTH_DISABLE_STATISTICS"] = "1"  # nothing about this machine is sent
os.environ["GOMP_SPINCOUNT"] = "1000"  # threads that wait leave their core to other programs
from unsloth import FastLanguageModel  # before trl, transformers and peft: importing it patches them

import json
import random
import shutil
import subprocess
import sys
import zlib
from importlib.metadata import version
from pathlib import Path

import pandas as pd
import torch
from datasets import Dataset, load_dataset
from transformers import AutoTokenizer, EarlyStoppingCallback
from trl import SFTConfig, SFTTrainer

# %% Settings
MODEL = "unsloth/Qwen2.5-7B-Instruct-bnb-4bit" if torch.cuda.is_available() else "data/tiny-qwen2.5"
MODEL = os.getenv("MODEL", MODEL)
DATA = os.getenv("DATA", "data/alpaca/instructions.json")  # or .jsonl, or a hub name: yahma/alpaca-cleaned
OUTPUT = os.getenv("OUTPUT", "outputs/alpaca")
GENERAL = "data/general/rows.jsonl"  # everyday questions: what is forgotten shows here
SYSTEM = "You are a helpful assistant."

MAX_LENGTH = 2048  # tokens of prompt and answer; longer rows are dropped. Out of memory: 1024
LOAD_IN_4BIT = True  # False: LoRA on 16-bit weights, 16 GB for those of 7B alone
DTYPE = None  # None: bfloat16, or float16 on a T4. A loss that is no number: torch.float32
GRADIENT_CHECKPOINTING = "unsloth"  # False is faster where memory allows
LORA_R = 16  # rank of the update, 8 to 64. Out of memory: 8
LORA_ALPHA = 16  # the update is scaled by alpha / r

BATCH_SIZE = 8  # rows in a forward pass. Out of memory: 2, with ACCUMULATION = 4
ACCUMULATION = 1  # forward passes in an optimizer step
EPOCHS = 3
MAX_STEPS = 60  # a first look; -1 trains for all EPOCHS
LEARNING_RATE = 2e-4  # 1e-4 to 2e-4 for LoRA
REPLAY_SHARE = 0.0  # general rows added to the training, as a share of it: 0.1 to 0.3 against forgetting
RESUME = True  # continue an interrupted run with the same settings from its newest checkpoint
SEED = 3407

EVAL_SHARE = 0.1  # of the instructions
EVAL_ROWS = 100  # held-out rows to answer before and after
GENERAL_ROWS = 60  # general rows whose loss is measured; REPLAY_SHARE takes the others
EVAL_BATCH = 8  # answers generated at once. Out of memory: 2
NEW_TOKENS = 512  # longest answer

if MODEL.startswith("data/tiny"):  # rehearsal: the same lines below on a tiny model
    LOAD_IN_4BIT = False
    GRADIENT_CHECKPOINTING = False
    BATCH_SIZE = 4
    LEARNING_RATE = 1e-3
    EVAL_ROWS = 16
    NEW_TOKENS = 64


# %% Data
def to_prompt_completion(row: dict) -> dict:
    """Return an Alpaca row in TRL's chat form; the loss is on the completion only."""
    prompt = [{"role": "system", "content": row.get("system") or SYSTEM}]
    for question, answer in row.get("history") or []:
        prompt += [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    prompt += [{"role": "user", "content": f"{row['instruction']}\n{row.get('input') or ''}".strip()}]
    return {"prompt": prompt, "completion": [{"role": "assistant", "content": row["output"]}]}


def usable(row: dict) -> bool:
    """Return whether a row is complete and short enough: a cut one would teach the model never to stop."""
    if not all(isinstance(row.get(key), str) and row[key].strip() for key in ("instruction", "output")):
        return False
    messages = [*to_prompt_completion(row)["prompt"], {"role": "assistant", "content": row["output"]}]
    return len(tokenizer.apply_chat_template(messages, return_dict=False)) <= MAX_LENGTH


def read_rows(source: str) -> list[dict]:
    """Return the usable rows of a JSON or JSONL file, or of a data set on the hub."""
    try:
        parts = load_dataset("json", data_files=source) if Path(source).is_file() else load_dataset(source)
        dataset = parts["train"].shuffle(seed=SEED).to_list()
    except Exception as error:  # of many kinds, whose own text often says neither file nor reason
        raise SystemExit(f"{source} cannot be read: {error.__cause__ or error}") from error
    rows = [row for row in dataset if usable(row)]
    print(f"{source}: {len(rows)} of {len(dataset)} rows are complete and short enough")
    return rows


def held_out(row: dict) -> bool:
    """Return whether a row is for evaluation; rows of a topic, or of an instruction, stay on one side."""
    split = row["meta"].get("split") if isinstance(row.get("meta"), dict) else None  # some bring their own
    share = random.Random(f"{SEED} {row.get('topic') or row['instruction']}").random()
    return split != "train" if split else share < EVAL_SHARE


tokenizer = AutoTokenizer.from_pretrained(MODEL, trust_remote_code=False)
rows = read_rows(DATA)
thinks = any("</think>" in row["output"] for row in rows)  # Qwen3 would always: here as the rows do
tokenizer.chat_template = template = f"{{% set enable_thinking = {thinks} %}}{tokenizer.get_chat_template()}"
train_rows = [row for row in rows if not held_out(row)]
eval_rows = [row for row in rows if held_out(row)][:EVAL_ROWS]
if not train_rows or len(eval_rows) < 2:
    raise SystemExit(f"{DATA}: too few usable rows; data/alpaca/prepare.py names bad ones, reads other forms")
eval_dataset = {"loss": Dataset.from_list(list(map(to_prompt_completion, eval_rows)))}
if Path(GENERAL).exists():
    general = read_rows(GENERAL)
    train_rows += general[GENERAL_ROWS:][: int(REPLAY_SHARE * len(train_rows))]
    eval_dataset["general_loss"] = Dataset.from_list(list(map(to_prompt_completion, general[:GENERAL_ROWS])))
train_dataset = Dataset.from_list(list(map(to_prompt_completion, train_rows)))
print(f"{len(train_dataset)} rows to train on, {len(eval_rows)} held out")
example = train_dataset[0]
print(tokenizer.apply_chat_template(example["prompt"] + example["completion"], tokenize=False))
print("Trained on:", example["completion"][0]["content"], "and the token that ends it")

# %% Model
model, tokenizer = FastLanguageModel.from_pretrained(
    MODEL,
    max_seq_length=MAX_LENGTH,
    dtype=DTYPE,
    load_in_4bit=LOAD_IN_4BIT,
    use_gradient_checkpointing=GRADIENT_CHECKPOINTING,
    trust_remote_code=False,
)
tokenizer = getattr(tokenizer, "tokenizer", tokenizer)  # a model that sees brings a processor
tokenizer.chat_template = template
model = FastLanguageModel.get_peft_model(
    model,
    r=LORA_R,
    lora_alpha=LORA_ALPHA,
    target_modules=["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"],
    use_gradient_checkpointing=GRADIENT_CHECKPOINTING,
    random_state=SEED,
)


# %% Before
def generate(prompts: list[list[dict]], **options) -> list[tuple[str, bool]]:
    """Answer chat prompts, greedily by default; return each text and whether it ended before NEW_TOKENS."""
    FastLanguageModel.for_inference(model)
    model.generation_config.max_length = None  # NEW_TOKENS is the limit
    end_tokens = torch.tensor(model.generation_config.eos_token_id)
    answers = []
    for start in range(0, len(prompts), EVAL_BATCH):
        inputs = tokenizer.apply_chat_template(
            prompts[start : start + EVAL_BATCH],
            add_generation_prompt=True,
            padding=True,
            tokenizer_kwargs={"padding_side": "left"},
            return_dict=True,
            return_tensors="pt",
        ).to(model.device)
        outputs = model.generate(**inputs, **{"max_new_tokens": NEW_TOKENS, "do_sample": False, **options})
        for output in outputs[:, inputs["input_ids"].shape[1] :].cpu():
            text = tokenizer.decode(output, skip_special_tokens=True).strip()
            answers.append((text, bool(torch.isin(output, end_tokens).any())))
    FastLanguageModel.for_training(model)
    return answers


before_answers = generate(eval_dataset["loss"]["prompt"])


# %% Train
def row_losses(dataset: Dataset) -> list[float]:
    """Return the loss of each row of an evaluation set, in nats per token of the completion."""
    model.eval()
    batches = [trainer.data_collator([row]) for row in dataset]
    return [trainer.prediction_step(model, batch, prediction_loss_only=True)[0].item() for batch in batches]


settings = {"DATA": DATA, "SYSTEM": SYSTEM, "MAX_LENGTH": MAX_LENGTH, "LOAD_IN_4BIT": LOAD_IN_4BIT}
settings |= {"LORA_R": LORA_R, "LORA_ALPHA": LORA_ALPHA, "LEARNING_RATE": LEARNING_RATE, "SEED": SEED}
settings |= {"BATCH_SIZE": BATCH_SIZE, "ACCUMULATION": ACCUMULATION, "EPOCHS": EPOCHS, "MAX_STEPS": MAX_STEPS}
settings |= {"REPLAY_SHARE": REPLAY_SHARE, "EVAL_SHARE": EVAL_SHARE, "NEW_TOKENS": NEW_TOKENS}
config = SFTConfig(
    # A run with other settings or rows has another folder, so that RESUME never mixes two of them.
    output_dir=f"{OUTPUT}/checkpoints-{zlib.crc32(f'{MODEL}{settings}{train_rows}'.encode()):08x}",
    max_length=MAX_LENGTH,
    dataset_num_proc=0,  # in this process: starting others takes longer than tokenizing
    per_device_train_batch_size=BATCH_SIZE,
    gradient_accumulation_steps=ACCUMULATION,
    num_train_epochs=EPOCHS,
    max_steps=MAX_STEPS,
    learning_rate=LEARNING_RATE,
    warmup_steps=0.05,  # below 1: a share of the run, here and in the three below
    optim="adamw_8bit",  # 2 bytes of state per trained parameter instead of 8
    bf16=model.dtype == torch.bfloat16,
    fp16=model.dtype == torch.float16,
    gradient_checkpointing=bool(GRADIENT_CHECKPOINTING),  # TRL's default is True
    loss_type="nll",  # what Unsloth's chunked loss needs
    train_sampling_strategy="group_by_length",  # less padding, and the longest rows first
    per_device_eval_batch_size=1,  # the logits of one row fit wherever training does
    eval_on_start=True,
    eval_strategy="steps",
    eval_steps=0.2,
    save_steps=0.2,
    save_total_limit=2,
    load_best_model_at_end=True,
    logging_steps=0.02,
    include_num_input_tokens_seen="non_padding",
    logging_nan_inf_filter=False,  # show a NaN instead of leaving it out of the mean
    seed=SEED,
    report_to="none",  # "tensorboard", "wandb", "swanlab", "trackio"
)
trainer = SFTTrainer(
    model=model,
    processing_class=tokenizer,
    train_dataset=train_dataset,
    eval_dataset=eval_dataset,
    callbacks=[EarlyStoppingCallback(early_stopping_patience=2)],
    args=config,
)
eval_sets = trainer.eval_dataset  # as TRL has tokenized them
trainer.eval_dataset = eval_sets["loss"]  # the held-out rows choose the best checkpoint
losses = {"before": {name: row_losses(rows) for name, rows in eval_sets.items()}}
# trainer_state.json is the last file of a checkpoint to be written: with it a checkpoint is complete
files = Path(config.output_dir).glob("checkpoint-*/trainer_state.json")
newest = max(filter(os.path.getsize, files), key=os.path.getmtime, default=None) if RESUME else None
print(f"Continuing from {newest.parent}" if newest else "Starting from the base model")
trained = trainer.train(resume_from_checkpoint=str(newest.parent) if newest else None).metrics
if pd.isna(trained["train_loss"]):
    raise SystemExit("The loss is no number: halve LEARNING_RATE, or set DTYPE = torch.float32")
trainer.save_model(f"{OUTPUT}/lora")  # adapter and tokenizer

# %% After
losses["after"] = {name: row_losses(rows) for name, rows in eval_sets.items()}
if os.getenv("RANK", "0") != "0":
    raise SystemExit  # of torchrun's processes the first one goes on
answers = pd.DataFrame({"prompt": eval_dataset["loss"]["prompt"]})
answers["reference"] = [row["output"] for row in eval_rows]
answers[["before", "before_ended"]] = before_answers
answers[["after", "after_ended"]] = generate(eval_dataset["loss"]["prompt"])
answers.to_json(f"{OUTPUT}/answers.jsonl", orient="records", lines=True, force_ascii=False)

# %% Score
log = pd.DataFrame(trainer.state.log_history)
metrics = {
    "scenario": "alpaca",
    "model": MODEL,
    "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU",
    "train": {
        "seconds": trained["train_runtime"],
        "steps": trainer.state.global_step,
        "tokens_per_second": log["train_tokens_per_second"].dropna().iloc[-1],
        "peak_memory_gb": torch.cuda.max_memory_reserved() / 2**30,
        "trainable_parameters": model.get_nb_trainable_parameters()[0],
        "total_parameters": model.get_nb_trainable_parameters()[1],
    },
    "losses": losses,
    "settings": settings,
    "versions": {name: version(name) for name in ("unsloth", "trl", "transformers", "peft", "torch")},
}
Path(OUTPUT, "metrics.json").write_text(json.dumps(metrics, ensure_ascii=False, indent=2), encoding="utf-8")
scored = subprocess.run([sys.executable, "data/alpaca/judge.py", OUTPUT], capture_output=True, text=True)
print(f"Scored by: python data/alpaca/judge.py {OUTPUT}\n{scored.stdout}{scored.stderr}")

# %% Save
axes = log.groupby("step")[["loss", "eval_loss"]].first().interpolate().plot(ylabel="loss per token")
axes.figure.savefig(f"{OUTPUT}/loss.png", dpi=150)
shutil.rmtree(config.output_dir)  # the run is complete

# %% Try it
TRY = "Suggest three names for a small bakery."
answer, _ = generate([to_prompt_completion({"instruction": TRY, "output": ""})["prompt"]])[0]
print(f"{TRY}\n\n{answer}")
