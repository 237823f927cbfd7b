"""The other side of `graft_step.py`: diffusers' transformer looped by canvas-engineering."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from canvas_engineering.graft import graft_looped_blocks
from diffusers import CogVideoXTransformer3DModel

from roam_jax.cogvideox.config import TransformerConfig


class TorchGraft:
    """One training step in torch, with random weights.

    Args:
        config: of the backbone.
        inputs: latents, text, timesteps and both targets.
        rounds: of every block.
        learning_rate: of AdamW.
    """

    def __init__(
        self,
        config: TransformerConfig,
        inputs: dict[str, np.ndarray],
        *,
        rounds: int,
        learning_rate: float,
    ):
        torch.manual_seed(0)
        self.model = CogVideoXTransformer3DModel.from_config(config.to_json())
        self.backbone_state = self.model.state_dict()
        self.blocks, self.head = graft_looped_blocks(self.model, max_loops=rounds, freeze="full")
        for block in self.blocks:
            block.set_loops(rounds)
            for parameter in (block.loop_gate, block.loop_emb, block.loop_emb_enc):
                torch.nn.init.normal_(parameter, std=0.1)
        self.inputs = {name: torch.tensor(value) for name, value in inputs.items()}
        parameters = [*self.model.parameters(), *self.head.parameters()]
        trainable = [parameter for parameter in parameters if parameter.requires_grad]
        self.optimizer = torch.optim.AdamW(trainable, learning_rate)

    def step(self) -> float:
        """The loss, and one update after it."""
        x, mse = self.inputs, torch.nn.functional.mse_loss
        self.optimizer.zero_grad()
        velocity = self.model(x["latents"], x["text"], x["timesteps"], return_dict=False)[0]
        loss = mse(velocity, x["velocity"]) + mse(self.head(velocity), x["actions"])
        loss.backward()
        self.optimizer.step()
        return loss.item()

    def trained(self) -> dict[str, np.ndarray]:
        """What trains, by our names."""
        return self._named(lambda parameter: parameter.detach())

    def gradients(self) -> dict[str, np.ndarray]:
        """The gradients of the last step, by our names."""
        return self._named(lambda parameter: parameter.grad)

    def _named(self, read: Callable[[torch.nn.Parameter], torch.Tensor]) -> dict[str, np.ndarray]:
        def stack(attribute: str) -> np.ndarray:
            return np.stack([read(getattr(block, attribute)).numpy() for block in self.blocks])

        flat = {
            "blocks/loop/gate": stack("loop_gate")[..., 0],
            "blocks/loop/text": stack("loop_emb_enc"),
            "blocks/loop/video": stack("loop_emb"),
        }
        for name, layer in (("hidden", self.head.net[0]), ("out", self.head.net[2])):
            flat[f"graft/decoder/{name}/kernel"] = read(layer.weight).numpy().T
            flat[f"graft/decoder/{name}/bias"] = read(layer.bias).numpy()
        return {name: value.copy() for name, value in flat.items()}
