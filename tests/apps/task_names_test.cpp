// The configuration cannot see the data folder: its words for tasks must be the tasks that exist.
#include <gtest/gtest.h>

#include "config/table.h"
#include "data/task.h"

namespace temper {
namespace {

TEST(TaskNames, AreTheWordsOfTheConfiguration) { EXPECT_EQ(find_key("data.task")->words, Task::names()); }

TEST(TaskNames, HaveTheSameDefaultParametersInBothPlaces) {
  const DataSection::Generated section;
  const TaskOptions options;
  EXPECT_EQ(section.seed, static_cast<int64_t>(options.seed));
  EXPECT_EQ(section.max_operand, options.max_operand);
  EXPECT_EQ(section.num_items, options.num_items);
  EXPECT_EQ(section.num_worked, options.num_worked);
  EXPECT_EQ(section.held_out_share, options.held_out_share);
}

}  // namespace
}  // namespace temper
