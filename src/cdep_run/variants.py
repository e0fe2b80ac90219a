"""The named choices of CD's rules and of the penalties, each listed once. Imports no torch."""

from __future__ import annotations

from collections.abc import Collection, Mapping

VARIANTS: dict[str, dict[str, str]] = {
    # In deep nets the first two hand out so much of the biases that β becomes a share of the total,
    # whatever the group holds; in a net of affine maps and rectifiers the last one's β is exactly
    # what setting the group to 0 takes away.
    "relu": {
        "asymmetric": "ReLU(β): ACD and the published CDEP code",
        "symmetric": "½[f(β) + f(β+γ) − f(γ)], the Shapley value",
        "last": "f(β+γ) − f(γ), and all biases are γ's: what the group adds to the rest",
    },
    "norm_constant": {
        "bounded": "a part gets at most half its own size of it, so that deep nets can be trained",
        "proportional": "in proportion to the parts, as biases of other layers: the ACD code",
    },
    "product": {
        "shapley": "β₁β₂ + ½(β₁γ₂ + γ₁β₂), the Shapley value",
        "strict": "β₁β₂ alone, as in the first CD for LSTMs; what needs both parts is irrelevant",
    },
    "softmax": {
        "symmetric": "attention weights are decomposed like any activation",
        "fixed": "attention weights are a constant: the published CD for transformers",
    },
    "recurrent_bias": {
        "inside": "a recurrent net's biases are relevant at all positions of the group",
        "first": "at the first of neighbouring positions alone: the published CDEP code",
    },
    "lstm_gates": {
        "published": "what a gate of one part does to the other part's content is irrelevant",
        "shared": "it is shared by halves, which closes a way out and takes longer",
    },
    "embedding": {
        "trained": "the parts' gradients reach the word vectors",
        "detached": "they stop there: the published CDEP code",
    },
}
"""Rules of CD that have several forms, and what each form does; the first is the default."""

FORMS: dict[str, dict[str, str]] = {
    "cdep": {
        "pair": "β's entry of softmax(β_k, γ_k), mean over classes: the published code",
        "centred": "‖β − mean_k β‖²: what tells the classes apart",
        "eq5": "‖softmax_k(β) − 1/classes‖₁: the paper's Eq. 5 with the neutral target",
        "pair_true_class": "−log of γ's entry at the true class: the published code for text",
    },
    "rrr": {
        "paper": "gradient of Σ_c log p_c, squared",
        "published": "the CDEP code's: gradient of the batch-mean loss, channels summed, squared",
    },
    "eg": {
        "paper": "|mean over the samples|",
        "published": "the CDEP code's: mean over the samples of |each|",
    },
    "consistency": {
        "logits": "squared difference of the logits, a constant over the classes left out",
        "divergence": "KL divergence of the probabilities",
    },
}
"""How each penalty measures a group's contribution; the first form is the class's default."""


CHANGES: dict[str, str] = {
    "exchange": "the same features of another example of the batch, drawn anew each step",
    "remove": "0, the mean of standardised features",
}
"""What takes the place of a group in penalties that change it; the first is the default."""


def choose(key: str, chosen: str, choices: Collection[str]) -> str:
    """Return `chosen` if it is one of `choices`.

    Raises:
        ValueError: it is not; names the key, what came and the choices.
    """
    if chosen not in choices:
        raise ValueError(f"{key} is {chosen!r}; choose one of {', '.join(choices)}")
    return chosen


def check_rules(rules: Mapping[str, str], where: str = "rules") -> None:
    """Refuse variants of CD's rules that do not exist.

    Args:
        rules: variants by the name of their rule.
        where: what the mapping is called, for the message.

    Raises:
        ValueError: names the rule or variant that came, and those there are.
    """
    for name, chosen in rules.items():
        if name not in VARIANTS:
            raise ValueError(f"{where}.{name} is no rule; there are {', '.join(VARIANTS)}")
        choose(f"{where}.{name}", chosen, VARIANTS[name])


def help_text() -> str:
    """One line for each rule of CD and each form of a penalty, as `cdep-run --help` shows them."""
    lines = {f"penalty.rules.{name}": VARIANTS[name] for name in VARIANTS}
    lines |= {f"penalty.form, of {name}": FORMS[name] for name in FORMS}
    lines |= {"penalty.change": CHANGES}
    return "\n".join(f"{key:29}{', '.join(names)}" for key, names in lines.items())
