"""What all penalties share: groups of a batch, and the mean over its annotated examples."""

from __future__ import annotations

from torch import Tensor

from cdep_run.attribution import PenaltyError
from cdep_run.batch import Batch, Groups, fit_mask


def works_on_features(penalty: object) -> bool:
    """Whether a penalty takes features of a frozen trunk for inputs.

    If it has `rules`, of CD, it gets the relevant part of the features; otherwise, if it needs
    groups, the images of the annotated examples.
    """
    return getattr(penalty, "works_on_features", False)


def groups_of(batch: Batch, penalty: object) -> Groups:
    """The batch's feature groups.

    Raises:
        PenaltyError: the data set has no annotation for this batch, or its inputs are features of a
            frozen trunk, and the penalty needs what they were made of.
        ValueError: the mask does not fit the inputs.
    """
    if batch.groups is None:
        raise PenaltyError(
            f"{type(penalty).__name__} needs to know which features must not matter, but the data "
            "set gives no groups; choose a data set with annotation, or penalty=none"
        )
    if batch.groups.relevant is not None and not hasattr(penalty, "rules"):
        raise PenaltyError(
            f"{type(penalty).__name__} needs the images themselves, and the inputs are features "
            "that a frozen trunk made of them; train with dataset.cache=false"
        )
    fit_mask(batch.inputs, batch.groups.mask)
    if batch.groups.mask.dim() != batch.inputs.dim() + 1:
        raise ValueError(
            f"the mask of a batch is [N or 1, groups, *features]; this one, "
            f"{list(batch.groups.mask.shape)}, wants a group axis: mask[:, None]"
        )
    return batch.groups


def mean_annotated(values: Tensor, groups: Groups) -> Tensor:
    """Mean of `[N]` values over the annotated examples only; 0 if there is none."""
    if groups.annotated is None:
        return values.mean()
    annotated = groups.annotated.to(values.dtype)
    return (values * annotated).sum() / annotated.sum().clamp(min=1)
