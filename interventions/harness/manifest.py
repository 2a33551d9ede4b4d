"""What lmms-eval reads from the entry point: the name of the model and the path of its class."""

from typing import Any


def manifest() -> Any:
    """The ``ModelManifest`` of ``--model laccolith``.

    Source: https://github.com/EvolvingLMMs-Lab/lmms-eval, ``lmms_eval/models/registry_v2.py``.
    """
    from lmms_eval.models.registry_v2 import ModelManifest

    return ModelManifest(model_id="laccolith", simple_class_path="interventions.harness.model.LaccolithModel")
