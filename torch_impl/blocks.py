"""Steps of a rule on the CPU without autograd, in pieces that fit the cache.

Small tensors are gathered into one vector, worked on together and scattered; large ones are cut. A tensor's
state and value change only when all of its update is known to be finite (FORMATS.md section 3).
"""

from collections.abc import Mapping, Sequence

import torch

from interchange.compiler import Program
from torch_impl.certificate import FAR
from torch_impl.eager import Kernel
from torch_impl.pieces import Item, Plan, Settings, cut, flat, room
from torch_impl.proofs import Proofs

ALONE = 2**16  # elements from which a tensor is not gathered with others: copies cost more than calls
PIECE = 2**17  # elements per thread: few calls, and a dozen such vectors fit a cache of 6 MB
STAGED = 2**23  # floats that one tensor's new state and update may take while they wait to be accepted


class Blocks:
    """A rule on parameters that are computed in one dtype.

    Args:
        exact: as for ``Kernel``; without it an item whose state is infinite is refused, and has to be
            stepped again with it.
    """

    def __init__(self, program: Program, scale: float, dtype: torch.dtype, exact: bool) -> None:
        self._dtype = dtype
        kernel = Kernel(program, scale, exact)
        self._values = kernel.values(dtype)  # the other kernel's too: it differs in the buffers only
        self._plan = Plan(kernel, self._values, dtype)
        self._direct = Plan(Kernel(program, scale, exact, in_place=True), self._values, dtype)
        self._waiting: dict[int, torch.Tensor] = {}
        self._waiting_places = sorted({p for p in (kernel.out, *kernel.new) if p in kernel.buffers})
        self._proofs = Proofs(program, scale, dtype)

    def step(
        self, items: Sequence[Item], constants: Mapping[str, float], t: int, settings: Settings
    ) -> list[bool]:
        """Step ``t`` of every item; False where the update was not finite and nothing was changed."""
        self._values.fill(constants, t)
        piece = PIECE * min(torch.get_num_threads(), 8)
        accepted = [True] * len(items)
        packs: list[list[int]] = [[]]
        room = piece
        for k, item in enumerate(items):
            n = item.p.numel()
            if n > min(ALONE, piece) and (vector := flat(item)):
                accepted[k] = self._large(item, vector, piece, constants, t, settings)
                continue
            if n > room and packs[-1]:
                packs.append([])
                room = piece
            packs[-1].append(k)
            room -= n
        for pack in packs:
            if len(pack) == 1 and (vector := flat(items[pack[0]])):
                accepted[pack[0]] = self._large(items[pack[0]], vector, piece, constants, t, settings)
            elif pack:
                for k, ok in zip(pack, self._pack([items[k] for k in pack], settings), strict=True):
                    accepted[k] = ok
        return accepted

    def _pack(self, items: Sequence[Item], settings: Settings) -> list[bool]:
        """Tensors of any layout and dtype, gathered."""
        plan, kernel = self._plan, self._plan.kernel
        r, shaped = plan.side_by_side(tuple([item.p.shape for item in items]))
        params = [item.p for item in items]
        plain = all(p.dtype == self._dtype for p in params)
        torch._foreach_copy_(shaped[0], [item.g for item in items])
        if settings.maximize:
            r[0].neg_()
        if kernel.reads_theta or not plain:
            torch._foreach_copy_(shaped[1], params)
        for k, place in enumerate(kernel.slots):
            torch._foreach_copy_(shaped[place], [item.state[k] for item in items])
        plan.run(r)
        accepted = [True] * len(items)
        if settings.guard and not _finite(r[kernel.out], plan.factor):
            accepted = [_finite(part, plan.factor) for part in shaped[kernel.out]]
        taken = [k for k, ok in enumerate(accepted) if ok]
        if not taken:
            return accepted
        for k, place in enumerate(kernel.new):
            torch._foreach_copy_([items[i].state[k] for i in taken], [shaped[place][i] for i in taken])
        params, rate = [params[i] for i in taken], settings.rate * plan.factor
        if plain:
            if settings.shrink != 1.0:
                torch._foreach_mul_(params, settings.shrink)
            torch._foreach_add_(params, [shaped[kernel.out][i] for i in taken], alpha=rate)
        else:
            r[1].mul_(settings.shrink).add_(r[kernel.out], alpha=rate)
            torch._foreach_copy_(params, [shaped[1][i] for i in taken])
        return accepted

    def _large(
        self,
        item: Item,
        vector: Item,
        piece: int,
        constants: Mapping[str, float],
        t: int,
        settings: Settings,
    ) -> bool:
        """One tensor, cut into pieces."""
        pieces = cut(vector, piece)
        proof = None
        if settings.guard:
            proof = self._proofs.find(item.state, (vector.p, vector.g, vector.state), constants, t)
            if proof is None:
                return self._looked_at(pieces, settings)
        for part in pieces:
            r = self._direct.vectors(part, settings)
            self._direct.run(r)
            self._direct.commit(r, part, settings)
        if proof is not None:
            self._proofs.keep(proof, item.state)
        return True

    def _looked_at(self, pieces: Sequence[Item], settings: Settings) -> bool:
        """The update of every piece is looked at before any is applied.

        The pieces' new state waits until then; where that takes too much memory it is computed again.
        """
        plan, total = self._plan, sum(part.p.numel() for part in pieces)
        keep = len(pieces) == 1 or total * len(self._waiting_places) <= STAGED
        results, start = [], 0
        for part in pieces:
            r, n = plan.vectors(part, settings), part.p.numel()
            if keep and len(pieces) > 1:
                for place in self._waiting_places:
                    r[place] = room(self._waiting, place, total, self._dtype)[start : start + n]
            plan.run(r)
            if not _finite(r[plan.kernel.out], plan.factor):
                return False
            results.append({place: r[place] for place in self._waiting_places})
            start += n
        for part, result in zip(pieces, results, strict=True):
            r = plan.vectors(part, settings)
            if keep:
                for place, vector in result.items():
                    r[place] = vector
            else:
                plan.run(r)
            plan.commit(r, part, settings)
        return True


def _finite(u: torch.Tensor, factor: float) -> bool:
    """Whether all of ``factor * u`` is finite: the sum is, or overflows, which one has to look at."""
    total = u.sum().item() * factor
    return abs(total) < FAR[torch.float32] or bool(torch.isfinite(u * factor).all())
