"""Records the rates that the original gives the parts of a mixture: `mixing_rate_num_examples` of seqio.

    python make_mixtures.py --out mixtures.json
    python make_mixtures.py --check             compare with what lies beside this file

Needs the environment of `requirements-objectives.txt`.
"""

import argparse
import json
import pathlib

from seqio.utils import mixing_rate_num_examples


HERE = pathlib.Path(__file__).resolve().parent
COUNTS = (7, 1_000, 36_000, 392_702, 2**21 + 1)
SETTINGS = ((None, 1.0), (1_000, 1.0), (2**21, 1.0), (None, 2.0), (2**19, 2.0), (2**21, 8.0))


class Task:
    """What the function asks of a task that is not cached."""

    name, cache_dir = "task", None

    def __init__(self, count):
        self._count = count

    def get_cached_stats(self, split):
        raise ValueError("not cached")

    def num_input_examples(self, split):
        return self._count


def records():
    for maximum, temperature in SETTINGS:
        rates = [mixing_rate_num_examples(Task(count), maximum, temperature=temperature) for count in COUNTS]
        yield {"limit": maximum, "temperature": temperature, "counts": COUNTS, "rates": rates}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=pathlib.Path)
    parser.add_argument("--check", action="store_true")
    options = parser.parse_args()
    text = json.dumps(list(records()), indent=1) + "\n"
    if options.out is not None:
        options.out.write_text(text)
    if options.check:
        assert text == (HERE / "mixtures.json").read_text()


if __name__ == "__main__":
    main()
