# %% [markdown]
"""
# Instructions: from rows in any of the common forms to rows that train

Run:    `uv run data/alpaca/prepare.py rows.json [out.jsonl]`, or a .jsonl file, or a folder of both; then
        `DATA=out.jsonl uv run sft_alpaca.py`
Data:   JSON and JSONL: instruction / input / output, question / answer, prompt / response, messages, ShareGPT, …
Writes: out.jsonl (by default data/alpaca/rows.jsonl), a line a row, without what is empty:
        {"system": "…", "history": [["question", "answer"]], "instruction": "…", "input": "…", "output": "…"}
"""

# %% Imports
import json
import math
import os
import re
import sys
from pathlib import Path

# %% Settings
OUTPUT = Path(__file__).parent / "rows.jsonl"  # where the rows go when no second name is given
KEYS = ("system", "history", "instruction", "input", "output")

COMMON = frozenset(
    "的一是不了在有我人们們中大来來上到说說时時要为為和你会會可以这這个個他她生年月日第条條关關于於请請问問"
)
MAX_BYTES = 1 << 30  # of a text file

# Names of the parts of a record, in any case; where "ask" is empty, "title" is the question
WRAPPERS = ("data", "rows", "records", "examples")
TALKS = ("messages", "conversations", "conversation")
ALIASES = {
    "system": ("system", "system_prompt"),
    "instruction": ("instruction", "prompt", "question", "questions", "query", "ask", "问题", "提问"),
    "input": ("input", "context"),
    "think": ("think", "thinking", "reasoning_content", "reasoning", "complex_cot", "cot"),
    "output": ("output", "response", "completion", "answer", "answers", "回答", "答案"),
}
PARTS = {name: part for part, names in ALIASES.items() for name in names}
ASKING = {"title", "input", *ALIASES["instruction"]}
LOST = ("options", "option", "choices", "chosen", "rejected", "image", "images", "tools")  # no place for them
ROLES = {
    "system": "system",
    "user": "user",
    "human": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "bot": "assistant",
}
BETWEEN = re.compile(r"[\s,\]]*(?:\[(?=\s*(?:\{|\Z)))?\s*")  # what may stand between two records
UNFIT = re.compile(r"<[|｜][^\s<>|｜]{1,40}[|｜]>|[\0\x1b\ud800-\udfff\ufffd-\uffff]|\A\{'text': ")


# %% Read records
def read_text(path: Path) -> str:
    """Return a file's text: UTF-8, UTF-16, GB18030 or Big5; ValueError names a file that is none of them.

    GB18030 also decodes Big5, into rare characters: the encoding that gives more common ones is taken. Up to
    1% of characters that do not fit become U+FFFD, so that the reader can leave out their lines and name them.
    """
    if not path.is_file():  # a folder, a pipe, a device, a dead link
        raise ValueError(f"{path} is not a regular file")
    if path.stat().st_size > MAX_BYTES:
        raise ValueError(f"{path} is larger than {MAX_BYTES >> 20} MB: split it")
    raw = path.read_bytes()
    wide = {b"\xff\xfe": "utf-16", b"\xfe\xff": "utf-16"}.get(raw[:2])
    wide = wide or {b"\0": "utf-16-be"}.get(raw[:1]) or {b"\0": "utf-16-le"}.get(raw[1:2])
    best, most = None, 0.02
    for encoding in [wide] if wide else ["utf-8-sig", "gb18030", "big5hkscs"]:
        text = raw.decode(encoding, errors="replace")
        if encoding in (wide, "utf-8-sig") and "\ufffd" not in text:
            return text.removeprefix("\ufeff")
        foreign = "".join(re.findall("[^\0-\x7f]+", text))[:100_000]
        common = sum(letter in COMMON for letter in foreign) / max(1, len(foreign))
        if common > most and text.count("\ufffd") <= 0.01 * len(text):
            best, most = text, common
    if best is None:
        raise ValueError(f"{path} is not text in UTF-8, UTF-16, GB18030 or Big5: save it as UTF-8")
    return best


def one_each(pairs: list[tuple]) -> dict | ValueError:
    """Return the object of (name, value) pairs; in place of one that says two things of a name a ValueError."""
    record = dict(pairs)
    if len(record) < len(pairs):
        double = [name for name, value in pairs if record[name] != value]
        record |= {double[0]: ValueError(f"two values for {double[0]!r}: keep one")} if double else {}
    return next((value for value in record.values() if isinstance(value, ValueError)), record)


DECODER = json.JSONDecoder(object_pairs_hook=one_each)


def read_records(path: Path) -> list:
    """Return the records of a JSON or JSONL file; in place of one that cannot be read stands its ValueError.

    A list, a list under "data", a record a line, or records one after the other, with or without commas.
    """
    text, records, line = read_text(path), [], 1
    try:
        whole = None if "\ufffd" in text else DECODER.decode(text)
    except (ValueError, RecursionError):
        whole = None  # several records, or a broken one
    if isinstance(whole, dict):
        return next((whole[name] for name in WRAPPERS if isinstance(whole.get(name), list)), [whole])
    if isinstance(whole, list):
        return whole
    first = text.find("{")  # a record begins in a line that is not indented more than the first one
    column = max(0, first - text.rfind("\n", 0, max(0, first)) - 1)
    for part in re.split(rf"\n(?=[ \t]{{0,{column}}}\{{)", text):
        end = 0
        while (start := BETWEEN.match(part, end).end()) < len(part):
            line += part.count("\n", end, start)
            try:
                record, end = DECODER.raw_decode(part, start)
                if "\ufffd" in part[start:end]:
                    record = ValueError(f"{path}, record at line {line}: bytes that are no text")
            except (ValueError, RecursionError) as error:
                reason = str(error).partition(": line ")[0][:60]
                record, end = ValueError(f"{path}, record at line {line}: not JSON: {reason}"), len(part)
            records.append(record)
            line += part.count("\n", start, end)
        line += part.count("\n", end) + 1
    return records


def text_of(value, name: str) -> str:
    """Return a value as text: None, NaN and [] are "", 0 and false are answers, a list of one is its value.

    ValueError names what is no text, or holds what a tokenizer would take for a token of its own.
    """
    while isinstance(value, list) and len(value) == 1:
        value = value[0]
    if value is None or value == [] or (isinstance(value, float) and not math.isfinite(value)):
        return ""
    if isinstance(value, ValueError):
        raise value
    if isinstance(value, (list, dict)):
        raise ValueError(f"{name} is a {type(value).__name__} of {len(value)}, not one text")
    text = value.strip() if isinstance(value, str) else json.dumps(value)
    if found := UNFIT.search(text):
        raise ValueError(f"{name} holds {ascii(found[0])}, which is no text to train on")
    return "" if text.lower() == "nan" else text


def read_parts(record: dict) -> dict[str, str]:
    """Return part -> text of a record, "" for what it lacks; ValueError if two names of a part differ in text."""
    found = {part: {} for part in ALIASES}
    for name, value in record.items():
        if name in PARTS and (text := text_of(value, name)):
            found[PARTS[name]][text] = name
    for names in found.values():
        if len(names) > 1:
            raise ValueError(f"{' and '.join(names.values())} hold different texts: keep one")
    return {part: next(iter(names), "") for part, names in found.items()}


def split_think(output: str) -> tuple[str, str]:
    """Return (thinking, answer) of an output that may open with <think>…</think>; ValueError if it is cut."""
    before, _, answer = output.rpartition("</think>")
    think = before.strip().removeprefix("<think>")
    if "<think>" in think + answer or "</think>" in think:
        raise ValueError("<think> and </think> do not enclose one part at the start of the output")
    return think.strip(), answer.strip()


def read_turns(messages: list) -> dict:
    """Return a talk of {role, content} or {from, value} as the record that it amounts to."""
    roles, texts, thinks = [], [], []
    for message in messages:
        if not isinstance(message, dict):
            raise ValueError("a turn of the talk is no object with role and content")
        name = text_of(message.get("role", message.get("from")), "role").lower()
        roles.append(ROLES.get(name, repr(name)))
        texts.append(text_of(message.get("content", message.get("value")), f"what {name} says"))
        thinks.append(text_of(message.get("reasoning_content"), "reasoning_content"))
    start = int(roles[:1] == ["system"])
    if roles[start:] != ["user", "assistant"] * max(1, (len(roles) - start) // 2):
        raise ValueError(f"the turns of the talk must be user, assistant, …, not {', '.join(roles[:9])}")
    *history, (user, assistant) = [list(pair) for pair in zip(texts[start::2], texts[start + 1 :: 2])]
    turns = {"instruction": user, "output": assistant, "think": thinks[-1], "history": history}
    return turns | ({"system": texts[0]} if start else {})


def read_history(pairs) -> list[list[str]]:
    """Return the earlier turns of a talk as [user, assistant] pairs without thinking; ValueError if they are not."""
    pairs = pairs or []
    if not isinstance(pairs, list) or any(not isinstance(pair, list) or len(pair) != 2 for pair in pairs):
        raise ValueError("history must be a list of [user, assistant] pairs")
    texts = [[text_of(text, "history") for text in pair] for pair in pairs]
    return [[user, split_think(assistant)[1]] for user, assistant in texts]


def to_instruction(record) -> dict:
    """Return system, history (pairs of user and assistant), instruction, input, think and output of a record.

    What it lacks is "", a history []. ValueError says why a record cannot be used, an unknown form by its keys.
    """
    if isinstance(record, ValueError):
        raise record
    if not isinstance(record, dict):
        raise ValueError(f"a record must be an object, not a {type(record).__name__}")
    keys, record = list(record), {str(name).strip().lower(): value for name, value in record.items()}
    if len(record) < len(keys):
        raise ValueError(
            f"two keys that are the same but for case and spaces: {', '.join(map(str, keys))[:200]}"
        )
    if lost := [name for name in LOST if record.get(name)]:
        raise ValueError(f"{', '.join(lost)} would be lost: write the record as a question and an answer")
    talks = [record[name] for name in TALKS if isinstance(record.get(name), list)]
    if isinstance(record.get("prompt"), list) and isinstance(record.get("completion"), list):
        talks.append(record["prompt"] + record["completion"])
    if talks:  # what else the record holds is about the talk
        record = {"system": record.get("system")} | read_turns(talks[0])
    if record.keys().isdisjoint(ASKING) or record.keys().isdisjoint(ALIASES["output"]):
        raise ValueError(f"an unknown form, with the keys {', '.join(map(str, keys))[:200]}")
    texts = read_parts(record)
    texts["instruction"] = texts["instruction"] or text_of(record.get("title"), "title")
    if not texts["instruction"]:
        texts |= {"instruction": texts["input"], "input": ""}
    think, texts["output"] = split_think(texts["output"])
    if think and texts["think"] not in ("", think):
        raise ValueError("the output opens with another thinking part than the record has")
    if not (texts["instruction"] and texts["output"]):
        raise ValueError(f"no {'output' if texts['instruction'] else 'question'}")
    return texts | {"think": texts["think"] or think, "history": read_history(record.get("history"))}


# %% Rows
def own_split(record: dict) -> dict:
    """Return {"meta": {"split": "train"}} of a record that says to which split it belongs, {} of another."""
    meta = record.get("meta")
    split = meta.get("split") if isinstance(meta, dict) else None
    return {"meta": {"split": text_of(split, "meta.split")}} if isinstance(split, str) else {}


def read_instructions(source: Path, written: Path) -> tuple[list[dict], list[str]]:
    """Return the rows of a file or of all files in a folder, each question once, and what was left out and why.

    Questions are the same if they differ in spaces and case only: C++ is not C#. `written` is not read.
    """
    if not source.exists():
        raise ValueError(f"{source} does not exist: name a .json or .jsonl file, or a folder of them")
    rows, left = {}, []
    for path in sorted(source.rglob("*")) if source.is_dir() else [source]:
        if path.is_dir() or os.path.realpath(path) == os.path.realpath(written):
            continue
        try:
            if source.is_dir() and path.suffix.lower() not in (".json", ".jsonl"):
                raise ValueError(f"{path} is no .json or .jsonl")
            records = read_records(path)
        except (ValueError, OSError) as error:
            left.append(str(error))
            continue
        for number, record in enumerate(records, 1):
            try:
                row = to_instruction(record) | own_split(record)
            except ValueError as error:
                left.append(f"{path}, record {number}: {error}")
                continue
            if row["think"]:
                left.append(f"{path}, record {number}: the thinking part; its answer is kept")
            kept = {part: row[part] for part in (*KEYS, "meta") if row.get(part)}
            asked = [str(kept.get(part, "")) for part in KEYS[:-1]]
            if rows.setdefault(re.sub(r"\s+", " ", "\0".join(asked)).casefold(), kept) is not kept:
                left.append(f"{path}, record {number}: the question of an earlier record again")
    if not rows:
        raise ValueError(f"{source} holds no usable row; {'; '.join(left[:3])}")
    return list(rows.values()), left


# %% Write
def visible(text: str) -> str:
    """Return a text as a line for a terminal: a sign that would steer it, such as ESC or a line's end, is U+FFFD."""
    return re.sub(r"[^\t\x20-\x7e\xa0-\u2027\u202f-\u2065\u206a-\U0010ffff]", "\ufffd", text)


def check_writable(*paths: Path) -> None:
    """Raise ValueError for the first path that cannot be written as a file: before the work, not after it."""
    for path in paths:
        good = path.is_file() if os.path.lexists(path) else path.parent.is_dir()
        if not good or not os.access(path if path.exists() else path.parent, os.W_OK):
            raise ValueError(f"{path} cannot be written: name a file in a folder that is there")


# %% Run
sys.stdout.reconfigure(errors="replace")  # whatever a terminal cannot show
if len(sys.argv) not in (2, 3) or not sys.argv[1]:
    raise SystemExit(
        "which .json or .jsonl file, or folder? uv run data/alpaca/prepare.py rows.json [out.jsonl]"
    )
output = Path(sys.argv[2]) if len(sys.argv) == 3 else OUTPUT
try:
    check_writable(output)
    rows, left = read_instructions(Path(sys.argv[1]), output)
    lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in rows]
    output.write_bytes("".join(lines).encode())
except (ValueError, OSError) as error:
    raise SystemExit(visible(str(error))) from None
for reason in left:
    print(f"Left out: {visible(reason)}")
print(f"{output}: {len(rows)} rows; left out: {len(left)}")
