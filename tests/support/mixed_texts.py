"""Mixed text from a seed, for tokenizer checks: English, code, digits, emoji, many scripts, odd white space, special tokens,
combining marks, unassigned and private characters. Nothing is read from disk, so that the texts are free to commit."""

import random
import unicodedata

WORDS = """the of and to in is that it was for on are with as his they be at one have this from or had by hot but some what
there we can out other were all your when up use word how said an each she which do their time if will way about many then
them would write like so these her long make thing see him two has look more day could go come did my sound no most number
who over know water than call first people may down side been now find any new work part take get place made live where
after back little only round man year came show every good me give our under name very through just form much great think
say help low line before turn cause same mean differ move right boy old too does tell sentence set three want air well also
play small end put home read hand port large spell add even land here must big high such follow act why ask men change went
light kind off need house picture try us again animal point mother world near build self earth father apples pencils minutes
dollars tomorrow yesterday altogether remaining tokenization reinforcement gradient hyperparameter counterintuitive""".split()
ACCENTED = "café naïve résumé Zürich Ångström façade jalapeño coöperate Škoda Łódź İstanbul Þórr œuvre straße ﬁne ǅ".split()
CONTRACTIONS = ["'s", "'t", "'re", "'ve", "'m", "'ll", "'d", "'S", "'T", "'RE", "'VE", "'M", "'LL", "'D", "\u2019s", "'ſ", "'lL", "''s"]
SENTENCES = [
    "敏捷的棕色狐狸跳过了懒狗。", "東京は日本の首都です。", "안녕하세요, 세계!", "Быстрая коричневая лиса прыгает.", "Η γρήγορη καφέ αλεπού",
    "השועל החום המהיר", "الثعلب البني السريع ١٢٣", "तेज़ भूरी लोमड़ी १२३", "สุนัขจิ้งจอกสีน้ำตาล", "Tiếng Việt có dấu thanh điệu.",
    "ქართული ენა", "தமிழ் மொழி", "ភាសាខ្មែរ", "አማርኛ ቋንቋ", "မြန်မာဘာသာ", "ｆｕｌｌ　ｗｉｄｔｈ １２３", "𝓼𝓬𝓻𝓲𝓹𝓽 𝟙𝟚𝟛", "ᏣᎳᎩ", "日本語とEnglishの混在123テスト",
]
EMOJI = ["😀", "👍🏽", "👨‍👩‍👧‍👦", "🏳️‍🌈", "🇩🇪🇯🇵", "❤️", "1️⃣", "🤷🏻‍♀️", "☕", "✨✨", "🫠"]
SPACES = [" ", "  ", "   ", "\t", "\t\t", "\n", "\n\n", "\r\n", "\r", "\n \n", " \n", "\u00a0", "\u2003", "\u3000", "\u2028", "\u2029", "\u0085",
          "\u180e", "\u200b", "\u200d", "\ufeff", "\u1680", "\u202f", "\x0b", "\x0c", "\x1c", "\x1f", "\x00"]
NUMERALS = ["0", "7", "42", "007", "1,234", "3.14159", "2026", "1e-5", "0x7FFF", "½", "²", "Ⅷ", "①", "٣٤", "१२", "五", "𝟘", "〇", "㊿", "10000000000"]
SPECIALS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|begin_of_text|>", "<|end_of_text|>", "<|eot_id|>", "<|start_header_id|>",
            "<|end_header_id|>", "<think>", "</think>", "<tool_call>", "<repo_name>", "<|im_start", "im_end|>", "<|", "|>", "<|im_end|", "<<|im_end|>>"]
CODE = ["def {w}({w}, *args, **kwargs):", "    return {w}[{n}:{n}] != {w}", "for (int i = 0; i < {n}; ++i) {{ {w} += \"{w}\\n\"; }}",
        "SELECT {w} FROM {w} WHERE {w} >= {n};", "\t\tif err != nil {{ return nil, fmt.Errorf(\"{w}: %w\", err) }}", "<div class=\"{w}\">{n}</div>",
        "#include <{w}.h>", "{w} = lambda x: x**{n} // {n}", "$ rm -rf ./{w}/*.{w} && echo $?", "{{\"{w}\": [{n}, {n}, null], \"{w}\": true}}",
        "https://{w}.example.org/{w}?q={n}&{w}=%20#top", "\\frac{{{n}}}{{{n}}} \\cdot \\boxed{{{n}}}", "std::vector<{w}_t> {w}_{{}};  // {w}", "===>>> {w} <<<===",
        "/* {w} */ /** {w} **/ -- {w} ;; {w}", "user@{w}.com +1-555-{n}", "{n}*{n}={n} ({n}%) ~{n} ≈{n} ≥{n}€ £{n} ¥{n}"]


def number(rng):
    return rng.choice(NUMERALS) if rng.random() < 0.3 else str(rng.randrange(10 ** rng.randint(1, 9)))


def english(rng):
    words = []
    for _ in range(rng.randint(1, 14)):
        word = rng.choice(ACCENTED) if rng.random() < 0.05 else rng.choice(WORDS)
        word = rng.choice([word, word, word, word.capitalize(), word.upper()])
        if rng.random() < 0.1:
            word += rng.choice(CONTRACTIONS)
        if rng.random() < 0.1:
            word = number(rng)
        words.append(word + (rng.choice(",;:.!?—…\"')") if rng.random() < 0.15 else ""))
    return " ".join(words)


def code(rng):
    line = rng.choice(CODE)
    while "{w}" in line or "{n}" in line:
        line = line.replace("{w}", rng.choice(WORDS), 1).replace("{n}", number(rng), 1)
    return line.replace("{{", "{").replace("}}", "}")


def random_characters(rng):
    def one():
        while True:
            point = rng.choice([rng.randrange(0x250), rng.randrange(0x3000), rng.randrange(0x10000), rng.randrange(0x110000)])
            if not 0xD800 <= point < 0xE000:
                return chr(point)

    return "".join(one() for _ in range(rng.randint(1, 12)))


def decomposed(rng):
    text = rng.choice(ACCENTED + SENTENCES)
    if rng.random() < 0.5:
        return unicodedata.normalize(rng.choice(["NFD", "NFC", "NFKD"]), text)
    return rng.choice(WORDS) + "".join(rng.choice("\u0301\u0308\u0323\u0327\u093c\u3099") for _ in range(rng.randint(1, 3)))


def runs(rng):
    return rng.choice(["a", "-", "=", " ", "\n", "9", ".", "字", "!", "\t", "ab", "ha"]) * rng.randint(2, 40)


PARTS = [(english, 8), (code, 4), (number, 3), (decomposed, 2), (random_characters, 2), (runs, 1),
         (lambda rng: rng.choice(SENTENCES), 3), (lambda rng: "".join(rng.choices(EMOJI, k=rng.randint(1, 3))), 2),
         (lambda rng: "".join(rng.choices(SPACES, k=rng.randint(1, 4))), 3), (lambda rng: rng.choice(SPECIALS), 2)]


def mixed_texts(count, seed=1):
    rng = random.Random(seed)
    makers, weights = zip(*PARTS)
    texts = []
    for _ in range(count):
        parts = [make(rng) for make in rng.choices(makers, weights, k=rng.randint(1, 4))]
        texts.append(rng.choice(["", " ", " ", "\n"]).join(parts))
    return texts
