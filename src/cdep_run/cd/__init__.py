"""Contextual decomposition (CD): split a model's output into the part due to a feature group.

`decompose` is the engine; `register_rule` teaches it a new op.
"""

from cdep_run.cd import rules
from cdep_run.cd.decompose import Decomposition, decompose
from cdep_run.cd.pair import Pair
from cdep_run.cd.registry import MissingRuleError, register_rule

__all__ = ["Decomposition", "MissingRuleError", "Pair", "decompose", "register_rule", "rules"]
