"""Measure the ALS of movielens_als against Spark's and cmfrec's: same ratings, rank, lambda and iterations.

Run: `uv run --extra spark --group bench tests/bench/als.py [100000|10000000] [numpy cmfrec spark implicit implicit-spark]`
Ratings of MovieLens form are generated: half stars, long-tailed films. Each engine runs in a process of its own, if
it is installed; the median of its fits is printed, with their CPU time, peak memory and the RMSE on a held-out tenth,
for the two implicit ones precision@10 and NDCG@10.
"""

import resource
import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pandas as pd

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from conftest import functions_of  # noqa: E402

RANK, REGULARIZATION, ITERATIONS, SEED, ALPHA = 32, 0.1, 10, 3407, 1.0
NEEDS = {"cmfrec": "cmfrec", "spark": "pyspark", "implicit-spark": "pyspark"}
SHAPES = {
    100_000: (610, 9_724),
    10_000_000: (70_000, 12_000),
}  # users and films; the first as in latest-small


def ratings_like_movielens(count: int) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Return (train, test) of about `count` distinct ratings in half stars, a random tenth being the test."""
    users, films = SHAPES[count]
    rng = np.random.default_rng(SEED)
    active, popular = rng.lognormal(4.2, 1.2, users) + 20, 1 / (np.arange(films) + 10)
    pairs = rng.choice(users, 2 * count, p=active / active.sum()).astype("int64") * films
    pairs = np.unique(pairs + rng.choice(films, 2 * count, p=popular / popular.sum()))
    user, film = np.divmod(rng.permutation(pairs)[:count], films)
    tastes, traits = (rng.normal(0, 0.42, (size, 8)).astype("float32") for size in (users, films))
    stars = (
        rng.normal(3.5, 0.35, users)[user] + rng.normal(0, 0.4, films)[film] + rng.normal(0, 0.7, len(user))
    )
    for taste, trait in zip(tastes.T, traits.T, strict=True):
        stars += taste[user] * trait[film]
    stars = np.clip(np.round(2 * stars) / 2, 0.5, 5).astype("float32")
    table = pd.DataFrame({"userId": user.astype("int32"), "movieId": film.astype("int32"), "rating": stars})
    held_out = rng.random(len(table)) < 0.1
    return table[~held_out], table[held_out]


def with_numpy(train: pd.DataFrame, test: pd.DataFrame) -> np.ndarray:
    """Return the script's predictions."""
    model = SPACE.fit(train, RANK, REGULARIZATION, ITERATIONS, SEED)
    CLOCK.append((time.perf_counter(), time.process_time()))
    return SPACE.predict(model, test.userId, test.movieId)


def with_cmfrec(train: pd.DataFrame, test: pd.DataFrame) -> np.ndarray:
    """Return cmfrec's predictions by its default solver (conjugate gradient), in float32 on two threads."""
    from cmfrec import CMF

    table = train.set_axis(["UserId", "ItemId", "Rating"], axis=1)
    same = {
        "k": RANK,
        "lambda_": REGULARIZATION,
        "niter": ITERATIONS,
        "scale_lam": True,
        "random_state": SEED,
    }
    model = CMF(**same, use_float=True, nthreads=2, verbose=False, precompute_for_predictions=False).fit(
        table
    )
    CLOCK.append((time.perf_counter(), time.process_time()))
    return model.predict(test.userId.to_numpy(), test.movieId.to_numpy())


def spark_tables(train: pd.DataFrame, **implicit) -> list[pd.DataFrame]:
    """Return user and film factors of Spark's ALS on two local cores, with columns id and features."""
    import pyarrow as pa
    from pyspark.ml.recommendation import ALS
    from pyspark.sql import SparkSession

    settings = {
        "spark.master": "local[2]",
        "spark.driver.memory": "8g",
        "spark.ui.showConsoleProgress": "false",
    }
    spark = SparkSession.builder.config(map=settings).getOrCreate()
    frame = spark.createDataFrame(pa.Table.from_pandas(train, preserve_index=False))
    same = {"rank": RANK, "regParam": REGULARIZATION, "maxIter": ITERATIONS, "seed": SEED, **implicit}
    model = ALS(**same, userCol="userId", itemCol="movieId", ratingCol="rating").fit(frame)
    tables = [table.orderBy("id").toArrow().to_pandas() for table in (model.userFactors, model.itemFactors)]
    CLOCK.append((time.perf_counter(), time.process_time()))
    return tables


def with_spark(train: pd.DataFrame, test: pd.DataFrame) -> np.ndarray:
    """Return the predictions of Spark's ALS, the global mean where it has none."""
    tables = spark_tables(train)
    stars = np.full(len(test), train.rating.mean())
    places = [
        pd.Index(table.id).get_indexer(test[name])
        for table, name in zip(tables, ("userId", "movieId"), strict=True)
    ]
    known = (places[0] >= 0) & (places[1] >= 0)
    left, right = (
        np.stack(table.features)[place[known]] for table, place in zip(tables, places, strict=True)
    )
    stars[known] = (left * right).sum(axis=1)
    return stars


def with_implicit(train: pd.DataFrame, test: pd.DataFrame) -> dict:
    """Return the model of implicit_als.py."""
    model = IMPLICIT.fit_implicit(train, RANK, REGULARIZATION, ALPHA, ITERATIONS, SEED)
    CLOCK.append((time.perf_counter(), time.process_time()))
    return model


def with_implicit_spark(train: pd.DataFrame, test: pd.DataFrame) -> dict:
    """Return the same of Spark."""
    model = {}
    tables = spark_tables(train, implicitPrefs=True, alpha=ALPHA)
    for table, ids, factors in zip(tables, ("users", "items"), ("user_table", "item_table"), strict=True):
        model |= {ids: pd.Index(table.id), factors: np.stack(table.features)}
    return model


ENGINES = {
    "numpy": with_numpy,
    "cmfrec": with_cmfrec,
    "spark": with_spark,
    "implicit": with_implicit,
    "implicit-spark": with_implicit_spark,
}
count = int(sys.argv[1]) if len(sys.argv) > 1 else 100_000
names = sys.argv[2:] or list(ENGINES)
if len(names) > 1:
    for name in names:
        subprocess.run([sys.executable, __file__, str(count), name], check=True)
elif names[0] in NEEDS and not find_spec(NEEDS[names[0]]):
    print(f"{names[0]:<7} is left out: {NEEDS[names[0]]} is not installed", flush=True)
else:
    SPACE, IMPLICIT = (functions_of(f"movielens_als/{name}_als.py") for name in ("movielens", "implicit"))
    CLOCK = []
    train, test = ratings_like_movielens(count)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    walls, cpus = [], []
    for _ in range((3 if "spark" in names[0] else 9) if count < 10**6 else 1):
        wall, cpu = time.perf_counter(), time.process_time()
        found = ENGINES[names[0]](train, test)
        walls.append(CLOCK[-1][0] - wall)
        cpus.append(CLOCK[-1][1] - cpu)
    if isinstance(found, dict):
        score = "precision@10 {:.4f}, NDCG@10 {:.4f}".format(*IMPLICIT.ranking(found, train, test, 10))
    else:
        score = f"RMSE {np.sqrt(np.mean((found - test.rating) ** 2)):.4f}"
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(
        f"{names[0]:<7} {len(train):>9,} ratings  {score}  median of {len(walls)}:"
        f" {np.median(walls):.2f} s wall (least {min(walls):.2f}), {np.median(cpus):.2f} s CPU;"
        f" peak memory {peak:.2f} GB ({before:.2f} before)",
        flush=True,
    )
