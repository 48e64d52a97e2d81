// The HTTP side of temper serve: routes, errors as OpenAI's error object, streams as server-sent events. A thread a
// connection; each waits on its request's mailbox (serve_engine.h) and notices when its client is gone.
#pragma once
#include <cstdint>
#include <memory>
#include <string>

#include "apps/serve_engine.h"
#include "apps/serve_request.h"
#include "data/tokenizer.h"

namespace temper {

struct HttpOptions {
  std::string host = "127.0.0.1";
  int port = 8000;                // 0: any that is free
  std::string api_key;            // empty: none is asked for
  int64_t max_connections = 256;  // answered at a time; further ones wait
};

class HttpServer {
 public:
  // Takes the address, so that one in use is known before a model is loaded. IoError.
  explicit HttpServer(const HttpOptions& options);
  ~HttpServer();  // as stop()
  HttpServer(const HttpServer&) = delete;
  HttpServer& operator=(const HttpServer&) = delete;

  int port() const;
  // Answers from now on, in threads of its own. What is given outlives this.
  void start(ServeEngine& engine, const ServedModel& model, const Tokenizer& tokenizer);
  // Answers under way are cut off: drain the engine before. Idle connections take up to five seconds.
  void stop();

 private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace temper
