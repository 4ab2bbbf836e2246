# %% [markdown]
"""
# Statutes, cases and questions: from files to rows that train

Answers are quoted or counted from the sources, never interpreted. Of several versions of a law the one that was
amended last is taken.

Run:    `uv run data/legal/prepare.py [FILE OR FOLDER ...]`, then `DATA=data/legal/rows.json uv run sft_alpaca.py`
Data:   statutes (.txt, .md, .docx), cases or questions (.csv, .json, .jsonl) with the columns 案情, 适用法条, 裁判要点
        or question, answer; by default the fictitious sample in data/legal
Writes: rows.json, a list of {"instruction": "《某条例》第十条怎么规定？", "input": "", "output": "…",
        "meta": {"source": "a.txt", "law": "某条例", "article": 10, "suffix": "", "effective": "2023-01-01",
        "kind": "article-recall", "split": "train", "cited": ["《某条例》第十条"]}};
        text.jsonl, {"text": "某条例\\n第一章总则\\n第一条　…"}, a chapter or section a row without the held-out articles, for
        data/legal/pretrain.py
"""

# %% Imports
import csv
import hashlib
import io
import json
import math
import os
import posixpath
import re
import sys
import zipfile
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import date, timedelta
from functools import cache
from pathlib import Path

from lxml import etree
from scipy.cluster.hierarchy import DisjointSet

# %% Settings
SOURCE = Path(__file__).parent  # what is read when no file or folder is named
OUTPUT = Path(__file__).parent / "rows.json"
TEXT = Path(__file__).parent / "text.jsonl"

TEST_SHARE = 0.15  # share of the articles that is held out, 0-1
RECALLS = 2  # rows an article that ask for its text, at most
CLAUSES = 2  # rows an article that ask where a clause stands, at most
MIN_CLAUSE = 14  # characters; a shorter clause could stand in any article
MAX_CLAUSE = 200
MAX_RANGE = 100  # articles that 第一条至第九条 may stand for
MAX_MESSAGES = 20  # printed per reason; all are counted
KINDS = (".txt", ".md", ".docx", ".csv", ".json", ".jsonl")
CONVERT = (".doc", ".wps", ".rtf", ".odt", ".pdf")  # what becomes one of them first
LOCKS = (".", "~$")  # how the names of hidden files begin, and of those that Word leaves while it is open

PHRASINGS = {  # separated by spaces; a row's own text decides which one it gets
    "article-recall": "{law}{article}是怎样规定的？ 请写出{law}{article}的全文。 {law}{arabic}的原文是什么？",
    "article-explanation": "请说明{law}{article}的结构和要点。 请梳理{law}{arabic}：位置、款项和规范用语。",
    "clause": "下面的规定出自{law}的哪一条？ 请指出这段文字是{law}第几条的内容。",
    "which-article-applies": "下面的问题应当适用哪一条规定？ 请回答问题，并指出所依据的条文。",
    "case-to-statute": "阅读案情，指出应当适用的法律条文和裁判要点。 下面的案件适用哪些法条？理由是什么？",
}
COLUMNS = {
    "question": ["question", "问题", "提问"],
    "answer": ["answer", "答案", "回答"],
    "facts": ["facts", "案情", "基本案情"],
    "statutes": ["statutes", "适用法条", "法条", "法律依据"],
    "holding": ["holding", "裁判要点", "裁判理由"],
}
NORMS = "不得|禁止|严禁|不应当|应当|必须|不可以|可以"

CLEAN = str.maketrans("０１２３４５６７８９\xa0", "0123456789 ", "\ufeff\u200b\u200c\u200d\u2060")
FULL = tuple("。！？…”’」）》.!?)")  # a line that ends so is a whole sentence
ENDS = (*FULL, "；", "：", ";", ":")  # a line that ends otherwise goes on in the next one
LEVELS = ("编", "分编", "章", "节", "一、", "（一）", "")  # of headings; "" is one without a number
NUMBER = "[零〇○一二两三四五六七八九十百千0-9][零〇○一二两三四五六七八九十百千0-9 \u3000]{0,12}"
SUFFIX = "[二三四五六七八九]?十[一二三四五六七八九]?|[一二三四五六七八九]|[1-9][0-9]?"
ARTICLE = re.compile(rf"第\s*({NUMBER})条(?:\s*之\s*({SUFFIX}))?([\s：:]*)(.*)")
# What follows an article that is only cited; where no space stands between, more words mean that, or may mean it
CITED = rf"的|、|第\s*(?:{NUMBER})[款项]|[至和及与或]者?第|之规定|[,，。；;）)》”]"
CITED_GLUED = rf"{CITED}|规定[的，。、；]|所[列称指述]|前款|[以之]外"
DOUBTFUL = rf"规定|第\s*(?:{NUMBER})条|各[款项]|以[上下]"
PART = re.compile(
    rf"第\s*(?:{NUMBER})(分编|编|章|节)(?:(\s+)([^。；：？！]{{0,60}})。?|([^。；，：？！]{{0,40}}))"
)
SECTION = re.compile(r"[^，。；：！？…,;:]{1,40}")
COUNTED = re.compile(r"([（(]?)[一二三四五六七八九十]{1,3}(?:[）)、.．]|\s)")
ANNEX = re.compile(rf"附\s*(?:件|表|录|图)?\s*(?:{NUMBER})?(?:[：:].*|\s\S.{{0,40}})?")
ITEM = re.compile(
    rf"[（(]\s*({SUFFIX})\s*[）)](?!项(?:规定|的|所|、|和|或|至|，))|([1-9][0-9]?)\s*[.．、](?![0-9])"
)
TITLE = re.compile(r"(?:法|法典|条例|规定|办法|细则|规则|决定|解释|章程|规程|准则)(?:[（(].{1,15}[）)])?》?$")
DAY = r"[0-9]{1,2}|[一二三四五六七八九十]{1,3}"
DATE = (
    rf"([0-9]{{4}}|[零〇○一二三四五六七八九]{{4}})\s*[年.-]\s*({DAY})\s*[月.-]\s*({DAY})(?:\s*日|(?![0-9]))"
)
START = rf"{DATE}[^，。；、0-9]{{0,6}}(?:施行|实施|生效|执行)(?!的)"
START_LABEL = rf"(?:施行|实施|生效)(?:日期|时间)?\s*[：:]\s*{DATE}"
AT_ONCE = (
    rf"自\s*(?:公布|发布|印发|颁布|通过)(?:之日)?[起后]?\s*(?:满?({DAY})日[后起]?)?起?\s*(?:施行|实施|生效)"
)
PUBLISHED = rf"{DATE}[^，。；\n]{{0,60}}(?:公布|发布|印发|颁布|通过)"
NOTE = rf"[（(]|目\s*[录次]$|.{{0,99}}{DATE}"  # a line above the articles that is no title
VERSION = r"[（(](?:(?:19|20)\d\d[^（()）]{0,12}|[^（()）]{0,8}修[正订][^（()）]{0,4})[）)]$"
YEAR = r"[（(_ -]((?:19|20)\d\d)年?[-.]?(\d\d?)?[-.月]?(\d\d?)?日?(?:修正|修订|公布|通过|发布)?[版本]?[)）]?$"

# Big files, and what a record may hold
COMMON = frozenset(
    "的一是不了在有我人们們中大来來上到说說时時要为為和你会會可以这這个個他她生年月日第条條关關于於请請问問"
)
MAX_BYTES = 1 << 30  # of a text file
# Names of the parts of a record, in any case; where "ask" is empty, "title" is the question
WRAPPERS = ("data", "rows", "records", "examples")
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


# %% Numerals
def numeral(value: int) -> str:
    """Return 1..9999 as a statute writes it (105 -> 一百零五); ValueError outside that range."""
    if not 1 <= value <= 9999:
        raise ValueError(f"not a number from 1 to 9999: {value}")
    digits = zip(f"{value:04d}", ["千", "百", "十", ""], strict=True)
    text = "".join(DIGITS[int(digit)] + (unit if digit != "0" else "") for digit, unit in digits)
    return re.sub("^一十", "十", re.sub("零+", "零", text).strip("零"))


@cache
def spellings() -> dict[str, int]:
    """Return the accepted Chinese spellings of 1..9999: 一百一十二, 一百十二, 一一二; 十二, 一十二, 一二."""
    table = {}
    for value in range(1, 10000):
        text = numeral(value)
        plain = "".join(DIGITS[int(digit)] for digit in str(value))
        table |= dict.fromkeys([text, text.replace("一十", "十"), re.sub("^十", "一十", text), plain], value)
    return table


def number(text: str | None) -> int:
    """Return the number 1..9999 that 一百零五, 两百, 一〇五, 105 or １０５ stands for, 0 if it is none."""
    text = re.sub("[〇○]", "零", re.sub(r"\s", "", (text or "").translate(CLEAN))).replace("两", "二")
    return int(text) if re.fullmatch("[0-9]{1,4}", text) else spellings().get(text, 0)


def label(value: int, suffix: int) -> str:
    """Return 第十条之一 for 10, 1 and 第十条 for 10, 0."""
    return f"第{numeral(value)}条" + (f"之{numeral(suffix)}" if suffix else "")


def cite(key: tuple[str, int, int]) -> str:
    """Return 《某条例》第十条 for the law, number and suffix of an article."""
    return f"《{key[0]}》{label(*key[1:])}"


# %% Read files
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


def visible(text: str) -> str:
    """Return a text as a line for a terminal: a sign that would steer it, such as ESC or a line's end, is U+FFFD."""
    return re.sub(r"[^\t\x20-\x7e\xa0-\u2027\u202f-\u2065\u206a-\U0010ffff]", "\ufffd", text)


def count(log: Counter, reason: str, where: str) -> None:
    """Count and print something dropped or doubtful; the reason starts with "dropped: " or "warning: "."""
    log[reason] += 1
    if log[reason] <= MAX_MESSAGES:
        print(visible(f"{where}: {reason}"))


def readable(name: str) -> str:
    """Return a file's name; one in GB18030, from a Windows archive, is decoded as that."""
    foreign = re.search("[\ud800-\udfff]", name)
    return name.encode("utf-8", "surrogateescape").decode("gb18030", "replace") if foreign else name


def list_files(sources: object, written: set[Path], log: Counter) -> list[tuple[str, Path]]:
    """Return (short name, path) of every file to read, but for what is written; ValueError for a missing source."""
    found = {}
    for source in [sources] if isinstance(sources, str | os.PathLike) else sources:
        if source == "" or not Path(source).exists():
            raise FileNotFoundError(f"{source!r}: no such file or folder; name one that exists")
        source = Path(source)
        for path in sorted(source.rglob("*")) if source.is_dir() else [source]:
            real = Path(os.path.realpath(path))
            name = readable(path.relative_to(source).as_posix() if source.is_dir() else path.name)
            if path == source and real in written:
                raise ValueError(f"{path}: is the output as well; choose another OUTPUT")
            if path.is_dir() or real in written or path.suffix == ".py" or path.stem == "README":
                continue
            if path.suffix.lower() in CONVERT:
                count(log, "dropped: convert it: libreoffice --headless --convert-to docx FILE", name)
            elif path.suffix.lower() not in KINDS or path.name.startswith(LOCKS):
                count(log, "dropped: file of another type", name)
            else:
                found.setdefault(real, (name, path))
    return list(found.values())


def read_statute(path: Path) -> str:
    """Return the text of a statute; of Markdown without its marks."""
    if path.suffix.lower() == ".docx":
        return read_docx(path)
    text = read_text(path)
    return re.sub(r"\*\*|<!--.{0,99}?-->", "", text) if path.suffix.lower() == ".md" else text


# %% Statutes
@dataclass
class Article:
    """One 条; each of its paragraphs (款) is a text followed by its marked lines (项, 目)."""

    source: str
    line: int
    number: int
    suffix: int  # 1 in 第…条之一, otherwise 0
    place: list[str]  # headings above it: ["第三章疾病预防", "第一节预防接种"]
    law: str = ""
    effective: str | None = None
    paragraphs: list[list[str]] = field(default_factory=list)

    @property
    def text(self) -> str:
        return "\n".join(line for paragraph in self.paragraphs for line in paragraph)

    @property
    def key(self) -> tuple[str, int, int]:
        return self.law, self.number, self.suffix


def split_lines(text: str) -> list[tuple[int, str]]:
    """Return (line number, line) for every line with text, and for an article that starts in mid-line."""
    lines = []
    for where, line in enumerate(re.split(r"\r\n?|[\n\u2028]", text.translate(CLEAN)), 1):
        pieces = re.split(rf"(?<=[。；])\s*(?=第\s*(?:{NUMBER})条(?:之(?:{SUFFIX}))?[ \t\u3000])", line)
        lines += [(where, piece.strip()) for piece in pieces if piece.strip()]
    return lines


def opening(line: str) -> re.Match | None:
    """Return the match of ARTICLE if the line can open an article, None if it is text or cites one."""
    match = ARTICLE.match(line)
    return match if match and not re.match(CITED if match[3] else CITED_GLUED, match[4]) else None


def numbers_of(match: re.Match) -> tuple[int, int]:
    """Return (number, suffix) of a match of ARTICLE, 0 for what is no number."""
    return number(match[1]), number(match[2])


def style_of(match: re.Match) -> str:
    """Return what follows the number in a match of ARTICLE: "space", "nothing", "text" or "doubtful text"."""
    if match[3] or not match[4]:
        return "space" if match[3] else "nothing"
    return "doubtful text" if re.match(DOUBTFUL, match[4]) else "text"


def opens(
    match: re.Match, last: tuple[int, int], full: bool, usual: str, clear: set[tuple[int, int]]
) -> bool:
    """Return whether a line that can open an article does so where it stands, below article `last`.

    `full`: the line above ends a sentence; `usual`: the style of most articles of the file; `clear`: the numbers
    that some line opens without a doubt.
    """
    now, style = numbers_of(match), style_of(match)
    follows = last == (0, 0) or now in ((last[0] + 1, 0), (last[0], last[1] + 1))
    if style == "space":
        return True
    if style == "doubtful text":
        return follows and full and now not in clear
    if follows:
        return full or style == usual
    return full and (style == "nothing" or style == usual and now > last)


def find_headings(lines: list[str]) -> list[str | None]:
    """Return the level, of LEVELS, of every line that can be a heading, None for text.

    One without 编, 章 or 节 is short, has no comma or full stop, and stands directly above an article or a heading.
    """
    levels, below = [], False
    for line in reversed(lines):
        part, level = PART.fullmatch(line), None
        if part and (part[2] or not re.match("[的所、至和及第]|规定", part[4])):
            level = part[1]
        elif re.sub(r"\s", "", line) in ("总则", "附则", "罚则"):
            level = "章"
        elif below and SECTION.fullmatch(line) and not ARTICLE.match(line) and not ANNEX.fullmatch(line):
            counted = COUNTED.match(line)
            level = ("（一）" if counted[1] else "一、") if counted else ""
        levels.append(level)
        below = level is not None or bool(opening(line))
    return levels[::-1]


def add_line(article: Article, line: str) -> None:
    """Append a line: a marked one is an item, after an unfinished one it goes on, else it is a 款."""
    last = article.paragraphs[-1] if article.paragraphs else None
    if last and ITEM.match(line):
        last.append(line)
    elif last and not last[-1].endswith(ENDS):
        last[-1] += line  # the file wraps its lines
    else:
        article.paragraphs.append([line])


def find_articles(text: str, source: str, log: Counter) -> tuple[list[tuple[int, str]], list[Article]]:
    """Return the numbered lines before the first article, and the articles in the file's order."""
    lines = split_lines(text)
    marked = {where for where, line in lines if line.startswith("#")}  # headings in Markdown
    lines = [(where, line.lstrip("# \u3000")) for where, line in lines]
    heads = [match for _, line in lines if (match := opening(line))]
    usual = Counter(["", *map(style_of, heads)]).most_common(1)[0][0]
    clear = {numbers_of(match) for match in heads if style_of(match) != "doubtful text"}
    before, articles, article, place, last, above = [], [], None, {}, (0, 0), ""
    for (where, line), level in zip(lines, find_headings([line for _, line in lines])):
        match, full = opening(line), not above or above.endswith(FULL)
        if level in LEVELS[4:] and not (full if articles else level):
            level = None
        if level is not None or where in marked and articles and not match:
            upper = {name: place[name] for name in LEVELS[: LEVELS.index(level or "")] if name in place}
            place, article, above = upper | {level or "": re.sub(r"\s", "", line)}, None, ""
            continue
        if match and opens(match, last, full, usual, clear):
            article, line, now = None, match[4], numbers_of(match)
            if now[0]:
                article, last = Article(source, where, *now, list(place.values())), now
                articles.append(article)
            else:
                count(log, "dropped: article with an unreadable number", f"{source}:{where}: {match[0][:20]}")
                line = ""
        elif ANNEX.fullmatch(line):
            article = None
        above = line
        if article and line:
            add_line(article, line)
        elif line and not articles:
            before.append((where, line))
        elif line:
            count(log, "dropped: line outside the articles", f"{source}:{where}: {line[:20]}")
    return before, articles


def iso_date(groups: Sequence[str]) -> str:
    """Return the ISO date of the three groups of DATE, "" if the calendar has no such day."""
    try:
        return date(*map(number, groups)).isoformat()
    except ValueError:
        return ""


def effective_date(before: str, closing: str) -> str | None:
    """Return the ISO date from which a law is in force, by the lines before or by the text of its last articles."""
    found = re.findall(START, before)[-1:] or re.findall(START_LABEL, before) or re.findall(START, closing)
    at_once = re.search(AT_ONCE, before) or re.search(AT_ONCE, closing)
    published = re.findall(PUBLISHED, before)
    if not found and at_once and published and (day := iso_date(published[-1])):
        return (date.fromisoformat(day) + timedelta(number(at_once[1]))).isoformat()
    return (iso_date(found[0]) or None) if found else None


def version_date(before: str, source: str) -> str | None:
    """Return the last date of a law's heading (adopted, amended, published) or of its file's name, None without one."""
    dates = [iso_date(groups) for groups in re.findall(DATE, re.sub(START, "", before))]
    name = re.search(YEAR, Path(source).stem)
    dates.append("-".join(part.zfill(2) for part in name.groups() if part) if name else "")
    return max(dates) or None


def name_law(lines: list[str], source: str) -> str:
    """Return the title of a law: of the lines above the first article those that end like one, else the file's name."""
    lines = [line for line in lines if len(line) <= 60 and not re.search("[令号：。；，]$|通知$", line)]
    lines = lines or [Path(source).stem]
    end = next((i for i, line in enumerate(lines) if TITLE.search(line)), 0)
    about = (i for i in range(max(0, end - 3), end) if "关于" in lines[i])
    begin = next(about, end)  # a title in several lines
    begin -= begin > 0 and lines[begin].startswith("关于")  # the organ stands on a line of its own
    title = re.sub(r"\s", "", "".join(lines[begin : end + 1])).removeprefix("《").removesuffix("》")
    return title if "修正案" in title else re.sub(VERSION, "", title)  # each 修正案 is a law of its own


def parse_statute(text: str, source: str, log: Counter) -> tuple[str | None, list[Article]]:
    """Return the date of this version of a law, and its articles in order; ValueError if there is none."""
    before, found = find_articles(text, source, log)
    articles = []
    for article in found:
        if article.paragraphs and not UNFIT.search("\n".join([*article.place, article.text])):
            articles.append(article)
        else:
            reason = "what is no text to train on" if article.paragraphs else "no text"
            count(log, f"dropped: article with {reason}", f"{source}:{article.line}")
    if not articles:
        raise ValueError(f"{source}: no article found, a line that starts with 第…条")
    notes = "\n".join(line for _, line in before)
    effective = effective_date(notes, "\n".join(article.text for article in articles[-3:]))
    names = [(where, line) for where, line in before if not re.match(NOTE, line)]
    law = text_of(name_law([line for _, line in names], source), f"{source}: the title")
    for article in articles:
        article.law, article.effective = law, effective
    for where, line in names:
        if re.sub(r"[\s《》]", "", line) not in re.sub("[《》]", "", law):
            count(log, "dropped: line before the first article", f"{source}:{where}: {line[:20]}")
    return version_date(notes, source), articles


def choose_version(files: list[tuple[str | None, list[Article]]], log: Counter) -> list[Article]:
    """Return the articles of a law from its version made last; files whose numbers do not overlap are its parts.

    A version without any date may be the newest as well: it is taken for that, and named.
    """
    files = sorted(files, key=lambda file: file[0] or file[1][0].effective or "9999", reverse=True)
    kept, parts, first_made, first = {}, [], files[0][0], files[0][0] or files[0][1][0].effective
    for made, articles in files:
        source, when = articles[0].source, made or articles[0].effective
        again = [article for article in articles if article.key in kept]
        differs = any(bare(article.text) != bare(kept[article.key].text) for article in again)
        other = differs or (when != first if again else made and first_made and made != first_made)
        if differs and (when == first or not first):
            reason = "no date tells which version is newer: write the year into the file's name"
            count(log, f"warning: {reason}", f"{parts[0][0].source}, {source}")
        for article in articles:
            known = kept.get(article.key)
            if not other and (not known or known.source == source and not known.text.endswith(FULL)):
                kept[article.key] = article  # instead of its line in a table of contents
                continue
            reason = (
                "article of another, older version" if other else "repeated article number with another text"
            )
            reason = "identical article" if known and bare(known.text) == bare(article.text) else reason
            count(log, f"dropped: {reason}", f"{source}:{article.line}: {cite(article.key)}")
        if not other:
            first_made, first = first_made or made, first or when
            parts.append(articles)
    parts.sort(key=lambda part: part[0].key)
    chosen = [article for part in parts for article in part if kept[article.key] is article]
    effective = max(article.effective or "" for article in chosen) or None
    for article in chosen:
        article.effective = effective
    if not effective:
        count(log, "warning: no effective date", chosen[0].law)
    check_numbering(chosen, log)
    return chosen


def newest_articles(statutes: list[tuple[str | None, list[Article]]], log: Counter) -> list[Article]:
    """Return the articles of all laws, each in one version."""
    laws = defaultdict(list)
    for made, articles in statutes:
        laws[articles[0].law].append((made, articles))
    return [article for files in laws.values() for article in choose_version(files, log)]


def check_numbering(articles: list[Article], log: Counter) -> None:
    """Report numbers of a law that do not follow one another."""
    last = (0, 0)
    for article in articles:
        current = article.key[1:]
        if current not in ((last[0] + 1, 0), (last[0], last[1] + 1)):
            reason = "gap in the numbering" if current > last else "article out of order"
            count(log, f"warning: {reason}", f"{article.source}:{article.line}: {label(*current)}")
        last = current


# %% Rows
def bare(text: str) -> str:
    """Return the text without spaces, case and closing full stop, by which duplicates are found."""
    return re.sub(r"\s", "", text).casefold().rstrip("。.!?！？")


def pick(options: Sequence, seed: str, size: int) -> list:
    """Return up to `size` of the options, in an order that depends on nothing but them and the seed."""
    return sorted(options, key=lambda option: hashlib.sha256(f"{seed}{option}".encode()).digest())[:size]


def make_row(kind: str, source: str, cited: list[tuple], effective: str | None, *texts: str) -> dict:
    """Return the Alpaca row of instruction, output and perhaps input; meta is about cited[0]."""
    law, value, suffix = cited[0]
    meta = {
        "source": source,
        "law": law,
        "article": value,
        "suffix": f"之{numeral(suffix)}" if suffix else "",
    }
    meta |= {"effective": effective, "kind": kind, "split": "", "cited": [cite(key) for key in cited]}
    return {"instruction": texts[0], "input": "".join(texts[2:]), "output": texts[1], "meta": meta}


def clauses(article: Article) -> list[tuple[str, str]]:
    """Return (place, text) of every sentence and item; place is 第二款第一项 (第一项 if there is one 款)."""
    found = []
    for index, lines in enumerate(article.paragraphs, 1):
        place, item = f"第{numeral(index)}款" if len(article.paragraphs) > 1 else "", ""
        found += [(place, text.strip()) for text in re.findall(r"[^。！？]+(?:[。！？][”’」）]*)?", lines[0])]
        for line in lines[1:]:
            match = ITEM.match(line)
            value = numeral(number(match[1] or match[2]))
            nested = match[2] and item  # 1. is a 目 below （一）, and a 项 where there is no （一）
            item = item if match[2] else f"第{value}项"
            end = f"{item}第{value}目" if nested else f"第{value}项"
            found.append((place + end, line[match.end() :].strip()))
    return found


def explain(article: Article) -> str:
    """Return the article's place, its number of 款 and 项, and its sentences with 应当, 不得, 可以 …"""
    found = clauses(article)
    place = f"位于{'、'.join(article.place)}，" if article.place else ""
    lists = Counter(where[: where.rfind("第")] for where, _ in found if where.endswith("项"))
    items = "".join(f"，{where}列有{size}项" for where, size in lists.items())
    lines = [f"{cite(article.key)}{place}共{len(article.paragraphs)}款{items}。"]
    for where, text in found:
        if words := dict.fromkeys(re.findall(NORMS, text)):
            lines.append(f"{where}（{'、'.join(words)}）：{text}")
    if len(lines) == 1:
        lines.append(f"条文没有使用“应当”“不得”“可以”等规范用语，原文为：\n{article.text}")
    return "\n".join(lines)


def article_rows(article: Article, quoted: Counter, log: Counter) -> Iterator[dict]:
    """Yield the rows of one article; `quoted` counts (law, clause): only a unique clause is asked for."""
    name = cite(article.key)
    words = {"law": f"《{article.law}》", "article": label(*article.key[1:])}
    words["arabic"] = words["article"].replace(numeral(article.number), str(article.number), 1)
    common = (article.source, [article.key], article.effective)
    for phrase in pick(PHRASINGS["article-recall"].split(), name, RECALLS):
        yield make_row("article-recall", *common, phrase.format(**words), f"{name}规定：\n{article.text}")
    for index, lines in pick(list(enumerate(article.paragraphs, 1)), name, len(article.paragraphs) > 1):
        part, text = f"{name}第{numeral(index)}款", "\n".join(lines)
        yield make_row("article-recall", *common, f"{part}的内容是什么？", f"{part}规定：\n{text}")
    for phrase in pick(PHRASINGS["article-explanation"].split(), name, 1):
        yield make_row("article-explanation", *common, phrase.format(**words), explain(article))
    usable = [c for c in clauses(article) if MIN_CLAUSE <= len(c[1]) <= MAX_CLAUSE and c[1][-1] != "："]
    clear = [c for c in usable if quoted[article.law, bare(c[1])] == 1]
    log["dropped: clause that stands in several places"] += len(usable) - len(clear)
    for where, text in pick(clear, name, CLAUSES):
        question = pick(PHRASINGS["clause"].split(), text, 1)[0].format(**words)
        yield make_row("which-article-applies", *common, question, f"出自{name}{where}。", text)


# %% Cases and questions
def read_cases(path: Path, source: str, log: Counter) -> list[tuple[str, dict[str, str]]]:
    """Return (where, known columns) of every usable row; ValueError if the file has none."""
    found, csv_file = [], path.suffix.lower() == ".csv"
    for where, raw in csv_rows(read_text(path)) if csv_file else enumerate(read_records(path), 1):
        try:
            found.append((f"{source}: row {where}", known_columns(raw)))
        except ValueError as error:
            count(log, "dropped: unusable row", f"{source}: row {where}: {error}")
    if not found:
        raise ValueError(f"{path}: no row with 案情 and 适用法条, or with question and answer (问题, 答案)")
    return found


def csv_rows(text: str) -> Iterator[tuple[int, dict | ValueError]]:
    """Yield (line, row) of a table whose columns are parted by the sign that its first line has most of."""
    head, _, rest = text.partition("\n")
    text = rest if head.lower().startswith("sep=") else text
    sign = max(",\t;|", key=text.partition("\n")[0].count)
    reader = csv.DictReader(io.StringIO(text, newline=""), strict=True, delimiter=sign)
    while True:
        try:
            row = next(reader)
            double = [name for name, times in Counter(reader.fieldnames).items() if name and times > 1]
            yield reader.line_num, ValueError(f"two columns {double[0]}: rename one") if double else row
        except csv.Error as error:
            yield reader.reader.line_num, ValueError(f"broken ({error})")
        except StopIteration:
            return


def known_columns(raw: object) -> dict[str, str]:
    """Return the texts of a row by the names of COLUMNS; ValueError says why it cannot be used."""
    if isinstance(raw, ValueError):
        raise raw
    if not isinstance(raw, dict):
        raise ValueError(f"no object, but a {type(raw).__name__}")
    if any(raw.get(None) or []):
        raise ValueError("more fields than the header has")
    cells, known = {str(key).strip().lower(): value for key, value in raw.items()}, {}
    if len(cells) < len(raw):
        raise ValueError(
            f"two columns that are the same but for case and spaces: {', '.join(map(str, raw))[:100]}"
        )
    for name, keys in COLUMNS.items():
        texts = {text: key for key in keys if (text := text_of(cells.get(key), key).translate(CLEAN))}
        if len(texts) > 1:
            raise ValueError(f"{' and '.join(texts.values())} hold different texts: keep one")
        for text, key in texts.items():
            known[name] = text_of(text, key)  # again: <\u200b|im_end|>
    if not ({"facts", "statutes"} <= set(known) or {"question", "answer"} <= set(known)):
        raise ValueError(f"not 案情 and 适用法条, nor question and answer, but {', '.join(cells)[:100]}")
    return known


def short(law: str) -> str:
    """Return the title without 中华人民共和国 and a closing bracket, as it is often cited."""
    return re.sub(r"^中华人民共和国|[（(][^（）()]*[）)]$", "", re.sub(r"\s", "", law))


def cited_articles(text: str, laws: dict[str, list[str]]) -> list[tuple[str, int, int]]:
    """Return the articles cited, in order, ranges filled; law "" or number 0 where that cannot be told.

    `laws` holds the laws of the sources by their short titles.
    """
    names = {name for same in laws.values() for name in same}
    law, found, last, end = next(iter(names)) if len(names) == 1 else "", {}, 0, 0
    book = rf"《([^《》]+)》(?=((?:\s*[（(][^（）()]{{0,40}}[）)])?\s*第\s*(?:{NUMBER})[条编章])?)"
    for match in re.finditer(rf"{book}|第\s*({NUMBER})条(?:之({SUFFIX}))?", text):
        if match[1]:  # a permit or a form also stands in 《》: it is a law where 第…条 follows or we know it
            close = [match[1]] if match[1] in names else laws.get(short(match[1]), [])
            named = close[0] if len(close) == 1 else match[1]
            law, last = (named if match[2] or named in names else law), 0
            continue
        value, suffix = number(match[3]), number(match[4])
        if last and re.fullmatch(r"\s*[至到—–~-]+\s*", text[end : match.start()][:9]):
            between = range(last + 1, value)
            found |= dict.fromkeys((law, n, 0) for n in (between if len(between) <= MAX_RANGE else [0]))
        found[law, value, suffix] = None
        last, end = value, match.end()
    return list(found)


def doubt(cited: list[tuple], articles: dict[tuple, Article], names: set[str]) -> str:
    """Return why the citation cannot be trusted, "" if it can; a law that is not among the sources passes."""
    if not all([cited, *(law and value for law, value, _ in cited)]):
        return "row that cites no readable article of a named law"
    lost = [cite(key) for key in cited if key[0] in names and key not in articles]
    return "row that cites an article that the statute lacks" if lost else ""


def case_rows(cases: list[tuple[str, dict]], articles: dict[tuple, Article], log: Counter) -> Iterator[dict]:
    """Yield the Alpaca rows of cases and questions whose citations can be trusted."""
    names, laws = {law for law, _, _ in articles}, defaultdict(list)
    for name in sorted(names):
        laws[short(name)].append(name)
    for where, known in cases:
        basis, holding = known.get("statutes", ""), known.get("holding", "")
        case = "facts" in known and basis
        asked = known["facts" if case else "question"]
        cited = cited_articles(basis if case else f"{asked}\n{known['answer']}\n{basis}", laws)
        if reason := doubt(cited, articles, names):
            count(log, f"dropped: {reason}", where)
            continue
        if any(key not in articles for key in cited):
            count(log, "warning: row kept though its law is not among the sources", where)
        effective = articles[cited[0]].effective if cited[0] in articles else None
        common = (where.partition(": row ")[0], cited, effective)
        kind = "case-to-statute" if case else "which-article-applies"
        phrase = pick(PHRASINGS[kind].split(), bare(asked), 1)[0]
        if case:
            answer = f"适用法条：{basis}" + f"\n裁判要点：{holding}" * bool(holding)
            yield make_row(kind, *common, phrase, answer, asked)
            continue
        answer = known["answer"] + f"\n依据：{basis}" * bool(basis)
        if cited_articles(asked, laws):  # a question that names the article does not ask which one applies
            yield make_row("article-recall", *common, asked, answer)
        else:
            yield make_row(kind, *common, phrase, answer, asked)


# %% Build
def check_writable(*paths: Path) -> None:
    """Raise ValueError for the first path that cannot be written as a file: before the work, not after it."""
    for path in paths:
        good = path.is_file() if os.path.lexists(path) else path.parent.is_dir()
        if not good or not os.access(path if path.exists() else path.parent, os.W_OK):
            raise ValueError(f"{path} cannot be written: name a file in a folder that is there")


def unique_rows(rows: Iterable[dict], log: Counter) -> list[dict]:
    """Return the rows without those that ask what an earlier one asks."""
    kept = {}
    for row in rows:
        asked = (row["meta"]["law"], bare(row["input"])) if row["input"] else bare(row["instruction"])
        first = kept.setdefault(asked, row)
        if first is not row:
            same = bare(first["output"]) == bare(row["output"])
            reason = "duplicate row" if same else "row with a known question and another answer"
            text = row["input"] or row["instruction"]
            count(log, f"dropped: {reason}", f"{row['meta']['source']}: {text[:30]}")
    return list(kept.values())


def set_splits(rows: list[dict], articles: Iterable[Article], log: Counter) -> None:
    """Set meta.split; articles that a row cites together, or with the same text, stay together."""
    texts = defaultdict(list)
    for article in articles:
        texts[bare(article.text)].append(cite(article.key))
    ties = [*texts.values(), *(row["meta"]["cited"] for row in rows)]
    groups = DisjointSet({name for names in ties for name in names})
    for names in ties:
        for name in names[1:]:
            groups.merge(names[0], name)
    subsets = {min(group): group for group in groups.subsets()}
    room, test = math.ceil(TEST_SHARE * len(groups)) if len(subsets) > 1 else 0, set()
    for head in pick(sorted(subsets), "split", len(subsets)):
        if len(subsets[head]) <= room:
            room, test = room - len(subsets[head]), test | subsets[head]
    for row in rows:
        row["meta"]["split"] = "test" if row["meta"]["cited"][0] in test else "train"
    if not test and TEST_SHARE:
        count(log, "warning: nothing held out, every article is tied to too many others", "split")


def text_rows(articles: Iterable[Article], held_out: set[str]) -> list[dict]:
    """Return {"text": title, headings, articles} for each chapter or section, without the held-out articles."""
    texts = defaultdict(list)
    for article in articles:
        if cite(article.key) not in held_out:
            texts[article.law, *article.place].append(f"{label(*article.key[1:])}\u3000{article.text}")
    return [{"text": "\n".join([*heads, *lines])} for heads, lines in texts.items()]


def build(
    sources: str | Path | Iterable[str | Path], output: str | Path, text: str | Path | None = None
) -> dict:
    """Write the rows, and the laws as text; return the number of files, articles, rows, dropped and warnings by name.

    A file that cannot be read is named and left out. ValueError or FileNotFoundError if nothing can be read.
    """
    log, statutes, cases, errors = Counter(), [], [], []
    written = [Path(path) for path in (output, text) if path]
    for path in written:
        path.parent.mkdir(parents=True, exist_ok=True)
    check_writable(*written)
    files = list_files(sources, {Path(os.path.realpath(path)) for path in written}, log)
    for name, path in files:
        try:
            if path.suffix.lower() in (".txt", ".md", ".docx"):
                statutes.append(parse_statute(read_statute(path), name, log))
            else:
                cases += read_cases(path, name, log)
        except (ValueError, OSError) as error:
            errors.append(str(error))
            count(log, "dropped: file that cannot be used", errors[-1])
    articles = {article.key: article for article in newest_articles(statutes, log)}
    quoted = Counter((a.law, bare(text)) for a in articles.values() for _, text in clauses(a))
    rows = [row for article in articles.values() for row in article_rows(article, quoted, log)]
    rows = unique_rows(rows + list(case_rows(cases, articles, log)), log)
    if not rows:
        raise ValueError(f"{sources}: no rows; {'; '.join(errors[:3]) or dict(log) or f'no {KINDS} file'}")
    set_splits(rows, articles.values(), log)
    lines = ",\n".join(json.dumps(row, ensure_ascii=False) for row in rows)
    Path(output).write_bytes(f"[\n{lines}\n]\n".encode())
    if text:
        held_out = {name for row in rows if row["meta"]["split"] == "test" for name in row["meta"]["cited"]}
        lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in text_rows(articles.values(), held_out)]
        Path(text).write_bytes("".join(lines).encode())
    counts = {"files": len(files), "articles": len(articles)}
    counts["rows"] = dict(Counter(row["meta"]["kind"] for row in rows))
    counts["split"] = dict(Counter(row["meta"]["split"] for row in rows))
    for group, prefix in (("dropped", "dropped: "), ("warnings", "warning: ")):
        counts[group] = {key.removeprefix(prefix): n for key, n in (+log).items() if key.startswith(prefix)}
    return counts


# %% Run
sys.stdout.reconfigure(errors="replace")  # whatever a terminal cannot show
try:
    counts = build(sys.argv[1:] or SOURCE, OUTPUT, TEXT)
except (ValueError, OSError) as error:
    raise SystemExit(visible(str(error))) from None
print(f"{OUTPUT}: {json.dumps(counts, ensure_ascii=False, indent=2)}")
