"""The JSON schema of a recipe's config.yaml, for completion and checks in editors: `python -m asr.config.json_schema`.

Editors find it by a recipe's `# yaml-language-server: $schema=` line.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from typing import Any

from asr.config.options import names, stack_config_class
from asr.config.presets import conf_folder
from asr.config.schema import Config

DIALECT = "https://json-schema.org/draft/2020-12/schema"


def json_schema() -> str:
    """Give the schema of `Config`, with each stack's options and Hydra's `defaults` list, as JSON."""
    root: dict[str, Any] = {"$schema": DIALECT, **Config.model_json_schema(), "title": "asr configuration"}
    definitions: dict[str, Any] = root["$defs"]
    properties: dict[str, Any] = root["properties"]
    for section in properties.values():
        if "$ref" in section:
            section.pop("default", None)  # the section's own properties state theirs
    properties["stack"] = {"anyOf": [{"$ref": f"#/$defs/stack_{name}"} for name in names()]}
    properties["defaults"] = {"type": "array", "description": "presets, by Hydra's rules"}
    for name in names():
        options = stack_config_class(name).model_json_schema()
        options["properties"]["name"] |= {"const": name}
        definitions |= {**options.pop("$defs", {}), f"stack_{name}": options | {"title": f"stack={name}"}}
    definitions.pop("StackOptions", None)
    for definition in definitions.values():
        definition.pop("required", None)  # a recipe's file states a part, presets the rest
    return json.dumps(root, indent=1) + "\n"


def main(argv: Sequence[str]) -> int:
    """Write conf/schema.json, or, with --check, give exit status 1 if it is not what would be written."""
    path = conf_folder() / "schema.json"
    if "--check" not in argv:
        path.write_text(json_schema(), encoding="utf-8")
    elif path.read_text(encoding="utf-8") != json_schema():
        print(f"{path}: not current; `python -m asr.config.json_schema` writes it anew")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
