# %% [markdown]
"""
# Reasoning (R1 style): GRPO of Qwen2.5-7B-Instruct on GSM8K

Teaches a model to reason before it answers, with GRPO (Group Relative Policy Optimization, DeepSeekMath
2402.03300): of several sampled answers to a question, those with more reward than their mean get likelier.
A 7B-Instruct solves 91% of GSM8K before: for a gain that shows, take unsloth/Qwen2.5-1.5B-Instruct-bnb-4bit.

Run:    `uv run grpo_r1.py`, or paste the cells into Colab or Kaggle and run them in order
Needs:  a GPU with 12 GB, vLLM if it is to be quick; without one a tiny model rehearses every line in minutes
Data:   {"question": "How much are 2 pens at $12?", "answer": "2 x 12 = <<2*12=24>>24, then the line #### 24"}
Writes: OUTPUT/lora, answers.jsonl, metrics.json, report.md, reward.png
"""

# %% Imports
import os
from importlib.util import find_spec

os.environ["UNSLOTH_DISABLE_STATISTICS"] = "1"  # nothing about this machine is sent
os.environ["GOMP_SPINCOUNT"] = "1000"  # threads that wait leave their core to other programs
if find_spec("vllm"):
    os.environ["UNSLOTH_VLLM_STANDBY"] = "1"  # vLLM's cache makes room while the model trains
from unsloth import FastLanguageModel  # before trl, transformers and peft: importing it patches them

import json
import re
import shutil
import subprocess
import sys
import zlib
from fractions import Fraction
from importlib.metadata import version
from pathlib import Path

import matplotlib.pyplot as plt
import pandas as pd
import torch
from datasets import load_dataset
from transformers import AutoTokenizer
from trl import GRPOConfig, GRPOTrainer

# %% Settings
MODEL = "unsloth/Qwen2.5-7B-Instruct-bnb-4bit" if torch.cuda.is_available() else "data/tiny-qwen2.5"
MODEL = os.getenv("MODEL", MODEL)
DATA = os.getenv("DATA", "data/r1/word_problems.jsonl")  # or openai/gsm8k: scored on its whole test split
OUTPUT = os.getenv("OUTPUT", "outputs/r1")
SYSTEM = "Answer in this form:\n<reasoning>\nyour steps\n</reasoning>\n<answer>\none number\n</answer>"

LOAD_IN_4BIT = True  # False: LoRA on 16-bit weights, 16 GB for those of 7B alone
DTYPE = None  # None: bfloat16, or float16 on a T4. A loss that is no number: torch.float32
FAST_INFERENCE = True  # sample with vLLM where it is installed and there is a GPU
VLLM_MEMORY = 0.6  # share of the GPU for vLLM's cache and the weights, which training uses, too
PROMPT_LENGTH = 320  # tokens; longer prompts are dropped
NEW_TOKENS = 512  # longest completion. Out of memory: 320
GRADIENT_CHECKPOINTING = "unsloth"  # False is faster where memory allows
LORA_R = 32  # rank of the update, 8 to 64. Out of memory: 16
LORA_ALPHA = 64  # the update is scaled by alpha / r
NUM_GENERATIONS = 8  # completions of a prompt that are compared; fewer give noisier advantages
BATCH_SIZE = 8  # completions in a forward pass. Out of memory: 2, with ACCUMULATION = 16
ACCUMULATION = 4  # forward passes in an optimizer step: 4 x 8 completions are those of 4 prompts
MAX_STEPS = 250  # the first 50 show whether the reward rises
LEARNING_RATE = 5e-6
TEMPERATURE = 1.0  # of the samples; below 1 the answers of a group, and so their rewards, become alike
BETA = 0.0  # weight of the KL term that holds the model near its base; 0.001 to 0.04 if the text degenerates
PROBE = 0  # 8: sample so often from the base, train only on problems that it neither always nor never solves
RESUME = True  # continue an interrupted run with the same settings from its newest checkpoint
SEED = 3407

EVAL_SHARE = 0.2  # of the rows, where DATA has no test split
EVAL_ROWS = None  # a number for fewer held-out problems than there are
EVAL_BATCH = 16  # problems answered at once without vLLM. Out of memory: 4
VOTES = 0  # 8: also sample so many answers to each problem and take the most frequent number

if MODEL.startswith("data/tiny"):  # rehearsal: the same lines below on a tiny model
    DATA = os.getenv("DATA", "data/r1/sums.jsonl")  # problems that the tiny model gets right now and then
    SYSTEM = "You are a helpful assistant."  # it follows no instructions: this is what it was pretrained with
    LOAD_IN_4BIT = False
    PROMPT_LENGTH = 96
    NEW_TOKENS = 48
    GRADIENT_CHECKPOINTING = False
    BATCH_SIZE = 48
    ACCUMULATION = 1
    MAX_STEPS = 60
    LEARNING_RATE = 5e-4
    EVAL_BATCH = 75


# %% Data
def extract_hash_answer(text: str) -> str | None:
    """Return what follows the last "####" on its line, None where nothing does: "... #### 24" gives "24"."""
    _, mark, rest = text.rpartition("####")
    return (rest.strip(" ").partition("\n")[0].strip() or None) if mark else None


def to_prompt(row: dict) -> dict:
    """Return a row in TRL's chat form; only the rewards get to see the answer."""
    prompt = [{"role": "system", "content": SYSTEM}, {"role": "user", "content": row["question"]}]
    return {"prompt": prompt, "answer": extract_hash_answer(row["answer"] or "")}


def answerable(row: dict) -> bool:
    """Return whether a row of to_prompt() has an answer and a prompt of at most PROMPT_LENGTH tokens."""
    tokens = tokenizer.apply_chat_template(row["prompt"], add_generation_prompt=True, return_dict=False)
    return bool(row["answer"]) and len(tokens) <= PROMPT_LENGTH


if BATCH_SIZE * ACCUMULATION % NUM_GENERATIONS:
    raise SystemExit("BATCH_SIZE x ACCUMULATION must be a multiple of NUM_GENERATIONS: groups stay whole")
tokenizer = AutoTokenizer.from_pretrained(MODEL, trust_remote_code=False)
# The thoughts are to stand in our tags: Qwen3 and its like, which think in their own by default, do not.
tokenizer.chat_template = template = "{% set enable_thinking = False %}" + tokenizer.get_chat_template()
try:
    if DATA.endswith((".json", ".jsonl")):
        parts = load_dataset("json", data_files=DATA, split="train").train_test_split(EVAL_SHARE, seed=SEED)
    else:
        parts = load_dataset(DATA, "main")
    if not {"question", "answer"} <= set(parts["train"].column_names):
        raise SystemExit(f"{DATA}: rows need question and answer, but have {parts['train'].column_names}")
    parts = parts.map(to_prompt, remove_columns=parts["train"].column_names, load_from_cache_file=False)
except Exception as error:  # of many kinds, whose own text often says neither file nor reason
    raise SystemExit(f"{DATA} cannot be read: {error.__cause__ or error}") from error
parts = parts.filter(answerable, load_from_cache_file=False)
train_dataset, eval_rows = parts["train"], parts["test"].to_list()[:EVAL_ROWS]
if not len(train_dataset) or len(eval_rows) < 2:
    raise SystemExit(f"{DATA}: too few rows whose answer ends in a line with #### and a number")
print(f"{len(train_dataset)} problems to train on, {len(eval_rows)} held out")
print(tokenizer.apply_chat_template(eval_rows[0]["prompt"], tokenize=False), eval_rows[0]["answer"])

# %% Rewards
TAGS = ("<reasoning>", "</reasoning>", "<answer>", "</answer>")
TAG = "</?(?:reasoning|answer)>"
ANY = f"(?:(?!{TAG}).)*"  # no tag in it, so that none occurs twice
SOME = rf"\s*(?!{TAG})\S{ANY}"
SOFT = re.compile(rf"{ANY}<reasoning>{SOME}</reasoning>\s*<answer>{SOME}</answer>{ANY}", re.DOTALL)
STRICT = re.compile(r"\s*{}[ \t]*\n.*\n[ \t]*{}[ \t]*\n\s*{}[ \t]*\n.*\n[ \t]*{}\s*".format(*TAGS), re.DOTALL)
WIDE = str.maketrans("−－–＋，．％＄／", "---+,.%$/")
LATEX = [  # what stands around a number -> what it means
    (r"\\[dt]?frac\{(\d+)\}\{(\d+)\}", r"\1/\2"),
    (r"\\(?:boxed|text|mathrm|mathbf)\{([^{}]*)\}", r" \1 "),
    (r"\{,\}|(?<=\d)\\,(?=\d\d\d)", ","),
    (r"\\[()\[\],; $%]", " "),
    (r"(?<!\w)(\*\*|\*|__|_|`)(\S|\S[^*_`\n]*\S)\1(?!\w)", r"\2"),  # bold, italics, code
    (r"(?<=[a-zA-Z])(?<!\de)\^?\{?[23²³]\}?(?![\d.])", ""),  # cm^2
]
THOUSANDS = re.compile(r"(\d[\d,]*(?:\.\d+)?)[kK](?![a-zA-Z])")
NUMBER = re.compile(  # sign or operator, number, denominator; not the 2 of m2
    r"([-+*/^×÷]?) ?[$€£¥￥]? ?(?<![a-zA-Z\d])((?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?|\.\d+)(?:/(\d+))?"
)
SCALED = re.compile(r"\d(?: ?(?:hundred|thousand|million|billion|dozen)|e[-+]?\d)", re.IGNORECASE)
OPERATION = re.compile(r"\d *(?:times|plus|minus|x|\\times|\\cdot|\\div|divided by) *\$?\d", re.I)


def number_of(text: str) -> Fraction | None:
    """Return the one number that a text states, None without one, with two different ones or with a sum.

    "$1,000.00" is 1000, "24 apples" is 24, "1/2" a half; the percent sign is a unit as in GSM8K, "50%" is 50.
    A number that goes on in another numeral (5², 2½, 3万) or in a word like million is refused, not misread.
    """
    text, values = " ".join(text.translate(WIDE).split()), set()
    for pattern, meaning in LATEX:
        text = re.sub(pattern, meaning, text)
    if len(text) > 1000 or SCALED.search(text) or OPERATION.search(text):
        return None
    if any(a.isdecimal() and b.isnumeric() > b.isdecimal() for a, b in zip(text, text[1:])):
        return None
    text = THOUSANDS.sub(lambda found: str(Fraction(found[1].replace(",", "")) * 1000), text)
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


# %% Model
fast = FAST_INFERENCE and torch.cuda.is_available() and find_spec("vllm") is not None
print("Samples come from", "vLLM" if fast else "the model itself: no GPU, no vLLM, or FAST_INFERENCE is off")
model, tokenizer = FastLanguageModel.from_pretrained(
    MODEL,
    max_seq_length=PROMPT_LENGTH + NEW_TOKENS,
    dtype=DTYPE,
    load_in_4bit=LOAD_IN_4BIT,
    fast_inference=fast,
    max_lora_rank=LORA_R,
    gpu_memory_utilization=VLLM_MEMORY,
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
model.print_trainable_parameters()


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


def sample(prompts: list[list[dict]], count: int, temperature: float) -> list[list[tuple[str, bool]]]:
    """Return count answers to each chat prompt, by vLLM where it runs; temperature 0 is greedy."""
    if not fast:
        options = {"do_sample": True, "temperature": temperature, "top_p": 1.0, "top_k": 0}
        repeated = [prompt for prompt in prompts for _ in range(count)]
        answers = generate(repeated, **(options if temperature else {}))
        return [answers[start : start + count] for start in range(0, len(answers), count)]
    from vllm import SamplingParams

    options = SamplingParams(n=count, temperature=temperature, max_tokens=NEW_TOKENS, seed=SEED)
    texts = [tokenizer.apply_chat_template(p, add_generation_prompt=True, tokenize=False) for p in prompts]
    groups = model.fast_generate(texts, sampling_params=options, lora_request=adapter)
    return [[(one.text.strip(), one.finish_reason == "stop") for one in group.outputs] for group in groups]


adapter = None  # for vLLM, which keeps it beside the base
eval_prompts = [row["prompt"] for row in eval_rows]
before = sample(eval_prompts, 1, 0)
before_votes = sample(eval_prompts, VOTES, TEMPERATURE) if VOTES else None
if PROBE:
    rates = []
    for group, answer in zip(sample(train_dataset["prompt"], PROBE, TEMPERATURE), train_dataset["answer"]):
        right = correctness_reward_func(None, [text for text, _ in group], [answer] * PROBE)
        rates.append(sum(right) / 2 / PROBE)
    kept = [place for place, rate in enumerate(rates) if 0 < rate < 1]
    print(f"The base solves {rates.count(1)} of {len(rates)} problems always and {rates.count(0)} never;")
    print(f"the other {len(kept)} teach. Of its answers {sum(rates) / len(rates):.0%} are right")
    if not kept:
        raise SystemExit("No problem teaches this base anything: take other DATA, or another MODEL")
    train_dataset = train_dataset.select(kept)

# %% Train
rewards = [
    correctness_reward_func,
    int_reward_func,
    strict_format_reward_func,
    soft_format_reward_func,
    xmlcount_reward_func,
]
settings = {"DATA": DATA, "SYSTEM": SYSTEM, "PROMPT_LENGTH": PROMPT_LENGTH, "NEW_TOKENS": NEW_TOKENS}
settings |= {"LORA_R": LORA_R, "LORA_ALPHA": LORA_ALPHA, "LEARNING_RATE": LEARNING_RATE, "SEED": SEED}
settings |= {"NUM_GENERATIONS": NUM_GENERATIONS, "BATCH_SIZE": BATCH_SIZE, "ACCUMULATION": ACCUMULATION}
settings |= {"MAX_STEPS": MAX_STEPS, "TEMPERATURE": TEMPERATURE, "BETA": BETA}
settings |= {"LOAD_IN_4BIT": LOAD_IN_4BIT, "PROBE": PROBE}
config = GRPOConfig(
    # A run with other settings or rows has another folder, so that RESUME never mixes two of them.
    output_dir=f"{OUTPUT}/checkpoints-{zlib.crc32(f'{MODEL}{settings}{DATA}{eval_rows}'.encode()):08x}",
    num_generations=NUM_GENERATIONS,
    max_completion_length=NEW_TOKENS,
    temperature=TEMPERATURE,
    per_device_train_batch_size=BATCH_SIZE,
    gradient_accumulation_steps=ACCUMULATION,
    max_steps=MAX_STEPS,
    learning_rate=LEARNING_RATE,
    warmup_steps=0.1,  # below 1: a share of the run, here and in save_steps
    weight_decay=0.1,
    max_grad_norm=0.1,
    optim="adamw_8bit",  # 2 bytes of state per trained parameter instead of 8
    bf16=model.dtype == torch.bfloat16,
    fp16=model.dtype == torch.float16,
    gradient_checkpointing=bool(GRADIENT_CHECKPOINTING),  # TRL's default is True
    loss_type="dapo",  # each token weighs the same; "grpo", the paper's, makes wrong answers longer
    beta=BETA,
    epsilon_high=0.28,  # this and the next are DAPO's, which Unsloth sets on a GPU
    mask_truncated_completions=True,
    logging_steps=1,
    logging_nan_inf_filter=False,  # show a NaN instead of leaving it out of the mean
    save_steps=0.1,
    save_total_limit=2,
    seed=SEED,
    report_to="none",  # "tensorboard", "wandb", "swanlab", "trackio"
)
trainer = GRPOTrainer(
    model=model,
    processing_class=tokenizer,
    train_dataset=train_dataset,
    reward_funcs=rewards,
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
trainer.save_model(f"{OUTPUT}/lora")  # adapter and tokenizer
log = pd.DataFrame(trainer.state.log_history).dropna(subset="reward").set_index("step")
if (log["frac_reward_zero_std"].tail(20) == 1).all():
    print("All completions of a prompt earn the same: raise TEMPERATURE, or let PROBE choose the problems")

# %% After
adapter = model.load_lora(f"{OUTPUT}/lora") if fast else None
after = sample(eval_prompts, 1, 0)
after_votes = sample(eval_prompts, VOTES, TEMPERATURE) if VOTES else None
answers = pd.DataFrame({"prompt": eval_prompts, "reference": [row["answer"] for row in eval_rows]})
answers[["before", "before_ended"]] = [group[0] for group in before]
answers[["after", "after_ended"]] = [group[0] for group in after]
answers["before_votes"], answers["after_votes"] = before_votes, after_votes
answers.to_json(f"{OUTPUT}/answers.jsonl", orient="records", lines=True, force_ascii=False)

# %% Score
metrics = {
    "scenario": "r1",
    "model": MODEL,
    "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU",
    "train": {
        "seconds": trained["train_runtime"],
        "steps": trainer.state.global_step,
        "tokens_per_second": log["num_tokens"].iloc[-1] / trained["train_runtime"],
        "reward_first_10": log["reward"].head(10).mean(),  # total reward of a completion
        "reward_last_10": log["reward"].tail(10).mean(),
        "peak_memory_gb": torch.cuda.max_memory_reserved() / 2**30,
        "trainable_parameters": model.get_nb_trainable_parameters()[0],
        "total_parameters": model.get_nb_trainable_parameters()[1],
    },
    "settings": settings,
    "versions": {name: version(name) for name in ("unsloth", "trl", "transformers", "peft", "torch")},
}
Path(OUTPUT, "metrics.json").write_text(json.dumps(metrics, ensure_ascii=False, indent=2), encoding="utf-8")
scored = subprocess.run([sys.executable, "data/r1/judge.py", OUTPUT], capture_output=True, text=True)
print(f"Scored by: python data/r1/judge.py {OUTPUT}\n{scored.stdout}{scored.stderr}")

# %% Save
figure, panels = plt.subplots(4, 1, figsize=(9, 11), sharex=True, layout="constrained")
log[["reward"] + [f"rewards/{reward.__name__}/mean" for reward in rewards]].plot(ax=panels[0])
log[["reward_std", "frac_reward_zero_std"]].plot(ax=panels[1])
log[["completions/mean_length"]].plot(ax=panels[2], ylabel="tokens")
log[["completions/clipped_ratio"]].plot(ax=panels[3], ylabel="share that was cut")
for panel in panels:
    panel.legend(fontsize="x-small", loc="upper left", bbox_to_anchor=(1, 1))
figure.savefig(f"{OUTPUT}/reward.png", dpi=150)
shutil.rmtree(config.output_dir)  # the run is complete

# %% Try it
TRY = "A ticket is $8, half for a child. What do two adults and three children pay?"
prompt = to_prompt({"question": TRY, "answer": ""})["prompt"]
print(f"{TRY}\n\n{sample([prompt], 1, 0)[0][0][0]}")
