"""Every way to multiply by a weight gives the product; none is taken where more is asked."""

import pytest
import torch
from torch.nn import functional as F

from bloomlab.model import linear as linear_module
from bloomlab.model.linear import Linear, gelu, linear, product, worth_packing
from tests.tiny import distance_in_eps, pair, tokens

N = 1024  # wide enough for oneDNN to be worth it


@pytest.fixture(autouse=True)
def without_gradients():
    with torch.no_grad():
        yield


BFLOAT16 = torch.ops.mkldnn._is_mkldnn_bf16_supported()


def drawn(rows, dtype=torch.float32, bias=True):
    generator = torch.Generator().manual_seed(0)
    x, weight, b = (torch.randn(s, generator=generator) for s in ((rows, 512), (N, 512), (N,)))
    x, weight, b = (t.to(dtype) for t in (x, weight, b))
    expected = x.double() @ weight.double().T + (b.double() if bias else 0)
    return x, weight, b if bias else None, expected


@pytest.mark.parametrize("intel", [False, True])
@pytest.mark.parametrize("pack", [False, True])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("rows", [1, 3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_products_are_products(dtype, rows, bias, pack, intel, monkeypatch):
    monkeypatch.setattr(linear_module, "MKL_IS_FAST", intel)
    if pack and rows > 1 and dtype == torch.bfloat16 and not BFLOAT16:
        pytest.skip("oneDNN packs bfloat16 weights on processors with bfloat16 products only")
    x, weight, b, expected = drawn(rows, dtype, bias)
    got = product(weight, b, rows=rows, pack=pack)(x)
    assert got.shape == (rows, N)
    assert distance_in_eps(got, expected, dtype) < (20 if dtype == torch.float32 else 2)
    assert torch.backends.mkldnn.enabled


@pytest.mark.parametrize("rows", [1, 3])
def test_a_weight_that_does_not_fit_its_fast_way_takes_the_plain_one(rows, monkeypatch):
    monkeypatch.setattr(linear_module, "MKL_IS_FAST", False)
    x, weight, _, _ = drawn(rows)
    odd, strided = weight[:7], weight.T.contiguous().T
    for one in (odd, strided):
        got = product(one, None, rows=rows, pack=False)(x)
        assert distance_in_eps(got, x.double() @ one.double().T, torch.float32) < 20


@pytest.mark.parametrize("fast", [False, True])
@pytest.mark.parametrize("rows", [2, 64])
def test_a_layer_and_its_gelu(rows, fast, monkeypatch):
    monkeypatch.setattr(linear_module, "ONEDNN_IS_FAST", fast)
    x, weight, b, expected = drawn(rows)
    layer = Linear(512, N)
    layer.weight.copy_(weight)
    layer.bias.copy_(b)
    assert distance_in_eps(layer(x), expected, torch.float32) < 20
    assert distance_in_eps(linear(x[None], weight, b)[0], expected, torch.float32) < 20
    gelu = F.gelu(expected, approximate="tanh")
    assert distance_in_eps(layer.gelu(x), gelu, torch.float32) < 20
    layer.register_forward_hook(lambda module, args, out: out * 0)
    assert bool((layer.gelu(x) == 0).all())


def test_gelu_of_any_number():
    x = torch.cat([torch.linspace(-12, 12, 4001, dtype=torch.float64), torch.tensor([1e9, -1e9])])
    assert (gelu(x) - F.gelu(x, approximate="tanh")).abs().max() < 1e-15 * 1e9
    assert (gelu(x[:-2]) - F.gelu(x[:-2], approximate="tanh")).abs().max() < 1e-14
    single, wide = gelu(x.float()).double(), gelu(x.float().double())
    assert ((single - wide).abs() <= 3e-6 * wide.abs() + 1e-8).all()
    leaf = x.clone().requires_grad_()
    with torch.enable_grad():
        assert torch.equal(gelu(leaf), F.gelu(x, approximate="tanh"))


@pytest.mark.filterwarnings("ignore:.*torch.jit.script:DeprecationWarning")  # torch's own, in jvp
def test_derivatives_and_transforms_are_torchs():
    x, weight, b, _ = drawn(64)
    with torch.enable_grad():
        leaf = weight.clone().requires_grad_()
        linear(x, leaf, b).sum().backward()
    assert distance_in_eps(leaf.grad, x.sum(0).expand(N, -1)) < 200
    _, tangent = torch.func.jvp(lambda t: linear(t, weight, b), (x,), (x,))
    assert distance_in_eps(tangent, x @ weight.T) < 200
    mapped = torch.func.vmap(lambda row: linear(row, weight, b))(x[:, None])
    assert distance_in_eps(mapped[:, 0], F.linear(x, weight, b)) < 20


def test_weights_are_packed_where_it_pays(monkeypatch):
    _, small = pair(dtype=torch.bfloat16)
    assert not worth_packing(small, rows=1, steps=64)
    monkeypatch.setattr(linear_module, "OUTGROWN", 0)
    assert worth_packing(small, rows=1, steps=2) is BFLOAT16
    assert not worth_packing(small, rows=2, steps=2)
    assert worth_packing(small, rows=2, steps=64) is BFLOAT16
    _, wide = pair()
    assert worth_packing(wide, rows=2, steps=64)
    assert not worth_packing(wide, rows=1, steps=64)
    monkeypatch.setattr(
        linear_module.psutil, "virtual_memory", lambda: type("", (), {"available": 9})
    )
    assert not worth_packing(wide, rows=2, steps=64)


@pytest.mark.parametrize("rows", [1, 2])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_packed_generation_stays_close_to_forwards(rows, dtype, monkeypatch):
    monkeypatch.setattr(linear_module, "OUTGROWN", 0)
    _, ours = pair(dtype=dtype)
    ids = tokens(rows, 5)
    text = ours.generate(ids, max_new_tokens=40, eos_token_id=[])
    logits = ours(text).logits[:, 4:-1].float()
    chosen = logits.gather(-1, text[:, 5:, None])[..., 0]
    slack = (200 if dtype == torch.float32 else 10) * torch.finfo(dtype).eps * logits.abs().max()
    assert bool((chosen >= logits.amax(-1) - slack).all())
