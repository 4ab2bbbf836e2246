# %% [markdown]
"""
# Did it help? The table and the report of an instruction run

Compares the answers of the base model with those of the tuned one: held-out loss, likeness to the reference,
whether the answers end by themselves, and what general ability was lost. Each difference comes with its interval.

Run:    `uv run data/alpaca/judge.py outputs/alpaca`; sft_alpaca.py runs it itself
Data:   answers.jsonl (prompt, reference, before, after, perhaps exported) and metrics.json of that folder
Writes: report.md, and before, after and difference into metrics.json
"""

# %% Imports
import json
import os
import re
import sys
from http.client import HTTPException
from pathlib import Path
from urllib.request import Request, urlopen

import numpy as np
import pandas as pd
from sacrebleu import sentence_chrf
from scipy import stats

# %% Settings
OUTPUT = "outputs/alpaca"  # or the first argument
SHOWN = 3  # answers side by side in report.md
ENDPOINT = ""  # "http://127.0.0.1:8080/v1": this server answers the prompts, too, as the column exported
SERVED = ""  # the model's name there, for servers that hold several
MAX_TOKENS = 512  # of such an answer


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
def score(answers: pd.DataFrame, column: str) -> dict[str, list[float]]:
    """Return a value an answer: chrF against the reference (0 to 100), whether it ended by itself (0 or 1)."""
    pairs = zip(answers[column].fillna(""), answers["reference"])
    scores = {"chrf": [sentence_chrf(text, [reference]).score for text, reference in pairs]}
    if f"{column}_ended" in answers:
        scores["ended_by_itself"] = answers[f"{column}_ended"].astype(float).tolist()
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
losses = metrics.get("losses") or {}  # by the script, a value a row
old, new = (
    {name: values for name, values in (losses.get(column) or {}).items() if values}
    for column in ("before", "after")
)
before, after = old | score(answers, "before"), new | score(answers, "after")
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
report += f"{table}\n\n{conclusions(metrics['difference'])}\nchrF compares letters with one reference: "
report += "another answer can be as good.\n\n![loss](loss.png)\n"
for row in answers.head(SHOWN).to_dict("records"):
    report += f"\n## Asked\n\n{fenced(row['prompt'][-1]['content'])}"
    for title in ("reference", "before", "after"):
        report += f"\n{title.capitalize()}:\n\n{fenced(row[title])}"
facts = (metrics.get("train") or {}) | (metrics.get("versions") or {})
report += f"\n## Run\n\n{fenced(json.dumps(facts, indent=1))}"
(folder / "report.md").write_text(report, encoding="utf-8")
print(table)
