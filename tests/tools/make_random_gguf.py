#!/usr/bin/env python3
"""Writes a small random llama model as GGUF: real format, real tokenizer, meaningless weights. Standard library only.

The same arguments give the same bytes on every machine. Used where a real model would be too slow (sanitizers) or absent.

  make_random_gguf.py --out tiny.gguf [--seed 1] [--type q4_1|q4_0|q8_0|f16|f32] [--layers 2] [--hidden 192] ...
"""
import argparse
import random
import struct

U32, I32, F32, BOOL, STRING, ARRAY = 4, 5, 6, 7, 8, 9  # value types of the format
TENSOR_TYPES = {"f32": 0, "f16": 1, "q4_0": 2, "q4_1": 3, "q8_0": 8}
SPECIALS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
# Merges in order of rank; the parts of each exist by then. A space is written as U+0120, as GPT-2 does.
MERGES = """\u0120 t|h e|i n|\u0120t he|\u0120 a|r e|o n|e r|a n|\u0120 s|a t|\u0120 w|n d|\u0120 o|o r|i s|e s|\u0120 c|\u0120 b|e n
i t|in g|\u0120a nd|o u|e d|\u0120 f|\u0120 in|\u0120 m|\u0120 p|\u0120o f|a r|l l|\u0120t o|\u0120 h|s t|\u0120 d|l e|v e|\u0120b e|i c|h at|\u0120t hat|c k|e ar|o w|u n
l d|o ld|\u0120c old|o ck|l ock|\u0120b lock|i r|ir n|\u0120f irn""".replace("\n", "|").split("|")


def byte_characters():
    """GPT-2's printable character of every byte."""
    plain = list(range(33, 127)) + list(range(161, 173)) + list(range(174, 256))
    others = [b for b in range(256) if b not in plain]
    return {**{b: chr(b) for b in plain}, **{b: chr(256 + i) for i, b in enumerate(others)}}


def vocabulary():
    tokens = SPECIALS + list(byte_characters().values())
    for merge in MERGES:
        left, right = merge.split(" ")
        assert left in tokens and right in tokens, merge
        tokens.append(left + right)
    assert len(set(tokens)) == len(tokens)
    return tokens


def string(text):
    raw = text.encode("utf-8")
    return struct.pack("<Q", len(raw)) + raw


def value(kind, item):
    if kind == STRING:
        return string(item)
    if kind == ARRAY:
        element, items = item
        return struct.pack("<IQ", element, len(items)) + b"".join(value(element, i) for i in items)
    return struct.pack({U32: "<I", I32: "<i", F32: "<f", BOOL: "<?"}[kind], item)


def weights(rng, kind, rows, columns):
    """Uniform weights of the variance that keeps a layer's output as large as its input."""
    reach = (3.0 / columns) ** 0.5
    if kind in ("f32", "f16"):
        numbers = [rng.uniform(-reach, reach) for _ in range(rows * columns)]
        return struct.pack("<%d%s" % (len(numbers), "f" if kind == "f32" else "e"), *numbers)
    out = []
    for _ in range(rows * columns // 32):
        size = reach * rng.uniform(0.7, 1.3)
        if kind == "q8_0":
            out.append(struct.pack("<e", size / 127) + rng.randbytes(32))
        elif kind == "q4_0":
            out.append(struct.pack("<e", size / 8) + rng.randbytes(16))
        else:
            out.append(struct.pack("<ee", size / 7.5, -size) + rng.randbytes(16))
    return b"".join(out)


def norm(rng, size):
    return struct.pack("<%df" % size, *[rng.uniform(0.8, 1.2) for _ in range(size)])


def tensors(args, rng, vocabulary_size):
    """(name, type, dimensions with the contiguous one first, bytes)"""
    kv = args.kv_heads * args.head_dim
    query = args.heads * args.head_dim
    # As in published files of this size: the embedding, which is also the output, is coded more finely.
    fine = args.type if args.type in ("f32", "f16") else "q8_0"

    def matrix(name, kind, rows, columns):
        return name, TENSOR_TYPES[kind], (columns, rows), weights(rng, kind, rows, columns)

    def vector(name, size):
        return name, TENSOR_TYPES["f32"], (size,), norm(rng, size)

    yield matrix("token_embd.weight", fine, vocabulary_size, args.hidden)
    for i in range(args.layers):
        prefix = "blk.%d." % i
        yield vector(prefix + "attn_norm.weight", args.hidden)
        yield matrix(prefix + "attn_q.weight", args.type, query, args.hidden)
        yield matrix(prefix + "attn_k.weight", args.type, kv, args.hidden)
        yield matrix(prefix + "attn_v.weight", args.type, kv, args.hidden)
        yield matrix(prefix + "attn_output.weight", args.type, args.hidden, query)
        yield vector(prefix + "ffn_norm.weight", args.hidden)
        yield matrix(prefix + "ffn_gate.weight", args.type, args.ffn, args.hidden)
        yield matrix(prefix + "ffn_up.weight", args.type, args.ffn, args.hidden)
        yield matrix(prefix + "ffn_down.weight", args.type, args.hidden, args.ffn)
    yield vector("output_norm.weight", args.hidden)


def keys(args, tokens):
    kinds = [3] * len(SPECIALS) + [1] * (len(tokens) - len(SPECIALS))  # control, normal
    return [
        ("general.architecture", STRING, "llama"),
        ("general.name", STRING, "random llama, seed %d" % args.seed),
        ("llama.block_count", U32, args.layers),
        ("llama.context_length", U32, args.context),
        ("llama.embedding_length", U32, args.hidden),
        ("llama.feed_forward_length", U32, args.ffn),
        ("llama.attention.head_count", U32, args.heads),
        ("llama.attention.head_count_kv", U32, args.kv_heads),
        ("llama.attention.key_length", U32, args.head_dim),
        ("llama.rope.dimension_count", U32, args.head_dim),
        ("llama.rope.freq_base", F32, 10000.0),
        ("llama.attention.layer_norm_rms_epsilon", F32, 1e-5),
        ("tokenizer.ggml.model", STRING, "gpt2"),
        ("tokenizer.ggml.pre", STRING, "smollm"),
        ("tokenizer.ggml.tokens", ARRAY, (STRING, tokens)),
        ("tokenizer.ggml.token_type", ARRAY, (I32, kinds)),
        ("tokenizer.ggml.merges", ARRAY, (STRING, MERGES)),
        ("tokenizer.ggml.bos_token_id", U32, 1),
        ("tokenizer.ggml.eos_token_id", U32, 2),
        ("tokenizer.ggml.add_bos_token", BOOL, False),
    ]


def build(args):
    rng = random.Random(args.seed)
    tokens = vocabulary()
    metadata = keys(args, tokens)
    parts = list(tensors(args, rng, len(tokens) + args.extra_rows))
    head = b"GGUF" + struct.pack("<IQQ", args.version, len(parts), len(metadata))
    head += b"".join(string(key) + struct.pack("<I", kind) + value(kind, item) for key, kind, item in metadata)
    data = b""
    for name, kind, shape, raw in parts:
        head += string(name) + struct.pack("<I%dQIQ" % len(shape), len(shape), *shape, kind, len(data))
        data += raw + bytes(-len(raw) % 32)
    return head + bytes(-len(head) % 32) + data


def main():
    parser = argparse.ArgumentParser(description="Writes a small random llama model as GGUF.")
    parser.add_argument("--out", required=True)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--type", choices=sorted(TENSOR_TYPES), default="q4_1")
    parser.add_argument("--version", type=int, choices=(2, 3), default=3)
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--hidden", type=int, default=192)
    parser.add_argument("--heads", type=int, default=3)
    parser.add_argument("--kv-heads", type=int, default=1)
    parser.add_argument("--head-dim", type=int, default=64)
    parser.add_argument("--ffn", type=int, default=256)
    parser.add_argument("--context", type=int, default=8192)
    parser.add_argument("--extra-rows", type=int, default=0, help="rows of the embedding beyond the tokenizer's tokens")
    args = parser.parse_args()
    with open(args.out, "wb") as file:
        file.write(build(args))


if __name__ == "__main__":
    main()
