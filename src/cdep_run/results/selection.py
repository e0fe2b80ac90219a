"""Which λ, or which form and λ, the validation data choose among finished runs."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd


def scores(runs: pd.DataFrame, split: str | None = None) -> pd.Series:
    """What decides of each run of `load_runs`: its selection metric on its selection split.

    Args:
        runs: `selection_split` and `selection_metric` stand in each run's record: the split that
            the data set sets aside for choosing λ, never a test split, and accuracy or AUC.
        split: another split to read instead, the same for all runs.

    Returns:
        One number a run, NaN where it was not measured.
    """
    found = pd.Series(math.nan, index=runs.index)
    for (own, metric), some in runs.groupby(["selection_split", "selection_metric"]).groups.items():
        column = f"{split or own}/{metric}"
        if column in runs:
            found[some] = runs.loc[some, column].astype(float)
    return found


RULES = ("best", "one_standard_error")
"""How λ is chosen among the means over seeds; see `select`."""


def select(
    runs: pd.DataFrame,
    by: str | list[str] = "curve",
    split: str | None = None,
    rule: str = "best",
) -> pd.DataFrame:
    """Compare the cells (settings with their seeds) that share `by`, and mark the chosen ones.

    By `curve`, runs of which differ in λ and seed alone, this chooses λ; by data set and penalty
    it chooses form and λ together. What shares `by` must be comparable: runs on parts of the data
    and runs on all of them, for example, are not.

    By the rule "best" the cell with the highest mean score is chosen; by "one_standard_error" the
    one with the strongest λ whose mean lies at most one standard error of the best cell's mean
    below that (Breiman et al. 1984, for trees): a difference that another seed could undo should
    not weaken the penalty. With one seed there is no such error, and both rules are the first.

    Means are taken over the seeds that all cells
    compared have, so that a λ with five seeds and one with a single seed are compared on that
    one. A cell that lacks the seed that most cells have (the lowest of several such) is not
    compared. Of equal means the one with the smallest λ is chosen: the weakest penalty that does.
    λ = 0 is no member of a curve: such a run is one of penalty `none`.

    Args:
        runs: from `load_runs`; a run without a score takes no part.
        by: the column or columns whose values the cells to compare have in common.
        split: None: each run's own selection split, as it must be for a result to be called
            unseen. "test" gives what the paper reports, λ chosen on the very data that it is
            tested on: say so wherever it is shown.
        rule: one of `RULES`.

    Returns:
        The whole curves, one row a cell, rising in λ within the values of `by`: `by`, cell,
        strength, n (seeds), compared (seeds that took part; 0: not compared), score (mean over
        these), error (standard error of that mean; NaN: one seed), tied (how many cells share the
        best mean, where it is chosen), chosen.
    """
    by = [by] if isinstance(by, str) else by
    scored = runs[[*by, "cell", "seed", "strength"]].assign(score=scores(runs, split))
    found = [
        compared(group, rule).assign(**dict(zip(by, values, strict=True)))
        for values, group in scored.dropna(subset="score").groupby(by, sort=False)
    ]
    columns = [*by, "cell", "strength", "n", "compared", "score", "error", "tied", "chosen"]
    return pd.concat(found, ignore_index=True)[columns] if found else pd.DataFrame(columns=columns)


def compared(scored: pd.DataFrame, rule: str) -> pd.DataFrame:
    """The cells of one comparison, see `select`."""
    table = scored.pivot(index=["strength", "cell"], columns="seed", values="score")
    grid = table.to_numpy()  # numpy from here on: pandas takes ten times as long for a few numbers
    there = ~np.isnan(grid)
    takes_part = there[:, there.sum(0).argmax()]
    shared = there[takes_part].all(0)
    values = grid[np.ix_(takes_part, shared)]
    means, errors = np.full((2, len(grid)), np.nan)
    means[takes_part] = values.mean(1)
    if shared.sum() > 1:
        errors[takes_part] = values.std(1, ddof=1) / math.sqrt(shared.sum())
    best = np.isclose(means, np.nanmax(means), rtol=1e-9, atol=0)
    place = best.argmax()
    if rule == "one_standard_error" and shared.sum() > 1:
        near = means >= means[place] - errors[place]
        strengths = table.index.get_level_values("strength").to_numpy()
        strongest = near & (strengths == strengths[near].max())
        place = np.where(strongest, means, -np.inf).argmax()
    first = np.arange(len(grid)) == place
    return pd.DataFrame(
        {
            "n": there.sum(1),
            "compared": np.where(takes_part, shared.sum(), 0),
            "score": means,
            "error": errors,
            "tied": np.where(first, best.sum(), 0),
            "chosen": first,
        },
        index=table.index,
    ).reset_index()


def chosen(
    runs: pd.DataFrame,
    by: str | list[str] = "curve",
    split: str | None = None,
    rule: str = "best",
) -> pd.DataFrame:
    """The runs, all seeds, of the cells that `select` chooses."""
    table = select(runs, by, split, rule)
    return runs[runs["cell"].isin(table.loc[table["chosen"], "cell"])]
