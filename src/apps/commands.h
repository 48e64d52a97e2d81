// The subcommands: one file each, one row each in commands.cpp. A command parses its arguments, wires objects, runs,
// and returns the exit code; it lets every exception through to main().
#pragma once
#include <span>
#include <string_view>

namespace temper {

struct Command {
  std::string_view name;
  std::string_view help;              // one line
  int (*run)(int argc, char** argv);  // argv[0] is the subcommand's name
};

std::span<const Command> commands();

int run_run(int argc, char** argv);
int run_train(int argc, char** argv);
int run_rollout(int argc, char** argv);
int run_eval(int argc, char** argv);
int run_generate(int argc, char** argv);
int run_score(int argc, char** argv);
int run_tokenize(int argc, char** argv);
int run_serve(int argc, char** argv);
int run_loss(int argc, char** argv);
int run_report(int argc, char** argv);
int run_status(int argc, char** argv);
int run_checkpoint(int argc, char** argv);
int run_keygen(int argc, char** argv);
int run_bench(int argc, char** argv);

void print_version();

}  // namespace temper
