"""The recurrent classifier of the text experiments."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence

from cdep_run.errors import ConfigError


class RecurrentClassifier(nn.Module):
    """Embedding – LSTM or GRU – linear layer on the state after a sentence's last word.

    Source: Rieger et al. 2019 (arXiv:1909.13584), Section 4.3: an LSTM with 128 hidden units, two
    layers in the paper and one in the published code, which reads the state after the padding.

    Args:
        input_shape: of one sentence, `(T,)`; any length will do.
        num_classes: number of logits.
        vectors: of the data: float `[V, D]`, what the embedding starts from.
            None: it starts from random numbers.
        hidden: units of each layer and direction.
        layers: recurrent layers.
        bidirectional: read the sentence backwards, too.
        cell: "lstm" or "gru".
        train_vectors: whether the embedding is trained.
        read: which state is read: "last_word"; "mean", the mean of the states after each word, for
            long texts; or "padding", the one after all of the padded batch, as in the published
            code.
        dropout: share of the word vectors' entries, and of the state's, dropped in training.
        width: numbers of each word's vector, where there are no vectors to start from.
        vocab_size: of the data: V, where there are no vectors.
        padding: of the data: the token that fills up short sentences.

    Raises:
        ConfigError: `hidden`, `layers` or `width` below 1, `dropout` not in [0, 1); random vectors
            that are not to be trained; a mean of both directions.
    """

    def __init__(
        self,
        input_shape: tuple[int, ...],
        num_classes: int,
        vectors: Tensor | None = None,
        hidden: int = 128,
        layers: int = 1,
        bidirectional: bool = False,
        cell: str = "lstm",
        train_vectors: bool = True,
        read: str = "last_word",
        dropout: float = 0.0,
        width: int = 100,
        vocab_size: int = 0,
        padding: int = 0,
    ) -> None:
        super().__init__()
        if min(hidden, layers, width) < 1:
            raise ConfigError(
                f"model.hidden={hidden}, model.layers={layers}, model.width={width}: all at least 1"
            )
        if not 0 <= dropout < 1:
            raise ConfigError(f"model.dropout={dropout}: a share, 0 or more and below 1")
        if read == "mean" and bidirectional:
            raise ConfigError("model.read=mean reads forwards: set model.bidirectional=false")
        self.padding, self.read_padding, self.read_mean = padding, read == "padding", read == "mean"
        if vectors is None and not train_vectors:
            raise ConfigError(
                "model.train_vectors=false leaves random word vectors as they are; name a file by "
                "dataset.vectors, or train them"
            )
        self.embedding = (
            nn.Embedding(vocab_size, width, padding_idx=padding)
            if vectors is None
            else nn.Embedding.from_pretrained(
                vectors.clone(), freeze=not train_vectors, padding_idx=padding
            )
        )
        kind = {"lstm": nn.LSTM, "gru": nn.GRU}[cell]
        width = self.embedding.embedding_dim
        self.recurrent = kind(width, hidden, layers, batch_first=True, bidirectional=bidirectional)
        self.dropout = nn.Dropout(dropout)
        self.output = nn.Linear(hidden * (1 + bidirectional), num_classes)

    def forward(self, tokens: Tensor) -> Tensor:
        """Logits `[N, num_classes]` of tokens int64 `[N, T]`; no sentence may be empty."""
        lengths = (tokens != self.padding).sum(1)
        vectors = self.dropout(self.embedding(tokens))
        if self.read_mean:
            shares = (tokens != self.padding) / lengths.clamp(min=1)[:, None]
            states, _ = self.recurrent(vectors)
            return self.output(self.dropout((states * shares[..., None]).sum(1)))
        if not self.read_padding and not self.recurrent.bidirectional:
            # Faster than packing: the states after the last word are never looked at.
            states, _ = self.recurrent(vectors)
            last = (lengths - 1).clamp(min=0).view(-1, 1, 1).expand(-1, 1, states.shape[-1])
            return self.output(self.dropout(states.gather(1, last).squeeze(1)))
        if not self.read_padding:
            # Only packing makes the way back start at the last word; it wants lengths on the host.
            vectors = pack_padded_sequence(
                vectors, lengths.cpu(), batch_first=True, enforce_sorted=False
            )
        state = self.recurrent(vectors)[1]
        state = state[0] if isinstance(state, tuple) else state
        ends = torch.cat([state[-2], state[-1]], 1) if self.recurrent.bidirectional else state[-1]
        return self.output(self.dropout(ends))
