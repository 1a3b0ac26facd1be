"""Makes the checkpoint in this folder from nothing: text, tokenizer, model.

    python train.py --out DIR

This is where the files came from, not a build step. It needs torch, transformers,
tokenizers and one GPU, on which it takes a few minutes. The model is a real Llama in
shape and in file format, only small, so that a program can be tried end to end on
weights that write sentences one can judge by eye.
"""

import argparse
import json
import math
import multiprocessing
import pathlib
import random
import time

import torch
import torch.nn.functional as F
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

from stories import story

BOS, EOS = 0, 1

# Written out by hand in the form of the Llama 2 and 3 hubs (rope_theta, rope_scaling and
# torch_dtype at top level), which readers of any age understand.
CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "attention_bias": False,
    "attention_dropout": 0.0,
    "bos_token_id": BOS,
    "eos_token_id": EOS,
    "head_dim": 64,
    "hidden_act": "silu",
    "hidden_size": 256,
    "initializer_range": 0.02,
    "intermediate_size": 704,
    "max_position_embeddings": 2048,
    "mlp_bias": False,
    "model_type": "llama",
    "num_attention_heads": 4,
    "num_hidden_layers": 6,
    "num_key_value_heads": 2,
    "pretraining_tp": 1,
    "rms_norm_eps": 1e-05,
    "rope_scaling": None,
    "rope_theta": 10000.0,
    "tie_word_embeddings": True,
    "torch_dtype": "bfloat16",
    "use_cache": True,
    "vocab_size": 2048,
}

PROMPTS = ["Once upon a time", "One morning, the fox", "Mia went to the", "Tom had a", "The little owl was",
           "It was a rainy day", "Alice wanted to", "There once was a dragon"]


def chunk_of_stories(job):
    seed, chunk, count = job
    r = random.Random(f"{seed}/{chunk}")
    return [story(r) for _ in range(count)]


def make_text(seed, count):
    jobs = [(seed, i, 1000) for i in range(count // 1000)]
    with multiprocessing.Pool() as pool:
        return [s for part in pool.map(chunk_of_stories, jobs) for s in part]


def make_tokenizer(texts, out):
    t = Tokenizer(models.BPE())
    t.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    t.decoder = decoders.ByteLevel()
    t.train_from_iterator(texts, trainers.BpeTrainer(
        vocab_size=CONFIG["vocab_size"], special_tokens=["<s>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False))
    t.post_processor = processors.TemplateProcessing(single="<s> $A", pair="<s> $A <s> $B", special_tokens=[("<s>", BOS)])
    # An id without a token would be an id that the model may emit and nobody can decode.
    assert t.get_vocab_size() == CONFIG["vocab_size"]
    t.save(str(out / "tokenizer.json"))
    return t


def learning_rate(step, steps, peak, warmup=200):
    if step < warmup:
        return peak * (step + 1) / warmup
    return peak * 0.5 * (1 + math.cos(math.pi * (step - warmup) / (steps - warmup)))


def batch_of(stream, starts, rows, length, device):
    """Windows of the packed stories: one half begins with a story, as a prompt does; the other
    half begins anywhere, so that no position is tied to a place in a story."""
    anywhere = torch.randint(len(stream) - length - 1, (rows // 2,), device=device)
    story_start = starts[torch.randint(len(starts), (rows - rows // 2,), device=device)]
    at = torch.cat([anywhere, story_start.clamp(max=len(stream) - length - 1)])
    windows = stream[at[:, None] + torch.arange(length + 1, device=device)].long()
    return windows[:, :-1], windows[:, 1:]


def loss_of(model, x, y):
    with torch.autocast(x.device.type, dtype=torch.bfloat16):
        logits = model(input_ids=x, use_cache=False).logits
    return F.cross_entropy(logits.float().flatten(0, 1), y.flatten())


def train(model, stream, starts, held_out, held_out_starts, steps, tokens_per_step, device):
    # Decay only matrices: a norm's gain has no reason to go to zero.
    groups = [{"params": [p for p in model.parameters() if p.dim() > 1], "weight_decay": 0.1},
              {"params": [p for p in model.parameters() if p.dim() == 1], "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=0.0, betas=(0.9, 0.95), fused=True)
    began = time.time()
    for step in range(steps):
        # The last steps see whole context windows, so that max_position_embeddings is no empty promise.
        length = 512 if step < steps * 0.85 else CONFIG["max_position_embeddings"]
        for g in optimizer.param_groups:
            g["lr"] = learning_rate(step, steps, 3e-3)
        loss = loss_of(model, *batch_of(stream, starts, tokens_per_step // length, length, device))
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        if step % 250 == 0 or step == steps - 1:
            with torch.no_grad():
                held = loss_of(model, *batch_of(held_out, held_out_starts, 32, 512, device)).item()
            print(f"step {step} loss {loss.item():.4f} held-out {held:.4f} {time.time() - began:.0f} s", flush=True)


def pack(tokenizer, texts, device):
    ids, starts = [], []
    for e in tokenizer.encode_batch(texts):
        starts.append(len(ids))
        ids += e.ids + [EOS]
    return torch.tensor(ids, dtype=torch.int16, device=device), torch.tensor(starts, device=device)


def show_samples(out, device):
    """Reads the folder back as any user would and lets it write."""
    tokenizer = AutoTokenizer.from_pretrained(out)
    model = AutoModelForCausalLM.from_pretrained(out).to(device)
    torch.manual_seed(0)
    for prompt in PROMPTS:
        ids = tokenizer(prompt, return_tensors="pt").input_ids.to(device)
        for name, how in (("greedy", dict(do_sample=False)), ("sampled", dict(do_sample=True, temperature=0.8, top_p=0.95))):
            got = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=400, pad_token_id=EOS, **how)[0]
            ended = "ends" if got[-1] == EOS else "CUT"
            print(f"[{name}, {len(got)} tokens, {ended}] {tokenizer.decode(got, skip_special_tokens=True)}\n")


def main():
    arg = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    arg.add_argument("--out", type=pathlib.Path, required=True)
    arg.add_argument("--stories", type=int, default=400_000)
    arg.add_argument("--steps", type=int, default=9000)
    arg.add_argument("--tokens-per-step", type=int, default=65536)
    arg.add_argument("--seed", type=int, default=1)
    arg.add_argument("--device", default="cuda")
    a = arg.parse_args()
    a.out.mkdir(parents=True, exist_ok=True)

    began = time.time()
    texts = make_text(a.seed, a.stories)
    print(f"{len(set(texts))} different stories, {time.time() - began:.0f} s", flush=True)
    tokenizer = make_tokenizer(texts[:40_000], a.out)
    held_out, held_out_starts = pack(tokenizer, texts[:1000], a.device)
    stream, starts = pack(tokenizer, texts[1000:], a.device)
    print(f"{len(stream)} tokens, {time.time() - began:.0f} s", flush=True)

    torch.manual_seed(a.seed)
    config = {k: v for k, v in CONFIG.items() if k != "torch_dtype"}  # weights are trained in f32
    model = LlamaForCausalLM(LlamaConfig(**config)).to(a.device)
    print(f"{sum(p.numel() for p in model.parameters())} parameters", flush=True)
    train(model, stream, starts, held_out, held_out_starts, a.steps, a.tokens_per_step, a.device)

    model.to(torch.bfloat16).save_pretrained(a.out)
    for name, content in (
        ("config.json", CONFIG),
        ("generation_config.json", {"bos_token_id": BOS, "eos_token_id": EOS}),
        ("tokenizer_config.json", {
            "bos_token": "<s>", "eos_token": "</s>", "clean_up_tokenization_spaces": False,
            "model_max_length": CONFIG["max_position_embeddings"], "tokenizer_class": "PreTrainedTokenizerFast"}),
    ):
        (a.out / name).write_text(json.dumps(content, indent=2) + "\n")
    show_samples(a.out, a.device)


if __name__ == "__main__":
    main()
