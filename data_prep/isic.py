"""Prepare ISIC, step by step; isic.yaml beside this file holds the settings and explains them.

    python data_prep/isic.py                          # all steps but paste, in this order:
    python data_prep/isic.py download                 # metadata and originals from the archive
    python data_prep/isic.py resize                   # 299×299 RGB
    python data_prep/isic.py segment                  # masks of stickers
    python data_prep/isic.py sheet                    # a page to look the masks over
    python data_prep/isic.py splits                   # metadata.csv and splits.csv
    python data_prep/isic.py paste                    # copies with pasted stickers
    python data_prep/isic.py segment splits segment.far=10 workers=8

Each step can be interrupted and run again: it goes on where it stopped.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # the work is divided by images

import sys
from pathlib import Path

from cdep_run.errors import CdepError, ConfigError
from cdep_run.isic_prep.settings import Settings, load

STEPS = ("download", "resize", "segment", "sheet", "splits", "paste")


def run(step: str, settings: Settings) -> None:
    """Run one step; the code is imported here, so that help and errors come at once."""
    from cdep_run.isic_prep import archive, images, masks, paste, sheet, splits

    folder, workers = Path(settings.folder), settings.workers
    folder.mkdir(parents=True, exist_ok=True)
    match step:
        case "download":
            archive.download(folder, settings.download)
        case "resize":
            images.resize(folder, settings.resize, workers)
        case "segment":
            masks.segment(folder, settings.segment, workers)
        case "sheet":
            sheet.sheet(folder, workers)
        case "splits":
            splits.splits(folder, settings.resize, settings.splits)
        case "paste":
            paste.paste(folder, settings.paste, workers)


def main(arguments: list[str]) -> None:
    """Run the steps that are named, or all but `paste`."""
    if {"-h", "--help"} & {*arguments}:
        print(__doc__)
        return
    overrides = [a for a in arguments if "=" in a]
    steps = [a for a in arguments if "=" not in a]
    try:
        unknown = [step for step in steps if step not in STEPS]
        if unknown:
            raise ConfigError(f"there is no step {unknown[0]!r}; steps: {', '.join(STEPS)}")
        settings = load(Path(__file__).with_suffix(".yaml"), overrides)
        if settings.workers < 1:
            raise ConfigError(f"workers is {settings.workers}; accepted: 1 or more")
        for step in [s for s in STEPS if s in steps] or STEPS[:-1]:
            if step == "download" and settings.resize.source and not steps:
                continue  # the pictures are there already
            run(step, settings)
    except (CdepError, OSError) as error:
        sys.exit(f"{type(error).__name__}: {error}")
    except KeyboardInterrupt:
        sys.exit("interrupted; the same command goes on from here")


if __name__ == "__main__":
    main(sys.argv[1:])
