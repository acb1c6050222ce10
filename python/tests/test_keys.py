"""The vectors of docs/keys.md: by firn, and by the blake3 package following the page's words alone."""

import pathlib
import re
import struct

import blake3
import pytest

import firn

PAGE = pathlib.Path(__file__).resolve().parents[2] / "docs" / "keys.md"
IDENTITY_CONTEXT = "firn 2026-11 model identity v1"
ROOT_TAG = b"firn namespace root v1"


def vectors(kind):
    for block in re.findall(r"```text\n(vector = .*?)```", PAGE.read_text(), re.S):
        lines = [tuple(part.strip() for part in line.split("=", 1)) for line in block.strip().splitlines()]
        if lines[0][1] == kind:
            yield lines


def keyed(key, message):
    return blake3.blake3(message, key=key).digest()


def floats(words):
    return [struct.unpack("<f", struct.pack("<I", int(word, 16)))[0] for word in words.split()]


@pytest.mark.parametrize("lines", list(vectors("identity")), ids=lambda lines: lines[1][1])
def test_identities(lines):
    fields = dict(lines)
    kinds, dtypes = ["", "full", "sliding_window", "latent", "state"], ["", "f16", "bf16", "f32"]
    groups = []
    for name, value in lines:
        if name == "group":
            kind, layers, dtype, heads, head_dim, value_dim, window = map(int, value.split())
            groups.append(
                firn.Group(layers, heads, head_dim, value_dim, kind=kinds[kind], dtype=dtypes[dtype], window=window)
            )
    rank, count = map(int, fields["shard"].split())
    model = firn.Model(
        groups,
        weights=bytes.fromhex(fields["weights"]),
        adapters=bytes.fromhex(fields["adapters"]),
        rotation=["none", "adjacent", "halves"][int(fields["pairing"])],
        rotation_dims=int(fields["dims"]),
        inverse_frequencies=floats(fields["inverse_frequencies"]),
        attention_factor=floats(fields["attention_factor"])[0],
        shard_rank=rank,
        shard_count=count,
    )
    canonical = bytes.fromhex("".join(value for name, value in lines if name == "bytes"))
    assert len(canonical) == int(fields["length"])
    expected = bytes.fromhex(fields["identity"])
    assert blake3.blake3(canonical, derive_key_context=IDENTITY_CONTEXT).digest() == expected
    assert model.identity == expected


@pytest.mark.parametrize("lines", list(vectors("chain")), ids=lambda lines: lines[1][1])
def test_chains(lines):
    fields = dict(lines)
    identity, salt = bytes.fromhex(fields["identity"]), bytes.fromhex(fields["salt"])
    root = keyed(identity, ROOT_TAG + struct.pack("<I", len(salt)) + salt)
    chain = firn.KeyChain(identity, salt)
    assert root == bytes.fromhex(fields["root"]) == chain.root
    parent, extra, tokens, checked = None, b"", [], 0
    for name, value in lines:
        if name == "tokens":
            tokens, extra = [int(word) for word in value.split()], b""
        elif name == "extra":
            extra = bytes.fromhex(value)
        elif name == "key":
            message = (parent or bytes(32)) + struct.pack("<I16iI", 16, *tokens, len(extra)) + extra
            expected = bytes.fromhex(value)
            assert keyed(root, message) == expected
            assert chain.next(parent, tokens, extra) == expected
            parent, checked = expected, checked + 1
    assert checked >= 2


def test_there_are_all_the_vectors():
    assert len(list(vectors("identity"))) == 3 and len(list(vectors("chain"))) == 3


def test_a_managers_keys_are_those_of_the_chain():
    model = firn.Model([firn.Group(2, 2, 16)], weights=firn.hash_bytes(b"weights"))
    manager = firn.Manager(model, device="none", pool={"budget": "1MiB"})
    tokens = list(range(50))
    assert manager.compute_keys(tokens) == firn.KeyChain(model.identity).keys(tokens)
    assert manager.compute_keys(tokens, "tenant") == firn.KeyChain(model.identity, "tenant").keys(tokens)
    assert firn.hash_bytes(b"weights") == blake3.blake3(b"weights").digest()
