// temper loss: a fixture with numbers in, the loss, its gradients and metrics out. No model.
#include <ATen/Parallel.h>

#include <iostream>

#include "algos/loss_fixture.h"
#include "apps/command_line.h"
#include "apps/commands.h"

namespace temper {

int run_loss(int argc, char** argv) {
  CommandLine line(
      "loss",
      "Computes loss, metrics and gradients of any [algo] setting on the numbers of a fixture, in double"
      " precision, and prints them as one JSON object. docs/algorithms.md has the format and every formula.",
      "FIXTURE.json");
  line.add_positional("FIXTURE.json");
  if (!line.parse(argc, argv)) return 0;

  at::set_num_threads(1);  // few numbers: threads would only wait for each other
  LossFixture fixture = read_loss_fixture(line.text("FIXTURE.json"));
  std::cout << evaluate_loss_fixture(fixture);
  return 0;
}

}  // namespace temper
