#include "comm/channel_keys.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>
#include <zmq.h>

#include <array>
#include <cerrno>
#include <cstring>
#include <nlohmann/json.hpp>
#include <sstream>

#include "core/error.h"
#include "core/files.h"

namespace temper {
namespace {

constexpr size_t kKeyCharacters = 40;
constexpr const char *kHubKey = "hub.key", *kWorkerKey = "worker.key", *kAllowedWorkers = "allowed_workers";

std::string in_folder(const std::string& dir, const char* name) { return dir + "/" + name; }

void check_private(const std::string& path, const char* fix) {
  struct stat status {};
  if (::stat(path.c_str(), &status) != 0)
    throw IoError("{}: cannot be read ({}). Copy the key folder of the job here.", path, std::strerror(errno));
  if ((status.st_mode & 077) != 0)
    throw IoError(
        "{}: others may read it, so it is no secret any more. Run {} {} and make new keys if this machine has "
        "other users.",
        path, fix, path);
}

// A file that never exists with wider permissions, not even for a moment.
void write_private_file(const std::string& path, const std::string& text) {
  const int file = ::open(path.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
  if (file < 0)
    throw IoError("{}: cannot be made ({}). Give a new folder, or remove the keys of the finished job.", path,
                  std::strerror(errno));
  const bool good = ::write(file, text.data(), text.size()) == static_cast<ssize_t>(text.size()) && ::fsync(file) == 0;
  const std::string why = std::strerror(errno);
  if (::close(file) != 0 || !good) throw IoError("{}: writing failed ({}). Free some space.", path, why);
}

void write_key_pair(const std::string& path, const KeyPair& pair) {
  const nlohmann::ordered_json json = {{"public", pair.public_key}, {"secret", pair.secret_key}};
  write_private_file(path, json.dump(1) + "\n");
}

}  // namespace

KeyPair make_key_pair() {
  std::array<char, kKeyCharacters + 1> public_key{}, secret_key{};
  if (zmq_curve_keypair(public_key.data(), secret_key.data()) != 0)
    throw CommError("no key pair could be made ({}): this libzmq was built without CURVE. Install Debian's libzmq5.",
                    zmq_strerror(zmq_errno()));
  return {public_key.data(), secret_key.data()};
}

bool is_key(std::string_view text) {
  constexpr std::string_view kZ85 =
      "0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ.-:+=^!/*?&<>()[]{}@%$#";
  return text.size() == kKeyCharacters && text.find_first_not_of(kZ85) == std::string_view::npos;
}

void make_job_keys(const std::string& dir) {
  if (::mkdir(dir.c_str(), 0700) != 0 && errno != EEXIST)
    throw IoError("{}: the folder cannot be made ({}). Check that its parent exists and is writable.", dir,
                  std::strerror(errno));
  check_private(dir, "chmod 700");
  const KeyPair hub = make_key_pair(), worker = make_key_pair();
  write_key_pair(in_folder(dir, kHubKey), hub);
  write_key_pair(in_folder(dir, kWorkerKey), worker);
  write_private_file(in_folder(dir, kAllowedWorkers), worker.public_key + " worker.key\n");
}

void make_job_keys_if_missing(const std::string& dir) {
  if (!file_exists(in_folder(dir, kHubKey))) make_job_keys(dir);
}

KeyPair read_key_pair(const std::string& path) {
  check_private(path, "chmod 600");
  const auto json = nlohmann::json::parse(read_file(path), nullptr, /*allow_exceptions=*/false);
  KeyPair pair;
  if (json.is_object() && json.contains("public") && json["public"].is_string() && json.contains("secret") &&
      json["secret"].is_string())
    pair = {json["public"], json["secret"]};
  if (!is_key(pair.public_key) || !is_key(pair.secret_key))
    throw FormatError("{}: holds no key pair (public and secret, 40 characters each). Make the keys anew.", path);
  return pair;
}

ServerKeys read_server_keys(const std::string& dir) {
  check_private(dir, "chmod 700");
  ServerKeys keys{.own = read_key_pair(in_folder(dir, kHubKey)), .allowed_clients = {}};
  const std::string path = in_folder(dir, kAllowedWorkers);
  std::istringstream lines(read_file(path));
  int64_t number = 0;
  for (std::string line; std::getline(lines, line);) {
    ++number;
    const std::string key = line.substr(0, line.find_first_of(" \t\r"));
    if (key.empty()) continue;
    if (!is_key(key))
      throw FormatError("{}:{}: a public key has 40 characters, this has {}. Write one key a line.", path, number,
                        key.size());
    keys.allowed_clients.push_back(key);
  }
  return keys;
}

ClientKeys read_client_keys(const std::string& dir, const std::string& server_public_key) {
  return {.own = read_key_pair(in_folder(dir, kWorkerKey)), .server_public_key = server_public_key};
}

}  // namespace temper
