"""Experiments: a model and an analysis, joined; `tasks` has data that is ready for them."""

from bloomlab.experiments import tasks
from bloomlab.experiments.activations import Activations, collect
from bloomlab.experiments.amnesic import Amnesia, amnesic_effect
from bloomlab.experiments.answer_spans import answer_examples
from bloomlab.experiments.attention_knockout import Knockout, knock_out_attention
from bloomlab.experiments.attribution import Attribution, attribute_logits
from bloomlab.experiments.branch_results import Branches
from bloomlab.experiments.branches import compare_branches
from bloomlab.experiments.by_position import kl_by_position, loss_by_position
from bloomlab.experiments.causal_tracing import CausalTrace, trace_causes
from bloomlab.experiments.circuit_scores import CircuitScores, evaluate_circuits
from bloomlab.experiments.circuit_search import FoundCircuit, find_circuit
from bloomlab.experiments.edge_attribution import EdgeScores, attribute_edges
from bloomlab.experiments.fine_tuning import (
    label_scores,
    text_examples,
    with_task_head,
    word_examples,
)
from bloomlab.experiments.gate_curve import gate_curve
from bloomlab.experiments.graph import Edge, Graph
from bloomlab.experiments.head_ablation import Ablation, ablate_heads
from bloomlab.experiments.head_circuits import (
    HeadCircuits,
    composition,
    head_circuits,
    ov_circuit,
    qk_circuit,
)
from bloomlab.experiments.head_gates import LearnedGates, learn_gates
from bloomlab.experiments.head_importance import head_importance
from bloomlab.experiments.head_order import HeadOrder, one_shot_order
from bloomlab.experiments.head_pruning import PruningCurve, prune_curve
from bloomlab.experiments.head_roles import head_roles, repeated_tokens
from bloomlab.experiments.head_search import prune_order
from bloomlab.experiments.head_tokens import head_tokens, written_tokens
from bloomlab.experiments.importance import Agreement, Importance
from bloomlab.experiments.language_effects import LanguageEffects, language_effects
from bloomlab.experiments.language_neurons import LanguageNeurons, deactivate, language_neurons
from bloomlab.experiments.logit_lens import Lens, logit_lens
from bloomlab.experiments.patching import Patching, patch_activations
from bloomlab.experiments.path_patching import PathPatching, patch_paths
from bloomlab.experiments.probe_labels import Labelled, label_examples, without_rare, word_spans
from bloomlab.experiments.probe_transfer import transfer_each, transfer_probes
from bloomlab.experiments.probes import Probes
from bloomlab.experiments.probing import probe
from bloomlab.experiments.pruning_report import pruning_report
from bloomlab.experiments.readings import Readings, read_generation, read_stream
from bloomlab.experiments.readouts import Readout, linear_readout, probe_readout
from bloomlab.experiments.results import Results, read_results, read_run
from bloomlab.experiments.sae import scale_latents, splice_sae
from bloomlab.experiments.sae_files import read_sae
from bloomlab.experiments.sae_latents import Latents, sae_latents
from bloomlab.experiments.spans import Spans
from bloomlab.experiments.speculative import Acceptance, draft_acceptance
from bloomlab.experiments.steering import Directions, erase, mean_difference, probe_directions
from bloomlab.experiments.steering_sweep import SteeringSweep, steering_sweep
from bloomlab.experiments.tree_probes import TreeProbes, probe_trees
from bloomlab.experiments.tuned_heads import ablate_task_heads, head_changes
from bloomlab.experiments.tuned_lens import TunedLens, train_tuned_lens

__all__ = [
    "Ablation",
    "Acceptance",
    "Activations",
    "Agreement",
    "Amnesia",
    "Attribution",
    "Branches",
    "CausalTrace",
    "CircuitScores",
    "Directions",
    "Edge",
    "EdgeScores",
    "FoundCircuit",
    "Graph",
    "HeadCircuits",
    "HeadOrder",
    "Importance",
    "Knockout",
    "Labelled",
    "LanguageEffects",
    "LanguageNeurons",
    "Latents",
    "LearnedGates",
    "Lens",
    "Patching",
    "PathPatching",
    "Probes",
    "PruningCurve",
    "Readings",
    "Readout",
    "Results",
    "Spans",
    "SteeringSweep",
    "TreeProbes",
    "TunedLens",
    "ablate_heads",
    "ablate_task_heads",
    "amnesic_effect",
    "answer_examples",
    "attribute_edges",
    "attribute_logits",
    "collect",
    "compare_branches",
    "composition",
    "deactivate",
    "draft_acceptance",
    "erase",
    "evaluate_circuits",
    "find_circuit",
    "gate_curve",
    "head_changes",
    "head_circuits",
    "head_importance",
    "head_roles",
    "head_tokens",
    "kl_by_position",
    "knock_out_attention",
    "label_examples",
    "label_scores",
    "language_effects",
    "language_neurons",
    "learn_gates",
    "linear_readout",
    "logit_lens",
    "loss_by_position",
    "mean_difference",
    "one_shot_order",
    "ov_circuit",
    "patch_activations",
    "patch_paths",
    "probe",
    "probe_directions",
    "probe_readout",
    "probe_trees",
    "prune_curve",
    "prune_order",
    "pruning_report",
    "qk_circuit",
    "read_generation",
    "read_results",
    "read_run",
    "read_sae",
    "read_stream",
    "repeated_tokens",
    "sae_latents",
    "scale_latents",
    "splice_sae",
    "steering_sweep",
    "tasks",
    "text_examples",
    "trace_causes",
    "train_tuned_lens",
    "transfer_each",
    "transfer_probes",
    "with_task_head",
    "without_rare",
    "word_examples",
    "word_spans",
    "written_tokens",
]
