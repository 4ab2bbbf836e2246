"""Hostile and odd files: each ends in a right result that stands in a table here, or in one line that names it."""

import contextlib
import io
import json
import os
import runpy
import struct
import sys
import tracemalloc
import zipfile
import zlib
from io import BytesIO
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pytest
from conftest import ROOT
from PIL import Image
from safetensors.numpy import save_file
from test_car_insurance_prepare import (
    FINE,
    GOOD,
    HEADER,
    LINKS,
    MAIN,
    drawing,
    one,
    picture,
    png,
    rels,
    table,
    worksheet,
    write_book,
)
from test_movielens_als import HEADER as RATED
from test_movielens_als import MOVIES, lines_of, run_cells, time_limit, write

PREPARE, JUDGE = "data/car_insurance/prepare.py", "data/car_insurance/judge.py"
SVD, SPECTRA = "image_svd/image_svd.py", "image_svd/lora_spectra.py"
ALS, IMPLICIT = "movielens_als/movielens_als.py", "movielens_als/implicit_als.py"
FIT, EXPORT = "tools/will_it_fit.py", "tools/export.py"
TINY, MB = str(ROOT / "data" / "tiny-qwen2.5"), 1 << 20


@pytest.fixture(scope="module", autouse=True)
def loaded(functions):
    """Import what the programs import before any time is taken."""
    for program in (PREPARE, JUDGE, SVD, SPECTRA, ALS, IMPLICIT, FIT, EXPORT):
        functions(program)


@pytest.fixture(autouse=True)
def at_most_30_seconds():  # far more than any takes where nothing else runs
    with time_limit(30):
        yield


def run(program, *arguments, encoding="utf-8", **environment) -> tuple[int, str]:
    """Run a whole program in this process, in a terminal of that encoding: (exit status, what it printed)."""
    printed, status = io.TextIOWrapper(BytesIO(), encoding, write_through=True), 0
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(printed):
        patch.setattr(sys, "argv", [program, *map(str, arguments)])
        patch.chdir(ROOT)
        for name, value in environment.items():
            patch.setenv(name, str(value))
        try:
            runpy.run_path(str(ROOT / program), run_name="__main__")
        except SystemExit as stop:  # Python prints a text to the other stream and exits with 1
            status, last = (1, stop.code) if isinstance(stop.code, str) else (stop.code or 0, "")
            assert "\n" not in last
            printed.write(last.encode(encoding, "backslashreplace").decode(encoding))
        finally:
            plt.close("all")
            plt.rcdefaults()
    return status, printed.buffer.getvalue().decode(encoding)


# %% Sheets
@pytest.fixture
def read(functions, tmp_path, capsys):
    """Return read(path) -> (row numbers or None, all that was said); a.jpg lies beside the sheet."""
    (tmp_path / "a.jpg").write_bytes(picture())

    def read(path) -> tuple[list | None, str]:
        try:
            rows = [row["number"] for row in functions(PREPARE).load_rows(path)]
            return rows, capsys.readouterr().out
        except ValueError as error:
            return None, capsys.readouterr().out + str(error)

    return read


def usual(inside="", **more) -> str:
    """Return a worksheet of three good rows, with XML after them."""
    return worksheet(table(image="a.jpg"), **more).replace("</sheetData>", f"{inside}</sheetData>")


def repacked(path: Path, change, kind=zipfile.ZIP_DEFLATED) -> Path:
    """Pack an archive again after change(its parts)."""
    with zipfile.ZipFile(path) as archive:
        parts = {name: archive.read(name) for name in archive.namelist()}
    change(parts)
    with zipfile.ZipFile(path, "w", kind) as archive:
        for name, raw in parts.items():
            archive.writestr(name, raw)
    return path


def lying(path: Path, kind: int) -> Path:
    """Write a sheet of 100 MB that is said to have 1,000 bytes, in a few KB."""
    size, part = 100 * MB, "xl/worksheets/sheet1.xml"
    repacked(write_book(path, {"one": usual()}), lambda parts: parts.update({part: bytes(size)}), kind)
    path.write_bytes(path.read_bytes().replace(struct.pack("<I", size), struct.pack("<I", 1000)))
    return path


def many_sheets(parts: dict) -> None:
    text = parts["xl/workbook.xml"].decode()
    entry = text[text.index("<sheet ") : text.index("</sheets>")]
    parts["xl/workbook.xml"] = text.replace(entry, entry * 500).encode()


def with_chunk(raw: bytes, size: int) -> bytes:
    """Return a PNG with a chunk of that size that no reader knows."""
    chunk = b"abCd" + bytes(size)
    return raw[:33] + struct.pack(">I", size) + chunk + struct.pack(">I", zlib.crc32(chunk)) + raw[33:]


DOCTYPE = '<!DOCTYPE x [<!ENTITY a "' + "a" * 100_000 + '">]>'
QUADRATIC = DOCTYPE + usual('<row r="9"><c r="A9" t="str"><v>' + "&a;" * 50 + "</v></c></row>")
SST = f'<sst xmlns="{MAIN}">'
TITLES = '<c t="str"><v>prompt</v></c><c t="str"><v>response</v></c>' + '<c t="str"><v>image</v></c>' * 16_000
WIDE = worksheet([]).replace(
    "<sheetData>", f"<sheetData><row>{TITLES}</row>" + "<row><c><v>1</v></c></row>" * 30_000
)

# name, what writes it, rows that are read (None: the file is refused), words that are said
BOMBS = [
    ("300,000 default heights", lambda path: write_book(path, {"one": usual(head="<sheetFormatPr/>" * 300_000)}), [2, 3, 4], ""),
    ("200,000 column widths", lambda path: write_book(path, {"one": usual(head="<cols>" + '<col min="1" max="16384"/>' * 200_000 + "</cols>")}), [2, 3, 4], ""),
    ("7 million empty cells", lambda path: write_book(path, {"one": usual("<row>" + "<c/>" * 7_000_000 + "</row>")}), None, "holds too much"),
    ("6 million shared texts", lambda path: write_book(path, {"one": usual()}, parts={"xl/sharedStrings.xml": SST + "<si/>" * 6_000_000 + "</sst>"}), None, "holds too much"),
    ("110,000 merged areas", lambda path: write_book(path, {"one": usual(tail="<mergeCells>" + '<mergeCell ref="A9:B9"/>' * 110_000 + "</mergeCells>")}), None, "merged areas"),
    ("a cell of a million names", lambda path: write_book(path, {"one": worksheet([HEADER, ["a.jpg;" * 1_000_000, "读", GOOD], FINE])}), [3], "row 2, cell A2: more than 8 pictures"),
    ("16,000 columns of pictures", lambda path: write_book(path, {"one": WIDE}), None, "more than 40 columns for pictures"),
    ("a worksheet listed 500 times", lambda path: repacked(write_book(path, {"one": usual(" " * 20 * MB)}), many_sheets), [2, 3, 4] * 6, "holds too much"),
    ("entities below the parser's limit", lambda path: write_book(path, {"one": QUADRATIC}), None, "DOCTYPE"),
    ("the same in UTF-16", lambda path: write_book(path, {"one": ('<?xml version="1.0" encoding="utf-16"?>' + QUADRATIC).encode("utf-16")}), None, "DOCTYPE"),
    ("the same in EBCDIC", lambda path: write_book(path, {"one": b'<?xml version="1.0" encoding="cp037"?>' + QUADRATIC.replace("读", "x").encode("cp037")}), None, "cannot be read"),
    ("a DOCTYPE over the pictures", lambda path: write_book(path, {"one": usual()}, parts={"xl/drawings/drawing1.xml": DOCTYPE + drawing([])}), [2, 3, 4], "pictures over the cells: "),
    ("a DOCTYPE over the styles", lambda path: write_book(path, {"one": usual()}, parts=styled("<!DOCTYPE x>")), None, "DOCTYPE"),
    ("100 MB said to be 1,000 bytes", lambda path: lying(path, zipfile.ZIP_DEFLATED), None, "CRC"),
    ("the same as bzip2", lambda path: lying(path, zipfile.ZIP_BZIP2), None, "packed in a way"),
    ("the same as LZMA", lambda path: lying(path, zipfile.ZIP_LZMA), None, "packed in a way"),
    ("100,000 elements deep", lambda path: write_book(path, {"one": usual("<x>" * 100_000 + "</x>" * 100_000)}), [2, 3, 4], ""),
    ("25 million pixels of 16 bits", lambda path: write_book(path, {"one": worksheet([HEADER, [None, "读", GOOD], FINE])}, [one(1, 2, 0, 19)], {1: sixteen(5000)}), [2, 3], "converted from I;16 to RGB"),
    ("C1 controls in titles and targets", lambda path: write_book(path, {"\x9b31m": usual()}, [one(1, 2, 0, 19)], targets={"rId1": ("image", "../media/\x9b2J.png")}), [3, 4], "2J.png is missing"),
]  # fmt: skip


def sixteen(side: int) -> bytes:
    file = BytesIO()
    Image.new("I;16", (side, side)).save(file, "PNG", compress_level=1)
    return file.getvalue()


def styled(styles: str) -> dict:
    """Return the parts of a workbook that has styles."""
    kinds = {"rId1": ("worksheet", "worksheets/sheet1.xml"), "rId9": ("styles", "styles.xml")}
    return {"xl/styles.xml": styles, "xl/_rels/workbook.xml.rels": rels(kinds)}


@pytest.mark.parametrize("build,rows,words", [case[1:] for case in BOMBS], ids=[case[0] for case in BOMBS])
def test_a_small_file_takes_no_minutes_and_no_gigabytes(read, tmp_path, build, rows, words):
    path = build(tmp_path / "b.xlsx")
    assert path.stat().st_size < 500_000
    if words in ("holds too much", "DOCTYPE", "packed in a way", "CRC"):  # not even unpacked; tracing is slow
        tracemalloc.start()
    try:
        found, said = read(path)
        assert not tracemalloc.is_tracing() or tracemalloc.get_traced_memory()[1] < 120 * MB
    finally:
        tracemalloc.stop()
    assert found == rows and words in said and "b.xlsx" in said and "\x9b" not in said, said[:2000]


def test_what_a_picture_carries_beside_its_pixels_is_not_kept(functions, tmp_path):
    lines = [HEADER, *([None, "读", GOOD] for _ in range(300))]
    media = {1: with_chunk(picture("PNG"), 30 * MB)}
    anchors = [one(1, number, 0, 19) for number in range(2, 302)]
    rows = functions(PREPARE).load_rows(
        write_book(tmp_path / "b.xlsx", {"one": worksheet(lines)}, anchors, media)
    )
    assert (
        len(rows) == 300 and len(rows[0]["images"][0]) < 10_000 and len({row["style"] for row in rows}) == 1
    )


FORMATS = ["0", "14", "200", "31", "10", "22", "201"]
STYLES = (
    f'<styleSheet xmlns="{MAIN}"><numFmts><numFmt numFmtId="200" formatCode="yyyy&quot;年&quot;m&quot;月&quot;"/>'
    f'<numFmt numFmtId="201" formatCode="{"[" * 60_000}"/></numFmts><cellXfs>'
    + "".join(f'<xf numFmtId="{number}"/>' for number in FORMATS)
    + "</cellXfs></styleSheet>"
)
# name, cell, its XML, what is read of it (None: the row is left out), words that are said
CELLS = [
    ("TRUE", "B2", '<c r="B2" t="b"><v>1</v></c>', "TRUE", ""),
    ("FALSE", "B2", '<c r="B2" t="b"><v>0</v></c>', "FALSE", ""),
    ("neither", "B2", '<c r="B2" t="b"><v>7</v></c>', "7", ""),
    ("a date", "B2", '<c r="B2" s="1"><v>45292</v></c>', "2024-01-01", ""),
    ("a date of the user's own", "B2", '<c r="B2" s="2"><v>45292</v></c>', "2024-01-01", ""),
    ("a Chinese date", "B2", '<c r="B2" s="3"><v>45292</v></c>', "2024-01-01", ""),
    ("a date and time", "B2", '<c r="B2" s="5"><v>45292.5</v></c>', "2024-01-01 12:00:00", ""),
    ("a percentage", "B2", '<c r="B2" s="4"><v>0.5</v></c>', "0.5", ""),
    ("a plain number", "B2", '<c r="B2" s="0"><v>45292</v></c>', "45292", ""),
    ("a format of brackets", "B2", '<c r="B2" s="6"><v>45292</v></c>', "45292", ""),
    ("a style that is not there", "B2", '<c r="B2" s="99"><v>45292</v></c>', "45292", ""),
    ("a date out of range", "B2", '<c r="B2" s="1"><v>1e300</v></c>', "1e300", ""),
    ("a date that is NaN", "B2", '<c r="B2" s="1"><v>nan</v></c>', "nan", ""),
    ("a date as a style", "D2", '<c r="D2" s="1"><v>45292</v></c>', "2024-01-01", ""),
    ("a date for an answer", "C2", '<c r="C2" s="1"><v>45292</v></c>', None, "C2: not a JSON object"),
    ("TRUE for an answer", "C2", '<c r="C2" t="b"><v>1</v></c>', None, "C2: not a JSON object"),
    ("#REF! for a prompt", "B2", '<c r="B2" t="e"><v>#REF!</v></c>', None, "B2: #REF! is a formula or an error"),
    ("#DIV/0! for an answer", "C2", '<c r="C2" t="e"><v>#DIV/0!</v></c>', None, "C2: #DIV/0! is a formula or an error"),
    ("#NAME? for a picture", "A2", '<c r="A2" t="e"><v>#NAME?</v></c>', None, "A2: #NAME? is a formula or an error"),
    ("a formula that was never worked out", "B2", '<c r="B2"><f>A1&amp;"x"</f></c>', None, 'B2: =A1&"x" is a formula'),
    ("control characters alone", "B2", '<c r="B2" t="inlineStr"><is><t>_x0000__x001B_</t></is></c>', None, "B2: no prompt"),
    ("a bare number of 400 digits", "C2", f'<c r="C2"><v>{"9" * 400}</v></c>', None, "C2: not a JSON object"),
    ("NaN inside", "C2", '<c r="C2" t="str"><v>{"a": [{"b": NaN}]}</v></c>', None, "C2: not a JSON object"),
    ("JSON 5,000 deep", "C2", f'<c r="C2" t="str"><v>{chr(123) + chr(34) + "a" + chr(34) + ":" + "[" * 4900}</v></c>', None, "C2: not a JSON object"),
    ("a name in GBK", "A2", '<c r="A2" t="str"><v>照片.jpg</v></c>', None, "A2: 照片.jpg in"),
    ("the number of a picture", "A2", '<c r="A2"><v>1</v></c>', None, "A2: 1 in"),
]  # fmt: skip


@pytest.mark.parametrize(
    "cell,xml,value,words", [case[1:] for case in CELLS], ids=[case[0] for case in CELLS]
)
def test_a_cell_is_read_as_it_is_shown_or_its_row_is_named(
    functions, tmp_path, capsys, cell, xml, value, words
):
    (tmp_path / "a.jpg").write_bytes(picture())
    (tmp_path / os.fsdecode("照片.jpg".encode("gbk"))).write_bytes(picture())
    line = list(FINE)
    line["ABCD".index(cell[0])] = xml
    path = write_book(tmp_path / "b.xlsx", {"one": worksheet([HEADER, line, FINE])}, parts={**styled(STYLES)})
    rows = functions(PREPARE).load_rows(path)
    assert [row["number"] for row in rows] == ([3] if value is None else [2, 3])
    assert value in (None, rows[0]["prompt"], rows[0]["style"])
    assert f"row 2, cell {words}" in capsys.readouterr().out if words else True


def test_dates_of_an_old_mac(functions, tmp_path):
    (tmp_path / "a.jpg").write_bytes(picture())
    lines = [HEADER, ["a.jpg", '<c r="B2" s="1"><v>43830</v></c>', GOOD, "s"]]
    path = write_book(tmp_path / "b.xlsx", {"one": worksheet(lines)}, parts=styled(STYLES))
    head = f'<workbook xmlns="{MAIN}" xmlns:r="{LINKS}">'.encode()
    mac = head + b'<workbookPr date1904="1"/>'
    name = "xl/workbook.xml"
    repacked(path, lambda parts: parts.update({name: parts[name].replace(head, mac)}))
    assert [row["prompt"] for row in functions(PREPARE).load_rows(path)] == ["2024-01-01"]


def test_a_picture_that_may_not_be_read_costs_its_row(read, tmp_path, monkeypatch):
    (tmp_path / "b.jpg").write_bytes(picture())
    whole = Path.read_bytes

    def refused(path):
        if path.name == "b.jpg":
            raise PermissionError(13, "Permission denied", str(path))
        return whole(path)

    monkeypatch.setattr(Path, "read_bytes", refused)
    found, said = read(
        write_book(tmp_path / "b.xlsx", {"one": worksheet([HEADER, ["b.jpg", "读", GOOD], FINE])})
    )
    assert found == [3] and "row 2, cell A2: " in said and "Permission denied" in said


def zip_of(files: dict, path: Path) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return path


NO_SHEETS = {  # name -> what writes it; the program ends with status 1 and a line that names the file
    "a .docx": lambda path: zip_of({"word/document.xml": "<w/>"}, path),
    "an .ods": lambda path: zip_of({"content.xml": "<o/>", "mimetype": "spreadsheet"}, path),
    "an .xlsb": lambda path: zip_of({"xl/workbook.bin": "x", "_rels/.rels": rels({"rId1": ("officeDocument", "xl/workbook.bin")})}, path),
    "an empty zip": lambda path: zip_of({}, path),
    "30,000 names": lambda path: zip_of(dict.fromkeys(map(str, range(30_000)), ""), path),
    "a page": lambda path: write(path, "<table><tr><td>image</td></tr></table>"),
    "no worksheet": lambda path: write_book(path, {}),
    "only a header": lambda path: write_book(path, {"one": worksheet([HEADER])}),
    "a header and one row": lambda path: write_book(path, {"one": worksheet([HEADER, FINE])}),
    "an empty worksheet": lambda path: write_book(path, {"one": worksheet([])}),
    "a dead link": lambda path: path.symlink_to(path.parent / "nothing"),
}  # fmt: skip


@pytest.mark.parametrize("name", NO_SHEETS)
def test_a_file_without_rows_is_one_line(tmp_path, name):
    (tmp_path / "a.jpg").write_bytes(picture())
    NO_SHEETS[name](tmp_path / "b.xlsx")
    status, said = run(PREPARE, tmp_path / "b.xlsx", tmp_path / "out")
    assert status == 1 and "b.xlsx" in said and not (tmp_path / "out").exists()


def nine(folder: Path, name="b.xlsx", *more) -> Path:
    """Write a sheet of nine rows that can be split, and more."""
    lines = [HEADER, *([f"{number}.jpg", "读🚗", GOOD, f"s{number}"] for number in range(9)), *more]
    for number in range(9):
        (folder / f"{number}.jpg").write_bytes(picture(size=(64, 40 + number)))
    return write_book(folder / name, {"é雪": worksheet(lines)})


def test_a_folder_that_is_a_file(tmp_path):
    (tmp_path / "out").write_bytes(b"mine")
    status, said = run(PREPARE, nine(tmp_path), tmp_path / "out")
    assert status == 1 and f"{tmp_path}/out" in said and (tmp_path / "out").read_bytes() == b"mine"


# %% Answers of a vision run
ROW = {"input": "读", "image": ["a.png"], "style": "s", "reference": GOOD, "before": "{}", "after": GOOD}
METRICS = {name: {"field_accuracy": 0.5} for name in ("before", "after")}
METRICS["difference"] = {"field_accuracy": {"value": 0.0, "low": -0.1, "high": 0.1, "p": 0.5}}
BAD_ANSWERS = {  # the second of two lines
    "cut": json.dumps(ROW)[:60],
    "a number": json.dumps({**ROW, "after": 5}),
    "nothing": json.dumps({**ROW, "after": None}),
    "an object that is no text": json.dumps({**ROW, "after": {"里程数": 5}}),
    "before is a list": json.dumps({**ROW, "before": []}),
    "exported is true": json.dumps({**ROW, "exported": True}),
    "a reference 900 deep": json.dumps({**ROW, "reference": '{"a":' + "[" * 900 + "]" * 900 + "}"}),
    "a reference of 500 fields": json.dumps({**ROW, "reference": json.dumps(dict.fromkeys(map(str, range(500)), 1))}),
    "a reference of 5,000 digits": json.dumps({**ROW, "reference": '{"a":' + "9" * 5000 + "}"}),
    "an image that is a number": json.dumps({**ROW, "image": 5}),
}  # fmt: skip
BAD_METRICS = {
    "numbers for tables": {**METRICS, "before": 5, "after": 5, "difference": 5}, "words for numbers": {**METRICS, "before": {"field_accuracy": "high"}},
    "a list": {**METRICS, "difference": []}, "a word for a difference": {**METRICS, "difference": {"field_accuracy": "x"}},
    "a word for an interval": {**METRICS, "difference": {"field_accuracy": {"low": "x", "high": 1}}},
    "no value": {**METRICS, "difference": {"field_accuracy": {"low": 0.1, "high": 1}}}, "train is a number": {**METRICS, "train": 5},
    "versions are nothing": {**METRICS, "versions": None}, "deep": '{"a":' * 5000, "not UTF-8": b'{"a": "\xff"}', "a pipe": None,
}  # fmt: skip


def write_answers(folder: Path, *rows, metrics=None) -> Path:
    folder.mkdir(exist_ok=True)
    lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
    (folder / "answers.jsonl").write_text("\n".join(lines), encoding="utf-8")
    if metrics is not None:
        content = json.dumps(metrics) if isinstance(metrics, dict) else metrics
        write(folder / "metrics.json", content)
    return folder


@pytest.mark.parametrize("name", BAD_ANSWERS)
def test_an_answer_of_another_kind_is_not_a_wrong_answer(tmp_path, name):
    status, said = run(JUDGE, write_answers(tmp_path / "run", ROW, BAD_ANSWERS[name]))
    assert status == 1 and "answers.jsonl, line 2: " in said
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["answers.jsonl"]


@pytest.mark.parametrize("name", BAD_METRICS)
def test_damaged_scores_are_named(functions, tmp_path, name):
    folder = write_answers(tmp_path / "run", ROW, ROW)
    if BAD_METRICS[name] is None:
        os.mkfifo(folder / "metrics.json")
    else:
        write_answers(folder, ROW, ROW, metrics=BAD_METRICS[name])
    with pytest.raises(ValueError, match="metrics.json is damaged"):
        functions(JUDGE).judge(folder)
    assert not (folder / "report.md").exists()


def test_what_was_not_asked_before_training_is_no_progress(functions, tmp_path):
    bare = {name: value for name, value in ROW.items() if name != "before"}
    folder = write_answers(tmp_path / "run", ROW, bare)
    with pytest.raises(ValueError, match="row 2 of answers.jsonl has no before"):
        functions(JUDGE).judge(folder)
    model = "`x`\n# out <script>\x1b[31m"
    assert "0.500" in functions(JUDGE).judge(write_answers(folder, bare, metrics={**METRICS, "model": model}))
    heading, second, *rest = (folder / "report.md").read_text(encoding="utf-8").split("\n")
    assert heading.endswith("`x # out <script>\ufffd[31m`, 1 held-out rows") and second == ""


def drawn(form="PNG", mode="RGBA", **more) -> bytes:
    """Return a picture with a red left half; the right half is transparent black, or green without alpha."""
    pixels = np.zeros((40, 60, 4), "uint8")
    pixels[:, :30] = [200, 0, 0, 255]
    if mode != "RGBA":
        pixels[:, 30:] = [0, 200, 0, 255]
    file, image = BytesIO(), Image.fromarray(pixels)
    (image if mode == "RGBA" else image.convert("RGB").convert(mode)).save(file, form, **more)
    return file.getvalue()


def of(pixels: np.ndarray, form: str) -> bytes:
    file = BytesIO()
    Image.fromarray(pixels).save(file, form)
    return file.getvalue()


RAMP = np.tile(np.where(np.arange(60) < 30, 1000, 3000), (40, 1))
EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n"
RED, GREEN, WHITE, BLACK, GREY = [200, 0, 0], [0, 200, 0], [255] * 3, [0] * 3, [211] * 3
# name -> its bytes, colours of its left and right half on the sheet; grey: said, and not shown
PHOTOS = {
    "transparent PNG": (drawn(), RED, WHITE), "transparent WebP": (drawn("WEBP", lossless=True), RED, WHITE),
    "CMYK JPEG": (drawn("JPEG", "CMYK"), RED, GREEN), "palette": (drawn("PNG", "P"), RED, GREEN), "MPO": (drawn("MPO", "RGB"), RED, GREEN),
    "JPEG 2000": (drawn("JPEG2000", "RGB"), RED, GREEN), "16 bits": (of(RAMP.astype("uint16"), "PNG"), BLACK, WHITE),
    "TIFF of floats": (of(RAMP.astype("float32"), "TIFF"), BLACK, WHITE), "TIFF of NaN": (of(np.full((40, 60), np.nan, "float32"), "TIFF"), GREY, GREY),
    "EPS": (EPS, GREY, GREY), "SVG": (b"<svg xmlns='http://www.w3.org/2000/svg'/>", GREY, GREY), "nothing": (b"", GREY, GREY),
    "truncated": (drawn("JPEG", "RGB")[:-300], GREY, GREY), "bomb of 50,000 x 50,000": (png(50_000, 50_000), GREY, GREY),
    "bomb of 9,000 x 9,000": (png(9000, 9000), GREY, GREY),
}  # fmt: skip


@pytest.mark.parametrize("name", PHOTOS)
def test_photos_look_as_they_are_on_the_judges_sheets(functions, tmp_path, capsys, name):
    raw, left, right = PHOTOS[name]
    (tmp_path / "a.png").write_bytes(raw)
    pixels = np.asarray(functions(JUDGE).photo_strip(["a.png"], tmp_path, 40), int)
    assert np.abs(pixels[20, 5] - left).max() < 12 and np.abs(pixels[20, -6] - right).max() < 12
    assert ("a.png: a photo that is not shown" in capsys.readouterr().out) == (left == GREY)


def test_a_strip_and_a_thousand_photos_stay_small(functions, tmp_path):
    (tmp_path / "a.png").write_bytes(of(np.zeros((1, 20_000), "uint8"), "PNG"))
    assert functions(JUDGE).photo_strip(["a.png"] * 1000, tmp_path, 20).size == (8 * 160, 20)


# %% Pictures of the demo
PICTURES = {  # name -> its bytes, colours of the left and the right half, words that are said
    "transparent": (drawn(), RED, WHITE, ""),
    "animated GIF": (drawn("GIF", "P", save_all=True, append_images=[Image.new("P", (60, 40), 7)]), RED, GREEN, "only the first of its pages"),
    "animated WebP": (drawn("WEBP", "RGB", lossless=True, save_all=True, append_images=[Image.new("RGB", (60, 40))]), RED, GREEN, "only the first of its pages"),
    "MPO": (drawn("MPO", "RGB", save_all=True, append_images=[Image.new("RGB", (60, 40))]), RED, GREEN, ""),
    "CMYK": (drawn("JPEG", "CMYK"), RED, GREEN, ""),
    "a chunk of 20 MB": (with_chunk(drawn("PNG", "RGB"), 20 * MB), RED, GREEN, ""),
    "floats": (of(RAMP.astype("float32"), "TIFF"), BLACK, WHITE, ""),
    "EPS": (EPS, None, None, "drawing"),
    "broken EXIF": (drawn("JPEG", "RGB", exif=b"Exif\0\0MM\0*\xff\xff\xff\xff" + b"\xff" * 40), RED, GREEN, ""),
    "a zip": (b"PK\x03\x04" + bytes(60), None, None, "cannot be used"),
    "1 x 1": (of(np.zeros((1, 1), "uint8"), "PNG"), None, None, "8 x 8"),
}  # fmt: skip


@pytest.mark.parametrize("name", PICTURES)
def test_the_demo_sees_what_people_see(functions, tmp_path, capsys, name):
    raw, left, right, words = PICTURES[name]
    (tmp_path / "a.png").write_bytes(raw)
    try:
        image = functions(SVD).read_image(tmp_path / "a.png").astype(int)
        assert np.abs(image[20, 5] - left).max() < 12 and np.abs(image[20, -6] - right).max() < 12
        assert words in capsys.readouterr().out
    except ValueError as error:
        assert left is None and "a.png cannot be used" in str(error) and words in str(error)


@pytest.mark.parametrize("ranks", [(0, 5), (-5,), (2.5,), ("5",), (None,), (1, 2), (300,)])
def test_a_rank_that_is_no_rank_is_refused_and_any_other_is_drawn(tmp_path, ranks):
    (tmp_path / "a.png").write_bytes(drawn("PNG", "L"))
    ended, printed, space = run_cells(SVD, RANKS=ranks, DATA=str(tmp_path / "a.png"), OUTPUT=str(tmp_path))
    if ranks in ((1, 2), (300,)):  # though none of the ranks whose pictures are shown is among them
        assert ended is None and "Wrote" in printed and (tmp_path / "svd.png").stat().st_size > 5000
    else:
        assert "RANKS" in ended and "\n" not in ended and "factors" not in space


# %% Ratings
RATINGS = {  # name -> its content, ratings that are read (None: refused), words that are said
    "milliseconds": (lines_of(lambda u, f, s, t: (u, f, s, 1000 * t)), 240, ""),
    "negative times": (lines_of(lambda u, f, s, t: (u, f, s, -t)), 240, ""),
    "times of 0": (lines_of(lambda u, f, s, t: (u, f, s, 0)), 240, ""),
    "times in ISO": (lines_of(lambda u, f, s, t: (u, f, s, "2019-01-01T12:00:00Z")), None, "2019-01-01T12:00:00Z"),
    "half of it in ISO": (lines_of() + lines_of(lambda u, f, s, t: (u, f, s, "2019-01-01"), header=""), None, "240 malformed"),
    "two separators": (lines_of() + lines_of(separator="::", header=""), None, "240 malformed"),
    "a sixth is nan": (lines_of(lambda u, f, s, t: (u, f, "nan" if f % 6 == 0 else s, t)), None, "malformed"),
    "one infinite": (lines_of() + "1,2,inf,3\n", 240, "1 malformed lines ['1,2,inf,3']"),
    "one without a time": (lines_of() + "1,2,3.5,\n", 240, "1 malformed"),
    "0 to 1": (lines_of(lambda u, f, s, t: (u, f, s / 5, t)), None, "correct STARS"),
    "-5 to 5": (lines_of(lambda u, f, s, t: (u, f, 2 * s - 5, t)), None, "correct STARS"),
    "broken ids": (lines_of(lambda u, f, s, t: (u + 0.5, f, s, t)), None, "240 malformed"),
    "a header of its own": ("uid,iid,score,ts\n" + lines_of(header=""), None, "begins with no rating"),
    "a header in GBK": ("用户,电影,评分,时间\n".encode("gbk") + lines_of(header="").encode(), None, "begins with no rating"),
    "titles for ratings": (MOVIES, None, "begins with no rating"),
    "a workbook": (b"PK\x03\x04" + bytes(range(256)) * 9, None, "begins with no rating"),
    "ten million commas": ("," * 10_000_000, None, "begins with no rating"),
    "only negative stars": (lines_of(lambda u, f, s, t: (u, f, -s, t)), None, "240 outside"),
}  # fmt: skip


@pytest.mark.parametrize("script", [ALS, IMPLICIT])
@pytest.mark.parametrize("name", RATINGS)
def test_ratings_are_read_or_the_file_is_named(functions, tmp_path, capsys, script, name):
    content, count, words = RATINGS[name]
    path = write(tmp_path / "ratings.csv", content)
    try:
        assert len(functions(script).load_ratings(path)) == count
        said = capsys.readouterr().out
    except ValueError as error:
        said = str(error)
        assert count is None and "\n" not in said
    assert str(path) in said and words in said and len(said) < 600


FEW = {  # name -> ratings that are good, but too few to hold one out
    "one user": "1,1,3,1\n1,2,4,2\n", "one film": "".join(f"{user},1,3,{user}\n" for user in range(60)), "one rating": "1,1,5,9\n",
}  # fmt: skip


@pytest.mark.parametrize("script", [ALS, IMPLICIT])
@pytest.mark.parametrize("name", FEW)
def test_too_few_ratings_to_hold_one_out(tmp_path, script, name):
    path = write(tmp_path / "ratings.csv", RATED + FEW[name])
    status, said = run(script, DATA=path, OUTPUT=tmp_path / "out")
    assert status == 1 and f"{path}: no user has" in said


# %% Adapters
NAME = "base_model.model.{}.lora_{}.weight"
EYE = {"A": np.eye(2, 32, dtype="float32"), "B": np.eye(32, 2, dtype="float32")}
CONFIG = {"r": 2, "lora_alpha": 4, "base_model_name_or_path": "some/base"}
BAD_ADAPTERS = {  # name -> its adapter_config.json, its matrices, a word of what is said
    "a list": ([], EYE, ""), "null": (None, EYE, ""), "broken": ("{", EYE, ""), "deep": ('{"a":' * 5000, EYE, ""),
    "empty": ("", EYE, ""), "marked": ("\ufeff{}", EYE, ""),
    "no alpha": ({"r": 2}, EYE, "alpha"), "alpha is null": ({**CONFIG, "lora_alpha": None}, EYE, "alpha"),
    "alpha in words": ({**CONFIG, "lora_alpha": "16"}, EYE, "alpha"), "alpha is NaN": ({**CONFIG, "lora_alpha": float("nan")}, EYE, "alpha"),
    "alpha below 0": ({**CONFIG, "lora_alpha": -4}, EYE, "alpha"), "alpha is a list": ({**CONFIG, "lora_alpha": [4]}, EYE, "alpha"),
    "a pattern that takes years": ({**CONFIG, "alpha_pattern": {r"(\w|\d|.)*!": 8}}, EYE, "intricate"),
    "a broken pattern": ({**CONFIG, "alpha_pattern": {"(": 8}}, EYE, ""), "a list of patterns": ({**CONFIG, "alpha_pattern": [8]}, EYE, ""),
    "a pattern for a word": ({**CONFIG, "alpha_pattern": {"q_proj": "x"}}, EYE, "alpha"),
    "no B": (CONFIG, {"A": EYE["A"]}, "no B and A"), "another rank in B": (CONFIG, {**EYE, "B": np.eye(32, 3, dtype="float32")}, "no B and A"),
    "rank 0": (CONFIG, {"A": np.zeros((0, 32), "float32"), "B": np.zeros((32, 0), "float32")}, "no B and A"),
    "NaN": (CONFIG, {**EYE, "A": np.full((2, 32), np.nan, "float32")}, "no finite numbers"),
    "infinite": (CONFIG, {**EYE, "B": np.full((32, 2), -np.inf, "float32")}, "no finite numbers"),
}  # fmt: skip


def write_adapter(folder: Path, config=CONFIG, matrices=EYE, module="layers.0.q_proj") -> Path:
    folder.mkdir(parents=True)
    text = config if isinstance(config, str) else json.dumps(config)
    (folder / "adapter_config.json").write_text(text, encoding="utf-8")
    save_file(
        {NAME.format(module, side): values for side, values in matrices.items()},
        folder / "adapter_model.safetensors",
    )
    return folder


@pytest.mark.parametrize("name", BAD_ADAPTERS)
def test_an_adapter_that_is_none_is_named(functions, tmp_path, name):
    config, matrices, word = BAD_ADAPTERS[name]
    folder = write_adapter(tmp_path / "lora", config, matrices)
    with pytest.raises(ValueError, match=str(folder)) as caught:
        functions(SPECTRA).lora_spectra(folder)
    assert word in str(caught.value)


@pytest.mark.parametrize("kind", ["pipe", "truncated", "pickle", "a folder", "missing"])
@pytest.mark.parametrize("program", [SPECTRA, EXPORT])
def test_only_whole_safetensors_are_opened(functions, tmp_path, program, kind):
    folder = write_adapter(tmp_path / "lora")
    weights = folder / "adapter_model.safetensors"
    raw = weights.read_bytes()
    weights.unlink()
    if kind == "pipe":
        os.mkfifo(weights)
    elif kind == "truncated":
        weights.write_bytes(raw[:-20])
    elif kind == "pickle":  # calls os.mkdir() when it is read
        command = f"cposix\nmkdir\n(S'{tmp_path}/evil'\ntR."
        (folder / "adapter_model.bin").write_bytes(command.encode())
    elif kind == "a folder":
        weights.mkdir()
    with pytest.raises(ValueError, match=str(folder)):
        if program == SPECTRA:
            functions(SPECTRA).lora_spectra(folder)
        else:
            functions(EXPORT).load_adapted(functions(EXPORT).find_adapter(folder), TINY)
    assert not (tmp_path / "evil").exists()


def test_names_with_formulas_and_dead_links_are_drawn_around(tmp_path):
    write_adapter(tmp_path / "a", module=r"layers.0.$\frac{")
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "adapter_model.safetensors").symlink_to(tmp_path / "nothing")
    out = tmp_path / "out"
    ended, printed, _ = run_cells(SPECTRA, MODEL="none", ADAPTER=f"{tmp_path}/*", OUTPUT=str(out))
    assert ended is None and "effective rank 2.0 of 2.0" in printed and (out / "lora.png").is_file()


BAD_BASES = {
    "none": {"r": 2}, "null": {**CONFIG, "base_model_name_or_path": None}, "a list": {**CONFIG, "base_model_name_or_path": ["a"]},
    "empty": {**CONFIG, "base_model_name_or_path": ""}, "an escape": {**CONFIG, "base_model_name_or_path": "\x1b[31m"},
    "rank 0": {**CONFIG, "r": 0}, "rank in words": {**CONFIG, "r": "16"}, "rank 4,096": {**CONFIG, "r": 4096}, "not an object": [], "broken": "{",
}  # fmt: skip


@pytest.mark.parametrize("name", BAD_BASES)
def test_the_export_names_an_adapter_without_a_base(tmp_path, name):
    folder = write_adapter(tmp_path / "run" / "lora", BAD_BASES[name])
    status, said = run(EXPORT, tmp_path / "run")
    assert status == 1 and f"{folder}/adapter_config.json" in said and "\x1b" not in said


REAL = "model.layers.0.self_attn.q_proj"
WHOLE = {"A": np.eye(2, 192, dtype="float32"), "B": np.eye(192, 2, dtype="float32")}
UNFIT = {  # name -> matrices, their module, a word of what is said
    "NaN": ({**WHOLE, "A": np.full((2, 192), np.nan, "float32")}, REAL, "no finite numbers"),
    "of another model": (WHOLE, "model.layers.77.q_proj", "have no place"), "no B": ({"A": WHOLE["A"]}, REAL, "lacks"),
    "of another size": (EYE, REAL, "cannot be put on"),
}  # fmt: skip


@pytest.mark.parametrize("name", UNFIT)
def test_the_export_refuses_an_adapter_that_does_not_fit(functions, tmp_path, name):
    matrices, module, word = UNFIT[name]
    config = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "target_modules": [REAL]}
    folder = write_adapter(tmp_path / "lora", {**config, "base_model_name_or_path": TINY}, matrices, module)
    with pytest.raises(ValueError, match=word) as caught:
        functions(EXPORT).load_adapted(folder, TINY)
    assert str(folder) in str(caught.value)


TURN = {"prompt": [{"role": "user", "content": "?"}], "after": "x"}
BAD_TURNS = {
    "cut": '{"prompt": [', "deep": '{"a":' * 5000, "a number": "5", "a word": {**TURN, "prompt": ["?"]},
    "no role": {**TURN, "prompt": [{"content": "?"}]}, "content is a number": {**TURN, "prompt": [{"role": "user", "content": 5}]},
    "after is null": {**TURN, "after": None}, "no after": {"prompt": TURN["prompt"]}, "an object": {**TURN, "prompt": {"role": "user"}},
    "half a letter": b'{"prompt": "\xe9"}',
}  # fmt: skip


@pytest.mark.parametrize("name", BAD_TURNS)
def test_the_export_names_a_line_of_answers(functions, tmp_path, name):
    line = BAD_TURNS[name]
    line = line if isinstance(line, bytes) else (line if isinstance(line, str) else json.dumps(line)).encode()
    (tmp_path / "answers.jsonl").write_bytes(json.dumps(TURN).encode() + b"\n" + line)
    with pytest.raises(ValueError, match="answers.jsonl, line 2: "):
        functions(EXPORT).read_answers(tmp_path / "answers.jsonl")


# %% Configurations
SIZES = json.loads(Path(TINY, "config.json").read_text(encoding="utf-8"))
VISION = {"hidden_size": 64, "num_hidden_layers": 2}
BAD_CONFIGS = {
    "broken": "{", "empty": "", "a list": "[]", "null": "null", "deep": '{"a":' * 100_000, "not UTF-8": b"\xff\xfe{}",
    "no sizes": {"model_type": "qwen2"}, "no type": {"hidden_size": 64}, "an unknown type": {**SIZES, "model_type": "\x1b[31m"},
    "code of its own": {"hidden_size": 64, "model_type": "x", "auto_map": {"AutoConfig": "evil.Config"}},
    "size is null": {**SIZES, "hidden_size": None}, "size in words": {**SIZES, "hidden_size": "192"}, "size below 0": {**SIZES, "hidden_size": -8},
    "size is NaN": {**SIZES, "hidden_size": float("nan")}, "size is a list": {**SIZES, "hidden_size": [192]},
    "size of 20 digits": {**SIZES, "hidden_size": 10**20}, "inner size 0": {**SIZES, "intermediate_size": 0},
    "a million layers": {**SIZES, "num_hidden_layers": 10**6, "layer_types": None}, "layers below 0": {**SIZES, "num_hidden_layers": -1, "layer_types": []},
    "no heads": {**SIZES, "num_attention_heads": 0}, "head is true": {**SIZES, "head_dim": True}, "head is a word": {**SIZES, "head_dim": "x"},
    "vocabulary below 0": {**SIZES, "vocab_size": -5}, "an unknown activation": {**SIZES, "hidden_act": "x"},
    "GPT-2": {"model_type": "gpt2", "n_embd": 64, "n_layer": 2}, "Mamba": {"model_type": "mamba", "hidden_size": 64},
    "BERT": {"model_type": "bert", "hidden_size": 64}, "T5": {"model_type": "t5", "d_model": 64}, "a skip list of numbers": {**SIZES, "quantization_config": {"llm_int8_skip_modules": [5]}},
    "a skip list that is a word": {**SIZES, "quantization_config": {"llm_int8_skip_modules": "lm_head"}},
    "a blind eye": {"model_type": "qwen2_5_vl", "text_config": VISION, "vision_config": {"depth": 2, "patch_size": 0}},
    "ten million eyes": {"model_type": "qwen2_5_vl", "text_config": VISION, "vision_config": {"depth": 10**7}},
    "a pipe": None,
}  # fmt: skip


def test_a_config_that_cannot_be_predicted_is_one_line_and_the_next_is_read(tmp_path):
    with time_limit(60):  # all of them in one run
        folders = []
        for number, config in enumerate(BAD_CONFIGS.values()):
            folders.append(tmp_path / f"{number:02d}")
            folders[-1].mkdir()
            if config is None:
                os.mkfifo(folders[-1] / "config.json")
            else:
                write(folders[-1] / "config.json", json.dumps(config) if isinstance(config, dict) else config)
        status, said = run(FIT, *folders, TINY, HF_HUB_OFFLINE="1")
    lines = said.split("\n")
    for name, folder in zip(BAD_CONFIGS, folders, strict=True):
        assert len([line for line in lines if line.startswith(f"{folder} ")]) == 1, name
    assert status == 0 and "\x1b" not in said and said.count("billion weights") == 1


# %% Terminals that are not UTF-8
def prepared(folder: Path) -> tuple:
    return PREPARE, [nine(folder, "é雪.xlsx", ["雪é.jpg", "读", GOOD]), folder / "out"], {}


def judged(folder: Path) -> tuple:
    return JUDGE, [write_answers(folder / "é雪", {**ROW, "image": ["é雪🚗.jpg"]}, ROW)], {}


def shown(folder: Path) -> tuple:
    (folder / "é雪.png").write_bytes(drawn("PNG", "L"))
    return SVD, [], {"DATA": folder / "é雪.png", "OUTPUT": folder / "out"}


def rated(folder: Path) -> tuple:
    write(folder / "é雪.csv", lines_of() + "é雪\n")
    return IMPLICIT, [], {"DATA": folder / "é雪.csv"}


def fitting(folder: Path) -> tuple:
    (folder / "é雪").mkdir()
    return FIT, [folder / "é雪"], {"HF_HUB_OFFLINE": "1"}


def exported(folder: Path) -> tuple:
    return EXPORT, [write_adapter(folder / "é雪" / "lora", {"r": 0}).parent], {}


@pytest.mark.parametrize("build", [prepared, judged, shown, rated, fitting, exported])
def test_any_terminal_gets_the_same_files_and_status(tmp_path, build):
    found = []
    for encoding in ("utf-8", "gbk", "cp1252", "ascii"):
        folder = tmp_path / encoding
        folder.mkdir()
        program, arguments, environment = build(folder)
        status, said = run(program, *arguments, encoding=encoding, **environment)
        files = {path.relative_to(folder) for path in folder.rglob("*")}
        found.append((status, files, len(said.split("\n"))))
    assert found == [found[0]] * 4 and found[0][0] == (build is exported)
