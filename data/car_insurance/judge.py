# %% [markdown]
"""
# What a model reads from car photos: sheet of photos, sheet of predictions, report

Runs no model: `vl_car_insurance.py` lets it read the held-out photos before and after training; this program scores the
fields that were read, shows them next to the photos, and says what the scores allow to conclude.

Run:    `uv run data/car_insurance/judge.py outputs/car_insurance`
        `uv run data/car_insurance/judge.py OUTPUT_A OUTPUT_B` compares two models on the rows that both have read
Data:   OUTPUT/answers.jsonl, a row a line: {"input": "读取……", "image": ["pictures/001.jpg"], "style": "twin_dials",
        "reference": "{\\"里程数\\": 12345}", "before": "…", "after": "…"}; OUTPUT/metrics.json, where there is one
Writes: OUTPUT/contact_sheet.png, predictions.xlsx, report.md, and the scores into metrics.json if they are not there yet
"""

# %% Imports
import base64
import json
import math
import re
import sys
import unicodedata
from contextlib import suppress
from http.client import HTTPException
from io import BytesIO
from itertools import islice
from pathlib import Path
from urllib.request import Request, urlopen

import numpy as np
import pandas as pd
from matplotlib import font_manager
from matplotlib.figure import Figure
from openpyxl import Workbook
from openpyxl.drawing.image import Image as Pasted
from PIL import Image, ImageOps
from scipy import stats

# %% Settings
SHOWN = 16  # rows on the contact sheet
SAMPLES = 3  # rows in the report
ENDPOINT = ""  # "http://127.0.0.1:8080/v1": this server reads the photos, too, as the column exported
SERVED = ""  # the model's name there, for servers that hold several
MAX_TOKENS = 160  # of such an answer
MAX_PIXELS = 602_112  # of a photo that is sent there: as many as vl_car_insurance.py shows its model
FONTS = (
    "Noto Sans CJK SC",
    "Microsoft YaHei",
    "SimHei",
    "PingFang SC",
    "WenQuanYi Micro Hei",
)  # Chinese ones
# what neither a sheet nor a font takes
CONTROL = re.compile(r"[^\n\t\x20-\x7e\x80-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
SCORES = {"before", "after", "difference"}  # in metrics.json
MAX_FIELDS = 100  # different ones in all references
FORMATS = ("JPEG", "PNG", "BMP", "GIF", "TIFF", "WEBP", "JPEG2000", "AVIF")  # EPS would start another program
UNITS = {"KM": "公里", "千米": "公里", "公里": "公里", "MI": "英里", "MILES": "英里", "英里": "英里"}


# %% Score
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


def compare(before: list[float], after: list[float]) -> dict[str, float | None]:
    """Return the mean paired difference after - before, its bootstrap 95% interval and permutation p-value.

    `smallest` is what so many rows show in 80% of cases: 2.8 standard errors. None: too few rows to say.
    """
    change = np.subtract(after, before)
    value = low = high = float(change.mean())
    p = smallest = None
    if len(change) > 1:
        p = float(stats.permutation_test((change,), np.mean, permutation_type="samples", rng=0).pvalue)
    if np.ptp(change) > 0:
        low, high = map(float, stats.bootstrap((change,), np.mean, rng=0).confidence_interval)
        smallest = 2.8 * float(stats.sem(change))
    return {"value": value, "low": low, "high": high, "p": p, "smallest": smallest}


def compared(before: list, after: list, references: list[dict]) -> dict[str, dict]:
    """Return before, after and difference of two lists of answers to the same rows, as in metrics.json."""
    old, new = score_rows(before, references), score_rows(after, references)
    found = {"before": field_accuracy(before, references), "after": field_accuracy(after, references)}
    found["difference"] = {}
    for name in found["before"]:
        pairs = [pair for pair in zip(old[name], new[name]) if pair[0] is not None]
        found["difference"][name] = compare(*zip(*pairs))
    return found


# %% Read
def say(text: str) -> None:
    """Print a line in any terminal: what its encoding lacks becomes a question mark."""
    encoding = sys.stdout.encoding or "utf-8"
    print(text.encode(encoding, "replace").decode(encoding))


def read_answers(path: Path) -> list[dict]:
    """Return the rows of an answers.jsonl, or of the one in a folder, with the reference as a dict."""
    path, rows, fields = path / "answers.jsonl" if path.is_dir() else path, [], set()
    if not path.is_file():
        raise ValueError(f"{path} is not there: run vl_car_insurance.py, or name the OUTPUT of a run")
    for number, line in enumerate(path.read_bytes().split(b"\n"), 1):
        try:
            row = json.loads(line) if line.strip() else None
            if row is not None:
                images = [row["image"]] if isinstance(row.get("image"), str) else row.get("image") or []
                answers = [row["after"], *(row[name] for name in ("before", "exported") if name in row)]
                if not all(isinstance(answer, str) for answer in answers):
                    raise TypeError("an answer is no text")
                if row["reference"].count("[") + row["reference"].count("{") > 200:
                    raise ValueError("a reference that is nested deep")
                row["reference"] = json.loads(row["reference"])
                fields |= row["reference"].keys()  # an object
                if len(fields) > MAX_FIELDS:
                    raise ValueError(f"more than {MAX_FIELDS} different fields")
                rows.append({**row, "image": [str(name) for name in images]})
        except (AttributeError, KeyError, TypeError, ValueError, RecursionError) as error:
            raise ValueError(f"{path}, line {number}: no row with reference and after ({error!r})") from None
    if not all(row["reference"] for row in rows) or not rows:
        raise ValueError(f"{path} holds no row, or one whose reference has no field")
    return rows


def to_rgb(image: Image.Image) -> Image.Image:
    """Return a picture upright and in RGB: 16 bits scaled to its own range, transparent pixels white."""
    try:
        side = int(MAX_PIXELS**0.5)
        image.draft(None, (side, side))  # a large JPEG is decoded at a half or a quarter of its size
        image.load()
        image = ImageOps.exif_transpose(image)
        if image.mode[0] in "IF":
            if (factor := int((image.width * image.height / (4 * MAX_PIXELS)) ** 0.5)) > 1:
                image = image.convert("F").reduce(factor)  # what is scaled down anyway
            values = np.asarray(image, "float64")
            if not np.isfinite(values).all():
                raise ValueError("it holds values that are no numbers")
            image = Image.fromarray((255 * (values - values.min()) / (np.ptp(values) or 1)).astype("uint8"))
        if image.has_transparency_data:
            image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image.convert("RGBA"))
        return image.convert("RGB")
    except Exception as error:  # of Pillow's decoders
        raise ValueError(f"not a readable picture ({error}): save it again as JPEG") from None


def find_photo(name: str, folder: Path) -> Image.Image:
    """Return a photo that is here, in the run's folder or beside this program: upright, without transparency."""
    places = [place / name for place in (Path(), folder, Path(__file__).parent)]
    photo = Image.open(next(place for place in places if place.is_file()), formats=FORMATS)
    if photo.width * photo.height > 100 * MAX_PIXELS:  # of no phone
        raise ValueError("too many pixels")
    return to_rgb(photo)


def photo_strip(names: list[str], folder: Path, height: int) -> Image.Image:
    """Return the first 8 photos of a row side by side, upright; a grey one stands for a file that is no photo."""
    photos = []
    for name in names[:8] or [""]:
        try:
            photo = find_photo(name, folder)
            width = round(height * min(photo.width / photo.height, 8))  # a strip is squeezed
            photos.append(photo.resize((max(1, width), height)))
        except Exception as error:  # no such file, or one that Pillow cannot read
            say(f"{fit(name, 80)}: a photo that is not shown ({type(error).__name__})")
            photos.append(Image.new("RGB", (height, height), "lightgrey"))
    return Image.fromarray(np.hstack(photos))


# %% Ask
def question(row: dict, folder: Path) -> list[dict]:
    """Return what a row asks in OpenAI's form: its photos, of at most MAX_PIXELS, as data: URIs, and its text.

    ValueError names a photo that cannot be read: an answer without it would say nothing.
    """
    content = []
    for name in row["image"]:
        try:
            photo, file = find_photo(name, folder), BytesIO()
        except Exception as error:  # no such file, or one that Pillow cannot read
            reason = f"{type(error).__name__}: put it back, or empty ENDPOINT"
            raise ValueError(f"{fit(name, 80)}: a photo that cannot be sent ({reason})") from None
        scale = min(1, math.sqrt(MAX_PIXELS / (photo.width * photo.height)))
        photo = photo.resize([max(1, int(scale * side)) for side in photo.size])
        photo.save(file, "PNG")
        url = f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"
        content.append({"type": "image_url", "image_url": {"url": url}})
    return [{"role": "user", "content": [*content, {"type": "text", "text": str(row.get("input") or "")}]}]


def ask(messages: list[dict]) -> tuple[str, bool]:
    """Return the greedy answer of the server at ENDPOINT and whether it ended by itself; ValueError without one."""
    body = {"model": SERVED, "messages": messages, "temperature": 0, "max_tokens": MAX_TOKENS}
    address = f"{ENDPOINT.rstrip('/')}/chat/completions"
    request = Request(address, json.dumps(body).encode(), {"Content-Type": "application/json"})
    try:
        with urlopen(request, timeout=600) as reply:
            choice = json.load(reply)["choices"][0]
            return choice["message"]["content"] or "", choice.get("finish_reason") == "stop"
    except (OSError, HTTPException, ValueError, LookupError, TypeError, AttributeError) as error:
        raise ValueError(
            f"{ENDPOINT} gives no answer ({error}): start the server, or empty ENDPOINT"
        ) from None


# %% Show
def fit(value: object, length: int) -> str:
    """Return a value as text that sheets and fonts take: no control characters, at most so many letters."""
    text = CONTROL.sub("\ufffd", str(value))
    return text if len(text) <= length else text[: length - 1] + "…"


def neutral(value: object) -> object:
    """Return a cell that a sheet can hold and that is no formula: text with = + - @ in front gets an apostrophe."""
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, (int, float)) and abs(value) < 10**15:  # NaN is not
        return value
    value = "、".join(map(str, value)) if isinstance(value, list) else value
    value = json.dumps(value, ensure_ascii=False) if isinstance(value, dict) else value
    text = fit(value, 32_000)
    starts = unicodedata.normalize("NFKC", text).lstrip()[:1] in tuple("=+-@")
    return f"'{text}" if starts else text


def save_predictions(rows: list[dict], folder: Path, path: Path) -> None:
    """Write the rows as a sheet: photos, prompt, response, the predicted fields, and these as a sentence."""
    fields = list(dict.fromkeys(name for row in rows for name in row["reference"]))
    book = Workbook()
    sheet = book.active
    titles = ["image", "prompt", "response", *(f"{name} (predicted)" for name in fields), "sentence"]
    sheet.append([neutral(title) for title in titles])
    for number, row in enumerate(rows, 2):
        told = parse_json(row["after"]) or {}
        values = [row.get("input"), json.dumps(row["reference"], ensure_ascii=False), *map(told.get, fields)]
        sheet.append([None, *map(neutral, values), neutral(sentence(told) if told else row["after"])])
        sheet.row_dimensions[number].height = 60
        file = BytesIO()
        photo_strip(row["image"], folder, 234).save(file, "JPEG", quality=85)
        pasted = Pasted(file)
        pasted.width, pasted.height = round(78 * pasted.width / pasted.height), 78
        sheet.add_image(pasted, f"A{number}")
    for column in "ABC":
        sheet.column_dimensions[column].width = 30
    book.save(path)


def chinese_font() -> list[str]:
    """Return the first of FONTS that is installed in a list, [] without one; matplotlib's own list may be old."""
    fonts = font_manager.fontManager
    if not set(FONTS) & {font.name for font in fonts.ttflist}:
        for file in set(font_manager.findSystemFonts()) - {font.fname for font in fonts.ttflist}:
            with suppress(Exception):  # of FreeType, on a file that is no font
                fonts.addfont(file)
    installed = {font.name for font in fonts.ttflist}
    return [name for name in FONTS if name in installed][:1]


def contact_sheet(rows: list[dict], folder: Path, path: Path) -> None:
    """Draw photos with reference and prediction of each field, green where right and red where wrong."""
    chinese = chinese_font()
    lines = math.ceil(len(rows) / 4)
    figure = Figure(figsize=(13, 3.6 * lines))
    axes = figure.subplots(lines, 4, squeeze=False)
    for place in axes.flat:
        place.axis("off")
    for place, row in zip(axes.flat, rows):
        told = parse_json(row["after"]) or {}
        place.imshow(photo_strip(row["image"], folder, 320))
        for i, (name, value) in enumerate(row["reference"].items()):
            right = score_rows([told], [{name: value}])["field_accuracy"][0]
            line = fit(f"{name}: {value} | {told.get(name, '-')}".replace("\n", " "), 60)
            line = line if chinese else re.sub("[^ -~]+", "*", line)  # no font here draws Chinese
            drawn = place.text(0, -0.08 - 0.09 * i, line, transform=place.transAxes, parse_math=False)
            drawn.set(color="green" if right else "red", family=[*chinese, "DejaVu Sans"])
            drawn.set_fontsize(8 if len(line) < 40 else 6.5)  # a VIN twice is wider than a photo
    hint = "" if chinese else "   (* is Chinese: install a font for it, such as fonts-noto-cjk)"
    axes[0, 0].set_title(f"reference | prediction{hint}", loc="left", fontsize=9)
    figure.savefig(path, dpi=110, bbox_inches="tight")


# %% Report
def fenced(text: str) -> str:
    """Return a text as a Markdown code block that it cannot leave: the fence is longer than any inside."""
    text = re.sub(r"[^\n\t\x20-\x7e\x80-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]", "\ufffd", text)
    fence = "`" * max(3, *(len(run) + 1 for run in re.findall("`+", text)), 3)
    return f"{fence}\n{text}\n{fence}\n"


def table_of(metrics: dict, names: tuple = ("before", "after")) -> str:
    """Return two columns of scores and their difference, with interval and p, as a Markdown table."""
    table = pd.DataFrame({names[0]: metrics["before"], names[1]: metrics["after"]})
    change = pd.DataFrame(metrics["difference"]).T.reindex(columns=["value", "low", "high", "p"])
    table = table.join(change.rename(columns={"value": "difference"}))
    return table.astype(float).to_markdown(floatfmt=".3f") + "\n"


def conclusion(difference: dict, rows: list[dict]) -> str:
    """Return what the difference in field accuracy allows to say."""
    found = difference.get("field_accuracy") or {}
    low, high, smallest = found.get("low"), found.get("high"), found.get("smallest")
    if low is None or high is None:
        return "No interval is known: nothing can be concluded from the difference.\n"
    styles = {style for row in rows for style in str(row.get("style", "")).split("+")}
    text = f"{len(rows)} rows in {len(styles)} styles that were not trained on. "
    if low > 0 or high < 0:
        change = f"{'rose' if low > 0 else 'fell'} by {abs(found['value']):.3f}"
        text += f"Field accuracy {change}, more than chance would. "
    else:
        text += "The interval of field accuracy holds 0: these rows show no difference. "
    if smallest:
        text += f"So many rows miss a difference below {smallest:.3f} in more than one case of five. "
    return text + "Photos of one style are alike: with few styles the interval is narrower than the truth.\n"


def write_report(metrics: dict, table: str, rows: list[dict], path: Path) -> None:
    """Write table, conclusion, figures and some answers side by side."""
    model = " ".join(fit(metrics.get("model", "a model"), 200).replace("`", "").split())
    report = f"# car_insurance: `{model}`, {len(rows)} held-out rows\n\n"
    if str(metrics.get("model")).startswith("data/tiny"):
        report += "**A rehearsal with a tiny model: what it reads is of no use to anyone.**\n\n"
    report += f"{table}\n{conclusion(metrics['difference'], rows)}\n"
    report += "mileage_error is relative and at most 1, the error rates are by character: lower is better.\n"
    report += "All rows are in predictions.xlsx.\n\n![photos](contact_sheet.png)\n\n![loss](loss.png)\n"
    for number, row in enumerate(rows[:SAMPLES], 1):
        shown = {"asked": row.get("input"), "reference": sentence(row["reference"])}
        shown |= {name: row[name] for name in ("before", "after", "exported") if name in row}
        report += f"\n## Held-out photo {number}\n"
        report += "".join(f"\n{name.capitalize()}:\n\n{fenced(str(text))}" for name, text in shown.items())
    run = metrics.get("train", {}) | metrics.get("versions", {}) | {"device": metrics.get("device")}
    report += f"\n## Run\n\n{fenced(json.dumps(run, ensure_ascii=False, indent=1))}"
    path.write_text(report, encoding="utf-8")


def scores_of_run(path: Path) -> dict:
    """Return a run's metrics.json, {} where there is none; ValueError if it is damaged."""
    try:
        if path.exists() and not path.is_file():
            raise ValueError("no regular file")
        metrics = dict(json.loads(path.read_text(encoding="utf-8"))) if path.exists() else {}
        for name in ("train", "versions"):
            dict(metrics.get(name, {}))  # fails here, not in the middle of the report; so do the two below
        if SCORES <= metrics.keys():
            table_of(metrics)
            conclusion(metrics["difference"], [])
    except (AttributeError, KeyError, TypeError, ValueError, RecursionError) as error:
        raise ValueError(f"{path} is damaged ({error}): delete it, and the answers are scored anew") from None
    return metrics


def judge(output: Path) -> str:
    """Write contact sheet, predictions, report and, where they lack, the scores of a run; return its table."""
    rows, path = read_answers(output), output / "metrics.json"
    references, after = ([row[name] for row in rows] for name in ("reference", "after"))
    metrics = scores_of_run(path)
    if not SCORES <= metrics.keys():
        lacking = next((number for number, row in enumerate(rows, 1) if "before" not in row), None)
        if lacking:  # what was not asked is not wrong
            raise ValueError(
                f"{output}: row {lacking} of answers.jsonl has no before, metrics.json no scores"
            )
        metrics |= compared([row["before"] for row in rows], after, references)
    table = table_of(metrics)
    for row in rows if ENDPOINT else []:
        row["exported"], row["exported_ended"] = ask(question(row, output))
    exports = sum("exported" in row for row in rows)
    if 0 < exports < len(rows):
        say(f"exported: in {exports} of {len(rows)} rows, not scored")
    if exports == len(rows):
        exported = compared(after, [row["exported"] for row in rows], references)
        metrics["exported"] = exported["after"]
        table += "\n" + table_of(exported, ("adapter", "exported"))
    path.write_text(json.dumps(metrics, ensure_ascii=False, indent=2), encoding="utf-8")
    contact_sheet(rows[:SHOWN], output, output / "contact_sheet.png")
    save_predictions(rows, output, output / "predictions.xlsx")
    write_report(metrics, table, rows, output / "report.md")
    return table


def pair(first: list[dict], second: list[dict]) -> list[tuple[dict, dict]]:
    """Return the rows that both have, each once: the same photos (by file name), question and reference."""

    def key(row: dict) -> str:
        return json.dumps([[Path(name).name for name in row["image"]], row.get("input"), row["reference"]])

    known = {}
    for row in reversed(second):
        known.setdefault(key(row), []).append(row)
    return [(row, known[key(row)].pop()) for row in first if known.get(key(row))]


# %% Run
outputs = [Path(argument) for argument in sys.argv[1:]] or [Path("outputs/car_insurance")]
try:
    if len(outputs) == 1:
        say(judge(outputs[0]))
        say(f"Saved in {outputs[0]}: report.md, contact_sheet.png, predictions.xlsx")
    else:
        if len(outputs) > 2:
            raise ValueError(f"{len(outputs)} folders: name one to judge it, or two to compare them")
        runs = [read_answers(output) for output in outputs]
        pairs = pair(*runs)
        if not pairs:
            raise ValueError(f"{outputs[0]} and {outputs[1]} have no row in common")
        for output, rows in zip(outputs, runs):
            if len(rows) > len(pairs):
                lonely = "left out: the other run has no such photo with this question and reference"
                say(f"{output}: {len(rows) - len(pairs)} of {len(rows)} rows {lonely}")
        first, second = ([row["after"] for row in rows] for rows in zip(*pairs))
        metrics = compared(first, second, [row["reference"] for row, _ in pairs])
        say(table_of(metrics, outputs))
        say(conclusion(metrics["difference"], [row for row, _ in pairs]))
except (ValueError, OSError) as error:
    raise SystemExit(str(error)) from None
