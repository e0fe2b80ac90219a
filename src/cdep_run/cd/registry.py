"""Which rule decomposes which torch function, and which named variant of a rule is in force."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
import torch.nn.functional as F

from cdep_run.variants import VARIANTS, check_rules

Rule = Callable[..., Any]

_RULES: dict[Callable, Rule] = {}
_found: dict[Callable, tuple[Rule, Callable, bool]] = {}  # what `find` answered
_NAMESPACES = (torch, torch.Tensor, F, torch.special, torch._C._nn, torch.linalg, torch.fft)

_variants: ContextVar[Mapping[str, str] | None] = ContextVar("variants", default=None)


class MissingRuleError(NotImplementedError):
    """The forward pass used an op for which no decomposition rule is registered.

    Args:
        name: the op, as a user can write it down.
        module_path: the module whose forward used it; None until `decompose` finds it.
        cure: what to do about it; None: register a rule.
    """

    def __init__(self, name: str, module_path: str | None = None, cure: str | None = None):
        self.name, self.module_path, self.cure = name, module_path, cure
        where = ""
        if module_path is not None:
            where = f" (in module '{module_path or '<the model itself>'}')"
        super().__init__(
            f"no decomposition rule for {name}{where}. "
            + (
                cure
                or f"Register one:\n"
                f"    @cdep_run.cd.register_rule({name.partition(' ')[0]})\n"
                f"    def my_rule(func, x, *args, **kwargs):  # x is a cdep_run.cd.Pair\n"
                f"        return x.map(func(x.total, *args, **kwargs), lambda relevant: ...)"
            )
        )


def aliases(name: str) -> list[Callable]:
    """Every function called `name`: `torch.name`, `torch.Tensor.name`, `F.name`, operators, …"""
    found = [getattr(namespace, name) for namespace in _NAMESPACES if hasattr(namespace, name)]
    operator = getattr(torch.Tensor, f"__{name}__", None)
    found += [operator] if operator else []
    if not found:
        raise ValueError(f"torch has no function named {name!r}")
    return found


def register_rule(*functions: Callable | str) -> Callable[[Rule], Rule]:
    """Register the decorated function as the decomposition rule of `functions`.

    A rule is called as `rule(func, *args, **kwargs)` in place of `func(*args, **kwargs)`, with a
    `Pair` wherever the model passed a decomposed tensor, and returns a `Pair` (or a tuple of them).
    In-place forms (`relu_`, `inplace=True`, `+=`) need no rule of their own.

    Args:
        functions: torch functions, or names that stand for every torch function called so
            (`"relu"`: `torch.relu`, `torch.Tensor.relu`, `F.relu`).

    Raises:
        ValueError: torch has no function of a given name.
    """

    def decorator(rule: Rule) -> Rule:
        for function in functions:
            for alias in aliases(function) if isinstance(function, str) else [function]:
                _RULES[alias] = rule
        _found.clear()
        return rule

    return decorator


def describe(func: Callable) -> str:
    """A name for `func` that a user can write down: `torch.sigmoid`, `torch.nn.functional.silu`."""
    own_name = getattr(func, "__name__", repr(func))
    for namespace in _NAMESPACES:
        for name in (own_name, own_name.partition("_")[2]):  # linalg_solve is torch.linalg.solve
            if name and getattr(namespace, name, None) is func:
                owner = "torch.Tensor" if namespace is torch.Tensor else namespace.__name__
                return f"{owner}.{name}"
    module = getattr(func, "__module__", None) or "torch"
    return f"{module.replace('torch._ops', 'torch.ops')}.{own_name}"


def _out_of_place(func: Callable) -> Callable | None:
    """The function that `func` is the in-place form of: `torch.relu_` → `torch.relu`."""
    name = getattr(func, "__name__", "")
    if name.startswith("__i") and name.endswith("__"):
        return getattr(torch.Tensor, name.replace("__i", "__", 1), None)
    if name.endswith("_") and not name.endswith("__"):
        return next((f for f in map(lambda n: getattr(n, name[:-1], None), _NAMESPACES) if f), None)
    return None


def find(func: Callable) -> tuple[Rule, Callable, bool]:
    """Rule of `func`, the function to hand to it, and whether the result is written in place.

    Raises:
        MissingRuleError: no rule is registered for `func`.
    """
    cached = _found.get(func)
    if cached is None:
        rule, target, in_place = _RULES.get(func), func, False
        if rule is None and (base := _out_of_place(func)) is not None:
            rule, target, in_place = _RULES.get(base), base, True
        if rule is None:
            raise MissingRuleError(describe(func))
        cached = _found[func] = (rule, target, in_place)
    return cached


@contextmanager
def use_variants(variants: Mapping[str, str]) -> Iterator[None]:
    """Choose variants of rules by name, `{"relu": "symmetric"}`, while the context lasts.

    Raises:
        ValueError: there is no such rule or no such variant.
    """
    check_rules(variants)
    token = _variants.set(variants)
    try:
        yield
    finally:
        _variants.reset(token)


def chosen() -> Mapping[str, str] | None:
    """The variants chosen by `use_variants`; None outside of it."""
    return _variants.get()


def variant(name: str) -> str:
    """The variant of rule `name` in force; without a choice the first one of `VARIANTS`."""
    return (_variants.get() or {}).get(name) or next(iter(VARIANTS[name]))
