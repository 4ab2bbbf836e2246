# %% [markdown]
"""
# Which film next? ALS for implicit feedback

movielens_als.py learns how films are rated, this one which are watched at all, as a list of recommendations
needs it: a rated film is wanted with confidence 1 + alpha * stars, any other is not, with confidence 1 (Hu,
Koren and Volinsky 2008). Prints precision@k and NDCG@k on held-out films, beside a list of the most rated.

Run:    `uv run movielens_als/implicit_als.py`; put `DATA=ml-latest-small/ratings.csv` in front for real ones
Data:   as in movielens_als.py: user, film, stars (or times watched, seconds, clicks), seconds
Writes: nothing
"""

# %% Imports
import os
import re
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
from scipy.sparse import csr_array

# %% Settings
DATA = os.getenv("DATA") or "movielens_als/generated/ratings.csv"
ENGINE = "numpy"  # or "spark", for ratings beyond one machine (needs Java 17 and the extra `spark`)
SPARK = {"spark.master": "local[2]", "spark.driver.memory": "4g"}  # spark://host:7077 or yarn is a cluster
RANK = 16  # numbers per user and per film; 32 to 128 for millions of ratings
REGULARIZATION = 0.3  # lambda, which is multiplied by the number of ratings of the user or film
IMPLICIT_ALPHA = 0.3  # a rating's confidence is 1 + alpha * stars; up to 40 where few films are rated
ITERATIONS = 10
TOP = 10  # k of precision@k and NDCG@k
SPLIT = "time"  # holds out the newest ratings of each user; "random" any of them
TEST_SHARE = 0.2
RANKED = 1000  # users, at most, whose lists are scored
SEED = 3407
STARS = (0.5, 5.0)  # the scale of the file; a rating outside it is left out


# %% Data
def load_ratings(path: str | Path) -> pd.DataFrame:
    """Return userId, movieId, rating, timestamp (s); counts malformed lines; ValueError names a bad file."""
    if not Path(path).is_file():
        raise ValueError(f"{path} is no file: name the ratings, as ml-latest-small/ratings.csv")
    text = Path(path).read_text(encoding="utf-8-sig", errors="replace").strip()
    separator = max(("::", "\t", ",", ";", "|"), key=text[:10_000].count)
    header = re.match(r"[^0-9\n]+(\n|$)|PK\x03|\x1f", text)  # or what a zip or gzip begins with
    if header and not re.match(r"\W*user.*(movie|item).*rating.*time", header[0][:99], re.IGNORECASE):
        raise ValueError(f"{path} begins with no rating, nor user, movie, rating, time: {header[0]!r:.40}")
    kinds = {"userId": "int64", "movieId": "int64", "rating": "float32", "timestamp": "int64"}
    number = {"int64": r"-?[0-9]{1,18})(?:\.0+)?", "float32": r"-?[0-9]{1,3}(?:\.[0-9]{1,20})?)"}
    line = re.escape(separator).join(f'[" ]*(?P<{name}>{number[kinds[name]]}[" ]*' for name in kinds)
    lines = pc.split_pattern(pa.array([text], pa.large_string()), "\n").values
    found = pc.extract_regex(lines, f"^{line}$")
    bad = lines.filter(pc.and_(pc.is_null(found), pc.match_substring_regex(lines, r"\S")))[bool(header) :]
    found = found.drop_null()
    ratings = pd.DataFrame({name: found.field(name).cast(kind) for name, kind in kinds.items()})
    outside = ratings[~ratings.rating.between(*STARS)]
    what = f"{len(outside)} outside {STARS = }, {len(bad)} malformed lines {bad[:1].to_pylist()!s:.60}"
    if len(outside) == len(ratings) or max(len(outside), len(bad)) > max(9, 0.1 * len(ratings)):  # not typos
        raise ValueError(f"{path}: {what}; correct STARS, or (unzipped) lines to 1,31,2.5,1260759144")
    print(f"{path}: {len(ratings) - len(outside):,} ratings; left out: {what}")
    return ratings.drop(outside.index).reset_index(drop=True)


# %% Model
def half_step(ratings: csr_array, fixed: np.ndarray, regularization: float, alpha: float) -> np.ndarray:
    """Return each row's best factors, given those of its columns: a ridge regression over every cell."""
    rank, counts = fixed.shape[1], np.diff(ratings.indptr)
    free = np.empty((ratings.shape[0], rank), "float32")
    pairs = (fixed[:, :, None] * fixed[:, None, :]).reshape(len(fixed), -1)
    every = fixed.T @ fixed  # of all cells with confidence 1, at once
    for start in range(0, len(free), 1024):  # rows whose squares fit in memory
        part, own = ratings[start : start + 1024], counts[start : start + 1024, None]
        rated = csr_array((np.ones_like(part.data), part.indices, part.indptr), part.shape)
        square = every + alpha * (part @ pairs).reshape(-1, rank, rank)
        square += (regularization * own[:, None] + 1e-6) * np.eye(rank, dtype="float32")
        wanted = (rated + alpha * part) @ fixed
        free[start : start + 1024] = np.linalg.solve(square, wanted[..., None])[..., 0]
    return free


def fit_implicit(
    ratings: pd.DataFrame, rank: int, regularization: float, alpha: float, iterations: int, seed: int
) -> dict:
    """Return the model: ids and factors of users and items; ValueError: no ratings, or one not above 0."""
    if ratings.empty or not (np.isfinite(ratings.rating) & (ratings.rating > 0)).all():
        raise ValueError("implicit feedback needs ratings, all of them above 0")
    user, users = pd.factorize(ratings.userId, sort=True)
    item, items = pd.factorize(ratings.movieId, sort=True)
    by_user = csr_array((ratings.rating.to_numpy("float32"), (user, item)))
    by_item = by_user.T.tocsr()
    item_table = np.random.default_rng(seed).normal(0, 0.1, (len(items), rank)).astype("float32")
    for _ in range(iterations):
        user_table = half_step(by_user, item_table, regularization, alpha)
        item_table = half_step(by_item, user_table, regularization, alpha)
    return {"users": users, "items": items, "user_table": user_table, "item_table": item_table}


# %% Score
def ranking(model: dict, train: pd.DataFrame, test: pd.DataFrame, k: int) -> tuple[float, float]:
    """Return mean precision@k and NDCG@k, a user's held-out films being right whatever their stars.

    Films of train that the user has rated are not offered; users without held-out films are left out.
    """
    gains, scores = 1 / np.log2(np.arange(2, k + 2)), []
    seen = train.groupby("userId").movieId
    for user, films in list(test.groupby("userId").movieId)[:RANKED]:
        wish = model["item_table"] @ model["user_table"][model["users"].get_loc(user)]
        wish[model["items"].get_indexer(seen.get_group(user))] = -np.inf
        hits = np.isin(model["items"][np.argsort(-wish)[:k]], films)
        scores.append((hits.sum() / k, hits @ gains[: len(hits)] / gains[: len(films)].sum()))
    return tuple(np.mean(scores, axis=0))


# %% Hold out
if hasattr(sys.stdout, "reconfigure"):  # a terminal, not a notebook
    sys.stdout.reconfigure(errors="replace")  # one in GBK or cp1252 shows ? for letters it lacks
try:
    ratings = load_ratings(DATA).sort_values("timestamp", kind="stable")
    ratings = ratings.drop_duplicates(["userId", "movieId"], keep="last")
    if ratings.rating.min() <= 0:
        raise ValueError(f"{DATA} has ratings of 0 or less; here they count how often or how much")
except (OSError, ValueError) as error:
    raise SystemExit(str(error)) from error
ratings = ratings if SPLIT == "time" else ratings.sample(frac=1, random_state=SEED)
per_user = ratings.groupby("userId").rating
held_out = per_user.cumcount(ascending=False) < (TEST_SHARE * per_user.transform("size")).astype(int)
train, test = ratings[~held_out], ratings[held_out]
if test.empty:
    raise SystemExit(f"{DATA}: no user has {1 / TEST_SHARE:.0f} ratings, one to hold out; raise TEST_SHARE")

# %% Train
if ENGINE == "spark":
    from pyspark.ml.recommendation import ALS
    from pyspark.sql import SparkSession

    user, users = pd.factorize(train.userId, sort=True)  # Spark's ids are 32-bit numbers
    item, items = pd.factorize(train.movieId, sort=True)
    spark = SparkSession.builder.config(map=SPARK).getOrCreate()
    table = spark.createDataFrame(pa.table([user, item, train.rating], ["user", "item", "rating"]))
    als = ALS(
        rank=RANK,
        regParam=REGULARIZATION,
        maxIter=ITERATIONS,
        implicitPrefs=True,
        alpha=IMPLICIT_ALPHA,
        userCol="user",
        itemCol="item",
        seed=SEED,
    )
    found = als.fit(table)
    model = {"users": users, "items": items}
    for side, factors in (("user_table", found.userFactors), ("item_table", found.itemFactors)):
        model[side] = np.stack(factors.orderBy("id").toArrow()["features"].to_numpy())
else:
    model = fit_implicit(train, RANK, REGULARIZATION, IMPLICIT_ALPHA, ITERATIONS, SEED)

# %% Compare
counts = train.movieId.value_counts()[model["items"]].to_numpy("float32")[:, None]
popular = {**model, "user_table": np.ones((len(model["users"]), 1), "float32"), "item_table": counts}
scores = {"most rated films": popular, f"implicit ALS, rank {RANK}": model}
table = pd.DataFrame({name: ranking(m, train, test, TOP) for name, m in scores.items()}).T
table.columns = [f"precision@{TOP}", f"NDCG@{TOP}"]
print(f"{len(test):,} ratings held out ({SPLIT}), {len(train):,} learnt from, {ENGINE}:")
print(table.to_string(float_format="%.4f"))
