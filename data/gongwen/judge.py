# %% [markdown]
"""
# The judge of official documents (公文)

Says what is wrong with a document: its form (GB/T 9704-2012), its facts, subject and wording. Scores what a model
wrote before and after training beside two baselines: the reference, and the input pasted into a fixed frame.

Run:    `uv run data/gongwen/judge.py 通知.docx` or 通知.txt: rule by rule what is wrong; a folder: a table;
        `uv run data/gongwen/judge.py outputs/gongwen` scores a run. Exit status 1 where something is wrong
Data:   answers.jsonl: {"prompt": [...], "reference": "…", "before": "…", "after": "…", "instruction": "…", "input": "…"}
Writes: 通知.layout.docx; for a run metrics.json, report.md, sample.docx
"""

# %% Imports
import json
import os
import re
import subprocess
import sys
from collections import Counter, defaultdict
from datetime import date
from functools import cache, lru_cache
from http.client import HTTPException
from itertools import combinations, groupby
from pathlib import Path
from tempfile import TemporaryDirectory
from urllib.request import Request, urlopen

import docx
import numpy as np
import pandas as pd
from docx.enum.text import WD_ALIGN_PARAGRAPH as Align
from docx.enum.text import WD_TAB_ALIGNMENT as Tab
from docx.oxml import OxmlElement
from docx.oxml.ns import qn
from docx.shared import Mm, Pt, RGBColor
from docx.text.paragraph import Paragraph
from sacrebleu import sentence_chrf
from scipy import stats

# %% Settings
OUTPUT = "outputs/gongwen"  # the run that is scored when nothing is named
ENDPOINT = ""  # "http://127.0.0.1:8080/v1": this server answers the prompts, too, as the column exported
SERVED = ""  # the model's name there, for servers that hold several
MAX_TOKENS = 1024  # of such an answer
LEAST = {
    "意见": 120,
    "决议": 120,
    "公报": 120,
    "报告": 70,
    "通报": 80,
    "批复": 50,
    "令": 30,
    "命令": 30,
}  # characters; others 60
LEAST_SHARE = 0.25  # of the reference's characters
REFERENCE_FLOOR = 16  # chrF of the body against the reference: other documents reach 12 (median), half of its own clauses 64
MAX_CELLS = 5000  # of a table in the layout; a larger one, which a model writes that loops, stands as lines
SUBJECT_FLOOR = 0.1  # share of the character pairs asked for that a body holds where there is no reference
PASTED = 0.75  # share of the input that may stand in the document in runs of 12 characters

KINDS = "决议 决定 命令 令 公报 公告 通告 意见 通知 通报 报告 请示 批复 议案 函 纪要".split()
PUBLIC = "公告 通告 公报 令 命令".split()  # they speak to everyone
ALONE = "令 命令 公告 通告 公报 纪要 决议".split()  # their titles may go without 关于
MEASURING = "通知 意见 通告 决定 纪要".split()  # they order or plan something
METRICS = (
    "clean_rate faults_per_document format_score term_score kind_as_asked fact_score "
    "invented_per_document ended_by_itself characters"
).split()
RIGHT = {  # rule: its name and what is right
    "kind": "文种：应为十五种法定文种之一，没有“请示报告”",
    "title_form": "标题结构：应为 发文机关＋关于……的＋文种",
    "title_punctuation": "标题标点：除《》“”（）、— 外不用标点",
    "head": "版头：标题之前只有份号、密级、紧急程度、机关名称、发文字号、签发人",
    "body": "正文：应写出事项，不重复，不循环，不夹另一份公文",
    "plain_text": "纯文本：不用 Markdown 和控制符号",
    "doc_number": "发文字号：应在标题上方或下一行，写作 机关代字〔2024〕5号，六角括号，不加第，不补零",
    "addressee": "主送机关：应顶格，用、和，隔开，以全角冒号结束；公告、通告、公报、令没有主送机关",
    "single_addressee": "请示的主送机关：只能有一个",
    "level_form": "层次序号：应为 一、 （一） 1. （1），（一）后不加、，序号后有内容",
    "level_order": "层次顺序：应从1起逐级连续编号，不跳级",
    "attachment": "附件说明：应为 附件：1.名称，连续编号，名称后无标点；附件页写 附件1，不加冒号",
    "organ": "署名：发文机关应在成文日期的上一行",
    "date": "成文日期：应写作 2024年3月5日，未定时写作 20××年×月×日",
    "after": "版记：成文日期之后只有附注、抄送、印发和附件",
    "request": "请示结语：最后一段应请求答复，如 妥否，请批示。",
    "no_request": "报告：不夹带请示事项",
    "signer": "签发人：上行文应写明 签发人：姓名",
    "cites_request": "批复引语：开头应引来文，如 《……的请示》（文号）收悉。",
    "order": "令：用于公布、施行、任免、嘉奖，不另作规定，地方卫生健康部门无权发布",
}

WORDS = json.loads((Path(__file__).parent / "terms.json").read_text(encoding="utf-8"))
HAN = "一二三四五六七八九十"
HOLE = "×✕xX＿_○△"  # what stands for a fact that is not known yet
BLANK = " \t\r\u3000\xa0"
TITLE = "方正小标宋简体"
HEAVY = "黑体"
PLAIN = "仿宋_GB2312"
PARTS = "head number signer title note addressee body attachments organs date after".split()
LINES = list[tuple[int, str]]  # lines: the number in the text, from 1, and the words
ORGAN = rf"[\u4e00-\u9fff·、{HOLE}]{{1,40}}(?:{'|'.join(WORDS['organs'])})|[{HOLE}]{{2,}}|国务院"
OFFICE = "|".join(WORDS["offices"])
NAME = r"[\u4e00-\u9fff·]{2,4}"
NUMBER = rf"[\u4e00-\u9fff{HOLE}]{{2,30}}〔(?:(?:19|20)\d\d|(?:19|20)?[{HOLE}]{{2,4}})〕(?:[1-9]\d*|[{HOLE}]+|\s+)号"
ORDINAL = rf"(?:(?:(?:19|20)\d\d|(?:19|20)?[{HOLE}]{{2,4}})年)?第(?:[1-9]\d*|[{HOLE}]+)号"  # what 公告, 通告 and 令 may carry instead
ISSUE = (
    rf"(?:[\u4e00-\u9fff]*〔\d{{4}}〕|(?:\d{{4}}年)?第)(?:[1-9]\d*|[{HOLE}]+)[号期次]"  # and what 纪要 may
)
NUMBER_LIKE = rf"[^，。；：:、《》]{{0,30}}[\d{HAN}〇零{HOLE}〔〕\]）)]\s*[号期]"
DATE_LIKE = rf"[\d〇○零{HAN}{HOLE}]{{2,4}}[年./-][\d〇{HAN}{HOLE}]{{0,3}}[月./-][\d〇{HAN}{HOLE}]{{0,3}}日?"
HEAD = (
    r"特急|加急|平急|特提|急件|\d{6}|[绝机秘]密.*|内部.*|(?!.*关于).*文件|.*(?:明电|密电|电报|传真)"
    r"|(?:发往|发至|签批|等级|发电|编号|密级).*"
)
AFTER = rf"[（(].*[）)]|(?:抄送|分送|主送|主题词|共印).*|.*印发|附\s*[件表]\s*\d*|{NAME}"
LEVELS = (f"([{HAN}]+)、", f"（([{HAN}]+)）", r"(\d+)[.．](?!\d)", r"（(\d+)）")
WRONG_LEVEL = rf"[（(][{HAN}\d]+[)）][、.．]|\([{HAN}\d]+[)）]|（[{HAN}\d]+\)|[{HAN}]+[.．]|\d+[、)）]"
ADDRESSED = rf"各|全|.*(?:{'|'.join(WORDS['organs'])}|单位|部门|机构)$"
MARKUP = r"\*\*|^\s{0,9}(?:#|[-*•] )|```|<\||\|---"
CHAT = "[吧呢啊哦嘛呀啦哈吗][。！？，]|(?m:^(?:好的|当然|以下是))|希望(?:对你|对您|以上)|人工智能助手"
NOTES = "(?:文号|发文|发文机关|落款|收文|签发人|成文日期|发函|收函|主送|要点|备注)[：:]"
LAST_LINE = "[。；！？：）”》|]$|^(?:出席|列席|参加|缺席|请假|主持|记录|发送|抄送|分送)"
INTRODUCTION = "(?:如下|以下|现将|现就|决定|通告|公告|通知|通报|公布|批复|函复|命令|议定|强调|要求)[：:]$"
REQUEST = "妥否|当否|可否|请.{0,12}(?:批示|批复|审批|批准|指示|核准|批转|审定|审议|审查|审核)"
PLEA = (
    "妥否|当否|[恳敬特]请(?![假示])|请求(?:上级|省|市|贵|批准|解决|支持|给予|予以|拨|增)"
    "|(?<![申聘邀提])请(?:予|贵|上级|省|市|国家|给予|尽快|审批|批准|批示|批复|拨|解决|支持|协调)"
)
MEASURES = (
    "名|人|家|所|台|辆|次|项|条|份|例|张|支|件|套|间|座|批|期|轮|户|床|倍|岁|种|类|组|队|场|篇|册|枚|块|片|只|株|亩|个|位"
    "|瓶|盒|箱|袋|车|顿|栋|幢|宗|起|笔|吨|公斤|千克|克|毫升|升|米|公里|平方米|镇|县|市|村|方面"
)
PLAIN_NUMBERS = "ny nn y m d m2 d2 d3 h y2 m3 q".split()  # groups of FACTS that are whole numbers
HOURS = {"分钟": 1 / 60, "小时": 1, "天": 24, "日": 24, "号": 24, "周": 168, "星期": 168, "个星期": 168}
SCALES = {"万": 1e4, "w": 1e4, "亿": 1e8, "千": 1e3, "k": 1e3, "百": 100}
NEAR_YEARS = {"去年|上年|上一年|同比|同期": -1, "明年|次年|下一年|下年": 1}
PERIODS = {"上半年": range(1, 7), "下半年": range(7, 13), "全年|年底|年末|年内|年度": (1, 12)}  # their months
CHINESE = "零〇一二两三四五六七八九十百千万亿"
COUNT = rf"(?:\d{{1,3}}(?:,\d{{3}})+(?:\.\d+)?|\d{{1,15}}(?:\.\d{{1,9}})?|[{CHINESE}]{{1,15}}|半)"
DAY = rf"(?:\d{{1,2}}|[{HAN}]{{1,3}})"
FACTS = rf"""(?P<no>[\u4e00-\u9fff{HOLE}]{{0,10}}[〔\[［【（(﹝](?P<ny>(?:19|20)\d\d)[〕\]］】）)﹞]第?(?P<nn>\d{{1,6}})号)
    |(?P<date>(?P<y>(?:19|20)?\d\d|[一二][{CHINESE}]{{3}})[年./-](?P<m>{DAY})[月./-](?P<d>{DAY})[日号]?(?!\d))
    |(?P<monthday>(?P<m2>{DAY})月份?(?P<d2>{DAY})(?:[日号]|(?=[-—–~～至到、和]{DAY}[日号])))
    |(?P<clock>(?:上午|下午|晚上|晚|早上|早|凌晨|中午)?(?P<h>\d{{1,2}}|[{HAN}]{{1,3}}(?=点[钟半前整]|时[前整至]))
        (?:[:：](?P<min>[0-5]\d)|[时点](?![位名评击间效段]|意见|建议|要求)(?:(?P<min2>[0-5]?\d)分|(?P<thirty>半))?))
    |(?P<phone>(?<!\d)(?:0\d{{2,3}}[-—－\ ]?\d{{7,8}}|1\d{{10}}|\d{{7,8}})(?![\d.]))
    |(?P<percent>百分之(?P<p>[{CHINESE}]{{1,5}}点[{CHINESE}]{{1,5}}|{COUNT})|(?P<p3>[一二两三四五六七八九])成(?![立为员果本])
        |(?P<p2>\d{{1,9}}(?:\.\d{{1,9}})?|[{HAN}]{{1,3}}(?=个百分点))\s?(?:%|个?百分点))
    |(?P<year>(?P<y2>(?:19|20)\d\d|[一二][{CHINESE}]{{3}}(?=年))(?:年|(?=\s?[-—–~～至到]\s?20\d\d)))
    |(?P<month>(?P<m3>{DAY})月)
    |(?P<day>(?P<d3>{DAY})(?=[-—–~～至到]{DAY}[日号]))
    |(?P<quarter>(?P<q>[一二三四1-4])季度)
    |(?P<count>(?P<c>{COUNT})(?:(?P<scale>[万亿千百wWkK])(?:(?P<more>\d)千)?)?\s?[多余来]?
        (?P<unit>个?工作日|小时|分钟|个月|个?星期|[天日周号年]|[万亿]?元|块钱?|{MEASURES}|))"""
COMMON_KNOWLEDGE = (  # figures that a document may hold though nobody gave them
    rf"《[^《》\n]{{1,80}}》|\d{{0,4}}[{HOLE}]+|第[\d{CHINESE}]{{1,6}}(?:[条章节款届方]|人民|项(?!目))|附\s?件\s?[：:]?\s?\d*[.．]?"
    rf"|(?m:^[{BLANK}]*(?:\d+[.．](?!\d)|\d{{1,2}}[.．](?=20\d\d年)|[（(]?[{HAN}\d]+[）)、]))|[A-Za-z][A-Za-z/]{{0,15}}[ -]?\d[\d.—-]{{0,20}}"
    r"|(?<!\d)(?:11[09]|12[02]|123\d\d)(?![\d.]|\s?(?:[万亿元台辆张次例个件家%％]|人(?!员)))|"
    + "|".join(WORDS["idioms"])
)
GENERIC = (
    ".{0,2}(?:各|全|我|本|该|有关|相关|所在|设区|地级|同级|上级|下级|每|试点|示范|重点|其他|外|邻|辖|国家|中央|两|三)"
    "|.{0,2}[由请拟用于设其与及将对经向报送被给把等了并从到致]"
    "|[可在需]?(?:依托|组织|按照|指定|会同|部分|支持|推动|保持|纳入|听取|参照|开展|周边|目前|挂靠|要求|是指|[一二三四]是|覆盖|成员"
    "|地点|名单|替代|上传|提请|商请|协助|配合|委托|指导|督促|联系|抽调|隶属|接受|全市|辖区)"
)


# %% Parts of a document
def joined(lines: LINES) -> str:
    """Return the words of several lines without their blanks."""
    return re.sub(r"\s", "", "".join(words for _, words in lines))


def kind_of(title: str) -> str:
    """Return the 文种 that a title ends in, "" if it is none of the fifteen."""
    bare = re.sub("（[^（）]{1,20}）$", "", re.sub(r"\s", "", title).rstrip("。，；：:"))
    return next((kind for kind in KINDS if bare.endswith(kind) and not bare.endswith("请示报告")), "")


def is_organ(line: str) -> bool:
    """Return whether a line is an organ's name or several of them with blanks between, as in a signature."""
    names = re.sub("（[^（）]*）", "", line).split() or [line]
    return len(line) < 200 and all(re.fullmatch(f"{ORGAN}|（发文机关.*|（.*名称）", name) for name in names)


def is_person(line: str) -> bool:
    """Return whether a line is an office and a name, as under an order: 省长　周慕远."""
    return bool(re.fullmatch(rf"代?(?:{OFFICE})\s*[\u4e00-\u9fff·{HOLE}]{{2,5}}", re.sub(r"\s", "", line)))


def is_date_line(line: str) -> bool:
    """Return whether a line is a date and little else, written rightly or not."""
    line = re.sub(r"\s", "", line)
    return len(line) < 50 and bool(re.fullmatch(rf"[^。，；：]{{0,25}}?(?:{DATE_LIKE}|\d{{4}}年\d+月)", line))


def heading(line: str) -> tuple[int, int] | None:
    """Return (level 1 to 4, number) of a line that opens with 一、 （一） 1. or （1）, else None."""
    for level, pattern in enumerate(LEVELS, 1):
        found = re.match(pattern, line)
        if found and len(found[1]) < 6:
            return level, int(chinese_number(found[1]))
    return None


def is_title(line: str) -> bool:
    """Return whether a line may be a title or its last line: it ends in a 文种 and is no sentence."""
    bare = re.sub("《[^》]*》", "", joined([(0, line[:200])]))
    closing = re.match("特此|现|此|为|兹", bare) or re.fullmatch(NUMBER_LIKE, bare)
    return 2 <= len(bare) <= 80 and bool(kind_of(line)) and not closing and not re.search("[。；：:].", bare)


def find_title(lines: LINES) -> tuple[int, int]:
    """Return (first, behind the last) of the lines that make the title; (0, 0) if there is none."""
    ends = [i for i, (_, line) in enumerate(lines[:16]) if is_title(line)]
    if not ends:  # no 文种: the first line that says what it is about
        top = [line if len(line) < 120 else "" for _, line in lines[:8]]
        ends = [i for i, line in enumerate(top) if re.search("关于[^。：]*$", line)]
    if not ends:
        return 0, 0
    first = end = ends[0]
    if len(ends) > 1 and "关于" not in lines[end][1] and ends[1] - end < 4 and "关于" in lines[ends[1]][1]:
        first = end = ends[1]  # below a 版头 such as 会议纪要
    while first and end - first < 5:
        above = joined(lines[first - 1 : first])
        if re.search("[。：:，；！？]|签发人", above) or re.fullmatch(f"{NUMBER_LIKE}|{HEAD}", above):
            break
        signed = any("签发人" in line for _, line in lines[: first - 1])
        if joined(lines[first : end + 1]).startswith(above) or (signed and re.fullmatch(NAME, above)):
            break  # the head of a letter, a second 签发人
        first -= 1
    return first, end + 1


def take_number(line: tuple[int, str], part: dict[str, LINES]) -> bool:
    """Put 发文字号 and 签发人 into their parts; return whether a line holds one of them."""
    count, words = line
    number, _, signer = words.partition("签发人")
    number = number.strip(BLANK)
    *before, last = number.split() or [""]
    if before and re.fullmatch(NUMBER, last) and re.fullmatch(HEAD, "".join(before)):
        part["head"].append((count, "　".join(before)))  # 等级　特急·明电　清卫明电〔2024〕6号
        number = last
    is_number = not part["number"] and bool(re.fullmatch(NUMBER_LIKE, number))
    more = bool(part["signer"]) and bool(re.fullmatch(rf"{NAME}(?:\s+{NAME})*", words))
    if is_number:
        part["number"].append((count, number))
    if (signer and (is_number or not number)) or more:
        part["signer"].append((count, words if more else f"签发人{signer}"))
    return is_number or more or bool(signer and not number)


@lru_cache(maxsize=64)
def split_gongwen(text: str) -> dict[str, LINES]:
    """Return the parts of a document as lists of (line number, line); {} if no title is found."""
    lines = [(count, line.strip(BLANK + "*#\ufeff")) for count, line in enumerate(text.splitlines(), 1)]
    lines = [line for line in lines if line[1]]
    first, at = find_title(lines)
    if at == 0:
        return {}
    part: dict[str, LINES] = {name: [] for name in PARTS}
    part["title"] = lines[first:at]
    for line in lines[:first]:
        part["head"] += [] if take_number(line, part) else [line]
    while at < len(lines):
        line = lines[at][1]
        if re.fullmatch("[（(].*[）)]", line) or (len(line) < 14 and is_date_line(line)):
            part["note"].append(lines[at])
        elif not take_number(lines[at], part):
            break
        at += 1
    size = addressee_size(lines[at : at + 6])
    part["addressee"] = lines[at : at + size]
    return part | split_end(lines[at + size :])


def addressee_size(lines: LINES) -> int:
    """Return how many lines the 主送机关 fills, 0 if there is none; a missing colon is not minded here."""
    for size, (_, line) in enumerate(lines, 1):
        goes_on = line.endswith(("、", "，", ","))
        if re.search(f"[。；]|{INTRODUCTION}|^附件", line) or heading(line):
            return 0
        if line.endswith(("：", ":")) or (re.match(ADDRESSED, line) and len(line) <= 80 and not goes_on):
            return size
        if not goes_on:
            return 0
    return 0


def split_end(lines: LINES) -> dict[str, LINES]:
    """Return what follows the 主送机关 in parts: body, 附件, signature, date and what stands below it."""
    page = next((i for i, (_, line) in enumerate(lines) if re.fullmatch(r"附\s*件\s*\d*", line)), len(lines))
    dates = [i for i, (_, line) in enumerate(lines[:page]) if is_date_line(line)]
    signed = [i for i in dates if i and (is_organ(lines[i - 1][1]) or is_person(lines[i - 1][1]))]
    at = (signed or dates[-1:] or [page])[0]
    first = at
    while first and (is_organ(lines[first - 1][1]) or (dates and is_person(lines[first - 1][1]))):
        first -= 1
    cut = next((i for i in range(first) if re.match(r"附\s*件\s*\d*\s*[：:]", lines[i][1])), first)
    behind = at + bool(dates)
    ends = {"body": lines[:cut], "attachments": lines[cut:first], "organs": lines[first:at]}
    return ends | {"date": lines[at:behind], "after": lines[behind:]}


# %% Rules of form
def broken(good: object, lines: LINES = ()) -> tuple[int, str] | None:
    """Return None for a rule that is kept, else the line that breaks it, (0, "") where it is missing."""
    return None if good else (lines or [(0, "")])[0]


def is_date(text: str) -> bool:
    """Return whether a text is a date as 2024年3月5日: not zero-padded, in the calendar or with placeholders."""
    if re.search(f"[{HOLE}]", text):
        number = rf"(?:[1-9]\d?|[{HOLE}]{{1,4}})"
        return bool(re.fullmatch(rf"(?:(?:19|20)\d\d|(?:19|20)?[{HOLE}]{{2,4}})年{number}月{number}日", text))
    found = re.fullmatch(r"(\d{4})年([1-9]\d?)月([1-9]\d?)日", text)
    try:
        return bool(found and date(*map(int, found.groups())))
    except ValueError:
        return False


def level_gap(lines: LINES) -> tuple[int, str] | None:
    """Return the first heading that is out of order, None if all count 1, 2, 3 ... at each level.

    No level is skipped unless only two are used; （一） and 1. may be numbered on through 一、二、三、.
    """
    marks = [(line, *mark) for line in lines if (mark := heading(line[1]))]
    used = sorted({level for _, level, _ in marks})
    counts, through = dict.fromkeys(used, 0), dict.fromkeys(used, 0)
    for line, level, number in marks:
        above = [upper for upper in used if upper < level and not counts[upper]]
        if above or number not in (counts[level] + 1, through[level] + 1 if level in (2, 3) else 0):
            return line
        counts.update({level: number} | {below: 0 for below in used if below > level})
        through[level] = number
    skipped = len(used) > 2 and used != list(range(1, len(used) + 1))
    return marks[0][0] if skipped else None


def body_fault(body: LINES) -> tuple[int, str] | None:
    """Return the line that spoils a body: too little, a line twice, a second title, a loop; else None."""
    words = "\n".join(line for _, line in body)
    seen: set[str] = set()
    for count, line in body:
        table = re.search(r"[|\t]", line)
        if (line in seen and len(line) > 3 and not table) or ("关于" in line and is_title(line)):
            return count, line
        seen.add(line)
    clauses = [clause for clause in re.split("[，。；！？\n]", words) if len(clause) >= 5]
    thrice = next((a for a, b, c in zip(clauses, clauses[1:], clauses[2:]) if a == b == c), "")
    grams = [words[i : i + 6] for i in range(len(words) - 5)]
    if thrice or len(words) < 25 or len(set(grams)) < 0.6 * len(grams):
        return (body or [(0, "")])[0][0], thrice or words
    return None


def opening_rules(part: dict[str, LINES], kind: str, text: str) -> dict[str, tuple[int, str] | None]:
    """Return the rules of everything above the body and whether they are kept, as broken() says it."""
    title, lines = joined(part["title"]), part["title"]
    marks = re.search(r"[^\w“”（）、—－·+×○△〔〕-]|(?:关于|开展|做好|进行)、", re.sub("《.*》", "", title))
    about = re.fullmatch(rf".*关于.+的[^的]{{0,4}}{kind or '$^'}(?:（.*）)?\W?", title)
    stray = [line for line in part["head"] if not (re.fullmatch(HEAD, joined([line])) or is_organ(line[1]))]
    stray = [line for line in stray if "关于" in line[1] or not is_title(line[1])]  # 会议纪要 may stand there
    rules = {"kind": broken(kind, lines), "title_form": broken(about or kind in ALONE, lines)}
    rules |= {"title_punctuation": broken(not marks, lines), "head": broken(not stray, stray)}
    late = [
        line for line in part["body"] + part["after"] if re.fullmatch(f"{NUMBER}|第\\d+号", joined([line]))
    ]
    if part["number"] or late:
        forms = NUMBER + (f"|{ORDINAL}" if kind in PUBLIC else f"|{ISSUE}" if kind == "纪要" else "")
        number = re.sub(rf"(?<![〕{BLANK}])[{BLANK}]", "", part["number"][0][1]) if part["number"] else ""
        good = re.fullmatch(forms, number)
        rules["doc_number"] = broken(good and not late, late if good else part["number"] or late)
    to = part["addressee"]
    names = re.sub("（[^（）]*）", "", joined(to).removesuffix("："))
    if kind in PUBLIC:
        rules["addressee"] = broken(not to, to)
    elif to or kind in ("通知", "报告", "请示", "批复", "函", "议案"):
        good = re.fullmatch(rf"[\w{HOLE}“”·]+(?:[、，][\w{HOLE}“”·]+)*", names) and to[-1][1].endswith("：")
        indented = to and re.search(rf"(?m)^[ \u3000\t]+{re.escape(to[0][1])}", text)
        polite = re.match("尊敬|亲爱|主送|你好|您好", names)
        rules["addressee"] = broken(good and not indented and not polite, to)
    if kind == "请示":
        rules["single_addressee"] = broken(names and not re.search("[、，]", names), to)
    return rules


def body_rules(part: dict[str, LINES], kind: str) -> dict[str, tuple[int, str] | None]:
    """Return the rules of the body and the 附件 line and whether they are kept, as broken() says it."""
    rows = [line for line in part["body"] if not re.search(r"[|\t]", line[1])]  # not of a table
    rules = {"body": body_fault(part["body"])}
    wrong = [line for line in rows if re.match(WRONG_LEVEL, line[1])]
    numbered = [line for line in rows if heading(line[1])]
    wrong += [line for line in numbered if re.fullmatch(r"[^、）.．]*[、）.．].?[。；：…]*", line[1])]
    if wrong or numbered:
        rules |= {"level_form": broken(not wrong, wrong), "level_order": level_gap(rows)}
    files = part["attachments"]
    late = [line for line in part["after"] if re.match(r"附件.{0,3}[：:]", line[1])]
    if files or late:
        names = [name for _, name in files]
        counts = [
            int(n) for name in names for n in re.findall(rf"(?:^附件：|^|[{BLANK}])(\d{{1,2}})[.．]", name)
        ]
        good = not late and re.match("附件：.", names[0]) and counts == list(range(1, len(counts) + 1))
        clean = all(name[-1] not in "。；，、;,.：:" for name in names)
        rules["attachment"] = broken(good and clean and (counts or len(names) == 1), files or late)
    return rules


def ending_rules(part: dict[str, LINES], kind: str) -> dict[str, tuple[int, str] | None]:
    """Return the rules of signature, date and what stands below and whether they are kept, as broken() says it."""
    rules, note = {}, [line for line in part["note"] if re.search(r"\d.*日", line[1])]
    if note and not part["date"] and kind in ("纪要", "决议", "公报", "决定", "令", "命令"):
        day = re.search(rf"[\d{HOLE}]+年[^年日]*日|$", joined(note[:1]))[0]
        rules["date"] = broken(is_date(day), note)
    elif part["date"] or kind not in ("纪要", "公报"):
        rules["organ"] = broken(part["organs"])
        rules["date"] = broken(is_date(joined(part["date"])), part["date"])
    above = joined(part["title"] + part["body"] + part["attachments"])
    issued = re.search("印发|转发|公布|发布|通过|附后|附件", above)
    for line in part["after"]:
        title = issued and len(line[1]) < 60 and not re.search("[。！？：]$", line[1])
        if title or re.fullmatch(r"附\s*[件表]\s*\d*", line[1]):
            break  # from here on the text of what is issued
        if not re.fullmatch(AFTER, line[1]):
            return rules | {"after": line}
    return rules


def kind_rules(part: dict[str, LINES], kind: str) -> dict[str, tuple[int, str] | None]:
    """Return the rules that only 请示, 报告, 批复 and 令 have and whether they are kept, as broken() says it."""
    body, rules = part["body"], {}
    words = "".join(line for _, line in body)
    if kind == "请示":
        rules["request"] = broken(body and re.search(REQUEST, body[-1][1]), body[-1:])
    if kind == "报告":
        pleas = [line for line in body if re.search(PLEA, line[1])]
        rules["no_request"] = broken(not pleas, pleas)
    if kind in ("请示", "报告"):
        signers = " ".join(line for _, line in part["signer"])
        signers = re.sub("(?:签发|会签)人：", " ", signers).strip()
        names = re.split(rf"[、，{BLANK}]+", signers)
        good = all(re.fullmatch(rf"[\u4e00-\u9fff·{HOLE}]{{2,5}}", name) for name in names)
        rules["signer"] = broken(good, part["signer"])
    if kind == "批复":
        cited = re.search(r"请示.{0,60}收[悉到]|〔\d{4}〕\d+号.{0,20}收[悉到]", words[:300])
        rules["cites_request"] = broken(cited and "的报告》" not in words[: cited.end()], body)
    if kind in ("令", "命令"):
        local = re.search(
            "(?:省|市|县|区|州)[^省市县区州]{0,12}(?:委员会|局|厅|委|院|中心)令$", joined(part["title"])
        )
        acts = re.search("公布|发布|施行|废止|修改|任命|免去|授予|嘉奖|禁止|动员", words)
        duties = "《" in words and re.search("应当|必须|不得|责令", words)  # they belong into what is issued
        rules["order"] = broken(acts and not local and not duties, part["title"])
    return rules


def check_form(text: str) -> dict[str, str]:
    """Return rule -> "" if the document keeps it, else the line that breaks it and what is right."""
    part = split_gongwen(text)
    rules = dict.fromkeys("kind title_form title_punctuation addressee body organ date".split(), (0, ""))
    if part:
        kind = kind_of(joined(part["title"]))
        rules = opening_rules(part, kind, text) | body_rules(part, kind)
        rules |= ending_rules(part, kind) | kind_rules(part, kind)
        marked = [line for line in enumerate(text.splitlines(), 1) if re.search(MARKUP, line[1])]
        rules["plain_text"] = broken(not marked, marked)
    said = {}
    for rule, line in rules.items():
        where = f"第{line[0]}行“{line[1][:16]}”" if line and line[0] else "缺"
        said[rule] = f"{where}　{RIGHT[rule]}" if line else ""
    return said


def check_gongwen(text: str) -> dict[str, bool]:
    """Return rule -> passed for the hard rules of GB/T 9704-2012 that apply to this document's 文种."""
    return {rule: not message for rule, message in check_form(text).items()}


def format_score(text: str) -> float:
    """Return the share of the applicable hard rules that a document passes, in [0, 1]; 0 without a title."""
    rules = check_gongwen(text)
    return sum(rules.values()) / len(rules)


# %% Facts
def chinese_number(text: str) -> float:
    """Return the value of 十二, 三千二百, 一万二, 二〇二四, 半 or of Arabic digits with or without commas."""
    if re.fullmatch(r"[\d,.]+", text):
        return float(text.replace(",", "").rstrip("."))
    for letter, scale in (("亿", 10**8), ("万", 10**4), ("千", 1000), ("百", 100), ("十", 10)):
        before, found, after = text.partition(letter)
        if found:
            rest = chinese_number(after) if after else 0
            if len(after) == 1 and scale > 10:  # 一万二 is 12,000
                rest *= scale / 10
            return (chinese_number(before) if before else 1) * scale + rest
    digits = dict(zip("零〇○一二两三四五六七八九", "0001223456789"))
    return 0.5 if text == "半" else float("".join(digits[letter] for letter in text))


def decimal(text: str) -> float:
    """Return the value of a number that may hold a point in words: 九十八点五, 98.5."""
    whole, _, rest = text.partition("点")
    return chinese_number(whole) + (chinese_number(rest) / 10 ** len(rest) if rest else 0)


def half_width(text: str) -> str:
    """Return a text of the same length with half-width digits and signs in place of full-width ones."""
    return text.translate(str.maketrans("０１２３４５６７８９％．○", "0123456789%.〇"))


@lru_cache(maxsize=64)
def facts(text: str) -> list[tuple[int, str, list[tuple]]]:
    """Return (position, words, values) of each figure, date and 文号; any of the values may be meant.

    Values: ("no", year, number, end of its code), ("date", year, month, day) with year 0 if it is not said,
    ("clock", minutes of half a day), ("phone", last 7 digits), ("percent" | "year" | "month" | "quarter", n),
    ("hours" | "months" | "workdays" | "money" | "count", n), and ("bare", n) for a number without a unit.
    """
    found, month = [], 0
    for hit in re.finditer(FACTS, half_width(text), re.VERBOSE):
        part, words = hit.groupdict(), hit[0].strip()
        numbers = [int(chinese_number(part[name])) for name in PLAIN_NUMBERS if part[name]]
        if part["no"]:
            values = [("no", *numbers, re.split(r"[〔\[［【（(﹝]", words)[0][-2:])]
        elif part["date"]:
            year, month, day = numbers
            values = [("date", year + 2000 * (year < 100), month, day)]
        elif part["monthday"]:
            month, day = numbers
            values = [("date", 0, month, day)]
        elif part["day"]:
            values = [("date", 0, month, *numbers), ("day", *numbers)]
        elif part["clock"]:
            minutes = int(part["min"] or part["min2"] or 30 * bool(part["thirty"]))
            values = [("clock", (numbers[0] * 60 + minutes) % 720)]
        elif part["phone"]:
            values = [("phone", re.sub(r"\D", "", words)[-7:])]
        elif part["percent"]:
            whole = part["p"] or part["p2"] or part["p3"].replace("两", "二") + "十"
            values = [("percent", decimal(whole))]
        elif part["year"] or part["month"] or part["quarter"]:
            values = [(hit.lastgroup, *numbers)]
        else:
            values = [count_value(part)]
            days = int(values[0][1] / 24)
            if part["unit"] in ("日", "号") and days <= 31:  # the end of 3月5日至8日, or 每月8日前
                values += [("date", 0, month, days), ("day", days)]
        found.append((hit.start(), words, values))
    return found


def count_value(part: dict[str, str]) -> tuple[str, float]:
    """Return the value of a number with its unit, as facts() does: 68万元 -> ("money", 680000)."""
    number = chinese_number(part["c"]) * SCALES.get((part["scale"] or "").lower(), 1)
    number = round(number + 1000 * int(part["more"] or 0), 4)  # 3万5千
    unit = part["unit"].removeprefix("个")
    if unit == "工作日":
        return "workdays", number
    if unit in HOURS:
        return "hours", round(number * HOURS[unit], 2)
    if unit in ("月", "年"):
        return "months", number * (12 if unit == "年" else 1)
    if unit.endswith("元") or unit.startswith("块"):
        return "money", number * SCALES.get(unit[0], 1)
    return ("count" if part["unit"] else "bare"), number


def knowledge(given: str) -> dict[str, set]:
    """Return what the instruction and the input say, by kind, with the sums, shares and dates that follow."""
    known: dict[str, set] = defaultdict(set)
    for _, _, values in facts(given):
        for kind, *value in values:
            known[kind].add(value[0] if len(value) == 1 else tuple(value))
    known["said"] = {(kind, n) for kind in ("hours", "months", "workdays") for n in known[kind]}
    numbers = sorted(known["bare"] | known["count"] | known["money"])[:60]
    known["year"] |= {year for year, _, _ in known["date"] if year} | {no[0] for no in known["no"]}
    known["year"] |= {int(n) for n in known["bare"] if 1900 < n < 2100}
    for words, step in NEAR_YEARS.items():
        known["year"] |= {year + step for year in known["year"]} if re.search(words, given) else set()
    known["month"] |= {month for _, month, _ in known["date"]}
    known["month"] |= {3 * quarter - back for quarter in known["quarter"] for back in range(3)}
    for words, months in PERIODS.items():
        known["month"] |= set(months) if re.search(words, given) else set()
    ranges = re.findall(r"(\d{1,2})\s?[到至—–~～-]\s?\d{1,2}月", given)  # 5至7月
    known["month"] |= set(map(int, ranges))
    known["quarter"] |= {(month + 2) // 3 for month in known["month"]}
    ends = {1, 28, 29, 30, 31} if re.search("底|末|全月|月内|季度|半年|全年|年内", given) else set()
    known["days"] = {(m, d) for m in known["month"] for d in known["day"] | ends}
    known["days"] |= {(month, day) for _, month, day in known["date"]}
    known["day"] |= {day for _, day in known["days"]}
    spans = {abs((a - b).days) for a, b in combinations(calendar(known["date"], known["year"]), 2)}
    known["hours"] |= {24 * (span + more) for span in spans for more in (0, 1)}
    for kind in "hours months workdays money count percent bare".split():
        own = numbers if kind == "bare" else sorted(known[kind] | known["bare"])[:60]
        pairs = {round(x, 4) for a, b in combinations(own, 2) for x in (a + b, abs(a - b))}
        known[kind] = known[kind] | known["bare"] | pairs | {round(sum(own), 4)}
    shares = {100 * x for a, b in combinations(numbers, 2) if a for x in (a / b, (b - a) / b, (b - a) / a)}
    known["percent"] |= {round(share, places) for share in shares for places in range(3)}
    prices = {round(price * n, 2) for price in sorted(known["money"])[:60] for n in numbers}
    known["money"] |= {n * 1e4 for n in known["bare"]} | prices
    return known


def calendar(dates: set[tuple], years: set[int]) -> list[date]:
    """Return those (year, month, day) that exist, up to 60, the latest known year in place of a missing one."""
    found = []
    for year, month, day in list(dates)[:60]:
        try:
            found.append(date(year or max(years, default=2000), month, day))
        except ValueError:
            continue
    return found


def follows(value: tuple, known: dict[str, set], counts: set[int]) -> bool:
    """Return whether a value is known or follows from what is known; counts: how many things the text numbers."""
    kind, number = value[:2]
    if kind == "date":
        said = {year for year, *day in known["date"] if year and day == [*value[2:]]}
        return value[2:] in known["days"] and (not number or number in (said or known["year"]))
    if kind == "no":
        same = [no[2] for no in known["no"] if no[:2] == value[1:3]]
        return value[3] in same or "" in same or bool(same and not value[3])
    if kind == "bare":
        every = {n for group in known.values() for n in group if not isinstance(n, tuple)}
        return number in every or any(number in group for group in known["date"] | known["no"])
    return number in known[kind] or (kind == "count" and number in counts)


def listed_counts(text: str) -> set[int]:
    """Return how many things a text numbers: its headings by level, its attachments, its 一是 二是."""
    marks = [mark for line in text.splitlines() if (mark := heading(line.strip(BLANK)))]
    counts = {number for _, number in marks} | set(Counter(level for level, _ in marks).values())
    counts |= {len(re.findall(f"[{HAN}]是", text)), len(re.findall(r"(?m)^(?:附件：)?\d+[.．]", text))}
    return {count for count in counts if count > 1}


def named_counts(text: str, place: int) -> set[int]:
    """Return how many things are named with 、 between in the sentence around a place, by its clauses."""
    before, after = text[max(0, place - 80) : place], text[place : place + 80]
    sentence = re.split("[。；\n]", before)[-1] + re.split("[。；\n]", after)[0]
    return {piece.count("、") + 1 for piece in [sentence, *re.split("[，：（）]", sentence)] if "、" in piece}


def invented(given: str, text: str) -> list[str]:
    """Return the figures, dates, 文号, organs and persons of a text that given neither holds nor implies.

    Values are compared, not words: 三百一十二例 is 312例. Sums, differences, shares and numbers of listed things
    follow from what is given. Laws are not listed here but by to_verify().
    """
    known, found = knowledge(given), []
    bare = re.sub(COMMON_KNOWLEDGE, lambda hit: "|" * len(hit[0]), half_width(text))
    counts = listed_counts(text) | {len([line for line in given.splitlines() if line.strip()])}
    for start, words, values in facts(bare):
        kind, number = values[0][:2]
        behind = bare[start + len(words) : start + len(words) + 2]
        one = words[0] == "一" and number in (1, 24, 168) and not re.match("以?内|之内|[前后]", behind)
        if not re.search(r"\d", words) and (kind == "bare" or one):
            continue  # 一次, 十分, 百姓
        unsaid = kind in ("hours", "months", "workdays") and values[0] not in known["said"]
        deadline = unsaid and re.match("以?内|之内", behind)  # 三日内 does not follow from other dates
        if any(follows(value, known, counts) for value in values) and not deadline:
            continue
        if kind != "count" or number not in named_counts(text, start):
            found.append(words)
    tails = organ_tails(given)
    found += [name for name in organs_of(text) if not organ_known(name, given, tails)]
    squeezed = re.sub(r"\s", "", given)
    found += [name for name in persons_of(text) if name not in squeezed]
    return list(dict.fromkeys(found))


def persons_of(text: str) -> list[str]:
    """Return the names of persons in a text: 签发人, 联系人, 出席, below an order, X同志, 主任X, 由X主持."""
    name = rf"(?:[{WORDS['surnames']}]|欧阳|司马|上官|诸葛|司徒)[\u4e00-\u9fff]{{1,2}}"
    labels = "签发人|联系人|经办人|主持人|记录人|承办人|负责人"
    found = re.findall(rf"(?:{labels})[：:]\s?({NAME})(?![\u4e00-\u9fff])", text)
    found += re.findall(rf"(?m)^代?(?:{OFFICE})[ \u3000]{{0,4}}({name})\s*$", text)
    found += re.findall(rf"({name})同志", text)
    nurse = (
        rf"(?<![\u4e00-\u9fff])({name})(?:护士|(?:副?主任)?医师(?=[，。、；]))"  # 关于变更护士 names nobody
    )
    found += re.findall(nurse, text)
    found += re.findall(rf"(?:{OFFICE})({name})(?=[，。、；主出作在任担同讲])", text)
    found += re.findall(rf"由({name})(?=主持|负责|牵头|担任|副?(?:{OFFICE}))", text)
    for people in re.findall("(?m)^(?:出席|列席|参加|缺席|请假)[人员]{0,2}[：:](.{1,300})", text):
        found += [person for person in re.split("[、，；。]", people) if re.fullmatch(name, person)]
    return [
        person
        for person in found
        if not re.search("[某各等]|组长|负责|[办局委院部科处站所会室队组方]$", person)
    ]


def organs_of(text: str) -> list[str]:
    """Return the organs that a text calls by their own names, at most 200; 各县卫生健康局 or 市财政局 are none."""
    part = split_gongwen(text)
    names = [name for _, line in part.get("organs", []) for name in line.split()]
    names += re.split(r"[\s、]+", "".join(line for _, line in part.get("title", [])).partition("关于")[0])
    names = [name for name in names if len(name) > 3 and is_organ(name)]
    near = r"(?:^|[，。；：、（\s《“由经向与和及报送在为请致从到对是将抄])[由经向与和及报送在为请致从到对是将抄]{0,2}"
    kinds = "委员会|政府|局|厅|医院|卫生院|中心(?!医院|卫生|血站|学校)|公司|学校|大学|学院"
    form = rf"([\u4e00-\u9fff]{{2,3}}(?:省|市|县|区|州|镇|乡)[\u4e00-\u9fff]{{0,10}}?(?:{kinds}))"
    names += [name for name in re.findall(near + form, text, re.MULTILINE) if not re.match(GENERIC, name)]
    return [name for name in dict.fromkeys(names) if not re.search(f"[{HOLE}]|名称", name)][:200]


def organ_tails(given: str) -> set[str]:
    """Return the pieces of given that may be an organ's short name: what stands before 委, 局, 院 and the like."""
    ends = "委|局|厅|办|院|中心|站|所|府|会|部|处|队|校|司|团|行|馆|社"
    hits = re.findall(rf"[\u4e00-\u9fff]{{1,14}}?(?:{ends})", given[:20_000])
    return {hit[start:] for hit in hits for start in range(len(hit) - 1)}


def organ_known(name: str, given: str, tails: set[str]) -> bool:
    """Return whether given names an organ, in full or shortened: 清江市卫健委 for 清江市卫生健康委员会."""
    place = re.match("(.{2,3}?)(?:省|市|县|区|州|镇|乡|自治区)", name)
    if name in given or (place and place[1] not in given):
        return name in given
    if place and re.search("卫生健康(?:委员会|委|局)(?:办公室)?$", name):
        return True  # the writer's own house, by the place alone
    for tail in tails:
        letters = iter(name)
        if tail[-1] in (name[-1], "委") and all(letter in letters for letter in tail):
            return True
    return False


def to_verify(given: str, text: str) -> list[str]:
    """Return the laws and documents that a text cites and given does not hold: 需核实, by hand."""
    squeezed = re.sub(r"\s", "", given)
    names = dict.fromkeys(re.findall(r"《([^》\n]{2,80})》", text))
    return [f"《{name}》" for name in names if name not in squeezed]


# %% Faults
def faults(row: dict, text: str) -> list[str]:
    """Return everything found wrong with a document, a line each with its place and remedy; [] if it is clean.

    The row holds instruction and input, and reference or output where a right answer is known. Where the right
    answer is no document, since facts are missing, the text has to ask for them and must not be one, either.
    """
    given = f"{row.get('instruction') or ''}\n{row.get('input') or ''}"
    reference = row.get("reference") or row.get("output") or ""
    wrong = [f"材料中没有“{words}”：不编造，未给出的用 × 代替" for words in invented(given, text)]
    wrong += subject_faults(given, text, reference)
    if reference and not split_gongwen(reference):
        asks = re.search("提供|补充|明确|告知|核实|确认", text) and not split_gongwen(text)
        return wrong + ([] if asks else ["材料不足以成文：应说明缺什么、请求补充"])
    wrong = [message for message in check_form(text).values() if message] + wrong
    wrong += kind_faults(row, text, reference) + missing_facts(given, text, reference)
    wrong += needless_holes(given, text) + wording_faults(text, reference) + paste_faults(row, text)
    return list(dict.fromkeys(wrong))


def kind_of_document(text: str) -> str:
    """Return the 文种 of a document, "" if it has none."""
    return kind_of(joined(split_gongwen(text).get("title", [])))


def kind_faults(row: dict, text: str, reference: str) -> list[str]:
    """Return the fault of another 文种 than asked, known from the reference or the only one that is named."""
    kind, wanted = kind_of_document(text), kind_of_document(reference)
    if not wanted:
        cited = "《[^》]*》|来函|请示报告|(?:征求|修改|反馈|提出?)意见"
        asked = re.sub(cited, "", row.get("instruction") or "")
        named = {name for name in KINDS if name in asked}
        named -= {"请示", "报告"} if "复" in asked else set()  # what is answered
        wanted = named.pop() if len(named) == 1 else ""
    return [f"文种是{kind or '空缺的'}：要求的是{wanted}"] if wanted and kind != wanted else []


def loose(values: list[tuple]) -> set[tuple]:
    """Return values so that 2024年3月5日 meets 3月5日, 68万 meets 68万元 and a short 文号 the whole."""
    short = {"date": slice(2, 4), "no": slice(1, 3)} | dict.fromkeys(("money", "count", "bare"), slice(1, 2))
    return {value[short.get(value[0], slice(0, 3))] for value in values}


def wanted_facts(given: str, reference: str) -> list[tuple[str, set]]:
    """Return (words, loose values) of given that a document must use: those of the reference, all without one."""
    have = loose([value for _, _, values in facts(reference) for value in values])
    wanted = [(words, loose(values)) for _, words, values in facts(given) if values[0][0] != "bare"]
    wanted = [(words, values) for words, values in wanted if re.search(r"\d", words)]
    return [(words, values) for words, values in wanted if not reference or have & values]


def unused_facts(wanted: list[tuple[str, set]], text: str) -> list[str]:
    """Return the words of those facts that a text holds in no form."""
    have = loose([value for _, _, values in facts(text) for value in values])
    return list(dict.fromkeys(words for words, values in wanted if not have & values))


def missing_facts(given: str, text: str, reference: str) -> list[str]:
    """Return the faults of given figures, dates and 文号 that are left out; without a reference 40% may be."""
    wanted = wanted_facts(given, reference)
    short = unused_facts(wanted, text)
    if not reference and len(short) <= 0.4 * len(wanted):
        return []
    return [f"漏写材料给出的“{words}”" for words in short]


def needless_holes(given: str, text: str) -> list[str]:
    """Return the faults of placeholders where the fact was given and stands nowhere in the document."""
    part, wrong = split_gongwen(text), []
    for kind, name in (("no", "number"), ("date", "date")):
        told = [(words, loose(values)) for _, words, values in facts(given) if values[0][0] == kind]
        unused = unused_facts(told, text)
        line = next((line for line in part.get(name, []) if re.search(f"[{HOLE}]", line[1])), None)
        if line and unused:
            wrong.append(f"第{line[0]}行“{line[1]}”　材料已给出“{unused[0]}”，不用占位符")
    return wrong


def fact_score(given: str, text: str, reference: str = "") -> float | None:
    """Return the share of the wanted facts that a document uses, None where none is given."""
    wanted = wanted_facts(given, reference)
    count = len({words for words, _ in wanted})
    return 1 - len(unused_facts(wanted, text)) / count if count else None


def pairs_of(text: str, without: str = "|".join(WORDS["everywhere"])) -> set[str]:
    """Return the pairs of neighbouring Chinese characters in a text, by default without the words of any document."""
    text = re.sub(f"[^\u4e00-\u9fff]|{without}" if without else "[^\u4e00-\u9fff]", " ", text)
    return {text[i : i + 2] for i in range(len(text) - 1) if " " not in text[i : i + 2]}


@cache
def official_pairs() -> set[str]:
    """Return the pairs of characters in the words of terms.json that documents are made of."""
    terms = [term for group in WORDS["terms"].values() for term in group]
    return pairs_of(" ".join(terms + WORDS["everywhere"] + WORDS["measures"]), "")


def sentences_of(text: str) -> list[str]:
    """Return the sentences of a text from 8 characters on, without what stands in parentheses."""
    text = re.sub("（[^（）]{1,60}）", "", text)
    return [sentence for sentence in re.split("[。；！？\n]", text) if len(sentence) >= 8]


@cache
def term_pattern() -> re.Pattern:
    """Return the pattern of the professional terms of terms.json, the longest first."""
    terms = {term for group in WORDS["terms"].values() for term in group}
    return re.compile("|".join(sorted(terms, key=len, reverse=True)))


def body_of(text: str) -> str:
    """Return the body of a document, the whole text if it is none."""
    part = split_gongwen(text)
    return "\n".join(line for _, line in part["body"]) if part else text


def subject_faults(given: str, text: str, reference: str) -> list[str]:
    """Return the fault of a document whose body is about something else than asked, or about nothing."""
    body, asked = body_of(text), pairs_of(given)
    if reference:
        if sentence_chrf(body, [body_of(reference)], char_order=3, beta=1).score < REFERENCE_FLOOR:
            return [f"正文与要求无关：与参考公文正文的 chrF 低于 {REFERENCE_FLOOR}"]
    elif len(asked & pairs_of(body)) < SUBJECT_FLOOR * min(40, len(asked)):
        return ["正文与要求无关：没有写到要求的事项"]
    asked |= pairs_of(reference)
    sentences = sentences_of(body)
    long = [sentence for sentence in sentences if len(sentence) >= 15 and not re.search(r"\d", sentence)]
    strange = [sentence for sentence in long if not (asked | official_pairs()) & pairs_of(sentence, "")]
    empty = [one for one in sentences if not term_pattern().search(one) and not asked & pairs_of(one)]
    if strange or len(empty) > len(sentences) * (0.25 if reference else 0.5):
        return [f"正文有与要求无关、也没有公文用语的句子，如“{(strange or empty)[0][:20]}”"]
    return []


def wording_faults(text: str, reference: str = "") -> list[str]:
    """Return the faults of wording: too short, cut off, foreign, spoken, advertising, repeated, notes, no measures."""
    part = split_gongwen(text)
    kind, lines, after = kind_of(joined(part.get("title", []))), part.get("body", []), part.get("after", [])
    body, wrong = "\n".join(line for _, line in lines), []
    length = len(body) + len(joined(after))
    least = round(max(LEAST.get(kind, 60), LEAST_SHARE * len(reference)))
    if length < least:
        wrong.append(f"正文只有{length}个字：这样的{kind or '公文'}至少应有{least}个字")
    last = (after or ([] if part.get("date") else lines))[-1:]
    if last and re.search("[，。；]", last[0][1]) and not re.search(LAST_LINE, last[0][1]):
        wrong.append(f"第{last[0][0]}行“{last[0][1][-12:]}”　没有写完")
    letters = [letter for letter in text if letter.isalpha()]
    chinese = sum("\u4e00" <= letter <= "\u9fff" for letter in letters)
    if chinese < 0.8 * len(letters) or re.search("[A-Za-z ,.'-]{40}", text):
        wrong.append("夹有整句外文：公文用规范汉字")
    for name, what in (("spoken", "口语"), ("advertising", "广告语")):
        found = [word for word in WORDS[name] if word in text]
        wrong += [f"{what}“{found[0]}”：应改为书面语"] if found else []
    if chat := re.search(CHAT, text):
        wrong.append(f"对话用语“{text[max(0, chat.start() - 6) : chat.end() + 6].strip()}”：只写公文本身")
    notes = [line for line in lines if re.match(NOTES, line[1])]
    wrong += [
        f"第{count}行“{line[:16]}”　是没有整理的笔记，应写进公文的相应部分" for count, line in notes[:1]
    ]
    if kind in MEASURING and not any(verb in text for verb in WORDS["measures"]):
        wrong.append(f"没有措施：{kind}应写明做什么，如 开展、落实、报送")
    return wrong + repeated(body)


def repeated(body: str) -> list[str]:
    """Return the fault of sentences that say the same: one twice, or three that differ only in their numerals."""
    opening = rf"^\W*[{HAN}\d]+[、）.．是]|\W"
    sentences = [re.sub(opening, "", sentence) for sentence in sentences_of(body)[:300]]
    for sentence, times in Counter(sentences).items():
        if times > 1 and len(sentence) >= 12:
            return [f"重复：“{sentence[:20]}”写了{times}次"]
    bare = [re.sub(rf"[\d{CHINESE}]", "", sentence) for sentence in sentences]
    grams = [{one[i : i + 2] for i in range(len(one) - 1)} for one in bare if len(one) >= 8]
    for own in grams:
        alike = sum(len(own & other) > 0.8 * len(own | other) for other in grams)
        if alike > 2:
            return [f"重复：有{alike}句只换了数字或个别词"]
    return []


def paste_faults(row: dict, text: str) -> list[str]:
    """Return the fault of a document that is the input, or the instruction, put into a frame.

    A draft that was given to be put right may stand in the document again; notes, minutes and chats may not.
    """
    if split_gongwen(row.get("input") or "").get("date"):
        return []
    body = re.sub(r"\W", "", text)
    pieces = {body[i : i + 12] for i in range(len(body) - 11)}
    for given in (row.get("input") or "", row.get("instruction") or ""):
        bare = re.sub(r"\W", "", given)
        starts = [i for i in range(len(bare) - 11) if bare[i : i + 12] in pieces]
        covered = len({place for i in starts for place in range(i, i + 12)})
        if covered > PASTED * len(bare) and covered >= 20:
            return [f"照搬材料：{covered / len(bare):.0%}的原文没有改写，应按公文重新组织"]
    return []


# %% Layout
def save_docx(text: str, path: str) -> None:
    """Lay a document out after GB/T 9704-2012: A4, 22 lines of 28 characters, — 1 — at the outer edge."""
    text = re.sub(
        "[^\n\t\x20-\x7e\x80-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]", "", text
    )  # XML holds no other
    part = dict.fromkeys(PARTS, []) | (
        split_gongwen(text) or {"body": [(0, line) for line in text.splitlines() if line.strip()]}
    )
    said = {name: [words for _, words in lines] for name, lines in part.items()}
    document = docx.Document()
    set_page(document, kind_of(joined(part["title"])) == "函")

    def add(words, font=PLAIN, align=Align.JUSTIFY, **layout):
        return fill(new_paragraph(document), [(words, font)], align, **layout)

    for line in said["head"]:
        if is_organ(line) or line.endswith("文件"):
            add(line, TITLE, Align.CENTER, size=26).runs[0].font.color.rgb = RGBColor(255, 0, 0)
        else:
            add(line, HEAVY, Align.LEFT)
    number, signers = joined(part["number"]), said["signer"]
    if number and signers:  # upward documents: number to the left, signer to the right
        line = add(f"{number}\t{signers.pop(0)}", align=Align.LEFT, left=1)
        line.paragraph_format.tab_stops.add_tab_stop(Pt(426), Tab.RIGHT)
    elif number:
        add(number, align=Align.CENTER)
    for line in signers:
        add(line, align=Align.RIGHT, right=1)
    for line in said["title"]:
        spaced = re.fullmatch(r"(?:[^\s][ \u3000]+)+[^\s]", line)
        add(re.sub(r"\s", "", line) if spaced else line, TITLE, Align.CENTER, size=22)
    for line in [*said["note"], "\u3000"]:
        add(line, "楷体_GB2312", Align.CENTER)
    for line in said["addressee"]:
        add(line)
    add_text(document, said["body"])
    for count, line in enumerate(said["attachments"]):
        add(line, left=5 * (count > 0), first=2 * (count == 0))
    document.paragraphs[-1].paragraph_format.keep_with_next = True  # a signature is never alone on a page
    day, organs = joined(part["date"]), said["organs"]
    width = sum(1 - letter.isascii() / 2 for letter in day)
    for organ in organs:
        right = max(0, 4 + (width - len(organ)) / 2)
        add(organ, align=Align.RIGHT, right=right).paragraph_format.keep_with_next = True
    if day:
        add(day, align=Align.RIGHT, right=max(4, (max(map(len, organs), default=0) - width) / 2))
    above = ""
    for line in said["after"]:
        if re.fullmatch(r"附\s*件\s*\d*", line):
            add(line, HEAVY, Align.LEFT).paragraph_format.page_break_before = True
        elif re.fullmatch(r"附\s*件\s*\d*", above):
            add(line, TITLE, Align.CENTER, size=22)
        elif re.match("抄送|分送|.*印发$", line):
            draw_lines(add(line, align=Align.LEFT, size=14, left=1, right=1))
        else:
            add_text(document, [line])
        above = line
    document.save(path)


def add_text(document, lines: list[str]) -> None:
    """Add paragraphs with the fonts of their levels; rows of cells between tabs or | become a table."""
    for table, group in groupby(lines, lambda line: bool(re.search(r"[|\t]", line))):
        group = list(group)
        rows = [re.split(r"[|\t]", line.strip("|")) for line in group] if table else []
        table = table and len(rows) * max(map(len, rows)) <= MAX_CELLS
        if table:
            grid = document.add_table(len(rows), max(map(len, rows)), style="Table Grid")
            for row, cells in zip(grid.rows, rows):
                for cell, words in zip(row.cells, cells):
                    fill(cell.paragraphs[0], [(words.strip(), PLAIN)], Align.CENTER, size=14)
        for line in [] if table else group:
            mark = heading(line)
            cut = (line.find("。") + 1 or len(line)) if mark else 0
            font = {1: HEAVY, 2: "楷体_GB2312"}.get(mark[0], PLAIN) if mark else PLAIN
            added = fill(new_paragraph(document), [(line[:cut], font), (line[cut:], PLAIN)], first=2)
            added.paragraph_format.keep_with_next = bool(mark) and cut == len(line)


def new_paragraph(document) -> Paragraph:
    """Append a paragraph; python-docx goes through all others for it, and a model that loops writes thousands."""
    paragraph = Paragraph(OxmlElement("w:p"), document._body)
    document.element.body[-1].addprevious(paragraph._p)  # the properties of the section stand last
    return paragraph


def fill(paragraph, pieces, align=Align.JUSTIFY, size=16, first=0.0, left=0.0, right=0.0):
    """Fill a paragraph with (text, font) pieces, its indents in characters, and return it."""
    form, paragraph.alignment = paragraph.paragraph_format, align
    form.first_line_indent, form.left_indent, form.right_indent = (Pt(16 * n) for n in (first, left, right))
    for words, font in [piece for piece in pieces if piece[0]]:
        run = paragraph.add_run(words)
        run.font.name, run.font.size = font, Pt(size)
        run._r.rPr.rFonts.set(qn("w:eastAsia"), font)
    return paragraph


def draw_lines(paragraph) -> None:
    """Draw the thin lines of the 版记 above and below a paragraph."""
    edges = OxmlElement("w:pBdr")
    for side in ("top", "bottom"):
        edge = OxmlElement(f"w:{side}")
        for name, value in (("val", "single"), ("sz", "6"), ("space", "1"), ("color", "000000")):
            edge.set(qn(f"w:{name}"), value)
        edges.append(edge)
    behind = ("w:tabs", "w:snapToGrid", "w:spacing", "w:ind", "w:jc", "w:rPr")
    paragraph._p.get_or_add_pPr().insert_element_before(edges, *behind)


def set_page(document, letter: bool) -> None:
    """Set A4, margins, the grid of 22 lines of 28 characters and page numbers, none on a letter's first page."""
    section, normal = document.sections[0], document.styles["Normal"]
    section.page_width, section.page_height = Mm(210), Mm(297)
    section.top_margin, section.bottom_margin = Mm(37), Mm(35)
    section.left_margin, section.right_margin = Mm(28), Mm(26)
    section.footer_distance = Mm(23)
    for name, value in (("type", "linesAndChars"), ("linePitch", "579"), ("charSpace", "-848")):
        section._sectPr.find(qn("w:docGrid")).set(qn(f"w:{name}"), value)
    document.settings.odd_and_even_pages_header_footer = True
    section.different_first_page_header_footer = letter
    normal.font.size = Pt(16)  # the grid counts its 28 characters from this size
    # LibreOffice gives a 16 pt character two cells of a 15.8 pt grid; the spacing makes the 28 there.
    places = (normal.element.get_or_add_pPr(), "snapToGrid", "0"), (normal.element.rPr, "spacing", "-6")
    for properties, name, value in places:
        properties.append(OxmlElement(f"w:{name}"))
        properties[-1].set(qn("w:val"), value)
    normal.paragraph_format.line_spacing, normal.paragraph_format.space_after = Pt(28.95), Pt(0)
    for footer, align in ((section.footer, Align.RIGHT), (section.even_page_footer, Align.LEFT)):
        pieces = [(sign, "宋体") for sign in ("— ", "1", " —")]
        number = fill(footer.paragraphs[0], pieces, align, 14, left=1, right=1)
        field = OxmlElement("w:fldSimple")
        field.set(qn("w:instr"), "PAGE")
        number.runs[0]._r.addnext(field)
        field.append(number.runs[1]._r)


# %% Compare and show
def fenced(text: str) -> str:
    """Return a text as a Markdown code block that it cannot leave: the fence is longer than any inside."""
    text = re.sub(r"[^\n\t\x20-\x7e\x80-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]", "\ufffd", text)
    fence = "`" * max(3, *(len(run) + 1 for run in re.findall("`+", text)), 3)
    return f"{fence}\n{text}\n{fence}\n"


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


# %% Scores of a run
def term_score(text: str) -> float:
    """Return the share of sentences with a professional term less the share with a colloquial one, in [0, 1].

    A term counts three times in a text and a sentence of hardly anything but terms not at all, so that
    listing them earns nothing; below 100 characters of sentences the score shrinks in proportion.
    """
    pieces = re.split("([。；！？\n])", text)
    sentences = [one for one, end in zip(pieces[::2], pieces[1::2]) if len(one) >= 8 and end != "\n"]
    sentences = list(dict.fromkeys(sentences))
    uses, points = Counter(), 0
    for sentence in sentences:
        found = term_pattern().findall(sentence)
        rest = len(sentence) - sum(map(len, found))
        points += any(uses[term] < 3 for term in found) and rest > 0.4 * len(sentence)
        points -= any(word in sentence for word in WORDS["colloquial"])
        uses.update(found)
    return max(0.0, points / max(1, len(sentences))) * min(1.0, sum(map(len, sentences)) / 100)


def skeleton(row: dict) -> str:
    """Return the right form around the input as it came: what a document must be better than."""
    kind = kind_of_document(row["reference"]) or "通知"
    return f"""××市卫生健康委员会关于做好有关工作的{kind}
×卫发〔20××〕×号
各有关单位：
为做好有关工作，现将有关事项通知如下：
{row.get("input") or row["instruction"]}
请各单位加强组织领导，认真贯彻落实。
××市卫生健康委员会
20××年×月×日"""


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


def score(row: dict, text: str, ended: bool | None = None) -> dict[str, float | None]:
    """Return metric -> value of one answer, None where it does not apply; clean_rate is 1 without a fault."""
    given = f"{row['instruction']}\n{row.get('input') or ''}"
    found = faults(row, text) + (["没有写完：到长度上限为止"] if ended is False else [])
    return {
        "clean_rate": float(not found),
        "faults_per_document": float(len(found)),
        "format_score": format_score(text),
        "term_score": term_score(text),
        "kind_as_asked": float(kind_of_document(text) == kind_of_document(row["reference"])),
        "fact_score": fact_score(given, text, row["reference"]),
        "invented_per_document": float(len(invented(given, text))),
        "ended_by_itself": None if ended is None else float(ended),
        "characters": float(len(text)),
    }


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


def check_writable(*paths: Path) -> None:
    """Raise ValueError for the first path that cannot be written as a file: before the work, not after it."""
    for path in paths:
        good = path.is_file() if os.path.lexists(path) else path.parent.is_dir()
        if not good or not os.access(path if path.exists() else path.parent, os.W_OK):
            raise ValueError(f"{path} cannot be written: name a file in a folder that is there")


def answers_of(path: Path) -> list[dict]:
    """Return the rows of answers.jsonl; ValueError names the first line that is none."""
    if not path.is_file():
        raise ValueError(f"{path} is not a regular file")
    rows = []
    for number, line in enumerate(path.read_bytes().split(b"\n"), 1):
        try:
            row = json.loads(line) if line.strip() else None
            if row is not None:
                row["instruction"] = row.get("instruction") or row["prompt"][-1]["content"]
                texts = [row[name] for name in ("instruction", "reference", "before", "after")]
                texts += [row.get(name) or "" for name in ("input", "exported")]
                ended = [row[name] for name in row if name.endswith("_ended")]
                if not all(isinstance(text, str) for text in texts) or not set(ended) <= {True, False, None}:
                    raise TypeError("what should be a text, or true or false, is none")
                rows.append(row)
        except (ValueError, TypeError, KeyError, IndexError, AttributeError, RecursionError) as error:
            raise ValueError(
                f"{path}, line {number}: no row with prompt, reference, before, after ({error!r:.200})"
            ) from None
    if not rows:
        raise ValueError(f"{path} holds no row: run sft_gongwen.py first")
    return rows


def score_rows(rows: list[dict], metrics: dict) -> list[dict]:
    """Add the means of all columns and the difference from before to after to metrics; return the scores of after."""
    names = [
        name for name in ("before", "after", "exported") if all(row.get(name) is not None for row in rows)
    ]
    columns = {name: [score(row, row[name], row.get(f"{name}_ended")) for row in rows] for name in names}
    columns["skeleton"] = [score(row, skeleton(row)) for row in rows]
    columns["reference"] = [score(row, row["reference"]) for row in rows]
    values = {
        name: {metric: [one[metric] for one in scores] for metric in scores[0]}
        for name, scores in columns.items()
    }
    for name, losses in (metrics.get("losses") or {}).items():
        values[name] |= losses
    for name in values:
        kept = {metric: [v for v in numbers if v is not None] for metric, numbers in values[name].items()}
        metrics[name] = metrics.get(name, {}) | {metric: float(np.mean(v)) for metric, v in kept.items() if v}
    metrics["difference"] = metrics.get("difference", {})
    for metric, after in values["after"].items():
        pairs = [(b, a) for b, a in zip(values["before"].get(metric, ()), after) if None not in (a, b)]
        if pairs:
            change = compare(*map(list, zip(*pairs)))
            metrics["difference"][metric] = {
                name: None if v != v else v for name, v in change.items()
            }  # no NaN
    return columns["after"]


def markdown_of(metrics: dict) -> str:
    """Return the means of all columns and the difference from before to after as a Markdown table."""
    names = [name for name in ("before", "after", "exported", "skeleton", "reference") if name in metrics]
    table = pd.DataFrame({name: metrics[name] for name in names})
    change = pd.DataFrame(metrics["difference"]).T.reindex(columns=["value", "low", "high", "p"])
    table = table.join(change.rename(columns={"value": "difference"}))
    order = [*names[:2], "difference", "low", "high", "p", *names[2:]]
    first = [*METRICS, *(metric for metric in table.index if metric not in METRICS)]
    return table.reindex(first)[order].astype(float).to_markdown(floatfmt=".3f").replace(" nan ", "     ")


def report_on(rows: list[dict], metrics: dict, order: list[int]) -> str:
    """Return report.md: the table, what it shows, the best, the middle and the worst document, the facts of the run."""
    model = str(metrics.get("model", "an unnamed model"))
    report = f"# gongwen: {model}, {len(rows)} held-out documents\n\n"
    if model.startswith("data/tiny"):
        report += "**A rehearsal on a tiny model: what it writes is of no use to anyone.** Its clean_rate may stay 0: "
        report += "so small a model learns the form but not the facts, it invents or leaves out some in each document.\n\n"
    report += (
        f"{markdown_of(metrics)}\n\n{conclusions({'clean_rate': metrics['difference']['clean_rate']})}\n"
    )
    report += "A document is clean if it keeps every rule of form, uses the given facts, invents none and is about what was "
    report += "asked. skeleton is the input in a fixed frame, reference the wanted document. Whether a document is right "
    report += "only a reader can say.\n\n![loss](loss.png)\n"
    for i in dict.fromkeys((order[0], order[len(order) // 2], order[-1])):
        row, given = rows[i], f"{rows[i]['instruction']}\n{rows[i].get('input') or ''}"
        report += f"\n## Document {i + 1}\n\n{fenced(given.strip())}"
        for name in ("before", "after"):
            found = faults(row, row[name]) + [f"需核实：{law}" for law in to_verify(given, row[name])]
            found = "\n".join(found) or "没有发现问题"
            report += f"\n{name.capitalize()}:\n\n{fenced(row[name])}\n{fenced(found)}"
    return report + f"\n## Run\n\n{fenced(json.dumps(metrics.get('train', {}), indent=1))}"


def score_run(folder: Path) -> str:
    """Score answers.jsonl of a run, write metrics.json, report.md and sample.docx beside it, return the table."""
    rows, file = answers_of(folder / "answers.jsonl"), folder / "metrics.json"
    metrics = read_metrics(file)
    check_writable(file, folder / "report.md", folder / "sample.docx")
    for row in rows if ENDPOINT else []:
        row["exported"], row["exported_ended"] = ask(row["prompt"])
    after = score_rows(rows, metrics)
    order = sorted(range(len(rows)), key=lambda i: (after[i]["faults_per_document"], -after[i]["term_score"]))
    file.write_text(json.dumps(metrics, ensure_ascii=False, indent=2), encoding="utf-8")
    (folder / "report.md").write_text(report_on(rows, metrics, order), encoding="utf-8")
    save_docx(rows[order[0]]["after"], str(folder / "sample.docx"))
    return markdown_of(metrics)


# %% Anybody's document
def document_text(path: Path) -> str:
    """Return the text of a .docx or .txt as prepare.py beside this file reads it; ValueError says why it cannot."""
    if path.suffix.lower() in (".json", ".jsonl"):
        raise ValueError(f"{path} is no document: name a .docx, a .txt, or the OUTPUT folder of a run")
    with TemporaryDirectory() as folder:
        command = [
            sys.executable,
            str(Path(__file__).with_name("prepare.py")),
            str(path),
            f"{folder}/rows.json",
        ]
        done = subprocess.run(command, capture_output=True, env=os.environ | {"PYTHONUTF8": "1"})
        said = (done.stdout + done.stderr).decode("utf-8", "replace")
        if done.returncode:
            raise ValueError(said.strip())
        print("\n".join(line for line in said.splitlines() if "not read" in line), end="")
        return json.loads(Path(folder, "rows.json").read_text(encoding="utf-8"))[0]["output"]


def check_file(path: Path) -> tuple[str, bool]:
    """Lay a document out beside it; return what is to be said, rule by rule, and whether nothing is wrong."""
    text, layout = document_text(path), path.with_suffix(".layout.docx")
    check_writable(layout)
    form, wording = check_form(text), wording_faults(text)
    lines = [
        f"  {'错' if wrong else '对'}  {wrong or RIGHT[rule].partition('：')[0]}"
        for rule, wrong in form.items()
    ]
    lines += [f"  错  {wrong}" for wrong in wording] or ["  对  行文"]
    lines += [f"  核  需核实：{law}" for law in to_verify("", text)]
    save_docx(text, str(layout))
    return "\n".join([str(path), *lines, f"  版式：{layout}"]), not wording and not any(form.values())


def check_folder(folder: Path) -> tuple[str, bool]:
    """Return a table with a row a document of a folder and whether one was read and none is wrong."""
    table, good = [], True
    for path in sorted(folder.rglob("*")):
        if path.is_dir() or path.name.startswith(("~$", ".")) or path.name.endswith(".layout.docx"):
            continue
        try:
            text = document_text(path)
        except ValueError as error:
            table.append([visible(path.name), "", "", visible(f"not read: {error}")])
            continue
        form = check_form(text)
        wrong = [message for message in form.values() if message] + wording_faults(text)
        kept = f"{sum(not message for message in form.values())} of {len(form)}"
        table.append([visible(path.name), kind_of_document(text), kept, (wrong or [""])[0]])
        good = good and not wrong
    names = ["document", "文种", "rules kept", "first fault"]
    return pd.DataFrame(table, columns=names).to_markdown(index=False), good and any(row[2] for row in table)


def visible(text: str) -> str:
    """Return a text as a line for a terminal: a sign that would steer it, such as ESC or a line's end, is U+FFFD."""
    return re.sub(r"[^\t\x20-\x7e\xa0-\u2027\u202f-\u2065\u206a-\U0010ffff]", "\ufffd", text)


# %% Run
sys.stdout.reconfigure(errors="replace")  # whatever a terminal cannot show
all_good = True
for name in sys.argv[1:] or [OUTPUT]:
    path = Path(name)
    try:
        if not name:  # Path("") is the working directory
            raise ValueError("which document, folder or run? The name is empty")
        if os.path.lexists(path / "answers.jsonl"):
            said, good = score_run(path), True
        else:
            said, good = check_folder(path) if path.is_dir() else check_file(path)
    except (ValueError, OSError) as error:
        said, good = str(error), False
    print("\n".join(map(visible, said.split("\n"))))
    all_good = all_good and good
sys.exit(0 if all_good else 1)
