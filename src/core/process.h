// What the system says about machines and processes.
#pragma once
#include <cstdint>
#include <string>

namespace temper {

std::string host_name();     // of this machine
std::string slurm_job();     // the number of the Slurm job that this process belongs to; empty outside one
int64_t slurm_step_tasks();  // how many processes the srun began that began this one; 1 where none did

// Of a process of this machine, from /proc: the state letter ('T' is stopped), '?' where there is none such; when it
// began, in clock ticks since the machine did, -1 where there is none such.
char process_state(int64_t pid);
int64_t process_start_ticks(int64_t pid);

double process_cpu_s();   // of this process's threads so far
void raise_file_limit();  // of open files, to what the system allows; stays as it is where that fails

}  // namespace temper
