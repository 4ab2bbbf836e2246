# %% [markdown]
"""
# Medical questions (医疗问答): LoRA, QLoRA or full SFT of Qwen2.5-7B-Instruct

Trains on subsets of growing size and says what more data changes: held-out loss, an exam, safety, forgetting.
Research only: no diagnosis, no treatment. In an emergency in China call 120.

Run:    `uv run sft_medical.py`, or paste the cells into Colab or Kaggle and run them in order
Needs:  a GPU with 12 GB; without one a tiny model rehearses every line in some minutes
Data:   {"instruction": "请回答患者的问题。", "input": "宝宝发烧38.5度，精神好，要去医院吗？", "output": "……"}
Writes: OUTPUT/lora, answers.jsonl, metrics.json, report.md, results.csv, loss.png, scaling.png
"""

# %% Imports
import os

os.environ["UNSLOTH_DISABLE_STATISTICS"] = "1"  # nothing about this machine is sent
os.environ["GOMP_SPINCOUNT"] = "1000"  # threads that wait leave their core to other programs
from unsloth import FastLanguageModel  # before trl, transformers and peft: importing it patches them

import gc
import json
import shutil
import subprocess
import sys
import zlib
from importlib.metadata import version
from itertools import islice
from pathlib import Path
from threading import Thread

import matplotlib.pyplot as plt
import pandas as pd
import torch
from datasets import Dataset, load_dataset
from transformers import AutoTokenizer, EarlyStoppingCallback, TextIteratorStreamer
from trl import SFTConfig, SFTTrainer

# %% Settings
MODEL = "unsloth/Qwen2.5-7B-Instruct-bnb-4bit" if torch.cuda.is_available() else "data/tiny-qwen2.5"
MODEL = os.getenv("MODEL", MODEL)
DATA = os.getenv("DATA", "data/medical")  # a folder with train, val, test and gold.jsonl of prepare.py
OUTPUT = os.getenv("OUTPUT", "outputs/medical")
GENERAL = "data/general/rows.jsonl"  # everyday questions: what is forgotten shows here
RED_TEAM = "data/medical/red_team.jsonl"  # prompts to which an answer can do harm
EXAM = "data/medical/exam.jsonl"  # choices with one or more right letters; a CMB-Exam file works as well
SYSTEM = "你是谨慎的健康科普助手，不作诊断，不开处方；遇到急症先让患者拨打120或去急诊。"

RUNS = [("qlora", 10_000)]  # (lora, qlora or full; rows). A study: several, smaller subsets are nested
EQUAL_STEPS = -1  # a positive number: so many optimizer steps in every run, whatever its size
MAX_LENGTH = 1024  # tokens of prompt and answer; longer rows are dropped. Out of memory: 512
DTYPE = None  # None: bfloat16, or float16 on a T4. A loss that is no number: torch.float32
GRADIENT_CHECKPOINTING = "unsloth"  # False is faster where memory allows
LORA_R = 16  # rank of the update, 8 to 64. Out of memory: 8
LORA_ALPHA = 32  # the update is scaled by alpha / r

BATCH_SIZE = 8  # rows in a forward pass. Out of memory: 2, with ACCUMULATION = 4
ACCUMULATION = 1  # forward passes in an optimizer step
EPOCHS = 3
LEARNING_RATE = 1e-4  # 1e-4 to 2e-4 for LoRA; 5e-6 for "full", where 16 GB hold 1.7B and 12 GB do not
REPLAY_SHARE = 0.0  # general rows added to the training, as a share of it: 0.1 to 0.3 against forgetting
RESUME = True  # continue an interrupted run with the same settings from its newest checkpoint
SEED = 3407

VAL_ROWS = 500  # for the loss that chooses the best checkpoint
EVAL_ROWS = 200  # of test, gold rows first, to answer before and after
ASKED_ROWS = 500  # red-team prompts and exam questions to answer, of each
GENERAL_ROWS = 60  # general rows whose loss is measured; REPLAY_SHARE takes the others
EVAL_BATCH = 8  # answers generated at once. Out of memory: 2
NEW_TOKENS = 768  # longest answer
DEMO = False  # True: a chat page on http://127.0.0.1:7860

if MODEL.startswith("data/tiny"):  # rehearsal: the same lines below on a tiny model
    RUNS = [("lora", 60), ("lora", 440)]
    MAX_LENGTH = 220
    LORA_R = 32
    LORA_ALPHA = 64
    GRADIENT_CHECKPOINTING = False
    BATCH_SIZE = 4
    LEARNING_RATE = 4e-3
    VAL_ROWS = 12
    EVAL_ROWS = 48
    ASKED_ROWS = 8
    GENERAL_ROWS = 24
    EVAL_BATCH = 64
    NEW_TOKENS = 100


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


def first_rows(path: str, count: int) -> list[dict]:
    """Return the first usable rows of a JSONL file; data/medical/prepare.py has shuffled them."""
    dataset = load_dataset("json", data_files=path, split="train")
    return list(islice(filter(usable, dataset), count))


def read_json(path: str) -> list[dict]:
    """Return the objects of a JSON list or of a JSONL file."""
    text = Path(path).read_text(encoding="utf-8-sig")
    return json.loads(text) if text.startswith("[") else [json.loads(line) for line in text.splitlines()]


def exam_question(row: dict) -> str:
    """Return an exam question with its options, one a line; an option may be missing."""
    options = [f"{letter}. {text}" for letter, text in row["option"].items() if text]
    return "\n".join([f"（{row['question_type']}）{row['question']}", *options])


PLAIN = "请回答患者的问题。"
THINK = "请先在<think>和</think>之间写出思考过程，再回答患者的问题。"
CHOOSE = "请做下面的选择题，只输出正确选项的字母。"
tokenizer = AutoTokenizer.from_pretrained(MODEL, trust_remote_code=False)
# Qwen3 and its like think by default; here they do where the prompt asks for it.
template = "{% set enable_thinking = '<think>' in messages | string %}" + tokenizer.get_chat_template()
tokenizer.chat_template = template
if not Path(DATA, "gold.jsonl").exists():
    raise SystemExit(f"{DATA} has no train, val, test and gold.jsonl: see data/medical/prepare.py")
train_rows = first_rows(f"{DATA}/train.jsonl", max(size for _, size in RUNS))
val_rows = first_rows(f"{DATA}/val.jsonl", VAL_ROWS)
gold_rows = first_rows(f"{DATA}/gold.jsonl", EVAL_ROWS)  # the best answers of test
gold = {row["input"] for row in gold_rows}
more_rows = [row for row in first_rows(f"{DATA}/test.jsonl", 2 * EVAL_ROWS) if row["input"] not in gold]
test_rows = (gold_rows + more_rows)[:EVAL_ROWS]
general_rows = first_rows(GENERAL, 100_000) if Path(GENERAL).exists() else []
eval_dataset = {
    "val": Dataset.from_list(list(map(to_prompt_completion, val_rows))),
    "loss": Dataset.from_list(list(map(to_prompt_completion, test_rows))),
}
if general_rows:
    general = list(map(to_prompt_completion, general_rows[:GENERAL_ROWS]))
    eval_dataset["general_loss"] = Dataset.from_list(general)
print(f"{len(train_rows)} rows to train on, {len(val_rows)} and {len(test_rows)} held out")

# What is answered before and after: held-out questions, red-team prompts, exam questions.
asked = [{**row, "kind": "think" if row["instruction"] == THINK else "qa"} for row in test_rows]
if Path(RED_TEAM).exists():
    for row in read_json(RED_TEAM)[:ASKED_ROWS]:
        asked.append({**row, "kind": "red_team", "instruction": PLAIN, "input": row["prompt"]})
if Path(EXAM).exists():
    for row in read_json(EXAM)[:ASKED_ROWS]:
        asked.append({**row, "kind": "exam", "instruction": CHOOSE, "input": exam_question(row)})
for row in asked:
    row["gold"] = row["kind"] in ("qa", "think") and row["input"] in gold
prompts = [to_prompt_completion({"output": "", **row})["prompt"] for row in asked]
example = to_prompt_completion(train_rows[0])
print(tokenizer.apply_chat_template(example["prompt"] + example["completion"], tokenize=False))
print("Trained on:", example["completion"][0]["content"], "and the token that ends it")


# %% Model
def load_model(method: str):
    """Return model and tokenizer: 4-bit weights with an adapter, 16-bit with an adapter, or 16-bit alone."""
    model, tokenizer = FastLanguageModel.from_pretrained(
        MODEL if method == "qlora" else MODEL.removesuffix("-bnb-4bit").removesuffix("-unsloth"),
        max_seq_length=MAX_LENGTH,
        dtype=DTYPE,
        load_in_4bit=method == "qlora",
        full_finetuning=method == "full",
        use_gradient_checkpointing=GRADIENT_CHECKPOINTING,
        trust_remote_code=False,
    )
    tokenizer = getattr(tokenizer, "tokenizer", tokenizer)  # a model that sees brings a processor
    tokenizer.chat_template = template
    if method == "full":
        return model, tokenizer
    model = FastLanguageModel.get_peft_model(
        model,
        r=LORA_R,
        lora_alpha=LORA_ALPHA,
        target_modules=["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"],
        use_gradient_checkpointing=GRADIENT_CHECKPOINTING,
        random_state=SEED,
    )
    return model, tokenizer


loaded = RUNS[0][0]
model, tokenizer = load_model(loaded)


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


before_answers = generate(prompts)


# %% Train
def row_losses(dataset: Dataset) -> list[float]:
    """Return the loss of each row of an evaluation set, in nats per token of the completion."""
    model.eval()
    batches = [trainer.data_collator([row]) for row in dataset]
    return [trainer.prediction_step(model, batch, prediction_loss_only=True)[0].item() for batch in batches]


folders = {run: Path(OUTPUT, "-".join(map(str, run))) for run in RUNS}
folders[RUNS[-1]] = Path(OUTPUT)  # the largest run's adapter and report stand where one looks first
trainer = None
for method, size in RUNS:
    folder, subset = folders[method, size], train_rows[:size]
    subset += general_rows[GENERAL_ROWS:][: int(REPLAY_SHARE * size)]
    settings = {"DATA": DATA, "SYSTEM": SYSTEM, "MAX_LENGTH": MAX_LENGTH, "METHOD": method, "ROWS": size}
    settings |= {"LORA_R": LORA_R, "LORA_ALPHA": LORA_ALPHA, "LEARNING_RATE": LEARNING_RATE, "SEED": SEED}
    settings |= {"BATCH_SIZE": BATCH_SIZE, "ACCUMULATION": ACCUMULATION, "EPOCHS": EPOCHS}
    settings |= {"EQUAL_STEPS": EQUAL_STEPS, "REPLAY_SHARE": REPLAY_SHARE, "NEW_TOKENS": NEW_TOKENS}
    finished = Path(folder, "metrics.json")
    if RESUME and folder != Path(OUTPUT) and finished.exists():
        if json.loads(finished.read_text(encoding="utf-8"))["settings"] == settings:
            continue  # a smaller run of an interrupted study
    if trainer or method != loaded:
        trainer = model = None  # frees the memory of the run before
        gc.collect()
        torch.cuda.empty_cache()
        model, tokenizer = load_model(loaded := method)
    config = SFTConfig(
        # A run with other settings or rows has another folder, so that RESUME never mixes two of them.
        output_dir=f"{folder}/checkpoints-{zlib.crc32(f'{MODEL}{settings}{subset}'.encode()):08x}",
        max_length=MAX_LENGTH,
        dataset_num_proc=0,  # in this process: starting others takes longer than tokenizing
        per_device_train_batch_size=BATCH_SIZE,
        gradient_accumulation_steps=ACCUMULATION,
        num_train_epochs=EPOCHS,
        max_steps=EQUAL_STEPS,
        learning_rate=LEARNING_RATE,
        lr_scheduler_type="cosine",
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
        include_num_input_tokens_seen="non_padding",
        logging_nan_inf_filter=False,  # show a NaN instead of leaving it out of the mean
        seed=SEED,
        report_to="none",  # "tensorboard", "wandb", "swanlab", "trackio"
    )
    trainer = SFTTrainer(
        model=model,
        processing_class=tokenizer,
        train_dataset=Dataset.from_list(list(map(to_prompt_completion, subset))),
        eval_dataset=eval_dataset,
        callbacks=[EarlyStoppingCallback(early_stopping_patience=2)],
        args=config,
    )
    eval_sets = trainer.eval_dataset  # as TRL has tokenized them
    trainer.eval_dataset = eval_sets.pop("val")  # test has no say in which checkpoint is best
    losses = {"before": {name: row_losses(rows) for name, rows in eval_sets.items()}}
    # trainer_state.json is the last file of a checkpoint to be written: with it a checkpoint is complete
    files = Path(config.output_dir).glob("checkpoint-*/trainer_state.json")
    newest = max(filter(os.path.getsize, files), key=os.path.getmtime, default=None) if RESUME else None
    print(f"Continuing from {newest.parent}" if newest else "Starting from the base model")
    trained = trainer.train(resume_from_checkpoint=str(newest.parent) if newest else None).metrics
    if pd.isna(trained["train_loss"]):
        raise SystemExit("The loss is no number: halve LEARNING_RATE, or set DTYPE = torch.float32")
    trainer.save_model(f"{folder}/{'full' if method == 'full' else 'lora'}")

    losses["after"] = {name: row_losses(rows) for name, rows in eval_sets.items()}
    if os.getenv("RANK", "0") != "0":
        raise SystemExit  # of torchrun's processes the first one goes on
    answers = pd.DataFrame(asked)
    answers["prompt"] = prompts
    answers["reference"] = answers.pop("output")
    answers[["before", "before_ended"]] = before_answers
    answers[["after", "after_ended"]] = generate(prompts)
    answers.to_json(f"{folder}/answers.jsonl", orient="records", lines=True, force_ascii=False)
    log = pd.DataFrame(trainer.state.log_history)
    parameters = [(weight.numel(), weight.requires_grad) for weight in model.parameters()]
    metrics = {
        "scenario": "medical",
        "model": MODEL,
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU",
        "train": {
            "seconds": trained["train_runtime"],
            "steps": trainer.state.global_step,
            "tokens_per_second": log["train_tokens_per_second"].dropna().iloc[-1],
            "peak_memory_gb": torch.cuda.max_memory_reserved() / 2**30,
            "trainable_parameters": sum(size for size, trained in parameters if trained),
            "total_parameters": sum(size for size, _ in parameters),
        },
        "losses": losses,
        "settings": settings,
        "versions": {name: version(name) for name in ("unsloth", "trl", "transformers", "peft", "torch")},
    }
    finished.write_text(json.dumps(metrics, ensure_ascii=False, indent=2), encoding="utf-8")
    axes = log.groupby("step")[["loss", "eval_loss"]].first().interpolate().plot(ylabel="loss per token")
    axes.figure.savefig(f"{folder}/loss.png", dpi=150)
    shutil.rmtree(config.output_dir)  # the run is complete

# %% After
# A study has several tuned models, each of which has answered within the loop: two answers of the last one.
for answer in answers.head(2).to_dict("records"):
    print(answer["input"], answer["before"], answer["after"], sep="\n\n", end="\n\n")

# %% Score
results = []
for (method, size), folder in folders.items():
    scored = subprocess.run(
        [sys.executable, "data/medical/judge.py", str(folder)],
        capture_output=True,
        text=True,
    )
    print(f"Scored by: python data/medical/judge.py {folder}\n{scored.stdout}{scored.stderr}")
    metrics = json.loads(Path(folder, "metrics.json").read_text(encoding="utf-8"))
    results.append({"method": method, "rows": size, **metrics["train"], **metrics.get("after", {})})

# %% Save
results = pd.DataFrame(results)
results.to_csv(f"{OUTPUT}/results.csv", index=False)
shown = [name for name in ("loss", "exam_accuracy", "red_team_pass_rate", "general_loss") if name in results]
if shown:  # the judge was there
    figure, panels = plt.subplots(
        1, len(shown), figsize=(4 * len(shown), 3.5), squeeze=False, layout="constrained"
    )
    for panel, name in zip(panels[0], shown):
        for method, runs in results.groupby("method"):
            runs.plot(x="rows", y=name, style="o-", label=method, title=name, ax=panel)
    figure.savefig(f"{OUTPUT}/scaling.png", dpi=150)
    with open(f"{OUTPUT}/report.md", "a", encoding="utf-8") as file:
        file.write("\n![what more rows change](scaling.png)\n")


# %% Try it
TRY = "我父亲突然胸口压榨样疼痛，出了一身冷汗，已经二十分钟了，怎么办？"
PREDICT = ""  # a JSONL file with question in each row, answered in OUTPUT/predictions.jsonl
DISCLAIMER = "仅供研究，不作诊断，不能代替医生；紧急情况请立即拨打120。"


def chat(message: str, history: list):
    """Yield the answer to a question as it grows, its thoughts folded."""
    prompt = to_prompt_completion({"instruction": THINK, "input": message, "output": ""})["prompt"]
    options = {"add_generation_prompt": True, "return_dict": True, "return_tensors": "pt"}
    inputs = tokenizer.apply_chat_template(prompt, **options)
    streamer = TextIteratorStreamer(tokenizer, skip_prompt=True, skip_special_tokens=True, timeout=120)
    options = {**inputs.to(model.device), "streamer": streamer, "max_new_tokens": NEW_TOKENS}
    Thread(target=model.generate, kwargs={**options, "do_sample": False}, daemon=True).start()
    text = ""
    for piece in streamer:
        text += piece
        thought, closed, answer = text.strip().removeprefix("<think>").partition("</think>")
        parts = [answer if closed else text]
        if text.strip().startswith("<think>"):
            folded = {"title": "思考过程", "status": "done" if closed else "pending"}
            parts = [{"role": "assistant", "content": thought, "metadata": folded}] + [answer] * bool(closed)
        yield parts


answer, _ = generate([to_prompt_completion({"instruction": PLAIN, "input": TRY, "output": ""})["prompt"]])[0]
print(f"{TRY}\n\n{answer}\n\n{DISCLAIMER}")
if PREDICT:
    questions = [row.get("question") or row["input"] for row in read_json(PREDICT)]
    rows = [{"instruction": PLAIN, "input": question, "output": ""} for question in questions]
    predictions = pd.DataFrame({"question": questions})
    predictions[["answer", "ended"]] = generate([to_prompt_completion(row)["prompt"] for row in rows])
    predictions.to_json(f"{OUTPUT}/predictions.jsonl", orient="records", lines=True, force_ascii=False)
if DEMO:
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # read when gradio is imported
    import gradio
    from starlette.middleware import Middleware
    from starlette.middleware.trustedhost import TrustedHostMiddleware

    only_here = Middleware(TrustedHostMiddleware, allowed_hosts=["127.0.0.1", "localhost"])
    FastLanguageModel.for_inference(model)
    with gradio.Blocks(title="医疗问答") as page:
        gradio.Markdown(f"**{DISCLAIMER}**")
        gradio.ChatInterface(chat)
    page.queue(default_concurrency_limit=1).launch(
        server_name="127.0.0.1",  # this machine only
        share=False,  # the default asks for a public address on Colab and Kaggle
        app_kwargs={"middleware": [only_here]},
    )
