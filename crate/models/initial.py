"""Initial weights that are paired by seed: two networks share those whose shapes they share.

A network draws its weights one after another. With one stream of random numbers, a weight of
another shape (a larger image's positions, one block more) would change all that are drawn after it,
and two recipes that differ in one value would differ in their initial weights too.
"""

from torch import Tensor, manual_seed
from torch.overrides import TorchFunctionMode

from crate.runtime import seed_for

DRAWS = frozenset(
    {
        "normal_", "uniform_", "trunc_normal_", "kaiming_normal_", "kaiming_uniform_",
        "xavier_normal_", "xavier_uniform_",
    }
)  # fmt: skip


class PairedDraws(TorchFunctionMode):
    """While it is entered, each tensor is drawn from a stream of its own.

    The stream depends on `seed`, the tensor's shape, and how many tensors of this shape were drawn
    before it. A tensor that is drawn again begins its stream again.
    """

    def __init__(self, seed: int):
        super().__init__()
        self.seed = seed
        self.drawn: dict[int, tuple[Tensor, int]] = {}  # the tensors are kept, and so their places
        self.of_shape: dict[tuple[int, ...], int] = {}

    def __enter__(self):
        manual_seed(seed_for(self.seed, "init"))  # of draws that are none of a tensor in place
        return super().__enter__()

    def __torch_function__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if getattr(function, "__name__", "") in DRAWS:
            tensor = args[0] if args else kwargs["tensor"]
            manual_seed(self._stream(tensor))
        return function(*args, **kwargs)

    def _stream(self, tensor: Tensor) -> int:
        place = tensor.untyped_storage().data_ptr()  # a view's is that of its base
        if place not in self.drawn:
            shape = tuple(tensor.shape)
            count = self.of_shape.get(shape, 0)
            self.of_shape[shape] = count + 1
            self.drawn[place] = tensor, seed_for(self.seed, "init", *shape, count)
        return self.drawn[place][1]
