"""Long calls show how far they are; quick ones, and those asked to be silent, show nothing."""

import functools
import importlib
import inspect
import pkgutil

import pytest
import tqdm.auto

import bloomlab as bl
from bloomlab import experiments
from bloomlab.model.dataset import dataset
from tests.tiny import pair, tokens

IDS = tokens(3, 6)
LONG = (  # experiments that run a model over texts, or fit something on what it does
    "ablate_heads", "amnesic_effect", "attribute_edges", "attribute_logits", "collect",
    "draft_acceptance", "find_circuit", "head_importance", "head_roles", "kl_by_position",
    "knock_out_attention", "language_effects", "language_neurons", "learn_gates", "logit_lens",
    "loss_by_position", "mean_difference", "patch_activations", "patch_paths", "probe",
    "probe_trees", "prune_curve", "prune_order", "sae_latents", "steering_sweep", "trace_causes",
    "train_tuned_lens", "transfer_probes", "written_tokens",
)  # fmt: skip


@pytest.fixture
def impatient(monkeypatch):
    """Bars that do not wait two seconds before they appear."""

    def at_once(*given, **options):
        assert options["delay"] == 2
        return tqdm.std.tqdm(*given, **options | {"delay": 0, "mininterval": 0})

    for _, name, _ in pkgutil.walk_packages(bl.__path__, "bloomlab."):
        if name.startswith(("bloomlab.model.", "bloomlab.experiments.")):
            module = importlib.import_module(name)
            if getattr(module, "tqdm", None) is tqdm.auto.tqdm:
                monkeypatch.setattr(module, "tqdm", at_once)


@pytest.fixture(scope="module")
def model():
    return pair()[1]


@pytest.mark.parametrize("name", LONG)
def test_what_runs_a_model_over_texts_takes_progress(name):
    known = inspect.signature(getattr(experiments, name)).parameters
    assert known["progress"].kind is inspect.Parameter.KEYWORD_ONLY
    assert known["progress"].default is True


def sweep(model, **options):
    experiments.steering_sweep(model, IDS, {1: model.W_E[5]}, [1.0], rows=2, **options)


TASKS = {
    "ablate_heads": functools.partial(experiments.ablate_heads, tokens=IDS),
    "head_importance": functools.partial(experiments.head_importance, batches=IDS, rows=1),
    "head_importance of batches": functools.partial(
        experiments.head_importance, batches=[IDS, IDS]
    ),
    "head_roles": functools.partial(experiments.head_roles, tokens=IDS, delimiters=[5]),
    "collect": functools.partial(experiments.collect, tokens=IDS, rows=1),
    "logit_lens": functools.partial(experiments.logit_lens, tokens=IDS),
    "attribute_logits": functools.partial(experiments.attribute_logits, tokens=IDS),
    "mean_difference": functools.partial(
        experiments.mean_difference, positive=IDS, negative=IDS, rows=1
    ),
    "language_neurons": functools.partial(
        experiments.language_neurons, texts={"one": IDS, "other": IDS}, rows=1
    ),
    "steering_sweep": sweep,
}


@pytest.mark.parametrize("name", TASKS)
@pytest.mark.usefixtures("impatient")
def test_a_bar_is_shown_up_to_the_end(model, name, capsys):
    TASKS[name](model)
    assert "100%" in capsys.readouterr().err


@pytest.mark.parametrize("name", TASKS)
@pytest.mark.usefixtures("impatient")
def test_a_silent_call_is_silent(model, name, capsys):
    TASKS[name](model, progress=False)
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize("name", TASKS)
def test_a_quick_call_shows_nothing(model, name, capsys):
    TASKS[name](model)
    assert capsys.readouterr() == ("", "")


@pytest.mark.usefixtures("impatient")
def test_loading_and_saving_show_tensors_and_files(model, tmp_path, capsys):
    model.save_pretrained(tmp_path, max_shard_size="50KB")
    n_file = len(list(tmp_path.glob("*.safetensors")))
    assert f"saving: 100%|██████████| {n_file}/{n_file}" in capsys.readouterr().err
    n_tensor = sum(1 for _ in model.parameters())
    again = bl.BloomForCausalLM.from_pretrained(tmp_path)
    assert f"{n_tensor}/{n_tensor}" in capsys.readouterr().err
    again.save_pretrained(tmp_path, progress=False)
    bl.load("demo", device="cpu", progress=False)
    assert capsys.readouterr() == ("", "")


@pytest.mark.usefixtures("impatient")
def test_a_bar_ends_where_the_loop_is_left(model, capsys):
    for _ in dataset(model, IDS).chunks(1, progress=True):
        break
    assert "| 0/3 [" in capsys.readouterr().err
    assert not tqdm.std.tqdm._instances
