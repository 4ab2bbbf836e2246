"""movielens_als: what the loaders take and refuse, what ALS guarantees, whole scripts on odd files, implicit feedback."""

import contextlib
import gzip
import io
import os
import re
import signal
import subprocess
import sys
import time
import zipfile

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from conftest import ROOT
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

SCRIPT, IMPLICIT = "movielens_als/movielens_als.py", "movielens_als/implicit_als.py"
ROWS = [(1, 31, 2.5, 1260759144), (1, 1029, 3.0, 1260759179), (671, 5952, 5.0, 1065579663)]
FORMS = {
    "ratings.csv": ("userId,movieId,rating,timestamp\n", "{},{},{},{}\n"),
    "quoted.csv": ('"userId","movieId","rating","timestamp"\n', '"{}","{}","{}","{}"\n'),
    "ratings.dat": ("", "{}::{}::{:.0f}::{}\n"),
    "u.data": ("", "{}\t{}\t{:.0f}\t{}\n"),
    "ml.inter": ("user_id:token\titem_id:token\trating:float\ttimestamp:float\n", "{}\t{}\t{}\t{}.0\n"),
    "semicolons.csv": ("userId;movieId;rating;timestamp\n", "{};{};{};{}\n"),
    "bars.txt": ("", "{}|{}|{}|{}\n"),
}


@pytest.fixture(scope="module")
def als(functions):
    return functions(SCRIPT)


@pytest.fixture(scope="module")
def implicit(functions):
    return functions(IMPLICIT)


@contextlib.contextmanager
def time_limit(seconds):
    """Raise TimeoutError in what takes longer."""

    def stop(*_):
        raise TimeoutError(f"longer than {seconds} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def run_cells(script, until=None, **constants):
    """Run a script in this process up to a cell; return (its last line or None, what it printed, its names)."""
    source = (ROOT / script).read_text(encoding="utf-8")
    for name, value in constants.items():
        source, count = re.subn(rf"(?m)^{name} = .*$", lambda _, n=name, v=value: f"{n} = {v!r}", source)
        assert count == 1, name
    source = source[: source.index(f"# %% {until}")] if until else source
    space, ended, printed = {"__name__": "__main__"}, None, io.StringIO()
    with time_limit(30), contextlib.redirect_stdout(printed):
        try:
            exec(compile(source, script, "exec"), space)
        except SystemExit as stop:
            ended = str(stop)
        finally:
            plt.close("all")
            plt.rcdefaults()
    return ended, printed.getvalue(), space


def planted(users=200, films=100, rank=5, share=0.5, seed=0):
    """Return (train, test) of a matrix of known rank with biases, without noise."""
    rng = np.random.default_rng(seed)
    table = rng.normal(0, 0.7, (users, rank)) @ rng.normal(0, 0.7, (rank, films))
    table += 3.5 + rng.normal(0, 0.3, (users, 1)) + rng.normal(0, 0.3, films)
    user, film = np.divmod(np.arange(users * films), films)
    rows = pd.DataFrame({"userId": 10 * user + 3, "movieId": 7 * film + 1, "rating": table.ravel()})
    known = rng.random(len(rows)) < share
    return rows[known], rows[~known]


def loss(model, ratings, regularization):
    """Return what ALS minimises, in float64: squared errors plus lambda times count times squared row norms."""
    user, item = (model[n].get_indexer(ratings[c]) for n, c in (("users", "userId"), ("items", "movieId")))
    left, right = model["user_table"].astype(float), model["item_table"].astype(float)
    stars = (
        model["mean"] + left[user, -1] + right[item, -1] + (left[user, :-2] * right[item, :-2]).sum(axis=1)
    )
    norms = [
        np.square(np.delete(t, -2, axis=1)).sum(axis=1)[at].sum() for t, at in ((left, user), (right, item))
    ]
    return np.square(stars - ratings.rating).sum() + regularization * sum(norms)


def left_out(text):
    """Return (ratings outside the scale, malformed lines) as load_ratings printed them."""
    return tuple(map(int, re.search(r"left out: (\d+) outside .*?, (\d+) malformed", text).groups()))


@pytest.mark.parametrize("name", FORMS)
@pytest.mark.parametrize("newline", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("mark", ["", "\ufeff"])
def test_each_form_is_read(als, tmp_path, capsys, name, newline, mark):
    header, line = FORMS[name]
    rows = [(*row[:2], round(row[2]) if "{:.0f}" in line else row[2], row[3]) for row in ROWS]
    text = mark + header + "".join(line.format(*row) for row in rows)
    (tmp_path / name).write_bytes(text.replace("\n", newline).encode())
    table = als.load_ratings(tmp_path / name)
    assert list(table.columns) == ["userId", "movieId", "rating", "timestamp"]
    assert [tuple(row) for row in table.itertuples(index=False)] == rows
    assert left_out(capsys.readouterr().out) == (0, 0)


def test_malformed_lines_are_counted_shown_and_left_out(als, tmp_path, capsys):
    bad = [
        "1,2,3.5",
        "x,2,3,4",
        "1,2,nan,4",
        "1,2,3,4,5",
        "1,,3,4",
        "1.5,2,3,4",
        "\x1b[31m,2,3,4",
        "1,2,3,1e9",
    ]
    outside = ["1,2,9.5,4", "1,2,-1,4"]
    good = "userId,movieId,rating,timestamp\n1,2,3.5,4\n\n-5,6,0.5,7\n"
    (tmp_path / "r.csv").write_text(good + "\n".join(bad + outside) + "\n8,9,5,10")
    table = als.load_ratings(tmp_path / "r.csv")
    assert table.userId.tolist() == [1, -5, 8]
    printed = capsys.readouterr().out
    assert left_out(printed) == (len(outside), len(bad)) and "1,2,3.5" in printed and "\x1b" not in printed


@pytest.mark.parametrize("scale", [(1, 10), (0, 100), (-10, 10), (0, 5)])
def test_another_scale_is_not_cut_in_half(als, tmp_path, scale):
    stars = np.random.default_rng(0).integers(scale[0], scale[1] + 1, 200)
    (tmp_path / "r.csv").write_text("".join(f"{n},{n},{s},{n}\n" for n, s in enumerate(stars)))
    with pytest.raises(ValueError, match=r"r\.csv.*STARS"):
        als.load_ratings(tmp_path / "r.csv")


def test_a_few_ratings_outside_the_scale_are_typing_errors(als, tmp_path, capsys):
    lines = [f"{n},{n},{55 if n % 100 == 0 else 4},{n}" for n in range(1, 1000)]
    (tmp_path / "r.csv").write_text("\n".join(lines))
    assert len(als.load_ratings(tmp_path / "r.csv")) == 990
    assert left_out(capsys.readouterr().out) == (9, 0)


fields = st.one_of(
    st.sampled_from(
        ["1", "42", "3.5", "0.5", "", " ", "nan", "-1", "1e3", '"7"', "inf", "²", "９", "0x1", "\0", "\r"]
    ),
    st.integers(-5, 10**20).map(str),
    st.text(max_size=6),
)
lines = st.lists(st.lists(fields, max_size=6).map(tuple), max_size=12)


@settings(max_examples=200, deadline=None)
@given(lines=lines, separator=st.sampled_from([",", "::", "\t", ";", "|"]), header=st.booleans())
def test_any_text_gives_its_own_rows_or_a_clear_error(als, tmp_path_factory, lines, separator, header):
    path = tmp_path_factory.mktemp("any") / "ratings"
    head = separator.join(["userId", "movieId", "rating", "timestamp"]) + "\n"
    text = (head if header else "") + "\n".join(separator.join(line) for line in lines)
    path.write_bytes(text.encode("utf-8", "replace"))
    try:
        table = als.load_ratings(path)
    except ValueError as error:
        assert str(path) in str(error)
        return
    simple = re.compile(r"(-?[0-9]+)(\.0+)?")
    possible = []
    for line in path.read_text(encoding="utf-8-sig", errors="replace").split("\n"):
        for mark in (",", "::", "\t", ";", "|"):
            parts = [part.strip(' "') for part in line.strip().split(mark)]
            if len(parts) == 4 and all(simple.fullmatch(parts[n]) for n in (0, 1, 3)):
                possible.append((*(int(simple.fullmatch(parts[n])[1]) for n in (0, 1)), parts[2], parts[3]))
    for row in table.itertuples(index=False):
        match = [
            p
            for p in possible
            if p[:2] == (row.userId, row.movieId) and float(p[2]) == pytest.approx(row.rating)
        ]
        assert any(int(float(p[3])) == row.timestamp for p in match), (row, text)


@settings(max_examples=50, deadline=None)
@given(content=st.binary(max_size=300), name=st.sampled_from(["movies.csv", "movies.dat", "u.item"]))
def test_any_bytes_give_rows_or_a_clear_error(als, tmp_path_factory, content, name):
    path = tmp_path_factory.mktemp("bytes") / name
    path.write_bytes(content)
    with contextlib.suppress(ValueError):
        als.load_ratings(path)
    titles = als.load_titles(path)
    assert all(title.isprintable() for title in titles.title)


# ---- whole runs on odd files

RNG = np.random.default_rng(0)
TABLE = [
    (user, film, RNG.integers(1, 11) / 2, 838985000 + 99 * user + n)
    for user in range(1, 13)
    for n, film in enumerate(RNG.permutation(30)[:20] + 1)
]
HEADER = "userId,movieId,rating,timestamp\n"
MOVIES = "movieId,title,genres\n" + "".join(f'{n},"Night, The {n} (1960)",Drama|War\n' for n in range(1, 31))


def lines_of(change=lambda *row: row, separator=",", header=HEADER):
    """Return the table as text, each row changed."""
    rows = [separator.join(str(value) for value in change(*row)) for row in TABLE]
    return header.replace(",", separator) + "\n".join(rows) + "\n"


def packed(text, minute=0):
    """Return a zip archive that holds the text, not compressed; the time may put digits before its first line."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr(zipfile.ZipInfo("ratings.csv", (2026, 11, 26, 0, minute, 40)), text)
    return buffer.getvalue()


READ = {  # file -> (its content, ratings that are read, ratings after repeated ones)
    "plain": (lines_of(), 240, 240),
    "quoted": (lines_of(lambda *row: [f'"{value}"' for value in row], header='"userId","movieId","rating","timestamp"\n'), 240, 240),
    "colons": (lines_of(separator="::", header=""), 240, 240),
    "tabs": (lines_of(separator="\t"), 240, 240),
    "semicolons": (lines_of(separator=";"), 240, 240),
    "bars": (lines_of(separator="|", header=""), 240, 240),
    "no header": (lines_of(header=""), 240, 240),
    "upper case": (lines_of(header="UserID,MovieID,Rating,Timestamp\n"), 240, 240),
    "recbole": (lines_of(separator="\t", header="user_id:token,item_id:token,rating:float,timestamp:float\n"), 240, 240),
    "windows": (lines_of().replace("\n", "\r\n"), 240, 240),
    "old mac": (lines_of().replace("\n", "\r"), 240, 240),
    "mark": ("\ufeff" + lines_of(), 240, 240),
    "blank lines": ("\n\n" + lines_of().replace("\n", "\n\n"), 240, 240),
    "spaces": (lines_of(separator=", "), 240, 240),
    "numbers with .0": (lines_of(lambda u, f, s, t: (float(u), float(f), s, float(t))), 240, 240),
    "long decimals": (lines_of(lambda u, f, s, t: (u, f, f"{s:.16f}", t)), 240, 240),
    "negative ids": (lines_of(lambda u, f, s, t: (-u, -f, s, t)), 240, 240),
    "huge ids": (lines_of(lambda u, f, s, t: (u + 10**17, f + 10**17, s, t)), 240, 240),
    "some nan": (lines_of(lambda u, f, s, t: (u, f, "nan" if f == 7 else s, t)), sum(row[1] != 7 for row in TABLE), None),
    "given twice": (lines_of() + lines_of(lambda u, f, s, t: (u, f, 5.5 - s, t + 10**6), header=""), 480, 240),
    "header in the middle": (lines_of() + HEADER, 240, 240),
    "NUL in the middle": (lines_of() + "\0\0\n1,\0,3,4\n", 240, 240),
    "one user": (lines_of(lambda u, f, s, t: (1, 40 * u + f, s, t)), 240, None),
    "all the same": (lines_of(lambda u, f, s, t: (u, f, 4, t)), 240, 240),
    "invalid UTF-8": (lines_of().encode() + b"\xff\xfe,1,2,3\n", 240, 240),
}  # fmt: skip
REFUSED = {
    "spaces between": lines_of(separator=" "),
    "another order": lines_of(header="movieId,userId,rating,timestamp\n"),
    "three columns": lines_of(lambda *row: row[:3], header="userId,movieId,rating\n"),
    "a column more": lines_of(lambda *row: (*row, "x"), header="userId,movieId,rating,timestamp,tag\n"),
    "an index": lines_of(lambda *row: (0, *row), header=",userId,movieId,rating,timestamp\n"),
    "text for stars": lines_of(lambda u, f, s, t: (u, f, "good", t)),
    "nan for stars": lines_of(lambda u, f, s, t: (u, f, "nan", t)),
    "dates": lines_of(lambda u, f, s, t: (u, f, s, "2019-01-01 12:00:00")),
    "names of users": lines_of(lambda u, f, s, t: (f"A{u}", f, s, t)),
    "ids of 20 digits": lines_of(lambda u, f, s, t: (u + 10**19, f, s, t)),
    "decimal commas": lines_of(lambda u, f, s, t: (u, f, str(s).replace(".", ","), t), separator=";"),
    "1 to 10": lines_of(lambda u, f, s, t: (u, f, 2 * s, t)),
    "percent": lines_of(lambda u, f, s, t: (u, f, 20 * s, t)),
    "empty": "",
    "blank": "\n \n",
    "only a header": HEADER,
    "one line": "1,2,3,4\n",
    "nine ratings": "\n".join(lines_of().split("\n")[:10]),
    "one rating a film": "".join(f"{n},{n},3,{n}\n" for n in range(50)),
    "json": '[{"userId": 1}]',
    "a page": "<!DOCTYPE html>\n<html><body>404</body></html>",
    "titles": MOVIES,
    "UTF-16": lines_of().encode("utf-16"),
    "NUL": b"\0" * 1000,
    "noise": RNG.bytes(5000),
    "zip": packed(lines_of()),
    "zip with a digit": packed(lines_of(), minute=1),
    "gzip without compression": gzip.compress(lines_of().encode(), 0),
    "gzip": gzip.compress(lines_of().encode()),
    "a line of 1 MB": "1,2,3," * 170_000,
    "quotes": '"' * 100_000 + "\n1,2",
    "words": "user movie rating " * 6000 + "\n1,2\n",
}


def write(path, content):
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


@pytest.mark.parametrize("name", READ)
def test_a_run_reads_what_people_have(tmp_path, name):
    content, read, kept = READ[name]
    path = write(tmp_path / "ratings.csv", content)
    ended, printed, space = run_cells(
        SCRIPT, "Figure", DATA=str(path), OUTPUT=str(tmp_path / "out"), ITERATIONS=2
    )
    assert ended is None, ended
    assert f"{path}: {read:,} ratings" in printed
    assert len(space["train"]) + len(space["test"]) == (kept or read)
    if name == "given twice":  # the newest counts
        stars = {(u, f): 5.5 - s for u, f, s, _ in TABLE}
        assert all(stars[row.userId, row.movieId] == row.rating for row in space["ratings"].itertuples())


@pytest.mark.parametrize("name", REFUSED)
def test_a_run_refuses_the_rest_in_one_line(tmp_path, name):
    path = write(tmp_path / "ratings.csv", REFUSED[name])
    ended, printed, space = run_cells(SCRIPT, DATA=str(path), OUTPUT=str(tmp_path / "out"))
    assert ended and str(path) in ended and "\n" not in ended and len(ended) < 600
    assert "model" not in space


@pytest.mark.parametrize("name", ["folder", "fifo", "/dev/zero", "/dev/null", "missing", "dead link"])
@pytest.mark.parametrize("script", [SCRIPT, IMPLICIT])
def test_only_a_regular_file_is_opened(tmp_path, name, script):
    path = tmp_path / "ratings.csv"
    if name == "folder":
        path.mkdir()
    elif name == "fifo":
        os.mkfifo(path)
    elif name == "dead link":
        path.symlink_to(tmp_path / "nowhere")
    path = name if name.startswith("/dev") else str(path)
    ended, _, _ = run_cells(script, DATA=path)
    assert path in ended and "is no file" in ended


def test_an_output_that_cannot_be_written_is_said_before_the_training(tmp_path):
    path = write(tmp_path / "ratings.csv", lines_of())
    for output in (path, path / "below"):
        ended, _, space = run_cells(SCRIPT, DATA=str(path), OUTPUT=str(output))
        assert str(output) in ended and "model" not in space
    (tmp_path / "out" / "als.png").mkdir(parents=True)
    ended, _, space = run_cells(SCRIPT, DATA=str(path), OUTPUT=str(tmp_path / "out"))
    assert "als.png" in ended and "model" not in space


ITEM = "{}|Toy Story {} (1995)|01-Jan-1995||http://x|0|0|0|1|1|1|0|0|0|0|0|0|0|0|0|0|0|0|0\n"
FILMS = range(1, 31)
TITLES = {  # name -> (file, content, title of film 7 or None, genre or None, malformed lines)
    "quoted": ("movies.csv", MOVIES, "Night, The 7 (1960)", "Drama", 0),
    "UTF-8": ("movies.dat", "".join(f"{n}::Misérables, Les {n} (1998)::Drama\n" for n in FILMS), "Misérables, Les 7 (1998)", "Drama", 0),
    "Latin-1": ("movies.dat", "".join(f"{n}::Misérables, Les {n} (1998)::Drama\n" for n in FILMS).encode("latin-1"), "Misérables, Les 7 (1998)", "Drama", 0),
    "GBK": ("movies.csv", ("movieId,title,genres\n" + "".join(f"{n},霸王别姬之{n},剧情\n" for n in FILMS)).encode("gbk"), "霸王别姬之7", "剧情", 0),
    "u.item": ("u.item", "".join(ITEM.format(n, n) for n in FILMS), "Toy Story 7 (1995)", None, 0),
    "mark": ("movies.csv", "\ufeff" + MOVIES, "Night, The 7 (1960)", "Drama", 0),
    "old mac": ("movies.csv", MOVIES.replace("\n", "\r"), "Night, The 7 (1960)", "Drama", 0),
    "malformed": ("movies.csv", MOVIES + "31,Night, The,Drama\nfoo\n5\n,,,\n", "Night, The 7 (1960)", "Drama", 4),
    "no genres": ("movies.csv", "".join(f"{n},Film {n}\n" for n in FILMS), "Film 7", None, 0),
    "formulas": ("movies.csv", "".join(f'{n},"\x1b[31m$\\alpha_{n}$ $x^{{ \x07\\frac",$Dr\\ama$\n' for n in FILMS), " [31m$\\alpha_7$ $x^{  \\frac", "$Dr\\ama$", 0),
    "quotes inside": ("movies.csv", '7,"A ""B"" C",Drama\n8,"open,Drama\n9,"x"y",War\n', 'A "B" C', "Drama", 2),
    "title in quotes": ("movies.dat", '7::"Great Performances" Cats (1998)::Musical\n', '"Great Performances" Cats (1998)', "Musical", 0),
    "emoji": ("movies.csv", "7,\U0001f600 \u202eabc\ufffe,Drama\n", "\U0001f600  abc ", "Drama", 0),
    "given twice": ("movies.csv", "7,first,Drama\n7,second,War\n", "first", "Drama", 0),
    "NUL": ("movies.csv", MOVIES + "\0\0\0", "Night, The 7 (1960)", "Drama", 0),
    "an id of 5,000 digits": ("movies.csv", "9" * 5000 + ",a,b\n7,b,c\n", "b", "c", 1),
    "UTF-16": ("movies.csv", MOVIES.encode("utf-16"), None, None, 31),
    "empty": ("movies.csv", "", None, None, 0),
    "only a header": ("movies.csv", "movieId,title,genres\n", None, None, 0),
}  # fmt: skip


@pytest.mark.parametrize("name", TITLES)
def test_titles(als, tmp_path, capsys, name):
    file, content, title, genre, malformed = TITLES[name]
    with time_limit(5):
        table = als.load_titles(write(tmp_path / file, content))
    assert table.title.get(7) == title
    found = table.genre.get(7)
    assert found == genre or (genre is None and pd.isna(found)) or (title is None and found is None)
    said = re.search(
        rf"{re.escape(file)}: ([\d,]+) titles; left out: (\d+) malformed", capsys.readouterr().out
    )
    assert (
        (int(said[1]) > 0) == (title is not None)
        and int(said[2]) >= malformed > 0
        or int(said[2]) == malformed
    )


@pytest.mark.parametrize(
    "line", ["7," + '"' * 100_001 + "x", " " * 200_000, "7,a" * 50_000, "7::" * 50_000, "7|a|" * 50_000]
)
@pytest.mark.parametrize("file", ["movies.csv", "movies.dat", "u.item"])
def test_long_lines_of_titles_take_no_time(als, tmp_path, line, file):
    start = time.process_time()
    als.load_titles(write(tmp_path / file, line))
    assert time.process_time() - start < 2


@pytest.mark.filterwarnings("ignore:Glyph")
@pytest.mark.parametrize("name", ["quoted", "GBK", "u.item", "formulas", "emoji", "malformed", "empty", None])
def test_any_titles_can_be_drawn(tmp_path, name):
    path = write(tmp_path / "ratings.csv", lines_of())
    if name:
        write(tmp_path / TITLES[name][0], TITLES[name][1])
    out = tmp_path / "out"
    ended, printed, _ = run_cells(SCRIPT, DATA=str(path), OUTPUT=str(out), ITERATIONS=2, USER=3)
    assert ended is None, ended
    titles = name and name not in ("empty", "emoji")
    assert "\x1b" not in printed and ("(no title)" in printed) == (not titles)
    if name and TITLES[name][4]:  # said before the training
        assert printed.index("4 malformed") < printed.index("RMSE")
    with Image.open(out / "als.png") as figure:
        assert min(figure.size) > 500
        figure.load()
    assert [file.name for file in out.iterdir()] == ["als.png"]


@pytest.mark.parametrize("change", ["one user", "all the same"])
def test_odd_ratings_can_be_drawn(tmp_path, change):
    path = write(tmp_path / "ratings.csv", READ[change][0])
    ended, _, _ = run_cells(SCRIPT, DATA=str(path), OUTPUT=str(tmp_path / "out"), ITERATIONS=2, RANK=1)
    assert ended is None and (tmp_path / "out" / "als.png").stat().st_size > 5000


def test_a_user_without_ratings_gets_the_average_ones_films(tmp_path):
    path = write(tmp_path / "ratings.csv", lines_of())
    _, printed, space = run_cells(SCRIPT, "Figure", DATA=str(path), OUTPUT=str(tmp_path / "out"), USER=999)
    assert "For user 999 (0 ratings)" in printed


# ---- what ALS guarantees


@pytest.mark.parametrize("regularization", [0.01, 0.1])
def test_loss_falls_at_every_half_step(als, regularization):
    train, _ = planted(share=0.05)  # many rows have fewer ratings than unknowns: both solvers are used
    history = []
    als.fit(train, 5, regularization, 10, 1, lambda model: history.append(loss(model, train, regularization)))
    assert len(history) == 20
    assert all(after <= before * (1 + 1e-6) for before, after in zip(history, history[1:], strict=False))
    assert history[-1] < 0.5 * history[0]


def test_a_half_step_is_the_ridge_solution(als):
    train, _ = planted(users=12, films=9, share=0.6)
    model = als.fit(train, 2, 0.1, 3, 0)
    for row, film in enumerate(model["items"]):
        rows = train[train.movieId == film]
        table = model["user_table"][model["users"].get_indexer(rows.userId)].astype(float)
        x, y = table[:, :-1], rows.rating - model["mean"] - table[:, -1]
        best = np.linalg.solve(x.T @ x + 0.1 * len(rows) * np.eye(3), x.T @ y)
        assert np.allclose(np.delete(model["item_table"][row], -2), best, atol=1e-4)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_recovers_a_planted_rank_and_beats_the_biases(als, seed):
    train, test = planted(seed=seed)
    error = als.rmse(als.fit(train, 5, 0.001, 20, seed), test)
    assert error < 0.05
    assert error < 0.1 * als.rmse(als.fit(train, 0, 0.001, 20, seed), test)


def test_one_long_row_among_many_short_ones(als):
    rng = np.random.default_rng(0)
    users = np.r_[np.zeros(6000, int), np.arange(1, 6001)]
    films = np.r_[np.arange(6000), rng.integers(0, 6000, 6000)]
    ratings = pd.DataFrame({"userId": users, "movieId": films, "rating": rng.integers(1, 6, 12000)})
    model = als.fit(ratings, 4, 0.1, 2, 0)
    assert np.isfinite(model["user_table"]).all() and np.isfinite(model["item_table"]).all()


def test_the_seed_decides(als):
    train, _ = planted()
    first, second, other = (als.fit(train, 3, 0.1, 3, seed) for seed in (1, 1, 2))
    assert np.array_equal(first["user_table"], second["user_table"])
    assert not np.array_equal(first["user_table"], other["user_table"])


def test_no_iterations_are_the_mean(als):
    train, test = planted()
    model = als.fit(train, 0, 0.1, 0, 0)
    assert np.allclose(als.predict(model, test.userId, test.movieId), train.rating.mean(), atol=1e-5)


def test_unknown_users_and_films_are_average_ones(als):
    train, _ = planted()
    model = als.fit(train, 3, 0.05, 5, 0)
    user, film = train.userId.iloc[0], train.movieId.iloc[0]
    both, no_user, no_film, known = als.predict(model, [-1, -1, user, user], [-1, film, -1, film])
    assert both == pytest.approx(model["mean"])
    assert no_user == pytest.approx(
        model["mean"] + model["item_table"][model["items"].get_loc(film), -1], abs=1e-5
    )
    assert no_film == pytest.approx(
        model["mean"] + model["user_table"][model["users"].get_loc(user), -1], abs=1e-5
    )
    assert known == pytest.approx(als.predict(model, user, film)[0])


def test_repeated_ratings_count_once(als):
    train, _ = planted(users=20, films=10)
    again = pd.concat([train.assign(rating=1.0), train])
    assert np.allclose(als.fit(again, 2, 0.1, 2, 0)["user_table"], als.fit(train, 2, 0.1, 2, 0)["user_table"])


@pytest.mark.parametrize("change", [{"rank": -1}, {"regularization": -0.1}, {"iterations": -1}])
def test_bad_settings_are_refused(als, change):
    train, _ = planted(users=5, films=5)
    with pytest.raises(ValueError, match="fit needs"):
        als.fit(train, **{"rank": 2, "regularization": 0.1, "iterations": 2, "seed": 0} | change)
    for bad in (train[:0], train.assign(rating=np.nan)):
        with pytest.raises(ValueError, match="fit needs"):
            als.fit(bad, 2, 0.1, 2, 0)


# ---- the scripts as a user runs them


def errors_of(printed):
    """Return name -> held-out RMSE as the script printed it."""
    found = re.findall(r"(?m)^  (global mean|biases|ALS, rank \d+) +([\d.]+)$", printed)
    return {name.split(",")[0]: float(error) for name, error in found}


@pytest.mark.parametrize("split", ["time", "random"])
def test_the_script_beats_its_baselines(tmp_path, split):
    start = time.time()
    ended, printed, space = run_cells(SCRIPT, OUTPUT=str(tmp_path), SPLIT=split)
    errors = errors_of(printed)
    assert ended is None and time.time() - start < 30
    assert 0.33 < errors["ALS"] < 0.42  # noise and rounding are 0.33
    assert errors["ALS"] < 0.7 * errors["biases"] < 0.7 * errors["global mean"]
    assert (tmp_path / "als.png").stat().st_size > 20_000
    place, genre = space["place"], space["genre"]  # genres lie together, though only ratings were learnt from
    centres = place.groupby(genre).mean()
    nearest = [(centres - row).pow(2).sum(axis=1).idxmin() for row in place.to_numpy()]
    assert np.mean(genre == nearest) > 0.85


def test_a_terminal_in_gbk_shows_what_it_can(tmp_path):
    write(tmp_path / "ratings.csv", lines_of())
    write(tmp_path / "movies.csv", "".join(f"{n},Amélie ☃ 雪 {n},Drama\n" for n in FILMS))
    environment = {
        **os.environ,
        "PYTHONIOENCODING": "gbk",
        "DATA": str(tmp_path / "ratings.csv"),
        "OUTPUT": str(tmp_path / "out"),
    }
    command = [sys.executable, SCRIPT]
    run = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, timeout=60)
    assert run.returncode == 0, run.stderr[-2000:]
    assert "Amélie ? 雪" in run.stdout.decode("gbk") and (tmp_path / "out" / "als.png").exists()


def test_the_generated_ratings_are_what_their_program_makes(functions):
    build = functions("movielens_als/build.py")
    ratings, films = build.generate(build.SEED)
    for table, name in ((ratings, "ratings.csv"), (films, "movies.csv")):
        text = (ROOT / "movielens_als" / "generated" / name).read_text(encoding="utf-8")
        assert text == table.to_csv(index=False, lineterminator="\n")
    assert films.title.is_unique and len(ratings) == build.USERS * build.PER_USER


# ---- implicit feedback


def test_an_implicit_half_step_counts_every_cell(implicit):
    rng = np.random.default_rng(0)
    dense = rng.integers(1, 6, (7, 9)) * (rng.random((7, 9)) < 0.4)
    dense[:, 0] = 3  # no row is empty
    fixed = rng.normal(size=(9, 3)).astype("float32")
    found = implicit.half_step(implicit.csr_array(dense.astype("float32")), fixed, 0.2, 1.5)
    for row, best in zip(dense, found, strict=True):
        trust = np.diag(1 + 1.5 * row)  # of every film, 1 where there is no rating
        left = fixed.T @ trust @ fixed + 0.2 * (row > 0).sum() * np.eye(3)
        assert np.allclose(best, np.linalg.solve(left, fixed.T @ trust @ (row > 0)), atol=1e-4)


def implicit_loss(model, dense, regularization, alpha):
    """Return the loss of Hu, Koren and Volinsky with weighted lambda."""
    users, items = model["user_table"].astype(float), model["item_table"].astype(float)
    wanted = dense > 0
    fit = ((1 + alpha * dense) * (wanted - users @ items.T) ** 2).sum()
    norms = (wanted.sum(1) @ np.square(users).sum(1)) + (wanted.sum(0) @ np.square(items).sum(1))
    return fit + regularization * norms


def test_the_implicit_loss_falls(implicit):
    train, _ = planted(users=60, films=40, share=0.2)
    train = train.assign(rating=train.rating.clip(0.5, 5))
    dense = train.pivot(index="userId", columns="movieId", values="rating").fillna(0).to_numpy()
    losses = [
        implicit_loss(implicit.fit_implicit(train, 4, 0.1, 2.0, n, 0), dense, 0.1, 2.0) for n in range(1, 6)
    ]
    assert all(after <= before * (1 + 1e-5) for before, after in zip(losses, losses[1:], strict=False))


def test_ranking_against_counting_by_hand(implicit):
    train = pd.DataFrame({"userId": [1, 1, 2], "movieId": [10, 11, 12], "rating": 4.0})
    test = pd.DataFrame({"userId": [1, 1, 2], "movieId": [12, 13, 10], "rating": 1.0})
    model = {
        "users": pd.Index([1, 2]),
        "items": pd.Index([10, 11, 12, 13]),
        "user_table": np.array([[1.0], [1.0]]),
        "item_table": np.array([[4.0], [3.0], [2.0], [1.0]]),
    }
    precision, ndcg = implicit.ranking(model, train, test, 2)
    # user 1 is offered 12 and 13, both right; user 2 is offered 10, right, and 11, wrong
    assert precision == pytest.approx((1 + 0.5) / 2) and ndcg == pytest.approx(1)
    model["item_table"] = np.array([[3.0], [4.0], [1.0], [2.0]])
    precision, ndcg = implicit.ranking(model, train, test, 2)
    assert ndcg == pytest.approx((1 + 1 / np.log2(3)) / 2)  # user 2's hit comes second


def test_the_implicit_script_beats_the_most_rated_films():
    ended, printed, _ = run_cells(IMPLICIT)
    scores = dict(re.findall(r"(?m)^(most rated|implicit ALS).*? (0\.\d+)  ", printed))
    assert ended is None and float(scores["implicit ALS"]) > 1.1 * float(scores["most rated"])


@pytest.mark.parametrize("name", ["empty", "1 to 10", "nine ratings", "NUL", "zip", "text for stars"])
def test_the_implicit_script_refuses_in_one_line(tmp_path, name):
    path = write(tmp_path / "ratings.csv", REFUSED[name] if name != "nine ratings" else "1,2,3,4\n1,3,4,5\n")
    ended, _, _ = run_cells(IMPLICIT, DATA=str(path))
    assert ended and str(path) in ended and "\n" not in ended


def test_no_stars_are_no_wish(tmp_path, implicit):
    path = write(tmp_path / "ratings.csv", lines_of(lambda u, f, s, t: (u, f, 0 if f == 1 else s, t)))
    ended, _, _ = run_cells(IMPLICIT, DATA=str(path), STARS=(0.0, 5.0))
    assert "0 or less" in ended
    train, _ = planted(users=5, films=5)
    for bad in (train[:0], train.assign(rating=0.0), train.assign(rating=np.nan)):
        with pytest.raises(ValueError, match="above 0"):
            implicit.fit_implicit(bad, 2, 0.1, 1.0, 2, 0)


def test_both_scripts_read_ratings_by_the_same_function():
    texts = [(ROOT / script).read_text(encoding="utf-8") for script in (SCRIPT, IMPLICIT)]
    bodies = [re.search(r"(?s)def load_ratings.*?\n\n\n", text)[0] for text in texts]
    assert bodies[0] == bodies[1]


def test_spark_gives_about_the_same():
    pytest.importorskip("pyspark", reason="the extra `spark` is not installed")
    _, ours, _ = run_cells(IMPLICIT)
    _, spark, _ = run_cells(IMPLICIT, ENGINE="spark")
    first, second = (
        float(re.search(r"implicit ALS, rank \d+ +\S+ +(\S+)", text)[1]) for text in (ours, spark)
    )
    assert second == pytest.approx(first, rel=0.1)
