# %% [markdown]
"""
# Official documents (公文): QLoRA SFT of Qwen2.5-7B-Instruct

Teaches a model to write the official documents of a Chinese health commission in the form of GB/T
9704-2012. Says how many of the hard rules its documents pass before and after, on topics that were not in
training, and lays the best one out as a .docx.

Run:    `python sft_gongwen.py`; edit the constants under Settings, or set MODEL, DATA and OUTPUT
Needs:  a GPU with 12 GB (not measured yet); without one it rehearses on a tiny model in minutes
Data:   {"instruction": "写一则停诊通告", "input": "自2024年3月5日起", "output": "……", "topic": "医疗质量"}
Writes: OUTPUT/lora, metrics.json, report.md, loss.png, sample.docx
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
from datetime import date
from functools import cache
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryFile

import docx
import matplotlib
import numpy as np
import psutil
import torch
from datasets import Dataset
from docx.enum.text import WD_ALIGN_PARAGRAPH as Align
from docx.enum.text import WD_TAB_ALIGNMENT as Tab
from docx.oxml import OxmlElement
from docx.oxml.ns import qn
from docx.shared import Mm, Pt
from peft import PeftModel, set_peft_model_state_dict
from peft.optimizers import create_loraplus_optimizer
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
MODEL = os.getenv("MODEL", "unsloth/Qwen2.5-7B-Instruct-bnb-4bit" if GPU else "data/tiny-qwen2.5")
DATA = os.getenv("DATA", "data/gongwen.json")  # JSON or JSONL rows, or a folder of .docx and .txt documents
OUTPUT = os.getenv("OUTPUT", "outputs/gongwen")
SYSTEM = "你是卫生健康委员会的公文写作人员。按党政机关公文格式起草，只输出公文。"

DTYPE = None  # None: bfloat16 where the hardware has it, else float16; or "float32"
LOAD_IN_4BIT = True  # NF4 weights; False needs 16 GB for the weights of 7B alone
MAX_LENGTH = 2048  # tokens of prompt and document; longer rows are left out. Out of memory: 1024
GRADIENT_CHECKPOINTING = "unsloth"  # recompute activations: less memory, slower; False where memory allows

LORA_R = 16  # rank of the update, 8 to 64. Out of memory: 8
LORA_ALPHA = 32  # the update is scaled by alpha / r
TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
USE_DORA = False  # weight-decomposed LoRA: a little better at low rank, slower
USE_RSLORA = False  # scale by alpha / sqrt(r), for ranks of 64 and more
LORA_PLUS = 0  # LoRA+: learning rate of B over that of A, e.g. 16; 0 turns it off

BATCH_SIZE = 2  # rows in a forward pass. Out of memory: 1, with ACCUMULATION = 8
ACCUMULATION = 4  # forward passes in an optimizer step
EPOCHS = 3
MAX_STEPS = -1  # a positive number silently overrides EPOCHS
LEARNING_RATE = 1e-4  # 1e-4 to 2e-4 for LoRA; 2e-5 is for full fine-tuning
WARMUP = 0.05  # share of the steps
OPTIMIZER = "adamw_8bit"  # 2 bytes of state a trained parameter instead of 8
EVALUATIONS = 6  # evaluations and checkpoints in the run
PATIENCE = 2  # stop after so many evaluations without a lower held-out loss
SEED = 3407

EVAL_SHARE = 0.1  # of the rows, in whole topics
EVAL_ROWS = 32  # held-out documents to write and score, before and after
EVAL_BATCH = 8  # documents written at once. Out of memory in Before: 2
NEW_TOKENS = 1024  # longest document

RESUME = True  # go on from the newest checkpoint of an interrupted run with the same settings
TRAIN = True  # False: use the adapter in OUTPUT/lora as it is
EXPORT = "lora"  # "lora", "merged_16bit" or "gguf" (llama.cpp, Ollama); the adapter is always saved
GGUF_QUANT = "q4_k_m"  # or "q8_0", "bf16"
REPORT_TO = "none"  # "tensorboard", "wandb", "swanlab", "trackio"
TRY = "请以清江市卫生健康委员会名义起草一份开展冬季传染病防控督导的通知。"  # for the last cell

if MODEL.startswith("data/tiny"):  # rehearsal: the same lines below, a tiny model, three minutes on two cores
    MAX_LENGTH, NEW_TOKENS, EPOCHS, LEARNING_RATE, LORA_R, LORA_ALPHA = 300, 240, 6, 4e-3, 64, 128
    BATCH_SIZE, ACCUMULATION, EVALUATIONS, EVAL_ROWS, EVAL_BATCH = 2, 1, 1, 24, 24
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


def read_docx(path: Path) -> str:
    """Return the paragraphs of a .docx, one a line; ValueError names a file that cannot be read."""
    try:
        return "\n".join(paragraph.text for paragraph in docx.Document(path).paragraphs)
    except Exception as error:  # python-docx lets those of zipfile and lxml through
        raise ValueError(f"{path} is not a readable .docx ({error}): save it again in Word or WPS") from None


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


def read_rows(source: str) -> list[dict]:
    """Return the usable rows of a JSON or JSONL file or a folder of documents; name what is left out."""
    path = Path(source)
    if not path.exists():
        raise ValueError(
            f"{path} does not exist: set DATA to a .json or .jsonl file or a folder of documents"
        )
    if path.is_dir():
        files = sorted(file for file in path.rglob("*") if file.suffix in (".docx", ".txt"))
        texts = [read_docx(file) if file.suffix == ".docx" else read_text(file) for file in files]
        rows = [{"instruction": f"起草{file.stem}", "output": text} for file, text in zip(files, texts)]
    else:
        rows = read_json(path)
    usable, seen = [], set()
    for number, row in enumerate(rows, 1):
        row = row if isinstance(row, dict) else {}
        texts = {key: str(row.get(key) or "").strip() for key in ("instruction", "input", "output", "topic")}
        missing = [key for key in ("instruction", "output") if not texts[key]]
        letters = re.sub(r"\W", "", texts["output"])
        if missing or letters in seen:
            reason = f"no {' and no '.join(missing)}" if missing else "the output of an earlier row again"
            print(f"{path}, row {number}: {reason}; left out")
        else:
            seen.add(letters)
            title = re.search(".*关于.*|$", texts["output"])[0]
            usable.append({**texts, "topic": texts["topic"] or title or texts["instruction"]})
    if not usable:
        raise ValueError(f"{path} holds no usable row: each needs instruction and output, input is optional")
    return usable


def split_by_topic(rows: list[dict], share: float, seed: int) -> tuple[list[dict], list[dict]]:
    """Return (training rows, held-out rows): whole topics are held out until they make up the share."""
    topics = sorted({row["topic"] for row in rows})
    random.Random(seed).shuffle(topics)
    held = set()
    for topic in topics[1:]:
        if sum(row["topic"] in held for row in rows) < share * len(rows):
            held.add(topic)
    parts = [row for row in rows if row["topic"] not in held], [row for row in rows if row["topic"] in held]
    for part in parts:
        random.Random(seed).shuffle(part)
    return parts


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
    rows = read_rows(DATA)
except ValueError as error:
    raise SystemExit(f"Data: {error}") from None
train_rows, eval_rows = split_by_topic(rows, EVAL_SHARE, SEED)
train_rows = [row for row in train_rows if fits(row)]
eval_rows = [row for row in eval_rows if fits(row)]
left = len(rows) - len(train_rows) - len(eval_rows)
print(f"{DATA}: {len(rows)} rows, {left} longer than {MAX_LENGTH} tokens left out")
eval_rows = eval_rows[:EVAL_ROWS]
if not (train_rows and eval_rows):
    raise SystemExit(f"Data: too few topics in {DATA} to hold one out: add rows, or raise MAX_LENGTH")
topics = "、".join(sorted({row["topic"] for row in eval_rows}))
print(f"{len(train_rows)} to train on, {len(eval_rows)} held out on other topics: {topics}")
train_dataset = Dataset.from_list([to_prompt_completion(row) for row in train_rows])
eval_dataset = Dataset.from_list([to_prompt_completion(row) for row in eval_rows])
example = train_dataset[0]
prompt = tokenizer.apply_chat_template(example["prompt"], tokenize=False, add_generation_prompt=True)
print(f"Not trained on:\n{prompt}\nTrained on:\n{example['completion'][0]['content']}{tokenizer.eos_token}")

# %% Score
KINDS = "决议 决定 命令 令 公报 公告 通告 意见 通知 通报 报告 请示 批复 议案 函 纪要".split()
HAN = "一二三四五六七八九十"
LEVELS = (f"([{HAN}]+)、", f"（([{HAN}]+)）", r"(\d+)[.．](?!\d)", r"（(\d+)）")
WRONG_LEVEL = rf"[（(][{HAN}\d]+[)）][、.．]|\([{HAN}\d]+[)）]|[{HAN}]+[.．]|\d+[、)）]"
NO_HEADING = f"(?![{HAN}]+、|（[{HAN}]+）)"
NUMBER = r"[\u4e00-\u9fff]{2,}〔(19|20)\d\d〕[1-9]\d*号"
ORDINAL = r"((19|20)\d\d年\s*)?第[1-9]\d*号"  # what 公告, 通告 and 令 may carry instead
NUMBER_LIKE = (
    rf"(?:[\u4e00-\u9fff]{{1,12}}[ ]*[^\w\s，。：]?[ ]*[\d〇零{HAN}]{{2,4}}|(?:\d{{2,4}}年[ ]*)?第)"
    rf"[ ]*[^\w\s，。：]?[ ]*第?[ ]*[\d{HAN}]+[ ]*号"
)
DATE_LIKE = rf"[\d〇○零{HAN}]{{2,4}}[ ]*[年./-][ ]*[\d{HAN}]{{1,3}}[ ]*[月./-][ ]*[\d{HAN}]{{1,3}}[ ]*日?"
ORGAN = rf"{NO_HEADING}[\u4e00-\u9fff（）·\s]{{4,60}}"
INTRODUCTION = "[^\n]*(?:如下|以下|现将|现就|决定|通告|公告|通知|通报|公布|批复|函复)[：:]\n"
REQUEST = "妥否|当否|可否|请.{0,12}(批示|批复|审批|批准|指示|核准|批转|审定|审议|审查)"
PLEA = (
    "妥否|当否|[恳敬特]请|请(予|贵|上级|省|市|国家|给予|尽快|审批|批准|批示|批复|拨|解决|支持|协调)"
    "|请求(上级|省|市|贵|批准|解决|支持|给予|予以|拨|增)"
)
DOCUMENT = re.compile(  # the parts of a document in their order, each as it is meant or as it is got wrong
    rf"""(?:(?:特急|加急|平急|\d{{6}}|[绝机秘]密.*|[^《》\n]*文件)\n)*
    (?:(?P<number>{NUMBER_LIKE})?[ \u3000]*(?P<signer>签发人.*)?\n)?
    (?P<title>(?:(?:[^\n。：:]+\n){{0,2}}?[^\n。]*(?:{"|".join(KINDS)})|.{{0,40}}关于[^\n。：]+的.{{0,9}})[。，；：:]?)\n
    (?:(?P<below>{NUMBER_LIKE})?[ \u3000]*(?P<signer_below>签发人.*)?\n)?
    (?:(?P<note>[（(].*[）)])\n)?
    (?:(?!{INTRODUCTION})(?P<addressee>[^\n。；]*[：:]|{NO_HEADING}[\u4e00-\u9fff（）、，\s]{{4,80}})\n)?
    (?P<body>(?:.*\n)*?)
    (?P<attachments>附[ ]?件\d*[ ]*[：:].*\n(?:.*\n)*?)?
    (?:(?P<organs>(?:{ORGAN}\n)*)(?P<date>[^\n。]{{0,25}}?{DATE_LIKE})\n(?P<after>(?:.*\n)*))?\Z""",
    re.VERBOSE,
)


def split_gongwen(text: str) -> dict[str, str]:
    """Return the parts of a document, "" where one is missing; {} if it does not open with a title."""
    lines = [line.strip("\u3000 \t*#") for line in text.splitlines()]
    found = DOCUMENT.match("".join(line + "\n" for line in lines if line))
    if not found:
        return {}
    part = {name: (value or "").strip() for name, value in found.groupdict().items()}
    part["title"] = part["title"].replace("\n", "")
    part["signer"] = part["signer"] or part["signer_below"]
    bare = part["title"].rstrip("。，；：:")
    part["kind"] = next((kind for kind in KINDS if bare.endswith(kind) and not bare.endswith("请示报告")), "")
    return part


def heading(line: str) -> tuple[int, int] | None:
    """Return (level 1 to 4, number) of a line that opens with 一、 （一） 1. or （1）, else None."""
    for level, pattern in enumerate(LEVELS, 1):
        if found := re.match(pattern, line):
            if found[1].isdecimal():
                return level, int(found[1])
            tens, ten, ones = found[1].rpartition("十")
            digits = "〇一二三四五六七八九"
            return level, (digits.find(tens) if tens else 1) * 10 * bool(ten) + digits.find(ones or "〇")
    return None


def levels_in_order(lines: list[str]) -> bool:
    """Return whether headings count 1, 2, 3 ... at each level, none skipped unless only two are used."""
    found = [mark for mark in map(heading, lines) if mark]
    used = sorted({level for level, _ in found})
    counts = dict.fromkeys(used, 0)
    for level, number in found:
        if number != counts[level] + 1 or not all(counts[above] for above in used if above < level):
            return False
        counts.update({level: number} | {below: 0 for below in used if below > level})
    return len(used) <= 2 or used == list(range(1, len(used) + 1))


def is_date(text: str) -> bool:
    """Return whether the text is a date as 2024年3月5日, not zero-padded, that the calendar has."""
    found = re.fullmatch(r"(\d{4})年([1-9]\d?)月([1-9]\d?)日", text)
    try:
        return bool(found and date(*map(int, found.groups())))
    except ValueError:
        return False


def check_gongwen(text: str) -> dict[str, bool]:
    """Return rule -> passed for the hard rules of GB/T 9704-2012 that apply to this document's 文种."""
    part = split_gongwen(text)
    if not part:
        return dict.fromkeys(
            ("kind", "title_form", "title_punctuation", "addressee", "body", "organ", "date"), False
        )
    kind, title, to, body = part["kind"], part["title"], part["addressee"], part["body"].split("\n")
    number = part["number"] or part["below"]
    names = re.sub("（[^）]*）", "", to.removesuffix("："))
    rules = {
        "kind": bool(kind),
        "title_form": bool(re.fullmatch(rf".*关于.+的[^的]{{0,4}}{kind or '$^'}\W?", title))
        or kind in ("令", "命令", "公告", "通告", "公报", "纪要", "决议"),
        "title_punctuation": not re.search(r"[^\w\s]", re.sub("《.*》", "", title)),
        "body": len(part["body"]) >= 30
        and len(set(body)) == len(body)
        and not re.search(r"(.{5,}?)\1\1", part["body"]),
        "plain_text": not re.search(r"(?m)\*\*|^\s*(#|[-*•] )|```|<\|", text),
    }
    if number or re.search(rf"(?m)^{NUMBER_LIKE}$", part["body"] + "\n" + part["after"]):
        forms = f"{NUMBER}|{ORDINAL}" if kind in ("公告", "通告", "令", "命令") else NUMBER
        rules["doc_number"] = bool(re.fullmatch(forms, number))
    if kind in ("公告", "通告", "公报"):
        rules["addressee"] = not to
    elif to or kind in ("通知", "报告", "请示", "批复", "函", "议案"):
        rules["addressee"] = (
            to.endswith("：")
            and re.fullmatch(r"[\w\s]+([、，][\w\s]+)*", names) is not None
            and not re.match("尊敬|亲爱|主送", names)
            and not re.search(r"(?m)^[ \u3000\t]+" + re.escape(to), text)
        )
    if any(map(heading, body)) or re.search(f"(?m)^({WRONG_LEVEL})", part["body"]):
        rules["level_form"] = not re.search(f"(?m)^({WRONG_LEVEL})", part["body"])
        rules["level_order"] = levels_in_order(body)
    files, late = part["attachments"].split("\n"), re.search("(?m)^附件.*[：:]", part["after"])
    if part["attachments"] or late:
        counts = [int(count) for count in re.findall(r"(?m)^(?:附件：)?(\d+)[.．]", part["attachments"])]
        rules["attachment"] = (
            bool(re.match("附件：.", files[0]))
            and counts == list(range(1, len(counts) + 1))
            and bool(counts or len(files) == 1)
            and not any(re.search("[。；，、;,.：:]$", name) for name in files)
            and not late
        )
    noted = kind in ("纪要", "决议", "公报", "决定", "令") and re.search(r"\d.*日", part["note"])
    if not noted and (kind not in ("纪要", "公报") or part["date"]):
        rules["organ"] = bool(part["organs"])
        rules["date"] = is_date(part["date"])
    elif noted:
        rules["date"] = is_date(re.search(r"\d+年.*?日|$", part["note"])[0])
    if kind == "请示":
        rules["single_addressee"] = bool(names) and not re.search("[、，]", names)
        rules["request"] = bool(re.search(REQUEST, body[-1]))
    if kind == "报告":
        rules["no_request"] = not re.search(PLEA, part["body"])
    if kind in ("请示", "报告"):
        rules["signer"] = bool(re.fullmatch(r"签发人：\s*[\u4e00-\u9fff·]{2,}", part["signer"]))
    if kind == "批复":
        rules["cites_request"] = bool(re.search("《.*请示》.{0,40}收[悉到]", body[0]))
    return rules


def format_score(text: str) -> float:
    """Return the share of the applicable hard rules that a document passes, in [0, 1]; 0 without a title."""
    rules = check_gongwen(text)
    return sum(rules.values()) / len(rules)


@cache
def glossary() -> tuple[set, list]:
    """Return the professional terms and the colloquial expressions of data/gongwen_terms.json."""
    words = json.loads(Path("data/gongwen_terms.json").read_text(encoding="utf-8"))
    return {term for group in words["terms"].values() for term in group}, words["colloquial"]


def term_score(text: str) -> float:
    """Return the share of sentences with a professional term less the share with a colloquial one, in [0, 1].

    A term counts three times in a text and a sentence of hardly anything but terms not at all, so that
    listing them earns nothing; below 100 characters of sentences the score shrinks in proportion.
    """
    terms, colloquial = glossary()
    sentences = list(dict.fromkeys(re.findall(r"[^。；！？\n]{8,}(?=[。；！？])", text)))
    uses, points = dict.fromkeys(terms, 0), 0
    for sentence in sentences:
        found = [term for term in terms if term in sentence]
        rest = re.sub("|".join(sorted(found, key=len, reverse=True)) or "$^", "", sentence)
        points += any(uses[term] < 3 for term in found) and len(rest) > 0.4 * len(sentence)
        points -= any(word in sentence for word in colloquial)
        uses.update({term: uses[term] + 1 for term in found})
    return max(0.0, points / max(1, len(sentences))) * min(1.0, sum(map(len, sentences)) / 100)


def fact_score(given: str, text: str) -> float | None:
    """Return the share of dates, figures and 文号 of the input that the text repeats, None without any."""
    facts = set(
        re.findall(
            r"[\u4e00-\u9fff]{2,}〔\d{4}〕\d+号|\d{4}年\d+月\d+日|\d[\d,.]*(?:%|[\u4e00-\u9fff])", given
        )
    )
    return sum(fact in text for fact in facts) / len(facts) if facts else None


def score_texts(texts: list[str], ended: list[bool]) -> dict[str, list[float]]:
    """Return metric -> one value a held-out document, in their order, None where it does not apply."""
    kinds = [split_gongwen(row["output"]).get("kind", "") for row in eval_rows]
    return {
        "format_score": [format_score(text) for text in texts],
        "term_score": [term_score(text) for text in texts],
        "kind_as_asked": [float(kind == split_gongwen(text).get("kind")) for kind, text in zip(kinds, texts)],
        "fact_score": [fact_score(row.get("input") or "", text) for row, text in zip(eval_rows, texts)],
        "ended_by_itself": [float(end) for end in ended],
        "characters": [float(len(text)) for text in texts],
    }


def mean_and_interval(values: list[float | None]) -> tuple[float, float, float]:
    """Return the mean and its bootstrap 95% interval, over the values that are not None."""
    numbers = np.array([value for value in values if value is not None] or [math.nan])
    means = np.random.default_rng(0).choice(numbers, (2000, len(numbers))).mean(1)
    return float(numbers.mean()), *map(float, np.percentile(means, [2.5, 97.5]))


def save_docx(text: str, path: str) -> None:
    """Lay a document out after GB/T 9704-2012: A4, 22 lines of 28 characters, — 1 — at the outer edge."""
    part = split_gongwen(text) or {"kind": "", "title": "", "body": text}
    document = docx.Document()
    section, normal = document.sections[0], document.styles["Normal"]
    section.page_width, section.page_height = Mm(210), Mm(297)
    section.top_margin, section.bottom_margin, section.left_margin, section.right_margin = map(
        Mm, (37, 35, 28, 26)
    )
    section.footer_distance = Mm(23)
    for name, value in (("type", "linesAndChars"), ("linePitch", "579"), ("charSpace", "-848")):
        section._sectPr.find(qn("w:docGrid")).set(qn(f"w:{name}"), value)
    document.settings.odd_and_even_pages_header_footer = True
    section.different_first_page_header_footer = (
        part["kind"] == "函"
    )  # the letter layout: no number on page 1
    normal.font.size = Pt(16)  # the grid counts its 28 characters from this size
    # LibreOffice gives a 16 pt character two cells of a 15.8 pt grid; the spacing makes the 28 there.
    for properties, name, value in (
        (normal.element.get_or_add_pPr(), "snapToGrid", "0"),
        (normal.element.rPr, "spacing", "-6"),
    ):
        properties.append(OxmlElement(f"w:{name}"))
        properties[-1].set(qn("w:val"), value)
    normal.paragraph_format.line_spacing, normal.paragraph_format.space_after = Pt(28.95), Pt(0)

    def add(pieces, align=Align.JUSTIFY, size=16, paragraph=None, first=0.0, left=0.0, right=0.0):
        """Add a paragraph of (text, font) pieces, its indents in characters."""
        paragraph = paragraph or document.add_paragraph()
        paragraph.alignment, form = align, paragraph.paragraph_format
        form.first_line_indent, form.left_indent, form.right_indent = (
            Pt(16 * n) for n in (first, left, right)
        )
        for words, font in pieces:
            run = paragraph.add_run(words)
            run.font.name, run.font.size = font, Pt(size)
            run._r.rPr.rFonts.set(qn("w:eastAsia"), font)
        return paragraph

    for footer, align in ((section.footer, Align.RIGHT), (section.even_page_footer, Align.LEFT)):
        pieces = [("— ", "宋体"), ("1", "宋体"), (" —", "宋体")]
        number = add(pieces, align, 14, footer.paragraphs[0], left=1, right=1)
        field = OxmlElement("w:fldSimple")
        field.set(qn("w:instr"), "PAGE")
        number.runs[0]._r.addnext(field)
        field.append(number.runs[1]._r)
    plain, fonts = "仿宋_GB2312", {1: "黑体", 2: "楷体_GB2312"}
    if part.get("number") and part["signer"]:  # upward documents: number to the left, signer to the right
        line = add([(f"{part['number']}\t{part['signer']}", plain)], Align.LEFT, left=1)
        line.paragraph_format.tab_stops.add_tab_stop(Pt(426), Tab.RIGHT)
    elif part.get("number"):
        add([(part["number"], plain)], Align.CENTER)
    add([(part["title"], "方正小标宋简体")], Align.CENTER, 22)
    for line in filter(None, (part.get("below"), part.get("signer_below"), part.get("note"), "\u3000")):
        add([(line, plain)], Align.CENTER)
    if part.get("addressee"):
        add([(part["addressee"], plain)])
    for line in part["body"].split("\n"):
        mark = heading(line)
        cut = (line.find("。") + 1 or len(line)) if mark else 0
        font = fonts.get(mark[0], plain) if mark else plain
        added = add([(line[:cut], font), (line[cut:], plain)], first=2)
        added.paragraph_format.keep_with_next = bool(mark) and cut == len(line)
    for count, line in enumerate(part.get("attachments", "").split("\n")):
        if line:
            add([(line, plain)], left=5 * (count > 0), first=2 * (count == 0))
    organs = [line for line in part.get("organs", "").split("\n") if line]
    document.paragraphs[-1].paragraph_format.keep_with_next = True  # a signature is never alone on a page
    width = sum(1 - letter.isascii() / 2 for letter in part.get("date", ""))
    for organ in organs:
        signature = add([(organ, plain)], Align.RIGHT, right=max(0, 4 + (width - len(organ)) / 2))
        signature.paragraph_format.keep_with_next = True
    longest = max(map(len, organs), default=0)
    add([(part.get("date", ""), plain)], Align.RIGHT, right=max(4, (longest - width) / 2))
    for line in part.get("after", "").split("\n"):
        add([(line, plain)])
    document.save(f"{path}.tmp")
    os.replace(f"{path}.tmp", path)


# %% Model
model, tokenizer = FastLanguageModel.from_pretrained(
    MODEL, max_seq_length=MAX_LENGTH, dtype=getattr(torch, DTYPE or "", None), load_in_4bit=LOAD_IN_4BIT,
    use_gradient_checkpointing=GRADIENT_CHECKPOINTING,
)  # fmt: skip
model = FastLanguageModel.get_peft_model(
    model, r=LORA_R, lora_alpha=LORA_ALPHA,
    lora_dropout=0,  # any other value turns Unsloth's fused kernels off
    bias="none", target_modules=TARGETS, use_rslora=USE_RSLORA, use_dora=USE_DORA,
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


before_texts, ended = generate(eval_dataset["prompt"])
before = score_texts(before_texts, ended)
print(f"Before: format_score {mean_and_interval(before['format_score'])[0]:.3f}")


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
optimizer = None
if LORA_PLUS:
    plus = {"lr": LEARNING_RATE, "loraplus_lr_ratio": LORA_PLUS}
    optimizer = create_loraplus_optimizer(model, torch.optim.AdamW, **plus)
trainer = SFTTrainer(
    model=model, processing_class=tokenizer, train_dataset=train_dataset, eval_dataset=eval_dataset,
    callbacks=[StopOnNaN(), EarlyStoppingCallback(PATIENCE)], optimizers=(optimizer, None),
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
        gradient_checkpointing=bool(GRADIENT_CHECKPOINTING),  # TRL's default is True
        loss_type="nll",  # in chunks by Unsloth; TRL's own chunks are slower
        logging_nan_inf_filter=False,  # a NaN shall be seen, not left out of the mean
        dataset_num_proc=None,  # a flat script must not be started again by a worker
        seed=SEED, data_seed=SEED, report_to=REPORT_TO,
    ),
)  # fmt: skip
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
after_texts, ended = generate(eval_dataset["prompt"])
after = score_texts(after_texts, ended)
speed = sum(len(tokenizer(text).input_ids) for text in after_texts) / (time.time() - started)
table = "| held-out documents | before | after |\n|---|---|---|\n"
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


def warnings_of(text: str, given: str) -> list[str]:
    """Return what to check by hand: citations that the input does not hold, no customary closing."""
    cited = re.findall(r"《[^》]+》|[\u4e00-\u9fff]{2,}〔\d{4}〕\d+号", text)
    closed = re.search("请示|批示|批复。|特此|贯彻|执行|施行", text[-150:])
    unknown = [f"需核实：{name}" for name in dict.fromkeys(cited) if name not in given]
    return unknown if closed else [*unknown, "无惯用结束语"]


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
    "scenario": "gongwen", "model": MODEL, "device": DEVICE,
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
axes.set(xlabel="step", ylabel="loss per token of the answer", title=f"{Path(MODEL).name}, LoRA r = {LORA_R}")
axes.legend()
figure.savefig(output / "loss.tmp.png", dpi=150, bbox_inches="tight")
os.replace(output / "loss.tmp.png", output / "loss.png")

report = f"# gongwen: {MODEL} on {DEVICE}\n\n"
if MODEL.startswith("data/tiny"):
    report += "**A rehearsal with a tiny model: what it writes is of no use to anyone.**\n\n"
report += f"""{table}
{len(eval_rows)} documents on topics that are not in training; mean and bootstrap 95% interval. The scores are
rules of form and wording: they say nothing about whether a document is right. The best is in sample.docx.

![loss](loss.png)
"""
order = sorted(
    range(len(eval_rows)), key=lambda i: (after["format_score"][i], after["term_score"][i]), reverse=True
)
for i in order[:3]:
    row, text = eval_rows[i], after_texts[i]
    failed = [rule for rule, passed in check_gongwen(text).items() if not passed]
    report += f"\n## {row['instruction']}\n\n{row.get('input') or ''}\n"
    report += f"\n### Before\n\n```\n{before_texts[i]}\n```\n\n### After\n\n```\n{text}\n```\n"
    report += (
        f"\nFailed: {', '.join(failed) or 'none'}. {'；'.join(warnings_of(text, row.get('input') or ''))}\n"
    )
report += f"\n## Run\n\n```json\n{json.dumps(metrics['train'] | metrics['versions'], indent=1)}\n```\n"
write_text(output / "report.md", report)
save_docx(after_texts[order[0]], f"{OUTPUT}/sample.docx")
shutil.rmtree(checkpoints, ignore_errors=True)  # the run is complete: the next one starts afresh
print(f"Saved in {OUTPUT}: lora, metrics.json, report.md, loss.png, sample.docx")
if EXPORT != "lora":
    export(adapter, EXPORT, GGUF_QUANT)

# %% Try it
texts, _ = generate([to_prompt_completion({"instruction": TRY, "output": ""})["prompt"]])
print(f"{TRY}\n\n{texts[0]}")
