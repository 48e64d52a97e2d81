#include "data/json_file.h"

#include <nlohmann/json.hpp>

#include "core/error.h"
#include "core/files.h"

namespace temper {

nlohmann::json parse_json(std::string_view text, const std::string& where) {
  try {
    return nlohmann::json::parse(text);
  } catch (const nlohmann::json::exception& error) {  // parse_error, or out_of_range for a number such as 1e999
    // its message is "[json.exception.parse_error.101] parse error at line 1, column 2: …"
    const std::string what = error.what();
    const size_t bracket = what.find("] ");
    throw FormatError("{}: is not valid JSON: {}.", where,
                      bracket == std::string::npos ? what : what.substr(bracket + 2));
  }
}

nlohmann::json read_json_file(const std::string& path) { return parse_json(read_file(path), path); }

}  // namespace temper
