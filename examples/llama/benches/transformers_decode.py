"""Greedy decode speed of Hugging Face transformers on the CPU, as one CSV line:

    peer,model,dtype,threads,prompt_tokens,new_tokens,tokens_per_s,ttft_ms

    python transformers_decode.py --model DIR --dtype f32 --threads 2 --prompt-len 16 --new-tokens 128

Decode speed is that of the tokens after the first; the time to the first is ttft_ms. Both
are medians over the repeats. Two ways are measured, model.generate and a bare loop over
forward passes with a key-value cache, and the faster one is printed, so that a comparison
is with the best that transformers does. Both use the default attention (sdpa) and cache.
"""

import argparse
import pathlib
import statistics
import sys
import time

import torch
from transformers import AutoModelForCausalLM, DynamicCache

DTYPES = {"f32": torch.float32, "bf16": torch.bfloat16}


class Clock:
    """A streamer that only notes when each token came; the first call brings the prompt."""

    def __init__(self):
        self.times = []

    def put(self, _):
        self.times.append(time.perf_counter())

    def end(self):
        pass


def with_generate(model, prompt, new_tokens):
    clock = Clock()
    began = time.perf_counter()
    out = model.generate(
        prompt, attention_mask=torch.ones_like(prompt), do_sample=False, pad_token_id=0, streamer=clock,
        min_new_tokens=new_tokens, max_new_tokens=new_tokens)  # the minimum keeps EOS from ending it
    assert out.shape[1] == prompt.shape[1] + new_tokens
    return began, clock.times[1:]


def with_loop(model, prompt, new_tokens):
    times = []
    began = time.perf_counter()
    cache = DynamicCache(config=model.config)
    ids = prompt
    for _ in range(new_tokens):
        logits = model(input_ids=ids, past_key_values=cache, use_cache=True, logits_to_keep=1).logits
        ids = logits[:, -1].argmax(-1, keepdim=True)
        ids.item()  # whoever streams text reads every token as it comes
        times.append(time.perf_counter())
    return began, times


def measure(way, model, prompt, new_tokens, repeats):
    way(model, prompt, new_tokens)  # warm-up
    speeds, firsts = [], []
    for _ in range(repeats):
        began, times = way(model, prompt, new_tokens)
        speeds.append((new_tokens - 1) / (times[-1] - times[0]))
        firsts.append((times[0] - began) * 1e3)
    return statistics.median(speeds), statistics.median(firsts)


def main():
    arg = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    arg.add_argument("--model", type=pathlib.Path, required=True)
    arg.add_argument("--dtype", choices=DTYPES, default="f32")
    arg.add_argument("--threads", type=int, default=1)
    prompt = arg.add_mutually_exclusive_group(required=True)
    prompt.add_argument("--prompt-ids", help='token ids, as in "1 2 3"')
    prompt.add_argument("--prompt-len", type=int, help="that many arbitrary ids")
    arg.add_argument("--new-tokens", type=int, default=128)
    arg.add_argument("--repeats", type=int, default=5)
    a = arg.parse_args()
    if a.new_tokens < 2:
        arg.error("--new-tokens must be 2 or more: the first one is not part of decode")

    torch.set_num_threads(a.threads)
    model = AutoModelForCausalLM.from_pretrained(a.model, dtype=DTYPES[a.dtype]).eval()
    if a.prompt_ids:
        ids = torch.tensor([[int(i) for i in a.prompt_ids.split()]])
    else:
        ids = torch.randint(model.config.vocab_size, (1, a.prompt_len), generator=torch.Generator().manual_seed(0))

    results = []
    with torch.inference_mode():
        for way in (with_generate, with_loop):
            speed, first = measure(way, model, ids, a.new_tokens, a.repeats)
            print(f"{way.__name__}: {speed:.1f} tokens/s, first token after {first:.1f} ms", file=sys.stderr)
            results.append((speed, first))
    speed, first = max(results)
    print(f"transformers,{a.model.resolve().name},{a.dtype},{a.threads},{ids.shape[1]},{a.new_tokens},{speed:.1f},{first:.2f}")


if __name__ == "__main__":
    main()
