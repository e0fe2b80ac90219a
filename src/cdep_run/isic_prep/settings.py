"""The types of `data_prep/isic.yaml`, where every setting is explained and has its value."""

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
    """What to fetch from the archive, and how patiently."""

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
    """How originals become images of one size."""

    source: str | None = MISSING
    size: int = MISSING
    quality: int = MISSING
    largest: float = MISSING


@dataclass
class Segment:
    """How stickers are told from skin and lesions; lengths are shares of the image's width."""

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
    """How images are divided; groups stay together."""

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
    """The settings in a YAML file, with `key=value` overrides such as `download.number=100`.

    Raises:
        ConfigError: a key that does not exist, a value of another type, or none where one is due.
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
