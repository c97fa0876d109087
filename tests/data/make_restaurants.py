# Copyright 2026 The t5_experimental authors. Licensed under the Apache License, Version 2.0.
"""Makes the small data-to-text set of the demo and the tests: facts about an invented restaurant -> some sentences.

    python tests/data/make_restaurants.py

writes `restaurants_train.jsonl`, `restaurants_validation.jsonl` and `restaurants_test.jsonl` beside this file. The text
is a function of the facts, so "equal to the reference" means something, and no set of facts occurs in two files.
"""

import json
import random
from itertools import product
from pathlib import Path


FOLDER = Path(__file__).parent
SIZES = {"train": 400, "validation": 50, "test": 50}
SEED = 20

FIRST_WORDS = ("Copper", "Silent", "Amber", "Crooked", "Velvet", "Northern", "Golden", "Hidden")
SECOND_WORDS = ("Kettle", "Lantern", "Anchor", "Pepper", "Sparrow", "Orchard")
FOODS = ("Greek", "Thai", "Mexican", "Korean", "Spanish", "Lebanese")
AREAS = {
    "harbour": "by the harbour",
    "old town": "in the old town",
    "station": "near the station",
    "park": "beside the park",
}
PRICES = {"low": "Meals are cheap.", "middle": "Prices are fair.", "high": "A meal is expensive.", None: ""}
TERRACES = {"yes": "You can sit outside.", "no": "All tables are indoors.", None: ""}

Facts = dict[str, str | None]


def write_source(facts: Facts) -> str:
    """The facts as `name[Copper Kettle], food[Thai], area[park]`, without those that are unknown."""
    return ", ".join(f"{key}[{value}]" for key, value in facts.items() if value is not None)


def write_target(facts: Facts) -> str:
    """The facts as English."""
    opening = f"The {facts['name']} serves {facts['food']} food {AREAS[str(facts['area'])]}."
    return " ".join(part for part in (opening, PRICES[facts["price"]], TERRACES[facts["terrace"]]) if part)


def all_facts() -> list[Facts]:
    """Every restaurant that can be described."""
    names = [f"{first} {second}" for first, second in product(FIRST_WORDS, SECOND_WORDS)]
    keys = ("name", "food", "area", "price", "terrace")
    return [dict(zip(keys, values, strict=True)) for values in product(names, FOODS, AREAS, PRICES, TERRACES)]


def main() -> None:
    rows = random.Random(SEED).sample(all_facts(), sum(SIZES.values()))
    for split, size in SIZES.items():
        part, rows = rows[:size], rows[size:]
        lines = [json.dumps({"source": write_source(facts), "target": write_target(facts)}) for facts in part]
        (FOLDER / f"restaurants_{split}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
