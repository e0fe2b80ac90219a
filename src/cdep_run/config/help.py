"""What `cdep-run --help` prints: the template of `configs/train.yaml`, filled with the choices."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from string import Template

from omegaconf import OmegaConf

from cdep_run.config.schemas import config_dir, register_schemas


def asks_for_help(words: Sequence[str]) -> bool:
    """Say whether the command line asks for this page."""
    return bool({"--help", "-h"} & set(words))


def help_page(words: Sequence[str]) -> str:
    """Return the page, with the choices of a `--config-dir` among the words.

    Hydra would print the same, but copies all that it knows once for each group, which takes more
    than a second.
    """
    register_schemas()  # with the resolvers that the template uses
    folders = [config_dir(), *_config_dirs(words)]
    template = OmegaConf.load(config_dir() / "train.yaml").hydra.help.template
    return Template(template).safe_substitute(APP_CONFIG_GROUPS=_choices(folders))


def _config_dirs(words: Sequence[str]) -> list[Path]:
    """Return the folders that `--config-dir FOLDER`, `--config-dir=FOLDER` or `-cd` name."""
    found = []
    for number, word in enumerate(words):
        flag, equals, value = word.partition("=")
        if flag in ("--config-dir", "-cd"):
            found += [Path(value)] if equals else [Path(w) for w in words[number + 1 : number + 2]]
    return found


def _choices(folders: Sequence[Path]) -> str:
    """Return a line for each group of settings with the names of its files."""
    groups: dict[str, set[str]] = {}
    for folder in folders:
        for file in folder.glob("*/*.yaml"):
            groups.setdefault(file.parent.name, set()).add(file.stem)
    lines = (f"{group}: {', '.join(sorted(names))}" for group, names in sorted(groups.items()))
    return "".join(f"{line}\n" for line in lines)
