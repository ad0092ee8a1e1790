"""How accelerate starts several processes: every file is what accelerate's own config class and its command take."""

import re
import subprocess
from pathlib import Path

import pytest
from accelerate.commands.config.config_args import ClusterConfig
from accelerate.commands.launch import launch_command_parser

FOLDER = Path(__file__).parent.parent / "configs" / "accelerate"
FILES = sorted(FOLDER.glob("*.yaml"))


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_accelerate_takes_the_file(file):
    config = ClusterConfig.from_yaml_file(str(file))
    assert config.num_processes >= 2 and config.num_processes % config.num_machines == 0
    assert config.mixed_precision == "no"
    # from_yaml_file refuses unknown keys, but not those of a part.
    options = {action.dest: action for action in launch_command_parser()._actions}
    for part in (config.fsdp_config, config.deepspeed_config):
        for name, value in (part or {}).items():
            dest = name if name in options else name.removeprefix("deepspeed_")
            assert dest in options, name
            choices = options[dest].choices
            assert choices is None or value in choices or str(value) in choices, (name, value)
    assert (config.distributed_type.value == "FSDP") == bool(config.fsdp_config)
    assert (config.distributed_type.value == "DEEPSPEED") == bool(config.deepspeed_config)


@pytest.mark.parametrize("file", [*FILES, FOLDER / "slurm.sh"], ids=lambda file: file.name)
def test_commands_on_top_name_files_that_exist(file):
    text = file.read_text()
    assert f"configs/accelerate/{file.name}" in text
    for path in re.findall(r"configs/[\w./]+\.(?:yaml|sh)", text):
        assert (FOLDER.parent.parent / path).is_file(), path


def test_the_script_for_slurm_starts_each_node_with_its_number(tmp_path):
    """With stand-ins for Slurm's commands and for accelerate, on two nodes of two GPUs."""
    programs = {
        "scontrol": "printf 'node-a\\nnode-b\\n'",
        "srun": 'for n in 0 1; do SLURM_NODEID=$n "$@"; done',
        "accelerate": 'printf "%s|" "$@"; echo',
    }
    for name, text in programs.items():
        (tmp_path / name).write_text(f"#!/bin/bash\n{text}\n")
        (tmp_path / name).chmod(0o755)
    slurm = {"SLURM_JOB_NODELIST": "node-[a-b]", "SLURM_NNODES": "2", "SLURM_GPUS_ON_NODE": "2", "SLURM_CPUS_PER_TASK": "8"}
    command = ["bash", str(FOLDER / "slurm.sh"), "recipe.yaml", "--dataset", "my photos"]
    run = subprocess.run(
        command, env={"PATH": f"{tmp_path}:/usr/bin:/bin", **slurm}, capture_output=True, text=True, check=True
    )
    parser = launch_command_parser()
    for rank, line in enumerate(run.stdout.splitlines()):
        given = parser.parse_args(line.split("|")[1:-1])
        assert (given.machine_rank, given.num_machines, given.num_processes) == (rank, 2, 4)
        assert given.main_process_ip == "node-a"
        assert given.training_script_args == ["recipe.yaml", "--dataset", "my photos"]
    assert rank == 1
