"""The vectors of docs/keys.md: by firn, and by the blake3 package following the page's words alone."""

import pathlib
import re
import struct

import blake3
import pytest

import firn_kv as firn

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


def request_of(lines):
    """adapter and media as begin() takes them, tokens, extra bytes and keys."""
    fields = dict(lines)
    media = [value.split() for name, value in lines if name == "media"]
    return (
        {
            "adapter": bytes.fromhex(fields["adapter"]),
            "media": [(int(first), int(count), bytes.fromhex(digest)) for first, count, digest in media],
        },
        [int(word) for name, value in lines if name == "tokens" for word in value.split()],
        [bytes.fromhex(value) for name, value in lines if name == "extra"],
        [bytes.fromhex(value) for name, value in lines if name == "key"],
    )


@pytest.mark.parametrize("lines", list(vectors("request")), ids=lambda lines: lines[1][1])
def test_requests_with_an_adapter_and_media(lines):
    fields = dict(lines)
    options, tokens, extras, keys = request_of(lines)
    chain = firn.KeyChain(bytes.fromhex(fields["identity"]), bytes.fromhex(fields["salt"]))
    parent = None
    for block, (extra, key) in enumerate(zip(extras, keys)):
        message = (parent or bytes(32)) + struct.pack("<I16iI", 16, *tokens[block * 16 : block * 16 + 16], len(extra))
        assert keyed(chain.root, message + extra) == key
        assert firn.block_extra(block * 16, **options) == extra
        parent = key
    assert chain.keys(tokens, **options) == keys
    assert chain.keys(tokens)[0] != keys[0]


def test_a_manager_names_the_blocks_of_a_request_by_its_adapter_and_media():
    identity = next(lines for lines in vectors("identity") if "SmolLM2" in lines[1][1])
    fields = dict(identity)
    model = firn.Model(
        [firn.Group(30, 3, 64)],
        weights=bytes.fromhex(fields["weights"]),
        rotation="adjacent",
        rotation_dims=64,
        inverse_frequencies=floats(fields["inverse_frequencies"]),
    )
    (lines,) = vectors("request")
    options, tokens, _, keys = request_of(lines)
    assert model.identity.hex() == dict(lines)["identity"]
    options["name_space"] = bytes.fromhex(dict(lines)["salt"])
    manager = firn.Manager(model, device="none", pool={"budget": "8MiB"})
    begun = manager.begin(tokens, **options)
    manager.allocate(begun.seq, len(tokens))
    manager.commit(begun.seq, tokens)
    assert manager.block_keys(begun.seq) == keys
    assert manager.match_prefix(tokens, **options).tokens == 48
    assert manager.match_prefix(tokens, **{**options, "adapter": b"lora-8"}).tokens == 0
    (first, count, _), second = options["media"]
    other = {**options, "media": [(first, count, b"img2"), second]}
    assert manager.match_prefix(tokens, **other).tokens == 0
    other["media"] = [options["media"][0], (41, 3, b"z")]
    assert manager.match_prefix(tokens, **other).tokens == 32, "the same picture one token later is another prompt"
    assert manager.match_prefix(tokens, **options, max_reuse_tokens=20).tokens == 16
    assert manager.match_prefix(tokens, **options, drop_last_block=True).tokens == 32
    ranks = [manager.match_prefix(tokens, **options), manager.match_prefix(tokens[:40], **options)]
    assert firn.tokens_on_all_ranks(ranks) == 32 and firn.tokens_on_all_ranks([]) == 0
    assert [block.hit for block in manager.explain(tokens, **options).blocks] == [True] * 3 + [False]
    with pytest.raises(firn.InvalidArgument, match=r"media\[1\] begins at token 3"):
        manager.begin(tokens, media=[(0, 4, b"a"), (3, 4, b"b")])
    with pytest.raises(firn.InvalidArgument, match="257"):
        manager.match_prefix(tokens, adapter=b"x" * 257)


def test_there_are_all_the_vectors():
    assert [len(list(vectors(kind))) for kind in ("identity", "chain", "request")] == [3, 3, 1]


def test_a_managers_keys_are_those_of_the_chain():
    model = firn.Model([firn.Group(2, 2, 16)], weights=firn.hash_bytes(b"weights"))
    manager = firn.Manager(model, device="none", pool={"budget": "1MiB"})
    tokens = list(range(50))
    assert manager.compute_keys(tokens) == firn.KeyChain(model.identity).keys(tokens)
    assert manager.compute_keys(tokens, "tenant") == firn.KeyChain(model.identity, "tenant").keys(tokens)
    assert firn.hash_bytes(b"weights") == blake3.blake3(b"weights").digest()
