"""The judge of official documents: its rules, facts, faults, layout and tables; the texts are in gongwen_layouts.py."""

import http.server
import json
import re
import subprocess
import sys
import threading
import time

import docx
import pytest
from docx.oxml.ns import qn
from gongwen_layouts import (
    ADDRESSEE,
    CHECK,
    CLEAN_ROWS,
    END,
    GAMED,
    LAYOUTS,
    LETTER,
    MINUTES,
    NOTICE,
    NUMBER_LINE,
    ORDER,
    PLAN,
    PUBLIC,
    REPLY,
    REPORT,
    REQUEST,
    SUMMARY,
    TABLE,
    changed,
    frame,
)
from hypothesis import given, settings
from hypothesis import strategies as st

PROGRAM = "data/gongwen/judge.py"
SIZE = 30_000  # characters of a hostile text
LIMIT = 2.0  # seconds of processor time for it: what is quadratic takes minutes

# name, document, what is replaced, by what, the rule that must fail
BROKEN = [
    ("no such 文种", NOTICE, "检查的通知", "检查的方案", "kind"),
    ("请示报告", REQUEST, "体检车的请示", "体检车的请示报告", "kind"),
    ("title without 关于", NOTICE, "关于开展", "开展", "title_form"),
    ("title without 的", NOTICE, "检查的通知", "检查通知", "title_form"),
    ("verb and comma in the title", NOTICE, "开展消毒", "开展、消毒", "title_punctuation"),
    ("comma in the title", NOTICE, "开展消毒", "开展，消毒", "title_punctuation"),
    ("half-width quotes in the title", NOTICE, "消毒供应", '"消毒供应"', "title_punctuation"),
    ("full stop after the title", NOTICE, "检查的通知\n", "检查的通知。\n", "title_punctuation"),
    ("a remark above the title", NOTICE, "清江市卫生健康委员会关于", "现将材料发给大家。\n清江市卫生健康委员会关于", "head"),
    ("square brackets", NOTICE, "〔2024〕", "[2024]", "doc_number"),
    ("full-width parentheses", NOTICE, "函〔2024〕", "函（2024）", "doc_number"),
    ("第 in the number", NOTICE, "〕36号", "〕第36号", "doc_number"),
    ("leading zero", NOTICE, "〕36号", "〕036号", "doc_number"),
    ("two-digit year", NOTICE, "〔2024〕", "〔24〕", "doc_number"),
    ("ordinal on a notice", NOTICE, "清卫医函〔2024〕36号", "第36号", "doc_number"),
    ("nothing between 〕 and 号", NOTICE, "〕36号", "〕号", "doc_number"),
    ("number after the date", changed(NOTICE, (NUMBER_LINE, "")), "3月5日", "3月5日\n清卫〔2024〕3号", "doc_number"),
    ("second number in the body", NOTICE, "特此通知。", "清卫〔2024〕3号\n特此通知。", "doc_number"),
    ("no addressee", NOTICE, ADDRESSEE, "", "addressee"),
    ("half-width colon", NOTICE, "各医院：", "各医院:", "addressee"),
    ("addressee without colon", NOTICE, "各医院：", "各医院", "addressee"),
    ("half-width comma", NOTICE, "健康局，市属", "健康局,市属", "addressee"),
    ("indented addressee", NOTICE, "各县（市", "　　各县（市", "addressee"),
    ("salutation", NOTICE, "各县（市、区）卫生健康局，市属各医院", "尊敬的各位领导", "addressee"),
    ("addressee on a 通告", PUBLIC, "因水箱", "广大居民：\n因水箱", "addressee"),
    ("、 after （一）", NOTICE, "（一）器械", "（一）、器械", "level_form"),
    ("half-width （一）", NOTICE, "（一）器械", "(一)器械", "level_form"),
    ("1、 for 1.", NOTICE, "1.交接", "1、交接", "level_form"),
    ("一. for 一、", NOTICE, "一、检查", "一.检查", "level_form"),
    ("heading without words", NOTICE, "（三）人员培训是否覆盖全部岗位。", "（三）", "level_form"),
    ("gap at level 1", NOTICE, "二、工作", "三、工作", "level_order"),
    ("repeat at level 2", NOTICE, "（三）人员", "（二）人员", "level_order"),
    ("level 2 before level 1", NOTICE, "一、检查内容\n", "", "level_order"),
    ("level 3 starts at 2", NOTICE, "1.交接单是否齐全。\n", "", "level_order"),
    ("three levels, one skipped", NOTICE, "1.交接", "（1）交接", "level_order"),
    ("run on with a gap", LAYOUTS["OPINION"], "（三）落实", "（四）落实", "level_order"),
    ("attachment numbers with a gap", NOTICE, "2.自查", "3.自查", "attachment"),
    ("comma after an attachment", NOTICE, "评分表\n", "评分表；\n", "attachment"),
    ("half-width colon of 附件", NOTICE, "附件：1.", "附件:1.", "attachment"),
    ("附件1：", NOTICE, "附件：1.", "附件1：", "attachment"),
    ("colon on the attachment's page", NOTICE, "3月5日", "3月5日\n附件1：\n评分表", "attachment"),
    ("no organ", REPLY, "此复。\n清江市卫生健康委员会\n", "此复。\n", "organ"),
    ("date before organ", REPLY, "清江市卫生健康委员会\n2024年6月18日", "2024年6月18日\n清江市卫生健康委员会", "organ"),
    ("a sentence for an organ", REPLY, "此复。\n清江市卫生健康委员会", "此复。\n紫色的冰箱昨天跳舞", "organ"),
    ("no date", REPLY, "\n2024年6月18日", "", "date"),
    ("zero-padded date", REPLY, "2024年6月18日", "2024年06月18日", "date"),
    ("Chinese numerals in the date", REPLY, "2024年6月18日", "二〇二四年六月十八日", "date"),
    ("dotted date", REPLY, "2024年6月18日", "2024.6.18", "date"),
    ("30 February", REPLY, "2024年6月18日", "2024年2月30日", "date"),
    ("29 February 2023", REPLY, "2024年6月18日", "2023年2月29日", "date"),
    ("day missing", REPLY, "2024年6月18日", "2024年6月", "date"),
    ("date of the minutes", MINUTES, "2024年5月17日", "2024年5月32日", "date"),
    ("talk below the date", NOTICE, END, END + "\n希望以上内容对您有帮助！", "after"),
    ("two addressees of a 请示", REQUEST, "南浦县人民政府：", "南浦县人民政府，县财政局：", "single_addressee"),
    ("请示 without a request", REQUEST, "妥否，请批示。", "特此说明。", "request"),
    ("request not at the end", REQUEST, "妥否，请批示。", "妥否，请批示。\n另附有关材料供参阅。", "request"),
    ("请示 without 签发人", REQUEST, "　签发人：林致远", "", "signer"),
    ("报告 that asks", REPORT, "特此报告。", "当前经费缺口较大，恳请予以支持。", "no_request"),
    ("报告 with 请批示", REPORT, "特此报告。", "妥否，请批示。", "no_request"),
    ("批复 without citation", REPLY, "你局《关于设立南浦县第二人民医院的请示》（南卫呈〔2024〕5号）收悉。", "", "cites_request"),
    ("批复 citing a report", REPLY, "医院的请示》", "医院的报告》", "cites_request"),
    ("order of a commission", ORDER, "云岭省人民政府令", "云岭省卫生健康委员会令", "order"),
    ("order that orders nothing", ORDER, "现予公布，自2024年5月1日起施行", "请各单位认真学习领会其精神实质", "order"),
    ("order with duties of its own", ORDER, "起施行。", "起施行。各托育机构应当按季度开展自评。", "order"),
    ("markdown", NOTICE, "一、检查内容", "**一、检查内容**", "plain_text"),
    ("chat tokens", NOTICE, "特此通知。", "特此通知。<|im_end|>", "plain_text"),
    ("a line twice", NOTICE, "特此通知。", "特此通知。\n特此通知。", "body"),
    ("a loop", REPLY, "此复。", "请按规定办理，请按规定办理，请按规定办理，", "body"),
    ("no body", REPLY, REPLY.split("：\n")[1].split("\n清江市")[0] + "\n", "", "body"),
    ("a second title", NOTICE, "特此通知。", "清江市卫生健康委员会关于开展检查的通知\n特此通知。", "body"),
]  # fmt: skip

# what is given, a text that invents nothing
KNOWN = [
    ("3月5日开会，今年是2024年", "2024年3月5日"), ("3月5号，2024年", "2024年3月5日"), ("24.3.5", "2024年3月5日"),
    ("2024/3/5", "2024年3月5日"), ("2024-03-05", "2024年3月5日"), ("二〇二四年三月五日", "2024年3月5日"), ("十二月二十日", "12月20日"),
    ("2024年5月，5到8号", "2024年5月5日至8日"), ("7月11-17日", "7月11日至17日"), ("3月5日至3月9日", "共5天"),
    ("年底前完成，2024年", "2024年12月31日前完成"), ("3月底", "3月31日前"), ("一季度，2024", "2024年1月至3月"), ("上半年，2025", "2025年1月至6月"),
    ("第二季度", "二季度"), ("2024年，比去年多", "2023年"), ("2024到2026年", "2024—2026年"), ("每月20号前报", "每月20日前报送"),
    ("预算六十八万", "经费68万元"), ("68w", "68万元"), ("预算（万元）：68", "68万元"), ("大概3万5千块", "35000元"), ("两万三", "2.3万元"),
    ("2.5亿", "25000万元"), ("1,234人", "1234人"), ("一千二百三十四人", "1234人"), ("发病１２例", "发病12例"), ("12家", "十二家"),
    ("合格率百分之九十八点五", "合格率98.5%"), ("９８.５％", "98.5%"), ("三成", "30%"), ("五个工作日", "5个工作日"), ("两周内报", "14日内报送"),
    ("3天", "72小时内"), ("24小时", "1日内"), ("一个月内", "1个月内"), ("半年", "6个月"), ("下午2点半", "14时30分"),
    ("9:00到11:30", "9时至11时30分"), ("早上八点半", "8时30分"), ("8点", "8时"),
    ("甲12例，乙30例", "共42例"), ("去年100例，今年120例", "增长20%"), ("抽68家，合格59家", "合格率86.8%"), ("15%降到12%", "下降3个百分点"),
    ("186台，每台3500元", "共65.1万元"), ("县医院三台、中医院两台", "共5台"), ("三件事", "一、甲。\n二、乙。\n三、丙。\n以上三项"),
    ("沙洲镇和柳堤镇", "沙洲、柳堤两镇"), ("文号清卫发[2024]12号", "清卫发〔2024〕12号"), ("清卫医函（2024）36号", "（清卫医函〔2024〕36号）"),
    ("清江市卫健委", "清江市卫生健康委员会"), ("清江市疾控中心", "由清江市疾病预防控制中心负责"), ("清江市市场监管局", "报清江市市场监督管理局"),
    ("南浦县政府", "南浦县人民政府"), ("联系人何静澜，0566-4419027", "联系人：何静澜，电话：0566-4419027"), ("签发：林致远", "签发人：林致远"),
    ("", "20××年×月×日，×卫发〔20××〕×号，联系人：×××"), ("", "XX市卫生健康委员会\nXXXX年XX月XX日"), ("", "〔2024〕＿＿号"[:0] + "____年__月__日"),
    ("", "附件1\n第一条　为规范。\n第十二条　本办法自印发之日起施行。"), ("", "第三届"), ("", "一是加强领导。二是落实责任。"), ("", "附件：1.名单\n2.汇总表"),
    ("", "一次性医疗用品，第一，统一部署，十分重要，三级医院，二次供水，进一步，双随机"), ("", "根据《医疗机构管理条例》第三十二条"),
    ("", "执行WS/T 313—2019的要求"), ("", "拨打120急救电话"), ("", "各县（市、区）卫生健康局，市财政局，有关单位"),
]  # fmt: skip

# what is given, a text, what it invents
INVENTED = [
    ("3月5日", "3月6日", "3月6日"), ("2024年3月5日", "2023年3月5日", "2023年"), ("3月5日", "2024年3月5日", "2024年"), ("", "12月底前", "12月"),
    ("", "2019年以来", "2019年"), ("", "第三季度", "三季度"), ("", "8时30分", "8时30分"), ("8:00", "9:00", "9:00"),
    ("68万元", "86万元", "86万元"), ("68万元", "68辆", "68辆"), ("12例", "1.2万例", "1.2万例"), ("", "共计一千二百元", "一千二百元"),
    ("98.5%", "97.5%", "97.5%"), ("", "百分之三十", "百分之三十"), ("", "下降两成", "两成"), ("甲12例，乙30例", "共45例", "45例"),
    ("抽68家，合格59家", "合格率91.2%", "91.2%"), ("", "培训四百六十人次", "四百六十人"), ("", "每季度2次", "2次"), ("", "第5次会议", "5次"),
    ("", "请于三日内报送", "三日"), ("", "请于一周内报送", "一周"), ("", "三个月内", "三个月"), ("3名医生", "请于3日内报送", "3日"), ("5日内", "5个工作日内", "5个工作日"),
    ("清卫发〔2024〕12号", "清卫发〔2024〕13号", "13号"), ("清卫发〔2024〕12号", "南卫报〔2024〕12号", "南卫报"), ("", "根据国卫医发〔2021〕19号", "19号"),
    ("", "电话0566-4419027", "0566-4419027"), ("", "联系人：何静澜", "何静澜"), ("", "签发人：林致远", "林致远"), ("", "主任　周慕远", "周慕远"),
    ("", "会议由卢景行主持", "卢景行"), ("出席沈静安", "出席：沈静安、余知微", "余知微"),
    ("", "同意李建国同志任职", "李建国"), ("南浦县", "清江市卫生健康委员会关于检查的通知\n", "清江市"), ("清江市卫健委", "由南浦县人民医院承担", "南浦县"),
]  # fmt: skip

HOSTILE = (
    "的|一|1|（|《|关于|签发人|a|a |\n|\n\n |〔2024〕|2024年|3月5日\n|附件：|第|号|、|由|清江市|卫生健康局\n|一、\n|（一）|请|{|\t|×|一万"
    "|1,234,|12:30|8时|。|，|：\n|5   |*|# |清江市卫生健康委员会\n2024年3月5日\n|各单位要落实检查工作。|关于检查的通知\n|请示〔2024〕5号"
    "|\ud800|\x00|百分之|零|1.|联系人：|主任王|王小明同志|（（|a-1|0.5%|3成|<|`|🙂"
).split("|")  # fmt: skip


@pytest.fixture(scope="module")
def judge(functions):
    return functions(PROGRAM)


def written(path):
    """Return what python-docx finds in a .docx: its paragraphs and the cells of its tables."""
    lines = []
    for item in docx.Document(path).iter_inner_content():
        cells = (
            [cell.text for row in item.rows for cell in row.cells] if hasattr(item, "rows") else [item.text]
        )
        lines += cells
    return re.sub(r"[\s|]", "", "".join(lines))


def failed(judge, text):
    return [rule for rule, passed in judge.check_gongwen(text).items() if not passed]


# The form


@pytest.mark.parametrize("name", LAYOUTS)
def test_genuine_layout_has_no_false_fault(judge, name):
    wrong = [message for message in judge.check_form(LAYOUTS[name]).values() if message]
    assert wrong + judge.wording_faults(LAYOUTS[name]) == []
    assert judge.format_score(LAYOUTS[name]) == 1.0


def test_layouts_are_many_and_of_all_kinds(judge):
    kinds = {judge.kind_of_document(text) for text in LAYOUTS.values()}
    assert len(set(LAYOUTS.values())) >= 90 and kinds >= set(judge.KINDS) - {"命令"}


@pytest.mark.parametrize("name,text,old,new,rule", BROKEN, ids=[row[0] for row in BROKEN])
def test_broken_rule_fails(judge, name, text, old, new, rule):
    broken = changed(text, (old, new))
    assert failed(judge, text) == [] and rule in failed(judge, broken)
    assert 0 < judge.format_score(broken) < 1
    assert judge.check_form(broken)[rule] in judge.faults({"instruction": ""}, broken)


def test_message_names_the_line(judge):
    assert judge.check_form(changed(NOTICE, ("〕36", "〕036")))["doc_number"].startswith("第2行")
    assert judge.check_form("\n\n" + changed(NOTICE, ("2.植入", "3.植入")))["level_order"].startswith(
        "第11行"
    )
    assert judge.check_form(changed(NOTICE, (ADDRESSEE, "")))["addressee"].startswith("缺")


@pytest.mark.parametrize(
    "text",
    [
        "",
        "你好",
        "今天天气很好，我们去公园吧。",
        "发烧怎么办？多喝水，多休息，三天不退请就医。",
        "1.买菜\n2.做饭",
        "# Title\n\nHello.",
        "\n" * 50,
    ],
)
def test_no_document_scores_nothing(judge, text):
    assert judge.format_score(text) == 0.0 and judge.faults({"instruction": "写一份通知"}, text)


@pytest.mark.parametrize("place", range(1, NOTICE.count("\n") + 2))
def test_a_strange_line_never_makes_zero(judge, place):
    lines = NOTICE.split("\n")
    assert judge.format_score("\n".join([*lines[:place], "~~@@ 12 ~~", *lines[place:]])) > 0.6


@pytest.mark.parametrize(
    "line,mark",
    [("一、甲", (1, 1)), ("十、甲", (1, 10)), ("十一、甲", (1, 11)), ("二十、甲", (1, 20)), ("二十三、甲", (1, 23)), ("（九）甲", (2, 9)), ("12.甲", (3, 12)),
     ("3.5万", None), ("（4）甲", (4, 4)), ("第一，甲", None), ("2024年", None)],
)  # fmt: skip
def test_heading(judge, line, mark):
    assert judge.heading(line) == mark


@settings(deadline=None)
@given(text=st.text(alphabet="一二三（）、.1〔〕号关于的通知\n：；。年月日20 　附件请示×|\t", max_size=200))
def test_scores_stay_in_range(text):
    from conftest import functions_of

    judge = functions_of(PROGRAM)
    assert 0 <= judge.format_score(text) <= 1 and 0 <= judge.term_score(text) <= 1
    assert judge.faults({"instruction": "写一份通知", "input": text}, text)


# The facts


@pytest.mark.parametrize("told,text", KNOWN)
def test_what_follows_is_not_invented(judge, told, text):
    assert judge.invented(told, text) == []


@pytest.mark.parametrize("told,text,what", INVENTED)
def test_invented(judge, told, text, what):
    assert [found for found in judge.invented(told, text) if what in found]


def test_laws_are_listed_apart(judge):
    text = "根据《医疗机构管理条例》和《清江市急救办法》，现通知如下。"
    assert judge.invented("", text) == []
    assert judge.to_verify("依据是医疗机构管理条例", text) == ["《清江市急救办法》"]


@pytest.mark.parametrize(
    "text,value",
    [("十二", 12), ("二十", 20), ("一百零五", 105), ("三千二百", 3200), ("一万二", 12000), ("三百五", 350), ("二〇二四", 2024), ("两", 2), ("半", 0.5),
     ("1,234.5", 1234.5), ("一亿三千万", 1.3e8), ("九万九千九百九十九", 99999)],
)  # fmt: skip
def test_chinese_number(judge, text, value):
    assert judge.chinese_number(text) == value


def test_fact_score(judge):
    told = "文号：清卫医函〔2024〕36号\n日期：2024年3月5日\n完成率98.5%，共312例"
    assert judge.fact_score(told, told) == 1
    assert judge.fact_score(told, "清卫医函〔2024〕36号，3月5日") == 0.5
    assert judge.fact_score(told, "三百一十二例", "完成312例") == 1  # only what the reference uses is wanted
    assert judge.fact_score("没有数字", "任何文字") is None


# The faults


@pytest.mark.parametrize("name", CLEAN_ROWS)
def test_wanted_document_is_clean(judge, name):
    row = CLEAN_ROWS[name]
    assert judge.faults(row, row["output"]) == []
    assert judge.faults({"instruction": row["instruction"], "input": row["input"]}, row["output"]) == []


@pytest.mark.parametrize("name", GAMED)
def test_gamed_document_is_not_clean(judge, name):
    row, text = GAMED[name]
    assert judge.faults(row, text)
    assert judge.faults({"instruction": row["instruction"], "input": row["input"]}, text)


def test_gamed_documents_are_many():
    assert len(GAMED) >= 60 and len({text for _, text in GAMED.values()}) == len(GAMED)


@pytest.mark.parametrize("name", CLEAN_ROWS)
def test_skeleton_is_not_clean(judge, name):
    row = CLEAN_ROWS[name] | {"reference": CLEAN_ROWS[name]["output"]}
    assert judge.faults(row, judge.skeleton(row))
    right_frame = frame(row["input"] or row["instruction"], row["output"].split("\n")[0])
    assert judge.faults(row, right_frame)


def test_a_draft_may_be_put_right(judge):
    draft = changed(
        NOTICE, ("〔2024〕", "[2024]"), ("（一）器械", "（一）、器械"), ("2024年3月5日", "2024年03月05日")
    )
    row = {"instruction": "下面这份通知格式有错，请改正。", "input": draft, "output": NOTICE}
    assert judge.faults(row, NOTICE) == [] and judge.faults(row, draft)
    assert judge.faults(row, frame(draft))


def test_an_answer_that_asks_for_facts(judge):
    wanted = "材料中没有检查的时间和范围，无法成文。请补充检查起止时间、检查对象和报送要求后再起草通知。"
    row = {"instruction": "写一份检查的通知，时间和范围你看着办。", "input": "", "output": wanted}
    assert judge.faults(row, wanted) == []
    assert judge.faults(row, NOTICE) and judge.faults(row, "好的。")


def test_side_remarks_need_not_appear(judge):
    row = CHECK | {"input": CHECK["input"] + "食堂3月18日停水。"}
    assert judge.faults(row, NOTICE) == []


def test_term_score_cannot_be_gamed(judge):
    terms = sorted({term for group in judge.WORDS["terms"].values() for term in group})
    assert judge.term_score("、".join(terms) + "。") == 0
    assert judge.term_score("。".join("，".join(terms[i : i + 4]) for i in range(0, 400, 4)) + "。") == 0
    assert judge.term_score("加强督导。") < 0.1
    assert judge.term_score("各单位要加强督导检查，确保整改到位。" * 40) <= 0.2
    assert judge.term_score(NOTICE) > 0.6
    talk = (
        "咱们这个事挺好的，大家伙赶紧的弄一下，反正差不多就行了。其实我觉得没问题，老是这样也麻烦您帮个忙。"
        * 2
    )
    assert judge.term_score(talk + "请各单位落实责任。") < 0.2


@pytest.mark.parametrize("piece", HOSTILE, ids=ascii)
def test_hostile_text_takes_linear_time(judge, piece):
    """A text of 100,000 characters takes about three times as long as the share of it tried here."""
    text = (piece * (SIZE // len(piece) + 1))[:SIZE]
    document = changed(NOTICE, ("特此通知。", text))
    for work in (
        lambda: judge.check_form(document),
        lambda: judge.check_form(text),
        lambda: judge.invented(CHECK["input"], document),
        lambda: judge.invented(document, NOTICE),
        lambda: judge.faults(CHECK, document),
    ):
        begin = time.process_time()
        work()
        assert time.process_time() - begin < LIMIT


# The layout


def test_docx_follows_the_standard(judge, tmp_path):
    path = tmp_path / "sample.docx"
    judge.save_docx(NOTICE, str(path))
    document = docx.Document(path)
    section = document.sections[0]
    margins = [round(getattr(section, f"{side}_margin").mm) for side in ("top", "bottom", "left", "right")]
    assert margins == [37, 35, 28, 26] and round(section.page_width.mm) == 210
    grid = section._sectPr.find(qn("w:docGrid"))
    values = [grid.get(qn(f"w:{name}")) for name in ("type", "linePitch", "charSpace")]
    assert values == ["linesAndChars", "579", "-848"]
    fonts = {line.text[:4]: line.runs[0].font.name for line in document.paragraphs if line.runs}
    assert (
        fonts["一、检查"] == "黑体"
        and fonts["（一）器"] == "楷体_GB2312"
        and fonts["1.交接"] == "仿宋_GB2312"
    )
    title = next(line for line in document.paragraphs if line.text == NOTICE.split("\n")[0])
    assert title.runs[0].font.name == "方正小标宋简体" and title.runs[0].font.size.pt == 22
    texts = [line.text for line in document.paragraphs if line.text.strip()]
    assert [line for line in NOTICE.split("\n") if line not in texts] == []
    footers = "".join(section.footer._element.xml + section.even_page_footer._element.xml)
    assert footers.count("PAGE") == 2 and document.settings.odd_and_even_pages_header_footer
    assert not section.different_first_page_header_footer and not list(tmp_path.glob("*.tmp"))


@pytest.mark.parametrize("name", LAYOUTS)
def test_docx_loses_no_line(judge, tmp_path, name):
    judge.save_docx(LAYOUTS[name], str(tmp_path / "a.docx"))
    assert sorted(written(tmp_path / "a.docx")) == sorted(re.sub(r"[\s|]", "", LAYOUTS[name]))


def test_docx_of_letters_signers_attachments_and_tables(judge, tmp_path):
    def saved(text):
        judge.save_docx(text, str(tmp_path / "a.docx"))
        return docx.Document(tmp_path / "a.docx")

    assert saved(LETTER).sections[0].different_first_page_header_footer
    signer = next(line for line in saved(REQUEST).paragraphs if "签发人" in line.text)
    assert signer.text == "南卫呈〔2024〕7号\t签发人：林致远" and len(signer.paragraph_format.tab_stops) == 1
    plan = saved(PLAN)
    page = next(line for line in plan.paragraphs if line.text == "附件")
    assert page.paragraph_format.page_break_before and page.runs[0].font.name == "黑体"
    foot = next(line for line in plan.paragraphs if line.text.startswith("抄送"))
    assert foot.runs[0].font.size.pt == 14 and "w:pBdr" in foot._p.xml
    cells = [[cell.text for cell in row.cells] for row in saved(TABLE).tables[0].rows]
    assert cells[1] == ["南浦县", "12000", "2024年9月30日"] and len(cells) == 4


@pytest.mark.parametrize(
    "text",
    ["", "\x00\x1b紫色\ud800\ufffe的冰箱", "🙂" * 20, "\ud83d", "关于\x0c检查的通知\n\x0b", "a" * 5000],
)
def test_docx_of_text_that_xml_cannot_hold(judge, tmp_path, text):
    judge.save_docx(text, str(tmp_path / "a.docx"))
    kept = "".join(
        letter
        for letter in text
        if letter.isprintable() and letter != "\ufffe" and not "\ud800" <= letter <= "\udfff"
    )
    assert written(tmp_path / "a.docx") == re.sub(r"\s", "", kept)


def test_page_holds_22_lines_of_28_characters(judge, tmp_path):
    try:
        subprocess.run(["soffice", "--version"], capture_output=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("soffice (libreoffice-writer) is not installed")
    judge.save_docx(changed(REPLY, ("此复。", "医" * 28 * 40 + "。\n此复。")), str(tmp_path / "a.docx"))
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
    pdf = subprocess.run(["pdftotext", str(tmp_path / "a.pdf"), "-"], capture_output=True, text=True)
    second = [line for line in pdf.stdout.split("\f")[1].split("\n") if "医" in line]
    assert len(second) == 22 and {len(line) for line in second} == {28}


# The program


def run(*arguments):
    command = [sys.executable, PROGRAM, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, encoding="utf-8", timeout=120)


def test_one_document(judge, tmp_path):
    good, bad = tmp_path / "通知.txt", tmp_path / "错.docx"
    good.write_text(NOTICE, encoding="gb18030")
    judge.save_docx(changed(NOTICE, ("（三）人员", "（五）人员")), str(bad))
    before = bad.read_bytes()
    done = run(good)
    assert (
        done.returncode == 0
        and "错" not in done.stdout.replace(str(tmp_path), "")
        and (tmp_path / "通知.layout.docx").is_file()
    )
    done = run(bad)
    assert done.returncode == 1 and "“（五）人员培训" in done.stdout and "层次顺序" in done.stdout
    assert bad.read_bytes() == before and (tmp_path / "错.layout.docx").is_file()


def test_folder_of_documents(judge, tmp_path):
    (tmp_path / "a.txt").write_text(NOTICE, encoding="utf-8")
    judge.save_docx(SUMMARY, str(tmp_path / "b.docx"))
    assert run(tmp_path).returncode == 0
    (tmp_path / "c.txt").write_text(changed(NOTICE, ("检查的通知", "检查的方案")), encoding="utf-8")
    (tmp_path / "d.doc").write_bytes(b"\xd0\xcf\x11\xe0")
    (tmp_path / "e.docx").write_bytes(b"PK")
    (tmp_path / "~$b.docx").write_bytes(b"x")
    done = run(tmp_path)
    rows = {line.split("|")[1].strip(): line for line in done.stdout.splitlines() if line.startswith("|")}
    assert (
        done.returncode == 1
        and "文种" in rows["c.txt"]
        and "not read" in rows["d.doc"]
        and "not read" in rows["e.docx"]
    )
    assert "~$b.docx" not in rows and "通知" in rows["a.txt"] and "批复" in rows["b.docx"]


@pytest.mark.parametrize(
    "name,raw,words",
    [("none.docx", None, "none.docx"), ("rows.json", b"[]", "rows.json"), ("a.docx", b"PK", "a.docx"), ("a.pdf", b"%PDF", "a.pdf"), ("a.txt", b"\xff\x80\x80\x80\xff" * 9, "a.txt")],
)  # fmt: skip
def test_unreadable_file_is_named(tmp_path, name, raw, words):
    if raw is not None:
        (tmp_path / name).write_bytes(raw)
    done = run(tmp_path / name)
    assert done.returncode == 1 and words in done.stdout and "Traceback" not in done.stderr + done.stdout


def answers(rows=CLEAN_ROWS):
    other = [row["output"] for row in rows.values()][::-1]
    return [
        {"prompt": [{"role": "user", "content": row["instruction"]}], "instruction": row["instruction"], "input": row["input"],
         "reference": row["output"], "before": text[:90] + "``` <b>x</b>", "after": row["output"], "before_ended": False, "after_ended": True}
        for row, text in zip(rows.values(), other)
    ]  # fmt: skip


def write_run(folder, rows, **metrics):
    folder.mkdir(exist_ok=True)
    lines = [json.dumps(row, ensure_ascii=False) for row in rows]
    (folder / "answers.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    if metrics:
        (folder / "metrics.json").write_text(json.dumps(metrics), encoding="utf-8")


def test_run_is_scored(tmp_path):
    rows = [row | {"exported": row["after"]} for row in answers()]
    losses = {"before": {"loss": [3.25, 3.75] * 4}, "after": {"loss": [1.0, 1.5] * 4}}
    write_run(tmp_path, rows, model="data/tiny-qwen2.5", device="CPU", losses=losses, train={"seconds": 12})
    done = run(tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    metrics = json.loads((tmp_path / "metrics.json").read_text(encoding="utf-8"))
    assert (
        metrics["after"]["loss"] == 1.25
        and metrics["losses"] == losses
        and metrics["train"] == {"seconds": 12}
    )
    assert metrics["difference"]["loss"]["value"] == -2.25 and metrics["difference"]["clean_rate"]["p"] < 0.05
    rates = {
        name: metrics[name]["clean_rate"] for name in ("before", "after", "exported", "skeleton", "reference")
    }
    assert rates == {"before": 0, "after": 1, "exported": 1, "skeleton": 0, "reference": 1}
    assert metrics["difference"]["clean_rate"]["value"] == 1 and metrics["before"]["ended_by_itself"] == 0
    names = [line.split("|")[1].strip() for line in done.stdout.splitlines() if line.startswith("|")]
    assert names[2] == "clean_rate" and names[-1] == "loss" and "nan" not in done.stdout
    report = (tmp_path / "report.md").read_text(encoding="utf-8")
    assert "![loss](loss.png)" in report and re.search(r"\| loss +\| +3.500 \| +1.250 \|", report)
    assert (
        report.count("## Document") == 3
        and "rehearsal" in report.lower()
        and '"seconds": 12' in report
        and docx.Document(tmp_path / "sample.docx").paragraphs
    )


def test_model_text_stays_in_its_fence(tmp_path):
    write_run(tmp_path, answers())
    assert run(tmp_path).returncode == 0
    report = (tmp_path / "report.md").read_text(encoding="utf-8")
    assert "rehearsal" not in report.lower()
    fence, inside = "", []
    for line in report.splitlines():
        if fence:
            fence = "" if line == fence else fence
            inside.append(line)
        elif re.match("```+$", line):
            fence = line
    assert not fence and any("<b>x</b>" in line for line in inside)
    assert "<b>" not in report.replace("".join(inside), "") or all(
        "<b>" not in line for line in report.splitlines() if line not in inside
    )


def test_run_of_32_documents_takes_seconds(tmp_path):
    write_run(tmp_path, (answers() * 5)[:32])
    begin = time.time()
    assert run(tmp_path).returncode == 0 and time.time() - begin < 30


def test_bad_answers_are_named(tmp_path):
    write_run(tmp_path, answers())
    with (tmp_path / "answers.jsonl").open("a", encoding="utf-8") as file:
        file.write('{"prompt": []}\n')
    done = run(tmp_path)
    assert (
        done.returncode == 1
        and f"line {len(CLEAN_ROWS) + 1}" in done.stdout
        and "Traceback" not in done.stderr
    )
    (tmp_path / "answers.jsonl").write_text("\n", encoding="utf-8")
    assert "no row" in run(tmp_path).stdout


def test_server_answers_the_prompts(judge, tmp_path, monkeypatch):
    asked = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self):
            asked.append((self.path, json.loads(self.rfile.read(int(self.headers["Content-Length"])))))
            body = json.dumps(
                {"choices": [{"message": {"content": NOTICE}, "finish_reason": "stop"}]}
            ).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_):
            pass

    server = http.server.HTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setattr(judge, "ENDPOINT", f"http://127.0.0.1:{server.server_port}/v1")
    write_run(tmp_path, answers())
    try:
        assert "exported" in judge.score_run(tmp_path)
    finally:
        server.shutdown()
        server.server_close()
    path, body = asked[0]
    assert (
        len(asked) == len(CLEAN_ROWS)
        and path == "/v1/chat/completions"
        and body["temperature"] == 0
        and body["max_tokens"] > 0
    )
    metrics = json.loads((tmp_path / "metrics.json").read_text(encoding="utf-8"))
    assert metrics["exported"]["clean_rate"] == pytest.approx(1 / len(CLEAN_ROWS), abs=1e-4)
    with pytest.raises(ValueError, match="gives no answer"):
        judge.ask([])
