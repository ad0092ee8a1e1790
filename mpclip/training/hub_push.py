"""`--push_to_hub`: pushes checkpoints during training and the final model at its end. A failed push never ends the training.

The pushes of transformers' own Trainer are not used. During training they lack the code of the model, put a LoRA adapter where
the model belongs, and include pickled arguments with the token of the Hub. Errors of these pushes are lost. An error of the
last push ends the run before its results are written.
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

LAST_CHECKPOINT = "last-checkpoint"  # the folder of --hub_strategy checkpoint, named as by transformers
# Patterns of files that are not pushed. They are tuples, and every call gets a new list, because huggingface_hub appends to it.
# Pickles are unsafe to load, and training_args.bin contains the token.
NOT_THE_MODEL = ("*.bin", "*.pt", "*.pth", "trainer_state.json")
NOT_TO_RESUME = ("training_args.bin", "README.md")  # this README.md is the empty form of PEFT, which the Hub refuses
NOT_THE_RUN = (f"{PREFIX_CHECKPOINT_DIR}-*", "_*", "run.json")
# Patterns of files that a push deletes: files of an earlier push that would be loaded instead of the new model, or with it.
OUTDATED = ("model*.safetensors", "model*.safetensors.index.json", "adapter_*", "adapter/*")


class PushFailed(RuntimeError):
    """The final model is saved but could not be pushed. The message contains the command that repeats the push."""


class HubPusher(TrainerCallback):
    """Pushes to the Hub during training and at its end.

    It follows `hub_model_id`, `hub_strategy`, `hub_token`, `hub_private_repo`, `hub_revision` and `hub_always_push`. The values
    of `hub_strategy`:

    * "end": push the final model.
    * "every_save": also push the model of every checkpoint, with code and processor, in the background.
    * "checkpoint": as "every_save"; also push everything that a resumed run needs, to the folder last-checkpoint/.
    * "all_checkpoints": as "every_save"; also push everything that a resumed run needs, to one folder per checkpoint.

    A checkpoint is not pushed while the push of an earlier one is running, except with "all_checkpoints" or `hub_always_push`.
    A checkpoint that waits for its push stays on disk, even beyond `save_total_limit`. The checkpoints of LoRA contain only the
    adapter, not a model, so only the folders for resuming are pushed.

    Args:
        arguments: of the run. Trainer itself must get a copy with `push_to_hub=False`.
        cache_dir: folder of cached states. It is never pushed, even if it is inside `output_dir`.

    Raises:
        ValueError: the repository cannot be created or written to. It is checked before training starts.
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
            # The calls above succeed without write access if the repository exists. This request, the first one of every push,
            # needs write access and changes nothing.
            self.api.preupload_lfs_files(self.repo_id, [CommitOperationAdd("README.md", b"")], revision=self.revision)
        except Exception as error:  # of the connection, the token or the name: the advice is the same
            raise ValueError(
                f"--push_to_hub: {self.api.endpoint} does not let you write to {self.repo_id}: {error}\n"
                "Log in (hf auth login) or pass --hub_token; give a repository of yours with --hub_model_id you/model; or "
                "leave --push_to_hub out."
            ) from error

    def on_save(self, args, state, control, **kwargs) -> None:
        """Push the checkpoint that was just saved, as `hub_strategy` demands."""
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
            logger.info("%s is not pushed: it has only the LoRA adapter. The merged model is pushed at the end.", checkpoint)
        if self.strategy == HubStrategy.CHECKPOINT:
            self._push_in_background(checkpoint, LAST_CHECKPOINT, NOT_TO_RESUME)
        elif self.strategy == HubStrategy.ALL_CHECKPOINTS:
            self._push_in_background(checkpoint, checkpoint.name, NOT_TO_RESUME)

    def _push_in_background(self, checkpoint: Path, path_in_repo: str | None, ignored: tuple[str, ...]) -> None:
        try:
            # Links to the files of the checkpoint: Trainer may delete it before it is pushed.
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
        except Exception as error:  # no error of a push may end the training
            self._tell_failed(checkpoint, error)

    def _tell_failed(self, checkpoint: Path, error: Exception) -> None:
        logger.warning("%s could not be pushed to %s (%s). Training continues.", checkpoint, self.repo_id, error)

    def push_final(self) -> None:
        """Wait for the pushes in the background, then push the final model from `output_dir`.

        Raises:
            PushFailed: the push failed; the message contains the command that repeats it.
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
        except Exception as error:  # of any kind: the model is on disk, and the push can be repeated
            excluded = " ".join(f'--exclude "{pattern}"' for pattern in ignored)
            deleted = " ".join(f'--delete "{pattern}"' for pattern in OUTDATED)
            revision = f" --revision {self.revision}" if self.revision else ""
            raise PushFailed(
                f"The model is saved in {self.folder}, but could not be pushed to {self.repo_id}: {error}\n"
                f"To push it later: hf upload {self.repo_id} {self.folder} . {excluded} {deleted}{revision}"
            ) from error
        logger.info("The model is at %s/%s", self.api.endpoint, self.repo_id)

    def _ignored_folders(self) -> list[str]:
        """Patterns for the cached states, and for an adapter whose base model is a local folder: nobody else could load it."""
        folders = []
        if self.cache_dir.absolute().is_relative_to(self.folder.absolute()):
            folders.append(f"{self.cache_dir.absolute().relative_to(self.folder.absolute())}/*")
        adapter = self.folder / "adapter" / "adapter_config.json"
        if adapter.exists() and Path(json.loads(adapter.read_text())["base_model_name_or_path"]).exists():
            folders.append("adapter/*")
        return folders


def _link(source: str, target: str) -> None:
    """Link a file; copy it on a file system without hard links."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)
