"""Contextual decomposition (CD): split a model's output into the part due to a feature group.

`decompose` is the engine, `interaction` what two groups contribute only together; `condition`
says whether gradients can be trusted on a net; `register_rule` teaches the engine a new op;
`VARIANTS` names the rules of which there are several.
"""

from cdep_run.cd import rules
from cdep_run.cd.condition import condition
from cdep_run.cd.decompose import Decomposition, decompose, interaction
from cdep_run.cd.pair import Pair
from cdep_run.cd.registry import MissingRuleError, register_rule
from cdep_run.variants import VARIANTS

__all__ = [
    "VARIANTS",
    "Decomposition",
    "MissingRuleError",
    "Pair",
    "condition",
    "decompose",
    "interaction",
    "register_rule",
    "rules",
]
