"""States of frozen towers: equal to live ones, found again, shared between prompt sets and processes, never stale."""

import hashlib
import json
from pathlib import Path

import fresh_process
import pytest
import torch
from conftest import COLORS, arguments

import train_hf
from modeling_mpclip import MPCLIPModel
from mpclip.data.image_text import ImageTextDataset, load_image_text
from mpclip.files import xxh128_file
from mpclip.training import state_cache
from mpclip.training.collator import MPCLIPCollator
from mpclip.training.command_line import parse_options
from mpclip.training.run import build_model
from mpclip.training.state_cache import cache_image_states, cache_text_states
from mpclip.training.state_store import FORMATS, HASHES, complete_key, open_store, shards_to_compute
from mpclip.training.tuning import prepare_tuning


def cached_and_live(folder, tmp_path, *extra):
    given = parse_options(arguments(folder, tmp_path, *extra))
    model_arguments, data_arguments = given.model, given.data
    model, processor = build_model(model_arguments, data_arguments.max_text_length)
    prepare_tuning(model, model_arguments)
    rows = load_image_text(str(folder / "data"), "train")
    return model.eval(), processor, rows


def test_cached_states_equal_live_ones_to_bfloat16(folder, tmp_path):
    model, processor, rows = cached_and_live(folder, tmp_path, "--negation_weight", "1.0")
    captions = [caption for row in rows["captions"] for caption in row]
    text = cache_text_states(model, processor.tokenizer, captions, tmp_path, negated=True, tokens_per_batch=200)
    images = cache_image_states(model, processor.image_processor, rows, tmp_path, batch_size=3)
    dataset = ImageTextDataset(rows, "random", seed=0)
    batch = [dataset[i] for i in range(4)]
    live = model(**MPCLIPCollator(processor)(batch), return_loss=True)
    cached = model(**MPCLIPCollator(processor, text, images)(batch), return_loss=True)
    for name in ("text_embeds", "image_embeds", "negated_text_embeds"):
        cosine = torch.nn.functional.cosine_similarity(cached[name], live[name])
        assert cosine.min() > 0.99, name
    assert len(text.store) == len(set(captions))


def test_a_cache_is_found_again_and_misses_when_anything_changes(folder, tmp_path, monkeypatch):
    model, processor, rows = cached_and_live(folder, tmp_path)
    make = lambda m: cache_text_states(m, processor.tokenizer, ["a red square", "blue"], tmp_path)  # noqa: E731
    first = make(model).batch(["blue"])["text_hidden_states"]
    caches = lambda: {path.name for path in tmp_path.iterdir()}  # noqa: E731
    found = caches()
    with monkeypatch.context() as patch:
        patch.setattr(type(model.text_model), "lower", None)  # computing anything would fail
        torch.testing.assert_close(make(model).batch(["blue"])["text_hidden_states"], first, atol=0, rtol=0)
    assert caches() == found
    with torch.no_grad():
        model.text_model.layers[0].mlp.up_proj.weight[0, 0] += 1
    make(model)
    assert len(caches()) == len(found) + 1
    with torch.no_grad():
        model.text_model.adaptive_embedding.weight[0, 0] += 1
    make(model)
    assert len(caches()) == len(found) + 2


def test_a_damaged_shard_is_computed_again_and_a_cut_run_goes_on(folder, tmp_path, monkeypatch, caplog):
    monkeypatch.setattr("mpclip.training.state_store.SHARD_ROWS", 3)
    model, processor, rows = cached_and_live(folder, tmp_path)
    texts = [f"a {color} square" for color in COLORS]
    make = lambda: cache_text_states(model, processor.tokenizer, texts, tmp_path)  # noqa: E731
    states = make()
    expected = states.batch(texts)["text_hidden_states"]
    shards = sorted(tmp_path.glob("*/*.arrow"))
    assert len(shards) == 4
    data = bytearray(shards[1].read_bytes())
    data[len(data) // 2] ^= 0xFF
    shards[1].write_bytes(data)
    shards[3].unlink()
    computed = []
    lower = type(model.text_model).lower
    monkeypatch.setattr(
        type(model.text_model), "lower", lambda self, ids, *a: computed.append(len(ids)) or lower(self, ids, *a)
    )
    torch.testing.assert_close(make().batch(texts)["text_hidden_states"], expected, atol=0, rtol=0)
    assert sum(computed) == 6  # the two bad shards of three rows alone
    assert "is damaged or missing" in caplog.text


def test_fewer_prompts_use_the_cache_of_more(folder, tmp_path, monkeypatch):
    many, processor, rows = cached_and_live(folder, tmp_path, "--num_prompts", "3", "--negation_weight", "1")
    texts = ["a red square", "the color blue", ""]
    cache_text_states(many, processor.tokenizer, texts, tmp_path, negated=True)
    one, _, _ = cached_and_live(folder, tmp_path, "--num_prompts", "1")
    with torch.no_grad():
        one.text_model.adaptive_embedding.weight.copy_(many.text_model.adaptive_embedding.weight[:1])
    expected = one.lower_text(**processor(text=texts, padding_side="left"))
    with monkeypatch.context() as patch:
        patch.setattr(type(one.text_model), "lower", None)
        states = cache_text_states(one, processor.tokenizer, texts, tmp_path).batch(texts)["text_hidden_states"]
    similarity = torch.nn.functional.cosine_similarity(states.float(), expected, dim=-1)
    mask = torch.cat([processor(text=texts, padding_side="left")["attention_mask"], torch.ones(3, len(one.prompt_tree()))], 1)
    assert similarity[mask.bool()].min() > 0.99


def test_a_damaged_cache_of_more_prompts_is_left_alone(folder, tmp_path):
    """Computing the few prompts' states into the many's cache would poison it with valid checksums."""
    many, processor, rows = cached_and_live(folder, tmp_path, "--num_prompts", "3")
    texts = ["a red square", "the color blue"]
    whole = cache_text_states(many, processor.tokenizer, texts, tmp_path)
    expected = whole.batch(texts)["text_hidden_states"]
    (shard,) = tmp_path.glob("*/*.arrow")
    shard.unlink()
    one, _, _ = cached_and_live(folder, tmp_path, "--num_prompts", "1")
    with torch.no_grad():
        one.text_model.adaptive_embedding.weight.copy_(many.text_model.adaptive_embedding.weight[:1])
    states = cache_text_states(one, processor.tokenizer, texts, tmp_path)
    assert states.batch(texts)["text_hidden_states"].shape[1] < expected.shape[1]
    again = cache_text_states(many, processor.tokenizer, texts, tmp_path)
    torch.testing.assert_close(again.batch(texts)["text_hidden_states"], expected, atol=0, rtol=0)


def test_a_start_hashes_every_shard_once(folder, tmp_path, monkeypatch):
    monkeypatch.setattr("mpclip.training.state_store.SHARD_ROWS", 3)
    many, processor, rows = cached_and_live(folder, tmp_path, "--num_prompts", "3")
    texts = [f"a {color} square" for color in COLORS]
    start = lambda model: (  # noqa: E731
        cache_text_states(model, processor.tokenizer, texts, tmp_path),
        cache_image_states(model, processor.image_processor, rows, tmp_path),
    )
    start(many)
    one, _, _ = cached_and_live(folder, tmp_path, "--num_prompts", "1")
    with torch.no_grad():
        one.text_model.adaptive_embedding.weight.copy_(many.text_model.adaptive_embedding.weight[:1])
    hashed = []
    monkeypatch.setitem(HASHES, ".xxh128", lambda path: hashed.append(path) or xxh128_file(path))
    for model in (many, one):
        hashed.clear()
        with monkeypatch.context() as patch:
            patch.setattr("mpclip.training.state_cache._frozen_twin", None)  # nor is a tower copied
            start(model)
        assert sorted(hashed) == sorted(tmp_path.glob("*/*.arrow"))
    damaged = next(path for path in hashed if path.stat().st_size == max(shard.stat().st_size for shard in hashed))
    damaged.write_bytes(b"")
    hashed.clear()
    start(many)
    again = [path for path in hashed if hashed.count(path) > 1]
    assert set(again) <= {damaged}  # once more under its lock


def test_what_is_trained_is_not_cached(folder, tmp_path):
    model, processor, rows = cached_and_live(folder, tmp_path, "--adaptive_tokens", "input")
    with pytest.raises(ValueError, match="adaptive_tokens='boundary'"):
        cache_text_states(model, processor.tokenizer, ["a"], tmp_path)
    model, processor, rows = cached_and_live(folder, tmp_path, "--vision_tuning", "full")
    with pytest.raises(ValueError, match="vision encoder is trained"):
        cache_image_states(model, processor.image_processor, rows, tmp_path)
    model.text_model.layers[0].requires_grad_(True)
    with pytest.raises(ValueError, match="parameters below layer 2 are trained"):
        cache_text_states(model, processor.tokenizer, ["a"], tmp_path)


@pytest.mark.parametrize("vision_tuning", ["frozen", "full"])
def test_training_on_float32_states_equals_live_training(folder, tmp_path, vision_tuning):
    """Same order, same seeds: the same weights to rounding, which Adam's division by small gradients enlarges."""
    shared = ["--vision_tuning", vision_tuning, "--negation_weight", "0.5", "--diversity_weight", "0.1"]
    shared += ["--adam_epsilon", "1e-4", "--num_train_epochs", "4", "--train_sampling_strategy", "group_by_length"]
    live, cached = tmp_path / "live", tmp_path / "cached"
    train_hf.main(arguments(folder, live, *shared))
    train_hf.main(arguments(folder, cached, *shared, "--cache_states", "true", "--cache_format", "float32"))
    start, _ = build_model(*_model_arguments(folder, tmp_path, *shared))
    start = start.state_dict()
    one, other = (MPCLIPModel.from_pretrained(out).state_dict() for out in (live, cached))
    moved = [name for name in one if not torch.equal(one[name], start[name])]
    assert {"text_projection.weight", "text_model.boundary_embedding.weight"} <= set(moved)
    for name in one:
        torch.testing.assert_close(other[name], one[name], atol=1e-5, rtol=1e-4, msg=name)


def _model_arguments(folder, out, *extra):
    given = parse_options(arguments(folder, out, *extra))
    model_arguments, data_arguments, training_arguments = given.model, given.data, given.training
    torch.manual_seed(training_arguments.seed)
    return model_arguments, data_arguments.max_text_length


def test_frozen_weights_are_hashed_once_for_all_splits(folder, tmp_path, monkeypatch):
    model, processor, rows = cached_and_live(folder, tmp_path)
    hashed, real = [], state_cache._sha256_tensors
    monkeypatch.setattr(state_cache, "_sha256_tensors", lambda tensors: hashed.append(len(tensors)) or real(tensors))
    for part in (rows.select(range(3)), rows.select(range(3, 5))):
        cache_image_states(model, processor.image_processor, part, tmp_path / "cache")
    assert len(hashed) == 1
    with torch.no_grad():
        next(model.vision_model.parameters()).add_(1)
    cache_image_states(model, processor.image_processor, part, tmp_path / "cache")
    assert len(hashed) == 2


# Store ------------------------------------------------------------------------------------------------------------


def test_stores_of_earlier_versions_are_found_again(tmp_path):
    """The name of a folder is the start of this hash; another would compute every cache anew."""
    key = complete_key({"kind": "test", "a": [1, "é"]}, 2, "float32", "float32")
    assert list(key) == ["kind", "a", "torch", "transformers", "revision", "count", "format"] and key["revision"] == 2
    open_store(tmp_path, key, 4, lambda rows: (torch.ones(1, 4) for _ in rows), "rows")
    text = json.dumps(key, sort_keys=True)
    (store,) = tmp_path.iterdir()
    assert store.name == hashlib.sha256(text.encode()).hexdigest()[:20] and (store / "key.json").read_text() == text
    (shard,) = store.glob("*.arrow")
    (store / "000000000.xxh128").unlink()
    (store / "000000000.sha256").write_text(hashlib.sha256(shard.read_bytes()).hexdigest())  # as earlier versions did
    assert not shards_to_compute(store, key)
    shard.write_bytes(shard.read_bytes()[:-1] + b"x")
    assert list(shards_to_compute(store, key)) == [shard.name]


def test_states_computed_in_another_dtype_are_not_taken_for_exact_ones(folder, tmp_path):
    """What was computed in float32 serves a run in bfloat16, and not the other way round; the format has no part in it."""
    model, processor, rows = cached_and_live(folder, tmp_path)

    def states(precision: str, where: str) -> list[torch.Tensor]:
        how = {"folder": tmp_path / where, "format": "float32", "precision": precision}
        texts = cache_text_states(model, processor.tokenizer, ["a red square"], **how)
        images = cache_image_states(model, processor.image_processor, rows, **how)
        return [texts.batch(["a red square"])["text_hidden_states"], images.batch([0])["vision_hidden_states"]]

    exact, rough = states("float32", "a"), states("bfloat16", "b")
    for x, y in zip(exact, rough, strict=True):
        assert 0 < (x - y).norm() < 0.05 * x.norm()
    for where, stores in ("a", 2), ("b", 4):
        again = states("bfloat16" if where == "a" else "float32", where)
        assert all(map(torch.equal, again, exact)) and len(list((tmp_path / where).iterdir())) == stores


def test_what_a_killed_process_left_is_removed(tmp_path):
    key = complete_key({"kind": "test"}, 2, "float32", "float32")
    open_store(tmp_path, key, 4, lambda rows: (torch.ones(1, 4) for _ in rows), "rows")
    (shard,) = tmp_path.glob("*/*.arrow")
    (left := shard.with_name(f".{shard.name}.123.part")).write_bytes(b"half a shard")
    shard.unlink()
    open_store(tmp_path, key, 4, lambda rows: (torch.ones(1, 4) for _ in rows), "rows")
    assert shard.exists() and not left.exists()


@pytest.mark.parametrize("name, error", [("float32", 0), ("float16", 2**-11), ("bfloat16", 2**-8), ("int8", 0.5 / 127)])
def test_formats_lose_no_more_than_they_must(name, error):
    states = torch.randn(5, 16, generator=torch.Generator().manual_seed(0)) * torch.tensor([1e-3, 1, 10, 100, 0])[:, None]
    assert states[states != 0].abs().min() > torch.finfo(torch.float16).tiny  # below it float16 has fewer digits
    data = FORMATS[name].encode(states)
    assert len(data) == 5 * 16 * FORMATS[name].stored.itemsize + (5 * 4 if name == "int8" else 0)
    back = FORMATS[name].decode(data, 16).float()
    scale = states.abs().amax(dim=1, keepdim=True) if name == "int8" else states.abs()
    assert ((back - states).abs() <= error * 1.001 * scale).all()
    assert error == 0 or not torch.equal(back, states)
    empty = FORMATS[name].decode(FORMATS[name].encode(states[:0]), 16)  # of an empty text without prompts
    assert empty.shape == (0, 16) and empty.dtype == FORMATS[name].decode(data, 16).dtype


def test_what_float16_cannot_hold_is_refused():
    with pytest.raises(ValueError, match="magnitude 70000 does not fit float16"):
        FORMATS["float16"].encode(torch.full((1, 4), 7e4))
    with pytest.raises(ValueError, match="cache_format='int4' is unknown; use one of 'float32'"):
        complete_key({}, 1, "int4", "float32")


FILLER = """
import sys, time, torch
from pathlib import Path
repository, folder, me, hang_at = sys.argv[1], Path(sys.argv[2]), sys.argv[3], int(sys.argv[4])
sys.path.insert(0, repository)
from mpclip.training import state_store
state_store.SHARD_ROWS = 2

def compute(rows):
    with open(folder / f"{me}.log", "a") as log:
        print(*rows, file=log)
    if hang_at in rows:
        (folder / "hangs").touch()
        time.sleep(60)
    time.sleep(0.05)
    return (torch.full((row + 1, 4), float(row)) for row in rows)

(folder / f"{me}.ready").touch()
while not (folder / "go").exists():
    time.sleep(0.01)
state_store.open_store(folder, state_store.complete_key({"kind": "test"}, 12, "float32", "float32"), 4, compute, "rows")
"""


def start_fillers(folder: Path, hang_at: dict[str, int]) -> list[fresh_process.Script]:
    repository = str(Path(train_hf.__file__).parent)
    given = [(repository, str(folder), name, str(row)) for name, row in hang_at.items()]
    fillers = [fresh_process.start(FILLER, folder, arguments=arguments) for arguments in given]
    wait_for(lambda: len(list(folder.glob("*.ready"))) == len(fillers))
    (folder / "go").touch()
    return fillers


def wait_for(condition) -> None:
    import time

    end = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < end, "waited for a minute in vain"
        time.sleep(0.02)


def read_filled(folder: Path, monkeypatch, compute=None) -> list[int]:
    monkeypatch.setattr("mpclip.training.state_store.SHARD_ROWS", 2)
    store = open_store(folder, complete_key({"kind": "test"}, 12, "float32", "float32"), 4, compute, "rows")
    for row, states in enumerate(store[list(range(12))]):
        assert states.shape == (row + 1, 4) and (states == row).all()
    return len(store)


def rows_in(log: Path) -> list[int]:
    return [int(row) for row in log.read_text().split()] if log.exists() else []


def test_processes_share_the_work(tmp_path, monkeypatch):
    for filler in start_fillers(tmp_path, {"one": -1, "two": -1}):
        run = filler.wait()
        assert run.returncode == 0, run.stderr
    one, two = rows_in(tmp_path / "one.log"), rows_in(tmp_path / "two.log")
    assert one and two and sorted(one + two) == list(range(12))
    assert read_filled(tmp_path, monkeypatch) == 12


def test_the_shard_of_a_killed_process_is_computed_by_another(tmp_path, monkeypatch):
    (filler,) = start_fillers(tmp_path, {"one": 7})
    wait_for((tmp_path / "hangs").exists)
    filler.kill()
    filler.wait()
    computed = []

    def compute(rows):
        computed.extend(rows)
        return (torch.full((row + 1, 4), float(row)) for row in rows)

    assert read_filled(tmp_path, monkeypatch, compute) == 12
    assert computed == list(range(6, 12))
