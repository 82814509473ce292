"""What Lightning trains: one batch in, CTC loss for each target token of the global batch out."""

from __future__ import annotations

from typing import Any

import lightning
import torch
from torch import Tensor

from asr.config.schema import Optim
from asr.decode.greedy import greedy
from asr.heads.ctc import ctc_loss
from asr.metrics.error_rates import Edits, character_edits, word_edits
from asr.model import SpeechModel
from asr.nn.cells.rnn import set_vanishing_regularizer
from asr.nn.distributed import sum_over_ranks, world_size
from asr.text.tokenizer import Tokenizer
from asr.train.average import WeightAverage
from asr.train.guard import StepGuard
from asr.train.measures import Measures
from asr.train.out_of_memory import is_out_of_memory, say_short_in_validation
from asr.train.schedule import learning_rate
from asr.types import Batch


class CtcTask(lightning.LightningModule):
    """Trains a `SpeechModel` with CTC.

    The loss is summed over the batch and divided by the target tokens of the global batch, so its gradient does not
    depend on how many ranks share that batch.

    Args:
        model: the acoustic model.
        tokenizer: for validation's texts.
        optim: optimiser and schedule.
        seed: of the run; dropout draws from (seed, step, rank) alone.
        steps_per_epoch, total_steps: for the schedule.
        pieces: batches that make up a step on each rank, one after another.
    """

    def __init__(
        self,
        model: SpeechModel,
        tokenizer: Tokenizer,
        optim: Optim,
        *,
        seed: int,
        steps_per_epoch: int,
        total_steps: int,
        pieces: int = 1,
    ) -> None:
        super().__init__()
        self.model = model
        self.tokenizer = tokenizer
        self.optim = optim
        self.seed = seed
        self.steps_per_epoch, self.total_steps = steps_per_epoch, total_steps
        self.pieces = pieces
        # Each piece's backward pass adds its own.
        set_vanishing_regularizer(model, optim.vanishing_regularizer / pieces)
        self.average = WeightAverage(model, optim.ema_decay) if optim.ema_decay else None
        self.guard = StepGuard(model)
        self.measures: Measures | None = None  # where somebody wants to know
        self.edits = [Edits(), Edits()]  # of the running validation: words, characters
        self.losses: Tensor = torch.zeros(0)  # (B,) of the last training step, by utterance
        self.may_skip = False  # batches that run out of memory: only where somebody names them
        self.leave_out = False  # this batch: memory did not suffice for it before

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """The optimiser, with all the memory that it and the average of weights will ever take.

        Left to itself torch allocates momenta in the first step, after a batch has shown that there is room without.
        """
        if self.average is not None:
            self.average.to(self.device)
        decayed = [p for p in self.model.parameters() if p.dim() > 1]
        others = [p for p in self.model.parameters() if p.dim() <= 1]  # biases and norms are not decayed
        groups: list[dict[str, Any]] = [
            {"params": decayed, "weight_decay": self.optim.weight_decay},
            {"params": others, "weight_decay": 0.0},
        ]
        if self.optim.name == "sgd":
            momentum = self.optim.momentum
            optimizer = torch.optim.SGD(
                groups, lr=self.optim.learning_rate, momentum=momentum, nesterov=momentum > 0, fused=True
            )
            # The fused one would leave the momenta of a first step that the guard refuses as the memory had them.
            for parameter in self.model.parameters() if momentum else ():
                optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
            return optimizer
        optimizer = torch.optim.AdamW(groups, lr=self.optim.learning_rate, betas=self.optim.betas, fused=True)
        for parameter in self.model.parameters():
            step = torch.zeros((), dtype=torch.float32, device=parameter.device)
            moments = {name: torch.zeros_like(parameter) for name in ("exp_avg", "exp_avg_sq")}
            optimizer.state[parameter] = {"step": step, **moments}
        return optimizer

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        # The step's randomness and learning rate are functions of its number: nothing to save, nothing to restore.
        part = batch_idx % self.pieces + self.pieces * self.global_rank  # of the global batch
        torch.manual_seed(hash((self.seed, self.global_step, part)) & (2**63 - 1))
        rate = learning_rate(
            self.optim, step=self.global_step, steps_per_epoch=self.steps_per_epoch, total_steps=self.total_steps
        )
        for group in self.optimizers(use_pl_optimizer=False).param_groups:  # type: ignore[union-attr]
            group["lr"] = rate
        self.model.stack.set_epoch(self.global_step // self.steps_per_epoch)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        if batch_idx % self.pieces == 0:
            self.guard.begin()
        if self.leave_out or self.guard.abandoned:
            return self._abandon(batch)
        try:
            return self._loss(batch)
        except (RuntimeError, MemoryError) as error:
            if not (self.may_skip and is_out_of_memory(error)):
                raise
        return self._abandon(batch)  # here, where the error no longer holds what it was raised among

    def _abandon(self, batch: Batch) -> Tensor:
        """Have the guard refuse this step; gives a loss that nothing depends on."""
        self.guard.abandoned = True
        self.losses = torch.full(batch.target_lengths.shape, torch.nan, device=self.device)
        return torch.full((), torch.nan, device=self.device, requires_grad=True)

    def backward(self, loss: Tensor, *args: Any, **kwargs: Any) -> None:
        try:
            super().backward(loss, *args, **kwargs)
        except (RuntimeError, MemoryError) as error:
            if not (self.may_skip and is_out_of_memory(error)):
                raise
            self.guard.abandoned = True
            self.losses = torch.full_like(self.losses, torch.nan)  # as where a resumed run leaves it out

    def _loss(self, batch: Batch) -> Tensor:
        """CTC loss of this rank's share, as its part of the global batch's mean."""
        log_probs, lengths = self.model(batch.audio, batch.audio_lengths, batch.seeds)
        losses = ctc_loss(log_probs, lengths, batch.targets, batch.target_lengths)
        self.losses = losses.detach()
        if self.measures is not None:
            self.measures.add(log_probs, lengths, losses, batch.audio_lengths, batch.target_lengths)
        total = losses.masked_fill(lengths == 0, 0.0).sum()  # an item of no frames is a stand-in
        # DDP takes the mean over ranks, and Lightning over a step's pieces.
        return total * (world_size() * self.pieces / batch.step_tokens)

    def configure_gradient_clipping(self, optimizer: Any, *args: Any, **kwargs: Any) -> None:
        # Lightning's own refuses fused optimisers; ours needs no unscaling, as bf16 needs no loss scale.
        gradients = [p.grad for p in self.model.parameters() if p.grad is not None]
        norm = torch.nn.utils.get_total_norm(gradients)
        if self.guard.abandoned:
            norm = torch.full((), torch.nan, device=self.device)  # what is there of a gradient is not the step's
        if self.optim.gradient_clip:
            torch.nn.utils.clip_grads_with_norm_(self.model.parameters(), self.optim.gradient_clip, norm)
        if self.measures is not None:
            self.measures.add_gradient_norm(norm)
        self.guard.end(optimizer, norm)

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        super().optimizer_step(*args, **kwargs)
        # Here and not at the batch's end, where callbacks come first: a checkpoint must hold both or neither.
        if self.average is not None:
            self.average.update(self.model, self.global_step)

    def on_validation_epoch_start(self) -> None:
        if self.average is not None:
            self.average.swap(self.model)
        self.edits = [Edits(), Edits()]

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        for text, hypothesis in zip(batch.texts, self._recognise(batch), strict=False):  # a stand-in has no text
            reference = self.tokenizer.normalize(text)
            self.edits[0] += word_edits(reference, hypothesis)
            self.edits[1] += character_edits(reference, hypothesis)

    def _recognise(self, batch: Batch) -> list[str]:
        """What the model hears; each half of the batch by itself where memory does not suffice for it at once."""
        try:
            log_probs, lengths = self.model(batch.audio, batch.audio_lengths)
            return [self.tokenizer.decode(path.ids) for path in greedy(log_probs, lengths)]
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
        # Here, where the error no longer holds what it was raised among. Ranks do this each for itself: a validation's
        # forward pass sums nothing over them.
        say_short_in_validation(batch)
        if len(batch.ids) < 2:
            return [""]
        middle = len(batch.ids) // 2
        return [*self._recognise(batch.part(slice(middle))), *self._recognise(batch.part(slice(middle, None)))]

    def leave_validation(self) -> None:
        """Have the training's own weights in the model again."""
        if self.average is not None:
            self.average.swap(self.model)

    def on_validation_epoch_end(self) -> None:
        self.leave_validation()
        for name, edits in zip(("wer", "cer"), self.edits, strict=True):
            counts = torch.tensor([edits.total, edits.reference_length], device=self.device, dtype=torch.float64)
            total, length = sum_over_ranks(counts).tolist()
            rate = total / length if length else float("nan")  # of nothing: never the best
            self.log(f"validation/{name}", rate, rank_zero_only=False)

    def transfer_batch_to_device(self, batch: Batch, device: torch.device, dataloader_idx: int) -> Batch:
        return batch.to(device)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        if self.average is not None:
            checkpoint["average"] = self.average.tensors

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        if self.average is not None:
            self.average.tensors = checkpoint["average"]
