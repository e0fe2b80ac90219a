"""The rules of contextual decomposition that have several forms, by name. Imports no torch."""

VARIANTS: dict[str, tuple[str, ...]] = {
    # ReLU(β), as in ACD and in the published CDEP code | ½[f(β) + f(β+γ) − f(γ)], Shapley form |
    # f(β+γ) − f(γ), and biases are γ's: the group comes last. In a net of affine maps and
    # rectifiers β is then what setting the group to 0 takes away. In deep nets the other two hand
    # out so much of the biases that β becomes a share of the total, whatever the group holds.
    "relu": ("asymmetric", "symmetric", "last"),
    # of two decomposed tensors: β₁β₂ + ½(β₁γ₂ + γ₁β₂), the Shapley value | β₁β₂ alone, as in the
    # first CD for LSTMs (without its bias terms): what needs both parts is irrelevant
    "product": ("shapley", "strict"),
    # attention weights are decomposed | are a constant, as in the published CD for transformers
    "softmax": ("symmetric", "fixed"),
    # what biases put into a recurrent state is relevant at start ≤ t ≤ stop of a group | at
    # start ≤ t < stop, as in the published CDEP code
    "recurrent_bias": ("inside", "before_last"),
    # what an LSTM's gate of one part does to another part's content is irrelevant | shared
    "lstm_gates": ("published", "shared"),
    # gradients reach the vectors of an embedding | stop at them, as in the published CDEP code
    "embedding": ("trained", "detached"),
}
"""Rules of which the literature knows several forms; the first name is the default."""
