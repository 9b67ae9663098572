"""AdamW of one expert through DeepSpeed, its state divided among the processes.

The training loop leaves the same gradients in every process. DeepSpeed gets them as those of copies of the weights, by
the pass of a function that is linear in them, takes the step, and the weights are copied back. So its hooks never meet
the passes of the loop.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


class ZeroOptimizer:
    """An optimizer with torch's interface.

    Args:
        optimizer: AdamW over the expert's weights. It keeps their groups; its own state stays empty.
        stage: 1 divides the optimizer's state, 2 the gradients too.
        offload: Whether the state lies in main memory.
    """

    def __init__(self, optimizer: torch.optim.AdamW, stage: int, offload: bool) -> None:
        import deepspeed

        self.param_groups = optimizer.param_groups
        self.weights: list[Tensor] = [weight for group in self.param_groups for weight in group["params"]]
        self.copies = _Copies(self.weights)
        copies = iter(self.copies.weights)
        # A state in main memory is no place for the kernels of a GPU.
        plain = {"fused": False, "capturable": False, "foreach": False}
        groups = [{**group, **plain, "params": [next(copies) for _ in group["params"]]} for group in self.param_groups]
        zero: dict[str, Any] = {"stage": stage}
        if offload:
            zero["offload_optimizer"] = {"device": "cpu", "pin_memory": torch.cuda.is_available()}
        config = {
            "train_micro_batch_size_per_gpu": 1,
            "gradient_clipping": 0.0,  # its default is 1; the loop has clipped
            "zero_optimization": zero,
            "zero_force_ds_cpu_optimizer": False,  # that one is compiled first
            "zero_allow_untested_optimizer": True,
        }
        self.engine, *_ = deepspeed.initialize(
            model=self.copies,
            model_parameters=list(self.copies.weights),
            optimizer=torch.optim.AdamW(groups),
            config=config,
        )
        self._states_are_linked = False

    def step(self) -> None:
        """Take a step with the gradients and learning rates of the weights."""
        self._step([weight.grad for weight in self.weights])
        with torch.no_grad():
            torch._foreach_copy_(self.weights, list(self.copies.weights))

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Forget the gradients of the weights, or set them to zero."""
        for weight in self.weights:
            weight.grad = None if set_to_none or weight.grad is None else weight.grad.zero_()

    def state_dict(self) -> dict[str, Any]:
        """Return the whole state as torch's AdamW does; all processes must call it."""
        from deepspeed.utils import safe_get_full_optimizer_state

        state: dict[int, dict[str, Tensor]] = {}
        if self._states_are_linked:
            step = self._own_state()["step"]
            for number, copy in enumerate(self.copies.weights):
                moments = {key: safe_get_full_optimizer_state(copy, key).clone() for key in ("exp_avg", "exp_avg_sq")}
                state[number] = {"step": step.clone(), **moments}
        numbers = iter(range(len(self.weights)))
        groups = [{**group, "params": [next(numbers) for _ in group["params"]]} for group in self.param_groups]
        return {"state": state, "param_groups": groups}

    def load_state_dict(self, saved: dict[str, Any]) -> None:
        """Load what ``state_dict`` of this class or of torch's AdamW returned; all processes must call it.

        The weights must be those that belong to the state.
        """
        from deepspeed.utils import safe_set_full_fp32_param, safe_set_full_optimizer_state

        if saved["state"]:
            self._step([torch.zeros_like(weight) for weight in self.weights])  # creates the state
            for number, copy in enumerate(self.copies.weights):
                for key in ("exp_avg", "exp_avg_sq"):
                    safe_set_full_optimizer_state(copy, saved["state"][number][key].to(copy.device), key)
            for state in self.engine.optimizer.optimizer.state.values():
                state["step"].copy_(saved["state"][0]["step"])
        with torch.no_grad():
            for copy, weight in zip(self.copies.weights, self.weights, strict=True):
                safe_set_full_fp32_param(copy, weight.detach().float())
                copy.copy_(weight)

    def close(self) -> None:
        """Release what DeepSpeed holds."""
        self.engine.destroy()

    def _step(self, gradients: list[Any]) -> None:
        for group, own in zip(self.engine.optimizer.param_groups, self.param_groups, strict=True):
            group["lr"] = own["lr"]
        self.engine.backward(self.engine(gradients))
        self.engine.step()
        if not self._states_are_linked:
            self._link_states()

    def _link_states(self) -> None:
        """Link each copy to its state. DeepSpeed does so after the step of the first group, for all of them."""
        from deepspeed.utils import lazy_init_hp_params_optimizer_state

        zero = self.engine.optimizer
        for group, flat in zip(zero.bit16_groups, zero.single_partition_of_fp32_groups, strict=True):
            lazy_init_hp_params_optimizer_state(group, flat, zero.optimizer.state)
        self._states_are_linked = True

    def _own_state(self) -> dict[str, Tensor]:
        return next(iter(self.engine.optimizer.optimizer.state.values()))  # type: ignore[no-any-return]


class _Copies(nn.Module):
    """Copies of weights; its output has given gradients with respect to them."""

    def __init__(self, weights: list[Tensor]) -> None:
        super().__init__()
        self.weights = nn.ParameterList([nn.Parameter(weight.detach().clone()) for weight in weights])

    def forward(self, gradients: list[Tensor]) -> Tensor:
        products = [(copy * gradient).sum() for copy, gradient in zip(self.weights, gradients, strict=True)]
        return torch.stack(products).sum()
