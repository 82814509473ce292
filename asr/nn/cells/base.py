"""What every cell is to a recurrent layer, and how a past hidden state enters its gates by a full matrix."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from types import ModuleType

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

HOLD = 1000.0  # what a mark adds to a gate, eight times: its sigmoid is exactly 0 or 1
MARKS = 8  # marks that a frame has, all alike: cuDNN's fast products want whole eighths of features
CUDNN_WITH_BF16 = 91300  # the first version whose recurrences take bf16


class Cell(nn.Module, ABC):
    """K independent chains (directions) of one recurrence, each with its own recurrent weights.

    Args:
        hidden_size: units H.
        num_chains: K.

    Attributes:
        num_gates: G; a frame's input is projected to G * H features.
        num_states: what a chain carries is num_states * H numbers, the hidden state first.
        hold: for each gate 1, -1 or 0: what has to be open, shut, or may be anything for a state of 0 to stay 0; none
            if no gate can do that.
    """

    num_gates: int
    num_states: int = 1
    hold: tuple[int, ...] = ()

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
    ) -> tuple[Float[Tensor, "K S B H"], Float[Tensor, "K B N"]]:
        """Project each chain's inputs and run the recurrence over at least one frame.

        Args:
            chains: K inputs, time first; on what stands after an item's end later frames alone depend.
            weight: of the projection, chain after chain, O = K * G * H.
            bias: likewise.
            initial: states before the first frame, N = num_states * H.

        Returns:
            Hidden states, and the states after the last frame.
        """
        if self.on_cudnn(chains[0].device):
            results = [self._on_cudnn(chain, weight, bias, initial, (k,)) for k, chain in enumerate(chains)]
            return torch.stack([out for out, _ in results]), torch.cat([final for _, final in results])
        weights, biases = weight.chunk(self.num_chains), bias.chunk(self.num_chains)
        projected = [F.linear(chain, weights[k], biases[k]) for k, chain in enumerate(chains)]
        return self.recur(projected, initial)

    @abstractmethod
    def recur(
        self, projected: Sequence[Float[Tensor, "S B G"]], initial: Float[Tensor, "K B N"]
    ) -> tuple[Float[Tensor, "K S B H"], Float[Tensor, "K B N"]]:
        """Run the time loop over projected inputs."""

    def on_cudnn(self, device: torch.device) -> bool:
        """Whether these equations run on cuDNN there."""
        return False

    def both_directions(
        self,
        inputs: Float[Tensor, "S B D"],
        padding: Bool[Tensor, "S B"],
        weight: Float[Tensor, "O D"],
        bias: Float[Tensor, "O"],
        initial: Float[Tensor, "2 B N"],
    ) -> Float[Tensor, "S B E"]:
        """Run chain 0 from the start and chain 1 from the end, in one call of cuDNN, which runs them side by side.

        cuDNN reads a padded batch from the end of its padding, and would only be told of lengths that are on the CPU,
        for which a step would have to wait. So each frame of padding carries marks that set the gates of `hold`: the
        backward state is still exactly 0 where an item's last frame comes.

        Args:
            inputs: time first.
            padding: True where an item is over.
            weight: as for `forward`.
            bias: likewise.
            initial: likewise.

        Returns:
            Hidden states of both, the forward ones first, E = 2 * H; beyond an item's end they are unspecified.
        """
        kind = cudnn_type(weight)
        inputs = torch.cat((inputs.to(kind), padding[..., None].to(kind).expand(-1, -1, MARKS)), -1)
        marks = weight.new_zeros(2, self.num_gates, self.hidden_size, MARKS)
        for gate, sign in enumerate(self.hold):
            marks[:, gate] = sign * HOLD
        return self._on_cudnn(inputs, torch.cat((weight, marks.flatten(0, 2)), 1), bias, initial, (0, 1))[0]

    def _on_cudnn(
        self, inputs: Tensor, weight: Tensor, bias: Tensor, initial: Tensor, chains: Sequence[int]
    ) -> tuple[Tensor, Tensor]:
        """Run these chains, one or both directions, projection included: (S, B, K * H) and (K, B, N)."""
        kind = cudnn_type(weight)
        rows, shifts = weight.chunk(self.num_chains), bias.chunk(self.num_chains)
        weights = [w for k in chains for w in self.cudnn_weights(rows[k], shifts[k], k)]
        weights = _in_one_piece([w.to(kind) for w in weights])
        first = initial[chains[0] : chains[-1] + 1]
        # Autocast would compute in float16 whatever its type is, in which the gradients of a large batch vanish.
        with torch.autocast(inputs.device.type, enabled=False):
            out, final = self.cudnn(inputs.to(kind), first.to(kind), weights, len(chains) == 2)
        return out, final.to(initial.dtype)

    def cudnn_weights(self, weight: Tensor, bias: Tensor, k: int) -> tuple[Tensor, ...]:
        """Chain k's, as cuDNN takes them: of the input, of the state, and a bias of each."""
        raise NotImplementedError

    def cudnn(
        self, inputs: Tensor, initial: Tensor, weights: list[Tensor], bidirectional: bool
    ) -> tuple[Tensor, Tensor]:
        """Run cuDNN: (S, B, K * H) and (K, B, N)."""
        raise NotImplementedError


def _in_one_piece(weights: Sequence[Tensor]) -> list[Tensor]:
    """The same as views of one piece of memory, matrices first: what torch would else copy them to, with a warning."""
    order = sorted(range(len(weights)), key=lambda i: weights[i].dim() == 1)
    parts = torch.cat([weights[i].flatten() for i in order]).split([weights[i].numel() for i in order])
    views = {i: part.view_as(weights[i]) for i, part in zip(order, parts, strict=True)}
    return [views[i] for i in range(len(weights))]


class FullLink:
    """U h, every unit to every gate. `weight` is (K, O, H)."""

    def __init__(self, weight: Tensor) -> None:
        self.weight = weight
        self.transposed = weight.mT  # a view: to copy it costs more than many frames of a stream

    def add_product(self, gates: Tensor, hidden: Tensor) -> None:
        """Gates (K, B, O) += U h, h (K, B, H)."""
        gates.baddbmm_(hidden, self.transposed)

    def add_carry(self, d_hidden: Tensor, d_gates: Tensor) -> None:
        """What flows back through U h: d_hidden (K, B, H) += U^T d_gates (K, B, O)."""
        d_hidden.baddbmm_(d_gates, self.weight)

    @staticmethod
    def gradient(d_gates: Tensor, previous: Tensor, dtype: torch.dtype) -> Tensor:
        """(K, S, B, O), (K, S, B, H) -> (K, O, H): one product over all frames, in `dtype`."""
        d_gates, previous = d_gates.flatten(1, 2), previous.flatten(1, 2)
        return (d_gates.to(dtype).mT @ previous.to(dtype)).to(previous.dtype)


def gpu_loops(like: Tensor) -> ModuleType | None:
    """Time loops for a GPU, for the cells that cuDNN lacks; None: torch's operations, frame by frame, have to do."""
    if not like.is_cuda or like.dtype != torch.float32 or torch.compiler.is_compiling():
        return None
    try:
        from asr.nn.cells import _triton_full
    except ImportError:  # torch brings Triton along on Linux only
        return None
    return _triton_full


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


def cudnn_type(like: Tensor) -> torch.dtype:
    """What cuDNN's recurrences are computed in: as other products, but float32 if cuDNN is too old for bf16."""
    kind = product_type(like)
    old = (torch.backends.cudnn.version() or 0) < CUDNN_WITH_BF16
    return torch.float32 if kind == torch.bfloat16 and old else kind


def shifted(initial: Tensor, states: Tensor) -> Tensor:
    """States before each frame: (K, B, H), (K, S, B, H) -> (K, S, B, H)."""
    return torch.cat((initial[:, None], states[:, :-1]), dim=1)


def stacked(projected: Sequence[Tensor], like: Tensor) -> Tensor:
    """Projections of K chains (S, B, O) as one new (K, S, B, O) of `like`'s type, to be overwritten with gates."""
    gates = like.new_empty(len(projected), *projected[0].shape)
    for chain, values in zip(gates, projected, strict=True):
        chain.copy_(values)
    return gates
