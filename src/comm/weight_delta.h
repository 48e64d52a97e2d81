// What changed between two versions of weights, without loss: the bytes XOR each other, compressed with zstd. After a
// step at a learning rate of 1e-6 most bf16 values are the same bits, so most of the result is zero. Chunk by chunk, so
// that neither end needs more than a chunk of memory beside the weights. No state; any thread.
#pragma once
#include <cstddef>
#include <span>
#include <string>
#include <string_view>

namespace temper {

// REQUIRES: base and next are of one size. The result may be larger than a chunk of random bytes, by 0.4% and 64 bytes.
std::string encode_delta(std::span<const std::byte> base, std::span<const std::byte> next);

// weights holds the base and becomes the next version. FormatError where the delta is cut short, corrupt or of another
// size, with the weights as they were.
void apply_delta(std::string_view delta, std::span<std::byte> weights);

}  // namespace temper
