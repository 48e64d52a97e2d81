// Scores, masks and token rewards of a batch (loss_contract 5.1, and KL in the reward of 5.2): what every advantage
// estimator starts from. Plain doubles on the CPU: these arrays are small and the estimators are recursions.
#pragma once
#include <cstdint>
#include <vector>

#include "algos/batch.h"
#include "algos/settings.h"

namespace temper {

struct GroupRange {
  int64_t begin = 0, end = 0;  // completions
  int64_t size() const { return end - begin; }
};

struct Scores {
  std::vector<GroupRange> groups;    // [G] all of them
  std::vector<int64_t> offsets;      // [B + 1]
  std::vector<uint8_t> stays;        // [B] 0: the group was filtered out
  std::vector<uint8_t> counted;      // [N] m
  std::vector<int64_t> num_counted;  // [B] L
  std::vector<int64_t> last;         // [B] index in [N] of the last counted token, -1 if there is none
  bool has_rewards = false;          // the rest is 0 if not
  std::vector<double> reward;        // [B] r + overlong penalty: what metrics report
  std::vector<double> score;         // [B] s: the same less KL in the reward
  std::vector<double> token_reward;  // [N] R
  int64_t groups_filtered = 0;
  double total_counted = 0;  // sum of m
  double total_stays = 0;    // B
};

Scores compute_scores(const LossBatch& batch, const AlgoSection& settings, const AlgoContext& context);

// s -= coef * sum_t k and R -= coef * k, with k_it = m * k(old - ref). Returns k, [N].
std::vector<double> subtract_kl(Scores& scores, const LossBatch& batch, const AlgoSection& settings, double kl_coef);

// The numbers of a tensor as doubles; empty if undefined.
std::vector<double> to_doubles(const at::Tensor& tensor);

}  // namespace temper
