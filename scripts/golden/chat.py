"""Golden texts and masks of conversations: templates by name, tools and other keys, line ends, an assistant that speaks first.

Writes fixtures/chat.json with what transformers renders (jinja2) and marks. Needs no torch.
"""

import importlib.metadata as md
import json
import sys
from pathlib import Path

from transformers import AutoTokenizer
from transformers.utils import chat_template_utils

ROOT = Path(__file__).resolve().parents[2]
NAMED = ROOT / "crates" / "frugal-core" / "assets" / "templates"
BYTE_LEVEL = ROOT / "fixtures" / "tokenizers" / "byte-level"


def turn(role, content, **other):
    return {"role": role, "content": content, **other}


CONVERSATIONS = [
    [turn("user", "Hi")],
    [turn("user", "Hi"), turn("assistant", "Hello!")],
    [turn("system", "Be terse."), turn("user", " 2+2? "), turn("assistant", " 4 "), turn("user", "3+3?")],
    [turn("system", "Be terse."), turn("user", "2+2?"), turn("assistant", "4"), turn("user", "3+3?"), turn("assistant", "6\n")],
    [turn("assistant", "Welcome."), turn("user", "naïve 🦀"), turn("assistant", "café")],
    [turn("user", "a"), turn("system", "late")],
]

TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "weather",
            "description": "Tells the <weather> & more.",
            "parameters": {"type": "object", "properties": {"city": {"type": "string", "default": None}}, "required": ["city"]},
        },
    }
]
CALL = {"type": "function", "function": {"name": "weather", "arguments": {"city": "Wien", "days": 2, "exact": True, "x": 1.5}}}
WITH_TOOLS = """{%- if tools %}
{{- '<tools>\n' }}
{%- for tool in tools %}
{{- tool | tojson + '\n' }}
{%- endfor %}
{{- '</tools>\n' }}
{%- endif %}
{%- for m in messages %}
{{- '<|im_start|>' + m.role + ((' ' + m.name) if m.name else '') + '\n' }}
{%- if m.reasoning_content %}{{ '<think>' + m.reasoning_content + '</think>' }}{% endif %}
{%- if m.content is none %}{{ 'nothing said' }}{% elif m.content %}{{ m.content }}{% endif %}
{%- for call in m.tool_calls %}
{{- '<call>' ~ call.function.name ~ ' ' ~ (call.function.arguments | tojson) ~ ' ' ~ call.function.arguments.exact ~ '</call>' }}
{%- endfor %}
{{- '<|im_end|>\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}
{%- if enable_thinking is defined and enable_thinking is false %}{{ '<think></think>' }}{% endif %}
"""
RECORDS = [
    {"messages": [turn("user", "w?"), turn("assistant", None, tool_calls=[CALL]), turn("tool", "sun"), turn("assistant", "It is sunny.")], "tools": TOOLS},
    {"messages": [turn("user", "w?"), turn("assistant", "", tool_calls=[CALL, CALL])]},
    {"messages": [turn("user", "w?", name="Ann"), turn("assistant", "x", reasoning_content="why\nnot")]},
    {"messages": [turn("user", "w?"), turn("assistant", "x")], "chat_template_kwargs": {"enable_thinking": False}},
]
# Line ends in every place that jinja2 looks at them: text, tags, texts in tags, the end.
LINES = [
    "a\r\n{% for m in messages %}\r\n{{ m.content }}\r\n{% endfor %}\r\nend\r\n",
    "{{ 'x\r\ny' }}\r{% if true %}\r b{% endif %}\n\r\n",
    "{{- messages[0].content }}\r\n\r\n   {%- if true %} c {%- endif %}\r",
]


def render(template, record, prompt=False):
    try:
        rendered, _ = chat_template_utils.render_jinja_template(
            conversations=[record["messages"]],
            tools=record.get("tools"),
            chat_template=template,
            add_generation_prompt=prompt,
            bos_token="<s>",
            eos_token="</s>",
            **record.get("chat_template_kwargs", {}),
        )
        return {"rendered": rendered[0]}
    except Exception as e:  # whatever raise_exception raises
        return {"error": str(e)}


def named():
    for path in sorted(NAMED.glob("*.jinja")):
        template = path.read_text(encoding="utf-8")
        cases = [
            {"messages": messages, "add_generation_prompt": prompt} | render(template, {"messages": messages}, prompt)
            for messages in CONVERSATIONS
            for prompt in (False, True)
        ]
        yield {"name": path.stem, "cases": cases}


def marked(tokenizer, messages, **record):
    out = tokenizer.apply_chat_template(messages, return_assistant_tokens_mask=True, return_dict=True)
    return {"record": record or {"messages": messages}, "ids": out["input_ids"], "trained": out["assistant_masks"]}


def main():
    tokenizer = AutoTokenizer.from_pretrained(BYTE_LEVEL)
    first = [
        [turn("assistant", "the film")],
        [turn("assistant", "is good"), turn("user", "why"), turn("assistant", "fun")],
        [turn("assistant", ""), turn("user", "why"), turn("assistant", "fun\n")],
        [turn("system", "s"), turn("assistant", "assistant"), turn("user", "assistant"), turn("assistant", "x")],
    ]
    asked = [
        marked(tokenizer, [turn("user", "the film"), turn("assistant", "is good")], prompt="the film", completion="is good"),
        marked(tokenizer, [turn("user", "do it"), turn("assistant", "done")], instruction="do it", output="done"),
        marked(tokenizer, [turn("user", "do it\n\nthe film"), turn("assistant", "done")], instruction="do it", input="the film", output="done"),
        marked(
            tokenizer,
            [turn("system", "s"), turn("user", "a"), turn("assistant", "b"), turn("user", "do it"), turn("assistant", "done")],
            instruction="do it",
            output="done",
            system="s",
            history=[["a", "b"]],
        ),
    ]
    versions = {n: md.version(n) for n in ("transformers", "tokenizers", "jinja2")} | {"python": sys.version.split()[0]}
    golden = {
        "generator": "scripts/golden/chat.py",
        "versions": versions,
        "named": list(named()),
        "with_tools": {"template": WITH_TOOLS, "cases": [{"record": r} | render(WITH_TOOLS, r) for r in RECORDS]},
        "line_ends": [{"template": t} | render(t, {"messages": CONVERSATIONS[1]}) for t in LINES],
        "assistant_first": [marked(tokenizer, messages) for messages in first],
        "asked": asked,
    }
    path = ROOT / "fixtures" / "chat.json"
    path.write_text(json.dumps(golden, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    print({key: len(value) for key, value in golden.items()})


if __name__ == "__main__":
    main()
