"""Training on a stream: by one process and by two, and resumed within an epoch and at the end of one."""

import json
import math
import os
import re
import socket
from pathlib import Path

import fresh_process
import pytest
import torch
from conftest import arguments
from safetensors.torch import load_file
from tiny_pictures import picture, write_folder

import train_hf
from mpclip.data.shard_writing import write_shards
from mpclip.files import read_json
from mpclip.training import build_trainer, parse_options
from mpclip.training.checkpoints import checkpoints_in
from mpclip.training.collator import MPCLIPCollator

pytestmark = pytest.mark.usefixtures("datasets_cache")


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    """24 pictures in four shards of six."""
    root = tmp_path_factory.mktemp("stream")
    rows = [{"file_name": f"{i}.png", "captions": [f"{i} alone", f"the number {i}"]} for i in range(24)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("datasets.config.HF_DATASETS_CACHE", root / "cache")
        write_shards(str(write_folder(root / "data", rows)), "train", root / "shards", shards=4)
    return root / "shards"


def streamed(folder, shards, out, *extra: str) -> list[str]:
    stream = ("--streaming", "true", "--dataset", str(shards), "--shuffle_buffer", "4", "--eval_split", "none")
    stream += ("--eval_strategy", "no", "--load_best_model_at_end", "false")
    return arguments(folder, out, *stream, "--save_strategy", "steps", "--save_steps", "4", "--save_total_limit", "9", *extra)


def losses(out: Path) -> list[tuple]:
    newest = checkpoints_in(out)[0]
    return [
        (entry["step"], entry["loss"]) for entry in read_json(newest / "trainer_state.json")["log_history"] if "loss" in entry
    ]


@pytest.mark.parametrize("workers", [0, 2])
def test_a_resumed_run_equals_one_that_was_not_interrupted(folder, shards, tmp_path, workers):
    """Losses and weights, bit for bit, resumed within an epoch (step 4 of 6 per epoch) and at the end of one (step 12)."""
    extra = ("--num_train_epochs", "3", "--dataloader_num_workers", str(workers), "--text_tuning", "lora", "--seed", "3")
    train_hf.main(streamed(folder, shards, tmp_path / "whole", *extra))
    expected = load_file(tmp_path / "whole/model.safetensors")
    told = read_json(tmp_path / "whole/training.json")["data"]["train"]
    assert told == {"images": 24, "captions": None}
    assert len(losses(tmp_path / "whole")) == 18
    for step in (4, 12):
        checkpoint = tmp_path / f"whole/checkpoint-{step}"
        out = tmp_path / f"from{step}"
        train_hf.main(streamed(folder, shards, out, *extra, "--resume_from_checkpoint", str(checkpoint)))
        assert losses(out) == losses(tmp_path / "whole")
        found = load_file(out / "model.safetensors")
        assert found.keys() == expected.keys() and all(torch.equal(found[name], expected[name]) for name in found)


def test_a_stream_goes_on_only_as_it_began(folder, shards, tmp_path):
    first, checkpoint = streamed(folder, shards, tmp_path / "out", "--max_steps", "4"), tmp_path / "out/checkpoint-4"
    train_hf.main(first)
    again = [*first, "--output_dir", str(tmp_path / "other"), "--resume_from_checkpoint", str(checkpoint)]
    with pytest.raises(SystemExit, match=r"by a run with 1 readers of the stream .* there are 2"):
        train_hf.main([*again, "--dataloader_num_workers", "2"])
    (checkpoint / "stream-00000.json").unlink()
    with pytest.raises(SystemExit, match=r"checkpoint-4 lacks stream-00000\.json"):
        train_hf.main(again)


@pytest.mark.parametrize(
    "extra, message",
    [
        (("--dataloader_drop_last", "false"), "--dataloader_drop_last false cannot be combined with --streaming"),
        (("--accelerator_config", '{"dispatch_batches": true}'), "dispatch_batches or split_batches"),
        (("--train_sampling_strategy", "group_by_length"), "group_by_length cannot be combined"),
        (("--group_column", "label"), "--group_column cannot be combined"),
        (("--check_images", "true"), "it would read all shards"),
        (("--train_split", "train[:5]"), "a stream has no parts"),
        (("--dataloader_num_workers", "5"), "read 5 shards at a time, but there are 4"),
    ],
    ids=lambda value: value[0] if isinstance(value, tuple) else "",
)
def test_what_a_stream_cannot_follow_is_refused_first(folder, shards, tmp_path, monkeypatch, extra, message):
    monkeypatch.setattr("mpclip.training.run.build_model", None)
    with pytest.raises(SystemExit, match=message):
        train_hf.main(streamed(folder, shards, tmp_path / "out", *extra))


def test_epochs_by_samples_and_what_is_told(folder, shards, tmp_path, caplog):
    options = parse_options(streamed(folder, shards, tmp_path / "out", "--samples_per_epoch", "9", "--num_train_epochs", "4"))
    with caplog.at_level("INFO", "train_hf"):
        trainer = build_trainer(options)
    assert "A stream of 24 samples in 4 shards; 1 readers" in caplog.text
    assert "An epoch has 8 samples in 2 batches of 1 x 4." in caplog.text
    loader = trainer.get_train_dataloader()
    epochs = [[batch["caption_id"] for batch in loader] for _ in range(3)]
    assert [len(epoch) for epoch in epochs] == [2, 2, 2]
    assert len({int(i) for epoch in epochs for ids in epoch for i in ids}) == 24  # one pass in three epochs


def test_samples_that_cannot_be_read_are_named_once(folder, shards, tmp_path, caplog):
    spoilt = tmp_path / "shards"
    spoilt.mkdir()
    for file in shards.glob("0000*"):
        content = file.read_bytes()
        if file.name == "00002.tar":
            content = content.replace(b"IHDR", b"xxxx", 1)
        (spoilt / file.name).write_bytes(content)
    train_hf.main(streamed(folder, spoilt, tmp_path / "out", "--num_train_epochs", "3"))
    assert caplog.text.count("Left out: pictures that cannot be decoded. 00002.tar/000020000.png (") == 1
    assert "Left out of this process's stream: 1 pictures that cannot be decoded." in caplog.text
    with pytest.raises(SystemExit, match=r"00002\.tar/000020000\.png \(.*set --bad_images skip"):
        train_hf.main(streamed(folder, spoilt, tmp_path / "fails", "--bad_images", "fail"))


TWO = """
import json, sys
repository, out, *argv = sys.argv[1:]
sys.path.insert(0, repository)
from mpclip.training import build_trainer, parse_options
from mpclip.training.collator import MPCLIPCollator
from mpclip.training.run import train

seen, collate = [], MPCLIPCollator.__call__
MPCLIPCollator.__call__ = lambda self, examples: seen.append([e["name"] for e in examples]) or collate(self, examples)
told = []
for extra in ([], ["--resume_from_checkpoint", out + "/whole/checkpoint-4"]):
    options = parse_options([*argv, *extra, "--output_dir", out + ("/resumed" if extra else "/whole")])
    trainer = build_trainer(options)
    train(trainer, options=options)
    told.append({"seen": list(seen), "loss": [e["loss"] for e in trainer.state.log_history if "loss" in e]})
    told[-1]["weights"] = sum(p.detach().double().sum().item() for p in trainer.model.parameters())
    seen.clear()
print(json.dumps(told))
"""


def test_two_processes_share_an_epoch_and_resume_where_each_was(folder, shards, tmp_path):
    argv = streamed(folder, shards, tmp_path / "out", "--num_train_epochs", "2")  # three steps of two times four per epoch
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    job = os.environ | {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    given = (str(Path(__file__).parent.parent), str(tmp_path), *argv)
    ranks = [fresh_process.start(TWO, tmp_path, job | {"RANK": rank, "LOCAL_RANK": rank}, given) for rank in ("0", "1")]
    found = []
    for run in [rank.wait() for rank in ranks]:
        assert run.returncode == 0, run.stderr[-3000:]
        found.append(json.loads(run.stdout.splitlines()[-1]))
    for epoch in range(2):
        names = [name for whole, _ in found for batch in whole["seen"][3 * epoch : 3 * epoch + 3] for name in batch]
        assert len(names) == 24 == len(set(names))  # none twice, none lost
    for whole, resumed in found:
        assert resumed["seen"] == whole["seen"][4:] and len(resumed["seen"]) == 2
        assert resumed["loss"] == whole["loss"] and resumed["weights"] == whole["weights"]


# Data sets that are no streams ---------------------------------------------------------------------------------------


def test_pictures_are_not_read_before_they_are_needed(folder, tmp_path, caplog, monkeypatch):
    rows = [{"file_name": f"{i}.png", "captions": [f"number {i}"]} for i in range(8)]
    data = write_folder(tmp_path / "data", rows)
    picture(3, size=(13, 8)).save(data / "3.png")  # of another size than others, so that it is not compared with them
    (data / "3.png").write_bytes((data / "3.png").read_bytes()[:40])
    argv = arguments(folder, tmp_path / "out", "--dataset", str(data), "--eval_split", "none", "--num_train_epochs", "2")
    with monkeypatch.context() as patch:
        patch.setattr("PIL.Image.open", lambda *args, **kwargs: pytest.fail("a picture was decoded"))
        trainer = build_trainer(parse_options(argv))
    items = [trainer.train_dataset[i] for i in range(8)]
    assert [item["index"] for item in items] == [0, 1, 2, 4, 4, 5, 6, 7]  # the next one takes its place
    assert trainer.train_dataset.unreadable == [3]
    caplog.clear()
    train_hf.main([*argv, "--dataloader_num_workers", "2"])
    assert "1 of 8 pictures could not be read" in caplog.text
    assert read_json(tmp_path / "out/training.json")["data"]["train"]["unreadable"] == 1
    with pytest.raises(SystemExit, match=r"3\.png \(.*: the picture cannot be read"):
        train_hf.main([*argv, "--bad_images", "fail", "--output_dir", str(tmp_path / "fails")])
    with pytest.warns(match=r"1 of 8 rows with an image that cannot be decoded: 3\.png"):
        assert len(build_trainer(parse_options([*argv, "--check_images", "true"])).train_dataset) == 7


@pytest.mark.parametrize("extra", [("--dataloader_num_workers", "2"), ("--gradient_accumulation_steps", "3")])
def test_a_loss_that_is_not_finite_names_the_sample_of_a_stream(folder, shards, tmp_path, monkeypatch, extra):
    """The sample whose picture is NaN, though batches of later steps were read before."""
    collate = MPCLIPCollator.__call__

    def poisoned(self, examples):
        batch = collate(self, examples)
        batch["pixel_values"][[example["captions"][0] in ("7 alone", "the number 7") for example in examples]] = math.nan
        return batch

    monkeypatch.setattr(MPCLIPCollator, "__call__", poisoned)
    with pytest.raises(SystemExit, match=r"the loss is nan\. Not finite are the embeddings of 1 of its 4 examples: ") as ended:
        train_hf.main(streamed(folder, shards, tmp_path / "out", *extra))
    assert re.search(r'examples: [^ ]+ \("(7 alone|the number 7)"\)\. ', ended.value.code)
