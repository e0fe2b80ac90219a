"""`make demo`: decoy digits under every penalty, a table of the results, and a figure."""

from __future__ import annotations

import sys
import time
from datetime import datetime
from pathlib import Path

from hydra import compose, initialize_config_dir

from cdep_run.config.commands import TITLES
from cdep_run.config.schemas import config_dir, register_schemas
from cdep_run.errors import CdepError
from cdep_run.evidence.plots import gallery
from cdep_run.results.load import load
from cdep_run.train import train
from cdep_run.training.build import plain

PENALTIES = ("none", "cdep", "rrr", "eg")
EXAMPLES = 6  # rows of the figure


def main() -> None:
    """Train, print the table, and say where the figure is."""
    started = time.monotonic()
    folder = Path("outputs/demo") / datetime.now().strftime("%Y-%m-%d_%H-%M-%S")
    register_schemas()
    results, models = {}, {}
    for penalty in PENALTIES:
        title = TITLES[penalty]
        print(f"training decoy digits, penalty {title} …", flush=True)
        with initialize_config_dir(str(config_dir()), version_base="1.3"):
            config = plain(compose("train", [f"penalty={penalty}", "loggers=csv"]))
        (folder / penalty).mkdir(parents=True)
        results[title] = train(config, folder / penalty)
        models[title], bunch = load(folder / penalty)
    print("\nA patch in a corner gives the digit away in training and lies in the decoyed test.")
    print(f"{'penalty':10}{'λ':>5}{'decoyed test':>15}{'clean test':>13}{'s / epoch':>12}")
    for title, result in results.items():
        scores = result["metrics"]
        print(
            f"{title:10}{result['config']['penalty']['strength']:>5g}"
            f"{scores['test']['accuracy']:>14.1%}{scores['test_clean']['accuracy']:>13.1%}"
            f"{result['seconds_per_epoch']:>12.2f}"
        )
    figure = folder / "where_they_look.png"
    gallery(models, bunch, "test", EXAMPLES, figure)
    print(f"\nfigure: {figure}\nrecords: {folder}/*/result.json")
    print(f"{time.monotonic() - started:.0f} seconds in all")


if __name__ == "__main__":
    try:
        main()
    except CdepError as error:
        sys.exit(f"cdep-run: error: {error}")
