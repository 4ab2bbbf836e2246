# %% [markdown]
"""
# Render the car pictures and the insurer's sheet

Draws dashboards, licence plates, VIN plates and damaged panels as an insurer's customers photograph them, writes what
each picture shows as JSON, and puts both into an Excel sheet as a claims department keeps it.

Run:    `uv run data/car_insurance/build.py` (a minute; the same seed gives the same pictures where fonts and Pillow agree)
Needs:  fonts-dejavu-core, fonts-liberation2, fonts-urw-base35 and, for the Chinese letters, fonts-noto-cjk (Debian's names;
        Bitstream Vera's, OFL and AGPL-with-font-exception licences, all of which allow pictures of text). The pictures
        are committed: nobody who only trains needs a font.
Data:   nothing but this file: owners, plates, VINs and cars are invented
Writes: `data/car_insurance/pictures/*.jpg`, `data/car_insurance/qwen-vl-train.xlsx`

A style is a layout with its own colours, fonts and lettering; the sheet names it, and prepare.py, which is to be
run afterwards, holds out whole styles. Every fact in an answer can be seen in the picture.
"""

# %% Imports
import json
import math
import random
import shutil
from io import BytesIO
from pathlib import Path

import numpy as np
from openpyxl import Workbook
from openpyxl.drawing.image import Image as SheetImage
from openpyxl.styles import Alignment, Font
from PIL import Image, ImageChops, ImageDraw, ImageFilter, ImageFont

# %% Settings
FOLDER = Path(__file__).resolve().parent
WIDTH, HEIGHT = 448, 320
SCALE = 2  # drawn so many times larger, then reduced, which smooths every edge
QUALITY = 82  # of the JPEG files
DASHBOARDS, PLATES, VINS, DAMAGES = 16, 12, 10, 12  # pictures of each style
EMBEDDED = 0.15  # share of the pictures that are pasted into their cell instead of named by a path
SEED = 20240305

TTF, OTF = "/usr/share/fonts/truetype", "/usr/share/fonts/opentype"
FONTS = {
    "sans": f"{TTF}/dejavu/DejaVuSans-Bold.ttf",
    "condensed": f"{TTF}/dejavu/DejaVuSansCondensed-Bold.ttf",
    "mono": f"{TTF}/dejavu/DejaVuSansMono-Bold.ttf",
    "arial": f"{TTF}/liberation2/LiberationSans-Bold.ttf",
    "thin": f"{TTF}/liberation2/LiberationSans-Regular.ttf",
    "typewriter": f"{TTF}/liberation2/LiberationMono-Bold.ttf",
    "narrow": f"{OTF}/urw-base35/NimbusSansNarrow-Bold.otf",
    "gothic": f"{OTF}/urw-base35/URWGothic-Demi.otf",
    "cjk": f"{OTF}/noto/NotoSansCJK-Bold.ttc",
}
PROVINCES = "京津沪渝冀豫云辽黑湘皖鲁新苏浙赣鄂桂甘晋蒙陕吉闽贵粤青藏川宁琼"
PLATE_LETTERS = "ABCDEFGHJKLMNPQRSTUVWXYZ"  # no I, no O
VIN_LETTERS = "ABCDEFGHJKLMNPRSTUVWXYZ"  # no I, O, Q
VIN_VALUES = dict(zip("ABCDEFGHJKLMNPRSTUVWXYZ", [*range(1, 9), *range(1, 6), 7, 9, *range(2, 10)]))
VIN_WEIGHTS = (8, 7, 6, 5, 4, 3, 2, 10, 0, 9, 8, 7, 6, 5, 4, 3, 2)
SEGMENTS = ["abcdef", "bc", "abged", "abgcd", "fgbc", "afgcd", "afgedc", "abc", "abcdefg", "abcdfg"]
PROMPTS = {
    "dashboard": [
        "读取仪表盘照片，只输出JSON，字段：里程数、单位、仪表盘状态、警示灯。",
        "请从图中提取关键信息，以JSON返回里程数、单位、仪表盘状态、警示灯。",
        "这是核保照片。总里程是多少？只输出JSON：里程数、单位、仪表盘状态、警示灯。",
    ],
    "plate": [
        "识别车牌，只输出JSON，字段：车牌号、车牌颜色。",
        "请从图中提取关键信息，以JSON返回车牌号、车牌颜色。",
    ],
    "vin": ["识别车架号，只输出JSON，字段：VIN。", "请从图中提取关键信息，以JSON返回VIN。"],
    "damage": [
        "查看车损照片，只输出JSON，字段：损伤部位、损伤类型、损伤程度。",
        "请从图中提取关键信息，以JSON返回损伤部位、损伤类型、损伤程度。",
    ],
}


# %% Drawing
def font(name: str, size: float) -> ImageFont.FreeTypeFont:
    """Return a font; sizes are in pixels of the finished picture."""
    return ImageFont.truetype(FONTS[name], round(size * SCALE))


def box(*numbers: float) -> tuple[float, ...]:
    """Return coordinates of the finished picture in pixels of the drawing."""
    return tuple(number * SCALE for number in numbers)


def write(
    draw, x: float, y: float, text: str, name: str, size: float, colour, anchor: str = "mm", gap: float = 0
) -> float:
    """Write a line, Chinese letters in the Chinese font, and return its width; the anchor is Pillow's (l, m, r + m)."""
    letters = [(letter, font("cjk" if letter > "\u2e80" else name, size)) for letter in text]
    width = sum(face.getlength(letter) / SCALE + gap for letter, face in letters) - gap
    x -= {"l": 0, "m": width / 2, "r": width}[anchor[0]]
    for letter, face in letters:
        draw.text(box(x, y), letter, colour, font=face, anchor="lm")
        x += face.getlength(letter) / SCALE + gap
    return width


def gradient(top: tuple, bottom: tuple, width: int = WIDTH, height: int = HEIGHT) -> Image.Image:
    """Return a vertical gradient in drawing size."""
    ramp = np.linspace(0, 1, height * SCALE)[:, None, None]
    rows = np.array(top) * (1 - ramp) + np.array(bottom) * ramp
    return Image.fromarray(np.repeat(rows, width * SCALE, 1).astype("uint8"))


def seven_segments(draw, x: float, y: float, text: str, height: float, colour, ghost=None) -> float:
    """Draw digits of seven segments, points and commas, from the left, and return their width."""
    start, wide, thick = x, height * 0.52, max(2, round(height * SCALE / 9))
    for letter in text:
        if letter in ".,":
            draw.rectangle(
                box(x, y + height - 2, x + 2.5, y + height + (3 if letter == "," else 0.5)), colour
            )
            x += 6
            continue
        left, right, middle, low = x, x + wide, y + height / 2, y + height
        ends = {
            "a": (left, y, right, y), "g": (left, middle, right, middle), "d": (left, low, right, low),
            "f": (left, y, left, middle), "e": (left, middle, left, low),
            "b": (right, y, right, middle), "c": (right, middle, right, low),
        }  # fmt: skip
        for name, line in ends.items():
            lit = letter.isdigit() and name in SEGMENTS[int(letter)]
            if lit or ghost:
                draw.line(box(*line), fill=colour if lit else ghost, width=thick)
        x += wide + height * 0.28
    return x - start


def dial(draw, x, y, radius, numbers, share, rim, ink, needle, name="arial", size=11) -> None:
    """Draw a round instrument with ticks, numbers and a needle at a share of its range."""
    draw.ellipse(box(x - radius, y - radius, x + radius, y + radius), outline=rim, width=3 * SCALE)
    for i in range(4 * (len(numbers) - 1) + 1):
        angle = math.radians(140 + 260 * i / (4 * (len(numbers) - 1)))
        long = 0.84 if i % 4 == 0 else 0.91
        c, s = math.cos(angle), math.sin(angle)
        ends = box(x + radius * long * c, y + radius * long * s, x + radius * 0.97 * c, y + radius * 0.97 * s)
        draw.line(ends, fill=ink, width=SCALE * (2 if i % 4 == 0 else 1))
        if i % 4 == 0:
            write(draw, x + radius * 0.7 * c, y + radius * 0.7 * s, str(numbers[i // 4]), name, size, ink)
    angle = math.radians(140 + 260 * share)
    ends = box(x, y, x + radius * 0.8 * math.cos(angle), y + radius * 0.8 * math.sin(angle))
    draw.line(ends, fill=needle, width=3 * SCALE)
    draw.ellipse(box(x - 6, y - 6, x + 6, y + 6), fill=needle)


# Pictograms of ISO 2575, each drawn with strokes in a box of 24 x 24 around (0, 0).
PICTOGRAMS = {
    "发动机故障灯": [("line", [(-9, -2), (-9, 6), (-6, 6), (-3, 9), (7, 9), (7, 5), (10, 5), (10, -3), (7, -3), (7, 0), (3, -5), (-6, -5), (-6, -2), (-9, -2)]),
              ("line", [(-4, -9), (4, -9)]), ("line", [(0, -9), (0, -5)]), ("line", [(-12, -2), (-12, 6)]), ("line", [(-12, 2), (-9, 2)])],
    "机油压力灯": [("line", [(-8, -2), (-8, 6), (4, 6), (11, -4), (4, -1), (2, -3), (-8, -3)]), ("line", [(-8, -2), (-12, -5)]),
             ("line", [(-4, -3), (-4, -7)]), ("line", [(-7, -7), (-1, -7)]), ("dot", [(11, 2)])],
    "蓄电池灯": [("line", [(-10, -5), (10, -5), (10, 8), (-10, 8), (-10, -5)]), ("line", [(-7, -5), (-7, -8), (-3, -8), (-3, -5)]),
            ("line", [(3, -5), (3, -8), (7, -8), (7, -5)]), ("line", [(-7, 1), (-3, 1)]), ("line", [(3, 1), (7, 1)]), ("line", [(5, -1), (5, 3)])],
    "ABS灯": [("circle", [(0, 0, 8)]), ("arc", [(0, 0, 12, 130, 230)]), ("arc", [(0, 0, 12, -50, 50)]), ("text", ["ABS"])],
    "安全气囊灯": [("circle", [(-3, -8, 3)]), ("line", [(-5, -3), (-8, 9), (4, 9)]), ("line", [(-5, -2), (2, 3)]), ("circle", [(6, -1, 5)])],
    "胎压灯": [("arc", [(0, 0, 10, -230, 50)]), ("line", [(-8, 9), (8, 9)]), ("line", [(0, -6), (0, 2)]), ("dot", [(0, 5)])],
    "制动灯": [("circle", [(0, 0, 8)]), ("arc", [(0, 0, 12, 120, 240)]), ("arc", [(0, 0, 12, -60, 60)]), ("line", [(0, -5), (0, 1)]), ("dot", [(0, 4)])],
    "水温灯": [("line", [(0, -11), (0, 3)]), ("circle", [(0, 5, 3)]), ("line", [(0, -9), (4, -9)]), ("line", [(0, -5), (4, -5)]),
           ("line", [(-12, 9), (-8, 7), (-4, 9), (0, 11), (4, 9), (8, 7), (12, 9)])],
    "安全带灯": [("circle", [(0, -8, 3)]), ("line", [(-6, 10), (-6, -1), (-2, -4), (2, -4), (6, -1), (6, 10)]), ("line", [(5, -3), (-6, 7)])],
}  # fmt: skip
RED, AMBER = (255, 52, 40), (255, 176, 20)
COLOURS = {name: RED for name in ("机油压力灯", "蓄电池灯", "安全气囊灯", "制动灯", "水温灯", "安全带灯")}


def pictogram(draw, name: str, x: float, y: float, size: float, colour) -> None:
    """Draw a warning light around (x, y)."""
    k, width = size / 24, max(2, round(size * SCALE / 13))
    for shape, values in PICTOGRAMS[name]:
        if shape == "line":
            draw.line([box(x + a * k, y + b * k) for a, b in values], fill=colour, width=width, joint="curve")
        elif shape == "text":
            write(draw, x, y, values[0], "condensed", 7.5 * k, colour)
        elif shape == "dot":
            a, b = values[0]
            draw.ellipse(
                box(x + (a - 1.6) * k, y + (b - 1.6) * k, x + (a + 1.6) * k, y + (b + 1.6) * k), fill=colour
            )
        else:
            a, b, radius, *angles = values[0]
            around = box(
                x + (a - radius) * k, y + (b - radius) * k, x + (a + radius) * k, y + (b + radius) * k
            )
            draw.arc(around, *(angles or (0, 360)), fill=colour, width=width)


def lights(
    draw, names: list[str], x: float, y: float, size: float, step: float, down: bool = False, dark=None
) -> None:
    """Draw the lit warning lights among unlit ones; with dark = None only the lit ones exist, as on a screen."""
    shown = names if dark is None else list(PICTOGRAMS)[:: 1 if len(names) > 1 else 2]
    shown = list(dict.fromkeys([*shown, *names]))[-7:] if dark else names
    for i, name in enumerate(shown):
        a, b = (x, y + i * step) if down else (x + i * step, y)
        pictogram(draw, name, a, b, size, COLOURS.get(name, AMBER) if name in names else dark)


# %% Dashboards
# Each takes (rng, odometer text, unit text, trip text, lights, speed share) and returns a picture in drawing size.
def twin_dials(rng, odometer, unit, trip, lit, share):
    """Two white-on-black dials, the odometer on a grey LCD below."""
    image = gradient((22, 22, 26), (8, 8, 10))
    draw = ImageDraw.Draw(image)
    dial(draw, 108, 128, 92, range(0, 9), share, (120, 120, 125), (235, 235, 235), (230, 50, 40))
    dial(draw, 340, 128, 92, range(0, 241, 30), share * 0.8, (120, 120, 125), (235, 235, 235), (230, 50, 40))
    draw.rounded_rectangle(box(92, 234, 356, 302), 6 * SCALE, (150, 165, 150))
    write(draw, 102, 248, f"TRIP {trip}", "arial", 13, (30, 40, 30), "lm")
    write(draw, 346, 280, f"{odometer} {unit}", "arial", 31, (15, 25, 15), "rm")
    lights(draw, lit, 100, 216, 22, 40, dark=(38, 38, 40))
    return image


def one_dial(rng, odometer, unit, trip, lit, share):
    """One large dial with a round screen in the middle."""
    image = gradient((40, 34, 30), (16, 14, 12))
    draw = ImageDraw.Draw(image)
    dial(
        draw,
        224,
        165,
        150,
        range(0, 221, 20),
        share,
        (190, 170, 140),
        (240, 225, 200),
        (255, 120, 30),
        "gothic",
        13,
    )
    draw.rounded_rectangle(box(124, 176, 324, 262), 14 * SCALE, (12, 12, 16), (190, 170, 140), SCALE)
    write(draw, 224, 202, f"{odometer}{unit}", "gothic", 29, (255, 230, 190))
    write(draw, 224, 240, f"A {trip}", "gothic", 15, (200, 180, 150))
    lights(draw, lit, 36, 44, 26, 52, down=True)
    return image


def drum(rng, odometer, unit, trip, lit, share):
    """A mechanical odometer: rolling drums in a window of an old speedometer."""
    image = gradient((70, 62, 50), (40, 35, 30))
    draw = ImageDraw.Draw(image)
    draw.pieslice(box(24, -60, 424, 340), 180, 360, (24, 22, 20))
    for i in range(13):
        angle = math.radians(190 + 160 * i / 12)
        write(
            draw,
            224 + 165 * math.cos(angle),
            140 + 165 * math.sin(angle),
            str(20 * i),
            "thin",
            14,
            (240, 235, 210),
        )
    angle = math.radians(190 + 160 * share)
    draw.line(
        box(224, 150, 224 + 140 * math.cos(angle), 150 + 140 * math.sin(angle)),
        fill=(220, 30, 20),
        width=4 * SCALE,
    )
    digits = odometer.replace(",", "").replace(".", "").rjust(6, "0")
    left = 224 - len(digits) * 19
    for i, digit in enumerate(digits):
        last = i == len(digits) - 1 and "." in odometer
        a = left + 38 * i
        draw.rectangle(box(a, 180, a + 36, 232), (235, 232, 220) if last else (18, 18, 18))
        write(
            draw,
            a + 18,
            206 + rng.uniform(-1.5, 1.5),
            digit,
            "sans",
            36,
            (190, 20, 20) if last else (245, 245, 240),
        )
    write(draw, 224, 250, unit, "thin", 20, (240, 235, 210))
    for i, digit in enumerate(trip.replace(".", "").rjust(4, "0")):
        draw.rectangle(box(184 + 20 * i, 272, 202 + 20 * i, 298), (60, 60, 60))
        write(draw, 193 + 20 * i, 285, digit, "thin", 17, (230, 230, 230))
    lights(draw, lit, 40, 276, 24, 34)
    return image


def blue_screen(rng, odometer, unit, trip, lit, share):
    """A digital cluster in blue: the speed in the middle, the odometer below on the left."""
    image = gradient((6, 16, 48), (2, 6, 20))
    draw = ImageDraw.Draw(image)
    for radius in (96, 104, 112):
        draw.arc(box(224 - radius, 120 - radius, 224 + radius, 120 + radius), 140, 400, (20, 90, 200), SCALE)
    draw.arc(box(112, 8, 336, 232), 140, 140 + 260 * share, (60, 200, 255), 6 * SCALE)
    write(draw, 224, 112, str(round(180 * share)), "thin", 62, (235, 245, 255))
    write(draw, 224, 158, "km/h", "thin", 15, (150, 190, 230))
    write(draw, 24, 262, f"ODO {odometer} {unit}", "sans", 27, (235, 245, 255), "lm")
    write(draw, 24, 298, f"小计 {trip}  AUTO 21°C", "sans", 15, (120, 170, 220), "lm")
    lights(draw, lit, 40, 30, 26, 48, down=True)
    return image


def segment_display(rng, odometer, unit, trip, lit, share):
    """Green or amber seven-segment digits of the eighties."""
    on, off = ((90, 255, 130), (14, 36, 20)) if rng.random() < 0.5 else ((255, 170, 40), (40, 26, 8))
    image = gradient((10, 12, 10), (4, 5, 4))
    draw = ImageDraw.Draw(image)
    for i in range(24):
        colour = on if i < 24 * share else off
        draw.rectangle(box(30 + 16 * i, 92 - 2.2 * i, 41 + 16 * i, 104), colour)
    seven_segments(draw, 40, 128, f"{round(160 * share):03d}", 62, on, off)
    write(draw, 176, 178, unit + "/h", "thin", 16, on, "lm")
    width = seven_segments(draw, 40, 232, odometer, 34, on, off)
    write(draw, 52 + width, 258, unit, "arial", 20, on, "lm")
    seven_segments(draw, 320, 140, trip, 20, on, off)
    write(draw, 320, 176, "TRIP", "thin", 13, on, "lm")
    lights(draw, lit, 56, 294, 24, 40, dark=(30, 32, 30))
    return image


def tablet(rng, odometer, unit, trip, lit, share):
    """A white tablet of an electric car with cards."""
    image = gradient((246, 247, 249), (228, 231, 236))
    draw = ImageDraw.Draw(image)
    draw.rounded_rectangle(box(18, 18, 214, 190), 16 * SCALE, (255, 255, 255), (215, 218, 224), SCALE)
    write(draw, 116, 84, str(round(140 * share)), "thin", 70, (30, 34, 40))
    write(draw, 116, 142, "P  R  N  D", "thin", 20, (120, 126, 134))
    draw.rounded_rectangle(box(234, 18, 430, 104), 16 * SCALE, (255, 255, 255), (215, 218, 224), SCALE)
    draw.rounded_rectangle(box(252, 44, 412, 60), 8 * SCALE, (224, 228, 232))
    draw.rounded_rectangle(box(252, 44, 252 + 160 * max(0.1, 1 - share), 60), 8 * SCALE, (52, 190, 110))
    write(draw, 252, 82, f"续航 {rng.randint(40, 480)} km", "thin", 15, (80, 86, 94), "lm")
    write(draw, 24, 226, "总里程", "sans", 18, (110, 116, 124), "lm")
    write(draw, 24, 264, f"{odometer} {unit}", "thin", 36, (20, 24, 30), "lm")
    write(draw, 24, 300, f"本次 {trip} {unit}", "thin", 14, (120, 126, 134), "lm")
    lights(draw, lit, 260, 142, 30, 44)
    return image


def dot_matrix(rng, odometer, unit, trip, lit, share):
    """A lorry: an orange dot-matrix line under a row of lights and two gauges."""
    image = gradient((30, 32, 34), (20, 20, 22))
    draw = ImageDraw.Draw(image)
    dial(
        draw, 84, 92, 66, range(0, 13, 2), share, (200, 200, 200), (255, 255, 255), (255, 90, 20), "thin", 10
    )
    dial(
        draw,
        364,
        92,
        66,
        range(0, 126, 25),
        share,
        (200, 200, 200),
        (255, 255, 255),
        (255, 90, 20),
        "thin",
        10,
    )
    lights(draw, lit, 176, 60, 24, 34, dark=(58, 60, 62))
    draw.rectangle(box(40, 178, 408, 300), (34, 14, 2))
    text = Image.new("L", (368 * SCALE, 122 * SCALE))
    pen = ImageDraw.Draw(text)
    write(pen, 16, 40, f"{odometer} {unit}", "typewriter", 40, 255, "lm")
    write(pen, 16, 94, f"TRIP1 {trip}", "typewriter", 22, 255, "lm")
    mask = np.asarray(text).copy()
    mask[:: 2 * SCALE] = 0
    mask[:, :: 2 * SCALE] = 0
    image.paste((255, 150, 30), box(40, 178), Image.fromarray(mask))
    return image


def close_up(rng, odometer, unit, trip, lit, share):
    """The odometer window close up, with the reset knob and the edge of a dial."""
    image = gradient((34, 36, 40), (20, 22, 24))
    draw = ImageDraw.Draw(image)
    draw.arc(box(-160, -280, 608, 168), 20, 160, (200, 205, 210), 4 * SCALE)
    for i in range(9):
        angle = math.radians(50 + 10 * i)
        write(
            draw,
            224 + 340 * math.cos(angle),
            -56 + 186 * math.sin(angle),
            str(20 * (8 - i)),
            "arial",
            16,
            (230, 230, 235),
        )
    draw.rectangle(box(44, 166, 404, 250), (178, 186, 160), (90, 92, 88), 2 * SCALE)
    write(draw, 390, 206, f"{odometer}", "mono", 42, (24, 28, 20), "rm")
    write(draw, 60, 184, unit, "arial", 18, (24, 28, 20), "lm")
    write(draw, 60, 232, f"{trip}", "mono", 17, (50, 56, 44), "lm")
    draw.ellipse(box(352, 262, 404, 314), (60, 62, 66), (100, 102, 106), 2 * SCALE)
    lights(draw, lit, 70, 282, 28, 44)
    return image


def red_sport(rng, odometer, unit, trip, lit, share):
    """A sports car: red numbers, a central rev counter, the odometer on a strip at the foot."""
    image = gradient((16, 4, 6), (40, 6, 8))
    draw = ImageDraw.Draw(image)
    dial(
        draw,
        224,
        122,
        112,
        range(0, 11),
        share,
        (210, 30, 30),
        (255, 210, 200),
        (255, 255, 255),
        "gothic",
        18,
    )
    draw.polygon(
        [box(48, 308), box(84, 250), box(364, 250), box(400, 308)], fill=(10, 10, 12), outline=(210, 30, 30)
    )
    write(draw, 224, 272, f"{odometer} {unit}", "condensed", 32, (255, 245, 240))
    write(draw, 224, 299, f"TRIP {trip}", "condensed", 13, (220, 150, 140))
    lights(draw, lit, 40, 40, 26, 46, down=True)
    return image


def motorcycle(rng, odometer, unit, trip, lit, share):
    """A motorcycle's negative LCD: a bar of revolutions, large digits, the handlebar behind."""
    image = gradient((96, 110, 120), (60, 66, 60))
    draw = ImageDraw.Draw(image)
    draw.line(box(-10, 250, 458, 190), fill=(24, 24, 26), width=30 * SCALE)
    draw.rounded_rectangle(box(50, 30, 398, 292), 34 * SCALE, (20, 22, 26), (70, 72, 76), 4 * SCALE)
    for i in range(18):
        draw.rectangle(
            box(84 + 16 * i, 56, 95 + 16 * i, 76), (240, 246, 250) if i < 18 * share else (44, 48, 54)
        )
    write(draw, 130, 130, str(round(120 * share)), "narrow", 72, (240, 246, 250))
    write(draw, 250, 140, f"T {trip}", "narrow", 20, (190, 200, 206), "lm")
    write(draw, 84, 216, f"{odometer}", "narrow", 42, (240, 246, 250), "lm")
    write(draw, 372, 222, unit, "narrow", 24, (240, 246, 250), "rm")
    lights(draw, lit, 100, 264, 24, 40)
    return image


# %% Plates, VINs, panels
def plate_picture(rng, number, green, surround):
    """A plate on a car; the surround is what the style is: bumper, boot lid, screws on a wall, a lorry, a car park at night."""
    body = {
        "bumper": ((198, 200, 204), (120, 122, 128)), "boot": ((150, 30, 34), (86, 12, 18)),
        "wall": ((206, 200, 188), (186, 180, 168)), "lorry": ((40, 80, 60), (24, 44, 36)), "night": ((26, 28, 34), (10, 10, 14)),
    }[surround]  # fmt: skip
    image = gradient(*body)
    draw = ImageDraw.Draw(image)
    if surround in ("bumper", "night"):
        for y in range(24, 96, 14):
            draw.rounded_rectangle(box(60, y, 388, y + 7), 3 * SCALE, (28, 28, 30))
        for x in (24, 384):
            draw.ellipse(box(x, 226, x + 44, 268), (240, 238, 220) if surround == "night" else (90, 92, 96))
    elif surround == "boot":
        draw.rectangle(box(0, 40, 60, 90), (220, 40, 30))
        draw.rectangle(box(388, 40, 448, 90), (220, 40, 30))
        draw.line(box(0, 20, 448, 20), fill=(50, 6, 10), width=2 * SCALE)
    elif surround == "lorry":
        for x in range(20, 448, 60):
            draw.line(box(x, 0, x, 320), fill=(20, 36, 30), width=3 * SCALE)
        write(draw, 224, 276, f"总质量 {rng.randint(4, 40)}吨", "sans", 26, (230, 230, 220))
    left, top, right, bottom = 52, 122, 396, 216
    plate = gradient((246, 252, 246), (60, 190, 110), right - left, bottom - top) if green else None
    ink = (16, 20, 18) if green else (250, 250, 250)
    if green:
        image.paste(plate, (left * SCALE, top * SCALE))
    else:
        draw.rounded_rectangle(box(left, top, right, bottom), 6 * SCALE, (24, 74, 178))
    draw.rounded_rectangle(box(left + 3, top + 3, right - 3, bottom - 3), 5 * SCALE, None, ink, 2 * SCALE)
    for x in (left + 60, right - 60):
        draw.ellipse(box(x - 4, top + 6, x + 4, top + 14), (170, 170, 172))
    face = {"bumper": "arial", "boot": "condensed", "wall": "sans", "lorry": "narrow", "night": "arial"}[
        surround
    ]
    write(draw, left + 34, 170, number[0], face, 50, ink)
    write(draw, left + 86, 170, number[1], face, 56, ink)
    draw.ellipse(box(left + 110, 166, left + 118, 174), ink)
    step = (right - left - 126) / (len(number) - 2)
    for i, letter in enumerate(number[2:]):
        write(draw, left + 122 + step * (i + 0.5), 170, letter, face, 56 if not green else 50, ink)
    return image


def vin_picture(rng, vin, surface):
    """A VIN as it is found: stamped in metal, printed on a sticker, behind the windscreen, on a riveted plate."""
    image = gradient(*{
        "stamped": ((126, 130, 132), (92, 96, 98)), "sticker": ((226, 226, 222), (206, 206, 204)),
        "windscreen": ((58, 70, 78), (26, 30, 34)), "riveted": ((60, 24, 24), (40, 16, 16)),
    }[surface])  # fmt: skip
    draw = ImageDraw.Draw(image)
    if surface == "stamped":
        for _ in range(60):
            x, y = rng.uniform(0, 448), rng.uniform(0, 320)
            draw.line(
                box(x, y, x + rng.uniform(10, 60), y + rng.uniform(-2, 2)), fill=(112, 116, 118), width=SCALE
            )
        write(draw, 225.2, 161.2, vin, "typewriter", 38, (190, 194, 196), gap=1)
        write(draw, 224, 160, vin, "typewriter", 38, (36, 38, 40), gap=1)
    elif surface == "sticker":
        draw.rectangle(box(14, 60, 434, 262), (250, 250, 248), (40, 40, 40), 2 * SCALE)
        write(
            draw,
            28,
            84,
            f"制造年月 {rng.randint(2012, 2024)}.{rng.randint(1, 12):02d}",
            "arial",
            18,
            (30, 30, 30),
            "lm",
        )
        write(draw, 28, 116, "车辆识别代号", "arial", 18, (30, 30, 30), "lm")
        write(draw, 224, 158, vin, "arial", 36, (10, 10, 10), gap=0.5)
        x = 30
        while x < 416:
            bar = rng.choice([1, 2, 3])
            draw.rectangle(box(x, 196, x + bar, 246), (10, 10, 10))
            x += bar + rng.choice([1.5, 3, 4])
    elif surface == "windscreen":
        draw.polygon([box(0, 80), box(448, 30), box(448, 60), box(0, 110)], fill=(84, 100, 110))
        draw.rectangle(box(10, 138, 438, 190), (14, 14, 14), (80, 80, 84), SCALE)
        write(draw, 224, 164, vin, "mono", 37, (228, 228, 224), gap=0.8)
    else:
        draw.rounded_rectangle(box(16, 70, 432, 250), 8 * SCALE, (176, 172, 160), (90, 88, 80), 2 * SCALE)
        for x, y in ((32, 86), (416, 86), (32, 234), (416, 234)):
            draw.ellipse(box(x - 7, y - 7, x + 7, y + 7), (120, 118, 108), (70, 70, 64), SCALE)
        write(
            draw,
            224,
            112,
            f"型号 QX{rng.randint(1000, 9999)}  功率 {rng.randint(60, 220)}kW",
            "narrow",
            22,
            (40, 38, 34),
        )
        write(draw, 224, 166, vin, "narrow", 43, (30, 28, 26), gap=1.5)
        write(draw, 224, 216, "清江汽车制造有限公司", "narrow", 20, (40, 38, 34))
    return image


PARTS = ["前保险杠", "后保险杠", "引擎盖", "左前门", "右前门", "左前翼子板"]


def panel(part, paint):
    """Draw a part of a car close enough to tell it: bumper, bonnet, door or wing."""
    dark, light = tuple(int(0.6 * c) for c in paint), tuple(min(255, int(1.25 * c)) for c in paint)
    image = gradient(light, paint)
    draw = ImageDraw.Draw(image)
    if part == "前保险杠":
        for y in range(20, 90, 12):
            draw.rectangle(box(120, y, 328, y + 5), (26, 26, 28))
        for x in (10, 348):
            draw.polygon(
                [box(x, 30), box(x + 90, 44), box(x + 84, 86), box(x + 8, 78)],
                fill=(228, 234, 240),
                outline=(60, 60, 64),
            )
        draw.rectangle(box(150, 236, 298, 284), (24, 74, 178))
        draw.line(box(0, 118, 448, 118), fill=dark, width=3 * SCALE)
    elif part == "后保险杠":
        for x in (0, 358):
            draw.rectangle(box(x, 10, x + 90, 78), (206, 30, 28), (60, 10, 10), 2 * SCALE)
        draw.line(box(0, 112, 448, 112), fill=dark, width=3 * SCALE)
        for x in (60, 340):
            draw.ellipse(box(x, 278, x + 56, 308), (30, 30, 32), (150, 150, 152), 3 * SCALE)
    elif part == "引擎盖":
        draw.polygon([box(0, 0), box(448, 0), box(410, 64), box(38, 64)], fill=(46, 62, 74))
        draw.line(box(120, 66, 90, 320), fill=dark, width=3 * SCALE)
        draw.line(box(328, 66, 358, 320), fill=dark, width=3 * SCALE)
    elif part in ("左前门", "右前门"):
        draw.polygon([box(20, 0), box(428, 0), box(428, 92), box(60, 92)], fill=(40, 52, 60))
        draw.line(box(16, 0, 16, 320), fill=dark, width=4 * SCALE)
        draw.line(box(432, 0, 432, 320), fill=dark, width=4 * SCALE)
        draw.rounded_rectangle(box(336, 122, 416, 140), 8 * SCALE, dark)
        draw.polygon([box(22, 60), box(80, 66), box(76, 104), box(22, 100)], fill=(22, 22, 24))
    else:
        draw.ellipse(box(190, 220, 510, 540), (18, 18, 20))
        draw.ellipse(box(240, 270, 460, 490), (120, 122, 126))
        draw.polygon([box(0, 40), box(70, 56), box(60, 112), box(0, 104)], fill=(228, 234, 240))
        draw.line(box(0, 24, 448, 10), fill=dark, width=3 * SCALE)
    return image.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if part == "右前门" else image


def damage(rng, image, kind, degree):
    """Draw scratches or a dent of a degree (轻微, 中等, 严重) on a panel."""
    draw, strength = ImageDraw.Draw(image), {"轻微": 1, "中等": 2, "严重": 3}[degree]
    if kind == "划痕":
        x, y = rng.uniform(60, 200), rng.uniform(130, 200)
        for i in range((1, 4, 9)[strength - 1]):
            points, a, b = [], x + rng.uniform(-8, 8), y + 7 * i + rng.uniform(-3, 3)
            for _ in range(6):
                points.append(box(a, b))
                a, b = a + rng.uniform(8, 14) * (1 + strength), b + rng.uniform(-6, 6)
            draw.line(points, fill=(236, 236, 236), width=SCALE * strength, joint="curve")
            draw.line([(p, q + 2 * SCALE) for p, q in points], fill=(50, 46, 44), width=SCALE)
        return image
    x, y, r = rng.uniform(140, 300), rng.uniform(140, 200), (22, 44, 76)[strength - 1]
    shade = Image.new("L", image.size, 128)
    pen = ImageDraw.Draw(shade)
    for i in range(strength):
        a, b, c = x + rng.uniform(-0.5, 0.5) * r * i, y + rng.uniform(-0.3, 0.3) * r * i, r * (1 - 0.2 * i)
        pen.ellipse(box(a - c, b - 0.7 * c, a + c, b + 0.7 * c), fill=36)
        pen.pieslice(box(a - 0.8 * c, b - 0.4 * c, a + 0.9 * c, b + 0.75 * c), 10, 170, fill=226)
    shade = shade.filter(ImageFilter.GaussianBlur(r * SCALE / 7))
    delta = (np.asarray(shade, dtype="float32") - 128)[..., None] * 1.1
    image = Image.fromarray((np.asarray(image, dtype="float32") + delta).clip(0, 255).astype("uint8"))
    if strength == 3:  # the paint has cracked
        draw = ImageDraw.Draw(image)
        for _ in range(5):
            angle, a, b = rng.uniform(0, 6.28), x, y
            points = [box(a, b)]
            for _ in range(4):
                a, b = (
                    a + 17 * math.cos(angle) + rng.uniform(-5, 5),
                    b + 12 * math.sin(angle) + rng.uniform(-5, 5),
                )
                points.append(box(a, b))
            draw.line(points, fill=(30, 28, 28), width=2 * SCALE)
    return image


# %% Photographing
def photograph(rng: random.Random, image: Image.Image, gentle: bool = False) -> Image.Image:
    """Return the drawing as a phone takes it: turned, cropped, blurred, glaring, dark, noisy, each now and then."""
    width, height = image.size
    if rng.random() < 0.6:
        corners = [(0, 0), (0, height), (width, height), (width, 0)]
        move = 0.015 if gentle else 0.03
        quad = [
            c + rng.uniform(-move, move) * side for x, y in corners for c, side in ((x, width), (y, height))
        ]
        image = image.transform(image.size, Image.Transform.QUAD, quad, Image.Resampling.BICUBIC)
    if rng.random() < 0.5:
        edge = image.resize((1, 1)).getpixel((0, 0))
        image = image.rotate(
            rng.uniform(-3, 3) if gentle else rng.uniform(-5, 5), Image.Resampling.BICUBIC, fillcolor=edge
        )
    if rng.random() < 0.4:  # a little is cropped away on each side
        cut = [rng.uniform(0, 0.02) for _ in range(4)]
        image = image.crop(
            (int(cut[0] * width), int(cut[1] * height), int((1 - cut[2]) * width), int((1 - cut[3]) * height))
        )
    image = image.resize((WIDTH, HEIGHT), Image.Resampling.LANCZOS)
    if rng.random() < 0.3:
        image = image.filter(ImageFilter.GaussianBlur(rng.uniform(0.4, 1.1)))
    if rng.random() < 0.3:  # a lamp or the flash in the glass
        glare = Image.new("L", image.size)
        x, y, r = rng.uniform(0, WIDTH), rng.uniform(0, HEIGHT), rng.uniform(30, 80)
        ImageDraw.Draw(glare).ellipse((x - r, y - r * 0.5, x + r, y + r * 0.5), rng.randint(60, 130))
        glare = glare.filter(ImageFilter.GaussianBlur(r * 0.5))
        image = ImageChops.add(image, Image.merge("RGB", [glare] * 3))
    pixels = np.asarray(image, dtype="float32")
    if rng.random() < 0.3:
        pixels = pixels * rng.uniform(0.45, 0.75)
    pixels = pixels * [rng.uniform(0.93, 1.07) for _ in range(3)]
    pixels += np.random.default_rng(rng.getrandbits(32)).normal(0, rng.choice([1, 3, 7, 12]), pixels.shape)
    return Image.fromarray(pixels.clip(0, 255).astype("uint8"))


# %% Facts
def odometer(rng: random.Random) -> tuple[str, str, str, dict]:
    """Return (odometer, unit, trip) as shown and the answer; the answer's number has no comma."""
    miles = rng.random() < 0.3
    number = rng.choice(
        [
            rng.randint(100, 9999),
            rng.randint(10_000, 99_999),
            rng.randint(10_000, 99_999),
            rng.randint(100_000, 320_000),
        ]
    )
    form = rng.random()
    shown, value = (f"{number:,}", number) if form < 0.35 else (f"{number}", number)
    if form > 0.85:
        tenth = rng.randint(1, 9)
        shown, value = f"{number}.{tenth}", number + tenth / 10
    unit = rng.choice(["mi", "mi", "miles"]) if miles else rng.choice(["km", "km", "km", "公里"])
    trip = f"{rng.randint(0, 999)}.{rng.randint(0, 9)}"
    return shown, unit, trip, {"里程数": value, "单位": "英里" if miles else "公里"}


def check_digit(vin: str) -> str:
    """Return the ninth character that a VIN must have (GB 16735, ISO 3779)."""
    total = sum(w * (int(c) if c.isdigit() else VIN_VALUES[c]) for c, w in zip(vin, VIN_WEIGHTS))
    return "0123456789X"[total % 11]


def vin_number(rng: random.Random) -> str:
    """Return an invented Chinese VIN with a valid check digit."""
    letters = [rng.choice(VIN_LETTERS + "0123456789") for _ in range(17)]
    letters[0], letters[9] = (
        "L",
        rng.choice("ABCDEFGHJKLMNPRSTVWXY123456789"),
    )  # China; model year: no U, Z, 0
    letters[11:] = [rng.choice("0123456789") for _ in range(6)]
    vin = "".join(letters)
    return vin[:8] + check_digit(vin) + vin[9:]


def plate_number(rng: random.Random, green: bool) -> str:
    """Return an invented plate of GA 36: five characters with at most two letters, or D / F and five for new energy."""
    head = rng.choice(PROVINCES) + rng.choice(PLATE_LETTERS)
    if green:
        return (
            head
            + rng.choice("DF")
            + rng.choice(PLATE_LETTERS + "0123456789" * 3)
            + f"{rng.randint(0, 9999):04d}"
        )
    tail = list(f"{rng.randint(0, 99999):05d}")
    for place in rng.sample(range(5), rng.choice([0, 1, 1, 2])):
        tail[place] = rng.choice(PLATE_LETTERS)
    return head + "".join(tail)


def records(rng: random.Random):
    """Yield (kind, style, picture, answer) of every picture."""
    for style in (
        twin_dials,
        one_dial,
        drum,
        blue_screen,
        segment_display,
        tablet,
        dot_matrix,
        close_up,
        red_sport,
        motorcycle,
    ):
        for i in range(DASHBOARDS):
            shown, unit, trip, answer = odometer(rng)
            if style is segment_display or style is drum or style is motorcycle:
                unit = "mi" if answer["单位"] == "英里" else "km"
            lit = rng.sample(list(PICTOGRAMS), (0, 1, 0, 2, 1)[i % 5])
            answer |= {"仪表盘状态": "异常" if lit else "正常", "警示灯": lit}
            yield (
                "dashboard",
                style.__name__,
                photograph(rng, style(rng, shown, unit, trip, lit, rng.uniform(0, 0.7))),
                answer,
            )
    for surround in ("bumper", "boot", "wall", "lorry", "night"):
        for i in range(PLATES):
            number = plate_number(rng, i % 3 == 2)
            answer = {"车牌号": number, "车牌颜色": "绿" if i % 3 == 2 else "蓝"}
            yield (
                "plate",
                f"plate_{surround}",
                photograph(rng, plate_picture(rng, number, i % 3 == 2, surround)),
                answer,
            )
    for surface in ("stamped", "sticker", "windscreen", "riveted"):
        for _ in range(VINS):
            vin = vin_number(rng)
            yield (
                "vin",
                f"vin_{surface}",
                photograph(rng, vin_picture(rng, vin, surface), gentle=True),
                {"VIN": vin},
            )
    paints = {
        "white": (214, 216, 218),
        "silver": (150, 154, 160),
        "red": (150, 24, 28),
        "blue": (30, 60, 120),
    }
    for name, paint in paints.items():
        for i in range(DAMAGES):
            kind, degree = rng.choice(("划痕", "凹陷")), rng.choice(("轻微", "中等", "严重"))
            part = PARTS[i % len(PARTS)]
            tone = tuple(min(255, max(0, c + rng.randint(-12, 12))) for c in paint)
            image = photograph(rng, damage(rng, panel(part, tone), kind, degree))
            yield "damage", f"paint_{name}", image, {"损伤部位": part, "损伤类型": kind, "损伤程度": degree}


# %% Sheet
def jpeg(image: Image.Image) -> BytesIO:
    """Return a picture as a JPEG file in memory."""
    file = BytesIO()
    image.save(file, "JPEG", quality=QUALITY)
    return file


rng = random.Random(SEED)
shutil.rmtree(FOLDER / "pictures", ignore_errors=True)
(FOLDER / "pictures").mkdir(parents=True)
rows = []
for number, (kind, style, image, answer) in enumerate(records(rng), 1):
    rows.append(
        {
            "kind": kind,
            "style": style,
            "images": [(number, image)],
            "answer": answer,
            "prompt": rng.choice(PROMPTS[kind]),
        }
    )
for first in rng.sample(
    [row for row in rows if row["kind"] == "dashboard"], 12
):  # claims: two photos in one row
    second = rng.choice([row for row in rows if row["kind"] == "plate"])
    rows = [row for row in rows if row is not first and row is not second]
    rows.append(
        {
            "kind": "claim",
            "style": f"{first['style']}+{second['style']}",
            "images": first["images"] + second["images"],
            "answer": second["answer"] | first["answer"],
            "prompt": "两张照片是同一辆车。只输出JSON，字段：车牌号、车牌颜色、里程数、单位、仪表盘状态、警示灯。",
        }
    )
rng.shuffle(rows)

book = Workbook()
sheet = book.active
sheet.title = "核保照片"
sheet.append(["image", "prompt", "response", "style"])
for cell in sheet[1]:
    cell.font = Font(bold=True)
for column, width in zip("ABCD", (34, 44, 60, 22)):
    sheet.column_dimensions[column].width = width
for place, row in enumerate(rows, 2):
    sheet.append([None, row["prompt"], json.dumps(row["answer"], ensure_ascii=False), row["style"]])
    paths = []
    if len(row["images"]) == 1 and rng.random() < EMBEDDED:
        pasted = SheetImage(jpeg(row["images"][0][1]))
        pasted.width, pasted.height = 112, 80
        sheet.add_image(pasted, f"A{place}")
        sheet.row_dimensions[place].height = 64
    else:
        for number, image in row["images"]:
            path = FOLDER / "pictures" / f"{number:03d}.jpg"
            path.write_bytes(jpeg(image).getvalue())
            paths.append(f"pictures/{path.name}")
        sheet.cell(place, 1, "\n".join(paths)).alignment = Alignment(wrap_text=True)
sheet.freeze_panes = "A2"
book.save(FOLDER / "qwen-vl-train.xlsx")

# %% Check
size = sum(path.stat().st_size for path in FOLDER.rglob("*") if path.is_file()) / 2**20
kinds = {
    kind: sum(row["kind"] == kind for row in rows)
    for kind in ("dashboard", "plate", "vin", "damage", "claim")
}
print(
    f"{len(rows)} rows {kinds}, {len({row['style'] for row in rows})} styles, {size:.1f} MB in {FOLDER.name}"
)
