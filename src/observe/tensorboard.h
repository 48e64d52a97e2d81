// TensorBoard event files, written without TensorBoard: scalars tagged STAGE/METRIC. Apps own the writer and write from
// one thread. A failed write is counted and warned once; training never stops for it.
//
// File:   records, each  u64 length | u32 masked crc of the length | data | u32 masked crc of the data (little-endian,
// TFRecord) Crc:    CRC32C (Castagnoli), masked: rotate right by 15, add 0xa282ead8 Data:   protobuf Event { 1: double
// wall_time; 2: int64 step; 3: string file_version; 5: Summary; 7: SessionLog }
//         Summary { 1: repeated Value { 1: string tag; 2: float simple_value } }   SessionLog { 1: status (1 = START) }
// First record: file_version "brain.Event:2". A resumed run opens a new file whose second record is a session start at
// the first step that is written again: TensorBoard then forgets that step and the later ones of the older files.
#pragma once
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

#include "core/metric_record.h"

namespace temper {

uint32_t crc32c(std::string_view bytes);
uint32_t masked_crc32c(std::string_view bytes);

class TensorBoardWriter {
 public:
  // purge_step: on resume, the first global step that will be written again.
  explicit TensorBoardWriter(const std::string& directory, std::optional<int64_t> purge_step = std::nullopt);
  ~TensorBoardWriter();
  TensorBoardWriter(const TensorBoardWriter&) = delete;
  TensorBoardWriter& operator=(const TensorBoardWriter&) = delete;

  // global_step must not fall from stage to stage (a purge goes by it alone). Values that are not finite are left out.
  void write(const MetricRecord& record, int64_t global_step);
  int64_t num_failed_writes() const { return num_failed_writes_; }
  const std::string& path() const { return path_; }

 private:
  void append(std::string_view event);

  std::string path_;
  int descriptor_ = -1;
  int64_t num_failed_writes_ = 0;
};

}  // namespace temper
