#!/usr/bin/env python3
"""Holds `temper score` and `temper generate` against transformers on model directories, in f32.

    .deps/python/bin/python tests/support/compare_transformers.py --temper build/release/temper [--model DIR ...]

Without --model, the tiny random models of make_model_fixtures.py with a tokenizer of their own. An exported directory is
checked like any other: it loads in transformers without a missing or left-over tensor and generates the same.
--same-tensors DIR: the (one) model's tensors have the same bytes as DIR's. For each model:
    loads       transformers finds every tensor that it wants and no other
    score       log-probabilities of random token sequences and of texts: largest difference <= --tolerance. Some random
                sequences amplify the rounding of any f32 computation beyond that (see `spread`): there, what counts is
                the distance to an f64 computation, held to what such rounding explains; the figures are printed
    generate    50 prompts, greedy: prompt ids, token ids and text are the same; logprobs differ by <= --tolerance
Prints one line a check and exits 1 if one fails.
"""
import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from safetensors import safe_open
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

sys.path.insert(0, str(Path(__file__).parent))
import make_model_fixtures  # noqa: E402

SUBJECTS = ["The capital of France", "A prime number", "My favourite recipe", "In 1969 the first", "def fibonacci(n):",
            "12 + 30 =", "Ein kleiner Bär", "東京は", "She said: \"I don't", "{\"name\": \"temper\","]
ENDINGS = ["", " is", "\n\n", " because of 3.14 and", "\tand 🙂 then"]
PROMPTS = [subject + ending for subject in SUBJECTS for ending in ENDINGS]


def write_lines(path, objects):
    path.write_text("".join(json.dumps(each, ensure_ascii=False) + "\n" for each in objects), encoding="utf-8")


def read_lines(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def run(command):
    done = subprocess.run([str(part) for part in command], stderr=subprocess.PIPE, text=True)
    if done.returncode != 0:
        sys.exit(f"{' '.join(map(str, command))}\nended with {done.returncode}: {done.stderr.strip()}")


class Checks:
    def __init__(self):
        self.failed = 0

    def expect(self, good, text):
        self.failed += not good
        print(("ok      " if good else "FAILED  ") + text, flush=True)


def token_logprobs(model, ids):
    """log p of each id after those before it; the first has none."""
    with torch.no_grad():
        logits = model(torch.tensor([ids])).logits[0]
    logprobs = torch.log_softmax(logits[:-1], dim=-1)
    return logprobs.gather(1, torch.tensor(ids[1:]).unsqueeze(1)).squeeze(1)


class Exact:
    """The model in f64. transformers' norms and eager softmax go through f32 in any dtype: not here. (Its rotary table is
    f32 by definition, and Temper's is the same.)"""

    DRAWS = 16

    def __init__(self, folder):
        self.model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64, attn_implementation="sdpa").eval()
        for module in self.model.modules():
            if type(module).__name__.endswith("RMSNorm"):
                module.forward = self.norm_of(module)

    @staticmethod
    def norm_of(norm):
        return lambda x: norm.weight * x * torch.rsqrt(x.square().mean(-1, keepdim=True) + norm.variance_epsilon)

    def logprobs(self, ids):
        return token_logprobs(self.model, ids)

    def spread(self, ids):
        """Standard deviation of each log-probability when nothing but the residual stream after each block is rounded to
        f32, up or down at random: the least that a computation with an f32 residual stream must expect."""
        generator = torch.Generator().manual_seed(4)

        def round_at_random(_module, _inputs, output):
            hidden = output[0] if isinstance(output, tuple) else output
            unit = torch.ldexp(torch.ones_like(hidden), torch.frexp(hidden).exponent - 24)
            rounded = torch.floor(hidden / unit + torch.rand(hidden.shape, generator=generator, dtype=hidden.dtype)) * unit
            return (rounded, *output[1:]) if isinstance(output, tuple) else rounded

        hooks = [layer.register_forward_hook(round_at_random) for layer in self.model.model.layers]
        draws = torch.stack([self.logprobs(ids) for _ in range(self.DRAWS)])
        for hook in hooks:
            hook.remove()
        return draws.std(0)


def check_beyond_tolerance(checks, label, exact, ids, got, theirs, tolerance):
    """Tokens of one sequence on which Temper and transformers differ by more than the tolerance."""
    apart = ((got - theirs).abs() > tolerance).nonzero().flatten()
    ids = ids[:apart.max().item() + 2]  # nothing later matters
    truth, spread = exact.logprobs(ids), exact.spread(ids)
    for i in apart.tolist():
        ours, other = (got[i].double() - truth[i]).item(), (theirs[i].double() - truth[i]).item()
        checks.expect(abs(ours) <= max(tolerance, 3 * spread[i].item()),
                      f"{label}: token {i + 1} of a sequence differs by {abs(ours - other):.2e}: from f64, Temper is "
                      f"{ours:+.2e} off, transformers {other:+.2e}; f32 rounding of the residual stream alone spreads it "
                      f"by {spread[i]:.2e} (allowed: three times that)")


def check_score(checks, label, temper, folder, model, tokenizer, work, tolerance):
    generator = torch.Generator().manual_seed(3)
    sequences = [torch.randint(0, model.config.vocab_size, (length,), generator=generator).tolist()
                 for length in (2, 3, 17, 64, 200)]
    sequences += [ids for ids in (tokenizer(prompt).input_ids for prompt in PROMPTS[:20]) if len(ids) > 1]
    write_lines(work / "score.jsonl", [{"token_ids": ids} for ids in sequences])
    run([temper, "score", "--model", folder, "--input", work / "score.jsonl", "--out", work / "scored.jsonl",
         "--dtype", "f32"])
    worst, well_conditioned, exact = 0.0, 0, None
    scored = read_lines(work / "scored.jsonl")
    checks.expect(len(scored) == len(sequences), f"{label}: score gives {len(scored)} lines for {len(sequences)}")
    for ids, line in zip(sequences, scored):
        got = line["logprobs"]
        if got[0] is not None or len(got) != len(ids):
            checks.expect(False, f"{label}: score gives {len(got)} values for {len(ids)} ids, the first {got[0]}")
            return
        got, theirs = torch.tensor(got[1:]), token_logprobs(model, ids)
        difference = (got - theirs).abs().max().item()
        if difference <= tolerance:
            worst, well_conditioned = max(worst, difference), well_conditioned + 1
            continue
        exact = exact or Exact(folder)
        check_beyond_tolerance(checks, label, exact, ids, got, theirs, tolerance)
    checks.expect(well_conditioned >= 0.9 * len(sequences), f"{label}: score differs by {worst:.2e} at most on "
                  f"{well_conditioned} of {len(sequences)} sequences")


def check_generate(checks, label, temper, folder, model, tokenizer, work, tolerance, new_tokens):
    write_lines(work / "prompts.jsonl", [{"prompt": prompt} for prompt in PROMPTS])
    run([temper, "generate", "--model", folder, "--prompts", work / "prompts.jsonl", "--out", work / "out.jsonl", "--raw",
         "--temperature", 0, "--max-new-tokens", new_tokens, "--dtype", "f32"])
    eos = model.generation_config.eos_token_id
    settings = GenerationConfig(do_sample=False, max_new_tokens=new_tokens, eos_token_id=eos, pad_token_id=0)
    lines = read_lines(work / "out.jsonl")
    checks.expect(len(lines) == len(PROMPTS), f"{label}: generate gives {len(lines)} lines for {len(PROMPTS)} prompts")
    same_prompts = same_ids = same_texts = 0
    worst = 0.0
    for prompt, line in zip(PROMPTS, lines):
        ids = tokenizer(prompt).input_ids
        completion = line["completions"][0]
        if line["prompt_token_ids"] == ids:
            same_prompts += 1
        else:
            print(f"        {prompt!r}: prompt ids {line['prompt_token_ids']}, transformers has {ids}")
        model.generation_config = settings
        with torch.no_grad():
            wanted = model.generate(torch.tensor([ids]), attention_mask=torch.ones(1, len(ids), dtype=torch.long))
        wanted = wanted[0, len(ids):].tolist()
        text = tokenizer.decode(wanted, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        if completion["token_ids"] == wanted:
            same_ids += 1
            got = torch.tensor(completion["logprobs"])
            worst = max(worst, (got - token_logprobs(model, ids + wanted)[len(ids) - 1:]).abs().max().item())
        else:
            place = next((i for i, (a, b) in enumerate(zip(completion["token_ids"], wanted)) if a != b),
                         min(len(wanted), len(completion["token_ids"])))
            with torch.no_grad():
                best = model(torch.tensor([ids + wanted[:place]])).logits[0, -1].topk(2).values
            print(f"        {prompt!r}: ids differ from token {place} on; transformers' best logit leads by "
                  f"{(best[0] - best[1]).item():.2e} there")
        if completion["text"] == text:
            same_texts += 1
        else:
            print(f"        {prompt!r}: text {completion['text']!r}, transformers has {text!r}")
    count = len(PROMPTS)
    checks.expect(same_prompts == count, f"{label}: prompt ids identical on {same_prompts} of {count} prompts")
    checks.expect(same_ids == count, f"{label}: greedy ids identical on {same_ids} of {count} prompts")
    checks.expect(same_texts == count, f"{label}: greedy text identical on {same_texts} of {count} prompts")
    checks.expect(worst <= tolerance, f"{label}: logprobs of greedy tokens differ by {worst:.2e} at most")


def check_model(checks, label, temper, folder, tolerance, new_tokens):
    model, info = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager",
                                                       output_loading_info=True)
    model.eval()
    strange = info["missing_keys"] or info["unexpected_keys"] or info["mismatched_keys"]
    checks.expect(not strange, f"{label}: loads in transformers" + (f": {info}" if strange else ""))
    tokenizer = AutoTokenizer.from_pretrained(folder)
    with tempfile.TemporaryDirectory() as work:
        check_score(checks, label, temper, folder, model, tokenizer, Path(work), tolerance)
        check_generate(checks, label, temper, folder, model, tokenizer, Path(work), tolerance, new_tokens)


def tensors_of(folder):
    tensors = {}
    for path in sorted(Path(folder).glob("model*.safetensors")):
        with safe_open(path, framework="pt") as file:
            tensors.update({name: file.get_tensor(name) for name in file.keys()})
    return tensors


def check_same_tensors(checks, folder, other):
    ours, theirs = tensors_of(folder), tensors_of(other)
    checks.expect(ours.keys() == theirs.keys(), f"{folder} and {other} have the same {len(ours)} tensor names")
    different = [name for name in ours.keys() & theirs.keys()
                 if ours[name].dtype != theirs[name].dtype or ours[name].shape != theirs[name].shape
                 or not torch.equal(ours[name].view(torch.uint8), theirs[name].view(torch.uint8))]
    checks.expect(not different, f"{folder} and {other} have the same bytes" + (f", but not {different}" if different else ""))


def tiny_tokenizer(folder):
    """Byte-level BPE with Qwen's pre-tokenizer and a few merges; returns the number of ids."""
    from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast
    pattern = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
               r"|\s+(?!\S)|\s+")
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Split(Regex(pattern), behavior="isolated"),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(vocab_size=330, show_progress=False, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
                                  special_tokens=["<|endoftext|>", "<|im_start|>", "<|im_end|>"])
    tokenizer.train_from_iterator(PROMPTS, trainer)
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|im_end|>", pad_token="<|endoftext|>",
                            clean_up_tokenization_spaces=False).save_pretrained(folder)
    return tokenizer.get_vocab_size()


def make_tiny_models(root):
    folders = []
    for name in make_model_fixtures.MODELS:
        folder = root / name
        vocab_size = tiny_tokenizer(folder)
        model, dtype, _ = make_model_fixtures.random_model(name, vocab_size, seed=1, hidden_size=64, intermediate_size=96,
                                                           num_hidden_layers=4, head_dim=16)
        model.to(dtype).save_pretrained(folder)
        folders.append(folder)
    return folders


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--temper", required=True, type=Path, help="the program")
    parser.add_argument("--model", type=Path, action="append", default=[], help="model directory; may be repeated")
    parser.add_argument("--same-tensors", type=Path, help="a directory whose tensors the model must equal byte for byte")
    parser.add_argument("--tolerance", type=float, default=1e-4, help="largest difference of a log-probability")
    parser.add_argument("--new-tokens", type=int, default=32, help="tokens a prompt")
    args = parser.parse_args()
    checks = Checks()
    with tempfile.TemporaryDirectory() as root:
        for folder in args.model or make_tiny_models(Path(root)):
            check_model(checks, folder.name, args.temper, folder, args.tolerance, args.new_tokens)
        if args.same_tensors:
            check_same_tensors(checks, args.model[0], args.same_tensors)
    sys.exit(1 if checks.failed else 0)


if __name__ == "__main__":
    main()
