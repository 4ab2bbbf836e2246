"""Hostile and odd inputs of the text programs: none hangs, ends in a traceback or is read as something else in silence.

Each input stands in a table beside what has to come of it: the right rows, or a refusal that names the file.
"""

import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import zipfile
from functools import cache
from pathlib import Path

import docx
import pytest
from conftest import ROOT

ROOMS = ("alpaca", "gongwen", "medical", "legal")
JUDGES = ("alpaca", "r1", "gongwen", "medical")
HANGS, SLOW = 60, 8  # seconds on the clock, of the processor; a run takes far less
STEERING = re.compile(r"[^\n\t\x20-\x7e\xa0-\u2027\u202f-\u2065\u206a-\U0010ffff]")  # what a terminal obeys
FIRST = {
    "question": "行道树由谁养护，枯死了怎么办？",
    "answer": "按照《清江市绿化条例》第十条，由养护单位补种，建议先打电话核实。",
}
OTHER = {
    "question": "另一件事，路灯坏了应当由谁来修理？",
    "answer": "按照《清江市绿化条例》第十一条，由管理单位修理，建议先打电话核实。",
}


@cache
def compiled(program: str):
    return compile((ROOT / "data" / program).read_text(encoding="utf-8"), program, "exec")


@pytest.fixture
def run(tmp_path, monkeypatch, capsys):
    """Return run(program, *arguments) -> (exit status, what it said), in this process, with a room of its own."""

    def late(*_):
        raise AssertionError("it hangs")

    def start(program, *arguments):
        room = tmp_path / "room"
        room.mkdir(exist_ok=True)
        for words in (ROOT / "data" / program).parent.glob("*terms.json"):
            shutil.copy(words, room)
        monkeypatch.setattr(sys, "argv", [program, *map(str, arguments)])
        signal.signal(signal.SIGALRM, late)
        signal.setitimer(signal.ITIMER_REAL, HANGS)
        begin, status, last = time.process_time(), 0, ""
        try:
            exec(compiled(program), {"__name__": "__main__", "__file__": str(room / Path(program).name)})
        except SystemExit as end:
            status, last = (1, end.code) if isinstance(end.code, str) else (end.code or 0, "")
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
        assert time.process_time() - begin < SLOW
        said = capsys.readouterr().out + last
        assert not STEERING.search(said), ascii(said)
        return status, said

    return start


def out_of(room: str, folder: Path) -> Path:
    return {"medical": folder / "room/train.jsonl", "legal": folder / "room/rows.json"}.get(
        room, folder / "out.json"
    )


def rows_of(room: str, folder: Path) -> list[dict]:
    """Return the rows that a preparer wrote, [] if it wrote none."""
    files = (
        [folder / f"room/{part}.jsonl" for part in ("train", "val", "test")]
        if room == "medical"
        else [out_of(room, folder)]
    )
    texts = [file.read_text(encoding="utf-8") for file in files if file.exists()]
    if room in ("gongwen", "legal"):
        return [row for text in texts for row in json.loads(text)]
    return [json.loads(line) for text in texts for line in text.split("\n") if line]


@pytest.fixture
def prepare(run, tmp_path):
    """Return prepare(room, source) -> (exit status, what it said, the questions of the rows it wrote)."""

    def start(room, source):
        names = [source, tmp_path / "out.json"] if room in ("alpaca", "gongwen") else [source]
        status, said = run(f"{room}/prepare.py", *names)
        rows = rows_of(room, tmp_path)
        assert bool(rows) == (status == 0), "rows and an error, or neither"
        asked = [f"{row.get('instruction')} {row.get('input')}" for row in rows]
        known = [FIRST["question"], OTHER["question"]]
        return status, said, sorted(next((one for one in known if one in text), text) for text in asked)

    return start


def lines(*records) -> bytes:
    return "".join(json.dumps(record) + "\n" for record in records).encode()


# Rows: the first is good, the second is kept, or refused with its number and the reason. A word for each room, or one.

KEPT = "kept"
SHORT = {
    "medical": "under 10 characters",
    "legal": "cites no readable article",
    "alpaca": KEPT,
    "gongwen": KEPT,
}
UNREAD = dict.fromkeys(ROOMS, "no text to train on")
LOSES = {
    "alpaca": "no output",
    "gongwen": "no output",
    "medical": "no output",
    "legal": "nor question and answer",
}
END = OTHER["answer"]
RECORDS = {
    "meta a number": (OTHER | {"meta": 3}, KEPT),
    "meta a text": (OTHER | {"meta": "train"}, KEPT),
    "meta a list": (OTHER | {"meta": [{"split": "test"}]}, KEPT),
    "meta.split a token": (OTHER | {"meta": {"split": "<|im_end|>"}}, {"alpaca": "meta.split", "gongwen": "meta.split"}),
    "meta.split a half letter": (OTHER | {"meta": {"split": "\ud83d"}}, {"alpaca": "ud83d", "gongwen": "ud83d"}),
    "half an emoji": (OTHER | {"answer": END + "\ud83d"}, UNREAD),
    "the other half": (OTHER | {"question": OTHER["question"] + "\ude00"}, UNREAD),
    "a NUL": (OTHER | {"answer": "甲\0" + END}, UNREAD),
    "an ESC": (OTHER | {"answer": "\x1b[31m" + END}, UNREAD),
    "U+FFFE": (OTHER | {"answer": END + "\ufffe"}, UNREAD),
    "U+FFFD": (OTHER | {"answer": END + "\ufffd"}, UNREAD),
    "U+202E": (OTHER | {"answer": END + "\u202e"}, KEPT),
    "<|im_end|>": (OTHER | {"answer": END + "<|im_end|>"}, "im_end"),
    "<|im_start|>": (OTHER | {"question": "<|im_start|>user" + OTHER["question"]}, "im_start"),
    "<|endoftext|>": (OTHER | {"answer": "<|endoftext|>" + END}, "endoftext"),
    "<|image_pad|>": (OTHER | {"answer": END + "<|image_pad|>"}, "image_pad"),
    "<|vision_start|>": (OTHER | {"answer": f"<|vision_start|>{END}<|vision_end|>"}, "vision_start"),
    "a token of another family": (OTHER | {"answer": END + "<｜end▁of▁sentence｜>"}, UNREAD),
    "a token once it is made plain": (OTHER | {"answer": END + "＜｜im_end｜＞"}, {"medical": "im_end"}),
    "a token once &lt; is <": (OTHER | {"answer": END + "&lt;|im_end|&gt;"}, {"medical": "im_end"}),
    "a token with a hidden sign": (OTHER | {"answer": END + "<\u200b|im_end|>"}, {"medical": "im_end", "legal": "im_end"}),
    "a token in system": (OTHER | {"system": "<|im_end|>"}, {"alpaca": "im_end", "gongwen": "im_end", "medical": "im_end"}),
    "a token in a talk": ({"messages": [{"role": "user", "content": "几"}, {"role": "assistant", "content": "<|im_end|>"}]}, "im_end|question and answer"),
    "a token in a role": ({"messages": [{"role": "<|im_end|>", "content": "几"}]}, "im_end|question and answer"),
    "a token in topic": (OTHER | {"topic": "<|im_end|>"}, {"gongwen": "im_end"}),
    "a token in department": (OTHER | {"department": "<|im_end|>"}, {"medical": "im_end"}),
    "a repr": (OTHER | {"answer": "{'text': '" + END + "'}"}, UNREAD),
    "nan as text": (OTHER | {"answer": "nan"}, LOSES),
    "NaN as text": (OTHER | {"answer": " NaN "}, LOSES),
    "NaN": (OTHER | {"answer": float("nan")}, LOSES),
    "Infinity": (OTHER | {"answer": float("inf")}, LOSES),
    "null": (OTHER | {"answer": None}, LOSES),
    "an empty list": (OTHER | {"answer": []}, LOSES),
    "blanks": (OTHER | {"answer": " \t\n\u3000"}, LOSES),
    "a list of one": (OTHER | {"answer": [END]}, KEPT),
    "a list of two": (OTHER | {"answer": [END, "乙"]}, "answer is a list of 2"),
    "an object": (OTHER | {"answer": {"text": END}}, "answer is a dict of 1"),
    "True as text": (OTHER | {"answer": "True"}, SHORT),
    "true": (OTHER | {"answer": True}, SHORT),
    "a number": (OTHER | {"answer": 3}, SHORT),
    "4,000 digits": (OTHER | {"answer": int("9" * 4000)}, SHORT | {"medical": KEPT}),
    "5,000 digits": (b'{"question": "x", "answer": ' + b"9" * 5000 + b"}", "limit"),
    "a key twice": (b'{"question": "x", "answer": "y", "answer": "z"}', "two values for 'answer'"),
    "a key twice with one value": (lines(OTHER)[:-2] + b', "answer": ' + json.dumps(END).encode() + b"}", KEPT),
    "a key twice inside": (b'{"question": "x", "answer": {"a": 1, "a": 2}}', "two values for 'a'"),
    "a key in two cases": (OTHER | {"Answer": "另一个"}, "case and spaces"),
    "two names of one part": (OTHER | {"答案": "另一个"}, "hold different texts"),
    "a deep list": (b'{"question": "x", "answer": ' + b"[" * 50_000 + b"]" * 50_000 + b"}", "recursion"),
    "a deep object": (b'{"a":' * 50_000, "recursion"),
    "no object: null": (None, "NoneType"),
    "no object: a list": ([], "a list"),
    "no object: a text": ("text", "a str"),
    "no object: a number": (3, "a int"),
    "an empty object": ({}, "unknown form|nor question and answer"),
    "keys that steer a terminal": ({"\x1b[31m\x07\u202e": 1}, "unknown form|nor question and answer"),
    "1.2 MB": (OTHER | {"answer": END * 12_000}, KEPT),
    "cut in the middle": (lines(OTHER)[:-9], "not JSON"),
}  # fmt: skip


@pytest.mark.parametrize("room", ROOMS)
@pytest.mark.parametrize("name", RECORDS)
def test_rows(prepare, tmp_path, room, name):
    record, wanted = RECORDS[name]
    wanted = wanted.get(room, KEPT) if isinstance(wanted, dict) else wanted
    raw = record if isinstance(record, bytes) else lines(record)
    (tmp_path / "a.jsonl").write_bytes(lines(FIRST) + raw)
    status, said, asked = prepare(room, tmp_path / "a.jsonl")
    assert status == 0 and FIRST["question"] in asked
    if wanted == KEPT:
        assert len(asked) == 2 and asked[0] != asked[1] and "no text" not in said
    else:
        assert (
            len(asked) == 1 and re.search(wanted, said) and re.search(r"a\.jsonl.*(?:record|row) 2", said)
        ), said


# Files: the number of rows that have to come, all right ones, or why the file is refused

BOTH, PLAIN = lines(FIRST, OTHER), json.dumps([FIRST, OTHER], ensure_ascii=False)
READABLE = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in (FIRST, OTHER))
BIG5 = "請問樹由誰養護？", "這個問題我們可以說：按照條例由單位補種。"
FOREIGN = "not text in UTF-8"
NONE = "no usable|no rows"
FILES = {
    "UTF-8 with a mark": (b"\xef\xbb\xbf" + PLAIN.encode(), 2),
    "two marks": (b"\xef\xbb\xbf\xef\xbb\xbf" + PLAIN.encode(), 2),
    "UTF-16": (PLAIN.encode("utf-16"), 2),
    "UTF-16 LE without a mark": (PLAIN.encode("utf-16-le"), 2),
    "UTF-16 BE without a mark": (PLAIN.encode("utf-16-be"), 2),
    "UTF-32": (PLAIN.encode("utf-32"), "not JSON"),
    "GBK": (PLAIN.encode("gbk"), 2),
    "GBK lines": (READABLE.encode("gb18030"), 2),
    "CRLF": (READABLE.replace("\n", "\r\n").encode(), 2),
    "CR": (READABLE.replace("\n", "\r").encode(), 2),
    "one after the other": (BOTH.replace(b"\n", b""), 2),
    "indented": ("\n".join(json.dumps(row, indent=2) for row in (FIRST, OTHER)).encode(), 2),
    "a comma too many": (PLAIN[:-1].encode() + b",]", 2),
    "a list that does not end": (PLAIN[:-1].encode(), 2),
    "a separator in a text": (READABLE.replace("枯死", "枯\u2028死").encode(), 2),
    "cut in a letter": (READABLE.encode()[:-5], 1),
    "half in UTF-8, half in GBK": (READABLE.encode() + READABLE.encode("gbk"), FOREIGN),
    "EUC-KR": ('[{"question": "가로수는 누가 관리합니까", "answer": "관리 사무소에 전화하십시오"}]'.encode("euc-kr"), FOREIGN),
    "Shift JIS": ('[{"question": "街路樹は誰が管理しますか", "answer": "管理事務所に電話してください"}]'.encode("shift-jis"), FOREIGN),
    "cp1251": ('[{"question": "кто ухаживает", "answer": "звоните в управление"}]'.encode("cp1251"), FOREIGN),
    "cp1252": ('[{"question": "à qui est l’arbre", "answer": "appelez la société"}]'.encode("cp1252"), FOREIGN),
    "gzip": (b"\x1f\x8b\x08\0" + bytes(range(256)) * 4, FOREIGN),
    "zip": (b"PK\3\4" + bytes(range(256)) * 4, FOREIGN),
    "nothing": (b"", NONE),
    "an empty list": (b"[]", NONE),
    "an empty object": (b"{}", NONE),
    "null": (b"null", NONE),
    "a text": (b'"text"', NONE),
    "a number": (b"3", NONE),
    "NaN": (b"NaN", NONE),
    "NULs": (b"\0" * 5000, "not JSON"),
    "NULs between": (b"{\0" * 500, "not JSON"),
    "5,000 digits": (b"9" * 5000, "limit"),
    "200,000 brackets": (b"[" * 200_000, "recursion"),
    "Python, no JSON": (str([FIRST]).encode(), "not JSON"),
    "rows under names": (json.dumps({"a": FIRST, "b": OTHER}).encode(), "unknown form|nor question"),
    "columns, no rows": (json.dumps({"question": ["a", "b"], "answer": ["c", "d"]}).encode(), "list of 2"),
}  # fmt: skip


@pytest.mark.parametrize("room", ROOMS)
@pytest.mark.parametrize("name", FILES)
def test_files(prepare, tmp_path, room, name):
    raw, wanted = FILES[name]
    (tmp_path / "a.json").write_bytes(raw)
    status, said, asked = prepare(room, tmp_path / "a.json")
    asked = [re.sub(r"枯\s死", "枯死", text) for text in asked]
    if isinstance(wanted, int):
        right = [any(row["question"] in text for text in asked) for row in (FIRST, OTHER)]
        assert status == 0 and len(asked) == sum(right) == wanted, said
        assert wanted == 2 or re.search("(?:record|row) 2", said)
    else:
        assert status == 1 and re.search(wanted, said) and "a.json" in said, said


@pytest.mark.parametrize("room", ("alpaca", "gongwen"))
def test_big5(prepare, tmp_path, room):
    (tmp_path / "a.json").write_bytes(
        json.dumps(dict(zip(("question", "answer"), BIG5)), ensure_ascii=False).encode("big5")
    )
    assert prepare(room, tmp_path / "a.json")[2] == [f"{BIG5[0]} {'None' if room == 'alpaca' else ''}"]


# Tables: how many rows come, and what has to be said, in medical and in legal

HEAD = "question,answer\n"
CELLS = "".join(",".join(row.values()).replace("，", "；") + "\n" for row in (FIRST, OTHER))
CELLS = CELLS.replace("行道树由谁养护；", "行道树由谁养护，").replace("另一件事；", "另一件事，")
WIDE = (
    HEAD.strip() + "".join(f",c{i}" for i in range(10_000)) + "\n" + CELLS.replace("\n", "," * 10_000 + "\n")
)
TABLES = {
    "as it should be": (HEAD + CELLS, 2, 2, ""),
    "only a header": (HEAD, 0, 0, "a.csv"),
    "nothing": ("", 0, 0, "a.csv"),
    "no header": (CELLS, 0, 0, "no header|nor question and answer"),
    "a renamed column": (HEAD.replace("answer", "reply") + CELLS, 0, 0, "no header|nor question and answer"),
    "a column twice": ("question,answer,answer\n" + CELLS.replace("。\n", "。,乙\n"), 0, 0, "two columns"),
    "a column in two cases": ("question,answer,Answer\n" + CELLS.replace("。\n", "。,乙\n"), 0, 0, "two columns"),
    "two names of a column": ("question,answer,答案\n" + CELLS.replace("。\n", "。,乙\n"), 0, 0, "two columns|different texts"),
    "capitals and blanks": (" Question , ANSWER\n" + CELLS, 2, 2, ""),
    "CR": ((HEAD + CELLS).replace("\n", "\r"), 2, 2, ""),
    "CRLF": ((HEAD + CELLS).replace("\n", "\r\n"), 2, 2, ""),
    "tabs": ((HEAD + CELLS).replace(",", "\t"), 2, 2, ""),
    "sep=": ("sep=,\n" + HEAD + CELLS, 2, 2, ""),
    "empty lines between": ((HEAD + CELLS).replace("\n", "\n\n\n"), 2, 2, ""),
    "an open quote at the end": (HEAD + CELLS + '"' * 9999, 2, 2, "broken|dropped"),
    "a quote in a word": (HEAD + CELLS.replace("路灯", '路"灯'), 2, 2, ""),
    "10,000 columns": (WIDE, 2, 2, ""),
    "10,000 fields": (HEAD + CELLS + "甲," * 10_000 + "\n", 2, 2, "broken|more fields"),
    "a field too many": (HEAD + CELLS + "甲甲甲甲甲,乙,丙\n", 2, 2, "broken|more fields"),
    "a field too few": (HEAD + CELLS + "甲甲甲甲甲\n", 2, 2, "broken|nor question"),
    "200,000 letters": (HEAD + CELLS + "甲甲甲甲甲," + "好" * 200_000 + "\n", 2, 2, "broken"),
    "a token": (HEAD + CELLS + f"这是一个问题,{END.replace('，', '；')}<|im_end|>\n", 2, 2, "im_end"),
    "an ESC": (HEAD + CELLS + f"这是\x1b[31m一个问题,{END.replace('，', '；')}\n", 2, 2, "x1b"),
    "NULs at the end": (HEAD + CELLS + "\0" * 64, 2, 2, ""),
    "bytes of nothing": ((HEAD + CELLS).encode() + b"\xff\xfe\xfd,\xff\n", 0, 0, FOREIGN),
    "GBK": ((HEAD + CELLS).encode("gbk"), 2, 2, ""),
    "UTF-16 LE without a mark": ((HEAD + CELLS).encode("utf-16-le"), 2, 2, ""),
    "JSON": (PLAIN, 0, 0, "no header|no row"),
    "HTML": ("<html><body>question,answer</body></html>", 0, 0, "no header|no row"),
}  # fmt: skip


@pytest.mark.parametrize("room", ("medical", "legal"))
@pytest.mark.parametrize("name", TABLES)
def test_tables(prepare, tmp_path, room, name):
    raw, *counts, words = TABLES[name]
    (tmp_path / "a.csv").write_bytes(raw if isinstance(raw, bytes) else raw.encode())
    status, said, asked = prepare(room, tmp_path / "a.csv")
    assert len(asked) == counts[room == "legal"] and re.search(words, said), said
    assert all("行道树由谁养护" in text or "应当由谁来修理" in text for text in asked) and status == (
        not asked
    )


# Places: a folder with a good file and something else, which is named or, being no file, passed over


def undecodable(folder: Path) -> None:
    Path(os.fsdecode(os.fsencode(folder) + "/通知".encode("gbk") + b".json")).write_bytes(b"[3]")


PLACES = {
    "a pipe": (lambda folder: os.mkfifo(folder / "x.json"), "x.json is not a regular file"),
    "a device": (lambda folder: (folder / "x.json").symlink_to("/dev/zero"), "x.json is not a regular file"),
    "a dead link": (lambda folder: (folder / "x.json").symlink_to("missing"), "x.json is not a regular file"),
    "a link to itself": (lambda folder: (folder / "x.json").symlink_to("x.json"), "x.json is not a regular file"),
    "a link to its folder": (lambda folder: (folder / "x").symlink_to(folder), ""),
    "a folder named x.json": (lambda folder: (folder / "x.json").mkdir(), ""),
    "a folder named x.csv": (lambda folder: (folder / "x.csv").mkdir(), ""),
    "a name in GBK": (undecodable, r"\.json.*(?:record|row) 1"),
    "a name of two lines": (lambda folder: (folder / "x\ny.json").write_bytes(b"[3]"), "x\ufffdy.json"),
    "a name that steers": (lambda folder: (folder / "x\x1b[2J.json").write_bytes(b"[3]"), r"x\ufffd\[2J.json"),
    "a long name": (lambda folder: (folder / f"{'长' * 80}.json").write_bytes(b"[3]"), "长长.json"),
    "another type": (lambda folder: (folder / "x.exe").write_bytes(b"MZ"), "x.exe"),
}  # fmt: skip


@pytest.mark.parametrize("room", ROOMS)
@pytest.mark.parametrize("name", PLACES)
def test_places(prepare, tmp_path, room, name):
    (tmp_path / "in").mkdir()
    (tmp_path / "in/ok.json").write_bytes(lines(FIRST))
    PLACES[name][0](tmp_path / "in")
    status, said, asked = prepare(room, tmp_path / "in")
    assert status == 0 and asked == [FIRST["question"]] and re.search(PLACES[name][1], said), said


@pytest.mark.parametrize("room", ROOMS)
def test_an_unreadable_file_is_named(prepare, tmp_path, room):
    (tmp_path / "x.json").write_bytes(lines(FIRST))
    (tmp_path / "x.json").chmod(0)
    if os.access(tmp_path / "x.json", os.R_OK):
        pytest.skip("root reads it all the same")
    status, said, _ = prepare(room, tmp_path / "x.json")
    assert status == 1 and "x.json" in said


@pytest.mark.parametrize("room", ROOMS)
@pytest.mark.parametrize(
    "source", ["", "missing.json", "x" * 5000, "/dev/zero", "/dev/stdin", "a\nb", "pipe.json", "empty"]
)
def test_sources_that_are_no_files(prepare, tmp_path, monkeypatch, room, source):
    (tmp_path / "here/empty").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "here")
    Path("ok.json").write_bytes(lines(FIRST))  # what "" must not read
    os.mkfifo("pipe.json")
    status, said, asked = prepare(room, source)
    assert (
        status == 1 and asked == [] and source.replace("\n", "\ufffd")[:9] in said.replace("\\n", "\ufffd")
    ), said
    assert source or "name" in said or "which" in said or "no such" in said


@pytest.mark.parametrize("room", ROOMS)
@pytest.mark.parametrize("kind", ["a folder", "a pipe", "a device", "a dead link", "the source"])
def test_outputs_that_cannot_be_written_are_said_before_the_work(run, tmp_path, room, kind):
    (tmp_path / "room").mkdir()
    out = out_of(room, tmp_path)
    source = out if kind == "the source" else tmp_path / "in.json"
    source.write_bytes(lines(FIRST, 3))
    make = {
        "a folder": out.mkdir,
        "a pipe": lambda: os.mkfifo(out),
        "a device": lambda: out.symlink_to("/dev/full"),
        "a dead link": lambda: out.symlink_to("/missing/x"),
    }
    make.get(kind, lambda: None)()
    before = sorted(tmp_path.rglob("*.json*"))
    status, said = run(f"{room}/prepare.py", *([source, out] if room in ("alpaca", "gongwen") else [source]))
    assert status == 1 and (out.name in said or "no usable row" in said), said
    assert kind == "the source" or ("cannot be written" in said and " 2" not in said), "nothing was read"
    assert [path for path in sorted(tmp_path.rglob("*.json*")) if "terms" not in path.name] == before
    assert kind != "the source" or source.read_bytes() == lines(FIRST, 3)


# Documents: what a .docx has to read as, or why it is refused, by name and soon

W = 'xmlns:w="http://schemas.openxmlformats.org/wordprocessingml/2006/main"'
LINKS = "http://schemas.openxmlformats.org/officeDocument/2006/relationships"
STATUTE = ["清江市绿化条例", "第一章　总则", "第一条　行道树由养护单位负责，每年检查两次，枯死的应当补种。"]


def paragraph(text: str) -> str:
    return f"<w:p><w:r><w:t>{text}</w:t></w:r></w:p>"


def document(body: str, head: str = "", **parts: str | bytes) -> bytes:
    """Return a .docx with this body after three paragraphs of a statute, and other parts."""
    file, links = (
        io.BytesIO(),
        f'<Relationship Id="r1" Type="{LINKS}/officeDocument" Target="word/document.xml"/>',
    )
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("_rels/.rels", f"<Relationships>{links}</Relationships>")
        text = "".join(map(paragraph, STATUTE))
        archive.writestr(
            "word/document.xml", f"{head}<w:document {W}><w:body>{text}{body}</w:body></w:document>"
        )
        for name, raw in parts.items():
            archive.writestr(name.replace("__", "/"), raw)
    return file.getvalue()


def tables(depth: int, text: str) -> str:
    opened, closed = "<w:tbl><w:tr><w:tc>", "</w:tc><w:tc><w:p/></w:tc></w:tr></w:tbl>"
    return opened * depth + paragraph(text) + closed * depth


def bomb(size: int) -> bytes:
    """Return a .docx of which one part of XML unpacks to so many MB."""
    return document("<!--" + " " * (size << 20) + "-->")


def outside() -> bytes:
    target = (
        f'<Relationship Id="r1" Type="{LINKS}/styles" Target="file:///etc/passwd" TargetMode="External"/>'
    )
    return document("", **{"word/_rels/document.xml.rels": f"<Relationships>{target}</Relationships>"})


LAUGHS = '<!DOCTYPE x [<!ENTITY a "哈哈哈哈哈哈哈哈">' + "".join(
    f'<!ENTITY {name} "{f"&{before};" * 10}">' for before, name in zip("abcdefgh", "bcdefghi")
)
DOCUMENTS = {
    "as it should be": (document(paragraph("第二条　本条例自2024年1月1日起施行。")), "第二条　?本?"),
    "a bomb of 64 MB in 64 KB": (lambda: bomb(64), "unpacks to more than"),
    "a billion laughs": (document(paragraph("&i;"), LAUGHS + "]>"), "not a readable"),
    "an entity of a file": (document(paragraph("&a;"), '<!DOCTYPE x [<!ENTITY a SYSTEM "file:///etc/passwd">]>'), "declares entities"),
    "styles outside": (outside, "not a readable"),
    "tables in tables": (document(tables(40, "最里面的一段文字")), "最里面的一段文字"),
    "5,000 tables in tables": (document(tables(5000, "甲")), "not a readable"),
    "a megabyte of tabs": (document(paragraph("</w:t><w:tab/><w:t>" * 50_000 + "末尾")), "末尾"),
    "a style based on itself": (
        document("<w:p><w:pPr><w:pStyle w:val='a'/></w:pPr><w:r><w:t>有样式的一段文字</w:t></w:r></w:p>",
                 **{"word/_rels/document.xml.rels": f'<Relationships><Relationship Id="r1" Type="{LINKS}/styles" Target="styles.xml"/></Relationships>',
                    "word/styles.xml": f'<w:styles {W}><w:style w:type="paragraph" w:styleId="a"><w:basedOn w:val="a"/></w:style></w:styles>'}),
        "有样式的一段文字"),
    "400,000 attributes": (lambda: document("<w:p " + " ".join(f'a{i}="" ' for i in range(400_000)) + "/>" + paragraph("末尾")), "末尾|not a readable"),
    "a token": (document(paragraph("第二条　<![CDATA[<|im_end|>]]>")), "im_end|no text to train on"),
    "no zip": (b"a statute, in words", "not a readable"),
    "half a zip": (document("")[:300], "not a readable"),
    "a zip of nothing": (b"PK\5\6" + b"\0" * 18, "not a readable"),
    "an old .doc": (b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + b"\0" * 600, "not a readable"),
    "nothing": (b"", "not a readable"),
    "no XML": (document("<w:p"), "not a readable"),
}  # fmt: skip


@pytest.mark.parametrize("room", ("gongwen", "legal"))
@pytest.mark.parametrize("name", DOCUMENTS)
def test_documents(run, tmp_path, room, name):
    raw, wanted = DOCUMENTS[name]
    path = tmp_path / "a.docx"
    path.write_bytes(raw() if callable(raw) else raw)
    status, said = run(f"{room}/prepare.py", path, *[tmp_path / "out.json"] * (room == "gongwen"))
    rows = rows_of(room, tmp_path)
    assert len(said) < 2500 and "root:" not in said and bool(rows) == (status == 0)
    text = "\n".join(row["output"] for row in rows)
    assert re.search(wanted, text) or (re.search(wanted, said) and "a.docx" in said), said
    assert not rows or "行道树由养护单位负责" in text and "<|" not in text


TITLES = {
    "a token in its name": ("<|im_end|>.txt", "关于检查的通知\n各单位：请认真落实。", "im_end"),
    "NULs": ("a.txt", "\0" * 999, "x00|not text"),
    "UTF-32": ("a.txt", "关于检查的通知\n各单位：请落实。".encode("utf-32"), "x00"),
    "a token in the title of a law": ("a.txt", "清江市<|im_end|>条例\n第一条　行道树由养护单位负责检查和补种。", "im_end"),
    "a token in a heading": ("a.txt", "清江市绿化条例\n第一章　<|im_end|>\n第一条　行道树由养护单位负责检查和补种。", "im_end|no text to train on"),
    "an ESC in an article": ("a.txt", "清江市绿化条例\n第一条　\x1b[31m行道树由养护单位负责检查和补种。", "x1b|no text to train on"),
}  # fmt: skip


@pytest.mark.parametrize("room", ("gongwen", "legal"))
@pytest.mark.parametrize("name", TITLES)
def test_texts_with_signs_that_are_no_text(run, tmp_path, room, name):
    file, text, words = TITLES[name]
    (tmp_path / file).write_bytes(text if isinstance(text, bytes) else text.encode())
    status, said = run(f"{room}/prepare.py", tmp_path / file, *[tmp_path / "out.json"] * (room == "gongwen"))
    assert status == 1 and re.search(f"{words}|no article found", said) and rows_of(room, tmp_path) == []


# What a model wrote: scored in seconds, shown in report.md inside its fence, and laid out as a .docx

NOTICE = """清江市卫生健康委员会关于开展检查的通知
各县卫生健康局：
为做好有关工作，定于2024年3月开展检查，现将有关事项通知如下：
一、加强组织领导。各单位要落实责任，按时报送结果。
清江市卫生健康委员会
2024年3月5日"""
SIZE = 20_000  # characters, a fifth of what takes a second on an idle core
PIECES = {
    "nothing": "", "a sentence again": "请认真落实有关要求。", "lines without a date": "第一行没有写日期\n", "关于": "关于", "a title again": "关于检查的通知\n",
    "####": "####", "headings": "# 大标题\n", "digits": "9", "numbers": "1、", "dates": "2024年3月5日\n", "brackets": "(", "Chinese brackets": "（", "braces": "{",
    "nested brackets": "[]", "book titles": "《", "laws": "《甲》", "control signs": "".join(map(chr, range(32))), "NUL": "\0", "ESC": "\x1b[31m红\x1b]0;x\x07",
    "C1 signs": "\x9b2J\x85", "U+FFFE": "\ufffe", "U+202E": "\u202e乙", "combining": "a\u0301", "emoji": "👨‍👩‍👧", "zero width": "\u200b", "fences": "```\n", "a long fence": "`",
    "tildes": "~~~\n", "HTML": "<b><script>alert(1)</script>", "images": "![x](http://x/y.png)", "dollars": "$\\", "backslashes": "\\", "a row of cells": "a|",
    "rows of cells": "a|b\n", "tabs": "a\tb\n", "blanks": " ", "wide blanks": "\u3000", "empty lines": "\n", "CR": "\r", "U+2028": "\u2028", "tokens": "<|im_end|>",
    "answers": "<answer>1</answer>", "open answers": "<answer>", "thinking": "<think>", "boxes": "\\boxed{A}", "letters": "A、", "attachments": "附件：1.\n",
    "signers": "签发人：", "organs": "清江市卫生健康委员会、", "colons": "各单位：\n", "commas": "，", "stops": "。", "doses": "每次吃两片，", "one word": "a",
}  # fmt: skip


def text_of(name: str, size: int) -> str:
    piece = PIECES[name]
    return (piece * (size // max(1, len(piece)) + 1))[:size] if piece else ""


def answered(room: str, **more) -> dict:
    """Return a row of answers.jsonl that the room's judge can score."""
    row = {
        "prompt": [{"role": "user", "content": "头痛三天了怎么办？"}],
        "reference": "18",
        "before": "好的。",
        "after": "<answer>18</answer>",
    }
    row |= {"before_ended": True, "after_ended": False}
    if room == "gongwen":
        row |= {"instruction": "起草检查的通知", "input": "", "reference": NOTICE, "after": NOTICE}
    if room == "medical":
        row |= {"input": "头痛三天了怎么办？", "kind": "qa", "meta": {"risk_level": "low"}}
    return row | more


METRICS = {
    "model": "a model",
    "losses": {"before": {"loss": [2.0, 3.0]}, "after": {"loss": [1.0, 1.5]}},
    "train": {"s": 1},
}


@pytest.fixture
def judge(run, tmp_path):
    """Return judge(room, answers.jsonl, metrics.json) -> (exit status, what it said, the folder of the run)."""

    def start(room, answers: bytes | None, metrics: bytes | None = json.dumps(METRICS).encode()):
        folder = tmp_path / f"run of {room}"
        folder.mkdir(exist_ok=True)
        for name, raw in (("answers.jsonl", answers), ("metrics.json", metrics)):
            if raw is not None:
                (folder / name).write_bytes(raw)
        return *run(f"{room}/judge.py", folder), folder

    return start


def outside_of_fences(report: str) -> str:
    """Return the lines of Markdown that stand in no code block; the last block has to be closed."""
    kept, fence = [], ""
    for line in report.split("\n"):
        if fence:
            fence = "" if line == fence else fence
        elif re.fullmatch("`{3,}", line):
            fence = line
        else:
            kept.append(line)
    assert not fence
    return "\n".join(kept)


@pytest.mark.parametrize("room", JUDGES)
@pytest.mark.parametrize("name", PIECES)
def test_a_models_text_in_the_report(judge, room, name):
    text = text_of(name, 300)
    status, said, folder = judge(room, lines(*[answered(room, before=text, after=text)] * 2))
    assert status == 0, said
    report = (folder / "report.md").read_text(encoding="utf-8")
    assert not re.search(r"[\0-\x08\x0b-\x1f\x7f\ufffe\uffff]", report)
    plain = outside_of_fences(report)
    for sign in ("<script", "大标题", "x/y.png", "红", "im_end", "\\boxed", "关于检查"):
        assert sign not in plain
    metrics = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))
    rate = {"alpaca": "chrf", "r1": "accuracy", "gongwen": "clean_rate", "medical": "over_triage"}[room]
    assert (
        metrics["before"][rate] == metrics["after"][rate] < 50 and metrics["difference"][rate]["value"] == 0
    )
    if room == "gongwen":
        docx.Document(folder / "sample.docx")


RULES = {
    "alpaca": lambda judge, text: [judge.fenced(text), judge.sentence_chrf(text[:5000], ["18"]).score],
    "r1": lambda judge, text: [judge.number_of(text), *judge.correctness_reward_func(None, [text, f"<answer>{text}</answer>"], ["18", "18"]),
                               *judge.strict_format_reward_func(None, [text, f"<reasoning>{text}</reasoning><answer>{text}</answer>"])],
    "gongwen": lambda judge, text: [judge.faults({"instruction": "起草检查的通知", "input": "", "reference": NOTICE}, text), judge.term_score(text)],
    "medical": lambda judge, text: [judge.find_risks(text), judge.advises_care_now(text), judge.exam_choice(text), judge.is_urgent(text)],
}  # fmt: skip


@pytest.mark.parametrize("room", JUDGES)
@pytest.mark.parametrize("name", PIECES)
def test_a_long_text_is_scored_soon(functions, tmp_path, room, name):
    judge, text = functions(f"data/{room}/judge.py"), text_of(name, SIZE)
    begin = time.process_time()
    found = RULES[room](judge, text)
    if room == "gongwen":
        judge.save_docx(text[:4000], str(tmp_path / "a.docx"))
    assert time.process_time() - begin < 4, "a fifth of 100 KB"
    if room == "r1":
        assert found[1:] == [0, 0, 0, 0] and found[0] in (None, 1)
    if room == "gongwen":
        assert found[0] and found[1] <= 0.2
    if room == "medical":
        assert found[1:] == [False, "A" if name == "boxes" else "", False]
        assert bool(found[0]) == (name in ("doses", "digits"))  # a long number may be somebody's
        assert len(found[0]) <= 2, "what is said again is found once"


# answers.jsonl and metrics.json: refused with the file and the line, or read

GOOD = "right"
ANSWERS = {
    "as it should be": ({}, GOOD),
    "a mark at the start": (b"\xef\xbb\xbf", GOOD),
    "CRLF": (lambda room: lines(answered(room), answered(room)).replace(b"\n", b"\r\n"), GOOD),
    "no text": ({"after": None}, "line 2"),
    "a number": ({"after": 5}, "line 2"),
    "NaN": ({"before": float("nan")}, "line 2"),
    "a list": ({"after": ["18"]}, "line 2"),
    "an object": ({"before": {"text": "x"}}, "line 2"),
    "true": ({"after": True}, "line 2"),
    "a list as reference": ({"reference": ["x"]}, "(?:line|row) 2"),
    "ended, a text": ({"after_ended": "yes"}, "(?:line|row) 2"),
    "cut in a line": (lambda room: lines(answered(room), answered(room))[:-20], "line 2"),
    "cut in a letter": (lambda room: lines(answered(room)) + '{"after": "好'.encode()[:-1], "line 2|not text in UTF-8"),
    "a column that lacks": (lambda room: lines(answered(room), {k: v for k, v in answered(room).items() if k != "after"}), "line 2"),
    "no columns": (lambda room: lines(answered(room), {}), "line 2"),
    "a list in a line": (lambda room: lines(answered(room), []), "line 2"),
    "a deep line": (lambda room: lines(answered(room)) + b"[" * 50_000, "line 2"),
    "5,000 digits": (lambda room: lines(answered(room)) + b"9" * 5000, "line 2"),
    "NULs": (lambda room: lines(answered(room)) + b"\0" * 500, "line 2"),
    "nothing": (lambda room: b"", "answers.jsonl"),
    "empty lines": (lambda room: b"\n\n", "answers.jsonl"),
    "no file": (lambda room: None, "answers.jsonl|holds no|no document"),
}  # fmt: skip


@pytest.mark.parametrize("room", JUDGES)
@pytest.mark.parametrize("name", ANSWERS)
def test_files_of_answers(judge, room, name):
    made, wanted = ANSWERS[name]
    if callable(made):
        raw = made(room)
    elif isinstance(made, bytes):
        raw = made + lines(answered(room), answered(room))
    else:
        raw = lines(answered(room), answered(room, **made))
    status, said, folder = judge(room, raw)
    assert (folder / "report.md").exists() == (wanted == GOOD) and status == (wanted != GOOD), said
    if wanted != GOOD:
        assert re.search(wanted, said) and folder.name in said, said
        assert (folder / "metrics.json").read_bytes() == json.dumps(METRICS).encode(), "nothing half-written"


BROKEN = {
    "cut": b'{"model": "x", "los', "a list": b"[]", "a text": b'"x"', "deep": b"[" * 50_000, "nothing": b"", "NULs": b"\0" * 99,
    "losses a number": b'{"losses": 5}', "losses of texts": b'{"losses": {"before": {"loss": ["a"]}, "after": {"loss": ["b"]}}}',
    "losses that do not pair": b'{"losses": {"before": {"loss": [1, 2]}, "after": {"loss": [1]}}}',
    "losses of one side": b'{"losses": {"before": {"loss": [1, 2]}}}', "before a text": b'{"before": "x"}',
    "before of texts": b'{"before": {"loss": "x"}}', "difference of numbers": b'{"difference": {"loss": 1}}', "train a list": b'{"train": [1]}',
}  # fmt: skip


@pytest.mark.parametrize("room", JUDGES)
@pytest.mark.parametrize("name", BROKEN)
def test_broken_metrics_are_named_and_kept(judge, room, name):
    status, said, folder = judge(room, lines(answered(room), answered(room)), BROKEN[name])
    assert status == 1 and "metrics.json" in said and "broken" in said, said
    assert (folder / "metrics.json").read_bytes() == BROKEN[name] and not (folder / "report.md").exists()


@pytest.mark.parametrize("room", JUDGES)
@pytest.mark.parametrize("file", ["answers.jsonl", "metrics.json", "report.md"])
@pytest.mark.parametrize("kind", ["a pipe", "a device", "a folder"])
def test_runs_with_odd_files(judge, tmp_path, room, file, kind):
    path = tmp_path / f"run of {room}" / file
    path.parent.mkdir()
    {"a pipe": os.mkfifo, "a device": lambda path: path.symlink_to("/dev/zero"), "a folder": Path.mkdir}[
        kind
    ](path)
    raw = None if file == "answers.jsonl" else lines(answered(room), answered(room))
    metrics = (None,) if file == "metrics.json" else ()
    status, said, folder = judge(room, raw, *metrics)
    assert status == 1 and folder.name in said and (file in said or "rules kept" in said), said
    assert file == "report.md" or not (folder / "report.md").exists()


SCORED = {
    "a kind that is not known": {"kind": "poem"}, "an exam without options": {"kind": "exam", "answer": "A"}, "options that are a list": {"kind": "exam", "option": ["a"], "answer": "A"},
    "an answer that is a number": {"kind": "exam", "option": {"A": "x"}, "answer": 1}, "red team without needs": {"kind": "red_team"},
    "a pattern that is none": {"kind": "red_team", "category": "x", "needs": [], "forbids": [], "harm": ["("]},
    "a need that is not known": {"kind": "red_team", "category": "x", "needs": ["kindness"], "forbids": [], "harm": []},
    "needs a text": {"kind": "red_team", "category": "x", "needs": "refuse", "forbids": [], "harm": []}, "meta a list": {"meta": [1]}, "input a list": {"input": ["x"]},
}  # fmt: skip


@pytest.mark.parametrize("name", SCORED)
def test_rows_that_medicine_cannot_score(judge, name):
    status, said, folder = judge("medical", lines(answered("medical"), answered("medical", **SCORED[name])))
    assert status == 1 and said.count("\n") <= 1 and not (folder / "report.md").exists()
    assert re.search("(?:line|row) 2|red.team", said), said


@pytest.mark.parametrize("room", JUDGES)
@pytest.mark.parametrize("name", ["", "missing", "x" * 5000, "/dev/zero"])
def test_runs_that_are_not_there(run, tmp_path, monkeypatch, room, name):
    monkeypatch.chdir(tmp_path)
    Path("a.txt").write_text("不要读这里。", encoding="utf-8")
    status, said = run(f"{room}/judge.py", name)
    assert status == 1 and said and "a.txt" not in said and len(said) < 12_000


def test_what_is_said_of_anybodys_text_steers_no_terminal(run, tmp_path):
    (tmp_path / "a.txt").write_text("睡前吃两片安定\x1b[2J\x9b2J\u202e。\n", encoding="utf-8")
    status, said = run("medical/judge.py", tmp_path / "a.txt")
    assert status == 1 and "1: dose: 睡前吃两片安定\ufffd[2J" in said


# Terminals: whatever they cannot show, the files are the same to the byte


@pytest.mark.parametrize("encoding,room", [*zip(("gbk", "cp1252", "ascii", "gbk"), ROOMS)])
def test_preparers_in_other_terminals(prepare, tmp_path, encoding, room):
    source = tmp_path / "数据.json"
    source.write_bytes(lines(FIRST, OTHER, {"键\u0301😀": 1}))
    prepare(room, source)
    wanted = out_of(room, tmp_path).read_bytes()
    out_of(room, tmp_path).unlink()
    shutil.copy(ROOT / f"data/{room}/prepare.py", tmp_path / "room")
    command = [
        sys.executable,
        str(tmp_path / "room/prepare.py"),
        str(source),
        *[str(tmp_path / "out.json")] * (room in ("alpaca", "gongwen")),
    ]
    done = subprocess.run(
        command, capture_output=True, env=os.environ | {"PYTHONIOENCODING": encoding}, timeout=120
    )
    assert done.returncode == 0 and b"Traceback" not in done.stderr and done.stdout.decode(encoding)
    assert out_of(room, tmp_path).read_bytes() == wanted


@pytest.mark.parametrize("encoding,room", [*zip(("ascii", "gbk", "cp1252", "ascii"), JUDGES)])
def test_judges_in_other_terminals(judge, tmp_path, encoding, room):
    status, _, folder = judge(room, lines(answered(room), answered(room, before="睡前吃两片安定。😀")))
    files = {path.name: path.read_bytes() for path in folder.iterdir() if path.suffix in (".md", ".json")}
    (folder / "metrics.json").write_bytes(json.dumps(METRICS).encode())
    command = [sys.executable, str(ROOT / f"data/{room}/judge.py"), str(folder)]
    done = subprocess.run(
        command, capture_output=True, env=os.environ | {"PYTHONIOENCODING": encoding}, timeout=120
    )
    assert (
        status == done.returncode == 0
        and done.stdout.decode(encoding)
        and not done.stderr.count(b"Traceback")
    )
    assert {
        path.name: path.read_bytes() for path in folder.iterdir() if path.suffix in (".md", ".json")
    } == files
