// The stages of a run on this machine, one after the other, each from the model that the one before it handed on;
// resumable at any point. `temper run` is this.
#pragma once
#include <string>

#include "config/config.h"
#include "core/error.h"

namespace temper {

// continue_command: what to type to go on after a stop.
ExitCode run_pipeline(const Config& config, const std::string& continue_command);

}  // namespace temper
