"""conf/schema.json, which editors read, is what the schema in Python says."""

import json

from asr.config import conf_folder
from asr.config.json_schema import json_schema, main
from asr.config.options import names


def test_the_file_is_current() -> None:
    assert (conf_folder() / "schema.json").read_text() == json_schema(), "run `make schema`"
    assert main(["--check"]) == 0


def test_every_stack_is_in_it() -> None:
    schema = json.loads(json_schema())
    assert [option["$ref"] for option in schema["properties"]["stack"]["anyOf"]] == [
        f"#/$defs/stack_{name}" for name in names()
    ]
    assert names()
    assert all(schema["$defs"][f"stack_{name}"]["additionalProperties"] is False for name in names())
