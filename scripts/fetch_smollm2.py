"""Converts the GGUF file of SmolLM2-135M-Instruct to a Hugging Face model directory; fetch_smollm2.sh calls it.

  fetch_smollm2.py FILE.gguf DIR      writes config, weights (bf16), tokenizer and chat template
  fetch_smollm2.py --check DIR        asks the model a question with transformers

Two things need care. GGUF files of Llama models store the rows of q_proj and k_proj permuted for interleaved rotary
embeddings; they are put back. And the tokenizer is byte-level BPE with single digits, read from the file's metadata;
<|im_end|> (id 2) ends a turn and pads.
"""

import json
import os
import shutil
import sys

DIGITS_THEN_BYTES = {
    "type": "Sequence",
    "pretokenizers": [
        {"type": "Digits", "individual_digits": True},
        {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True},
    ],
}
ROW_PERMUTED = ("attn_q", "attn_k")
NAMES = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}


def hf_name(name):
    """blk.3.attn_q.weight -> (model.layers.3.self_attn.q_proj.weight, attn_q)."""
    if name == "token_embd.weight":
        return "model.embed_tokens.weight", ""
    if name == "output_norm.weight":
        return "model.norm.weight", ""
    prefix, layer, part, suffix = name.split(".")
    if prefix != "blk" or part not in NAMES or suffix != "weight":
        raise SystemExit(f"error: the GGUF file holds a tensor '{name}' that a Llama model does not have.")
    return f"model.layers.{layer}.{NAMES[part]}.weight", part


def undo_row_permutation(weight, num_heads):
    """[heads, head_dim/2, 2, in] -> [heads, 2, head_dim/2, in], flattened to [heads * head_dim, in]."""
    rows, columns = weight.shape
    return weight.reshape(num_heads, rows // num_heads // 2, 2, columns).swapaxes(1, 2).reshape(rows, columns)


def read_gguf(path):
    import gguf

    try:
        reader = gguf.GGUFReader(path)
    except (OSError, ValueError) as error:
        raise SystemExit(f"error: {path} cannot be read as GGUF ({error}). Remove it and run fetch_smollm2.sh again.")
    return reader, {key: field.contents() for key, field in reader.fields.items()}


def tensors(reader, meta):
    import gguf
    import torch

    num_heads = {"attn_q": meta["llama.attention.head_count"], "attn_k": meta["llama.attention.head_count_kv"]}
    for tensor in reader.tensors:
        name, part = hf_name(tensor.name)
        weight = gguf.dequantize(tensor.data, tensor.tensor_type)
        if part in ROW_PERMUTED:
            weight = undo_row_permutation(weight, num_heads[part])
        yield name, torch.from_numpy(weight.copy()).to(torch.bfloat16).contiguous()


def config(meta):
    heads = meta["llama.attention.head_count"]
    return {
        "architectures": ["LlamaForCausalLM"],
        "attention_bias": False,
        "attention_dropout": 0.0,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "head_dim": meta["llama.embedding_length"] // heads,
        "hidden_act": "silu",
        "hidden_size": meta["llama.embedding_length"],
        "initializer_range": 0.041666666666666664,
        "intermediate_size": meta["llama.feed_forward_length"],
        "max_position_embeddings": meta["llama.context_length"],
        "mlp_bias": False,
        "model_type": "llama",
        "num_attention_heads": heads,
        "num_hidden_layers": meta["llama.block_count"],
        "num_key_value_heads": meta["llama.attention.head_count_kv"],
        "pad_token_id": 2,
        "rms_norm_eps": 1e-05,
        "rope_scaling": None,
        "rope_theta": meta["llama.rope.freq_base"],
        "tie_word_embeddings": True,
        "torch_dtype": "bfloat16",
        "use_cache": True,
        "vocab_size": meta["llama.vocab_size"],
    }


def tokenizer_files(meta):
    tokens, types = meta["tokenizer.ggml.tokens"], meta["tokenizer.ggml.token_type"]
    control = 3  # gguf.TokenType.CONTROL
    added = [
        {"id": i, "content": token, "single_word": False, "lstrip": False, "rstrip": False, "normalized": False,
         "special": True}
        for i, (token, kind) in enumerate(zip(tokens, types)) if kind == control
    ]
    tokenizer = {
        "version": "1.0", "truncation": None, "padding": None, "added_tokens": added, "normalizer": None,
        "pre_tokenizer": DIGITS_THEN_BYTES, "post_processor": None,
        "decoder": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True},
        "model": {"type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": None,
                  "end_of_word_suffix": None, "fuse_unk": False, "byte_fallback": False, "ignore_merges": False,
                  "vocab": {token: i for i, token in enumerate(tokens)}, "merges": meta["tokenizer.ggml.merges"]},
    }
    names = {"bos_token": "<|im_start|>", "eos_token": "<|im_end|>", "unk_token": "<|endoftext|>",
             "pad_token": "<|im_end|>"}
    extra = {"additional_special_tokens": ["<|im_start|>", "<|im_end|>"]}
    settings = {
        "add_prefix_space": False,
        "added_tokens_decoder": {str(t["id"]): {k: v for k, v in t.items() if k != "id"} for t in added},
        **extra, **names,
        "chat_template": meta["tokenizer.chat_template"],
        "clean_up_tokenization_spaces": False,
        "model_max_length": meta["llama.context_length"],
        "model_input_names": ["input_ids", "attention_mask"],
        "tokenizer_class": "PreTrainedTokenizerFast",
    }
    generation = {"_from_model_config": True, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 2}
    return {"tokenizer.json": tokenizer, "tokenizer_config.json": settings,
            "special_tokens_map.json": {**extra, **names}, "generation_config.json": generation}


def convert(path, directory):
    from safetensors.torch import save_file

    reader, meta = read_gguf(path)
    if meta.get("general.architecture") != "llama" or meta.get("tokenizer.ggml.pre") != "smollm":
        raise SystemExit(f"error: {path} is not SmolLM2 (architecture {meta.get('general.architecture')}, "
                         f"pre-tokenizer {meta.get('tokenizer.ggml.pre')}).")
    partial = f"{directory}.partial"
    shutil.rmtree(partial, ignore_errors=True)
    os.makedirs(partial)
    save_file(dict(tensors(reader, meta)), f"{partial}/model.safetensors", metadata={"format": "pt"})
    for name, content in {"config.json": config(meta), **tokenizer_files(meta)}.items():
        with open(f"{partial}/{name}", "w", encoding="utf-8") as out:
            json.dump(content, out, indent=2, ensure_ascii=False)
            out.write("\n")
    os.chmod(f"{partial}/model.safetensors", 0o644)
    open(f"{partial}/complete", "w").close()
    shutil.rmtree(directory, ignore_errors=True)
    os.replace(partial, directory)


def check(directory):
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(directory)
    model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32)

    def prompt(question):
        message = [{"role": "user", "content": question}]
        return tokenizer.apply_chat_template(message, add_generation_prompt=True, return_tensors="pt")

    length = prompt("What is 6 + 8? Answer with just the number.").shape[1]
    question = "What is 7*8? Answer with just the number."
    ids = prompt(question)
    answer = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=48, do_sample=False)
    text = tokenizer.decode(answer[0, ids.shape[1]:], skip_special_tokens=True)
    print(f"prompt of {length} tokens; {question} -> {text!r}")
    if length != 44 or "56" not in text or tokenizer.eos_token_id != 2:
        raise SystemExit("error: expected 44 tokens and an answer with 56. Remove the directory and fetch it again.")


if __name__ == "__main__":
    if len(sys.argv) != 3:
        raise SystemExit(__doc__)
    check(sys.argv[2]) if sys.argv[1] == "--check" else convert(sys.argv[1], sys.argv[2])
