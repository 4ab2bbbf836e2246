"""Documents: what a reader of the page sees of a .docx, folders and JSON as rows, hostile files, speed."""

import io
import json
import os
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import pytest
from docx import Document
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

ROOT = Path(__file__).resolve().parent.parent
PROGRAM = "data/gongwen/prepare.py"
SPACES = {
    "w": "http://schemas.openxmlformats.org/wordprocessingml/2006/main",
    "m": "http://schemas.openxmlformats.org/officeDocument/2006/math",
    "mc": "http://schemas.openxmlformats.org/markup-compatibility/2006",
    "v": "urn:schemas-microsoft-com:vml",
    "wp": "http://schemas.openxmlformats.org/drawingml/2006/wordprocessingDrawing",
    "wps": "http://schemas.microsoft.com/office/word/2010/wordprocessingShape",
    "a": "http://schemas.openxmlformats.org/drawingml/2006/main",
    "pic": "http://schemas.openxmlformats.org/drawingml/2006/picture",
    "c": "http://schemas.openxmlformats.org/drawingml/2006/chart",
    "o": "urn:schemas-microsoft-com:office:office",
}
NAMES = " ".join(f'xmlns:{name}="{address}"' for name, address in SPACES.items())


@pytest.fixture(scope="module")
def prepare(functions):
    return functions(PROGRAM)


def save(path: Path, body: str, numbering: str = "", styles: str = "", changes: dict | None = None) -> Path:
    """Write a .docx with the body, lists and styles given as XML; of `changes` a part becomes other bytes, or goes."""
    file = io.BytesIO()
    Document().save(file)
    parts = {name: zipfile.ZipFile(file).read(name) for name in zipfile.ZipFile(file).namelist()}
    parts["word/document.xml"] = f"<w:document {NAMES}><w:body>{body}</w:body></w:document>".encode()
    if numbering:
        parts["word/numbering.xml"] = f"<w:numbering {NAMES}>{numbering}</w:numbering>".encode()
    parts["word/styles.xml"] = parts["word/styles.xml"].replace(
        b"</w:styles>", f"{styles}</w:styles>".encode()
    )
    parts |= changes or {}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, raw in parts.items():
            if raw is not None:
                archive.writestr(name, raw)
    return path


@pytest.fixture
def read(prepare, tmp_path):
    """Return read(body, numbering, styles) -> the text of a .docx with them."""
    return lambda body, **parts: prepare.read_docx(save(tmp_path / "a.docx", body, **parts))


def r(text: str, properties: str = "") -> str:
    return f'<w:r><w:rPr>{properties}</w:rPr><w:t xml:space="preserve">{text}</w:t></w:r>'


def p(*content: str, properties: str = "") -> str:
    runs = [part if part.startswith("<") else r(part) for part in content]
    return f"<w:p><w:pPr>{properties}</w:pPr>{''.join(runs)}</w:p>"


def row(*cells: str, properties: str = "") -> str:
    return f"<w:tr><w:trPr>{properties}</w:trPr>{''.join(f'<w:tc>{cell}</w:tc>' for cell in cells)}</w:tr>"


def box(*lines: str) -> str:
    """Return a run with a text box as Word writes it: a drawing, and the same again in VML for older versions."""
    content = f"<w:txbxContent>{''.join(map(p, lines))}</w:txbxContent>"
    choice = f"<w:drawing><wp:anchor><a:graphic><wps:wsp><wps:txbx>{content}</wps:txbx></wps:wsp></a:graphic></wp:anchor></w:drawing>"
    fallback = f"<w:pict><v:shape><v:textbox>{content}</v:textbox></v:shape></w:pict>"
    return f'<w:r><mc:AlternateContent><mc:Choice Requires="wps">{choice}</mc:Choice><mc:Fallback>{fallback}</mc:Fallback></mc:AlternateContent></w:r>'


PICTURE = "<w:r><w:drawing><wp:inline><a:graphic><a:graphicData><pic:pic><pic:blipFill><a:blip/></pic:blipFill></pic:pic></a:graphicData></a:graphic></wp:inline></w:drawing></w:r>"
FRACTION = "<m:oMath><m:f><m:num><m:r><m:t>应纳税额</m:t></m:r></m:num><m:den><m:r><m:t>2</m:t></m:r></m:den></m:f></m:oMath>"


SEEN = {
    "plain": (p("甲", "乙") + p("丙"), "甲乙\n丙"),
    "inserted and deleted": (p("时间：", '<w:del><w:r><w:delText>3月5日</w:delText></w:r></w:del>', f"<w:ins>{r('3月12日')}</w:ins>", "上午"), "时间：3月12日上午"),
    "moved": (p("甲", f"<w:moveFrom>{r('乙')}</w:moveFrom>", "丙") + p(f"<w:moveTo>{r('乙')}</w:moveTo>"), "甲丙\n乙"),
    "deleted end of a paragraph": (p("甲", properties="<w:rPr><w:del/></w:rPr>") + p("乙"), "甲乙"),
    "deleted paragraph": (p("<w:del><w:r><w:delText>甲</w:delText></w:r></w:del>", properties="<w:rPr><w:del/></w:rPr>") + p("乙"), "乙"),
    "inserted paragraph": (p(f"<w:ins>{r('甲')}</w:ins>", properties="<w:rPr><w:ins/></w:rPr>") + p("乙"), "甲\n乙"),
    "deleted end before a table": (p("甲", properties="<w:rPr><w:del/></w:rPr>") + f"<w:tbl>{row(p('乙'))}</w:tbl>", "甲\n乙"),
    "former properties": (p("甲", properties='<w:pPrChange><w:pPr><w:numPr><w:ilvl w:val="0"/><w:numId w:val="1"/></w:numPr></w:pPr></w:pPrChange>'), "甲"),
    "control in a line": (p("主送：", f"<w:sdt><w:sdtPr/><w:sdtContent>{r('各区人民政府')}</w:sdtContent></w:sdt>", "："), "主送：各区人民政府："),
    "control around paragraphs": (f"<w:sdt><w:sdtContent>{p('甲')}<w:sdt><w:sdtContent>{p('乙')}</w:sdtContent></w:sdt></w:sdtContent></w:sdt>", "甲\n乙"),
    "control around a table row": (f"<w:tbl><w:sdt><w:sdtContent>{row(p('甲'), p('乙'))}</w:sdtContent></w:sdt></w:tbl>", "甲\t乙"),
    "control around a cell": (f"<w:tbl><w:tr><w:sdt><w:sdtContent><w:tc>{p('甲')}</w:tc></w:sdtContent></w:sdt><w:tc>{p('乙')}</w:tc></w:tr></w:tbl>", "甲\t乙"),
    "custom XML, smart tag, link, field": ("<w:customXml>" + p("<w:smartTag>" + r("甲") + "</w:smartTag>", "<w:hyperlink>" + r("乙") + "</w:hyperlink>", "<w:fldSimple>" + r("丙") + "</w:fldSimple>") + "</w:customXml>", "甲乙丙"),
    "field code": (p('<w:r><w:fldChar/></w:r><w:r><w:instrText>PAGE</w:instrText></w:r>', "7"), "7"),
    "head in a table": (f"<w:tbl>{row(p('清政〔2024〕9号'), p('签发人：陈一一'))}</w:tbl>{p('关于经费的请示')}", "清政〔2024〕9号\t签发人：陈一一\n关于经费的请示"),
    "table in the body": (p("如下：") + f"<w:tbl>{row(p('单位'), p('名额'))}{row(p('东河区'), p('3'))}</w:tbl>" + p("请参会。"), "如下：\n单位\t名额\n东河区\t3\n请参会。"),
    "page in one cell": (f"<w:tbl>{row(p('标题') + p('正文'))}</w:tbl>", "标题\n正文"),
    "several lines in a cell": (f"<w:tbl>{row(p('甲') + p('乙'), p('丙<w:br/>丁'))}</w:tbl>".replace("丙<w:br/>丁", "丙</w:t><w:br/><w:t>丁"), "甲 乙\t丙 丁"),
    "empty and merged cells": (f"<w:tbl>{row(p('甲'), p(''), p('丙'))}</w:tbl>", "甲\t\t丙"),
    "table in a table": ("<w:tbl>" + row(p("甲"), "<w:tbl>" + row(p("乙"), p("丙")) + "</w:tbl>" + p("")) + "</w:tbl>", "甲\t乙 丙"),
    "deleted row": (f"<w:tbl>{row(p('甲'))}{row(p('乙'), properties='<w:del/>')}</w:tbl>", "甲"),
    "text box before": (p(box("清政办〔2024〕1号"), "通知"), "清政办〔2024〕1号\n通知"),
    "text box after": (p("通知如下", box("附注", "说明"), "："), "通知如下：\n附注\n说明"),
    "old text box": (p(f"<w:r><w:pict><v:shape><v:textbox><w:txbxContent>{p('甲')}</w:txbxContent></v:textbox></v:shape></w:pict></w:r>"), "甲\n"),
    "word art": (p('<w:r><w:pict><v:shape><v:textpath string="清江市人民政府文件"/></v:shape></w:pict></w:r>'), "清江市人民政府文件"),
    "hidden": (p("甲", r("乙", "<w:vanish/>"), r("丙", '<w:vanish w:val="0"/>')), "甲丙"),
    "hidden by a style": (p("甲", r("乙", '<w:rStyle w:val="Secret"/>')), "甲"),
    "hidden paragraph": (p("甲", properties='<w:pStyle w:val="SecretPage"/><w:rPr><w:vanish/></w:rPr>') + p("乙"), "乙"),
    "shown in a hidden style": (p(r("甲", '<w:vanish w:val="false"/>'), properties='<w:pStyle w:val="SecretPage"/>'), "甲"),
    "signs": (p("<w:r><w:t>甲</w:t><w:tab/><w:t>乙</w:t><w:br/><w:t>丙</w:t><w:cr/><w:t>A</w:t><w:noBreakHyphen/><w:t>4</w:t></w:r>"), "甲\t乙\n丙\nA-4"),
    "tab stops": (p("甲", properties='<w:tabs><w:tab w:val="left" w:pos="420"/></w:tabs>'), "甲"),
    "symbol that is a letter": (p('<w:r><w:sym w:font="宋体" w:char="25A1"/></w:r>', "是"), "□是"),
    "pronunciation": (p("<w:r><w:ruby><w:rubyPr/><w:rt><w:r><w:t>hàn</w:t></w:r></w:rt><w:rubyBase><w:r><w:t>汉</w:t></w:r></w:rubyBase></w:ruby></w:r>", "字"), "汉字"),
    "formula": (p("税额＝", FRACTION, "。"), "税额＝(应纳税额)/(2)。"),
    "powers": (p("<m:oMath><m:sSup><m:e><m:r><m:t>m</m:t></m:r></m:e><m:sup><m:r><m:t>2</m:t></m:r></m:sup></m:sSup></m:oMath>"), "m^(2)"),
    "comments in the XML": ("<!-- x --><?x y?>" + p("甲"), "甲"),
    "nothing": ("", ""),
}  # fmt: skip
SECRET = '<w:style w:type="character" w:styleId="Secret"><w:rPr><w:vanish/></w:rPr></w:style><w:style w:type="paragraph" w:styleId="SecretPage"><w:basedOn w:val="SecretPage2"/></w:style><w:style w:type="paragraph" w:styleId="SecretPage2"><w:rPr><w:vanish/></w:rPr></w:style>'


@pytest.mark.parametrize("case", SEEN)
def test_what_a_reader_of_the_page_sees(read, case):
    body, text = SEEN[case]
    assert read(body, styles=SECRET) == text


@pytest.mark.parametrize(
    ("content", "named"),
    [
        (PICTURE, "1 x picture"),
        (PICTURE * 3, "3 x picture"),
        ('<w:r><w:pict><v:shape><v:imagedata/></v:shape></w:pict></w:r>', "1 x picture"),
        ("<w:r><w:drawing><wp:inline><a:graphic><a:graphicData><c:chart/></a:graphicData></a:graphic></wp:inline></w:drawing></w:r>", "1 x chart"),
        ('<w:r><w:object><v:shape><v:imagedata/></v:shape><o:OLEObject ProgID="Equation.3"/></w:object></w:r>', "1 x embedded object"),
        (FRACTION, "1 x formula"),
        ('<w:r><w:sym w:font="Wingdings" w:char="F0FE"/></w:r>', "1 x sign of Wingdings"),
        ("<w:r><w:instrText> EQ \\f(1,2)</w:instrText></w:r>", "1 x EQ field"),
        ('<w:r><w:footnoteReference w:id="2"/></w:r>', "1 x footnote"),
        ('<w:r><w:endnoteReference w:id="2"/></w:r>', "1 x endnote"),
    ],
)  # fmt: skip
def test_what_is_no_text_is_named(read, capsys, content, named):
    assert read(p("甲", content, "乙")).startswith("甲")
    printed = capsys.readouterr().out
    assert "a.docx" in printed and named in printed


def test_a_document_of_text_alone_prints_nothing(read, capsys):
    read(
        "".join(body for name, (body, _) in SEEN.items() if name not in ("formula", "powers")), styles=SECRET
    )
    assert capsys.readouterr().out == ""


# Automatic numbers


def level(place: int, kind: str, text: str, more: str = "", start: int = 1) -> str:
    return f'<w:lvl w:ilvl="{place}"><w:start w:val="{start}"/><w:numFmt w:val="{kind}"/>{more}<w:lvlText w:val="{text}"/></w:lvl>'


def lists(*levels: str, nums: str = '<w:num w:numId="1"><w:abstractNumId w:val="0"/></w:num>') -> str:
    return f'<w:abstractNum w:abstractNumId="0">{"".join(levels)}</w:abstractNum>{nums}'


def item(text: str, place: int = 0, number: int = 1) -> str:
    return p(text, properties=f'<w:numPr><w:ilvl w:val="{place}"/><w:numId w:val="{number}"/></w:numPr>')


LADDER = [
    level(0, "chineseCountingThousand", "%1、"),
    level(1, "chineseCounting", "（%2）"),
    level(2, "decimal", "%3."),
    level(3, "decimal", "（%4）"),
]


def test_the_levels_of_an_official_document(read):
    body = (
        item("甲")
        + item("乙", 1)
        + item("丙", 2)
        + item("丁", 3)
        + item("戊", 3)
        + item("己", 2)
        + p("正文。")
        + item("庚", 1)
        + item("辛")
        + item("壬", 1)
    )
    assert read(body, numbering=lists(*LADDER)).split("\n") == [
        *"一、甲 （一）乙 1.丙 （1）丁 （2）戊 2.己 正文。 （二）庚 二、辛 （一）壬".split(" ")
    ]


@pytest.mark.parametrize(
    ("kind", "first", "tenth", "twenty_first"),
    [
        ("decimal", "1", "10", "21"),
        ("decimalZero", "01", "10", "21"),
        ("chineseCounting", "一", "十", "二十一"),
        ("chineseCountingThousand", "一", "十", "二十一"),
        ("japaneseCounting", "一", "十", "二十一"),
        ("taiwaneseCountingThousand", "一", "十", "二十一"),
        ("ideographDigital", "一", "一〇", "二一"),
        ("chineseLegalSimplified", "壹", "壹拾", "贰拾壹"),
        ("ideographTraditional", "甲", "癸", "21"),
        ("decimalFullWidth", "１", "１０", "２１"),
        ("decimalEnclosedCircle", "①", "⑩", "21"),
        ("decimalEnclosedCircleChinese", "①", "⑩", "21"),
        ("decimalEnclosedParen", "⑴", "⑽", "21"),
        ("decimalEnclosedFullstop", "⒈", "⒑", "21"),
        ("upperLetter", "A", "J", "U"),
        ("lowerLetter", "a", "j", "u"),
        ("upperRoman", "I", "X", "21"),
        ("lowerRoman", "i", "x", "21"),
        ("numberInDash", "- 1 -", "- 10 -", "- 21 -"),
        ("none", "", "", ""),
        ("somethingNew", "1", "10", "21"),
    ],
)
def test_number_formats(read, kind, first, tenth, twenty_first):
    lines = read("".join(item(f"|{n}") for n in range(1, 22)), numbering=lists(level(0, kind, "%1"))).split(
        "\n"
    )
    assert [line.split("|")[0].strip() for line in (lines[0], lines[9], lines[20])] == [
        first,
        tenth,
        twenty_first,
    ]


def test_letters_go_on_after_z(prepare):
    assert [prepare.docx_format(n, "upperLetter") for n in (26, 27, 52, 53)] == ["Z", "AA", "ZZ", "AAA"]
    assert prepare.docx_format(1260, "chineseCountingThousand") == "一千二百六十"


@pytest.mark.parametrize(
    ("levels", "nums", "items", "wanted"),
    [
        # 第一条 with a gap, 第一章 above it that does not restart the articles
        ([level(0, "chineseCountingThousand", "第%1章"), level(1, "chineseCountingThousand", "第%2条", '<w:lvlRestart w:val="0"/>')], "", [0, 1, 1, 0, 1], "第一章 |第一条 |第二条 |第二章 |第三条 "),
        ([level(0, "decimal", "%1."), level(1, "decimal", "%1.%2")], "", [0, 1, 1, 0, 1], "1.|1.1 |1.2 |2.|2.1 "),
        ([level(0, "upperRoman", "%1"), level(1, "decimal", "%1.%2", "<w:isLgl/>")], "", [0, 0, 1], "I |II |2.1 "),
        ([level(0, "decimal", "%1.", start=5)], "", [0, 0], "5.|6."),
        ([level(0, "decimal", "%1.", '<w:suff w:val="space"/>')], "", [0], "1. "),
        ([level(0, "decimal", "第%1步", '<w:suff w:val="nothing"/>')], "", [0], "第1步"),
        ([level(0, "bullet", "\uf0b7"), level(1, "bullet", "●")], "", [0, 1], "• |● "),
        ([level(0, "decimal", "%1."), level(1, "decimal", "%1.%2")], "", [1, 0], "1.1 |1."),
        ([level(0, "decimal", "%1.")], '<w:lvlOverride w:ilvl="0"><w:startOverride w:val="7"/></w:lvlOverride>', [0, 0], "7.|8."),
        ([level(0, "decimal", "%1.")], f'<w:lvlOverride w:ilvl="0">{level(0, "upperLetter", "%1)")}</w:lvlOverride>', [0, 0], "A)|B)"),
        ([level(0, "decimal", "")], "", [0], ""),
    ],
)  # fmt: skip
def test_lists(read, levels, nums, items, wanted):
    numbering = lists(*levels, nums=f'<w:num w:numId="1"><w:abstractNumId w:val="0"/>{nums}</w:num>')
    assert read("".join(item("", place) for place in items), numbering=numbering) == wanted.replace("|", "\n")


def test_two_lists_of_one_kind_go_on_and_a_third_begins_anew(read):
    again = '<w:lvlOverride w:ilvl="0"><w:startOverride w:val="1"/></w:lvlOverride>'
    nums = "".join(
        f'<w:num w:numId="{n}"><w:abstractNumId w:val="0"/>{again * (n == 3)}</w:num>' for n in (1, 2, 3)
    )
    body = "".join(item("", number=n) for n in (1, 2, 2, 3, 3, 1))
    assert read(body, numbering=lists(level(0, "decimal", "%1."), nums=nums)) == "1.\n2.\n3.\n1.\n2.\n3."


def test_numbers_through_styles(read):
    number = '<w:pPr><w:numPr><w:numId w:val="1"/></w:numPr></w:pPr>'
    styles = f'<w:style w:type="paragraph" w:styleId="One">{number}</w:style><w:style w:type="paragraph" w:styleId="Two"><w:basedOn w:val="One"/></w:style>'
    styles += '<w:style w:type="paragraph" w:styleId="Three"><w:basedOn w:val="One"/><w:pPr><w:numPr><w:numId w:val="0"/></w:numPr></w:pPr></w:style>'
    styled = "".join(
        p("甲", properties=f'<w:pStyle w:val="{name}"/>') for name in ("One", "Two", "Three", "One")
    )
    numbering = lists(level(0, "decimal", "%1."), level(1, "decimal", "（%2）", '<w:pStyle w:val="Two"/>'))
    assert read(styled, numbering=numbering, styles=styles) == "1.甲\n（1）甲\n甲\n2.甲"
    off = p("乙", properties='<w:pStyle w:val="One"/><w:numPr><w:numId w:val="0"/></w:numPr>')
    deep = p("丙", properties='<w:pStyle w:val="One"/><w:numPr><w:ilvl w:val="1"/></w:numPr>')
    assert read(off + deep, numbering=numbering, styles=styles) == "乙\n（1）丙"


def test_a_list_that_is_defined_by_a_style(read):
    linked = '<w:abstractNum w:abstractNumId="8"><w:styleLink w:val="L"/><w:lvl w:ilvl="0"><w:start w:val="1"/><w:numFmt w:val="decimal"/><w:lvlText w:val="%1)"/></w:lvl></w:abstractNum>'
    numbering = (
        linked
        + '<w:abstractNum w:abstractNumId="9"><w:numStyleLink w:val="L"/></w:abstractNum><w:num w:numId="1"><w:abstractNumId w:val="9"/></w:num>'
    )
    assert read(item("甲") + item("乙"), numbering=numbering) == "1)甲\n2)乙"


def test_deleted_and_hidden_paragraphs_do_not_count(read):
    gone = "<w:p><w:pPr><w:numPr><w:ilvl w:val='0'/><w:numId w:val='1'/></w:numPr><w:rPr><w:{}/></w:rPr></w:pPr></w:p>"
    body = (
        item("甲")
        + gone.format("del")
        + gone.format("vanish")
        + item("乙")
        + f"<w:tbl>{row(item('丙'), item('丁'))}</w:tbl>"
    )
    assert read(body, numbering=lists(level(0, "decimal", "%1."))) == "1.甲\n2.乙\n3.丙\t4.丁"


def test_python_docx_list_style(prepare, tmp_path):
    document = Document()
    for line in ("明确责任", "加强巡查"):
        document.add_paragraph(line, style="List Number")
    document.save(tmp_path / "a.docx")
    assert prepare.read_docx(str(tmp_path / "a.docx")) == "1.明确责任\n2.加强巡查"


# Odd and hostile files


LINK = '<Relationships><Relationship Type="http://x/{}" Target="{}"/></Relationships>'


def test_odd_packages_are_read(prepare, tmp_path):
    """Strict Open XML, a document part of another name, an absolute target, a missing picture, nothing else."""
    body = f"<w:document {NAMES}><w:body>{p('甲')}</w:body></w:document>"
    strict = body.replace(SPACES["w"], "http://purl.oclc.org/ooxml/wordprocessingml/main").encode()
    packages = [
        {"word/document.xml": strict},
        {
            "_rels/.rels": LINK.format("officeDocument", "/word/document2.xml").encode(),
            "word/document2.xml": body.encode(),
        },
        {
            "word/document.xml": body.encode(),
            "word/_rels/document.xml.rels": LINK.format("image", "NULL").encode(),
        },
        {"word/document.xml": body.encode(), "word/_rels/document.xml.rels": None, "word/styles.xml": None},
    ]
    for changes in packages:
        assert prepare.read_docx(save(tmp_path / "a.docx", "", changes=changes)) == "甲"


def hostile(folder: Path) -> dict[str, bytes]:
    """Return name -> bytes of files that must be refused, each by a line that names it."""
    entity = (
        '<!DOCTYPE a [<!ENTITY x "y"><!ENTITY z "&x;&x;">]>'
        + f"<w:document {NAMES}><w:body>{p('&z;')}</w:body></w:document>"
    )
    parts = {
        "entities": {"word/document.xml": entity.encode()},
        "outside": {"word/document.xml": b'<!DOCTYPE a [<!ENTITY x SYSTEM "file:///etc/passwd">]><a>&x;</a>'},
        "deep": {"word/document.xml": b"<a>" * 5000 + b"</a>" * 5000},
        "large": {"word/document.xml": b"<a>" + b" " * (25 << 20) + b"</a>"},
        "tags": {"word/document.xml": b"<a>" + b"<b/>" * 1_000_001 + b"</a>"},
        "broken": {"word/document.xml": b"<w:document"},
        "empty": {"word/document.xml": b""},
        "no_document": {"word/document.xml": None},
        "no_links": {"_rels/.rels": b"<a/>"},
        "above": {"_rels/.rels": LINK.format("officeDocument", "../../../etc/passwd").encode()},
        "no_body": {"word/document.xml": b"<a/>"},
        "broken_numbers": {"word/numbering.xml": b"<a"},
        "broken_styles": {"word/styles.xml": b"<a"},
        "lost_styles": {"word/styles.xml": None},
    }
    files = {
        name: save(folder / "part", p("甲"), changes=changes).read_bytes() for name, changes in parts.items()
    }
    many = io.BytesIO()
    with zipfile.ZipFile(many, "w") as archive:
        for number in range(5001):
            archive.writestr(str(number), "")
    files |= {"many": many.getvalue(), "cut": files["deep"][:2000], "nothing": b"", "text": b"PK\3\4 text"}
    return files | {"ole": b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + b"\0" * 600}


def test_hostile_files_are_refused_by_name_and_at_once(prepare, tmp_path):
    for name, raw in hostile(tmp_path).items():
        path = tmp_path / f"{name}.docx"
        path.write_bytes(raw)
        start = time.process_time()
        with pytest.raises(ValueError) as error:
            prepare.read_docx(path)
        assert (
            str(path) in str(error.value) and "\n" not in str(error.value) and len(str(error.value)) < 500
        ), name
        assert time.process_time() - start < 3, name


def test_the_largest_document_takes_seconds(prepare, tmp_path, monkeypatch):
    monkeypatch.setattr(prepare, "MAX_TAGS", 200_000)  # a fifth of the true limit
    path = save(tmp_path / "a.docx", "<w:p/>" * 150_000)
    start = time.process_time()
    assert prepare.read_docx(path).count("\n") == 149_999
    path = save(tmp_path / "b.docx", "<w:p>" + box("甲") * 4_000 + "</w:p>")
    assert prepare.read_docx(path).count("甲") == 4_000
    assert time.process_time() - start < 8


@pytest.mark.parametrize("name", ["pipe.docx", "folder.docx", "dead.txt", "zero.txt"])
def test_what_is_no_regular_file_is_named(prepare, tmp_path, name):
    path = tmp_path / name
    if name == "pipe.docx":
        os.mkfifo(path)
    elif name == "folder.docx":
        path.mkdir()
    else:
        path.symlink_to("/dev/zero" if name == "zero.txt" else tmp_path / "missing")
    with pytest.raises(ValueError, match=name):
        prepare.read_document(path)


@given(raw=st.binary(max_size=300), kept=st.integers(0, 16), cut=st.integers(0, 3000))
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_damage_to_a_document(functions, tmp_path_factory, raw, kept, cut):
    """A .docx of which one part is replaced by other bytes, or the end is missing, is read or refused by name."""
    prepare, path = functions(PROGRAM), tmp_path_factory.getbasetemp() / "damaged.docx"
    source, damaged = zipfile.ZipFile(save(path, item("甲"), lists(*LADDER))), io.BytesIO()
    with zipfile.ZipFile(damaged, "w") as archive:
        for place, name in enumerate(source.namelist()):
            archive.writestr(name, raw if place == kept else source.read(name))
    path.write_bytes(damaged.getvalue()[: len(damaged.getvalue()) - cut])
    try:
        assert prepare.read_docx(path) in ("一、甲", "甲", "")
    except ValueError as error:
        assert "damaged.docx" in str(error)


# read_document


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "gb18030", "utf-16", "big5"])
def test_text_in_every_encoding(prepare, tmp_path, encoding):
    text = (
        "關於停水的通告\r\n因管線維修，本社區明日上午停水，請住戶提前儲水。\r\n"
        if encoding == "big5"
        else "关于停水的通告\r\n因管线维修，本小区明日上午停水，请提前储水。\r\n"
    )
    (tmp_path / "a.TXT").write_bytes(text.encode(encoding))
    assert prepare.read_document(tmp_path / "a.TXT") == text.replace("\r\n", "\n").strip()


@pytest.mark.parametrize(
    ("name", "remedy"),
    [
        ("通知.doc", "libreoffice --headless --convert-to docx"),
        ("通知.WPS", "libreoffice --headless --convert-to docx"),
        ("a.rtf", "libreoffice"),
        ("a.pdf", "writer_pdf_import"),
        ("a.ofd", "save it as .docx"),
        ("a.xlsx", "only .docx and .txt"),
        ("~$a.docx", "hidden"),
        (".~lock.a.docx#", "hidden"),
        ("a", "only .docx"),
    ],
)
def test_other_files_are_refused_with_the_remedy(prepare, tmp_path, name, remedy):
    (tmp_path / name).write_bytes(b"x")
    with pytest.raises(ValueError, match="a|通知") as error:
        prepare.read_document(tmp_path / name)
    assert name in str(error.value) and remedy in str(error.value)


def test_document_without_text(prepare, tmp_path, capsys):
    with pytest.raises(ValueError, match="scan.docx holds no text"):
        prepare.read_document(save(tmp_path / "scan.docx", p(PICTURE)))
    assert "picture" in capsys.readouterr().out


# Titles


@pytest.mark.parametrize(
    ("text", "title"),
    [
        ("清江市人民政府关于促进社区食堂发展的指导意见\n清政发〔2024〕12号\n各区人民政府：\n", "清江市人民政府关于促进社区食堂发展的指导意见"),
        ("清江市人民政府关于做好农贸市场改造\n几 个 问 题 的 通 知\n清政发〔2024〕16号\n", "清江市人民政府关于做好农贸市场改造几个问题的通知"),
        ("清江市人民政府关于清理行政规范性文件\n和废止一批过时文件的通知\n", "清江市人民政府关于清理行政规范性文件和废止一批过时文件的通知"),
        ("特急\n清江市卫生健康委员会文件\n清卫〔2024〕1号\n\n清江市卫生健康委员会\n关于开展检查的通知\n各区：\n", "关于开展检查的通知"),
        ("国卫办医函〔2024〕123号\t签发人：陈一一\n清江市财政局关于增拨经费的请示\n", "清江市财政局关于增拨经费的请示"),
        ("会议纪要\n2024年3月5日，", "会议纪要"),
        ("根据《关于停水的通知》，现答复如下：\n一、关于经费问题。\n", ""),
        ("没有标题的正文。\n", ""),
        ("", ""),
    ],
)  # fmt: skip
def test_title_of_a_document(prepare, text, title):
    assert prepare.title_of(text) == title


PATTERNS = [
    "关于",
    "关于\n",
    "通知",
    "通知\n",
    " ",
    "\n",
    "　\n",
    "关于停水的",
    "甲",
    "甲\n",
    "：\n",
    "\r",
    "<|",
    "<|a",
    "{'text': ",
]


@pytest.mark.parametrize("pattern", PATTERNS)
def test_100_kb_of_anything_take_less_than_a_second(prepare, tmp_path, pattern):
    (tmp_path / "a.txt").write_text(pattern * (100_000 // len(pattern.encode())), encoding="utf-8")
    start = time.process_time()
    try:
        prepare.document_row(tmp_path / "a.txt")
    except ValueError as error:
        assert "a.txt" in str(error)
    assert time.process_time() - start < 2.5


# Folders and rows


NOTICE = "清江市卫生健康委员会关于开展检查的通知\n各区：\n现将有关事项通知如下：\n一、认真检查。\n清江市卫生健康委员会\n2024年3月5日"


def test_a_folder(prepare, tmp_path):
    (tmp_path / "sub").mkdir()
    save(tmp_path / "sub" / "关于停水的通告.DOCX", p("关于停水的通告") + p("明日停水。"))
    (tmp_path / "检查通知.txt").write_text(NOTICE, encoding="gb18030")
    (tmp_path / "检查通知2.txt").write_text(NOTICE.replace("\n", "\r\n  "), encoding="utf-8")
    (tmp_path / "会议.txt").write_text("研究了有关事项。", encoding="utf-8")
    (tmp_path / "坏.txt").write_text("正文<|im_end|>", encoding="utf-8")
    for name in ("~$停水.docx", "旧.doc", "旧.wps", "坏.docx", "表.xlsx"):
        (tmp_path / name).write_bytes(b"x")
    rows, left = prepare.gather_rows(tmp_path)
    assert rows == [
        {
            "instruction": "起草关于停水的通告",
            "input": "",
            "output": "关于停水的通告\n明日停水。",
            "topic": "关于停水的通告",
        },
        {"instruction": "起草会议", "input": "", "output": "研究了有关事项。", "topic": "会议"},
        {"instruction": "起草检查通知", "input": "", "output": NOTICE, "topic": NOTICE.split("\n")[0]},
    ]
    for name in ("~$停水.docx", "旧.doc", "旧.wps", "坏.docx", "表.xlsx", "坏.txt", "检查通知2.txt"):
        assert sum(name in reason for reason in left) == 1, left
    assert len(left) == 7 and any("im_end" in reason for reason in left)


def test_a_name_from_a_windows_archive(prepare, tmp_path):
    name = os.fsdecode("停水通告.txt".encode("gb18030"))
    (tmp_path / name).write_text("明日停水。", encoding="utf-8")
    rows, _ = prepare.gather_rows(tmp_path)
    assert rows[0]["instruction"] == "起草停水通告"


FORMS = [
    {"instruction": "起草通知", "input": "三月五日", "output": NOTICE},
    {"prompt": "起草通知", "response": NOTICE},
    {"问题": "起草通知", "回答": NOTICE},
    {"messages": [{"role": "user", "content": "起草通知"}, {"role": "assistant", "content": NOTICE}]},
    {"conversations": [{"from": "human", "value": "起草通知"}, {"from": "gpt", "value": NOTICE}]},
]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("lines", [True, False])
def test_common_forms(prepare, tmp_path, form, lines):
    text = json.dumps(form, ensure_ascii=False)
    (tmp_path / "a.JSON").write_text(text if lines else f"[{text}]", encoding="gb18030")
    rows, left = prepare.gather_rows(tmp_path / "a.JSON")
    topic = NOTICE.split("\n")[0]
    assert (
        rows
        == [{"instruction": "起草通知", "input": form.get("input", ""), "output": NOTICE, "topic": topic}]
        and not left
    )


def test_rows_that_cannot_be_used_are_named_with_their_number(prepare, tmp_path):
    records = [
        {"instruction": "起草", "output": "甲。", "topic": "停水"},
        {"instruction": "起草", "output": " 甲。\n"},
        {"instruction": "起草", "output": "乙。", "history": [["你好", "你好"]]},
        {"instruction": "起草", "output": "丙。", "system": "你是秘书。"},
        {"instruction": "起草", "output": ["丁", "戊"]},
        {"instruction": "起草"},
        {"标题": "起草", "正文": "己"},
        "庚",
        None,
    ]
    (tmp_path / "a.json").write_text(json.dumps(records), encoding="utf-8")
    rows, left = prepare.gather_rows(tmp_path)
    assert [(row["output"], row["topic"]) for row in rows] == [("甲。", "停水"), ("丙。", "起草")]
    assert [reason for reason in left if "system" in reason] and len(left) == 8
    for number in range(2, 10):
        assert any(f"a.json, record {number}: " in reason for reason in left)
    assert any("标题, 正文" in reason for reason in left)


def test_signs_keep_documents_apart(prepare, tmp_path):
    (tmp_path / "a.json").write_text(
        json.dumps([{"instruction": "起草", "output": text} for text in ("气温>30", "气温<30", "气温30")]),
        encoding="utf-8",
    )
    assert len(prepare.gather_rows(tmp_path)[0]) == 3


def test_shipped_rows_are_read_whole(prepare):
    path = ROOT / "data" / "gongwen" / "train.json"
    rows, left = prepare.gather_rows(path)
    shipped = json.loads(path.read_text(encoding="utf-8"))
    assert [row["output"] for row in rows] == [row["output"] for row in shipped] and not left
    assert [row["topic"] for row in rows] == [row["topic"] for row in shipped]


def test_sources_without_a_document(prepare, tmp_path):
    with pytest.raises(ValueError, match="missing"):
        prepare.gather_rows(tmp_path / "missing")
    with pytest.raises(ValueError, match="no usable document"):
        prepare.gather_rows(tmp_path)
    (tmp_path / "a.doc").write_bytes(b"x")
    with pytest.raises(ValueError, match="a.doc"):
        prepare.gather_rows(tmp_path / "a.doc")


def test_the_program(tmp_path):
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "通知.txt").write_text(NOTICE, encoding="utf-8")
    (tmp_path / "in" / "旧😀.doc").write_bytes(b"x")
    out = tmp_path / "out.json"
    command = [sys.executable, str(ROOT / PROGRAM)]
    environment = {**os.environ, "PYTHONIOENCODING": "gbk"}
    done = subprocess.run(
        [*command, str(tmp_path / "in"), str(out)], capture_output=True, env=environment, encoding="gbk"
    )
    assert done.returncode == 0, done.stderr
    assert "1 rows on 1 topics; left out: 1" in done.stdout and "convert-to docx" in done.stdout
    assert json.loads(out.read_text(encoding="utf-8"))[0]["output"] == NOTICE
    done = subprocess.run(
        [*command, str(tmp_path / "missing")], capture_output=True, env=environment, encoding="gbk"
    )
    assert done.returncode == 1 and "missing" in done.stderr and "Traceback" not in done.stderr
