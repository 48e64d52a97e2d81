#include "apps/commands.h"

namespace temper {

// In the order in which --help lists them. A row appears here when the command works.
std::span<const Command> commands() {
  static constexpr Command kCommands[] = {
      {"run", "the whole pipeline of a configuration on this machine", run_run},
      {"train", "one trainer rank of such a run, started by mpirun or srun", run_train},
      {"rollout", "one rollout worker of such a run; may join and leave at any time", run_rollout},
      {"eval", "accuracy, avg@k and pass@k of a model", run_eval},
      {"generate", "completions of prompts, with token ids and log-probabilities", run_generate},
      {"score", "log-probabilities of given tokens or texts", run_score},
      {"tokenize", "lines on standard input to token ids, and back", run_tokenize},
      {"serve", "the OpenAI chat and completions API", run_serve},
      {"loss", "loss, gradients and metrics of any [algo] setting on given numbers", run_loss},
      {"report", "one HTML page of a run: curves, throughput, completions", run_report},
      {"status", "who works on a run, how far it is, its newest checkpoints", run_status},
      {"checkpoint", "lists, describes and verifies checkpoints", run_checkpoint},
      {"keygen", "the key pairs of a job's wires", run_keygen},
      {"bench", "measures a part on this machine; one JSON line a result", run_bench},
  };
  return kCommands;
}

}  // namespace temper
