// temper SUBCOMMAND …: finds the subcommand, runs it, and turns whatever it throws into one message on standard error
// and an exit code. Standard output carries results alone.
#include <c10/util/Exception.h>

#include <iostream>
#include <new>

#include "apps/commands.h"
#include "config/load.h"
#include "core/error.h"
#include "core/nearest_name.h"

namespace temper {
namespace {

constexpr int kBug = 1;  // an exit code of its own: none of those that scripts decide by

void print_help(std::ostream& out) {
  out << "temper trains language models by reinforcement learning and distillation.\n\n"
         "Usage: temper SUBCOMMAND …\n\n";
  for (const Command& command : commands())
    out << "  " << command.name << std::string(14 - command.name.size(), ' ') << command.help << "\n";
  out << "\n  --version     version, build and what this machine can do\n"
         "  --help        this; temper SUBCOMMAND --help for the options of one\n\n"
         "Exit codes: 0 done, 2 configuration, 3 input or output, 4 communication, 5 format (a corrupt or foreign "
         "file),\n"
         "6 numerics, 75 stopped on request with a checkpoint written, 1 a bug.\n";
}

const Command& find_command(const std::string& name) {
  std::vector<std::string> names;
  for (const Command& command : commands()) {
    if (command.name == name) return command;
    names.emplace_back(command.name);
  }
  const std::string_view kind = name.starts_with("-") ? "option" : "subcommand";
  throw ConfigError("unknown {} '{}': the nearest is '{}'. Subcommands: {}.", kind, name, nearest_name(name, names),
                    join(names));
}

int dispatch(int argc, char** argv) {
  if (argc < 2) {
    print_help(std::cerr);
    return static_cast<int>(ExitCode::kConfig);
  }
  const std::string name = argv[1];
  int code = 0;
  if (name == "--help" || name == "-h" || name == "help")
    print_help(std::cout);
  else if (name == "--version")
    print_version();
  else if (name == "--help-config-markdown")  // makes docs/configuration.md
    std::cout << config_markdown();
  else
    code = find_command(name).run(argc - 1, argv + 1);
  if (!std::cout.flush()) throw IoError("standard output cannot be written. Is its disk full, or its reader gone?");
  return code;
}

}  // namespace
}  // namespace temper

int main(int argc, char** argv) {
  const std::string command = argc > 1 && argv[1][0] != '-' ? std::string(" ") + argv[1] : "";
  const std::string out_of_memory =
      "out of memory. Lower train.max_tokens_per_micro_batch, rollout.max_num_seqs or the model's size, or use a larger"
      " machine.";
  const auto fail = [&command](int code, const std::string& text) {
    std::cerr << "temper" << command << ": error: " << text << std::endl;
    return code;
  };
  try {
    return temper::dispatch(argc, argv);
  } catch (const temper::Error& error) {
    return fail(static_cast<int>(error.exit_code()), error.what());
  } catch (const std::bad_alloc&) {
    return fail(static_cast<int>(temper::ExitCode::kConfig), out_of_memory);
  } catch (const temper::InvariantError& error) {
    return fail(temper::kBug, std::string(error.what()) + ". This is a bug, please report it with this line.");
  } catch (const c10::Error& error) {
    const std::string text = error.what_without_backtrace();
    if (text.find("not enough memory") != std::string::npos || text.find("out of memory") != std::string::npos)
      return fail(static_cast<int>(temper::ExitCode::kConfig), out_of_memory);
    return fail(temper::kBug,
                "LibTorch: " + text.substr(0, text.find('\n')) + ". This is a bug, please report it with this line.");
  } catch (const std::exception& error) {
    return fail(temper::kBug, std::string(error.what()) + ". This is a bug, please report it with this line.");
  }
}
