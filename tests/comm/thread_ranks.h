// Ranks that are threads of the test, one core each.
#pragma once
#include <ATen/Parallel.h>
#include <gtest/gtest.h>

#include <functional>
#include <string>
#include <thread>
#include <vector>

#include "comm/thread_communicator.h"

namespace temper {

// Runs body on every rank. One that throws fails the test and ends the others, which would wait for it.
inline void on_thread_ranks(int num_ranks, const CommOptions& options, const std::function<void(Communicator&)>& body) {
  ThreadWorld world(num_ranks, options);
  std::vector<std::string> errors(static_cast<size_t>(num_ranks));
  std::vector<std::thread> threads;
  for (int r = 0; r < num_ranks; ++r)
    threads.emplace_back([&, r] {
      at::set_num_threads(1);
      const auto comm = world.communicator(r);
      try {
        body(*comm);
      } catch (const std::exception& error) {
        errors[static_cast<size_t>(r)] = error.what();
        comm->abort(error.what());
      }
    });
  for (std::thread& thread : threads) thread.join();
  for (const std::string& error : errors) EXPECT_EQ(error, "");
}

}  // namespace temper
