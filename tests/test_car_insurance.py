"""The sheet reader, the scorer and the data and the rehearsal of vl_car_insurance.py."""

import json
import re
import struct
import subprocess
import sys
import warnings
import zipfile
import zlib
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT
from hypothesis import given
from hypothesis import strategies as st
from openpyxl import Workbook, load_workbook
from openpyxl.drawing.image import Image as Pasted
from PIL import Image
from safetensors.torch import load_file

SCRIPT = "vl_car_insurance.py"
SHEET = ROOT / "data" / "car_insurance" / "qwen-vl-train.xlsx"
ANSWER = {"里程数": 12345, "单位": "公里", "仪表盘状态": "正常", "警示灯": []}
GOOD = json.dumps(ANSWER, ensure_ascii=False)
HEADER = ["image", "prompt", "response", "style"]


@pytest.fixture(scope="module")
def script(functions):
    return functions(SCRIPT)


@pytest.fixture(scope="module")
def rows(script):
    return script.load_rows(str(SHEET))


def picture(form="JPEG", mode="RGB", size=(64, 48), **options) -> bytes:
    """Return a picture file whose left half is dark and whose right half is light."""
    pixels = np.full((size[1], size[0]), 40, "uint8")
    pixels[:, size[0] // 2 :] = 220
    file = BytesIO()
    Image.fromarray(pixels).convert(mode).save(file, form, **options)
    return file.getvalue()


def bomb() -> bytes:
    """Return a PNG of a few bytes that says it has 50,000 x 50,000 pixels."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 50_000, 50_000, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(b"\0" * 1000)) + chunk(b"IEND", b"")


def pasted(raw: bytes) -> Pasted:
    return Pasted(BytesIO(raw))


def write_sheet(folder: Path, lines: list, header=HEADER, change=None) -> str:
    """Write a sheet; bytes in the first column are pasted over their cell."""
    (folder / "a.jpg").write_bytes(picture())
    book = Workbook()
    sheet = book.active
    sheet.append(header)
    for number, line in enumerate(lines, 2):
        sheet.append([None if isinstance(cell, (bytes, list)) else cell for cell in line])
        for raw in line[0] if line and isinstance(line[0], list) else line[:1]:
            if isinstance(raw, bytes):
                sheet.add_image(pasted(raw), f"A{number}")
    if change:
        change(sheet)
    book.save(folder / "sheet.xlsx")
    return str(folder / "sheet.xlsx")


def replace_in_zip(path: str, pattern: str, data: bytes) -> None:
    """Replace the content of the parts of an .xlsx whose names match."""
    with zipfile.ZipFile(path) as archive:
        parts = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in parts.items():
            archive.writestr(name, data if re.search(pattern, name) else content)


LOADER = f"""
import sys
sys.path.insert(0, "tests")
from conftest import functions_of
script = functions_of({SCRIPT!r})
"""
FINE = ["a.jpg", "读", GOOD, "s"]
# name, files beside the sheet, the bad line (row 3 of the sheet), the cell that is named, words of the message
BAD_ROWS = [
    ("missing file", {}, ["b.jpg", "读", GOOD], "A3", "b.jpg in .* cannot be read"),
    ("folder for a file", {}, [".", "读", GOOD], "A3", "cannot be read"),
    ("name longer than a name can be", {}, ["x" * 5000, "读", GOOD], "A3", "cannot be read"),
    ("truncated JPEG", {"b.jpg": picture(size=(400, 300))[:-900]}, ["b.jpg", "读", GOOD], "A3", "not a readable picture"),
    ("truncated PNG", {"b.png": picture("PNG", size=(400, 300))[:120]}, ["b.png", "读", GOOD], "A3", "not a readable picture"),
    ("zero bytes", {"b.jpg": b""}, ["b.jpg", "读", GOOD], "A3", "0 bytes"),
    ("text called .jpg", {"b.jpg": "照片".encode()}, ["b.jpg", "读", GOOD], "A3", "not a readable picture"),
    ("HTML of a login page", {"b.jpg": b"<html>sign in</html>"}, ["b.jpg", "读", GOOD], "A3", "not a readable picture"),
    ("decompression bomb", {"b.png": bomb()}, ["b.png", "读", GOOD], "A3", "more than 89 million pixels"),
    ("http", {}, ["http://example.com/a.jpg", "读", GOOD], "A3", "is a URL, and nothing is downloaded"),
    ("https", {}, ["https://example.com/a.jpg", "读", GOOD], "A3", "is a URL"),
    ("file URL", {}, ["file:///etc/passwd", "读", GOOD], "A3", "is a URL"),
    ("no picture", {}, [None, "读", GOOD], "A3", "no picture"),
    ("second of two is missing", {}, ["a.jpg\nb.jpg", "读", GOOD], "A3", "b.jpg in .* cannot be read"),
    ("formula for a picture", {}, ["=A2", "读", GOOD], "A3", "is a formula"),
    ("WPS picture that is not there", {}, ['=DISPIMG("ID_1",1)', "读", GOOD], "A3", "0 bytes"),
    ("picture placed in the cell by Excel 365", {}, ["#VALUE!", "读", GOOD], "A3", "paste the picture over the cell"),
    ("no prompt", {}, ["a.jpg", None, GOOD], "B3", "no prompt"),
    ("blank prompt", {}, ["a.jpg", "  ", GOOD], "B3", "no prompt"),
    ("formula for a prompt", {}, ["a.jpg", "=B2", GOOD], "B3", "is a formula"),
    ("no response", {}, ["a.jpg", "读", None], "C3", "no response"),
    ("formula for a response", {}, ["a.jpg", "读", '=HYPERLINK("http://x","{}")'], "C3", "is a formula"),
    ("free sentence", {}, ["a.jpg", "读", "里程数：12,345 公里，仪表盘状态正常"], "C3", "not a JSON object"),
    ("broken JSON", {}, ["a.jpg", "读", '{"里程数": 12'], "C3", "not a JSON object"),
    ("JSON list", {}, ["a.jpg", "读", "[1, 2]"], "C3", "not a JSON object"),
    ("empty object", {}, ["a.jpg", "读", "{}"], "C3", "not a JSON object"),
    ("number", {}, ["a.jpg", "读", 12345], "C3", "not a JSON object"),
]  # fmt: skip


@pytest.mark.parametrize("name,files,line,cell,words", BAD_ROWS, ids=[row[0] for row in BAD_ROWS])
def test_bad_row_is_named_and_left_out(script, tmp_path, capsys, name, files, line, cell, words):
    for file, raw in files.items():
        (tmp_path / file).write_bytes(raw)
    found = script.load_rows(write_sheet(tmp_path, [FINE, line, FINE]))
    printed = capsys.readouterr().out
    assert [row["number"] for row in found] == [2, 4] and "2 rows, 1 left out" in printed
    assert re.search(rf"sheet.xlsx, row 3, cell {cell}: .*{words}.*; left out", printed), printed


@pytest.mark.parametrize("area", ["A3:A4", "B3:C3", "C2:C3"])
def test_merged_cells_are_left_out(script, tmp_path, capsys, area):
    path = write_sheet(tmp_path, [FINE] * 4, change=lambda sheet: sheet.merge_cells(area))
    found = script.load_rows(path)
    touched = set(range(int(area[1]), int(area[4]) + 1))
    assert {row["number"] for row in found} == {2, 3, 4, 5} - touched
    assert capsys.readouterr().out.count(f"merged cells {area}") == len(touched)


@pytest.mark.parametrize("raw,words", [
    (b"", "no picture, or one that cannot be read"),
    (b"junk", "no picture, or one that cannot be read"),
    (picture(size=(400, 300))[:-900], "not a readable picture"),
    (bomb(), "the picture has more than 89 million pixels"),
], ids=["empty", "junk", "truncated", "bomb"])  # fmt: skip
def test_pasted_picture_that_cannot_be_read(script, tmp_path, capsys, raw, words):
    path = write_sheet(tmp_path, [FINE, [picture(size=(400, 300)), "读", GOOD], FINE])
    replace_in_zip(path, "xl/media/", raw)
    assert [row["number"] for row in script.load_rows(path)] == [2, 4]
    assert f"row 3, cell A3: {words}" in capsys.readouterr().out


OLE = b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + bytes(504)
BAD_FILES = [
    ("missing.xlsx", None, "does not exist"),
    ("old.xls", OLE, "is an .xls: save it as .xlsx"),
    ("renamed.xlsx", OLE, "is an .xls: save it as .xlsx"),
    ("locked.xlsx", OLE + "EncryptedPackage".encode("utf-16-le") + bytes(99), "protected by a password"),
    ("text.xlsx", "图片,问题,答案".encode(), "not a readable .xlsx"),
    ("cut.xlsx", b"PK\x03\x04" + bytes(300), "not a readable .xlsx"),
    ("empty.xlsx", b"", "not a readable .xlsx"),
]


@pytest.mark.parametrize("name,raw,words", BAD_FILES, ids=[row[0] for row in BAD_FILES])
def test_bad_file_is_named(script, tmp_path, name, raw, words):
    if raw is not None:
        (tmp_path / name).write_bytes(raw)
    with pytest.raises(ValueError, match=words) as caught:
        script.load_rows(str(tmp_path / name))
    assert name in str(caught.value)


@pytest.mark.parametrize("header,words", [
    (["photo", "prompt", "response"], "no column image/images/图片/照片"),
    (["image", "prompt", "label"], "no column response"),
    (["image", "text", "label"], "no column prompt.* and no column response"),
    ([None], "no column image"),
])  # fmt: skip
def test_missing_column_is_named(script, tmp_path, header, words):
    with pytest.raises(ValueError, match=words):
        script.load_rows(write_sheet(tmp_path, [], header))


def rotated() -> bytes:
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was held upright: turn by 90 degrees to the right
    return picture(exif=exif)


@pytest.mark.parametrize("raw,size,words", [
    (picture("JPEG", "CMYK"), (64, 48), "converted from CMYK to RGB"),
    (picture("PNG", "I;16"), (64, 48), "converted from I;16 to RGB"),
    (picture("PNG", "L"), (64, 48), "converted from L to RGB"),
    (picture("PNG", "P"), (64, 48), "converted from P to RGB"),
    (picture("PNG", "RGBA"), (64, 48), "converted from RGBA to RGB"),
    (picture("TIFF", "CMYK"), (64, 48), "converted from CMYK to RGB"),
    (rotated(), (48, 64), "turned upright"),
])  # fmt: skip
def test_unusual_picture_is_made_usual(script, tmp_path, capsys, raw, size, words):
    (tmp_path / "b.bin").write_bytes(raw)
    found = script.load_rows(write_sheet(tmp_path, [["b.bin", "读", GOOD]]))
    image = found[0]["image"]
    assert image.mode == "RGB" and image.size == size
    assert f"row 2, cell A2: {words}" in capsys.readouterr().out
    pixels = np.asarray(image.convert("L"), dtype=float)
    dark, light = (
        (pixels[:10], pixels[-10:]) if words == "turned upright" else (pixels[:, :10], pixels[:, -10:])
    )
    assert light.mean() - dark.mean() > 100, "the picture lost what it showed, or is turned the wrong way"


def test_large_picture_is_reduced(script, tmp_path):
    (tmp_path / "b.jpg").write_bytes(picture(size=(4000, 3000)))
    image = script.load_rows(write_sheet(tmp_path, [["b.jpg", "读", GOOD]]))[0]["image"]
    assert image.width * image.height <= script.MAX_PIXELS and abs(image.width / image.height - 4 / 3) < 0.02


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
def test_a_photo_decoded_smaller_shows_the_same(script, mode):
    """A JPEG of a camera is decoded at a half or a quarter of its size; what comes out is what all of it gives."""
    waves = np.sin(np.arange(4000) / 40)[None, :] * np.cos(np.arange(3000) / 55)[:, None] * 100 + 128
    photo, file = Image.fromarray(waves.astype("uint8")).convert(mode), BytesIO()
    photo.save(file, "JPEG", quality=92)
    small, _ = script.upright_rgb(file.getvalue())
    image = Image.open(BytesIO(small))
    wanted = Image.open(BytesIO(file.getvalue())).convert("RGB").resize(image.size, Image.Resampling.LANCZOS)
    assert image.size == (896, 672)
    assert np.abs(np.asarray(image, dtype=float) - np.asarray(wanted, dtype=float)).mean() < 1


def test_what_people_do_to_sheets(script, tmp_path):
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
    found = script.load_rows(write_sheet(tmp_path, lines, ["图片", "答案", "问题"]))
    assert [row["number"] for row in found] == [2, 5, 6, 7]
    assert [len(row["images"]) for row in found] == [1, 1, 2, 2]
    assert [row["image"].size for row in found] == [(64, 48), (90, 60), (80, 60), (64, 48)]
    assert all(row["answer"] == ANSWER and row["prompt"] == "读" for row in found)
    assert len({row["style"] for row in found}) == 4
    again = script.load_rows(write_sheet(tmp_path, [FINE[:3], FINE[:3]], HEADER[:3]))
    assert len({row["style"] for row in again}) == 1, "a photo asked about twice must not be split"


def test_picture_inside_a_cell_of_wps(script, tmp_path):
    path = write_sheet(tmp_path, [['=_xlfn.DISPIMG("ID_7F",1)', "读", GOOD]])
    main = "http://schemas.openxmlformats.org/drawingml/2006"
    relations = "http://schemas.openxmlformats.org"
    cell = (
        f'<e:cellImages xmlns:e="http://www.wps.cn/officeDocument/2017/etCustomData" xmlns:x="{main}/spreadsheetDrawing"'
        f' xmlns:a="{main}/main" xmlns:r="{relations}/officeDocument/2006/relationships"><e:cellImage><x:pic><x:nvPicPr>'
        '<x:cNvPr id="2" name="ID_7F"/></x:nvPicPr><x:blipFill><a:blip r:embed="rId1"/></x:blipFill></x:pic>'
        "</e:cellImage></e:cellImages>"
    )
    target = f'<Relationships xmlns="{relations}/package/2006/relationships"><Relationship Id="rId1" Target="media/i.jpg" Type="image"/></Relationships>'
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("xl/cellimages.xml", cell)
        archive.writestr("xl/_rels/cellimages.xml.rels", target)
        archive.writestr("xl/media/i.jpg", picture(size=(70, 50)))
    assert [row["image"].size for row in script.load_rows(path)] == [(70, 50)]


def test_two_thousand_pasted_pictures(tmp_path):
    """A process of its own, so that the memory is the sheet's."""
    raw = picture(size=(640, 480), quality=90)
    rng = np.random.default_rng(0)
    lines = []
    for _ in range(2000):
        noise = rng.integers(0, 255, (48, 64, 3), dtype="uint8")
        file = BytesIO()
        Image.fromarray(noise).resize((640, 480)).save(file, "JPEG", quality=80)
        lines.append([file.getvalue(), "读", GOOD])
    path = write_sheet(tmp_path, lines)
    code = f"""{LOADER}
import resource, time
before, start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.time()
rows = script.load_rows({path!r})
print(len(rows), time.time() - start, (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 2**20)
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    count, seconds, gigabytes = done.stdout.split("\n")[-2].split()
    assert len(raw) > 0 and int(count) == 2000, done.stderr[-2000:]
    assert float(seconds) <= 30 and float(gigabytes) <= 1.5


@pytest.mark.parametrize("value,meant", [
    (12345, 12345.0), ("12345", 12345.0), ("12,345", 12345.0), ("１２，３４５", 12345.0), (" 12 345 ", 12345.0),
    ("12345公里", 12345.0), ("12,345 km", 12345.0), ("12345.6", 12345.6), (12345.6, 12345.6), ("012345", 12345.0),
    ("12,34", "12,34"), ("-5", "-5"), ("km", "公里"), ("KM", "公里"), ("千米", "公里"), ("Miles", "英里"), ("mi", "英里"),
    ("京A·12345", "京A12345"), ("京a 12345", "京A12345"), ("京A-12345", "京A12345"), ("正常", "正常"), (None, "NONE"),
])  # fmt: skip
def test_normal(script, value, meant):
    assert script.normal(value) == meant


# prediction, reference, field_accuracy
FIELDS = [
    (ANSWER, ANSWER, 1.0),
    (GOOD, ANSWER, 1.0),
    (f"```json\n{GOOD}\n```", ANSWER, 1.0),
    (f"好的：{GOOD}。", ANSWER, 1.0),
    ({"里程数": "12,345 公里", "单位": "km", "仪表盘状态": "正常", "警示灯": "无"}, ANSWER, 1.0),
    ({"里程数": 12346, "单位": "公里", "仪表盘状态": "正常", "警示灯": []}, ANSWER, 0.75),
    ({"里程数": 12345}, ANSWER, 0.25),
    ({"车牌号": "京A12345"}, ANSWER, 0.0),
    ({**ANSWER, "多余": 1}, ANSWER, 1.0),
    (None, ANSWER, 0.0),
    ("", ANSWER, 0.0),
    ("里程数：12,345 公里", ANSWER, 0.0),
    ('{"里程数": 12345', ANSWER, 0.0),
    ("[12345]", ANSWER, 0.0),
    ({"警示灯": "ABS灯、胎压灯"}, {"警示灯": ["胎压灯", "ABS灯"]}, 1.0),
    ({"警示灯": ["ABS灯"]}, {"警示灯": ["胎压灯", "ABS灯"]}, 0.0),
    ({"警示灯": []}, {"警示灯": ["ABS灯"]}, 0.0),
    ({"警示灯": None}, {"警示灯": []}, 0.0),
    ({"车牌号": "粤B D12345"}, {"车牌号": "粤BD12345"}, 1.0),
    ({"VIN": "lsvaa49j132047371"}, {"VIN": "LSVAA49J132047371"}, 1.0),
]


@pytest.mark.parametrize("told,wanted,share", FIELDS)
def test_field_accuracy(script, told, wanted, share):
    scores = script.field_accuracy([told], [wanted])
    assert scores["field_accuracy"] == pytest.approx(share)
    assert scores["json_rate"] == float(isinstance(told, dict) or script.parse_json(told) is not None)


def test_mileage_plate_and_vin_errors(script):
    told = [{"里程数": "11,000"}, {"里程数": "?"}, {"车牌号": "京A1234S"}, {"VIN": None}]
    wanted = [{"里程数": 10000}, {"里程数": 500}, {"车牌号": "京A12345"}, {"VIN": "L" * 17}]
    scores = script.field_accuracy(told, wanted)
    assert scores["mileage_accuracy"] == 0 and scores["mileage_error"] == pytest.approx((0.1 + 1) / 2)
    assert scores["plate_error_rate"] == pytest.approx(1 / 7) and scores["vin_error_rate"] == 1
    assert "mileage_error" not in script.field_accuracy([{}], [{"VIN": "L"}])
    with pytest.raises(ValueError):
        script.field_accuracy([], [{"VIN": "L"}])


@given(st.text(alphabet="ABC123", max_size=8), st.text(alphabet="ABC123", min_size=1, max_size=8))
def test_error_rate_is_a_distance(functions, told, wanted):
    rate = functions(SCRIPT).error_rate
    assert 0 <= rate(told, wanted) <= 1 and (rate(told, wanted) == 0) == (told == wanted)
    assert abs(len(told) - len(wanted)) <= rate(told, wanted) * len(wanted) + 1e-9 or rate(told, wanted) == 1


@pytest.mark.parametrize("answer,words", [
    (ANSWER, "里程数：12,345 公里，仪表盘状态正常，警示灯：无。"),
    ({"里程数": 1234.5, "单位": "英里", "警示灯": ["ABS灯", "胎压灯"]}, "里程数：1,234.5 英里，警示灯：ABS灯、胎压灯。"),
    ({"车牌号": "京A12345", "车牌颜色": "蓝"}, "车牌号：京A12345，车牌颜色：蓝。"),
    ({"单位": "公里"}, "单位：公里。"),
])  # fmt: skip
def test_sentence(script, answer, words):
    assert script.sentence(answer) == words


@given(
    st.recursive(
        st.text() | st.integers() | st.floats(allow_nan=False),
        lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    )
)
def test_scorer_takes_anything(functions, value):
    module = functions(SCRIPT)
    for told in (value, {"里程数": value, "警示灯": value}, json.dumps(value)):
        assert 0 <= module.field_accuracy([told], [ANSWER])["field_accuracy"] <= 1
    assert isinstance(module.sentence({"里程数": value}), str)


def test_data_is_what_it_says(rows):
    assert len(rows) >= 240 and sum(len(row["images"]) for row in rows) >= 240
    kinds = {}
    for row in rows:
        kinds.setdefault(frozenset(row["answer"]), set()).add(row["style"])
    assert len(kinds) == 5 and sum(len(styles) for styles in kinds.values()) >= 20
    assert len({hash(raw) for row in rows for raw in row["images"]}) == sum(
        len(row["images"]) for row in rows
    )
    folder = SHEET.parent
    assert sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) < 12 * 2**20
    sheet = load_workbook(SHEET).worksheets[0]
    pasted_rows, paths = len(sheet._images), [cell.value for cell in sheet["A"][1:] if cell.value]
    assert pasted_rows >= 20 and len(paths) >= 150 and any("\n" in path for path in paths)
    named = {name for path in paths for name in path.split("\n")}
    assert named == {f"pictures/{path.name}" for path in (folder / "pictures").iterdir()}


def test_every_vin_has_its_check_digit(rows):
    values = dict(zip("ABCDEFGHJKLMNPRSTUVWXYZ", [*range(1, 9), *range(1, 6), 7, 9, *range(2, 10)]))
    weights = [8, 7, 6, 5, 4, 3, 2, 10, 0, 9, 8, 7, 6, 5, 4, 3, 2]

    def valid(vin):
        total = sum(w * (int(c) if c.isdigit() else values[c]) for c, w in zip(vin, weights))
        return vin[8] == "0123456789X"[total % 11]

    assert valid("11111111111111111") and valid("1M8GDM9AXKP042788") and not valid("1M8GDM9A1KP042788")
    vins = [row["answer"]["VIN"] for row in rows if "VIN" in row["answer"]]
    assert len(set(vins)) == len(vins) >= 30
    assert [vin for vin in vins if not re.fullmatch("[A-HJ-NPR-Z0-9]{17}", vin) or not valid(vin)] == []


def test_every_plate_has_a_chinese_form(rows):
    head = "[京津沪渝冀豫云辽黑湘皖鲁新苏浙赣鄂桂甘晋蒙陕吉闽贵粤青藏川宁琼][A-HJ-NP-Z]"
    forms = {"蓝": rf"{head}[A-HJ-NP-Z0-9]{{5}}", "绿": rf"{head}[DF][A-HJ-NP-Z0-9]\d{{4}}"}
    plates = [row["answer"] for row in rows if "车牌号" in row["answer"]]
    assert len(plates) >= 40 and {answer["车牌颜色"] for answer in plates} == {"蓝", "绿"}
    for answer in plates:
        number = answer["车牌号"]
        assert re.fullmatch(forms[answer["车牌颜色"]], number), number
        assert answer["车牌颜色"] == "绿" or sum(letter.isalpha() for letter in number[2:]) <= 2


def test_odometers_and_lights_vary(rows):
    answers = [row["answer"] for row in rows if "里程数" in row["answer"]]
    assert len(answers) >= 120 and {answer["单位"] for answer in answers} == {"公里", "英里"}
    assert len({answer["里程数"] for answer in answers}) > 0.95 * len(answers)
    assert sum(answer["里程数"] % 1 > 0 for answer in answers) >= 10
    lit = {name for answer in answers for name in answer["警示灯"]}
    assert len(lit) == 9 and all(
        (answer["仪表盘状态"] == "异常") == bool(answer["警示灯"]) for answer in answers
    )
    damage = {tuple(row["answer"].values()) for row in rows if "损伤部位" in row["answer"]}
    assert len(damage) >= 18


def test_split_shares_no_style(script, rows):
    train, held = script.hold_out_styles(rows, 0.2, 3407)
    seen, new = ({style for row in part for style in row["style"].split("+")} for part in (train, held))
    assert not seen & new and len(held) >= 40 and len(train) >= 180
    assert {"里程数", "车牌号", "VIN", "损伤部位"} <= {name for row in held for name in row["answer"]}
    pictures = [{raw for row in part for raw in row["images"]} for part in (train, held)]
    assert not pictures[0] & pictures[1]
    assert script.hold_out_styles(rows, 0.2, 3407) == (train, held)


def test_predictions_are_neutral_and_keep_their_photos(script, tmp_path):
    rows = [
        {"images": [picture()], "prompt": "=1+1", "answer": {"里程数": 5, "VIN": "L"}},
        {"images": [picture(), picture()], "prompt": "读", "answer": {"警示灯": ["ABS灯"]}},
    ]
    texts = ['{"里程数": -5, "VIN": "@SUM(A1)", "警示灯": ["+x"]}', "=cmd|'/c calc'!A1"]
    script.save_predictions(rows, texts, tmp_path / "predictions.xlsx")
    sheet = load_workbook(tmp_path / "predictions.xlsx").active
    cells = [cell for line in sheet.iter_rows(min_row=2) for cell in line if cell.value is not None]
    assert [cell.value for cell in cells if cell.data_type == "f"] == []
    texts = [cell.value for cell in cells if isinstance(cell.value, str)]
    assert (
        [text for text in texts if text.lstrip()[:1] in "=+-@"] == []
        and "'@SUM(A1)" in texts
        and "'+x" in texts
    )
    assert -5 in [cell.value for cell in cells], "a number is no formula"
    assert [image.anchor._from.row for image in sheet._images] == [1, 2, 2]
    assert not list(tmp_path.glob("tmp*"))


@pytest.mark.parametrize("value,cell", [
    ("=1", "'=1"), ("+1", "'+1"), ("-1", "'-1"), ("@a", "'@a"), (" =1", "' =1"), ("\t=1", "'\t=1"), ("1=1", "1=1"),
    (-1, -1), (None, None), (["=1", "b"], "'=1、b"), ({"a": 1}, '{"a": 1}'), ("京A", "京A"),
])  # fmt: skip
def test_neutral(script, value, cell):
    assert script.neutral(value) == cell


def test_contact_sheet_without_a_chinese_font(script, tmp_path, monkeypatch):
    row = {"images": [picture()], "prompt": "读", "answer": ANSWER}
    script.contact_sheet([row] * 5, [GOOD, "", GOOD, GOOD, GOOD], tmp_path / "sheet.png")
    first = Image.open(tmp_path / "sheet.png").convert("RGB")
    colours = {colour for _, colour in first.getcolors(2**24)}
    assert (0, 128, 0) in colours and (255, 0, 0) in colours
    fonts = [font for font in script.font_manager.fontManager.ttflist if font.name == "DejaVu Sans"]
    monkeypatch.setattr(script.font_manager.fontManager, "ttflist", fonts)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # matplotlib warns of every letter that its font lacks
        script.contact_sheet([row], [GOOD], tmp_path / "plain.png")
    assert (tmp_path / "plain.png").stat().st_size > 2000


COLLATE = (
    """
import os
os.environ["UNSLOTH_ALLOW_CPU"] = "1"
from unsloth import UnslothVisionDataCollator
import torch
"""
    + LOADER
    + """
from datasets import Dataset, Features, Image, List, Value
from transformers import AutoModelForImageTextToText, AutoProcessor
from trl.trainer.sft_trainer import DataCollatorForVisionLanguageModeling
script.MAX_PIXELS = 224 * 168
rows = script.load_rows("data/car_insurance/qwen-vl-train.xlsx")
rows = rows[:3] + [row for row in rows if len(row["images"]) == 2][:1]
message = [{"role": Value("string"), "content": [{"type": Value("string"), "text": Value("string")}]}]
features = Features({"prompt": message, "completion": message, "images": List(Image())})
data = Dataset.from_list([script.to_vision_row(row) for row in rows], features=features)
processor = AutoProcessor.from_pretrained("data/tiny-qwen2.5-vl")
model = AutoModelForImageTextToText.from_pretrained("data/tiny-qwen2.5-vl", dtype=torch.float32)
plain = DataCollatorForVisionLanguageModeling(processor, completion_only_loss=True)([dict(row) for row in data])
collator = UnslothVisionDataCollator(model, processor, 10**6, resize="max", completion_only_loss=True)
theirs = collator([dict(row) for row in data])
assert hasattr(collator, "_collate_prompt_completion"), "not the collator of the GPU path"
for name in ("input_ids", "labels", "attention_mask", "pixel_values", "image_grid_thw"):
    assert torch.equal(plain[name], theirs[name]), name
for row, labels in zip(rows, theirs["labels"]):
    text = processor.tokenizer.decode(labels[labels != -100])
    assert script.parse_json(text) == row["answer"] and text.endswith("<|im_end|>\\n"), text
print("equal", tuple(theirs["labels"].shape))
"""
)


def test_unsloth_and_trl_make_the_same_batch():
    done = subprocess.run([sys.executable, "-c", COLLATE], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0 and "equal (4," in done.stdout, done.stdout[-1000:] + done.stderr[-3000:]


def test_rehearsal_improves(rehearsal):
    run = rehearsal(SCRIPT)
    metrics = json.loads((run.output / "metrics.json").read_text(encoding="utf-8"))
    before, after = metrics["before"], metrics["after"]
    assert after["field_accuracy"] - before["field_accuracy"] >= 0.20
    assert after["mileage_accuracy"] > before["mileage_accuracy"]
    assert after["mileage_error"] < before["mileage_error"] and after["json_rate"] >= 0.9


def test_rehearsal_leaves_what_it_says(script, rehearsal):
    run = rehearsal(SCRIPT)
    names = "lora metrics.json report.md loss.png contact_sheet.png predictions.xlsx".split()
    assert {path.name for path in run.output.iterdir()} == set(names)
    assert load_file(run.output / "lora" / "adapter_model.safetensors")
    with Image.open(run.output / "contact_sheet.png") as image:
        assert image.width > 1000 and image.height > 1000
    report = (run.output / "report.md").read_text(encoding="utf-8")
    assert "of no use to anyone" in report and "| mileage_accuracy |" in report
    metrics = json.loads((run.output / "metrics.json").read_text(encoding="utf-8"))
    sheet = load_workbook(run.output / "predictions.xlsx").active
    assert sheet.max_row - 1 == metrics["settings"]["EVAL_ROWS"] <= len(sheet._images)
    header = [cell.value for cell in sheet[1]]
    place = header.index("里程数 (predicted)")
    wanted = [(json.loads(row[2]), row[place]) for row in sheet.iter_rows(min_row=2, values_only=True)]
    right = [script.normal(told) == script.normal(row["里程数"]) for row, told in wanted if "里程数" in row]
    assert sum(right) / len(right) == pytest.approx(metrics["after"]["mileage_accuracy"], abs=1e-6)
