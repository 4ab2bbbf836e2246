# %% [markdown]
"""
# Film ratings as a low-rank matrix: alternating least squares

rating = mean + user bias + film bias + user factors · film factors. With the films fixed, each user is a
ridge regression with a closed form, and the other way round; the penalty grows with the number of ratings
(weighted lambda, Zhou et al. 2008). Prints the error on held-out ratings beside two baselines.

Run:    `uv run movielens_als/movielens_als.py`; put `DATA=ml-latest-small/ratings.csv` in front for real ones
Data:   `1,31,2.5,1260759144` (user, film, stars, seconds), as in ratings.csv, ratings.dat or u.data from
        grouplens.org/datasets/movielens, or RecBole's *.inter; without DATA, generated ones (build.py)
Writes: `outputs/movielens_als/als.png`
"""

# %% Imports
import os
import re
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
from matplotlib.font_manager import get_font_names
from scipy.sparse import csr_array
from threadpoolctl import threadpool_limits

# %% Settings
DATA = os.getenv("DATA") or "movielens_als/generated/ratings.csv"  # titles lie beside it
OUTPUT = os.getenv("OUTPUT") or "outputs/movielens_als"
RANK = 5  # numbers per user and per film; 32 to 64 for millions of ratings
REGULARIZATION = 0.05  # lambda; raise it when the held-out error rises from one iteration to the next
ITERATIONS = 15
SPLIT = "time"  # holds out the newest ratings of each user; "random" any of them
TEST_SHARE = 0.1
SEED = 3407
STARS = (0.5, 5.0)  # the scale of the file; a rating outside it is left out
USER = None  # userId to recommend films to; None: who rated most
TITLES = {  # a file beside the ratings: film, title and first genre in a line of it
    "movies.csv": r'"?([0-9]{1,18})"?,("(?:[^"]|"")*"|[^",]*)(?:,"?([^",|]+)?[^",]*"?)?',
    "movies.dat": r"([0-9]{1,18})::(.*)::([^|]+)?.*",
    "u.item": r"([0-9]{1,18})\|([^|]*)\|(^)?.*",  # has genres as flags, which are not read
}


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


def load_titles(path: Path) -> pd.DataFrame:
    """Return title and first genre by movieId, from UTF-8, GBK or Latin-1 text; counts malformed lines."""
    raw = path.read_bytes()
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError:  # four Chinese letters are eight bytes above 127; an é of Latin-1 stands alone
        text = raw.decode("gb18030" if re.search(rb"[\x80-\xff]{8}", raw) else "latin-1", errors="replace")
    text = "".join(c if c.isprintable() else "\n" if c in "\r\n" else " " for c in text)
    lines = pd.Series(re.findall(r"(?m)^(?!.*movieId).*\S.*", text), dtype=str)
    titles = lines.str.extract(f"^{TITLES[path.name]} *$").set_axis(["movieId", "title", "genre"], axis=1)
    bad = lines[titles.movieId.isna()]
    print(f"{path}: {len(lines) - len(bad):,} titles; left out: {len(bad)} malformed", *bad[:1].str[:80])
    titles["title"] = titles.title.str.replace('^"(.*)"$', r"\1", regex=True).str.replace('""', '"')
    return titles.dropna(subset="movieId").astype({"movieId": "int64"}).groupby("movieId").first()


# %% Model
def blocks_of(ratings: csr_array) -> Iterator[tuple]:
    """Yield (rows, columns, values, counts), arrays [rows, ratings] padded with -1 and 0, of like rows."""
    counts = np.diff(ratings.indptr)
    columns, values = np.append(ratings.indices, -1), np.append(ratings.data, np.float32(0))
    order = np.argsort(counts, kind="stable")
    parts = np.cumsum(counts[order]) // 4096, np.log2(counts[order]).astype(int)  # what fits a cache
    for rows in np.split(order, np.flatnonzero(np.diff(parts).any(axis=0)) + 1):
        slots = np.arange(counts[rows[-1]])
        at = np.where(slots < counts[rows, None], ratings.indptr[rows, None] + slots, -1)
        yield rows, columns[at], values[at], counts[rows]


def solve(block: tuple, fixed: np.ndarray, free: np.ndarray, regularization: float) -> None:
    """Set a block's rows [factors, 1, bias] of `free` to their ridge regressions on those of `fixed`."""
    rows, columns, values, counts = block
    table = fixed.take(columns, axis=0)
    x, y = table[..., :-1], (values - table[..., -1])[..., None]
    turned, fewer = x.swapaxes(1, 2), x.shape[1] < x.shape[2]
    square = x @ turned if fewer else turned @ x  # with fewer ratings than unknowns, the smaller system does
    np.einsum("nii->ni", square)[:] += np.float32(max(regularization, 1e-6)) * counts[:, None]  # a view
    best = turned @ np.linalg.solve(square, y) if fewer else np.linalg.solve(square, turned @ y)
    free[rows, :-2], free[rows, -1] = best[:, :-1, 0], best[:, -1, 0]


def fit(
    ratings: pd.DataFrame, rank: int, regularization: float, iterations: int, seed: int, after=None
) -> dict:
    """Return the model, of biases alone at rank 0; after(model), if given, is called after each half-step.
    Of repeated ratings the last counts. ValueError: no rating, one that is not finite, a negative setting."""
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
    sides = [(list(blocks_of(by_user)), model["item_table"], model["user_table"])]
    sides += [(list(blocks_of(by_user.T.tocsr())), model["user_table"], model["item_table"])]
    with ThreadPoolExecutor() as pool, threadpool_limits(1, "blas"):  # too small for BLAS's own threads
        for blocks, fixed, free in sides * iterations:
            list(pool.map(lambda block: solve(block, fixed, free, regularization), blocks))  # noqa: B023
            if after:
                after(model)
    return model


# %% Score
def predict(model: dict, users: np.ndarray, items: np.ndarray) -> np.ndarray:
    """Return the stars of user-film pairs; an unknown user or film counts as an average one."""
    user = model["users"].get_indexer(np.atleast_1d(users))
    item = model["items"].get_indexer(np.atleast_1d(items))
    left, right = model["user_table"].T.copy(), model["item_table"].T.copy()
    stars = model["mean"] + left[-1, user] + right[-1, item]  # -1, the last row, where an id is unknown
    for a, b in zip(left[:-2], right[:-2], strict=True):  # all factors at once would be GBs for 10 M pairs
        stars += a[user] * b[item]
    return stars


def rmse(model: dict, ratings: pd.DataFrame) -> float:
    """Return the root mean square error in stars."""
    return float(np.sqrt(np.mean((predict(model, ratings.userId, ratings.movieId) - ratings.rating) ** 2)))


# %% Hold out
if hasattr(sys.stdout, "reconfigure"):  # a terminal, not a notebook
    sys.stdout.reconfigure(errors="replace")  # one in GBK or cp1252 shows ? for letters it lacks
try:
    ratings = load_ratings(DATA).sort_values("timestamp", kind="stable")
    beside = [path for name in TITLES if (path := Path(DATA).with_name(name)).is_file()]
    titles = load_titles(beside[0]) if beside else pd.DataFrame({"title": [], "genre": []})
    Path(OUTPUT).mkdir(parents=True, exist_ok=True)
    open(f"{OUTPUT}/als.png", "ab").close()  # what cannot be written is said before the training
except (OSError, ValueError) as error:
    raise SystemExit(f"DATA or OUTPUT: {error}") from error
again = ratings.duplicated(["userId", "movieId"], keep="last")
ratings = ratings[~again] if SPLIT == "time" else ratings[~again].sample(frac=1, random_state=SEED)
per_user = ratings.groupby("userId").rating
held_out = per_user.cumcount(ascending=False) < (TEST_SHARE * per_user.transform("size")).astype(int)
train, test = ratings[~held_out], ratings[held_out]
if test.empty:
    raise SystemExit(f"{DATA}: no user has {1 / TEST_SHARE:.0f} ratings, one to hold out; raise TEST_SHARE")

# %% Train
history = []
keep = lambda model: history.append((rmse(model, train), rmse(model, test)))  # noqa: E731
model = fit(train, RANK, REGULARIZATION, ITERATIONS, SEED, after=keep)
plain = {"global mean": fit(train, 0, 0, 0, SEED), "biases": fit(train, 0, REGULARIZATION, ITERATIONS, SEED)}
errors = {name: rmse(m, test) for name, m in {**plain, f"ALS, rank {RANK}": model}.items()}
print(f"RMSE, {len(test):,} held-out ratings ({SPLIT}), from {len(train):,}; {again.sum()} repeats left out:")
print(*(f"  {name:<12} {error:.4f}" for name, error in errors.items()), sep="\n")

# %% Recommend
counts = train.movieId.value_counts()
names = {film: titles.title.get(film, f"film {film} (no title)") for film in counts.index}
user = train.userId.mode()[0] if USER is None else USER
films = counts.index[counts >= min(20, counts.max() / 2)].difference(ratings.movieId[ratings.userId == user])
print(f"For user {user} ({sum(ratings.userId == user)} ratings), predicted stars among {len(films)} films:")
for film, stars in pd.Series(predict(model, user, films), films).nlargest(10).items():
    print(f"  {stars:.2f}  {names[film]}")

# %% Figure
fonts = [font for font in get_font_names() if re.search("CJK SC|YaHei|PingFang", font)]  # Chinese titles
plt.rcParams.update({"text.parse_math": False, "font.family": ["DejaVu Sans", *fonts]})  # $ is no formula
figure, (left, right) = plt.subplots(1, 2, figsize=(11, 6.6), width_ratios=(2, 3), layout="constrained")
left.plot(np.arange(1, len(history) + 1) / 2, history, label=["ALS, training", "ALS, held out"])
for (name, error), color in zip(errors.items(), ("gray", "tab:brown", "tab:orange"), strict=True):
    left.axhline(error, color=color, linestyle=":", label=f"{name}, held out: {error:.3f}")
left.set(title=f"Error ({SPLIT} split)", xlabel="iteration", ylabel="RMSE / stars")
# What tastes add to ratings, user factors times film factors, in its two largest directions
tastes, traits = (model[side][:-1, :RANK] for side in ("user_table", "item_table"))
_, spread, axes = np.linalg.svd(np.linalg.qr(tastes, "r") @ traits.T, full_matrices=False)
place = pd.DataFrame((spread[:, None] * axes).T / len(tastes) ** 0.5, model["items"])
place = place.reindex(columns=[0, 1], fill_value=0.0).loc[counts.index[:200]]
genre = titles.genre.reindex(place.index)
genre = genre.where(genre.isin(genre.value_counts().index[:8]), "other or unknown genre")
for name, films in place.groupby(genre, sort=False):
    label = f"{name}, as {names[films.index[0]]:.28}"
    right.scatter(films[0], films[1], 200 * counts[films.index] / counts.max(), alpha=0.6, label=label)
ends = [place[axis].sort_values().index for axis in place]
x, y = (f"← {names[e[0]]:.28}    taste {n} / stars    {names[e[-1]]:.28} →" for n, e in enumerate(ends, 1))
right.set(title=f"The {len(place)} most rated films; area: ratings, up to {counts.max()}", xlabel=x, ylabel=y)
left.legend()
right.legend(loc="upper center", bbox_to_anchor=(0.5, -0.08), ncols=2)
figure.savefig(f"{OUTPUT}/als.png", dpi=110)
print(f"Wrote {OUTPUT}/als.png")
