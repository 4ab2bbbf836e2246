# %% [markdown]
"""
# Car insurance: vision SFT of Qwen2.5-VL on an insurer's photos

Teaches a model to read odometers, warning lights, licence plates, VINs and damage into JSON fields, and says
how many fields it reads right before and after, on photos whose styles were not in training.

Run:    `uv run vl_car_insurance.py`, or paste the cells into Colab or Kaggle and run them in order
        Your Excel sheet: `uv run data/car_insurance/prepare.py my.xlsx`, then `DATA=my/metadata.jsonl`
Needs:  a GPU with 12 GB; without one a tiny model rehearses every line in minutes
Data:   {"file_names": ["001.jpg"], "prompt": "读取里程", "answer": "{…JSON…}", "split": "train"}
Writes: OUTPUT/lora, answers.jsonl, metrics.json, report.md, loss.png, contact_sheet.png, predictions.xlsx
"""

# %% Imports
import os

os.environ["UNSLOTH_DISABLE_STATISTICS"] = "1"  # nothing about this machine is sent
os.environ["GOMP_SPINCOUNT"] = "1000"  # threads that wait leave their core to other programs
from unsloth import FastVisionModel, UnslothVisionDataCollator  # before trl, transformers and peft

import json
import re
import shutil
import subprocess
import sys
import unicodedata
import zlib
from importlib.metadata import version
from itertools import islice
from pathlib import Path

import pandas as pd
import torch
from datasets import Dataset, Features, Image, List, Value, load_dataset
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForImageTextToText, AutoProcessor, EarlyStoppingCallback
from trl import SFTConfig, SFTTrainer

# %% Settings
GPU = torch.cuda.is_available()
# 3B: a research licence, not for commercial use; unsloth/Qwen2.5-VL-7B-Instruct is Apache-2.0
MODEL = "unsloth/Qwen2.5-VL-3B-Instruct-unsloth-bnb-4bit" if GPU else "data/tiny-qwen2.5-vl"
MODEL = os.getenv("MODEL", MODEL)
DATA = os.getenv("DATA", "data/car_insurance/metadata.jsonl")
OUTPUT = os.getenv("OUTPUT", "outputs/car_insurance")

LOAD_IN_4BIT = True  # False needs 8 GB for the weights of 3B alone
DTYPE = None  # None: bfloat16, or float16 on a T4. A loss that is no number: torch.float32
MAX_PIXELS = 602_112  # of a photo: 768 tokens of 28 x 28 pixels, 588 of Qwen3-VL. Out of memory: 301_056
GRADIENT_CHECKPOINTING = "unsloth"  # False is faster where memory allows
LORA_R = 16  # rank of the update, 8 to 64. Out of memory: 8
LORA_ALPHA = 16  # the update is scaled by alpha / r
FINETUNE_VISION_LAYERS = True  # False: the eyes stay as they are. Out of memory: False
FINETUNE_LANGUAGE_LAYERS = True
FINETUNE_ATTENTION_MODULES = True
FINETUNE_MLP_MODULES = True

BATCH_SIZE = 4  # rows in a forward pass. Out of memory: 1, with ACCUMULATION = 8
ACCUMULATION = 2  # forward passes in an optimizer step
EPOCHS = 3
MAX_STEPS = -1  # a positive number overrides EPOCHS, for a first look
LEARNING_RATE = 2e-4  # 1e-4 to 2e-4 for LoRA
RESUME = True  # continue an interrupted run with the same settings from its newest checkpoint
SEED = 3407

EVAL_ROWS = 60  # held-out rows to read before and after
EVAL_BATCH = 8  # rows read at once. Out of memory: 1
NEW_TOKENS = 160  # longest answer
DEMO = False  # True: a page on http://127.0.0.1:7860 that reads photos

if MODEL.startswith("data/tiny"):  # rehearsal: the same lines below on a tiny model
    LOAD_IN_4BIT = False
    DTYPE = torch.float32
    MAX_PIXELS = 37_632
    GRADIENT_CHECKPOINTING = False
    LORA_R = 32
    LORA_ALPHA = 64
    BATCH_SIZE = 2
    ACCUMULATION = 1
    LEARNING_RATE = 3e-3
    EVAL_BATCH = 30
    NEW_TOKENS = 90


# %% Data
def to_vision_row(row: dict) -> dict:
    """Return a row as TRL and Unsloth both take it: messages with places for the images, and the images."""
    asked = [{"type": "image", "text": ""} for _ in row["images"]] + [{"type": "text", "text": row["prompt"]}]
    return {
        "prompt": [{"role": "user", "content": asked}],
        "completion": [{"role": "assistant", "content": [{"type": "text", "text": row["answer"]}]}],
        "images": row["images"],
    }


if DATA.endswith(".xlsx"):
    raise SystemExit(f"First: python data/car_insurance/prepare.py {DATA}; then DATA=FOLDER/metadata.jsonl")
rows = load_dataset("imagefolder", data_files=DATA, split="train")
rows = rows.cast_column("images", List(Image(decode=False))).shuffle(seed=SEED)
train_rows = rows.filter(lambda row: row["split"] == "train", load_from_cache_file=False).to_list()
eval_rows = rows.filter(lambda row: row["split"] == "held_out", load_from_cache_file=False).to_list()
eval_rows = eval_rows[:EVAL_ROWS]
if not train_rows or len(eval_rows) < 2:
    raise SystemExit(f"{DATA}: no rows of other styles to hold out; data/car_insurance/prepare.py says why")
references = [json.loads(row["answer"]) for row in eval_rows]
message = [{"role": Value("string"), "content": [{"type": Value("string"), "text": Value("string")}]}]
features = Features({"prompt": message, "completion": message, "images": List(Image())})
train_dataset = Dataset.from_list([to_vision_row(row) for row in train_rows], features=features)
eval_dataset = Dataset.from_list([to_vision_row(row) for row in eval_rows], features=features)
styles = ", ".join(sorted({row["style"] for row in eval_rows}))
print(f"{len(train_rows)} rows to train on, {len(eval_rows)} held out in other styles: {styles}")
print(train_rows[0]["prompt"], "Trained on:", train_rows[0]["answer"], sep="\n")


# %% Model
if GPU:
    model, processor = FastVisionModel.from_pretrained(
        MODEL,
        dtype=DTYPE,
        load_in_4bit=LOAD_IN_4BIT,
        use_gradient_checkpointing=GRADIENT_CHECKPOINTING,
        trust_remote_code=False,
    )
    model = FastVisionModel.get_peft_model(
        model,
        r=LORA_R,
        lora_alpha=LORA_ALPHA,
        finetune_vision_layers=FINETUNE_VISION_LAYERS,
        finetune_language_layers=FINETUNE_LANGUAGE_LAYERS,
        finetune_attention_modules=FINETUNE_ATTENTION_MODULES,
        finetune_mlp_modules=FINETUNE_MLP_MODULES,
        use_gradient_checkpointing=GRADIENT_CHECKPOINTING,
        random_state=SEED,
    )
else:  # Unsloth's CPU backend has no vision models: the same adapter by PEFT, and TRL's own collator
    processor = AutoProcessor.from_pretrained(MODEL, trust_remote_code=False)
    model = AutoModelForImageTextToText.from_pretrained(MODEL, dtype=DTYPE, trust_remote_code=False)
    layers = "|".join(["visual"] * FINETUNE_VISION_LAYERS + ["language_model"] * FINETUNE_LANGUAGE_LAYERS)
    modules = ["q_proj|k_proj|v_proj|o_proj|qkv|attn.proj"] * FINETUNE_ATTENTION_MODULES
    modules += ["gate_proj|up_proj|down_proj|linear_fc1|linear_fc2"] * FINETUNE_MLP_MODULES
    targets = rf".*\b({layers})\..*\b({'|'.join(modules)})"
    torch.manual_seed(SEED)
    model = get_peft_model(model, LoraConfig(r=LORA_R, lora_alpha=LORA_ALPHA, target_modules=targets))
processor.image_processor.size = {"shortest_edge": 56 * 56, "longest_edge": MAX_PIXELS}
# The answers hold no thoughts: Qwen3.5 and its like, which think by default, do not either.
processor.chat_template = "{% set enable_thinking = False %}" + processor.chat_template
model.print_trainable_parameters()


# %% Before
def parse_json(text: object) -> dict | None:
    """Return the first JSON object in a text, which may stand in a code fence or a sentence, or None."""
    text = str(text)
    for found in islice(re.finditer(r'\{\s*["}]', text), 200):  # after so many broken ones none is an answer
        try:
            value, end = json.JSONDecoder().raw_decode(text, found.start())
        except (ValueError, RecursionError):  # broken, an integer of 5,000 digits, a thousand brackets
            continue
        nested = text.count("[", found.start(), end) + text.count("{", found.start(), end)
        return value if nested < 200 else None  # what reads it further on is recursive
    return None


UNITS = {"KM": "公里", "千米": "公里", "公里": "公里", "MI": "英里", "MILES": "英里", "英里": "英里"}


def letters_of(value: object) -> str:
    """Return a text in capitals and half-width, without spaces, inner hyphens and the dot of a plate."""
    return re.sub(r"[\s·•・‧]|(?<=\w)-", "", unicodedata.normalize("NFKC", str(value))).upper()


def normal(value: object) -> object:
    """Return what a field means: a number for 12,345 or 12345公里, 公里 for km, a plate without its dot."""
    if isinstance(value, list):
        return frozenset(map(normal, value)) - {"无", ""}
    text = letters_of(value)
    number = re.fullmatch(rf"(\d{{1,3}}(?:,\d{{3}})+|\d+)(\.\d+)?({'|'.join(UNITS)})?", text)
    return float(number[1].replace(",", "") + (number[2] or "")) if number else UNITS.get(text, text)


def error_rate(told: object, wanted: object) -> float:
    """Return the character error rate in [0, 1]: edits from told to wanted over the length of wanted."""
    told, wanted = letters_of(told or ""), letters_of(wanted)
    costs = list(range(len(wanted) + 1))
    for i, letter in enumerate(told[: 2 * len(wanted)], 1):  # twice as long: everything is wrong
        previous, costs[0] = costs[0], i
        for j, other in enumerate(wanted, 1):
            previous, costs[j] = costs[j], min(costs[j] + 1, costs[j - 1] + 1, previous + (letter != other))
    return min(1.0, costs[-1] / max(1, len(wanted)))


def score_rows(predictions: list, references: list[dict]) -> dict[str, list[float | None]]:
    """Return each row's scores, None where a field is not asked for; predictions are texts, dicts or None."""
    scores = {}
    for told, wanted in zip(predictions, references, strict=True):
        told = told if isinstance(told, dict) else parse_json(told)
        fields, right = told or {}, {}
        for name, value in wanted.items():
            given = fields.get(name)
            if isinstance(value, list) and isinstance(given, str):
                given = re.split("[、，,;；]", given)
            right[name] = float(name in fields and normal(given) == normal(value))
        meant, read = normal(wanted.get("里程数")), normal(fields.get("里程数"))
        numbers = isinstance(read, float) and isinstance(meant, float)
        off = min(1.0, abs(read - meant) / max(1.0, meant)) if numbers else float(read != meant)
        row = {"field_accuracy": sum(right.values()) / len(right), "json_rate": float(told is not None)}
        row |= {"mileage_accuracy": right.get("里程数"), "mileage_error": off if "里程数" in wanted else None}
        for name, field in (("plate_error_rate", "车牌号"), ("vin_error_rate", "VIN")):
            row[name] = error_rate(fields.get(field), wanted[field]) if field in wanted else None
        for name, value in row.items():
            scores.setdefault(name, []).append(value)
    return scores


def field_accuracy(predictions: list, references: list[dict]) -> dict[str, float]:
    """Return the means over the rows that ask for a score; field_accuracy is the share of right fields.

    mileage_error is relative and at most 1; the error rates of plates and VINs are by character.
    """
    scores = score_rows(predictions, references)
    known = {name: [value for value in values if value is not None] for name, values in scores.items()}
    return {name: sum(values) / len(values) for name, values in known.items() if values}


def read_photos(dataset: Dataset) -> list[tuple[str, bool]]:
    """Answer the prompts of rows about their images, greedily; return each text and whether it ended."""
    FastVisionModel.for_inference(model)
    model.generation_config.max_length = None  # NEW_TOKENS is the limit
    end_tokens = torch.tensor(model.generation_config.eos_token_id)
    answers = []
    for start in range(0, len(dataset), EVAL_BATCH):
        batch = dataset[start : start + EVAL_BATCH]
        inputs = processor(
            text=processor.apply_chat_template(batch["prompt"], tokenize=False, add_generation_prompt=True),
            images=batch["images"],
            return_tensors="pt",
            padding=True,
            padding_side="left",
            add_special_tokens=False,
        ).to(model.device)
        outputs = model.generate(**inputs, max_new_tokens=NEW_TOKENS, do_sample=False)
        for output in outputs[:, inputs["input_ids"].shape[1] :].cpu():
            text = processor.decode(output, skip_special_tokens=True).strip()
            answers.append((text, bool(torch.isin(output, end_tokens).any())))
    FastVisionModel.for_training(model)
    return answers


before = read_photos(eval_dataset)
print("Before:", field_accuracy([text for text, _ in before], references))

# %% Train
settings = {"DATA": DATA, "MAX_PIXELS": MAX_PIXELS, "LOAD_IN_4BIT": LOAD_IN_4BIT, "SEED": SEED}
settings |= {"LORA_R": LORA_R, "LORA_ALPHA": LORA_ALPHA, "LEARNING_RATE": LEARNING_RATE, "EPOCHS": EPOCHS}
settings |= {"BATCH_SIZE": BATCH_SIZE, "ACCUMULATION": ACCUMULATION, "MAX_STEPS": MAX_STEPS}
settings |= {"FINETUNE_VISION_LAYERS": FINETUNE_VISION_LAYERS, "NEW_TOKENS": NEW_TOKENS}
settings |= {"FINETUNE_LANGUAGE_LAYERS": FINETUNE_LANGUAGE_LAYERS}
settings |= {"FINETUNE_ATTENTION_MODULES": FINETUNE_ATTENTION_MODULES}
settings |= {"FINETUNE_MLP_MODULES": FINETUNE_MLP_MODULES}
config = SFTConfig(
    # A run with other settings or rows has another folder, so that RESUME never mixes two of them.
    output_dir=f"{OUTPUT}/checkpoints-{zlib.crc32(f'{MODEL}{settings}{train_rows}'.encode()):08x}",
    max_length=None,  # never cut: a row that loses image tokens cannot be trained on
    remove_unused_columns=False,
    dataset_kwargs={"skip_prepare_dataset": True},
    include_num_input_tokens_seen="all",
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
    per_device_eval_batch_size=1,  # the logits of one row fit wherever training does
    eval_on_start=True,
    eval_strategy="steps",
    eval_steps=0.2,
    save_steps=0.2,
    save_total_limit=2,
    load_best_model_at_end=True,
    logging_steps=0.02,
    logging_nan_inf_filter=False,  # show a NaN instead of leaving it out of the mean
    seed=SEED,
    report_to="none",  # "tensorboard", "wandb", "swanlab", "trackio"
)
collator = None  # TRL's own
if GPU:
    never = 10**6  # tokens: a row that is cut loses image tokens; MAX_PIXELS keeps rows short
    collator = UnslothVisionDataCollator(model, processor, never, resize="max", completion_only_loss=True)
trainer = SFTTrainer(
    model=model,
    processing_class=processor,
    data_collator=collator,
    train_dataset=train_dataset,
    eval_dataset=eval_dataset,
    callbacks=[EarlyStoppingCallback(early_stopping_patience=2)],
    args=config,
)
# trainer_state.json is the last file of a checkpoint to be written: with it a checkpoint is complete
files = Path(config.output_dir).glob("checkpoint-*/trainer_state.json")
newest = max(filter(os.path.getsize, files), key=os.path.getmtime, default=None) if RESUME else None
print(f"Continuing from {newest.parent}" if newest else "Starting from the base model")
trained = trainer.train(resume_from_checkpoint=str(newest.parent) if newest else None).metrics
if pd.isna(trained["train_loss"]):
    raise SystemExit("The loss is no number: halve LEARNING_RATE, or set DTYPE = torch.float32")
if os.getenv("RANK", "0") != "0":
    raise SystemExit  # of torchrun's processes the first one compares and saves
trainer.save_model(f"{OUTPUT}/lora")  # adapter and processor

# %% After
after = read_photos(eval_dataset)
print("After:", field_accuracy([text for text, _ in after], references))
answers = pd.DataFrame({"prompt": eval_dataset["prompt"], "reference": [row["answer"] for row in eval_rows]})
answers["input"] = [row["prompt"] for row in eval_rows]
answers["image"] = [[image["path"] for image in row["images"]] for row in eval_rows]
answers["style"] = [row["style"] for row in eval_rows]
answers[["before", "before_ended"]] = before
answers[["after", "after_ended"]] = after
answers.to_json(f"{OUTPUT}/answers.jsonl", orient="records", lines=True, force_ascii=False)

# %% Score
log = pd.DataFrame(trainer.state.log_history)
metrics = {
    "scenario": "car_insurance",
    "model": MODEL,
    "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU",
    "train": {
        "seconds": trained["train_runtime"],
        "steps": trainer.state.global_step,
        "tokens_per_second": trainer.state.num_input_tokens_seen / trained["train_runtime"],
        "peak_memory_gb": torch.cuda.max_memory_reserved() / 2**30,
        "trainable_parameters": model.get_nb_trainable_parameters()[0],
        "total_parameters": model.get_nb_trainable_parameters()[1],
    },
    "settings": settings,
    "versions": {name: version(name) for name in ("unsloth", "trl", "transformers", "peft", "torch")},
}
Path(OUTPUT, "metrics.json").write_text(json.dumps(metrics, ensure_ascii=False, indent=2), encoding="utf-8")
scored = subprocess.run(
    [sys.executable, "data/car_insurance/judge.py", OUTPUT], capture_output=True, text=True
)
print(f"Scored by: python data/car_insurance/judge.py {OUTPUT}\n{scored.stdout}{scored.stderr}")

# %% Save
axes = log.groupby("step")[["loss", "eval_loss"]].first().interpolate().plot(ylabel="loss per token")
axes.figure.savefig(f"{OUTPUT}/loss.png", dpi=150)
shutil.rmtree(config.output_dir)  # the run is complete


# %% Try it
def sentence(answer: dict) -> str:
    """Return an answer for people, as in 里程数：12,345 公里，仪表盘状态正常，警示灯：无。"""
    parts = []
    for name, value in answer.items():
        if isinstance(value, list):
            value = "、".join(map(str, value)) or "无"
        if isinstance(value, (int, float)) and not isinstance(value, bool):
            value = f"{value:,}" + (f" {answer['单位']}" if name == "里程数" and answer.get("单位") else "")
        if name != "单位" or "里程数" not in answer:
            parts.append(f"{name}{value}" if name.endswith("状态") else f"{name}：{value}")
    return "，".join(parts) + "。"


def read_photo(photo, prompt: str) -> tuple[str, dict]:
    """Return the sentence and the fields that the model reads from a PIL photo."""
    row = {"images": [{"bytes": None, "path": photo}], "prompt": prompt, "answer": ""}
    text, _ = read_photos(Dataset.from_list([to_vision_row(row)], features=features))[0]
    fields = parse_json(text)
    return (sentence(fields), fields) if fields else (text, {})


example = eval_rows[0]
print(example["prompt"], *read_photo(example["images"][0]["path"], example["prompt"]), sep="\n")
if DEMO:
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # read when gradio is imported
    import gradio
    from starlette.middleware import Middleware
    from starlette.middleware.trustedhost import TrustedHostMiddleware

    only_here = Middleware(TrustedHostMiddleware, allowed_hosts=["127.0.0.1", "localhost"])
    prompts = gradio.Dropdown(sorted({row["prompt"] for row in train_rows}), label="prompt")
    page = gradio.Interface(
        read_photo,
        inputs=[gradio.Image(type="filepath"), prompts],
        outputs=[gradio.Textbox(label="sentence"), gradio.JSON(label="fields")],
        flagging_mode="never",
        delete_cache=(600, 600),  # seconds: photos are not kept
    )
    page.launch(
        server_name="127.0.0.1",  # this machine only
        share=False,  # the default asks for a public address on Colab and Kaggle
        max_file_size="20mb",
        app_kwargs={"middleware": [only_here]},
    )
