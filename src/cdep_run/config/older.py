"""Settings of runs that an older version made, brought to today's names."""

from __future__ import annotations

from typing import Any

from cdep_run.variants import VARIANTS

FORMS = {"text": "pair_true_class", "classwise": "eq5", "code": "published"}
"""Forms of penalties by their old name."""


def up_to_date(config: dict[str, Any]) -> dict[str, Any]:
    """Return a run's settings under today's names; settings of today come back as they are.

    Once CDEP had `relu`, `recurrent_bias`, `lstm_gates` and `detach_vectors` beside
    its form; `rules` holds them now. A rule that the record does not name had its default.
    """
    if not isinstance(config.get("penalty"), dict):
        return config
    penalty = dict(config["penalty"])
    if "form" in penalty:
        penalty["form"] = FORMS.get(penalty["form"], penalty["form"])
    if penalty.keys() & VARIANTS.keys():
        rules = {name: penalty.pop(name, next(iter(VARIANTS[name]))) for name in VARIANTS}
        if penalty.pop("detach_vectors", False):
            rules["embedding"] = "detached"
        penalty |= {"rules": rules, "next_positions": 0, "output_bias": True}
    return config | {"penalty": penalty}
