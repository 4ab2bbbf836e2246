"""The reader of an insurer's sheet: which row a picture belongs to, what people do to sheets, what is refused."""

import json
import os
import re
import shutil
import struct
import subprocess
import sys
import time
import zipfile
import zlib
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT
from datasets import load_dataset
from hypothesis import given, settings
from hypothesis import strategies as st
from openpyxl import Workbook
from openpyxl.drawing.image import Image as Pasted
from PIL import Image

PROGRAM = "data/car_insurance/prepare.py"
ROOM = ROOT / "data" / "car_insurance"
SHEET = ROOM / "qwen-vl-train.xlsx"
MAIN = "http://schemas.openxmlformats.org/spreadsheetml/2006/main"
LINKS = "http://schemas.openxmlformats.org/officeDocument/2006/relationships"
DRAW = "http://schemas.openxmlformats.org/drawingml/2006"
PACKAGE = "http://schemas.openxmlformats.org/package/2006/relationships"
ANSWER = {"里程数": 12345, "单位": "公里", "仪表盘状态": "正常", "警示灯": []}
GOOD = json.dumps(ANSWER, ensure_ascii=False)
HEADER = ["image", "prompt", "response", "style"]
FINE = ["a.jpg", "读", GOOD, "s"]
PX, PT = 9525, 12700  # EMU


@pytest.fixture(scope="module")
def program(functions):
    return functions(PROGRAM)


@pytest.fixture(scope="module")
def shipped(program):
    return program.load_rows(SHEET)


# %% Pictures
def picture(form="JPEG", mode="RGB", size=(64, 48), **options) -> bytes:
    """Return a picture file whose left half is dark and whose right half is light."""
    pixels = np.full((size[1], size[0]), 40, "uint8")
    pixels[:, size[0] // 2 :] = 220
    file = BytesIO()
    Image.fromarray(pixels).convert(mode).save(file, form, **options)
    return file.getvalue()


def marked(number: int) -> bytes:
    """Return a picture from which number_of() reads its number."""
    file = BytesIO()
    Image.new("RGB", (16, 12), (number, 0, 255 - number)).save(file, "PNG")
    return file.getvalue()


def number_of(raw: bytes) -> int:
    return Image.open(BytesIO(raw)).getpixel((1, 1))[0]


def png(width: int, height: int, data: bytes = b"\0" * 1000) -> bytes:
    """Return a PNG of grey pixels, by default one that says it is far larger than it is."""

    def chunk(name: bytes, content: bytes) -> bytes:
        end = struct.pack(">I", zlib.crc32(name + content))
        return struct.pack(">I", len(content)) + name + content + end

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(data, 9)) + chunk(b"IEND", b"")


# %% Sheets
def rels(items: dict) -> str:
    """Return a list of relationships: id -> (kind, target) or (kind, target, mode)."""
    lines = "".join(
        f'<Relationship Id="{name}" Type="{LINKS}/{kind}" Target="{target}"'
        + (f' TargetMode="{mode[0]}"/>' if mode else "/>")
        for name, (kind, target, *mode) in items.items()
    )
    return f'<Relationships xmlns="{PACKAGE}">{lines}</Relationships>'


def cell(place: str, value) -> str:
    """Return a cell: None is left out, a text that begins with < is taken as XML."""
    if value is None:
        return ""
    if str(value).startswith("<"):
        return str(value)
    text = str(value).replace("&", "&amp;").replace("<", "&lt;")
    return f'<c r="{place}" t="inlineStr"><is><t xml:space="preserve">{text}</t></is></c>'


def worksheet(lines: list, heights=(), hidden=(), head="", tail="") -> str:
    """Return a worksheet; heights are in points, row -> height."""
    heights, rows = dict(heights), ""
    for number, line in enumerate(lines, 1):
        height = f' ht="{heights[number]}" customHeight="1"' if number in heights else ""
        state = ' hidden="1"' if number in hidden else ""
        cells = "".join(cell(f"{'ABCDEFGH'[i]}{number}", value) for i, value in enumerate(line))
        rows += f'<row r="{number}"{height}{state}>{cells}</row>'
    return (
        f'<worksheet xmlns="{MAIN}" xmlns:r="{LINKS}">{head}<sheetData>{rows}</sheetData>{tail}</worksheet>'
    )


BLIP = '<a:blip r:embed="rId{}"/>'
PIC = '<x:pic><x:nvPicPr><x:cNvPr id="2" name="p"/></x:nvPicPr><x:blipFill>{blip}</x:blipFill><x:spPr/></x:pic><x:clientData/>'


def mark(name: str, column=0, row=0, right=0, down=0) -> str:
    """Return a corner; row and column count from 0, offsets are in pixels."""
    return (
        f"<x:{name}><x:col>{column}</x:col><x:colOff>{right * PX}</x:colOff>"
        f"<x:row>{row}</x:row><x:rowOff>{round(down * PX)}</x:rowOff></x:{name}>"
    )


def one(blip: int | str, row: int, down=0.0, height=40.0, column=0, right=0, width=50) -> str:
    """Return a one-cell anchor: the picture begins `down` pixels below the top of a row (from 1)."""
    blip = blip if isinstance(blip, str) else BLIP.format(blip)
    size = f'<x:ext cx="{width * PX}" cy="{round(height * PX)}"/>'
    return f"<x:oneCellAnchor>{mark('from', column, row - 1, right, down)}{size}{PIC.format(blip=blip)}</x:oneCellAnchor>"


def two(blip: int, row: int, down: float, end: int, below: float, column=0, right=50, end_column=0) -> str:
    """Return a two-cell anchor from row, down to end, below (pixels)."""
    corners = mark("from", column, row - 1, 0, down) + mark("to", end_column, end - 1, right, below)
    return f"<x:twoCellAnchor>{corners}{PIC.format(blip=BLIP.format(blip))}</x:twoCellAnchor>"


def page(blip: int, x: float, y: float, width=50, height=40) -> str:
    """Return an absolute anchor, in pixels."""
    place = f'<x:pos x="{round(x * PX)}" y="{round(y * PX)}"/><x:ext cx="{width * PX}" cy="{height * PX}"/>'
    return f"<x:absoluteAnchor>{place}{PIC.format(blip=BLIP.format(blip))}</x:absoluteAnchor>"


def drawing(anchors: list[str]) -> str:
    names = f'xmlns:x="{DRAW}/spreadsheetDrawing" xmlns:a="{DRAW}/main" xmlns:r="{LINKS}"'
    return f"<x:wsDr {names}>{''.join(anchors)}</x:wsDr>"


def write_book(path: Path, sheets: dict, anchors=(), media=None, parts=None, targets=None) -> Path:
    """Write an .xlsx by hand: worksheets by title, anchors over the first one, media by number, other parts."""
    media = {number: marked(number) for number in range(1, 10)} if media is None else media
    listed = "".join(
        f'<sheet name="{title}" sheetId="{i}" r:id="rId{i}"/>' for i, title in enumerate(sheets, 1)
    )
    files = {
        "_rels/.rels": rels({"rId1": ("officeDocument", "xl/workbook.xml")}),
        "xl/workbook.xml": f'<workbook xmlns="{MAIN}" xmlns:r="{LINKS}"><sheets>{listed}</sheets></workbook>',
        "xl/_rels/workbook.xml.rels": rels(
            {f"rId{i}": ("worksheet", f"worksheets/sheet{i}.xml") for i in range(1, len(sheets) + 1)}
            | {"rId99": ("sharedStrings", "/xl/sharedStrings.xml")}
        ),
        "xl/sharedStrings.xml": f'<sst xmlns="{MAIN}"/>',
        "xl/worksheets/_rels/sheet1.xml.rels": rels({"rId1": ("drawing", "../drawings/drawing1.xml")}),
        "xl/drawings/drawing1.xml": drawing(anchors),
        "xl/drawings/_rels/drawing1.xml.rels": rels(
            targets or {f"rId{number}": ("image", f"../media/image{number}.png") for number in media}
        ),
        **{f"xl/worksheets/sheet{i}.xml": text for i, text in enumerate(sheets.values(), 1)},
        **{f"xl/media/image{number}.png": raw for number, raw in media.items()},
        **(parts or {}),
    }
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            if content is not None:
                archive.writestr(name, content)
    return path


def table(count=3, header=True, image=None) -> list:
    """Return a header and lines whose answers are their row numbers; the pictures lie over column A."""
    lines = [HEADER] if header else []
    return lines + [
        [image, "读", json.dumps({"里程数": number}), f"s{number}"] for number in range(2, count + 2)
    ]


def seen(rows: list) -> dict:
    """Return row number -> numbers of its pictures."""
    return {row["number"]: [number_of(raw) for raw in row["images"]] for row in rows}


def write_sheet(folder: Path, lines: list, header=HEADER, change=None) -> Path:
    """Write a sheet with openpyxl; bytes in the first column are pasted over their cell, a.jpg lies beside it."""
    (folder / "a.jpg").write_bytes(picture())
    book = Workbook()
    sheet = book.active
    sheet.append(header)
    for number, line in enumerate(lines, 2):
        sheet.append([None if isinstance(value, (bytes, list)) else value for value in line])
        for raw in line[0] if line and isinstance(line[0], list) else line[:1]:
            if isinstance(raw, bytes):
                sheet.add_image(Pasted(BytesIO(raw)), f"A{number}")
    if change:
        change(sheet)
    book.save(folder / "sheet.xlsx")
    return folder / "sheet.xlsx"


# %% Which row a picture belongs to
H60 = {2: 45, 3: 45, 4: 45}  # points: 60 pixels; the header has 20 pixels
# name, heights in points, anchors (picture n is meant for row n + 1 unless said), row -> pictures, words printed
PLACES = [
    ("inside its row", H60, [one(1, 2, 5), one(2, 3, 5), one(3, 4, 5)], {2: [1], 3: [2], 4: [3]}, ""),
    ("two pixels too high", H60, [one(1, 1, 18, 58), one(2, 2, 58, 58), one(3, 3, 58, 58)], {2: [1], 3: [2], 4: [3]}, ""),
    ("two pixels too low", H60, [one(1, 2, 2, 60), one(2, 3, 2, 60), one(3, 4, 2, 60)], {2: [1], 3: [2], 4: [3]}, ""),
    ("a third too high", H60, [one(1, 1, 8, 40), one(2, 2, 46, 40), one(3, 3, 46, 40)], {2: [1], 3: [2], 4: [3]}, ""),
    ("two cells, too high", H60, [two(1, 1, 18, 2, 55), two(2, 2, 58, 3, 55), two(3, 3, 58, 4, 55)], {2: [1], 3: [2], 4: [3]}, ""),
    ("half and half", H60, [one(1, 2, 5), one(2, 2, 40), one(3, 4, 5)], {2: [1], 4: [3]}, "A2: a picture covers two rows alike"),
    ("rows of the usual height, larger pictures", {}, [one(1, 2, 0, 60), one(2, 3, 0, 60), one(3, 4, 0, 60)], {2: [1], 3: [2], 4: [3]}, ""),
    ("the same, three pixels too high", {}, [one(1, 1, 17, 60), one(2, 2, 17, 60), one(3, 3, 17, 60)], {2: [1], 3: [2], 4: [3]}, ""),
    ("pictures of 480 pixels over uneven rows", {2: 20, 3: 90, 4: 30}, [one(1, 2, 0, 480), one(2, 3, 0, 480), one(3, 4, 0, 480)], {2: [1], 3: [2], 4: [3]}, ""),
    ("larger than its row, the next row taller", {2: 15, 3: 90, 4: 15}, [one(1, 2, 0, 140), one(2, 3, 0, 110), one(3, 4)], {2: [1], 3: [2], 4: [3]}, ""),
    ("most of it over the next, taller row", {2: 15, 3: 60, 4: 60}, [one(2, 2, 0, 90), one(3, 4, 5)], {3: [2], 4: [3]}, "A2: no picture"),
    ("over the header", H60, [one(1, 1, 0, 19), one(2, 3, 5), one(3, 4, 5)], {3: [2], 4: [3]}, "A1: a picture lies outside"),
    ("below the table", H60, [one(1, 2, 5), one(2, 3, 5), one(3, 4, 5), one(4, 9)], {2: [1], 3: [2], 4: [3]}, "A9: a picture lies outside"),
    ("in the prompt column", H60, [one(1, 2, 5), one(2, 3, 5, column=1), one(3, 4, 5)], {2: [1], 4: [3]}, "B3: a picture lies outside"),
    ("a sliver over the picture column", H60, [one(1, 2, 5), one(2, 3, 5, right=62, width=90), one(3, 4, 5)], {2: [1], 4: [3]}, "A3: a picture lies outside"),
    ("wider than the column", H60, [one(1, 2, 5, width=300), one(2, 3, 5, right=10, width=300), one(3, 4, 5)], {2: [1], 3: [2], 4: [3]}, ""),
    ("bound to the page", H60, [page(1, 3, 25), page(2, 3, 78), page(3, 3, 145)], {2: [1], 3: [2], 4: [3]}, ""),
    ("far below, bound to the page", H60, [page(1, 3, 25), page(2, 3, 10**7), page(3, 3, 145)], {2: [1], 4: [3]}, "outside"),
    ("two in one cell", H60, [one(1, 2, 5), one(3, 3, 5, right=30, width=20), one(2, 3, 5, width=20), one(4, 4, 5)], {2: [1], 3: [2, 3], 4: [4]}, "row 3: 2 pictures"),
    ("one of two reaches far into another row", H60, [one(1, 2, 5), one(2, 3, 5), one(3, 3, 40, 50), one(4, 4, 5)], {2: [1], 3: [2]}, "cell A4: 2 pictures, one of which"),
    ("pasted twice at the same place", H60, [one(1, 2, 5), one(1, 2, 5), one(2, 3, 5), one(3, 4, 5)], {2: [1], 3: [2], 4: [3]}, ""),
    ("no size", H60, [one(1, 2, 5, 0, width=0), one(2, 3, 5), one(3, 4, 5)], {2: [1], 3: [2], 4: [3]}, ""),
    ("no place", H60, [one(1, 2, 5), one(2, 3, 5).replace("<x:row>2</x:row>", "<x:row/>"), one(3, 4, 5)], {2: [1], 4: [3]}, "place cannot be read"),
    ("a row before the first", H60, [one(1, 2, 5), one(2, -3, 5), one(3, 4, 5)], {2: [1], 4: [3]}, "outside"),
    ("beyond the last row there is", H60, [one(1, 2, 5), one(2, 2 * 10**6, 5), one(3, 4, 5)], {2: [1], 4: [3]}, "place cannot be read"),
    ("in a group", H60, [one(1, 2, 5), one(2, 3, 5).replace("<x:pic>", "<x:grpSp><x:pic>").replace("</x:pic>", "</x:pic></x:grpSp>"), one(3, 4, 5)], {2: [1], 4: [3]}, "A3: pictures in a group"),
    ("a chart beside them", H60, [one(1, 2, 5), one("<a:solidFill/>", 3, 5), one(2, 3, 5), one(3, 4, 5)], {2: [1], 3: [2], 4: [3]}, ""),
]  # fmt: skip


@pytest.mark.parametrize(
    "heights,anchors,wanted,words", [case[1:] for case in PLACES], ids=[case[0] for case in PLACES]
)
def test_a_picture_belongs_to_the_row_that_it_covers_most(
    program, tmp_path, capsys, heights, anchors, wanted, words
):
    path = write_book(tmp_path / "b.xlsx", {"one": worksheet(table(), heights)}, anchors)
    assert seen(program.load_rows(path)) == wanted
    printed = capsys.readouterr().out
    assert words in printed and (words or "\n" not in printed.strip()), printed


@pytest.mark.parametrize("head,heights,down", [
    ('<sheetFormatPr defaultRowHeight="45"/>', {1: 15}, 58),
    ('<sheetFormatPr defaultRowHeight="15" zeroHeight="1"/>', H60 | {1: 15}, 58),
    ('<sheetFormatPr defaultRowHeight="45"/><cols><col min="1" max="1" width="4" hidden="1"/></cols>', {1: 15}, 58),
])  # fmt: skip
def test_sizes_that_a_sheet_states_once(program, tmp_path, head, heights, down):
    anchors = [one(1, 1, 18, 58, width=20), one(2, 2, down, 58, width=20), one(3, 3, down, 58, width=20)]
    path = write_book(tmp_path / "b.xlsx", {"one": worksheet(table(), heights, head=head)}, anchors)
    assert seen(program.load_rows(path)) == {2: [1], 3: [2], 4: [3]}


@pytest.mark.parametrize("anchors,wanted", [
    ([one(1, 2, 5), one(2, 3, 0), one(3, 4, 5)], {2: [1], 3: [2], 4: [3]}),  # row 3 was hidden after the picture was put in
    ([one(1, 2, 5), two(2, 3, 0, 3, 0), one(3, 4, 5)], {2: [1], 3: [2], 4: [3]}),  # and the picture with it
    ([two(1, 2, 3, 4, 12), one(2, 3, 0), one(3, 4, 15)], {2: [1], 3: [2], 4: [3]}),  # across the hidden row
    ([one(1, 2, 40, 50), one(2, 3, 0)], {3: [2], 4: [1]}),  # most of it behind the hidden row
])  # fmt: skip
def test_hidden_rows_have_no_height_and_are_said(program, tmp_path, capsys, anchors, wanted):
    path = write_book(tmp_path / "b.xlsx", {"one": worksheet(table(), H60, hidden=[3])}, anchors)
    assert seen(program.load_rows(path)) == wanted
    assert "row 3: hidden, but read" in capsys.readouterr().out


def test_several_picture_columns(program, tmp_path):
    lines = [
        ["图片1", "图片 2", "问题", "答案"],
        [None, None, "读", GOOD],
        [None, "a.png", "读", GOOD],
        [None, None, "读", GOOD],
    ]
    (tmp_path / "a.png").write_bytes(marked(9))
    anchors = [one(2, 2, 5, column=1), one(1, 2, 5), one(3, 3, 5), one(4, 4, 5, right=50, width=60)]
    path = write_book(tmp_path / "b.xlsx", {"one": worksheet(lines, H60)}, anchors)
    assert seen(program.load_rows(path)) == {2: [1, 2], 3: [3, 9], 4: [4]}


@given(st.lists(st.integers(10, 120), min_size=4, max_size=9), st.data())
def test_main_row_is_the_row_that_is_covered_most(functions, heights, data):
    """Where one row has more than 60% of a picture, and two pixels more than any other, it is that row."""
    edges = np.append(0, np.cumsum(heights)) * float(PX)
    start = data.draw(st.integers(0, sum(heights) - 2)) * PX
    end = start + data.draw(st.integers(1, 200)) * PX
    row, first, clear = functions(PROGRAM).main_row(start, end, edges)
    covered = np.minimum(edges[1:], end) - np.maximum(edges[:-1], start)
    best = int(covered.argmax()) + 1
    if covered.max() > 0.6 * (end - start) and np.sum(covered >= covered.max() - 2 * PX) == 1:
        assert row == best
    if row is not None:
        assert covered[row - 1] > 0
        whole = np.flatnonzero(covered >= 0.75 * np.diff(edges)) + 1
        assert row == best or row == whole[0] or covered[row - 1] >= covered.max() - 2 * PX
    else:
        assert sorted(covered)[-2] >= covered.max() - 2 * PX


# %% Pictures that are not there
EMF = b"\x01\0\0\0" + bytes(36) + b" EMF" + bytes(60)
TARGETS = [
    ("absolute", ("image", "/xl/media/image2.png"), None, ""),
    ("with dots", ("image", "../drawings/../media/image2.png"), None, ""),
    ("missing", ("image", "../media/image77.png"), None, "image77.png is missing in the file"),
    ("NULL", ("image", "NULL"), None, "NULL is missing in the file"),
    ("outside", ("image", "file:///C:/photos/a.jpg", "External"), None, "linked or lost"),
    ("outside, NULL", ("image", "NULL", "External"), None, "linked or lost"),
    ("up and out", ("image", "../../../../etc/passwd"), None, "etc/passwd is missing in the file"),
    ("EMF", ("image", "../media/image2.png"), EMF, "not a readable picture"),
    ("empty", ("image", "../media/image2.png"), b"", "0 bytes"),
    ("junk", ("image", "../media/image2.png"), b"junk", "not a readable picture"),
    ("EPS", ("image", "../media/image2.png"), b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "not a readable picture"),
    ("truncated", ("image", "../media/image2.png"), picture(size=(400, 300))[:-900], "not a readable picture"),
    ("50,000 x 50,000", ("image", "../media/image2.png"), png(50_000, 50_000), "more than 89 million pixels"),
    ("12,000 x 12,000", ("image", "../media/image2.png"), png(12_000, 12_000), "more than 89 million pixels"),
]  # fmt: skip


@pytest.mark.parametrize(
    "target,raw,words", [case[1:] for case in TARGETS], ids=[case[0] for case in TARGETS]
)
@pytest.mark.parametrize("kept_by", ["excel", "wps"])
def test_a_bad_picture_costs_its_row(program, tmp_path, capsys, kept_by, target, raw, words):
    media = {1: marked(1), 2: marked(2) if raw is None else raw, 3: marked(3)}
    targets = {f"rId{number}": ("image", f"../media/image{number}.png") for number in media} | {
        "rId2": target
    }
    if kept_by == "excel":
        path = write_book(
            tmp_path / "b.xlsx",
            {"one": worksheet(table(), H60)},
            [one(n, n + 1, 5) for n in media],
            media,
            targets=targets,
        )
    else:
        path = write_wps(
            tmp_path / "b.xlsx",
            media,
            {key: (kind, name.removeprefix("../"), *more) for key, (kind, name, *more) in targets.items()},
        )
    rows = program.load_rows(path)
    assert seen(rows) == ({2: [1], 4: [3]} if words else {2: [1], 3: [2], 4: [3]})
    printed = capsys.readouterr().out
    assert not words or re.search(rf"row 3, cell A3: .*{re.escape(words)}.*; left out", printed), printed


def write_wps(path: Path, media: dict, targets=None, blips=None, parts=None) -> Path:
    """Write a sheet whose pictures stand inside cells, as WPS keeps them."""
    lines = table()
    for number in media:
        lines[number][0] = (
            f'<c r="A{number + 1}" t="str"><f>_xlfn.DISPIMG("ID_{number}",1)</f><v>=DISPIMG("ID_{number}",1)</v></c>'
        )
    cells = "".join(
        f"<e:cellImage>{PIC.format(blip=(blips or {}).get(n, BLIP.format(n)))}</e:cellImage>".replace(
            'name="p"', f'name="ID_{n}"'
        )
        for n in media
    ).replace("<x:clientData/>", "")
    names = f'xmlns:e="http://www.wps.cn/officeDocument/2017/etCustomData" xmlns:x="{DRAW}/spreadsheetDrawing" xmlns:a="{DRAW}/main" xmlns:r="{LINKS}"'
    targets = targets or {f"rId{n}": ("image", f"media/image{n}.png") for n in media}
    kept = {
        "xl/cellimages.xml": f"<e:cellImages {names}>{cells}</e:cellImages>",
        "xl/_rels/cellimages.xml.rels": rels(targets),
    }
    return write_book(path, {"one": worksheet(lines)}, (), media, {**kept, **(parts or {})})


@pytest.mark.parametrize("blips,parts,wanted", [
    ({2: "<a:blip/>"}, {}, {2: [1], 4: [3]}),
    ({2: ""}, {}, {2: [1], 4: [3]}),
    ({2: '<a:blip r:link="rId2"/>'}, {}, {2: [1], 4: [3]}),
    ({2: '<a:blip r:embed="rId9"/>'}, {}, {2: [1], 4: [3]}),
    ({2: '<a:blip r:embed="rId2" r:link="rId9"/>'}, {}, {2: [1], 3: [2], 4: [3]}),
    ({}, {"xl/_rels/cellimages.xml.rels": None}, {}),
    ({}, {"xl/_rels/cellimages.xml.rels": "<x"}, {}),
    ({}, {"xl/cellimages.xml": None}, {}),
    ({}, {"xl/cellimages.xml": "<x"}, {}),
    ({}, {"xl/media/image2.png": None}, {2: [1], 4: [3]}),
])  # fmt: skip
def test_pictures_inside_cells(program, tmp_path, capsys, blips, parts, wanted):
    media = {1: marked(1), 2: marked(2), 3: marked(3)}
    path = write_wps(tmp_path / "b.xlsx", media, blips=blips, parts=parts)
    assert seen(program.load_rows(path)) == wanted
    printed = capsys.readouterr().out
    for number in {2, 3, 4} - wanted.keys():
        assert f"row {number}, cell A{number}: " in printed


@pytest.mark.parametrize("parts", [
    {"xl/drawings/drawing1.xml": None}, {"xl/drawings/drawing1.xml": "<x"}, {"xl/drawings/drawing1.xml": b"\xff\xfe\0"},
    {"xl/drawings/_rels/drawing1.xml.rels": "<x"}, {"xl/worksheets/_rels/sheet1.xml.rels": "<x"},
])  # fmt: skip
def test_a_lost_drawing_costs_its_pictures_not_the_sheet(program, tmp_path, capsys, parts):
    (tmp_path / "a.png").write_bytes(marked(7))
    lines = table()
    lines[2][0] = "a.png"
    path = write_book(tmp_path / "b.xlsx", {"one": worksheet(lines, H60)}, [one(1, 2, 5)], parts=parts)
    assert seen(program.load_rows(path)) == {3: [7]}
    printed = capsys.readouterr().out
    assert "pictures over the cells: " in printed and "row 2, cell A2: no picture" in printed


# %% Rows that cannot be used
BAD_ROWS = [
    ("missing file", ["b.jpg", "读", GOOD], "A3", "b.jpg in .* is no file"),
    ("folder for a file", [".", "读", GOOD], "A3", "is no file"),
    ("name longer than a name can be", ["x" * 5000, "读", GOOD], "A3", "cannot be read"),
    ("http", ["http://example.com/a.jpg", "读", GOOD], "A3", "is a URL, and nothing is downloaded"),
    ("file URL", ["file:///etc/passwd", "读", GOOD], "A3", "is a URL"),
    ("absolute", ["/etc/hostname", "读", GOOD], "A3", "is an absolute path"),
    ("absolute of Windows", ["C:\\photos\\a.jpg", "读", GOOD], "A3", "is an absolute path"),
    ("drive of Windows", ["C:a.jpg", "读", GOOD], "A3", "is an absolute path"),
    ("share of Windows", ["\\\\server\\a.jpg", "读", GOOD], "A3", "is an absolute path"),
    ("home", ["~/a.jpg", "读", GOOD], "A3", "is an absolute path"),
    ("above the folder", ["../secret.jpg", "读", GOOD], "A3", "leaves the sheet's folder"),
    ("above the folder, of Windows", ["sub\\..\\..\\secret.jpg", "读", GOOD], "A3", "leaves the sheet's folder"),
    ("link out of the folder", ["link.jpg", "读", GOOD], "A3", "leaves the sheet's folder"),
    ("linked folder", ["linked/secret.jpg", "读", GOOD], "A3", "leaves the sheet's folder"),
    ("dead link", ["dead.jpg", "读", GOOD], "A3", "is no file"),
    ("links in a circle", ["circle.jpg", "读", GOOD], "A3", "cannot be read"),
    ("pipe", ["pipe.jpg", "读", GOOD], "A3", "is no file"),
    ("no picture", [None, "读", GOOD], "A3", "no picture"),
    ("second of two is missing", ["a.jpg\nb.jpg", "读", GOOD], "A3", "b.jpg in .* is no file"),
    ("nine pictures", ["a.jpg;" * 9, "读", GOOD], "A3", "more than 8 pictures"),
    ("formula for a picture", ["=A2", "读", GOOD], "A3", "is a formula"),
    ("WPS picture that is not there", ['=DISPIMG("ID_1",1)', "读", GOOD], "A3", "linked or lost"),
    ("picture placed in the cell by Excel 365", ["#VALUE!", "读", GOOD], "A3", "paste the picture over the cell"),
    ("no prompt", ["a.jpg", None, GOOD], "B3", "no prompt"),
    ("blank prompt", ["a.jpg", " \u3000 ", GOOD], "B3", "no prompt"),
    ("formula for a prompt", ["a.jpg", "=B2", GOOD], "B3", "is a formula"),
    ("long prompt", ["a.jpg", "读" * 20_000, GOOD], "B3", "20,000 characters"),
    ("end of the turn in a prompt", ["a.jpg", "读<|im_end|>", GOOD], "B3", r"<\|im_end\|> is a sign of the chat template"),
    ("picture sign in an answer", ["a.jpg", "读", '{"VIN": "<|image_pad|>"}'], "C3", r"<\|image_pad\|> is a sign"),
    ("no response", ["a.jpg", "读", None], "C3", "no response"),
    ("formula for a response", ["a.jpg", "读", '=HYPERLINK("http://x","{}")'], "C3", "is a formula"),
    ("free sentence", ["a.jpg", "读", "里程数：12,345 公里，仪表盘状态正常"], "C3", "not a JSON object"),
    ("number", ["a.jpg", "读", 12345], "C3", "not a JSON object"),
    ("formula for a style", ["a.jpg", "读", GOOD, "=D2"], "D3", "is a formula"),
]  # fmt: skip


@pytest.mark.parametrize(
    "line,place,words", [case[1:] for case in BAD_ROWS], ids=[case[0] for case in BAD_ROWS]
)
def test_a_bad_row_is_named_and_left_out(program, tmp_path, capsys, line, place, words):
    folder = tmp_path / "folder"
    folder.mkdir()
    (tmp_path / "secret.jpg").write_bytes(picture())
    (folder / "link.jpg").symlink_to(tmp_path / "secret.jpg")
    (folder / "linked").symlink_to(tmp_path)
    (folder / "dead.jpg").symlink_to(folder / "nothing.jpg")
    (folder / "circle.jpg").symlink_to(folder / "circle.jpg")
    os.mkfifo(folder / "pipe.jpg")
    path = write_sheet(folder, [FINE, line, FINE])
    start = time.time()
    assert [row["number"] for row in program.load_rows(path)] == [2, 4]
    printed = capsys.readouterr().out
    assert re.search(rf"sheet.xlsx, row 3, cell {place}: .*{words}.*; left out", printed), printed
    assert time.time() - start < 5


@pytest.mark.parametrize(
    "area,touched",
    [
        ("A3:A4", {3, 4}),
        ("B3:C3", {3}),
        ("C2:C3", {2, 3}),
        ("D4:D5", {4, 5}),
        ("E2:E5", set()),
        ("F1:H9", set()),
    ],
)
def test_merged_cells_matter_where_they_are_read(program, tmp_path, capsys, area, touched):
    path = write_sheet(tmp_path, [FINE] * 4, change=lambda sheet: sheet.merge_cells(area))
    assert {row["number"] for row in program.load_rows(path)} == {2, 3, 4, 5} - touched
    assert capsys.readouterr().out.count(f"merged cells {area}") == len(touched)


# %% Cells
SHARED = f'<sst xmlns="{MAIN}"><si><t>读</t></si><si><r><t>读</t></r><r><rPr><b/></rPr><t>数</t></r><rPh sb="0" eb="1"><t>du</t></rPh></si></sst>'
CELLS = [
    ('<c r="B2" t="s"><v>0</v></c>', "读"),
    ('<c r="B2" t="s"><v>1</v></c>', "读数"),
    ('<c r="B2" t="str"><v>读</v></c>', "读"),
    ("<c><v>7</v></c>", "7"),  # without its place
    ('<c r="B2" t="inlineStr"><is><r><t>读</t></r><r><t>数</t></r></is></c>', "读数"),
    ('<c r="B2" t="inlineStr"><is><t>_x000D_读_x0007__x005F_x0041_</t></is></c>', "读_x0041_"),
    ('<c r="B2" t="inlineStr"><is><t>\u202a读\u200b&#13;&#10;数\ufeff</t></is></c>', "读\n数"),
    ('<c r="B2" t="inlineStr"><is><t>_xD83D__xDE97_读_xD83D_</t></is></c>', "\U0001f697读\ufffd"),
    ('<c r="B2" t="s"><v>99</v></c>', None),
    ('<c r="B2" t="s"><v>-1</v></c>', None),
    ('<c r="B2" t="s"><v>zero</v></c>', None),
    ('<c r="B2" t="e"><v>#N/A</v></c>', None),
    ('<c r="B2" t="str"><f>A1</f><v>读</v></c>', None),
    (f'<c r="B2"><v>{"9" * 5000}</v></c>', "9" * 5000),
    ('<c r="B2" t="d"><v>2024-01-01</v></c>', "2024-01-01"),
    ('<c r="B2" s="7777" t="n"><v>not a number</v></c>', "not a number"),
]  # fmt: skip


@pytest.mark.parametrize("xml,text", CELLS)
def test_one_cell_costs_one_row_at_most(program, tmp_path, capsys, xml, text):
    (tmp_path / "a.jpg").write_bytes(picture())
    lines = [HEADER, ["a.jpg", xml, GOOD, "s"], ["a.jpg", "读", GOOD, "t"]]
    path = write_book(tmp_path / "b.xlsx", {"one": worksheet(lines)}, parts={"xl/sharedStrings.xml": SHARED})
    rows = program.load_rows(path)
    assert [row["prompt"] for row in rows] == ([text, "读"] if text else ["读"])
    assert text or "row 2, cell B2: " in capsys.readouterr().out


@pytest.mark.parametrize("head,found", [
    ([HEADER], 2),
    ([["2024年车险照片登记表"], HEADER], 3),
    ([[], ["登记表"], [None, "共 3 张"], [" Image ", "PROMPT", "Response", "Style"]], 5),
    ([["图片（必填）", "问题：", "答案*", "风格"]], 2),
    ([["ｉｍａｇｅ", "提 问", "回答", "风格"]], 2),
])  # fmt: skip
def test_the_header_is_found(program, tmp_path, head, found):
    (tmp_path / "a.jpg").write_bytes(picture())
    path = write_book(tmp_path / "b.xlsx", {"one": worksheet([*head, FINE, FINE])})
    assert [row["number"] for row in program.load_rows(path)] == [found, found + 1]


@pytest.mark.parametrize("header,words", [
    (["photo", "prompt", "response"], "no column image/images/图片/照片"),
    (["image", "prompt", "label"], "no column response"),
    (["image", "text", "label"], "no column prompt.* and no column response"),
    (["image", "prompt", "问题", "response"], "two columns for prompt"),
    ([None], "no column image"),
])  # fmt: skip
def test_a_missing_column_is_named(program, tmp_path, header, words):
    with pytest.raises(ValueError, match=words):
        program.load_rows(write_sheet(tmp_path, [], header))


def test_worksheets(program, tmp_path, capsys):
    """All that have the header are read; one that has none, is a chart or damaged is named; hidden ones are said."""
    (tmp_path / "a.jpg").write_bytes(picture())
    sheets = {
        "一月": worksheet([HEADER, FINE]),
        "说明": worksheet([["如何填写"]]),
        "二月": worksheet([["登记表"], HEADER, FINE]),
    }
    sheets |= {"坏": "<worksheet", "图": f'<chartsheet xmlns="{MAIN}"/>', "三月": worksheet([HEADER, FINE])}
    path = write_book(tmp_path / "b.xlsx", sheets)
    with zipfile.ZipFile(path) as archive:
        book = archive.read("xl/workbook.xml").decode()
    path = write_book(
        tmp_path / "b.xlsx",
        sheets,
        parts={"xl/workbook.xml": book.replace('name="三月"', 'name="三月" state="hidden"')},
    )
    assert [(row["sheet"], row["number"]) for row in program.load_rows(path)] == [
        ("一月", 2),
        ("二月", 3),
        ("三月", 2),
    ]
    printed = capsys.readouterr().out
    assert all(
        re.search(rf"b.xlsx, {name}, .*; worksheet not read", printed) for name in ("说明", "坏", "图")
    )
    assert "三月: a hidden worksheet" in printed


def test_the_strict_format(program, tmp_path):
    """Excel's "Strict Open XML" has other namespaces."""
    path = write_book(
        tmp_path / "b.xlsx", {"one": worksheet(table(), H60)}, [one(n, n + 1, 5) for n in (1, 2, 3)]
    )
    with zipfile.ZipFile(path) as archive:
        parts = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w") as archive:
        for name, raw in parts.items():
            for old, new in (
                (MAIN, "spreadsheetml/main"),
                (LINKS, "officeDocument/relationships"),
                (DRAW, "drawingml"),
            ):
                raw = (
                    raw
                    if name.endswith("png")
                    else raw.replace(old.encode(), f"http://purl.oclc.org/ooxml/{new}".encode())
                )
            archive.writestr(name, raw)
    assert seen(program.load_rows(path)) == {2: [1], 3: [2], 4: [3]}


TYPED = [
    ('{"里程数": 12345}', {"里程数": 12345}),
    ("{“里程数”: 12345, “单位”: “公里”}", {"里程数": 12345, "单位": "公里"}),
    ("｛“里程数”：１２３４５，“单位”：“公里”｝", {"里程数": 12345, "单位": "公里"}),
    ('{"里程数"：12345，"警示灯"：["ABS灯"、"胎压灯"]}', {"里程数": 12345, "警示灯": ["ABS灯", "胎压灯"]}),
    ("{'里程数': 12345, '警示灯': [], '备注': None, '新': True}", {"里程数": 12345, "警示灯": [], "备注": None, "新": True}),
    ("{‘里程数’：12345，}", {"里程数": 12345}),
    ('{"警示灯": ["ABS灯", ], }', {"警示灯": ["ABS灯"]}),
    ('{"备注": "他说：“好”，走了。",}', {"备注": "他说：“好”，走了。"}),
    ("{“备注”：“前门，有划痕”}", {"备注": "前门，有划痕"}),
    ("{'备注': 'a \"b\" c'}", {"备注": 'a "b" c'}),
    ('{"备注": "None, True，"}', {"备注": "None, True，"}),
    ('{"备注": "一\n二"}', {"备注": "一\n二"}),
    (f"```json\n{GOOD}\n```", ANSWER),
    (f"答案：{GOOD}。", ANSWER),
    ('{"a": {"b": [1, 2]}}', {"a": {"b": [1, 2]}}),
    ('{"里程数": 12,345}', None),
    ('{"里程数": 12', None),
    ('{"里程数": 1} {"里程数": 2}', None),
    ('{"里程数": 1, "里程数": 2}', None),
    ('{"里程数": NaN}', None),
    (f'{{"里程数": {"9" * 5000}}}', None),
    (f'{{"里程数": {"9" * 400}}}', {"里程数": int("9" * 400)}),
    ('{"备注": "\\ud83d"}', None),
    ("[1, 2]", None),
    ("{}", None),
    ("｛｝", None),
    ("null", None),
    ("", None),
    ('{"a":' * 5000, None),
    ("[" * 5000, None),
]  # fmt: skip


@pytest.mark.parametrize("text,meant", TYPED)
def test_json_as_people_type_it(program, text, meant):
    if meant is None:
        with pytest.raises(ValueError, match="not a JSON object"):
            program.typed_object(text)
    else:
        assert program.typed_object(text) == meant


@given(st.text(alphabet="{}[]\"'“”‘’：，,:\\ \n1aN.😀", max_size=200))
def test_mending_takes_anything(functions, text):
    try:
        assert functions(PROGRAM).typed_object(text)
    except ValueError:
        pass


@given(st.dictionaries(st.text(min_size=1), st.integers() | st.text() | st.lists(st.text()), min_size=1))
def test_good_json_is_not_mended(functions, value):
    text = json.dumps(value)
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        return
    assert functions(PROGRAM).typed_object(text) == value


@pytest.mark.parametrize(
    "unit", ["{", '{"', '{"a":', "“", "'", '"\\"', '\\"', ", ", "，", "{“a”：", "<|a", '{"a":[', "　"]
)
def test_typed_text_is_read_in_linear_time(program, unit):
    text = unit * (100_000 // len(unit))
    start = time.process_time()
    for function in (
        program.typed_object,
        program.tidy,
        program.SPECIAL.search,
        lambda text: program.checked(("text", text), "prompt"),
    ):
        try:
            function(text)
        except ValueError:
            pass
    assert time.process_time() - start < 2.5


# %% Pictures of every kind
def rotated(form="JPEG") -> bytes:
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was held upright: turn by 90 degrees to the right
    return picture(form, exif=exif)


def saved(pixels: np.ndarray, form: str, mode=None) -> bytes:
    file = BytesIO()
    image = Image.fromarray(pixels)
    (image.convert(mode) if mode else image).save(file, form)
    return file.getvalue()


def two_pages(form: str) -> bytes:
    file = BytesIO()
    first, second = (Image.open(BytesIO(picture(size=(64, 48)))).convert("RGB") for _ in range(2))
    first.save(file, form, save_all=True, append_images=[second.point(lambda value: 255 - value)])
    return file.getvalue()


KINDS = [
    ("CMYK JPEG", picture("JPEG", "CMYK"), "converted from CMYK to RGB"),
    ("grey PNG", picture("PNG", "L"), "converted from L to RGB"),
    ("palette PNG", picture("PNG", "P"), "converted from P to RGB"),
    ("RGBA PNG", picture("PNG", "RGBA"), "converted from RGBA to RGB"),
    ("grey with alpha", picture("PNG", "LA"), "converted from LA to RGB"),
    ("1 bit", picture("PNG", "1"), "converted from 1 to RGB"),
    ("16 bits", picture("PNG", "I;16"), "converted from I;16 to RGB"),
    ("float TIFF", picture("TIFF", "F"), "converted from F to RGB"),
    ("CMYK TIFF", picture("TIFF", "CMYK"), "converted from CMYK to RGB"),
    ("GIF", picture("GIF", "P"), "converted from P to RGB"),
    ("BMP", picture("BMP"), ""),
    ("WebP", picture("WEBP", lossless=True), ""),
    ("JPEG 2000", picture("JPEG2000"), ""),
    ("MPO", two_pages("MPO"), ""),
    ("TIFF of two pages", two_pages("TIFF"), "only the first of its pages"),
    ("turned", rotated(), ""),
    ("turned PNG", rotated("PNG"), ""),
]  # fmt: skip


@pytest.mark.parametrize("raw,words", [case[1:] for case in KINDS], ids=[case[0] for case in KINDS])
def test_an_unusual_picture_is_made_usual(program, tmp_path, capsys, raw, words):
    (tmp_path / "b.bin").write_bytes(raw)
    (row,) = program.load_rows(write_sheet(tmp_path, [["b.bin", "读", GOOD]]))
    image, turned = Image.open(BytesIO(row["images"][0])), raw in (rotated(), rotated("PNG"))
    assert (
        image.mode == "RGB"
        and image.format in ("JPEG", "PNG")
        and image.size == ((48, 64) if turned else (64, 48))
    )
    assert words in capsys.readouterr().out and row["files"] == [None]
    pixels = np.asarray(image.convert("L"), dtype=float)
    dark, light = (pixels[:10], pixels[-10:]) if turned else (pixels[:, :10], pixels[:, -10:])
    assert light.mean() - dark.mean() > 100, "the picture lost what it showed, or is turned the wrong way"


def test_a_usual_picture_stays_as_it_is(program, tmp_path):
    (tmp_path / "b.png").write_bytes(picture("PNG"))
    rows = program.load_rows(write_sheet(tmp_path, [["a.jpg;b.png", "读", GOOD]]))
    assert rows[0]["images"] == [picture(), picture("PNG")]
    assert rows[0]["files"] == [tmp_path.resolve() / "a.jpg", tmp_path.resolve() / "b.png"]


def test_transparent_pixels_are_white(program, tmp_path):
    pixels = np.zeros((48, 64, 4), "uint8")  # black, wholly transparent
    pixels[:, :32] = [200, 0, 0, 255]
    palette = Image.fromarray(pixels[..., :3]).quantize(4)
    file = BytesIO()
    palette.save(file, "PNG", transparency=palette.getpixel((40, 5)))
    for raw in (saved(pixels, "PNG"), saved(pixels, "WEBP"), file.getvalue()):
        (tmp_path / "b.png").write_bytes(raw)
        (row,) = program.load_rows(write_sheet(tmp_path, [["b.png", "读", GOOD]]))
        image = np.asarray(Image.open(BytesIO(row["images"][0])), dtype=int)
        assert np.abs(image[:, 40:] - 255).max() < 12 and np.abs(image[:, :24] - [200, 0, 0]).max() < 25


@pytest.mark.parametrize("pixels", [
    np.linspace(1000, 5000, 64 * 48).reshape(48, 64).astype("uint16"),
    np.linspace(-3, 7, 64 * 48).reshape(48, 64).astype("float32"),
    np.linspace(-70_000, 70_000, 64 * 48).reshape(48, 64).astype("int32"),
])  # fmt: skip
def test_more_than_8_bits_are_scaled_to_their_own_range(program, pixels):
    image = program.to_rgb(program.open_photo(saved(pixels, "TIFF")))
    wanted = (255 * (pixels.astype(float) - pixels.min()) / np.ptp(pixels.astype(float))).astype("uint8")
    assert (np.asarray(image) == wanted[..., None]).all()


@pytest.mark.parametrize("raw,words", [
    (saved(np.full((48, 64), np.nan, "float32"), "TIFF"), "no numbers"),
    (saved(np.where(np.eye(64) > 0, np.inf, 1).astype("float32"), "TIFF"), "no numbers"),
    (picture("PNG", size=(9000, 30)), "a strip of 9000 x 30 pixels"),
    (picture("PNG", size=(30, 9000)), "a strip of 30 x 9000 pixels"),
    (picture("PNG", size=(40_000, 150)), "a strip of"),
    ("照片".encode(), "not a readable picture"),
    (b"<html>sign in</html>", "not a readable picture"),
    (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "not a readable picture"),
    (picture("PNG", size=(400, 300))[:120], "not a readable picture"),
    (b"", "0 bytes"),
    (png(9000, 9000), "not a readable picture"),
])  # fmt: skip
def test_a_picture_that_cannot_be_used(program, tmp_path, capsys, raw, words):
    (tmp_path / "b.png").write_bytes(raw)
    assert program.load_rows(write_sheet(tmp_path, [["b.png", "读", GOOD]])) == []
    assert re.search(f"row 2, cell A2: .*{words}", capsys.readouterr().out)


@pytest.mark.parametrize("size", [(4000, 3000), (6000, 40), (20_000, 101), (1000, 5)])
def test_a_large_picture_is_reduced_and_not_made_a_strip(program, tmp_path, size):
    (tmp_path / "b.png").write_bytes(picture("PNG", size=size))
    (row,) = program.load_rows(write_sheet(tmp_path, [["b.png", "读", GOOD]]))
    width, height = Image.open(BytesIO(row["images"][0])).size
    assert width * height <= program.MAX_PIXELS * 1.02 and max(width, height) <= 200 * min(width, height)
    assert abs(width / height / (size[0] / size[1]) - 1) < 0.02


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
def test_a_photo_decoded_smaller_shows_the_same(program, mode):
    """A JPEG of a camera is decoded at a half or a quarter of its size; what comes out is what all of it gives."""
    waves = np.sin(np.arange(4000) / 40)[None, :] * np.cos(np.arange(3000) / 55)[:, None] * 100 + 128
    raw = BytesIO()
    Image.fromarray(waves.astype("uint8")).convert(mode).save(raw, "JPEG", quality=92)
    small, _ = program.prepare_photo(program.open_photo(raw.getvalue()), raw.getvalue())
    image = Image.open(BytesIO(small))
    wanted = Image.open(raw).convert("RGB").resize(image.size, Image.Resampling.LANCZOS)
    assert image.size == (896, 672)
    assert np.abs(np.asarray(image, dtype=float) - np.asarray(wanted, dtype=float)).mean() < 1


# %% Files that are no sheets, and sheets that are too much
OLE = b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + bytes(504)
BAD_FILES = [
    ("missing.xlsx", None, "does not exist"),
    ("old.xls", OLE, "is an .xls: save it as .xlsx"),
    ("locked.xlsx", OLE + "EncryptedPackage".encode("utf-16-le") + bytes(99), "protected by a password"),
    ("text.xlsx", "图片,问题,答案".encode(), "not a readable .xlsx"),
    ("cut.xlsx", b"PK\x03\x04" + bytes(300), "not a readable .xlsx"),
    ("empty.xlsx", b"", "not a readable .xlsx"),
    ("~$my.xlsx", b"\x05Reader" + bytes(158), "not a readable .xlsx"),
]


@pytest.mark.parametrize("name,raw,words", BAD_FILES, ids=[case[0] for case in BAD_FILES])
def test_a_bad_file_is_named(program, tmp_path, name, raw, words):
    if raw is not None:
        (tmp_path / name).write_bytes(raw)
    with pytest.raises(ValueError, match=words) as caught:
        program.load_rows(str(tmp_path / name))
    assert name in str(caught.value)


def test_folders_and_pipes_are_no_sheets(program, tmp_path):
    (tmp_path / "folder.xlsx").mkdir()
    os.mkfifo(tmp_path / "pipe.xlsx")
    for name in ("folder.xlsx", "pipe.xlsx", "/dev/zero"):
        with pytest.raises(ValueError, match="no regular file"):
            program.load_rows(tmp_path / name)


BILLION = (
    '<!DOCTYPE x [<!ENTITY a "aaaaaaaaaa">'
    + "".join(f'<!ENTITY a{i} "{f"&a{i - 1 if i else str()};" * 10}">' for i in range(9))
    + "]>"
)


def with_rows(xml: str, **options) -> str:
    """Return a worksheet of the usual table with more XML after its rows."""
    return worksheet(table(image="a.jpg"), **options).replace("</sheetData>", xml + "</sheetData>")


# name, worksheet, whether it can still be read
LARGE = [
    ("stray cell far away", lambda: with_rows('<row r="200000"><c r="XFD200000"><v>1</v></c></row>'), True),
    ("stray cell in the last row", lambda: with_rows('<row r="1048576"><c r="XFD1048576"><v>1</v></c></row>'), True),
    ("whole columns merged", lambda: worksheet(table(image="a.jpg"), tail='<mergeCells><mergeCell ref="F1:XFD1048576"/></mergeCells>'), True),
    ("20,000 merged areas", lambda: worksheet(table(image="a.jpg"), tail="<mergeCells>" + '<mergeCell ref="A10:XFD1048576"/>' * 20_000 + "</mergeCells>"), True),
    ("200,000 formatted cells", lambda: with_rows(f"<row>{'<c/>' * 100}</row>" * 2000), True),
    ("100,000 empty rows", lambda: with_rows("<row/>" * 100_000), True),
    ("400,000 numbers", lambda: with_rows(f"<row>{'<c><v>1</v></c>' * 4000}</row>" * 100), False),
    ("40 MB of blanks", lambda: with_rows(" " * (40 << 20)), False),
    ("a row that is no number", lambda: with_rows('<row r="one"/>'), False),
    ("a row after the last", lambda: with_rows('<row r="9999999"/>'), False),
    ("endless height", lambda: with_rows('<row r="9" ht="inf"/><row r="10" ht="nan"/>'), True),
    ("column width that is no number", lambda: worksheet(table(), head='<cols><col min="1" max="2" width="wide"/></cols>'), False),
    ("entities", lambda: BILLION + with_rows('<row r="9"><c r="A9" t="str"><v>&a8;</v></c></row>'), False),
    ("an external entity", lambda: '<!DOCTYPE x [<!ENTITY e SYSTEM "file:///etc/passwd">]>' + with_rows('<row r="9"><c r="A9" t="str"><v>&e;</v></c></row>'), False),
    ("30,000 elements deep", lambda: with_rows("<row>" * 30_000 + "</row>" * 30_000), True),
]  # fmt: skip


@pytest.mark.parametrize("xml,readable", [case[1:] for case in LARGE], ids=[case[0] for case in LARGE])
def test_large_and_hostile_worksheets(program, tmp_path, capsys, xml, readable):
    (tmp_path / "a.jpg").write_bytes(picture())
    path = write_book(tmp_path / "b.xlsx", {"大": xml(), "小": worksheet([HEADER, FINE])})
    start = time.process_time()
    rows = [(row["sheet"], row["number"]) for row in program.load_rows(path)]
    assert rows == [("大", 2), ("大", 3), ("大", 4), ("小", 2)] if readable else rows == [("小", 2)]
    assert readable or "大, " in capsys.readouterr().out
    assert time.process_time() - start < 25


def test_many_merged_areas_over_many_rows(program, tmp_path, capsys):
    lines = [HEADER, *([f"{n}.jpg"] for n in range(10_000))]
    tail = "<mergeCells>" + '<mergeCell ref="A2:A1048576"/>' * 20_000 + "</mergeCells>"
    path = write_book(tmp_path / "b.xlsx", {"one": worksheet(lines, tail=tail)})
    start = time.process_time()
    assert program.load_rows(path) == [] and capsys.readouterr().out.count("merged cells") == 10_000
    assert time.process_time() - start < 6


def test_many_large_pictures_end_early(program, tmp_path, capsys, monkeypatch):
    """40 pictures of 8 million pixels in 30 KB: their pixels are counted, and those beyond the limit not decoded."""
    monkeypatch.setattr(program, "MAX_SPARE", program.MAX_SPARE // 10)
    flat = png(2900, 2800, b"\0" * 2901 * 2800)
    media = {n: flat + bytes([n]) for n in range(1, 41)}
    lines = [HEADER, *([None, "读", GOOD, "s"] for _ in media)]
    anchors = [one(n, n + 1, 0, 19) for n in media]
    path = write_book(tmp_path / "b.xlsx", {"one": worksheet(lines)}, anchors, media)
    assert path.stat().st_size < 60_000 and program.MAX_SPARE == 100_000_000
    assert len(program.load_rows(path)) == 12 and "decompression bomb" in capsys.readouterr().out


def test_a_cameras_pixels_are_not_counted(program, tmp_path, monkeypatch):
    monkeypatch.setattr(program, "MAX_SPARE", 0)
    noise = np.random.default_rng(0).normal(128, 9, (600, 800)).clip(0, 255).astype("uint8")
    (tmp_path / "b.jpg").write_bytes(saved(noise, "JPEG"))
    assert len(program.load_rows(write_sheet(tmp_path, [["b.jpg", "读", GOOD]]))) == 1


def test_one_large_picture_in_many_rows_is_read_once(program, tmp_path):
    flat = png(8900, 9000, b"\0" * 8901 * 9000)
    lines = [HEADER, *([None, "读", GOOD, "s"] for _ in range(2000))]
    path = write_book(
        tmp_path / "b.xlsx", {"one": worksheet(lines)}, [one(1, n, 0, 19) for n in range(2, 2002)], {1: flat}
    )
    start = time.process_time()
    assert len(program.load_rows(path)) == 2000 and time.process_time() - start < 25


def test_too_many_pictures(program, tmp_path, capsys):
    path = write_book(
        tmp_path / "b.xlsx",
        {"one": worksheet(table(), H60), "b": worksheet([HEADER])},
        [one(1, 2, 5)] * 20_001,
    )
    start = time.process_time()
    assert program.load_rows(path) == [] and "more than 20,000 pictures" in capsys.readouterr().out
    anchors = [one(1, 2, 5, right=n % 9) for n in range(15_000)]
    path = write_book(tmp_path / "b.xlsx", {"one": worksheet(table(), H60)}, anchors)
    assert program.load_rows(path) == [] and "more than 8 pictures" in capsys.readouterr().out
    assert time.process_time() - start < 20


@pytest.mark.parametrize(
    "part", ["xl/workbook.xml", "xl/_rels/workbook.xml.rels", "xl/sharedStrings.xml", "_rels/.rels"]
)
@pytest.mark.parametrize(
    "content",
    [b"", b"<x", b"\xff\xfe", b'<?xml version="1.0" encoding="nonsense"?><x/>', b" " * (40 << 20), None],
)
def test_damaged_parts(program, tmp_path, part, content):
    path = write_book(tmp_path / "b.xlsx", {"one": worksheet(table(image="a.jpg"))}, parts={part: content})
    (tmp_path / "a.jpg").write_bytes(picture())
    try:
        assert len(program.load_rows(path)) == 3  # what the part says can be guessed
    except ValueError as error:
        assert "b.xlsx" in str(error)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 10**6), st.integers(0, 255)), min_size=1, max_size=6))
def test_rotten_bytes_end_in_rows_or_one_line(functions, tmp_path_factory, changes):
    folder = tmp_path_factory.getbasetemp()
    path = write_book(
        folder / "rotten.xlsx", {"one": worksheet(table(), H60)}, [one(n, n + 1, 5) for n in (1, 2, 3)]
    )
    raw = bytearray(path.read_bytes())
    for place, value in changes:
        raw[place % len(raw)] = value
    path.write_bytes(raw)
    try:
        rows = seen(functions(PROGRAM).load_rows(path))
        assert all(rows[number] == [number - 1] for number in rows)
    except ValueError:
        pass


def test_two_thousand_pasted_pictures(tmp_path):
    """A process of its own, so that the memory is the sheet's."""
    rng, photos = np.random.default_rng(0), []
    for _ in range(50):
        noise = Image.fromarray(rng.integers(0, 255, (48, 64, 3), dtype="uint8")).resize((640, 480))
        photos.append(saved(np.asarray(noise), "JPEG"))
    media = {number: photos[number % 50] for number in range(1, 2001)}
    lines = [HEADER, *([None, "读", GOOD, "s"] for _ in media)]
    path = write_book(tmp_path / "b.xlsx", {"one": worksheet(lines)}, [one(n, n + 1) for n in media], media)
    code = f"""
import resource, sys, time
sys.path.insert(0, "tests")
from conftest import functions_of
program = functions_of({PROGRAM!r})
before, start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.time()
rows = program.load_rows({str(path)!r})
print(len(rows), time.time() - start, (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 2**20)
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    count, seconds, gigabytes = done.stdout.split("\n")[-2].split()
    assert int(count) == 2000, done.stderr[-2000:]
    assert float(seconds) <= 30 and float(gigabytes) <= 1.5


def test_what_people_do_to_sheets(program, tmp_path):
    """Chinese titles in another order, blank rows, pasted pictures, two pictures in a row, code fences."""
    (tmp_path / "图").mkdir()
    (tmp_path / "图" / "b.jpg").write_bytes(picture(size=(80, 60)))
    lines = [
        ["a.jpg", f"```json\n{GOOD}\n```", " 读 "],
        [],
        [None, None, None],
        [picture(size=(90, 60)), GOOD, "读"],
        ["图\\b.jpg；a.jpg", GOOD, "读"],
        [[picture(), picture("PNG")], GOOD, "读"],
    ]
    found = program.load_rows(write_sheet(tmp_path, lines, ["图片", "答案", "问题"]))
    assert [row["number"] for row in found] == [2, 5, 6, 7]
    sizes = [[Image.open(BytesIO(raw)).size for raw in row["images"]] for row in found]
    assert sizes == [[(64, 48)], [(90, 60)], [(80, 60), (64, 48)], [(64, 48), (64, 48)]]
    assert all(row["answer"] == ANSWER and row["prompt"] == "读" for row in found)
    assert len({row["style"] for row in found}) == 4
    again = program.load_rows(write_sheet(tmp_path, [FINE[:3], FINE[:3]], HEADER[:3]))
    assert len({row["style"] for row in again}) == 1, "a photo asked about twice must not be split"


# %% Split and save
def test_no_photo_is_on_both_sides(program):
    def row(style, photo, answer="a"):
        return {"style": style, "images": [photo], "answer": {answer: 1}}

    rows = [row(f"s{n}", bytes([n])) for n in range(10)]
    train, held_out = program.hold_out_styles(rows, 0.2, 3407)
    assert len(held_out) == 2 and len(train) == 8
    copies = [row("s0" if held["style"] != "s0" else "s1", held["images"][0]) for held in held_out]
    train, again = program.hold_out_styles(rows + copies, 0.2, 3407)
    assert not {raw for one in train for raw in one["images"]} & {
        raw for one in again for raw in one["images"]
    }


def test_split_shares_no_style(program, shipped):
    train, held = program.hold_out_styles(shipped, program.HELD_OUT, program.SEED)
    known, new = ({style for row in part for style in row["style"].split("+")} for part in (train, held))
    assert not known & new and (len(train), len(held)) == (231, 63)
    assert {"里程数", "车牌号", "VIN", "损伤部位"} <= {name for row in held for name in row["answer"]}
    pictures = [{raw for row in part for raw in row["images"]} for part in (train, held)]
    assert not pictures[0] & pictures[1]
    assert program.hold_out_styles(shipped, program.HELD_OUT, program.SEED) == (train, held)


def run(folder: Path, *arguments, **environment) -> subprocess.CompletedProcess:
    command = [sys.executable, str(folder / "prepare.py"), *map(str, arguments)]
    return subprocess.run(command, cwd=folder, capture_output=True, env={**os.environ, **environment})


def test_the_shipped_set_is_what_the_program_makes(tmp_path):
    copy = shutil.copytree(ROOM, tmp_path / "room")
    shutil.rmtree(copy / "prepared")
    (copy / "metadata.jsonl").unlink()
    assert run(copy).returncode == 0
    names = {
        path.relative_to(copy)
        for path in copy.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert names == {
        path.relative_to(ROOM)
        for path in ROOM.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    for name in [Path("metadata.jsonl"), *(name for name in names if name.parts[0] == "prepared")]:
        assert (copy / name).read_bytes() == (ROOM / name).read_bytes(), name


def test_datasets_reads_the_shipped_set(shipped, tmp_path):
    data = load_dataset(
        "imagefolder", data_files=str(ROOM / "metadata.jsonl"), split="train", cache_dir=str(tmp_path)
    )
    by_number, splits = {row["number"]: row for row in shipped}, list(data["split"])
    assert (splits.count("train"), splits.count("held_out"), len(splits)) == (231, 63, 294)
    for row in data.select(range(0, len(data), 10)):
        wanted = by_number[row["number"]]
        assert json.loads(row["answer"]) == wanted["answer"] and row["prompt"] == wanted["prompt"]
        for image, raw in zip(row["images"], wanted["images"], strict=True):
            assert (np.asarray(image) == np.asarray(Image.open(BytesIO(raw)))).all()


def test_own_sheets_are_prepared_beside_themselves(tmp_path):
    """Pictures are copied, dates stay text, rows with one and with several pictures load together, in any terminal."""
    shutil.copy(ROOM / "prepare.py", tmp_path)
    lines = [
        [picture("PNG", size=(60, 50)), "读", GOOD, "2024-01-01"],
        ["a.jpg\na.jpg", "读🚗", GOOD, "2024-01-02"],
        ["b.jpg", "读", GOOD],
    ]
    lines += [[picture(size=(64, 50 + day)), "读", GOOD, f"2024-02-{day:02d}"] for day in range(3, 9)]
    done = run(tmp_path, write_sheet(tmp_path, lines), "out", PYTHONIOENCODING="ascii")
    assert done.returncode == 0 and b"row 4, cell A4: b.jpg" in done.stdout, done.stderr
    data = load_dataset(
        "imagefolder",
        data_files=str(tmp_path / "out" / "metadata.jsonl"),
        split="train",
        cache_dir=str(tmp_path / "cache"),
    )
    rows = {row["number"]: row for row in data}
    assert (
        rows.keys() == {2, 3, 5, 6, 7, 8, 9, 10}
        and rows[2]["style"] == "2024/01/01"
        and rows[2]["images"][0].size == (60, 50)
    )
    assert [image.size for image in rows[3]["images"]] == [(64, 48)] * 2 and rows[5]["images"][0].size == (
        64,
        53,
    )
    assert len(list((tmp_path / "out" / "prepared").iterdir())) == 8


def test_names_of_other_systems_and_files_that_are_not_there(tmp_path):
    shutil.copy(ROOM / "prepare.py", tmp_path)
    name = tmp_path / os.fsdecode("车险.xlsx".encode("gbk"))  # as unzip leaves it
    shutil.move(
        write_sheet(tmp_path, [FINE, [picture(size=(70, 48)), "读", GOOD, "t"], ["b.jpg", "读", GOOD]]), name
    )
    done = run(tmp_path, name)
    assert done.returncode == 0 and b"row 4, cell A4" in done.stdout, done.stderr
    assert (name.with_suffix("") / "metadata.jsonl").is_file()
    for argument in ("nothing.xlsx", "prepare.py", "."):
        done = run(tmp_path, argument)
        assert done.returncode == 1 and b"Traceback" not in done.stderr and argument.encode() in done.stderr
