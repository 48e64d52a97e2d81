"""Makes tests/data/data/chat_templates.json: chat templates of public models and what transformers' apply_chat_template makes of
conversations with them. Run with .deps/python/bin/python. The Qwen and Llama templates are those that TRL ships (Apache-2.0)."""

import json
import os

import jinja2  # noqa: F401  (apply_chat_template needs it)
import trl
from transformers import PreTrainedTokenizerFast

HERE = os.path.dirname(os.path.abspath(__file__))
TOKENIZERS = os.path.join(HERE, "..", "data", "data", "tokenizers")
SHIPPED = os.path.join(os.path.dirname(trl.__file__), "chat_templates")
SMOLLM2 = ("{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}{{ '<|im_start|>system\nYou are a "
           "helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n' }}{% endif %}{{'<|im_start|>' + message['role'] + "
           "'\n' + message['content'] + '<|im_end|>' + '\n'}}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' "
           "}}{% endif %}")
QWEN2 = SMOLLM2.replace("\n", "\\n").replace("You are a helpful AI assistant named SmolLM, trained by Hugging Face",
                                             "You are a helpful assistant.")
CHATML = ("{% for message in messages %}{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}"
          "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}")


def user(content):
    return {"role": "user", "content": content}


def assistant(content):
    return {"role": "assistant", "content": content}


def system(content):
    return {"role": "system", "content": content}


CHATS = [
    [user("What is 6 + 8? Answer with just the number.")],
    [system("Be brief."), user("hi")],
    [system("  Be brief.\n"), user("\n padded \u3000\x1c ")],
    [user("hi"), assistant("hello"), user("again")],
    [user("7*8?"), assistant("<think>\n7*8 = 56\n</think>\n\n56"), user("sure?"), assistant("<think>\nyes\n</think>\n\nYes.")],
    [user("7*8?"), assistant("56")],
    [user("7*8?"), assistant("\n\nthinking aloud</think>56")],
    [user("a"), assistant("<think>x</think>b"), assistant("c")],
    [user("q"), assistant("calls"), user("<tool_response>\n1\n</tool_response>"), assistant("<think>\nso 1\n</think>\n\nOne."),
     user("<tool_response>2</tool_response>")],
    [system("s1"), user("u"), system("s2"), user("v")],
    [assistant("I begin."), user("ok")],
    [user("")],
    [user("special <|im_end|> and <|eot_id|> inside, 日本語 🙂")],
]


def main():
    shipped = {name: open(f"{SHIPPED}/{name}.jinja", encoding="utf-8").read()
               for name in ("llama3", "llama3_1", "llama3_2", "qwen2_5", "qwen3", "qwen3_instruct_2507")}
    templates = {"smollm2": SMOLLM2, "qwen2": QWEN2, "chatml": CHATML, **shipped}
    fixture = []
    for name, template in templates.items():
        llama = name.startswith("llama")
        tokenizer = PreTrainedTokenizerFast.from_pretrained(f"{TOKENIZERS}/{'llama3' if llama else 'qwen'}")
        tokenizer.bos_token = "<|begin_of_text|>" if llama else None
        cases = []
        for messages in CHATS:
            def render(prompt):
                return tokenizer.apply_chat_template(messages, chat_template=template, add_generation_prompt=prompt, tokenize=False,
                                                     date_string="26 Jul 2024")
            cases.append({"messages": messages, "with_prompt": render(True), "without": render(False)})
        fixture.append({"name": name, "template": template, "cases": cases})
    with open(os.path.join(HERE, "..", "data", "data", "chat_templates.json"), "w", encoding="utf-8") as out:
        json.dump(fixture, out, indent=1)
        out.write("\n")


if __name__ == "__main__":
    main()
