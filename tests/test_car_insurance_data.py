"""What holds for every picture of the insurer's sheet that ships, and for the facts that build.py invents."""

import hashlib
import json
import random
import re
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT
from openpyxl import load_workbook

ROOM = ROOT / "data" / "car_insurance"
SHEET = ROOM / "qwen-vl-train.xlsx"
UNREADABLE = "无法辨认"
HEAD = "[京津沪渝冀豫云辽黑湘皖鲁新苏浙赣鄂桂甘晋蒙陕吉闽贵粤青藏川宁琼][A-HJ-NP-Z]"
PLATES = {  # GA 36: five characters with at most two letters; six for new energy, with D or F first or last
    "蓝": rf"{HEAD}(?!(.*[A-Z]){{3}})[A-HJ-NP-Z0-9]{{5}}",
    "黄": rf"{HEAD}(?!(.*[A-Z]){{3}})[A-HJ-NP-Z0-9]{{5}}",
    "绿": rf"{HEAD}[DF][A-HJ-NP-Z0-9]\d{{4}}",
    "黄绿": rf"{HEAD}\d{{5}}[DF]",
}
YEARS = {2001: "1", 2009: "9", 2010: "A", 2017: "H", 2018: "J", 2022: "N", 2023: "P", 2024: "R", 2030: "Y"}
VALUES = dict(zip("ABCDEFGHJKLMNPRSTUVWXYZ", [*range(1, 9), *range(1, 6), 7, 9, *range(2, 10)]))
WEIGHTS = [8, 7, 6, 5, 4, 3, 2, 10, 0, 9, 8, 7, 6, 5, 4, 3, 2]
IMPORTED = {"one_dial", "segment_display", "red_sport"}  # styles that come with a speedometer in mph
PARTS = {"前保险杠", "后保险杠", "引擎盖", "左前门", "右前门", "左前翼子板"}


@pytest.fixture(scope="module")
def build(functions):
    return functions("data/car_insurance/build.py")


@pytest.fixture(scope="module")
def rows():
    """The rows of metadata.jsonl with their answers as objects."""
    lines = (ROOM / "metadata.jsonl").read_text(encoding="utf-8").splitlines()
    return [line | {"answer": json.loads(line["answer"])} for line in map(json.loads, lines)]


@pytest.fixture(scope="module")
def sheet():
    """Row number -> (prompt, answer, style) of all rows of the sheet."""
    cells = load_workbook(SHEET).worksheets[0].iter_rows(min_row=2, min_col=2, max_col=4, values_only=True)
    return {i: (prompt, json.loads(answer), style) for i, (prompt, answer, style) in enumerate(cells, 2)}


@pytest.fixture(scope="module")
def answers(sheet):
    return [answer for _, answer, _ in sheet.values()]


def valid(vin: str) -> bool:
    """Return whether a VIN has the form of GB 16735 and its check digit."""
    if not re.fullmatch(r"[A-HJ-NPR-Z0-9]{13}\d{4}", vin):
        return False
    total = sum(w * (int(c) if c.isdigit() else VALUES[c]) for c, w in zip(vin, WEIGHTS))
    return vin[8] == "0123456789X"[total % 11]


# %% The set
def test_data_is_what_it_says(sheet):
    kinds = {}
    for _, answer, style in sheet.values():
        kinds.setdefault(frozenset(answer), set()).add(style)
    assert len(sheet) == 296 and len(kinds) == 5 and sum(len(styles) for styles in kinds.values()) >= 20
    assert sum(path.stat().st_size for path in ROOM.rglob("*") if path.is_file()) < 9 * 2**20
    table = load_workbook(SHEET).worksheets[0]
    pasted, paths = len(table._images), [value.value for value in table["A"][1:] if value.value]
    assert pasted >= 20 and len(paths) >= 150 and any("\n" in path for path in paths)
    named = {name for path in paths for name in path.split("\n")}
    assert named == {f"pictures/{path.name}" for path in (ROOM / "pictures").iterdir()}


def test_metadata_says_what_the_sheet_says(rows, sheet):
    for row in rows:
        assert (row["prompt"], row["answer"], row["style"]) == sheet[row["number"]]
    assert len({row["number"] for row in rows}) == len(rows) >= 285


def test_no_picture_and_no_style_is_on_both_sides(rows):
    pictures, styles = {"train": set(), "held_out": set()}, {"train": set(), "held_out": set()}
    seen = Counter()
    for row in rows:
        styles[row["split"]].update(row["style"].split("+"))
        found = {hashlib.sha256((ROOM / name).read_bytes()).hexdigest() for name in row["file_names"]}
        pictures[row["split"]] |= found
        seen.update(found)
    assert not styles["train"] & styles["held_out"] and not pictures["train"] & pictures["held_out"]
    assert set(seen.values()) == {1}
    assert {"blue_screen", "red_sport", "plate_boot", "vin_riveted", "paint_blue"} == styles["held_out"]


# %% Facts
def test_check_digits():
    assert valid("11111111111111111") and valid("1M8GDM9AXKP042788") and not valid("1M8GDM9A1KP042788")


def test_vins_have_the_check_digit_and_the_code_of_their_year(build, answers):
    for year, code in YEARS.items():
        for seed in range(50):
            vin = build.vin_number(random.Random(seed), year)
            assert valid(vin) and vin[0] == "L" and vin[9] == code
    vins = [answer["VIN"] for answer in answers if answer.get("VIN", UNREADABLE) != UNREADABLE]
    assert len(set(vins)) == len(vins) >= 30
    assert [vin for vin in vins if not valid(vin) or vin[9] not in "56789ABCDEFGHJKLMNPR"] == []


def test_plates_have_the_form_of_their_colour(build, answers):
    for colour, form in PLATES.items():
        for seed in range(200):
            number = build.plate_number(random.Random(seed), colour)
            assert re.fullmatch(form, number), (colour, number)
    plates = [(answer["车牌颜色"], answer["车牌号"]) for answer in answers if "车牌号" in answer]
    colours = Counter(colour for colour, _ in plates)
    assert len(plates) == 60 and colours.keys() == PLATES.keys() and min(colours.values()) >= 5
    wrong = [pair for pair in plates if pair[1] != UNREADABLE and not re.fullmatch(PLATES[pair[0]], pair[1])]
    assert wrong == []


def test_miles_stand_on_imported_cars_only(sheet):
    units = {}
    for _, answer, style in sheet.values():
        if "单位" in answer:
            units.setdefault(style.split("+")[0], Counter())[answer["单位"]] += 1
    assert {style for style, count in units.items() if count["英里"]} == IMPORTED
    assert all(units[style]["公里"] for style in IMPORTED), "the unit has to be read, not told by the style"


def test_odometers_and_lights_vary(answers):
    answers = [answer for answer in answers if "里程数" in answer]
    numbers = [answer["里程数"] for answer in answers if answer["里程数"] != UNREADABLE]
    assert len(answers) >= 120 and len(set(numbers)) > 0.95 * len(numbers)
    assert sum(number % 1 > 0 for number in numbers) >= 10
    assert len({name for answer in answers for name in answer["警示灯"]}) == 9
    assert all((answer["仪表盘状态"] == "异常") == bool(answer["警示灯"]) for answer in answers)


@pytest.mark.parametrize("field", ["里程数", "车牌号", "VIN"])
def test_some_numbers_cannot_be_read(rows, answers, field):
    values = [answer[field] for answer in answers if field in answer]
    assert 0.05 <= values.count(UNREADABLE) / len(values) <= 0.12
    assert {row["split"] for row in rows if row["answer"].get(field) == UNREADABLE} == {"train", "held_out"}
    elsewhere = [
        answer
        for answer in answers
        for name, value in answer.items()
        if value == UNREADABLE and name not in ("里程数", "车牌号", "VIN")
    ]
    assert elsewhere == []


def test_damages_are_single_several_or_none(answers):
    found = [answer for answer in answers if "损伤部位" in answer]
    none = [answer for answer in found if answer["损伤类型"] == "无损伤"]
    assert 0.05 <= len(none) / len(found) <= 0.12
    assert all(answer == {"损伤部位": "无", "损伤类型": "无损伤", "损伤程度": "无"} for answer in none)
    several = [answer for answer in found if any(isinstance(value, list) for value in answer.values())]
    assert 0.15 <= len(several) / len(found) <= 0.35
    for answer in found:
        parts, kinds = ([value] if isinstance(value, str) else value for value in list(answer.values())[:2])
        assert answer in none or (set(parts) <= PARTS and set(kinds) <= {"划痕", "凹陷"})
        assert answer in none or answer["损伤程度"] in ("轻微", "中等", "严重")
        for value in answer.values():  # a list only where there is more than one
            assert isinstance(value, str) or len(set(value)) == len(value) >= 2
    assert len({json.dumps(answer) for answer in found}) >= 18


def test_the_photos_of_a_claim_fit_each_other(sheet):
    """A tablet is an electric car's, a dot matrix a lorry's; motorcycles have plates of their own."""
    claims = [(style, answer["车牌颜色"]) for _, answer, style in sheet.values() if "+" in style]
    assert len(claims) == 12
    for style, colour in claims:
        first = style.split("+")[0]
        assert first != "motorcycle"
        assert colour == {"tablet": "绿", "dot_matrix": "黄"}.get(first, "蓝")


def pictures_of(build, style, seed: int) -> tuple:
    """Return two drawings of a style that differ in their number alone, their kind and the number's area."""
    other = str.maketrans("0123456789", "8365092147")
    if callable(style):
        pair = [
            style(random.Random(seed), number, "km", "12.3", [], 0.3)
            for number in ("123456", "123456".translate(other))
        ]
        area = build.ImageChops.difference(*pair).getbbox()
        return pair, "dashboard", tuple(value / build.SCALE for value in area)
    numbers = ("京A12345", "京B83650")
    pair = [build.plate_picture(random.Random(seed), number, "蓝", style) for number in numbers]
    return pair, "plate", (100, 142, 350, 192)


def test_what_cannot_be_read_makes_no_difference_and_the_rest_does(build):
    """Another number in the same picture: mud, glare, fog, blur and the edge of the picture hide the difference."""
    if not all(Path(path).is_file() for path in build.FONTS.values()):
        pytest.skip("the fonts of build.py are not installed")
    for style in (build.drum, build.dot_matrix, build.tablet, "lorry", "night"):  # one of each way
        how = build.HOW[style]
        pair, kind, area = pictures_of(build, style, seed=1)
        seen = {}
        for way in ("", how):
            photos = []
            for image in pair:
                rng = random.Random(3)
                image = build.spoiled(rng, image, area, way)
                image = build.behind_glass(rng, image, True) if kind == "dashboard" else image
                photos.append(
                    np.asarray(build.photograph(rng, image, kind, (40, 90, 408, 242), area, way), float)
                )
            seen[way] = np.abs(photos[0] - photos[1]).sum()
        assert seen[how] < 0.35 * seen[""], (style, how)
