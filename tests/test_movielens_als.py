"""movielens_als: what the loader takes and refuses, what ALS guarantees, the whole script, Spark as engine."""

import re
import shutil

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

SCRIPT = "movielens_als/movielens_als.py"
ROWS = [(1, 31, 2.5, 1260759144), (1, 1029, 3.0, 1260759179), (671, 5952, 5.0, 1065579663)]
FORMS = {
    "ratings.csv": ("userId,movieId,rating,timestamp\n", "{},{},{},{}\n"),
    "ratings.dat": ("", "{}::{}::{:.0f}::{}\n"),
    "u.data": ("", "{}\t{}\t{:.0f}\t{}\n"),
    "ml.inter": ("user_id:token\titem_id:token\trating:float\ttimestamp:float\n", "{}\t{}\t{}\t{}.0\n"),
}


@pytest.fixture(scope="module")
def als(functions):
    return functions(SCRIPT)


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


@pytest.mark.parametrize("name", FORMS)
@pytest.mark.parametrize("newline", ["\n", "\r\n"])
@pytest.mark.parametrize("mark", ["", "\ufeff"])
def test_each_form_is_read(als, tmp_path, name, newline, mark):
    header, line = FORMS[name]
    rows = [(*row[:2], round(row[2]) if "{:.0f}" in line else row[2], row[3]) for row in ROWS]
    text = mark + header + "".join(line.format(*row) for row in rows)
    (tmp_path / name).write_bytes(text.replace("\n", newline).encode())
    table = als.load_ratings(tmp_path / name)
    assert list(table.columns) == ["userId", "movieId", "rating", "timestamp"]
    assert [tuple(row) for row in table.itertuples(index=False)] == rows
    assert table.attrs["malformed"] == 0


def test_malformed_lines_are_counted_and_left_out(als, tmp_path, capsys):
    bad = [
        "1,2,3.5",
        "x,2,3,4",
        "1,2,nan,4",
        "1,2,9.5,4",
        "1,2,-1,4",
        "1,2,3,4,5",
        '"1",2,3,4',
        "1,,3,4",
        "1.5,2,3,4",
    ]
    good = "userId,movieId,rating,timestamp\n1,2,3.5,4\n\n5,6,0.5,7\n"
    (tmp_path / "r.csv").write_text(good + "\n".join(bad) + "\n8,9,5,10")
    table = als.load_ratings(tmp_path / "r.csv")
    assert table.userId.tolist() == [1, 5, 8]
    assert table.attrs["malformed"] == len(bad)
    assert "3 ratings, 9 malformed" in capsys.readouterr().out


@pytest.mark.parametrize(
    "text", ["", "\n\n", "userId,movieId,rating,timestamp\n", "hello", "a,b\n1,2,3,4\n", "\0\0"]
)
def test_a_file_without_ratings_is_named(als, tmp_path, text):
    (tmp_path / "none.csv").write_text(text)
    with pytest.raises(ValueError, match=r"none\.csv"):
        als.load_ratings(tmp_path / "none.csv")


def test_columns_in_another_order_are_not_mixed_up(als, tmp_path):
    (tmp_path / "r.csv").write_text("movieId,userId,rating,timestamp\n1,2,3,4\n")
    with pytest.raises(ValueError, match="order the columns"):
        als.load_ratings(tmp_path / "r.csv")


fields = st.one_of(
    st.sampled_from(
        ["1", "42", "3.5", "0.5", "", " ", "nan", "-1", "1e3", '"7"', "inf", "²", "９", "0x1", "\0", "\r"]
    ),
    st.integers(-5, 10**20).map(str),
    st.text(max_size=6),
)
lines = st.lists(st.lists(fields, max_size=6).map(tuple), max_size=12)


@settings(max_examples=300, deadline=None)
@given(lines=lines, separator=st.sampled_from([",", "::", "\t"]), header=st.booleans())
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
    simple = re.compile(r" *([0-9]+)(\.0+)? *")
    possible = []
    for line in path.read_text(encoding="utf-8-sig", errors="replace").split("\n"):
        for mark in (",", "::", "\t"):
            parts = line.strip().split(mark)
            if len(parts) == 4 and all(simple.fullmatch(parts[n]) for n in (0, 1, 3)):
                possible.append(
                    (*(int(simple.fullmatch(parts[n])[1]) for n in (0, 1)), parts[2].strip(), parts[3])
                )
    for row in table.itertuples(index=False):
        match = [
            p
            for p in possible
            if p[:2] == (row.userId, row.movieId) and float(p[2]) == pytest.approx(row.rating)
        ]
        assert any(int(float(p[3])) == row.timestamp for p in match), (row, text)


@settings(max_examples=50, deadline=None)
@given(st.binary(max_size=300))
def test_any_bytes_give_rows_or_a_clear_error(als, tmp_path_factory, content):
    path = tmp_path_factory.mktemp("bytes") / "ratings"
    path.write_bytes(content)
    try:
        als.load_ratings(path)
    except ValueError as error:
        assert str(path) in str(error)


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


def errors_of(run):
    """Return name -> held-out RMSE as the script printed it."""
    assert run.status == 0, run.stderr[-2000:]
    found = re.findall(r"^  (global mean|biases|ALS, rank \d+) +([\d.]+)$", run.stdout, re.MULTILINE)
    return {name.split(",")[0]: float(error) for name, error in found}


@pytest.mark.parametrize("split", ["time", "random"])
def test_the_script_beats_its_baselines(run_script, split):
    run = run_script(SCRIPT, environment={"DATA": ""}, SPLIT=split)
    errors = errors_of(run)
    assert run.seconds < 60
    assert 0.25 < errors["ALS"] < 0.28  # the noise is 0.25
    assert errors["ALS"] < 0.5 * errors["biases"] < 0.5 * errors["global mean"]
    assert (run.output / "als.png").stat().st_size > 20_000 and not list(run.output.glob("*.tmp"))


def test_a_file_with_titles(run_script, tmp_path):
    train, _ = planted(users=60, films=40, share=0.8)
    train = train.assign(rating=train.rating.clip(0.5, 5).round(1), timestamp=range(len(train)))
    train.to_csv(tmp_path / "ratings.csv", index=False)
    titles = [f'{n},"Night, The {n} (1960)",Drama' for n in train.movieId.unique()]
    (tmp_path / "movies.csv").write_text("movieId,title,genres\n" + "\n".join(titles))
    run = run_script(SCRIPT, environment={"DATA": str(tmp_path / "ratings.csv")}, USER=3)
    assert errors_of(run)["ALS"] < errors_of(run)["biases"]
    assert "For user 3" in run.stdout and re.search(r"Night, The \d+ \(1960\)", run.stdout)


def test_spark_gives_the_same_report(run_script):
    pytest.importorskip("pyspark", reason="the extra `spark` is not installed")
    if not shutil.which("java"):
        pytest.skip("Java is not installed: Spark needs Java 17")
    errors = errors_of(run_script(SCRIPT, environment={"DATA": ""}, ENGINE="spark"))
    assert errors["ALS"] < 0.6 * errors["biases"]
