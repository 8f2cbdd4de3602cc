"""How large a vector each head writes for a token it attends to: |f(x)|, f being its value and output projections.

Kobayashi et al. 2020 (arXiv 2004.10102): a head adds `sum_k A[i, k] f(x_k)` to token i, with
`f(x) = (x W_V + b_V) W_O`, so a large weight on a token whose f(x) is small does little.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn

from regtune.families import family_of
from regtune.families._family import modules_at
from regtune.registers.surgery import backbone_of


class OutputNorms:
    """|f(x)| of one model's heads; what depends on the weights alone is computed once a layer.

    Raises:
        UnsupportedModelError: an architecture whose parts aren't known.
    """

    def __init__(self, model: nn.Module) -> None:
        backbone = backbone_of(model)
        family = family_of(backbone.config, "parts")
        attending = modules_at(backbone, *family.within_layers(family.attention))
        projections = modules_at(backbone, *family.within_layers(family.attention_out))
        self._projection = {id(module): part for module, part in zip(attending, projections, strict=True)}
        self._factors: dict[int, Tensor] = {}

    def __call__(
        self, module: nn.Module, values: Float[Tensor, "batch heads total head_dim"]
    ) -> Float[Tensor, "batch heads total"]:
        """The norms, in float32 or wider.

        Args:
            module: the attending module.
            values: its value states.
        """
        if id(module) not in self._factors:
            self._factors[id(module)] = _factor(self._projection[id(module)], values)
        factor = self._factors[id(module)]
        norms: Tensor = torch.linalg.vector_norm(values.to(factor.dtype) @ factor, dim=-1)
        return norms


def _factor(projection: nn.Module, values: Tensor) -> Float[Tensor, "heads head_dim rank"]:
    """For each head a matrix with `|v W_O| = |v factor|`, at most head_dim wide where W_O is hidden wide.

    W_O' = Q R with orthonormal Q, so |v W_O| = |v R'|. W_O is read off the module's answers, which holds for linear
    layers however they keep their weights (transposed, with an adapter, quantised).
    """
    heads, head_dim = values.shape[1], values.shape[3]
    eye = torch.eye(heads * head_dim, dtype=values.dtype, device=values.device)
    answers = projection(eye).double() - projection(torch.zeros_like(eye[:1])).double()
    triangles: Tensor = torch.linalg.qr(answers.unflatten(0, (heads, head_dim)).mT, mode="r").R
    return triangles.mT.to(torch.promote_types(values.dtype, torch.float32)).contiguous()
