"""What ``fit`` returns: numbers of every step and of every epoch, summed where the tensors are.

Per step (of those that were taken): ``lr``, ``step_loss``. Per epoch:

    avg_loss          mean over steps of what was minimised
    r2                1 - sum |x - x_hat|^2 / sum |x - mean|^2, the mean per dimension over the epoch
    z_sparsity        codes that are not 0, per row (L0)
    dead_features     share of concepts without a code in the epoch
    skipped_batches   batches passed over, as they or their loss were not finite
    nan_fallbacks     batches computed again in float32, as their loss was not finite in bfloat16
    time_epoch        seconds

With ``monitoring`` 2 also, per step: ``z_l2`` (norm of the codes), ``grad_norm`` (before clipping), ``params_norm_NAME`` and
``params_grad_norm_NAME`` (after clipping); and per epoch: ``dictionary_sparsity`` (entries that are not 0, per row) and
``dictionary_norms`` (mean norm of rows).
"""

from __future__ import annotations

import math
import time
from collections import defaultdict

import torch
from torch import Tensor


class History:
    """Logs of one fit. Values wait as tensors and are read once an epoch: no step waits for them."""

    def __init__(self, num_concepts: int, device: torch.device) -> None:
        self.logs: dict[str, list[float]] = defaultdict(list)
        self._num_concepts, self._device = num_concepts, device
        self._waiting: dict[str, list[Tensor]] = defaultdict(list)
        self.begin_epoch()

    def begin_epoch(self) -> None:
        self._started = time.perf_counter()
        self._sums: dict[str, Tensor] = {}
        self._center: Tensor | None = None
        self._fired = torch.zeros(self._num_concepts, dtype=torch.bool, device=self._device)
        self.num_rows = self.num_steps = self.num_skipped = self.num_fallbacks = 0

    def note(self, name: str, value: Tensor) -> None:
        """One number of a step."""
        self._waiting[name].append(value.detach())

    def step(self, x: Tensor, codes: Tensor, loss: Tensor, mse: Tensor, lr: float) -> None:
        """Count a step: ``mse`` is the squared error summed over d, mean over rows, in the units of ``x`` ``[n, d]``."""
        x, n = x.detach(), len(x)
        if self._center is None:
            self._center = x.mean(0)
        centred = (x - self._center).double()  # sums of squares keep their digits near 0
        alive = codes != 0
        self._add("loss", loss.detach().double())
        self._add("error", mse.detach().double() * n)
        self._add("squares", centred.square().sum())
        self._add("sums", centred.sum(0))
        self._add("active", alive.sum())
        self._fired |= alive.any(0)
        self.num_rows += n
        self.num_steps += 1
        self.logs["lr"].append(lr)
        self.note("step_loss", loss)

    def _add(self, name: str, value: Tensor) -> None:
        self._sums[name] = self._sums[name] + value if name in self._sums else value

    @torch.no_grad()
    def end_epoch(self, rows: Tensor | None) -> None:
        """Write the epoch down; ``rows`` are those in effect, ``[c, d]``, where they are to be measured."""
        for name, values in self._waiting.items():
            self.logs[name] += torch.stack([value.double() for value in values]).tolist()
        self._waiting.clear()
        sums = self._sums
        variance = float(sums["squares"] - sums["sums"].square().sum() / self.num_rows)
        self._log("avg_loss", float(sums["loss"]) / self.num_steps)
        self._log("r2", 1 - float(sums["error"]) / variance if variance > 0 else math.nan)
        self._log("z_sparsity", float(sums["active"]) / self.num_rows)
        self._log("dead_features", 1 - float(self._fired.double().mean()))
        self._log("skipped_batches", self.num_skipped)
        self._log("nan_fallbacks", self.num_fallbacks)
        if rows is not None:
            self._log("dictionary_sparsity", float((rows != 0).sum(-1).double().mean()))
            self._log("dictionary_norms", float(rows.norm(dim=-1).double().mean()))
        self._log("time_epoch", time.perf_counter() - self._started)

    def _log(self, name: str, value: float) -> None:
        self.logs[name].append(value)

    def last_line(self, epoch: int, nb_epochs: int) -> str:
        """The epoch in one line."""
        last = {name: values[-1] for name, values in self.logs.items() if values}
        line = (
            f"epoch {epoch}/{nb_epochs}: loss {last['avg_loss']:.4g}, explained variance {last['r2']:.4f}, "
            f"L0 {last['z_sparsity']:.2f}, dead {last['dead_features']:.1%}, {last['time_epoch']:.2f} s"
        )
        skipped = int(last["skipped_batches"])
        return f"{line}, {skipped} batches skipped" if skipped else line
