# %% [markdown]
"""
# Build a legal data set from statutes, cases and questions

Reads statutes (`.txt`, `.docx`) and cases or questions with answers (`.csv`, `.json`, `.jsonl`) and writes
Alpaca rows that `sft_alpaca.py` trains on. Answers are quoted or counted from the sources, never interpreted.

Run:    `python data/dataset_legal.py`, then `DATA=data/legal.json python sft_alpaca.py`
Data:   `data/legal/`, a fictitious sample; columns 案情, 适用法条, 裁判要点 or question, answer
Writes: `data/legal.json`, a list of {"instruction": "《某条例》第十条怎么规定？", "input": "", "output": "…",
        "meta": {"source": "a.txt", "law": "某条例", "article": 10, "suffix": "", "effective": "2023-01-01",
        "kind": "article-recall", "split": "train", "cited": ["《某条例》第十条"]}}
"""

# %% Imports
import csv
import hashlib
import io
import json
import os
import re
import unicodedata
import zipfile
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import date
from functools import cache
from pathlib import Path

from docx import Document

# %% Settings
DATA = os.getenv("DATA", "data/legal")  # file or folder; several are joined by ":" (";" on Windows)
OUTPUT = os.getenv("OUTPUT", "data/legal.json")

TEST_SHARE = 0.15  # share of the articles that is held out, 0-1
RECALLS, CLAUSES = 2, 2  # rows per article, at most
MIN_CLAUSE, MAX_CLAUSE = 14, 200  # characters; a shorter clause could stand in any article
MAX_FILE_MB = 64  # larger files are refused, and a .docx that unpacks to more
MAX_MESSAGES = 20  # printed per reason; all are counted

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
DIGITS = "零一二三四五六七八九"
CLEAN = str.maketrans("０１２３４５６７８９\xa0", "0123456789 ", "\ufeff\u200b\u200c\u200d\u2060")
ENDS = tuple("。；：！？…”’」）》.;:!?)")  # a line that ends otherwise goes on in the next one
NORMS = "不得|禁止|严禁|不应当|应当|必须|不可以|可以"

NUMBER = r"[零〇○一二两三四五六七八九十百千0-9][零〇○一二两三四五六七八九十百千0-9\s]{0,12}"
SUFFIX = r"[二三四五六七八九]?十[一二三四五六七八九]?|[一二三四五六七八九]|[1-9][0-9]?"
ARTICLE = rf"第\s*({NUMBER})条(?:\s*之\s*({SUFFIX}))?([\s：:]*)(.*)"
# What follows an article that is only cited; where no space stands between, more words mean that.
CITED = rf"的|、|第\s*(?:{NUMBER})[款项]|[至和及与或]者?第|之规定|[,，。；;）)》”]"
CITED_GLUED = rf"{CITED}|第\s*(?:{NUMBER})条|规定|所[列称指述]|前款|各[款项]|以[上下]"
PART = rf"第\s*(?:{NUMBER})(分编|编|章|节)(\s*)([^。；，：？！]{{0,40}})"
ANNEX = rf"附\s*(?:件|表|录|图)?\s*(?:{NUMBER})?(?:[：:].*|\s\S.{{0,40}})?"
ITEM = rf"[（(]\s*({SUFFIX})\s*[）)](?!项(?:规定|的|所|、|和|或|至|，))|([1-9][0-9]?)\s*[.．、](?![0-9])"
TITLE = r"(?:法|法典|条例|规定|办法|细则|规则|决定|解释|章程|规程|准则)(?:[（(].{1,15}[）)])?》?$"
DATE = rf"([0-9]{{4}}|[{DIGITS}〇○]{{4}})年\s*([0-9{DIGITS}十]{{1,3}})月\s*([0-9{DIGITS}十]{{1,3}})日"


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


def number(text: str) -> int:
    """Return the number 1..9999 that 一百零五, 两百, 一〇五, 105 or １０５ stands for, 0 if it is none."""
    text = re.sub("[〇○]", "零", re.sub(r"\s", "", text.translate(CLEAN))).replace("两", "二")
    return int(text) if re.fullmatch("[0-9]{1,4}", text) else spellings().get(text, 0)


def label(value: int, suffix: int) -> str:
    """Return 第十条之一 for 10, 1 and 第十条 for 10, 0."""
    return f"第{numeral(value)}条" + (f"之{numeral(suffix)}" if suffix else "")


def cite(key: tuple[str, int, int]) -> str:
    """Return 《某条例》第十条 for the law, number and suffix of an article."""
    return f"《{key[0]}》{label(*key[1:])}"


# %% Files
def count(log: Counter, reason: str, where: str) -> None:
    """Count and print something dropped or doubtful; the reason starts with "dropped: " or "warning: "."""
    log[reason] += 1
    if log[reason] <= MAX_MESSAGES:
        print(f"{where}: {reason}")


def list_files(sources: object, output: Path, log: Counter) -> list[tuple[str, Path]]:
    """Return (short name, path) of every file to read; FileNotFoundError or ValueError if there is none."""
    found = {}
    for source in map(Path, [sources] if isinstance(sources, str | os.PathLike) else sources):
        if not source.exists():
            raise FileNotFoundError(f"{source}: no such file or folder; set DATA to one that exists")
        for path in sorted(p for p in source.rglob("*") if p.is_file()) if source.is_dir() else [source]:
            name = path.relative_to(source).as_posix() if source.is_dir() else path.name
            readable = path.suffix.lower() in (".txt", ".docx", ".csv", ".json", ".jsonl")
            if path == source and not readable:
                raise ValueError(f"{path}: give .txt, .docx, .csv, .json or .jsonl; save .doc, .wps as .docx")
            if path.resolve() == output.resolve():
                if path == source:
                    raise ValueError(f"{path}: is the output as well; choose another OUTPUT")
                continue  # the result of the previous build is no source
            if not readable or path.name.startswith((".", "~$")):  # ~$ is Word's lock file
                count(log, "dropped: file of another type", name)
            else:
                found.setdefault(path.resolve(), (name, path))
    return list(found.values())


def read_text(path: Path) -> str:
    """Return the file's text; ValueError names the file, the encodings tried and the remedy."""
    if path.stat().st_size > MAX_FILE_MB * 2**20:
        raise ValueError(f"{path}: larger than {MAX_FILE_MB} MB; split it or raise MAX_FILE_MB")
    if path.suffix.lower() == ".docx":
        return read_docx(path)
    raw = path.read_bytes()
    marked = raw.startswith((b"\xff\xfe", b"\xfe\xff"))
    for encoding in ["utf-16"] if marked else ["utf-8-sig", "gb18030"]:
        try:
            text = raw.decode(encoding)
        except UnicodeDecodeError:
            continue
        if "\0" not in text:  # a binary file, or UTF-16 without its mark, can decode by accident
            return text.lstrip("\ufeff")
    tried = "utf-16" if marked else "utf-8, utf-8-sig, gb18030, and utf-16, which needs a byte-order mark"
    raise ValueError(f"{path}: cannot be decoded, tried {tried}; save it as UTF-8 in a text editor")


def read_docx(path: Path) -> str:
    """Return the text of a .docx with tracked changes accepted; ValueError if it cannot be opened."""
    try:
        with zipfile.ZipFile(path) as archive:
            if sum(entry.file_size for entry in archive.infolist()) > MAX_FILE_MB * 2**20:
                raise ValueError(f"unpacks to more than {MAX_FILE_MB} MB, see MAX_FILE_MB")
        body = Document(str(path)).element.body
        # Not paragraph.text, which leaves out inserted text and content controls.
        paragraphs = body.xpath(".//w:p[not(ancestor::w:txbxContent)]")
        runs = [paragraph.xpath(".//w:r[not(ancestor::w:txbxContent)]") for paragraph in paragraphs]
        return "\n".join("".join(run.text for run in line) for line in runs)
    except Exception as error:  # whatever zipfile, zlib, lxml and python-docx raise for a bad file
        remedy = "open it in Word or LibreOffice, remove a password and save it as .docx or .txt"
        raise ValueError(f"{path}: encrypted, damaged or not a .docx ({error}); {remedy}") from error


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


def split_lines(text: str) -> Iterator[tuple[int, str]]:
    """Yield (line number, line) for every line with text, and for an article that starts in mid-line."""
    for where, line in enumerate(re.split(r"\r\n?|[\n\u2028]", text.translate(CLEAN)), 1):
        for piece in re.split(rf"(?<=[。；])\s*(?=第\s*(?:{NUMBER})条(?:之(?:{SUFFIX}))?[ \t\u3000])", line):
            if piece.strip():
                yield where, piece.strip()


def skip_contents(lines: list[tuple[int, str]], log: Counter) -> list[tuple[int, str]]:
    """Return the lines without the 目录, which ends where its first heading or a full article comes."""
    bare = [re.sub(r"\s", "", line) for _, line in lines]
    start = next((i for i, line in enumerate(bare) if line in ("目录", "目次")), None)
    if start is None or any(re.match(ARTICLE, line) for line in bare[:start]):
        return lines
    first, end = "", start + 1
    while end < len(bare):
        heading = re.match(rf"第(?:{NUMBER})(?:编|分编|章|节)", bare[end])
        if heading and heading[0] == first or re.match(ARTICLE, bare[end]) and bare[end].endswith(ENDS):
            break
        first, end = first or (heading[0] if heading else ""), end + 1
    log["dropped: line of a table of contents"] += end - start
    return lines[:start] + lines[end:]


def opening(line: str, last: tuple[int, int], ended: bool, glued: bool) -> re.Match | None:
    """Return the match of ARTICLE if the line opens an article, None if it is text or cites one."""
    match = re.match(ARTICLE, line)
    if not match or re.match(CITED if match[3] else CITED_GLUED, match[4]):
        return None
    follows = (number(match[1]), number(match[2] or "")) in ((last[0] + 1, 0), (last[0], last[1] + 1))
    return match if match[3] or ended and (follows or glued or not match[4]) else None


def headings(place: dict[str, str], line: str, ended: bool) -> dict[str, str] | None:
    """Return the headings that hold below the line where it is an 编, 章 or 节, otherwise None."""
    bare, match = re.sub(r"\s", "", line), re.fullmatch(PART, line)
    levels = ["编", "分编", "章", "节"]
    if match and (match[2] or ended and not re.match("[的所、至和及第]|规定", match[3])):
        level = levels.index(match[1])
    elif bare in ("总则", "附则", "罚则"):
        level = 2
    else:
        return None
    return {name: place[name] for name in levels[:level] if name in place} | {levels[level]: bare}


def add_line(article: Article, line: str) -> None:
    """Append a line: a marked one is an item, after an unfinished one it goes on, else it is a 款."""
    last = article.paragraphs[-1] if article.paragraphs else None
    if last and re.match(ITEM, line):
        last.append(line)
    elif last and not last[-1].endswith(ENDS):
        last[-1] += line  # the file wraps its lines
    else:
        article.paragraphs.append([line])


def find_articles(text: str, source: str, log: Counter) -> tuple[list[tuple[int, str]], list[Article]]:
    """Return the numbered lines before the first article, and the articles in the file's order."""
    lines = skip_contents(list(split_lines(text)), log)
    heads = [match for _, line in lines if (match := re.match(ARTICLE, line))]
    glued = 2 * sum(bool(match[4] and not match[3]) for match in heads) > len(heads)  # no space after 第…条
    before, articles, article, place, last, ended = [], [], None, {}, (0, 0), True
    for where, line in lines:
        if match := opening(line, last, ended, glued):
            article, now, line = None, (number(match[1]), number(match[2] or "")), match[4]
            if now[0]:
                article, last = Article(source, where, *now, list(place.values())), now
                articles.append(article)
        elif below := headings(place, line, ended):
            place, article, line = below, None, ""
        elif re.fullmatch(ANNEX, line):
            article = None
        ended = not line or line.endswith(ENDS)
        if article and line:
            add_line(article, line)
        elif match and not article:
            count(log, "dropped: article with an unreadable number", f"{source}:{where}: {match[0][:20]}")
        elif line and not articles:
            before.append((where, line))
        elif line:
            count(log, "dropped: line outside the articles", f"{source}:{where}: {line[:20]}")
    return before, articles


def parse_statute(text: str, source: str, log: Counter) -> list[Article]:
    """Return the articles of one statute in order, repeats included; ValueError if there is none."""
    before, found = find_articles(text, source, log)
    articles = [article for article in found if article.paragraphs]
    for empty in (article for article in found if not article.paragraphs):
        count(log, "dropped: article without text", f"{source}:{empty.line}")
    if not articles:
        hint = "numbers that Word sets by itself are not part of the text: type them out, or save as .txt"
        raise ValueError(f"{source}: no article (a line that starts with 第…条) found; {hint}")
    name_law(articles, before, log)
    check_numbering(articles, log)
    return articles


def name_law(articles: list[Article], before: list[tuple[int, str]], log: Counter) -> None:
    """Set law and effective date, found in the lines before the first article or in the last ones."""
    source = articles[0].source
    notes = [line for _, line in before if line.startswith(("（", "(")) or re.search(DATE, line)]
    names = [line for _, line in before if line not in notes and len(line) <= 60]
    names = [line for line in names if re.search(TITLE, line)] + names[:1] + [Path(source).stem]
    closing = "\n".join(article.text for article in articles[-3:])
    effective = effective_date("\n".join(line for _, line in before), closing)
    for where, line in before:
        if line not in notes and line != names[0]:
            count(log, "dropped: line before the first article", f"{source}:{where}: {line[:20]}")
    if not effective:
        count(log, "warning: no effective date", source)
    for article in articles:
        article.law = re.sub(r"\s", "", names[0]).removeprefix("《").removesuffix("》")
        article.effective = effective


def effective_date(before: str, closing: str) -> str | None:
    """Return the ISO date of 自…起施行, or of 公布 where that is the start; None if there is none."""
    start = rf"自\s*{DATE}[^，。；]{{0,4}}起\s*(?:施行|实施|生效)"
    found = re.findall(start, before) or re.findall(rf"本[^，。；]{{1,8}}{start}", closing)
    if not found and "自公布之日起" in before + closing:
        found = re.findall(rf"{DATE}[^，。；0-9]*公布", before)
    try:
        return date(*map(number, found[-1])).isoformat()
    except (IndexError, ValueError):
        return None


def check_numbering(articles: list[Article], log: Counter) -> None:
    """Report numbers that do not follow one another; repeats are left to unique_articles."""
    last, seen = (0, 0), set()
    for article in articles:
        current = article.key[1:]
        if current not in seen and current not in ((last[0] + 1, 0), (last[0], last[1] + 1)):
            reason = "gap in the numbering" if current > last else "article out of order"
            count(log, f"warning: {reason}", f"{article.source}:{article.line}: {label(*current)}")
        seen.add(current)
        last = current


def unique_articles(articles: list[Article], log: Counter) -> list[Article]:
    """Return the newest version of every law, of articles with one number the first."""
    newest, kept = defaultdict(str), {}
    for article in articles:
        newest[article.law] = max(newest[article.law], article.effective or "")
    for article in articles:
        where = f"{article.source}:{article.line}: {cite(article.key)}"
        if (article.effective or "") != newest[article.law]:
            count(log, "dropped: article of an older or undated version of the law", where)
        elif (first := kept.setdefault(article.key, article)) is not article:
            same = normal(first.text) == normal(article.text)
            reason = "identical article" if same else "repeated article number with another text"
            count(log, f"dropped: {reason}", f"{where}, first in {first.source}:{first.line}")
    return list(kept.values())


# %% Rows
def normal(text: str) -> str:
    """Return the text without spaces, punctuation, case and width, by which duplicates are found."""
    return re.sub(r"\W+", "", unicodedata.normalize("NFKC", text)).lower()


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
            match = re.match(ITEM, line)
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
    clear = [c for c in usable if quoted[article.law, normal(c[1])] == 1]
    log["dropped: clause that stands in several places"] += len(usable) - len(clear)
    for where, text in pick(clear, name, CLAUSES):
        question = pick(PHRASINGS["clause"].split(), text, 1)[0].format(**words)
        yield make_row("which-article-applies", *common, question, f"出自{name}{where}。", text)


# %% Cases and questions
def read_records(path: Path, source: str, log: Counter) -> list[tuple[str, dict[str, str]]]:
    """Return (where, known columns) of every usable row; ValueError if the file has none."""
    text, records = read_text(path), []
    for where, raw in (csv_rows if path.suffix.lower() == ".csv" else json_rows)(text, source, log):
        known = known_columns(raw)
        if {"facts", "statutes"} <= set(known) or {"question", "answer"} <= set(known):
            records.append((where, known))
        else:
            count(log, "dropped: row with missing, empty or surplus fields", where)
    if not records:
        raise ValueError(f"{path}: no row with 案情 and 适用法条, or with question and answer (问题, 答案)")
    return records


def csv_rows(text: str, source: str, log: Counter) -> Iterator[tuple[str, dict]]:
    """Yield (where, row), broken rows are counted; the csv module, unlike pandas, knows their lines."""
    reader = csv.DictReader(io.StringIO(text, newline=""), strict=True)
    while True:
        start = reader.reader.line_num + 1
        try:
            row = next(reader)
            yield f"{source}:{reader.reader.line_num}", row
        except csv.Error as error:
            count(log, "dropped: broken row", f"{source}:{start}-{reader.reader.line_num}: {error}")
        except StopIteration:
            return


def json_rows(text: str, source: str, log: Counter) -> Iterator[tuple[str, object]]:
    """Yield (where, value) of a JSON list or of lines; ValueError for a broken list."""
    if text.lstrip().startswith("["):
        try:
            yield from ((f"{source}: row {i}", value) for i, value in enumerate(json.loads(text), 1))
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{source}: broken JSON ({error}); or write one object per line") from error
        return
    for where, line in enumerate(text.split("\n"), 1):
        try:
            if line.strip():
                yield f"{source}:{where}", json.loads(line)
        except (ValueError, RecursionError) as error:
            count(log, "dropped: broken row", f"{source}:{where}: {error}")


def known_columns(raw: object) -> dict[str, str]:
    """Return the non-empty texts of a row by the names of COLUMNS; none if it has surplus fields."""
    if not isinstance(raw, dict) or None in raw:
        return {}
    cells = {str(key).strip().lower(): value.strip() for key, value in raw.items() if isinstance(value, str)}
    # A lone surrogate, which JSON can hold, cannot be written as UTF-8.
    cells = {key: value for key, value in cells.items() if value and not re.search("[\ud800-\udfff]", value)}
    found = {name: [cells[alias] for alias in aliases if alias in cells] for name, aliases in COLUMNS.items()}
    return {name: values[0].translate(CLEAN) for name, values in found.items() if values}


def short(law: str) -> str:
    """Return the title without 中华人民共和国 and a closing bracket, as it is often cited."""
    return re.sub(r"^中华人民共和国|[（(][^（）()]*[）)]$", "", re.sub(r"\s", "", law))


def cited_articles(text: str, laws: set[str]) -> list[tuple[str, int, int]]:
    """Return the articles cited, in order, ranges filled; law "" or number 0 where that cannot be told."""
    law, found, end = min(laws) if len(laws) == 1 else "", [], 0
    book = rf"《([^《》]+)》(?=((?:\s*[（(][^（）()]*[）)])?\s*第\s*(?:{NUMBER})[条编章])?)"
    for match in re.finditer(rf"{book}|第\s*({NUMBER})条(?:之({SUFFIX}))?", text):
        if match[1]:  # a permit or a form also stands in 《》: it is a law where 第…条 follows or we know it
            close = [match[1]] if match[1] in laws else [law for law in laws if short(law) == short(match[1])]
            named = close[0] if len(close) == 1 else match[1]
            law = named if match[2] or named in laws else law
            continue
        value, suffix = number(match[3]), number(match[4] or "")
        if found and found[-1][0] == law and re.fullmatch(r"\s*[至到—–~-]+\s*", text[end : match.start()]):
            found += [(law, between, 0) for between in range(found[-1][1] + 1, value)]
        found, end = [*found, (law, value, suffix)], match.end()
    return list(dict.fromkeys(found))


def doubt(cited: list[tuple], articles: dict[tuple, Article], laws: set[str]) -> str:
    """Return why the citation cannot be trusted, "" if it can; a law that is not among the sources passes."""
    if not all([cited, *(law and value for law, value, _ in cited)]):
        return "row that cites no readable article of a named law"
    lost = [cite(key) for key in cited if key[0] in laws and key not in articles]
    return "row that cites an article that the statute lacks" if lost else ""


def record_row(where: str, known: dict, articles: dict, laws: set[str], log: Counter) -> dict | None:
    """Return the Alpaca row of a case or a question, None (counted) where its citation cannot be trusted."""
    source, basis = where.rsplit(":", 1)[0], known.get("statutes", "")
    case = "facts" in known and basis
    asked = known["facts" if case else "question"]
    cited = cited_articles(basis if case else f"{asked}\n{known['answer']}\n{basis}", laws)
    if reason := doubt(cited, articles, laws):
        return count(log, f"dropped: {reason}", where)
    if any(key not in articles for key in cited):
        count(log, "warning: row kept though its law is not among the sources", where)
    common = (source, cited, articles[cited[0]].effective if cited[0] in articles else None)
    if case:
        holding = f"\n裁判要点：{known['holding']}" if "holding" in known else ""
        phrase = pick(PHRASINGS["case-to-statute"].split(), normal(asked), 1)[0]
        return make_row("case-to-statute", *common, phrase, f"适用法条：{basis}{holding}", asked)
    answer = known["answer"] + (f"\n依据：{basis}" if basis else "")
    if cited_articles(asked, laws):  # a question that names the article does not ask which one applies
        return make_row("article-recall", *common, asked, answer)
    phrase = pick(PHRASINGS["which-article-applies"].split(), normal(asked), 1)[0]
    return make_row("which-article-applies", *common, phrase, answer, asked)


# %% Build
def drop_duplicates(rows: Iterable[dict], log: Counter) -> list[dict]:
    """Return the rows without those that ask what an earlier one asks."""
    kept = {}
    for row in rows:
        asked = (row["meta"]["law"], normal(row["input"])) if row["input"] else normal(row["instruction"])
        first = kept.setdefault(asked, row)
        if first is not row:
            same = normal(first["output"]) == normal(row["output"])
            reason = "duplicate row" if same else "row with a known question and another answer"
            text = row["input"] or row["instruction"]
            count(log, f"dropped: {reason}", f"{row['meta']['source']}: {text[:30]}")
    return list(kept.values())


def set_splits(rows: list[dict], articles: Iterable[Article], log: Counter) -> None:
    """Set meta.split; articles that a row cites together, or with the same text, stay together."""
    texts, groups = defaultdict(list), {}
    for article in articles:
        texts[normal(article.text)].append(cite(article.key))
    for names in [*texts.values(), *(row["meta"]["cited"] for row in rows)]:
        merged = set(names).union(*(groups.get(name, ()) for name in names))
        if len(merged) > len(groups.get(names[0], ())):
            groups |= dict.fromkeys(merged, merged)
    heads = {min(group) for group in groups.values()}
    room, test = max(1, round(TEST_SHARE * len(groups))) if len(heads) > 1 else 0, set()
    for head in pick(sorted(heads), "split", len(heads)):
        if len(groups[head]) <= room:
            room, test = room - len(groups[head]), test | groups[head]
    for row in rows:
        row["meta"]["split"] = "test" if row["meta"]["cited"][0] in test else "train"
    if not test:
        count(log, "warning: nothing held out, every article is tied to too many others", "split")


def write_json(rows: list[dict], output: Path) -> None:
    """Write the rows as a JSON list, a row a line; a file that was there stays whole until the new one is."""
    output.parent.mkdir(parents=True, exist_ok=True)
    partial = output.with_name(f"{output.name}.{os.getpid()}.tmp")
    try:
        lines = ",\n".join(json.dumps(row, ensure_ascii=False) for row in rows)
        partial.write_text(f"[\n{lines}\n]\n", encoding="utf-8", newline="\n")
        os.replace(partial, output)
    finally:
        partial.unlink(missing_ok=True)


def build(sources: str | Path | Iterable[str | Path], output: str | Path) -> dict[str, object]:
    """Write the rows; return the number of files and articles, and of rows, split, dropped, warnings by name.

    Raises ValueError or FileNotFoundError for a source that cannot be read, before `output` is touched.
    """
    log, found, records = Counter(), [], []
    files = list_files(sources, Path(output), log)
    for name, path in files:
        if path.suffix.lower() in (".txt", ".docx"):
            found += parse_statute(read_text(path), name, log)
        else:
            records += read_records(path, name, log)
    articles = {article.key: article for article in unique_articles(found, log)}
    quoted = Counter((a.law, normal(text)) for a in articles.values() for _, text in clauses(a))
    rows = [row for article in articles.values() for row in article_rows(article, quoted, log)]
    laws = {law for law, _, _ in articles}
    rows += [row for where, known in records if (row := record_row(where, known, articles, laws, log))]
    rows = drop_duplicates(rows, log)
    if not rows:
        raise ValueError(f"{sources}: no rows; {dict(log) or 'no .txt, .docx, .csv, .json or .jsonl file'}")
    set_splits(rows, articles.values(), log)
    write_json(rows, Path(output))
    counts = {"files": len(files), "articles": len(articles)}
    counts["rows"] = dict(Counter(row["meta"]["kind"] for row in rows))
    counts["split"] = dict(Counter(row["meta"]["split"] for row in rows))
    for group, prefix in (("dropped", "dropped: "), ("warnings", "warning: ")):
        counts[group] = {key.removeprefix(prefix): n for key, n in (+log).items() if key.startswith(prefix)}
    return counts


# %% Run
counts = build(DATA.split(os.pathsep), OUTPUT)
print(f"{OUTPUT}: {json.dumps(counts, ensure_ascii=False, indent=2)}")
