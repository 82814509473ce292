"""Begin with the weights of another model as far as they fit, and say what was loaded, what was not, and why."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from asr import checkpoint
from asr.config import Config, from_yaml
from asr.config.differences import differences
from asr.errors import ConfigError
from asr.heads.ctc import BLANK
from asr.model import SpeechModel
from asr.text.tokenizer import SPACE, Tokenizer
from asr.train.ranks import global_rank

KEY = "init_from"  # in provenance.json too
FEATURES = ("features", "data.sample_rate_hz")
_MAX_TOKENS = 40  # named in the report


def begin(config: Config, model: SpeechModel, tokenizer: Tokenizer, resume_from: Path | None) -> dict[str, Any]:
    """Load what `config.init_from` names, at the start of a training, on every rank alike; one of them reports.

    Args:
        config: the training's.
        model: initialised; its features' mean and standard deviation are those of the training data.
        tokenizer: the model's.
        resume_from: the checkpoint that the training goes on from: it has what was loaded then.

    Returns:
        What a checkpoint's provenance says of it; empty if the training began with nothing.

    Raises:
        CheckpointError: there is no sound checkpoint.
        ConfigError: nothing of it fits.
    """
    if resume_from is not None:
        before = json.loads((resume_from / checkpoint.PROVENANCE).read_text())
        return {KEY: before[KEY]} if KEY in before else {}
    if config.init_from is None:
        return {}
    folder = checkpoint.find(config.init_from)
    checkpoint.verify(folder, to_resume=False)
    source = Source(
        load_file(folder / checkpoint.WEIGHTS),
        from_yaml((folder / checkpoint.CONFIG).read_text(), source=str(folder / checkpoint.CONFIG)),
        checkpoint.read_tokenizer(folder),
    )
    lines = load_fitting(model, config, tokenizer, source)
    if lines is None:
        raise ConfigError(
            f"init_from={config.init_from}: nothing of that model fits; `asr check` prints this one's settings, "
            f"{folder / checkpoint.CONFIG} has the other's"
        )
    if not global_rank(config.trainer.devices):
        print(f"init_from: {folder}", *lines, sep="\n  ", flush=True)
    return {KEY: {"checkpoint": str(folder), "weights_sha256": checkpoint.read_sums(folder)[checkpoint.WEIGHTS]}}


@dataclass(frozen=True, slots=True)
class Source:
    """The other model: its weights, what it was built from, and its tokens."""

    weights: dict[str, Tensor]
    config: Config
    tokenizer: Tokenizer


def load_fitting(model: SpeechModel, config: Config, tokenizer: Tokenizer, source: Source) -> list[str] | None:
    """Copy the tensors that have the same name and shape, and the head's rows of tokens that both models have.

    The head's other rows, and all that does not fit, keep their values. The features' mean and standard deviation are
    the source's if the features are the same, since its front end was trained on them.

    Returns:
        A report, line by line; None if no parameter could be loaded.
    """
    matches = _matching_tokens(tokenizer, source.tokenizer)
    other_features = differences(source.config, config, FEATURES)
    loaded, skipped = _copy(model, source.weights, matches, with_features=not other_features)
    if not any(loaded.values()):
        return None
    state = model.state_dict()
    lines = [_describe_parts(loaded, dict(model.named_parameters()))]
    if any(name.startswith("features.") for name in state):
        lines.append(
            f"features: mean and standard deviation of this training's data: {'; '.join(other_features)}"
            if other_features
            else "features: mean and standard deviation of that model, as its front end was trained on them"
        )
    if loaded["head.linear.weight"]:
        lines += _describe_tokens(matches, tokenizer, source.tokenizer)
    lines += [f"not loaded: {what}" + (f" ({count:,} parameters)" if count else "") for what, count in skipped.items()]
    unused = dict.fromkeys(_outermost(name, state) for name in source.weights if name not in state)
    if unused:
        lines.append(f"without a place here: {', '.join(unused)}")
    stack = "stack" if source.config.stack.name == config.stack.name else "stack.name"
    if others := differences(source.config, config, ["front_end", stack]):
        lines.append(f"settings that differ: {'; '.join(others)}")
    return lines


@torch.no_grad()
def _copy(
    model: SpeechModel, weights: dict[str, Tensor], matches: list[tuple[int, int]], *, with_features: bool
) -> tuple[dict[str, int], dict[str, int]]:
    """Copy what fits; gives each parameter's loaded elements, and the parameters of what was not loaded and why."""
    ours, theirs = (list(ids) for ids in zip(*matches, strict=True))
    state = model.state_dict()
    parameters = {name: parameter.numel() for name, parameter in model.named_parameters()}
    loaded, skipped = dict.fromkeys(parameters, 0), dict[str, int]()
    inputs, expected_inputs = (tensors["head.linear.weight"].shape[1] for tensors in (weights, state))
    for name, tensor in state.items():
        part, other = name.split(".")[0], weights.get(name)
        if part == "features" and not with_features:
            continue
        if part == "head" and inputs == expected_inputs and other is not None:
            tensor[ours] = other[theirs]
            loaded[name] = len(matches) * tensor[0].numel()
            continue
        if other is None:
            what = f"{_outermost(name, weights)}: that model has none"
        elif part == "head":  # nor does its bias fit another weight
            what = f"head.linear: got {inputs} inputs, expected {expected_inputs}"
        elif other.shape != tensor.shape:
            what = f"{name}: got {tuple(other.shape)}, expected {tuple(tensor.shape)}"
        else:
            tensor.copy_(other)
            loaded |= {name: parameters[name]} if name in parameters else {}
            continue
        skipped[what] = skipped.get(what, 0) + parameters.get(name, 0)
    return loaded, skipped


def _matching_tokens(ours: Tokenizer, theirs: Tokenizer) -> list[tuple[int, int]]:
    """Ids of the tokens that two tokenizers share, blank with blank."""
    ids = {_text(theirs, token): token for token in range(1, theirs.num_tokens)}
    shared = [(token, ids.get(_text(ours, token))) for token in range(1, ours.num_tokens)]
    return [(BLANK, BLANK), *((token, other) for token, other in shared if other is not None)]


def _text(tokenizer: Tokenizer, token: int) -> str:
    return SPACE if tokenizer.is_space(token) else tokenizer.pieces[token]


def _describe_parts(loaded: dict[str, int], parameters: dict[str, nn.Parameter]) -> str:
    """Parameters loaded, of all and of each part."""

    def share(part: str) -> str:
        names = [name for name in parameters if name.startswith(part)]
        return f"{sum(loaded[name] for name in names):,} of {sum(parameters[name].numel() for name in names):,}"

    parts = dict.fromkeys(name.split(".")[0] for name in parameters)
    return f"loaded {share('')} parameters; " + ", ".join(f"{part}: {share(f'{part}.')}" for part in parts)


def _describe_tokens(matches: list[tuple[int, int]], ours: Tokenizer, theirs: Tokenizer) -> list[str]:
    lines = [f"head: {len(matches)} of {ours.num_tokens} tokens, blank included, by their text"]
    for what, tokenizer, known in (
        ("tokens that are new", ours, {token for token, _ in matches}),
        ("that model's tokens that are none here", theirs, {token for _, token in matches}),
    ):
        others = [_text(tokenizer, token) for token in range(tokenizer.num_tokens) if token not in known]
        if others:
            more = f" and {len(others) - _MAX_TOKENS} more" if len(others) > _MAX_TOKENS else ""
            lines.append(f"head: {what}: {' '.join(map(repr, others[:_MAX_TOKENS]))}{more}")
    return lines


def _outermost(name: str, others: Iterable[str]) -> str:
    """The outermost module around `name` of which `others` have no tensor."""
    parts = name.split(".")
    for length in range(1, len(parts)):
        module = ".".join(parts[:length])
        if not any(other.startswith(f"{module}.") for other in others):
            return module
    return name
