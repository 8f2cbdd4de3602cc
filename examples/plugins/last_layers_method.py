"""A method of your own: only the last layers, the head and other methods' weights learn.

regtune --plugin last_layers_method.py train --methods last_layers:layers=2
"""

from dataclasses import dataclass

from regtune import Attached, Method, register


@dataclass(frozen=True, kw_only=True)
class LastLayersSettings:
    layers: int = 2
    """How many layers learn, counted from the last."""


class Frozen(Attached):
    def __init__(self, parameters):
        self.parameters = parameters
        for parameter in parameters:
            parameter.requires_grad_(False)

    def detach(self):
        for parameter in self.parameters:
            parameter.requires_grad_(True)


@register.method
class LastLayers(Method):
    name = "last_layers"
    title = "the first layers and the embeddings are frozen"
    settings = LastLayersSettings

    def attach(self, session, settings):
        backbone, family = session.model.base_model, session.family
        first = list(backbone.get_submodule(family.layers))[: -settings.layers]
        frozen = [*backbone.get_submodule(family.word_embeddings).parameters()]
        frozen += [parameter for layer in first for parameter in layer.parameters()]
        return Frozen([parameter for parameter in frozen if parameter.requires_grad])

    def label(self, settings):
        return f"last {settings.layers} layers"
