"""The legal data-set builder: numerals, statutes, encodings, bad input, rows, split, and the sample."""

import csv
import io
import json
import os
import random
import subprocess
import sys
import zipfile
from collections import Counter
from pathlib import Path

import pytest
from docx import Document
from hypothesis import given, settings
from hypothesis import strategies as st

ROOT = Path(__file__).resolve().parent.parent
SAMPLE = ROOT / "data" / "legal"
HEAD = "某市测试条例\n（2020年1月2日某市人民代表大会通过　自2020年3月1日起施行）\n"


@pytest.fixture
def legal(functions):
    return functions("data/dataset_legal.py")


@pytest.fixture
def parse(legal):
    """Return parse(text) -> (articles, what was counted)."""

    def parse(text: str, source: str = "a.txt"):
        log = Counter()
        return legal.parse_statute(text, source, log), +log

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


# Numerals


@pytest.mark.parametrize(
    ("text", "value"),
    [
        *[
            ("一", 1),
            ("九", 9),
            ("十", 10),
            ("一十", 10),
            ("十一", 11),
            ("十九", 19),
            ("二十", 20),
            ("九十九", 99),
        ],
        *[
            ("一百", 100),
            ("一百零一", 101),
            ("一百〇一", 101),
            ("一百一十", 110),
            ("一百十", 110),
            ("一百一十二", 112),
        ],
        *[
            ("一百十二", 112),
            ("一百二十三", 123),
            ("两百", 200),
            ("二百", 200),
            ("两百零五", 205),
            ("九百九十九", 999),
        ],
        *[
            ("一千", 1000),
            ("一千零五", 1005),
            ("一千零一十", 1010),
            ("一千零一十六", 1016),
            ("一千二百", 1200),
        ],
        *[
            ("一千二百六十", 1260),
            ("两千零二十", 2020),
            ("九千九百九十九", 9999),
            ("一〇五", 105),
            ("二〇二〇", 2020),
        ],
        *[
            ("12", 12),
            ("０１２", 12),
            ("１０５", 105),
            ("9999", 9999),
            ("一 百 零 五", 105),
            ("一千○三", 1003),
        ],
    ],
)
def test_numeral_is_read(legal, text, value):
    assert legal.number(text) == value


@pytest.mark.parametrize(
    "text",
    [
        *[
            "",
            "零",
            "0",
            "00",
            "百",
            "百二十",
            "一百二",
            "一百零",
            "零五百",
            "一百零十",
            "一千五",
            "十十",
            "二十十",
        ],
        *[
            "一万",
            "10000",
            "一百2",
            "1百",
            "两两百",
            "一百零零一",
            "第一",
            "-3",
            "3.5",
            "²",
            "五百一千",
            "一百一百",
        ],
    ],
)
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
        if not digit and text and value % unit:
            zero = True
    return text[1:] if text.startswith("一十") else text


@settings(max_examples=400, deadline=None)
@given(st.integers(1, 9999))
def test_numerals_round_trip(functions, value):
    legal = functions("data/dataset_legal.py")
    assert legal.numeral(value) == chinese(value)
    assert legal.number(chinese(value)) == legal.number(str(value)) == value


@pytest.mark.parametrize("value", [0, -1, 10000])
def test_only_1_to_9999_is_written(legal, value):
    with pytest.raises(ValueError, match="1 to 9999"):
        legal.numeral(value)


# Structure


@pytest.mark.parametrize("gap", ["　", " ", "", "\t", "：", "\n"])
def test_heading_with_and_without_space(legal, parse, gap):
    articles, log = parse(
        statute(*(f"第{n}条{gap}单位应当做好第{i}项工作。" for i, n in enumerate("一二三", 1)))
    )
    assert labels(legal, articles) == ["第一条", "第二条", "第三条"]
    assert [a.text for a in articles] == [f"单位应当做好第{i}项工作。" for i in (1, 2, 3)]
    assert not log


@pytest.mark.parametrize(
    "forms", [("9", "10", "11"), ("９", "１０", "１１"), ("九", "十", "十一"), ("九", "10", "１１")]
)
def test_numbers_in_every_form(legal, parse, forms):
    articles, log = parse(statute(*(f"第 {form} 条　甲乙丙丁。" for form in forms)))
    assert labels(legal, articles) == ["第九条", "第十条", "第十一条"]
    assert log == {"warning: gap in the numbering": 1}  # the file starts at 9


def test_inserted_articles(legal, parse):
    articles, log = parse(statute("第一条　甲。", "第一条之一　乙。", "第一条之二　丙。", "第二条　丁。"))
    assert labels(legal, articles) == ["第一条", "第一条之一", "第一条之二", "第二条"]
    assert not log


def test_large_numbers(legal, parse):
    articles, _ = parse(
        statute(
            "第九十九条　甲。",
            "第一百条　乙。",
            "第一百零一条　丙。",
            "第一千零五条　丁。",
            "第一千二百六十条　戊。",
        )
    )
    assert [a.number for a in articles] == [99, 100, 101, 1005, 1260]


@pytest.mark.parametrize(
    "line",
    [
        "依照本法第十条的规定，可以申请。",
        "第十条的规定，适用于前款。",
        "第十条、第十一条所列单位应当报告。",
        "第十条第二款规定的期限为三日。",
        "第十条和第十一条另有规定的，从其规定。",
        "第十条至第十二条不适用于个人。",
        "第十条规定的期限，自次日起算。",
        "第十条所称单位，包括个体工商户。",
        "第十条之规定不溯及既往。",
        "第三条以外的单位参照执行。",
        "第三条规定的期限，自次日起算。",
    ],
)
@pytest.mark.parametrize("gap", ["　", ""])
def test_a_cited_article_opens_none(legal, parse, line, gap):
    heads = [f"第{legal.numeral(n)}条{gap}单位应当登记。" for n in range(1, 10)]
    articles, log = parse(statute(*heads, line, f"第十条{gap}结束。"))
    if gap or not line.startswith("第三条以外"):  # without any space in the file 以外 alone does not tell
        assert labels(legal, articles) == [f"第{legal.numeral(n)}条" for n in range(1, 11)]
        assert articles[8].paragraphs == [["单位应当登记。"], [line]]
        assert not log


def test_a_citation_at_the_start_of_a_wrapped_line(legal, parse):
    articles, log = parse(
        statute(
            "第一条　甲。",
            "第二条　违反本条例",
            "第三条的规定，依照本条例",
            "第四条",
            "处理。",
            "第三条　乙。",
        )
    )
    assert labels(legal, articles) == ["第一条", "第二条", "第三条"]
    assert articles[1].paragraphs == [["违反本条例第三条的规定，依照本条例第四条处理。"]]
    assert not log


def test_articles_in_one_line(legal, parse):
    articles, _ = parse(statute("第一条　甲应当登记。第二条　乙依照第一条的规定办理。 第三条 丙。"))
    assert [a.text for a in articles] == ["甲应当登记。", "乙依照第一条的规定办理。", "丙。"]


def test_table_of_contents_is_skipped(legal, parse):
    contents = "目　录\n第一章　总　则\n　第一节　目的\n第二章　附则……………2\n"
    body = "第一章　总　则\n第一节　目的\n第一条　甲。\n第二章　附则\n第二条　乙。\n"
    articles, log = parse(HEAD + contents + body)
    assert [a.place for a in articles] == [["第一章总则", "第一节目的"], ["第二章附则"]]
    assert articles[0].law == "某市测试条例"
    assert log == {"dropped: line of a table of contents": 4}


def test_contents_that_list_articles(legal, parse):
    text = (
        HEAD + "目录\n第一条 目的\n第二条 范围\n第一条　为了安全，制定本条例。\n第二条　本条例适用于单位。\n"
    )
    articles, _ = parse(text)
    assert [a.text for a in articles] == ["为了安全，制定本条例。", "本条例适用于单位。"]


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
    assert [place for place, _ in legal.clauses(article)] == [
        *[
            "第一款",
            "第一款第一项",
            "第一款第二项",
            "第一款第二项第一目",
            "第一款第二项第二目",
            "第一款第三项",
        ],
        *["第二款", "第二款第一项", "第二款第二项"],
    ]
    text = legal.explain(article)
    assert "共2款，第一款列有3项，第二款列有2项。" in text
    assert "第一款（应当）：单位应当具备下列条件：" in text
    assert "第二款（不得）：有下列情形之一的，不得登记：" in text


def test_wrapped_lines_are_one_paragraph(parse):
    (article,), _ = parse(statute("第一条　单位应当每年组织一次", "检查，并公布", "结果。", "检查不得收费。"))
    assert article.paragraphs == [["单位应当每年组织一次检查，并公布结果。"], ["检查不得收费。"]]


def test_annex_and_text_between_chapters_belong_to_no_article(parse):
    (one, two), log = parse(
        statute("第一条　甲。", "第二章 附则", "编者注。", "第二条　乙。", "附件：收费标准", "每次十元。")
    )
    assert (one.text, two.text) == ("甲。", "乙。")
    assert log == {"dropped: line outside the articles": 3}


def test_unreadable_number_is_not_added_to_the_article_before(legal, parse):
    articles, log = parse(statute("第一条　甲。", "第百二条　乙。", "丙。", "第二条　丁。"))
    assert [a.text for a in articles] == ["甲。", "丁。"]
    assert log["dropped: article with an unreadable number"] == 1
    assert log["dropped: line outside the articles"] == 1


# Title and date


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
            "某市人民政府令\n第五号\n某市测试规定\n（二〇二〇年五月六日公布　"
            "自二〇二〇年十二月三十一日起施行）\n",
            "某市测试规定",
            "2020-12-31",
        ),
        ("某市测试规定\n（2019年2月3日公布，自公布之日起施行）\n", "某市测试规定", "2019-02-03"),
        (
            "某市测试法\n（1999年1月1日通过　自1999年3月1日起施行\n"
            "根据2018年1月1日《决定》修正　自2018年5月1日起施行）\n",
            "某市测试法",
            "2018-05-01",
        ),
        ("某市测试法\n（自2021年2月30日起施行）\n", "某市测试法", None),
        ("", "a", None),
    ],
)
def test_title_and_effective_date(parse, head, law, effective):
    (article,), log = parse(statute("第一条　甲。", head=head))
    assert (article.law, article.effective) == (law, effective)
    assert log["warning: no effective date"] == (effective is None)


def test_effective_date_from_the_last_article(parse):
    articles, _ = parse(
        statute("第一条　甲。", "第二条　本办法自２０２４年６月１日起施行。", head="某市测试办法\n")
    )
    assert [a.effective for a in articles] == ["2024-06-01"] * 2


# Numbering


def test_gap_is_reported_with_file_and_line(parse, capsys):
    _, log = parse(statute("第一条　甲。", "第二条　乙。", "第四条　丁。", "第五条　戊。"))
    assert log == {"warning: gap in the numbering": 1}
    assert "a.txt:5: 第四条: warning: gap in the numbering" in capsys.readouterr().out


def test_gap_without_spaces_mixes_no_articles(parse):
    articles, log = parse(statute("第一条单位应当登记。", "第二条个人应当登记。", "第五条证照可以补办。"))
    assert [a.text for a in articles] == ["单位应当登记。", "个人应当登记。", "证照可以补办。"]
    assert log == {"warning: gap in the numbering": 1}


def test_repeats(legal, parse, build, capsys):
    text = statute(
        "第一条　甲应当登记。",
        "第二条　乙应当登记。",
        "第二条　乙应当登记！",
        "第二条　丙应当注销。",
        "第三条　丁。",
    )
    rows, counts = build(a__txt=text)
    assert counts["articles"] == 3
    assert counts["dropped"]["identical article"] == 1
    assert counts["dropped"]["repeated article number with another text"] == 1
    assert "a.txt:6: 《某市测试条例》第二条, first in a.txt:4" in capsys.readouterr().out
    assert not any("注销" in row["output"] for row in rows)
    assert counts["warnings"] == {}


def test_disorder_and_missing_base_are_reported(parse):
    _, log = parse(statute("第一条　甲。", "第三条　丙。", "第二条　乙。", "第五条之一　戊。"))
    assert log == {"warning: gap in the numbering": 2, "warning: article out of order": 1}


def test_of_two_versions_the_newest_is_kept(build):
    old = statute("第一条　旧规定。", "第二条　已经删去的规定。")
    new = statute("第一条　新规定。", head=HEAD.replace("2020年3月", "2022年3月"))
    rows, counts = build(a__txt=old, b__txt=new)
    assert (
        counts["articles"] == 1
        and counts["dropped"]["article of an older or undated version of the law"] == 2
    )
    assert {row["meta"]["effective"] for row in rows} == {"2022-03-01"}


def test_empty_article_is_counted(parse):
    articles, log = parse(statute("第一条　甲。", "第二条　", "第三条　丙。"))
    assert len(articles) == 2 and log["dropped: article without text"] == 1


# Encodings and files


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "gb18030", "gbk", "utf-16"])
def test_encodings(build, encoding):
    text = statute("第一条　甲应当登记。", "第二条　乙不得涂改。")
    cases = "案情,适用法条,裁判要点\n某甲没有登记,《某市测试条例》第一条,应当登记\n"
    cases += "某乙涂改证照,《某市测试条例》第二条,不得涂改\n"
    rows, counts = build(a__txt=text.encode(encoding), b__csv=cases.encode(encoding))
    assert counts["articles"] == 2 and counts["rows"]["case-to-statute"] == 2
    assert rows[0]["output"] == "《某市测试条例》第一条规定：\n甲应当登记。"


@pytest.mark.parametrize(
    "raw", [b"\xff\xfe\x00\xd8", b"\x81\xff\xff" * 9, "第一条　甲。".encode("utf-16-le"), b"\0\1\2"]
)
def test_undecodable_file_is_named(build, raw):
    with pytest.raises(ValueError, match=r"bad\.txt: .*(tried|no article)"):
        build(bad__txt=raw)


def test_gb18030_is_more_than_gbk(build):
    rows, _ = build(a__txt=statute("第一条　𠮷某某应当登记。").encode("gb18030"))
    assert "𠮷某某" in rows[0]["output"]


def test_utf16_without_mark_is_not_taken_for_another_encoding(build):
    with pytest.raises(ValueError, match="byte-order mark"):
        build(bad__txt="第一条 a\n".encode("utf-16-le"))
    with pytest.raises(ValueError, match="byte-order mark"):
        build(bad__csv="question,answer\na,b\n".encode("utf-16-be"))


def test_undecodable_message_has_what_was_tried_and_the_remedy(build):
    with pytest.raises(ValueError, match="tried utf-8, utf-8-sig, gb18030.*save it as UTF-8"):
        build(bad__csv=b"\x81\xff\xff")


def test_docx_with_table_break_and_tracked_change(legal, tmp_path):
    document = Document()
    for line in [*HEAD.splitlines(), "第一条　甲应当登记。\n乙不得涂改。"]:
        document.add_paragraph(line)
    document.add_table(1, 1).cell(0, 0).text = "第二条　丙可以申请。"
    paragraph = document.add_paragraph("第三条　")
    inserted = paragraph._p.makeelement(paragraph._p.tag.replace("}p", "}ins"))
    paragraph._p.append(inserted)
    inserted.append(document.add_paragraph("丁。").runs[0]._r)
    document.save(tmp_path / "a.docx")
    counts = legal.build(tmp_path / "a.docx", tmp_path / "out.json")
    text = (tmp_path / "out.json").read_text(encoding="utf-8")
    assert counts["articles"] == 3 and "第三条规定：\\n丁。" in text and "甲应当登记。\\n乙不得涂改。" in text


def test_broken_and_encrypted_docx(legal, tmp_path):
    for raw in (b"", b"PK\3\4 broken", b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + b"\0" * 600):
        (tmp_path / "a.docx").write_bytes(raw)
        with pytest.raises(ValueError, match=r"a\.docx: encrypted, damaged or not a \.docx.*save it as"):
            legal.build(tmp_path / "a.docx", tmp_path / "out.json")
    with zipfile.ZipFile(tmp_path / "a.docx", "w") as archive:
        archive.writestr("something.txt", "else")
    with pytest.raises(ValueError, match="not a .docx"):
        legal.build(tmp_path / "a.docx", tmp_path / "out.json")


def test_too_large_files_are_refused(legal, tmp_path, monkeypatch):
    monkeypatch.setattr(legal, "MAX_FILE_MB", 1)
    (tmp_path / "a.txt").write_bytes(b" " * (2**20 + 1))
    with zipfile.ZipFile(tmp_path / "b.docx", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("word/document.xml", b" " * (2**20 + 1))
    for name in ("a.txt", "b.docx"):
        with pytest.raises(ValueError, match="MB"):
            legal.build(tmp_path / name, tmp_path / "out.json")


def test_bad_sources(legal, tmp_path):
    with pytest.raises(FileNotFoundError, match="set DATA"):
        legal.build(tmp_path / "missing", tmp_path / "out.json")
    (tmp_path / "a.doc").write_bytes(b"x")
    with pytest.raises(ValueError, match="save .doc"):
        legal.build([tmp_path / "a.doc"], tmp_path / "out.json")
    with pytest.raises(ValueError, match="no rows"):
        legal.build(tmp_path, tmp_path / "out.json")
    (tmp_path / "b.txt").write_text("没有条文的文字。", encoding="utf-8")
    with pytest.raises(ValueError, match=r"b\.txt: no article"):
        legal.build(tmp_path / "b.txt", tmp_path / "out.json")
    (tmp_path / "c.json").write_text("[]", encoding="utf-8")
    with pytest.raises(ValueError, match="output as well"):
        legal.build(tmp_path / "c.json", tmp_path / "c.json")
    assert not (tmp_path / "out.json").exists()


def test_a_failed_build_leaves_the_old_file_whole(legal, tmp_path, monkeypatch):
    (tmp_path / "a.txt").write_text(statute("第一条　甲应当登记。"), encoding="utf-8")
    (tmp_path / "out.json").write_text("old", encoding="utf-8")

    def fail(*_):
        raise OSError("no space left on device")

    monkeypatch.setattr(legal.os, "replace", fail)
    with pytest.raises(OSError, match="space"):
        legal.build(tmp_path / "a.txt", tmp_path / "out.json")
    assert (tmp_path / "out.json").read_text(encoding="utf-8") == "old"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.txt", "out.json"]


def test_a_list_of_files_and_folders_reads_each_once(legal, tmp_path):
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "A.TXT").write_text(statute("第一条　甲应当登记。"), encoding="utf-8")
    (tmp_path / "sub" / "~$b.docx").write_bytes(b"lock")
    counts = legal.build([tmp_path, tmp_path / "sub" / "A.TXT"], str(tmp_path / "out.json"))
    assert counts["files"] == 1 and counts["dropped"]["file of another type"] == 1
    again = legal.build([tmp_path], tmp_path / "out.json")  # out.json now lies among the sources
    assert again["rows"] == counts["rows"]


# Cases and questions

LAW = statute(
    "第一条　单位应当登记。",
    "第二条　个人不得涂改证照。",
    "第二条之一　证照可以补办。",
    "第三条　监督机构应当公开。",
    "第四条　甲。",
)


def case_rows(build, text: str, name: str = "b__csv", **more):
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
    assert counts["dropped"]["row with missing, empty or surplus fields"] == 2
    assert counts["dropped"]["broken row"] == 2
    printed = capsys.readouterr().out
    assert (
        "b.csv:4: dropped: row with missing" in printed
        and "b.csv:6-6: " in printed
        and "b.csv:9-9" in printed
    )


def test_json_lines_and_json_lists(build):
    good = {"问题": "单位要不要登记？", "答案": "要，见《某市测试条例》第一条。"}
    lines = [
        json.dumps(good, ensure_ascii=False),
        "{broken",
        "[1]",
        "3",
        '{"question": 1, "answer": "x"}',
        "",
    ]
    lines.append('{"question": "坏字符\\ud800", "answer": "《某市测试条例》第一条"}')
    rows, counts = case_rows(build, "\n".join(lines), "b__jsonl")
    assert len(rows) == 1 and rows[0]["meta"]["kind"] == "which-article-applies"
    assert counts["dropped"]["broken row"] == 1
    assert counts["dropped"]["row with missing, empty or surplus fields"] == 4
    rows, _ = case_rows(
        build,
        json.dumps([good]),
        "b__json",
        b__jsonl=json.dumps({"question": "q", "answer": "《某市测试条例》第三条"}),
    )
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
    ],
)
def test_files_without_a_usable_row_are_refused(build, name, text):
    with pytest.raises(ValueError, match=r"b\.(csv|json)"):
        case_rows(build, text, name)


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
    ],
)
def test_citations_that_cannot_be_trusted(build, cited, reason):
    rows, counts = case_rows(build, f"案情,适用法条\n某甲没有登记,{cited}\n")
    assert rows == [] and counts["dropped"][reason] == 1


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
    text = "question,answer\n《某市测试条例》第一条讲什么？,讲单位登记。\n"
    text += "谁要登记？,单位，依据《某市测试条例》第一条。\n"
    rows, _ = case_rows(build, text)
    assert [row["meta"]["kind"] for row in rows] == ["article-recall", "which-article-applies"]
    assert rows[0]["instruction"].startswith("《某市") and rows[0]["input"] == ""


def test_duplicates_are_dropped_and_counted(build):
    text = "案情,适用法条\n某甲没有登记。,《某市测试条例》第一条\n"
    text += "某甲 没有登记,《某市测试条例》第一条\n某甲没有登记！,《某市测试条例》第二条\n"
    rows, counts = case_rows(build, text)
    assert len(rows) == 1
    assert counts["dropped"]["duplicate row"] == 1
    assert counts["dropped"]["row with a known question and another answer"] == 1


# Rows


def test_every_row_is_quoted_from_its_article(legal, build):
    rows, counts = build(a__txt=(SAMPLE / "health.txt").read_bytes())
    articles = legal.parse_statute(legal.read_text(SAMPLE / "health.txt"), "health.txt", Counter())
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
    text = statute(
        "第一条　违反规定的，由主管部门责令限期改正。",
        "第二条　违反规定的，由主管部门责令限期改正。",
        "第三条　单位应当在每年三月提交年度报告。",
    )
    rows, counts = build(a__txt=text)
    asked = [row["input"] for row in rows if row["meta"]["kind"] == "which-article-applies"]
    assert asked == ["单位应当在每年三月提交年度报告。"]
    assert counts["dropped"]["clause that stands in several places"] == 2


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
    (tmp_path / "a.txt").write_text(
        statute(
            *(f"第{legal.numeral(n)}条　单位应当在第{n}日前完成第{n}号登记工作。" for n in range(1, 201))
        ),
        encoding="utf-8",
    )
    table = io.StringIO()
    csv.writer(table).writerows(
        [("案情", "适用法条")]
        + [
            (f"第{i}号案件", "、".join(f"第{n}条" for n in rng.sample(range(1, 201), rng.choice([1, 1, 2]))))
            for i in range(80)
        ]
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


def test_sample_is_rebuilt_with_the_same_counts(legal, tmp_path):
    counts = legal.build(SAMPLE, tmp_path / "legal.json")
    assert counts == {
        "files": 4,
        "articles": 80,
        "rows": {
            "article-recall": 206,
            "article-explanation": 80,
            "which-article-applies": 170,
            "case-to-statute": 40,
        },
        "split": {"train": 421, "test": 75},
        "dropped": {"file of another type": 1, "line of a table of contents": 12},
        "warnings": {},
    }
    rows = json.loads((tmp_path / "legal.json").read_text(encoding="utf-8"))
    assert_disjoint(rows)
    assert {row["meta"]["kind"] for row in rows if row["meta"]["split"] == "test"} == set(counts["rows"])
    assert all(row.keys() == {"instruction", "input", "output", "meta"} for row in rows)
    assert all(row["instruction"].strip() and row["output"].strip() for row in rows)
    assert {(r["meta"]["article"], r["meta"]["suffix"]) for r in rows if r["meta"]["suffix"]} == {
        (22, "之一")
    }
    assert {row["meta"]["effective"] for row in rows} == {"2023-01-01", "2023-08-01"}
    legal.build(SAMPLE, tmp_path / "again.json")
    assert (tmp_path / "again.json").read_bytes() == (tmp_path / "legal.json").read_bytes()


def test_cases_and_questions_of_the_sample_are_varied(legal, tmp_path):
    with open(SAMPLE / "cases.csv", encoding="gb18030", newline="") as file:
        cases = list(csv.DictReader(file))
    questions = [json.loads(line) for line in (SAMPLE / "qa.jsonl").read_text(encoding="utf-8").splitlines()]
    assert len(cases) == 40 and len({case["案情"][:8] for case in cases}) == 40
    assert len(questions) == 42 and len({question["question"] for question in questions}) == 42
    assert "fictitious" in (SAMPLE / "README.md").read_text(encoding="utf-8")


def test_the_program_runs_from_the_command_line(tmp_path):
    environment = {**os.environ, "OUTPUT": str(tmp_path / "legal.json"), "PYTHONIOENCODING": "utf-8"}
    environment.pop("DATA", None)
    command = [sys.executable, "data/dataset_legal.py"]
    done = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, encoding="utf-8"
    )
    assert done.returncode == 0, done.stderr
    assert (
        '"articles": 80' in done.stdout
        and len(json.loads((tmp_path / "legal.json").read_text("utf-8"))) == 496
    )


# Properties

CHARS = "第一二三十百千零条章节编款项目录之的，。；：、（）() 　\n１0甲应当不得《》附"
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
    legal = functions("data/dataset_legal.py")
    log = Counter()
    try:
        articles = legal.unique_articles(legal.parse_statute(text, "a.txt", log), log)
    except ValueError:
        return
    quoted = Counter()
    for article in articles:
        assert article.text.strip() and 1 <= article.number <= 9999
        assert list(legal.article_rows(article, quoted, log))
        for line in article.text.split("\n"):
            assert not legal.re.match(r"第[一二三四五六七八九十]+条\u3000+[甲乙应]", line)


BODY = [
    "单位应当登记。",
    "依照本条例第三条的规定处理。",
    "第三条规定的期限为十日。",
    "有下列情形的，不得登记：",
    "（一）虚假；",
    "其他。",
]


@settings(max_examples=150, deadline=None)
@given(
    st.lists(st.lists(st.sampled_from(BODY), min_size=1, max_size=5), min_size=1, max_size=30),
    st.sampled_from(["　", " ", "\n", "：", ""]),
    st.sampled_from([chinese, str]),
    st.sets(st.integers(0, 29)),
)
def test_articles_are_never_mixed(functions, bodies, gap, write, chapters):
    legal = functions("data/dataset_legal.py")
    text = HEAD
    for index, body in enumerate(bodies, 1):
        text += f"第{write(index)}章　第{index}部分\n" if index in chapters else ""
        first = (
            body[0] if gap else "为了" + body[0]
        )  # glued, "第一条第三条…" would be no heading to a reader either
        text += f"第{write(index)}条{gap}{first}\n" + "".join(line + "\n" for line in body[1:])
    log = Counter()
    articles = legal.parse_statute(text, "a.txt", log)
    assert [a.number for a in articles] == list(range(1, len(bodies) + 1)) and not +log
    for article, body in zip(articles, bodies, strict=True):
        assert article.text == "\n".join([body[0] if gap else "为了" + body[0], *body[1:]])


@settings(max_examples=60, deadline=None)
@given(
    st.one_of(st.binary(max_size=120), st.text(max_size=120).map(str.encode)),
    st.sampled_from(["csv", "json", "jsonl", "txt", "docx"]),
)
def test_any_file_gives_rows_or_value_error(functions, tmp_path_factory, raw, kind):
    legal = functions("data/dataset_legal.py")
    folder = tmp_path_factory.mktemp("any")
    (folder / f"a.{kind}").write_bytes(raw)
    try:
        legal.build(folder, folder / "out.json")
    except ValueError:
        assert not (folder / "out.json").exists()
