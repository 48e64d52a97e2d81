#include "checkpoint/agreement.h"

#include <ATen/ATen.h>

#include <exception>

#include "checkpoint/file_system.h"
#include "core/error.h"

namespace temper {
namespace {

// The first character of what a rank says.
enum class Kind : char { kDone = '+', kSync = 's', kIo = 'i', kFormat = 'f', kConfig = 'c', kOther = 'x' };

std::string said(Kind kind, const std::string& text) { return static_cast<char>(kind) + text; }

[[noreturn]] void throw_of(Kind kind, const std::string& text) {
  switch (kind) {
    case Kind::kSync:
      throw SyncError("{}", text);
    case Kind::kIo:
      throw IoError("{}", text);
    case Kind::kFormat:
      throw FormatError("{}", text);
    case Kind::kConfig:
      throw ConfigError("{}", text);
    default:
      throw CommError("{} See that rank's log.", text);
  }
}

}  // namespace

std::vector<std::string> Agreement::tell(const std::string& what, const std::string& text) const {
  if (size() == 1) return {text};
  return ranks_->gather_texts(what, text);
}

void Agreement::broadcast(const std::string& what, int root, char* data, int64_t size_bytes) const {
  if (size() > 1) ranks_->broadcast(what, at::from_blob(data, {size_bytes}, at::kByte), root).wait();
}

std::vector<std::string> Agreement::act(const std::string& what, const std::function<std::string()>& action) const {
  if (size() == 1) return {action()};
  std::string own;
  std::exception_ptr other;
  try {
    own = said(Kind::kDone, action());
  } catch (const SyncError& error) {
    own = said(Kind::kSync, error.what());
  } catch (const IoError& error) {
    own = said(Kind::kIo, error.what());
  } catch (const FormatError& error) {
    own = said(Kind::kFormat, error.what());
  } catch (const ConfigError& error) {
    own = said(Kind::kConfig, error.what());
  } catch (const CommError&) {
    throw;
  } catch (const std::exception& error) {
    own = said(Kind::kOther, error.what());
    other = std::current_exception();
  }
  std::vector<std::string> all = tell(what, own);
  for (size_t r = 0; r < all.size(); ++r) {
    const auto kind = static_cast<Kind>(all[r].front());
    all[r].erase(0, 1);
    if (kind == Kind::kDone) continue;
    if (other && static_cast<int>(r) == rank()) std::rethrow_exception(other);
    throw_of(kind, format("rank {}: {}", r, all[r]));
  }
  return all;
}

}  // namespace temper
