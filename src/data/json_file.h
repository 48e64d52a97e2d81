// Reads a whole JSON file; for this folder's .cpp files.
#pragma once
#include <nlohmann/json_fwd.hpp>
#include <string>
#include <string_view>

namespace temper {

// IoError if the file cannot be read, FormatError with path and place if it is not JSON.
nlohmann::json read_json_file(const std::string& path);
nlohmann::json parse_json(std::string_view text, const std::string& where);

}  // namespace temper
