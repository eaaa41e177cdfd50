"""Golden files for what happens to text before it meets a model: chat templates and tokenizers.

Writes fixtures/templates/NAME.json (one per scripts/golden/templates/NAME.jinja, rendered by transformers with jinja2) and
fixtures/tokenizers/NAME/ (small tokenizers as AutoTokenizer saves them, with golden.json). Needs no torch.
"""

import datetime
import importlib.metadata as md
import json
import shutil
import sys
from pathlib import Path

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerFast
from transformers.utils import chat_template_utils

ROOT = Path(__file__).resolve().parents[2]
TEMPLATES = Path(__file__).resolve().parent / "templates"
FIXTURES = ROOT / "fixtures"
# 2024-07-26 09:05:03 UTC, a Friday.
CLOCK = 1721984703


class FixedClock(datetime.datetime):
    @classmethod
    def now(cls, tz=None):
        return cls.fromtimestamp(CLOCK, datetime.timezone.utc)


def header(**extra):
    names = ("transformers", "tokenizers", "jinja2")
    versions = {n: md.version(n) for n in names} | {"python": sys.version.split()[0]}
    return {"generator": "scripts/golden/text.py", "versions": versions, **extra}


def write_json(path, value):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def turns(*contents, system=None, roles=("user", "assistant")):
    messages = [{"role": "system", "content": system}] if system is not None else []
    return messages + [{"role": roles[i % 2], "content": c} for i, c in enumerate(contents)]


CONVERSATIONS = [
    turns("Hi"),
    turns("Hi", "Hello! How can I help?"),
    turns("What is 2+2?", "4", "And 3+3?", system="You are terse."),
    turns("What is 2+2?", "4", "And 3+3?", "6", system="  You are terse.\n"),
    turns("  leading and trailing \n", "\n\n a \"quoted\" <b>&amp;</b> 'answer' \\n \n"),
    turns("Ünïcödé 🦀 ẞ", "日本語 café"),
    turns("why?", "<think>\nbecause\n</think>\n\nBecause.", "really?", "<think>\nhm\n</think>\n\nYes."),
    turns("{{ bos_token }} {% if x %}", ""),
    turns("one", "two", "three", "four", "five"),
    turns("I begin", roles=("assistant", "user")),
    turns("Two", roles=("user", "user")) + turns("in a row"),
]


def templates():
    chat_template_utils.datetime = FixedClock
    for path in sorted(TEMPLATES.glob("*.jinja")):
        template = path.read_text(encoding="utf-8")
        cases = []
        for messages in CONVERSATIONS:
            for prompt in (False, True):
                case = {"messages": messages, "add_generation_prompt": prompt}
                try:
                    rendered, _ = chat_template_utils.render_jinja_template(
                        conversations=[messages],
                        chat_template=template,
                        add_generation_prompt=prompt,
                        bos_token="<s>",
                        eos_token="</s>",
                    )
                    case["rendered"] = rendered[0]
                except Exception as e:  # whatever raise_exception raises
                    case["error"] = str(e)
                cases.append(case)
        head = header(clock=CLOCK, bos_token="<s>", eos_token="</s>")
        write_json(FIXTURES / "templates" / f"{path.stem}.json", head | {"template": template, "cases": cases})
        print(f"{path.stem}: {len(cases)} cases, {sum('error' in c for c in cases)} refused")


# Enough repetition for merges; written for this file.
CORPUS = [
    "the film is good and the film is fun",
    "the plot is bad and the end is worse",
    "a good film with a good plot , a bad film with a bad plot",
    "the user asks and the assistant answers",
    "the answer is four and the question is two plus two",
    "hello hello , how are you ? i am fine and you are fine",
    "positive negative positive negative sentiment sentiment review review",
]

TEXTS = [
    "the film is good",
    " positive",
    "  two  spaces\n\nand lines\t",
    "naïve café 🦀 日本語",
    "Hello, Wörld!",
    "x",
    "",
    "<|im_end|> inside",
]


def byte_level():
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=True)
    trainer = trainers.BpeTrainer(
        vocab_size=340,
        special_tokens=["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<|im_start|>",
        eos_token="<|im_end|>",
        pad_token="<|im_end|>",
        unk_token="<|endoftext|>",
    )
    fast.chat_template = (TEMPLATES / "chatml-generation.jinja").read_text(encoding="utf-8")
    return fast


def word_piece():
    pieces = sorted({w for line in CORPUS for w in line.split()} - {"positive", "negative"})
    letters = [chr(c) for c in range(ord("a"), ord("z") + 1)]
    vocab = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *pieces, "posi", "nega", "##tive", "!", *letters[1:]]
    vocab += [f"##{c}" for c in letters]
    vocab = {token: i for i, token in enumerate(dict.fromkeys(vocab))}
    tokenizer = Tokenizer(models.WordPiece(vocab, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS]:0 $A:0 [SEP]:0",
        pair="[CLS]:0 $A:0 [SEP]:0 $B:1 [SEP]:1",
        special_tokens=[("[CLS]", vocab["[CLS]"]), ("[SEP]", vocab["[SEP]"])],
    )
    # As sentence-transformers saves it: padding and truncation that must not leak into training.
    tokenizer.enable_truncation(8)
    tokenizer.enable_padding(length=8)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        cls_token="[CLS]",
        sep_token="[SEP]",
        pad_token="[PAD]",
        unk_token="[UNK]",
        mask_token="[MASK]",
        model_max_length=32,
    )


def metaspace():
    alphabet = sorted({c for line in CORPUS for c in line if c != " "})
    trained = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True))
    trained.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    trained.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(content=" ", left=1)]
    )
    byte_tokens = [f"<0x{b:02X}>" for b in range(256)]
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=["<unk>", "<s>", "</s>", *byte_tokens],
        initial_alphabet=alphabet,
        show_progress=False,
    )
    trained.train_from_iterator((w for line in CORPUS for w in line.split(" ")), trainer)
    # Byte tokens are ordinary tokens of the vocabulary, and no added ones.
    state = json.loads(trained.to_str())
    state["added_tokens"] = [t for t in state["added_tokens"] if t["content"] in ("<unk>", "<s>", "</s>")]
    tokenizer = Tokenizer.from_str(json.dumps(state))
    bos = AddedToken("<s>", special=True)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s>:0 $A:0", pair="<s>:0 $A:0 <s>:1 $B:1", special_tokens=[("<s>", tokenizer.token_to_id("<s>"))]
    )
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token=bos, eos_token="</s>", unk_token="<unk>")
    fast.chat_template = (TEMPLATES / "mistral.jinja").read_text(encoding="utf-8")
    return fast


PAIRS = [("the film is good", "the plot is bad"), ("hello", "you are fine !")]

PROMPTS = [
    ("review : the film is good\nsentiment :", " positive"),
    ("review : the film is bad\nsentiment : ", "negative"),
    ("the answer is", " four and\n\nthe question is two"),
    ("naïve 🦀", " café 🦀"),
    ("", "the film"),
]


def prompt_completion(fast, prompt, completion):
    """Ids of the joined text and, for each, whether it holds a character of the completion; EOS at the end."""
    encoded = fast(prompt + completion, return_offsets_mapping=True)
    ids, spans = encoded["input_ids"], encoded["offset_mapping"]
    mask = [int(end > len(prompt)) for _, end in spans]
    return {"prompt": prompt, "completion": completion, "ids": ids + [fast.eos_token_id], "trained": mask + [1]}


def tokenizers():
    for name, build in (("byte-level", byte_level), ("word-piece", word_piece), ("metaspace", metaspace)):
        folder = FIXTURES / "tokenizers" / name
        shutil.rmtree(folder, ignore_errors=True)
        build().save_pretrained(folder)
        fast = AutoTokenizer.from_pretrained(folder)
        golden = header()
        golden["texts"] = [
            {
                "text": text,
                "ids": fast(text)["input_ids"],
                "plain_ids": fast(text, add_special_tokens=False)["input_ids"],
                "decoded": fast.decode(fast(text)["input_ids"], skip_special_tokens=True, clean_up_tokenization_spaces=False),
            }
            for text in TEXTS
        ]
        if name == "word-piece":
            golden["pairs"] = []
            for first, second in PAIRS:
                for limit in (None, 9, 7):
                    out = fast(first, second, max_length=limit, truncation=limit is not None, return_token_type_ids=True)
                    case = {"text": first, "text_pair": second, "max_length": limit}
                    golden["pairs"].append(case | {"ids": out["input_ids"], "token_type_ids": out["token_type_ids"]})
        else:
            golden["prompts"] = [prompt_completion(fast, *p) for p in PROMPTS]
        if name == "byte-level":
            golden["chats"] = []
            for messages in (c for c in CONVERSATIONS if any(m["role"] == "assistant" for m in c) and c[0]["role"] != "assistant"):
                out = fast.apply_chat_template(messages, return_assistant_tokens_mask=True, return_dict=True)
                golden["chats"].append({"messages": messages, "ids": out["input_ids"], "trained": out["assistant_masks"]})
        write_json(folder / "golden.json", golden)
        print(f"{name}: {fast.vocab_size} tokens, files {sorted(p.name for p in folder.iterdir())}")


if __name__ == "__main__":
    templates()
    tokenizers()
