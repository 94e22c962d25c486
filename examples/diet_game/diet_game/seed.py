"""The foods: `python -m diet_game.seed`. Running it again changes nothing.

foods.csv holds 100 plain foods. Each is seeded three times, as people eat it; the other two are
worked out from the first with the factors below, so that 300 foods follow from one small table.
"""

from __future__ import annotations

import csv
import sys
from collections.abc import Iterator
from importlib.resources import files

import psycopg
from msgspec.structs import astuple

from diet_game.models import Food
from diet_game.rules import energy_kcal
from diet_game.settings import SettingsError, database_url

# category -> (what it is called, weight of the cooked food per weight of the raw one,
#              grams of oil and of sugar added per 100 g of the cooked food)
PREPARATIONS: dict[str, tuple[tuple[str, float, float, float], ...]] = {
    "fruit": (("raw", 1.0, 0.0, 0.0), ("dried", 0.25, 0.0, 0.0), ("stewed", 0.95, 0.0, 8.0)),
    "vegetable": (("raw", 1.0, 0.0, 0.0), ("steamed", 1.05, 0.0, 0.0), ("roast", 0.8, 5.0, 0.0)),
    "meat": (("raw", 1.0, 0.0, 0.0), ("grilled", 0.75, 0.0, 0.0), ("fried", 0.75, 6.0, 0.0)),
    "fish": (("raw", 1.0, 0.0, 0.0), ("poached", 0.85, 0.0, 0.0), ("fried", 0.8, 7.0, 0.0)),
    "grain": (("dry", 1.0, 0.0, 0.0), ("boiled", 2.7, 0.0, 0.0), ("salad", 2.5, 6.0, 0.0)),
    "pulse": (("dry", 1.0, 0.0, 0.0), ("boiled", 2.5, 0.0, 0.0), ("stew", 3.0, 4.0, 1.0)),
    "dairy": (("plain", 1.0, 0.0, 0.0), ("with honey", 1.1, 0.0, 9.0), ("drink", 2.0, 0.0, 3.0)),
}

UPSERT = """
INSERT INTO food AS f (id, name, category, kcal, protein_g, fat_g, carbs_g, fibre_g, sugar_g)
SELECT * FROM unnest(%s::int[], %s::text[], %s::text[], %s::float8[], %s::float8[], %s::float8[],
                     %s::float8[], %s::float8[], %s::float8[])
ON CONFLICT (id) DO UPDATE SET
    name = excluded.name, category = excluded.category, kcal = excluded.kcal,
    protein_g = excluded.protein_g, fat_g = excluded.fat_g, carbs_g = excluded.carbs_g,
    fibre_g = excluded.fibre_g, sugar_g = excluded.sugar_g
WHERE (f.name, f.category, f.kcal, f.protein_g, f.fat_g, f.carbs_g, f.fibre_g, f.sugar_g)
    IS DISTINCT FROM (excluded.name, excluded.category, excluded.kcal, excluded.protein_g,
                      excluded.fat_g, excluded.carbs_g, excluded.fibre_g, excluded.sugar_g)
"""


def foods() -> Iterator[Food]:
    """Every seeded food, always the same and in the same order."""
    text = files("diet_game").joinpath("foods.csv").read_text("utf-8")
    for row in csv.DictReader(text.splitlines()):
        preparations = PREPARATIONS[row["category"]]
        for number, (preparation, yielded, oil_g, sugar_g) in enumerate(preparations):
            share = (1 - (oil_g + sugar_g) / 100) / yielded
            protein = round(float(row["protein_g"]) * share, 1)
            fat = round(float(row["fat_g"]) * share + oil_g, 1)
            carbs = round(float(row["carbs_g"]) * share + sugar_g, 1)
            yield Food(
                id=int(row["id"]) * 10 + number,
                name=f"{row['name']}, {preparation}",
                category=row["category"],
                kcal=energy_kcal(protein, fat, carbs),
                protein_g=protein,
                fat_g=fat,
                carbs_g=carbs,
                fibre_g=round(float(row["fibre_g"]) * share, 1),
                sugar_g=round(float(row["sugar_g"]) * share + sugar_g, 1),
            )


def seed(url: str) -> int:
    """Make the table of foods what `foods` says.

    Returns:
        How many rows were added or changed.
    """
    columns = [list(column) for column in zip(*map(astuple, foods()), strict=True)]
    with psycopg.connect(url, connect_timeout=5, options="-c lock_timeout=5000") as connection:
        return connection.execute(UPSERT, columns).rowcount


def main() -> int:
    """Seed DATABASE_URL."""
    try:
        changed = seed(database_url())
    except SettingsError as error:
        print(error, file=sys.stderr)
        return 2
    print(f"foods: {changed} added or changed")
    return 0


if __name__ == "__main__":
    sys.exit(main())
