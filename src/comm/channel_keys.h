// The keys of a job's wires: CURVE pairs (Curve25519, written as Z85, 40 characters a key) in a folder that its owner
// alone may read. The hub has one pair, the workers another; a hub lets in the workers whose public keys are on its
// list. Only public keys leave the folder. docs/security.md says what they protect against.
#pragma once
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace temper {

struct KeyPair {
  std::string public_key, secret_key;  // Z85
};

struct ServerKeys {
  KeyPair own;
  std::vector<std::string> allowed_clients;  // public keys
};

struct ClientKeys {
  KeyPair own;
  std::string server_public_key;
};

KeyPair make_key_pair();
bool is_key(std::string_view text);  // 40 characters of Z85

// DIR (0700) with hub.key, worker.key (0600) and allowed_workers, one public key a line with a name after it. IoError
// where one of them exists: keys are not overwritten.
void make_job_keys(const std::string& dir);
// The same where DIR holds none yet; a hub that starts again keeps its keys, so that its workers find it again.
void make_job_keys_if_missing(const std::string& dir);

// IoError where a file is missing or others may read it, FormatError where it holds no keys.
KeyPair read_key_pair(const std::string& path);
ServerKeys read_server_keys(const std::string& dir);
ClientKeys read_client_keys(const std::string& dir, const std::string& server_public_key);

}  // namespace temper
