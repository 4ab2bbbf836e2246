# %% [markdown]
"""
# Instruction following: QLoRA SFT of Qwen2.5-7B-Instruct in the Alpaca format

The plainest script, the one to read first. Says how well the model predicts held-out answers before and
after (loss, perplexity), how near its own answers are to them (chrF) and how many of them end by themselves.

Run:    `python sft_alpaca.py`; edit the constants under Settings, or set MODEL, DATA and OUTPUT
Needs:  a GPU with 12 GB (not measured yet); without one it rehearses on a tiny model in half a minute
Data:   {"instruction": "Sort these numbers.", "input": "3, 1, 2", "output": "1, 2, 3"}
Writes: OUTPUT/lora, metrics.json, report.md, loss.png
"""

# %% Imports
from unsloth import FastLanguageModel  # first: it patches trl, transformers and peft when it is imported

# isort: split
import hashlib
import json
import math
import os
import platform
import random
import re
import shutil
import sys
import time
import zipfile
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryFile

import matplotlib
import numpy as np
import psutil
import torch
from datasets import Dataset, load_dataset
from peft import PeftModel, set_peft_model_state_dict
from sacrebleu import sentence_chrf
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    EarlyStoppingCallback,
    TrainerCallback,
)
from trl import SFTConfig, SFTTrainer

matplotlib.use("Agg")
import matplotlib.pyplot as plt  # noqa: E402

# %% Settings
if "__file__" in globals() and not Path("data/tiny-qwen2.5").is_dir():  # started from another folder
    for name in {"MODEL", "DATA", "OUTPUT"} & set(os.environ):  # what was given stays where it was meant
        if name == "OUTPUT" or Path(os.environ[name]).exists():
            os.environ[name] = os.path.abspath(os.environ[name])
    os.chdir(Path(__file__).parent)
    print(f"Relative paths start in {Path.cwd()}")
GPU = torch.cuda.is_available()
DEVICE = torch.cuda.get_device_name() if GPU else f"CPU, {os.cpu_count()} cores"
STAGE = "sft"  # or "pretrain": plain text first; export it as merged_16bit, which is then the MODEL of "sft"
MODEL = os.getenv("MODEL", "unsloth/Qwen2.5-7B-Instruct-bnb-4bit" if GPU else "data/tiny-qwen2.5")
# JSON or JSONL rows or a data set of the hub (yahma/alpaca-cleaned); to pretrain, .txt or a folder of them
DATA = os.getenv("DATA", "data/alpaca.json" if STAGE == "sft" else "data/legal")
OUTPUT = os.getenv("OUTPUT", "outputs/alpaca")
SYSTEM = "You are a helpful assistant."

DTYPE = None  # None: bfloat16 where the hardware has it, else float16; or "float32"
LOAD_IN_4BIT = True  # NF4 weights; False needs 16 GB for the weights of 7B alone
MAX_LENGTH = 2048  # tokens of prompt and answer; longer rows are left out. Out of memory: 1024
GRADIENT_CHECKPOINTING = "unsloth"  # recompute activations: less memory, slower; False where memory allows

LORA_R = 16  # rank of the update, 8 to 64. Out of memory: 8
LORA_ALPHA = 16  # the update is scaled by alpha / r
TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]

BATCH_SIZE = 2  # rows in a forward pass. Out of memory: 1, with ACCUMULATION = 8
ACCUMULATION = 4  # forward passes in an optimizer step
EPOCHS = 3
MAX_STEPS = 60  # for a first look; a positive number silently overrides EPOCHS, -1 makes a full run of them
LEARNING_RATE = 2e-4  # 1e-4 to 2e-4 for LoRA; 2e-5 is for full fine-tuning
EMBEDDING_LEARNING_RATE = 2e-5  # pretrain: of embed_tokens and lm_head, trained whole; 7B then needs 24 GB
WARMUP = 0.05  # share of the steps
OPTIMIZER = "adamw_8bit"  # 2 bytes of state a trained parameter instead of 8
EVALUATIONS = 6  # evaluations and checkpoints in the run
PATIENCE = 2  # stop after so many evaluations without a lower held-out loss
SEED = 3407

EVAL_SHARE = 0.1  # of the instructions, unless the rows say in meta.split what is held out
EVAL_ROWS = 100  # held-out rows to answer and score, before and after
EVAL_BATCH = 8  # answers written at once. Out of memory in Before: 2
NEW_TOKENS = 512  # longest answer

RESUME = True  # go on from the newest checkpoint of an interrupted run with the same settings
TRAIN = True  # False: use the adapter in OUTPUT/lora as it is
EXPORT = "lora"  # "lora", "merged_16bit" or "gguf" (llama.cpp, Ollama); the adapter is always saved
GGUF_QUANT = "q4_k_m"  # or "q8_0", "bf16"
REPORT_TO = "none"  # "tensorboard", "wandb", "swanlab", "trackio"
TRY = "Suggest three names for a small bakery."  # for the last cell

if MODEL.startswith("data/tiny"):  # rehearsal: the same lines below, a tiny model, half a minute on two cores
    MAX_LENGTH, NEW_TOKENS, EPOCHS, MAX_STEPS, LORA_R, LORA_ALPHA = 256, 96, 1, -1, 32, 64
    LEARNING_RATE, EMBEDDING_LEARNING_RATE = 3e-4, 1e-4
    BATCH_SIZE, ACCUMULATION, EVALUATIONS, EVAL_BATCH = 4, 1, 1, 32
    GRADIENT_CHECKPOINTING, LOAD_IN_4BIT, GGUF_QUANT = False, False, "q8_0"  # NF4 is slow on most CPUs
settings = {name: value for name, value in list(globals().items()) if name.isupper()}
try:  # before anything is loaded
    Path(OUTPUT).mkdir(parents=True, exist_ok=True)
    TemporaryFile(dir=OUTPUT).close()
except OSError as error:
    raise SystemExit(f"Output: nothing can be written to {OUTPUT}: {error.strerror}") from None


def memory_needed(
    model, four_bit: bool, rank: int, tokens: int, checkpointing: bool | str
) -> dict[str, float]:
    """Return what will fill the GPU, in GB of 1e9 bytes, for a model on the meta device and tokens in a pass.

    A weight of a linear layer takes 4.127 bits in NF4 (double quantization), any other 16; one of the adapter
    10 bytes (itself 4, gradient 4, 8-bit AdamW 2); with rank 0 every weight 4 more. Activations, of 16 bits:
    the input of each layer, which "unsloth" keeps in RAM, and in the layer at work three vectors of the MLP's
    inner size and four of the hidden size. The loss takes what is left, in chunks.
    """
    linear = [m for name, m in model.named_modules() if isinstance(m, torch.nn.Linear) and name != "lm_head"]
    inside = sum(layer.weight.numel() for layer in linear)
    total = sum(weight.numel() for weight in model.parameters())
    text = model.config.get_text_config()
    busy = 3 * text.intermediate_size + 4 * text.hidden_size
    kept = {"unsloth": 0, True: text.hidden_size, False: busy}[checkpointing] * text.num_hidden_layers
    adapter = rank * sum(layer.in_features + layer.out_features for layer in linear)
    parts = {
        "weights": inside * (4.127 / 8 if four_bit else 2) + (total - inside) * 2,
        "training": adapter * 10 if rank else total * 4,
        "activations": tokens * (kept + busy) * 2,
        "CUDA itself": 5e8,
    }
    return {name: size / 1e9 for name, size in parts.items()}


try:
    with torch.device("meta"):  # shapes only: of a model on the hub nothing but config.json is loaded yet
        shapes = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(MODEL))
except OSError as error:
    raise SystemExit(f"Model: {MODEL} is no folder, not in the cache and not to be had: {error}") from None
memory = memory_needed(shapes, LOAD_IN_4BIT, LORA_R, BATCH_SIZE * MAX_LENGTH, GRADIENT_CHECKPOINTING)
card = torch.cuda.get_device_properties(0).total_memory / 1e9 if torch.cuda.is_available() else math.inf
print(f"GPU memory: about {sum(memory.values()):.1f} GB:", *(f"{k} {v:.1f}" for k, v in memory.items()))
if sum(memory.values()) > card:
    print(f"The card has {card:.1f} GB: lower BATCH_SIZE, MAX_LENGTH or LORA_R, or take a smaller MODEL")


# %% Data
def read_text(path: Path) -> str:
    """Return the text of a UTF-8 or GB18030 file; ValueError names a file that is neither."""
    raw = path.read_bytes()
    for encoding in ("utf-8-sig", "gb18030"):
        try:
            return raw.decode(encoding)
        except UnicodeDecodeError:
            continue
    raise ValueError(f"{path} is neither UTF-8 nor GB18030: convert it, for example with iconv -t UTF-8")


def read_json(path: Path) -> list:
    """Return the rows of a JSON list or of JSONL; ValueError names the file and line that is not JSON."""
    text = read_text(path)
    whole = text.lstrip()[:1] == "["
    rows = []
    for number, part in enumerate([text] if whole else text.split("\n"), 1):
        try:
            rows += [json.loads(part)] if part.strip() else []
        except (json.JSONDecodeError, RecursionError) as error:
            line = getattr(error, "lineno", 1) if whole else number
            reason = getattr(error, "msg", "nested too deep")
            raise ValueError(f"{path}, line {line}: not JSON ({reason}); mend that line") from None
    return rows[0] if whole else rows


def read_instructions(source: str) -> list[dict]:
    """Return the usable rows of a JSON or JSONL file or of a data set of the hub; name what is left out."""
    if Path(source).suffix in (".json", ".jsonl"):
        rows = read_json(Path(source))
    else:
        try:
            rows = load_dataset(source, split="train").to_list()
        except Exception as error:  # of whichever library noticed first
            reason = str(error).partition("\n")[0]
            raise ValueError(f"{source}, as a data set of the hub or a folder: {reason}") from None
    usable, seen = [], set()
    for number, row in enumerate(rows, 1):
        row = row if isinstance(row, dict) else {}
        texts = {key: str(row.get(key) or "").strip() for key in ("instruction", "input", "output")}
        missing = [key for key in ("instruction", "output") if not texts[key]]
        asked = re.sub(r"\W", "", texts["instruction"] + texts["input"]).lower()
        if missing or asked in seen:
            reason = f"no {' and no '.join(missing)}" if missing else "the question of an earlier row again"
            print(f"{source}, row {number}: {reason}; left out")
        else:
            seen.add(asked)
            usable.append({**texts, "meta": row.get("meta") or {}})
    if not usable:
        raise ValueError(f"{source} holds no usable row: each needs instruction and output")
    return usable


def read_blocks(source: str) -> list[dict]:
    """Return the text of a .txt file, or of those in a folder, cut into rows of MAX_LENGTH tokens."""
    path = Path(source)
    files = sorted(path.rglob("*.txt")) if path.is_dir() else [path]
    ids = [token for file in files for token in tokenizer(read_text(file) + "<|endoftext|>").input_ids]
    return [{"input_ids": ids[start : start + MAX_LENGTH]} for start in range(0, len(ids) - 1, MAX_LENGTH)]


def hold_out(rows: list[dict], share: float, seed: int) -> tuple[list[dict], list[dict]]:
    """Return (training rows, held-out rows) shuffled: by meta.split, or a share of the instructions."""
    rows = random.Random(seed).sample(rows, len(rows))
    if any(row.get("meta", {}).get("split") for row in rows):
        held = [row["meta"].get("split", "train") != "train" for row in rows]
    else:
        names = [re.sub(r"\W", "", row.get("instruction") or str(row)).lower() for row in rows]
        different = sorted(set(names))
        chosen = set(random.Random(seed).sample(different, math.ceil(share * len(different))))
        held = [name in chosen for name in names]
    return [row for row, out in zip(rows, held) if not out], [row for row, out in zip(rows, held) if out]


def to_prompt_completion(row: dict) -> dict:
    """Return a row in TRL's conversational form, of which only the completion is trained on."""
    question = "\n".join(part for part in (row["instruction"], row.get("input")) if part)
    prompt = [{"role": "system", "content": SYSTEM}, {"role": "user", "content": question}]
    return {"prompt": prompt, "completion": [{"role": "assistant", "content": row["output"]}]}


def fits(row: dict) -> bool:
    """Return whether a row is at most MAX_LENGTH tokens: a cut one would teach the model not to stop."""
    messages = [turn for part in to_prompt_completion(row).values() for turn in part]
    return len(tokenizer(tokenizer.apply_chat_template(messages, tokenize=False)).input_ids) <= MAX_LENGTH


tokenizer = AutoTokenizer.from_pretrained(MODEL)
try:
    rows = read_instructions(DATA) if STAGE == "sft" else read_blocks(DATA)
except (OSError, ValueError) as error:
    raise SystemExit(f"Data: {error}") from None
train_rows, eval_rows = hold_out(rows, EVAL_SHARE, SEED)
if STAGE == "sft":
    train_rows, eval_rows = ([row for row in part if fits(row)] for part in (train_rows, eval_rows))
left = len(rows) - len(train_rows) - len(eval_rows)
print(f"{DATA}: {len(rows)} rows, {left} longer than {MAX_LENGTH} tokens left out")
eval_rows = eval_rows[:EVAL_ROWS]
if not (train_rows and eval_rows):
    raise SystemExit(f"Data: too few rows in {DATA} to hold one out: add rows, or raise MAX_LENGTH")
print(f"{len(train_rows)} to train on, {len(eval_rows)} held out")
form = to_prompt_completion if STAGE == "sft" else dict
train_dataset = Dataset.from_list([form(row) for row in train_rows])
eval_dataset = Dataset.from_list([form(row) for row in eval_rows])
example = train_dataset[0]
if STAGE == "sft":
    prompt = tokenizer.apply_chat_template(example["prompt"], tokenize=False, add_generation_prompt=True)
    answer = example["completion"][0]["content"] + tokenizer.eos_token
    print(f"Not trained on:\n{prompt}\nTrained on:\n{answer}")
else:
    print(f"Trained on:\n{tokenizer.decode(example['input_ids'])}")


# %% Score
def score_losses(nats: list[float], tokens: list[int]) -> dict[str, list[float]]:
    """Return loss and perplexity as one value a row, from the rows' summed losses and their tokens.

    The mean of the values is that of all tokens, whatever the rows' lengths; their spread is the ratio's.
    """
    loss, length = sum(nats) / sum(tokens), sum(tokens) / len(tokens)
    losses = [loss + (nat - loss * count) / length for nat, count in zip(nats, tokens)]
    return {"loss": losses, "perplexity": [math.exp(loss) * (1 + value - loss) for value in losses]}


def compare_answers(texts: list[str], wanted: list[str], ended: list[bool]) -> dict[str, list[float]]:
    """Return metric -> one value an answer: chrF against the wanted one (0 to 100), whether it ended."""
    chrf = [sentence_chrf(text, [reference]).score for text, reference in zip(texts, wanted)]
    return {"chrf": chrf, "ended_by_itself": [float(end) for end in ended]}


def mean_and_interval(values: list[float | None]) -> tuple[float, float, float]:
    """Return the mean and its bootstrap 95% interval, over the values that are not None."""
    numbers = np.array([value for value in values if value is not None] or [math.nan])
    means = np.random.default_rng(0).choice(numbers, (2000, len(numbers))).mean(1)
    return float(numbers.mean()), *map(float, np.percentile(means, [2.5, 97.5]))


# %% Model
model, tokenizer = FastLanguageModel.from_pretrained(
    MODEL, max_seq_length=MAX_LENGTH, dtype=getattr(torch, DTYPE or "", None), load_in_4bit=LOAD_IN_4BIT,
    use_gradient_checkpointing=GRADIENT_CHECKPOINTING,
)  # fmt: skip
tied = model.config.tie_word_embeddings  # then lm_head follows embed_tokens
embeddings = (["embed_tokens"] if tied else ["embed_tokens", "lm_head"]) if STAGE == "pretrain" else None
model = FastLanguageModel.get_peft_model(
    model, r=LORA_R, lora_alpha=LORA_ALPHA,
    lora_dropout=0,  # any other value turns Unsloth's fused kernels off
    bias="none", target_modules=TARGETS, modules_to_save=embeddings, ensure_weight_tying=bool(embeddings),
    use_gradient_checkpointing=GRADIENT_CHECKPOINTING, random_state=SEED,
)  # fmt: skip
trainable, total = model.get_nb_trainable_parameters()
print(f"{trainable:,} of {total:,} parameters are trained ({trainable / total:.2%})")


# %% Before
def generate(conversations: list[list[dict]]) -> tuple[list[str], list[bool]]:
    """Answer chat prompts greedily in batches; return the texts and whether each ended by itself."""
    FastLanguageModel.for_inference(model)
    prompts = [
        tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
        for turns in conversations
    ]
    ends = torch.tensor(model.generation_config.eos_token_id)
    texts, ended = [], []
    for start in range(0, len(prompts), EVAL_BATCH):
        batch = prompts[start : start + EVAL_BATCH]
        inputs = tokenizer(
            batch, return_tensors="pt", padding=True, padding_side="left", add_special_tokens=False
        )
        outputs = model.generate(**inputs.to(model.device), max_new_tokens=NEW_TOKENS, do_sample=False)
        for output in outputs[:, inputs.input_ids.shape[1] :].cpu():
            texts.append(tokenizer.decode(output, skip_special_tokens=True).strip())
            ended.append(bool(torch.isin(output, ends).any()))
    FastLanguageModel.for_training(model)
    return texts, ended


def token_losses(rows: Dataset) -> tuple[list[float], list[int]]:
    """Return each row's loss summed over the tokens that are trained on, and how many they are."""
    FastLanguageModel.for_inference(model)
    nats, tokens = [], []
    for row in rows:
        ids, start = row.get("input_ids"), 1
        if ids is None:
            turns = row["prompt"] + row["completion"]
            prompt = tokenizer.apply_chat_template(row["prompt"], tokenize=False, add_generation_prompt=True)
            ids = tokenizer(tokenizer.apply_chat_template(turns, tokenize=False)).input_ids
            start = len(tokenizer(prompt).input_ids)
        labels = torch.tensor([[-100] * start + ids[start:]], device=model.device)
        with torch.no_grad():
            inputs = torch.tensor([ids], device=model.device)
            loss = model(input_ids=inputs, labels=labels, use_cache=False).loss
        tokens.append(len(ids) - start)
        nats.append(loss.item() * tokens[-1])
    FastLanguageModel.for_training(model)
    return nats, tokens


before, before_texts = score_losses(*token_losses(eval_dataset)), []
if STAGE == "sft":
    before_texts, ended = generate(eval_dataset["prompt"])
    before |= compare_answers(before_texts, [row["output"] for row in eval_rows], ended)
print(f"Before: loss {mean_and_interval(before['loss'])[0]:.3f}")


# %% Train
class StopOnNaN(TrainerCallback):
    """Stop with a remedy when the loss is no longer a number."""

    def on_log(self, args, state, control, logs=None, **kwargs):
        if not math.isfinite((logs or {}).get("loss", 0.0)):
            where = f"The loss is {logs['loss']} at step {state.global_step}"
            raise SystemExit(f"{where}: halve LEARNING_RATE, or set DTYPE = 'float32'")


def newest_checkpoint(folder: Path) -> str | None:
    """Return the newest complete checkpoint in a folder, None without one; a damaged one is named."""
    for path in sorted(folder.glob("checkpoint-*"), key=lambda path: -int(path.name.partition("-")[2])):
        try:
            json.loads((path / "trainer_state.json").read_text(encoding="utf-8"))  # written last
            for file in path.glob("*.safetensors"):
                with safe_open(file, "pt"):
                    pass
            for file in path.glob("*.pt"):
                zipfile.ZipFile(file).close()
            return str(path)
        except (OSError, ValueError, SafetensorError, zipfile.BadZipFile) as error:
            print(f"{path} is damaged ({error}): going back to the one before")
    return None


same_run = {name: value for name, value in settings.items() if name not in ("RESUME", "TRAIN", "EXPORT")}
fingerprint = hashlib.sha256(json.dumps([same_run, train_rows], sort_keys=True).encode()).hexdigest()[:8]
checkpoints = Path(OUTPUT) / f"checkpoints-{fingerprint}"  # other settings are another run
processes = int(os.getenv("WORLD_SIZE", "1"))  # torchrun starts one a GPU; each has its own part of a batch
rows_in_step = BATCH_SIZE * ACCUMULATION * processes
steps = MAX_STEPS if MAX_STEPS > 0 else math.ceil(len(train_rows) / rows_in_step) * EPOCHS
trainer = SFTTrainer(
    model=model, processing_class=tokenizer, train_dataset=train_dataset, eval_dataset=eval_dataset,
    callbacks=[StopOnNaN(), EarlyStoppingCallback(PATIENCE)],
    args=SFTConfig(
        output_dir=str(checkpoints), max_length=MAX_LENGTH, packing=False,
        per_device_train_batch_size=BATCH_SIZE,
        per_device_eval_batch_size=1,  # the logits of one row fit wherever training does
        prediction_loss_only=True, gradient_accumulation_steps=ACCUMULATION, num_train_epochs=EPOCHS,
        max_steps=MAX_STEPS, learning_rate=LEARNING_RATE, lr_scheduler_type="cosine",
        warmup_steps=math.ceil(WARMUP * steps), weight_decay=0.01, max_grad_norm=1.0, optim=OPTIMIZER,
        bf16=model.dtype == torch.bfloat16, fp16=model.dtype == torch.float16,
        logging_steps=max(1, steps // 50), eval_strategy="steps", eval_steps=max(1, steps // EVALUATIONS),
        save_strategy="steps", save_steps=max(1, steps // EVALUATIONS), save_total_limit=2,
        load_best_model_at_end=True, metric_for_best_model="eval_loss",
        train_sampling_strategy="group_by_length",  # rows of like length together: less padding
        gradient_checkpointing=bool(GRADIENT_CHECKPOINTING),  # TRL's default is True
        loss_type="nll",  # in chunks by Unsloth; TRL's own chunks are slower
        logging_nan_inf_filter=False,  # a NaN shall be seen, not left out of the mean
        dataset_num_proc=None,  # a flat script must not be started again by a worker
        seed=SEED, data_seed=SEED, report_to=REPORT_TO,
    ),
)  # fmt: skip
if STAGE == "pretrain":  # the embeddings learn more slowly than the update
    whole = [weight for name, weight in model.named_parameters() if "modules_to_save" in name]
    update = [weight for name, weight in model.named_parameters() if "lora_" in name]
    groups = [{"params": update}, {"params": whole, "lr": EMBEDDING_LEARNING_RATE}]
    optimizer, options = SFTTrainer.get_optimizer_cls_and_kwargs(trainer.args)
    trainer.optimizer = optimizer(groups, weight_decay=0.01, **options)
labels = trainer.data_collator([trainer.train_dataset[0]])["labels"]
if not (labels != -100).any():
    raise SystemExit("Every label is masked, nothing is left to train on: is MODEL's chat template ChatML?")
adapter, started, first_step = Path(OUTPUT) / "lora", time.time(), 0
if TRAIN:
    newest = newest_checkpoint(checkpoints) if RESUME else None
    first_step = int(newest.rpartition("-")[2]) if newest else 0
    print(f"Going on from {newest}" if newest else f"Training for {steps} steps")
    try:
        trainer.train(resume_from_checkpoint=newest)
    except (OSError, RuntimeError):  # PyTorch's words for a full disk are no help
        if shutil.disk_usage(OUTPUT).free > 2**24:
            raise
        raise SystemExit(f"No space left in {OUTPUT}: make room and run this again, it goes on") from None
else:
    set_peft_model_state_dict(model, load_file(adapter / "adapter_model.safetensors"))
if os.getenv("RANK", "0") != "0":
    raise SystemExit  # torchrun's first process scores and saves, the others have helped to train
seconds, done = time.time() - started, trainer.state.global_step
epochs = (trainer.state.epoch or 0) * (done - first_step) / max(1, done)  # of this session
tokens = epochs * sum(map(len, trainer.train_dataset["input_ids"]))

# %% After
started = time.time()
after, after_texts = score_losses(*token_losses(eval_dataset)), []
if STAGE == "sft":
    after_texts, ended = generate(eval_dataset["prompt"])
    after |= compare_answers(after_texts, [row["output"] for row in eval_rows], ended)
speed = sum(len(tokenizer(text).input_ids) for text in after_texts) / (time.time() - started)
table = "| held-out rows | before | after |\n|---|---|---|\n"
for name in after:
    cells = [mean_and_interval(scores[name]) for scores in (before, after)]
    table += f"| {name} | " + " | ".join("{:.3f} ({:.3f} to {:.3f})".format(*cell) for cell in cells) + " |\n"
print(table)


# %% Save
def write_text(path: Path, text: str) -> None:
    """Write a text file under a temporary name and rename it, so that no half-written file is left behind."""
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(text, encoding="utf-8")
    os.replace(temporary, path)


def export(adapter: Path, kind: str, quantization: str) -> None:
    """Merge an adapter into its 16-bit base; for "gguf" also write a GGUF file and Ollama's Modelfile.

    If the conversion fails, print the commands that do it by hand and exit with status 1; nothing is lost.
    """
    merged, gguf = adapter.parent / "merged_16bit", adapter.parent / "gguf"
    source = re.sub("(-unsloth)?-bnb-4bit$", "", MODEL)  # 4-bit weights would pass their rounding errors on
    base = AutoModelForCausalLM.from_pretrained(source, dtype=torch.bfloat16, device_map="cpu")
    PeftModel.from_pretrained(base, adapter).merge_and_unload().save_pretrained(merged)
    tokenizer.save_pretrained(merged)
    print(f"Merged into {source}: {merged}")
    if kind != "gguf":
        return
    gguf.mkdir(exist_ok=True)
    name = f"model.{quantization.upper()}.gguf"
    try:
        from unsloth_zoo.llama_cpp import convert_to_gguf, install_llama_cpp, quantize_gguf

        quantizer, converter = install_llama_cpp()
        direct = quantization if quantization in ("bf16", "q8_0") else "bf16"  # as the converter can write
        target, source = str(gguf / "model"), str(merged)
        files, _ = convert_to_gguf(target, source, "bfloat16", direct, converter_location=converter)
        if direct != quantization:
            quantize_gguf(files[0], str(gguf / name), quantization, quantizer_location=quantizer)
            Path(files[0]).unlink()
    except Exception as error:
        print(f"GGUF failed ({error}). {merged} is complete; by hand, in a clone of llama.cpp:")
        print(f"  python convert_hf_to_gguf.py {merged} --outfile {gguf}/bf16.gguf --outtype bf16")
        print(f"  llama-quantize {gguf}/bf16.gguf {gguf}/{name} {quantization}")
        sys.exit(1)
    turns = "{{- range .Messages }}<|im_start|>{{ .Role }}\n{{ .Content }}<|im_end|>\n{{ end }}"
    stops = "".join(
        f'PARAMETER stop "{token}"\n' for token in ("<|im_start|>", "<|im_end|>", "<|endoftext|>")
    )
    rest = f'SYSTEM """{SYSTEM}"""\n{stops}PARAMETER temperature 0.7\nPARAMETER top_p 0.8\n'
    write_text(gguf / "Modelfile", f'FROM ./{name}\nTEMPLATE """{turns}<|im_start|>assistant\n"""\n{rest}')
    print(f"ollama create {adapter.parent.name} -f {gguf}/Modelfile && ollama run {adapter.parent.name}")


output, saving = Path(OUTPUT), Path(OUTPUT) / "lora.tmp"
model.save_pretrained(saving)
tokenizer.save_pretrained(saving)
shutil.rmtree(adapter, ignore_errors=True)
saving.rename(adapter)

packages = ("unsloth", "unsloth_zoo", "trl", "torch", "transformers", "peft", "datasets", "bitsandbytes")
peak = torch.cuda.max_memory_reserved() or psutil.Process().memory_info().rss  # on a CPU: what is held now
metrics = {
    "scenario": "alpaca", "model": MODEL, "device": DEVICE,
    "before": {name: round(mean_and_interval(values)[0], 6) for name, values in before.items()},
    "after": {name: round(mean_and_interval(values)[0], 6) for name, values in after.items()},
    "train": {
        "seconds": round(seconds, 1), "steps": done, "tokens_per_second": round(tokens / seconds, 1),
        "generated_tokens_per_second": round(speed, 1),
        "peak_memory_gb": round(peak / 2**30, 2), "trainable_parameters": trainable,
        "total_parameters": total,
    },
    "settings": settings,
    "versions": {"python": platform.python_version(), **{name: version(name) for name in packages}},
}  # fmt: skip
write_text(output / "metrics.json", json.dumps(metrics, ensure_ascii=False, indent=2))

figure, axes = plt.subplots(figsize=(7, 4))
for name, label in (("loss", "training"), ("eval_loss", "held out")):
    points = [(entry["step"], entry[name]) for entry in trainer.state.log_history if name in entry]
    axes.plot(
        [step for step, _ in points], [loss for _, loss in points], marker="o", markersize=3, label=label
    )
axes.set(xlabel="step", ylabel="loss per token", title=f"{Path(MODEL).name}, LoRA r = {LORA_R}")
axes.legend()
figure.savefig(output / "loss.tmp.png", dpi=150, bbox_inches="tight")
os.replace(output / "loss.tmp.png", output / "loss.png")

report = f"# alpaca: {MODEL} on {DEVICE}\n\n"
if MODEL.startswith("data/tiny"):
    report += "**A rehearsal with a tiny model: what it writes is of no use to anyone.**\n\n"
report += f"""{table}
{len(eval_rows)} rows whose instructions are not in training; mean and bootstrap 95% interval. chrF compares
letters with one wanted answer: another answer can be as good.

![loss](loss.png)
"""
for row, old, new in list(zip(eval_rows, before_texts, after_texts))[:3]:
    report += f"\n## {row['instruction']}\n\n{row['input']}\n\n### Wanted\n\n```\n{row['output']}\n```\n"
    report += f"\n### Before\n\n```\n{old}\n```\n\n### After\n\n```\n{new}\n```\n"
report += f"\n## Run\n\n```json\n{json.dumps(metrics['train'] | metrics['versions'], indent=1)}\n```\n"
write_text(output / "report.md", report)
shutil.rmtree(checkpoints, ignore_errors=True)  # the run is complete: the next one starts afresh
print(f"Saved in {OUTPUT}: lora, metrics.json, report.md, loss.png")
if EXPORT != "lora":
    export(adapter, EXPORT, GGUF_QUANT)

# %% Try it
texts, _ = generate([to_prompt_completion({"instruction": TRY, "output": ""})["prompt"]])
print(f"{TRY}\n\n{texts[0]}")
