"""Command-line overrides as text: which sweep they name, and which of them count."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Sequence

from cdep_run.config.compare import FREE_ON_RESUME


def sweep_folder(overrides: Iterable[str], time: str) -> str:
    """The folder's name of a sweep: a stable one for `+sweep=NAME`, otherwise the time.

    What is overridden besides stands in the name, cut short and with a digest, so that the same
    command finds its sweep again; what may change on resume does not.
    """
    said = identity(overrides)
    names = [word.partition("=")[2] for word in said if word.lstrip("+").startswith("sweep=")]
    changes = ",".join(word for word in said if not word.lstrip("+").startswith("sweep="))
    if not names:
        return time
    if not changes:
        return names[0]
    digest = hashlib.sha256(changes.encode()).hexdigest()[:6]
    return f"{names[0]}-{re.sub('[^A-Za-z0-9.,=_-]+', '_', changes)[:60]}-{digest}"


def identity(overrides: Iterable[str]) -> list[str]:
    """Those overrides, sorted, that make a sweep another one."""
    said = last_of_each(overrides)
    return sorted(o for o in said if not FREE_ON_RESUME.fullmatch(o.lstrip("+").split("=")[0]))


SEVERAL = re.compile(r"((?:dataset|model|optimizer|penalty)=)(?:choice\()?([\w./-]+) *,")
"""An override that names several files of a group: the group and the first of them."""


def with_first_choices(words: Sequence[str]) -> list[str]:
    """A command line in which the first of several data sets or the like also stands alone.

    Hydra composes the settings of a sweep once without what is swept. With `dataset=a,b` that
    would be the default data set, which need not know `dataset.vectors` said beside it.
    """
    found = []
    for word in words:
        several = SEVERAL.match(word)
        if several and several[1] + several[2] not in words:
            found.append(several[1] + several[2])
        found.append(word)
    return found


def last_of_each(words: Iterable[str]) -> list[str]:
    """The words without overrides that a later one of the same name replaces.

    What adds a setting (`+name=`) makes room for what changes it (`name=`), and stays.
    """
    words = list(words)
    names = [word.split("=")[0] if "=" in word else None for word in words]
    return [w for i, w in enumerate(words) if names[i] is None or names[i] not in names[i + 1 :]]
