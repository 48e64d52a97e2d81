"""temper serve as its clients see it: chat and completions, whole and streamed, many at once; bad requests, clients that leave,
full queues, stopping. Python's standard library alone."""
import concurrent.futures
import http.client
import json
import random
import re
import signal
import socket
import subprocess
import tempfile
import pathlib
import time
import unittest

import harness

CHATML = ("{% for message in messages %}{{'<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n'}}"
          "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}")
TRAIN = harness.TINY.replace("max_position_embeddings = 64", "max_position_embeddings = 512") + """
[train]
num_prompts_per_step = 2
max_steps = 1
"""


class Server:
    """temper serve on a free port; ends with Ctrl-C."""

    def __init__(self, model, *options):
        self.log_file = tempfile.NamedTemporaryFile("w+", suffix=".log")
        self.process = subprocess.Popen([str(harness.TEMPER), "serve", "--model", str(model), "--port", "0", "--dtype", "f32", *options],
                                        stdout=subprocess.DEVNULL, stderr=self.log_file)
        deadline = time.monotonic() + 120
        while not (found := re.search(r"listening on http://127.0.0.1:(\d+)/v1", self.log())):
            if self.process.poll() is not None or time.monotonic() > deadline:
                raise AssertionError(f"the server did not start: {self.log()}")
            time.sleep(0.05)
        self.port = int(found.group(1))

    def log(self):
        return pathlib.Path(self.log_file.name).read_text()

    def request(self, method, path, body=None, headers=None):
        """(status, parsed JSON or text)"""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=120)
        try:
            if body is not None and not isinstance(body, (str, bytes)):
                body = json.dumps(body)
            connection.request(method, path, body, {"Content-Type": "application/json", **(headers or {})})
            response = connection.getresponse()
            text = response.read().decode()  # raises where it is no UTF-8
            is_json = response.headers.get("Content-Type", "").startswith("application/json")
            return response.status, json.loads(text) if is_json else text
        finally:
            connection.close()

    def post(self, path, **body):
        return self.request("POST", path, body)

    def stream(self, path, **body):
        """(events, whether [DONE] came); each event must be valid UTF-8 and JSON by itself."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=120)
        try:
            connection.request("POST", path, json.dumps({"stream": True, **body}), {"Content-Type": "application/json"})
            response = connection.getresponse()
            assert response.status == 200, response.read()
            assert response.headers["Content-Type"] == "text/event-stream"
            parts = response.read().split(b"\n\n")
            assert parts.pop() == b""
            data = [part.removeprefix(b"data: ").decode() for part in parts]
            done = data[-1] == "[DONE]"
            return [json.loads(each) for each in (data[:-1] if done else data)], done
        finally:
            connection.close()

    def metrics(self):
        lines = self.request("GET", "/metrics")[1].splitlines()
        return {line.split()[0]: float(line.split()[1]) for line in lines if not line.startswith("#")}

    def wait_for(self, condition, seconds=60):
        deadline = time.monotonic() + seconds
        while not condition(metrics := self.metrics()):
            if time.monotonic() > deadline:
                raise AssertionError(f"after {seconds} s: {metrics}")
            time.sleep(0.02)

    def stop(self):
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGINT)
        code = self.process.wait(timeout=60)
        self.log_file.close()
        return code


class Serve(harness.Case):
    @classmethod
    def setUpClass(cls):
        folder = harness.temporary_folder(cls.addClassCleanup)
        (folder / "config.toml").write_text(TRAIN)
        harness.temper("run", "config.toml", cwd=folder, check=0)
        cls.model = folder / "runs" / "tiny" / "model"
        (cls.model / "chat_template.jinja").write_text(CHATML)
        cls.server = Server(cls.model, "--served-model-name", "tiny", "--max-num-seqs", "8", "--max-queued-seqs", "24")

    @classmethod
    def tearDownClass(cls):
        code = cls.server.stop()
        assert code == 0, code

    def ok(self, answer):
        self.assertEqual(answer[0], 200, answer[1])
        return answer[1]

    def refused(self, answer, status, *words):
        self.assertEqual(answer[0], status, answer[1])
        error = answer[1]["error"]
        self.assertEqual(set(error), {"message", "type", "param", "code"})
        for word in words:
            self.assertIn(word, error["message"])
        return error

    def test_a_chat_is_answered_with_counts(self):
        reply = self.ok(self.server.post("/v1/chat/completions", model="tiny", messages=[{"role": "user", "content": "hi"}],
                                         max_tokens=7, ignore_eos=True, n=2, seed=1, logprobs=True))
        self.assertEqual([choice["index"] for choice in reply["choices"]], [0, 1])
        self.assertEqual({choice["finish_reason"] for choice in reply["choices"]}, {"length"})
        self.assertEqual([len(choice["logprobs"]["content"]) for choice in reply["choices"]], [7, 7])
        self.assertTrue(all(entry["logprob"] < 0 for entry in reply["choices"][0]["logprobs"]["content"]))
        prompt = len("user\nhi\nassistant\n") + 3  # a token a byte, and three special ones
        self.assertEqual(reply["usage"], {"prompt_tokens": prompt, "completion_tokens": 14, "total_tokens": prompt + 14})

    def test_prompts_in_a_list_and_as_token_ids_are_the_same_as_one_by_one(self):
        both = self.ok(self.server.post("/v1/completions", prompt=["ab", "cd"], temperature=0, max_tokens=5))["choices"]
        ids = self.ok(self.server.post("/v1/completions", prompt=[[97, 98], [99, 100]], temperature=0, max_tokens=5))["choices"]
        one = self.ok(self.server.post("/v1/completions", prompt="cd", temperature=0, max_tokens=5))["choices"]
        self.assertEqual(both, ids)
        self.assertEqual(both[1]["text"], one[0]["text"])

    def test_a_seed_repeats_and_without_one_draws_differ(self):
        draw = lambda **more: self.ok(self.server.post("/v1/completions", prompt="ab", max_tokens=12, **more))["choices"][0]["text"]
        self.assertEqual(draw(seed=4), draw(seed=4))
        self.assertNotEqual(draw(seed=4), draw(seed=5))
        self.assertNotEqual(draw(), draw())

    def test_a_stream_is_the_whole_reply_in_pieces(self):
        # The model is all but random: its bytes seldom are characters, which is what streams must get right.
        for path, prompt in (("/v1/completions", {"prompt": ["ab", "cd"]}),
                             ("/v1/chat/completions", {"messages": [{"role": "user", "content": "ab"}]})):
            for seed in range(4):
                settings = dict(prompt, n=2, seed=seed, max_tokens=40, stop=["e", "th", "\u00e9"],
                                logprobs=True if "chat" in path else 0)
                whole = self.ok(self.server.post(path, **settings))
                events, done = self.server.stream(path, stream_options={"include_usage": True}, **settings)
                self.assertTrue(done)
                self.assertEqual(events[-1]["usage"], whole["usage"])
                self.assertEqual(events[-1]["choices"], [])
                text, reason, logprobs = {}, {}, {}
                for event in events[:-1]:
                    self.assertIsNone(event["usage"])
                    (choice,) = event["choices"]
                    index = choice["index"]
                    self.assertNotIn(index, reason, "nothing follows the end")
                    piece = choice["delta"].get("content", "") if "chat" in path else choice["text"]
                    text[index] = text.get(index, "") + piece
                    if choice["logprobs"]:
                        logprobs.setdefault(index, []).extend(choice["logprobs"].get("content") or choice["logprobs"].get("token_logprobs") or [])
                    if choice["finish_reason"]:
                        reason[index] = choice["finish_reason"]
                for choice in whole["choices"]:
                    index = choice["index"]
                    expected = choice["message"]["content"] if "chat" in path else choice["text"]
                    self.assertEqual(text[index], expected)
                    self.assertEqual(reason[index], choice["finish_reason"])
                    self.assertEqual(logprobs[index], choice["logprobs"].get("content") or choice["logprobs"]["token_logprobs"])
                    self.assertFalse({"e", "\u00e9"} & set(expected))

    def test_many_clients_at_once_each_get_their_own_answer(self):
        def ask(seed):
            settings = dict(prompt="ab", max_tokens=4 + seed % 9, seed=seed, ignore_eos=True)
            if seed % 2:
                events, done = self.server.stream("/v1/completions", **settings)
                self.assertTrue(done)
                return "".join(event["choices"][0]["text"] for event in events)
            return self.ok(self.server.post("/v1/completions", **settings))["choices"][0]["text"]

        alone = [ask(seed) for seed in range(24)]
        with concurrent.futures.ThreadPoolExecutor(24) as pool:
            self.assertEqual(list(pool.map(ask, range(24))), alone)

    def test_a_client_that_leaves_frees_its_place(self):
        before = self.server.metrics()
        body = json.dumps({"prompt": "ab", "max_tokens": 500, "ignore_eos": True, "n": 4, "stream": True}).encode()
        for read_something in (True, False):
            with socket.create_connection(("127.0.0.1", self.server.port)) as client:
                client.sendall(b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
                               b"Content-Length: %d\r\n\r\n%s" % (len(body), body))
                if read_something:
                    self.assertIn(b"200 OK", client.recv(200))
        # One that waits for a whole reply may leave too.
        whole = body.replace(b'"stream": true', b'"stream": false')
        with socket.create_connection(("127.0.0.1", self.server.port)) as client:
            client.sendall(b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
                           b"Content-Length: %d\r\n\r\n%s" % (len(whole), whole))
            self.server.wait_for(lambda now: now["temper_sequences_running"] > 0)
        self.server.wait_for(lambda now: now["temper_completions"] == 0 and now["temper_kv_cache_usage"] == 0)
        self.assertGreaterEqual(self.server.metrics()["temper_requests_cancelled_total"], before["temper_requests_cancelled_total"] + 2)
        self.ok(self.server.post("/v1/completions", prompt="ab", max_tokens=3))

    def test_bad_requests_get_one_clear_answer(self):
        post, complete = self.server.post, "/v1/completions"
        self.refused(post(complete, prompt="x" * 600), 400, "maximum context length is 512 tokens", "600")
        self.refused(post(complete, prompt="x", max_tokens=0), 400, "max_tokens is 0")
        self.refused(post(complete, prompt=""), 400, "no tokens")
        self.refused(post(complete, prompt="x", top_p=0), 400, "top_p is 0")
        self.refused(post(complete, prompt=[[9000]]), 400, "token id 9000", "259")
        self.refused(post(complete, prompt="x", echo=True), 400, "echo")
        self.refused(post(complete, prompt="x", max_token=3), 400, "max_tokens")
        self.refused(post(complete, prompt="x", n=1000), 400, "from 1 to 32")
        error = self.refused(post("/v1/chat/completions", model="gpt-4o", messages=[{"role": "user", "content": "x"}]), 404, "gpt-4o", "tiny")
        self.assertEqual((error["code"], error["param"]), ("model_not_found", "model"))
        self.refused(self.server.request("POST", complete, "{"), 400, "not JSON")
        self.refused(self.server.request("POST", complete, b'{"prompt": "\xff"}'), 400, "not JSON")
        self.refused(self.server.request("POST", complete, "{}", {"Content-Type": "text/plain"}), 415, "application/json")
        self.refused(self.server.request("POST", complete, "{}", {"Content-Type": "multipart/form-data; boundary=x"}), 415, "application/json")
        self.refused(self.server.request("POST", complete, b" " * ((8 << 20) + 1)), 413, "8 MiB")
        self.refused(self.server.request("GET", complete), 404, "POST /v1/completions")
        self.refused(self.server.request("GET", "/v1/models/other"), 404, "tiny")
        self.assertEqual(self.ok(self.server.request("GET", "/v1/models"))["data"][0]["max_model_len"], 512)
        self.assertEqual(self.ok(self.server.request("GET", "/health")), {"status": "ok"})

    def test_broken_http_and_random_bodies_harm_nobody(self):
        raw = [b"", b"\r\n\r\n", b"GET\r\n\r\n", b"POST /v1/completions HTTP/1.1\r\nContent-Length: 99999999999999999999\r\n\r\n{}",
               b"POST /v1/completions HTTP/1.1\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
               b"POST /v1/completions HTTP/1.1\r\nContent-Type: application/json\r\nContent-Encoding: gzip\r\nContent-Length: 2\r\n\r\n{}",
               b"GET /" + b"a" * 20000 + b" HTTP/1.1\r\n\r\n", b"\x16\x03\x01\x02\x00\x01\x00", bytes(range(256)) * 8]
        for data in raw:
            with socket.create_connection(("127.0.0.1", self.server.port), timeout=30) as client:
                client.sendall(data)
                client.shutdown(socket.SHUT_WR)
                try:
                    while client.recv(4096):
                        pass
                except ConnectionError:
                    pass
        chooser = random.Random(1)
        good = json.dumps({"prompt": "ab", "max_tokens": 2, "stop": ["x"], "n": 2, "stream": False, "temperature": 0.5, "seed": 3})
        for _ in range(200):
            body = bytearray(good.encode())
            for _ in range(chooser.randint(1, 3)):
                at = chooser.randrange(len(body))
                if chooser.random() < 0.5:
                    body[at] = chooser.randrange(256)
                else:
                    body[at : at + chooser.randint(0, 4)] = chooser.choice([b"", b"[", b"}", b'"', b"-1", b"1e400", b"null", b"\\u0000", b"{}"])
            status, reply = self.server.request("POST", "/v1/completions", bytes(body))
            self.assertIn(status, (200, 400, 404), (body, reply))
        self.ok(self.server.post("/v1/completions", prompt="ab", max_tokens=3))

    def test_a_full_queue_is_429_and_a_stopping_server_finishes_its_answers(self):
        server = Server(self.model, "--max-num-seqs", "2", "--max-queued-seqs", "2", "--api-key", "sesame")
        try:
            body = {"prompt": "ab", "max_tokens": 400, "ignore_eos": True, "n": 4}
            self.refused(server.request("POST", "/v1/completions", body), 401, "Authorization: Bearer")
            self.refused(server.request("GET", "/v1/models", headers={"Authorization": "Bearer sesam"}), 401)
            key = {"Authorization": "Bearer sesame"}
            self.assertEqual(self.ok(server.request("GET", "/v1/models", headers=key))["data"][0]["id"], "model")
            with concurrent.futures.ThreadPoolExecutor(1) as pool:
                long = pool.submit(server.request, "POST", "/v1/completions", body, key)
                server.wait_for(lambda now: now["temper_sequences_running"] > 0)
                error = self.refused(server.request("POST", "/v1/completions", {"prompt": "ab"}, key), 429, "Try again")
                self.assertEqual((error["type"], error["code"]), ("rate_limit_error", "queue_full"))
                server.process.send_signal(signal.SIGTERM)
                self.assertEqual(self.ok(long.result())["usage"]["completion_tokens"], 1600)
            self.assertEqual(server.process.wait(timeout=60), 0)
            self.assertIn("stopped: 1 requests answered", server.log())
        finally:
            server.stop()

    def test_what_cannot_be_served_ends_with_its_exit_code(self):
        serve = lambda *more: harness.temper("serve", "--model", self.model, "--port", "0", *more, cwd=self.folder)
        self.assert_error(serve("--port", "99999"), 2, "--port")
        self.assert_error(serve("--max-num-seqs", "0"), 2, "--max-num-seqs")
        self.assert_error(serve("--host", "not an address"), 3, "not an address")
        self.assert_error(serve("--port", str(self.server.port)), 3, str(self.server.port), "in use")
        self.assert_error(harness.temper("serve", "--model", "nowhere", "--port", "0", cwd=self.folder), 3, "nowhere")
        self.assert_error(harness.temper("serve", cwd=self.folder), 2, "--model")
        # Refused before it is allocated, with the numbers: weights, and a cache.
        config = json.loads((self.model / "config.json").read_text())
        other = self.folder / "other"
        other.mkdir()
        for file in self.model.iterdir():
            (other / file.name).write_bytes(file.read_bytes())
        for change, words, options in (({"num_hidden_layers": 1 << 17, "intermediate_size": 1 << 14}, ("million parameters", "MB of memory", "are free"), ()),
                                       ({"max_position_embeddings": 1 << 16}, ("kv_cache_memory", "MB of memory are free"),
                                        ("--max-num-seqs", "4096", "--kv-cache-memory", "100000000"))):
            (other / "config.json").write_text(json.dumps({**config, **change}))
            self.assert_error(harness.temper("serve", "--model", other, "--port", "0", *options, cwd=self.folder), 2, *words)


if __name__ == "__main__":
    harness.main()
