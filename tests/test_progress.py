"""Long calls show how far they are; quick ones, and those asked to be silent, show nothing."""

import functools
import importlib
import inspect
import pkgutil
from types import SimpleNamespace

import pytest
import torch
import tqdm.auto

import bloomlab as bl
from bloomlab import experiments
from bloomlab.analysis.erasure import Eraser, random_eraser
from bloomlab.experiments import tasks
from bloomlab.model.dataset import dataset
from tests.tiny import pair, tokens

IDS = tokens(3, 6)
LONG = (  # experiments that run a model over texts, or fit something on what it does
    "ablate_heads", "ablate_task_heads", "amnesic_effect", "attribute_edges", "attribute_logits",
    "collect", "draft_acceptance", "find_circuit", "gate_curve", "head_importance", "head_roles",
    "kl_by_position", "knock_out_attention", "language_effects", "language_neurons", "learn_gates",
    "logit_lens", "loss_by_position", "marked_answers", "mean_difference", "patch_activations",
    "patch_paths", "probe", "probe_trees", "prune_curve", "prune_order", "sae_latents",
    "score_answers", "score_choices", "score_pairs", "sentence_log_probs", "steering_sweep",
    "trace_causes", "train_tuned_lens", "transfer_each", "transfer_probes", "written_tokens",
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
    where = tasks if hasattr(tasks, name) else experiments
    known = inspect.signature(getattr(where, name)).parameters
    assert known["progress"].kind is inspect.Parameter.KEYWORD_ONLY
    assert known["progress"].default is True


def sweep(model, **options):
    experiments.steering_sweep(model, IDS, {1: model.W_E[5]}, [1.0], rows=2, **options)


def amnesic(model, **options):
    eraser = Eraser(weights=torch.eye(48), mean=torch.zeros(48), rank=1)
    given = {"blocks.0.hook_resid_post": random_eraser(eraser, seed=0)}
    experiments.amnesic_effect(model, IDS, given, **options)


def effects(model, **options):
    texts = {"one": IDS, "other": IDS + 1}
    found = experiments.language_neurons(model, texts, top=0.1, bar=0.9, progress=False)
    experiments.language_effects(model, found, texts, n_random=1, rows=1, **options)


def latents(model, **options):
    sae = SimpleNamespace(encode=torch.relu, decode=lambda acts: acts)
    experiments.sae_latents(model, sae, "blocks.0.hook_resid_post", IDS, batch_size=1, **options)


def classes(model, **options):
    examples = [{"input_ids": row, "labels": row % 2} for row in IDS]
    task = experiments.with_task_head(model, bl.BloomForTokenClassification, ["a", "b"])
    experiments.ablate_task_heads(
        task, examples, torch.utils.data.default_collate, rows=1, **options
    )


def fitted(model):
    return experiments.probe(model, LETTERS, LABELS, kind="ridge", progress=False)


def transfer(model, **options):
    experiments.transfer_probes(fitted(model), model, LETTERS, LABELS, rows=1, **options)


def transfer_each(model, **options):
    probes = {"one": fitted(model)}
    experiments.transfer_each(probes, model, LETTERS, LABELS, rows=1, **options)


def answers(model, *, what, **options):
    questions = tasks.question_answering("en", sentences=True).about([0])
    what(experiments.with_task_head(spoken(), bl.BloomForQuestionAnswering), questions, **options)


@functools.cache
def spoken():
    """The demo model, for what needs a tokenizer."""
    return bl.load("demo", device="cpu", progress=False)


def pairs(model, **options):
    some = tasks.Pairs(good=("a cat",), bad=("cat a",), paradigms=("order",))
    tasks.score_pairs(spoken(), some, **options)


def choices(model, **options):
    some = tasks.Choices(prefixes=("a",), options=((" cat", " dog"),), right=(0,))
    tasks.score_choices(spoken(), some, **options)


def trees(model, **options):
    words = tasks.dependency_relations("en")
    name = "blocks.0.hook_resid_post"
    experiments.probe_trees(spoken(), words, sites=name, rank=2, epochs=1, **options)


LETTERS, LABELS = tokens(20, 4), ["a", "b"] * 10
TWO = {"clean": IDS, "corrupted": IDS + 1, "answers": torch.tensor([[5, 6]] * 3)}
TASKS = {
    "ablate_heads": functools.partial(experiments.ablate_heads, tokens=IDS),
    "ablate_task_heads": classes,
    "amnesic_effect": amnesic,
    "attribute_edges": functools.partial(experiments.attribute_edges, **TWO),
    "attribute_logits": functools.partial(experiments.attribute_logits, tokens=IDS),
    "collect": functools.partial(experiments.collect, tokens=IDS, rows=1),
    "draft_acceptance": lambda model, **options: experiments.draft_acceptance(
        model, model, IDS, **options
    ),
    "find_circuit": functools.partial(
        experiments.find_circuit, threshold=0.5, clean=IDS, corrupted=IDS + 1
    ),
    "gate_curve": functools.partial(
        experiments.gate_curve, tokens=IDS, heads=[(0, 1)], gates=[0, 1]
    ),
    "head_importance": functools.partial(experiments.head_importance, batches=IDS, rows=1),
    "head_importance of batches": functools.partial(
        experiments.head_importance, batches=[IDS, IDS]
    ),
    "head_roles": functools.partial(experiments.head_roles, tokens=IDS, delimiters=[5]),
    "kl_by_position": lambda model, **options: experiments.kl_by_position(
        model, model, IDS, **options
    ),
    "knock_out_attention": functools.partial(
        experiments.knock_out_attention, texts=IDS, keys=1, answers=[5, 6, 7]
    ),
    "language_effects": effects,
    "language_neurons": functools.partial(
        experiments.language_neurons, texts={"one": IDS, "other": IDS}, rows=1
    ),
    "learn_gates": functools.partial(experiments.learn_gates, tokens=IDS, steps=2, k=3),
    "logit_lens": functools.partial(experiments.logit_lens, tokens=IDS),
    "loss_by_position": functools.partial(experiments.loss_by_position, tokens=IDS),
    "marked_answers": functools.partial(answers, what=tasks.marked_answers),
    "mean_difference": functools.partial(
        experiments.mean_difference, positive=IDS, negative=IDS, rows=1
    ),
    "patch_activations": functools.partial(experiments.patch_activations, **TWO),
    "patch_paths": functools.partial(experiments.patch_paths, **TWO),
    "probe": functools.partial(experiments.probe, texts=LETTERS, labels=LABELS, kind="ridge"),
    "probe_trees": trees,
    "prune_curve": functools.partial(experiments.prune_curve, data=IDS, n_random=1),
    "prune_order": functools.partial(experiments.prune_order, tokens=IDS),
    "sae_latents": latents,
    "score_answers": functools.partial(answers, what=tasks.score_answers),
    "score_choices": choices,
    "score_pairs": pairs,
    "sentence_log_probs": lambda model, **options: tasks.sentence_log_probs(
        spoken(), ["a cat"], **options
    ),
    "steering_sweep": sweep,
    "trace_causes": functools.partial(
        experiments.trace_causes, texts=IDS, subjects=torch.eye(3, 6).bool(), where="after",
        samples=1, answers=[5, 6, 7],
    ),
    "train_tuned_lens": functools.partial(experiments.train_tuned_lens, tokens=IDS, steps=2),
    "transfer_each": transfer_each,
    "transfer_probes": transfer,
    "written_tokens": functools.partial(experiments.written_tokens, tokens=IDS, k=2),
}  # fmt: skip


def test_every_long_call_is_tried():
    assert {name.split(" of ")[0] for name in TASKS} == set(LONG)


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
