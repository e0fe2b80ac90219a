"""Fetch the files of SST that are absent, and print counts and sums of its three versions.

python data_prep/sst.py data_dir=data [dataset.vectors=glove.6B.50d ...]
"""

from __future__ import annotations

import sys

from hydra import compose, initialize_config_dir

from cdep_run.config.schemas import config_dir, register_schemas
from cdep_run.errors import CdepError
from cdep_run.training.build import build, plain


def main() -> int:
    """Build each version as `cdep-run` would; returns the exit code."""
    register_schemas()
    for name in ("sst_decoy", "sst_articles", "sst_gender"):
        with initialize_config_dir(str(config_dir().absolute()), version_base="1.3"):
            config = plain(compose("train", [f"dataset={name}", *sys.argv[1:]]))
        try:
            bunch = build(config["dataset"])
        except CdepError as error:
            print(f"{name}: error: {error}", file=sys.stderr)
            return 1
        print(f"{name}: {len(bunch.vocabulary)} words, vectors of {bunch.vectors.shape[1]} numbers")
        for split, phrases in bunch.splits.items():
            positive = int(phrases.labels.sum())
            print(f"    {split:12} {len(phrases):6} phrases, {positive} positive")
        print(f"    sha256 {bunch.fingerprint}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
