#!/usr/bin/env python3
"""What the HTTP server costs: tokens per second of temper serve beside those of the engine alone (temper generate), same model, prompts
and lengths, interleaved in one run. Python's standard library alone; its reading shares the machine's cores with the server.
    bench/compare_serve.py --model models/SmolLM2-135M-Instruct [--rounds 3]"""
import argparse
import json
import pathlib
import re
import selectors
import signal
import socket
import statistics
import subprocess
import tempfile
import time

PROMPT = "Write about number {}, its neighbours, and how one would explain it to a child who asks about it at dinner."


def engine_alone(arguments, folder, num_prompts, n):
    (folder / "p.jsonl").write_text("".join(json.dumps({"prompt": PROMPT.format(i)}) + "\n" for i in range(num_prompts)))
    process = subprocess.run([arguments.temper, "generate", "--model", arguments.model, "--prompts", folder / "p.jsonl", "--out", folder / "g.jsonl",
                              "--num-completions", str(n), "--max-new-tokens", str(arguments.max_tokens)], capture_output=True, text=True, check=True)
    return float(re.search(r"(\d+) tokens/s", process.stderr.splitlines()[-1]).group(1))


def through_the_server(port, arguments, num_requests, n, stream):
    """Raw sockets in one thread: as little of this program as can be."""
    selector, replies = selectors.DefaultSelector(), {}
    start = time.monotonic()
    for i in range(num_requests):
        body = json.dumps({"messages": [{"role": "user", "content": PROMPT.format(i)}], "n": n, "max_tokens": arguments.max_tokens,
                           "seed": i, "stream": stream, **({"stream_options": {"include_usage": True}} if stream else {})})
        client = socket.create_connection(("127.0.0.1", port))
        client.sendall(f"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Type: application/json\r\n"
                       f"Content-Length: {len(body)}\r\n\r\n{body}".encode())
        selector.register(client, selectors.EVENT_READ)
        replies[client] = bytearray()
    while selector.get_map():
        for key, _ in selector.select():
            if data := key.fileobj.recv(1 << 16):
                replies[key.fileobj] += data
            else:
                selector.unregister(key.fileobj)
                key.fileobj.close()
    seconds = time.monotonic() - start
    tokens = [int(re.findall(rb'"completion_tokens":(\d+)', reply)[-1]) for reply in replies.values()]
    return sum(tokens) / seconds


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--temper", default="build/release/temper")
    parser.add_argument("--model", required=True)
    parser.add_argument("--max-tokens", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    cases = {  # name: (prompts, n, stream)
        "8 requests, n = 8": (8, 8, False), "64 requests": (64, 1, False), "64 streams": (64, 1, True)}
    alone, served = {name: [] for name in cases}, {name: [] for name in cases}
    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        log = folder / "serve.log"
        with log.open("w") as file:
            process = subprocess.Popen([arguments.temper, "serve", "--model", arguments.model, "--port", "0"], stderr=file)
        while not (found := re.search(r"listening on http://127.0.0.1:(\d+)/v1", log.read_text())):
            if process.poll() is not None:
                raise SystemExit(log.read_text())
            time.sleep(0.05)
        try:
            for _ in range(arguments.rounds):
                for name, (prompts, n, stream) in cases.items():
                    alone[name].append(engine_alone(arguments, folder, prompts, n))
                    served[name].append(through_the_server(int(found.group(1)), arguments, prompts, n, stream))
        finally:
            process.send_signal(signal.SIGINT)
            process.wait()
    print(f"{'tokens/s, medians of ' + str(arguments.rounds):<28}{'engine alone':>14}{'served':>10}{'ratio':>8}")
    for name in cases:
        ratios = [b / a for a, b in zip(alone[name], served[name])]
        print(f"{name:<28}{statistics.median(alone[name]):>14.0f}{statistics.median(served[name]):>10.0f}{statistics.median(ratios):>8.2f}")


if __name__ == "__main__":
    main()
