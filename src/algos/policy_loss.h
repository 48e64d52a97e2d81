// Policy losses on tokens, one row each: log-probabilities and advantages in, one number a token out, which
// Algorithm::loss weighs and aggregates. Any floating type and device. To add one: its enumerator, its file, its row in
// policy_loss.cpp.
#pragma once
#include <ATen/core/Tensor.h>

#include "algos/batch.h"
#include "algos/settings.h"

namespace temper {

// All [n], and 0 outside the mask, so that no number there can overflow.
struct TokenLossInput {
  const AlgoSection& settings;
  const Segments& segments;
  at::Tensor policy;  // differentiable
  at::Tensor old;     // constant, as all below
  at::Tensor advantages;
  at::Tensor mask;      // bool c
  at::Tensor selected;  // bool, clip_cov and kl_cov
};

struct TokenLoss {
  at::Tensor loss;  // [n] differentiable; anything outside the mask
  // [n] bool, what clip_ratio/* count; undefined = nowhere.
  at::Tensor clipped_low, clipped_high, clipped_dual;
};

struct PolicyLossRow {
  PolicyLoss id;
  TokenLoss (*compute)(const TokenLossInput&);
  bool weighted;  // multiplied by the importance weights of rollout_is
  bool selects;   // needs prepare()
};

const PolicyLossRow& policy_loss_row(PolicyLoss id);  // REQUIRES: not a preference loss

// e^lr with lr = clamp(policy - old, -20, 20), derivative 0 beyond.
at::Tensor clamped_log_ratio(const at::Tensor& policy, const at::Tensor& old);

// max(-A ratio, -A clamp(ratio, 1 - low, 1 + high)) and which bound acted on which tokens.
TokenLoss clipped_surrogate(const at::Tensor& ratio, const at::Tensor& advantages, const AlgoSection& settings);

TokenLoss clip_loss(const TokenLossInput& in);
TokenLoss gspo_loss(const TokenLossInput& in);
TokenLoss cispo_loss(const TokenLossInput& in);
TokenLoss sapo_loss(const TokenLossInput& in);
TokenLoss gmpo_loss(const TokenLossInput& in);
TokenLoss clip_cov_loss(const TokenLossInput& in);
TokenLoss kl_cov_loss(const TokenLossInput& in);
TokenLoss dppo_tv_loss(const TokenLossInput& in);
TokenLoss reinforce_loss(const TokenLossInput& in);
TokenLoss sft_loss(const TokenLossInput& in);

}  // namespace temper
