"""Loading, typing and checking the configuration; the shipped YAML files and scripts."""

import dataclasses
import json
import os
import re
import subprocess
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from grpo_reward.options import DataOptions, RewardOptions
from verl import config as configuration
from verl.config import Config, ConfigError, RolloutConfig, check, flatten, load, to_yaml
from verl.config.__main__ import main
from verl.utils import plugins

ROOT = Path(__file__).parents[2]
SCRIPTS = ROOT / "training_scripts"
SEED_YAML = """\
data:
  train_files: /path/to/ReVOS # ReVOS dataset root
  max_prompt_length: 7100
  max_response_length: 1024
  rollout_batch_size: 16
  sampled_frames: 6 # Number of sampled frames per video
  keyframe_resize: 560
algorithm:
  adv_estimator: grpo # Group Relative Policy Optimization
worker:
  actor:
    global_batch_size: 16
    use_kl_loss: true
    kl_loss_coef: 5.0e-3
    kl_loss_type: low_var_kl
  rollout:
    temperature: 1.0
    tensor_parallel_size: 2
    gpu_memory_utilization: 0.25
    n: 8 # Group size for GRPO
  reward:
    reward_type: function
    compute_score: video_match_keyframe_sft_sam_mod # Multi-granularity reward
"""
SEED_ARGUMENTS = [
    "worker.actor.model.model_path=/sft",
    "worker.actor.kl_loss_coef=5.0e-3",
    "worker.actor.optim.lr=1.0e-6",
    "worker.actor.micro_batch_size_per_device_for_update=1",
    "worker.actor.micro_batch_size_per_device_for_experience=1",
    "worker.rollout.enable_chunked_prefill=false",
    "worker.rollout.n=8",
    "trainer.n_gpus_per_node=2",
    "trainer.total_episodes=1",
    "trainer.save_checkpoint_path=/out",
]
NEEDED = [
    "data.name=video_seg_keyframe_sft_base_mod",
    "data.train_files=/revos",
    "worker.actor.model.model_path=/model",
    "worker.reward.compute_score=video_match_keyframe_sft_sam_mod",
]


def from_yaml(tmp_path: Path, text: str, *arguments: str) -> Config:
    path = tmp_path / "given.yaml"
    path.write_bytes(text.encode())
    return load([f"config={path}", *arguments])


class TestLoading:
    def test_no_arguments_give_the_defaults(self):
        assert load([]) == Config()

    def test_released_yaml_and_command_line(self, tmp_path):
        config = from_yaml(tmp_path, SEED_YAML, *SEED_ARGUMENTS, "data.name=video_seg_keyframe_sft_base_mod")
        check(config)
        assert config.worker.actor.optim.lr == 1e-6
        assert config.worker.actor.entropy_coeff == 1e-3  # the released default
        assert config.worker.rollout.tensor_parallel_size == 2
        assert config.trainer.save_checkpoint_path == "/out"

    def test_later_wins_over_earlier_over_file_over_default(self, tmp_path):
        config = from_yaml(tmp_path, "worker: {rollout: {n: 4, top_k: 7}}", "worker.rollout.n=5", "worker.rollout.n=6")
        assert (config.worker.rollout.n, config.worker.rollout.top_k, config.worker.rollout.top_p) == (6, 7, 1.0)

    def test_order_of_file_and_overrides_does_not_matter(self, tmp_path):
        (tmp_path / "a.yaml").write_text("data: {seed: 1}")
        assert load(["data.seed=2", f"config={tmp_path / 'a.yaml'}"]).data.seed == 2

    def test_empty_files_and_sections_say_nothing(self, tmp_path):
        assert from_yaml(tmp_path, "# only a comment\n") == Config()
        assert from_yaml(tmp_path, "worker:\n  actor:\ndata:\n") == Config()

    @pytest.mark.parametrize(
        ("argument", "value"),
        [
            ("worker.actor.optim.lr=1e-6", 1e-6),
            ("worker.actor.optim.lr=5.0e-3", 5e-3),
            ("worker.actor.optim.lr=1", 1.0),
            ("data.seed=7", 7),
            ("data.shuffle=False", False),
            ("data.shuffle=true", True),
            ("trainer.max_steps=null", None),
            ("trainer.max_steps=None", None),
            ("trainer.max_steps=10", 10),
            ("worker.actor.clip_ratio_high=0.28", 0.28),
            ("trainer.logger=[console,wandb]", ["console", "wandb"]),
            ("trainer.logger=console,jsonl", ["console", "jsonl"]),
            ("trainer.logger=['console', \"wandb\"]", ["console", "wandb"]),
            ("trainer.logger=[]", []),
            ("worker.actor.optim.betas=[0.9,0.95]", (0.9, 0.95)),
            ("worker.reward.weights={consistency: 0, keyframe: 1e-1}", {"consistency": 0.0, "keyframe": 0.1}),
            ("trainer.experiment_name=a=b", "a=b"),
            ("trainer.experiment_name=null", "null"),
            ("data.val_files=", ""),
        ],
    )
    def test_arguments_take_the_type_of_their_field(self, argument, value):
        key = argument.partition("=")[0]
        found = configuration.get(load([*NEEDED, argument]), key)
        assert found == value
        assert type(found) is type(value)

    def test_entries_of_a_dictionary(self, tmp_path):
        text = "worker: {reward: {weights: {spatial: 2, format: 1e-1}, options: {note: x}}}"
        entries = ["worker.reward.weights.consistency=0", "worker.reward.options.my.own=5"]
        config = from_yaml(tmp_path, text, *NEEDED, *entries)
        assert config.worker.reward.weights == {"spatial": 2.0, "format": 0.1, "consistency": 0.0}
        assert config.worker.reward.options == {"note": "x", "my.own": "5"}
        assert load(NEEDED).worker.reward.weights == {}

    def test_yaml_reads_exponents_without_a_point(self, tmp_path):
        assert from_yaml(tmp_path, "worker: {actor: {optim: {lr: 1e-6}}}").worker.actor.optim.lr == 1e-6


class TestErrors:
    @pytest.mark.parametrize(
        ("argument", "words"),
        [
            ("worker.actor.optim.lr=fast", ["worker.actor.optim.lr", "'fast'", "a finite number"]),
            ("worker.actor.optim.lr=nan", ["a finite number", "'nan'"]),
            ("data.seed=1.5", ["data.seed", "'1.5'", "a whole number"]),
            ("data.shuffle=yes", ["data.shuffle", "'yes'", "true or false"]),
            ("worker.rollout.n=true", ["worker.rollout.n", "a whole number"]),
            ("worker.actor.optim.betas=0.9", ["betas", "2 values"]),
            ("worker.actor.optim.betas=[0.9,fast]", ["worker.actor.optim.betas", "a finite number"]),
            ("worker.actor.clip_ratio_high=wide", ["worker.actor.clip_ratio_high", "'wide'", "a finite number"]),
            ("trainer.max_steps=", ["trainer.max_steps", "''", "a whole number"]),
            ("trainer.max_steps=1e3", ["trainer.max_steps", "'1e3'", "a whole number"]),
            ("worker.reward.weights=3", ["weights", "entries by name"]),
            ("worker.reward.weights.=3", ["unknown key 'worker.reward.weights.'"]),
            ("worker.reward.weights.spatial=x", ["worker.reward.weights.spatial", "'x'", "a finite number"]),
            ("trainer.logger=[a", ["trainer.logger", "a list"]),
            ("worker.actor=3", ["worker.actor is a section", "global_batch_size"]),
            ("--verbose", ["expected key=value", "'--verbose'"]),
        ],
    )
    def test_wrong_arguments_say_what_arrived_and_what_was_wanted(self, argument, words):
        with pytest.raises(ConfigError) as caught:
            load([*NEEDED, argument])
        for word in ["command line", *words]:
            assert word in str(caught.value)

    @pytest.mark.parametrize(
        ("key", "nearest"),
        [
            ("worker.actor.lr", "worker.actor.optim.lr"),
            ("worker.rolout.n", "worker.rollout.n"),
            ("trainer.n_gpus", "trainer.n_gpus_per_node"),
            ("data.sampled_frame", "data.sampled_frames"),
            ("algorithm.kl_coef", "worker.actor.kl_loss_coef"),
            ("--data.seed", "data.seed"),
        ],
    )
    def test_unknown_argument_names_the_nearest_key(self, key, nearest):
        with pytest.raises(ConfigError, match=rf"command line: unknown key '{key}'; the nearest is '{nearest}'$"):
            load([*NEEDED, f"{key}=1"])

    def test_unknown_yaml_key_names_the_file_and_the_nearest_key(self, tmp_path):
        with pytest.raises(ValueError, match=r"given\.yaml: unknown key 'worker\.rollout\.temprature'.*temperature'"):
            from_yaml(tmp_path, "worker: {rollout: {temprature: 1}}")

    @pytest.mark.parametrize(
        ("text", "words"),
        [
            ("data: {sampled_frames: 6.5}", "data.sampled_frames: expected a whole number, got 6.5"),
            ("data: {shuffle: 1}", "data.shuffle: expected true or false, got 1"),
            ("data: {seed: null}", "data.seed: expected a whole number, got null"),
            ("trainer: {experiment_name: 7}", "trainer.experiment_name: expected text"),
            ("data: [1, 2]", "data is a section"),
            ("data: {seed: {}}", "data.seed: expected a whole number, got {}"),
            ("worker: {reward: {weights: {1: 0.5}}}", "worker.reward.weights: expected entries by name"),
            ("worker: {reward: {options: {a: {b: c}}}}", "worker.reward.options.a: expected text"),
            ("trainer: {max_steps: 1.5}", "trainer.max_steps: expected a whole number, got 1.5"),
            ("- a\n- b", "expected sections"),
            ("data: {seed: 1\n", "not readable as YAML"),
            ("data: {seed: 1, seed: 2}", "'seed' appears twice"),
        ],
    )
    def test_wrong_yaml(self, tmp_path, text, words):
        with pytest.raises(ConfigError) as caught:
            from_yaml(tmp_path, text, *NEEDED)
        assert "given.yaml" in str(caught.value)
        assert words in str(caught.value)

    @pytest.mark.parametrize(
        ("text", "words"),
        [
            ("[" * 100_000, "nested too deeply"),
            ("data: {seed: " + "{a: " * 5000, "nested too deeply"),
            ("data: &a {x: *a}", "nested too deeply"),
            (
                "\n".join(["a0: &a0 {x: 1}", *(f"a{i + 1}: &a{i + 1} {{x: *a{i}, y: *a{i}}}" for i in range(60))]),
                "too large once its aliases are written out",
            ),
            ("data: {seed: 2024-99-99}", "month must be in 1..12"),
            ("data: {seed: " + "9" * 6000 + "}", "integer string conversion"),
            ("{[a]: 1, [a]: 2}", "unhashable"),
            ("#" * (2 << 20), "too large for a configuration"),
        ],
        ids=lambda text: text[:16],
    )
    def test_a_file_that_no_one_would_write_is_one_line(self, tmp_path, text, words):
        with pytest.raises(ConfigError) as caught:
            from_yaml(tmp_path, text)
        assert "given.yaml" in str(caught.value)
        assert words in str(caught.value)
        assert "\n" not in str(caught.value)
        assert len(str(caught.value)) < 1000

    @pytest.mark.parametrize("key", ["trainer.logger", "worker.reward.weights", "data.seed", "data.unknown"])
    def test_an_argument_that_no_one_would_write_is_one_short_line(self, key):
        with pytest.raises(ConfigError) as caught:
            load([*NEEDED, f"{key}={'[' * 100_000}"])
        assert key in str(caught.value)
        assert "\n" not in str(caught.value)
        assert len(str(caught.value)) < 1000

    def test_a_pipe_or_a_folder_is_no_file(self, tmp_path):
        os.mkfifo(tmp_path / "pipe")
        for path, words in (("pipe", "a pipe"), (".", "a folder")):
            with pytest.raises(ConfigError, match=f"{words}.* expected a YAML file"):
                load([f"config={tmp_path / path}"])

    def test_missing_file_and_two_files(self, tmp_path):
        with pytest.raises(ConfigError, match=r"nowhere\.yaml: No such file"):
            load([f"config={tmp_path / 'nowhere.yaml'}"])
        with pytest.raises(ConfigError, match="given 2 times"):
            load(["config=a", "config=b"])

    @pytest.mark.parametrize("text", ["${oc.env:HOME}", "a/${data.seed}", "${", "???"])
    @pytest.mark.parametrize(
        "key", ["data.train_files", "trainer.max_steps", "trainer.logger", "worker.reward.options.x"]
    )
    def test_nothing_is_filled_in_from_the_environment_or_from_other_keys(self, tmp_path, key, text):
        with pytest.raises(ConfigError, match=re.escape(key)) as caught:
            load([*NEEDED, f"{key}={text}"])
        assert os.environ["HOME"] not in str(caught.value)
        section, _, name = key.rpartition(".")
        tree = {name: text}
        for part in reversed(section.split(".")):
            tree = {part: tree}
        with pytest.raises(ConfigError, match=re.escape(key)):
            from_yaml(tmp_path, json.dumps(tree), *NEEDED)


@dataclasses.dataclass
class Colours(configuration.DataConfig):
    """The record of a data set plug-in of another task."""

    colours: int = 3
    """Colours on a picture."""
    palette: str = configuration.names_file()
    shade: float = configuration.number(0.5, least=0, most=1)


@plugins.reads(Colours)
def open_colours(config, *, split): ...


@plugins.reads(configuration.Config)
def open_nothing(config, *, split): ...


@dataclasses.dataclass
class Sizes(configuration.DataConfig):
    sizes: tuple[int, int, int] = (1, 2, 3)
    shares: dict[str, float] = dataclasses.field(default_factory=lambda: {"all": 1.0})


@plugins.reads(Sizes)
class OpenSizes:
    """A plug-in may be a class."""


def opens(record: type):
    """The name of a plug-in that reads this record."""
    plugin = plugins.reads(record)(lambda config, *, split: None)
    globals()[f"open_{record.__name__}"] = plugin
    return f"data.name={__name__}:open_{record.__name__}"


COLOURS = f"data.name={__name__}:open_colours"


class TestPlugins:
    def test_a_plug_in_brings_the_keys_that_only_it_reads(self, tmp_path):
        config = from_yaml(tmp_path, "data: {colours: 5, seed: 3}", "data.palette=p", COLOURS)
        assert config.data == Colours(name=COLOURS[10:], colours=5, palette="p", seed=3)
        assert from_yaml(tmp_path, to_yaml(config)) == config
        assert flatten(configuration.defaults(config))["data.colours"] == 3

    def test_its_values_are_typed_and_bounded_as_others_are(self):
        with pytest.raises(ConfigError, match=r"data\.colours: expected a whole number, got 'many'"):
            load([COLOURS, "data.colours=many"])
        with pytest.raises(ConfigError) as caught:
            check(load([*NEEDED, COLOURS, "data.colours=0", "data.shade=2"]))
        assert str(caught.value) == "data.colours=0: must be more than 0\ndata.shade=2.0: must be 1 at most"

    def test_a_key_of_no_plug_in_is_refused_with_the_nearest_of_the_chosen_one(self):
        with pytest.raises(ConfigError, match=r"unknown key 'data\.colors'; the nearest is 'data\.colours'"):
            load([COLOURS, "data.colors=1"])

    def test_a_key_of_another_plug_in_is_left_out_and_named(self, caplog, tmp_path):
        config = from_yaml(tmp_path, SEED_YAML, COLOURS)
        assert not hasattr(config.data, "sampled_frames")
        (record,) = caplog.records
        assert record.getMessage().startswith("data.sampled_frames, data.keyframe_resize: ignored, because the")

    def test_which_plug_in_is_chosen_is_known_before_its_keys_are_read(self, tmp_path):
        text = "data: {sampled_frames: 4, name: video_seg_keyframe_sft_base_mod}"
        assert from_yaml(tmp_path, text).data == DataOptions(name=NEEDED[0][10:], sampled_frames=4)
        assert from_yaml(tmp_path, text, COLOURS).data == Colours(name=COLOURS[10:])  # the later name wins

    def test_a_plug_in_that_is_not_there_or_has_another_record_is_one_line(self):
        with pytest.raises(
            ConfigError, match=r"^data\.name=d: no plug-in of verl\.datasets is called 'd'.*there are: "
        ):
            load(["data.name=d"])
        with pytest.raises(ConfigError, match=r"are a Config, which does not extend DataConfig$"):
            load([f"data.name={__name__}:open_nothing"])

    def test_a_class_may_be_a_plug_in_and_tuples_and_dictionaries_keep_their_type(self, tmp_path):
        name = f"data.name={__name__}:OpenSizes"
        assert (load([name]).data.sizes, load([name]).data.shares) == ((1, 2, 3), {"all": 1.0})
        config = load([name, "data.sizes=4,5,6", "data.shares={}", "data.shares.half=5e-1"])
        assert (config.data.sizes, config.data.shares) == ((4, 5, 6), {"half": 0.5})
        assert from_yaml(tmp_path, to_yaml(config)) == config
        with pytest.raises(ConfigError, match=r"data\.sizes: expected 3 values such as \[a,b\], got '4,5'"):
            load([name, "data.sizes=4,5"])

    @pytest.mark.parametrize(
        ("fields", "words"),
        [
            ([("where", Path, Path())], r"Own\.where is pathlib\.Path, which a configuration cannot hold; take bool, "),
            (
                [("many", tuple[int, ...], (1,))],
                r"Own\.many is tuple\[int, \.\.\.\], which a configuration cannot hold",
            ),
            ([("seed", str, "x")], r"Own\.seed is str, but DataConfig's own is int"),
            ([("colours", int, dataclasses.field(kw_only=True))], r"Own\.colours has no default; give it one"),
        ],
    )
    def test_a_record_that_cannot_be_read_into_is_one_line(self, fields, words):
        record = dataclasses.make_dataclass("Own", fields, bases=(configuration.DataConfig,))
        with pytest.raises(ConfigError, match=words):
            load([opens(record)])
        with pytest.raises(ConfigError, match=r"Plain is no dataclass; write @dataclass above it"):
            load([opens(type("Plain", (configuration.DataConfig,), {}))])

    def test_a_broken_plug_in_of_another_package_hinders_nobody(self, caplog, monkeypatch):
        real = plugins.entry_points
        broken = EntryPoint(name="broken", value="there_is_no_such_module:x", group=plugins.DATASETS)

        def with_broken(group: str) -> list[EntryPoint]:
            return [*real(group=group), *([broken] if group == plugins.DATASETS else [])]

        monkeypatch.setattr(plugins, "entry_points", with_broken)
        with pytest.raises(ConfigError, match=r"unknown key 'data\.sede'; the nearest is 'data\.seed'"):
            load([*NEEDED, "data.sede=1"])
        (message,) = {record.getMessage() for record in caplog.records}
        assert message.startswith("data.name=broken: its keys are unknown, because it cannot be loaded: No module")
        assert "data.seed=42" in configuration.describe()


class TestUnread:
    @pytest.mark.parametrize(
        ("arguments", "keys"),
        [
            (["worker.rollout.tensor_parallel_size=2"], ["worker.rollout.tensor_parallel_size"]),
            (["worker.rollout.gpu_memory_utilization=0.25"], []),  # its default
            (["worker.rollout.name=vllm", "worker.rollout.tensor_parallel_size=2"], []),
            (["worker.rollout.name=vllm", "worker.rollout.batch_size=4"], ["worker.rollout.batch_size"]),
            (["worker.actor.use_kl_loss=false", "worker.actor.kl_loss_coef=1"], ["worker.actor.kl_loss_coef"]),
            (["worker.actor.model.lora.alpha=1"], ["worker.actor.model.lora.alpha"]),
            (["worker.actor.model.lora.alpha=1", "worker.actor.model.lora.rank=1"], []),
        ],
    )
    def test_what_the_chosen_parts_never_read_is_named(self, arguments, keys):
        assert list(configuration.unread(load([*NEEDED, *arguments]))) == keys

    def test_it_is_one_warning_at_the_start(self, caplog):
        check(load([f"config={SCRIPTS / 'video_seg_zero_3b_keyframe_sam_sft_mod.yaml'}", *NEEDED]))
        (record,) = caplog.records
        told = "worker.rollout.tensor_parallel_size (because worker.rollout.name=hf)"
        assert record.getMessage() == f"set, but not read by the parts of this run: {told}"


class TestCheck:
    def test_what_must_be_given_is_listed_at_once(self):
        with pytest.raises(ConfigError) as caught:
            check(Config())
        for key in configuration.NEEDED:
            assert f"{key} is not set" in str(caught.value)

    def test_the_needed_keys_suffice(self):
        check(load(NEEDED))

    @pytest.mark.parametrize(
        ("arguments", "words"),
        [
            (["worker.actor.global_batch_size=5"], "does not divide data.rollout_batch_size=16"),
            (["algorithm.adv_estimator=gae"], "known are grpo, dr_grpo"),
            (["worker.actor.kl_loss_type=k3"], "known are low_var_kl"),
            (["worker.actor.policy_loss=ppo"], "known are ppo_clip, gspo"),
            (["worker.actor.loss_agg_mode=mean"], "known are token-mean"),
            (["worker.reward.preset=lax"], "known are strict, released"),
            (["trainer.logger=console,mlflow"], "trainer.logger=mlflow: known are"),
            (["worker.rollout.name=sglang"], "known are hf and vllm"),
            (["worker.rollout.n=1"], "take 2 or more"),
            (["worker.rollout.n=0"], "worker.rollout.n=0: must be more than 0"),
            (["worker.actor.optim.lr=0"], "must be more than 0"),
            (["worker.actor.kl_loss_coef=-1"], "must be 0 or more"),
            (["worker.rollout.top_p=1.5"], "must be 1 at most"),
            (["worker.rollout.top_k=0"], "worker.rollout.top_k=0"),
            (["trainer.max_steps=0"], "trainer.max_steps=0"),
            (["worker.actor.clip_ratio_high=0"], "clip_ratio_high=0"),
            (["worker.rollout.name=vllm", "worker.rollout.tensor_parallel_size=4"], "does not divide the 2 processes"),
            (["data.val_limit=0"], "data.val_limit=0: must be more than 0"),
            (["data.seed=4294967296"], "less than 2^32"),
            (["worker.actor.fsdp.torch_dtype=float16"], "take bfloat16: small gradients would vanish"),
            (["worker.actor.optim.betas=0.9,1"], "betas holds 1.0"),
            (["worker.reward.weights.spatial=-1"], "worker.reward.weights.spatial=-1.0: must be 0 or more"),
            (["worker.actor.model.lora.rank=8", "worker.actor.model.lora.target_modules=,"], "names no module"),
            (["trainer.logger=jsonl,jsonl"], "each once"),
            (["trainer.save_checkpoint_path="], "save_checkpoint_path is empty"),
            (["trainer.accept_changes=worker.actor.lr"], "the nearest is 'worker.actor.optim.lr'"),
            (["trainer.stuck_after=-1"], "must be 0 or more"),
            (
                ["algorithm.adv_estimator=reinforce_pp", "algorithm.drop_equal_groups=true"],
                "compares a reply with the whole",
            ),
            (
                ["worker.reward.num_gpus_per_worker=0.5", "worker.reward.num_workers=4"],
                "2 beside a rank, which take 1 of",
            ),
            (["worker.reward.num_gpus_per_worker=1"], "take 1 of its GPU; the sum must be less than 1"),
        ],
    )
    def test_what_is_wrong_is_said(self, arguments, words):
        with pytest.raises(ConfigError) as caught:
            check(load([*NEEDED, *arguments]))
        assert words in str(caught.value)

    @pytest.mark.parametrize(
        "argument",
        [
            "worker.actor.entropy_coeff=0",
            "worker.rollout.top_k=-1",
            "worker.rollout.top_k=50",
            "worker.rollout.name=package.module:Engine",
            "trainer.save_freq=0",
            "worker.actor.clip_ratio_high=0.28",
            "worker.reward.weights.consistency=0",
            "worker.reward.num_gpus_per_worker=0.9",
            "trainer.stuck_after=0",
            "trainer.accept_changes=[worker.actor.optim.lr]",
        ],
    )
    def test_what_is_right_passes(self, argument):
        check(load([*NEEDED, argument]))

    def test_known_names_are_those_of_the_algorithms(self):
        core_algos = pytest.importorskip("verl.core_algos")
        known = {key: leaf.field.metadata.get("known") for key, leaf in configuration.leaves(Config()).items()}
        assert known["algorithm.adv_estimator"] == core_algos.ESTIMATORS
        assert known["worker.actor.policy_loss"] == core_algos.POLICY_LOSSES
        assert known["worker.actor.kl_loss_type"] == core_algos.KL_KINDS
        assert known["worker.actor.loss_agg_mode"] == core_algos.AGGREGATIONS
        assert set(flatten(Config())) >= set(configuration.NEEDED)


TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=12).filter(
    lambda text: "${" not in text and text != "???"
)
NUMBER = st.floats(allow_nan=False, allow_infinity=False)
VALUES = {
    "str": TEXT,
    "int": st.integers(),
    "float": NUMBER,
    "bool": st.booleans(),
    "list[str]": st.lists(TEXT, max_size=3),
    "tuple[float, float]": st.tuples(NUMBER, NUMBER),
    "dict[str, float]": st.dictionaries(TEXT, NUMBER, max_size=3),
    "dict[str, str]": st.dictionaries(TEXT, TEXT, max_size=3),
    "int | None": st.none() | st.integers(),
    "float | None": st.none() | NUMBER,
}


PLUGINS = {"name": "video_seg_keyframe_sft_base_mod", "compute_score": "video_match_keyframe_sft_sam_mod"}


def any_of(section: type) -> st.SearchStrategy:
    """Any values of a record; the plug-ins are those of the project, whose records stand in their sections."""
    fields = {}
    for field in dataclasses.fields(section):
        inner = {"DataConfig": DataOptions, "RewardConfig": RewardOptions}.get(field.type)
        inner = inner or getattr(configuration, field.type, None)
        fields[field.name] = any_of(inner) if inner else VALUES[field.type]
    known = {
        name: st.just(plugin) for name, plugin in PLUGINS.items() if name in fields and section is not RolloutConfig
    }
    return st.builds(section, **{**fields, **known})


@given(config=any_of(Config))
def test_yaml_of_any_configuration_reads_back_equal(tmp_path_factory, config):
    path = tmp_path_factory.getbasetemp() / "any.yaml"
    path.write_bytes(to_yaml(config).encode())
    assert load([f"config={path}"]) == config


@pytest.mark.parametrize(
    "text", ["\x85", "a\u2028b", "a\n b\r", "\ufeff", "null", "1e-6", "true", " x ", "中文/路径", "\x00", "# a"]
)
def test_awkward_text_reads_back_equal(tmp_path, text):
    config = load([f"trainer.experiment_name={text}"])
    config.worker.reward.options = {text: text}
    assert from_yaml(tmp_path, to_yaml(config)) == config


def test_help_explains_every_key(capsys):
    assert main(["--help"]) == 0
    shown = capsys.readouterr().out
    for key in flatten(load(NEEDED)):
        assert f"{key}=" in shown
    assert "Group size: the number of replies to each prompt." in shown
    assert "With data.name=video_seg_keyframe_sft_base_mod also:\ndata.train_split=train\n" in shown
    assert "data.sampled_frames=6\n    Nominal number of frames of a video in a training prompt.\n" in shown


def test_command_prints_what_it_resolved_or_what_is_wrong(capsys):
    assert main(NEEDED) == 0
    assert "adv_estimator: grpo" in capsys.readouterr().out
    assert main([]) == 2
    assert "data.name is not set" in capsys.readouterr().err
    assert main([*NEEDED, "algorithm.adv_estimator=\x1b]0;title\x07"]) == 2
    assert capsys.readouterr().err.startswith("error: algorithm.adv_estimator=\\x1b]0;title\\x07: known are grpo, ")


class TestScripts:
    @pytest.mark.parametrize("path", sorted(SCRIPTS.glob("*.sh")), ids=lambda path: path.name)
    def test_bash_reads_it(self, path):
        subprocess.run(["bash", "-n", path], check=True)

    @pytest.mark.parametrize(("size", "gpus"), [("3b", 2), ("7b", 4)])
    def test_yaml_holds_the_released_values(self, size, gpus):
        config = load([f"config={SCRIPTS / f'video_seg_zero_{size}_keyframe_sam_sft_mod.yaml'}", *NEEDED])
        check(config)
        actor, rollout = config.worker.actor, config.worker.rollout
        assert (config.trainer.n_gpus_per_node, rollout.tensor_parallel_size) == (gpus, gpus)
        assert (actor.optim.lr, actor.optim.weight_decay, actor.kl_loss_coef) == (1e-6, 1e-2, 5e-3)
        assert (actor.entropy_coeff, actor.clip_ratio, rollout.n, config.data.sampled_frames) == (1e-3, 0.2, 8, 6)

    def test_tiny_yaml(self):
        config = load([f"config={SCRIPTS / 'grpo_tiny.yaml'}", *NEEDED])
        check(config)
        assert (config.data.rollout_batch_size, config.worker.rollout.n, config.trainer.n_gpus_per_node) == (16, 8, 2)
        assert config.data.keyframe_resize % 28 == 0

    @staticmethod
    def run(script: str, *arguments: str, **paths: str) -> subprocess.CompletedProcess:
        """A script with a Python that prints its arguments, one a line, instead of training."""
        clean = {"PATH": os.environ["PATH"], "PYTHON": str(ROOT / "tests/verl/print_arguments.sh")}
        command = ["bash", str(SCRIPTS / script), *arguments]
        return subprocess.run(command, capture_output=True, text=True, env={**clean, **paths})

    @pytest.mark.parametrize("size", ["3b", "7b"])
    def test_paths_from_the_environment(self, size, tmp_path):
        here = str(tmp_path)
        done = self.run(
            f"run_qwen2_5_{size}_revos_keyframe_sam_sft_mod.sh",
            "trainer.max_steps=3",
            MODEL_PATH=here, REVOS_ROOT=here, SAM2_CHECKPOINT=here, OUTPUT=f"{here}/a b",
        )  # fmt: skip
        config = self.loaded(done)
        check(config)
        assert config.worker.actor.model.model_path == here
        assert config.trainer.save_checkpoint_path == f"{here}/a b"
        assert config.trainer.max_steps == 3

    def test_paths_from_arguments(self, tmp_path):
        done = self.run(
            "run_qwen2_5_3b_revos_keyframe_sam_sft_mod.sh",
            "worker.actor.model.model_path=/m", "data.train_files=/r", "worker.reward.sam2_checkpoint=/s",
            "trainer.save_checkpoint_path=/o",
        )  # fmt: skip
        assert self.loaded(done).worker.reward.sam2_checkpoint == "/s"

    @pytest.mark.parametrize(
        ("missing", "words"),
        [("MODEL_PATH", "set MODEL_PATH to"), ("SAM2_CHECKPOINT", "set SAM2_CHECKPOINT to"), ("OUTPUT", "set OUTPUT")],
    )
    def test_missing_path_says_what_to_set(self, missing, words, tmp_path):
        paths = dict.fromkeys(("MODEL_PATH", "REVOS_ROOT", "SAM2_CHECKPOINT", "OUTPUT"), str(tmp_path))
        del paths[missing]
        done = self.run("run_qwen2_5_3b_revos_keyframe_sam_sft_mod.sh", **paths)
        assert done.returncode == 2
        assert words in done.stderr

    def test_path_to_nothing_is_an_error(self, tmp_path):
        done = self.run("run_qwen2_5_3b_revos_keyframe_sam_sft_mod.sh", MODEL_PATH=str(tmp_path / "gone"))
        assert done.returncode == 2
        assert "gone does not exist" in done.stderr

    @pytest.mark.parametrize("term", ["consistency", "keyframe", "spatial"])
    def test_ablations_switch_one_term_off(self, term, tmp_path):
        paths = dict.fromkeys(("MODEL_PATH", "REVOS_ROOT", "OUTPUT"), str(tmp_path))
        if term != "consistency":  # which alone needs SAM2
            paths["SAM2_CHECKPOINT"] = str(tmp_path)
        assert self.loaded(self.run(f"run_ablation_no_{term}.sh", **paths)).worker.reward.weights == {term: 0.0}

    def test_pure_grpo_starts_from_the_base_model(self, tmp_path):
        paths = dict.fromkeys(("BASE_MODEL_PATH", "REVOS_ROOT", "SAM2_CHECKPOINT", "OUTPUT"), str(tmp_path))
        config = self.loaded(self.run("run_ablation_pure_grpo.sh", **paths, MODEL_PATH="/sft", MODEL_SIZE="7b"))
        assert config.worker.actor.model.model_path == str(tmp_path)
        assert config.trainer.n_gpus_per_node == 4

    @staticmethod
    def loaded(done: subprocess.CompletedProcess) -> Config:
        assert done.returncode == 0, done.stderr
        module, name, *arguments = done.stdout.splitlines()
        assert (module, name) == ("-m", "verl.trainer.main")
        return load(arguments)
