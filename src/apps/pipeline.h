// The stages of a run on this machine, one after the other, each from the model that the one before it handed on;
// resumable at any point. `temper run` is this; `temper train` is one rank of it.
#pragma once
#include <string>
#include <vector>

#include "config/config.h"
#include "core/error.h"
#include "trainer/ranks.h"

namespace temper {

// The command that goes on with the run: the one that was typed, where that did not ask for a fresh or older start.
std::string continuing(std::string typed_command, const Config& config);

struct PipelineOptions {
  std::string continue_command;               // what to type to go on after a stop
  std::vector<std::string> worker_arguments;  // of `temper rollout`; not empty: rollout.workers are started
  int terminal_columns = 0;                   // see RunDirectory::begin
};

// Every rank calls this.
ExitCode run_pipeline(const Config& config, const PipelineOptions& options, const Ranks& ranks = {});

}  // namespace temper
