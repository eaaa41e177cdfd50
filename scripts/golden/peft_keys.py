"""Keys of peft's configuration classes, by type.

Usage: python scripts/golden/peft_keys.py      writes fixtures/peft_keys.json
"""

import dataclasses
import json

from common import FIXTURES, versions
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING

keys = {kind.value: sorted(f.name for f in dataclasses.fields(cls)) for kind, cls in PEFT_TYPE_TO_CONFIG_MAPPING.items()}
table = {"generator": "scripts/golden/peft_keys.py", "versions": versions(), "keys": dict(sorted(keys.items()))}
(FIXTURES / "peft_keys.json").write_text(json.dumps(table, indent=1) + "\n")
