"""What a worker of vLLM gets so that it can take weights from a learner in parts; named by ``worker_extension_cls``."""

from __future__ import annotations

from typing import Any

from vidbridge.rollout.vllm_parts import pack_tied_head, use_given_positions
from vidbridge.rollout.wire import unpack


class LearnerWeights:
    """Methods for ``collective_rpc``: every worker of an engine is given whole weights and keeps its share."""

    vllm_config: Any
    model_runner: Any
    _come: set[str] | None = None  # names of the weights that have come; None: none are coming

    def take_given_positions(self) -> None:
        use_given_positions(self.model_runner.get_model())

    def begin_weights(self) -> None:
        from vllm.config import set_current_vllm_config
        from vllm.model_executor.model_loader.reload import finalize_layerwise_reload, initialize_layerwise_reload

        model = self.model_runner.get_model()
        with set_current_vllm_config(self.vllm_config):
            if self._come is not None:  # of a learner that never ended: what is half there would be added to
                finalize_layerwise_reload(model, self.vllm_config.model_config)
            initialize_layerwise_reload(model)
        self._come = set()

    def take_weights(self, message: bytes) -> None:
        from vllm.config import set_current_vllm_config

        assert self._come is not None
        with set_current_vllm_config(self.vllm_config):
            self._come |= self.model_runner.get_model().load_weights(iter(unpack(message)[1].items()))

    def end_weights(self) -> list[str]:
        """Return the names of the model's weights that have not come."""
        from vllm.config import set_current_vllm_config
        from vllm.model_executor.model_loader.reload import finalize_layerwise_reload

        assert self._come is not None
        model = self.model_runner.get_model()
        with set_current_vllm_config(self.vllm_config):
            finalize_layerwise_reload(model, self.vllm_config.model_config)
        pack_tied_head(model)
        lacking, self._come = {name for name, _ in model.named_parameters()} - self._come, None
        return sorted(lacking)
