// Whether the models that a configuration names can work together, from their config.json alone: before `temper run`
// or --dry-run loads anything. Models of earlier stages ("stage:NAME") are judged by what those stages start from.
#pragma once
#include "config/config.h"

namespace temper {

// IoError: a directory, its config.json, its weights or a start model's tokenizer is missing. FormatError: a
// config.json that cannot be read. ConfigError: vocabularies that differ, a classifier in place of a language model or
// the other way round, algo.distill_top_k above the vocabulary. Each names stage, key, value and fix; the first one
// found.
void check_models(const Config& config);

}  // namespace temper
