"""Recurrent language models to compare a GPT with: Elman's network, the GRU and the LSTM, by torch's own layers.

Elman, "Finding Structure in Time" (1990), with tanh; Cho et al., "Learning Phrase Representations using RNN
Encoder-Decoder" (2014); Hochreiter & Schmidhuber, "Long Short-Term Memory" (1997), with the forget gate of Gers et al.
(2000). As a language model: Zaremba et al., "Recurrent Neural Network Regularization" (2014). torch's layers are held
against the equations in float64 (tests/model/test_rnn.py). The module needs nothing but torch.

    model = RNN(RNNShape(vocab_size=32_000, context=128, n_layer=2, n_embd=512, n_hidden=512, cell="lstm"))
    hidden = model(tokens)             # (rows, time) → (rows, time, n_hidden)
    logits = model.logits(hidden)      # (rows, time, vocab_size)

Equal parameters. A layer of width w whose input is as wide has g·(2w² + 2w) parameters, g = 1 (rnn), 3 (gru), 4 (lstm);
a block of a GPT has 12w² + 13w. So beside n blocks of the same width and vocabulary stand 6n layers of an RNN, 2n of a
GRU, or 1.5n of an LSTM. Otherwise a layer has g·(n_hidden·(n_in + n_hidden) + 2·n_hidden), where n_in is n_embd for the
first and n_hidden for the others; the embedding has vocab_size·n_embd, an output layer that is not tied to it
vocab_size·n_hidden, and a GPT's positions context·n_embd.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

Cell = Literal["rnn", "gru", "lstm"]
"""rnn: Elman's, tanh."""

LAYERS: dict[Cell, type[nn.RNN] | type[nn.GRU] | type[nn.LSTM]] = {"rnn": nn.RNN, "gru": nn.GRU, "lstm": nn.LSTM}


@dataclass(frozen=True)
class RNNShape:
    """What an RNN is made from. `context`: the length of the rows it learns from; it can read on for as long as wanted.
    `tie_head`: the output layer shares the token embedding's weights, which needs n_hidden = n_embd."""

    vocab_size: int
    context: int
    n_layer: int
    n_embd: int
    n_hidden: int
    cell: Cell = "lstm"
    dropout: float = 0.0
    tie_head: bool = True

    def __post_init__(self) -> None:
        for name in ("vocab_size", "context", "n_layer", "n_embd", "n_hidden"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} = {getattr(self, name)}: must be at least 1")
        if self.cell not in get_args(Cell):
            raise ValueError(f"cell = {self.cell!r}: wanted {' or '.join(map(repr, get_args(Cell)))}")
        if self.tie_head and self.n_hidden != self.n_embd:
            raise ValueError(
                f"n_hidden = {self.n_hidden} is not n_embd = {self.n_embd}: an output layer tied to the embedding needs"
                " them equal; make them so, or take tie_head = false"
            )


class RecurrentState:
    """What an RNN remembers of all that it has read: rows beside each other, each at its own length.

    lengths: how many of the next tokens of each row are real, (rows,); what stands behind them is padding and is not
             read. None: all are. It is used once
    """

    def __init__(self, lengths: Sequence[int] | None = None) -> None:
        self.lengths = lengths
        self.value: Tensor | tuple[Tensor, ...] | None = None
        """The hidden states (n_layer, rows, n_hidden), of an LSTM those and its cells; None before the first token."""

    def read(self, layers: nn.RNNBase, x: Tensor) -> Tensor:
        """The layers' hidden states (rows, time, n_hidden) for x (rows, time, n_embd), 0 behind the end of a row."""
        if isinstance(self.value, tuple) and x.shape[1] == 1 and x.device.type == "cpu" and not layers.training:
            hidden, self.value = _lstm_step(layers, x[:, 0], self.value)
            return hidden[:, None]
        # Packed, for only so are the states of all layers given at each row's own end.
        lengths = torch.tensor(self.lengths or [x.shape[1]] * len(x))
        packed = pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False)
        packed, self.value = layers(packed, self.value)
        self.lengths = None
        hidden, _ = pad_packed_sequence(packed, batch_first=True, total_length=x.shape[1])
        return hidden

    def keep(self, rows: list[int]) -> None:
        """Only these rows go on, in this order."""

        def kept(part: Tensor) -> Tensor:
            return part.index_select(1, torch.tensor(rows, device=part.device))

        assert self.value is not None
        self.value = tuple(map(kept, self.value)) if isinstance(self.value, tuple) else kept(self.value)


def _lstm_step(layers: nn.RNNBase, x: Tensor, state: tuple[Tensor, ...]) -> tuple[Tensor, tuple[Tensor, ...]]:
    """One more token a row, x (rows, n_embd): the last layer's hidden states, and the state after it. oneDNN's LSTM,
    which torch takes on a CPU, arranges the weights anew at each call: one row through 2 layers of 512 takes it 8 to
    12 ms, this 1.2."""
    after = []
    for weights, *before in zip(layers.all_weights, *state, strict=True):
        x, cells = torch.lstm_cell(x, before, *weights)
        after.append((x, cells))
    return x, tuple(torch.stack(parts) for parts in zip(*after, strict=True))


class RNN(nn.Module):
    """A recurrent language model. Dropout is on the embedding, between the layers and on the output, and never on what
    a layer hands to itself (Zaremba et al., 2014, figure 2)."""

    def __init__(self, shape: RNNShape) -> None:
        super().__init__()
        self.shape = shape
        self.activation_checkpointing = False
        """A GPT has it. Here nothing is computed again, whatever it says."""
        self.wte = nn.Embedding(shape.vocab_size, shape.n_embd)
        self.rnn = LAYERS[shape.cell](
            shape.n_embd, shape.n_hidden, shape.n_layer, batch_first=True,
            dropout=shape.dropout if shape.n_layer > 1 else 0.0,  # torch warns where there is no layer to drop between
        )  # fmt: skip
        self.lm_head = nn.Linear(shape.n_hidden, shape.vocab_size, bias=False)
        if shape.tie_head:
            self.lm_head.weight = self.wte.weight
        self.initialize()

    @torch.no_grad()
    def initialize(self) -> None:
        """Weights that meet a layer's input: normal, and such that their sums have a variance of 1 where the input has
        (LeCun et al., "Efficient BackProp", 1998, section 4.6). So has the output layer, and the first loss is within
        half a nat of ln V; the embedding is as large, for it may be the same, and the first layer's weights are larger
        in return. The rest is torch's, U(−1/√n_hidden, 1/√n_hidden), but that an LSTM's forget gates have a bias of 1
        (Jozefowicz et al., "An Empirical Exploration of Recurrent Network Architectures", 2015)."""
        # With torch's weights throughout and tables from U(−0.1, 0.1), as Merity et al. (2017, section 5) have it, too
        # little of a token reaches the output: 400 steps on WikiText-2 (2 layers of 128, AdamW, 0.003) end at a loss of
        # 5.40, 5.36 and 5.44 (rnn, gru, lstm), where counting single words gives 5.42. From here: 4.71, 4.73 and 5.02.
        shape = self.shape
        self.rnn.reset_parameters()
        table_std = 1 / math.sqrt(shape.n_hidden)
        for layer in range(shape.n_layer):
            weight = getattr(self.rnn, f"weight_ih_l{layer}")
            nn.init.normal_(weight, std=1 / math.sqrt(weight.shape[1]) / (1 if layer else table_std))
            if shape.cell == "lstm":
                forget = slice(shape.n_hidden, 2 * shape.n_hidden)  # torch's order: input, forget, cell, output
                getattr(self.rnn, f"bias_ih_l{layer}")[forget] = 1.0
                getattr(self.rnn, f"bias_hh_l{layer}")[forget] = 0.0  # the two are added
        for name, parameter in self.named_parameters():
            if name in ("wte.weight", "lm_head.weight"):  # a tied one has the first name alone
                nn.init.normal_(parameter, std=table_std)

    @property
    def head_weight(self) -> Tensor:
        """The output layer's weight, (vocab_size, n_hidden)."""
        return self.lm_head.weight

    def forward(self, tokens: Tensor, cache: RecurrentState | None = None) -> Tensor:
        """Tokens (rows, time) int64 → the last layer's hidden state after each of them (rows, time, n_hidden).

        With a cache the tokens continue what it has read; where it says how long the rows are, what is behind their
        ends is 0.
        """
        x = F.dropout(self.wte(tokens), self.shape.dropout, self.training)
        with self._exact_sums(x.device):
            hidden = self.rnn(x)[0] if cache is None else cache.read(self.rnn, x)
        return F.dropout(hidden, self.shape.dropout, self.training)

    def _exact_sums(self, device: torch.device) -> AbstractContextManager[Any]:
        """Float32 in spite of autocast where torch would sum a weight's gradient over the steps in bfloat16: on a CPU,
        of all but the LSTM, which is oneDNN's. That of the recurrent weights is then 1 % off after 64 steps and 3.5 %
        after 1,024 (LSTM: 0.6 % always); an eighth (width 256) to a third (768) of the time would be spared."""
        inexact = device.type == "cpu" and self.shape.cell != "lstm"
        return torch.autocast("cpu", enabled=False) if inexact else nullcontext()

    def logits(self, hidden: Tensor) -> Tensor:
        """Hidden states (…, n_hidden) → logits (…, vocab_size)."""
        return F.linear(hidden, self.head_weight)
