# %% [markdown]
"""
# An insurer's Excel sheet and photos, made into rows that train

Reads photos that a cell names by a path, that were pasted over a cell, or that WPS keeps inside one; all worksheets
that have the header; JSON as people type it. What cannot be read is named with its cell and left out. Whole styles
(camera, layout, workshop) are held out, so that the evaluation shows photos of kinds that were never trained on.

Run:    `uv run data/car_insurance/prepare.py my.xlsx [folder]`; the folder is `my`, beside the sheet, unless given.
        Without arguments the sheet that ships is prepared again, in place.
Data:   image (a path or a picture) | prompt | response | style (may be missing)
        pictures/001.jpg | 读取仪表盘照片，只输出JSON…… | {"里程数": 12345, "单位": "公里"} | twin_dials
Writes: FOLDER/metadata.jsonl and FOLDER/prepared/*.jpg, in the form that Hugging Face's datasets read:
        `load_dataset("imagefolder", data_files="my/metadata.jsonl", split="train")`
"""

# %% Imports
import hashlib
import json
import posixpath
import random
import re
import sys
import unicodedata
import warnings
import zipfile
import zlib
from bisect import bisect_left, bisect_right
from collections import Counter
from datetime import datetime
from functools import lru_cache
from io import BytesIO
from pathlib import Path, PureWindowsPath
from xml.etree import ElementTree

import numpy as np
from openpyxl.styles.numbers import BUILTIN_FORMATS, is_date_format
from openpyxl.utils.cell import coordinate_to_tuple, get_column_letter, range_boundaries
from openpyxl.utils.datetime import CALENDAR_MAC_1904, CALENDAR_WINDOWS_1900, from_excel
from PIL import Image, ImageOps

# %% Settings
COLUMNS = {  # titles; several columns may hold pictures: 图片1, 图片2
    "image": ("image", "images", "图片", "照片"),
    "prompt": ("prompt", "question", "问题", "提问"),
    "response": ("response", "answer", "答案", "回答"),
    "style": ("style", "风格"),  # may be missing: then every photo is a style of its own
}
HELD_OUT = 0.2  # share of the styles of each kind of photo
SEED = 3407
MAX_PIXELS = 602_112  # of a prepared photo, 768 tokens of 28 x 28 pixels; larger photos are scaled down
MAX_ASPECT = 200  # Qwen's processor refuses longer strips
MAX_TEXT = 10_000  # characters of a prompt or a response
MAX_IMAGES = 8  # in a row
HEADER_ROWS = 20  # the header is looked for in so many rows with text

MAX_PART = 32 << 20  # bytes of a worksheet, of its texts, of its list of pictures, unpacked
MAX_XML = 128 << 20  # bytes of all of these together
MAX_TAGS = 4_000_000  # in all of these together
MAX_CELLS = 300_000  # that hold something, in a worksheet
MAX_MERGED = 100_000  # merged areas
MAX_COLUMNS = 40  # with pictures
MAX_PASTED = 20_000  # pictures over the cells of a worksheet
MAX_PICTURE = 128 << 20  # bytes of a picture file
MAX_KEPT = 4 << 20  # bytes of a picture that is used as it is, whatever else it carries
MAX_SPARE = 1_000_000_000  # pixels of all photos beyond 500 a packed byte, which no camera's picture has
FORMATS = ("JPEG", "PNG", "BMP", "GIF", "TIFF", "WEBP", "JPEG2000", "AVIF")  # EPS would start another program

PIXEL = 9525  # of a screen, in Excel's unit of length (EMU)
POINT = 12700  # of print, 1/72 inch, in EMU
# invisible signs and those that XML and terminals do not take
CONTROL = re.compile("[\0-\x08\x0b-\x1f\x7f-\x9f\u200b\u200e\u200f\u202a-\u202e\ufeff\ufffe\uffff]")
SPECIAL = re.compile(r"<\|\w+\|>")  # would become a token of the chat template
STRING = r""""(?:[^"\\]|\\.)*"?|[“”]([^“”"]*)[“”"]?|['‘’]([^'‘’]*)['‘’]?"""  # in JSON's or in other quotes
TOKEN = re.compile(rf"""{STRING}|([^"“”'‘’]+)""", re.DOTALL)  # a string or what stands between
HALF_WIDTH = str.maketrans("｛｝［］【】：，、．－　０１２３４５６７８９", "{}[][]:,,.- 0123456789")
CHINESE_DATES = dict.fromkeys(map(str, [*range(27, 37), *range(50, 59)]), "yyyy")  # Excel's own in Chinese
LITERALS = {"None": "null", "True": "true", "False": "false"}  # of Python


# %% The parts of an .xlsx
def say(text: str) -> None:
    """Print a line in any terminal: what its encoding lacks becomes a question mark."""
    encoding = sys.stdout.encoding or "utf-8"
    print(text.encode(encoding, "replace").decode(encoding))


def open_workbook(path: Path) -> zipfile.ZipFile:
    """Open an .xlsx; ValueError says what the file is instead."""
    if not path.is_file():  # a folder, a pipe, a device, a dead link
        raise ValueError(f"{path} does not exist or is no regular file: name an .xlsx file")
    with path.open("rb") as file:
        start = file.read(1 << 20)
    if start[:4] == b"\xd0\xcf\x11\xe0":  # the container of .xls, and of anything encrypted
        locked = "EncryptedPackage".encode("utf-16-le") in start
        reason = "protected by a password: save it without one" if locked else "an .xls: save it as .xlsx"
        raise ValueError(f"{path} is {reason}")
    try:
        return zipfile.ZipFile(path)
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError) as error:
        raise ValueError(f"{path} is not a readable .xlsx ({error}): save it again in Excel or WPS") from None


def read_part(archive: zipfile.ZipFile, name: str, limit: int) -> bytes:
    """Return a file of the archive; ValueError if it is missing, damaged or larger than the limit."""
    try:
        info = archive.getinfo(name)
        if info.file_size > limit:
            raise ValueError(f"{name} has {info.file_size >> 20} MB unpacked, more than {limit >> 20} MB")
        if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):  # the others know no limit
            raise ValueError(f"{name} is packed in a way that Excel does not use")
        with archive.open(info) as file:
            return file.read(info.file_size)  # no more, whatever it holds
    except KeyError:
        raise ValueError(f"{name} is missing in the file") from None
    except (zipfile.BadZipFile, zlib.error, EOFError, OSError, RuntimeError) as error:
        raise ValueError(f"{name} is damaged ({error})") from None


class Refusal:
    """An XML parser's target that ends at a DOCTYPE, whose entities can make GBs of a few KB; no .xlsx has one."""

    def doctype(self, *_) -> None:
        """Called by the parser."""
        raise ValueError("it declares a DOCTYPE")


def xml_part(archive: zipfile.ZipFile, name: str) -> bytes:
    """Return a part that holds XML without a DOCTYPE; ParseError or ValueError if not, or if it is too much."""
    archive.read_so_far = getattr(archive, "read_so_far", np.zeros(2))
    if (archive.read_so_far <= [MAX_XML, MAX_TAGS]).all():
        raw = read_part(archive, name, MAX_PART)
        archive.read_so_far += [len(raw), raw.count(b"<")]
    if (archive.read_so_far > [MAX_XML, MAX_TAGS]).any():
        raise ValueError(f"{name}: the file holds too much: copy the table into a new workbook")
    ElementTree.XMLParser(target=Refusal()).feed(raw)
    return raw


def read_xml(archive: zipfile.ZipFile, name: str) -> ElementTree.Element:
    """Return the root element of a part; ValueError if it is no XML."""
    try:
        return ElementTree.fromstring(xml_part(archive, name))
    except (ElementTree.ParseError, LookupError) as error:  # LookupError: an unknown encoding
        raise ValueError(f"{name} is damaged ({error})") from None


def linked(element: ElementTree.Element, name: str) -> str | None:
    """Return an attribute of the relationships' namespace (id, embed), of which Excel has two."""
    return next((value for key, value in element.items() if key.endswith("}" + name)), None)


def relations(archive: zipfile.ZipFile, part: str) -> dict[str, str | None]:
    """Return the parts that a part points to by id and by kind (drawing); None lies outside the file."""
    folder, _, name = part.rpartition("/")
    listing, found = f"{folder}/_rels/{name}.rels".lstrip("/"), {}
    if listing in archive.NameToInfo:
        for item in read_xml(archive, listing):
            target = CONTROL.sub("", item.get("Target", ""))  # it is printed where it is missing
            target = posixpath.normpath(posixpath.join("/", folder, target)).lstrip("/")
            target = None if item.get("TargetMode") == "External" else target
            found[item.get("Id")] = target
            found.setdefault(item.get("Type", "").rpartition("/")[2], target)
    return found


# %% Cells
def tidy(text: str) -> str:
    """Return a cell's text without Excel's escapes (_x000D_), control characters and halves of an emoji."""
    text = re.sub("_x([0-9A-Fa-f]{4})_", lambda code: chr(int(code[1], 16)), text)
    text = text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
    return CONTROL.sub("", text.replace("\r\n", "\n").replace("\r", "\n")).strip()


def rich_text(item: ElementTree.Element) -> str:
    """Return the text of a string item in one or several fonts, without reading aids."""
    runs = [item, *(part for part in item if part.tag.rpartition("}")[2] == "r")]
    found = [part.text for run in runs for part in run if part.text and part.tag.rpartition("}")[2] == "t"]
    return tidy("".join(found)) if found else ""


def dates_of(root: ElementTree.Element) -> set[str]:
    """Return the numbers of the cell styles that show a number as a date."""
    codes = {
        item.get("numFmtId"): item.get("formatCode", "") for item in root.iterfind("{*}numFmts/{*}numFmt")
    }
    codes = {str(number): code for number, code in BUILTIN_FORMATS.items()} | CHINESE_DATES | codes
    shown = [codes.get(style.get("numFmtId"), "") for style in root.iterfind("{*}cellXfs/{*}xf")]
    return {str(number) for number, code in enumerate(shown) if is_date_format(code[:255])}


def date_text(value: str, epoch: datetime) -> str:
    """Return a date that Excel keeps as a number, as 2024-01-31; a number that is none stays as it is."""
    try:
        return str(from_excel(float(value), epoch)).removesuffix(" 00:00:00")
    except (ValueError, OverflowError):
        return tidy(value)


def cell_text(cell: ElementTree.Element, book: dict) -> tuple[str, str]:
    """Return a cell as (kind, text), where the kind is text, formula or error."""
    parts, kind = {part.tag.rpartition("}")[2]: part for part in cell}, cell.get("t")
    value = (parts["v"].text or "") if "v" in parts else ""
    if "f" in parts:
        return "formula", tidy("=" + (parts["f"].text or value))
    if kind == "s":
        texts = book["texts"]
        return ("text", texts[value]) if value in texts else ("error", "a text that the file lacks")
    if "is" in parts:
        return "text", rich_text(parts["is"])
    if kind == "b":
        return "text", {"1": "TRUE", "0": "FALSE"}.get(value, tidy(value))
    if kind in (None, "n") and value and cell.get("s") in book["dates"]:
        return "text", date_text(value, book["epoch"])
    return "error" if kind == "e" else "text", tidy(value)


def read_line(row: ElementTree.Element, book: dict) -> dict[int, tuple[str, str]]:
    """Return column -> (kind, text) of the cells of a row that hold something; columns count from 1."""
    column, line = 0, {}
    for cell in row:
        column = coordinate_to_tuple(cell.get("r"))[1] if cell.get("r") else column + 1
        content = cell_text(cell, book)
        if content[1]:
            line[column] = content
    return line


def read_sheet(archive: zipfile.ZipFile, part: str, book: dict) -> dict:
    """Return a worksheet's cells {row: {column: (kind, text)}}, hidden rows, merged areas and the edges of its
    rows and columns in EMU, where a hidden row has no height; ValueError if it cannot be read."""
    cells, hidden, merged, number, count, usual, kinds = {}, set(), [], 0, 0, 15 * POINT, Counter()
    heights, widths = np.full(1 << 20, 15.0 * POINT), np.full(1 << 14, 64.0 * PIXEL)
    try:
        for _, item in ElementTree.iterparse(BytesIO(xml_part(archive, part))):
            kind = item.tag.rpartition("}")[2]
            kinds[kind] += 1
            if kind == "sheetFormatPr" and kinds[kind] == 1:
                usual = float(item.get("defaultRowHeight", 15)) * POINT
                heights[:] = usual * (item.get("zeroHeight") not in ("1", "true"))
                widths[:] = round(float(item.get("defaultColWidth", 9.14)) * 7) * PIXEL
            elif kind == "col" and kinds[kind] <= len(
                widths
            ):  # in digits of the usual font, of 7 pixels each
                width = round((float(item.get("width", 0)) or 9.14) * 7) * PIXEL
                widths[int(item.get("min")) - 1 : int(item.get("max"))] = width
            elif kind == "row":
                number = int(item.get("r", number + 1))
                heights[number - 1] = float(item.get("ht")) * POINT if item.get("ht") else usual
                if item.get("hidden") in ("1", "true"):
                    heights[number - 1] = 0
                    hidden.add(number)
                line = read_line(item, book)
                item.clear()
                count += len(line)
                if count > MAX_CELLS:
                    raise ValueError(f"more than {MAX_CELLS:,} cells: copy the table into a new workbook")
                if line:
                    cells.setdefault(number, {}).update(line)
            elif kind == "mergeCell":
                if len(merged) == MAX_MERGED:
                    raise ValueError(f"more than {MAX_MERGED:,} merged areas: split them")
                merged.append((item.get("ref"), *range_boundaries(item.get("ref"))))
    except (ElementTree.ParseError, LookupError, TypeError, ValueError, OverflowError) as error:
        raise ValueError(f"{part} cannot be read ({error})") from None
    rows, columns = (np.append(0, np.nan_to_num(sizes).clip(0)).cumsum() for sizes in (heights, widths))
    return {"cells": cells, "hidden": hidden, "merged": merged, "rows": rows, "columns": columns}


def find_header(cells: dict) -> tuple[int, dict[str, list[int]]]:
    """Return the row of the header and the columns of image, prompt, response, style; ValueError if none."""
    lacking = {name: titles for name, titles in COLUMNS.items() if name != "style"}
    for number in sorted(cells)[:HEADER_ROWS]:
        place = {}
        for column, (_, title) in sorted(cells[number].items()):
            title = re.sub(r"\(.*|[\s*:]", "", unicodedata.normalize("NFKC", title).lower(), flags=re.DOTALL)
            for name, titles in COLUMNS.items():
                if title in titles or (name == "image" and title.rstrip("0123456789") in titles):
                    place.setdefault(name, []).append(column)
        missing = {name: COLUMNS[name] for name in ("image", "prompt", "response") if name not in place}
        if not missing:
            if len(place["image"]) > MAX_COLUMNS:
                raise ValueError(f"row {number}: more than {MAX_COLUMNS} columns for pictures")
            if doubled := [name for name in place if name != "image" and len(place[name]) > 1]:
                raise ValueError(f"row {number}: two columns for {' and '.join(doubled)}: rename one")
            return number, place
        lacking = min(lacking, missing, key=len)
    titles = " and no column ".join("/".join(titles) for titles in lacking.values())
    raise ValueError(f"no column {titles} in the first {HEADER_ROWS} rows")


def merged_rows(merged: list, cells: dict, columns: list[int], header: int) -> dict[int, str]:
    """Return row -> merged area, of the rows below the header where merged cells touch columns that are read."""
    numbers, touched = sorted(number for number in cells if number > header), {}
    for area, left, top, right, bottom in merged:
        if any(left <= column <= right for column in columns):
            first, last = bisect_left(numbers, top), bisect_right(numbers, bottom)
            touched.update(dict.fromkeys(numbers[first:last], area))
            del numbers[first:last]  # each row once, however many areas there are
    return touched


# %% Pictures over cells
def main_row(start: float, end: float, edges: np.ndarray) -> tuple[int | None, int | None, bool]:
    """Return the row, from 1, that a picture from start to end (EMU) covers most, None for a tie; the first row
    that it covers whole, from which one larger than its rows hangs down; and whether it lies clearly in the row."""
    top = int(np.searchsorted(edges, start, "right"))
    bounds = edges[top - 1 : top + 1000]
    covered, sizes = (np.minimum(bounds[1:], end) - np.maximum(bounds[:-1], start)).clip(0), np.diff(bounds)
    if not covered.any():
        return top, None, True
    best, whole = int(covered.argmax()), np.flatnonzero((covered >= 0.75 * sizes) & (sizes > 0))
    first = top + int(whole[0]) if len(whole) else None
    if len(whole) > 1 and covered[best] <= 0.6 * (end - start):
        return first, first, True
    if np.sum((covered > 0) & (covered >= covered[best] - 2 * PIXEL)) > 1:
        return None, first, False
    return top + best, first, bool(covered[best] >= 0.75 * min(sizes[best], end - start))


def main_column(left: float, right: float, edges: np.ndarray, columns: list[int]) -> int | None:
    """Return the picture column that a picture covers most, None where it covers less than a quarter of one."""
    shares = {column: min(edges[column], right) - max(edges[column - 1], left) for column in columns}
    best = max(columns, key=shares.get)
    return best if 4 * shares[best] >= min(right - left, edges[best] - edges[best - 1]) else None


def point(mark: ElementTree.Element, sheet: dict) -> tuple[float, float]:
    """Return x and y in EMU of a picture's corner, which is given on the page or in a cell, never beyond it."""
    if "x" in mark.keys():
        return int(mark.get("x")), int(mark.get("y"))
    column, row = int(mark.findtext("{*}col")), int(mark.findtext("{*}row"))
    x = sheet["columns"][column] + int(mark.findtext("{*}colOff"))
    y = sheet["rows"][row] + int(mark.findtext("{*}rowOff"))
    return min(x, sheet["columns"][column + 1]), min(y, sheet["rows"][row + 1])


def pasted_picture(anchor: ElementTree.Element, sheet: dict, header: int, columns: list[int]) -> dict:
    """Return row, picture column and corner of a picture over the table, and whether it lies clearly in the row;
    ValueError says why it belongs to none."""
    try:
        begin, end = anchor[0], anchor[1]
        x, y = point(begin, sheet)
        if "cx" in end.keys():  # its size instead of the other corner
            right, bottom = x + int(end.get("cx")), y + int(end.get("cy"))
        else:
            right, bottom = point(end, sheet)
        row, first, clear = main_row(y, bottom, sheet["rows"])
        if int(begin.findtext("{*}row", "-1")) + 1 in sheet["hidden"]:  # its row was hidden afterwards
            row, clear = int(begin.findtext("{*}row")) + 1, True
        column = main_column(x, right, sheet["columns"], columns)
        cell = get_column_letter(int(np.searchsorted(sheet["columns"], x, "right")))
        cell = f"cell {cell}{np.searchsorted(sheet['rows'], y, 'right')}"
    except (LookupError, TypeError, ValueError) as error:
        raise ValueError(f"a picture's place cannot be read ({error})") from None
    if row is None:
        raise ValueError(f"{cell}: a picture covers two rows alike: move it into its row")
    if column is None or row <= header or row not in sheet["cells"]:
        raise ValueError(f"{cell}: a picture lies outside the picture column or the rows")
    if anchor.find("{*}pic") is None:
        raise ValueError(f"{cell}: pictures in a group or a shape: ungroup them")
    first = first if first in sheet["cells"] and first > header else row
    return {"row": row, "column": column, "first": first, "x": x, "y": y, "clear": clear}


def pasted_pictures(archive: zipfile.ZipFile, part: str, sheet: dict, place: tuple) -> tuple[dict, list[str]]:
    """Return (row, column) -> pictures over that cell, from left to right, and why others are not used."""
    over, lost = {}, []
    try:
        drawing = relations(archive, part).get("drawing")
        found = relations(archive, drawing) if drawing else {}
        anchors = read_xml(archive, drawing) if drawing else []
    except ValueError as error:
        return {}, [f"pictures over the cells: {error}"]
    if len(anchors) > MAX_PASTED:
        raise ValueError(f"more than {MAX_PASTED:,} pictures over its cells: split it")
    for anchor in anchors:
        blip = anchor.find(".//{*}blip")
        if blip is None:  # a chart, a shape
            continue
        try:
            picture = pasted_picture(anchor, sheet, *place)
        except ValueError as error:
            lost.append(f"{error}; not used")
            continue
        picture["source"] = found.get(linked(blip, "embed"))
        same = over.setdefault((picture["row"], picture["column"]), [])
        if len(same) <= MAX_IMAGES and picture not in same:  # or pasted twice at the same place
            same.append(picture)
    for same in list(over.values()):
        for picture in same[:]:  # larger than its rows, and the one where it begins has no picture
            other = picture["first"], picture["column"]
            if len(same) > 1 and other not in over:
                same.remove(picture)
                over[other] = [picture]
    return {cell: sorted(same, key=lambda one: (one["x"], one["y"])) for cell, same in over.items()}, lost


def wps_pictures(archive: zipfile.ZipFile) -> dict[str, str | None]:
    """Return ID -> part of the pictures that WPS keeps inside cells, whose formula is =DISPIMG("ID", 1)."""
    name, pictures = "xl/cellimages.xml", {}
    if name not in archive.NameToInfo:
        return pictures
    try:
        found, listed = relations(archive, name), read_xml(archive, name)
    except ValueError as error:
        say(f"pictures inside cells: {error}")
        return pictures
    for picture in listed:
        blip, named = picture.find(".//{*}blip"), picture.find(".//{*}cNvPr")
        if named is not None:
            pictures[named.get("name")] = None if blip is None else found.get(linked(blip, "embed"))
    return pictures


# %% Photos
def picture_file(folder: Path, name: str) -> Path:
    """Return the file that a cell names; ValueError if it is none, or lies outside the sheet's folder."""
    short = name[:80]
    if "://" in name:
        raise ValueError(f"{short} is a URL, and nothing is downloaded: save the picture beside the sheet")
    if name[0] in "/\\~" or PureWindowsPath(name).drive:
        raise ValueError(f"{short} is an absolute path: put the picture beside the sheet")
    try:
        path = (folder / name.replace("\\", "/")).resolve()
        if not path.is_relative_to(folder.resolve()):
            raise ValueError(f"{short} leaves the sheet's folder: put the picture beside the sheet")
        if not path.is_file() or path.stat().st_size > MAX_PICTURE:
            raise ValueError(f"{short} in {folder} is no file of at most {MAX_PICTURE >> 20} MB")
    except (OSError, RuntimeError) as error:  # too long a name, links in a circle
        raise ValueError(f"{short} in {folder} cannot be read ({error})") from None
    return path


def open_photo(raw: bytes) -> Image.Image:
    """Return a picture that is not decoded yet; ValueError if it is none, or too large."""
    if not raw:
        raise ValueError("the picture is empty (0 bytes)")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            return Image.open(BytesIO(raw), formats=FORMATS)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise ValueError("the picture has more than 89 million pixels: save it smaller") from None
    except Exception as error:  # Pillow's readers let many kinds through
        raise ValueError(f"not a readable picture ({error}): save it again as JPEG") from None


def to_rgb(image: Image.Image) -> Image.Image:
    """Return a picture upright and in RGB: 16 bits scaled to its own range, transparent pixels white."""
    try:
        side = int(MAX_PIXELS**0.5)
        image.draft(None, (side, side))  # a large JPEG is decoded at a half or a quarter of its size
        image.load()
        image = ImageOps.exif_transpose(image)
        if image.mode[0] in "IF":
            if (factor := int((image.width * image.height / (4 * MAX_PIXELS)) ** 0.5)) > 1:
                image = image.convert("F").reduce(factor)  # what is scaled down anyway
            values = np.asarray(image, "float64")
            if not np.isfinite(values).all():
                raise ValueError("it holds values that are no numbers")
            image = Image.fromarray((255 * (values - values.min()) / (np.ptp(values) or 1)).astype("uint8"))
        if image.has_transparency_data:
            image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image.convert("RGBA"))
        return image.convert("RGB")
    except Exception as error:  # of Pillow's decoders
        raise ValueError(f"not a readable picture ({error}): save it again as JPEG") from None


def prepare_photo(image: Image.Image, raw: bytes) -> tuple[bytes, list[str]]:
    """Return an opened picture as an upright RGB JPEG or PNG of at most MAX_PIXELS, and what was done to it."""
    photo = to_rgb(image)
    fine = image.format in ("JPEG", "PNG") and image.mode == "RGB" and not image.has_transparency_data
    fine = fine and image.getexif().get(0x0112, 1) == 1
    done = [] if image.mode == "RGB" else [f"converted from {image.mode} to RGB"]
    if getattr(image, "is_animated", False) and image.format != "MPO":  # MPO: a phone's photo and its preview
        done.append("only the first of its pages is used")
    scale = (MAX_PIXELS / (photo.width * photo.height)) ** 0.5
    if scale < 1:
        size = max(1, round(photo.width * scale)), max(1, round(photo.height * scale))
        photo = photo.resize(size, Image.Resampling.LANCZOS)
    if max(photo.size) > MAX_ASPECT * min(photo.size):
        raise ValueError(f"a strip of {photo.width} x {photo.height} pixels, over {MAX_ASPECT} : 1: crop it")
    if fine and scale >= 1 and len(raw) <= MAX_KEPT:
        return raw, done
    file = BytesIO()
    photo.save(file, "JPEG", quality=95)
    return file.getvalue(), done


def read_photo(source: str | Path, archive: zipfile.ZipFile, known: dict) -> tuple:
    """Return a prepared photo, its file if that is used as it is, and what was done to it; pixels are counted."""
    if isinstance(source, str):
        raw, packed = read_part(archive, source, MAX_PICTURE), archive.getinfo(source).compress_size
    else:
        raw, packed = source.read_bytes(), source.stat().st_size
    image = open_photo(raw)
    known["spare"] = known.get("spare", 0) + max(0, image.width * image.height - 500 * packed)
    if known["spare"] > MAX_SPARE:
        raise ValueError("far more pixels than bytes, as in a decompression bomb: save it again as JPEG")
    photo, done = prepare_photo(image, raw)
    return photo, source if photo is raw and isinstance(source, Path) else None, done


@lru_cache
def digest(photo: bytes) -> bytes:
    """Return the SHA-256 of a photo, which many rows may show."""
    return hashlib.sha256(photo).digest()


def load_photo(source: str | Path | None, archive: zipfile.ZipFile, known: dict) -> tuple:
    """Return read_photo() of a part of the .xlsx or a file; `known` keeps what was read for another row."""
    if source is None:
        raise ValueError("the picture is linked or lost, not in the file: insert it again")
    if source not in known:
        try:
            known[source] = read_photo(source, archive, known)
        except (ValueError, OSError) as error:  # OSError: a file that may not be read
            known[source] = ValueError(str(error))
    if isinstance(known[source], ValueError):
        raise known[source]
    return known[source]


# %% Rows
def mended(text: str) -> str:
    """Return typed JSON with its signs mended: Chinese and single quotes, full width, a last comma, True, None."""

    def mend(found: re.Match) -> str:
        curly, single, between = found.groups()
        if between is None:
            typed = curly if single is None else single
            return found[0] if typed is None else json.dumps(typed)
        between = re.sub(r",\s*([}\]])", r"\1", between.translate(HALF_WIDTH))
        return re.sub("[A-Za-z]+", lambda word: LITERALS.get(word[0], word[0]), between)

    return TOKEN.sub(mend, text)


def once(pairs: list[tuple]) -> dict:
    """Return the object of key-value pairs; ValueError for a key that stands twice."""
    if len(dict(pairs)) < len(pairs):
        raise ValueError("a field stands twice")
    return dict(pairs)


def typed_object(text: str) -> dict:
    """Return the JSON object that was typed into a cell, mended where it must be; ValueError if it is none."""
    reason = "it is empty"
    for attempt in (text, mended(text)):
        try:
            piece = attempt[attempt.find("{") : attempt.rfind("}") + 1]  # without a code fence, a sentence
            found = json.loads(piece, strict=False, object_pairs_hook=once)
            json.dumps(found, ensure_ascii=False, allow_nan=False).encode()  # NaN and half an emoji fail
            if found:
                return found
        except (ValueError, RecursionError) as error:
            reason = str(error)
    raise ValueError(f'not a JSON object such as {{"里程数": 12345, "单位": "公里"}} ({reason})')


def checked(content: tuple[str, str], name: str) -> str:
    """Return a cell's text; ValueError for a formula, an error, and text that is missing, too long or a sign."""
    kind, text = content
    if kind != "text":
        raise ValueError(f"{text[:80]} is a formula or an error: paste its value")
    if not text and name != "style":
        raise ValueError(f"no {name}")
    if len(text) > MAX_TEXT:
        raise ValueError(f"{len(text):,} characters, more than {MAX_TEXT:,}")
    if sign := SPECIAL.search(text):
        raise ValueError(f"{sign[0]} is a sign of the chat template: take it out")
    return text


def sources_of(content: tuple[str, str], pasted: list[dict], wps: dict, folder: Path) -> list:
    """Return the parts or files of a cell's pictures; those over it count before what it names."""
    kind, text = content
    if len(pasted) > 1 and not all(picture["clear"] for picture in pasted):
        raise ValueError(f"{len(pasted)} pictures, one of which reaches into another row: move it")
    if pasted:
        return [picture["source"] for picture in pasted]
    if found := re.search(r'DISPIMG\("([^"]+)"', text):
        return [wps.get(found[1])]
    if kind != "text":
        raise ValueError(f"{text[:80]} is a formula or an error: paste the picture over the cell")
    names = [name.strip() for name in re.split("[\n;；]", text) if name.strip()]
    if len(names) > MAX_IMAGES:
        raise ValueError(f"more than {MAX_IMAGES} pictures: split the row")
    return [picture_file(folder, name) for name in names]


def read_row(number: int, line: dict, place: dict[str, list[int]], table: dict) -> dict:
    """Return images, files, prompt, answer, style and what was done of a row; ValueError names the cell."""
    photos, nothing, column = [], ("text", ""), place["image"][0]
    try:
        if number in table["merged"]:
            raise ValueError(f"merged cells {table['merged'][number]}: split them")
        for column in place["image"]:
            pasted = table["over"].get((number, column), [])
            for source in sources_of(line.get(column, nothing), pasted, table["wps"], table["folder"]):
                photos.append(load_photo(source, table["archive"], table["known"]))
                if len(photos) > MAX_IMAGES:
                    raise ValueError(f"more than {MAX_IMAGES} pictures: split the row")
        if not photos:
            raise ValueError("no picture")
        (column,) = place["prompt"]
        prompt = checked(line.get(column, nothing), "prompt")
        (column,) = place["response"]
        answer = typed_object(checked(line.get(column, nothing), "response"))
        (column,) = place.get("style", [0])
        style = checked(line.get(column, nothing), "style")
    except ValueError as error:
        raise ValueError(f"cell {get_column_letter(column)}{number}: {error}") from None
    images, files, done = map(list, zip(*photos))
    row = {"images": images, "files": files, "prompt": prompt, "answer": answer, "number": number}
    row["style"] = style or hashlib.sha256(b"".join(map(digest, images))).hexdigest()
    return row | {"done": [note for notes in done for note in notes]}


def sheet_rows(where: str, part: str, book: dict, table: dict) -> list[dict]:
    """Return the rows of a worksheet and say what is left out; ValueError if it has no header."""
    sheet, rows = read_sheet(table["archive"], part, book), []
    header, place = find_header(sheet["cells"])
    columns = [column for columns in place.values() for column in columns]
    table["merged"] = merged_rows(sheet["merged"], sheet["cells"], columns, header)
    table["over"], lost = pasted_pictures(table["archive"], part, sheet, (header, place["image"]))
    for reason in lost:
        say(f"{where}, {reason}")
    for number, line in sorted(sheet["cells"].items()):
        count = sum(len(table["over"].get((number, column), [])) for column in place["image"])
        if number <= header or not (count or line.keys() & set(columns)):
            continue
        try:
            row = read_row(number, line, place, table)
        except ValueError as error:
            say(f"{where}, row {number}, {error}; left out")
            continue
        notes = row.pop("done")
        notes += ["hidden, but read: delete it if it is not meant"] if number in sheet["hidden"] else []
        notes += [f"{count} pictures over the cell, read from left to right"] if count > 1 else []
        for note in notes:
            say(f"{where}, row {number}: {note}")
        rows.append(row)
    return rows


def load_rows(xlsx: str | Path) -> list[dict]:
    """Return rows of images (bytes), prompt, answer (dict), style, sheet and number; print what is left out.

    `files` names those images that are files used as they are, else None. ValueError: nothing can be read.
    """
    path, rows, unread = Path(xlsx), [], []
    with open_workbook(path) as archive:
        try:
            part = relations(archive, "").get("officeDocument") or "xl/workbook.xml"
            root, found = read_xml(archive, part), relations(archive, part)
            sheets = root.findall("{*}sheets/{*}sheet")
            items = read_xml(archive, found["sharedStrings"]) if found.get("sharedStrings") else []
            book = {"texts": {str(number): rich_text(item) for number, item in enumerate(items)}}
            book["dates"] = dates_of(read_xml(archive, found["styles"])) if found.get("styles") else set()
            settings = root.find("{*}workbookPr")
            mac = settings is not None and settings.get("date1904") in ("1", "true")
            book["epoch"] = CALENDAR_MAC_1904 if mac else CALENDAR_WINDOWS_1900
            wps = wps_pictures(archive)
        except ValueError as error:
            raise ValueError(f"{path} is not a readable .xlsx ({error}): save it again in Excel") from None
        table = {"archive": archive, "folder": path.parent, "wps": wps, "known": {}}
        for sheet in sheets:
            title, part = tidy(sheet.get("name", "")), found.get(linked(sheet, "id")) or "a worksheet"
            where = f"{path.name}, {title}" if len(sheets) > 1 else path.name
            try:
                rows += [{**row, "sheet": title} for row in sheet_rows(where, part, book, table)]
                if sheet.get("state", "visible") != "visible":
                    say(f"{where}: a hidden worksheet, but read: delete it if it is not meant")
            except ValueError as error:
                unread.append(f"{where}, {error}")
    if len(unread) == len(sheets):
        raise ValueError("; ".join(unread[:10]) or f"{path} has no worksheet")
    for reason in unread:
        say(f"{reason}; worksheet not read")
    say(f"{path}: {len(rows)} rows")
    return rows


# %% Split and save
def hold_out_styles(rows: list[dict], share: float, seed: int) -> tuple[list[dict], list[dict]]:
    """Return (training rows, held-out rows): whole styles are held out of each kind of photo.

    A row of several photos has a style a+b; if only a part of it is held out, the row is in neither, as is a
    training row that shows a photo of a held-out row.
    """
    kinds = {}
    for row in sorted(rows, key=lambda row: row["style"]):
        if "+" not in row["style"]:
            kinds.setdefault(tuple(sorted(row["answer"])), {})[row["style"]] = None
    held = set()
    for styles in kinds.values():
        names = random.Random(seed).sample(list(styles), len(styles))
        held.update(names[: max(1, round(share * len(names)))] if len(names) > 1 else [])
    parts = [(row, {style in held for style in row["style"].split("+")}) for row in rows]
    held_out = [row for row, found in parts if found == {True}]
    seen = {image for row in held_out for image in row["images"]}
    train = [row for row, found in parts if found == {False} and not seen & set(row["images"])]
    return train, held_out


def save_rows(rows: list[dict], folder: Path) -> None:
    """Write metadata.jsonl, and into prepared/ the photos that are no files of the folder already."""
    (folder / "prepared").mkdir(parents=True, exist_ok=True)
    names, lines, home = {}, [], folder.resolve()
    for row in rows:
        for image, file in zip(row["images"], row["files"]):
            if file and file.is_relative_to(home):
                names[image] = file.relative_to(home).as_posix()
            elif image not in names:
                kind = "png" if image[:4] == b"\x89PNG" else "jpg"
                names[image] = f"prepared/{len(names) + 1:04d}.{kind}"
                (folder / names[image]).write_bytes(image)
        saved = {"file_names": [names[image] for image in row["images"]], "prompt": row["prompt"]}
        saved["answer"] = json.dumps(row["answer"], ensure_ascii=False)
        # datasets would turn a column of dates into datetime
        saved["style"] = re.sub(r"^(\d{4})-(\d\d)-(\d\d)", r"\1/\2/\3", row["style"])
        saved |= {name: row[name] for name in ("sheet", "number", "split")}
        lines.append(json.dumps(saved, ensure_ascii=False) + "\n")
    (folder / "metadata.jsonl").write_text("".join(lines), encoding="utf-8", newline="\n")


# %% Run
room = Path(__file__).parent
sheet = Path(sys.argv[1]) if len(sys.argv) > 1 else room / "qwen-vl-train.xlsx"
folder = sheet.parent / sheet.stem if len(sys.argv) > 1 else room
folder = Path(sys.argv[2]) if len(sys.argv) > 2 else folder
try:
    rows = load_rows(sheet)
    train, held_out = hold_out_styles(rows, HELD_OUT, SEED)
    if not train or not held_out:
        raise ValueError(f"{sheet}: too few rows or styles to train on some and hold out others")
    splits = {id(row): "train" for row in train} | {id(row): "held_out" for row in held_out}
    save_rows([{**row, "split": splits[id(row)]} for row in rows if id(row) in splits], folder)
except (ValueError, OSError) as error:
    raise SystemExit(str(error)) from None
say(f"{folder}/metadata.jsonl: {len(train)} rows to train on, {len(held_out)} held out in other styles,")
say(f"{len(rows) - len(train) - len(held_out)} in neither: they show styles of both")
