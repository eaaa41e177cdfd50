"""The inputs of the real-model golden files. Written for this purpose, so that they can be committed."""

PARAGRAPH = (
    "The lighthouse keeper climbed the iron stairs every evening at dusk, counting the steps as his father had done. "
    "He trimmed the wick, wound the clockwork, and wrote the weather in a ledger: wind from the north-west, the glass "
    "falling, two ships hull down on the horizon. In winter the spray froze on the panes and he scraped it away with a "
    "brass knife. Nobody had ever told him why the third lamp was kept, unlit, in the cupboard below the gallery, and he "
    "had never asked. On the last night of the year a boat came in without a light, and a woman in a grey coat walked up "
    "the path and knocked three times. She said that"
)

# Greedy decoding starts here. Strings are plain text, lists are conversations rendered with the chat template.
PROMPTS = [
    "The capital of France is",
    [{"role": "user", "content": "What is gravity?"}],
    [
        {"role": "system", "content": "You answer in one short sentence."},
        {"role": "user", "content": "Name three colours."},
        {"role": "assistant", "content": "Red, green and blue."},
        {"role": "user", "content": "And two animals?"},
    ],
    'def fibonacci(n):\n    """Return the n-th Fibonacci number."""\n    ',
    "2, 4, 8, 16, 32, 64, 128, 256,",
    "Le café est à côté de la gare. Il a commandé",
    "東京は日本の首都です。",
    PARAGRAPH,
    "Shopping list for 12  guests:\n\n1. 24 eggs\n2. ",
    "Water",
]

SENTENCES = [
    "Hello",
    "A man is playing a guitar.",
    "Someone plays an instrument on the stage of a small theatre.",
    "The stock market fell by 3.2 % on Tuesday, its worst day since 1987.",
    "Ünïcödé ünd Ümläute: naïve café, 東京 and Москва!",
    "def add(a, b): return a + b  # plain code",
    "What is the difference between supervised and unsupervised learning, and when would you use one over the other?",
    PARAGRAPH,
]

# Four training texts; the step golden cuts their token ids to LENGTHS.
TRAIN_TEXTS = [
    "Bread is made from flour, water, salt and yeast. The dough is kneaded, left to rise, shaped and baked in a hot oven "
    "until the crust is brown and the loaf sounds hollow when it is tapped.",
    PARAGRAPH,
    "fn main() {\n    let total: u32 = (1..=10).sum();\n    println!(\"{total}\");\n}\n",
    "Question: A train leaves at 14:35 and arrives at 17:10. How long is the journey?\nAnswer: From 14:35 to 17:10 is 2 "
    "hours and 35 minutes, which is 155 minutes.\n\nQuestion: What is 12 times 12?\nAnswer: 144.",
]
LENGTHS = [37, 64, 20, 51]

# (text, label)
CLASSIFY = [
    ("a warm and funny film", 1),
    ("dull , slow and far too long", 0),
    ("the cast is excellent and the ending earns every tear", 1),
    ("i wanted my money back", 0),
    ("not a masterpiece , but it never bores", 1),
    ("the script has one joke and tells it forty times before the credits roll", 0),
]

TOKENIZER_STRINGS = [
    "",
    " ",
    "  ",
    "   ",
    "a",
    " a",
    "  a",
    "a ",
    "a  ",
    "\n",
    "\n\n",
    "\n\n\n",
    "\t",
    "\t\tx",
    "\r\n",
    "a\nb",
    "a\n\nb",
    "a \n b",
    "a\r\nb\r\n",
    " \n \n ",
    "Hello",
    "Hello world",
    "hello   world",
    "Hello, world!",
    "HELLO WORLD",
    "hElLo wOrLd",
    "The quick brown fox jumps over the lazy dog.",
    "antidisestablishmentarianism",
    "supercalifragilisticexpialidocious",
    "don't can't won't I'm you're they've he'll she'd it's",
    "DON'T I'M YOU'RE",
    "don’t “quote” ‘single’ – — …",
    "0",
    "7",
    "42",
    "1234567890",
    " 1",
    "  1",
    "   12",
    "a1",
    "1a",
    "a 1",
    "a  1",
    "line\n1",
    "line\n\n1",
    "1\n2\n3",
    "3.14159",
    "-1,000,000.50",
    "1e-5",
    "0x1F600",
    "2024-02-29 23:59:59",
    "12 eggs,  3 lemons and 100 %",
    "½ ¼ ¾",
    "x² + y³",
    "Ⅳ and ⅷ",
    "٣٤٥",
    "१२३",
    "１２３",
    "café",
    "cafe\u0301",
    "naïve façade",
    "Ünïcödé",
    "straße STRASSE",
    "İstanbul ı",
    "Ελληνικά",
    "Москва, 2024 год",
    "東京は日本の首都です。",
    "你好，世界！",
    "안녕하세요 세계",
    "שלום עולם",
    "مرحبا بالعالم",
    "สวัสดีชาวโลก",
    "नमस्ते दुनिया",
    "😀",
    "👍🏽",
    "👨‍👩‍👧‍👦 family",
    "🇫🇷 🇯🇵",
    "a\u00a0b",
    "a\u2003b",
    "zero\u200bwidth",
    "\ufeffbom",
    "soft\u00adhyphen",
    "nul\u0000byte",
    "bell\u0007",
    "replacement \ufffd",
    "def f(x):\n    return x ** 2\n",
    "for (int i = 0; i < 10; ++i) { sum += a[i]; }",
    "SELECT * FROM t WHERE id = 42;",
    "<div class=\"a\">text</div>",
    "https://example.org/path?q=1&r=2#frag",
    "user@example.org",
    "C:\\Users\\name\\file.txt",
    "$E = mc^2$ and \\frac{a}{b}",
    "snake_case camelCase PascalCase kebab-case",
    "!!!???...---___",
    "(((())))",
    "a,b;c:d",
    "#hashtag @mention",
    "<|im_start|>user\nHi<|im_end|>\n",
    "<|endoftext|>",
    "text<|im_end|>text",
    " <|im_start|> ",
    "<|im_start",
    "<file_sep><repo_name>",
    "[CLS] hello [SEP]",
    "[MASK]ed [UNK] [PAD]",
    "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa",
    "x" * 120,
    "ab " * 20,
    "    indented\n        more\n    back",
    "trailing spaces   \nnext",
    "one long string of cliches .",
    PARAGRAPH,
]

CONVERSATIONS = [
    ([{"role": "user", "content": "What is the capital of France?"}], True),
    (
        [
            {"role": "system", "content": "You are terse."},
            {"role": "user", "content": "Count:\n\n1\n2  3"},
            {"role": "assistant", "content": "4"},
            {"role": "user", "content": " Спасибо! 😀 "},
        ],
        True,
    ),
    (
        [
            {"role": "user", "content": "Hi"},
            {"role": "assistant", "content": "Hello! How can I help you?"},
        ],
        False,
    ),
]
