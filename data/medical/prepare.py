# %% [markdown]
"""
# Medical questions (医疗问答): from dirty tables to rows that train

Reads every .csv, .json and .jsonl at or below what is named, cleans it, masks what is private, drops what asks
the same again and splits the rest. The same input gives the same bytes on any machine.

Run:    `uv run data/medical/prepare.py`, or `uv run data/medical/prepare.py my_folder my_table.csv ...`
Data:   CSV with department,title,ask,answer (or 科室,标题,提问,回答); JSON and JSONL in the forms of to_instruction
Writes: train.jsonl, val.jsonl, test.jsonl and gold.jsonl in OUTPUT; prints what was left out and why
"""

# %% Imports
import csv
import html
import json
import math
import os
import random
import re
import sys
import zlib
from collections import Counter
from functools import lru_cache
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import rjieba
from rensa import RMinHash, RMinHashDeduplicator, RMinHashLSH
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

# %% Settings
SOURCE = Path(__file__).parent / "raw"  # what is read when no file or folder is named
OUTPUT = Path(__file__).parent  # where train, val, test and gold.jsonl are written
SEED = 3407
SHARES = {"train": 0.8, "val": 0.1, "test": 0.1}
GOLD_SHARE = 0.2  # of the test rows: those whose answers look best
FIGURE = False  # True: OUTPUT/data.png shows lengths and what was left out
PLAIN = "请回答患者的问题。"
THINK = "请先在<think>和</think>之间写出思考过程，再回答患者的问题。"
COMMON = frozenset(
    "的一是不了在有我人们們中大来來上到说說时時要为為和你会會可以这這个個他她生年月日第条條关關于於请請问問"
)
MAX_BYTES = 1 << 30  # of a text file
TERMS = json.loads((Path(__file__).parent / "terms.json").read_text(encoding="utf-8"))  # words and names


# %% Read records
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


def visible(text: str) -> str:
    """Return a text as a line for a terminal: a sign that would steer it, such as ESC or a line's end, is U+FFFD."""
    return re.sub(r"[^\t\x20-\x7e\xa0-\u2027\u202f-\u2065\u206a-\U0010ffff]", "\ufffd", text)


# %% Read tables
COLUMNS = ["department", "title", "ask", "answer"]
HEADERS = {
    "department": ("department", "科室", "科别"),
    "title": ("title", "标题", "主题"),
    "ask": ("ask", "question", "提问", "问题", "咨询"),
    "answer": ("answer", "response", "回答", "答案", "回复"),
}


def parse_line(line: str, separator: str) -> list[str] | None:
    """Return the fields of one CSV record, None if its quotes are broken."""
    try:
        line = line.removesuffix("\r")
        return next(csv.reader([line], delimiter=separator, skipinitialspace=True, strict=True), [])
    except csv.Error:
        return None


def read_header(lines: list[str], path: Path) -> tuple[int, str, list[str]]:
    """Return where the rows start, the separator and the name of each column, "" for one that is not read."""
    at = next((number for number, line in enumerate(lines) if line.strip()), 0)
    said = re.fullmatch(r"sep=(.)\r?", lines[at], re.IGNORECASE)
    at += bool(said) and len(lines) > at + 1
    for separator in said[1] if said else ",\t;|":
        found = [name.strip(" \t\"'“”").lower() for name in parse_line(lines[at], separator) or []]
        while found and not found[-1]:  # a separator at the end
            found.pop()
        columns = [next((name for name in COLUMNS if text in HEADERS[name]), "") for text in found]
        if "answer" in columns and {"ask", "title"} & set(columns):
            break
    else:
        known = ", ".join(COLUMNS)
        raise ValueError(f"{path}: no header with {known} (or 科室, 标题, 提问, 回答) but {lines[at][:80]!r}")
    if double := [name for name in COLUMNS if columns.count(name) > 1]:
        raise ValueError(f"{path}: two columns for {double[0]} among {', '.join(found)}: rename one")
    return at + 1, separator, columns


def read_fields(lines: list[str], at: int, separator: str, starts: set[str]) -> tuple[list[str], int]:
    """Return the fields of the record that opens in a line, [] if it is broken, and the number of the line after.

    A quote that is not closed ends where a line opens with one of `starts`, the departments of the file.
    """
    fields, end, odd = parse_line(lines[at], separator), at + 1, lines[at].count('"') % 2
    if fields is not None:
        return fields, end
    while odd and end < min(len(lines), at + 200) and lines[end].partition(separator)[0] not in starts:
        odd ^= lines[end].count('"') % 2
        end += 1
    return (not odd and parse_line("\n".join(lines[at:end]), separator)) or [], end


def read_csv(path: Path | str) -> pd.DataFrame:
    """Return department, title, ask and answer of a table, "" where a column lacks; ValueError names a bad file.

    Separators: comma, tab, semicolon, bar. Broken lines are left out, named and counted in attrs["broken"].
    """
    text = read_text(Path(path)).replace("\0", "")
    lines = text.split("\n" if "\n" in text else "\r")
    at, separator, columns = read_header(lines, path)
    opening = Counter(line.partition(separator)[0] for line in lines[at:] if separator in line)
    starts = {name for name, count in opening.items() if count > 1 and re.fullmatch(r"[^\W\d_]{2,20}", name)}
    places = [(columns + [name]).index(name) for name in COLUMNS]  # of one that lacks: behind the last
    rows, broken = [], []
    while at < len(lines):
        fields, end = read_fields(lines, at, separator, starts)
        while len(fields) > len(columns) and not fields[-1].strip():
            fields.pop()
        row = [[*fields, ""][place] for place in places] if len(fields) == len(columns) else ["\ufffd"]
        if "\ufffd" not in "".join(row):
            rows.append(row)
            at = end
        else:  # the lines after a broken one may be whole
            broken += [at + 1] if lines[at].strip() else []
            at += 1
    if broken:
        some = ", ".join(map(str, broken[:5])) + ", …" * (len(broken) > 5)
        said = f"{path}: {len(broken)} broken lines, not of {len(columns)} columns or no text: {some}"
        if not rows:
            raise ValueError(f"{said}; quote fields that hold {separator!r}")
        print(visible(f"{said}; left out"))
    table = pd.DataFrame(rows, columns=COLUMNS, dtype=object)
    table.attrs["broken"] = len(broken)
    return table


# %% Clean
WIDE = {chr(code + 0xFEE0): chr(code) for code in range(0x21, 0x7F) if chr(code) not in ",:;!?()~"}
HIDDEN = "".join(map(chr, [*range(9), *range(0x200B, 0x2010), 0xFEFF]))
ODD = re.compile(f"[{''.join(WIDE)}{HIDDEN}]")
MARKUP = re.compile(
    r"(?is)<(script|style)\b.{0,2000}?</\1>|<!--.{0,1000}?-->|</?(?!think>)[a-z]\w*(?:[\s/][^<>]{0,300})?>"
)


def clean(text: str) -> str:
    """Return a text without markup, adverts, invisible characters and full-width letters and digits."""
    if "&" in text or "<" in text:
        text = text_of(MARKUP.sub(" ", html.unescape(text)), "the text")  # again: &lt;|im_end|&gt;
    text = ODD.sub(lambda found: WIDE.get(found[0], ""), text)
    if "<" in text:
        text_of(text, "the text")  # and again: ＜｜im_end｜＞
    if any(word in text for word in TERMS["adverts"]):
        sentences = re.findall(r"[^。！？!?\n]+[。！？!?\n]*", text)
        text = "".join(part for part in sentences if not any(word in part for word in TERMS["adverts"]))
    return "\n".join(filter(None, (" ".join(line.split()) for line in text.split("\n"))))


# %% Mask
# A name is looked for before a title and after a label only. A tokenizer with part of speech says where words end,
# lists say which of them can be a surname, which are ordinary words all the same, and what a name may follow.
SURNAMES = frozenset([*TERMS["surnames"], *TERMS["word_surnames"], *TERMS["double_surnames"]])
PLAIN_SURNAMES = frozenset(TERMS["surnames"])  # those that are no ordinary words
NO_NAMES = frozenset(TERMS["no_names"])
NOT_IN_NAMES = frozenset(TERMS["not_in_names"])
LETTERS_END = re.compile("[㐀-鿿0-9]*\\Z")  # Chinese letters, and the 12 of 12周
LETTERS_START = re.compile("[㐀-鿿]{0,8}")
TITLE = re.compile(
    r"(?=[副主院教医大护药专先女小老])(?:(?<!班)副?(?:主任(?:[医药护技]师)?(?!务)|院长|教授)|主治(?:医[生师])?|医[生师](?!而言|来[说讲])|大夫|护士长?|[护药]师|专家|先生|女士|小姐|老师(?!傅))"
)
HALF = {code: code - 0xFEE0 for code in range(0xFF01, 0xFF5F)}
FULL = re.compile("[０-９Ａ-Ｚａ-ｚ＠]")
DOTTED = re.compile("[㐀-鿿]{1,8}(?:·[㐀-鿿]{1,8}){1,3}")
ALONE = re.compile("[㐀-鿿]{2,4}(?![㐀-鿿])")
KIN = "老公|丈夫|爱人|妻子|老婆|儿子|女儿|父亲|母亲|爸爸?|妈妈?|爷爷|奶奶|外婆|外公|姥姥|姥爷|孙[子女]|外孙女?|弟弟|妹妹|哥哥|姐姐|宝宝|孩子|小孩|朋友|同事|同学|室友|亲戚"
LABEL = re.compile(
    r"(?=[姓联签主经报审责接管医大护教监家术查验录核作我他她本患病名全产孕伤死老丈爱妻儿女父母爸妈爷奶外姥孙弟妹哥姐宝孩小朋同室亲免])(?:"  # what a label begins with: fast
    rf"(?P<field>(?:姓名|联系人|签[名字]|(?:主[治管]|经治|报告|审核|责任|接诊|管床)(?:医[生师]|护士))(?:[是为]|\s?[:：])?\s?|(?:医[生师]|大夫|护士|教授|监护人|家属|主刀|术者|[查验录核作]者)\s?[:：]\s?)"
    rf"|(?P<said>(?:我|他|她|本人|患者|病人|[大全]?名字?|{KIN})叫(?:做|作)?[:： ]?|名字[是为:：]\s?|[大全]名[是叫]?)"
    rf"|(?P<role>(?:患者|病人|患儿|产妇|孕妇|伤者|死者|家属|{KIN})\s?[:：,，]?\s?)"
    rf"|(?P<self>(?:我是|本人|我就是)[:：]?)"
    rf"|(?P<family>(?<!百)姓(?!名)))"
)
FORM = re.compile(r"[名人签治管告核任诊床刀者].*[:：]\s?\Z")
END = "\\Z|[^㐀-鿿]"
AFTER = {  # label -> what follows the name
    "field": re.compile(f"{END}|[男女和]|性别|年龄|今年|电话|主任|医[生师]"),
    "said": re.compile(f"{END}|[男女是想要我因有的住在得患]|今[年天]|现年|最近|来自|年龄|来"),
    "role": re.compile(
        r"[,，、(（ ]{0,2}(?:[男女]|今年|现年|年龄|性别|\d{1,3}\s?岁|[一二三四五六七八九十]{1,3}岁)|因"
    ),
    "self": re.compile(rf"{END}|今年|的(?:家[人属]|{KIN})"),
    "family": re.compile(f"{END}|[名叫的]"),
}
DAY = r"\d{1,2}月\d{1,2}[日号]"
YEAR = r"(?:19|20)\d\d"
DATE = rf"(?:(?:(?:19|20)?\d\d年)?{DAY}|{YEAR}[./-]\d{{1,2}}[./-]\d{{1,2}}|{YEAR}年\d{{1,2}}月|{YEAR}\d{{4}})"
NUMBERED = r"(?:号码|账号|号|ID)?[是为:： ]{0,3}"
PLACE = rf"[^\W\d_a-zA-Z{TERMS['not_in_places']}]"
REGION = rf"{PLACE}{{2,8}}?(?:省|市|自治[区州]|州|盟|县|区|旗|镇|乡|街道|村|路|大?街|巷|大道|胡同|小区|花园|公寓|家园|苑)"
DOOR = r"\d{1,5}(?:号楼|号院?|弄|栋|幢|座|单元|层|楼|室|组|队)?-?"
NUMBER_HINT = re.compile(  # without one of these there is no need to try the slow patterns
    r"(?=[0-9A-Za-z(（出生月日号住址籍])(?:[0-9A-Za-z][0-9A-Za-z_ .@-]{4}|[(（]0|出生|生日|生于|[月日号]生|[住址籍]|\d(?:号|栋|幢|单元))"
)
NUMBER = re.compile(  # the groups are the placeholders; the first line is passed over
    rf"""(?:批号|准字|批文|条形?码|追溯码|货号|ICD(?:-10)?)[为是:： ]{{0,3}}[A-Za-z]{{0,4}}\d[\w.-]{{0,40}}
    |(?P<邮箱>[A-Za-z0-9._%+-]{{1,64}}+@[A-Za-z0-9-]{{1,63}}(?:\.[A-Za-z0-9-]{{1,63}}){{1,4}})
    |(?:微信|薇信|威信|(?<![A-Za-z])(?i:wechat|weixin|v信|vx|wx)){NUMBERED}(?P<微信>[A-Za-z0-9][A-Za-z0-9_-]{{4,19}})
    |(?:(?<![A-Za-z])(?i:QQ)群?|扣扣|企鹅){NUMBERED}(?P<QQ>[1-9]\d{{4,10}})
    |(?:病历|病案|住院|门诊|就诊卡?|医保卡?|社保卡?|登记|检查|标本|流水){NUMBERED}(?<=[号D是为:： ])(?P<编号>[A-Za-z]{{0,3}}\d{{5,18}})
    |(?:护照|通行证|军官证|驾驶证|工号|学号){NUMBERED}(?P<编号_>[A-Za-z]{{0,2}}\d{{5,18}})
    |(?:身份证|证件|号码){NUMBERED}(?P<身份证>\d{{6}}[ -]?\d{{8}}[ -]?\d{{3}}[\dXx]|\d{{15}})
    |(?:银行卡|卡号|账号|账户){NUMBERED}(?P<银行卡>\d(?:[ -]?\d){{11,18}})
    |(?:出生日期|出生年月日?|生日|出生[于在]?|生于)[是为:： ]{{0,3}}(?P<出生日期>{DATE})
    |(?P<出生日期_>{DATE})(?=出生|生人|生[,，。])
    |(?<![\d.])(?P<号码>\d{{6}}[ ]?{YEAR}\d{{4}}[ ]?\d{{3}}[\dXx]|\d{{4}}(?:[ -]?\d{{4}}){{3}}(?:[ -]?\d{{1,3}})?)(?!\d)
    |(?<![\d.])(?P<电话>(?:\+?86[ -]?)?1[3-9]\d(?:[ .-]?\d{{4}}){{2}}
        |[(（]0\d{{2,3}}[)）][ ]?[2-9]\d{{6,7}}|0\d{{2,3}}[ -]?[2-9]\d{{2,3}}[ -]?\d{{4}}(?:[-转]\d{{1,5}})?
        |[48]00-?\d{{3}}-?\d{{4}})
        (?!\d|[ ]*(?:IU|拷贝|copies|[个次元万/]))
    |(?:电话|座机|手机|致电|联系方式){NUMBERED}(?P<电话_>[1-9](?:[ -]?\d){{6,10}})(?!\d)
    |(?P<车牌>[京津沪渝冀豫云辽黑湘皖鲁新苏浙赣鄂桂甘晋蒙陕吉闽贵粤青藏川宁琼][A-Z][·. ]?[A-Z0-9]{{5,6}})(?![A-Za-z0-9])
    |(?:[我现家暂租]住|家?住在|家在|[住地]址|户籍|籍贯)[是为在:： ]{{0,3}}(?P<地址>(?:{REGION}){{1,6}}(?:{DOOR}){{0,6}})
    |(?P<地址_>{PLACE}{{2,6}}(?:路|街|大街|大道|巷|胡同|弄)\d{{1,5}}号(?![口线门出])(?:{DOOR}){{0,5}})
    |(?P<地址__>\d{{1,4}}(?:栋|幢|号楼)\d{{1,3}}(?:单元|室)(?:{DOOR}){{0,3}})""",
    re.VERBOSE,
)
CARE = re.compile("(?:医院|卫生院|诊所|卫生服务中心|卫生服务站|保健院|门诊部)")
KINDS = "|".join(TERMS["hospital_kinds"])
OWNERS = "|".join(TERMS["hospital_owners"])
HOSPITAL = re.compile(
    rf"""(?P<name>(?:
        (?:(?:{"|".join(TERMS["places"])})+
            |(?<!{PLACE})(?![省市县区乡镇]{{2}}){PLACE}{{2,4}}(?:省|市|县|(?<![地山病院])区|镇|乡|州|旗|大学|军区))(?:{PLACE}|附属|社区){{0,12}}?
        |[{TERMS["hospital_brands"]}]{{2,4}}
        |第[一二三四五六七八九十]{{1,3}}(?:人民|中心|附属|中医)?
        |(?:{OWNERS})(?:{PLACE}|附属|\d){{0,10}}?|\d{{3}}
        |(?<=(?<![可应请需要议以])在)(?:[省市县区州])?(?:{KINDS})
        ){CARE.pattern})\Z""",
    re.VERBOSE,
)
SHORT_HOSPITAL = re.compile(  # 市一院, 郑大一附院, 协和
    rf"(?P<name>(?:[㐀-鿿]大|附属?|[北武]医|中山|[省市区州])附?[一二三四五六七八九]附?院|(?<=[在到去从])(?:{'|'.join(TERMS['brands_alone'])})(?=[看查住做治挂检复手化放就拍生开待去转]|[,，。]))"
)
SUSPECT = re.compile(  # the second check
    rf"(?=[\d@微QV身病住护我姓名{TERMS['surnames']}])(?:(?<![\dA-Za-z.])\d(?:[ -]?\d){{6,}}(?! ?(?:IU|拷贝|copies|[个次元万/]))|@|(?:微信|QQ|VX|身份证|病历号|住院号|护照)\W{{0,3}}[A-Za-z0-9]{{5,}}"
    rf"|(?:我叫|姓名[:：]|名叫)(?!【)[㐀-鿿]{{2,3}}(?![㐀-鿿])|(?<![㐀-鿿])[{TERMS['surnames']}](?:某|[㐀-鿿]{{2}})?(?:医生|大夫|主任|教授)|\d+号\d+室|\d+单元\d)"
)


def number_kind(number: str) -> str:
    """Return what a long number is by its check digit, 身份证 or 银行卡, "" if neither."""
    *body, last = number.replace(" ", "").replace("-", "").upper()
    if len(body) == 17:
        weights = sum(int(digit) * 2**place for place, digit in enumerate(reversed(body), 1))
        if "10X98765432"[weights % 11] == last:
            return "身份证"
    doubled = [int(digit) * (1 + place % 2) for place, digit in enumerate(reversed(body), 1)]
    luhn = last.isdecimal() and (sum(map(int, "".join(map(str, doubled)))) + int(last)) % 10 == 0
    return "银行卡" if luhn else ""


def number_spans(text: str) -> list[tuple[int, int, str]]:
    """Return (start, end, kind) of private numbers and addresses; bare ones need a right check digit."""
    spans = []
    for found in NUMBER.finditer(text) if NUMBER_HINT.search(text) else ():
        group = found.lastgroup  # None: a batch number, no one's
        kind = number_kind(found[group]) if group == "号码" else (group or "").strip("_")
        if kind:
            spans.append((*found.span(group), kind))
    return spans


def hospital_spans(text: str) -> list[tuple[int, int, str]]:
    """Return (start, end, kind) of named hospitals: from the start of a clause or after 在, 到 and the like."""
    ends = [found.end() for found in CARE.finditer(text)]
    found = [(max(0, end - 26), HOSPITAL.search(text[max(0, end - 26) : end])) for end in ends]
    found += [(0, match) for match in SHORT_HOSPITAL.finditer(text)]
    return [
        (start + match.start("name"), start + match.end("name"), "医院")
        for start, match in found
        if match and not any(word in match["name"] for word in TERMS["no_hospital"])
    ]


def can_be_person(words: list[tuple[str, str]]) -> bool:
    """Return whether (word, part of speech) pairs of the tokenizer can be a surname, or one with a given name."""
    name, (first, tag) = "".join(word for word, _ in words), words[0]
    listed = len(words) == 1 and tag.startswith("nr") and len(name) > 2 and name[-1] != "人"
    if name in NO_NAMES or (not NOT_IN_NAMES.isdisjoint(name[1:]) and not listed):
        return False
    if len(words) == 1:  # 王建国 is a name in the tokenizer's dictionary, 王 and 欧阳 are listed here
        named = tag.startswith("nr") and not SURNAMES.isdisjoint((name[0], name[:2])) and 2 <= len(name) <= 4
        return name in SURNAMES or named or (name[:1] in "小老" and name[1:] in SURNAMES)
    cut = (
        len(name) == 3 and tag.startswith("nr") and first[0] in SURNAMES and first not in NO_NAMES
    )  # 王小 娅
    if not (first in SURNAMES or cut) or len(name) - len(first) > 2:
        return False
    return not any(
        tag in ("p", "c", "y", "uj", "ul") or (tag == "t" and len(word) > 1) for word, tag in words[1:]
    )


def may_follow(before: tuple[str, str] | None, name: str) -> bool:
    """Return whether a name can stand after a word: 挂了高医生 is one, 血压高医生, 两张 and 十二周 are none."""
    if before is None:
        return not name.startswith("谢")
    word, tag = before
    if name[0] in TERMS["measure_surnames"] and (tag in ("m", "q") or word in "这那每几哪各某上下半整第孕"):
        return False
    if name[0] not in TERMS["word_surnames"] and (len(name) != 2 or name in SURNAMES):
        return True  # no ordinary word: many of two letters, such as 麻醉, are names to the tokenizer
    return word in TERMS["introducers"] or tag in ("t", "x") or word[-1] in "科院室区部组"


@lru_cache(100_000)
def letters_before(run: str) -> int:
    """Return how many letters of a person's name end a run of letters before a title such as 医生, 0 if none do."""
    words = rjieba.tag(run, False)
    for size in range(min(3, len(words)), 0, -1):
        name = words[-size:]
        before = words[-size - 1] if size < len(words) else None
        if can_be_person(name) and may_follow(before, name[0][0]):
            return sum(len(word) for word, _ in name)
    return 0


def letters_after(label: re.Match) -> int:
    """Return how many letters of a person's name follow a label such as 姓名：, 我叫 or 患者, 0 if none do."""
    kind, rest = label.lastgroup, label.string[label.end() : label.end() + 24]
    if kind in ("field", "said") and (found := DOTTED.match(rest)):  # 阿依古丽·买买提
        return found.end()
    if kind == "field" and FORM.search(label[0]) and (found := ALONE.match(rest)):
        return found.end() * (found[0] not in TERMS["not_known"])
    run = LETTERS_START.match(rest)[0]
    after = AFTER["field" if kind == "role" and label[0].rstrip()[-1] in ":：" else kind]
    words = rjieba.tag(run, False)
    if kind != "self" and [len(word) for word, _ in words[:2]] == [2, 1] and run[:2] not in SURNAMES:
        words = [(letter, "n") for letter in run[:3]]  # 程志 强 is cut wrongly
    for size in range(min(3, len(words)), 0, -1):
        name = "".join(word for word, _ in words[:size])
        if (len(name) < 2 and kind != "family") or name[:2] in NO_NAMES or not after.match(rest[len(name) :]):
            continue
        weak = kind == "self" and size == 1 and name[0] not in PLAIN_SURNAMES  # 我是白羊座
        given = all(len(word) == 1 or tag[0] in "nm" for word, tag in words[1:size])
        if can_be_person(words[:size]) and (given or kind in ("field", "said")) and not weak:
            return len(name)
    return 0


def name_spans(text: str) -> list[tuple[int, int, str]]:
    """Return (start, end, kind) of people's names before titles and after labels."""
    runs = [
        (at.start(), LETTERS_END.search(text[max(0, at.start() - 10) : at.start()])[0])
        for at in TITLE.finditer(text)
    ]
    before = [(end, letters_before(run)) for end, run in runs if run]
    after = [(label.end(), letters_after(label)) for label in LABEL.finditer(text)]
    spans = [(end - length, end, "姓名") for end, length in before if length]
    return spans + [(start, start + length, "姓名") for start, length in after if length]


def mask_pii(text: str) -> str:
    """Return a text with placeholders such as 【电话】 for private numbers, addresses, people and hospitals."""
    plain = text.translate(HALF) if FULL.search(text) else text  # as long as the text
    parts, at = [], 0
    for start, end, kind in sorted(number_spans(plain) + hospital_spans(plain) + name_spans(plain)):
        if start >= at:
            parts += [text[at:start], f"【{kind}】"]
            at = end
    return "".join(parts) + text[at:]


def still_private(text: str) -> list[str]:
    """Return what may still be private by coarser rules than those of the mask: digits, labels, surnames."""
    return [found[0] for found in SUSPECT.finditer(text)]


# %% Duplicates and splits
FINDING = re.compile(  # numbers, sides, signs and words that turn a question into another one
    r"\d+(?:\.\d+)?|[A-Za-z]+|[二两三四五六七八九十百半]+|一(?=[天周个月年次岁片粒侧])|[甲乙丙丁左右双阴阳有无没未不非否男女高低大小多少"
    r"轻重快慢升降增减上下前后早晚]|[良恶急慢]性|[正异]常|[+±↑↓<>≤≥]|[(（][-－][)）]"
)


def shingles(question: str) -> list[str]:
    """Return the pairs of neighbouring letters of a question without courtesies and punctuation."""
    letters = re.sub(r"[\W_]", "", question.lower())
    bare = re.sub("医生|大夫|您好|你好|请问|谢谢|[吗呢啊呀吧了的]", "", letters)
    return [bare[at : at + 2] for at in range(max(1, len(bare) - 1))]


def with_findings(question: str) -> list[str]:
    """Return the shingles marked with the findings, so that 阴性 and 阳性, 左 and 右, 3 and 5 share none."""
    mark = f"{zlib.crc32(''.join(FINDING.findall(question)).encode('utf-8', 'replace')):x} "
    return [mark + pair for pair in shingles(question)]


def answer_quality(row: dict) -> float:
    """Return how good an answer looks, to choose between duplicates: its length and its words of care."""
    answer = row["output"]
    care = sum(word in answer for word in ("建议", "避免", "如果", "就医", "医院", "复查", "120", "注意"))
    return min(len(answer), 300) / 100 + care - 0.5 * answer.count("【") - (len(answer) > 2000)


def may_repeat(rows: list[dict], pieces) -> list[bool]:
    """Return for each row whether its input shares an LSH band with another and is worth comparing."""
    if not rows:
        return []
    matrix = RMinHash.digest_matrix_from_token_sets((pieces(row["input"]) for row in rows), 64, SEED)
    return RMinHashLSH(0.7, 64, 16).query_duplicate_flags_matrix_one_shot(matrix)


def drop_duplicates(rows: list[dict]) -> list[dict]:
    """Return the rows whose input no better-answered row asks in equal or nearly equal words, findings included."""
    repeats, seen = may_repeat(rows, with_findings), RMinHashDeduplicator(0.8, 64, True, seed=SEED)
    order = sorted((i for i, maybe in enumerate(repeats) if maybe), key=lambda i: -answer_quality(rows[i]))
    for start in range(0, len(order), 10_000):
        part = order[start : start + 10_000]
        hashes = RMinHash.from_token_sets([with_findings(rows[i]["input"]) for i in part], 64, SEED)
        for i, fresh in zip(part, seen.add_pairs((str(i), minhash) for i, minhash in zip(part, hashes))):
            repeats[i] = not fresh
    return [row for row, repeat in zip(rows, repeats) if not repeat]


def group_similar(rows: list[dict]) -> list[int]:
    """Return a group number a row, the same for inputs that are equal or nearly, be it by way of others."""
    numbers = list(range(len(rows)))
    maybe = [i for i, repeat in enumerate(may_repeat(rows, shingles)) if repeat]
    texts = pd.Series(["".join(shingles(rows[i]["input"])) for i in maybe], dtype=object)
    codes, unique = pd.factorize(texts)
    pairs = ([text[at : at + 2] for at in range(0, len(text) or 1, 2)] for text in unique)
    hashes, index, edges = RMinHash.from_token_sets(pairs, 64, SEED), RMinHashLSH(0.7, 64, 16), []
    index.insert_many(hashes)
    for start in range(0, len(hashes), 10_000):
        for a, found in enumerate(index.query_all(hashes[start : start + 10_000]), start):
            edges += [(a, b) for b in found if b > a and hashes[a].jaccard(hashes[b]) >= 0.7]
    ends = tuple(zip(*edges)) or ((), ())
    graph = coo_array((np.ones(len(edges)), ends), shape=(len(unique), len(unique)))
    labels = connected_components(graph)[1] if len(unique) else []
    for i, code in zip(maybe, codes):
        numbers[i] = len(rows) + int(labels[code])
    return numbers


def split_rows(rows: list[dict]) -> dict[str, list[dict]]:
    """Return train, val and test (80 / 10 / 10 by specialty and risk) and gold, the best answers of test.

    Rows with equal or nearly equal questions stay together. The order is random, the same every time.
    """
    parts, placed = {name: [] for name in SHARES}, 0
    members, strata = {}, {}
    group_of = group_similar(rows)
    for i in random.Random(SEED).sample(range(len(rows)), len(rows)):
        members.setdefault(group_of[i], []).append(rows[i])
        strata.setdefault(group_of[i], (rows[i]["meta"]["specialty"], rows[i]["meta"]["risk_level"]))
    for group in sorted(members, key=strata.get):  # stable: random within a stratum
        placed += len(members[group])
        part = max(parts, key=lambda name: SHARES[name] * placed - len(parts[name]))  # the one most behind
        parts[part] += members[group]
    for part in parts.values():
        random.Random(SEED).shuffle(part)
    best = sorted(parts["test"], key=answer_quality, reverse=True)
    return parts | {"gold": best[: math.ceil(len(best) * GOLD_SHARE)]}


# %% Rows
URGENT = re.compile(  # signs of what cannot wait; ~ stands for a few letters of the clause, … for more
    (
        r"(?:胸|心[口窝])(?!偶尔)~(?:[压绞撕裂憋]|剧痛|像|搁|突然)|突然~[胸心]口?~[疼痛闷]|突然~听不"
        r"|[胸心]~[疼痛闷慌]…(?:汗|喘|站不|左胳|下巴)|(?<!笑得)喘~不~气|[气喘]~躺不|喘气费|气短|憋[得醒]"
        r"|呼吸~(?:困难|费劲|急|深|停)|没有?了?呼吸(?!困难)"
        r"|(?:脸|嘴|唇|指|面)[^，便]{0,5}(?:[青紫乌]|发?灰|煞白)|血氧~[5-8]\d"
        r"|心[跳率]~(?:1[2-9]\d|一百[三四五六七八九]|乱)"
        r"|[叫喊摇拍][^，常有]{0,6}(?:不太?[醒应]|不理|没反应|没有反应)|没~(?:心跳|脉搏)|摸不到脉|神志|意识"
        r"|不听使唤|昏[迷过睡]|[晕昏]倒|倒~(?:不动|没醒|在?地上|十分钟)|没知觉|迷糊|胡[话言]|认不[得出]人"
        r"|抽搐(?!症)|抽风|张不开嘴|惊厥|抽了[一两几半]~[下次分]|翻白眼|眼~上翻|嘴~歪"
        r"|[一半]边?脸~(?:耷|不动|木|歪)|[手脚腿臂身]~(?:抬不|动不了|没知觉|站不起|突然~(?:没劲|无力|麻))"
        r"|[腿臂]发软|话~(?:不清|含|打转|说不出|大舌头)|(?<!严)重影|两个[影我人]|往[左右]~[倒栽]|路~一边倒"
        r"|踩~棉花|路~飘|看不见|[拉像]~窗帘|彩虹|(?<!奶)头~(?:炸|裂)|喷[着射]~吐"
        r"|血~(?:不止|止不|不停|直流|哗|好多|拧开|一直[流渗]|[往向]外|看不)|[湿浸]透|鼻血…小时"
        r"|(?:好多|一大.|大出|大量出)血|流了~鲜血|[吐呕咯咳](?!出?来?了?口?痰)~血(?![丝糖压])|咖啡渣"
        r"|(?:柏油|黑)~便(?!秘)|[夹切压绞锯轧]断|断指|指~[断掀]|[刀剪针]~(?:插|扎)[着在了]"
        r"|脚~(?:往外撇|朝外)|[呛噎]…(?:[紫青]|咳不|胸口?闷|发烧)|抓~脖子|卡~(?:喉|嗓|脖)|推~不回|窒息"
        r"|不出声|溺水|触电|电打|潜水|没透析|高压~枪"
        r"|[喝吃吞服误]~(?:农药|敌[敌百]|百草枯|[鼠除杀]~[药剂]|洁厕|清洁|消毒|漂白|84|汽油|甲醇|医用酒精"
        r"|酒精当|[草川]乌)|当成?[^，]{1,4}[喝吃]了?|吞了?~(?:钉|针|刀|硬币|磁)|鱼胆"
        r"|(?:洁厕灵?|84|农药|酒精|瓶)~[喝吃吞][了完光]|[吃吞服]了?~\d\d[片粒颗]"
        r"|[喝吃吞](?:~(?:整?瓶|[一几]把|一板|[七八几十]+粒)|了~毒)|整瓶|误[食服吞吃]|纽扣电池"
        r"|[少丢]了~[片粒]|(?:蘑菇|菌)…[吐拉晕]|哮喘…(?:喷|犯)|(?:煤|热水器|烧炭)…[头恶晕倒叫喊疼动]"
        r"|一氧化碳|84~洁厕|头孢…(?:红|心慌|喘)|不想活|想死(?!你)|自杀|结束这一切|割~(?:腕|胳膊|脖)|去死"
        r"|跳[楼江河桥]|(?:要|说)跳|一了百了|天台|楼顶|遗书|活着~(?:没意思|累)|一起走|控制不住了"
        r"|[楼梯架树高]~[摔掉坠跳]下|车祸|撞[飞倒]|骨头~[露顶]|折了|尿~不出|没尿|尿~(?:酱油|可乐)"
        r"|[油水汤]壶?~[泼烫翻洒]|皮都?掉|[硫硝盐]酸(?!亚|镁|锌|氨|[^，]{1,4}片)|石灰…眼|[溅进]~眼|蛇~咬"
        r"|[马胡黄]蜂|狗~扑倒|咬~(?:[血洞脸脖]|很深)|肉~[翻掀]|[睾蛋][丸蛋]~[疼痛]|宫外孕"
        r"|(?:(?<!备)孕|\d周)(?!.{0,24}牙)…(?:流~血|出血(?!糖)|破水|流~水|一滩水|见红|一动|没~胎动"
        r"|动~[少没]|硬邦邦|木板|看东西|眼[前花]|血压1[6-9])|产后…喘|烂苹果|胰岛素…(?:汗|发直|叫不)"
        r"|烧…(?:寒战|哆嗦|糊|紫)|(?:寒战|发抖|打哆嗦)…(?:39|4[01])|化疗…烧|紫点|烧…[瘀出]血?[点斑]"
        r"|压~不[退褪]"
        r"|(?:出生|刚满|才|满月|宝宝)[^，]{0,2}[\d一二三两十]+[天周]…(?:[烧烫]|3[89]|三十[八九])"
        r"|(?:宝|孩|娃|婴)~[一二两12]个多?半?月…(?:发烧|3[89])|中暑|滚烫|眼窝|[二三]?十[几多来]?次…[尿眼抖]"
        r"|果酱|(?:嗓子|喉)~[紧肿]|哑…[喘烫]|[嘴唇舌喉脸]~肿…[喘紧闷晕]|[嘴唇舌]~肿得"
        r"|(?:风团|疹|疙瘩)…[喘紧哑憋]|血压~(?:测不|1[89]\d|2\d\d)|血糖~(?:hi|HI|测不|[3-5]\d)"
        r"|[剧绞]~[痛疼]|右下[腹边肚]~疼|[跑转]~右下|撕[开裂]|[疼痛]~(?:打滚|吐|直不起|弯着|冷汗)"
        r"|肚子~硬…[疼吐]|会阴|弯不了…麻|汪汪|粗一圈|肿了一圈|怕光…(?:睁不开|隔雾)|磁力?珠|肠子"
        r"|听到~叫[我他她]|没[有了]?反应|现在~喘"
    )
    .replace("~", "[^，]{0,8}")
    .replace("…", ".{0,24}")
)
ALARMING = (  # each kind that is named is a point for an emergency
    r"突然|突发|忽然|一下子|猛地|一头栽 吐(?!司|奶|字) 喘|呼吸|[憋呛]|卡[住了]|透不过"
    r" (?<![贫验抽止献白])血(?![压糖脂管常液红小型氧丝])"
    r" (?<![疼痛麻])晕|昏|不醒|迷糊|发直|不理人|神志|意识|没反应|嗜睡|哼|叫不|喊不"
    r" [站抬动睁张说咽端拿坐躺走看]也?[不没]|不利索|没劲|没力|无力|(?<!严)重影|歪|发木|没知觉|没感觉"
    r" (?<!溢)[吞咽]下?了|误[食喝吞服]|喝了|药瓶|没熟|中毒|农药|一整?瓶"
    r" [冷虚大]汗|冒汗|发?[青紫](?!春|菜)|[煞苍惨]白|蜡黄|发灰|冰凉|发凉|发抖|寒战|打冷|哆嗦"
    r" 剧|(?<!干)裂|绞|撕|[疼痛]得|这么[疼痛]|难忍|打滚|雷"
    r" [扎刺插捅]穿?[进了入]|扎穿|断|炸|崩|撞|摔|[掉坠]下|露出|[掀翻]|大片|[咬蜇]"
    r" (?:烧|温|热)[^，]{0,6}(?:3[89]|4[01]|三十[八九])|高烧|抽[搐风了动]|惊厥 肿|鼓鼓|起泡|风团|疹"
    r" 没尿|尿不|不吃奶|囟门|胎动|流水|破水 宝宝|新生儿|婴|孕|产后|胎"
    r" 不想活|对不起大家|跳[楼窗江河桥下]|自杀|去死|割"
).split()
ORDINARY = (  # and each of these a point against it
    r"平时|偶尔|老是|经常|总是|反复|最近|多年|\d年|[一两三半几]年|个多?月|半个|每[年天次到晚]"
    r"|[一二三两几](?:周|天了) 能不能|可以|要不要|会不会|吃什么|什么|怎么|如何|哪|[吗么](?:，|$)|是不是"
    r" 体检|复查|检查|报告|预防|超声|B超|核磁|CT|指标|手术|术后|医生[说让开]|化验"
    r" 一会儿就|休息|不[疼痛烧]|挺好|精神好|好了|没事|正常|清楚|清醒|还行 想[问学]|请问|听说|新闻|备孕"
    r" 长[了大]|痒|皮肤|痘|近视|牙"
).split()
CALM = re.compile(  # a clause of the past, of general knowledge, of what is over
    r"小时候|年前|年多?了|去年|上个?月|以前|曾|既往|后遗症|术后|什么是|是什么|区别|预防|分辨|听说|新闻"
    r"|什么原因|怎么预防|考试|考急?救?证|备考|复习|电影|提前|先了解|以后还?能|如果以后|万一|排除了?|去世"
    r"|止住了|马上就好|好多了|还没怀|怎么做|哪里有"
)
NOW = re.compile("现在|刚|今[天早晚]|突然|这次|还没醒")
ABSENT = re.compile(  # a sign that is not there
    "(?:没有?|[无不未]|否认|不是)(?:有|过)?"
    "(?:烧|热|肿|吐|呕|疼|痛|晕|抽|出?血|喘|麻|疹|红|胸|呼吸困难|意识障碍)[^，没也和]{0,4}"
)


def is_urgent(question: str) -> bool:
    """Return whether a question tells of an emergency that is going on; words and points, no triage."""
    question = re.sub(r"[\s，,。；;！!？?]+", "，", question)
    told = "，".join(part for part in question.split("，") if NOW.search(part) or not CALM.search(part))
    told = ABSENT.sub("", told)
    points = sum(bool(re.search(kind, told)) for kind in ALARMING)
    points -= sum(bool(re.search(kind, question)) for kind in ORDINARY)
    return points > 1 or bool(URGENT.search(told))


def to_row(parts: dict, department: str, source: str) -> dict:
    """Return what to_instruction gives as a clean training row; ValueError says why it is left out."""
    turns = [f"患者：{user}\n医生：{doctor}" for user, doctor in parts["history"]]
    asked = "\n".join(
        text for text in (parts["instruction"], parts["input"]) if text not in ("", PLAIN, THINK)
    )
    texts = ["\n".join([*turns, f"患者：{asked}"]) if turns else asked, parts["think"], parts["output"]]
    question, think, answer = (mask_pii(clean(text)) for text in texts)
    if len(question) < 4 or len(answer) < 10:
        raise ValueError("question under 4 characters" if len(question) < 4 else "answer under 10 characters")
    at_once = re.split("如果|若|一旦|万一|要是|出现|[^，。]{0,6}时", answer)[0]  # advised without a condition
    high = is_urgent(question) or re.search(r"(?<!不用|不必)(?:[打叫]\D{0,3}120|急诊|救护车)", at_once)
    medium = re.search("[孕婴]|哺乳|宝宝|老人|奶奶|爷爷|[药片]|过敏|手术|肿瘤|癌", question)
    meta = {
        "source": source,
        "risk_level": "high" if high else "medium" if medium else "low",
        "specialty": clean(department) or "综合",
        "complexity": ("simple", "moderate", "complex")[(len(question) > 40) + (len(question) > 90)],
        "lang_style": ("formal", "colloquial")[
            bool(re.search("[咋啥俺吗呢啊吧]|老是|怎么办|有点", question))
        ],
        "is_deidentified": not any(map(still_private, (question, think, answer))),
    }
    output = f"<think>\n{think}\n</think>\n\n{answer}" if think else answer
    return {"instruction": THINK if think else PLAIN, "input": question, "output": output, "meta": meta}


def read_file(path: Path) -> tuple[list[dict], Counter]:
    """Return the clean rows of a file and reason -> records left out; the first record of each is named."""
    rows, left, first, systems = [], Counter(), {}, 0
    table = read_csv(path) if path.suffix.lower() == ".csv" else None
    left["broken line"] = table.attrs["broken"] if table is not None else 0
    source = path.name.encode("utf-8", "replace").decode()
    for number, record in enumerate(read_records(path) if table is None else table.to_dict("records"), 1):
        try:
            parts = to_instruction(record)
            meta = record["meta"] if isinstance(record.get("meta"), dict) else {}
            department = text_of(record.get("department", meta.get("specialty")), "department")
            rows.append(to_row(parts, department, source))
            systems += bool(parts["system"])
        except ValueError as error:
            reason = "not JSON, or bytes that are no text" if isinstance(record, ValueError) else str(error)
            left[reason] += 1
            first.setdefault(reason, f"record {number}: {error}")
    for reason, place in first.items():
        print(visible(f"{path}: {left[reason]} left out, the first {place}"))
    if systems:
        print(visible(f"{path}: {systems} system prompts are not used, the training script has its own"))
    if not rows and not first:
        print(visible(f"{path}: no records"))
    return rows, +left


def read_sources(sources: list[Path]) -> tuple[list[dict], Counter]:
    """Return the clean rows of every CSV, JSON and JSONL at or below paths, and reason -> records left out."""
    rows, left = [], Counter()
    files = [file for path in sources for file in ([path] if not path.is_dir() else sorted(path.rglob("*")))]
    for file in files:
        if file.is_dir():
            continue
        if file.suffix.lower() not in (".csv", ".json", ".jsonl"):
            print(visible(f"{file}: passed over, no .csv, .json or .jsonl"))
            continue
        if os.path.dirname(os.path.realpath(file)) == os.path.realpath(OUTPUT):
            print(visible(f"{file}: passed over, it stands where this program writes"))
            continue
        try:
            new, why = read_file(file)
        except (ValueError, OSError) as error:
            print(visible(f"Left out: {error}"))
            left["unreadable file"] += 1
            continue
        rows += new
        left += why
    if not rows:
        raise ValueError(
            f"no usable row at {', '.join(map(str, sources))}: name a CSV, JSON or JSONL file or a folder of them"
        )
    return rows, left


def check_writable(*paths: Path) -> None:
    """Raise ValueError for the first path that cannot be written as a file: before the work, not after it."""
    for path in paths:
        good = path.is_file() if os.path.lexists(path) else path.parent.is_dir()
        if not good or not os.access(path if path.exists() else path.parent, os.W_OK):
            raise ValueError(f"{path} cannot be written: name a file in a folder that is there")


# %% Run
sys.stdout.reconfigure(errors="replace")  # whatever a terminal cannot show
try:
    if "" in sys.argv[1:]:  # Path("") is the working directory
        raise ValueError("which .csv, .json or .jsonl file, or folder? One of the names is empty")
    OUTPUT.mkdir(parents=True, exist_ok=True)
    check_writable(*(OUTPUT / f"{name}.jsonl" for name in (*SHARES, "gold")))
    rows, left = read_sources([Path(name) for name in sys.argv[1:]] or [SOURCE])
except (ValueError, OSError) as error:
    raise SystemExit(visible(str(error))) from None
read = len(rows) + sum(count for reason, count in left.items() if reason != "unreadable file")
unique = drop_duplicates(rows)
left["the question of another row again, or nearly"] = len(rows) - len(unique)
splits = split_rows(unique)
for name, part in splits.items():
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in part)
    (OUTPUT / f"{name}.jsonl").write_bytes(text.encode())
print(f"| records read | {read} |\n|---|---|")
for reason, count in left.most_common():
    print(visible(f"| left out: {reason} | {count} |"))
for name, part in splits.items():
    print(f"| {name}.jsonl | {len(part)} |")
unsure = sum(not row["meta"]["is_deidentified"] for row in unique)
print(f"| rows where something private may be left (is_deidentified) | {unsure} |")
if FIGURE:
    figure, panels = plt.subplots(1, 2, figsize=(12, 4))
    for key in ("input", "output"):
        panels[0].hist([len(row[key]) for row in unique], bins=range(0, 1000, 20), alpha=0.6, label=key)
    panels[0].set(xlabel="characters", ylabel="rows")
    panels[0].legend()
    reasons = dict(left.most_common(), kept=len(unique))
    panels[1].barh(list(reasons), list(reasons.values()))
    figure.tight_layout()
    figure.savefig(OUTPUT / "data.png", dpi=150)
