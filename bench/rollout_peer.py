#!/usr/bin/env python3
"""One peer's side of bench/compare_rollout.py, run by it as a process of its own: prints one JSON object.

    bench/rollout_peer.py transformers --model DIR ...
    bench/rollout_peer.py llama.cpp --model FILE.gguf ...

transformers: generate() on all prompts at once, sampling at temperature 1. llama.cpp: a prompt is computed once, its cache copied to the
group's other sequences, then llama_decode on --batch sequences at a time; the next token is the likeliest of the logits' first hundred, so
sampling over the vocabulary is not counted."""
import argparse
import json
import resource
import time

MASK = (1 << 64) - 1


class Clock:
    """Wall time and processor time of all threads since it was made."""

    def __init__(self):
        self.wall, self.processor = time.monotonic(), time.process_time()

    def read(self):
        return time.monotonic() - self.wall, time.process_time() - self.processor


def prompt(index, length, vocabulary):
    """Token j is the j-th draw of SplitMix64(index), as in `temper bench rollout`."""
    state, ids = index, []
    for _ in range(length):
        state = (state + 0x9E3779B97F4A7C15) & MASK
        z = state
        z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & MASK
        z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & MASK
        ids.append((z ^ (z >> 31)) % vocabulary)
    return ids


def run_transformers(arguments):
    import torch
    from transformers import AutoModelForCausalLM

    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_pretrained(arguments.model, torch_dtype=torch.bfloat16)
    ids = torch.tensor([prompt(i, arguments.prompt_tokens, model.config.vocab_size) for i in range(arguments.num_prompts)])

    def generate(tokens, completions):
        clock = Clock()
        with torch.no_grad():
            model.generate(ids, attention_mask=torch.ones_like(ids), do_sample=True, temperature=1.0, top_k=0, max_new_tokens=tokens,
                           min_new_tokens=tokens, num_return_sequences=completions, pad_token_id=0, eos_token_id=-1)
        return clock.read()

    generate(1, 1)
    prefill, _ = generate(1, 1)
    seconds = generate(arguments.max_new_tokens, arguments.num_generations)
    return prefill, {"all": seconds}


def run_llama(arguments):
    import ctypes

    import llama_cpp as llama

    llama.llama_backend_init()
    llama.llama_log_set(ctypes.cast(None, llama.llama_log_callback), None)
    model = llama.llama_model_load_from_file(arguments.model.encode(), llama.llama_model_default_params())
    vocabulary = llama.llama_vocab_n_tokens(llama.llama_model_get_vocab(model))
    num_sequences = arguments.num_prompts * arguments.num_generations
    length = arguments.prompt_tokens + arguments.max_new_tokens
    parameters = llama.llama_context_default_params()
    parameters.n_seq_max = num_sequences
    parameters.n_ctx = (length + 255) // 256 * 256 * num_sequences
    parameters.n_batch = parameters.n_ubatch = max(1024, arguments.num_prompts * arguments.prompt_tokens)
    parameters.n_threads = parameters.n_threads_batch = arguments.threads
    parameters.type_k = parameters.type_v = 30  # GGML_TYPE_BF16: what Temper's cache holds
    parameters.kv_unified = False  # a stream of cells for each sequence: attention reads its own cells alone
    context = llama.llama_init_from_model(model, parameters)
    if not context:
        raise SystemExit("llama.cpp made no context")
    memory = llama.llama_get_memory(context)
    batch = llama.llama_batch_init(parameters.n_batch, 0, 1)
    prompts = [prompt(i, arguments.prompt_tokens, vocabulary) for i in range(arguments.num_prompts)]

    def decode(items):
        batch.n_tokens = len(items)
        for row, (token, position, sequence, wants_logits) in enumerate(items):
            batch.token[row], batch.pos[row], batch.n_seq_id[row], batch.logits[row] = token, position, 1, wants_logits
            batch.seq_id[row][0] = sequence
        if llama.llama_decode(context, batch) != 0:
            raise SystemExit("llama_decode failed")

    def next_token(row):
        logits = llama.llama_get_logits_ith(context, row)
        return max(range(100), key=logits.__getitem__)

    def prefill():
        llama.llama_memory_clear(memory, True)
        clock = Clock()
        items = [(token, j, i * arguments.num_generations, j == arguments.prompt_tokens - 1)
                 for i, ids in enumerate(prompts) for j, token in enumerate(ids)]
        decode(items)
        first = [next_token((i + 1) * arguments.prompt_tokens - 1) for i in range(arguments.num_prompts)]
        return first, clock.read()[0]

    def generate(size):
        clock = Clock()
        first, _ = prefill()
        tokens = []
        for i, token in enumerate(first):
            for g in range(arguments.num_generations):
                if g > 0:
                    llama.llama_memory_seq_cp(memory, i * arguments.num_generations, i * arguments.num_generations + g, -1, -1)
                tokens.append(token)
        for step in range(arguments.max_new_tokens - 1):
            for begin in range(0, num_sequences, size):
                some = range(begin, min(num_sequences, begin + size))
                decode([(tokens[s], arguments.prompt_tokens + step, s, True) for s in some])
                for row, s in enumerate(some):
                    tokens[s] = next_token(row)
        return clock.read()

    prefill()
    rate = min(prefill()[1] for _ in range(2))
    return rate, {str(size): generate(size) for size in sorted({min(size, num_sequences) for size in arguments.batch})}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("peer", choices=["transformers", "llama.cpp"])
    parser.add_argument("--model", required=True)
    parser.add_argument("--num-prompts", type=int, default=8)
    parser.add_argument("--num-generations", type=int, default=8)
    parser.add_argument("--prompt-tokens", type=int, default=80)
    parser.add_argument("--max-new-tokens", type=int, default=128)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--batch", type=int, nargs="*", default=[64], help="llama.cpp: sequences of one llama_decode, each tried")
    arguments = parser.parse_args()
    prefill_s, seconds = (run_transformers if arguments.peer == "transformers" else run_llama)(arguments)
    tokens = arguments.num_prompts * arguments.num_generations * arguments.max_new_tokens
    best = min(seconds, key=seconds.get)
    print(json.dumps({"bench": "rollout_peer", "peer": arguments.peer, "threads": arguments.threads, "tokens_per_s": tokens / seconds[best][0],
                      "cpu_s": seconds[best][1], "best_batch": best, "all_tokens_per_s": {size: tokens / value[0] for size, value in seconds.items()},
                      "prefill_tokens_per_s": arguments.num_prompts * arguments.prompt_tokens / prefill_s,
                      "peak_rss_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024}))


if __name__ == "__main__":
    main()
