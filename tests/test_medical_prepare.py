"""What data/medical/prepare.py reads, cleans, masks, drops and writes."""

import ast
import csv
import inspect
import io
import json
import os
import random
import re
import shutil
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

PROGRAM = "data/medical/prepare.py"
FOLDER = Path(__file__).parent.parent / "data/medical"
HEADER = "department,title,ask,answer\n"


@pytest.fixture(scope="module")
def program(functions):
    return functions(PROGRAM)


# ---------------------------------------------------------------- records
QUESTION = "洗碗以后手指起了小水泡，很痒，怎么办？"
ANSWER = "可能是汗疱疹，保持干燥，加重请去皮肤科就诊。"
THOUGHT = "接触洗洁精后起水泡，考虑汗疱疹。"
EMPTY = {"system": "", "history": [], "instruction": QUESTION, "input": "", "think": "", "output": ANSWER}
TALK = [{"role": "user", "content": QUESTION}, {"role": "assistant", "content": ANSWER}]
SHARED = [{"from": "human", "value": QUESTION}, {"from": "gpt", "value": ANSWER}]
FORMS = {  # name: (record, what of EMPTY is different)
    "alpaca": ({"instruction": QUESTION, "input": "", "output": ANSWER}, {}),
    "alpaca with input": (
        {"instruction": "语气温和。", "input": QUESTION, "output": ANSWER},
        {"instruction": "语气温和。", "input": QUESTION},
    ),
    "only input": ({"instruction": "", "input": QUESTION, "output": ANSWER}, {}),
    "prompt, response": ({"prompt": QUESTION, "response": ANSWER}, {}),
    "prompt, completion": ({"prompt": QUESTION, "completion": ANSWER}, {}),
    "query, answer": ({"query": QUESTION, "answer": ANSWER}, {}),
    "in capitals": ({"Question": QUESTION, "Complex_CoT": THOUGHT, "Response": ANSWER}, {"think": THOUGHT}),
    "in Chinese": ({"问题": QUESTION, "回答": ANSWER}, {}),
    "lists of one": ({"questions": [[QUESTION]], "answers": [ANSWER]}, {}),
    "a table's columns": ({"department": "皮肤科", "title": "水泡", "ask": QUESTION, "answer": ANSWER}, {}),
    "a table without ask": ({"title": QUESTION, "ask": "", "answer": ANSWER}, {}),
    "context": ({"instruction": QUESTION, "context": "女，30岁", "response": ANSWER}, {"input": "女，30岁"}),
    "the same under two names": ({"question": QUESTION, "prompt": QUESTION, "answer": ANSWER}, {}),
    "think": ({"question": QUESTION, "think": THOUGHT, "answer": ANSWER}, {"think": THOUGHT}),
    "reasoning_content": (
        {"question": QUESTION, "reasoning_content": THOUGHT, "answer": ANSWER},
        {"think": THOUGHT},
    ),
    "think in the output": (
        {"instruction": QUESTION, "output": f"<think>\n{THOUGHT}\n</think>\n\n{ANSWER}"},
        {"think": THOUGHT},
    ),
    "think without its start": (
        {"instruction": QUESTION, "output": f"{THOUGHT}</think>{ANSWER}"},
        {"think": THOUGHT},
    ),
    "an empty think": ({"instruction": QUESTION, "output": f"<think>\n\n</think>\n\n{ANSWER}"}, {}),
    "messages": ({"messages": TALK}, {}),
    "messages with system": (
        {"messages": [{"role": "system", "content": "你是医生。"}, *TALK]},
        {"system": "你是医生。"},
    ),
    "messages of two turns": ({"messages": TALK + TALK}, {"history": [[QUESTION, ANSWER]]}),
    "messages with reasoning": (
        {"messages": [TALK[0], {**TALK[1], "reasoning_content": THOUGHT}]},
        {"think": THOUGHT},
    ),
    "sharegpt": ({"id": 7, "conversations": SHARED, "system": "你是医生。"}, {"system": "你是医生。"}),
    "lists of TRL": ({"prompt": TALK[:1], "completion": TALK[1:]}, {}),
    "history": (
        {"instruction": QUESTION, "output": ANSWER, "history": [["我手痒", "多久了？"]]},
        {"history": [["我手痒", "多久了？"]]},
    ),
    "history with thinking": (
        {"instruction": QUESTION, "output": ANSWER, "history": [["痒", "<think>一</think>多久？"]]},
        {"history": [["痒", "多久？"]]},
    ),
    "no history": ({"instruction": QUESTION, "output": ANSWER, "history": None, "system": None}, {}),
    "zero": ({"question": QUESTION, "answer": 0}, {"output": "0"}),
    "false": ({"question": QUESTION, "answer": False}, {"output": "false"}),
    "a number": ({"question": 12.5, "answer": ANSWER}, {"instruction": "12.5"}),
}
REFUSED = {  # name: (record, what the message says)
    "no object": (["a"], "not a list"),
    "null": (None, "not a NoneType"),
    "unknown form": ({"text": QUESTION, "label": 3}, "text, label"),
    "no answer column": ({"question": QUESTION}, "question"),
    "answer null": ({"question": QUESTION, "answer": None}, "no output"),
    "answer NaN": ({"question": QUESTION, "answer": float("nan")}, "no output"),
    "answer nan as text": ({"question": QUESTION, "answer": "NaN"}, "no output"),
    "answer blank": ({"question": QUESTION, "answer": " \n"}, "no output"),
    "answer empty list": ({"question": QUESTION, "answer": []}, "no output"),
    "question blank": ({"question": "", "answer": ANSWER}, "no question"),
    "only a thought": ({"question": QUESTION, "answer": "<think>嗯</think>"}, "no output"),
    "several questions": ({"question": [QUESTION, "怎么办？"], "answer": ANSWER}, "question is a list of 2"),
    "several answers": ({"question": QUESTION, "answers": [ANSWER, ANSWER]}, "answers is a list of 2"),
    "an object": ({"question": QUESTION, "answer": {"a": 1}}, "answer is a dict"),
    "two different answers": (
        {"question": QUESTION, "answer": "是", "response": ANSWER},
        "answer and response",
    ),
    "choices": ({"question": QUESTION, "options": {"A": "痒"}, "answer": "A"}, "options"),
    "preferences": (
        {"prompt": QUESTION, "chosen": ANSWER, "rejected": "不知道", "answer": ANSWER},
        "chosen, rejected",
    ),
    "half a think": ({"question": QUESTION, "answer": f"<think>{THOUGHT}"}, "<think>"),
    "two thinks": ({"question": QUESTION, "answer": "<think>一</think><think>二</think>答"}, "<think>"),
    "two thoughts": (
        {"question": QUESTION, "think": "别的", "answer": f"<think>{THOUGHT}</think>{ANSWER}"},
        "thinking part",
    ),
    "end of turn": ({"question": QUESTION, "answer": "好<|im_end|>"}, "<|im_end|>"),
    "image": ({"question": "看<|image_pad|>", "answer": ANSWER}, "<|image_pad|>"),
    "wide bars": ({"question": QUESTION, "answer": "好<｜end▁of▁sentence｜>"}, "answer holds"),
    "a lone surrogate": ({"question": "痒\ud83d", "answer": ANSWER}, "\\ud83d"),
    "lost bytes": ({"question": "痒\ufffd", "answer": ANSWER}, "\\ufffd"),
    "a printed object": ({"question": QUESTION, "answer": "{'text': '好'}"}, "answer holds"),
    "history no pairs": ({"instruction": QUESTION, "output": ANSWER, "history": ["痒"]}, "history"),
    "history of three": (
        {"instruction": QUESTION, "output": ANSWER, "history": [["a", "b", "c"]]},
        "history",
    ),
    "a talk that ends with the user": ({"messages": TALK[:1]}, "not user"),
    "two users": ({"messages": [TALK[0], *TALK]}, "user, user"),
    "a tool's turn": ({"messages": [TALK[0], {"role": "tool", "content": "x"}, TALK[1]]}, "tool"),
    "no turns": ({"messages": []}, "turns"),
    "turns of text": ({"messages": ["你好"]}, "turn"),
    "parts of a message": (
        {"messages": [{"role": "user", "content": [{"type": "text"}, {"type": "image"}]}, TALK[1]]},
        "list of 2",
    ),
}


@pytest.mark.parametrize("name", FORMS)
def test_common_forms_of_records(program, name):
    record, changes = FORMS[name]
    assert program.to_instruction(record) == EMPTY | changes


@pytest.mark.parametrize("name", REFUSED)
def test_other_records_are_refused_by_name(program, name):
    record, words = REFUSED[name]
    with pytest.raises(ValueError) as caught:
        program.to_instruction(record)
    assert words in str(caught.value)


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=12),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=8,
)
KEYS = st.sampled_from(
    "instruction input output prompt answer question messages history system think role from value content meta".split()
)


@given(st.dictionaries(KEYS | st.text(max_size=3), VALUES, max_size=6) | VALUES)
@settings(max_examples=300, deadline=None)
def test_any_record_is_text_or_refused(program, record):
    try:
        parts = program.to_instruction(record)
    except ValueError as error:
        assert str(error)
    else:
        assert parts.keys() == EMPTY.keys() and parts["instruction"] and parts["output"]
        assert all(isinstance(parts[name], str) for name in parts if name != "history")


ONE = json.dumps({"question": QUESTION, "answer": ANSWER}, ensure_ascii=False)
BIG = "的一是不了在有我人" * 30  # so that a lost byte is less than one in a hundred
FILES = {  # name: (bytes, records; a number stands for the line of one that is named)
    "a record a line": (f"{ONE}\n{ONE}\n", [ONE, ONE]),
    "no newline at the end": (ONE, [ONE]),
    "byte-order mark and blank lines": (f"\ufeff\n\n{ONE}\n\n\n{ONE}", [ONE, ONE]),
    "commas at the end": (f"{ONE},\n{ONE},\n", [ONE, ONE]),
    "Windows": (f"{ONE}\r\n{ONE}\r\n", [ONE, ONE]),
    "a list": (f"[{ONE},\n {ONE}]", [ONE, ONE]),
    "a list that ends with a comma": (f"[\n  {ONE},\n  {ONE},\n]\n", [ONE, ONE]),
    "an indented list": (json.dumps([json.loads(ONE)] * 2, indent=2), [ONE, ONE]),
    "one indented object": (json.dumps(json.loads(ONE), indent=2), [ONE]),
    "indented objects": (f"{json.dumps(json.loads(ONE), indent=2)}\n" * 2, [ONE, ONE]),
    "two lists": (f"[{ONE}]\n[{ONE}]", [ONE, ONE]),
    "two on a line": (f"{ONE}{ONE} {ONE}", [ONE, ONE, ONE]),
    "under data": (f'{{"version": 1, "data": [{ONE}, {ONE}]}}', [ONE, ONE]),
    "a broken line": (f'{ONE}\n{{"question": "痒\n{ONE}', [ONE, 2, ONE]),
    "a broken record of a list": (f'[{ONE},\n{{"a": 1,}},\n{ONE}]', [ONE, 2, ONE]),
    "a broken indented record": (f'[\n  {{\n   "a": 1 2\n  }},\n  {ONE}\n]', [2, ONE]),
    "a comma too many inside": (f'{{"a": 1,}}\n{ONE}', [1, ONE]),
    "words between": (f"{ONE}\nhello\n{ONE}", [ONE, 2, ONE]),
    "lost bytes": (
        f"{ONE}\n".encode() + b'{"answer": "\xff"}\n' + f'{{"question": "{BIG}"}}'.encode(),
        [ONE, 2, f'{{"question": "{BIG}"}}'],
    ),
    "a tab inside": (f'{{"a": "\t"}}\n{ONE}', [1, ONE]),
    "too many digits": (f'{{"a": {"9" * 5000}}}\n{ONE}', [1, ONE]),
    "nested too deep": ("[" * 100_000, [1]),
    "null": ("null", ["null"]),
    "nothing": ("", []),
    "NaN": (f'{{"question": "{QUESTION}", "answer": NaN}}', [f'{{"question": "{QUESTION}", "answer": NaN}}']),
}


@pytest.mark.parametrize("name", FILES)
def test_json_files(program, tmp_path, name):
    data, wanted = FILES[name]
    (tmp_path / "a.json").write_bytes(data if isinstance(data, bytes) else data.encode())
    found = program.read_records(tmp_path / "a.json")
    for record, want in zip(found, wanted, strict=True):
        if isinstance(want, int):
            assert isinstance(record, ValueError) and f"a.json, record at line {want}: " in str(record)
        else:
            assert json.dumps(record) == json.dumps(json.loads(want))


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "gb18030", "utf-16", "utf-16-be", "big5"])
def test_encodings_of_json(program, tmp_path, encoding):
    text = (
        '{"instruction": "請寫一則停水公告", "output": "因管線維修，本社區明日上午停水，請住戶提前儲水。"}\n'
        * 3
    )
    (tmp_path / "a.jsonl").write_bytes(text.encode(encoding))
    assert program.read_records(tmp_path / "a.jsonl") == [json.loads(text.splitlines()[0])] * 3


@pytest.mark.parametrize(
    "unit",
    [
        '{"a":',
        '{"a":\n',
        '{"a": [1,\n',
        '{"k":["x",\n',
        "[ ",
        ",",
        '{"a":"',
        '{"a": 1} ',
        "{",
        "{\n",
        "\n ",
        '"',
        "]{",
    ],
)
def test_a_file_of_anything_is_read_in_a_second(program, tmp_path, unit):
    (tmp_path / "a.jsonl").write_text(unit * (100_000 // len(unit)), encoding="utf-8")
    begin = time.process_time()
    program.read_records(tmp_path / "a.jsonl")
    assert time.process_time() - begin < 2.5


@given(st.text(alphabet=st.sampled_from('{}[],:"\\ \n1eanulf\ufffd的'), max_size=60))
@settings(max_examples=300, deadline=None)
def test_any_json_gives_records_or_a_named_line(program, tmp_path_factory, text):
    path = tmp_path_factory.getbasetemp() / "any.json"
    path.write_text(text, encoding="utf-8")
    try:
        found = program.read_records(path)
    except ValueError as error:
        assert "any.json" in str(error)
    else:
        assert all(
            "any.json, record at line" in str(record) for record in found if isinstance(record, ValueError)
        )


def test_only_regular_files_are_read(program, tmp_path):
    (tmp_path / "folder.csv").mkdir()
    (tmp_path / "dead.json").symlink_to(tmp_path / "nothing")
    os.mkfifo(tmp_path / "pipe.jsonl")
    for name in ("folder.csv", "dead.json", "pipe.jsonl"):
        with pytest.raises(ValueError, match=name):
            program.read_records(tmp_path / name)


# ---------------------------------------------------------------- tables
ROWS = [
    ["内科", "头痛", "头痛三天了，怎么办？", "先量血压，注意休息，加重时就医。"],
    ["外科", "扭伤", "脚踝扭了肿了", "先冷敷抬高"],
]


def as_csv(rows, end="\n", quoting=csv.QUOTE_MINIMAL) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator=end, quoting=quoting).writerows([HEADER.strip().split(","), *rows])
    return text.getvalue()


@pytest.mark.parametrize("end", ["\n", "\r\n"])
@pytest.mark.parametrize(
    "encoding", ["utf-8", "utf-8-sig", "gbk", "gb18030", "utf-16", "utf-16-le", "utf-16-be"]
)
def test_encodings(program, tmp_path, encoding, end):
    (tmp_path / "a.csv").write_bytes(as_csv(ROWS, end).encode(encoding))
    table = program.read_csv(tmp_path / "a.csv")
    assert table.values.tolist() == ROWS and list(table) == ["department", "title", "ask", "answer"]
    assert table.attrs["broken"] == 0


def test_big5(program, tmp_path):
    rows = [
        [
            "皮膚科",
            "濕疹",
            "我的孩子臉上起了紅疹，會不會傳染？",
            "這個不會傳染，請不要抓，必要時到皮膚科看醫生。",
        ]
    ]
    for encoding in ("big5", "cp950", "big5hkscs"):
        (tmp_path / "a.csv").write_bytes(as_csv(rows).encode(encoding))
        assert program.read_csv(tmp_path / "a.csv").values.tolist() == rows


def test_gb18030_beyond_gbk(program, tmp_path):
    rows = [["内科", "生僻字", "我姓𠮷，医生说我的㕛有问题，是不是很严重？", "不要担心，先去医院检查一下。"]]
    (tmp_path / "a.csv").write_bytes(as_csv(rows).encode("gb18030"))
    assert program.read_csv(tmp_path / "a.csv").values.tolist() == rows


def test_columns_in_another_order(program, tmp_path):
    (tmp_path / "a.csv").write_text("id,Answer,ask,title,department\n7,答,问,题,内科\n", encoding="utf-8")
    assert program.read_csv(tmp_path / "a.csv").values.tolist() == [["内科", "题", "问", "答"]]


@pytest.mark.parametrize(
    "raw,words",
    [
        (b"", "no header with department"),
        (b"\n\n\n", "no header with department"),
        ("内科,头痛,头痛三天了，怎么办？,先量血压\n".encode(), "内科,头痛"),
        (b"name,text\na,b\n", "name,text"),
        (b"question,note\na,b\n", "question,note"),
        ("问题,提问,回答\n一,二,三\n".encode(), "two columns for ask"),
        (
            "department,title,ask,answer\n内科,题,问,一,二\n内科,题,问,一,二\n".encode(),
            "2, 3; quote fields that hold ','",
        ),
        (
            b"department,title,ask,answer\nENT,ear,My ear hurts since Monday\x92s swim,It\x92s swimmer\x92s ear\x97see a doctor.\n"
            * 2,
            "save it as UTF-8",
        ),
        (bytes(range(128, 256)) * 20, "save it as UTF-8"),
        (b"\xff\xfe" + b"\xd8\xd8" * 50, "save it as UTF-8"),
    ],
)
def test_unreadable_files_are_named(program, tmp_path, raw, words):
    (tmp_path / "坏的.csv").write_bytes(raw)
    with pytest.raises(ValueError, match="坏的.csv") as caught:
        program.read_csv(tmp_path / "坏的.csv")
    assert words in str(caught.value)


LINES = as_csv(ROWS).splitlines()
QUOTED = as_csv(ROWS, quoting=csv.QUOTE_ALL)
TABLES = {  # name: text or bytes of a table that holds ROWS
    "blank lines first": "\n\n" + as_csv(ROWS),
    "header in capitals, with spaces": "Department, Title, Ask, Answer\n" + "\n".join(LINES[1:]),
    "header in curly quotes": "“department”,“title”,“ask”,“answer”\n" + "\n".join(LINES[1:]),
    "header in Chinese": "科室,标题,问题,回答\n" + "\n".join(LINES[1:]),
    "another header in Chinese": "科室,标题,提问,答案\n" + "\n".join(LINES[1:]),
    "tabs": as_csv(ROWS).replace(",", "\t"),
    "semicolons": as_csv(ROWS).replace(",", ";"),
    "bars": as_csv(ROWS).replace(",", "|"),
    "sep= and commas": "\ufeffsep=,\r\n" + as_csv(ROWS, "\r\n"),
    "sep= and semicolons": "sep=;\n" + as_csv(ROWS).replace(",", ";"),
    "tabs in UTF-16, as Excel writes them": as_csv(ROWS, "\r\n").replace(",", "\t").encode("utf-16"),
    "a comma at the end of each line": ",\n".join(LINES) + ",\n",
    "a comma at the end of each row": LINES[0] + "\n" + ",\n".join(LINES[1:]) + ",\n",
    "a comma at the end of the header": LINES[0] + ",\n" + "\n".join(LINES[1:]),
    "many columns without a name": LINES[0] + ",,,\n" + ",,,\n".join(LINES[1:]) + ",,,\n",
    "a first column of numbers": "\n".join([f",{LINES[0]}", f"0,{LINES[1]}", f"1,{LINES[2]}"]),
    "spaces after commas": QUOTED.replace('","', '", "'),
    "carriage returns": as_csv(ROWS, "\r"),
    "mixed newlines": LINES[0] + "\r\n" + "\n".join(LINES[1:]),
    "a NUL inside": as_csv(ROWS).replace("三天", "三\0天"),
    "NULs at the end": as_csv(ROWS).encode("gb18030") + b"\0" * 64,
    "lost bytes in a column that is not read": (LINES[0] + ",note\n" + LINES[1] + ",").encode()
    + b"\xff\n"
    + f"{LINES[2]},{'的' * 200}\n".encode(),
}


@pytest.mark.parametrize("name", TABLES)
def test_tables_as_people_have_them(program, tmp_path, name):
    data = TABLES[name]
    (tmp_path / "a.csv").write_bytes(data if isinstance(data, bytes) else data.encode())
    table = program.read_csv(tmp_path / "a.csv")
    assert table.values.tolist() == ROWS and table.attrs["broken"] == 0


@pytest.mark.parametrize("quote", ['身高5"，头痛三天了', '他说"不痛"，头痛三天了'])
def test_quotes_inside_a_field(program, tmp_path, quote):
    rows = [[row[0], row[1], quote, row[3]] for row in ROWS * 2]
    (tmp_path / "a.csv").write_text(HEADER + "".join(",".join(row) + "\n" for row in rows), encoding="utf-8")
    assert program.read_csv(tmp_path / "a.csv").values.tolist() == rows


def test_columns_that_lack_are_empty(program, tmp_path):
    (tmp_path / "a.csv").write_text("title,ask,answer\n题,问,答\n", encoding="utf-8")
    (tmp_path / "b.csv").write_text("Question,Response\n问,答\n", encoding="utf-8")
    (tmp_path / "c.csv").write_text(HEADER, encoding="utf-8")
    assert program.read_csv(tmp_path / "a.csv").values.tolist() == [["", "题", "问", "答"]]
    assert program.read_csv(tmp_path / "b.csv").values.tolist() == [["", "", "问", "答"]]
    assert program.read_csv(tmp_path / "c.csv").values.tolist() == []


BROKEN = {
    "two columns": "内科,少了两列\n",
    "commas that are not quoted": "内科,题,头痛,三天,怎么办,先量血压,再说\n",
    "five columns": "内科,多,一,列,了\n",
    "quote never closed": '内科,题,"问到一半,答案\n',
    "quote closed three rows later": '内科,题,问,"答案没完\n',
    "letters after a quote": '内科,题,"问"多,答\n',
}


@pytest.mark.parametrize("line", BROKEN.values(), ids=BROKEN)
def test_a_broken_line_costs_only_itself(program, tmp_path, capsys, line):
    rows = [["内科", f"题{i}", f'我说"疼"，第{i}天', f"答{i}"] for i in range(6)]
    lines = as_csv(rows).splitlines(keepends=True)
    (tmp_path / "a.csv").write_text("".join(lines[:3] + [line] + lines[3:]), encoding="utf-8")
    table = program.read_csv(tmp_path / "a.csv")
    assert table.values.tolist() == rows and table.attrs["broken"] == 1
    assert "1 broken lines" in (said := capsys.readouterr().out) and "text: 4; left out" in said


def test_undecodable_bytes_cost_only_their_line(program, tmp_path):
    for encoding in ("utf-8", "gbk"):
        lines = as_csv(ROWS * 20).encode(encoding).splitlines(keepends=True)
        lines.insert(5, "内科,坏,".encode(encoding) + b"\xff\xff" + ",答\n".encode(encoding))
        (tmp_path / "a.csv").write_bytes(b"".join(lines))
        table = program.read_csv(tmp_path / "a.csv")
        assert table.values.tolist() == ROWS * 20 and table.attrs["broken"] == 1


FIELD = st.text(alphabet=st.sampled_from('内科头痛,，"\n\r\t <>a1。𠮷'), max_size=12)


@given(st.lists(st.tuples(FIELD, FIELD, FIELD, FIELD), max_size=6))
@settings(max_examples=300)
def test_read_csv_returns_what_was_written(program, tmp_path_factory, rows):
    # A line inside quotes that looks like the next record is ambiguous: read_csv takes it for one, as it says.
    assume(not any(re.search(r"[\n\r][^\W\d_]{2,20},", field) for row in rows for field in row))
    path = tmp_path_factory.getbasetemp() / "written.csv"
    path.write_bytes(as_csv(rows, quoting=csv.QUOTE_ALL).encode("utf-8"))
    assert program.read_csv(path).values.tolist() == [list(row) for row in rows]


@given(st.binary(max_size=400))
@example(b'department,title,ask,answer\n"')
@example(b"\xff\xfed")
@settings(max_examples=300)
def test_read_csv_never_fails_otherwise(program, tmp_path_factory, raw):
    path = tmp_path_factory.getbasetemp() / "random.csv"
    for data in (raw, HEADER.encode() + raw, HEADER.encode("utf-16") + raw):
        path.write_bytes(data)
        try:
            table = program.read_csv(path)
        except ValueError as error:
            assert "random.csv" in str(error)
        else:
            assert list(table) == HEADER.strip().split(",")


@given(st.data())
@settings(max_examples=300)
def test_a_row_never_holds_another_row(program, tmp_path_factory, data):
    """Every row carries its number in each field; damage anywhere must not bring two numbers into one row."""
    lines = [f'"内科","题#{i}#","问#{i}#，头痛","答#{i}#，休息"\n' for i in range(8)]
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, 7))
        place = data.draw(st.integers(0, max(len(lines[at]) - 1, 0)))
        kind = data.draw(st.sampled_from(["cut", "quote", "drop", "comma"]))
        line = lines[at]
        lines[at] = {
            "cut": line[:place] + "\n",
            "quote": line[:place] + '"' + line[place:],
            "drop": line[:place] + line[place + 1 :],
            "comma": line[:place] + "," + line[place:],
        }[kind]
    path = tmp_path_factory.getbasetemp() / "damaged.csv"
    path.write_text(HEADER + "".join(lines), encoding="utf-8")
    for row in program.read_csv(path).values.tolist():
        assert len(set(re.findall(r"#(\d)#", "".join(row)))) <= 1, row


# ---------------------------------------------------------------- cleaning
@pytest.mark.parametrize(
    "dirty,clean",
    [
        ("<p>多喝水。<br/>休息</p>", "多喝水。 休息"),
        ("血糖&lt;3.9mmol/L&nbsp;要处理", "血糖<3.9mmol/L 要处理"),
        ("血压<140且>90", "血压<140且>90"),
        ("<script>var a=1;</script>正文<!-- 注 -->", "正文"),
        ("体温３８．５℃，ＣＲＰ　１２", "体温38.5℃，CRP 12"),
        ("白细胞１２×10⁹/L，5m²", "白细胞12×10⁹/L，5m²"),
        ("零\u200b宽\ufeff字符", "零宽字符"),
        ("多喝水。点击链接领取优惠！注意休息。", "多喝水。注意休息。"),
        ("详情见http://www.example.com/a。先观察。", "先观察。"),
        ("病友群里说的，可信吗？", "病友群里说的，可信吗？"),
        ("  一行 \n\n\t二 行 ", "一行\n二 行"),
    ],
)
def test_clean(program, dirty, clean):
    assert program.clean(dirty) == clean


# ---------------------------------------------------------------- masking
# text, placeholder that must appear, private part that must be gone
PRIVATE = [
    ("我的手机13912345678随时联系", "电话", "13912345678"), ("电话 139 1234 5678", "电话", "5678"), ("电话139-1234-5678。", "电话", "5678"),
    ("+8613912345678", "电话", "139"), ("86-13912345678", "电话", "139"), ("tel:17612345678,谢谢", "电话", "176"), ("号码是19900000001吗", "电话", "199"),
    ("座机0571-88886666", "电话", "88886666"), ("（010）62345678", "电话", "62345678"), ("010-62345678转801", "电话", "801"),
    ("热线400-820-1234", "电话", "820"), ("联系方式：8765432", "电话", "8765432"), ("身份证号11010519491231002X", "身份证", "1949"),
    ("身份证11010519491231002x", "身份证", "1949"), ("我是11010519491231002X，帮我查", "身份证", "1949"), ("身份证号码：110105491231002", "身份证", "491231"),
    ("身份证号为110105194912310029", "身份证", "1949"), ("邮箱li.hua+a@mail.example.com。", "邮箱", "li.hua"),
    ("发到reader_1@example.cn就行", "邮箱", "reader_1"), ("微信wx_2024abc", "微信", "wx_2024"), ("微信号：lihua8899", "微信", "lihua"),
    ("微信号是lihua-8899，", "微信", "8899"), ("V信 abc12345", "微信", "abc12345"), ("加VX：doctor_line", "微信", "doctor_line"),
    ("wechat: hello_world1", "微信", "hello"), ("QQ12345678", "QQ", "12345678"), ("QQ群：987654321", "QQ", "987654321"),
    ("扣扣是10001000", "QQ", "10001000"), ("卡号6222021234567890123", "银行卡", "6222"), ("转到4111 1111 1111 1111", "银行卡", "1111"),
    ("4111111111111111", "银行卡", "4111"), ("银行卡6217 0012 3456 7890 12", "银行卡", "6217"), ("住院号：0012345", "编号", "0012345"),
    ("医保卡号A12345678", "编号", "A12345678"), ("病历号：20240012", "编号", "20240012"), ("出生日期：1985-12-01", "出生日期", "1985"),
    ("生日是1985年3月2日", "出生日期", "3月2日"), ("1990年3月5日出生的", "出生日期", "1990"), ("出生于1990.03.05", "出生日期", "1990"), ("孩子生日5月6日", "出生日期", "5月6日"),
    ("张医生说没事", "姓名", "张"), ("是李建国主任做的手术", "姓名", "李建国"), ("王大夫开的药", "姓名", "王"), ("挂了欧阳教授的号", "姓名", "欧阳"), ("林致远副主任医师", "姓名", "林致远"),
    ("感谢赵护士", "姓名", "赵"), ("患者顾小满，女，52岁", "姓名", "顾小满"), ("患者：何大壮(男", "姓名", "何大壮"), ("姓名：苏婉", "姓名", "苏婉"), ("我叫贺长青，今年60", "姓名", "贺长青"),
    ("陈女士，35岁", "姓名", "陈"), ("刘先生您好", "姓名", "刘"), ("在清江市第一人民医院做的", "医院", "清江"), ("去过北京协和医院", "医院", "协和"), ("云岭省中医院开的", "医院", "云岭"),
    ("南浦县妇幼保健院", "医院", "南浦"), ("白沙镇卫生院的", "医院", "白沙"), ("仁济堂诊所", "医院", "仁济"), ("云岭医科大学附属医院", "医院", "云岭"), ("东屏区社区卫生服务中心", "医院", "东屏"),
    ("在第三人民医院查的", "医院", "第三"), ("康宁医院的片子", "医院", "康宁"),
]  # fmt: skip
# what a doctor needs, or what only looks like a name or a number of someone
SURVIVES = [
    "阿莫西林0.5g，每日3次，遵医嘱", "血压120/80mmHg，心率88次/分，体温38.5℃", "白细胞12.5×10^9/L，血小板138×10^9/L", "空腹血糖7.8mmol/L，糖化6.5%", "HBV-DNA 13800000000IU/ml",
    "HCG 138000mIU/ml，孕酮25.3", "肌酐106umol/L，eGFR 78", "女，45岁，身高163cm，体重61.5kg", "ICD-10编码I21.001，E11.900", "国药准字H20013456", "批号13812345678",
    "产品批号：20240312A", "2024年3月5日做的CT，3月12日复查", "2024-03-05出院", "出生体重3200g，出生3天", "孩子6个月，吃米粉15天", "请问主任医生什么时候坐诊", "由于医生建议手术", "谢谢医生，谢谢大夫",
    "高血压专家和白血病专家", "前段时间医生说要复查", "每周专家门诊", "当时医生没说什么", "如果身边有医生，可以问医生", "告知任何医生你在吃华法林", "上周找医生开的舍曲林", "打流感疫苗问医生好", "患者高烧，男孩", "患者白天咳嗽，夜里好",
    "去附近的社区医院看看", "到当地人民医院急诊科", "三甲医院和县医院都行", "乡镇卫生院能打疫苗吗", "正规医院的眼科医生", "康复医院和儿童医院", "省级医院", "20-30mg，4-6小时一次", "电话咨询不能代替面诊", "微信扫一扫看报告",
    "CA125 35.6，CA19-9 1200", "剂量0.25mg 2片", "110次/分，打120",
]  # fmt: skip
# a sentence, and what must be gone from it
MASKED = [
    ("上周挂了史医生的号，他让我先查血。", "史"), ("我妈一直是翟大夫的病人。", "翟"), ("昨天郝医生给我换了药。", "郝"), ("请问温医生周三出诊吗？", "温"), ("谢谢高医生，我妈好多了。", "高"),
    ("骨科方医生说要打石膏。", "方"), ("是单医生给做的手术。", "单"), ("找了白大夫看过两次。", "白"), ("您好常医生，我想复诊。", "常"), ("听任医生说可以停药。", "任"), ("挂了欧阳医生的专家号。", "欧阳"),
    ("诸葛教授说要再观察。", "诸葛"), ("尉迟主任给开的方子。", "尉迟"), ("钱院长亲自来查房。", "钱"), ("孙护士给我打的针。", "孙"), ("岳老师教我做康复操。", "岳"), ("蒲女士今年四十二岁。", "蒲"),
    ("黎先生，男，50岁，咳嗽三天。", "黎"), ("裴小姐说她过敏。", "裴"), ("向冯建华主任医师咨询过。", "冯建华"), ("林致远副主任医师建议复查。", "林致远"), ("何小燕护士长帮我抽的血。", "何小燕"),
    ("司徒敏教授的门诊在哪天？", "司徒敏"), ("韩雪莓医生让我别着急。", "韩雪莓"), ("孩子是邹凤英大夫接生的。", "邹凤英"), ("昨晚急诊是陈立医生值班。", "陈立"), ("推荐一下滕医生的门诊时间。", "滕"),
    ("做胃镜的是龚涛医师。", "龚涛"), ("我叫贺长青，今年六十。", "贺长青"), ("我叫龙晓燕想咨询一下甲状腺。", "龙晓燕"), ("本人名叫袁大海，有高血压。", "袁大海"), ("孩子叫马小跳，五岁。", "马小跳"),
    ("我女儿叫庄晓，发烧两天。", "庄晓"), ("我是闫？不对，我是严文静，来复诊的。", "严文静"), ("我是赵一一，电话在病历上。", "赵一一"), ("我是苏婉的妈妈，她昨天出院。", "苏婉"), ("患者：孟庆山 性别：男", "孟庆山"),
    ("患者:石磊，男，33岁", "石磊"), ("病人：诸葛瑾，女", "诸葛瑾"), ("患儿顾小满，女，3岁，发热。", "顾小满"), ("患者牛大勇今年65岁，因胸闷入院。", "牛大勇"), ("患者何大壮(男，40岁)", "何大壮"),
    ("产妇秦岚，28岁，顺产。", "秦岚"), ("患者谭晓因头痛三天就诊。", "谭晓"), ("姓名：白雪", "白雪"), ("姓名:阿依古丽·买买提", "阿依古丽"), ("姓名：那颖 年龄：40", "那颖"), ("姓名 尹国华 性别 男", "尹国华"),
    ("主治医师：邬小平", "邬小平"), ("主治医生:甘露", "甘露"), ("经治医师：于洋", "于洋"), ("报告医师：安宁", "安宁"), ("审核医生：易中添", "易中添"), ("联系人：柏青", "柏青"),
    ("联系人是戚继光。", "戚继光"), ("家属：庞统，儿子", "庞统"), ("签名：毕升", "毕升"), ("主管护士：花木澜", "花木澜"), ("我老公叫沈万三，乙肝携带。", "沈万三"), ("我妈王秀瑛今年65岁，糖尿病。", "王秀瑛"),
    ("我爸李建国，男，70岁。", "李建国"), ("儿子于小宝，5岁，咳嗽。", "于小宝"), ("我姓秦，前天来看过。", "秦"), ("免贵姓戴，想问问结果。", "戴"), ("大夫姓伍，很耐心。", "伍"),
    ("我叫阿不都·热西提，来自喀什。", "阿不都"), ("小张医生说没事。", "张"), ("老李大夫退休了。", "李"), ("谢谢您汪医生！", "汪"), ("感谢樊主任的精心治疗。", "樊"), ("因为卓医生出差，改到下周。", "卓"),
    ("后来换了焦医生管床。", "焦"), ("今天鲁医生查房说能出院。", "鲁"), ("我们都觉得凌医生很负责。", "凌"), ("门诊温医生写的病历。", "温"), ("跟万医生预约了周五。", "万"), ("人民医院高医生看的片子。", "高"),
    ("麻烦房医生再看看报告。", "房"), ("心内科段主任让做造影。", "段"), ("给成医生留言了没回。", "成"), ("这是费医生开的单子。", "费"), ("找支医生改签。", "支"),
    ("电话13912345678，随时联系。", "13912345678"), ("手机号：139-1234-5678", "5678"), ("座机 0571 8888 6666", "6666"), ("打我爱人电话8765432", "8765432"),
    ("微信lily_2024，方便发照片。", "lily_2024"), ("加我VX: ab12345", "ab12345"), ("QQ：123456789", "123456789"), ("邮箱 a.b@mail.example.com", "a.b@"),
    ("身份证号是11010519491231002X。", "1949"), ("证件 110105 19491231 002X", "1949"), ("护照号G12345678", "G12345678"),
    ("医保卡号 A12345678", "A12345678"), ("病案号：0098765", "0098765"), ("卡号6222021234567890123", "6222"), ("出生日期：1985-12-01", "1985"),
    ("生日是1985年3月2日", "3月2日"), ("家住云岭市南浦区长安路66号5栋302。", "长安路"), ("地址：青山县白沙镇柳树村", "柳树村"), ("住址 东屏区幸福小区3号楼2单元501", "幸福小区"),
    ("寄到长江路108号301室。", "108号"), ("车牌京A12345停在急诊门口。", "A12345"), ("在清江市第一人民医院做的CT。", "清江"), ("去年在省二院做过造影。", "省二院"), ("在市中医院住院半个月。", "市中医院"),
    ("到湘雅看的专家。", "湘雅"), ("从华西转回来的。", "华西"), ("在妇幼保健院建的档。", "妇幼"), ("在儿童医院做过雾化。", "儿童医院"), ("武警总医院的片子。", "武警"), ("在第三人民医院查的。", "第三"),
    ("复旦附属中山医院看的。", "复旦"), ("南浦县妇幼保健院的报告。", "南浦"), ("康宁医院开的药。", "康宁"), ("仁济堂诊所打的针。", "仁济"), ("在云岭医科大学附属医院手术。", "云岭"),
    ("白沙镇卫生院的医生说是湿疹。", "白沙"), ("今天挂的是殷主任的号", "殷"), ("刚才石医生打电话说结果出来了", "石"), ("我找了于大夫三次", "于"), ("感谢两位医生：刘畅和孙浩然", "刘畅"),
    ("我的主治是蔡医生，人很好", "蔡"), ("请柳红医生看一下片子", "柳红"), ("跟您说一下金医生的意见", "金"), ("上个月是牛大夫给我做的穿刺", "牛"), ("路医生让我空腹来", "路"), ("麻烦转告一下解医生", "解"),
    ("北京的侯教授说没必要手术", "侯"), ("老中医姚大夫给抓的药", "姚"), ("口腔科的文医生补的牙", "文"), ("我们村的毛大夫开的药", "毛"), ("孩子的班主任何老师说他走神", "何"), ("我是冯晓刚，男，48岁，腰疼", "冯晓刚"),
    ("你好，我叫田甜", "田甜"), ("我叫米雪，28岁", "米雪"), ("我的名字叫王大锤，北方人", "王大锤"), ("他叫费祥，是我弟弟", "费祥"), ("患者姓名：乔木", "乔木"), ("患者姓名 乔一鸣 男", "乔一鸣"),
    ("病人叫侯宝霖，今年70", "侯宝霖"), ("患者：柴靖 女 44岁 反酸", "柴靖"), ("患者，郭京，男，30岁", "郭京"), ("患者周星星，今年34岁", "周星星"), ("患者于千，男，52岁，烫伤", "于千"),
    ("女儿李小露今年12岁", "李小露"), ("我丈夫杨过，右臂外伤", "杨过"), ("母亲赵闵，女，70岁", "赵闵"), ("主刀：华佗", "华佗"), ("管床医生：扁小鹊", "扁小鹊"), ("接诊医生：宋慈", "宋慈"),
    ("责任护士：南丁", "南丁"), ("手术医师: 李时珍", "李时珍"), ("监护人：林黛玉", "林黛玉"), ("家属：薛宝钗（母亲）", "薛宝钗"), ("紧急联系人:贾宝玉 13800138000", "贾宝玉"),
    ("申请医师：孙思邈", "孙思邈"), ("检查者：张仲景", "张仲景"), ("我电话是：1 3 9 1 2 3 4 5 6 7 8", "1 2 3 4 5 6 7 8"), ("打139.1234.5678找我", "5678"),
    ("联系电话021-6543 2109转8", "6543"), ("tel 0755-26543210", "26543210"), ("微信同手机号13712345678", "13712345678"),
    ("wx号:zhang-san_99", "zhang-san"), ("扣扣 234567890", "234567890"), ("我邮箱是zhangsan AT example.com 或者 zs@example.cn", "zs@"),
    ("身份证尾号不记得，号码320106198001012345", "320106"), ("社保卡号:330102199001011234", "330102"), ("住院号ZY0012345", "0012345"),
    ("床号12，住院号：A00123456", "A00123456"), ("出生：1990年1月1日", "1990"), ("我1988年6月生，女", "1988"), ("家在杭州市西湖区文三路12号", "文三路12号"),
    ("我住朝阳区望京街道花家地小区3号楼", "花家地"), ("地址是江苏省南京市鼓楼区中山北路1号", "中山北路"), ("上海瑞金医院内分泌科看的", "瑞金"), ("在浙大二院做的支架", "浙大二院"), ("我在301住过院", "301"),
    ("在省人民医院确诊", "省人民"), ("郑大一附院的报告", "一附院"), ("中山一院看过了", "中山一院"), ("在附属二院做的胃镜", "附属二院"), ("深圳市宝安区妇幼保健院建卡", "宝安"), ("去了沈阳盛京医院", "盛京"),
    ("在北医三院做试管", "北医三院"), ("到齐鲁医院做检查", "齐鲁"), ("解放军301医院", "301"), ("和睦家医院生的孩子", "和睦家"), ("廖医生你好，我又来了", "廖"), ("上次那个葛医生还在吗", "葛"),
    ("是不是梅医生给开的", "梅"), ("我信任米医生", "米"), ("按照车医生的嘱咐吃药", "车"), ("预约了包医生", "包"), ("听党医生说要打针", "党"), ("昨天见到了冷大夫", "冷"), ("尊敬的宁医生：", "宁"),
    ("请教康医生一个问题", "康"), ("宣医生和耿医生会诊", "宣"), ("主任姓盛，副主任姓秦", "盛"), ("董明霞女士，58岁", "董明霞"), ("雷均先生血压高", "雷均"), ("孔令泉教授门诊", "孔令泉"),
    ("王小娅护士很温柔", "王小娅"), ("病人谢廷丰，男，40岁", "谢廷丰"), ("患者容祖兰，女，30岁，咽痛", "容祖兰"), ("患者 郑秀云 女 45岁", "郑秀云"), ("患者姓名：成隆", "成隆"),
    ("姓名：欧阳振国，性别：男", "欧阳振国"), ("我叫成果果，17岁", "成果果"), ("我叫江一雁我有胃病", "江一雁"), ("孩子名叫安吉", "安吉"), ("我妻子汤薇，孕20周", "汤薇"), ("我爱人陈桂芳，卵巢癌术后", "陈桂芳"),
    ("外婆林秀珍，78岁，白内障", "林秀珍"), ("宝宝叫程程程，6个月", "程程程"), ("管床护士：鹿涵", "鹿涵"), ("签字：倪平", "倪平"), ("术者：吕洞宾", "吕洞宾"), ("我是葛佑，之前问过您", "葛佑"),
    ("本人张国栋，男，60岁", "张国栋"), ("挂了儿科阎医生", "阎"), ("阎医生、卞医生都看过", "卞"), ("是于主任收我住院的", "于"), ("找关大夫做的正骨", "关"), ("妇科龙主任说要刮宫", "龙"),
    ("黄主任让我住院", "黄"), ("被易医生批评了", "易"), ("前天挂了吕医生的普通号。", "吕"), ("我妈的主治医生姓丁，说要再观察。", "丁"), ("麻烦您转给薛主任看看。", "薛"), ("手术是骆大夫和同事一起做的。", "骆"),
    ("上午查房的时候顾医生说指标好了。", "顾"), ("我叫彭丽云，血糖有点高。", "彭丽云"), ("您好，我是武艳红，上周来过。", "武艳红"), ("患者：程志强，男，62岁，咳痰两周。", "程志强"), ("患者马玉兰，女，71岁。", "马玉兰"),
    ("患儿康康？大名姜子墨，男，4岁。", "姜子墨"), ("姓名：祁连山　性别：男　年龄：39", "祁连山"), ("姓名:贾静文 科室:内分泌", "贾静文"), ("主治医师：季学礼", "季学礼"), ("报告医生：殷素素 审核医生：屠友友", "屠友友"),
    ("联系人：霍启钢 13800138000", "霍启钢"), ("我婆婆郁金香女士做过支架。", "郁金香"), ("请问童教授下周出诊吗？", "童"), ("给我看病的是一位姓倪的大夫，倪大夫很好。", "倪"), ("听说傅医生退休了。", "傅"),
    ("谢谢毕医生耐心解答！", "毕"), ("在市二院拍的核磁。", "市二院"), ("在北京同仁医院做的白内障手术。", "同仁"), ("去年在江宁区中医院调理过。", "江宁"), ("到西安交大一附院复查。", "一附院"),
    ("在南方医科大学珠江医院生的宝宝。", "珠江"), ("手机13700137000，麻烦回电。", "13700137000"), ("微信 doctor_wang88", "doctor_wang88"),
    ("我的QQ是 87654321", "87654321"), ("身份证：320106198805123456", "320106"), ("住院号：202401234", "202401234"), ("家住武汉市洪山区珞喻路1037号。", "珞喻路"),
    ("我爸叫汤显祖，72岁，脑梗。", "汤显祖"), ("我老婆名叫苗若兰，孕早期。", "苗若兰"), ("经尤医生推荐过来的。", "尤"), ("昨天江医生、梁医生都来看过。", "江"), ("靳冬先生，45岁，胃镜示糜烂。", "靳冬"),
    ("詹医生说先吃两周药。", "詹"), ("外科的喻主任建议切除。", "喻"), ("本人姓名牟其忠，男。", "牟其忠"), ("患者名叫洪七公，手指麻木。", "洪七公"),
]  # fmt: skip
# mask_pii leaves these alone
KEPT = [
    "昨天复查一切正常医生说不用再吃药。", "非常感谢医生的耐心。", "打完疫苗医生让观察半小时。", "家门口边大夫开的中药没效果。", "老人身体很不舒服医生开了退烧药。", "我已经明白医生的意思。", "大便常规正常护士说没事。", "胎儿发育正常专家说放心。",
    "便秘好转以后自己停药医生不同意。", "情况好转副主任让出院。", "当地市县三甲医院都看过了。", "脸色发黄容易疲劳宝山区人民医院查过。", "血压有点高医生让我少吃盐。", "身高不够医生建议查骨龄。", "脸色发黄医生怀疑肝炎。", "尿色发白大夫让查尿。",
    "两张医生开的处方都过期了。", "孕12周医生让做NT。", "三周医生才回消息。", "这段医生讲的话我没听懂。", "病情平稳医生说可以出院。", "平时大夫都让多喝水。", "做了唐筛医生说低风险。", "打完石膏医生嘱咐抬高患肢。",
    "查完血常规医生没说什么。", "已经明白大夫的意思了。", "由于医生建议，我停了药。", "对于医生的话我半信半疑。", "于医生而言，这是小手术。", "便于医生判断请拍照。", "有利于医生了解病情。", "把化验单给医生看看。", "请医生帮忙看片子。",
    "麻烦医生看一下报告。", "祝医生工作顺利。", "祝您和家人健康，谢谢医生。", "任何医生都会这么说。", "主任医生什么时候坐诊？", "副主任医师的号难挂。", "专家号约不上。", "牙科医生说要拔掉。", "全科医生和专科医生有什么区别？",
    "女医生会温柔一点吗？", "老师说孩子上课坐不住。", "班主任打电话来说孩子吐了。", "我先生今年五十岁，打呼噜。", "各位先生女士请注意排队。", "这位小姐的包落在诊室。", "护士站在三楼。", "教授级别的专家门诊。", "院长信箱在一楼。",
    "大夫你好，我想咨询。", "医生：您好，哪里不舒服？", "医生：马上去急诊。", "医生：张开嘴我看看。", "医生：多久了？", "患者：高烧三天，咳嗽。", "患者：黄疸，女，30岁", "患者：头痛，男，45岁", "患者：白带增多，28岁。",
    "患者高热，男，40岁", "患者黄染，女，22岁", "患者常年咳嗽，男，70岁", "患者张口受限三天。", "患者严重贫血，女，51岁", "患者于三天前出现腹痛", "患者何时能出院？", "病人安静，呼吸平稳。", "患儿易哭闹，男，8个月",
    "产妇高龄，38岁", "家属：同意手术", "家属签字后才能手术。", "姓名：不详", "姓名和电话请写清楚。", "姓名、年龄、性别都填好了。", "联系人电话请写在病历上。", "我叫了救护车，还没到。", "我叫不醒他。", "孩子叫不醒，怎么办？",
    "他叫痛，翻来覆去。", "名字叫什么不重要。", "我是高血压十年了。", "我是严重的过敏体质。", "我是江苏人，在外地打工。", "我是孕妇，能吃吗？", "我是方便面吃多了。", "我是常年便秘。", "我是陈旧性骨折。", "我妈高血压，65岁。",
    "我爸马上60岁了。", "儿子常流鼻血，5岁。", "女儿白天好，夜里咳。", "宝宝黄疸，7天。", "孩子安静睡着了，3岁。", "老公易怒，45岁。", "奶奶白内障，80岁。", "爷爷石膏刚拆，77岁。", "我姓什么不重要。", "他性格内向，不爱说话。",
    "他姓的人很少。", "去附近的社区医院看看。", "建议到正规医院就诊。", "请到当地人民医院急诊科。", "县医院说要转院。", "省级医院和市级医院都可以。", "可以在儿童医院或综合医院看。", "三甲医院的眼科比较好。", "乡镇卫生院能打疫苗吗？",
    "私立医院和公立医院哪个好？", "贫困县医院设备有限。", "住在农村，看病不方便。", "住在三楼，爬楼喘。", "家住得远，复查不便。", "地址写错了，快递没到。", "走路18步就喘。", "血压120/80mmHg，心率88次/分。",
    "白细胞12.5×10^9/L。", "HBV-DNA 13800000000IU/ml", "国药准字H20013456", "批号13812345678", "2024年3月5日做的CT，3月12日复查。", "孩子6个月，吃米粉15天。",
    "阿莫西林0.5g，每日3次，遵医嘱。", "HCG 138000mIU/ml，孕酮25.3", "ICD-10编码I21.001", "CA125 35.6，CA19-9 1200", "体重61.5kg，身高163cm", "微信扫一扫看报告。",
    "电话咨询不能代替面诊。", "QQ群里说的可信吗？", "打120还是自己去？", "今天医生没来我很着急", "最近血糖控制得不好大夫加了药", "问了几个医生都说没事", "换了好几个大夫也没查出来", "请问有经验的医生怎么治", "听说老中医能治",
    "村里的赤脚医生给打的针", "私人诊所的大夫说要输液", "家庭医生签约有什么用", "急诊医生让做CT", "疼得厉害医生给打了止痛针", "心里很慌医生说是早搏", "停经四十天医生让验孕", "下周复查医生会看结果", "晚上没睡好老师说我没精神",
    "做完手术主任查房", "都说中医专家厉害", "去年检查医生就说有结节", "一直发高烧医生也没办法", "体温正常护士让回家", "产检一切正常专家说顺产没问题", "孩子黄疸偏高医生建议照蓝光", "脸上长斑大夫说是黄褐斑", "出院时医生交代一周后复查",
    "身上有疹子护士说别抓", "因为过敏医生不让吃海鲜", "说话有点含糊医生怀疑脑梗", "麻药过了医生才让喝水", "吃了甘草大夫说会水肿", "肝功能异常医生让休息", "患者左侧肢体无力两天", "患者常规体检发现结节", "患者高血压病史十年",
    "患者石膏固定后手指发麻", "患者白细胞升高，男，30岁", "患者明显好转，今天出院", "患者安装支架一年，男，60岁", "患者易疲劳，女，33岁", "患者平卧位，吸氧", "患者单侧耳鸣，女，41岁", "患者管路通畅", "患者：您好医生",
    "患者：麻烦您了", "患者：知道了，谢谢", "患者：好的", "病人：方便的话请回复", "家属：谢谢大夫", "医生：别着急", "医生：少吃盐，多运动", "医生：正常，不用担心", "我叫车去医院了", "我叫他别抽烟他不听", "大家都叫我小胖",
    "宝宝叫声嘶哑", "我是易过敏体质", "我是单身，没有性生活", "我是常见的O型血", "我是白领，久坐", "我是农民，没医保", "我是全职妈妈", "妈妈严重失眠，今年60岁", "爸爸石棉厂工作，65岁", "儿子皮肤过敏，今年8岁",
    "老婆高龄备孕，40岁", "奶奶强直性脊柱炎，70岁", "弟弟平足，15岁", "外婆白内障手术后，78岁", "妹妹花粉过敏，20岁", "孩子包皮过长，男，7岁", "女儿单眼皮，今年18岁", "到医院挂号要带什么？", "去大医院看看比较好",
    "市里的医院都没床位", "医院附近有药店吗？", "本地医院条件差", "建议去上级医院", "在医院住了一周", "在私立医院生的", "在县城医院拍的片子", "在镇上的卫生院打的针", "在诊所输了三天液", "在社区打了疫苗", "住院部在五号楼",
    "三号楼二层是检验科", "走过两条街3号口出来", "药房在门诊部一楼", "医保卡丢了怎么办", "住院号是什么意思", "身份证忘带了能挂号吗", "电话预约还是网上预约", "血小板138×10^9/L", "NT值1.2mm，孕13周",
    "尿蛋白2+，潜血3+", "心率120次，呼吸30次", "每次10ml，每日2次", "20240305查的血", "剂量从5mg加到10mg", "编号H20013456是国药准字", "体温38.5-39.2℃", "空腹7.0，餐后11.1",
    "夜里发热医生给开了退烧药", "查体温偏高护士让物理降温", "一次性查清楚医生省心", "手术成功医生很高兴", "孩子怕生医生哄了半天", "刚下班医生都走了", "住院期间护士很好", "饮食清淡医生叮嘱过", "检查单丢了护士补打一张",
    "排了一上午队专家才看五分钟", "有没有好的男科专家", "同一个医生看的", "隔壁床的病人说医生很忙", "凭经验大夫觉得没事", "老医生经验多", "小医生不敢签字", "新来的医生", "外国专家来会诊", "值班医生不在", "管床大夫换人了",
    "患者主诉头晕", "患者有高血压史，男，60岁", "患者高度近视，男，18岁", "患者任何药都过敏", "患者康复良好，今日出院", "患者毛发稀疏，女，20岁", "患者黄疸消退，男，5天", "患者安全意识差", "患者时常心慌，女，40岁",
    "患者石淋，男，35岁", "我叫什么你别管", "他叫得很大声", "我是易胖体质，怎么减肥", "我是石家庄的，怎么挂号", "我是常州人，今年30岁", "我是温州的", "我是高三学生，失眠", "我是毛囊炎", "孩子高烧，3岁", "孩子易惊醒，今年2岁",
    "早上起来头晕医生说是低血压。", "第一次看医生有点紧张。", "打了两针医生说还要再打。", "医生我想问一下这个严重吗？", "感冒好了医生让停药。", "一个人看病医生嫌我啰嗦。", "外地医生看不了我的医保。", "要不要换个医生看看？",
    "住院一周医生没来几次。", "孩子怕疼护士哄着打的针。", "她说话慢大夫听得仔细。", "有没有好大夫推荐？", "请专家会诊要多少钱？", "我的先生对青霉素过敏。", "女士优先排队检查。", "老师让孩子请假看病。", "院长查房在周三。",
    "主任门诊约满了。", "找熟悉的医生比较放心。", "患者反复发热一周，男，28岁。", "患者高位截瘫，男，36岁。", "患者黄体功能不足，女，31岁。", "患者石女，求助。", "患者：没有了，谢谢。", "患者：晚上好，医生。", "医生：平时吃什么药？",
    "医生：常见的是感冒。", "家属：已经通知。", "我叫他去医院他不肯。", "我是金融行业的，久坐。", "我是白羊座，跟病没关系吧。", "爸爸高烧不退，今年66岁。", "妈妈方才吐了，女，58岁。", "孩子常便秘，男，6岁。", "去县里的医院检查过。",
    "省城的大医院更靠谱吗？", "在医院陪床三天。", "白细胞4.5，中性粒62%。", "孕28周，胎心146次。", "2023年12月5日复查血脂。",
]  # fmt: skip
# written when the rules stood; 28 of 30 and none wrong then (a surname, 萧, was added since)
UNSEEN = [
    ("杨医生，我的报告出来了。", "杨"), ("上个月找丁医生做的甲状腺穿刺。", "丁"), ("呼吸科的魏主任说可以减量。", "魏"), ("给我爸看病的是贾大夫。", "贾"), ("请韦医生有空回我。", "韦"), ("洪教授的号太难挂。", "洪"),
    ("付医生说再吃一个疗程。", "付"), ("程医生建议住院。", "程"), ("我叫杨柳青，产后两个月。", "杨柳青"), ("我叫丁垒，尿酸高。", "丁垒"), ("患者：杨过儿，男，19岁，骨折。", "杨过儿"),
    ("患者韦小宝，男，25岁，尿频。", "韦小宝"), ("患者：闫泥，女，49岁", "闫泥"), ("姓名：赖冠林 性别：男", "赖冠林"), ("主治医师：程开佳", "程开佳"), ("联系人：付迪生", "付迪生"),
    ("孩子叫贾宝，两岁半。", "贾宝"), ("我是杨江，来取报告。", "杨江"), ("我老公丁俊辉，男，36岁，腰突。", "丁俊辉"), ("王护士长人很好。", "王"), ("刘主任、陈主任联合会诊。", "刘"), ("挂的是周四洪主任的号。", "洪"),
    ("徐静雷女士空腹血糖6.8。", "徐静雷"), ("产妇杨玉莹，32岁。", "杨玉莹"), ("谢谢曹医生和各位护士。", "曹"), ("那天值班的是韩医生。", "韩"), ("家属：萧远山", "萧远山"), ("我儿子叫韦一笑，七岁。", "韦一笑"),
    ("病人名字是段玉，男。", "段玉"), ("邓医生让我少熬夜。", "邓"),
]  # fmt: skip
UNSEEN_KEPT = [
    "左手发麻医生让查颈椎。", "右腿疼痛大夫建议拍片。", "小便发黄医生说多喝水。", "孕检正常医生让按时产检。", "疗程结束医生停了药。", "病程较长医生建议手术。", "这次检查医生很仔细。", "不舒服就找医生。", "麻醉医生来签字。",
    "产科医生和儿科医生都在。", "皮肤科专家门诊在几楼？", "请问这种情况医生会怎么处理？", "问过医生说不传染。", "患者左腿无力，男，60岁。", "患者右侧偏瘫，女，70岁。", "患者程度较轻，男，30岁。", "患者司机，男，45岁，腰痛。",
    "患者洪水中受伤，男，50岁。", "患者单身，女，29岁。", "患者：明白了，谢谢医生。", "我叫外卖的时候肚子疼。", "我是杨梅过敏。", "我是丁克家庭。", "我是司机，久坐腰疼。", "孩子叫喊着肚子疼。", "妈妈左眼看不清，65岁。",
    "爷爷步态不稳，80岁。", "宝宝易吐奶，2个月。", "老百姓都知道。", "住院押金交了三千。",
]  # fmt: skip
# something is masked in each of these
SOMETHING = [
    "挂了单医生的号。", "我妈是蒲医生的病人。", "我是赵一一，电话在病历上。", "患者：赵一一 性别：男", "主治医师：赵一一", "赵一一老师给我做的康复。", "手机：138 1234 5678", "电话：１３８１２３４５６７８",
    "电话 010-8888 6666", "V信abc12345", "微信号是：wang_yi123", "我的身份证是11010519491231002X", "身份证 110105 19491231 002X", "家住清江市东河区幸福路18号3单元502室",
    "在市一院住院", "在北大深圳医院查的", "在解放军总医院看的", "到协和去看", "在肿瘤医院放疗", "门诊号:2024030512", "就诊卡号 0012345678", "护照E12345678",
]  # fmt: skip


@pytest.mark.parametrize("text,kind,private", PRIVATE)
def test_private_parts_are_masked(program, text, kind, private):
    masked = program.mask_pii(text)
    assert f"【{kind}】" in masked and private not in masked
    assert program.mask_pii(masked) == masked


@pytest.mark.parametrize("text", SURVIVES)
def test_medicine_survives_masking(program, text):
    assert program.mask_pii(text) == text


def test_only_the_private_part_goes(program):
    text = "患者顾小满，女，52岁，张医生开的氨氯地平5mg，电话13912345678，血压150/95。"
    masked = "患者【姓名】，女，52岁，【姓名】医生开的氨氯地平5mg，电话【电话】，血压150/95。"
    assert program.mask_pii(text) == masked


@given(
    st.text(
        alphabet=st.sampled_from("张医生在北京市医院住院号电话微信QQ1380-9 @.x出生年月日患者，男女【】"),
        max_size=60,
    )
)
def test_masking_is_idempotent(program, text):
    masked = program.mask_pii(text)
    assert program.mask_pii(masked) == masked


@given(st.integers(0, 10**17 - 1))
def test_only_right_check_digits_are_identity_cards(program, number):
    body = f"{110101 + number % 600000:06d}{1930 + number % 90}{1 + number % 12:02d}{1 + number % 28:02d}{number % 1000:03d}"
    last = "10X98765432"[sum(int(digit) * 2 ** (17 - place) for place, digit in enumerate(body)) % 11]
    assert program.mask_pii(f"编码在此 {body}{last}") == "编码在此 【身份证】"
    wrong = "0" if last != "0" else "1"
    assert "【身份证】" not in program.mask_pii(f"此处 {body}{wrong}")


def make_row(question, answer="建议多休息，注意观察，必要时就医。", specialty="内科", risk="low"):
    meta = {"source": "t", "risk_level": risk, "specialty": specialty, "complexity": "simple"}
    return {"instruction": "答", "input": question, "output": answer, "meta": meta}


STOMACH = "我今年三十五岁，最近一周总觉得胃里不舒服，吃完饭就胀得厉害，有时候还反酸，需要做胃镜吗？"
VARIANTS = {
    "the same": STOMACH,
    "punctuation": STOMACH.replace("，", " ").replace("？", "??"),
    "courtesy": f"医生您好，{STOMACH}谢谢医生！",
    "one letter": STOMACH.replace("不舒服", "不舒坦"),
    "a particle": STOMACH.replace("厉害", "很厉害"),
}
OTHERS = [
    "我今年三十五岁，最近一周总觉得右膝盖发软，上楼梯会疼，需要拍片子吗？",
    "孩子两岁，早上起来眼睛有很多眼屎，黏得睁不开，是不是结膜炎？",
    "孕二十周，产检说血糖偏高，平时应该怎么吃？",
]


@pytest.mark.parametrize("variant", VARIANTS.values(), ids=VARIANTS)
def test_near_duplicates_leave_the_better_answer(program, variant):
    good, bad = make_row(STOMACH), make_row(variant, "不用管它。")
    others = [make_row(text) for text in OTHERS]
    for rows in ([good, bad, *others], [bad, *others, good]):
        kept = program.drop_duplicates(rows)
        assert [row for row in rows if row is not bad] == kept


def test_other_questions_are_kept(program):
    rows = [
        make_row(text)
        for text in (STOMACH, *OTHERS, "高血压能吃党参吗？", "高血压能吃人参吗？", "糖尿病能吃西瓜吗？")
    ]
    assert program.drop_duplicates(rows) == rows and program.drop_duplicates([]) == []
    assert len(set(program.group_similar(rows))) == len(rows)


def make_rows(count):
    """Return rows of clauses put together at random, a tenth of them once more with a change."""
    rng = random.Random(5)
    letters = "".join(
        dict.fromkeys("".join(text for text, *_ in PRIVATE) + "".join(SURVIVES) + STOMACH + "".join(OTHERS))
    )
    rows = []
    for _ in range(count):
        question = "".join(rng.choices(letters, k=rng.randint(20, 60)))
        rows.append(
            make_row(
                question,
                specialty=rng.choice(["内科", "外科", "儿科"]),
                risk=rng.choice(["low", "low", "high"]),
            )
        )
        if rng.random() < 0.1:
            at = rng.randrange(len(question))
            rows.append(make_row(question[:at] + rng.choice(letters) + question[at + 1 :], specialty="外科"))
    return rows


def test_split_is_stratified_and_shares_no_question(program):
    rows = make_rows(2000)
    rows += [make_row(variant) for variant in VARIANTS.values()] * 10
    splits = program.split_rows(rows)
    assert set(splits) == {"train", "val", "test", "gold"}
    assert sum(len(splits[name]) for name in ("train", "val", "test")) == len(rows)
    for name, share in (("train", 0.8), ("val", 0.1), ("test", 0.1)):
        assert abs(len(splits[name]) / len(rows) - share) < 0.01
        for column, values in (("specialty", ("内科", "儿科")), ("risk_level", ("low", "high"))):
            for value in values:
                whole = sum(row["meta"][column] == value for row in rows)
                part = sum(row["meta"][column] == value for row in splits[name])
                assert abs(part / whole - share) < 0.03, (name, value)
    pieces = {
        name: [set(program.shingles(row["input"])) for row in splits[name]]
        for name in ("train", "val", "test")
    }
    holders = {}  # pair of letters -> questions of train
    for i, piece in enumerate(pieces["train"]):
        for pair in piece:
            holders.setdefault(pair, []).append(i)
    for name in ("val", "test"):
        for piece in pieces[name]:
            shared = Counter(i for pair in piece for i in holders.get(pair, ()))
            for i, count in shared.most_common(3):
                assert count / len(piece | pieces["train"][i]) < 0.8
    assert all(any(row is other for other in splits["test"]) for row in splits["gold"])
    assert 0 < len(splits["gold"]) < 0.3 * len(splits["test"])
    assert program.split_rows(rows) == splits


def test_smaller_subsets_are_nested(program):
    """A run takes the first rows of a training split whose order is random and fixed."""
    train = program.split_rows(make_rows(500))["train"]
    names = Counter(row["meta"]["specialty"] for row in train[:100])
    assert len(names) == 3 and min(names.values()) > 15


FINDINGS = [
    ("乙肝两对半查出来，表面抗原是阳性，其他都正常，需要治疗吗？", "乙肝两对半查出来，表面抗原是阴性，其他都正常，需要治疗吗？"), ("上周体检做了彩超，左侧甲状腺有个结节，要不要穿刺检查？", "上周体检做了彩超，右侧甲状腺有个结节，要不要穿刺检查？"),
    ("孩子发烧三天了，最高39度，吃了退烧药又烧，怎么办呢？", "孩子发烧五天了，最高39度，吃了退烧药又烧，怎么办呢？"), ("空腹血糖7.8，糖化血红蛋白6.9，平时没有感觉，要吃药吗？", "空腹血糖5.8，糖化血红蛋白6.9，平时没有感觉，要吃药吗？"),
    ("胸片说有阴影，医生建议做增强CT，我有点担心，该做吗？", "胸片说无阴影，医生建议做增强CT，我有点担心，该做吗？"), ("化验单上尿蛋白(+)，潜血正常，平时腰酸，要紧吗？", "化验单上尿蛋白(-)，潜血正常，平时腰酸，要紧吗？"),
    ("病理报告说是良性肿瘤，已经切干净了，多久复查一次？", "病理报告说是恶性肿瘤，已经切干净了，多久复查一次？"), ("最近血压偏高，早上起来头晕，下午就好些，要换药吗？", "最近血压偏低，早上起来头晕，下午就好些，要换药吗？"),
    ("TSH↑，游离T4正常，备孕中，需要吃优甲乐吗？", "TSH↓，游离T4正常，备孕中，需要吃优甲乐吗？"), ("体检发现肝上有个囊肿，半年后复查说变大了，要不要手术切掉？", "体检发现肝上有个囊肿，半年后复查说变小了，要不要手术切掉？"),
    ("医生说我是甲型流感，烧了两天，家里有老人，需要隔离吗？", "医生说我是乙型流感，烧了两天，家里有老人，需要隔离吗？"), ("甲状腺功能化验回来了，结果正常，可还是觉得累，怎么办？", "甲状腺功能化验回来了，结果异常，可还是觉得累，怎么办？"),
    ("32岁女性，停经50天，小腹隐隐作痛，是什么原因？", "32岁男性，停经50天，小腹隐隐作痛，是什么原因？"),
]  # fmt: skip


@pytest.mark.parametrize("one,other", FINDINGS)
def test_questions_that_differ_in_a_finding_are_kept(program, one, other):
    rows = [make_row(one), make_row(other), make_row(one + "谢谢医生", "不用管它。")]
    assert program.drop_duplicates(rows) == rows[:2]
    assert len(set(program.group_similar(rows))) == 1  # and all on one side of the split


# ---------------------------------------------------------------- masking, as rates
@pytest.mark.parametrize("text", SOMETHING)
def test_something_is_masked(program, text):
    assert program.mask_pii(text) != text


def rates(program, private: list[tuple[str, str]], kept: list[str]) -> tuple[float, float]:
    """Return recall and precision of the mask over sentences of both kinds."""
    found = sum(part not in program.mask_pii(text) for text, part in private)
    wrong = sum(program.mask_pii(text) != text for text in kept)
    return found / len(private), found / (found + wrong)


def test_masking_finds_names_and_nothing_else(program):
    names = [(text, part) for text, part in MASKED if re.fullmatch("[㐀-鿿]{1,4}", part)]
    assert len(MASKED) >= 250 and len(KEPT) >= 280 and len(names) >= 180
    for private in (MASKED, names):
        recall, precision = rates(program, private, KEPT)
        assert recall >= 0.95 and precision >= 0.98
    recall, precision = rates(program, UNSEEN, UNSEEN_KEPT)
    assert recall >= 0.9 and precision >= 0.95


@pytest.mark.parametrize("text", [text for text, _ in MASKED])
def test_masking_again_changes_nothing(program, text):
    masked = program.mask_pii(text)
    assert program.mask_pii(masked) == masked


UNITS = "医生 张医生 我叫张 患者： a a@ 1 12␣ 138␣ 市 区医院 第一医院 省市县 路1号 < <a␣ <script <!-- &lt; 家住市 号 ( 0571- 没有 孩子 张大 阿·".split()


@pytest.mark.parametrize("unit", UNITS)
def test_a_text_of_anything_is_masked_in_a_second(program, unit):
    unit = unit.replace("␣", " ")
    text = unit * (100_000 // len(unit))
    for work in (program.clean, program.mask_pii, program.still_private, program.is_urgent):
        begin = time.process_time()
        work(text)
        assert time.process_time() - begin < 2.5, work.__name__


def test_the_check_is_not_the_mask(program, monkeypatch):
    """is_deidentified is False where the mask lets something through, and mostly True where there is nothing."""
    monkeypatch.setattr(program, "mask_pii", lambda text: text)
    leaks = [
        "我的电话13912345678",
        "身份证11010519491231002X",
        "我叫王芳，头痛三天",
        "微信abc12345联系",
        "发到a@example.cn",
        "张建国主任说要手术",
        "住5号302室",
    ]
    for leak in leaks:
        assert program.still_private(leak), leak
        parts = program.to_instruction({"question": f"{leak}。怎么办？", "answer": ANSWER})
        assert program.to_row(parts, "内科", "a.csv")["meta"]["is_deidentified"] is False
    assert sum(not program.still_private(text) for text in KEPT) / len(KEPT) > 0.95
    assert not any(
        program.still_private(text) for text in ("我叫【姓名】，电话【电话】", "【姓名】医生说没事")
    )


# ---------------------------------------------------------------- rows
def row_of(program, **record):
    return program.to_row(program.to_instruction(record), record.get("department", ""), "a.csv")


def test_to_row(program):
    row = row_of(
        program,
        department="内科",
        title="题",
        ask="我是１３９１２３４５６７８，头痛三天怎么办？",
        answer="<p>注意休息，必要时就医。</p>",
    )
    assert row["input"] == "我是【电话】，头痛三天怎么办？" and row["output"] == "注意休息，必要时就医。"
    assert row["instruction"] == program.PLAIN and set(row["meta"]) == {
        "source", "risk_level", "specialty", "complexity", "lang_style", "is_deidentified",
    }  # fmt: skip
    assert row["meta"]["is_deidentified"] is True and row["meta"]["specialty"] == "内科"
    thought = row_of(
        program, question="头痛三天怎么办？", think="先看警示征象", answer="注意休息，必要时就医。"
    )
    assert thought["output"] == "<think>\n先看警示征象\n</think>\n\n注意休息，必要时就医。"
    assert thought["instruction"] == program.THINK and thought["meta"]["specialty"] == "综合"


def test_nothing_of_a_record_is_lost(program):
    joined = row_of(program, instruction="语气温和。", input=QUESTION, output=ANSWER)
    assert joined["input"] == f"语气温和。\n{QUESTION}"
    talk = row_of(program, instruction="十天了", output=ANSWER, history=[["我手痒", "多久了？"]])
    assert talk["input"] == "患者：我手痒\n医生：多久了？\n患者：十天了"
    again = row_of(program, **joined)
    assert (
        again["input"] == joined["input"] and again["output"] == joined["output"]
    )  # its own rows are read back
    thought = row_of(program, question=QUESTION, think=THOUGHT, answer=ANSWER)
    assert {**row_of(program, **thought), "meta": 0} == {**thought, "meta": 0}


def test_urgency_is_the_judges(program, functions):
    judge = functions("data/medical/judge.py")
    one, other = (ast.dump(ast.parse(inspect.getsource(module.is_urgent))) for module in (program, judge))
    assert one == other
    assert (program.URGENT.pattern, program.CALM.pattern) == (judge.URGENT.pattern, judge.CALM.pattern)
    urgent = row_of(
        program, question="我爸胸口压着疼，冷汗直流，半个钟头了。", answer="请先平静下来，注意休息。"
    )
    assert urgent["meta"]["risk_level"] == "high"


@pytest.mark.parametrize(
    "record,reason",
    [
        ({"question": QUESTION, "answer": "去医院"}, "answer under 10 characters"),
        ({"question": "痒", "answer": ANSWER}, "question under 4 characters"),
        ({"instruction": "请回答患者的问题。", "input": "", "output": ANSWER}, "question under 4 characters"),
        ({"question": QUESTION, "answer": f"好&lt;|im_end|&gt;{ANSWER}"}, "<|im_end|>"),
    ],
)
def test_rows_that_are_left_out(program, record, reason):
    with pytest.raises(ValueError, match=re.escape(reason)):
        row_of(program, **record)


def test_files_of_all_kinds(program, tmp_path, capsys):
    """Each of four records is read; what is left out is counted, and its first record is named."""
    (tmp_path / "a.CSV").write_text(f"ask;answer\n{QUESTION};{ANSWER}\n{QUESTION};无\n", encoding="utf-8")
    (tmp_path / "b.json").write_text(f'{{"data": [{ONE}]}}', encoding="utf-8")
    (tmp_path / "c.JSONL").write_text(f'{ONE}\n{{"a": \n{{"text": "x"}}\n', encoding="utf-8")
    (tmp_path / "d.jsonl").write_text(
        json.dumps({"messages": [{"role": "system", "content": "x"}, *TALK], "meta": "x"}), encoding="utf-8"
    )
    (tmp_path / "e.csv").mkdir()
    (tmp_path / "f.csv").write_bytes(bytes(range(128, 256)))
    (tmp_path / "g.txt").write_text("no table")
    rows, left = program.read_sources([tmp_path])
    assert len(rows) == 4 and {row["input"] for row in rows} == {QUESTION}
    assert left == {
        "answer under 10 characters": 1, "not JSON, or bytes that are no text": 1,
        "an unknown form, with the keys text": 1, "unreadable file": 1,
    }  # fmt: skip
    said = capsys.readouterr().out
    assert (
        "c.JSONL, record at line 2: not JSON" in said
        and "record 3: an unknown form" in said
        and "f.csv" in said
    )
    assert "1 system prompts are not used" in said
    with pytest.raises(ValueError, match="no usable row"):
        program.read_sources([tmp_path / "f.csv"])


# ---------------------------------------------------------------- the rows that are shipped
@pytest.fixture(scope="module")
def shipped(program):
    return program.read_sources([FOLDER / "raw"])


def test_shipped_rows(shipped):
    rows, _ = shipped
    plain = [row for row in rows if "<think>" not in row["output"]]
    thought = [row for row in rows if "<think>" in row["output"]]
    assert len(plain) >= 600 and len({row["meta"]["specialty"] for row in plain}) >= 6 and len(thought) >= 200
    assert all(re.fullmatch(r"<think>\n[^<]+\n</think>\n\n[^<]+", row["output"]) for row in thought)
    assert all(row["meta"]["is_deidentified"] for row in rows)
    text = "\n".join(row["input"] + row["output"] for row in rows)
    assert not re.search(r"199\d{8}|example\.c|清江|云岭|南浦|<p>|&nbsp;|script|限时优惠|[０-９]", text)
    assert {row["meta"]["risk_level"] for row in rows} == {"low", "medium", "high"}


def test_planted_defects_are_found_as_documented(program, shipped):
    rows, left = shipped
    said = re.findall(r"(?m)^\| (.+?) \| (\d+) \|", (FOLDER / "README.md").read_text(encoding="utf-8"))
    planted = {name: int(count) for name, count in said}
    assert left["broken line"] == sum(
        count for name, count in planted.items() if name.startswith("lines with")
    )
    assert left["unreadable file"] == planted["an empty file"] + planted["a file of random bytes"]
    assert left["answer under 10 characters"] == planted["answers of three characters"]
    assert left["no output"] == planted["empty answers"]
    copies = sum(count for name, count in planted.items() if "duplicates" in name or "twice" in name)
    dropped = len(rows) - len(program.drop_duplicates(rows))
    assert 0.85 * copies <= dropped <= copies
    assert sum(len(row["output"]) > 2500 for row in rows) == planted["answers of 3,000 characters"]
    masks = Counter(re.findall("【(.+?)】", "".join(row["input"] + row["output"] for row in rows)))
    names = planted["invented hospitals with an invented doctor"] + planted["invented patients' names"]
    assert (
        abs(masks["姓名"] - names) <= 2
        and masks["医院"] == planted["invented hospitals with an invented doctor"]
    )
    assert masks["身份证"] == planted["ID-card numbers with a right check digit"]
    assert (
        masks["银行卡"] == planted["bank-card numbers (Luhn)"]
        and masks["邮箱"] == planted["e-mail addresses"]
    )


def test_shipped_splits_share_nothing(program):
    splits = {
        name: program.read_records(FOLDER / f"{name}.jsonl") for name in ("train", "val", "test", "gold")
    }
    train = {row["input"] for row in splits["train"]}
    assert not train & {row["input"] for name in ("val", "test") for row in splits[name]}
    assert sum(row["meta"]["risk_level"] == "high" for row in splits["test"]) >= 8
    assert sum("<think>" in row["output"] for row in splits["test"]) >= 10
    assert all(row in splits["test"] for row in splits["gold"])


def run(folder: Path, *arguments, **environment) -> subprocess.CompletedProcess:
    """Run a copy of the program that writes to a folder, as a user does."""
    for name in ("prepare.py", "terms.json"):
        shutil.copy(FOLDER / name, folder)
    command = [sys.executable, str(folder / "prepare.py"), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, env={**os.environ, **environment}, timeout=120)


def test_the_shipped_rows_are_what_the_program_writes(tmp_path):
    """Byte for byte, from a terminal that cannot show Chinese, with another seed of Python's hashes."""
    done = run(tmp_path, FOLDER / "raw", PYTHONIOENCODING="cp1252", PYTHONHASHSEED="7", PYTHONUTF8="0")
    assert done.returncode == 0, done.stderr.decode(errors="replace")
    assert b"| records read |" in done.stdout and b"| left out: broken line |" in done.stdout
    for name in ("train", "val", "test", "gold"):
        assert (tmp_path / f"{name}.jsonl").read_bytes() == (FOLDER / f"{name}.jsonl").read_bytes(), name


def test_a_folder_without_rows_is_one_line(tmp_path):
    (tmp_path / "mine").mkdir()
    done = run(tmp_path, tmp_path / "mine")
    assert (
        done.returncode == 1
        and done.stderr.decode().count("\n") == 1
        and "no usable row" in done.stderr.decode()
    )
    assert not list(tmp_path.glob("*.jsonl"))


def test_a_figure_where_it_is_asked_for(tmp_path):
    (tmp_path / "mine.jsonl").write_text(f"{ONE}\n{ONE}\n", encoding="utf-8")
    shutil.copy(FOLDER / "terms.json", tmp_path)
    text = (FOLDER / "prepare.py").read_text(encoding="utf-8")
    assert text.count("\nFIGURE = False") == 1
    (tmp_path / "prepare.py").write_text(
        text.replace("\nFIGURE = False", "\nFIGURE = True"), encoding="utf-8"
    )
    (tmp_path / "in").mkdir()
    shutil.move(tmp_path / "mine.jsonl", tmp_path / "in")
    done = subprocess.run(
        [sys.executable, tmp_path / "prepare.py", tmp_path / "in"], capture_output=True, timeout=120
    )
    assert done.returncode == 0, done.stderr.decode()
    assert (tmp_path / "data.png").stat().st_size > 5000
    assert sum(bool((tmp_path / f"{name}.jsonl").read_text()) for name in ("train", "val", "test")) == 1
