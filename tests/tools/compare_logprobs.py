#!/usr/bin/env python3
"""Compares the ten likeliest first tokens of twenty prompts, and their log-probabilities, with llama.cpp's.

llama.cpp comes as the Python package xllamacpp. Where that or numpy is not installed, or the model file is missing, the
test is skipped (exit code 77) and says what is missing.

llama.cpp rounds activations to 8 bits before it multiplies them with 4- or 8-bit weights; the example engine keeps them in
32 bits. On a model this small that alone moves log-probabilities by up to 0.44 (measured on these prompts). So two
comparisons are made, the engine always running the file as it is:
  same weights   llama.cpp runs a copy of the file whose weights are written out as F32, and so does not round activations:
                 this must agree within the tolerance;
  same file      llama.cpp runs the file itself: printed, to show what the rounding does; not judged.
A comparison covers the tokens that llama.cpp has among its ten, and whether the likeliest token is the same, unless the
two likeliest are closer together than the tolerance.
"""
import argparse
import json
import os
import struct
import subprocess
import sys
import tempfile
import urllib.request

SKIP = 77
COUNT = 10
MODEL = "SmolLM2-135M-Instruct.Q4_1.gguf"
PROMPTS = [
    "The capital of France is",
    "Water boils at a temperature of",
    "def fibonacci(n):\n    if n < 2:\n        return",
    "Once upon a time, there was a little",
    "The opposite of hot is",
    "2 + 2 =",
    "To be, or not to be, that is the",
    "The chemical symbol for gold is",
    "In 1969, the first man to walk on the",
    "A glacier is a large mass of",
    "Roses are red, violets are",
    "The three primary colours are red,",
    "import numpy as",
    "The largest planet in our solar system is",
    "She opened the door and saw a",
    "1, 2, 3, 4, 5,",
    "The author of Hamlet is William",
    "An apple a day keeps the doctor",
    "Snow that has been pressed for years becomes",
    "<|im_start|>user\nWhat is the capital of Italy?<|im_end|>\n<|im_start|>assistant\n",
]


def skip(reason):
    print("skipped: " + reason)
    sys.exit(SKIP)


class GgufReader:
    """Just enough of GGUF for a well-formed llama file: where the keys end, and each tensor's (name, shape, type, data)."""

    ALIGNMENT = 32  # of files that do not say otherwise
    SIZES = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}  # bytes of a value of each type
    STRING, ARRAY = 8, 9

    def __init__(self, data):
        self.data, self.at = data, 0
        self.magic, self.version, tensors, self.key_count = self.take("<4sIQQ")
        start = self.at
        for _ in range(self.key_count):
            self.string()
            self.skip_value(self.take("<I")[0])
        self.keys = data[start : self.at]
        self.tensors = []
        for _ in range(tensors):
            name = self.string()
            shape = self.take("<%dQ" % self.take("<I")[0])
            self.tensors.append((name, shape) + self.take("<IQ"))
        self.data_start = -(-self.at // self.ALIGNMENT) * self.ALIGNMENT

    def take(self, form):
        values = struct.unpack_from(form, self.data, self.at)
        self.at += struct.calcsize(form)
        return values

    def string(self):
        length = self.take("<Q")[0]
        self.at += length
        return self.data[self.at - length : self.at]

    def skip_value(self, kind):
        if kind == self.STRING:
            self.string()
        elif kind == self.ARRAY:
            element, count = self.take("<IQ")
            if element == self.STRING:
                for _ in range(count):
                    self.string()
            else:
                self.at += self.SIZES[element] * count
        else:
            self.at += self.SIZES[kind]


def floats_of(numpy, kind, count, raw):
    """The weights of a tensor of F32, Q4_1 or Q8_0, as F32."""
    if kind == 0:
        return numpy.frombuffer(raw, numpy.float32, count)

    def halves(bytes_):
        return numpy.ascontiguousarray(bytes_).view(numpy.float16).astype(numpy.float32)

    if kind == 3:
        blocks = numpy.frombuffer(raw, numpy.uint8, count // 32 * 20).reshape(-1, 20)
        nibbles = numpy.concatenate([blocks[:, 4:] & 15, blocks[:, 4:] >> 4], axis=1)
        return nibbles.astype(numpy.float32) * halves(blocks[:, :2]) + halves(blocks[:, 2:4])
    if kind == 8:
        blocks = numpy.frombuffer(raw, numpy.uint8, count // 32 * 34).reshape(-1, 34)
        return blocks[:, 2:].view(numpy.int8).astype(numpy.float32) * halves(blocks[:, :2])
    raise ValueError("tensor type %d" % kind)


def write_as_floats(numpy, source, target):
    with open(source, "rb") as file:
        reader = GgufReader(file.read())
    head = struct.pack("<4sIQQ", reader.magic, reader.version, len(reader.tensors), reader.key_count) + reader.keys
    offset = 0
    for name, shape, _, _ in reader.tensors:
        head += struct.pack("<Q", len(name)) + name
        head += struct.pack("<I%dQIQ" % len(shape), len(shape), *shape, 0, offset)
        offset += int(numpy.prod(shape)) * 4  # a multiple of the alignment: rows are multiples of 32 weights
    with open(target, "wb") as file:
        file.write(head + bytes(-len(head) % reader.ALIGNMENT))
        for _, shape, kind, at in reader.tensors:
            raw = memoryview(reader.data)[reader.data_start + at :]
            file.write(floats_of(numpy, kind, int(numpy.prod(shape)), raw).tobytes())


class LlamaCpp:
    """llama.cpp's server, in this process."""

    def __init__(self, module, model):
        params = module.CommonParams()
        params.model.path = model
        params.n_ctx = 2048
        params.n_parallel = 1
        params.warmup = False
        self.server = module.Server(params)

    def post(self, path, body):
        request = urllib.request.Request(
            self.server.listening_address + path,
            data=json.dumps(body).encode("utf-8"),
            headers={"Content-Type": "application/json"},
        )
        with urllib.request.urlopen(request) as reply:
            return json.load(reply)

    def tokenize(self, text):
        return self.post("/tokenize", {"content": text, "add_special": False, "parse_special": True})["tokens"]

    def top(self, tokens):
        body = {"prompt": tokens, "n_predict": 1, "n_probs": COUNT, "temperature": 0, "cache_prompt": False}
        reply = self.post("/completion", body)
        return {p["id"]: p["logprob"] for p in reply["completion_probabilities"][0]["top_logprobs"]}


def ours(driver, model, prompts):
    """More than COUNT of each, so that what llama.cpp has among its ten is found here too."""
    lines = "".join(" ".join(map(str, tokens)) + "\n" for tokens in prompts)
    run = subprocess.run([driver, model, str(10 * COUNT)], input=lines, stdout=subprocess.PIPE, text=True, check=True)
    return [{int(i): float(p) for i, p in (w.split(":") for w in line.split())} for line in run.stdout.splitlines()]


def compare(mine, theirs, tolerance):
    worst = max(abs(mine.get(token, -1e9) - theirs[token]) for token in theirs)
    first, their_first = max(mine, key=mine.get), max(theirs, key=theirs.get)
    near = mine[first] - mine.get(their_first, -1e9) <= tolerance
    common = len(set(sorted(mine, key=mine.get, reverse=True)[:COUNT]) & set(theirs))
    return {"worst": worst, "in_common": common, "same_first": first == their_first or near}


def find_model(cache_dir):
    path = os.environ.get("FIRN_SMOLLM2_GGUF") or os.path.join(os.environ.get("FIRN_CACHE_DIR") or cache_dir, MODEL)
    if not os.path.exists(path):
        skip("the model file %s is missing: `./run build` fetches it, or set FIRN_SMOLLM2_GGUF" % path)
    return path


def main():
    parser = argparse.ArgumentParser(description="Compares first-token log-probabilities with llama.cpp's.")
    parser.add_argument("--driver", required=True, help="the program llama_logprobs")
    parser.add_argument("--cache-dir", default="")
    parser.add_argument("--tolerance", type=float, default=0.05)
    args = parser.parse_args()
    try:
        import numpy
        import xllamacpp
    except ImportError as error:
        skip("%s; this test needs the Python packages xllamacpp and numpy" % error)
    model = find_model(args.cache_dir)

    with tempfile.TemporaryDirectory() as folder:
        floats = os.path.join(folder, "f32.gguf")
        write_as_floats(numpy, model, floats)
        llama_cpp = LlamaCpp(xllamacpp, floats)
        prompts = [llama_cpp.tokenize(text) for text in PROMPTS]
        same_weights = [llama_cpp.top(tokens) for tokens in prompts]
    llama_cpp = LlamaCpp(xllamacpp, model)
    same_file = [llama_cpp.top(tokens) for tokens in prompts]

    mine = ours(args.driver, model, prompts)
    assert len(mine) == len(PROMPTS)
    judged = [compare(m, t, args.tolerance) for m, t in zip(mine, same_weights)]
    shown = [compare(m, t, args.tolerance) for m, t in zip(mine, same_file)]
    print("same weights: difference, in common of %d | same file: difference, in common" % COUNT)
    for text, a, b in zip(PROMPTS, judged, shown):
        print("%.4f %2d | %.4f %2d | %r" % (a["worst"], a["in_common"], b["worst"], b["in_common"], text))
    worst = max(row["worst"] for row in judged)
    passed = worst <= args.tolerance and all(row["same_first"] for row in judged)
    print("same weights: largest difference %.4f, tolerance %.4f: %s" % (worst, args.tolerance, "ok" if passed else "FAILED"))
    print("same file:    largest difference %.4f (llama.cpp rounds activations to 8 bits)" % max(r["worst"] for r in shown))
    return 0 if passed else 1


if __name__ == "__main__":
    sys.exit(main())
