"""Every parser, fed with anything: what comes back are rows, or a ValueError that names the file."""

import json
import unicodedata
import zipfile
from collections import Counter
from io import BytesIO

import pytest
from conftest import ROOT
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from openpyxl import Workbook

QUICK = settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
TEXTS = st.text(st.characters(codec="utf-8"), max_size=30)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | TEXTS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3),
    max_leaves=6,
)
NAMES = st.sampled_from("instruction input output topic question think answer title meta".split()) | TEXTS
ROWS = st.lists(st.dictionaries(NAMES, VALUES, max_size=5) | VALUES, max_size=6)
DEEP = b"[" * 100_000


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("parsers")


def rows_or_clear_error(parse, path):
    """Return what a parser makes of a file, None where it refuses the file by name."""
    try:
        return parse(path)
    except ValueError as error:
        assert str(path) in str(error), error
        return None


READERS = {
    "sft_gongwen.py": lambda script: lambda path: script.read_rows(str(path)),
    "sft_alpaca.py": lambda script: lambda path: script.read_instructions(str(path)),
    "sft_medical.py": lambda script: lambda path: script.read_sources(str(path))[0],
}


@pytest.mark.parametrize("script", READERS)
@given(
    raw=st.binary(max_size=200)
    | st.sampled_from([DEEP, b'{"a":' * 100_000, b"[1,", b'{"a": NaN}', b'"', b"\xff\xfe["])
)
@QUICK
def test_any_bytes_as_json(functions, folder, script, raw):
    path = folder / f"{script}.jsonl"
    path.write_bytes(raw)
    rows = rows_or_clear_error(READERS[script](functions(script)), path)
    assert rows is None or all(isinstance(row, dict) for row in rows)


@pytest.mark.parametrize("script", READERS)
@given(rows=ROWS, lines=st.booleans())
@example(
    rows=[{"instruction": "甲", "output": 5, "topic": ["乙"]}, {"instruction": 3, "output": "丙"}], lines=True
)
@QUICK
def test_any_rows_as_json(functions, folder, script, rows, lines):
    """A usable row is made of texts only, whatever the JSON held: the chat template joins them."""
    path, module = folder / f"{script}.jsonl", functions(script)
    text = "\n".join(map(json.dumps, rows)) if lines else json.dumps(rows)
    path.write_text(text, encoding="utf-8")
    usable = rows_or_clear_error(READERS[script](module), path) or []
    for row in usable:
        turns = [turn for part in module.to_prompt_completion(row).values() for turn in part]
        assert all(isinstance(turn["content"], str) for turn in turns) and turns[-1]["content"].strip()
    if usable and script == "sft_gongwen.py":
        module.split_by_topic(usable, 0.2, 0)
    if usable and script == "sft_alpaca.py":
        module.hold_out(usable, 0.2, 0)


CELLS = (
    st.none()
    | st.integers(-(10**9), 10**9)
    | st.text(st.characters(codec="utf-8", exclude_categories=["Cc", "Cs"]), max_size=20)
)


@given(cells=st.lists(st.lists(CELLS, min_size=3, max_size=3), max_size=5))
@QUICK
def test_any_cells_in_a_sheet(functions, folder, cells):
    script, path = functions("vl_car_insurance.py"), folder / "sheet.xlsx"
    book = Workbook()
    book.active.append(["image", "prompt", "response"])
    for row in cells:
        book.active.append(
            [None if isinstance(value, str) and value.startswith("=") else value for value in row]
        )
    book.save(path)
    assert script.load_rows(str(path)) == []  # no cell names a picture that is there


@given(raw=st.binary(max_size=300), kept=st.integers(0, 12), cut=st.integers(0, 5000))
@settings(QUICK, max_examples=60)
def test_any_damage_to_a_sheet(functions, folder, raw, kept, cut):
    """An .xlsx of which one part is replaced by other bytes, or the end is missing."""
    script, path = functions("vl_car_insurance.py"), folder / "damaged.xlsx"
    book, file = Workbook(), BytesIO()
    book.active.append(["image", "prompt", "response"])
    book.save(file)
    source, damaged = zipfile.ZipFile(file), BytesIO()
    with zipfile.ZipFile(damaged, "w") as archive:
        for place, name in enumerate(source.namelist()):
            archive.writestr(name, raw if place == kept else source.read(name))
    path.write_bytes(damaged.getvalue()[: len(damaged.getvalue()) - cut])
    assert rows_or_clear_error(lambda path: script.load_rows(str(path)), path) in (None, [])


LAW = st.lists(
    st.sampled_from(["第一条 为了", "第二条　", "第十条之一 ", "第九十九条", "第一章 总则", "（一）甲；", "(二)乙。", "第3条 丙", "\u3000", "第零条", "附则", ""])
    | TEXTS,
    max_size=12,
).map("\n".join)  # fmt: skip


@given(text=LAW)
@QUICK
def test_any_text_as_a_statute(functions, text):
    script = functions("data/dataset_legal.py")
    try:
        articles = script.parse_statute(text, "甲.txt", Counter())
    except ValueError as error:
        assert "甲.txt: no article" in str(error)
        return
    here = set(text) | set(unicodedata.normalize("NFKC", text))
    for article in articles:
        assert 0 <= article.number < 10**9 and 1 <= article.line <= text.count("\n") + 1
        assert not set(article.text) - here - {"\n"}, "nothing is made up"


@given(raw=st.binary(max_size=200))
@QUICK
def test_any_bytes_as_a_statute(functions, folder, raw):
    script, path = functions("data/dataset_legal.py"), folder / "law.txt"
    path.write_bytes(raw)
    text = rows_or_clear_error(script.read_text, path)
    assert text is None or "\0" not in text


@given(raw=st.binary(max_size=200))
@QUICK
def test_any_bytes_as_a_document(functions, folder, raw):
    script, path = functions("sft_gongwen.py"), folder / "documents" / "a.docx"
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(raw)
    try:
        script.read_rows(str(path.parent))
    except ValueError as error:
        assert str(path.parent) in str(error)


def test_shipped_files_are_read_by_the_same_parsers(functions):
    assert len(functions("sft_gongwen.py").read_rows(str(ROOT / "data" / "gongwen.json"))) > 600
    assert len(functions("sft_alpaca.py").read_instructions(str(ROOT / "data" / "alpaca.json"))) > 300
