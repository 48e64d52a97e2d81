#include "model/rope.h"

#include <ATen/ATen.h>

#include <cmath>
#include <numbers>

#include "core/error.h"

namespace temper {
namespace {

// theta^(2d / head_dim), d = 0 … head_dim/2 - 1
at::Tensor wavelengths(const ModelConfig& config) {
  const auto exponents = at::arange(0, config.head_dim, 2, at::kLong).to(at::kFloat).div(config.head_dim);
  return at::pow(config.rope_theta, exponents);
}

// Low frequencies are divided by the factor, high ones kept, those between interpolated
// (https://github.com/meta-llama/llama-models, apply_scaling).
at::Tensor llama3_frequencies(const RopeScaling& scaling, const at::Tensor& inverse) {
  const auto context = static_cast<double>(*scaling.original_max_position_embeddings);
  const at::Tensor wavelength = 2 * std::numbers::pi / inverse;
  const double low_wavelength = context / scaling.low_freq_factor;
  const double high_wavelength = context / scaling.high_freq_factor;
  const at::Tensor scaled = at::where(wavelength > low_wavelength, inverse / scaling.factor, inverse);
  const at::Tensor smooth =
      (context / wavelength - scaling.low_freq_factor) / (scaling.high_freq_factor - scaling.low_freq_factor);
  const at::Tensor smoothed = (1 - smooth) * scaled / scaling.factor + smooth * scaled;
  const at::Tensor medium = (wavelength >= high_wavelength).logical_and(wavelength <= low_wavelength);
  return at::where(medium, smoothed, scaled);
}

// YaRN (Peng et al. 2023, arXiv:2309.00071): frequencies that turn more than beta_fast times within the original
// context are kept, those that turn less than beta_slow times are divided by the factor, a linear ramp over dimensions
// between.
RopeFrequencies yarn_frequencies(const ModelConfig& config) {
  const RopeScaling& scaling = config.rope_scaling;
  const auto context =
      static_cast<double>(scaling.original_max_position_embeddings.value_or(config.max_position_embeddings));
  const auto width = static_cast<double>(config.head_dim);
  const auto dimension_of = [&](double rotations) {
    return width * std::log(context / (rotations * 2 * std::numbers::pi)) / (2 * std::log(config.rope_theta));
  };
  double low = dimension_of(scaling.beta_fast), high = dimension_of(scaling.beta_slow);
  if (scaling.truncate) {
    low = std::floor(low);
    high = std::ceil(high);
  }
  low = std::max(low, 0.0);
  high = std::min(high, width - 1);
  if (low == high) high += 0.001;
  const at::Tensor ramp = at::clamp((at::arange(config.head_dim / 2, at::kFloat) - low) / (high - low), 0, 1);
  const at::Tensor kept_share = 1 - ramp;
  const at::Tensor periods = wavelengths(config);
  const at::Tensor kept = 1.0 / periods;
  const at::Tensor stretched = 1.0 / (scaling.factor * periods);

  const auto attention_scale = [&](double mscale) {
    return scaling.factor <= 1 ? 1.0 : 0.1 * mscale * std::log(scaling.factor) + 1.0;
  };
  double attention_factor = attention_scale(1.0);
  if (scaling.attention_factor)
    attention_factor = *scaling.attention_factor;
  else if (scaling.mscale.value_or(0) != 0 && scaling.mscale_all_dim.value_or(0) != 0)
    attention_factor = attention_scale(*scaling.mscale) / attention_scale(*scaling.mscale_all_dim);
  return {stretched * (1 - kept_share) + kept * kept_share, attention_factor};
}

}  // namespace

RopeFrequencies rope_frequencies(const ModelConfig& config) {
  TEMPER_CHECK(config.head_dim > 0 && config.head_dim % 2 == 0, "head_dim is {}", config.head_dim);
  const at::Tensor inverse = 1.0 / wavelengths(config);
  switch (config.rope_scaling.kind) {
    case RopeScaling::Kind::kNone:
      return {inverse, 1.0};
    case RopeScaling::Kind::kLinear:
      return {inverse / config.rope_scaling.factor, 1.0};
    case RopeScaling::Kind::kLlama3:
      return {llama3_frequencies(config.rope_scaling, inverse), 1.0};
    case RopeScaling::Kind::kYarn:
      return yarn_frequencies(config);
  }
  TEMPER_CHECK(false, "unknown rope scaling");
}

RopeTable rope_table(const ModelConfig& config, int64_t num_positions) {
  const RopeFrequencies frequencies = rope_frequencies(config);
  const at::Tensor angles =
      at::arange(num_positions, at::kFloat).unsqueeze(1) * frequencies.inverse;  // [P, head_dim / 2]
  return {angles.cos() * frequencies.attention_factor, angles.sin() * frequencies.attention_factor};
}

}  // namespace temper
