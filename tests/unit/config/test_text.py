"""The configuration as text: what a checkpoint holds comes back, and what is not understood is refused."""

import pytest

from asr.config import Config, from_yaml, to_yaml
from asr.errors import ConfigError


def test_the_defaults_come_back() -> None:
    assert from_yaml(to_yaml(Config()), "text") == Config()


def test_keys_of_another_version_are_refused_with_the_source() -> None:
    text = to_yaml(Config()).replace("max_epochs:", "max_epoch:")
    with pytest.raises(ConfigError, match=r"from model/config\.yaml\n.*trainer\.max_epoch: no such key; did you mean"):
        from_yaml(text, "model/config.yaml")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: [1,\n", r"^config\.yaml:2: "),
        ("a: !!python/object/apply:os.system [true]\n", r"^config\.yaml:1: could not determine a constructor"),
        ("a: \x07\n", r"^config\.yaml: .*not allowed"),
        ("", "got None, expected a mapping"),
        ("- 1\n", r"got \[1\], expected a mapping"),
    ],
)
def test_what_is_no_configuration(text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        from_yaml(text, "config.yaml")
