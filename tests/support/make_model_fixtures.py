#!/usr/bin/env python3
"""Makes tests/model/data: tiny random models as transformers saves them, and what transformers computes with them.

    .deps/python/bin/python tests/support/make_model_fixtures.py [--out tests/model/data]

One folder a model (config.json, generation_config.json, safetensors, and expected.safetensors), all in f32 arithmetic:
    tokens.I   [T] i64        a sequence             logits.I  [T, V] f32   its logits
    greedy.I   [P + 12] i64   tokens.I and 12 greedy tokens (the best logit leads the second by 1e-3 at least)
    loss       [1] f32        mean of -log p over all predicted tokens of all sequences
    grad.NAME  f32            its gradient by parameter
rope_cases.json and rope_expected.safetensors: frequencies and cos/sin tables at the sizes of real models.
Made with torch 2.13.0 and transformers 4.57.6; the same versions make the same files.
"""
import argparse
import json
import shutil
from pathlib import Path

import torch
from safetensors.torch import save_file
from transformers import LlamaConfig, LlamaForCausalLM, Qwen2Config, Qwen2ForCausalLM, Qwen3Config, Qwen3ForCausalLM
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

COMMON = dict(hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
              max_position_embeddings=256, bos_token_id=1, eos_token_id=2, pad_token_id=0)
LLAMA3 = dict(rope_type="llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0,
              original_max_position_embeddings=32)
YARN = dict(rope_type="yarn", factor=4.0, original_max_position_embeddings=16)

# name → (config, model class, dtype of the file, bytes a shard)
MODELS = {
    "llama": (LlamaConfig, dict(rope_theta=10000.0, rms_norm_eps=1e-5, head_dim=8, rope_scaling=LLAMA3),
              LlamaForCausalLM, torch.float32, "5GB"),
    "llama_bias": (LlamaConfig, dict(rope_theta=10000.0, rms_norm_eps=1e-6, attention_bias=True, mlp_bias=True,
                                     num_key_value_heads=1, rope_scaling=dict(rope_type="linear", factor=2.5)),
                   LlamaForCausalLM, torch.float16, "5GB"),
    "qwen2": (Qwen2Config, dict(rope_theta=1000000.0, tie_word_embeddings=True), Qwen2ForCausalLM, torch.bfloat16, "5GB"),
    "qwen2_yarn": (Qwen2Config, dict(rope_theta=10000.0, rope_scaling=YARN), Qwen2ForCausalLM, torch.bfloat16, "6KB"),
    "qwen3": (Qwen3Config, dict(rope_theta=1000000.0, head_dim=8, tie_word_embeddings=True), Qwen3ForCausalLM,
              torch.bfloat16, "5GB"),
}

ROPE_CASES = {
    "default": dict(head_dim=64, rope_theta=100000.0),
    "llama31": dict(head_dim=128, rope_theta=500000.0, max_position_embeddings=131072,
                    rope_scaling=dict(rope_type="llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0,
                                      original_max_position_embeddings=8192)),
    "linear": dict(head_dim=96, rope_theta=10000.0, rope_scaling=dict(type="linear", factor=4.0)),
    "yarn": dict(head_dim=128, rope_theta=1000000.0, max_position_embeddings=131072,
                 rope_scaling=dict(rope_type="yarn", factor=4.0, original_max_position_embeddings=32768)),
    "yarn_mscale": dict(head_dim=64, rope_theta=10000.0, max_position_embeddings=4096,
                        rope_scaling=dict(rope_type="yarn", factor=40.0, beta_fast=24.0, beta_slow=2.0, mscale=1.3,
                                          mscale_all_dim=0.7, truncate=False)),
    "yarn_attention_factor": dict(head_dim=64, rope_theta=10000.0,
                                  rope_scaling=dict(rope_type="yarn", factor=2.0, attention_factor=1.25)),
}
ROPE_POSITIONS = [0, 1, 17, 1000, 8191]


def random_model(name, vocab_size, seed=0, **changes):
    """A model whose attention and gates matter: weights of unit gain, norms and biases away from one and zero."""
    config_class, own, model_class, dtype, shard = MODELS[name]
    model = model_class(config_class(vocab_size=vocab_size, **{**COMMON, **own, **changes})).float().eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter_name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if parameter_name.endswith("norm.weight"):
                parameter.copy_(1 + 0.2 * noise)
            elif parameter_name.endswith("bias"):
                parameter.copy_(0.3 * noise)
            elif "embed" in parameter_name:
                parameter.copy_(noise)
            else:
                parameter.copy_(noise * parameter.shape[1] ** -0.5)
            parameter.copy_(parameter.to(dtype).float())  # what the file will hold
    return model, dtype, shard


def expected_values(model, vocab_size, lengths=(9, 41), new_tokens=12):
    generator = torch.Generator().manual_seed(7)
    expected, losses = {}, []
    for i, length in enumerate(lengths):
        tokens = torch.randint(3, vocab_size, (length,), generator=generator)
        logits = model(tokens[None]).logits[0]
        losses.append(torch.nn.functional.cross_entropy(logits[:-1], tokens[1:], reduction="sum"))
        expected[f"tokens.{i}"] = tokens
        expected[f"logits.{i}"] = logits.detach()
        greedy = tokens
        for _ in range(new_tokens):
            with torch.no_grad():
                best = model(greedy[None]).logits[0, -1].topk(2)
            assert best.values[0] - best.values[1] > 1e-3, "a tie: choose another seed"
            greedy = torch.cat([greedy, best.indices[:1]])
        expected[f"greedy.{i}"] = greedy
    loss = sum(losses) / sum(length - 1 for length in lengths)
    loss.backward()
    expected["loss"] = loss.detach().reshape(1)
    for parameter_name, parameter in model.named_parameters():
        expected[f"grad.{parameter_name}"] = parameter.grad
    return {key: value.clone() for key, value in expected.items()}  # model.to() will convert the gradients in place


def make_model(out, name):
    folder = out / name
    shutil.rmtree(folder, ignore_errors=True)
    model, dtype, shard = random_model(name, vocab_size=48)
    expected = expected_values(model, vocab_size=48)
    model.generation_config.eos_token_id = [2, 3]
    model.to(dtype).save_pretrained(folder, max_shard_size=shard)
    if name == "llama":  # keys that no reader knows, and values to be carried on as they are
        path = folder / "config.json"
        config = json.loads(path.read_text())
        config.update(note_of_the_authors={"licence": "apache-2.0", "factor": 0.1}, mlp_bias=False)
        path.write_text(json.dumps(config, indent=2) + "\n")
    save_file(expected, folder / "expected.safetensors")


def make_rope(out):
    tensors = {}
    for name, case in ROPE_CASES.items():
        config = LlamaConfig(hidden_size=2 * case["head_dim"], num_attention_heads=2, **case)
        rope = LlamaRotaryEmbedding(config)
        cos, sin = rope(torch.zeros(1), torch.tensor([ROPE_POSITIONS]))
        half = case["head_dim"] // 2
        tensors[f"{name}.inverse"] = rope.inv_freq.float()
        tensors[f"{name}.attention_factor"] = torch.tensor([float(rope.attention_scaling)])
        tensors[f"{name}.cos"] = cos[0, :, :half].contiguous()
        tensors[f"{name}.sin"] = sin[0, :, :half].contiguous()
    save_file(tensors, out / "rope_expected.safetensors")
    cases = {"positions": ROPE_POSITIONS, "cases": ROPE_CASES}
    (out / "rope_cases.json").write_text(json.dumps(cases, indent=1) + "\n")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path(__file__).parents[1] / "model" / "data")
    out = parser.parse_args().out
    torch.set_num_threads(1)
    torch.manual_seed(0)
    out.mkdir(parents=True, exist_ok=True)
    for name in MODELS:
        make_model(out, name)
    make_rope(out)


if __name__ == "__main__":
    main()
