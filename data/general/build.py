# %% [markdown]
"""
# Build the general rows

Takes everyday questions and answers out of `data/corpus`: rows of no scenario, on which the scripts measure what
fine-tuning makes a model forget, and which REPLAY_SHARE mixes into training. The tiny models were pretrained on them.

Run:    `uv run data/general/build.py`
Writes: `data/general/rows.jsonl`
"""

# %% Imports
import json
import random
import re
from pathlib import Path

# %% Settings
CORPUS = Path(__file__).parent.parent / "corpus"
FILES = ("everyday.zh.txt", "everyday.en.txt")  # half Chinese, half English
ROWS = 120  # of each file
LENGTHS = (20, 200)  # characters of an answer
SEED = 3407


# %% Data
def general_rows(text: str) -> list[dict]:
    """Return the `Q:` / `A:` pairs of a text as instruction rows whose answers are of usual length."""
    pairs = re.findall(r"(?m)^Q: ?(.*)\nA: ?(.*)$", text)
    rows = [{"instruction": question.strip(), "output": answer.strip()} for question, answer in pairs]
    return [row for row in rows if LENGTHS[0] <= len(row["output"]) <= LENGTHS[1]]


# %% Run
chosen = []
for name in FILES:
    found = general_rows((CORPUS / name).read_text(encoding="utf-8"))
    chosen += random.Random(SEED).sample(found, ROWS)
random.Random(SEED).shuffle(chosen)
lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in chosen]
(Path(__file__).parent / "rows.jsonl").write_text("".join(lines), encoding="utf-8")
print(f"{len(chosen)} rows")
