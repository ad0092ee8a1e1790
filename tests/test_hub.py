"""One checkpoint is one repository: pushed from Python and by `train_hf.py`, loaded elsewhere, on a Hub of our own."""

import json
import re
import shlex
import shutil
import subprocess
import sys
import textwrap
from concurrent.futures import ThreadPoolExecutor, wait

import fresh_process
import huggingface_hub
import pytest
import torch
from conftest import arguments, make_model, make_processor, make_tokenizer
from hub_standin import Repo
from huggingface_hub import ModelCard
from PIL import Image

import train_hf
from model_card.__main__ import main as write_card_again
from model_card.card import write_card
from modeling_mpclip import MPCLIPConfig, MPCLIPModel
from mpclip.training.command_line import parse_options
from mpclip.training.hub_push import NOT_THE_MODEL, NOT_THE_RUN, OUTDATED, HubPusher
from mpclip.training.run import build_trainer, train

TEXTS = ["The cat sits on the mat", "a dog", ""]
CODE = {"modeling_mpclip.py", "configuration_mpclip.py", "processing_mpclip.py", "text_tower.py", "checkpoint_guard.py"}
MODEL = CODE | {"config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json", "processor_config.json"}


def embed(model) -> torch.Tensor:
    batch = make_processor(make_tokenizer())(text=TEXTS)
    with torch.no_grad():
        return model.eval()(**batch).text_embeds


def elsewhere(hub, home, code: str, token: str | None = None, **environment) -> subprocess.CompletedProcess:
    """Run code in a fresh process that knows transformers and torch, but nothing of this project, with HF_HOME at `home`."""
    home.mkdir(exist_ok=True)
    script = textwrap.dedent("""
        import json, sys

        class NoProject:
            def find_spec(self, name, path=None, target=None):
                if name.split(".")[0] in ("modeling_mpclip", "mpclip", "train_hf", "eval", "demo"):
                    raise ModuleNotFoundError(f"{name} is not to be found here")

        sys.meta_path.insert(0, NoProject())
        try:
            import modeling_mpclip
        except ModuleNotFoundError:
            pass
        else:
            raise AssertionError("the project can be imported")

        import torch
        from transformers import AutoConfig, AutoModel, AutoProcessor, AutoTokenizer

        def embeds(model, texts, **where):
            processor = AutoProcessor.from_pretrained("me/model", trust_remote_code=True, **where)
            with torch.no_grad():
                return model.eval()(**processor(text=texts)).text_embeds.float().tolist()
    """)
    variables = fresh_process.plain_environment() | hub.environment(token) | {"HF_HOME": str(home)} | environment
    return fresh_process.run(script + textwrap.dedent(code), cwd=home, environment=variables)


def numbers(run: subprocess.CompletedProcess) -> list[torch.Tensor]:
    """What it printed as JSON, line by line."""
    assert run.returncode == 0, run.stderr[-3000:]
    return [torch.tensor(json.loads(line)) for line in run.stdout.splitlines() if line.startswith("[[")]


def push(model, repo: str = "me/model", **kwargs) -> str:
    """Model and processor; the commit they end in."""
    model.push_to_hub(repo, **kwargs)
    return make_processor(make_tokenizer()).push_to_hub(repo, private=kwargs.get("private")).oid


# From Python ------------------------------------------------------------------------------------------------------


def test_one_repository_loads_elsewhere_in_every_way_and_then_offline(hub, tmp_path):
    model = make_model()
    push(model)
    assert set(hub.repos) == {"me/model"} and hub.repos["me/model"].files().keys() >= MODEL
    assert not [name for name in hub.repos["me/model"].files() if name.endswith((".bin", ".pt"))]
    code = f"""
        config = AutoConfig.from_pretrained("me/model", trust_remote_code=True)
        assert config.model_type == "mpclip"
        plain = AutoModel.from_pretrained("me/model", trust_remote_code=True)
        print(json.dumps(embeds(plain, {TEXTS})))
        print(json.dumps(embeds(AutoModel.from_pretrained("me/model", trust_remote_code=True, device_map="auto"), {TEXTS})))
        print(json.dumps(embeds(torch.compile(plain, backend="eager"), {TEXTS})))
        half = AutoModel.from_pretrained("me/model", trust_remote_code=True, dtype=torch.bfloat16)
        assert half.text_model.dtype == torch.bfloat16
        print(json.dumps(embeds(half, {TEXTS})))
        AutoTokenizer.from_pretrained("me/model", trust_remote_code=True)
        model = sys.modules[type(plain).__module__]
        assert model.__name__.startswith("transformers_modules.me.model") and {str(tmp_path)!r} in model.__file__
    """
    run = elsewhere(hub, tmp_path / "other", code)
    *equal, half = numbers(run)
    for embeds in equal:
        torch.testing.assert_close(embeds, embed(model), atol=1e-5, rtol=1e-4)
    assert torch.nn.functional.cosine_similarity(half, embed(model)).min() > 0.98
    repositories = {path.split("/resolve/")[0].split("/api/models/")[-1] for path in hub.requests if "resolve" in path}
    assert {name.split(" ")[-1].strip("/") for name in repositories} == {"me/model"}

    asked = len(hub.requests)
    hub.failing["/"] = 503
    offline = numbers(elsewhere(hub, tmp_path / "other", code, HF_HUB_OFFLINE="1"))
    assert len(hub.requests) == asked
    for one, other in zip(offline, [*equal, half], strict=True):
        torch.testing.assert_close(one, other, atol=0, rtol=0)


def test_sentence_transformers_loads_it_elsewhere(hub, tmp_path):
    model = make_model()
    # Uploads from within save_pretrained: what sentence-transformers needs has to be written before that.
    model.save_pretrained(tmp_path / "mine", push_to_hub=True, repo_id="me/model")
    make_processor(make_tokenizer()).push_to_hub("me/model")
    assert {"modules.json", "config_sentence_transformers.json", "sentence_mpclip.py"} <= hub.repos["me/model"].files().keys()
    code = f"""
        from sentence_transformers import SentenceTransformer
        model = SentenceTransformer("me/model", trust_remote_code=True, device="cpu")
        print(json.dumps(model.encode({TEXTS}).tolist()))
        model.save_pretrained("again")
        again = SentenceTransformer("again", trust_remote_code=True, device="cpu")
        print(json.dumps(again.encode({TEXTS}).tolist()))
    """
    for embeds in numbers(elsewhere(hub, tmp_path / "other", code)):
        torch.testing.assert_close(embeds, embed(model), atol=1e-5, rtol=1e-4)


def test_sharded(hub, tmp_path):
    model = make_model()
    push(model, max_shard_size="20KB")
    names = hub.repos["me/model"].files()
    assert "model.safetensors.index.json" in names and "model-00002-of-00012.safetensors" in names
    code = f"""print(json.dumps(embeds(AutoModel.from_pretrained("me/model", trust_remote_code=True), {TEXTS})))"""
    (embeds,) = numbers(elsewhere(hub, tmp_path / "other", code))
    torch.testing.assert_close(embeds, embed(model), atol=1e-5, rtol=1e-4)


def test_a_pinned_revision_keeps_its_weights_and_its_code(hub, tmp_path):
    first = make_model()
    pinned = push(first)
    second = make_model()
    with torch.no_grad():
        second.text_projection.weight.mul_(-1)
    push(second)
    api = huggingface_hub.HfApi()
    code = hub.repos["me/model"].files()["modeling_mpclip.py"] + b"\n\nMPCLIPModel.is_changed = True\n"
    changed = api.upload_file(path_or_fileobj=code, path_in_repo="modeling_mpclip.py", repo_id="me/model").oid
    run = elsewhere(
        hub,
        tmp_path / "other",
        f"""
        for where in ({{"revision": {pinned!r}}}, {{"revision": {pinned!r}, "code_revision": {pinned!r}}}, {{}},
                      {{"code_revision": {pinned!r}}}, {{"revision": {pinned!r}, "code_revision": {changed!r}}}):
            model = AutoModel.from_pretrained("me/model", trust_remote_code=True, **where)
            print(json.dumps(embeds(model, {TEXTS})))
            print("changed code" if hasattr(model, "is_changed") else "pinned code")
        """,
    )
    now, then = embed(second), embed(first)
    for embeds, expected in zip(numbers(run), (then, then, now, now, then), strict=True):
        torch.testing.assert_close(embeds, expected, atol=1e-5, rtol=1e-4)
    code = [line for line in run.stdout.splitlines() if line.endswith("code")]
    assert code == ["pinned code", "pinned code", "changed code", "pinned code", "changed code"]


def test_a_private_repository_opens_to_its_owner_alone(hub, tmp_path):
    push(make_model(), private=True)
    code = """
        import os, traceback
        for token in (None, "token-of-hers", "no-token", "token-of-mine"):
            os.environ |= {"HF_TOKEN": token} if token else {}
            try:
                AutoModel.from_pretrained("me/model", trust_remote_code=True)
            except OSError:
                print(json.dumps(traceback.format_exc()))
            else:
                print(json.dumps("opened"))
    """
    run = elsewhere(hub, tmp_path / "home", code, HF_HUB_DISABLE_IMPLICIT_TOKEN="0")
    assert run.returncode == 0, run.stderr
    *refusals, mine = map(json.loads, run.stdout.splitlines())
    hidden = "private repository, make sure to pass a token"
    for refusal, message in zip(refusals, (hidden, hidden, "Invalid credentials"), strict=True):
        assert message in refusal and "me/model" in refusal
    assert mine == "opened"


def test_without_trust_nothing_of_the_repository_runs(hub, tmp_path):
    push(make_model())
    run = elsewhere(hub, tmp_path / "other", """AutoModel.from_pretrained("me/model")""")
    assert run.returncode == 1 and "trust_remote_code=True" in run.stderr


def test_a_push_with_a_bad_token_or_to_anothers_repository_is_refused(hub):
    with pytest.raises(huggingface_hub.errors.HfHubHTTPError, match="401"):
        make_model().push_to_hub("me/model", token="no-token")
    with pytest.raises(huggingface_hub.errors.HfHubHTTPError, match="403"):
        make_model().push_to_hub("her/model")
    assert not hub.repos


def test_concurrent_pushes_leave_one_whole_model(hub, tmp_path):
    models = [make_model(), make_model()]
    with torch.no_grad():
        models[1].text_projection.weight.mul_(-1)
    with ThreadPoolExecutor(4) as pool:
        for job in [pool.submit(push, model) for model in models]:
            job.result()
    assert hub.repos["me/model"].messages.count("Upload model") == 2
    loaded = MPCLIPModel.from_pretrained("me/model")
    assert any(torch.equal(loaded.text_projection.weight, model.text_projection.weight) for model in models)


def card_of(hub, repo: str = "me/model") -> ModelCard:
    return ModelCard(hub.repos[repo].files()["README.md"].decode())


def test_a_pushed_model_has_a_card(hub, tmp_path, monkeypatch):
    processor, model = make_processor(make_tokenizer()), make_model(loss="sigmoid")
    processor.push_to_hub("me/model")
    assert "README.md" not in hub.repos["me/model"].files()  # the model's to write
    (tmp_path / "some/folder").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)  # where the second tower's path would pass for an id
    model.config.text_config._name_or_path, model.config.vision_config._name_or_path = "me/tower", "some/folder"
    model.push_to_hub("me/model", tags=["squares"])
    card, data = card_of(hub), card_of(hub).data
    said = {name: data.get(name) for name in ("library_name", "pipeline_tag")}
    assert said == {"library_name": "transformers", "pipeline_tag": "zero-shot-image-classification"}
    assert {"mp-clip", "squares"} <= set(data.tags) and data.base_model == ["me/tower"]
    assert "More Information Needed" not in card.text and "through 3 prompts" in card.text and " 4 of the 12 dim" in card.text
    assert all(template in card.text for template in model.config.templates)
    (snippet,) = re.findall(r"^```python\n(.*?)^```", card.text, flags=re.DOTALL | re.MULTILINE)
    home = tmp_path / "other"
    home.mkdir()
    Image.new("RGB", (40, 40), "red").save(home / "picture.jpg")
    run = elsewhere(hub, home, textwrap.indent(snippet + "print(json.dumps(probabilities.tolist()))", " " * 8))
    assert numbers(run)[0].shape == (1, 2) and "sigmoid()" in snippet

    # Pushed again it tells of the new model; metadata stays, and so does a card of one's own.
    changed = ModelCard(card.content)
    changed.data.license = "mit"
    huggingface_hub.HfApi().upload_file(path_or_fileobj=str(changed).encode(), path_in_repo="README.md", repo_id="me/model")
    make_model(num_prompts=2).push_to_hub("me/model")
    assert "through 2 prompts" in card_of(hub).text and card_of(hub).data.license == "mit"
    own = b"---\nlicense: mit\n---\n# Mine\n"
    huggingface_hub.HfApi().upload_file(path_or_fileobj=own, path_in_repo="README.md", repo_id="me/model")
    push(model)
    assert card_of(hub).text.strip() == "# Mine"


def test_a_card_in_the_folder_is_pushed_and_not_written_over(hub, tmp_path):
    own = "---\nlicense: mit\n---\n# Mine\n"
    (tmp_path / "README.md").write_text(own)
    make_model().save_pretrained(tmp_path, push_to_hub=True, repo_id="me/model")
    make_processor(make_tokenizer()).save_pretrained(str(tmp_path), push_to_hub=True, repo_id="me/model")
    assert (tmp_path / "README.md").read_text() == own == hub.repos["me/model"].files()["README.md"].decode()
    text_only = MPCLIPModel(MPCLIPConfig.from_dict(make_model().config.to_dict() | {"text_only": True, "vision_config": None}))
    text_only.save_pretrained(tmp_path / "text", push_to_hub=True, repo_id="me/text")
    assert card_of(hub, "me/text").data.pipeline_tag == "feature-extraction" and "PIL" not in card_of(hub, "me/text").text


@pytest.mark.parametrize(
    "metadata, message",
    [
        ("license: [mit]", "license"),
        ("pipeline_tag: Zero Shot", "pipeline_tag"),
        ("library_name: 5", "library_name"),
        ("language: [en, no]", "language"),
        ("tags: [a, {b: c}]", "tags"),
        ("model-index: [{name: x, results: [{task: {}}]}]", "model-index.*type"),
        ("- a", "mapping"),
    ],
)
def test_the_stand_in_refuses_a_broken_card(hub, tmp_path, metadata, message):
    huggingface_hub.HfApi().create_repo("me/model")
    (tmp_path / "README.md").write_text(f"---\n{metadata}\n---\n# Broken\n")
    with pytest.raises(ValueError, match=rf"Invalid metadata in README.md.*\n.*{message}"):
        huggingface_hub.HfApi().upload_folder(repo_id="me/model", folder_path=tmp_path)
    assert "README.md" not in hub.repos["me/model"].files()


def test_the_stand_in_refuses_a_commit_onto_a_parent_that_is_no_longer_the_last(hub):
    api = huggingface_hub.HfApi()
    api.create_repo("me/model")
    parent = api.upload_file(path_or_fileobj=b"1", path_in_repo="a.txt", repo_id="me/model").oid
    api.upload_file(path_or_fileobj=b"2", path_in_repo="a.txt", repo_id="me/model", parent_commit=parent)
    with pytest.raises(huggingface_hub.errors.HfHubHTTPError, match="412"):
        api.upload_file(path_or_fileobj=b"3", path_in_repo="a.txt", repo_id="me/model", parent_commit=parent)
    assert hub.repos["me/model"].files()["a.txt"] == b"2"


# By train_hf.py ---------------------------------------------------------------------------------------------------


def train_and_push(folder, out, *extra: str):
    return train_hf.main(arguments(folder, out, "--push_to_hub", "true", "--hub_model_id", "me/model", *extra))


def assert_loads_as(out) -> None:
    """The repository's main is the model of the folder."""
    pushed, local = MPCLIPModel.from_pretrained("me/model", force_download=True), MPCLIPModel.from_pretrained(out)
    for name, tensor in local.state_dict().items():
        torch.testing.assert_close(pushed.state_dict()[name], tensor, atol=0, rtol=0)


@pytest.mark.parametrize(
    "strategy, messages, folders",
    [
        ("end", ["End of training"], set()),
        ("every_save", ["Training in progress: checkpoint-2", "End of training"], set()),
        ("checkpoint", ["Training in progress: checkpoint-2", "End of training"], {"last-checkpoint"}),
        ("all_checkpoints", ["Training in progress: checkpoint-4", "End of training"], {"checkpoint-2", "checkpoint-4"}),
    ],
)
def test_every_strategy_ends_in_one_model(hub, folder, tmp_path, strategy, messages, folders):
    train_and_push(folder, tmp_path, "--hub_strategy", strategy, "--hub_always_push", "true")
    repo = hub.repos["me/model"]
    assert set(messages) <= set(repo.messages) and repo.messages[-1] == "End of training"
    files = set(repo.files())
    assert files >= MODEL | {"training.json", "eval_results.json", "README.md", "assets/maps.png"}
    # Neither the cache nor checkpoints unasked.
    assert {name.split("/")[0] for name in files if "/" in name} == folders | {"assets"}
    assert not [name for name in files if name.endswith("training_args.bin") or name == "run.json"]
    if folders:
        assert any(name.endswith("optimizer.pt") for name in files)
    assert_loads_as(tmp_path)


def test_what_is_pushed_in_between_is_a_whole_model(hub, folder, tmp_path):
    train_and_push(folder, tmp_path, "--hub_strategy", "every_save", "--hub_always_push", "true", "--save_total_limit", "9")
    repo = hub.repos["me/model"]
    between = repo.messages.index("Training in progress: checkpoint-2")
    commit = list(repo.commits)[between]
    assert set(repo.commits[commit]) >= MODEL
    run = elsewhere(
        hub,
        tmp_path / "other",
        f"""
        model = AutoModel.from_pretrained("me/model", trust_remote_code=True, revision={commit!r})
        print(json.dumps(embeds(model, {TEXTS}, revision={commit!r})))
        """,
    )
    (embeds,) = numbers(run)
    torch.testing.assert_close(embeds, embed(MPCLIPModel.from_pretrained(tmp_path / "checkpoint-2")), atol=1e-5, rtol=1e-4)


def test_lora_is_pushed_merged(hub, folder, tmp_path):
    extra = ("--text_tuning", "lora", "--adaptive_tokens", "input", "--hub_strategy", "all_checkpoints")
    train_and_push(folder, tmp_path, *extra)
    files = set(hub.repos["me/model"].files())
    assert "checkpoint-2/adapter_model.safetensors" in files and files >= MODEL
    assert not any(name.startswith("adapter") for name in files)
    assert_loads_as(tmp_path)


def test_a_failed_push_in_between_is_told_and_ends_nothing(hub, folder, tmp_path, caplog):
    described = parse_options(arguments(folder, tmp_path, "--push_to_hub", "true", "--hub_model_id", "me/model"))
    trainer = build_trainer(described, write_card=write_card)
    hub.failing["/commit/"] = 500
    real_push = trainer.hub_pusher.push_final

    def push_final():
        wait(trainer.hub_pusher.jobs)
        hub.failing.clear()
        real_push()

    trainer.hub_pusher.push_final = push_final
    finished = train(trainer, options=described)
    assert "eval_mean_recall" in finished
    assert "checkpoint-2 could not be pushed to me/model (" in caplog.text and "500" in caplog.text
    assert hub.repos["me/model"].messages == ["initial commit", "End of training"]
    assert_loads_as(tmp_path)


def test_a_failed_last_push_leaves_the_model_and_the_command_that_repeats_it(hub, folder, tmp_path, monkeypatch):
    hub.failing["/commit/"] = 500
    with pytest.raises(SystemExit) as ended:
        train_and_push(folder, tmp_path / "out", "--hub_strategy", "end")
    assert "The model is saved in" in ended.value.code and "500" in ended.value.code  # a message: the exit status is 1
    assert (tmp_path / "out" / "training.json").exists() and (tmp_path / "out" / "eval_results.json").exists()
    command = shlex.split(ended.value.code.splitlines()[-1].removeprefix("To push it later: "))
    hub.failing.clear()
    # Something of a run before, which the repeated push must clear away.
    for left_over in ("adapter_config.json", "adapter/adapter_config.json"):
        huggingface_hub.HfApi().upload_file(path_or_fileobj=b"{}", path_in_repo=left_over, repo_id="me/model")
    assert command[:2] == ["hf", "upload"]
    # No more than is written in hub_push.py, of which huggingface_hub has been given copies.
    patterns = [command[i + 1] for i, part in enumerate(command) if part in ("--exclude", "--delete")]
    assert patterns == [*NOT_THE_MODEL, *NOT_THE_RUN, "cache/*", *OUTDATED]
    run = subprocess.run(
        [sys.executable, "-m", "huggingface_hub.cli.hf", *command[1:]], capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stderr
    files = set(hub.repos["me/model"].files())
    assert files >= MODEL and not [name for name in files if name.startswith("adapter")]
    assert not [name for name in files if name.startswith(("checkpoint-", "cache/", "run.json")) or name.endswith(".bin")]
    assert_loads_as(tmp_path / "out")


def test_a_repository_that_cannot_be_written_to_is_refused_before_training(hub, folder, tmp_path, monkeypatch):
    hers = arguments(folder, tmp_path, "--push_to_hub", "true", "--hub_model_id", "her/model")
    for existing in (False, True):  # one that I may read is no better than none
        if existing:
            hub.repos["her/model"] = Repo("her", private=False)
            hub.repos["her/model"].commit("main", {}, "initial commit")
        with pytest.raises(SystemExit, match=r"(?s)does not let you write to her/model: .*403.*hf auth login"):
            train_hf.main(hers)
    huggingface_hub.HfApi().create_repo("me/model")
    for token, status in (("token-to-read", "403"), ("no-token", "401")):
        monkeypatch.setenv("HF_TOKEN", token)
        with pytest.raises(SystemExit, match=status):
            train_and_push(folder, tmp_path)
    assert not tmp_path.joinpath("run.json").exists()


def test_a_token_a_branch_and_a_private_repository(hub, folder, tmp_path, monkeypatch):
    monkeypatch.delenv("HF_TOKEN")
    options = ("--hub_token", "token-of-mine", "--hub_private_repo", "true", "--hub_revision", "trial")
    train_and_push(folder, tmp_path, *options, "--hub_strategy", "all_checkpoints", "--num_train_epochs", "1")
    repo = hub.repos["me/model"]
    assert repo.private and set(repo.files()) == {".gitattributes"} and set(repo.files("trial")) >= MODEL
    assert not [name for name, data in repo.files("trial").items() if b"token-of-mine" in data]
    origin = json.loads(repo.files("trial")["training.json"])
    assert "<HUB_TOKEN>" in origin["command"] and origin["MPCLIPTrainingArguments"]["push_to_hub"] is True


def test_a_slow_push_makes_the_next_one_be_left_out(hub, folder, tmp_path, caplog):
    caplog.set_level("INFO")
    described = parse_options(arguments(folder, tmp_path, "--push_to_hub", "true", "--hub_model_id", "me/model"))
    trainer = build_trainer(described, write_card=write_card)
    with hub.lock:  # no commit gets through
        trainer.train()
        assert "checkpoint-4 is not pushed: the push before it is still running." in caplog.text
    trainer.save_model()
    trainer.hub_pusher.push_final()
    assert hub.repos["me/model"].messages[1:] == ["Training in progress: checkpoint-2", "End of training"]


def test_all_checkpoints_arrive_though_the_hub_is_slow_and_few_are_kept(hub, folder, tmp_path):
    options = ("--push_to_hub", "true", "--hub_model_id", "me/model", "--hub_strategy", "all_checkpoints")
    options += ("--num_train_epochs", "3", "--save_total_limit", "1", "--load_best_model_at_end", "false")
    described = parse_options(arguments(folder, tmp_path, *options))
    trainer = build_trainer(described, write_card=write_card)
    with hub.lock:  # no commit gets through
        trainer.train()
        assert len(list(tmp_path.glob("checkpoint-*"))) == 1
    trainer.save_model()
    trainer.hub_pusher.push_final()
    files = hub.repos["me/model"].files()
    for step in (2, 4, 6):
        assert json.loads(files[f"checkpoint-{step}/trainer_state.json"])["global_step"] == step
        assert f"checkpoint-{step}/model.safetensors" in files
    assert not list(tmp_path.glob("_pushed-*")) and not [name for name in files if name.startswith("_")]


def test_a_checkpoint_is_copied_where_there_are_no_hard_links(hub, folder, tmp_path, monkeypatch, caplog):
    def no_links(*args):
        raise OSError("not supported")

    monkeypatch.setattr("os.link", no_links)
    train_and_push(folder, tmp_path, "--hub_strategy", "all_checkpoints")
    assert "checkpoint-2/model.safetensors" in hub.repos["me/model"].files() and "could not be pushed" not in caplog.text


def test_a_run_without_lora_takes_away_the_adapter_of_the_run_before(hub, folder, tmp_path):
    train_and_push(folder, tmp_path / "base", "--adaptive_tokens", "input", "--hub_strategy", "end", "--max_steps", "1")
    options = ["--checkpoint", "me/model", "--dataset", str(folder / "data"), "--output_dir", str(tmp_path / "out")]
    options += ["--per_device_train_batch_size", "4", "--max_steps", "1", "--use_cpu", "true", "--hub_strategy", "end"]
    options += ["--push_to_hub", "true", "--hub_model_id", "me/model", "--resume_from_checkpoint", "false"]
    train_hf.main([*options, "--text_tuning", "lora"])
    assert "adapter/adapter_config.json" in hub.repos["me/model"].files() and (tmp_path / "out" / "adapter").exists()
    train_hf.main([*options, "--text_tuning", "frozen"])
    assert not [name for name in hub.repos["me/model"].files() if name.startswith("adapter")]
    assert not (tmp_path / "out" / "adapter").exists()


def test_a_data_set_in_norwegian_has_a_card_that_the_hub_takes(hub, folder, tmp_path):
    shutil.copytree(folder / "data", tmp_path / "data")
    (tmp_path / "data" / "README.md").write_text("---\nlicense: mit\nlanguage: [en, no]\n---\n# Data\n")
    out = tmp_path / "out"
    train_and_push(folder, out, "--dataset", str(tmp_path / "data"), "--hub_strategy", "end", "--max_steps", "1")
    card = card_of(hub)
    assert card.data.language == ["en", "no"] and "language: en, no" in card.text
    assert card.data.eval_results and "POST /api/validate-yaml" in hub.requests


def test_a_card_that_cannot_be_written_costs_neither_the_model_nor_the_push(hub, folder, tmp_path, monkeypatch, caplog):
    def fails(*args, **kwargs):
        raise TypeError("no such card")

    with monkeypatch.context() as patched:
        patched.setattr("model_card.card.write_card", fails)
        train_and_push(folder, tmp_path, "--hub_strategy", "end", "--max_steps", "1")
    assert f"no such card')\nTo write it later: python -m model_card {tmp_path} --repo_id me/model" in caplog.text
    files = set(hub.repos["me/model"].files())
    assert files >= MODEL and "README.md" not in files
    command = caplog.text.split("To write it later: python -m model_card ")[1].splitlines()[0]
    write_card_again(shlex.split(command))
    assert (tmp_path / "README.md").exists()


def test_two_runs_that_push_at_once_leave_one_whole_model(hub, tmp_path):
    models, pushers = [make_model(), make_model()], []
    with torch.no_grad():
        models[1].text_projection.weight.mul_(-1)
    for i, model in enumerate(models):
        out = tmp_path / str(i)
        options = ("--output_dir", str(out), "--push_to_hub", "true", "--hub_model_id", "me/model", "--use_cpu", "true")
        pushers.append(HubPusher(parse_options(list(options)).training, out / "cache"))
        model.save_pretrained(out)
        make_processor(make_tokenizer()).save_pretrained(out)
        (out / f"of-{i}.txt").touch()
    with ThreadPoolExecutor(2) as pool:
        for job in [pool.submit(pusher.push_final) for pusher in pushers]:
            job.result()
    repo = hub.repos["me/model"]
    assert repo.messages == ["initial commit", "End of training", "End of training"]
    assert set(repo.files()) >= MODEL | {"of-0.txt", "of-1.txt"}
    loaded = MPCLIPModel.from_pretrained("me/model")
    assert any(torch.equal(loaded.text_projection.weight, model.text_projection.weight) for model in models)
