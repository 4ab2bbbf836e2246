"""The scorer, the data and the .docx of sft_gongwen.py; its runs are in test_runs.py."""

import json
import re
import subprocess
from pathlib import Path

import docx
import pytest
from docx.oxml.ns import qn
from hypothesis import given
from hypothesis import strategies as st

SCRIPT = "sft_gongwen.py"
NOTICE = """清江市卫生健康委员会关于开展消毒供应专项检查的通知
清卫医函〔2024〕36号
各县（市、区）卫生健康局，市属各医院：
为保障医疗安全，决定于4月开展消毒供应专项检查。现将有关事项通知如下：
一、检查内容
（一）器械清洗、灭菌和追溯记录是否完整。
（二）外来器械是否先验收后使用：
1.交接单是否齐全。
2.植入物是否监测合格后放行。
（三）人员培训是否覆盖全部岗位。
二、工作要求
各单位于4月20日前完成自查，问题清单和整改结果报我委医政科。
特此通知。
附件：1.专项检查评分表
2.自查情况汇总表
清江市卫生健康委员会
2024年3月5日"""
REQUEST = """南卫呈〔2024〕7号　签发人：林致远
南浦县卫生健康局关于购置移动体检车的请示
南浦县人民政府：
我县有21个行政村距最近的卫生院超过15公里，老年人健康体检率仅为58%。为方便群众就近体检，拟购置移动体检车1辆，所需经费68万元。
妥否，请批示。
南浦县卫生健康局
2024年9月12日"""
REPORT = """南卫报〔2024〕3号　签发人：林致远
南浦县卫生健康局关于第一季度传染病防控工作情况的报告
清江市卫生健康委员会：
一季度全县报告法定传染病312例，较上年同期下降8.4%。我局完成流行病学调查96起，处置学校聚集性疫情4起，均在一周内得到控制。
特此报告。
南浦县卫生健康局
2024年4月8日"""
REPLY = """清江市卫生健康委员会关于同意设立南浦县第二人民医院的批复
清卫医批〔2024〕5号
南浦县卫生健康局：
你局《关于设立南浦县第二人民医院的请示》（南卫呈〔2024〕5号）收悉。经研究，同意设立，核定床位200张，请按规定办理执业登记。
此复。
清江市卫生健康委员会
2024年6月18日"""
ANNOUNCEMENT = """清江市卫生健康委员会关于暂停二次供水的通告
2024年第3号
因水箱清洗消毒，定于2024年5月11日8时至18时暂停城东片区二次供水，请居民提前储水。恢复供水后如水色异常，请先放水数分钟再使用。
清江市卫生健康委员会
2024年5月8日"""
MINUTES = """清江市卫生健康委员会2024年第5次主任办公会议纪要
（2024年5月17日）
会议听取了医疗质量提升行动的汇报，研究了二季度重点工作。会议议定，由医政科牵头建立月调度制度，6月底前完成首轮督导，结果在系统内通报。"""
ORDER = """云岭省卫生健康委员会令
第3号
《云岭省托育机构卫生评价办法》已经2024年2月20日委务会议通过，现予公布，自2024年5月1日起施行。
主任　周慕远
2024年3月1日"""
WHOLE = {name: globals()[name] for name in "NOTICE REQUEST REPORT REPLY ANNOUNCEMENT MINUTES ORDER".split()}

# name, document, what is replaced, by what, the rule that must fail
BROKEN = [
    ("no such 文种", NOTICE, "检查的通知", "检查的方案", "kind"),
    ("请示报告", REQUEST, "体检车的请示", "体检车的请示报告", "kind"),
    ("title without 关于", NOTICE, "关于开展", "开展", "title_form"),
    ("title without 的", NOTICE, "检查的通知", "检查通知", "title_form"),
    ("comma in the title", NOTICE, "开展消毒", "开展、消毒", "title_punctuation"),
    ("full stop after the title", NOTICE, "检查的通知\n", "检查的通知。\n", "title_punctuation"),
    ("square brackets", NOTICE, "〔2024〕", "[2024]", "doc_number"),
    ("full-width parentheses", NOTICE, "函〔2024〕", "函（2024）", "doc_number"),
    ("第 in the number", NOTICE, "〕36号", "〕第36号", "doc_number"),
    ("leading zero", NOTICE, "〕36号", "〕036号", "doc_number"),
    ("two-digit year", NOTICE, "〔2024〕", "〔24〕", "doc_number"),
    ("ordinal on a notice", NOTICE, "清卫医函〔2024〕36号", "第36号", "doc_number"),
    (
        "number after the date",
        NOTICE.replace("清卫医函〔2024〕36号\n", ""),
        "3月5日",
        "3月5日\n清卫〔2024〕3号",
        "doc_number",
    ),
    ("no addressee", NOTICE, "各县（市、区）卫生健康局，市属各医院：\n", "", "addressee"),
    ("half-width colon", NOTICE, "各医院：", "各医院:", "addressee"),
    ("addressee without colon", NOTICE, "各医院：", "各医院", "addressee"),
    ("half-width comma", NOTICE, "健康局，市属", "健康局,市属", "addressee"),
    ("indented addressee", NOTICE, "各县（市", "　　各县（市", "addressee"),
    ("salutation", NOTICE, "各县（市、区）卫生健康局，市属各医院", "尊敬的各位领导", "addressee"),
    ("addressee on a 通告", ANNOUNCEMENT, "因水箱", "广大居民：\n因水箱", "addressee"),
    ("、 after （一）", NOTICE, "（一）器械", "（一）、器械", "level_form"),
    ("half-width （一）", NOTICE, "（一）器械", "(一)器械", "level_form"),
    ("1、 for 1.", NOTICE, "1.交接", "1、交接", "level_form"),
    ("一. for 一、", NOTICE, "一、检查", "一.检查", "level_form"),
    ("gap at level 1", NOTICE, "二、工作", "三、工作", "level_order"),
    ("repeat at level 2", NOTICE, "（三）人员", "（二）人员", "level_order"),
    ("level 2 before level 1", NOTICE, "一、检查内容\n", "", "level_order"),
    ("level 3 starts at 2", NOTICE, "1.交接单是否齐全。\n", "", "level_order"),
    ("three levels, one skipped", NOTICE, "1.交接", "（1）交接", "level_order"),
    ("attachment numbers with a gap", NOTICE, "2.自查", "3.自查", "attachment"),
    ("comma after an attachment", NOTICE, "评分表\n", "评分表；\n", "attachment"),
    ("half-width colon of 附件", NOTICE, "附件：1.", "附件:1.", "attachment"),
    ("附件1：", NOTICE, "附件：1.", "附件1：", "attachment"),
    ("colon on the attachment's page", NOTICE, "3月5日", "3月5日\n附件1：\n评分表", "attachment"),
    ("no organ", REPLY, "此复。\n清江市卫生健康委员会\n", "此复。\n", "organ"),
    (
        "date before organ",
        REPLY,
        "清江市卫生健康委员会\n2024年6月18日",
        "2024年6月18日\n清江市卫生健康委员会",
        "organ",
    ),
    ("no date", REPLY, "\n2024年6月18日", "", "date"),
    ("zero-padded date", REPLY, "2024年6月18日", "2024年06月18日", "date"),
    ("Chinese numerals in the date", REPLY, "2024年6月18日", "二〇二四年六月十八日", "date"),
    ("dotted date", REPLY, "2024年6月18日", "2024.6.18", "date"),
    ("30 February", REPLY, "2024年6月18日", "2024年2月30日", "date"),
    ("29 February 2023", REPLY, "2024年6月18日", "2023年2月29日", "date"),
    ("day missing", REPLY, "2024年6月18日", "2024年6月", "date"),
    (
        "two addressees of a 请示",
        REQUEST,
        "南浦县人民政府：",
        "南浦县人民政府，县财政局：",
        "single_addressee",
    ),
    ("请示 without a request", REQUEST, "妥否，请批示。", "特此说明。", "request"),
    ("request not at the end", REQUEST, "妥否，请批示。", "妥否，请批示。\n另附有关材料供参阅。", "request"),
    ("请示 without 签发人", REQUEST, "　签发人：林致远", "", "signer"),
    ("报告 that asks", REPORT, "特此报告。", "当前经费缺口较大，恳请予以支持。", "no_request"),
    ("报告 with 请批示", REPORT, "特此报告。", "妥否，请批示。", "no_request"),
    (
        "批复 without citation",
        REPLY,
        "你局《关于设立南浦县第二人民医院的请示》（南卫呈〔2024〕5号）收悉。",
        "",
        "cites_request",
    ),
    ("批复 citing a report", REPLY, "医院的请示》", "医院的报告》", "cites_request"),
    ("markdown", NOTICE, "一、检查内容", "**一、检查内容**", "plain_text"),
    ("chat tokens", NOTICE, "特此通知。", "特此通知。<|im_end|>", "plain_text"),
    ("a line twice", NOTICE, "特此通知。", "特此通知。\n特此通知。", "body"),
    ("a loop", REPLY, "此复。", "请按规定办理，请按规定办理，请按规定办理，", "body"),
    ("no body", REPLY, REPLY.split("：\n")[1].split("\n清江市")[0] + "\n", "", "body"),
]

# genuine layouts that must not fail
GENUINE = [
    ("number above the title", NOTICE.replace("通知\n清卫医函〔2024〕36号\n", "通知\n"), "", "清卫医函〔2024〕36号\n"),
    ("no number", NOTICE.replace("清卫医函〔2024〕36号\n", ""), "", ""),
    ("red head, urgency and copy number", NOTICE, "", "000012\n特急\n清江市卫生健康委员会文件\n"),
    ("title on two lines", NOTICE.replace("委员会关于", "委员会\n关于", 1), "", ""),
    ("indented paragraphs", re.sub(r"(?m)^(为|一|二|（|1|特)", r"　　\1", NOTICE), "", ""),
    ("blank lines", NOTICE.replace("\n", "\n\n"), "", ""),
    ("no closing", NOTICE.replace("特此通知。\n", ""), "", ""),
    ("two levels, one skipped", NOTICE.replace("（一）", "1.").replace("（二）", "2.").replace("（三）", "3.")
     .replace("1.交接单是否齐全。\n2.植入物是否监测合格后放行。\n", ""), "", ""),
    ("one attachment", NOTICE.replace("附件：1.专项检查评分表\n2.自查情况汇总表", "附件：专项检查评分表"), "", ""),
    ("attachment pages", NOTICE + "\n附件1\n专项检查评分表\n一、医院\n附件2\n自查情况汇总表", "", ""),
    ("two organs", NOTICE.replace("委员会\n2024", "委员会\n清江市财政局\n2024"), "", ""),
    ("（此件公开发布）", NOTICE + "\n（此件公开发布）", "", ""),
    ("抄送", NOTICE + "\n抄送：清江市财政局。", "", ""),
    ("《》 in the title", NOTICE.replace("开展消毒供应专项检查", "印发《消毒供应管理办法（试行）》"), "", ""),
    ("复函", REPLY.replace("关于同意设立南浦县第二人民医院的批复", "关于护士编制问题的复函"), "", ""),
    ("decimal is no heading", NOTICE.replace("为保障", "3.5万名患者受益。为保障"), "", ""),
    ("citation without number", REPLY.replace("（南卫呈〔2024〕5号）", ""), "", ""),
    ("报告 on requests of others", REPORT.replace("特此", "受理群众求助请求27件，均已答复。\n特此"), "", ""),
    ("通报 without addressee", NOTICE.replace("通知", "通报").replace("各县（市、区）卫生健康局，市属各医院：\n", ""), "", ""),
    ("公告 with organ only", ANNOUNCEMENT.replace("关于暂停二次供水的通告", "公告"), "", ""),
    ("决议 with 题注", MINUTES.replace("2024年第5次主任办公会议纪要", "关于加强作风建设的决议")
     .replace("5月17日）", "5月17日第二次全体会议通过）"), "", ""),
]  # fmt: skip


@pytest.fixture(scope="module")
def script(functions):
    return functions(SCRIPT)


@pytest.mark.parametrize("name", WHOLE)
def test_whole_document_passes(script, name):
    assert script.check_gongwen(WHOLE[name]) and not failed(script, WHOLE[name])
    assert script.format_score(WHOLE[name]) == 1.0


@pytest.mark.parametrize("name,text,old,new,rule", BROKEN, ids=[row[0] for row in BROKEN])
def test_broken_rule_fails(script, name, text, old, new, rule):
    assert old in text, "the case does not change its document"
    broken = text.replace(old, new, 1)
    assert rule in failed(script, broken)
    assert script.format_score(broken) < script.format_score(text)


@pytest.mark.parametrize("name,text,_,before", GENUINE, ids=[row[0] for row in GENUINE])
def test_genuine_layout_passes(script, name, text, _, before):
    assert not failed(script, before + text)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "你好",
        "今天天气很好，我们去公园吧。",
        "发烧怎么办？多喝水，多休息，三天不退请就医。",
        "1.买菜\n2.做饭",
        "# Title\n\nHello.",
    ],
)
def test_no_document_scores_nothing(script, text):
    assert script.format_score(text) == 0.0


def failed(script, text):
    return [rule for rule, passed in script.check_gongwen(text).items() if not passed]


@pytest.mark.parametrize(
    "line,mark",
    [("一、甲", (1, 1)), ("十、甲", (1, 10)), ("十一、甲", (1, 11)), ("二十、甲", (1, 20)), ("二十三、甲", (1, 23)),
     ("（九）甲", (2, 9)), ("12.甲", (3, 12)), ("3.5万", None), ("（4）甲", (4, 4)), ("第一，甲", None), ("2024年", None)],
)  # fmt: skip
def test_heading(script, line, mark):
    assert script.heading(line) == mark


@given(st.text(alphabet="一二三（）、.1〔〕号关于的通知\n：；。年月日20 　附件请示", max_size=200))
def test_scores_stay_in_range(script_module, text):
    assert 0 <= script_module.format_score(text) <= 1
    assert 0 <= script_module.term_score(text) <= 1


@pytest.fixture(scope="session")
def script_module(functions):
    return functions(SCRIPT)


def test_term_score_cannot_be_gamed(script):
    terms = sorted(script.glossary()[0])
    assert script.term_score("、".join(terms) + "。") == 0
    assert script.term_score("。".join("，".join(terms[i : i + 4]) for i in range(0, 400, 4)) + "。") == 0
    assert script.term_score("加强督导。") < 0.1
    assert script.term_score("各单位要加强督导检查，确保整改到位。" * 40) <= 0.2
    assert script.term_score(NOTICE) > 0.6
    talk = (
        "咱们这个事挺好的，大家伙赶紧的弄一下，反正差不多就行了。其实我觉得没问题，老是这样也麻烦您帮个忙。"
        * 2
    )
    assert script.term_score(talk + "请各单位落实责任。") < 0.2


def test_fact_score(script):
    given_facts = "文号：清卫医函〔2024〕36号\n日期：2024年3月5日\n完成率98.5%，共312例"
    assert script.fact_score(given_facts, given_facts) == 1
    assert script.fact_score(given_facts, "清卫医函〔2024〕36号，2024年3月5日") == 0.5
    assert script.fact_score("没有数字", "任何文字") is None


@pytest.fixture(scope="module")
def rows():
    return json.loads(Path("data/gongwen.json").read_text(encoding="utf-8"))


def test_data_is_what_it_says(script, rows):
    kinds = {script.split_gongwen(row["output"])["kind"] for row in rows}
    assert len(rows) >= 300 and len(kinds) >= 12 and len({row["topic"] for row in rows}) >= 25
    assert not [row["output"][:40] for row in rows if script.format_score(row["output"]) < 1]
    assert not [
        row["input"] for row in rows if script.fact_score(row["input"], row["output"]) not in (None, 1)
    ]
    assert sum(bool(row["input"]) for row in rows) > 0.5 * len(rows)
    assert len({row["instruction"] for row in rows}) == len(rows)


def test_the_tiny_model_never_saw_a_held_out_topic(script, rows):
    """The builder leaves out at least the topics that the script holds out with its own settings."""
    source = Path("data/build_tiny_models.py").read_text(encoding="utf-8")
    left_out = set(re.search('HELD_OUT = "([^"]+)"', source)[1].split())
    _, held_out = script.split_by_topic(rows, script.EVAL_SHARE, script.SEED)
    assert {row["topic"] for row in held_out} <= left_out < {row["topic"] for row in rows}


def test_documents_are_no_template(rows):
    """No two documents share more than a third of their 12-character pieces."""
    pieces = [{text[i : i + 12] for i in range(len(text) - 11)} for text in (row["output"] for row in rows)]
    holders = {}
    for i, own in enumerate(pieces):
        for piece in own:
            holders.setdefault(piece, []).append(i)
    shared = {}
    for found in holders.values():
        for a in found:
            for b in found:
                if a < b:
                    shared[a, b] = shared.get((a, b), 0) + 1
    assert max(n / min(len(pieces[a]), len(pieces[b])) for (a, b), n in shared.items()) < 1 / 3


def test_split_shares_no_topic(script, rows):
    train, held = script.split_by_topic(rows, 0.1, 3407)
    assert not {row["topic"] for row in train} & {row["topic"] for row in held}
    assert 0.08 <= len(held) / len(rows) <= 0.15 and len(train) + len(held) == len(rows)
    assert script.split_by_topic(rows, 0.1, 3407) == (train, held)


def test_read_rows(script, tmp_path, capsys):
    good = {"instruction": "写一则通知", "output": NOTICE}
    for name, raw in {
        "list.json": json.dumps([good]).encode(),
        "lines.jsonl": (json.dumps(good, ensure_ascii=False) + "\n\n").encode("utf-8-sig"),
        "gbk.json": json.dumps([good], ensure_ascii=False).encode("gb18030"),
    }.items():
        (tmp_path / name).write_bytes(raw)
        assert [row["output"] for row in script.read_rows(str(tmp_path / name))] == [NOTICE]
    rows = [good, {"instruction": "没有输出"}, {"output": "x"}, good, "text", None]
    (tmp_path / "mixed.json").write_text(json.dumps(rows), encoding="utf-8")
    assert len(script.read_rows(str(tmp_path / "mixed.json"))) == 1
    printed = capsys.readouterr().out
    assert (
        "row 2: no output" in printed
        and "row 3: no instruction" in printed
        and "row 4: the output of" in printed
    )


@pytest.mark.parametrize(
    "name,raw,words",
    [
        ("empty.json", b"[]", "no usable row"),
        ("broken.json", b'[{"instruction": "a",\n "output": }]', "line 2: not JSON"),
        ("broken.jsonl", b'{"instruction": "a", "output": "b"}\n{oops}\n', "line 2: not JSON"),
        ("bytes.json", b"\xff\xfe\xff\x80\x80\xff", "neither UTF-8 nor GB18030"),
        ("bad.docx", None, "does not exist"),
    ],
)
def test_read_rows_says_what_is_wrong(script, tmp_path, name, raw, words):
    if raw is not None:
        (tmp_path / name).write_bytes(raw)
    with pytest.raises(ValueError, match=words) as caught:
        script.read_rows(str(tmp_path / name))
    assert name in str(caught.value)


def test_folder_of_documents(script, tmp_path):
    script.save_docx(NOTICE, str(tmp_path / "通知.docx"))
    (tmp_path / "请示.txt").write_text(REQUEST, encoding="gb18030")
    rows = script.read_rows(str(tmp_path))
    assert {row["instruction"] for row in rows} == {"起草通知", "起草请示"}
    assert not failed(script, [row for row in rows if "通知" in row["instruction"]][0]["output"])
    (tmp_path / "坏.docx").write_bytes(b"PK")
    with pytest.raises(ValueError, match="坏.docx is not a readable .docx"):
        script.read_rows(str(tmp_path))


def test_docx_follows_the_standard(script, tmp_path):
    path = tmp_path / "sample.docx"
    script.save_docx(NOTICE, str(path))
    document = docx.Document(path)
    section = document.sections[0]
    margins = [round(getattr(section, f"{side}_margin").mm) for side in ("top", "bottom", "left", "right")]
    assert margins == [37, 35, 28, 26] and round(section.page_width.mm) == 210
    grid = section._sectPr.find(qn("w:docGrid"))
    assert [grid.get(qn(f"w:{name}")) for name in ("type", "linePitch", "charSpace")] == [
        "linesAndChars",
        "579",
        "-848",
    ]
    fonts = {line.text[:4]: line.runs[0].font.name for line in document.paragraphs if line.runs}
    assert fonts["清江市卫"] in ("方正小标宋简体", "仿宋_GB2312") and fonts["一、检查"] == "黑体"
    assert fonts["（一）器"] == "楷体_GB2312" and fonts["1.交接"] == "仿宋_GB2312"
    texts = [line.text for line in document.paragraphs if line.text.strip()]
    assert [line for line in NOTICE.split("\n") if line not in texts] == []
    footers = "".join(section.footer._element.xml + section.even_page_footer._element.xml)
    assert footers.count("PAGE") == 2 and document.settings.odd_and_even_pages_header_footer
    assert not list(tmp_path.glob("*.tmp"))


def test_page_holds_22_lines_of_28_characters(script, tmp_path):
    try:
        subprocess.run(["soffice", "--version"], capture_output=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("soffice (libreoffice-writer) is not installed")
    text = REPLY.replace("此复。", "医" * 28 * 40 + "。\n此复。")
    script.save_docx(text, str(tmp_path / "a.docx"))
    command = [
        "soffice",
        "--headless",
        "--convert-to",
        "pdf",
        "--outdir",
        str(tmp_path),
        str(tmp_path / "a.docx"),
    ]
    subprocess.run(command, capture_output=True, check=True)
    pages = subprocess.run(
        ["pdftotext", str(tmp_path / "a.pdf"), "-"], capture_output=True, text=True
    ).stdout.split("\f")
    second = [line for line in pages[1].split("\n") if "医" in line]
    assert len(second) == 22 and {len(line) for line in second} == {28}
