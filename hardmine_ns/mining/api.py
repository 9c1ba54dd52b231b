"""Hard-sample mining: backpropagate only the samples that the loss still disagrees with.

Notation, used throughout: a *field* maps B rows (samples on rays) to output rows; `y_i` are its outputs at row i, `L`
the loss, `g_i` the hardness of row i, `p_i` its share of the total, `b` the number of rows drawn, `S` the set of them,
`pi_i` the probability that row i enters S, and `w_i` its weight in the gradient.

    forward    y = field(x), without a graph: a row costs its outputs and nothing else
    hardness   g_i = || dL/dy_i ||_2 over all outputs, taken before their activations;  p_i = g_i / sum_j g_j
    fraction   tau <- 0.9 tau + 0.1 sqrt(B sum_i p_i^2), from its first value;   b / B = clamp(1 / tau, 0.05, 0.5)
    backward   dL/dtheta = sum over i in S of w_i (dy_i/dtheta)^T dL/dy_i, the field being run again on S with a graph

`sqrt(B sum p^2)` equals `sqrt(1 + CV^2)`, CV being the coefficient of variation of g: 1 when all rows are equally hard,
larger as the gradient concentrates (Katharopoulos & Fleuret 2018; arXiv 2408.03193). With forward 1 and backward 2, a
step costs 1 + 3 b/B instead of 3, and the graph holds b rows instead of B.

How S is drawn, and what the mean gradient then is:

    poisson      row i independently with pi_i = min(1, c p_i), sum pi = b;  w_i = 1 / pi_i: unbiased (Horvitz-Thompson)
    systematic   with the same pi_i and w_i, spread evenly over the rows in their order: unbiased
    multinomial  b rows without replacement in proportion to p;  w_i = 1: the published rule, biased towards hard rows
    topk         the b hardest rows;  w_i = 1: biased, no variance
    off          all rows, with an ordinary graph

With `heads="separate"`, `poisson` and `systematic` draw for each output y_h by itself, by p_h,i ~ || dL/dy_h,i ||. Row
i is used if any of the draws has it, and counts 1 / pi_i for all outputs: unbiased as well, and no output's gradient
rules the draw for another.

    pi_i = 1 - product over h of (1 - min(1, c p_h,i)),   sum pi = b

Any field can be mined, for example nerfstudio's nerfacto field (`examples/mine_nerfacto.py` is the runnable file):

    mining = HardSampleMining(rule="poisson")  # a submodule of the model, so that tau moves and is saved with it
    samples = ray_samples.flatten()
    every = torch.arange(len(samples), device=samples.frustums.origins.device)

    def rows(index):
        outputs = field(samples[index])
        return outputs[FieldHeadNames.DENSITY], outputs[FieldHeadNames.RGB]

    undo = undo_activations("exp", "sigmoid")
    density, rgb = mining(rows, field.parameters(), (every,), before_activation=undo)

The loss, a background, a gradient scaler or a further term in the loss need no change: whatever they are, their effect
arrives as the gradient of the outputs.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, get_args

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from hardmine_ns.mining.hardness import BeforeActivation, hardness, of_heads
from hardmine_ns.mining.on_gpu import Padded, draw_padded, draw_poisson
from hardmine_ns.mining.selection import ALONE, WEIGHTED, MiningHeads, MiningRule, check_draws, select_rows
from hardmine_ns.mining.statistics import MiningStatistics
from ns_support.concurrency.processes import Processes

Field = Callable[..., tuple[Tensor, ...]]
"""Maps row tensors [B, ...] to a tuple of row tensors [B, ...]; rows must not depend on one another."""


class HardSampleMining(nn.Module):
    """Wraps a field so that its backward pass runs on the hard rows only; keeps tau, which checkpoints save.

    Calling it gives the same outputs as calling the field. The field must be deterministic (it is run again on the
    chosen rows) and must treat rows independently: no batch normalisation, no dropout.

    Example:
        >>> layer, mining = nn.Linear(3, 4), HardSampleMining("topk")
        >>> (y,) = mining(lambda x: (layer(x),), layer.parameters(), (torch.rand(100, 3),))
        >>> y.square().sum().backward()  # layer.weight.grad comes from the 50 hardest rows
    """

    tau: Tensor

    def __init__(
        self,
        rule: MiningRule = "poisson",
        min_fraction: float = 0.05,
        max_fraction: float = 0.5,
        decay: float = 0.9,
        processes: Processes = ALONE,
        heads: MiningHeads = "together",
    ) -> None:
        """Check and keep the settings.

        Args:
            rule: as in this module's head.
            min_fraction: least b / B, in (0, 1].
            max_fraction: greatest b / B, in [min_fraction, 1]; 1 together with min_fraction 1 uses all rows.
            decay: of tau's running mean, in [0, 1).
            processes: whose rows make one batch: tau and the draw are the whole batch's. Every backward pass must then
                reach the field in every process.
            heads: together: one draw by the norm over all outputs; separate: one for each output, for the rules
                `poisson` and `systematic`. The budget b is the same. Separate draws are PyTorch's on a GPU too, which
                launches some more kernels; without `padded` the host waits for them.

        Raises:
            ValueError: if a setting is out of its range, or heads are separate with another rule.
        """
        super().__init__()
        check_draws(rule, heads, (min_fraction, max_fraction), decay)
        self.rule: MiningRule = rule
        self.heads: MiningHeads = heads
        self.min_fraction, self.max_fraction, self.decay = min_fraction, max_fraction, decay
        self.processes = processes
        self._requested: deque[tuple[MiningRule, float, float]] = deque(maxlen=1)
        self.statistics = MiningStatistics()
        self.rests = False
        """Whether all rows are used for now, whatever the rule; process 0 decides."""
        self.observer: Callable[[Tensor | None], None] | None = None
        """Told the rows of each backward pass, as `choose` returns them."""
        self.register_buffer("tau", torch.ones(()))

    def forward(
        self,
        field: Field,
        parameters: Iterable[Tensor],
        inputs: Sequence[Tensor],
        *,
        search: Field | None = None,
        before_activation: BeforeActivation | None = None,
        padded: Padded | None = None,
    ) -> tuple[Tensor, ...]:
        """Evaluate the field; its gradient will come from the rows that turn out hard.

        Args:
            field: called as `field(*inputs)` with B rows, and in the backward pass with the chosen rows of `inputs`.
            parameters: every tensor that the field uses and that wants a gradient.
            inputs: row tensors [B, ...] of any dtype. One that wants a gradient gets it on the chosen rows, else 0.
            search: what the forward pass calls instead of the field, when the same outputs can be had for less, for
                instance because a part of them is known already. Runs without a graph.
            before_activation: converts gradients for the hardness when the field applies activations itself, as
                `undo_activations` makes it; without it the outputs are taken to be before their activations.
            padded: how many of the rows there are, where only a GPU knows; `statistics` then stay as they are. Of a
                single process.

        Returns:
            The field's outputs, each [B, ...].

        Raises:
            ValueError: if there are no inputs, if inputs or outputs differ in their number of rows, or if the first
                input is on another device than tau.
        """
        inputs = tuple(inputs)
        if not inputs or any(x.shape[:1] != inputs[0].shape[:1] for x in inputs):
            raise ValueError(
                f"inputs must share their first dimension B, got shapes {[tuple(x.shape) for x in inputs]}"
            )
        whole = self.rule == "off" or self.rests
        if whole or not torch.is_grad_enabled():
            count = inputs[0].shape[0]
            if padded is None:
                self.statistics = MiningStatistics(count, count, self.statistics.tau)
            if self.observer is not None and torch.is_grad_enabled():
                self.observer(None)
            return field(*inputs) if whole or search is None else search(*inputs)
        if inputs[0].device != self.tau.device:
            raise ValueError(
                f"the inputs are on {inputs[0].device}, the mining's tau is on {self.tau.device}; move the "
                "HardSampleMining with the model"
            )
        parameters = tuple(p for p in parameters if p.requires_grad)
        call = _Call(self, field, parameters, len(inputs), before_activation, padded)
        return _MinedField.apply(call, search or field, *inputs, *parameters)

    @property
    def rules(self) -> tuple[MiningRule, ...]:
        """The rules that can be asked for: with separate heads the weighted ones, and "off"."""
        return get_args(MiningRule) if self.heads == "together" else (*WEIGHTED, "off")

    def request(self, rule: MiningRule, min_fraction: float, max_fraction: float) -> None:
        """Ask for other settings, from any thread of process 0; `begin_step` brings them into force.

        Args:
            rule: one of `rules`.
            min_fraction: least b / B, in (0, 1].
            max_fraction: greatest b / B, in [min_fraction, 1].

        Raises:
            ValueError: it is another rule.
        """
        if rule not in self.rules:
            raise ValueError(f"mining rule must be one of {self.rules}, got {rule!r}")
        self._requested.append((rule, min_fraction, max_fraction))

    def begin_step(self) -> None:
        """Take over the settings that process 0 has or was asked for, while no step is under way in any process.

        Processes of different settings would wait for one another for ever: they add up different things.
        """
        if self._requested:
            self.rule, self.min_fraction, self.max_fraction = self._requested.pop()
        if self.processes.size > 1:
            rules = get_args(MiningRule)
            own = [rules.index(self.rule), self.min_fraction, self.max_fraction, float(self.rests)]
            firsts = self.processes.broadcast(torch.tensor(own, dtype=torch.float64, device=self.tau.device))
            index, self.min_fraction, self.max_fraction, rests = firsts.tolist()
            self.rule, self.rests = rules[int(index)], bool(rests)

    @torch.no_grad()
    def choose(self, gradients: Sequence[Tensor], padded: Padded | None = None) -> tuple[Tensor | None, Tensor | None]:
        """Turn output gradients into the rows to backpropagate, and advance tau.

        Args:
            gradients: of each output, [B, ...], before the activations, with any loss scale.
            padded: how many of the rows there are, where only a GPU knows: `on_gpu.draw_padded` then says what becomes
                of them.

        Returns:
            (rows, weights). Rows None means all of them, weights None means 1. Rows are all when a gradient is not
            finite, so that a gradient scaler sees it, and none when every gradient is 0; tau then stays.
        """
        count = gradients[0].shape[0]
        alone = self.processes.size == 1
        fractions = self.min_fraction, self.max_fraction
        if padded is not None:
            return draw_padded(gradients, self.tau, self.decay, fractions, self.rule, padded, self.heads)
        kernels = self.rule == "poisson" and self.heads == "together" and gradients[0].is_cuda
        if kernels and self.max_fraction < 1 and alone and count > 0:
            drawn = draw_poisson(gradients, self.tau, self.decay, fractions)
            chosen = count if drawn.rows is None else drawn.rows.numel()
            self.statistics = MiningStatistics(count, chosen, drawn.tau, drawn.finite)
            return drawn.rows, drawn.weights
        found = hardness(gradients, self.processes)
        if not found.finite or found.zero:
            self.statistics = MiningStatistics(count, 0 if found.finite else count, float(self.tau), found.finite)
            nothing = torch.empty(0, dtype=torch.int64, device=gradients[0].device)
            return (nothing if found.finite else None), None
        everyones = count if alone else int(self.processes.sum(torch.tensor(count, device=found.values.device)))
        tau = self._advance_tau(found.values, everyones)
        budget = self._budget(tau, everyones)
        rows, weights = None, None
        if budget < everyones:
            heads = of_heads(gradients, self.processes) if self.heads == "separate" else None
            rows, weights = select_rows(found.values, budget, self.rule, self.processes, heads)
        self.statistics = MiningStatistics(count, count if rows is None else rows.numel(), tau)
        return rows, weights

    def _advance_tau(self, values: Tensor, everyones: int) -> float:
        """Tau <- 0.9 tau + 0.1 sqrt(B sum p^2), for hardness [B']; B is the number of all processes' rows."""
        share = values / self.processes.sum(values.sum())
        concentration = everyones * self.processes.sum(share.square().sum())
        # 1 is where it starts: from there a slow decay would draw half of the samples for many steps, hard or not.
        rate = 1 - self.decay if float(self.tau) > 1 else 1.0
        self.tau.lerp_(concentration.sqrt().to(self.tau.dtype), rate)
        return float(self.tau)

    def _budget(self, tau: float, everyones: int) -> int:
        """B = B clamp(1 / tau, least fraction, greatest fraction), at least 1."""
        return max(1, round(everyones * min(max(1 / tau, self.min_fraction), self.max_fraction)))

    def extra_repr(self) -> str:
        """Show the settings in the module's printout."""
        fractions = f"min_fraction={self.min_fraction}, max_fraction={self.max_fraction}"
        return f"rule={self.rule!r}, {fractions}, heads={self.heads!r}"


@dataclass(frozen=True)
class _Call:
    """One use of a mined field: what the backward pass needs and autograd need not know."""

    mining: HardSampleMining
    field: Field
    parameters: tuple[Tensor, ...]
    num_inputs: int
    before_activation: BeforeActivation | None
    padded: Padded | None = None


class _MinedField(torch.autograd.Function):
    """The seam. Parameters are inputs, so that hooks on them (data-parallel reduction, scalers) fire as usual."""

    @staticmethod
    def forward(ctx: Any, call: _Call, search: Field, *tensors: Tensor) -> tuple[Tensor, ...]:
        inputs = tensors[: call.num_inputs]
        outputs = tuple(search(*inputs))
        rows = inputs[0].shape[0]
        if any(y.shape[:1] != (rows,) for y in outputs):
            raise ValueError(f"the field must return {rows} rows, got shapes {[tuple(y.shape) for y in outputs]}")
        ctx.call = call
        device = inputs[0].device.type
        ctx.autocast = {
            "device_type": device,
            "enabled": torch.is_autocast_enabled(device),
            "dtype": torch.get_autocast_dtype(device),
            "cache_enabled": torch.is_autocast_cache_enabled(),
        }
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*inputs, *(outputs if call.before_activation is not None else ()))
        return outputs

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:
        call: _Call = ctx.call
        inputs = ctx.saved_tensors[: call.num_inputs]
        outputs = ctx.saved_tensors[call.num_inputs :]
        given = [i for i, g in enumerate(gradients) if g is not None]
        present = [g for g in gradients if g is not None]
        measured: Sequence[Tensor] = present
        if call.before_activation is not None:
            filled = [torch.zeros_like(y) if g is None else g for g, y in zip(gradients, outputs, strict=True)]
            measured = call.before_activation(outputs, filled)
        choose, padded = call.mining.choose, call.padded
        rows, weights = choose(measured) if padded is None else choose(measured, padded)
        if call.mining.observer is not None:
            # While somebody looks, a GPU may be waited for.
            call.mining.observer(rows if padded is None or rows is None else rows[weights != 0])
        if rows is not None:
            present = [g[rows] for g in present]
        if weights is not None:
            present = [g * weights.to(g.dtype).reshape(-1, *[1] * (g.dim() - 1)) for g in present]
        differentiable = ctx.needs_input_grad[2 : 2 + call.num_inputs]  # the call and the search come first
        weighted = dict(zip(given, present, strict=True))
        by_input, by_parameter = _rerun(call, ctx.autocast, inputs, rows, differentiable, weighted)
        return None, None, *by_input, *by_parameter


def _rerun(
    call: _Call,
    autocast: dict[str, Any],
    inputs: Sequence[Tensor],
    rows: Tensor | None,
    differentiable: Sequence[bool],
    gradients: Mapping[int, Tensor],
) -> tuple[list[Tensor | None], list[Tensor]]:
    """Run the field on the chosen rows with a graph.

    Args:
        call: the use of the mined field.
        autocast: arguments of `torch.autocast` as they were in the forward pass.
        inputs: all rows of every input.
        rows: the chosen ones, or None for all.
        differentiable: which inputs want a gradient.
        gradients: of the outputs that have one, by their number; on the chosen rows, weighted.

    Returns:
        Gradients of the inputs (0 for rows that were not chosen) and of the parameters.
    """
    chosen = [
        (x if rows is None else x[rows]).detach().requires_grad_(wants)
        for x, wants in zip(inputs, differentiable, strict=True)
    ]
    targets = [x for x in chosen if x.requires_grad]
    found: Sequence[Tensor | None] = [None] * (len(targets) + len(call.parameters))
    if rows is None or rows.numel():
        with torch.enable_grad(), torch.autocast(**autocast):
            outputs = call.field(*chosen)
        used = [i for i in gradients if outputs[i].requires_grad]
        if used:
            wanted = [*targets, *call.parameters]
            with _without_tensor_hooks(call.parameters):
                found = torch.autograd.grad(
                    [outputs[i] for i in used], wanted, [gradients[i] for i in used], allow_unused=True
                )
    of_targets = dict(zip(map(id, targets), found, strict=False))

    def of_input(whole: Tensor, part: Tensor) -> Tensor | None:
        gradient = of_targets.get(id(part))
        if gradient is None or rows is None:
            return gradient
        # Rows that were not drawn all have the same number, and a gradient of 0.
        zeros = torch.zeros_like(whole)
        return zeros.index_copy_(0, rows, gradient) if call.padded is None else zeros.index_add_(0, rows, gradient)

    by_input = [of_input(whole, part) for whole, part in zip(inputs, chosen, strict=True)]
    # Zeros rather than None: optimisers, scalers and data-parallel hooks expect a gradient after every backward pass.
    of_parameters = zip(call.parameters, found[len(targets) :], strict=True)
    return by_input, [torch.zeros_like(p) if g is None else g for p, g in of_parameters]


@contextmanager
def _without_tensor_hooks(parameters: Sequence[Tensor]) -> Iterator[None]:
    """Take hooks of `Tensor.register_hook` off: the outer backward pass will call them on the gradient we return."""
    hooked = [(p, p._backward_hooks) for p in parameters if p._backward_hooks]
    for p, _ in hooked:
        p._backward_hooks = None
    try:
        yield
    finally:
        for p, hooks in hooked:
            p._backward_hooks = hooks
