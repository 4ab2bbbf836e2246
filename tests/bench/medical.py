"""Measure data/medical/prepare.py: read, clean, mask, drop near-duplicates, split.

`uv run tests/bench/medical.py 50000 200000 800000` writes that many CSV rows in mixed encodings to a temporary
folder, runs each size in a process of its own and prints seconds by stage and peak memory.
"""

import csv
import json
import random
import re
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from conftest import functions_of  # noqa: E402

ENCODINGS = ["utf-8", "gbk", "gb18030", "utf-8-sig", "utf-16"]
FILE_ROWS = 30_000
DIRT = [
    "我的电话是199{:08d}。",
    "在清江市第一人民医院看过，林致远医生让复查。",
    "微信号lily{:08d}。",
    "身份证11010519491231002X。",
]


def write_rows(folder: Path, count: int, program) -> None:
    """Write rows of clauses of the shipped questions and answers: 5% copies, 3% near copies, 8% private parts."""
    rng = random.Random(1)
    rows, _ = program.read_sources([Path("data/medical/raw")])
    asks = [part for row in rows for part in re.findall(r"[^，。？！,?]{4,}[，。？！,?]", row["input"])]
    answers = [
        part for row in rows for part in re.findall(r"[^。]{6,}。", row["output"]) if "think>" not in part
    ]
    departments, last = ["内科", "外科", "妇产科", "儿科", "皮肤科", "肿瘤科"], None
    for start in range(0, count, FILE_ROWS):
        encoding = ENCODINGS[start // FILE_ROWS % len(ENCODINGS)]
        path = folder / f"{start}.csv"
        with path.open("w", encoding=encoding, errors="ignore", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["department", "title", "ask", "answer"])
            for number in range(min(FILE_ROWS, count - start)):
                ask = "".join(rng.choices(asks, k=rng.randint(3, 6)))
                answer = "".join(rng.choices(answers, k=rng.randint(2, 4)))
                chance = rng.random()
                if last and chance < 0.08:
                    ask = last if chance < 0.05 else last.replace("，", " ") + "谢谢医生"
                elif chance < 0.16:
                    ask += rng.choice(DIRT).format(number)
                if chance > 0.98:
                    answer = f"<p>{answer}</p>现在预约可享限时优惠！"
                writer.writerow([rng.choice(departments), ask[:12], ask, answer])
                last = ask if number % 7 == 0 else last


def measure(folder: Path, program) -> dict:
    """Clean a folder; return seconds by stage, rows and peak memory in GB."""
    marks, cpu = [time.perf_counter()], time.process_time()
    rows, left = program.read_sources([folder])
    marks.append(time.perf_counter())
    unique = program.drop_duplicates(rows)
    marks.append(time.perf_counter())
    splits = program.split_rows(unique)
    marks.append(time.perf_counter())
    seconds = [round(b - a, 1) for a, b in zip(marks, marks[1:])]
    return {
        "rows": len(rows) + sum(left.values()),
        "kept": len(unique),
        "train": len(splits["train"]),
        **dict(zip(("read and clean", "near-duplicates", "split"), seconds)),
        "total": round(marks[-1] - marks[0], 1),
        "of a core": round(time.process_time() - cpu, 1),  # seconds; less than total on a busy machine
        "peak GB": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, 2),
    }


program = functions_of("data/medical/prepare.py")
if sys.argv[1:2] == ["--measure"]:
    print(json.dumps(measure(Path(sys.argv[2]), program)))
else:
    for size in map(int, sys.argv[1:] or ["50000"]):
        with tempfile.TemporaryDirectory() as folder:
            write_rows(Path(folder), size, program)
            command = [sys.executable, __file__, "--measure", folder]
            print(subprocess.run(command, capture_output=True, text=True, check=True).stdout, flush=True)
