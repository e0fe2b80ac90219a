"""What a check of a data set finds, of every kind of data, before any net is trained on it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from cdep_run.check.association import Association
from cdep_run.datasets.faults import Fault

LEVELS = ("fault", "warning", "note")
"""A fault stops training; a warning may make its results worthless; a note is good to know."""

FEW = 10
"""A class with fewer examples than this in a split is warned of."""

SHOWN = 8
"""So many examples are named in one finding."""


@dataclass(frozen=True)
class Picture:
    """A thumbnail: the bytes of a JPEG, and what stands below it."""

    data: bytes
    caption: str


@dataclass(frozen=True)
class Finding:
    """One thing found.

    Attributes:
        level: one of `LEVELS`.
        topic: a word or two that findings of a kind share.
        where: a file, a row, a column, a class.
        what: what is the matter, and what may help.
        pictures: of the examples concerned.
    """

    level: str
    topic: str
    where: str
    what: str
    pictures: tuple[Picture, ...] = ()


@dataclass
class CheckReport:
    """All that was found.

    Attributes:
        name: of the data set.
        counts: number of examples by class and split.
        findings: in no order.
        associations: of what must not matter with the class.
        pictures: examples, by a heading.
    """

    name: str
    counts: dict[str, dict[str, int]] = field(default_factory=dict)
    findings: list[Finding] = field(default_factory=list)
    associations: list[Association] = field(default_factory=list)
    pictures: dict[str, list[Picture]] = field(default_factory=dict)

    def add(
        self, level: str, topic: str, where: str, what: str, pictures: Iterable[Picture] = ()
    ) -> None:
        """Note a finding."""
        self.findings.append(Finding(level, topic, where, what, tuple(pictures)))

    def add_faults(self, topic: str, faults: Iterable[Fault]) -> None:
        """Note what training would refuse."""
        for fault in faults:
            self.add("fault", topic, fault.where, fault.what)

    def of(self, level: str) -> list[Finding]:
        """The findings of one level."""
        return [finding for finding in self.findings if finding.level == level]

    def verdict(self) -> str:
        """One sentence."""
        faults, warnings = len(self.of("fault")), len(self.of("warning"))
        if faults:
            return f"{faults} faults: training would refuse these data. {warnings} warnings."
        return f"Nothing stops training. {warnings} warnings."


def add_counts(
    report: CheckReport, labels: Sequence[str], splits: Sequence[str], classes: Sequence[str]
) -> None:
    """Count classes by split; warn of those that are rare or absent, or written in two ways."""
    names = [*dict.fromkeys(["train", "val", *sorted(set(splits))])]
    pairs = Counter(zip(labels, splits, strict=True))
    for label in classes:
        report.counts[label] = {name: pairs[label, name] for name in names}
        for name in names:
            if pairs[label, name] < FEW:
                report.add(
                    "warning",
                    "class counts",
                    f"class {label}",
                    f"has {pairs[label, name]} examples in {name}: its metrics will be coarse"
                    if pairs[label, name]
                    else f"has no example in {name}: AUC and its accuracy there are not known",
                )
    alike: dict[str, list[str]] = {}
    for label in classes:
        alike.setdefault(label.strip().casefold(), []).append(label)
    for same in alike.values():
        if len(same) > 1:
            report.add(
                "warning",
                "class names",
                " and ".join(map(repr, same)),
                "differ in case or blanks only: are they one class?",
            )


def add_duplicates(
    report: CheckReport,
    copies: Iterable[Sequence[int]],
    names: Sequence[str],
    splits: Sequence[str],
    labels: Sequence[str],
    pictures: Mapping[int, Picture] | None = None,
) -> None:
    """Warn of examples that are there twice: across splits, with other labels, or within one split.

    Args:
        copies: places of examples that are the same, two or more each.
        names, splits, labels: of each example.
        pictures: of examples, by place.
    """
    within: list[str] = []
    across: list[Sequence[int]] = []
    for places in copies:
        if len({labels[place] for place in places}) > 1:
            said = ", ".join(f"{names[p]} is {labels[p]}" for p in places[:SHOWN])
            report.add(
                "warning",
                "duplicates",
                names[places[0]],
                f"is there {len(places)} times with different labels: {said}",
                _pictures(places, pictures),
            )
        if len({splits[place] for place in places}) > 1:
            across.append(places)
        else:
            within.append(names[places[0]])
    for places in across[:SHOWN]:
        said = ", ".join(f"{names[p]} in {splits[p]}" for p in places[:SHOWN])
        report.add(
            "warning",
            "duplicates across splits",
            names[places[0]],
            f"the same content is {said}",
            _pictures(places, pictures),
        )
    if across:
        report.add(
            "warning",
            "duplicates across splits",
            f"{len(across)} contents",
            "are in several splits: val and test look better than they are; give copies the "
            "same value in a column and name it as columns.group",
        )
    if within:
        report.add(
            "note",
            "duplicates",
            f"{len(within)} contents",
            f"are there twice or more in one split ({', '.join(within[:SHOWN])})",
        )


def _pictures(places: Sequence[int], pictures: Mapping[int, Picture] | None) -> list[Picture]:
    return [pictures[place] for place in places[:SHOWN] if pictures and place in pictures]


def same(keys: Iterable[object]) -> list[list[int]]:
    """The places, two or more, of every key that occurs more than once."""
    places: dict[object, list[int]] = {}
    for place, key in enumerate(keys):
        places.setdefault(key, []).append(place)
    return [found for found in places.values() if len(found) > 1]
