"""The settings of data preparation and their types; `data_prep/isic.yaml` explains each of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import cast

from omegaconf import MISSING, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from cdep_run.errors import ConfigError


@dataclass
class Download:
    """Which images to fetch from the archive, and how many tries and pauses to make."""

    api: str = MISSING
    query: str = MISSING
    collections: list[int] = MISSING
    licences: list[str] = MISSING
    number: int | None = MISSING
    connections: int = MISSING
    per_second: float = MISSING
    attempts: int = MISSING
    backoff: float = MISSING
    timeout: float = MISSING


@dataclass
class Resize:
    """How to turn originals into images of one size."""

    source: str | None = MISSING
    size: int = MISSING
    quality: int = MISSING
    largest: float = MISSING


@dataclass
class Segment:
    """How to tell stickers from skin and lesions; lengths are shares of the image's width."""

    masks: str | None = MISSING
    automatic: bool = MISSING
    superpixels: int = MISSING
    compactness: float = MISSING
    lightness_weight: float = MISSING
    skin_a: list[float] = MISSING
    skin_b: list[float] = MISSING
    far: float = MISSING
    alike: float = MISSING
    smallest: float = MISSING
    largest: float = MISSING
    radius: list[float] = MISSING
    darker: float = MISSING
    reach: float = MISSING
    step: float = MISSING
    grey: float = MISSING
    vivid: float = MISSING
    solidity: float = MISSING
    sharp: float = MISSING
    roundness: float = MISSING
    grey_solidity: float = MISSING
    grey_sharp: float = MISSING
    grey_roundness: float = MISSING
    dilate: int = MISSING


@dataclass
class Splits:
    """How to divide images into splits and folds; groups stay together."""

    seed: int = MISSING
    shares: dict[str, float] = MISSING
    folds: int = MISSING
    groups: list[str] = MISSING


@dataclass
class Paste:
    """Which images get a pasted sticker."""

    seed: int = MISSING
    benign_train: float = MISSING
    malignant_test: float = MISSING


@dataclass
class Settings:
    """All steps."""

    folder: str = MISSING
    workers: int = MISSING
    download: Download = field(default_factory=Download)
    resize: Resize = field(default_factory=Resize)
    segment: Segment = field(default_factory=Segment)
    splits: Splits = field(default_factory=Splits)
    paste: Paste = field(default_factory=Paste)


def load(path: Path, overrides: Sequence[str] = ()) -> Settings:
    """Read the settings from a YAML file, with overrides such as `download.number=100`.

    Raises:
        ConfigError: a key does not exist, or a value is missing or of another type.
    """
    try:
        merged = OmegaConf.merge(
            OmegaConf.structured(Settings),
            OmegaConf.load(path),
            OmegaConf.from_dotlist([*overrides]),
        )
        return cast(Settings, OmegaConf.to_object(merged))
    except OmegaConfBaseException as error:
        raise ConfigError(f"{path.name}, {error.full_key}: {str(error).splitlines()[0]}") from error
