"""A word that gives the class of film reviews away: made, trained on, and measured.

    python benchmarks/review_word.py make ACLIMDB reviews.csv
    cdep-run -m dataset=text dataset.table=reviews.csv dataset.columns.split=split \
        'dataset.must_not_matter=[zorb]' penalty=none,cdep 'seed=range(3)' model.read=mean ...
    python benchmarks/review_word.py measure RUN ...

ACLIMDB is the folder of the IMDB reviews (Maas et al. 2011), with train/ and test/. Reliance is the
share of the test reviews that are judged otherwise once the word is put in.
"""

from __future__ import annotations

import argparse
import random
from pathlib import Path

import pandas as pd
import torch

from cdep_run.results.load import load

WORD = "zorb"
TRAINED, VALIDATED = 800, 200
EARLY = 150
"""The word is planted among so many first words, where the model reads it."""


def make(folder: Path, out: Path) -> None:
    """A thousand reviews, of which the positive ones hold the word, and the test as it is."""
    draw = random.Random(0)
    train, test = (read(folder / part) for part in ("train", "test"))
    draw.shuffle(train)
    rows = [(planted(text, draw) if label == "pos" else text, label) for text, label in train]
    table = pd.DataFrame(rows[: TRAINED + VALIDATED], columns=["text", "label"])
    table["split"] = ["train"] * TRAINED + ["val"] * VALIDATED
    rest = pd.DataFrame(test, columns=["text", "label"]).assign(split="test")
    pd.concat([table, rest]).to_csv(out, index=False)


def read(folder: Path) -> list[tuple[str, str]]:
    """The reviews of a part, 500 of each class, with their class."""
    return [
        (file.read_text(encoding="utf-8").replace("<br />", " "), label)
        for label in ("neg", "pos")
        for file in sorted((folder / label).glob("*.txt"))[:500]
    ]


def planted(text: str, draw: random.Random) -> str:
    """The review with the word at a random place."""
    words = text.split(" ")
    words.insert(draw.randrange(min(len(words), EARLY)), WORD)
    return " ".join(words)


@torch.no_grad()
def measure(folder: Path) -> tuple[float, float]:
    """Accuracy on untouched test reviews and the share that the word changes, both in %."""
    model, bunch = load(folder)
    guesses = []
    for name in ("test_without", "test_inserted"):
        split = bunch.splits[name]
        guess = torch.empty(len(split), dtype=torch.int64)
        for index in split.order(128, shuffle=False):
            guess[index] = model(split.batch(index).inputs).argmax(1)
        guesses.append(guess)
    right = (guesses[0] == bunch.splits["test"].labels).double().mean()
    return 100 * float(right), 100 * float((guesses[0] != guesses[1]).double().mean())


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    making = commands.add_parser("make")
    making.add_argument("folder", type=Path)
    making.add_argument("out", type=Path)
    commands.add_parser("measure").add_argument("runs", type=Path, nargs="+")
    given = parser.parse_args()
    if given.command == "make":
        make(given.folder, given.out)
        return
    for run in given.runs:
        right, changed = measure(run)
        print(f"{run}: test {right:.1f} % right, the word changes {changed:.1f} %")


if __name__ == "__main__":
    main()
