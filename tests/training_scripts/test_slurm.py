"""The batch scripts on a cluster of stand-ins: `srun` runs here what it should run on a node, so two raylets start."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import uuid
from pathlib import Path

import psutil
import pytest

ROOT = Path(__file__).parents[2]
SLURM = ROOT / "training_scripts" / "slurm"
PREDICT = ROOT / "inference" / "multi_gpu_eval_keyframe_sft_mod_reason_vos.sh"

SRUN = """#!/usr/bin/env bash
# Notes the node and runs the command here.
for word in "$@"; do
    case $word in
        --nodelist=*) node=${word#*=} ;;
        --*) ;;
        *) break ;;
    esac
    shift
done
echo "$node $*" >>"$SRUN_LOG"
exec "$@"
"""
SCONTROL = """#!/usr/bin/env bash
[[ "$*" == "show hostnames node[1-2]" ]] && printf 'node1\\nnode2\\n'
"""
HOSTNAME = """#!/usr/bin/env bash
echo "{address} 10.1.2.3"
"""


def scripts() -> list[Path]:
    return [*sorted(SLURM.iterdir()), PREDICT]


@pytest.mark.parametrize("script", scripts(), ids=lambda path: path.name)
def test_scripts_are_sound(script):
    subprocess.run(["bash", "-n", script], check=True)
    if shutil.which("shellcheck"):
        done = subprocess.run(
            ["shellcheck", "-x", "-P", "SCRIPTDIR", script], capture_output=True, text=True, check=False, cwd=ROOT
        )
        assert not done.stdout


@pytest.fixture
def allocation(tmp_path):
    """The environment of a batch script on two nodes of one CPU each; `srun` notes what it is asked in the log."""
    import ray

    hostname = HOSTNAME.format(address=ray.util.get_node_ip_address())  # Ray turns loopback into this in any case
    for name, text in (("srun", SRUN), ("scontrol", SCONTROL), ("hostname", hostname)):
        path = tmp_path / "bin" / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
        path.chmod(0o755)
    (tmp_path / "submitted").mkdir()
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("SLURM_", "RAY_"))}
    return {
        **kept,
        "PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}",
        "SRUN_LOG": str(tmp_path / "srun.log"),
        "PYTHON": sys.executable,
        "VEASON_ROOT": str(ROOT),
        "SLURM_JOB_ID": str(os.getpid()),
        "SLURM_JOB_NODELIST": "node[1-2]",
        "SLURM_JOB_NUM_NODES": "2",
        "SLURM_CPUS_ON_NODE": "2",
        "SLURM_SUBMIT_DIR": str(tmp_path / "submitted"),
        "RAY_FOLDER": f"/tmp/vs-{uuid.uuid4().hex[:8]}",  # short: sockets lie in it
    }


def submit(script: Path, *words: object, environment: dict[str, str]) -> subprocess.CompletedProcess:
    copy = Path(environment["SLURM_SUBMIT_DIR"]) / "slurm_script"  # as SLURM does
    shutil.copy(script, copy)
    done = subprocess.run(
        ["bash", copy, *map(str, words)], env=environment, capture_output=True, text=True, timeout=1800, check=False
    )
    folder, running = environment["RAY_FOLDER"], psutil.process_iter(["cmdline"])
    left = [process for process in running if folder in " ".join(process.info["cmdline"] or ())]
    gone, alive = psutil.wait_procs(left, timeout=300)
    assert not alive, f"still there: {alive}, gone: {gone}"
    shutil.rmtree(folder, ignore_errors=True)
    return done


@pytest.mark.slow
def test_predict_on_two_nodes(allocation, hand_made, tmp_path):
    environment = {
        **allocation,
        **{"DATASET": "revos", "POLICY": "oracle", "WORKERS": "2"},
        **{"DATA_ROOT": str(hand_made.write()), "OUTPUT": str(tmp_path / "run")},
    }
    done = submit(SLURM / "predict.sbatch", "--tracker", "grabcut", environment=environment)
    assert done.returncode == 0, done.stderr + logs(environment)
    assert "ray: head on node1, " in done.stdout
    assert "2 node(s) with 2 CPU(s) and 0 GPU(s) each" in done.stdout
    lines = (tmp_path / "run" / "predictions.jsonl").read_text().splitlines()
    assert [json.loads(line)["exp_id"] for line in lines] == ["0", "1", "2"]
    asked = (tmp_path / "srun.log").read_text().splitlines()
    assert [line.split()[0] for line in asked] == ["node1", "node1", "node2"]
    assert "--head --node-ip-address=" in asked[1]
    assert "--address=" in asked[2]


@pytest.mark.slow
def test_train_on_two_nodes(allocation, world, tmp_path):
    done = submit(
        SLURM / "train.sbatch",
        f"data.train_files={world}",
        f"worker.actor.model.model_path={world / 'tiny_policy'}",
        f"trainer.save_checkpoint_path={tmp_path / 'run'}",
        *("data.rollout_batch_size=4", "data.max_response_length=16", "worker.actor.global_batch_size=4"),
        *("worker.rollout.n=2", "trainer.max_steps=1", "worker.reward.num_cpus_per_worker=0.1"),
        environment={
            **allocation,
            "CONFIG": str(ROOT / "training_scripts" / "grpo_tiny.yaml"),
            "RANKS_PER_NODE": "1",
        },
    )
    assert done.returncode == 0, done.stderr + logs(allocation)
    assert len((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()) == 1


@pytest.mark.slow
def test_a_node_that_does_not_come_up_fails_the_job(allocation, tmp_path):
    (tmp_path / "bin" / "scontrol").write_text(SCONTROL.replace("\\nnode2", "\\nbroken"))
    (tmp_path / "bin" / "srun").write_text(SRUN.replace("exec", "[[ $node == broken ]] && exit 1\nexec"))
    done = submit(SLURM / "predict.sbatch", environment=allocation)
    assert done.returncode == 1
    assert "of 2 node(s) joined; see ray-" in done.stderr


def logs(environment: dict[str, str]) -> str:
    return "".join(path.read_text() for path in Path(environment["SLURM_SUBMIT_DIR"]).glob("ray-*.log"))


def outside(*words: object, **variables: str) -> str:
    """Returns the script's message on standard error; it must end with exit code 2."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith("SLURM_")}
    done = subprocess.run(
        ["bash", PREDICT, *map(str, words)],
        env={**kept, "PYTHON": sys.executable, **variables},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2, done.stderr
    return done.stderr


@pytest.mark.parametrize(
    ("variables", "words", "message"),
    [
        ({}, [], "set DATA_ROOT to the folder of the data set, or give --data-root …"),
        ({"DATA_ROOT": "d", "OUTPUT": "o"}, [], "set MODEL_PATH to the folder of the checkpoint, or give --model"),
        ({"DATA_ROOT": "d", "OUTPUT": "o", "MODEL_PATH": "m"}, [], "set SAM2_CHECKPOINT to SAM2's weights"),
        ({"DATA_ROOT": "d", "OUTPUT": "o", "POLICY": "oracle", "GPUS": "0"}, ["--tracker=grabcut"], "lists no GPU"),
        (
            {"DATA_ROOT": "/nowhere", "POLICY": "oracle", "WORKERS": "1"},
            ["--tracker=grabcut", "--output", "o"],
            "nowhere",
        ),
    ],
)
def test_what_is_missing_is_named(variables, words, message):
    assert message in outside(*words, **variables)


GRPO = ("MODEL_PATH", "REVOS_ROOT", "SAM2_CHECKPOINT", "OUTPUT")
"""The variables that a GRPO script needs."""


def said(script: str, *words: str, **variables: str) -> list[str]:
    """The lines of a training script on standard error, which ends with 2; nothing of it is in the environment."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith("SLURM_") and k not in GRPO}
    line = ["bash", str(ROOT / "training_scripts" / script), *words]
    environment = {**kept, "PYTHON": sys.executable, **variables}
    done = subprocess.run(line, env=environment, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 2, done.stderr
    return done.stderr.splitlines()


@pytest.mark.parametrize("size", ["3b", "7b"])
def test_all_that_grpo_lacks_is_told_at_once(size):
    lines = said(f"run_qwen2_5_{size}_revos_keyframe_sam_sft_mod.sh")
    assert [line.split()[:3] for line in lines] == [["error:", "set", name] for name in GRPO]


def test_what_is_missing_and_what_does_not_exist_are_told_together(tmp_path):
    script = "run_qwen2_5_3b_revos_keyframe_sam_sft_mod.sh"
    lines = said(script, "worker.reward.tracker=grabcut", MODEL_PATH=str(tmp_path / "gone"), OUTPUT=str(tmp_path))
    assert [line.split(":")[1].split()[0] for line in lines] == [f"MODEL_PATH={tmp_path}/gone", "set"]
    assert "set REVOS_ROOT" in lines[1]
    lines = said(script, "worker.reward.tracker=grabcut", "worker.reward.tracker=sam2")  # the later one wins
    assert sum("SAM2_CHECKPOINT" in line for line in lines) == 1


def test_ablations_tell_all_at_once_too():
    lines = said("run_ablation_no_consistency.sh")
    assert [line.split()[2] for line in lines] == ["MODEL_PATH", "REVOS_ROOT", "OUTPUT"]
    assert [line.split()[2] for line in said("run_ablation_pure_grpo.sh")] == ["BASE_MODEL_PATH", *GRPO[1:]]


def test_sft_tells_all_at_once_too():
    assert [line.split()[2] for line in said("run_sft_tiny.sh")] == ["MODEL_PATH", "SFT_DATA", "OUTPUT"]


def test_the_batch_script_tells_it_before_a_cluster_starts(tmp_path):
    """Not even an allocation is looked at."""
    assert [line.split()[2] for line in said("slurm/train.sbatch", VEASON_ROOT=str(ROOT))] == list(GRPO)
    yaml = {"VEASON_ROOT": str(ROOT), "CONFIG": "training_scripts/grpo_tiny.yaml"}
    lines = said("slurm/train.sbatch", "data.seeds=1", **yaml)
    assert lines == ["error: command line: unknown key 'data.seeds'; the nearest is 'data.seed'"]


def test_the_check_alone_trains_nothing(tmp_path):
    words = [f"{key}={tmp_path}" for key in ("worker.actor.model.model_path", "data.train_files",
             "worker.reward.sam2_checkpoint", "trainer.save_checkpoint_path")]  # fmt: skip
    script = ROOT / "training_scripts" / "run_qwen2_5_7b_revos_keyframe_sam_sft_mod.sh"
    environment = {**os.environ, "PYTHON": sys.executable, "CHECK_ONLY": "1"}
    done = subprocess.run(["bash", script, *words], env=environment, capture_output=True, text=True, check=False)
    unread = "set, but not read by the parts of this run: worker.rollout.tensor_parallel_size"
    assert (done.returncode, done.stderr.count("\n")) == (0, 1)
    assert f"{unread} (because worker.rollout.name=hf)" in done.stderr
    assert f"train_files: {tmp_path}" in done.stdout
    assert not list(tmp_path.iterdir())


def test_outside_an_allocation_the_batch_script_says_so(tmp_path):
    kept = {k: v for k, v in os.environ.items() if not k.startswith("SLURM_")}
    line = ["bash", str(SLURM / "predict.sbatch")]
    done = subprocess.run(line, env=kept, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode != 0
    assert "run this inside an allocation" in done.stderr
