// Microbenchmark of the CPU kernels against LibTorch's operators: bench_kernels [threads]. One JSON object a line.
#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <torch/csrc/autograd/autograd.h>

#include <atomic>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <ctime>
#include <functional>
#include <string>

#include "core/format.h"
#include "model/attention.h"
#include "model/elementwise.h"
#include "model/matmul.h"
#include "model/vocab_kernels.h"

namespace temper {
namespace {

struct Times {
  double wall_ms, cpu_ms;  // medians; on a busy machine only the processor time of one thread means anything
};

double median(std::vector<double> times) {
  std::nth_element(times.begin(), times.begin() + times.size() / 2, times.end());
  return times[times.size() / 2];
}

// At least five runs and 0.5 seconds.
Times measure(const std::function<void()>& run) {
  run();
  std::vector<double> wall, cpu;
  double total = 0;
  while (wall.size() < 5 || total < 500) {
    const auto start = std::chrono::steady_clock::now();
    const std::clock_t cpu_start = std::clock();
    run();
    cpu.push_back(static_cast<double>(std::clock() - cpu_start) * 1e3 / CLOCKS_PER_SEC);
    wall.push_back(std::chrono::duration<double, std::milli>(std::chrono::steady_clock::now() - start).count());
    total += wall.back();
  }
  return {median(wall), median(cpu)};
}

void report(const std::string& name, const std::string& variant, const Times& times, double gflop = 0) {
  std::printf(
      "{\"bench\": \"kernels\", \"threads\": %d, \"kernel\": \"%s\", \"variant\": \"%s\", \"ms\": %.4f, \"cpu_ms\": "
      "%.4f",
      at::get_num_threads(), name.c_str(), variant.c_str(), times.wall_ms, times.cpu_ms);
  if (gflop > 0) std::printf(", \"gflop_per_cpu_s\": %.1f", gflop / times.cpu_ms * 1e3);
  std::printf("}\n");
  std::fflush(stdout);
}

double attention_gflop(const std::vector<AttentionSegment>& segments, int64_t heads, int64_t head_dim) {
  double pairs = 0;
  for (const auto& s : segments) {
    const double own = static_cast<double>(s.end - s.begin),
                 prefix = static_cast<double>(s.prefix_end - s.prefix_begin);
    pairs += own * prefix + own * (own + 1) / 2;
  }
  return pairs * static_cast<double>(heads * head_dim) * 4e-9;
}

void bench_packed(const std::string& name, int64_t num_rows, const std::vector<AttentionSegment>& segments) {
  const int64_t heads = 9, kv_heads = 3, head_dim = 64;
  const double gflop = attention_gflop(segments, heads, head_dim);
  for (const at::ScalarType dtype : {at::kFloat, at::kBFloat16}) {
    const std::string type = dtype == at::kFloat ? " f32" : " bf16";
    const at::Tensor qkv = at::randn({num_rows, heads + 2 * kv_heads, head_dim}).to(dtype).set_requires_grad(true);
    const at::Tensor out = packed_attention_qkv(qkv, heads, kv_heads, segments, 0.125);
    const at::Tensor grad = at::randn_like(out);
    report(name + " forward" + type, "temper", measure([&] {
             at::NoGradGuard guard;
             packed_attention_qkv(qkv, heads, kv_heads, segments, 0.125);
           }),
           gflop);
    report(name + " backward" + type, "temper", measure([&] { torch::autograd::grad({out}, {qkv}, {grad}, true); }),
           gflop * 2.5);
  }
}

// B sequences of one length, so that LibTorch can take them as one batch.
void bench_sdpa(const std::string& name, int64_t batch, int64_t length) {
  const int64_t heads = 9, kv_heads = 3, head_dim = 64;
  const double gflop =
      static_cast<double>(batch * heads * head_dim) * static_cast<double>(length * (length + 1)) / 2 * 4e-9;
  for (const at::ScalarType dtype : {at::kFloat, at::kBFloat16}) {
    const std::string type = dtype == at::kFloat ? " f32" : " bf16";
    const auto make = [&](int64_t n) {
      return at::randn({batch, n, length, head_dim}).to(dtype).set_requires_grad(true);
    };
    const at::Tensor q = make(heads), k = make(kv_heads), v = make(kv_heads);
    const auto run = [&] {
      return at::scaled_dot_product_attention(q, k.repeat_interleave(heads / kv_heads, 1),
                                              v.repeat_interleave(heads / kv_heads, 1), {}, 0.0, true, 0.125);
    };
    const at::Tensor out = run();
    const at::Tensor grad = at::randn_like(out);
    report(name + " forward" + type, "libtorch sdpa", measure([&] {
             at::NoGradGuard guard;
             run();
           }),
           gflop);
    report(name + " backward" + type, "libtorch sdpa", measure([&] {
             torch::autograd::grad({out}, {q, k, v}, {grad}, true);
           }),
           gflop * 2.5);
  }
}

void bench_decode(int64_t num_sequences, int64_t context, int64_t shared, int64_t layers) {
  const int64_t heads = 9, kv_heads = 3, head_dim = 64, block_size = 16;
  const int64_t blocks_each = (context + block_size - 1) / block_size;
  for (const at::ScalarType dtype : {at::kBFloat16, at::kFloat}) {
    std::vector<KvCache> caches;
    for (int64_t l = 0; l < layers; ++l) {
      caches.push_back(
          make_kv_cache(num_sequences * blocks_each, kv_heads, block_size, head_dim, at::TensorOptions().dtype(dtype)));
      caches.back().k.copy_(at::randn(caches.back().k.sizes()));
      caches.back().v.copy_(at::randn(caches.back().v.sizes()));
    }
    std::vector<std::vector<int32_t>> tables(num_sequences);
    std::vector<PagedSequence> sequences;
    for (int64_t s = 0; s < num_sequences; ++s) {
      const int64_t first_of_group = s / 8 * 8;
      for (int64_t b = 0; b < blocks_each; ++b)
        tables[s].push_back(static_cast<int32_t>((b < shared / block_size ? first_of_group : s) * blocks_each + b));
      sequences.push_back({tables[s].data(), context, 1, s});
    }
    const at::Tensor q = at::randn({num_sequences, heads, head_dim}).to(dtype);
    at::Tensor out = at::empty_like(q);
    const std::string name = "decode " + std::to_string(num_sequences) + " x " + std::to_string(context) + " shared " +
                             std::to_string(shared) + (dtype == at::kFloat ? " f32" : " bf16");
    report(name, "temper, " + std::to_string(layers) + " layers", measure([&] {
             for (const KvCache& cache : caches) paged_attention(q, cache, sequences, 0.125, out);
           }));
  }
}

// GB of memory traffic at least needed: reported as gb_per_cpu_s.
void report_bandwidth(const std::string& name, const std::string& variant, const Times& times, double gb) {
  std::printf(
      "{\"bench\": \"kernels\", \"threads\": %d, \"kernel\": \"%s\", \"variant\": \"%s\", \"ms\": %.4f, "
      "\"cpu_ms\": %.4f, \"gb_per_cpu_s\": %.2f}\n",
      at::get_num_threads(), name.c_str(), variant.c_str(), times.wall_ms, times.cpu_ms, gb / times.cpu_ms * 1e3);
  std::fflush(stdout);
}

void bench_elementwise(int64_t num_rows) {
  const int64_t hidden = 576, inner = 1536, heads = 9, kv_heads = 3, head_dim = 64;
  const std::string rows = std::to_string(num_rows) + " rows ";
  const double count = static_cast<double>(num_rows) * 1e-9;
  const at::Tensor x = at::randn({num_rows, hidden}).set_requires_grad(true);
  const at::Tensor weight = at::ones({hidden}).set_requires_grad(true);
  const at::Tensor gate_up = at::randn({num_rows, 2 * inner}).to(at::kBFloat16).set_requires_grad(true);
  const at::Tensor qkv =
      at::randn({num_rows, heads + 2 * kv_heads, head_dim}).to(at::kBFloat16).set_requires_grad(true);
  const at::Tensor angle = at::randn({num_rows, head_dim / 2}), cos = angle.cos(), sin = angle.sin();
  const at::Tensor positions = at::arange(num_rows, at::kLong);
  const auto both = [&](const std::string& name, const std::string& variant, const std::vector<at::Tensor>& inputs,
                        double forward_gb, double backward_gb, const std::function<at::Tensor()>& run) {
    report_bandwidth(rows + name + " forward", variant, measure([&] {
                       at::NoGradGuard guard;
                       run();
                     }),
                     forward_gb);
    const at::Tensor out = run(), grad = at::randn_like(out);
    report_bandwidth(rows + name + " backward", variant,
                     measure([&] { torch::autograd::grad({out}, inputs, {grad}, true); }), backward_gb);
  };
  const double norm = count * static_cast<double>(hidden) * 6, gate = count * static_cast<double>(inner) * 6;
  const double turn = count * static_cast<double>((heads + 2 * kv_heads) * head_dim) * 4;
  both("rms_norm", "temper", {x, weight}, norm, norm / 6 * 10,
       [&] { return rms_norm(x, weight, 1e-5, at::kBFloat16); });
  both("rms_norm", "aten", {x, weight}, norm, norm / 6 * 10,
       [&] { return reference::rms_norm(x, weight, 1e-5, at::kBFloat16); });
  both("silu_mul", "temper", {gate_up}, gate, gate / 6 * 10, [&] { return silu_mul(gate_up, at::kBFloat16); });
  both("silu_mul", "aten", {gate_up}, gate, gate / 6 * 10, [&] { return reference::silu_mul(gate_up, at::kBFloat16); });
  both("rope of qkv", "temper", {qkv}, turn, turn,
       [&] { return norm_rope_qkv(qkv, heads, kv_heads, {}, {}, 1e-5, cos, sin, positions); });
  both("rope of qkv", "aten", {qkv}, turn, turn,
       [&] { return reference::norm_rope_qkv(qkv, heads, kv_heads, {}, {}, 1e-5, cos, sin, positions); });
}

void bench_vocab(int64_t num_rows) {
  const int64_t vocab = 49152;
  const at::Tensor logits = at::randn({num_rows, vocab}) * 3;
  const at::Tensor targets = at::randint(0, vocab, {num_rows}, at::kLong), grad = at::randn({num_rows});
  const double gb = static_cast<double>(num_rows * vocab) * 4e-9;
  const std::string name = std::to_string(num_rows) + " x 49152 ";
  report_bandwidth(name + "log-probability", "temper", measure([&] { vocab_statistics(logits, 1.0, targets, false); }),
                   gb);
  report_bandwidth(name + "log-probability and entropy", "temper",
                   measure([&] { vocab_statistics(logits, 1.0, targets, true); }), gb);
  report_bandwidth(name + "log-probability", "aten",
                   measure([&] { at::log_softmax(logits, -1).gather(1, targets.unsqueeze(1)); }), gb);
  const at::Tensor sums = row_logsumexp(logits, 1.0);
  at::Tensor buffer = logits.clone();
  report_bandwidth(name + "backward in place", "temper",
                   measure([&] { logits_backward_(buffer, 1.0, targets, sums, grad); }), 2 * gb);
  const auto draw = [&](const std::string& what, double temperature, const TokenFilter& filter) {
    const float* data = logits.const_data_ptr<float>();
    report_bandwidth(name + "draw " + what, "temper", measure([&] {
                       at::parallel_for(0, num_rows, 1, [&](int64_t begin, int64_t end) {
                         for (int64_t r = begin; r < end; ++r)
                           draw_token(data + r * vocab, vocab, temperature, filter, 0.37);
                       });
                     }),
                     gb);
  };
  draw("temperature 1", 1, {});
  draw("temperature 0.7", 0.7, {});
  draw("temperature 0", 0, {});
  draw("top-k 50", 1, {.top_k = 50});
  draw("top-p 0.9", 1, {.top_p = 0.9});
  draw("top-k 50, top-p 0.9, min-p 0.05", 0.8, {.top_k = 50, .top_p = 0.9, .min_p = 0.05});
  report_bandwidth(name + "draw temperature 1", "aten", measure([&] { at::multinomial(at::softmax(logits, -1), 1); }),
                   gb);
}

// What a step of one sequence is bound by: weights that come from memory.
void bench_memory() {
  constexpr int64_t kWords = int64_t{1} << 25;
  const at::Tensor words = at::ones({kWords}, at::kLong);
  const int64_t* data = words.const_data_ptr<int64_t>();
  std::atomic<int64_t> sum{0};  // so that the loop is not left out
  report_bandwidth("memory read, 256 MiB", "temper", measure([&] {
                     at::parallel_for(0, kWords, kWords / at::get_num_threads(), [&](int64_t begin, int64_t end) {
                       int64_t own = 0;
                       for (int64_t i = begin; i < end; ++i) own += data[i];
                       sum += own;
                     });
                   }),
                   kWords * 8e-9);
}

// Weights as products read them: with each new version for generation, and for training transposed as well.
void bench_pack(int64_t outputs, int64_t inputs) {
  const at::Tensor weight = at::randn({outputs, inputs});
  PackedMatrix packed;
  for (const at::ScalarType from : {at::kFloat, at::kBFloat16}) {
    const at::Tensor given = weight.to(from);
    const std::string name = format("pack {} x {} to bf16", outputs, inputs);
    const std::string suffix = from == at::kFloat ? " from f32" : " from bf16";
    report(name, "rows" + suffix, measure([&] { packed.pack(given, at::kBFloat16); }));
    report(name, "transposed" + suffix, measure([&] { packed.pack_transposed(given, at::kBFloat16); }));
  }
}

}  // namespace
}  // namespace temper

int main(int argc, char** argv) {
  using namespace temper;
  if (argc > 1) at::set_num_threads(std::atoi(argv[1]));
  const auto equal = [](int64_t batch, int64_t length) {
    std::vector<AttentionSegment> segments;
    for (int64_t b = 0; b < batch; ++b) segments.push_back({b * length, (b + 1) * length, 0, 0});
    return segments;
  };
  bench_packed("attention 4 x 512", 2048, equal(4, 512));
  bench_sdpa("attention 4 x 512", 4, 512);
  bench_packed("attention 1 x 2048", 2048, equal(1, 2048));
  bench_sdpa("attention 1 x 2048", 1, 2048);
  std::vector<AttentionSegment> groups;
  int64_t row = 0;
  for (int64_t p = 0; p < 4; ++p) {
    const int64_t prompt = row;
    groups.push_back({row, row + 44, 0, 0});
    row += 44;
    for (int64_t c = 0; c < 8; ++c) {
      const int64_t length = 10 + (p * 8 + c) * 38 / 31;
      groups.push_back({row, row + length, prompt, prompt + 44});
      row += length;
    }
  }
  bench_packed("attention 4 prompts of 44 x 8 completions of 10..48", row, groups);
  bench_decode(64, 200, 0, 30);
  bench_decode(64, 200, 80, 30);
  bench_decode(1, 2000, 0, 30);
  bench_elementwise(2048);
  bench_elementwise(64);
  bench_vocab(64);
  bench_pack(1536, 576);
  bench_memory();
  return 0;
}
