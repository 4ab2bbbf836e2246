# %% [markdown]
"""
# Medical questions (医疗问答): LoRA, QLoRA or full SFT of Qwen2.5-7B-Instruct

Cleans dirty hospital CSVs, trains on subsets of growing size and says what more data changes: loss, similarity
to the reference, thinking, advice in emergencies and risky prescriptions, before and after, on questions that were
not in training. Research only: no diagnosis, no treatment. In an emergency in China call 120.

Run:    `python sft_medical.py`; edit the constants under Settings, or set MODEL, DATA and OUTPUT
Needs:  a GPU with 12 GB (not measured yet); without one it rehearses on a tiny model in minutes
Data:   department,title,ask,answer in CSV, {"question": "……", "think": "……", "answer": "……"} in JSONL, or both
Writes: OUTPUT/lora, metrics.json, report.md, loss.png, data.png, splits.json, predictions.jsonl, results.csv, scaling.png
"""

# %% Imports
from unsloth import FastLanguageModel  # first: it patches trl, transformers and peft when it is imported

# isort: split
import csv
import gc
import hashlib
import html
import io
import json
import math
import os
import platform
import random
import re
import shutil
import sys
import time
from collections import Counter
from importlib.metadata import version
from pathlib import Path
from threading import Thread
from types import SimpleNamespace

import matplotlib
import numpy as np
import pandas as pd
import psutil
import torch
from datasets import Dataset
from peft import PeftModel, set_peft_model_state_dict
from rensa import RMinHash, RMinHashDeduplicator, RMinHashLSH
from rouge_score.rouge_scorer import RougeScorer
from sacrebleu import BLEU, CHRF
from safetensors.torch import load_file
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    EarlyStoppingCallback,
    TextIteratorStreamer,
    TrainerCallback,
)
from transformers.trainer_utils import get_last_checkpoint
from trl import SFTConfig, SFTTrainer

matplotlib.use("Agg")
import matplotlib.pyplot as plt  # noqa: E402

# %% Settings
GPU = torch.cuda.is_available()
DEVICE = torch.cuda.get_device_name() if GPU else f"CPU, {os.cpu_count()} cores"
# Qwen2.5-7B: Apache-2.0, 12 GB in 4 bit. Qwen/Qwen3-1.7B: Apache-2.0, 6 GB. Qwen/Qwen2.5-3B-Instruct: Qwen
# research licence, no commercial use, 8 GB. Memory from published figures for 1,024 tokens, not measured here.
MODEL = os.getenv("MODEL", "unsloth/Qwen2.5-7B-Instruct-bnb-4bit" if GPU else "data/tiny-qwen2.5")
DATA = os.getenv("DATA", "data/medical")  # a folder (searched to the bottom) or a file, .csv and .jsonl
OUTPUT = os.getenv("OUTPUT", "outputs/medical")
SYSTEM = "你是谨慎的健康科普助手，不作诊断，不开处方；遇到急症先让患者拨打120或去急诊。"
PLAIN, THINK = "请回答患者的问题。", "请先在<think>和</think>之间写出思考过程，再回答患者的问题。"
DISCLAIMER = "仅供研究，不是诊断，也不能代替医生。紧急情况请立即拨打120。Research only, no diagnosis; in an emergency call 120."

# The scaling study: [(m, n) for m in ("lora", "qlora") for n in (10_000, 20_000, 40_000, 60_000)]
RUNS = [("qlora", 10_000)]  # (method, training rows); smaller subsets are nested in larger ones
EQUAL_STEPS = 0  # a positive number: so many optimizer steps in every run, whatever its size
DTYPE = None  # None: bfloat16 where the hardware has it, else float16; or "float32"
MAX_LENGTH = 1024  # tokens of prompt and answer; longer rows are left out. Out of memory: 512
GRADIENT_CHECKPOINTING = "unsloth"  # recompute activations: less memory, slower; False where memory allows

LORA_R = 16  # rank of the update; 64 with LORA_ALPHA = 128 and LORA_DROPOUT = 0.1 is another common choice
LORA_ALPHA = 32  # the update is scaled by alpha / r
LORA_DROPOUT = 0  # any other value turns Unsloth's fused kernels off
TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]

BATCH_SIZE = 2  # rows in a forward pass. Out of memory: 1, with ACCUMULATION = 8
ACCUMULATION = 4  # forward passes in an optimizer step
EPOCHS = 3
LEARNING_RATES = {"qlora": 1e-4, "lora": 1e-4, "full": 5e-6}  # full: EPOCHS = 1, ACCUMULATION = 8, 16 GB for 1.7B
WARMUP = 0.05  # share of the steps
OPTIMIZER = "adamw_8bit"  # 2 bytes of state a trained parameter instead of 8
EVALUATIONS = 6  # evaluations and checkpoints in a run
PATIENCE = 2  # stop after so many evaluations without a lower validation loss
SEED = 3407

VAL_ROWS = 500  # of the validation split, for the loss during training
EVAL_ROWS = 200  # of the test split, gold rows first, to answer and score before and after
RED_ROWS = 1000  # of red_team.jsonl
EVAL_BATCH = 8  # answers written at once. Out of memory in Before: 2
NEW_TOKENS = 768  # longest answer

RESUME = True  # go on from finished runs, the newest checkpoint and the answers of an interrupted session
TRAIN = True  # False: use the adapter in OUTPUT/lora as it is
PREDICT = ""  # JSONL with question (or instruction and input), answered by the last model in predictions.jsonl
EXPORT = "lora"  # "lora", "merged_16bit" or "gguf" (llama.cpp, Ollama); the adapter is always saved
GGUF_QUANT = "q4_k_m"  # or "q8_0", "bf16"
REPORT_TO = "none"  # "tensorboard", "wandb", "swanlab", "trackio"
DEMO = False  # True: a chat page on http://127.0.0.1:7860
TRY = "我父亲突然胸口压榨样疼痛，出了一身冷汗，已经二十分钟了，怎么办？"  # for the last cell

if MODEL.startswith("data/tiny"):  # rehearsal: the same lines below, a tiny model, three minutes on two cores
    RUNS, MAX_LENGTH, NEW_TOKENS, EPOCHS, LORA_R, LORA_ALPHA = [("lora", 150), ("lora", 400)], 512, 384, 2, 32, 64
    LEARNING_RATES, EVALUATIONS, VAL_ROWS, EVAL_ROWS, RED_ROWS, EVAL_BATCH = {"lora": 5e-3}, 1, 24, 32, 16, 48
    BATCH_SIZE, ACCUMULATION, GRADIENT_CHECKPOINTING, GGUF_QUANT = 2, 1, False, "q8_0"
settings = {name: value for name, value in list(globals().items()) if name.isupper()}


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
        except json.JSONDecodeError as error:
            line = error.lineno if whole else number
            raise ValueError(f"{path}, line {line}: not JSON ({error.msg}); mend that line") from None
    return rows[0] if whole else rows


COLUMNS = ["department", "title", "ask", "answer"]
COMMON = frozenset("的一是不了在有我这這个個人们們中大来來上吃天么麼痛疼医醫生要可以怎么麼么样樣會会没沒好時时")


def decode(raw: bytes, path: Path) -> str:
    """Return a file's text in the encoding that yields the most common characters; ValueError if none fits.

    GB18030 also decodes Big5, into rare characters, so that trying one after the other is not enough.
    """
    wide = {b"\xff\xfe": "utf-16", b"\xfe\xff": "utf-16"}.get(raw[:2])
    wide = wide or {b"\0": "utf-16-be"}.get(raw[:1]) or {b"\0": "utf-16-le"}.get(raw[1:2])
    best, tried = (-1.0, ""), [wide] if wide else ["utf-8-sig", "gb18030", "big5hkscs"]
    for encoding in tried:
        text = raw.decode(encoding, errors="replace")
        sample = [letter for letter in text[:20_000] if letter > "\x7f"] or ["的"]
        if text.count("\ufffd") <= 0.01 * len(text):
            best = max(best, (sum(letter in COMMON for letter in sample) / len(sample), text), key=lambda b: b[0])
        if best[1] and encoding == "utf-8-sig" and "\ufffd" not in text:
            break
    if best[0] < 0:
        raise ValueError(f"{path}: not text in {', '.join(tried)}; convert it, for example with iconv -t UTF-8")
    return best[1]


def parse_line(line: str) -> list[str] | None:
    """Return the fields of one CSV record, None if its quotes are broken."""
    try:
        return next(csv.reader([line.removesuffix("\r")], strict=True), [])
    except csv.Error:
        return None


def read_csv(path: Path | str) -> pd.DataFrame:
    """Return the columns department, title, ask and answer of a CSV; ValueError names a file that lacks them.

    Encodings: UTF-8 and UTF-16 with or without BOM, GB18030 with GBK, Big5. Broken lines are left out, printed and
    counted in attrs["broken"]; an unclosed quote ends where the next line opens with a department of this file.
    """
    lines = decode(Path(path).read_bytes(), Path(path)).split("\n")
    header = [name.strip().lower() for name in parse_line(lines[0].lstrip("\ufeff")) or []]
    if not set(COLUMNS) <= set(header):
        raise ValueError(f"{path}: the header is {lines[0][:80]!r}, needed are {', '.join(COLUMNS)}")
    starts = Counter(line.partition(",")[0] for line in lines[1:] if line.count(",") >= len(header) - 1)
    starts = {name for name, count in starts.items() if count > 1 and re.fullmatch(r"[^\W\d_]{2,20}", name)}
    places, rows, broken, at = [header.index(name) for name in COLUMNS], [], [], 1
    while at < len(lines):
        record, end = lines[at], at + 1
        odd = record.count('"') % 2
        while odd and end < len(lines) and lines[end].partition(",")[0] not in starts:
            odd ^= lines[end].count('"') % 2
            end += 1
        if odd:  # nothing closes the quote: only this line is lost
            end = at + 1
        fields = parse_line("\n".join(lines[at:end]))
        if fields is None or len(fields) != len(header) or "\ufffd" in "".join(fields):
            broken += [at + 1] if record.strip() else []
        else:
            rows.append([fields[place] for place in places])
        at = end
    if broken:
        print(f"{path}: {len(broken)} broken lines left out, among them line {broken[0]}")
    table = pd.DataFrame(rows, columns=COLUMNS, dtype=object)
    table.attrs["broken"] = len(broken)
    return table
