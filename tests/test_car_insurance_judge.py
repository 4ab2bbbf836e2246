"""What a model read from a photo: the scores, and the sheets and the report that any text of a model must pass."""

import ast
import base64
import http.server
import json
import os
import subprocess
import sys
import threading
import time
import warnings
from io import BytesIO
from urllib.request import urlopen

import numpy as np
import pytest
from conftest import ROOT, constants_of
from hypothesis import given, settings
from hypothesis import strategies as st
from openpyxl import load_workbook
from PIL import Image

PROGRAM = "data/car_insurance/judge.py"
ANSWER = {"里程数": 12345, "单位": "公里", "仪表盘状态": "正常", "警示灯": []}
GOOD = json.dumps(ANSWER, ensure_ascii=False)


@pytest.fixture(scope="module")
def program(functions):
    return functions(PROGRAM)


# %% Score
@pytest.mark.parametrize("value,meant", [
    (12345, 12345.0), ("12345", 12345.0), ("12,345", 12345.0), ("１２，３４５", 12345.0), (" 12 345 ", 12345.0),
    ("12345公里", 12345.0), ("12,345 km", 12345.0), ("12345.6", 12345.6), (12345.6, 12345.6), ("012345", 12345.0),
    ("12,34", "12,34"), ("-5", "-5"), ("km", "公里"), ("KM", "公里"), ("千米", "公里"), ("Miles", "英里"), ("mi", "英里"),
    ("京A·12345", "京A12345"), ("京a 12345", "京A12345"), ("京A-12345", "京A12345"), ("正常", "正常"), (None, "NONE"),
    (True, "TRUE"), (float("nan"), "NAN"), ([], frozenset()), (["无"], frozenset()), (["ABS灯", ""], frozenset({"ABS灯"})),
])  # fmt: skip
def test_normal(program, value, meant):
    assert program.normal(value) == meant


# prediction, reference, field_accuracy
FIELDS = [
    (ANSWER, ANSWER, 1.0),
    (GOOD, ANSWER, 1.0),
    (f"```json\n{GOOD}\n```", ANSWER, 1.0),
    (f"好的：{GOOD}。", ANSWER, 1.0),
    (f"{{见下}} {GOOD}", ANSWER, 1.0),
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
    ({"VIN": ["LSVAA49J132047371"]}, {"VIN": "LSVAA49J132047371"}, 0.0),
    ({"VIN": {"a": 1}}, {"VIN": "LSVAA49J132047371"}, 0.0),
]  # fmt: skip


@pytest.mark.parametrize("told,wanted,share", FIELDS)
def test_field_accuracy(program, told, wanted, share):
    scores = program.field_accuracy([told], [wanted])
    assert scores["field_accuracy"] == pytest.approx(share)
    assert scores["json_rate"] == float(isinstance(told, dict) or program.parse_json(told) is not None)


def test_mileage_plate_and_vin_errors(program):
    told = [{"里程数": "11,000"}, {"里程数": "?"}, {"车牌号": "京A1234S"}, {"VIN": None}]
    wanted = [{"里程数": 10000}, {"里程数": 500}, {"车牌号": "京A12345"}, {"VIN": "L" * 17}]
    scores = program.field_accuracy(told, wanted)
    assert scores["mileage_accuracy"] == 0 and scores["mileage_error"] == pytest.approx((0.1 + 1) / 2)
    assert scores["plate_error_rate"] == pytest.approx(1 / 7) and scores["vin_error_rate"] == 1
    assert "mileage_error" not in program.field_accuracy([{}], [{"VIN": "L"}])
    with pytest.raises(ValueError):
        program.field_accuracy([], [{"VIN": "L"}])


@pytest.mark.parametrize("told,wanted,error", [
    ("无法辨认", "无法辨认", 0.0), (12345, "无法辨认", 1.0), (None, "无法辨认", 1.0), ("无法辨认", 12345, 1.0), ("12,345", 12345, 0.0),
])  # fmt: skip
def test_an_odometer_that_nobody_can_read_is_right_when_it_is_said(program, told, wanted, error):
    scores = program.field_accuracy([{"里程数": told}], [{"里程数": wanted}])
    assert scores["mileage_error"] == error and scores["mileage_accuracy"] == 1 - error


@given(st.text(alphabet="ABC123", max_size=24), st.text(alphabet="ABC123", min_size=1, max_size=8))
def test_error_rate_is_a_distance(functions, told, wanted):
    rate = functions(PROGRAM).error_rate
    assert 0 <= rate(told, wanted) <= 1 and (rate(told, wanted) == 0) == (told == wanted)
    assert abs(len(told) - len(wanted)) <= rate(told, wanted) * len(wanted) + 1e-9 or rate(told, wanted) == 1


@pytest.mark.parametrize("answer,words", [
    (ANSWER, "里程数：12,345 公里，仪表盘状态正常，警示灯：无。"),
    ({"里程数": 1234.5, "单位": "英里", "警示灯": ["ABS灯", "胎压灯"]}, "里程数：1,234.5 英里，警示灯：ABS灯、胎压灯。"),
    ({"车牌号": "京A12345", "车牌颜色": "蓝"}, "车牌号：京A12345，车牌颜色：蓝。"),
    ({"单位": "公里"}, "单位：公里。"),
])  # fmt: skip
def test_sentence(program, answer, words):
    assert program.sentence(answer) == words


JSON = st.recursive(
    st.text() | st.integers() | st.floats() | st.booleans() | st.none(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
)


@given(JSON)
def test_the_scorer_and_the_sheet_take_anything(functions, value):
    module = functions(PROGRAM)
    for told in (value, {"里程数": value, "警示灯": value, "VIN": value}, json.dumps(value)):
        scores = module.field_accuracy([told], [ANSWER | {"VIN": "L"}])
        assert all(0 <= score <= 1 for score in scores.values())
    assert isinstance(module.sentence({"里程数": value}), str)
    cell = module.neutral(value)
    assert cell is None or isinstance(cell, (bool, int, float)) or cell[:1] not in ("=", "+", "-", "@")
    assert not isinstance(cell, str) or (len(cell) < 32_768 and not module.CONTROL.search(cell))


@pytest.mark.parametrize("text,found", [
    ('{"a": 1}', {"a": 1}), ('{ \n"a": 1}', {"a": 1}), ("{}", {}), ('x {"a": 1} {"b": 2}', {"a": 1}), ('{a} {"b": 2}', {"b": 2}),
    ('{"a": {"b": 1}', {"b": 1}), ("{" * 500 + '"a": 1}', {"a": 1}), ("{'a': 1}", None), ("[]", None), (None, None), (5, None),
    ('{"a": ' + "9" * 5000 + "}", None), ('{"a": ' + "9" * 400 + "}", {"a": int("9" * 400)}),
    ('{"a": ' + "[" * 300 + "]" * 300 + "}", None), ('{"a": ' + "[" * 5000 + "]" * 5000 + "}", None),
])  # fmt: skip
def test_parse_json(program, text, found):
    assert program.parse_json(text) == found


UNITS = [
    "{",
    '{"',
    '{"a":',
    '{"a":[',
    '{"\\"',
    '{"a":"{',
    '{"a":1,',
    '{"a":"b" ',
    "{'",
    "[",
    "9",
    "{ ",
    "1,",
    "-a",
    "·",
    "`",
    "\\",
    "$",
    "=",
    "\x1b",
    "京",
]


@pytest.mark.parametrize("unit", UNITS)
def test_scoring_is_linear(program, unit):
    text = unit * (100_000 // len(unit))
    start = time.process_time()
    for told in (text, '{"a": 1, ' + text, {"里程数": text, "VIN": text, "车牌号": text, "警示灯": text}):
        program.field_accuracy(
            [told], [{"里程数": 5, "VIN": "L" * 17, "车牌号": "京A12345", "警示灯": ["ABS灯"]}]
        )
    program.neutral(text), program.fenced(text), program.sentence({"里程数": text}), program.fit(text, 60)
    assert time.process_time() - start < 2.5


# %% Sheets and report
@pytest.mark.parametrize("value,cell", [
    ("=1", "'=1"), ("+1", "'+1"), ("-1", "'-1"), ("@a", "'@a"), (" =1", "' =1"), ("\t=1", "'\t=1"), ("1=1", "1=1"), ("＝1", "'＝1"),
    (-1, -1), (None, None), (True, True), (1.5, 1.5), (["=1", "b"], "'=1、b"), ({"a": 1}, '{"a": 1}'), ("京A", "京A"), ("", ""),
    (10**400, "1" + "0" * 400), (-(10**400), "'-1" + "0" * 400), (float("nan"), "nan"), (float("inf"), "inf"),
    ("a\x07b\ud83d\ufffe", "a\ufffdb\ufffd\ufffd"), ("\x07=1", "\ufffd=1"),
])  # fmt: skip
def test_neutral(program, value, cell):
    assert program.neutral(value) == cell


HOSTILE = [
    "=cmd|'/c calc'!A1", "\x00\x07\x1b[31m", "\ud83d", "\ufffe\uffff", "$\\frac{1}{0}$ $", "\\", "a" * 100_000, "```\n# out\n<img src=x>\n````",
    '{"里程数": ' + "9" * 400 + "}", '{"里程数": ' + "9" * 5000 + "}", '{"里程数": NaN, "VIN": Infinity}', '{"VIN": "$x$ \\\\ \\u0007 \\ud83d"}',
    '{"里程数": -5, "VIN": "@SUM(A1)", "警示灯": ["+x"], "=1": 2}', '{"警示灯": [[["a"]]], "VIN": {"a": {"b": 1}}}', "\u2028\u2029\x85", "", "null", "😀🚗",
]  # fmt: skip


def write_run(folder, texts, names=None, metrics=None, **more):
    """Write what a run leaves: answers, two photos of which one is upright, and perhaps metrics."""
    folder.mkdir(exist_ok=True)
    Image.new("RGB", (64, 48), "navy").save(folder / "one.jpg")
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (64, 48), "teal").save(folder / "two.webp", exif=exif)
    reference = {**ANSWER, "VIN": "L" * 17, "=1+1": "x"}
    with (folder / "answers.jsonl").open("w", encoding="utf-8") as file:
        for number, text in enumerate(texts):
            row = {
                "input": f"=读第{number}张",
                "reference": json.dumps(reference, ensure_ascii=False),
                "before": "{}",
                "after": text,
            }
            row |= {
                "image": ["one.jpg", "two.webp"] if names is None else names,
                "style": "a+b",
                "prompt": [],
                **more,
            }
            file.write(json.dumps(row) + "\n\n")
    if metrics is not None:
        (folder / "metrics.json").write_text(json.dumps(metrics), encoding="utf-8")
    return folder


def test_whatever_a_model_writes_ends_in_sheets_and_a_report(program, tmp_path):
    folder = write_run(tmp_path / "run", HOSTILE)
    start = time.process_time()
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # matplotlib warns of every letter that its fonts lack
        warnings.filterwarnings("ignore", category=RuntimeWarning)  # scipy, of rows that are all alike
        table = program.judge(folder)
    assert time.process_time() - start < 30
    assert "field_accuracy" in table and table in (folder / "report.md").read_text(encoding="utf-8")
    sheet = load_workbook(folder / "predictions.xlsx").active
    assert sheet.max_row == len(HOSTILE) + 1 and len(sheet._images) == len(HOSTILE)
    cells = [cell for line in sheet.iter_rows() for cell in line if cell.value is not None]
    assert [cell.value for cell in cells if cell.data_type not in "sn"] == []
    texts = [cell.value for cell in cells if isinstance(cell.value, str)]
    assert [text for text in texts if text.lstrip()[:1] in tuple("=+-@")] == []
    assert {"'=1+1 (predicted)", "'@SUM(A1)", "'+x", "'=读第0张", "9" * 400} <= set(texts)
    assert -5 in [cell.value for cell in cells], "a number is no formula"
    with Image.open(folder / "contact_sheet.png") as image:
        assert image.width > 1000 and image.height > 1000


def test_the_report_holds_model_text_in_fences(program, tmp_path):
    texts = ["```\n# out\n<img src=x onerror=1>\n![x](http://x)\n````", "``````\n</pre>", "\x1b[31m"]
    folder = write_run(tmp_path / "run", texts)
    program.judge(folder)
    inside, outside, fence = [], [], None
    for line in (folder / "report.md").read_text(encoding="utf-8").split("\n"):
        if fence is None and line.startswith("```"):
            fence = line
        elif line == fence:
            fence = None
        else:
            (outside if fence is None else inside).append(line)
    assert fence is None and not any(
        word in line for line in outside for word in ("<", "http", "# out", "\x1b")
    )
    assert {"# out", "<img src=x onerror=1>", "</pre>", "\ufffd[31m"} <= set(inside)


def test_metrics_are_shown_as_the_script_wrote_them(program, tmp_path):
    metrics = {
        "model": "data/tiny-qwen2.5-vl", "before": {"field_accuracy": 0.125}, "after": {"field_accuracy": 0.625},
        "difference": {"field_accuracy": {"value": 0.5, "low": 0.25, "high": 0.75, "p": 0.031, "smallest": 0.3}},
        "train": {"seconds": 1.5}, "versions": {"torch": "2.10.0"},
    }  # fmt: skip
    folder = write_run(tmp_path / "run", [GOOD] * 5, metrics=metrics)
    table = program.judge(folder)
    report = (folder / "report.md").read_text(encoding="utf-8")
    assert all(number in table for number in ("0.125", "0.625", "0.500", "0.250", "0.750", "0.031"))
    assert (
        "of no use to anyone" in report
        and "rose by 0.500" in report
        and "0.300" in report
        and "2.10.0" in report
    )
    assert json.loads((folder / "metrics.json").read_text(encoding="utf-8")) == metrics
    metrics |= {
        "model": "unsloth/Qwen",
        "difference": {"field_accuracy": {"value": 0.1, "low": -0.1, "high": 0.3, "p": 0.4}},
    }
    program.judge(write_run(tmp_path / "run", [GOOD] * 5, metrics=metrics))
    report = (folder / "report.md").read_text(encoding="utf-8")
    assert "of no use" not in report and "show no difference" in report
    metrics["difference"]["field_accuracy"] |= {"low": None, "high": None, "p": None}
    program.judge(write_run(tmp_path / "run", [GOOD], metrics=metrics))
    assert "nothing can be concluded" in (folder / "report.md").read_text(encoding="utf-8")


def test_without_metrics_the_answers_are_scored(program, tmp_path):
    folder = write_run(tmp_path / "run", [GOOD, "{}", GOOD, GOOD], exported=GOOD)
    table = program.judge(folder)
    assert f"{4 / 6 * 3 / 4:.3f}" in table and "exported" in table
    references = [{"VIN": "L" * 17}, {"里程数": 5}, {"里程数": 7}]
    found = program.compared(["{}"] * 3, ['{"VIN": "L"}', '{"里程数": 5}', '{"里程数": 7}'], references)
    assert found["before"]["field_accuracy"] == 0 and found["after"]["field_accuracy"] == pytest.approx(2 / 3)
    assert (
        found["difference"]["mileage_accuracy"]["value"] == 1
        and found["difference"]["field_accuracy"]["p"] is not None
    )
    assert found["difference"]["vin_error_rate"]["p"] is None


def test_contact_sheet_colours_and_fonts(program, tmp_path, monkeypatch):
    rows = program.read_answers(write_run(tmp_path / "run", [GOOD, "", GOOD, GOOD, GOOD]))
    program.contact_sheet(rows, tmp_path / "run", tmp_path / "sheet.png")
    colours = {colour for _, colour in Image.open(tmp_path / "sheet.png").convert("RGB").getcolors(2**24)}
    assert (0, 128, 0) in colours and (255, 0, 0) in colours
    fonts = [font for font in program.font_manager.fontManager.ttflist if font.name == "DejaVu Sans"]
    monkeypatch.setattr(program.font_manager.fontManager, "ttflist", list(fonts))
    monkeypatch.setattr(program.font_manager, "findSystemFonts", list)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        program.contact_sheet(rows[:1], tmp_path / "run", tmp_path / "plain.png")
    assert (tmp_path / "plain.png").stat().st_size > 2000


def test_a_font_that_was_installed_later_is_found(program, monkeypatch):
    """matplotlib keeps the list of its first start; a font of the sheet's advice is not in it."""
    manager = program.font_manager.fontManager
    later = next(font for font in manager.ttflist if font.name == "DejaVu Serif")
    monkeypatch.setattr(manager, "ttflist", [font for font in manager.ttflist if font.name == "DejaVu Sans"])
    monkeypatch.setattr(program, "FONTS", ("DejaVu Serif",))
    monkeypatch.setattr(program.font_manager, "findSystemFonts", lambda: [later.fname, "no font"])
    assert program.chinese_font() == ["DejaVu Serif"]
    monkeypatch.setattr(program, "FONTS", ("A font of nobody",))
    assert program.chinese_font() == []


@pytest.mark.parametrize(
    "names",
    [["nothing.jpg"], ["../../etc/passwd"], ["a" * 5000], ["answers.jsonl"], [5], ["\0"], [], "one.jpg"],
)
def test_a_lost_photo_is_grey(program, tmp_path, names):
    folder = write_run(tmp_path / "run", [GOOD], names=names)
    (row,) = program.read_answers(folder)
    pixels = np.asarray(program.photo_strip(row["image"], folder, 40))
    grey = [211, 211, 211] if names != "one.jpg" else [0, 0, 128]
    assert pixels.shape[0] == 40 and np.abs(pixels[20, 20].astype(int) - grey).max() < 5


def test_photos_stand_side_by_side_and_upright(program, tmp_path):
    folder = write_run(tmp_path / "run", [GOOD])
    strip = program.photo_strip(["one.jpg", "two.webp"], folder, 96)
    assert strip.size == (128 + 72, 96)
    assert np.abs(np.asarray(strip)[48, 160].astype(int) - [0, 128, 128]).max() < 9


@pytest.mark.parametrize("line", [
    "null", "[]", "5", "{", '{"after": "x"}', '{"reference": "{}", "after": ""}', '{"reference": "[1]", "after": ""}', '{"reference": "x", "after": ""}',
    '{"reference": 5, "after": ""}', '{"reference": {"a": 1}, "after": ""}', '{"reference": "{\\"a\\": 1}"}', '{"a":' * 5000, "\xff", "",
])  # fmt: skip
def test_bad_answers_are_named(program, tmp_path, line):
    (tmp_path / "answers.jsonl").write_bytes(line.encode("latin-1") + b"\n")
    with pytest.raises(ValueError, match="answers.jsonl"):
        program.read_answers(tmp_path)


def test_missing_and_damaged_files_are_named(program, tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for name in ("", "nothing", "pipe"):
        with pytest.raises(ValueError, match="is not there"):
            program.read_answers(tmp_path / name)
    folder = write_run(tmp_path / "run", [GOOD])
    for content in ("{", "[1]", "5", "null"):
        (folder / "metrics.json").write_text(content)
        with pytest.raises(ValueError, match="metrics.json is damaged"):
            program.judge(folder)


def test_lines_of_a_model_do_not_cut_a_row(program, tmp_path):
    row = {"reference": '{"a": 1}', "after": "one\u2028two\x85three\x1cfour"}
    (tmp_path / "answers.jsonl").write_text(json.dumps(row, ensure_ascii=False) + "\n", encoding="utf-8")
    assert program.read_answers(tmp_path / "answers.jsonl")[0]["after"] == row["after"]


def run(*arguments, **environment) -> subprocess.CompletedProcess:
    command = [sys.executable, PROGRAM, *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, env={**os.environ, **environment})


def test_two_models_are_compared_on_the_rows_of_both(program, tmp_path):
    full = json.dumps({**ANSWER, "VIN": "L" * 17, "=1+1": "x"}, ensure_ascii=False)
    first = write_run(tmp_path / "first", [GOOD] * 20 + ["only here"] * 3)
    second = write_run(tmp_path / "second", [full] * 20)
    pairs = program.pair(program.read_answers(first), program.read_answers(second))
    assert [(a["after"], b["after"]) for a, b in pairs] == [(GOOD, full)] * 20
    done = run(first, second / "answers.jsonl", PYTHONIOENCODING="gbk")
    assert done.returncode == 0 and b"rose by 0.333" in done.stdout and b"20 rows" in done.stdout, done.stderr
    other = write_run(tmp_path / "other", [full], names=["else.jpg"])
    done = run(first, other)
    assert done.returncode == 1 and b"no row in common" in done.stderr and b"Traceback" not in done.stderr


def test_the_program_judges_a_folder_in_any_terminal(tmp_path):
    folder = write_run(tmp_path / "run", [GOOD, "\x1b[31m🚗"], names=["没有🚗.jpg"])
    done = run(folder, PYTHONIOENCODING="ascii")
    assert done.returncode == 0 and b"field_accuracy" in done.stdout and b"\x1b" not in done.stdout, (
        done.stderr
    )
    assert {"report.md", "contact_sheet.png", "predictions.xlsx"} <= {path.name for path in folder.iterdir()}
    done = run(tmp_path / "nothing")
    assert done.returncode == 1 and b"Traceback" not in done.stderr


def test_predictions_can_be_prepared_again(functions, program, tmp_path):
    """The sheet of predictions has the columns and pictures that prepare.py reads."""
    program.judge(write_run(tmp_path / "run", [GOOD] * 3))
    rows = functions("data/car_insurance/prepare.py").load_rows(tmp_path / "run" / "predictions.xlsx")
    assert [row["number"] for row in rows] == [2, 3, 4] and rows[0]["answer"]["VIN"] == "L" * 17
    assert Image.open(BytesIO(rows[0]["images"][0])).height == 234


@settings(max_examples=15, deadline=None)
@given(st.lists(st.text() | JSON.map(json.dumps), min_size=1, max_size=3))
def test_any_text_passes_sheets_and_report(functions, tmp_path_factory, texts):
    folder = tmp_path_factory.mktemp("any") / "run"
    functions(PROGRAM).judge(write_run(folder, texts))
    assert load_workbook(folder / "predictions.xlsx").active.max_row == len(texts) + 1


def test_scores_are_kept_beside_what_the_script_wrote(program, tmp_path):
    folder = write_run(tmp_path / "run", [GOOD] * 5, metrics={"model": "unsloth/Qwen"})
    program.judge(folder)
    metrics = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))
    assert metrics["model"] == "unsloth/Qwen" and metrics["after"]["field_accuracy"] == pytest.approx(4 / 6)
    assert {"before", "difference"} <= metrics.keys()


# %% A server that is asked
@pytest.fixture
def server(program, monkeypatch):
    """A server at ENDPOINT: `asked` holds what it was sent, `reply` is (status, body, length that it claims)."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self):
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            self.server.asked.append((self.path, body))
            status, text, length = self.server.reply
            time.sleep(self.server.delay)
            self.send_response(status)
            self.send_header("Content-Length", str(len(text) if length is None else length))
            self.end_headers()
            self.wfile.write(text)

        def log_message(self, *_):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.asked, server.delay, server.reply = [], 0, (200, b"", None)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setattr(program, "ENDPOINT", f"http://127.0.0.1:{server.server_port}/v1")
    monkeypatch.setattr(program, "SERVED", "my-model")
    yield server
    server.shutdown()
    server.server_close()


def told(text, end="stop"):
    """Return what a server replies that says text."""
    body = {"choices": [{"message": {"role": "assistant", "content": text}, "finish_reason": end}]}
    return 200, json.dumps(body).encode(), None


def photo_in(part):
    """Return the photo in a part of a message."""
    kind, _, data = part["image_url"]["url"].partition(";base64,")
    assert part["type"] == "image_url" and kind == "data:image/png"
    return Image.open(BytesIO(base64.b64decode(data, validate=True)))


def test_a_server_reads_the_photos(program, server, tmp_path):
    """Its answers are scored beside the adapter's; it gets what was asked, and the photos upright in their order."""
    folder = write_run(tmp_path / "run", ["{}", "{}", GOOD])
    server.reply = told(f"```json\n{GOOD}\n```")
    table = program.judge(folder)
    assert [path for path, _ in server.asked] == ["/v1/chat/completions"] * 3
    body = server.asked[1][1]
    assert body["model"] == "my-model" and body["temperature"] == 0 and body["max_tokens"] == 160
    (message,) = body["messages"]
    *photos, asked = message["content"]
    assert message["role"] == "user" and asked == {"type": "text", "text": "=读第1张"}
    first, second = map(photo_in, photos)
    assert (first.size, first.getpixel((5, 5))[2] > 120) == ((64, 48), True)
    assert second.size == (48, 64), "it was taken with the camera on its side"
    found = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))
    assert found["exported"]["field_accuracy"] == pytest.approx(4 / 6)
    assert found["after"]["field_accuracy"] == pytest.approx(4 / 18)
    assert "exported" in table and f"{4 / 6:.3f}" in table
    assert "Exported:" in (folder / "report.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("size", [(1200, 900), (2400, 320), (448, 320), (896, 672), (1, 1)])
def test_photos_are_sent_with_as_many_pixels_as_the_script_shows(program, tmp_path, size):
    """Large ones are reduced and keep their form; small ones keep every pixel."""
    pixels = np.random.default_rng(0).integers(0, 255, (*size[::-1], 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "photo.png")
    row = {"image": ["photo.png"], "input": "?"}
    photo = photo_in(program.question(row, tmp_path)[0]["content"][0])
    script = constants_of(ast.parse((ROOT / "vl_car_insurance.py").read_text(encoding="utf-8")))
    limit = ast.literal_eval(script["MAX_PIXELS"])
    assert limit == program.MAX_PIXELS
    assert photo.width * photo.height <= limit
    if size[0] * size[1] <= limit:
        assert np.array_equal(np.asarray(photo), pixels)
    else:
        assert photo.width * photo.height > 0.99 * limit
        assert photo.width / photo.height == pytest.approx(size[0] / size[1], rel=0.01)


REPLIES = {
    "an error": (500, b'{"error": "secret-token"}', None),
    "a wrong name": (404, b"not here", None),
    "no JSON": (200, b"<html>", None),
    "no choice": (200, b'{"choices": []}', None),
    "no choices": (200, b'{"choices": null}', None),
    "a list": (200, b"[]", None),
    "a choice of another form": (200, b'{"choices": ["x"]}', None),
    "half of it": (200, b'{"choices": [{"message"', 500),
    "nothing": (200, b"", None),
}


@pytest.mark.parametrize("reply", REPLIES.values(), ids=REPLIES)
def test_a_server_that_fails_is_one_line(program, server, tmp_path, reply):
    folder = write_run(tmp_path / "run", [GOOD] * 2)
    server.reply = reply
    with pytest.raises(ValueError, match="gives no answer.*start the server, or empty ENDPOINT") as failed:
        program.judge(folder)
    said = str(failed.value)
    assert len(said.splitlines()) == 1 and "base64" not in said and "secret" not in said
    assert not (folder / "metrics.json").exists() and not (folder / "report.md").exists()


def test_a_server_that_says_nothing_or_is_not_there(program, server, tmp_path, monkeypatch):
    folder = write_run(tmp_path / "run", [GOOD])
    server.reply = told(None)
    program.judge(folder)
    assert json.loads((folder / "metrics.json").read_text())["exported"]["json_rate"] == 0
    server.delay = 1
    monkeypatch.setattr(program, "urlopen", lambda request, timeout: urlopen(request, timeout=timeout / 2000))
    with pytest.raises(ValueError, match="gives no answer.*timed out"):
        program.judge(folder)
    monkeypatch.setattr(program, "ENDPOINT", "http://127.0.0.1:1/v1")
    with pytest.raises(ValueError, match="gives no answer"):
        program.judge(folder)


@pytest.mark.parametrize("name", ["nothing.jpg", "answers.jsonl"])
def test_a_lost_photo_is_not_asked_about(program, server, tmp_path, name):
    """A server would answer without it, and the answer would be scored."""
    folder = write_run(tmp_path / "run", [GOOD], names=["one.jpg", name])
    server.reply = told(GOOD)
    with pytest.raises(ValueError, match=name):
        program.judge(folder)
    assert server.asked == []


# %% Two bases
def test_two_bases_are_compared_as_before_and_after_are(program, tmp_path):
    """The same numbers as in metrics.json; rows of one run only are said, rows that occur twice are used once."""
    full = json.dumps({**ANSWER, "VIN": "L" * 17, "=1+1": "x"}, ensure_ascii=False)
    first = write_run(tmp_path / "qwen2.5-vl", [GOOD, "{}"] * 8 + [GOOD] * 2)
    second = write_run(tmp_path / "qwen3-vl", [full, GOOD] * 8)
    references = [row["reference"] for row in program.read_answers(second)]
    wanted = program.compared([GOOD, "{}"] * 8, [full, GOOD] * 8, references)
    done = run(first, second)
    said = done.stdout.decode()
    assert done.returncode == 0 and program.table_of(wanted, (first, second)) in said
    assert wanted["difference"]["field_accuracy"]["p"] < 0.05 and f"{first}: 2 of 18 rows" in said
    assert f"{second}:" not in said
    lines = (first / "answers.jsonl").read_text(encoding="utf-8")
    (first / "answers.jsonl").write_text(lines + lines, encoding="utf-8")
    assert len(program.pair(program.read_answers(first), program.read_answers(second))) == 16
    done = run(first, second, first)
    assert done.returncode == 1 and b"Traceback" not in done.stderr and b"two" in done.stderr
