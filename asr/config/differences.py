"""Where two configurations differ, in the words that a message needs."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from asr.config.schema import Config


def differences(got: Config, expected: Config, keys: Iterable[str]) -> list[str]:
    """What differs, as `KEY: got A, expected B` each.

    Args:
        got: one of them.
        expected: the other.
        keys: sections or single settings, `stack` or `data.sample_rate_hz`; others may differ.
    """
    ours, theirs = dict(_flat(got.model_dump())), dict(_flat(expected.model_dump()))
    wanted = tuple(keys)
    return [
        f"{key}: got {ours.get(key, 'nothing')}, expected {theirs.get(key, 'nothing')}"
        for key in {**ours, **theirs}
        if ours.get(key) != theirs.get(key) and any(key == one or key.startswith(f"{one}.") for one in wanted)
    ]


def _flat(values: Mapping[str, Any], above: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{above}{name}.")
        else:
            yield f"{above}{name}", value
