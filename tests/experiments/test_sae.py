"""Autoencoders spliced into runs: against the same sums by hand in transformers."""

import pytest
import torch
from torch import nn

import bloomlab as bl
from bloomlab.errors import InputError, ShapeError, UnknownNameError
from bloomlab.experiments.sae import scale_latents, splice_sae
from bloomlab.experiments.sae_latents import sae_latents
from tests.tiny import make_hf, pair, tokens

N = 7
IDS = tokens(2, N)
POST = "blocks.0.hook_resid_post"


class Plain(nn.Module):
    """Only what is asked for: encode and decode."""

    def __init__(self, width=48, n=20, dtype=torch.float64):
        super().__init__()
        generator = torch.Generator().manual_seed(5)
        self.read = nn.Parameter(torch.randn(width, n, generator=generator, dtype=dtype) / 7)
        self.write = nn.Parameter(torch.randn(n, width, generator=generator, dtype=dtype) / 5)

    def encode(self, x):
        return ((x.to(self.read) - 0.1) @ self.read).relu()

    def decode(self, feature_acts):
        return feature_acts @ self.write + 0.1


class Normalising(Plain):
    """Scales as SAELens' constant_norm_rescale does: what decode needs is gone after one use."""

    def encode(self, x):
        self.scale = x.shape[-1] ** 0.5 / x.norm(dim=-1, keepdim=True)
        return super().encode(x * self.scale)

    def decode(self, feature_acts):
        scale, self.scale = self.scale, None
        return super().decode(feature_acts) / scale


@pytest.fixture(scope="module")
def models():
    return pair(dtype=torch.float64)


@pytest.fixture
def sae():
    return Plain()


def by_hand(theirs, change, ids=IDS):
    """transformers' logits with the output of its first block changed."""

    def edit(module, arguments, output):
        whole = isinstance(output, tuple)
        stream = change(output[0] if whole else output)
        return (stream, *output[1:]) if whole else stream

    handle = theirs.transformer.h[0].register_forward_hook(edit)
    with torch.no_grad():
        logits = theirs(ids).logits
    handle.remove()
    return logits


def rebuilt(sae, x, factor=()):
    """Latents scaled one by one, and written out as a sum over latents."""
    latents = ((x - 0.1) @ sae.read).clamp(min=0)
    total = torch.full_like(x, 0.1)
    for i, direction in enumerate(sae.write):
        total = total + dict(factor).get(i, 1.0) * latents[..., i, None] * direction
    return total


@pytest.mark.parametrize("kind", [Plain, Normalising])
@torch.no_grad()
def test_with_the_error_term_the_run_is_unchanged_to_the_bit(demo, kind):
    ids = demo.to_tokens("The bridge over the river is closed.")
    spliced = splice_sae(kind(demo.cfg.d_model, dtype=torch.float32), "blocks.1.hook_resid_mid")
    clean = demo(ids, return_type="logits")
    assert torch.equal(demo.run_with_hooks(ids, fwd_hooks=[spliced]), clean)
    with demo.hooks(fwd_hooks=spliced):
        assert torch.equal(demo(ids, return_type="logits"), clean)
    steps = demo.stream(ids, max_new_tokens=4, interventions=[spliced])
    for step, plain in zip(steps, demo.stream(ids, max_new_tokens=4), strict=True):
        assert torch.equal(step.logits, plain.logits)


@torch.no_grad()
def test_without_the_error_term_the_stream_is_the_reconstruction(models, sae):
    theirs, ours = models
    expected = by_hand(theirs, lambda x: rebuilt(sae, x))
    got = ours.run_with_hooks(IDS, fwd_hooks=[splice_sae(sae, POST, error_term=False)])
    assert (got - expected).abs().max() < 1e-5  # transformers' softmax is float32
    assert (got - ours(IDS).logits).abs().max() > 0.1


@pytest.mark.parametrize("error_term", [True, False])
@torch.no_grad()
def test_scaled_latents_write_so_many_times_their_direction(models, sae, error_term):
    theirs, ours = models
    factors = {3: 0.0, 11: 4.0, 17: -1.0}

    def change(x):
        error = x - rebuilt(sae, x) if error_term else 0
        return rebuilt(sae, x, factors) + error

    edit = scale_latents(factors)
    spliced = splice_sae(sae, POST, error_term=error_term, edit=edit)
    got = ours.run_with_hooks(IDS, fwd_hooks=[spliced])
    assert (got - by_hand(theirs, change)).abs().max() < 1e-5
    assert (got - ours(IDS).logits).abs().max() > 0.01


@torch.no_grad()
def test_an_autoencoder_that_remembers_its_input_is_asked_anew(models):
    _, ours = models
    x = ours.run_with_cache(IDS)[1][POST]
    scale = 48**0.5 / x.norm(dim=-1, keepdim=True)
    plain, sae = Plain(), Normalising()
    wanted = x + (rebuilt(plain, x * scale, {2: 3.0}) - rebuilt(plain, x * scale)) / scale
    with ours.hooks(fwd_hooks=splice_sae(sae, POST, edit=scale_latents({2: 3.0}))):
        got = ours.run_with_cache(IDS, names_filter=POST)[1][POST]
    assert (got - wanted).abs().max() < 1e-12


@torch.no_grad()
def test_a_schedule_narrows_the_splice(models, sae):
    theirs, ours = models

    def change(x):
        x = x.clone()
        x[1, 2:4] = rebuilt(sae, x[1, 2:4])
        return x

    spliced = splice_sae(sae, POST, error_term=False).on_rows(1).at_columns([2, 3])
    got = ours.run_with_hooks(IDS, fwd_hooks=[spliced])
    assert (got - by_hand(theirs, change)).abs().max() < 1e-5


@torch.no_grad()
def test_a_spliced_generation_is_spliced_full_forwards(models, sae):
    _, ours = models
    spliced = splice_sae(sae, POST, edit=lambda latents: latents.clamp(max=0.5))
    text = IDS
    for step in ours.stream(IDS, max_new_tokens=4, interventions=[spliced], eos_token_id=[]):
        full = ours.run_with_hooks(text, fwd_hooks=[spliced])[:, -1]
        assert (step.logits - full).abs().max() < 1e-9
        text = torch.cat([text, step.token[:, None]], -1)


def test_gradients_flow_through_the_latents_alone(models, sae):
    _, ours = models
    seen = []

    def watch(latents):
        seen.append(latents)
        return latents

    with ours.hooks(fwd_hooks=splice_sae(sae, POST, edit=watch)):
        loss = ours(IDS, return_type="loss")
    (slope,) = torch.autograd.grad(loss, seen)
    place, tiny = (0, 3, int(slope[0, 3].abs().argmax())), 1e-5

    def moved(by):
        def edit(latents):
            latents = latents.clone()
            latents[place] += by
            return latents

        with torch.no_grad(), ours.hooks(fwd_hooks=splice_sae(sae, POST, edit=edit)):
            return ours(IDS, return_type="loss").item()

    numeric = (moved(tiny) - moved(-tiny)) / (2 * tiny)
    assert numeric == pytest.approx(slope[place].item(), rel=1e-4)


@torch.no_grad()
def test_half_precision_is_rounded_once(sae):
    ours = bl.BloomForCausalLM.from_hf(make_hf(dtype=torch.bfloat16))
    clean = ours(IDS, return_type="logits")
    assert torch.equal(ours.run_with_hooks(IDS, fwd_hooks=[splice_sae(sae, POST)]), clean)
    x = ours.run_with_cache(IDS, names_filter=POST)[1][POST]
    with ours.hooks(fwd_hooks=splice_sae(sae, POST, error_term=False)):
        got = ours.run_with_cache(IDS, names_filter=POST)[1][POST]
    assert torch.equal(got, rebuilt(sae, x.double()).bfloat16())


@torch.no_grad()
def test_latents_are_those_of_each_text_alone(models, sae):
    _, ours = models
    mask = torch.ones_like(IDS)
    mask[0, :3] = 0
    mask[1, 5:] = 0
    found = sae_latents(ours, sae, POST, IDS, mask)
    for row in (0, 1):
        own = mask[row].bool()
        x = ours.run_with_cache(IDS[row, own][None])[1][POST]
        expected = ((x - 0.1) @ sae.read).clamp(min=0)
        assert (found.values[row, own] - expected[0]).abs().max() < 1e-9
        assert (found.values[row, ~own] == 0).all()
    few = sae_latents(ours, sae, POST, IDS, mask, latents=[7, 2], batch_size=1)
    assert (few.values - found.values[..., [7, 2]]).abs().max() < 1e-9
    active = found.values[..., [7, 2]] > 0
    assert len(few.frame) == active.sum()
    for row in few.frame.itertuples():
        column = int(mask[row.text].nonzero()[row.pos])
        assert row.token == IDS[row.text, column]
        value = found.values[row.text, column, row.latent].item()
        assert value > 0
        assert row.value == pytest.approx(value, rel=1e-9)


class Declared(Plain):
    """Says how wide it is, as SAELens' do."""

    @property
    def W_enc(self):
        return self.read


@pytest.mark.parametrize(
    ("kind", "message"),
    [(Declared, r"hook_resid_post has shape.*expected 32 numbers"), (Plain, "cannot encode")],
)
def test_an_autoencoder_of_another_width_is_refused(models, kind, message):
    _, ours = models
    with pytest.raises(InputError, match=message):
        ours.run_with_hooks(IDS, fwd_hooks=[splice_sae(kind(32), POST)])
    with pytest.raises(InputError, match=message):
        sae_latents(ours, kind(32), POST, IDS)


def test_bad_requests_are_refused(models, sae):
    _, ours = models
    with pytest.raises(InputError, match="encode and decode"):
        splice_sae(nn.Linear(48, 48), POST)
    with pytest.raises(InputError, match="expected a string"):
        splice_sae(sae, 3)
    with pytest.raises(InputError, match="scale_latents"):
        splice_sae(sae, POST, edit={3: 0.0})
    with pytest.raises(InputError, match="dict of latent"):
        scale_latents([3])
    with pytest.raises(InputError, match="latent 3 is 'off'"):
        scale_latents({3: "off"})
    with pytest.raises(InputError, match="whole number from 0"):
        scale_latents({-1: 0.0})
    with pytest.raises(UnknownNameError, match=r"no latent 20. The autoencoder has 20"):
        ours.run_with_hooks(IDS, fwd_hooks=[splice_sae(sae, POST, edit=scale_latents({20: 0}))])
    with pytest.raises(UnknownNameError, match="no latent 99"):
        sae_latents(ours, sae, POST, IDS, latents=[99])
    cut = splice_sae(sae, POST, edit=lambda latents: latents[..., :4])
    with pytest.raises(InputError, match="keep the shape"):
        ours.run_with_hooks(IDS, fwd_hooks=[cut])
    with pytest.raises(UnknownNameError, match="hook_resid_post"):
        ours.run_with_hooks(IDS, fwd_hooks=[splice_sae(sae, "blocks.9.hook_resid_post")])
    with pytest.raises(UnknownNameError, match="hook_resid_post"):
        sae_latents(ours, sae, "blocks.9.hook_resid_post", IDS)
    with pytest.raises(InputError, match="expected a string"):
        sae_latents(ours, sae, 3, IDS)
    with pytest.raises(InputError, match="batch_size"):
        sae_latents(ours, sae, POST, IDS, batch_size=0)
    narrow = Plain()
    narrow.decode = lambda latents: latents
    with pytest.raises(ShapeError, match="what decode made"):
        ours.run_with_hooks(IDS, fwd_hooks=[splice_sae(narrow, POST)])
