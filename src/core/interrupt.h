// SIGINT, SIGTERM and SIGUSR1 ask the run to stop at the next safe point: finish the step, save, exit 75. A second
// SIGINT ends the process at once.
#pragma once

namespace temper {

void install_stop_handlers();
bool stop_requested();

}  // namespace temper
