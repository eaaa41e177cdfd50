"""Golden texts of the filter `tojson` with its options, as transformers renders chat templates.

Writes fixtures/tojson.json: templates with what they render to, null where Python refuses them. Needs no torch.
"""

import importlib.metadata as md
import json
from pathlib import Path

from transformers.utils import chat_template_utils

ROOT = Path(__file__).resolve().parents[2]
VALUE = """{'b': [1, 2.5, true, none, -3], 'a': {'é<&': 'x\\'"\\\\\\n\\t 🦀', 'e': [], 'o': {}}}"""
CALLS = [
    "tojson",
    "tojson()",
    "tojson(ensure_ascii=True)",
    "tojson(true)",
    "tojson(2)",
    "tojson(false, 2)",
    "tojson(false, none, (',', ':'))",
    "tojson(false, none, none, true)",
    "tojson(indent=2)",
    "tojson(indent=0)",
    "tojson(indent=-1)",
    "tojson(indent=true)",
    "tojson(indent='--')",
    "tojson(indent=none)",
    "tojson(separators=(',', ':'))",
    "tojson(separators=[' , ', ' => '])",
    "tojson(separators=(',', ':'), indent=1)",
    "tojson(sort_keys=True)",
    "tojson(sort_keys=True, indent=4, ensure_ascii=True)",
    "tojson(indent=1.5)",
    "tojson(separators=',')",
    "tojson(separators=(',',))",
    "tojson(separators=(',', 1))",
    "tojson(false, indent=2, ensure_ascii=true)",
    "tojson(none, none, none, none, none)",
    "tojson(default=1)",
]
VALUES = [
    "1e20", "1e16", "1e15", "123456789012345680.0", "1e-4", "1e-5", "1.5e-7", "-0.0", "0.1", "100.0", "12345678901234567890", "true", "none", "'a'",
    "[[], [[]], {}]", "(1, 2)", "{1: 2, none: 4, 2.5: 5}", "missing", "[missing]", "messages", "messages[0].content", "'\\u007f\\u2028é'",
]


def main():
    templates = ["{{ %s|%s }}" % (VALUE, call) for call in CALLS]
    templates += ["{{ %s|%s }}" % (value, call) for value in VALUES for call in ("tojson", "tojson(true, sort_keys=value)")]
    templates += ["{{ {3: 1, 2: 2, 10: 3}|tojson(sort_keys=true) }}", "{{ {'a': 1, 2: 2}|tojson(sort_keys=true) }}"]
    messages = [{"role": "user", "content": "</s> \x00\x1f\x7f \u00a0 𝄞"}]
    cases = []
    for template in templates:
        try:
            rendered = chat_template_utils._compile_jinja_template(template).render(messages=messages)
        except (TypeError, ValueError):
            rendered = None
        cases.append({"template": template, "rendered": rendered})
    versions = {name: md.version(name) for name in ("transformers", "jinja2")}
    golden = {"generator": "scripts/golden/tojson.py", "versions": versions, "messages": messages, "cases": cases}
    (ROOT / "fixtures" / "tojson.json").write_text(json.dumps(golden, indent=1) + "\n")


main()
