# %% [markdown]
"""
# Did it help? The table and the report of a reasoning run

Compares the answers of the base model with those of the tuned one: is the number between the answer tags the right
one, is the form kept, does the answer end by itself. Each difference comes with its interval.

Run:    `uv run data/r1/judge.py outputs/r1`; grpo_r1.py runs it itself
Data:   answers.jsonl (prompt, reference, before, after, perhaps votes and exported) and metrics.json of that folder
Writes: report.md, and before, after and difference into metrics.json
"""

# %% Imports
import json
import os
import re
import sys
from fractions import Fraction
from http.client import HTTPException
from pathlib import Path
from urllib.request import Request, urlopen

import numpy as np
import pandas as pd
from scipy import stats

# %% Settings
OUTPUT = "outputs/r1"  # or the first argument
SHOWN = 3  # answers side by side in report.md
ENDPOINT = ""  # "http://127.0.0.1:8080/v1": this server answers the prompts, too, as the column exported
SERVED = ""  # the model's name there, for servers that hold several
MAX_TOKENS = 512  # of such an answer


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


def strict_format_reward_func(prompts, completions, answer=None, **kwargs) -> list[float]:
    """Return 0.5 where a text is both pairs of tags, filled, once, each tag on a line of its own, else 0."""
    texts = [text.replace("\r\n", "\n") for text in texts_of(completions)]
    return [0.5 * bool(SOFT.fullmatch(text) and STRICT.fullmatch(text)) for text in texts]


# %% Read a run
def read_metrics(path: Path) -> dict:
    """Return metrics.json of a run, {} where none is; ValueError if it is broken, or the losses do not pair."""
    if not os.path.lexists(path):
        return {}
    if not path.is_file():
        raise ValueError(f"{path} is not a regular file")
    try:
        metrics = json.loads(path.read_bytes())
        names = ("before", "after", "difference", "losses", "train", "versions")
        before, after, difference, losses, *_ = [dict(metrics.get(name) or {}) for name in names]
        old, new = (dict(losses.get(name) or {}) for name in ("before", "after"))
        pairs = [np.array([old[name], new[name]]) for name in old | new]
        means = [value for value in [*before.values(), *after.values()] if value is not None]
        good = all(pair.ndim == 2 and pair.dtype.kind in "if" for pair in pairs)
        if not good or not all(isinstance(value, (int, float)) for value in means):
            raise ValueError("losses, before and after hold numbers, as many losses before as after")
        if not all(isinstance(change, dict) for change in difference.values()):
            raise ValueError("difference holds objects")
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise ValueError(f"{path} is broken: {error!r:.200}; run the training script again") from None
    return metrics


def read_run(folder: Path) -> tuple[pd.DataFrame, dict]:
    """Return answers.jsonl and metrics.json of a run; ValueError names the file, and the line, that is none."""
    path, rows = folder / "answers.jsonl", []
    if not path.is_file():
        raise ValueError(f"{path} is not a regular file")
    for number, line in enumerate(path.read_bytes().split(b"\n"), 1):
        try:
            row = json.loads(line) if line.strip() else None
            if row is not None:
                texts = [row["prompt"][-1]["content"], row["reference"], row["before"], row["after"]]
                texts += [row["exported"]] if "exported" in row else []
                votes = [vote for name in row if name.endswith("_votes") for vote in row[name] or []]
                texts += [text for text, _ in votes]
                ended = [row[name] for name in row if name.endswith("_ended")]
                if not all(isinstance(text, str) for text in texts) or not set(ended) <= {True, False}:
                    raise TypeError("what should be a text, or true or false, is none")
                "".join(texts).encode()  # halves of letters are no text
                rows.append(row)
        except (ValueError, TypeError, KeyError, IndexError, AttributeError, RecursionError) as error:
            said = f"no row with prompt, reference, before and after ({error!r:.200})"
            raise ValueError(f"{path}, line {number}: {said}") from None
    if not rows or any(row.keys() != rows[0].keys() for row in rows):
        raise ValueError(f"{path} holds {'rows with different columns' if rows else 'no row'}")
    if not (metrics := read_metrics(folder / "metrics.json")):
        raise ValueError(f"{folder / 'metrics.json'} is not there, or empty")
    return pd.DataFrame(rows), metrics


# %% Score
def vote(group: list[tuple[str, bool]]) -> Fraction | None:
    """Return the most frequent number among the answers to one problem, None if none gives one."""
    values = [number_of(extract_xml_answer(text)) for text, _ in group]
    values = [value for value in values if value is not None]
    return max(values, key=values.count, default=None)


def score(answers: pd.DataFrame, column: str) -> dict[str, list[float]]:
    """Return metric -> a value an answer, 0 or 1: the right number, the form kept, ended by itself, votes."""
    texts, references = answers[column].fillna("").tolist(), answers["reference"].tolist()
    scores = {
        "accuracy": [reward / 2 for reward in correctness_reward_func(None, texts, references)],
        "format_rate": [reward * 2 for reward in strict_format_reward_func(None, texts)],
    }
    if f"{column}_ended" in answers:
        scores["ended_by_itself"] = answers[f"{column}_ended"].astype(float).tolist()
    if f"{column}_votes" in answers and answers[f"{column}_votes"].notna().all():
        pairs = zip(answers[f"{column}_votes"], map(str, references))
        scores["accuracy_of_votes"] = [float(vote(group) == number_of(right)) for group, right in pairs]
    return scores


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


# %% Report
def fenced(text: str) -> str:
    """Return a text as a Markdown code block that it cannot leave: the fence is longer than any inside."""
    text = re.sub(r"[^\n\t\x20-\x7e\x80-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]", "\ufffd", text)
    fence = "`" * max(3, *(len(run) + 1 for run in re.findall("`+", text)), 3)
    return f"{fence}\n{text}\n{fence}\n"


def conclusions(difference: dict[str, dict]) -> str:
    """Return one line a metric: whether it changed by more than chance, and what could have been seen."""
    lines = ""
    for name, change in difference.items():
        if change["smallest"] is None or change["p"] is None:
            lines += f"- {name}: too few rows, or no row that changed, to say more.\n"
            continue
        more = "more than chance" if change["p"] < 0.05 else "no more than chance may do"
        lines += f"- {name}: {change['value']:+.3f}, {more} (p = {change['p']:.3f}); "
        lines += f"with so few rows a change below {change['smallest']:.3f} would mostly stay unseen.\n"
    return lines


def markdown_table(before: dict, after: dict, difference: dict) -> str:
    """Return the means and the differences with their intervals as a Markdown table."""
    table = pd.DataFrame({"before": before, "after": after})
    table = table.join(pd.DataFrame(difference).T[["value", "low", "high", "p"]])
    return table.rename(columns={"value": "difference"}).astype(float).to_markdown(floatfmt=".3f")


def check_writable(*paths: Path) -> None:
    """Raise ValueError for the first path that cannot be written as a file: before the work, not after it."""
    for path in paths:
        good = path.is_file() if os.path.lexists(path) else path.parent.is_dir()
        if not good or not os.access(path if path.exists() else path.parent, os.W_OK):
            raise ValueError(f"{path} cannot be written: name a file in a folder that is there")


# %% Run
folder = Path(sys.argv[1] if len(sys.argv) > 1 else OUTPUT)
try:
    answers, metrics = read_run(folder)
    check_writable(folder / "metrics.json", folder / "report.md")
except (OSError, ValueError) as error:
    raise SystemExit(f"{folder} holds no finished run: {error}") from None
try:
    if ENDPOINT:
        answers[["exported", "exported_ended"]] = [ask(messages) for messages in answers["prompt"]]
except ValueError as error:
    raise SystemExit(str(error)) from None
before = score(answers, "before")
after = score(answers, "after")
metrics["before"] = {name: float(np.mean(values)) for name, values in before.items()}
metrics["after"] = {name: float(np.mean(values)) for name, values in after.items()}
metrics["difference"] = {name: compare(before[name], after[name]) for name in after}
table = markdown_table(metrics["before"], metrics["after"], metrics["difference"])
if "exported" in answers:
    exported = score(answers, "exported")
    metrics["exported"] = {name: float(np.mean(values)) for name, values in exported.items()}
    changes = {name: compare(after[name], exported[name]) for name in exported}
    table += "\n\nThe exported model against the adapter:\n\n"
    table += markdown_table(metrics["after"], metrics["exported"], changes)
(folder / "metrics.json").write_text(json.dumps(metrics, ensure_ascii=False, indent=2), encoding="utf-8")

model = str(metrics.get("model", "an unnamed model"))
report = f"# {model}, {len(answers)} held-out rows\n\n"
if model.startswith("data/tiny"):
    report += "**A rehearsal on a tiny model: what it writes is of no use to anyone.**\n\n"
report += (
    f"{table}\n\n{conclusions(metrics['difference'])}\nAnswered greedily; format_rate asks for each tag "
)
report += "on a line of its own.\n\n![reward](reward.png)\n"
order = np.argsort(np.subtract(before["accuracy"], after["accuracy"]), kind="stable")
for row in answers.iloc[[*order[: SHOWN - 1], order[-1]]].to_dict("records"):  # learned, perhaps lost
    report += f"\n## Asked\n\n{fenced(row['prompt'][-1]['content'])}"
    for title in ("reference", "before", "after"):
        report += f"\n{title.capitalize()}:\n\n{fenced(row[title])}"
facts = (metrics.get("train") or {}) | (metrics.get("versions") or {})
report += f"\n## Run\n\n{fenced(json.dumps(facts, indent=1))}"
(folder / "report.md").write_text(report, encoding="utf-8")
print(table)
