"""Texts that tokenizers disagree on: scripts, numbers, code, white space, emoji, broken words."""

import random

PLAIN = [
    "Hello world",
    " Hello world",
    "Hello  world   again    and     so on",
    "The quick brown fox jumps over the lazy dog.",
    "I'm sure they've said it'll work; she'd've known, wouldn't she?",
    "I'M SURE THEY'VE SAID IT'LL WORK",
    "It’s “quoted” — with dashes – and ellipsis…",
    "a xylophone and the xylophones",
    "1",
    "12",
    "123",
    "1234567890",
    "3.14159 2,718,281 -0.5e-10 0xDEADBEEF 1st 2nd",
    "٣٤٥ १२३ Ⅷ ½ ² 五",
    "Grüße aus München, naïve café, Ångström, smørrebrød",
    "Gru\u0308ße, cafe\u0301, A\u030angstro\u0308m",
    "Привет, мир! Как дела?",
    "Γειά σου Κόσμε",
    "你好，世界。我们在学习分词。",
    "こんにちは世界、カタカナとひらがな",
    "안녕하세요 세계",
    "مرحبا بالعالم",
    "שלום עולם",
    "नमस्ते दुनिया",
    "สวัสดีชาวโลก",
    "😀 😃😄 👍🏽 👩‍👩‍👧‍👦 🇩🇪🇫🇷 ❤️",
    "🤷‍♀️text🤷",
    "tab\tseparated\t\tvalues",
    "line one\nline two\n\nline four\n\n\n\nline eight\n",
    "windows\r\nlines\r\n\r\n",
    "trailing spaces   ",
    "   leading spaces",
    "\n",
    "\n\n\n",
    " ",
    "  ",
    "\t",
    " \n ",
    "    \n        \n",
    "non\u00a0breaking\u2003em\u200bzero\u3000ideographic",
    "def f(x: int) -> int:\n    \"\"\"Doc.\"\"\"\n    return x ** 2  # square\n",
    "fn main() {\n\tlet v: Vec<u8> = vec![1, 2, 3];\n\tprintln!(\"{:?}\", v);\n}\n",
    "if (a&&b||!c) { x+=1; y-=2; z<<=3; } // comment",
    "SELECT * FROM t WHERE a='b' AND c IS NOT NULL;",
    "<table><tr><td class=\"x\">1</td></tr></table>",
    "{\"key\": [1, 2.5, null, true], \"nested\": {\"a\": \"b\"}}",
    "https://example.com/path?q=1&r=%20#frag",
    "user.name+tag@example.co.uk",
    "C:\\Users\\name\\file.txt",
    "$100 €50 £20 ¥1000 #hashtag @mention ~/.config",
    "snake_case camelCase PascalCase kebab-case SCREAMING_CASE",
    "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa",
    "!!!???...---___===",
    "Supercalifragilisticexpialidocious antidisestablishmentarianism",
    "x" * 5 + "\u0301" * 3,
    "\ufeffbyte order mark",
    "ﬁﬂ ligatures and ｆｕｌｌｗｉｄｔｈ",
    "mixed日本語and English和中文",
    "E = mc², ∑ᵢ xᵢ ≠ ∞ ∀x∈ℝ",
]
SPECIAL = [
    "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n",
    "<|endoftext|><|endoftext|>",
    " <|im_end|> spaced <|im_end|> ",
    "not <|special|> nor <|im_start |>",
]


def mixed(count, seed):
    """Pieces of the plain texts joined at random places with random white space and digits."""
    rng = random.Random(seed)
    texts = []
    for _ in range(count):
        parts = []
        for _ in range(rng.randint(1, 4)):
            text = rng.choice(PLAIN)
            start = rng.randrange(len(text))
            parts.append(text[start : start + rng.randint(1, 24)])
            parts.append(rng.choice(["", " ", "  ", "\n", "\t", "\n\n", " \n", str(rng.randrange(10 ** rng.randint(1, 9))), "'s", "."]))
        texts.append("".join(parts))
    return texts


TEXTS = PLAIN + mixed(140, 11)
