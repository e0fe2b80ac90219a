"""Helpers that all penalties share: their options, a batch's groups, the mean over its examples."""

from __future__ import annotations

from collections.abc import Collection

from torch import Tensor

from cdep_run.attribution import PenaltyError
from cdep_run.batch import Batch, Groups, fit_mask
from cdep_run.variants import choose


def option(key: str, chosen: str, choices: Collection[str]) -> str:
    """Return `chosen` if it is one of `choices`.

    Raises:
        PenaltyError: it is not; names the key, what came and the choices.
    """
    try:
        return choose(key, chosen, choices)
    except ValueError as error:
        raise PenaltyError(str(error)) from error


def works_on_features(penalty: object) -> bool:
    """Whether a penalty can be computed where the inputs are features of a frozen trunk.

    A penalty with `rules` of CD gets the relevant part of the features. One without, if it needs
    groups, gets the images of the annotated examples as `batch.images`.
    """
    return getattr(penalty, "works_on_features", False)


def groups_of(batch: Batch, penalty: object) -> Groups:
    """Return the batch's feature groups.

    Raises:
        PenaltyError: the data set has no annotation for this batch, or the inputs are features of a
            frozen trunk and the penalty needs the images.
        ValueError: the mask does not fit the inputs.
    """
    if batch.groups is None:
        raise PenaltyError(
            f"{type(penalty).__name__} needs to know which features must not matter, but the data "
            "set gives no groups; choose a data set with annotation, or penalty=none"
        )
    if batch.groups.relevant is not None and not hasattr(penalty, "rules"):
        raise PenaltyError(
            f"{type(penalty).__name__} needs the images, and the inputs are features that a frozen "
            "trunk made of them; train with dataset.cache=false"
        )
    fit_mask(batch.inputs, batch.groups.mask)
    if batch.groups.mask.dim() != batch.inputs.dim() + 1:
        raise ValueError(
            f"the mask of a batch is [N or 1, groups, *features], and this one is "
            f"{list(batch.groups.mask.shape)}; add a group axis: mask[:, None]"
        )
    return batch.groups


def mean_annotated(values: Tensor, groups: Groups) -> Tensor:
    """Mean of `[N]` values over the annotated examples only; 0 if there is none."""
    if groups.annotated is None:
        return values.mean()
    annotated = groups.annotated.to(values.dtype)
    return (values * annotated).sum() / annotated.sum().clamp(min=1)


def region(groups: Groups, penalty: object) -> Tensor:
    """Return the groups' regions of images: bool mask `[N or 1, G, C or 1, H, W]`.

    Raises:
        PenaltyError: the groups are no regions: the inputs are no images, or the groups a
            projection of them.
    """
    if groups.mask.dim() != 5 or groups.projection is not None:
        name = "no images" if groups.projection is None else groups.projection.name
        raise PenaltyError(
            f"{type(penalty).__name__} works on regions of images, and what must not matter here "
            f"is {name}; choose another penalty, such as consistency"
        )
    return groups.mask
