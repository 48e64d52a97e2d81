// The model of a bench: a directory, or random weights in the shape of a known size.
#pragma once
#include "apps/command_line.h"
#include "apps/inference_model.h"
#include "model/hf_directory.h"

namespace temper {

void declare_bench_source(CommandLine& line);  // --model and --preset
void declare_bench_model(CommandLine& line);   // and what it computes with

// ConfigError unless exactly one of --model and --preset is given.
InferenceModel load_bench_model(const CommandLine& line);
// The same to be trained: f32 masters.
ModelWeights open_bench_masters(const CommandLine& line);

}  // namespace temper
