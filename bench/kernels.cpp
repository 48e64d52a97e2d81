// Microbenchmark of the CPU kernels against LibTorch's operators: bench_kernels [threads]. One JSON object a line.
#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <torch/csrc/autograd/autograd.h>

#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <ctime>
#include <functional>
#include <string>

#include "model/attention.h"
#include "model/elementwise.h"
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
  return 0;
}
