"""What differs between two configurations, and that only what was asked for is named."""

from asr.config import Config
from asr.config.differences import differences

GRU = Config.model_validate({"stack": {"name": "gru", "hidden_size": 4}, "seed": 1})


def test_names_key_and_both_values() -> None:
    other = Config.model_validate({"stack": {"name": "gru", "hidden_size": 5}, "seed": 2, "data": {"num_workers": 3}})
    assert differences(other, GRU, ["stack", "features"]) == ["stack.hidden_size: got 5, expected 4"]
    assert differences(other, GRU, ["seed"]) == ["seed: got 2, expected 1"]
    assert differences(other, GRU, ["data.sample_rate_hz", "stack.name", "se"]) == []


def test_settings_that_only_one_has() -> None:
    other = Config.model_validate({"stack": {"name": "tcn"}})
    found = differences(other, GRU, ["stack"])
    assert "stack.name: got tcn, expected gru" in found
    assert "stack.bidirectional: got nothing, expected True" in found
