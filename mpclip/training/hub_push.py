"""`--push_to_hub`: checkpoints while training, the final model at its end; a push that fails costs no training.

transformers' Trainer could push by itself, but in mid-training its pushes lack the model's code, lay LoRA's adapter where the
model belongs and take pickled arguments along (the token among them); their errors are lost, and one in the last push ends the
run before its results are written.
"""

import json
import logging
import os
import shutil
from concurrent.futures import Future, wait
from pathlib import Path
from tempfile import TemporaryDirectory

from huggingface_hub import CommitOperationAdd, HfApi
from transformers import TrainerCallback
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR, HubStrategy

from .arguments import MPCLIPTrainingArguments

logger = logging.getLogger("train_hf")

LAST_CHECKPOINT = "last-checkpoint"  # the folder of --hub_strategy checkpoint, by Trainer's name
# Tuples, of which every call gets a list of its own: huggingface_hub appends to the lists it is given.
# Pickles are not for others to load, and the arguments' holds the token.
NOT_THE_MODEL = ("*.bin", "*.pt", "*.pth", "trainer_state.json")
NOT_TO_RESUME = ("training_args.bin", "README.md")  # the card is PEFT's, a form that the Hub refuses
NOT_THE_RUN = (f"{PREFIX_CHECKPOINT_DIR}-*", "_*", "run.json")
# What an earlier push may have left and would be loaded in place of the new model, or beside it as if it were of it.
OUTDATED = ("model*.safetensors", "model*.safetensors.index.json", "adapter_*", "adapter/*")


class PushFailed(RuntimeError):
    """The final model could not be pushed; it is saved, and the message has the command that repeats the push."""


class HubPusher(TrainerCallback):
    """Pushes as `hub_model_id`, `hub_strategy`, `hub_token`, `hub_private_repo`, `hub_revision` and `hub_always_push` say.

    "end" pushes once; "every_save" also every checkpoint's model, with code and processor, in the background; "checkpoint" in
    addition all that a resumed run needs, to last-checkpoint/; "all_checkpoints" to a folder for each. While a push is running
    the next one is left out, save with "all_checkpoints" or `hub_always_push`; what waits stays on disk until it is pushed,
    whatever `save_total_limit` says. LoRA's checkpoints are no models: of them only the folders are pushed.

    Args:
        arguments: of the run; Trainer itself must not push (`push_to_hub=False` there).
        cache_dir: never pushed, should it lie in `output_dir`.

    Raises:
        ValueError: the repository cannot be created or written to; before anything is trained.
    """

    def __init__(self, arguments: MPCLIPTrainingArguments, cache_dir: str | Path):
        self.folder, self.strategy = Path(arguments.output_dir), HubStrategy(arguments.hub_strategy)
        self.revision, self.always = arguments.hub_revision, arguments.hub_always_push
        self.cache_dir = Path(cache_dir)
        self.api = HfApi(token=arguments.hub_token)
        self.jobs: list[Future] = []
        self.repo_id = arguments.hub_model_id or self.folder.absolute().name
        if arguments.process_index != 0:
            return
        try:
            self.repo_id = self.api.create_repo(self.repo_id, private=arguments.hub_private_repo, exist_ok=True).repo_id
            if self.revision is not None:
                self.api.create_branch(self.repo_id, branch=self.revision, exist_ok=True)
            # Both are content with a repository that one may only read. This asks what every push asks first, and adds nothing.
            self.api.preupload_lfs_files(self.repo_id, [CommitOperationAdd("README.md", b"")], revision=self.revision)
        except Exception as error:  # of the connection, the token, the name: all end in the same advice
            raise ValueError(
                f"--push_to_hub: {self.api.endpoint} does not let you write to {self.repo_id}: {error}\n"
                "Log in (hf auth login) or pass --hub_token, name your repository with --hub_model_id you/model, or leave "
                "--push_to_hub out."
            ) from error

    def on_save(self, args, state, control, **kwargs) -> None:
        if not state.is_world_process_zero or self.strategy == HubStrategy.END:
            return
        checkpoint = self.folder / f"{PREFIX_CHECKPOINT_DIR}-{state.global_step}"
        every = self.always or self.strategy == HubStrategy.ALL_CHECKPOINTS
        if not every and any(not job.done() for job in self.jobs):
            logger.info("%s is not pushed: the push before it is still running.", checkpoint)
            return
        if not (checkpoint / "adapter_config.json").exists():
            self._push_in_background(checkpoint, None, NOT_THE_MODEL)
        elif self.strategy == HubStrategy.EVERY_SAVE:
            logger.info("%s is not pushed: it holds LoRA's adapter alone. The merged model is pushed in the end.", checkpoint)
        if self.strategy == HubStrategy.CHECKPOINT:
            self._push_in_background(checkpoint, LAST_CHECKPOINT, NOT_TO_RESUME)
        elif self.strategy == HubStrategy.ALL_CHECKPOINTS:
            self._push_in_background(checkpoint, checkpoint.name, NOT_TO_RESUME)

    def _push_in_background(self, checkpoint: Path, path_in_repo: str | None, ignored: tuple[str, ...]) -> None:
        try:
            # Links to its files: Trainer may delete the checkpoint before its turn comes.
            links = TemporaryDirectory(prefix="_pushed-", dir=self.folder, ignore_cleanup_errors=True)
            shutil.copytree(checkpoint, links.name, copy_function=_link, dirs_exist_ok=True)
        except OSError as error:
            return self._tell_failed(checkpoint, error)
        self.jobs.append(self.api.run_as_future(self._push_checkpoint, checkpoint, links, path_in_repo, ignored))

    def _push_checkpoint(
        self, checkpoint: Path, links: TemporaryDirectory, path_in_repo: str | None, ignored: tuple[str, ...]
    ) -> None:
        try:
            with links as folder:
                self.api.upload_folder(
                    repo_id=self.repo_id,
                    folder_path=folder,
                    path_in_repo=path_in_repo,
                    commit_message=f"Training in progress: {checkpoint.name}",
                    ignore_patterns=list(ignored),
                    delete_patterns=list(OUTDATED) if path_in_repo is None else None,
                    revision=self.revision,
                )
        except Exception as error:  # whatever it is, the training is worth more
            self._tell_failed(checkpoint, error)

    def _tell_failed(self, checkpoint: Path, error: Exception) -> None:
        logger.warning("%s could not be pushed to %s (%s). Training goes on.", checkpoint, self.repo_id, error)

    def push_final(self) -> None:
        """Push what `output_dir` holds of the model; once the pushes in the background have ended.

        Raises:
            PushFailed: with the command that repeats it.
        """
        wait(self.jobs)
        ignored = [*NOT_THE_MODEL, *NOT_THE_RUN, *self._ignored_folders()]
        try:
            self.api.upload_folder(
                repo_id=self.repo_id,
                folder_path=self.folder,
                commit_message="End of training",
                ignore_patterns=list(ignored),
                delete_patterns=list(OUTDATED),
                revision=self.revision,
            )
        except Exception as error:  # whatever it is, the training is done and its result on disk
            excluded = " ".join(f'--exclude "{pattern}"' for pattern in ignored)
            deleted = " ".join(f'--delete "{pattern}"' for pattern in OUTDATED)
            revision = f" --revision {self.revision}" if self.revision else ""
            raise PushFailed(
                f"The model is saved in {self.folder}, but could not be pushed to {self.repo_id}: {error}\n"
                f"To push it later: hf upload {self.repo_id} {self.folder} . {excluded} {deleted}{revision}"
            ) from error
        logger.info("The model is at %s/%s", self.api.endpoint, self.repo_id)

    def _ignored_folders(self) -> list[str]:
        """The cache, and an adapter whose base is a folder of this machine, which is of no use elsewhere."""
        folders = []
        if self.cache_dir.absolute().is_relative_to(self.folder.absolute()):
            folders.append(f"{self.cache_dir.absolute().relative_to(self.folder.absolute())}/*")
        adapter = self.folder / "adapter" / "adapter_config.json"
        if adapter.exists() and Path(json.loads(adapter.read_text())["base_model_name_or_path"]).exists():
            folders.append("adapter/*")
        return folders


def _link(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:  # a file system without hard links
        shutil.copy2(source, target)
