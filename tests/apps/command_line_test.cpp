// Arguments, help and exit codes of the program as a user meets them.
#include "apps/command_line.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "apps/commands.h"
#include "config/load.h"
#include "core/error.h"
#include "tests/apps/run_temper.h"

namespace temper {
namespace {

using testing::AllOf;
using testing::ContainsRegex;
using testing::ElementsAre;
using testing::HasSubstr;
using testing::Not;
using testing::StartsWith;

TEST(Temper, WithoutArgumentsPrintsHelpAndExits2) {
  const RunResult result = run_temper({});
  EXPECT_EQ(result.exit_code, 2);
  EXPECT_EQ(result.out, "");
  EXPECT_THAT(result.err, HasSubstr("Usage: temper SUBCOMMAND"));
}

TEST(Temper, HelpListsEverySubcommandAndExitCode) {
  const RunResult result = run_temper({"--help"});
  EXPECT_EQ(result.exit_code, 0);
  EXPECT_EQ(result.err, "");
  for (const Command& command : commands()) {
    EXPECT_THAT(result.out, HasSubstr(std::string(command.name))) << command.name;
    EXPECT_THAT(result.out, HasSubstr(std::string(command.help))) << command.name;
  }
  EXPECT_THAT(result.out, AllOf(HasSubstr("3 input or output"), HasSubstr("75 stopped on request")));
}

TEST(Temper, EverySubcommandHasHelpWithItsOptions) {
  for (const Command& command : commands()) {
    const RunResult result = run_temper({std::string(command.name), "--help"});
    EXPECT_EQ(result.exit_code, 0) << command.name;
    EXPECT_EQ(result.err, "") << command.name;
    EXPECT_THAT(result.out, AllOf(HasSubstr("temper " + std::string(command.name)), HasSubstr("--log-level LEVEL"),
                                  HasSubstr("(default: info)")));
  }
}

TEST(Temper, VersionNamesBuildAndMachine) {
  const RunResult result = run_temper({"--version"});
  EXPECT_EQ(result.exit_code, 0);
  EXPECT_EQ(result.err, "");
  EXPECT_THAT(result.out, StartsWith(std::string("temper ") + TEMPER_VERSION + " ("));
  EXPECT_THAT(result.out, AllOf(HasSubstr("libtorch  2."), HasSubstr("bf16 products"), HasSubstr("build     "),
                                ContainsRegex("^temper [0-9.]+ \\(([0-9a-f]{12}(\\+changes)?|unknown commit)\\)")));
}

TEST(Temper, UnknownSubcommandNamesTheNearest) {
  const RunResult result = run_temper({"tokenise"});
  EXPECT_EQ(result.exit_code, 2);
  EXPECT_EQ(result.out, "");
  EXPECT_THAT(
      result.err,
      StartsWith("temper tokenise: error: unknown subcommand 'tokenise': the nearest is 'tokenize'. Subcommands: "));
}

TEST(Temper, UnknownOptionNamesTheNearest) {
  const RunResult result = run_temper({"tokenize", "--modle", "x"});
  EXPECT_EQ(result.exit_code, 2);
  EXPECT_THAT(result.err, HasSubstr("temper tokenize: error: unknown option --modle: the nearest is --model."
                                    " temper tokenize --help lists all."));
}

TEST(Temper, MissingOptionSaysHowToGiveIt) {
  const RunResult result = run_temper({"tokenize"});
  EXPECT_EQ(result.exit_code, 2);
  EXPECT_THAT(result.err, HasSubstr("--model is missing. Usage: temper tokenize --model DIR"));
}

TEST(Temper, WrongLogLevelListsTheLevels) {
  const RunResult result = run_temper({"tokenize", "--log-level=loud"});
  EXPECT_EQ(result.exit_code, 2);
  EXPECT_THAT(result.err, AllOf(HasSubstr("--log-level=loud"), HasSubstr("debug, info, warning, error, off")));
}

TEST(Temper, AMissingModelDirectoryExits3) {
  const RunResult result = run_temper({"tokenize", "--model", "/no/such/model"});
  EXPECT_EQ(result.exit_code, 3);
  EXPECT_EQ(result.out, "");
  EXPECT_THAT(result.err, AllOf(StartsWith("temper tokenize: error: "), HasSubstr("/no/such/model")));
}

TEST(Temper, PrintsTheConfigurationPage) {
  const RunResult result = run_temper({"--help-config-markdown"});
  EXPECT_EQ(result.exit_code, 0);
  EXPECT_EQ(result.out, config_markdown());
}

// --- the class itself

// What the arguments of `temper try …` give.
struct Parsed {
  explicit Parsed(std::vector<std::string> arguments) : line("try", "Tries.", "CONFIG [--count N]") {
    line.add_positional("config");
    line.add_option("count", "N", "how many", "3");
    line.add_option("stop", "TEXT", "ends it; may be repeated");
    line.add_option("scale", "NUMBER", "how much", "0.5");
    line.add_flag("dry-run", "only print");
    line.add_config_overrides();
    arguments.insert(arguments.begin(), "try");
    for (std::string& argument : arguments) argv.push_back(argument.data());
    is_run = line.parse(static_cast<int>(argv.size()), argv.data());
  }
  CommandLine line;
  std::vector<char*> argv;
  bool is_run = false;
};

std::string error_of(const std::vector<std::string>& arguments) {
  try {
    Parsed parsed(arguments);
    parsed.line.integer("count", 1, 10);
    parsed.line.number("scale", 0, 1);
    parsed.line.one_of("config", {"a.toml", "b.toml"});
  } catch (const ConfigError& error) {
    return error.what();
  }
  return "none";
}

TEST(CommandLine, ValuesComeFromTheUserOrTheDefault) {
  const Parsed parsed({"a.toml", "--count=7", "--stop", ",", "--stop=a,b", "--algo.kl_coef=0.1", "--dry-run"});
  ASSERT_TRUE(parsed.is_run);
  EXPECT_EQ(parsed.line.text("config"), "a.toml");
  EXPECT_EQ(parsed.line.integer("count"), 7);
  EXPECT_EQ(parsed.line.number("scale"), 0.5);
  EXPECT_FALSE(parsed.line.given("scale"));
  EXPECT_TRUE(parsed.line.given("count"));
  EXPECT_THAT(parsed.line.texts("stop"), ElementsAre(",", "a,b"));
  EXPECT_THAT(parsed.line.overrides(), ElementsAre("--algo.kl_coef=0.1"));
  EXPECT_TRUE(parsed.line.flag("dry-run"));
}

TEST(CommandLine, WrongValuesSayWhatIsAllowed) {
  EXPECT_EQ(error_of({"a.toml"}), "none");
  EXPECT_THAT(error_of({"a.toml", "--count=x"}), HasSubstr("--count=x is not an integer."));
  EXPECT_THAT(error_of({"a.toml", "--count=11"}), HasSubstr("--count=11 is out of range. Allowed: 1 to 10."));
  EXPECT_THAT(error_of({"a.toml", "--scale=nan"}), HasSubstr("--scale=nan is out of range. Allowed: 0 to 1."));
  EXPECT_THAT(error_of({"c.toml"}), HasSubstr("config=c.toml is not known. Allowed: a.toml, b.toml."));
  EXPECT_THAT(error_of({}), HasSubstr("config is missing. Usage: temper try CONFIG [--count N]"));
  EXPECT_THAT(error_of({"a.toml", "b.toml"}), HasSubstr("unexpected argument 'b.toml'. Usage: temper try CONFIG"));
  EXPECT_THAT(error_of({"a.toml", "--count"}), AllOf(HasSubstr("count"), HasSubstr("Usage: temper try CONFIG")));
}

TEST(CommandLine, OverridesNeedAKeyAndAValue) {
  EXPECT_THAT(error_of({"a.toml", "--run.seed", "3"}), HasSubstr("--run.seed has no value. Write --run.seed=VALUE."));
  EXPECT_THAT(
      error_of({"a.toml", "--learning_rate=1"}),
      HasSubstr("unknown option --learning_rate: here it is optim.learning_rate. Write --optim.learning_rate=VALUE."));
  EXPECT_THAT(error_of({"a.toml", "--cuont=1"}), HasSubstr("unknown option --cuont: the nearest is --count."));
}

}  // namespace
}  // namespace temper
