"""Write the shapes of the operators' kinds that deploy/kubernetes uses, from their CustomResourceDefinitions.

usage: .venv/bin/python scripts/custom_kinds.py CRD.yaml...

Of prometheus-operator 0.93.0: podmonitors and prometheusrules in example/prometheus-operator-crd; of KEDA's main branch
of 20 August 2026: scaledobjects in config/crd/bases. Types, values and names of fields only; a field that does not
exist is an error.
"""

import json
import sys
from pathlib import Path
from typing import Any

import yaml

TARGET = Path(__file__).parent.parent / "tests" / "deploy" / "custom_kinds.json"
_WORDS = {"type", "enum", "required", "pattern", "minimum", "maximum", "minLength", "minItems"}


def main() -> int:
    """Write the file."""
    shapes = {}
    for path in sys.argv[1:]:
        spec = yaml.safe_load(Path(path).read_text(encoding="utf-8"))["spec"]
        for version in spec["versions"]:
            fields = version["schema"]["openAPIV3Schema"]["properties"]
            whole = shape({"type": "object", "properties": {"spec": fields["spec"]}})
            whole["properties"] |= {name: {} for name in ("apiVersion", "kind", "metadata")}
            shapes[f"{spec['group']}/{version['name']} {spec['names']['kind']}"] = whole
    TARGET.write_text(json.dumps(shapes, separators=(",", ":"), sort_keys=True) + "\n", encoding="utf-8")
    return 0 if shapes else 2


def shape(schema: dict[str, Any]) -> dict[str, Any]:
    """Return a schema as JSON Schema without texts, closed to unknown fields."""
    made: dict[str, Any] = {word: schema[word] for word in _WORDS & schema.keys()}
    if "pattern" in made:
        made["pattern"] = made["pattern"].replace("^(?i)", "(?i)^")  # Go's place for the flag
    if schema.get("x-kubernetes-int-or-string"):
        made["type"] = ["integer", "string"]
    if "properties" in schema:
        made["properties"] = {name: shape(each) for name, each in schema["properties"].items()}
        made["additionalProperties"] = bool(schema.get("x-kubernetes-preserve-unknown-fields"))
    elif isinstance(values := schema.get("additionalProperties"), dict):
        made["additionalProperties"] = shape(values)
    if "items" in schema:
        made["items"] = shape(schema["items"])
    return made


if __name__ == "__main__":
    sys.exit(main())
