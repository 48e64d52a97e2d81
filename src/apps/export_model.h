// What a run exports, made again from a checkpoint of it: for a model of any step, without the run.
#pragma once
#include <c10/core/ScalarType.h>

#include <optional>
#include <string>

#include "checkpoint/file_system.h"
#include "config/config.h"

namespace temper {

// Of the model that a stage exports, by checkpoint.export_dtype; auto: what the run's first model was loaded in, which
// is looked up in `origin`, or at [model] path where that is empty; f32 for a new model.
at::ScalarType export_dtype(const Config& config, size_t stage, const std::string& origin = "");

struct ExportOptions {
  std::string origin;  // the model directory that the run started from; empty: as its configuration says
  std::optional<at::ScalarType> dtype;  // nothing: as the run itself exports
};

// Writes the HF directory `to`, which must not exist: config.json, model.safetensors and the tokenizer's files, the
// bytes that the run would have exported after the checkpoint's step. Every byte that is read is verified.
void export_checkpoint(FileSystem& files, const std::string& checkpoint, const std::string& to,
                       const ExportOptions& options);

}  // namespace temper
