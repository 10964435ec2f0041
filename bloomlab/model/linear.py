"""Products with a weight matrix, by the fastest kernel that computes the same sums."""

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.nn import functional as F

# Below so many multiplications oneDNN's overhead outweighs its speed (measured on two cores).
WORTHWHILE = 2**20


class Linear(nn.Linear):
    """torch's linear layer on the product below."""

    def forward(self, input: Float[Tensor, "*lead d_in"]) -> Float[Tensor, "*lead d_out"]:
        """`input` times the weights, plus the bias."""
        return linear(input, self.weight, self.bias)


def linear(
    x: Float[Tensor, "*lead d_in"],
    weight: Float[Tensor, "d_out d_in"],
    bias: Float[Tensor, " d_out"] | None = None,
) -> Float[Tensor, "*lead d_out"]:
    """`x` times the transposed weight, plus the bias; as `torch.nn.functional.linear`.

    In float32 on a CPU without gradients, oneDNN's product: on processors that are not Intel's it
    takes half the time of MKL's, which torch uses there. Only the order of the sums differs.
    """
    if (
        x.dtype == torch.float32
        and x.device.type == "cpu"
        and type(weight) in (Tensor, nn.Parameter)
        and weight.dtype == torch.float32
        and x.numel() * len(weight) >= WORTHWHILE
        and _plain(x, weight, bias)
    ):
        return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
    return F.linear(x, weight, bias)


def _plain(*tensors: Tensor | None) -> bool:
    """Whether nothing but the numbers is asked for: no derivative, no transform, no tracing."""
    if torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors):
        return False
    return (
        torch.backends.mkldnn.is_available()
        and torch.backends.mkldnn.enabled
        and not torch.is_autocast_enabled("cpu")
        and not torch.compiler.is_compiling()
        and forward_ad._current_level < 0
        and not torch._C._are_functorch_transforms_active()
    )
