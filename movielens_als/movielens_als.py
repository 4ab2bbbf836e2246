# %% [markdown]
"""
# Film ratings as a low-rank matrix: alternating least squares

rating = mean + user bias + film bias + user factors · film factors. With the films fixed, each user is a
ridge regression with a closed form, and the other way round; a row's penalty grows with its number of ratings
(weighted lambda, Zhou et al. 2008; biases too). Prints the error on held-out ratings beside two baselines.

Run:    `uv run movielens_als/movielens_als.py`; put `DATA=ml-latest-small/ratings.csv` in front for real ones
Data:   `1,31,2.5,1260759144` (user, film, stars, seconds), as in ratings.csv, ratings.dat or u.data from
        grouplens.org/datasets/movielens, or RecBole's *.inter. Without DATA: synthetic ratings of known rank.
Writes: `outputs/movielens_als/als.png`
"""

# %% Imports
import os
import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
from matplotlib.figure import Figure
from scipy.sparse import csr_array
from threadpoolctl import threadpool_limits

# %% Settings
DATA = os.getenv("DATA", "")  # a ratings file, with its film titles beside it; empty: synthetic ratings
OUTPUT = os.getenv("OUTPUT", "outputs/movielens_als")

ENGINE = "numpy"  # or "spark", for ratings beyond one machine (needs Java 17 and the extra `spark`)
SPARK = {"spark.master": "local[2]", "spark.driver.memory": "4g"}  # spark://host:7077 or yarn is a cluster
RANK = 5  # numbers per user and per film; 32 to 64 for millions of ratings
REGULARIZATION = 0.02  # lambda; raise it when the held-out error rises from one iteration to the next
ITERATIONS = 15
SPLIT = "time"  # holds out the newest ratings of each user; "random" any of them
TEST_SHARE = 0.1
SEED = 3407
STARS = (0.5, 5.0)  # the scale of the file; a line with a rating outside it is malformed
USER = None  # userId to recommend films to; None: who rated most
NOISE = 0.25  # of the synthetic ratings, in stars
BLOCK = 1 << 12  # ratings that are solved together: what fits the processor's cache
TITLES = {"movies.csv": (",", "utf-8"), "movies.dat": ("::", "latin-1"), "u.item": (r"\|", "latin-1")}


# %% Data
def load_ratings(path: str | Path) -> pd.DataFrame:
    """Return userId, movieId, rating, timestamp (s); counts malformed lines; ValueError: none is good."""
    text = Path(path).read_text(encoding="utf-8-sig", errors="replace").strip()
    separator = max(("::", "\t", ","), key=text[:10_000].count)
    header = re.match(r"[^0-9\n]*\n", text)
    if header and not re.match("user.*(movie|item).*rating.*time", header[0], re.IGNORECASE):
        raise ValueError(
            f"{path}, line 1: {header[0][:60]!r}; order the columns user, movie, rating, timestamp"
        )
    kinds = {"userId": "int64", "movieId": "int64", "rating": "float32", "timestamp": "int64"}
    number = {"int64": r"[0-9]{1,18})(?:\.0+)?", "float32": r"[0-9]{1,3}(?:\.[0-9]{1,9})?)"}
    line = separator.join(f" *(?P<{name}>{number[kind]} *" for name, kind in kinds.items())
    lines = pc.split_pattern(pa.array([text], pa.large_string()), "\n").values
    found = pc.extract_regex(lines, f"^{line}$").drop_null()
    ratings = pd.DataFrame({name: found.field(name).cast(kind) for name, kind in kinds.items()})
    ratings = ratings[ratings.rating.between(*STARS)].reset_index(drop=True)
    malformed = pc.sum(pc.match_substring_regex(lines, r"\S")).as_py() - bool(header) - len(ratings)
    if ratings.empty:
        raise ValueError(f"{path}: none of {malformed} lines is user, film, stars within {STARS}, seconds")
    print(f"{path}: {len(ratings):,} ratings, {malformed} malformed lines left out")
    ratings.attrs["malformed"] = malformed
    return ratings


# %% Model
def blocks_of(ratings: csr_array) -> list[tuple]:
    """Return (rows, columns, values, counts), arrays [rows, ratings] padded with -1 and 0, of like rows."""
    counts, blocks = np.diff(ratings.indptr), []
    order = np.argsort(counts, kind="stable")
    parts = np.cumsum(counts[order]) // BLOCK, np.log2(counts[order]).astype(int)
    for rows in np.split(order, np.flatnonzero(np.diff(parts).any(axis=0)) + 1):
        slots = np.arange(counts[rows[-1]])
        used = slots < counts[rows, None]
        at = np.where(used, ratings.indptr[rows, None] + slots, 0)
        values = np.where(used, ratings.data[at], 0)
        blocks.append((rows, np.where(used, ratings.indices[at], -1), values, counts[rows]))
    return blocks


def solve(block: tuple, fixed: np.ndarray, free: np.ndarray, regularization: float) -> None:
    """Set a block's rows [factors, 1, bias] of `free` to their ridge regressions on those of `fixed`."""
    rows, columns, values, counts = block
    table = fixed.take(columns, axis=0)
    x, y = table[..., :-1], (values - table[..., -1])[..., None]
    turned, fewer = x.swapaxes(1, 2), x.shape[1] < x.shape[2]
    square = x @ turned if fewer else turned @ x  # with fewer ratings than unknowns, the smaller system does
    diagonal = np.arange(square.shape[1])
    square[:, diagonal, diagonal] += np.float32(max(regularization, 1e-6)) * counts[:, None]
    best = turned @ np.linalg.solve(square, y) if fewer else np.linalg.solve(square, turned @ y)
    free[rows, :-2], free[rows, -1] = best[:, :-1, 0], best[:, -1, 0]


def fit(
    ratings: pd.DataFrame, rank: int, regularization: float, iterations: int, seed: int, after=None
) -> dict:
    """Return the model, of biases alone at rank 0; after(model), if given, is called after each half-step.

    ValueError: no ratings, one that is not finite, or a negative setting. Of repeated ratings the last counts
    """
    if ratings.empty or not np.isfinite(ratings.rating).all() or min(rank, regularization, iterations) < 0:
        raise ValueError("fit needs ratings, all finite, and no negative rank, regularization or iterations")
    ratings, rng = ratings.drop_duplicates(["userId", "movieId"], keep="last"), np.random.default_rng(seed)
    user, users = pd.factorize(ratings.userId, sort=True)
    item, items = pd.factorize(ratings.movieId, sort=True)
    model = {"mean": float(ratings.rating.mean()), "users": users, "items": items}
    for side, count in (("user_table", len(users)), ("item_table", len(items))):
        model[side] = np.zeros((count + 1, rank + 2), "float32")  # the last row stands for unknown ids
        model[side][:-1] = np.hstack([rng.normal(0, 0.1, (count, rank)), np.tile([1, 0], (count, 1))])
    by_user = csr_array(((ratings.rating - model["mean"]).to_numpy("float32"), (user, item)))
    sides = [(blocks_of(by_user), model["item_table"], model["user_table"])]
    sides += [(blocks_of(by_user.T.tocsr()), model["user_table"], model["item_table"])]
    with ThreadPoolExecutor() as pool, threadpool_limits(1, "blas"):  # too small for BLAS's own threads
        for blocks, fixed, free in sides * iterations:
            list(pool.map(lambda block: solve(block, fixed, free, regularization), blocks))  # noqa: B023
            if after:
                after(model)
    return model


# %% Score
def predict(model: dict, users: np.ndarray, items: np.ndarray) -> np.ndarray:
    """Return the stars of user-film pairs; an unknown user or film counts as an average one."""
    user, item = (
        model["users"].get_indexer(np.atleast_1d(users)),
        model["items"].get_indexer(np.atleast_1d(items)),
    )
    left, right = model["user_table"].T.copy(), model["item_table"].T.copy()
    stars = model["mean"] + left[-1, user] + right[-1, item]  # -1, the last row, where an id is unknown
    for a, b in zip(left[:-2], right[:-2], strict=True):  # all factors at once would be GBs for 10 M pairs
        stars += a[user] * b[item]
    return stars


def rmse(model: dict, ratings: pd.DataFrame) -> float:
    """Return the root mean square error in stars."""
    return float(np.sqrt(np.mean((predict(model, ratings.userId, ratings.movieId) - ratings.rating) ** 2)))


# %% Hold out
if DATA:
    ratings = load_ratings(DATA).drop_duplicates(["userId", "movieId"], keep="last")
else:  # 2,000 users, 800 films, true rank 5; neither rounded nor clipped, so that it can be recovered
    rng = np.random.default_rng(SEED)
    user, film = np.divmod(rng.choice(2000 * 800, 120_000, replace=False), 800)
    tastes, traits = rng.normal(0, 0.5, (2000, 5)), rng.normal(0, 0.5, (800, 5))
    stars = rng.normal(3.5, 0.3, 2000)[user] + rng.normal(0, 0.3, 800)[film] + rng.normal(0, NOISE, len(user))
    stars += (tastes[user] * traits[film]).sum(axis=1)
    ratings = pd.DataFrame({"userId": user, "movieId": film, "rating": stars, "timestamp": range(len(user))})
ratings = ratings.sort_values("timestamp") if SPLIT == "time" else ratings.sample(frac=1, random_state=SEED)
per_user = ratings.groupby("userId").rating
held_out = per_user.cumcount(ascending=False) < (TEST_SHARE * per_user.transform("size")).astype(int)
train, test = ratings[~held_out], ratings[held_out]

# %% Train
history = []
biases = fit(train, 0, REGULARIZATION, ITERATIONS, SEED)
if ENGINE == "spark":  # its ALS has no biases, so it gets what ours leave
    from pyspark.ml.recommendation import ALS
    from pyspark.sql import SparkSession

    rest = train.rating - predict(biases, train.userId, train.movieId)
    index = [biases["users"].get_indexer(train.userId), biases["items"].get_indexer(train.movieId)]
    spark = SparkSession.builder.config(map=SPARK).getOrCreate()
    als = ALS(
        rank=RANK, regParam=REGULARIZATION, maxIter=ITERATIONS, seed=SEED, userCol="user", itemCol="item"
    )
    found = als.fit(spark.createDataFrame(pa.table([*index, rest], ["user", "item", "rating"])))
    model = dict(biases)
    for side, factors in (("user_table", found.userFactors), ("item_table", found.itemFactors)):
        rows = np.stack(factors.orderBy("id").toArrow()["features"].to_numpy())
        model[side] = np.hstack([np.vstack([rows, np.zeros((1, RANK))]), biases[side]])
else:
    keep = lambda model: history.append((rmse(model, train), rmse(model, test)))  # noqa: E731
    model = fit(train, RANK, REGULARIZATION, ITERATIONS, SEED, after=keep)
mean = float(np.sqrt(np.mean((test.rating - train.rating.mean()) ** 2)))
errors = {"global mean": mean, "biases": rmse(biases, test), f"ALS, rank {RANK}": rmse(model, test)}
print(f"RMSE in stars on {len(test):,} held-out ratings ({SPLIT}), learnt from {len(train):,}:")
print("\n".join(f"  {name:<12} {error:.4f}" for name, error in errors.items()))

# %% Recommend
titles = {}
for name, (separator, encoding) in TITLES.items():
    if DATA and (path := Path(DATA).parent / name).exists():
        table = pd.read_csv(path, sep=separator, encoding=encoding, header=None, dtype=str, engine="python")
        titles = dict(zip(table[0], table[1], strict=True))
user, counts = train.userId.mode()[0] if USER is None else USER, train.movieId.value_counts()
seen = ratings.movieId[ratings.userId == user]
films = counts.index[counts >= 20].difference(seen)  # of films with fewer ratings too little is known
print(f"For user {user}, predicted stars:")
for film, stars in pd.Series(predict(model, user, films), films).nlargest(10).items():
    print(f"  {stars:.2f}  {titles.get(str(film), f'film {film}')}")

# %% Figure
figure = Figure((12, 5), layout="constrained")
left, right = figure.subplots(1, 2)
if history:
    left.plot(np.arange(1, len(history) + 1) / 2, history, label=["ALS, training", "ALS, held out"])
for (name, error), color in zip(errors.items(), ("gray", "tab:brown", "tab:orange"), strict=True):
    left.axhline(error, color=color, linestyle=":", label=f"{name}, held out: {error:.3f}")
left.set(title=f"Error ({ENGINE}, {SPLIT} split)", xlabel="iteration", ylabel="RMSE / stars")
left.legend()
factors, bias = model["item_table"][:-1, :RANK], model["item_table"][:-1, -1]
place = np.linalg.svd(factors - factors.mean(axis=0), full_matrices=False)[0][:, :2]
size = counts[model["items"]].to_numpy() / counts.max()
figure.colorbar(right.scatter(*place.T, s=200 * size, c=bias, alpha=0.6), label="film bias / stars")
for film in counts.index[:12]:
    right.annotate(
        titles.get(str(film), f"film {film}")[:24], place[model["items"].get_loc(film)], fontsize=7
    )
right.set(
    title="Films: two principal components of their factors; area: number of ratings", xticks=[], yticks=[]
)
Path(OUTPUT).mkdir(parents=True, exist_ok=True)
figure.savefig(f"{OUTPUT}/als.tmp", format="png", dpi=110)
os.replace(f"{OUTPUT}/als.tmp", f"{OUTPUT}/als.png")
print(f"Wrote {OUTPUT}/als.png")
