#include "apps/serve_http.h"

#include <httplib.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <cstring>
#include <ctime>
#include <nlohmann/json.hpp>
#include <random>
#include <thread>

#include "apps/serve_reply.h"
#include "core/clock.h"
#include "core/error.h"
#include "core/log.h"
#include "core/rng.h"

namespace temper {
namespace {

using httplib::Request;
using httplib::Response;
using json = nlohmann::ordered_json;

constexpr size_t kMaxBodyBytes = 8 << 20;
constexpr std::chrono::milliseconds kPatience{250};  // between two looks whether the client is still there
constexpr const char* kEndpoints =
    "POST /v1/chat/completions, POST /v1/completions, GET /v1/models, GET /health, GET /metrics";
constexpr const char* kShuttingDown = "the server is shutting down.";

// A thread a connection, made when none is idle, up to a bound; further connections wait.
class ConnectionThreads : public httplib::TaskQueue {
 public:
  explicit ConnectionThreads(size_t most) : most_(most) {}

  void enqueue(std::function<void()> task) override {
    const std::lock_guard lock(mutex_);
    tasks_.push_back(std::move(task));
    if (tasks_.size() > num_idle_ && threads_.size() < most_) threads_.emplace_back([this] { work(); });
    arrived_.notify_one();
  }

  void shutdown() override {
    {
      const std::lock_guard lock(mutex_);
      stopped_ = true;
    }
    arrived_.notify_all();
    for (std::thread& thread : threads_) thread.join();
  }

 private:
  void work() {
    std::unique_lock lock(mutex_);
    while (true) {
      ++num_idle_;
      arrived_.wait(lock, [&] { return stopped_ || !tasks_.empty(); });
      --num_idle_;
      if (tasks_.empty()) return;
      const std::function<void()> task = std::move(tasks_.front());
      tasks_.pop_front();
      lock.unlock();
      task();
      lock.lock();
    }
  }

  const size_t most_;
  std::mutex mutex_;
  std::condition_variable arrived_;
  std::list<std::function<void()>> tasks_;  // guarded by mutex_
  size_t num_idle_ = 0;                     // guarded by mutex_
  bool stopped_ = false;                    // guarded by mutex_
  std::vector<std::thread> threads_;        // the accepting thread's
};

class ListeningServer : public httplib::Server {
 public:
  // The library asks for a backlog of 5: many clients at once would be turned away.
  void widen_backlog() { ::listen(svr_sock_, 512); }
};

void send_json(Response& response, int status, const std::string& body) {
  response.status = status;
  response.set_content(body, "application/json");
}

void send_error(Response& response, const ApiError& error) {
  if (error.status() == 429 || error.status() == 503) response.set_header("Retry-After", "1");
  send_json(response, error.status(), error_body(error.status(), error.what(), error.code(), error.param()));
}

void send_failure(Response& response, const std::exception_ptr& failure) {
  try {
    std::rethrow_exception(failure);
  } catch (const ApiError& error) {
    send_error(response, error);
  } catch (const ConfigError& error) {
    send_error(response, ApiError(400, "", "", error.what()));
  } catch (const FormatError& error) {
    send_error(response, ApiError(400, "", "", error.what()));
  } catch (const std::exception& error) {
    log_error("answering a request: {}", error.what());
    send_error(response, ApiError(500, "", "", format("internal error: {}", error.what())));
  }
}

// In a time that does not tell how much of it is right.
bool same_text(std::string_view a, std::string_view b) {
  unsigned difference = a.size() != b.size();
  for (size_t i = 0; i < a.size() && !b.empty(); ++i) difference |= static_cast<unsigned>(a[i] ^ b[i % b.size()]);
  return difference == 0;
}

std::string hex(uint64_t number) {
  char text[17];
  std::snprintf(text, sizeof text, "%016llx", static_cast<unsigned long long>(number));
  return text;
}

// An accepted request on its way out, piece by piece.
class PendingReply {
 public:
  PendingReply(std::unique_ptr<ServeEngine::Ticket> ticket, ApiReply reply, size_t num_prompts, bool stream, Mail first)
      : ticket_(std::move(ticket)), reply_(std::move(reply)), stream_(stream), results_(num_prompts) {
    if (stream_) out_ = reply_.opening();
    absorb(std::move(first));
  }
  PendingReply(const PendingReply&) = delete;
  PendingReply& operator=(const PendingReply&) = delete;
  ~PendingReply() {
    log_info("{}: {} prompt tokens, {} completion tokens, {} s{}", reply_.id(), reply_.num_prompt_tokens(),
             reply_.num_completion_tokens(), static_cast<double>(static_cast<int64_t>(clock_.seconds() * 1000)) / 1000,
             written_   ? ""
             : cut_off_ ? "; cut off"
                        : "; not finished, its client is gone");
  }

  // Waits for more and writes it. False ends the connection.
  bool write(httplib::DataSink& sink) {
    if (out_.empty() && !cut_off_) absorb(ticket_->take(kPatience));
    if (!sink.is_writable() || (!out_.empty() && !sink.write(out_.data(), out_.size()))) return false;
    out_.clear();
    written_ = reply_.finished();
    if (written_) sink.done();
    return !cut_off_;
  }

 private:
  void absorb(Mail mail) {
    if (stream_) {
      out_ += reply_.chunks(mail.tokens);
      if (reply_.finished()) out_ += reply_.closing();
    }
    for (GenerationResult& result : mail.results) {
      results_.at(static_cast<size_t>(result.id)) = std::move(result);
      if (++num_results_ == results_.size() && !stream_) out_ = reply_.whole(results_);
    }
    cut_off_ = mail.closed && !reply_.finished();
    if (cut_off_ && stream_) out_ += "data: " + error_body(503, kShuttingDown) + "\n\n";
  }

  std::unique_ptr<ServeEngine::Ticket> ticket_;
  ApiReply reply_;
  const bool stream_;
  std::vector<GenerationResult> results_;  // [P]
  size_t num_results_ = 0;
  std::string out_;  // to be written
  bool written_ = false, cut_off_ = false;
  Stopwatch clock_;
};

std::string metrics_text(const ServeStats& stats) {
  const EngineStats& engine = stats.engine;
  const auto used = engine.num_blocks == 0
                        ? 0.0
                        : static_cast<double>(engine.num_used_blocks) / static_cast<double>(engine.num_blocks);
  std::string out;
  const auto line = [&](const char* name, const char* type, const char* help, auto value) {
    out += format("# HELP temper_{} {}\n# TYPE temper_{} {}\ntemper_{} {}\n", name, help, name, type, name, value);
  };
  line("completions", "gauge", "Completions in the server: running, waiting or being written.", stats.num_completions);
  line("sequences_running", "gauge", "Completions that share the steps.", engine.num_running);
  line("sequences_waiting", "gauge", "Completions that wait for a place.", engine.num_waiting);
  line("kv_cache_usage", "gauge", "Share of the cache's blocks in use.", used);
  line("requests_accepted_total", "counter", "Requests that the engine took.", stats.num_accepted);
  line("requests_refused_total", "counter", "Requests that the engine refused.", stats.num_refused);
  line("requests_cancelled_total", "counter", "Requests whose client left before the end.", stats.num_cancelled);
  line("requests_queue_full_total", "counter", "Requests answered 429.", stats.num_queue_full);
  line("prefill_tokens_total", "counter", "Prompt tokens computed.", engine.num_prefill_tokens);
  line("completion_tokens_total", "counter", "Tokens drawn.", engine.num_completion_tokens);
  line("preemptions_total", "counter", "Sequences put back for want of cache.", engine.num_preemptions);
  line("engine_busy_seconds_total", "counter", "Time inside engine steps.", engine.busy_s);
  return out;
}

// The port that a socket got, or an IoError with the reason.
int bind(ListeningServer& server, const HttpOptions& options) {
  server.set_tcp_nodelay(true);
  server.set_keep_alive_max_count(1 << 30);
  server.set_keep_alive_timeout(5);
  server.set_read_timeout(10);
  server.set_write_timeout(30);
  server.set_payload_max_length(kMaxBodyBytes);
  // Not the library's SO_REUSEPORT, with which two servers share a port and neither knows.
  server.set_socket_options([](int socket) {
    const int yes = 1;
    ::setsockopt(socket, SOL_SOCKET, SO_REUSEADDR, &yes, sizeof yes);
  });
  errno = 0;
  const int port = options.port != 0 ? server.bind_to_port(options.host, options.port) ? options.port : -1
                                     : server.bind_to_any_port(options.host);
  if (port <= 0)
    throw IoError("cannot listen on {}:{}: {}. Give another --port (0: any that is free) or --host.", options.host,
                  options.port, errno == 0 ? "no such address" : std::strerror(errno));
  server.widen_backlog();
  return port;
}

}  // namespace

struct HttpServer::State {
  explicit State(const HttpOptions& given) : options(given) {
    port = bind(server, options);
    server.new_task_queue = [this] { return new ConnectionThreads(static_cast<size_t>(options.max_connections)); };
    std::random_device device;
    salt = (uint64_t{device()} << 32) | device();
  }

  void add_routes();
  void generate(ApiKind kind, const Request& request, Response& response, const httplib::ContentReader& reader);
  void check_key(const Request& request) const;
  json model_object() const;
  uint64_t fresh_number() { return SplitMix64(salt + 0x9E3779B97F4A7C15u * ++num_drawn).next(); }

  const HttpOptions options;
  ListeningServer server;
  int port = 0;
  std::thread listener;
  ServeEngine* engine = nullptr;
  const Tokenizer* tokenizer = nullptr;
  ServedModel model;
  const int64_t started = std::time(nullptr);
  uint64_t salt = 0;
  std::atomic<uint64_t> num_drawn{0};
};

HttpServer::HttpServer(const HttpOptions& options) : state_(std::make_unique<State>(options)) {}
HttpServer::~HttpServer() { stop(); }
int HttpServer::port() const { return state_->port; }

void HttpServer::start(ServeEngine& engine, const ServedModel& model, const Tokenizer& tokenizer) {
  State& state = *state_;
  state.engine = &engine;
  state.model = model;
  state.tokenizer = &tokenizer;
  state.add_routes();
  state.listener = std::thread([&state] {
    if (!state.server.listen_after_bind()) log_error("the HTTP server stopped: accepting connections failed.");
  });
  while (!state.server.is_running()) std::this_thread::sleep_for(std::chrono::milliseconds(1));
}

void HttpServer::stop() {
  if (!state_->listener.joinable()) return;
  state_->server.stop();
  state_->listener.join();
}

void HttpServer::State::check_key(const Request& request) const {
  if (options.api_key.empty() || same_text(request.get_header_value("Authorization"), "Bearer " + options.api_key))
    return;
  throw ApiError(401, "invalid_api_key", "", "this server asks for its key: Authorization: Bearer KEY.");
}

json HttpServer::State::model_object() const {
  return {{"id", model.name},
          {"object", "model"},
          {"created", started},
          {"owned_by", "temper"},
          {"max_model_len", model.context}};
}

void HttpServer::State::add_routes() {
  using httplib::ContentReader;
  server.Post("/v1/chat/completions", [this](const Request& request, Response& response, const ContentReader& reader) {
    generate(ApiKind::kChat, request, response, reader);
  });
  server.Post("/v1/completions", [this](const Request& request, Response& response, const ContentReader& reader) {
    generate(ApiKind::kCompletion, request, response, reader);
  });
  server.Get("/v1/models", [this](const Request& request, Response& response) {
    check_key(request);
    send_json(response, 200, json({{"object", "list"}, {"data", json::array({model_object()})}}).dump());
  });
  server.Get(R"(/v1/models/(.+))", [this](const Request& request, Response& response) {
    check_key(request);
    if (request.matches[1] != model.name)
      throw ApiError(404, "model_not_found", "model", format("no such model: this server has {}.", model.name));
    send_json(response, 200, model_object().dump());
  });
  server.Get("/health", [this](const Request&, Response& response) {
    if (engine->draining()) throw ApiError(503, "", "", kShuttingDown);
    send_json(response, 200, R"({"status":"ok"})");
  });
  server.Get("/metrics", [this](const Request&, Response& response) {
    response.set_content(metrics_text(engine->stats()), "text/plain; version=0.0.4");
  });
  server.set_exception_handler(
      [](const Request&, Response& response, const std::exception_ptr& failure) { send_failure(response, failure); });
  // What the library refuses by itself: unknown paths, broken requests.
  server.set_error_handler([](const Request& request, Response& response) {
    if (!response.body.empty()) return;
    const std::string text =
        response.status == 404 ? format("no {} {} here. This server has {}.", request.method, request.path, kEndpoints)
                               : format("a broken HTTP request ({}).", response.status);
    send_json(response, response.status, error_body(response.status, text));
  });
}

// A whole request body, of a bounded size whatever its headers say.
std::string read_body(const Request& request, Response& response, const httplib::ContentReader& reader) {
  const std::string type = request.get_header_value("Content-Type");
  std::string body;
  bool too_large = false;
  // Form data are not read: the library would hand out their parts.
  const bool whole = !request.is_multipart_form_data() && reader([&](const char* data, size_t size) {
    too_large = body.size() + size > kMaxBodyBytes;
    if (!too_large) body.append(data, size);
    return !too_large;
  });
  if (!whole) response.set_header("Connection", "close");  // what is left of the body is no next request
  if (too_large || response.status == 413)
    throw ApiError(413, "", "", format("the body is larger than {} MiB. Send less at once.", kMaxBodyBytes >> 20));
  // As a web page cannot send it elsewhere unasked.
  if (type.rfind("application/json", 0) != 0)
    throw ApiError(415, "", "",
                   format("Content-Type is '{}': send application/json (curl -H 'Content-Type: application/json').",
                          type.substr(0, 60)));
  if (!whole) throw ApiError(400, "", "", "the body ends before its length. Send it again.");
  return body;
}

void HttpServer::State::generate(ApiKind kind, const Request& request, Response& response,
                                 const httplib::ContentReader& reader) {
  const std::string body = read_body(request, response, reader);
  check_key(request);
  const ApiRequest parsed = parse_api_request(kind, body, model, fresh_number());

  std::vector<GenerationRequest> prompts;
  for (size_t i = 0; i < parsed.prompts.size(); ++i)
    prompts.push_back({.prompt_token_ids = parsed.prompts[i],
                       .num_completions = parsed.num_completions,
                       .sampling = parsed.sampling,
                       .serial = static_cast<int64_t>(i),
                       .label = parsed.prompts.size() == 1 ? "request" : format("prompt[{}]", i)});
  std::unique_ptr<ServeEngine::Ticket> ticket = engine->submit(std::move(prompts), parsed.stream);
  if (ticket == nullptr && engine->draining()) throw ApiError(503, "", "", kShuttingDown);
  if (ticket == nullptr)
    throw ApiError(429, "queue_full", "", "the server has as many completions as it takes. Try again in a while.");
  Mail first;
  while (!first.accepted && first.refusal.empty() && !first.closed) first = ticket->take(kPatience);
  if (!first.refusal.empty()) throw ApiError(400, "", "", first.refusal);
  if (!first.accepted) throw ApiError(503, "", "", kShuttingDown);

  ApiReply reply(parsed, *tokenizer, model.name, hex(fresh_number()), std::time(nullptr));
  // Shared because std::function asks for copies; the response owns it.
  auto pending = std::make_shared<PendingReply>(std::move(ticket), std::move(reply), parsed.prompts.size(),
                                                parsed.stream, std::move(first));
  response.set_header("Cache-Control", "no-cache");
  response.set_chunked_content_provider(parsed.stream ? "text/event-stream" : "application/json",
                                        [pending](size_t, httplib::DataSink& sink) {
                                          try {
                                            return pending->write(sink);
                                          } catch (const std::exception& error) {  // the library would end the program
                                            log_error("writing an answer: {}", error.what());
                                            return false;
                                          }
                                        });
}

}  // namespace temper
