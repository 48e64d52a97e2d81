#!/usr/bin/env python3
"""temper serve through the official openai client: what it sends is understood, what it gets it parses.
    openai_client.py --temper build/release/temper --model models/SmolLM2-135M-Instruct
Needs the openai package (scripts/setup.sh --python). Exit code 1 where something differs."""
import argparse
import asyncio
import json
import pathlib
import re
import signal
import subprocess
import tempfile
import time

import openai

QUESTION = [{"role": "user", "content": "What is the capital of France?"}]


def start(temper, model, folder):
    log = folder / "serve.log"
    process = subprocess.Popen([temper, "serve", "--model", model, "--port", "0", "--api-key", "sesame", "--max-num-seqs", "8",
                                "--max-queued-seqs", "24"], stderr=log.open("w"))
    while not (found := re.search(r"listening on (http://\S+/v1)", log.read_text())):
        if process.poll() is not None:
            raise SystemExit(log.read_text())
        time.sleep(0.05)
    return process, found.group(1)


def generated(temper, model, folder):
    """What temper generate answers, greedily."""
    (folder / "p.jsonl").write_text(json.dumps({"messages": QUESTION}) + "\n")
    subprocess.run([temper, "generate", "--model", model, "--prompts", folder / "p.jsonl", "--out", folder / "g.jsonl", "--temperature", "0",
                    "--max-new-tokens", "24", "--log-level", "warning"], check=True)
    return json.loads((folder / "g.jsonl").read_text())["completions"][0]


def refused(kind, call, *words):
    try:
        call()
    except kind as error:
        assert all(word in str(error) for word in words), (words, str(error))
        return error
    raise AssertionError(f"no {kind.__name__}")


def check(client, name, greedy):
    assert [model.id for model in client.models.list()] == [name]
    assert client.models.retrieve(name).id == name

    reply = client.chat.completions.create(model=name, messages=QUESTION, temperature=0, max_completion_tokens=24, logprobs=True)
    choice = reply.choices[0]
    assert choice.message.role == "assistant" and choice.message.content == greedy["text"], (choice, greedy)
    assert choice.finish_reason == greedy["finish_reason"]
    assert [entry.logprob for entry in choice.logprobs.content] == greedy["logprobs"]
    assert reply.usage.completion_tokens == len(greedy["token_ids"])
    assert reply.usage.total_tokens == reply.usage.prompt_tokens + reply.usage.completion_tokens
    # The answer goes back as it came.
    client.chat.completions.create(model=name, max_tokens=4, messages=[*QUESTION, choice.message.model_dump(), {"role": "user", "content": "Sure?"}])

    drawn = dict(model=name, messages=QUESTION, n=3, seed=5, max_tokens=20, stop=["."], extra_body={"top_k": 50, "min_p": 0.01})
    whole = client.chat.completions.create(**drawn)
    texts, reasons, usage = {}, {}, None
    for chunk in client.chat.completions.create(stream=True, stream_options={"include_usage": True}, **drawn):
        usage = chunk.usage or usage
        for part in chunk.choices:
            texts[part.index] = texts.get(part.index, "") + (part.delta.content or "")
            reasons[part.index] = part.finish_reason or reasons.get(part.index)
    assert [texts[i] for i in range(3)] == [each.message.content for each in whole.choices]
    assert [reasons[i] for i in range(3)] == [each.finish_reason for each in whole.choices]
    assert usage == whole.usage and not any("." in text for text in texts.values())

    done = client.completions.create(model=name, prompt=["1, 2, 3,", "A, B, C,"], max_tokens=8, temperature=0, logprobs=0)
    assert [each.index for each in done.choices] == [0, 1] and " 4" in done.choices[0].text, done
    logprobs = done.choices[0].logprobs
    assert "".join(logprobs.tokens) == done.choices[0].text and len(logprobs.token_logprobs) == len(logprobs.text_offset) == 8
    pieces = client.completions.create(model=name, prompt="1, 2, 3,", max_tokens=8, temperature=0, stream=True)
    assert "".join(chunk.choices[0].text for chunk in pieces) == done.choices[0].text

    error = refused(openai.BadRequestError, lambda: client.chat.completions.create(model=name, messages=QUESTION, max_tokens=100000), "maximum context length")
    assert error.code == "context_length_exceeded"
    assert refused(openai.NotFoundError, lambda: client.chat.completions.create(model="gpt-4o", messages=QUESTION), name).code == "model_not_found"
    refused(openai.BadRequestError, lambda: client.chat.completions.create(model=name, messages=QUESTION, top_logprobs=3, logprobs=True), "top_logprobs")
    refused(openai.BadRequestError, lambda: client.completions.create(model=name, prompt="x", echo=True), "echo")
    refused(openai.AuthenticationError, lambda: client.with_options(api_key="wrong").models.list(), "key")
    refused(openai.RateLimitError, lambda: [client.with_options(max_retries=0).completions.create(model=name, prompt="x", n=30),
                                            *asyncio.run(flood(client, name))], "Try again")

    stream = client.chat.completions.create(model=name, messages=QUESTION, stream=True, max_tokens=2000, extra_body={"ignore_eos": True})
    next(iter(stream))
    stream.close()  # leaves in the middle


async def flood(client, name):
    """More than the server takes, without retries."""
    async with openai.AsyncOpenAI(base_url=client.base_url, api_key=client.api_key, max_retries=0) as many:
        return await asyncio.gather(*(many.completions.create(model=name, prompt="x", n=8, max_tokens=64) for _ in range(8)))


async def many_clients(client, name, greedy):
    async with openai.AsyncOpenAI(base_url=client.base_url, api_key=client.api_key, max_retries=20) as many:
        ask = lambda: many.chat.completions.create(model=name, messages=QUESTION, temperature=0, max_tokens=24)
        replies = await asyncio.gather(*(ask() for _ in range(40)))
    assert all(reply.choices[0].message.content == greedy["text"] for reply in replies)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--temper", required=True)
    parser.add_argument("--model", required=True)
    arguments = parser.parse_args()
    name = pathlib.Path(arguments.model).resolve().name
    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        greedy = generated(arguments.temper, arguments.model, folder)
        process, url = start(arguments.temper, arguments.model, folder)
        try:
            client = openai.OpenAI(base_url=url, api_key="sesame", timeout=300)
            check(client, name, greedy)
            asyncio.run(many_clients(client, name, greedy))
        finally:
            process.send_signal(signal.SIGINT)
            code = process.wait(timeout=120)
            log = (folder / "serve.log").read_text()
        assert code == 0 and "not finished, its client is gone" in log, (code, log)
    print(f"openai {openai.__version__}: models, chat, completions, streams, errors and 40 clients at once are as it expects them")


if __name__ == "__main__":
    main()
