# %% [markdown]
"""
# Reasoning (R1 style): GRPO of Qwen2.5-7B-Instruct on GSM8K

Teaches a model to reason before it answers, with GRPO (Group Relative Policy Optimization, DeepSeekMath
2402.03300): of several sampled answers to a question, those with more reward than their mean get likelier.

Run:    `python grpo_r1.py`; edit the constants under Settings, or set MODEL, DATA and OUTPUT
Needs:  a GPU with 12 GB (not measured yet); without one it rehearses on a tiny model in minutes
Data:   {"question": "How much are 2 pens at $12?", "answer": "2 x 12 = <<2*12=24>>24, then the line #### 24"}
Writes: OUTPUT/lora, metrics.json, report.md, reward.png
"""

# %% Imports
from unsloth import FastLanguageModel  # first: it patches trl, transformers and peft when it is imported

# isort: split
import hashlib
import json
import math
import os
import platform
import re
import shutil
import sys
import time
import zipfile
from fractions import Fraction
from importlib.metadata import version
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryFile

import numpy as np
import psutil
import torch
from datasets import Dataset, load_dataset
from matplotlib.figure import Figure
from peft import PeftModel, set_peft_model_state_dict
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, TrainerCallback
from trl import GRPOConfig, GRPOTrainer

# %% Settings
if "__file__" in globals() and not Path("data/tiny-qwen2.5").is_dir():  # started from another folder
    for name in {"MODEL", "DATA", "OUTPUT"} & set(os.environ):  # what was given stays where it was meant
        if name == "OUTPUT" or Path(os.environ[name]).exists():
            os.environ[name] = os.path.abspath(os.environ[name])
    os.chdir(Path(__file__).parent)
    print(f"Relative paths start in {Path.cwd()}")
GPU = torch.cuda.is_available()
DEVICE = torch.cuda.get_device_name() if GPU else f"CPU, {os.cpu_count()} cores"
MODEL = os.getenv("MODEL", "unsloth/Qwen2.5-7B-Instruct-bnb-4bit" if GPU else "data/tiny-qwen2.5")
DATA = os.getenv("DATA", "data/gsm8k.jsonl")  # JSON or JSONL rows, or a dataset of the hub: openai/gsm8k
OUTPUT = os.getenv("OUTPUT", "outputs/r1")
SYSTEM = "Answer in this form:\n<reasoning>\nyour steps\n</reasoning>\n<answer>\none number\n</answer>"

DTYPE = None  # None: bfloat16 where the hardware has it, else float16; or "float32"
LOAD_IN_4BIT = True  # NF4 weights; False needs 16 GB for the weights of 7B alone
FAST_INFERENCE = True  # sample with vLLM where it is installed and there is a GPU; False to sample without it
VLLM_MEMORY = 0.6  # share of the GPU for vLLM's cache and the weights, which training uses, too
PROMPT_LENGTH = 320  # tokens; rows with longer prompts are left out
NEW_TOKENS = 512  # longest completion. Out of memory: 320
GRADIENT_CHECKPOINTING = "unsloth"  # recompute activations: less memory, slower; False where memory allows

LORA_R = 32  # rank of the update, 8 to 64. Out of memory: 16
LORA_ALPHA = 32  # the update is scaled by alpha / r
TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]

NUM_GENERATIONS = 6  # answers to compare; fewer give noisier advantages. Out of memory: 4, ACCUMULATION = 4
BATCH_SIZE = 1  # completions in a forward pass
ACCUMULATION = 6  # forward passes in an optimizer step; times BATCH_SIZE, a multiple of NUM_GENERATIONS
MAX_STEPS = 250  # the first 50 show whether the reward rises
LEARNING_RATE = 5e-6
WARMUP = 0.1  # share of the steps
OPTIMIZER = "adamw_8bit"  # 2 bytes of state a trained parameter instead of 8
TEMPERATURE = 1.0  # of the samples; below 1 the answers of a group, and so their rewards, become alike
LOSS_TYPE = "dapo"  # each token weighs the same; "grpo", the paper's, makes wrong answers longer
BETA = 0.0  # weight of the KL term that holds the model near its base; 0.001 to 0.04 if the text degenerates
PATIENCE = 20  # steps in a row without anything to learn from until a message says what to change
SEED = 3407

EVAL_SHARE = 0.2  # of the rows
EVAL_ROWS = 100  # held-out problems to answer, before and after
EVAL_BATCH = 16  # problems answered at once. Out of memory in Before: 4
VOTES = 0  # 8: also sample so many answers to each problem and take the most frequent

RESUME = True  # go on from the newest checkpoint of an interrupted run with the same settings
TRAIN = True  # False: use the adapter in OUTPUT/lora as it is
EXPORT = "lora"  # "lora", "merged_16bit" or "gguf" (llama.cpp, Ollama); the adapter is always saved
GGUF_QUANT = "q4_k_m"  # or "q8_0", "bf16"
REPORT_TO = "none"  # "tensorboard", "wandb", "swanlab", "trackio"
TRY = "A ticket is $8, half for a child. What do two adults and three children pay?"  # for the last cell

if MODEL.startswith("data/tiny"):  # rehearsal: the same lines below, a tiny model, two minutes on two cores
    DATA = os.getenv("DATA", "data/sums.jsonl")  # problems that the tiny model gets right now and then
    SYSTEM = "You are a helpful assistant."  # it follows no instructions: this is what it was pretrained with
    PROMPT_LENGTH, NEW_TOKENS, LEARNING_RATE, MAX_STEPS, LORA_ALPHA = 96, 48, 5e-4, 60, 64
    BATCH_SIZE, ACCUMULATION, EVAL_ROWS, EVAL_BATCH = 48, 1, 150, 75
    GRADIENT_CHECKPOINTING, LOAD_IN_4BIT, FAST_INFERENCE, GGUF_QUANT = False, False, False, "q8_0"
    TRY = "What is 7 minus 3?"
settings = {name: value for name, value in list(globals().items()) if name.isupper()}
if NUM_GENERATIONS < 2 or BATCH_SIZE * ACCUMULATION % NUM_GENERATIONS:
    batch = f"BATCH_SIZE x ACCUMULATION = {BATCH_SIZE * ACCUMULATION}, NUM_GENERATIONS = {NUM_GENERATIONS}"
    raise SystemExit(f"Settings: {batch}; the first must be a multiple of the second, which is at least 2")
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
tokens = BATCH_SIZE * (PROMPT_LENGTH + NEW_TOKENS)
memory = memory_needed(shapes, LOAD_IN_4BIT, LORA_R, tokens, GRADIENT_CHECKPOINTING)
card = torch.cuda.get_device_properties(0).total_memory / 1e9 if torch.cuda.is_available() else math.inf
print(f"GPU memory: about {sum(memory.values()):.1f} GB:", *(f"{k} {v:.1f}" for k, v in memory.items()))
if sum(memory.values()) > card:
    print(f"The card has {card:.1f} GB: lower BATCH_SIZE, NEW_TOKENS or LORA_R, or take a smaller MODEL")


# %% Data
def extract_hash_answer(text: str) -> str | None:
    """Return what follows the last "####" on its line, None where nothing does: "... #### 24" gives "24"."""
    found = re.search(r".*####([^\n]*)", text, re.DOTALL)
    return (found[1].strip() or None) if found else None


def to_prompt(row: dict) -> dict:
    """Return a row in TRL's conversational form; only the rewards get to see the answer."""
    prompt = [{"role": "system", "content": SYSTEM}, {"role": "user", "content": row["question"]}]
    return {"prompt": prompt, "answer": extract_hash_answer(row["answer"])}


tokenizer = AutoTokenizer.from_pretrained(MODEL)
hub = {"path": DATA, "name": "main", "split": "train"}
local = {"path": "json", "data_files": DATA, "split": "train", "encoding": "utf-8-sig"}
try:
    rows = load_dataset(**(local if Path(DATA).suffix in (".json", ".jsonl") else hub))
    rows = {re.sub(r"\s", "", row["question"]): to_prompt(row) for row in rows}  # each question once
except Exception as error:  # the libraries below raise what they like
    raise SystemExit(f"Data: each row of {DATA} needs question and answer as texts: {error!r}") from None
usable = []
for row in rows.values():
    prompt = tokenizer.apply_chat_template(row["prompt"], tokenize=False, add_generation_prompt=True)
    if row["answer"] and len(tokenizer(prompt).input_ids) <= PROMPT_LENGTH:
        usable.append(row)
print(f"{DATA}: {len(rows)} questions, {len(rows) - len(usable)} too long or without #### left out")
if len(usable) < 2:
    raise SystemExit(f"Data: nothing to train on and to hold out: answers in {DATA} end in #### and a number")
parts = Dataset.from_list(usable).train_test_split(EVAL_SHARE, seed=SEED)
train_dataset, eval_rows = parts["train"], parts["test"].to_list()[:EVAL_ROWS]
print(f"{len(train_dataset)} to train on, {len(eval_rows)} held out; {row['answer']} answers this:\n{prompt}")

# %% Rewards
TAGS = ("<reasoning>", "</reasoning>", "<answer>", "</answer>")
TAG = "</?(?:reasoning|answer)>"
ANY = f"(?:(?!{TAG}).)*"  # no tag in it, so that none occurs twice
SOME = rf"\s*(?!{TAG})\S{ANY}"
SOFT = re.compile(rf"{ANY}<reasoning>{SOME}</reasoning>\s*<answer>{SOME}</answer>{ANY}", re.DOTALL)
STRICT = re.compile(r"\s*{}[ \t]*\n.*\n[ \t]*{}[ \t]*\n\s*{}[ \t]*\n.*\n[ \t]*{}\s*".format(*TAGS), re.DOTALL)
WIDE = str.maketrans("−－–＋，．％＄／", "---+,.%$/")
NUMBER = re.compile(  # sign or operator, number, denominator; not the 2 of m2
    r"([-+*/^×÷]?) ?[$€£¥￥]? ?(?<![a-zA-Z\d])((?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?|\.\d+)(?:/(\d+))?"
)
SCALED = re.compile(r"\d(?: ?(?:hundred|thousand|million|billion|dozen)|e[-+]?\d)", re.IGNORECASE)


def number_of(text: str) -> Fraction | None:
    """Return the one number that a text states, None without one, with two different ones or with a sum.

    "$1,000.00" is 1000, "24 apples" is 24, "1/2" a half; the percent sign is a unit as in GSM8K, "50%" is 50.
    A number that goes on in another numeral (5², 2½, 3万) or in a word like million is refused, not misread.
    """
    text, values = " ".join(text.translate(WIDE).split()), set()
    if SCALED.search(text) or any(a.isdecimal() and b.isnumeric() > b.isdecimal() for a, b in pairwise(text)):
        return None
    for place, (sign, digits, below) in enumerate(NUMBER.findall(text)):
        if sign in tuple("*/^×÷") or (sign and place) or len(values) > 1:
            return None
        try:
            values.add(Fraction(digits.replace(",", "")) / int(below or 1) * (-1 if sign == "-" else 1))
        except (ValueError, ZeroDivisionError):  # too many digits for int; divided by zero
            return None
    return values.pop() if len(values) == 1 else None


def extract_xml_answer(text: str) -> str:
    """Return what stands in the answer tags, "" unless there is exactly one pair of them."""
    parts = re.split("(</?answer>)", text)
    return parts[2].strip() if parts[1::2] == ["<answer>", "</answer>"] else ""


def texts_of(completions: list) -> list[str]:
    """Return the texts of completions, which TRL gives as strings or as lists of one message."""
    return [text if isinstance(text, str) else text[-1]["content"] or "" for text in completions]


def correctness_reward_func(prompts, completions, answer, **kwargs) -> list[float]:
    """Return 2.0 where the tagged answer equals the right one, as a number if that is one, else 0."""
    scores = []
    for text, right in zip(texts_of(completions), map(str, answer)):
        given, value = extract_xml_answer(text), number_of(right)
        scores.append(2.0 * (given == right.strip() if value is None else number_of(given) == value))
    return scores


def int_reward_func(prompts, completions, answer=None, **kwargs) -> list[float]:
    """Return 0.5 where the tagged answer is a whole number ("-3", "1,000", "$24.00") and no more, else 0."""
    scores = []
    for text in texts_of(completions):
        given = extract_xml_answer(text).translate(WIDE).strip("$€£¥￥% ")
        value = number_of(given) if NUMBER.fullmatch(given) and "/" not in given else None
        scores.append(0.5 * (value is not None and value.denominator == 1))
    return scores


def strict_format_reward_func(prompts, completions, answer=None, **kwargs) -> list[float]:
    """Return 0.5 where a text is both pairs of tags, filled, once, each tag on a line of its own, else 0."""
    texts = [text.replace("\r\n", "\n") for text in texts_of(completions)]
    return [0.5 * bool(SOFT.fullmatch(text) and STRICT.fullmatch(text)) for text in texts]


def soft_format_reward_func(prompts, completions, answer=None, **kwargs) -> list[float]:
    """Return 0.5 where a text holds both pairs of tags, filled, once and in order, else 0."""
    return [0.5 * bool(SOFT.fullmatch(text)) for text in texts_of(completions)]


def xmlcount_reward_func(prompts, completions, answer=None, **kwargs) -> list[float]:
    """Return 0.125 for each tag that is there once and in its place, which for the last one is the end."""
    scores = []
    for text in texts_of(completions):
        tags, score = re.findall(TAG, text), 0.0
        for i, tag in enumerate(TAGS):
            early = tags.count(tag) == 1 and not set(TAGS[i + 1 :]) & set(tags[: tags.index(tag)])
            score += 0.125 * (early and (i < 3 or text.rstrip().endswith(tag)))
        scores.append(score)
    return scores


def mean_and_interval(values: list[float | None]) -> tuple[float, float, float]:
    """Return the mean and its bootstrap 95% interval, over the values that are not None."""
    numbers = np.array([value for value in values if value is not None] or [math.nan])
    means = np.random.default_rng(0).choice(numbers, (2000, len(numbers))).mean(1)
    return float(numbers.mean()), *map(float, np.percentile(means, [2.5, 97.5]))


# %% Model
fast_inference = FAST_INFERENCE and torch.cuda.is_available() and find_spec("vllm") is not None
why = "vLLM" if fast_inference else "the model itself: no GPU, no vLLM, or FAST_INFERENCE is off"
print(f"Samples come from {why}")
model, tokenizer = FastLanguageModel.from_pretrained(
    MODEL, max_seq_length=PROMPT_LENGTH + NEW_TOKENS, load_in_4bit=LOAD_IN_4BIT,
    dtype=getattr(torch, DTYPE or "", None), use_gradient_checkpointing=GRADIENT_CHECKPOINTING,
    fast_inference=fast_inference, max_lora_rank=LORA_R, gpu_memory_utilization=VLLM_MEMORY,
)  # fmt: skip
model = FastLanguageModel.get_peft_model(
    model, r=LORA_R, lora_alpha=LORA_ALPHA, lora_dropout=0, bias="none", target_modules=TARGETS,
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


def vote(turns: list[dict]) -> Fraction | None:
    """Return the most frequent number in VOTES sampled answers to a chat prompt, None if none gives one."""
    FastLanguageModel.for_inference(model)
    prompt = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
    inputs = tokenizer(prompt, return_tensors="pt", add_special_tokens=False).to(model.device)
    sampling = {"do_sample": True, "temperature": TEMPERATURE, "top_p": 1.0, "top_k": 0}
    outputs = model.generate(**inputs, max_new_tokens=NEW_TOKENS, num_return_sequences=VOTES, **sampling)
    FastLanguageModel.for_training(model)
    texts = tokenizer.batch_decode(outputs[:, inputs.input_ids.shape[1] :], skip_special_tokens=True)
    values = [value for value in map(number_of, map(extract_xml_answer, texts)) if value is not None]
    return max(values, key=values.count, default=None)


def score_model() -> tuple[list[str], dict[str, list[float]]]:
    """Answer the held-out problems; return the texts and metric -> one value a problem, 0 or 1."""
    texts, ended = generate([row["prompt"] for row in eval_rows])
    answers = [row["answer"] for row in eval_rows]
    scores = {"accuracy": [score / 2 for score in correctness_reward_func(None, texts, answers)]}
    scores["format_rate"] = [score * 2 for score in strict_format_reward_func(None, texts)]
    scores["ended_by_itself"] = [float(end) for end in ended]
    if VOTES:
        votes = [vote(row["prompt"]) for row in eval_rows]
        scores[f"accuracy_of_{VOTES}_votes"] = [float(v == number_of(a)) for v, a in zip(votes, answers)]
    return texts, scores


before_texts, before = score_model()
print(f"Before: accuracy {mean_and_interval(before['accuracy'])[0]:.3f}")


# %% Train
class Watch(TrainerCallback):
    """Stop when the loss is no number; every PATIENCE steps say what to change if none could teach."""

    def on_log(self, args, state, control, logs=None, **kwargs):
        if not math.isfinite((logs or {}).get("loss", 0.0)):
            where = f"The loss is {logs['loss']} at step {state.global_step}"
            raise SystemExit(f"{where}: halve LEARNING_RATE, or set DTYPE = 'float32'")
        last = [entry for entry in state.log_history if "reward" in entry][-PATIENCE:]
        if len(last) == PATIENCE and state.global_step % PATIENCE == 0:
            if all(entry["completions/clipped_ratio"] == 1 for entry in last):
                print(f"For {PATIENCE} steps all completions were cut: raise NEW_TOKENS, or change SYSTEM")
            if all(entry["frac_reward_zero_std"] == 1 for entry in last):
                print(f"For {PATIENCE} steps reward_std was 0 in every group, so nothing was learned: raise")
                print("TEMPERATURE or NUM_GENERATIONS, or take problems in DATA that go right now and then")
            if all(entry["reward"] == 0 for entry in last):
                raise SystemExit("No reward at all: take easier DATA, or a MODEL that follows SYSTEM")


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


rewards = [correctness_reward_func, int_reward_func]
rewards += [strict_format_reward_func, soft_format_reward_func, xmlcount_reward_func]
same_run = {name: value for name, value in settings.items() if name not in ("RESUME", "TRAIN", "EXPORT")}
fingerprint = hashlib.sha256(json.dumps([same_run, usable], sort_keys=True).encode()).hexdigest()[:8]
checkpoints = Path(OUTPUT) / f"checkpoints-{fingerprint}"  # other settings are another run
config = GRPOConfig(
    output_dir=str(checkpoints), max_steps=MAX_STEPS, seed=SEED, data_seed=SEED, report_to=REPORT_TO,
    num_generations=NUM_GENERATIONS, max_completion_length=NEW_TOKENS, temperature=TEMPERATURE,
    per_device_train_batch_size=BATCH_SIZE, gradient_accumulation_steps=ACCUMULATION, shuffle_dataset=True,
    loss_type=LOSS_TYPE, beta=BETA, scale_rewards="group",
    epsilon=0.2, epsilon_high=0.28, mask_truncated_completions=True,  # DAPO's, which Unsloth sets on a GPU
    learning_rate=LEARNING_RATE, lr_scheduler_type="cosine", warmup_steps=math.ceil(WARMUP * MAX_STEPS),
    optim=OPTIMIZER, adam_beta2=0.99, weight_decay=0.1, max_grad_norm=0.1,
    bf16=model.dtype == torch.bfloat16, fp16=model.dtype == torch.float16,
    gradient_checkpointing=bool(GRADIENT_CHECKPOINTING), logging_steps=1,
    logging_nan_inf_filter=False,  # a NaN shall be seen, not left out of the mean
    save_strategy="steps", save_steps=max(1, MAX_STEPS // 10), save_total_limit=2,
)  # fmt: skip
trainer = GRPOTrainer(
    model=model, args=config, processing_class=tokenizer, train_dataset=train_dataset, reward_funcs=rewards,
    callbacks=[Watch()],
)  # fmt: skip
adapter, started, first_step = Path(OUTPUT) / "lora", time.time(), 0
if TRAIN:
    newest = newest_checkpoint(checkpoints) if RESUME else None
    first_step = int(newest.rpartition("-")[2]) if newest else 0
    print(f"Going on from {newest}" if newest else f"Training for {MAX_STEPS} steps")
    try:
        trainer.train(resume_from_checkpoint=newest)
    except (OSError, RuntimeError):  # PyTorch's words for a full disk are no help
        if shutil.disk_usage(OUTPUT).free > 2**24:
            raise
        raise SystemExit(f"No space left in {OUTPUT}: make room and run this again, it goes on") from None
else:
    set_peft_model_state_dict(model, load_file(adapter / "adapter_model.safetensors"))
seconds, done = time.time() - started, trainer.state.global_step
history = [entry for entry in trainer.state.log_history if "reward" in entry]
lengths = [entry["completions/mean_length"] for entry in history if entry["step"] > first_step]
tokens = sum(lengths) * BATCH_SIZE * ACCUMULATION  # of this session

# %% After
after_texts, after = score_model()
table = "| held-out problems | before | after |\n|---|---|---|\n"
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
gained = [entry["reward"] for entry in history]
first, last = (mean_and_interval(part)[0] if part else None for part in (gained[:10], gained[-10:]))
peak = torch.cuda.max_memory_reserved() or psutil.Process().memory_info().rss  # on a CPU: what is held now
metrics = {
    "scenario": "r1", "model": MODEL, "device": DEVICE,
    "before": {name: round(mean_and_interval(values)[0], 6) for name, values in before.items()},
    "after": {name: round(mean_and_interval(values)[0], 6) for name, values in after.items()},
    "train": {
        "seconds": round(seconds, 1), "steps": done, "tokens_per_second": round(tokens / seconds, 1),
        "reward_first_10": first, "reward_last_10": last,  # mean total reward of so many steps
        "peak_memory_gb": round(peak / 2**30, 2),
        "trainable_parameters": trainable, "total_parameters": total,
    },
    "settings": settings,
    "versions": {"python": platform.python_version(), **{name: version(name) for name in packages}},
}  # fmt: skip
write_text(output / "metrics.json", json.dumps(metrics, ensure_ascii=False, indent=2))

panels = {"reward": ["reward"] + [f"rewards/{reward.__name__}/mean" for reward in rewards]}
panels |= {"spread": ["reward_std", "frac_reward_zero_std"], "tokens": ["completions/mean_length"]}
panels |= {"share that was cut": ["completions/clipped_ratio"]}
figure = Figure(figsize=(10, 12), layout="constrained")
for axes, (label, names) in zip(figure.subplots(len(panels)), panels.items()):
    for name in names:
        axes.plot([entry["step"] for entry in history], [entry[name] for entry in history], label=name)
    axes.set(xlabel="step", ylabel=label)
    axes.legend(fontsize="x-small", loc="upper left", bbox_to_anchor=(1, 1))
figure.savefig(output / "reward.tmp.png", dpi=150, bbox_inches="tight")
os.replace(output / "reward.tmp.png", output / "reward.png")

report = f"# r1: {MODEL} on {DEVICE}\n\n"
if MODEL.startswith("data/tiny"):
    report += "**A rehearsal with a tiny model: what it writes is of no use to anyone.**\n\n"
report += f"{table}\n{len(eval_rows)} problems that are not in training, answered greedily; mean and "
report += "bootstrap 95% interval.\n\n![reward](reward.png)\n"
order = sorted(range(len(eval_rows)), key=lambda i: before["accuracy"][i] - after["accuracy"][i])
for i in dict.fromkeys(order[:2] + order[-1:]):  # two that were learned, one that was lost if there is one
    report += f"\n## {eval_rows[i]['prompt'][1]['content']}\n\nRight: {eval_rows[i]['answer']}\n"
    report += f"\n### Before\n\n```\n{before_texts[i]}\n```\n\n### After\n\n```\n{after_texts[i]}\n```\n"
report += f"\n## Run\n\n```json\n{json.dumps(metrics['train'] | metrics['versions'], indent=1)}\n```\n"
write_text(output / "report.md", report)
shutil.rmtree(checkpoints, ignore_errors=True)  # the run is complete: the next one starts afresh
print(f"Saved in {OUTPUT}: lora, metrics.json, report.md, reward.png")
if EXPORT != "lora":
    export(adapter, EXPORT, GGUF_QUANT)

# %% Try it
texts, _ = generate([to_prompt({"question": TRY, "answer": ""})["prompt"]])
print(f"{TRY}\n\n{texts[0]}")
