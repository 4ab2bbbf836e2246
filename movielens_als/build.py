# %% [markdown]
"""
# Generated film ratings, in the form of MovieLens

Ratings of rank 5 beside biases: films of a genre lie together along the first two directions of taste. Users
choose films that are well known and that they will like; what they give is rounded to half stars. No person
and no film is real; the titles are drawn from lists of words.

Run:    `uv run movielens_als/build.py`; the same files each time
Writes: `movielens_als/generated/ratings.csv` and `movies.csv`; CC0
"""

# %% Imports
from pathlib import Path

import numpy as np
import pandas as pd

# %% Settings
OUTPUT = Path("movielens_als/generated")
USERS = 600
FILMS = 300
PER_USER = 50  # ratings
RANK = 5
NOISE = 0.3  # stars; with the rounding, 0.14, about 0.33 is what no method can beat
SEED = 3407
WORDS = {  # genre -> what its titles are made of
    "Action": "Iron Last Steel Night Burning, Convoy Pursuit Bridge Signal Runner",
    "Comedy": "Merry Crooked Borrowed Second Loud, Uncle Holiday Parrot Wedding Lodger",
    "Drama": "Quiet Long Paper Distant Winter, River Letter Garden Station Orchard",
    "Horror": "Hollow Pale Silent Seventh Rotten, Cellar Choir Mirror Well Attic",
    "Romance": "Tender Blue Summer Golden First, Harbour Waltz Promise Island Violin",
}


# %% Functions
def film_titles(genres: np.ndarray, rng: np.random.Generator) -> list[str]:
    """Return a title with a year for each genre's name, no two alike."""
    titles = []
    for genre in genres:
        title = None
        while title is None or title in titles:
            first, second = (rng.choice(words.split()) for words in WORDS[genre].split(","))
            title = f"{first} {second}, The ({rng.integers(1950, 2020)})"
        titles.append(title)
    return titles


def generate(seed: int) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Return (ratings, films) in MovieLens' columns."""
    rng = np.random.default_rng(seed)
    genre = rng.integers(len(WORDS), size=FILMS)
    traits = rng.normal(0, 0.3, (FILMS, RANK))
    angle = 2 * np.pi * genre / len(WORDS)
    traits[:, :2] += np.stack([1.1 * np.cos(angle), 0.9 * np.sin(angle)], axis=1)
    tastes = rng.normal(0, 0.5, (USERS, RANK))
    stars = 3.4 + rng.normal(0, 0.3, (USERS, 1)) + rng.normal(0, 0.3, FILMS) + tastes @ traits.T
    fame = rng.exponential(0.8, FILMS)
    wish = fame + 1.2 * stars + rng.gumbel(size=stars.shape)  # the largest wishes: a draw without replacement
    user, film = np.nonzero(wish >= np.sort(wish, axis=1)[:, [-PER_USER]])
    given = stars[user, film] + rng.normal(0, NOISE, len(user))
    start = rng.integers(1_400_000_000, 1_700_000_000, USERS)  # when each user began, in seconds
    seconds = start[user] + rng.integers(0, 30_000_000, len(user))
    ratings = {"userId": user + 1, "movieId": film + 1, "rating": np.clip(np.round(2 * given) / 2, 0.5, 5)}
    ratings = pd.DataFrame({**ratings, "timestamp": seconds}).sort_values(["userId", "timestamp"])
    genres = np.array(list(WORDS))[genre]
    films = {"movieId": np.arange(FILMS) + 1, "title": film_titles(genres, rng), "genres": genres}
    return ratings, pd.DataFrame(films)


# %% Run
ratings, films = generate(SEED)
OUTPUT.mkdir(parents=True, exist_ok=True)
ratings.to_csv(OUTPUT / "ratings.csv", index=False, lineterminator="\n")
films.to_csv(OUTPUT / "movies.csv", index=False, lineterminator="\n")
print(f"Wrote {len(ratings):,} ratings of {len(films)} films in {OUTPUT}")
