# %% [markdown]
"""
# Car insurance: vision SFT of Qwen2.5-VL on an insurer's sheet and photos

Teaches a model to read odometers, warning lights, licence plates, VINs and damage into JSON fields, and says
how many fields it reads right before and after, on photos whose styles were not in training.

Run:    `python vl_car_insurance.py`; edit the constants under Settings, or set MODEL, DATA and OUTPUT
Needs:  a GPU with 12 GB (not measured yet); without one it rehearses on a tiny model in minutes
Data:   an .xlsx with the columns image (a path or a pasted picture), prompt, response and perhaps style:
        pictures/001.jpg | 读取仪表盘照片，只输出JSON…… | {"里程数": 12345, "单位": "公里"} | twin_dials
Writes: OUTPUT/lora, metrics.json, report.md, loss.png, contact_sheet.png, predictions.xlsx
"""

# %% Imports
from unsloth import FastVisionModel, UnslothVisionDataCollator  # first: it patches the libraries below

# isort: split
import hashlib
import json
import math
import os
import platform
import random
import re
import shutil
import time
import unicodedata
import warnings
import zipfile
from importlib.metadata import version
from io import BytesIO
from pathlib import Path
from tempfile import TemporaryFile
from xml.etree import ElementTree

import matplotlib
import numpy as np
import psutil
import torch
from datasets import Dataset, Features, Image, List, Value
from openpyxl import Workbook, load_workbook
from openpyxl.drawing.image import Image as Pasted
from peft import LoraConfig, PeftModel, get_peft_model, set_peft_model_state_dict
from PIL import Image as Photo
from PIL import ImageOps
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from transformers import (
    AutoConfig,
    AutoModelForImageTextToText,
    AutoProcessor,
    EarlyStoppingCallback,
    TrainerCallback,
)
from trl import SFTConfig, SFTTrainer

matplotlib.use("Agg")
import matplotlib.pyplot as plt  # noqa: E402
from matplotlib import font_manager  # noqa: E402

# %% Settings
if "__file__" in globals() and not Path("data/tiny-qwen2.5").is_dir():  # started from another folder
    for name in {"MODEL", "DATA", "OUTPUT"} & set(os.environ):  # what was given stays where it was meant
        if name == "OUTPUT" or Path(os.environ[name]).exists():
            os.environ[name] = os.path.abspath(os.environ[name])
    os.chdir(Path(__file__).parent)
    print(f"Relative paths start in {Path.cwd()}")
GPU = torch.cuda.is_available()
DEVICE = torch.cuda.get_device_name() if GPU else f"CPU, {os.cpu_count()} cores"
# 3B: a research licence, not for commercial use; unsloth/Qwen2.5-VL-7B-Instruct is Apache-2.0
MODEL = os.getenv(
    "MODEL", "unsloth/Qwen2.5-VL-3B-Instruct-unsloth-bnb-4bit" if GPU else "data/tiny-qwen2.5-vl"
)
DATA = os.getenv("DATA", "data/car_insurance/qwen-vl-train.xlsx")
OUTPUT = os.getenv("OUTPUT", "outputs/car_insurance")

DTYPE = None  # None: bfloat16 where the hardware has it, else float16; or "float32"
LOAD_IN_4BIT = True  # NF4 weights; False needs 8 GB for the weights of 3B alone
MAX_PIXELS = 602_112  # of a photo: 768 tokens of 28 x 28 pixels. Out of memory: 301_056
GRADIENT_CHECKPOINTING = "unsloth"  # recompute activations: less memory, slower; False where memory allows

LORA_R = 16  # rank of the update, 8 to 64. Out of memory: 8
LORA_ALPHA = 16  # the update is scaled by alpha / r
FINETUNE_VISION_LAYERS = True  # False: the eyes stay as they are. Out of memory: False
FINETUNE_LANGUAGE_LAYERS = True
FINETUNE_ATTENTION_MODULES = True
FINETUNE_MLP_MODULES = True

BATCH_SIZE = 2  # rows in a forward pass. Out of memory: 1, with ACCUMULATION = 8
ACCUMULATION = 4  # forward passes in an optimizer step
EPOCHS = 3
MAX_STEPS = -1  # a positive number silently overrides EPOCHS
LEARNING_RATE = 2e-4  # 1e-4 to 2e-4 for LoRA; 2e-5 is for full fine-tuning
WARMUP = 0.05  # share of the steps
OPTIMIZER = "adamw_8bit"  # 2 bytes of state a trained parameter instead of 8
EVALUATIONS = 6  # evaluations and checkpoints in the run
PATIENCE = 2  # stop after so many evaluations without a lower held-out loss
SEED = 3407

EVAL_SHARE = 0.2  # of the styles of each kind of photo
EVAL_ROWS = 60  # held-out rows to read and score, before and after
EVAL_BATCH = 4  # rows read at once. Out of memory in Before: 1
NEW_TOKENS = 160  # longest answer
LEAST_ROWS = 16  # fewer usable rows are not worth a run

RESUME = True  # go on from the newest checkpoint of an interrupted run with the same settings
TRAIN = True  # False: use the adapter in OUTPUT/lora as it is
EXPORT = "lora"  # or "merged_16bit", for vLLM and transformers; the adapter is always saved
DEMO = False  # True: a page on 127.0.0.1 that reads uploaded photos
REPORT_TO = "none"  # "tensorboard", "wandb", "swanlab", "trackio"

if MODEL.startswith("data/tiny"):  # rehearsal: the same lines below, a tiny model, minutes on two cores
    MAX_PIXELS, EPOCHS, LEARNING_RATE, LORA_R, LORA_ALPHA = 37_632, 4, 2e-3, 32, 64
    BATCH_SIZE, ACCUMULATION, EVALUATIONS, EVAL_ROWS, EVAL_BATCH, NEW_TOKENS = 2, 1, 1, 60, 30, 90
    DTYPE, GRADIENT_CHECKPOINTING, LOAD_IN_4BIT, OPTIMIZER = "float32", False, False, "adamw_torch"
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
        shapes = AutoModelForImageTextToText.from_config(AutoConfig.from_pretrained(MODEL))
except OSError as error:
    raise SystemExit(f"Model: {MODEL} is no folder, not in the cache and not to be had: {error}") from None
side = shapes.config.vision_config.patch_size * shapes.config.vision_config.spatial_merge_size
tokens = BATCH_SIZE * (MAX_PIXELS // side**2 + 2 * NEW_TOKENS)
memory = memory_needed(shapes, LOAD_IN_4BIT, LORA_R, tokens, GRADIENT_CHECKPOINTING)
card = torch.cuda.get_device_properties(0).total_memory / 1e9 if torch.cuda.is_available() else math.inf
print(f"GPU memory: about {sum(memory.values()):.1f} GB:", *(f"{k} {v:.1f}" for k, v in memory.items()))
if sum(memory.values()) > card:
    print(f"The card has {card:.1f} GB: lower BATCH_SIZE, MAX_PIXELS or LORA_R, or take a smaller MODEL")

# %% Data
COLUMNS = {
    "image": ("image", "images", "图片", "照片"),
    "prompt": ("prompt", "question", "问题", "提问"),
    "response": ("response", "answer", "答案", "回答"),
    "style": ("style", "风格"),  # may be missing: then every photo is a style of its own
}


def wps_pictures(path: Path) -> dict[str, bytes]:
    """Return the pictures that WPS keeps inside cells by the ID that the cell's =DISPIMG("ID", 1) names."""
    with zipfile.ZipFile(path) as archive:
        if "xl/cellimages.xml" not in archive.namelist():
            return {}
        parts = ElementTree.fromstring(archive.read("xl/_rels/cellimages.xml.rels"))
        parts = {part.get("Id"): f"xl/{part.get('Target')}" for part in parts}
        found = {}
        for picture in ElementTree.fromstring(archive.read("xl/cellimages.xml")):
            tags = {element.tag.rpartition("}")[2]: element for element in picture.iter()}
            embed = next(value for key, value in tags["blip"].items() if key.endswith("}embed"))
            found[tags["cNvPr"].get("name")] = archive.read(parts[embed])
    return found


def upright_rgb(raw: bytes) -> tuple[bytes, str]:
    """Return a picture as upright RGB of at most MAX_PIXELS, and what changed; ValueError if unreadable."""
    if not raw:
        raise ValueError("the picture is empty (0 bytes)")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Photo.DecompressionBombWarning)
            image = Photo.open(BytesIO(raw))
            side = int(MAX_PIXELS**0.5)
            image.draft(None, (side, side))  # a large JPEG is decoded at a half or a quarter of its size
            image.load()
    except (Photo.DecompressionBombError, Photo.DecompressionBombWarning):
        raise ValueError("the picture has more than 89 million pixels: save it smaller") from None
    except Exception as error:  # Pillow's readers let many kinds through
        raise ValueError(f"not a readable picture ({error}): save it again as JPEG") from None
    changes, form = [], image.mode
    turned = ImageOps.exif_transpose(image)
    if image.getexif().get(0x0112, 1) != 1:
        changes.append("turned upright")
    if form.startswith(("I", "F")):
        values = np.asarray(turned, dtype="float64")
        turned = Photo.fromarray((values / max(values.max(), 1) * 255).astype("uint8"))
    if form != "RGB":
        changes.append(f"converted from {form} to RGB")
    if turned.width * turned.height > MAX_PIXELS:
        scale = math.sqrt(MAX_PIXELS / (turned.width * turned.height))
        size = max(1, int(turned.width * scale)), max(1, int(turned.height * scale))
        turned = turned.convert("RGB").resize(size, Photo.Resampling.LANCZOS)
    elif not changes:
        return raw, ""
    file = BytesIO()
    turned.convert("RGB").save(file, "JPEG", quality=95)
    return file.getvalue(), " and ".join(changes)


def parse_json(text: object) -> dict | None:
    """Return the first JSON object in a text, which may stand in a code fence or a sentence, or None."""
    for found in re.finditer(r"\{", str(text)):
        try:
            value, _ = json.JSONDecoder().raw_decode(str(text), found.start())
        except (json.JSONDecodeError, RecursionError):
            continue
        return value if isinstance(value, dict) else None
    return None


def open_sheet(path: Path) -> tuple:
    """Return the first worksheet of an .xlsx and WPS's pictures; ValueError says what the file is instead."""
    if not path.is_file():
        raise ValueError(f"{path} does not exist: set DATA to an .xlsx file")
    if path.read_bytes()[:4] == b"\xd0\xcf\x11\xe0":  # the container of .xls, and of anything encrypted
        locked = "EncryptedPackage".encode("utf-16-le") in path.read_bytes()
        reason = "protected by a password: save it without one" if locked else "an .xls: save it as .xlsx"
        raise ValueError(f"{path} is {reason}")
    limit = Photo.MAX_IMAGE_PIXELS
    Photo.MAX_IMAGE_PIXELS = None  # a huge picture shall cost its row, not the sheet
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of pictures that cannot be read: their rows are named below
            return load_workbook(path).worksheets[0], wps_pictures(path)
    except Exception as error:  # zipfile, XML and openpyxl's own
        raise ValueError(f"{path} is not a readable .xlsx ({error}): save it again in Excel or WPS") from None
    finally:
        Photo.MAX_IMAGE_PIXELS = limit


def read_picture(folder: Path, name: str) -> bytes:
    """Return the bytes of a picture file that a sheet in a folder names; ValueError if it is none."""
    if "://" in name:
        raise ValueError(f"{name} is a URL, and nothing is downloaded: save the picture beside the sheet")
    try:
        return (folder / name.replace("\\", "/")).read_bytes()
    except OSError as error:
        raise ValueError(f"{name[:80]} in {folder} cannot be read ({error.strerror})") from None


def load_rows(xlsx: str) -> list[dict]:
    """Return rows of image (PIL), images (bytes), prompt, answer, style, number; name what is left out."""
    path = Path(xlsx)
    sheet, inside = open_sheet(path)
    header = [str(cell.value or "").strip().lower() for cell in sheet[1]]
    place = {name: i for i, title in enumerate(header) for name, titles in COLUMNS.items() if title in titles}
    if missing := [titles for name, titles in COLUMNS.items() if name not in place and name != "style"]:
        raise ValueError(f"{path}, row 1: no column {' and no column '.join(map('/'.join, missing))}")
    pasted = {}
    for picture in sheet._images:
        if corner := getattr(picture.anchor, "_from", None):  # else it is bound to the page, not to a cell
            pasted.setdefault((corner.row + 1, corner.col), []).append(picture.ref.getvalue())
    areas = sheet.merged_cells.ranges
    merged = {row: area.coord for area in areas for row in range(area.min_row, area.max_row + 1)}
    rows, left = [], 0
    for number, cells in enumerate(sheet.iter_rows(min_row=2), 2):
        cell = {name: cells[column] for name, column in place.items()}
        over = pasted.get((number, place["image"]), [])
        if not over and not any(str(item.value or "").strip() for item in cell.values()):
            continue
        current = "image"
        try:
            if number in merged:
                raise ValueError(f"merged cells {merged[number]}: split them")
            value = str(cell["image"].value or "").strip()
            pictures = list(over)
            if found := re.search(r'DISPIMG\("([^"]+)"', value):
                pictures.append(inside.get(found[1], b""))
            elif cell["image"].data_type in "fe":
                raise ValueError(f"{value} is a formula or an error: paste the picture over the cell")
            elif not over:
                names = [name.strip() for name in re.split(r"[\n;；]+", value) if name.strip()]
                pictures += [read_picture(path.parent, name) for name in names]
            if not pictures:
                raise ValueError("no picture, or one that cannot be read")
            images, changes = zip(*map(upright_rgb, pictures))
            for current in ("prompt", "response"):
                if cell[current].data_type == "f":
                    raise ValueError(f"{cell[current].value} is a formula: paste its value")
                if not str(cell[current].value or "").strip():
                    raise ValueError(f"no {current}")
            answer = parse_json(cell["response"].value)
            if not answer:
                raise ValueError('not a JSON object such as {"里程数": 12345, "单位": "公里"}')
        except ValueError as error:
            left += 1
            print(f"{path.name}, row {number}, cell {cell[current].coordinate}: {error}; left out")
            continue
        for change in filter(None, changes):
            print(f"{path.name}, row {number}, cell {cell['image'].coordinate}: {change}")
        style = (cell["style"].value if "style" in cell else None) or hashlib.sha256(
            b"".join(images)
        ).hexdigest()
        row = {"image": Photo.open(BytesIO(images[0])), "images": list(images), "number": number}
        row |= {"prompt": str(cell["prompt"].value).strip(), "answer": answer, "style": str(style)}
        rows.append(row)
    print(f"{path}: {len(rows)} rows, {left} left out")
    return rows


def hold_out_styles(rows: list[dict], share: float, seed: int) -> tuple[list[dict], list[dict]]:
    """Return (training rows, held-out rows): whole styles are held out of each kind of photo.

    A row of several photos has a style a+b; if only a part of it is held out, the row is in neither.
    """
    kinds = {}
    for row in sorted(rows, key=lambda row: row["style"]):
        if "+" not in row["style"]:
            kinds.setdefault(tuple(sorted(row["answer"])), {})[row["style"]] = None
    held = set()
    for styles in kinds.values():
        names = random.Random(seed).sample(list(styles), len(styles))
        held.update(names[: max(1, round(share * len(names)))] if len(names) > 1 else [])
    parts = [(row, {style in held for style in row["style"].split("+")}) for row in rows]
    return [row for row, found in parts if found == {False}], [row for row, found in parts if found == {True}]


def to_vision_row(row: dict) -> dict:
    """Return a row as TRL and Unsloth both take it: messages with places for the images, and the images."""
    asked = [{"type": "image", "text": ""} for _ in row["images"]] + [{"type": "text", "text": row["prompt"]}]
    told = [{"type": "text", "text": json.dumps(row["answer"], ensure_ascii=False)}]
    return {
        "prompt": [{"role": "user", "content": asked}],
        "completion": [{"role": "assistant", "content": told}],
        "images": [{"bytes": raw, "path": None} for raw in row["images"]],
    }


try:
    rows = load_rows(DATA)
except ValueError as error:
    raise SystemExit(f"Data: {error}") from None
train_rows, eval_rows = hold_out_styles(rows, EVAL_SHARE, SEED)
eval_rows = random.Random(SEED).sample(eval_rows, min(EVAL_ROWS, len(eval_rows)))
if len(rows) < LEAST_ROWS or not (train_rows and eval_rows):
    raise SystemExit(f"Data: {len(rows)} usable rows in {DATA}, needed are {LEAST_ROWS} of two styles")
styles = ", ".join(sorted({row["style"] for row in eval_rows}))
print(f"{len(train_rows)} to train on, {len(eval_rows)} held out in other styles: {styles}")
message = [{"role": Value("string"), "content": [{"type": Value("string"), "text": Value("string")}]}]
features = Features({"prompt": message, "completion": message, "images": List(Image())})
train_dataset = Dataset.from_list([to_vision_row(row) for row in train_rows], features=features)
eval_dataset = Dataset.from_list([to_vision_row(row) for row in eval_rows], features=features)

# %% Score
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
    for i, letter in enumerate(told, 1):
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
        off = min(1.0, abs(read - meant) / max(1.0, meant)) if numbers else 1.0
        row = {
            "field_accuracy": sum(right.values()) / len(right),
            "mileage_accuracy": right.get("里程数"),
            "mileage_error": off if "里程数" in wanted else None,
            "plate_error_rate": error_rate(fields.get("车牌号"), wanted["车牌号"])
            if "车牌号" in wanted
            else None,
            "vin_error_rate": error_rate(fields.get("VIN"), wanted["VIN"]) if "VIN" in wanted else None,
            "json_rate": float(told is not None),
        }
        for name, value in row.items():
            scores.setdefault(name, []).append(value)
    return scores


def field_accuracy(predictions: list, references: list[dict]) -> dict[str, float]:
    """Return the means over the rows: field_accuracy is the share of a row's fields that are right.

    mileage_error is relative and at most 1; the error rates of plates and VINs are by character. Scores of
    fields that no reference holds are left out.
    """
    scores = score_rows(predictions, references)
    known = {name: [value for value in values if value is not None] for name, values in scores.items()}
    return {name: sum(values) / len(values) for name, values in known.items() if values}


def mean_and_interval(values: list[float | None]) -> tuple[float, float, float]:
    """Return the mean and its bootstrap 95% interval, over the values that are not None."""
    numbers = np.array([value for value in values if value is not None] or [math.nan])
    means = np.random.default_rng(0).choice(numbers, (2000, len(numbers))).mean(1)
    return float(numbers.mean()), *map(float, np.percentile(means, [2.5, 97.5]))


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


# %% Model
if GPU:
    model, processor = FastVisionModel.from_pretrained(
        MODEL, dtype=DTYPE and getattr(torch, DTYPE),  # FastVisionModel takes no name
        load_in_4bit=LOAD_IN_4BIT, use_gradient_checkpointing=GRADIENT_CHECKPOINTING,
    )  # fmt: skip
    model = FastVisionModel.get_peft_model(
        model, r=LORA_R, lora_alpha=LORA_ALPHA, lora_dropout=0, bias="none",
        finetune_vision_layers=FINETUNE_VISION_LAYERS, finetune_language_layers=FINETUNE_LANGUAGE_LAYERS,
        finetune_attention_modules=FINETUNE_ATTENTION_MODULES, finetune_mlp_modules=FINETUNE_MLP_MODULES,
        use_gradient_checkpointing=GRADIENT_CHECKPOINTING, random_state=SEED,
    )  # fmt: skip
    never = 10**6  # tokens: a row that is cut loses image tokens; MAX_PIXELS keeps rows short
    collator = UnslothVisionDataCollator(model, processor, never, resize="max", completion_only_loss=True)
else:  # Unsloth's CPU backend has no vision models: the same adapter by PEFT, and TRL's own collator
    processor = AutoProcessor.from_pretrained(MODEL)
    model = AutoModelForImageTextToText.from_pretrained(MODEL, dtype=torch.float32)
    layers = "|".join(["visual"] * FINETUNE_VISION_LAYERS + ["language_model"] * FINETUNE_LANGUAGE_LAYERS)
    modules = ["q_proj|k_proj|v_proj|o_proj|qkv|attn.proj"] * FINETUNE_ATTENTION_MODULES
    modules += ["gate_proj|up_proj|down_proj"] * FINETUNE_MLP_MODULES
    torch.manual_seed(SEED)
    targets = rf".*\b({layers})\..*\b({'|'.join(modules)})"
    model = get_peft_model(model, LoraConfig(r=LORA_R, lora_alpha=LORA_ALPHA, target_modules=targets))
    collator = None
processor.image_processor.size = {"shortest_edge": 56 * 56, "longest_edge": MAX_PIXELS}
trainable, total = model.get_nb_trainable_parameters()
print(f"{trainable:,} of {total:,} parameters are trained ({trainable / total:.2%})")


# %% Before
def read_photos(rows: list[dict]) -> list[str]:
    """Answer the prompts of rows about their images, greedily and in batches; return the texts."""
    FastVisionModel.for_inference(model)
    texts = []
    for start in range(0, len(rows), EVAL_BATCH):
        batch = rows[start : start + EVAL_BATCH]
        prompts = [
            processor.apply_chat_template(turns["prompt"], tokenize=False, add_generation_prompt=True)
            for turns in map(to_vision_row, batch)
        ]
        inputs = processor(
            text=prompts,
            images=[[Photo.open(BytesIO(raw)) for raw in row["images"]] for row in batch],
            return_tensors="pt",
            padding=True,
            padding_side="left",
            add_special_tokens=False,
        )
        outputs = model.generate(**inputs.to(model.device), max_new_tokens=NEW_TOKENS, do_sample=False)
        answers = outputs[:, inputs.input_ids.shape[1] :]
        texts += [text.strip() for text in processor.batch_decode(answers, skip_special_tokens=True)]
    FastVisionModel.for_training(model)
    return texts


references = [row["answer"] for row in eval_rows]
before_texts = read_photos(eval_rows)
before = score_rows(before_texts, references)
print(f"Before: field_accuracy {mean_and_interval(before['field_accuracy'])[0]:.3f}")


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


same_run = {
    name: value for name, value in settings.items() if name not in ("RESUME", "TRAIN", "EXPORT", "DEMO")
}
content = hashlib.sha256(b"".join(raw for row in train_rows for raw in row["images"])).hexdigest()
answers = [[row["prompt"], row["answer"]] for row in train_rows]
fingerprint = hashlib.sha256(json.dumps([same_run, content, answers]).encode()).hexdigest()[:8]
checkpoints = Path(OUTPUT) / f"checkpoints-{fingerprint}"  # other settings are another run
steps = MAX_STEPS if MAX_STEPS > 0 else math.ceil(len(train_rows) / (BATCH_SIZE * ACCUMULATION)) * EPOCHS
trainer = SFTTrainer(
    model=model, processing_class=processor, data_collator=collator, train_dataset=train_dataset,
    eval_dataset=eval_dataset, callbacks=[StopOnNaN(), EarlyStoppingCallback(PATIENCE)],
    args=SFTConfig(
        output_dir=str(checkpoints),
        max_length=None,  # never cut: a row that loses image tokens cannot be trained on
        packing=False, remove_unused_columns=False, dataset_kwargs={"skip_prepare_dataset": True},
        include_num_input_tokens_seen="all", per_device_train_batch_size=BATCH_SIZE,
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
batch = trainer.data_collator([trainer.train_dataset[0]])
ids, trained = batch["input_ids"][0], batch["labels"][0] != -100
if not trained.any():
    raise SystemExit("Every label is masked, nothing is left to train on: is MODEL's chat template ChatML?")
masked = re.sub(r"(<\|image_pad\|>)+", "<image>", processor.tokenizer.decode(ids[~trained]))
print(f"Not trained on:\n{masked}\nTrained on:\n{processor.tokenizer.decode(ids[trained])}")
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
seconds, done = time.time() - started, trainer.state.global_step
tokens = trainer.state.num_input_tokens_seen * (done - first_step) / max(1, done)  # of this session

# %% After
after_texts = read_photos(eval_rows)
after = score_rows(after_texts, references)
table = "| held-out photos | before | after |\n|---|---|---|\n"
names = [name for name in after if any(value is not None for value in after[name])]
for name in names:
    cells = [mean_and_interval(scores[name]) for scores in (before, after)]
    table += f"| {name} | " + " | ".join("{:.3f} ({:.3f} to {:.3f})".format(*cell) for cell in cells) + " |\n"
print(table)


# %% Save
def write_text(path: Path, text: str) -> None:
    """Write a text file under a temporary name and rename it, so that no half-written file is left behind."""
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(text, encoding="utf-8")
    os.replace(temporary, path)


def neutral(value: object) -> object:
    """Return a cell that is no formula: text that begins with = + - @ gets an apostrophe."""
    value = "、".join(map(str, value)) if isinstance(value, list) else value
    value = json.dumps(value, ensure_ascii=False) if isinstance(value, dict) else value
    return f"'{value}" if isinstance(value, str) and value.lstrip()[:1] in tuple("=+-@") else value


def save_predictions(rows: list[dict], texts: list[str], path: Path) -> None:
    """Write the rows as a sheet: photos, prompt, response, the predicted fields, and these as a sentence."""
    fields = list(dict.fromkeys(name for row in rows for name in row["answer"]))
    book = Workbook()
    sheet = book.active
    sheet.append(["image", "prompt", "response", *(f"{name} (predicted)" for name in fields), "sentence"])
    for number, (row, text) in enumerate(zip(rows, texts), 2):
        told = parse_json(text) or {}
        values = [row["prompt"], json.dumps(row["answer"], ensure_ascii=False), *map(told.get, fields)]
        sheet.append([None, *map(neutral, [*values, sentence(told) if told else text])])
        sheet.row_dimensions[number].height = 60
        for raw in row["images"]:
            photo = Pasted(BytesIO(raw))
            photo.width, photo.height = round(78 * photo.width / photo.height), 78
            sheet.add_image(photo, f"A{number}")
    for column in "ABC":
        sheet.column_dimensions[column].width = 30
    temporary = path.with_name(f"tmp-{path.name}")
    book.save(temporary)
    os.replace(temporary, path)


def contact_sheet(rows: list[dict], texts: list[str], path: Path) -> None:
    """Draw photos with reference and prediction of each field, green where right and red where wrong."""
    fonts = {font.name for font in font_manager.fontManager.ttflist}
    wanted = "Noto Sans CJK SC,Noto Sans CJK JP,Microsoft YaHei,SimHei,PingFang SC,WenQuanYi Micro Hei"
    chinese = next((name for name in wanted.split(",") if name in fonts), None)
    lines = math.ceil(len(rows) / 4)
    figure, axes = plt.subplots(lines, 4, figsize=(13, 3.4 * lines), squeeze=False)
    for place in axes.flat:
        place.axis("off")
    for place, row, text in zip(axes.flat, rows, texts):
        told = parse_json(text) or {}
        place.imshow(Photo.open(BytesIO(row["images"][0])))
        for i, (name, value) in enumerate(row["answer"].items()):
            right = score_rows([told], [{name: value}])["field_accuracy"][0]
            line = f"{name}: {value} | {told.get(name, '-')}"
            line = line if chinese else re.sub("[^ -~]+", "*", line)
            style = {"color": "green" if right else "red", "family": chinese or "DejaVu Sans"}
            style["fontsize"] = 8 if len(line) < 40 else 6.5  # a VIN twice is wider than a photo
            place.text(0, -0.08 - 0.09 * i, line, transform=place.transAxes, **style)
    axes[0, 0].set_title("reference | prediction", loc="left", fontsize=9)
    figure.savefig(path.with_suffix(".tmp.png"), dpi=110, bbox_inches="tight")
    os.replace(path.with_suffix(".tmp.png"), path)


output, saving = Path(OUTPUT), Path(OUTPUT) / "lora.tmp"
model.save_pretrained(saving)
processor.save_pretrained(saving)
shutil.rmtree(adapter, ignore_errors=True)
saving.rename(adapter)

packages = ("unsloth", "unsloth_zoo", "trl", "torch", "transformers", "peft", "datasets", "bitsandbytes")
peak = torch.cuda.max_memory_reserved() or psutil.Process().memory_info().rss  # on a CPU: what is held now
metrics = {
    "scenario": "car_insurance", "model": MODEL, "device": DEVICE,
    "before": {name: round(mean_and_interval(before[name])[0], 6) for name in names},
    "after": {name: round(mean_and_interval(after[name])[0], 6) for name in names},
    "train": {
        "seconds": round(seconds, 1), "steps": done, "tokens_per_second": round(tokens / seconds, 1),
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
contact_sheet(eval_rows[:16], after_texts, output / "contact_sheet.png")
save_predictions(eval_rows, after_texts, output / "predictions.xlsx")

report = f"# car_insurance: {MODEL} on {DEVICE}\n\n"
if MODEL.startswith("data/tiny"):
    report += "**A rehearsal with a tiny model: what it reads is of no use to anyone.**\n\n"
report += f"""{table}
{len(eval_rows)} rows in styles that are not in training ({styles}); mean and bootstrap 95% interval.
All of them are in predictions.xlsx.

![held-out photos](contact_sheet.png)

![loss](loss.png)
"""
for row, earlier, later in list(zip(eval_rows, before_texts, after_texts))[:3]:
    report += f"\n## Row {row['number']}\n\n{row['prompt']}\n\nReference: {sentence(row['answer'])}\n"
    report += f"\n### Before\n\n```\n{earlier}\n```\n\n### After\n\n```\n{later}\n```\n"
report += f"\n## Run\n\n```json\n{json.dumps(metrics['train'] | metrics['versions'], indent=1)}\n```\n"
write_text(output / "report.md", report)
shutil.rmtree(checkpoints, ignore_errors=True)  # the run is complete: the next one starts afresh
print(f"Saved in {OUTPUT}: lora, metrics.json, report.md, loss.png, contact_sheet.png, predictions.xlsx")
if EXPORT == "merged_16bit":
    source = re.sub("(-unsloth)?-bnb-4bit$", "", MODEL)  # 4-bit weights would pass their rounding errors on
    base = AutoModelForImageTextToText.from_pretrained(source, dtype=torch.bfloat16, device_map="cpu")
    PeftModel.from_pretrained(base, adapter).merge_and_unload().save_pretrained(output / EXPORT)
    processor.save_pretrained(output / EXPORT)
    print(f"Merged into {source}: {output / EXPORT}")


# %% Try it
def read_photo(photo, prompt: str) -> tuple[str, dict]:
    """Return the sentence and the fields that the model reads from a PIL photo."""
    file = BytesIO()
    photo.convert("RGB").save(file, "PNG")
    raw, _ = upright_rgb(file.getvalue())
    text = read_photos([{"images": [raw], "prompt": prompt, "answer": {}}])[0]
    fields = parse_json(text)
    return (sentence(fields), fields) if fields else (text, {})


example = eval_rows[0]
print(example["prompt"], *read_photo(example["image"], example["prompt"]), sep="\n")
if DEMO:
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # read when gradio is imported
    import gradio

    asked = sorted({row["prompt"] for row in rows})
    inputs = [gradio.Image(type="pil"), gradio.Dropdown(asked, label="prompt", allow_custom_value=True)]
    outputs = [gradio.Textbox(label="sentence"), gradio.JSON(label="fields")]
    page = gradio.Interface(read_photo, inputs, outputs, title=Path(MODEL).name, flagging_mode="never")
    page.launch(server_name="127.0.0.1")
