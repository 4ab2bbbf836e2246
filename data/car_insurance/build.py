# %% [markdown]
"""
# Render the car pictures and the insurer's sheet

Draws dashboards, licence plates, VIN plates and car bodies as an insurer's customers photograph them, writes what
each picture shows as JSON, and puts both into an Excel sheet as a claims department keeps it.

Run:    `uv run data/car_insurance/build.py` (a minute; the same seed gives the same pictures where fonts and Pillow agree)
Needs:  fonts-dejavu-core, fonts-liberation2, fonts-urw-base35 and, for the Chinese letters, fonts-noto-cjk (Debian's names;
        Bitstream Vera's, OFL and AGPL-with-font-exception licences, all of which allow pictures of text). The pictures
        are committed: nobody who only trains needs a font.
Data:   nothing but this file: owners, plates, VINs and cars are invented
Writes: `data/car_insurance/pictures/*.jpg`, `data/car_insurance/qwen-vl-train.xlsx`

A style is a layout with its own colours, fonts and lettering; the sheet names it, and prepare.py, which is to be
run afterwards, holds out whole styles. Every fact in an answer can be seen in the picture; a number that nobody can
read, under mud, in a glare, out of focus or out of the picture, is 无法辨认.
"""

# %% Imports
import itertools
import json
import math
import random
import shutil
from collections import Counter
from io import BytesIO
from pathlib import Path

import numpy as np
from openpyxl import Workbook
from openpyxl.drawing.image import Image as SheetImage
from openpyxl.styles import Alignment, Font
from PIL import Image, ImageChops, ImageColor, ImageDraw, ImageFilter, ImageFont

# %% Settings
FOLDER = Path(__file__).resolve().parent
WIDTH = 448
HEIGHT = 320
SCALE = 2  # drawn so many times larger, then reduced, which smooths every edge
SIZE = WIDTH * SCALE, HEIGHT * SCALE  # of a drawing
MARGIN = 128  # pixels around the picture that a turned or tilted phone may see
QUALITY = 82  # of the JPEG files
DASHBOARDS, PLATES, VINS, DAMAGES = 16, 12, 10, 12  # pictures of each style
EMBEDDED = 0.15  # share of the pictures that are pasted into their cell instead of named by a path
SEED = 20240305

TTF = "/usr/share/fonts/truetype"
OTF = "/usr/share/fonts/opentype"
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
PLATE_COLOURS = {  # GA 36: (above, below, ink); of a large new-energy vehicle (left, right, ink)
    "蓝": ("#2456c4", "#163c94", "#fafafa"),
    "黄": ("#f6be1e", "#dca00e", "#141410"),  # lorries of more than 4.5 t and coaches
    "绿": ("#f2faf4", "#3cbe6e", "#101412"),  # new energy, small
    "黄绿": ("#f2c226", "#46be64", "#101412"),  # new energy, large
}
CAR_PLATES = "蓝 绿 蓝 黄 绿 蓝 蓝 黄 蓝 绿 蓝 黄绿".split()  # of the pictures of each style but the lorry
LORRY_PLATES = "黄 黄绿 黄 蓝".split()
VIN_LETTERS = "ABCDEFGHJKLMNPRSTUVWXYZ"  # no I, O, Q
VIN_VALUES = dict(zip("ABCDEFGHJKLMNPRSTUVWXYZ", [*range(1, 9), *range(1, 6), 7, 9, *range(2, 10)]))
VIN_WEIGHTS = (8, 7, 6, 5, 4, 3, 2, 10, 0, 9, 8, 7, 6, 5, 4, 3, 2)
VIN_YEARS = "123456789ABCDEFGHJKLMNPRSTVWXY"  # the tenth character: 1 is 2001, A is 2010, Y is 2030
SEGMENTS = ["abcdef", "bc", "abged", "abgcd", "fgbc", "afgcd", "afgedc", "abc", "abcdefg", "abcdfg"]
UNREADABLE = "无法辨认"
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
CLAIM = "两张照片是同一辆车。只输出JSON，字段：车牌号、车牌颜色、里程数、单位、仪表盘状态、警示灯。"


# %% Drawing
def font(name: str, size: float) -> ImageFont.FreeTypeFont:
    """Return a font; sizes are in pixels of the finished picture."""
    return ImageFont.truetype(FONTS[name], round(size * SCALE))


def box(*numbers: float) -> tuple[float, ...]:
    """Return coordinates of the finished picture in pixels of the drawing."""
    return tuple(number * SCALE for number in numbers)


def circle(x: float, y: float, radius: float, flat: float = 1) -> tuple[float, ...]:
    """Return the box of a circle, or of an ellipse so much flatter."""
    return box(x - radius, y - flat * radius, x + radius, y + flat * radius)


def polar(x: float, y: float, radius: float, degrees: float) -> tuple[float, float]:
    """Return the point at a distance and an angle from another one."""
    return x + radius * math.cos(math.radians(degrees)), y + radius * math.sin(math.radians(degrees))


def write(draw, x, y, text, name, size, colour, anchor="mm", gap=0, edge=None) -> float:
    """Write a line, Chinese letters in the Chinese font, and return its width; the anchor is Pillow's (l, m, r + m).

    An edge is the colour of the light on the lower right of raised or punched letters.
    """
    letters = [(letter, font("cjk" if letter > "\u2e80" else name, size)) for letter in text]
    width = sum(face.getlength(letter) / SCALE + gap for letter, face in letters) - gap
    x -= {"l": 0, "m": width / 2, "r": width}[anchor[0]]
    for letter, face in letters:
        if edge:
            draw.text(box(x + 1.2, y + 1.2), letter, edge, font=face, anchor="lm")
        draw.text(box(x, y), letter, colour, font=face, anchor="lm")
        x += face.getlength(letter) / SCALE + gap
    return width


def gradient(top, bottom, size: tuple[int, int] = SIZE) -> Image.Image:
    """Return a vertical gradient of two colours in drawing size."""
    top, bottom = (np.array(ImageColor.getrgb(c) if isinstance(c, str) else c) for c in (top, bottom))
    ramp = np.linspace(0, 1, size[1])[:, None, None]
    return to_image(np.repeat(top * (1 - ramp) + bottom * ramp, size[0], 1))


def fill(image: Image.Image, shape: list | tuple, top, bottom) -> None:
    """Fill a polygon [(x, y), ...], or a box with round corners (x, y, x, y, radius), with a gradient."""
    mask = Image.new("L", image.size)
    if isinstance(shape, list):
        ImageDraw.Draw(mask).polygon([box(*point) for point in shape], fill=255)
    else:
        ImageDraw.Draw(mask).rounded_rectangle(box(*shape[:4]), shape[4] * SCALE, 255)
    area = left, up, right, down = mask.getbbox()
    image.paste(gradient(top, bottom, (right - left, down - up)), area, mask.crop(area))


def to_image(pixels: np.ndarray) -> Image.Image:
    """Return numbers from 0 to 255 as a picture."""
    return Image.fromarray(pixels.clip(0, 255).astype("uint8"))


def clouds(rng: random.Random, grain: float, size: tuple[int, int] = SIZE, wide: float = 1) -> np.ndarray:
    """Return a random field from 0 to 1 whose spots have so many pixels of the finished picture, or are wider."""
    shape = round(size[1] / grain / SCALE) + 3, round(size[0] / grain / SCALE / wide) + 3
    values = np.random.default_rng(rng.getrandbits(32)).random(shape, dtype="float32")
    return np.asarray(Image.fromarray(values).resize(size, Image.Resampling.BICUBIC)).clip(0, 1)


def cover(image: Image.Image, colour, share: np.ndarray) -> Image.Image:
    """Return a picture under a colour, or under another picture's pixels, that hides a share of each pixel."""
    share = share.clip(0, 1)[..., None]
    return to_image(np.asarray(image, "float32") * (1 - share) + np.asarray(colour, "float32") * share)


def widened(image: Image.Image, how: str) -> Image.Image:
    """Return a drawing with MARGIN around it, which repeats its edge or mirrors it (edge, symmetric)."""
    margin = MARGIN * SCALE, MARGIN * SCALE
    return Image.fromarray(np.pad(np.asarray(image), (margin, margin, (0, 0)), how))


def blur(image: Image.Image, radius: float) -> Image.Image:
    """Return a drawing blurred over pixels of the finished picture."""
    return image.filter(ImageFilter.GaussianBlur(radius * SCALE))


def shares(mask: Image.Image, radius: float) -> np.ndarray:
    """Return what a mask with blurred edges hides of each pixel, from 0 to 1."""
    return np.asarray(blur(mask, radius), "float32") / 255


def seven_segments(draw, x: float, y: float, text: str, height: float, colour, ghost=None) -> float:
    """Draw digits of seven segments and points, from the left, and return their width."""
    start, wide, thick = x, height * 0.52, max(2, round(height * SCALE / 9))
    for letter in text:
        if letter == ".":
            draw.rectangle(box(x, y + height - 2, x + 2.5, y + height + 0.5), colour)
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
    """Draw a round instrument: a hollow face in a bevelled rim, ticks, numbers and a needle at a share of its range."""
    draw.ellipse(circle(x, y, radius + 3), "#08080a")
    for i in range(14):
        draw.ellipse(circle(x, y + i / 3, radius * (1 - i / 30)), (34 - 2 * i, 34 - 2 * i, 37 - 2 * i))
    draw.ellipse(circle(x, y, radius), outline=rim, width=4 * SCALE)
    draw.arc(circle(x, y, radius), 170, 320, "#f0f0f0", SCALE)
    for i in range(4 * (len(numbers) - 1) + 1):
        angle, main = 140 + 260 * i / (4 * (len(numbers) - 1)), i % 4 == 0
        ends = (*polar(x, y, radius * (0.82 if main else 0.89), angle), *polar(x, y, radius * 0.94, angle))
        draw.line(box(*ends), fill=ink, width=SCALE * (2 if main else 1))
        if main:
            write(draw, *polar(x, y, radius * 0.68, angle), str(numbers[i // 4]), name, size, ink)
    pointer(draw, x, y, radius * 0.8, 140 + 260 * share, needle)


def pointer(draw, x, y, length, degrees, colour) -> None:
    """Draw a needle with its hub and its shadow."""
    for shift, shade in ((3, "#020203"), (0, colour)):
        sides = [polar(x, y + shift, 4, degrees + turn) for turn in (90, -90)]
        tip = polar(x, y + shift, length, degrees)
        draw.polygon([box(*point) for point in (*sides, tip)], fill=shade)
    draw.ellipse(circle(x, y, 9), "#1a1a1c", "#4c4c50", SCALE)


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
RED = "#ff3428"
AMBER = "#ffb014"
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
            draw.ellipse(circle(x + a * k, y + b * k, 1.6 * k), fill=colour)
        else:
            a, b, radius, *angles = values[0]
            around = circle(x + a * k, y + b * k, radius * k)
            draw.arc(around, *(angles or (0, 360)), fill=colour, width=width)


def lights(draw, names: list[str], x, y, size, step, down: bool = False, dark=None) -> None:
    """Draw the lit warning lights among unlit ones; with dark = None only the lit ones exist, as on a screen."""
    shown = names if dark is None else list(PICTOGRAMS)[:: 1 if len(names) > 1 else 2]
    shown = list(dict.fromkeys([*shown, *names]))[-7:] if dark else names
    for i, name in enumerate(shown):
        a, b = (x, y + i * step) if down else (x + i * step, y)
        pictogram(draw, name, a, b, size, COLOURS.get(name, AMBER) if name in names else dark)


# %% Dashboards
# Each takes (rng, odometer text, unit text, trip text, lights, speed share) and returns a picture in drawing size.
def speed_of(unit: str, share: float, km: int, mi: int) -> tuple[str, int, str]:
    """Return the speed at a share of the range, the range's end and their unit, which the odometer's goes with."""
    top, name = (mi, "mph") if unit[0] == "m" else (km, "km/h")
    return str(round(top * share)), top, name


def twin_dials(rng, odometer, unit, trip, lit, share):
    """Two white-on-black dials, the odometer on a grey LCD below."""
    image = gradient("#1c1c20", "#0a0a0c")
    draw = ImageDraw.Draw(image)
    dial(draw, 108, 124, 90, range(0, 9), share, "#78787d", "#ebebeb", "#e63228")
    dial(draw, 340, 124, 90, range(0, 241, 30), share * 0.8, "#78787d", "#ebebeb", "#e63228")
    write(draw, 108, 172, "x1000", "arial", 10, "#ebebeb")
    write(draw, 340, 172, "km/h", "arial", 13, "#ebebeb")
    fill(image, (90, 236, 358, 304, 6), "#8a9a8c", "#a8b6a6")
    draw.rounded_rectangle(box(90, 236, 358, 304), 6 * SCALE, None, "#2c2e30", 2 * SCALE)
    write(draw, 102, 250, f"TRIP {trip}", "arial", 13, "#1e281e", "lm", edge="#94a294")
    write(draw, 346, 281, f"{odometer} {unit}", "arial", 31, "#0f190f", "rm", edge="#90a090")
    lights(draw, lit, 100, 222, 22, 40, dark="#2c2c2e")
    return image


def one_dial(rng, odometer, unit, trip, lit, share):
    """One large dial with a screen in it, of an imported car that comes with miles or with kilometres."""
    image = gradient("#28221e", "#100e0c")
    draw = ImageDraw.Draw(image)
    _, top, per_hour = speed_of(unit, share, 220, 140)
    numbers = range(0, top + 1, 20)
    dial(draw, 224, 162, 146, numbers, share, "#be9f78", "#f0e1c8", "#ff781e", "gothic", 14)
    write(draw, 224, 106, per_hour, "gothic", 17, "#f0e1c8")
    fill(image, (122, 178, 326, 264, 14), "#15151b", "#09090c")
    draw.rounded_rectangle(box(122, 178, 326, 264), 14 * SCALE, None, "#be9f78", SCALE)
    write(draw, 224, 204, f"{odometer}{unit}", "gothic", 29, "#ffe6be")
    write(draw, 224, 243, f"A {trip}", "gothic", 15, "#c8b496")
    lights(draw, lit, 40, 44, 26, 52, down=True)
    return image


def drum(rng, odometer, unit, trip, lit, share):
    """A mechanical odometer: rolling drums in a window of an old speedometer."""
    image = gradient("#463e32", "#28231e")
    draw = ImageDraw.Draw(image)
    draw.pieslice(circle(224, 142, 204, 0.98), 180, 360, "#181614", "#8c8270", 3 * SCALE)
    for i in range(25):
        angle = 190 + 160 * i / 24
        ends = (*polar(224, 142, 184, angle), *polar(224, 142, 196, angle))
        draw.line(box(*ends), fill="#f0ebd2", width=SCALE)
        if i % 2 == 0:
            write(draw, *polar(224, 142, 165, angle), str(10 * i), "thin", 14, "#f0ebd2")
    write(draw, 224, 60, "km/h", "thin", 17, "#f0ebd2")
    pointer(draw, 224, 150, 140, 190 + 160 * share, "#dc1e14")
    digits = odometer.replace(",", "").replace(".", "").rjust(6, "0")
    left = 224 - len(digits) * 19
    draw.rectangle(box(left - 5, 174, 229 + len(digits) * 19 - 2, 238), "#0a0908", "#5a5244", 2 * SCALE)
    for i, digit in enumerate(digits):
        tenth, a = i == len(digits) - 1 and "." in odometer, left + 38 * i
        middle, rim = ("#f4f0e4", "#a8a498") if tenth else ("#26262a", "#050506")
        fill(image, (a, 180, a + 36, 206, 1), rim, middle)  # a drum is round
        fill(image, (a, 206, a + 36, 232, 1), middle, rim)
        colour = "#be1414" if tenth else "#f5f5f0"
        write(draw, a + 18, 206 + rng.uniform(-1.5, 1.5), digit, "sans", 36, colour)
    write(draw, 224, 252, unit, "thin", 20, "#f0ebd2")
    for i, digit in enumerate(trip.replace(".", "").rjust(4, "0")):
        fill(image, (184 + 20 * i, 272, 202 + 20 * i, 298, 1), "#3c3c3e", "#1c1c1e")
        write(draw, 193 + 20 * i, 285, digit, "thin", 17, "#e6e6e6")
    lights(draw, lit, 40, 276, 24, 34)
    return image


def blue_screen(rng, odometer, unit, trip, lit, share):
    """A digital cluster in blue: the speed in the middle, the odometer below on the left."""
    image = gradient("#061030", "#020614")
    draw = ImageDraw.Draw(image)
    for radius in (96, 104, 112):
        draw.arc(circle(224, 120, radius), 140, 400, "#145ac8", SCALE)
    draw.arc(circle(224, 120, 112), 140, 140 + 260 * share, "#3cc8ff", 6 * SCALE)
    for x, y in ((60, 236), (388, 236)):
        draw.line(box(x, y, 224 + (x - 224) * 0.5, 168), fill="#0e3c8c", width=2 * SCALE)
    write(draw, 224, 112, str(round(180 * share)), "thin", 62, "#ebf5ff")
    write(draw, 224, 158, "km/h", "thin", 15, "#96bee6")
    write(draw, 24, 262, f"ODO {odometer} {unit}", "sans", 27, "#ebf5ff", "lm")
    write(draw, 24, 296, f"小计 {trip}  AUTO 21°C", "sans", 15, "#78aadc", "lm")
    lights(draw, lit, 40, 34, 26, 48, down=True)
    return image


def segment_display(rng, odometer, unit, trip, lit, share):
    """Green or amber seven-segment digits of an import of the eighties, in miles or kilometres."""
    on, off = rng.choice([("#5aff82", "#0e2414"), ("#ffaa28", "#281a08")])
    image = gradient("#0a0c0a", "#040504")
    draw = ImageDraw.Draw(image)
    speed, _, per_hour = speed_of(unit, share, 160, 100)
    for i in range(24):
        draw.rectangle(box(30 + 16 * i, 92 - 2.2 * i, 41 + 16 * i, 104), on if i < 24 * share else off)
    seven_segments(draw, 40, 128, speed.rjust(3, "0"), 62, on, off)
    write(draw, 176, 178, per_hour, "thin", 18, on, "lm")
    width = seven_segments(draw, 40, 232, odometer.replace(",", ""), 34, on, off)
    write(draw, 52 + width, 258, unit, "arial", 20, on, "lm")
    seven_segments(draw, 320, 140, trip, 20, on, off)
    write(draw, 320, 176, "TRIP", "thin", 13, on, "lm")
    lights(draw, lit, 56, 292, 24, 40, dark="#1e201e")
    return image


def tablet(rng, odometer, unit, trip, lit, share):
    """A white tablet of an electric car with cards."""
    image = gradient("#d2d4d8", "#bec2c9")
    draw = ImageDraw.Draw(image)
    for right, low in ((214, 190), (430, 104)):
        card = (20, 20, right, low, 16) if right == 214 else (234, 20, right, low, 16)
        fill(image, (card[0] + 2, 24, right + 3, low + 4, 16), "#b4b8be", "#acb0b8")  # its shadow
        fill(image, card, "#e6e8ea", "#dadce0")
    write(draw, 116, 80, str(round(140 * share)), "thin", 66, "#1e2228")
    write(draw, 116, 124, "km/h", "thin", 15, "#787e86")
    write(draw, 116, 158, "P  R  N  D", "thin", 20, "#787e86")
    draw.rounded_rectangle(box(252, 44, 412, 60), 8 * SCALE, "#c4c8ce")
    draw.rounded_rectangle(box(252, 44, 252 + 160 * max(0.1, 1 - share), 60), 8 * SCALE, "#34be6e")
    write(draw, 252, 82, f"续航 {round(480 * max(0.1, 1 - share))} km", "thin", 15, "#50565e", "lm")
    write(draw, 26, 226, "总里程", "sans", 18, "#6e747c", "lm")
    write(draw, 26, 262, f"{odometer} {unit}", "thin", 36, "#14181e", "lm")
    write(draw, 26, 296, f"本次 {trip} {unit}", "thin", 14, "#787e86", "lm")
    lights(draw, lit, 260, 142, 30, 44)
    return image


def dot_matrix(rng, odometer, unit, trip, lit, share):
    """A lorry: an orange dot-matrix line under a row of lights and two gauges."""
    image = gradient("#2a2c2e", "#161618")
    draw = ImageDraw.Draw(image)
    theme = "#a0a0a4", "#ffffff", "#ff5a14", "thin", 11
    for x, numbers, name in ((76, range(0, 13, 2), "bar"), (372, range(0, 126, 25), "km/h")):
        dial(draw, x, 92, 62, numbers, share, *theme)
        write(draw, x, 128, name, "thin", 11, "#ffffff")
    lights(draw, lit, 149, 60, 22, 25, dark="#303234")
    fill(image, (40, 178, 408, 300, 4), "#280f02", "#3a1a06")
    text = Image.new("L", box(368, 122))
    pen = ImageDraw.Draw(text)
    write(pen, 16, 40, f"{odometer} {unit}", "typewriter", 40, 255, "lm")
    write(pen, 16, 94, f"TRIP1 {trip}", "typewriter", 22, 255, "lm")
    mask = np.asarray(text).copy()
    mask[:: 2 * SCALE] = 0
    mask[:, :: 2 * SCALE] = 0
    image.paste("#ff961e", box(40, 178), Image.fromarray(mask))
    return image


def close_up(rng, odometer, unit, trip, lit, share):
    """The odometer window close up, with the reset knob and the edge of a dial."""
    image = gradient("#24262a", "#141618")
    draw = ImageDraw.Draw(image)
    draw.arc(box(-160, -280, 608, 168), 20, 160, "#c8cdd2", 4 * SCALE)
    for i in range(33):
        (x, y), long = polar(0, 0, 1, 50 + 2.5 * i), 0.955 if i % 4 else 0.93
        ends = box(*(c for k in (0.975, long) for c in (224 + 376 * k * x, -56 + 218 * k * y)))
        draw.line(ends, fill="#e6e6eb", width=SCALE)
        if i % 4 == 0:
            write(draw, 224 + 326 * x, -56 + 180 * y, str(20 * (8 - i // 4)), "arial", 16, "#e6e6eb")
    write(draw, 224, 78, "km/h", "arial", 16, "#e6e6eb")
    fill(image, (40, 164, 408, 254, 3), "#a4ac92", "#bcc4a6")
    draw.rectangle(box(40, 164, 408, 254), None, "#3c3e3c", 3 * SCALE)
    write(draw, 392, 208, odometer, "mono", 42, "#181c14", "rm", edge="#9aa288")
    write(draw, 56, 184, unit, "arial", 18, "#181c14", "lm", edge="#9aa288")
    write(draw, 56, 234, trip, "mono", 17, "#32382c", "lm")
    for i in range(8):
        draw.ellipse(circle(378 - i / 2, 284 - i / 2, 26 - 2.5 * i), (40 + 9 * i, 42 + 9 * i, 46 + 9 * i))
    lights(draw, lit, 70, 284, 28, 44)
    return image


def red_sport(rng, odometer, unit, trip, lit, share):
    """An imported sports car: a central rev counter with the speed in it, the odometer on a strip at the foot."""
    image = gradient("#100406", "#280608")
    draw = ImageDraw.Draw(image)
    dial(draw, 224, 122, 110, range(0, 11), share, "#d21e1e", "#ffd2c8", "#ffffff", "gothic", 18)
    speed, _, per_hour = speed_of(unit, share, 240, 150)
    write(draw, 224, 186, f"{speed} {per_hour}", "condensed", 19, "#ffd2c8")
    fill(image, [(48, 306), (84, 248), (364, 248), (400, 306)], "#1a0a0c", "#080808")
    draw.line([box(*p) for p in ((48, 306), (84, 248), (364, 248), (400, 306))], "#d21e1e", 2 * SCALE)
    write(draw, 224, 271, f"{odometer} {unit}", "condensed", 32, "#fff5f0")
    write(draw, 224, 297, f"TRIP {trip}", "condensed", 13, "#dc968c")
    lights(draw, lit, 42, 42, 26, 46, down=True)
    return image


def motorcycle(rng, odometer, unit, trip, lit, share):
    """A motorcycle's negative LCD: a bar of revolutions, large digits, the handlebar before the road."""
    image = cover(gradient("#828e98", "#5c5e5a"), (54, 54, 52), 0.5 * clouds(rng, 5) * clouds(rng, 40))
    image = blur(image, 3)
    fill(image, [(-10, 226), (458, 168), (458, 196), (-10, 258)], "#3c3c40", "#0e0e10")
    fill(image, (46, 26, 402, 298, 36), "#3e4044", "#101012")
    fill(image, (54, 34, 394, 290, 30), "#16181c", "#1e2026")
    draw = ImageDraw.Draw(image)
    for i in range(18):
        draw.rectangle(box(84 + 16 * i, 56, 95 + 16 * i, 76), "#f0f6fa" if i < 18 * share else "#2c3036")
    write(draw, 130, 130, str(round(120 * share)), "narrow", 72, "#f0f6fa")
    write(draw, 190, 160, "km/h", "narrow", 18, "#bec8ce", "lm")
    write(draw, 250, 132, f"T {trip}", "narrow", 20, "#bec8ce", "lm")
    write(draw, 84, 216, odometer, "narrow", 42, "#f0f6fa", "lm")
    write(draw, 372, 222, unit, "narrow", 24, "#f0f6fa", "rm")
    lights(draw, lit, 100, 262, 24, 40)
    return image


def behind_glass(rng, image, bezel: bool) -> Image.Image:
    """Return a cluster with MARGIN around it: lit parts glow, a bezel casts its shadow, the glass mirrors and has dust."""
    image = widened(ImageChops.screen(image, blur(image, 6).point(lambda value: value // 4)), "edge")
    if bezel:
        frame, (right, low) = Image.new("L", image.size, 255), (WIDTH + MARGIN - 9, HEIGHT + MARGIN - 9)
        ImageDraw.Draw(frame).rounded_rectangle(box(MARGIN + 9, MARGIN + 9, right, low), 22 * SCALE, 0)
        plastic = rng.randint(30, 60) * (0.7 + 0.6 * clouds(rng, 1.2, image.size))[..., None] * np.ones(3)
        image = cover(cover(image, (0, 0, 0), 0.8 * shares(frame, 9)), plastic, shares(frame, 1))
    mirrored, x, wide = Image.new("L", image.size), rng.uniform(-80, 480), rng.uniform(40, 130)
    window = [(x, 0), (x + wide, 0), (x + wide - 140, HEIGHT + 2 * MARGIN), (x - 140, HEIGHT + 2 * MARGIN)]
    ImageDraw.Draw(mirrored).polygon([box(*point) for point in window], fill=rng.randint(8, 34))
    light = 255 * shares(mirrored, rng.uniform(2, 9)) * (0.5 + clouds(rng, 60, image.size))
    light = light + 34 * (clouds(rng, 1, image.size) > 0.985)  # dust
    return to_image(np.asarray(image, "float32") + light[..., None])


# %% Plates, VINs, bodies
def paintwork(rng, paint, relief: np.ndarray, dark: float = 1) -> Image.Image:
    """Return paint over a relief (pixels of the drawing towards the eye): lit from above, sky and ground mirrored in it.

    The horizon between them is where the eye sees a dent that is no more than a shadow elsewhere.
    """
    paint = np.array(ImageColor.getrgb(paint) if isinstance(paint, str) else paint)
    down, across = np.gradient(relief)
    seen = np.linspace(0, 1, SIZE[1])[:, None] - 0.55 * down + 0.2 * across + 0.05 * (clouds(rng, 200) - 0.5)
    light = np.interp(seen, (-0.3, 0.1, 0.36, 0.44, 0.6, 1.3), (1.3, 1.18, 1.04, 0.8, 0.84, 0.98))
    light = (light + 0.5 * down + 0.12 * across + 0.05 * (clouds(rng, 1) - 0.5)) * dark
    sky = 46 * dark * np.interp(seen, (-0.2, 0.05, 0.38, 0.42), (1, 0.5, 0.25, 0))
    return to_image(paint * light[..., None] + sky[..., None] * (0.9, 1, 1.12))


def shaped(shapes: list[tuple], soft: float = 7, height: float = 22) -> np.ndarray:
    """Return the relief of a body on which boxes (x, y, x, y) stand out with soft edges."""
    form = Image.new("L", SIZE)
    for shape in shapes:
        ImageDraw.Draw(form).rounded_rectangle(box(*shape), 6 * SCALE, 255)
    return shares(form, soft) * height


def lamp(image, points: list[tuple], top, bottom) -> None:
    """Draw a lamp in its dark seal, with a light in it."""
    x, y = (sum(values) / len(points) for values in zip(*points))
    fill(image, [(x + 1.07 * (a - x), y + 1.12 * (b - y)) for a, b in points], "#18181a", "#303034")
    fill(image, points, top, bottom)
    draw = ImageDraw.Draw(image)
    draw.ellipse(circle(x, y, 15), bottom, "#8c9094", SCALE)
    draw.ellipse(circle(x - 2, y - 2, 8), top)
    draw.ellipse(circle(x - 5, y - 6, 3), "#ffffff")


def grille(image, left, right, top, bottom) -> None:
    """Draw the slats of a radiator grille."""
    fill(image, (left, top, right, bottom, 5), "#0c0c0e", "#1c1c20")
    for y in range(top + 5, bottom - 4, 12):
        fill(image, (left + 6, y, right - 6, y + 5, 2), "#8c9096", "#34363a")


def character(image, letter: str, x: float, y: float, face: str, size: float, wide: float, ink, edge) -> None:
    """Draw a raised character of a plate around (x, y); all are of one width there, so wide ones are pressed."""
    mask = Image.new("L", box(2 * size, 2 * size))
    write(ImageDraw.Draw(mask), size, size, letter, face, size, 255)
    left, up, right, low = mask.getbbox()
    mask = mask.crop((left, up, right, low)).resize((min(right - left, round(wide * SCALE)), low - up))
    x, y = round(x * SCALE - mask.width / 2), round((y - size) * SCALE + up)
    image.paste(edge, (x + 2, y + 2), mask)
    image.paste(ink, (x, y), mask)


def plate(image, number: str, colour: str, face: str, double: bool, text: str) -> None:
    """Draw a plate into the middle of a picture, in two lines as at the back of lorries and coaches, and what is below."""
    top, bottom, ink = PLATE_COLOURS[colour]
    across, high = (140, 70) if double else (172 if len(number) == 7 else 184, 54)
    left, up, right, down = 224 - across, 166 - high, 224 + across, 166 + high
    draw, edge = ImageDraw.Draw(image), "#10307c" if colour == "蓝" else "#f4ecc0"
    fill(image, (left + 1, up + 4, right + 5, down + 6, 6), "#0c0c0e", "#0c0c0e")  # its shadow
    fill(image, (left, up, right, down, 6), *((bottom, bottom) if colour == "黄绿" else (top, bottom)))
    if colour == "黄绿":
        fill(image, (left, up, left + 112, down, 6), top, top)
    draw.rounded_rectangle(box(left + 4, up + 4, right - 4, down - 4), 5 * SCALE, None, ink, 2 * SCALE)
    for x in (left + 68, right - 68):
        for y in (up + 14,) if double else (up + 11, down - 11):
            draw.ellipse(circle(x, y, 4), "#c4c4c8", "#56565a", SCALE)
            draw.line(box(x - 2, y + 1, x + 2, y - 1), fill="#6a6a6e", width=SCALE)
    if double:
        write(draw, 224, up + 32, f"{number[0]}·{number[1]}", face, 40, ink, gap=8, edge=edge)
        start, step, y, size = left + 14, 50.5, up + 92, 66
    else:
        start, step, y, size = left + 129, (2 * across - 143) / (len(number) - 2), 166, 56
        for x, letter, big, wide in ((39, number[0], 50, 46), (91, number[1], size, 40)):
            character(image, letter, left + x, y, face, big, wide, ink, edge)
        draw.ellipse(circle(left + 121, y, 4), ink)
    for i, letter in enumerate(number[2:]):
        character(image, letter, start + step * (i + 0.5), y, face, size, 0.86 * step, ink, edge)
    write(draw, 224, 256, text, "sans", 26, "#e6e6dc" if "总" in text else "#28406c")


PLATE_STYLES = {  # paint, letters, which picture cannot be read
    "bumper": ("#a2a4a9", "arial", 3), "boot": ("#86161c", "condensed", 1), "wall": ("#c6c0b2", "sans", 5),
    "lorry": ("#2c5a44", "narrow", 1), "night": ("#3a3e48", "arial", 9),
}  # fmt: skip


def plate_picture(rng, number, colour, surround):
    """A plate on a car; the surround is what the style is: bumper, boot lid, a wall, a lorry, a car park at night."""
    coach = colour in ("黄", "黄绿") and surround not in ("lorry", "wall")
    paint, face, _ = PLATE_STYLES[surround]
    paint, dark = "#d4d2c8" if coach else paint, 0.4 if surround == "night" else 1
    text = f"核载 {rng.randint(35, 55)} 人" if coach and surround != "night" else ""
    if surround == "lorry":
        text = f"总质量 {rng.randint(2, 4) if colour == '蓝' else rng.randint(12, 49)} 吨"
        image = paintwork(rng, paint, shaped([(x, -20, x + 34, 340) for x in range(-4, 448, 56)], 4, 9))
    elif surround == "wall":
        image = cover(gradient(paint, "#a8a294"), (90, 84, 74), 0.5 * clouds(rng, 3) * clouds(rng, 30))
    else:
        image = paintwork(rng, paint, shaped([(-20, 96, 468, 268)]), dark)
    if surround in ("bumper", "night"):
        grille(image, 76, 372, 18, 90)
    elif surround == "boot":
        for left in (-4, 384):
            lamp(image, [(left, 34), (left + 68, 34), (left + 68, 96), (left, 96)], "#e83a2c", "#8c1410")
        ImageDraw.Draw(image).line(box(0, 16, 448, 16), fill="#1c0406", width=3 * SCALE)
    double = colour == "黄" and surround in ("boot", "lorry") and rng.random() < 0.6
    plate(image, number, colour, face, double, text)
    if surround == "night":  # the lamps of the car behind light up the plate
        y, x = np.indices(SIZE[::-1]) / SCALE
        light = 0.4 + 0.9 * np.exp(-(((x - 224) / 190) ** 2) - ((y - 166) / 70) ** 2)
        image = to_image(np.asarray(image, "float32") * light[..., None])
    if surround in ("bumper", "night"):
        glow = ("#fffdf2", "#ffeeb4") if surround == "night" else ("#dfe6ea", "#8c98a2")
        for left in (0, 392):
            lamp(image, [(left, 26), (left + 56, 26), (left + 56, 84), (left, 84)], *glow)
    glow = blur(image.point(lambda value: max(0, 2 * value - 330)), 14)
    return ImageChops.screen(image, glow) if surround == "night" else image


def vin_picture(rng, vin, year, surface):
    """A VIN as it is found: stamped in metal, printed on a sticker, behind the windscreen, on a riveted plate."""
    brushed = cover(gradient("#7e8284", "#5c6062"), (200, 204, 206), 0.3 * clouds(rng, 0.6, wide=40))
    if surface == "stamped":
        image = cover(brushed, (96, 62, 38), 0.8 * (clouds(rng, 26) * clouds(rng, 5) - 0.25))  # rust
        draw = ImageDraw.Draw(image)
        for i, letter in enumerate(f"*{vin}*"):  # struck letter by letter
            x, y = 35 + 21 * i, 160 + rng.uniform(-2, 2)
            write(draw, x, y, letter, "typewriter", 34, "#1e2022", edge="#d2d6d8")
    elif surface == "sticker":
        image = paintwork(rng, "#a0a2a6", shaped([]))
        fill(image, (22, 58, 426, 264, 5), "#fafaf8", "#ecebe4")
        draw = ImageDraw.Draw(image)
        draw.rectangle(box(28, 64, 420, 258), None, "#282828", SCALE)
        write(draw, 40, 86, f"制造年月 {year}.{rng.randint(1, 12):02d}", "arial", 18, "#1e1e1e", "lm")
        write(draw, 40, 118, "车辆识别代号", "arial", 18, "#1e1e1e", "lm")
        write(draw, 224, 158, vin, "arial", 33, "#0a0a0a", gap=0.5)
        x = 40
        while x < 404:
            bar = rng.choice([1, 2, 3])
            draw.rectangle(box(x, 194, x + bar, 244), "#0a0a0a")
            x += bar + rng.choice([1.5, 3, 4])
    elif surface == "windscreen":
        image = cover(gradient("#46545e", "#14181c"), (150, 170, 184), 0.6 * (clouds(rng, 70) - 0.4))  # sky
        fill(image, [(0, 80), (448, 30), (448, 62), (0, 116)], "#5c6c76", "#38444c")
        fill(image, (22, 134, 426, 190, 3), "#1a1a1c", "#0a0a0c")
        draw = ImageDraw.Draw(image)
        draw.rectangle(box(22, 134, 426, 190), None, "#626268", SCALE)
        write(draw, 224, 162, vin, "mono", 35, "#e4e4e0", gap=0.8)
    else:
        image = paintwork(rng, "#4a1c1e", shaped([(-20, 40, 468, 280)]))
        fill(image, (26, 74, 426, 256, 8), "#0c0606", "#0c0606")
        metal = Image.new("L", SIZE)
        ImageDraw.Draw(metal).rounded_rectangle(box(24, 70, 424, 250), 8 * SCALE, 255)
        image.paste(cover(brushed, (226, 222, 210), np.full(SIZE[::-1], 0.6)), (0, 0), metal)
        draw = ImageDraw.Draw(image)
        for x, y in ((40, 86), (408, 86), (40, 234), (408, 234)):
            for i in range(4):
                draw.ellipse(circle(x - i / 2, y - i / 2, 8 - 2 * i), (84 + 34 * i, 82 + 34 * i, 78 + 34 * i))
        made = f"型号 QX{rng.randint(1000, 9999)}  出厂 {year} 年 {rng.randint(1, 12)} 月"
        write(draw, 224, 112, made, "narrow", 22, "#282622")
        write(draw, 224, 166, vin, "narrow", 40, "#1e1c1a", gap=1.2, edge="#dcd8cc")
        write(draw, 224, 216, "清江汽车制造有限公司", "narrow", 20, "#282622")
    return image


PAINTS = {"white": (204, 206, 208), "silver": (140, 144, 150), "red": (142, 24, 28), "blue": (30, 58, 116)}
PARTS = ["前保险杠", "后保险杠", "引擎盖", "左前门", "右前门", "左前翼子板"]
NEIGHBOURS = [["引擎盖", "前保险杠"], ["左前翼子板", "左前门"]]  # seen in one picture
KINDS = ["划痕", "凹陷"]
DEGREES = ["轻微", "中等", "严重"]


def dent(rng, relief: np.ndarray, x: float, y: float, degree: str) -> np.ndarray:
    """Return a relief with a dent of 25, 45 or 75 pixels around a point of the finished picture."""
    rows, columns = np.indices(relief.shape) / SCALE
    size = (25, 45, 75)[DEGREES.index(degree)]
    far = np.hypot((columns - x) / size, (rows - y) / size / rng.uniform(0.6, 0.85))
    far = far + 0.5 * (clouds(rng, 0.6 * size) - 0.5)
    return relief - 0.75 * size * (1 - far).clip(0, 1) ** 1.4


def scratches(rng, image: Image.Image, x: float, y: float, degree: str) -> Image.Image:
    """Return a panel with one scratch, some long ones, or a field of deep ones down to the primer around a point."""
    strength = 1 + DEGREES.index(degree)
    lines, slope = Image.new("L", SIZE), rng.uniform(-0.25, 0.25)
    for i in range((1, 4, 9)[strength - 1]):
        a, b = x - 28 * (1 + strength) + rng.uniform(-10, 10), y + 6 * (i - strength) + rng.uniform(-3, 3)
        points = []
        for _ in range(6):
            points.append(box(a, b))
            step = rng.uniform(8, 14) * (1 + strength)
            a, b = a + step, b + slope * step + rng.uniform(-2, 2)
        ImageDraw.Draw(lines).line(points, 255, round(SCALE * (0.7 + 0.7 * strength)), "curve")
    mask = shares(lines, 0.5) * (0.45 + 1.2 * clouds(rng, 3, wide=4))
    image = cover(image, (24, 22, 22), 0.8 * np.roll(mask, 2 * SCALE, 0))
    image = cover(image, (226, 224, 218), mask)
    if strength == 3:  # the filler shows
        image = cover(image, (150, 146, 138), 1.4 * mask * (clouds(rng, 7) > 0.5))
    return image


def panel(rng, part: str, paint: tuple, hits: list[tuple]) -> Image.Image:
    """Draw a part of a car close enough to tell it, with its damages (kind, x, y, degree)."""
    fold = {"前保险杠": (-20, 122, 468, 232), "后保险杠": (-20, 116, 468, 262), "引擎盖": (104, 40, 344, 400)}
    relief = shaped([fold.get(part, (-20, 206, 468, 400))], 9, 6 if part == "引擎盖" else 26)
    for kind, *where in hits:
        relief = dent(rng, relief, *where) if kind == "凹陷" else relief
    image, gap = paintwork(rng, paint, relief), tuple(c // 5 for c in paint)
    draw = ImageDraw.Draw(image)
    if part == "前保险杠":
        grille(image, 120, 328, 18, 90)
        for x in (6, 352):
            lamp(image, [(x, 30), (x + 90, 40), (x + 84, 84), (x + 8, 78)], "#eef3f6", "#93a0aa")
        draw.line(box(0, 112, 448, 112), fill=gap, width=3 * SCALE)
        fill(image, (150, 246, 298, 300, 4), "#16181c", "#24262a")  # the place of the plate
    elif part == "后保险杠":
        for x in (-2, 360):
            lamp(image, [(x, 8), (x + 90, 8), (x + 90, 78), (x, 78)], "#e83a2c", "#7c100c")
        draw.line(box(0, 106, 448, 106), fill=gap, width=3 * SCALE)
        fill(image, (0, 270, 448, 330, 1), "#1c1c1e", "#28282c")
        for x in (88, 360):
            draw.ellipse(circle(x, 294, 27, 0.55), "#060607", "#a6a8ac", 4 * SCALE)
    elif part == "引擎盖":
        fill(image, [(-2, -2), (450, -2), (450, 62), (-2, 62)], "#8ea2b0", "#2c3a44")
        draw.line([box(*p) for p in ((60, 58), (300, 20))], "#0c0c0e", 3 * SCALE)  # a wiper
        draw.line(box(0, 66, 448, 66), fill=gap, width=4 * SCALE)
    elif part in ("左前门", "右前门"):
        fill(image, [(26, -2), (428, -2), (428, 88), (64, 88)], "#7c90a0", "#1c262e")
        draw.line([box(*p) for p in ((26, -2), (64, 90), (430, 90))], "#0e0e10", 4 * SCALE)
        for x in (14, 436):
            draw.line(box(x, 0, x, 320), fill=gap, width=4 * SCALE)
        fill(image, (330, 116, 418, 140, 10), gap, gap)
        fill(image, (334, 114, 414, 130, 8), tuple(min(255, c + 60) for c in paint), paint)
        fill(image, [(20, 58), (82, 64), (78, 106), (26, 104)], "#3c3e42", "#101012")  # the mirror
    else:
        draw.ellipse(circle(350, 380, 166), "#060607")
        draw.ellipse(circle(350, 384, 148), "#1a1a1c")
        draw.ellipse(circle(350, 384, 112), "#7e8288", "#c0c4c8", 3 * SCALE)
        for angle in range(18, 378, 36):
            draw.line(box(*polar(350, 384, 30, angle), *polar(350, 384, 108, angle)), "#34363a", 9 * SCALE)
        lamp(image, [(-6, 40), (66, 54), (58, 108), (-6, 100)], "#eef3f6", "#93a0aa")
        draw.line([box(*p) for p in ((0, 22), (330, 12), (448, 14))], gap, 3 * SCALE)
    for kind, *where in hits:
        image = scratches(rng, image, *where) if kind == "划痕" else image
    return image.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if part == "右前门" else image


def damaged(rng, parts: list[str], paint: tuple, kinds: list[str], degree: str) -> Image.Image:
    """Draw a part with damages beside each other, or two neighbouring parts with a damage each."""
    if len(parts) == 1:
        x, y = rng.uniform(150, 300), rng.uniform(155, 190)
        places = [x] if len(kinds) == 1 else [rng.uniform(125, 140), rng.uniform(305, 330)]
        return panel(rng, parts[0], paint, [(kind, x, y, degree) for kind, x in zip(kinds, places)])
    beside = parts[0] == "左前翼子板"
    places = [(200, 130), (110, 170)] if beside else [(rng.uniform(140, 300), 104), (230, 148)]
    hits = [[(kind, *place, degree)] for kind, place in zip(kinds, places)]
    first, second = (panel(rng, part, paint, hit) for part, hit in zip(parts, hits))
    area, move = (box(110, 0, 334, 320), box(-224, 0)) if beside else (box(0, 0, 448, 140), box(0, -124))
    image = second.transform(SIZE, Image.Transform.AFFINE, (1, 0, move[0], 0, 1, move[1]))
    image.paste(first.crop(area), (0, 0))
    return image


# %% Photographing
def spoiled(rng, image: Image.Image, area: tuple, how: str) -> Image.Image:
    """Return the drawing with an area (x, y, x, y) that nobody can read, under mud, in a glare or behind fogged glass."""
    if how not in ("mud", "glare", "fog"):
        return image
    left, top, right, bottom = area
    high, mask = bottom - top, Image.new("L", SIZE)
    grow = 0.7 * high if how == "glare" else 0.25 * high
    pen, corners = ImageDraw.Draw(mask), box(left - grow, top - grow, right + grow, bottom + grow)
    pen.ellipse(corners, 255) if how == "glare" else pen.rounded_rectangle(corners, high * SCALE / 2, 255)
    mask = shares(mask, 0.4 * high)
    if how == "mud":
        earth = np.array((104, 82, 58)) * (0.55 + 0.7 * clouds(rng, 3) * clouds(rng, 12))[..., None]
        return cover(image, earth, (1.1 * mask + 0.72 * (clouds(rng, 10) - 0.5) - 0.3) / 0.12)
    if how == "glare":
        return cover(image, (255, 253, 246), 2.2 * mask)
    return cover(cover(image, blur(image, 0.45 * high), 2 * mask), (176, 180, 184), 0.5 * mask)


CAMERAS = {  # of each kind: turned by degrees, tilted by a share of the distance per pixel, far and near
    "dashboard": (3, 2.5e-4, 0.97, 1.05), "plate": (3.5, 3e-4, 1, 1.12),
    "vin": (2, 2e-4, 0.98, 1.08), "damage": (3.5, 4e-4, 1.03, 1.12),
}  # fmt: skip


def camera(rng, keep: tuple, aim: tuple | None, kind: str) -> np.ndarray:
    """Return the matrix from the drawing to the picture of a phone that is turned, tilted, near or far.

    The box `keep` stays in the picture, unless the phone aims (zoom, x, y) at something else.
    """
    middle = np.array([[1, 0, -WIDTH / 2], [0, 1, -HEIGHT / 2], [0, 0, 1]])
    turn, tilt, far, near = CAMERAS[kind]
    while True:
        angle = math.radians(rng.uniform(-turn, turn) / (3 if aim else 1))
        zoom, x, y = aim or (rng.uniform(far, near), rng.uniform(-12, 12), rng.uniform(-9, 9))
        c, s = zoom * math.cos(angle), zoom * math.sin(angle)
        tilts = rng.uniform(-tilt, tilt), rng.uniform(-tilt, tilt)
        lens = [[c, -s, x], [s, c * rng.uniform(0.94, 1), y], [*tilts, 1]]
        view = np.linalg.inv(middle) @ lens @ middle
        left, top, right, bottom = keep
        x, y, depth = view @ [[left, right, right, left], [top, top, bottom, bottom], [1, 1, 1, 1]]
        x, y = abs(x / depth - WIDTH / 2), abs(y / depth - HEIGHT / 2)
        if aim or (x.max() < WIDTH / 2 - 5 and y.max() < HEIGHT / 2 - 5):
            return view


def photograph(rng, image, kind: str, keep: tuple, area: tuple = (), how: str = "") -> Image.Image:
    """Return the drawing as a phone takes it and a chat program sends it: in perspective, uneven light, dirt and noise.

    The area cannot be read where `how` says blur or cut; spoiled() did the rest before.
    """
    glass, aim = kind == "dashboard", None
    if how == "cut":  # half of a plate or VIN is out of the picture, the foot of a cluster
        aim = (1, 0, HEIGHT - area[1] + 12) if glass else (1.6, 126 * rng.choice((-1, 1)), 0)
    image = image if glass else widened(image, "symmetric")
    uneven = rng.uniform(0.05, 0.2) if glass else rng.uniform(0.15, 0.4)
    light = 1 + uneven * (clouds(rng, 260, image.size) - 0.6)
    if not glass:  # dust of the road, more of it below
        low = np.linspace(0.2, 1, image.height)[:, None] * rng.uniform(0, 0.55) * (how != "glare")
        image = cover(image, (112, 98, 80), low * clouds(rng, 40, image.size) * clouds(rng, 3, image.size))
    image = to_image(np.asarray(image) * light[..., None])
    drawing = np.array([[SCALE, 0, SCALE * MARGIN], [0, SCALE, SCALE * MARGIN], [0, 0, 1]])
    back = drawing @ np.linalg.inv(camera(rng, keep, aim, kind)) @ np.diag([1 / SCALE, 1 / SCALE, 1])
    back = (back / back[2, 2]).flatten()[:8]
    image = image.transform(SIZE, Image.Transform.PERSPECTIVE, tuple(back), Image.Resampling.BICUBIC)
    image = image.resize((WIDTH, HEIGHT), Image.Resampling.LANCZOS)
    if how == "blur":
        image = blur(image, 0.12 * (area[3] - area[1]))
    elif rng.random() < 0.3:
        image = blur(image, rng.uniform(0.15, 0.4))
    y, x = (np.indices((HEIGHT, WIDTH)) - np.array([HEIGHT, WIDTH])[:, None, None] / 2) / WIDTH * 2
    gain = rng.uniform(0.8, 1.15)
    pixels = np.asarray(image, "float32") * [gain * rng.uniform(0.96, 1.04) for _ in range(3)]
    pixels = pixels * (1 - rng.uniform(0, 0.2) * (x**2 + y**2))[..., None]  # darker in the corners
    if rng.random() < 0.3:  # a lamp, or the flash
        far = np.hypot(x - rng.uniform(-1, 1), 2 * y - rng.uniform(-1, 1)) / rng.uniform(0.15, 0.4)
        pixels += rng.uniform(20, 70) * np.exp(-(far**2))[..., None]
    noise = np.random.default_rng(rng.getrandbits(32)).normal(0, rng.choice([1, 2, 4, 7]), pixels.shape)
    image = to_image(pixels + noise * (0.6 + pixels / 400))
    return Image.open(jpeg(image, rng.choice([50, 65, 80]))).convert("RGB")


# %% Facts
def odometer(rng: random.Random, miles: bool) -> tuple[str, str, str, dict]:
    """Return (odometer, unit, trip) as shown and the answer; the answer's number has no comma."""
    ranges = [(100, 9999), (10_000, 99_999), (10_000, 99_999), (100_000, 320_000)]
    number, form = rng.randint(*rng.choice(ranges)), rng.random()
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


def vin_number(rng: random.Random, year: int) -> str:
    """Return an invented Chinese VIN of a model year from 2001 to 2030, with a valid check digit."""
    letters = [rng.choice(VIN_LETTERS + "0123456789") for _ in range(17)]
    letters[0], letters[9] = "L", VIN_YEARS[year - 2001]  # L: China
    letters[11:] = [rng.choice("0123456789") for _ in range(6)]
    vin = "".join(letters)
    return vin[:8] + check_digit(vin) + vin[9:]


def plate_number(rng: random.Random, colour: str) -> str:
    """Return an invented plate of GA 36: five characters with at most two letters, six for new energy (D or F)."""
    head, digits = rng.choice(PROVINCES) + rng.choice(PLATE_LETTERS), f"{rng.randint(0, 99999):05d}"
    if colour == "绿":
        return head + rng.choice("DF") + rng.choice(PLATE_LETTERS + "0123456789" * 3) + digits[1:]
    if colour == "黄绿":
        return head + digits + rng.choice("DF")
    tail = list(digits)
    for place in rng.sample(range(5), rng.choice([0, 1, 1, 2])):
        tail[place] = rng.choice(PLATE_LETTERS)
    return head + "".join(tail)


HOW = {  # one picture of each style cannot be read
    twin_dials: "cut", one_dial: "glare", drum: "glare", blue_screen: "glare", segment_display: "fog",
    tablet: "cut", dot_matrix: "fog", close_up: "glare", red_sport: "cut", motorcycle: "mud",
    "bumper": "mud", "boot": "glare", "wall": "cut", "lorry": "mud", "night": "blur",
    "stamped": "mud", "sticker": "cut", "windscreen": "glare", "riveted": "blur",
}  # fmt: skip
IMPORTED = (one_dial, segment_display, red_sport)  # come with a speedometer in mph or in km/h
LATIN = (drum, segment_display, motorcycle)  # have no Chinese letters


def dashboards(rng: random.Random):
    """Yield (kind, style, picture, answer) of the dashboards."""
    for style, i in itertools.product(filter(callable, HOW), range(DASHBOARDS)):
        how, area = HOW[style] if i == 7 else "", ()
        shown, unit, trip, answer = odometer(rng, style in IMPORTED and i % 3 != 0)
        if style in LATIN:
            unit = "mi" if answer["单位"] == "英里" else "km"
        lit = rng.sample(list(PICTOGRAMS), (0, 1, 0, 2, 1)[i % 5])
        rest, state = (unit, trip, lit, rng.uniform(0, 0.7)), rng.getstate()
        image = style(rng, shown, *rest)
        if how:  # the number is where other digits make a difference
            rng.setstate(state)
            other = style(rng, shown.translate(str.maketrans("0123456789", "8365092147")), *rest)
            area = tuple(value / SCALE for value in ImageChops.difference(image, other).getbbox())
            answer["里程数"] = UNREADABLE
        image = behind_glass(rng, spoiled(rng, image, area, how), style not in (close_up, motorcycle))
        image = photograph(rng, image, "dashboard", (20, 20, WIDTH - 20, HEIGHT - 14), area, how)
        answer |= {"仪表盘状态": "异常" if lit else "正常", "警示灯": lit}
        yield "dashboard", style.__name__, image, answer


def plates(rng: random.Random):
    """Yield (kind, style, picture, answer) of the plates."""
    for surround, i in itertools.product(PLATE_STYLES, range(PLATES)):
        colour, how = CAR_PLATES[i], HOW[surround] if i == PLATE_STYLES[surround][2] else ""
        colour, area = LORRY_PLATES[i % 4] if surround == "lorry" else colour, (100, 142, 350, 192)
        number = plate_number(rng, colour)
        image = spoiled(rng, plate_picture(rng, number, colour, surround), area, how)
        image = photograph(rng, image, "plate", (40, 90, 408, 242), area, how)
        answer = {"车牌号": UNREADABLE if how else number, "车牌颜色": colour}
        yield "plate", f"plate_{surround}", image, answer


def vins(rng: random.Random):
    """Yield (kind, style, picture, answer) of the VINs."""
    for surface, i in itertools.product(("stamped", "sticker", "windscreen", "riveted"), range(VINS)):
        year, how, area = rng.randint(2005, 2024), HOW[surface] if i == 6 else "", (60, 142, 390, 180)
        vin = vin_number(rng, year)
        image = spoiled(rng, vin_picture(rng, vin, year, surface), area, how)
        image = photograph(rng, image, "vin", (22, 120, 426, 200), area, how)
        yield "vin", f"vin_{surface}", image, {"VIN": UNREADABLE if how else vin}


def damages(rng: random.Random):
    """Yield (kind, style, picture, answer) of the bodies: without a damage, with one, or with two of one degree."""
    for name, paint in PAINTS.items():
        plans = rng.sample(["none", "both", "both", "neighbours"] + ["one"] * (DAMAGES - 4), DAMAGES)
        for i, plan in enumerate(plans):
            parts, kinds, degree = [PARTS[i % 6]], [rng.choice(KINDS)], rng.choice(DEGREES)
            if plan in ("both", "neighbours"):
                degree = rng.choice(DEGREES[:2])
                kinds = KINDS if plan == "both" else rng.choices(KINDS, k=2)
            parts = rng.choice(NEIGHBOURS) if plan == "neighbours" else parts
            kinds = [] if plan == "none" else kinds
            shade = rng.randint(-14, 14)
            tone = tuple(c + shade + rng.randint(-4, 4) for c in paint)
            image = photograph(rng, damaged(rng, parts, tone, kinds, degree), "damage", (44, 44, 404, 276))
            values = (parts, list(dict.fromkeys(kinds)), [degree]) if kinds else (["无"], ["无损伤"], ["无"])
            values = [value if len(value) > 1 else value[0] for value in values]
            yield "damage", f"paint_{name}", image, dict(zip(("损伤部位", "损伤类型", "损伤程度"), values))


# %% Sheet
def jpeg(image: Image.Image, quality: int = QUALITY) -> BytesIO:
    """Return a picture as a JPEG file in memory."""
    file = BytesIO()
    image.save(file, "JPEG", quality=quality)
    return file


rng = random.Random(SEED)
shutil.rmtree(FOLDER / "pictures", ignore_errors=True)
(FOLDER / "pictures").mkdir(parents=True)
rows = []
drawn = (record for group in (dashboards, plates, vins, damages) for record in group(rng))
for number, (kind, style, image, answer) in enumerate(drawn, 1):
    row = {"kind": kind, "style": style, "images": {number: image}, "answer": answer}
    rows.append(row | {"prompt": rng.choice(PROMPTS[kind])})
cars = [row for row in rows if row["kind"] == "dashboard" and row["style"] != "motorcycle"]
for first in rng.sample(cars, 12):  # claims: two photos of one car in a row
    colour = {"tablet": "绿", "dot_matrix": "黄"}.get(first["style"], "蓝")
    fitting = [row for row in rows if row["kind"] == "plate" and row["answer"]["车牌颜色"] == colour]
    second = rng.choice(fitting)
    rows = [row for row in rows if row is not first and row is not second]
    claim = {"kind": "claim", "style": f"{first['style']}+{second['style']}", "prompt": CLAIM}
    claim |= {"images": first["images"] | second["images"], "answer": second["answer"] | first["answer"]}
    rows.append(claim)
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
        pasted = SheetImage(jpeg(*row["images"].values()))
        pasted.width, pasted.height = 112, 80
        sheet.add_image(pasted, f"A{place}")
        sheet.row_dimensions[place].height = 64
    else:
        for number, image in row["images"].items():
            path = FOLDER / "pictures" / f"{number:03d}.jpg"
            path.write_bytes(jpeg(image).getvalue())
            paths.append(f"pictures/{path.name}")
        sheet.cell(place, 1, "\n".join(paths)).alignment = Alignment(wrap_text=True)
sheet.freeze_panes = "A2"
book.save(FOLDER / "qwen-vl-train.xlsx")

# %% Check
size = sum(path.stat().st_size for path in FOLDER.rglob("*") if path.is_file()) / 2**20
kinds, styles = dict(Counter(row["kind"] for row in rows)), len({row["style"] for row in rows})
print(f"{len(rows)} rows {kinds}, {styles} styles, {size:.1f} MB in {FOLDER.name}")
