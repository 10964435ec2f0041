"""Products with a weight matrix, by the fastest kernel that computes the same sums."""

import math
import platform
from collections.abc import Callable
from functools import partial
from pathlib import Path

import psutil
import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.nn import functional as F

# Below so many multiplications oneDNN's overhead outweighs its speed (measured on two cores).
WORTHWHILE = 2**20
# Where torch may use AVX-512, oneDNN's products take half the time of MKL's on processors that are
# not Intel's; with AVX2, MKL's are the faster ones.
ONEDNN_IS_FAST = torch.backends.cpu.get_cpu_capability() == "AVX512"
# MKL reads a matrix for a single row as fast as memory gives it on Intel's processors only.
_CPUS = Path("/proc/cpuinfo")
MKL_IS_FAST = "GenuineIntel" in (_CPUS.read_text() if _CPUS.exists() else platform.processor())
TWICE_ROOT = 2 * math.sqrt(2 / math.pi)
PARTS = 16  # of a matrix that multiplies a single row
OUTGROWN = 2**26  # bytes of weights that no processor's caches hold

Product = Callable[[Tensor], Tensor]


class Linear(nn.Linear):
    """torch's linear layer on the product below."""

    def reset_parameters(self) -> None:
        """Torch's own draw; of no weights (all heads or neurons pruned) none."""
        if self.weight.numel():
            super().reset_parameters()

    def forward(self, input: Float[Tensor, "*lead d_in"]) -> Float[Tensor, "*lead d_out"]:
        """`input` times the weights, plus the bias."""
        return linear(input, self.weight, self.bias)

    def gelu(self, input: Float[Tensor, "*lead d_in"]) -> Float[Tensor, "*lead d_out"]:
        """Tanh-approximated GELU of the layer's output, in one pass where oneDNN computes it."""
        watched = self._forward_hooks or self._forward_pre_hooks or "forward" in self.__dict__
        if not watched and _for_onednn(input, self.weight, self.bias):
            fused = torch.ops.mkldnn._linear_pointwise
            return fused(input, self.weight, self.bias, "gelu", [], "tanh")
        return gelu(self(input))


def gelu(x: Float[Tensor, "*lead d_mlp"]) -> Float[Tensor, "*lead d_mlp"]:
    """Tanh-approximated GELU, x sigmoid(2 sqrt(2/pi) (x + 0.044715 x^3)).

    Without gradients on a CPU by the sigmoid, which takes half the time of torch's tanh.
    """
    if x.device.type != "cpu" or x.dtype not in (torch.float32, torch.float64) or not _plain(x):
        return F.gelu(x, approximate="tanh")
    inner = torch.addcmul(x.new_full((), TWICE_ROOT), x, x, value=TWICE_ROOT * 0.044715)
    return inner.mul_(x).sigmoid_().mul_(x)


def linear(
    x: Float[Tensor, "*lead d_in"],
    weight: Float[Tensor, "d_out d_in"],
    bias: Float[Tensor, " d_out"] | None = None,
) -> Float[Tensor, "*lead d_out"]:
    """`x` times the transposed weight, plus the bias; as `torch.nn.functional.linear`.

    In float32 on a CPU without gradients, oneDNN's product where it is faster than MKL's, which
    torch uses there. Only the order of the sums differs.
    """
    if _for_onednn(x, weight, bias):
        return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
    return F.linear(x, weight, bias)


def _for_onednn(x: Tensor, weight: Tensor, bias: Tensor | None) -> bool:
    return (
        ONEDNN_IS_FAST
        and x.dtype == torch.float32
        and x.device.type == "cpu"
        and type(weight) in (Tensor, nn.Parameter)
        and weight.dtype == torch.float32
        and (bias is None or bias.dtype == torch.float32)
        and x.shape[-1] == weight.shape[-1]
        and x.numel() * len(weight) >= WORTHWHILE
        and _plain(x, weight, bias)
    )


def onednn() -> bool:
    """Whether torch has oneDNN and may use it."""
    return torch.backends.mkldnn.is_available() and bool(torch.backends.mkldnn.enabled)


def _plain(*tensors: Tensor | None) -> bool:
    """Whether nothing but the numbers is asked for: no derivative, no transform, no tracing."""
    if torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors):
        return False
    return (
        onednn()
        and not torch.is_autocast_enabled("cpu")
        and not torch.compiler.is_compiling()
        and forward_ad._current_level < 0
        and not torch._C._are_functorch_transforms_active()
    )


def product(weight: Tensor, bias: Tensor | None, *, rows: int, pack: bool) -> Product:
    """A function that multiplies [rows d_in] by the weight, for use many times without gradients.

    On a CPU each format has a way that reads the weight about as fast as memory gives it: a copy
    of it in the processor's own order (`pack`), a batch of its parts for one row in float32 (where
    MKL is slow), and torch's own kernel instead of oneDNN's for one row in bfloat16, if no cache
    holds the weights.
    """
    if weight.device.type == "cpu" and onednn() and weight.numel():
        if pack and rows == 1 and weight.dtype == torch.bfloat16:
            return partial(_without_onednn, weight=weight, bias=bias)
        if pack or (weight.dtype == torch.float32 and rows > 1):
            weight = torch.ops.mkldnn._reorder_linear_weight(weight, rows) if pack else weight
            return lambda x: torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
        fits = weight.is_contiguous() and len(weight) % PARTS == 0
        if weight.dtype == torch.float32 and fits and not MKL_IS_FAST:
            parts = weight.view(PARTS, -1, weight.shape[1])
            offset = parts.new_zeros(()) if bias is None else bias.view(PARTS, -1, 1)
            return lambda x: torch.baddbmm(offset, parts, x.T.expand(PARTS, -1, 1)).view(1, -1)
    return lambda x: F.linear(x, weight, bias)


def _without_onednn(x: Tensor, *, weight: Tensor, bias: Tensor | None) -> Tensor:
    before = torch.backends.mkldnn.enabled
    torch.backends.mkldnn.enabled = False
    try:
        return F.linear(x, weight, bias)
    finally:
        torch.backends.mkldnn.enabled = before


def worth_packing(model: nn.Module, *, rows: int, steps: int) -> bool:
    """Whether copies of all weights, reordered, pay for themselves in so many steps on a CPU.

    bfloat16 weights that outgrow the processor's caches are then read twice as fast, float32 ones
    a third faster for several rows. Not where memory is short: the copies live as long as the
    generation.
    """
    weights = [p for p in model.parameters() if p.ndim == 2]
    size = sum(p.numel() * p.element_size() for p in weights)
    kinds = {(p.dtype, p.device.type) for p in weights}
    pays = {
        (torch.bfloat16, "cpu"): size >= OUTGROWN
        and (rows == 1 or steps >= 32)
        and torch.ops.mkldnn._is_mkldnn_bf16_supported(),
        (torch.float32, "cpu"): rows > 1 and steps >= 32,
    }
    return (
        onednn()
        and len(kinds) == 1
        and pays.get(kinds.pop(), False)
        and size < psutil.virtual_memory().available / 2
    )
