"""What every cell is to a recurrent layer."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from asr.nn import products

CLIP = 20.0  # of the clipped ReLU, Deep Speech 2, section 3.1


class Cell(nn.Module, ABC):
    """K independent chains (directions) of one recurrence, each with its own recurrent weights.

    Args:
        hidden_size: units H.
        num_chains: K.

    Attributes:
        num_gates: G; a frame's input is projected to G * H features.
        num_states: what a chain carries is num_states * H numbers, the hidden state first.
        packed: the recurrent matrix as the CPU's loops read it, once it does not change any more.
    """

    num_gates: int
    num_states: int = 1
    packed: tuple[Tensor, Tensor] | None = None

    def __init__(self, *, hidden_size: int, num_chains: int) -> None:
        super().__init__()
        self.hidden_size, self.num_chains = hidden_size, num_chains

    def initial_bias(self) -> Float[Tensor, "O"]:
        """What the input projection's bias of one chain starts as, G * H values."""
        return torch.zeros(self.num_gates * self.hidden_size)

    def forward(
        self,
        chains: Sequence[Float[Tensor, "S B D"]],
        weight: Float[Tensor, "O D"],
        bias: Float[Tensor, "O"],
        initial: Float[Tensor, "K B N"],
        packed: Sequence[Tensor] | None = None,
    ) -> tuple[Float[Tensor, "K S B H"], Float[Tensor, "K B N"]]:
        """Project each chain's inputs and run the recurrence over at least one frame.

        Args:
            chains: K inputs, time first; on what stands after an item's end later frames alone depend.
            weight: of the projection, chain after chain, O = K * G * H.
            bias: likewise.
            initial: states before the first frame, N = num_states * H.
            packed: each chain's part of `weight` as `asr.nn.products.pack` lays it out.

        Returns:
            Hidden states, and the states after the last frame.
        """
        weights, biases = weight.chunk(self.num_chains), bias.chunk(self.num_chains)
        if self.on_cudnn():
            # Autocast would run these in float16, whatever type it was asked for, where gradients underflow without a
            # loss scale: they stay in the type of the weights, as the time loops do.
            with torch.autocast(weight.device.type, enabled=False):
                results = [
                    self.cudnn(chain.to(weight.dtype), weights[k], biases[k], state.to(weight.dtype)[None], k)
                    for k, (chain, state) in enumerate(zip(chains, initial.contiguous(), strict=True))
                ]
            return torch.stack([out for out, _ in results]), torch.cat([final for _, final in results])
        laid_out = packed or [None] * self.num_chains
        projected = list(map(products.linear, chains, weights, biases, laid_out))
        return self.recur(projected, initial)

    @abstractmethod
    def recur(
        self, projected: Sequence[Float[Tensor, "S B G"]], initial: Float[Tensor, "K B N"]
    ) -> tuple[Float[Tensor, "K S B H"], Float[Tensor, "K B N"]]:
        """Run the time loop over projected inputs."""

    def fold(self) -> None:
        """Prepare for weights that do not change any more (`asr.nn.folding`)."""

    def on_cudnn(self) -> bool:
        """Whether these equations run on cuDNN, where the weights are now."""
        return False

    def cudnn(self, chain: Tensor, weight: Tensor, bias: Tensor, initial: Tensor, k: int) -> tuple[Tensor, Tensor]:
        """Run chain k, projection included, on cuDNN: (S, B, H) and (1, B, N)."""
        raise NotImplementedError


def cudnn_layer(
    function: Callable[..., tuple[Tensor, ...]], chain: Tensor, initial: Tensor | tuple[Tensor, ...], *weights: Tensor
) -> tuple[Tensor, ...]:
    """One forward-only layer by the functional form of nn.RNN, nn.GRU or nn.LSTM.

    The weights go in as views of one piece of memory, in the order in which cuDNN wants them there; torch would else
    copy them into one and warn of it.

    Args:
        function: one of `torch._VF`.
        chain: (S, B, D).
        initial: (1, B, H), contiguous; the LSTM's also of the cell.
        weights: of the input, of the hidden state, and their biases.
    """
    parts = torch.cat([weight.flatten() for weight in weights]).split([weight.numel() for weight in weights])
    flat = [part.view_as(weight) for part, weight in zip(parts, weights, strict=True)]
    return function(chain, initial, flat, True, 1, 0.0, torch.is_grad_enabled(), False, False)


def matrix_gradient(
    d_product: Float[Tensor, "K S B O"], previous: Float[Tensor, "K S B H"], dtype: torch.dtype
) -> Float[Tensor, "K O H"]:
    """Of U, from that of U h: one product over all frames, in `dtype`."""
    pairs = zip(d_product.to(dtype).flatten(1, 2), previous.to(dtype).flatten(1, 2), strict=True)
    return torch.stack([products.transposed_product(*pair) for pair in pairs]).to(previous.dtype)


def recurrent_weight(*, num_chains: int, num_gates: int, hidden_size: int, diagonal: bool) -> nn.Parameter:
    """Recurrent weights, orthogonal for each gate; a diagonal's are U(-0.5, 0.5), which keeps a unit from saturating.

    The diagonal paper's own code draws them Xavier-uniform, as wide as +-1.7 for a (1, H) vector of few units.
    """
    if diagonal:
        return nn.Parameter(torch.empty(num_chains, num_gates * hidden_size).uniform_(-0.5, 0.5))
    weight = torch.empty(num_chains, num_gates * hidden_size, hidden_size)
    for gate in weight.view(-1, hidden_size, hidden_size):
        nn.init.orthogonal_(gate)
    return nn.Parameter(weight)


def product_type(like: Tensor) -> torch.dtype:
    """What large products are computed in: autocast's type where it is on, else that of `like`."""
    device = like.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else like.dtype


def shifted(initial: Tensor, states: Tensor) -> Tensor:
    """States before each frame: (K, B, H), (K, S, B, H) -> (K, S, B, H)."""
    return torch.cat((initial[:, None], states[:, :-1]), dim=1)
