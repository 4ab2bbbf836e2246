"""Instructions: the common forms, what is the same question, what is refused and named, encodings, speed."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

ROOT = Path(__file__).resolve().parent.parent
PROGRAM = "data/alpaca/prepare.py"


@pytest.fixture(scope="module")
def prepare(functions):
    return functions(PROGRAM)


@pytest.fixture
def read(prepare, tmp_path):
    """Return read(records) -> (rows, what was left out) of a JSON file with them."""

    def read(records, name="a.json"):
        (tmp_path / name).write_text(json.dumps(records), encoding="utf-8")
        return prepare.read_instructions(tmp_path / name, tmp_path / "out.jsonl")

    return read


# Forms

RIVER = {"instruction": "Name a river.", "output": "The Elbe."}
TALK = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Name a river."},
    {"role": "assistant", "content": "The Elbe."},
]
FORMS = {
    "alpaca": (RIVER, RIVER),
    "empty input": (RIVER | {"input": "", "history": [], "system": None}, RIVER),
    "input": (RIVER | {"input": "in Europe"}, RIVER | {"input": "in Europe"}),
    "prompt and response": ({"prompt": "Name a river.", "response": "The Elbe."}, RIVER),
    "prompt and completion": ({"prompt": "Name a river.", "completion": "The Elbe."}, RIVER),
    "question and answer": ({"Question": "Name a river.", "Answer": "The Elbe."}, RIVER),
    "query": ({"query": "Name a river.", "response": "The Elbe."}, RIVER),
    "Chinese": ({"问题": "Name a river.", "答案": "The Elbe."}, RIVER),
    "messages": ({"messages": TALK[1:]}, RIVER),
    "messages with system": ({"messages": TALK}, RIVER | {"system": "Be brief."}),
    "ShareGPT": ({"conversations": [{"from": "human", "value": "Name a river."}, {"from": "gpt", "value": "The Elbe."}]}, RIVER),
    "TRL": ({"prompt": TALK[:2], "completion": TALK[2:]}, RIVER | {"system": "Be brief."}),
    "two turns": ({"messages": TALK[1:] + [{"role": "user", "content": "Another?"}, {"role": "assistant", "content": "The Rhine."}]}, {"history": [["Name a river.", "The Elbe."]], "instruction": "Another?", "output": "The Rhine."}),
    "history and system": ({"instruction": "And in winter?", "input": "", "output": "Cold.", "system": "You are a weather bot.", "history": [["And in summer?", "Warm."]]}, {"system": "You are a weather bot.", "history": [["And in summer?", "Warm."]], "instruction": "And in winter?", "output": "Cold."}),
    "a list of one": ({"instruction": "Name a river.", "output": ["The Elbe."]}, RIVER),
    "a number": ({"instruction": "Legs of a snake?", "output": 0}, {"instruction": "Legs of a snake?", "output": "0"}),
    "false": ({"instruction": "Is water dry?", "output": False}, {"instruction": "Is water dry?", "output": "false"}),
    "its own split": (RIVER | {"meta": {"split": "test", "law": "x"}}, RIVER | {"meta": {"split": "test"}}),
    "meta that is no object": (RIVER | {"meta": "x"}, RIVER),
    "meta without a split": (RIVER | {"meta": {"split": 3}}, RIVER),
}  # fmt: skip


@pytest.mark.parametrize("form", FORMS)
def test_common_forms(read, form):
    record, wanted = FORMS[form]
    rows, left = read([record])
    assert rows == [wanted] and list(rows[0]) == [
        key for key in (*"system history instruction input output meta".split(),) if key in wanted
    ]
    assert not left


@pytest.mark.parametrize(
    "write",
    [
        json.dumps,
        lambda rows: "\n".join(map(json.dumps, rows)),
        lambda rows: "\n\n".join(json.dumps(row, indent=1) for row in rows) + "\n",
        lambda rows: json.dumps({"data": rows}),
        lambda rows: "\ufeff" + ",\n".join(map(json.dumps, rows)) + ",",
    ],
)
@pytest.mark.parametrize("name", ["a.json", "a.jsonl", "a.JSONL", "train_zh_0.json", "a.txt"])
def test_lists_and_lines(prepare, tmp_path, write, name):
    records = [{"instruction": f"Name {n} rivers.", "output": "Elbe"} for n in range(5)]
    (tmp_path / name).write_text(write(records), encoding="utf-8")
    assert prepare.read_instructions(tmp_path / name, tmp_path / "out") == (records, [])


@pytest.mark.parametrize(
    "encoding", ["utf-8", "utf-8-sig", "gb18030", "utf-16", "utf-16-le", "utf-16-be", "big5"]
)
def test_encodings(prepare, tmp_path, encoding):
    record = {"instruction": "請寫一則停水公告", "output": "因管線維修，本社區明日上午停水，請住戶提前儲水。"}
    (tmp_path / "a.jsonl").write_bytes(json.dumps(record, ensure_ascii=False).encode(encoding))
    assert prepare.read_instructions(tmp_path / "a.jsonl", tmp_path / "out") == ([record], [])


# Duplicates


@pytest.mark.parametrize(
    "questions",
    [
        ["Hello world in C++", "Hello world in C#", "Hello world in C"],
        ["What is 12 + 4?", "What is 12 - 4?", "What is 12 4?", "What is 1.24?", "What is 124?"],
        ["Is a < b?", "Is a > b?", "Is a <= b?", "Is a b?"],
        ["Translate: 😀", "Translate: 😢", "Translate:"],
        ["a == b", "a != b", "a = b"],
        ["5 m²", "5 m2", "①", "1", "五％", "五"],
        ["他说：“好。”", "他说：好。"],
    ],
)
def test_questions_that_differ_in_signs_are_kept(read, questions):
    rows, left = read([{"instruction": question, "output": "x"} for question in questions])
    assert [row["instruction"] for row in rows] == questions and not left
    rows, _ = read([{"instruction": "Explain", "input": question, "output": "x"} for question in questions])
    assert [row["input"] for row in rows] == questions


@pytest.mark.parametrize("again", ["Name  a river.", " name a River.\n", "NAME A RIVER."])
def test_the_same_question_is_kept_once_and_named(read, again):
    rows, left = read([RIVER, {"instruction": again, "output": "The Rhine."}])
    assert rows == [RIVER] and len(left) == 1 and "a.json, record 2: " in left[0]


def test_the_same_question_after_another_talk_is_another_one(read):
    rows, left = read(
        [
            RIVER,
            RIVER | {"history": [["Hi", "Hello"]]},
            RIVER | {"system": "Be rude."},
            RIVER | {"input": "x"},
        ]
    )
    assert len(rows) == 4 and not left


# What is refused

REFUSED = [
    ({"instruction": "Name rivers.", "output": ["Elbe", "Rhine"]}, "list"),
    ({"instruction": "Give JSON.", "output": {"a": 1}}, "dict"),
    ({"instruction": "x"}, "instruction"),
    ({"instruction": "x", "output": ""}, "no output"),
    ({"instruction": "x", "output": None}, "no output"),
    ({"instruction": "x", "output": "nan"}, "no output"),
    ({"instruction": "", "output": "x"}, "no question"),
    ({"Frage": "x", "Antwort": "y"}, "Frage, Antwort"),
    ({"question": "x", "answer": "B", "options": ["A", "B"]}, "options"),
    ({"prompt": "x", "chosen": "a", "rejected": "b"}, "chosen"),
    ({"instruction": "x<|im_end|>", "output": "y"}, "im_end"),
    ({"instruction": "x", "output": "y<|image_pad|>"}, "image_pad"),
    ({"instruction": "\ud83d", "output": "y"}, "ud83d"),
    ({"instruction": "x", "output": "{'text': 'y'}"}, "text"),
    ({"messages": TALK[:2]}, "assistant"),
    ({"messages": [{"role": "tool", "content": "x"}]}, "tool"),
    ({"messages": "x"}, "messages"),
    ({"instruction": "x", "output": "y", "history": "z"}, "history"),
    ({"instruction": "x", "output": "<think>y"}, "think"),
    ("text", "str"),
    (3, "int"),
    (None, "NoneType"),
    ([], "list"),
]  # fmt: skip


@pytest.mark.parametrize(("record", "reason"), REFUSED)
def test_unusable_records_are_named_with_file_number_and_reason(read, record, reason):
    rows, left = read([RIVER, record])
    assert rows == [RIVER]
    assert len(left) == 1 and "a.json, record 2: " in left[0] and reason in left[0] and len(left[0]) < 400


def test_thinking_is_named(read):
    rows, left = read(
        [
            {"instruction": "x", "think": "hm", "output": "y"},
            {"instruction": "z", "output": "<think>hm</think>y"},
        ]
    )
    assert rows == [{"instruction": "x", "output": "y"}, {"instruction": "z", "output": "y"}]
    assert ["record 1" in left[0], "record 2" in left[1]] == [True, True] and all(
        "think" in reason for reason in left
    )


def test_a_broken_line_costs_itself(prepare, tmp_path):
    lines = [json.dumps(RIVER), '{"instruction": "cut', "", json.dumps(RIVER | {"input": "x"}), "plain text"]
    (tmp_path / "a.jsonl").write_text("\n".join(lines), encoding="utf-8")
    rows, left = prepare.read_instructions(tmp_path / "a.jsonl", tmp_path / "out")
    assert rows == [RIVER, RIVER | {"input": "x"}] and "line 2" in left[0]


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"[]",
        b"{}",
        b"null",
        b"3",
        b"[[",
        b"\x00\x01",
        b"\xff\xfe",
        b"[" * 100_000,
        b'{"a":' * 100_000,
        b"1" * 5000,
        b'{"a": NaN}',
        b"\x81\xff\xff" * 9,
    ],
)
def test_files_without_a_usable_row_are_named(prepare, tmp_path, raw):
    (tmp_path / "a.jsonl").write_bytes(raw)
    with pytest.raises(ValueError, match=r"a\.jsonl"):
        prepare.read_instructions(tmp_path / "a.jsonl", tmp_path / "out")


# Folders


def test_a_folder(prepare, tmp_path):
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "b.JSONL").write_text(json.dumps(RIVER | {"input": "x"}), encoding="utf-8")
    (tmp_path / "a.json").write_text(json.dumps([RIVER]), encoding="utf-8")
    (tmp_path / "bad.json").write_bytes(b"\0\1\2\3")
    (tmp_path / "notes.txt").write_text("x", encoding="utf-8")
    (tmp_path / "out.jsonl").write_text(json.dumps({"instruction": "old", "output": "x"}), encoding="utf-8")
    (tmp_path / "folder.json").mkdir()
    os.mkfifo(tmp_path / "pipe.json")
    (tmp_path / "zero.json").symlink_to("/dev/zero")
    (tmp_path / "dead.json").symlink_to(tmp_path / "missing")
    rows, left = prepare.read_instructions(tmp_path, tmp_path / "out.jsonl")
    assert rows == [RIVER, RIVER | {"input": "x"}]
    assert len(left) == 5
    for name in ("bad.json", "notes.txt", "pipe.json", "zero.json", "dead.json"):
        assert any(name in reason for reason in left)


def test_missing_source(prepare, tmp_path):
    with pytest.raises(ValueError, match="missing.json does not exist"):
        prepare.read_instructions(tmp_path / "missing.json", tmp_path / "out")
    with pytest.raises(ValueError, match="no usable row"):
        prepare.read_instructions(tmp_path, tmp_path / "out")


def test_shipped_rows_are_read_whole(prepare, tmp_path):
    path = ROOT / "data" / "alpaca" / "instructions.json"
    rows, left = prepare.read_instructions(path, tmp_path / "out")
    shipped = json.loads(path.read_text(encoding="utf-8"))
    assert [row["output"] for row in rows] == [row["output"].strip() for row in shipped] and not left


def test_the_program(tmp_path):
    (tmp_path / "a.json").write_text(
        json.dumps([RIVER, {"instruction": "😀"}, {"instruction": "😀", "output": "笑"}]), encoding="utf-8"
    )
    command = [sys.executable, str(ROOT / PROGRAM)]
    environment = {**os.environ, "PYTHONIOENCODING": "cp1252"}
    out = tmp_path / "out.jsonl"
    done = subprocess.run(
        [*command, str(tmp_path / "a.json"), str(out)],
        capture_output=True,
        env=environment,
        encoding="cp1252",
    )
    assert done.returncode == 0, done.stderr
    assert "2 rows; left out: 1" in done.stdout and "a.json, record 2: " in done.stdout
    assert [json.loads(line) for line in out.read_text(encoding="utf-8").splitlines()] == [
        RIVER,
        {"instruction": "😀", "output": "笑"},
    ]
    for wrong in (
        [],
        [""],
        [str(tmp_path / "missing")],
        [str(tmp_path / "a.json"), str(tmp_path / "no" / "out")],
    ):
        done = subprocess.run([*command, *wrong], capture_output=True, env=environment, encoding="cp1252")
        assert done.returncode == 1 and done.stderr.count("\n") == 1 and "Traceback" not in done.stderr


# Properties and speed

TEXTS = st.text(max_size=20)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | TEXTS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3),
    max_leaves=6,
)
NAMES = (
    st.sampled_from(
        "instruction input output system history messages prompt response question answer meta think".split()
    )
    | TEXTS
)
ROWS = st.lists(st.dictionaries(NAMES, VALUES, max_size=5) | VALUES, max_size=6)
QUICK = settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@QUICK
@given(rows=ROWS, lines=st.booleans())
def test_any_rows_are_texts_or_named(functions, tmp_path_factory, rows, lines):
    prepare, path = functions(PROGRAM), tmp_path_factory.getbasetemp() / "any.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)) if lines else json.dumps(rows), encoding="utf-8")
    try:
        usable, left = prepare.read_instructions(path, path.with_name("out"))
    except ValueError as error:
        assert "any.jsonl" in str(error)
        return
    for row in usable:
        assert (
            row["instruction"].strip()
            and row["output"].strip()
            and json.dumps(row, ensure_ascii=False).encode()
        )
        assert all(isinstance(row.get(key, ""), str) for key in ("system", "instruction", "input", "output"))
        assert all(isinstance(text, str) for pair in row.get("history", []) for text in pair)
    assert len(usable) + len(left) >= len(rows)


@QUICK
@given(raw=st.binary(max_size=200))
def test_any_bytes(functions, tmp_path_factory, raw):
    prepare, path = functions(PROGRAM), tmp_path_factory.getbasetemp() / "bytes.jsonl"
    path.write_bytes(raw)
    try:
        prepare.read_instructions(path, path.with_name("out"))
    except ValueError as error:
        assert "bytes.jsonl" in str(error)


@pytest.mark.parametrize(
    "pattern",
    [
        "[",
        "{",
        "]",
        ",",
        "\n",
        " ",
        "\\",
        '"',
        "<|",
        "<think>",
        "</think>",
        "<|a",
        "{}",
        "[]",
        "{}\n",
        "[,",
        "x",
        "{'text': ",
        '{"a": 1}',
        '{"instruction": "x", "output": "y"}\n',
    ],
)
def test_100_kb_of_anything_take_less_than_a_second(prepare, tmp_path, pattern):
    text = pattern * (100_000 // len(pattern))
    for body in (
        text,
        json.dumps({"instruction": text, "output": text}),
        json.dumps({"instruction": "x", "output": "<think>" + text}),
    ):
        (tmp_path / "a.jsonl").write_text(body, encoding="utf-8")
        start = time.process_time()
        try:
            prepare.read_instructions(tmp_path / "a.jsonl", tmp_path / "out")
        except ValueError as error:
            assert "a.jsonl" in str(error) and len(str(error)) < 2000
        assert time.process_time() - start < 2.5
