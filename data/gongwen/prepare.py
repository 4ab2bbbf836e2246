# %% [markdown]
"""
# Official documents (公文): from a folder of files to rows that train

Run:    `uv run data/gongwen/prepare.py FOLDER [out.json]`, or rows.json, rows.jsonl, one document in place of the
        folder; then `DATA=out.json uv run sft_gongwen.py`
Data:   .docx and .txt, a document a file; JSON and JSONL in the common forms (instruction / output, messages, …)
Writes: out.json (by default data/gongwen/rows.json), a list of
        {"instruction": "起草…", "input": "", "output": "清江市卫生健康委员会关于…的通知\n…", "topic": "…"}
"""

# %% Imports
import json
import math
import os
import posixpath
import re
import sys
import zipfile
from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path

from lxml import etree

# %% Settings
OUTPUT = Path(__file__).parent / "rows.json"  # where the rows go when no second name is given
KEYS = ("instruction", "input", "output", "topic", "meta")
KINDS = tuple("决议 决定 命令 令 公报 公告 通告 意见 通知 通报 报告 请示 批复 议案 函 纪要".split())
HEAD_LINES = 20  # among which the title is looked for
CONVERT = {  # what is no .docx or .txt, and how it becomes one
    ".pdf": "libreoffice --headless --infilter=writer_pdf_import --convert-to docx FILE; scanned pages need OCR",
    ".ofd": "open it in WPS and save it as .docx",
    **dict.fromkeys(
        [".doc", ".wps", ".wpt", ".rtf", ".odt"], "libreoffice --headless --convert-to docx FILE"
    ),
}

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

MAX_DOCX = 100 << 20  # bytes of a .docx; only its text, styles and numbers are unpacked
MAX_XML = 24 << 20  # bytes that each of these may unpack to
MAX_TAGS = 1_000_000  # in each of them
MAX_MEMBERS = 5000  # files in a .docx
DIGITS = "零一二三四五六七八九"

# What stands in a .docx, and the formats of its automatic numbers
OPENED = {"sdt", "sdtContent", "customXml", "smartTag", "ins", "moveTo"}  # a reader sees what is in them
CLOSED = {"del", "moveFrom", "rt"}  # deleted, moved elsewhere, the pronunciation above a word
OFF = (None, "0", "false", "off")  # of a property that is there or not
SIGNS = {"tab": "\t", "ptab": "\t", "br": "\n", "cr": "\n", "noBreakHyphen": "-"}
FORMULA = {"num": "({})", "den": "/({})", "sup": "^({})", "sub": "_({})", "deg": "({})√"}
LINEAR = "formula (written on one line)"
NO_TEXT = {  # what is counted and named instead
    "blip": "picture",
    "imagedata": "picture",
    "chart": "chart",
    "relIds": "diagram",
    "object": "embedded object",
    "altChunk": "embedded document",
    "oMath": LINEAR,
    "footnoteReference": "footnote",
    "endnoteReference": "endnote",
}
SERIES = {  # numbers that are signs of their own
    "upperLetter": "ABCDEFGHIJKLMNOPQRSTUVWXYZ",
    "lowerLetter": "abcdefghijklmnopqrstuvwxyz",
    "upperRoman": "I II III IV V VI VII VIII IX X XI XII XIII XIV XV XVI XVII XVIII XIX XX".split(),
    "lowerRoman": "i ii iii iv v vi vii viii ix x xi xii xiii xiv xv xvi xvii xviii xix xx".split(),
    "ideographTraditional": "甲乙丙丁戊己庚辛壬癸",
    "ideographZodiac": "子丑寅卯辰巳午未申酉戌亥",
    "decimalEnclosedCircle": "①②③④⑤⑥⑦⑧⑨⑩⑪⑫⑬⑭⑮⑯⑰⑱⑲⑳",
    "decimalEnclosedCircleChinese": "①②③④⑤⑥⑦⑧⑨⑩⑪⑫⑬⑭⑮⑯⑰⑱⑲⑳",
    "decimalEnclosedParen": "⑴⑵⑶⑷⑸⑹⑺⑻⑼⑽⑾⑿⒀⒁⒂⒃⒄⒅⒆⒇",
    "decimalEnclosedFullstop": "⒈⒉⒊⒋⒌⒍⒎⒏⒐⒑⒒⒓⒔⒕⒖⒗⒘⒙⒚⒛",
}
SCRIPTS = {  # the letters for 0123456789, or for 一二三四五六七八九十百千
    "decimalFullWidth": "０１２３４５６７８９",
    "decimalFullWidth2": "０１２３４５６７８９",
    "ideographDigital": "〇一二三四五六七八九",
    "japaneseDigitalTenThousand": "〇一二三四五六七八九",
    "taiwaneseDigital": "〇一二三四五六七八九",
    "chineseLegalSimplified": "壹贰叁肆伍陆柒捌玖拾佰仟",
    "ideographLegalTraditional": "壹貳參肆伍陸柒捌玖拾佰仟",
}


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


# %% Read .docx
def numeral(value: int) -> str:
    """Return 1..9999 as a statute writes it (105 -> 一百零五); ValueError outside that range."""
    if not 1 <= value <= 9999:
        raise ValueError(f"not a number from 1 to 9999: {value}")
    digits = zip(f"{value:04d}", ["千", "百", "十", ""], strict=True)
    text = "".join(DIGITS[int(digit)] + (unit if digit != "0" else "") for digit, unit in digits)
    return re.sub("^一十", "十", re.sub("零+", "零", text).strip("零"))


def docx_format(value: int, kind: str) -> str:
    """Return a list number in one of Word's number formats; one that is not known here counts 1, 2, 3."""
    series, script = SERIES.get(kind, ""), SCRIPTS.get(kind, "")
    if 1 <= value <= len(series):
        return series[value - 1]
    if kind.endswith("Letter") and 1 <= value <= 260:  # AA, BB follow Z
        return series[(value - 1) % 26] * ((value + 25) // 26)
    if ("ounting" in kind or len(script) == 12) and 1 <= value <= 9999:
        text = re.sub("^十", "一十", numeral(value)) if script else numeral(value)
        return text.translate(dict(zip(map(ord, "一二三四五六七八九十百千"), script)))
    text = {"none": "", "decimalZero": f"{value:02d}", "numberInDash": f"- {value} -"}.get(kind, str(value))
    return text.translate(dict(zip(map(ord, "0123456789"), script)))


def docx_part(archive: zipfile.ZipFile, name: str) -> etree._Element:
    """Return the root of an XML file in a .docx; ValueError if it is too large or declares entities."""
    if archive.getinfo(name).file_size > MAX_XML:
        raise ValueError(f"{name} unpacks to more than {MAX_XML >> 20} MB")
    if (raw := archive.read(name)).count(b"<") > MAX_TAGS:
        raise ValueError(f"{name} has more than {MAX_TAGS} tags")
    parser = etree.XMLParser(resolve_entities=False, no_network=True, remove_comments=True, remove_pis=True)
    root = etree.fromstring(raw, parser)
    if root.getroottree().docinfo.internalDTD is not None:
        raise ValueError(f"{name} declares entities")
    return root


def docx_links(archive: zipfile.ZipFile, name: str) -> dict[str, str]:
    """Return what a file in a .docx refers to, for example {"styles": "word/styles.xml"}."""
    folder, file = posixpath.split(name)
    rels, links = posixpath.join(folder, "_rels", f"{file}.rels"), {}
    for link in docx_part(archive, rels) if rels in archive.namelist() else []:
        target = posixpath.normpath(posixpath.join("/", folder, link.get("Target", "")))
        links[link.get("Type", "").rpartition("/")[2]] = target.lstrip("/")
    return links


def docx_value(node: etree._Element, path: str, name: str = "val") -> str | None:
    """Return an attribute ("" without it) of the element at a path such as pPr/pStyle, None without the element."""
    found = node.find("/".join("{*}" + part for part in path.split("/"))) if path else node
    if found is None:
        return None
    return next((text for key, text in found.attrib.items() if key.rpartition("}")[2] == name), "")


def docx_styles(root: etree._Element) -> dict:
    """Return what each style says of numbers and hidden text, or a style it is based on; None: the default."""
    paths = ("basedOn", "pPr/numPr/numId", "pPr/numPr/ilvl", "rPr/vanish")
    own, styles = {}, {None: {}}
    for node in root.findall("{*}style"):
        own[docx_value(node, "", "styleId")] = {path: docx_value(node, path) for path in paths}
        if docx_value(node, "", "default") in ("1", "true") and docx_value(node, "", "type") == "paragraph":
            styles[None] = own[docx_value(node, "", "styleId")]
    for name, style in own.items():
        found, chain = {}, 0
        while style and chain < 12:  # Word allows no longer chains
            found = {path: value for path, value in style.items() if value is not None} | found
            style, chain = own.get(style["basedOn"]), chain + 1
        styles[name] = found
    return styles


def docx_lists(root: etree._Element) -> dict[str, tuple]:
    """Return, by numId, the list that counts, its levels, and the numbers with which it starts anew."""

    def levels_of(node: etree._Element) -> dict[str, dict]:
        names = ("start", "lvlRestart", "numFmt", "lvlText", "suff", "pStyle", "isLgl")
        levels = node.findall("{*}lvl")[:9]
        return {
            docx_value(level, "", "ilvl"): {name: docx_value(level, name) for name in names}
            for level in levels
        }

    nodes = {docx_value(node, "", "abstractNumId"): node for node in root.findall("{*}abstractNum")}
    linked = {docx_value(node, "styleLink"): name for name, node in nodes.items()}
    links = {name: docx_value(node, "numStyleLink") for name, node in nodes.items()}
    abstracts, lists = {name: levels_of(node) for name, node in nodes.items()}, {}
    for num in root.findall("{*}num"):
        owner = docx_value(num, "abstractNumId")
        owner = linked.get(links[owner], owner) if links.get(owner) else owner
        levels, starts = abstracts.get(owner, {}), {}
        for node in num.findall("{*}lvlOverride")[:9]:
            starts[docx_value(node, "", "ilvl")] = docx_value(node, "startOverride")
            levels = levels | levels_of(node)
        lists[docx_value(num, "", "numId")] = owner, levels, starts
    return lists


def docx_number(paragraph: etree._Element, style: dict, page: dict) -> str:
    """Return the automatic number of a paragraph as a reader sees it, "" if it has none, and count on."""
    number = docx_value(paragraph, "pPr/numPr/numId") or style.get("pPr/numPr/numId")
    owner, levels, starts = page["lists"].get(number, ("", {}, {}))
    name = docx_value(paragraph, "pPr/pStyle")
    place = docx_value(paragraph, "pPr/numPr/ilvl") or style.get("pPr/numPr/ilvl")
    place = place or next((key for key, level in levels.items() if name and level["pStyle"] == name), "0")
    if place not in levels:
        return ""
    counts = page["counts"][owner]
    first = {key: int((level["start"] or "0")[:9]) for key, level in levels.items()}
    if start := starts.pop(place, None):
        counts[place] = int(start[:9])
    else:
        counts[place] = counts[place] + 1 if place in counts else first[place]
    for deeper in [key for key in counts if key > place]:
        if place < (levels.get(deeper, {}).get("lvlRestart") or deeper):
            del counts[deeper]
    text, gap = (levels[place]["lvlText"] or "")[:60], levels[place]["suff"]
    if levels[place]["numFmt"] == "bullet":
        return re.sub("[\ue000-\uf8ff]", "•", text) + " "  # signs of a symbol font
    for key, level in levels.items():
        kind = level["numFmt"] if levels[place]["isLgl"] in OFF else None
        text = text.replace(f"%{int(key) + 1}", docx_format(counts.get(key, first[key]), kind or "decimal"))
    return text if not text or gap == "nothing" or gap != "space" and text[-1] in "、.．)）" else f"{text} "


def docx_children(node: etree._Element) -> Iterator[tuple[str, etree._Element]]:
    """Yield (name, child) as a reader meets them: without properties, deletions and second copies."""
    for child in node:
        name = etree.QName(child).localname
        if name in OPENED:
            yield from docx_children(child)
        elif name == "AlternateContent":
            yield from (pair for choice in child[:1] for pair in docx_children(choice))
        elif name not in CLOSED and not name.endswith("Pr"):
            yield name, child


def docx_pieces(node: etree._Element, page: dict, style: dict) -> Iterator[str | list[str]]:
    """Yield the texts of a paragraph, and a list of lines for a text box; count what is no text."""
    for name, child in docx_children(node):
        if name == "r":
            run = page["styles"].get(docx_value(child, "rPr/rStyle") or "", {})
            vanish = docx_value(child, "rPr/vanish"), run.get("rPr/vanish"), style.get("rPr/vanish")
            if next((value for value in vanish if value is not None), None) in OFF:
                yield from docx_pieces(child, page, style)
        elif name == "t":
            yield child.text or ""
        elif name in SIGNS:
            yield SIGNS[name]
        elif name == "sym":
            code = int(docx_value(child, "", "char") or "0", 16)
            known = code and not 0xE000 <= code <= 0xF8FF  # signs of symbol fonts
            page["unread"][f"sign of {docx_value(child, '', 'font')}"] += not known
            yield chr(code) if known else ""
        elif name == "instrText":  # what a field shows stands beside it, but for this kind, which Word draws
            page["unread"]["EQ field"] += (child.text or "").lower().lstrip().startswith("eq ")
        elif name == "txbxContent":
            yield docx_blocks(child, page)
        elif name == "textpath":  # WordArt
            yield docx_value(child, "", "string")
        elif name in FORMULA:
            yield FORMULA[name].format("".join(map(str, docx_pieces(child, page, style))))
        else:
            page["unread"][NO_TEXT.get(name, "")] += 1
            if NO_TEXT.get(name, LINEAR) == LINEAR:
                yield from docx_pieces(child, page, style)


def docx_blocks(node: etree._Element, page: dict) -> list[str]:
    """Return the lines of a body, a cell or a text box: one for a paragraph, one with tabs for a table row."""
    lines, texts, below = [], [], []  # below: what stands in text boxes after the first text of a paragraph
    for name, child in docx_children(node):
        if name == "p":
            style = page["styles"].get(docx_value(child, "pPr/pStyle"), {})
            for piece in docx_pieces(child, page, style):
                if isinstance(piece, str):
                    texts += [piece] * bool(piece.strip() or texts)
                else:
                    (below if texts else lines).extend(piece)
            marks = child.find("{*}pPr/{*}rPr")  # a deleted end: the paragraph goes on in the next one
            if marks is None or all(docx_value(marks, mark) in OFF for mark in ("del", "moveFrom", "vanish")):
                lines += [docx_number(child, style, page) + "".join(texts), *below]
                texts, below = [], []
        elif name == "tbl":
            lines += ["".join(texts), *below] * bool(texts) + docx_rows(child, page)
            texts, below = [], []
        elif name in NO_TEXT:
            page["unread"][NO_TEXT[name]] += 1
    return lines + ["".join(texts), *below] * bool(texts)


def docx_rows(table: etree._Element, page: dict) -> list[str]:
    """Return the lines of a table: the cells of a row with tabs between them; a row of one cell as it is."""
    lines = []
    for name, row in docx_children(table):
        if name != "tr" or any(docx_value(row, f"trPr/{mark}") is not None for mark in ("del", "hidden")):
            continue
        cells = [
            docx_blocks(cell, page)
            for name, cell in docx_children(row)
            if name == "tc" and cell.find("{*}tcPr/{*}cellDel") is None
        ]
        flat = [re.sub(r"[\t\n]+", " ", " ".join(filter(None, cell))) for cell in cells]
        lines += cells[0] if len(cells) == 1 else ["\t".join(flat)]
    return lines


def read_docx(path: str | Path) -> str:
    """Return what a reader sees on the pages of a .docx, a line for a paragraph or a table row.

    Tracked changes are accepted, automatic numbers written out; headers, footers and notes are left out, and
    what is no text is named in print. ValueError names a file that cannot be read.
    """
    path = Path(path)
    try:
        if not path.is_file() or path.stat().st_size > MAX_DOCX:
            raise ValueError(f"no regular file of at most {MAX_DOCX >> 20} MB")
        with zipfile.ZipFile(path) as archive:
            if len(archive.namelist()) > MAX_MEMBERS:
                raise ValueError(f"more than {MAX_MEMBERS} files in it")
            start = docx_links(archive, "")["officeDocument"]
            links = docx_links(archive, start)
            empty = etree.Element("none")
            styles, numbering = [
                docx_part(archive, links[kind]) if kind in links else empty
                for kind in ("styles", "numbering")
            ]
            page = {"styles": docx_styles(styles), "lists": docx_lists(numbering)}
            page |= {"counts": defaultdict(dict), "unread": Counter()}
            body = docx_part(archive, start).find("{*}body")
            text = "\n".join(docx_blocks(body, page))
    except Exception as error:  # of zipfile, zlib, lxml, or what a damaged file makes of the lines above
        remedy = "open it in Word, WPS or LibreOffice, remove a password, and save it as .docx"
        raise ValueError(f"{path} is not a readable .docx ({error!r:.200}): {remedy}") from None
    unread = [f"{count} x {name}" for name, count in page["unread"].items() if count and name]
    if unread:
        print(visible(f"{path}: not read, since no text: {', '.join(unread)}"))
    return text


# %% Documents
def read_document(path: str | Path) -> str:
    """Return the text of a .docx or .txt as a reader sees it; ValueError names another file, and how to convert it."""
    path = Path(path)
    kind = path.suffix.lower()
    if path.name.startswith(("~$", ".")):
        raise ValueError(f"{path} is a hidden file, such as Word leaves while a document is open")
    if kind not in (".docx", ".txt"):
        remedy = CONVERT.get(kind, "only .docx and .txt are read")
        raise ValueError(f"{path} is no .docx or .txt: {remedy}")
    text = read_docx(path) if kind == ".docx" else read_text(path)
    text = re.sub(r"\r\n?|[\f\u2028\u2029]", "\n", text).strip()
    if not text:
        raise ValueError(f"{path} holds no text: are its pages pictures?")
    return text


def title_of(text: str) -> str:
    """Return the title of a document, 关于…的通知 with the organ before it, from its first lines; "" without one."""
    lines = [re.sub(r"\s", "", line[:200]) for line in text.split("\n", 3 * HEAD_LINES)[: 3 * HEAD_LINES]]
    lines = [line for line in lines if line][:HEAD_LINES]
    for first, line in enumerate(lines):
        if re.search("[。：:；，]$", line) or not ("关于" in line or line.endswith(KINDS)):
            continue
        for size in (1, 2, 3):  # a title in several lines
            title = "".join(lines[first : first + size])
            if title.endswith(KINDS):
                return title
        return line
    return ""


def readable(name: str) -> str:
    """Return a file's name; one in GB18030, from a Windows archive, is decoded as that."""
    foreign = re.search("[\ud800-\udfff]", name)
    return name.encode("utf-8", "surrogateescape").decode("gb18030", "replace") if foreign else name


def document_row(path: Path) -> dict:
    """Return the row of a document: the file's name asks for it, its title is the topic."""
    text = text_of(read_document(path), f"{path}: the text")
    name = text_of(readable(path.stem), f"{path}: its name")
    return {"instruction": f"起草{name}", "input": "", "output": text, "topic": title_of(text) or name}


def own_split(record: dict) -> dict:
    """Return {"meta": {"split": "train"}} of a record that says to which split it belongs, {} of another."""
    meta = record.get("meta")
    split = meta.get("split") if isinstance(meta, dict) else None
    return {"meta": {"split": text_of(split, "meta.split")}} if isinstance(split, str) else {}


def record_row(record: dict) -> dict:
    """Return the row of a JSON record, with system and think, which no document has; ValueError says why it is refused."""
    row = to_instruction(record)
    if row["history"]:
        raise ValueError("earlier turns of a talk, which a document does not have")
    topic = text_of(record.get("topic"), "topic") or title_of(row["output"]) or row["instruction"]
    return row | {"topic": topic} | own_split(record)


def gather_rows(source: Path, written: Path | None = None) -> tuple[list[dict], list[str]]:
    """Return the rows of a file or of all files in a folder, each document once, and what was left out and why.

    `written` is not read.
    """
    if not source.exists():
        raise ValueError(f"{source} does not exist: name a folder of documents, or a .json or .jsonl file")
    rows, left = {}, []
    for path in sorted(source.rglob("*")) if source.is_dir() else [source]:
        if path.is_dir() or (written and os.path.realpath(path) == os.path.realpath(written)):
            continue
        try:
            records = read_records(path) if path.suffix.lower() in (".json", ".jsonl") else [path]
        except (ValueError, OSError) as error:
            left.append(str(error))
            continue
        for number, record in enumerate(records, 1):
            where = str(path) if record is path else f"{path}, record {number}"
            try:
                row = document_row(path) if record is path else record_row(record)
            except (ValueError, OSError) as error:
                left.append(str(error) if record is path else f"{where}: {error}")
                continue
            left += [
                f"{where}: its {part}; the rest is kept" for part in ("system", "think") if row.get(part)
            ]
            first = rows.setdefault(re.sub(r"\s", "", row["output"]), row | {"where": where})["where"]
            left += [f"{where}: the text of {first} again"] * (first != where)
    if not rows:
        raise ValueError(f"{source} holds no usable document; {'; '.join(left[:3])}")
    return [{key: row[key] for key in KEYS if key in row} for row in rows.values()], left


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
        "which folder, or .json or .jsonl file? uv run data/gongwen/prepare.py FOLDER [out.json]"
    )
output = Path(sys.argv[2]) if len(sys.argv) == 3 else OUTPUT
try:
    check_writable(output)
    rows, left = gather_rows(Path(sys.argv[1]), output)
    lines = ",\n".join(json.dumps(row, ensure_ascii=False) for row in rows)
    output.write_bytes(f"[\n{lines}\n]\n".encode())
except (ValueError, OSError) as error:
    raise SystemExit(visible(str(error))) from None
for reason in left:
    print(f"Left out: {visible(reason)}")
print(f"{output}: {len(rows)} rows on {len({row['topic'] for row in rows})} topics; left out: {len(left)}")
