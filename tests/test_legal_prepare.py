"""Statutes, cases and questions: numerals, articles, versions, dates, files, rows, split, the sample, speed."""

import csv
import io
import json
import os
import random
import re
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest
from docx import Document
from docx.oxml import parse_xml
from hypothesis import given, settings
from hypothesis import strategies as st

ROOT = Path(__file__).resolve().parent.parent
SAMPLE = ROOT / "data" / "legal"
PROGRAM = "data/legal/prepare.py"
HEAD = "某市测试条例\n（2020年1月2日某市人民代表大会通过　自2020年3月1日起施行）\n"


@pytest.fixture(scope="module")
def legal(functions):
    return functions(PROGRAM)


@pytest.fixture(scope="module")
def parse(legal):
    """Return parse(text) -> (articles, what was counted)."""

    def parse(text: str, source: str = "a.txt"):
        log = Counter()
        return legal.newest_articles([legal.parse_statute(text, source, log)], log), +log

    return parse


@pytest.fixture
def build(legal, tmp_path):
    """Return build(name=content, ...) -> (rows, counts) of files written to a folder of their own."""

    def build(**files):
        folder = tmp_path / "sources"
        folder.mkdir(exist_ok=True)
        for name, content in files.items():
            path = folder / name.replace("__", ".")
            path.write_bytes(content if isinstance(content, bytes) else content.encode())
        counts = legal.build(folder, tmp_path / "out.json")
        return json.loads((tmp_path / "out.json").read_text(encoding="utf-8")), counts

    return build


def statute(*articles: str, head: str = HEAD) -> str:
    return head + "\n".join(articles) + "\n"


def labels(legal, articles) -> list[str]:
    return [legal.label(article.number, article.suffix) for article in articles]


def texts_of(rows) -> dict[str, str]:
    """Return article -> text of the rows that quote a whole article."""
    whole = [
        row for row in rows if row["meta"]["kind"] == "article-recall" and "款" not in row["instruction"]
    ]
    return {
        row["meta"]["cited"][0].partition("》")[2]: row["output"].partition("规定：\n")[2] for row in whole
    }


# Numerals


NUMERALS = (
    "一 1  九 9  十 10  一十 10  十一 11  十九 19  二十 20  九十九 99  一百 100  一百零一 101  一百〇一 101  一百一十 110  一百十 110"
    "  一百一十二 112  一百十二 112  一百二十三 123  两百 200  二百 200  两百零五 205  九百九十九 999  一千 1000  一千零五 1005"
    "  一千零一十 1010  一千零一十六 1016  一千二百 1200  一千二百六十 1260  两千零二十 2020  九千九百九十九 9999  一〇五 105"
    "  二〇二〇 2020  12 12  ０１２ 12  １０５ 105  9999 9999  一千○三 1003"
)
NO_NUMERALS = "零 0 00 百 百二十 一百二 一百零 零五百 一百零十 一千五 十十 二十十 一万 10000 一百2 1百 两两百 一百零零一 第一 -3 3.5 ² 五百一千 一百一百"


@pytest.mark.parametrize("pair", NUMERALS.split("  "))
def test_numeral_is_read(legal, pair):
    text, value = pair.split(" ")
    assert legal.number(text) == legal.number(" ".join(text)) == int(value)


@pytest.mark.parametrize("text", ["", None, *NO_NUMERALS.split(" ")])
def test_what_is_no_numeral_is_refused(legal, text):
    assert legal.number(text) == 0


def chinese(value: int) -> str:
    """Write a number the slow way, independently of the program."""
    text, zero = "", False
    for unit, name in ((1000, "千"), (100, "百"), (10, "十"), (1, "")):
        digit = value // unit % 10
        if digit:
            text += ("零" if zero and text else "") + "〇一二三四五六七八九"[digit] + name
        zero = not digit
    return text[1:] if text.startswith("一十") else text


@settings(max_examples=300, deadline=None)
@given(st.integers(1, 9999))
def test_numerals_round_trip(functions, value):
    legal = functions(PROGRAM)
    assert (
        legal.number(chinese(value))
        == legal.number(str(value))
        == legal.number(legal.numeral(value))
        == value
    )
    assert legal.numeral(value).replace("零", "") == chinese(value).replace("零", "")


@pytest.mark.parametrize("value", [0, -1, 10000])
def test_only_1_to_9999_is_written(legal, value):
    with pytest.raises(ValueError, match="1 to 9999"):
        legal.numeral(value)


# Where articles begin


@pytest.mark.parametrize("gap", ["　", " ", "", "\t", "：", "\n", "　\n　　"])
def test_article_with_and_without_space(legal, parse, gap):
    articles, log = parse(
        statute(*(f"第{n}条{gap}单位应当做好第{i}项工作。" for i, n in enumerate("一二三", 1)))
    )
    assert labels(legal, articles) == ["第一条", "第二条", "第三条"]
    assert [a.text for a in articles] == [f"单位应当做好第{i}项工作。" for i in (1, 2, 3)]
    assert not log


@pytest.mark.parametrize("forms", ["9 10 11", "９ １０ １１", "九 十 十一", "九 10 １１", "九 一十 一一"])
def test_numbers_in_every_form(legal, parse, forms):
    articles, log = parse(statute(*(f"第 {form} 条　甲乙丙丁。" for form in forms.split())))
    assert labels(legal, articles) == ["第九条", "第十条", "第十一条"]
    assert log == {"warning: gap in the numbering": 1}  # the file starts at 9


@pytest.mark.parametrize(
    ("written", "number"),
    [
        ("第一千二百六十条　甲。", 1260),
        ("第 一 百 零 五 条 甲。", 105),
        ("第1005条 甲。", 1005),
        ("第　十　条　甲。", 10),
    ],
)
def test_numbers_spaced_and_large(parse, written, number):
    assert [(a.number, a.text) for a in parse(statute(written))[0]] == [(number, "甲。")]


def test_inserted_articles(legal, parse):
    articles, log = parse(statute("第一条　甲。", "第一条之一　乙。", "第一条之二　丙。", "第二条　丁。"))
    assert labels(legal, articles) == ["第一条", "第一条之一", "第一条之二", "第二条"]
    assert not log


CITATIONS = """依照本法第十条的规定，可以申请。
第十条的规定，适用于前款。
第十条、第十一条所列单位应当报告。
第十条第二款规定的期限为三日。
第十条和第十一条另有规定的，从其规定。
第十条至第十二条不适用于个人。
第十条规定的期限，自次日起算。
第十条所称单位，包括个体工商户。
第十条之规定不溯及既往。
第三条以外的单位参照执行。
第三条规定的期限，自次日起算。
第三条第一款所列情形除外。""".split("\n")


@pytest.mark.parametrize("line", CITATIONS)
@pytest.mark.parametrize("gap", ["　", ""])
def test_a_cited_article_opens_none(legal, parse, line, gap):
    heads = [f"第{legal.numeral(n)}条{gap}单位应当登记。" for n in range(1, 10)]
    articles, log = parse(statute(*heads, line, f"第十条{gap}结束。"))
    assert labels(legal, articles) == [f"第{legal.numeral(n)}条" for n in range(1, 11)]
    assert articles[8].paragraphs == [["单位应当登记。"], [line]]
    assert not log


@pytest.mark.parametrize(
    "text",
    [
        "规定本市特别重大事项的地方性法规，由市人民代表大会通过。",
        "以下车辆应当安装定位装置。",
        "各项收费由主管部门规定。",
        "第一条所称单位，包括个体工商户。",
        "以上交易所为被告的案件，由本院管辖。",
    ],
)
def test_a_glued_article_may_begin_like_a_citation(parse, text):
    articles, log = parse(statute("第一条单位应当登记。", f"第二条{text}", "第三条单位应当年检。"))
    assert [a.text for a in articles] == ["单位应当登记。", text, "单位应当年检。"] and not log


def test_a_citation_at_the_start_of_a_wrapped_line(legal, parse):
    lines = [
        "第一条　甲。",
        "第二条　违反本条例",
        "第三条的规定，依照本条例",
        "第四条",
        "处理。",
        "第三条　乙。",
    ]
    articles, log = parse(statute(*lines))
    assert labels(legal, articles) == ["第一条", "第二条", "第三条"]
    assert articles[1].paragraphs == [["违反本条例第三条的规定，依照本条例第四条处理。"]]
    assert not log


@pytest.mark.parametrize("gap", ["　", ""])
@pytest.mark.parametrize("above", ["没有句号的一行", "其他规定，", "三、没有认出来的，标题"])
def test_an_article_opens_whatever_stands_above(parse, gap, above):
    articles, log = parse(
        statute(f"第一条{gap}甲应当登记。", above, f"第二条{gap}乙应当登记。", f"第三条{gap}丙。")
    )
    assert [a.number for a in articles] == [1, 2, 3] and articles[1].text == "乙应当登记。" and not log


def test_articles_in_one_line(parse):
    articles, _ = parse(statute("第一条　甲应当登记。第二条　乙依照第一条的规定办理。 第三条 丙。"))
    assert [a.text for a in articles] == ["甲应当登记。", "乙依照第一条的规定办理。", "丙。"]


def test_unreadable_number_is_not_added_to_the_article_before(parse):
    articles, log = parse(statute("第一条　甲。", "第百二条　乙。", "丙。", "第二条　丁。"))
    assert [a.text for a in articles] == ["甲。", "丁。"]
    assert log["dropped: article with an unreadable number"] == log["dropped: line outside the articles"] == 1


# Headings


HEADINGS = """第二章 附则
第二章附则
第 二 章　附　则
第二编 物权
第一分编 通则
第二节　听取和审议报告，审查和批准决算，预算的执行
第五节 生活、卫生。
附则
附　则
总 则
二、赔偿责任
（二）赔偿责任
二 赔偿责任
赔偿责任
旅游资源的利用
“三同时”制度（试行）
二、赔偿责任
第一节 一般规定""".split("\n")


@pytest.mark.parametrize("gap", ["　", ""])
@pytest.mark.parametrize("heading", [*HEADINGS, "二、赔偿责任\n（一）一般规定", "第二章 责任\n赔偿责任"])
def test_headings_are_no_text(parse, heading, gap):
    text = statute(
        f"第一条{gap}甲应当登记。", f"第二条{gap}乙应当登记。", heading, f"第三条{gap}丙应当登记。"
    )
    articles, log = parse(text)
    assert [a.text for a in articles] == ["甲应当登记。", "乙应当登记。", "丙应当登记。"]
    assert articles[2].place == [re.sub(r"\s", "", line) for line in heading.split("\n")] and not log


@pytest.mark.parametrize(
    "last",
    [
        "（二）其他情形",
        "二、精神病人",
        "没有句号",
        "第二章的规定适用于单位。",
        "第二节规定的程序",
        "附表所列收费标准适用于单位。",
        "其他情形。",
    ],
)
def test_last_lines_of_an_article_are_no_headings(parse, last):
    first = (
        ["第一条　有下列情形的：", "（一）未成年人", last]
        if "、" in last or "（" in last
        else ["第一条　甲，", last]
    )
    articles, _ = parse(statute(*first, "第二条　乙。"))
    assert [a.number for a in articles] == [1, 2]
    assert re.sub(r"\s", "", articles[0].text).endswith(last)


def test_cases_of_headings(build):
    """一、… above articles, with and without spaces: nothing of the headings is text, no article is lost."""
    lines = """清江市人民法院关于审理快递纠纷若干问题的解释
（2024年3月1日公布，自2024年4月1日起施行）
一、一般规定
第一条 本解释所称快递纠纷，是指寄件人、收件人与快递企业之间的纠纷。
第二条 快递企业应当妥善保管快件，不得擅自拆开。
二、赔偿责任
第三条 快件在寄递中丢失的，快递企业应当按照约定赔偿。
第四条 没有约定的，按照快件的实际价值赔偿。
三、附则
第五条 本解释自2024年4月1日起施行。
"""
    wanted = dict(line.split(" ") for line in lines.split("\n") if line.startswith("第"))
    for text in (
        lines,
        lines.replace("条 ", "条"),
        lines.replace("条 ", "条\n"),
        lines.replace("条 ", "条　"),
    ):
        rows, counts = build(a__txt=text)
        assert texts_of(rows) == wanted and counts["articles"] == 5 and not counts["warnings"]
        assert {row["meta"]["effective"] for row in rows} == {"2024-04-01"}


def test_parts_chapters_sections(parse):
    lines = [
        "第一编 总则",
        "第一章 基本规定",
        "第一条　甲。",
        "第二编 物权",
        "第一分编 通则",
        "第一章 一般规定",
    ]
    lines += ["第一节 定义", "第二条　乙。", "第二章 所有权", "第三条　丙。", "附　则", "第四条　丁。"]
    articles, _ = parse(statute(*lines))
    assert [a.place for a in articles] == [
        ["第一编总则", "第一章基本规定"],
        ["第二编物权", "第一分编通则", "第一章一般规定", "第一节定义"],
        ["第二编物权", "第一分编通则", "第二章所有权"],
        ["第二编物权", "第一分编通则", "附则"],
    ]


@pytest.mark.parametrize(
    "contents",
    [
        "目　录\n第一章　总　则\n　第一节　目的\n第二章　附则……………2\n",
        "目录\n第一条 目的\n第二条 范围\n",
        "目次\n第一章 总则\t1\n第二章 附则\t2\n",
    ],
)
def test_table_of_contents_is_no_text(parse, contents):
    body = "第一章　总　则\n第一节　目的\n第一条　为了安全，制定本条例。\n第二章　附则\n第二条　本条例适用于单位。\n"
    articles, _ = parse(HEAD + contents + body)
    assert [a.text for a in articles] == ["为了安全，制定本条例。", "本条例适用于单位。"]
    assert [a.place for a in articles] == [["第一章总则", "第一节目的"], ["第二章附则"]]
    assert articles[0].law == "某市测试条例"


# Inside an article


def test_paragraphs_items_and_subitems(legal, parse):
    lines = [
        "第一条　单位应当具备下列条件：",
        "（一）有场所；",
        "（二）有符合下列要求的设备：",
        "1.完好；",
        "2.经过校准；",
    ]
    lines += ["(三) 项目名称清楚。", "有下列情形之一的，不得登记：", "1．材料虚假；", "2、逾期未补正。"]
    (article,), _ = parse(statute(*lines))
    assert [len(p) for p in article.paragraphs] == [6, 3]
    first = [
        "第一款",
        "第一款第一项",
        "第一款第二项",
        "第一款第二项第一目",
        "第一款第二项第二目",
        "第一款第三项",
    ]
    assert [place for place, _ in legal.clauses(article)] == [
        *first,
        "第二款",
        "第二款第一项",
        "第二款第二项",
    ]
    text = legal.explain(article)
    assert "共2款，第一款列有3项，第二款列有2项。" in text
    assert (
        "第一款（应当）：单位应当具备下列条件：" in text
        and "第二款（不得）：有下列情形之一的，不得登记：" in text
    )


def test_wrapped_lines_are_one_paragraph(parse):
    (article,), _ = parse(statute("第一条　单位应当每年组织一次", "检查，并公布", "结果。", "检查不得收费。"))
    assert article.paragraphs == [["单位应当每年组织一次检查，并公布结果。"], ["检查不得收费。"]]


@pytest.mark.parametrize(
    "annex", ["附件：收费标准", "附：收费标准", "附表 收费标准", "附件一", "附录", "附图："]
)
def test_annex_and_text_between_chapters_belong_to_no_article(parse, annex):
    lines = ["第一条　甲。", "第二章 附则", "编者注。", "第二条　乙。", annex, "每次十元。"]
    articles, log = parse(statute(*lines))
    assert [a.text for a in articles] == ["甲。", "乙。"]
    assert log == {"dropped: line outside the articles": 3}


def test_empty_article_and_text_that_no_model_may_see_are_counted(parse):
    articles, log = parse(
        statute("第一条　甲。", "第二条　", "第三条　丙<|im_end|>。", "第四条　丁\ufffd。", "第五条　戊。")
    )
    assert [a.number for a in articles] == [1, 5]
    assert log["dropped: article with no text"] == 1
    assert log["dropped: article with what is no text to train on"] == 2


# Title, dates, versions


@pytest.mark.parametrize(
    ("head", "law", "effective"),
    [
        (HEAD, "某市测试条例", "2020-03-01"),
        (
            "《某市 测试办法（示例）》\n(2021年5月6日发布，自2021年7月1日起施行)\n",
            "某市测试办法（示例）",
            "2021-07-01",
        ),
        (
            "某市人民政府令\n第五号\n某市测试规定\n（二〇二〇年五月六日公布　自二〇二〇年十二月三十一日起施行）\n",
            "某市测试规定",
            "2020-12-31",
        ),
        ("某市测试规定\n（2019年2月3日公布，自公布之日起施行）\n", "某市测试规定", "2019-02-03"),
        ("某市测试规定\n（2019年2月3日公布，自公布之日起30日后施行）\n", "某市测试规定", "2019-03-05"),
        ("某市测试规定\n（2019年2月3日印发，自印发之日起三十日后实施）\n", "某市测试规定", "2019-03-05"),
        (
            "某市测试法\n（1999年1月1日通过　自1999年3月1日起施行\n根据2018年1月1日《决定》修正　自2018年5月1日起施行）\n",
            "某市测试法",
            "2018-05-01",
        ),
        (
            "某市测试法\n2001年10月10日 某会议通过\n2001年10月25日 某令第320号公布\n2002年1月1日 施行\n",
            "某市测试法",
            "2002-01-01",
        ),
        ("某市测试法\n施行日期：2024-04-01\n", "某市测试法", "2024-04-01"),
        ("某市测试法\n（从2024年4月1日零时起正式实施）\n", "某市测试法", "2024-04-01"),
        ("某市测试法\n（自 ２０２４ 年 ４ 月 １ 日 起 施行）\n", "某市测试法", "2024-04-01"),
        ("某市测试法（2023年修正）\n（自2021年1月1日起施行）\n", "某市测试法", "2021-01-01"),
        ("某市测试法(2018修订版)\n（自2021年1月1日起施行）\n", "某市测试法", "2021-01-01"),
        ("某国宪法修正案（2018年）\n", "某国宪法修正案（2018年）", None),
        (
            "最高某院\n关于审理快递纠纷案件\n适用法律若干问题的解释\n",
            "最高某院关于审理快递纠纷案件适用法律若干问题的解释",
            None,
        ),
        ("某市测试法\n（自2021年2月30日起施行）\n", "某市测试法", None),
        ("", "a", None),
    ],
)
def test_title_and_effective_date(parse, head, law, effective):
    (article,), log = parse(statute("第一条　甲。", head=head))
    assert (article.law, article.effective) == (law, effective)
    assert log["warning: no effective date"] == (effective is None)


@pytest.mark.parametrize(
    "closing",
    [
        "本办法自２０２４年６月１日起施行。",
        "自2024年6月1日起施行，原《道路办法》同时废止。",
        "1999年1月1日起施行的《道路办法》同时废止。本办法自2024年6月1日起施行。",
        "本办法从二〇二四年六月一日起实施。",
        "本办法于2024年6月1日起生效。",
    ],
)
def test_effective_date_from_the_last_article(parse, closing):
    articles, _ = parse(statute("第一条　甲。", f"第二条　{closing}", head="某市测试办法\n"))
    assert [a.effective for a in articles] == ["2024-06-01"] * 2


OLD = "第一条 雨水花园由市水务部门管理。\n第二条 罚款不得超过二百元。\n第三条 本条例自2016年9月1日起施行。\n第四条 已经删去的规定。\n"
NEW = "第一条 雨水花园由市园林部门管理。\n第二条 罚款不得超过五千元。\n第三条 本条例自2016年9月1日起施行。\n"
PASSED = "2016年3月1日清江市人民代表大会通过"
AMENDED = "根据2023年12月29日清江市人民代表大会常务委员会《关于修改〈清江市雨水花园条例〉的决定》"


@pytest.mark.parametrize(
    ("old_name", "old_note", "new_name", "new_note"),
    [
        ("条例(2016).txt", f"（{PASSED}）", "条例(2023).txt", f"（{PASSED} {AMENDED}修正）"),
        ("a.txt", f"（{PASSED}）", "b.txt", f"（{PASSED} {AMENDED}修正）"),
        ("b.txt", f"（{PASSED}）", "a.txt", f"（{PASSED}）\n（{AMENDED}第一次修正）"),
        ("b.txt", PASSED, "a.txt", f"{PASSED}\n2023年12月29日清江市人民代表大会常务委员会修订"),
        ("条例(2016).txt", "", "条例(2023).txt", ""),
        ("条例_20160301.txt", "", "条例_20231229.txt", ""),
        ("条例（2016年）.txt", "", "条例（2023修正）.txt", ""),
        ("条例(2016-03-01).txt", "", "条例(2023-12-29).txt", f"（{PASSED}）"),
        ("条例2.txt", "", "条例1.txt", f"（{AMENDED}修正，自公布之日起施行）"),
        ("b.txt", f"（{PASSED}，自2016年9月1日起施行）", "a.txt", "（2023年12月29日公布）"),
    ],
)
def test_all_articles_come_from_the_version_amended_last(build, old_name, old_note, new_name, new_note):
    files = {
        old_name: "清江市雨水花园条例\n" + old_note + "\n" + OLD,
        new_name: "清江市雨水花园条例\n" + new_note + "\n" + NEW,
    }
    rows, counts = build(**{name.replace(".txt", "__txt"): text for name, text in files.items()})
    assert texts_of(rows) == dict(line.split(" ") for line in NEW.strip().split("\n"))
    assert sum(counts["dropped"].values()) >= 4


def test_a_version_without_any_date_is_not_the_oldest_and_is_named(build, capsys):
    old = f"清江市雨水花园条例\n（{PASSED}）\n{OLD}"
    new = "清江市雨水花园条例\n" + NEW.replace("本条例自2016年9月1日起施行。", "监督机构应当公开。")
    rows, counts = build(a__txt=old, b__txt=new)
    assert "五千元" in texts_of(rows)["第二条"] and "第四条" not in texts_of(rows)
    assert sum(counts["warnings"].values()) >= 1 and "write the year" in capsys.readouterr().out


def test_two_versions_without_a_date_are_not_mixed(build):
    rows, counts = build(
        a__txt="某条例\n第一条 甲应当登记。\n第二条 乙应当登记。\n",
        b__txt="某条例\n第一条 丙应当登记。\n第二条 乙应当登记。\n第三条 丁应当登记。\n",
    )
    assert texts_of(rows) == {"第一条": "甲应当登记。", "第二条": "乙应当登记。"}
    assert counts["dropped"]["article of another, older version"] == 2


PARTS = {
    "总则": "清江市城市法典\n第一编 总则\n第一条 为了规范城市生活，制定本法典。\n第二条 市民应当爱护公共设施，不得损毁路灯。\n",
    "道路编": "清江市城市法典\n第二编 道路\n第三条 道路养护单位应当每月巡查道路，及时修补坑槽。\n第四条 施工单位不得擅自挖掘道路。\n",
    "附则": "清江市城市法典\n附则\n第五条 本法典自2024年1月1日起施行，原《道路办法》同时废止。\n",
}


@pytest.mark.parametrize("names", [("总则", "道路编", "附则"), ("c", "a", "b"), ("3", "2", "1")])
@pytest.mark.parametrize("note", ["", "（2023年10月1日清江市人民代表大会通过）\n"])
def test_a_law_in_several_files_is_put_together(build, names, note):
    parts = {
        f"{name}__txt": text.replace("法典\n", f"法典\n{note}", 1)
        for name, text in zip(names, PARTS.values(), strict=True)
    }
    rows, counts = build(**parts)
    wanted = [
        line.split(" ") for text in PARTS.values() for line in text.split("\n") if re.match("第.条", line)
    ]
    assert list(texts_of(rows).items()) == [tuple(pair) for pair in wanted]
    assert (
        {row["meta"]["effective"] for row in rows} == {"2024-01-01"}
        and not counts["warnings"]
        and not counts["dropped"]
    )


def test_parts_of_an_old_and_of_a_new_version(build):
    old = {
        f"{name}2016__txt": text.replace("法典\n", "法典\n（2016年1月1日通过）\n", 1).replace("应当", "必须")
        for name, text in PARTS.items()
    }
    new = {
        f"{name}__txt": text.replace("法典\n", "法典\n（2023年1月1日修订）\n", 1)
        for name, text in PARTS.items()
    }
    rows, counts = build(**old, **new)
    assert counts["articles"] == 5 and "必须" not in "".join(texts_of(rows).values())


def test_the_same_law_twice_is_read_once(build):
    rows, counts = build(
        a__txt=statute("第一条　甲应当登记。"), b__txt=statute("第一条　甲应当登记。", "第二条　乙应当登记。")
    )
    assert counts["articles"] == 2 and counts["dropped"]["identical article"] == 1


# Numbering


def test_gap_is_reported_with_file_and_line(parse, capsys):
    _, log = parse(statute("第一条　甲。", "第二条　乙。", "第四条　丁。", "第五条　戊。"))
    assert log == {"warning: gap in the numbering": 1}
    assert "a.txt:5: 第四条: warning: gap in the numbering" in capsys.readouterr().out


def test_gap_without_spaces_mixes_no_articles(parse):
    articles, log = parse(statute("第一条单位应当登记。", "第二条个人应当登记。", "第五条证照可以补办。"))
    assert [a.text for a in articles] == ["单位应当登记。", "个人应当登记。", "证照可以补办。"]
    assert log == {"warning: gap in the numbering": 1}


def test_repeats(build):
    rows, counts = build(
        a__txt=statute(
            "第一条　甲应当登记。",
            "第二条　乙应当登记。",
            "第二条　乙应当登记！",
            "第二条　丙应当注销。",
            "第三条　丁。",
        )
    )
    assert (
        counts["articles"] == 3
        and not any("注销" in row["output"] for row in rows)
        and not counts["warnings"]
    )
    assert counts["dropped"] == {"identical article": 1, "repeated article number with another text": 1}


def test_disorder_and_missing_base_are_reported(parse):
    _, log = parse(statute("第一条　甲。", "第三条　丙。", "第二条　乙。", "第五条之一　戊。"))
    assert log == {"warning: gap in the numbering": 2, "warning: article out of order": 1}


# Files


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "gb18030", "gbk", "utf-16"])
def test_encodings(build, encoding):
    text = statute("第一条　甲应当登记。", "第二条　乙不得涂改。")
    cases = "案情,适用法条,裁判要点\n某甲没有登记,《某市测试条例》第一条,应当登记\n某乙涂改证照,《某市测试条例》第二条,不得涂改\n"
    rows, counts = build(a__txt=text.encode(encoding), b__csv=cases.encode(encoding))
    assert counts["articles"] == 2 and counts["rows"]["case-to-statute"] == 2
    assert rows[0]["output"] == "《某市测试条例》第一条规定：\n甲应当登记。"


def test_big5_is_not_taken_for_gb18030(build):
    text = "某市測試條例\n第一條 為了建設和保護公園，制定本條例。\n"  # 條 opens no article: refused by name, not read as 砞
    with pytest.raises(ValueError, match=r"a\.txt: no article"):
        build(a__txt=text.encode("big5"))


@pytest.mark.parametrize("raw", [b"\x81\xff\xff" * 9, b"\0\1\2", b"", "只有一句话。".encode()])
def test_file_without_articles_is_named(build, raw):
    with pytest.raises(ValueError, match=r"bad\.txt"):
        build(bad__txt=raw)


def test_a_bad_file_costs_itself_only(build, capsys, tmp_path):
    good = statute("第一条　甲应当登记。", "第二条　乙应当登记。")
    rows, counts = build(
        a__txt=good,
        b__txt="关于废止部分法规的决定",
        c__docx=b"PK\3\4",
        d__json=b"[{]",
        e__doc=b"x",
        f__wps=b"x",
        g__pdf=b"x",
        h__xlsx=b"x",
    )
    assert counts["articles"] == 2 and counts["dropped"]["file that cannot be used"] == 3
    assert counts["dropped"]["convert it: libreoffice --headless --convert-to docx FILE"] == 3
    printed = capsys.readouterr().out
    assert all(name in printed for name in ("b.txt", "c.docx", "d.json", "e.doc", "f.wps", "g.pdf", "h.xlsx"))


def test_docx_in_capitals_and_lock_file(build, tmp_path, capsys):
    document = Document()
    for line in [*HEAD.splitlines(), "第一条　甲应当登记。\n乙不得涂改。"]:
        document.add_paragraph(line)
    document.add_table(1, 1).cell(0, 0).text = "第二条　丙可以申请。"
    file = io.BytesIO()
    document.save(file)
    rows, counts = build(**{"A__DOCX": file.getvalue(), "~$A__DOCX": b"lock"})
    assert texts_of(rows) == {"第一条": "甲应当登记。\n乙不得涂改。", "第二条": "丙可以申请。"}
    assert counts["dropped"] == {"file of another type": 1} and "~$A.DOCX" in capsys.readouterr().out


def test_docx_with_automatic_numbers(build):
    """第X条 that Word counts itself, through the chapters; the chapters are counted, too."""
    document, levels = Document(), [("第%1章", ""), ("第%2条", '<w:lvlRestart w:val="0"/>')]
    lists = document.part.numbering_part.element
    space = "xmlns:w='http://schemas.openxmlformats.org/wordprocessingml/2006/main'"
    rows = [
        f'<w:lvl w:ilvl="{n}"><w:start w:val="1"/><w:numFmt w:val="chineseCountingThousand"/>{more}<w:lvlText w:val="{text}"/></w:lvl>'
        for n, (text, more) in enumerate(levels)
    ]
    lists.append(parse_xml(f"<w:abstractNum {space} w:abstractNumId='77'>{''.join(rows)}</w:abstractNum>"))
    lists.append(parse_xml(f"<w:num {space} w:numId='77'><w:abstractNumId w:val='77'/></w:num>"))
    for line in HEAD.splitlines():
        document.add_paragraph(line)
    for level, text in [
        (0, "总则"),
        *((1, f"单位应当做好第{n}项工作。") for n in range(1, 21)),
        (0, "附则"),
        *((1, f"单位应当做好第{n}项工作。") for n in range(21, 31)),
    ]:
        numbers = document.add_paragraph(text)._p.get_or_add_pPr().get_or_add_numPr()
        numbers.get_or_add_ilvl().val, numbers.get_or_add_numId().val = level, 77
    file = io.BytesIO()
    document.save(file)
    rows, counts = build(a__docx=file.getvalue())
    assert texts_of(rows) == {f"第{chinese(n)}条": f"单位应当做好第{n}项工作。" for n in range(1, 31)}
    assert counts["dropped"] == counts["warnings"] == {}


def test_a_file_name_from_a_windows_archive(legal, tmp_path):
    name = os.fsdecode("测试办法.txt".encode("gb18030"))
    (tmp_path / name).write_text("第一条　单位应当登记。", encoding="utf-8")
    legal.build(tmp_path, tmp_path / "out.json")
    rows = json.loads((tmp_path / "out.json").read_text(encoding="utf-8"))
    assert (rows[0]["meta"]["source"], rows[0]["meta"]["law"]) == ("测试办法.txt", "测试办法")


def test_markdown(build):
    text = "# 某市测试条例\n\n2020年1月2日 通过\n\n<!-- INFO END -->\n\n## 第一章 总则\n\n**第一条** 甲应当登记。\n\n乙不得涂改。\n\n## 二、附则\n\n第二条 丙。\n\n## 税率表（综合所得）\n\n| 级数 | 税率 |\n"
    rows, _ = build(a__md=text)
    assert texts_of(rows) == {"第一条": "甲应当登记。\n乙不得涂改。", "第二条": "丙。"}
    assert rows[0]["meta"]["law"] == "某市测试条例"


def test_bad_sources(legal, tmp_path):
    with pytest.raises(FileNotFoundError, match="missing"):
        legal.build(tmp_path / "missing", tmp_path / "out.json")
    with pytest.raises(FileNotFoundError, match="''"):  # not the whole working directory
        legal.build("", tmp_path / "out.json")
    with pytest.raises(ValueError, match="no rows"):
        legal.build(tmp_path, tmp_path / "out.json")
    (tmp_path / "c.json").write_text("[]", encoding="utf-8")
    with pytest.raises(ValueError, match="output as well"):
        legal.build(tmp_path / "c.json", tmp_path / "c.json")
    assert not (tmp_path / "out.json").exists()


def test_a_list_of_files_and_folders_reads_each_once(legal, tmp_path):
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "A.TXT").write_text(statute("第一条　甲应当登记。"), encoding="utf-8")
    counts = legal.build(
        [tmp_path, tmp_path / "sub" / "A.TXT"], str(tmp_path / "out.json"), tmp_path / "text.jsonl"
    )
    assert counts["files"] == 1
    again = legal.build(
        [tmp_path], tmp_path / "out.json", tmp_path / "text.jsonl"
    )  # what was written is no source
    assert again["rows"] == counts["rows"]


# Cases and questions

LAW = statute(
    "第一条　单位应当登记。",
    "第二条　个人不得涂改证照。",
    "第二条之一　证照可以补办。",
    "第三条　监督机构应当公开。",
    "第四条　甲。",
)


def case_rows(build, text, name: str = "b__csv", **more):
    rows, counts = build(a__txt=LAW, **{name: text}, **more)
    return [row for row in rows if row["meta"]["source"] != "a.txt"], counts


def test_broken_csv_rows_are_counted_with_their_line(build, capsys):
    text = (
        "案情,适用法条,裁判要点\n"
        "甲未登记,《某市测试条例》第一条,应当登记\n"
        "乙未登记,《某市测试条例》第一条\n"  # the holding is optional
        "丙,《某市测试条例》第一条,要点,多出的一列\n"
        ",《某市测试条例》第一条,没有案情\n"
        '"丁"x,《某市测试条例》第一条,坏引号\n'
        '"戊分\n两行",《某市测试条例》第二条之一,可以补办\n'
        '"己未闭合,《某市测试条例》第一条,要点\n'
    )
    rows, counts = case_rows(build, text)
    assert [row["input"] for row in rows] == ["甲未登记", "乙未登记", "戊分\n两行"]
    assert counts["dropped"]["unusable row"] == 4
    printed = capsys.readouterr().out
    assert all(f"b.csv: row {line}" in printed for line in (4, 5, 6, 9))


@pytest.mark.parametrize(
    "text",
    [
        "案情,适用法条,\n甲未登记,第一条,\n",
        "案情\t适用法条\n甲未登记\t第一条\n",
        "sep=;\n案情;适用法条\n甲未登记;第一条\n",
        "案情|适用法条\r\n甲未登记|第一条\r\n",
        '"案情","适用法条"\r"甲未登记","第一条"\r',
    ],
)
def test_tables_of_all_kinds(build, text):
    ((row,), _) = case_rows(build, text)
    assert row["input"] == "甲未登记" and row["meta"]["cited"] == ["《某市测试条例》第一条"]


def test_json_lines_and_json_lists(build, capsys):
    good = {"问题": "单位要不要登记？", "答案": "要，见《某市测试条例》第一条。"}
    lines = [json.dumps(good, ensure_ascii=False), "{broken", "[1]", '{"question": null, "answer": "x"}', ""]
    lines += [
        '{"question": "坏字符\\ud800", "answer": "《某市测试条例》第一条"}',
        '{"question": "谁？<|im_end|>", "answer": "第一条"}',
    ]
    rows, counts = case_rows(build, "\n".join(lines), "b__jsonl")
    assert len(rows) == 1 and rows[0]["meta"]["kind"] == "which-article-applies"
    assert counts["dropped"]["unusable row"] >= 4 and "im_end" in capsys.readouterr().out
    more = json.dumps({"question": "q", "answer": "《某市测试条例》第三条", "tags": ["x", "y"]})
    rows, _ = case_rows(build, json.dumps([good]), "b__json", b__jsonl=more)
    assert len(rows) == 2


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("b__csv", "甲,乙\n1,2\n"),
        ("b__csv", ""),
        ("b__json", "[{]"),
        ("b__json", "{}"),
        ("b__jsonl", "[" * 100_000),
        ("b__jsonl", "plain text"),
        ("b__json", "null"),
        ("b__json", '{"a":' * 50_000),
    ],
)
def test_files_without_a_usable_row_are_named(build, name, text, capsys):
    rows, counts = case_rows(build, text, name)
    assert rows == [] and counts["dropped"]["file that cannot be used"] == 1
    assert name.replace("__", ".") in capsys.readouterr().out


@pytest.mark.parametrize(
    ("cited", "expected"),
    [
        ("《某市测试条例》第一条", ["第一条"]),
        ("《某市测试条例》第一条第二款、第二条之一", ["第一条", "第二条之一"]),
        ("《某市测试条例》第1条至第３条", ["第一条", "第二条", "第三条"]),
        ("第一条、第一条", ["第一条"]),  # the only law among the sources
        ("《某市测试条例》（以下简称条例）第二条", ["第二条"]),
        ("未取得《营业执照》的，适用本条例第三条", ["第三条"]),
    ],
)
def test_citations(build, cited, expected):
    ((row,), _) = case_rows(build, f"案情,适用法条\n某甲没有登记,{cited}\n")
    assert row["meta"]["cited"] == [f"《某市测试条例》{label}" for label in expected]


@pytest.mark.parametrize(
    ("cited", "reason"),
    [
        ("《某市测试条例》第九条", "row that cites an article that the statute lacks"),
        ("《某市测试条例》第二条之二", "row that cites an article that the statute lacks"),
        ("《某市测试条例》", "row that cites no readable article of a named law"),
        ("《某市测试条例》第百条", "row that cites no readable article of a named law"),
        ("《没有的条例》第一条至第九千条", "row that cites no readable article of a named law"),
    ],
)
def test_citations_that_cannot_be_trusted(build, cited, reason):
    rows, counts = case_rows(build, f"案情,适用法条\n某甲没有登记,{cited}\n")
    assert rows == [] and counts["dropped"] == {reason: 1}


def test_short_titles_and_foreign_laws(build):
    other = statute(
        "第一条　其他规定应当遵守。", head=HEAD.replace("某市测试条例", "中华人民共和国其他法（示例）")
    )
    text = "案情,适用法条\n甲一,《其他法》第一条\n甲二,第一条\n甲三,《没有提供的法》第八条\n"
    rows, counts = case_rows(build, text, c__txt=other)
    rows = [row for row in rows if row["meta"]["source"] == "b.csv"]
    assert [row["meta"]["law"] for row in rows] == ["中华人民共和国其他法（示例）", "没有提供的法"]
    assert rows[1]["meta"]["effective"] is None
    assert counts["warnings"]["row kept though its law is not among the sources"] == 1
    assert counts["dropped"]["row that cites no readable article of a named law"] == 1


def test_question_that_names_its_article_is_recall(build):
    text = "question,answer\n《某市测试条例》第一条讲什么？,讲单位登记。\n谁要登记？,单位，依据《某市测试条例》第一条。\n"
    rows, _ = case_rows(build, text)
    assert [row["meta"]["kind"] for row in rows] == ["article-recall", "which-article-applies"]
    assert rows[0]["instruction"].startswith("《某市") and rows[0]["input"] == ""


def test_duplicates_are_judged_with_their_signs(build):
    lines = [
        "某甲没有登记。,第一条",
        "某甲 没有登记,第一条",
        "某甲没有登记！,第二条",
        "面积>30,第一条",
        "面积<30,第一条",
        "评为C++,第一条",
        "评为C,第一条",
    ]
    rows, counts = case_rows(build, "\n".join(["案情,适用法条", *lines]))
    assert [row["input"] for row in rows] == ["某甲没有登记。", "面积>30", "面积<30", "评为C++", "评为C"]
    assert counts["dropped"] == {"duplicate row": 1, "row with a known question and another answer": 1}


# Rows


def test_every_row_is_quoted_from_its_article(legal, build):
    rows, counts = build(a__txt=(SAMPLE / "health.txt").read_bytes())
    articles = legal.parse_statute(legal.read_text(SAMPLE / "health.txt"), "health.txt", Counter())[1]
    texts = {legal.cite(a.key): a.text for a in articles}
    for row in rows:
        name, (text,) = row["meta"]["cited"][0], [texts[name] for name in row["meta"]["cited"]]
        if row["meta"]["kind"] == "article-recall":
            assert row["output"].split("规定：\n", 1)[1] in text and name in row["output"]
        elif row["meta"]["kind"] == "which-article-applies":
            assert row["input"] in text and row["output"].startswith(f"出自{name}")
            assert sum(row["input"] in other for other in texts.values()) == 1
        else:
            quotes = [line.split("）：", 1)[1] for line in row["output"].splitlines()[1:] if "）：" in line]
            assert all(quote in text for quote in quotes) and row["output"].startswith(name)
    phrasings = {row["instruction"].replace(row["meta"]["law"], "") for row in rows}
    assert len(phrasings) > 200 and counts["articles"] == 62


def test_clause_that_stands_twice_is_not_asked_for(build):
    twice = "违反规定的，由主管部门责令限期改正。"
    rows, counts = build(
        a__txt=statute(f"第一条　{twice}", f"第二条　{twice}", "第三条　单位应当在每年三月提交年度报告。")
    )
    asked = [row["input"] for row in rows if row["meta"]["kind"] == "which-article-applies"]
    assert asked == ["单位应当在每年三月提交年度报告。"]
    assert counts["dropped"]["clause that stands in several places"] == 2


def test_text_for_pretraining_holds_the_training_articles_only(legal, tmp_path):
    lines = [f"第{n}条　单位应当在{n}日前登记。" for n in range(1, 41)]
    text = statute("第一章 总则", *lines[:20], "第二章 责任", "第一节 罚款", *lines[20:])
    (tmp_path / "a.txt").write_text(text, encoding="utf-8")
    legal.build(tmp_path, tmp_path / "out.json", tmp_path / "text.jsonl")
    rows = json.loads((tmp_path / "out.json").read_text(encoding="utf-8"))
    texts = [
        json.loads(line)["text"]
        for line in (tmp_path / "text.jsonl").read_text(encoding="utf-8").splitlines()
    ]
    assert texts[0].startswith("某市测试条例\n第一章总则\n第") and len(texts) == 2
    assert texts[1].startswith("某市测试条例\n第二章责任\n第一节罚款\n第")
    test = {row["meta"]["article"] for row in rows if row["meta"]["split"] == "test"}
    assert len(test) == 6 and sum(text.count("日前登记") for text in texts) == 34
    assert not any(f"应当在{n}日" in text for n in test for text in texts)


# Split


def assert_disjoint(rows) -> None:
    split = {
        name: {c for r in rows if r["meta"]["split"] == name for c in r["meta"]["cited"]}
        for name in ("train", "test")
    }
    assert not split["train"] & split["test"]
    assert {row["meta"]["split"] for row in rows} <= {"train", "test"}


def test_no_article_is_in_both_splits(legal, tmp_path):
    rng = random.Random(7)
    lines = (f"第{legal.numeral(n)}条　单位应当在第{n}日前完成第{n}号登记工作。" for n in range(1, 201))
    (tmp_path / "a.txt").write_text(statute(*lines), encoding="utf-8")
    table = io.StringIO()
    cited = [
        "、".join(f"第{n}条" for n in rng.sample(range(1, 201), rng.choice([1, 1, 2]))) for _ in range(80)
    ]
    csv.writer(table).writerows(
        [("案情", "适用法条"), *((f"第{i}号案件", names) for i, names in enumerate(cited))]
    )
    (tmp_path / "b.csv").write_text(table.getvalue(), encoding="utf-8")
    counts = legal.build(tmp_path, tmp_path / "out.json")
    rows = json.loads((tmp_path / "out.json").read_text(encoding="utf-8"))
    assert_disjoint(rows)
    test = {name for row in rows if row["meta"]["split"] == "test" for name in row["meta"]["cited"]}
    assert 20 <= len(test) <= 30 and counts["rows"]["case-to-statute"] == 80  # no case was lost for the split


def test_articles_with_the_same_text_stay_together(build):
    text = statute(
        *(f"第{n}条　本办法由主管部门负责解释。" for n in "一二三四五六"), "第七条　单位应当登记。"
    )
    rows, _ = build(a__txt=text)
    assert {r["meta"]["split"] for r in rows if r["meta"]["article"] != 7} == {"train"}
    assert {r["meta"]["split"] for r in rows if r["meta"]["article"] == 7} == {"test"}


def test_one_article_is_trained_on(build):
    rows, counts = build(a__txt=statute("第一条　单位应当登记。"))
    assert {row["meta"]["split"] for row in rows} == {"train"} and sum(counts["warnings"].values()) == 1


# The sample


def test_the_program_builds_the_sample(legal, tmp_path):
    counts = legal.build(SAMPLE, tmp_path / "rows.json", tmp_path / "text.jsonl")
    kinds = {
        "article-recall": 206,
        "article-explanation": 80,
        "which-article-applies": 170,
        "case-to-statute": 40,
    }
    assert (
        counts["articles"] == 80 and counts["rows"] == kinds and counts["warnings"] == counts["dropped"] == {}
    )
    assert counts["split"] == {"train": 421, "test": 75}
    rows = json.loads((tmp_path / "rows.json").read_text(encoding="utf-8"))
    assert_disjoint(rows)
    assert {row["meta"]["kind"] for row in rows if row["meta"]["split"] == "test"} == set(counts["rows"])
    assert all(row.keys() == {"instruction", "input", "output", "meta"} for row in rows)
    assert all(row["instruction"].strip() and row["output"].strip() for row in rows)
    assert {(r["meta"]["article"], r["meta"]["suffix"]) for r in rows if r["meta"]["suffix"]} == {
        (22, "之一")
    }
    assert {row["meta"]["effective"] for row in rows} == {"2023-01-01", "2023-08-01"}
    source = (
        (ROOT / PROGRAM)
        .read_text(encoding="utf-8")
        .replace('/ "rows.json"', f"/ {str(tmp_path / 'again.json')!r}")
    )
    program = tmp_path / "prepare.py"
    program.write_text(
        source.replace('/ "text.jsonl"', f"/ {str(tmp_path / 'again.jsonl')!r}"), encoding="utf-8"
    )
    command = [sys.executable, str(program), str(SAMPLE)]
    done = subprocess.run(
        command, capture_output=True, text=True, encoding="gbk", env={"PYTHONIOENCODING": "gbk"}
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "again.json").read_bytes() == (tmp_path / "rows.json").read_bytes()
    assert (tmp_path / "again.jsonl").read_bytes() == (tmp_path / "text.jsonl").read_bytes()
    done = subprocess.run(
        [*command, str(tmp_path / "missing")], capture_output=True, text=True, encoding="utf-8"
    )
    assert done.returncode == 1 and "missing" in done.stderr and "Traceback" not in done.stderr


def test_cases_and_questions_of_the_sample_are_varied():
    with open(SAMPLE / "cases.csv", encoding="gb18030", newline="") as file:
        cases = list(csv.DictReader(file))
    questions = [json.loads(line) for line in (SAMPLE / "qa.jsonl").read_text(encoding="utf-8").splitlines()]
    assert len(cases) == 40 and len({case["案情"][:8] for case in cases}) == 40
    assert len(questions) == 42 and len({question["question"] for question in questions}) == 42
    assert "fictitious" in (SAMPLE / "README.md").read_text(encoding="utf-8")


# Properties and speed

CHARS = "第一二三十百千零条章节编款项目录之的，。；：、（）() 　\n１0甲应当不得《》附年月日自起施行规定"
LINES = [
    "第一条　甲。",
    "第二条",
    "第 三 条 乙；",
    "第十条的规定",
    "目录",
    "第一章 总则",
    "（一）丙；",
    "1.丁",
    "附件：表",
    "第百条　戊",
    "三、己",
    "标题",
]


@settings(max_examples=300, deadline=None)
@given(
    st.one_of(
        st.text(alphabet=CHARS, max_size=80),
        st.text(max_size=80),
        st.lists(st.sampled_from(LINES)).map("\n".join),
    )
)
def test_any_text_gives_articles_or_value_error(functions, text):
    legal, log = functions(PROGRAM), Counter()
    try:
        articles = legal.newest_articles([legal.parse_statute(text, "a.txt", log)], log)
    except ValueError as error:
        assert "a.txt" in str(error)
        return
    for article in articles:
        assert (
            article.text.strip()
            and 1 <= article.number <= 9999
            and 1 <= article.line <= text.count("\n") + 1 + text.count("\r") + text.count("\u2028")
        )
        assert list(legal.article_rows(article, Counter(), log))
        assert not set(article.text) - set(text.translate(legal.CLEAN)) - {"\n"}  # nothing is made up
        for line in article.text.split("\n"):
            assert not re.match(r"第[一二三四五六七八九十]+条\u3000+[甲乙应]", line)


BODY = [
    "单位应当登记。",
    "依照本条例第三条的规定处理。",
    "第三条规定的期限为十日。",
    "有下列情形的，不得登记：",
    "（一）虚假；",
    "其他。",
]
GROUPS = ["", "第{}章　第{}部分", "{}、第{}部分", "（{}）第{}部分", "第{}部分"]


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.lists(st.sampled_from(BODY), min_size=1, max_size=5), min_size=1, max_size=30),
    st.sampled_from(["　", " ", "\n", "：", ""]),
    st.sampled_from([chinese, str]),
    st.sets(st.integers(2, 29)),
    st.sampled_from(GROUPS),
)
def test_articles_are_never_mixed(functions, bodies, gap, write, headed, group):
    """Whatever the gap, the numbers and the headings are: each article has its own lines and no other."""
    legal, text, log = functions(PROGRAM), HEAD, Counter()
    bodies = [[*body, "其他。"] if body[-1][-1] in "：；" else body for body in bodies]
    for index, body in enumerate(bodies, 1):
        text += group.format(chinese(index), index) + "\n" if index in headed else ""
        first = (
            body[0] if gap else "为了" + body[0]
        )  # glued, "第一条第三条…" would be no heading to a reader either
        text += f"第{write(index)}条{gap}{first}\n" + "".join(line + "\n" for line in body[1:])
    articles = legal.newest_articles([legal.parse_statute(text, "a.txt", log)], log)
    assert [a.number for a in articles] == list(range(1, len(bodies) + 1)) and not +log
    for article, body in zip(articles, bodies, strict=True):
        assert article.text == "\n".join([body[0] if gap else "为了" + body[0], *body[1:]])


@settings(max_examples=60, deadline=None)
@given(
    st.one_of(st.binary(max_size=120), st.text(max_size=120).map(str.encode)),
    st.sampled_from(["csv", "json", "jsonl", "txt", "docx", "md"]),
)
def test_any_file_gives_rows_or_value_error(functions, tmp_path_factory, raw, kind):
    legal, folder = functions(PROGRAM), tmp_path_factory.mktemp("any")
    (folder / f"a.{kind}").write_bytes(raw)
    try:
        legal.build(folder, folder / "out.json")
    except ValueError:
        assert not (folder / "out.json").exists()


PATTERNS = [
    *"第条一 　。；（《》自年1本的附\n",
    "第一条",
    "第一条　甲。\n",
    "第一条 ",
    "《某",
    "《某》",
    "《某》（",
    "第一条至",
    "第一条至第九千条、",
    "《某条例》第一条、",
    "自2020年1月1日起",
    "2020年1月1日",
    "（一）甲；\n",
    "一、标题\n",
    "标题\n",
    "第一章\n",
    "<!-- ",
    "#",
    "**",
    "20",
    "本施",
    "自公布之日起",
    "公布",
]


@pytest.mark.parametrize("pattern", PATTERNS)
def test_100_kb_of_anything_take_less_than_a_second(legal, tmp_path, pattern):
    text = (pattern * 100_000)[:33_000]  # 33,000 Chinese characters are 99 KB
    bodies = [statute("第一条　甲。", "第二条　" + text), "某条例\n" + text + "\n第一条　甲。\n" + text, text]
    for body in bodies:
        (tmp_path / "a.md").write_text(body, encoding="utf-8")
        start = time.process_time()
        try:
            log = Counter()
            legal.newest_articles(
                [legal.parse_statute(legal.read_statute(tmp_path / "a.md"), "a.md", log)], log
            )
        except ValueError:
            pass
        assert time.process_time() - start < 3, "1 s, and something for a busy machine"
    start = time.process_time()
    legal.cited_articles(text, {"某条例": ["某条例"], "其他法": ["其他法"]})
    assert time.process_time() - start < 6
