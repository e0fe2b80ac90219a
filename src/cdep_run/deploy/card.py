"""The model card of a finished run, in Markdown: data, shortcut, λ, scores, limits.

Source of the form: Mitchell et al. 2019, "Model Cards for Model Reporting" (arXiv:1810.03993).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from cdep_run.config.commands import TITLES
from cdep_run.results.text import markdown_table

NAME = "model_card.md"

USE = "    cdep-run predict RUN FILE …\n    cdep-run export RUN\n    cdep-run evidence RUN …"

LIMITS = (
    "The penalty acts on the named groups only; another shortcut in the data stays a shortcut.",
    "Scores hold for data drawn as the splits were; on other data they must be measured anew.",
    "A small penalty value is the penalty's own verdict. `cdep-run evidence` judges the model by "
    "other explainers and by changing the examples.",
)


def model_card(result: Mapping[str, Any]) -> str:
    """Return the card of a run from what its result.json holds."""
    config, data = result["config"], result["data"]
    penalty, dataset = config["penalty"], config["dataset"]
    groups = data.get("groups")
    classes = data.get("classes")
    selection = f"{result.get('selection_metric', 'accuracy')} on {result['selection_split']}"
    title = TITLES.get(penalty["name"], penalty["name"])
    facts = [
        ["data set", data["name"]],
        ["examples", ", ".join(f"{split} {n}" for split, n in data["examples"].items())],
        ["classes", ", ".join(map(str, classes)) if classes else "by number"],
        ["must not matter", ", ".join(groups) if groups else _knowledge(penalty)],
        ["model", f"{config['model'].get('name') or config['model']['_target_']}"],
        ["penalty", f"{title}, λ = {penalty['strength']:g}"],
        ["λ is compared by", selection],
        ["seed", str(config["seed"])],
        ["data fingerprint", data["fingerprint"][:16]],
    ]
    return (
        "\n\n".join(
            [
                f"# Model card: {dataset['name']}, {title}",
                markdown_table([["", ""], *facts]),
                "## Scores",
                markdown_table([["split", "accuracy", "AUC", "worst group"], *_scores(result)]),
                "## Limits",
                "\n".join(f"- {limit}" for limit in LIMITS),
                "## Use",
                USE,
            ]
        )
        + "\n"
    )


def _knowledge(penalty: Mapping[str, Any]) -> str:
    """Say what is known of the groups where they have no names."""
    return "nothing was penalised" if penalty["name"] == "none" else "the data set's groups"


def _scores(result: Mapping[str, Any]) -> list[list[str]]:
    """Return a row for each split that was evaluated."""
    keys = ("accuracy", "auc", "worst_group_accuracy")
    rows = []
    for split, scores in result["metrics"].items():
        if split != "train":
            shown = [scores.get(key) for key in keys]
            cells = ["–" if value is None else f"{100 * value:.1f} %" for value in shown]
            rows.append([split, *cells])
    return rows
