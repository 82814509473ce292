"""`asr doctor RECIPE [group=option] [section.key=value]`: what would go wrong, before it does."""

from __future__ import annotations

import argparse
import json
import runpy
from collections.abc import Iterator, Sequence
from pathlib import Path

from asr.config import Config, load
from asr.errors import AsrError, ConfigError
from asr.messages import STATUS_ERROR
from asr.train.checkpoints import newest_sound
from asr.train.doctor.report import Line, Verdict, worst
from asr.train.run import Prepare, prepare_once, require_model, require_splits, run_folder


def main(argv: Sequence[str]) -> int:
    """Examine what the arguments name; exit status 1 if something is in error."""
    parser = argparse.ArgumentParser(
        prog="asr doctor",
        description="Examine a training before it begins: configuration, data, device, memory, disk, time. "
        "Data that is not prepared yet is prepared, as training would do.",
    )
    parser.add_argument("recipe", type=Path, help="folder with config.yaml and train.py")
    parser.add_argument("overrides", nargs="*", help="group=option or section.key=value, as for the recipe's train.py")
    parser.add_argument("--json", action="store_true", help="one JSON object in place of lines")
    parser.add_argument("--all-audio", action="store_true", help="decode every utterance, not a thousand of each split")
    options = parser.parse_intermixed_args(argv)
    lines = []
    for line in examine(options.recipe, options.overrides, all_audio=options.all_audio):
        lines.append(line)
        if not options.json:
            print(line, flush=True)
    verdict = worst(lines)
    counts = ", ".join(f"{sum(line.verdict is one for line in lines)} {one}" for one in Verdict)
    if options.json:
        print(json.dumps({"verdict": verdict.value, "lines": [line.to_json() for line in lines]}, ensure_ascii=False))
    else:
        print(f"{options.recipe}: {counts}")
    return STATUS_ERROR if verdict is Verdict.ERROR else 0


def examine(recipe: Path, overrides: Sequence[str], *, all_audio: bool = False) -> Iterator[Line]:
    """One line after the other, as each check ends; stops where the next checks have nothing to look at."""
    try:
        config = load(recipe, overrides)
        require_splits(config)
        prepare = _prepare(recipe)
        run = run_folder(config)
        require_model(config, run)
    except ConfigError as error:
        yield Line(
            "config", Verdict.ERROR, str(error), "mend what is named; `asr check` prints the whole configuration"
        )
        return
    yield Line("config", Verdict.OK, f"{recipe} {' '.join(overrides)}".rstrip())
    try:
        yield from _examine(config, prepare, run, all_audio=all_audio)
    except AsrError as error:
        fix = "what the message names; the checks after it need that first"
        yield Line("config" if isinstance(error, ConfigError) else "data", Verdict.ERROR, str(error), fix)


def _prepare(recipe: Path) -> Prepare:
    """The recipe's own way to its data, which its train.py gives to training too."""
    script = recipe / "train.py"
    if not script.is_file():
        raise ConfigError(f"{script}: no such file; expected a recipe's train.py, which imports `prepare`")
    prepare: Prepare | None = runpy.run_path(str(script), run_name="recipe").get("prepare")
    if prepare is None:
        raise ConfigError(f"{script}: has no `prepare`, expected a recipe that trains on speech")
    return prepare


def _examine(config: Config, prepare: Prepare, run: Path, *, all_audio: bool) -> Iterator[Line]:
    folders = prepare_once(config, prepare)

    import torch  # and Lightning: seconds, and needed from here on

    from asr import model
    from asr.data.corpus import Corpus
    from asr.train import parts
    from asr.train.doctor.all_reduce import check_all_reduce
    from asr.train.doctor.copies import check_duplicates, check_leaks
    from asr.train.doctor.data import (
        check_audio,
        check_characters,
        check_rare_characters,
        check_rates,
        check_utterances,
        held_out_of,
        open_shards,
    )
    from asr.train.doctor.device import check_batches, check_device, check_steps
    from asr.train.doctor.disk import check_disk

    readers, shards = open_shards(config, folders)
    yield shards
    if shards.verdict is Verdict.ERROR:
        return
    yield check_audio(readers, every=all_audio)
    rates = check_rates(config, readers)
    yield rates

    train_readers = {name: readers[name] for name in config.data.train}
    train = Corpus([readers[name] for name in config.data.train], config.data.sample_rate_hz)
    validation = Corpus([readers[name] for name in config.data.validation], config.data.sample_rate_hz)
    torch.manual_seed(config.seed)
    tokenizer = parts.make_tokenizer(config, train, newest_sound(run, quiet=True) if config.resume else None)
    speech_model = model.build(config, tokenizer.num_tokens)
    yield check_characters(tokenizer, readers)
    yield check_rare_characters(tokenizer, train_readers)
    yield check_utterances(config, train, tokenizer, speech_model)
    yield check_duplicates(train.readers)
    yield check_leaks(train.readers, list(held_out_of(config, readers).values()), every=True)
    yield check_disk(config, run, sum(parameter.numel() for parameter in speech_model.parameters()))

    device = check_device(config)
    yield device
    if device.verdict is Verdict.ERROR or rates.verdict is Verdict.ERROR:
        return
    on_gpu = parts.on_gpu(config)
    yield check_all_reduce(config, on_gpu=on_gpu)
    batches = check_batches(config, train, validation, tokenizer)
    yield batches
    if batches.verdict is Verdict.OK:
        yield from check_steps(config, train, validation, tokenizer, speech_model, on_gpu=on_gpu)
