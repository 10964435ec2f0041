"""Autoencoders from folders that SAELens wrote compute what SAELens computed."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from bloomlab.errors import CheckpointError, UnsupportedError
from bloomlab.experiments.sae import splice_sae
from bloomlab.experiments.sae_files import read_sae
from tests.tiny import pair, tokens

WRITTEN = Path(__file__).parent / "saelens"  # by SAELens 6.54, with random weights


@pytest.mark.parametrize("folder", ["standard", "standard_plain_input", "jumprelu", "topk"])
def test_a_stored_autoencoder_computes_what_saelens_computes(folder):
    sae, expected = read_sae(WRITTEN / folder), load_file(WRITTEN / folder / "expected.safetensors")
    latents = sae.encode(expected["value"])
    torch.testing.assert_close(latents, expected["latents"])
    assert 0 < (latents > 0).float().mean() < 0.7
    torch.testing.assert_close(sae.decode(latents), expected["reconstruction"])


@torch.no_grad()
def test_a_stored_autoencoder_of_heads_takes_z():
    ours = pair(hidden_size=8, n_head=2)[1]
    name = "blocks.1.attn.hook_z"
    sae, expected = read_sae(WRITTEN / "heads"), load_file(WRITTEN / "heads/expected.safetensors")
    torch.testing.assert_close(sae.encode(expected["value"]), expected["latents"])

    def put(value, hook):
        return expected["value"][:, : value.shape[1]]

    with ours.hooks(fwd_hooks=[(name, put), *[splice_sae(sae, name, error_term=False)]]):
        got = ours.run_with_cache(tokens(2, 3), names_filter=name)[1][name]
    torch.testing.assert_close(got, expected["reconstruction"])


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"architecture": "gated"}, UnsupportedError, "'gated'"),
        ({"normalize_activations": "layer_norm"}, UnsupportedError, "normalize_activations"),
        ({"d_sae": 13}, CheckpointError, r"W_enc is \(8, 12\), expected shape \(8, 13\)"),
        ({"architecture": "jumprelu"}, CheckpointError, "threshold is None"),
        ({"architecture": "topk"}, CheckpointError, "k is None"),
    ],
)
def test_folders_that_cannot_be_read_right_are_refused(tmp_path, change, error, message):
    shutil.copytree(WRITTEN / "standard", folder := tmp_path / "sae")
    config = json.loads((folder / "cfg.json").read_text()) | change
    (folder / "cfg.json").write_text(json.dumps(config))
    with pytest.raises(error, match=message):
        read_sae(folder)


def test_missing_or_cut_files_are_refused(tmp_path):
    with pytest.raises(CheckpointError, match=r"sae_weights\.safetensors"):
        read_sae(tmp_path)
    shutil.copytree(WRITTEN / "standard", folder := tmp_path / "sae")
    weights = folder / "sae_weights.safetensors"
    weights.write_bytes(weights.read_bytes()[:-5])
    with pytest.raises(CheckpointError, match="can be read"):
        read_sae(folder)
