"""Makes tests/data/data/tokenizers: small tokenizers of the SmolLM2, Llama 3 and Qwen kinds, trained with Hugging Face
`tokenizers` (their pre-tokenizers, normalisers, special tokens and post-processors), mixed texts, and what `tokenizers` makes
of each text. Run with .deps/python/bin/python; the result depends on the seeds and on the version of `tokenizers` alone.

  texts.jsonl          one JSON string a line
  KIND/tokenizer.json  and tokenizer_config.json, generation_config.json
  KIND/ids.txt         a line a text: XXH3-64 of the ids as little-endian int32, its low 32 bits in hexadecimal
  KIND/explicit.jsonl  some texts with their ids, and what decodes from them
  byte/explicit.jsonl  the byte tokenizer's, from the directory that it writes (make_byte_fixture)
"""

import json
import os
import struct

import xxhash
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

from mixed_texts import SPECIALS, mixed_texts

ROOT = os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "data", "data", "tokenizers")
NUM_TEXTS = 10_500
LLAMA3 = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+")
QWEN = LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}")


def byte_level(use_regex):
    return pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=use_regex)


def split(pattern):
    return pre_tokenizers.Split(Regex(pattern), "isolated")


def smollm2():
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), byte_level(True)])
    return tokenizer, ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<repo_name>"], [], "first", "<|im_end|>", 2


def llama3():
    tokenizer = Tokenizer(models.BPE(ignore_merges=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split(LLAMA3), byte_level(False)])
    special = ["<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"]
    return tokenizer, special, [], "last", "<|eot_id|>", ["<|end_of_text|>", "<|eot_id|>"]


def qwen():
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split(QWEN), byte_level(False)])
    return (tokenizer, ["<|endoftext|>", "<|im_start|>", "<|im_end|>"], ["<tool_call>", "</tool_call>", "<think>", "</think>"], "last",
            "<|im_end|>", ["<|im_end|>", "<|endoftext|>"])


def stripping():
    """Qwen's, with added tokens that take the white space around them, or stand for whole words, or are normalised."""
    tokenizer, special, plain, where, eos, stops = qwen()
    extra = [AddedToken("<mask>", lstrip=True, normalized=False, special=True), AddedToken("<sep>", rstrip=True, normalized=False),
             AddedToken("the", single_word=True, normalized=False), AddedToken("café", normalized=True),
             AddedToken("<both>", lstrip=True, rstrip=True, normalized=False)]
    return tokenizer, special, plain + extra, where, eos, stops


def train(kind, corpus):
    tokenizer, special, plain, where, eos, stops = kind()
    trainer = trainers.BpeTrainer(vocab_size=2_500, special_tokens=special if where == "first" else [], show_progress=False,
                                  initial_alphabet=pre_tokenizers.ByteLevel.alphabet())
    tokenizer.train_from_iterator(corpus, trainer)
    if where == "last":  # Llama 3 and Qwen keep their special tokens outside the model's vocabulary
        tokenizer.add_special_tokens([AddedToken(t, normalized=False, special=True) for t in special])
    for token in plain:
        added = AddedToken(token, normalized=False) if isinstance(token, str) else token
        (tokenizer.add_special_tokens if added.special else tokenizer.add_tokens)([added])
    tokenizer.decoder = decoders.ByteLevel()
    if kind is llama3:
        tokenizer.post_processor = processors.Sequence([
            processors.ByteLevel(trim_offsets=True),
            processors.TemplateProcessing(single="<|begin_of_text|> $A", special_tokens=[
                ("<|begin_of_text|>", tokenizer.token_to_id("<|begin_of_text|>"))])])
    stop_ids = [tokenizer.token_to_id(t) for t in stops] if isinstance(stops, list) else stops
    return tokenizer, eos, stop_ids


def write(path, content):
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with open(path, "w", encoding="utf-8", newline="\n") as out:
        out.write(content)


def ids_line(ids):
    return f"{xxhash.xxh3_64_intdigest(struct.pack(f'<{len(ids)}i', *ids)) & 0xFFFFFFFF:08x}\n"


def explicit_lines(tokenizer, texts):
    lines = []
    for text in texts:
        ids = tokenizer.encode(text, add_special_tokens=False).ids
        record = {"text": text, "ids": ids, "with_special": tokenizer.encode(text).ids,
                  "decoded": tokenizer.decode(ids, skip_special_tokens=False), "decoded_plain": tokenizer.decode(ids)}
        tokenizer.encode_special_tokens = True
        record["not_parsed"] = tokenizer.encode(text, add_special_tokens=False).ids
        tokenizer.encode_special_tokens = False
        # a cut in the middle decodes to U+FFFD where it parts a character
        record["halves"] = [tokenizer.decode(ids[: len(ids) // 2]), tokenizer.decode(ids[len(ids) // 2:])]
        lines.append(json.dumps(record))
    return "\n".join(lines) + "\n"


def write_expectations(directory, tokenizer, texts, explicit):
    write(f"{directory}/ids.txt", "".join(ids_line(e.ids) for e in tokenizer.encode_batch(texts, add_special_tokens=False)))
    write(f"{directory}/explicit.jsonl", explicit_lines(tokenizer, explicit))


def compact(tokenizer, merges_as_text):
    content = json.loads(tokenizer.to_str())
    if merges_as_text:  # the older form of the file
        content["model"]["merges"] = [" ".join(pair) for pair in content["model"]["merges"]]
    return json.dumps(content, ensure_ascii=False, separators=(",", ":")) + "\n"


def main():
    texts = mixed_texts(NUM_TEXTS)
    corpus = mixed_texts(6_000, seed=2)
    write(f"{ROOT}/texts.jsonl", "".join(json.dumps(t) + "\n" for t in texts))
    explicit = ["", " ", "Hello, world!", "What is 6 + 8? Answer with just the number.", "<|im_start|>user\nhi<|im_end|>\n",
                "a <mask> b  <sep>  c the other, the, theory café cafe\u0301 <both>  x", "  <mask>\n<mask> <sep><both>",
                "<|begin_of_text|><|start_header_id|>user<|end_header_id|>\n\nhi<|eot_id|>", "don't DON'T we'll 12345 ½"] + SPECIALS + texts[:25]
    for kind in (smollm2, llama3, qwen, stripping):
        tokenizer, eos, stop_ids = train(kind, corpus)
        directory = f"{ROOT}/{kind.__name__}"
        write(f"{directory}/tokenizer.json", compact(tokenizer, merges_as_text=kind is smollm2))
        write(f"{directory}/tokenizer_config.json", json.dumps({"eos_token": eos, "tokenizer_class": "PreTrainedTokenizerFast"}) + "\n")
        write(f"{directory}/generation_config.json", json.dumps({"eos_token_id": stop_ids}) + "\n")
        write_expectations(directory, tokenizer, texts, explicit)
    byte = f"{ROOT}/byte"
    if os.path.exists(f"{byte}/tokenizer.json"):  # written by Tokenizer::bytes().save(); a test compares it with the program's
        write_expectations(byte, Tokenizer.from_file(f"{byte}/tokenizer.json"), texts, explicit)


if __name__ == "__main__":
    main()
